//! `wholebar net fwd` on models: what becomes of packets in each mode, what is told of them, what happens when a port does not stay, and what
//! a person can get wrong.

use crate::common::{Running, WHOLEBAR, WORK_FAILED, WRONG_USAGE, on_one_line, run};
use etherparse::{ArpEthIpv4Packet, ArpOperation, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use pcap_file::pcap::{PcapPacket, PcapWriter};
use pcap_file::pcapng::{Block, PcapNgReader};
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::Duration;

type Packet = Vec<u8>;

const STATION: [u8; 6] = [0x02, 0, 0, 0, 0, 0x77];
const OWN: [u8; 6] = [0x02, 0, 0, 0, 0, 0x11];

/// `net fwd`: its exit code, what it wrote, what it said.
fn fwd(line: &str) -> (Option<i32>, String, String) {
    run(&format!("net fwd {line}"))
}

/// One that runs until it is asked to end.
fn start(line: &str) -> Running {
    Running::start(&format!("net fwd {line}"))
}

/// The report of a run that works.
fn report(line: &str) -> Value {
    let (code, out, error) = fwd(&format!("{line} --stats 0 --json"));
    assert_eq!(code, Some(0), "{line}\n{error}");
    accounted(line, &out)
}

/// A report in which nothing is missing.
fn accounted(line: &str, out: &str) -> Value {
    let report: Value = serde_json::from_str(out).unwrap();
    assert_eq!(report["schema"], "wholebar.fwd/1");
    for port in report["ports"].as_array().unwrap() {
        assert_eq!(port["buffers"]["home"], port["buffers"]["made"], "{line}: {port}");
    }
    let n = |name: &str| report["accounting"][name].as_u64().unwrap();
    assert_eq!(n("received") + n("made") + n("duplicated"), n("sent") + n("kept") + n("refused") + n("left"), "{line}");
    report
}

/// A capture of packets to be received.
fn write(path: &Path, packets: &[Packet]) {
    let mut writer = PcapWriter::new(File::create(path).unwrap()).unwrap();
    for packet in packets {
        writer.write_packet(&PcapPacket::new(Duration::ZERO, packet.len() as u32, packet)).unwrap();
    }
}

fn read(path: &Path) -> Vec<Packet> {
    let mut reader = PcapNgReader::new(File::open(path).unwrap()).unwrap();
    let mut packets = Vec::new();
    while let Some(block) = reader.next_block() {
        if let Block::EnhancedPacket(packet) = block.unwrap() {
            packets.push(packet.data.into_owned());
        }
    }
    packets
}

/// Packets of several kinds and all sizes, to nobody here.
fn mixed() -> Vec<Packet> {
    let ethernet = || PacketBuilder::ethernet2(STATION, [0x02, 0, 0, 0, 0, 0x78]);
    let mut packets = Vec::new();
    for size in (1..1400).step_by(7) {
        let (mut packet, payload) = (Vec::new(), vec![size as u8; size]);
        match size % 3 {
            0 => ethernet().ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9).udp(1, 2).write(&mut packet, &payload),
            1 => ethernet().ipv6([1; 16], [2; 16], 9).tcp(1, 2, 3, 4).write(&mut packet, &payload),
            _ => {
                let tagged = ethernet().single_vlan(7.try_into().unwrap());
                tagged.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9).icmpv4_echo_reply(1, 2).write(&mut packet, &payload)
            }
        }
        .unwrap();
        packets.push(packet);
    }
    packets
}

/// Has port 0, which has no filters, receive packets, and returns what port 1 sent, with the report.
fn through(packets: &[Packet], arguments: &str) -> (Vec<Packet>, Value) {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("in.pcap"), dir.path().join("out.pcapng"));
    write(&from, packets);
    let ports = format!(
        "sim:virtio-net,wire=pcap,replay={},full=wait,control=0 sim:virtio-net,mac=02:00:00:00:00:11,wire=pcap:{}",
        from.display(),
        to.display()
    );
    let until = if packets.is_empty() { String::new() } else { format!("--packets {}", packets.len()) };
    let report = report(&format!("{ports} {until} {arguments}"));
    (read(&to), report)
}

#[test]
fn packets_pass_as_they_are() {
    let packets = mixed();
    for arguments in [
        "",
        "--burst 1 --split",
        "--rx-descriptors 4 --tx-descriptors 4 --burst 100",
        "--buffer 512 --offloads scatter",
    ] {
        let (sent, report) = through(&packets, arguments);
        assert!(sent == packets, "{arguments}: {} of {} packets", sent.len(), packets.len());
        let (bytes, port) = (packets.iter().map(Vec::len).sum::<usize>(), &report["ports"][0]);
        assert_eq!(port["rx_packets"], packets.len(), "{port}");
        assert_eq!((&port["rx_bytes"], &port["device"]), (&bytes.into(), &"model".into()), "{port}");
        assert_eq!(report["ports"][1]["tx_bytes"], bytes);
        assert_eq!(report["mode"], "io");
    }
}

#[test]
fn addresses_are_exchanged_or_given() {
    let packets = mixed();
    let with = |destination: [u8; 6], source: [u8; 6]| -> Vec<Packet> {
        packets.iter().map(|packet| [&destination, &source, &packet[12..]].concat()).collect()
    };
    let other = [0x02, 0, 0, 0, 0, 0x78];
    assert!(through(&packets, "--mode macswap").0 == with(STATION, other));
    assert!(through(&packets, "--mode l2fwd").0 == with([2, 0, 0, 0, 0, 1], OWN));
    let peers = "--peer 02:00:00:00:00:55 --peer 02:00:00:00:00:66";
    assert!(through(&packets, &format!("--mode l2fwd {peers}")).0 == with([2, 0, 0, 0, 0, 0x66], OWN));
}

#[test]
fn packets_are_read() {
    let packets = mixed();
    let (sent, report) = through(&packets, "--mode rxonly");
    assert!(sent.is_empty());
    assert_eq!(report["accounting"]["kept"], packets.len());
}

#[test]
fn packets_are_made() {
    let (sent, told) = through(&[], "--mode txonly --size 100 --packets 500");
    let made = told["accounting"]["made"].as_u64().unwrap();
    assert!(made >= 500, "{told}");
    assert_eq!(sent.len() as u64, told["ports"][1]["tx_packets"].as_u64().unwrap());
    for packet in sent {
        assert_eq!((packet.len(), &packet[..6], &packet[6..12]), (100, &[2, 0, 0, 0, 0, 1][..], &OWN[..]));
        let packet = SlicedPacket::from_ethernet(&packet).unwrap();
        let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Udp(udp))) = (packet.net, packet.transport) else {
            panic!("not UDP over IPv4")
        };
        let (ip, udp, payload) = (ip.header().to_header(), udp.to_header(), udp.payload());
        assert_eq!(ip.header_checksum, ip.calc_header_checksum());
        assert_eq!(udp.checksum, udp.calc_checksum_ipv4(&ip, payload).unwrap());
    }
    // More at once than the pool has.
    report("sim:virtio-net --mode txonly --burst 4096 --packets 3000");
    report("sim:virtio-net --mode txonly --burst 500 --pool 300 --packets 3000 --rx-descriptors 4 --tx-descriptors 4");
    // The smallest pool: the queue that receives holds all but what caches and one packet need.
    report("sim:virtio-net --mode txonly --pool 401 --packets 3000 --rx-descriptors 256 --faults duplicate=0.5");
}

/// What a port was not to receive is among its drops: here, all packets but the last.
#[test]
fn filtered_packets_are_among_the_drops() {
    let (dir, mut packets) = (tempfile::tempdir().unwrap(), mixed());
    let others = packets.len();
    packets.push([&OWN[..], &STATION, &[0x88, 0xb5], &[0; 46]].concat());
    let from = dir.path().join("in.pcap");
    write(&from, &packets);
    let port = format!("sim:virtio-net,mac=02:00:00:00:00:11,wire=pcap,replay={},full=wait", from.display());
    let (code, out, error) = fwd(&format!("{port} --mode rxonly --promiscuous off --packets 1 --stats 0"));
    assert_eq!(code, Some(0), "{error}");
    assert!(out.contains(&format!("rx_filtered {others}")), "{out}");
    let report = report(&format!("{port} --mode rxonly --promiscuous off --packets 1"));
    assert_eq!(report["ports"][0]["drops"]["rx_filtered"], others, "{report}");
}

#[test]
fn bursts_are_told_where_that_was_asked_for() {
    let line = "sim:virtio-net,wire=loop --mode txonly --packets 64 --burst 16 --stats 0";
    let (code, _, error) = fwd(&format!("{line} --trace"));
    assert_eq!(code, Some(0), "{error}");
    for says in
        ["TRACE sent queue=\"port 0 tx0\" packets=16 bytes=1024 left=0", "TRACE received queue=\"port 0 rx0\" packets="]
    {
        assert!(error.contains(says), "{error}\ndoes not say {says:?}");
    }
    let (_, _, error) = fwd(line);
    assert!(!error.contains("TRACE"), "{error}");
}

/// A link that came up before packets move is no news: the port's line tells of it. (Where it took too long, that was told, and so is the change.)
#[test]
fn links_that_are_up_are_not_told() {
    let wired = "sim:virtio-net,wire=pair:links";
    let (code, out, error) = fwd(&format!("{wired} {wired} --mode txonly --packets 2000 --stats 0"));
    assert_eq!(code, Some(0), "{error}");
    assert!(out.contains("link up") || error.contains("the link is down"), "{out}{error}");
    assert!(!error.contains("the link is up") || error.contains("the link is down"), "{error}");
}

/// What two ports on one wire send to each other comes, by two queues and two cores, and nothing else does.
#[test]
fn ports_on_one_wire_receive_what_the_other_sends() {
    let wired = "sim:virtio-net,wire=pair:fwd,queues=2";
    let report = report(&format!("{wired} {wired} --mode txonly --queues 2 --packets 20000"));
    let ports = report["ports"].as_array().unwrap();
    for (from, to) in [(0, 1), (1, 0)] {
        let sent = ports[from]["tx_packets"].as_u64().unwrap();
        let dropped = |name: &str| ports[to]["drops"][name].as_u64().unwrap_or(0);
        let came = ports[to]["rx_packets"].as_u64().unwrap();
        let lost = ports[from]["drops"]["wire_lost"].as_u64().unwrap_or(0);
        assert!(came + dropped("rx_no_buffer") + lost <= sent && came > 0, "{report}");
    }
}

#[test]
fn requests_are_answered() {
    let request = |target: [u8; 4]| {
        let arp = ArpEthIpv4Packet {
            operation: ArpOperation::REQUEST,
            sender_mac: STATION,
            sender_ipv4: [10, 0, 0, 9],
            target_mac: [0; 6],
            target_ipv4: target,
        };
        let mut packet = Vec::new();
        PacketBuilder::ethernet2(STATION, [0xff; 6]).arp(arp.to_arp_packet()).write(&mut packet).unwrap();
        packet
    };
    let echo = |target: [u8; 4], size: usize| {
        let mut packet = Vec::new();
        let ip = PacketBuilder::ethernet2(STATION, OWN).ipv4([10, 0, 0, 9], target, 64);
        ip.icmpv4_echo_request(1, 2).write(&mut packet, &vec![5; size]).unwrap();
        packet
    };
    let asked = [
        request([10, 0, 0, 1]),
        request([10, 0, 0, 2]),
        echo([10, 0, 0, 1], 8),
        mixed().swap_remove(0),
        // In three buffers.
        echo([10, 0, 0, 1], 1400),
        echo([10, 0, 0, 2], 8),
    ];
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("in.pcap"), dir.path().join("out.pcapng"));
    write(&from, &asked);
    let port = format!(
        "sim:virtio-net,wire=pcap:{},replay={},mac=02:00:00:00:00:11,full=wait,control=0",
        to.display(),
        from.display()
    );
    let more = "--mode icmpecho --address 10.0.0.1 --buffer 700 --offloads scatter --packets 6";
    let report = report(&format!("{port} {more}"));
    assert_eq!((&report["accounting"]["sent"], &report["accounting"]["kept"]), (&3.into(), &3.into()));
    let answers = read(&to);
    let sizes: Vec<_> = answers.iter().map(Vec::len).collect();
    assert_eq!(sizes, [asked[0].len(), asked[2].len(), asked[4].len()]);
    for answer in &answers {
        assert_eq!((&answer[..6], &answer[6..12]), (&STATION[..], &OWN[..]));
    }
    let last = SlicedPacket::from_ethernet(&answers[2]).unwrap();
    let Some(TransportSlice::Icmpv4(icmp)) = last.transport else { panic!("not ICMP") };
    assert_eq!((icmp.type_u8(), icmp.payload()), (0, &[5; 1400][..]));
    assert_eq!(icmp.checksum(), icmp.header().icmp_type.calc_checksum(icmp.payload()));
}

#[test]
fn idle_cores_sleep() {
    // On a busy machine its thread may get no core for a while: then it had no time to become tired.
    for time in ["0.5", "2", "8", "30"] {
        let report = report(&format!("sim:virtio-net --idle --time {time}"));
        if report["slept"].as_u64().unwrap() > 0 {
            return;
        }
    }
    panic!("it does not sleep");
}

#[test]
fn people_see_a_line_a_second_and_what_it_came_to() {
    let wired = "sim:virtio-net,wire=pair:lines";
    let mut run = start(&format!("{wired} {wired} --mode txonly --stats 0.2"));
    let mut lines = BufReader::new(run.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut seen: Vec<String> = Vec::new();
    // Two looks at each port, however late they are.
    while seen.iter().filter(|line| is_status(line)).count() < 4 {
        seen.push(lines.next().expect("it ended"));
    }
    assert_eq!(run.end(), Some(0));
    seen.extend(lines);
    let out = on_one_line(&seen.join("\n"));
    for says in [
        "port 1: sim:virtio-net,wire=pair:lines (virtio)",
        "rx pps",
        "txonly for",
        "buffers home",
        "made",
        " = sent",
        "emulation",
    ] {
        assert!(out.contains(says), "{out}\ndoes not say {says:?}");
    }
}

/// Whether a line is a look at a port: it begins with the time, in seconds, and the port's number.
fn is_status(line: &str) -> bool {
    let words: Vec<_> = line.split_whitespace().take(3).collect();
    matches!(words[..], [time, "s", "0" | "1"] if time.parse::<f64>().is_ok())
}

#[test]
fn what_happens_to_a_port_is_told() {
    // A reset: the queue goes on. It is told as it happens, and in the end.
    let line = "sim:virtio-net,faults=id:@300 --mode txonly --stats 0 --json";
    let mut run = start(line);
    let (mut out, error) = (run.0.stdout.take().unwrap(), BufReader::new(run.0.stderr.take().unwrap()));
    let mut error = error.lines().map(Result::unwrap);
    assert!(error.any(|line| line.contains("port 0: it was reset: ")), "it ended");
    assert_eq!(run.end(), Some(0));
    let report = accounted(line, &std::io::read_to_string(&mut out).unwrap());
    let events = report["events"].as_array().unwrap();
    assert!(events.iter().any(|e| e["event"].as_str().unwrap().starts_with("it was reset: ")), "{report}");
    // A port that is gone ends it, with what was counted so far.
    let (code, out, error) = fwd("sim:virtio-net,faults=vanish:@300 --mode txonly --json");
    assert_eq!(code, Some(WORK_FAILED), "{error}");
    assert!(error.contains("error: it ended early: port 0"), "{error}");
    let report: Value = serde_json::from_str(&out).unwrap();
    assert!(report["accounting"]["made"].as_u64().unwrap() > 0 && !report["ended"].is_null(), "{report}");
}

/// A device that loses buffers, or never says that it sent any: the run ends all the same, and says how many packets nobody knows of.
#[test]
fn packets_that_a_device_keeps_are_told() {
    for (line, kept) in [
        ("sim:virtio-net,inorder=0,faults=drop:1/8 --mode txonly --packets 500", 1..=256),
        ("sim:virtio-net,inorder=0,faults=drop:1/1 --mode txonly --packets 20", 20..=256),
    ] {
        let (code, out, error) = fwd(&format!("{line} --stats 0 --json"));
        let report = accounted(line, &out);
        let unconfirmed = report["ports"][0]["unconfirmed"].as_u64().unwrap();
        assert!(kept.contains(&unconfirmed), "{report}");
        assert_eq!((code, &report["settled"]), (Some(WORK_FAILED), &false.into()), "{error}");
        assert!(
            error.contains(&format!("error: port 0: {unconfirmed} of ")) && error.contains("not confirmed"),
            "{error}"
        );
        assert!(error.contains("waiting for "), "{error}");
    }
    // Asked to end once more, it waits no longer; so it does where it was asked for the first time when it had begun to wait.
    let mut run = start("sim:virtio-net,inorder=0,faults=drop:1/1 --mode txonly --packets 20 --stats 0");
    let mut error = BufReader::new(run.0.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(error.any(|line| line.contains("waiting for ")), "it ended");
    assert_eq!(run.end(), Some(WORK_FAILED));
    assert!(error.any(|line| line.contains("not confirmed")));
}

/// An MTU below what a driver has buffers for at least, and the smallest queues.
#[test]
fn small_mtus_and_small_queues_work() {
    let wired = "sim:virtio-net,wire=pair:small";
    for arguments in ["--mtu 576", "--mtu 68 --split"] {
        let report = report(&format!("{wired} {wired} --mode txonly --packets 1000 --size 60 {arguments}"));
        assert!(report["ports"][1]["rx_packets"].as_u64().unwrap() > 0, "{report}");
    }
    for arguments in ["", "--split"] {
        let report = report(&format!("{wired},entries=2 {wired},entries=2 --mode txonly --packets 1000 {arguments}"));
        assert!(report["ports"][1]["rx_packets"].as_u64().unwrap() > 0, "{report}");
    }
}

/// A server that goes away is a port that goes away.
#[test]
fn a_server_that_dies_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let server = Running::serve("virtio-net", &socket, "");
    let mut forwarder = start(&format!("vfio-user:{} --mode txonly --stats 0.1", socket.display()));
    // The line of the port, the columns' names, the first look.
    let mut out = BufReader::new(forwarder.0.stdout.take().unwrap()).lines();
    assert!(out.by_ref().take(3).all(|line| line.is_ok()));
    drop(server);
    let rest: Vec<_> = out.map(Result::unwrap).collect();
    let error = std::io::read_to_string(forwarder.0.stderr.take().unwrap()).unwrap();
    assert_eq!(forwarder.0.wait().unwrap().code(), Some(WORK_FAILED), "{error}");
    assert!(
        error.contains("it ended early: port 0") && on_one_line(&rest.join(" ")).contains(" = sent"),
        "{error}\n{rest:?}"
    );
}

#[test]
fn what_makes_no_sense_is_refused() {
    let net = "sim:virtio-net";
    for (line, code, says) in [
        ("", WRONG_USAGE, &["TARGET"][..]),
        ("eth0", WRONG_USAGE, &["eth0", "names no device"]),
        ("sim:virtio-net,wire=string", WRONG_USAGE, &["wire=string", "pair:NAME"]),
        ("NET --mode bounce", WRONG_USAGE, &["bounce", "macswap"]),
        ("NET --queues 0", WRONG_USAGE, &["--queues"]),
        ("NET --queues 2", WORK_FAILED, &["2 queues", "1 at most"]),
        ("NET --rx-descriptors 100", WRONG_USAGE, &["100", "power of two"]),
        ("NET --tx-descriptors 1024", WORK_FAILED, &["1024", "256"]),
        ("NET --mtu 20", WRONG_USAGE, &["20", "68"]),
        ("NET --mtu 9000", WORK_FAILED, &["9000", "68 to 1500"]),
        ("NET --offloads magic", WRONG_USAGE, &["magic", "checksum"]),
        ("NET --burst 0", WRONG_USAGE, &["--burst"]),
        ("NET --buffer 64", WORK_FAILED, &["64 bytes are too small"]),
        ("NET --pool 4000000000", WORK_FAILED, &["4000000000", "memory"]),
        ("NET --pool 656", WRONG_USAGE, &["--pool 656", "657 buffers are the least", "--rx-descriptors"]),
        ("NET --pool 401 --rx-descriptors 256 --queues 2", WRONG_USAGE, &["--pool 401", "802 buffers"]),
        ("NET --promiscuous perhaps", WRONG_USAGE, &["perhaps", "on or off"]),
        ("NET,control=0 --promiscuous on", WORK_FAILED, &["no promiscuous mode"]),
        ("NET --peer 1:2:3", WRONG_USAGE, &["1:2:3", "52:54:00:12:34:56"]),
        ("NET --peer 02:00:00:00:00:01", WRONG_USAGE, &["--peer", "l2fwd and txonly"]),
        ("NET --size 100", WRONG_USAGE, &["--size", "txonly"]),
        ("NET --address 10.0.0.1", WRONG_USAGE, &["--address", "icmpecho"]),
        ("NET --mode icmpecho --address here", WRONG_USAGE, &["here"]),
        ("NET --mode txonly --size 2000", WRONG_USAGE, &["2000", "1514"]),
        ("NET --mode txonly --size 10", WRONG_USAGE, &["10", "60"]),
        ("NET --cores 4000", WORK_FAILED, &["core 4000"]),
        ("NET --time soon", WRONG_USAGE, &["soon"]),
        ("vfio-user:/x vfio-user:/x", WRONG_USAGE, &["vfio-user:/x", "twice"]),
        ("NET,wire=pair:p NET,wire=pair:p NET,wire=pair:p", WORK_FAILED, &["pair:p", "two ends already"]),
        ("sim:virtio-blk", WORK_FAILED, &["1af4:1042", "8086:10c9"]),
        ("sim:nvme", WORK_FAILED, &["no network driver", "1af4:1041"]),
        ("NET,wire=tap:lo", WORK_FAILED, &["TAP interface lo"]),
        ("NET,wire=tap:a-name-that-is-too-long", WORK_FAILED, &["1 to 15 plain characters"]),
        ("ffff:1f:1f.7", WORK_FAILED, &["ffff:1f:1f.7", "no such PCI function"]),
    ] {
        let line = line.replace("NET", net);
        let (found, out, error) = fwd(&line);
        assert_eq!((found, out.as_str()), (Some(code), ""), "{line}\n{error}");
        assert!(error.starts_with("error: "), "{line}\n{error}");
        for says in says {
            assert!(error.contains(says), "{line}\n{error}\ndoes not say {says:?}");
        }
    }
}

/// Needs to be root, and TAP: nobody may make an interface, and nobody but one process may have it.
#[test]
fn taps_of_others_are_refused() {
    let root = rustix::process::geteuid().is_root();
    if !root || !Path::new("/dev/net/tun").exists() {
        eprintln!("skipped: needs root and TAP");
        return;
    }
    let name = format!("wbt{}", std::process::id());
    let target = format!("sim:virtio-net,wire=tap:{name}");
    // Somebody else, who may run a copy of the command.
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).unwrap();
    let copy = dir.path().join("wholebar");
    std::fs::copy(WHOLEBAR, &copy).unwrap();
    let nobody = std::process::Command::new(&copy).args(["net", "fwd", &target, "--time", "1"]).uid(65534).output();
    let nobody = nobody.unwrap();
    let error = String::from_utf8_lossy(&nobody.stderr);
    assert_eq!(nobody.status.code(), Some(WORK_FAILED), "{error}");
    assert!(error.contains(&name) && error.contains("CAP_NET_ADMIN"), "{error}");

    let mut first = start(&format!("{target} --stats 0"));
    let mut line = String::new();
    BufReader::new(first.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let (code, _, error) = fwd(&target);
    assert_eq!(first.end(), Some(0));
    assert_eq!(code, Some(WORK_FAILED), "{error}");
    assert!(error.contains(&name) && error.contains("another process has it"), "{error}");
}

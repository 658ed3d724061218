//! `net gen`, `net sink` and `net dump` as people use them: on pairs of models in their own process, and served by another one. What they
//! find is compared with what the models' wires counted, and what they send with what was in the capture, byte for byte.

use crate::common::{PATIENCE, Running, run, wholebar};
use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, IpFragOffset, IpNumber, Ipv4Header, Ipv6Header, PacketBuilder,
    TcpOptionElement, VlanId,
};
use pcap_file::pcap::{PcapPacket, PcapWriter};
use pcap_file::pcapng::{Block, PcapNgReader};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What a command says as JSON, and its exit code.
fn json(line: &str) -> (Value, Option<i32>) {
    let (code, out, error) = run(line);
    (serde_json::from_str(&out).unwrap_or_else(|e| panic!("{line}: {e}\n{error}")), code)
}

/// The two ends of a pair, each at a socket.
fn serve_pair(sockets: [&Path; 2], params: &str) -> Running {
    let [a, b] = sockets.map(Path::display);
    let mut pair = Running::start(&format!("sim serve virtio-net --socket {a} --socket {b} wire=pair:x {params}"));
    let lines = BufReader::new(pair.0.stderr.take().unwrap()).lines();
    assert_eq!(lines.map_while(Result::ok).filter(|line| line.contains("listens on")).take(2).count(), 2);
    pair
}

/// Two ends of a pair that loses nothing for want of buffers.
fn pair(name: &str, more: &str) -> String {
    let end = format!("sim:virtio-net,wire=pair:{name},full=wait{more}");
    format!("net gen {end} --to {end}")
}

#[test]
fn what_is_sent_is_received() {
    for (i, more) in [
        "--count 3000 --rate 50k",
        "--count 3000 --rate 20k --split --size 64-1518 --flows 300 --seed 5",
        "--count 3000 --rate 20k --ip 6 --vlan 7 --size 88-1522 --flows 4 --queues 2",
        "--count 500 --rate 10k --size 9018 --mtu 9000 --buffer 2048 --offloads checksum,scatter",
        "--count 2000 --rate 20Mbps --offloads checksum --flows 2",
        "--count 2000 --rate max --burst 1 --size imix",
    ]
    .into_iter()
    .enumerate()
    {
        let mtu = if more.contains("9000") { ",mtu=9000" } else { "" };
        let queues = if more.contains("--queues 2") { ",queues=2" } else { "" };
        let (report, code) = json(&format!("{} {more} --json", pair(&format!("same{i}"), &format!("{mtu}{queues}"))));
        assert_eq!(code, Some(0), "{more}\n{report:#}");
        assert_eq!(report["schema"], "wholebar.gen/1");
        let received = &report["received"];
        assert_eq!(report["sent"]["packets"], received["packets"], "{more}");
        for none in ["lost", "reordered", "duplicate", "corrupt", "foreign", "too_late", "other_runs", "uncounted"] {
            assert_eq!(received[none], 0, "{more}: {none}");
        }
        let (p50, max) = (&received["latency_ns"]["p50"], &received["latency_ns"]["max"]);
        assert!(p50.as_u64() > Some(0) && p50.as_u64() <= max.as_u64(), "{more}: {received:#}");
    }
}

/// The sink's numbers are the wire's own.
#[test]
fn what_the_wire_did_is_what_the_sink_says() {
    for (i, (params, flags)) in [
        (",loss=1/20,seed=9", ""),
        (",reorder=1/30,seed=4", "--split"),
        (",loss=1/50,reorder=1/20,seed=2", "--size 300"),
        (",loss=1/50,reorder=1/20,delay=3000,seed=3", ""),
    ]
    .into_iter()
    .enumerate()
    {
        let line = format!("{} --count 6000 --rate 30k {flags} --json", pair(&format!("wire{i}"), params));
        let (report, code) = json(&line);
        let (sent, received) = (&report["sent"], &report["received"]);
        let n = |value: &Value| value.as_u64().unwrap_or(0);
        let wire_lost = n(&report["ports"][0]["drops"]["wire_lost"]);
        assert_eq!(n(&received["lost"]), wire_lost, "{params}\n{report:#}");
        assert_eq!(n(&received["lost_by_cause"]["wire_lost"]), wire_lost, "{params}");
        assert_eq!((n(&sent["packets"]), n(&received["packets"]) + wire_lost), (6000, 6000), "{params}");
        assert_eq!(received["reordered"].as_u64().unwrap(), n(&received["wire_reordered"]), "{params}");
        assert_eq!((n(&received["uncounted"]), n(&received["duplicate"]), n(&received["corrupt"])), (0, 0, 0));
        let asked = |fault: &str, count: u64| assert_eq!(params.contains(fault), count > 0, "{params}: {count}");
        asked("loss", wire_lost);
        asked("reorder", n(&received["wire_reordered"]));
        assert_eq!(code, Some(i32::from(wire_lost > 0)));
        if params.contains("delay") {
            assert!(n(&received["latency_ns"]["min"]) >= 3_000_000, "{received:#}");
            let (tolerated, code) = json(&format!("{line} --tolerate"));
            assert_eq!((n(&tolerated["received"]["lost"]), code), (wire_lost, Some(0)), "the same seed loses the same");
        }
    }
}

/// What was done to packets on purpose is what the sink says, each for itself.
#[test]
fn what_faults_did_is_what_the_sink_says() {
    let n = |value: &Value| value.as_u64().unwrap_or(0);
    for (i, faults) in [
        "drop=0.02,seed=3",
        "duplicate=0.03,seed=4",
        "reorder=0.05,by=5,seed=5",
        "drop=0.01,duplicate=0.02,reorder=0.02",
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("faults{i}");
        let (report, _) = json(&format!("{} --count 5000 --rate max --faults {faults} --json", pair(&name, "")));
        let (received, port) = (&report["received"], &report["ports"][0]);
        let (dropped, doubled) = (n(&port["drops"]["tx_faults"]), n(&port["duplicated"]));
        assert_eq!((n(&received["lost"]), n(&received["uncounted"])), (dropped, 0), "{faults}\n{report:#}");
        assert_eq!(n(&received["duplicate"]), doubled, "{faults}\n{report:#}");
        assert_eq!(n(&received["packets"]) + dropped, 5000, "{faults}");
        for (fault, count) in [("drop", dropped), ("duplicate", doubled), ("reorder", n(&received["reordered"]))] {
            assert_eq!(faults.contains(fault), count > 0, "{faults}: {fault} {count}");
        }
    }
    // What a wrong bit does depends on where it is: all but the Ethernet header is protected, and without that a packet may be foreign.
    let (report, code) = json(&format!("{} --count 3000 --faults corrupt=0.1,truncate=0.1 --json", pair("faulty", "")));
    let (received, drops) = (&report["received"], &report["ports"][0]["drops"]);
    let (good, corrupt, foreign) = (n(&received["packets"]), n(&received["corrupt"]), n(&received["foreign"]));
    assert_eq!(good + corrupt + foreign + n(&drops["tx_length"]), 3000, "{report:#}");
    assert!(corrupt > 100 && good > 2000 && code == Some(1), "{report:#}");
}

/// gen and sink in processes of their own, through models in a third one.
#[test]
fn a_sink_elsewhere_finds_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b, file) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("out.pcapng"));
    let _pair = serve_pair([&a, &b], "full=wait loss=1/10 seed=6");
    let sink = |more: &str| {
        let line = format!("net sink vfio-user:{} --json --write {} {more}", b.display(), file.display());
        let _ = fs::remove_file(&file);
        let sink = Running::start(&line);
        wait_for(&file);
        sink
    };
    let generate = |more: &str| {
        let a = a.display();
        json(&format!(
            "net gen vfio-user:{a} --dst-mac ff:ff:ff:ff:ff:ff --count 2000 --rate 10k --flows 3 --json {more}"
        ))
    };
    let waiting = sink("--quiet 5 --expect 2000");
    let (sent, code) = generate("");
    assert_eq!((&sent["sent"]["packets"], code), (&2000.into(), Some(0)), "{sent:#}");
    let (code, text) = waiting.finish();
    let report: Value = serde_json::from_str(&text).unwrap();
    let received = &report["received"];
    let (came, lost) = (received["packets"].as_u64().unwrap(), received["lost"].as_u64().unwrap());
    assert_eq!((code, report["schema"].as_str(), came + lost), (Some(1), Some("wholebar.sink/1"), 2000), "{report:#}");
    assert!((100..300).contains(&lost) && received["flows"] == 3, "{report:#}");
    assert!(received["latency_ns"]["p50"].as_u64() > Some(0) && received.get("uncounted").is_none(), "{report:#}");
    assert_eq!(read(&file).len() as u64, came);

    // A second run of gen is not the first one's: numbers begin again. What gen did not send is foreign.
    let mixed = dir.path().join("mixed.pcap");
    write(&mixed, &traffic(1500));
    let stats = dir.path().join("stats");
    let waiting = sink(&format!("--tolerate --stats-socket {}", stats.display()));
    generate("");
    let (replayed, code) =
        json(&format!("net gen vfio-user:{} --replay {} --speed max --json", a.display(), mixed.display()));
    assert_eq!(code, Some(0), "{replayed:#}");
    generate("");
    // Two runs of 2000 packets, of which a tenth is lost, and the capture's.
    let began = Instant::now();
    while arrived(&stats) < 3500 {
        assert!(began.elapsed() < PATIENCE, "{} packets came", arrived(&stats));
        std::thread::sleep(Duration::from_millis(50));
    }
    waiting.interrupt();
    let (code, text) = waiting.finish();
    let report: Value = serde_json::from_str(&text).unwrap();
    let received = &report["received"];
    let n = |name: &str| received[name].as_u64().unwrap();
    assert_eq!((code, n("reordered"), n("duplicate"), n("corrupt")), (Some(0), 0, 0, 0), "{report:#}");
    assert!(n("packets") > 1500 && n("other_runs") > 1500, "{report:#}");
    assert!(n("foreign") > 0 && n("foreign") <= traffic(1500).len() as u64, "{report:#}");
}

/// How many packets came to the program that serves this socket.
fn arrived(stats: &Path) -> u64 {
    let (snapshot, code) = json(&format!("net stat {} --json", stats.display()));
    assert_eq!(code, Some(0));
    let queues = snapshot["ports"][0]["queues"].as_array().unwrap();
    queues.iter().find(|queue| queue["queue"] == "rx0").unwrap()["counters"]["packets"].as_u64().unwrap()
}

fn wait_for(file: &Path) {
    let began = Instant::now();
    while fs::metadata(file).map_or(0, |m| m.len()) == 0 {
        assert!(began.elapsed() < PATIENCE, "{} is not made", file.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Traffic of many kinds, made here, of at most `mtu` bytes a packet and its Ethernet header.
fn traffic(mtu: usize) -> Vec<Vec<u8>> {
    let (a, b) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let (a4, b4) = ([192, 0, 2, 1], [192, 0, 2, 2]);
    let net = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let (mut a6, mut b6) = (net, net);
    (a6[15], b6[15]) = (1, 2);
    let mut packets = Vec::new();
    let mut add = |build: &dyn Fn(&mut Vec<u8>)| {
        let mut packet = Vec::new();
        build(&mut packet);
        // The least an Ethernet carries, without its check sequence.
        packet.resize(packet.len().max(60), 0);
        packets.push(packet);
    };
    let data = |len: usize| (0..len).map(|i| (i * 7 % 251) as u8).collect::<Vec<_>>();

    let arp = |operation, to: &[u8; 6]| {
        ArpPacket::new(ArpHardwareId::ETHERNET, EtherType::IPV4, operation, &a, &a4, to, &b4).unwrap()
    };
    add(&|out| PacketBuilder::ethernet2(a, [0xff; 6]).arp(arp(ArpOperation::REQUEST, &[0; 6])).write(out).unwrap());
    add(&|out| PacketBuilder::ethernet2(a, b).arp(arp(ArpOperation::REPLY, &b)).write(out).unwrap());
    // Neighbour solicitation (RFC 4861, 4.3), to the solicited-node group.
    let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 2];
    let solicitation = [&b6[..], &[1, 1], &a].concat();
    add(&|out| {
        let link = PacketBuilder::ethernet2(a, [0x33, 0x33, 0xff, 0, 0, 2]);
        link.ipv6(a6, group, 255).icmpv6_raw(135, 0, [0; 4]).write(out, &solicitation).unwrap();
    });
    add(&|out| {
        let advertisement = [&b6[..], &[2, 1], &b].concat();
        let link = PacketBuilder::ethernet2(b, a).ipv6(b6, a6, 255);
        link.icmpv6_raw(136, 0, [0x60, 0, 0, 0]).write(out, &advertisement).unwrap();
    });
    for number in 0..3 {
        let echo = |out: &mut Vec<u8>| {
            let ip = PacketBuilder::ethernet2(a, b).ipv4(a4, b4, 64);
            ip.icmpv4_echo_request(7, number).write(out, &data(56)).unwrap();
        };
        add(&echo);
    }
    // TCP: a handshake's first packet, data, the end.
    add(&|out| {
        let options = [TcpOptionElement::MaximumSegmentSize(1460), TcpOptionElement::WindowScale(7)];
        let tcp = PacketBuilder::ethernet2(a, b).ipv4(a4, b4, 64).tcp(40_000, 80, 1, 65_535).syn();
        tcp.options(&options).unwrap().write(out, &[]).unwrap();
    });
    for number in 0..20u32 {
        let segment = |out: &mut Vec<u8>| {
            let tcp = PacketBuilder::ethernet2(a, b).ipv4(a4, b4, 64).tcp(40_000, 80, 2 + number * 1448, 65_535);
            tcp.psh().ack(9).write(out, &data(1448)).unwrap();
        };
        add(&segment);
    }
    add(&|out| {
        let tcp = PacketBuilder::ethernet2(a, b).ipv6(a6, b6, 64).tcp(40_001, 443, 5, 1024).fin().ack(6);
        tcp.write(out, &[]).unwrap();
    });
    // Tagged, and tagged twice.
    let vlan = |id| VlanId::try_new(id).unwrap();
    add(&|out| {
        let tagged = PacketBuilder::ethernet2(a, b).single_vlan(vlan(100));
        tagged.ipv4(a4, b4, 64).udp(53, 53).write(out, &data(30)).unwrap();
    });
    add(&|out| {
        let tagged = PacketBuilder::ethernet2(a, b).double_vlan(vlan(200), vlan(4094));
        tagged.ipv6(a6, b6, 64).udp(1000, 2000).write(out, &data(700)).unwrap();
    });
    // An IPv4 datagram in three fragments, the last one first.
    for (offset, len, more) in [(2960, 40, false), (0, 1480, true), (1480, 1480, true)] {
        let fragment = |out: &mut Vec<u8>| {
            let mut ip = Ipv4Header::new(len, 64, IpNumber::UDP, a4, b4).unwrap();
            ip.identification = 77;
            ip.more_fragments = more;
            ip.fragment_offset = IpFragOffset::try_new(offset / 8).unwrap();
            ip.header_checksum = ip.calc_header_checksum();
            out.extend([&b[..], &a, &[8, 0]].concat());
            ip.write(out).unwrap();
            out.extend(data(len.into()));
        };
        add(&fragment);
    }
    // A jumbo frame, full frames, and what no parser likes: an unknown protocol, and a header of nothing.
    let full = |len: usize| {
        move |out: &mut Vec<u8>| {
            PacketBuilder::ethernet2(a, b).ipv4(a4, b4, 64).udp(9, 9).write(out, &data(len - 28)).unwrap();
        }
    };
    add(&full(mtu));
    add(&full(1500));
    add(&full(mtu - 1));
    add(&|out| out.extend([&b[..], &a, &[0x88, 0xb5], &data(100)].concat()));
    add(&|out| out.extend([&b[..], &a, &[0x86, 0xdd], &[0xff; 46]].concat()));
    let long = Ipv6Header {
        payload_length: 0,
        next_header: IpNumber(59),
        hop_limit: 1,
        source: a6,
        destination: b6,
        ..Default::default()
    };
    add(&|out| {
        out.extend([&b[..], &a, &[0x86, 0xdd]].concat());
        long.write(out).unwrap();
    });
    packets
}

fn write(path: &Path, packets: &[Vec<u8>]) {
    let mut writer = PcapWriter::new(File::create(path).unwrap()).unwrap();
    for (i, packet) in packets.iter().enumerate() {
        let time = Duration::from_micros(1_000_000 + 500 * i as u64);
        writer.write_packet(&PcapPacket::new(time, packet.len() as u32, packet)).unwrap();
    }
}

/// The packets of a pcapng, by a library.
fn read(path: &Path) -> Vec<Vec<u8>> {
    let mut reader = PcapNgReader::new(File::open(path).unwrap()).unwrap();
    let mut packets = Vec::new();
    while let Some(block) = reader.next_block() {
        if let Block::EnhancedPacket(packet) = block.unwrap() {
            assert_eq!(packet.original_len as usize, packet.data.len());
            packets.push(packet.data.into_owned());
        }
    }
    packets
}

fn assert_same(sent: &[Vec<u8>], came: &[Vec<u8>], what: &str) {
    let differs = sent.iter().zip(came).position(|(sent, came)| sent != came);
    assert_eq!((sent.len(), differs), (came.len(), None), "{what}");
}

/// A capture with everything in it, and where it is.
fn mixed(dir: &Path) -> (Vec<Vec<u8>>, PathBuf) {
    let (packets, path) = (traffic(9000), dir.join("mixed.pcap"));
    write(&path, &packets);
    assert!(packets.iter().any(|p| p.len() == 9014) && packets.iter().filter(|p| p.len() == 60).count() > 3);
    (packets, path)
}

/// From a file through gen, a driver, a wire, a driver, to another file: on split and on packed rings, in large buffers and in small ones.
#[test]
fn mixed_traffic_passes_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let (packets, file) = mixed(dir.path());
    let (file, out) = (file.display(), dir.path().join("out.pcapng"));
    for (i, more) in ["", "--split", "--buffer 2048 --offloads scatter", "--split --buffer 1024 --offloads scatter"]
        .into_iter()
        .enumerate()
    {
        let pair = pair(&format!("mixed{i}"), ",mtu=9000");
        let (report, code) = json(&format!("{pair} --mtu 9000 --replay {file} --loops 3 --speed 2x --json {more}"));
        assert_eq!((code, &report["sent"]["packets"]), (Some(0), &(3 * packets.len()).into()), "{more}\n{report:#}");
        assert_eq!(report["received"]["packets"], 3 * packets.len(), "{more}\n{report:#}");
        assert_eq!((&report["received"]["lost"], &report["received"]["corrupt"]), (&0.into(), &0.into()));

        // What goes out is what a capture on the wire has; what comes in from one is what dump writes.
        let sending = format!("net gen sim:virtio-net,wire=pcap:{},mtu=9000", out.display());
        let (report, code) = json(&format!("{sending} --mtu 9000 --replay {file} --rate 10k --json {more}"));
        assert_eq!(code, Some(0), "{report:#}");
        assert_same(&packets, &read(&out), &format!("sent {more}"));
        let receiving =
            format!("net dump sim:virtio-net,wire=pcap,replay={file},mtu=9000,full=wait,control=0 {}", out.display());
        let (report, code) =
            json(&format!("{receiving} --mtu 9000 --count {} --time 100 --json {more}", packets.len()));
        assert_eq!((code, &report["schema"]), (Some(0), &"wholebar.dump/1".into()), "{report:#}");
        assert_same(&packets, &read(&out), &format!("received {more}"));
    }
}

#[test]
fn mixed_traffic_passes_over_vfio_user() {
    let dir = tempfile::tempdir().unwrap();
    let (packets, file) = mixed(dir.path());
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let _pair = serve_pair([&a, &b], "full=wait mtu=9000");
    for rings in ["", "--split"] {
        let out = dir.path().join(format!("out{rings}.pcapng"));
        let count = packets.len();
        let dump = Running::start(&format!(
            "net dump vfio-user:{} {} --mtu 9000 --count {count} --time 100 {rings}",
            b.display(),
            out.display()
        ));
        wait_for(&out);
        let a = a.display();
        let (report, code) =
            json(&format!("net gen vfio-user:{a} --mtu 9000 --replay {} --json {rings}", file.display()));
        assert_eq!(code, Some(0), "{report:#}");
        let (code, text) = dump.finish();
        assert_eq!(code, Some(0), "{text}");
        assert_same(&packets, &read(&out), rings);
    }
}

#[test]
fn a_capture_is_sent_as_fast_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("slow.pcap");
    let mut writer = PcapWriter::new(File::create(&file).unwrap()).unwrap();
    for millis in [0, 100, 400] {
        writer.write_packet(&PcapPacket::new(Duration::from_millis(millis), 60, &[2; 60])).unwrap();
    }
    drop(writer);
    // An hour, for which nobody would wait here.
    let hour = dir.path().join("hour.pcap");
    let mut writer = PcapWriter::new(File::create(&hour).unwrap()).unwrap();
    for seconds in [0, 1, 3600] {
        writer.write_packet(&PcapPacket::new(Duration::from_secs(seconds), 60, &[2; 60])).unwrap();
    }
    drop(writer);
    let out = dir.path().join("out.pcapng");
    for (file, speed, least) in [(&file, "original", 399), (&file, "2x", 199), (&hour, "max", 0)] {
        let (report, code) = json(&format!(
            "net gen sim:virtio-net,wire=pcap:{} --replay {} --speed {speed} --json",
            out.display(),
            file.display()
        ));
        assert_eq!((code, &report["sent"]["packets"]), (Some(0), &3.into()), "{report:#}");
        let millis = (report["seconds"].as_f64().unwrap() * 1000.0) as u64;
        assert!(millis >= least, "{speed}: {millis} ms");
    }
}

#[test]
fn dumps_go_to_pipes_and_keep_what_they_are_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let (packets, file) = mixed(dir.path());
    let line = format!(
        "net dump sim:virtio-net,wire=pcap,replay={},mtu=9000,full=wait,control=0 - --mtu 9000 --snaplen 96",
        file.display()
    );
    let output = wholebar(&format!("{line} --count 10 --time 100")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut reader = PcapNgReader::new(&output.stdout[..]).unwrap();
    let mut came = Vec::new();
    while let Some(block) = reader.next_block() {
        if let Block::EnhancedPacket(packet) = block.unwrap() {
            came.push((packet.data.into_owned(), packet.original_len as usize));
        }
    }
    let expected: Vec<_> = packets[..10].iter().map(|p| (p[..p.len().min(96)].to_vec(), p.len())).collect();
    assert_eq!(came, expected);
    assert!(String::from_utf8_lossy(&output.stderr).contains("10 packets in -"));
    // A reader that goes away ends it quietly.
    let mut child = Running::start(&format!("{line} --time 600"));
    drop(child.0.stdout.take());
    let began = Instant::now();
    while child.0.try_wait().unwrap().is_none() {
        assert!(began.elapsed() < PATIENCE, "it goes on for nobody");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (packets, mixed) = mixed(dir.path());
    let bytes = fs::read(&mixed).unwrap();
    let put = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
    put("empty", b"");
    put("text", b"this is no capture, however one looks at it");
    put("cut", &bytes[..bytes.len() - 7]);
    put("none.pcap", &bytes[..24]);
    let mut writer = PcapWriter::new(File::create(dir.path().join("snaplen.pcap")).unwrap()).unwrap();
    writer.write_packet(&PcapPacket::new(Duration::ZERO, 1514, &[0; 96])).unwrap();
    drop(writer);
    let last = packets.len();
    let cut = format!("cut is cut off in packet {last}");
    let to = "net gen sim:virtio-net --dst-mac 02:00:00:00:00:01";
    for (line, code, says) in [
        (format!("{to} --rate 0"), 2, "sends nothing"),
        (format!("{to} --rate fast"), 2, "is not a rate"),
        (format!("{to} --size 63"), 2, "below 64 bytes"),
        (format!("{to} --size 64 --ip 6"), 2, "below 84 bytes"),
        (format!("{to} --size 64 --vlan 5"), 2, "below 68 bytes"),
        (format!("{to} --size 1519"), 1, "above 1518 bytes, the most that an MTU of 1500 allows"),
        (format!("{to} --size 1523 --vlan 5"), 1, "above 1522"),
        (format!("{to} --size big"), 2, "no size of frames"),
        (format!("{to} --flows 0"), 2, "0 is not in"),
        (format!("{to} --flows 65537"), 2, "65537 is not in 1..=65536"),
        (format!("{to} --flows 1 --queues 2"), 2, "each has flows of its own"),
        (format!("{to} --queues 2 --flows 2"), 1, "1 at most"),
        (format!("{to} --vlan 4095"), 2, "4095 is not in"),
        (format!("{to} --ip 5"), 2, "--ip is 4 or 6"),
        (format!("{to} --burst 0"), 2, "0 is not in"),
        (format!("{to} --mtu 1501"), 1, "1501"),
        (format!("{to} --rx-descriptors 100"), 2, "power of two"),
        (format!("{to} --cores 0,1"), 2, "name fewer --cores"),
        (format!("{to} --tolerate"), 2, "--to"),
        (format!("{to} --loops 2"), 2, "--replay"),
        ("net gen sim:virtio-net".to_owned(), 2, "--dst-mac"),
        ("net gen sim:virtio-net --dst-mac 02:00:00:00:00".to_owned(), 2, "not an Ethernet address"),
        ("net gen sim:virtio-net --dst-mac hello".to_owned(), 2, "not an Ethernet address"),
        ("net gen sim:nvme --dst-mac 02:00:00:00:00:01".to_owned(), 1, "no network driver"),
        ("net gen sim:virtio-net --replay DIR/missing".to_owned(), 1, "missing"),
        ("net gen sim:virtio-net --replay DIR/empty".to_owned(), 1, "empty is empty"),
        ("net gen sim:virtio-net --replay DIR/text".to_owned(), 1, "text is neither pcap nor pcapng"),
        ("net gen sim:virtio-net --replay DIR/none.pcap".to_owned(), 1, "has no packets"),
        ("net gen sim:virtio-net --replay DIR/cut".to_owned(), 1, &cut),
        ("net gen sim:virtio-net --replay DIR/snaplen.pcap".to_owned(), 1, "packet 1 was cut to 96 of its 1514 bytes"),
        (
            "net gen sim:virtio-net --replay DIR/mixed.pcap".to_owned(),
            1,
            "has 9014 bytes, and an MTU of 1500 allows 1518",
        ),
        ("net gen sim:virtio-net --replay DIR/mixed.pcap --speed 0x".to_owned(), 2, "no speed"),
        ("net gen sim:virtio-net --replay DIR/mixed.pcap --speed max --rate 1".to_owned(), 2, "--rate"),
        ("net gen sim:virtio-net --replay DIR/mixed.pcap --size 64".to_owned(), 2, "--size"),
        ("net gen sim:virtio-net,queues=2 --replay DIR/mixed.pcap --queues 2".to_owned(), 2, "takes one queue"),
        ("net sink".to_owned(), 2, "TARGET"),
        ("net sink sim:virtio-net --expect 0".to_owned(), 2, "0 is not in"),
        ("net sink sim:virtio-net --time 0.1 --write DIR/no/such/file".to_owned(), 1, "cannot write"),
        ("net sink sim:virtio-net --time 0.1 --write -".to_owned(), 2, "--write takes a file"),
        ("net dump sim:virtio-net".to_owned(), 2, "FILE"),
        ("net dump sim:virtio-net DIR/no/such/file --time 0.1".to_owned(), 1, "cannot write"),
        ("net dump sim:virtio-net DIR/x --snaplen 3".to_owned(), 2, "3 is not in"),
        ("net dump sim:virtio-net - --json".to_owned(), 2, "standard output"),
        (
            "net dump sim:virtio-net,wire=pcap,replay=DIR/mixed.pcap,control=0 /dev/full --time 100".to_owned(),
            1,
            "cannot write /dev/full",
        ),
    ] {
        let line = line.replace("DIR", dir.path().to_str().unwrap());
        let output = wholebar(&line).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{line}\n{error}");
        assert!(error.contains("error: ") && error.contains(says), "{line}\n{error}\ndoes not say {says:?}");
    }
}

#[test]
fn every_command_explains_itself() {
    for command in ["gen", "sink", "dump"] {
        let output = wholebar(&format!("net {command} --help")).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains("Examples:"), "{text}");
    }
}

/// A switch between two front ends, in another process: all that one sends the other receives as it was, by either kind of ring.
#[test]
fn front_ends_are_switched() {
    let dir = tempfile::tempdir().unwrap();
    for (i, more) in ["", "--split --queues 2 --flows 16"].into_iter().enumerate() {
        let [a, b] = ["a", "b"].map(|name| dir.path().join(format!("{name}{i}.sock")));
        let queues = if i == 1 { "--queues 2" } else { "" };
        let far = |path: &Path| format!("vhost-user:{},back-end,server", path.display());
        let switch = Running::start(&format!("net fwd {} {} {queues} --stats 0 --json", far(&a), far(&b)));
        let began = Instant::now();
        while !a.exists() || !b.exists() {
            assert!(began.elapsed() < PATIENCE, "it does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        let (a, b) = (a.display(), b.display());
        let line = format!("net gen vhost-user:{a},net --to vhost-user:{b},net --count 3000 --rate 20k {more} --json");
        let (report, code) = json(&line);
        assert_eq!(code, Some(0), "{line}\n{report:#}");
        assert_eq!((&report["sent"]["packets"], &report["received"]["packets"]), (&3000.into(), &3000.into()));
        for none in ["lost", "duplicate", "corrupt", "foreign", "uncounted"] {
            assert_eq!(report["received"][none], 0, "{line}: {none}");
        }
        switch.interrupt();
        let (code, out) = switch.finish();
        let report: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(code, Some(0), "{report:#}");
        assert_eq!((&report["accounting"]["received"], &report["accounting"]["sent"]), (&3000.into(), &3000.into()));
        assert_eq!(report["ports"][1]["driver"], "vhost");
    }
}

//! Wires: what they lose, delay and reorder; capture files; the kernel at the other end of a TAP interface.

use crate::net::{Nic, bytes, packet};
use pcap_file::DataLink;
use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionOption;
use pcap_file::pcapng::{Block, PcapNgReader};
use std::path::Path;
use std::time::{Duration, Instant};
use wholebar_sim::virtio::net::{NetParams, model};

/// Sends packets 0 to `count` one by one through a loop; returns the numbers of those that came back.
fn through(params: &str, count: u16) -> Vec<u16> {
    let mut nic = Nic::new(params, 0, 256);
    let mut came = Vec::new();
    let (room, sent) = (nic.rig.memory(256 * 128), nic.rig.memory(128));
    let (there, at) = (nic.rig.at(&room), nic.rig.at(&sent));
    for slot in 0..256 {
        nic.rx.add(&[(there + slot * 128, 128, true)]);
    }
    let take = |nic: &mut Nic, came: &mut Vec<u16>| {
        while let Some((id, len)) = nic.rx.take() {
            assert_eq!(len, 76);
            let mut number = [0; 2];
            room.read(u64::from(id) * 128 + 12 + 62, &mut number).unwrap();
            came.push(u16::from_le_bytes(number));
            nic.rx.add(&[(there + u64::from(id) * 128, 128, true)]);
        }
    };
    for number in 0..count {
        let mut p = packet(64, 0);
        p[62..].copy_from_slice(&number.to_le_bytes());
        sent.write(12, &p).unwrap();
        nic.tx.add(&[(at, 76, false)]);
        nic.rig.step();
        nic.tx.take().expect("it was sent");
        take(&mut nic, &mut came);
    }
    // What is late arrives in a while, and whatever is still on its way has been for longer than it may then.
    std::thread::sleep(Duration::from_millis(50));
    nic.rig.settle();
    take(&mut nic, &mut came);
    let stats = nic.rig.handle.as_ref().unwrap().stats();
    assert_eq!(stats.tx_packets, u64::from(count));
    assert_eq!(stats.rx_packets + stats.wire_lost, u64::from(count));
    let late = (1..came.len()).filter(|i| came[..*i].iter().any(|before| *before > came[*i]));
    assert_eq!(stats.wire_reordered, late.count() as u64);
    came
}

#[test]
#[cfg_attr(miri, ignore = "thousands of packets")]
fn a_wire_loses_what_it_is_told_to_and_counts_it() {
    let first = through("loss=1/10,seed=7", 2000);
    assert!((150..250).contains(&(2000 - first.len())), "{} are lost", 2000 - first.len());
    assert!(first.is_sorted());
    assert_eq!(first, through("loss=1/10,seed=7", 2000), "the same seed loses the same");
    assert_ne!(first, through("loss=1/10,seed=8", 2000));
    assert_eq!(through("loss=1/1", 100), [0; 0]);
}

#[test]
#[cfg_attr(miri, ignore = "thousands of packets")]
fn a_wire_reorders_and_loses_nothing_by_it() {
    let mut came = through("reorder=1/10,seed=7", 2000);
    let late = came.windows(2).filter(|w| w[1] < w[0]).count();
    assert!((100..250).contains(&late), "{late} are late");
    // Nobody is overtaken by more than a few.
    assert!(came.iter().enumerate().all(|(i, n)| i.abs_diff(usize::from(*n)) < 20));
    came.sort_unstable();
    assert_eq!(came, (0..2000).collect::<Vec<_>>());
}

#[test]
#[cfg_attr(miri, ignore = "time")]
fn a_wire_takes_its_time() {
    let mut nic = Nic::new("delay=20000", 0, 8);
    let (buffer, start) = (nic.buffer(128), Instant::now());
    let kept = nic.send(&[0; 12], &packet(60, 1));
    while nic.rx.take().is_none() {
        nic.rig.step();
        assert!(start.elapsed() < Duration::from_secs(600));
    }
    assert!(start.elapsed() >= Duration::from_millis(20));
    assert_eq!(bytes(&buffer, 72)[12..], packet(60, 1));
    drop(kept);
}

/// The packets of a pcapng file, whose times must be in nanoseconds.
fn packets(path: &Path) -> Vec<Vec<u8>> {
    let mut reader = PcapNgReader::new(std::fs::File::open(path).unwrap()).unwrap();
    let mut packets = Vec::new();
    while let Some(block) = reader.next_block() {
        match block.unwrap() {
            Block::InterfaceDescription(i) => {
                assert_eq!(i.linktype, DataLink::ETHERNET);
                assert_eq!(i.options, [InterfaceDescriptionOption::IfTsResol(9)]);
            }
            Block::EnhancedPacket(p) => {
                assert_eq!(p.original_len as usize, p.data.len());
                let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
                assert!(now.abs_diff(p.timestamp) < Duration::from_secs(3600));
                packets.push(p.data.to_vec());
            }
            _ => {}
        }
    }
    packets
}

#[test]
#[cfg_attr(miri, ignore = "files")]
fn what_is_sent_is_captured_and_what_was_captured_is_received() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sent.pcapng");
    let params = format!("wire=pcap:{},mtu=9000", file.display());
    let sent: Vec<_> = [60, 61, 1514, 9014, 14].iter().map(|n| packet(*n, *n as u8)).collect();
    let mut nic = Nic::new(&params, 0, 16);
    let kept: Vec<_> = sent.iter().map(|p| nic.send(&[0; 12], p)).collect();
    nic.rig.settle();
    assert_eq!(packets(&file), sent, "all are in the file while the model still runs");
    drop((nic, kept));
    // Received from there, in full, though there are fewer buffers than packets at first.
    let mut nic = Nic::new(&format!("wire=pcap,replay={},mtu=9000,full=wait", file.display()), 0, 8);
    for p in &sent {
        let buffer = nic.buffer(12_000);
        nic.rig.settle();
        assert_eq!(nic.rx.take().map(|t| t.1), Some(12 + p.len() as u32));
        assert_eq!(bytes(&buffer, 12 + p.len())[12..], *p);
    }
    nic.buffer(100);
    nic.rig.settle();
    assert_eq!(nic.rx.take(), None, "the file has an end");
}

#[test]
fn what_a_tap_has_waits_for_buffers_unless_it_is_to_be_dropped() {
    for (params, waits) in [
        ("wire=tap:wb0", true),
        ("wire=tap:wb0,full=drop", false),
        ("full=drop,wire=tap:wb0", false),
        ("wire=loop", false),
        ("full=wait", true),
    ] {
        assert_eq!(NetParams::parse(params).unwrap().wait, waits, "{params}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "files")]
fn captures_that_make_no_sense_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let refuse = |params: String| model(NetParams::parse(&params).unwrap()).err().unwrap().to_string();
    let replay = |file: &Path| refuse(format!("wire=pcap,replay={}", file.display()));
    let whole = path("whole");
    let mut nic = Nic::new(&format!("wire=pcap:{}", whole.display()), 0, 8);
    let kept = nic.send(&[0; 12], &packet(60, 1));
    nic.rig.settle();
    drop((nic, kept));
    let whole = std::fs::read(whole).unwrap();
    for (name, content, why) in [
        ("cut", &whole[..whole.len() - 10], "behind its packet 0: it is cut off"),
        ("empty", &[][..], "is empty"),
        ("text", &b"something else"[..], "neither pcap nor pcapng"),
    ] {
        std::fs::write(path(name), content).unwrap();
        let error = replay(&path(name));
        assert!(error.contains(why), "{name}: {error}");
    }
    assert!(replay(&path("nowhere")).contains("cannot be read: No such file"));
    assert!(refuse(format!("wire=pcap:{}/x/y", folder.path().display())).contains("cannot be written"));
    assert!(NetParams::parse("replay=x").is_err() && NetParams::parse("wire=pcap:").is_err());
}

#[test]
#[cfg_attr(miri, ignore = "interfaces")]
fn interfaces_that_cannot_be_are_refused() {
    let refuse = |name: &str| {
        model(NetParams::parse(&format!("wire=tap:{name}")).unwrap()).err().map(|e| e.to_string()).unwrap_or_default()
    };
    for name in ["sixteen-letters!", "a/b", "..", "tap%d", "ta p"] {
        let error = refuse(name);
        assert!(error.starts_with(&format!("TAP interface {name}: ")) && error.contains("1 to 15"), "{error}");
    }
    // Someone else's kind of interface.
    assert_ne!(refuse("lo"), "");
}

/// Runs a test of this binary as root of a network namespace of its own; false where that can't be had.
fn alone(test: &str) -> bool {
    const MARK: &str = "WHOLEBAR_TEST_ALONE";
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let command = |program: &str| {
        let mut command = std::process::Command::new("unshare");
        command.args(["--net", "--user", "--map-root-user", program]);
        command
    };
    let can = command("ip").args(["tuntap", "add", "probe", "mode", "tap"]).output();
    if !can.is_ok_and(|o| o.status.success()) {
        println!("skipped: no user namespaces, or no TAP interfaces, or no ip(8)");
        return false;
    }
    let this = std::env::current_exe().unwrap();
    let status = command(this.to_str().unwrap()).args(["--exact", test, "--nocapture"]).env(MARK, "1").status();
    assert!(status.unwrap().success(), "the test fails in its namespace");
    false
}

fn ip(args: &str) {
    assert!(std::process::Command::new("ip").args(args.split(' ')).status().unwrap().success(), "ip {args}");
}

#[test]
#[cfg_attr(miri, ignore = "namespaces")]
fn the_kernel_answers_at_the_other_end_of_a_tap() {
    if !alone("wires::the_kernel_answers_at_the_other_end_of_a_tap") {
        return;
    }
    use etherparse::{IpNumber, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
    let mut nic = Nic::new("wire=tap:wb0,full=wait", 1, 64);
    ip("link set wb0 address 02:00:00:00:00:01 up");
    ip("addr add 10.9.0.1/24 dev wb0");
    ip("neigh add 10.9.0.2 lladdr 02:00:00:00:00:02 dev wb0");
    let (us, them) = (([2, 0, 0, 0, 0, 2], [10, 9, 0, 2]), ([2, 0, 0, 0, 0, 1], [10, 9, 0, 1]));
    // What comes, until it is what is waited for.
    let wait = |nic: &mut Nic, what: &str, is: &dyn Fn(&SlicedPacket<'_>) -> bool| -> Vec<u8> {
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < Duration::from_secs(600), "no {what}");
            let buffer = nic.buffer(2048);
            let (_, len) = loop {
                nic.rig.step();
                if let Some(used) = nic.rx.take() {
                    break used;
                }
                assert!(start.elapsed() < Duration::from_secs(600), "no {what}");
            };
            let got = bytes(&buffer, len as usize);
            // Nothing was agreed on for receiving: all that comes is complete.
            assert_eq!(got[..10], [0; 10]);
            if SlicedPacket::from_ethernet(&got[12..]).is_ok_and(|p| is(&p)) {
                return got[12..].to_vec();
            }
        }
    };
    // An echo.
    let mut ping = Vec::new();
    let start = || PacketBuilder::ethernet2(us.0, them.0).ipv4(us.1, them.1, 64);
    start().icmpv4_echo_request(7, 9).write(&mut ping, b"is anybody there?").unwrap();
    let kept = nic.send(&[0; 12], &ping);
    let answer = wait(&mut nic, "echo", &|p| matches!(p.transport, Some(TransportSlice::Icmpv4(_))));
    assert_eq!(answer[answer.len() - 17..], *b"is anybody there?");
    // A datagram whose checksum is left to the kernel, to a port where nobody is: it is looked at, and refused with a copy.
    let mut datagram = Vec::new();
    start().udp(1000, 2000).write(&mut datagram, &[5; 99]).unwrap();
    let mut sum: u32 = [10 << 8 | 9, 2, 10 << 8 | 9, 1, 17, 107].iter().sum();
    sum = (sum & 0xffff) + (sum >> 16);
    datagram[40..42].copy_from_slice(&(sum as u16).to_be_bytes());
    let header = [1, 0, 42, 0, 0, 0, 34, 0, 6, 0, 0, 0];
    let also = nic.send(&header, &datagram);
    wait(&mut nic, "refusal", &|p| match (&p.net, &p.transport) {
        (Some(NetSlice::Ipv4(_)), Some(TransportSlice::Icmpv4(icmp))) => icmp.type_u8() == 3 && icmp.code_u8() == 3,
        _ => false,
    });
    // What the kernel sends leaves its checksum to the card: a SYN, complete when it arrives.
    let connect = std::thread::spawn(|| {
        let _ = std::net::TcpStream::connect_timeout(&([10, 9, 0, 2], 80).into(), Duration::from_secs(1));
    });
    let syn = wait(&mut nic, "SYN", &|p| matches!(&p.transport, Some(TransportSlice::Tcp(tcp)) if tcp.syn()));
    let sliced = SlicedPacket::from_ethernet(&syn).unwrap();
    let (Some(NetSlice::Ipv4(net)), Some(TransportSlice::Tcp(tcp))) = (sliced.net, sliced.transport) else {
        panic!("not TCP")
    };
    assert_eq!(net.header().protocol(), IpNumber::TCP);
    assert_eq!(tcp.calc_checksum_ipv4(net.header().source(), net.header().destination()).unwrap(), tcp.checksum());
    // One that was made for several queues is not the same as a name that can't be.
    ip("tuntap add wb1 mode tap multi_queue");
    let several = model(NetParams::parse("wire=tap:wb1").unwrap()).err().unwrap().to_string();
    assert!(several.contains("it was made with multi_queue (make it without"), "{several}");
    // The interface is ours alone.
    let second = model(NetParams::parse("wire=tap:wb0").unwrap()).err().unwrap().to_string();
    assert!(second.ends_with("(another process has it)"), "{second}");
    // Down, it takes nothing; that is counted.
    ip("link set wb0 down");
    let lost = nic.send(&[0; 12], &ping);
    nic.rig.step();
    assert_eq!(nic.rig.handle.as_ref().unwrap().stats().wire_lost, 1);
    connect.join().unwrap();
    drop((kept, also, lost));
}

//! Ports of network interfaces, in a network namespace of each test's own: on its loopback interface, where what is sent comes back, and on a pair of virtual
//! ones. Where these may not be had, the tests say so. Real traffic between namespaces is in tests/kernel.sh.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use wholebar_core::block::QueueState;
use wholebar_core::control_plane::DeviceEvent;
use wholebar_core::mem::{Arena, ArenaOptions, L4, Offload, Pool};
use wholebar_core::net::{Burst, Event, Mac, Offloads, Port, PortConfig, RxQueue, TxQueue};
use wholebar_core::reactor::Armed;
use wholebar_kernel::{Error, net};

/// The two paths, of the loopback interface, which has an address; the second where the kernel has it, and this process may.
fn paths() -> Vec<&'static str> {
    const XDP: &str = "lo,mode=xdp,force";
    match open(XDP, &PortConfig::default()).err() {
        Some(Error::Net(net::Error::Permission { .. })) => {
            eprintln!("left out: AF_XDP sockets, which this process may not have")
        }
        Some(error) if error.to_string().contains("this kernel was built without it") => eprintln!("left out: {error}"),
        _ => return vec!["lo,force", XDP],
    }
    vec!["lo,force"]
}

/// An Ethernet type that is kept for experiments, so that the kernel leaves it alone.
const EXPERIMENTAL: [u8; 2] = [0x88, 0xb5];

fn ip(arguments: &str) -> bool {
    Command::new("ip").args(arguments.split(' ')).output().is_ok_and(|out| out.status.success())
}

/// Runs `test` in a network namespace of its own, whose loopback interface is up.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let body = || {
        #[expect(deprecated, reason = "what is unsafe about it is about files")]
        let new = rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET);
        if new.is_err() || !ip("link set lo up mtu 1500") {
            return eprintln!("left out: needs root, network namespaces, and ip of iproute2");
        }
        test();
    };
    std::thread::spawn(body).join().unwrap();
}

fn open(name: &str, config: &PortConfig) -> Result<Box<dyn Port>, Error> {
    net::open(&net::Target::parse(name)?, config)
}

fn pool(size: u32) -> Pool {
    let arena = Arena::new(4 << 20, ArenaOptions { hugepages: Some(false), numa_node: None }).unwrap();
    Pool::new(arena, 1024, size, 64).unwrap()
}

fn promiscuous() -> PortConfig {
    PortConfig { promiscuous: true, ..PortConfig::default() }
}

/// A packet of `len` bytes to `to`.
fn packet(to: Mac, ether_type: [u8; 2], len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len).map(|i| (i * 7 + len) as u8).collect();
    bytes[..6].copy_from_slice(&to.0);
    bytes[12..14].copy_from_slice(&ether_type);
    bytes
}

/// Sends packets, however often that takes.
fn send(tx: &mut dyn TxQueue, pool: &Pool, packets: &[Vec<u8>]) {
    let mut burst = Burst::new(packets.len());
    for bytes in packets {
        let mut buf = pool.get().unwrap();
        buf.copy_from(bytes);
        burst.push(buf).unwrap();
    }
    wait("packets are not sent", || {
        tx.tx(&mut burst);
        tx.reclaim();
        burst.is_empty() && tx.in_flight() == 0
    });
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::yield_now();
    }
}

/// Receives so many packets, in small bursts, and no more.
fn receive(rx: &mut dyn RxQueue, count: usize) -> Vec<Vec<u8>> {
    let (mut all, mut burst) = (Vec::new(), Burst::new(3));
    wait("packets do not come", || {
        rx.rx(&mut burst);
        all.extend(burst.take(3).map(|packet| packet.bytes().to_vec()));
        all.len() >= count
    });
    assert_eq!((all.len(), rx.rx(&mut burst)), (count, 0));
    all
}

fn counter(port: &dyn Port, queue: &str, name: &str) -> u64 {
    port.statistics().iter().filter(|s| s.queue == queue && s.name == name).map(|s| s.value).sum()
}

#[test]
fn packets_come_as_they_were_sent() {
    in_namespace(|| {
        for name in paths() {
            let offloads = Offloads { timestamps: true, tso: true, ..Offloads::NONE };
            let port = open(name, &PortConfig { offloads, ..promiscuous() }).unwrap();
            let granted = Offloads { timestamps: !name.contains("xdp"), ..Offloads::NONE };
            assert_eq!((port.granted(), port.mtu(), port.queues(), port.link().up), (granted, 1500, (1, 1), true));
            let pool = pool(2048);
            let (mut rx, mut tx) = (port.rx_queue(0, &pool).unwrap(), port.tx_queue(0).unwrap());
            // The last two have VLAN tags, of which the kernel takes the outer one off: one tag, and two.
            let mut packets: Vec<_> =
                [60, 61, 333, 1514].map(|len| packet(Mac([2, 0, 0, 0, 0, 9]), EXPERIMENTAL, len)).into();
            for (outer, len) in [([0x81, 0x00], 1514), ([0x88, 0xa8], 64)] {
                packets.push(packet(Mac([2, 0, 0, 0, 0, 9]), outer, len));
                let inner = if len == 1514 { EXPERIMENTAL } else { [0x81, 0x00] };
                packets.last_mut().unwrap()[16..18].copy_from_slice(&inner);
            }
            for _ in 0..100 {
                send(tx.as_mut(), &pool, &packets);
                assert_eq!(receive(rx.as_mut(), packets.len()), packets, "{name}");
            }
            let bytes: usize = packets.iter().map(Vec::len).sum();
            for queue in ["rx0", "tx0"] {
                let counted = [counter(port.as_ref(), queue, "packets"), counter(port.as_ref(), queue, "bytes")];
                assert_eq!(counted, [600, 100 * bytes as u64], "{name} {queue}");
            }
            assert!(counter(port.as_ref(), "tx0", "doorbells") >= 100);
            assert_eq!(counter(port.as_ref(), "", "rx_missed"), 0);
            drop((rx, tx));
            drop(port);
            assert_eq!(pool.available(), pool.capacity(), "{name}");
        }
    });
}

#[test]
fn what_is_not_for_the_port_is_left_out() {
    in_namespace(|| {
        for name in paths() {
            let port = open(name, &PortConfig::default()).unwrap();
            let pool = pool(2048);
            let (mut rx, mut tx) = (port.rx_queue(0, &pool).unwrap(), port.tx_queue(0).unwrap());
            let addresses = [Mac::default(), Mac::BROADCAST, Mac([1, 0, 0x5e, 0, 0, 7]), Mac([2, 0, 0, 0, 0, 9])];
            let packets = addresses.map(|to| packet(to, EXPERIMENTAL, 60));
            let mut came = |wanted: &[usize]| {
                send(tx.as_mut(), &pool, &packets);
                let wanted: Vec<_> = wanted.iter().map(|i| packets[*i].clone()).collect();
                assert_eq!(receive(rx.as_mut(), wanted.len()), wanted, "{name}");
            };
            came(&[0, 1]);
            assert_eq!(counter(port.as_ref(), "", "rx_filtered"), 2);
            port.set_filters(&addresses[3..]).unwrap();
            came(&[0, 1, 3]);
            port.set_all_multicast(true).unwrap();
            came(&[0, 1, 2, 3]);
            port.set_filters(&[]).unwrap();
            came(&[0, 1, 2]);
            port.set_all_multicast(false).unwrap();
            port.set_promiscuous(true).unwrap();
            came(&[0, 1, 2, 3]);
            port.set_promiscuous(false).unwrap();
            came(&[0, 1]);
        }
    });
}

#[test]
fn who_sleeps_is_woken() {
    in_namespace(|| {
        for name in paths() {
            let port = open(name, &PortConfig { rx_interrupts: true, ..promiscuous() }).unwrap();
            let pool = pool(2048);
            let (mut rx, mut tx) = (port.rx_queue(0, &pool).unwrap(), port.tx_queue(0).unwrap());
            let (wakeup, packet) = (rx.wakeup().unwrap(), packet(Mac::BROADCAST, EXPERIMENTAL, 60));
            for _ in 0..50 {
                assert_eq!((rx.arm(), rx.rx(&mut Burst::new(1))), (Armed::Yes, 0));
                send(tx.as_mut(), &pool, std::slice::from_ref(&packet));
                assert!(wakeup.wait(Some(Duration::from_secs(60))).unwrap().is_some(), "{name}");
                rx.disarm();
                assert_eq!(receive(rx.as_mut(), 1), std::slice::from_ref(&packet));
            }
            drop(rx);
            assert!(port.rx_queue(0, &pool).unwrap().wakeup().is_some());
            let polled = open("lo,force", &promiscuous()).unwrap();
            let mut rx = polled.rx_queue(0, &pool).unwrap();
            assert!(rx.wakeup().is_none() && rx.arm() == Armed::No);
        }
    });
}

#[test]
fn what_cannot_be_is_refused_and_counted() {
    in_namespace(|| {
        for name in paths() {
            let port = open(name, &promiscuous()).unwrap();
            let (small, pool) = (pool(1600), pool(2048));
            let says = |error: wholebar_core::DriverError, words: &str| {
                assert!(error.to_string().contains(words), "{name}: {error}");
            };
            says(port.rx_queue(0, &small).err().unwrap(), "cannot receive packets of 1522 bytes");
            says(port.rx_queue(1, &pool).err().unwrap(), "queue 1 that receives cannot be had: there is none");
            says(port.tx_queue(1).err().unwrap(), "queue 1 that sends cannot be had: there is none");
            let (mut rx, mut tx) = (port.rx_queue(0, &pool).unwrap(), port.tx_queue(0).unwrap());
            says(port.rx_queue(0, &pool).err().unwrap(), "it is in use");
            says(port.tx_queue(0).err().unwrap(), "it is in use");
            says(port.set_mac(Mac([2; 6])).unwrap_err(), "ip link set lo address");
            says(port.set_vlan(7, true).unwrap_err(), "type vlan id 7");
            // Too short, too long, with an offload; and one that is good, behind them.
            let mut burst = Burst::new(4);
            for len in [13, 1523, 60, 60] {
                burst.push(pool.get_len(len).unwrap()).unwrap();
            }
            let work = Offload { l2_len: 14, l3_len: 20, l4: Some(L4::Udp), ..Offload::default() };
            burst[2].set_offload(Some(work));
            let good = packet(Mac::BROADCAST, EXPERIMENTAL, 60);
            burst[3].copy_from(&good);
            wait("packets are not taken", || {
                tx.tx(&mut burst);
                burst.is_empty()
            });
            assert_eq!(receive(rx.as_mut(), 1), [good]);
            let dropped = ["dropped_length", "dropped_offload"].map(|name| counter(port.as_ref(), "tx0", name));
            assert_eq!((dropped, counter(port.as_ref(), "tx0", "packets")), ([2, 1], 1));
            // What another sends is longer than this port's packets.
            drop((rx, tx));
            drop(port);
            let longer = open("lo,force", &PortConfig { mtu: Some(1500), ..promiscuous() }).unwrap();
            let shorter = open(name, &PortConfig { mtu: Some(1000), ..promiscuous() }).unwrap();
            let (mut rx, mut tx) = (shorter.rx_queue(0, &pool).unwrap(), longer.tx_queue(0).unwrap());
            let packets = [1023, 1022].map(|len| packet(Mac::BROADCAST, EXPERIMENTAL, len));
            send(tx.as_mut(), &pool, &packets);
            assert_eq!(receive(rx.as_mut(), 1), packets[1..]);
            assert_eq!(counter(shorter.as_ref(), "rx0", "dropped_too_long"), 1);
            // Without buffers packets wait.
            let held: Vec<_> = std::iter::from_fn(|| small.get()).collect();
            drop(rx);
            let mut rx = shorter.rx_queue(0, &small).unwrap();
            send(tx.as_mut(), &pool, &packets[1..]);
            wait("the want of buffers is not counted", || {
                assert_eq!(rx.rx(&mut Burst::new(1)), 0);
                counter(shorter.as_ref(), "rx0", "no_buffers") > 0
            });
            drop(held);
            assert_eq!(receive(rx.as_mut(), 1), packets[1..]);
        }
        for (config, words) in [
            (PortConfig { rx_queues: 0, ..promiscuous() }, "0 queues that receive cannot be had"),
            (PortConfig { tx_queues: 65, ..promiscuous() }, "65 queues that send cannot be had"),
            (PortConfig { rx_descriptors: Some(3), ..promiscuous() }, "a queue of 3 descriptors cannot be had"),
            (PortConfig { mtu: Some(1501), ..promiscuous() }, "the interface's is 1500"),
        ] {
            let error = open("lo,force", &config).err().unwrap().to_string();
            assert!(error.contains(words), "{error}");
        }
    });
}

/// A stream's segments, which the kernel leaves uncut and without checksums, as the loopback interface can take them.
#[test]
fn what_the_kernel_left_undone_is_done() {
    in_namespace(|| {
        let port = open("lo,force", &PortConfig { rx_descriptors: Some(1024), ..promiscuous() }).unwrap();
        let pool = pool(2048);
        let mut rx = port.rx_queue(0, &pool).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let data: Vec<u8> = (0..300_000u32).map(|i| (i / 7) as u8).collect();
        let mut sender = TcpStream::connect(at).unwrap();
        let mut receiver = listener.accept().unwrap().0;
        let sent = data.clone();
        let sending = std::thread::spawn(move || sender.write_all(&sent));
        let mut came = Vec::new();
        receiver.read_to_end(&mut came).unwrap();
        sending.join().unwrap().unwrap();
        assert_eq!(came, data);
        let (mut parts, mut burst, mut first) = (BTreeMap::new(), Burst::new(5), None);
        wait("not all of the stream came", || {
            rx.rx(&mut burst);
            for packet in burst.take(5) {
                assert!(packet.len() <= 1514);
                let sliced = SlicedPacket::from_ethernet(packet.bytes()).unwrap();
                let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Tcp(tcp))) = (sliced.net, sliced.transport) else {
                    continue;
                };
                assert_eq!(ip.header().to_header().calc_header_checksum(), ip.header().header_checksum());
                let (from, to) = (ip.header().source(), ip.header().destination());
                assert_eq!(tcp.calc_checksum_ipv4(from, to).unwrap(), tcp.checksum());
                if tcp.destination_port() == at.port() {
                    let first = *first.get_or_insert(tcp.sequence_number().wrapping_add(1));
                    if !tcp.payload().is_empty() {
                        parts.insert(tcp.sequence_number().wrapping_sub(first), tcp.payload().to_vec());
                    }
                }
            }
            parts.values().map(Vec::len).sum::<usize>() >= data.len()
        });
        assert!(parts.concat_is(&data), "the segments are not the stream");
        assert!(counter(port.as_ref(), "", "rx_frames") < parts.len() as u64, "the kernel cut them itself");
    });
}

trait Parts {
    /// Whether they are all of `data`, each where it belongs.
    fn concat_is(&self, data: &[u8]) -> bool;
}

impl Parts for BTreeMap<u32, Vec<u8>> {
    fn concat_is(&self, data: &[u8]) -> bool {
        let mut at = 0;
        self.iter().all(|(offset, part)| {
            let here = *offset as usize == at && data.get(at..at + part.len()) == Some(part);
            at += part.len();
            here
        }) && at == data.len()
    }
}

#[test]
fn queues_go_on_after_a_reset_and_end_with_their_interface() {
    in_namespace(|| {
        if !ip("link add one type veth peer name other") {
            return eprintln!("left out: needs pairs of virtual interfaces (veth)");
        }
        assert!(ip("link set one up") && ip("link set other up"));
        let names = if paths().len() > 1 { vec!["one", "one,mode=xdp"] } else { vec!["one"] };
        for name in &names {
            let (port, other) = (open(name, &promiscuous()).unwrap(), open("other", &promiscuous()).unwrap());
            wait("the link does not come up", || port.link().up && other.link().up);
            let pool = pool(2048);
            let (mut rx, mut tx) = (port.rx_queue(0, &pool).unwrap(), other.tx_queue(0).unwrap());
            let mut own = port.tx_queue(0).unwrap();
            port.events().try_iter().for_each(drop);
            let done = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let polling = scope.spawn(|| {
                    let mut burst = Burst::new(32);
                    while !done.load(Ordering::Relaxed) {
                        rx.rx(&mut burst);
                        burst.give_back();
                        own.reclaim();
                        std::thread::yield_now();
                    }
                });
                port.reset().unwrap();
                done.store(true, Ordering::Relaxed);
                polling.join().unwrap();
            });
            wait("a queue does not run again", || {
                rx.rx(&mut Burst::new(1));
                own.reclaim();
                rx.state() == QueueState::Running && own.state() == QueueState::Running
            });
            let reset = port.events().try_iter().any(|event| matches!(event, Event::Device(DeviceEvent::Reset { .. })));
            assert!(reset);
            let mut burst = Burst::new(32);
            send(tx.as_mut(), &pool, &[packet(Mac::BROADCAST, EXPERIMENTAL, 60)]);
            wait("nothing comes after a reset", || {
                rx.rx(&mut burst);
                burst.take(32).any(|packet| packet.bytes()[12..14] == EXPERIMENTAL)
            });
            if Some(name) != names.last() {
                continue;
            }
            assert!(ip("link del one"));
            wait("the queue does not end", || {
                rx.rx(&mut burst);
                own.reclaim();
                rx.state() == QueueState::Gone && own.state() == QueueState::Gone
            });
            wait("there is no event", || {
                port.events().try_iter().any(|event| matches!(event, Event::Device(DeviceEvent::Ended { .. })))
            });
            assert!(!port.link().up && port.reset().unwrap_err().to_string().contains("was removed"));
            assert!(port.set_promiscuous(false).is_err() && port.rx_queue(0, &pool).is_err());
        }
    });
}

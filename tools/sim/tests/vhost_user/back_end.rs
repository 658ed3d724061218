//! A port at the other end of a front end's rings, with a front end by hand: packets in whatever buffers, and all that can be wrong with them.

use super::front::*;
use super::{BUFFERS, RX, TX};
use rustix::fs::ftruncate;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use wholebar_core::mem::{Arena, ArenaOptions, Pool};
use wholebar_core::net::{Burst, Port, PortConfig, RxQueue, TxQueue};
use wholebar_sim::virtio::net::back_end::{self, BackEnd};

const MERGEABLE: u64 = 1 << 15;
const HEADER: u64 = 12;

/// A port with its queues.
struct Far {
    path: PathBuf,
    _dir: tempfile::TempDir,
    port: Box<dyn Port>,
    pool: Pool,
    rx: Box<dyn RxQueue>,
    tx: Box<dyn TxQueue>,
}

impl Far {
    fn open() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.sock");
        let target = BackEnd { path: path.clone(), server: true, mac: Some([2, 0, 0, 0, 0, 1]) };
        let port = back_end::open(&target, &PortConfig::default()).unwrap();
        let pool = Pool::new(Arena::new(1 << 20, ArenaOptions::default()).unwrap(), 128, 2048, 64).unwrap();
        let (rx, tx) = (port.rx_queue(0, &pool).unwrap(), port.tx_queue(0).unwrap());
        Self { path, _dir: dir, port, pool, rx, tx }
    }

    /// A front end with a ring each way.
    fn front(&self, features: u64) -> (Front, Ring, Ring) {
        let mut front = Front::over(UnixStream::connect(&self.path).unwrap());
        front.begin(features, P_MQ);
        let (rx, tx) = (front.ring(0, RX, 32), front.ring(1, TX, 8));
        (front, rx, tx)
    }

    /// What comes next.
    fn receive(&mut self) -> Vec<u8> {
        let mut burst = Burst::new(4);
        wait("a packet", || self.rx.rx(&mut burst) > 0);
        assert_eq!(burst.len(), 1);
        let packet = burst.pop().unwrap();
        assert_eq!(packet.headroom(), 128, "as the program wants it");
        packet.bytes().to_vec()
    }

    /// Sends a packet in buffers of so many bytes, as many as it takes; how many packets were taken.
    fn send(&mut self, bytes: &[u8], each: usize) -> usize {
        let mut parts = bytes.chunks(each).map(|part| {
            let mut buf = self.pool.get().unwrap();
            assert_eq!(buf.copy_from(part), part.len());
            buf
        });
        let mut packet = parts.next().unwrap();
        parts.for_each(|part| packet.append(part));
        let (mut burst, mut taken) = (Burst::new(1), 0);
        let _ = burst.push(packet);
        // The server may be somebody else's for a moment: of the ring's being full it is said.
        let before = self.count("full");
        wait("sent or full", || {
            taken = self.tx.tx(&mut burst);
            taken > 0 || self.count("full") > before
        });
        taken
    }

    fn count(&self, name: &str) -> u64 {
        self.port.statistics().iter().filter(|s| s.name == name).map(|s| s.value).sum()
    }
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(120), "never: {what}");
        std::thread::yield_now();
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 256) as u8).collect()
}

#[test]
fn packets_go_in_and_out_of_whatever_buffers() {
    for features in [0, PACKED, MERGEABLE, PACKED | MERGEABLE] {
        let mut far = Far::open();
        let (mut front, mut rx, mut tx) = far.front(features);
        assert!(far.port.link().up);
        for (i, len) in [14, 60, 500, 1500, 1522].into_iter().enumerate() {
            let packet = pattern(len);
            front.write(BUFFERS, &[0; HEADER as usize]);
            front.write(BUFFERS + HEADER, &packet);
            // One buffer; two, of which the first is the header; three.
            let (whole, len) = (HEADER as u32 + len as u32, len as u32);
            match i % 3 {
                0 => tx.add(&front, &[(BUFFERS, whole, false)]),
                1 => tx.add(&front, &[(BUFFERS, 12, false), (BUFFERS + 12, len, false)]),
                _ => tx.add(&front, &[(BUFFERS, 7, false), (BUFFERS + 7, 9, false), (BUFFERS + 16, whole - 16, false)]),
            }
            assert_eq!(far.receive(), packet);
            let entries = [1, 2, 3][i % 3];
            assert_eq!(tx.take(&front, entries), Some(0), "used, and nothing written");
        }
        for (each, len, room) in [(2048, 60, 2048), (1000, 1522, 1600), (30, 600, 612), (500, 1500, 256)] {
            let packet = pattern(len);
            let buffers = (HEADER as usize + len).div_ceil(room);
            if buffers > 1 && features & MERGEABLE == 0 {
                rx.add(&front, &[(BUFFERS, room as u32, true)]);
                let before = far.count("dropped_length");
                assert_eq!(far.send(&packet, each), 1);
                assert_eq!(far.count("dropped_length"), before + 1, "too long for a buffer, and counted");
                continue;
            }
            for i in 0..buffers {
                assert_eq!(rx.take(&front, 1), None);
                // While they are too few, nothing is taken.
                if i > 0 {
                    assert_eq!(far.send(&packet, each), 0);
                }
                rx.add(&front, &[(BUFFERS + (i * room) as u64, room as u32, true)]);
            }
            assert_eq!(far.send(&packet, each), 1);
            let used: Vec<_> = std::iter::from_fn(|| rx.take(&front, 1)).collect();
            assert_eq!((used.len(), used.iter().sum::<u32>()), (buffers, (HEADER as usize + len) as u32));
            assert_eq!(front.read::<12>(BUFFERS), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, buffers as u8, 0]);
            let mut bytes = vec![0; len];
            rustix::io::pread(&front.memory, &mut bytes, BUFFERS + HEADER).unwrap();
            assert_eq!(bytes, packet);
        }
        assert_eq!(front.stop(1) & 0xffff, u32::from(tx.used), "where it goes on");
    }
}

/// What makes no sense as a packet is dropped and counted, and the ring goes on.
#[test]
fn what_is_no_packet_is_counted() {
    for features in [0, PACKED] {
        let mut far = Far::open();
        let (mut front, _rx, mut tx) = far.front(features);
        let mut burst = Burst::new(4);
        for (name, header, len) in [
            ("dropped_malformed", [0, 0], 13),
            ("dropped_too_long", [0, 0], 1523),
            // A checksum and segments left undone, which was not agreed on.
            ("dropped_malformed", [1, 0], 60),
            ("dropped_malformed", [0, 1], 60),
        ] {
            front.write(BUFFERS, &header);
            let before = far.count(name);
            tx.add(&front, &[(BUFFERS, HEADER as u32 + len, false)]);
            wait(name, || {
                assert_eq!(far.rx.rx(&mut burst), 0);
                far.count(name) > before
            });
            assert!(front.until(|front| tx.take(front, 1).is_some()));
        }
        front.write(BUFFERS, &[0; 12]);
        tx.add(&front, &[(BUFFERS, 72, false)]);
        assert_eq!(far.receive().len(), 60);
    }
}

/// A front end that breaks a rule is told so by its error eventfds, and nothing is done for it any more; the next one finds all in order.
#[test]
fn a_front_end_that_breaks_rules_stands_still() {
    type Wrong = fn(&Front, &mut Ring, &mut Ring);
    let wrongs: [(&str, u64, Wrong); 7] = [
        ("a packet shorter than its header", 0, |front, _, tx| tx.add(front, &[(BUFFERS, 11, false)])),
        ("a packet in a buffer to be written", PACKED, |front, _, tx| tx.add(front, &[(BUFFERS, 72, true)])),
        ("a packet outside of memory", 0, |front, _, tx| tx.add(front, &[(MEMORY - 8, 72, false)])),
        ("a packet outside of memory, packed", PACKED, |front, _, tx| tx.add(front, &[(MEMORY, 72, false)])),
        ("an available index far ahead", 0, |front, _, tx| {
            tx.avail = 100;
            tx.add(front, &[(BUFFERS, 72, false)]);
        }),
        ("a receive buffer to be read", 0, |front, rx, _| rx.add(front, &[(BUFFERS, 2048, false)])),
        ("a receive buffer outside of memory", PACKED, |front, rx, _| rx.add(front, &[(MEMORY - 100, 2048, true)])),
    ];
    let mut far = Far::open();
    for (what, features, wrong) in wrongs {
        let (mut front, mut rx, mut tx) = far.front(features);
        let err = event();
        let fd = err.try_clone().unwrap();
        assert!(front.acknowledged(SET_VRING_ERR, &0u64.to_ne_bytes(), &[fd.as_fd()]));
        front.write(BUFFERS, &[0; 128]);
        wrong(&front, &mut rx, &mut tx);
        let (mut got, mut packets) = (Burst::new(4), Burst::new(4));
        wait(what, || {
            let _ = packets.push(far.pool.get_len(60).unwrap());
            assert_eq!(far.rx.rx(&mut got), 0, "{what}");
            far.tx.tx(&mut packets);
            packets.give_back();
            count(&err) > 0
        });
        drop(front);
        wait("the link goes down", || !far.port.link().up);
        let (front, _rx, mut tx) = far.front(features);
        front.write(BUFFERS, &[0; 128]);
        tx.add(&front, &[(BUFFERS, 72, false)]);
        assert_eq!(far.receive().len(), 60, "after {what}");
        drop(front);
        wait("the link goes down", || !far.port.link().up);
    }
}

/// Memory that a front end takes away while it is used ends its connection, and nothing else.
#[test]
fn memory_that_is_taken_away_ends_the_connection() {
    let mut far = Far::open();
    for whole in [false, true] {
        let (mut front, _rx, mut tx) = far.front(0);
        tx.add(&front, &[(BUFFERS, 72, false)]);
        // The buffers, or the rings, too.
        ftruncate(&front.memory, if whole { 0 } else { BUFFERS }).unwrap();
        let mut burst = Burst::new(4);
        assert!(!front.until(|_| {
            burst.give_back();
            far.rx.rx(&mut burst);
            false
        }));
        wait("the link goes down", || !far.port.link().up);
    }
    let (front, _rx, mut tx) = far.front(0);
    front.write(BUFFERS, &[0; 72]);
    tx.add(&front, &[(BUFFERS, 72, false)]);
    assert_eq!(far.receive().len(), 60);
}

#[test]
fn what_a_port_cannot_be_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let target = BackEnd { path: dir.path().join("x.sock"), server: true, mac: None };
    let refused = |config: PortConfig| back_end::open(&target, &config).err().unwrap().to_string();
    assert!(refused(PortConfig { rx_queues: 65, ..PortConfig::default() }).contains("65 queues that receive"));
    assert!(refused(PortConfig { tx_queues: 0, ..PortConfig::default() }).contains("0 queues that send"));
    let port = back_end::open(&target, &PortConfig::default()).unwrap();
    assert_eq!(port.name(), format!("vhost-user:{},back-end,server", target.path.display()));
    assert!(refused(PortConfig::default()).contains("another server listens there"));
    let pool = Pool::new(Arena::new(1 << 16, ArenaOptions::default()).unwrap(), 16, 1024, 64).unwrap();
    let error = port.rx_queue(0, &pool).err().unwrap().to_string();
    assert!(error.contains("buffers of 1024 bytes are too small: a packet and its headroom take 1650"), "{error}");
    let _tx = port.tx_queue(0).unwrap();
    assert!(port.tx_queue(0).err().unwrap().to_string().contains("queue 0 that sends is in use"));
    assert!(port.tx_queue(1).err().unwrap().to_string().contains("there is no queue 1 that sends"));
    assert!(port.set_promiscuous(true).is_ok() && port.set_promiscuous(false).is_err());
}

//! Packets through rings by hand: both layouts, chains, mergeable buffers, indexes that wrap, what is counted.

use crate::rig::*;
use wholebar_core::Work;
use wholebar_core::mem::Chunk;

const MRG: u64 = 1 << 15;
const HEADER: usize = 12;

/// A network card with one pair of queues.
pub struct Nic {
    pub rig: Rig,
    pub rx: Queue,
    pub tx: Queue,
}

impl Nic {
    pub fn new(params: &str, features: u64, size: u16) -> Self {
        let rig = Rig::net(params, features | VERSION_1);
        let (rx, tx) = (rig.queue(0, size), rig.queue(1, size));
        rig.ok();
        Self { rig, rx, tx }
    }

    /// Sends a packet with this header in one buffer.
    pub fn send(&mut self, header: &[u8], packet: &[u8]) -> Chunk {
        let (chunk, at) = self.rig.holding(&[header, packet].concat());
        self.tx.add(&[(at, chunk.len() as u32, false)]);
        chunk
    }

    /// Gives it a buffer for a packet.
    pub fn buffer(&mut self, len: u64) -> Chunk {
        let chunk = self.rig.memory(len);
        self.rx.add(&[(self.rig.at(&chunk), len as u32, true)]);
        chunk
    }
}

pub fn bytes(chunk: &Chunk, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    chunk.read(0, &mut bytes).unwrap();
    bytes
}

/// A packet to everyone, whose contents tell it from others.
pub fn packet(len: usize, seed: u8) -> Vec<u8> {
    let mut packet = vec![0xff; 6];
    packet.extend((6..len).map(|i| (i as u8).wrapping_mul(7).wrapping_add(seed)));
    packet[12..14].copy_from_slice(&[0x88, 0xb5]);
    packet
}

fn layouts() -> [u64; 4] {
    [0, PACKED, IN_ORDER, PACKED | IN_ORDER]
}

/// DPDK's driver says so of a header in front of other buffers, in tables of packed rings.
#[test]
fn a_header_that_is_to_be_written_is_read() {
    let mut nic = Nic::new("", PACKED | INDIRECT, 8);
    let sent = packet(60, 3);
    let (header, header_at) = nic.rig.holding(&[0; HEADER]);
    let (_data, data_at) = nic.rig.holding(&sent);
    let came = nic.buffer(200);
    nic.tx.add_indirect(&nic.rig, &[(header_at, HEADER as u32, true), (data_at, 60, false)]);
    nic.rig.settle();
    assert_eq!(nic.tx.take(), Some((0, 0)), "nothing was written");
    assert_eq!(nic.rx.take(), Some((0, (HEADER + 60) as u32)));
    assert_eq!(bytes(&came, HEADER + 60)[HEADER..], sent);
    assert_eq!(bytes(&header, HEADER), [0; HEADER]);
}

#[test]
fn packets_come_back_from_a_loop() {
    for layout in layouts() {
        let mut nic = Nic::new("", layout, 8);
        let buffers: Vec<_> = (0..3).map(|_| nic.buffer(2048)).collect();
        let sent: Vec<_> = (0..3u8).map(|i| packet(60 + usize::from(i), i)).collect();
        let kept: Vec<_> = sent.iter().map(|p| nic.send(&[0; HEADER], p)).collect();
        nic.rig.settle();
        // In order, one entry stands for all three.
        let used = nic.tx.take_all();
        match layout {
            IN_ORDER => assert_eq!(used[0], (2, 0)),
            _ if layout & IN_ORDER != 0 => assert_eq!(used, [(2, 0)]),
            _ => assert_eq!(used, [(0, 0), (1, 0), (2, 0)]),
        }
        for (i, (buffer, packet)) in buffers.iter().zip(&sent).enumerate() {
            let len = (HEADER + packet.len()) as u32;
            assert_eq!(nic.rx.take(), Some((i as u16, len)));
            let bytes = bytes(buffer, len as usize);
            assert_eq!(bytes[..HEADER], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
            assert_eq!(&bytes[HEADER..], packet);
        }
        assert_eq!((nic.rx.take(), nic.rig.step(), nic.rig.needs_reset()), (None, Work::Idle, false));
        drop(kept);
    }
}

#[test]
fn split_in_order_writes_one_entry_and_skips_the_rest() {
    let mut nic = Nic::new("", IN_ORDER, 8);
    let kept: Vec<_> = (0..3).map(|i| nic.send(&[0; HEADER], &packet(60, i))).collect();
    nic.rig.settle();
    // 2.7.9: the entry of the batch is where its first would be; the index moves by all of them.
    assert_eq!(Queue::get16(&nic.tx.device, 2), 3);
    assert_eq!(nic.tx.take(), Some((2, 0)));
    drop(kept);
}

#[test]
fn a_pair_carries_packets_both_ways_for_many_laps() {
    for layout in layouts() {
        let name = format!("wire=pair:laps{layout:x}");
        let (mut a, mut b) = (Nic::new(&name, layout, 4), Nic::new(&name, layout, 4));
        assert_ne!(bytes_of_mac(&a.rig), bytes_of_mac(&b.rig));
        a.rig.step();
        let (at_a, at_b) = (a.rig.memory(256), b.rig.memory(256));
        let out = (a.rig.memory(256), b.rig.memory(256));
        // Split indexes wrap at 65536.
        let laps = match layout {
            _ if cfg!(miri) => 20,
            0 => 66_000u32,
            _ => 1_000,
        };
        for lap in 0..laps {
            let p = packet(64, lap as u8);
            for back in [false, true] {
                let (from, to, there, data) =
                    if back { (&mut b, &mut a, &at_a, &out.1) } else { (&mut a, &mut b, &at_b, &out.0) };
                to.rx.add(&[(to.rig.at(there), 256, true)]);
                data.write(HEADER as u64, &p).unwrap();
                from.tx.add(&[(from.rig.at(data), 76, false)]);
                from.rig.step();
                to.rig.step();
                assert_eq!(from.tx.take().map(|t| t.1), Some(0), "{lap}");
                assert_eq!(to.rx.take().map(|t| t.1), Some(76), "{lap}");
                assert_eq!(bytes(there, 76)[HEADER..], p);
            }
        }
        let stats = b.rig.handle.as_ref().unwrap().stats();
        assert_eq!((stats.tx_packets, stats.rx_packets), (stats.rx_packets, stats.tx_packets));
    }
}

fn bytes_of_mac(rig: &Rig) -> Vec<u8> {
    (0..6).map(|i| rig.get8(0x2000 + i)).collect()
}

#[test]
fn chains_and_tables_are_gathered_and_scattered() {
    for layout in [0, PACKED] {
        let mut nic = Nic::new("", layout | INDIRECT, 16);
        let p = packet(300, 3);
        let whole = [vec![0; HEADER], p.clone()].concat();
        for indirect in [false, true] {
            // The header in two parts, an empty part, the packet in two.
            let (data, at) = nic.rig.holding(&whole);
            let parts =
                [(at, 5, false), (at + 5, 7, false), (at, 0, false), (at + 12, 100, false), (at + 112, 200, false)];
            let room = nic.rig.memory(512);
            let there = nic.rig.at(&room);
            let into = [(there, 3, true), (there + 3, 60, true), (there + 63, 449, true)];
            let tables = if indirect {
                Some((nic.tx.add_indirect(&nic.rig, &parts), nic.rx.add_indirect(&nic.rig, &into)))
            } else {
                nic.tx.add(&parts);
                nic.rx.add(&into);
                None
            };
            nic.rig.settle();
            assert_eq!(nic.rx.take().map(|t| t.1), Some(312));
            assert_eq!(nic.tx.take().map(|t| t.1), Some(0));
            assert_eq!(bytes(&room, 312)[HEADER..], p);
            drop((data, tables));
        }
        assert!(!nic.rig.needs_reset());
    }
}

#[test]
fn one_packet_is_spread_over_mergeable_buffers() {
    for layout in [0, PACKED] {
        let mut nic = Nic::new("mtu=9000", layout | MRG, 8);
        let buffers: Vec<_> = (0..4).map(|_| nic.buffer(100)).collect();
        let p = packet(250, 9);
        let sent = nic.send(&[0; HEADER], &p);
        nic.rig.settle();
        assert_eq!(nic.rx.take_all(), [(0, 100), (1, 100), (2, 62)]);
        let all: Vec<u8> = buffers.iter().take(3).flat_map(|b| bytes(b, 100)).collect();
        assert_eq!(all[10..12], [3, 0]);
        assert_eq!(all[HEADER..262], p);
        // What does not fit into the buffers that are left takes none of them.
        let second = nic.send(&[0; HEADER], &p);
        nic.rig.settle();
        assert_eq!(nic.rx.take(), None);
        assert_eq!(nic.rig.handle.as_ref().unwrap().stats().rx_no_buffer, 1);
        let third = nic.send(&[0; HEADER], &packet(60, 1));
        nic.rig.settle();
        assert_eq!(nic.rx.take_all(), [(3, 72)]);
        drop((sent, second, third));
    }
}

#[test]
fn what_is_not_received_is_counted() {
    let mut nic = Nic::new("", 0, 8);
    let stats = |nic: &Nic| nic.rig.handle.as_ref().unwrap().stats();
    // No buffer; then one that is too short, and stays.
    let mut kept = vec![nic.send(&[0; HEADER], &packet(60, 1))];
    nic.rig.settle();
    assert_eq!(stats(&nic).rx_no_buffer, 1);
    let short = nic.buffer(64);
    kept.push(nic.send(&[0; HEADER], &packet(60, 1)));
    nic.rig.settle();
    assert_eq!((stats(&nic).rx_too_long, nic.rx.take()), (1, None));
    kept.push(nic.send(&[0; HEADER], &packet(52, 1)));
    nic.rig.settle();
    assert_eq!(nic.rx.take(), Some((0, 64)));
    // Too short, and longer than the MTU allows.
    kept.push(nic.send(&[0; HEADER], &packet(60, 1)[..13]));
    kept.push(nic.send(&[0; HEADER], &packet(1523, 1)));
    nic.rig.settle();
    assert_eq!(stats(&nic).tx_malformed, 2);
    assert_eq!(nic.tx.take_all().len(), 5);
    let all = stats(&nic);
    assert_eq!((all.tx_packets, all.rx_packets), (3, 1));
    drop((kept, short));
}

#[test]
fn packets_wait_for_buffers_where_that_is_asked_for() {
    let mut nic = Nic::new("full=wait", 0, 16);
    let kept: Vec<_> = (0..5).map(|i| nic.send(&[0; HEADER], &packet(60, i))).collect();
    nic.rig.settle();
    assert_eq!(nic.rx.take(), None);
    let buffers: Vec<_> = (0..5).map(|_| nic.buffer(128)).collect();
    nic.rig.settle();
    assert_eq!(nic.rx.take_all().len(), 5);
    for (i, buffer) in buffers.iter().enumerate() {
        assert_eq!(bytes(buffer, 72)[HEADER..], packet(60, i as u8));
    }
    drop(kept);
}

#[test]
fn the_link_is_up_while_a_driver_is_at_the_other_end() {
    let link = |rig: &Rig| {
        rig.step();
        rig.get16(0x2006)
    };
    let mut a = Nic::new("wire=pair:link", 1 << 16, 8);
    assert_eq!(link(&a.rig), 0);
    let kept = a.send(&[0; HEADER], &packet(60, 0));
    a.rig.settle();
    assert_eq!(a.rig.handle.as_ref().unwrap().stats().tx_no_carrier, 1);
    let before = a.rig.get8(0x15);
    let mut b = Nic::new("wire=pair:link", 1 << 16, 8);
    assert_eq!((link(&a.rig), link(&b.rig)), (1, 1));
    assert_ne!(a.rig.get8(0x15), before, "the generation moves on");
    // A cable pulled at one end, and put back.
    b.rig.handle.as_ref().unwrap().set_link(false);
    assert_eq!((link(&b.rig), b.rig.get8(0x1000)), (0, 2), "the ISR says what changed");
    b.rig.handle.as_ref().unwrap().set_link(true);
    assert_eq!(link(&b.rig), 1);
    // Reset, the driver is gone; what was under way is counted.
    let sent = a.send(&[0; HEADER], &packet(60, 0));
    a.rig.settle();
    b.rig.set8(STATUS, 0);
    b.rig.settle();
    assert_eq!(b.rig.handle.as_ref().unwrap().stats().rx_no_driver, 1);
    assert_eq!(link(&a.rig), 0);
    // And comes back; the pair's third end there is not.
    b.rig.agree(VERSION_1);
    (b.rx, b.tx) = (b.rig.queue(0, 8), b.rig.queue(1, 8));
    b.rig.ok();
    assert_eq!(link(&a.rig), 1);
    let third = wholebar_sim::open("sim:virtio-net,wire=pair:link");
    let error = third.err().unwrap().to_string();
    assert!(error.starts_with("wire=pair:link has two ends already"), "{error}");
    drop((kept, sent));
}

#[test]
#[cfg_attr(miri, ignore = "two opened devices and their thread: minutes")]
fn two_ports_by_name_share_a_thread() {
    use wholebar_core::pci::PciDevice;
    let open = || wholebar_sim::open("sim:virtio-net,wire=pair:by-name").unwrap();
    let (a, b) = (open(), open());
    assert!(a.model.thread_id().is_some());
    assert_eq!(a.model.thread_id(), b.model.thread_id());
    let rig = |opened: &wholebar_sim::Opened| {
        let mut byte = [0];
        opened.model.read(0, 0x2005, &mut byte).unwrap();
        byte[0]
    };
    // The ends have addresses of their own.
    assert_eq!((rig(&a), rig(&b)), (1, 2));
    // One stops, the other goes on; then it ends too, and the name is free.
    drop(a);
    assert_eq!(rig(&b), 2);
    drop(b);
    open();
}

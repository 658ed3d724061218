//! The 82574's own on a card that is played by hand: descriptors, vectors, directions that stop, buffers of one size, errata.

#![cfg(not(miri))]

mod common;

use common::*;
use wholebar_core::mem::{Arena, ArenaOptions, L4, Offload, Pool};
use wholebar_core::net::{Burst, Offloads, Port, PortConfig};
use wholebar_core::reactor::Armed;
use wholebar_intel::e1000e::I82574;

const RCTL: u64 = 0x0100;
const TCTL: u64 = 0x0400;
const IMS: u64 = 0x00d0;
const IMC: u64 = 0x00d8;
const LENGTH: u64 = 0x08;

#[test]
fn descriptors_say_what_is_to_be_done() {
    let rig = rig::<I82574>(small());
    let (mut tx, mut burst, at) = (rig.port.tx(0).unwrap(), Burst::new(8), rig.nic.tx());
    let mut packet = rig.pool.get_len(100).unwrap();
    packet.append(rig.pool.get_len(0).unwrap());
    packet.append(rig.pool.get_len(1000).unwrap());
    packet.set_vlan(Some(0x6064));
    let offload = Offload { l2_len: 14, l3_len: 20, l3: true, l4: Some(L4::Udp), ..Offload::default() };
    packet.set_offload(Some(offload));
    burst.push(packet).unwrap();
    let mut tagged = rig.pool.get_len(60).unwrap();
    tagged.set_vlan(Some(5));
    burst.push(tagged).unwrap();
    assert_eq!((tx.tx(&mut burst), rig.nic.register(at + TAIL)), (2, 4), "a tag alone wants no context");
    let words = |i| rig.nic.words(&rig.device, at, i);
    assert_eq!(words(0), [0x0000_2822_0021_180e, 0x2200_0000], "the context");
    assert_eq!(words(1)[1], 0x6064_0300_6010_0064);
    assert_eq!(words(2)[1], 0x6064_0300_6310_03e8);
    assert_eq!(words(3)[1], 0x0005_0000_6b10_003c, "the last of a burst reports");
    rig.nic.write_back(&rig.device, at, 3, [0, words(3)[1] | 1 << 32]);
    tx.reclaim();
    assert_eq!((tx.in_flight(), rig.pool.available()), (0, BUFFERS));
    // TCP, 1000 bytes by 400: two buffers, and a context with all of that.
    let mut packet = rig.pool.get_len(54).unwrap();
    packet.bytes_mut().fill(1);
    packet.append(rig.pool.get_len(1000).unwrap());
    packet.set_offload(Some(Offload { l4_len: 20, segment: 400, l4: Some(L4::Tcp), ..offload }));
    burst.push(packet).unwrap();
    assert_eq!((tx.tx(&mut burst), rig.nic.register(at + TAIL)), (1, 7));
    assert_eq!(words(4), [0x0000_3222_0021_180e, 0x0190_3600_2700_03e8]);
    assert_eq!((words(5)[1], words(6)[1]), (0x0000_0300_2410_0036, 0x0000_0300_2f10_03e8));
    // Its lengths are the device's to fill in, and TCP's checksum is of the rest of the pseudo header.
    let header = rig.nic.peek(&rig.device, wholebar_core::mem::Iova(words(5)[0]), 54);
    assert_eq!((&header[16..18], &header[24..26], &header[50..52]), (&[0; 2][..], &[0; 2][..], &[4, 10][..]));
}

#[test]
fn one_context_is_for_one_queue() {
    let rig = rig::<I82574>(PortConfig { tx_queues: 2, ..small() });
    let granted = rig.port.granted();
    assert!(!granted.tso && !granted.tx_l3_checksum && !granted.tx_l4_checksum && granted.vlan_insert);
    // Tags are put in where they are taken off.
    let insert = Offloads { vlan_insert: true, ..Offloads::NONE };
    assert!(!common::rig::<I82574>(PortConfig { offloads: insert, ..small() }).port.granted().vlan_insert);
    let both = Offloads { vlan_strip: true, ..insert };
    assert!(common::rig::<I82574>(PortConfig { offloads: both, ..small() }).port.granted().vlan_insert);
}

#[test]
fn a_queue_that_goes_stops_its_direction_for_a_while() {
    let rig = rig::<I82574>(PortConfig { rx_queues: 2, tx_queues: 2, ..small() });
    assert_eq!((rig.nic.register(RCTL) & 2, rig.nic.register(TCTL) & 2), (0, 2), "nothing is received without a queue");
    let (first, second) = (rig.port.rx(0, &rig.pool).unwrap(), rig.port.rx(1, &rig.pool).unwrap());
    let at = rig.nic.rx() + 0x100;
    assert_eq!((rig.nic.register(at + LENGTH), rig.nic.register(at + TAIL)), (256, 15));
    // 1 KiB, by FLXBUF.
    assert_eq!(rig.nic.register(RCTL) & (0xf << 27 | 2), 1 << 27 | 2);
    drop(second);
    assert_eq!((rig.nic.register(at + BASE), rig.nic.register(at + LENGTH), rig.nic.register(at + TAIL)), (0, 0, 0));
    assert_eq!((rig.nic.register(RCTL) & 2, rig.port.quarantined()), (2, 0));
    drop((first, rig.port.tx(1).unwrap()));
    assert_eq!((rig.nic.register(rig.nic.tx() + 0x100 + LENGTH), rig.nic.register(TCTL) & 2), (0, 2));
    assert_eq!((rig.pool.available(), rig.port.quarantined()), (BUFFERS, 0));
}

#[test]
fn buffers_of_all_queues_are_of_one_size() {
    let rig = rig::<I82574>(PortConfig { rx_queues: 2, ..small() });
    let arena = Arena::new(1 << 18, ArenaOptions::default()).unwrap();
    let large = Pool::new(arena, 32, 4096, 64).unwrap();
    let first = rig.port.rx(0, &large).unwrap();
    assert_eq!(rig.nic.register(RCTL) >> 27 & 15, 4);
    let error = rig.port.rx(1, &rig.pool).err().unwrap().to_string();
    assert!(error.contains("one size, 4096 bytes now"), "{error}");
    // Larger ones are used in part, and a queue that is alone says what size it is.
    drop(first);
    let (_first, _second) = (rig.port.rx(0, &rig.pool).unwrap(), rig.port.rx(1, &large).unwrap());
    assert_eq!(rig.nic.register(RCTL) >> 27 & 15, 1);
}

#[test]
fn queues_are_armed_one_by_one() {
    let rig = rig::<I82574>(PortConfig { rx_queues: 2, rx_interrupts: true, ..small() });
    let (mut first, mut second) = (rig.port.rx(0, &rig.pool).unwrap(), rig.port.rx(1, &rig.pool).unwrap());
    // All else has vector 0, receive queues 0 and 1 have vectors 1 and 2, and mask themselves.
    assert_eq!((rig.nic.register(0x00e4), rig.nic.register(0x00dc)), (8 << 16 | 0xa9, 3 << 20));
    assert_eq!(rig.nic.register(IMS), 1 << 24 | 1 << 2);
    assert_eq!((first.arm(), rig.nic.register(ICR), rig.nic.register(IMS)), (Armed::Yes, 1 << 20, 1 << 20));
    assert_eq!((second.arm(), rig.nic.register(IMS)), (Armed::Yes, 1 << 21));
    second.disarm();
    assert_eq!(rig.nic.register(IMC), 1 << 21);
    // What is read with the link's change is set again.
    rig.nic.set(ICR, 1 << 20 | 1 << 24 | 1 << 2);
    rig.port.service().unwrap();
    assert_eq!(rig.nic.register(0x00c8), 1 << 20);
    rig.nic.interrupt(&rig.device, 2);
    assert_eq!((first.wakeup().unwrap().take(), second.wakeup().unwrap().take()), (0, 1));
}

#[test]
fn errata_are_seen_to_after_each_reset() {
    let rig = rig::<I82574>(small());
    for _ in 0..2 {
        let bits = [0x3828, 0x3928, 0x3840, 0x0018, 0x5b00, 0x5b64].map(|register| rig.nic.register(register));
        assert_eq!(bits[..2], [0x0141_011f; 2], "TXDCTL of both queues");
        assert_eq!((bits[2], bits[3] & (3 << 22), bits[4], bits[5]), (1 << 26, 1 << 22, 1 << 22 | 1 << 27, 1));
        rig.port.reset().unwrap();
    }
}

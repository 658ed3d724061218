//! The control queue: filters, addresses, queues and hashing, offloads; and commands that make no sense.

use crate::net::{bytes, packet};
use crate::rig::*;
use wholebar_core::mem::Chunk;
use wholebar_sim::virtio::net::NetStats;

const CTRL: u64 = 1 << 17;
const RX: u64 = 1 << 18;
const VLAN: u64 = 1 << 19;
const EXTRA: u64 = 1 << 20;
const MQ: u64 = 1 << 22;
const MAC: u64 = 1 << 23;
const OFFLOADS: u64 = 1 << 2;
const HASH: u64 = 1 << 57;
const RSS: u64 = 1 << 60;

/// A card with all its queues, in a loop.
struct Port {
    rig: Rig,
    queues: Vec<Queue>,
    control: usize,
    header: usize,
    /// The buffer that each receive queue has.
    posted: Vec<Option<Chunk>>,
}

impl Port {
    fn new(pairs: u16, features: u64) -> Self {
        let rig = Rig::net(&format!("queues={pairs}"), features | CTRL | VERSION_1);
        // 5.1.2: without multiqueue, the control queue is the third.
        let control = if features & (MQ | RSS) != 0 { 2 * pairs } else { 2 };
        let queues = (0..=control).map(|i| rig.queue(i, 64)).collect();
        rig.ok();
        let posted = (0..control / 2).map(|_| None).collect();
        Self { rig, queues, control: control.into(), header: if features & HASH != 0 { 20 } else { 12 }, posted }
    }

    /// Does a command; returns its answer.
    fn command(&mut self, class: u8, command: u8, data: &[u8]) -> u8 {
        let (_out, at) = self.rig.holding(&[&[class, command], data].concat());
        let (ack, there) = self.rig.holding(&[0xee]);
        self.queues[self.control].add(&[(at, 2, false), (at + 2, data.len() as u32, false), (there, 1, true)]);
        self.rig.settle();
        assert_eq!(self.queues[self.control].take().map(|t| t.1), Some(1));
        bytes(&ack, 1)[0]
    }

    /// Sends a packet on transmit queue `pair`; returns the receive queue that it came back on, with its header.
    fn pass(&mut self, pair: usize, packet: &[u8]) -> Option<(usize, Vec<u8>)> {
        for (i, posted) in self.posted.iter_mut().enumerate() {
            if posted.is_none() {
                let chunk = self.rig.memory(512);
                self.queues[2 * i].add(&[(self.rig.at(&chunk), 512, true)]);
                *posted = Some(chunk);
            }
        }
        let (_sent, at) = self.rig.holding(&[&vec![0; self.header], packet].concat());
        self.queues[2 * pair + 1].add(&[(at, (self.header + packet.len()) as u32, false)]);
        self.rig.settle();
        self.queues[2 * pair + 1].take().expect("it was sent");
        let mut got = (0..self.posted.len()).filter_map(|i| {
            let (_, len) = self.queues[2 * i].take()?;
            Some((i, bytes(&self.posted[i].take()?, len as usize)))
        });
        let first = got.next();
        assert_eq!(got.next(), None);
        first
    }

    fn passes(&mut self, packet: &[u8]) -> bool {
        self.pass(0, packet).is_some()
    }

    fn stats(&self) -> NetStats {
        self.rig.handle.as_ref().unwrap().stats()
    }
}

/// A packet for `to`, in a VLAN or in none.
fn packet_to(to: [u8; 6], vlan: Option<u16>) -> Vec<u8> {
    let mut packet = packet(80, 1);
    packet[..6].copy_from_slice(&to);
    if let Some(id) = vlan {
        packet[12..14].copy_from_slice(&[0x81, 0]);
        packet[14..16].copy_from_slice(&(id | 0xe000).to_be_bytes());
    }
    packet
}

#[test]
fn addresses_are_filtered_as_the_driver_says() {
    for layout in [0, PACKED] {
        let mut port = Port::new(1, layout | RX | EXTRA | MAC);
        let own: [u8; 6] = std::array::from_fn(|i| port.rig.get8(0x2000 + i as u64));
        let (other, group, all) = ([2, 0, 0, 0, 0, 9], [0x33, 0x33, 0, 0, 0, 1], [0xff; 6]);
        let expect = |port: &mut Port, expected: [bool; 4], why: &str| {
            let got = [own, other, group, all].map(|to| port.passes(&packet_to(to, None)));
            assert_eq!(got, expected, "own, other, group, all: {why}");
        };
        expect(&mut port, [true, false, false, true], "at first");
        for (mode, expected) in [
            (0, [true, true, true, true]),
            (1, [true, false, true, true]),
            (2, [true, true, false, true]),
            (3, [true, false, false, true]),
            (4, [false, false, false, true]),
            (5, [true, false, false, false]),
        ] {
            assert_eq!(port.command(0, mode, &[1]), 0);
            expect(&mut port, expected, &format!("mode {mode}"));
            assert_eq!(port.command(0, mode, &[0]), 0);
        }
        // One unicast and one multicast address; then none.
        let table = [&1u32.to_le_bytes()[..], &other, &1u32.to_le_bytes(), &group].concat();
        assert_eq!(port.command(1, 0, &table), 0);
        expect(&mut port, [true, true, true, true], "by the table");
        assert_eq!(port.command(1, 0, &[0; 8]), 0);
        expect(&mut port, [true, false, false, true], "by an empty table");
        // Another address, which shows in the configuration too.
        assert_eq!(port.command(1, 1, &other), 0);
        assert_eq!(port.rig.get8(0x2005), 9);
        expect(&mut port, [false, true, false, true], "by another address");
        port.rig.set8(STATUS, 0);
        assert_eq!(port.rig.get8(0x2005), own[5], "a reset brings the first one back");
        assert!(port.stats().rx_filtered > 10);
    }
}

#[test]
fn vlans_are_filtered_once_that_is_agreed_on() {
    let mut port = Port::new(1, VLAN);
    let tagged = |id| packet_to([0xff; 6], Some(id));
    assert_eq!([port.passes(&packet_to([0xff; 6], None)), port.passes(&tagged(5))], [true, false]);
    assert_eq!(port.command(2, 0, &5u16.to_le_bytes()), 0);
    assert_eq!(port.command(2, 0, &4095u16.to_le_bytes()), 0);
    assert_eq!([port.passes(&tagged(5)), port.passes(&tagged(6)), port.passes(&tagged(4095))], [true, false, true]);
    assert_eq!(port.command(2, 1, &5u16.to_le_bytes()), 0);
    assert!(!port.passes(&tagged(5)));
    let mut port = Port::new(1, 0);
    assert!(port.passes(&tagged(5)));
}

/// UDP from one port to another, at these addresses.
fn udp(from: u16, to: u16, swap: bool) -> Vec<u8> {
    let (mut a, mut b) = (([10, 0, 0, 1], from), ([10, 0, 0, 2], to));
    if swap {
        std::mem::swap(&mut a, &mut b);
    }
    let mut out = Vec::new();
    etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [0xff; 6])
        .ipv4(a.0, b.0, 64)
        .udp(a.1, b.1)
        .write(&mut out, &[0; 20])
        .unwrap();
    out
}

#[test]
fn a_flow_comes_back_on_the_queue_that_it_was_sent_on() {
    let mut port = Port::new(4, MQ);
    assert_eq!(port.pass(0, &udp(1, 2, false)).unwrap().0, 0);
    assert_eq!(port.command(4, 0, &4u16.to_le_bytes()), 0);
    for queue in [3, 1, 2, 0] {
        let from = 100 + queue as u16;
        assert_eq!(port.pass(queue, &udp(from, 53, false)).unwrap().0, queue);
        // Its answer, which never was sent here, was learned with it; sent elsewhere, it goes elsewhere.
        assert_eq!(port.pass(queue, &udp(from, 53, true)).unwrap().0, queue);
    }
    for bad in [0u16, 5, 0x8000] {
        assert_eq!(port.command(4, 0, &bad.to_le_bytes()), 1, "{bad} pairs");
    }
    assert_eq!(port.command(4, 0, &1u16.to_le_bytes()), 0);
    assert_eq!(port.pass(0, &udp(103, 53, false)).unwrap().0, 0);
}

/// `struct virtio_net_rss_config`.
fn rss(types: u32, unclassified: u16, table: &[u16], transmit: u16, key: &[u8]) -> Vec<u8> {
    let mut out = types.to_le_bytes().to_vec();
    let halves = [table.len() as u16 - 1, unclassified].into_iter().chain(table.iter().copied()).chain([transmit]);
    out.extend(halves.flat_map(u16::to_le_bytes));
    out.push(key.len() as u8);
    out.extend(key);
    out
}

#[test]
fn packets_are_spread_by_their_hash() {
    // A key by which the hash of a flow is known: the case of 66.9.149.187 to 161.142.100.80 (see the model's own test).
    let key: [u8; 40] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca,
        0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b,
        0xbe, 0xac, 0x01, 0xfa,
    ];
    let mut packet = Vec::new();
    etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [0xff; 6])
        .ipv4([66, 9, 149, 187], [161, 142, 100, 80], 64)
        .tcp(2794, 1766, 0, 0)
        .write(&mut packet, &[])
        .unwrap();
    let mut port = Port::new(4, RSS | HASH);
    // 0x51ccc178 over addresses and ports: the last two bits are 0.
    assert_eq!(port.command(4, 1, &rss(1 << 1, 1, &[3, 0, 0, 0], 4, &key)), 0);
    let (queue, bytes) = port.pass(0, &packet).unwrap();
    assert_eq!((queue, &bytes[10..20]), (3, &[1, 0, 0x78, 0xc1, 0xcc, 0x51, 2, 0, 0, 0][..]));
    assert_eq!(bytes[20..], packet);
    // 0x323e8fc2 over addresses alone: entry 2.
    assert_eq!(port.command(4, 1, &rss(1 << 0, 1, &[0, 0, 2, 0], 4, &key)), 0);
    let (queue, bytes) = port.pass(0, &packet).unwrap();
    assert_eq!((queue, &bytes[12..18]), (2, &[0xc2, 0x8f, 0x3e, 0x32, 1, 0][..]));
    // What is not hashed.
    let (queue, bytes) = port.pass(0, &packet_to([0xff; 6], None)).unwrap();
    assert_eq!((queue, &bytes[12..18]), (1, &[0; 6][..]));
    for (bad, why) in [
        (rss(1 << 6, 0, &[0], 1, &key), "a hash that there is not"),
        (rss(2, 0, &[0, 0, 0], 1, &key), "a table of three"),
        (rss(2, 0, &[0; 256], 1, &key), "a table too long"),
        (rss(2, 0, &[4], 1, &key), "a queue that there is not"),
        (rss(2, 4, &[0], 1, &key), "an unclassified queue that there is not"),
        (rss(2, 0, &[0], 5, &key), "too many transmit queues"),
        (rss(2, 0, &[0], 0, &key), "no transmit queues"),
        (rss(2, 0, &[0], 1, &[0; 41]), "a key too long"),
        (rss(2, 0, &[0], 1, &key)[..20].to_vec(), "cut off"),
    ] {
        assert_eq!(port.command(4, 1, &bad), 1, "{why}");
    }
    // A hash without steering.
    let config = [&2u32.to_le_bytes()[..], &[0; 8], &[40], &key].concat();
    assert_eq!(port.command(4, 2, &config), 0);
}

#[test]
fn commands_that_make_no_sense_are_refused() {
    let mut port = Port::new(1, 0);
    for (class, command, data) in
        [(0, 0, vec![1]), (1, 1, vec![0; 6]), (2, 0, vec![0; 2]), (4, 0, vec![1, 0]), (9, 9, vec![])]
    {
        assert_eq!(port.command(class, command, &data), 1, "{class} {command}: not agreed on");
    }
    let mut port = Port::new(1, RX | EXTRA | VLAN | MAC | OFFLOADS | 1 << 1);
    for (class, command, data) in [
        (0, 0, vec![]),
        (0, 0, vec![2]),
        (0, 6, vec![1]),
        (1, 0, vec![]),
        (1, 0, vec![0xff; 8]),
        (1, 0, vec![1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        (1, 1, vec![1; 6]),
        (1, 1, vec![0; 5]),
        (2, 0, vec![0, 16]),
        (2, 2, vec![0, 0]),
        (5, 0, vec![0x80, 0, 0, 0, 0, 0, 0, 0]),
        (5, 0, vec![0; 7]),
    ] {
        assert_eq!(port.command(class, command, &data), 1, "{class} {command} {data:?}");
    }
    assert_eq!(port.command(5, 0, &[2, 0, 0, 0, 0, 0, 0, 0]), 0);
    assert!(!port.rig.needs_reset());
    // Without room for an answer there is none to give.
    let (_out, at) = port.rig.holding(&[0, 0, 1]);
    let control = port.control;
    port.queues[control].add(&[(at, 3, false)]);
    port.rig.settle();
    assert!(port.rig.needs_reset());
}

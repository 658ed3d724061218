//! The driver on a card that is played by hand: what it makes of registers that lie, of rings that hold nonsense, of resets and removal.

#![cfg(not(miri))]

mod common;

use common::*;
use std::time::Duration;
use wholebar_core::control_plane::DeviceEvent;
use wholebar_core::mem::{Buf, Checked, Iova, L4, Offload, Pool};
use wholebar_core::net::{Burst, Event, Mac, Offloads, Port, PortConfig, QueueState, Rss, RxQueue, TxQueue};
use wholebar_core::pci::PciDevice;
use wholebar_core::reactor::Armed;
use wholebar_vmxnet3::{Error, Fault, Options, Vmxnet3};

/// `sop` and `eop`.
const FIRST: u64 = 1 << 15;
const LAST: u64 = 1 << 14;
const WHOLE: u64 = FIRST | LAST;
/// `cnc`: nobody looked at checksums.
const UNCHECKED: u64 = 1 << 30;
/// Buffers that two full rings have.
const HELD: u32 = 62;

fn open(nic: &FakeNic) -> Result<Vmxnet3, Error> {
    Vmxnet3::open(nic.device(), PortConfig::default(), manual())
}

#[test]
fn what_is_no_vmxnet3_is_left_alone() {
    let nic = FakeNic::new();
    nic.inside().vendor = [0xf4, 0x1a, 0x41, 0x10];
    let error = open(&nic).err().unwrap().to_string();
    assert_eq!(error, "by hand is not a device for this driver: it is 1af4:1041, and not a vmxnet3");
    let nic = FakeNic::new();
    (nic.inside().revisions, nic.inside().versions) = (0x80, 1);
    assert!(open(&nic).is_err_and(|e| e.to_string().contains("its revisions are 0x80")));
    (nic.inside().revisions, nic.inside().versions) = (1, 2);
    assert!(open(&nic).is_err_and(|e| e.to_string().contains("pass-through 0x2")));
    assert!(nic.commands().is_empty());
    nic.inside().versions = 1;
    nic.inside().mac = [1, 0, 0x5e, 0, 0, 1];
    assert!(open(&nic).is_err_and(|e| e.to_string().contains("01:00:5e:00:00:01, which no station can have")));
    nic.inside().gone = true;
    assert!(matches!(open(&nic), Err(Error::Core(wholebar_core::Error::Gone { .. }))));
}

#[test]
fn every_wait_ends() {
    for (command, what) in [(QUIESCE, "stop"), (RESET, "end its reset")] {
        let nic = FakeNic::new();
        nic.inside().answers = vec![(command, 1)];
        let error = open(&nic).err().unwrap();
        assert!(
            matches!(error, Error::Core(wholebar_core::Error::NotReady { what: w, bar: 1, .. }) if w == what),
            "{error}"
        );
    }
    let nic = FakeNic::new();
    nic.inside().answers = vec![(ACTIVATE, 0x8000_0001)];
    let error = open(&nic).err().unwrap().to_string();
    assert_eq!(error, "by hand was not activated: its answer is 0x80000001");
}

#[test]
fn the_device_is_told_where_all_is() {
    let nic = FakeNic::new();
    nic.inside().revisions = 3;
    let config = PortConfig { rx_queues: 2, tx_queues: 3, rx_interrupts: true, mtu: Some(9000), ..small() };
    let rig = rig_with(nic, config, manual());
    assert_eq!(rig.vmxnet3.revision(), 2);
    let word = |at| rig.nic.word(&rig.device, rig.nic.shared(at));
    // Magic; 64-bit Linux, revision 2, version 1; checksums, RSS, VLAN tags; five descriptions; MTU; buffers of a packet, queues.
    assert_eq!(
        [0, 12, 16, 20, 24, 52, 56, 60].map(word),
        [3_133_079_265, 6, 2, 1, 7, 5 * 256, 9000, 18 | 3 << 16 | 2 << 24]
    );
    // Interrupts mask their vectors; four of them: events, two queues, and one that stays masked.
    assert_eq!((word(80), word(108), word(RX_MODE)), (1 | 4 << 8, 0, 5));
    let queue = |n, at| rig.nic.word(&rig.device, rig.nic.queue(&rig.device, n, at));
    assert_eq!([0, 1, 2, 3, 4].map(|n| queue(n, 72)), [3, 3, 3, 1, 2]);
    for n in 0..5 {
        let (sends, bases) =
            (n < 3, [16, 24, 32].map(|at| rig.nic.long(&rig.device, rig.nic.queue(&rig.device, n, at))));
        assert_eq!([56, 60, 64].map(|at| queue(n, at)), if sends { [32, 0, 32] } else { [32, 32, 64] });
        assert!(bases.iter().all(|base| base.is_multiple_of(512)) && (bases[1] == 0) == sends);
    }
    assert_eq!(word(648 + 4), 48 + 128, "the configuration of RSS");
    assert_eq!([0, 8, 16, 24].map(|imr| rig.nic.register(imr)), [0, 1, 1, 1]);
    let last = rig.nic.commands();
    assert_eq!((last[0], last[1], last.contains(&ACTIVATE)), (QUIESCE, RESET, true));
}

#[test]
fn packets_are_taken_as_they_were_written() {
    let rig = rig(PortConfig { mtu: Some(2000), ..small() });
    let (mut rx, mut out) = (rig.vmxnet3.rx(0, &rig.pool).unwrap(), Burst::new(8));
    let [mut heads, mut bodies, mut done] = rig.rings(1);
    assert_eq!((rig.nic.register(RXPROD), rig.nic.register(RXPROD2)), (31, 31));
    for lap in 0..100u32 {
        let bytes: Vec<u8> = (0..60 + lap * 9).map(|i| (i + lap) as u8).collect();
        // The tag, IPv4, TCP, IPv4's checksum right; TCP's wrong on odd laps.
        let high = 1u64 << 15 | u64::from(lap) << 16 | 1 << 53 | 1 << 50 | 1 << 51 | u64::from(lap % 2 == 0) << 48;
        rig.receive(0, [&mut heads, &mut done], &bytes, [WHOLE | 2 << 26 | 7 << 32, high]);
        assert_eq!(rx.rx(&mut out), 1);
        let packet = out.pop().unwrap();
        let l4 = if lap % 2 == 0 { Checked::Good } else { Checked::Bad };
        assert_eq!((packet.bytes(), packet.vlan(), packet.hash()), (&bytes[..], Some(lap as u16), Some(7)));
        assert_eq!((packet.checked(), packet.offload()), ((Checked::Good, l4), None));
    }
    assert_eq!(rig.statistic("rx0", "doorbells"), 2, "nobody asked to be told of buffers");
    // In parts, over two calls, and round the second ring.
    for _ in 0..40 {
        rig.receive(0, [&mut heads, &mut done], &[1; 1024], [FIRST | UNCHECKED, 0]);
        assert_eq!(rx.rx(&mut out), 0);
        rig.receive(1, [&mut bodies, &mut done], &[2; 900], [LAST | UNCHECKED, 0]);
        assert_eq!(rx.rx(&mut out), 1);
        let packet = out.pop().unwrap();
        let parts: Vec<_> = packet.segments().map(|part| (part.len(), part.bytes()[0])).collect();
        assert_eq!((parts, packet.checked().1), (vec![(1024, 1), (900, 2)], Checked::Unknown));
    }
    // One that is cut off by an error, one without anything, one of more bytes than a packet has.
    rig.receive(0, [&mut heads, &mut done], &[3; 60], [WHOLE, 1 << 14]);
    rig.receive(0, [&mut heads, &mut done], &[], [WHOLE, 0]);
    rig.receive(0, [&mut heads, &mut done], &[4; 1024], [FIRST, 0]);
    rig.receive(1, [&mut bodies, &mut done], &[4; 1024], [LAST, 0]);
    assert_eq!(rx.rx(&mut out), 0);
    assert_eq!(["dropped_malformed", "dropped_too_long"].map(|name| rig.statistic("rx0", name)), [2, 1]);
    // Now it wants to be told of buffers.
    rig.nic.poke(&rig.device, rig.nic.queue(&rig.device, 1, 0), &[1, 0, 0, 0]);
    for _ in 0..8 {
        rig.receive(0, [&mut heads, &mut done], &[5; 60], [WHOLE, 0]);
    }
    assert_eq!((rx.rx(&mut out), rig.statistic("rx0", "doorbells")), (8, 4));
    out.give_back();
    // A queue that is dropped keeps what it has; all of it comes back in the end.
    drop(rx);
    assert!(rig.pool.available() < BUFFERS - 40);
    rig.receive(0, [&mut heads, &mut done], &[6; 60], [WHOLE, 0]);
    let mut rx = rig.vmxnet3.rx(0, &rig.pool).unwrap();
    assert_eq!((rx.rx(&mut out), out.pop().unwrap().bytes()), (1, &[6; 60][..]));
    rig.vmxnet3.close().unwrap();
    drop(rx);
    assert_eq!(rig.pool.available(), BUFFERS);
}

#[test]
fn merged_packets_say_of_what() {
    let mut packet = vec![0; 1000];
    for (at, byte) in [(12, 8), (14, 0x45), (23, 6), (46, 0x50)] {
        packet[at] = byte;
    }
    for (revisions, segment) in [(3, 333), (1, 1518 - 54)] {
        let nic = FakeNic::new();
        nic.inside().revisions = revisions;
        let config = PortConfig { offloads: Offloads::ALL, ..small() };
        let rig = rig_with(nic, config, manual());
        let (mut rx, mut out) = (rig.vmxnet3.rx(0, &rig.pool).unwrap(), Burst::new(8));
        let [mut heads, mut bodies, mut done] = rig.rings(1);
        // `type`, `mss`: revision 2.
        let merged = if revisions > 1 { 4 << 56 | 333 << 32 } else { 0 };
        rig.receive(0, [&mut heads, &mut done], &packet, [FIRST, merged]);
        rig.receive(1, [&mut bodies, &mut done], &[7; 1000], [LAST, 0]);
        assert_eq!(rx.rx(&mut out), 1);
        let right = Offload { l2_len: 14, l3_len: 20, l4_len: 20, segment, ..Offload::default() };
        assert_eq!(out.pop().unwrap().offload(), Some(right));
        // No TCP: nothing to say.
        rig.receive(0, [&mut heads, &mut done], &[0; 1000], [FIRST, merged]);
        rig.receive(1, [&mut bodies, &mut done], &[7; 1000], [LAST, 0]);
        assert_eq!((rx.rx(&mut out), out.pop().unwrap().offload()), (1, None));
    }
}

/// Services the device and polls its queues until all of them run again, and returns why it was reset.
fn recover(rig: &Rig, rx: &mut dyn RxQueue, tx: &mut dyn TxQueue) -> String {
    let (mut polls, mut out) = (0, Burst::new(8));
    while rig.vmxnet3.service().unwrap() || tx.state() != QueueState::Running || rx.state() != QueueState::Running {
        rx.rx(&mut out);
        tx.reclaim();
        polls += 1;
        assert!(polls < 100);
    }
    let events = rig.vmxnet3.events().try_iter();
    let resets: Vec<_> = events
        .filter_map(|event| match event {
            Event::Device(DeviceEvent::Reset { why, lost }) if lost.is_empty() => Some(why),
            _ => None,
        })
        .collect();
    let [why] = resets.as_slice() else { panic!("{resets:?}") };
    why.clone()
}

#[test]
fn rings_that_hold_nonsense_end_in_a_reset() {
    for (words, fault) in [
        ([WHOLE | 2 << 16, 60], Fault::Ring { id: 2 }),
        ([WHOLE | 31, 60], Fault::NotInFlight { index: 31 }),
        ([WHOLE | 4095, 60], Fault::NotInFlight { index: 4095 }),
        ([WHOLE | 1 << 16 | 31, 60], Fault::NotInFlight { index: 31 }),
        ([WHOLE, 1025], Fault::Length { index: 0, length: 1025, room: 1024 }),
        ([LAST, 60], Fault::Order { index: 0 }),
        ([1 << 16, 60], Fault::Order { index: 0 }),
    ] {
        let rig = rig(small());
        let mut out = Burst::new(8);
        let (mut rx, mut tx) = (rig.vmxnet3.rx(0, &rig.pool).unwrap(), rig.vmxnet3.tx(0).unwrap());
        out.push(rig.pool.get_len(60).unwrap()).unwrap();
        assert_eq!((tx.tx(&mut out), tx.in_flight()), (1, 1));
        rig.complete(&mut rig.rings(1)[2], words);
        assert_eq!((rx.rx(&mut out), rx.state()), (0, QueueState::Resetting), "{fault}");
        let why = format!("by hand: queue 0 that receives {fault}; the device will be reset");
        assert_eq!(recover(&rig, &mut rx, &mut tx), why);
        assert_eq!(["resets", "queue_errors"].map(|name| rig.statistic("", name)), [1, 1]);
        assert_eq!((rig.statistic("tx0", "dropped_reset"), tx.in_flight()), (1, 0));
        // It goes on from the first descriptor, and with the first generation.
        let [mut heads, _, mut done] = rig.rings(1);
        rig.receive(0, [&mut heads, &mut done], &[9; 60], [WHOLE, 0]);
        assert_eq!((rx.rx(&mut out), out.pop().unwrap().bytes()), (1, &[9; 60][..]));
        rig.vmxnet3.close().unwrap();
        drop((rx, tx));
        assert_eq!(rig.pool.available(), BUFFERS);
    }
    // The same where packets are sent.
    let rig = rig(small());
    let (mut rx, mut tx, mut out) = (rig.vmxnet3.rx(0, &rig.pool).unwrap(), rig.vmxnet3.tx(0).unwrap(), Burst::new(8));
    out.push(rig.pool.get_len(60).unwrap()).unwrap();
    tx.tx(&mut out);
    rig.complete(&mut rig.rings(0)[2], [1, 0]);
    tx.reclaim();
    assert_eq!(tx.state(), QueueState::Resetting);
    let why = "by hand: queue 0 that sends completes descriptor 1, which is not in flight; the device will be reset";
    assert_eq!(recover(&rig, &mut rx, &mut tx), why);
}

#[test]
fn a_queue_that_the_device_stops_is_told_and_reset() {
    let rig = rig(small());
    let (mut rx, mut tx) = (rig.vmxnet3.rx(0, &rig.pool).unwrap(), rig.vmxnet3.tx(0).unwrap());
    for (n, queue, event, direction) in [(1, 0, 2u32, "sends"), (2, 1, 1, "receives")] {
        let status = [1, 0x8000_0002u32].map(u32::to_le_bytes).concat();
        rig.nic.poke(&rig.device, rig.nic.queue(&rig.device, queue, STOPPED).offset(4), &status[4..]);
        rig.nic.poke(&rig.device, rig.nic.queue(&rig.device, queue, STOPPED), &status[..4]);
        rig.nic.poke(&rig.device, rig.nic.shared(SHARED_ECR), &event.to_le_bytes());
        let why = format!(
            "by hand stopped queue 0 that {direction}, because a packet has too many descriptors (0x80000002); it will be reset"
        );
        assert_eq!(recover(&rig, &mut rx, &mut tx), why);
        assert_eq!((rig.statistic("", "queue_errors"), rig.statistic("", "resets")), (n, n));
    }
    // One that says so, and stopped none.
    rig.nic.poke(&rig.device, rig.nic.shared(SHARED_ECR), &3u32.to_le_bytes());
    assert!(!rig.vmxnet3.service().unwrap());
    assert_eq!((rig.statistic("", "queue_errors"), rx.state()), (2, QueueState::Running));
}

#[test]
fn descriptors_say_what_is_to_be_done() {
    let rig = rig(PortConfig { mtu: Some(2000), ..small() });
    let (mut tx, mut burst) = (rig.vmxnet3.tx(0).unwrap(), Burst::new(8));
    let [mut ring, _, mut done] = rig.rings(0);
    let mut next = || {
        let [at, word] = rig.entry(ring.at());
        assert_eq!(word >> 14 & 1, ring.generation());
        ring.next += 1;
        (at, word & !(1 << 14))
    };
    let mut packet = rig.pool.get_len(100).unwrap();
    packet.append(rig.pool.get_len(0).unwrap());
    packet.append(rig.pool.get_len(1000).unwrap());
    packet.set_vlan(Some(0x6064));
    packet.set_offload(Some(Offload { l2_len: 14, l3_len: 20, l4: Some(L4::Udp), ..Offload::default() }));
    burst.push(packet).unwrap();
    burst.push(rig.pool.get_len(60).unwrap()).unwrap();
    let mut cut = rig.pool.get_len(1000).unwrap();
    cut.append(rig.pool.get_len(1024).unwrap());
    cut.append(rig.pool.get_len(1024).unwrap());
    let tso = Offload { l2_len: 14, l3_len: 20, l4_len: 32, l4: Some(L4::Tcp), segment: 500, ..Offload::default() };
    cut.set_offload(Some(tso));
    burst.push(cut).unwrap();
    assert_eq!((tx.tx(&mut burst), rig.nic.register(TXPROD), tx.in_flight()), (3, 6, 3));
    // In two pieces, of which the first says what to do: UDP's checksum at 40, from 34 on; the tag.
    const END: u64 = 3 << 44;
    assert_eq!(next().1, 100 | 40 << 18 | 34 << 32 | 2 << 42 | 1 << 47 | 0x6064 << 48);
    assert_eq!((next().1, next().1), (1000 | END, 60 | END));
    let (at, word) = next();
    assert_eq!(word, 1000 | 500 << 18 | 66 << 32 | 3 << 42);
    assert_eq!((next().1, next().1), (1024, 1024 | END));
    // The sum of addresses, which are zero, and protocol.
    assert_eq!(rig.nic.peek(&rig.device, Iova(at).offset(50), 2), [0, 6]);
    // The first two are done, then the third.
    rig.complete(&mut done, [2, 0]);
    tx.reclaim();
    assert_eq!(tx.in_flight(), 1);
    rig.complete(&mut done, [5, 0]);
    tx.reclaim();
    assert_eq!((tx.in_flight(), rig.pool.available()), (0, BUFFERS));
    // Round the ring, many times.
    for sent in 6..200u32 {
        burst.push(rig.pool.get_len(60).unwrap()).unwrap();
        assert_eq!((tx.tx(&mut burst), next().1), (1, 60 | END));
        rig.complete(&mut done, [u64::from(sent % 32), 0]);
    }
    tx.reclaim();
    assert_eq!((tx.in_flight(), rig.pool.available()), (0, BUFFERS));
}

#[test]
fn the_doorbell_is_rung_when_the_device_wants_it() {
    let rig = rig(small());
    let (mut tx, mut burst) = (rig.vmxnet3.tx(0).unwrap(), Burst::new(8));
    let mut send = |count: usize| {
        for _ in 0..count {
            burst.push(rig.pool.get_len(60).unwrap()).unwrap();
        }
        assert_eq!(tx.tx(&mut burst), count);
        let deferred = rig.nic.word(&rig.device, rig.nic.queue(&rig.device, 0, 0));
        (rig.statistic("tx0", "doorbells"), deferred, rig.nic.register(TXPROD))
    };
    assert_eq!(send(1), (1, 0, 1), "it has set no threshold");
    rig.nic.poke(&rig.device, rig.nic.queue(&rig.device, 0, 4), &4u32.to_le_bytes());
    assert_eq!([send(1), send(2), send(1), send(5)], [(1, 1, 1), (1, 3, 1), (2, 0, 5), (3, 0, 10)]);
}

#[test]
fn a_queue_that_stays_full_is_told_of_once_until_packets_go_again() {
    let rig = rig_with(FakeNic::new(), small(), Options { stall_timeout: Duration::ZERO, ..manual() });
    let (mut tx, mut burst) = (rig.vmxnet3.tx(0).unwrap(), Burst::new(16));
    let [_, _, mut done] = rig.rings(0);
    let stalls = || {
        rig.vmxnet3.service().unwrap();
        rig.vmxnet3.events().try_iter().filter(|event| matches!(event, Event::Stalled { queue: 0, .. })).count()
    };
    let fill = |burst: &mut Burst| {
        while burst.room() > 0 {
            burst.push(rig.pool.get_len(60).unwrap()).unwrap();
        }
    };
    // It takes what there is room for, and then nothing, for the device sends nothing.
    for _ in 0..2 {
        fill(&mut burst);
        tx.tx(&mut burst);
    }
    assert_eq!((stalls(), tx.tx(&mut burst)), (0, 0), "it has just taken some");
    assert_eq!((stalls(), tx.tx(&mut burst), stalls()), (1, 0, 0), "once");
    for index in 0..31 {
        rig.complete(&mut done, [index, 0]);
    }
    assert!(tx.tx(&mut burst) > 0);
    assert_eq!(stalls(), 0);
    for _ in 0..3 {
        fill(&mut burst);
        tx.tx(&mut burst);
    }
    assert_eq!((stalls(), tx.tx(&mut burst)), (0, 0));
    assert_eq!((stalls(), rig.statistic("", "tx_stalls")), (1, 2));
    burst.give_back();
}

#[test]
fn packets_that_cannot_be_sent_are_dropped_and_counted() {
    let rig = rig(PortConfig { offloads: Offloads::NONE, ..small() });
    let (mut tx, mut burst) = (rig.vmxnet3.tx(0).unwrap(), Burst::new(8));
    let elsewhere = wholebar_core::mem::Arena::new(1 << 17, Default::default()).unwrap();
    let elsewhere = Pool::new(elsewhere.clone(), 1, 65000, 64).unwrap();
    for len in [0, 13] {
        burst.push(rig.pool.get_len(len).unwrap()).unwrap();
    }
    let mut two = rig.pool.get_len(100).unwrap();
    two.append(rig.pool.get_len(100).unwrap());
    burst.push(two).unwrap();
    let mut tagged = rig.pool.get_len(100).unwrap();
    tagged.set_vlan(Some(1));
    burst.push(tagged).unwrap();
    burst.push(elsewhere.get_len(100).unwrap()).unwrap();
    assert_eq!((tx.tx(&mut burst), burst.len(), rig.nic.register(TXPROD)), (5, 0, 0));
    let dropped = ["dropped_length", "dropped_segments", "dropped_offload", "dropped_arena"];
    let counts = |rig: &Rig| dropped.map(|name| rig.statistic("tx0", name));
    assert_eq!(counts(&rig), [2, 1, 1, 1]);
    // A full ring keeps the rest.
    for _ in 0..5 {
        while burst.room() > 0 {
            burst.push(rig.pool.get_len(60).unwrap()).unwrap();
        }
        tx.tx(&mut burst);
    }
    assert_eq!((tx.in_flight(), burst.len(), rig.statistic("tx0", "full")), (31, 8, 2));
    burst.give_back();
    rig.vmxnet3.close().unwrap();
    drop(tx);
    assert_eq!((rig.pool.available(), elsewhere.available()), (BUFFERS, 1));
    // More pieces than a packet may have; one that is to be cut may have more, and long buffers are several.
    let rig = common::rig(small());
    let (mut tx, mut burst) = (rig.vmxnet3.tx(0).unwrap(), Burst::new(8));
    let chain = |parts: usize| {
        let mut packet = rig.pool.get_len(60).unwrap();
        (1..parts).for_each(|_| packet.append(rig.pool.get_len(20).unwrap()));
        packet
    };
    let tso = Offload { l2_len: 14, l3_len: 20, l4_len: 20, l4: Some(L4::Tcp), segment: 500, ..Offload::default() };
    let cut = |mut packet: Buf| {
        packet.set_offload(Some(tso));
        packet
    };
    rig.vmxnet3.attach(elsewhere.arena().clone()).unwrap();
    let ([_, _, mut done], mut next) = (rig.rings(0), 0);
    let long = elsewhere.get_len(65000).unwrap();
    for (packet, pieces) in [(chain(16), 16), (chain(17), 0), (cut(chain(24)), 24), (cut(chain(25)), 0), (cut(long), 4)]
    {
        burst.push(packet).unwrap();
        assert_eq!((tx.tx(&mut burst), tx.in_flight()), (1, usize::from(pieces > 0)));
        next += pieces;
        assert_eq!(rig.nic.register(TXPROD), next % 32);
        if pieces > 0 {
            rig.complete(&mut done, [u64::from(next - 1) % 32, 0]);
            tx.reclaim();
        }
    }
    assert_eq!(counts(&rig), [0, 2, 0, 0]);
    rig.vmxnet3.close().unwrap();
    drop(tx);
    assert_eq!((rig.pool.available(), elsewhere.available()), (BUFFERS, 1));
}

#[test]
fn who_does_not_poll_loses_the_queue_and_can_have_another() {
    let rig = rig_with(FakeNic::new(), small(), Options { stop_timeout: Duration::from_millis(100), ..manual() });
    let (mut rx, mut tx) = (rig.vmxnet3.rx(0, &rig.pool).unwrap(), rig.vmxnet3.tx(0).unwrap());
    rig.vmxnet3.request_reset();
    tx.reclaim();
    assert_eq!(tx.state(), QueueState::Resetting);
    let error = rig.vmxnet3.reset().unwrap_err();
    assert!(
        matches!(&error, Error::Core(wholebar_core::Error::Unresponsive { queues, .. }) if *queues == [0]),
        "{error}"
    );
    tx.reclaim();
    assert_eq!(tx.state(), QueueState::Running);
    // There is another in its place, whose rings are others.
    let mut other = rig.vmxnet3.rx(0, &rig.pool).unwrap();
    let [mut heads, _, mut done] = rig.rings(1);
    rig.receive(0, [&mut heads, &mut done], &[1; 60], [WHOLE, 0]);
    let mut out = Burst::new(8);
    assert_eq!((rx.rx(&mut out), other.rx(&mut out)), (0, 1));
    assert!(matches!(rx.state(), QueueState::Failed(_)));
    drop((out, rx));
    assert_eq!(rig.vmxnet3.quarantined(), u64::from(HELD));
    assert!(rig.vmxnet3.rx(0, &rig.pool).is_err_and(|e| e.to_string().contains("in use")));
    rig.vmxnet3.close().unwrap();
    drop((other, tx));
    assert_eq!(rig.pool.available(), BUFFERS - HELD);
}

#[test]
fn removal_is_seen_and_frees_what_nobody_can_write() {
    let rig = rig(small());
    let (mut rx, mut tx, mut burst) =
        (rig.vmxnet3.rx(0, &rig.pool).unwrap(), rig.vmxnet3.tx(0).unwrap(), Burst::new(8));
    burst.push(rig.pool.get_len(60).unwrap()).unwrap();
    tx.tx(&mut burst);
    rig.nic.inside().gone = true;
    assert!(matches!(rig.vmxnet3.service(), Err(Error::Core(wholebar_core::Error::Gone { .. }))));
    rx.rx(&mut burst);
    tx.reclaim();
    assert_eq!((rx.state(), tx.state()), (QueueState::Gone, QueueState::Gone));
    assert!(matches!(rig.vmxnet3.reset(), Err(Error::Core(wholebar_core::Error::Gone { .. }))));
    assert!(matches!(rig.vmxnet3.events().try_iter().last(), Some(Event::Device(DeviceEvent::Ended { .. }))));
    assert!(matches!(rig.vmxnet3.tx(0), Err(Error::Core(wholebar_core::Error::Gone { .. }))));
    drop((rx, tx));
    assert_eq!((rig.pool.available(), rig.vmxnet3.quarantined()), (BUFFERS, 0));
}

#[test]
fn a_device_that_does_not_stop_keeps_its_buffers() {
    let rig = rig(small());
    let (rx, tx) = (rig.vmxnet3.rx(0, &rig.pool).unwrap(), rig.vmxnet3.tx(0).unwrap());
    rig.nic.inside().answers = vec![(QUIESCE, 1)];
    assert!(matches!(rig.vmxnet3.close(), Err(Error::Core(wholebar_core::Error::NotReady { .. }))));
    drop((rx, tx));
    assert_eq!(rig.pool.available(), BUFFERS - HELD);
}

#[test]
fn the_link_is_told_and_what_is_counted_goes_on_through_resets() {
    let rig = rig(small());
    rig.nic.interrupt(&rig.device, 0);
    assert!(rig.vmxnet3.wakeup().wait(Some(Duration::from_secs(60))).unwrap().is_some());
    rig.nic.inside().registers[0][0] = 1;
    rig.vmxnet3.service().unwrap();
    assert_eq!(rig.vmxnet3.events().try_recv(), Ok(Event::Link(rig.vmxnet3.link())));
    assert_eq!(rig.vmxnet3.link().to_string(), "up, 10000 Mb/s, full duplex");
    assert_eq!(rig.nic.register(0), 0, "its vector is open again");
    let count = |queue, at: u64, value: u64| {
        let at = rig.nic.queue(&rig.device, queue, STATS).offset(8 * at);
        rig.nic.poke(&rig.device, at, &value.to_le_bytes());
    };
    count(0, 2, 5 << 32 | 7);
    count(1, 8, 3);
    let counted = || [rig.statistic("tx0", "device_unicast_packets"), rig.statistic("rx0", "dropped_no_descriptors")];
    assert_eq!(counted(), [5 << 32 | 7, 3]);
    rig.vmxnet3.reset().unwrap();
    assert_eq!((counted(), rig.statistic("", "resets")), ([5 << 32 | 7, 3], 1));
    count(1, 8, 4);
    assert_eq!(counted(), [5 << 32 | 7, 7]);
    rig.nic.inside().link = 0;
    rig.nic.poke(&rig.device, rig.nic.shared(SHARED_ECR), &4u32.to_le_bytes());
    rig.vmxnet3.service().unwrap();
    let last = rig.vmxnet3.events().try_iter().last();
    assert!(matches!(last, Some(Event::Link(link)) if !link.up), "{last:?}");
    rig.device.step();
    assert_eq!(rig.nic.word(&rig.device, rig.nic.shared(SHARED_ECR)), 0, "it was acknowledged");
    assert_eq!(rig.statistic("", "link_changes"), 2);
}

#[test]
fn queues_are_armed_one_by_one() {
    let rig = rig(PortConfig { rx_queues: 2, rx_interrupts: true, ..small() });
    let (mut first, mut second) = (rig.vmxnet3.rx(0, &rig.pool).unwrap(), rig.vmxnet3.rx(1, &rig.pool).unwrap());
    let masks = || [8, 16, 24].map(|imr| rig.nic.register(imr));
    assert_eq!((first.arm(), masks()), (Armed::Yes, [0, 1, 1]));
    assert_eq!((second.arm(), masks()), (Armed::Yes, [0, 0, 1]));
    second.disarm();
    assert_eq!(masks(), [0, 1, 1]);
    rig.nic.interrupt(&rig.device, 2);
    assert_eq!((first.wakeup().unwrap().take(), second.wakeup().unwrap().take()), (0, 1));
}

#[test]
fn settings_outlive_resets() {
    let rig = rig(small());
    let own = Mac([2, 0, 0, 0, 0, 7]);
    let group = Mac([1, 0, 0x5e, 0, 0, 0xfb]);
    let all = || {
        let words = (0..720).step_by(4).map(|at| rig.nic.word(&rig.device, rig.nic.shared(at))).collect::<Vec<_>>();
        let groups = rig.nic.peek(&rig.device, Iova(rig.nic.long(&rig.device, rig.nic.shared(128))), 6);
        (words, groups, rig.nic.inside().registers[1][0x28 / 4])
    };
    let before = all();
    rig.vmxnet3.set_mac(own).unwrap();
    rig.vmxnet3.set_filters(&[group]).unwrap();
    rig.nic.commands();
    rig.vmxnet3.set_vlan(33, true).unwrap();
    assert!(rig.nic.commands().contains(&UPDATE_VLANS));
    rig.vmxnet3.set_all_multicast(true).unwrap();
    rig.vmxnet3.set_rss(&Rss::evenly(1, 4)).unwrap();
    let after = all();
    assert_eq!((after.0[34 + 1], after.0[30], &after.1[..], after.2), (2, 15, &group.0[..], 2));
    assert_ne!(before, after);
    rig.vmxnet3.reset().unwrap();
    assert_eq!(all(), after);
    for bad in [0, 4095] {
        assert!(rig.vmxnet3.set_vlan(bad, true).is_err());
    }
    assert!(rig.vmxnet3.set_filters(&[own]).is_err() && rig.vmxnet3.set_mac(group).is_err());
    assert!(rig.vmxnet3.set_rss(&Rss::evenly(2, 4)).is_err());
    assert_eq!(all(), after, "what is refused changes nothing");
    assert_eq!(rig.device.name(), rig.vmxnet3.name());
}

#[test]
fn what_cannot_be_had_is_refused() {
    let nic = FakeNic::new();
    for (config, why) in [
        (PortConfig { rx_queues: 17, ..small() }, "17 queues that receive"),
        (PortConfig { tx_queues: 9, ..small() }, "9 queues that send"),
        (PortConfig { rx_descriptors: Some(16), ..small() }, "16 descriptors"),
        (PortConfig { tx_descriptors: Some(8192), ..small() }, "8192 descriptors"),
        (PortConfig { mtu: Some(9001), ..small() }, "from 68 to 9000 bytes"),
        (PortConfig { rss: Some(Rss { table: vec![0, 1], ..Rss::evenly(2, 2) }), ..small() }, "queue 1 of 1"),
    ] {
        let error = Vmxnet3::open(nic.device(), config, manual()).err().unwrap().to_string();
        assert!(error.contains(why), "{error}");
    }
    assert!(nic.commands().is_empty(), "the device was not touched");
    // Buffers of 1024 bytes: too small for one packet each.
    let rig = rig(PortConfig { offloads: Offloads::NONE, ..small() });
    let error = rig.vmxnet3.rx(0, &rig.pool).err().unwrap().to_string();
    assert!(error.contains("packets of 1518 bytes want 1518, or receive scattering"), "{error}");
    assert!(rig.vmxnet3.tx(1).is_err_and(|e| e.to_string().contains("opened with fewer")));
}

//! The driver on a card that is played by hand: what it makes of registers that lie, of rings that hold nonsense, of resets and removal.

#![cfg(not(miri))]

mod common;

use common::*;
use std::time::Duration;
use wholebar_core::control_plane::DeviceEvent;
use wholebar_core::irq::Coalescing;
use wholebar_core::mem::{Checked, L4, Offload, Pool};
use wholebar_core::net::{Burst, Event, Mac, Offloads, Port, PortConfig, QueueState};
use wholebar_core::pci::PciDevice;
use wholebar_core::reactor::Armed;
use wholebar_intel::igb::Igb;
use wholebar_intel::{Error, Fault, Options};

fn open(nic: &FakeNic) -> Result<Igb, Error> {
    Igb::open(nic.device(), PortConfig::default(), manual())
}

fn statistic(igb: &Igb, queue: &str, name: &str) -> u64 {
    igb.statistics().iter().find(|s| s.queue == queue && s.name == name).map_or(u64::MAX, |s| s.value)
}

#[test]
fn its_address_is_the_eeprom_s() {
    let nic = FakeNic::new();
    assert_eq!(open(&nic).unwrap().mac().to_string(), "52:54:00:12:34:56");
    assert_eq!((nic.register(RAL0), nic.register(RAH0)), (0, 0), "it was reset when it was closed");
    // The second port.
    let status = nic.register(STATUS);
    nic.set(STATUS, status | 1 << 2);
    let device = nic.device();
    nic.inside().eeprom[2] = 0x5634;
    let igb = Igb::open(device, PortConfig::default(), manual()).unwrap();
    // A reset takes the port's number with it here, so that it is the first again.
    assert_eq!(igb.mac().to_string(), "52:54:00:12:34:56");
    drop(igb);
    // A checksum that is wrong, and nothing loaded.
    nic.inside().eeprom[5] ^= 1;
    assert!(matches!(open(&nic), Err(Error::NoAddress { checksum: 0xbabb, .. })));
    nic.inside().eeprom[5] ^= 1;
    nic.inside().eeprom[..3].fill(0);
    assert!(matches!(open(&nic), Err(Error::NoAddress { .. })));
}

#[test]
fn what_is_no_82576_is_left_alone() {
    let nic = FakeNic::new();
    nic.set(CTRL_EXT, 3 << 22);
    assert!(open(&nic).is_err_and(|e| e.to_string().contains("LINK_MODE is 3")));
    nic.inside().vendor = [0xf4, 0x1a, 0x41, 0x10];
    let error = open(&nic).err().unwrap().to_string();
    assert_eq!(error, "by hand is not a device for this driver: it is 1af4:1041, and not an 82576");
    assert_eq!(nic.inside().resets, 1);
}

#[test]
fn every_wait_ends() {
    let nic = FakeNic::new();
    nic.inside().stuck_reset = true;
    let error = open(&nic).err().unwrap();
    assert!(
        matches!(error, Error::Core(wholebar_core::Error::NotReady { what: "end its reset", offset: CTRL, .. })),
        "{error}"
    );
    let nic = FakeNic::new();
    nic.inside().firmware = true;
    let error = open(&nic).err().unwrap();
    assert!(error.to_string().contains("firmware's semaphore"), "{error}");
}

#[test]
fn packets_are_taken_as_they_were_written() {
    let rig = rig(small());
    let (mut rx, mut out) = (rig.igb.rx(0, &rig.pool).unwrap(), Burst::new(8));
    assert_eq!(rig.nic.register(RX + TAIL), 15);
    let mut index = 0;
    for lap in 0..40u32 {
        let bytes: Vec<u8> = (0..60 + lap * 24).map(|i| (i + lap) as u8).collect();
        // VP, IPCS, L4CS; L4E on odd laps.
        let status = 3 | 1 << 3 | 1 << 5 | 1 << 6 | u64::from(lap % 2) << 29 | u64::from(lap as u16) << 48;
        rig.nic.receive(&rig.device, index, &bytes, status);
        index = (index + 1) % 16;
        assert_eq!(rx.rx(&mut out), 1);
        let packet = out.pop().unwrap();
        let l4 = if lap % 2 == 0 { Checked::Good } else { Checked::Bad };
        assert_eq!((packet.bytes(), packet.vlan(), packet.hash()), (&bytes[..], Some(lap as u16), None));
        assert_eq!(packet.checked(), (Checked::Good, l4));
    }
    // In parts, over two calls; then one that is cut off by an error.
    for (part, status) in [([1u8; 1024], 1), ([2; 1024], 1)] {
        rig.nic.receive(&rig.device, index, &part, status);
        index = (index + 1) % 16;
    }
    assert_eq!((rx.rx(&mut out), statistic(&rig.igb, "rx0", "packets")), (0, 40));
    rig.nic.receive(&rig.device, index, &[3; 5], 3);
    index = (index + 1) % 16;
    // 2053 bytes are more than a packet may have, with an MTU of 1500.
    assert_eq!((rx.rx(&mut out), statistic(&rig.igb, "rx0", "dropped_too_long")), (0, 1));
    rig.nic.receive(&rig.device, index, &[4; 60], 3 | 1 << 31);
    assert_eq!((rx.rx(&mut out), statistic(&rig.igb, "rx0", "dropped_malformed")), (0, 1));
    drop(rx);
    assert_eq!((rig.pool.available(), rig.igb.quarantined()), (BUFFERS, 0));
}

#[test]
fn a_ring_that_holds_nonsense_ends_in_a_reset() {
    let rig = rig(small());
    let (mut rx, mut tx, mut out) = (rig.igb.rx(0, &rig.pool).unwrap(), rig.igb.tx(0).unwrap(), Burst::new(8));
    out.push(rig.pool.get_len(60).unwrap()).unwrap();
    assert_eq!((tx.tx(&mut out), tx.in_flight()), (1, 1));
    rig.nic.write_back(&rig.device, RX, 0, [0, 3 | 1025 << 32]);
    assert_eq!((rx.rx(&mut out), rx.state()), (0, QueueState::Resetting));
    let mut turns = 0;
    while rig.igb.service().unwrap() || tx.state() != QueueState::Running || rx.state() != QueueState::Running {
        rx.rx(&mut out);
        tx.reclaim();
        turns += 1;
        assert!(turns < 100);
    }
    let events: Vec<_> = rig.igb.events().try_iter().collect();
    let why = format!(
        "by hand: receive queue 0 {}; the device will be reset",
        Fault::Length { index: 0, length: 1025, room: 1024 }
    );
    assert!(events.contains(&Event::Device(DeviceEvent::Reset { why, lost: vec![] })), "{events:?}");
    assert_eq!((statistic(&rig.igb, "tx0", "dropped_reset"), tx.in_flight()), (1, 0));
    // It goes on from the first descriptor.
    rig.nic.receive(&rig.device, 0, &[9; 60], 3);
    assert_eq!((rx.rx(&mut out), out.pop().unwrap().bytes()), (1, &[9; 60][..]));
    drop((rx, tx));
    assert_eq!((rig.pool.available(), rig.igb.quarantined()), (BUFFERS, 0));
}

#[test]
fn descriptors_say_what_is_to_be_done() {
    let rig = rig(small());
    let (mut tx, mut burst) = (rig.igb.tx(0).unwrap(), Burst::new(8));
    let mut packet = rig.pool.get_len(100).unwrap();
    packet.append(rig.pool.get_len(0).unwrap());
    packet.append(rig.pool.get_len(1000).unwrap());
    packet.set_vlan(Some(0x6064));
    let offload = Offload { l2_len: 14, l3_len: 20, l3: true, l4: Some(L4::Udp), ..Offload::default() };
    packet.set_offload(Some(offload));
    burst.push(packet).unwrap();
    burst.push(rig.pool.get_len(60).unwrap()).unwrap();
    assert_eq!((tx.tx(&mut burst), rig.nic.register(TX + TAIL)), (2, 4));
    let words = |i| rig.nic.words(&rig.device, TX, i);
    assert_eq!(words(0), [0x6064 << 16 | 14 << 9 | 20, 0x2020_0400], "the context");
    assert_eq!(words(1)[1], 0x6230_0064 | (1100 << 14 | 0x300) << 32);
    assert_eq!(words(2)[1], 0x6330_03e8 | (1100 << 14 | 0x300) << 32);
    assert_eq!(words(3)[1], 0x2b30_003c | (60 << 14) << 32, "the last of a burst reports");
    assert_eq!(tx.in_flight(), 2);
    // DD on one that was not to report says nothing.
    rig.nic.write_back(&rig.device, TX, 2, [0, words(2)[1] | 1 << 32]);
    tx.reclaim();
    assert_eq!(tx.in_flight(), 2);
    rig.nic.write_back(&rig.device, TX, 3, [0, words(3)[1] | 1 << 32]);
    tx.reclaim();
    assert_eq!((tx.in_flight(), rig.pool.available()), (0, BUFFERS));
    // The device has the context still.
    for (tag, tail) in [(0x6064, 5), (0x6065, 7)] {
        let mut packet = rig.pool.get_len(60).unwrap();
        packet.set_vlan(Some(tag));
        packet.set_offload(Some(offload));
        burst.push(packet).unwrap();
        tx.tx(&mut burst);
        assert_eq!(rig.nic.register(TX + TAIL), tail);
    }
}

#[test]
fn a_queue_that_stays_full_is_told_of_once_until_packets_go_again() {
    let rig = rig_with(small(), Options { stall_timeout: Duration::ZERO, ..manual() });
    let (mut tx, mut burst) = (rig.igb.tx(0).unwrap(), Burst::new(8));
    let stalls = || {
        rig.igb.service().unwrap();
        rig.igb.events().try_iter().filter(|event| matches!(event, Event::Stalled { queue: 0, .. })).count()
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
    // All that it has was sent: the last of each burst reports.
    for index in 0..16 {
        let [_, word] = rig.nic.words(&rig.device, TX, index);
        rig.nic.write_back(&rig.device, TX, index, [0, word | 1 << 32]);
    }
    assert!(tx.tx(&mut burst) > 0);
    assert_eq!(stalls(), 0);
    for _ in 0..2 {
        fill(&mut burst);
        tx.tx(&mut burst);
    }
    assert_eq!((stalls(), tx.tx(&mut burst)), (0, 0));
    assert_eq!((stalls(), statistic(&rig.igb, "", "tx_stalls")), (1, 2));
    burst.give_back();
}

#[test]
fn packets_that_cannot_be_sent_are_dropped_and_counted() {
    let rig = rig(PortConfig { offloads: Offloads::NONE, ..small() });
    let (mut tx, mut burst) = (rig.igb.tx(0).unwrap(), Burst::new(8));
    let elsewhere = wholebar_core::mem::Arena::new(1 << 16, Default::default()).unwrap();
    let elsewhere = Pool::new(elsewhere.clone(), 1, 1024, 64).unwrap();
    for len in [0, 16] {
        burst.push(rig.pool.get_len(len).unwrap()).unwrap();
    }
    let mut two = rig.pool.get_len(100).unwrap();
    two.append(rig.pool.get_len(100).unwrap());
    burst.push(two).unwrap();
    let mut tagged = rig.pool.get_len(100).unwrap();
    tagged.set_vlan(Some(1));
    burst.push(tagged).unwrap();
    burst.push(elsewhere.get_len(100).unwrap()).unwrap();
    assert_eq!((tx.tx(&mut burst), burst.len(), rig.nic.register(TX + TAIL)), (5, 0, 0));
    let dropped = ["dropped_length", "dropped_segments", "dropped_offload", "dropped_arena"];
    assert_eq!(dropped.map(|name| statistic(&rig.igb, "tx0", name)), [2, 1, 1, 1]);
    // A full ring keeps the rest.
    for _ in 0..3 {
        while burst.room() > 0 {
            burst.push(rig.pool.get_len(60).unwrap()).unwrap();
        }
        tx.tx(&mut burst);
    }
    assert_eq!((tx.in_flight(), burst.len(), statistic(&rig.igb, "tx0", "full")), (15, 8, 2));
    burst.give_back();
    drop(tx);
    assert_eq!((rig.pool.available(), elsewhere.available()), (BUFFERS, 1));
}

#[test]
fn who_does_not_poll_loses_the_queue() {
    let rig = rig_with(small(), Options { stop_timeout: Duration::from_millis(100), ..manual() });
    let (rx, mut tx) = (rig.igb.rx(0, &rig.pool).unwrap(), rig.igb.tx(0).unwrap());
    rig.igb.request_reset();
    tx.reclaim();
    assert_eq!(tx.state(), QueueState::Resetting);
    let error = rig.igb.reset().unwrap_err();
    assert!(
        matches!(&error, Error::Core(wholebar_core::Error::Unresponsive { queues, .. }) if *queues == [0]),
        "{error}"
    );
    tx.reclaim();
    assert_eq!(tx.state(), QueueState::Running);
    drop(rx);
    assert_eq!((rig.igb.quarantined(), rig.pool.available()), (15, BUFFERS - 15));
    // It can be had again.
    let rx = rig.igb.rx(0, &rig.pool).unwrap();
    assert_eq!(rx.state(), QueueState::Running);
}

#[test]
fn removal_is_seen_and_frees_what_nobody_can_write() {
    let rig = rig(small());
    let (mut rx, mut tx, mut burst) = (rig.igb.rx(0, &rig.pool).unwrap(), rig.igb.tx(0).unwrap(), Burst::new(8));
    burst.push(rig.pool.get_len(60).unwrap()).unwrap();
    tx.tx(&mut burst);
    rig.nic.inside().gone = true;
    assert!(matches!(rig.igb.service(), Err(Error::Core(wholebar_core::Error::Gone { .. }))));
    rx.rx(&mut burst);
    tx.reclaim();
    assert_eq!((rx.state(), tx.state()), (QueueState::Gone, QueueState::Gone));
    assert!(matches!(rig.igb.reset(), Err(Error::Core(wholebar_core::Error::Gone { .. }))) && !rig.igb.link().up);
    assert!(matches!(rig.igb.events().try_iter().last(), Some(Event::Device(DeviceEvent::Ended { .. }))));
    drop((rx, tx));
    assert_eq!((rig.pool.available(), rig.igb.quarantined()), (BUFFERS, 0));
}

#[test]
fn a_queue_that_cannot_be_disabled_keeps_its_memory_from_others() {
    let rig = rig(small());
    let rx = rig.igb.rx(0, &rig.pool).unwrap();
    rig.nic.inside().stuck_queues = true;
    drop(rx);
    assert_eq!((rig.igb.quarantined(), rig.pool.available()), (15, BUFFERS - 15));
    // A reset stops it, and then it can be had again.
    let resets = rig.nic.inside().resets;
    let rx = rig.igb.rx(0, &rig.pool).unwrap();
    assert_eq!((rx.state(), rig.nic.inside().resets), (QueueState::Running, resets + 1));
}

#[test]
fn the_link_is_told_and_what_is_counted_adds_up() {
    let rig = rig(small());
    rig.nic.interrupt(&rig.device, 0);
    assert!(rig.igb.wakeup().wait(Some(Duration::from_secs(60))).unwrap().is_some());
    rig.igb.service().unwrap();
    assert_eq!(rig.igb.events().try_recv(), Ok(Event::Link(rig.igb.link())));
    for n in 1..=3 {
        rig.nic.set(0x4074, n);
        rig.nic.set(0x4088, u32::MAX);
        rig.nic.set(0x408c, 1);
        rig.igb.service().unwrap();
        rig.nic.set(0x408c, 0);
        rig.nic.set(0x4088, 0);
    }
    assert_eq!(statistic(&rig.igb, "", "rx_packets"), 6);
    assert_eq!(statistic(&rig.igb, "", "rx_bytes"), 3 * ((1 << 32) | u64::from(u32::MAX)));
    rig.nic.set(STATUS, 0x80);
    rig.igb.service().unwrap();
    assert!(matches!(rig.igb.events().try_recv(), Ok(Event::Link(link)) if !link.up));
    assert_eq!((statistic(&rig.igb, "", "link_changes"), statistic(&rig.igb, "", "resets")), (2, 0));
    rig.igb.reset().unwrap();
    assert_eq!(statistic(&rig.igb, "", "resets"), 1);
}

#[test]
fn queues_are_armed_one_by_one() {
    let rig = rig(PortConfig { rx_queues: 2, rx_interrupts: true, ..small() });
    let (mut first, mut second) = (rig.igb.rx(0, &rig.pool).unwrap(), rig.igb.rx(1, &rig.pool).unwrap());
    // Receive queues 0 and 1 have vectors 1 and 2.
    assert_eq!((rig.nic.register(0x1700), rig.nic.register(0x1704), rig.nic.register(0x1708)), (0x81, 0x82, 0));
    assert_eq!((first.arm(), rig.nic.register(0x1524)), (Armed::Yes, 2));
    assert_eq!((second.arm(), rig.nic.register(0x1524)), (Armed::Yes, 4));
    second.disarm();
    assert_eq!(rig.nic.register(0x1528), 4);
    rig.nic.interrupt(&rig.device, 2);
    assert_eq!((first.wakeup().unwrap().take(), second.wakeup().unwrap().take()), (0, 1));
}

/// EITR's interval is in bits 14:2, in microseconds; the link's vector, 0, has none.
#[test]
fn interrupts_are_throttled() {
    let rig = rig(PortConfig { rx_queues: 2, rx_interrupts: true, ..small() });
    let eitr = || [0x1680, 0x1684, 0x1688, 0x168c].map(|register| rig.nic.register(register));
    let micros = Duration::from_micros;
    assert_eq!((rig.igb.coalescing(), eitr()), (Some(Coalescing::after(micros(0))), [0; 4]));
    let wanted = Coalescing { events: 8, time: Duration::from_nanos(49_001) };
    assert_eq!(rig.igb.set_coalescing(wanted).unwrap(), Coalescing::after(micros(50)));
    assert_eq!(eitr(), [0, 50 << 2, 50 << 2, 0]);
    rig.igb.reset().unwrap();
    assert_eq!((rig.igb.coalescing(), eitr()), (Some(Coalescing::after(micros(50))), [0, 50 << 2, 50 << 2, 0]));
    let error = rig.igb.set_coalescing(Coalescing::after(micros(8192))).unwrap_err();
    assert!(error.to_string().ends_with("held back for 8191 us at most"), "{error}");
    rig.igb.set_coalescing(Coalescing::after(micros(8191))).unwrap();
    assert_eq!(eitr()[1], 0x7ffc);
    rig.igb.set_coalescing(Coalescing::default()).unwrap();
    assert_eq!(eitr(), [0; 4]);
    // Without vectors of their own there is nothing to hold back.
    let rig = self::rig(small());
    assert_eq!(rig.igb.coalescing(), None);
    assert!(rig.igb.set_coalescing(wanted).is_err());
}

#[test]
fn settings_outlive_resets() {
    let rig = rig(small());
    let own = Mac([2, 0, 0, 0, 0, 7]);
    rig.igb.set_mac(own).unwrap();
    rig.igb.set_vlan(33, true).unwrap();
    rig.igb.set_promiscuous(true).unwrap();
    let all = || {
        [CTRL, 0x100, 0x400]
            .into_iter()
            .chain((0x5000..0x5b00).step_by(4))
            .map(|r| rig.nic.register(r))
            .collect::<Vec<_>>()
    };
    let before = all();
    rig.igb.reset().unwrap();
    assert_eq!((all() == before, rig.nic.register(RAL0), rig.nic.register(0x5604)), (true, 2, 2));
    assert!(rig.igb.set_vlan(0, true).is_err() && rig.igb.set_vlan(4095, true).is_err());
    let device = rig.igb.device().clone();
    assert!(Igb::open(device, PortConfig { mtu: Some(67), ..small() }, Options::default()).is_err());
    assert_eq!(rig.device.name(), rig.igb.name());
}

//! The drivers on cards that are played by hand, of each family: what they make of registers that lie, of rings that hold nonsense, of resets and removal.

#![cfg(not(miri))]

mod common;

use common::*;
use std::time::Duration;
use wholebar_core::control_plane::DeviceEvent;
use wholebar_core::mem::{Checked, Offload, Pool};
use wholebar_core::net::{Burst, Event, Mac, Offloads, Port, PortConfig, QueueState};
use wholebar_core::pci::PciDevice;
use wholebar_intel::e1000e::I82574;
use wholebar_intel::igb::I82576;
use wholebar_intel::{Controller, Error, Fault, Nic, Options};

/// Each of these functions over both families, a test each.
macro_rules! over_both {
    ($($name:ident)*) => {
        mod igb {
            $(#[test] fn $name() { super::$name::<super::I82576>(); })*
        }
        mod e1000e {
            $(#[test] fn $name() { super::$name::<super::I82574>(); })*
        }
    };
}

over_both! {
    its_address_is_the_eeprom_s
    what_is_of_no_such_family_is_left_alone
    every_wait_ends
    packets_are_taken_as_they_were_written
    a_ring_that_holds_nonsense_ends_in_a_reset
    a_queue_that_stays_full_is_told_of_once_until_packets_go_again
    a_large_buffer_has_several_descriptors
    packets_that_cannot_be_sent_are_dropped_and_counted
    who_does_not_poll_loses_the_queue
    removal_is_seen_and_frees_what_nobody_can_write
    the_link_is_told_and_what_is_counted_adds_up
    settings_outlive_resets
    a_link_is_negotiated_anew
}

fn open<F: Controller>(nic: &FakeNic) -> Result<Nic<F>, Error> {
    Nic::open(nic.device(), PortConfig::default(), manual())
}

fn statistic<F: Controller>(port: &Nic<F>, queue: &str, name: &str) -> u64 {
    port.statistics().iter().find(|s| s.queue == queue && s.name == name).map_or(u64::MAX, |s| s.value)
}

fn its_address_is_the_eeprom_s<F: Controller>() {
    let nic = FakeNic::new::<F>();
    assert_eq!(open::<F>(&nic).unwrap().mac().to_string(), "52:54:00:12:34:56");
    assert_eq!((nic.register(RAL0), nic.register(RAH0)), (0, 0), "it was reset when it was closed");
    // The second port.
    let status = nic.register(STATUS);
    nic.set(STATUS, status | 1 << 2);
    let device = nic.device();
    nic.inside().eeprom[2] = 0x5634;
    let port = Nic::<F>::open(device, PortConfig::default(), manual()).unwrap();
    // A reset takes the port's number with it here, so that it is the first again.
    assert_eq!(port.mac().to_string(), "52:54:00:12:34:56");
    drop(port);
    // A checksum that is wrong, and nothing loaded.
    nic.inside().eeprom[5] ^= 1;
    assert!(matches!(open::<F>(&nic), Err(Error::NoAddress { checksum: 0xbabb, .. })));
    nic.inside().eeprom[5] ^= 1;
    nic.inside().eeprom[..3].fill(0);
    assert!(matches!(open::<F>(&nic), Err(Error::NoAddress { .. })));
}

fn what_is_of_no_such_family_is_left_alone<F: Controller>() {
    let nic = FakeNic::new::<F>();
    nic.inside().vendor = [0xf4, 0x1a, 0x41, 0x10];
    let error = open::<F>(&nic).err().unwrap().to_string();
    assert_eq!(error, format!("by hand is not a device for this driver: it is 1af4:1041, and not {}", F::DEVICE));
    assert_eq!(nic.inside().resets, 1);
}

fn every_wait_ends<F: Controller>() {
    let nic = FakeNic::new::<F>();
    nic.inside().stuck_reset = true;
    let error = open::<F>(&nic).err().unwrap();
    assert!(
        matches!(error, Error::Core(wholebar_core::Error::NotReady { what: "end its reset", offset: CTRL, .. })),
        "{error}"
    );
    let nic = FakeNic::new::<F>();
    nic.inside().firmware = true;
    let error = open::<F>(&nic).err().unwrap();
    let what = if F::NAME == "igb" { "firmware's semaphore" } else { "give up its PHY to us" };
    assert!(error.to_string().contains(what), "{error}");
}

fn packets_are_taken_as_they_were_written<F: Controller>() {
    let rig = rig::<F>(small());
    let (mut rx, mut out) = (rig.port.rx(0, &rig.pool).unwrap(), Burst::new(8));
    assert_eq!(rig.nic.register(rig.nic.rx() + TAIL), 15);
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
    assert_eq!((rx.rx(&mut out), statistic(&rig.port, "rx0", "packets")), (0, 40));
    rig.nic.receive(&rig.device, index, &[3; 5], 3);
    index = (index + 1) % 16;
    // 2053 bytes are more than a packet may have, with an MTU of 1500.
    assert_eq!((rx.rx(&mut out), statistic(&rig.port, "rx0", "dropped_too_long")), (0, 1));
    rig.nic.receive(&rig.device, index, &[4; 60], 3 | 1 << 31);
    assert_eq!((rx.rx(&mut out), statistic(&rig.port, "rx0", "dropped_malformed")), (0, 1));
    drop(rx);
    assert_eq!((rig.pool.available(), rig.port.quarantined()), (BUFFERS, 0));
}

fn a_ring_that_holds_nonsense_ends_in_a_reset<F: Controller>() {
    let rig = rig::<F>(small());
    let (mut rx, mut tx, mut out) = (rig.port.rx(0, &rig.pool).unwrap(), rig.port.tx(0).unwrap(), Burst::new(8));
    out.push(rig.pool.get_len(60).unwrap()).unwrap();
    assert_eq!((tx.tx(&mut out), tx.in_flight()), (1, 1));
    rig.nic.write_back(&rig.device, rig.nic.rx(), 0, [0, 3 | 1025 << 32]);
    assert_eq!((rx.rx(&mut out), rx.state()), (0, QueueState::Resetting));
    let mut polls = 0;
    while rig.port.service().unwrap() || tx.state() != QueueState::Running || rx.state() != QueueState::Running {
        rx.rx(&mut out);
        tx.reclaim();
        polls += 1;
        assert!(polls < 100);
    }
    let events: Vec<_> = rig.port.events().try_iter().collect();
    let why = format!(
        "by hand: receive queue 0 {}; the device will be reset",
        Fault::Length { index: 0, length: 1025, room: 1024 }
    );
    assert!(events.contains(&Event::Device(DeviceEvent::Reset { why, lost: vec![] })), "{events:?}");
    assert_eq!((statistic(&rig.port, "tx0", "dropped_reset"), tx.in_flight()), (1, 0));
    // It goes on from the first descriptor.
    rig.nic.receive(&rig.device, 0, &[9; 60], 3);
    assert_eq!((rx.rx(&mut out), out.pop().unwrap().bytes()), (1, &[9; 60][..]));
    drop((rx, tx));
    assert_eq!((rig.pool.available(), rig.port.quarantined()), (BUFFERS, 0));
}

fn a_queue_that_stays_full_is_told_of_once_until_packets_go_again<F: Controller>() {
    let rig = rig_with::<F>(small(), Options { stall_timeout: Duration::ZERO, ..manual() });
    let (mut tx, mut burst) = (rig.port.tx(0).unwrap(), Burst::new(8));
    let stalls = || {
        rig.port.service().unwrap();
        rig.port.events().try_iter().filter(|event| matches!(event, Event::Stalled { queue: 0, .. })).count()
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
        let [_, word] = rig.nic.words(&rig.device, rig.nic.tx(), index);
        rig.nic.write_back(&rig.device, rig.nic.tx(), index, [0, word | 1 << 32]);
    }
    assert!(tx.tx(&mut burst) > 0);
    assert_eq!(stalls(), 0);
    for _ in 0..2 {
        fill(&mut burst);
        tx.tx(&mut burst);
    }
    assert_eq!((stalls(), tx.tx(&mut burst)), (0, 0));
    assert_eq!((stalls(), statistic(&rig.port, "", "tx_stalls")), (1, 2));
    burst.give_back();
}

fn a_large_buffer_has_several_descriptors<F: Controller>() {
    let rig = rig::<F>(small());
    let (mut tx, mut burst, at) = (rig.port.tx(0).unwrap(), Burst::new(8), rig.nic.tx());
    let large = Pool::new(rig.pool.arena().clone(), 1, 40_000, 64).unwrap();
    let mut packet = large.get_len(40_000).unwrap();
    packet.bytes_mut().fill(0);
    let offload = Offload { l2_len: 14, l3_len: 20, l4_len: 20, segment: 1400, ..Offload::default() };
    packet.set_offload(Some(offload));
    burst.push(packet).unwrap();
    assert_eq!((tx.tx(&mut burst), rig.nic.register(at + TAIL)), (1, 4), "a context, and three parts");
    let words: Vec<_> = (1..4).map(|i| rig.nic.words(&rig.device, at, i)).collect();
    assert_eq!([words[1][0] - words[0][0], words[2][0] - words[1][0]], [16384; 2]);
    // Bit 24 ends the packet.
    assert_eq!([0, 1, 2].map(|i| (words[i][1] & 0xffff, words[i][1] >> 24 & 1)), [(16384, 0), (16384, 0), (7232, 1)]);
}

fn packets_that_cannot_be_sent_are_dropped_and_counted<F: Controller>() {
    let rig = rig::<F>(PortConfig { offloads: Offloads::NONE, ..small() });
    let (mut tx, mut burst) = (rig.port.tx(0).unwrap(), Burst::new(8));
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
    assert_eq!((tx.tx(&mut burst), burst.len(), rig.nic.register(rig.nic.tx() + TAIL)), (5, 0, 0));
    let dropped = ["dropped_length", "dropped_segments", "dropped_offload", "dropped_arena"];
    assert_eq!(dropped.map(|name| statistic(&rig.port, "tx0", name)), [2, 1, 1, 1]);
    // A full ring keeps the rest.
    for _ in 0..3 {
        while burst.room() > 0 {
            burst.push(rig.pool.get_len(60).unwrap()).unwrap();
        }
        tx.tx(&mut burst);
    }
    assert_eq!((tx.in_flight(), burst.len(), statistic(&rig.port, "tx0", "full")), (15, 8, 2));
    burst.give_back();
    drop(tx);
    assert_eq!((rig.pool.available(), elsewhere.available()), (BUFFERS, 1));
}

fn who_does_not_poll_loses_the_queue<F: Controller>() {
    let rig = rig_with::<F>(small(), Options { stop_timeout: Duration::from_millis(100), ..manual() });
    let (rx, mut tx) = (rig.port.rx(0, &rig.pool).unwrap(), rig.port.tx(0).unwrap());
    rig.port.request_reset();
    tx.reclaim();
    assert_eq!(tx.state(), QueueState::Resetting);
    let error = rig.port.reset().unwrap_err();
    assert!(
        matches!(&error, Error::Core(wholebar_core::Error::Unresponsive { queues, .. }) if *queues == [0]),
        "{error}"
    );
    tx.reclaim();
    assert_eq!(tx.state(), QueueState::Running);
    drop(rx);
    assert_eq!((rig.port.quarantined(), rig.pool.available()), (15, BUFFERS - 15));
    // It can be had again.
    let rx = rig.port.rx(0, &rig.pool).unwrap();
    assert_eq!(rx.state(), QueueState::Running);
}

fn removal_is_seen_and_frees_what_nobody_can_write<F: Controller>() {
    let rig = rig::<F>(small());
    let (mut rx, mut tx, mut burst) = (rig.port.rx(0, &rig.pool).unwrap(), rig.port.tx(0).unwrap(), Burst::new(8));
    burst.push(rig.pool.get_len(60).unwrap()).unwrap();
    tx.tx(&mut burst);
    rig.nic.inside().gone = true;
    assert!(matches!(rig.port.service(), Err(Error::Core(wholebar_core::Error::Gone { .. }))));
    rx.rx(&mut burst);
    tx.reclaim();
    assert_eq!((rx.state(), tx.state()), (QueueState::Gone, QueueState::Gone));
    assert!(matches!(rig.port.reset(), Err(Error::Core(wholebar_core::Error::Gone { .. }))) && !rig.port.link().up);
    assert!(matches!(rig.port.events().try_iter().last(), Some(Event::Device(DeviceEvent::Ended { .. }))));
    drop((rx, tx));
    assert_eq!((rig.pool.available(), rig.port.quarantined()), (BUFFERS, 0));
}

fn the_link_is_told_and_what_is_counted_adds_up<F: Controller>() {
    let rig = rig::<F>(small());
    rig.nic.interrupt(&rig.device, 0);
    assert!(rig.port.wakeup().wait(Some(Duration::from_secs(60))).unwrap().is_some());
    rig.port.service().unwrap();
    assert_eq!(rig.port.events().try_recv(), Ok(Event::Link(rig.port.link())));
    for n in 1..=3 {
        rig.nic.set(0x4074, n);
        rig.nic.set(0x4088, u32::MAX);
        rig.nic.set(0x408c, 1);
        rig.port.service().unwrap();
        rig.nic.set(0x408c, 0);
        rig.nic.set(0x4088, 0);
    }
    assert_eq!(statistic(&rig.port, "", "rx_packets"), 6);
    assert_eq!(statistic(&rig.port, "", "rx_bytes"), 3 * ((1 << 32) | u64::from(u32::MAX)));
    rig.nic.set(STATUS, 0x80);
    rig.port.service().unwrap();
    assert!(matches!(rig.port.events().try_recv(), Ok(Event::Link(link)) if !link.up));
    assert_eq!((statistic(&rig.port, "", "link_changes"), statistic(&rig.port, "", "resets")), (2, 0));
    rig.port.reset().unwrap();
    assert_eq!(statistic(&rig.port, "", "resets"), 1);
}

fn settings_outlive_resets<F: Controller>() {
    let rig = rig::<F>(small());
    let own = Mac([2, 0, 0, 0, 0, 7]);
    rig.port.set_mac(own).unwrap();
    rig.port.set_vlan(33, true).unwrap();
    rig.port.set_promiscuous(true).unwrap();
    let all = || {
        [CTRL, 0x100, 0x400]
            .into_iter()
            .chain((0x5000..0x5b00).step_by(4))
            .map(|r| rig.nic.register(r))
            .collect::<Vec<_>>()
    };
    let before = all();
    rig.port.reset().unwrap();
    assert_eq!((all() == before, rig.nic.register(RAL0), rig.nic.register(0x5604)), (true, 2, 2));
    assert!(rig.port.set_vlan(0, true).is_err() && rig.port.set_vlan(4095, true).is_err());
    let device = rig.port.device().clone();
    assert!(Nic::<F>::open(device, PortConfig { mtu: Some(67), ..small() }, Options::default()).is_err());
    assert_eq!(rig.device.name(), rig.port.name());
}

/// MDIC: a write to the PHY's control register of autonegotiation, and of its beginning; the card has done it.
fn a_link_is_negotiated_anew<F: Controller>() {
    const MDIC: u64 = 0x20;
    let rig = rig::<F>(small());
    rig.nic.set(MDIC, 0);
    rig.port.renegotiate().unwrap();
    assert_eq!(rig.nic.register(MDIC), 1 << 28 | 1 << 26 | 1 << 21 | 0x1200);
    rig.nic.inside().gone = true;
    assert!(rig.port.renegotiate().is_err_and(|error| error.to_string().contains("is gone")));
}

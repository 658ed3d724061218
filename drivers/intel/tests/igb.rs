//! The 82576's own on a card that is played by hand: descriptors, vectors, queues that stay enabled.

#![cfg(not(miri))]

mod common;

use common::*;
use std::time::Duration;
use wholebar_core::irq::Coalescing;
use wholebar_core::mem::{L4, Offload};
use wholebar_core::net::{Burst, Port, PortConfig, QueueState};
use wholebar_core::reactor::Armed;
use wholebar_intel::igb::{I82576, Igb};

#[test]
fn only_the_copper_phy_s_link_is_driven() {
    let nic = FakeNic::new::<I82576>();
    nic.set(CTRL_EXT, 3 << 22);
    let opened = Igb::open(nic.device(), PortConfig::default(), manual());
    assert!(opened.is_err_and(|e| e.to_string().contains("LINK_MODE is 3")));
    assert_eq!(nic.inside().resets, 1);
}

#[test]
fn descriptors_say_what_is_to_be_done() {
    let rig = rig::<I82576>(small());
    let (mut tx, mut burst) = (rig.port.tx(0).unwrap(), Burst::new(8));
    let mut packet = rig.pool.get_len(100).unwrap();
    packet.append(rig.pool.get_len(0).unwrap());
    packet.append(rig.pool.get_len(1000).unwrap());
    packet.set_vlan(Some(0x6064));
    let offload = Offload { l2_len: 14, l3_len: 20, l3: true, l4: Some(L4::Udp), ..Offload::default() };
    packet.set_offload(Some(offload));
    burst.push(packet).unwrap();
    burst.push(rig.pool.get_len(60).unwrap()).unwrap();
    assert_eq!((tx.tx(&mut burst), rig.nic.register(rig.nic.tx() + TAIL)), (2, 4));
    let words = |i| rig.nic.words(&rig.device, rig.nic.tx(), i);
    assert_eq!(words(0), [0x6064 << 16 | 14 << 9 | 20, 0x2020_0400], "the context");
    assert_eq!(words(1)[1], 0x6230_0064 | (1100 << 14 | 0x300) << 32);
    assert_eq!(words(2)[1], 0x6330_03e8 | (1100 << 14 | 0x300) << 32);
    assert_eq!(words(3)[1], 0x2b30_003c | (60 << 14) << 32, "the last of a burst reports");
    assert_eq!(tx.in_flight(), 2);
    // DD on one that was not to report says nothing.
    rig.nic.write_back(&rig.device, rig.nic.tx(), 2, [0, words(2)[1] | 1 << 32]);
    tx.reclaim();
    assert_eq!(tx.in_flight(), 2);
    rig.nic.write_back(&rig.device, rig.nic.tx(), 3, [0, words(3)[1] | 1 << 32]);
    tx.reclaim();
    assert_eq!((tx.in_flight(), rig.pool.available()), (0, BUFFERS));
    // The device has the context still.
    for (tag, tail) in [(0x6064, 5), (0x6065, 7)] {
        let mut packet = rig.pool.get_len(60).unwrap();
        packet.set_vlan(Some(tag));
        packet.set_offload(Some(offload));
        burst.push(packet).unwrap();
        tx.tx(&mut burst);
        assert_eq!(rig.nic.register(rig.nic.tx() + TAIL), tail);
    }
}

#[test]
fn a_queue_that_cannot_be_disabled_keeps_its_memory_from_others() {
    let rig = rig::<I82576>(small());
    let rx = rig.port.rx(0, &rig.pool).unwrap();
    rig.nic.inside().stuck_queues = true;
    drop(rx);
    assert_eq!((rig.port.quarantined(), rig.pool.available()), (15, BUFFERS - 15));
    // A reset stops it, and then it can be had again.
    let resets = rig.nic.inside().resets;
    let rx = rig.port.rx(0, &rig.pool).unwrap();
    assert_eq!((rx.state(), rig.nic.inside().resets), (QueueState::Running, resets + 1));
}

#[test]
fn queues_are_armed_one_by_one() {
    let rig = rig::<I82576>(PortConfig { rx_queues: 2, rx_interrupts: true, ..small() });
    let (mut first, mut second) = (rig.port.rx(0, &rig.pool).unwrap(), rig.port.rx(1, &rig.pool).unwrap());
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
    let rig = rig::<I82576>(PortConfig { rx_queues: 2, rx_interrupts: true, ..small() });
    let eitr = || [0x1680, 0x1684, 0x1688, 0x168c].map(|register| rig.nic.register(register));
    let micros = Duration::from_micros;
    assert_eq!((rig.port.coalescing(), eitr()), (Some(Coalescing::after(micros(0))), [0; 4]));
    let wanted = Coalescing { events: 8, time: Duration::from_nanos(49_001) };
    assert_eq!(rig.port.set_coalescing(wanted).unwrap(), Coalescing::after(micros(50)));
    assert_eq!(eitr(), [0, 50 << 2, 50 << 2, 0]);
    rig.port.reset().unwrap();
    assert_eq!((rig.port.coalescing(), eitr()), (Some(Coalescing::after(micros(50))), [0, 50 << 2, 50 << 2, 0]));
    let error = rig.port.set_coalescing(Coalescing::after(micros(8192))).unwrap_err();
    assert!(error.to_string().ends_with("held back for 8191 us at most"), "{error}");
    rig.port.set_coalescing(Coalescing::after(micros(8191))).unwrap();
    assert_eq!(eitr()[1], 0x7ffc);
    rig.port.set_coalescing(Coalescing::default()).unwrap();
    assert_eq!(eitr(), [0; 4]);
    // Without vectors of their own there is nothing to hold back.
    let rig = self::rig::<I82576>(small());
    assert_eq!(rig.port.coalescing(), None);
    assert!(rig.port.set_coalescing(wanted).is_err());
}

/// Registers of chapter 8.16, at their places.
#[test]
fn packets_are_stamped_by_the_device_s_clock() {
    const SECOND: u64 = 1_000_000_000;
    let rig = rig::<I82576>(small());
    let set64 = |register: u64, nanos: u64| {
        rig.nic.set(register, (nanos << 19) as u32);
        rig.nic.set(register + 4, (nanos << 19 >> 32) as u32);
    };
    let time = |nanos| Duration::from_nanos(nanos);
    assert!(rig.port.timesync_read_time().is_err_and(|e| e.to_string().contains("timesync_enable first")));
    set64(0xb600, 7 * SECOND);
    rig.port.timesync_enable().unwrap();
    let on = |expected: [u32; 5]| {
        let registers = [0xb608, 0xb620, 0xb614, 0x5cbc, 0x5f50].map(|register| rig.nic.register(register));
        assert_eq!(registers, expected, "TIMINCA, TSYNCRXCTL, TSYNCTXCTL, ETQF(3), TSYNCRXCFG");
    };
    on([0x0180_0000, 0x1a, 0x10, 0x4400_88f7, 0]);
    assert_eq!(rig.port.timesync_read_time().unwrap(), time(0));
    set64(0xb600, 7 * SECOND + 1500);
    assert_eq!(rig.port.timesync_read_time().unwrap(), time(1500));
    // Received: a packet with the bit, while there is a stamp; one without it.
    let (mut rx, mut burst) = (rig.port.rx(0, &rig.pool).unwrap(), Burst::new(4));
    set64(0xb624, 7 * SECOND + 900);
    rig.nic.set(0xb620, 0x1b);
    rig.nic.receive(&rig.device, 0, &[7; 60], 1 << 16 | 3);
    rig.nic.receive(&rig.device, 1, &[7; 60], 3);
    rx.rx(&mut burst);
    assert_eq!(burst.iter().map(|packet| packet.timestamp()).collect::<Vec<_>>(), [Some(900), None]);
    burst.give_back();
    // Sent.
    let mut tx = rig.port.tx(0).unwrap();
    let mut packet = rig.pool.get_len(60).unwrap();
    packet.set_timesync(true);
    burst.push(packet).unwrap();
    tx.tx(&mut burst);
    let words = rig.nic.words(&rig.device, rig.nic.tx(), 0);
    assert_eq!(words[1], 0x2b38_003c | (60 << 14) << 32, "no context, and bit 19");
    assert_eq!(rig.port.timesync_read_tx_timestamp().unwrap(), None);
    set64(0xb618, 7 * SECOND + 2500);
    rig.nic.set(0xb614, 0x11);
    assert_eq!(rig.port.timesync_read_tx_timestamp().unwrap(), Some(time(2500)));
    // Set, moved, faster; and through a reset, which takes the clock back to where it began.
    rig.port.timesync_write_time(time(40 * SECOND)).unwrap();
    rig.port.timesync_adjust_time(-2_000_000_000).unwrap();
    assert_eq!(rig.port.timesync_read_time().unwrap(), time(38 * SECOND));
    rig.port.timesync_adjust_freq(500_000_000).unwrap();
    assert_eq!(rig.nic.register(0xb608), 0x01c0_0000);
    assert!(rig.port.timesync_adjust_freq(1_000_000_000).is_err());
    drop((rx, tx));
    rig.port.reset().unwrap();
    on([0x01c0_0000, 0x1a, 0x10, 0x4400_88f7, 0]);
    let after = rig.port.timesync_read_time().unwrap();
    assert!(after >= time(38 * SECOND) && after < time(338 * SECOND), "{after:?}");
    rig.port.timesync_disable().unwrap();
    on([0x01c0_0000, 0, 0, 0, 0]);
    assert!(rig.port.timesync_read_tx_timestamp().is_err());
}

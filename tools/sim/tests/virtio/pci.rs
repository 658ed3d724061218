//! The function: capabilities, common configuration, status, features, interrupts, and drivers that break rules.

use crate::net::{Nic, packet};
use crate::rig::*;
use std::os::fd::AsFd;
use wholebar_core::PageSize;
use wholebar_core::pci::{CONFIG, Irq, IrqAction, PciDevice, RegionCap};
use wholebar_sim::virtio::net::NetParams;

fn config(rig: &Rig, at: u64) -> u8 {
    let mut byte = [0];
    rig.device.read(CONFIG, at, &mut byte).unwrap();
    byte[0]
}

fn config32(rig: &Rig, at: u64) -> u32 {
    let mut bytes = [0; 4];
    rig.device.read(CONFIG, at, &mut bytes).unwrap();
    u32::from_le_bytes(bytes)
}

/// The vendor capabilities: type, BAR, offset, length, and where in configuration space.
fn structures(rig: &Rig) -> Vec<(u8, u8, u32, u32, u64)> {
    let mut found = Vec::new();
    let mut at = u64::from(config(rig, 0x34));
    while at != 0 {
        if config(rig, at) == 0x09 {
            assert!(config(rig, at + 2) >= 16);
            found.push((config(rig, at + 3), config(rig, at + 4), config32(rig, at + 8), config32(rig, at + 12), at));
        }
        at = u64::from(config(rig, at + 1));
    }
    found
}

#[test]
fn it_is_a_modern_function_with_all_structures() {
    let rig = Rig::off("queues=4");
    assert_eq!((config32(&rig, 0), config(&rig, 8)), (0x1041_1af4, 1));
    assert_eq!(config32(&rig, 8) >> 16, 0x0200);
    let found = structures(&rig);
    let kinds: Vec<_> = found.iter().map(|s| s.0).collect();
    assert_eq!(kinds, [1, 2, 3, 4, 5]);
    assert_eq!(found[0].1..=found[0].1, 0..=0);
    // The notifications hold every queue: pairs and control.
    let (_, bar, _, len, at) = found[1];
    assert_eq!((bar, config32(&rig, at + 16), rig.get16(0x12)), (2, 4, 9));
    assert!(len >= 8 * 4 + 2);
    let info = rig.device.region(2).unwrap();
    assert!(info.mappable && info.caps.contains(&RegionCap::MsixMappable));
    assert!(!rig.device.region(0).unwrap().mappable);
}

#[test]
fn its_link_knows_its_own_speed() {
    let rig = Rig::off("");
    let pcie = (0..64).map(|n| 0x40 + 4 * n).find(|at| config(&rig, *at) == 0x10).unwrap();
    // Capabilities and status, and of capabilities 2 the vector of speeds (PCI Express Base 6.0, 7.5.3).
    let (capable, current) = (config32(&rig, pcie + 0x0c) & 15, config32(&rig, pcie + 0x10) >> 16 & 15);
    let speeds = config32(&rig, pcie + 0x2c) >> 1 & 0x7f;
    assert_eq!((capable, current, config32(&rig, pcie + 0x30) & 15), (3, 3, 3));
    assert_eq!(speeds.count_ones(), speeds.trailing_ones(), "all up to the fastest");
    assert_eq!(speeds.count_ones(), capable);
}

#[test]
fn table_and_notifications_share_a_large_page_unless_asked_otherwise() {
    let table = |params: &str| {
        let rig = Rig::off(params);
        assert_eq!(rig.device.page_size(), PageSize::K64);
        // MSI-X: id 11h, table size, table and PBA.
        let at = (0..64).map(|n| 0x40 + 4 * n).find(|at| config(&rig, *at) == 0x11).unwrap();
        (config32(&rig, at + 4), config32(&rig, at + 8), config32(&rig, at) >> 16 & 0x7ff)
    };
    assert_eq!(table("page=64k"), (0x2002, 0x3002, 3));
    assert_eq!(table("page=64k,msix=own,vectors=7"), (4, 0x1004, 6));
}

#[test]
fn fields_have_their_widths_and_nothing_else() {
    let rig = Rig::off("");
    for (at, width) in [(0x00, 4), (0x10, 2), (0x14, 1), (0x15, 1), (0x20, 4), (0x24, 4), (0x1000, 1), (0x2000, 4)] {
        for len in [1usize, 2, 3, 4, 8, 16] {
            let fits = len == width || at >= 0x2000 && len <= 4 && len != 3;
            assert_eq!(rig.device.read(0, at, &mut vec![0; len]).is_ok(), fits, "{at:x} {len}");
            if at < 0x1000 {
                assert_eq!(rig.device.write(0, at, &vec![0; len]).is_ok(), fits, "{at:x} {len}");
            }
        }
    }
    for at in [0x01, 0x11, 0x21, 0x3b, 0x2001] {
        assert!(rig.device.read(0, at, &mut [0; 2]).is_err(), "{at:x}");
    }
    // Beyond the structures there is nothing.
    let mut nothing = [1; 8];
    rig.device.read(0, 0x3000, &mut nothing).unwrap();
    assert_eq!(nothing, [0; 8]);
}

#[test]
fn the_window_in_configuration_space_reaches_the_structures() {
    let rig = Rig::off("");
    let at = structures(&rig)[4].4;
    let window = |offset: u32, len: u32| {
        rig.device.write(CONFIG, at + 4, &[0]).unwrap();
        rig.device.write(CONFIG, at + 8, &offset.to_le_bytes()).unwrap();
        rig.device.write(CONFIG, at + 12, &len.to_le_bytes()).unwrap();
    };
    window(0x12, 2);
    assert_eq!(config32(&rig, at + 16), 3);
    window(0x14, 1);
    rig.device.write(CONFIG, at + 16, &[1]).unwrap();
    assert_eq!(rig.get8(STATUS), 1);
    // What makes no sense does nothing.
    window(0xffff_fff0, 4);
    let _ = config32(&rig, at + 16);
    window(0, 9);
    let _ = config32(&rig, at + 16);
}

#[test]
fn features_are_taken_together_or_refused() {
    let mut rig = Rig::off("queues=2");
    let offered = rig.offered();
    for bit in [0, 1, 3, 5, 7, 8, 11, 12, 15, 16, 17, 18, 19, 20, 22, 23, 28, 29, 32, 33, 34, 35, 40, 57, 60, 63] {
        assert!(offered >> bit & 1 != 0, "{bit}");
    }
    assert_eq!(rig.agree(offered), 11);
    let v1 = VERSION_1;
    for (bad, why) in [
        (0, "no version 1"),
        (v1 | 1 << 50, "not offered"),
        (v1 | 1 << 18, "receive modes without a control queue"),
        (v1 | 1 << 22, "multiqueue without a control queue"),
        (v1 | 1 << 7, "segments received without checksums"),
        (v1 | 1 << 11, "segments sent without checksums"),
        (v1 | 1 << 13 | 1, "congestion bits without segments"),
    ] {
        assert_eq!(rig.agree(bad), 3, "{why}");
    }
    assert_eq!(Rig::off("ring=packed").agree(v1), 3);
    assert_eq!(Rig::off("ring=packed").agree(v1 | PACKED), 11);
    assert_eq!(Rig::off("ring=split").offered() & PACKED, 0);
    assert_eq!(
        Rig::off("offloads=0,mergeable=0,control=0").offered() & 0xffff_ffff,
        1 << 3 | 1 << 5 | 1 << 16 | 3 << 28
    );
    // Once agreed on, they stay.
    let mut rig = Rig::off("");
    rig.agree(v1);
    rig.set32(0x0c, 0xffff_ffff);
    assert_eq!(rig.get32(0x0c), 1);
    assert_eq!(rig.get8(STATUS), 11);
}

#[test]
fn reset_forgets_queues_and_features() {
    let mut nic = Nic::new("", IN_ORDER, 8);
    nic.rig.set8(STATUS, 0);
    assert_eq!(nic.rig.get8(STATUS), 0);
    nic.rig.set16(0x16, 1);
    assert_eq!((nic.rig.get16(0x18), nic.rig.get16(0x1c), nic.rig.get32(0x20)), (256, 0, 0));
    let kept = nic.send(&[0; 12], &packet(60, 0));
    nic.rig.settle();
    assert_eq!(nic.tx.take(), None);
    // A queue that isn't there has size 0.
    nic.rig.set16(0x16, 3);
    assert_eq!(nic.rig.get16(0x18), 0);
    // By PCI Express: initiate function-level reset.
    let pcie = (0..64).map(|n| 0x40 + 4 * n).find(|at| config(&nic.rig, *at) == 0x10).unwrap();
    nic.rig.set8(STATUS, 1);
    nic.rig.device.write(CONFIG, pcie + 8, &0x8000u16.to_le_bytes()).unwrap();
    assert_eq!(nic.rig.get8(STATUS), 0);
    drop(kept);
}

#[test]
fn one_queue_is_reset_alone() {
    for layout in [0, PACKED] {
        let mut nic = Nic::new("", layout | RING_RESET, 8);
        let buffer = nic.buffer(128);
        nic.rig.set16(0x16, 1);
        nic.rig.set16(0x3a, 1);
        assert_eq!((nic.rig.get16(0x3a), nic.rig.get16(0x1c), nic.rig.get16(0x18)), (0, 0, 256));
        let lost = nic.send(&[0; 12], &packet(60, 0));
        nic.rig.settle();
        assert_eq!((nic.tx.take(), nic.rx.take()), (None, None));
        nic.tx = nic.rig.queue(1, 4);
        let kept = nic.send(&[0; 12], &packet(60, 0));
        nic.rig.settle();
        assert_eq!((nic.tx.take(), nic.rx.take()), (Some((0, 0)), Some((0, 72))));
        drop((buffer, lost, kept));
    }
}

#[test]
fn nothing_is_done_without_bus_mastering_or_before_driver_ok() {
    let mut rig = Rig::off("");
    rig.agree(VERSION_1);
    let (rx, tx) = (rig.queue(0, 8), rig.queue(1, 8));
    let mut nic = Nic { rig, rx, tx };
    let kept = nic.send(&[0; 12], &packet(60, 0));
    nic.rig.settle();
    assert_eq!(nic.tx.take(), None);
    nic.rig.device.write(CONFIG, 4, &2u16.to_le_bytes()).unwrap();
    nic.rig.ok();
    nic.rig.settle();
    assert_eq!(nic.tx.take(), None);
    nic.rig.device.write(CONFIG, 4, &6u16.to_le_bytes()).unwrap();
    nic.rig.settle();
    assert_eq!(nic.tx.take(), Some((0, 0)));
    drop(kept);
}

/// An eventfd on a vector, and how often it was signalled since it was looked at.
struct Event(std::os::fd::OwnedFd);

impl Event {
    fn on(rig: &Rig, vector: u32) -> Self {
        let fd = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
        rig.device.set_irqs(Irq::Msix, vector, IrqAction::Fds(&[Some(fd.as_fd())])).unwrap();
        Self(fd)
    }

    fn count(&self) -> u64 {
        let mut count = [0; 8];
        rustix::io::read(&self.0, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
    }
}

#[test]
#[cfg_attr(miri, ignore = "eventfds")]
fn interrupts_come_where_they_are_asked_for() {
    for layout in [0, PACKED, EVENT_IDX, PACKED | EVENT_IDX] {
        let mut rig = Rig::net("", layout | VERSION_1);
        let events: Vec<_> = (0..3).map(|v| Event::on(&rig, v)).collect();
        rig.set16(0x10, 0);
        assert_eq!(rig.get16(0x10), 0);
        rig.set16(0x10, 99);
        assert_eq!(rig.get16(0x10), 0xffff, "there is no such vector");
        let rx = rig.queue(0, 8);
        rig.set16(0x16, 1);
        rig.set16(0x1a, 2);
        assert_eq!(rig.get16(0x1a), 2);
        let tx = rig.queue(1, 8);
        rig.ok();
        let mut nic = Nic { rig, rx, tx };
        let send = |nic: &mut Nic| {
            let kept = nic.send(&[0; 12], &packet(60, 0));
            nic.rig.settle();
            assert!(nic.tx.take().is_some());
            drop(kept);
            events[2].count()
        };
        if layout & EVENT_IDX == 0 {
            nic.tx.interrupt_flags(0);
            assert_eq!((send(&mut nic), send(&mut nic)), (1, 1));
            nic.tx.interrupt_flags(1);
            assert_eq!((send(&mut nic), send(&mut nic)), (0, 0));
            nic.tx.interrupt_flags(0);
            assert_eq!(send(&mut nic), 1);
        } else {
            // As the third is used, and not before; then after a lap.
            nic.tx.interrupt_flags(2);
            let at = |nic: &Nic, ahead: u16| match nic.tx.packed {
                true => nic.tx.forward(nic.tx.used, ahead),
                false => nic.tx.used.wrapping_add(ahead),
            };
            for _ in 0..20 {
                nic.tx.interrupt_at(at(&nic, 2));
                assert_eq!([send(&mut nic), send(&mut nic), send(&mut nic), send(&mut nic)], [0, 0, 1, 0]);
            }
        }
        assert_eq!((events[0].count(), events[1].count()), (0, 0));
        // A rule broken is told by the vector for changes.
        nic.rig.set16(0x10, 1);
        nic.tx.add(&[(0, 100, true)]);
        nic.rig.settle();
        assert!(nic.rig.needs_reset());
        assert_eq!((events[1].count(), events[2].count()), (1, 0));
        rig = nic.rig;
        assert_eq!(rig.get8(0x1000), 2);
        assert_eq!(rig.get8(0x1000), 0, "reading clears it");
    }
}

#[test]
fn the_device_says_whether_it_wants_to_be_notified() {
    for (params, layout, at, value) in [
        ("", 0, 0, 0),
        ("notify=0", 0, 0, 1),
        ("", PACKED, 2, 0),
        ("", PACKED | EVENT_IDX, 2, 2),
        ("notify=0", PACKED, 2, 1),
        // The next index that it wants to hear of; or one that was passed already.
        ("", EVENT_IDX, 4 + 8 * 8, 3),
        ("notify=0", EVENT_IDX, 4 + 8 * 8, 2),
        ("", PACKED | EVENT_IDX, 0, 3 | 1 << 15),
    ] {
        let mut nic = Nic::new(params, layout, 8);
        let kept: Vec<_> = (0..3).map(|i| nic.send(&[0; 12], &packet(60, i))).collect();
        nic.rig.settle();
        assert_eq!(Queue::get16(&nic.tx.device, at), value, "{params} {layout:x}");
        drop(kept);
    }
}

#[test]
fn who_breaks_a_rule_needs_a_reset() {
    type Break = fn(&mut Nic);
    let both: &[(&str, Break)] = &[
        ("memory that is not there", |c| {
            c.tx.add(&[(1 << 50, 100, false)]);
        }),
        ("memory that ends too early", |c| {
            let end = c.rig.dma.iova().0 + c.rig.arena.len();
            c.tx.add(&[(end - 50, 100, false)]);
        }),
        ("the end of all addresses", |c| {
            c.tx.add(&[(u64::MAX, 1000, false)]);
        }),
        ("a packet to send in a buffer to be written", |c| {
            let at = c.rig.at(&c.rig.memory(100));
            c.tx.add(&[(at, 100, true)]);
        }),
        ("shorter than its header", |c| {
            let at = c.rig.at(&c.rig.memory(100));
            c.tx.add(&[(at, 11, false)]);
        }),
        ("readable behind writable", |c| {
            let at = c.rig.at(&c.rig.memory(100));
            c.tx.add(&[(at, 50, true), (at, 50, false)]);
        }),
        ("indirect, though that was not agreed on", |c| {
            let at = c.rig.at(&c.rig.memory(64));
            c.tx.add_raw(at, 16, TABLE);
        }),
    ];
    let indirect: &[(&str, Break)] = &[
        ("an indirect table of odd length", |c| {
            let at = c.rig.at(&c.rig.memory(64));
            c.tx.add_raw(at, 20, TABLE);
        }),
        ("an empty indirect table", |c| {
            let at = c.rig.at(&c.rig.memory(64));
            c.tx.add_raw(at, 0, TABLE);
        }),
        ("an indirect table longer than the device's largest queue", |c| {
            let at = c.rig.at(&c.rig.memory(16 * 257));
            c.tx.add_raw(at, 16 * 257, TABLE);
        }),
        ("an indirect table nowhere", |c| {
            c.tx.add_raw(1 << 60, 16, TABLE);
        }),
        ("an indirect table that is not aligned", |c| {
            let at = c.rig.at(&c.rig.memory(64));
            c.tx.add_raw(at + 4, 16, TABLE);
        }),
        ("indirect and next together", |c| {
            let at = c.rig.at(&c.rig.memory(64));
            c.tx.add_raw(at, 16, TABLE | NEXT);
        }),
    ];
    let split: &[(&str, Break)] = &[
        ("a head outside of the table", |c| c.tx.offer(8)),
        ("next outside of the table", |c| {
            c.tx.desc(0, 0, 0, NEXT, 99);
            c.tx.offer(0);
        }),
        ("a loop", |c| {
            let at = c.rig.at(&c.rig.memory(64));
            c.tx.desc(0, at, 8, NEXT, 1);
            c.tx.desc(1, at, 8, NEXT, 0);
            c.tx.offer(0);
        }),
        ("an index that runs ahead", |c| Queue::set16(&c.tx.driver, 2, 9)),
        ("an indirect table in an indirect table", |c| {
            let at = c.rig.at(&c.rig.memory(64));
            c.tx.add_indirect(&c.rig, &[(at, 16, false)]).1.write(12, &TABLE.to_le_bytes()).unwrap();
        }),
    ];
    let packed: &[(&str, Break)] = &[
        ("readable behind two writable ones, in an indirect table", |c| {
            let at = c.rig.at(&c.rig.memory(100));
            c.tx.add_indirect(&c.rig, &[(at, 12, true), (at, 50, true), (at, 50, false)]);
        }),
        ("a chain into what is not available", |c| {
            c.tx.add_raw(0, 0, NEXT);
        }),
        ("a chain longer than the queue", |c| {
            let at = c.rig.at(&c.rig.memory(64));
            for _ in 0..8 {
                c.tx.add_raw(at, 8, NEXT);
            }
        }),
    ];
    for (layout, more) in [(0, split), (PACKED, packed)] {
        let tables = indirect.iter().map(|c| (INDIRECT, c));
        let nested = more.iter().map(|c| (if c.0.contains("indirect") { INDIRECT } else { 0 }, c));
        for (features, (what, breaks)) in both.iter().map(|c| (0, c)).chain(tables).chain(nested) {
            let mut nic = Nic::new("", layout | features, 8);
            breaks(&mut nic);
            nic.rig.settle();
            assert!(nic.rig.needs_reset(), "{what}, {layout:x}");
            assert_eq!(nic.tx.take(), None, "{what}");
            // Which helps.
            nic.rig.agree(VERSION_1 | layout);
            nic.tx = nic.rig.queue(1, 8);
            nic.rig.ok();
            let kept = nic.send(&[0; 12], &packet(60, 0));
            nic.rig.settle();
            assert!(nic.tx.take().is_some(), "{what}");
            drop(kept);
        }
    }
}

#[test]
fn queues_that_make_no_sense_are_refused() {
    type Spoil = fn(&mut Queue);
    let split: &[(&str, Spoil)] =
        &[("no power of two", |q| q.size = 7), ("empty", |q| q.size = 0), ("large", |q| q.size = 512)];
    let packed: &[(&str, Spoil)] = &[("empty", |q| q.size = 0), ("large", |q| q.size = 257)];
    for (layout, cases) in [(0, split), (PACKED, packed)] {
        for (what, spoil) in cases {
            let rig = Rig::net("", layout | VERSION_1);
            let mut queue = Queue::new(&rig, 8, layout);
            spoil(&mut queue);
            rig.enable(0, &queue);
            assert!(rig.needs_reset(), "{what}, {layout:x}");
            assert_eq!(rig.get16(0x1c), 0);
        }
    }
    // Packed ones need no power of two.
    let rig = Rig::net("", PACKED | VERSION_1);
    rig.queue(0, 7);
    assert!(!rig.needs_reset());
    // Areas that are not aligned, and a queue too early.
    for (at, by) in [(0x20, 8), (0x28, 1), (0x30, 2)] {
        let rig = Rig::net("", VERSION_1);
        let queue = Queue::new(&rig, 8, 0);
        rig.set16(0x16, 0);
        rig.set16(0x18, 8);
        for (to, area) in [(0x20, &queue.desc), (0x28, &queue.driver), (0x30, &queue.device)] {
            rig.set32(to, rig.at(area) as u32 + if to == at { by } else { 0 });
        }
        rig.set16(0x1c, 1);
        assert!(rig.needs_reset(), "{at:x}");
    }
    let rig = Rig::off("");
    rig.queue(0, 8);
    assert!(rig.needs_reset());
    let rig = Rig::off("");
    rig.set8(STATUS, 7);
    assert!(rig.needs_reset(), "DRIVER_OK without FEATURES_OK");
}

#[test]
fn parameters_that_make_no_sense_are_refused() {
    for text in [
        "queues=0",
        "queues=65",
        "wire=string",
        "wire=pair:",
        "mac=1",
        "mac=01:00:00:00:00:00",
        "mac=00:00:00:00:00:00",
        "mac=02:00:00:00:00:00:00",
        "mtu=67",
        "mtu=65522",
        "offloads=2",
        "full=maybe",
        "speed=0",
        "loss=1",
        "loss=2/1",
        "reorder=1/0",
        "delay=1000001",
        "entries=3",
        "entries=65536",
        "ring=none",
        "stride=1",
        "stride=3",
        "msix=bar0",
        "vectors=0",
        "vectors=257",
        "page=1k",
        "queues=2,control=0",
        "colour=red",
        "entries=8,entries=8",
    ] {
        assert!(NetParams::parse(text).is_err(), "{text}");
    }
    let all = "queues=64,wire=pair:x,mac=02:00:00:00:00:01,mtu=9000,offloads=0,mergeable=0,control=1,full=wait,speed=1,\
               loss=1/10,reorder=1/10,delay=5,seed=3,entries=1024,ring=packed,indirect=0,event=0,inorder=0,notify=0,stride=32,\
               msix=own,vectors=256,page=64k";
    NetParams::parse(all).unwrap();
}

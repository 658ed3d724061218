//! The NVMe model as a PCI function and a state machine: registers, reset, shutdown, doorbells.

mod common;

use common::{CC, CSTS, Cmd, Rig, pair};
use std::sync::Arc;
use wholebar_core::PageSize;
use wholebar_core::Work;
use wholebar_core::bar::{MapPolicy, layout, plan};
use wholebar_core::irq::Interrupts;
use wholebar_core::model::InProcess;
use wholebar_core::pci::{CONFIG, Config, Irq, Isolation, PciDevice};
use wholebar_sim::nvme::{Nvme, NvmeParams};

/// What CC says where all is well: 64- and 16-byte entries, enabled.
const ENABLE: u32 = 0x0046_0001;

#[test]
fn capabilities_are_what_was_asked_for() {
    let rig = Rig::off("entries=256,dstrd=2,mps=4k-16k,to=7");
    let cap = rig.read64(0);
    assert_eq!(cap & 0xffff, 255, "MQES");
    assert_eq!(cap >> 16 & 1, 1, "CQR");
    assert_eq!(cap >> 24 & 0xff, 7, "TO");
    assert_eq!(cap >> 32 & 15, 2, "DSTRD");
    assert_eq!(cap >> 37 & 0xff, 1, "CSS");
    assert_eq!((cap >> 48 & 15, cap >> 52 & 15), (0, 2), "MPSMIN, MPSMAX");
    assert_eq!(rig.read32(8), 0x0002_0000, "VS");
    assert_eq!(rig.read32(CSTS), 0);
}

#[test]
fn configuration_space_is_that_of_an_nvme_controller() {
    for (params, bir, table, pba) in [("", 0, 0x2000, 0x3000), ("msix=own", 4, 0, 0x1000)] {
        let rig = Rig::off(params);
        let config = Config::of(rig.device.as_ref()).unwrap();
        assert_eq!((config.vendor(), config.device()), (0xfff0, 1));
        let class = config.class();
        assert_eq!((class.base, class.sub, class.interface), (1, 8, 2));
        let msix = config.msix().unwrap().expect("MSI-X");
        assert_eq!((msix.table_bar, msix.pba_bar), (bir, bir));
        assert_eq!((msix.table().start, msix.pba().start), (table, pba));
        assert_eq!((msix.vectors, msix.enabled), (17, false));
        let enabled = || Config::of(rig.device.as_ref()).unwrap().msix().unwrap().unwrap().enabled;
        let interrupts = Interrupts::new(rig.device.clone(), Irq::Msix, 2).unwrap();
        interrupts.vector(0).unwrap();
        assert!(enabled());
        drop(interrupts);
        assert!(!enabled());
    }
}

#[test]
fn a_large_page_puts_the_table_beside_the_doorbells() {
    // What a carved plan can map: with the table beside the doorbells nothing in 64 KiB pages; with one of its own all of BAR0.
    for (params, policy, mapped) in [
        ("page=64k", MapPolicy::Auto, 0x4000),
        ("page=64k", MapPolicy::Carved, 0),
        ("", MapPolicy::Carved, 0x3000),
        ("page=64k,msix=own", MapPolicy::Carved, 0x4000),
    ] {
        let device = InProcess::new(Nvme::new(NvmeParams::parse(params).unwrap()).unwrap()).unwrap();
        let layout = layout(device.as_ref(), 0).unwrap();
        let region = device.region(0).unwrap();
        let plan = plan(&layout, &region, device.page_size(), &Isolation::by_construction(), policy);
        assert_eq!(plan.mapped_bytes(), mapped, "{params} {policy:?}");
    }
    assert_eq!(NvmeParams::parse("page=64k").unwrap().page, PageSize::K64);
}

#[test]
fn what_cannot_be_enabled_is_fatal_until_reset() {
    let bad = [
        ("no such memory page", ENABLE | 9 << 7, 0x0007_0007, 0),
        ("no such command set", ENABLE | 1 << 4, 0x0007_0007, 0),
        ("no such arbitration", ENABLE | 1 << 11, 0x0007_0007, 0),
        ("a submission queue of one", ENABLE, 0x0007_0000, 0),
        ("a completion queue of one", ENABLE, 0x0000_0007, 0),
        ("an unaligned submission queue", ENABLE, 0x0007_0007, 64),
    ];
    for (what, cc, aqa, offset) in bad {
        let mut rig = Rig::off("");
        rig.write32(0x24, aqa);
        rig.write64(0x28, rig.at(rig.admin.sq.chunk()) + offset);
        rig.write64(0x30, rig.at(rig.admin.cq.chunk()));
        rig.write32(CC, cc);
        rig.step();
        assert_eq!(rig.read32(CSTS), 2, "{what}");
        rig.disable();
        rig.enable();
    }
}

#[test]
fn every_memory_page_it_offers_works() {
    for (mps, page) in [(0, 4096u64), (2, 16384), (4, 65536)] {
        let rig = Rig::off("");
        // Chunks are aligned in their arena, which may be anywhere.
        let chunk = rig.arena.alloc(4 * page, 1).unwrap();
        let first = rig.at(&chunk).next_multiple_of(page);
        let start = first - rig.at(&chunk);
        rig.write32(0x24, 0x0007_0007);
        rig.write64(0x28, first);
        rig.write64(0x30, first + page);
        rig.write32(CC, ENABLE | mps << 7);
        rig.step();
        assert_eq!(rig.read32(CSTS), 1);
        // Identify, to a buffer inside one page.
        let words = Cmd::new(6).dw10(1).prp(first + 2 * page, 0).words(7);
        chunk.write(start, words.map(u64::to_le_bytes).as_flattened()).unwrap();
        rig.ring(0, 0, 1);
        rig.settle();
        let mut last = [0; 4];
        chunk.read(start + page + 12, &mut last).unwrap();
        assert_eq!(u32::from_le_bytes(last), 1 << 16 | 7);
    }
}

#[test]
fn queues_that_nobody_mapped_are_fatal() {
    let rig = Rig::off("");
    rig.write32(0x24, 0x0007_0007);
    rig.write64(0x28, 0x7000_0000_0000);
    rig.write64(0x30, rig.at(rig.admin.cq.chunk()));
    rig.write32(CC, ENABLE);
    rig.step();
    assert_eq!(rig.read32(CSTS), 1, "nothing was fetched yet");
    rig.ring(0, 0, 1);
    // It may be on its way to another place, for a while.
    rig.step();
    assert_eq!(rig.read32(CSTS), 1);
    let start = std::time::Instant::now();
    while rig.read32(CSTS) != 3 {
        assert!(start.elapsed().as_secs() < 600, "it waits for ever");
        rig.step();
    }
}

#[test]
fn without_bus_mastering_nothing_is_done() {
    let mut rig = Rig::off("");
    rig.device.write(CONFIG, 4, &2u16.to_le_bytes()).unwrap();
    rig.enable();
    assert_eq!(rig.try_admin(Cmd::new(0x0a).dw10(7)), None);
    rig.device.write(CONFIG, 4, &6u16.to_le_bytes()).unwrap();
    rig.settle();
    assert!(rig.admin.take().is_some());
}

#[test]
fn controller_reset_forgets_queues_and_keeps_the_admin_registers() {
    let mut rig = Rig::new("size=1M");
    let mut q = rig.pair(1, 4);
    rig.ring(1, 0, 2);
    rig.disable();
    assert_eq!(rig.read32(0x24), 0x0007_0007, "AQA");
    assert_eq!((rig.read32(0x1000), rig.read32(0x1008)), (0, 0), "doorbells are cleared");
    rig.enable();
    assert_eq!(rig.try_io(&mut q, Cmd::rw(2, 0, 1)), None, "the queue is gone");
    rig.pair(1, 4);
}

#[test]
fn function_reset_forgets_everything_but_the_data() {
    let mut rig = Rig::new("size=1M");
    let mut q = rig.pair(1, 4);
    let buf = rig.memory(4096);
    buf.write(0, b"durable").unwrap();
    assert_eq!(rig.io(&mut q, Cmd::rw(1, 3, 1).prp(rig.at(&buf), 0)).status, 0);
    rig.device.reset().unwrap();
    assert_eq!((rig.read32(CC), rig.read32(CSTS), rig.read32(0x24), rig.read64(0x28)), (0, 0, 0, 0));
    assert_ne!(rig.read64(0), 0, "CAP");
    assert!(!Config::of(rig.device.as_ref()).unwrap().is_bus_master());
    rig.device.write(CONFIG, 4, &6u16.to_le_bytes()).unwrap();
    rig.enable();
    let mut q = rig.pair(1, 4);
    buf.zero();
    assert_eq!(rig.io(&mut q, Cmd::rw(2, 3, 1).prp(rig.at(&buf), 0)).status, 0);
    let mut back = [0; 7];
    buf.read(0, &mut back).unwrap();
    assert_eq!(&back, b"durable");
}

#[test]
fn shutdown_completes_and_nothing_is_done_after() {
    for shn in [1, 2] {
        let mut rig = Rig::new("");
        rig.write32(CC, ENABLE | shn << 14);
        rig.settle();
        assert_eq!(rig.read32(CSTS), 1 | 2 << 2);
        assert_eq!(rig.try_admin(Cmd::new(0x0a).dw10(7)), None);
        rig.disable();
        rig.enable();
        assert_eq!(rig.admin(Cmd::new(0x0a).dw10(7)).status, 0);
    }
}

#[test]
fn registers_that_say_what_it_is_come_back_after_a_reset() {
    let mut rig = Rig::new("");
    let cap = rig.read64(0);
    rig.write64(0, 0);
    rig.disable();
    assert_eq!(rig.read64(0), cap);
}

#[test]
fn every_stride_and_every_queue_has_its_doorbell() {
    for (params, ids) in [("queues=511,msix=own", vec![1, 2, 511]), ("queues=7,dstrd=6", vec![1, 7])] {
        let mut rig = Rig::new(params);
        for id in ids {
            let mut q = rig.pair(id, 4);
            assert_eq!(rig.io(&mut q, Cmd::rw(2, 0, 1).prp(0x1000_0000_0000, 0)).code(), 4, "{params}, queue {id}");
        }
    }
}

#[test]
fn a_poll_is_bounded_and_queues_take_turns() {
    let mut rig = Rig::new("size=1M,entries=256");
    let mut queues = [rig.pair(1, 256), rig.pair(2, 256)];
    let at = {
        let buf = rig.memory(4096);
        rig.at(&buf)
    };
    for q in &mut queues {
        for cid in 0..200 {
            q.post(Cmd::rw(2, 0, 1).prp(at, 0).words(cid));
        }
        rig.ring_pair(q);
    }
    let taken = |q: &mut common::Pair| std::iter::from_fn(|| q.take()).count();
    assert_eq!(rig.step(), Work::Busy);
    let [a, b] = &mut queues;
    let first = (taken(a), taken(b));
    assert_eq!(first.0, first.1);
    assert!((1..200).contains(&first.0), "{first:?}");
    rig.settle();
    assert_eq!((first.0 + taken(a), first.1 + taken(b)), (200, 200));
}

#[test]
fn a_full_completion_queue_holds_commands_back() {
    let mut rig = Rig::new("size=1M");
    let mut q = rig.pair(1, 4);
    let at = {
        let buf = rig.memory(4096);
        rig.at(&buf)
    };
    let mut seen = Vec::new();
    let mut cid = 0;
    // Many laps: three entries can be used at a time; the head is told late.
    for _ in 0..25 {
        for _ in 0..3 {
            cid += 1;
            q.post(Cmd::rw(2, 0, 1).prp(at, 0).words(cid));
        }
        rig.ring(1, 0, q.tail);
        rig.settle();
        let before = seen.len();
        seen.extend(std::iter::from_fn(|| q.take()).map(|d| d.cid));
        assert_eq!(seen.len() - before, 3);
        // Three more are posted while the queue has no room for their completions.
        for _ in 0..3 {
            cid += 1;
            q.post(Cmd::rw(2, 0, 1).prp(at, 0).words(cid));
        }
        rig.ring(1, 0, q.tail);
        rig.settle();
        assert_eq!(q.take(), None, "no room");
        rig.ring(1, 1, q.head);
        rig.settle();
        seen.extend(std::iter::from_fn(|| q.take()).map(|d| d.cid));
        rig.ring(1, 1, q.head);
    }
    assert_eq!(seen, (1..=cid).collect::<Vec<_>>());
}

#[test]
fn queues_of_any_size_wrap() {
    for entries in [2, 3, 5, 8] {
        let mut rig = Rig::new("size=1M");
        let mut q = rig.pair(1, entries);
        for n in 0..20u16 {
            let done = rig.io(&mut q, Cmd::new(0).nsid(1));
            assert_eq!((done.status, u32::from(done.sq_head)), (0, (u32::from(n) + 1) % entries));
        }
    }
}

#[test]
fn a_doorbell_out_of_range_is_an_event_and_nothing_else() {
    let mut rig = Rig::new("size=1M");
    let mut q = rig.pair(1, 4);
    let event = rig.cid();
    rig.admin.post(Cmd::new(0x0c).words(event));
    rig.ring(0, 0, rig.admin.tail);
    rig.settle();
    assert_eq!(rig.admin.take(), None);
    for (side, value) in [(0, 4), (0, u32::MAX), (1, 4), (1, 3)] {
        rig.ring(1, side, value);
        rig.settle();
        if side == 0 && value == 4 {
            let done = rig.admin.take().expect("an event");
            rig.ring(0, 1, rig.admin.head);
            // Error status, invalid doorbell write value, error log.
            assert_eq!((done.cid, done.dw0), (event, 0x01_01_00));
        }
        // Not told again while the error log is not read.
        assert_eq!(rig.admin.take(), None);
        rig.ring(1, side, if side == 0 { q.tail } else { q.head });
        assert_eq!(rig.io(&mut q, Cmd::new(0).nsid(1)).status, 0);
    }
    // The admin queue's, too.
    rig.ring(0, 0, 8);
    rig.settle();
    rig.ring(0, 0, rig.admin.tail);
    assert_eq!(rig.admin(Cmd::new(0x0a).dw10(7)).status, 0);
}

#[test]
#[cfg(not(miri))]
fn completions_signal_the_vector_of_their_queue() {
    use wholebar_core::irq::Interrupts;
    let mut rig = Rig::new("size=1M,vectors=4");
    let device: Arc<dyn PciDevice> = rig.device.clone();
    let interrupts = Interrupts::new(device, wholebar_core::pci::Irq::Msix, 4).unwrap();
    let fds: Vec<_> = (0..4).map(|v| interrupts.vector(v).unwrap()).collect();
    let counts = || fds.iter().map(|fd| fd.take()).collect::<Vec<_>>();
    // A completion queue with interrupts on vector 3, and one without.
    for (id, flags) in [(1u32, 3 << 16 | 2 | 1), (2, 1)] {
        let q = pair(rig.arena.clone(), id as u16, 8);
        let (cq, sq) = (rig.at(q.cq.chunk()), rig.at(q.sq.chunk()));
        assert_eq!(rig.admin(Cmd::new(5).prp(cq, 0).dw10(7 << 16 | id).dw11(flags)).status, 0);
        assert_eq!(rig.admin(Cmd::new(1).prp(sq, 0).dw10(7 << 16 | id).dw11(id << 16 | 1)).status, 0);
        assert!(counts()[0] >= 2, "the admin queue's vector is 0");
        let mut q = q;
        for cid in 0..3 {
            q.post(Cmd::new(0).nsid(1).words(cid));
        }
        rig.ring_pair(&q);
        rig.settle();
        // One signal a poll and queue, however many completions.
        assert_eq!(counts(), [0, 0, 0, u64::from(id == 1)]);
    }
    assert_eq!(rig.admin(Cmd::new(5).dw10(7 << 16 | 3).dw11(4 << 16 | 3)).code(), 0x108, "there is no vector 4");
}

#[test]
fn the_model_runs_on_a_thread() {
    let mut rig = Rig::off("size=1M");
    rig.device.spawn(|| ()).unwrap();
    rig.write32(0x24, 0x0007_0007);
    rig.write64(0x28, rig.at(rig.admin.sq.chunk()));
    rig.write64(0x30, rig.at(rig.admin.cq.chunk()));
    rig.write32(CC, ENABLE);
    while rig.read32(CSTS) != 1 {
        std::thread::yield_now();
    }
    for n in 0..if cfg!(miri) { 3 } else { 200 } {
        rig.admin.post(Cmd::new(0x0a).dw10(7).words(n));
        rig.ring(0, 0, rig.admin.tail);
        let done = loop {
            match rig.admin.take() {
                Some(done) => break done,
                None => std::thread::yield_now(),
            }
        };
        rig.ring(0, 1, rig.admin.head);
        assert_eq!((done.cid, done.status, done.dw0), (n, 0, 0x000f_000f));
    }
}

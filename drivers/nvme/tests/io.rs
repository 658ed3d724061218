//! The driver on the bundled model: every operation, every way to describe data, what is refused.
#![cfg(not(miri))]

mod common;

use common::*;
use wholebar_core::bar::MapPolicy;
use wholebar_core::block::{Data, Disk, Op, QueueState, Reject, Status};
use wholebar_core::mem::{Arena, ArenaOptions, Pool};
use wholebar_core::pci::PciDevice;
use wholebar_nvme::{Error, Nvme, Options, QueueOptions, ShadowDoorbells, StatusCode, feature};

#[test]
fn a_controller_says_what_it_is() {
    let rig = rig("sim:nvme,size=64M,block=512+4096,ns=3,serial=S123,queues=4");
    assert_eq!(rig.nvme.identify().serial, "S123");
    assert_eq!(rig.nvme.io_queues(), 4);
    let namespaces: Vec<_> = rig.nvme.namespaces().iter().map(|n| (n.nsid, n.block_size, n.size())).collect();
    assert_eq!(namespaces, [(1, 512, 64 << 20), (2, 4096, 64 << 20), (3, 512, 64 << 20)]);
    assert!(rig.nvme.namespaces().iter().all(|n| n.unsupported.is_none()));
    assert_eq!(rig.nvme.smart().unwrap().temperature, 313);
    assert!(!rig.nvme.firmware_log().unwrap().revisions[0].is_empty());
    assert!(rig.nvme.error_log().unwrap().is_empty());
    let threshold = rig.nvme.feature(feature::TEMPERATURE_THRESHOLD).unwrap();
    assert!(threshold > 0);
}

/// A namespace whose NSATTR says so is read-only to any program, and its controller refuses to write it.
#[test]
fn a_write_protected_namespace_is_read_only() {
    assert!(!Disk::namespaces(&rig("sim:nvme,size=1M").nvme)[0].read_only);
    let file = std::env::temp_dir().join(format!("wholebar-read-only-{}", std::process::id()));
    std::fs::write(&file, vec![0; 1 << 20]).unwrap();
    let rig = rig(&format!("sim:nvme,file={},ro=1", file.display()));
    std::fs::remove_file(&file).unwrap();
    assert!(Disk::namespaces(&rig.nvme)[0].read_only);
    let mut queue = rig.queue();
    queue.submit(request(1, Op::Write { lba: 0 }, Data::One(rig.buf(4096)))).unwrap();
    queue.ring();
    match wait(&mut queue, 1)[0].status {
        Status::Device(code) => assert_eq!(StatusCode(code).name(), Some("Namespace is Write Protected")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_written_is_read() {
    for target in [
        "sim:nvme,size=64M",
        "sim:nvme,size=64M,block=4096,sgl=1",
        "sim:nvme,size=64M,dstrd=2,msix=own",
        "sim:nvme,size=64M,mps=16k-64k,page=64k",
        "sim:nvme,size=64M,shadow=1",
    ] {
        for policy in [MapPolicy::Whole, MapPolicy::Carved, MapPolicy::Trapped] {
            let options = Options { policy, shadow_doorbells: ShadowDoorbells::Always, ..patient() };
            let rig = rig_with(target, options);
            let mut queue = rig.queue();
            for (i, len) in [4096, 8192, 12288, 65536].into_iter().enumerate() {
                let seed = 1000 + i as u64;
                let lba = 8 * (1 + 40 * i as u64);
                ok(&mut queue, Op::Write { lba }, Data::One(rig.pattern(len, seed)));
                let read = one(ok(&mut queue, Op::Read { lba }, Data::One(rig.buf(len))));
                assert_eq!(read.bytes(), pattern(len as usize, seed), "{target} {policy:?} {len}");
            }
            drop(queue);
            assert_eq!(rig.pool.available(), 96);
            assert_eq!(rig.nvme.quarantined(), 0);
        }
    }
}

#[test]
fn one_doorbell_a_batch() {
    let rig = rig("sim:nvme,size=64M");
    let mut queue = rig.queue();
    for round in 1..=5 {
        for tag in 0..64 {
            queue.submit(request(tag, Op::Read { lba: tag * 8 }, Data::One(rig.buf(4096)))).unwrap();
        }
        assert_eq!(queue.in_flight(), 64);
        queue.ring();
        queue.ring();
        let start = queue.doorbells();
        // Completions are taken in as many calls as it takes; each that finds some rings once.
        let mut calls = 0;
        let mut tags = Vec::new();
        while tags.len() < 64 {
            calls += u64::from(queue.poll_each(64, |c| tags.push(c.tag)) > 0);
        }
        tags.sort_unstable();
        assert!(tags.into_iter().eq(0..64));
        assert_eq!(queue.doorbells().direct - start.direct, calls);
        assert!(start.direct <= round * 65);
        assert_eq!((start.trapped, queue.in_flight()), (0, 0));
    }
}

#[test]
fn every_operation() {
    let rig = rig("sim:nvme,size=64M");
    let mut queue = rig.queue();
    ok(&mut queue, Op::Write { lba: 100 }, Data::One(rig.pattern(4096, 5)));
    ok(&mut queue, Op::Flush, Data::None);
    ok(&mut queue, Op::Compare { lba: 100 }, Data::One(rig.pattern(4096, 5)));
    let differs = run(&mut queue, Op::Compare { lba: 100 }, Data::One(rig.pattern(4096, 6)));
    let Status::Device(code) = differs.status else { panic!("{:?}", differs.status) };
    assert_eq!(StatusCode(code).name(), Some("Compare Failure"));
    ok(&mut queue, Op::Verify { lba: 100, blocks: 8 }, Data::None);
    ok(&mut queue, Op::WriteZeroes { lba: 101, blocks: 2 }, Data::None);
    let read = one(ok(&mut queue, Op::Read { lba: 100 }, Data::One(rig.buf(4096))));
    let mut want = pattern(4096, 5);
    want[512..1536].fill(0);
    assert!(read.bytes() == want);
    ok(&mut queue, Op::Deallocate { lba: 100, blocks: 8 }, Data::None);
    // More blocks than one command can have.
    ok(&mut queue, Op::WriteZeroes { lba: 0, blocks: 131_000 }, Data::None);
    assert_eq!(queue.in_flight(), 0);
}

#[test]
fn requests_are_split_and_complete_once() {
    for target in ["sim:nvme,size=64M,mdts=2", "sim:nvme,size=64M,noiob=24", "sim:nvme,size=64M,mdts=1,sgl=1,noiob=7"] {
        let rig = rig(target);
        let mut queue = rig.queue();
        // Several buffers, of which some join and some don't.
        let lens = [65536, 4096, 512, 1024, 65536, 8192];
        let total: u32 = lens.iter().sum();
        let bytes = pattern(total as usize, 9);
        let mut at = 0;
        let bufs = lens.map(|len| {
            let mut buf = rig.buf(len);
            buf.copy_from(&bytes[at..at + len as usize]);
            at += len as usize;
            buf
        });
        ok(&mut queue, Op::Write { lba: 5 }, Data::Many(bufs.into()));
        let Data::Many(back) = ok(&mut queue, Op::Read { lba: 5 }, Data::Many(lens.map(|len| rig.buf(len)).into()))
        else {
            panic!("the data changed its kind");
        };
        let read: Vec<u8> = back.iter().flat_map(|b| b.bytes().to_vec()).collect();
        assert!(read == bytes, "{target}");
        // Piece by piece, by small commands.
        for (i, want) in bytes.chunks(4096).enumerate() {
            let read = one(ok(&mut queue, Op::Read { lba: 5 + 8 * i as u64 }, Data::One(rig.buf(want.len() as u32))));
            assert!(read.bytes() == want, "{target} {i}");
        }
    }
}

/// Any legal request completes, whatever the queue's size: commands for which there is no room wait in the queue.
#[test]
fn a_request_of_more_commands_than_the_queue_has_entries_completes() {
    for target in ["sim:nvme,size=64M,mdts=1", "sim:nvme,size=64M,noiob=7", "sim:nvme,size=64M,mdts=1,sgl=1,noiob=24"] {
        for entries in [2, 4, 16] {
            let rig = rig(target);
            let mut queue = rig.nvme.queue(QueueOptions { entries: Some(entries), ..QueueOptions::default() }).unwrap();
            let what = format!("{target}, {entries} entries");
            let bytes = pattern(3 * 65536, 9);
            let bufs = |full: bool| -> Data {
                let bufs = bytes.chunks(65536).map(|part| {
                    let mut buf = rig.buf(65536);
                    if full {
                        buf.copy_from(part);
                    }
                    buf
                });
                Data::Many(bufs.collect())
            };
            // As many as are taken, among small ones.
            let mut submitted = 0;
            for tag in 0..6 {
                let req = match tag % 2 {
                    0 => request(tag, Op::Write { lba: 5 + 1000 * tag }, bufs(true)),
                    _ => request(tag, Op::Read { lba: 0 }, Data::One(rig.buf(512))),
                };
                match queue.submit(req) {
                    Ok(()) => submitted += 1,
                    Err(rejected) => assert_eq!(rejected.why, Reject::Full, "{what}"),
                }
                if tag == 0 {
                    assert_eq!(queue.in_flight(), entries as usize - 1, "{what}");
                }
            }
            queue.ring();
            let done = wait(&mut queue, submitted);
            assert!(done.iter().all(|c| c.status == Status::Ok), "{what}: {done:?}");
            assert_eq!(queue.in_flight(), 0, "{what}");
            drop(done);
            let Data::Many(back) = ok(&mut queue, Op::Read { lba: 5 }, bufs(false)) else { panic!("{what}") };
            let read: Vec<u8> = back.iter().flat_map(|b| b.bytes().to_vec()).collect();
            assert!(read == bytes, "{what}");
            // More commands than any queue has entries, and without data.
            ok(&mut queue, Op::WriteZeroes { lba: 0, blocks: 131_000 }, Data::None);
            ok(&mut queue, Op::Flush, Data::None);
        }
    }
}

#[test]
fn a_request_that_waits_is_refused_whole_where_a_part_of_it_is_wrong() {
    let rig = rig("sim:nvme,size=64M,mdts=1");
    let mut queue = rig.nvme.queue(QueueOptions { entries: Some(2), ..QueueOptions::default() }).unwrap();
    let bufs = [65536, 256, 256].map(|len| rig.buf(len));
    let rejected = queue.submit(request(1, Op::Read { lba: 0 }, Data::Many(bufs.into()))).unwrap_err();
    assert!(matches!(rejected.why, Reject::Invalid(why) if why.starts_with("buffers meet inside a block")));
    assert_eq!(queue.in_flight(), 0);
}

#[test]
fn what_cannot_be_done_comes_back() {
    let rig = rig("sim:nvme,size=1M,mdts=1");
    let mut queue = rig.nvme.queue(QueueOptions { entries: Some(8), ..QueueOptions::default() }).unwrap();
    let mut refuse = |nsid, op, data| {
        let req = wholebar_core::block::Request { tag: 1, nsid, op, data, deadline: None };
        let len = req.data.len();
        let rejected = queue.submit(req).unwrap_err();
        assert_eq!(rejected.req.data.len(), len);
        rejected.why.to_string()
    };
    for (lba, len) in [(2048, 512), (2047, 1024), (u64::MAX, 512)] {
        assert_eq!(refuse(1, Op::Read { lba }, Data::One(rig.buf(len))), "blocks past the namespace's end");
    }
    assert_eq!(
        refuse(1, Op::Write { lba: 0 }, Data::One(rig.buf(500))),
        "the data is no multiple of the namespace's block size"
    );
    assert_eq!(refuse(1, Op::Write { lba: 0 }, Data::None), "there is no data to transfer");
    assert_eq!(refuse(1, Op::Flush, Data::One(rig.buf(512))), "this operation takes no data");
    assert_eq!(refuse(1, Op::Verify { lba: 0, blocks: 0 }, Data::None), "there are no blocks to act on");
    assert_eq!(refuse(9, Op::Flush, Data::None), "the controller has no such namespace");
    let stranger = Arena::new(4096, Default::default()).unwrap();
    let stranger = Pool::new(stranger.clone(), 1, 512, 512).unwrap();
    let why = refuse(1, Op::Read { lba: 0 }, Data::One(stranger.get_len(512).unwrap()));
    assert_eq!(why, "the buffer's arena is not attached: see `Nvme::attach`");
    let two = || rig.pool.get_len(256).unwrap();
    let why = refuse(1, Op::Read { lba: 0 }, Data::Many([two(), two()].into()));
    assert!(why.starts_with("buffers meet inside a block"), "{why}");

    for tag in 0..7 {
        queue.submit(request(tag, Op::Read { lba: 0 }, Data::One(rig.buf(512)))).unwrap();
    }
    let full = queue.submit(request(7, Op::Read { lba: 0 }, Data::One(rig.buf(512)))).unwrap_err();
    assert_eq!(full.why, Reject::Full);
    queue.ring();
    assert_eq!(wait(&mut queue, 7).len(), 7);
    assert_eq!(queue.state(), QueueState::Running);
}

/// A driver says how many bits of an address its device has, once: rings, and what an application attaches, lie below then.
#[test]
fn every_attach_honours_the_mask_and_detach_waits_for_queues() {
    let opened = open("sim:nvme,size=1M");
    let dma = opened.model.dma();
    dma.set_dma_mask(25);
    let nvme = Nvme::open(opened.model.clone(), patient()).unwrap();
    let arenas: Vec<_> = (0..4).map(|_| Arena::new(8 << 20, ArenaOptions::default()).unwrap()).collect();
    // 32 MiB hold the rings and three of 8 MiB; the fourth finds no room there.
    for arena in &arenas[..3] {
        nvme.attach(arena.clone()).unwrap();
        assert!(dma.attach(arena.clone()).unwrap().iova().0 + arena.len() <= 32 << 20);
    }
    let refused = nvme.attach(arenas[3].clone());
    assert!(matches!(refused, Err(Error::Core(wholebar_core::Error::NoIova { bits: 25, .. }))), "{refused:?}");

    let pool = Pool::new(arenas[0].clone(), 1, 4096, 4096).unwrap();
    let mut queue = nvme.queue(QueueOptions::default()).unwrap();
    let read = one(ok(&mut queue, Op::Read { lba: 0 }, Data::One(pool.get_len(4096).unwrap())));
    let used = nvme.detach(&arenas[0]);
    assert!(matches!(used, Err(Error::Core(wholebar_core::Error::StillAttached { .. }))), "{used:?}");
    ok(&mut queue, Op::Read { lba: 0 }, Data::One(read));
    nvme.detach(&arenas[1]).unwrap();
    nvme.detach(&arenas[1]).unwrap();
    nvme.attach(arenas[3].clone()).unwrap();
    drop(queue);
    let before = dma.mapped();
    nvme.detach(&arenas[0]).unwrap();
    assert_eq!(dma.mapped(), before - 1);
    let mut queue = nvme.queue(QueueOptions::default()).unwrap();
    let buf = pool.get_len(4096).unwrap();
    let refused = queue.submit(request(0, Op::Read { lba: 0 }, Data::One(buf))).unwrap_err();
    assert!(matches!(refused.why, Reject::Invalid(why) if why.contains("not attached")), "{:?}", refused.why);
}

/// However many queues there are, they share a few arenas: a peer may allow 64 maps, or fewer.
#[test]
fn queues_share_arenas() {
    let rig = rig_with("sim:nvme,size=1M,queues=128", Options { io_queues: 128, ..patient() });
    let dma = rig.nvme.device().dma();
    let before = dma.mapped();
    let queues: Vec<_> = (0..128).map(|_| rig.queue()).collect();
    assert_eq!(queues.last().unwrap().id(), 128);
    assert!(dma.mapped() - before <= 8, "{} maps more", dma.mapped() - before);
}

#[test]
fn a_controller_without_a_list_of_namespaces_is_asked_for_each() {
    // Of version 2.0, and refuses CNS 02h.
    let rig = rig("sim:nvme,size=1M,ns=5,nslist=0,faults=detach:@1");
    let ids = || rig.nvme.namespaces().iter().map(|n| n.nsid).collect::<Vec<_>>();
    assert_eq!(ids(), [1, 2, 3, 4, 5]);
    let mut queue = rig.queue();
    let gone = run_on(&mut queue, 2, Op::Flush, Data::None).status;
    assert!(matches!(gone, Status::Device(_)), "{gone:?}");
    drop(queue);
    rig.nvme.reset().unwrap();
    assert_eq!(ids(), [1, 3, 4, 5], "one that is not active reads as zeros");
}

#[test]
fn all_of_a_long_list_of_namespaces_is_read() {
    let rig = rig("sim:nvme,size=1M,backing=null,ns=1030,block=512+4096");
    let namespaces = rig.nvme.namespaces();
    assert!(namespaces.iter().map(|n| n.nsid).eq(1..=1030));
    let mut queue = rig.queue();
    assert_eq!(run_on(&mut queue, 1030, Op::Read { lba: 0 }, Data::One(rig.buf(4096))).status, Status::Ok);
}

#[test]
fn queues_of_the_smallest_size_work() {
    // CAP.MQES from 1 to 31: the default is lowered to what the controller takes, in powers of two.
    for (entries, capacity) in [(2, 1), (3, 1), (4, 3), (31, 15), (32, 31)] {
        let rig = rig(&format!("sim:nvme,size=1M,entries={entries}"));
        let mut queue = rig.queue();
        assert_eq!(queue.capacity(), capacity, "{entries}");
        for lba in 0..40 {
            ok(&mut queue, Op::Read { lba }, Data::One(rig.buf(512)));
        }
    }
}

#[test]
fn queues_are_counted() {
    let rig = rig("sim:nvme,size=1M,queues=2,entries=64");
    let nvme = &rig.nvme;
    for entries in [0, 1, 3, 128] {
        let error = nvme.queue(QueueOptions { entries: Some(entries), ..QueueOptions::default() }).err().unwrap();
        assert!(matches!(error, Error::Entries { max: 64, .. }), "{error}");
    }
    assert!(nvme.queue(QueueOptions { interrupt: Some(999), ..QueueOptions::default() }).is_err());
    let (a, b) = (rig.queue(), rig.queue());
    assert_eq!((a.id(), b.id(), a.capacity()), (1, 2, 63));
    let none = nvme.queue(QueueOptions::default()).err().unwrap();
    assert!(matches!(none, Error::NoQueueLeft { granted: 2, .. }), "{none}");
    drop(a);
    let mut again = rig.queue();
    assert_eq!(again.id(), 1);
    ok(&mut again, Op::Read { lba: 0 }, Data::One(rig.buf(512)));
}

#[test]
fn a_queue_dropped_with_commands_in_flight_gives_its_buffers_back() {
    let rig = rig("sim:nvme,size=1M,faults=drop:1/1");
    let mut queue = rig.queue();
    for tag in 0..20 {
        queue.submit(request(tag, Op::Read { lba: 0 }, Data::One(rig.buf(4096)))).unwrap();
    }
    queue.ring();
    drop(queue);
    assert_eq!((rig.pool.available(), rig.nvme.quarantined()), (96, 0));
}

#[test]
fn an_interrupt_wakes_who_waits() {
    let rig = rig("sim:nvme,size=1M");
    let mut queue = rig.nvme.queue(QueueOptions { interrupt: Some(1), ..QueueOptions::default() }).unwrap();
    let fd = rig.nvme.interrupts().unwrap().vector(1).unwrap();
    queue.submit(request(1, Op::Read { lba: 0 }, Data::One(rig.buf(512)))).unwrap();
    queue.ring();
    assert!(fd.wait(Some(LONG)).unwrap().is_some());
    assert_eq!(wait(&mut queue, 1).len(), 1);
}

#[test]
fn a_controller_that_was_shut_down_says_so() {
    let rig = rig("sim:nvme,size=1M");
    let mut queue = rig.queue();
    let device = rig.nvme.device().clone();
    rig.nvme.shutdown().unwrap();
    assert!(matches!(queue.state(), QueueState::Resetting));
    let rejected = queue.submit(request(1, Op::Flush, Data::None)).unwrap_err();
    assert_eq!(rejected.why, Reject::Gone);
    assert!(matches!(queue.state(), QueueState::Failed(why) if why == "it was shut down"));
    drop(queue);
    // And can be opened again.
    let nvme = Nvme::open(device, patient()).unwrap();
    assert_eq!(nvme.namespaces().len(), 1);
}

/// A callback that panics is the caller's affair: the queue goes on, and each buffer is accounted for, in a poll and in what follows a reset.
#[test]
fn a_callback_that_panics_leaves_the_queue_whole() {
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
    let rig = rig("sim:nvme,size=64M,queues=1");
    let mut queue = rig.queue();
    let (mut completed, mut panics) = (0u64, 0);
    // More than the completion queue has entries: each is told to the controller in the end.
    for round in 0..40 {
        for tag in 0..48 {
            queue.submit(request(tag, Op::Read { lba: tag * 8 }, Data::One(rig.buf(4096)))).unwrap();
        }
        queue.ring();
        if round % 4 == 3 {
            std::thread::scope(|scope| {
                let reset = scope.spawn(|| rig.nvme.reset().unwrap());
                while !reset.is_finished() {
                    panics += poll(&mut queue, &mut completed);
                }
            });
        }
        let start = std::time::Instant::now();
        while queue.in_flight() > 0 || queue.state() != QueueState::Running {
            panics += poll(&mut queue, &mut completed);
            assert!(start.elapsed() < LONG, "{} in flight", queue.in_flight());
        }
    }
    fn poll(queue: &mut wholebar_nvme::Queue, completed: &mut u64) -> usize {
        let polled = catch_unwind(AssertUnwindSafe(|| {
            queue.poll_each(usize::MAX, |_| {
                *completed += 1;
                if completed.is_multiple_of(5) {
                    resume_unwind(Box::new("a callback that panics"));
                }
            })
        }));
        usize::from(polled.is_err())
    }
    assert_eq!((completed, panics), (40 * 48, 40 * 48 / 5));
    assert_eq!((rig.pool.available(), rig.nvme.quarantined()), (96, 0));
    let read = one(ok(&mut queue, Op::Read { lba: 0 }, Data::One(rig.buf(4096))));
    assert_eq!(read.len(), 4096);
}

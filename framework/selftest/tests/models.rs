//! Models that do what they must, and models of which each has a fault: the run tells them apart, and says what is wrong.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use wholebar::block::{self, BlockQueue, Data, DiskConfig, Op};
use wholebar::mem::{Arena, ArenaOptions, Pool};
use wholebar::pci::PciDevice;
use wholebar_selftest::storage::{fill, holds, ok, request, run as done};
use wholebar_selftest::{Check, Options, Scratch, Verdict, run};

fn open(target: &str) -> Arc<dyn PciDevice> {
    wholebar::open(target).unwrap()
}

fn checks(target: &str, options: &Options) -> Vec<Check> {
    run(&open(target), options, &mut |_| (), &AtomicBool::new(false))
}

fn of(checks: &[Check], verdict: Verdict) -> Vec<(&str, &str)> {
    checks.iter().filter(|check| check.verdict == verdict).map(|check| (check.area, check.name)).collect()
}

#[test]
fn models_do_what_they_must() {
    for (target, passed, left) in [
        ("sim:nvme,size=16M", 18, 7),
        ("sim:nvme,size=16M,page=64k", 18, 7),
        ("sim:nvme,size=16M,sgl=1", 19, 6),
        ("sim:virtio-blk,size=16M", 15, 5),
        ("sim:virtio-net", 13, 6),
        ("sim:fpga", 5, 5),
    ] {
        let checks = checks(target, &Options::default());
        assert_eq!(of(&checks, Verdict::Failed), [], "{target}: {checks:#?}");
        let counts = (of(&checks, Verdict::Passed).len(), of(&checks, Verdict::LeftOut).len());
        assert_eq!(counts, (passed, left), "{target}: {checks:#?}");
    }
}

#[test]
fn a_port_without_a_link_is_left_alone() {
    let checks = checks("sim:virtio-net,wire=pair:selftest", &Options::default());
    assert_eq!(of(&checks, Verdict::Failed), [], "{checks:#?}");
    assert!(of(&checks, Verdict::LeftOut).contains(&("port", "packets")), "{checks:#?}");
}

/// A run that only reads changes no block; one that may write to some leaves them as they were, and comes to no others.
#[test]
fn blocks_are_as_they_were() {
    const BLOCKS: u64 = 2048;
    for target in ["sim:nvme,size=1M", "sim:virtio-blk,size=1M"] {
        let device = open(target);
        each_block(&device, true);
        let scratch = Scratch { nsid: 1, lbas: 100..BLOCKS - 100 };
        for options in [Options::default(), Options { scratch: Some(scratch) }] {
            let checks = run(&device, &options, &mut |_| (), &AtomicBool::new(false));
            assert_eq!(of(&checks, Verdict::Failed), [], "{target}: {checks:#?}");
            let wrote = of(&checks, Verdict::Passed).contains(&("scratch", "writes of every size come back"));
            assert_eq!(wrote, options.scratch.is_some());
            each_block(&device, false);
        }
    }
    for lbas in [0..BLOCKS + 1, 5..5] {
        let checks = checks("sim:nvme,size=1M", &Options { scratch: Some(Scratch { nsid: 1, lbas }) });
        assert_eq!(of(&checks, Verdict::Failed), [("scratch", "what the blocks hold is kept")], "{checks:#?}");
    }
}

/// Writes a pattern to each block, or verifies that it is there.
fn each_block(device: &Arc<dyn PciDevice>, write: bool) {
    let disk = block::open(device.clone(), &DiskConfig::default()).unwrap();
    let ns = disk.namespaces()[0];
    let arena = Arena::new(4 << 20, ArenaOptions::default()).unwrap();
    disk.attach(arena.clone()).unwrap();
    let pool = Pool::new(arena, 2, 64 << 10, 64 << 10).unwrap();
    let mut queue = disk.queue().unwrap();
    let step = pool.size() / ns.block_size;
    for lba in (0..ns.blocks).step_by(step as usize) {
        let mut buf = pool.get_len(pool.size()).unwrap();
        if write {
            fill(&mut buf, lba, ns.block_size, 7);
        }
        let op = if write { Op::Write { lba } } else { Op::Read { lba } };
        let req = request(ns.nsid, op, Data::One(buf));
        let data = ok(done(queue.as_mut() as &mut dyn BlockQueue, req).unwrap(), "a transfer").unwrap();
        assert!(data.bufs().iter().all(|buf| holds(buf, lba, ns.block_size, 7)), "block {lba} and those after it");
    }
}

/// Each fault is found, and what went wrong is named.
#[test]
fn faults_are_named() {
    for (target, name) in [
        ("sim:nvme,size=16M,faults=dup:1/20", "either this is an earlier command's completion"),
        ("sim:nvme,size=16M,faults=id:1/50", "which is not in flight"),
        ("sim:nvme,size=16M,faults=corrupt:1/20", "status"),
        ("sim:nvme,size=16M,faults=head:1/20", "submission queue's head"),
        ("sim:nvme,size=16M,faults=sqhd:1/20", "submission queue's head"),
        ("sim:nvme,size=16M,faults=dma:1/10", "Data Transfer Error"),
        ("sim:nvme,size=16M,faults=fatal:@30", "fatal error"),
        ("sim:nvme,size=16M,faults=vanish:@20", "is gone"),
        ("sim:virtio-blk,size=16M,faults=id:1/20", "which is not in flight"),
        ("sim:virtio-blk,size=16M,faults=corrupt:1/20", "which has room for"),
        ("sim:virtio-blk,size=16M,faults=fatal:@30", "does not run any more"),
        ("sim:virtio-blk,size=16M,faults=vanish:@30", "is gone"),
        ("sim:virtio-net,faults=id:1/20", "which is not in flight"),
        ("sim:virtio-net,faults=corrupt:1/20", "which has room for"),
        ("sim:virtio-net,faults=fatal:@30", "does not run any more"),
        ("sim:virtio-net,faults=vanish:@30", "is gone"),
    ] {
        let checks = checks(target, &Options::default());
        let failed: Vec<_> = checks.iter().filter(|check| check.verdict == Verdict::Failed).collect();
        assert!(failed.iter().any(|check| check.detail.contains(name)), "{target}: {failed:#?}");
    }
}

#[test]
fn a_run_that_is_stopped_does_no_more() {
    let checks = run(&open("sim:nvme,size=16M"), &Options::default(), &mut |_| (), &AtomicBool::new(true));
    assert_eq!(checks, []);
}

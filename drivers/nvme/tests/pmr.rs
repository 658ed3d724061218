//! The persistent memory region, on the bundled model: what is stored lasts, ranges and states are checked.
#![cfg(not(miri))]

mod common;

use common::*;
use std::sync::atomic::{AtomicBool, Ordering};
use wholebar_core::Error as Core;
use wholebar_core::bar::MapPolicy;
use wholebar_core::block::{Data, Op};
use wholebar_core::pci::PciDevice;
use wholebar_nvme::{Error, Nvme, Options, PersistentMemoryHealth};

const SIZE: u64 = 64 << 10;

fn refused<T: std::fmt::Debug>(done: Result<T, Error>, says: &str) {
    match done {
        Err(error @ Error::PersistentMemory { .. }) if error.to_string().contains(says) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_stored_is_read() {
    for policy in [MapPolicy::Auto, MapPolicy::Trapped] {
        let rig = rig_with("sim:nvme,size=16M,pmr=64k", Options { policy, ..patient() });
        let region = rig.nvme.persistent_memory_region().unwrap();
        assert_eq!((region.bar, region.size, region.read_data, region.write_data), (4, SIZE, false, false));
        let mut memory = rig.nvme.persistent_memory().unwrap();
        assert_eq!((memory.size(), memory.health().unwrap()), (SIZE, PersistentMemoryHealth::Normal));
        let mut wanted = vec![0; SIZE as usize];
        // Of any length, at any place: what is beside it stays.
        for (offset, len) in [(0, 4096), (1, 1), (4095, 2), (8190, 19), (SIZE - 3, 3), (100, 0), (SIZE, 0)] {
            let bytes = pattern(len, offset);
            memory.write(offset, &bytes).unwrap();
            wanted[offset as usize..][..len].copy_from_slice(&bytes);
            let mut back = vec![0; len];
            memory.read(offset, &mut back).unwrap();
            assert!(back == bytes, "{offset} {len}");
        }
        memory.flush().unwrap();
        let mut all = vec![0; SIZE as usize];
        memory.read(0, &mut all).unwrap();
        assert!(all == wanted);
        for (offset, len) in [(SIZE, 1), (SIZE - 3, 4), (u64::MAX, 1), (u64::MAX, 0)] {
            let mut back = vec![0; len];
            assert!(matches!(memory.read(offset, &mut back), Err(Error::Core(Core::OutOfRange { .. }))), "{offset}");
            assert!(matches!(memory.write(offset, &back), Err(Error::Core(Core::OutOfRange { .. }))), "{offset}");
        }
        refused(rig.nvme.persistent_memory(), "one owner");
        drop(memory);
        let mut again = vec![0; SIZE as usize];
        rig.nvme.persistent_memory().unwrap().read(0, &mut again).unwrap();
        assert!(again == wanted, "it was switched off and on");
    }
}

/// Through resets of the controller and of the function, and for whoever opens it next.
#[test]
fn what_is_stored_lasts() {
    let Rig { nvme, opened, pool, .. } = rig("sim:nvme,size=16M,pmr=64k");
    let bytes = pattern(SIZE as usize, 1);
    let mut memory = nvme.persistent_memory().unwrap();
    memory.write(0, &bytes).unwrap();
    memory.flush().unwrap();
    let check = |memory: &wholebar_nvme::PersistentMemory| {
        let mut back = vec![0; SIZE as usize];
        memory.read(0, &mut back).unwrap();
        assert!(back == bytes);
    };
    nvme.reset().unwrap();
    check(&memory);
    // Behind the driver's back: it finds that out, and has it switched on again by its own reset.
    opened.model.reset().unwrap();
    let mut byte = [0];
    refused(memory.read(0, &mut byte), "switched off");
    refused(memory.write(0, &byte), "switched off");
    nvme.reset().unwrap();
    check(&memory);
    let mut queue = nvme.queue(Default::default()).unwrap();
    ok(&mut queue, Op::Flush, Data::None);
    drop((queue, pool));
    // It keeps the controller open.
    drop(nvme);
    check(&memory);
    drop(memory);
    check(&Nvme::open(opened.model.clone(), patient()).unwrap().persistent_memory().unwrap());
}

/// A region that takes its time, or does not come back at all, holds nothing else up.
#[test]
fn queues_do_not_wait_for_it() {
    let rig = rig("sim:nvme,size=16M,pmr=64k,pmr_state=once");
    let mut queue = rig.queue();
    let memory = rig.nvme.persistent_memory().unwrap();
    memory.read(0, &mut [0]).unwrap();
    rig.opened.model.reset().unwrap();
    reset_polling(&rig.nvme, &mut queue);
    ok(&mut queue, Op::Flush, Data::None);
    match memory.read(0, &mut [0]) {
        Err(Error::Core(Core::NotReady { what, .. })) => assert_eq!(what, "make its persistent memory ready again"),
        other => panic!("{other:?}"),
    }
    ok(&mut queue, Op::Flush, Data::None);
}

/// Reads that a reset of the function falls into return what is stored, or an error.
#[test]
fn what_was_off_in_between_is_not_believed() {
    let Rig { nvme, opened, .. } = rig("sim:nvme,size=16M,pmr=64k");
    let bytes = pattern(SIZE as usize, 1);
    let mut memory = nvme.persistent_memory().unwrap();
    memory.write(0, &bytes).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..20 {
                opened.model.reset().unwrap();
                nvme.reset().unwrap();
            }
            over.store(true, Ordering::Relaxed);
        });
        while !over.load(Ordering::Relaxed) {
            let mut back = vec![0; SIZE as usize];
            match memory.read(0, &mut back) {
                Ok(()) => assert!(back == bytes),
                Err(Error::PersistentMemory { why, .. }) => assert!(why.contains("switched"), "{why}"),
                Err(other) => panic!("{other:?}"),
            }
        }
    });
    let mut back = vec![0; SIZE as usize];
    memory.read(0, &mut back).unwrap();
    assert!(back == bytes);
}

#[test]
fn states_are_told() {
    let opened = |state: &str| rig(&format!("sim:nvme,size=16M,pmr=4k,pmr_state={state}"));
    let rig1 = opened("readonly");
    let mut memory = rig1.nvme.persistent_memory().unwrap();
    assert_eq!(memory.health().unwrap(), PersistentMemoryHealth::ReadOnly);
    refused(memory.write(0, &[1]), "only be read");
    memory.read(0, &mut [0]).unwrap();
    let rig2 = opened("unreliable");
    let mut memory = rig2.nvme.persistent_memory().unwrap();
    assert_eq!(memory.health().unwrap(), PersistentMemoryHealth::Unreliable);
    memory.write(0, &[1]).unwrap();
    refused(memory.flush(), "may not last");
    let rig3 = opened("restore");
    assert_eq!(rig3.nvme.persistent_memory().unwrap().health().unwrap(), PersistentMemoryHealth::RestoreError);
    let rig4 = opened("failed");
    refused(rig4.nvme.persistent_memory(), "error 01h");
    // Nobody has it open, after that.
    refused(rig4.nvme.persistent_memory(), "error 01h");
    let rig5 = rig("sim:nvme,size=16M");
    assert_eq!(rig5.nvme.persistent_memory_region(), None);
    assert!(matches!(rig5.nvme.persistent_memory(), Err(Error::NotOffered { .. })));
}

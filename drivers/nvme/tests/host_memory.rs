//! The host memory buffer, on the bundled model, which keeps copies of blocks there and has what it reads from it.
#![cfg(not(miri))]

mod common;

use common::*;
use wholebar_core::block::{Data, Op};
use wholebar_core::pci::PciDevice;
use wholebar_nvme::feature::{self, Select};
use wholebar_nvme::{LogRequest, Nvme, Options, Queue};

const MOST: u64 = 1 << 30;

fn given(most: u64) -> Options {
    Options { host_memory_buffer: Some(most), ..patient() }
}

/// What the model counted: lines read from the buffer, lines put there, shutdowns without giving it back.
fn counts(nvme: &Nvme) -> [u64; 3] {
    let bytes = nvme.log_page(LogRequest::new(0xc0), 24).unwrap();
    let (words, _) = bytes.as_chunks::<8>();
    [0, 1, 2].map(|i| u64::from_le_bytes(words[i]))
}

/// Reads blocks that were written with this seed.
fn reads(rig: &Rig, queue: &mut Queue, lba: u64, seed: u64) {
    let back = one(ok(queue, Op::Read { lba }, Data::One(rig.buf(65536))));
    assert!(back.bytes() == pattern(65536, seed), "{lba}");
}

#[test]
fn blocks_are_read_from_the_hosts_memory() {
    for target in ["sim:nvme,size=16M,hmb=1M", "sim:nvme,size=16M,hmb=1M,mps=16k-64k,page=64k"] {
        let rig = rig_with(target, given(MOST));
        assert_eq!((rig.nvme.identify().host_memory_preferred, rig.nvme.host_memory_buffer()), (1 << 20, 1 << 20));
        let mut queue = rig.queue();
        for lba in [0, 128, 1024] {
            ok(&mut queue, Op::Write { lba }, Data::One(rig.pattern(65536, lba)));
        }
        for round in 0..3 {
            for lba in [0, 128, 1024] {
                reads(&rig, &mut queue, lba, lba);
            }
            // Three times sixteen lines, of the 256 that there are.
            assert_eq!(counts(&rig.nvme), [48 * round, 48, 0], "{target}");
        }
        // What is written anew is read anew.
        ok(&mut queue, Op::Write { lba: 128 }, Data::One(rig.pattern(65536, 7)));
        reads(&rig, &mut queue, 128, 7);
        ok(&mut queue, Op::WriteZeroes { lba: 0, blocks: 128 }, Data::None);
        let zeros = one(ok(&mut queue, Op::Read { lba: 0 }, Data::One(rig.buf(65536))));
        assert!(zeros.bytes().iter().all(|byte| *byte == 0));
    }
}

/// More blocks than there are lines: they take each other's places.
#[test]
fn a_small_buffer_is_right_too() {
    let rig = rig_with("sim:nvme,size=16M,hmb=16k", given(MOST));
    let mut queue = rig.queue();
    for lba in (0..16).map(|i| i * 128) {
        ok(&mut queue, Op::Write { lba }, Data::One(rig.pattern(65536, lba)));
    }
    for _ in 0..2 {
        (0..16).map(|i| i * 128).for_each(|lba| reads(&rig, &mut queue, lba, lba));
    }
}

/// A reset has the controller forget where the memory is, not what is in it.
#[test]
fn it_is_given_again_after_a_reset() {
    let rig = rig_with("sim:nvme,size=16M,hmb=1M", given(MOST));
    let mut queue = rig.queue();
    ok(&mut queue, Op::Write { lba: 0 }, Data::One(rig.pattern(65536, 5)));
    reads(&rig, &mut queue, 0, 5);
    for round in 1..4 {
        reset_polling(&rig.nvme, &mut queue);
        assert_eq!(rig.nvme.host_memory_buffer(), 1 << 20);
        reads(&rig, &mut queue, 0, 5);
        assert_eq!(counts(&rig.nvme), [16 * round, 16, 0], "the copies are still there");
    }
}

/// The model counts who shuts it down without taking the memory back.
#[test]
fn it_is_taken_back_at_the_end() {
    let Rig { nvme, opened, .. } = rig_with("sim:nvme,size=16M,hmb=1M", given(MOST));
    let maps = nvme.device().dma().mapped();
    drop(nvme);
    assert_eq!((opened.model.dma().mapped(), maps > 0), (0, true), "nothing of the host's is left to the controller");
    let again = Nvme::open(opened.model.clone(), given(MOST)).unwrap();
    assert_eq!(counts(&again), [0, 0, 0]);
    again.shutdown().unwrap();
    let without = Nvme::open(opened.model.clone(), patient()).unwrap();
    assert_eq!((counts(&without), without.host_memory_buffer()), ([0, 0, 0], 0));
}

/// As much as both want: none where that is not enough.
#[test]
fn sizes_are_the_controllers_and_the_hosts() {
    for (target, most, want) in [
        ("hmb=1M", Some(MOST), 1 << 20),
        ("hmb=1M", Some(300_000), 73 * 4096),
        ("hmb=1M,hmb_min=512k", Some(300_000), 0),
        ("hmb=1M,hmb_min=512k", Some(512 << 10), 512 << 10),
        ("hmb=1G,hmb_min=1G", Some(1 << 20), 0),
        ("hmb=1M", Some(0), 0),
        ("hmb=1M", None, 0),
        ("queues=4", Some(MOST), 0),
    ] {
        let options = Options { host_memory_buffer: most, ..patient() };
        let rig = rig_with(&format!("sim:nvme,size=16M,mps=4k,{target}"), options);
        assert_eq!(rig.nvme.host_memory_buffer(), want, "{target} {most:?}");
        let mut queue = rig.queue();
        ok(&mut queue, Op::Write { lba: 0 }, Data::One(rig.pattern(65536, 5)));
        (0..2).for_each(|_| reads(&rig, &mut queue, 0, 5));
        if target.starts_with("hmb") {
            let mut data = vec![0; 4096];
            let enabled = rig.nvme.get_feature(feature::HOST_MEMORY_BUFFER, Select::Current, 0, 0, &mut data).unwrap();
            let pages = u32::from_le_bytes([data[0], data[1], data[2], data[3]]);
            assert_eq!((enabled & 1, u64::from(pages) * 4096), (u32::from(want > 0), want), "{target} {most:?}");
        }
    }
}

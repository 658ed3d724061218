//! Metadata and protection information, on the bundled model: what is written is read, whichever way it lies in memory; a bit that flips is caught by name,
//! with the block, by the controller's check and by the driver's.
#![cfg(not(miri))]

mod common;

use common::*;
use wholebar_core::block::{Completion, Data, Disk, Op, QueueState, Reject, Status};
use wholebar_core::mem::Buf;
use wholebar_nvme::{BlockRange, Checks, Error, Format, GuardFormat, Protection, ProtectionType, Queue, StatusCode};

const KINDS: [u8; 3] = [1, 2, 3];
const LBA: u64 = 40;
const BLOCKS: usize = 8;

/// How a namespace's blocks are made.
#[derive(Debug, Clone, Copy)]
struct Shape {
    ms: usize,
    extended: bool,
    pi: u8,
    first: bool,
    block: usize,
    /// Of protection information, as the model takes it.
    format: &'static str,
}

impl Shape {
    fn target(&self, more: &str) -> String {
        let Self { ms, extended, pi, first, block, format } = self;
        let bit = |on: &bool| u8::from(*on);
        let (mset, pil) = (bit(extended), bit(first));
        format!("sim:nvme,size=64M,block={block},ms={ms},mset={mset},pi={pi},pil={pil}{format}{more}")
    }

    /// Buffers for blocks with their metadata, and the data in it in a pattern, the metadata too.
    fn data(&self, rig: &Rig, seed: Option<u64>) -> Data {
        let make = |len: usize, seed: Option<u64>| match seed {
            Some(seed) => rig.pattern(len as u32, seed),
            None => rig.buf(len as u32),
        };
        match self.extended {
            // In two buffers, which do not meet at a block.
            true => {
                let len = BLOCKS * (self.block + self.ms);
                let one = 4096;
                Data::Many([make(one, seed), make(len - one, seed.map(|s| s + 1))].into())
            }
            false => Data::Many([make(BLOCKS * self.block, seed), make(BLOCKS * self.ms, seed.map(|s| s + 1))].into()),
        }
    }

    /// Each block's data and metadata.
    fn blocks(&self, data: &Data) -> Vec<(Vec<u8>, Vec<u8>)> {
        let bytes = |bufs: &[Buf]| bufs.iter().flat_map(|b| b.bytes().to_vec()).collect::<Vec<u8>>();
        let (bufs, unit) = (data.bufs(), self.block + self.ms);
        match self.extended {
            true => bytes(bufs).chunks(unit).map(|b| (b[..self.block].to_vec(), b[self.block..].to_vec())).collect(),
            false => {
                let (data, metadata) = (bytes(&bufs[..1]), bytes(&bufs[1..]));
                let both = data.chunks(self.block).zip(metadata.chunks(self.ms));
                both.map(|(d, m)| (d.to_vec(), m.to_vec())).collect()
            }
        }
    }
}

fn shapes() -> Vec<Shape> {
    let mut all = Vec::new();
    for pi in [0, 1, 2, 3] {
        for (ms, extended, first, block) in
            [(8, true, false, 512), (8, false, false, 4096), (16, true, true, 512), (64, false, false, 512)]
        {
            all.push(Shape { ms, extended, pi, first: first && pi > 0, block, format: "" });
            let wide = [",pif=1", ",pif=1,sts=37", ",pif=2", ",pif=2,sts=9", ",sts=16"];
            let wide = wide.into_iter().filter(|_| pi > 0 && ms >= 16);
            all.extend(wide.map(|format| Shape { ms, extended, pi, first, block, format }));
        }
    }
    all
}

fn with(queue: &mut Queue, op: Op, data: Data, protection: Protection) -> Completion {
    queue.submit_with_metadata(request(77, op, data), protection).unwrap();
    queue.ring();
    wait(queue, 1).pop().unwrap()
}

fn named(status: Status) -> Option<&'static str> {
    let Status::Device(code) = status else { return None };
    StatusCode(code).name()
}

#[test]
fn plain_requests_have_protection_information_made_and_taken_away() {
    for pi in KINDS {
        for mset in [0, 1] {
            for more in [
                "",
                ",pil=1,noiob=7",
                ",mdts=1,sgl=1",
                ",block=4096,shadow=1",
                ",mps=16k-64k,page=64k",
                ",queues=1,entries=4",
            ] {
                let target = format!("sim:nvme,size=64M,ms=8,pi={pi},mset={mset}{more}");
                let rig = rig(&target);
                let ns = rig.nvme.namespaces()[0].clone();
                assert!(ns.is_plain() && ns.unsupported.is_none() && ns.metadata_size == 8);
                let kinds = [ProtectionType::Type1, ProtectionType::Type2, ProtectionType::Type3];
                assert_eq!(ns.protection, Some(kinds[usize::from(pi) - 1]));
                assert_eq!(Disk::namespaces(&rig.nvme).len(), 1);
                let mut queue = rig.queue();
                // What nobody wrote is not checked.
                ok(&mut queue, Op::Read { lba: 0 }, Data::One(rig.buf(65536)));
                for (lba, len) in [(8, 4096), (80, 65536), (1000, 12288)] {
                    ok(&mut queue, Op::Write { lba }, Data::One(rig.pattern(len, lba)));
                    let read = one(ok(&mut queue, Op::Read { lba }, Data::One(rig.buf(len))));
                    assert!(read.bytes() == pattern(len as usize, lba), "{target}");
                    ok(&mut queue, Op::Compare { lba }, Data::One(rig.pattern(len, lba)));
                    ok(&mut queue, Op::Verify { lba, blocks: len / ns.block_size }, Data::None);
                }
                ok(&mut queue, Op::WriteZeroes { lba: 1001, blocks: 2 }, Data::None);
                ok(&mut queue, Op::Verify { lba: 1000, blocks: 3 }, Data::None);
                // A copy lies elsewhere, and has other reference tags.
                let from = [BlockRange { lba: 8, blocks: 1 }, BlockRange { lba: 80, blocks: 2 }];
                queue.submit_copy(5, 1, 2000, &from, None).unwrap();
                queue.ring();
                assert_eq!(wait(&mut queue, 1)[0].status, Status::Ok);
                let size = ns.block_size;
                let read = one(ok(&mut queue, Op::Read { lba: 2001 }, Data::One(rig.buf(2 * size))));
                assert!(read.bytes() == &pattern(65536, 80)[..2 * size as usize], "{target}");
                ok(&mut queue, Op::Deallocate { lba: 80, blocks: 2 }, Data::None);
                ok(&mut queue, Op::Read { lba: 80 }, Data::One(rig.buf(2 * size)));
                drop((read, queue));
                assert_eq!((rig.pool.available(), rig.nvme.quarantined()), (96, 0));
            }
        }
    }
}

#[test]
fn metadata_goes_along_as_it_is() {
    for shape in shapes() {
        for more in ["", ",mdts=1,sgl=1", ",sgl=1,noiob=3,queues=1,entries=4"] {
            // Blocks across buffers want SGLs, or buffers that meet at a page.
            let rig = rig(&shape.target(more));
            let mut queue = rig.queue();
            let sent = shape.data(&rig, Some(3));
            let wrote = shape.blocks(&sent);
            let sent = with(&mut queue, Op::Write { lba: LBA }, sent, Protection::none());
            assert_eq!(sent.status, Status::Ok, "{shape:?}");
            let read = with(&mut queue, Op::Read { lba: LBA }, shape.data(&rig, None), Protection::none());
            assert_eq!(read.status, Status::Ok, "{shape:?}");
            assert!(shape.blocks(&read.data) == wrote, "{shape:?}{more}");
            let same = with(&mut queue, Op::Compare { lba: LBA }, read.data, Protection::none());
            assert_eq!(same.status, Status::Ok, "{shape:?}");
            drop((sent, same));
            drop(queue);
            assert_eq!(rig.pool.available(), 96);
        }
    }
}

/// From end to end: the driver makes it, the controller checks it as it writes and reads, the driver checks what comes back.
#[test]
fn the_driver_makes_and_checks_protection_information() {
    for shape in shapes().into_iter().filter(|shape| shape.pi > 0) {
        for reference_tag in [None, Some(0xffff_fffc)] {
            if shape.pi == 1 && reference_tag.is_some() {
                continue;
            }
            let rig = rig(&shape.target(",sgl=1"));
            let mut queue = rig.queue();
            let tagged = Protection {
                check: Checks { reference_tag: shape.pi != 3, ..Checks::ALL },
                host_check: Checks::ALL,
                application_tag: 0x5a17,
                reference_tag,
                // As many of these bits as there are.
                storage_tag: 0x1234_5678_9abc_def0,
                ..Protection::host()
            };
            let sent = with(&mut queue, Op::Write { lba: LBA }, shape.data(&rig, Some(3)), tagged);
            assert_eq!(sent.status, Status::Ok, "{shape:?}");
            let made = shape.blocks(&sent.data);
            let read = with(&mut queue, Op::Read { lba: LBA }, shape.data(&rig, None), tagged);
            assert_eq!((read.status, queue.protection_error()), (Status::Ok, None), "{shape:?}");
            assert!(shape.blocks(&read.data) == made, "{shape:?}");
            // The same is made by the controller: guard, application tag and reference tag.
            if shape.ms == 8 {
                let data: Vec<u8> = made.iter().flat_map(|(data, _)| data.clone()).collect();
                let mut buf = rig.buf(data.len() as u32);
                buf.copy_from(&data);
                let action = Protection { action: true, check: Checks::NONE, ..tagged };
                assert_eq!(with(&mut queue, Op::Write { lba: LBA }, Data::One(buf), action).status, Status::Ok);
                let read = with(&mut queue, Op::Read { lba: LBA }, shape.data(&rig, None), Protection::none());
                assert!(shape.blocks(&read.data) == made, "{shape:?}");
            }
            // Another application tag than was written, where the mask looks at that bit.
            let other = Protection { check: Checks::NONE, application_tag: 0x5a16, ..tagged };
            let read = with(&mut queue, Op::Read { lba: LBA }, shape.data(&rig, None), other);
            assert_eq!(named(read.status), Some("End-to-end Application Tag Check Error"));
            assert_eq!(queue.protection_error().map(|e| (e.lba, e.expected, e.found)), Some((LBA, 0x5a16, 0x5a17)));
            let masked = Protection { application_tag_mask: 0xfff0, ..other };
            let read = with(&mut queue, Op::Read { lba: LBA }, shape.data(&rig, None), masked);
            assert_eq!(read.status, Status::Ok);
        }
    }
}

/// Reference tags have 48 bits, of which the upper ones are in a dword of their own; blocks that have them are far away.
#[test]
fn guards_have_64_bits() {
    for (pi, mset) in KINDS.into_iter().flat_map(|pi| [(pi, 0), (pi, 1)]) {
        let rig = rig(&format!("sim:nvme,size=16T,ms=16,mset={mset},pi={pi},pif=2"));
        let ns = rig.nvme.namespaces()[0].clone();
        assert_eq!((ns.guards, ns.is_plain(), &ns.unsupported), (GuardFormat::Bits64, true, &None));
        let mut queue = rig.queue();
        let lba = 1 << 34 | 5;
        ok(&mut queue, Op::Write { lba }, Data::One(rig.pattern(8192, lba)));
        let read = one(ok(&mut queue, Op::Read { lba: lba + 1 }, Data::One(rig.buf(4096))));
        assert!(read.bytes() == &pattern(8192, lba)[512..512 + 4096], "type {pi}");
        ok(&mut queue, Op::Verify { lba, blocks: 16 }, Data::None);
        ok(&mut queue, Op::Compare { lba }, Data::One(rig.pattern(8192, lba)));
        ok(&mut queue, Op::WriteZeroes { lba, blocks: 3 }, Data::None);
        ok(&mut queue, Op::Verify { lba, blocks: 16 }, Data::None);
        // A tag that differs in its upper bits alone.
        let tagged = |tag| Protection { reference_tag: Some(tag), ..Protection::controller() };
        if pi == 2 {
            let write = with(&mut queue, Op::Write { lba: 9 }, Data::One(rig.pattern(512, 1)), tagged(5 << 32 | 7));
            assert_eq!(write.status, Status::Ok);
            let read = |queue: &mut Queue, tag| {
                named(with(queue, Op::Read { lba: 9 }, Data::One(rig.buf(512)), tagged(tag)).status)
            };
            assert_eq!(read(&mut queue, 5 << 32 | 7), None);
            assert_eq!(read(&mut queue, 6 << 32 | 7), Some("End-to-end Reference Tag Check Error"));
        }
        let copy = queue.submit_copy(5, 1, 2000, &[BlockRange { lba: 8, blocks: 1 }], None);
        assert!(matches!(copy, Err(Reject::Invalid(_))));
    }
}

/// Guards of 32 bits, whose reference tags have 64 bits beside a storage tag of 16: whole block numbers.
#[test]
fn guards_have_32_bits() {
    for (pi, mset) in KINDS.into_iter().flat_map(|pi| [(pi, 0), (pi, 1)]) {
        let rig = rig(&format!("sim:nvme,size=16T,ms=16,mset={mset},pi={pi},pif=1"));
        let ns = rig.nvme.namespaces()[0].clone();
        assert_eq!((ns.guards, ns.storage_tag_size, ns.is_plain()), (GuardFormat::Bits32, 16, true));
        assert_eq!((ns.storage_tag_mask, &ns.unsupported), (0xffff, &None));
        let mut queue = rig.queue();
        let lba = 1 << 34 | 5;
        ok(&mut queue, Op::Write { lba }, Data::One(rig.pattern(8192, lba)));
        let read = one(ok(&mut queue, Op::Read { lba: lba + 1 }, Data::One(rig.buf(4096))));
        assert!(read.bytes() == &pattern(8192, lba)[512..512 + 4096], "type {pi}");
        ok(&mut queue, Op::Verify { lba, blocks: 16 }, Data::None);
        ok(&mut queue, Op::Compare { lba }, Data::One(rig.pattern(8192, lba)));
        if pi == 2 {
            // A tag that differs in its uppermost bits alone, which are in dword 3.
            let tagged = |tag| Protection { reference_tag: Some(tag), ..Protection::controller() };
            let write = with(&mut queue, Op::Write { lba: 9 }, Data::One(rig.pattern(512, 1)), tagged(5 << 61 | 7));
            assert_eq!(write.status, Status::Ok);
            let mut read =
                |tag| named(with(&mut queue, Op::Read { lba: 9 }, Data::One(rig.buf(512)), tagged(tag)).status);
            assert_eq!(read(5 << 61 | 7), None);
            assert_eq!(read(4 << 61 | 7), Some("End-to-end Reference Tag Check Error"));
        }
        let copy = queue.submit_copy(5, 1, 2000, &[BlockRange { lba: 8, blocks: 1 }], None);
        assert!(matches!(copy, Err(Reject::Invalid(_))));
    }
}

/// Storage tags of all sizes, which the controller and the driver compare where they are asked to.
#[test]
fn storage_tags_are_compared() {
    let formats = ["ms=8,sts=1", "ms=8,sts=32", "ms=16,pif=1,sts=16", "ms=16,pif=1,sts=33", "ms=16,pif=1,sts=64"];
    for format in formats.into_iter().chain(["ms=16,pif=2,sts=16", "ms=16,pif=2,sts=48"]) {
        let rig = rig(&format!("sim:nvme,size=1M,mset=1,pi=2,{format}"));
        let size = rig.nvme.namespaces()[0].storage_tag_size;
        let mut queue = rig.queue();
        let tag = 0xdead_beef_5a5a_a5a5_u64;
        // Bits that no storage tag of this size has are not looked at.
        let top = 1u64 << (size - 1);
        let len = 512 + rig.nvme.namespaces()[0].metadata_size as usize;
        let fresh = || Data::One(rig.buf(8 * len as u32));
        let controller = Checks { storage_tag: true, ..Checks::PLACE };
        let whole = Protection { check: controller, storage_tag: tag, ..Protection::host() };
        let write = with(&mut queue, Op::Write { lba: 3 }, fresh(), whole);
        assert_eq!(write.status, Status::Ok, "{format}");
        for (storage_tag, want) in [(tag, None), (tag ^ top, Some("End-to-End Storage Tag Check Error"))] {
            let by_controller = Protection { host_check: Checks::NONE, storage_tag, ..whole };
            let read = with(&mut queue, Op::Read { lba: 3 }, fresh(), by_controller);
            assert_eq!(named(read.status), want, "{format}: the controller");
            let host_check = controller;
            let by_driver = Protection { check: Checks::NONE, host_check, storage_tag, ..whole };
            let read = with(&mut queue, Op::Read { lba: 3 }, fresh(), by_driver);
            assert_eq!(named(read.status), want, "{format}: the driver");
            // Who does not ask is not told.
            let neither = Protection { check: Checks::PLACE, host_check: Checks::PLACE, storage_tag, ..whole };
            assert_eq!(with(&mut queue, Op::Read { lba: 3 }, fresh(), neither).status, Status::Ok, "{format}");
        }
    }
}

/// What flips, and what that is called.
const FLIPS: [(&str, &str); 4] = [
    ("data", "End-to-end Guard Check Error"),
    ("guard", "End-to-end Guard Check Error"),
    ("apptag", "End-to-end Application Tag Check Error"),
    ("reftag", "End-to-end Reference Tag Check Error"),
];

#[test]
fn one_flipped_bit_is_caught_by_name_by_the_controller() {
    let formats = ["ms=8", "ms=16,pif=1", "ms=16,pif=2"];
    for (pi, guards) in KINDS.into_iter().flat_map(|pi| formats.map(|format| (pi, format))) {
        for (fault, name) in FLIPS {
            // The third I/O command is a read of the third block and its followers.
            let rig = rig(&format!("sim:nvme,size=1M,{guards},pi={pi},faults={fault}:@3"));
            let mut queue = rig.queue();
            let protection = Protection {
                check: Checks { reference_tag: pi != 3, ..Checks::ALL },
                application_tag: 0x1234,
                ..Protection::controller()
            };
            let write = with(&mut queue, Op::Write { lba: 0 }, Data::One(rig.pattern(4096, 1)), protection);
            assert_eq!(write.status, Status::Ok);
            let read = with(&mut queue, Op::Read { lba: 0 }, Data::One(rig.buf(4096)), protection);
            assert!(read.status == Status::Ok && read.data.bufs()[0].bytes() == pattern(4096, 1));
            for op in [Op::Read { lba: 2 }, Op::Read { lba: 0 }, Op::Verify { lba: 0, blocks: 8 }] {
                let data = if matches!(op, Op::Verify { .. }) { Data::None } else { Data::One(rig.buf(3 * 512)) };
                let status = with(&mut queue, op, data, protection).status;
                let want = if fault == "reftag" && pi == 3 { None } else { Some(name) };
                assert_eq!(named(status), want, "type {pi}, {fault}, {op:?}");
                if want.is_some() {
                    let log = rig.nvme.error_log().unwrap();
                    assert_eq!((log[0].lba, log[0].status.name()), (2, want), "the block");
                }
            }
            // The others are as they were.
            assert_eq!(with(&mut queue, Op::Read { lba: 3 }, Data::One(rig.buf(512)), protection).status, Status::Ok);
        }
    }
}

#[test]
fn one_flipped_bit_is_caught_by_name_by_the_driver() {
    for shape in shapes().into_iter().filter(|shape| shape.pi > 0) {
        for (fault, name) in FLIPS {
            let rig = rig(&shape.target(&format!(",sgl=1,mdts=1,faults={fault}:@50")));
            let mut queue = rig.queue();
            let host = Protection {
                check: Checks::NONE,
                host_check: Checks::ALL,
                application_tag: 0x1234,
                ..Protection::host()
            };
            let mut read = || {
                let read = with(&mut queue, Op::Read { lba: LBA }, shape.data(&rig, None), host);
                (read.status, queue.protection_error().copied())
            };
            // Nothing of what was never written is wrong.
            assert_eq!(read(), (Status::Ok, None));
            let write = with(&mut queue, Op::Write { lba: LBA }, shape.data(&rig, Some(9)), host);
            assert_eq!(write.status, Status::Ok);
            // A command at a time comes closer to the fault.
            let found = (0..60).find_map(|_| {
                let read = with(&mut queue, Op::Read { lba: LBA }, shape.data(&rig, None), host);
                (read.status != Status::Ok).then_some((read.status, queue.protection_error().copied()))
            });
            if fault == "reftag" && shape.pi == 3 {
                assert_eq!(found, None);
                continue;
            }
            let (status, error) = found.expect("the fault struck");
            assert_eq!(named(status), Some(name), "{shape:?} {fault}");
            let error = error.expect("what was found");
            assert_eq!(error.status.name(), Some(name));
            assert!((LBA..LBA + BLOCKS as u64).contains(&error.lba), "{error}");
        }
    }
}

#[test]
fn what_makes_no_sense_comes_back() {
    let rig1 = rig("sim:nvme,size=1M,ms=16,pi=1");
    let mut queue = rig1.queue();
    let why = |queue: &mut Queue, data, protection: Option<Protection>| {
        let req = request(1, Op::Write { lba: 0 }, data);
        let rejected = match protection {
            Some(protection) => queue.submit_with_metadata(req, protection),
            None => queue.submit(req),
        };
        let Reject::Invalid(why) = rejected.unwrap_err().why else { panic!() };
        why
    };
    let plain = why(&mut queue, Data::One(rig1.buf(512)), None);
    assert!(plain.contains("submit_with_metadata"), "{plain}");
    for data in [
        Data::One(rig1.buf(512)),
        Data::Many([rig1.buf(512), rig1.buf(15)].into()),
        Data::Many([rig1.buf(1024), rig1.buf(16)].into()),
        Data::None,
    ] {
        let why = why(&mut queue, data, Some(Protection::none()));
        assert!(why.contains("metadata of all its blocks"), "{why}");
    }
    assert!(Disk::namespaces(&rig1.nvme).is_empty() && !rig1.nvme.namespaces()[0].is_plain());
    let rig2 = rig("sim:nvme,size=1M,ms=8,mset=1");
    let mut queue = rig2.queue();
    assert!(why(&mut queue, Data::One(rig2.buf(1024)), Some(Protection::none())).contains("block size"));
    let rig3 = rig("sim:nvme,size=1M");
    let mut queue = rig3.queue();
    assert_eq!(why(&mut queue, Data::One(rig3.buf(512)), Some(Protection::none())), "the namespace has no metadata");
    // A reference tag that type 1 does not allow.
    let rig4 = rig("sim:nvme,size=1M,ms=8,pi=1");
    let mut queue = rig4.queue();
    let tag = Protection { reference_tag: Some(7), ..Protection::controller() };
    let done = with(&mut queue, Op::Write { lba: 0 }, Data::One(rig4.buf(512)), tag);
    assert_eq!(named(done.status), Some("Invalid Protection Information"));
}

/// A queue that goes from one namespace to the other sends neither what the other's commands had.
#[test]
fn formats_come_and_go() {
    let rig = rig("sim:nvme,size=1M,ns=2,ms=8,pi=2");
    let format = |lba_format, protection| Format { lba_format, protection, ..Format::default() };
    rig.nvme.format(2, format(0, 0), LONG).unwrap();
    let shape: Vec<_> = rig.nvme.namespaces().iter().map(|n| (n.metadata_size, n.protection.is_some())).collect();
    assert_eq!(shape, [(8, true), (0, false)]);
    let mut queue = rig.queue();
    for round in 0..600u64 {
        for nsid in [1, 2, 2] {
            let lba = round % 100;
            let done = run_on(&mut queue, nsid, Op::Write { lba }, Data::One(rig.pattern(512, round)));
            assert_eq!(done.status, Status::Ok);
            let read = run_on(&mut queue, nsid, Op::Read { lba }, Data::One(rig.buf(512)));
            assert!(read.status == Status::Ok && one(read.data).bytes() == pattern(512, round));
        }
    }
    assert!(matches!(rig.nvme.format(1, format(2, 1), LONG), Err(Error::QueuesExist { .. })));
    drop(queue);
    for (lba_format, protection) in [(2, 1), (3, 3), (0, 0), (2, 0)] {
        rig.nvme.format(1, format(lba_format, protection), LONG).unwrap();
        let mut queue = rig.queue();
        let ns = rig.nvme.namespaces()[0].clone();
        if ns.is_plain() {
            ok(&mut queue, Op::Write { lba: 1 }, Data::One(rig.pattern(4096, 5)));
            assert!(one(ok(&mut queue, Op::Read { lba: 1 }, Data::One(rig.buf(4096)))).bytes() == pattern(4096, 5));
        }
    }
}

/// A million blocks of each type, written and read, by the driver's checks and by the controller's.
#[test]
#[ignore = "minutes"]
fn a_million_blocks_of_each_type() {
    const COUNT: u64 = 1_000_000;
    for pi in KINDS {
        let rig = rig(&format!("sim:nvme,size=1G,ms=8,pi={pi},mset={}", pi % 2));
        let shape = Shape { ms: 8, extended: pi % 2 == 1, pi, first: false, block: 512, format: "" };
        let mut queue = rig.queue();
        for (round, protection) in [Protection::controller(), Protection::host()].into_iter().enumerate() {
            // Commands of 120 blocks, and a last one of 40: half of all by each.
            let half = COUNT / 2;
            let unit = 512 + if protection.action || !shape.extended { 0 } else { 8 };
            for lba in (0..half).step_by(120) {
                let blocks = 120.min(half - lba) as u32;
                let lba = lba + half * round as u64;
                let bufs = |seed: Option<u64>| -> Data {
                    let make = |len, seed| match seed {
                        Some(seed) => rig.pattern(len, seed),
                        None => rig.buf(len),
                    };
                    let data = make(blocks * unit, seed);
                    match protection.action || shape.extended {
                        true => Data::One(data),
                        false => Data::Many([data, make(blocks * 8, seed)].into()),
                    }
                };
                let sent = with(&mut queue, Op::Write { lba }, bufs(Some(lba)), protection);
                assert_eq!(sent.status, Status::Ok);
                let read = with(&mut queue, Op::Read { lba }, bufs(None), protection);
                assert_eq!((read.status, queue.protection_error()), (Status::Ok, None), "type {pi}, block {lba}");
                let same = sent.data.bufs().iter().zip(read.data.bufs()).all(|(a, b)| a.bytes() == b.bytes());
                assert!(same, "type {pi}, block {lba}");
            }
        }
        println!("type {pi}: {COUNT} blocks");
    }
}

/// A read that was to be checked, and was ended by a reset, leaves nothing behind that the next one is checked by.
#[test]
fn a_reset_ends_checked_reads() {
    let rig = rig("sim:nvme,size=1M,ms=8,pi=1,mset=1,faults=drop:@2");
    let mut queue = rig.queue();
    let write = with(&mut queue, Op::Write { lba: 3 }, Data::One(rig.pattern(2 * 520, 1)), Protection::host());
    assert_eq!(write.status, Status::Ok);
    queue.submit_with_metadata(request(1, Op::Read { lba: 50 }, Data::One(rig.buf(520))), Protection::host()).unwrap();
    queue.ring();
    // The model has dropped it, and will drop none after the reset.
    let start = std::time::Instant::now();
    while rig.opened.fault_counts.as_ref().unwrap().total() == 0 {
        std::thread::yield_now();
        assert!(start.elapsed() < LONG);
    }
    rig.nvme.request_reset();
    assert_eq!(wait(&mut queue, 1)[0].status, Status::Aborted);
    // It goes on at its next poll.
    let start = std::time::Instant::now();
    while queue.state() != QueueState::Running {
        queue.poll_each(1, |_| unreachable!("nothing is in flight"));
        std::thread::yield_now();
        assert!(start.elapsed() < LONG);
    }
    for _ in 0..300 {
        let read = with(&mut queue, Op::Read { lba: 3 }, Data::One(rig.buf(2 * 520)), Protection::host());
        assert_eq!((read.status, queue.protection_error()), (Status::Ok, None));
        assert!(read.data.bufs()[0].bytes() == write.data.bufs()[0].bytes());
    }
}

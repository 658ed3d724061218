//! PRPs and SGLs: where a command's data may be, and what is refused. Tables of cases: too many for Miri.
#![cfg(not(miri))]

mod common;

use common::{Cmd, PAGE, Pair, Rig};
use wholebar_core::mem::Chunk;
use wholebar_core::pci::PciDevice;

const WRITE: u8 = 1;
const READ: u8 = 2;
const BLOCK: u64 = 512;

/// A controller whose first 128 KiB hold a pattern, and memory to read into.
struct Case {
    rig: Rig,
    q: Pair,
    memory: Chunk,
    /// The memory's device address.
    at: u64,
}

const PAGES: u64 = 40;

fn pattern(len: u64) -> Vec<u8> {
    (0..len).map(|i| (i ^ i >> 8 ^ i >> 13) as u8).collect()
}

impl Case {
    fn new(params: &str) -> Self {
        let mut rig = Rig::new(&format!("size=1M,{params}"));
        let mut q = rig.pair(1, 8);
        let memory = rig.memory(PAGES * PAGE);
        let at = rig.at(&memory);
        let data = pattern(128 << 10);
        // Page by page: what is tested is not what sets it up.
        for (i, page) in data.chunks(PAGE as usize).enumerate() {
            memory.write(0, page).unwrap();
            assert_eq!(rig.io(&mut q, Cmd::rw(WRITE, 8 * i as u64, 8).prp(at, 0)).status, 0);
        }
        memory.zero();
        Self { rig, q, memory, at }
    }

    fn read(&mut self, blocks: u64, cmd: impl FnOnce(Cmd) -> Cmd) -> u16 {
        self.rig.io(&mut self.q, cmd(Cmd::rw(READ, 0, blocks as u32))).code()
    }

    /// Writes 64-bit words at an offset of the memory.
    fn words(&self, offset: u64, words: &[u64]) {
        self.memory.write(offset, words.iter().map(|w| w.to_le_bytes()).collect::<Vec<_>>().as_flattened()).unwrap();
    }

    /// What lies at these places, each an offset and a length, one after the other.
    fn gather(&self, places: &[(u64, u64)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (offset, len) in places {
            let mut part = vec![0; *len as usize];
            self.memory.read(*offset, &mut part).unwrap();
            out.extend(part);
        }
        out
    }
}

#[test]
fn prp_shapes() {
    // Blocks, offset in the first page, and pages the data takes.
    for (blocks, offset) in [
        (1, 0),
        (1, 4),
        (1, PAGE - BLOCK),
        (1, PAGE - 4),
        (8, 0),
        (8, BLOCK),
        (9, 0),
        (16, 0),
        (16, 4),
        (17, 0),
        (64, 2048),
        (256, 0),
        (256, PAGE - 4),
    ] {
        let mut c = Case::new("");
        let len = blocks * BLOCK;
        let first = len.min(PAGE - offset);
        let rest = (len - first).div_ceil(PAGE);
        // Data pages from page 2 on, in falling order: contiguous they would prove less. The list is in page 0.
        let page = |n: u64| (PAGES - 1 - n) * PAGE;
        let mut places = vec![(page(0) + offset, first)];
        places.extend((0..rest).map(|n| (page(n + 1), (len - first - n * PAGE).min(PAGE))));
        let prp2 = match rest {
            0 => 0xdead_beef,
            1 => c.at + page(1),
            _ => {
                c.words(0, &(0..rest).map(|n| c.at + page(n + 1)).collect::<Vec<_>>());
                c.at
            }
        };
        let at = c.at;
        assert_eq!(c.read(blocks, |cmd| cmd.prp(at + page(0) + offset, prp2)), 0, "{blocks} blocks at {offset:#x}");
        assert_eq!(c.gather(&places), pattern(len), "{blocks} blocks at {offset:#x}");
        // And nothing else was written: the pages between list and data are as they were.
        let end = page(rest);
        assert!(c.gather(&[(PAGE, end - PAGE)]).iter().all(|b| *b == 0));
    }
}

#[test]
fn prp_lists_chain_at_the_end_of_their_page() {
    // A list that begins so many entries before its page ends, of a command of 1 + 31 pages.
    for before in [1u64, 2, 5, 30, 31, 32] {
        let mut c = Case::new("");
        let at = c.at;
        let page = |n: u64| (PAGES - 1 - n) * PAGE;
        let (blocks, entries) = (256, 31);
        let start = PAGE - 8 * before;
        let data: Vec<u64> = (1..=entries).map(|n| at + page(n)).collect();
        if before >= entries {
            c.words(start, &data);
        } else {
            // The last entry of the page points to the next list, in page 1.
            let here = before as usize - 1;
            c.words(start, &data[..here]);
            c.words(PAGE - 8, &[at + PAGE]);
            c.words(PAGE, &data[here..]);
        }
        assert_eq!(c.read(blocks, |cmd| cmd.prp(at + page(0), at + start)), 0, "{before} entries");
        let places: Vec<_> = (0..=entries).map(|n| (page(n), PAGE)).collect();
        assert_eq!(c.gather(&places), pattern(blocks * BLOCK), "{before} entries");
    }
}

#[test]
fn prps_that_are_refused() {
    const OFFSET: u16 = 0x13;
    const TRANSFER: u16 = 0x04;
    const WILD: u64 = 0x7000_0000_0000;
    let mut c = Case::new("");
    let at = c.at;
    // Lists in pages 4 to 7.
    c.words(4 * PAGE, &[at, at + PAGE + 8]);
    c.words(5 * PAGE, &[at, WILD]);
    c.words(6 * PAGE - 8, &[at + 8 * PAGE + 16]);
    c.words(7 * PAGE - 8, &[WILD]);
    for (what, blocks, prp1, prp2, code) in [
        ("not dword-aligned", 1, at + 2, 0, OFFSET),
        ("second page with an offset", 16, at, at + PAGE + 512, OFFSET),
        ("list not qword-aligned", 24, at, at + 4 * PAGE + 4, OFFSET),
        ("list entry with an offset", 24, at, at + 4 * PAGE, OFFSET),
        ("chain with an offset", 32, at, at + 6 * PAGE - 8, OFFSET),
        ("first page nowhere", 1, WILD, 0, TRANSFER),
        ("address 0", 1, 0, 0, TRANSFER),
        ("last page of all addresses", 16, 0xffff_ffff_ffff_f000, at, TRANSFER),
        ("second page nowhere", 16, at, WILD, TRANSFER),
        ("list nowhere", 24, at, WILD, TRANSFER),
        ("list entry nowhere", 24, at, at + 5 * PAGE, TRANSFER),
        ("chain to nowhere", 32, at, at + 7 * PAGE - 8, TRANSFER),
    ] {
        assert_eq!(c.read(blocks, |cmd| cmd.prp(prp1, prp2)), code, "{what}");
    }
    // A transfer error may be tried again; what is malformed may not.
    let done = c.rig.io(&mut c.q, Cmd::rw(READ, 0, 1).prp(WILD, 0));
    assert_eq!(done.status & common::DNR, 0);
    let done = c.rig.io(&mut c.q, Cmd::rw(READ, 0, 1).prp(at + 1, 0));
    assert_ne!(done.status & common::DNR, 0);
    // And the controller goes on.
    assert_eq!(c.read(1, |cmd| cmd.prp(at, 0)), 0);
}

/// An SGL descriptor: type and subtype in the last byte.
fn sgl(kind: u64, address: u64, len: u64) -> [u64; 2] {
    [address, kind << 56 | len]
}

const DATA: u64 = 0x00;
const SEGMENT: u64 = 0x20;
const LAST: u64 = 0x30;

#[test]
fn sgl_shapes() {
    let mut c = Case::new("sgl=1");
    let at = c.at;
    // One block, anywhere.
    assert_eq!(c.read(8, |cmd| cmd.sgl(sgl(DATA, at + 3, 4096))), 0);
    assert_eq!(c.gather(&[(3, 4096)]), pattern(4096));
    // PSDT 10b says where metadata is, of which there is none.
    assert_eq!(c.read(1, |cmd| cmd.dw0(2 << 14).prp(at + 9, 512)), 0);
    assert_eq!(c.gather(&[(9, 512)]), pattern(512));
    // A last segment of three blocks, one of them empty.
    c.words(0x8000, [sgl(DATA, at + 0x1001, 1000), sgl(DATA, 1, 0), sgl(DATA, at + 0x2000, 3096)].as_flattened());
    assert_eq!(c.read(8, |cmd| cmd.sgl(sgl(LAST, at + 0x8000, 48))), 0);
    assert_eq!(c.gather(&[(0x1001, 1000), (0x2000, 3096)]), pattern(4096));
    // A segment, a segment, and the last.
    c.words(0x9000, [sgl(DATA, at + 0x3000, 512), sgl(SEGMENT, at + 0xa000, 32)].as_flattened());
    c.words(0xa000, [sgl(DATA, at + 0x4000, 512), sgl(LAST, at + 0xb000, 16)].as_flattened());
    c.words(0xb000, &sgl(DATA, at + 0x5000, 1024));
    assert_eq!(c.read(4, |cmd| cmd.sgl(sgl(SEGMENT, at + 0x9000, 32))), 0);
    assert_eq!(c.gather(&[(0x3000, 512), (0x4000, 512), (0x5000, 1024)]), pattern(2048));
    // And PRPs still work.
    assert_eq!(c.read(1, |cmd| cmd.prp(at, 0)), 0);
}

#[test]
fn sgls_that_are_refused() {
    let mut c = Case::new("sgl=1");
    let at = c.at;
    let wild = 0x7000_0000_0000;
    let segment = |c: &Case, n: u64, descriptors: &[[u64; 2]]| {
        c.words(0x8000 + 0x1000 * n, descriptors.as_flattened());
        at + 0x8000 + 0x1000 * n
    };
    let block = sgl(DATA, at, 512);
    let too_much = segment(&c, 0, &[block, block]);
    let points_on = segment(&c, 1, &[block, sgl(LAST, at, 16)]);
    let ends = segment(&c, 2, &[block, block]);
    let in_between = segment(&c, 3, &[sgl(LAST, too_much, 16), block]);
    let odd = segment(&c, 4, &[sgl(0x40, at, 512)]);
    let circle = segment(&c, 5, &[sgl(SEGMENT, at + 0xd000, 16)]);
    for (what, blocks, descriptor, code) in [
        ("a bit bucket", 1, sgl(0x10, at, 512), 0x11),
        ("a keyed block", 1, sgl(0x40, at, 512), 0x11),
        ("an offset", 1, sgl(0x01, at, 512), 0x11),
        ("a keyed block in a segment", 1, sgl(LAST, odd, 16), 0x11),
        ("too little data", 2, block, 0x0f),
        ("too much data", 1, sgl(DATA, at, 513), 0x0f),
        ("too much in a segment", 1, sgl(LAST, too_much, 32), 0x0f),
        ("no data at all", 1, sgl(DATA, at, 0), 0x0f),
        ("an empty segment", 1, sgl(LAST, too_much, 0), 0x0d),
        ("half a descriptor", 1, sgl(LAST, too_much, 24), 0x0d),
        ("a last segment that points on", 1, sgl(LAST, points_on, 32), 0x0d),
        ("a segment that ends", 2, sgl(SEGMENT, ends, 32), 0x0d),
        ("a segment in between", 2, sgl(SEGMENT, in_between, 32), 0x0d),
        ("a circle", 1, sgl(SEGMENT, circle, 16), 0x0e),
        ("a very long segment", 1, sgl(LAST, at, 16 * 4097), 0x0e),
        ("data nowhere", 1, sgl(DATA, wild, 512), 0x04),
        ("data around the end of addresses", 1, sgl(DATA, u64::MAX - 100, 512), 0x04),
        ("a segment nowhere", 1, sgl(LAST, wild, 16), 0x04),
        ("a segment that is not aligned to its words", 1, sgl(LAST, too_much + 4, 16), 0x04),
    ] {
        assert_eq!(c.read(blocks, |cmd| cmd.sgl(descriptor)), code, "{what}");
    }
    assert_eq!(c.read(1, |cmd| cmd.dw0(3 << 14).prp(at, 0)), 0x02, "PSDT 11b");
    assert_eq!(c.read(1, |cmd| cmd.sgl(block)), 0, "and the controller goes on");
}

#[test]
fn sgls_are_not_for_controllers_that_do_not_offer_them() {
    let mut c = Case::new("sgl=0");
    let at = c.at;
    assert_eq!(c.read(1, |cmd| cmd.sgl(sgl(DATA, at, 512))), 0x02);
}

#[test]
fn transfers_have_a_limit() {
    for (mdts, most) in [(1, 16), (3, 64), (5, 256)] {
        let mut c = Case::new(&format!("mdts={mdts},sgl=1"));
        let at = c.at;
        assert_eq!(c.read(most, |cmd| cmd.sgl(sgl(DATA, at, most * BLOCK))), 0);
        assert_eq!(c.read(most + 1, |cmd| cmd.sgl(sgl(DATA, at, (most + 1) * BLOCK))), 0x02, "MDTS {mdts}");
    }
    let mut c = Case::new("mdts=0,sgl=1");
    let at = c.at;
    assert_eq!(c.read(300, |cmd| cmd.sgl(sgl(DATA, at, 300 * BLOCK))), 0);
}

#[test]
fn data_may_lie_across_maps() {
    use wholebar_core::mem::{Arena, ArenaOptions};
    let mut c = Case::new("sgl=1");
    // Two more arenas: where they come to lie side by side, one piece of data can cross from one to the other.
    let arenas: Vec<_> = (0..2).map(|_| Arena::new(64 << 10, ArenaOptions::default()).unwrap()).collect();
    let maps: Vec<_> = arenas.iter().map(|a| c.rig.device.dma().attach(a.clone()).unwrap()).collect();
    // Of hugepages, they are larger than asked for.
    let size = arenas[0].len();
    let chunks: Vec<_> = arenas.iter().map(|a| a.alloc(size, 1).unwrap()).collect();
    let (low, high) = (maps[0].iova().0, maps[1].iova().0);
    assert_eq!(low + size, high, "the space places arenas one behind the other");
    let at = high - 1000;
    assert_eq!(c.read(8, |cmd| cmd.sgl(sgl(DATA, at, 4096))), 0);
    let mut back = vec![0; 4096];
    chunks[0].read(size - 1000, &mut back[..1000]).unwrap();
    chunks[1].read(0, &mut back[1000..]).unwrap();
    assert_eq!(back, pattern(4096));
    // Past the end of the second there is nothing.
    let end = high + size;
    assert_eq!(c.read(8, |cmd| cmd.sgl(sgl(DATA, end - 512, 4096))), 0x04);
}

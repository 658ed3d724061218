//! The NVMe model's I/O commands on every backing, through raw rings.

mod common;

use common::{Cmd, DNR, MORE, PAGE, Pair, Rig};
use wholebar_core::mem::Chunk;

const FLUSH: u8 = 0;
const WRITE: u8 = 1;
const READ: u8 = 2;
const COMPARE: u8 = 5;
const ZEROES: u8 = 8;
const DATASET: u8 = 9;
const VERIFY: u8 = 0x0c;

struct Disk {
    rig: Rig,
    q: Pair,
    buf: Chunk,
    at: u64,
    block: usize,
}

impl Disk {
    fn new(params: &str) -> Self {
        let mut rig = Rig::new(params);
        let q = rig.pair(1, 16);
        let buf = rig.memory(2 * PAGE);
        let at = rig.at(&buf);
        let block = if params.contains("block=4096") { 4096 } else { 512 };
        Self { rig, q, buf, at, block }
    }

    fn status(&mut self, cmd: Cmd) -> u16 {
        self.rig.io(&mut self.q, cmd).status
    }

    fn write(&mut self, lba: u64, data: &[u8]) -> u16 {
        self.buf.write(0, data).unwrap();
        let (at, blocks) = (self.at, data.len().div_ceil(self.block) as u32);
        self.status(Cmd::rw(WRITE, lba, blocks).prp(at, at + PAGE))
    }

    fn read(&mut self, lba: u64, blocks: u32) -> Vec<u8> {
        self.buf.zero();
        let at = self.at;
        assert_eq!(self.status(Cmd::rw(READ, lba, blocks).prp(at, at + PAGE)), 0);
        let mut data = vec![0; blocks as usize * self.block];
        self.buf.read(0, &mut data).unwrap();
        data
    }

    fn compare(&mut self, lba: u64, data: &[u8]) -> u16 {
        self.buf.write(0, data).unwrap();
        let (at, blocks) = (self.at, (data.len() / self.block) as u32);
        self.status(Cmd::rw(COMPARE, lba, blocks).prp(at, at + PAGE))
    }

    fn deallocate(&mut self, ranges: &[(u64, u32)]) -> u16 {
        for (i, (lba, blocks)) in ranges.iter().enumerate() {
            let words = [u64::from(*blocks) << 32, *lba];
            self.buf.write(16 * i as u64, words.map(u64::to_le_bytes).as_flattened()).unwrap();
        }
        let at = self.at;
        self.status(Cmd::new(DATASET).nsid(1).dw10(ranges.len() as u32 - 1).dw11(4).prp(at, 0))
    }
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 13 + i / 251 + seed) as u8).collect()
}

/// What any backing that keeps data does.
fn keeps_data(params: &str) {
    let mut d = Disk::new(params);
    let block = d.block;
    let (one, two) = (pattern(block, 1), pattern(2 * block, 2));
    assert_eq!(d.read(0, 1), vec![0; block], "new blocks are zero");
    assert_eq!(d.write(5, &one), 0);
    assert_eq!(d.write(200, &two), 0);
    assert_eq!(d.read(5, 1), one);
    assert_eq!(d.read(200, 2), two);
    assert_eq!(d.read(201, 1), two[block..]);
    assert_eq!(d.read(4, 2), [vec![0; block], one.clone()].concat());
    // A chunk of the model's memory ends at 64 KiB: blocks on both sides of it.
    let edge = (64 << 10) / block as u64 - 1;
    assert_eq!(d.write(edge, &two), 0);
    assert_eq!(d.read(edge, 2), two);

    assert_eq!(d.compare(200, &two), 0);
    let mut other = two.clone();
    other[2 * block - 1] ^= 1;
    assert_eq!(d.compare(200, &other), 0x285 | DNR | MORE);
    assert_eq!(d.compare(100, &vec![0; block]), 0);
    assert_eq!(d.compare(100, &one), 0x285 | DNR | MORE);

    assert_eq!(d.status(Cmd::rw(ZEROES, 200, 1)), 0);
    assert_eq!(d.read(200, 2), [&vec![0; block][..], &two[block..]].concat());
    assert_eq!(d.status(Cmd::rw(ZEROES, 0, 256)), 0);
    assert_eq!(d.read(5, 1), vec![0; block]);
    assert_eq!(d.read(201, 1), vec![0; block]);

    assert_eq!(d.status(Cmd::rw(VERIFY, 0, 256)), 0);
    assert_eq!(d.status(Cmd::new(FLUSH).nsid(1)), 0);
    assert_eq!(d.status(Cmd::new(FLUSH).nsid(u32::MAX)), 0);
    // Forced unit access; and with the write cache off.
    assert_eq!(d.status(Cmd::rw(WRITE, 0, 1).prp(d.at, 0).dw12(1 << 30)), 0);
    assert_eq!(d.rig.admin(Cmd::new(9).dw10(6).dw11(0)).status, 0);
    assert_eq!(d.write(1, &one), 0);
    assert_eq!(d.read(1, 1), one);
}

/// What every backing refuses.
fn refuses(params: &str, blocks: u64) {
    let mut d = Disk::new(params);
    let at = d.at;
    for opcode in [WRITE, READ, COMPARE, ZEROES, VERIFY] {
        for (lba, n) in [(blocks, 1), (blocks - 1, 2), (u64::MAX, 1), (u64::MAX - 1, 2), (1 << 55, 1)] {
            let cmd = Cmd::rw(opcode, lba, n).prp(at, at + PAGE);
            assert_eq!(d.status(cmd), 0x80 | DNR | MORE, "opcode {opcode:#x}, {n} blocks at {lba:#x}");
        }
        for nsid in [0, 2, u32::MAX] {
            let cmd = Cmd::rw(opcode, 0, 1).prp(at, 0).nsid(nsid);
            assert_eq!(d.status(cmd), 0x0b | DNR | MORE, "opcode {opcode:#x}, namespace {nsid}");
        }
        assert_eq!(d.status(Cmd::rw(opcode, 0, 1).prp(at, 0).dw0(1 << 8)), 0x02 | DNR | MORE, "fused");
    }
    assert_eq!(d.status(Cmd::new(FLUSH).nsid(2)), 0x0b | DNR | MORE);
    for opcode in [0x0d, 0x0e, 0x11, 0x15, 0x18, 0x7f, 0x80, 0xff] {
        assert_eq!(d.status(Cmd::rw(opcode, 0, 1)), 0x01 | DNR | MORE, "opcode {opcode:#x}");
    }
    assert_eq!(d.deallocate(&[(0, 1), (blocks - 1, 2)]), 0x80 | DNR | MORE);
    assert_eq!(d.deallocate(&[(u64::MAX, u32::MAX)]), 0x80 | DNR | MORE);
    assert_eq!(d.status(Cmd::new(DATASET).nsid(1).dw11(4).prp(0x7000_0000_0000, 0)), 0x04 | MORE);
}

#[test]
fn memory_keeps_data() {
    keeps_data("size=2M");
    keeps_data("size=2M,block=4096");
}

#[test]
#[cfg_attr(miri, ignore = "hundreds of commands")]
fn memory_refuses() {
    refuses("size=2M", 4096);
    refuses("size=2M,block=4096", 512);
}

#[test]
fn memory_deallocates() {
    // 64 KiB are 128 blocks, 64 MiB are 131,072.
    let mut d = Disk::new("size=256M");
    let data = pattern(512, 3);
    let lbas = [0, 127, 128, 129, 4096, 131_071, 131_072, 300_000, 400_000];
    for lba in lbas {
        assert_eq!(d.write(lba, &data), 0);
    }
    assert_eq!(d.deallocate(&[(127, 1), (128, 128), (4000, 300_000), (0, 0)]), 0);
    for lba in lbas {
        let gone = [127, 128, 129, 4096, 131_071, 131_072, 300_000].contains(&lba);
        assert_eq!(d.read(lba, 1), if gone { vec![0; 512] } else { data.clone() }, "block {lba}");
    }
    // Without the attribute the ranges are a hint.
    d.buf.zero();
    assert_eq!(d.status(Cmd::new(DATASET).nsid(1).dw11(3).prp(d.at, 0)), 0);
    assert_eq!(d.read(0, 1), data);
}

#[test]
fn a_huge_namespace_takes_no_more_than_is_written() {
    let mut d = Disk::new("size=64T,block=4096");
    let data = pattern(4096, 4);
    let last = (64u64 << 40) / 4096 - 1;
    assert_eq!(d.write(last, &data), 0);
    assert_eq!(d.read(last, 1), data);
    assert_eq!(d.deallocate(&[(0, u32::MAX); 256]), 0);
    assert_eq!(d.read(last, 1), data);
}

#[test]
#[cfg_attr(miri, ignore = "hundreds of commands")]
fn nothing_is_kept_by_null() {
    let mut d = Disk::new("size=2M,backing=null");
    let data = pattern(512, 5);
    assert_eq!(d.write(0, &data), 0);
    d.buf.write(0, &data).unwrap();
    let at = d.at;
    assert_eq!(d.status(Cmd::rw(READ, 7, 1).prp(at, 0)), 0);
    let mut back = vec![0; 512];
    d.buf.read(0, &mut back).unwrap();
    assert_eq!(back, data, "a read leaves memory as it is");
    assert_eq!(d.compare(0, &data), 0);
    assert_eq!(d.status(Cmd::rw(READ, 0, 1).prp(0x7000_0000_0000, 0)), 0x04 | MORE, "but it has to be there");
    refuses("size=2M,backing=null", 4096);
}

#[test]
fn namespaces_are_apart() {
    let mut rig = Rig::new("size=1M,ns=2,block=512+4096");
    let mut q = rig.pair(1, 8);
    let buf = rig.memory(PAGE);
    let at = rig.at(&buf);
    buf.write(0, &pattern(4096, 6)).unwrap();
    assert_eq!(rig.io(&mut q, Cmd::rw(WRITE, 0, 1).prp(at, 0).nsid(2)).status, 0);
    buf.zero();
    assert_eq!(rig.io(&mut q, Cmd::rw(READ, 0, 8).prp(at, 0).nsid(1)).status, 0);
    let mut back = vec![1; 4096];
    buf.read(0, &mut back).unwrap();
    assert_eq!(back, vec![0; 4096]);
    assert_eq!(rig.io(&mut q, Cmd::rw(READ, 255, 1).prp(at, 0).nsid(2)).status, 0);
    assert_eq!(rig.io(&mut q, Cmd::rw(READ, 256, 1).prp(at, 0).nsid(2)).code(), 0x80);
    assert_eq!(rig.io(&mut q, Cmd::rw(READ, 2047, 1).prp(at, 0).nsid(1)).status, 0);
}

#[test]
fn two_submission_queues_share_a_completion_queue() {
    let mut rig = Rig::new("size=1M");
    let mut first = rig.pair(1, 8);
    let mut second = common::pair(rig.arena.clone(), 2, 8);
    let sq = rig.at(second.sq.chunk());
    assert_eq!(rig.admin(Cmd::new(1).prp(sq, 0).dw10(7 << 16 | 2).dw11(1 << 16 | 1)).status, 0);
    second.post(Cmd::new(FLUSH).nsid(1).words(21));
    rig.ring(2, 0, second.tail);
    rig.settle();
    first.post(Cmd::new(FLUSH).nsid(1).words(11));
    first.post(Cmd::new(FLUSH).nsid(1).words(12));
    rig.ring(1, 0, first.tail);
    rig.settle();
    let done: Vec<_> = std::iter::from_fn(|| first.take()).map(|d| (d.sq_id, d.cid, d.sq_head)).collect();
    assert_eq!(done, [(2, 21, 1), (1, 11, 1), (1, 12, 2)]);
}

#[cfg(not(miri))]
mod file {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use wholebar_sim::nvme::{Nvme, NvmeParams};

    fn image(len: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(len).unwrap();
        file
    }

    fn error(params: &str) -> String {
        Nvme::new(NvmeParams::parse(params).unwrap()).err().expect("refused").to_string()
    }

    #[test]
    fn a_file_keeps_data() {
        for block in [512, 4096] {
            let file = image(2 << 20);
            keeps_data(&format!("file={},block={block}", file.path().display()));
            assert_eq!(file.as_file().metadata().unwrap().len(), 2 << 20, "it never grows");
        }
    }

    #[test]
    fn a_file_refuses() {
        let file = image(2 << 20);
        refuses(&format!("file={}", file.path().display()), 4096);
    }

    #[test]
    fn what_is_in_the_file_is_on_the_disk() {
        let file = image(1 << 20);
        let data = pattern(1 << 20, 8);
        std::fs::write(file.path(), &data).unwrap();
        let mut d = Disk::new(&format!("file={}", file.path().display()));
        for lba in [0, 1, 127, 128, 2047] {
            assert_eq!(d.read(lba, 1), data[lba as usize * 512..][..512]);
        }
        assert_eq!(d.write(3, &[7; 512]), 0);
        assert_eq!(std::fs::read(file.path()).unwrap()[3 * 512..][..512], [7; 512]);
        assert_eq!(d.deallocate(&[(3, 1)]), 0);
        assert_eq!(d.status(Cmd::rw(ZEROES, 3, 1)), 0);
        assert_eq!(std::fs::read(file.path()).unwrap()[3 * 512..][..512], [0; 512]);
    }

    #[test]
    fn a_part_of_a_file_can_be_used() {
        let file = image(3 << 20);
        let mut d = Disk::new(&format!("size=1M,file={}", file.path().display()));
        assert_eq!(d.read(2047, 1), [0; 512]);
        assert_eq!(d.status(Cmd::rw(READ, 2048, 1)), 0x80 | DNR | MORE);
    }

    #[test]
    fn a_read_only_file_is_write_protected() {
        let file = image(1 << 20);
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o400)).unwrap();
        let mut d = Disk::new(&format!("ro=1,file={}", file.path().display()));
        assert_eq!(d.read(0, 1), [0; 512]);
        for opcode in [WRITE, ZEROES] {
            assert_eq!(d.status(Cmd::rw(opcode, 0, 1).prp(d.at, 0)), 0x20 | DNR | MORE);
        }
        assert_eq!(d.deallocate(&[(0, 1)]), 0x20 | DNR | MORE);
        assert_eq!(d.rig.fetch(Cmd::new(6).nsid(1), 4096)[99], 1, "NSATTR");
    }

    #[test]
    fn files_that_cannot_be_used() {
        let missing = error("file=/nonexistent/disk.img");
        assert!(missing.contains("/nonexistent/disk.img") && missing.contains("make it first"), "{missing}");
        let file = image(1 << 20);
        let short = error(&format!("size=2M,file={}", file.path().display()));
        assert!(short.contains("has 1048576 bytes, 2097152 are asked for"), "{short}");
        let empty = image(0);
        assert!(error(&format!("file={}", empty.path().display())).contains("has 0 bytes"));
        let tiny = image(100);
        assert!(error(&format!("file={}", tiny.path().display())).contains("100 bytes"));
        assert!(error("file=/").contains("backing file /"));
    }

    #[test]
    fn a_file_that_shrinks_is_a_media_error() {
        let file = image(1 << 20);
        let mut d = Disk::new(&format!("file={}", file.path().display()));
        file.as_file().set_len(512).unwrap();
        assert_eq!(d.status(Cmd::rw(READ, 100, 1).prp(d.at, 0)), 0x281 | MORE);
        assert_eq!(d.status(Cmd::rw(VERIFY, 100, 1)), 0x281 | MORE);
        assert_eq!(d.read(0, 1), [0; 512]);
        let smart = d.rig.fetch(Cmd::new(2).dw10(2 | 127 << 16).nsid(u32::MAX), 512);
        assert_eq!(smart[160], 2, "media errors");
    }
}

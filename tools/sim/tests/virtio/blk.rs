//! The block device: requests by hand, in both layouts; what is refused; what is kept.

use crate::net::bytes;
use crate::rig::*;
use wholebar_core::model::InProcess;
use wholebar_sim::virtio::blk::{self, BlkParams};

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
const FLUSH: u64 = 1 << 9;
const WCE: u64 = 1 << 11;
const MQ: u64 = 1 << 12;
const DISCARD: u64 = 1 << 13;
const ZEROES: u64 = 1 << 14;

struct Disk {
    rig: Rig,
    queue: Queue,
}

fn off(params: &str) -> Rig {
    let model = blk::model(BlkParams::parse(params).unwrap()).unwrap();
    Rig::of(InProcess::new(model).unwrap(), None)
}

impl Disk {
    fn new(params: &str, features: u64) -> Self {
        let mut rig = off(params);
        assert_eq!(rig.agree(features | VERSION_1), 11);
        let queue = rig.queue(0, 16);
        rig.ok();
        Self { rig, queue }
    }

    fn header(kind: u32, sector: u64) -> Vec<u8> {
        [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
    }

    /// Does a request: sends `out`, reads `room` bytes; returns them and the status.
    fn request(&mut self, kind: u32, sector: u64, out: &[u8], room: u64) -> (u8, Vec<u8>) {
        let (_header, header) = self.rig.holding(&[Self::header(kind, sector), out.to_vec()].concat());
        let (answer, there) = self.rig.holding(&vec![0xee; room as usize + 1]);
        let mut buffers = vec![(header, 16, false)];
        if !out.is_empty() {
            buffers.push((header + 16, out.len() as u32, false));
        }
        if room > 0 {
            buffers.push((there, room as u32, true));
        }
        buffers.push((there + room, 1, true));
        let id = self.queue.add(&buffers);
        self.rig.settle();
        assert_eq!(self.queue.take(), Some((id, room as u32 + 1)));
        let mut answer = bytes(&answer, room as usize + 1);
        (answer.pop().unwrap(), answer)
    }

    fn read(&mut self, sector: u64, sectors: u64) -> (u8, Vec<u8>) {
        self.request(0, sector, &[], sectors * 512)
    }

    fn write(&mut self, sector: u64, data: &[u8]) -> u8 {
        self.request(1, sector, data, 0).0
    }
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add((i >> 8) as u8).wrapping_add(seed)).collect()
}

fn range(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn what_was_written_is_read() {
    for layout in [0, PACKED, INDIRECT, PACKED | IN_ORDER] {
        let mut disk = Disk::new("size=1M", layout | FLUSH);
        let data = pattern(4096, 1);
        assert_eq!(disk.write(7, &data), OK);
        assert_eq!(disk.read(7, 8), (OK, data.clone()));
        assert_eq!(disk.read(8, 1), (OK, data[512..1024].to_vec()));
        assert_eq!(disk.read(0, 7), (OK, vec![0; 7 * 512]));
        assert_eq!(disk.request(4, 0, &[], 0), (OK, vec![]));
        // The last sector, and none behind it.
        assert_eq!(disk.write(2047, &data[..512]), OK);
        assert_eq!(disk.write(2047, &data[..1024]), IOERR);
        assert_eq!(disk.read(2048, 1), (IOERR, vec![0; 512]));
        assert_eq!(disk.read(u64::MAX, 1).0, IOERR);
        assert!(!disk.rig.needs_reset());
    }
}

#[test]
fn a_request_may_be_cut_anywhere() {
    let mut disk = Disk::new("size=1M", INDIRECT);
    let data = pattern(1024, 5);
    // The header in two parts, the second with data in it.
    let (out, at) = disk.rig.holding(&[Disk::header(1, 3), data.clone()].concat());
    let (status, there) = disk.rig.holding(&[0xee]);
    let parts = [(at, 9, false), (at + 9, 100, false), (at + 109, 931, false), (there, 1, true)];
    let table = disk.queue.add_indirect(&disk.rig, &parts);
    disk.rig.settle();
    assert_eq!(disk.queue.take().map(|t| t.1), Some(1));
    assert_eq!(bytes(&status, 1), [OK]);
    // The status in one part with the last of the data.
    let (header, head) = disk.rig.holding(&Disk::header(0, 3));
    let (answer, into) = disk.rig.holding(&[0xee; 1025]);
    disk.queue.add(&[(head, 16, false), (into, 700, true), (into + 700, 325, true)]);
    disk.rig.settle();
    assert_eq!(disk.queue.take().map(|t| t.1), Some(1025));
    assert_eq!(bytes(&answer, 1025), [data, vec![OK]].concat());
    drop((out, header, table));
}

#[test]
fn ranges_are_discarded_and_zeroed() {
    let mut disk = Disk::new("size=1M", DISCARD | ZEROES);
    assert_eq!(disk.rig.get32(0x2000 + 40), 64);
    let data = pattern(8192, 2);
    disk.write(0, &data);
    assert_eq!(disk.request(13, 0, &[range(1, 2, 0), range(5, 1, 1)].concat(), 0).0, OK);
    let mut expected = data.clone();
    expected[512..1536].fill(0);
    expected[2560..3072].fill(0);
    assert_eq!(disk.read(0, 16), (OK, expected));
    assert_eq!(disk.request(11, 0, &range(8, 8, 0), 0).0, OK);
    assert_eq!(disk.read(8, 8), (OK, vec![0; 4096]));
    for (kind, ranges, status) in [
        (11, range(0, 1, 1), UNSUPP),
        (13, range(0, 1, 2), UNSUPP),
        (11, range(2047, 2, 0), IOERR),
        (13, range(u64::MAX, 2, 0), IOERR),
        (13, vec![0; 8], IOERR),
        (11, range(0, 1, 0).repeat(65), IOERR),
        (14, range(0, 1, 0), UNSUPP),
        (99, vec![], UNSUPP),
        (1, vec![0; 100], IOERR),
    ] {
        assert_eq!(disk.request(kind, 0, &ranges, 0).0, status, "{kind} {ranges:?}");
    }
    // Places that are none, in numbers that would wrap as bytes.
    for sector in [1 << 55, 1 << 60, u64::MAX - 1, u64::MAX] {
        assert_eq!(disk.request(0, sector, &[], 512).0, IOERR, "{sector:#x}");
        assert_eq!(disk.write(sector, &[7; 512]), IOERR, "{sector:#x}");
        assert_eq!(disk.request(13, 0, &range(sector, 1, 0), 0).0, IOERR, "{sector:#x}");
    }
    // Not agreed on.
    let mut disk = Disk::new("size=1M", 0);
    assert_eq!(disk.request(11, 0, &range(0, 1, 0), 0).0, UNSUPP);
}

#[test]
fn it_says_what_it_is() {
    let mut disk = Disk::new("size=1M,block=4096,id=DISK,queues=3", MQ);
    assert_eq!(disk.rig.get32(0x2000), 2048);
    assert_eq!((disk.rig.get32(0x2014), disk.rig.get16(0x2022)), (4096, 3));
    assert_eq!(disk.rig.get32(0x2018), 1 << 16, "topology: one logical block in a physical one, and at least");
    let (status, id) = disk.request(8, 0, &[], 20);
    assert_eq!((status, &id[..5]), (OK, &b"DISK\0"[..]));
    assert_eq!(disk.request(8, 0, &[], 19).0, IOERR);
    // The other queues are queues too.
    let mut others = Vec::new();
    for index in [1, 2] {
        others.push(std::mem::replace(&mut disk.queue, disk.rig.queue(index, 8)));
        assert_eq!(disk.read(0, 1).0, OK);
    }
}

#[test]
fn the_cache_can_be_switched() {
    let disk = Disk::new("size=1M", FLUSH | WCE);
    assert_eq!(disk.rig.get8(0x2020), 1);
    disk.rig.set8(0x2020, 0);
    assert_eq!(disk.rig.get8(0x2020), 0);
    // Without flushes there is none; without the feature it can't be switched.
    assert_eq!(Disk::new("size=1M", WCE).rig.get8(0x2020), 0);
    let disk = Disk::new("size=1M", FLUSH);
    disk.rig.set8(0x2020, 0);
    assert_eq!(disk.rig.get8(0x2020), 1);
    let mut rig = off("size=1M,cache=write-through");
    assert_eq!(rig.offered() & (FLUSH | WCE), 0);
    rig.agree(VERSION_1);
}

#[test]
#[cfg_attr(miri, ignore = "a file")]
fn a_file_keeps_it_and_may_be_read_only() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(64 << 10).unwrap();
    let name = file.path().display();
    let data = pattern(1024, 4);
    let mut disk = Disk::new(&format!("file={name}"), FLUSH);
    assert_eq!((disk.write(3, &data), disk.request(4, 0, &[], 0).0), (OK, OK));
    assert_eq!(std::fs::read(file.path()).unwrap()[3 * 512..][..1024], data);
    let mut disk = Disk::new(&format!("file={name},ro=1"), 1 << 5);
    assert_eq!(disk.rig.offered() & (DISCARD | ZEROES), 0);
    assert_eq!(disk.write(3, &[0; 512]), IOERR);
    assert_eq!(disk.read(3, 2), (OK, data));
    assert!(blk::model(BlkParams::parse("file=/nowhere/at/all").unwrap()).is_err());
}

#[test]
fn who_breaks_a_rule_needs_a_reset() {
    type Break = fn(&mut Disk);
    let cases: [(&str, Break); 5] = [
        ("a header cut off", |d| {
            let at = d.rig.at(&d.rig.memory(64));
            d.queue.add(&[(at, 15, false), (at, 1, true)]);
        }),
        ("no room for the status", |d| {
            let at = d.rig.at(&d.rig.memory(64));
            d.queue.add(&[(at, 16, false)]);
        }),
        ("data nowhere", |d| {
            let at = d.rig.holding(&Disk::header(0, 0)).1;
            d.queue.add(&[(at, 16, false), (1 << 50, 512, true), (at, 1, true)]);
        }),
        ("a status nowhere", |d| {
            let at = d.rig.holding(&Disk::header(4, 0)).1;
            d.queue.add(&[(at, 16, false), (1 << 50, 1, true)]);
        }),
        ("gigabytes", |d| {
            let at = d.rig.holding(&Disk::header(0, 0)).1;
            d.queue.add(&[(at, 16, false), (at, u32::MAX, true), (at, u32::MAX, true)]);
        }),
    ];
    for (what, breaks) in cases {
        let mut disk = Disk::new("size=1M", 0);
        breaks(&mut disk);
        disk.rig.settle();
        assert!(disk.rig.needs_reset() && disk.queue.take().is_none(), "{what}");
    }
}

#[test]
fn parameters_that_make_no_sense_are_refused() {
    for text in [
        "size=0",
        "size=1000",
        "block=1024",
        "size=512,block=4096",
        "backing=tape",
        "ro=1",
        "queues=0",
        "queues=65",
        "id=123456789012345678901",
        "cache=none",
        "size=99999T",
        "entries=2",
        "mtu=1500",
        "file=x,backing=ram",
    ] {
        assert!(BlkParams::parse(text).is_err(), "{text}");
    }
}

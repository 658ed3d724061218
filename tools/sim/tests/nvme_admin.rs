//! The NVMe model's admin commands, through a raw ring.

mod common;

use common::{Cmd, DNR, MORE, PAGE, Rig};

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

fn identify(rig: &mut Rig, cns: u32, nsid: u32) -> Vec<u8> {
    rig.fetch(Cmd::new(6).dw10(cns).nsid(nsid), 4096)
}

fn log(page: u32, bytes: u32) -> Cmd {
    Cmd::new(2).dw10(page | (bytes / 4 - 1) << 16).nsid(u32::MAX)
}

/// An Asynchronous Event Request, and its command id.
fn ask_for_event(rig: &mut Rig) -> u16 {
    let cid = rig.cid();
    rig.admin.post(Cmd::new(0x0c).words(cid));
    rig.ring(0, 0, rig.admin.tail);
    rig.settle();
    cid
}

fn event(rig: &mut Rig) -> Option<(u16, u32)> {
    rig.settle();
    let done = rig.admin.take()?;
    rig.ring(0, 1, rig.admin.head);
    Some((done.cid, done.dw0))
}

#[test]
fn identify_controller() {
    let mut rig = Rig::new("serial=ABC,mdts=3,ns=2,sgl=1,shadow=1");
    let page = identify(&mut rig, 1, 0);
    assert_eq!((u16_at(&page, 0), u16_at(&page, 2)), (0xfff0, 0xfff0), "VID, SSVID");
    assert_eq!(&page[4..24], format!("{:20}", "ABC").as_bytes());
    assert_eq!(&page[24..64], format!("{:40}", "wholebar NVMe model").as_bytes());
    assert_eq!(page[77], 3, "MDTS");
    assert_eq!(u32_at(&page, 80), 0x0002_0000, "VER");
    assert_eq!(page[111], 1, "CNTRLTYPE");
    assert_eq!(u16_at(&page, 256), 0b1_0111 | 1 << 8, "OACS: doorbell buffer config beside what it always has");
    assert_eq!((page[512], page[513]), (0x66, 0x44), "SQES, CQES");
    assert_eq!(u32_at(&page, 516), 2, "NN");
    assert_eq!(u16_at(&page, 520), 0b1111 | 1 << 7 | 1 << 8, "ONCS");
    assert_eq!(page[525] & 1, 1, "VWC");
    assert_eq!(u32_at(&page, 536) & 3, 1, "SGLS");
    assert!(page[768..].starts_with(b"nqn.2014-08.org.nvmexpress:uuid:"));

    let plain = identify(&mut Rig::new(""), 1, 0);
    // Security, Format NVM, firmware, Device Self-test; with capacity for namespaces Namespace Management, too.
    assert_eq!((u16_at(&plain, 256), u32_at(&plain, 536)), (0b1_0111, 0));
    let managed = identify(&mut Rig::new("size=1M,spare=3M"), 1, 0);
    assert_eq!((u16_at(&managed, 256), u32_at(&managed, 516)), (0b1_1111, 9), "OACS, NN");
    assert_eq!((u64_at(&managed, 280), u64_at(&managed, 296)), (4 << 20, 3 << 20), "TNVMCAP, UNVMCAP");
    assert_ne!(page[768..1024], plain[768..1024], "another serial number, another name");
}

#[test]
fn identify_namespaces_of_both_block_sizes() {
    let mut rig = Rig::new("size=8M,ns=3,block=512+4096,noiob=64");
    for (nsid, shift) in [(1, 9), (2, 12), (3, 9)] {
        let page = identify(&mut rig, 0, nsid);
        let blocks = (8 << 20) >> shift;
        assert_eq!([0, 8, 16].map(|at| u64_at(&page, at)), [blocks; 3], "NSZE, NCAP, NUSE");
        assert_eq!(page[25], 1, "NLBAF");
        let format = usize::from(page[26] & 15);
        assert_eq!(u32_at(&page, 128 + 4 * format), shift << 16, "LBA format: no metadata");
        assert_eq!(u16_at(&page, 46), 64, "NOIOB");
        assert_eq!(page[33] & 7, 1, "deallocated blocks are zero");
        assert_eq!(page[99], 0, "NSATTR");
    }
    for nsid in [0, 4, u32::MAX] {
        assert_eq!(rig.admin(Cmd::new(6).dw10(0).nsid(nsid)).status, 0x0b | DNR | MORE, "namespace {nsid}");
    }
}

#[test]
fn identify_lists_and_descriptors() {
    let mut rig = Rig::new("ns=5");
    let ids = |page: Vec<u8>| (0..8).map(|i| u32_at(&page, 4 * i)).collect::<Vec<_>>();
    assert_eq!(ids(identify(&mut rig, 2, 0)), [1, 2, 3, 4, 5, 0, 0, 0]);
    assert_eq!(ids(identify(&mut rig, 2, 3)), [4, 5, 0, 0, 0, 0, 0, 0]);
    assert_eq!(ids(identify(&mut rig, 2, 0xffff_fffd)), [0; 8]);
    assert_eq!(rig.admin(Cmd::new(6).dw10(2).nsid(u32::MAX)).code(), 0x0b);

    let [one, two] = [1, 2].map(|nsid| identify(&mut rig, 3, nsid));
    assert_eq!((one[0], one[1]), (3, 16), "a UUID");
    assert_eq!((one[10] >> 4, one[12] >> 6), (8, 2), "version and variant");
    assert_ne!(one[4..20], two[4..20]);
    assert_eq!(one[20..25], [4, 1, 0, 0, 0], "the NVM command set");
    assert_eq!(rig.admin(Cmd::new(6).dw10(3).nsid(6)).code(), 0x0b);

    assert!(identify(&mut rig, 6, 0).iter().all(|b| *b == 0), "no limits");
    for cns in [4, 5, 7, 0x10, 0x1c, 0xff] {
        assert_eq!(rig.admin(Cmd::new(6).dw10(cns)).status, 0x02 | DNR | MORE, "CNS {cns:#x}");
    }
}

#[test]
fn identify_across_a_page_boundary() {
    let mut rig = Rig::new("");
    let buf = rig.memory(3 * PAGE);
    let at = rig.at(&buf);
    // The second page is before the first.
    assert_eq!(rig.admin(Cmd::new(6).dw10(1).prp(at + PAGE + 0x800, at)).status, 0);
    let whole = identify(&mut rig, 1, 0);
    let mut back = vec![0; 0x800];
    buf.read(PAGE + 0x800, &mut back).unwrap();
    assert_eq!(back, whole[..0x800]);
    buf.read(0, &mut back).unwrap();
    assert_eq!(back, whole[0x800..]);
    // PRP2 has an offset; PRP1 is not there.
    assert_eq!(rig.admin(Cmd::new(6).dw10(1).prp(at + 0x800, at + PAGE + 8)).code(), 0x13);
    assert_eq!(rig.admin(Cmd::new(6).dw10(1).prp(0, 0)).status, 0x04 | MORE);
}

#[test]
fn commands_that_there_are_not() {
    let mut rig = Rig::new("");
    for opcode in [0x03, 0x0d, 0x15, 0x18, 0x1d, 0x7c, 0x83, 0xff] {
        assert_eq!(rig.admin(Cmd::new(opcode)).status, 0x01 | DNR | MORE, "opcode {opcode:#x}");
    }
    assert_eq!(rig.admin(Cmd::new(6).dw10(1).dw0(1 << 8)).code(), 0x02, "fused");
    assert_eq!(rig.admin(Cmd::new(6).dw10(1).dw0(1 << 14)).code(), 0x02, "SGL");
}

#[test]
fn queues_are_created_and_deleted_by_the_rules() {
    let mut rig = Rig::new("queues=4,entries=64,vectors=3");
    let at = {
        let buf = rig.memory(2 * PAGE);
        rig.at(&buf)
    };
    let cq = |id: u32, entries: u32| Cmd::new(5).prp(at, 0).dw10((entries - 1) << 16 | id).dw11(1);
    let sq = |id: u32, entries: u32, cq: u32| Cmd::new(1).prp(at, 0).dw10((entries - 1) << 16 | id).dw11(cq << 16 | 1);
    let mut expect = |cmd, code| assert_eq!(rig.admin(cmd).code(), code, "{cmd:x?}");
    expect(cq(0, 8), 0x101);
    expect(cq(5, 8), 0x101);
    expect(cq(1, 1), 0x102);
    expect(cq(1, 65), 0x102);
    expect(cq(1, 8).dw11(0), 0x02);
    expect(cq(1, 8).prp(at + 8, 0), 0x13);
    expect(cq(1, 8).dw11(3 << 16 | 3), 0x108);
    expect(cq(1, 64).dw11(2 << 16 | 3), 0);
    expect(cq(1, 8), 0x101);
    expect(sq(0, 8, 1), 0x101);
    expect(sq(5, 8, 1), 0x101);
    expect(sq(1, 8, 0), 0x101);
    expect(sq(1, 8, 5), 0x101);
    expect(sq(1, 8, 2), 0x100);
    expect(sq(1, 1, 1), 0x102);
    expect(sq(1, 8, 1).dw11(1 << 16), 0x02);
    expect(sq(1, 8, 1), 0);
    expect(sq(1, 8, 1), 0x101);
    // Another submission queue on the same completion queue.
    expect(sq(2, 8, 1), 0);
    let (delete_sq, delete_cq) = (Cmd::new(0), Cmd::new(4));
    expect(delete_cq.dw10(1), 0x10c);
    expect(delete_sq.dw10(0), 0x101);
    expect(delete_sq.dw10(3), 0x101);
    expect(delete_sq.dw10(1), 0);
    expect(delete_cq.dw10(1), 0x10c);
    expect(delete_sq.dw10(2), 0);
    expect(delete_cq.dw10(0), 0x101);
    expect(delete_cq.dw10(1), 0);
    expect(delete_cq.dw10(1), 0x101);
}

#[test]
fn queues_need_their_entry_sizes_set() {
    let mut rig = Rig::off("");
    rig.enable_as(0x0036_0001);
    let at = {
        let buf = rig.memory(PAGE);
        rig.at(&buf)
    };
    assert_eq!(rig.admin(Cmd::new(5).prp(at, 0).dw10(7 << 16 | 1).dw11(1)).code(), 0x102);
}

#[test]
fn number_of_queues() {
    let mut rig = Rig::new("queues=8");
    let set = |n: u32| Cmd::new(9).dw10(7).dw11(n);
    assert_eq!(rig.admin(Cmd::new(0x0a).dw10(7)).dw0, 0x0007_0007);
    assert_eq!(rig.admin(set(0x0001_0001)).dw0, 0x0001_0001, "as asked");
    assert_eq!(rig.admin(Cmd::new(5).dw10(7 << 16 | 3).dw11(1)).code(), 0x101, "not granted");
    assert_eq!(rig.admin(set(0x00ff_00ff)).dw0, 0x0007_0007, "as many as there are");
    assert_eq!(rig.admin(set(0xffff_0000)).code(), 0x02);
    assert_eq!(rig.admin(set(0x0000_ffff)).code(), 0x02);
    rig.pair(1, 4);
    assert_eq!(rig.admin(set(0)).code(), 0x0c, "too late");
}

#[test]
fn features_are_remembered_until_reset() {
    let mut rig = Rig::new("vectors=4");
    for (feature, value) in [(1, 0x0102_0304), (5, 7), (8, 0x0510), (0x0a, 1), (0x0b, 0x3), (6, 0)] {
        assert_eq!(rig.admin(Cmd::new(9).dw10(feature).dw11(value)).status, 0);
        assert_eq!(rig.admin(Cmd::new(0x0a).dw10(feature)).dw0, value, "feature {feature:#x}");
    }
    assert_eq!(rig.admin(Cmd::new(9).dw10(9).dw11(1 << 16 | 3)).status, 0);
    assert_eq!(rig.admin(Cmd::new(0x0a).dw10(9).dw11(3)).dw0, 1 << 16 | 3);
    assert_eq!(rig.admin(Cmd::new(0x0a).dw10(9).dw11(2)).dw0, 2);
    assert_eq!(rig.admin(Cmd::new(9).dw10(9).dw11(4)).code(), 0x02, "no such vector");
    assert_eq!(rig.admin(Cmd::new(9).dw10(2).dw11(0)).status, 0);
    assert_eq!(rig.admin(Cmd::new(9).dw10(2).dw11(1)).code(), 0x02, "no such power state");
    rig.disable();
    rig.enable();
    assert_eq!(rig.admin(Cmd::new(0x0a).dw10(1)).dw0, 0);
    assert_eq!(rig.admin(Cmd::new(0x0a).dw10(6)).dw0, 1, "the write cache is on");
}

#[test]
fn features_that_there_are_not() {
    let mut rig = Rig::new("");
    for feature in [0, 3, 0x0c, 0x0d, 0x0f, 0x80, 0xff] {
        assert_eq!(rig.admin(Cmd::new(9).dw10(feature)).status, 0x02 | DNR | MORE, "{feature:#x}");
        assert_eq!(rig.admin(Cmd::new(0x0a).dw10(feature)).status, 0x02 | DNR | MORE, "{feature:#x}");
    }
    assert_eq!(rig.admin(Cmd::new(9).dw10(1 << 31 | 1)).code(), 0x10d, "nothing is saved");
    assert_eq!(rig.admin(Cmd::new(0x0a).dw10(1 << 8 | 1)).code(), 0x02, "only current values");
}

#[test]
fn smart_log() {
    let mut rig = Rig::new("size=1M,temp=35");
    let mut q = rig.pair(1, 8);
    let at = {
        let buf = rig.memory(PAGE);
        rig.at(&buf)
    };
    for _ in 0..3 {
        assert_eq!(rig.io(&mut q, Cmd::rw(2, 0, 8).prp(at, 0)).status, 0);
    }
    assert_eq!(rig.io(&mut q, Cmd::rw(1, 0, 1).prp(at, 0)).status, 0);
    assert_eq!(rig.io(&mut q, Cmd::new(0x7f)).code(), 1);
    let page = rig.fetch(log(2, 512), 512);
    assert_eq!(page[0], 0, "no warning");
    assert_eq!(u16_at(&page, 1), 273 + 35);
    assert_eq!((page[3], page[4]), (100, 10), "spare");
    assert_eq!((u64_at(&page, 32), u64_at(&page, 48)), (1, 1), "thousands of 512-byte units, rounded up");
    assert_eq!((u64_at(&page, 64), u64_at(&page, 80)), (3, 1), "commands");
    assert_eq!((u64_at(&page, 160), u64_at(&page, 176)), (0, 1), "media errors, error log entries");
    assert_eq!(rig.admin(log(2, 512).nsid(1)).code(), 0x02, "of the whole controller only");
}

#[test]
fn error_log_has_the_newest_first() {
    let mut rig = Rig::new("size=1M");
    let mut q = rig.pair(1, 8);
    let far = rig.io(&mut q, Cmd::rw(2, 0x1234_5678_9abc, 1));
    let bad = rig.admin(Cmd::new(0xff).nsid(7).dw10(5));
    let page = rig.fetch(log(1, 192), 192);
    for (entry, count, sq, done, lba, nsid) in
        [(&page[..64], 2, 0, bad, 0, 7), (&page[64..128], 1, 1, far, 0x1234_5678_9abc, 1)]
    {
        assert_eq!(u64_at(entry, 0), count);
        assert_eq!((u16_at(entry, 8), u16_at(entry, 10)), (sq, done.cid));
        assert_eq!(u16_at(entry, 12), done.status << 1, "the status field, beside the phase's place");
        assert_eq!((u64_at(entry, 16), u32_at(entry, 24)), (lba, nsid));
    }
    assert!(page[128..].iter().all(|b| *b == 0));
    // Full, it forgets the oldest.
    for _ in 0..if cfg!(miri) { 63 } else { 100 } {
        rig.admin(Cmd::new(0xff));
    }
    let page = rig.fetch(log(1, 4096), 4096);
    let first = u64_at(&page, 0);
    assert!((0..64).all(|i| u64_at(&page, 64 * i as usize) == first - i));
}

#[test]
fn what_it_can_do_is_what_it_does() {
    for shadow in [0, 1] {
        let mut rig = Rig::new(&format!("size=1M,shadow={shadow}"));
        assert_eq!(identify(&mut rig, 1, 0)[261], 0b10_0110, "LPA");
        let table = |rig: &mut Rig, id, bytes| -> Vec<u32> {
            let page = rig.fetch(log(id, bytes), bytes.into());
            (0..bytes as usize / 4).map(|i| u32_at(&page, 4 * i)).collect()
        };
        let pages = table(&mut rig, 0x00, 1024);
        for id in 0..256u32 {
            let code = rig.admin(log(id, 512)).code();
            assert_eq!(pages[id as usize] & 1 != 0, code != 0x109, "log page {id:#x}: {code:#x}");
        }
        // Zeroes for arguments: what is there says why not, if it says so.
        let commands = table(&mut rig, 0x05, 4096);
        let mut q = rig.pair(1, 8);
        for opcode in 0..256u32 {
            if opcode != 0x0c {
                let code = rig.admin(Cmd::new(opcode as u8)).code();
                assert_eq!(commands[opcode as usize] & 1 != 0, code != 0x01, "admin {opcode:#x}: {code:#x}");
            }
            let code = rig.io(&mut q, Cmd::new(opcode as u8).nsid(1)).code();
            assert_eq!(commands[256 + opcode as usize] & 1 != 0, code != 0x01, "I/O {opcode:#x}: {code:#x}");
        }
        assert_eq!([0, 1, 2, 8, 9].map(|opcode| commands[256 + opcode] & 2 != 0), [false, true, false, true, true]);
        let features = table(&mut rig, 0x12, 1024);
        for id in 0..256u32 {
            let code = rig.admin(Cmd::new(0x0a).dw10(id)).code();
            assert_eq!(features[id as usize] & 1 != 0, code == 0, "feature {id:#x}: {code:#x}");
        }
        assert!(table(&mut rig, 0x13, 1024).iter().all(|entry| *entry == 0), "no NVMe-MI commands");
    }
}

#[test]
fn log_pages_by_parts() {
    let mut rig = Rig::new("serial=X");
    let whole = rig.fetch(log(3, 512), 512);
    assert_eq!(whole[0], 1, "slot 1 is active");
    assert_eq!(&whole[8..16], format!("{:8}", env!("CARGO_PKG_VERSION")).as_bytes());
    let part = rig.fetch(log(3, 8).dw12(8), 8);
    assert_eq!(part, whole[8..16]);
    // Past its end there is nothing; a part that begins past its end is refused, as is one that isn't in dwords.
    assert_eq!(rig.fetch(log(3, 64).dw12(480), 64)[32..], [0; 32]);
    assert_eq!(rig.admin(log(3, 8).dw12(516)).code(), 0x02);
    assert_eq!(rig.admin(log(3, 8).dw12(2)).code(), 0x02);
    assert_eq!(rig.admin(log(3, 8).dw13(1)).code(), 0x02);
    assert_eq!(rig.admin(log(3, 8).dw11(1)).code(), 0x02, "more than MDTS");
    assert_eq!(rig.fetch(log(4, 4096), 4096), [0; 4096], "no namespace changed");
    for page in [0x07, 0x80, 0xff] {
        assert_eq!(rig.admin(log(page, 512)).status, 0x109 | DNR | MORE, "log page {page:#x}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "a megabyte, byte by byte")]
fn a_log_without_limit_is_still_bounded() {
    let mut rig = Rig::new("mdts=0");
    assert_eq!(rig.admin(log(3, 8).dw11(0xffff)).code(), 0x04, "1 MiB of it, to nowhere");
}

#[test]
fn temperature_events() {
    let mut rig = Rig::new("temp=50");
    let threshold = |kelvins: u32| Cmd::new(9).dw10(4).dw11(kelvins);
    assert_eq!(rig.admin(Cmd::new(0x0a).dw10(4)).dw0, 273 + 70, "over");
    assert_eq!(rig.admin(Cmd::new(0x0a).dw10(4).dw11(1 << 20)).dw0, 0, "under");
    let first = ask_for_event(&mut rig);
    // Nobody asked to be told.
    assert_eq!(rig.admin(threshold(300)).status, 0);
    assert_eq!(event(&mut rig), None);
    assert_eq!(rig.fetch(log(2, 512), 512)[0], 2, "but the log has it");
    // Asked for: SMART status, temperature threshold, log page 2.
    assert_eq!(rig.admin(Cmd::new(9).dw10(0x0b).dw11(2)).status, 0);
    assert_eq!(event(&mut rig), Some((first, 0x02_01_01)));
    // Crossed again before the log was read: the event waits.
    let second = ask_for_event(&mut rig);
    assert_eq!(rig.admin(threshold(400)).status, 0);
    assert_eq!(rig.admin(threshold(300)).status, 0);
    assert_eq!(event(&mut rig), None);
    rig.fetch(log(2, 512).dw10(2 | 127 << 16 | 1 << 15), 512);
    assert_eq!(event(&mut rig), None, "read, but the event is retained");
    rig.fetch(log(2, 512), 512);
    assert_eq!(event(&mut rig), Some((second, 0x02_01_01)));
    // Under-temperature, and a sensor that there isn't.
    assert_eq!(rig.admin(threshold(400)).status, 0);
    assert_eq!(rig.fetch(log(2, 512), 512)[0], 0);
    assert_eq!(rig.admin(threshold(1 << 20 | 330)).status, 0);
    assert_eq!(rig.fetch(log(2, 512), 512)[0], 2);
    assert_eq!(rig.admin(threshold(1 << 16 | 330)).code(), 0x02);
    assert_eq!(rig.admin(threshold(2 << 20 | 330)).code(), 0x02);
}

#[test]
fn event_requests_have_a_limit_and_can_be_aborted() {
    let mut rig = Rig::new("");
    let limit = usize::from(identify(&mut rig, 1, 0)[259]) + 1;
    let cids: Vec<_> = (0..limit).map(|_| ask_for_event(&mut rig)).collect();
    assert_eq!(event(&mut rig), None);
    assert_eq!(rig.admin(Cmd::new(0x0c)).status, 0x105 | DNR | MORE);
    let abort = |cid: u16| Cmd::new(8).dw10(u32::from(cid) << 16);
    assert_eq!(rig.admin(abort(cids[1])).dw0, 0, "aborted");
    let done = rig.admin.take().expect("the aborted request");
    rig.ring(0, 1, rig.admin.head);
    assert_eq!((done.cid, done.status), (cids[1], 0x07));
    assert_eq!(rig.admin(abort(cids[1])).dw0, 1, "not there any more");
    assert_eq!(rig.admin(abort(0xffff)).dw0, 1);
    assert_eq!(rig.admin(Cmd::new(8).dw10(u32::from(cids[0]) << 16 | 1)).dw0, 1, "another queue's");
    ask_for_event(&mut rig);
    assert_eq!(event(&mut rig), None);
}

#[test]
fn a_tiny_admin_queue_works() {
    let mut rig = Rig::off("");
    rig.admin = common::pair(rig.arena.clone(), 0, 2);
    rig.enable();
    for _ in 0..5 {
        assert_eq!(rig.admin(Cmd::new(0x0a).dw10(7)).status, 0);
    }
}

mod shadow {
    use super::*;

    /// Hands the controller two pages and returns them.
    fn configure(rig: &mut Rig) -> (wholebar_core::mem::Chunk, wholebar_core::mem::Chunk) {
        let (values, seen) = (rig.memory(PAGE), rig.memory(PAGE));
        let cmd = Cmd::new(0x7c).prp(rig.at(&values), rig.at(&seen));
        assert_eq!(rig.admin(cmd).status, 0);
        (values, seen)
    }

    #[test]
    fn doorbells_are_read_from_memory() {
        for dstrd in [0u64, 2] {
            let mut rig = Rig::new(&format!("size=1M,shadow=1,dstrd={dstrd}"));
            let (values, seen) = configure(&mut rig);
            let mut q = rig.pair(1, 4);
            let (tail_at, head_at) = ((2 * 4) << dstrd, (3 * 4) << dstrd);
            for n in 0..10u16 {
                q.post(Cmd::new(0).nsid(1).words(n));
                values.write(tail_at, &q.tail.to_le_bytes()).unwrap();
                rig.settle();
                let done = q.take().expect("a completion, without a doorbell");
                values.write(head_at, &q.head.to_le_bytes()).unwrap();
                assert_eq!((done.cid, done.status), (n, 0));
                let mut index = [0; 4];
                seen.read(tail_at, &mut index).unwrap();
                // Just behind what was seen: the next update does not pass it, so no doorbell is wanted.
                assert_eq!(u32::from_le_bytes(index), (q.tail + 3) % 4);
            }
            // The register is not looked at.
            rig.ring(1, 0, (q.tail + 1) % 4);
            rig.settle();
            assert_eq!(q.take(), None);
        }
    }

    #[test]
    fn a_new_queue_begins_with_clear_shadows() {
        let mut rig = Rig::new("size=1M,shadow=1");
        let (values, _) = configure(&mut rig);
        values.write(8, &3u32.to_le_bytes()).unwrap();
        values.write(12, &1u32.to_le_bytes()).unwrap();
        let mut q = rig.pair(1, 4);
        rig.settle();
        assert_eq!(q.take(), None);
    }

    #[test]
    fn admin_queues_want_to_be_rung_always() {
        let mut rig = Rig::new("shadow=1");
        let (_, seen) = configure(&mut rig);
        for _ in 0..10 {
            rig.admin(Cmd::new(0x0a).dw10(7));
            let mut index = [0; 4];
            seen.read(0, &mut index).unwrap();
            // Exactly what was seen: any update passes it.
            assert_eq!(u32::from_le_bytes(index), rig.admin.tail);
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let mut rig = Rig::new("shadow=1");
        let at = {
            let buf = rig.memory(PAGE);
            rig.at(&buf)
        };
        assert_eq!(rig.admin(Cmd::new(0x7c).prp(at + 64, at)).code(), 0x13);
        assert_eq!(rig.admin(Cmd::new(0x7c).prp(at, at + 64)).code(), 0x13);
        assert_eq!(rig.admin(Cmd::new(0x7c).prp(at, 0x7000_0000_0000)).code(), 0x04);
        // After a reset there are none.
        configure(&mut rig);
        rig.disable();
        rig.enable();
        let mut q = rig.pair(1, 4);
        assert_eq!(rig.io(&mut q, Cmd::new(0).nsid(1)).status, 0);
    }
}

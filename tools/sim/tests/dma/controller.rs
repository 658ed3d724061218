//! An NVMe controller, its queues by hand.

use super::*;
use wholebar_sim::nvme::{Nvme, NvmeParams};

/// An NVMe controller with one I/O queue of 1024 entries: admin queues in pages 0 and 1, completions from page 4 on, submissions from page 16 on. (Those of admin commands in page 8, where pages are larger.)
struct Controller {
    guest: Guest<Nvme>,
    tail: u32,
    head: u32,
    admin: u32,
}

const ENTRIES: u32 = 1024;
const SQ: u64 = 16 * PAGE;
const CQ: u64 = 4 * PAGE;
const LIST: u64 = 40 * PAGE;
const SHADOW: u64 = 2 * PAGE;

impl Controller {
    /// With memory pages of `4096 << mps` bytes.
    fn new(lies: Lies, params: &str, mps: u32) -> Self {
        let params = NvmeParams::parse(&format!("entries={ENTRIES},{params}")).unwrap();
        let mut guest = Guest::new(lies, Nvme::new(params).unwrap());
        guest.set(0x24, &0x003f_003fu32.to_le_bytes());
        guest.set(0x28, &BASE.to_le_bytes());
        guest.set(0x30, &(BASE + if mps == 0 { PAGE } else { 8 * PAGE }).to_le_bytes());
        guest.set(0x14, &(0x0046_0001 | mps << 7).to_le_bytes());
        guest.settle();
        let mut c = Self { guest, tail: 0, head: 0, admin: 0 };
        assert_eq!(c.csts(), 1);
        c.admin_cmd(5, CQ, 0, (ENTRIES - 1) << 16 | 1, 1);
        c.admin_cmd(1, SQ, 0, (ENTRIES - 1) << 16 | 1, 1 << 16 | 1);
        c
    }

    fn csts(&mut self) -> u32 {
        u32::from_le_bytes(self.guest.register(0x1c))
    }

    fn admin_cmd(&mut self, opcode: u32, prp1: u64, prp2: u64, dw10: u32, dw11: u32) {
        let at = u64::from(self.admin % 64) * 64;
        let words = [opcode.into(), 0, 0, BASE + prp1, BASE + prp2, u64::from(dw11) << 32 | u64::from(dw10), 0, 0];
        self.guest.put(at, words.map(u64::to_le_bytes).as_flattened());
        self.admin += 1;
        self.guest.set(0x1000, &(self.admin % 64).to_le_bytes());
        self.guest.settle();
        assert_eq!(self.csts(), 1);
    }

    /// Posts a read or a write of `blocks` of 4 KiB at `lba`.
    fn post(&mut self, opcode: u64, lba: u64, blocks: u64, prps: [u64; 2]) {
        let words = [1 << 32 | opcode, 0, 0, BASE + prps[0], BASE + prps[1], lba, blocks - 1, 0];
        self.guest.put(SQ + 64 * u64::from(self.tail), words.map(u64::to_le_bytes).as_flattened());
        self.tail = (self.tail + 1) % ENTRIES;
    }

    fn ring(&mut self) {
        self.guest.set(0x1008, &self.tail.to_le_bytes());
    }

    /// How many completions there are, and that they are of success; takes them.
    fn take(&mut self, lap: &mut u32) -> u32 {
        let mut count = 0;
        loop {
            let last = u32::from_le_bytes(self.guest.word(CQ + 16 * u64::from(self.head) + 12));
            if last >> 16 & 1 == *lap & 1 {
                return count;
            }
            assert_eq!(last >> 17, 0, "status");
            count += 1;
            self.head = (self.head + 1) % ENTRIES;
            *lap += u32::from(self.head == 0);
            self.guest.set(0x100c, &self.head.to_le_bytes());
        }
    }
}

#[test]
fn queues_lists_and_data_of_a_controller_cross_maps() {
    // With memory pages of 16 KiB, a list and each page of data lie in several maps.
    for mps in [0, 2] {
        let mut c = Controller::new(Scattered, "size=1M,block=4096,mps=4k-64k,mdts=0", mps);
        let page = PAGE << mps;
        let (data, mut lap) = (64 * PAGE, 0);
        let mut bytes = pattern((4 * page) as usize, mps as u8);
        // More than once around the ring.
        for i in 0..520u64 {
            let blocks = 4 * page / PAGE;
            let is_polled = i.is_multiple_of(16);
            let list: Vec<_> = (1..4).flat_map(|i| (BASE + data + i * page).to_le_bytes()).collect();
            // Where it crosses, if anywhere.
            let at = LIST + page - 24 * 4 - if mps > 0 { 3 * PAGE } else { 0 };
            c.guest.put(at, &list);
            if is_polled {
                bytes.rotate_left(1);
                c.guest.put(data, &bytes);
            }
            for opcode in [1, 2] {
                c.post(opcode, i % 64, blocks, [data, at]);
                c.ring();
                c.guest.settle();
                assert_eq!(c.take(&mut lap), 1, "{mps} {i}");
                if opcode == 1 && is_polled {
                    c.guest.put(data, &vec![0; bytes.len()]);
                }
            }
            assert!(!is_polled || c.guest.get(data, bytes.len()) == bytes, "what was written is read");
        }
    }
}

#[test]
fn what_a_controller_only_reads_may_be_mapped_for_reading() {
    let mut c = Controller::new(Scattered, "size=1M,block=4096", 0);
    c.guest.put(LIST, &[(BASE + 65 * PAGE).to_le_bytes(), (BASE + 66 * PAGE).to_le_bytes()].concat());
    c.guest.map_reading(16..32);
    c.guest.map_reading(40..41);
    c.guest.map_reading(64..67);
    c.post(1, 0, 3, [64 * PAGE, LIST]);
    c.ring();
    c.guest.settle();
    assert_eq!(c.take(&mut 0), 1);
    // What it reads from its blocks it writes to memory: data transfer error.
    c.post(2, 0, 1, [64 * PAGE, 0]);
    c.ring();
    c.guest.settle();
    let last = u32::from_le_bytes(c.guest.word(CQ + 16 + 12));
    assert_eq!(last >> 17 & 0x7ff, 0x04);
}

#[test]
fn an_idle_controller_may_be_remapped() {
    for shadow in [false, true] {
        let mut c = Controller::new(Flat, "size=1M,block=4096,shadow=1", 0);
        let mut lap = 0;
        if shadow {
            c.admin_cmd(0x7c, SHADOW, SHADOW + PAGE, 0, 0);
        }
        for _ in 0..3 {
            c.post(2, 0, 1, [64 * PAGE, 0]);
            c.ring();
            c.guest.put(SHADOW + 8, &c.tail.to_le_bytes());
            c.guest.settle();
            assert_eq!(c.take(&mut lap), 1);
            c.guest.put(SHADOW + 12, &c.head.to_le_bytes());
            c.guest.unmap(0..PAGES);
            for _ in 0..100 {
                c.guest.nic.poll();
            }
            assert_eq!(c.csts(), 1, "it is idle");
            c.guest.map(0..48, true);
            c.guest.settle();
            c.guest.map(48..PAGES, true);
        }
    }
}

#[test]
fn a_controller_whose_queue_is_not_there_waits_and_then_is_broken() {
    for pages in [4..8, 16..32] {
        let mut c = Controller::new(Scattered, "size=1M,block=4096", 0);
        let mut lap = 0;
        c.post(2, 0, 1, [64 * PAGE, 0]);
        c.guest.unmap(pages.clone());
        c.ring();
        c.guest.nic.poll();
        c.guest.map(pages.clone(), true);
        c.guest.settle();
        assert_eq!((c.csts(), c.take(&mut lap)), (1, 1), "it is served when it is there");
        let mut c = Controller::new(Scattered, "size=1M,block=4096", 0);
        c.guest.unmap(pages);
        c.ring();
        c.guest.settle();
        assert_eq!(c.csts(), 1, "nothing was posted");
        c.tail = 1;
        c.ring();
        c.guest.until("fatal", |guest| u32::from_le_bytes(guest.register(0x1c)) == 3);
    }
}

#[test]
fn a_poll_of_a_controller_ends_after_so_many_bytes() {
    let mut c = Controller::new(Flat, "size=1G,block=4096,mdts=0", 0);
    // A list that goes on with itself: 511 times a page, and the list again.
    let mut list = [(BASE + 64 * PAGE).to_le_bytes(); 512];
    list[511] = (BASE + LIST).to_le_bytes();
    c.guest.put(LIST, list.as_flattened());
    for _ in 0..40 {
        c.post(2, 0, 2048, [64 * PAGE, LIST]);
    }
    c.ring();
    let (mut lap, mut done) = (0, 0);
    while done < 40 {
        assert_eq!(c.guest.nic.poll(), Work::Busy);
        let n = c.take(&mut lap);
        assert_eq!(n, 1, "8 MiB are more than a poll's");
        done += n;
    }
}

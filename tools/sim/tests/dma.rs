//! Models whose host's memory lies as a hypervisor with a virtual IOMMU has it: mapped page by page, neighbours nowhere near each other; for
//! reading only where a device only reads; taken away and given back while queues are idle. And turns that end though there is more to do.
#![cfg(not(miri))]

use std::sync::Arc;
use wholebar_core::Work;
use wholebar_core::mem::{Arena, ArenaOptions, Chunk, Iova};
use wholebar_core::model::{Model, ModelFunction};
use wholebar_sim::nvme::{Nvme, NvmeParams};
use wholebar_sim::virtio::Virtio;
use wholebar_sim::virtio::blk::{self, BlkParams};

const PAGE: u64 = 4096;
const PAGES: u64 = 128;
/// Where the device sees the memory.
const BASE: u64 = 0x7_0000_0000;

/// How a host's memory lies in the device's address space.
#[derive(Clone, Copy, PartialEq)]
enum Lies {
    /// As it is.
    Flat,
    /// Page by page, in falling order.
    Scattered,
}
use Lies::{Flat, Scattered};

/// A model and its host's memory.
struct Guest<M: Model> {
    lies: Lies,
    nic: ModelFunction<M>,
    arena: Arc<Arena>,
    memory: Chunk,
}

impl<M: Model> Guest<M> {
    fn new(lies: Lies, model: M) -> Self {
        let arena = Arena::new(PAGES * PAGE, ArenaOptions::default()).unwrap();
        let memory = arena.alloc(PAGES * PAGE, PAGE).unwrap();
        memory.zero();
        let mut guest = Self { lies, nic: ModelFunction::new(model), arena, memory };
        guest.map_all();
        guest.nic.write(7, 4, &6u16.to_le_bytes()).unwrap();
        guest
    }

    /// Maps everything: what each of the first two queues of a disk has for itself.
    fn map_all(&mut self) {
        [0..16, 16..32, 32..PAGES].into_iter().for_each(|pages| self.map(pages, true));
    }

    /// Maps pages: in one map, or in one each.
    fn map(&mut self, pages: std::ops::Range<u64>, writable: bool) {
        let count = pages.end - pages.start;
        let (step, len) = if self.lies == Flat { (count, count * PAGE) } else { (1, PAGE) };
        for page in pages.step_by(step as usize) {
            let at = self.memory.offset() + self.place(page * PAGE);
            self.nic.dma_map_arena(Iova(BASE + page * PAGE), self.arena.clone(), at, len, writable).unwrap();
        }
    }

    fn unmap(&mut self, pages: std::ops::Range<u64>) {
        let (start, count) = (pages.start, pages.end - pages.start);
        assert_ne!(self.nic.dma_unmap_all_in(Iova(BASE + start * PAGE), count * PAGE), Ok(0));
    }

    /// Maps pages for reading only.
    fn map_reading(&mut self, pages: std::ops::Range<u64>) {
        self.unmap(pages.clone());
        self.map(pages, false);
    }

    /// Where in memory it is what the device sees at `at`.
    fn place(&self, at: u64) -> u64 {
        match self.lies {
            Flat => at,
            Scattered => (PAGES - 1 - at / PAGE) * PAGE + at % PAGE,
        }
    }

    /// The parts of `len` bytes at `at`: where in memory, and which of them.
    fn parts(&self, at: u64, len: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
        let mut done = 0;
        std::iter::from_fn(move || {
            let now = at + done as u64;
            let n = (len - done).min((PAGE - now % PAGE) as usize);
            done += n;
            (n > 0).then_some((self.place(now), done - n..done))
        })
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.parts(at, bytes.len()).for_each(|(place, part)| self.memory.write(place, &bytes[part]).unwrap());
    }

    fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.parts(at, len).for_each(|(place, part)| self.memory.read(place, &mut bytes[part]).unwrap());
        bytes
    }

    fn word<const N: usize>(&self, at: u64) -> [u8; N] {
        self.get(at, N).try_into().unwrap()
    }

    fn register<const N: usize>(&mut self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.nic.read(0, at, &mut bytes).unwrap();
        bytes
    }

    fn set(&mut self, at: u64, bytes: &[u8]) {
        self.nic.write(0, at, bytes).unwrap();
    }

    fn settle(&mut self) {
        for _ in 0..100_000 {
            if self.nic.poll() == Work::Idle {
                return;
            }
        }
        panic!("the model is never idle");
    }

    /// Polls until something is so.
    fn until(&mut self, what: &str, mut so: impl FnMut(&mut Self) -> bool) {
        let start = std::time::Instant::now();
        while !so(self) {
            assert!(start.elapsed().as_secs() < 600, "never: {what}");
            self.nic.poll();
        }
    }
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add((i >> 8) as u8).wrapping_add(seed)).collect()
}

/// A virtio block device with queues by hand. Each has 16 pages, of `SIZE` entries; data comes from page 64 on.
struct Disk {
    guest: Guest<Virtio>,
    packed: bool,
    queues: Vec<Vring>,
}

/// How far a queue is: split, free-running indexes; packed, places with the lap in bit 15.
#[derive(Clone, Copy)]
struct Vring {
    avail: u16,
    used: u16,
}

/// Entries of a queue: so many that each of its areas crosses pages.
const SIZE: u16 = 1024;
const INDIRECT: u64 = 1 << 28;
const PACKED: u64 = 1 << 34;
const MQ: u64 = 1 << 12;
/// Where data is: the header, the status, the data itself, an indirect table.
const HEADER: u64 = 64 * PAGE - 8;
const STATUS: u64 = 66 * PAGE;
const TABLE: u64 = 68 * PAGE - 24;
const DATA: u64 = 70 * PAGE + 100;

type Buffer = (u64, u32, bool);

impl Disk {
    fn new(lies: Lies, params: &str, features: u64) -> Self {
        let params = BlkParams::parse(&format!("entries={SIZE},{params}")).unwrap();
        let count = params.queues;
        let mut guest = Guest::new(lies, blk::model(params).unwrap());
        for status in [0u8, 1, 3] {
            guest.set(0x14, &[status]);
        }
        let features = features | 1 << 32;
        for half in 0..2u32 {
            guest.set(0x08, &half.to_le_bytes());
            guest.set(0x0c, &((features >> (32 * half)) as u32).to_le_bytes());
        }
        guest.set(0x14, &[11]);
        let packed = features & PACKED != 0;
        for queue in 0..count {
            guest.set(0x16, &queue.to_le_bytes());
            guest.set(0x18, &SIZE.to_le_bytes());
            for (at, area) in [0x20, 0x28, 0x30].into_iter().zip(Self::areas(queue)) {
                guest.set(at, &((BASE + area) as u32).to_le_bytes());
                guest.set(at + 4, &((BASE + area) >> 32).to_le_bytes()[..4]);
            }
            guest.set(0x1c, &1u16.to_le_bytes());
        }
        guest.set(0x14, &[15]);
        let start = if packed { 1 << 15 } else { 0 };
        let mut disk = Self { guest, packed, queues: vec![Vring { avail: start, used: start }; count.into()] };
        disk.guest.settle();
        assert_eq!(disk.status(), 15);
        disk
    }

    /// Descriptor, driver and device area: these two in the middle of pages, so that they cross them elsewhere than at their start.
    fn areas(queue: u16) -> [u64; 3] {
        let base = u64::from(queue % 4) * 16 * PAGE;
        [base, base + 4 * PAGE + 3000, base + 7 * PAGE + 2000]
    }

    fn status(&mut self) -> u8 {
        self.guest.register::<1>(0x14)[0]
    }

    /// Rings for a queue.
    fn notify(&mut self, queue: u16) {
        self.guest.nic.write(2, 4 * u64::from(queue), &queue.to_le_bytes()).unwrap();
    }

    fn desc(&self, at: u64, (address, len, write): Buffer, flags: u16, last: u16) {
        let flags = flags | if write { 2 } else { 0 };
        // Id and flags, or flags and next.
        let words = if self.packed { [last, flags] } else { [flags, last] };
        let words = [words[0].to_le_bytes(), words[1].to_le_bytes()].concat();
        self.guest.put(at, &[&(BASE + address).to_le_bytes()[..], &len.to_le_bytes(), &words].concat());
    }

    /// Makes a chain available: each in a descriptor of the queue's that is its place in it, or all of them in an indirect table.
    fn add(&mut self, queue: u16, buffers: &[Buffer], table: bool) {
        let [descs, driver, _] = Self::areas(queue);
        let n = buffers.len() as u16;
        if table {
            for (i, buffer) in (0u16..).zip(buffers) {
                let next = u16::from(!self.packed && i + 1 < n);
                self.desc(TABLE + 16 * u64::from(i), *buffer, next, i + 1);
            }
        }
        let whole = [(TABLE, 16 * u32::from(n), false)];
        let chain = if table { &whole[..] } else { buffers };
        let mut avail = self.queues[usize::from(queue)].avail;
        if self.packed {
            for (i, buffer) in chain.iter().enumerate() {
                let (at, lap) = (avail & 0x7fff, avail >> 15);
                let next = u16::from(i + 1 < chain.len()) | if table { 4 } else { 0 };
                self.desc(descs + 16 * u64::from(at), *buffer, next | lap << 7 | (lap ^ 1) << 15, at);
                avail = self.forward(avail, 1);
            }
        } else {
            // Chains of a queue lie one behind the other, whatever was used of them: no more than the queue holds are under way.
            let head = avail.wrapping_mul(8) % SIZE;
            for (i, buffer) in (0u16..).zip(chain) {
                let next = u16::from(usize::from(i) + 1 < chain.len()) | if table { 4 } else { 0 };
                self.desc(descs + 16 * u64::from(head + i), *buffer, next, head + i + 1);
            }
            self.guest.put(driver + 4 + 2 * u64::from(avail % SIZE), &head.to_le_bytes());
            avail = avail.wrapping_add(1);
            self.guest.put(driver + 2, &avail.to_le_bytes());
        }
        self.queues[usize::from(queue)].avail = avail;
    }

    fn forward(&self, place: u16, by: u16) -> u16 {
        let at = (place & 0x7fff) + by;
        if at >= SIZE { (at - SIZE) | (place ^ 1 << 15) & 1 << 15 } else { at | place & 1 << 15 }
    }

    /// Whether a chain of `descs` descriptors was used since: takes it.
    fn take(&mut self, queue: u16, descs: u16) -> bool {
        let [ring, _, device] = Self::areas(queue);
        let used = self.queues[usize::from(queue)].used;
        let there = if self.packed {
            let flags = u16::from_le_bytes(self.guest.word(ring + 16 * u64::from(used & 0x7fff) + 14));
            (flags >> 7 & 1, flags >> 15) == (used >> 15, used >> 15)
        } else {
            u16::from_le_bytes(self.guest.word(device + 2)) != used
        };
        if there {
            let next = if self.packed { self.forward(used, descs) } else { used.wrapping_add(1) };
            self.queues[usize::from(queue)].used = next;
        }
        there
    }

    fn request(&mut self, kind: u32, sector: u64, len: u32, table: bool) {
        self.guest.put(HEADER, &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
        self.guest.put(STATUS, &[0xee]);
        let buffers = [(HEADER, 16, false), (DATA, len, kind == 0), (STATUS, 1, true)];
        self.add(0, &buffers, table);
        self.notify(0);
        self.guest.settle();
        assert!(self.take(0, if table { 1 } else { 3 }), "it is used");
        assert_eq!((self.guest.get(STATUS, 1)[0], self.status()), (0, 15));
    }

    fn write_and_read(&mut self, seed: u8, table: bool) {
        let pages = if seed.is_multiple_of(16) { 5 } else { 1 };
        let data = pattern(pages * PAGE as usize, seed / 3);
        let sector = u64::from(seed);
        self.guest.put(DATA, &data);
        self.request(1, sector, data.len() as u32, table);
        self.guest.put(DATA, &vec![0; data.len()]);
        self.request(0, sector, data.len() as u32, table);
        assert!(self.guest.get(DATA, data.len()) == data, "what was written is read");
    }
}

#[test]
fn queues_tables_and_data_of_a_disk_cross_maps() {
    for features in [0, PACKED] {
        let mut disk = Disk::new(Scattered, "size=1M", features | INDIRECT);
        // More than once around the ring, past entries that lie in two pages.
        for i in 0..600 {
            disk.write_and_read(i as u8, i % 5 == 4);
        }
    }
}

#[test]
fn what_a_disk_only_reads_may_be_mapped_for_reading() {
    for features in [0, PACKED] {
        let mut disk = Disk::new(Scattered, "size=1M", features | INDIRECT);
        // The indirect table, and the header.
        disk.guest.map_reading(63..65);
        disk.guest.map_reading(67..69);
        if features == 0 {
            // Descriptors and the available ring of a split queue.
            disk.guest.map_reading(0..7);
        }
        disk.write_and_read(1, true);
        disk.write_and_read(2, false);
        // But what it writes may not.
        disk.guest.map_reading(66..67);
        disk.add(0, &[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)], false);
        disk.guest.settle();
        assert_eq!(disk.status(), 15 | 64);
    }
}

#[test]
fn an_idle_queue_may_be_remapped() {
    for features in [0, PACKED] {
        let mut disk = Disk::new(Flat, "size=1M,queues=2", features | MQ);
        disk.write_and_read(1, false);
        for _ in 0..3 {
            disk.guest.unmap(0..PAGES);
            for _ in 0..100 {
                disk.guest.nic.poll();
            }
            assert_eq!(disk.status(), 15, "it is idle");
            disk.guest.map(0..48, true);
            disk.guest.settle();
            disk.guest.map(48..PAGES, true);
            disk.write_and_read(2, false);
        }
        disk.guest.unmap(0..PAGES);
        disk.guest.map_all();
        // One that is away keeps no other from its work.
        disk.guest.unmap(16..32);
        disk.guest.settle();
        disk.write_and_read(3, false);
        // What is notified of a queue that is not there is served when it is.
        disk.add(1, &[(HEADER, 16, false), (STATUS, 1, true)], false);
        disk.notify(1);
        disk.guest.nic.poll();
        disk.guest.map(16..32, true);
        disk.guest.settle();
        assert!(disk.take(1, 2));
        assert_eq!(disk.status(), 15);
    }
}

#[test]
fn a_queue_that_was_notified_and_is_not_there_is_broken() {
    for features in [0, PACKED] {
        let mut disk = Disk::new(Flat, "size=1M,queues=2", features | MQ);
        disk.write_and_read(1, false);
        disk.guest.unmap(0..16);
        disk.guest.nic.poll();
        // Another queue's notification is not this one's.
        disk.notify(1);
        disk.guest.settle();
        assert_eq!(disk.status(), 15);
        disk.notify(0);
        disk.guest.until("it needs a reset", |guest| guest.register::<1>(0x14)[0] == 15 | 64);
    }
}

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

/// What one poll may move before it ends, with the request that it is at.
const BUDGET: u64 = 1 << 20;

#[test]
fn a_poll_of_a_disk_ends_after_so_many_bytes() {
    const QUEUES: usize = 4;
    for features in [0, PACKED] {
        let mut disk = Disk::new(Flat, &format!("size=1G,queues={QUEUES}"), features | MQ | INDIRECT);
        disk.guest.put(HEADER, &[0; 16]);
        // All of them into the same pages.
        let data = (72 * PAGE, 192 << 10, true);
        for queue in 0..QUEUES as u16 {
            for _ in 0..20 {
                disk.add(queue, &[(HEADER, 16, false), data, (STATUS, 1, true)], false);
            }
        }
        let mut done = [0; QUEUES];
        for round in 0.. {
            let before: u64 = done.iter().sum();
            assert_eq!(disk.guest.nic.poll(), Work::Busy);
            for (queue, done) in (0..).zip(&mut done) {
                while disk.take(queue, 3) {
                    *done += 1;
                }
            }
            let now: u64 = done.iter().sum();
            assert!((now - before - 1) * u64::from(data.1) <= BUDGET, "{} in a poll", now - before);
            if now == 20 * QUEUES as u64 {
                break;
            }
            // Each queue has its turn.
            let (least, most) = (done.iter().min(), done.iter().max());
            assert!(round < 3 || most.unwrap() - least.unwrap() <= 8, "{done:?}");
        }
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

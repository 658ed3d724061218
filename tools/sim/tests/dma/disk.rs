//! A virtio block device, its queues by hand.

use super::*;
use wholebar_sim::virtio::Virtio;
use wholebar_sim::virtio::blk::{self, BlkParams};

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

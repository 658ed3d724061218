//! Both rings against devices that are written here, word by word: by the rules, and against them. Under Miri too.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use wholebar_core::mem::{ArenaOptions, DmaRing};

/// A buffer as the device finds it: identifier, pieces with whether it may write them.
type Found = (u16, Vec<(u64, u32, bool)>);

/// Where rings' arenas are as devices see them.
const BASE: Iova = Iova(0x7_0000_0000);

/// A table of descriptors, as a device reads it: address; length, and what is behind it.
fn table(chunk: &Chunk, address: u64, len: u32) -> Vec<[u64; 2]> {
    assert!(len > 0 && len.is_multiple_of(16) && address.is_multiple_of(16));
    let mut bytes = vec![0; len as usize];
    chunk.read(address - BASE.0 - chunk.offset(), &mut bytes).unwrap();
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    (0..bytes.len()).step_by(16).map(|at| [word(at), word(at + 8)]).collect()
}

/// The device's side of a ring.
trait Other {
    fn over(areas: &Areas, size: u16) -> Self;
    /// The next buffer that is available.
    fn find(&mut self) -> Option<Found>;
    /// Uses a buffer of so many descriptors.
    fn give_back(&mut self, id: u16, len: u32, count: u16);
    /// Uses a batch in order, by naming its last alone.
    fn give_back_batch(&mut self, last: u16, len: u32, buffers: u16, descriptors: u16);
    /// Asks to be notified, or not.
    fn want_notice(&mut self, on: bool);
    /// Asks to be notified once the next buffer but `after` is available.
    fn want_notice_after(&mut self, after: u16);
    /// Whether the driver wants an interrupt, with event indexes, where the used index just passed its next entry.
    fn is_wanted(&self, event_idx: bool) -> bool;
}

struct SplitDevice {
    size: u16,
    seen: u16,
    used: u16,
    table: DmaRing<[AtomicU64; 2]>,
    avail_head: DmaRing<AtomicU16>,
    avail: DmaRing<AtomicU16>,
    used_event: DmaRing<AtomicU16>,
    used_head: DmaRing<AtomicU16>,
    used_ring: DmaRing<[AtomicU32; 2]>,
    avail_event: DmaRing<AtomicU16>,
    chunk: Chunk,
}

impl Other for SplitDevice {
    fn over(areas: &Areas, size: u16) -> Self {
        let (n, Areas { chunk, driver, device, .. }) = (u64::from(size), areas);
        Self {
            size,
            seen: 0,
            used: 0,
            table: DmaRing::within(chunk, 0, size.into()).unwrap(),
            avail_head: DmaRing::within(chunk, *driver, 2).unwrap(),
            avail: DmaRing::within(chunk, driver + 4, size.into()).unwrap(),
            used_event: DmaRing::within(chunk, driver + 4 + 2 * n, 1).unwrap(),
            used_head: DmaRing::within(chunk, *device, 2).unwrap(),
            used_ring: DmaRing::within(chunk, device + 4, size.into()).unwrap(),
            avail_event: DmaRing::within(chunk, device + 4 + 8 * n, 1).unwrap(),
            chunk: chunk.clone(),
        }
    }

    fn find(&mut self) -> Option<Found> {
        let index = u16::from_le(self.avail_head.at(1).load(Ordering::Acquire));
        if index == self.seen {
            return None;
        }
        assert!(index.wrapping_sub(self.seen) <= self.size);
        let head = u16::from_le(self.avail.at(self.seen.into()).load(Ordering::Relaxed));
        self.seen = self.seen.wrapping_add(1);
        let (mut id, mut pieces) = (head, Vec::new());
        loop {
            let [address, rest] = [0, 1].map(|i| u64::from_le(self.table.at(id.into())[i].load(Ordering::Relaxed)));
            if rest >> 32 & 4 != 0 {
                assert!(pieces.is_empty() && rest >> 32 & 3 == 0);
                let table = table(&self.chunk, address, rest as u32);
                for (i, [address, rest]) in (1..).zip(&table) {
                    // Each goes on in the one behind it, but for the last (2.7.5.3).
                    let next = if i < table.len() { 1 | (i as u64) << 16 } else { 0 };
                    assert_eq!(rest >> 32 & !2, next);
                    pieces.push((*address, *rest as u32, rest >> 32 & 2 != 0));
                }
                return Some((head, pieces));
            }
            pieces.push((address, rest as u32, rest >> 32 & 2 != 0));
            if rest >> 32 & 1 == 0 {
                return Some((head, pieces));
            }
            id = (rest >> 48) as u16;
            assert!(id < self.size && pieces.len() < self.size.into());
        }
    }

    fn give_back(&mut self, id: u16, len: u32, _: u16) {
        self.give_back_batch(id, len, 1, 0);
    }

    fn give_back_batch(&mut self, last: u16, len: u32, buffers: u16, _: u16) {
        let entry = self.used_ring.at(self.used.into());
        entry[0].store(u32::from(last).to_le(), Ordering::Relaxed);
        entry[1].store(len.to_le(), Ordering::Relaxed);
        self.used = self.used.wrapping_add(buffers);
        self.used_head.at(1).store(self.used.to_le(), Ordering::Release);
    }

    fn want_notice(&mut self, on: bool) {
        self.used_head.at(0).store(u16::from(!on).to_le(), Ordering::Relaxed);
    }

    fn want_notice_after(&mut self, after: u16) {
        self.avail_event.at(0).store(self.seen.wrapping_add(after).to_le(), Ordering::Relaxed);
    }

    fn is_wanted(&self, event_idx: bool) -> bool {
        if event_idx {
            u16::from_le(self.used_event.at(0).load(Ordering::Relaxed)) == self.used
        } else {
            self.avail_head.at(0).load(Ordering::Relaxed) == 0
        }
    }
}

struct PackedDevice {
    size: u16,
    seen: (u16, bool),
    used: (u16, bool),
    descs: DmaRing<[AtomicU64; 2]>,
    driver_event: DmaRing<[AtomicU16; 2]>,
    device_event: DmaRing<[AtomicU16; 2]>,
    chunk: Chunk,
}

impl PackedDevice {
    /// Writes the second word of a descriptor.
    fn put(&self, at: u16, len: u32, id: u16, flags: u16) {
        let rest = u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48;
        self.descs.at(at.into())[1].store(rest.to_le(), Ordering::Release);
    }

    /// Uses a buffer of one descriptor, with a length and without the flag that says that it means something.
    fn give_back_without_flag(&mut self, id: u16, len: u32) {
        let (at, wrap) = self.used;
        self.put(at, len, id, if wrap { 1 << 7 | 1 << 15 } else { 0 });
        Self::step(&mut self.used, 1, self.size);
    }

    fn step(place: &mut (u16, bool), by: u16, size: u16) {
        place.0 += by;
        if place.0 >= size {
            *place = (place.0 - size, !place.1);
        }
    }
}

impl Other for PackedDevice {
    fn over(areas: &Areas, size: u16) -> Self {
        let Areas { chunk, driver, device, .. } = areas;
        Self {
            size,
            seen: (0, true),
            used: (0, true),
            descs: DmaRing::within(chunk, 0, size.into()).unwrap(),
            driver_event: DmaRing::within(chunk, *driver, 1).unwrap(),
            device_event: DmaRing::within(chunk, *device, 1).unwrap(),
            chunk: chunk.clone(),
        }
    }

    fn find(&mut self) -> Option<Found> {
        let mut pieces = Vec::new();
        loop {
            let (at, wrap) = self.seen;
            let rest = u64::from_le(self.descs.at(at.into())[1].load(Ordering::Acquire));
            let (len, id, flags) = (rest as u32, (rest >> 32) as u16, (rest >> 48) as u16);
            if (flags & 1 << 7 != 0) != wrap || (flags & 1 << 15 != 0) == wrap {
                assert!(pieces.is_empty(), "half a chain is available");
                return None;
            }
            let address = u64::from_le(self.descs.at(at.into())[0].load(Ordering::Relaxed));
            if flags & 4 != 0 {
                assert!(pieces.is_empty() && flags & 3 == 0);
                for [address, rest] in table(&self.chunk, address, len) {
                    // Of the flags the device looks at one (2.8.7).
                    assert_eq!(rest >> 32 & !(2 << 16), 0);
                    pieces.push((address, rest as u32, rest >> 48 & 2 != 0));
                }
            } else {
                pieces.push((address, len, flags & 2 != 0));
            }
            Self::step(&mut self.seen, 1, self.size);
            if flags & 1 == 0 {
                return Some((id, pieces));
            }
        }
    }

    fn give_back(&mut self, id: u16, len: u32, count: u16) {
        self.give_back_batch(id, len, 1, count);
    }

    fn give_back_batch(&mut self, last: u16, len: u32, _: u16, descriptors: u16) {
        let (at, wrap) = self.used;
        let flags: u16 = if wrap { 1 << 7 | 1 << 15 } else { 0 } | u16::from(len > 0) << 1;
        self.put(at, len, last, flags);
        Self::step(&mut self.used, descriptors, self.size);
    }

    fn want_notice(&mut self, on: bool) {
        self.device_event.at(0)[1].store(u16::from(!on).to_le(), Ordering::Relaxed);
    }

    fn want_notice_after(&mut self, after: u16) {
        let mut place = self.seen;
        Self::step(&mut place, after, self.size);
        self.device_event.at(0)[0].store((place.0 | u16::from(place.1) << 15).to_le(), Ordering::Relaxed);
        self.device_event.at(0)[1].store(2u16.to_le(), Ordering::Relaxed);
    }

    fn is_wanted(&self, event_idx: bool) -> bool {
        let [event, flags] = [0, 1].map(|i| u16::from_le(self.driver_event.at(0)[i].load(Ordering::Relaxed)));
        match flags {
            0 => true,
            2 if event_idx => event == self.used.0 | u16::from(self.used.1) << 15,
            _ => false,
        }
    }
}

fn pair<R: Ring, D: Other>(size: u16, options: RingOptions) -> (R, D) {
    let arena = Arena::new(1 << 20, ArenaOptions { hugepages: Some(false), numa_node: None }).unwrap();
    let ring = R::new(arena.clone(), size, options).unwrap();
    let device = D::over(&ring.areas(), size);
    (ring, device)
}

fn segment(i: u64) -> Segment {
    Segment { iova: 0x1000 * i, len: 100 + i as u32 }
}

const PLAIN: RingOptions = RingOptions { event_idx: false, in_order: false, indirect: None };
const ORDER: RingOptions = RingOptions { event_idx: false, in_order: true, indirect: None };
const EVENTS: RingOptions = RingOptions { event_idx: true, in_order: false, indirect: None };

/// Each body, on both formats.
macro_rules! both {
    ($($body:ident,)*) => {
        mod on_split {
            use super::{Split, SplitDevice};
            $(#[test] fn $body() { super::$body::<Split, SplitDevice>(); })*
        }
        mod on_packed {
            use super::{Packed, PackedDevice};
            $(#[test] fn $body() { super::$body::<Packed, PackedDevice>(); })*
        }
    };
}
both! {
    buffers_go_there_and_come_back,
    nothing_is_seen_before_it_is_published,
    rings_wrap_around,
    what_the_device_makes_up_is_refused,
    what_is_not_published_is_not_used,
    in_order_one_entry_tells_a_batch,
    notices_are_given_where_they_are_wanted,
    interrupts_are_asked_for,
    restarted_it_is_as_new,
    pieces_in_a_table_take_one_descriptor,
    a_device_on_another_thread,
}

fn buffers_go_there_and_come_back<R: Ring, D: Other>() {
    let (mut ring, mut device) = pair::<R, D>(8, PLAIN);
    assert_eq!((ring.size(), ring.free(), ring.take().unwrap()), (8, 8, None));
    let one = ring.post_one(segment(1), true);
    let many = ring.post(&[segment(2), segment(3), segment(4)], 1);
    assert_eq!(ring.free(), 4);
    assert!(ring.publish(), "a device that said nothing wants to be notified");
    assert!(!ring.publish(), "nothing new");
    assert_eq!(device.find().unwrap(), (one, vec![(0x1000, 101, true)]));
    assert_eq!(device.find().unwrap(), (many, vec![(0x2000, 102, false), (0x3000, 103, true), (0x4000, 104, true)]));
    assert!(device.find().is_none());
    // Out of order, and each as full as it can be.
    device.give_back(many, 207, 3);
    assert_eq!(ring.take().unwrap(), Some(Used { id: many, len: 207 }));
    assert_eq!((ring.take().unwrap(), ring.free()), (None, 7));
    device.give_back(one, 0, 1);
    assert_eq!(ring.take().unwrap(), Some(Used { id: one, len: 0 }));
    assert_eq!((ring.take().unwrap(), ring.free()), (None, 8));
}

fn pieces_in_a_table_take_one_descriptor<R: Ring, D: Other>() {
    for in_order in [false, true] {
        let options = RingOptions { in_order, indirect: Some(BASE), ..PLAIN };
        // Tables of eight: a longer buffer is a chain.
        let (mut ring, mut device) = pair::<R, D>(1024, options);
        assert_eq!([1, 2, 8, 9].map(|pieces| ring.descriptors(pieces)), [1, 1, 1, 9]);
        for lap in 0..3 {
            let lens = [2, 9, 8, 1].map(|n| (0..n).map(|i| segment(10 * n + i)).collect::<Vec<_>>());
            let ids: Vec<_> = lens.iter().map(|segments| ring.post(segments, 1)).collect();
            assert_eq!(ring.free(), 1024 - 12, "lap {lap}");
            ring.publish();
            for (id, segments) in ids.iter().zip(&lens) {
                let pieces: Vec<_> = (0..).zip(segments).map(|(i, s)| (s.iova, s.len, i > 0)).collect();
                assert_eq!(device.find().unwrap(), (*id, pieces));
                let (room, count) = (segments[1..].iter().map(|s| s.len).sum(), ring.descriptors(segments.len()));
                device.give_back(*id, room, count as u16);
                assert_eq!(ring.take().unwrap(), Some(Used { id: *id, len: room }));
            }
            assert_eq!((ring.take().unwrap(), ring.free()), (None, 1024));
        }
    }
}

fn nothing_is_seen_before_it_is_published<R: Ring, D: Other>() {
    let (mut ring, mut device) = pair::<R, D>(4, PLAIN);
    ring.post_one(segment(1), false);
    ring.post(&[segment(2), segment(3)], 2);
    assert!(device.find().is_none());
    ring.publish();
    assert_eq!((device.find().unwrap().1.len(), device.find().unwrap().1.len()), (1, 2));
}

fn rings_wrap_around<R: Ring, D: Other>() {
    let (mut ring, mut device) = pair::<R, D>(4, PLAIN);
    // Chains of 3 in a ring of 4 begin everywhere; indexes of 16 bits wrap too.
    let rounds = if cfg!(miri) { 40 } else { 70_000 };
    for round in 0..rounds {
        let id = ring.post(&[segment(round), segment(round + 1), segment(round + 2)], 2);
        ring.publish();
        let (found, pieces) = device.find().unwrap();
        assert_eq!((found, pieces.len(), pieces[2]), (id, 3, (0x1000 * (round + 2), 102 + round as u32, true)));
        device.give_back(found, 7, 3);
        assert_eq!(ring.take().unwrap(), Some(Used { id, len: 7 }));
        assert_eq!(ring.free(), 4);
    }
}

fn what_the_device_makes_up_is_refused<R: Ring, D: Other>() {
    for (id, len, fault) in [
        (9, 0, Fault::NotInFlight { id: 9 }),
        (3, 0, Fault::NotInFlight { id: 3 }),
        (0xffff, 0, Fault::NotInFlight { id: 0xffff }),
        (0, 102, Fault::Length { id: 0, len: 102, most: 101 }),
        (1, 1, Fault::Length { id: 1, len: 1, most: 0 }),
    ] {
        let (mut ring, mut device) = pair::<R, D>(8, PLAIN);
        assert_eq!((ring.post_one(segment(1), true), ring.post_one(segment(2), false)), (0, 1));
        ring.publish();
        device.give_back(id, len, 1);
        assert_eq!(ring.take(), Err(fault));
    }
    // Twice the same.
    let (mut ring, mut device) = pair::<R, D>(8, PLAIN);
    ring.post_one(segment(1), true);
    ring.post_one(segment(2), true);
    ring.publish();
    device.give_back(1, 0, 1);
    device.give_back(1, 0, 1);
    assert_eq!(ring.take(), Ok(Some(Used { id: 1, len: 0 })));
    assert_eq!(ring.take(), Err(Fault::NotInFlight { id: 1 }));
}

fn what_is_not_published_is_not_used<R: Ring, D: Other>() {
    let (mut ring, mut device) = pair::<R, D>(8, PLAIN);
    ring.post_one(segment(1), true);
    ring.publish();
    let late = ring.post_one(segment(2), true);
    device.give_back(late, 0, 1);
    assert_eq!(ring.take(), Err(Fault::NotInFlight { id: late.into() }));
}

fn in_order_one_entry_tells_a_batch<R: Ring, D: Other>() {
    let (mut ring, mut device) = pair::<R, D>(8, ORDER);
    let post = |ring: &mut R| {
        let ids =
            [ring.post_one(segment(1), true), ring.post(&[segment(2), segment(3)], 1), ring.post_one(segment(4), true)];
        ring.publish();
        ids
    };
    for _ in 0..5 {
        let ids = post(&mut ring);
        device.give_back_batch(ids[2], 5, 3, 4);
        // Those that were not named are taken to be wholly used.
        for (id, len) in ids.into_iter().zip([101, 103, 5]) {
            assert_eq!(ring.take().unwrap(), Some(Used { id, len }));
        }
        assert_eq!((ring.take().unwrap(), ring.free()), (None, 8));
    }
    let ids = post(&mut ring);
    device.give_back_batch(ids[1], 0, 2, 3);
    device.give_back(ids[2], 104, 1);
    let taken: Vec<_> = std::iter::from_fn(|| ring.take().unwrap()).map(|used| (used.id, used.len)).collect();
    assert_eq!(taken, [(ids[0], 101), (ids[1], 0), (ids[2], 104)]);
}

fn notices_are_given_where_they_are_wanted<R: Ring, D: Other>() {
    let (mut ring, mut device) = pair::<R, D>(8, PLAIN);
    for wanted in [false, true, false] {
        device.want_notice(wanted);
        ring.post_one(segment(1), true);
        assert_eq!(ring.publish(), wanted);
    }
    let (mut ring, mut device) = pair::<R, D>(8, EVENTS);
    let go = |ring: &mut R, device: &mut D, buffers: u16, after: u16| {
        device.want_notice_after(after);
        (0..buffers).for_each(|i| {
            ring.post_one(segment(i.into()), false);
        });
        let wanted = ring.publish();
        while let Some((id, _)) = device.find() {
            device.give_back(id, 0, 1);
        }
        while ring.take().unwrap().is_some() {}
        wanted
    };
    for round in 0..20 {
        for (buffers, after, wanted) in [(1, 0, true), (1, 1, false), (3, 2, true), (3, 3, false), (4, 1, true)] {
            assert_eq!(go(&mut ring, &mut device, buffers, after), wanted, "round {round}: {buffers}, {after}");
        }
    }
}

fn interrupts_are_asked_for<R: Ring, D: Other>() {
    for options in [PLAIN, EVENTS] {
        let (mut ring, mut device) = pair::<R, D>(4, options);
        for _ in 0..9 {
            assert!(!device.is_wanted(options.event_idx));
            ring.set_interrupt(true);
            assert!(device.is_wanted(options.event_idx));
            let id = ring.post_one(segment(1), true);
            ring.publish();
            device.find().unwrap();
            device.give_back(id, 0, 1);
            ring.set_interrupt(false);
            assert!(ring.take().unwrap().is_some());
        }
    }
}

fn restarted_it_is_as_new<R: Ring, D: Other>() {
    let (mut ring, mut device) = pair::<R, D>(4, ORDER);
    for _ in 0..3 {
        ring.post(&[segment(1), segment(2), segment(3)], 1);
        ring.publish();
        let (id, _) = device.find().unwrap();
        device.give_back(id, 0, 3);
        ring.areas().zero();
        ring.restart();
        assert_eq!((ring.free(), ring.take().unwrap()), (4, None));
        device = D::over(&ring.areas(), 4);
        assert!(device.find().is_none());
    }
}

/// What lies in a buffer is as old as its descriptor, and no older; the same on the way back. The buffers' words are relaxed: with a weakened
/// ordering in the rings, Miri gives older ones.
fn a_device_on_another_thread<R: Ring, D: Other + Send + 'static>() {
    const BUFFERS: u32 = if cfg!(miri) { 60 } else { 50_000 };
    let (mut ring, mut device) = pair::<R, D>(4, PLAIN);
    let words: Arc<[AtomicU32; 4]> = Arc::default();
    let theirs = words.clone();
    let thread = std::thread::spawn(move || {
        for _ in 0..BUFFERS {
            let (id, pieces) = loop {
                match device.find() {
                    Some(found) => break found,
                    None => std::thread::yield_now(),
                }
            };
            let (at, number, _) = pieces[0];
            assert_eq!(theirs[at as usize].load(Ordering::Relaxed), number);
            theirs[at as usize].store(!number, Ordering::Relaxed);
            device.give_back(id, number, 1);
        }
    });
    let (mut posted, mut taken, mut free) = (0, 0, vec![0u64, 1, 2, 3]);
    let mut at = BTreeMap::new();
    while taken < BUFFERS {
        while posted < BUFFERS
            && let Some(word) = free.pop()
        {
            posted += 1;
            words[word as usize].store(posted, Ordering::Relaxed);
            at.insert(ring.post_one(Segment { iova: word, len: posted }, true), word);
        }
        ring.publish();
        match ring.take().unwrap() {
            Some(Used { id, len: number }) => {
                let word = at.remove(&id).unwrap();
                assert_eq!(words[word as usize].load(Ordering::Relaxed), !number);
                free.push(word);
                taken += 1;
            }
            None => std::thread::yield_now(),
        }
    }
    thread.join().unwrap();
}

#[test]
fn a_split_index_that_runs_ahead_is_refused() {
    for in_order in [false, true] {
        let (mut ring, mut device) = pair::<Split, SplitDevice>(8, RingOptions { in_order, ..PLAIN });
        let first = ring.post_one(segment(1), true);
        let last = ring.post_one(segment(2), true);
        ring.publish();
        device.give_back_batch(first, 0, 3, 0);
        assert_eq!(ring.take(), Err(Fault::Ahead { by: 3, flying: 2 }));
        if in_order {
            let (mut ring, mut device) = pair::<Split, SplitDevice>(8, ORDER);
            assert_eq!((ring.post_one(segment(1), true), ring.post_one(segment(2), true)), (first, last));
            ring.publish();
            // One entry more, but the one it names is the second.
            device.give_back_batch(last, 0, 1, 0);
            assert_eq!(ring.take(), Ok(Some(Used { id: first, len: 101 })));
            assert_eq!(ring.take(), Err(Fault::Batch));
        }
    }
}

/// As DPDK's vhost does: a used descriptor has the length that the driver wrote, and no flag that says that the device wrote anything.
#[test]
fn a_packed_length_without_its_flag_is_ignored() {
    for in_order in [false, true] {
        let (mut ring, mut device) =
            pair::<Packed, PackedDevice>(8, RingOptions { in_order, ..RingOptions::default() });
        let id = ring.post_one(segment(5), false);
        ring.publish();
        device.give_back_without_flag(id, 105);
        assert_eq!(ring.take(), Ok(Some(Used { id, len: 0 })));
        // What it may write to is as long as it says, flag or not, and not longer.
        for (len, taken) in [(104, Ok(104)), (106, Err(Fault::Length { id: 0, len: 106, most: 105 }))] {
            let id = ring.post_one(segment(5), true);
            ring.publish();
            device.give_back_without_flag(id, len);
            let expected = taken.map(|len| Some(Used { id, len }));
            let fault = |fault| {
                if let Fault::Length { len, most, .. } = fault { Fault::Length { id: 0, len, most } } else { fault }
            };
            assert_eq!(ring.take().map_err(fault), expected);
        }
    }
}

/// The table is the device's to scribble on: a loop there is not followed, and no descriptor is lost or free twice.
#[test]
fn a_table_that_loops_changes_nothing() {
    let (mut ring, mut device) = pair::<Split, SplitDevice>(8, PLAIN);
    let id = ring.post(&[segment(1), segment(2), segment(3)], 0);
    ring.publish();
    for i in 0..8 {
        device.table.at(i)[1].store((1 << 32 | u64::from(id) << 48).to_le(), Ordering::Relaxed);
    }
    device.give_back(id, 300, 3);
    assert_eq!(ring.take(), Ok(Some(Used { id, len: 300 })));
    assert_eq!(ring.free(), 8);
    let mut ids: Vec<_> = (0..8).map(|i| ring.post_one(segment(i), true)).collect();
    ids.sort_unstable();
    assert_eq!(ids, [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[derive(Debug, Clone)]
enum Step {
    Post {
        readable: usize,
        writable: usize,
    },
    Publish,
    /// The device uses the buffer at this place among those it has.
    Use {
        which: usize,
        share: u32,
    },
    Take,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..4usize, 0..4usize).prop_map(|(readable, writable)| Step::Post { readable, writable }),
        2 => Just(Step::Publish),
        3 => (0..16usize, 0..=4u32).prop_map(|(which, share)| Step::Use { which, share }),
        3 => Just(Step::Take),
    ];
    prop::collection::vec(step, 0..if cfg!(miri) { 30 } else { 300 })
}

/// Whatever is done in whatever order: the device finds what was posted, in order; the driver takes what was used, in order.
fn agrees<R: Ring, D: Other>(steps: Vec<Step>, log: u32, options: RingOptions) -> Result<(), TestCaseError> {
    let size = 1u16 << log;
    let (mut ring, mut device) = pair::<R, D>(size, options);
    let mut next = 0u64;
    let (mut posted, mut published) = (Vec::new(), VecDeque::new());
    let (mut held, mut used, mut free) = (Vec::<(Found, u32)>::new(), VecDeque::new(), size);
    for step in steps {
        match step {
            Step::Post { readable, writable } => {
                let n = (readable + writable) as u16;
                let descriptors = ring.descriptors(n.into()) as u16;
                if n == 0 || n > size || descriptors > ring.free() {
                    continue;
                }
                let segments: Vec<_> = (0..n).map(|i| segment(next + u64::from(i))).collect();
                next += u64::from(n);
                let pieces = segments.iter().enumerate().map(|(i, s)| (s.iova, s.len, i >= readable)).collect();
                let id =
                    if n == 1 { ring.post_one(segments[0], readable == 0) } else { ring.post(&segments, readable) };
                posted.push((id, pieces));
                free -= descriptors;
            }
            Step::Publish => {
                ring.publish();
                published.extend(posted.drain(..));
            }
            Step::Use { which, share } => {
                while let Some(found) = device.find() {
                    let expected = published.pop_front();
                    prop_assert_eq!(Some(&found), expected.as_ref());
                    let room = found.1.iter().filter(|p| p.2).map(|p| p.1).sum();
                    held.push((found, room));
                }
                prop_assert!(published.is_empty());
                if held.is_empty() {
                    continue;
                }
                let which = if options.in_order { 0 } else { which % held.len() };
                let ((id, pieces), room) = held.remove(which);
                let len = room / 4 * share;
                let descriptors = ring.descriptors(pieces.len()) as u16;
                device.give_back(id, len, descriptors);
                used.push_back((Used { id, len }, descriptors));
            }
            Step::Take => {
                let taken = ring.take().map_err(|fault| TestCaseError::fail(fault.to_string()))?;
                let expected = used.pop_front();
                prop_assert_eq!(taken, expected.map(|(used, _)| used));
                free += expected.map_or(0, |(_, n)| n);
            }
        }
        prop_assert_eq!(ring.free(), free);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 3 } else { 200 }, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn split_agrees_with_its_device(
        steps in steps(), log in 1..5u32, in_order: bool, event_idx: bool, tables: bool
    ) {
        agrees::<Split, SplitDevice>(steps, log, RingOptions { event_idx, in_order, indirect: tables.then_some(BASE) })?;
    }

    #[test]
    fn packed_agrees_with_its_device(
        steps in steps(), log in 1..5u32, in_order: bool, event_idx: bool, tables: bool
    ) {
        agrees::<Packed, PackedDevice>(steps, log, RingOptions { event_idx, in_order, indirect: tables.then_some(BASE) })?;
    }

    /// Any words in the device's area: an error or a buffer in flight, never anything else, and each buffer once.
    #[test]
    fn split_survives_any_used_ring(words in prop::collection::vec((0..20u32, 0..400u32, 0..5u16), 0..40)) {
        let (mut ring, mut device) = pair::<Split, SplitDevice>(8, PLAIN);
        let mut flying = std::collections::BTreeSet::new();
        for (id, len, by) in words {
            while ring.free() >= 2 {
                flying.insert(ring.post(&[segment(1), segment(2)], 1));
            }
            ring.publish();
            device.give_back_batch(id as u16, len, by, 0);
            while let Ok(Some(used)) = ring.take() {
                prop_assert!(flying.remove(&used.id) && used.len <= 102);
            }
        }
    }

    #[test]
    fn packed_survives_any_descriptors(words in prop::collection::vec((0..8u32, 0..20u16, 0..400u32, any::<u16>()), 0..40)) {
        let (mut ring, device) = pair::<Packed, PackedDevice>(8, PLAIN);
        let mut flying = std::collections::BTreeSet::new();
        for (at, id, len, flags) in words {
            while ring.free() >= 2 {
                flying.insert(ring.post(&[segment(1), segment(2)], 1));
            }
            ring.publish();
            device.put(at as u16, len, id, flags);
            while let Ok(Some(used)) = ring.take() {
                prop_assert!(flying.remove(&used.id) && used.len <= 102);
            }
        }
    }
}

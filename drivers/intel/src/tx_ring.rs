//! A ring of transmit descriptors, as words in memory (82576 datasheet, 7.2.2), and the packets that the device has.
//!
//! What is here: post descriptors, ask for reports, take back the packets that were sent. It does *not* know registers, nor what a packet asks
//! for. Words are atomics: this is safe code, with the device, or a thread that models it, on the other side.

use crate::descriptor::{TX_DONE, TX_REPORT};
use crate::rx_ring::ALIGN;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use wholebar_core::mem::{Arena, Buf, DmaRing};
use wholebar_core::{Result, barrier};

/// Descriptors and their packets. Indexes run free; the ring reduces them.
pub(crate) struct TxRing {
    /// The oldest descriptor that is not known to be done.
    head: u32,
    /// Where the next goes.
    tail: u32,
    /// Packets in flight.
    packets: u32,
    /// The descriptors that are to report: a ring of its own.
    marks: Box<[u32]>,
    first_mark: u32,
    next_mark: u32,
    ring: DmaRing<[AtomicU64; 2]>,
    /// A packet is in the slot of its last descriptor.
    slots: Box<[Option<Buf>]>,
}

/// A report is asked for at least once in so many descriptors, and for the last of a burst.
const REPORT_EVERY: u32 = 32;

impl TxRing {
    /// An empty ring of `entries` (a power of two) in `arena`.
    pub fn new(arena: Arc<Arena>, entries: u32) -> Result<Self> {
        Ok(Self {
            head: 0,
            tail: 0,
            packets: 0,
            marks: vec![0; entries as usize].into(),
            first_mark: 0,
            next_mark: 0,
            ring: DmaRing::new(arena, entries, ALIGN)?,
            slots: (0..entries).map(|_| None).collect(),
        })
    }

    /// How many more descriptors it takes. One stays free: with head and tail equal, the device has none.
    #[inline(always)]
    pub fn free(&self) -> u32 {
        self.capacity() - self.tail.wrapping_sub(self.head)
    }

    /// How many descriptors it takes when it is empty.
    #[inline(always)]
    pub fn capacity(&self) -> u32 {
        self.ring.len() - 1
    }

    /// Posts a descriptor; the doorbell announces it. There is room for it: see [`free`](Self::free).
    #[inline(always)]
    pub fn post(&mut self, words: [u64; 2]) {
        let entry = self.ring.at(self.tail);
        // Relaxed: the doorbell publishes both. The second word takes back DD.
        entry[0].store(words[0].to_le(), Ordering::Relaxed);
        entry[1].store(words[1].to_le(), Ordering::Relaxed);
        self.tail = self.tail.wrapping_add(1);
    }

    /// The descriptor posted last was a packet's last: keeps it until it was sent.
    #[inline(always)]
    pub fn keep(&mut self, packet: Buf) {
        let last = self.tail.wrapping_sub(1);
        self.slots[self.ring.slot(last) as usize] = Some(packet);
        self.packets += 1;
        if last.wrapping_sub(self.marked()) >= REPORT_EVERY {
            self.mark();
        }
    }

    /// Asks for a report of the descriptor posted last, if that was not done. It belongs before the doorbell.
    #[inline(always)]
    pub fn mark(&mut self) {
        let last = self.tail.wrapping_sub(1);
        if self.packets == 0 || (self.first_mark != self.next_mark && self.marked() == last) {
            return;
        }
        let word = &self.ring.at(last)[1];
        word.store(word.load(Ordering::Relaxed) | TX_REPORT.to_le(), Ordering::Relaxed);
        self.marks[self.ring.slot(self.next_mark) as usize] = last;
        self.next_mark = self.next_mark.wrapping_add(1);
    }

    /// The descriptor marked last; before the first of all that are in flight where there is none.
    #[inline(always)]
    fn marked(&self) -> u32 {
        if self.first_mark == self.next_mark {
            return self.head.wrapping_sub(1);
        }
        self.marks[self.ring.slot(self.next_mark.wrapping_sub(1)) as usize]
    }

    /// What goes into the doorbell.
    #[inline(always)]
    pub fn tail(&self) -> u32 {
        self.ring.slot(self.tail)
    }

    /// Packets in flight.
    pub fn in_flight(&self) -> u32 {
        self.packets
    }

    /// Moves the packets that were sent to the end of `done`, as far as the device reported that.
    #[inline]
    pub fn reclaim(&mut self, done: &mut Vec<Buf>) {
        while self.first_mark != self.next_mark {
            let mark = self.marks[self.ring.slot(self.first_mark) as usize];
            // Acquire pairs with the Release by which the device (or its model) sets DD after its last read of the packet: who gets the buffer
            // next may write it.
            if u64::from_le(self.ring.at(mark)[1].load(Ordering::Acquire)) & TX_DONE == 0 {
                return;
            }
            barrier::after_status();
            self.first_mark = self.first_mark.wrapping_add(1);
            while self.head != mark.wrapping_add(1) {
                if let Some(packet) = self.slots[self.ring.slot(self.head) as usize].take() {
                    self.packets -= 1;
                    done.push(packet);
                }
                self.head = self.head.wrapping_add(1);
            }
        }
    }

    /// As new: the device was reset, and the ring [zeroed](DmaRing::zero). Gives back the packets that were in flight.
    pub fn restart(&mut self) -> impl Iterator<Item = Buf> + '_ {
        (self.head, self.tail, self.packets) = (0, 0, 0);
        (self.first_mark, self.next_mark) = (0, 0);
        self.slots.iter_mut().filter_map(Option::take)
    }

    /// Whether the device was done with any descriptor since it was new (or with 2^32 of them).
    pub fn has_completed(&self) -> bool {
        self.head != 0
    }

    /// The ring's memory.
    pub fn words(&self) -> &DmaRing<[AtomicU64; 2]> {
        &self.ring
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use wholebar_core::mem::{ArenaOptions, Pool};

    fn rig(entries: u32, buffers: u32) -> (TxRing, Pool) {
        let arena = Arena::new(1 << 18, ArenaOptions::default()).unwrap();
        (TxRing::new(arena.clone(), entries).unwrap(), Pool::new(arena, buffers, 256, 64).unwrap())
    }

    fn send(ring: &mut TxRing, pool: &Pool, descriptors: u32) {
        for i in 1..=descriptors {
            ring.post([0x1000, 60 | u64::from(i == descriptors) << 24]);
        }
        ring.keep(pool.get_len(60).unwrap());
    }

    /// The device's part, by hand: everything up to the tail was sent. Returns how many reports that was.
    fn sent(ring: &TxRing, from: &mut u32) -> u32 {
        let mut reports = 0;
        while ring.words().slot(*from) != ring.tail() {
            let word = &ring.words().at(*from)[1];
            let value = u64::from_le(word.load(Ordering::Relaxed));
            assert_eq!(value & TX_DONE, 0, "the last lap's DD is still there");
            if value & TX_REPORT != 0 {
                word.store((value | TX_DONE).to_le(), Ordering::Release);
                reports += 1;
            }
            *from += 1;
        }
        reports
    }

    #[test]
    fn one_report_a_burst() {
        let (mut ring, pool) = rig(256, 256);
        let (mut device, mut done) = (0, Vec::new());
        for burst in 1..100 {
            for _ in 0..burst {
                send(&mut ring, &pool, 1);
            }
            ring.mark();
            ring.mark();
            ring.reclaim(&mut done);
            assert_eq!((done.len(), ring.in_flight()), (0, burst));
            assert_eq!(sent(&ring, &mut device), burst.div_ceil(REPORT_EVERY));
            ring.reclaim(&mut done);
            assert_eq!((done.len() as u32, ring.in_flight(), ring.free()), (burst, 0, 255));
            done.clear();
        }
        assert_eq!(pool.available(), 256);
    }

    #[test]
    fn packets_of_several_descriptors_come_back_whole() {
        let (mut ring, pool) = rig(16, 16);
        let (mut device, mut done) = (0, Vec::new());
        for round in 0..50 {
            let each = 1 + round % 5;
            while ring.free() >= each {
                send(&mut ring, &pool, each);
            }
            assert!(ring.free() < each);
            ring.mark();
            sent(&ring, &mut device);
            ring.reclaim(&mut done);
            assert_eq!((done.len() as u32, ring.free()), (15 / each, 15));
            done.clear();
        }
        assert_eq!(pool.available(), 16);
    }

    #[test]
    fn what_was_not_reported_stays() {
        let (mut ring, pool) = rig(16, 16);
        let mut done = Vec::new();
        for _ in 0..3 {
            send(&mut ring, &pool, 2);
            ring.mark();
        }
        // The second and third report, the first doesn't: descriptors are done in their order.
        for i in [3, 5] {
            let word = &ring.words().at(i)[1];
            word.store(word.load(Ordering::Relaxed) | TX_DONE.to_le(), Ordering::Release);
        }
        ring.reclaim(&mut done);
        assert_eq!((done.len(), ring.in_flight()), (0, 3));
        let word = &ring.words().at(1)[1];
        word.store(word.load(Ordering::Relaxed) | TX_DONE.to_le(), Ordering::Release);
        ring.reclaim(&mut done);
        assert_eq!((done.len(), ring.in_flight()), (3, 0));
        send(&mut ring, &pool, 1);
        assert_eq!((ring.restart().count(), ring.free(), ring.in_flight()), (1, 15, 0));
    }

    proptest! {
        /// Whatever the device writes, wherever, each packet is in one place, and the ring's counts agree.
        #[test]
        fn no_packet_is_lost_whatever_is_written(steps in prop::collection::vec((0..4u8, 0..32u32, any::<u64>()), 1..300)) {
            let (mut ring, pool) = rig(32, 24);
            let mut done = Vec::new();
            for (what, at, word) in steps {
                match what {
                    0 => {
                        let descriptors = 1 + at % 4;
                        if ring.free() >= descriptors && pool.available() > 0 {
                            send(&mut ring, &pool, descriptors);
                        }
                    }
                    1 => ring.words().at(at)[1].store(word.to_le(), Ordering::Release),
                    2 => ring.mark(),
                    _ => ring.reclaim(&mut done),
                }
                prop_assert!(ring.free() <= 31);
                prop_assert_eq!(ring.in_flight() + done.len() as u32 + pool.available(), 24);
            }
            done.clear();
            let out = 24 - pool.available();
            // Counting them drops them.
            prop_assert_eq!(ring.restart().count() as u32, out);
            prop_assert_eq!(pool.available(), 24);
        }
    }

    /// With a thread as the device, for Miri: the packet was read before its buffer comes back.
    #[test]
    fn a_packet_is_read_before_it_comes_back() {
        let (mut ring, pool) = rig(8, 8);
        let words = ring.words().clone();
        let count = if cfg!(miri) { 40 } else { 20_000u64 };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for i in 0..count {
                    let entry = words.at(i as u32);
                    while entry[0].load(Ordering::Acquire) != (i + 1).to_le() {
                        std::thread::yield_now();
                    }
                    let word = u64::from_le(entry[1].load(Ordering::Relaxed));
                    assert_eq!((word & 0xffff, word & TX_REPORT), (i % 200, TX_REPORT));
                    entry[1].store((word | TX_DONE).to_le(), Ordering::Release);
                }
            });
            let (mut next, mut back, mut done) = (0, 0, Vec::new());
            while back < count {
                if next < count && ring.free() > 0 {
                    let mut packet = pool.get_len(200).unwrap();
                    packet.bytes_mut().fill(next as u8);
                    ring.post([0, (next % 200) | (1 << 24)]);
                    ring.keep(packet);
                    ring.mark();
                    // What a doorbell does, and what tells the device here that the descriptor is its own.
                    ring.words().at(next as u32)[0].store((next + 1).to_le(), Ordering::Release);
                    next += 1;
                }
                ring.reclaim(&mut done);
                for packet in done.drain(..) {
                    assert!(packet.bytes().iter().all(|b| *b == back as u8));
                    back += 1;
                }
                std::thread::yield_now();
            }
        });
    }
}

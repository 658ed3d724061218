//! The rings of a queue that sends, as words in memory, and the packets that the device has: descriptors, and completions.
//!
//! What is here: post the descriptors of a packet, take back the packets that were sent. It does *not* know registers, nor what a packet asks for.
//! Words are atomics: this is safe code, with the device, or a thread that models it, on the other side.

use crate::descriptor::{DONE_GENERATION, tx_descriptor, tx_done_index};
use crate::error::Fault;
use crate::rx_ring::{ALIGN, Words};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use wholebar_core::mem::{Arena, Buf, DmaRing};
use wholebar_core::{Result, barrier};

/// Descriptors and their packets. Indexes run free; the rings reduce them.
pub(crate) struct TxRing {
    /// The oldest descriptor that is not known to be done.
    head: u32,
    /// Where the next goes.
    tail: u32,
    /// Packets in flight.
    packets: u32,
    ring: Words,
    /// A packet is in the slot of its last descriptor.
    slots: Box<[Option<Buf>]>,
    done: Words,
    /// The next completion to look at.
    next: u32,
}

impl TxRing {
    /// Empty rings of `entries` (a power of two) in `arena`.
    pub fn new(arena: &Arc<Arena>, entries: u32) -> Result<Self> {
        let ring = DmaRing::new(arena.clone(), entries, ALIGN)?;
        // As many as there can be packets: no completion ever meets one that was not taken.
        let done = DmaRing::new(arena.clone(), entries, ALIGN)?;
        let slots = (0..entries).map(|_| None).collect();
        Ok(Self { head: 0, tail: 0, packets: 0, ring, slots, done, next: 0 })
    }

    /// Bytes that it takes of an arena, at most.
    pub fn bytes(entries: u32) -> u64 {
        2 * 16 * u64::from(entries) + 2 * ALIGN
    }

    /// How many more descriptors it takes. One stays free, as with Linux's driver.
    #[inline(always)]
    pub fn free(&self) -> u32 {
        self.capacity() - self.tail.wrapping_sub(self.head)
    }

    /// How many descriptors it takes when it is empty.
    #[inline(always)]
    pub fn capacity(&self) -> u32 {
        self.ring.len() - 1
    }

    /// Posts a packet in one piece of `len` bytes; the device may send it from here on. There is room for it: see [`free`](Self::free).
    #[inline(always)]
    pub fn post(&mut self, packet: Buf, iova: u64, len: u32) {
        let entry = self.ring.at(self.tail);
        let word = tx_descriptor(len, true, !self.ring.lap(self.tail), 0);
        entry[0].store(iova.to_le(), Ordering::Relaxed);
        // Release pairs with the device's look at the generation, which it may take at any time: packet and address are there before.
        entry[1].store(word.to_le(), Ordering::Release);
        self.tail = self.tail.wrapping_add(1);
        self.keep(packet);
    }

    /// Posts a packet in pieces, each with its address and length; `work` is for the first. There is one piece at least, and room for all.
    pub fn post_pieces(&mut self, packet: Buf, pieces: &[(u64, u32)], work: u64) {
        let first = self.tail;
        for (i, (iova, len)) in pieces.iter().enumerate().rev() {
            let at = first.wrapping_add(i as u32);
            let work = if i == 0 { work } else { 0 };
            let word = tx_descriptor(*len, i + 1 == pieces.len(), !self.ring.lap(at), work);
            let entry = self.ring.at(at);
            entry[0].store(iova.to_le(), Ordering::Relaxed);
            // The first comes last, and publishes all, as in `post`: until then the device stops in front of it.
            entry[1].store(word.to_le(), Ordering::Release);
        }
        self.tail = first.wrapping_add(pieces.len() as u32);
        self.keep(packet);
    }

    /// Keeps a packet until it was sent. Its last descriptor was posted.
    #[inline(always)]
    fn keep(&mut self, packet: Buf) {
        self.slots[self.ring.slot(self.tail.wrapping_sub(1)) as usize] = Some(packet);
        self.packets += 1;
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

    /// Moves the packets that were sent to the end of `sent`. They are sent in order: with one, all before it.
    #[inline]
    pub fn reclaim(&mut self, sent: &mut Vec<Buf>) -> Result<(), Fault> {
        loop {
            let entry = self.done.at(self.next);
            // Acquire pairs with the Release by which the device (or its model) sets the generation after its last read of the packet: who gets the
            // buffer next may write it.
            let high = u64::from_le(entry[1].load(Ordering::Acquire));
            if (high >> DONE_GENERATION != 0) == self.done.lap(self.next) {
                return Ok(());
            }
            barrier::after_status();
            let index = tx_done_index(u64::from_le(entry[0].load(Ordering::Relaxed)));
            // The last descriptor of a packet in flight: there are no others with a packet.
            if self.slots.get(index as usize).is_none_or(Option::is_none) {
                return Err(Fault::NotInFlight { index });
            }
            self.next = self.next.wrapping_add(1);
            loop {
                let slot = self.ring.slot(self.head);
                self.head = self.head.wrapping_add(1);
                if let Some(packet) = self.slots[slot as usize].take() {
                    self.packets -= 1;
                    sent.push(packet);
                }
                if slot == index {
                    break;
                }
            }
        }
    }

    /// As new: the device was reset, and the rings [zeroed](DmaRing::zero). Gives back the packets that were in flight.
    pub fn restart(&mut self) -> impl Iterator<Item = Buf> + '_ {
        (self.head, self.tail, self.packets, self.next) = (0, 0, 0, 0);
        self.slots.iter_mut().filter_map(Option::take)
    }

    /// Whether the device completed anything since the rings were new (or 2^32 times).
    pub fn has_completed(&self) -> bool {
        self.next != 0
    }

    /// The rings' memory: descriptors, completions.
    pub fn words(&self) -> [Words; 2] {
        [self.ring.clone(), self.done.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use wholebar_core::mem::{ArenaOptions, Pool};

    fn rig(entries: u32, buffers: u32) -> (TxRing, Pool) {
        let arena = Arena::new(1 << 18, ArenaOptions::default()).unwrap();
        (TxRing::new(&arena, entries).unwrap(), Pool::new(arena, buffers, 256, 64).unwrap())
    }

    fn send(ring: &mut TxRing, pool: &Pool, descriptors: usize) {
        let packet = pool.get_len(60).unwrap();
        match descriptors {
            1 => ring.post(packet, 0x1000, 60),
            _ => ring.post_pieces(packet, &vec![(0x1000, 60); descriptors], 7 << 18),
        }
    }

    /// The device, by hand: the next descriptor that it looks at, and the next completion.
    #[derive(Default)]
    struct Device {
        next: u32,
        done: u32,
    }

    impl Device {
        /// Sends one packet, if there is one; returns its pieces, and the work of the first.
        fn send(&mut self, ring: &Words, done: &Words) -> Option<(u32, u64)> {
            let (mut pieces, mut work) = (0, 0);
            loop {
                let word = u64::from_le(ring.at(self.next)[1].load(Ordering::Acquire));
                if (word >> 14 & 1 != 0) == ring.lap(self.next) {
                    assert_eq!(pieces, 0, "a packet without an end");
                    return None;
                }
                work = if pieces == 0 { word >> 18 & 0x3fff } else { work };
                (pieces, self.next) = (pieces + 1, self.next + 1);
                if word >> 44 & 1 != 0 {
                    break;
                }
            }
            done.at(self.done)[0].store(u64::from(ring.slot(self.next - 1)).to_le(), Ordering::Relaxed);
            let generation = u64::from(!done.lap(self.done)) << DONE_GENERATION;
            done.at(self.done)[1].store(generation.to_le(), Ordering::Release);
            self.done += 1;
            Some((pieces, work))
        }
    }

    #[test]
    fn packets_of_several_descriptors_come_back_whole() {
        let (mut ring, pool) = rig(32, 32);
        let [words, completions] = ring.words();
        let (mut device, mut sent) = (Device::default(), Vec::new());
        for round in 0..50 {
            let each = 1 + round % 5;
            while ring.free() >= each {
                send(&mut ring, &pool, each as usize);
            }
            for left in (0..31 / each).rev() {
                let work = if each == 1 { 0 } else { 7 };
                assert_eq!(device.send(&words, &completions), Some((each, work)));
                ring.reclaim(&mut sent).unwrap();
                assert_eq!((sent.len(), ring.in_flight()), (1, left));
                sent.clear();
            }
            assert_eq!((device.send(&words, &completions), ring.free()), (None, 31));
        }
        assert_eq!(pool.available(), 32);
        send(&mut ring, &pool, 3);
        assert_eq!((ring.restart().count(), ring.free(), ring.in_flight()), (1, 31, 0));
    }

    #[test]
    fn a_completion_of_what_is_not_in_flight_is_a_fault() {
        for index in [0, 1, 3, 31, 32, 4095] {
            let (mut ring, pool) = rig(32, 8);
            send(&mut ring, &pool, 3);
            ring.done.at(0)[0].store(u64::from(index).to_le(), Ordering::Relaxed);
            ring.done.at(0)[1].store((1u64 << DONE_GENERATION).to_le(), Ordering::Release);
            assert_eq!(ring.reclaim(&mut Vec::new()), Err(Fault::NotInFlight { index }));
            assert_eq!(ring.restart().count(), 1, "the packet is not lost");
        }
    }

    proptest! {
        /// Whatever the device writes, wherever, each packet is in one place, and the ring's counts agree.
        #[test]
        fn no_packet_is_lost_whatever_is_written(steps in prop::collection::vec((0..3u8, 0..32u32, any::<u64>()), 1..300)) {
            let (mut ring, pool) = rig(32, 24);
            let mut sent = Vec::new();
            for (what, at, word) in steps {
                match what {
                    0 => {
                        let descriptors = 1 + at % 4;
                        if ring.free() >= descriptors && pool.available() > 0 {
                            send(&mut ring, &pool, descriptors as usize);
                        }
                    }
                    1 => {
                        ring.done.at(at)[0].store((word & 31).to_le(), Ordering::Relaxed);
                        ring.done.at(at)[1].store(word.to_le(), Ordering::Release);
                    }
                    _ => _ = ring.reclaim(&mut sent),
                }
                prop_assert!(ring.free() <= 31);
                prop_assert_eq!(ring.in_flight() + sent.len() as u32 + pool.available(), 24);
            }
            sent.clear();
            let out = 24 - pool.available();
            prop_assert_eq!(ring.restart().count() as u32, out);
            prop_assert_eq!(pool.available(), 24);
        }
    }

    /// With a thread as the device, for Miri: a packet is there before the device sees it, and was read before it comes back.
    #[test]
    fn a_packet_is_read_before_it_comes_back() {
        let (mut ring, pool) = rig(32, 32);
        let [words, completions] = ring.words();
        let count = if cfg!(miri) { 80 } else { 20_000u64 };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut device, mut sent) = (Device::default(), 0);
                while sent < count {
                    match device.send(&words, &completions) {
                        Some((pieces, _)) => {
                            assert_eq!(u64::from(pieces), 1 + sent % 3);
                            sent += 1;
                        }
                        None => std::thread::yield_now(),
                    }
                }
            });
            let (mut next, mut back, mut sent) = (0, 0, Vec::new());
            while back < count {
                if next < count && ring.free() >= 3 {
                    let mut packet = pool.get_len(200).unwrap();
                    packet.bytes_mut().fill(next as u8);
                    let pieces = vec![(next, 60); 1 + next as usize % 3];
                    ring.post_pieces(packet, &pieces, 0);
                    next += 1;
                }
                ring.reclaim(&mut sent).unwrap();
                for packet in sent.drain(..) {
                    assert!(packet.bytes().iter().all(|b| *b == back as u8));
                    back += 1;
                }
                std::thread::yield_now();
            }
        });
    }
}

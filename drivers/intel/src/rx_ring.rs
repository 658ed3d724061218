//! A ring of receive descriptors, as words in memory (82576 datasheet, 7.1.5 and 7.1.8), and the buffers that the device has.
//!
//! What is here: give the device a buffer, take one that it filled, and check what it says of it. It does *not* know registers, nor what a packet
//! is. Words are atomics: this is safe code, with the device, or a thread that models it, on the other side.

use crate::descriptor::{RX_DONE, WriteBack};
use crate::error::Fault;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use wholebar_core::mem::{Arena, Buf, DmaRing};
use wholebar_core::{Result, barrier};

/// Descriptors and their buffers. Indexes run free; the ring reduces them.
pub(crate) struct RxRing {
    /// The next descriptor to look at.
    head: u32,
    /// Where the next buffer goes.
    tail: u32,
    /// Bytes that the device may write to a buffer.
    room: u32,
    ring: DmaRing<[AtomicU64; 2]>,
    slots: Box<[Option<Buf>]>,
}

/// Rings are aligned to this, in bytes (8.10).
pub(crate) const ALIGN: u64 = 128;

impl RxRing {
    /// An empty ring of `entries` (a power of two) in `arena`, for buffers of which the device writes `room` bytes at most.
    pub fn new(arena: Arc<Arena>, entries: u32, room: u32) -> Result<Self> {
        let slots = (0..entries).map(|_| None).collect();
        Ok(Self { head: 0, tail: 0, room, ring: DmaRing::new(arena, entries, ALIGN)?, slots })
    }

    /// How many more buffers it takes. One descriptor stays free: with head and tail equal, the device has none.
    #[inline(always)]
    pub fn free(&self) -> u32 {
        self.ring.len() - 1 - self.tail.wrapping_sub(self.head)
    }

    /// Gives the device a buffer, whose data begins at `iova`; the doorbell announces it. There is room for it: see [`free`](Self::free).
    #[inline(always)]
    pub fn give(&mut self, buf: Buf, iova: u64) {
        let entry = self.ring.at(self.tail);
        // Relaxed: the doorbell publishes both. The second word takes back DD, and says that there is no buffer for headers.
        entry[0].store(iova.to_le(), Ordering::Relaxed);
        entry[1].store(0, Ordering::Relaxed);
        let slot = &mut self.slots[self.ring.slot(self.tail) as usize];
        debug_assert!(slot.is_none(), "a buffer was given twice");
        *slot = Some(buf);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Bytes that the device may write to a buffer.
    pub fn room(&self) -> u32 {
        self.room
    }

    /// What goes into the doorbell.
    #[inline(always)]
    pub fn tail(&self) -> u32 {
        self.ring.slot(self.tail)
    }

    /// Takes the next buffer that the device filled, with the length that it says, which was checked.
    #[inline(always)]
    pub fn take(&mut self) -> Option<Result<(Buf, WriteBack), Fault>> {
        if self.head == self.tail {
            return None;
        }
        let entry = self.ring.at(self.head);
        // Acquire pairs with the Release by which the device (or its model) sets DD after it wrote the packet and the rest of the descriptor:
        // without it, both could be older than the bit.
        if u64::from_le(entry[1].load(Ordering::Acquire)) & RX_DONE == 0 {
            return None;
        }
        barrier::after_status();
        // Once more: a device on a bus promises nothing about the word that has the bit, either.
        let high = u64::from_le(entry[1].load(Ordering::Relaxed));
        let low = u64::from_le(entry[0].load(Ordering::Relaxed));
        let wb = WriteBack { low, high };
        let index = self.ring.slot(self.head);
        if wb.len() > self.room {
            return Some(Err(Fault::Length { index, length: wb.len(), room: self.room }));
        }
        self.head = self.head.wrapping_add(1);
        // What lies between head and tail has a buffer.
        let mut buf = self.slots[index as usize].take()?;
        buf.set_len(wb.len());
        Some(Ok((buf, wb)))
    }

    /// As new, with no buffers: the device was reset, and the ring [zeroed](DmaRing::zero). Gives back those it had.
    pub fn restart(&mut self) -> impl Iterator<Item = Buf> + '_ {
        (self.head, self.tail) = (0, 0);
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
    use std::sync::atomic::AtomicU32;
    use wholebar_core::mem::{ArenaOptions, Pool};

    fn rig(entries: u32, buffers: u32) -> (RxRing, Pool) {
        let arena = Arena::new(1 << 18, ArenaOptions::default()).unwrap();
        (RxRing::new(arena.clone(), entries, 1024).unwrap(), Pool::new(arena, buffers, 1024, 64).unwrap())
    }

    /// The device's part, by hand: descriptor `i` is done.
    fn done(ring: &RxRing, i: u32, low: u64, high: u64) {
        ring.words().at(i)[0].store(low.to_le(), Ordering::Relaxed);
        ring.words().at(i)[1].store((high | RX_DONE).to_le(), Ordering::Release);
    }

    #[test]
    fn buffers_go_round() {
        let (mut ring, pool) = rig(8, 8);
        assert!(ring.take().is_none() && ring.free() == 7);
        let mut next = 0;
        for round in 0..40u32 {
            while ring.free() > 0 {
                let Some(buf) = pool.get() else { break };
                let iova = 0x1000 + buf.arena_offset();
                let slot = ring.tail();
                ring.give(buf, iova);
                let entry = ring.words().at(slot);
                assert_eq!(u64::from_le(entry[0].load(Ordering::Relaxed)), iova);
                assert_eq!(entry[1].load(Ordering::Relaxed), 0, "the last lap's DD is still there");
            }
            assert!(ring.take().is_none());
            for i in 0..round % 8 {
                done(&ring, next, 0, 2 | u64::from(60 + i) << 32);
                next += 1;
                let (buf, wb) = ring.take().unwrap().unwrap();
                assert_eq!((buf.len(), wb.len(), wb.ends()), (60 + i, 60 + i, true));
                assert!(ring.take().is_none());
            }
        }
        assert_eq!(pool.available(), 1 + ring.free());
        let out = 8 - pool.available();
        assert_eq!((ring.restart().count() as u32, pool.available()), (out, 8));
    }

    #[test]
    fn a_length_beyond_the_buffer_is_a_fault() {
        let (mut ring, pool) = rig(8, 8);
        ring.give(pool.get().unwrap(), 0);
        done(&ring, 0, 0, 2 | 1025 << 32);
        for _ in 0..2 {
            let fault = ring.take().unwrap().unwrap_err();
            assert_eq!(fault, Fault::Length { index: 0, length: 1025, room: 1024 });
        }
        assert_eq!((ring.restart().count(), pool.available()), (1, 8));
    }

    #[test]
    fn what_the_device_does_not_have_is_not_read() {
        let (mut ring, pool) = rig(8, 8);
        (0..8).for_each(|i| done(&ring, i, 0, 2 | 60 << 32));
        assert!(ring.take().is_none(), "it ran ahead");
        ring.give(pool.get().unwrap(), 0);
        assert!(ring.take().is_none(), "DD is of what is done now");
        done(&ring, 1, 0, 2 | 60 << 32);
        assert!(ring.take().is_none(), "out of order");
        done(&ring, 0, 0, 2 | 60 << 32);
        assert!(ring.take().unwrap().is_ok() && ring.take().is_none());
    }

    proptest! {
        /// Whatever the device writes, wherever, each buffer is in one place and no length is above what was given.
        #[test]
        fn no_buffer_is_lost_whatever_is_written(steps in prop::collection::vec((0..4u8, 0..16u32, any::<u64>()), 1..200)) {
            let (mut ring, pool) = rig(16, 12);
            let mut held = Vec::new();
            for (what, at, word) in steps {
                match what {
                    0 => if ring.free() > 0 && let Some(buf) = pool.get() {
                        let iova = buf.arena_offset();
                        ring.give(buf, iova);
                    },
                    1 => ring.words().at(at)[1].store(word.to_le(), Ordering::Release),
                    2 => if let Some(Ok((buf, wb))) = ring.take() {
                        prop_assert!(buf.len() <= 1024 && wb.len() == buf.len());
                        held.push(buf);
                    },
                    _ => drop(held.pop()),
                }
            }
            let out = 12 - pool.available() as usize;
            // Counting them drops them.
            prop_assert_eq!(ring.restart().count() + held.len(), out);
            drop(held);
            prop_assert_eq!(pool.available(), 12);
        }
    }

    /// With a thread as the device, for Miri: data and length come before DD.
    #[test]
    fn what_was_written_comes_before_its_bit() {
        let (mut ring, pool) = rig(8, 8);
        let (words, bell) = (ring.words().clone(), AtomicU32::new(0));
        let count = if cfg!(miri) { 40 } else { 20_000u32 };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for i in 0..count {
                    // Acquire pairs with the doorbell's Release: the descriptor was given.
                    while bell.load(Ordering::Acquire) <= i {
                        std::thread::yield_now();
                    }
                    let entry = words.at(i);
                    assert_eq!(u64::from_le(entry[0].load(Ordering::Relaxed)), u64::from(i));
                    entry[0].store((u64::from(i) << 32).to_le(), Ordering::Relaxed);
                    entry[1].store((u64::from(i % 1000) << 32 | 2 | RX_DONE).to_le(), Ordering::Release);
                }
            });
            let (mut given, mut taken) = (0, 0);
            while taken < count {
                while given < count && ring.free() > 0 {
                    ring.give(pool.get().unwrap(), given.into());
                    given += 1;
                    bell.store(given, Ordering::Release);
                }
                match ring.take() {
                    Some(got) => {
                        let (buf, wb) = got.unwrap();
                        assert_eq!((buf.len(), wb.low >> 32), (taken % 1000, u64::from(taken)));
                        taken += 1;
                    }
                    None => std::thread::yield_now(),
                }
            }
        });
    }
}

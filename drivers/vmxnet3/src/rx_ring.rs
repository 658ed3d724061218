//! The rings of a queue that receives, as words in memory, and the buffers that the device has.
//!
//! There are two rings of buffers: packets begin in those of the first, and go on in those of the second, which has none where packets are in one
//! buffer each. One ring of completions says what became of both. What is here: give the device a buffer, take one that it filled, and check what it
//! says of it. It does *not* know registers, nor what a packet is. Words are atomics: this is safe code, with the device, or a thread that models it,
//! on the other side.

use crate::descriptor::{DONE_GENERATION, RX_ROOM, RxDone, rx_descriptor};
use crate::error::Fault;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use wholebar_core::mem::{Arena, Buf, DmaRing};
use wholebar_core::{Result, barrier};

/// Rings are aligned to this, in bytes (`VMXNET3_RING_BA_ALIGN`).
pub(crate) const ALIGN: u64 = 512;
/// A ring's memory.
pub(crate) type Words = DmaRing<[AtomicU64; 2]>;

/// The three rings.
pub(crate) struct RxRing {
    pub heads: Buffers,
    pub bodies: Buffers,
    done: Words,
    /// The next completion to look at.
    next: u32,
}

/// A ring of buffers. Indexes run free; the ring reduces them.
pub(crate) struct Buffers {
    /// As completions number it.
    id: u32,
    body: bool,
    /// The oldest descriptor that the device has.
    head: u32,
    /// Where the next buffer goes.
    tail: u32,
    /// Descriptors behind the oldest that are done already.
    ahead: u32,
    ring: Words,
    slots: Box<[Option<Buf>]>,
}

/// Bytes of a buffer that the device may write, behind its headroom.
pub(crate) fn room(buf: &Buf) -> u32 {
    buf.capacity().saturating_sub(buf.headroom()).min(RX_ROOM)
}

impl RxRing {
    /// Empty rings of `entries` (a power of two) in `arena`, for queue `index` of `queues`. `bodies`: packets may be in several buffers.
    pub fn new(arena: &Arc<Arena>, entries: u32, bodies: bool, index: u16, queues: u16) -> Result<Self> {
        let heads = Buffers::new(arena, entries, index.into(), false)?;
        let bodies = Buffers::new(arena, if bodies { entries } else { LEAST }, (index + queues).into(), true)?;
        // As many as there can be buffers: no completion ever meets one that was not taken.
        let done = DmaRing::new(arena.clone(), 2 * entries.max(LEAST), ALIGN)?;
        Ok(Self { heads, bodies, done, next: 0 })
    }

    /// Bytes that it takes of an arena, at most.
    pub fn bytes(entries: u32) -> u64 {
        4 * 16 * u64::from(entries.max(LEAST)) + 3 * ALIGN
    }

    /// Takes the next buffer that the device filled, with the length that it says, which was checked.
    #[inline(always)]
    pub fn take(&mut self) -> Option<Result<(Buf, RxDone), Fault>> {
        let entry = self.done.at(self.next);
        // Acquire pairs with the Release by which the device (or its model) sets the generation after it wrote the packet and the rest of the
        // completion: without it, both could be older than the bit.
        let high = u64::from_le(entry[1].load(Ordering::Acquire));
        if (high >> DONE_GENERATION != 0) == self.done.lap(self.next) {
            return None;
        }
        barrier::after_status();
        // Once more: a device on a bus promises nothing about the word that has the bit, either.
        let high = u64::from_le(entry[1].load(Ordering::Relaxed));
        let low = u64::from_le(entry[0].load(Ordering::Relaxed));
        let done = RxDone { low, high };
        let (id, index, length) = (done.ring(), done.index(), done.len());
        let buffers = match id {
            _ if id == self.heads.id => &mut self.heads,
            _ if id == self.bodies.id => &mut self.bodies,
            _ => return Some(Err(Fault::Ring { id })),
        };
        let Some(slot) = buffers.slots.get_mut(index as usize) else { return Some(Err(Fault::NotInFlight { index })) };
        let Some(buf) = slot else { return Some(Err(Fault::NotInFlight { index })) };
        let room = room(buf);
        if length > room {
            return Some(Err(Fault::Length { index, length, room }));
        }
        buf.set_len(length);
        let buf = slot.take()?;
        buffers.pass(index);
        self.next = self.next.wrapping_add(1);
        Some(Ok((buf, done)))
    }

    /// As new, with no buffers: the device was reset, and the rings [zeroed](DmaRing::zero). Gives back those it had.
    pub fn restart(&mut self) -> impl Iterator<Item = Buf> + '_ {
        self.next = 0;
        self.heads.restart().chain(self.bodies.restart())
    }

    /// Whether the device completed anything since the rings were new (or 2^32 times).
    pub fn has_completed(&self) -> bool {
        self.next != 0
    }

    /// The rings' memory: two of buffers, that of completions.
    pub fn words(&self) -> [Words; 3] {
        [self.heads.ring.clone(), self.bodies.ring.clone(), self.done.clone()]
    }
}

/// Descriptors of a ring at least: their number is a multiple of this (`VMXNET3_RING_SIZE_ALIGN`).
const LEAST: u32 = 32;

impl Buffers {
    fn new(arena: &Arc<Arena>, entries: u32, id: u32, body: bool) -> Result<Self> {
        let slots = (0..entries).map(|_| None).collect();
        Ok(Self { id, body, head: 0, tail: 0, ahead: 0, ring: DmaRing::new(arena.clone(), entries, ALIGN)?, slots })
    }

    /// How many more buffers it takes. One descriptor stays free, as with Linux's driver.
    #[inline(always)]
    pub fn free(&self) -> u32 {
        self.ring.len() - 1 - self.tail.wrapping_sub(self.head)
    }

    /// Gives the device a buffer, whose data begins at `iova`. There is room for it: see [`free`](Self::free).
    #[inline(always)]
    pub fn give(&mut self, buf: Buf, iova: u64) {
        let entry = self.ring.at(self.tail);
        let word = rx_descriptor(room(&buf), self.body, !self.ring.lap(self.tail));
        entry[0].store(iova.to_le(), Ordering::Relaxed);
        // Release pairs with the device's look at the generation, which it may take at any time: the address is there before.
        entry[1].store(word.to_le(), Ordering::Release);
        let slot = &mut self.slots[self.ring.slot(self.tail) as usize];
        debug_assert!(slot.is_none(), "a buffer was given twice");
        *slot = Some(buf);
        self.tail = self.tail.wrapping_add(1);
    }

    /// What goes into the doorbell.
    #[inline(always)]
    pub fn tail(&self) -> u32 {
        self.ring.slot(self.tail)
    }

    /// The descriptor at `index` is done: passes over the oldest ones that are. The device may complete them in another order than they were given.
    #[inline(always)]
    fn pass(&mut self, index: u32) {
        if index != self.ring.slot(self.head) {
            self.ahead += 1;
            return;
        }
        self.head = self.head.wrapping_add(1);
        while self.ahead > 0 && self.slots[self.ring.slot(self.head) as usize].is_none() {
            (self.head, self.ahead) = (self.head.wrapping_add(1), self.ahead - 1);
        }
    }

    fn restart(&mut self) -> impl Iterator<Item = Buf> + '_ {
        (self.head, self.tail, self.ahead) = (0, 0, 0);
        self.slots.iter_mut().filter_map(Option::take)
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
        (RxRing::new(&arena, entries, true, 1, 4).unwrap(), Pool::new(arena, buffers, 1024, 64).unwrap())
    }

    /// The device's part, by hand: completion `i` is written, of a whole packet in descriptor `index` of ring `id`.
    fn complete(ring: &RxRing, i: u32, (id, index): (u32, u32), len: u32) {
        let (entry, generation) = (ring.done.at(i), u64::from(!ring.done.lap(i)));
        entry[0].store((u64::from(index | id << 16) | 3 << 14).to_le(), Ordering::Relaxed);
        entry[1].store((u64::from(len) | generation << DONE_GENERATION).to_le(), Ordering::Release);
    }

    #[test]
    fn buffers_go_round_in_any_order() {
        let (mut ring, pool) = rig(32, 32);
        assert!(ring.take().is_none() && ring.heads.free() == 31);
        let mut next = 0;
        for round in 0..40u32 {
            while ring.heads.free() > 0 {
                let Some(buf) = pool.get() else { break };
                let (at, iova) = (ring.heads.tail, 0x1000 + buf.arena_offset());
                ring.heads.give(buf, iova);
                let entry = ring.heads.ring.at(at);
                assert_eq!(u64::from_le(entry[0].load(Ordering::Relaxed)), iova);
                let word = rx_descriptor(1024, false, at / 32 % 2 == 0);
                assert_eq!(u64::from_le(entry[1].load(Ordering::Relaxed)), word);
            }
            assert!(ring.take().is_none());
            // The second half before the first.
            let (first, count) = (ring.heads.head, round % 16);
            for i in (count / 2..count).chain(0..count / 2) {
                complete(&ring, next, (1, ring.heads.ring.slot(first + i)), 60 + i);
                next += 1;
                let (buf, done) = ring.take().unwrap().unwrap();
                assert_eq!((buf.len(), done.len(), done.ends()), (60 + i, 60 + i, true));
                assert!(ring.take().is_none());
            }
            assert_eq!(ring.heads.head, first + count);
        }
        assert!(ring.has_completed());
        let out = 32 - pool.available();
        assert_eq!((ring.restart().count() as u32, pool.available()), (out, 32));
    }

    #[test]
    fn what_the_device_may_not_write_is_a_fault() {
        for (id, index, len, fault) in [
            (2, 0, 60, Fault::Ring { id: 2 }),
            (0x3ff, 0, 60, Fault::Ring { id: 0x3ff }),
            (1, 1, 60, Fault::NotInFlight { index: 1 }),
            (1, 4095, 60, Fault::NotInFlight { index: 4095 }),
            (5, 0, 60, Fault::NotInFlight { index: 0 }),
            (1, 0, 1025, Fault::Length { index: 0, length: 1025, room: 1024 }),
        ] {
            let (mut ring, pool) = rig(32, 8);
            ring.heads.give(pool.get().unwrap(), 0);
            complete(&ring, 0, (id, index), len);
            assert_eq!(ring.take().unwrap().err(), Some(fault));
            assert_eq!(ring.restart().count(), 1, "the buffer is not lost");
        }
    }

    proptest! {
        /// Whatever the device writes, wherever, no buffer is in two places, and none is lost.
        #[test]
        fn no_buffer_is_lost_whatever_is_written(steps in prop::collection::vec((0..4u8, 0..64u32, any::<[u64; 2]>()), 1..300)) {
            let (mut ring, pool) = rig(32, 24);
            let mut out = Vec::new();
            for (what, at, words) in steps {
                match what {
                    0 => while ring.heads.free() > 0 {
                        let Some(buf) = pool.get() else { break };
                        ring.heads.give(buf, 0);
                    },
                    // Ids and lengths that are often right.
                    1 => {
                        let entry = ring.done.at(at);
                        entry[0].store((words[0] & !0x3fe_0fe0).to_le(), Ordering::Relaxed);
                        entry[1].store((words[1] & !0x3800).to_le(), Ordering::Release);
                    }
                    2 => out.clear(),
                    _ => {
                        if let Some(Ok((buf, done))) = ring.take() {
                            prop_assert!(done.len() <= 1024 && buf.len() == done.len());
                            out.push(buf);
                        }
                    }
                }
                let held = ring.heads.slots.iter().flatten().count();
                prop_assert_eq!(held as u32 + out.len() as u32 + pool.available(), 24);
            }
            out.clear();
            ring.restart().for_each(drop);
            prop_assert_eq!(pool.available(), 24);
        }
    }

    /// With a thread as the device, for Miri: what is taken was written before.
    #[test]
    fn a_packet_is_written_before_its_completion() {
        let (mut ring, pool) = rig(32, 32);
        let (buffers, done) = (ring.heads.ring.clone(), ring.done.clone());
        let (bell, count) = (AtomicU32::new(0), if cfg!(miri) { 80 } else { 20_000 });
        std::thread::scope(|scope| {
            let bell = &bell;
            scope.spawn(move || {
                for i in 0..count {
                    let word = &buffers.at(i)[1];
                    // The generation alone says that there is a buffer.
                    while (u64::from_le(word.load(Ordering::Acquire)) >> 31 & 1 != 0) == buffers.lap(i) {
                        std::thread::yield_now();
                    }
                    assert_eq!(u64::from_le(buffers.at(i)[0].load(Ordering::Relaxed)), u64::from(i));
                    let generation = u64::from(!done.lap(i));
                    done.at(i)[0]
                        .store((u64::from(buffers.slot(i) | 1 << 16) | u64::from(i) << 32).to_le(), Ordering::Relaxed);
                    let high = u64::from(i % 1000) | generation << DONE_GENERATION;
                    done.at(i)[1].store(high.to_le(), Ordering::Release);
                }
                bell.store(1, Ordering::Relaxed);
            });
            let (mut given, mut taken) = (0, 0);
            while taken < count {
                while given < count && ring.heads.free() > 0 {
                    ring.heads.give(pool.get().unwrap(), given.into());
                    given += 1;
                }
                match ring.take() {
                    Some(got) => {
                        let (buf, done) = got.unwrap();
                        assert_eq!((buf.len(), done.low >> 32), (taken % 1000, u64::from(taken)));
                        taken += 1;
                    }
                    None => std::thread::yield_now(),
                }
            }
        });
        assert_eq!(bell.load(Ordering::Relaxed), 1);
    }
}

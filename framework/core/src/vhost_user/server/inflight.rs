//! Where a disk's rings are gone on with, recorded in memory that outlives this process: another back end goes on with a front end's rings ("Inflight
//! I/O tracking").
//!
//! A model uses buffers in the order in which they came. So a split ring says itself what is in flight: all that is behind its used index. A packed ring
//! doesn't: what was used lies over what was available. So its place is recorded here, and what the descriptor was that is being overwritten. Of the specification's
//! `QueueRegionPacked` these are the used indexes, their wrap counters, and the first `DescStatePacked`; no descriptor is ever marked as in flight, so what another
//! back end has in flight is refused rather than lost.
//!
//! A process that is killed leaves a prefix of its stores. Their order is all that counts here.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::Function;
use super::memory::Memory;
use super::registers::Queue;
use crate::mem::{Iova, Mapping, memfd};
use crate::vhost_user::wire;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// `QueueRegionPacked`: offsets of its words, of 64 bits each.
const VERSION: u64 = 8;
const USED: u64 = 16;
const DESC: u64 = 32;
/// `DescStatePacked`: its size, and where id, flags and length are.
const DESC_SIZE: u64 = 32;
const ID_FLAGS_LEN: u64 = 16;
/// `DescStateSplit` and the header before it.
const SPLIT: (u64, u64) = (16, 16);

/// The record of all queues.
pub struct Inflight {
    memory: Arc<Mapping>,
    at: u64,
    queues: u16,
    size: u16,
}

/// Where a running packed queue is gone on with, for whoever comes after this process.
pub struct QueueRecord {
    memory: Arc<Mapping>,
    at: u64,
}

/// How many bytes a queue takes.
fn stride(size: u16) -> u64 {
    DESC.saturating_add(DESC_SIZE.saturating_mul(size.into()))
}

/// New memory for queues of such a number and size, with nothing in it; and what it is called.
///
/// # Errors
/// That there are no such queues, or no memory.
pub fn create(asked: wire::Inflight) -> Result<(OwnedFd, wire::Inflight), String> {
    let wire::Inflight { num_queues, queue_size, .. } = asked;
    let len = stride(queue_size).saturating_mul(num_queues.into());
    if num_queues == 0 || queue_size == 0 {
        return Err(format!("{num_queues} queues of {queue_size} entries have nothing in flight"));
    }
    let (_, fd) = memfd("wholebar-inflight", len, None).map_err(|e| e.to_string())?;
    let fd = fd.ok_or("there are no memory files here")?.try_clone().map_err(|e| e.to_string())?;
    Ok((fd, wire::Inflight { mmap_size: len, mmap_offset: 0, ..asked }))
}

impl Inflight {
    /// The memory that a front end gives back.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(memory: &mut Memory, said: wire::Inflight, fd: &OwnedFd) -> Result<Self, String> {
        let wire::Inflight { mmap_size, mmap_offset, num_queues: queues, queue_size: size, .. } = said;
        let least = stride(size).saturating_mul(queues.into());
        if size == 0 || mmap_size < least || !mmap_offset.is_multiple_of(8) {
            return Err(format!(
                "{mmap_size} bytes at {mmap_offset} are no record of {queues} queues of {size} entries"
            ));
        }
        let (memory, at) = memory.file(fd, mmap_offset, mmap_size)?;
        Ok(Self { memory, at, queues, size })
    }

    /// The record of a queue that is to run, and where it goes on, if that is known: a place of a packed ring with its wrap counter in bit 15.
    ///
    /// # Errors
    /// That the queue is none that it has room for, or that another back end has buffers in flight that are not known here.
    pub fn begin(
        &self,
        function: &Function,
        index: usize,
        queue: &Queue,
        packed: bool,
    ) -> Result<(QueueRecord, Option<u16>), String> {
        if index >= self.queues.into() || queue.size > self.size {
            return Err(format!(
                "ring {index}, of {} entries, has no room in the record of what is in flight",
                queue.size
            ));
        }
        let at = self.at.saturating_add(stride(self.size).saturating_mul(index as u64));
        let record = QueueRecord { memory: self.memory.clone(), at };
        let (first, step) = if packed { (DESC, DESC_SIZE) } else { SPLIT };
        let states = (0..u64::from(queue.size)).map(|n| first.saturating_add(step.saturating_mul(n)));
        // `inflight` is the first byte of each state.
        if states.filter_map(|state| record.word(state)).any(|word| word.load(Ordering::Relaxed).to_ne_bytes()[0] != 0)
        {
            return Err(format!("ring {index} has buffers in flight since another back end, which are not known here"));
        }
        let place = if packed { record.recover(function, queue)? } else { None };
        Ok((record, place))
    }
}

impl QueueRecord {
    fn word(&self, offset: u64) -> Option<&AtomicU64> {
        self.memory.u64(self.at.checked_add(offset)?)
    }

    fn store(&self, offset: u64, [a, b, c, d]: [u16; 4]) {
        let bytes = [a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes(), d.to_ne_bytes()];
        let mut word = [0; 8];
        word.iter_mut().zip(bytes.as_flattened()).for_each(|(to, from)| *to = *from);
        if let Some(to) = self.word(offset) {
            to.store(u64::from_ne_bytes(word), Ordering::Relaxed);
        }
    }

    fn load(&self, offset: u64) -> [u16; 4] {
        let bytes = self.word(offset).map_or(0, |word| word.load(Ordering::Relaxed)).to_ne_bytes();
        [0, 2, 4, 6].map(|at: usize| u16::from_ne_bytes([bytes[at], bytes[at.wrapping_add(1)]]))
    }

    /// Both used indexes with their wrap counters: what is to be used next, and what was before the buffer that is being used.
    fn set_places(&self, used: u16, old: u16) {
        let wraps = u16::from_ne_bytes([(used >> 15) as u8, (old >> 15) as u8]);
        self.store(USED, [used & 0x7fff, old & 0x7fff, wraps, 0]);
    }

    /// The descriptor at place `from` is about to be overwritten as used, and with it the ring will go on at `to`: places as queue bases are. `len` and `id` are
    /// the descriptor's.
    pub fn begin_use(&self, from: u16, to: u16, id: u16, len: u32) {
        self.store(DESC.wrapping_add(ID_FLAGS_LEN), [id, 0, len as u16, (len >> 16) as u16]);
        // Between what it was and that it may be something else now.
        fence(Ordering::SeqCst);
        self.set_places(to, from);
        fence(Ordering::SeqCst);
    }

    /// The descriptor's flags are stored: it is used.
    pub fn end_use(&self, to: u16) {
        fence(Ordering::SeqCst);
        self.set_places(to, to);
    }

    /// A queue begins at a place.
    pub fn start(&self, place: u16) {
        self.set_places(place, place);
        // `version`.
        self.store(VERSION, [1, 0, 0, 0]);
    }

    /// Where a packed queue goes on, once the descriptor that was being used is used, or as it was.
    fn recover(&self, function: &Function, queue: &Queue) -> Result<Option<u16>, String> {
        if self.load(VERSION)[0] == 0 {
            return Ok(None);
        }
        let [used, old, wraps, _] = self.load(USED);
        let [used_wrap, old_wrap] = wraps.to_ne_bytes();
        let place = |at: u16, wrap: u8| at & 0x7fff | u16::from(wrap & 1) << 15;
        let (used, old) = (place(used, used_wrap), place(old, old_wrap));
        if used == old {
            return Ok(Some(used));
        }
        let at = u64::from(old & 0x7fff);
        if at >= u64::from(queue.size) {
            return Err(format!("the record of what is in flight names entry {at} of {}", queue.size));
        }
        let desc = queue.descriptor.saturating_add(at.saturating_mul(16));
        let desc = function.dma(Iova(desc), 16).ok_or("a descriptor ring can't be read")?;
        let mut flags = [0; 2];
        desc.read(14, &mut flags);
        // 2.8.1: used in this lap, both bits are as its wrap counter.
        let lap = if old >> 15 == 1 { AVAIL | USED_FLAG } else { 0 };
        if u16::from_le_bytes(flags) & (AVAIL | USED_FLAG) == lap {
            return Ok(Some(used));
        }
        let [id, _, low, high] = self.load(DESC.wrapping_add(ID_FLAGS_LEN));
        for (offset, half) in [(8, low), (10, high), (12, id)] {
            desc.write(offset, &half.to_le_bytes());
        }
        Ok(Some(old))
    }
}

/// Flags of packed descriptors (2.8.1).
const AVAIL: u16 = 1 << 7;
const USED_FLAG: u16 = 1 << 15;

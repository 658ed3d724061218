//! Submission and completion queues, as the controller keeps them: where they are in memory, and how far each side is (base 3.3.1).
//!
//! What the host writes is input: a doorbell value outside of the queue is refused here, a queue outside of the memory that was
//! mapped for the device is an error of the caller's to report. This file does *not* know what commands mean.

use super::command::{Answer, Command, Sqe};
use crate::coalesce::Coalesce;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use wholebar_core::mem::Iova;
use wholebar_core::model::{Denied, Entries, Entry, Host};

/// A completion queue entry in memory.
pub(super) type Cqe = [AtomicU32; 4];

/// The memory of a queue that has work is not there, or can't be written.
#[derive(Debug)]
pub(super) struct QueueLost {
    what: &'static str,
    id: u16,
    denied: Denied,
}

impl fmt::Display for QueueLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.what, self.id, self.denied)
    }
}

/// A queue's entries.
#[inline]
fn ring<'h, T: Entry>(
    host: &Host<'h>,
    what: &'static str,
    id: u16,
    base: u64,
    entries: u32,
) -> Result<Entries<'h, T>, Box<QueueLost>> {
    let len = u64::from(entries) * size_of::<T>() as u64;
    let ring = host.dma(Iova(base), len).and_then(|m| m.entries(0, entries as usize));
    ring.ok_or_else(|| Box::new(QueueLost { what, id, denied: host.denied(Iova(base), len, T::WRITTEN) }))
}

/// A submission queue.
#[derive(Debug)]
pub(super) struct Sq {
    pub(super) id: u16,
    /// The completion queue that it uses.
    pub(super) cq: u16,
    base: u64,
    entries: u32,
    /// 1 where entries have 128 bytes, of which the first 64 are the command; else 0.
    long: u8,
    /// The next entry to fetch.
    head: u32,
    /// The host's tail, as far as it made sense.
    tail: u32,
    /// The last doorbell value that made no sense: it stays in the register, but is an event only once.
    refused: Option<u32>,
}

impl Sq {
    pub(super) fn new(id: u16, cq: u16, base: u64, entries: u32, long: bool) -> Self {
        Self { id, cq, base, entries, long: long.into(), head: 0, tail: 0, refused: None }
    }

    /// Takes note of the doorbell's value. False, once, for one that is outside of the queue.
    #[inline]
    pub(super) fn rung(&mut self, tail: u32) -> bool {
        if tail < self.entries {
            self.tail = tail;
            return true;
        }
        self.refused.replace(tail) == Some(tail)
    }

    /// How many commands wait.
    #[inline]
    pub(super) fn pending(&self) -> u32 {
        if self.tail >= self.head { self.tail - self.head } else { self.entries - self.head + self.tail }
    }

    /// The next entry to fetch: what a completion tells the host.
    #[inline]
    pub(super) fn head(&self) -> u16 {
        self.head as u16
    }

    /// How many entries there are.
    pub(super) fn entries(&self) -> u32 {
        self.entries
    }

    /// The tail that was seen.
    pub(super) fn seen(&self) -> u32 {
        self.tail
    }

    /// The index before it.
    pub(super) fn behind(&self) -> u32 {
        self.tail.checked_sub(1).unwrap_or(self.entries - 1)
    }

    /// Its entries.
    #[inline]
    pub(super) fn ring<'h>(&self, host: &Host<'h>) -> Result<Entries<'h, Sqe>, Box<QueueLost>> {
        ring(host, "submission queue", self.id, self.base, self.entries << self.long)
    }

    /// Reads the next `n` commands, which [`pending`](Self::pending) said were there, into `out`.
    #[inline]
    pub(super) fn fetch(&self, ring: &Entries<'_, Sqe>, n: u32, out: &mut Vec<Command>) {
        let mut at = self.head;
        for _ in 0..n {
            let Some(entry) = ring.at((at as usize) << self.long) else { return };
            out.push(Command::fetch(entry));
            at = if at + 1 == self.entries { 0 } else { at + 1 };
        }
    }

    /// Takes the next command: its entry is the host's again.
    #[inline]
    pub(super) fn take(&mut self) {
        self.head = if self.head + 1 == self.entries { 0 } else { self.head + 1 };
    }
}

/// A completion queue.
#[derive(Debug)]
pub(super) struct Cq {
    pub(super) id: u16,
    base: u64,
    entries: u32,
    /// The next entry to write.
    tail: u32,
    /// The host's head, as far as it made sense.
    head: u32,
    /// The phase of this lap: 1 on the first (base 3.3.3.2.1).
    phase: bool,
    /// The vector to signal, where interrupts are enabled.
    pub(super) vector: Option<u16>,
    /// Its wait before it signals that.
    pub(super) coalesce: Coalesce,
    /// How many submission queues use it.
    pub(super) users: u32,
    refused: Option<u32>,
}

impl Cq {
    pub(super) fn new(id: u16, base: u64, entries: u32, vector: Option<u16>) -> Self {
        let coalesce = Coalesce::default();
        Self { id, base, entries, tail: 0, head: 0, phase: true, vector, coalesce, users: 0, refused: None }
    }

    /// Takes note of the doorbell's value. False, once, for one that is outside of the queue, or ahead of what was posted.
    #[inline]
    pub(super) fn rung(&mut self, head: u32) -> bool {
        if head == self.head {
            return true;
        }
        let ahead = |from: u32, to: u32| if to >= from { to - from } else { self.entries - from + to };
        if head < self.entries && ahead(self.head, head) <= ahead(self.head, self.tail) {
            self.head = head;
            return true;
        }
        self.refused.replace(head) == Some(head)
    }

    /// Counts answers that were posted; the vector to signal now, or none where that is to wait, by these limits (completions, microseconds).
    #[inline]
    pub(super) fn interrupt(&mut self, answers: usize, limits: (u32, u32)) -> Option<u16> {
        self.coalesce.set(limits);
        self.coalesce.count(answers as u32, true);
        self.vector.filter(|_| self.coalesce.is_due())
    }

    /// How many entries can be written before the host takes some.
    #[inline]
    pub(super) fn room(&self) -> u32 {
        if self.head > self.tail { self.head - self.tail - 1 } else { self.entries - 1 - self.tail + self.head }
    }

    /// The head that was seen.
    pub(super) fn seen(&self) -> u32 {
        self.head
    }

    /// The index before it.
    pub(super) fn behind(&self) -> u32 {
        self.head.checked_sub(1).unwrap_or(self.entries - 1)
    }

    /// Its entries.
    #[inline]
    pub(super) fn ring<'h>(&self, host: &Host<'h>) -> Result<Entries<'h, Cqe>, Box<QueueLost>> {
        ring(host, "completion queue", self.id, self.base, self.entries)
    }

    /// Writes `answers`, for which [`room`](Self::room) said there was room.
    #[inline]
    pub(super) fn post(&mut self, ring: &Entries<'_, Cqe>, answers: &[Answer]) {
        for answer in answers {
            let Some(entry) = ring.at(self.tail as usize) else { return };
            let last =
                u32::from(answer.status.0) << 17 | u32::from(self.phase != answer.stale) << 16 | u32::from(answer.cid);
            entry[0].store((answer.result as u32).to_le(), Ordering::Relaxed);
            entry[1].store(((answer.result >> 32) as u32).to_le(), Ordering::Relaxed);
            entry[2].store((u32::from(answer.sq_id) << 16 | u32::from(answer.sq_head)).to_le(), Ordering::Relaxed);
            // Release pairs with the driver's Acquire load of this word: who sees the new phase sees the words above, and the data.
            entry[3].store(last.to_le(), Ordering::Release);
            self.tail += 1;
            if self.tail == self.entries {
                self.tail = 0;
                self.phase = !self.phase;
            }
        }
    }
}

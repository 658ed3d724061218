//! Submission and completion queues, as the controller keeps them: where they are in memory, and how far each side is (base 3.3.1).
//!
//! What the host writes is input: a doorbell value outside of the queue is refused here, a queue outside of the memory that was
//! mapped for the device is an error of the caller's to report. This file does *not* know what commands mean.

use super::command::{Answer, Command, Sqe};
use std::sync::atomic::{AtomicU32, Ordering};
use wholebar::mem::Iova;
use wholebar::model::Host;

/// A completion queue entry in memory.
type Cqe = [AtomicU32; 4];

/// The memory of a queue is not there (any more), or can't be written.
#[derive(Debug)]
pub(super) struct QueueLost {
    pub(super) what: &'static str,
    pub(super) id: u16,
    pub(super) base: u64,
}

/// A submission queue.
#[derive(Debug)]
pub(super) struct Sq {
    pub(super) id: u16,
    /// The completion queue that it uses.
    pub(super) cq: u16,
    base: u64,
    entries: u32,
    /// The next entry to fetch.
    head: u32,
    /// The host's tail, as far as it made sense.
    tail: u32,
    /// The last doorbell value that made no sense: it stays in the register, but is an event only once.
    refused: Option<u32>,
}

impl Sq {
    pub(super) fn new(id: u16, cq: u16, base: u64, entries: u32) -> Self {
        Self { id, cq, base, entries, head: 0, tail: 0, refused: None }
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

    /// Fetches `n` commands, which [`pending`](Self::pending) said were there, into `out`.
    #[inline]
    pub(super) fn fetch(&mut self, host: &Host<'_>, n: u32, out: &mut Vec<Command>) -> Result<(), QueueLost> {
        let entries = self.entries as usize;
        let memory = host.dma(Iova(self.base), entries as u64 * 64);
        let ring = memory.and_then(|m| m.slice::<Sqe>(0, entries)).ok_or(QueueLost {
            what: "submission queue",
            id: self.id,
            base: self.base,
        })?;
        for _ in 0..n {
            out.push(Command::fetch(&ring[self.head as usize]));
            self.head += 1;
            if self.head == self.entries {
                self.head = 0;
            }
        }
        Ok(())
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
    /// How many submission queues use it.
    pub(super) users: u32,
    refused: Option<u32>,
}

impl Cq {
    pub(super) fn new(id: u16, base: u64, entries: u32, vector: Option<u16>) -> Self {
        Self { id, base, entries, tail: 0, head: 0, phase: true, vector, users: 0, refused: None }
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

    /// Writes `answers`, for which [`room`](Self::room) said there was room.
    #[inline]
    pub(super) fn post(&mut self, host: &Host<'_>, answers: &[Answer]) -> Result<(), QueueLost> {
        let entries = self.entries as usize;
        let memory = host.dma(Iova(self.base), entries as u64 * 16).filter(|m| m.writable());
        let ring = memory.and_then(|m| m.slice::<Cqe>(0, entries)).ok_or(QueueLost {
            what: "completion queue",
            id: self.id,
            base: self.base,
        })?;
        for answer in answers {
            let entry = &ring[self.tail as usize];
            let last =
                u32::from(answer.status.0) << 17 | u32::from(self.phase != answer.stale) << 16 | u32::from(answer.cid);
            entry[0].store(answer.dw0.to_le(), Ordering::Relaxed);
            entry[1].store(0, Ordering::Relaxed);
            entry[2].store((u32::from(answer.sq_id) << 16 | u32::from(answer.sq_head)).to_le(), Ordering::Relaxed);
            // Release pairs with the driver's Acquire load of this word: who sees the new phase sees the words above, and the data.
            entry[3].store(last.to_le(), Ordering::Release);
            self.tail += 1;
            if self.tail == self.entries {
                self.tail = 0;
                self.phase = !self.phase;
            }
        }
        Ok(())
    }
}

//! One submission and one completion queue, as words in memory (NVM Express Base 2.0, 3.3.3; PCIe Transport 1.0, 3.1.2).
//!
//! What is here: post an entry, ring once a batch, take what completed, and check of it what needs no knowledge of commands. It does
//! *not* know what is in flight. Words are atomics: this is safe code, with the device, or a thread that models it, on the other side.

use crate::cmb::Part;
use crate::command::WORDS;
use crate::doorbell::{Bell, Elsewhere};
use crate::error::Fault;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use wholebar_core::mem::{Arena, DmaRing};
use wholebar_core::{Result, barrier};

/// Both queues of one number. The submission queue's indexes run free; the rings reduce them.
pub(crate) struct QueuePair {
    qid: u16,
    /// Its number, where an entry's dword 2 has it.
    sqid: u32,
    /// What was announced.
    announced: u32,
    /// What was posted.
    tail: u32,
    /// What the controller said that it fetched.
    fetched: u32,
    /// The next entry to look at, and its phase tag when it is complete: 1 on the first lap, 0 on the second (3.3.3.2.2).
    head: u32,
    phase: u32,
    /// What the controller was told.
    told: u32,
    sq: DmaRing<[AtomicU64; 8]>,
    cq: DmaRing<[AtomicU32; 4]>,
    sq_bell: Bell,
    cq_bell: Bell,
    far: Option<FarCompletions>,
}

/// A completion queue that the controller has in its own memory: what it completes there is copied to where it is polled.
struct FarCompletions {
    part: Arc<Part>,
    /// The next entry to copy, and its phase tag when it is complete.
    next: u32,
    phase: u32,
}

/// The phase tag, in dword 3 of a completion queue entry.
const PHASE: u32 = 1 << 16;

/// Dwords 2 and 3 of a completion queue entry (3.3.3.2).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    dw2: u32,
    dw3: u32,
}

/// The memory of both rings, for who makes them known to the controller.
pub(crate) struct Rings {
    sq: DmaRing<[AtomicU64; 8]>,
    cq: DmaRing<[AtomicU32; 4]>,
    far: Option<Arc<Part>>,
}

impl Rings {
    /// Zeroes both. The controller must not know of them.
    pub fn zero(&self) {
        self.sq.zero();
        self.cq.zero();
        if let Some(part) = &self.far {
            (0..2 * u64::from(self.cq.len())).for_each(|word| part.write(8 * word, 0));
        }
    }

    /// Where the controller has the completion queue, if that is in its own memory.
    pub fn far_completions(&self) -> Option<u64> {
        self.far.as_ref().map(|part| part.iova())
    }

    /// Where in their arena they begin: submission, completion.
    pub fn offsets(&self) -> (u64, u64) {
        (self.sq.chunk().offset(), self.cq.chunk().offset())
    }
}

impl Entry {
    /// SQHD, the submission queue's head.
    #[inline(always)]
    pub fn sq_head(self) -> u16 {
        self.dw2 as u16
    }

    /// SQID, the submission queue.
    #[inline(always)]
    pub fn sqid(self) -> u16 {
        (self.dw2 >> 16) as u16
    }

    /// CID, the command.
    #[inline(always)]
    pub fn cid(self) -> u16 {
        self.dw3 as u16
    }

    /// The status field, 0 for success.
    #[inline(always)]
    pub fn status(self) -> u16 {
        (self.dw3 >> 17) as u16
    }
}

impl QueuePair {
    /// Zeroed rings of `entries` (a power of two) in `arena`, aligned to the controller's `page`.
    pub fn new(qid: u16, arena: Arc<Arena>, entries: u32, page: u64, bells: (Bell, Bell)) -> Result<Self> {
        Ok(Self {
            qid,
            sqid: u32::from(qid) << 16,
            announced: 0,
            tail: 0,
            fetched: 0,
            head: 0,
            phase: PHASE,
            told: 0,
            sq: DmaRing::new(arena.clone(), entries, page)?,
            cq: DmaRing::new(arena, entries, page)?,
            sq_bell: bells.0,
            cq_bell: bells.1,
            far: None,
        })
    }

    /// Posts an entry. The caller keeps fewer in flight than there are entries, so there is room.
    #[inline(always)]
    pub fn post(&mut self, words: [u64; 5]) {
        let entry = self.sq.at(self.tail);
        for (i, word) in WORDS.into_iter().zip(words) {
            // Relaxed: the doorbell publishes it. The other words were zeroed with the ring.
            entry[i].store(word.to_le(), Ordering::Relaxed);
        }
        self.tail = self.tail.wrapping_add(1);
    }

    /// Posts an entry, all of its words. Those that [`post`](Self::post) leaves alone have to be [cleared](Self::clear) once it was fetched.
    pub fn post_entry(&mut self, words: [u64; 8]) {
        let entry = self.sq.at(self.tail);
        // Relaxed: the doorbell publishes it.
        entry.iter().zip(words).for_each(|(to, word)| to.store(word.to_le(), Ordering::Relaxed));
        self.tail = self.tail.wrapping_add(1);
    }

    /// Zeroes the entry that was posted at `posted`, which the controller has fetched.
    pub fn clear(&mut self, posted: u32) {
        self.sq.at(posted).iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }

    /// Announces what was posted: one doorbell.
    #[inline(always)]
    pub fn ring(&mut self) {
        if self.tail != self.announced {
            self.announced = self.tail;
            self.sq_bell.ring(self.sq.slot(self.tail));
        }
    }

    /// Takes the next entry that the controller completed.
    #[inline(always)]
    pub fn take(&mut self) -> Option<Entry> {
        let head = self.head;
        let entry = self.cq.at(head);
        // Acquire pairs with the Release by which the controller (or its model) sets the phase tag after it wrote the entry's other words and the
        // command's data: without it, both could be older than the tag.
        let dw3 = u32::from_le(entry[3].load(Ordering::Acquire));
        if (dw3 ^ self.phase) & PHASE != 0 {
            return None;
        }
        barrier::after_status();
        let dw2 = u32::from_le(entry[2].load(Ordering::Relaxed));
        self.head = self.cq.slot(head.wrapping_add(1));
        if self.head == 0 {
            self.phase ^= PHASE;
        }
        Some(Entry { dw2, dw3 })
    }

    /// Dwords 0 and 1 of the entry taken last: the command's own result.
    pub fn result(&self) -> u64 {
        let entry = self.cq.at(self.head.wrapping_sub(1));
        let word = |i: usize| u64::from(u32::from_le(entry[i].load(Ordering::Relaxed)));
        word(0) | word(1) << 32
    }

    /// Checks what the entry says of the queue, and takes note of its head.
    #[inline(always)]
    pub fn check(&mut self, entry: Entry) -> Result<(), Fault> {
        // Of another queue, this is no head that a queue can have.
        let head = entry.dw2 ^ self.sqid;
        let fetched = self.fetched;
        let moved = self.sq.slot(head.wrapping_sub(fetched));
        if head > self.sq.slot(u32::MAX) || moved > self.announced.wrapping_sub(fetched) {
            return Err(self.fault(entry));
        }
        self.fetched = fetched.wrapping_add(moved);
        Ok(())
    }

    #[cold]
    fn fault(&self, entry: Entry) -> Fault {
        if entry.sqid() != self.qid {
            return Fault::ForeignQueue { qid: self.qid, sqid: entry.sqid() };
        }
        let slot = |i| self.sq.slot(i) as u16;
        Fault::Head { qid: self.qid, head: entry.sq_head(), from: slot(self.fetched), to: slot(self.announced) }
    }

    /// Where the next entry goes.
    #[inline(always)]
    pub fn tail(&self) -> u32 {
        self.tail
    }

    /// Whether the controller said that it fetched the entry posted at `posted`.
    #[inline(always)]
    pub fn fetched(&self, posted: u32) -> bool {
        self.fetched.wrapping_sub(posted) as i32 > 0
    }

    /// The submission queue's head, as the controller told it last.
    pub fn sq_head(&self) -> u16 {
        self.sq.slot(self.fetched) as u16
    }

    /// Gives the controller back the completion entries that were taken: one doorbell.
    #[inline(always)]
    pub fn acknowledge(&mut self) {
        if self.head != self.told {
            self.told = self.head;
            self.cq_bell.ring(self.head);
        }
    }

    /// As new: after a reset, with rings that were [zeroed](Rings::zero).
    pub fn restart(&mut self) {
        (self.announced, self.tail, self.fetched) = (0, 0, 0);
        (self.head, self.phase, self.told) = (0, PHASE, 0);
        self.sq_bell.restart();
        self.cq_bell.restart();
        if let Some(far) = &mut self.far {
            (far.next, far.phase) = (0, PHASE);
        }
    }

    /// Has the controller find the submission queue elsewhere.
    pub fn copy_entries(&mut self, to: Elsewhere) {
        self.sq_bell.copy_entries(self.sq.clone(), to);
    }

    /// Has the controller have the completion queue in its own memory.
    pub fn move_completions(&mut self, part: Part) {
        self.far = Some(FarCompletions { part: Arc::new(part), next: 0, phase: PHASE });
        // Whoever had it before has left something there.
        self.rings().zero();
    }

    /// Copies what the controller has completed in its own memory, if the completion queue is there, to where [`take`](Self::take) finds it. Returns whether it is
    /// there.
    pub fn fetch_completions(&mut self) -> bool {
        let Some(far) = &mut self.far else { return false };
        // No more than are taken: the controller may write no others.
        while far.next != self.head || far.phase == self.phase {
            let at = 16 * u64::from(far.next);
            let Some(high) = far.part.read(at + 8) else { break };
            // All ones: nobody answers.
            if high == u64::MAX || ((high >> 32) as u32 ^ far.phase) & PHASE != 0 {
                break;
            }
            barrier::after_status();
            // Once more: where a system call reads halves, the first of them may be older than the phase tag.
            let (Some(low), Some(high)) = (far.part.read(at), far.part.read(at + 8)) else { break };
            let entry = self.cq.at(far.next);
            // Relaxed: this thread takes it.
            for (to, word) in entry.iter().zip([low, low >> 32, high, high >> 32]) {
                to.store((word as u32).to_le(), Ordering::Relaxed);
            }
            far.next = self.cq.slot(far.next.wrapping_add(1));
            if far.next == 0 {
                far.phase ^= PHASE;
            }
        }
        true
    }

    /// The rings' memory.
    pub fn rings(&self) -> Rings {
        let far = self.far.as_ref().map(|far| far.part.clone());
        Rings { sq: self.sq.clone(), cq: self.cq.clone(), far }
    }

    /// Entries of each.
    pub fn entries(&self) -> u32 {
        self.sq.len()
    }

    /// Whether the rings' memory is quarantined when they are dropped: on while the controller knows of them.
    pub fn set_quarantine(&self, on: bool) {
        self.sq.set_quarantine(on);
        self.sq_bell.set_quarantine(on);
        self.cq.set_quarantine(on);
        if let Some(far) = &self.far {
            far.part.set_quarantine(on);
        }
    }

    /// The doorbells: submission, completion.
    pub fn bells(&self) -> (&Bell, &Bell) {
        (&self.sq_bell, &self.cq_bell)
    }
}

//! The commands of a queue, one slot each: who owns its buffers, whether it is in flight, and which slots are free.

use std::time::Instant;
use wholebar::block::{Completion, Data, Request, Status};

/// One command.
#[derive(Debug)]
pub(super) struct Slot {
    pub state: State,
    /// It is to be aborted, and the abort may not be done with: its identifier isn't used again before.
    pub aborting: bool,
    /// The slot that has the request, for a part of one.
    pub head: u16,
    /// Parts that are not complete, for a request in parts.
    pub left: u16,
    /// The first status of a part that is none of success.
    pub status: u16,
    next: u16,
    /// When it was first seen in flight, in the queue's milliseconds; 0 before.
    pub seen: u32,
    pub tag: u64,
    pub deadline: Option<Instant>,
    pub data: Data,
}

/// What becomes of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Free,
    /// In flight: one command, which is the request.
    Whole,
    /// In flight: one command of a request in parts. The first has the request.
    Part,
    /// The first part, complete, while others aren't.
    Done,
    /// Complete, while an abort of it isn't done with.
    Retired,
}

const NONE: u16 = u16::MAX;

/// All slots of a queue, and a list of the free ones.
pub(super) struct Slots {
    slots: Box<[Slot]>,
    free: u16,
    free_count: u32,
}

impl Slots {
    /// `count` free slots, fewer than 65,536.
    pub fn new(count: u32) -> Self {
        let slot = || Slot {
            state: State::Free,
            aborting: false,
            head: 0,
            left: 0,
            status: 0,
            next: NONE,
            seen: 0,
            tag: 0,
            deadline: None,
            data: Data::None,
        };
        let mut slots =
            Self { slots: (0..count.min(NONE.into())).map(|_| slot()).collect(), free: NONE, free_count: 0 };
        slots.free_all();
        slots
    }

    /// Takes a free slot.
    #[inline(always)]
    pub fn claim(&mut self) -> Option<(u16, &mut Slot)> {
        let cid = self.free;
        let slot = self.slots.get_mut(usize::from(cid))?;
        self.free = slot.next;
        self.free_count -= 1;
        Some((cid, slot))
    }

    /// Makes a slot free.
    #[inline(always)]
    pub fn give_back(&mut self, cid: u16) {
        if let Some(slot) = self.slots.get_mut(usize::from(cid)) {
            slot.state = State::Free;
            slot.next = self.free;
            self.free = cid;
            self.free_count += 1;
        }
    }

    #[inline(always)]
    pub fn get(&mut self, cid: u16) -> Option<&mut Slot> {
        self.slots.get_mut(usize::from(cid))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u16, &mut Slot)> {
        (0..).zip(self.slots.iter_mut())
    }

    /// All are free; none holds a request.
    pub fn free_all(&mut self) {
        (self.free, self.free_count) = (NONE, 0);
        for cid in (0..self.slots.len() as u16).rev() {
            self.give_back(cid);
        }
    }

    pub fn free_count(&self) -> u32 {
        self.free_count
    }

    pub fn capacity(&self) -> u32 {
        self.slots.len() as u32
    }

    pub fn in_use(&self) -> u32 {
        self.capacity() - self.free_count
    }
}

impl Slot {
    /// Takes a request that is one command.
    #[inline(always)]
    pub fn fill(&mut self, req: Request) {
        self.state = State::Whole;
        self.aborting = false;
        self.seen = 0;
        self.tag = req.tag;
        self.deadline = req.deadline;
        // A free slot holds no data, so there is nothing to drop.
        std::mem::forget(std::mem::replace(&mut self.data, req.data));
    }

    /// The request's completion; its data goes with it.
    #[inline(always)]
    pub fn finish(&mut self, status: Status) -> Completion {
        Completion { tag: self.tag, status, data: std::mem::take(&mut self.data) }
    }

    /// Whether it has a request.
    pub fn has_request(&self, cid: u16) -> bool {
        match self.state {
            State::Whole | State::Done => true,
            State::Part => self.head == cid,
            State::Free | State::Retired => false,
        }
    }
}

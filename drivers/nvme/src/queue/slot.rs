//! The commands of a queue, one slot each: who owns its buffers, whether it is in flight, and which slots are free.

use std::time::Instant;
use wholebar_core::block::{Completion, Data, Request, Status};

/// One command.
#[derive(Debug)]
pub(super) struct Slot {
    pub state: State,
    /// It is to be aborted, and the abort may not be done with: its identifier isn't used again before.
    pub aborting: bool,
    /// For a part, the slot that has the request; for a free slot, the next free one.
    pub link: u16,
    /// Parts that are not complete, for a request in parts.
    pub left: u16,
    /// The first status of a part that is none of success.
    pub status: u16,
    /// Where in the submission queue it was posted.
    pub posted: u32,
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
const _: () = assert!(size_of::<Slot>() == 64, "a cache line");

/// All slots of a queue, and a list of the free ones.
pub(super) struct Slots {
    slots: Box<[Slot]>,
    /// How many of them, the first ones, are never used.
    reserved: u16,
    free: u16,
    free_count: u32,
}

impl Slots {
    /// `count` slots, fewer than 65,536, of which the first ones are `reserved`, and the others free.
    pub fn new(count: u32, reserved: u16) -> Self {
        let slot = || Slot {
            state: State::Free,
            aborting: false,
            link: NONE,
            left: 0,
            status: 0,
            posted: 0,
            seen: 0,
            tag: 0,
            deadline: None,
            data: Data::None,
        };
        let slots = (0..count.min(NONE.into())).map(|_| slot()).collect();
        let mut slots = Self { slots, reserved, free: NONE, free_count: 0 };
        slots.free_all();
        slots
    }

    /// Takes a free slot.
    #[inline(always)]
    pub fn claim(&mut self) -> Option<(u16, &mut Slot)> {
        let cid = self.free;
        let slot = self.slots.get_mut(usize::from(cid))?;
        self.free = slot.link;
        self.free_count -= 1;
        Some((cid, slot))
    }

    /// Ends a command that is a whole request, if there is one and `fetched` holds of where it was posted. The slot is free then, and still
    /// has what was the request's.
    #[inline(always)]
    pub fn end_whole(&mut self, cid: u16, fetched: impl FnOnce(u32) -> bool) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(usize::from(cid)).filter(|s| s.state == State::Whole && fetched(s.posted))?;
        slot.state = State::Free;
        slot.link = self.free;
        self.free = cid;
        self.free_count += 1;
        Some(slot)
    }

    /// Makes a slot free.
    #[inline(always)]
    pub fn give_back(&mut self, cid: u16) {
        if let Some(slot) = self.slots.get_mut(usize::from(cid)) {
            slot.state = State::Free;
            slot.link = self.free;
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
        for cid in (self.reserved..self.slots.len() as u16).rev() {
            self.give_back(cid);
        }
    }

    /// Makes those free that are in use and have no request.
    pub fn free_all_but_requests(&mut self) {
        for cid in 0..self.slots.len() as u16 {
            if self.get(cid).is_some_and(|slot| slot.state != State::Free && !slot.has_request(cid)) {
                self.give_back(cid);
            }
        }
    }

    /// Ends the first request from slot `from` on, however far it is; its slot is free then.
    pub fn take_request(&mut self, from: u16, status: Status) -> Option<(u16, Completion)> {
        let (cid, slot) = self.iter_mut().skip(from.into()).find(|(cid, slot)| slot.has_request(*cid))?;
        let completion = slot.finish(status);
        self.give_back(cid);
        Some((cid, completion))
    }

    pub fn free_count(&self) -> u32 {
        self.free_count
    }

    pub fn capacity(&self) -> u32 {
        self.slots.len() as u32 - u32::from(self.reserved)
    }

    pub fn in_use(&self) -> u32 {
        self.capacity() - self.free_count
    }
}

impl Slot {
    /// Takes a request that is one command, posted at `posted`.
    #[inline(always)]
    pub fn fill(&mut self, req: Request, posted: u32) {
        self.state = State::Whole;
        self.posted = posted;
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
            State::Part => self.link == cid,
            State::Free | State::Retired => false,
        }
    }
}

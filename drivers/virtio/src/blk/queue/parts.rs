//! Requests that are anything but one read or write of the device's: without data, or in parts. Parts for which there is no room wait in the
//! queue, and polls post them as others are done.

use super::{Channel, DISCARD, FLUSH, HEADER, IN, OK, OUT, RANGE, SLOT, State, WRITE_ZEROES, status};
use crate::blk::config::Geometry;
use crate::blk::cut::{Pieces, Rules};
use crate::ring::{Ring, Segment};
use std::sync::atomic::Ordering;
use std::time::Instant;
use wholebar_core::block::{Completion, Data, Op, Reject, Rejected, Request};

/// The part of a request that waits for room.
pub(super) struct Waiting {
    /// The slot that has the request.
    head: u16,
    kind: u32,
    deadline: Option<Instant>,
    pieces: Pieces,
}

impl<R: Ring> Channel<R> {
    /// Describes a request without data, which is one of the device's; returns its type, and none where it takes several.
    pub(super) fn without_data(&mut self, slot: u16, op: Op, data: &Data) -> Result<Option<u32>, Reject> {
        let (kind, lba, blocks) = match op {
            Op::Flush if !self.disk.flush => {
                return Err(Reject::Invalid("the device has no cache to flush: what was written is durable"));
            }
            Op::Flush => (FLUSH, 0, 0),
            Op::WriteZeroes { lba, blocks } => (WRITE_ZEROES, self.writable(lba)?, blocks),
            Op::Deallocate { lba, blocks } => (DISCARD, self.writable(lba)?, blocks),
            Op::Compare { .. } => return Err(Reject::Invalid("virtio has no Compare")),
            Op::Verify { .. } => return Err(Reject::Invalid("virtio has no Verify")),
            Op::Read { .. } | Op::Write { .. } => return Ok(None),
        };
        if !data.is_empty() {
            return Err(Reject::Invalid("this operation takes no data"));
        }
        if kind == FLUSH {
            return Ok(Some(kind));
        }
        if blocks == 0 {
            return Err(Reject::Invalid("there are no blocks to act on"));
        }
        self.in_range(lba, blocks.into())?;
        match most(&self.disk, kind) {
            0 => Err(Reject::Invalid("the device does not have this operation")),
            most if blocks > most => Ok(None),
            _ => {
                self.range(slot, lba, blocks.into());
                Ok(Some(kind))
            }
        }
    }

    /// A range of blocks (5.2.6): sector, number of sectors, flags. One a request: every device takes one.
    fn range(&mut self, slot: u16, lba: u64, blocks: u64) {
        let words = self.words.at(slot.into());
        let sectors = self.sectors();
        // Relaxed: the ring publishes them. No flags: blocks that are zeroed are kept.
        words[2].store((lba * sectors).to_le(), Ordering::Relaxed);
        words[3].store((blocks * sectors).to_le(), Ordering::Relaxed);
        let iova = self.iova + SLOT * u64::from(slot) + u64::from(HEADER);
        self.pieces.push(Segment { iova, len: RANGE });
    }

    /// A request that the device takes in several. It is taken whole, or comes back.
    #[cold]
    pub(super) fn submit_in_parts(&mut self, req: Request) -> Result<(), Rejected> {
        match self.cut(&req).and_then(|(kind, pieces)| self.begin_parts(kind, req.deadline, pieces)) {
            Ok(head) => {
                if let Some(slot) = self.slots.get_mut(usize::from(head)) {
                    (slot.tag, slot.data) = (req.tag, req.data);
                }
                Ok(())
            }
            Err(why) => Err(Rejected { req, why }),
        }
    }

    /// The request as pieces, each of which the device takes.
    fn cut(&mut self, req: &Request) -> Result<(u32, Pieces), Reject> {
        let Geometry { block_size, max_segments, max_segment, .. } = self.disk;
        let (kind, lba) = match req.op {
            Op::WriteZeroes { lba, blocks } => {
                return Ok((WRITE_ZEROES, Pieces::range(self.disk.max_write_zeroes, 0, lba, blocks)));
            }
            Op::Deallocate { lba, blocks } => {
                let align = self.disk.deallocate_alignment;
                return Ok((DISCARD, Pieces::range(self.disk.max_deallocate, align, lba, blocks)));
            }
            Op::Write { lba } => (OUT, lba),
            Op::Read { lba } => (IN, lba),
            _ => return Err(Reject::Invalid("this operation cannot be cut")),
        };
        let bytes = req.data.len();
        if bytes & u64::from(block_size - 1) != 0 {
            return Err(Reject::Invalid("the data is no multiple of the device's block size"));
        }
        self.in_range(lba, bytes / u64::from(block_size))?;
        let mut segments = Vec::new();
        for buf in req.data.bufs().iter().filter(|buf| !buf.is_empty()) {
            let iova = self.life.iova(buf);
            let iova = iova.ok_or(Reject::Invalid("the buffer's arena is not attached: see `Blk::attach`"))?;
            segments.push(Segment { iova, len: buf.len() });
        }
        let pieces = Pieces::data(Rules { block: block_size, max_segments, max_segment }, segments, lba);
        // A request is taken whole: what waits must be right, too.
        let (mut all, mut one) = (pieces.clone(), Vec::new());
        while let Some((_, blocks)) = all.next(&mut one) {
            if blocks == 0 {
                return Err(Reject::Invalid("a block of the data is in more pieces than the device takes at once"));
            }
            one.clear();
        }
        Ok((kind, pieces))
    }

    /// Posts as many parts as there is room for; the rest waits. Returns the slot that is to have the request.
    fn begin_parts(&mut self, kind: u32, deadline: Option<Instant>, pieces: Pieces) -> Result<u16, Reject> {
        let head = *self.free.last().ok_or(Reject::Full)?;
        let mut waiting = Waiting { head, kind, deadline, pieces };
        if !self.post_part(&mut waiting) {
            return Err(Reject::Full);
        }
        while !waiting.pieces.is_empty() && self.post_part(&mut waiting) {}
        if !waiting.pieces.is_empty() {
            self.waiting.push(waiting);
        }
        Ok(head)
    }

    /// Posts the next part of a request, if there is room.
    fn post_part(&mut self, waiting: &mut Waiting) -> bool {
        let Waiting { head, kind, deadline, ref mut pieces } = *waiting;
        // The request's own slot is kept for it while it has no part in flight.
        let own = self.slots.get(usize::from(head)).is_some_and(|slot| slot.state == State::Done);
        let at = match self.free.last() {
            _ if own => head,
            Some(at) => *at,
            None => return false,
        };
        let before = pieces.clone();
        self.begin(at);
        let Some((lba, blocks)) = pieces.next(&mut self.pieces) else { return false };
        let lba = match kind {
            IN | OUT => lba,
            _ => {
                self.range(at, lba, blocks);
                0
            }
        };
        if own {
            // What is launched has the first free slot.
            self.free.push(head);
        }
        if !self.launch(at, kind, lba) {
            *pieces = before;
            if own {
                self.free.pop();
            }
            return false;
        }
        let first = at == head && !own;
        if let Some(slot) = self.slots.get_mut(usize::from(at)) {
            (slot.state, slot.head, slot.seen, slot.deadline) = (State::Part, head, None, deadline);
            if first {
                (slot.orphan, slot.left, slot.code) = (false, 0, OK);
            }
        }
        if let Some(slot) = self.slots.get_mut(usize::from(head)) {
            slot.left += 1;
        }
        true
    }

    /// A part is done, with this status: the request, if that was its last. `None` where no part is in flight there; the inner one where nobody is told.
    #[cold]
    pub(super) fn finish_part(&mut self, at: u16, code: u8) -> Option<Option<Completion>> {
        let slot = self.slots.get_mut(usize::from(at)).filter(|slot| slot.state == State::Part)?;
        let head = slot.head;
        if at == head {
            slot.state = State::Done;
        } else {
            slot.state = State::Free;
            self.free.push(at);
        }
        let slot = self.slots.get_mut(usize::from(head))?;
        if slot.code == OK {
            slot.code = code;
        }
        slot.left = slot.left.saturating_sub(1);
        let (failed, left) = (slot.code != OK, slot.left);
        if failed {
            // No more of it is posted.
            self.waiting.retain(|waiting| waiting.head != head);
        }
        if left > 0 || self.waiting.iter().any(|waiting| waiting.head == head) {
            return Some(None);
        }
        Some(self.end_request(head).filter(|_| !self.slots.get(usize::from(head)).is_some_and(|slot| slot.orphan)))
    }

    /// Ends a request none of whose parts is in flight any more.
    fn end_request(&mut self, head: u16) -> Option<Completion> {
        let slot = self.slots.get_mut(usize::from(head))?;
        slot.state = State::Free;
        self.free.push(head);
        Some(slot.finish(status(slot.code)))
    }

    /// Posts what waits, as far as there is room, and announces it.
    #[cold]
    pub(super) fn post_waiting(&mut self) {
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.retain_mut(|waiting| {
            while !waiting.pieces.is_empty() && self.post_part(waiting) {}
            !waiting.pieces.is_empty()
        });
        self.waiting = waiting;
        self.announce();
    }

    /// Nobody waits for what is in flight any more.
    pub fn disown(&mut self) {
        self.waiting.clear();
        for (at, slot) in (0..).zip(self.slots.iter_mut()) {
            slot.orphan = true;
            match slot.state {
                State::Whole => (slot.state, slot.head, slot.left, slot.code) = (State::Part, at, 1, OK),
                // All that is in flight of it is done.
                State::Done if slot.left == 0 => {
                    (slot.state, slot.data) = (State::Free, Data::None);
                    self.free.push(at);
                }
                State::Free | State::Part | State::Done => {}
            }
        }
    }
}

/// Blocks of one request of this type at most; 0 where the device has none.
fn most(disk: &Geometry, kind: u32) -> u32 {
    if kind == DISCARD { disk.max_deallocate } else { disk.max_write_zeroes }
}

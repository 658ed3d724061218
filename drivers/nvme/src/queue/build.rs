//! Requests that are anything but one small read or write: checked as a whole, cut into commands, and posted. Commands for which there is no
//! room wait in the queue: a request posts more as those that it has complete.

use super::protected::Tags;
use super::slot::State;
use super::{GIVEN_UP, Limits, NO_NAMESPACE, Queue, limits, status};
use crate::command::{Command, DataPointer, io};
use crate::fdp::Placement;
use crate::protection::Protection;
use crate::prp::{Segment, prps, sgl};
use crate::split::{Piece, Pieces, Rules};
use std::sync::atomic::Ordering;
use std::time::Instant;
use wholebar_core::block::{Op, QueueState, Reject, Rejected, Request, Status};
use wholebar_core::mem::Buf;

/// What the commands of a request have in common.
#[derive(Clone, Copy)]
pub(super) struct Kind {
    pub opcode: u8,
    pub nsid: u32,
    pub op: Op,
    pub deadline: Option<Instant>,
    /// On a namespace with metadata.
    pub tags: Option<Tags>,
    /// Where a write's data goes.
    pub placement: Placement,
}

/// The part of a request that waits for room: its other commands are in flight.
pub(super) struct Unposted {
    /// The slot that has the request.
    head: u16,
    kind: Kind,
    pieces: Pieces<'static>,
}

/// One command's blocks at most, where the device has no limit of its own: NLB has 16 bits, 0's based.
const MAX_BLOCKS: u32 = 65536;

impl Queue {
    /// Any request. It is posted whole, or comes back.
    #[inline(never)]
    pub(super) fn submit_any(&mut self, req: Request) -> Result<(), Rejected> {
        self.submit_tagged(req, None, Placement::Any)
    }

    /// Any request, with what is to become of metadata where that is said, and where a write's data goes.
    pub(super) fn submit_tagged(
        &mut self,
        mut req: Request,
        protection: Option<Protection>,
        placement: Placement,
    ) -> Result<(), Rejected> {
        match self.try_submit(&mut req, protection, placement) {
            Ok(head) => {
                self.hold(head, req);
                Ok(())
            }
            Err(why) => Err(Rejected { req, why }),
        }
    }

    /// The slot has the request from here on.
    pub(super) fn hold(&mut self, head: u16, req: Request) {
        if let Some(slot) = self.slots.get(head) {
            slot.tag = req.tag;
            slot.data = req.data;
        }
    }

    /// Posts the commands of a request, as many as there is room for; returns the slot that is to have it.
    fn try_submit(
        &mut self,
        req: &mut Request,
        protection: Option<Protection>,
        placement: Placement,
    ) -> Result<u16, Reject> {
        if !self.gate.open() {
            return Err(self.closed());
        }
        let ns = self.namespace(req.nsid)?;
        let Request { op, nsid, deadline, .. } = *req;
        let opcode = self.opcode(&op)?;
        let (tags, bufs) = self.tags(ns, req, protection)?;
        self.post_request(Kind { opcode, nsid, op, deadline, tags, placement }, bufs, ns, false)
    }

    /// Cuts a request into commands, or into one command with `once`, and posts those that there is room for; returns the slot that is to have it.
    pub(super) fn post_request(&mut self, kind: Kind, bufs: &[Buf], ns: Limits, once: bool) -> Result<u16, Reject> {
        let (mut segments, mut pieces) = (std::mem::take(&mut self.segments), std::mem::take(&mut self.pieces));
        pieces.clear();
        let posted = self.cut(kind, bufs, ns, &mut segments, &mut pieces).and_then(|rest| {
            match once && (pieces.len() > 1 || !rest.is_empty()) {
                true => Err(Reject::Invalid("its buffers cannot be described in one command")),
                false => self.post_all(kind, &pieces, rest).ok_or(Reject::Full),
            }
        });
        (self.segments, self.pieces) = (segments, pieces);
        posted
    }

    /// What the request is, if the controller has it.
    fn opcode(&self, op: &Op) -> Result<u8, Reject> {
        let controller = &self.inner.driver().controller;
        let (opcode, has, name) = match op {
            Op::Read { .. } => (io::READ, true, ""),
            Op::Write { .. } => (io::WRITE, true, ""),
            Op::Flush => (io::FLUSH, true, ""),
            Op::Compare { .. } => (io::COMPARE, controller.has_compare(), "the controller has no Compare"),
            Op::WriteZeroes { .. } => {
                (io::WRITE_ZEROES, controller.has_write_zeroes(), "the controller has no Write Zeroes")
            }
            Op::Deallocate { .. } => {
                let has = controller.has_dataset_management();
                (io::DATASET_MANAGEMENT, has, "the controller has no Dataset Management")
            }
            Op::Verify { .. } => (io::VERIFY, controller.has_verify(), "the controller has no Verify"),
        };
        if has { Ok(opcode) } else { Err(Reject::Invalid(name)) }
    }

    /// The namespace, which is the one used last from now on.
    pub(super) fn namespace(&mut self, nsid: u32) -> Result<Limits, Reject> {
        self.refresh_namespaces();
        match self.namespaces.iter().find(|n| n.nsid == nsid) {
            Some(ns) => {
                let ns = *ns;
                // Its commands set words of an entry that the short way leaves as they are.
                self.whole_entries |= ns.layout.metadata > 0;
                self.ns = self.with_short_way(ns);
            }
            None if self.inner.driver().namespaces.list().iter().any(|n| n.nsid == nsid) => {
                return Err(Reject::Invalid("this driver cannot use the namespace: see `Namespace::unsupported`"));
            }
            None => return Err(Reject::Invalid("the controller has no such namespace")),
        }
        Ok(self.ns)
    }

    /// Goes by the controller's namespaces as they are now.
    pub(super) fn refresh_namespaces(&mut self) {
        let generation = self.inner.driver().namespaces.generation();
        if generation != self.generation {
            (self.generation, self.namespaces) = (generation, limits(self.inner.driver()));
            let same = self.namespaces.iter().find(|n| n.nsid == self.ns.nsid);
            self.ns = self.with_short_way(same.copied().unwrap_or(NO_NAMESPACE));
        }
    }

    /// The limits of a namespace, within which requests are posted the short way: none are, where entries have to be written whole.
    fn with_short_way(&self, ns: Limits) -> Limits {
        if self.whole_entries { Limits { starts: 0, ..ns } } else { ns }
    }

    /// Cuts the request: into `pieces` what there is room for; what comes back waits.
    fn cut<'a>(
        &mut self,
        kind: Kind,
        bufs: &[Buf],
        ns: Limits,
        segments: &'a mut Vec<Segment>,
        pieces: &mut Vec<Piece>,
    ) -> Result<Pieces<'a>, Reject> {
        let mut rules = Rules {
            block: kind.tags.map_or(1 << ns.shift, |tags| tags.block()),
            max_blocks: ns.max_len >> ns.shift,
            boundary: ns.boundary,
            page: self.page_mask + 1,
            sgl: self.inner.driver().controller.sgl_alignment().filter(|_| self.inner.driver().options.sgls),
            descriptors: self.list_words / 2,
        };
        let limits = self.inner.driver().controller.limits;
        let by_bytes = |limit: u64| match limit >> ns.shift {
            0 => MAX_BLOCKS,
            blocks => blocks.min(MAX_BLOCKS.into()) as u32,
        };
        let (lba, blocks, max_blocks) = match kind.op {
            Op::Read { lba } | Op::Write { lba } | Op::Compare { lba } => {
                self.locate(bufs, segments)?;
                let bytes: u64 = segments.iter().map(|s| u64::from(s.len)).sum();
                if bytes == 0 {
                    return Err(Reject::Invalid("there is no data to transfer"));
                }
                if !bytes.is_multiple_of(rules.block) {
                    return Err(Reject::Invalid("the data is no multiple of the namespace's block size"));
                }
                in_range(ns, lba, bytes / rules.block)?;
                let most = self.inner.driver().max_interleaved();
                rules.max_blocks = rules.max_blocks.min((u64::from(most) / rules.block) as u32);
                let mut rest = Pieces::new(rules, segments, lba);
                for piece in rest.by_ref().take(self.slots.free_count() as usize) {
                    pieces.push(piece.map_err(Reject::Invalid)?);
                }
                // A request is taken whole: what waits must be right, too.
                rest.clone().try_for_each(|piece| piece.map(drop)).map_err(Reject::Invalid)?;
                return Ok(rest);
            }
            Op::Flush => (0, 1, MAX_BLOCKS),
            Op::WriteZeroes { lba, blocks } => (lba, blocks, by_bytes(limits.write_zeroes)),
            Op::Verify { lba, blocks } => (lba, blocks, by_bytes(limits.verify)),
            Op::Deallocate { lba, blocks } => {
                (lba, blocks, if limits.deallocate == 0 { u32::MAX } else { limits.deallocate })
            }
        };
        if bufs.iter().any(|buf| !buf.is_empty()) {
            return Err(Reject::Invalid("this operation takes no data"));
        }
        if blocks == 0 {
            return Err(Reject::Invalid("there are no blocks to act on"));
        }
        in_range(ns, lba, blocks.into())?;
        (rules.max_blocks, rules.boundary) = (max_blocks, 0);
        let mut rest = Pieces::bare(rules, lba, blocks);
        pieces.extend(rest.by_ref().take(self.slots.free_count() as usize).flatten());
        Ok(rest)
    }

    /// Where the data is, as the controller sees it; neighbours become one.
    fn locate(&mut self, bufs: &[Buf], segments: &mut Vec<Segment>) -> Result<(), Reject> {
        segments.clear();
        for buf in bufs.iter().filter(|b| !b.is_empty()) {
            let iova = self.arena_base(buf.arena_id())?.wrapping_add(buf.arena_offset());
            match segments.last_mut() {
                Some(last)
                    if last.iova.wrapping_add(last.len.into()) == iova && last.len.checked_add(buf.len()).is_some() =>
                {
                    last.len += buf.len();
                }
                _ => segments.push(Segment { iova, len: buf.len() }),
            }
        }
        Ok(())
    }

    /// Where an arena is, which is the one used last from now on.
    pub(super) fn arena_base(&mut self, id: u32) -> Result<u64, Reject> {
        if id != self.arena {
            let known = self.arenas.iter().find(|m| m.arena().id() == id);
            self.base = match known {
                Some(mapping) => mapping.iova().0,
                None => {
                    let mapping = self.inner.queue_context().arena(id);
                    let mapping =
                        mapping.ok_or(Reject::Invalid("the buffer's arena is not attached: see `Nvme::attach`"))?;
                    let base = mapping.iova().0;
                    self.arenas.push(mapping);
                    base
                }
            };
            self.arena = id;
        }
        Ok(self.base)
    }

    /// Posts the pieces, for which there is room; `rest` waits. `None` without room for one.
    fn post_all(&mut self, kind: Kind, pieces: &[Piece], rest: Pieces<'_>) -> Option<u16> {
        let mut head = None;
        let checked = kind.tags.filter(|tags| tags.is_checked(&kind.op));
        // Those of whose completion there is more to be seen than a status.
        let whole = rest.is_empty() && pieces.len() == 1 && checked.is_none() && kind.opcode != io::ZONE_APPEND;
        for piece in pieces {
            let (cid, slot) = self.slots.claim()?;
            let head = *head.get_or_insert(cid);
            if cid == head {
                // Parts, unless it is all of the request.
                (slot.left, slot.status) = (pieces.len() as u16, 0);
            }
            let state = if whole { State::Whole } else { State::Part };
            self.post_piece(kind, rest.segments(), piece, cid, head, state);
        }
        let head = head?;
        if let Some(tags) = checked {
            self.expect(head, tags);
        }
        if !rest.is_empty() {
            self.unposted.push(Unposted { head, kind, pieces: rest.into_owned() });
        }
        Some(head)
    }

    /// Posts one command, whose slot is claimed.
    fn post_piece(&mut self, kind: Kind, segments: &[Segment], piece: &Piece, cid: u16, head: u16, state: State) {
        let posted = self.pair.tail();
        if let Some(slot) = self.slots.get(cid) {
            (slot.state, slot.aborting, slot.link, slot.seen) = (state, false, head, 0);
            (slot.posted, slot.deadline) = (posted, kind.deadline);
        }
        let mut entry = self.command(kind, segments, piece, cid).entry(cid);
        entry[6] |= kind.placement.word();
        if let Some(tags) = kind.tags {
            tags.put(&mut entry, piece.lba);
        }
        self.pair.post_entry(entry);
    }

    /// Goes on with a request, one part of which completed: posts what waits of it, as far as there is room. Nothing more of it is posted once a
    /// part failed or was to be aborted.
    #[cold]
    pub(super) fn post_more(&mut self, head: u16, aborting: bool) {
        let Some(at) = self.unposted.iter().position(|u| u.head == head) else { return };
        let mut waiting = self.unposted.swap_remove(at);
        let Some(slot) = self.slots.get(head) else { return };
        let mut going_on = status(slot.status) == Status::Ok;
        if aborting && going_on {
            (slot.status, going_on) = (GIVEN_UP, false);
        }
        while going_on && !waiting.pieces.is_empty() {
            // The request's own slot is kept for it while it has no command in flight.
            let own = self.slots.get(head).is_some_and(|slot| slot.state == State::Done && !slot.aborting);
            let cid = match own {
                true => head,
                false => match self.slots.claim() {
                    Some((cid, _)) => cid,
                    None => return self.unposted.push(waiting),
                },
            };
            // All of them were found right when it was submitted.
            let Some(Ok(piece)) = waiting.pieces.next() else { break };
            self.post_piece(waiting.kind, waiting.pieces.segments(), &piece, cid, head, State::Part);
            if let Some(slot) = self.slots.get(head) {
                slot.left += 1;
            }
            // They are announced at the end of this poll.
            (self.announce, self.polls_to_check) = (true, 1);
        }
    }

    fn command(&self, kind: Kind, segments: &[Segment], piece: &Piece, cid: u16) -> Command {
        let Kind { opcode, nsid, op, .. } = kind;
        let first = u32::from(cid) * self.list_words;
        let list = self.lists_iova.wrapping_add(u64::from(first) * 8);
        // Relaxed: the doorbell publishes it.
        let put = |i: u32, word: u64| self.lists.at(first + i).store(word.to_le(), Ordering::Relaxed);
        match op {
            Op::Flush => Command::new(opcode, nsid, DataPointer::default()),
            Op::WriteZeroes { .. } | Op::Verify { .. } => {
                Command::on_blocks(opcode, nsid, DataPointer::default(), piece.lba, piece.blocks)
            }
            Op::Deallocate { .. } => {
                // One range (NVM Command Set 1.0, 3.2.3): attributes and length, then the first block. NR is 0's based; AD is bit 2.
                put(0, u64::from(piece.blocks) << 32);
                put(1, piece.lba);
                Command::new(opcode, nsid, DataPointer::prp(list, 0)).dw10(0, 1 << 2)
            }
            Op::Read { .. } | Op::Write { .. } | Op::Compare { .. } => {
                let parts = piece.segments(segments);
                let (list, in_controller) = match &self.controller_lists {
                    Some(part) => (part.iova() + u64::from(first) * 8, Some(part)),
                    None => (list, None),
                };
                let put = |i: u32, word: u64| match in_controller {
                    Some(part) => part.write(u64::from(first + i) * 8, word),
                    None => put(i, word),
                };
                let data = if piece.sgl { sgl(parts, list, put) } else { prps(parts, self.page_mask + 1, list, put) };
                Command::on_blocks(opcode, nsid, data, piece.lba, piece.blocks)
            }
        }
    }

    /// Why a queue that does not run takes nothing.
    pub(super) fn closed(&mut self) -> Reject {
        self.acknowledge_stop();
        match self.state_now() {
            QueueState::Running | QueueState::Resetting => Reject::Resetting,
            QueueState::Failed(_) | QueueState::Gone => Reject::Gone,
        }
    }
}

pub(super) fn in_range(ns: Limits, lba: u64, blocks: u64) -> Result<(), Reject> {
    match lba.checked_add(blocks) {
        Some(end) if end <= ns.blocks => Ok(()),
        _ => Err(Reject::Invalid("blocks past the namespace's end")),
    }
}

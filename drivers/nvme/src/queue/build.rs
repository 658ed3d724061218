//! Requests that are anything but one small read or write: checked, cut into commands, and posted, all of them or none.

use super::slot::State;
use super::{Limits, Queue};
use crate::command::{Command, DataPointer, io};
use crate::prp::{Segment, prps, sgl};
use crate::split::{Piece, Pieces, Rules, bare};
use std::sync::atomic::Ordering;
use wholebar::block::{Data, Op, QueueState, Reject, Rejected, Request};

/// One command's blocks at most, where the device has no limit of its own: NLB has 16 bits, 0's based.
const MAX_BLOCKS: u32 = 65536;

impl Queue {
    /// Any request. It is posted whole, or comes back.
    #[inline(never)]
    pub(super) fn submit_any(&mut self, req: Request) -> Result<(), Rejected> {
        match self.try_submit(&req) {
            Ok(head) => {
                if let Some(slot) = self.slots.get(head) {
                    slot.tag = req.tag;
                    slot.data = req.data;
                }
                Ok(())
            }
            Err(why) => Err(Rejected { req, why }),
        }
    }

    /// Posts the commands of a request; returns the slot that is to have it.
    fn try_submit(&mut self, req: &Request) -> Result<u16, Reject> {
        if !self.gate.open() {
            return Err(self.closed());
        }
        let ns = self.namespace(req.nsid)?;
        let opcode = self.opcode(&req.op)?;
        let (mut segments, mut pieces) = (std::mem::take(&mut self.segments), std::mem::take(&mut self.pieces));
        pieces.clear();
        let posted = self.cut(req, ns, &mut segments, &mut pieces).and_then(|()| {
            self.room_for(pieces.len())?;
            self.post_all(req, opcode, &segments, &pieces).ok_or(Reject::Full)
        });
        (self.segments, self.pieces) = (segments, pieces);
        posted
    }

    /// What the request is, if the controller has it.
    fn opcode(&self, op: &Op) -> Result<u8, Reject> {
        let controller = &self.inner.controller;
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
    fn namespace(&mut self, nsid: u32) -> Result<Limits, Reject> {
        match self.namespaces.iter().find(|n| n.nsid == nsid) {
            Some(ns) => self.ns = *ns,
            None if self.inner.namespaces.iter().any(|n| n.nsid == nsid) => {
                return Err(Reject::Invalid("this driver cannot use the namespace: see `Namespace::unsupported`"));
            }
            None => return Err(Reject::Invalid("the controller has no such namespace")),
        }
        Ok(self.ns)
    }

    /// Cuts the request into pieces.
    fn cut(
        &mut self,
        req: &Request,
        ns: Limits,
        segments: &mut Vec<Segment>,
        pieces: &mut Vec<Piece>,
    ) -> Result<(), Reject> {
        let mut rules = Rules {
            shift: ns.shift,
            max_blocks: ns.max_len >> ns.shift,
            boundary: ns.boundary,
            page: self.page_mask + 1,
            sgl: self.inner.controller.sgl_alignment().filter(|_| self.inner.options.sgls),
            descriptors: self.list_words / 2,
        };
        let limits = self.inner.controller.limits;
        let by_bytes = |limit: u64| match limit >> ns.shift {
            0 => MAX_BLOCKS,
            blocks => blocks.min(MAX_BLOCKS.into()) as u32,
        };
        let (lba, blocks, max_blocks) = match req.op {
            Op::Read { lba } | Op::Write { lba } | Op::Compare { lba } => {
                self.locate(&req.data, segments)?;
                let bytes = req.data.len();
                if bytes == 0 {
                    return Err(Reject::Invalid("there is no data to transfer"));
                }
                if bytes & ((1 << ns.shift) - 1) != 0 {
                    return Err(Reject::Invalid("the data is no multiple of the namespace's block size"));
                }
                in_range(ns, lba, bytes >> ns.shift)?;
                for piece in Pieces::new(rules, segments, lba) {
                    pieces.push(piece.map_err(Reject::Invalid)?);
                }
                return Ok(());
            }
            Op::Flush => (0, 1, MAX_BLOCKS),
            Op::WriteZeroes { lba, blocks } => (lba, blocks, by_bytes(limits.write_zeroes)),
            Op::Verify { lba, blocks } => (lba, blocks, by_bytes(limits.verify)),
            Op::Deallocate { lba, blocks } => {
                (lba, blocks, if limits.deallocate == 0 { u32::MAX } else { limits.deallocate })
            }
        };
        if !req.data.is_empty() {
            return Err(Reject::Invalid("this operation takes no data"));
        }
        if blocks == 0 {
            return Err(Reject::Invalid("there are no blocks to act on"));
        }
        in_range(ns, lba, blocks.into())?;
        (rules.max_blocks, rules.boundary) = (max_blocks, 0);
        // More than there is room for are refused anyway.
        pieces.extend(bare(rules, lba, blocks).take(self.capacity() + 1));
        Ok(())
    }

    /// Where the data is, as the controller sees it; neighbours become one.
    fn locate(&mut self, data: &Data, segments: &mut Vec<Segment>) -> Result<(), Reject> {
        segments.clear();
        for buf in data.bufs().iter().filter(|b| !b.is_empty()) {
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
    fn arena_base(&mut self, id: u32) -> Result<u64, Reject> {
        if id != self.arena {
            let known = self.arenas.iter().find(|m| m.arena().id() == id);
            self.base = match known {
                Some(mapping) => mapping.iova().0,
                None => {
                    let mapping = self.inner.ties().arena(id);
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

    fn room_for(&self, commands: usize) -> Result<(), Reject> {
        if commands > self.capacity() {
            return Err(Reject::Invalid("the request takes more commands than the queue has entries: cut it"));
        }
        if commands > self.slots.free_count() as usize { Err(Reject::Full) } else { Ok(()) }
    }

    /// Posts the pieces, for which there is room.
    fn post_all(&mut self, req: &Request, opcode: u8, segments: &[Segment], pieces: &[Piece]) -> Option<u16> {
        let mut head = None;
        for piece in pieces {
            let (cid, slot) = self.slots.claim()?;
            let head = *head.get_or_insert(cid);
            slot.state = if pieces.len() == 1 { State::Whole } else { State::Part };
            (slot.aborting, slot.link, slot.left, slot.status, slot.seen) = (false, head, 0, 0, 0);
            slot.posted = self.pair.tail();
            slot.deadline = req.deadline;
            if cid == head {
                slot.left = pieces.len() as u16;
            }
            let command = self.command(opcode, req, segments, piece, cid);
            self.pair.post(command.words(cid));
        }
        head
    }

    fn command(&self, opcode: u8, req: &Request, segments: &[Segment], piece: &Piece, cid: u16) -> Command {
        let first = u32::from(cid) * self.list_words;
        let list = self.lists_iova.wrapping_add(u64::from(first) * 8);
        // Relaxed: the doorbell publishes it.
        let put = |i: u32, word: u64| self.lists.at(first + i).store(word.to_le(), Ordering::Relaxed);
        match req.op {
            Op::Flush => Command::new(opcode, req.nsid, DataPointer::default()),
            Op::WriteZeroes { .. } | Op::Verify { .. } => {
                Command::on_blocks(opcode, req.nsid, DataPointer::default(), piece.lba, piece.blocks)
            }
            Op::Deallocate { .. } => {
                // One range (NVM Command Set 1.0, 3.2.3): attributes and length, then the first block. NR is 0's based; AD is bit 2.
                put(0, u64::from(piece.blocks) << 32);
                put(1, piece.lba);
                Command::new(opcode, req.nsid, DataPointer::prp(list, 0)).dw10(0, 1 << 2)
            }
            Op::Read { .. } | Op::Write { .. } | Op::Compare { .. } => {
                let parts = piece.segments(segments);
                let data = if piece.sgl { sgl(parts, list, put) } else { prps(parts, self.page_mask + 1, list, put) };
                Command::on_blocks(opcode, req.nsid, data, piece.lba, piece.blocks)
            }
        }
    }

    /// Why a queue that does not run takes nothing.
    fn closed(&mut self) -> Reject {
        self.acknowledge_stop();
        match self.state_now() {
            QueueState::Running | QueueState::Resetting => Reject::Resetting,
            QueueState::Failed(_) | QueueState::Gone => Reject::Gone,
        }
    }
}

fn in_range(ns: Limits, lba: u64, blocks: u64) -> Result<(), Reject> {
    match lba.checked_add(blocks) {
        Some(end) if end <= ns.blocks => Ok(()),
        _ => Err(Reject::Invalid("blocks past the namespace's end")),
    }
}

//! One virtqueue of a block device (VIRTIO 1.2, 5.2.6): a request is a header, its data, and a status byte.
//!
//! Each request in flight has a slot: who owns its buffers, and 64 bytes of DMA memory for header and status. Nothing here locks, allocates or calls
//! the kernel while the queue runs.

use super::config::{Geometry, SECTOR};
use crate::device::Parked;
use crate::error::{Error, Fault};
use crate::life::Life;
use crate::ring::{Ring, Segment};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use wholebar_core::bar::{Doorbell, DoorbellCounts};
use wholebar_core::block::{Completion, Data, Op, QueueState, Reject, Rejected, Request, Status};
use wholebar_core::irq::EventFd;
use wholebar_core::mem::{Chunk, DmaRing, Field};
use wholebar_core::reactor::Armed;
use wholebar_core::reset::Step;

/// Request types (5.2.6).
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
/// VIRTIO_BLK_S_OK, and what the status is before there is one.
const OK: u8 = 0;
const NO_STATUS: u8 = 0xff;

/// A slot's DMA memory, in bytes: the header at its start, a range of blocks behind it, the status byte at its middle.
const SLOT: u64 = 64;
const HEADER: u32 = 16;
const RANGE: u32 = 16;
const STATUS_AT: usize = 32;

/// The clock is looked at once in so many polls, a power of two.
const POLLS: u32 = 1024;
/// How often requests in flight are looked at for their age.
const LOOK: Duration = Duration::from_millis(5);
/// Pieces of memory of a request at most.
pub(super) const MAX_PIECES: usize = 254;

struct Slot {
    busy: bool,
    /// Nobody waits for it any more: its owner dropped the queue.
    orphan: bool,
    /// When it was first seen in flight; the clock isn't read when requests are posted.
    seen: Option<Instant>,
    deadline: Option<Instant>,
    tag: u64,
    data: Data,
}

pub(crate) struct Channel<R> {
    life: Life,
    ring: R,
    disk: Geometry,
    slots: Box<[Slot]>,
    free: Vec<u16>,
    /// The slot of each of the ring's identifiers.
    by_id: Box<[u16]>,
    /// The slots' memory: words for headers, a byte for status.
    words: DmaRing<Field<[AtomicU64; 4], 0, 64>>,
    status: DmaRing<Field<AtomicU8, STATUS_AT, 64>>,
    /// Where it is as the device sees it.
    iova: u64,
    /// Room to describe a request, kept between them.
    pieces: Vec<Segment>,
    polls: u32,
    next_look: Instant,
    bell: Doorbell<u16>,
    vector: Option<Arc<EventFd>>,
}

impl<R: Ring> Channel<R> {
    /// The DMA memory that a queue of `size` descriptors needs besides its ring.
    pub fn memory(size: u16) -> u64 {
        SLOT * u64::from(size)
    }

    /// `memory` is what [`memory`](Self::memory) says, at `iova`.
    pub fn new(
        life: Life,
        ring: R,
        disk: Geometry,
        (memory, iova): (&Chunk, u64),
        bell: Doorbell<u16>,
        vector: Option<Arc<EventFd>>,
    ) -> wholebar_core::Result<Self> {
        let size = ring.size();
        let slot = |_| Slot { busy: false, orphan: false, seen: None, deadline: None, tag: 0, data: Data::None };
        Ok(Self {
            life,
            disk,
            slots: (0..size).map(slot).collect(),
            free: (0..size).rev().collect(),
            by_id: vec![0; size.into()].into_boxed_slice(),
            words: DmaRing::within(memory, 0, size.into())?,
            status: DmaRing::within(memory, 0, size.into())?,
            iova,
            pieces: Vec::with_capacity(MAX_PIECES + 2),
            polls: 0,
            next_look: Instant::now(),
            bell,
            vector,
            ring,
        })
    }

    #[inline]
    pub fn submit(&mut self, req: Request) -> Result<(), Rejected> {
        if !self.life.is_open() {
            let why = self.closed();
            return Err(Rejected { req, why });
        }
        match self.post(&req) {
            Ok(slot) => {
                if let Some(slot) = self.slots.get_mut(usize::from(slot)) {
                    (slot.busy, slot.orphan, slot.seen) = (true, false, None);
                    (slot.deadline, slot.tag) = (req.deadline, req.tag);
                    // A free slot holds no data, so there is nothing to drop.
                    std::mem::forget(std::mem::replace(&mut slot.data, req.data));
                }
                Ok(())
            }
            Err(why) => Err(Rejected { req, why }),
        }
    }

    /// Posts a request; returns the slot that is to have it.
    #[inline(always)]
    fn post(&mut self, req: &Request) -> Result<u16, Reject> {
        if req.nsid != 1 {
            return Err(Reject::Invalid("a virtio block device has one namespace, number 1"));
        }
        let Some(&slot) = self.free.last() else { return Err(Reject::Full) };
        let base = self.iova + SLOT * u64::from(slot);
        self.pieces.clear();
        self.pieces.push(Segment { iova: base, len: HEADER });
        let (kind, lba) = match req.op {
            Op::Read { lba } => (IN, self.describe(lba, &req.data)?),
            Op::Write { lba } => (OUT, self.writable(lba).and_then(|lba| self.describe(lba, &req.data))?),
            Op::Flush if !self.disk.flush => {
                return Err(Reject::Invalid("the device has no cache to flush: what was written is durable"));
            }
            Op::Flush => (FLUSH, 0),
            Op::WriteZeroes { lba, blocks } => {
                (WRITE_ZEROES, self.range(slot, lba, blocks, self.disk.max_write_zeroes)?)
            }
            Op::Deallocate { lba, blocks } => (DISCARD, self.range(slot, lba, blocks, self.disk.max_deallocate)?),
            Op::Compare { .. } => return Err(Reject::Invalid("virtio has no Compare")),
            Op::Verify { .. } => return Err(Reject::Invalid("virtio has no Verify")),
        };
        if !matches!(kind, IN | OUT) && !req.data.is_empty() {
            return Err(Reject::Invalid("this operation takes no data"));
        }
        let readable = if kind == IN { 1 } else { self.pieces.len() };
        self.pieces.push(Segment { iova: base + STATUS_AT as u64, len: 1 });
        if self.pieces.len() > usize::from(self.ring.size()) {
            return Err(Reject::Invalid("the request takes more descriptors than the queue has: cut it"));
        }
        if self.pieces.len() > usize::from(self.ring.free()) {
            return Err(Reject::Full);
        }
        // Type, then 32 bits that are reserved; the sector. Ranges have theirs elsewhere, and 0 here.
        let words = self.words.at(slot.into());
        // Relaxed: the ring publishes them.
        words[0].store(u64::from(kind).to_le(), Ordering::Relaxed);
        words[1].store(lba.wrapping_mul(self.sectors()).to_le(), Ordering::Relaxed);
        self.status.at(slot.into()).store(NO_STATUS, Ordering::Relaxed);
        let id = self.ring.post(&self.pieces, readable);
        self.free.pop();
        if let Some(at) = self.by_id.get_mut(usize::from(id)) {
            *at = slot;
        }
        Ok(slot)
    }

    /// Sectors of a block.
    #[inline(always)]
    fn sectors(&self) -> u64 {
        u64::from(self.disk.block_size / SECTOR)
    }

    fn writable(&self, lba: u64) -> Result<u64, Reject> {
        if self.disk.read_only { Err(Reject::Invalid("the device is read-only")) } else { Ok(lba) }
    }

    fn in_range(&self, lba: u64, blocks: u64) -> Result<u64, Reject> {
        match lba.checked_add(blocks) {
            Some(end) if end <= self.disk.blocks => Ok(lba),
            _ => Err(Reject::Invalid("blocks past the device's end")),
        }
    }

    /// The pieces of a request's data.
    #[inline(always)]
    fn describe(&mut self, lba: u64, data: &Data) -> Result<u64, Reject> {
        let bytes = data.len();
        if bytes == 0 {
            return Err(Reject::Invalid("there is no data to transfer"));
        }
        if bytes & u64::from(self.disk.block_size - 1) != 0 {
            return Err(Reject::Invalid("the data is no multiple of the device's block size"));
        }
        self.in_range(lba, bytes / u64::from(self.disk.block_size))?;
        for buf in data.bufs().iter().filter(|buf| !buf.is_empty()) {
            let iova = self.life.iova(buf);
            let mut iova = iova.ok_or(Reject::Invalid("the buffer's arena is not attached: see `Blk::attach`"))?;
            let mut left = buf.len();
            while left > 0 {
                let len = left.min(self.disk.max_segment);
                if self.pieces.len() > self.disk.max_segments as usize {
                    return Err(Reject::Invalid("the data is in more pieces than the device takes: cut it"));
                }
                self.pieces.push(Segment { iova, len });
                iova += u64::from(len);
                left -= len;
            }
        }
        Ok(lba)
    }

    /// A range of blocks without data (5.2.6): sector, number of sectors, flags. Returns what the header's sector is: 0.
    fn range(&mut self, slot: u16, lba: u64, blocks: u32, most: u32) -> Result<u64, Reject> {
        self.writable(lba)?;
        if blocks == 0 {
            return Err(Reject::Invalid("there are no blocks to act on"));
        }
        self.in_range(lba, blocks.into())?;
        if most == 0 {
            return Err(Reject::Invalid("the device does not have this operation"));
        }
        if blocks > most {
            return Err(Reject::Invalid("more blocks than the device takes in one request: cut it"));
        }
        let words = self.words.at(slot.into());
        let sectors = self.sectors();
        // Relaxed: the ring publishes them. No flags: blocks that are zeroed are kept.
        words[2].store((lba * sectors).to_le(), Ordering::Relaxed);
        words[3].store((u64::from(blocks) * sectors).to_le(), Ordering::Relaxed);
        let iova = self.iova + SLOT * u64::from(slot) + u64::from(HEADER);
        self.pieces.push(Segment { iova, len: RANGE });
        Ok(0)
    }

    #[inline]
    pub fn announce(&mut self) {
        if self.life.is_open() && self.ring.publish() {
            self.bell.ring(self.life.index());
        }
    }

    #[inline]
    pub fn poll_each(&mut self, max: usize, mut done: impl FnMut(Completion)) -> usize {
        if !self.life.is_open() {
            return self.poll_closed(max, &mut done);
        }
        let mut count = 0;
        while count < max {
            match self.ring.take() {
                Ok(None) => break,
                Ok(Some(used)) => match self.finish(used.id) {
                    Ok(Some(completion)) => {
                        count += 1;
                        done(completion);
                    }
                    Ok(None) => {}
                    Err(fault) => {
                        self.life.break_down(fault);
                        return count;
                    }
                },
                Err(fault) => {
                    self.life.break_down(fault);
                    return count;
                }
            }
        }
        self.polls = self.polls.wrapping_add(1);
        if self.polls.is_multiple_of(POLLS) {
            self.check_timeouts_at(Instant::now());
        }
        count
    }

    /// The request that the ring's buffer `id` was; `None` where nobody waits for it.
    #[inline(always)]
    fn finish(&mut self, id: u16) -> Result<Option<Completion>, Fault> {
        let unknown = Fault::NotInFlight { id: id.into() };
        let at = *self.by_id.get(usize::from(id)).ok_or(unknown)?;
        let slot = self.slots.get_mut(usize::from(at)).filter(|slot| slot.busy).ok_or(unknown)?;
        slot.busy = false;
        let code = self.status.at(at.into()).load(Ordering::Relaxed);
        let status = if code == OK { Status::Ok } else { Status::Device(code.into()) };
        // There is room: as many as slots.
        self.free.push(at);
        let completion = Completion { tag: slot.tag, status, data: std::mem::take(&mut slot.data) };
        Ok((!slot.orphan).then_some(completion))
    }

    /// Nobody waits for what is in flight any more.
    pub fn disown(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.orphan = true);
    }

    /// Looks for requests that took too long. There is no abort in virtio: the device is reset.
    #[cold]
    pub fn check_timeouts_at(&mut self, now: Instant) {
        if now < self.next_look || self.in_flight() == 0 {
            return;
        }
        self.next_look = now + LOOK;
        let timeout = self.life.timeout();
        let late = self.slots.iter_mut().filter(|slot| slot.busy).any(|slot| {
            let seen = *slot.seen.get_or_insert(now);
            now - seen >= timeout || slot.deadline.is_some_and(|deadline| now >= deadline)
        });
        if late {
            let device = self.life.device();
            self.life.report_fault(Error::Unanswered { device, what: "complete a request", waited: timeout });
        }
    }

    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn doorbells(&self) -> DoorbellCounts {
        self.bell.counts()
    }

    pub fn state(&self) -> QueueState {
        self.life.state()
    }

    pub fn wakeup(&self) -> Option<Arc<EventFd>> {
        self.vector.clone()
    }

    pub fn arm(&mut self) -> Armed {
        if self.vector.is_none() || !self.life.is_open() {
            return Armed::No;
        }
        self.ring.set_interrupt(true);
        match self.in_flight() {
            0 => Armed::Yes,
            // To look for requests that take too long.
            _ => Armed::Until(Instant::now() + self.life.timeout().min(Duration::from_secs(1))),
        }
    }

    pub fn disarm(&mut self) {
        if self.life.is_open() {
            self.ring.set_interrupt(false);
            self.check_timeouts_at(Instant::now());
        }
    }

    /// Why a queue that does not run takes nothing.
    #[cold]
    fn closed(&mut self) -> Reject {
        // With nothing in flight, nothing has to be given back before it starts over.
        if self.life.step(self.ring.has_taken()) == Some(Step::Restart) && self.in_flight() == 0 {
            self.restart();
        }
        match self.life.state() {
            QueueState::Running | QueueState::Resetting => Reject::Resetting,
            QueueState::Failed(_) | QueueState::Gone => Reject::Gone,
        }
    }

    fn restart(&mut self) {
        self.free.clear();
        self.free.extend((0..self.slots.len() as u16).rev());
        self.ring.restart();
        self.life.enter();
    }

    /// A turn of a queue that does not run: what is in flight is given back once the device cannot write it any more.
    #[cold]
    fn poll_closed(&mut self, max: usize, done: &mut dyn FnMut(Completion)) -> usize {
        match self.life.step(self.ring.has_taken()) {
            None | Some(Step::Stop) => 0,
            Some(Step::Abort) => self.drain(max, Status::Aborted, false, done),
            Some(Step::Restart) => {
                let count = self.drain(max, Status::Aborted, false, done);
                if self.in_flight() == 0 {
                    self.restart();
                }
                count
            }
            Some(Step::Expelled) => self.drain(max, Status::Aborted, true, done),
            Some(Step::Ended(end)) => {
                let status = if end.gone { Status::Gone } else { Status::Aborted };
                self.drain(max, status, !end.harmless, done)
            }
        }
    }

    /// Gives back at most `max` requests that were in flight; or quarantines their buffers.
    fn drain(&mut self, max: usize, status: Status, quarantine: bool, done: &mut dyn FnMut(Completion)) -> usize {
        let mut count = 0;
        for (at, slot) in (0..).zip(self.slots.iter_mut()).filter(|(_, slot)| slot.busy).take(max) {
            slot.busy = false;
            let mut data = std::mem::take(&mut slot.data);
            if quarantine {
                self.life.quarantined(std::mem::take(&mut data).quarantine());
            }
            self.free.push(at);
            if !slot.orphan {
                count += 1;
                done(Completion { tag: slot.tag, status, data });
            }
        }
        count
    }
}

impl<R: Ring> Parked for Channel<R> {
    fn check_timeouts(&mut self) {
        // What nobody waits for any more is dropped.
        self.poll_each(usize::MAX, drop);
    }
}

impl<R> Drop for Channel<R> {
    fn drop(&mut self) {
        if !self.life.is_harmless() {
            for slot in self.slots.iter_mut() {
                self.life.quarantined(std::mem::take(&mut slot.data).quarantine());
            }
        }
    }
}

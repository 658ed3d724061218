//! One virtqueue of a block device (VIRTIO 1.2, 5.2.6): a request is a header, its data, and a status byte.
//!
//! Each request in flight has a slot: who owns its buffers, and 64 bytes of DMA memory for header and status. Nothing here locks, allocates or calls
//! the kernel while the queue runs and its requests are small; what isn't hot is next door: requests that take more than one of the
//! device's ([`parts`]), and resets, timeouts, the end ([`recover`]).

mod parts;
mod recover;

use super::config::{Geometry, SECTOR};
use super::cut::MAX_BYTES;
use crate::device::Parked;
use crate::error::Fault;
use crate::life::Life;
use crate::ring::{Ring, Segment};
use parts::Waiting;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use wholebar_core::bar::{Doorbell, DoorbellCounts};
use wholebar_core::block::{Completion, Data, Op, QueueState, Reject, Rejected, Request, Status};
use wholebar_core::irq::EventFd;
use wholebar_core::mem::{Chunk, DmaRing, Field};
use wholebar_core::reactor::Armed;

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
/// Pieces of memory of a request at most.
pub(super) const MAX_PIECES: usize = 254;

struct Slot {
    state: State,
    /// Nobody waits for its request any more: who had the queue dropped it.
    orphan: bool,
    /// For a part, the slot that has the request.
    head: u16,
    /// Parts in flight, for a request in parts.
    left: u16,
    /// The first status of a part that is none of success.
    code: u8,
    /// When it was first seen in flight; the clock isn't read when requests are posted.
    seen: Option<Instant>,
    deadline: Option<Instant>,
    tag: u64,
    data: Data,
}

/// What becomes of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    /// In flight: all of a request.
    Whole,
    /// In flight: a part of a request. The first has the request.
    Part,
    /// The first part, done, while others aren't.
    Done,
}

impl Slot {
    /// The request's completion; its data goes with it.
    #[inline(always)]
    fn finish(&mut self, status: Status) -> Completion {
        Completion { tag: self.tag, status, data: std::mem::take(&mut self.data) }
    }

    /// Whether it has a request.
    fn has_request(&self, at: u16) -> bool {
        match self.state {
            State::Whole | State::Done => true,
            State::Part => self.head == at,
            State::Free => false,
        }
    }
}

/// The status byte as the framework has it.
#[inline(always)]
fn status(code: u8) -> Status {
    if code == OK { Status::Ok } else { Status::Device(code.into()) }
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
    /// Requests that are not all in flight.
    waiting: Vec<Waiting>,
    /// It was reset alone: what was in flight then is given back before it goes on.
    reset_alone: bool,
    /// It was, and has completed nothing since unless its ring says so.
    in_vain: bool,
    polls: u32,
    next_check: Instant,
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
        let slot = |_| Slot {
            state: State::Free,
            orphan: false,
            head: 0,
            left: 0,
            code: OK,
            seen: None,
            deadline: None,
            tag: 0,
            data: Data::None,
        };
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
            waiting: Vec::new(),
            reset_alone: false,
            in_vain: false,
            polls: 0,
            next_check: Instant::now(),
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
            Ok(Some(slot)) => {
                if let Some(slot) = self.slots.get_mut(usize::from(slot)) {
                    (slot.state, slot.orphan, slot.seen) = (State::Whole, false, None);
                    (slot.deadline, slot.tag) = (req.deadline, req.tag);
                    // A free slot holds no data, so there is nothing to drop.
                    std::mem::forget(std::mem::replace(&mut slot.data, req.data));
                }
                Ok(())
            }
            Ok(None) => self.submit_in_parts(req),
            Err(why) => Err(Rejected { req, why }),
        }
    }

    /// Posts a request; returns the slot that is to have it, and none where the device takes it in several parts only.
    #[inline(always)]
    fn post(&mut self, req: &Request) -> Result<Option<u16>, Reject> {
        if req.nsid != 1 {
            return Err(Reject::Invalid("a virtio block device has one namespace, number 1"));
        }
        // What waits comes first: else it might wait for ever.
        let Some(&slot) = self.free.last().filter(|_| self.waiting.is_empty()) else { return Err(Reject::Full) };
        self.begin(slot);
        let (kind, lba) = match req.op {
            Op::Read { lba } => (IN, lba),
            Op::Write { lba } => (OUT, self.writable(lba)?),
            op => match self.without_data(slot, op, &req.data)? {
                Some(kind) => (kind, 0),
                None => return Ok(None),
            },
        };
        if matches!(kind, IN | OUT) && !self.describe(lba, &req.data)? {
            return Ok(None);
        }
        self.launch(slot, kind, lba).then_some(Some(slot)).ok_or(Reject::Full)
    }

    /// Begins to describe a request whose header is that of `slot`.
    #[inline(always)]
    fn begin(&mut self, slot: u16) {
        self.pieces.clear();
        self.pieces.push(Segment { iova: self.iova + SLOT * u64::from(slot), len: HEADER });
    }

    /// Posts what was described, with the first free slot, which is `slot`. False, and nothing, without room.
    #[inline(always)]
    fn launch(&mut self, slot: u16, kind: u32, lba: u64) -> bool {
        let readable = if kind == IN { 1 } else { self.pieces.len() };
        self.pieces.push(Segment { iova: self.iova + SLOT * u64::from(slot) + STATUS_AT as u64, len: 1 });
        if self.ring.descriptors(self.pieces.len()) > usize::from(self.ring.free()) {
            return false;
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
        true
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

    /// The pieces of a request's data; false where it is too much for one request.
    #[inline(always)]
    fn describe(&mut self, lba: u64, data: &Data) -> Result<bool, Reject> {
        let bytes = data.len();
        if bytes.wrapping_sub(1) >= MAX_BYTES {
            return if bytes > 0 { Ok(false) } else { Err(Reject::Invalid("there is no data to transfer")) };
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
                    return Ok(false);
                }
                self.pieces.push(Segment { iova, len });
                iova += u64::from(len);
                left -= len;
            }
        }
        Ok(true)
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
        if !self.waiting.is_empty() {
            self.post_waiting();
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
        let slot = self.slots.get_mut(usize::from(at)).ok_or(unknown)?;
        let code = self.status.at(at.into()).load(Ordering::Relaxed);
        if slot.state != State::Whole {
            return self.finish_part(at, code).ok_or(unknown);
        }
        slot.state = State::Free;
        // There is room: as many as slots.
        self.free.push(at);
        Ok(Some(slot.finish(status(code))))
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
}

impl<R: Ring> Parked for Channel<R> {
    fn is_lost(&self) -> bool {
        self.life.is_lost()
    }

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

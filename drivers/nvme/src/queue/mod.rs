//! An I/O queue pair, owned by one core: post, ring, poll.
//!
//! The command identifier is the index of a slot, which owns the request's buffers while the command is in flight. What completes is checked against
//! the slots before anything is believed. Nothing here locks, allocates or calls the kernel while the queue runs and its requests are
//! small; what isn't hot is next door: requests that take more than one command ([`build`]), and resets, timeouts, the end ([`recover`]).

mod build;
mod placement;
mod protected;
mod ranges;
mod raw;
mod recover;
mod reservations;
mod slot;
mod wakeup;
mod zones;

pub use ranges::{BlockRange, DatasetAttributes};

use crate::bounce::Bounce;
use crate::cmb::Part;
use crate::command::{Command, DataPointer, io};
use crate::control::QueueFault;
use crate::device::{Handle, Inner, Parts};
use crate::error::Fault;
use crate::identify::CopyLimits;
use crate::protection::{GuardFormat, Layout, ProtectionError};
use crate::prp::{Segment, two_pages};
use crate::quirks::{ADMIN_TAGS, Quirk};
use crate::ring::QueuePair;
use crate::split::Piece;
use build::Unposted;
use protected::HostCheck;
use slot::Slots;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use wakeup::Wakeup;
use wholebar_core::bar::DoorbellCounts;
use wholebar_core::block::{BlockQueue, Completion, Data, Op, QueueState, Rejected, Request, Status};
use wholebar_core::irq::EventFd;
use wholebar_core::mem::{DmaMapping, DmaRing, Iova};
use wholebar_core::reactor::Armed;
use wholebar_core::reset::Gate;

/// A submission and a completion queue, owned by one core. (SPDK: `spdk_nvme_qpair`.)
///
/// It is a [`BlockQueue`](wholebar_core::block::BlockQueue), by which programs use it that take any driver's queues. Its own methods have what that trait has not:
/// a poll without a virtual call ([`poll_each`](Self::poll_each)), metadata and protection information, zones, placement, commands of the program's making.
///
/// ```no_run
/// # fn queue() -> wholebar_nvme::Queue { unimplemented!() }
/// # fn pool() -> wholebar_core::mem::Pool { unimplemented!() }
/// use wholebar_core::block::{Data, Op, Request};
///
/// let (mut queue, pool) = (queue(), pool());
/// // As many reads as the pool has buffers and the queue has room for, and one doorbell for all of them.
/// let mut lba = 0;
/// while let Some(buf) = pool.get_len(4096) {
///     let read = Request { tag: lba, nsid: 1, op: Op::Read { lba }, data: Data::One(buf), deadline: None };
///     if queue.submit(read).is_err() {
///         break;
///     }
///     lba += 8;
/// }
/// queue.ring();
/// while queue.in_flight() > 0 {
///     queue.poll_each(32, |done| println!("block {}: {:?}", done.tag, done.status));
/// }
/// ```
///
/// [`submit`](Self::submit), [`ring`](Self::ring) and [`poll_each`](Self::poll_each) take no lock, except to look up an arena that is new to the
/// queue or to report a fault. Dropping the queue deletes it; commands in flight end with it.
pub struct Queue {
    gate: Gate,
    pair: QueuePair,
    slots: Slots,
    /// The namespace used last.
    ns: Limits,
    /// The arena used last, and where it is as the controller sees it.
    arena: u32,
    base: u64,
    /// The controller's page size less one, in bytes.
    page_mask: u64,
    /// How many polls until it is looked after.
    polls_to_check: u32,
    /// Polls of a completion queue in the controller's memory.
    far_polls: u32,

    qid: u16,
    pub(crate) inner: Arc<Handle>,
    /// The namespaces, as they were at a generation of the controller's list.
    namespaces: Box<[Limits]>,
    generation: u64,
    /// The arenas used so far: mapped while this queue is there.
    arenas: Vec<Arc<DmaMapping>>,
    /// A list of its own for each slot: PRP entries, SGL descriptors, ranges.
    lists: DmaRing<AtomicU64>,
    lists_iova: u64,
    list_words: u32,
    /// Where the controller has the submission queue, if that is not where this writes it.
    elsewhere: Option<u64>,
    /// PRP and SGL lists of commands that move blocks, where they lie in the controller's memory.
    controller_lists: Option<Part>,
    /// Where the data of commands is that say themselves how much there is.
    bounce: Option<Bounce>,
    /// Room to cut requests in, kept between them.
    segments: Vec<Segment>,
    pieces: Vec<Piece>,
    /// Requests that have not all of their commands in flight.
    unposted: Vec<Unposted>,
    /// A poll posted some of these.
    announce: bool,
    /// Dwords 0 and 1 of the completion of the last request that is not told by its status alone; shared with who is told of that while the queue polls.
    result: Arc<AtomicU64>,
    /// Some namespace that it was used for has metadata: all entries are written whole, or one would have words of another.
    whole_entries: bool,
    /// Reads whose protection information is checked here, and what was found wrong last.
    checks: Vec<HostCheck>,
    protection_error: Option<ProtectionError>,
    /// Wakes who sleeps until something completes.
    wakeup: Option<Wakeup>,
    /// Aborts that were asked for, and how many are done with.
    aborts_asked: u64,
    aborts_done: Arc<AtomicU64>,
    started: Instant,
    next_check: Instant,
    fault: Option<Fault>,
}

/// A namespace, as far as each command has to know it.
#[derive(Clone, Copy)]
struct Limits {
    nsid: u32,
    /// Bytes of a block, as a power of two.
    shift: u32,
    /// Bytes of one command at most: whole blocks.
    max_len: u32,
    blocks: u64,
    /// Any command that begins below this ends within the namespace.
    starts: u64,
    /// The bits of a length that are not whole blocks.
    in_block: u32,
    /// Bits of an LBA that may not change within a command, where the I/O boundary is a power of two, or there is none.
    fixed: u64,
    boundary: u32,
    copy: CopyLimits,
    /// How blocks lie in buffers.
    layout: Layout,
    /// Blocks of a zone; 0 without zones.
    zone_size: u64,
}

/// No request is within it.
const NO_NAMESPACE: Limits = Limits {
    nsid: 0,
    shift: 9,
    max_len: 0,
    blocks: 0,
    starts: 0,
    in_block: 511,
    fixed: 0,
    boundary: 0,
    copy: CopyLimits { ranges: 0, range_blocks: 0, blocks: 0 },
    layout: Layout {
        block: 512,
        metadata: 0,
        extended: false,
        protection: None,
        guards: GuardFormat::Bits16,
        storage_tag: 0,
        storage_tag_mask: 0,
        first: false,
    },
    zone_size: 0,
};

/// The clock is looked at once in so many polls.
const POLLS: u32 = 1024;
/// The status of a command that was aborted since it took too long, or of a request that was given up between two of its commands: none that a controller can have, whose statuses have 15 bits.
const GIVEN_UP: u16 = u16::MAX;
/// "Command Abort Requested" (NVM Express Base 2.0, 3.3.3.2.1.1), of type 0.
const ABORT_REQUESTED: u16 = 0x07;

impl Queue {
    pub(crate) fn new(inner: Arc<Handle>, parts: Parts) -> Self {
        let Parts { qid, gate, pair, lists, lists_iova, list_words, elsewhere, controller_lists, vector, aborts } =
            parts;
        let reserved = if inner.driver().hw.has(Quirk::SharedTags) { ADMIN_TAGS } else { 0 };
        let wakeup = vector.and_then(|vector| Wakeup::new(inner.queue_context(), vector));
        let generation = inner.driver().namespaces.generation();
        let namespaces = limits(inner.driver());
        let polls_to_check = if pair.rings().far_completions().is_some() { 1 } else { POLLS };
        let now = Instant::now();
        Self {
            gate,
            slots: Slots::new(pair.entries() - 1, reserved),
            pair,
            ns: namespaces.first().copied().unwrap_or(NO_NAMESPACE),
            arena: u32::MAX,
            base: 0,
            page_mask: inner.driver().hw.page - 1,
            polls_to_check,
            far_polls: 0,
            qid,
            inner,
            namespaces,
            generation,
            arenas: Vec::new(),
            lists,
            lists_iova,
            list_words,
            elsewhere,
            controller_lists,
            bounce: None,
            segments: Vec::new(),
            pieces: Vec::new(),
            unposted: Vec::new(),
            announce: false,
            result: Arc::new(AtomicU64::new(0)),
            whole_entries: false,
            checks: Vec::new(),
            protection_error: None,
            wakeup,
            aborts_asked: 0,
            aborts_done: aborts,
            started: now,
            next_check: now,
            fault: None,
        }
    }

    /// Posts a request; [`ring`](Self::ring) announces it to the controller. (libvfn: `nvme_sq_post`.)
    ///
    /// A request larger than one command is split. Where the queue has no room for all of its commands, polls that find some complete post and
    /// announce the rest.
    ///
    /// # Errors
    /// [`Rejected`], with the request and the reason.
    #[inline]
    pub fn submit(&mut self, req: Request) -> Result<(), Rejected> {
        // What is most frequent: one buffer, one command, at most two PRP entries, the namespace and arena of the last one. What isn't
        // that, or is wrong, is found out elsewhere.
        let (opcode, lba) = match req.op {
            Op::Read { lba } => (io::READ, lba),
            Op::Write { lba } => (io::WRITE, lba),
            _ => return self.submit_any(req),
        };
        let Data::One(buf) = &req.data else { return self.submit_any(req) };
        let (len, ns) = (buf.len(), &self.ns);
        let blocks = len >> ns.shift;
        let last = lba.wrapping_add(u64::from(blocks.wrapping_sub(1)));
        let Some((prp1, prp2)) = two_pages(self.base.wrapping_add(buf.arena_offset()), len, self.page_mask) else {
            return self.submit_any(req);
        };
        let simple = self.gate.open()
            && req.nsid == ns.nsid
            && buf.arena_id() == self.arena
            && len.wrapping_sub(1) < ns.max_len
            && len & ns.in_block == 0
            && lba < ns.starts
            && (lba ^ last) & ns.fixed == 0;
        if !simple {
            return self.submit_any(req);
        }
        let Some((cid, slot)) = self.slots.claim() else { return self.submit_any(req) };
        let command = Command::on_blocks(opcode, req.nsid, DataPointer::prp(prp1, prp2), lba, blocks);
        slot.fill(req, self.pair.tail());
        self.pair.post(command.words(cid));
        Ok(())
    }

    /// Announces every command posted since the last call: one doorbell. (libvfn: `nvme_sq_update_tail`.)
    #[inline]
    pub fn ring(&mut self) {
        if self.gate.open() {
            self.pair.ring();
        }
    }

    /// Takes at most `max` finished requests, passes each to `done`, and returns their number. One doorbell a call that found some. (SPDK:
    /// `spdk_nvme_qpair_process_completions`.)
    #[inline]
    pub fn poll_each(&mut self, max: usize, mut done: impl FnMut(Completion)) -> usize {
        if !self.gate.open() {
            return self.poll_closed(max, &mut done);
        }
        let mut count = 0;
        while count < max
            && let Some(entry) = self.pair.take()
        {
            if let Err(fault) = self.pair.check(entry) {
                self.break_down(fault);
                return count;
            }
            let cid = entry.cid();
            match self.slots.end_whole(cid, |posted| self.pair.fetched(posted)) {
                Some(slot) => {
                    count += 1;
                    done(slot.finish(status(entry.status())));
                }
                None => match self.complete_any(cid, entry.status()) {
                    Ok(None) => {}
                    Ok(Some(completion)) => {
                        count += 1;
                        done(completion);
                    }
                    Err(fault) => {
                        self.break_down(fault);
                        return count;
                    }
                },
            }
        }
        self.pair.acknowledge();
        self.polls_to_check -= 1;
        if self.polls_to_check == 0 {
            self.check_timeouts_now_and_then();
        }
        count
    }

    /// Takes finished requests as [`poll_each`](Self::poll_each) does, and passes what their completions have to tell beside their status (dwords 0 and 1): of
    /// an [append](Self::submit_append) that succeeded, the block at which its data is. Of other requests it says nothing.
    pub fn poll_results(&mut self, max: usize, mut done: impl FnMut(Completion, u64)) -> usize {
        let result = self.result.clone();
        // Relaxed: this thread stored it, just before.
        self.poll_each(max, |completion| done(completion, result.load(Ordering::Relaxed)))
    }

    /// What is not done in every poll.
    #[cold]
    fn check_timeouts_now_and_then(&mut self) {
        self.polls_to_check = POLLS;
        if std::mem::take(&mut self.announce) {
            self.ring();
        }
        // A completion queue in the controller's memory is looked at in each poll, for the next one.
        if self.pair.fetch_completions() {
            self.polls_to_check = 1;
            self.far_polls = self.far_polls.wrapping_add(1);
            if !self.far_polls.is_multiple_of(POLLS) {
                return;
            }
        }
        self.refresh_namespaces();
        self.check_timeouts();
    }

    /// Checks the deadlines of commands in flight: overdue ones are aborted, and at last the controller is reset. Polling does this once in a while;
    /// a program that sleeps instead calls it when it wakes.
    pub fn check_timeouts(&mut self) {
        self.check_timeouts_at(Instant::now());
    }

    /// Returns whether the queue can be used.
    pub fn state(&self) -> QueueState {
        self.state_now()
    }

    /// Returns the number of commands in flight. Of a request that was split, each command counts.
    pub fn in_flight(&self) -> usize {
        self.slots.in_use() as usize
    }

    /// Returns the largest number of commands that can be in flight.
    pub fn capacity(&self) -> usize {
        self.slots.capacity() as usize
    }

    /// Returns the queue's identifier.
    pub fn id(&self) -> u16 {
        self.qid
    }

    /// Returns how often the doorbells of both queues were rung.
    pub fn doorbells(&self) -> DoorbellCounts {
        let (sq, cq) = self.pair.bells();
        let mut counts = sq.counts();
        counts += cq.counts();
        counts
    }

    /// Returns how often the shadow doorbells were written; 0 without them.
    pub fn shadow_updates(&self) -> u64 {
        let (sq, cq) = self.pair.bells();
        sq.shadow_updates() + cq.shadow_updates()
    }

    /// Returns the addresses of the submission and the completion queue, as the controller sees them.
    pub fn rings(&self) -> (Iova, Iova) {
        let rings = self.pair.rings();
        let (sq, cq) = rings.offsets();
        // The lists are in the same arena.
        let base = Iova(self.lists_iova.wrapping_sub(self.lists.chunk().offset()));
        (self.elsewhere.map_or(base.offset(sq), Iova), rings.far_completions().map_or(base.offset(cq), Iova))
    }

    /// The completion queue holds what the controller may not write there: hands off, until it was reset.
    #[cold]
    fn break_down(&mut self, fault: Fault) {
        tracing::debug!(%fault, "a queue is broken");
        self.fault = Some(fault);
        if let Some(epoch) = self.gate.epoch() {
            self.inner.queue_context().report_fault(epoch, QueueFault::Broken(fault));
        }
        self.gate.close();
    }
}

/// The namespaces that can be used.
fn limits(inner: &Inner) -> Box<[Limits]> {
    let max = inner.max_transfer();
    let list = inner.namespaces.list();
    let usable = list.iter().filter(|n| n.unsupported.is_none() && n.block_size <= max);
    usable
        .map(|n| {
            let shift = n.block_size.trailing_zeros();
            let zone_size = n.zoned.map_or(0, |zoned| zoned.zone_size);
            // A zone's end is one that commands do not cross; one that is this far away they do not reach.
            let boundary = if zone_size > 0 { u32::try_from(zone_size).unwrap_or(0) } else { n.io_boundary.into() };
            let fixed = match boundary {
                0 => 0,
                b if b.is_power_of_two() => !(u64::from(b) - 1),
                // No mask tells: only what is one block is known to be within.
                _ => u64::MAX,
            };
            // NLB has 16 bits, 0's based (NVM Command Set 1.0, 3.2.4).
            let max_blocks = (max >> shift).min(65536);
            Limits {
                nsid: n.nsid,
                shift,
                max_len: max_blocks << shift,
                blocks: n.blocks,
                // Commands on blocks with metadata have more to say than those of the short way.
                starts: if n.metadata_size > 0 { 0 } else { (n.blocks + 1).saturating_sub(max_blocks.into()) },
                in_block: n.block_size - 1,
                fixed,
                boundary,
                copy: n.copy,
                layout: n.layout(),
                zone_size,
            }
        })
        .collect()
}

/// The status field as the framework has it.
#[inline(always)]
fn status(code: u16) -> Status {
    // Status type and code; the rest is advice for failures.
    if code & 0x7ff == 0 { Status::Ok } else { Status::Device(code) }
}

/// How a request ends that took several commands.
fn status_of_parts(code: u16) -> Status {
    if code == GIVEN_UP { Status::Aborted } else { status(code) }
}

impl BlockQueue for Queue {
    fn submit(&mut self, req: Request) -> Result<(), Rejected> {
        Queue::submit(self, req)
    }

    fn ring(&mut self) {
        Queue::ring(self);
    }

    fn poll(&mut self, max: usize, done: &mut dyn FnMut(Completion)) -> usize {
        self.poll_each(max, done)
    }

    fn state(&self) -> QueueState {
        self.state_now()
    }

    fn in_flight(&self) -> usize {
        Queue::in_flight(self)
    }

    fn doorbells(&self) -> Option<DoorbellCounts> {
        Some(Queue::doorbells(self))
    }

    fn wakeup(&self) -> Option<Arc<EventFd>> {
        Queue::wakeup(self)
    }

    fn arm(&mut self) -> Armed {
        Queue::arm(self)
    }

    fn disarm(&mut self) {
        Queue::disarm(self);
    }
}

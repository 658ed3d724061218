//! Queues of disks that are reached through the kernel: requests become those of a [`Uring`], and what the kernel did by halves is continued.

use super::{IoMode, Shared};
use rustix::io::Errno;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wholebar_core::bar::DoorbellCounts;
use wholebar_core::block::{BlockQueue, Completion, Data, Op, QueueState, Reject, Rejected, Request, Status};
use wholebar_core::irq::EventFd;
use wholebar_core::kernel::{Completed, Full, NVME_STATUS, Operation, Uring};
use wholebar_core::reactor::Armed;

/// The code of a read that met the end of a file, or a write that wrote nothing: no error number of the kernel's is as large.
pub(super) const SHORT: u16 = 0x8000;
/// How many polls go by before deadlines are looked at.
const POLLS: u32 = 64;
/// The longest sleep while requests with deadlines are in flight.
const NAP: Duration = Duration::from_secs(1);

/// A queue of a [`KernelDisk`](super::KernelDisk), owned by one core: a ring of its own.
///
/// Dropping it waits for requests in flight, five seconds at most.
pub struct Queue {
    ring: Uring<InFlight>,
    /// Where reads and writes are looked for at the device: a ring for everything else, of which the kernel tells by itself.
    other: Option<Uring<InFlight>>,
    /// After the rings: what is in flight ends with them.
    seat: Seat,
    /// The kernel is to be told of something for which nobody is going to ring.
    again: bool,
    /// Requests in flight that have a deadline.
    deadlines: usize,
    polls: u32,
    failed: Option<String>,
    /// Signalled by each completion.
    wakeup: Option<Arc<EventFd>>,
}

/// What a queue is to its disk.
struct Seat {
    shared: Arc<Shared>,
    /// The ids of the arenas that the queue uses.
    arenas: Vec<u32>,
}

/// A request that the kernel has.
#[derive(Debug)]
pub(super) struct InFlight {
    tag: u64,
    operation: Operation,
    /// Bytes that are to be transferred.
    len: u64,
    /// Bytes that were, before.
    done: u64,
    deadline: Option<Instant>,
}

impl Queue {
    pub(super) fn new(
        shared: Arc<Shared>,
        ring: Uring<InFlight>,
        other: Option<Uring<InFlight>>,
        wakeup: Option<Arc<EventFd>>,
    ) -> Self {
        let seat = Seat { shared, arenas: Vec::new() };
        Self { ring, other, seat, again: false, deadlines: 0, polls: 0, failed: None, wakeup }
    }

    /// What the kernel is asked for, and how many bytes are to be transferred.
    fn operation(&mut self, req: &Request) -> Result<(Operation, u64), &'static str> {
        let geometry = &self.seat.shared.geometry;
        let ranges = geometry.mode != IoMode::Passthrough;
        let block = u64::from(geometry.block_size);
        let writes = matches!(req.op, Op::Write { .. } | Op::WriteZeroes { .. } | Op::Deallocate { .. });
        if req.nsid != 1 {
            return Err("the disk has one namespace, number 1");
        }
        if writes && geometry.read_only.is_some() {
            return Err("the disk was opened to be read only");
        }
        let range = |lba: u64, blocks: u64| match lba.checked_add(blocks) {
            _ if blocks == 0 => Err("it is of no blocks"),
            // In bytes it fits then, since the file's length does.
            Some(end) if end <= geometry.blocks => Ok((lba * block, blocks * block)),
            _ => Err("its blocks are behind the end of the disk"),
        };
        match req.op {
            Op::Read { lba } | Op::Write { lba } => {
                let len = req.data.len();
                if !len.is_multiple_of(block) {
                    return Err("its data are not whole blocks");
                }
                if len > geometry.max_transfer.map_or(super::MAX_TRANSFER, u64::from) {
                    return Err("its data are more than the disk takes at once");
                }
                let (offset, len) = range(lba, len / block)?;
                self.check_buffers(&req.data)?;
                let operation = match writes {
                    true => Operation::Write { offset, skip: 0 },
                    false => Operation::Read { offset, skip: 0 },
                };
                Ok((operation, len))
            }
            _ if !req.data.is_empty() => Err("it takes no data"),
            Op::Flush => Ok((Operation::Fsync, 0)),
            Op::WriteZeroes { .. } | Op::Deallocate { .. } if !ranges => Err("the disk has no such request"),
            Op::WriteZeroes { lba, blocks } => {
                range(lba, blocks.into()).map(|(offset, len)| (Operation::ZeroRange { offset, len }, 0))
            }
            Op::Deallocate { lba, blocks } => {
                range(lba, blocks.into()).map(|(offset, len)| (Operation::PunchHole { offset, len }, 0))
            }
            Op::Compare { .. } | Op::Verify { .. } => Err("the kernel has no such request"),
        }
    }

    /// Whether buffers are of arenas that were attached, and where `O_DIRECT` wants them.
    fn check_buffers(&mut self, data: &Data) -> Result<(), &'static str> {
        let align = u64::from(self.seat.shared.geometry.memory_align);
        for buf in data.bufs() {
            if !self.seat.arenas.contains(&buf.arena_id()) {
                let arena = self.seat.shared.join(buf.arena_id()).ok_or("a buffer's arena is not attached")?;
                self.seat.arenas.push(buf.arena_id());
                if let Err(why) = self.ring.register(arena) {
                    tracing::debug!(%why, "an arena is not registered: each request pins its own pages");
                }
            }
            // Arenas begin at a page.
            if !buf.arena_offset().is_multiple_of(align) || !u64::from(buf.len()).is_multiple_of(align) {
                return Err(
                    "a buffer is not aligned as O_DIRECT needs it: align the pool to blocks, or open the disk with ,cached",
                );
            }
        }
        Ok(())
    }

    /// The ring that an operation goes to.
    fn ring_of(&mut self, operation: Operation) -> &mut Uring<InFlight> {
        match (operation, &mut self.other) {
            (Operation::Read { .. } | Operation::Write { .. }, _) | (_, None) => &mut self.ring,
            (_, Some(other)) => other,
        }
    }

    fn enter(&mut self) {
        self.again = false;
        for ring in std::iter::once(&mut self.ring).chain(&mut self.other) {
            match ring.enter() {
                Ok(()) => self.again |= ring.staged() > 0,
                Err(error) if passes(&error) => self.again = true,
                Err(error) => {
                    let text = format!("{}: the kernel refuses requests: {error}", self.seat.shared.name);
                    self.failed.get_or_insert(text);
                }
            }
        }
    }

    /// What becomes of a request that the kernel has completed: `None` where there is more to do.
    pub(super) fn settle(&mut self, completed: Completed<InFlight>) -> Option<Completion> {
        let Completed { payload: mut request, result, data } = completed;
        let status = match (result, request.operation) {
            (Ok(bytes), Operation::Read { .. } | Operation::Write { .. }) => {
                request.done = request.done.saturating_add(bytes.into());
                let direct = self.seat.shared.geometry.mode == IoMode::Direct;
                if request.done >= request.len {
                    Status::Ok
                } else if bytes == 0
                    || direct && !request.done.is_multiple_of(self.seat.shared.geometry.block_size.into())
                {
                    Status::Device(SHORT)
                } else {
                    return self.go_on(request, data);
                }
            }
            (Ok(_), _) => Status::Ok,
            (Err(status @ NVME_STATUS..), _) => Status::Device(status.try_into().unwrap_or(SHORT)),
            (Err(errno), operation) => match (Errno::from_raw_os_error(errno), operation) {
                (Errno::CANCELED, _) => Status::Aborted,
                (Errno::NODEV, _) => Status::Gone,
                // A signal came in between; the device's queue was full, and nobody waits in the kernel for room there.
                (Errno::INTR | Errno::AGAIN, _) => return self.go_on(request, data),
                // A hole reads as zeros too.
                (Errno::OPNOTSUPP, Operation::ZeroRange { offset, len }) => {
                    request.operation = Operation::PunchHole { offset, len };
                    return self.go_on(request, data);
                }
                _ => Status::Device(errno.try_into().unwrap_or(SHORT)),
            },
        };
        self.deadlines -= usize::from(request.deadline.is_some());
        Some(Completion { tag: request.tag, status, data })
    }

    /// Has the kernel do what is left of a request; not of one whose time is over, which it could give back like this for ever.
    fn go_on(&mut self, request: InFlight, data: Data) -> Option<Completion> {
        let InFlight { operation, done, tag, deadline, .. } = request;
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            self.deadlines -= 1;
            return Some(Completion { tag, status: Status::Aborted, data });
        }
        let rest = match operation {
            Operation::Read { offset, .. } => Operation::Read { offset: offset.saturating_add(done), skip: done },
            Operation::Write { offset, .. } => Operation::Write { offset: offset.saturating_add(done), skip: done },
            other => other,
        };
        self.again = true;
        match self.ring_of(operation).push(rest, data, request) {
            Ok(()) => None,
            // Its own entry was free.
            Err(Full { data, payload }) => {
                self.deadlines -= usize::from(payload.deadline.is_some());
                Some(Completion { tag: payload.tag, status: Status::Aborted, data })
            }
        }
    }

    /// Gives up requests whose time is over, as far as the kernel can.
    fn check_deadlines(&mut self) {
        self.polls = self.polls.wrapping_add(1);
        if self.deadlines == 0 || !self.polls.is_multiple_of(POLLS) {
            return;
        }
        let now = Instant::now();
        for ring in std::iter::once(&mut self.ring).chain(&mut self.other) {
            ring.cancel(|request| request.deadline.is_some_and(|deadline| deadline <= now));
            self.again |= ring.staged() > 0;
        }
    }

    pub(super) fn take(&mut self) -> Option<Completed<InFlight>> {
        self.ring.take().or_else(|| self.other.as_mut()?.take())
    }
}

/// Whether what `io_uring_enter` returned passes by itself.
fn passes(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::INTR | Errno::AGAIN | Errno::BUSY))
}

impl BlockQueue for Queue {
    fn submit(&mut self, req: Request) -> Result<(), Rejected> {
        if self.failed.is_some() {
            return Err(Rejected { req, why: Reject::Gone });
        }
        let (operation, len) = match self.operation(&req) {
            Ok(what) => what,
            Err(why) => return Err(Rejected { req, why: Reject::Invalid(why) }),
        };
        let Request { tag, nsid, op, data, deadline } = req;
        let request = InFlight { tag, operation, len, done: 0, deadline };
        match self.ring_of(operation).push(operation, data, request) {
            Ok(()) => {
                self.deadlines += usize::from(deadline.is_some());
                Ok(())
            }
            Err(Full { data, .. }) => {
                Err(Rejected { req: Request { tag, nsid, op, data, deadline }, why: Reject::Full })
            }
        }
    }

    fn ring(&mut self) {
        self.enter();
    }

    fn poll(&mut self, max: usize, done: &mut dyn FnMut(Completion)) -> usize {
        self.check_deadlines();
        if self.again {
            self.enter();
        }
        let mut count = 0;
        // Once, where the kernel looks at the device only if it is told to.
        let mut poll_device_once = self.seat.shared.polls_device && self.ring.in_flight() > 0;
        while count < max {
            match self.take() {
                Some(completed) => {
                    if let Some(completion) = self.settle(completed) {
                        count += 1;
                        done(completion);
                    }
                }
                None if poll_device_once => {
                    poll_device_once = false;
                    // What it returns is told by the next `enter`, if it lasts.
                    let _ = self.ring.poll_device();
                }
                None => break,
            }
        }
        if self.again {
            self.enter();
        }
        count
    }

    fn state(&self) -> QueueState {
        self.failed.clone().map_or(QueueState::Running, QueueState::Failed)
    }

    fn in_flight(&self) -> usize {
        self.ring.in_flight() + self.other.as_ref().map_or(0, Uring::in_flight)
    }

    fn doorbells(&self) -> Option<DoorbellCounts> {
        let mut all = self.ring.doorbells();
        all += self.other.as_ref().map_or_else(DoorbellCounts::default, Uring::doorbells);
        Some(all)
    }

    fn wakeup(&self) -> Option<Arc<EventFd>> {
        self.wakeup.clone()
    }

    /// The kernel signals in any case: what it has signalled until now is taken, by a system call, and what completed before is found by the poll that follows.
    fn arm(&mut self) -> Armed {
        let Some(wakeup) = self.wakeup.as_ref().filter(|_| !self.again && self.failed.is_none()) else {
            return Armed::No;
        };
        wakeup.take();
        if self.deadlines == 0 {
            return Armed::Yes;
        }
        // The first poll after the nap looks at them.
        self.polls = POLLS - 2;
        Armed::Until(Instant::now() + NAP)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.shared.leave(&self.arenas);
    }
}

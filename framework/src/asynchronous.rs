//! Futures over a queue of a disk: each completes when its queue is polled. (The module has the feature's name as far as Rust lets it: `async` is a
//! keyword.)
//!
//! It needs no executor in particular: it is single-threaded, starts no thread and sleeps nowhere. A [`Queue`] is a
//! [`BlockQueue`] shared by the tasks of one thread. A task awaits [`Queue::read`]; the same thread calls [`Queue::poll`] again and
//! again: [`Queue::block_on`] does for one future, [`Queue::run`] does in a task of an executor. The polled queues below pay nothing for it.
//!
//! ```
//! # #[cfg(all(feature = "sim", feature = "nvme"))] {
//! use wholebar::asynchronous::{Error, Queue};
//! use wholebar::block::{self, Data, DiskConfig};
//! use wholebar::mem::{Arena, ArenaOptions, Pool};
//!
//! /// Writes a block and reads it back.
//! async fn round_trip(queue: &Queue, nsid: u32, data: Data) -> Result<Data, Error> {
//!     let data = queue.write(nsid, 7, data).await?;
//!     queue.read(nsid, 7, data).await
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let disk = block::open(wholebar::open("sim:nvme,size=64M")?, &DiskConfig::default())?;
//! let ns = disk.namespaces().into_iter().next().ok_or("no namespace can be used")?;
//! let arena = Arena::new(1 << 20, ArenaOptions::default())?;
//! disk.attach(arena.clone())?;
//! let pool = Pool::new(arena, 4, ns.block_size, ns.block_size)?;
//! let queue = Queue::new(disk.queue()?);
//! let data = Data::One(pool.get_len(ns.block_size).ok_or("no buffer is left")?);
//! let read = queue.block_on(round_trip(&queue, ns.nsid, data))?;
//! assert_eq!(read.len(), u64::from(ns.block_size));
//! # Ok(()) }
//! # main().unwrap();
//! # }
//! ```
//!
//! With tokio the queue is polled by a task of a `LocalSet`, `spawn_local(async move { queue.run().await })`, and so it is with smol's
//! `LocalExecutor`; the guide's page on the matter has both, and an executor of several tasks by hand.
//!
//! **What is in flight owns its buffers.** A future that is dropped, by a timeout or a `select!`, withdraws its request where that still waits for
//! room. Where the device knows of it, the command goes on without anybody who waits for it: its buffers stay with it until it ends, and are
//! given back to their pool in the [`poll`](Queue::poll) that finds that. A write may have been done by then, or not.
//!
//! **A full queue** needs no handling: requests for which there is no room wait here, first in, first out, and are submitted in polls. So are those that
//! come while the device is being reset.
//!
//! **Everything ends** as long as the queue is polled. What was in flight when the device was reset is [`Aborted`](Cause::Aborted); when the device
//! goes, all of it ends as [`Gone`](Cause::Gone) or, where a reset did not work, as `Aborted`, and what comes later is refused at once.

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use wholebar_core::block::{BlockQueue, Completion, Data, Op, QueueState, Reject, Rejected, Request, Status};

/// A queue of a disk, for the tasks of one thread. A clone is another handle of the same queue: a counter is incremented.
#[derive(Clone)]
pub struct Queue(Rc<RefCell<Inner>>);

struct Inner {
    queue: Box<dyn BlockQueue>,
    /// A slot for each future whose request was taken, by the tag that the queue below knows it by.
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Requests that wait for room, with the tags of their slots.
    waiting: VecDeque<Request>,
    /// Whom to wake. They are called when nothing here is borrowed: they may call back.
    ready: VecDeque<Waker>,
}

enum Slot {
    Free,
    /// In flight, or waiting for room.
    Pending {
        /// The caller's.
        tag: u64,
        waker: Waker,
    },
    /// In flight; its future was dropped.
    Detached,
    /// The future has not taken note of it yet.
    Done(Result<Completion, Box<Rejected>>),
}

impl Queue {
    /// Shares a queue between the tasks of a thread. The queue must have nothing in flight: the tags of earlier requests would be taken for those that are
    /// given here.
    pub fn new(queue: Box<dyn BlockQueue>) -> Self {
        let (slots, free, waiting, ready) = (Vec::new(), Vec::new(), VecDeque::new(), VecDeque::new());
        Self(Rc::new(RefCell::new(Inner { queue, slots, free, waiting, ready })))
    }

    /// Returns a future for any request. The future submits the request when it is first polled, and completes in a [`poll`](Self::poll) of the queue. The
    /// request's tag comes back with the completion, and need not be unique.
    ///
    /// The future's error is [`Rejected`], with the request: [`Reject::Invalid`] where it can never be done, and [`Reject::Gone`] from when the queue
    /// or its device is gone. It is never [`Full`](Reject::Full) or [`Resetting`](Reject::Resetting): then it waits.
    pub fn submit(&self, request: Request) -> Submit<'_> {
        Submit { queue: self, state: State::New(request) }
    }

    /// Reads blocks into `data`, all of which is filled, and gives it back.
    ///
    /// # Errors
    /// [`Error`], with the data, for each [`Cause`].
    pub async fn read(&self, nsid: u32, lba: u64, data: Data) -> Result<Data, Error> {
        self.execute(nsid, Op::Read { lba }, data).await
    }

    /// Writes `data` and gives it back.
    ///
    /// # Errors
    /// [`Error`], with the data, for each [`Cause`].
    pub async fn write(&self, nsid: u32, lba: u64, data: Data) -> Result<Data, Error> {
        self.execute(nsid, Op::Write { lba }, data).await
    }

    /// Makes all writes durable that were awaited before. For a namespace that has [`flush`](wholebar_core::block::Namespace::flush); with another, writes
    /// are durable when they complete.
    ///
    /// # Errors
    /// [`Error`], for each [`Cause`].
    pub async fn flush(&self, nsid: u32) -> Result<(), Error> {
        self.execute(nsid, Op::Flush, Data::None).await.map(drop)
    }

    async fn execute(&self, nsid: u32, op: Op, data: Data) -> Result<Data, Error> {
        let (cause, data) = match self.submit(Request { tag: 0, nsid, op, data, deadline: None }).await {
            Ok(Completion { status: Status::Ok, data, .. }) => return Ok(data),
            Ok(Completion { status: Status::Device(code), data, .. }) => (Cause::Device(code), data),
            Ok(Completion { status: Status::Aborted, data, .. }) => (Cause::Aborted, data),
            Ok(Completion { status: Status::Gone, data, .. }) => (Cause::Gone, data),
            Err(Rejected { req, why: Reject::Invalid(why) }) => (Cause::Invalid(why), req.data),
            Err(Rejected { req, .. }) => match self.state() {
                QueueState::Failed(why) => (Cause::Failed(why), req.data),
                _ => (Cause::Gone, req.data),
            },
        };
        Err(Error { op, nsid, cause, data })
    }

    /// Rings the doorbell for all requests submitted since the last call, takes at most `max` completed commands, submits the requests that waited for
    /// room, and wakes the tasks concerned. Returns the number of commands completed, those of dropped futures included. It costs one doorbell, and another
    /// one where requests had waited.
    ///
    /// It has to be called regularly, also while nothing is in flight: a queue that is not polled for five seconds while its device is reset is lost. A waker
    /// may call anything here, this method included. Where a waker panics, this call does, and the next one wakes the others.
    pub fn poll(&self, max: usize) -> usize {
        let count = self.0.borrow_mut().poll(max);
        while let Some(waker) = self.next_ready() {
            waker.wake();
        }
        count
    }

    fn next_ready(&self) -> Option<Waker> {
        self.0.borrow_mut().ready.pop_front()
    }

    /// Polls the queue whenever the executor runs this task, without end: to be spawned next to the tasks that read and write, or to be raced against them.
    /// The task is always ready to run, so the thread never sleeps.
    pub async fn run(&self) -> Infallible {
        poll_fn(|cx| {
            self.poll(usize::MAX);
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await
    }

    /// Runs one future to its end on this thread, polling it and the queue in turns: an executor for a program that has no other. Futures that are joined in
    /// it share the queue. The thread never sleeps, and gives up its core now and then where nothing completes; so the future may wait for something
    /// else, too (another thread, a clock), but not for another queue that nobody polls.
    ///
    /// # Panics
    /// Where the future does.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let (mut future, mut context, mut idle) = (pin!(future), Context::from_waker(Waker::noop()), 0u32);
        loop {
            // It is polled whether it was woken or not: it is the only one.
            if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                return output;
            }
            idle = if self.poll(usize::MAX) > 0 { 0 } else { idle.wrapping_add(1) };
            match idle % 64 {
                63 => std::thread::yield_now(),
                _ => std::hint::spin_loop(),
            }
        }
    }

    /// Returns the state of the queue below.
    pub fn state(&self) -> QueueState {
        self.0.borrow().queue.state()
    }

    /// Returns the number of commands in flight in the queue below, those of dropped futures included; a request that takes several commands counts for as
    /// many.
    pub fn in_flight(&self) -> usize {
        self.0.borrow().queue.in_flight()
    }

    /// Returns the number of requests that wait for room.
    pub fn waiting(&self) -> usize {
        self.0.borrow().waiting.len()
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (in_flight, waiting, state) = (self.in_flight(), self.waiting(), self.state());
        write!(f, "Queue({in_flight} in flight, {waiting} waiting, {state:?})")
    }
}

impl Inner {
    fn poll(&mut self, max: usize) -> usize {
        let Self { queue, slots, free, ready, .. } = self;
        queue.ring();
        let count = queue.poll(max, &mut |done| {
            // No other tags were given out; what else a queue says is nobody's.
            let Some((at, slot)) = usize::try_from(done.tag).ok().and_then(|at| Some((at, slots.get_mut(at)?))) else {
                return;
            };
            match std::mem::replace(slot, Slot::Free) {
                Slot::Pending { tag, waker } => {
                    *slot = Slot::Done(Ok(Completion { tag, ..done }));
                    ready.push_back(waker);
                }
                Slot::Detached => free.push(at),
                other => *slot = other,
            }
        });
        if !self.waiting.is_empty() {
            self.submit_waiting();
        }
        count
    }

    /// Submits what waited, as far as there is room.
    #[cold]
    fn submit_waiting(&mut self) {
        while let Some(request) = self.waiting.pop_front() {
            match self.queue.submit(request) {
                Ok(()) => {}
                Err(Rejected { req, why: Reject::Full | Reject::Resetting }) => {
                    self.waiting.push_front(req);
                    break;
                }
                Err(mut rejected) => {
                    let Some(slot) = self.slots.get_mut(rejected.req.tag as usize) else { continue };
                    if let Slot::Pending { tag, waker } = std::mem::replace(slot, Slot::Free) {
                        rejected.req.tag = tag;
                        *slot = Slot::Done(Err(Box::new(rejected)));
                        self.ready.push_back(waker);
                    }
                }
            }
        }
        self.queue.ring();
    }

    /// Takes a request, whose future has `waker`, or leaves it there; returns its slot.
    fn submit(&mut self, mut request: Request, waker: &mut Option<Waker>) -> Result<usize, Rejected> {
        let at = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::Free);
            self.slots.len() - 1
        });
        let tag = std::mem::replace(&mut request.tag, at as u64);
        // Who comes later waits behind those that wait.
        let submitted = match self.waiting.is_empty() {
            true => self.queue.submit(request),
            false => Err(Rejected { req: request, why: Reject::Full }),
        };
        match submitted {
            Ok(()) => {}
            Err(Rejected { req, why: Reject::Full | Reject::Resetting }) => self.waiting.push_back(req),
            Err(mut rejected) => {
                self.free.push(at);
                rejected.req.tag = tag;
                return Err(rejected);
            }
        }
        if let (Some(slot), Some(waker)) = (self.slots.get_mut(at), waker.take()) {
            *slot = Slot::Pending { tag, waker };
        }
        Ok(at)
    }

    /// How the request in a slot ended, which is free then.
    fn take_done(&mut self, at: usize) -> Option<Result<Completion, Rejected>> {
        let slot = self.slots.get_mut(at).filter(|slot| matches!(slot, Slot::Done(_)))?;
        let Slot::Done(done) = std::mem::replace(slot, Slot::Free) else { return None };
        self.free.push(at);
        Some(done.map_err(|rejected| *rejected))
    }

    /// The future of a slot is dropped. What was in the slot is given to the caller to drop.
    fn detach(&mut self, at: usize) -> Slot {
        let Some(slot) = self.slots.get_mut(at) else { return Slot::Free };
        let was = std::mem::replace(slot, Slot::Free);
        if matches!(was, Slot::Pending { .. }) {
            match self.waiting.iter().position(|request| request.tag == at as u64) {
                Some(waiting) => drop(self.waiting.remove(waiting)),
                None => {
                    *slot = Slot::Detached;
                    return was;
                }
            }
        }
        self.free.push(at);
        was
    }
}

/// A request as a future: see [`Queue::submit`]. Dropped, it withdraws the request, or leaves the command to itself where it is in flight.
///
/// # Panics
/// Where it is polled once more after it has completed, as futures do.
#[must_use = "futures do nothing unless they are polled"]
pub struct Submit<'a> {
    queue: &'a Queue,
    state: State,
}

enum State {
    New(Request),
    /// It has a slot.
    Submitted(usize),
    Completed,
}

impl Future for Submit<'_> {
    type Output = Result<Completion, Rejected>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        // A waker is cloned and dropped while nothing is borrowed: what an executor does then is not known.
        if let State::Submitted(at) = this.state {
            if let Some(done) = this.queue.0.borrow_mut().take_done(at) {
                this.state = State::Completed;
                return Poll::Ready(done);
            }
            this.queue.wake_with(at, cx.waker());
            return Poll::Pending;
        }
        let State::New(request) = std::mem::replace(&mut this.state, State::Completed) else {
            panic!("a request was polled as a future after it had completed");
        };
        let mut waker = Some(cx.waker().clone());
        let at = this.queue.0.borrow_mut().submit(request, &mut waker)?;
        this.state = State::Submitted(at);
        Poll::Pending
    }
}

impl Queue {
    /// Has `waker` woken for what is pending in a slot.
    fn wake_with(&self, at: usize, waker: &Waker) {
        if let Some(Slot::Pending { waker: old, .. }) = self.0.borrow().slots.get(at)
            && old.will_wake(waker)
        {
            return;
        }
        let new = waker.clone();
        let _old = match self.0.borrow_mut().slots.get_mut(at) {
            Some(Slot::Pending { waker: old, .. }) => std::mem::replace(old, new),
            _ => new,
        };
    }
}

impl Drop for Submit<'_> {
    fn drop(&mut self) {
        if let State::Submitted(at) = self.state {
            let _was = self.queue.0.borrow_mut().detach(at);
        }
    }
}

impl fmt::Debug for Submit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.state {
            State::New(request) => write!(f, "Submit({:?})", request.op),
            State::Submitted(_) => f.write_str("Submit(submitted)"),
            State::Completed => f.write_str("Submit(completed)"),
        }
    }
}

/// An operation that was not done, and its data.
#[derive(Debug, thiserror::Error)]
#[error("{op:?} on namespace {nsid} was not done: {cause}")]
pub struct Error {
    /// What was to be done.
    pub op: Op,
    /// The namespace.
    pub nsid: u32,
    /// Why it was not.
    pub cause: Cause,
    /// The data that was given; none where it is quarantined, because the device may still write it.
    pub data: Data,
}

/// Why an operation was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// It can never be done: why.
    Invalid(&'static str),
    /// The device refused it or failed: the driver's own status code, which its crate decodes to the standard's names.
    Device(u16),
    /// It was given up, because it took too long or its queue was reset. It can be tried again, unless the queue has
    /// [failed](QueueState::Failed).
    Aborted,
    /// The queue cannot be used any more: why.
    Failed(String),
    /// The device is gone.
    Gone,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(why) => f.write_str(why),
            Self::Device(code) => write!(f, "the device answers with status {code:#x}"),
            Self::Aborted => f.write_str("it took too long, or the device was reset: try it again"),
            Self::Failed(why) => write!(f, "the queue cannot be used any more: {why}"),
            Self::Gone => f.write_str("the device is gone"),
        }
    }
}

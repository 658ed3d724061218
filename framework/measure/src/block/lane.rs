//! One queue pair kept full: the loop that every figure comes from.
//!
//! Per command it does what a program that uses the driver must do (pick a place, submit, poll) and records one latency. The clock
//! is read once a poll that found something; buffers go from a completion straight into the next command: nothing here allocates
//! or calls the kernel while commands succeed.

use super::ledger::{Ledger, Pick};
use super::pattern::Fault;
use super::{Job, QueuePair, Supply};
use crate::latency::Latency;
use hdrhistogram::Histogram;
use quanta::Clock;
use wholebar_core::bar::DoorbellCounts;
use wholebar_core::block::{Completion, Data, Op, QueueState, Reject, Rejected, Request, Status};
use wholebar_core::mem::Pool;

/// One queue pair and what is done with it.
pub struct Lane<Q> {
    queue: Q,
    ledger: Ledger,
    /// First block of the lane's units.
    first: u64,
    /// Blocks of a unit.
    blocks: u64,
    block: usize,
    nsid: u32,
    batch: usize,
    /// By tag: the command in flight.
    slots: Box<[Slot]>,
    /// Tags in nobody's hands, with their buffers.
    idle: Vec<(u64, Data)>,
    /// Requests that the queue didn't take yet.
    held: Vec<Request>,
    done: Vec<Completion>,
    clock: Clock,
    tally: Counters,
    /// Last: it outlives its buffers.
    _pool: Pool,
}

#[derive(Clone, Copy)]
struct Slot {
    submitted: u64,
    pick: Pick,
}

struct Counters {
    reads: Latency,
    writes: Latency,
    failures: Vec<(Failure, u64)>,
    full: bool,
}

/// What a lane counted.
pub struct Tally {
    /// Latencies of reads that ended well, in nanoseconds.
    pub reads: Histogram<u64>,
    /// Latencies of writes that ended well, in nanoseconds.
    pub writes: Histogram<u64>,
    /// Commands that failed, or whose data were wrong, by how.
    pub failures: Vec<(Failure, u64)>,
    /// The queue had no room for a command.
    pub full: bool,
}

/// How a command failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// With a status.
    Status(Status),
    /// With the wrong data.
    Data(Fault),
}

impl Counters {
    fn new(clock: &Clock) -> Self {
        Self { reads: Latency::new(clock), writes: Latency::new(clock), failures: Vec::new(), full: false }
    }

    #[cold]
    fn failure(&mut self, failure: Failure) {
        match self.failures.iter_mut().find(|(known, _)| *known == failure) {
            Some((_, times)) => *times += 1,
            None => self.failures.push((failure, 1)),
        }
    }
}

impl<Q: QueuePair> Lane<Q> {
    /// A lane that keeps as many commands in flight as it is supplied with buffers. Its units begin at block `first`.
    pub fn new(job: &Job, supply: Supply<Q>, first: u64, ledger: Ledger, clock: &Clock) -> Self {
        let Supply { queue, bufs, pool } = supply;
        let depth = bufs.len();
        let slot = Slot { submitted: 0, pick: Pick { unit: 0, write: false } };
        Self {
            queue,
            ledger,
            first,
            blocks: job.blocks,
            block: job.block as usize,
            nsid: job.nsid,
            batch: job.batch,
            slots: vec![slot; depth].into(),
            idle: bufs.into_iter().enumerate().map(|(tag, buf)| (tag as u64, Data::One(buf))).collect(),
            held: Vec::with_capacity(depth),
            done: Vec::with_capacity(depth),
            clock: clock.clone(),
            tally: Counters::new(clock),
            _pool: pool,
        }
    }

    /// Fills the queue, a doorbell a batch.
    pub fn start(&mut self) -> Result<(), String> {
        let mut idle = std::mem::take(&mut self.idle);
        while !idle.is_empty() {
            let now = self.clock.raw();
            for (tag, data) in idle.split_off(idle.len().saturating_sub(self.batch)) {
                self.next(tag, data, now)?;
            }
            self.queue.ring();
        }
        Ok(())
    }

    /// Polls once: takes at most a batch of completions and submits as many commands. Returns how many ended.
    #[inline]
    pub fn poll(&mut self) -> Result<usize, String> {
        let done = &mut self.done;
        if self.queue.poll_each(self.batch, |completion| done.push(completion)) == 0 {
            return if self.held.is_empty() { Ok(0) } else { self.retry() };
        }
        // What is found now ended before, and what follows it begins now.
        let now = self.clock.raw();
        let mut done = std::mem::take(&mut self.done);
        let n = done.len();
        for completion in done.drain(..) {
            let tag = completion.tag;
            let slot = self.slots[tag as usize];
            if completion.status == Status::Ok {
                let tally = &mut self.tally;
                let latency = if slot.pick.write { &mut tally.writes } else { &mut tally.reads };
                latency.record(now.wrapping_sub(slot.submitted));
            } else {
                self.tally.failure(Failure::Status(completion.status));
                if let Some(why) = self.queue.fatal(completion.status, self.nsid) {
                    return Err(why);
                }
            }
            if self.ledger.verifies() {
                self.verify(slot.pick, &completion);
            }
            self.next(tag, completion.data, now)?;
        }
        self.done = done;
        self.queue.ring();
        Ok(n)
    }

    #[inline]
    fn next(&mut self, tag: u64, mut data: Data, now: u64) -> Result<(), String> {
        let Some(pick) = self.ledger.pick() else {
            self.idle.push((tag, data));
            return Ok(());
        };
        let lba = self.first + pick.unit * self.blocks;
        if pick.write
            && self.ledger.verifies()
            && let Data::One(buf) = &mut data
        {
            self.ledger.fill(pick, buf.bytes_mut(), self.block, lba);
        }
        self.slots[tag as usize] = Slot { submitted: now, pick };
        let op = if pick.write { Op::Write { lba } } else { Op::Read { lba } };
        match self.queue.submit(Request { tag, nsid: self.nsid, op, data, deadline: None }) {
            Ok(()) => Ok(()),
            Err(rejected) => self.rejected(rejected),
        }
    }

    #[cold]
    fn rejected(&mut self, Rejected { req, why }: Rejected) -> Result<(), String> {
        match why {
            Reject::Full | Reject::Resetting => {
                self.tally.full |= why == Reject::Full;
                self.held.push(req);
                Ok(())
            }
            why => Err(why.to_string()),
        }
    }

    #[cold]
    fn retry(&mut self) -> Result<usize, String> {
        for req in std::mem::take(&mut self.held) {
            self.queue.submit(req).or_else(|rejected| self.rejected(rejected))?;
        }
        self.queue.ring();
        Ok(0)
    }

    fn verify(&mut self, pick: Pick, completion: &Completion) {
        let lba = self.first + pick.unit * self.blocks;
        let bytes = match (&completion.data, completion.status) {
            (Data::One(buf), Status::Ok) => Some(buf.bytes()),
            _ => None,
        };
        if let Err(fault) = self.ledger.done(pick, bytes, self.block, lba) {
            self.tally.failure(Failure::Data(fault));
        }
    }

    /// Submits nothing more; what is in flight is waited for with [`poll`](Self::poll) until [`quiet`](Self::quiet).
    pub fn stop(&mut self) {
        self.ledger.stop();
    }

    /// Whether nothing is in flight.
    pub fn quiet(&self) -> bool {
        self.idle.len() == self.slots.len()
    }

    /// Reads once what was written and is verified. Returns how many commands that takes.
    pub fn read_back(&mut self) -> Result<u64, String> {
        let commands = self.ledger.read_back();
        self.start().map(|()| commands)
    }

    /// Forgets all latencies, but no failure.
    pub fn forget_latencies(&mut self) {
        self.tally.reads.clear();
        self.tally.writes.clear();
    }

    /// What was counted until now, taken away.
    pub fn take_tally(&mut self) -> Tally {
        let Counters { reads, writes, failures, full } = std::mem::replace(&mut self.tally, Counters::new(&self.clock));
        Tally { reads: reads.into_histogram(), writes: writes.into_histogram(), failures, full }
    }

    /// How often its doorbells were rung.
    pub fn doorbells(&self) -> DoorbellCounts {
        self.queue.doorbells().unwrap_or_default()
    }

    /// Why its queue is of no use any more, if so.
    pub fn dead(&self) -> Option<String> {
        match self.queue.state() {
            QueueState::Running | QueueState::Resetting => None,
            QueueState::Failed(why) => Some(why),
            QueueState::Gone => {
                let why = self.queue.fatal(Status::Gone, self.nsid);
                Some(why.unwrap_or_else(|| "the device is gone".to_owned()))
            }
        }
    }
}

//! A load on queues of a disk: [`run`] keeps a number of commands in flight in each of them, from threads pinned to cores, and measures over a window how
//! many end a second and how long each takes. Data can be verified: what was written is known, and read back.
//!
//! All threads are started at once. Each measures its own window and counts what ended inside it, so the figures don't depend on when the main thread
//! gets to run: that one only turns [phases](Phase) and tells how far it is.
//!
//! It opens no disk and takes no memory: whoever calls supplies queues and buffers, of any driver ([`AnyQueue`]), or of one ([`QueuePair`]).
//!
//! ```
//! use std::sync::atomic::AtomicBool;
//! use std::time::Duration;
//! use wholebar::block::{self, DiskConfig};
//! use wholebar_core::mem::{Arena, ArenaOptions, Pool};
//! use wholebar_measure::block::{AnyQueue, BACK_OFF, Direction, Job, Order, Supply, Workload, run};
//! use wholebar_measure::latency::Percentiles;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let disk = block::open(wholebar::open("sim:nvme,size=64M")?, &DiskConfig::default())?;
//! let ns = disk.namespaces().into_iter().next().ok_or("no namespace can be used")?;
//! let job = Job {
//!     workload: Workload { order: Order::Random, direction: Direction::Read },
//!     nsid: ns.nsid,
//!     block: ns.block_size,
//!     blocks: 1,
//!     first: 0,
//!     units: ns.blocks,
//!     depth: 8,
//!     batch: 8,
//!     back_off: BACK_OFF,
//!     warmup: Duration::ZERO,
//!     time: Duration::from_millis(50),
//!     verify: false,
//!     seed: 1,
//!     shared_cores: true,
//!     device: None,
//! };
//! let arena = Arena::new(1 << 20, ArenaOptions::default())?;
//! disk.attach(arena.clone())?;
//! let pool = Pool::new(arena, 8, ns.block_size, ns.block_size)?;
//! let bufs = std::iter::from_fn(|| pool.get_len(ns.block_size)).collect();
//! let supply = Supply { queue: AnyQueue(disk.queue()?), bufs, pool };
//!
//! let core = wholebar::cores::allowed()[0];
//! let outcome = run(&job, vec![(core, vec![supply])], &AtomicBool::new(false), |_| ())?;
//! assert!(outcome.iops > 0.0 && outcome.errors() == 0);
//! println!("{:.0} IOPS, p99 {} ns", outcome.iops, Percentiles::of(&outcome.latency()).p99);
//! # Ok(()) }
//! ```

mod lane;
mod ledger;
pub mod pattern;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod worker;

pub use lane::Failure;

use crate::cpu::{CpuShare, Thread};
use crate::latency::histogram;
use crate::{Error, Result};
use crossbeam::utils::CachePadded;
use hdrhistogram::Histogram;
use lane::Lane;
use ledger::Ledger;
use quanta::Clock;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};
use wholebar_core::bar::DoorbellCounts;
use wholebar_core::block::{BlockQueue, Completion, QueueState, Rejected, Request, Status};
use wholebar_core::mem::{Buf, Pool};
use worker::{Window, Worker};

/// A queue pair as a load drives it: a [`BlockQueue`] whose poll takes a closure that is compiled in, where the driver is known. [`AnyQueue`] is one of any
/// driver, at the cost of an indirect call a poll and one a completion.
///
/// SPDK's like is a `struct spdk_nvme_qpair`.
pub trait QueuePair: BlockQueue {
    /// [`BlockQueue::poll`], with the closure compiled in. An implementation of it must do as that says.
    fn poll_each(&mut self, max: usize, done: impl FnMut(Completion)) -> usize;

    /// Why no later command on the namespace `nsid` can do better than one that ended with this status, where that is so: the run ends then.
    fn fatal(&self, status: Status, _nsid: u32) -> Option<String> {
        (status == Status::Gone).then(|| "the device is gone".to_owned())
    }
}

/// A queue of a disk, whichever driver it has.
pub struct AnyQueue(
    /// The queue, as `block::Disk::queue` gives it.
    pub Box<dyn BlockQueue>,
);

impl BlockQueue for AnyQueue {
    fn submit(&mut self, req: Request) -> Result<(), Rejected> {
        self.0.submit(req)
    }

    fn ring(&mut self) {
        self.0.ring();
    }

    fn poll(&mut self, max: usize, done: &mut dyn FnMut(Completion)) -> usize {
        self.0.poll(max, done)
    }

    fn state(&self) -> QueueState {
        self.0.state()
    }

    fn in_flight(&self) -> usize {
        self.0.in_flight()
    }

    fn doorbells(&self) -> Option<DoorbellCounts> {
        self.0.doorbells()
    }
}

impl QueuePair for AnyQueue {
    #[inline]
    fn poll_each(&mut self, max: usize, mut done: impl FnMut(Completion)) -> usize {
        self.0.poll(max, &mut done)
    }
}

/// In which order units are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Uniformly at random.
    Random,
    /// One after the other, and again from the first.
    Sequential,
}

/// What is done to a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// It is read.
    Read,
    /// It is written.
    Write,
    /// The one or the other.
    Mixed {
        /// How many of a hundred commands read.
        read_percent: u8,
    },
}

/// In which order, and what is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workload {
    /// In which order.
    pub order: Order,
    /// Reads or writes.
    pub direction: Direction,
}

/// Commands a doorbell, where nobody says how many: a quarter of the queue's `depth` (commands in flight), at most 32 and at least 1.
///
/// Larger batches save doorbells and leave a device that is faster than its driver without work meanwhile. Of a queue that is one batch deep, driver and device
/// take turns: with 32 in flight, batches of 8 gave 1.2 to 1.3 times the IOPS of batches of 32 on models in this process and served ones, quick or bound by
/// copying. Of 128 in flight, 8 to 32 made no difference.
pub fn batch_of(depth: usize) -> usize {
    (depth / 4).clamp(1, 32)
}

/// [`Job::back_off`] where nobody says how much: each empty poll is followed by the next.
pub const BACK_OFF: u32 = 0;

/// The most that [`Job::back_off`] makes a difference up to: 1024 hints, some 20 to 50 microseconds.
pub const MAX_BACK_OFF: u32 = 10;

/// What there is to do. Whoever makes one has checked its sizes against the namespace: of the others, commands fail.
#[derive(Debug, Clone)]
pub struct Job {
    /// What is done to each unit.
    pub workload: Workload,
    /// The namespace.
    pub nsid: u32,
    /// Bytes of its blocks.
    pub block: u32,
    /// Blocks of a command.
    pub blocks: u64,
    /// First block that is touched.
    pub first: u64,
    /// How many units of `blocks` blocks there are, from there on: divided evenly among the lanes.
    pub units: u64,
    /// Commands in flight in each queue.
    pub depth: usize,
    /// Completions taken, and commands submitted, at a time: a doorbell each. [`batch_of`] says which suits a depth.
    pub batch: usize,
    /// How often the time between two polls that find nothing is doubled, from one hint to the CPU on: 0 polls as often as can be, at most [`MAX_BACK_OFF`].
    pub back_off: u32,
    /// Before anything is measured.
    pub warmup: Duration,
    /// What is measured.
    pub time: Duration,
    /// Write patterns ([`pattern`]), and check what is read; in the end, what was written is read back. Each queue remembers 5 bytes a unit, of at most 2^28.
    pub verify: bool,
    /// What the order of places begins with.
    pub seed: u64,
    /// There are more threads than cores: give the core away when there is nothing to do.
    pub shared_cores: bool,
    /// The thread of the device, where it is a model in this process: which share of a CPU it has while commands are measured is told with the rest.
    pub device: Option<Thread>,
}

/// A queue, and a buffer for each command in flight in it.
pub struct Supply<Q> {
    /// The queue.
    pub queue: Q,
    /// Its buffers, each as long as a command's data.
    pub bufs: Vec<Buf>,
    /// Where these come from: it outlives them.
    pub pool: Pool,
}

/// The cores of a run, by the kernel's numbers, each with the queues of its thread.
pub type Supplies<Q> = Vec<(usize, Vec<Supply<Q>>)>;

/// What came of it.
pub struct Outcome {
    /// Latencies of reads, in nanoseconds.
    pub reads: Histogram<u64>,
    /// Latencies of writes, in nanoseconds.
    pub writes: Histogram<u64>,
    /// Commands a second that ended well.
    pub iops: f64,
    /// The longest window of a thread.
    pub window: Duration,
    /// How often doorbells were rung in it.
    pub doorbells: DoorbellCounts,
    /// How much of its window each thread had a CPU: 1 is all of it, and 0 where the kernel does not tell.
    pub cpu: Vec<f64>,
    /// How much of that time the thread of [`Job::device`] had a CPU; `None` where there is none, or the kernel does not tell.
    pub device_cpu: Option<f64>,
    /// Commands that failed, or whose data were wrong, by how.
    pub failures: Vec<(Failure, u64)>,
    /// A queue had no room for a command, which waited then.
    pub full: bool,
    /// Units read back after the window to verify them.
    pub read_back: u64,
    /// Why it ended before its time.
    pub cut_short: Option<CutShort>,
}

/// Why a run ended before its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CutShort {
    /// Whoever called wanted that.
    Interrupted,
    /// Nothing more could be done, for this reason.
    Failed(String),
}

impl fmt::Display for CutShort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interrupted => f.write_str("interrupted"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

impl Outcome {
    /// How many commands failed, or had wrong data.
    pub fn errors(&self) -> u64 {
        self.failures.iter().map(|(_, times)| times).sum()
    }

    fn add_failures(&mut self, failures: Vec<(Failure, u64)>) {
        for (failure, times) in failures {
            match self.failures.iter_mut().find(|(known, _)| *known == failure) {
                Some((_, sum)) => *sum += times,
                None => self.failures.push((failure, times)),
            }
        }
    }

    /// Latencies of all commands.
    pub fn latency(&self) -> Histogram<u64> {
        let mut all = self.reads.clone();
        // Both have the same bounds.
        let _ = all.add(&self.writes);
        all
    }
}

/// How far it is.
#[derive(Debug, Clone, Copy)]
pub struct Tick {
    /// What is going on.
    pub phase: Phase,
    /// Since the beginning, warm-up included.
    pub elapsed: Duration,
    /// Commands a second, since the last tick.
    pub iops: f64,
}

/// The phases of a run, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Nothing counts yet.
    Warmup,
    /// What is measured.
    Measure,
    /// The end: what is in flight is waited for, and what was written is read back.
    Verify,
    /// The end: what is in flight is waited for.
    Stop,
}

impl Phase {
    fn of(byte: u8) -> Self {
        let all = [Self::Warmup, Self::Measure, Self::Verify];
        all.get(usize::from(byte)).copied().unwrap_or(Self::Stop)
    }
}

/// What the threads of one run share.
struct Shared {
    /// A [`Phase`]: set by the main thread, or by a lane that failed. Nothing else depends on when a thread sees it.
    phase: AtomicU8,
    barrier: Barrier,
    /// How many threads have begun to measure.
    opened: AtomicUsize,
    /// Commands ended, by thread.
    ended: Box<[CachePadded<AtomicU64>]>,
}

/// Runs a job: a thread a core, each with the queues that it is given. `interrupted` ends it early; so does a queue that is dead, or a command that failed
/// for a reason which [`QueuePair::fatal`] knows. `tick` is called each second, from the calling thread, which sleeps in between. Queues and buffers are
/// dropped in the end, when nothing is in flight any more.
///
/// # Errors
/// - [`Error::Core`]: a core cannot be pinned to.
/// - [`Error::TooFewUnits`]: a queue has no unit, or, where data are verified, fewer of them than commands in flight.
/// - [`Error::Ledger`]: there is no memory to remember what is to be verified.
/// - [`Error::Thread`], [`Error::Panicked`]: a thread could not be started, or ended by a panic.
///
/// What a device refuses is not an error of this call, but a part of the [`Outcome`].
pub fn run<Q: QueuePair>(
    job: &Job,
    cores: Supplies<Q>,
    interrupted: &AtomicBool,
    mut tick: impl FnMut(Tick),
) -> Result<Outcome> {
    let lanes: u64 = cores.iter().map(|(_, supplies)| supplies.len() as u64).sum();
    let units = job.units / lanes.max(1);
    let least = if job.verify { job.depth as u64 } else { 1 };
    if units < least {
        return Err(Error::TooFewUnits { units: job.units, queues: lanes, depth: job.depth });
    }
    let clock = Clock::new();
    let run = fastrand::u32(..);
    let shared = Shared {
        phase: AtomicU8::new(Phase::Warmup as u8),
        barrier: Barrier::new(cores.len() + 1),
        opened: AtomicUsize::new(0),
        ended: cores.iter().map(|_| CachePadded::default()).collect(),
    };
    let verify = job.verify.then_some(run);
    let ledger = |lane| Ledger::new(job.workload, units, job.seed.wrapping_add(lane), verify);
    let mut ledgers = (0..lanes).map(ledger).collect::<Result<Vec<_>>>()?.into_iter();
    let mut lane = 0;
    // Nobody begins before all are there: they wait for one another.
    let all_there = Mutex::new(false);
    std::thread::scope(|scope| {
        let mut gate = all_there.lock().unwrap_or_else(|e| e.into_inner());
        let threads: Vec<_> = cores
            .into_iter()
            .enumerate()
            .map(|(index, (core, supplies))| {
                let mut lanes = Vec::with_capacity(supplies.len());
                for (supply, ledger) in supplies.into_iter().zip(&mut ledgers) {
                    lanes.push(Lane::new(job, supply, job.first + lane * units * job.blocks, ledger, &clock));
                    lane += 1;
                }
                let (clock, shared, all_there) = (&clock, &shared, &all_there);
                let work = move || match *all_there.lock().unwrap_or_else(|e| e.into_inner()) {
                    true => Ok(()),
                    false => Err(Error::Thread { cause: "another one could not be started".to_owned() }),
                };
                let work = move || work().and_then(|()| Worker { job, index, core, lanes, clock, shared }.run());
                let spawned = std::thread::Builder::new().spawn_scoped(scope, work);
                spawned.map_err(|error| Error::Thread { cause: error.to_string() })
            })
            .collect::<Result<_>>()?;
        *gate = true;
        drop(gate);
        let device_cpu = conduct(job, &shared, interrupted, &mut tick, || threads.iter().all(|t| t.is_finished()));
        let windows =
            threads.into_iter().map(|t| t.join().map_err(|_| Error::Panicked)?).collect::<Result<Vec<_>>>()?;
        let interrupted = interrupted.load(Ordering::Relaxed).then_some(CutShort::Interrupted);
        Ok(Outcome { device_cpu, ..collect(windows, interrupted) })
    })
}

/// Turns the phases when their time has come. Returns which share of a CPU the device's thread had while commands were measured.
fn conduct(
    job: &Job,
    shared: &Shared,
    interrupted: &AtomicBool,
    tick: &mut impl FnMut(Tick),
    all_ended: impl Fn() -> bool,
) -> Option<f64> {
    const CHECK_INTERVAL: Duration = Duration::from_millis(100);
    const SOON: Duration = Duration::from_millis(1);
    const TICK: Duration = Duration::from_secs(1);
    shared.barrier.wait();
    let start = Instant::now();
    let (mut last, mut last_ended) = (start, 0);
    let (mut began, mut opened) = (start, false);
    let (mut device, mut device_cpu) = (CpuShare::of(None), None);
    while !all_ended() {
        let phase = Phase::of(shared.phase.load(Ordering::Relaxed));
        // On a busy machine a thread may be late to see that its window is open: it shall have all of its time.
        if phase == Phase::Measure && !opened {
            opened = shared.opened.load(Ordering::Relaxed) == shared.ended.len();
            began = Instant::now();
            device = CpuShare::of(job.device);
        }
        let left = match phase {
            Phase::Warmup => job.warmup.saturating_sub(began.elapsed()),
            Phase::Measure => job.time.saturating_sub(began.elapsed()),
            Phase::Verify | Phase::Stop => CHECK_INTERVAL,
        };
        if phase == Phase::Measure && (left.is_zero() || interrupted.load(Ordering::Relaxed)) {
            device_cpu = device.share();
        }
        if interrupted.load(Ordering::Relaxed) {
            shared.phase.fetch_max(Phase::Stop as u8, Ordering::Relaxed);
        } else if left.is_zero() {
            shared.phase.fetch_max(phase as u8 + 1, Ordering::Relaxed);
            began = Instant::now();
            continue;
        }
        let interval = if phase == Phase::Measure && !opened { SOON } else { CHECK_INTERVAL };
        std::thread::sleep(interval.min(left));
        if last.elapsed() >= TICK {
            let ended = shared.ended.iter().map(|n| n.load(Ordering::Relaxed)).sum::<u64>();
            let iops = (ended - last_ended) as f64 / last.elapsed().as_secs_f64();
            (last, last_ended) = (Instant::now(), ended);
            tick(Tick { phase, elapsed: start.elapsed(), iops });
        }
    }
    device_cpu
}

/// One outcome of all windows.
fn collect(windows: Vec<Window>, cut_short: Option<CutShort>) -> Outcome {
    let mut outcome = Outcome {
        reads: histogram(),
        writes: histogram(),
        iops: 0.0,
        window: Duration::ZERO,
        doorbells: DoorbellCounts::default(),
        cpu: Vec::new(),
        device_cpu: None,
        failures: Vec::new(),
        full: false,
        read_back: 0,
        cut_short,
    };
    for window in windows {
        let mut commands = 0;
        for tally in window.tallies {
            commands += tally.reads.len() + tally.writes.len();
            // All have the same bounds.
            let _ = (outcome.reads.add(tally.reads), outcome.writes.add(tally.writes));
            outcome.add_failures(tally.failures);
            outcome.full |= tally.full;
        }
        window.late.into_iter().for_each(|tally| outcome.add_failures(tally.failures));
        let nanos = window.length.max(1) as f64;
        outcome.iops += commands as f64 * 1e9 / nanos;
        outcome.window = outcome.window.max(Duration::from_nanos(window.length));
        outcome.cpu.push(window.cpu.as_nanos() as f64 / nanos);
        outcome.doorbells += window.doorbells;
        outcome.read_back += window.read_back;
        outcome.cut_short = outcome.cut_short.or(window.failed.map(CutShort::Failed));
    }
    outcome
}

#[cfg(test)]
mod tests;

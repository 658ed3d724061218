//! The engine that `nvme perf`, `blk perf` and `bench` share: lanes on pinned threads, all started at once, measured over a window.
//!
//! Each thread measures its own window and counts what ended inside it, so the figures don't depend on when the main thread gets to
//! run. The main thread only turns phases and shows progress.

mod book;
mod lane;
mod latency;
mod pattern;
mod worker;

pub use lane::Failure;
pub use latency::{Percentiles, empty};

use anyhow::{Context, Result, anyhow, bail};
use book::Book;
use crossbeam::utils::CachePadded;
use hdrhistogram::Histogram;
use lane::Lane;
use quanta::Clock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};
use wholebar::bar::DoorbellCounts;
use wholebar::block::{BlockQueue, Completion, Status};
use wholebar::mem::{Buf, Pool};
use worker::{Window, Worker};

/// Why a run ended before its time, where somebody wanted that.
pub const INTERRUPTED: &str = "interrupted";

/// A queue pair as the engine drives it: a [`BlockQueue`] whose poll takes a closure that is compiled in, where it can be.
pub trait Pair: BlockQueue {
    /// [`BlockQueue::poll`], with the closure compiled in.
    fn poll_each(&mut self, max: usize, done: impl FnMut(Completion)) -> usize;
    /// Why no later command on the namespace will do better than one with this status, where that is so.
    fn hopeless(&self, status: Status, nsid: u32) -> Option<String>;
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

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workload {
    /// In which order.
    pub order: Order,
    /// Reads or writes.
    pub direction: Direction,
}

/// What there is to do. All sizes were checked against the namespace.
#[derive(Debug, Clone)]
pub struct Job {
    /// What.
    pub workload: Workload,
    /// The namespace.
    pub nsid: u32,
    /// Bytes of its blocks.
    pub block: u32,
    /// Blocks of a command.
    pub blocks: u64,
    /// First block that is touched.
    pub first: u64,
    /// How many units are, from there on: divided evenly among the lanes.
    pub units: u64,
    /// Commands in flight in each queue.
    pub depth: usize,
    /// Completions taken, and commands submitted, at a time: a doorbell each.
    pub batch: usize,
    /// Before anything is measured.
    pub warmup: Duration,
    /// What is measured.
    pub time: Duration,
    /// Write patterns, and check them.
    pub verify: bool,
    /// What the order of places begins with.
    pub seed: u64,
    /// There are more threads than cores: give the core away when there is nothing to do.
    pub shared_cores: bool,
}

/// A queue and a buffer for each command in flight in it.
pub struct Supply<Q> {
    /// The queue.
    pub queue: Q,
    /// Its buffers, each as long as a command's data.
    pub bufs: Vec<Buf>,
    /// Where these come from: it outlives them.
    pub pool: Pool,
}

/// The cores of a run, each with the queues of its thread.
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
    /// What the doorbells were rung in it.
    pub doorbells: DoorbellCounts,
    /// How much of its window each thread had a CPU: 1 is all of it.
    pub cpu: Vec<f64>,
    /// Commands that failed, or whose data were wrong, by how.
    pub failures: Vec<(Failure, u64)>,
    /// A queue had no room for a command, which waited then.
    pub full: bool,
    /// Units read back after the window to verify them.
    pub read_back: u64,
    /// Why it ended before its time.
    pub cut_short: Option<String>,
}

impl Outcome {
    /// Commands that did not.
    pub fn errors(&self) -> u64 {
        self.failures.iter().map(|(_, times)| times).sum()
    }

    fn add_failures(&mut self, failures: Vec<(Failure, u64)>) {
        for (trouble, times) in failures {
            match self.failures.iter_mut().find(|(t, _)| *t == trouble) {
                Some((_, sum)) => *sum += times,
                None => self.failures.push((trouble, times)),
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

/// Runs a job: a thread a core, each with the queues it is given. `interrupted` ends it early; so does a queue that is dead. `tick` is
/// called each second.
///
/// # Errors
/// A core that can't be pinned to, a span that is too small, and a device that failed before anything was measured.
pub fn run<Q: Pair>(
    job: &Job,
    cores: Supplies<Q>,
    interrupted: &AtomicBool,
    mut tick: impl FnMut(Tick),
) -> Result<Outcome> {
    let lanes: u64 = cores.iter().map(|(_, supplies)| supplies.len() as u64).sum();
    let units = job.units / lanes.max(1);
    let least = if job.verify { job.depth as u64 } else { 1 };
    if units < least {
        bail!("{} blocks of the asked size are too few for {lanes} queues of depth {}", job.units, job.depth);
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
    let book = |lane| Book::new(job.workload, units, job.seed.wrapping_add(lane), verify);
    let mut books = (0..lanes).map(book).collect::<Result<Vec<_>>>()?.into_iter();
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
                for (supply, book) in supplies.into_iter().zip(&mut books) {
                    lanes.push(Lane::new(job, supply, job.first + lane * units * job.blocks, book, &clock));
                    lane += 1;
                }
                let (clock, shared, all_there) = (&clock, &shared, &all_there);
                let work = move || match *all_there.lock().unwrap_or_else(|e| e.into_inner()) {
                    true => Ok(()),
                    false => Err(anyhow!("not all threads could be started")),
                };
                let work = move || work().and_then(|()| Worker { job, index, core, lanes, clock, shared }.run());
                std::thread::Builder::new().spawn_scoped(scope, work).context("cannot start a thread")
            })
            .collect::<Result<_>>()?;
        *gate = true;
        drop(gate);
        conduct(job, &shared, interrupted, &mut tick, || threads.iter().all(|t| t.is_finished()));
        let windows = threads
            .into_iter()
            .map(|t| t.join().map_err(|_| anyhow!("a worker thread panicked"))?)
            .collect::<Result<Vec<_>>>()?;
        let interrupted = interrupted.load(Ordering::Relaxed).then(|| INTERRUPTED.to_owned());
        Ok(collect(windows, interrupted))
    })
}

/// Turns the phases when their time has come.
fn conduct(
    job: &Job,
    shared: &Shared,
    interrupted: &AtomicBool,
    tick: &mut impl FnMut(Tick),
    all_ended: impl Fn() -> bool,
) {
    const LOOK: Duration = Duration::from_millis(100);
    const SOON: Duration = Duration::from_millis(1);
    const TICK: Duration = Duration::from_secs(1);
    shared.barrier.wait();
    let start = Instant::now();
    let (mut last, mut last_ended) = (start, 0);
    let (mut began, mut opened) = (start, false);
    while !all_ended() {
        let phase = Phase::of(shared.phase.load(Ordering::Relaxed));
        // On a busy machine a thread may be late to see that its window is open: it shall have all of its time.
        if phase == Phase::Measure && !opened {
            opened = shared.opened.load(Ordering::Relaxed) == shared.ended.len();
            began = Instant::now();
        }
        let left = match phase {
            Phase::Warmup => job.warmup.saturating_sub(began.elapsed()),
            Phase::Measure => job.time.saturating_sub(began.elapsed()),
            Phase::Verify | Phase::Stop => LOOK,
        };
        if interrupted.load(Ordering::Relaxed) {
            shared.phase.fetch_max(Phase::Stop as u8, Ordering::Relaxed);
        } else if left.is_zero() {
            shared.phase.fetch_max(phase as u8 + 1, Ordering::Relaxed);
            began = Instant::now();
            continue;
        }
        let look = if phase == Phase::Measure && !opened { SOON } else { LOOK };
        std::thread::sleep(look.min(left));
        if last.elapsed() >= TICK {
            let ended = shared.ended.iter().map(|n| n.load(Ordering::Relaxed)).sum::<u64>();
            let iops = (ended - last_ended) as f64 / last.elapsed().as_secs_f64();
            (last, last_ended) = (Instant::now(), ended);
            tick(Tick { phase, elapsed: start.elapsed(), iops });
        }
    }
}

/// One outcome of all windows.
fn collect(windows: Vec<Window>, cut_short: Option<String>) -> Outcome {
    let mut outcome = Outcome {
        reads: empty(),
        writes: empty(),
        iops: 0.0,
        window: Duration::ZERO,
        doorbells: DoorbellCounts::default(),
        cpu: Vec::new(),
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
        outcome.cut_short = outcome.cut_short.or(window.failed);
    }
    outcome
}

#[cfg(test)]
pub mod ram;

#[cfg(test)]
mod tests {
    use super::pattern::Fault;
    use super::ram::{Mishap, Ram};
    use super::*;
    use wholebar::mem::{Arena, ArenaOptions};

    fn job(workload: Workload, verify: bool) -> Job {
        Job {
            workload,
            nsid: 1,
            block: 512,
            blocks: 2,
            first: 0,
            units: 32,
            depth: 8,
            batch: 4,
            warmup: Duration::from_millis(10),
            time: Duration::from_millis(30),
            verify,
            seed: 1,
            shared_cores: true,
        }
    }

    /// Runs a job, again and for longer where that was too short for what is to be seen: a busy machine may let it do next to nothing.
    fn run_on_ram(job: &Job, lanes: usize, mishap: Mishap) -> Outcome {
        const ENOUGH: u64 = 2000;
        let mut job = job.clone();
        loop {
            let outcome = run_once(&job, lanes, mishap);
            if outcome.latency().len() >= ENOUGH || outcome.cut_short.is_some() {
                return outcome;
            }
            job.time *= 2;
            assert!(
                job.time < Duration::from_secs(120),
                "{} commands in {:?}",
                outcome.latency().len(),
                outcome.window
            );
        }
    }

    fn run_once(job: &Job, lanes: usize, mishap: Mishap) -> Outcome {
        let arena = Arena::new(1 << 20, ArenaOptions::default()).unwrap();
        let pool = Pool::new(&arena, (lanes * job.depth) as u32, 1024, 4096).unwrap();
        let supplies = (0..lanes).map(|_| Supply {
            queue: Ram::new(64, job.depth, mishap),
            bufs: (0..job.depth).map(|_| pool.get_len(1024).unwrap()).collect(),
            pool: pool.clone(),
        });
        // Not every process may use core 0.
        let core = wholebar::cores::allowed()[0];
        run(job, vec![(core, supplies.collect())], &AtomicBool::new(false), |_| ()).unwrap()
    }

    const MIXED: Workload = Workload { order: Order::Random, direction: Direction::Mixed { read_percent: 50 } };

    #[test]
    fn a_run_is_measured_over_its_window() {
        let read = Workload { order: Order::Random, direction: Direction::Read };
        let outcome = run_on_ram(&job(read, false), 2, Mishap::None);
        assert!(outcome.window >= Duration::from_millis(30), "{:?}", outcome.window);
        let commands = outcome.reads.len();
        let expected = commands as f64 / outcome.window.as_secs_f64();
        assert!((outcome.iops / expected - 1.0).abs() < 0.01, "{} {expected}", outcome.iops);
        assert!(outcome.writes.is_empty() && outcome.failures.is_empty() && outcome.cut_short.is_none());
        // Depth 8 in batches of 4.
        let per_bell = commands as f64 / outcome.doorbells.direct as f64;
        assert!((3.5..=4.5).contains(&per_bell), "{per_bell}");
    }

    #[test]
    fn a_failure_after_which_nothing_gets_better_ends_the_run() {
        let read = Workload { order: Order::Random, direction: Direction::Read };
        let endless = Job { time: Duration::from_secs(600), ..job(read, false) };
        let outcome = run_once(&endless, 1, Mishap::Fail(100, ram::HOPELESS));
        assert_eq!(outcome.cut_short.as_deref(), Some("namespace 1 is not there any more"));
        assert_eq!(outcome.failures, [(Failure::Status(Status::Device(ram::HOPELESS)), 1)]);
    }

    #[test]
    fn a_window_has_a_command_in_it_however_short_it_is() {
        let read = Workload { order: Order::Random, direction: Direction::Read };
        let none = Job { warmup: Duration::ZERO, time: Duration::ZERO, ..job(read, false) };
        let outcome = run_once(&none, 1, Mishap::None);
        assert!(!outcome.reads.is_empty() && outcome.iops > 0.0 && outcome.cut_short.is_none());
    }

    #[test]
    fn data_that_come_back_as_they_were_are_no_trouble() {
        for order in [Order::Random, Order::Sequential] {
            let outcome = run_on_ram(&job(Workload { order, ..MIXED }, true), 2, Mishap::None);
            assert_eq!(outcome.failures, []);
            assert_eq!(outcome.read_back, 32, "all units were written");
            assert!(!outcome.reads.is_empty() && !outcome.writes.is_empty());
        }
    }

    #[test]
    fn data_that_do_not_are() {
        for (mishap, faults) in [
            (Mishap::Flip(50), &[Fault::Corrupt][..]),
            (Mishap::Elsewhere(50), &[Fault::Misplaced, Fault::NoPattern, Fault::Stale][..]),
            (Mishap::Forget(50), &[Fault::Stale, Fault::NoPattern][..]),
        ] {
            let outcome = run_on_ram(&job(MIXED, true), 1, mishap);
            assert!(outcome.errors() > 0, "{mishap:?}");
            for (trouble, _) in &outcome.failures {
                assert!(matches!(trouble, Failure::Data(f) if faults.contains(f)), "{mishap:?}: {trouble:?}");
            }
        }
        let failed = run_on_ram(&job(MIXED, true), 1, Mishap::Fail(0, 0x281));
        assert_eq!(failed.failures, [(Failure::Status(Status::Device(0x281)), 1)], "counted, though in the warm-up");
    }

    #[test]
    fn a_device_that_vanishes_ends_the_run() {
        let outcome = run_on_ram(&Job { time: Duration::from_secs(600), ..job(MIXED, false) }, 1, Mishap::Vanish(10));
        assert_eq!(outcome.cut_short.as_deref(), Some("the device is gone"));
    }

    #[test]
    fn too_small_a_span_is_refused() {
        let job = Job { units: 7, ..job(MIXED, true) };
        let pool = Pool::new(&Arena::new(1 << 16, ArenaOptions::default()).unwrap(), 1, 1024, 4096).unwrap();
        let supply = Supply { queue: Ram::new(64, 8, Mishap::None), bufs: Vec::new(), pool };
        assert!(run(&job, vec![(0, vec![supply])], &AtomicBool::new(false), |_| ()).is_err());
    }
}

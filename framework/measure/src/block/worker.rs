//! One thread of a run: its lanes, and its window on them.

use super::lane::{Lane, Tally};
use super::{Direction, Job, MAX_BACK_OFF, Phase, QueuePair, Shared};
use crate::Result;
use crate::cpu::Thread;
use quanta::Clock;
use std::sync::atomic::Ordering;
use std::time::Duration;
use wholebar_core::bar::DoorbellCounts;
use wholebar_core::cores;

/// One thread's part.
pub struct Worker<'a, Q> {
    /// What there is to do.
    pub job: &'a Job,
    /// Which thread it is.
    pub index: usize,
    /// Its core.
    pub core: usize,
    /// Its queues.
    pub lanes: Vec<Lane<Q>>,
    /// What time is told by.
    pub clock: &'a Clock,
    /// What it shares with the other threads.
    pub shared: &'a Shared,
}

/// Polls in a row that found nothing.
#[derive(Default)]
struct Idle {
    polls: u32,
    /// Of the CPU, that this is a loop which waits (`pause`, `isb`).
    hints: u32,
}

impl Idle {
    /// A poll found nothing: waits for one hint, and for twice as many after each further poll, doubled so often at most.
    #[inline]
    fn wait(&mut self, doublings: u32) {
        let hints = 1 << self.polls.min(doublings).min(MAX_BACK_OFF);
        (self.polls, self.hints) = (self.polls.saturating_add(1), self.hints.wrapping_add(hints));
        (0..hints).for_each(|_| std::hint::spin_loop());
    }
}

/// What one thread measured.
#[derive(Default)]
pub struct Window {
    /// What ended inside the window, and, once that is closed, failures after it.
    pub tallies: Vec<Tally>,
    /// Failures after the window.
    pub late: Vec<Tally>,
    /// Ticks of the clock.
    pub start: u64,
    /// Nanoseconds.
    pub length: u64,
    /// CPU time in the window.
    pub cpu: Duration,
    /// Rung in the window.
    pub doorbells: DoorbellCounts,
    /// Commands that read back what was written.
    pub read_back: u64,
    /// Why it ended early.
    pub failed: Option<String>,
}

impl<Q: QueuePair> Worker<'_, Q> {
    /// Runs it.
    ///
    /// # Errors
    /// A core that cannot be pinned to. What else fails is told by the window.
    pub fn run(mut self) -> Result<Window> {
        let pinned = cores::pin(self.core);
        self.shared.barrier.wait();
        if let Err(e) = pinned {
            self.enter(Phase::Stop);
            return Err(e.into());
        }
        let mut window = Window { start: self.clock.raw(), ..Window::default() };
        if let Err(why) = self.measure(&mut window) {
            self.close(&mut window);
            window.failed = Some(why);
            self.enter(Phase::Stop);
        } else if let Err(why) = self.wind_up(&mut window) {
            window.failed = Some(why);
        }
        window.late = self.lanes.iter_mut().map(Lane::take_tally).collect();
        Ok(window)
    }

    /// Warm-up and measurement.
    fn measure(&mut self, window: &mut Window) -> Result<(), String> {
        self.lanes.iter_mut().try_for_each(Lane::start)?;
        self.poll_until(|worker| worker.phase() > Phase::Warmup)?;
        self.open(window);
        let before = self.ended();
        // A thread that got no CPU all that time has measured nothing: its window is open until something ended in it, or the run is stopped.
        self.poll_until(|worker| match worker.phase() {
            Phase::Warmup | Phase::Measure => false,
            Phase::Verify => worker.ended() > before,
            Phase::Stop => true,
        })?;
        self.close(window);
        Ok(())
    }

    fn open(&mut self, window: &mut Window) {
        self.lanes.iter_mut().for_each(Lane::forget_latencies);
        window.cpu = Thread::current().cpu_time().unwrap_or_default();
        window.doorbells = self.doorbells();
        window.start = self.clock.raw();
        self.shared.opened.fetch_add(1, Ordering::Relaxed);
    }

    fn close(&mut self, window: &mut Window) {
        window.length = self.clock.delta_as_nanos(window.start, self.clock.raw());
        window.cpu = Thread::current().cpu_time().unwrap_or_default().saturating_sub(window.cpu);
        let rung = self.doorbells();
        window.doorbells.direct = rung.direct - window.doorbells.direct;
        window.doorbells.trapped = rung.trapped - window.doorbells.trapped;
        window.tallies = self.lanes.iter_mut().map(Lane::take_tally).collect();
    }

    /// Waits for what is in flight, and reads back what was written, where that is to be verified.
    fn wind_up(&mut self, window: &mut Window) -> Result<(), String> {
        self.lanes.iter_mut().for_each(Lane::stop);
        self.settle()?;
        if self.job.verify && self.job.workload.direction != Direction::Read && self.phase() < Phase::Stop {
            for lane in &mut self.lanes {
                window.read_back += lane.read_back()?;
            }
            self.settle()?;
        }
        Ok(())
    }

    /// Polls until nothing is in flight.
    fn settle(&mut self) -> Result<(), String> {
        let mut stopped = false;
        self.poll_until(|worker| {
            if worker.phase() == Phase::Stop && !std::mem::replace(&mut stopped, true) {
                worker.lanes.iter_mut().for_each(Lane::stop);
            }
            worker.lanes.iter().all(Lane::quiet)
        })
    }

    /// Polls until it is over.
    fn poll_until(&mut self, mut over: impl FnMut(&mut Self) -> bool) -> Result<(), String> {
        let (mut ended, mut idle) = (self.ended(), Idle::default());
        while !over(self) {
            let n = self.poll_lanes(&mut idle)?;
            if n > 0 {
                ended += n as u64;
                self.shared.ended[self.index].store(ended, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    #[inline]
    fn poll_lanes(&mut self, idle: &mut Idle) -> Result<usize, String> {
        let mut n = 0;
        for lane in &mut self.lanes {
            n += lane.poll()?;
        }
        if n > 0 {
            *idle = Idle::default();
            return Ok(n);
        }
        let before = idle.hints;
        idle.wait(self.job.back_off);
        let passed = |every: u32| before / every != idle.hints / every;
        if self.job.shared_cores && passed(64) {
            std::thread::yield_now();
        }
        // A queue that is dead never has anything to do again.
        if passed(1 << 16)
            && let Some(why) = self.lanes.iter().find_map(Lane::dead)
        {
            return Err(why);
        }
        Ok(0)
    }

    /// Commands of this thread that ended.
    fn ended(&self) -> u64 {
        self.shared.ended[self.index].load(Ordering::Relaxed)
    }

    fn phase(&self) -> Phase {
        Phase::of(self.shared.phase.load(Ordering::Relaxed))
    }

    fn enter(&self, phase: Phase) {
        self.shared.phase.fetch_max(phase as u8, Ordering::Relaxed);
    }

    fn doorbells(&self) -> DoorbellCounts {
        let mut sum = DoorbellCounts::default();
        self.lanes.iter().for_each(|lane| sum += lane.doorbells());
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polls_that_find_nothing_get_rarer_up_to_a_bound() {
        let hints = |back_off, polls| {
            let mut idle = Idle::default();
            (0..polls).for_each(|_| idle.wait(back_off));
            idle.hints
        };
        assert_eq!((hints(0, 5), hints(3, 5), hints(u32::MAX, 12)), (5, 1 + 2 + 4 + 8 + 8, (1 << 12) - 1 - 1024));
    }
}

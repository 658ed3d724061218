//! When a reactor that finds nothing to do sleeps: the decision alone, in polls and nanoseconds. It does *not* arm, sleep or know of pollers.
//!
//! A pause is the time from one poll that found work to the next. Spinning through a pause costs all of it; sleeping costs a fixed amount of CPU time, that of
//! arming, two system calls and a switch of threads, and that much latency. So spinning is worth it while pauses are short against a sleep, and the
//! past says what is to be expected: the average of the last pauses, weighted exponentially (an eighth for the newest), against [`WORTH`] times the CPU time that
//! sleeps took, measured at each. Where pauses have been longer than that, the reactor sleeps at once; where they have been shorter, it spins for
//! that long and sleeps then. So nothing that comes faster than the limit ever waits for a wake-up, and what comes slower costs one sleep.
//!
//! While it spins, the core [pauses](Pause) between two polls once some hundreds of them found nothing, where the CPU has an instruction for that: a pause costs what comes in
//! meanwhile half a microsecond at most.
//!
//! A reactor that works without a pause does not look at the clock: up to [`CLOCK_EVERY`] idle polls in a row are counted, and cost what was learnt of others.

use crate::cores::Pause;
use std::time::{Duration, Instant};

/// How many times the CPU time of a sleep is spent on spinning: what a wake-up's latency is worth.
const WORTH: u64 = 8;
/// Idle polls between two reads of the clock.
const CLOCK_EVERY: u32 = 64;
/// Idle polls in a row after which the core pauses between two: some microseconds. (DPDK's `rte_power_pmd_mgmt.c`: 512.)
const PAUSE_AFTER: u32 = 512;
/// What a sleep is taken to cost before one was measured, and the limits of what is believed, in nanoseconds.
const FIRST_COST: u64 = 5_000;
const LEAST_COST: u64 = 1_000;
const MOST_COST: u64 = 50_000;
/// The longest pause that counts as such, in limits: so that a dozen short pauses make up for a long one.
const LONGEST: u64 = 4;

/// What a reactor has learnt of its pauses.
#[derive(Debug)]
pub(crate) struct Hybrid {
    /// Idle polls since there was work, or since the last sleep was refused.
    polls: u32,
    /// When the pause began, as far as the clock was looked at.
    since: Option<Instant>,
    /// What an idle poll takes, in nanoseconds.
    poll_ns: u64,
    /// The average pause, in nanoseconds.
    pause: u64,
    /// The average CPU time of a sleep, in nanoseconds.
    cost: u64,
    /// Pauses are too long to spin through.
    long: bool,
    /// What the CPU has for it; `None` where that is no more than a hint.
    instruction: Option<Pause>,
}

impl Hybrid {
    pub(crate) fn new() -> Self {
        let instruction = Some(Pause::of_this_cpu()).filter(|pause| pause.is_timed());
        Self { polls: 0, since: None, poll_ns: 20, pause: 0, cost: FIRST_COST, long: false, instruction }
    }

    /// Longer pauses are not spun through, in nanoseconds.
    pub(crate) fn limit(&self) -> u64 {
        WORTH * self.cost
    }

    /// A poll found work.
    #[inline]
    pub(crate) fn busy(&mut self) {
        if self.polls > 0 {
            self.pause_ended();
        }
    }

    #[inline]
    fn pause_ended(&mut self) {
        let polls = std::mem::take(&mut self.polls);
        let pause = match self.since.take() {
            None => u64::from(polls) * self.poll_ns,
            Some(since) => nanos(since.elapsed()),
        };
        self.learn(pause);
    }

    fn learn(&mut self, pause: u64) {
        let limit = self.limit();
        self.pause = (7 * self.pause + pause.min(LONGEST * limit)) / 8;
        self.long = self.pause > limit;
    }

    /// A poll found nothing: whether to sleep now.
    #[inline]
    pub(crate) fn idle(&mut self) -> bool {
        self.polls = self.polls.saturating_add(1);
        let pauses = self.polls > PAUSE_AFTER && self.instruction.is_some();
        self.long || ((pauses || self.polls.is_multiple_of(CLOCK_EVERY)) && self.check_clock(Instant::now()))
    }

    /// Before the next poll, where [`idle`](Self::idle) said not to sleep.
    #[inline]
    pub(crate) fn pause(&self) {
        if self.polls > PAUSE_AFTER
            && let Some(instruction) = self.instruction
        {
            instruction.pause();
        }
    }

    /// Whether the pause has lasted as long as spinning is worth it.
    #[cold]
    fn check_clock(&mut self, now: Instant) -> bool {
        let Some(since) = self.since else {
            self.since = now.checked_sub(Duration::from_nanos(u64::from(CLOCK_EVERY) * self.poll_ns)).or(Some(now));
            return false;
        };
        let pause = nanos(now.saturating_duration_since(since));
        // Without the time of pauses: it is used where there were few polls.
        if self.polls <= PAUSE_AFTER || self.instruction.is_none() {
            self.poll_ns = (pause / u64::from(self.polls)).max(1);
        }
        pause >= self.limit()
    }

    /// The reactor is about to arm: the pause began at this time at the latest.
    pub(crate) fn arms(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// It slept, which took so much CPU time; `None` where that is not known.
    pub(crate) fn slept(&mut self, cpu: Option<Duration>) {
        if let Some(cpu) = cpu {
            self.cost = ((7 * self.cost + nanos(cpu)) / 8).clamp(LEAST_COST, MOST_COST);
        }
    }

    /// It could not sleep, since something cannot be armed: it is tried again once the limit is over.
    pub(crate) fn refused(&mut self) {
        *self = Self { polls: 0, since: None, pause: 0, long: false, ..*self };
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_decide() {
        let mut hybrid = Hybrid::new();
        let limit = hybrid.limit();
        assert_eq!(limit, WORTH * FIRST_COST);
        // Short pauses: it spins at the beginning of each.
        (0..100).for_each(|_| hybrid.learn(limit / 2));
        assert!(!hybrid.idle());
        // Long ones: it sleeps at once, as soon as the average is above the limit.
        let before = (0..).find(|_| {
            hybrid.learn(100 * limit);
            hybrid.long
        });
        assert_eq!(before, Some(1), "the second long pause tells");
        assert!(hybrid.idle());
        (0..100).for_each(|_| hybrid.learn(u64::MAX));
        // And spins again after a dozen short ones.
        let short = (0..).find(|_| {
            hybrid.learn(0);
            !hybrid.long
        });
        assert_eq!(short, Some(10));
    }

    #[test]
    fn a_pause_is_spun_through_up_to_the_limit() {
        let mut hybrid = Hybrid::new();
        let began = Instant::now() + Duration::from_secs(1);
        hybrid.polls = CLOCK_EVERY;
        assert!(!hybrid.check_clock(began), "the clock is looked at for the first time");
        hybrid.polls = 2 * CLOCK_EVERY;
        assert!(!hybrid.check_clock(began + Duration::from_nanos(hybrid.limit() / 2)));
        let poll_ns = hybrid.poll_ns;
        hybrid.polls = 4 * CLOCK_EVERY;
        assert!(hybrid.check_clock(began + Duration::from_nanos(hybrid.limit())));
        assert!(poll_ns > 1 && hybrid.poll_ns > 1, "what a poll takes is learnt");
    }

    #[test]
    fn what_a_sleep_costs_is_learnt_within_limits() {
        let mut hybrid = Hybrid::new();
        (0..100).for_each(|_| hybrid.slept(Some(Duration::from_micros(10))));
        assert!((9_900..=10_000).contains(&hybrid.cost), "{hybrid:?}");
        hybrid.slept(None);
        (0..100).for_each(|_| hybrid.slept(Some(Duration::from_secs(1))));
        assert_eq!(hybrid.cost, MOST_COST);
        (0..100).for_each(|_| hybrid.slept(Some(Duration::ZERO)));
        assert_eq!(hybrid.cost, LEAST_COST);
    }

    /// A CPU with an instruction for it pauses after some hundreds of polls. The limit is kept, and what a poll takes is learnt without pauses.
    #[test]
    fn a_core_pauses_between_polls_that_go_on_finding_nothing() {
        let began = Instant::now() + Duration::from_secs(1);
        let mut hybrid = Hybrid { instruction: Some(Pause::of_this_cpu()), polls: PAUSE_AFTER, ..Hybrid::new() };
        assert!(!hybrid.check_clock(began));
        assert!(!hybrid.check_clock(began + Duration::from_nanos(10 * u64::from(PAUSE_AFTER))));
        let poll_ns = hybrid.poll_ns;
        hybrid.polls += 1;
        hybrid.pause();
        assert!(!hybrid.check_clock(began + Duration::from_nanos(hybrid.limit() - hybrid.limit() / 8)));
        assert_eq!(hybrid.poll_ns, poll_ns);
        assert!(hybrid.check_clock(began + Duration::from_nanos(hybrid.limit())));
        // Each poll looks at the clock then: a pause is long against that.
        hybrid.since = None;
        hybrid.idle();
        assert!(hybrid.since.is_some());
    }

    /// Where nothing can be armed, it is not tried each poll.
    #[test]
    fn a_refusal_is_not_repeated_at_once() {
        let mut hybrid = Hybrid::new();
        (0..100).for_each(|_| hybrid.learn(u64::MAX));
        assert!(hybrid.idle());
        hybrid.refused();
        assert!(!hybrid.idle() && hybrid.since.is_none());
    }
}

//! Interleaved rounds: each plan and each load, one after the other, and all of it again. What else the machine does then meets all of
//! them alike; and a round in which a polling thread lost its core is left out, and counted.
//!
//! It does *not* know what is measured: whoever calls brings two closures, one that opens the device under a plan and one that runs a load.

use crate::output::Progress;
use crate::report::Cpu;
use anyhow::Result;
use std::fmt::{self, Display};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use wholebar::PageSize;
use wholebar::bar::MapPolicy;

/// One way to map the BARs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// How much of them.
    pub policy: MapPolicy,
    /// In pages of which size; `None` for the device's own.
    pub page: Option<PageSize>,
}

/// What is asked of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// In flight.
    pub depth: usize,
    /// For a doorbell, at most.
    pub batch: usize,
}

/// What a run measured.
pub trait Measured: Clone {
    /// A second.
    fn rate(&self) -> f64;
    /// What its threads had of their cores.
    fn cpu(&self) -> &Cpu;
    /// This one, which stands for all of these; of each is said whether it counts.
    fn stand_for(&self, all: &[(&Self, bool)]) -> Self;
}

/// A plan under a load, and its runs.
pub struct Case<P, L, R> {
    /// The plan.
    pub plan: P,
    /// The load.
    pub load: L,
    runs: Vec<R>,
}

/// How much there is to do.
pub struct Rounds<'a, P = Plan, L = Load> {
    /// The plans, in the order they are shown.
    pub plans: &'a [P],
    /// The loads.
    pub loads: &'a [L],
    /// How often.
    pub rounds: usize,
    /// In which time, about.
    pub time: Duration,
}

/// A run is not shorter than this, whatever the time.
const LEAST: Duration = Duration::from_millis(20);

impl<P: Copy + Display, L: Copy + Display> Rounds<'_, P, L> {
    /// Runs them. An interruption ends it early, with the runs that were complete by then.
    ///
    /// # Errors
    /// What the closures say.
    pub fn measure<S, R>(
        &self,
        interrupted: &AtomicBool,
        open: impl Fn(P) -> Result<S>,
        run: impl Fn(&S, L, Duration) -> Result<R>,
    ) -> Result<Vec<Case<P, L, R>>> {
        let loads = self.loads;
        let case = |plan: &P, load: &L| Case { plan: *plan, load: *load, runs: Vec::new() };
        let mut cases: Vec<_> =
            self.plans.iter().flat_map(|plan| loads.iter().map(move |load| case(plan, load))).collect();
        let stopped = || interrupted.load(Ordering::Relaxed);
        let mut progress = Progress::time("measuring", self.time);
        let began = Instant::now();
        let (mut opens, mut runs) = (self.rounds * self.plans.len(), self.rounds * cases.len());
        'all: for round in 0..self.rounds {
            for plan in 0..self.plans.len() {
                // Every other round the other way round: what comes first is not always the same.
                let plan = if round % 2 == 0 { plan } else { self.plans.len() - 1 - plan };
                if stopped() {
                    break 'all;
                }
                let opening = Instant::now();
                let session = open(self.plans[plan])?;
                let opened = opening.elapsed();
                opens -= 1;
                for case in &mut cases[plan * loads.len()..][..loads.len()] {
                    let left = self.time.saturating_sub(began.elapsed() + opened * opens as u32);
                    let (plan, load) = (case.plan, case.load);
                    progress.set_what(format!("round {} of {}: {plan}, {load}", round + 1, self.rounds));
                    progress.at(began.elapsed().as_millis() as u64, String::new);
                    let result = run(&session, case.load, (left / runs as u32).max(LEAST))?;
                    if stopped() {
                        break 'all;
                    }
                    runs -= 1;
                    case.runs.push(result);
                }
            }
        }
        progress.finish();
        Ok(cases)
    }
}

impl Display for Plan {
    /// As people say it, before it is carried out: afterwards [`Run::plan`](crate::report::Run::plan) knows the page size too.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(crate::args::policy_name(self.policy))?;
        self.page.map_or(Ok(()), |page| write!(f, ", {page}"))
    }
}

impl Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "depth {}, batches of {}", self.depth, self.batch)
    }
}

impl<P, L, R: Measured> Case<P, L, R> {
    /// The run with the median rate of those that count, with all rounds told; `None` where there is none.
    pub fn result(&self) -> Option<R> {
        let any = self.runs.iter().any(|run| run.cpu().undisturbed());
        let all: Vec<_> = self.runs.iter().map(|run| (run, run.cpu().undisturbed() || !any)).collect();
        let mut counting: Vec<_> = all.iter().filter(|(_, counts)| *counts).map(|(run, _)| *run).collect();
        counting.sort_by(|a, b| a.rate().total_cmp(&b.rate()));
        Some(counting.get(counting.len() / 2)?.stand_for(&all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Run;
    use std::cell::RefCell;

    fn run_of(iops: f64, share: f64) -> Run {
        let cpu = Cpu { driver: vec![share], model: Some(1.0) };
        Run { policy: "carved".into(), page_size: 65536, iops, cpu, ..Run::example() }
    }

    const PLANS: [Plan; 2] =
        [Plan { policy: MapPolicy::Whole, page: None }, Plan { policy: MapPolicy::Trapped, page: None }];
    const LOADS: [Load; 2] = [Load { depth: 1, batch: 1 }, Load { depth: 8, batch: 4 }];

    #[test]
    fn rounds_go_forth_and_back() {
        let order = RefCell::new(Vec::new());
        let rounds = Rounds { plans: &PLANS, loads: &LOADS, rounds: 3, time: Duration::ZERO };
        let cases = rounds.measure(
            &AtomicBool::new(false),
            |plan| Ok(plan.policy),
            |policy, load, time| {
                assert_eq!(time, LEAST);
                order.borrow_mut().push((*policy, load.depth));
                Ok(run_of(order.borrow().len() as f64, 1.0))
            },
        );
        let (w, t) = (MapPolicy::Whole, MapPolicy::Trapped);
        let (one, two) = ([(w, 1), (w, 8), (t, 1), (t, 8)], [(t, 1), (t, 8), (w, 1), (w, 8)]);
        assert_eq!(*order.borrow(), [one, two, one].concat());
        // Runs 1, 7 and 9 were whole at depth 1.
        let first = cases.unwrap()[0].result().unwrap();
        assert_eq!((first.iops, first.spread(), first.rounds.len()), (7.0, (1.0, 9.0), 3));
    }

    #[test]
    fn an_interrupted_run_does_not_count() {
        let interrupted = AtomicBool::new(false);
        let runs = RefCell::new(0);
        let rounds = Rounds { plans: &PLANS, loads: &LOADS, rounds: 3, time: Duration::ZERO };
        let cases = rounds
            .measure(
                &interrupted,
                |_| Ok(()),
                |(), _, _| {
                    *runs.borrow_mut() += 1;
                    interrupted.store(*runs.borrow() == 6, Ordering::Relaxed);
                    Ok(run_of(1.0, 1.0))
                },
            )
            .unwrap();
        let counts: Vec<_> = cases.iter().map(|case| case.runs.len()).collect();
        assert_eq!((*runs.borrow(), &counts[..]), (6, &[1, 1, 2, 1][..]));
    }

    #[test]
    fn rounds_that_lost_a_core_are_left_out_unless_all_did() {
        let case = |shares: [f64; 3]| {
            let runs = shares.into_iter().zip([1.0, 2.0, 3.0]).map(|(share, iops)| run_of(iops, share)).collect();
            Case { plan: PLANS[0], load: LOADS[0], runs }.result().unwrap()
        };
        let result = case([1.0, 0.5, 1.0]);
        assert_eq!((result.iops, result.dropped(), result.disturbed(), result.spread()), (3.0, 1, false, (1.0, 3.0)));
        let result = case([0.5, 0.6, 0.7]);
        assert_eq!((result.iops, result.dropped(), result.disturbed(), result.spread()), (2.0, 0, true, (1.0, 3.0)));
        assert_eq!(result.plan(), "carved, 64 KiB");
    }
}

//! Interleaved rounds: each plan and each load, one after the other, and all of it again. What else the machine does then meets all of
//! them alike; and a round in which a polling thread lost its core is left out.
//!
//! It does *not* know what is measured: whoever calls brings two closures, one that opens a device under a plan and one that runs a load.
//!
//! ```
//! use std::sync::atomic::AtomicBool;
//! use std::time::Duration;
//! use wholebar_measure::rounds::{Measured, Rounds};
//!
//! /// Units of work a second.
//! #[derive(Clone)]
//! struct Rate(f64);
//!
//! impl Measured for Rate {
//!     fn rate(&self) -> f64 {
//!         self.0
//!     }
//!     fn undisturbed(&self) -> bool {
//!         true
//!     }
//!     fn stand_for(&self, _: &[(&Self, bool)]) -> Self {
//!         self.clone()
//!     }
//! }
//!
//! let rounds = Rounds { plans: &["whole", "trapped"], loads: &[1, 32], rounds: 3, time: Duration::ZERO };
//! // A plan is opened: here it is what a unit costs. Then its loads are run, each for about the time that is said.
//! let open = |plan| Ok::<_, String>(if plan == "whole" { 1.0 } else { 50.0 });
//! let run = |cost: &f64, depth, _time| Ok(Rate(f64::from(depth) / cost));
//! let cases = rounds.measure(&AtomicBool::new(false), open, run, |_| ())?;
//! for case in &cases {
//!     println!("{}, depth {}: {} a second", case.plan, case.load, case.result().map_or(0.0, |median| median.0));
//! }
//! assert_eq!((cases.len(), cases[1].result().unwrap().0), (4, 32.0));
//! # Ok::<(), String>(())
//! ```

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What a run measured.
pub trait Measured: Clone {
    /// The figure by which runs are compared, a second.
    fn rate(&self) -> f64;
    /// Whether its threads had their cores to themselves. A run without does not count, unless no run of its case had.
    fn undisturbed(&self) -> bool;
    /// This run, the median, told as the result of all runs of its case; of each is said whether it counts.
    fn stand_for(&self, all: &[(&Self, bool)]) -> Self;
}

/// A plan under a load, and its runs.
#[derive(Debug, Clone)]
pub struct Case<P, L, R> {
    /// The plan.
    pub plan: P,
    /// The load.
    pub load: L,
    runs: Vec<R>,
}

/// How much there is to do.
#[derive(Debug, Clone, Copy)]
pub struct Rounds<'a, P, L> {
    /// The plans, in the order of the results.
    pub plans: &'a [P],
    /// The loads of each plan.
    pub loads: &'a [L],
    /// How often each plan is opened.
    pub rounds: usize,
    /// In which time, about, all of it is done; a run is not shorter than 20 milliseconds.
    pub time: Duration,
}

/// What is about to be run.
#[derive(Debug, Clone, Copy)]
pub struct Step<P, L> {
    /// The round, from 1.
    pub round: usize,
    /// The plan.
    pub plan: P,
    /// The load.
    pub load: L,
    /// Since the first round began.
    pub elapsed: Duration,
}

/// A run is not shorter than this, whatever the time.
const LEAST: Duration = Duration::from_millis(20);

impl<P: Copy, L: Copy> Rounds<'_, P, L> {
    /// Runs them, plan by plan and load by load; every other round the other way round. `open` makes a session of a plan, `run` measures a load on it for
    /// about a time, and `step` is called before each run. A session is dropped before the next one is opened.
    ///
    /// `interrupted` is looked at between runs and ends it early, with the runs that were complete by then: the one in which it was set does not count.
    ///
    /// # Errors
    /// The first error that `open` or `run` returns; cases that were measured before it are lost.
    pub fn measure<S, R, E>(
        &self,
        interrupted: &AtomicBool,
        open: impl Fn(P) -> Result<S, E>,
        run: impl Fn(&S, L, Duration) -> Result<R, E>,
        mut step: impl FnMut(Step<P, L>),
    ) -> Result<Vec<Case<P, L, R>>, E> {
        let loads = self.loads;
        let case = |plan: &P, load: &L| Case { plan: *plan, load: *load, runs: Vec::new() };
        let mut cases: Vec<_> =
            self.plans.iter().flat_map(|plan| loads.iter().map(move |load| case(plan, load))).collect();
        let stopped = || interrupted.load(Ordering::Relaxed);
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
                    step(Step { round: round + 1, plan: case.plan, load: case.load, elapsed: began.elapsed() });
                    let result = run(&session, case.load, (left / runs as u32).max(LEAST))?;
                    if stopped() {
                        break 'all;
                    }
                    runs -= 1;
                    case.runs.push(result);
                }
            }
        }
        Ok(cases)
    }
}

impl<P, L, R: Measured> Case<P, L, R> {
    /// The run with the median rate of those that count, with all rounds told; `None` where there is none.
    pub fn result(&self) -> Option<R> {
        let any = self.runs.iter().any(R::undisturbed);
        let all: Vec<_> = self.runs.iter().map(|run| (run, run.undisturbed() || !any)).collect();
        let mut counting: Vec<_> = all.iter().filter(|(_, counts)| *counts).map(|(run, _)| *run).collect();
        counting.sort_by(|a, b| a.rate().total_cmp(&b.rate()));
        Some(counting.get(counting.len() / 2)?.stand_for(&all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::convert::Infallible;

    /// A rate, whether it was undisturbed, and of all rounds: rates and whether they count.
    #[derive(Debug, Clone, PartialEq)]
    struct Run(f64, bool, Vec<(f64, bool)>);

    impl Measured for Run {
        fn rate(&self) -> f64 {
            self.0
        }

        fn undisturbed(&self) -> bool {
            self.1
        }

        fn stand_for(&self, all: &[(&Self, bool)]) -> Self {
            Self(self.0, self.1, all.iter().map(|(run, counts)| (run.0, *counts)).collect())
        }
    }

    const ROUNDS: Rounds<'_, char, usize> =
        Rounds { plans: &['w', 't'], loads: &[1, 8], rounds: 3, time: Duration::ZERO };

    #[test]
    fn rounds_go_forth_and_back() {
        let order = RefCell::new(Vec::new());
        let mut steps = Vec::new();
        let cases = ROUNDS.measure(
            &AtomicBool::new(false),
            Ok::<_, Infallible>,
            |plan, load, time| {
                assert_eq!(time, LEAST);
                order.borrow_mut().push((*plan, load));
                Ok(Run(order.borrow().len() as f64, true, Vec::new()))
            },
            |step| steps.push((step.plan, step.load)),
        );
        let (one, two) = ([('w', 1), ('w', 8), ('t', 1), ('t', 8)], [('t', 1), ('t', 8), ('w', 1), ('w', 8)]);
        assert_eq!(*order.borrow(), [one, two, one].concat());
        assert_eq!(steps, *order.borrow());
        // Runs 1, 7 and 9 were whole at depth 1.
        let Ok(cases) = cases;
        assert_eq!(cases[0].result(), Some(Run(7.0, true, vec![(1.0, true), (7.0, true), (9.0, true)])));
    }

    #[test]
    fn an_interrupted_run_does_not_count() {
        let interrupted = AtomicBool::new(false);
        let runs = RefCell::new(0);
        let open = |_| Ok::<_, Infallible>(());
        let run = |(): &(), _, _| {
            *runs.borrow_mut() += 1;
            interrupted.store(*runs.borrow() == 6, Ordering::Relaxed);
            Ok(())
        };
        let Ok(cases) = ROUNDS.measure(&interrupted, open, run, |_| ());
        let counts: Vec<_> = cases.iter().map(|case| case.runs.len()).collect();
        assert_eq!((*runs.borrow(), &counts[..]), (6, &[1, 1, 2, 1][..]));
    }

    #[test]
    fn rounds_that_lost_a_core_are_left_out_unless_all_did() {
        let case = |undisturbed: [bool; 3]| {
            let runs = undisturbed.into_iter().zip([1.0, 2.0, 3.0]).map(|(had, rate)| Run(rate, had, Vec::new()));
            Case { plan: 'w', load: 1, runs: runs.collect() }.result().unwrap()
        };
        assert_eq!(case([true, false, true]), Run(3.0, true, vec![(1.0, true), (2.0, false), (3.0, true)]));
        assert_eq!(case([false; 3]), Run(2.0, false, vec![(1.0, true), (2.0, true), (3.0, true)]));
        assert_eq!(Case::<_, _, Run> { plan: 'w', load: 1, runs: Vec::new() }.result(), None);
    }
}

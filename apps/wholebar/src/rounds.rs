//! What is compared in interleaved rounds ([`wholebar::measure::rounds`]), in words, and how far they are.

use crate::output::Progress;
use anyhow::Result;
use std::fmt::{self, Display};
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use wholebar::PageSize;
use wholebar::bar::MapPolicy;
use wholebar::measure::rounds::{Case, Rounds};

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

/// Runs rounds, and shows how far they are.
///
/// # Errors
/// The first error that `open` or `run` returns; cases that were measured before it are lost.
pub fn measure<P: Copy + Display, L: Copy + Display, S, R>(
    rounds: &Rounds<P, L>,
    interrupted: &AtomicBool,
    open: impl Fn(P) -> Result<S>,
    run: impl Fn(&S, L, Duration) -> Result<R>,
) -> Result<Vec<Case<P, L, R>>> {
    let mut progress = Progress::time("measuring", rounds.time);
    let cases = rounds.measure(interrupted, open, run, |step| {
        progress.set_what(format!("round {} of {}: {}, {}", step.round, rounds.rounds, step.plan, step.load));
        progress.at(step.elapsed.as_millis() as u64, String::new);
    })?;
    progress.finish();
    Ok(cases)
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

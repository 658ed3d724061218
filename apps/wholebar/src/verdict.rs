//! `--baseline`: a target and another one, measured in turns, and which of them does more, in a sentence.

use crate::output;
use rustix::time::{ClockId, clock_gettime};
use std::fmt;
use std::time::Duration;
use wholebar::measure::ratio::Ratio;

/// With as many a ratio's interval holds the true one with 99.8 %.
pub const ROUNDS: usize = 10;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    This,
    Baseline,
}

impl Side {
    pub const BOTH: [Self; 2] = [Self::This, Self::Baseline];
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::This => "the target",
            Self::Baseline => "the baseline",
        })
    }
}

/// CPU time of this process, with the threads that the kernel has for it.
pub fn process_cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

/// The verdict, in a sentence or two. `rate` is what is compared: IOPS.
pub fn sentence(this: &str, other: &str, rate: &str, ratio: Option<Ratio>, undisturbed: bool) -> String {
    let mut text = match ratio {
        None => "verdict: none: fewer than five rounds count".to_owned(),
        Some(ratio) => {
            let Ratio { median, low, high, confidence } = ratio;
            let sure = confidence * 100.0;
            let interval = format!("{low:.2} to {high:.2} with {sure:.1} % (sign test)");
            match ratio.is_same() {
                true => format!(
                    "verdict: the same, as far as these rounds tell: {this} does {median:.2} times the {rate} of {other}, {interval}"
                ),
                false => format!("verdict: {this} does {median:.2} times the {rate} of {other}: {interval}"),
            }
        }
    };
    text += ". CPUs: what this process used, and the kernel's threads that work for it; interrupts are not in it. Figures are of the round with the median rate.";
    if !undisturbed {
        text += " The threads did not have their cores to themselves: compare again on quiet cores.";
    }
    output::paragraph(&text)
}

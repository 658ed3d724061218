//! What a device must do, tried on the device itself, over any backend: what somebody who has the hardware runs once, to know.
//!
//! [`run`] tries a PCI function, and the disk or port that the built-in drivers make of it. It reads only, where no blocks are given to write to
//! ([`Scratch`]). Each [`Check`] says what was tried, and what came of it. [`removal`] tries what happens when the machine's owner wants the device back.
//!
//! The bodies are those of the test suite of wholebar ([`storage`]), so that a model, an emulated device in a guest, and hardware are asked the same. This
//! crate does *not* measure: that is `wholebar::measure`.
//!
//! ```
//! use std::sync::atomic::AtomicBool;
//! use wholebar_selftest::{Options, Verdict, run};
//!
//! let device = wholebar::open("sim:nvme,size=16M")?;
//! let checks = run(&device, &Options::default(), &mut |_| (), &AtomicBool::new(false));
//! assert!(checks.iter().all(|check| check.verdict != Verdict::Failed), "{checks:#?}");
//! # Ok::<(), wholebar::OpenError>(())
//! ```

mod device;
mod disk;
mod nvme;
pub mod packets;
mod port;
mod removal;
mod scratch;
pub mod storage;
mod wakeup;

pub use removal::removal;

use anyhow::Result;
use serde::Serialize;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use wholebar::pci::PciDevice;

/// What a run may do.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The blocks that it may write; `None` for a run that only reads.
    pub scratch: Option<Scratch>,
}

/// Blocks of a disk that may be written. What they held is written back in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scratch {
    /// The number of the namespace.
    pub nsid: u32,
    /// The blocks. At most the first 8 MiB of them are used.
    pub lbas: Range<u64>,
}

/// What was tried, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What of the device it is about: `function`, `disk`, `port`, `nvme`.
    pub area: &'static str,
    /// What was tried.
    pub name: &'static str,
    /// What came of it.
    pub verdict: Verdict,
    /// What was seen: figures where it passed, the reason where it did not.
    pub detail: String,
    /// How long it took, in milliseconds.
    pub millis: u64,
}

/// What came of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The device did what it must.
    Passed,
    /// It did not.
    Failed,
    /// The device or the machine has nothing to try it with.
    LeftOut,
}

/// What a run tells of while it goes on.
#[derive(Debug, Clone, Copy)]
pub enum Step<'a> {
    /// A check begins: its area and its name.
    Begins(&'a str, &'a str),
    /// A check has ended.
    Ended(&'a Check),
}

/// Tries all that is there to try of a device, which nobody else may use meanwhile: the function, then the disk or the port that a built-in driver
/// makes of it. Takes some seconds, of a broken device up to minutes: a driver's own deadlines have to pass.
///
/// `tell` is told of each step; once `stop` is set, the rest is left undone.
pub fn run(
    device: &Arc<dyn PciDevice>,
    options: &Options,
    tell: &mut dyn FnMut(Step<'_>),
    stop: &AtomicBool,
) -> Vec<Check> {
    let mut runner = Runner { checks: Vec::new(), tell, stop };
    let before = device::function(&mut runner, device);
    let driven = disk::disk(&mut runner, device, options) || port::port(&mut runner, device);
    if !driven {
        let why = "no built-in driver is for this device".to_owned();
        runner.check("function", "a driver", || Ok(Found::Nothing(why)));
    }
    if let Some(before) = before {
        device::given_back(&mut runner, device, &before);
    }
    runner.checks
}

/// What a check found.
enum Found {
    /// All as it must be, and what was seen.
    Good(String),
    /// There is nothing to try it with, for this reason.
    Nothing(String),
}

/// Runs checks, one after the other.
struct Runner<'a> {
    checks: Vec<Check>,
    tell: &'a mut dyn FnMut(Step<'_>),
    stop: &'a AtomicBool,
}

impl Runner<'_> {
    /// Runs a check, unless the run was stopped. Returns whether it passed.
    fn check(&mut self, area: &'static str, name: &'static str, body: impl FnOnce() -> Result<Found>) -> bool {
        !self.stop.load(Ordering::Relaxed) && self.always(area, name, body)
    }

    /// Runs a check, even if the run was stopped. Returns whether it passed.
    fn always(&mut self, area: &'static str, name: &'static str, body: impl FnOnce() -> Result<Found>) -> bool {
        (self.tell)(Step::Begins(area, name));
        let check = checked(area, name, body);
        (self.tell)(Step::Ended(&check));
        let passed = check.verdict == Verdict::Passed;
        self.checks.push(check);
        passed
    }
}

fn checked(area: &'static str, name: &'static str, body: impl FnOnce() -> Result<Found>) -> Check {
    let began = Instant::now();
    let (verdict, detail) = match body() {
        Ok(Found::Good(detail)) => (Verdict::Passed, detail),
        Ok(Found::Nothing(why)) => (Verdict::LeftOut, why),
        Err(error) => (Verdict::Failed, format!("{error:#}")),
    };
    Check { area, name, verdict, detail, millis: millis(began.elapsed()) }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

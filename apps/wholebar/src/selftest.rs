//! `wholebar selftest`: whether a device does what it must, for somebody who has one that nobody here has seen.

use crate::host::Host;
use crate::origin::Origin;
use crate::output::{self, Progress};
use crate::signal;
use crate::target;
use anyhow::{Result, bail};
use serde::Serialize;
use std::ops::Range;
use std::sync::atomic::Ordering;
use wholebar::pci::Config;
use wholebar_selftest::{self as selftest, Check, Options, Scratch, Step, Verdict};

/// Try a device: whether it does what the driver and the framework need of it
///
/// For a device that nobody has tried yet: run it once, and send the JSON on; it has no serial numbers and no addresses. It reads only, where no blocks are
/// given to write to, and gives the device back as it was. What there is to try depends on the device: registers by loads and by system calls, interrupts of
/// every kind, plans of BARs, shapes and batches of transfers, deadlines, wake-ups, resets under load; packets where the link is up, and more where they come
/// back, by a loop or a peer that reflects. Takes some seconds, and longer where something is broken.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar selftest 0000:01:00.0
  wholebar selftest 0000:01:00.0 --scratch 1000..20000 --json report.json
  wholebar selftest sim:nvme
  wholebar selftest vfio-user:/run/x.sock --json -

The JSON has schema (wholebar.selftest/1), version, device (model, emulated or
hardware), ids, class, host, verdict (passed or failed) and checks: area, name,
verdict (passed, failed or left-out), detail, millis.

Exit codes: 0 nothing failed, 1 something did, 2 wrong usage.")]
pub struct Args {
    /// The device
    target: String,
    /// Write to these blocks of the disk, of which the last is left alone; what they hold is written back in the end
    #[arg(long, value_name = "LBA..LBA", value_parser = lbas)]
    scratch: Option<Range<u64>>,
    /// The namespace that the blocks are of
    #[arg(long, value_name = "NSID", default_value_t = 1, requires = "scratch")]
    namespace: u32,
    /// Have the kernel ask for the device, too, and give it back to vfio-pci (root)
    #[arg(long)]
    removal: bool,
    /// Write the results as JSON to this file; - is standard output
    #[arg(long, value_name = "FILE")]
    json: Option<String>,
}

#[derive(Serialize)]
struct Report<'a> {
    schema: &'static str,
    version: &'static str,
    device: Origin,
    ids: String,
    class: String,
    host: Host,
    verdict: Verdict,
    checks: &'a [Check],
}

/// The checks' first column, and where their details begin.
const INDENT: usize = 10;

fn lbas(text: &str) -> Result<Range<u64>, String> {
    let ends = text.split_once("..").map(|(start, end)| (start.parse(), end.parse()));
    match ends {
        Some((Ok(start), Ok(end))) if start < end => Ok(start..end),
        _ => Err("two blocks, as in 1000..20000, of which the second is the larger".to_owned()),
    }
}

pub fn run(args: Args) -> Result<()> {
    let target = target::open(&args.target, &[], None)?;
    let config = Config::of(target.device.as_ref())?;
    let origin = Origin::of(target.device.as_ref()).0;
    let options = Options { scratch: args.scratch.map(|lbas| Scratch { nsid: args.namespace, lbas }) };
    let quiet = args.json.as_deref() == Some("-");
    if !quiet {
        output::print(format!(
            "{}: {:04x}:{:04x}, {}\n",
            args.target,
            config.vendor(),
            config.device(),
            origin.name()
        ))?;
    }
    let stop = signal::interrupted()?;
    let mut progress = None;
    let mut checks = selftest::run(
        &target.device,
        &options,
        &mut |step| match step {
            Step::Begins(area, name) => progress = Some(Progress::step(format!("{area}: {name}"))),
            Step::Ended(check) => {
                if let Some(progress) = progress.take() {
                    progress.finish();
                }
                if !quiet {
                    // A reader that went away is told of by what is printed last.
                    let _ = output::print(shown(check));
                }
            }
        },
        &stop,
    );
    if args.removal {
        let device = target.into_device();
        let check = selftest::removal(device);
        if !quiet {
            output::print(shown(&check))?;
        }
        checks.push(check);
    }
    let count = |verdict| checks.iter().filter(|check| check.verdict == verdict).count();
    let (passed, failed, left) = (count(Verdict::Passed), count(Verdict::Failed), count(Verdict::LeftOut));
    if !quiet {
        let caveat = origin.caveat().map_or_else(String::new, |caveat| format!(" ({caveat})"));
        let sum = format!("{passed} passed, {failed} failed, {left} left out: nothing here to try them with{caveat}");
        output::print(format!("\n{}\n", output::lines(&sum, 80).join("\n")))?;
    }
    if let Some(path) = &args.json {
        let verdict = if failed > 0 { Verdict::Failed } else { Verdict::Passed };
        let ids = format!("{:04x}:{:04x}", config.vendor(), config.device());
        let report = Report {
            schema: "wholebar.selftest/1",
            version: env!("CARGO_PKG_VERSION"),
            device: origin,
            ids,
            class: config.class().to_string(),
            host: Host::now(),
            verdict,
            checks: &checks,
        };
        output::write_json(path, &report)?;
    }
    if stop.load(Ordering::Relaxed) {
        bail!("it was interrupted before all was tried");
    }
    match failed {
        0 => Ok(()),
        1 => bail!("1 check failed"),
        failed => bail!("{failed} checks failed"),
    }
}

/// A check in lines of 80 columns: what came of it, what was tried, and what was seen.
fn shown(check: &Check) -> String {
    let verdict = match check.verdict {
        Verdict::Passed => "passed",
        Verdict::Failed => "FAILED",
        Verdict::LeftOut => "left out",
    };
    let mut text = format!("{verdict:<INDENT$}{}: {}\n", check.area, check.name);
    for line in output::lines(&check.detail, 80 - INDENT) {
        text += &format!("{:INDENT$}{line}\n", "");
    }
    text
}

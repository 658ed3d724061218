//! `--baseline` of commands that move packets: the same through other ports, in turns, and which of them moves more.
//!
//! Each round opens its ports anew. It does *not* know what is done with packets.

use super::run::RunArgs;
use crate::args::Usage;
use crate::host::Host;
use crate::output;
use crate::report::RatioReport;
use crate::rounds;
use crate::verdict::{self, ROUNDS, Side, process_cpu};
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::fmt;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use wholebar::measure::latency::Percentiles;
use wholebar::measure::ratio::Ratio;
use wholebar::measure::rounds::{Measured, Rounds};

/// Arguments of commands that compare.
#[derive(clap::Args, Debug, Clone)]
pub struct BaselineArgs {
    /// Do the same with other ports (kernel:eth0), as many as the command names, in turns, and compare: ten rounds, in which each of both is
    /// measured for --time in all
    #[arg(long, value_name = "TARGET", requires = "time", conflicts_with_all = ["capture", "stats_socket", "trace"])]
    pub baseline: Vec<String>,
}

/// What a round came to.
#[derive(Debug, Clone, Serialize)]
pub struct Round {
    /// Packets a second: received, where they are; else sent.
    pub packets_per_second: f64,
    /// How long they took, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ns: Option<Percentiles>,
    /// CPUs that the process used.
    pub cpus: f64,
    /// The rates of all rounds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rounds: Vec<f64>,
}

impl Measured for Round {
    fn rate(&self) -> f64 {
        self.packets_per_second
    }

    fn undisturbed(&self) -> bool {
        true
    }

    fn stand_for(&self, all: &[(&Self, bool)]) -> Self {
        Self { rounds: all.iter().map(|(round, _)| round.packets_per_second).collect(), ..self.clone() }
    }
}

/// The one load there is.
#[derive(Clone, Copy)]
struct Packets;

impl fmt::Display for Packets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("packets")
    }
}

#[derive(Serialize)]
struct Report {
    schema: &'static str,
    version: &'static str,
    host: Host,
    asked: String,
    targets: Vec<String>,
    baseline: Vec<String>,
    target_run: Round,
    baseline_run: Round,
    ratio: Option<RatioReport>,
}

/// Runs `once` on `targets` and on the baseline's in turns, for so long each time, and says which moves more. It returns the rate and, where they are known,
/// latencies.
///
/// # Errors
/// [`Usage`] where the baseline has not as many ports; what `once` says first.
pub fn compare(
    targets: &[String],
    args: &BaselineArgs,
    run: &RunArgs,
    asked: String,
    json: bool,
    interrupted: &AtomicBool,
    once: impl Fn(&[String], Duration) -> Result<(f64, Option<Percentiles>)>,
) -> Result<()> {
    let baseline = &args.baseline;
    if baseline.len() != targets.len() {
        bail!(Usage(format!(
            "--baseline is given once for each port, in their order: {} for {} ports",
            baseline.len(),
            targets.len()
        )));
    }
    let host = Host::now();
    let time = run.time.context("--baseline needs a --time")?;
    let plan = Rounds { plans: &Side::BOTH, loads: &[Packets], rounds: ROUNDS, time: time * 2 };
    let cases = rounds::measure(&plan, interrupted, Ok, |side, Packets, time| {
        let (began, used) = (Instant::now(), process_cpu());
        let targets = if *side == Side::This { targets } else { baseline };
        let (packets_per_second, latency_ns) = once(targets, time).with_context(|| targets.join(" "))?;
        let cpus = process_cpu().saturating_sub(used).as_secs_f64() / began.elapsed().as_secs_f64().max(1e-9);
        Ok(Round { packets_per_second, latency_ns, cpus, rounds: Vec::new() })
    })?;
    let result = |side| {
        let case = cases.iter().find(|case| case.plan == side).and_then(|case| case.result());
        case.context("it was interrupted before both were measured")
    };
    let (target_run, baseline_run) = (result(Side::This)?, result(Side::Baseline)?);
    let ratio = Ratio::paired(&target_run.rounds, &baseline_run.rounds);
    if json {
        return output::print_json(&Report {
            schema: "wholebar.net-baseline/1",
            version: env!("CARGO_PKG_VERSION"),
            host,
            asked,
            targets: targets.to_vec(),
            baseline: baseline.clone(),
            target_run,
            baseline_run,
            ratio: ratio.map(RatioReport::from),
        });
    }
    let (this, other) = (targets.join(" "), baseline.join(" "));
    let mut text = format!("{asked}\n  target: {this}\n  baseline: {other}\n  {} rounds\n\n", target_run.rounds.len());
    text += &table([("target", &target_run), ("baseline", &baseline_run)]);
    let sentence = verdict::sentence(&this, &other, "packets a second", ratio, true);
    output::print(text + "\n" + &sentence)
}

fn table(rows: [(&str, &Round); 2]) -> String {
    let row = |(name, round): (&str, &Round)| {
        let latency = |each: fn(&Percentiles) -> u64| {
            round.latency_ns.as_ref().map_or("-".to_owned(), |latency| output::nanos(each(latency)))
        };
        let (low, high) =
            round.rounds.iter().fold((f64::MAX, 0.0f64), |(low, high), rate| (low.min(*rate), high.max(*rate)));
        vec![
            format!("  {name}"),
            output::rate(round.packets_per_second),
            output::rate(low),
            output::rate(high),
            latency(|p| p.p50),
            latency(|p| p.p99),
            format!("{:.2}", round.cpus),
        ]
    };
    output::table(["  ", ">pps", ">lowest", ">highest", ">p50", ">p99", ">CPUs"], rows.map(row))
}

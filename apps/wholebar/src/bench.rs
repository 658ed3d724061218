//! `wholebar bench`: what mapping whole BARs is worth, on any machine: the NVMe driver against the NVMe model of this process.
//!
//! The cases are run in rounds, one after the other, so that what else the machine does meets all of them alike. Shown is the run of each
//! case with the median rate.

use crate::args::{self, Cores, Usage};
use crate::barmap;
use crate::host::Host;
use crate::nvme::{Controller, status_name};
use crate::output::{self, Progress};
use crate::report::{self, Report, Run};
use crate::signal;
use crate::target::{self, Target};
use crate::work::{self, Direction, Job, Order, Outcome, Trouble, Workload};
use anyhow::{Result, bail};
use clap::ValueEnum;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use wholebar::PageSize;
use wholebar::bar::MapPolicy;
use wholebar_nvme::Options;

/// Benchmark the NVMe driver on the NVMe model of this process: whole, carved and trapped BARs
///
/// Takes about 30 seconds on two cores, and needs no hardware, no root and no hugepages. Shows what of the model's BARs is mapped on hosts
/// with 4, 16 and 64 KiB pages, then measures 4 KiB random reads under three plans: all of the BAR mapped (whole), the host page
/// with the MSI-X table left out as a host with 64 KiB pages would (carved), and nothing mapped (trapped).
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar bench
  wholebar bench --seconds 60 --cores 2,3 --json report.json

The JSON has schema (wholebar.bench/1), version, device (model, emulated or hardware), target, host (kernel, arch, page_size, cpu, \
cores, hugepages, load) and runs: one object a case, with workload, policy, page_size, queue_depth, batch, block_size, cores, \
queues_per_core, seconds, iops, bytes_per_second, reads, writes, latency_ns (mean, min, p50, p90, p99, p99.9, p99.99, max), \
doorbells (direct, trapped), errors, cpu (driver, model) and rounds (the rate of each round).")]
pub struct Args {
    /// Write the results as JSON to this file; - is standard output
    #[arg(long, value_name = "FILE")]
    json: Option<String>,
    /// About how long to measure
    #[arg(long, value_name = "SECONDS", default_value = "27", value_parser = args::seconds)]
    seconds: Duration,
    /// The core of the driver's thread, and that of the model's [default: the first two]
    #[arg(long, value_name = "A,B")]
    cores: Option<Cores>,
    /// What the model keeps its blocks in
    #[arg(long, value_enum, default_value = "null")]
    backing: Backing,
}

#[derive(Clone, Copy, ValueEnum)]
enum Backing {
    /// Nothing: no data move, what is measured is queues and doorbells
    Null,
    /// 64 MiB of memory
    Ram,
}

const DEPTHS: [usize; 3] = [1, 32, 128];
const BATCH: usize = 32;
const ROUNDS: usize = 5;
const BLOCK: u64 = 4096;
/// The share of its core below which a polling thread was disturbed.
const BUSY: f64 = 0.9;

/// One way to map the BARs.
struct Plan {
    name: &'static str,
    policy: MapPolicy,
    page: Option<PageSize>,
}

static PLANS: [Plan; 3] = [
    Plan { name: "whole", policy: MapPolicy::Whole, page: None },
    Plan { name: "carved, 64 KiB", policy: MapPolicy::Carved, page: Some(PageSize::K64) },
    Plan { name: "trapped", policy: MapPolicy::Trapped, page: None },
];

/// All runs of one plan at one depth.
struct Case {
    plan: &'static Plan,
    depth: usize,
    runs: Vec<Run>,
}

pub fn run(args: Args) -> Result<()> {
    let host = Host::now();
    let (driver_core, model_core) = cores(args.cores.as_ref())?;
    let name = match args.backing {
        Backing::Null => "sim:nvme,size=64M,block=4096,backing=null",
        Backing::Ram => "sim:nvme,size=64M,block=4096,backing=ram",
    };
    let target = target::open(name, &[driver_core], model_core)?;
    if args.json.as_deref() != Some("-") {
        output::print(intro(&host, &target, driver_core, model_core)?)?;
    }
    let interrupted = signal::interrupted()?;
    let cases = measure(&target, driver_core, args.seconds, &interrupted)?;
    let stopped = interrupted.load(Ordering::Relaxed);
    let report = Report {
        schema: "wholebar.bench/1",
        version: env!("CARGO_PKG_VERSION"),
        device: report::device_kind(target.device.as_ref()),
        target: name.to_owned(),
        host,
        runs: cases.iter().filter_map(Case::median).collect(),
    };
    if args.json.as_deref() != Some("-") {
        output::print(results(&cases, &target, stopped))?;
    }
    if let Some(path) = &args.json {
        output::write_json(path, &report)?;
    }
    match report.runs.iter().map(|run| run.errors).sum() {
        0u64 => Ok(()),
        errors => bail!("{errors} commands failed"),
    }
}

/// The driver's core, and the model's if there is another one.
fn cores(asked: Option<&Cores>) -> Result<(usize, Option<usize>)> {
    let cores = match asked {
        Some(Cores(cores)) if cores.len() > 2 => {
            bail!(Usage("--cores takes two cores: the driver's and the model's".to_owned()))
        }
        Some(Cores(cores)) => cores.clone(),
        None => wholebar::cores::allowed().to_vec(),
    };
    cores.iter().try_for_each(|core| wholebar::cores::check(*core))?;
    match cores[..] {
        [] => bail!("this process may run on no core"),
        [driver] => Ok((driver, None)),
        [driver, model, ..] => Ok((driver, Some(model))),
    }
}

/// What is going to be measured, on what.
fn intro(host: &Host, target: &Target, driver: usize, model: Option<usize>) -> Result<String> {
    let hugepages = match host.hugepages.total {
        0 => "none".to_owned(),
        n => format!("{n} of {}, {} free", output::bytes(host.hugepages.size), host.hugepages.free),
    };
    let model = model.map_or("on the same core".to_owned(), |core| format!("on core {core}"));
    let mut text = output::pairs([
        ("host", format!("{} {}, {} KiB pages, hugepages: {hugepages}", host.kernel, host.arch, host.page_size >> 10)),
        ("CPU", format!("{}, {} cores for us", host.cpu, host.cores)),
        ("device", target.device.name().to_owned()),
        ("", format!("a model: a thread of this process, {model}")),
        ("driver", format!("polls on core {driver}")),
    ]);
    text += "\n";
    text += &barmap::of_device(target.device.as_ref())?;
    Ok(text + "\n")
}

/// Runs all cases in rounds.
fn measure(target: &Target, core: usize, time: Duration, interrupted: &AtomicBool) -> Result<Vec<Case>> {
    let each = time / (ROUNDS * PLANS.len() * DEPTHS.len()) as u32;
    let mut cases: Vec<_> = DEPTHS
        .iter()
        .flat_map(|depth| PLANS.iter().map(|plan| Case { plan, depth: *depth, runs: Vec::new() }))
        .collect();
    let mut progress = Progress::time("measuring", time);
    let began = Instant::now();
    for round in 1..=ROUNDS {
        for plan in &PLANS {
            let options = Options { policy: plan.policy, page: plan.page, io_queues: 1, ..Options::default() };
            let controller = Controller::open(target, options)?;
            for case in cases.iter_mut().filter(|case| std::ptr::eq(case.plan, plan)) {
                if interrupted.load(Ordering::Relaxed) {
                    break;
                }
                progress.set_what(format!("round {round} of {ROUNDS}: {}, depth {}", plan.name, case.depth));
                progress.at(began.elapsed().as_millis() as u64, String::new);
                case.runs.push(one(target, &controller, core, case.depth, each, interrupted)?);
            }
        }
    }
    progress.finish();
    Ok(cases)
}

/// One run.
fn one(
    target: &Target,
    controller: &Controller,
    core: usize,
    depth: usize,
    time: Duration,
    interrupted: &AtomicBool,
) -> Result<Run> {
    let namespace = controller.namespace(1)?;
    let warmup = time / 6;
    let job = Job {
        workload: Workload { order: Order::Random, direction: Direction::Read },
        nsid: 1,
        block: namespace.block_size,
        blocks: BLOCK / u64::from(namespace.block_size),
        first: 0,
        units: namespace.size() / BLOCK,
        depth,
        batch: BATCH.min(depth),
        warmup,
        time: time - warmup,
        verify: false,
        seed: 1,
        shared_cores: target.shares_cores(),
    };
    let supplies = controller.supplies(&job, &[core], 1)?;
    let model = target.model_cpu();
    let outcome = work::run(&job, supplies, interrupted, |_| ())?;
    if let Some(why) = outcome.cut_short.as_ref().filter(|why| *why != work::INTERRUPTED) {
        bail!("the run ended early: {why}");
    }
    tell(&outcome);
    Ok(Run::of(&job, &outcome, controller.mapped(), &[core], 1, model.share()))
}

fn tell(outcome: &Outcome) {
    for (trouble, times) in &outcome.troubles {
        if let Trouble::Status(status) = trouble {
            output::note(format!("{times} commands: {}", status_name(*status)));
        }
    }
}

impl Case {
    /// The run with the median rate.
    fn median(&self) -> Option<Run> {
        let mut runs: Vec<_> = self.runs.iter().filter(|run| run.reads > 0).collect();
        runs.sort_by(|a, b| a.iops.total_cmp(&b.iops));
        let median = runs.get(runs.len() / 2)?;
        let errors = self.runs.iter().map(|run| run.errors).sum();
        let rounds = self.runs.iter().map(|run| run.iops).collect();
        Some(Run { rounds, errors, ..(*median).clone() })
    }
}

/// The table, and what it says.
fn results(cases: &[Case], target: &Target, stopped: bool) -> String {
    let whole = |depth| cases.iter().find(|c| c.depth == depth && c.plan.policy == MapPolicy::Whole)?.median();
    let rows = cases.iter().filter_map(|case| {
        let run = case.median()?;
        let ratio = whole(case.depth).map_or("-".to_owned(), |whole| format!("{:.2}", run.iops / whole.iops));
        Some(vec![
            case.depth.to_string(),
            case.plan.name.to_owned(),
            output::rate(run.iops),
            output::nanos(run.latency_ns.p50),
            output::nanos(run.latency_ns.p99),
            ratio,
            output::rate(run.doorbells.direct as f64),
            output::rate(run.doorbells.trapped as f64),
            format!("{:.1}", run.commands_a_doorbell()),
        ])
    });
    let columns = [">depth", "BARs", ">IOPS", ">p50", ">p99", ">ratio", ">direct", ">trapped", ">I/Os each"];
    let rounds = cases.iter().map(|case| case.runs.len()).max().unwrap_or(0);
    let mut text =
        format!("4 KiB random reads, one queue, batches of up to {BATCH}; the median of {rounds} rounds\n\n");
    text += &output::table(columns, rows);
    text.push('\n');
    text += &output::paragraph(
        "ratio: to whole at the same depth. direct, trapped: doorbells rung, of submission and completion queue.",
    );
    text += &output::paragraph(
        "The device is a model in this process: these are figures of emulation, not of hardware. A trapped doorbell of it is a \
         real system call (pwrite), and nothing else: the floor of what trapping costs anywhere.",
    );
    let runs: Vec<_> = cases.iter().flat_map(|case| &case.runs).collect();
    let range = |share: &dyn Fn(&Run) -> Option<f64>| {
        let all: Vec<_> = runs.iter().filter_map(|run| share(run)).map(|s| s * 100.0).collect();
        let (low, high) = (all.iter().copied().fold(f64::MAX, f64::min), all.iter().copied().fold(0.0, f64::max));
        match (format!("{low:.0}"), format!("{high:.0}")) {
            _ if all.is_empty() => "-".to_owned(),
            (low, high) if low == high => format!("{low} %"),
            (low, high) => format!("{low} to {high} %"),
        }
    };
    let driver = |run: &Run| run.cpu.driver.first().copied();
    text += &output::paragraph(&format!(
        "CPU: the driver's thread had {} of its core, the model's {}.",
        range(&driver),
        range(&|run| run.cpu.model)
    ));
    if target.shares_cores() {
        text += "Driver and model shared one core and took turns on it: THE FIGURES MEAN LITTLE.\n";
    } else if runs
        .iter()
        .any(|run| driver(run).is_some_and(|share| share < BUSY) || run.cpu.model.is_some_and(|s| s < BUSY))
    {
        text += "Something else ran on these cores too: run it again on a quiet machine.\n";
    }
    if stopped {
        text += "It was interrupted: this is what was measured until then.\n";
    }
    text
}

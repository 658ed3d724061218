//! `wholebar pages`: what pages of 4, 16 and 64 KiB cost a device, and what mapping the whole BAR gives back.
//!
//! Measured are single accesses of registers ([`registers`]), and reads in interleaved rounds under several plans. A plan for pages larger than the
//! host's can always be carried out: it traps more.

pub mod compare;
mod comparison;
mod html;
pub mod memory;
pub mod registers;
pub mod report;

use crate::args::{self, Cores};
use crate::host::Host;
use crate::mapped::Bar;
use crate::nvme::Controller;
use crate::nvme::reads::{self, Reads};
use crate::origin::{self, Origin};
use crate::output::{self, Files};
use crate::report::{RATIO_NOTE, Run};
use crate::rounds::{Load, Plan};
use crate::signal;
use crate::target::{self, Target};
use anyhow::{Context, Result, bail};
use memory::Memory;
use report::{Device, Pages, SCHEMA, workload};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use wholebar::PageSize;
use wholebar::bar::{BarOptions, MapPolicy, plan_of};
use wholebar::measure::rounds::{Case, Rounds};
use wholebar::nvme::Options;
use wholebar::pci::Config;
use wholebar::pci::config::Class;

/// Measure what pages of 4, 16 and 64 KiB cost a device, and what mapping its whole BAR gives back
///
/// Takes about a minute. First, what memory costs by the size of pages, and one write and one read of a register: by a store or a load, and trapped. Then 4 KiB random reads
/// (nothing is written) under several plans, in rounds that take turns: the BAR mapped whole; carved, which leaves out the page that
/// holds the MSI-X table, on this host's pages and as hosts with 16 and 64 KiB pages would; and nothing mapped (trapped). Ctrl-C gives the device
/// back, and shows what was measured so far.
///
/// `wholebar pages compare` puts the JSON reports of several hosts side by side.
#[derive(clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  wholebar pages                                  a model: no device and no root needed
  wholebar pages sim:nvme,page=64k,backing=null   the same, as a host with 64 KiB pages has it
  wholebar pages 0000:01:00.0 --html report.html --json report.json
  wholebar pages compare host-a.json host-b.json --html comparison.html

The JSON has schema (wholebar.pages/1), version, target, device (origin, ids, model, bars with what each plan maps), host, seconds, \
registers (clock_ns and accesses: what, how, ns as quantiles), memory (pinned, transfer, maps, backings), runs (as `wholebar bench` has them), crossovers (plan, depth, trap_ns, \
measured and computed batch) and summary."
)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    measure: Measure,
}

#[derive(clap::Subcommand)]
enum Command {
    Compare(compare::Args),
}

#[derive(clap::Args)]
struct Measure {
    /// The NVMe controller
    #[arg(default_value = "sim:nvme,size=64M,block=4096,backing=null")]
    target: String,
    /// About how long to measure [default: 60, or 10 with --quick]
    #[arg(long, alias = "time", value_name = "SECONDS", value_parser = args::some_seconds)]
    runtime: Option<Duration>,
    /// Five rounds instead of twelve, in 10 seconds
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    files: Files,
    /// The core of the driver's thread, and that of a model's [default: the first two]
    #[arg(long, value_name = "A,B")]
    cores: Option<Cores>,
    /// The namespace to read [default: the first that can be]
    #[arg(long, value_name = "ID")]
    nsid: Option<u32>,
}

const LOADS: [Load; 9] = [
    Load { depth: 1, batch: 1 },
    Load { depth: 8, batch: 1 },
    Load { depth: 8, batch: 8 },
    Load { depth: 32, batch: 1 },
    Load { depth: 32, batch: 8 },
    Load { depth: 32, batch: 32 },
    Load { depth: 128, batch: 1 },
    Load { depth: 128, batch: 8 },
    Load { depth: 128, batch: 32 },
];
/// The share of the time that single accesses get.
const REGISTERS: f64 = 0.1;
/// The end of the admin queue's doorbells, with which an NVMe controller's registers begin (NVM Express Base 2.0, 3.1.3).
const FIRST_DOORBELLS: u64 = 0x1008;
/// Non-volatile memory, NVM Express, I/O controller (PCI Code and ID Assignment 1.15, 1.9).
const NVME: Class = Class { base: 1, sub: 8, interface: 2 };

pub fn run(args: Args) -> Result<()> {
    match args.command {
        Some(Command::Compare(args)) => compare::run(args),
        None => measure(args.measure),
    }
}

fn measure(args: Measure) -> Result<()> {
    // From here on, so that no interruption leaves a device enabled.
    let interrupted = signal::interrupted()?;
    let host = Host::now();
    let (core, model_core) = reads::cores(args.cores.as_ref())?;
    let target = target::open(&args.target, &[core], model_core)?;
    // As hardware does.
    target.set_spin(true);
    let class = Config::of(target.device.as_ref())?.class();
    if class != NVME {
        bail!(
            "{} is no NVMe controller (its class is {:02x}{:02x}{:02x}, not 010802), and others cannot be measured yet",
            args.target,
            class.base,
            class.sub,
            class.interface
        );
    }
    let (rounds, time) = if args.quick { (5, 10.0) } else { (12, 60.0) };
    let time = args.runtime.unwrap_or(Duration::from_secs_f64(time));
    let began = Instant::now();
    let plans = plans(target.device.page_size());
    let (device, memory, nsid) = facts(&target, &plans, args.nsid)?;
    let quiet = args.files.takes_stdout();
    if !quiet {
        output::print(intro(&host, &args.target, &device, core, &target))?;
    }
    let registers = registers::measure(target.device.clone(), core, rounds, time.mul_f64(REGISTERS), &interrupted)?;
    let rounds =
        Rounds { plans: &plans, loads: &LOADS, rounds, time: time.saturating_sub(began.elapsed()).max(time / 2) };
    let cases = Reads { target: &target, nsid, core, model_core }.measure(&rounds, &interrupted)?;
    let mut runs: Vec<Run> = cases.iter().filter_map(Case::result).collect();
    runs.sort_by_key(|run| (run.queue_depth, run.batch));
    let mut report = Pages {
        schema: SCHEMA.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        target: args.target.clone(),
        device,
        host,
        virtual_machine: origin::virtual_machine(),
        seconds: began.elapsed().as_secs_f64(),
        shared_cores: target.shares_cores(),
        interrupted: interrupted.load(Ordering::Relaxed),
        registers,
        memory: Some(memory),
        crossovers: report::crossovers(&runs),
        runs,
        summary: String::new(),
    };
    report.summary = report.sum_up();
    // The device is given back before anything is written, which may take long or fail.
    drop(target);
    if !quiet {
        output::print(results(&report))?;
    }
    args.files.write(&report, || html::pages(&report))?;
    match report.runs.iter().map(|run| run.errors).sum() {
        0u64 => Ok(()),
        errors => bail!("{errors} commands failed"),
    }
}

/// What is compared on a device that is mapped in pages of `own`.
fn plans(own: PageSize) -> Vec<Plan> {
    let carved = [own, PageSize::K16, PageSize::K64].into_iter().filter(|page| *page >= own);
    let mut plans = vec![Plan { policy: MapPolicy::Whole, page: None }];
    plans.extend(carved.map(|page| Plan { policy: MapPolicy::Carved, page: Some(page) }));
    plans.push(Plan { policy: MapPolicy::Trapped, page: None });
    plans.dedup();
    plans
}

/// What the device is, what pages change of its memory, and which namespace to read. It is disabled when this returns.
fn facts(target: &Target, plans: &[Plan], nsid: Option<u32>) -> Result<(Device, Memory, u32)> {
    let device = target.device.as_ref();
    let config = Config::of(device)?;
    let (origin, origin_why) = Origin::of(device);
    let ids = |(vendor, device): (u16, u16)| format!("{vendor:04x}:{device:04x}");
    let bars = Bar::all(device, plans, &[0..FIRST_DOORBELLS])?;
    let controller = Controller::open(target, Options { io_queues: 1, ..Options::default() })?;
    let usable = controller.namespaces().iter().find(|n| n.unsupported.is_none()).map(|n| n.nsid);
    let nsid = nsid.or(usable).context("the controller has no namespace that can be read")?;
    controller.namespace(nsid)?;
    let identity = controller.identity();
    let auto = plan_of(device, 0, BarOptions::default())?;
    let facts = Device {
        origin,
        origin_why,
        ids: ids((config.vendor(), config.device())),
        subsystem: config.subsystem().map(ids),
        model: identity.model.clone(),
        firmware: identity.firmware.clone(),
        auto: args::policy_name(auto.policy).to_owned(),
        auto_why: auto.why,
        bars,
    };
    Ok((facts, Memory::measure(device, &controller)?, nsid))
}

/// What is going to be measured, on what.
fn intro(host: &Host, name: &str, device: &Device, core: usize, target: &Target) -> String {
    let caveat = device.origin.caveat().unwrap_or("hardware");
    output::pairs([
        ("host", format!("{} {}, {} pages", host.kernel, host.arch, output::bytes(host.page_size))),
        ("CPU", format!("{}, {} cores for us", host.cpu, host.cores)),
        ("device", format!("{name}: {}, mapped in pages of {}", device.model, target.device.page_size())),
        ("", format!("{caveat} ({})", device.origin_why)),
        ("BAR0", format!("{} by default: {}", device.auto, device.auto_why)),
        ("driver", format!("polls on core {core}")),
    ]) + "\n"
}

/// The tables, the summary, and the notes.
fn results(report: &Pages) -> String {
    let mut text = String::from("One access of a register, of a disabled controller\n\n");
    let rows = report.registers.accesses.iter().map(|access| {
        let ns = &access.ns;
        let mut row = vec![format!("{} {}", access.what, access.register), access.how.clone()];
        row.extend([ns.p50, ns.p90, ns.p99, ns.p99_9, ns.max].map(output::time));
        row.extend([output::count(access.samples), access.per_sample.to_string()]);
        row
    });
    let columns = ["access", "how", ">p50", ">p90", ">p99", ">p99.9", ">max", ">samples", ">of"];
    text += &output::table(columns, rows);
    text += "\n";
    text += &output::paragraph(&registers_note(report));
    text += &format!("\n{}, one queue: reads a second, and their ratio to whole\n\n", workload(report));
    text += &rates(report);
    text += "\n";
    let spread = "spread: half of what the rounds differ by, of the plan where that is most. ";
    text += &output::paragraph(&format!("ratio: {RATIO_NOTE}{spread}{}", report.controls().unwrap_or_default()));
    text += "\n";
    if let Some(memory) = &report.memory {
        text += &memory.text(&report.host);
        text += "\n";
    }
    text += &output::paragraph(&report.summary);
    text += "\n";
    text += &report.notes();
    text
}

/// How accesses were timed.
fn registers_note(report: &Pages) -> String {
    let registers = &report.registers;
    let mut text = format!(
        "A sample is the mean of so many accesses in a row (of); what a look at the clock takes, {}, was taken off.",
        output::time(registers.clock_ns)
    );
    if let Some(why) = &registers.no_direct {
        text += &format!(" No stores and loads: {why}.");
    }
    let dropped: usize = registers.accesses.iter().map(|access| access.dropped).sum();
    if dropped > 0 {
        text += &format!(" {dropped} rounds lost their core and don't count.");
    }
    if registers.accesses.iter().any(|access| access.disturbed) {
        text += " All rounds of some accesses lost their core: these count all the same.";
    }
    text
}

/// A row a load, columns a plan.
fn rates(report: &Pages) -> String {
    let mut plans: Vec<String> = Vec::new();
    for run in &report.runs {
        if !plans.contains(&run.plan()) {
            plans.push(run.plan());
        }
    }
    let rows = LOADS.iter().filter_map(|load| {
        let runs: Vec<_> =
            report.runs.iter().filter(|r| (r.queue_depth, r.batch) == (load.depth, load.batch)).collect();
        let whole = runs.iter().find(|run| run.policy == "whole");
        let mut row = vec![load.depth.to_string(), load.batch.to_string()];
        for plan in &plans {
            let run = runs.iter().find(|run| run.plan() == *plan);
            row.push(run.map_or("-".to_owned(), |run| match whole.filter(|_| run.policy != "whole") {
                Some(whole) if run.against(whole).is_some() && run.is_control_of(whole) => {
                    format!("{}  A/A", output::rate(run.iops))
                }
                Some(whole) => format!("{} {:>4}", output::rate(run.iops), run.ratio(whole)),
                None => output::rate(run.iops),
            }));
        }
        let spread = |run: &&Run| (run.spread().1 - run.spread().0) / 2.0 / run.iops * 100.0;
        let spread = runs.iter().map(spread).fold(0.0, f64::max);
        row.push(if spread < 1000.0 { format!("±{spread:.0}%") } else { "wild".to_owned() });
        (!runs.is_empty()).then_some(row)
    });
    // Titles as narrow as what stands below: `carved 64k`.
    let titles = plans.iter().map(|plan| format!(">{}", plan.replace(", ", " ").replace(" KiB", "k")));
    let titles: Vec<String> = titles.chain([">spread".to_owned()]).collect();
    output::table([">depth", ">batch"].into_iter().chain(titles.iter().map(String::as_str)), rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;
    use wholebar::bar::Bar;
    use wholebar::pci::CONFIG;

    #[test]
    fn plans_are_those_that_can_be_carried_out() {
        let names = |page| plans(page).iter().map(Plan::to_string).collect::<Vec<_>>().join("; ");
        assert_eq!(names(PageSize::K4), "whole; carved, 4 KiB; carved, 16 KiB; carved, 64 KiB; trapped");
        assert_eq!(names(PageSize::K16), "whole; carved, 16 KiB; carved, 64 KiB; trapped");
        assert_eq!(names(PageSize::K64), "whole; carved, 64 KiB; trapped");
    }

    /// Whatever is going on when it is interrupted, the controller is disabled and its configuration space is as it was.
    #[test]
    fn a_device_is_left_as_it_was_found() {
        const CC_AND_CSTS: [u64; 2] = [0x14, 0x1c];
        let target = target::open("sim:nvme,size=1M,backing=null", &[], None).unwrap();
        let device = &target.device;
        let state = || {
            let mut config = [0; 256];
            device.read(CONFIG, 0, &mut config).unwrap();
            let bar =
                Bar::of(device.clone(), 0, BarOptions { policy: MapPolicy::Trapped, ..BarOptions::default() }).unwrap();
            (config, CC_AND_CSTS.map(|register| bar.read::<u32>(register).unwrap() & 1))
        };
        let found = state();
        assert_eq!(found.1, [0, 0]);
        let plans = plans(PageSize::K64);
        let (_, _, nsid) = facts(&target, &plans, None).unwrap();
        assert!(state() == found);
        let core = wholebar::cores::allowed()[0];
        for after in [0, 30, 130, 400] {
            let interrupted = AtomicBool::new(false);
            let done = std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(Duration::from_millis(after));
                    interrupted.store(true, Ordering::Relaxed);
                });
                let rounds = Rounds { plans: &plans, loads: &LOADS, rounds: 1, time: Duration::from_secs(3600) };
                Reads { target: &target, nsid, core, model_core: None }.measure(&rounds, &interrupted)
            });
            // The first run alone would take longer.
            assert!(done.unwrap().iter().all(|case| case.result().is_none()));
            assert!(state() == found, "interrupted after {after} ms");
        }
    }
}

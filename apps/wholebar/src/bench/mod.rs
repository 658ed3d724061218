//! `wholebar bench`: what mapping whole BARs is worth, on any machine: the NVMe driver and the virtio-net driver against their models in this process.
//!
//! The cases are run in rounds, one after the other, so that what else the machine does meets all of them alike. Shown is the run of each
//! case with the median rate.

mod compare;
mod html;

use crate::args::{self, Cores};
use crate::barmap;
use crate::host::Host;
use crate::idle;
use crate::mapped::Bar;
use crate::nvme::reads::{self, Reads};
use crate::origin::Origin;
use crate::output::{self, Files};
use crate::packets::{self, Size, Way};
use crate::perf::PerfArgs;
use crate::report::{self, PacketRun, Packets, Report, Run};
use crate::rounds::{Load, Plan};
use crate::signal;
use crate::target::{self, Target};
use anyhow::{Result, bail};
use clap::ValueEnum;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use wholebar::PageSize;
use wholebar::bar::MapPolicy;
use wholebar::measure::block::batch_of;
use wholebar::measure::cpu;
use wholebar::measure::rounds::{Case, Rounds};

/// Benchmark the drivers on models in this process: storage and packets, with whole, carved and trapped BARs
///
/// Takes about 40 seconds on two cores, and needs no hardware, no root and no hugepages. Measures 4 KiB random reads under three plans: all of
/// the BAR mapped (whole), the host page with the MSI-X table left out as a host with 64 KiB pages would (carved), and nothing mapped (trapped),
/// and shows what of the NVMe model's BARs is mapped on hosts with 4, 16 and 64 KiB pages. Then 64-byte packets from one virtio-net model to
/// another, on split and packed rings, in bursts of 1, 8 and 32, whole and trapped.
///
/// Rows whose threads had no cores to themselves show no ratio; where none had, the exit code is 1. `wholebar bench compare` says what has changed
/// since a run that was stored.
#[derive(clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  wholebar bench
  wholebar bench --only packets
  wholebar bench --only idle --html idle.html
  wholebar bench --baseline kernel:/dev/nvme1n1
  wholebar bench --seconds 60 --cores 2,3 --json report.json --html report.html
  wholebar bench compare old.json new.json --fail-above 5

The JSON has schema (wholebar.bench/1), version, device (model, emulated or hardware), target, host (kernel, arch, page_size, cpu, \
cores, hugepages, load), core_shares (which share of its core a spinning thread had beforehand), trusted_runs (how many had cores to themselves) and runs: one object a case, with workload, policy, page_size, queue_depth, batch, block_size, cores, \
queues_per_core, seconds, iops, bytes_per_second, reads, writes, latency_ns (mean, min, p50, p90, p99, p99.9, p99.99, max), \
doorbells (direct, trapped), errors, cpu (driver, model), hand_over_ns (how long a cache line took from core to core and back just before) and rounds (iops, cpu and hand_over_ns of each, and whether it counts). And packets: device, \
target, size in bytes and runs, with ring, policy, page_size, burst, core, seconds, packets, pps, ns_per_packet, cycles_per_packet (of the \
time stamp counter, or null), doorbells, cpu and rounds."
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
    #[command(flatten)]
    files: Files,
    /// About how long to measure
    #[arg(long, aliases = ["time", "runtime"], value_name = "SECONDS", default_value = "34", value_parser = args::some_seconds)]
    seconds: Duration,
    /// Measure one of the two halves alone, or what neither has
    #[arg(long, value_enum)]
    only: Option<Half>,
    /// The core of the driver's thread, and that of the model's [default: the first two]
    #[arg(long, value_name = "A,B")]
    cores: Option<Cores>,
    /// What the model keeps its blocks in
    #[arg(long, value_enum, default_value = "null")]
    backing: Backing,
    /// Measure reads alone, at each depth beside those of another disk (kernel:/dev/nvme1n1), in turns, and compare; the JSON is a list of reports as
    /// `wholebar blk perf --baseline` writes them
    #[arg(long, value_name = "TARGET", conflicts_with_all = ["only", "html"])]
    baseline: Option<String>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Half {
    /// 4 KiB random reads of an NVMe controller
    Storage,
    /// 64-byte packets from one virtio-net port to another
    Packets,
    /// What polling and sleeping cost, as `wholebar idle` measures it; the JSON is a list of that command's reports
    Idle,
}

#[derive(Clone, Copy, ValueEnum)]
enum Backing {
    /// Nothing: no data move, what is measured is queues and doorbells
    Null,
    /// 64 MiB of memory
    Ram,
}

const DEPTHS: [usize; 3] = [1, 32, 128];
/// What reports are called.
const SCHEMA: &str = "wholebar.bench/1";
/// How many rounds are measured in a time: so many that intervals of 99 % leave out an outlier at each end, and where there is time for it, that some are left of each state
/// of a machine whose virtual CPUs are moved about.
fn rounds(time: Duration) -> usize {
    const ROUND: f64 = 0.3;
    ((time.as_secs_f64() / ROUND) as usize).clamp(12, 24)
}
static PLANS: [Plan; 3] = [
    Plan { policy: MapPolicy::Whole, page: None },
    Plan { policy: MapPolicy::Carved, page: Some(PageSize::K64) },
    Plan { policy: MapPolicy::Trapped, page: None },
];

/// For how long each core is tried beforehand.
const SPIN: Duration = Duration::from_millis(100);
/// Sizes of bursts, and what of the time is theirs where both halves are measured.
const BURSTS: [Size; 3] = [Size(1), Size(8), Size(32)];
const PACKETS: f64 = 0.4;
static WAYS: [Way; 4] = {
    let (whole, trapped) = (PLANS[0], PLANS[2]);
    [
        Way { packed: false, plan: whole },
        Way { packed: false, plan: trapped },
        Way { packed: true, plan: whole },
        Way { packed: true, plan: trapped },
    ]
};

pub fn run(args: Args) -> Result<()> {
    match args.command {
        Some(Command::Compare(args)) => compare::run(args),
        None => measure(args.measure),
    }
}

fn measure(args: Measure) -> Result<()> {
    let host = Host::now();
    let cores = reads::cores(args.cores.as_ref())?;
    if args.only == Some(Half::Idle) {
        return idle::bench(cores, args.seconds, args.files.json.as_deref(), args.files.html.as_deref());
    }
    let name = match args.backing {
        _ if args.only == Some(Half::Packets) => packets::TARGET,
        Backing::Null => "sim:nvme,size=64M,block=4096,backing=null",
        Backing::Ram => "sim:nvme,size=64M,block=4096,backing=ram",
    };
    let target = target::open(name, &[cores.0], cores.1)?;
    if let Some(other) = &args.baseline {
        drop(target);
        return beside(name, other, cores.0, &args);
    }
    // As hardware does.
    target.set_spin(true);
    let (shared, device, quiet) =
        (target.shares_cores(), Origin::of(target.device.as_ref()).0, args.files.takes_stdout());
    let core_shares: Vec<_> =
        [Some(cores.0), cores.1].into_iter().flatten().filter_map(|core| cpu::spin_share(core, SPIN)).collect();
    if !quiet {
        output::print(intro(&host, &target, cores, &core_shares))?;
    }
    // Behind the first figures.
    let mut map = Some(barmap::of_device(target.device.as_ref())?).filter(|_| !quiet);
    let bars = Bar::all(target.device.as_ref(), &PLANS, &[])?;
    let interrupted = signal::interrupted()?;
    let mut runs = Vec::new();
    if args.only != Some(Half::Packets) {
        let time = if args.only.is_none() { args.seconds.mul_f64(1.0 - PACKETS) } else { args.seconds };
        runs = storage(&target, cores, time, &interrupted)?;
        if !quiet {
            output::print(storage_results(&runs, shared, host.page_size))?;
            output::print(map.take().map_or_else(String::new, |map| map + "\n"))?;
        }
    }
    // Its model does not run beside the others.
    drop(target);
    let mut packets = None;
    if args.only != Some(Half::Storage) && !interrupted.load(Ordering::Relaxed) {
        let time = if args.only.is_none() { args.seconds.mul_f64(PACKETS) } else { args.seconds };
        let rounds = Rounds { plans: &WAYS, loads: &BURSTS, rounds: rounds(time), time };
        let cases = packets::measure(&rounds, cores, &interrupted)?;
        let mut runs: Vec<_> = cases.iter().filter_map(Case::result).collect();
        runs.sort_by_key(|run| (run.ring == "packed", run.burst));
        if !quiet {
            output::print(packet_results(&runs, shared))?;
            output::print(map.map_or_else(String::new, |map| "\n".to_owned() + &map))?;
        }
        packets = Some(Packets { device, target: packets::TARGET.to_owned(), size: packets::SIZE, runs });
    }
    if interrupted.load(Ordering::Relaxed) && !quiet {
        output::print("It was interrupted: this is what was measured until then.\n")?;
    }
    let trusted = runs.iter().map(Run::is_trusted);
    let trusted: Vec<_> = trusted.chain(packets.iter().flat_map(|p| &p.runs).map(PacketRun::is_trusted)).collect();
    let trusted_runs = trusted.iter().filter(|trusted| **trusted).count();
    let report = Report {
        schema: SCHEMA.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        device,
        target: name.to_owned(),
        host,
        core_shares,
        runs,
        trusted_runs,
        packets,
        baseline: None,
    };
    args.files.write(&report, || html::bench(&report, &bars, shared))?;
    match report.runs.iter().map(|run| run.errors).sum() {
        0u64 if trusted_runs == 0 && !trusted.is_empty() => {
            bail!(
                "nothing was measured that can be trusted: {} rows, and none of them had two cores to itself",
                trusted.len()
            )
        }
        0 => Ok(()),
        errors => bail!("{errors} commands failed"),
    }
}

/// Reads at each depth, of the model and of another disk in turns.
fn beside(name: &str, other: &str, core: usize, args: &Measure) -> Result<()> {
    let interrupted = signal::interrupted()?;
    let (mut reports, mut failed) = (Vec::new(), Ok(()));
    for depth in DEPTHS {
        let time = args.seconds / (2 * DEPTHS.len()) as u32;
        let compared = PerfArgs::beside(name, other, depth as u32, time, core, &interrupted)?;
        if args.files.json.as_deref() != Some("-") {
            output::print(compared.text + "\n")?;
        }
        reports.push(compared.report);
        failed = failed.and(compared.failed);
    }
    args.files.json.as_ref().map_or(Ok(()), |path| output::write_json(path, &reports))?;
    failed
}

/// The first half.
fn storage(
    target: &Target,
    (core, model_core): (usize, Option<usize>),
    time: Duration,
    interrupted: &AtomicBool,
) -> Result<Vec<Run>> {
    let loads = DEPTHS.map(|depth| Load { depth, batch: batch_of(depth) });
    let rounds = Rounds { plans: &PLANS, loads: &loads, rounds: rounds(time), time };
    let cases = Reads { target, nsid: 1, core, model_core }.measure(&rounds, interrupted)?;
    let mut runs: Vec<_> = cases.iter().filter_map(Case::result).collect();
    runs.sort_by_key(|run| run.queue_depth);
    Ok(runs)
}

/// What is going to be measured, on what.
fn intro(host: &Host, target: &Target, (driver, model): (usize, Option<usize>), shares: &[f64]) -> String {
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
        ("noise", noise(shares)),
    ]);
    text.push('\n');
    text
}

/// What others take of our cores.
fn noise(shares: &[f64]) -> String {
    let percent: Vec<_> = shares.iter().map(|share| format!("{:.1}", share * 100.0)).collect();
    match shares.iter().copied().reduce(f64::min) {
        None => "the kernel does not tell what share of a core a thread has".to_owned(),
        Some(least) => {
            let advice = if least < report::BUSY { ": TOO BUSY for figures, stop what else runs" } else { "" };
            format!("threads that spin have {} % of these cores{advice}", percent.join(" and "))
        }
    }
}

/// The table, and what it says.
fn storage_results(runs: &[Run], shared: bool, page_size: u64) -> String {
    let whole = |depth| runs.iter().find(|run| run.queue_depth == depth && run.policy == "whole");
    let rows = runs.iter().map(|run| {
        let ratio = whole(run.queue_depth).map_or("-".to_owned(), |whole| run.ratio(whole));
        vec![
            run.queue_depth.to_string(),
            run.plan(),
            output::rate(run.iops),
            output::nanos(run.latency_ns.p50),
            output::nanos(run.latency_ns.p99),
            ratio,
            output::rate(run.doorbells.direct as f64),
            output::rate(run.doorbells.trapped as f64),
            format!("{:.1}", run.commands_a_doorbell()),
        ]
    });
    let columns = [">depth", "BARs", ">IOPS", ">p50", ">p99", ">ratio", ">direct", ">trapped", ">I/Os"];
    let rounds = runs.iter().map(|run| run.rounds.len()).max().unwrap_or(0);
    let mut text = report::warning(runs.iter().map(Run::is_trusted), shared);
    text += &format!("4 KiB random reads, batches of depth/4 (at most 32); medians of {rounds} rounds\n\n");
    text += &output::table(columns, rows);
    text.push('\n');
    text += &output::paragraph(&format!(
        "ratio: to whole at the same depth, {}direct, trapped: doorbells rung, of submission and completion queue. I/Os: for each doorbell; a \
         read that is alone rings one of both queues, which makes 0.5.",
        report::RATIO_NOTE
    ));
    let own = output::bytes(page_size);
    text += &output::paragraph(&format!(
        "whole: all of the BAR is mapped. carved, 64 KiB: mapped as on a host with pages of 64 KiB{}, which leaves out the page with the MSI-X \
         table; of this controller, doorbells are in that page too, and so are trapped. trapped: nothing is mapped.",
        if page_size == 64 << 10 { String::new() } else { format!(" (this one has {own})") }
    ));
    text += &output::paragraph(
        "The device is a model in this process: these are figures of emulation, not of hardware. A trapped doorbell of it is a \
         real system call (pwrite), and nothing else: the floor of what trapping costs anywhere.",
    );
    text += &report::states(runs.iter().flat_map(Run::samples));
    text + &report::cores(runs.iter().flat_map(Run::cpus), shared) + "\n"
}

/// The packets' table, and what it says.
fn packet_results(runs: &[PacketRun], shared: bool) -> String {
    let rounds = runs.iter().map(|run| run.rounds.len()).max().unwrap_or(0);
    let mut text = report::warning(runs.iter().map(PacketRun::is_trusted), shared);
    text += &format!("{}-byte packets, one way, one queue; the median of {rounds} rounds\n\n", packets::SIZE);
    text += &output::table(report::PACKET_COLUMNS, report::packet_rows(runs));
    text.push('\n');
    text += &output::paragraph(
        "ratio: as above, to whole with the same ring and burst. cycles: of the time stamp counter, for each packet, which one core sends and receives. \
         direct, trapped: doorbells rung, at both ends.",
    );
    text += &output::paragraph(
        "Both ports are models in this process, on a core of their own: figures of emulation, not of hardware. A trapped doorbell is a real \
         system call (pwrite).",
    );
    text += &report::states(runs.iter().flat_map(PacketRun::samples));
    text + &report::cores(runs.iter().flat_map(PacketRun::cpus), shared)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Cpu, Round};

    fn row(policy: &'static str, depth: usize, iops: f64, share: f64) -> Run {
        let cpu = Cpu { driver: vec![share], model: Some(1.0) };
        let rounds = vec![Round { iops, cpu: cpu.clone(), hand_over_ns: None, counts: true }; 5];
        Run { policy: policy.into(), queue_depth: depth, iops, cpu, rounds, ..Run::example() }
    }

    /// A machine that was busy gives no ratios, and that is said before the figures.
    #[test]
    fn rows_that_cannot_be_trusted_show_no_ratio() {
        let rows = [
            row("whole", 1, 1000.0, 0.2),
            row("trapped", 1, 18_050.0, 1.0),
            row("whole", 32, 2000.0, 1.0),
            row("carved", 32, 1000.0, 1.0),
            row("trapped", 32, 1000.0, 0.5),
        ];
        let text = storage_results(&rows, false, 4096);
        assert!(text.starts_with("2 OF 5 ROWS CANNOT BE TRUSTED: each of their runs lost"), "{text}");
        let ratio = |line: &str| line.split_whitespace().rev().nth(4).map(str::to_owned);
        let ratios: Vec<_> = text.lines().filter(|line| line.contains("2.00 k")).filter_map(ratio).collect();
        assert_eq!(ratios, ["-", "-", "1.00", "0.50", "-"], "{text}");
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains("(this one has 4 KiB)") && words.contains("which makes 0.5"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        // On one core all are alike; and where all is well, nothing is said.
        let shared = storage_results(&rows[..1], true, 65536);
        assert!(shared.starts_with("NONE OF THESE ROWS CAN BE TRUSTED: driver and model shared one core"), "{shared}");
        assert!(!shared.contains("this one has"), "{shared}");
        assert!(storage_results(&rows[2..4], false, 4096).starts_with("4 KiB random reads"));
    }
}

//! What a namespace of a disk delivers, measured: `wholebar nvme perf` and `wholebar blk perf`.

mod baseline;

pub use baseline::Compared;

use crate::any_disk::AnyDisk;
use crate::args::{self, Cores, Policy, Size, Usage};
use crate::host::Host;
use crate::output::{self, Progress};
use crate::report::{self, Report, Run};
use crate::signal;
use crate::storage::Storage;
use crate::target::{self, AnyTarget};
use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;
use hdrhistogram::Histogram;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use wholebar::bar::MapPolicy;
use wholebar::block::{DiskConfig, Status};
use wholebar::drivers::Mapping;
use wholebar::measure::block::pattern::Fault;
use wholebar::measure::block::{self, CutShort, Direction, Failure, Job, Order, Outcome, Phase, Workload};
use wholebar::measure::latency::Percentiles;
use wholebar::{PageSize, cores, measure};

/// What is measured, and how.
#[derive(clap::Args)]
pub struct PerfArgs {
    /// What to do
    #[arg(long, value_enum, default_value = "randread")]
    rw: Rw,
    /// Reads among a hundred commands, with --rw mixed [default: 50]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    rwmixread: Option<u8>,
    /// Bytes of each command: a multiple of the namespace's blocks
    #[arg(long, value_name = "SIZE", default_value = "4k")]
    bs: Size,
    /// Commands in flight in each queue [default: 32, or what its queues hold]
    #[arg(long, alias = "iodepth", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65535))]
    qd: Option<u32>,
    /// Commands submitted, and completions taken, for one doorbell [default: a quarter of the depth, 32 at most]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65535))]
    batch: Option<u32>,
    /// Poll less often while nothing completes: the time between two polls doubles up to N times, from one CPU hint on [default: 0, as often as can be]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=i64::from(block::MAX_BACK_OFF)), default_value_t = block::BACK_OFF, hide_default_value = true)]
    back_off: u32,
    /// Seconds to measure
    #[arg(long, alias = "runtime", value_name = "SECONDS", default_value = "10", value_parser = args::some_seconds)]
    time: Duration,
    /// Seconds before that
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = args::seconds)]
    warmup: Duration,
    /// Cores to run on, like 0,1 or 0-3: one thread each [default: the first one]
    #[arg(long)]
    cores: Option<Cores>,
    /// Queues on each core
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=65535))]
    queues: u32,
    /// How much of the BARs to map
    #[arg(long, value_enum, default_value = "auto")]
    policy: Policy,
    /// Map as on a host with pages of this size
    #[arg(long, value_name = "SIZE", value_parser = args::page)]
    page: Option<PageSize>,
    /// The namespace
    #[arg(long, value_name = "ID", default_value = "1")]
    nsid: u32,
    /// Where to begin in the namespace
    #[arg(long, value_name = "SIZE", default_value = "0")]
    offset: Size,
    /// How much of the namespace to use [default: all; with --verify, 256 MiB]
    #[arg(long, value_name = "SIZE")]
    span: Option<Size>,
    /// Write blocks that tell where they belong, with a CRC, and check every block read. What was written is read back at the end
    #[arg(long)]
    verify: bool,
    /// Do the same on another disk, of any driver or of the kernel (kernel:/dev/nvme1n1), in turns, and compare: ten rounds, in which each of
    /// both is measured for --time in all
    #[arg(long, value_name = "TARGET", conflicts_with_all = ["verify", "histogram"])]
    baseline: Option<String>,
    /// Show how latencies are distributed
    #[arg(long)]
    histogram: bool,
    /// What random places begin with, to get the same ones again
    #[arg(long, value_name = "N", default_value = "1")]
    seed: u64,
    /// Write JSON: as `wholebar bench --json` does, with the schema wholebar.perf/1 and one run
    #[arg(long)]
    json: bool,
}

/// What is done to blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Rw {
    /// Read at random places
    Randread,
    /// Write at random places
    Randwrite,
    /// Read one after the other
    Read,
    /// Write one after the other
    Write,
    /// Read and write at random places
    #[value(alias = "randrw")]
    Mixed,
}

impl PerfArgs {
    fn workload(&self) -> Result<Workload> {
        if self.rwmixread.is_some() && self.rw != Rw::Mixed {
            bail!(Usage("--rwmixread goes with --rw mixed".to_owned()));
        }
        let (order, direction) = match self.rw {
            Rw::Randread => (Order::Random, Direction::Read),
            Rw::Randwrite => (Order::Random, Direction::Write),
            Rw::Read => (Order::Sequential, Direction::Read),
            Rw::Write => (Order::Sequential, Direction::Write),
            Rw::Mixed => (Order::Random, Direction::Mixed { read_percent: self.rwmixread.unwrap_or(50) }),
        };
        Ok(Workload { order, direction })
    }

    /// What there is to do on a namespace with `capacity` blocks of `block` bytes, with `depth` commands in flight.
    fn job(&self, block: u32, capacity: u64, depth: usize) -> Result<Job> {
        const VERIFIED: u64 = 256 << 20;
        let blocks_of = |what: &str, bytes: u64| match bytes.is_multiple_of(block.into()) {
            true => Ok(bytes / u64::from(block)),
            false => bail!("{what} {bytes} is not a multiple of the {block}-byte blocks of namespace {}", self.nsid),
        };
        let blocks = blocks_of("--bs", self.bs.0)?;
        if blocks == 0 {
            bail!(Usage("--bs must be more than 0".to_owned()));
        }
        let first = blocks_of("--offset", self.offset.0)?;
        let size = capacity.saturating_mul(block.into());
        let rest = capacity.saturating_sub(first);
        let span = match self.span {
            Some(span) => blocks_of("--span", span.0)?,
            None if self.verify => rest.min(VERIFIED / u64::from(block)),
            None => rest,
        };
        if span > rest || span < blocks {
            let from = self.offset.0;
            let span = span.saturating_mul(block.into());
            bail!("{span} bytes from {from} on do not hold a command, or do not fit into the namespace's {size} bytes");
        }
        let batch = match self.batch {
            Some(batch) if batch as usize > depth => {
                bail!(Usage(format!("--batch {batch} is above the {depth} commands that are in flight (--qd)")))
            }
            Some(batch) => batch as usize,
            None => block::batch_of(depth),
        };
        Ok(Job {
            workload: self.workload()?,
            nsid: self.nsid,
            block,
            blocks,
            first,
            units: span / blocks,
            depth,
            batch,
            back_off: self.back_off,
            warmup: self.warmup,
            time: self.time,
            verify: self.verify,
            seed: self.seed,
            shared_cores: false,
            device: None,
        })
    }

    /// How much of the BARs to map.
    pub fn policy(&self) -> MapPolicy {
        self.policy.into()
    }

    /// A page size to map them for.
    pub fn page(&self) -> Option<PageSize> {
        self.page
    }

    /// Measures the disk that `open` makes of a target, with so many queues. A vfio-user server may take `timeout` to answer.
    pub fn run<S: Storage>(
        &self,
        name: &str,
        timeout: Option<Duration>,
        open: impl FnOnce(&AnyTarget, u16) -> Result<S>,
    ) -> Result<()> {
        let host = Host::now();
        let cores = match &self.cores {
            Some(Cores(cores)) => cores.clone(),
            None => cores::allowed().iter().copied().take(1).collect(),
        };
        cores.iter().try_for_each(|core| cores::check(*core))?;
        let bench = self.prepare(name, &cores, timeout, open)?;
        match &self.baseline {
            None => self.measure(&bench, &cores, host),
            Some(other) => {
                let other = self.prepare(other, &cores, timeout, |target, queues| self.open_any(target, queues))?;
                let interrupted = signal::interrupted()?;
                let compared = baseline::compare(self, bench, other, &cores, host, &interrupted)?;
                if self.json { output::print_json(&compared.report) } else { output::print(compared.text) }?;
                compared.failed
            }
        }
    }

    /// Opens a disk, by whichever driver.
    fn open_any(&self, target: &AnyTarget, queues: u16) -> Result<AnyDisk> {
        let mapping = Mapping { policy: self.policy(), page: self.page() };
        AnyDisk::open(target, &DiskConfig { queues, entries: None }, mapping)
    }

    /// 4 KiB random reads of one disk and of another, in turns: ten rounds, in which each of both is measured for `time` in all.
    pub fn beside(
        name: &str,
        other: &str,
        depth: u32,
        time: Duration,
        core: usize,
        interrupted: &AtomicBool,
    ) -> Result<Compared> {
        let args = Self {
            rw: Rw::Randread,
            rwmixread: None,
            bs: Size(4096),
            qd: Some(depth),
            batch: None,
            back_off: block::BACK_OFF,
            time,
            warmup: time / 100,
            cores: None,
            queues: 1,
            policy: Policy::Auto,
            page: None,
            nsid: 1,
            offset: Size(0),
            span: None,
            verify: false,
            baseline: None,
            histogram: false,
            seed: 1,
            json: false,
        };
        let prepare = |name| args.prepare(name, &[core], None, |target, queues| args.open_any(target, queues));
        baseline::compare(&args, prepare(name)?, prepare(other)?, &[core], Host::now(), interrupted)
    }

    /// Opens a disk, and makes its job.
    fn prepare<S: Storage>(
        &self,
        name: &str,
        cores: &[usize],
        timeout: Option<Duration>,
        open: impl FnOnce(&AnyTarget, u16) -> Result<S>,
    ) -> Result<Bench<S>> {
        let direction = self.workload()?.direction;
        let target = target::open_any(name, cores, None, timeout)?;
        let queues = cores.len() * self.queues as usize;
        let disk = open(&target, u16::try_from(queues).context("no disk has more than 65,535 queues")?)?;
        let namespace = disk.space(self.nsid)?;
        if direction != Direction::Read {
            namespace.check_writable(&disk)?;
        }
        if self.bs.0 > namespace.max_transfer.into() {
            bail!(
                "--bs {} is above what {} takes at once, which is {} bytes",
                self.bs.0,
                disk.name(),
                namespace.max_transfer
            );
        }
        let depth = disk.depth(self.qd)?;
        let mut job = self.job(namespace.block_size, namespace.blocks, depth as usize)?;
        job.shared_cores = target.shares_cores();
        job.device = target.model_thread();
        Ok(Bench { name: name.to_owned(), target, disk, job })
    }

    /// Measures one disk, and says what came of it.
    fn measure<S: Storage>(&self, bench: &Bench<S>, cores: &[usize], host: Host) -> Result<()> {
        let Bench { disk, job, .. } = bench;
        let supplies = disk.supplies(job, cores, self.queues)?;
        bench.target.set_spin(true);
        let interrupted = signal::interrupted()?;
        let mut progress = Progress::time("warming up", job.warmup + job.time);
        let outcome = block::run(job, supplies, &interrupted, |tick| {
            progress.set_what(match tick.phase {
                Phase::Warmup => "warming up",
                Phase::Measure => "measuring",
                Phase::Verify if job.verify => "verifying",
                _ => "ending",
            });
            progress.at(tick.elapsed.as_millis() as u64, || format!("{} IOPS", output::rate(tick.iops)));
        });
        let outcome = outcome.map_err(unverifiable)?;
        progress.finish();

        let mut run = Run::of(job, &outcome, disk.mapped(), cores, self.queues as usize);
        run.shadow_doorbells = disk.shadow_doorbells();
        if self.json {
            output::print_json(&report(bench, host, run, None))?;
        } else {
            let mut text = format!("{}{}\n\n", bench.heading(), job_text(job, self.queues, cores));
            text += &result(&run, &outcome);
            if self.histogram {
                text += &histogram(&outcome.latency());
            }
            output::print(text)?;
        }
        bench.notes(outcome.full).for_each(output::note);
        verdict(&outcome, &|status| disk.status_name(status))
    }
}

/// A disk that was opened, and what there is to do with it.
struct Bench<S> {
    name: String,
    target: AnyTarget,
    disk: S,
    job: Job,
}

impl<S: Storage> Bench<S> {
    /// What it is, in a line or two, and how commands get to it.
    fn heading(&self) -> String {
        let caveat = self.target.origin().caveat().map_or(String::new(), |caveat| format!("  {caveat}\n"));
        format!("{}\n{caveat}  namespace {}, {}\n", self.name, self.job.nsid, self.disk.way())
    }

    /// What is worth a note once it was measured: queues that were full, resets.
    fn notes(&self, full: bool) -> impl Iterator<Item = String> {
        let full = full.then(|| {
            let depth = self.job.depth;
            format!("queues hold fewer than {depth} commands of this size: the rest waited outside of them")
        });
        let resets = self.disk.resets().map(|(times, why)| {
            let times = if times == 1 { "once".to_owned() } else { format!("{times} times, first") };
            format!("the device was reset {times}: {why}")
        });
        full.into_iter().chain(resets)
    }
}

/// What `--json` writes.
fn report<S: Storage>(bench: &Bench<S>, host: Host, run: Run, baseline: Option<report::Baseline>) -> Report {
    Report {
        schema: "wholebar.perf/1".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        device: bench.target.origin(),
        target: bench.name.clone(),
        host,
        core_shares: Vec::new(),
        trusted_runs: run.is_trusted().into(),
        runs: vec![run],
        packets: None,
        baseline,
    }
}

/// What cannot be remembered, in the words of the command's flags.
fn unverifiable(error: measure::Error) -> anyhow::Error {
    match error {
        measure::Error::Ledger { units, cause } => {
            anyhow!("--verify remembers each of {units} commands' blocks (try a smaller --span): {cause}")
        }
        error => error.into(),
    }
}

/// What is done, and on how many queues.
fn job_text(job: &Job, queues: u32, cores: &[usize]) -> String {
    let queues = if queues == 1 { "1 queue".to_owned() } else { format!("{queues} queues") };
    let place = if cores.len() == 1 { "core" } else { "each of cores" };
    format!(
        "  {} of {}\n  {queues} on {place} {}, {} in flight in each, batches of {}",
        report::workload_name(job.workload),
        output::bytes(job.blocks * u64::from(job.block)),
        Cores(cores.to_vec()),
        job.depth,
        job.batch,
    )
}

/// What came of it.
fn result(run: &Run, outcome: &Outcome) -> String {
    let share = |share: &f64| format!("{:.0} %", share * 100.0);
    let driver: Vec<_> = run.cpu.driver.iter().map(share).collect();
    let model = run.cpu.model.as_ref().map_or(String::new(), |model| format!(", model {}", share(model)));
    let mut rows = vec![
        ("IOPS", output::rate(run.iops)),
        ("throughput", format!("{}/s", output::bytes(run.bytes_per_second as u64))),
        ("measured", format!("{:.2} s, {} commands", run.seconds, output::count(run.reads + run.writes))),
        (
            "doorbells",
            format!(
                "{} direct, {} trapped; {:.1} commands each",
                output::count(run.doorbells.direct),
                output::count(run.doorbells.trapped),
                run.commands_a_doorbell()
            ),
        ),
        ("CPU", format!("driver {}{model}", driver.join(" "))),
        ("errors", output::count(run.errors)),
    ];
    if run.shadow_doorbells {
        rows.push(("shadows", "the controller looks at doorbells in memory".to_owned()));
    }
    if outcome.read_back > 0 {
        rows.push(("read back", format!("{} commands, to verify what was written", output::count(outcome.read_back))));
    }
    if let Some(why) = &outcome.cut_short {
        rows.push(("ended early", why.to_string()));
    }
    let mut text = output::pairs(rows);
    let kinds = [("read", &outcome.reads), ("write", &outcome.writes)];
    let latencies = kinds.iter().filter(|(_, nanos)| !nanos.is_empty()).map(|(name, nanos)| {
        let p = Percentiles::of(nanos);
        let times = [p.mean, p.min, p.p50, p.p90, p.p99, p.p99_9, p.p99_99, p.max];
        std::iter::once(format!("  {name}")).chain(times.into_iter().map(output::nanos)).collect()
    });
    let columns = ["  lat", ">mean", ">min", ">p50", ">p90", ">p99", ">p99.9", ">p99.99", ">max"];
    text.push('\n');
    text + &output::table(columns, latencies)
}

/// How latencies are distributed: a line each power of two.
fn histogram(nanos: &Histogram<u64>) -> String {
    const WIDTH: u64 = 40;
    if nanos.is_empty() {
        return String::new();
    }
    let steps: Vec<_> =
        nanos.iter_log(64, 2.0).map(|s| (s.value_iterated_to(), s.count_since_last_iteration())).collect();
    let most = steps.iter().map(|(_, count)| *count).max().unwrap_or(1).max(1);
    let first = steps.iter().position(|(_, count)| *count > 0).unwrap_or(0);
    let rows = steps[first..].iter().map(|(to, count)| {
        let share = *count as f64 * 100.0 / nanos.len() as f64;
        let bar = "#".repeat((count * WIDTH).div_ceil(most) as usize);
        vec![format!("  {}", output::nanos(to + 1)), output::count(*count), format!("{share:.2} %"), bar]
    });
    String::from("\n") + &output::table([">  below", ">commands", ">share", ""], rows)
}

/// A run with errors, or one that ended early by itself, failed.
fn verdict(outcome: &Outcome, status_name: &dyn Fn(Status) -> String) -> Result<()> {
    for (failure, times) in &outcome.failures {
        let what = match failure {
            // Why it is gone is said below, once.
            Failure::Status(Status::Gone) if outcome.cut_short.is_some() => continue,
            Failure::Status(status) => status_name(*status),
            Failure::Data(Fault::NoPattern) => {
                "data: no pattern there (write it first: --rw write --verify)".to_owned()
            }
            Failure::Data(fault) => format!("data: {fault}"),
        };
        output::note(format!("{} commands: {what}", output::count(*times)));
    }
    match (&outcome.cut_short, outcome.errors()) {
        (Some(CutShort::Failed(why)), _) => bail!("the run ended early: {why}"),
        (_, 0) => Ok(()),
        (_, errors) => bail!("{} commands failed, or their data were wrong", output::count(errors)),
    }
}

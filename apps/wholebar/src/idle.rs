//! `wholebar idle`: what polling a device costs, what sleeping costs, and what the policy between the two does, at loads from nothing to saturation.

use crate::args::{self, Cores};
use crate::host::Host;
use crate::nvme::reads;
use crate::origin::Origin;
use crate::output::{self, Progress};
use crate::signal;
use crate::target::{self, Target};
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use wholebar::PageSize;
use wholebar::block::{self, Disk, DiskConfig};
use wholebar::drivers::Mapping;
use wholebar::measure::idle::{self, Load, Outcome, Packets, Reads, Trip};
use wholebar::measure::latency::Percentiles;
use wholebar::mem::{Arena, ArenaOptions, Pool};
use wholebar::net::{self, Port, PortConfig};
use wholebar::pci::Config;
use wholebar::reactor::Policy;

/// Measure what polling a device costs and what sleeping costs: CPU and latency, at loads from nothing to saturation
///
/// One thread reads blocks of a disk, or sends packets that come back to it (by a wire that loops, a loopback plug, a peer that reflects). It does so under
/// three policies: poll burns its core; sleep arms the queue's interrupt and sleeps as soon as there is nothing to do; hybrid, which is what programs get
/// that ask for nothing, polls while pauses are short and sleeps where they are long. Takes 20 seconds.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar idle sim:nvme
  wholebar idle sim:virtio-net --quick
  wholebar idle 0000:01:00.0 --seconds 5 --json idle.json

The JSON has schema (wholebar.idle/1), version, device (model, emulated or hardware), target, host, trip, depth, eventfd_ns (how long an eventfd takes to wake \
a thread here: mean, min, p50, p90, p99, p99.9, p99.99, max) and runs: policy, offered (a second; null for saturation), seconds, rate, \
begun, back, failed, lost, cpu (driver, model: shares of a core, or null), slept and latency_ns.")]
pub struct Args {
    /// The device: a disk, or a network port to which what it sends comes back
    target: String,
    /// Measure each row for so long
    #[arg(long, aliases = ["time", "runtime"], value_name = "SECONDS", default_value = "1", value_parser = args::some_seconds)]
    seconds: Duration,
    /// Measure each row for a fifth of a second
    #[arg(long, conflicts_with = "seconds")]
    quick: bool,
    /// Reads or packets under way at most
    #[arg(long, value_name = "N", default_value_t = DEPTH, value_parser = clap::value_parser!(u16).range(1..=64))]
    depth: u16,
    /// The core of the driver's thread, and that of the model's [default: the first two]
    #[arg(long, value_name = "A,B")]
    cores: Option<Cores>,
    /// Let a model in this process rest where nothing happens, rather than look for doorbells all the time as hardware does
    #[arg(long)]
    model_rests: bool,
    /// Write the results as JSON to this file; - is standard output
    #[arg(long, value_name = "FILE")]
    json: Option<String>,
}

/// Trips under way where nobody says how many.
const DEPTH: u16 = 32;
const POLICIES: [(&str, Policy); 3] = [("poll", Policy::Poll), ("hybrid", Policy::Hybrid), ("sleep", Policy::Sleep)];
const LOADS: [Load; 6] = [
    Load::Nothing,
    Load::PerSecond(100.0),
    Load::PerSecond(1e3),
    Load::PerSecond(10e3),
    Load::PerSecond(100e3),
    Load::Saturation,
];
/// How long a row is measured by `--quick`.
const QUICK: Duration = Duration::from_millis(200);
/// How often an eventfd's wake-up is tried.
const WAKE_UPS: u32 = 300;

#[derive(Debug, Serialize)]
struct Report {
    schema: &'static str,
    version: &'static str,
    device: Origin,
    target: String,
    host: Host,
    trip: &'static str,
    depth: u16,
    eventfd_ns: Percentiles,
    runs: Vec<Run>,
}

#[derive(Debug, Serialize)]
struct Run {
    policy: &'static str,
    offered: Option<f64>,
    seconds: f64,
    rate: f64,
    begun: u64,
    back: u64,
    failed: u64,
    lost: u64,
    cpu: Cpu,
    slept: u64,
    latency_ns: Percentiles,
}

#[derive(Debug, Serialize)]
struct Cpu {
    driver: Option<f64>,
    model: Option<f64>,
}

pub fn run(args: Args) -> Result<()> {
    let cores = reads::cores(args.cores.as_ref())?;
    let target = target::open(&args.target, &[cores.0], cores.1)?;
    let quiet = args.json.as_deref() == Some("-");
    let time = if args.quick { QUICK } else { args.seconds };
    let report = measure(&target, &args.target, cores.0, time, args.depth, args.model_rests)?;
    if !quiet {
        output::print(shown(&report, target.shares_cores(), args.model_rests))?;
    }
    if let Some(path) = &args.json {
        output::write_json(path, &report)?;
    }
    match report.runs.iter().map(|run| run.failed).sum() {
        0u64 if report.runs.is_empty() => bail!("it was interrupted before anything was measured"),
        0 => Ok(()),
        failed => bail!("{failed} reads failed"),
    }
}

/// What the models come to, a disk and a port: for `wholebar bench --only idle`, in about `time`.
pub fn bench(cores: (usize, Option<usize>), time: Duration, json: Option<&str>) -> Result<()> {
    let row = time / (2 * POLICIES.len() * LOADS.len()) as u32;
    let mut reports = Vec::new();
    for name in ["sim:nvme,size=64M,block=4096,backing=null", "sim:virtio-net"] {
        let target = target::open(name, &[cores.0], cores.1)?;
        let report = measure(&target, name, cores.0, row, DEPTH, false)?;
        if json != Some("-") {
            output::print(shown(&report, target.shares_cores(), false) + "\n")?;
        }
        reports.push(report);
    }
    json.map_or(Ok(()), |path| output::write_json(path, &reports))
}

/// All policies under all loads, on a device that was opened.
fn measure(target: &Target, name: &str, core: usize, time: Duration, depth: u16, rests: bool) -> Result<Report> {
    let interrupted = signal::interrupted()?;
    let eventfd_ns = idle::eventfd_wake_up(core, WAKE_UPS)?;
    target.set_spin(!rests);
    let measured = Measured { target, core, time, depth: depth.into(), interrupted: &interrupted };
    let class = Config::of(target.device.as_ref())?.class();
    let (trip, runs) = match class.base {
        0x02 => {
            let (port, packets) = packets(target, name, depth)?;
            let runs = measured.rows(packets)?;
            drop(port);
            ("packets of 60 bytes that come back", runs)
        }
        _ => {
            let (disk, reads) = disk(target, name, depth)?;
            let runs = measured.rows(reads)?;
            drop(disk);
            ("random reads of a block", runs)
        }
    };
    Ok(Report {
        schema: "wholebar.idle/1",
        version: env!("CARGO_PKG_VERSION"),
        device: Origin::of(target.device.as_ref()).0,
        target: name.to_owned(),
        host: Host::now(),
        trip,
        depth,
        eventfd_ns,
        runs,
    })
}

/// Reads of the first namespace that can be used.
fn disk(target: &Target, name: &str, depth: u16) -> Result<(Box<dyn Disk>, Reads)> {
    let disk = block::drivers().open(target.device.clone(), &DiskConfig::default(), Mapping::default())?;
    let namespace = disk.namespaces().into_iter().next().with_context(|| format!("{name} has no namespace to read"))?;
    let arena = Arena::new(u64::from(depth) * u64::from(namespace.block_size), ArenaOptions::default())?;
    disk.attach(arena.clone())?;
    let pool = Pool::new(arena, depth.into(), namespace.block_size, namespace.block_size.into())?;
    let queue = disk.interrupt_queue()?;
    if queue.wakeup().is_none() {
        output::note(format!("{name} has no interrupt for a queue: under every policy it is polled"));
    }
    Ok((disk, Reads::new(queue, namespace, pool)))
}

/// Packets from a port to itself.
fn packets(target: &Target, name: &str, depth: u16) -> Result<(Arc<dyn Port>, Packets)> {
    const BUFFERS: u32 = 2048;
    const BYTES: u32 = 2304;
    let open = |rx_interrupts, promiscuous| {
        let config = PortConfig { rx_interrupts, promiscuous, ..PortConfig::default() };
        net::drivers().open(target.device.clone(), &config, Mapping::default())
    };
    let port = open(true, true).or_else(|_| open(true, false)).or_else(|error| {
        output::note(format!("{name} has no interrupts to be had: under every policy it is polled ({error})"));
        open(false, false)
    });
    let port: Arc<dyn Port> = port?.into();
    let bytes = u64::from(BUFFERS + u32::from(depth)) * u64::from(BYTES);
    let arena = Arena::new(bytes.next_multiple_of(PageSize::host().bytes()), ArenaOptions::default())?;
    port.attach(arena.clone())?;
    let pool = Pool::new(arena, BUFFERS, BYTES, 64)?;
    let packets = Packets::new(port.rx_queue(0, &pool)?, port.tx_queue(0)?, pool, port.mac());
    Ok((port, packets))
}

/// What rows are measured on.
struct Measured<'a> {
    target: &'a Target,
    core: usize,
    time: Duration,
    depth: usize,
    interrupted: &'a AtomicBool,
}

impl Measured<'_> {
    fn rows<T: Trip + 'static>(&self, mut trip: T) -> Result<Vec<Run>> {
        let all = POLICIES.iter().flat_map(|policy| LOADS.iter().map(move |load| (policy, *load)));
        let mut progress = Progress::time("measuring", self.time * (POLICIES.len() * LOADS.len()) as u32);
        let mut runs = Vec::new();
        for (at, ((name, policy), load)) in all.enumerate() {
            if self.interrupted.load(Ordering::Relaxed) {
                break;
            }
            progress.set_what(format!("{name}, {} a second", offered(load)));
            progress.at((self.time * at as u32).as_millis() as u64, String::new);
            let model = self.target.model_cpu();
            let (back, outcome) = idle::run(trip, self.core, *policy, load, self.depth, self.time)?;
            trip = back;
            runs.push(Run::new(name, load, &outcome, model.share()));
        }
        progress.finish();
        Ok(runs)
    }
}

fn offered(load: Load) -> String {
    match load {
        Load::Nothing => "0".to_owned(),
        Load::PerSecond(rate) => output::rate(rate),
        Load::Saturation => "max".to_owned(),
    }
}

impl Run {
    fn new(policy: &'static str, load: Load, outcome: &Outcome, model: Option<f64>) -> Self {
        let Outcome { time, begun, back, failed, lost, cpu, slept, latency } = *outcome;
        let offered = match load {
            Load::Nothing => Some(0.0),
            Load::PerSecond(rate) => Some(rate),
            Load::Saturation => None,
        };
        let (seconds, cpu) = (time.as_secs_f64(), Cpu { driver: cpu, model });
        let rate = back as f64 / seconds;
        Self { policy, offered, seconds, rate, begun, back, failed, lost, cpu, slept, latency_ns: latency }
    }
}

/// The table, and what it says.
fn shown(report: &Report, shared: bool, rests: bool) -> String {
    let percent = |share: Option<f64>| share.map_or("-".to_owned(), |share| format!("{:.1}", share * 100.0));
    let rows = report.runs.iter().map(|run| {
        let latency = |nanos| if run.back == 0 { "-".to_owned() } else { output::nanos(nanos) };
        let p = &run.latency_ns;
        vec![
            run.policy.to_owned(),
            run.offered.map_or("max".to_owned(), output::rate),
            output::rate(run.rate),
            percent(run.cpu.driver),
            percent(run.cpu.model),
            latency(p.p50),
            latency(p.p99),
            latency(p.p99_9),
            output::rate(run.slept as f64 / run.seconds),
        ]
    });
    let columns = ["policy", ">offered", ">rate", ">CPU %", ">model %", ">p50", ">p99", ">p99.9", ">sleeps/s"];
    let mut text = String::new();
    if shared {
        text += "DRIVER AND MODEL SHARED ONE CORE: these figures are of the scheduler.\n\n";
    }
    text += &format!("{}: {}, at most {} under way\n\n", report.target, report.trip, report.depth);
    text += &output::table(columns, rows);
    let wake = &report.eventfd_ns;
    text.push('\n');
    text += &output::paragraph(&format!(
        "p50, p99, p99.9: from just before the device is told to the thread's first instruction that has the answer. The device's time is in it, under \
         every policy: what sleeping adds is the difference to poll. An eventfd alone takes {} (p50), {} (p99) to wake a thread here.",
        output::nanos(wake.p50),
        output::nanos(wake.p99),
    ));
    text += "CPU %, model %: shares of a core, of the polling thread and of the model's.\n";
    let lost: u64 = report.runs.iter().map(|run| run.lost).sum();
    if lost > 0 {
        text += &output::paragraph(&format!(
            "{lost} did not come back. Packets have to: by a wire that loops, a loopback plug or a peer that reflects."
        ));
    }
    if matches!(report.device, Origin::Model) {
        text += &output::paragraph(match rests {
            true => {
                "The device is a model in this process: figures of emulation, not of hardware. Its thread rests where nothing happens: a doorbell that comes \
                 after a pause may wait for a sixteenth of the pause, a millisecond at the most, which is in the latencies."
            }
            false => {
                "The device is a model in this process, which looks for doorbells all the time as hardware does: figures of emulation, not of hardware. \
                 With --model-rests it rests, as it does outside of benchmarks."
            }
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_fits_a_terminal() {
        let latency = Percentiles { p50: 999_000, p99: 99_900_000, p99_9: 999_000_000, ..Percentiles::default() };
        let outcome = Outcome {
            time: Duration::from_secs(1),
            begun: 12_345_678,
            back: 12_345_678,
            failed: 0,
            lost: 3,
            cpu: Some(1.0),
            slept: 123_456,
            latency,
        };
        let runs = LOADS.iter().map(|load| Run::new("hybrid", *load, &outcome, Some(1.0))).collect();
        let report = Report {
            schema: "wholebar.idle/1",
            version: "0",
            device: Origin::Model,
            target: "sim:nvme".to_owned(),
            host: Host::now(),
            trip: "random reads of a block",
            depth: 32,
            eventfd_ns: latency,
            runs,
        };
        for rests in [false, true] {
            let text = shown(&report, true, rests);
            assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
            assert!(text.contains("did not come back") && text.contains("SHARED ONE CORE"), "{text}");
        }
    }
}

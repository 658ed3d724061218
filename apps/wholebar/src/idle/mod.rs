//! `wholebar idle`: what polling a device costs, what sleeping costs, and what the policy between the two does, at loads from nothing to saturation.

mod html;
mod report;

use crate::args::{self, Cores};
use crate::host::Host;
use crate::nvme::reads;
use crate::output::{self, Progress};
use crate::report::RatioReport;
use crate::signal;
use crate::target::{self, AnyTarget};
use anyhow::{Context, Result, bail};
use report::{AtSaturation, Held, Report, Run, WakeUp};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use wholebar::PageSize;
use wholebar::block::{self, Disk, DiskConfig};
use wholebar::cores::Pause;
use wholebar::drivers::Mapping;
use wholebar::irq::Coalescing;
use wholebar::measure::idle::{self, Load, Packets, Reads, Trip};
use wholebar::measure::ratio::Ratio;
use wholebar::mem::{Arena, ArenaOptions, Pool};
use wholebar::net::{self, Port, PortConfig};
use wholebar::pci::Config;
use wholebar::reactor::Policy;

/// Measure what polling a device costs and what sleeping costs: CPU and latency, at loads from nothing to saturation
///
/// One thread reads blocks of a disk, or sends packets that come back to it (by a wire that loops, a loopback plug, a peer that reflects). It does so under
/// three policies: poll burns its core; sleep arms the queue's interrupt and sleeps as soon as there is nothing to do; hybrid, which is what programs get
/// that ask for nothing, polls while pauses are short and sleeps where they are long. Takes 25 seconds.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar idle sim:nvme
  wholebar idle sim:virtio-net --quick
  wholebar idle kernel:/dev/nvme1n1                 # the same through the kernel
  wholebar idle sim:nvme --coalesce-usecs 100       # interrupts held back for so long
  wholebar idle 0000:01:00.0 --seconds 5 --json idle.json --html idle.html

The JSON has schema (wholebar.idle/2), version, device (model, emulated, hardware or kernel), target, host, trip, depth, coalescing (microseconds and events for which \
interrupts are held back; null where the device has no such thing), eventfds (offered a second, and latency_ns: how long an eventfd takes to wake a thread here: mean, min, p50, \
p90, p99, p99.9, p99.99, max), pause (the instruction by which a core under the hybrid policy pauses between two polls; null where the CPU has none for it) and runs: policy, offered (a second; null for saturation), seconds, rate, begun, back, failed, lost, cpu (driver, model: shares of a core, or \
null), slept, latency_ns and wake_up (its p99 less the p50 of polling, in p99s of an eventfd; or null). And saturation: policy and to_poll, the ratio of its rate to polling's, in turns (median, low, high, confidence, same; or null).")]
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
    /// Have the device hold interrupts back for so long after the first completion, or packet: 0 for not at all [default: as it is]
    #[arg(long, value_name = "MICROSECONDS")]
    coalesce_usecs: Option<u32>,
    /// And no longer than for so many of them [default: as many as there are]
    #[arg(long, value_name = "N", requires = "coalesce_usecs", value_parser = clap::value_parser!(u32).range(1..))]
    coalesce_events: Option<u32>,
    /// The core of the driver's thread, and that of the model's [default: the first two]
    #[arg(long, value_name = "A,B")]
    cores: Option<Cores>,
    /// Let a model in this process rest where nothing happens, rather than look for doorbells all the time as hardware does
    #[arg(long)]
    model_rests: bool,
    /// Write the results as JSON to this file; - is standard output
    #[arg(long, value_name = "FILE")]
    json: Option<String>,
    /// Write the results as a web page to this file, which needs no other
    #[arg(long, value_name = "FILE")]
    html: Option<String>,
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
/// Rows in all: those of an eventfd, at the loads at which a thread can sleep between two signals, and those of each policy.
const EVENTFD_LOADS: [f64; 3] = [100.0, 1e3, 10e3];
const ROWS: u32 = (EVENTFD_LOADS.len() + POLICIES.len() * LOADS.len() + POLICIES.len()) as u32;
/// How often the policies take turns at saturation, a row's time for each in all.
const TURNS: u32 = 12;

pub fn run(args: Args) -> Result<()> {
    let cores = reads::cores(args.cores.as_ref())?;
    let quiet = args.json.as_deref() == Some("-");
    let rows = Rows {
        core: cores.0,
        time: if args.quick { QUICK } else { args.seconds },
        depth: args.depth,
        rests: args.model_rests,
        coalescing: args.coalesce_usecs.map(|usecs| {
            let events = args.coalesce_events.unwrap_or(u32::MAX);
            Coalescing { events, time: Duration::from_micros(usecs.into()) }
        }),
    };
    let report = rows.measure(&args.target, cores.1)?;
    if !quiet {
        output::print(report.shown())?;
    }
    if let Some(path) = &args.json {
        output::write_json(path, &report)?;
    }
    if let Some(path) = &args.html {
        output::write(path, &html::idle(std::slice::from_ref(&report))?)?;
    }
    match report.runs.iter().map(|run| run.failed).sum() {
        0u64 if report.runs.is_empty() => bail!("it was interrupted before anything was measured"),
        0 => Ok(()),
        failed => bail!("{failed} reads failed"),
    }
}

/// What the models come to, a disk and a port: for `wholebar bench --only idle`, in about `time`.
pub fn bench(cores: (usize, Option<usize>), time: Duration, json: Option<&str>, html: Option<&str>) -> Result<()> {
    let rows = Rows { core: cores.0, time: time / (2 * ROWS), depth: DEPTH, rests: false, coalescing: None };
    let mut reports = Vec::new();
    for name in ["sim:nvme,size=64M,block=4096,backing=null", "sim:virtio-net"] {
        let report = rows.measure(name, cores.1)?;
        if json != Some("-") {
            output::print(report.shown() + "\n")?;
        }
        reports.push(report);
    }
    if let Some(path) = html {
        output::write(path, &html::idle(&reports)?)?;
    }
    json.map_or(Ok(()), |path| output::write_json(path, &reports))
}

/// What is measured of a device.
struct Rows {
    core: usize,
    /// Of each.
    time: Duration,
    depth: u16,
    /// A model rests where nothing happens.
    rests: bool,
    /// What the device is told.
    coalescing: Option<Coalescing>,
}

impl Rows {
    /// All policies under all loads.
    fn measure(&self, name: &str, model_core: Option<usize>) -> Result<Report> {
        let interrupted = signal::interrupted()?;
        let target = target::open_any(name, &[self.core], model_core, None)?;
        let mut progress = Progress::time("measuring", self.time * ROWS);
        // The device does nothing meanwhile.
        let eventfds = self.eventfds(&mut progress, &interrupted)?;
        target.set_spin(!self.rests);
        let (trip, coalescing, (runs, saturation)) = if is_port(&target)? {
            let (port, packets) = self.packets(&target, name)?;
            let coalescing = match self.coalescing {
                Some(wanted) => Some(port.set_coalescing(wanted)?),
                None => port.coalescing(),
            };
            (
                "packets of 60 bytes that come back",
                coalescing,
                self.runs(&target, packets, &mut progress, &interrupted)?,
            )
        } else {
            let (disk, reads) = self.disk(&target, name)?;
            let coalescing = match self.coalescing {
                Some(wanted) => Some(disk.set_coalescing(wanted)?),
                None => disk.coalescing(),
            };
            ("random reads of a block", coalescing, self.runs(&target, reads, &mut progress, &interrupted)?)
        };
        progress.finish();
        let mut report = Report {
            schema: "wholebar.idle/2",
            version: env!("CARGO_PKG_VERSION"),
            device: target.origin(),
            target: name.to_owned(),
            host: Host::now(),
            trip,
            depth: self.depth,
            coalescing: coalescing.map(Held::from),
            eventfds,
            pause: Some(Pause::of_this_cpu()).filter(|pause| pause.is_timed()).map(|pause| pause.to_string()),
            runs,
            saturation,
            shares_cores: target.shares_cores(),
            rests: self.rests,
        };
        report.compare();
        Ok(report)
    }

    /// How long an eventfd takes to wake a thread, at loads.
    fn eventfds(&self, progress: &mut Progress, interrupted: &AtomicBool) -> Result<Vec<WakeUp>> {
        let mut all = Vec::new();
        for (row, offered) in (0..).zip(EVENTFD_LOADS) {
            if interrupted.load(Ordering::Relaxed) {
                break;
            }
            progress.set_what(format!("an eventfd, {} a second", output::rate(offered)));
            progress.at((self.time * row).as_millis() as u64, String::new);
            let latency_ns = idle::eventfd_wake_up(self.core, Duration::from_secs_f64(1.0 / offered), self.time)?;
            all.push(WakeUp { offered, latency_ns });
        }
        Ok(all)
    }

    fn runs<T: Trip + 'static>(
        &self,
        target: &AnyTarget,
        mut trip: T,
        progress: &mut Progress,
        interrupted: &AtomicBool,
    ) -> Result<(Vec<Run>, Vec<AtSaturation>)> {
        let all = POLICIES.iter().flat_map(|policy| LOADS.iter().map(move |load| (policy, *load)));
        let mut runs = Vec::new();
        for (row, ((name, policy), load)) in (EVENTFD_LOADS.len() as u32..).zip(all) {
            if interrupted.load(Ordering::Relaxed) {
                break;
            }
            progress.set_what(format!("{name}, {} a second", report::offered(report::per_second(load))));
            progress.at((self.time * row).as_millis() as u64, String::new);
            let model = target.model_cpu();
            let (back, outcome) = idle::run(trip, self.core, *policy, load, self.depth.into(), self.time)?;
            trip = back;
            runs.push(Run::new(name, load, &outcome, model.share()));
        }
        // What one does to the rate is less than what the machine does to it within seconds: hence in turns.
        let mut rates = POLICIES.map(|_| Vec::new());
        progress.set_what("saturation, policies in turn".to_owned());
        progress.at((self.time * (ROWS - POLICIES.len() as u32)).as_millis() as u64, String::new);
        for turn in 0..TURNS as usize {
            for at in 0..POLICIES.len() {
                if interrupted.load(Ordering::Relaxed) {
                    break;
                }
                // Not always in the same order.
                let at = (at + turn) % POLICIES.len();
                let (back, outcome) =
                    idle::run(trip, self.core, POLICIES[at].1, Load::Saturation, self.depth.into(), self.time / TURNS)?;
                trip = back;
                rates[at].push(outcome.back as f64 / outcome.time.as_secs_f64());
            }
        }
        let [polled, others @ ..] = &rates;
        let compared = POLICIES[1..].iter().zip(others).map(|((policy, _), rates)| {
            let to_poll = Ratio::paired(rates, polled).map(RatioReport::from);
            AtSaturation { policy, to_poll }
        });
        Ok((runs, compared.collect()))
    }

    /// Reads of the first namespace that can be used.
    fn disk(&self, target: &AnyTarget, name: &str) -> Result<(Box<dyn Disk>, Reads)> {
        let depth = self.depth;
        let disk = target.open(&block::drivers(), &DiskConfig::default(), Mapping::default())?;
        let namespace =
            disk.namespaces().into_iter().next().with_context(|| format!("{name} has no namespace to read"))?;
        let arena = Arena::new(u64::from(depth) * u64::from(namespace.block_size), ArenaOptions::default())?;
        disk.attach(arena.clone())?;
        let pool = Pool::new(arena, depth.into(), namespace.block_size, namespace.block_size)?;
        let queue = disk.interrupt_queue()?;
        if queue.wakeup().is_none() {
            output::note(format!("{name} has no interrupt for a queue: under every policy it is polled"));
        }
        Ok((disk, Reads::new(queue, namespace, pool)))
    }

    /// Packets from a port to itself.
    fn packets(&self, target: &AnyTarget, name: &str) -> Result<(Arc<dyn Port>, Packets)> {
        let depth = self.depth;
        const BUFFERS: u32 = 2048;
        const BYTES: u32 = 2304;
        let open = |rx_interrupts, promiscuous| {
            let config = PortConfig { rx_interrupts, promiscuous, ..PortConfig::default() };
            target.open(&net::drivers(), &config, Mapping::default())
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
}

/// Whether a target is a network port; all else is taken for a disk.
fn is_port(target: &AnyTarget) -> Result<bool> {
    Ok(match target {
        AnyTarget::Pci(target) => Config::of(target.device.as_ref())?.class().base == 0x02,
        AnyTarget::Direct(wholebar::Target::Kernel(wholebar::kernel::Target::Disk(_))) => false,
        AnyTarget::Direct(_) => true,
    })
}

//! What `bench`, `nvme perf`, `blk perf` and `pages` write as JSON: runs of the same shape, so that one reader takes all.

use crate::args::policy_name;
use crate::host::Host;
use crate::origin::Origin;
use crate::output;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use wholebar::PageSize;
use wholebar::bar::{DoorbellCounts, MapPolicy};
use wholebar::measure::block::{Direction, Job, Order, Outcome, Workload};
use wholebar::measure::latency::Percentiles;
use wholebar::measure::ratio::{Ratio, Sample};
use wholebar::measure::rounds::Measured;

/// The share of its core below which a polling thread was disturbed.
pub const BUSY: f64 = 0.9;

/// A report.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// What this is: `wholebar.bench/1` or `wholebar.perf/1`.
    pub schema: Cow<'static, str>,
    /// The program's version.
    pub version: Cow<'static, str>,
    /// What stands behind the figures: `model`, `emulated` or `hardware`.
    pub device: Origin,
    /// The device's name.
    pub target: String,
    /// The machine.
    pub host: Host,
    /// Which share of the driver's core, and of the model's, a thread had that did nothing but work, before anything was measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub core_shares: Vec<f64>,
    /// What was measured, in order.
    pub runs: Vec<Run>,
    /// How many of these, and of the packets' runs, can be trusted: their threads had their cores to themselves.
    pub trusted_runs: usize,
    /// The packets, where they were measured too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets: Option<Packets>,
    /// What it was compared with, where it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Baseline>,
}

/// Another disk, on which the same was measured in turns.
#[derive(Debug, Serialize, Deserialize)]
pub struct Baseline {
    /// The disk's name.
    pub target: String,
    /// What stands behind its figures.
    pub device: Origin,
    /// What was measured.
    pub run: Run,
    /// CPUs that this process used while the first disk was measured, and this one: threads of the kernel that work for it are included.
    pub process_cpu: [f64; 2],
    /// Commands a second of the first disk to those of this one; `None` of fewer than five rounds.
    pub ratio: Option<RatioReport>,
}

/// A ratio, with the interval in which it lies.
#[derive(Debug, Serialize, Deserialize)]
pub struct RatioReport {
    /// The median over the rounds.
    pub median: f64,
    /// Where the interval begins.
    pub low: f64,
    /// Where it ends.
    pub high: f64,
    /// With which probability it holds the true ratio.
    pub confidence: f64,
    /// Whether it holds 1.
    pub same: bool,
}

impl From<Ratio> for RatioReport {
    fn from(ratio: Ratio) -> Self {
        let Ratio { median, low, high, confidence } = ratio;
        Self { median, low, high, confidence, same: ratio.is_same() }
    }
}

/// Packets from one port to another.
#[derive(Debug, Serialize, Deserialize)]
pub struct Packets {
    /// What stands behind the figures.
    pub device: Origin,
    /// The target's name, of both ports.
    pub target: String,
    /// Bytes of a packet, without its frame checksum.
    pub size: u32,
    /// What was measured, in order.
    pub runs: Vec<PacketRun>,
}

/// One measurement of packets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PacketRun {
    /// `split` or `packed`.
    pub ring: Cow<'static, str>,
    /// How BARs were mapped: `whole`, `carved` or `trapped`.
    pub policy: Cow<'static, str>,
    /// The page size that was planned for, in bytes.
    pub page_size: u64,
    /// Packets that are sent, and received, by one call at most.
    pub burst: usize,
    /// The core of the driver's thread, which has both ends.
    pub core: usize,
    /// What was measured, in seconds.
    pub seconds: f64,
    /// Packets that came.
    pub packets: u64,
    /// The same, a second.
    pub pps: f64,
    /// Of the time, in nanoseconds.
    pub ns_per_packet: f64,
    /// Of the CPU's time stamp counter, where it has one that runs steadily.
    pub cycles_per_packet: Option<f64>,
    /// How often the devices were told of packets and buffers.
    pub doorbells: Doorbells,
    /// How much of a CPU each thread had: 1 is all of it.
    pub cpu: Cpu,
    /// How long a cache line took from core to core and back just before, in nanoseconds, where there are two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hand_over_ns: Option<f64>,
    /// The rounds, of which this is the one with the median rate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rounds: Vec<PacketRound>,
}

/// One of several runs of the same kind.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PacketRound {
    /// Packets a second.
    pub pps: f64,
    /// CPU shares of its threads.
    pub cpu: Cpu,
    /// How long a cache line took from core to core and back just before, in nanoseconds, where there are two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hand_over_ns: Option<f64>,
    /// Whether it counts: its threads had their cores to themselves, or no round's had.
    pub counts: bool,
}

impl Measured for PacketRun {
    fn rate(&self) -> f64 {
        self.pps
    }

    fn undisturbed(&self) -> bool {
        self.cpu.undisturbed()
    }

    fn stand_for(&self, all: &[(&Self, bool)]) -> Self {
        let round = |(run, counts): &(&Self, bool)| PacketRound {
            pps: run.pps,
            cpu: run.cpu.clone(),
            hand_over_ns: run.hand_over_ns,
            counts: *counts,
        };
        Self { rounds: all.iter().map(round).collect(), ..self.clone() }
    }
}

impl Measured for Run {
    fn rate(&self) -> f64 {
        self.iops
    }

    fn undisturbed(&self) -> bool {
        self.cpu.undisturbed()
    }

    fn stand_for(&self, all: &[(&Self, bool)]) -> Self {
        let round = |(run, counts): &(&Self, bool)| Round {
            iops: run.iops,
            cpu: run.cpu.clone(),
            hand_over_ns: run.hand_over_ns,
            counts: *counts,
        };
        let errors = all.iter().map(|(run, _)| run.errors).sum();
        Self { rounds: all.iter().map(round).collect(), errors, ..self.clone() }
    }
}

/// One measurement.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    /// `randread`, `randwrite`, `read`, `write` or `mixed`.
    pub workload: Cow<'static, str>,
    /// How BARs were mapped: `whole`, `carved` or `trapped`; of `blk perf`, as that was asked for, which may be `auto`.
    pub policy: Cow<'static, str>,
    /// The page size that was planned for, in bytes.
    pub page_size: u64,
    /// Commands in flight in each queue.
    pub queue_depth: usize,
    /// Commands a doorbell, at most.
    pub batch: usize,
    /// Bytes a command.
    pub block_size: u64,
    /// The cores of the driver's threads.
    pub cores: Vec<usize>,
    /// Queue pairs on each of them.
    pub queues_per_core: usize,
    /// What was measured, in seconds.
    pub seconds: f64,
    /// Commands a second that ended well.
    pub iops: f64,
    /// Bytes a second.
    pub bytes_per_second: f64,
    /// Commands that ended well: reads.
    pub reads: u64,
    /// Commands that ended well: writes.
    pub writes: u64,
    /// Of all commands, in nanoseconds.
    pub latency_ns: Percentiles,
    /// How often submission and completion doorbells were rung.
    pub doorbells: Doorbells,
    /// Doorbells had shadows in memory, so that few of them were rung.
    #[serde(default, skip_serializing_if = "is_false")]
    pub shadow_doorbells: bool,
    /// Commands that failed, or whose data were wrong.
    pub errors: u64,
    /// How much of a CPU each thread had: 1 is all of it.
    pub cpu: Cpu,
    /// How long a cache line took from core to core and back just before, in nanoseconds, where there are two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hand_over_ns: Option<f64>,
    /// Commands that read back and verified what was written, after the measurement.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub read_back: u64,
    /// The rounds, where this is the one of them with the median rate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rounds: Vec<Round>,
    /// Why it ended before its time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut_short: Option<String>,
}

/// One of several runs of the same kind.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Round {
    /// Commands a second that ended well.
    pub iops: f64,
    /// CPU shares of its threads.
    pub cpu: Cpu,
    /// How long a cache line took from core to core and back just before, in nanoseconds, where there are two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hand_over_ns: Option<f64>,
    /// Whether it counts: its threads had their cores to themselves, or no round's had.
    pub counts: bool,
}

/// Doorbells rung.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Doorbells {
    /// By one store.
    pub direct: u64,
    /// By a system call or a message.
    pub trapped: u64,
}

/// CPU shares.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cpu {
    /// Of the driver's threads.
    pub driver: Vec<f64>,
    /// Of the model's thread, where it is one of this process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<f64>,
}

/// A distribution.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    /// Average.
    pub mean: f64,
    /// Smallest.
    pub min: f64,
    /// A tenth of all are at most this.
    pub p10: f64,
    /// Half of all are.
    pub p50: f64,
    /// 90 % are.
    pub p90: f64,
    /// 99 % are.
    pub p99: f64,
    /// 99.9 % are.
    #[serde(rename = "p99.9")]
    pub p99_9: f64,
    /// Largest.
    pub max: f64,
}

impl Quantiles {
    /// Of a histogram, whose values are multiplied by `unit`.
    pub fn of(histogram: &Histogram<u64>, unit: f64) -> Self {
        let at = |p| histogram.value_at_quantile(p) as f64 * unit;
        Self {
            mean: histogram.mean() * unit,
            min: histogram.min() as f64 * unit,
            p10: at(0.1),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            max: histogram.max() as f64 * unit,
        }
    }
}

impl Cpu {
    /// Whether each polling thread had a core to itself.
    pub fn undisturbed(&self) -> bool {
        self.driver.iter().chain(&self.model).all(|share| *share >= BUSY)
    }
}

fn is_false(is: &bool) -> bool {
    !is
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// A ratio in a table: `0.43`; `same` where the rounds do not tell it from 1; `-` where there is none.
pub fn ratio_text(ratio: Option<Ratio>) -> String {
    match ratio {
        Some(ratio) if ratio.is_same() => "same".to_owned(),
        Some(ratio) => format!("{:.2}", ratio.median),
        None => "-".to_owned(),
    }
}

/// How a ratio is read.
pub const RATIO_NOTE: &str = "the median over the rounds, each of which has measured both; same: their 99 % interval (sign test; 94 % of five rounds) holds 1. ";

/// With so many decimals below a thousand; above, as rates are shown.
fn short(n: f64, decimals: usize) -> String {
    if n < 999.5 { format!("{n:.decimals$}") } else { output::rate(n) }
}

/// What a table of packets has.
pub const PACKET_COLUMNS: [&str; 10] =
    ["ring", ">burst", "BARs", ">pps", ">ns", ">cycles", ">ratio", ">direct", ">trapped", ">packets"];

/// Its rows.
pub fn packet_rows(runs: &[PacketRun]) -> Vec<Vec<String>> {
    let whole =
        |of: &PacketRun| runs.iter().find(|run| run.policy == "whole" && run.ring == of.ring && run.burst == of.burst);
    let row = |run: &PacketRun| {
        vec![
            run.ring.clone().into_owned(),
            run.burst.to_string(),
            run.policy.clone().into_owned(),
            output::rate(run.pps),
            short(run.ns_per_packet, 1),
            run.cycles_per_packet.map_or("-".to_owned(), |cycles| short(cycles, 0)),
            whole(run).map_or("-".to_owned(), |whole| run.ratio(whole)),
            output::rate(run.doorbells.direct as f64),
            output::rate(run.doorbells.trapped as f64),
            format!("{:.1}", run.packets_a_doorbell()),
        ]
    };
    runs.iter().map(row).collect()
}

/// What stands before figures that cannot all be trusted; nothing where they can. Of each row is said whether it can.
pub fn warning(rows: impl Iterator<Item = bool>, shared: bool) -> String {
    let rows: Vec<_> = rows.collect();
    let (all, bad) = (rows.len(), rows.iter().filter(|trusted| !**trusted).count());
    if bad == 0 {
        return String::new();
    }
    let which = if bad == all { "NONE OF THESE ROWS CAN".to_owned() } else { format!("{bad} OF {all} ROWS CANNOT") };
    let why = untrusted_because(shared);
    output::paragraph(&format!(
        "{which} BE TRUSTED: {why}. They show no ratio, nor do rows that are compared with them. Run it again on two quiet cores."
    )) + "\n"
}

/// Why rows cannot be trusted.
pub fn untrusted_because(shared: bool) -> &'static str {
    match shared {
        true => "driver and model shared one core, and took turns on it",
        false => "each of their runs lost more than a tenth of a core to something else",
    }
}

/// What the threads of all rounds had of their cores, and what follows from that: a few sentences. Of each round is said whether it counts.
pub fn cores<'r>(rounds: impl Iterator<Item = (&'r Cpu, bool)>, shared: bool) -> String {
    let rounds: Vec<_> = rounds.collect();
    let range = |share: &dyn Fn(&Cpu) -> Option<f64>| {
        let all: Vec<_> = rounds.iter().filter_map(|(cpu, _)| share(cpu)).map(|s| s * 100.0).collect();
        let (low, high) = (all.iter().copied().fold(f64::MAX, f64::min), all.iter().copied().fold(0.0, f64::max));
        match (format!("{low:.0}"), format!("{high:.0}")) {
            _ if all.is_empty() => None,
            (low, high) if low == high => Some(format!("{low} %")),
            (low, high) => Some(format!("{low} to {high} %")),
        }
    };
    let Some(driver) = range(&|cpu| cpu.driver.first().copied()) else { return String::new() };
    let model = range(&|cpu| cpu.model).map_or(String::new(), |model| format!(", the model's {model}"));
    let mut text = format!("CPU: the driver's thread had {driver} of its core{model}. ");
    let dropped = rounds.iter().filter(|(_, counts)| !counts).count();
    if dropped > 0 && !shared {
        let all = rounds.len();
        text +=
            &format!("{dropped} of {all} runs lost more than a tenth of a core to something else: they don't count. ");
    }
    output::paragraph(&text)
}

/// What is said of the states that a machine was in, by how long a cache line took from core to core; nothing where that is not known.
pub fn states(samples: impl Iterator<Item = Sample>) -> String {
    let (low, high) = samples
        .filter_map(|sample| sample.state)
        .fold((f64::MAX, 0.0), |(low, high), state| (state.min(low), state.max(high)));
    if high == 0.0 {
        return String::new();
    }
    let moved = match high > 1.5 * low {
        true => {
            " It is not one machine all the time: its cores are near one another at times, and far at others, as virtual CPUs that a host moves about."
        }
        false => "",
    };
    output::paragraph(&format!(
        "hand-over: a cache line took {low:.0} to {high:.0} ns from core to core and back.{moved}"
    ))
}

/// A workload's name, as `--rw` takes it.
pub fn workload_name(workload: Workload) -> &'static str {
    match (workload.order, workload.direction) {
        (Order::Random, Direction::Read) => "randread",
        (Order::Random, Direction::Write) => "randwrite",
        (Order::Sequential, Direction::Read) => "read",
        (Order::Sequential, Direction::Write) => "write",
        (_, Direction::Mixed { .. }) => "mixed",
    }
}

impl Run {
    /// Of an outcome.
    pub fn of(
        job: &Job,
        outcome: &Outcome,
        (policy, page): (MapPolicy, PageSize),
        cores: &[usize],
        queues: usize,
    ) -> Self {
        let block_size = u64::from(job.block) * job.blocks;
        let DoorbellCounts { direct, trapped } = outcome.doorbells;
        Self {
            workload: workload_name(job.workload).into(),
            policy: policy_name(policy).into(),
            page_size: page.bytes(),
            queue_depth: job.depth,
            batch: job.batch,
            block_size,
            cores: cores.to_vec(),
            queues_per_core: queues,
            seconds: outcome.window.as_secs_f64(),
            iops: outcome.iops,
            bytes_per_second: outcome.iops * block_size as f64,
            reads: outcome.reads.len(),
            writes: outcome.writes.len(),
            latency_ns: Percentiles::of(&outcome.latency()),
            doorbells: Doorbells { direct, trapped },
            shadow_doorbells: false,
            errors: outcome.errors(),
            cpu: Cpu { driver: outcome.cpu.clone(), model: outcome.device_cpu },
            hand_over_ns: None,
            read_back: outcome.read_back,
            rounds: Vec::new(),
            cut_short: outcome.cut_short.as_ref().map(ToString::to_string),
        }
    }

    /// How the BARs were mapped, as people say it: `carved, 64 KiB`.
    pub fn plan(&self) -> String {
        match PageSize::new(self.page_size) {
            Ok(page) if self.policy == policy_name(MapPolicy::Carved) => format!("{}, {page}", self.policy),
            _ => self.policy.clone().into_owned(),
        }
    }

    /// What the threads of its rounds had, and whether each counts.
    pub fn cpus(&self) -> impl Iterator<Item = (&Cpu, bool)> {
        self.rounds.iter().map(|round| (&round.cpu, round.counts))
    }

    /// The lowest and the highest rate of the rounds that count.
    pub fn spread(&self) -> (f64, f64) {
        let counting = self.rounds.iter().filter(|round| round.counts).map(|round| round.iops);
        counting.fold((self.iops, self.iops), |(low, high), iops| (low.min(iops), high.max(iops)))
    }

    /// Rates of its rounds, in order; no number where one does not count.
    pub fn rates(&self) -> Vec<f64> {
        self.samples().map(|sample| sample.rate).collect()
    }

    /// Rates of its rounds, no number where one does not count, each with its round's hand-over in nanoseconds as the state.
    pub fn samples(&self) -> impl Iterator<Item = Sample> {
        let rate = |round: &Round| if round.counts { round.iops } else { f64::NAN };
        self.rounds.iter().map(move |round| Sample { rate: rate(round), state: round.hand_over_ns })
    }

    /// Its rate against another's of the same rounds; `None` where one of them cannot be trusted, or too few rounds count.
    pub fn against(&self, whole: &Self) -> Option<Ratio> {
        let both = self.is_trusted() && whole.is_trusted();
        both.then(|| Ratio::paired(&self.rates(), &whole.rates())).flatten()
    }

    /// The same in a word, as [`ratio_text`] has it; a run is 1.00 of itself.
    pub fn ratio(&self, whole: &Self) -> String {
        match self.against(whole) {
            Some(_) if std::ptr::eq(self, whole) => "1.00".to_owned(),
            ratio => ratio_text(ratio),
        }
    }

    /// Whether doorbells are reached as under whole, by stores: the two differ in nothing that is measured, and their ratio shows the noise (an A/A test).
    pub fn is_control_of(&self, whole: &Self) -> bool {
        self.policy != whole.policy
            && [self, whole].iter().all(|run| run.doorbells.trapped == 0 && run.doorbells.direct > 0)
    }

    /// Whether its threads had their cores to themselves, in one round at least, and did something.
    pub fn is_trusted(&self) -> bool {
        self.iops > 0.0 && self.cpu.undisturbed()
    }

    /// Rounds that lost a core and don't count.
    pub fn dropped(&self) -> usize {
        self.rounds.iter().filter(|round| !round.counts).count()
    }

    /// Commands for each doorbell that was rung.
    pub fn commands_a_doorbell(&self) -> f64 {
        (self.reads + self.writes) as f64 / (self.doorbells.direct + self.doorbells.trapped).max(1) as f64
    }
}

impl PacketRun {
    /// What the threads of its rounds had, and whether each counts.
    pub fn cpus(&self) -> impl Iterator<Item = (&Cpu, bool)> {
        self.rounds.iter().map(|round| (&round.cpu, round.counts))
    }

    /// The lowest and the highest rate of the rounds that count.
    pub fn spread(&self) -> (f64, f64) {
        let counting = self.rounds.iter().filter(|round| round.counts).map(|round| round.pps);
        counting.fold((self.pps, self.pps), |(low, high), pps| (low.min(pps), high.max(pps)))
    }

    /// Rates of its rounds, in order; no number where one does not count.
    pub fn rates(&self) -> Vec<f64> {
        self.samples().map(|sample| sample.rate).collect()
    }

    /// Rates of its rounds, no number where one does not count, each with its round's hand-over in nanoseconds as the state.
    pub fn samples(&self) -> impl Iterator<Item = Sample> {
        let rate = |round: &PacketRound| if round.counts { round.pps } else { f64::NAN };
        self.rounds.iter().map(move |round| Sample { rate: rate(round), state: round.hand_over_ns })
    }

    /// Its rate against another's of the same rounds, as [`ratio_text`] has it; a run is 1.00 of itself.
    pub fn ratio(&self, whole: &Self) -> String {
        let both = self.is_trusted() && whole.is_trusted();
        match both.then(|| Ratio::paired(&self.rates(), &whole.rates())).flatten() {
            Some(_) if std::ptr::eq(self, whole) => "1.00".to_owned(),
            ratio => ratio_text(ratio),
        }
    }

    /// Whether its threads had their cores to themselves, in one round at least, and packets came.
    pub fn is_trusted(&self) -> bool {
        self.pps > 0.0 && self.cpu.undisturbed()
    }

    /// Packets for each doorbell that was rung: at both ends.
    pub fn packets_a_doorbell(&self) -> f64 {
        self.packets as f64 / (self.doorbells.direct + self.doorbells.trapped).max(1) as f64
    }
}

#[cfg(test)]
impl Run {
    /// One to change, for tests.
    pub fn example() -> Self {
        Self {
            workload: "randread".into(),
            policy: "whole".into(),
            page_size: 4096,
            queue_depth: 1,
            batch: 1,
            block_size: 4096,
            cores: vec![0],
            queues_per_core: 1,
            seconds: 1.0,
            iops: 1000.0,
            bytes_per_second: 4_096_000.0,
            reads: 1000,
            writes: 0,
            latency_ns: Percentiles::default(),
            doorbells: Doorbells { direct: 2000, trapped: 0 },
            shadow_doorbells: false,
            errors: 0,
            cpu: Cpu { driver: vec![1.0], model: None },
            hand_over_ns: None,
            read_back: 0,
            rounds: Vec::new(),
            cut_short: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_stands_for_its_rounds() {
        let run = |iops, share| {
            let cpu = Cpu { driver: vec![share], model: Some(1.0) };
            Run { policy: "carved".into(), page_size: 65536, iops, cpu, errors: 1, ..Run::example() }
        };
        let result = |shares: [f64; 3], counts: [bool; 3]| {
            let runs = [run(1.0, shares[0]), run(2.0, shares[1]), run(3.0, shares[2])];
            let all: Vec<_> = runs.iter().zip(counts).collect();
            runs[2].stand_for(&all)
        };
        let some = result([1.0, 0.5, 1.0], [true, false, true]);
        assert_eq!((some.iops, some.dropped(), some.spread()), (3.0, 1, (1.0, 3.0)));
        let all = result([0.5, 0.6, 0.7], [true; 3]);
        assert_eq!((all.dropped(), all.spread(), all.errors), (0, (1.0, 3.0), 3));
        assert_eq!(all.plan(), "carved, 64 KiB");
        assert!(run(1.0, 0.9).undisturbed() && !run(1.0, 0.89).undisturbed());
    }
}

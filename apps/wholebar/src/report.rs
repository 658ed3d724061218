//! What `bench` and `nvme perf` write as JSON: the same shape, so that one reader takes both.

use crate::args::policy_name;
use crate::host::Host;
use crate::work::{Direction, Job, Order, Outcome, Percentiles, Workload};
use serde::Serialize;
use wholebar::bar::{DoorbellCounts, MapPolicy};
use wholebar::pci::DeviceKind;
use wholebar::{PageSize, pci::PciDevice};

/// A report.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What this is: `wholebar.bench/1` or `wholebar.perf/1`.
    pub schema: &'static str,
    /// The program's version.
    pub version: &'static str,
    /// What stands behind the figures: `model`, `emulated` or `hardware`.
    pub device: &'static str,
    /// The device's name.
    pub target: String,
    /// The machine.
    pub host: Host,
    /// What was measured, in order.
    pub runs: Vec<Run>,
}

/// One measurement.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// `randread`, `randwrite`, `read`, `write` or `mixed`.
    pub workload: &'static str,
    /// How BARs were mapped: `whole`, `carved` or `trapped`.
    pub policy: &'static str,
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
    /// Commands that failed, or whose data were wrong.
    pub errors: u64,
    /// How much of a CPU each thread had: 1 is all of it.
    pub cpu: Cpu,
    /// Commands that read back and verified what was written, after the measurement.
    #[serde(skip_serializing_if = "is_zero")]
    pub read_back: u64,
    /// The rate of each round, where this is the median of several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rounds: Vec<f64>,
    /// Why it ended before its time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cut_short: Option<String>,
}

/// Doorbells rung.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Doorbells {
    /// By one store.
    pub direct: u64,
    /// By a system call or a message.
    pub trapped: u64,
}

/// CPU shares.
#[derive(Debug, Clone, Serialize)]
pub struct Cpu {
    /// Of the driver's threads.
    pub driver: Vec<f64>,
    /// Of the model's thread, where it is one of this process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<f64>,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// What stands behind a device's figures.
pub fn device_kind(device: &dyn PciDevice) -> &'static str {
    match device.kind() {
        DeviceKind::Model => "model",
        DeviceKind::VfioUser => "emulated",
        DeviceKind::Kernel => "hardware",
    }
}

/// What is said beside the figures of a device that is software; `None` where it may be hardware.
pub fn caveat(device: &dyn PciDevice) -> Option<&'static str> {
    match device.kind() {
        DeviceKind::Model => Some("a model in this process: figures of emulation, not a drive's"),
        DeviceKind::VfioUser => Some("a vfio-user server, which is software: figures of emulation, not a drive's"),
        DeviceKind::Kernel => None,
    }
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
        model: Option<f64>,
    ) -> Self {
        let block_size = u64::from(job.block) * job.blocks;
        let DoorbellCounts { direct, trapped } = outcome.doorbells;
        Self {
            workload: workload_name(job.workload),
            policy: policy_name(policy),
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
            errors: outcome.errors(),
            cpu: Cpu { driver: outcome.cpu.clone(), model },
            read_back: outcome.read_back,
            rounds: Vec::new(),
            cut_short: outcome.cut_short.clone(),
        }
    }

    /// Commands for each doorbell that was rung.
    pub fn commands_a_doorbell(&self) -> f64 {
        (self.reads + self.writes) as f64 / (self.doorbells.direct + self.doorbells.trapped).max(1) as f64
    }
}

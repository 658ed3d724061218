//! `wholebar nvme perf`: what a namespace of a controller delivers, measured.

use super::Controller;
use crate::args::{self, Size};
use crate::perf::PerfArgs;
use anyhow::Result;
use clap::ValueEnum;
use std::time::Duration;
use wholebar::nvme::{Options, ShadowDoorbells};

/// Measure a namespace: commands a second, latencies, what doorbells cost
///
/// One pinned thread a core polls its queue pairs and keeps each of them full; completions go straight into the next commands, a batch and
/// a doorbell at a time. WRITES DESTROY WHAT IS THERE.
///
/// Latency is counted from before a command is submitted to when a poll found it complete.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme perf sim:nvme,backing=null --qd 128
  wholebar nvme perf sim:nvme --rw mixed --rwmixread 70 --verify
  wholebar nvme perf vfio-user:/run/nvme.sock --qd 1 --policy trapped
  wholebar nvme perf sim:nvme --rw write --bs 128k --time 5 --json >report.json
  wholebar nvme perf sim:nvme,cmb=4M --cmb --bs 16k --qd 16
  wholebar nvme perf sim:nvme,hmb=64M --host-memory-buffer 64M --rw randread
  wholebar nvme perf 0000:01:00.0 --baseline kernel:/dev/nvme1n1   # two drives of a kind")]
pub struct Args {
    /// The NVMe controller
    target: String,
    #[command(flatten)]
    perf: PerfArgs,
    /// When to use shadow doorbells, where the controller has them: auto is where doorbells can't be mapped
    #[arg(long, value_name = "WHEN", value_enum, default_value = "auto")]
    shadow_doorbells: Shadows,
    /// Have submission queues and lists lie in the controller's memory buffer, where it has one
    #[arg(long)]
    cmb: bool,
    /// Have completion queues lie there, too, where the controller offers that: each poll is a read over the bus
    #[arg(long, requires = "cmb")]
    cmb_completions: bool,
    /// Give the controller up to so much of this host's memory, where it prefers to have some (Host Memory Buffer)
    #[arg(long, value_name = "SIZE")]
    host_memory_buffer: Option<Size>,
    /// Give a command up after so long; what doesn't come back then costs the controller a reset. A vfio-user server may take as long to
    /// answer a message
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = args::seconds)]
    timeout: Duration,
}

/// When to use shadow doorbells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shadows {
    Auto,
    Always,
    Never,
}

impl From<Shadows> for ShadowDoorbells {
    fn from(when: Shadows) -> Self {
        match when {
            Shadows::Auto => Self::Auto,
            Shadows::Always => Self::Always,
            Shadows::Never => Self::Never,
        }
    }
}

pub fn run(args: Args) -> Result<()> {
    let defaults = Options::default();
    args.perf.run(&args.target, Some(args.timeout), |target, queues| {
        let options = Options {
            policy: args.perf.policy(),
            page: args.perf.page(),
            io_queues: queues,
            timeout: args.timeout,
            // Those of the control plane are no shorter: a controller that has time for I/O has it for them.
            admin_timeout: defaults.admin_timeout.max(args.timeout),
            shadow_doorbells: args.shadow_doorbells.into(),
            controller_memory: args.cmb,
            controller_completions: args.cmb_completions,
            host_memory_buffer: args.host_memory_buffer.map(|size| size.0),
            ..defaults
        };
        Controller::open(target.pci()?, options)
    })
}

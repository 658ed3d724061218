//! `wholebar blk perf`: what a disk delivers, measured.

use crate::any_disk::AnyDisk;
use crate::perf::PerfArgs;
use anyhow::Result;
use wholebar::block::DiskConfig;
use wholebar::drivers::Mapping;

/// Measure a disk: requests a second, latencies, what doorbells cost
///
/// One pinned thread a core polls its queues and keeps as many requests in flight in each; completions go straight into the next requests, a
/// batch and a doorbell at a time. WRITES DESTROY WHAT IS THERE.
///
/// Latency is counted from before a request is submitted to when a poll found it complete. `nvme perf` measures the same of NVMe controllers, by
/// queues whose driver is known when it is compiled, and has more options.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar blk perf sim:virtio-blk --qd 64
  wholebar blk perf sim:virtio-blk,queues=2 --queues 2 --rw mixed --verify
  wholebar blk perf vfio-user:/run/blk.sock --qd 1 --policy trapped
  wholebar blk perf sim:nvme --rw write --bs 128k --time 5 --json >report.json
  wholebar blk perf kernel:/dev/nvme0n1 --qd 64
  wholebar blk perf 0000:01:00.0 --baseline kernel:/dev/nvme1n1   # two drives of a kind")]
pub struct Args {
    /// The disk
    target: String,
    #[command(flatten)]
    perf: PerfArgs,
    /// Entries, or descriptors, of each queue, a power of two [default: what suits the device]. A request takes one entry of an NVMe queue, and at
    /// least three descriptors of a virtqueue
    #[arg(long, value_name = "N", value_parser = power_of_two)]
    entries: Option<u16>,
}

fn power_of_two(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(n) if n.is_power_of_two() => Ok(n),
        _ => Err("a queue has a power of two of entries, up to 32768".to_owned()),
    }
}

pub fn run(args: Args) -> Result<()> {
    args.perf.run(&args.target, None, |target, queues| {
        let mapping = Mapping { policy: args.perf.policy(), page: args.perf.page() };
        AnyDisk::open(target, &DiskConfig { queues, entries: args.entries }, mapping)
    })
}

//! `wholebar net fwd`: packets from port to port, as testpmd does it.

mod lane;
mod report;

use super::port::{self, PortArgs, Totals};
use super::report::{Port, Ran, show};
use super::run::{self, RunArgs};
use crate::host::Host;
use crate::output;
use crate::signal;
use anyhow::{Result, bail};
use clap::ValueEnum;
use lane::{Counts, Forward};
use report::{Accounting, Report};
use std::sync::Arc;

/// Forward packets between ports
///
/// What port 0 receives, port 1 sends, and the other way round; so do 2 and 3. A port without another sends what it received. Packets that
/// a port has no room for wait: what then comes too fast is dropped, and counted, where it comes in.
///
/// Gb/s are those of frames, without preamble, gap and checksum.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar net fwd sim:virtio-net,wire=tap:t0 sim:virtio-net,wire=tap:t1
  wholebar net fwd 0000:01:00.0 0000:02:00.0 --cores 0,1 --queues 2
  wholebar net fwd sim:virtio-net --time 2 --json")]
pub struct Args {
    /// Devices: each a port
    #[arg(required = true, value_name = "TARGET")]
    targets: Vec<String>,
    /// What becomes of packets
    #[arg(long, value_enum, default_value = "io")]
    mode: Mode,
    /// Packets that are moved at once
    #[arg(long, value_name = "N", default_value = "32", value_parser = clap::value_parser!(u16).range(1..=4096))]
    burst: u16,
    #[command(flatten)]
    ports: PortArgs,
    #[command(flatten)]
    run: RunArgs,
    /// Write JSON at the end; lines for people go to standard error
    #[arg(long)]
    json: bool,
}

/// What becomes of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// They are sent as they came
    Io,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Io => "io",
        }
    }
}

pub fn run(args: Args) -> Result<()> {
    let host = Host::now();
    port::check_targets(&args.targets)?;
    let cores = args.run.cores()?;
    let ports = port::open(&args.targets, &args.ports, args.run.idle, &cores)?;
    let (mut lanes, mut counts) = (Vec::new(), Vec::new());
    for queue in 0..args.ports.queues {
        for from in &ports {
            let to = ports.get(from.number ^ 1).unwrap_or(from);
            let own = Arc::new(Counts::default());
            lanes.push(Forward::new(from.rx(queue)?, to.tx(queue)?, args.burst.into(), own.clone()));
            counts.push(own);
        }
    }
    let lanes = run::deal(&cores, lanes)?;

    let interrupted = signal::interrupted()?;
    port::wait_for_links(&ports, &interrupted);
    let show = show(args.json);
    show(&ports.iter().map(|port| port.line() + "\n").collect::<String>())?;
    let outcome = run::run(&ports, lanes, &args.run, &interrupted, || false, show)?;

    let ran = Ran::new(host, args.burst, cores, ports, outcome);
    let accounting = account(&ran.ports, &counts);
    let report = Report::new(args.mode, ran, accounting);
    if args.json {
        output::print_json(&report)?;
    } else {
        output::print(report.text())?;
    }
    report.trouble().map_or(Ok(()), |trouble| bail!(trouble))
}

/// Where all packets came from, and where they went.
fn account(ports: &[Port], lanes: &[Arc<Counts>]) -> Accounting {
    let ports = |each: fn(&Totals) -> u64| ports.iter().map(|port| each(&port.totals)).sum();
    let lanes = |each: fn(&Counts) -> u64| lanes.iter().map(|counts| each(counts)).sum();
    Accounting {
        received: ports(|port| port.rx_packets),
        made: lanes(|lane| lane.made.get()),
        sent: ports(|port| port.tx_packets),
        kept: lanes(|lane| lane.kept.get()),
        refused: ports(|port| port.tx_refused),
        left: lanes(|lane| lane.left.get()),
    }
}

//! `wholebar net dump`: what a port receives, into a capture file.

use super::port;
use super::receive::ReceiveArgs;
use super::report::{Ran, show};
use super::run::{self, Lane};
use super::sink::CACHE;
use super::tap::{Tap, Written, is_output};
use crate::args::Usage;
use crate::host::Host;
use crate::output;
use crate::signal;
use anyhow::{Result, bail};
use serde::Serialize;
use std::sync::Arc;
use wholebar::Work;
use wholebar::mem::PoolCache;
use wholebar::net::{Burst, RxQueue};

/// Write what a port receives to a capture file: pcapng, with times in nanoseconds
///
/// Packets that come too fast are dropped by the device, and counted.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar net dump sim:virtio-net,wire=tap:t0 t0.pcapng --time 10
  wholebar net dump 0000:01:00.0 - --count 100 | tcpdump -nr -
  wholebar net dump vfio-user:/run/b.sock headers.pcapng --snaplen 96")]
pub struct Args {
    /// The file; - is standard output
    #[arg(index = 2)]
    file: String,
    /// End after so many packets
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Bytes to keep of each packet [default: all]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(14..))]
    snaplen: Option<u32>,
    #[command(flatten)]
    pub(super) receive: ReceiveArgs,
}

/// A run, as `--json` writes it.
#[derive(Serialize)]
struct Report {
    schema: &'static str,
    file: String,
    /// Packets that are in the file.
    written: u64,
    #[serde(flatten)]
    ran: Ran,
}

pub fn run(args: Args) -> Result<()> {
    let host = Host::now();
    let ReceiveArgs { target, run, watch, json, .. } = &args.receive;
    if *json && is_output(&args.file) {
        bail!(Usage("--json and packets cannot both go to standard output".to_owned()));
    }
    let cores = run.cores(1)?;
    let ports = args.receive.open(&cores)?;
    let (port, server) = (&ports[0], watch.serve(&ports)?);
    let written = Arc::new(Written::default());
    let lane = Dump {
        rx: args.receive.queues(port)?,
        cache: port.pool.cache(CACHE),
        burst: Burst::new(run.burst.into()),
        tap: Tap::create(&args.file, target, args.snaplen, written.clone())?,
        left: args.count.unwrap_or(u64::MAX),
    };
    let lanes = run::deal(&cores, vec![lane]);

    let interrupted = signal::interrupted()?;
    port::wait_for_links(&ports, &interrupted);
    let show = show(*json || is_output(&args.file));
    show(&format!("{}\n", port.line()))?;
    let over = |_| written.packets.get() >= args.count.unwrap_or(u64::MAX) || written.is_broken();
    let outcome = run::run(&ports, lanes, run, &interrupted, over, &show)?;
    drop(server);

    let ran = Ran::new(host, run.burst, cores, ports, outcome);
    let report = Report { schema: "wholebar.dump/1", file: args.file.clone(), written: written.packets.get(), ran };
    if *json {
        output::print_json(&report)?;
    } else {
        show(&report.text())?;
    }
    written.check(&args.file)?;
    report.ran.failure().map_or(Ok(()), |failure| bail!(failure))
}

impl Report {
    fn text(&self) -> String {
        let Self { file, written, ran, .. } = self;
        let (written, seconds) = (output::count(*written), ran.seconds);
        format!("\n{written} packets in {file}, after {seconds:.2} s\n\n{}{}", ran.table(), ran.caveat())
    }
}

/// Queues that receive, and a file.
struct Dump {
    rx: Vec<Box<dyn RxQueue>>,
    cache: PoolCache,
    burst: Burst,
    tap: Tap,
    /// How many packets are still to be written.
    left: u64,
}

impl Lane for Dump {
    fn poll(&mut self) -> Work {
        let mut work = Work::Idle;
        for rx in &mut self.rx {
            if rx.rx(&mut self.burst) > 0 {
                let n = self.left.min(self.burst.len() as u64);
                self.tap.write(&self.burst[..n as usize]);
                self.left -= n;
                self.burst.give_back_to(&mut self.cache);
                work = Work::Busy;
            }
        }
        if work == Work::Idle {
            self.tap.idle();
        }
        work
    }

    fn settle(&mut self) -> bool {
        true
    }

    fn receivers(&mut self) -> &mut [Box<dyn RxQueue>] {
        &mut self.rx
    }
}

//! `wholebar net sink`: receives what `net gen` sends, and tells what became of it.

pub mod lane;
pub mod report;

use super::port;
use super::receive::ReceiveArgs;
use super::report::{Ran, show};
use super::run::{self};
use super::tap::{Tap, Written, is_output};
use crate::args::{self, Usage};
use crate::host::Host;
use crate::output;
use crate::signal;
use anyhow::{Context, Result, bail};
use lane::{Expected, Receiver, Seen};
use report::Received;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use wholebar::measure::net::mark::Clock;

/// Receive what `wholebar net gen` sends, here or elsewhere: loss, order, damage, latency
///
/// Each packet of gen has a flow, a number in it, the time it was sent, and a payload that is known: so that packets are found to be lost,
/// reordered (they came after one with a higher number), duplicate or corrupt. Others are counted as foreign. Numbers begin at 0 with each
/// run of gen: start the sink first. It takes the first run that it sees, and counts packets of others apart.
///
/// Latency is from when a burst of packets was made to when it was taken off its queue, by the monotonic clock of the machine: it means
/// something only where gen runs on the same machine (and is left out where packets came before they were sent).
///
/// One core polls all queues. The exit code is 1 where packets were lost or corrupt, unless --tolerate says that they may be.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar net sink sim:virtio-net,wire=tap:t1 --quiet 2
  wholebar net sink vfio-user:/run/b.sock --expect 1000000 --time 60
  wholebar net sink 0000:02:00.0 --write received.pcapng --json >received.json")]
pub struct Args {
    /// How many packets there should be: ends when as many have come; lost are those of them that haven't
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    expect: Option<u64>,
    /// End when nothing came for so long, once something has
    #[arg(long, value_name = "SECONDS", value_parser = args::seconds)]
    quiet: Option<Duration>,
    /// End with exit code 0 although packets were lost or corrupt
    #[arg(long)]
    tolerate: bool,
    /// Write all packets to a capture file as well: pcapng, with times in nanoseconds
    #[arg(long, value_name = "FILE")]
    write: Option<String>,
    #[command(flatten)]
    pub(super) receive: ReceiveArgs,
}

/// A run, as `--json` writes it.
#[derive(Serialize)]
struct Report {
    schema: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<u64>,
    received: Received,
    #[serde(flatten)]
    ran: Ran,
}

pub fn run(args: Args) -> Result<()> {
    let host = Host::now();
    if args.write.as_deref().is_some_and(is_output) {
        bail!(Usage("the report goes to standard output: --write takes a file (see `wholebar net dump`)".to_owned()));
    }
    let ReceiveArgs { target, run, watch, json, .. } = &args.receive;
    let cores = run.cores(1)?;
    let ports = args.receive.open(&cores)?;
    let (port, server) = (&ports[0], watch.serve(&ports)?);
    let seen = Arc::new(Seen::default());
    let (rx, burst) = (args.receive.queues(port)?, usize::from(run.burst));
    let clock = Clock::new(&quanta::Clock::new());
    let lane = Receiver::new(rx, port.pool.cache(CACHE), burst, Expected::Marks(None), clock, seen.clone());
    let written = Arc::new(Written::default());
    let tap = args.write.as_ref().map(|file| Tap::create(file, target, None, written.clone()));
    let lanes = run::deal(&cores, vec![lane.tapped(tap.transpose()?)]);

    let interrupted = signal::interrupted()?;
    port::wait_for_links(&ports, &interrupted);
    let show = show(*json);
    show(&format!("{}\nfor gen: --dst-mac {}\n", port.line(), port.port.mac()))?;
    let mut quiet = Quiet::new(args.quiet);
    let over = |_| {
        let enough = seen.received.get() >= args.expect.unwrap_or(u64::MAX);
        enough || quiet.is_over(seen.packets.get()) || written.is_broken()
    };
    let outcome = run::run(&ports, lanes, run, &interrupted, over, show)?;
    drop(server);

    let found = seen.take().context("the receiving thread left nothing")?;
    let received = Received::new(&found, args.expect, None);
    let ran = Ran::new(host, run.burst, cores, ports, outcome);
    let report = Report { schema: "wholebar.sink/1", expected: args.expect, received, ran };
    if *json {
        output::print_json(&report)?;
    } else {
        output::print(report.text())?;
    }
    args.write.as_deref().map_or(Ok(()), |file| written.check(file))?;
    let lost = || report.received.failure().filter(|_| !args.tolerate);
    report.ran.failure().or_else(lost).map_or(Ok(()), |failure| bail!(failure))
}

/// Buffers that are taken from a pool, or given back, at once.
pub const CACHE: u32 = 32;

impl Report {
    fn text(&self) -> String {
        let Self { received, ran, .. } = self;
        let (rows, latencies) = (output::pairs(received.rows()), received.latencies());
        format!("\nsink for {:.2} s\n\n{rows}{latencies}\n{}{}", ran.seconds, ran.table(), ran.caveat())
    }
}

/// Whether nothing came for so long: counted in polls, so that a time in which this process stands still is none in which nothing came.
struct Quiet {
    patience: Option<Duration>,
    packets: u64,
    polls: u32,
}

impl Quiet {
    fn new(patience: Option<Duration>) -> Self {
        Self { patience, packets: 0, polls: 0 }
    }

    /// To be called once a poll.
    fn is_over(&mut self, packets: u64) -> bool {
        self.polls += 1;
        if packets != self.packets {
            (self.packets, self.polls) = (packets, 0);
        }
        packets > 0 && self.patience.is_some_and(|patience| run::POLL_INTERVAL.saturating_mul(self.polls) >= patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_quiet_after_so_many_polls_once_something_came() {
        let mut quiet = Quiet::new(Some(run::POLL_INTERVAL * 3));
        assert!((0..10).all(|_| !quiet.is_over(0)), "nothing has come yet");
        let over: Vec<_> = [1, 1, 1, 2, 2, 2, 2].into_iter().map(|packets| quiet.is_over(packets)).collect();
        assert_eq!(over, [false, false, false, false, false, false, true]);
        assert!((0..1000).all(|_| !Quiet::new(None).is_over(1)));
    }
}

//! `wholebar net fwd`: packets from port to port, as testpmd does it.

mod echo;
mod lane;
mod report;

use super::around::AroundArgs;
use super::baseline::{self, BaselineArgs};
use super::port::{self, HEADROOM, OpenPort, PortArgs, Totals};
use super::report::{Port, Ran, show};
use super::run::{self, RunArgs};
use crate::args::Usage;
use crate::host;
use crate::output;
use crate::signal;
use anyhow::{Result, bail};
use clap::ValueEnum;
use echo::Host;
use etherparse::PacketBuilder;
use lane::{Counts, Forward, Job, Maker};
use report::{Accounting, Report};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use wholebar::net::{Burst, Mac};

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
  wholebar net fwd sim:virtio-net,wire=tap:t0 --mode icmpecho --address 10.0.0.2
  wholebar net fwd sim:virtio-net --mode txonly --time 2 --json
  wholebar net fwd 0000:01:00.0 0000:02:00.0 --stats-socket /run/fwd.sock --capture all.pcapng
  wholebar net fwd sim:virtio-net,wire=tap:t0 sim:virtio-net,wire=tap:t1 --faults drop=0.01,reorder=0.05,seed=7
  wholebar net fwd sim:virtio-net,wire=tap:t0 --mode icmpecho --trace --time 5 2>trace.txt
  wholebar net fwd 0000:01:00.0 --mode txonly --time 10 --baseline kernel:eth1")]
pub struct Args {
    /// Devices: each a port
    #[arg(required = true, value_name = "TARGET")]
    targets: Vec<String>,
    /// What becomes of packets
    #[arg(long, value_enum, default_value = "io")]
    mode: Mode,
    /// Where ports send to, with --mode l2fwd and txonly, a port each [default: 02:00:00:00:00:NN, NN being the port]
    #[arg(long, value_name = "MAC")]
    peer: Vec<Mac>,
    /// Bytes of a packet that --mode txonly makes, without frame checksum [default: 64]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(60..))]
    size: Option<u16>,
    /// IPv4 addresses that --mode icmpecho answers for [default: all]
    #[arg(long, value_name = "ADDRESS")]
    address: Vec<Ipv4Addr>,
    /// End once so many packets, or more, were received or made
    #[arg(long, value_name = "N")]
    packets: Option<u64>,
    /// Write JSON at the end; lines for people go to standard error
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    baseline: BaselineArgs,
    #[command(flatten)]
    ports: PortArgs,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    pub(super) around: AroundArgs,
}

/// What becomes of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// They are sent as they came
    Io,
    /// They are sent with their Ethernet addresses exchanged
    Macswap,
    /// They are sent from the sending port's address to that port's --peer
    L2fwd,
    /// They are counted and dropped
    Rxonly,
    /// Others are made and sent: UDP over IPv4, of --size bytes, to each port's --peer. What comes is counted and dropped
    Txonly,
    /// ARP requests and ICMP echo requests are answered, the rest is counted and dropped
    Icmpecho,
}

impl Mode {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

pub fn run(args: Args) -> Result<()> {
    args.check()?;
    let interrupted = signal::interrupted()?;
    if !args.baseline.baseline.is_empty() {
        let Args { targets, baseline, run, json, .. } = &args;
        return baseline::compare(targets, baseline, run, args.mode.name(), *json, &interrupted, |targets, time| {
            let (report, _) = args.once(targets, &run.quiet_for(time), &interrupted, |_| Ok(()))?;
            report.failure().map_or(Ok((report.moved(), None)), |failure| bail!(failure))
        });
    }
    let (report, around) = args.once(&args.targets, &args.run, &interrupted, show(args.json))?;
    if args.json {
        output::print_json(&report)?;
    } else {
        output::print(report.text())?;
    }
    around?;
    report.failure().map_or(Ok(()), |failure| bail!(failure))
}

impl Args {
    /// Opens ports, and moves packets between them for as long as `run_args` say.
    fn once(
        &self,
        targets: &[String],
        run_args: &RunArgs,
        interrupted: &AtomicBool,
        show: impl Fn(&str) -> Result<()>,
    ) -> Result<(Report, Result<()>)> {
        let host = host::Host::now();
        port::check_targets(targets)?;
        let cores = run_args.cores(targets.len() * usize::from(self.ports.queues))?;
        let ports = port::open(targets, &self.ports, run_args.idle, &cores)?;
        let mut around = self.around.begin(&ports)?;
        let (mut lanes, mut counts) = (Vec::new(), Vec::new());
        for queue in 0..self.ports.queues {
            for from in &ports {
                let to = self.other(from, &ports);
                let (own, job) = (Arc::new(Counts::default()), self.job(queue, to)?);
                lanes.push(Forward::new(
                    around.rx(from, queue)?,
                    (to.number, around.tx(to, queue)?),
                    job,
                    run_args.burst.into(),
                    own.clone(),
                ));
                counts.push(own);
            }
        }
        let lanes = run::deal(&cores, lanes);

        port::wait_for_links(&ports, interrupted);
        show(&ports.iter().map(|port| port.line() + "\n").collect::<String>())?;
        let enough = |_| {
            let moved = || {
                let received: u64 = ports.iter().map(|port| port.totals().rx_packets).sum();
                received + counts.iter().map(|lane| lane.made.get()).sum::<u64>()
            };
            self.packets.is_some_and(|packets| moved() >= packets)
        };
        let outcome = run::run(&ports, lanes, run_args, interrupted, enough, show)?;

        let around = around.finish();
        let ran = Ran::new(host, run_args.burst, cores, ports, outcome);
        let accounting = account(&ran.ports, &counts);
        let report = Report::new(self.mode, ran, accounting);
        Ok((report, around))
    }

    /// Whether what was asked for goes together.
    fn check(&self) -> Result<()> {
        for (given, option, modes) in [
            (!self.peer.is_empty(), "--peer", &[Mode::L2fwd, Mode::Txonly][..]),
            (self.size.is_some(), "--size", &[Mode::Txonly]),
            (!self.address.is_empty(), "--address", &[Mode::Icmpecho]),
        ] {
            if given && !modes.contains(&self.mode) {
                let modes: Vec<_> = modes.iter().map(|mode| mode.name()).collect();
                bail!(Usage(format!("{option} goes with --mode {}", modes.join(" and "))));
            }
        }
        if self.peer.len() > self.targets.len() {
            bail!(Usage(format!("{} peers are named for {} ports", self.peer.len(), self.targets.len())));
        }
        Ok(())
    }

    /// The port that sends what `from` receives.
    fn other<'a>(&self, from: &'a OpenPort, ports: &'a [OpenPort]) -> &'a OpenPort {
        match self.mode {
            // An answer goes to who asked.
            Mode::Icmpecho => from,
            _ => ports.get(from.number ^ 1).unwrap_or(from),
        }
    }

    /// What a lane does whose packets a queue of `to` sends.
    fn job(&self, queue: u16, to: &OpenPort) -> Result<Job> {
        let own = to.port.mac();
        let default = || Mac([2, 0, 0, 0, 0, to.number as u8]);
        let peer = self.peer.get(to.number).copied().unwrap_or_else(default);
        Ok(match self.mode {
            Mode::Io => Job::Pass,
            Mode::Macswap => Job::Swap,
            Mode::L2fwd => Job::Address(lane::addresses(peer, own)),
            Mode::Rxonly => Job::Read,
            Mode::Icmpecho => Job::Answer(Host { mac: own, addresses: self.address.clone() }),
            Mode::Txonly => {
                let size = self.size.unwrap_or(SIZE);
                let most = (u32::from(to.port.mtu()) + ETHERNET).min(to.pool.size().saturating_sub(HEADROOM.into()));
                if u32::from(size) > most {
                    let port = to.number;
                    bail!(Usage(format!(
                        "--size {size} is above what port {port} sends in one buffer, which is {most}"
                    )));
                }
                let packet = packet(own, peer, queue, size)?;
                let (cache, burst) = (to.pool.cache(lane::BATCH as u32), Burst::new(self.run.burst.into()));
                Job::Make(Maker { packet, headroom: HEADROOM, cache, burst })
            }
        })
    }
}

/// Bytes of an Ethernet header.
const ETHERNET: u32 = 14;
/// Bytes of a packet where nobody says: the smallest there is, checksum included, as testpmd has it.
const SIZE: u16 = 64;

/// A packet to send: between addresses that are set aside for measuring (RFC 2544, C.2.2), by the discard port, a flow for each queue.
fn packet(source: Mac, destination: Mac, queue: u16, size: u16) -> Result<Vec<u8>> {
    let builder = PacketBuilder::ethernet2(source.0, destination.0)
        .ipv4([198, 18, 0, 1], [198, 19, 0, 1], 64)
        .udp(1024u16.wrapping_add(queue), 9);
    let mut packet = Vec::new();
    let payload = vec![0; usize::from(size).saturating_sub(builder.size(0))];
    builder.write(&mut packet, &payload)?;
    Ok(packet)
}

/// Where all packets came from, and where they went.
fn account(ports: &[Port], lanes: &[Arc<Counts>]) -> Accounting {
    let ports = |each: fn(&Totals) -> u64| ports.iter().map(|port| each(&port.totals)).sum();
    let lanes = |each: fn(&Counts) -> u64| lanes.iter().map(|counts| each(counts)).sum();
    Accounting {
        received: ports(|port| port.rx_packets),
        made: lanes(|lane| lane.made.get()),
        duplicated: ports(|port| port.duplicated),
        sent: ports(|port| port.tx_packets),
        kept: lanes(|lane| lane.kept.get()),
        refused: ports(|port| port.tx_refused),
        left: lanes(|lane| lane.left.get()),
    }
}

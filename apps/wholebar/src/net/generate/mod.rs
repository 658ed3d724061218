//! `wholebar net gen`: sends packets at a rate, made or from a capture, and tells what became of them where it receives them, too.

mod lane;
mod report;

use super::around::{Around, AroundArgs};
use super::baseline::{self, BaselineArgs};
use super::capture::Capture;
use super::port::{self, OpenPort, PortArgs, Totals};
use super::report::{Ran, show};
use super::run::{self, Lane, RunArgs};
use super::sink::CACHE;
use super::sink::lane::{Expected, Receiver, Seen};
use super::sink::report::Received;
use crate::args::Usage;
use crate::host::Host;
use crate::output;
use crate::signal;
use anyhow::{Context, Result, bail};
use lane::{Made, Replay, Sender, Source, Timing};
use report::{Report, Sent};
use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use wholebar::Work;
use wholebar::measure::net::generator::Generator;
use wholebar::measure::net::mark::{self, Clock};
use wholebar::measure::net::rate::{Rate, RateLimiter};
use wholebar::measure::net::sizes::{FCS, FrameSizes, LEAST, Sizes};
use wholebar::measure::net::template::{Headers, Template};
use wholebar::net::{Mac, RxQueue};

/// Send packets at a rate: made, with numbers and times in them, or those of a capture
///
/// Packets are UDP over IPv4 or IPv6, of networks that are kept for benchmarks (198.18.0.0/15, 2001:2::/48), to port 9, discard; each flow has
/// a source address of its own. Each has its flow, a number in it, the time, and a payload that is known, so that `wholebar net sink`, or
/// --to, tells what became of it.
///
/// Sizes are those of frames as RFC 2544 and pktgen count them: with their check sequence of 4 bytes, which the device adds. A frame of 64
/// bytes, the smallest there is, is 60 bytes for a device, and in captures. Bits a second are those of a wire, where 20 bytes more go by
/// with each frame: 10Gbps are 14.88 million frames of 64 bytes.
///
/// With --to, the exit code is 1 where packets were lost or corrupt, unless --tolerate says that they may be.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar net gen sim:virtio-net,wire=pair:a --to sim:virtio-net,wire=pair:a --rate 1M --time 2
  wholebar net gen 0000:01:00.0 --dst-mac 52:54:00:12:34:56 --rate 1Gbps --size imix --flows 64
  wholebar net gen sim:virtio-net,wire=tap:t0 --replay mixed.pcapng --speed original --loops 3
  wholebar net gen 0000:01:00.0 --to 0000:02:00.0 --faults drop=0.01,duplicate=0.001,seed=7 --tolerate --time 10
  wholebar net gen 0000:01:00.0 --to 0000:02:00.0 --rate max --size 64 --queues 2 --cores 0-2 --time 10 --json
  wholebar net gen 0000:01:00.0 --to 0000:02:00.0 --rate max --time 10 --baseline kernel:eth1 --baseline kernel:eth2")]
pub struct Args {
    /// The port that sends
    target: String,
    /// A port that receives what is sent
    #[arg(long, value_name = "TARGET")]
    to: Option<String>,
    /// Packets a second (1000, 1.5M, 10Mpps), bits a second (1Gbps), or max: as fast as the device takes them [default: 100k]
    #[arg(long)]
    rate: Option<Rate>,
    /// Bytes of frames: one size, a range (64-1518) of which they are by chance, or imix (64, 594 and 1518 as 7:4:1) [default: 64, or the
    /// least that headers allow]
    #[arg(long, value_name = "BYTES", conflicts_with = "replay")]
    size: Option<Sizes>,
    /// Flows, which take turns
    #[arg(long, value_name = "N", default_value = "1", conflicts_with = "replay", value_parser = clap::value_parser!(u32).range(1..=65536))]
    flows: u32,
    /// The version of IP
    #[arg(long, value_name = "4|6", default_value = "4", conflicts_with = "replay", value_parser = clap::value_parser!(u8).range(4..=6))]
    ip: u8,
    /// Tag packets with this VLAN
    #[arg(long, value_name = "ID", conflicts_with = "replay", value_parser = clap::value_parser!(u16).range(0..=4094))]
    vlan: Option<u16>,
    /// Whom packets are for [default: the port of --to]
    #[arg(long, value_name = "MAC", conflicts_with = "replay", value_parser = Mac::from_str)]
    dst_mac: Option<Mac>,
    /// What flows' addresses and ports, and sizes by chance, begin with
    #[arg(long, value_name = "N", default_value = "1")]
    seed: u64,
    /// End after so many packets
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Send the packets of a capture (pcap or pcapng, gzip or not), as they are and in their order; - is standard input
    #[arg(long, value_name = "FILE")]
    replay: Option<String>,
    /// With --replay, instead of --rate: as fast as they were captured (original), so many times as fast (2x), or max [default: original]
    #[arg(long, value_name = "SPEED", conflicts_with = "rate")]
    speed: Option<Speed>,
    /// With --replay: how often; 0 for until the time is over [default: 1]
    #[arg(long, value_name = "N")]
    loops: Option<u64>,
    /// With --to: end with exit code 0 although packets were lost or corrupt
    #[arg(long, requires = "to")]
    tolerate: bool,
    /// Write JSON at the end; lines for people go to standard error
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    baseline: BaselineArgs,
    #[command(flatten)]
    pub(super) around: AroundArgs,
    #[command(flatten)]
    ports: PortArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// How fast a capture is sent.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Speed {
    Max,
    /// So many times as fast as it was.
    Times(f64),
}

impl FromStr for Speed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let times = match text {
            "max" => return Ok(Self::Max),
            "original" => Some(1.0),
            text => text.strip_suffix('x').and_then(|times| times.parse().ok()),
        };
        let times = times.filter(|times| (1e-6..=1e6).contains(times));
        times
            .map(Self::Times)
            .ok_or_else(|| format!("{text:?} is no speed: write original, max, or a factor like 2x or 0.5x"))
    }
}

/// What is sent, as it was asked for.
enum What {
    Flows(Sizes),
    Replay(Arc<Capture>),
}

pub fn run(args: Args) -> Result<()> {
    let what = args.what()?;
    let targets: Vec<_> = std::iter::once(args.target.clone()).chain(args.to.clone()).collect();
    let interrupted = signal::interrupted()?;
    if !args.baseline.baseline.is_empty() {
        let Args { baseline, run, json, .. } = &args;
        return baseline::compare(&targets, baseline, run, args.asked(&what), *json, &interrupted, |targets, time| {
            let (report, _) = args.once(&what, targets, &run.quiet_for(time), &interrupted, |_| Ok(()))?;
            report.failure_of_round(args.tolerate).map_or(Ok(report.figures()), |failure| bail!(failure))
        });
    }
    let (report, around) = args.once(&what, &targets, &args.run, &interrupted, show(args.json))?;
    if args.json {
        output::print_json(&report)?;
    } else {
        output::print(report.text())?;
    }
    around?;
    report.failure(args.tolerate).map_or(Ok(()), |failure| bail!(failure))
}

/// Where packets were lost on the way from one port to another.
fn causes(from: Totals, to: Totals) -> BTreeMap<String, u64> {
    let sending = from.drops.into_iter().filter(|(cause, _)| !cause.starts_with("rx_"));
    sending.chain(to.drops.into_iter().filter(|(cause, _)| cause.starts_with("rx_"))).collect()
}

/// What one of a port's counters has come to.
fn statistic(port: &OpenPort, name: &str) -> u64 {
    port.statistics().iter().filter(|statistic| statistic.name == name).map(|statistic| statistic.value).sum()
}

impl Args {
    /// Opens ports, and sends by the first of them, for as long as `run` says. What is told apart is whether the capture could be written.
    fn once(
        &self,
        what: &What,
        targets: &[String],
        run_args: &RunArgs,
        interrupted: &AtomicBool,
        show: impl Fn(&str) -> Result<()>,
    ) -> Result<(Report, Result<()>)> {
        let host = Host::now();
        port::check_targets(targets)?;
        let cores = run_args.cores(usize::from(self.ports.queues) + usize::from(self.to.is_some()))?;
        let ports = port::open(targets, &self.ports, run_args.idle, &cores)?;
        self.check_lengths(what, &ports)?;
        let (counter, run) = (quanta::Clock::new(), fastrand::u8(..));
        let made: Vec<_> = (0..self.ports.queues).map(|_| Arc::new(Made::default())).collect();
        let seen = Arc::new(Seen::default());
        let mut around = self.around.begin(&ports)?;
        let mut lanes = self.senders(what, &ports, &mut around, &made, &counter, run)?;
        if let Some(to) = ports.get(1) {
            let rx = (0..self.ports.queues).map(|queue| around.rx(to, queue)).collect::<Result<_>>()?;
            let expected = match what {
                What::Replay(capture) => Expected::Replay(capture.clone()),
                What::Flows(_) => Expected::Marks(Some(run)),
            };
            let (cache, burst) = (to.pool.cache(CACHE), usize::from(run_args.burst));
            let receiver = Receiver::new(rx, cache, burst, expected, Clock::new(&counter), seen.clone());
            let (ours, theirs) = (ports[0].teller(), to.teller());
            let lost = move || causes(ours(), theirs()).values().sum();
            let senders = made.clone();
            let sent = move || {
                let settled = senders.iter().all(|made| made.is_settled());
                settled.then(|| senders.iter().map(|made| made.packets.get()).sum())
            };
            lanes.push(Either::Receive(Box::new(receiver.after(sent, lost))));
        }
        let lanes = run::deal(&cores, lanes);

        port::wait_for_links(&ports, interrupted);
        show(&ports.iter().map(|port| port.line() + "\n").collect::<String>())?;
        // Who named no time would wait for a stuck port for ever.
        let over = |stuck| (stuck && run_args.time.is_none()) || made.iter().all(|made| made.is_done());
        let outcome = run::run(&ports, lanes, run_args, interrupted, over, show)?;

        let around = around.finish();
        let sent = Sent::new(&made, outcome.time);
        let received = match ports.get(1) {
            None => None,
            Some(to) => {
                let found = seen.take().context("the receiving thread left nothing")?;
                let received = Received::new(&found, Some(sent.packets), Some(causes(ports[0].totals(), to.totals())));
                Some(Received { wire_reordered: statistic(&ports[0], "wire_reordered"), ..received })
            }
        };
        let ran = Ran::new(host, run_args.burst, cores, ports, outcome);
        let report = Report::new(self.asked(what), sent, received, ran);
        Ok((report, around))
    }

    /// What is to be sent, as far as that can be known before a port is opened.
    fn what(&self) -> Result<What> {
        if let Some(file) = &self.replay {
            if self.ports.queues > 1 {
                bail!(Usage("--replay keeps packets in their order: it takes one queue".to_owned()));
            }
            return Ok(What::Replay(Arc::new(Capture::read(file)?)));
        }
        if self.speed.is_some() || self.loops.is_some() {
            bail!(Usage("--speed and --loops go with --replay".to_owned()));
        }
        if self.ip == 5 {
            bail!(Usage("--ip is 4 or 6".to_owned()));
        }
        if self.to.is_none() && self.dst_mac.is_none() {
            bail!(Usage("whom are packets for? Say --dst-mac, or --to for a port that receives them".to_owned()));
        }
        if self.flows < self.ports.queues.into() {
            let (flows, queues) = (self.flows, self.ports.queues);
            bail!(Usage(format!(
                "{queues} queues need as many --flows at least, for each has flows of its own: {flows} are asked for"
            )));
        }
        let least = (self.headers(Mac::default(), Mac::default()).len() + mark::LEN + FCS).max(LEAST);
        let sizes = self.size.unwrap_or(Sizes::One(least as u16));
        if sizes.ends().0 < least {
            let tag = if self.vlan.is_some() { " with a VLAN tag" } else { "" };
            bail!(Usage(format!(
                "--size {sizes} is below {least} bytes, the least for UDP over IPv{}{tag} with what gen puts into it",
                self.ip
            )));
        }
        Ok(What::Flows(sizes))
    }

    fn headers(&self, from: Mac, to: Mac) -> Headers {
        Headers { from, to, vlan: self.vlan, v6: self.ip == 6 }
    }

    /// Whether the ports' MTUs allow what is to be sent.
    fn check_lengths(&self, what: &What, ports: &[OpenPort]) -> Result<()> {
        let mtu = ports.iter().map(|port| port.port.mtu()).min().unwrap_or(0);
        match what {
            // A tag has room beside the MTU.
            What::Replay(capture) => capture.check_lengths(usize::from(mtu) + 18, mtu),
            What::Flows(sizes) => {
                let most = usize::from(mtu) + 14 + if self.vlan.is_some() { 4 } else { 0 } + FCS;
                if sizes.ends().1 > most {
                    bail!("--size {sizes} is above {most} bytes, the most that an MTU of {mtu} allows: see --mtu");
                }
                Ok(())
            }
        }
    }

    /// The lanes that send, one a queue.
    fn senders(
        &self,
        what: &What,
        ports: &[OpenPort],
        around: &mut Around,
        made: &[Arc<Made>],
        counter: &quanta::Clock,
        run: u8,
    ) -> Result<Vec<Either>> {
        let from = &ports[0];
        let rate = self.rate.unwrap_or(Rate::Packets(DEFAULT_RATE));
        let share = made.len();
        let template = match what {
            What::Replay(_) => None,
            What::Flows(_) => {
                let to = self.dst_mac.or(ports.get(1).map(|to| to.port.mac())).unwrap_or_default();
                let granted = from.port.granted();
                let headers = self.headers(from.port.mac(), to);
                let template = Template::new(&headers, self.flows, self.seed)?;
                Some(Arc::new(template.offloaded(granted.tx_l3_checksum, granted.tx_l4_checksum)))
            }
        };
        let sender = |(lane, made): (usize, &Arc<Made>)| {
            let source = match (what, &template) {
                (What::Flows(sizes), Some(template)) => {
                    let sizes = FrameSizes::new(*sizes, self.seed.wrapping_add(lane as u64));
                    let limiter = RateLimiter::new(rate, share);
                    let flows = (0..self.flows).skip(lane).step_by(share).map(|flow| flow as u16);
                    Source::Flows(Box::new(Generator::new(template.clone(), sizes, limiter, run, flows)?))
                }
                (What::Replay(capture), _) => {
                    let timing = match (self.speed, self.rate) {
                        (None, Some(rate)) => Timing::Rate(RateLimiter::new(rate, 1)),
                        (Some(Speed::Max), _) => Timing::Rate(RateLimiter::new(Rate::Max, 1)),
                        (Some(Speed::Times(speed)), _) => Timing::Original { speed, began: 0 },
                        (None, None) => Timing::Original { speed: 1.0, began: 0 },
                    };
                    Source::Replay(Replay { capture: capture.clone(), timing, next: 0, lap: 0 })
                }
                (What::Flows(_), None) => bail!("packets have no headers"),
            };
            let cache = from.pool.cache(CACHE);
            let tx = around.tx(from, lane as u16)?;
            let (burst, clock) = (usize::from(self.run.burst), Clock::new(counter));
            let sender = Sender::new(tx, cache, burst, source, self.quota(what, lane, share), clock, made.clone());
            Ok(Either::Send(Box::new(sender)))
        };
        made.iter().enumerate().map(sender).collect()
    }

    /// How many packets a lane sends.
    fn quota(&self, what: &What, lane: usize, lanes: usize) -> u64 {
        let share = |count: u64| count / lanes as u64 + u64::from((lane as u64) < count % lanes as u64);
        let count = self.count.map_or(u64::MAX, share);
        match what {
            What::Flows(_) => count,
            What::Replay(capture) => match self.loops.unwrap_or(1) {
                0 => count,
                loops => count.min(loops.saturating_mul(capture.count() as u64)),
            },
        }
    }

    /// What was asked for, in words.
    fn asked(&self, what: &What) -> String {
        match what {
            What::Replay(capture) => {
                let how = match (self.speed, self.rate) {
                    (None, Some(rate)) => format!("at {rate}"),
                    (Some(Speed::Max), _) => "at max".to_owned(),
                    (Some(Speed::Times(1.0)) | None, _) => "as fast as it was".to_owned(),
                    (Some(Speed::Times(times)), _) => format!("{times} times as fast as it was"),
                };
                format!(
                    "{} packets of {}, {how}",
                    output::count(capture.count() as u64),
                    self.replay.as_deref().unwrap_or("-")
                )
            }
            What::Flows(sizes) => {
                let rate = self.rate.unwrap_or(Rate::Packets(DEFAULT_RATE));
                let flows = if self.flows == 1 {
                    "1 flow".to_owned()
                } else {
                    format!("{} flows", output::count(self.flows.into()))
                };
                let tag = self.vlan.map_or(String::new(), |vlan| format!(" in VLAN {vlan}"));
                format!("frames of {sizes} bytes, {flows} of UDP over IPv{}{tag}, at {rate}", self.ip)
            }
        }
    }
}

/// Packets a second where nobody says: nothing breaks.
const DEFAULT_RATE: f64 = 1e5;

/// A lane that sends, or one that receives.
enum Either {
    Send(Box<Sender>),
    Receive(Box<Receiver>),
}

impl Lane for Either {
    fn poll(&mut self) -> Work {
        match self {
            Self::Send(lane) => lane.poll(),
            Self::Receive(lane) => lane.poll(),
        }
    }

    fn settle(&mut self) -> bool {
        match self {
            Self::Send(lane) => lane.settle(),
            Self::Receive(lane) => lane.settle(),
        }
    }

    fn unconfirmed(&self) -> Option<(usize, usize)> {
        match self {
            Self::Send(lane) => lane.unconfirmed(),
            Self::Receive(lane) => lane.unconfirmed(),
        }
    }

    fn receivers(&mut self) -> &mut [Box<dyn RxQueue>] {
        match self {
            Self::Send(lane) => lane.receivers(),
            Self::Receive(lane) => lane.receivers(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Speed;

    #[test]
    fn speeds_are_understood() {
        for (text, speed) in [
            ("max", Some(Speed::Max)),
            ("original", Some(Speed::Times(1.0))),
            ("2x", Some(Speed::Times(2.0))),
            ("0.5x", Some(Speed::Times(0.5))),
            ("0x", None),
            ("2", None),
            ("-1x", None),
            ("nanx", None),
            ("", None),
        ] {
            assert_eq!(text.parse().ok(), speed, "{text}");
        }
    }
}

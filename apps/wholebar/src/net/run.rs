//! Pinned threads that move packets until a time is over, somebody interrupts, a port ends, or the work is done; and what is shown
//! meanwhile: what happens to ports as it happens, and a line a port every second.
//!
//! A lane is one thread's work on one queue, or two. Lanes are dealt to cores; each core has a reactor that polls its lanes. When it is over,
//! lanes are settled, so that no packet is lost between a queue that received it and one that was to send it.

use super::idle::Idle;
use super::port::{OpenPort, Totals};
use crate::args::{self, Cores, Usage};
use crate::output;
use anyhow::{Result, bail};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use wholebar::control_plane;
use wholebar::irq::EventFd;
use wholebar::net::{Event, Link, RxQueue};
use wholebar::reactor::{Armed, Poller, Reactor};
use wholebar::{Work, cores};

/// Where, how long, and how many packets at once: arguments that commands which move packets have.
#[derive(clap::Args, Debug, Clone)]
#[command(next_help_heading = "Running")]
pub struct RunArgs {
    /// Cores to run on, like 0,1 or 0-3: one thread each [default: the first one]
    #[arg(long)]
    pub cores: Option<Cores>,
    /// End after so long [default: at Ctrl-C]
    #[arg(long, value_name = "SECONDS", value_parser = args::seconds)]
    pub time: Option<Duration>,
    /// Show a line for each port every so often; 0 for none
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = args::seconds)]
    pub stats: Duration,
    /// What a core does that finds nothing to do; alone, --idle is --idle=sleep
    #[arg(long, value_enum, value_name = "POLICY", num_args = 0..=1, require_equals = true, default_value = "hybrid", default_missing_value = "sleep")]
    pub idle: Idle,
    /// Packets that are moved at once, at most
    #[arg(long, value_name = "N", default_value = "32", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub burst: u16,
}

impl RunArgs {
    /// The same for so long, and nothing shown meanwhile.
    pub fn quiet_for(&self, time: Duration) -> Self {
        Self { time: Some(time), stats: Duration::ZERO, ..self.clone() }
    }

    /// The cores, all of which this process may use, for so many lanes.
    ///
    /// # Errors
    /// A core that it may not; [`Usage`] where there are fewer lanes than cores.
    pub fn cores(&self, lanes: usize) -> Result<Vec<usize>> {
        let cores = match &self.cores {
            Some(Cores(cores)) => cores.clone(),
            None => cores::allowed().iter().copied().take(1).collect(),
        };
        if lanes < cores.len() {
            bail!(Usage(format!(
                "{} cores are more than the {lanes} that there is work for: name fewer --cores, or ask for more --queues",
                cores.len(),
            )));
        }
        cores.iter().try_for_each(|core| cores::check(*core))?;
        Ok(cores)
    }
}

/// A thread's work on a queue, or on some.
pub trait Lane: Send {
    /// One poll: a burst.
    fn poll(&mut self) -> Work;

    /// A poll once it is over: no new packets, but those in hand are sent and those under way waited for. Says whether there are none.
    fn settle(&mut self) -> bool;

    /// The port that it sends by, and how many packets that was given which are not known to be sent.
    fn unconfirmed(&self) -> Option<(usize, usize)> {
        None
    }

    /// Queues that wake it; none where it always has something to do.
    fn receivers(&mut self) -> &mut [Box<dyn RxQueue>];

    /// It has packets in hand, so that its core does not sleep: no interrupt comes when there is room for them.
    fn holds(&self) -> bool {
        false
    }
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// How long packets were moved.
    pub time: Duration,
    /// What happened to ports, in order.
    pub events: Vec<DeviceEvent>,
    /// The port that ended, and why.
    pub ended: Option<String>,
    /// All that was in hand was sent, and nothing is under way.
    pub settled: bool,
    /// Packets of each port that were not known to be sent in the end.
    pub unconfirmed: Vec<usize>,
    /// How often cores slept.
    pub slept: u64,
}

/// Something that happened to a port.
#[derive(Debug, Clone, Serialize)]
pub struct DeviceEvent {
    /// Since the beginning.
    seconds: f64,
    port: usize,
    event: String,
}

/// Deals lanes to cores, in turn.
pub fn deal<L>(cores: &[usize], lanes: Vec<L>) -> Vec<(usize, Vec<L>)> {
    let mut dealt: Vec<_> = cores.iter().map(|core| (*core, Vec::new())).collect();
    for (i, lane) in lanes.into_iter().enumerate() {
        dealt[i % cores.len()].1.push(lane);
    }
    dealt
}

/// How often the ports' events and the time are looked at, at most.
pub const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// For how long, in the end, packets that were taken are waited for while none of them is known to be sent; and the same where a port has ended: what it has
/// of them comes back no more.
const SETTLING: Duration = Duration::from_secs(10);
const ENDED: Duration = Duration::from_secs(2);
/// What counts of the time from one look to the next: a machine that stood still gave devices no time either.
const LULL: Duration = Duration::from_millis(100);
/// After how long it is told what is waited for.
const QUIET: Duration = Duration::from_secs(1);

/// Runs lanes on their cores until `args` say, somebody interrupts, `over` says so, or a port ends. `over` gets whether a port is stuck. `show` gets what is
/// to be seen, in lines.
///
/// # Errors
/// Where threads cannot be had, or pinned; what `show` says.
pub fn run<L: Lane + 'static>(
    ports: &[OpenPort],
    lanes: Vec<(usize, Vec<L>)>,
    args: &RunArgs,
    interrupted: &AtomicBool,
    mut over: impl FnMut(bool) -> bool,
    mut show: impl FnMut(&str) -> Result<()>,
) -> Result<Outcome> {
    let ending = Arc::new(Ending::new(ports.len()));
    let polite = ports.iter().any(OpenPort::shares_cores);
    let stations = lanes.len();
    let reactors = lanes.into_iter().map(|(core, lanes)| {
        let station = Station::new(lanes, ending.clone(), polite);
        Ok(Reactor::on_core(core)?.policy(args.idle.into()).with(station).spawn()?)
    });
    // Before the first of them moves a packet.
    let began = Instant::now();
    let reactors = reactors.collect::<Result<Vec<_>>>()?;

    let mut events = Events::new(began, ports);
    let mut meter = Meter::new(ports);
    let mut next = began + args.stats;
    let ended = loop {
        let ended = events.tell(ports);
        let running = reactors.iter().all(|reactor| reactor.is_running());
        let left = args.time.map_or(POLL_INTERVAL, |time| time.saturating_sub(began.elapsed()));
        if ended.is_some()
            || !running
            || left.is_zero()
            || interrupted.load(Ordering::Relaxed)
            || over(!events.stuck.is_empty())
        {
            break ended;
        }
        if !args.stats.is_zero() && Instant::now() >= next {
            show(&meter.lines(ports, began.elapsed()))?;
            next += args.stats;
        }
        std::thread::sleep(left.min(POLL_INTERVAL));
    };
    let time = began.elapsed();

    // Relaxed: it orders nothing, and is seen within a poll.
    ending.asked.store(true, Ordering::Relaxed);
    let settled = || ending.settled.load(Ordering::Relaxed) == stations;
    let patience = if ended.is_some() { ENDED } else { SETTLING };
    let (again, mut told) = (!interrupted.load(Ordering::Relaxed), false);
    let (mut waited, mut last, mut left) = (Duration::ZERO, Instant::now(), usize::MAX);
    while !settled() && waited < patience && reactors.iter().all(|reactor| reactor.is_running()) {
        std::thread::sleep(Duration::from_millis(1));
        if again && interrupted.load(Ordering::Relaxed) {
            break;
        }
        waited += last.elapsed().min(LULL);
        last = Instant::now();
        if std::mem::replace(&mut left, ending.left.load(Ordering::Relaxed)) != left {
            waited = Duration::ZERO;
        }
        if waited >= QUIET && left > 0 && !std::mem::replace(&mut told, true) {
            output::note(format!("waiting for {left} packets that devices have not given back yet"));
        }
    }
    let settled = settled();
    // What was sent last comes to who reads to the end.
    std::thread::sleep(POLL_INTERVAL);
    let mut slept = 0;
    for reactor in reactors {
        slept += reactor.join()?.slept;
    }
    let ended = ended.or(events.tell(ports));
    let unconfirmed = ending.unconfirmed.iter().map(|count| count.load(Ordering::Relaxed)).collect();
    Ok(Outcome { time, events: events.all, ended, settled, unconfirmed, slept })
}

/// What has happened to ports so far.
struct Events {
    began: Instant,
    all: Vec<DeviceEvent>,
    /// What was told last of each port's link: that it came up before packets were moved is no news.
    links: Vec<Link>,
    /// Ports that have sent nothing since they were told to be stuck, and how many packets they had sent by then.
    stuck: BTreeMap<usize, u64>,
}

impl Events {
    fn new(began: Instant, ports: &[OpenPort]) -> Self {
        let links = ports.iter().map(|port| port.port.link()).collect();
        Self { began, all: Vec::new(), links, stuck: BTreeMap::new() }
    }

    /// Takes what happened to ports and tells it; returns which ended, where one did.
    fn tell(&mut self, ports: &[OpenPort]) -> Option<String> {
        let mut ended = None;
        for (port, told) in ports.iter().zip(&mut self.links) {
            for event in port.port.events().try_iter() {
                if let Event::Link(link) = &event
                    && std::mem::replace(told, *link) == *link
                {
                    continue;
                }
                let end = matches!(
                    event,
                    Event::Device(control_plane::DeviceEvent::Ended { .. } | control_plane::DeviceEvent::UnbindRequest)
                );
                let stalled = matches!(event, Event::Stalled { .. });
                let what = in_words(event);
                output::note(format!("port {}: {what}", port.number));
                if end {
                    ended.get_or_insert_with(|| format!("port {} ({}): {what}", port.number, port.target));
                }
                if stalled {
                    self.stuck.insert(port.number, port.totals().tx_packets);
                }
                let seconds = self.began.elapsed().as_secs_f64();
                self.all.push(DeviceEvent { seconds, port: port.number, event: what });
            }
            if self.stuck.get(&port.number).is_some_and(|sent| *sent != port.totals().tx_packets) {
                self.stuck.remove(&port.number);
            }
        }
        ended
    }
}

fn in_words(event: Event) -> String {
    match event {
        Event::Link(link) => format!("the link is {link}"),
        Event::Announce => "the device asks that its address be announced".to_owned(),
        Event::Stalled { queue, waited } => {
            format!(
                "sending queue {queue} is stuck: the device has given nothing back for {} s, and the link is up",
                waited.as_secs()
            )
        }
        Event::Device(event) => event.to_string(),
        other => format!("{other:?}"),
    }
}

/// How the threads are told that it is over, and how far they are. Relaxed everywhere: counts, by which nothing else is read before threads are joined.
struct Ending {
    asked: AtomicBool,
    /// How many have settled.
    settled: AtomicUsize,
    /// Packets that are not known to be sent, as they say while they settle.
    left: AtomicUsize,
    /// The same of each port, when they end.
    unconfirmed: Box<[AtomicUsize]>,
}

impl Ending {
    fn new(ports: usize) -> Self {
        let unconfirmed = (0..ports).map(|_| AtomicUsize::new(0)).collect();
        Self { asked: AtomicBool::new(false), settled: AtomicUsize::new(0), left: AtomicUsize::new(0), unconfirmed }
    }
}

/// The lanes of one core.
struct Station<L: Lane> {
    lanes: Vec<L>,
    wakeups: Vec<Arc<EventFd>>,
    /// Each lane can be woken.
    sleeps: bool,
    /// Others need this core too: idle polls let them have it.
    polite: bool,
    idle: u32,
    ending: Arc<Ending>,
    settled: bool,
    /// Its share of what is not known to be sent.
    left: usize,
}

/// A sleeping core looks after its queues as often: resets wait for that, and so do buffers that were sent.
const NAP: Duration = Duration::from_millis(100);
/// Idle polls before others get the core.
const PATIENCE: u32 = 64;

impl<L: Lane> Station<L> {
    fn new(mut lanes: Vec<L>, ending: Arc<Ending>, polite: bool) -> Self {
        let (mut wakeups, mut sleeps) = (Vec::new(), true);
        for lane in &mut lanes {
            let fds: Vec<_> = lane.receivers().iter().map(|queue| queue.wakeup()).collect();
            sleeps &= !fds.is_empty() && fds.iter().all(Option::is_some);
            wakeups.extend(fds.into_iter().flatten());
        }
        Self { lanes, wakeups, sleeps, polite, idle: 0, ending, settled: false, left: 0 }
    }

    /// Polls of a run that is over.
    #[cold]
    fn settle(&mut self) -> Work {
        let mut quiet = true;
        for lane in &mut self.lanes {
            quiet &= lane.settle();
        }
        let left: usize = self.lanes.iter().filter_map(Lane::unconfirmed).map(|(_, count)| count).sum();
        let change = left.wrapping_sub(std::mem::replace(&mut self.left, left));
        self.ending.left.fetch_add(change, Ordering::Relaxed);
        if quiet && !std::mem::replace(&mut self.settled, true) {
            self.ending.settled.fetch_add(1, Ordering::Relaxed);
        }
        // Others may need the core to get there.
        std::thread::yield_now();
        Work::Busy
    }
}

impl<L: Lane> Poller for Station<L> {
    fn poll(&mut self) -> Work {
        if self.ending.asked.load(Ordering::Relaxed) {
            return self.settle();
        }
        let work = self.lanes.iter_mut().fold(Work::Idle, |all, lane| match lane.poll() {
            Work::Busy => Work::Busy,
            Work::Idle => all,
        });
        if work == Work::Idle && self.polite {
            self.idle += 1;
            if self.idle >= PATIENCE {
                self.idle = 0;
                std::thread::yield_now();
            }
        }
        work
    }

    fn wakeups(&self) -> Vec<Arc<EventFd>> {
        self.wakeups.clone()
    }

    fn arm(&mut self) -> Armed {
        let can = self.sleeps && !self.lanes.iter().any(Lane::holds);
        let mut queues = self.lanes.iter_mut().flat_map(Lane::receivers);
        if can && queues.all(|queue| queue.arm() != Armed::No) { Armed::Until(Instant::now() + NAP) } else { Armed::No }
    }

    fn disarm(&mut self) {
        self.lanes.iter_mut().flat_map(Lane::receivers).for_each(|queue| queue.disarm());
    }
}

impl<L: Lane> Drop for Station<L> {
    fn drop(&mut self) {
        for (port, count) in self.lanes.iter().filter_map(Lane::unconfirmed) {
            if let Some(all) = self.ending.unconfirmed.get(port) {
                all.fetch_add(count, Ordering::Relaxed);
            }
        }
    }
}

/// Rates, from one look to the next.
struct Meter {
    last: Vec<Totals>,
    at: Duration,
    headed: bool,
}

impl Meter {
    fn new(ports: &[OpenPort]) -> Self {
        Self { last: ports.iter().map(OpenPort::totals).collect(), at: Duration::ZERO, headed: false }
    }

    /// A line for each port, since the last time; the first time, with what the columns are.
    fn lines(&mut self, ports: &[OpenPort], now: Duration) -> String {
        let seconds = now.saturating_sub(std::mem::replace(&mut self.at, now)).as_secs_f64().max(1e-9);
        let mut text = String::new();
        if !std::mem::replace(&mut self.headed, true) {
            text += &line(
                ["time", "port", "rx pps", "rx Gb/s", "tx pps", "tx Gb/s", "drops/s"].map(str::to_owned),
                "drops so far",
            );
        }
        for (port, last) in ports.iter().zip(&mut self.last) {
            let totals = port.totals();
            let since = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
            let rate = |now, before| output::rate(since(now, before));
            let gigabits = |now, before| format!("{:.3}", since(now, before) * 8e-9);
            let columns = [
                format!("{:.1} s", now.as_secs_f64()),
                port.number.to_string(),
                rate(totals.rx_packets, last.rx_packets),
                gigabits(totals.rx_bytes, last.rx_bytes),
                rate(totals.tx_packets, last.tx_packets),
                gigabits(totals.tx_bytes, last.tx_bytes),
                rate(totals.dropped(), last.dropped()),
            ];
            text += &line(columns, &totals.causes());
            *last = totals;
        }
        text
    }
}

/// Columns that stay where they are from one look to the next.
fn line([time, port, columns @ ..]: [String; 7], rest: &str) -> String {
    let columns: String = columns.iter().map(|column| format!("{column:>9}")).collect();
    format!("{time:>8}{port:>6}{columns}  {rest}").trim_end().to_owned() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_dealt_in_turn() {
        assert_eq!(deal(&[3, 5], vec!['a', 'b', 'c']), [(3, vec!['a', 'c']), (5, vec!['b'])]);
    }

    #[test]
    fn cores_have_work_and_are_there() {
        let args = |cores| RunArgs {
            cores: Some(Cores(cores)),
            time: None,
            stats: Duration::ZERO,
            idle: Idle::Poll,
            burst: 1,
        };
        // Wrong usage, whatever cores there are.
        assert!(args(vec![0, 4000]).cores(1).unwrap_err().is::<Usage>());
        assert!(!args(vec![4000]).cores(1).unwrap_err().is::<Usage>());
        let first = cores::allowed()[0];
        assert_eq!(args(vec![first]).cores(1).unwrap(), [first]);
    }

    /// A lane that works for so many polls, and needs some more to settle.
    struct Counts {
        polls: u32,
        settles: u32,
    }

    impl Lane for Counts {
        fn poll(&mut self) -> Work {
            self.polls += 1;
            if self.polls.is_multiple_of(2) { Work::Idle } else { Work::Busy }
        }

        fn settle(&mut self) -> bool {
            self.settles = self.settles.saturating_sub(1);
            self.settles == 0
        }

        fn receivers(&mut self) -> &mut [Box<dyn RxQueue>] {
            &mut []
        }
    }

    #[test]
    fn a_run_is_over_once_it_is_settled() {
        let args = RunArgs {
            cores: None,
            time: Some(Duration::from_secs(600)),
            stats: Duration::ZERO,
            idle: Idle::Sleep,
            burst: 1,
        };
        let lanes =
            deal(&cores::allowed()[..1], vec![Counts { polls: 0, settles: 3 }, Counts { polls: 0, settles: 1 }]);
        let mut polls = 0;
        let over = |_| {
            polls += 1;
            polls == 3
        };
        let outcome = run(&[], lanes, &args, &AtomicBool::new(false), over, |_| Ok(())).unwrap();
        assert!(outcome.settled && outcome.ended.is_none() && outcome.events.is_empty(), "{outcome:?}");
        assert_eq!(outcome.slept, 0, "nothing could wake it");
        assert!(outcome.time < Duration::from_secs(60));
    }
}

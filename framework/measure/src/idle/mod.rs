//! What polling costs, and what sleeping costs: the CPU share of a reactor, and how long its program waits for what a device has done, at an offered load and
//! under a policy.
//!
//! What is measured is a [`Trip`]: something that is given to a device and comes back, a read of a disk or a packet that returns. Its **latency** is
//! the time from just before the device is told of it to the program's first instruction that has it. The device's own time is in it, and is the same under
//! every policy: what a wake-up adds is the difference to the row that polls. No device tells when it was done, so nothing more is known of it. The
//! load is open: a trip begins when it is due, whether or not others are back, up to a limit. A reactor that sleeps is woken for that by a timer, whose delay is in
//! no latency.

mod packets;
mod reads;

pub use packets::Packets;
pub use reads::Reads;

use crate::Result;
use crate::cpu::Thread;
use crate::latency::{Percentiles, histogram};
use crate::net::rate::{Rate, RateLimiter};
use hdrhistogram::Histogram;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};
use wholebar_core::Work;
use wholebar_core::irq::EventFd;
use wholebar_core::reactor::{Armed, Policy, Poller, Reactor, Stop};

/// Something that is given to a device and comes back.
pub trait Trip: Send {
    /// Gives one to the device, which carries `stamp`; returns whether there was room. The device is told by [`ring`](Self::ring).
    fn send(&mut self, stamp: u64) -> bool;

    /// Tells the device of all that were given to it.
    fn ring(&mut self);

    /// Takes what came back: `back` gets the stamp of each, or `None` of one that failed.
    fn poll(&mut self, back: &mut dyn FnMut(Option<u64>));

    /// The eventfd that is signalled while it is armed; `None` where it can only be polled.
    fn wakeup(&self) -> Option<Arc<EventFd>>;

    /// Requests that signal.
    fn arm(&mut self) -> Armed;

    /// Withdraws the request.
    fn disarm(&mut self);
}

/// How many trips are begun.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Load {
    /// None at all.
    Nothing,
    /// So many a second.
    PerSecond(f64),
    /// As many as the device takes: as soon as one is back, the next one begins.
    Saturation,
}

/// What came of a run.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    /// How long it took.
    pub time: Duration,
    /// Trips that were begun, came back, failed, and did not come back within 100 ms of the last that did.
    pub begun: u64,
    /// Trips that came back.
    pub back: u64,
    /// Trips that failed.
    pub failed: u64,
    /// Trips that were given up.
    pub lost: u64,
    /// The reactor's share of a core; `None` where the kernel does not tell.
    pub cpu: Option<f64>,
    /// How often it slept.
    pub slept: u64,
    /// In nanoseconds.
    pub latency: Percentiles,
}

/// After how long without any coming back, trips are lost.
const LOST: Duration = Duration::from_millis(100);

/// Runs a load on a core for a time, with at most `depth` trips under way, and returns `trip` for the next run. Waits at the end until all are back, or lost.
///
/// # Errors
/// [`Error::Core`](crate::Error::Core) where the core cannot be had, the system cannot wait, or `trip` panicked.
pub fn run<T: Trip + 'static>(
    trip: T,
    core: usize,
    policy: Policy,
    load: Load,
    depth: usize,
    time: Duration,
) -> Result<(T, Outcome)> {
    let (home, came) = channel();
    let thread = Arc::new(OnceLock::new());
    let limiter = match load {
        Load::PerSecond(rate) => Some(RateLimiter::new(Rate::Packets(rate), 1)),
        Load::Nothing | Load::Saturation => None,
    };
    let stop = Stop::new()?;
    let paced = Paced {
        trip: Some(trip),
        home,
        load,
        limiter,
        depth,
        began: Instant::now(),
        end: time,
        stop: stop.clone(),
        thread: thread.clone(),
        under_way: 0,
        last: Duration::ZERO,
        nanos: histogram(),
        counts: [0; 4],
    };
    let began = Instant::now();
    let running = Reactor::on_core(core)?.policy(policy).with(paced).spawn()?;
    let cpu_time = || thread.get().copied().and_then(Thread::cpu_time);
    let mut before = None;
    // It ends by itself, or fails: perhaps before its first turn, which is when its thread is known.
    while !stop.is_asked() && running.is_running() {
        before = before.or_else(cpu_time);
        std::thread::sleep(Duration::from_millis(1));
    }
    let cpu = before.and_then(|before| cpu_time()?.checked_sub(before));
    let took = began.elapsed();
    let slept = running.join()?.slept;
    let (trip, nanos, [begun, back, failed, lost]) = came.recv().map_err(|_| crate::Error::Panicked)?;
    let cpu = cpu.map(|cpu| cpu.as_secs_f64() / took.as_secs_f64());
    let latency = Percentiles::of(&nanos);
    Ok((trip, Outcome { time: took, begun, back, failed, lost, cpu, slept, latency }))
}

type Home<T> = (T, Histogram<u64>, [u64; 4]);

/// A trip under a load, as a reactor runs it.
struct Paced<T: Trip> {
    trip: Option<T>,
    /// Where it goes in the end.
    home: Sender<Home<T>>,
    load: Load,
    limiter: Option<RateLimiter>,
    depth: usize,
    began: Instant,
    end: Duration,
    stop: Stop,
    thread: Arc<OnceLock<Thread>>,
    under_way: usize,
    /// When one came back last.
    last: Duration,
    nanos: Histogram<u64>,
    /// Begun, back, failed, lost.
    counts: [u64; 4],
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl<T: Trip> Paced<T> {
    /// Begins those that are due; says whether there were some.
    fn begin(&mut self, now: Duration) -> bool {
        let (Some(trip), before) = (&mut self.trip, self.under_way) else { return false };
        if let Some(limiter) = &mut self.limiter {
            limiter.advance(nanos(now));
        }
        while self.under_way < self.depth {
            let due = match (&mut self.limiter, self.load) {
                (Some(limiter), _) => limiter.is_due(nanos(now)),
                (None, load) => load == Load::Saturation,
            };
            if !due || !trip.send(nanos(now)) {
                break;
            }
            if let Some(limiter) = &mut self.limiter {
                limiter.sent(0);
            }
            self.under_way += 1;
            self.counts[0] += 1;
        }
        if self.under_way == before {
            return false;
        }
        if before == 0 {
            self.last = now;
        }
        trip.ring();
        true
    }

    /// Takes those that came back; says whether there were some.
    fn end(&mut self) -> bool {
        let Some(trip) = &mut self.trip else { return false };
        let (began, recorded, counts, under_way) = (self.began, &mut self.nanos, &mut self.counts, &mut self.under_way);
        let mut now = None;
        trip.poll(&mut |stamp| {
            let now = *now.get_or_insert_with(|| began.elapsed());
            match (*under_way, counts[3]) {
                // One that was lost before this run.
                (0, 0) => return,
                // One that was taken for lost.
                (0, lost) => counts[3] = lost - 1,
                (some, _) => *under_way = some - 1,
            }
            match stamp {
                Some(stamp) => {
                    counts[1] += 1;
                    recorded.saturating_record(nanos(now).saturating_sub(stamp));
                }
                None => counts[2] += 1,
            }
        });
        match now {
            Some(now) => self.last = now,
            None if self.under_way > 0 && self.began.elapsed() > self.last + LOST => {
                self.counts[3] += std::mem::take(&mut self.under_way) as u64;
            }
            None => {}
        }
        now.is_some()
    }
}

impl<T: Trip> Poller for Paced<T> {
    fn poll(&mut self) -> Work {
        if self.thread.get().is_none() {
            let _ = self.thread.set(Thread::current());
            self.began = Instant::now();
        }
        let now = self.began.elapsed();
        let over = now >= self.end;
        let begun = !over && self.begin(now);
        let back = self.end();
        if over && self.under_way == 0 {
            self.stop.ask();
        }
        if begun || back { Work::Busy } else { Work::Idle }
    }

    fn wakeups(&self) -> Vec<Arc<EventFd>> {
        self.trip.iter().filter_map(Trip::wakeup).collect()
    }

    fn arm(&mut self) -> Armed {
        let Some(trip) = &mut self.trip else { return Armed::No };
        if trip.wakeup().is_none() {
            return Armed::No;
        }
        let until = match trip.arm() {
            Armed::No => return Armed::No,
            Armed::Yes => None,
            Armed::Until(at) => Some(at),
        };
        let due = self.limiter.as_ref().filter(|_| self.under_way < self.depth).map(RateLimiter::due);
        let due = due.map_or(self.end, |due| self.end.min(Duration::from_nanos(due)));
        // Once the time is over nothing begins: it sleeps until all are back, and until it is stopped.
        let due = (self.began.elapsed() < self.end).then_some(due);
        let lost = (self.under_way > 0).then(|| self.last + LOST);
        let own = [due, lost].into_iter().flatten().map(|at| self.began + at);
        own.chain(until).min().map_or(Armed::Yes, Armed::Until)
    }

    fn disarm(&mut self) {
        if let Some(trip) = &mut self.trip {
            trip.disarm();
        }
    }
}

impl<T: Trip> Drop for Paced<T> {
    fn drop(&mut self) {
        if let Some(trip) = self.trip.take() {
            let _ = self.home.send((trip, self.nanos.clone(), self.counts));
        }
    }
}

/// How long a thread on `core` takes to wake by an eventfd, the floor of every wake-up here: from just before another thread signals it to its first
/// instruction, for `time`, `every` so often or as soon after that as the other thread is awake.
///
/// # Errors
/// [`Error::Core`](crate::Error::Core) where the core or a descriptor cannot be had; [`Error::Thread`](crate::Error::Thread) without a thread.
pub fn eventfd_wake_up(core: usize, every: Duration, time: Duration) -> Result<Percentiles> {
    let (fd, (awake, woken), (ready, started)) = (Arc::new(EventFd::new()?), channel(), channel());
    let over = Arc::new(AtomicBool::new(false));
    let waiter = {
        let (fd, over) = (fd.clone(), over.clone());
        move || -> wholebar_core::Result<()> {
            let pinned = wholebar_core::cores::pin(core);
            let _ = ready.send(());
            pinned?;
            // One for each: the other thread waits for it.
            while fd.wait(None)?.is_some() && !over.load(Ordering::Acquire) {
                let _ = awake.send(Instant::now());
            }
            Ok(())
        }
    };
    let thread = std::thread::Builder::new().name("waiter".to_owned()).spawn(waiter);
    let thread = thread.map_err(|e| crate::Error::Thread { cause: e.to_string() })?;
    let _ = started.recv();
    let (mut all, began) = (histogram(), Instant::now());
    loop {
        std::thread::sleep(every);
        let signalled = Instant::now();
        fd.signal();
        // Where the thread has failed, it says so below.
        let Ok(awake) = woken.recv() else { break };
        all.saturating_record(nanos(awake.saturating_duration_since(signalled)));
        if began.elapsed() >= time {
            break;
        }
    }
    // Pairs with the Acquire load above; the signal that follows is seen after it.
    over.store(true, Ordering::Release);
    fd.signal();
    thread.join().map_err(|_| crate::Error::Panicked)??;
    Ok(Percentiles::of(&all))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    /// What is sent comes back at the next poll; arming is refused.
    #[derive(Default)]
    struct Mirror(VecDeque<u64>, u64);

    impl Trip for Mirror {
        fn send(&mut self, stamp: u64) -> bool {
            self.0.push_back(stamp);
            true
        }
        fn ring(&mut self) {
            self.1 += 1;
        }
        fn poll(&mut self, back: &mut dyn FnMut(Option<u64>)) {
            self.0.drain(..).for_each(|stamp| back(Some(stamp)));
        }
        fn wakeup(&self) -> Option<Arc<EventFd>> {
            None
        }
        fn arm(&mut self) -> Armed {
            Armed::No
        }
        fn disarm(&mut self) {}
    }

    #[test]
    fn what_is_begun_comes_back_and_is_counted() {
        let core = wholebar_core::cores::allowed()[0];
        let mut mirror = Mirror::default();
        for (policy, load) in [
            (Policy::Poll, Load::Nothing),
            (Policy::Hybrid, Load::PerSecond(10_000.0)),
            (Policy::Sleep, Load::Saturation),
        ] {
            let time = Duration::from_millis(20);
            let (again, outcome) = run(mirror, core, policy, load, 4, time).unwrap();
            mirror = again;
            assert_eq!((outcome.begun, outcome.lost, outcome.failed), (outcome.back, 0, 0), "{load:?}");
            assert_eq!(outcome.begun == 0, load == Load::Nothing, "{load:?}: {outcome:?}");
            assert!(outcome.time >= time && outcome.slept == 0);
            assert!(outcome.latency.p50 <= outcome.latency.max);
        }
        assert!(mirror.1 > 0);
    }

    /// One that nothing can wait for.
    struct Broken;

    impl Trip for Broken {
        fn send(&mut self, _: u64) -> bool {
            false
        }
        fn ring(&mut self) {}
        fn poll(&mut self, _: &mut dyn FnMut(Option<u64>)) {}
        fn wakeup(&self) -> Option<Arc<EventFd>> {
            panic!("it has none to give")
        }
        fn arm(&mut self) -> Armed {
            Armed::No
        }
        fn disarm(&mut self) {}
    }

    /// It would be waited for without end.
    #[test]
    fn a_thread_that_ends_before_its_first_poll_is_an_error() {
        let core = wholebar_core::cores::allowed()[0];
        let error = run(Broken, core, Policy::Sleep, Load::Nothing, 1, Duration::from_secs(3600)).err().unwrap();
        assert!(error.to_string().contains("it has none to give"), "{error}");
    }

    /// An eventfd that nobody signals: nothing wakes it but its own end, and who stops it.
    struct Silent(Arc<EventFd>);

    impl Trip for Silent {
        fn send(&mut self, _: u64) -> bool {
            false
        }
        fn ring(&mut self) {}
        fn poll(&mut self, _: &mut dyn FnMut(Option<u64>)) {}
        fn wakeup(&self) -> Option<Arc<EventFd>> {
            Some(self.0.clone())
        }
        fn arm(&mut self) -> Armed {
            Armed::Yes
        }
        fn disarm(&mut self) {}
    }

    /// However late whoever waits for the end looks.
    #[test]
    fn where_nothing_happens_it_sleeps_a_few_times() {
        let (core, silent) = (wholebar_core::cores::allowed()[0], Silent(Arc::new(EventFd::new().unwrap())));
        let time = Duration::from_millis(20);
        let (_, outcome) = run(silent, core, Policy::Sleep, Load::Nothing, 4, time).unwrap();
        assert!((1..=8).contains(&outcome.slept), "{outcome:?}");
    }

    #[test]
    fn an_eventfd_wakes() {
        let time = Duration::from_millis(20);
        let p = eventfd_wake_up(wholebar_core::cores::allowed()[0], time / 20, time).unwrap();
        assert!(p.max > 0 && p.p50 <= p.p99);
    }
}

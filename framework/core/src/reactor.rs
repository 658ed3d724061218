//! Reactors: a reactor is one thread, pinned to one core, that runs pollers.
//!
//! The thread belongs to the program, which starts it, stops it and joins it; the framework never owns `main`. Where its pollers can be woken, a
//! reactor sleeps when there is nothing to do: spin, arm, poll once more, sleep. Polling once more after arming is what makes that safe: work
//! that came before is found, and work that comes later signals. For how long it spins is its [`Policy`]: by default as long as the recent past makes
//! it worth it. (SPDK: `spdk_reactor`, which polls or is in interrupt mode; DPDK: an lcore.)
//!
//! ```
//! # use wholebar_core as wholebar;
//! use wholebar::Work;
//! use wholebar::reactor::Reactor;
//!
//! // A closure is a poller. This one counts to ten.
//! let (done, ended) = std::sync::mpsc::channel();
//! let mut count = 0;
//! let running = Reactor::anywhere().with(move || {
//!     count += 1;
//!     if count == 10 {
//!         let _ = done.send(());
//!     }
//!     if count <= 10 { Work::Busy } else { Work::Idle }
//! });
//! let running = running.spawn()?;
//! ended.recv()?;
//! assert_eq!(running.join()?.busy, 10);
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

mod hybrid;

use crate::irq::{Epoll, EventFd};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::{Error, Result, Work, barrier, cores};
use crossbeam_channel::bounded;
pub(crate) use hybrid::Hybrid;
use std::fmt;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Work that a reactor runs again and again.
///
/// SPDK: `spdk_poller`.
///
/// A closure that returns [`Work`] is a poller that cannot be woken: its reactor never sleeps.
///
/// An implementer bounds each [`poll`](Self::poll) and never blocks, since the other pollers of the core wait meanwhile. One that can be woken implements
/// [`wakeups`](Self::wakeups), [`arm`](Self::arm) and [`disarm`](Self::disarm) together.
pub trait Poller: Send {
    /// Does the work that there is, within bounds, and returns whether there was some.
    fn poll(&mut self) -> Work;

    /// Returns the eventfds that are signalled for this poller. Called once, when the reactor starts. By default there are none.
    fn wakeups(&self) -> Vec<Arc<EventFd>> {
        Vec::new()
    }

    /// Requests that one of its eventfds be signalled once there is work. Another [`poll`](Self::poll) follows before the reactor sleeps. By default
    /// this returns [`Armed::No`].
    fn arm(&mut self) -> Armed {
        Armed::No
    }

    /// Withdraws that request: the poller is polled again. Called even where [`arm`](Self::arm) returned [`Armed::No`]. By default it does nothing.
    fn disarm(&mut self) {}
}

impl<F: FnMut() -> Work + Send> Poller for F {
    fn poll(&mut self) -> Work {
        self()
    }
}

/// Whether a poller's core may sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Armed {
    /// It may not: nothing would signal.
    No,
    /// It may: an eventfd will be signalled.
    Yes,
    /// It may until that time, when a deadline passes, or an eventfd is signalled.
    Until(Instant),
}

/// The behaviour of a reactor that finds nothing to do.
///
/// Whatever it is, a reactor sleeps only where all of its pollers can be armed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Policy {
    /// Goes on polling: a core is burnt, and nothing waits for a wake-up.
    Poll,
    /// Spins while pauses are short, and sleeps where they are long: the average of the last pauses is compared with what a sleep costs, which is
    /// measured. A pause up to eight times the CPU time of a sleep (some 40 to 100 microseconds) is spun through where pauses have been that short. After
    /// 512 polls that found nothing the core [pauses](cores::Pause) between two, where the CPU has TPAUSE, WFET or `wait`.
    #[default]
    Hybrid,
    /// Sleeps as soon as a poll finds nothing.
    Sleep,
}

/// A reactor that is being put together: a core, pollers, and what to do when idle.
pub struct Reactor {
    core: Option<usize>,
    policy: Policy,
    pollers: Vec<Box<dyn Poller>>,
}

impl Reactor {
    /// Creates a reactor for `core`, by the kernel's number of it.
    ///
    /// # Errors
    /// [`Error::NoSuchCore`] where this process may not use the core.
    pub fn on_core(core: usize) -> Result<Self> {
        cores::check(core)?;
        Ok(Self { core: Some(core), ..Self::anywhere() })
    }

    /// Creates a reactor for whichever core the kernel chooses.
    pub fn anywhere() -> Self {
        Self { core: None, policy: Policy::default(), pollers: Vec::new() }
    }

    /// Sets what the reactor does when there is nothing to do. [`Policy::Hybrid`] is the default.
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Adds a poller. Each round of the reactor polls all of them, in the order in which they were added.
    #[must_use]
    pub fn with(mut self, poller: impl Poller + 'static) -> Self {
        self.pollers.push(Box::new(poller));
        self
    }

    /// Starts the thread, and returns once it is pinned.
    ///
    /// # Errors
    /// [`Error::NoSuchCore`] where it cannot be pinned; [`Error::Io`] where the system has no thread or descriptor left.
    pub fn spawn(self) -> Result<Running> {
        let stop = Stop::new()?;
        let name = match self.core {
            Some(core) => format!("reactor on core {core}"),
            None => "reactor".to_owned(),
        };
        let (ready, started) = bounded(1);
        let seen = stop.clone();
        let thread = std::thread::Builder::new()
            // The kernel keeps 15 bytes of a thread's name.
            .name(name.replace("reactor on core", "reactor"))
            .spawn(move || {
                let pinned = self.core.map_or(Ok(()), cores::pin);
                let failed = pinned.is_err();
                let _ = ready.send(pinned);
                if failed { Ok(Stats::default()) } else { self.run(&seen) }
            })
            .map_err(|cause| Error::Io { what: format!("starting the {name}"), cause })?;
        let running = Running { name, stop, thread: Some(thread) };
        // The thread sends before all else.
        if let Ok(pinned) = started.recv() {
            pinned?;
        }
        Ok(running)
    }

    /// Runs on the calling thread, wherever that is pinned, until `stop` is [asked](Stop::ask).
    ///
    /// # Errors
    /// [`Error::Io`] where the system has no descriptor left, or cannot wait.
    pub fn run(mut self, stop: &Stop) -> Result<Stats> {
        let wait_set = WaitSet::new(&self.pollers, stop)?;
        let (mut stats, mut hybrid) = (Stats::default(), Hybrid::new());
        while !stop.is_asked() {
            if stats.count(self.poll_all()) == Work::Busy {
                hybrid.busy();
                continue;
            }
            let sleep = match self.policy {
                Policy::Poll => false,
                Policy::Hybrid => hybrid.idle(),
                Policy::Sleep => true,
            };
            if sleep {
                self.sleep(&wait_set, &mut stats, &mut hybrid)?;
            } else if self.policy == Policy::Hybrid {
                hybrid.pause();
            }
        }
        Ok(stats)
    }

    #[inline]
    fn poll_all(&mut self) -> Work {
        self.pollers.iter_mut().fold(Work::Idle, |all, poller| match poller.poll() {
            Work::Busy => Work::Busy,
            Work::Idle => all,
        })
    }

    fn sleep(&mut self, wait_set: &WaitSet, stats: &mut Stats, hybrid: &mut Hybrid) -> Result<()> {
        let before = cpu_time();
        hybrid.arms(Instant::now());
        let mut until: Option<Instant> = None;
        let all_armed = self.pollers.iter_mut().all(|poller| match poller.arm() {
            Armed::No => false,
            Armed::Yes => true,
            Armed::Until(at) => {
                until = Some(until.map_or(at, |u| u.min(at)));
                true
            }
        });
        let mut slept = false;
        if all_armed {
            // What was armed is seen by whoever brings work, or their work is seen by the poll that follows.
            barrier::store_then_load();
            match stats.count(self.poll_all()) {
                Work::Busy => hybrid.busy(),
                Work::Idle => {
                    stats.slept += 1;
                    wait_set.wait(until)?;
                    slept = true;
                }
            }
        } else {
            hybrid.refused();
        }
        self.pollers.iter_mut().for_each(|poller| poller.disarm());
        if slept {
            hybrid.slept(before.and_then(|before| cpu_time()?.checked_sub(before)));
        }
        Ok(())
    }
}

/// How long the calling thread has run on a CPU. One system call.
fn cpu_time() -> Option<Duration> {
    use rustix::time::{ClockId, clock_gettime};
    // Miri has no such clock.
    if cfg!(miri) { None } else { clock_gettime(ClockId::ThreadCPUTime).try_into().ok() }
}

impl fmt::Debug for Reactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reactor")
            .field("core", &self.core)
            .field("pollers", &self.pollers.len())
            .finish_non_exhaustive()
    }
}

/// How often a reactor was busy, idle and asleep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Polls of all pollers in which at least one found work, since the reactor began.
    pub busy: u64,
    /// Polls that found none.
    pub idle: u64,
    /// How often the reactor slept.
    pub slept: u64,
}

impl Stats {
    #[inline]
    fn count(&mut self, work: Work) -> Work {
        match work {
            Work::Busy => self.busy += 1,
            Work::Idle => self.idle += 1,
        }
        work
    }
}

/// The thread of a reactor.
///
/// Dropping it stops and joins the thread.
#[derive(Debug)]
pub struct Running {
    name: String,
    stop: Stop,
    thread: Option<JoinHandle<Result<Stats>>>,
}

impl Running {
    /// Returns the handle that stops the thread, from anywhere.
    pub fn stop(&self) -> &Stop {
        &self.stop
    }

    /// Returns whether the thread still runs. It ends early only where a poller panics, or the system cannot wait.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|t| !t.is_finished())
    }

    /// Stops the thread, waits for its end, and returns how often it was busy, idle and asleep. The pollers are dropped on that thread.
    ///
    /// # Errors
    /// [`Error::Panicked`] where a poller panicked; else those of [`Reactor::run`].
    pub fn join(mut self) -> Result<Stats> {
        self.stop.ask();
        let Some(thread) = self.thread.take() else { return Ok(Stats::default()) };
        thread.join().map_err(|payload| {
            let said = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
            Error::Panicked { what: self.name.clone(), said: said.unwrap_or("nothing that can be shown").to_owned() }
        })?
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.ask();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

/// A request to a thread to end, which wakes it.
///
/// Clones are the same request.
#[derive(Debug, Clone)]
pub struct Stop(Arc<(AtomicBool, EventFd)>);

impl Stop {
    /// Creates a request that nobody has made yet.
    ///
    /// # Errors
    /// [`Error::Io`] where the process has no descriptor left.
    pub fn new() -> Result<Self> {
        Ok(Self(Arc::new((AtomicBool::new(false), EventFd::new()?))))
    }

    /// Makes the request: a store and a system call.
    pub fn ask(&self) {
        // Pairs with the Acquire load in `is_asked`. The signal follows, so a thread that saw false before it slept is woken.
        self.0.0.store(true, Ordering::Release);
        self.0.1.signal();
    }

    /// Returns whether the request was made: one load.
    #[inline]
    pub fn is_asked(&self) -> bool {
        // Pairs with the Release store in `ask`.
        self.0.0.load(Ordering::Acquire)
    }

    pub(crate) fn wakeup(&self) -> &EventFd {
        &self.0.1
    }
}

/// Wakes a poller for which another thread has work: an eventfd that is signalled only while the poller is armed.
///
/// The poller arms the bell, then polls for work. The other thread puts work where the poller finds it, then rings. A full barrier on each side makes
/// sure that one of them sees the other.
#[derive(Debug)]
pub struct Bell {
    armed: AtomicBool,
    fd: Arc<EventFd>,
}

impl Bell {
    /// Creates a bell that is not armed.
    ///
    /// # Errors
    /// [`Error::Io`] where the process has no descriptor left.
    pub fn new() -> Result<Self> {
        Ok(Self { armed: AtomicBool::new(false), fd: Arc::new(EventFd::new()?) })
    }

    /// Returns the eventfd that the bell signals, for [`Poller::wakeups`].
    pub fn wakeup(&self) -> Arc<EventFd> {
        self.fd.clone()
    }

    /// Arms the bell: the next [`ring`](Self::ring) signals. The poller polls once more after this.
    #[inline]
    pub fn arm(&self) {
        self.armed.store(true, Ordering::Relaxed);
        // Orders the store above before the caller's poll for work. Pairs with the barrier in `ring`, between the work and the load:
        // at least one of the two loads sees what the other side did.
        barrier::store_then_load();
    }

    /// Disarms the bell: no ring signals until it is armed again.
    #[inline]
    pub fn disarm(&self) {
        self.armed.store(false, Ordering::Relaxed);
    }

    /// Takes the signal that it may have given: for who waits for the eventfd himself.
    pub(crate) fn silence(&self) {
        self.fd.take();
    }

    pub(crate) fn eventfd(&self) -> &EventFd {
        &self.fd
    }

    /// Tells the poller of work that was put where it polls: a full barrier and a load; a system call where the bell is armed.
    #[inline]
    pub fn ring(&self) {
        // Pairs with the barrier in `arm`.
        barrier::store_then_load();
        if self.armed.load(Ordering::Relaxed) {
            // One signal wakes it; a second ring of the same sleep needs none.
            self.armed.store(false, Ordering::Relaxed);
            self.fd.signal();
        }
    }
}

/// Where a reactor sleeps: everything that can wake it.
struct WaitSet {
    epoll: Epoll,
    wakeups: Vec<Arc<EventFd>>,
}

impl WaitSet {
    fn new(pollers: &[Box<dyn Poller>], stop: &Stop) -> Result<Self> {
        let epoll = Epoll::new()?;
        let wakeups: Vec<_> = pollers.iter().flat_map(|p| p.wakeups()).collect();
        for (number, fd) in wakeups.iter().enumerate() {
            epoll.add(fd, number as u64)?;
        }
        epoll.add(stop.wakeup(), u64::MAX)?;
        Ok(Self { epoll, wakeups })
    }

    fn wait(&self, until: Option<Instant>) -> Result<()> {
        let timeout = until.map(|at| at.saturating_duration_since(Instant::now()));
        for number in self.signalled(timeout)? {
            // Taken, so that the next signal finds it empty; that of `Stop` stays.
            if let Some(fd) = usize::try_from(number).ok().and_then(|n| self.wakeups.get(n)) {
                fd.take();
            }
        }
        Ok(())
    }

    #[cfg(not(loom))]
    fn signalled(&self, timeout: Option<Duration>) -> Result<impl Iterator<Item = u64> + use<>> {
        self.epoll.wait(timeout)
    }

    /// All threads of loom are one of the system's: who waits looks again and again, and lets the others run.
    #[cfg(loom)]
    fn signalled(&self, _: Option<Duration>) -> Result<impl Iterator<Item = u64> + use<>> {
        loop {
            let mut woken = self.epoll.wait(Some(Duration::ZERO))?.peekable();
            if woken.peek().is_some() {
                return Ok(woken);
            }
            crate::sync::yield_now();
        }
    }
}

#[cfg(all(test, loom))]
mod exhaustive;
#[cfg(all(test, not(loom)))]
mod tests;

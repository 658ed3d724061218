//! CPU time of threads: a polling thread that did not have its core to itself has measured the machine's scheduler, too.
//!
//! ```
//! use wholebar_measure::cpu::CpuShare;
//!
//! let share = CpuShare::current();
//! std::hint::black_box((0..100_000).sum::<u64>());
//! // 1 is all of a core. `None` where the kernel has no statistics of scheduling.
//! if let Some(share) = share.share() {
//!     println!("this thread had {:.0} % of a core", share * 100.0);
//! }
//! ```

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

/// A thread of this process, by its id in `/proc/self/task`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thread(
    /// Its id, as `gettid` gives it.
    pub i32,
);

impl Thread {
    /// The calling thread.
    pub fn current() -> Self {
        Self(rustix::thread::gettid().as_raw_pid())
    }

    /// How long it has run on a CPU; `None` where it has ended, or the kernel keeps no such statistics. Opens and reads a file of `/proc`.
    pub fn cpu_time(self) -> Option<Duration> {
        // First field of schedstat: nanoseconds on a CPU.
        let text = fs::read_to_string(format!("/proc/self/task/{}/schedstat", self.0)).ok()?;
        text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
    }
}

/// A thread's share of a CPU since some moment.
#[derive(Debug, Clone, Copy)]
pub struct CpuShare(Option<(Thread, Duration, Instant)>);

impl CpuShare {
    /// Of a thread, from now on. Of `None`, nothing is known later on.
    pub fn of(thread: Option<Thread>) -> Self {
        Self(thread.and_then(|thread| Some((thread, thread.cpu_time()?, Instant::now()))))
    }

    /// Of the calling thread, from now on.
    pub fn current() -> Self {
        Self::of(Some(Thread::current()))
    }

    /// The share until now: 1 is all of a CPU. `None` where there is no such thread, or no CPU time of it.
    pub fn share(self) -> Option<f64> {
        let (thread, before, since) = self.0?;
        let used = thread.cpu_time()?.saturating_sub(before);
        Some(used.as_secs_f64() / since.elapsed().as_secs_f64().max(1e-9))
    }
}

/// Which share of a core a thread has that does nothing but work there for a time: 1 where nothing else wants the core. `None` where the kernel does not tell,
/// where this process may not use the core, or where no thread can be started.
pub fn spin_share(core: usize, time: Duration) -> Option<f64> {
    let spin = move || {
        wholebar_core::cores::pin(core).ok()?;
        let (share, began) = (CpuShare::current(), Instant::now());
        while began.elapsed() < time {
            std::hint::spin_loop();
        }
        share.share()
    };
    thread::Builder::new().name("spin".to_owned()).spawn(spin).ok()?.join().ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_is_not_there_has_no_share() {
        assert!(CpuShare::of(None).share().is_none());
        assert!(Thread(i32::MAX).cpu_time().is_none());
    }

    #[test]
    fn a_core_that_is_not_there_has_no_share() {
        assert_eq!(spin_share(usize::MAX, Duration::ZERO), None);
        let core = wholebar_core::cores::allowed()[0];
        let share = spin_share(core, Duration::from_millis(5));
        assert!(share.is_none_or(|share| (0.0..1.5).contains(&share)), "{share:?}");
    }

    /// Where the kernel tells it, CPU time of the calling thread grows as it works.
    #[test]
    fn cpu_time_grows() {
        let Some(before) = Thread::current().cpu_time() else { return };
        let began = Instant::now();
        while Thread::current().cpu_time().is_some_and(|now| now <= before) {
            assert!(began.elapsed() < Duration::from_secs(60), "still {before:?}");
        }
    }
}

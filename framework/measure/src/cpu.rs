//! What threads have of their cores: a polling thread that did not have its core to itself has measured the machine's scheduler, too; and how far two cores are
//! from one another, which a host that moves virtual CPUs about changes meanwhile.
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

use crossbeam::utils::CachePadded;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
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

/// How long a cache line takes from one core to another and back, in nanoseconds: the median of some batches, in less than a millisecond where both cores are free.
/// `None` where it is one core, where this process may not use one, or where one of them was not to be had within a tenth of a second.
///
/// Some tens of nanoseconds where the cores share a cache, some hundreds where they don't. Virtual CPUs are moved between real ones: what two of them do together is
/// fast at one time and slow at another, for seconds, and this tells both apart.
pub fn hand_over(a: usize, b: usize) -> Option<f64> {
    const BATCHES: usize = 15;
    const TURNS: u32 = 200;
    const LIMIT: Duration = Duration::from_millis(100);
    if a == b {
        return None;
    }
    let (line, stop) = (CachePadded::new(AtomicU32::new(0)), AtomicBool::new(false));
    // Odd numbers are for it, which it makes even ones.
    let echo = || {
        if wholebar_core::cores::pin(b).is_err() {
            stop.store(true, Ordering::Relaxed);
        }
        while !stop.load(Ordering::Relaxed) {
            let turn = line.load(Ordering::Acquire);
            if !turn.is_multiple_of(2) {
                line.store(turn.wrapping_add(1), Ordering::Release);
            }
        }
    };
    let ask = || {
        wholebar_core::cores::pin(a).ok()?;
        let began = Instant::now();
        let mut batches = [0.0; BATCHES];
        for batch in &mut batches {
            let begun = Instant::now();
            for turn in 0..TURNS {
                line.store(2 * turn + 1, Ordering::Release);
                let mut looks = 0u32;
                while line.load(Ordering::Acquire) == 2 * turn + 1 {
                    looks = looks.wrapping_add(1);
                    // The clock is not read while all goes well.
                    if looks.is_multiple_of(4096) && (stop.load(Ordering::Relaxed) || began.elapsed() > LIMIT) {
                        return None;
                    }
                }
            }
            *batch = begun.elapsed().as_nanos() as f64 / f64::from(TURNS);
        }
        batches.sort_by(f64::total_cmp);
        Some(batches[BATCHES / 2])
    };
    thread::scope(|scope| {
        let named = |name: &str| thread::Builder::new().name(name.to_owned());
        let echo = named("hand-over").spawn_scoped(scope, echo).ok()?;
        let asked = named("hand-over").spawn_scoped(scope, ask).ok().and_then(|ask| ask.join().ok().flatten());
        stop.store(true, Ordering::Relaxed);
        echo.join().ok()?;
        asked
    })
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

    /// Between two cores it takes some time, where both were to be had; on one there is nothing to hand over.
    #[test]
    fn a_line_is_handed_over_between_two_cores() {
        let cores = wholebar_core::cores::allowed();
        assert_eq!((hand_over(cores[0], cores[0]), hand_over(cores[0], usize::MAX)), (None, None));
        assert_eq!(hand_over(usize::MAX, cores[0]), None);
        if let Some(&second) = cores.get(1) {
            assert!(hand_over(cores[0], second).is_none_or(|nanos| nanos > 0.0));
        }
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

//! How a model that nothing happens to comes to rest: when its thread stops polling, and for how long.
//!
//! What reaches a model by a call or a descriptor wakes it: an access that is trapped, a message, a kick, a wire. A store to a page that a driver has mapped
//! is seen by nobody who does not poll. So there are two ways to rest, and [`Rest`] says which is due:
//!
//! - Where everything that the model waits for wakes it, its thread polls on for [`SPIN`] after the last work, then sleeps. It is awake as soon as the kernel
//!   wakes threads.
//! - Where some of it does not, the thread naps ever longer: for a sixteenth of the time that nothing has happened, [`SHORTEST`] to [`LONGEST`]. So a
//!   doorbell that comes after a pause is seen late by a sixteenth of the pause, or by a millisecond where that is less; and one that comes
//!   within 0.8 ms is seen at once. (To that adds what the kernel's timers are late by, 50 us as a rule.) What does wake it ends the nap.

use crate::reactor::Armed;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// For how long nothing has to happen before a thread sleeps that would be woken.
const SPIN: Duration = Duration::from_micros(100);
/// The share of the time that nothing has happened, which a nap may take.
const SHARE: u32 = 16;
/// The shortest nap: a shorter one costs more than it saves.
const SHORTEST: Duration = Duration::from_micros(50);
/// The longest nap: what the first doorbell after a pause may wait.
pub(crate) const LONGEST: Duration = Duration::from_millis(1);
/// How often a thread that sleeps checks all the same, for what nobody tells: whether it shall stop, whether a link was set.
///
/// Not in tests: what is not woken there stays asleep, and is found out.
pub(crate) const CHECK_INTERVAL: Duration =
    if cfg!(test) { Duration::from_secs(3600) } else { Duration::from_millis(50) };
/// Idle polls between two reads of the clock.
const POLLS: u32 = 64;

/// For how long nothing has happened to a model.
#[derive(Debug, Default)]
pub(crate) struct Rest {
    polls: u32,
    since: Option<Instant>,
}

/// What a model waits for, which nothing happens to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wakes {
    /// Everything wakes it.
    All,
    /// Its driver may store to pages that it has mapped, or it has to poll for something else.
    Some,
}

impl Rest {
    /// Something was done.
    #[inline]
    pub(crate) fn busy(&mut self) {
        (self.polls, self.since) = (0, None);
    }

    /// A poll found nothing. Returns for how long nothing has happened, where that is worth a thought.
    #[inline]
    pub(crate) fn idle(&mut self) -> Option<Duration> {
        self.polls = self.polls.wrapping_add(1);
        if !self.polls.is_multiple_of(POLLS) { None } else { self.quiet_for(Instant::now()) }
    }

    /// It is `now`, and polls before this found nothing.
    #[cold]
    pub(crate) fn quiet_for(&mut self, now: Instant) -> Option<Duration> {
        let quiet = now.saturating_duration_since(*self.since.get_or_insert(now));
        (quiet >= SPIN).then_some(quiet)
    }
}

impl Wakes {
    /// What wakes a model that said this of itself, and when something is due by itself.
    pub(crate) fn of(armed: Armed) -> (Self, Option<Instant>) {
        match armed {
            Armed::No => (Self::Some, None),
            Armed::Yes => (Self::All, None),
            Armed::Until(at) => (Self::All, Some(at)),
        }
    }

    /// How long to rest now, where nothing has happened for so long, and something is due at a time; `None`: not yet.
    pub(crate) fn rest(self, quiet: Duration, due: Option<Instant>) -> Option<Duration> {
        let most = match self {
            Self::All => CHECK_INTERVAL,
            Self::Some => (quiet / SHARE).min(LONGEST),
        };
        let left = due.map_or(most, |due| most.min(due.saturating_duration_since(Instant::now())));
        (left >= SHORTEST).then_some(left)
    }
}

/// Waits until one of these is ready, or the time is over: `own`, and what a model waits for. A signal handler ends the wait, too.
pub(crate) fn wait<'fd>(
    mut own: Vec<PollFd<'fd>>,
    wires: impl IntoIterator<Item = BorrowedFd<'fd>>,
    time: Duration,
) -> rustix::io::Result<()> {
    let first = own.len();
    own.extend(wires.into_iter().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
    match poll(&mut own, Some(&Timespec::try_from(time).unwrap_or_default())) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error),
    }
    // What has failed is ready for ever, and would keep the thread awake for nothing.
    let failed = |fd: &PollFd<'_>| !fd.revents().is_empty() && !fd.revents().contains(PollFlags::IN);
    if own[first..].iter().any(failed) {
        std::thread::sleep(time.min(LONGEST));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn naps_grow_with_the_pause() {
        let nap = |micros| Wakes::Some.rest(Duration::from_micros(micros), None).map(|nap| nap.as_micros());
        assert_eq!([100, 799, 800, 8000].map(nap), [None, None, Some(50), Some(500)]);
        assert_eq!(nap(1_000_000), Some(1000));
        assert_eq!(Wakes::All.rest(SPIN, None), Some(CHECK_INTERVAL));
        // What is due is not slept over.
        let soon = Wakes::All.rest(SPIN, Some(Instant::now() + Duration::from_millis(10)));
        assert!(soon.is_none_or(|rest| rest <= Duration::from_millis(10)));
        assert_eq!(Wakes::All.rest(SPIN, Some(Instant::now())), None);
    }

    #[test]
    fn work_ends_the_rest() {
        let mut rest = Rest::default();
        assert!((0..POLLS).all(|_| rest.idle().is_none()), "it begins at the first read of the clock");
        let now = Instant::now();
        assert!(rest.quiet_for(now + 2 * SPIN).is_some());
        rest.busy();
        assert!((0..POLLS).all(|_| rest.idle().is_none()));
    }
}

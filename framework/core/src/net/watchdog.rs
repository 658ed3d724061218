//! A watchdog for send queues. It reads a queue's counters from the slow path, so the hot path pays nothing for it.
//!
//! A queue without traffic cannot be told from a stuck one by what it sends. A queue that has no room is different: its program has packets to send,
//! and the device holds as many as it can. So a queue counts as stuck when, for a given time, it found no room again and again while nothing was
//! posted and the link was up. This file does *not* look at the device, and recovers nothing: its driver reports
//! [`Event::Stalled`](super::Event::Stalled).

use super::{Event, TxCounters};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Detects a send queue that is stuck.
///
/// (Linux: `ndo_tx_timeout`.) A driver [checks](Self::check) it in [`poll_events`](crate::control_plane::Driver::poll_events).
///
/// ```
/// # use wholebar_core as wholebar;
/// use std::time::{Duration, Instant};
/// use wholebar::net::{TxCounters, TxWatchdog};
///
/// let (counters, start) = (TxCounters::default(), Instant::now());
/// let mut watchdog = TxWatchdog::new(Duration::from_secs(5));
/// // A burst for which there was no room, and another one seconds later.
/// counters.full.add(1);
/// assert_eq!(watchdog.check(true, &counters, start), None);
/// counters.full.add(1);
/// assert_eq!(watchdog.check(true, &counters, start + Duration::from_secs(6)), Some(Duration::from_secs(6)));
/// ```
#[derive(Debug)]
pub struct TxWatchdog {
    patience: Duration,
    /// When there was no room first, since packets were posted last.
    since: Option<Instant>,
    packets: u64,
    /// Bursts for which there was no room.
    full: u64,
    /// It was told.
    told: bool,
}

impl TxWatchdog {
    /// Creates a watchdog that reports a queue once it has been stuck for `patience`.
    pub fn new(patience: Duration) -> Self {
        Self { patience, since: None, packets: 0, full: 0, told: false }
    }

    /// Returns how long the queue of these counters has been stuck, once that is `patience` or more; then `None` until packets are posted again. `link` is
    /// whether the link is up; `now` must not go back between calls.
    pub fn check(&mut self, link: bool, counters: &TxCounters, now: Instant) -> Option<Duration> {
        let (packets, full) = (counters.packets.get(), counters.full.get());
        let moved = std::mem::replace(&mut self.packets, packets) != packets;
        let tried = std::mem::replace(&mut self.full, full) != full;
        if moved || !link {
            (self.since, self.told) = (None, false);
        } else if tried && !self.told {
            let waited = now.saturating_duration_since(*self.since.get_or_insert(now));
            self.told = waited >= self.patience;
            return self.told.then_some(waited);
        }
        None
    }
}

/// A watchdog for each send queue of a port, and how often one was stuck.
#[derive(Debug)]
pub struct TxWatchdogs {
    queues: Vec<TxWatchdog>,
    stalls: u64,
}

impl TxWatchdogs {
    /// Creates watchdogs for `queues` send queues, which report a queue once it has been stuck for `patience`.
    pub fn new(queues: u16, patience: Duration) -> Self {
        Self { queues: (0..queues).map(|_| TxWatchdog::new(patience)).collect(), stalls: 0 }
    }

    /// Tells of the queues that are stuck: `counters` are those of each queue, in order, and `link` is whether the link is up.
    pub fn check(&mut self, link: bool, counters: &[Arc<TxCounters>], tell: &mut dyn FnMut(Event)) {
        let now = Instant::now();
        for (queue, (watchdog, counters)) in (0..).zip(self.queues.iter_mut().zip(counters)) {
            if let Some(waited) = watchdog.check(link, counters, now) {
                self.stalls += 1;
                tell(Event::Stalled { queue, waited });
            }
        }
    }

    /// Returns how many times a queue of the port stood still for longer than the limit, since the port was opened.
    pub fn stalls(&self) -> u64 {
        self.stalls
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_queue_that_stays_full_while_the_link_is_up_is_stuck() {
        let (start, counters) = (Instant::now(), TxCounters::default());
        let mut watchdog = TxWatchdog::new(Duration::from_secs(5));
        let mut check = |link, packets, full, seconds| {
            counters.packets.add(packets - counters.packets.get());
            counters.full.add(full - counters.full.get());
            watchdog.check(link, &counters, start + Duration::from_secs(seconds))
        };
        // It works, is without a link, is left alone after it was full.
        assert_eq!(check(true, 10, 1, 1), None);
        assert_eq!(check(true, 20, 2, 10), None);
        assert_eq!(check(false, 20, 9, 20), None);
        assert_eq!(check(true, 20, 10, 21), None);
        assert_eq!(check(true, 20, 10, 29), None);
        assert_eq!(check(true, 21, 10, 30), None);
        // It is stuck, which is told once.
        assert_eq!(check(true, 21, 11, 31), None);
        assert_eq!(check(true, 21, 12, 35), None);
        assert_eq!(check(true, 21, 13, 36), Some(Duration::from_secs(5)));
        assert_eq!(check(true, 21, 14, 50), None);
        // It goes on, and is stuck again.
        assert_eq!(check(true, 22, 15, 51), None);
        assert_eq!(check(true, 22, 16, 52), None);
        assert_eq!(check(true, 22, 17, 58), Some(Duration::from_secs(6)));
    }
}

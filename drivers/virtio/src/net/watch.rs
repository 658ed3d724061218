//! What the slow path sees of a queue that sends, by its counters alone: packets that the device may have forgotten, and a device that gives none back.

use std::sync::Arc;
use std::time::{Duration, Instant};
use wholebar::bar::Doorbell;
use wholebar::net::TxCounters;

/// Looks after a queue that sends, several times a second.
///
/// It tells the device now and then that there is something to send: one that dropped packets while its link was down may wait for that without having
/// said so (QEMU 10.0, packed rings). A queue that finds itself full does so too, and sooner.
pub(super) struct Watch {
    /// The virtqueue.
    index: u16,
    bell: Doorbell<u16>,
    counters: Arc<TxCounters>,
    /// Packets of which the device was told.
    told: u64,
    stall: Stall,
}

/// Whether a queue is stuck: who has tried to send for long has found no room each time.
struct Stall {
    patience: Duration,
    /// When there was no room first, since packets were posted last.
    since: Option<Instant>,
    packets: u64,
    /// Bursts for which there was no room.
    full: u64,
    /// It was told.
    told: bool,
}

impl Watch {
    pub fn new(index: u16, bell: Doorbell<u16>, counters: Arc<TxCounters>, patience: Duration) -> Self {
        Self { index, bell, counters, told: 0, stall: Stall::new(patience) }
    }

    /// Looks at the queue while the link is up or not; how long it has been stuck, told once each time.
    pub fn look(&mut self, link: bool) -> Option<Duration> {
        let (packets, full, now) = (self.counters.packets.get(), self.counters.full.get(), Instant::now());
        if link && std::mem::replace(&mut self.told, packets) != packets {
            self.bell.ring(self.index);
        }
        self.stall.look(link, packets, full, now)
    }
}

impl Stall {
    fn new(patience: Duration) -> Self {
        Self { patience, since: None, packets: 0, full: 0, told: false }
    }

    /// Nobody can tell a queue without traffic from one that is stuck; but who finds no room has packets, and the device as many.
    fn look(&mut self, link: bool, packets: u64, full: u64, now: Instant) -> Option<Duration> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_queue_that_stays_full_while_the_link_is_up_is_stuck() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut stall = Stall::new(Duration::from_secs(5));
        // It works, is without a link, is left alone after it was full.
        assert_eq!(stall.look(true, 10, 1, at(1)), None);
        assert_eq!(stall.look(true, 20, 2, at(10)), None);
        assert_eq!(stall.look(false, 20, 9, at(20)), None);
        assert_eq!(stall.look(true, 20, 10, at(21)), None);
        assert_eq!(stall.look(true, 20, 10, at(29)), None);
        assert_eq!(stall.look(true, 21, 10, at(30)), None);
        // It is stuck, which is told once.
        assert_eq!(stall.look(true, 21, 11, at(31)), None);
        assert_eq!(stall.look(true, 21, 12, at(35)), None);
        assert_eq!(stall.look(true, 21, 13, at(36)), Some(Duration::from_secs(5)));
        assert_eq!(stall.look(true, 21, 14, at(50)), None);
        // It goes on, and is stuck again.
        assert_eq!(stall.look(true, 22, 15, at(51)), None);
        assert_eq!(stall.look(true, 22, 16, at(52)), None);
        assert_eq!(stall.look(true, 22, 17, at(58)), Some(Duration::from_secs(6)));
    }
}

//! What the slow path sees of a pair of queues, by their counters alone: packets that the device may have forgotten, and a device that gives none back.

use std::sync::Arc;
use std::time::{Duration, Instant};
use wholebar_core::bar::Doorbell;
use wholebar_core::net::{RxCounters, TxCounters};

/// Looks after a pair of queues, several times a second.
///
/// A device may wait for a notification that it never asked for: QEMU's 10.0 does, on packed rings, for what is to be sent where it dropped packets while its
/// link was down; and for buffers to receive into where it spreads packets over queues, and had one for a queue without buffers. So it gets one now and then.
pub(super) struct Watch {
    rx: (Reminder, Arc<RxCounters>),
    tx: (Reminder, Arc<TxCounters>),
    stall: Stall,
}

/// A virtqueue's doorbell, and how many packets it had moved at the last look.
pub(super) struct Reminder {
    index: u16,
    bell: Doorbell<u16>,
    packets: u64,
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

impl Reminder {
    pub fn new(index: u16, bell: Doorbell<u16>) -> Self {
        Self { index, bell, packets: 0 }
    }

    /// Whether it moved some since the last look.
    fn moved(&mut self, packets: u64) -> bool {
        std::mem::replace(&mut self.packets, packets) != packets
    }

    fn remind(&mut self) {
        self.bell.ring(self.index);
    }
}

impl Watch {
    pub fn new(rx: (Reminder, Arc<RxCounters>), tx: (Reminder, Arc<TxCounters>), patience: Duration) -> Self {
        Self { rx, tx, stall: Stall::new(patience) }
    }

    /// Looks at the queues while the link is up or not; how long the one that sends has been stuck, told once each time.
    pub fn check_timeouts(&mut self, link: bool) -> Option<Duration> {
        let ((rx, received), (tx, sent)) = (&mut self.rx, &mut self.tx);
        let (packets, full) = (sent.packets.get(), sent.full.get());
        // Of packets there is something new to be told; buffers may be overlooked as long as none comes back. A queue that finds itself full tells it sooner.
        if link && tx.moved(packets) {
            tx.remind();
        }
        if link && !rx.moved(received.packets.get()) {
            rx.remind();
        }
        self.stall.check_timeouts(link, packets, full, Instant::now())
    }
}

impl Stall {
    fn new(patience: Duration) -> Self {
        Self { patience, since: None, packets: 0, full: 0, told: false }
    }

    /// Nobody can tell a queue without traffic from one that is stuck; but who finds no room has packets, and the device as many.
    fn check_timeouts(&mut self, link: bool, packets: u64, full: u64, now: Instant) -> Option<Duration> {
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
        assert_eq!(stall.check_timeouts(true, 10, 1, at(1)), None);
        assert_eq!(stall.check_timeouts(true, 20, 2, at(10)), None);
        assert_eq!(stall.check_timeouts(false, 20, 9, at(20)), None);
        assert_eq!(stall.check_timeouts(true, 20, 10, at(21)), None);
        assert_eq!(stall.check_timeouts(true, 20, 10, at(29)), None);
        assert_eq!(stall.check_timeouts(true, 21, 10, at(30)), None);
        // It is stuck, which is told once.
        assert_eq!(stall.check_timeouts(true, 21, 11, at(31)), None);
        assert_eq!(stall.check_timeouts(true, 21, 12, at(35)), None);
        assert_eq!(stall.check_timeouts(true, 21, 13, at(36)), Some(Duration::from_secs(5)));
        assert_eq!(stall.check_timeouts(true, 21, 14, at(50)), None);
        // It goes on, and is stuck again.
        assert_eq!(stall.check_timeouts(true, 22, 15, at(51)), None);
        assert_eq!(stall.check_timeouts(true, 22, 16, at(52)), None);
        assert_eq!(stall.check_timeouts(true, 22, 17, at(58)), Some(Duration::from_secs(6)));
    }
}

//! What the slow path sees of a pair of queues, by their counters alone: packets that the device may have forgotten, and a device that gives none back.

use std::sync::Arc;
use std::time::{Duration, Instant};
use wholebar_core::bar::Doorbell;
use wholebar_core::net::{RxCounters, TxCounters, TxWatchdog};

/// Looks after a pair of queues, several times a second.
///
/// A device may wait for a notification that it never asked for: QEMU's 10.0 does, on packed rings, for what is to be sent where it dropped packets while its
/// link was down; and for buffers to receive into where it spreads packets over queues, and had one for a queue without buffers. So it gets one now and then.
pub(super) struct Watch {
    rx: (Reminder, Arc<RxCounters>),
    tx: (Reminder, Arc<TxCounters>),
    watchdog: TxWatchdog,
}

/// A virtqueue's doorbell, and how many packets it had moved at the last look.
pub(super) struct Reminder {
    index: u16,
    bell: Doorbell<u16>,
    packets: u64,
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
        Self { rx, tx, watchdog: TxWatchdog::new(patience) }
    }

    /// Looks at the queues while the link is up or not; how long the one that sends has been stuck, told once each time.
    pub fn check_timeouts(&mut self, link: bool) -> Option<Duration> {
        let ((rx, received), (tx, sent)) = (&mut self.rx, &mut self.tx);
        // Of packets there is something new to be told; buffers may be overlooked as long as none comes back. A queue that finds itself full tells it sooner.
        if link && tx.moved(sent.packets.get()) {
            tx.remind();
        }
        if link && !rx.moved(received.packets.get()) {
            rx.remind();
        }
        self.watchdog.check(link, sent, Instant::now())
    }
}

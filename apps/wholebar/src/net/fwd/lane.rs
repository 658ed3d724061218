//! One queue that receives, one that sends, and what becomes of packets in between. Nothing here allocates, locks or calls the kernel.

use crate::net::run::Lane;
use std::sync::Arc;
use wholebar::Work;
use wholebar::net::{Burst, Count, RxQueue, TxQueue};

/// What a lane counts, besides what its queues do.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counts {
    /// Packets made.
    pub made: Count,
    /// Packets not to be sent on.
    pub kept: Count,
    /// Packets that were still in hand at the end.
    pub left: Count,
}

/// From one queue to another.
pub struct Forward {
    rx: [Box<dyn RxQueue>; 1],
    tx: Box<dyn TxQueue>,
    /// What there was no room for stays, and is sent first.
    burst: Burst,
    counts: Arc<Counts>,
}

impl Forward {
    pub fn new(rx: Box<dyn RxQueue>, tx: Box<dyn TxQueue>, burst: usize, counts: Arc<Counts>) -> Self {
        Self { rx: [rx], tx, burst: Burst::new(burst), counts }
    }
}

impl Lane for Forward {
    fn turn(&mut self) -> Work {
        let came = self.rx[0].rx(&mut self.burst);
        if self.burst.is_empty() {
            self.tx.reclaim();
            return Work::Idle;
        }
        let sent = self.tx.tx(&mut self.burst);
        if came + sent > 0 { Work::Busy } else { Work::Idle }
    }

    fn settle(&mut self) -> bool {
        self.tx.tx(&mut self.burst);
        self.tx.reclaim();
        self.burst.is_empty() && self.tx.in_flight() == 0
    }

    fn receivers(&mut self) -> &mut [Box<dyn RxQueue>] {
        &mut self.rx
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.counts.left.add(self.burst.len() as u64);
    }
}

//! One queue that receives, one that sends, and what becomes of packets in between. Nothing here allocates, locks or calls the kernel.

use super::echo::Host;
use crate::net::run::Lane;
use std::sync::Arc;
use wholebar::Work;
use wholebar::mem::{Buf, PoolCache};
use wholebar::net::{Burst, Count, Mac, RxQueue, TxQueue};

/// What a lane does with packets.
pub enum Job {
    /// Sends them as they came.
    Pass,
    /// Exchanges their Ethernet addresses.
    Swap,
    /// Gives them others: destination and source, as they stand in the packet.
    Address([u8; 12]),
    /// Gives their buffers back.
    Read,
    /// Sends copies of one, and gives back what comes.
    Make(Maker),
    /// Answers them.
    Answer(Host),
}

/// What makes packets.
pub struct Maker {
    /// The packet, every time.
    pub packet: Vec<u8>,
    /// Bytes in front of it.
    pub headroom: u16,
    /// Where buffers come from.
    pub cache: PoolCache,
    /// Packets that are ready.
    pub burst: Burst,
}

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
    job: Job,
    /// What there was no room for stays, and is sent first.
    burst: Burst,
    counts: Arc<Counts>,
}

/// The addresses that `Job::Address` gives.
pub fn addresses(destination: Mac, source: Mac) -> [u8; 12] {
    let mut both = [0; 12];
    both[..6].copy_from_slice(&destination.0);
    both[6..].copy_from_slice(&source.0);
    both
}

impl Forward {
    pub fn new(rx: Box<dyn RxQueue>, tx: Box<dyn TxQueue>, job: Job, burst: usize, counts: Arc<Counts>) -> Self {
        Self { rx: [rx], tx, job, burst: Burst::new(burst), counts }
    }

    /// Deals with what came; what is then in the burst is to be sent.
    #[inline]
    fn deal(&mut self, came: usize) {
        let held = self.burst.len() - came;
        match &mut self.job {
            Job::Pass => {}
            Job::Swap => each(&mut self.burst[held..], |addresses| addresses.rotate_left(6)),
            Job::Address(new) => each(&mut self.burst[held..], |addresses| *addresses = *new),
            Job::Read | Job::Make(_) => {
                self.counts.kept.add(came as u64);
                self.burst.give_back();
            }
            Job::Answer(host) => {
                let mut seen = 0;
                self.burst.retain(|packet| {
                    seen += 1;
                    seen <= held || host.answer(packet.bytes_mut())
                });
                self.counts.kept.add((held + came - self.burst.len()) as u64);
            }
        }
    }
}

/// Does something with the addresses of packets: destination and source.
#[inline]
fn each(packets: &mut [Buf], change: impl Fn(&mut [u8; 12])) {
    for packet in packets {
        if let Some(addresses) = packet.bytes_mut().first_chunk_mut() {
            change(addresses);
        }
    }
}

impl Maker {
    /// Fills the burst; says how many packets that made. None, where the pool has too few buffers.
    #[inline]
    fn make(&mut self) -> usize {
        let before = self.burst.len();
        if !self.burst.fill(&mut self.cache, self.burst.room()) {
            return 0;
        }
        for packet in &mut self.burst[before..] {
            packet.reserve(self.headroom);
            packet.copy_from(&self.packet);
        }
        self.burst.len() - before
    }
}

impl Lane for Forward {
    fn turn(&mut self) -> Work {
        let came = self.rx[0].rx(&mut self.burst);
        if came > 0 {
            self.deal(came);
        }
        let out = match &mut self.job {
            Job::Make(maker) => {
                self.counts.made.add(maker.make() as u64);
                &mut maker.burst
            }
            _ => &mut self.burst,
        };
        if out.is_empty() {
            self.tx.reclaim();
            return if came > 0 { Work::Busy } else { Work::Idle };
        }
        let sent = self.tx.tx(out);
        if came + sent > 0 { Work::Busy } else { Work::Idle }
    }

    fn settle(&mut self) -> bool {
        // Those who send nothing on read what is still on the wire.
        let mut came = 0;
        if let Job::Read | Job::Make(_) = self.job {
            came = self.rx[0].rx(&mut self.burst);
            self.deal(came);
        }
        let out = match &mut self.job {
            Job::Make(maker) => &mut maker.burst,
            _ => &mut self.burst,
        };
        self.tx.tx(out);
        self.tx.reclaim();
        out.is_empty() && self.tx.in_flight() == 0 && came == 0
    }

    fn receivers(&mut self) -> &mut [Box<dyn RxQueue>] {
        match self.job {
            // It always has something to do.
            Job::Make(_) => &mut [],
            _ => &mut self.rx,
        }
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let made = if let Job::Make(maker) = &self.job { maker.burst.len() } else { 0 };
        self.counts.left.add((self.burst.len() + made) as u64);
    }
}

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

/// Buffers that are taken at once.
pub const BATCH: usize = 32;

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
    /// What it sends by, and which port that is.
    tx: Box<dyn TxQueue>,
    to: usize,
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
    pub fn new(
        rx: Box<dyn RxQueue>,
        (to, tx): (usize, Box<dyn TxQueue>),
        job: Job,
        burst: usize,
        counts: Arc<Counts>,
    ) -> Self {
        Self { rx: [rx], tx, to, job, burst: Burst::new(burst), counts }
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
                    let whole = packet.packet_len();
                    seen <= held || host.answer(packet.bytes_mut(), whole)
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
    /// Fills the burst as far as there are buffers; says how many packets that made.
    #[inline]
    fn make(&mut self) -> usize {
        let before = self.burst.len();
        while self.burst.room() > 0 {
            let n = self.burst.room().min(BATCH);
            if !self.burst.fill(&mut self.cache, n) && !self.burst.fill(&mut self.cache, 1) {
                break;
            }
        }
        for packet in &mut self.burst[before..] {
            packet.reserve(self.headroom);
            packet.copy_from(&self.packet);
        }
        self.burst.len() - before
    }
}

impl Lane for Forward {
    fn poll(&mut self) -> Work {
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

    fn unconfirmed(&self) -> Option<(usize, usize)> {
        Some((self.to, self.tx.in_flight()))
    }

    fn receivers(&mut self) -> &mut [Box<dyn RxQueue>] {
        match self.job {
            // It always has something to do.
            Job::Make(_) => &mut [],
            _ => &mut self.rx,
        }
    }

    fn holds(&self) -> bool {
        !self.burst.is_empty()
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let made = if let Job::Make(maker) = &self.job { maker.burst.len() } else { 0 };
        self.counts.left.add((self.burst.len() + made) as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use wholebar::irq::EventFd;
    use wholebar::mem::{Arena, ArenaOptions, Pool};
    use wholebar::net::QueueState;
    use wholebar::reactor::Armed;

    const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const SIZE: usize = 8;

    /// A queue on which the same packet comes, a burst at a time.
    struct Source(PoolCache, Vec<u8>);

    impl RxQueue for Source {
        fn rx(&mut self, out: &mut Burst) -> usize {
            let before = out.len();
            out.fill(&mut self.0, out.room());
            out[before..].iter_mut().for_each(|packet| _ = packet.copy_from(&self.1));
            out.len() - before
        }
        fn state(&self) -> QueueState {
            QueueState::Running
        }
        fn wakeup(&self) -> Option<Arc<EventFd>> {
            None
        }
        fn arm(&mut self) -> Armed {
            Armed::No
        }
        fn disarm(&mut self) {}
    }

    /// A queue that takes so many packets a call, and counts those that begin as they should.
    struct Sink {
        most: usize,
        begins: Vec<u8>,
        right: Arc<Count>,
    }

    impl TxQueue for Sink {
        fn tx(&mut self, packets: &mut Burst) -> usize {
            let taken = packets.take(self.most);
            let right = taken.inspect(|packet| assert!(packet.bytes().starts_with(&self.begins))).count();
            self.right.add(right as u64);
            right
        }
        fn reclaim(&mut self) {}
        fn in_flight(&self) -> usize {
            0
        }
        fn state(&self) -> QueueState {
            QueueState::Running
        }
    }

    /// Each job, where not all there is can be sent at once: each packet is changed once, sent or counted, and nothing is allocated.
    #[test]
    fn packets_are_dealt_with_once_and_nothing_is_allocated() {
        let pool = Pool::new(Arena::new(1 << 20, ArenaOptions::default()).unwrap(), 64, 256, 64).unwrap();
        let station = [2, 0, 0, 0, 0, 9];
        let mut asks = Vec::new();
        let builder = PacketBuilder::ethernet2(station, OWN.0).ipv4([10, 0, 0, 9], [10, 0, 0, 1], 64);
        builder.icmpv4_echo_request(1, 2).write(&mut asks, &[0; 40]).unwrap();
        let both = |a: [u8; 6], b: [u8; 6]| [a, b].concat();
        let maker = || Maker { packet: vec![7; 60], headroom: 128, cache: pool.cache(8), burst: Burst::new(SIZE) };
        let host = Host { mac: OWN, addresses: Vec::new() };
        for (job, begins, sends) in [
            (Job::Pass, both(OWN.0, station), true),
            (Job::Swap, both(station, OWN.0), true),
            (Job::Address(addresses(Mac([4; 6]), Mac([6; 6]))), both([4; 6], [6; 6]), true),
            (Job::Read, Vec::new(), false),
            (Job::Make(maker()), vec![7; 60], true),
            (Job::Answer(host), both(station, OWN.0), true),
        ] {
            let (counts, right) = (Arc::new(Counts::default()), Arc::new(Count::default()));
            let sink = Sink { most: 3, begins, right: right.clone() };
            let source = Source(pool.cache(8), asks.clone());
            let mut lane = Forward::new(Box::new(source), (0, Box::new(sink)), job, SIZE, counts.clone());
            lane.poll();
            let allocated = allocation_counter::measure(|| (0..100).for_each(|_| _ = lane.poll())).count_total;
            assert_eq!(allocated, 0);
            // Each turn sends three, and makes, keeps or takes as many as there is room for.
            assert_eq!(right.get(), if sends { 303 } else { 0 });
            assert!(lane.receivers().len() == 1 || counts.made.get() == 303 + 5);
            drop(lane);
            let left = if sends { 5 } else { 0 };
            assert_eq!(counts.left.get(), left);
        }
        assert_eq!(pool.available(), pool.capacity());
    }
}

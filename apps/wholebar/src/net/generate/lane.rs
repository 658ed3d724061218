//! A queue that sends, and where its packets come from: they are made, or are a capture's. Nothing here allocates, locks or calls the kernel.

use crate::net::capture::Capture;
use crate::net::port::HEADROOM;
use crate::net::run::Lane;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use wholebar::Work;
use wholebar::measure::net::generator::{Generator, fill};
use wholebar::measure::net::mark::Clock;
use wholebar::measure::net::rate::RateLimiter;
use wholebar::measure::net::sizes::FCS;
use wholebar::mem::{Buf, PoolCache};
use wholebar::net::{Burst, Count, RxQueue, TxQueue};

/// What a lane counts, for all to see.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Made {
    /// Packets that were made and taken by the queue.
    pub packets: Count,
    /// Their bytes, without frame checksums.
    pub bytes: Count,
    /// How often there was no buffer for one.
    pub no_buffer: Count,
    /// How far the rate was not reached, in nanoseconds.
    pub behind: Count,
    /// Packets that were made and that the queue did not take any more.
    pub left: Count,
    /// All that was to be sent was.
    done: AtomicBool,
    /// Nothing is under way any more.
    settled: AtomicBool,
}

impl Made {
    /// Whether all that was to be sent was given to the queue.
    pub fn is_done(&self) -> bool {
        // Relaxed: it orders nothing; so below.
        self.done.load(Ordering::Relaxed)
    }

    /// Whether nothing more comes.
    pub fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Relaxed)
    }
}

/// The lane.
pub struct Sender {
    tx: Box<dyn TxQueue>,
    cache: PoolCache,
    /// What there was no room for stays, and is sent first.
    burst: Burst,
    source: Source,
    /// How many packets are still to be made.
    left: u64,
    clock: Clock,
    started: bool,
    made: Arc<Made>,
}

/// Where packets come from.
pub enum Source {
    /// They are made.
    Flows(Box<Generator>),
    /// They are a capture's.
    Replay(Replay),
}

/// Packets of a capture.
pub struct Replay {
    pub capture: Arc<Capture>,
    pub timing: Timing,
    /// The next one.
    pub next: usize,
    /// How much later than in the capture it is sent, in nanoseconds, because of laps before.
    pub lap: u64,
}

/// When packets of a capture are sent.
pub enum Timing {
    /// At a rate.
    Rate(RateLimiter),
    /// As they were, so many times as fast, from this time on.
    Original { speed: f64, began: u64 },
}

impl Sender {
    pub fn new(
        tx: Box<dyn TxQueue>,
        cache: PoolCache,
        burst: usize,
        source: Source,
        count: u64,
        clock: Clock,
        made: Arc<Made>,
    ) -> Self {
        Self { tx, cache, burst: Burst::new(burst), source, left: count, clock, started: false, made }
    }

    /// Makes the packets that are due, as far as there is room in the burst.
    #[inline]
    fn fill(&mut self, now: u64) {
        self.source.advance(now, &self.made);
        while self.burst.room() > 0 && self.left > 0 && self.source.is_due(now) {
            let Some(packet) = self.source.make(&mut self.cache, now) else {
                self.made.no_buffer.add(1);
                break;
            };
            self.left -= 1;
            // There is room.
            let _ = self.burst.push(packet);
        }
    }

    /// Gives the queue what it takes; says how many packets that were.
    #[inline]
    fn send(&mut self) -> usize {
        if self.burst.is_empty() {
            return 0;
        }
        let before: u64 = self.burst.iter().map(Buf::packet_len).sum();
        let sent = self.tx.tx(&mut self.burst);
        let after: u64 = self.burst.iter().map(Buf::packet_len).sum();
        self.made.packets.add(sent as u64);
        self.made.bytes.add(before - after);
        sent
    }
}

impl Lane for Sender {
    fn poll(&mut self) -> Work {
        let now = self.clock.now();
        if !self.started {
            self.started = true;
            self.source.start(now);
        }
        if self.burst.is_empty() {
            self.fill(now);
        }
        if self.send() > 0 {
            return Work::Busy;
        }
        if self.left == 0 && self.burst.is_empty() {
            self.made.done.store(true, Ordering::Relaxed);
        }
        self.tx.reclaim();
        Work::Idle
    }

    fn settle(&mut self) -> bool {
        self.send();
        self.tx.reclaim();
        let quiet = self.burst.is_empty() && self.tx.in_flight() == 0;
        if quiet {
            self.made.settled.store(true, Ordering::Relaxed);
        }
        quiet
    }

    fn unconfirmed(&self) -> Option<(usize, usize)> {
        // The first of the command's ports is the one that sends.
        Some((0, self.tx.in_flight()))
    }

    fn receivers(&mut self) -> &mut [Box<dyn RxQueue>] {
        &mut []
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.made.left.add(self.burst.len() as u64);
    }
}

impl Source {
    /// Time begins.
    fn start(&mut self, now: u64) {
        match self {
            Self::Flows(generator) => generator.start(now),
            Self::Replay(Replay { timing: Timing::Rate(limiter), .. }) => limiter.start(now),
            Self::Replay(Replay { timing: Timing::Original { began, .. }, .. }) => *began = now,
        }
    }

    #[inline]
    fn advance(&mut self, now: u64, made: &Made) {
        match self {
            Self::Flows(generator) => made.behind.add(generator.advance(now)),
            Self::Replay(Replay { timing: Timing::Rate(limiter), .. }) => made.behind.add(limiter.advance(now)),
            Self::Replay(Replay { timing: Timing::Original { .. }, .. }) => {}
        }
    }

    /// Whether a packet is due.
    #[inline]
    fn is_due(&self, now: u64) -> bool {
        match self {
            Self::Flows(generator) => generator.is_due(now),
            Self::Replay(Replay { timing: Timing::Rate(limiter), .. }) => limiter.is_due(now),
            Self::Replay(replay @ Replay { timing: Timing::Original { speed, began }, .. }) => {
                let (at, _) = replay.capture.packet(replay.next);
                now.saturating_sub(*began) as f64 * speed >= (at + replay.lap) as f64
            }
        }
    }

    /// The next packet; none where there is no buffer for it.
    #[inline]
    fn make(&mut self, cache: &mut PoolCache, now: u64) -> Option<Buf> {
        match self {
            Self::Flows(generator) => generator.make(cache, HEADROOM, now),
            Self::Replay(replay) => replay.make(cache),
        }
    }
}

impl Replay {
    #[inline]
    fn make(&mut self, cache: &mut PoolCache) -> Option<Buf> {
        let (_, bytes) = self.capture.packet(self.next);
        let mut buf = cache.get()?;
        buf.reserve(HEADROOM);
        let buf = fill(buf, cache, bytes)?;
        if let Timing::Rate(limiter) = &mut self.timing {
            limiter.sent(bytes.len() + FCS);
        }
        self.next += 1;
        if self.next == self.capture.count() {
            self.next = 0;
            self.lap += self.capture.lap();
        }
        Some(buf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::port::{self, PortArgs};
    use crate::net::sink::lane::{Expected, Receiver, Seen};
    use clap::Parser;
    use wholebar::measure::net::rate::Rate;
    use wholebar::measure::net::sizes::{FrameSizes, Sizes};
    use wholebar::measure::net::template::{Headers, Template};

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        ports: PortArgs,
    }

    /// Packets from a lane to one that looks at them: once both run, nothing is allocated, of whatever size packets are.
    #[test]
    fn lanes_allocate_nothing() {
        let end = "sim:virtio-net,wire=pair:lanes,full=wait,mtu=9000".to_owned();
        for flags in ["--mtu 9000", "--mtu 9000 --buffer 1024 --offloads scatter,checksum"] {
            let args = Cli::parse_from(["test"].into_iter().chain(flags.split(' '))).ports;
            let ports = port::open(&[end.clone(), end.clone()], &args, crate::net::idle::Idle::Poll, &[]).unwrap();
            port::wait_for_links(&ports, &AtomicBool::new(false));
            let [from, to] = [&ports[0], &ports[1]];
            let headers = Headers { from: from.port.mac(), to: to.port.mac(), vlan: None, v6: false };
            let template = Arc::new(Template::new(&headers, 3, 1).unwrap());
            let sizes = FrameSizes::new(Sizes::Range(64, 9018), 1);
            let generator = Generator::new(template, sizes, RateLimiter::new(Rate::Max, 1), 9, 0..3).unwrap();
            let source = Source::Flows(Box::new(generator));
            let counter = quanta::Clock::new();
            let (made, seen) = (Arc::new(Made::default()), Arc::new(Seen::default()));
            let (cache, clock) = (from.pool.cache(32), Clock::new(&counter));
            let mut sender = Sender::new(from.tx(0).unwrap(), cache, 32, source, 20_000, clock, made.clone());
            let rx = vec![to.rx(0).unwrap()];
            let expected = Expected::Marks(Some(9));
            let mut receiver = Receiver::new(rx, to.pool.cache(32), 32, expected, Clock::new(&counter), seen.clone());
            let mut go = |until: u64| {
                let began = std::time::Instant::now();
                while seen.packets.get() < until && began.elapsed().as_secs() < 60 {
                    sender.poll();
                    if receiver.poll() == Work::Idle {
                        std::thread::yield_now();
                    }
                }
            };
            go(1000);
            let allocated = allocation_counter::measure(|| go(20_000));
            assert_eq!((seen.packets.get(), made.packets.get(), allocated.count_total), (20_000, 20_000, 0), "{flags}");
            drop((sender, receiver));
            let found = seen.take().unwrap();
            assert_eq!(
                (found.arrivals.received, found.missing, found.corrupt, found.flows),
                (20_000, 0, 0, 3),
                "{flags}"
            );
            assert!(port::close(ports).iter().all(|pool| pool.made == pool.home));
        }
    }
}

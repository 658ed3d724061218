//! Queues that receive, and what is found out about each packet. Nothing here allocates, locks or calls the kernel, unless packets are
//! written to a file.

use super::book::{Book, Tally};
use super::packet::{Looks, look};
use crate::net::capture::Capture;
use crate::net::generate::Made;
use crate::net::mark::{Clock, Mark, Pattern};
use crate::net::run::Lane;
use crate::net::tap::Tap;
use crate::work;
use hdrhistogram::Histogram;
use std::sync::{Arc, Mutex};
use wholebar::Work;
use wholebar::mem::{Buf, PoolCache};
use wholebar::net::{Burst, Count, RxQueue};

/// What is known so far, and, once the lane was dropped, everything.
#[derive(Default)]
pub struct Seen {
    /// Packets of any kind.
    pub packets: Count,
    /// Packets that count as arrived: each once.
    pub received: Count,
    found: Mutex<Option<Findings>>,
}

/// What was found out.
pub struct Findings {
    /// By numbers; where a capture was replayed, received are those that were as they should be.
    pub tally: Tally,
    /// Bytes of all of them, without frame checksums.
    pub bytes: u64,
    /// Numbers below the highest of their flow that never came.
    pub missing: u64,
    /// Flows of which something came.
    pub flows: usize,
    /// Packets of `gen`'s that were damaged; of a replay, those that are not what was to come.
    pub corrupt: u64,
    /// Packets that are not `gen`'s.
    pub foreign: u64,
    /// Packets of another run of `gen`.
    pub other_runs: u64,
    /// How long packets took, in nanoseconds.
    pub latency: Histogram<u64>,
    /// Packets that were sent later than they came: the clocks are not the same.
    pub from_the_future: u64,
    /// From the first packet to the last, in nanoseconds.
    pub span: u64,
}

impl Seen {
    /// Everything, from a lane that was dropped.
    pub fn take(&self) -> Option<Findings> {
        self.found.lock().unwrap_or_else(|e| e.into_inner()).take()
    }
}

/// What packets are expected.
pub enum Expected {
    /// Those with marks: of this run, or of the first that comes.
    Marks(Option<u8>),
    /// Those of a capture, in its order.
    Replay(Arc<Capture>),
}

/// The lane.
pub struct Receiver {
    rx: Vec<Box<dyn RxQueue>>,
    cache: PoolCache,
    burst: Burst,
    checks: Checks,
    clock: Clock,
    tap: Option<Tap>,
    /// Who sends, where that is this process.
    senders: Vec<Arc<Made>>,
    /// How many packets others have counted as lost.
    lost: Lost,
    seen: Arc<Seen>,
    /// When a packet came last, and, in the end, when one was looked for.
    last: u64,
    settling: bool,
    /// How long, in the end, none has come.
    waited: u64,
}

impl Receiver {
    pub fn new(
        rx: Vec<Box<dyn RxQueue>>,
        cache: PoolCache,
        burst: usize,
        expected: Expected,
        clock: Clock,
        seen: Arc<Seen>,
    ) -> Self {
        let (burst, checks) = (Burst::new(burst), Checks::new(expected));
        Self {
            rx,
            cache,
            burst,
            checks,
            clock,
            tap: None,
            senders: Vec::new(),
            lost: Box::new(|| 0),
            seen,
            last: 0,
            settling: false,
            waited: 0,
        }
    }

    /// Has it write what comes to a file.
    #[must_use]
    pub fn tapped(mut self, tap: Option<Tap>) -> Self {
        self.tap = tap;
        self
    }

    /// Has it wait, in the end, for what these sent, but for what `lost` says was.
    #[must_use]
    pub fn after(mut self, senders: Vec<Arc<Made>>, lost: impl Fn() -> u64 + Send + 'static) -> Self {
        (self.senders, self.lost) = (senders, Box::new(lost));
        self
    }

    /// Takes a burst off each queue; says how many packets that were.
    fn receive(&mut self) -> usize {
        let mut came = 0;
        for rx in &mut self.rx {
            let n = rx.rx(&mut self.burst);
            if n == 0 {
                continue;
            }
            came += n;
            self.last = self.clock.now();
            if let Some(tap) = &mut self.tap {
                tap.write(&self.burst);
            }
            let before = self.checks.found.tally.received;
            for packet in self.burst.iter() {
                self.checks.look(packet, self.last);
            }
            self.seen.packets.add(n as u64);
            self.seen.received.add(self.checks.found.tally.received - before);
            self.burst.give_back_to(&mut self.cache);
        }
        if came == 0
            && let Some(tap) = &mut self.tap
        {
            tap.idle();
        }
        came
    }
}

/// How many packets were counted as lost.
type Lost = Box<dyn Fn() -> u64 + Send>;

/// How long packets that were sent are waited for, after the last that came, in nanoseconds: where nobody knows what became of them, where all that don't
/// come were counted as lost, and where all have come, for more than there should be. Who has them may be kept from its core for long.
const PATIENCE: u64 = 5_000_000_000;
const COUNTED: u64 = 500_000_000;
const MORE: u64 = 2_000_000;
/// What counts of the time from one look to the next: where this thread had no core for longer, the device had none either, maybe.
const LULL: u64 = 1_000_000;

impl Lane for Receiver {
    fn poll(&mut self) -> Work {
        if self.receive() > 0 { Work::Busy } else { Work::Idle }
    }

    fn settle(&mut self) -> bool {
        if self.receive() > 0 {
            self.waited = 0;
            return false;
        }
        if self.senders.is_empty() {
            return true;
        }
        let sent: u64 = self.senders.iter().map(|made| made.packets.get()).sum();
        let now = self.clock.now();
        let since = now.saturating_sub(std::mem::replace(&mut self.last, now));
        if !std::mem::replace(&mut self.settling, true) || !self.senders.iter().all(|made| made.is_settled()) {
            // They may still send.
            return false;
        }
        self.waited += since.min(LULL);
        let came = self.seen.received.get();
        match self.waited {
            0..MORE => false,
            _ if came >= sent => true,
            MORE..COUNTED => false,
            // Looking at counters takes time, but nothing else is to be done any more.
            COUNTED..PATIENCE => came + self.checks.found.corrupt + (self.lost)() >= sent,
            _ => true,
        }
    }

    fn receivers(&mut self) -> &mut [Box<dyn RxQueue>] {
        &mut self.rx
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let found = self.checks.finish();
        *self.seen.found.lock().unwrap_or_else(|e| e.into_inner()) = Some(found);
    }
}

/// Everything that is found out about packets.
struct Checks {
    expected: Expected,
    pattern: Pattern,
    book: Book,
    found: Findings,
    /// An age, and how many packets in a row had it: those that are sent and received together do.
    ages: (u64, u64),
    first: Option<u64>,
    /// Of a replay: the number of the packet that should be next.
    next: u64,
}

impl Checks {
    fn new(expected: Expected) -> Self {
        let found = Findings {
            tally: Tally::default(),
            bytes: 0,
            missing: 0,
            flows: 0,
            corrupt: 0,
            foreign: 0,
            other_runs: 0,
            latency: work::empty(),
            from_the_future: 0,
            span: 0,
        };
        Self { expected, pattern: Pattern::new(), book: Book::new(), found, ages: (0, 0), first: None, next: 0 }
    }

    #[inline]
    fn look(&mut self, packet: &Buf, now: u64) {
        self.found.bytes += packet.packet_len();
        self.found.span = now - *self.first.get_or_insert(now);
        if let Expected::Replay(capture) = &self.expected {
            return match matches(capture, self.next, packet) {
                Some(skipped) => {
                    self.found.tally.received += 1;
                    self.found.missing += skipped;
                    self.next += skipped + 1;
                }
                None => self.found.corrupt += 1,
            };
        }
        match look(packet, &self.pattern) {
            Looks::Good(mark) => self.good(mark, now),
            Looks::Corrupt => self.found.corrupt += 1,
            Looks::Foreign => self.found.foreign += 1,
        }
    }

    #[inline]
    fn good(&mut self, mark: Mark, now: u64) {
        let Expected::Marks(run) = &mut self.expected else { return };
        if *run.get_or_insert(mark.run) != mark.run {
            self.found.other_runs += 1;
            return;
        }
        self.book.enter(mark);
        self.found.tally = self.book.tally();
        match mark.age(now) {
            Some(age) => {
                if age != self.ages.0 {
                    self.settle_ages();
                    self.ages.0 = age;
                }
                self.ages.1 += 1;
            }
            None => self.found.from_the_future += 1,
        }
    }

    fn settle_ages(&mut self) {
        if self.ages.1 > 0 {
            self.found.latency.saturating_record_n(self.ages.0, self.ages.1);
            self.ages.1 = 0;
        }
    }

    fn finish(&mut self) -> Findings {
        self.settle_ages();
        if let Expected::Marks(_) = self.expected {
            self.found.missing = self.book.missing();
            self.found.flows = self.book.flows();
        }
        std::mem::replace(&mut self.found, Self::new(Expected::Marks(None)).found)
    }
}

/// How far ahead in a capture a packet is looked for.
const AHEAD: u64 = 1024;

/// Whether a packet is the capture's packet `next`, or one of those behind it: how many are skipped for that.
#[inline]
fn matches(capture: &Capture, next: u64, packet: &Buf) -> Option<u64> {
    let is = |skip: &u64| {
        let (_, bytes) = capture.packet(((next + skip) % capture.count() as u64) as usize);
        packet.packet_len() == bytes.len() as u64 && equals(packet, bytes)
    };
    (0..AHEAD).find(is)
}

fn equals(packet: &Buf, mut bytes: &[u8]) -> bool {
    for segment in packet.segments() {
        let Some((here, rest)) = bytes.split_at_checked(segment.bytes().len()) else { return false };
        if segment.bytes() != here {
            return false;
        }
        bytes = rest;
    }
    bytes.is_empty()
}

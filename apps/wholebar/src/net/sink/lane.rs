//! Queues that receive, and what is found out about each packet. Nothing here allocates, locks or calls the kernel, unless packets are
//! written to a file.

use crate::net::capture::Capture;
use crate::net::run::Lane;
use crate::net::tap::Tap;
use std::sync::{Arc, Mutex};
use wholebar::Work;
use wholebar::measure::net::accounting::{Accounting, Findings};
use wholebar::measure::net::mark::Clock;
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
    /// How many packets were sent, where this process sends them: once no more come.
    sent: Option<Sent>,
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
            sent: None,
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

    /// Has it wait, in the end, for what was sent, but for what `lost` says was. `sent` counts that, and says so once no more is sent.
    #[must_use]
    pub fn after(
        mut self,
        sent: impl Fn() -> Option<u64> + Send + 'static,
        lost: impl Fn() -> u64 + Send + 'static,
    ) -> Self {
        self.sent = Some(Box::new(sent));
        self.lost = Box::new(lost);
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
            let before = self.checks.received();
            for packet in self.burst.iter() {
                self.checks.record(packet, self.last);
            }
            self.seen.packets.add(n as u64);
            self.seen.received.add(self.checks.received() - before);
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
type Sent = Box<dyn Fn() -> Option<u64> + Send>;
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
        let Some(sent) = self.sent.as_ref().map(|sent| sent()) else { return true };
        let now = self.clock.now();
        let since = now.saturating_sub(std::mem::replace(&mut self.last, now));
        let (true, Some(sent)) = (std::mem::replace(&mut self.settling, true), sent) else { return false };
        self.waited += since.min(LULL);
        let came = self.seen.received.get();
        match self.waited {
            0..MORE => false,
            _ if came >= sent => true,
            MORE..COUNTED => false,
            // Looking at counters takes time, but nothing else is to be done any more.
            COUNTED..PATIENCE => came + self.checks.corrupt() + (self.lost)() >= sent,
            _ => true,
        }
    }

    fn receivers(&mut self) -> &mut [Box<dyn RxQueue>] {
        &mut self.rx
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let found = self.checks.findings();
        *self.seen.found.lock().unwrap_or_else(|e| e.into_inner()) = Some(found);
    }
}

/// What is found out about packets.
enum Checks {
    /// By their marks.
    Marks(Box<Accounting>),
    /// Against a capture.
    Replay(Box<Replayed>),
}

/// Packets of a capture, received in its order.
struct Replayed {
    capture: Arc<Capture>,
    /// The number of the packet that should be next.
    next: u64,
    first: Option<u64>,
    found: Findings,
}

impl Checks {
    fn new(expected: Expected) -> Self {
        match expected {
            Expected::Marks(run) => Self::Marks(Box::new(Accounting::new(run))),
            Expected::Replay(capture) => {
                Self::Replay(Box::new(Replayed { capture, next: 0, first: None, found: Findings::default() }))
            }
        }
    }

    #[inline]
    fn record(&mut self, packet: &Buf, now: u64) {
        match self {
            Self::Marks(accounting) => accounting.record(packet, now),
            Self::Replay(replayed) => replayed.record(packet, now),
        }
    }

    #[inline]
    fn received(&self) -> u64 {
        match self {
            Self::Marks(accounting) => accounting.received(),
            Self::Replay(replayed) => replayed.found.arrivals.received,
        }
    }

    fn corrupt(&self) -> u64 {
        match self {
            Self::Marks(accounting) => accounting.corrupt(),
            Self::Replay(replayed) => replayed.found.corrupt,
        }
    }

    fn findings(&self) -> Findings {
        match self {
            Self::Marks(accounting) => accounting.findings(),
            Self::Replay(replayed) => replayed.found.clone(),
        }
    }
}

impl Replayed {
    #[inline]
    fn record(&mut self, packet: &Buf, now: u64) {
        self.found.bytes += packet.packet_len();
        self.found.span = now - *self.first.get_or_insert(now);
        match matches(&self.capture, self.next, packet) {
            Some(skipped) => {
                self.found.arrivals.received += 1;
                self.found.missing += skipped;
                self.next += skipped + 1;
            }
            // Not what was to come.
            None => self.found.corrupt += 1,
        }
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

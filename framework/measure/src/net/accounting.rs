//! What became of packets, in all: each that is received is checked, and entered into the ledger of its flow.
//!
//! ```
//! use wholebar::mem::{Arena, ArenaOptions, Pool};
//! use wholebar_measure::net::accounting::Accounting;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let pool = Pool::new(Arena::new(1 << 16, ArenaOptions::default())?, 8, 2048, 64)?;
//! let mut arp = pool.get().ok_or("no buffer is left")?;
//! arp.copy_from(&[0xff; 60]);
//! let mut accounting = Accounting::new(None);
//! accounting.record(&arp, 0);
//! let found = accounting.findings();
//! assert_eq!((found.arrivals.received, found.foreign, found.bytes), (0, 1, 60));
//! # Ok(()) }
//! ```

use super::ledger::{Arrivals, Ledger};
use super::mark::{Mark, Pattern};
use super::packet::{Verdict, check};
use crate::latency::histogram;
use hdrhistogram::Histogram;
use wholebar_core::mem::Buf;

/// What was found out.
#[derive(Debug, Clone)]
pub struct Findings {
    /// Packets with marks, by their numbers.
    pub arrivals: Arrivals,
    /// Bytes of all packets, without frame check sequences.
    pub bytes: u64,
    /// Numbers below the highest of their flow that never came.
    pub missing: u64,
    /// Flows of which something came.
    pub flows: usize,
    /// Packets that were damaged.
    pub corrupt: u64,
    /// Packets without marks.
    pub foreign: u64,
    /// Packets of another run of the sender.
    pub other_runs: u64,
    /// How long packets took, in nanoseconds.
    pub latency: Histogram<u64>,
    /// Packets that were sent later than they came: the clocks are not the same.
    pub from_the_future: u64,
    /// From the first packet to the last, in nanoseconds.
    pub span: u64,
}

impl Default for Findings {
    fn default() -> Self {
        Self {
            arrivals: Arrivals::default(),
            bytes: 0,
            missing: 0,
            flows: 0,
            corrupt: 0,
            foreign: 0,
            other_runs: 0,
            latency: histogram(),
            from_the_future: 0,
            span: 0,
        }
    }
}

/// The accounting of one receiver. It allocates when it is made, and when it is asked for its [`findings`](Self::findings).
pub struct Accounting {
    run: Option<u8>,
    pattern: Pattern,
    ledger: Ledger,
    found: Findings,
    /// An age, and how many packets in a row had it: those that are sent and received together do.
    ages: (u64, u64),
    first: Option<u64>,
}

impl Accounting {
    /// Of a run of the sender, by the number in its marks; or else of the first that comes. Packets of others are counted apart.
    pub fn new(run: Option<u8>) -> Self {
        Self {
            run,
            pattern: Pattern::new(),
            ledger: Ledger::new(),
            found: Findings::default(),
            ages: (0, 0),
            first: None,
        }
    }

    /// A packet came, at `now` nanoseconds of a [`Clock`](super::mark::Clock). It costs a [`check`] and an entry of the ledger.
    #[inline]
    pub fn record(&mut self, packet: &Buf, now: u64) {
        self.found.bytes += packet.packet_len();
        self.found.span = now.saturating_sub(*self.first.get_or_insert(now));
        match check(packet, &self.pattern) {
            Verdict::Good(mark) => self.good(mark, now),
            Verdict::Corrupt => self.found.corrupt += 1,
            Verdict::Foreign => self.found.foreign += 1,
        }
    }

    #[inline]
    fn good(&mut self, mark: Mark, now: u64) {
        if *self.run.get_or_insert(mark.run) != mark.run {
            self.found.other_runs += 1;
            return;
        }
        self.ledger.record(mark);
        match mark.age(now) {
            Some(age) => {
                if age != self.ages.0 {
                    enter(&mut self.found.latency, self.ages);
                    self.ages = (age, 0);
                }
                self.ages.1 += 1;
            }
            None => self.found.from_the_future += 1,
        }
    }

    /// Packets that came until now and count as arrived: each once.
    #[inline]
    pub fn received(&self) -> u64 {
        self.ledger.arrivals().received
    }

    /// Packets that came until now and were damaged.
    #[inline]
    pub fn corrupt(&self) -> u64 {
        self.found.corrupt
    }

    /// What was found out until now. It copies a histogram, and goes through all flows.
    pub fn findings(&self) -> Findings {
        let mut found = Findings {
            arrivals: self.ledger.arrivals(),
            missing: self.ledger.missing(),
            flows: self.ledger.flows(),
            ..self.found.clone()
        };
        enter(&mut found.latency, self.ages);
        found
    }
}

fn enter(latency: &mut Histogram<u64>, (age, times): (u64, u64)) {
    if times > 0 {
        latency.saturating_record_n(age, times);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::template::{Headers, Template};
    use wholebar_core::mem::{Arena, ArenaOptions, Pool};
    use wholebar_core::net::Mac;

    #[test]
    fn each_packet_is_counted_as_what_it_is() {
        let pool = Pool::new(Arena::new(1 << 16, ArenaOptions::default()).unwrap(), 8, 2048, 64).unwrap();
        let headers = Headers { from: Mac([2; 6]), to: Mac([4; 6]), vlan: None, v6: false };
        let template = Template::new(&headers, 2, 1).unwrap();
        let packet = |mark: Mark| {
            let mut buf = pool.get().unwrap();
            buf.set_len(100);
            template.write(buf.bytes_mut(), mark);
            buf
        };
        let mark = Mark { run: 1, flow: 0, number: 0, sent: 1000 };
        let mut accounting = Accounting::new(None);
        accounting.record(&packet(mark), 1500);
        accounting.record(&packet(Mark { flow: 1, number: 3, ..mark }), 1500);
        accounting.record(&packet(Mark { run: 2, ..mark }), 1600);
        let mut damaged = packet(Mark { number: 1, ..mark });
        damaged.bytes_mut()[99] ^= 1;
        accounting.record(&damaged, 1700);
        accounting.record(&packet(Mark { number: 2, sent: 1_000_000, ..mark }), 1800);
        let found = accounting.findings();
        assert_eq!((found.arrivals.received, accounting.received(), found.flows), (3, 3, 2));
        // Of the first flow the one that was damaged, of the second one three.
        assert_eq!((found.missing, found.corrupt, accounting.corrupt(), found.other_runs), (4, 1, 1, 1));
        assert_eq!((found.latency.len(), found.latency.min(), found.from_the_future), (2, 500, 1));
        assert_eq!((found.bytes, found.span, found.foreign), (500, 300, 0));
        assert_eq!(accounting.findings().latency.len(), 2, "asked again, it says the same");
    }
}

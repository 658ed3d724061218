//! What became of packets: by their numbers, flow by flow. It knows of lost, late and duplicate ones (RFC 4737, RFC 5560), and of nothing else:
//! neither packets nor queues.
//!
//! ```
//! use wholebar_measure::net::ledger::{Arrival, Ledger};
//! use wholebar_measure::net::mark::Mark;
//!
//! let mut ledger = Ledger::new();
//! let mut record = |number| ledger.record(Mark { run: 1, flow: 0, number, sent: 0 });
//! assert_eq!([0, 2, 1, 1, 5].map(&mut record), [Arrival::New, Arrival::New, Arrival::Reordered, Arrival::Duplicate, Arrival::New]);
//! assert_eq!((ledger.arrivals().received, ledger.missing()), (4, 2));
//! ```

use super::mark::Mark;

/// Flows there can be: marks have 16 bits for them.
pub const FLOWS: usize = 1 << 16;
/// How far behind the newest of its flow a packet is still known to be late or a duplicate. A power of two.
const WINDOW: u64 = 4096;
const WORDS: usize = (WINDOW / 64) as usize;

/// What was received, of all flows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Arrivals {
    /// Packets, each once.
    pub received: u64,
    /// Of these: packets that came after one with a higher number.
    pub reordered: u64,
    /// By how many numbers one was late, at most.
    pub furthest: u64,
    /// Packets that had come before.
    pub duplicate: u64,
    /// Packets so late that they may have come before: they are not among those received.
    pub too_late: u64,
}

/// The ledger of all flows: which of their numbers have come.
pub struct Ledger {
    flows: Vec<Flow>,
    /// For each flow, one bit a number: whether it has come.
    seen: Vec<u64>,
    arrivals: Arrivals,
}

/// One flow.
#[derive(Debug, Clone, Copy, Default)]
struct Flow {
    /// Above the highest number that has come.
    next: u64,
    received: u64,
}

/// What a packet is, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// The highest so far.
    New,
    /// After one with a higher number.
    Reordered,
    /// Once more.
    Duplicate,
    /// Late, or once more: it is too far behind to say.
    TooLate,
}

impl Ledger {
    /// Returns a ledger of no packets. It reserves 33 MiB of zeros, of which flows use 528 bytes each when they come.
    #[allow(clippy::new_without_default)] // It takes much memory.
    pub fn new() -> Self {
        Self { flows: vec![Flow::default(); FLOWS], seen: vec![0; FLOWS * WORDS], arrivals: Arrivals::default() }
    }

    /// Records that the packet with this mark came, and returns whether it is new, late or a duplicate. It sets one bit, and clears as many as numbers were
    /// left out before it; nothing is allocated.
    #[inline]
    pub fn record(&mut self, mark: Mark) -> Arrival {
        let (index, number) = (usize::from(mark.flow), mark.number);
        let flow = &mut self.flows[index];
        let seen = &mut self.seen[index * WORDS..(index + 1) * WORDS];
        let (word, bit) = ((number % WINDOW / 64) as usize, 1 << (number % 64));
        if number >= flow.next {
            if number > flow.next {
                clear(seen, flow.next, number);
            }
            seen[word] |= bit;
            (flow.next, flow.received) = (number + 1, flow.received + 1);
            self.arrivals.received += 1;
            return Arrival::New;
        }
        let behind = flow.next - 1 - number;
        if behind >= WINDOW {
            self.arrivals.too_late += 1;
            Arrival::TooLate
        } else if seen[word] & bit != 0 {
            self.arrivals.duplicate += 1;
            Arrival::Duplicate
        } else {
            seen[word] |= bit;
            flow.received += 1;
            self.arrivals.received += 1;
            self.arrivals.reordered += 1;
            self.arrivals.furthest = self.arrivals.furthest.max(behind);
            Arrival::Reordered
        }
    }

    /// What came so far.
    pub fn arrivals(&self) -> Arrivals {
        self.arrivals
    }

    /// Numbers below the highest of their flow that have not come.
    pub fn missing(&self) -> u64 {
        self.flows.iter().map(|flow| flow.next - flow.received).sum()
    }

    /// Flows of which something came.
    pub fn flows(&self) -> usize {
        self.flows.iter().filter(|flow| flow.received > 0).count()
    }
}

/// None of the numbers from `from` on, before `to`, has come; nor has `to`.
fn clear(seen: &mut [u64], from: u64, to: u64) {
    if to - from >= WINDOW {
        return seen.fill(0);
    }
    for number in from..=to {
        seen[(number % WINDOW / 64) as usize] &= !(1 << (number % 64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(flow: u16, number: u64) -> Mark {
        Mark { run: 0, flow, number, sent: 0 }
    }

    /// What becomes of these numbers of one flow.
    fn enter(numbers: impl IntoIterator<Item = u64>) -> (Arrivals, u64) {
        let mut ledger = Ledger::new();
        numbers.into_iter().for_each(|n| {
            ledger.record(mark(5, n));
        });
        (ledger.arrivals(), ledger.missing())
    }

    fn tally(received: u64, reordered: u64, furthest: u64, duplicate: u64, too_late: u64) -> Arrivals {
        Arrivals { received, reordered, furthest, duplicate, too_late }
    }

    #[test]
    fn losses_reordering_and_duplicates_are_told_apart() {
        for (numbers, expected, missing) in [
            (vec![], tally(0, 0, 0, 0, 0), 0),
            (vec![0, 1, 2, 3], tally(4, 0, 0, 0, 0), 0),
            (vec![2, 3, 6], tally(3, 0, 0, 0, 0), 4),
            (vec![0, 2, 1, 3], tally(4, 1, 1, 0, 0), 0),
            (vec![3, 2, 1, 0], tally(4, 3, 3, 0, 0), 0),
            (vec![0, 0, 1, 0, 1], tally(2, 0, 0, 3, 0), 0),
            (vec![0, 2, 1, 1, 2], tally(3, 1, 1, 2, 0), 0),
            // The edge of the window.
            (vec![WINDOW, 1, 1], tally(2, 1, WINDOW - 1, 1, 0), WINDOW - 1),
            (vec![WINDOW, 0], tally(1, 0, 0, 0, 1), WINDOW),
            // A gap longer than the window, and one that ends where it began.
            (vec![0, 2 * WINDOW, 2 * WINDOW - 1], tally(3, 1, 1, 0, 0), 2 * WINDOW - 2),
            (vec![0, WINDOW, WINDOW + 1, WINDOW], tally(3, 0, 0, 1, 0), WINDOW - 1),
        ] {
            assert_eq!(enter(numbers.clone()), (expected, missing), "{numbers:?}");
        }
        assert_eq!(enter((0..3 * WINDOW).chain(2 * WINDOW..3 * WINDOW)).0.duplicate, WINDOW);
    }

    #[test]
    fn flows_have_numbers_of_their_own() {
        let mut ledger = Ledger::new();
        for flow in [0, 1, 65_535] {
            assert_eq!(ledger.record(mark(flow, 0)), Arrival::New);
        }
        assert_eq!((ledger.record(mark(1, 2)), ledger.record(mark(1, 1))), (Arrival::New, Arrival::Reordered));
        assert_eq!((ledger.record(mark(0, 0)), ledger.flows(), ledger.missing()), (Arrival::Duplicate, 3, 0));
    }

    /// Against one that remembers everything.
    #[test]
    fn it_agrees_with_one_that_forgets_nothing() {
        let mut chance = fastrand::Rng::with_seed(3);
        let (mut ledger, mut all, mut next, mut expected) =
            (Ledger::new(), std::collections::HashSet::new(), 0, tally(0, 0, 0, 0, 0));
        for _ in 0..200_000 {
            let number = (next + chance.u64(..200)).saturating_sub(150);
            ledger.record(mark(9, number));
            if number >= next {
                next = number + 1;
                expected.received += 1;
            } else if all.contains(&number) {
                expected.duplicate += 1;
            } else {
                expected.received += 1;
                expected.reordered += 1;
                expected.furthest = expected.furthest.max(next - 1 - number);
            }
            all.insert(number);
        }
        assert_eq!((ledger.arrivals(), ledger.missing()), (expected, next - all.len() as u64));
    }
}

//! Fault injection: a queue around a queue that drops, duplicates, truncates, corrupts and reorders packets.
//!
//! Faults are random, from a seed: the same seed and the same packets give the same faults, and each fault is counted. This file does *not* delay
//! packets by time: a packet is delayed by a number of other packets. (Linux: `netem` of `tc`.)

use super::{Burst, QueueState, RxQueue, TxQueue};
use crate::irq::EventFd;
use crate::mem::{Buf, Checked, PoolCache};
use crate::reactor::Armed;
use fastrand::Rng;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The probability of each fault.
///
/// Parsed from and shown as `drop=0.01,reorder=1/50,by=8,seed=7`; each probability is from 0 to 1, and 0 by default.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Faults {
    /// Probability that a packet is dropped.
    pub drop: f64,
    /// Probability that a copy follows a packet.
    pub duplicate: f64,
    /// Probability that one bit of a packet is inverted.
    pub corrupt: f64,
    /// Probability that the end of a packet is cut off. At least one byte is left.
    pub truncate: f64,
    /// Probability that a packet is held back while others pass it. A queue holds back at most 64 packets.
    pub reorder: f64,
    /// The largest number of packets that pass one that is held back: 1 to 4096.
    pub by: u32,
    /// The seed of the random numbers.
    pub seed: u64,
}

impl Default for Faults {
    fn default() -> Self {
        Self { drop: 0.0, duplicate: 0.0, corrupt: 0.0, truncate: 0.0, reorder: 0.0, by: 8, seed: 1 }
    }
}

/// The error of parsing [`Faults`].
///
/// Shown, it says what is wrong and what there is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what}: faults look like drop=0.01,reorder=1/50,by=8,seed=7; there are drop, duplicate, corrupt, truncate and reorder (shares of \
     all packets, from 0 to 1), by (packets that overtake one, 1 to 4096) and seed"
)]
pub struct NotFaults {
    what: String,
}

impl FromStr for Faults {
    type Err = NotFaults;

    fn from_str(text: &str) -> Result<Self, NotFaults> {
        let mut faults = Self::default();
        let mut given = Vec::new();
        for part in text.split(',') {
            let not = |what: &str| NotFaults { what: format!("{part:?} {what}") };
            let (name, value) = part.split_once('=').ok_or_else(|| not("has no value"))?;
            if given.contains(&name) {
                return Err(not("is there for the second time"));
            }
            given.push(name);
            match name {
                "by" => {
                    faults.by = value.parse().ok().filter(|n| (1..=4096).contains(n)).ok_or_else(|| not("is none"))?
                }
                "seed" => faults.seed = value.parse().map_err(|_| not("is no number"))?,
                _ => {
                    let share = match name {
                        "drop" => &mut faults.drop,
                        "duplicate" => &mut faults.duplicate,
                        "corrupt" => &mut faults.corrupt,
                        "truncate" => &mut faults.truncate,
                        "reorder" => &mut faults.reorder,
                        _ => return Err(not("is no fault")),
                    };
                    *share = parse_share(value).ok_or_else(|| not("is no share from 0 to 1"))?;
                }
            }
        }
        Ok(faults)
    }
}

/// `0.01`, `1/100`.
fn parse_share(text: &str) -> Option<f64> {
    let share = match text.split_once('/') {
        Some((n, of)) => n.parse::<u32>().ok()? as f64 / of.parse::<u32>().ok()? as f64,
        None => text.parse().ok()?,
    };
    (0.0..=1.0).contains(&share).then_some(share)
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { drop, duplicate, corrupt, truncate, reorder, by, seed } = self;
        write!(
            f,
            "drop={drop},duplicate={duplicate},corrupt={corrupt},truncate={truncate},reorder={reorder},by={by},seed={seed}"
        )
    }
}

super::counters::counters! {
    /// The counters of a [`Faulty`] queue. The packets that came out are those that went in, less `dropped` and `abandoned`, plus `duplicated`, less
    /// those that are still [held](Faulty::held).
    FaultCounters {
        /// Packets that went in.
        packets,
        /// Packets dropped.
        dropped,
        /// Packets of which a copy followed.
        duplicated,
        /// Packets that were not duplicated because there was no buffer for the copy.
        no_buffers,
        /// Packets of which a bit was inverted.
        corrupted,
        /// Packets truncated.
        truncated,
        /// Packets held back for others to pass.
        reordered,
        /// Packets that were still held when the queue was dropped.
        abandoned,
    }
}

/// Packets that are late, at most.
const LATE: usize = 64;
/// Packets that are worked on at once, at most.
const BURST: usize = 32;
/// A late packet goes on after so many calls that brought no other.
const PATIENCE: u32 = 256;

/// A queue that injects faults into the queue it wraps.
///
/// It costs a random number a packet for each fault whose probability is not 0.
///
/// ```no_run
/// # use wholebar_core as wholebar;
/// use wholebar::net::{Faults, Faulty, Traced};
/// # use wholebar::{mem::Pool, net::Port};
/// # fn example(port: &dyn Port, pool: &Pool) -> Result<(), Box<dyn std::error::Error>> {
///
/// let faults: Faults = "drop=0.01,reorder=0.05,seed=7".parse()?;
/// // Used as any queue; what is lost on the way is in its counters, and not in the trace.
/// let tx = Faulty::new(Traced::new(port.tx_queue(0)?, "tx0"), faults, pool.cache(8));
/// # drop(tx);
/// # Ok(()) }
/// ```
pub struct Faulty<Q> {
    inner: Q,
    work: Work,
    /// Packets that were just received.
    arriving: Burst,
}

/// The part that doesn't know which way packets go.
struct Work {
    faults: Faults,
    chance: Rng,
    copies: PoolCache,
    /// Packets that are to be overtaken, each with how many may still do so.
    late: Vec<(u32, Buf)>,
    /// Packets on their way out.
    ready: Burst,
    waited: u32,
    counters: Arc<FaultCounters>,
}

impl<Q> Faulty<Q> {
    /// Wraps `queue`. Copies of packets are made in buffers of `copies`; where the queue sends, the arena of those buffers must be attached to its device.
    pub fn new(queue: Q, faults: Faults, copies: PoolCache) -> Self {
        let work = Work {
            faults,
            chance: Rng::with_seed(faults.seed),
            copies,
            late: Vec::with_capacity(LATE),
            // All of a burst, each with a copy, and all that was late.
            ready: Burst::new(2 * BURST + LATE),
            waited: 0,
            counters: Arc::default(),
        };
        Self { inner: queue, work, arriving: Burst::new(BURST) }
    }

    /// Returns the counters. Clone the `Arc` to read them from another thread.
    pub fn counters(&self) -> &Arc<FaultCounters> {
        &self.work.counters
    }

    /// Returns how many packets are held back, or wait for room.
    pub fn held(&self) -> usize {
        self.work.held()
    }
}

impl Work {
    fn held(&self) -> usize {
        self.late.len() + self.ready.len()
    }

    /// Takes packets, a burst of them at most, while none are ready.
    fn pass(&mut self, packets: impl Iterator<Item = Buf>) {
        self.waited = 0;
        for packet in packets {
            self.counters.packets.add(1);
            self.pass_one(packet);
        }
    }

    fn pass_one(&mut self, mut packet: Buf) {
        let Self { faults, chance, counters, .. } = self;
        if strikes(chance, faults.drop) {
            return counters.dropped.add(1);
        }
        let len = packet.packet_len();
        if len > 1 && strikes(chance, faults.truncate) {
            counters.truncated.add(1);
            truncate(&mut packet, chance.u64(1..len));
        }
        let len = packet.packet_len();
        if len > 0 && strikes(chance, faults.corrupt) {
            counters.corrupted.add(1);
            flip(&mut packet, chance.u64(0..8 * len));
        }
        let mut copy = None;
        if strikes(chance, faults.duplicate) {
            copy = self.copies.copy(&packet);
            if copy.is_some() { &counters.duplicated } else { &counters.no_buffers }.add(1);
        }
        self.late.iter_mut().for_each(|(left, _)| *left -= 1);
        if self.late.len() < LATE && strikes(chance, faults.reorder) {
            counters.reordered.add(1);
            self.late.push((chance.u32(1..=faults.by.max(1)), packet));
        } else {
            // There is room, here and below.
            let _ = self.ready.push(packet);
        }
        if let Some(copy) = copy {
            let _ = self.ready.push(copy);
        }
        self.release(0);
    }

    /// Late packets go on that no more than `left` others may still overtake.
    fn release(&mut self, left: u32) {
        if self.late.iter().any(|late| late.0 <= left) {
            for (_, packet) in self.late.extract_if(.., |late| late.0 <= left) {
                let _ = self.ready.push(packet);
            }
        }
    }

    /// Nothing came.
    fn wait(&mut self) {
        self.waited += 1;
        if self.waited >= PATIENCE && self.ready.is_empty() {
            self.waited = 0;
            self.release(u32::MAX);
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.counters.abandoned.add(self.held() as u64);
    }
}

fn strikes(chance: &mut Rng, share: f64) -> bool {
    share > 0.0 && chance.f64() < share
}

/// Leaves the first `len` bytes of a packet.
fn truncate(mut buf: &mut Buf, mut len: u64) {
    while len > buf.len().into() {
        len -= u64::from(buf.len());
        match buf.next_mut() {
            Some(next) => buf = next,
            None => return,
        }
    }
    buf.set_len(len as u32);
    drop(buf.take_next());
}

/// Changes a bit of a packet. What a device said of its checksums is not known any more.
fn flip(mut buf: &mut Buf, bit: u64) {
    buf.set_checked(Checked::Unknown, Checked::Unknown);
    let mut at = bit / 8;
    while at >= buf.len().into() {
        at -= u64::from(buf.len());
        match buf.next_mut() {
            Some(next) => buf = next,
            None => return,
        }
    }
    buf.bytes_mut()[at as usize] ^= 1 << (bit % 8);
}

impl<Q: RxQueue> RxQueue for Faulty<Q> {
    fn rx(&mut self, out: &mut Burst) -> usize {
        let Self { inner, work, arriving } = self;
        let had = out.len();
        while out.room() > 0 {
            if work.ready.is_empty() {
                match inner.rx(arriving) {
                    0 => work.wait(),
                    _ => work.pass(arriving.take(BURST)),
                }
            }
            if work.ready.is_empty() {
                break;
            }
            for packet in work.ready.take(out.room()) {
                // There is room.
                let _ = out.push(packet);
            }
        }
        out.len() - had
    }

    fn state(&self) -> QueueState {
        self.inner.state()
    }

    fn wakeup(&self) -> Option<Arc<EventFd>> {
        self.inner.wakeup()
    }

    fn arm(&mut self) -> Armed {
        // Nothing would signal for what is here already.
        if self.held() > 0 { Armed::No } else { self.inner.arm() }
    }

    fn disarm(&mut self) {
        self.inner.disarm();
    }
}

impl<Q: TxQueue> TxQueue for Faulty<Q> {
    fn tx(&mut self, packets: &mut Burst) -> usize {
        let Self { inner, work, .. } = self;
        let had = packets.len();
        if packets.is_empty() {
            work.wait();
        }
        loop {
            if !work.ready.is_empty() {
                inner.tx(&mut work.ready);
            }
            if !work.ready.is_empty() || packets.is_empty() {
                return had - packets.len();
            }
            work.pass(packets.take(BURST));
        }
    }

    fn reclaim(&mut self) {
        self.work.wait();
        if !self.work.ready.is_empty() {
            self.inner.tx(&mut self.work.ready);
        }
        self.inner.reclaim();
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight() + self.held()
    }

    fn state(&self) -> QueueState {
        self.inner.state()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Loop, packets, pool};
    use super::*;

    fn run(faults: &str, count: u64) -> (Vec<Vec<u8>>, Vec<(&'static str, u64)>) {
        let faults: Faults = faults.parse().unwrap();
        let pool = pool(256);
        let mut queue = Faulty::new(Loop::default(), faults, pool.cache(8));
        let counters = queue.counters().clone();
        let (mut out, mut got) = (Burst::new(7), Vec::new());
        for burst in packets(&pool, count, 5) {
            let mut burst = burst;
            while !burst.is_empty() {
                queue.tx(&mut burst);
                // What was sent is received by the same faults once more.
                queue.inner.rx(&mut out);
                got.extend(out.take(7).map(|b| b.bytes().to_vec()));
            }
        }
        let mut quiet = 0;
        while quiet < 2 * PATIENCE {
            queue.reclaim();
            quiet += 1;
            if queue.inner.rx(&mut out) > 0 {
                quiet = 0;
            }
            got.extend(out.take(7).map(|b| b.bytes().to_vec()));
        }
        assert_eq!((queue.held(), queue.in_flight()), (0, 0));
        drop(queue);
        assert_eq!(pool.available(), pool.capacity());
        (got, counters.all().collect())
    }

    fn counted(counters: &[(&'static str, u64)], name: &str) -> u64 {
        counters.iter().find(|(n, _)| *n == name).unwrap().1
    }

    #[test]
    fn what_is_done_is_counted_and_can_be_repeated() {
        let count = if cfg!(miri) { 100 } else { 20_000 };
        let all = "drop=0.05,duplicate=1/20,corrupt=0.05,truncate=0.05,reorder=0.1,by=4,seed=7";
        let (got, counters) = run(all, count);
        let of = |name| counted(&counters, name);
        assert_eq!(of("packets"), count);
        assert_eq!(got.len() as u64, count - of("dropped") + of("duplicated"));
        assert_eq!((of("no_buffers"), of("abandoned")), (0, 0));
        for (name, share) in
            [("dropped", 0.05), ("duplicated", 0.05), ("corrupted", 0.05), ("truncated", 0.05), ("reordered", 0.1)]
        {
            let expected = count as f64 * share;
            assert!((of(name) as f64 - expected).abs() < 0.5 * expected + 10.0, "{name}: {}", of(name));
        }
        assert_eq!(run(all, count), (got.clone(), counters));
        assert_ne!(run(&all.replace("seed=7", "seed=8"), count).0, got);
    }

    #[test]
    fn without_faults_packets_come_as_they_went() {
        let (got, _) = run("seed=1", 100);
        assert!(got.iter().enumerate().all(|(i, p)| p[..8] == (i as u64).to_le_bytes()) && got.len() == 100);
    }

    #[test]
    fn each_fault_is_what_it_says() {
        let same = |a: &[u8], b: &[u8]| a.iter().zip(b).map(|(a, b)| (a ^ b).count_ones()).sum::<u32>();
        let plain = run("seed=1", 40).0;
        assert_eq!(run("drop=1", 40).0.len(), 0);
        let doubled = run("duplicate=1", 40).0;
        assert!(doubled.chunks(2).zip(&plain).all(|(two, p)| two[0] == *p && two[1] == *p) && doubled.len() == 80);
        let changed = run("corrupt=1", 40).0;
        assert!(changed.iter().zip(&plain).all(|(a, b)| a.len() == b.len() && same(a, b) == 1));
        let cut = run("truncate=1", 40).0;
        assert!(cut.iter().zip(&plain).all(|(a, b)| !a.is_empty() && a.len() < b.len() && same(a, b) == 0));
        let number = |p: &Vec<u8>| u64::from_le_bytes(p[..8].try_into().unwrap());
        let late: Vec<_> = run("reorder=0.2,by=3", if cfg!(miri) { 60 } else { 400 }).0.iter().map(number).collect();
        let mut sorted = late.clone();
        sorted.sort_unstable();
        assert!(late != sorted && sorted.iter().enumerate().all(|(i, n)| *n == i as u64));
        // One is overtaken by three others, and moves forward by those that are late themselves.
        for (at, n) in late.iter().enumerate() {
            let overtook = late[..at].iter().filter(|before| *before > n).count();
            assert!(overtook <= 3 + 3, "{overtook} overtook packet {n}");
        }
    }

    #[test]
    fn receiving_does_the_same_and_stays_awake_while_it_holds_packets() {
        let pool = pool(64);
        let mut inner = Loop::default();
        for mut burst in packets(&pool, 40, 8) {
            inner.tx(&mut burst);
        }
        let mut queue = Faulty::new(inner, "reorder=1,by=4096,duplicate=0.5".parse().unwrap(), pool.cache(4));
        let mut out = Burst::new(3);
        let mut came = queue.rx(&mut out);
        assert!(queue.held() > 0 && queue.arm() == Armed::No);
        for _ in 0..2 * PATIENCE {
            out.give_back();
            came += queue.rx(&mut out);
        }
        let duplicated = queue.counters().duplicated.get();
        assert!(duplicated > 0 && came as u64 == 40 + duplicated && queue.held() == 0);
        assert_eq!(queue.arm(), Armed::Yes);
        out.give_back();
        drop(queue);
        assert_eq!(pool.available(), pool.capacity());
    }

    #[test]
    fn what_is_held_when_it_ends_is_counted() {
        let pool = pool(64);
        let mut queue = Faulty::new(Loop::default(), "reorder=1,by=100".parse().unwrap(), pool.cache(4));
        for mut burst in packets(&pool, 10, 10) {
            assert_eq!(queue.tx(&mut burst), 10);
        }
        let counters = queue.counters().clone();
        drop(queue);
        assert_eq!((counters.abandoned.get(), pool.available()), (10, 64));
    }

    #[test]
    fn packets_in_several_buffers_are_cut_and_changed_anywhere() {
        let pool = pool(16);
        for len in 1..200 {
            let (mut packet, mut next) = (pool.get_len(100).unwrap(), pool.get_len(100).unwrap());
            packet.bytes_mut().fill(0);
            next.bytes_mut().fill(0);
            packet.append(next);
            flip(&mut packet, 8 * len);
            truncate(&mut packet, len + 1);
            let bytes: Vec<_> = packet.segments().flat_map(|b| b.bytes().to_vec()).collect();
            assert!(bytes.len() as u64 == len + 1 && bytes.iter().rposition(|b| *b == 1) == Some(len as usize));
        }
    }

    #[test]
    fn faults_are_read_and_written() {
        let faults: Faults = "drop=0.01,reorder=1/50,by=3,seed=18446744073709551615".parse().unwrap();
        assert_eq!(faults, Faults { drop: 0.01, reorder: 0.02, by: 3, seed: u64::MAX, ..Faults::default() });
        assert_eq!(faults.to_string().parse(), Ok(faults));
        for bad in [
            "",
            "drop",
            "drop=",
            "drop=2",
            "drop=-0.1",
            "drop=NaN",
            "drop=1/0",
            "drop=3/2",
            "drops=1",
            "by=0",
            "by=1/2",
            "seed=-1",
            "drop=0,drop=0",
        ] {
            let error = bad.parse::<Faults>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{:?} ", bad.split(',').next_back().unwrap())), "{error}");
        }
    }
}

//! The reset protocol between a device's control plane and its queues, which live on other cores.
//!
//! A device is reset only once no queue touches its rings or doorbells, and a command's buffers come back only once the device can
//! no longer write them:
//!
//! 1. the control plane *stops* the domain: its epoch moves on, and each queue sees that at its next poll or submit,
//!    takes its hands off rings and doorbells, and acknowledges;
//! 2. a queue that did not acknowledge in time is *expelled*: it is never used again, and what it had in flight is quarantined;
//! 3. bus mastering goes off and the device is reset (the driver's business); then the domain is *quiet*, and commands
//!    in flight complete as aborted;
//! 4. rings are zeroed and made known to the device again, and the domain *resumes*: queues start over with empty rings.
//!
//! Unmapping and freeing come last. Where the reset does not work, or the device is gone, the domain *ends* instead.
//!
//! All of this costs a queue one load and one predictable branch per call. This file does *not* know what a ring is, nor how a
//! device is reset.

use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, MutexGuard};
use crossbeam::utils::CachePadded;

/// The control plane's side: one a device.
///
/// A clone is another handle to the same domain. Its changes of phase belong under the one lock that the driver's control plane has.
#[derive(Debug, Clone, Default)]
pub struct Domain(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// The epoch, times four, plus the phase.
    word: CachePadded<AtomicU64>,
    members: Mutex<Vec<Arc<Member>>>,
    end: Mutex<Option<End>>,
    quarantined: AtomicU64,
    /// How many queues had completed something when they were stopped, since somebody asked.
    completed: AtomicU64,
}

#[derive(Debug)]
struct Member {
    id: u32,
    /// The epoch it acknowledged last, or [`EXPELLED`].
    acknowledged: AtomicU64,
}

const EXPELLED: u64 = u64::MAX;

/// Where a device is in a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nowhere: queues run.
    Running,
    /// Queues are taking their hands off.
    Stopping,
    /// The device can't reach memory; what was in flight completes as aborted.
    Quiet,
    /// It ended, for good.
    Ended,
}

/// How a device ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// It is not there any more, rather than failed.
    pub gone: bool,
    /// It certainly cannot write memory, so what was in flight may be given back; else that is quarantined.
    pub harmless: bool,
    /// Why, in a sentence.
    pub why: String,
}

impl Phase {
    fn of(word: u64) -> Self {
        match word & 3 {
            0 => Self::Running,
            1 => Self::Stopping,
            2 => Self::Quiet,
            _ => Self::Ended,
        }
    }
}

impl Domain {
    /// A domain whose queues run.
    pub fn new() -> Self {
        Self::default()
    }

    /// A new queue, known by `id`. It is taken to be in step with the domain as it is now.
    pub fn join(&self, id: u32) -> Gate {
        let mut members = self.0.members();
        let seen = self.0.word.load(Ordering::Acquire);
        let member = Arc::new(Member { id, acknowledged: AtomicU64::new(seen >> 2) });
        members.push(member.clone());
        Gate { shared: self.0.clone(), member, seen, closed: None }
    }

    /// The phase.
    pub fn phase(&self) -> Phase {
        Phase::of(self.0.word.load(Ordering::Acquire))
    }

    /// How often it was stopped.
    pub fn epoch(&self) -> u64 {
        self.0.word.load(Ordering::Acquire) >> 2
    }

    /// Whether queue `id` is still there and takes part.
    pub fn has(&self, id: u32) -> bool {
        self.0.members().iter().any(|m| m.id == id && m.acknowledged.load(Ordering::Relaxed) != EXPELLED)
    }

    /// Running to stopping: asks every queue to take its hands off. Nothing happens in another phase.
    pub fn stop(&self) {
        let word = self.0.word.load(Ordering::Relaxed);
        if Phase::of(word) == Phase::Running {
            self.0.word.store(((word >> 2) + 1) << 2 | 1, Ordering::Release);
        }
    }

    /// The queues that have not taken their hands off.
    pub fn waiting(&self) -> Vec<u32> {
        let epoch = self.epoch();
        // Acquire pairs with the Release of the acknowledgement in `Gate::turn`: what the queue did to its rings and doorbells lies
        // before what comes next here.
        let waiting = |m: &&Arc<Member>| m.acknowledged.load(Ordering::Acquire) < epoch;
        self.0.members().iter().filter(waiting).map(|m| m.id).collect()
    }

    /// Gives up on the queues that have not taken their hands off; returns them.
    pub fn expel(&self) -> Vec<u32> {
        let epoch = self.epoch();
        let expel = |m: &&Arc<Member>| {
            let last = m.acknowledged.load(Ordering::Acquire);
            // It may acknowledge at this very moment: one of the two wins, and both know which.
            last < epoch && m.acknowledged.compare_exchange(last, EXPELLED, Ordering::AcqRel, Ordering::Acquire).is_ok()
        };
        self.0.members().iter().filter(expel).map(|m| m.id).collect()
    }

    /// Stopping to quiet: the device was reset, or kept from memory otherwise.
    pub fn quiet(&self) {
        self.advance(Phase::Stopping, 2);
    }

    /// Quiet to running: rings are zeroed, and known to the device.
    pub fn resume(&self) {
        self.advance(Phase::Quiet, 0);
    }

    fn advance(&self, from: Phase, to: u64) {
        let word = self.0.word.load(Ordering::Relaxed);
        if Phase::of(word) == from {
            // Release pairs with the Acquire loads of `Gate::open` and `Gate::turn`: the device was quiet, and rings zeroed, before.
            self.0.word.store(word >> 2 << 2 | to, Ordering::Release);
        }
    }

    /// Ends it, for good. The first end stands.
    pub fn end(&self, end: End) {
        let mut ended = self.0.end.lock().unwrap_or_else(|e| e.into_inner());
        if ended.is_none() {
            *ended = Some(end);
            let word = self.0.word.load(Ordering::Relaxed);
            self.0.word.store(word | 3, Ordering::Release);
        }
    }

    /// How it ended, if it did.
    pub fn ended(&self) -> Option<End> {
        self.0.ended()
    }

    /// Whether any queue that took its hands off since this was asked last had completed something before.
    pub fn take_completed(&self) -> bool {
        // Relaxed: it was counted before the acknowledgement that `waiting` saw.
        self.0.completed.swap(0, Ordering::Relaxed) > 0
    }

    /// Buffers that were never given back, because the device may still write them.
    pub fn quarantined(&self) -> u64 {
        self.0.quarantined.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn members(&self) -> MutexGuard<'_, Vec<Arc<Member>>> {
        self.members.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn ended(&self) -> Option<End> {
        self.end.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }
}

/// A queue's side: part of the queue, and as little shared as it is.
#[derive(Debug)]
pub struct Gate {
    shared: Arc<Shared>,
    member: Arc<Member>,
    /// The word under which the queue runs; no word at all while it doesn't.
    seen: u64,
    /// The queue closed it itself, in this epoch.
    closed: Option<u64>,
}

/// What a queue has to do once its gate isn't open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Hands off rings and doorbells; what is in flight stays with the queue.
    Stop,
    /// As before, and what is in flight is to be given back as aborted.
    Abort,
    /// Give back what is in flight as aborted, start over with empty rings, then [`Gate::enter`].
    Restart,
    /// It did not acknowledge in time: never to be used again, and what is in flight is to be quarantined.
    Expelled,
    /// The device ended.
    Ended(End),
}

impl Gate {
    /// Whether the queue may go on: one load, and a branch that is nearly always the same.
    #[inline(always)]
    pub fn open(&self) -> bool {
        // Acquire pairs with the Release of `Domain::resume`; free on x86, and one `ldar` or `lwsync` a poll elsewhere.
        self.shared.word.load(Ordering::Acquire) == self.seen
    }

    /// What to do where it isn't open. This is the acknowledgement: the caller has its hands off when it calls it, and keeps them
    /// off until [`enter`](Self::enter). `completed` says whether the device has done anything of the queue's since that entered: a device that is reset
    /// again and again and does nothing in between is given up.
    #[cold]
    pub fn step(&mut self, completed: bool) -> Step {
        self.seen = u64::MAX;
        let word = self.shared.word.load(Ordering::Acquire);
        let phase = Phase::of(word);
        if phase == Phase::Ended {
            let end = self.shared.ended();
            return Step::Ended(end.unwrap_or(End { gone: false, harmless: false, why: "it ended".to_owned() }));
        }
        let last = self.member.acknowledged.load(Ordering::Relaxed);
        if last == EXPELLED {
            return Step::Expelled;
        }
        let epoch = word >> 2;
        if last < epoch {
            if completed {
                self.shared.completed.fetch_add(1, Ordering::Relaxed);
            }
            // Release pairs with the Acquire in `Domain::waiting`.
            let swap = self.member.acknowledged.compare_exchange(last, epoch, Ordering::AcqRel, Ordering::Relaxed);
            if swap.is_err() {
                return Step::Expelled;
            }
        }
        match phase {
            Phase::Running if self.closed == Some(epoch) => Step::Stop,
            Phase::Running => Step::Restart,
            Phase::Stopping => Step::Stop,
            Phase::Quiet | Phase::Ended => Step::Abort,
        }
    }

    /// The queue found a fault and takes its hands off by itself, until the next reset.
    pub fn close(&mut self) {
        self.seen = u64::MAX;
        self.closed = self.epoch();
    }

    /// The queue has started over and runs again, unless the next stop came already.
    pub fn enter(&mut self) {
        self.seen = self.member.acknowledged.load(Ordering::Relaxed) << 2;
        self.closed = None;
    }

    /// The epoch it is in step with; `None` where it was expelled.
    pub fn epoch(&self) -> Option<u64> {
        let epoch = self.member.acknowledged.load(Ordering::Relaxed);
        (epoch != EXPELLED).then_some(epoch)
    }

    /// The queue is being dropped: nobody needs to wait for it any more. It has its hands off.
    pub fn leave(&mut self) {
        self.seen = u64::MAX;
        self.shared.members().retain(|m| !Arc::ptr_eq(m, &self.member));
    }

    /// Counts buffers that are never given back.
    pub fn quarantined(&self, buffers: u64) {
        self.shared.quarantined.fetch_add(buffers, Ordering::Relaxed);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(all(test, loom))]
mod exhaustive {
    //! The protocol under loom: `RUSTFLAGS="--cfg loom" cargo test -p wholebar-core --lib exhaustive`

    use super::*;
    use loom::cell::UnsafeCell;
    use loom::thread;

    fn explore(body: impl Fn() + Sync + Send + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(body);
    }

    /// What a queue touches while its gate is open, and the control plane while it isn't. Loom says where the two meet.
    struct Ring(UnsafeCell<u32>);

    // SAFETY: the test shows that accesses never overlap.
    unsafe impl Sync for Ring {}

    impl Ring {
        fn touch(&self) {
            // SAFETY: as above.
            self.0.with_mut(|ring| unsafe { *ring += 1 });
        }
    }

    #[test]
    fn hands_are_off_while_the_control_plane_has_its_on() {
        explore(|| {
            let (domain, ring) = (Domain::new(), Arc::new(Ring(UnsafeCell::new(0))));
            let mut gate = domain.join(1);
            let queue = thread::spawn({
                let ring = ring.clone();
                move || {
                    let mut restarted = false;
                    while !restarted {
                        if gate.open() {
                            ring.touch();
                        } else if gate.step(false) == Step::Restart {
                            gate.enter();
                            ring.touch();
                            restarted = true;
                        }
                        thread::yield_now();
                    }
                }
            });
            domain.stop();
            while !domain.waiting().is_empty() {
                thread::yield_now();
            }
            ring.touch();
            domain.quiet();
            domain.resume();
            queue.join().unwrap();
        });
    }

    /// A queue that acknowledges at the moment it is given up on: both know which of the two it was.
    #[test]
    fn who_is_expelled_knows() {
        explore(|| {
            let domain = Domain::new();
            let mut gate = domain.join(1);
            domain.stop();
            let queue = thread::spawn(move || gate.step(false));
            let expelled = domain.expel() == [1];
            assert_eq!(queue.join().unwrap() == Step::Expelled, expelled);
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn a_reset_goes_through_its_phases() {
        let domain = Domain::new();
        let (mut a, mut b) = (domain.join(1), domain.join(2));
        assert!(a.open() && b.open() && domain.phase() == Phase::Running);
        domain.stop();
        assert!(!a.open() && !b.open());
        assert_eq!(domain.waiting(), [1, 2]);
        assert_eq!(a.step(false), Step::Stop);
        assert_eq!(domain.waiting(), [2]);
        assert_eq!(b.step(false), Step::Stop);
        assert!(domain.waiting().is_empty());
        domain.quiet();
        assert_eq!(a.step(false), Step::Abort);
        domain.resume();
        assert!(!a.open(), "it has to start over first");
        for gate in [&mut a, &mut b] {
            assert_eq!(gate.step(false), Step::Restart);
            gate.enter();
            assert!(gate.open());
        }
        assert_eq!((domain.epoch(), domain.phase()), (1, Phase::Running));
    }

    #[test]
    fn who_does_not_poll_is_expelled() {
        let domain = Domain::new();
        let (mut a, mut b) = (domain.join(1), domain.join(2));
        domain.stop();
        assert_eq!(a.step(false), Step::Stop);
        assert_eq!(domain.expel(), [2]);
        assert!(domain.waiting().is_empty());
        assert!(domain.has(1) && !domain.has(2));
        domain.quiet();
        domain.resume();
        assert_eq!((a.step(false), b.step(false)), (Step::Restart, Step::Expelled));
        b.quarantined(3);
        assert_eq!((b.epoch(), domain.quarantined()), (None, 3));
        drop(b);
        domain.stop();
        assert_eq!(domain.waiting(), [1]);
    }

    #[test]
    fn the_second_reset_may_come_before_the_first_was_seen_to_end() {
        let domain = Domain::new();
        let mut gate = domain.join(1);
        domain.stop();
        assert_eq!(gate.step(false), Step::Stop);
        domain.quiet();
        domain.resume();
        domain.stop();
        assert_eq!(domain.waiting(), [1]);
        assert_eq!(gate.step(false), Step::Stop);
        domain.quiet();
        domain.resume();
        assert_eq!(gate.step(false), Step::Restart);
        domain.stop();
        gate.enter();
        assert!(!gate.open());
    }

    #[test]
    fn a_queue_that_closed_itself_waits_for_the_next_reset() {
        let domain = Domain::new();
        let mut gate = domain.join(1);
        gate.close();
        assert!(!gate.open());
        assert_eq!(gate.step(false), Step::Stop);
        domain.stop();
        assert_eq!(gate.step(false), Step::Stop);
        assert!(domain.waiting().is_empty());
        domain.quiet();
        domain.resume();
        assert_eq!(gate.step(false), Step::Restart);
        gate.enter();
        assert!(gate.open());
    }

    #[test]
    fn the_first_end_stands() {
        let domain = Domain::new();
        let mut gate = domain.join(1);
        let end = End { gone: true, harmless: true, why: "all ones".to_owned() };
        domain.end(end.clone());
        domain.end(End { gone: false, ..end.clone() });
        domain.stop();
        domain.resume();
        assert_eq!(domain.phase(), Phase::Ended);
        assert!(!gate.open());
        assert_eq!(gate.step(false), Step::Ended(end));
    }

    #[test]
    fn nobody_waits_for_who_left() {
        let domain = Domain::new();
        let mut gate = domain.join(7);
        domain.stop();
        gate.leave();
        assert_eq!((domain.waiting(), domain.has(7)), (vec![], false));
    }

    /// Two queues write what only they may write while they run; the control plane writes it while they don't.
    #[test]
    fn hands_are_off_while_the_control_plane_has_its_on() {
        const RESETS: u32 = if cfg!(miri) { 8 } else { 500 };
        struct Ring(std::cell::UnsafeCell<u64>);
        // SAFETY: the test shows that accesses never overlap; Miri would tell.
        unsafe impl Sync for Ring {}
        let rings = Arc::new([Ring(0.into()), Ring(0.into())]);
        let domain = Arc::new(Domain::new());
        let done = Arc::new(AtomicU32::new(0));
        let queues: Vec<_> = (0..2)
            .map(|i| {
                let (rings, done, mut gate) = (rings.clone(), done.clone(), domain.join(i));
                std::thread::spawn(move || {
                    let mut restarts = 0;
                    while done.load(Ordering::Relaxed) == 0 {
                        if gate.open() {
                            // SAFETY: the gate is open, so the control plane waits for us before it touches the ring.
                            unsafe { *rings[i as usize].0.get() += 1 };
                        } else if gate.step(false) == Step::Restart {
                            restarts += 1;
                            gate.enter();
                        }
                        std::thread::yield_now();
                    }
                    restarts
                })
            })
            .collect();
        for _ in 0..RESETS {
            domain.stop();
            while !domain.waiting().is_empty() {
                std::thread::yield_now();
            }
            domain.quiet();
            for ring in rings.iter() {
                // SAFETY: both queues have acknowledged.
                unsafe { *ring.0.get() = 0 };
            }
            domain.resume();
        }
        done.store(1, Ordering::Relaxed);
        for queue in queues {
            assert!(queue.join().unwrap() <= RESETS);
        }
    }
}

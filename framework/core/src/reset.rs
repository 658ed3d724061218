//! The reset protocol between a device's control plane and its queues, which live on other cores.
//!
//! A device is reset only once no queue accesses its rings or doorbells, and the buffers of a command are returned only once the device cannot
//! write them any more:
//!
//! 1. The control plane *stops* the domain: its epoch increases, and each queue sees that at its next poll or submission, stops accessing rings and
//!    doorbells, and acknowledges.
//! 2. A queue that did not acknowledge in time is *expelled*: it is never used again, and its buffers in flight are quarantined.
//! 3. The driver turns bus mastering off and resets the device; then the domain is *quiet*, and commands in flight complete as aborted.
//! 4. Rings are zeroed and made known to the device again, and the domain *resumes*: queues start over with empty rings.
//!
//! Memory is unmapped and freed after that. Where the reset fails, or the device is gone, the domain *ends* instead.
//!
//! All of this costs a queue one load and one predictable branch a call. This file does *not* know what a ring is, nor how a device is reset: the
//! [`ControlPlane`](crate::control_plane::ControlPlane) takes a driver through these steps.
//!
//! ```
//! # use wholebar_core as wholebar;
//! use wholebar::reset::{Domain, Step};
//!
//! let domain = Domain::new();
//! let mut gate = domain.join(1);
//! // The control plane stops the queue, which acknowledges at its next call.
//! domain.stop();
//! assert_eq!(domain.waiting(), [1]);
//! assert!(!gate.open());
//! assert_eq!(gate.step(false), Step::Stop);
//! assert!(domain.waiting().is_empty());
//! // The device is reset here. The queue aborts what was in flight, and starts over once the device is up.
//! domain.quiet();
//! assert_eq!(gate.step(false), Step::Abort);
//! domain.resume();
//! assert_eq!(gate.step(false), Step::Restart);
//! gate.enter();
//! assert!(gate.open());
//! ```

use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, MutexGuard};
use crossbeam::utils::CachePadded;
use std::fmt::Display;
use std::time::Duration;

/// The control plane's side of the protocol: one domain for each device.
///
/// A clone is another handle to the same domain. Calls that change the phase are made under the one lock of the driver's control plane.
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

/// The phase of a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// No reset is under way: queues run.
    Running,
    /// Queues are being stopped.
    Stopping,
    /// The device cannot reach memory; commands in flight complete as aborted.
    Quiet,
    /// The device ended, for good.
    Ended,
}

/// How a device ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// The device is not there any more: it was removed, rather than failed.
    pub gone: bool,
    /// The device certainly cannot write memory, so buffers in flight may be returned. Otherwise they are quarantined.
    pub harmless: bool,
    /// The reason, in a sentence.
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
    /// Creates a domain whose queues run.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a queue, known by `id`, and returns its gate. The queue counts as having acknowledged the current epoch; during a reset its gate is closed until
    /// the reset is over. It takes a lock.
    pub fn join(&self, id: u32) -> Gate {
        let mut members = self.0.members();
        let word = self.0.word.load(Ordering::Acquire);
        let member = Arc::new(Member { id, acknowledged: AtomicU64::new(word >> 2) });
        members.push(member.clone());
        let seen = if Phase::of(word) == Phase::Running { word } else { u64::MAX };
        Gate { shared: self.0.clone(), member, seen, closed: None, last: None }
    }

    /// Returns the phase.
    pub fn phase(&self) -> Phase {
        Phase::of(self.0.word.load(Ordering::Acquire))
    }

    /// Returns the epoch: how often the domain was stopped.
    pub fn epoch(&self) -> u64 {
        self.0.word.load(Ordering::Acquire) >> 2
    }

    /// Returns whether queue `id` is there and was not expelled. It takes a lock.
    pub fn has(&self, id: u32) -> bool {
        self.0.members().iter().any(|m| m.id == id && m.acknowledged.load(Ordering::Relaxed) != EXPELLED)
    }

    /// Moves from running to stopping: the epoch increases, and every queue is asked to stop. In another phase it does nothing.
    pub fn stop(&self) {
        let word = self.0.word.load(Ordering::Relaxed);
        if Phase::of(word) == Phase::Running {
            self.0.word.store(((word >> 2) + 1) << 2 | 1, Ordering::Release);
        }
    }

    /// Returns the queues that have not acknowledged the current epoch. It takes a lock.
    ///
    /// What a queue did to its rings and doorbells happened before this returns without it.
    pub fn waiting(&self) -> Vec<u32> {
        let epoch = self.epoch();
        // Acquire pairs with the Release of the acknowledgement in `Gate::step`: what the queue did to its rings and doorbells lies
        // before what comes next here.
        let waiting = |m: &&Arc<Member>| m.acknowledged.load(Ordering::Acquire) < epoch;
        self.0.members().iter().filter(waiting).map(|m| m.id).collect()
    }

    /// Expels the queues that have not acknowledged the current epoch, and returns them. A queue that acknowledges at the same moment is either
    /// expelled or not, and both sides agree on which.
    pub fn expel(&self) -> Vec<u32> {
        let epoch = self.epoch();
        let expel = |m: &&Arc<Member>| {
            let last = m.acknowledged.load(Ordering::Acquire);
            // It may acknowledge at this very moment: one of the two wins, and both know which.
            last < epoch && m.acknowledged.compare_exchange(last, EXPELLED, Ordering::AcqRel, Ordering::Acquire).is_ok()
        };
        self.0.members().iter().filter(expel).map(|m| m.id).collect()
    }

    /// Moves from stopping to quiet: the device was reset, or cannot reach memory for another reason. In another phase it does nothing.
    pub fn quiet(&self) {
        self.advance(Phase::Stopping, 2);
    }

    /// Moves from quiet to running: rings are zeroed, and known to the device. In another phase it does nothing.
    pub fn resume(&self) {
        self.advance(Phase::Quiet, 0);
    }

    fn advance(&self, from: Phase, to: u64) {
        let word = self.0.word.load(Ordering::Relaxed);
        if Phase::of(word) == from {
            // Release pairs with the Acquire loads of `Gate::open` and `Gate::step`: the device was quiet, and rings zeroed, before.
            self.0.word.store(word >> 2 << 2 | to, Ordering::Release);
        }
    }

    /// Ends the domain for good. Of several ends, the first stands.
    pub fn end(&self, end: End) {
        let mut ended = self.0.end.lock().unwrap_or_else(|e| e.into_inner());
        if ended.is_none() {
            *ended = Some(end);
            let word = self.0.word.load(Ordering::Relaxed);
            self.0.word.store(word | 3, Ordering::Release);
        }
    }

    /// Returns how the domain ended, if it did. It takes a lock.
    pub fn ended(&self) -> Option<End> {
        self.0.ended()
    }

    /// Returns whether any queue that acknowledged an epoch since the last call had completed something before.
    pub fn take_completed(&self) -> bool {
        // Relaxed: it was counted before the acknowledgement that `waiting` saw.
        self.0.completed.swap(0, Ordering::Relaxed) > 0
    }

    /// Returns how many buffers of the device's queues were quarantined, because the device may still write them.
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

/// A queue's side of the protocol, owned by the queue.
///
/// Dropping it leaves the domain.
#[derive(Debug)]
pub struct Gate {
    shared: Arc<Shared>,
    member: Arc<Member>,
    /// The word under which the queue runs; no word at all while it doesn't.
    seen: u64,
    /// The queue closed it itself, in this epoch.
    closed: Option<u64>,
    /// The step after which there is no other.
    last: Option<Step>,
}

/// The state of a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueueState {
    /// The queue can be used.
    Running,
    /// The device is being reset; the queue will run again.
    Resetting,
    /// The queue cannot be used any more, for this reason.
    Failed(String),
    /// The device is gone.
    Gone,
}

/// The step that a queue has to take when its gate is not open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Leave rings and doorbells alone, and keep what is in flight.
    Stop,
    /// Leave rings and doorbells alone, and complete what is in flight as aborted.
    Abort,
    /// Complete what is in flight as aborted, start over with empty rings, then call [`Gate::enter`].
    Restart,
    /// The queue did not acknowledge in time: it is never used again, and quarantines what is in flight. From then on each step is this one.
    Expelled,
    /// The device ended. From then on each step is this one.
    Ended(End),
}

/// What becomes of the buffers of a closed queue that the device had: [`Gate::settle`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InFlight {
    /// They stay where they are, for now.
    Keep,
    /// They go back to their pools; the queue starts over with empty rings, then calls [`Gate::enter`].
    Restart,
    /// They go back to their pools; the queue has ended.
    Free,
    /// They are never given back, because the device may still write them.
    Quarantine,
}

impl Gate {
    /// Returns whether the queue may go on: one load, and a branch that is nearly always taken the same way.
    #[inline(always)]
    pub fn open(&self) -> bool {
        // Acquire pairs with the Release of `Domain::resume`; free on x86, and one `ldar` or `lwsync` a poll elsewhere.
        self.shared.word.load(Ordering::Acquire) == self.seen
    }

    /// Acknowledges the current epoch and returns the step to take. Called where the gate is not open.
    ///
    /// The caller has stopped accessing rings and doorbells when it calls this, and does not access them again before [`enter`](Self::enter), unless
    /// the step says so.
    ///
    /// `completed` says whether the device has completed anything of the queue since the queue entered: a device that is reset again and again, and does
    /// nothing in between, is given up.
    #[cold]
    pub fn step(&mut self, completed: bool) -> Step {
        if let Some(last) = &self.last {
            return last.clone();
        }
        let step = self.next_step(completed);
        if matches!(step, Step::Expelled | Step::Ended(_)) {
            self.last = Some(step.clone());
        }
        step
    }

    /// Takes the [step](Self::step) of a queue whose buffers in flight have no owner to be told of them, and returns what becomes of them. Where the gate is
    /// open there is no step to take.
    #[cold]
    pub fn settle(&mut self, completed: bool) -> InFlight {
        if self.open() {
            return InFlight::Keep;
        }
        match self.step(completed) {
            Step::Stop | Step::Abort => InFlight::Keep,
            Step::Restart => InFlight::Restart,
            Step::Ended(end) if end.harmless => InFlight::Free,
            Step::Ended(_) | Step::Expelled => InFlight::Quarantine,
        }
    }

    fn next_step(&mut self, completed: bool) -> Step {
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

    /// Closes the gate from the queue's side, until the next reset: the queue found a fault.
    pub fn close(&mut self) {
        self.seen = u64::MAX;
        self.closed = self.epoch();
    }

    /// Opens the gate: the queue has started over after [`Step::Restart`]. Where the domain was stopped again in between, the gate stays closed.
    pub fn enter(&mut self) {
        self.seen = self.member.acknowledged.load(Ordering::Relaxed) << 2;
        self.closed = None;
    }

    /// Returns whether the queue can be used, as far as its owner has learnt by [`step`](Self::step). `queue` names it where it was expelled, and `within` is how
    /// long it was waited for.
    pub fn state(&self, queue: impl Display, within: Duration) -> QueueState {
        match &self.last {
            None if self.open() => QueueState::Running,
            None => QueueState::Resetting,
            Some(Step::Ended(end)) if end.gone => QueueState::Gone,
            Some(Step::Ended(end)) => QueueState::Failed(end.why.clone()),
            Some(_) => {
                QueueState::Failed(format!("{queue} was not polled within {within:?} when the device was reset"))
            }
        }
    }

    /// Returns the epoch that the queue acknowledged last; `None` where it was expelled.
    pub fn epoch(&self) -> Option<u64> {
        let epoch = self.member.acknowledged.load(Ordering::Relaxed);
        (epoch != EXPELLED).then_some(epoch)
    }

    /// Leaves the domain: the queue is being dropped, and resets do not wait for it any more. It does not access rings and doorbells after this. It
    /// takes a lock.
    pub fn leave(&mut self) {
        self.seen = u64::MAX;
        self.shared.members().retain(|m| !Arc::ptr_eq(m, &self.member));
    }

    /// Adds to the domain's count of quarantined buffers.
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
    use crate::sync::explore;
    use loom::cell::UnsafeCell;
    use loom::thread;

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

    /// A queue that is made, used and dropped while the control plane stops the domain: it is waited for, or its gate is closed from the start.
    #[test]
    fn who_joins_meanwhile_keeps_out_or_is_waited_for() {
        explore(|| {
            let (domain, ring) = (Domain::new(), Arc::new(Ring(UnsafeCell::new(0))));
            let queue = thread::spawn({
                let (domain, ring) = (domain.clone(), ring.clone());
                move || {
                    let gate = domain.join(1);
                    if gate.open() {
                        ring.touch();
                    }
                }
            });
            domain.stop();
            while !domain.waiting().is_empty() {
                thread::yield_now();
            }
            ring.touch();
            queue.join().unwrap();
        });
    }

    /// Who learns of the end learns why, and that for good.
    #[test]
    fn an_end_is_told_with_its_reason() {
        explore(|| {
            let (domain, end) = (Domain::new(), End { gone: true, harmless: true, why: "all ones".to_owned() });
            let mut gate = domain.join(1);
            let queue = thread::spawn({
                let end = end.clone();
                move || {
                    while gate.open() {
                        thread::yield_now();
                    }
                    let step = gate.step(false);
                    assert!(matches!(&step, Step::Stop) || step == Step::Ended(end.clone()), "{step:?}");
                    while gate.step(false) == Step::Stop {
                        thread::yield_now();
                    }
                    assert_eq!([gate.step(false), gate.step(false)], [(); 2].map(|()| Step::Ended(end.clone())));
                }
            });
            domain.stop();
            domain.end(end);
            queue.join().unwrap();
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests;

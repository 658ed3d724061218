//! Two ports back to back: a ring of frames each way, and a ring each way on which they come home.

use super::Frame;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use wholebar_core::model::InProcess;
use wholebar_core::ring::{Consumer, Producer, spsc};

/// The pairs of this process that wait for their second end, or whose ends are both there.
static PAIRS: Mutex<BTreeMap<String, Waiting>> = Mutex::new(BTreeMap::new());

/// A pair by name: the end that nobody took yet, and what both share.
struct Waiting {
    second: Option<Ends>,
    shared: Arc<Shared>,
}

/// What both ends know of each other.
#[derive(Default)]
struct Shared {
    /// Whether a driver is at each.
    running: [AtomicBool; 2],
    pair_thread: PairThread,
}

/// An end's ends of the rings.
struct Ends {
    out: Producer<Frame>,
    input: Consumer<Frame>,
    /// This end's own frames, from the other.
    home: Consumer<Frame>,
    /// The other's frames, to it.
    back: Producer<Frame>,
}

/// One end.
pub(super) struct End {
    name: String,
    side: u8,
    rings: Ends,
    shared: Arc<Shared>,
}

/// Models that run on one thread: what passes between them stays in one core's caches.
#[derive(Clone, Default)]
pub(crate) struct PairThread(Arc<(Mutex<Weak<InProcess>>, AtomicBool)>);

impl PairThread {
    /// Runs a model on the thread that runs another of these, or else on one of its own, which `prepare` prepares.
    pub(crate) fn run(&self, device: Arc<InProcess>, prepare: impl FnOnce() + Send + 'static) -> Result<()> {
        let mut place = self.0.0.lock().unwrap_or_else(|e| e.into_inner());
        let other = place.upgrade();
        let beside = other.as_ref().is_some_and(|other| device.spawn_beside(other));
        if !beside {
            device.spawn(prepare)?;
        }
        // Relaxed: seen late, an end naps that could sleep.
        self.0.1.store(beside, Ordering::Relaxed);
        *place = Arc::downgrade(&device);
        // Where `other` is the last reference, its thread is waited for once nobody waits for this lock.
        drop(place);
        Ok(())
    }
}

fn pairs() -> MutexGuard<'static, BTreeMap<String, Waiting>> {
    PAIRS.lock().unwrap_or_else(|e| e.into_inner())
}

impl End {
    /// Takes an end of the pair `name`, whose rings hold `capacity` frames (a power of two): as many as a port ever makes, so that none is ever full.
    pub(super) fn join(name: &str, capacity: usize) -> Result<Self> {
        let mut pairs = pairs();
        if let Some(waiting) = pairs.get_mut(name) {
            let rings = waiting.second.take().ok_or_else(|| Error::PairTaken { name: name.to_owned() })?;
            return Ok(Self { name: name.to_owned(), side: 1, rings, shared: waiting.shared.clone() });
        }
        let ((out, there), (back_there, home)) = (spsc(capacity)?, spsc(capacity)?);
        let ((out_there, input), (back, home_there)) = (spsc(capacity)?, spsc(capacity)?);
        let shared = Arc::new(Shared::default());
        let second = Ends { out: out_there, input: there, home: home_there, back: back_there };
        pairs.insert(name.to_owned(), Waiting { second: Some(second), shared: shared.clone() });
        Ok(Self { name: name.to_owned(), side: 0, rings: Ends { out, input, home, back }, shared })
    }

    #[inline]
    pub(super) fn side(&self) -> u8 {
        self.side
    }

    /// Adds own frames that came home.
    #[inline]
    pub(super) fn home(&mut self, spare: &mut Vec<Frame>) {
        self.rings.home.pop_burst(spare, usize::MAX);
    }

    #[inline]
    pub(super) fn send(&mut self, frames: &mut Vec<Frame>) {
        self.rings.out.push_burst(frames);
        debug_assert!(frames.is_empty(), "a ring has room for every frame there is");
    }

    #[inline]
    pub(super) fn receive(&mut self, out: &mut Vec<Frame>, max: usize) {
        self.rings.input.pop_burst(out, max);
    }

    #[inline]
    pub(super) fn give_back(&mut self, frames: &mut Vec<Frame>) {
        self.rings.back.push_burst(frames);
        debug_assert!(frames.is_empty(), "a ring has room for every frame there is");
    }

    pub(super) fn run(&self, on: bool) {
        // Nothing else is published by it: a carrier seen late is as on any wire.
        self.shared.running[usize::from(self.side)].store(on, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn carrier(&self) -> bool {
        self.shared.running[usize::from(1 - self.side)].load(Ordering::Relaxed)
    }

    /// Whether both ends run on one thread: what one does, the other sees in its next poll.
    pub(super) fn runs_beside(&self) -> bool {
        self.shared.pair_thread.0.1.load(Ordering::Relaxed)
    }

    pub(super) fn pair_thread(&self) -> PairThread {
        self.shared.pair_thread.clone()
    }
}

impl Drop for End {
    /// The pair is no more: its name is free, and the other end has no carrier for good.
    fn drop(&mut self) {
        self.run(false);
        let mut pairs = pairs();
        if pairs.get(&self.name).is_some_and(|w| Arc::ptr_eq(&w.shared, &self.shared)) {
            pairs.remove(&self.name);
        }
    }
}

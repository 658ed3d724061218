//! Threads that run models: one model each, or several that take turns on one core.
//!
//! A thread holds its models' locks for a while, since a lock costs more than an idle poll, and steps aside for whoever wants to talk to one. Where nothing
//! happens to any of them it rests, as `rest.rs` says: it arms its bells and its models, polls once more, and waits for what would wake it.
//!
//! **No call is slept over.** Who calls a model counts himself as waiting, rings the model's bell, and takes the lock. The thread arms the bell, then checks whether
//! anybody waits, then polls under each lock, and sleeps only where it found neither. There is a full barrier on both sides between the two steps
//! ([`Bell`]): so either the caller sees the bell armed, and signals; or the thread sees him wait, and stays awake; or he has the lock
//! already, and the thread polls after him and sees what he did.

use super::rest::{Rest, Wakes};
use super::{Model, ModelFunction};
use crate::barrier;
use crate::reactor::Bell;
use rustix::event::{PollFd, PollFlags};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::{Error, Result, Work};

/// How many polls a thread makes before it checks whether it is still wanted, and what time it is.
const POLLS: u32 = 64;
/// How many models are locked together: the ports of a pair belong together, and more than a few don't fit one core.
const TOGETHER: usize = 4;
/// Idle polls after which whoever is waited for gets to run, where there are fewer cores than threads.
const PATIENCE: u32 = 4096;

/// The function, and who wants to talk to it: its thread steps aside for them.
pub(super) struct Slot {
    function: Mutex<Box<ModelFunction<dyn Model>>>,
    waiting: AtomicU32,
    /// Wakes its thread, where that sleeps.
    bell: Bell,
    /// Somebody mapped a part of it: stores there wake nobody.
    mapped: AtomicBool,
    /// Its thread does not rest.
    spin: AtomicBool,
    /// The model's own descriptors, duplicated, so that no lock is held while they are waited for; `None` where they could not be.
    wakeups: Option<Vec<OwnedFd>>,
}

impl Slot {
    pub(super) fn new(function: Box<ModelFunction<dyn Model>>) -> Result<Self> {
        let wakeups = function.wakeups().into_iter().map(|fd| fd.try_clone_to_owned()).collect();
        let wakeups = std::io::Result::ok(wakeups);
        Ok(Self {
            function: Mutex::new(function),
            waiting: AtomicU32::new(0),
            bell: Bell::new()?,
            mapped: AtomicBool::new(false),
            spin: AtomicBool::new(false),
            wakeups,
        })
    }

    /// The function, for a call from outside; its thread is kept from taking it again first, and is woken.
    pub(super) fn lock(&self) -> MutexGuard<'_, Box<ModelFunction<dyn Model>>> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.bell.ring();
        let function = self.own();
        // Release pairs with the Acquire load of a thread about to sleep: it takes the lock after us.
        self.waiting.fetch_sub(1, Ordering::Release);
        function
    }

    /// Wakes its thread: something was stored where the model polls.
    pub(super) fn wake(&self) {
        self.bell.ring();
    }

    /// From here on stores come that nobody is told of.
    pub(super) fn set_mapped(&self) {
        self.mapped.store(true, Ordering::Relaxed);
        self.bell.ring();
    }

    /// Its thread polls all the time, or not.
    pub(super) fn set_spin(&self, spin: bool) {
        self.spin.store(spin, Ordering::Relaxed);
        self.bell.ring();
    }

    /// The function, for the thread that runs it.
    fn own(&self) -> MutexGuard<'_, Box<ModelFunction<dyn Model>>> {
        self.function.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// A model on a thread; it stops when this is dropped, and the thread ends with its last model.
pub(super) struct ModelThread {
    slot: Arc<Slot>,
    runner: Arc<Runner>,
}

/// Where another model could run too: see [`ModelThread::beside`].
pub(super) struct Beside(Weak<Runner>);

/// A thread and the models that it runs.
struct Runner {
    /// Held while they take turns: who changes the list knows that none of them is running. The thread ends when it is empty.
    models: Mutex<Vec<Arc<Slot>>>,
    waiting: AtomicU32,
    /// Wakes it where the list changes.
    bell: Bell,
    /// How often it lay down and got up: odd while it rests.
    rests: AtomicU64,
    tid: OnceLock<i32>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl ModelThread {
    pub(super) fn spawn(slot: Arc<Slot>, prepare: impl FnOnce() + Send + 'static) -> Result<Self> {
        let runner = Arc::new(Runner {
            models: Mutex::new(vec![slot.clone()]),
            waiting: AtomicU32::new(0),
            bell: Bell::new()?,
            rests: AtomicU64::new(0),
            tid: OnceLock::new(),
            thread: Mutex::new(None),
        });
        let inside = runner.clone();
        let thread = std::thread::Builder::new().name("model".to_owned()).spawn(move || {
            let _ = inside.tid.set(if cfg!(miri) { 0 } else { rustix::thread::gettid().as_raw_pid() });
            prepare();
            inside.run();
        });
        let thread = thread.map_err(|cause| Error::Io { what: "starting the model's thread".to_owned(), cause })?;
        *runner.thread.lock().unwrap_or_else(|e| e.into_inner()) = Some(thread);
        Ok(Self { slot, runner })
    }

    pub(super) fn join(slot: Arc<Slot>, other: &Beside) -> Option<Self> {
        let runner = other.0.upgrade()?;
        let mut models = runner.list();
        if models.is_empty() {
            return None;
        }
        models.push(slot.clone());
        drop(models);
        Some(Self { slot, runner })
    }

    /// Its id in `/proc/self/task`.
    pub(super) fn tid(&self) -> i32 {
        *self.runner.tid.wait()
    }

    /// How often the thread has rested, and whether it does now.
    pub(super) fn rests(&self) -> (u64, bool) {
        let rests = self.runner.rests.load(Ordering::Relaxed);
        (rests.div_ceil(2), rests % 2 == 1)
    }

    /// This thread, for another model to run on. It keeps nothing running.
    pub(super) fn beside(&self) -> Beside {
        Beside(Arc::downgrade(&self.runner))
    }
}

impl Drop for ModelThread {
    fn drop(&mut self) {
        let mut models = self.runner.list();
        models.retain(|slot| !Arc::ptr_eq(slot, &self.slot));
        let last = models.is_empty();
        drop(models);
        let thread = self.runner.thread.lock().unwrap_or_else(|e| e.into_inner()).take_if(|_| last);
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

/// What wakes models that were armed, when the first of them is due, and the wires of those that take what comes there.
type Armed<'m> = (Wakes, Option<Instant>, Vec<&'m Vec<OwnedFd>>);

impl Runner {
    /// The models, for a change from outside.
    fn list(&self) -> MutexGuard<'_, Vec<Arc<Slot>>> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.bell.ring();
        let models = self.models.lock().unwrap_or_else(|e| e.into_inner());
        // As in `Slot::lock`.
        self.waiting.fetch_sub(1, Ordering::Release);
        models
    }

    /// Someone wants to talk to one of these, or to change the list. Acquire pairs with the Release of who did.
    fn wanted(&self, group: &[Arc<Slot>]) -> bool {
        self.waiting.load(Ordering::Acquire) > 0 || group.iter().any(|slot| slot.waiting.load(Ordering::Acquire) > 0)
    }

    fn run(&self) {
        let (mut idle, mut rest) = (0u32, Rest::default());
        loop {
            if self.waiting.load(Ordering::Relaxed) > 0 {
                std::thread::yield_now();
                continue;
            }
            let models = self.models.lock().unwrap_or_else(|e| e.into_inner());
            if models.is_empty() {
                return;
            }
            let mut work = Work::Idle;
            for group in models.chunks(TOGETHER) {
                if self.wanted(group) {
                    std::thread::yield_now();
                    work = Work::Busy;
                    continue;
                }
                let mut functions = [const { None }; TOGETHER];
                functions.iter_mut().zip(group).for_each(|(function, slot)| *function = Some(slot.own()));
                for _ in 0..POLLS {
                    for function in functions.iter_mut().flatten() {
                        match function.poll() {
                            Work::Busy => (idle, work) = (0, Work::Busy),
                            Work::Idle => idle = idle.saturating_add(1),
                        }
                    }
                    if self.wanted(group) {
                        break;
                    }
                    std::hint::spin_loop();
                }
            }
            drop(models);
            match work {
                Work::Busy => rest.busy(),
                Work::Idle => {
                    if let Some(quiet) = rest.quiet_for(Instant::now()) {
                        self.rest(quiet);
                    }
                }
            }
            if idle > PATIENCE {
                std::thread::yield_now();
            }
        }
    }

    /// Nothing has happened for so long: rests, if it is time for that and nothing comes meanwhile.
    #[cold]
    fn rest(&self, quiet: Duration) {
        // Miri can't wait for several descriptors.
        if cfg!(miri) {
            return;
        }
        // The list is looked at behind that, so that it is not an old one which is slept by.
        self.bell.arm();
        if self.waiting.load(Ordering::Acquire) > 0 {
            return self.bell.disarm();
        }
        let models = self.models.lock().unwrap_or_else(|e| e.into_inner()).clone();
        let naps = models.iter().any(|slot| slot.mapped.load(Ordering::Relaxed));
        let spins = models.iter().any(|slot| slot.spin.load(Ordering::Relaxed));
        // The last one is gone, so that the thread ends; or it is too early for a nap.
        if models.is_empty() || spins || naps && Wakes::Some.rest(quiet, None).is_none() {
            return self.bell.disarm();
        }
        models.iter().for_each(|slot| slot.bell.arm());
        let bells = || std::iter::once(&self.bell).chain(models.iter().map(|slot| &slot.bell));
        if let Some((wakes, due, wires)) = self.arm(&models)
            && let Some(time) = wakes.rest(quiet, due)
        {
            let own = bells().map(|bell| PollFd::new(bell.eventfd(), PollFlags::IN)).collect();
            self.rests.fetch_add(1, Ordering::Relaxed);
            let _ = super::rest::wait(own, wires.into_iter().flatten().map(AsFd::as_fd), time);
            self.rests.fetch_add(1, Ordering::Relaxed);
            bells().for_each(Bell::silence);
        }
        bells().for_each(Bell::disarm);
    }

    /// Arms the models and polls once more; `None` where somebody wants one, or there is work.
    fn arm<'m>(&self, models: &'m [Arc<Slot>]) -> Option<Armed<'m>> {
        let (mut wakes, mut due, mut wires) = (Wakes::All, None::<Instant>, Vec::new());
        for slot in models {
            if slot.mapped.load(Ordering::Relaxed) || slot.wakeups.is_none() {
                wakes = Wakes::Some;
            }
            let (own, at) = Wakes::of(slot.own().arm());
            match own {
                Wakes::Some => wakes = Wakes::Some,
                Wakes::All => wires.extend(&slot.wakeups),
            }
            due = due.into_iter().chain(at).min();
        }
        // What was armed, bells and models, is seen by whoever brings work, or their work is seen by the poll that follows.
        barrier::store_then_load();
        let idle = !self.wanted(models) && models.iter().all(|slot| slot.own().poll() == Work::Idle);
        idle.then_some((wakes, due, wires))
    }
}

#[cfg(all(test, not(miri)))]
mod tests;

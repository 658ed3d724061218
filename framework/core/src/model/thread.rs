//! Threads that run models: one model each, or several that take turns on one core.
//!
//! A thread holds its models' locks for a while, since a lock costs more than an idle look, and steps aside for whoever wants to talk to one.

use super::{Model, ModelFunction};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::thread::JoinHandle;

use crate::{Error, Result, Work};

/// How many turns a thread takes before it looks whether it is still wanted.
const TURNS: u32 = 64;
/// How many models are locked together: the ports of a pair belong together, and more than a few don't fit one core.
const TOGETHER: usize = 4;
/// Idle turns after which whoever is waited for gets to run, where there are fewer cores than threads.
const PATIENCE: u32 = 4096;

/// The function, and who wants to talk to it: its thread steps aside for them.
pub(super) struct Slot {
    function: Mutex<Box<ModelFunction<dyn Model>>>,
    waiting: AtomicU32,
}

impl Slot {
    pub(super) fn new(function: Box<ModelFunction<dyn Model>>) -> Self {
        Self { function: Mutex::new(function), waiting: AtomicU32::new(0) }
    }

    /// The function, for a call from outside; its thread is kept from taking it again first.
    pub(super) fn lock(&self) -> MutexGuard<'_, Box<ModelFunction<dyn Model>>> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let function = self.own();
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        function
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
    tid: OnceLock<i32>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl ModelThread {
    pub(super) fn spawn(slot: Arc<Slot>, prepare: impl FnOnce() + Send + 'static) -> Result<Self> {
        let runner = Arc::new(Runner {
            models: Mutex::new(vec![slot.clone()]),
            waiting: AtomicU32::new(0),
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

impl Runner {
    /// The models, for a change from outside.
    fn list(&self) -> MutexGuard<'_, Vec<Arc<Slot>>> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let models = self.models.lock().unwrap_or_else(|e| e.into_inner());
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        models
    }

    /// Someone wants to talk to one of these, or to change the list.
    fn wanted(&self, group: &[Arc<Slot>]) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0 || group.iter().any(|slot| slot.waiting.load(Ordering::Relaxed) > 0)
    }

    fn run(&self) {
        let mut idle = 0u32;
        loop {
            if self.waiting.load(Ordering::Relaxed) > 0 {
                std::thread::yield_now();
                continue;
            }
            let models = self.models.lock().unwrap_or_else(|e| e.into_inner());
            if models.is_empty() {
                return;
            }
            for group in models.chunks(TOGETHER) {
                if self.wanted(group) {
                    std::thread::yield_now();
                    continue;
                }
                let mut functions = [const { None }; TOGETHER];
                functions.iter_mut().zip(group).for_each(|(function, slot)| *function = Some(slot.own()));
                for _ in 0..TURNS {
                    for function in functions.iter_mut().flatten() {
                        match function.poll() {
                            Work::Busy => idle = 0,
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
            if idle > PATIENCE {
                std::thread::yield_now();
            }
        }
    }
}

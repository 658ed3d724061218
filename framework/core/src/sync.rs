//! What rings, resets, bells and the widths of words synchronise by: the standard library's, or, with `--cfg loom`, that of `loom`, which tries every
//! order in which threads can run and see each other's stores. Only its tests run so.
//!
//! Words of rings that devices read are *not* of this: an atomic of loom's is no word in memory, so it cannot lie in a mapping. Miri has those.

#[cfg(loom)]
pub(crate) use loom::{
    hint::spin_loop,
    sync::{Arc, Mutex, MutexGuard, atomic},
    thread::yield_now,
};
#[cfg(not(loom))]
pub(crate) use std::{
    hint::spin_loop,
    sync::{Arc, Mutex, MutexGuard, atomic},
    thread::yield_now,
};

/// Runs `body` in every order that differs, with at most three preemptions: more than that find what three do, as a rule, and take hours.
#[cfg(all(test, loom))]
pub(crate) fn explore(body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(body);
}

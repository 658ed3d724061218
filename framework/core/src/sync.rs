//! What rings and resets synchronise by: the standard library's, or, with `--cfg loom`, that of `loom`, which tries every order in which threads can
//! run and see each other's stores. Only its tests run so.

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

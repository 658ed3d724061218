//! Rings between cores: bounded queues of owned items, by which pollers hand each other work and pools keep what is free.
//!
//! - [`spsc`]: one producer, one consumer, each an owned handle. The cheapest way from core to core.
//! - [`Ring`]: any number of each, shared by reference.
//! - [`Stash`]: one core's own stack in front of a [`Ring`], so that most takes and puts touch nothing shared.
//!
//! Every operation exists for one item and for many. *Bulk* means all or nothing, *burst* as many as there are or as there is room for.
//! Many items cost one update of the shared index, as one item does. Nothing here allocates (but for a `Vec` that the caller brings
//! and that has no room), locks or calls the system, save that a core which waits for a preempted one yields.
//!
//! This file does *not* know about devices: for rings that hardware reads see [`DmaRing`](crate::mem::DmaRing).

mod mpmc;
mod single;
mod slots;
mod stash;

pub use mpmc::Ring;
pub use single::{Consumer, Producer, spsc};
pub use stash::Stash;

#[cfg(all(test, loom))]
mod exhaustive;
#[cfg(all(test, not(loom)))]
mod tests;

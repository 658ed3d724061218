//! Rings between cores: bounded queues of owned items, by which pollers pass work to each other and pools keep free buffers.
//!
//! - [`spsc`]: one producer and one consumer, each an owned handle. The cheapest way from core to core.
//! - [`Ring`]: any number of producers and consumers, shared by reference.
//! - [`Stash`]: one core's own stack in front of a [`Ring`], so that most operations touch nothing shared.
//!
//! Every operation exists for one item and for many. *Bulk* means all or nothing, *burst* as many as there are or as there is room for; the terms are
//! those of DPDK's `rte_ring`. Many items cost one update of the shared index, as one item does. Nothing here allocates (except a `Vec` of the
//! caller's that has no room), locks or makes a system call, except that a core which waits for a preempted one yields.
//!
//! ```
//! # use wholebar_core as wholebar;
//! use wholebar::ring::{Ring, spsc};
//!
//! let (mut producer, mut consumer) = spsc(8)?;
//! producer.push("a packet").expect("room");
//! assert_eq!(consumer.pop(), Some("a packet"));
//!
//! let ring = Ring::new(4)?;
//! let mut items = vec![1, 2, 3, 4, 5];
//! // As many as there is room for; the rest stays.
//! assert_eq!((ring.push_burst(&mut items), items), (4, vec![5]));
//! let mut out = Vec::new();
//! // All or nothing.
//! assert!(!ring.pop_bulk(&mut out, 5) && ring.pop_bulk(&mut out, 4));
//! # Ok::<_, wholebar::Error>(())
//! ```
//!
//! This module does *not* know about devices: rings that hardware reads are [`DmaRing`](crate::mem::DmaRing)s.

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

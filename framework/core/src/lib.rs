//! **wholebar** is a framework for userspace, polled-mode PCI drivers.
//!
//! It maps whole BARs (MSI-X table included, when the platform isolates the device's interrupts), polls queues that are owned
//! values on pinned cores, and leaves MSI-X to the slow path. Drivers built on it contain no unsafe code.
//!
//! | module | what it is |
//! |---|---|
//! | [`pci`] | the seam: a PCI function as VFIO describes one, and its configuration space |
//! | [`bar`] | the plan that decides what of a BAR is mapped; registers, doorbells, the MSI-X table |
//! | [`mem`] | arenas of DMA memory, address spaces, rings of atomic words, buffer pools |
//! | [`irq`] | interrupts as eventfds |
//! | [`ring`] | rings between cores |
//! | [`reactor`], [`cores`] | one thread on one core that runs pollers, asleep or awake |
//! | [`block`] | storage: the traits of disks and of their queues |
//! | [`net`] | packets: bursts, the queue and port traits of network drivers, their configuration and counters |
//! | [`reset`] | the protocol by which a device is reset while its queues live on other cores |
//! | [`control_plane`] | the control plane of a device: its lock, its slow path, its resets; the same for every driver |
//! | [`vfio`] | devices through the kernel's VFIO |
//! | [`listener`] | Unix sockets that servers listen at |
//! | `vfio_user` | the seam over a Unix socket: a client, and a server for any model; with the feature `vfio-user` |
//! | [`model`] | the device side of the seam: software devices, in this process |

#![cfg_attr(
    not(feature = "vfio-user"),
    allow(dead_code, reason = "parts of models and memory are for vfio-user alone")
)]

pub mod bar;
pub mod barrier;
pub mod block;
mod cell;
pub mod control_plane;
pub mod cores;
mod driver_error;
mod error;
pub mod irq;
pub mod listener;
pub mod mem;
pub mod model;
pub mod net;
mod page;
pub mod pci;
mod prefetch;
pub mod reactor;
pub mod reset;
pub mod ring;
mod sigbus;
mod sync;
mod table;
#[cfg(not(miri))]
pub mod tap;
pub mod vfio;
#[cfg(feature = "vfio-user")]
pub mod vfio_user;

/// crossbeam's channels: events of devices come by their receivers.
pub use crossbeam_channel as channel;
pub use driver_error::DriverError;
pub use error::{Error, Result};
pub use page::PageSize;
pub use table::Table;

/// What one turn of a poll loop found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Nothing to do.
    Idle,
    /// Something was done.
    Busy,
}

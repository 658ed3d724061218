//! **wholebar** is a framework for userspace, polled-mode PCI drivers. Applications depend on the crate `wholebar`, which contains this one.
//!
//! It maps whole BARs (MSI-X table included, where the platform isolates the device's interrupts), polls queues that are owned
//! values on pinned cores, and leaves MSI-X to the slow path. Drivers built on it contain no unsafe code.
//!
//! | module | contents |
//! |---|---|
//! | [`pci`] | PCI functions as VFIO describes them, and configuration space |
//! | [`bar`] | the plan that decides which parts of a BAR are mapped; registers, doorbells, the MSI-X table |
//! | [`mem`] | arenas of DMA memory, device address spaces, rings of atomic words, buffer pools |
//! | [`irq`] | interrupts as eventfds |
//! | [`ring`] | rings between cores |
//! | [`reactor`], [`cores`] | threads pinned to cores that run pollers, asleep or awake |
//! | [`block`] | storage: the traits of disks and of their queues |
//! | [`net`] | network: the traits of ports and of their queues, bursts, configuration, counters |
//! | [`reset`] | the protocol by which a device is reset while its queues live on other cores |
//! | [`control_plane`] | the control plane of a device: lock, slow path, resets; the same for every driver |
//! | [`vfio`] | devices through the kernel's VFIO |
//! | [`listener`] | Unix sockets on which servers listen |
//! | `vfio_user` | devices over a Unix socket: a client, and a server for any model; with the feature `vfio-user` |
//! | `vhost_user` | virtio devices that other processes serve as vhost-user back ends; with the feature `vhost-user` |
//! | `kernel` | the kernel's own paths to its interfaces; with the feature `kernel` |
//! | [`model`] | device models in this process |
//! | `server` | models served to other processes: the part that both protocols share |
//!
//! A function that keeps a device, an arena or whatever else is shared takes its [`Arc`](std::sync::Arc) by value: who needs it afterwards passes a clone. One that only
//! uses it takes a plain reference (`&Arena`, `&dyn PciDevice`), and one that lends it returns `&Arc`. So a caller sees what will be kept alive.

#![cfg_attr(
    not(all(feature = "vfio-user", feature = "vhost-user")),
    allow(dead_code, reason = "parts of models and memory are for peers behind sockets alone")
)]

pub mod bar;
pub mod barrier;
pub mod block;
mod cell;
pub mod control_plane;
pub mod cores;
mod driver_error;
mod error;
#[cfg(any(feature = "vfio-user", feature = "vhost-user"))]
mod files;
pub mod irq;
#[cfg(all(feature = "kernel", not(miri)))]
pub mod kernel;
pub mod listener;
pub mod mem;
pub mod model;
pub mod net;
#[cfg(any(feature = "vfio-user", feature = "vhost-user"))]
mod pace;
mod page;
#[cfg(any(feature = "vfio-user", feature = "vhost-user"))]
mod patience;
pub mod pci;
mod prefetch;
pub mod reactor;
pub mod reset;
pub mod ring;
#[cfg(any(feature = "vfio-user", feature = "vhost-user"))]
pub mod server;
mod sigbus;
#[cfg(any(feature = "vfio-user", feature = "vhost-user"))]
mod socket;
mod sync;
mod table;
#[cfg(not(miri))]
pub mod tap;
pub mod vfio;
#[cfg(feature = "vfio-user")]
pub mod vfio_user;
#[cfg(feature = "vhost-user")]
pub mod vhost_user;

/// crossbeam's channels: [`Receiver`](channel::Receiver)s have the events of devices.
pub use crossbeam_channel as channel;
pub use driver_error::DriverError;
pub use error::{Error, Result};
pub use page::PageSize;
pub use table::Table;

/// The result of one poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// There was nothing to do.
    Idle,
    /// Something was done.
    Busy,
}

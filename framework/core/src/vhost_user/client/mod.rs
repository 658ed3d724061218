//! The front end: a virtio PCI function of this process, whose queues another process serves.

mod config_space;
mod control;
mod device;
mod function;
mod inflight;
mod kind;
mod link;
mod memory;
mod options;
mod peer;
mod queues;
mod registers;

pub use device::VhostUser;
pub use options::{DeviceType, Options};

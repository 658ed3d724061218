//! Device models: software devices for drivers to run on where there is no hardware.
//!
//! - [`nvme`]: an NVMe controller.
//! - [`fpga`]: a DMA copy engine beside an MSI-X table: what a driver of one's own is written for.
//! - [`virtio`]: a network card and a disk; [`wire`]: what its packets pass.
//! - [`faults`]: what models can be told to do wrong.
//! - [`config`]: the configuration space of a model of one's own.
//! - [`pcap`]: captures, read packet by packet.
//! - [`Target`], [`open`]: a model by its name, on a thread of its own; [`serve`], [`serve_vhost_user`]: a model for other processes.
//!
//! Models know nothing of drivers: they share the bus and the specification with them, and no types.

mod coalesce;
pub mod config;
mod error;
pub mod faults;
pub mod fpga;
mod media;
pub mod nvme;
mod params;
pub mod pcap;
mod serve;
mod target;
pub mod virtio;
pub mod wire;

pub use error::{Error, Result};
pub use params::Parameter;
pub use serve::{serve, serve_vhost_user};
pub use target::{MODELS, ModelParams, Opened, Target, open};

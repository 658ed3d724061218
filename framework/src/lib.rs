//! **wholebar** is a framework for userspace, polled-mode PCI drivers: this crate is all that an application depends on.
//!
//! It holds no code of its own but the names of devices and drivers. What it is made of are features:
//!
//! | feature | what it adds | by default |
//! |---|---|---|
//! | `nvme` | `nvme`: a driver for NVMe controllers | yes |
//! | `virtio` | `virtio`: a driver for virtio network and block devices | yes |
//! | `igb` | `igb`: a driver for Intel's 82576 | yes |
//! | `vfio-user` | `vfio_user`: devices over Unix sockets, whose targets begin with `vfio-user:` | yes |
//! | `sim` | `sim`: device models in this process, whose targets begin with `sim:` | no |
//! | `faults` | `net::Faulty`: queues that do to packets what wires do | no |
//! | `capture` | `capture`: packets of any queue in pcapng files | no |
//! | `statistics` | `statistics`: what ports, queues and pools count, for other processes | no |
//!
//! Everything else is the core, [`wholebar_core`], under this crate's name.

pub use wholebar_core::*;

#[cfg(feature = "capture")]
pub use wholebar_capture as capture;
#[cfg(feature = "igb")]
pub use wholebar_igb as igb;
#[cfg(feature = "nvme")]
pub use wholebar_nvme as nvme;
#[cfg(feature = "sim")]
pub use wholebar_sim as sim;
#[cfg(feature = "statistics")]
pub use wholebar_statistics as statistics;
#[cfg(feature = "virtio")]
pub use wholebar_virtio as virtio;

//! The kernel's own path to disks and networks: a file or a block device as a [`Disk`](wholebar_core::block::Disk), a network interface as a
//! [`Port`](wholebar_core::net::Port).
//!
//! No device is taken from its driver here: requests and packets go through the kernel, by the fastest interface it has for them. It is what a userspace driver is
//! measured against, and it brings programs made for wholebar to devices that VFIO cannot have.
//!
//! A [`Target`] names one of either: with a slash in it a path, without one an interface.
//!
//! ```
//! use wholebar_kernel::Target;
//!
//! assert!(matches!(Target::parse("/dev/nvme0n1")?, Target::Disk(_)));
//! assert!(matches!(Target::parse("eth0")?, Target::Port(_)));
//! # Ok::<(), wholebar_kernel::Error>(())
//! ```

pub mod blk;
mod error;
pub mod net;
mod target;

pub use error::{Error, Result};
pub use target::Target;

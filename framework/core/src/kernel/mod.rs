//! The kernel's own paths to devices, for drivers that are none of a device's but of the kernel's interfaces.
//!
//! - [`Uring`]: requests to a file or a block device, through io_uring.
//!
//! It makes soundness of what the kernel offers as shared memory and system calls; what a disk is made of that is the crate `wholebar-kernel`'s.

mod uring;

pub use uring::{Completed, Full, Operation, Uring, UringOptions};

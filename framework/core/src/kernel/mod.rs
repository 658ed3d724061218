//! The kernel's own paths to devices, for drivers that are none of a device's but of the kernel's interfaces.
//!
//! - [`Uring`]: requests to a file or a block device, through io_uring.
//! - [`PacketSocket`], [`PacketRing`]: packets of a network interface.
//!
//! It makes soundness of what the kernel offers as shared memory and system calls; what a disk or a port is made of that is the crate `wholebar-kernel`'s.

mod packet;
mod sys;
#[cfg(test)]
mod tests;
mod uring;

pub use packet::{
    Destination, Frame, MAX_SLOTS, Malformed, Membership, NetHeader, PacketRing, PacketSocket, PacketStatistics,
    SEND_BURST, SEND_SEGMENTS,
};
pub use uring::{Completed, Full, Operation, Uring, UringOptions};

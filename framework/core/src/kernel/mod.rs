//! The kernel's own paths to devices, for drivers that are none of a device's but of the kernel's interfaces.
//!
//! - [`Uring`]: requests to a file or a block device, through io_uring.
//! - [`PacketSocket`], [`PacketRing`]: packets of a network interface.
//! - [`Wakeup`]: wakes who sleeps until either has a packet.
//! - [`XdpProgram`], [`xdp`]: packets of one of its queues, before the kernel's stack has seen them.
//!
//! It makes soundness of what the kernel offers as shared memory and system calls; what a disk or a port is made of that is the crate `wholebar-kernel`'s.

mod bpf;
mod packet;
mod sys;
#[cfg(test)]
mod tests;
mod uring;
mod wakeup;
pub mod xdp;

pub use bpf::XdpProgram;

pub use packet::{
    Destination, Frame, MAX_SLOTS, Malformed, Membership, NetHeader, PacketRing, PacketSocket, PacketStatistics,
    SEND_BURST, SEND_SEGMENTS,
};
pub use uring::{Completed, Full, NVME_STATUS, NvmeNamespace, Operation, Uring, UringOptions};
pub use wakeup::Wakeup;

//! The kernel's own paths to devices, for drivers that are none of a device's but of the kernel's interfaces.
//!
//! - [`PacketSocket`], [`PacketRing`]: packets of a network interface.
//!
//! It makes soundness of what the kernel offers as shared memory and system calls; what a port is made of that is the crate `wholebar-kernel`'s.

mod packet;
mod sys;
#[cfg(test)]
mod tests;

pub use packet::{
    Destination, Frame, MAX_SLOTS, Malformed, Membership, NetHeader, PacketRing, PacketSocket, PacketStatistics,
    SEND_BURST, SEND_SEGMENTS,
};

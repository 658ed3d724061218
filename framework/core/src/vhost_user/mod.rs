//! vhost-user: virtio devices of other processes, over Unix sockets.
//!
//! The protocol is that of docs/interop/vhost-user.rst in QEMU's tree. Not spoken: logging (migration), an IOMMU's messages, postcopy and in-band
//! notifications.

mod server;
#[allow(dead_code, reason = "the numbers are the protocol's; each side uses its own")]
mod wire;

#[allow(dead_code, reason = "both sides use them")]
/// A message, and the descriptors that came with it.
pub(crate) type Frame = crate::socket::Frame<wire::Header>;
#[allow(dead_code, reason = "both sides use them")]
/// One end of a connection.
pub(crate) type Socket = crate::socket::Socket<wire::Header>;

pub use server::{Server, VirtioModel};

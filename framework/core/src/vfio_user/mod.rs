//! vfio-user: a PCI function behind a Unix socket, as [client](VfioUser) and as [server](Server).
//!
//! Version 0.1 of the protocol, as libvfio-user and QEMU (from 10.1 on) speak it: regions by message or by mapping the server's
//! files, DMA by sending the memory files of arenas, interrupts by sending eventfds. Not here: migration, dirty pages, I/O region descriptors,
//! and DMA by message: memory without a file cannot be shared.
//!
//! Neither side trusts the other. Whatever arrives is checked before it is used; what is wrong is answered with an error where the
//! framing still holds, and ends the connection where it doesn't.

mod client;
mod files;
mod peer;
mod regions;
mod server;
mod session;
mod socket;
mod wire;

pub use client::{Options, VfioUser};
pub use server::Server;

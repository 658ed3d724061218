//! vfio-user: PCI functions behind Unix sockets, as [client](VfioUser) and as [server](Server).
//!
//! Version 0.1 of the protocol, as libvfio-user and QEMU (from 10.1 on) speak it: regions by message or by mapping the server's
//! files, DMA by sending the memory files of arenas, interrupts by sending eventfds. Not implemented: migration, dirty pages, I/O region descriptors,
//! and DMA by message. An arena without a memory file cannot be attached.
//!
//! Neither side trusts the other. Whatever arrives is checked before it is used. An error is answered where the message could be delimited, and ends the
//! connection where it could not.
//!
//! ```no_run
//! # use wholebar_core as wholebar;
//! use wholebar::pci::PciDevice;
//! use wholebar::vfio_user::{Options, VfioUser};
//!
//! let device = VfioUser::connect("/run/nvme.sock", Options::default())?;
//! println!("{} has {} regions", device.name(), device.info().regions);
//! # Ok::<_, wholebar::Error>(())
//! ```

mod client;
mod options;
mod peer;
mod regions;
mod server;
mod session;
mod wire;

pub use client::VfioUser;
pub use options::Options;
pub use server::Server;

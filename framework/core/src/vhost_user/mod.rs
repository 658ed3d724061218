//! vhost-user: virtio devices over Unix sockets, as front end ([`VhostUser`]) and as back end ([`Server`]).
//!
//! The protocol is that of docs/interop/vhost-user.rst in QEMU's tree. Not spoken: logging (migration), an IOMMU's messages, postcopy and in-band
//! notifications.
//!
//! Neither side trusts the other. Whatever arrives is checked before it is used.
//!
//! ```no_run
//! # use wholebar_core as wholebar;
//! use wholebar::pci::PciDevice;
//! use wholebar::vhost_user::{Options, VhostUser};
//!
//! let device = VhostUser::connect("/run/disk.sock", Options::default())?;
//! println!("{} is a {:?} device", device.name(), device.device_type());
//! # Ok::<_, wholebar::Error>(())
//! ```

mod client;
mod server;
#[allow(dead_code, reason = "the numbers are the protocol's; each side uses its own")]
mod wire;

pub use client::{DeviceType, Options, VhostUser};
pub use server::{QueueRecord, Server, VirtioModel, Wait};

/// A message, and the descriptors that came with it.
pub(crate) type Frame = crate::socket::Frame<wire::Header>;
/// One end of a connection.
pub(crate) type Socket = crate::socket::Socket<wire::Header>;

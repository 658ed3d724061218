//! Network interfaces as [`Port`]s, through the kernel: by packet sockets (`AF_PACKET`), whose ring is polled without system calls; what is sent takes one
//! a burst.
//!
//! The interface stays the kernel's. Its stack still sees every packet that comes, so that an interface with an address of its own is refused unless
//! `,force` is said: two would answer. What is asked of the interface, promiscuous mode for one, ends with the port.
//!
//! Packets come whole and complete. What a card merged, or a virtual interface (`veth`, a bridge) never cut nor completed the checksums of, is cut and
//! completed here.
//!
//! ```no_run
//! use wholebar_core::net::PortConfig;
//! use wholebar_kernel::net;
//!
//! let port = net::open(&net::Target::parse("eth1")?, &PortConfig::default())?;
//! println!("{}: {}, link {}", port.name(), port.mac(), port.link());
//! # Ok::<(), wholebar_kernel::Error>(())
//! ```

mod cut;
mod error;
mod filter;
mod netlink;
mod port;
mod rx;
mod target;
mod tx;
mod uses;
mod watch;

pub use error::Error;
pub use target::Target;

use crate::Result;
use wholebar_core::net::{Port, PortConfig};

/// Opens an interface as a port.
///
/// # Errors
/// [`Error`] where there is no such interface, it is none of Ethernet, is down or in use, or what `config` asks for is more than it has; where this process
/// may not (CAP_NET_RAW).
pub fn open(target: &Target, config: &PortConfig) -> Result<Box<dyn Port>> {
    Ok(Box::new(port::KernelPort::open(target, config)?))
}

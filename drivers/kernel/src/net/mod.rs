//! Network interfaces as [`Port`]s, through the kernel, by one of two paths ([`Mode`]).
//!
//! **Packet sockets** (`AF_PACKET`), which every interface has: a ring that the kernel fills is polled without system calls; what is sent takes one a burst. The
//! kernel's stack still sees every packet that comes. Packets come whole and complete: what a card merged, or a virtual interface (`veth`, a bridge) never cut nor
//! completed the checksums of, is cut and completed here. Several queues share what comes by a hash of flows.
//!
//! **AF_XDP sockets** (`mode=xdp`) take the packets of some of the interface's own queues before the kernel's stack sees them: those of `queue=N`, by default 0, and the
//! following ones, as many as the port has. What comes on others stays the kernel's, so that a card with several queues has to be told which flows go where
//! (`ethtool -L`, `-X`, `-N`). The kernel copies, or with `zerocopy` the card itself writes. This path says of no packet what was left out of it: of a pair of
//! virtual interfaces, checksums that hold no more than their pseudo header's sum are completed.
//!
//! The interface stays the kernel's. One with an address, a default route or a part in a bridge is refused unless `force` is said: two would answer. What is
//! asked of the interface, promiscuous mode or the program of AF_XDP, ends with the port, or the process.
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
mod shared;
mod sockets;
mod target;
mod tx;
mod uses;
mod watch;
mod xdp;

pub use error::Error;
pub use netlink::with_xdp_programs;
pub use target::{Mode, Target};

use crate::Result;
use wholebar_core::net::{Port, PortConfig};

/// Opens an interface as a port.
///
/// # Errors
/// [`Error`] where there is no such interface, it is none of Ethernet, is down or in use, or what `config` asks for is more than it has; where this process
/// may not (CAP_NET_RAW; for AF_XDP CAP_BPF and CAP_NET_ADMIN besides).
pub fn open(target: &Target, config: &PortConfig) -> Result<Box<dyn Port>> {
    Ok(Box::new(port::KernelPort::open(target, config)?))
}

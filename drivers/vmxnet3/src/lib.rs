//! A driver for vmxnet3, VMware's paravirtual Ethernet controller: polled, without unsafe code.
//!
//! [`Vmxnet3`] is one port of the device: address, link, filters, counters, resets; it is a [`Port`](wholebar_core::net::Port). [`Rx`] and [`Tx`] are
//! queues, owned values for one core each. Doorbells and interrupt masks are in BAR0, commands in BAR1, the MSI-X table in BAR2, so it matters not whether
//! BARs are planned whole or carved. BAR0 has 4 KiB: a host with larger pages maps it only where it begins a page, and else the doorbell is a system call,
//! once a burst that is sent (`wholebar barmap` says which, and what mends it). Interrupts are for the link, and for idle cores.
//!
//! ```no_run
//! # fn open() -> std::sync::Arc<dyn wholebar_core::pci::PciDevice> { unimplemented!() }
//! use wholebar_core::mem::{Arena, ArenaOptions, Pool};
//! use wholebar_core::net::{Burst, PortConfig};
//! use wholebar_vmxnet3::{Options, Vmxnet3};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let vmxnet3 = Vmxnet3::open(open(), PortConfig::default(), Options::default())?;
//! let arena = Arena::new(8 << 20, ArenaOptions::default())?;
//! // 128 bytes of headroom are the default.
//! let pool = Pool::new(arena.clone(), 2048, 2048 + 128, 64)?;
//! vmxnet3.attach(arena)?;
//! let (mut rx, mut tx, mut burst) = (vmxnet3.rx(0, &pool)?, vmxnet3.tx(0)?, Burst::new(32));
//! loop {
//!     // Back to where they came from.
//!     rx.rx(&mut burst);
//!     tx.tx(&mut burst);
//! }
//! # }
//! ```

mod descriptor;
mod device;
mod error;
mod hardware;
mod member;
mod port;
mod regs;
mod rx;
mod rx_ring;
mod settings;
mod shared;
mod tx;
mod tx_ring;
mod vmxnet3;

pub use error::{Error, Fault, Result};
pub use hardware::IDS;
pub use rx::Rx;
pub use tx::Tx;
pub use vmxnet3::Vmxnet3;
pub use wholebar_core::control_plane::Service;
pub use wholebar_core::net::NicOptions as Options;

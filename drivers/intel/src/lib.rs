//! Drivers for Intel's Gigabit Ethernet controllers, by their datasheets, polled, without unsafe code: the 82576 ([`igb`]), its virtual
//! functions ([`igbvf`]), and the 82574 ([`e1000e`]).
//!
//! [`Nic`] is one port of a device: address, link, filters, counters, resets; it is a [`Port`](wholebar_core::net::Port). [`Rx`] and [`Tx`] are
//! queues, owned values for one core each. What families do in their own way is in their modules, all else is the same for them. Registers are in BAR0 and
//! the MSI-X table in BAR3, so registers are mapped whichever way BARs are planned, unless nothing is. Interrupts are for the link, and for idle cores.
//!
//! ```no_run
//! # fn open() -> std::sync::Arc<dyn wholebar_core::pci::PciDevice> { unimplemented!() }
//! use wholebar_core::mem::{Arena, ArenaOptions, Pool};
//! use wholebar_core::net::{Burst, PortConfig};
//! use wholebar_intel::Options;
//! use wholebar_intel::igb::Igb;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let igb = Igb::open(open(), PortConfig::default(), Options::default())?;
//! let arena = Arena::new(8 << 20, ArenaOptions::default())?;
//! // 128 bytes of headroom are the default.
//! let pool = Pool::new(arena.clone(), 2048, 2048 + 128, 64)?;
//! igb.attach(arena)?;
//! let (mut rx, mut tx, mut burst) = (igb.rx(0, &pool)?, igb.tx(0)?, Burst::new(32));
//! loop {
//!     // Back to where they came from.
//!     rx.rx(&mut burst);
//!     tx.tx(&mut burst);
//! }
//! # }
//! ```

mod clock;
mod control;
mod descriptor;
mod device;
pub mod e1000e;
pub mod errata;
mod error;
mod family;
mod hardware;
pub mod igb;
pub mod igbvf;
mod nic;
mod offload;
mod port;
mod regs;
mod rx;
mod rx_ring;
mod settings;
mod tx;
mod tx_ring;

pub use error::{Error, Fault, Result};
pub use nic::Nic;
pub use rx::Rx;
pub use tx::Tx;
pub use wholebar_core::control_plane::Service;
pub use wholebar_core::net::NicOptions as Options;

/// A family of controllers, over which [`Nic`], [`Rx`] and [`Tx`] are generic: [`igb::I82576`] or [`e1000e::I82574`]. What it does is this crate's own, so
/// that nobody else can implement it.
pub trait Controller: family::Family {}

impl<F: family::Family> Controller for F {}

//! A virtio driver: network and block devices over modern PCI by VIRTIO 1.2, on split and on packed rings, polled, without unsafe code.
//!
//! [`Net`] is a network device, a [`Port`](wholebar_core::net::Port): link, filters, events, statistics, resets. Its queues are
//! owned values, one for each core, and packets in flight belong to them, so no safe program can free or reuse a buffer early.
//! [`Blk`] is a block device, a [`Disk`](wholebar_core::block::Disk), whose [queues](blk::Queue) use the same rings.
//!
//! ```no_run
//! # fn open() -> std::sync::Arc<dyn wholebar_core::pci::PciDevice> { unimplemented!() }
//! use wholebar_core::mem::{Arena, ArenaOptions, Pool};
//! use wholebar_core::net::{Burst, Port, PortConfig};
//! use wholebar_virtio::{Net, Options};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! let port = Net::open(open(), &PortConfig::default(), Options::default())?;
//! let arena = Arena::new(4 << 20, ArenaOptions::default())?;
//! port.attach(arena.clone())?;
//! let pool = Pool::new(arena, 1024, 2048, 64)?;
//! let (mut rx, mut tx) = (port.rx_queue(0, &pool)?, port.tx_queue(0)?);
//! let mut burst = Burst::new(32);
//! loop {
//!     // Sends back whatever comes.
//!     rx.rx(&mut burst);
//!     tx.tx(&mut burst);
//!     burst.give_back();
//! }
//! # }
//! ```

pub mod blk;
mod caps;
mod device;
mod error;
mod feature;
mod hardware;
mod life;
mod net;
mod options;
mod ring;

pub use blk::{BLK_IDS, Blk};
pub use error::{Error, Fault, Result};
pub use net::{Coalescing, NET_IDS, Net};
pub use options::{Options, Service};

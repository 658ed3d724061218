//! Network devices: [`open`] makes a [`Port`] of one, whichever driver it needs. All else is [`wholebar_core::net`].
//!
//! ```
//! # #[cfg(all(feature = "sim", feature = "virtio"))] {
//! use wholebar::net::{self, PortConfig};
//!
//! let port = net::open(&wholebar::open("sim:virtio-net")?, &PortConfig::default())?;
//! println!("{}: {}, driver {}, link {}", port.name(), port.mac(), port.driver(), port.link());
//! # }
//! # Ok::<(), wholebar::OpenError>(())
//! ```

use crate::OpenError;
use crate::drivers::Mapping;
use std::sync::Arc;
use wholebar_core::pci::PciDevice;

pub use wholebar_core::net::*;

/// Drivers of network devices.
pub type Drivers = crate::drivers::Drivers<dyn Port, PortConfig>;
/// A driver of network devices.
pub type Driver = crate::drivers::Driver<dyn Port, PortConfig>;

/// Opens a network device with the driver that is for it, of those that this program has as features.
///
/// # Errors
/// As [`Drivers::open`](crate::drivers::Drivers::open).
pub fn open(device: &Arc<dyn PciDevice>, config: &PortConfig) -> Result<Box<dyn Port>, OpenError> {
    drivers().open(device, config, Mapping::default())
}

/// The drivers of network devices that this program has as features.
pub fn drivers() -> Drivers {
    let drivers = Drivers::new("network");
    #[cfg(feature = "igb")]
    let drivers = drivers.with(Driver {
        name: "igb",
        ids: &wholebar_igb::IDS,
        class: None,
        open: Box::new(|device, config, Mapping { policy, page }| {
            let options = wholebar_igb::Options { policy, page, ..Default::default() };
            Ok(Box::new(wholebar_igb::Igb::open(device, config.clone(), options)?))
        }),
    });
    #[cfg(feature = "virtio")]
    let drivers = drivers.with(virtio(|options| options));
    drivers
}

/// The virtio driver, with [`Options`](wholebar_virtio::Options) of one's own.
#[cfg(feature = "virtio")]
pub fn virtio(change: impl Fn(wholebar_virtio::Options) -> wholebar_virtio::Options + Send + Sync + 'static) -> Driver {
    Driver {
        name: "virtio",
        ids: &wholebar_virtio::NET_IDS,
        class: None,
        open: Box::new(move |device, config, Mapping { policy, page }| {
            let options = change(wholebar_virtio::Options { policy, page, ..Default::default() });
            Ok(Box::new(wholebar_virtio::Net::open(device, config, options)?))
        }),
    }
}

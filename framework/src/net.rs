//! Network devices: [`open`] opens one as a [`Port`], by the driver that it needs. Everything else is [`wholebar_core::net`].
//!
//! ```
//! # #[cfg(all(feature = "sim", feature = "virtio"))] {
//! use wholebar::net::{self, PortConfig};
//!
//! let port = net::open(wholebar::open("sim:virtio-net")?, &PortConfig::default())?;
//! println!("{}: {}, driver {}, link {}", port.name(), port.mac(), port.driver(), port.link());
//! # }
//! # Ok::<(), wholebar::OpenError>(())
//! ```

use crate::drivers::Mapping;
use crate::{OpenError, OpenOptions, Target};
use std::sync::Arc;
use wholebar_core::pci::PciDevice;

pub use wholebar_core::net::*;

/// A table of drivers of network devices.
pub type Drivers = crate::drivers::Drivers<dyn Port, PortConfig>;
/// A driver of network devices.
pub type Driver = crate::drivers::Driver<dyn Port, PortConfig>;

/// Opens a network device by the built-in driver that is for it ([`drivers()`]).
///
/// DPDK: `rte_eth_dev_configure` and what precedes it.
///
/// # Errors
/// As [`Drivers::open`](crate::drivers::Drivers::open).
pub fn open(device: Arc<dyn PciDevice>, config: &PortConfig) -> Result<Box<dyn Port>, OpenError> {
    drivers().open(device, config, Mapping::default())
}

/// Opens the port that a target names, with [`OpenOptions::default`]: a PCI device ([`wholebar::open`](crate::open) has the names), by the built-in driver that is
/// for it; with the feature `kernel`, a network interface by the kernel's own path (`kernel:eth0`); or, with the feature `sim`, the other end of a virtual
/// machine's rings (`vhost-user:/run/x.sock,back-end`).
///
/// # Errors
/// As [`Target::parse`] and [`Drivers::open_target`](crate::drivers::Drivers::open_target).
pub fn open_target(target: &str, config: &PortConfig) -> Result<Box<dyn Port>, OpenError> {
    drivers().open_target(&Target::parse(target)?, &OpenOptions::default(), config, Mapping::default())
}

/// Opens what is a port at once.
#[allow(unused_variables, clippy::match_single_binding, reason = "without features there is none")]
fn direct(target: &Target, config: &PortConfig) -> Option<Result<Box<dyn Port>, OpenError>> {
    match target {
        #[cfg(feature = "kernel")]
        Target::Kernel(wholebar_kernel::Target::Port(target)) => {
            Some(wholebar_kernel::net::open(target, config).map_err(OpenError::from))
        }
        #[cfg(feature = "kernel")]
        Target::Kernel(other) => Some(Err(wholebar_kernel::Error::NotAPort { target: other.to_string() }.into())),
        #[cfg(all(feature = "vhost-user", feature = "sim"))]
        Target::VhostUserBackEnd(target) => {
            Some(wholebar_sim::virtio::net::back_end::open(target, config).map_err(OpenError::from))
        }
        _ => None,
    }
}

/// Returns the table of the built-in drivers of network devices: those of the features `virtio`, `intel` and `vmxnet3`.
pub fn drivers() -> Drivers {
    let drivers = Drivers::new("network", direct);
    #[cfg(feature = "intel")]
    let drivers = {
        use wholebar_intel::{e1000e, igb, igbvf};
        // What drives an 82576 depends on whether it has virtual functions.
        let igb = Driver {
            name: "igb",
            ids: &igb::IDS,
            class: None,
            open: Box::new(|device, config, Mapping { policy, page }| {
                let options = wholebar_intel::Options { policy, page, ..Default::default() };
                Ok(igb::open(device, config.clone(), options)?)
            }),
        };
        drivers
            .with(igb)
            .with(intel::<igbvf::I82576Vf>("igbvf", &igbvf::IDS))
            .with(intel::<e1000e::I82574>("e1000e", &e1000e::IDS))
    };
    #[cfg(feature = "vmxnet3")]
    let drivers = drivers.with(Driver {
        name: "vmxnet3",
        ids: &wholebar_vmxnet3::IDS,
        class: None,
        open: Box::new(|device, config, Mapping { policy, page }| {
            let options = wholebar_vmxnet3::Options { policy, page, ..Default::default() };
            Ok(Box::new(wholebar_vmxnet3::Vmxnet3::open(device, config.clone(), options)?))
        }),
    });
    #[cfg(feature = "virtio")]
    let drivers = drivers.with(virtio(|options| options));
    drivers
}

/// The driver of a family of Intel's controllers.
#[cfg(feature = "intel")]
fn intel<F: wholebar_intel::Controller>(name: &'static str, ids: &'static [(u16, u16)]) -> Driver {
    Driver {
        name,
        ids,
        class: None,
        open: Box::new(|device, config, Mapping { policy, page }| {
            let options = wholebar_intel::Options { policy, page, ..Default::default() };
            Ok(Box::new(wholebar_intel::Nic::<F>::open(device, config.clone(), options)?))
        }),
    }
}

/// Returns the virtio driver with changed options: `change` is given the options that [`open`] would use.
///
/// For [`Drivers::with`](crate::drivers::Drivers::with).
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

//! Storage devices: [`open`] opens one as a [`Disk`], by the driver that it needs. Everything else is [`wholebar_core::block`].
//!
//! ```
//! # #[cfg(all(feature = "sim", feature = "nvme"))] {
//! use wholebar::block::{self, DiskConfig};
//!
//! let disk = block::open(wholebar::open("sim:nvme,size=64M")?, &DiskConfig::default())?;
//! for ns in disk.namespaces() {
//!     println!("{}, namespace {}: {} blocks of {} bytes", disk.name(), ns.nsid, ns.blocks, ns.block_size);
//! }
//! # }
//! # Ok::<(), wholebar::OpenError>(())
//! ```

use crate::drivers::Mapping;
use crate::{OpenError, OpenOptions, Target};
use std::sync::Arc;
#[cfg(feature = "virtio")]
use wholebar_core::pci::Irq;
use wholebar_core::pci::PciDevice;

pub use wholebar_core::block::*;

/// A table of drivers of storage devices.
pub type Drivers = crate::drivers::Drivers<dyn Disk, DiskConfig>;
/// A driver of storage devices.
pub type Driver = crate::drivers::Driver<dyn Disk, DiskConfig>;

/// Opens a storage device by the built-in driver that is for it ([`drivers()`]).
///
/// # Errors
/// As [`Drivers::open`](crate::drivers::Drivers::open).
pub fn open(device: Arc<dyn PciDevice>, config: &DiskConfig) -> Result<Box<dyn Disk>, OpenError> {
    drivers().open(device, config, Mapping::default())
}

/// Opens the disk that a target names, with [`OpenOptions::default`]: a PCI device ([`wholebar::open`](crate::open) has the names), by the built-in driver that is
/// for it; or, with the feature `kernel`, a block device or a file by the kernel's own path (`kernel:/dev/nvme0n1`, `kernel:./disk.img`).
///
/// # Errors
/// As [`Target::parse`] and [`Drivers::open_target`](crate::drivers::Drivers::open_target).
pub fn open_target(target: &str, config: &DiskConfig) -> Result<Box<dyn Disk>, OpenError> {
    drivers().open_target(&Target::parse(target)?, &OpenOptions::default(), config, Mapping::default())
}

/// Opens what is a disk at once.
#[allow(unused_variables, clippy::match_single_binding, reason = "without features there is none")]
fn direct(target: &Target, config: &DiskConfig) -> Option<Result<Box<dyn Disk>, OpenError>> {
    match target {
        #[cfg(feature = "kernel")]
        Target::Kernel(wholebar_kernel::Target::Disk(target)) => {
            Some(wholebar_kernel::blk::open(target, config).map_err(OpenError::from))
        }
        #[cfg(feature = "kernel")]
        Target::Kernel(other) => Some(Err(wholebar_kernel::Error::NotADisk { target: other.to_string() }.into())),
        #[cfg(all(feature = "vhost-user", feature = "sim"))]
        Target::VhostUserBackEnd(target) => {
            let why = format!(
                "{target} is a port, and a disk is asked for: `wholebar sim serve virtio-blk --vhost-user` serves one"
            );
            Some(Err(wholebar_sim::Error::Conflict(why).into()))
        }
        _ => None,
    }
}

/// Returns the table of the built-in drivers of storage devices: those of the features `nvme` and `virtio`.
pub fn drivers() -> Drivers {
    let drivers = Drivers::new("storage", direct);
    #[cfg(feature = "virtio")]
    let drivers = drivers.with(Driver {
        name: "virtio",
        ids: &wholebar_virtio::BLK_IDS,
        class: None,
        open: Box::new(|device, config, Mapping { policy, page }| {
            let options = wholebar_virtio::Options { policy, page, ..Default::default() };
            let DiskConfig { queues, entries: descriptors } = *config;
            // Queues that are polled ask for no interrupts, so that having them costs nothing.
            let vectors = device.irq_info(Irq::Msix).map_or(0, |info| info.count);
            let blk = wholebar_virtio::blk::BlkConfig { queues, descriptors, interrupts: vectors > u32::from(queues) };
            Ok(Box::new(wholebar_virtio::Blk::open(device, &blk, options)?))
        }),
    });
    #[cfg(feature = "nvme")]
    let drivers = drivers.with(Driver {
        name: "nvme",
        ids: &[],
        class: Some(wholebar_nvme::CLASS),
        open: Box::new(|device, config, Mapping { policy, page }| {
            let mut options = wholebar_nvme::Options { policy, page, io_queues: config.queues, ..Default::default() };
            options.entries = config.entries.map_or(options.entries, u32::from);
            Ok(Box::new(wholebar_nvme::Nvme::open(device, options)?))
        }),
    });
    drivers
}

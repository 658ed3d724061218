//! Drivers and the devices they are for: a table, by PCI ids and class, to which an application can add its own.
//!
//! ```
//! # #[cfg(feature = "sim")] {
//! use wholebar::block::{self, DiskConfig, Driver};
//! use wholebar::drivers::Mapping;
//! use wholebar::{DriverError, Error, OpenError};
//!
//! // A driver for one device, which refuses it.
//! let mine = Driver {
//!     name: "mine",
//!     ids: &[(0xfff0, 0x0001)],
//!     class: None,
//!     open: Box::new(|_, _, _| Err(DriverError::from(Error::PageSize { bytes: 0 }))),
//! };
//! let drivers = block::drivers().with(mine);
//! let device = wholebar::open("sim:nvme,size=64M")?;
//! let opened = drivers.open(device, &DiskConfig::default(), Mapping::default());
//! assert!(matches!(opened, Err(OpenError::Driver(_))));
//! # }
//! # Ok::<(), wholebar::OpenError>(())
//! ```

use crate::{OpenError, OpenOptions, Target};
use std::sync::Arc;
use wholebar_core::bar::MapPolicy;
use wholebar_core::pci::{Class, Config, PciDevice};
use wholebar_core::{DriverError, PageSize};

/// A table of drivers of one kind.
///
/// `P` is the trait of opened devices, [`Port`](crate::net::Port) or [`Disk`](crate::block::Disk), and `C` their configuration.
///
/// The built-in drivers are [`net::drivers`](crate::net::drivers) and [`block::drivers`](crate::block::drivers). (Linux: `pci_device_id` tables; DPDK:
/// `rte_pci_driver`.)
pub struct Drivers<P: ?Sized, C> {
    kind: &'static str,
    rows: Vec<Driver<P, C>>,
    direct: Direct<P, C>,
}

/// Opens what is no PCI device and needs no driver; `None` for other targets.
pub(crate) type Direct<P, C> = fn(&Target, &C) -> Option<Result<Box<P>, OpenError>>;

/// A driver: the devices that it is for, and the function that opens one.
pub struct Driver<P: ?Sized, C> {
    /// The driver's name, for errors.
    pub name: &'static str,
    /// PCI vendor and device ids of the devices that the driver is for.
    pub ids: &'static [(u16, u16)],
    /// The PCI class of the devices that the driver is for, whatever their ids; `None` for ids alone.
    pub class: Option<Class>,
    /// Opens a device.
    #[allow(clippy::type_complexity, reason = "it is read once, here")]
    pub open: Box<dyn Fn(Arc<dyn PciDevice>, &C, Mapping) -> Result<Box<P>, DriverError> + Send + Sync>,
}

/// The way in which a device's BARs are mapped, whichever driver opens it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mapping {
    /// How much of the BARs is mapped.
    pub policy: MapPolicy,
    /// The page size to plan the BARs for; `None` for the device's own.
    pub page: Option<PageSize>,
}

impl<P: ?Sized, C> Drivers<P, C> {
    pub(crate) fn new(kind: &'static str, direct: Direct<P, C>) -> Self {
        Self { kind, rows: Vec::new(), direct }
    }

    /// Adds a driver, which takes precedence over those in the table.
    pub fn with(mut self, driver: Driver<P, C>) -> Self {
        self.rows.insert(0, driver);
        self
    }

    /// Opens what a target names: a PCI device, as [`open`](Self::open) does; or a path of the kernel's, or a vhost-user back end's port, which need no
    /// driver, and take neither `options` nor `mapping`.
    ///
    /// # Errors
    /// As [`Target::open`] and [`open`](Self::open); `OpenError::Kernel`, of the feature `kernel`; `OpenError::Model`, of the feature `sim`, where a back end
    /// cannot be what is asked for.
    pub fn open_target(
        &self,
        target: &Target,
        options: &OpenOptions,
        config: &C,
        mapping: Mapping,
    ) -> Result<Box<P>, OpenError> {
        match (self.direct)(target, config) {
            Some(opened) => opened,
            None => self.open(target.open(options)?.device, config, mapping),
        }
    }

    /// Opens a device by the first driver that has its ids, or else by the first that has its class. It reads configuration space once more than the
    /// driver does.
    ///
    /// # Errors
    /// [`OpenError::NoDriver`] where the table has no driver for the device; [`OpenError::Device`] where its configuration space cannot be read;
    /// [`OpenError::Driver`], with the driver's error.
    pub fn open(&self, device: Arc<dyn PciDevice>, config: &C, mapping: Mapping) -> Result<Box<P>, OpenError> {
        let header = Config::of(device.as_ref())?;
        let (ids, class) = ((header.vendor(), header.device()), header.class());
        let by_ids = self.rows.iter().find(|driver| driver.ids.contains(&ids));
        let driver = by_ids.or_else(|| self.rows.iter().find(|driver| driver.class == Some(class)));
        let driver = driver.ok_or_else(|| OpenError::NoDriver {
            device: device.name().to_owned(),
            ids: format!("{:04x}:{:04x}", ids.0, ids.1),
            class: class.to_string(),
            kind: self.kind,
            known: self.known(),
        })?;
        Ok((driver.open)(device, config, mapping)?)
    }

    fn known(&self) -> String {
        let each = self.rows.iter().map(|driver| {
            let ids = driver.ids.iter().map(|(vendor, device)| format!("{vendor:04x}:{device:04x}"));
            let class = driver.class.map(|class| format!("class {class}"));
            format!("{} ({})", driver.name, ids.chain(class).collect::<Vec<_>>().join(", "))
        });
        let mut each: Vec<_> = each.collect();
        // One that takes another's place is for the same devices.
        each.dedup();
        if each.is_empty() {
            "none in this program: see the features of the crate wholebar".to_owned()
        } else {
            each.join(", ")
        }
    }
}

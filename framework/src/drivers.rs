//! Which driver is for a device: a table of them, by PCI ids and class, to which an application can add its own.

use crate::OpenError;
use std::sync::Arc;
use wholebar_core::bar::MapPolicy;
use wholebar_core::pci::{Class, Config, PciDevice};
use wholebar_core::{DriverError, PageSize};

/// Drivers of one kind: `P` is what they make of a device, [`Port`](crate::net::Port) or [`Disk`](crate::block::Disk), and `C` how it is to be.
///
/// Those that are [added](Self::with) last are asked first. The built-in ones are [`net::drivers`](crate::net::drivers) and
/// [`block::drivers`](crate::block::drivers).
pub struct Drivers<P: ?Sized, C> {
    kind: &'static str,
    rows: Vec<Driver<P, C>>,
}

/// A driver: what it is for, and how it opens a device.
pub struct Driver<P: ?Sized, C> {
    /// Its name, for errors.
    pub name: &'static str,
    /// PCI vendors and devices that it is for.
    pub ids: &'static [(u16, u16)],
    /// The PCI class that it is for, whoever made the device: base class, subclass, programming interface.
    pub class: Option<Class>,
    /// Opens a device.
    #[allow(clippy::type_complexity, reason = "it is read once, here")]
    pub open: Box<dyn Fn(Arc<dyn PciDevice>, &C, Mapping) -> Result<Box<P>, DriverError> + Send + Sync>,
}

/// How a device's BARs are mapped, whatever its driver.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mapping {
    /// How much of them.
    pub policy: MapPolicy,
    /// A page size to plan them for; `None` for the device's own.
    pub page: Option<PageSize>,
}

impl<P: ?Sized, C> Drivers<P, C> {
    pub(crate) fn new(kind: &'static str) -> Self {
        Self { kind, rows: Vec::new() }
    }

    /// Adds a driver, which is asked before those that are there.
    pub fn with(mut self, driver: Driver<P, C>) -> Self {
        self.rows.insert(0, driver);
        self
    }

    /// Opens a device by the first driver that is for it: by its ids, or else by its class.
    ///
    /// # Errors
    /// [`OpenError::NoDriver`] where none is; [`OpenError::Device`] where its ids cannot be read; [`OpenError::Driver`] with what the driver says.
    pub fn open(&self, device: &Arc<dyn PciDevice>, config: &C, mapping: Mapping) -> Result<Box<P>, OpenError> {
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
        Ok((driver.open)(device.clone(), config, mapping)?)
    }

    fn known(&self) -> String {
        let each = self.rows.iter().map(|driver| {
            let ids = driver.ids.iter().map(|(vendor, device)| format!("{vendor:04x}:{device:04x}"));
            let class = driver.class.map(|class| format!("class {class}"));
            format!("{} ({})", driver.name, ids.chain(class).collect::<Vec<_>>().join(", "))
        });
        let each: Vec<_> = each.collect();
        if each.is_empty() {
            "none in this program: see the features of the crate wholebar".to_owned()
        } else {
            each.join(", ")
        }
    }
}

//! PCI functions through the kernel's VFIO.
//!
//! [`Vfio::open`] opens a function by its address: by its own node and an iommufd where the kernel offers that, else by its group and a container.
//! [`Vfio::over`] takes descriptors that somebody else opened. The result is a [`PciDevice`](crate::pci::PciDevice), and none of the kernel's
//! types leave this module.
//!
//! ```no_run
//! # use wholebar_core as wholebar;
//! use wholebar::pci::PciDevice;
//! use wholebar::vfio::{Vfio, VfioOptions};
//!
//! let device = Vfio::open("0000:01:00.0".parse()?, &VfioOptions::default())?;
//! println!("{}: interrupts are {:?}", device.name(), device.isolation().verdict);
//! # Ok::<_, wholebar::Error>(())
//! ```
//!
//! There are two libraries for this, and one path. `vfio-ioctls` encodes its requests wrongly for powerpc64 (`_IO` has a direction bit
//! there), knows one kind of IOMMU, returns nothing from region accesses and resets, and panics when a device goes away while it is
//! being closed. Everything that powerpc64 needs too is therefore written once, over the structures of `vfio-bindings` (`ioctl` and
//! `container`). The address spaces of an iommufd, which exist on x86-64 and arm64 alone, are those of `vfio-ioctls` (`iommufd`).
//!
//! | file | contents |
//! |---|---|
//! | `ioctl`, `caps` | the kernel's requests, and its capability chains |
//! | `container`, `iommufd` | the two ways to open a device; `iommu` is their common interface |
//! | `type1`, `spapr`, `noiommu` | the kinds of IOMMU: how memory is mapped |
//! | `device` | the open device: regions, interrupts, reset |
//! | `isolation` | whether its interrupts are isolated |
//! | [`sysfs`] | what Linux shows of PCI functions, opened or not |

mod caps;
mod container;
mod device;
mod ioctl;
mod iommu;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod iommufd;
mod isolation;
mod noiommu;
mod spapr;
pub mod sysfs;
mod type1;

pub use device::Vfio;

use crate::mem::{DmaBackend, DmaSpace};
use crate::pci::Address;
use crate::{Error, Result};
use container::Container;
use iommu::{Iommu, Spaces, Target};
use std::fmt;
use std::os::fd::OwnedFd;
use std::str::FromStr;
use std::sync::Arc;
use sysfs::Sysfs;
use vfio_bindings::bindings::vfio::*;

/// The options with which a device is opened.
#[derive(Debug, Clone, Default)]
pub struct VfioOptions {
    /// The way by which the device is opened.
    pub route: Route,
    /// The kind of IOMMU, where the kernel offers several; `None` for the best.
    pub iommu: Option<IommuType>,
    /// The address space of another open device, to share: one map then serves both. Devices of one IOMMU group share theirs in any case. `None` for
    /// a space of its own.
    pub share: Option<Arc<DmaSpace>>,
    /// The VF token, for a virtual function whose physical function is driven through VFIO.
    pub vf_token: Option<VfToken>,
}

/// The way by which a device is opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Route {
    /// By its own node where the kernel has one, else through its group. Never without an IOMMU.
    #[default]
    Auto,
    /// Through its group, with a container (`/dev/vfio/GROUP`).
    Group,
    /// By its own node, with an iommufd (`/dev/vfio/devices/`, `/dev/iommu`).
    Node,
    /// Through its group, without an IOMMU: the device can reach all memory, and a bug can overwrite any of it.
    NoIommu,
}

/// The kinds of IOMMU that a container can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IommuType {
    /// x86 and arm64, `VFIO_TYPE1v2_IOMMU`: maps are undone exactly as they were made.
    Type1v2,
    /// The first version of it, `VFIO_TYPE1_IOMMU`.
    Type1,
    /// POWER, `VFIO_SPAPR_TCE_v2_IOMMU`: memory is registered, and there can be a second window.
    TceV2,
    /// The first version of it, `VFIO_SPAPR_TCE_IOMMU`.
    TceV1,
    /// No IOMMU, `VFIO_NOIOMMU_IOMMU`.
    None,
}

impl IommuType {
    /// Those that isolate, best first.
    const PREFERRED: [Self; 4] = [Self::Type1v2, Self::Type1, Self::TceV2, Self::TceV1];

    fn extension(self) -> u32 {
        match self {
            Self::Type1v2 => VFIO_TYPE1v2_IOMMU,
            Self::Type1 => VFIO_TYPE1_IOMMU,
            Self::TceV2 => VFIO_SPAPR_TCE_v2_IOMMU,
            Self::TceV1 => VFIO_SPAPR_TCE_IOMMU,
            Self::None => VFIO_NOIOMMU_IOMMU,
        }
    }
}

impl fmt::Display for IommuType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Type1v2 => "type1v2",
            Self::Type1 => "type1",
            Self::TceV2 => "sPAPR TCE v2",
            Self::TceV1 => "sPAPR TCE",
            Self::None => "no-IOMMU",
        })
    }
}

/// A VF token: the UUID that its physical function's driver gave VFIO, and with which a virtual function is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VfToken(u128);

impl VfToken {
    /// Returns the 16 bytes, in the order in which they are written.
    pub fn bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}

impl FromStr for VfToken {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let lengths = text.split('-').map(str::len);
        let digits = text.replace('-', "");
        match u128::from_str_radix(&digits, 16) {
            Ok(uuid) if lengths.eq([8, 4, 4, 4, 12]) && !digits.starts_with('+') => Ok(Self(uuid)),
            _ => Err(Error::VfToken { text: text.to_owned() }),
        }
    }
}

impl fmt::Display for VfToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = format!("{:032x}", self.0);
        write!(f, "{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }
}

/// Descriptors that somebody else opened.
#[derive(Debug)]
pub enum Descriptors {
    /// Those of `/dev/vfio/vfio` and of the device's group.
    Group {
        /// The container.
        container: OwnedFd,
        /// The group.
        group: OwnedFd,
    },
    /// Those of `/dev/iommu` and of the device's own node, which may be bound to it already.
    Node {
        /// The iommufd.
        iommufd: OwnedFd,
        /// The device.
        device: OwnedFd,
    },
}

impl Vfio {
    /// Opens the function at `address`, which must be bound to a VFIO driver (`vfio-pci` or a variant).
    ///
    /// # Errors
    /// [`Error::Open`], with what was tried, what the system returned, and what to do.
    pub fn open(address: Address, options: &VfioOptions) -> Result<Arc<Self>> {
        let target = Target::new(address, Sysfs::default(), options);
        if target.function().is_none() {
            return Err(container::no_group(&target));
        }
        let group = target.group.ok_or_else(|| container::no_group(&target))?;
        let mut spaces = Spaces::lock();
        let known = match &options.share {
            Some(space) => {
                let known = spaces.of_space(space).ok_or_else(|| {
                    target.refused(
                        "the address space to share is no device's of the kernel's VFIO",
                        "open it without sharing",
                    )
                })?;
                if let Some((other, _)) = spaces.of_group(group)
                    && !other.is_shared_with(space)
                {
                    let why = format!("another device of IOMMU group {group} is open, in an address space of its own");
                    return Err(target.refused(why, "open it without sharing, or close the other one first"));
                }
                Some(known)
            }
            None => spaces.of_group(group),
        };
        match known {
            Some((space, iommu)) => device::Vfio::start(&target, space, iommu, None),
            None => {
                let (backend, iommu) = target.create(options.route)?;
                let space = DmaSpace::new(backend)?;
                let device = device::Vfio::start(&target, space.clone(), iommu.clone(), None)?;
                spaces.add(&space, &iommu);
                Ok(device)
            }
        }
    }

    /// Opens the function at `address` with descriptors that somebody else opened, for a process without the rights to do so: one in a container, for
    /// example.
    ///
    /// # Errors
    /// [`Error::Open`], with what was tried, what the system returned, and what to do.
    pub fn over(address: Address, descriptors: Descriptors, options: &VfioOptions) -> Result<Arc<Self>> {
        let target = Target::new(address, Sysfs::default(), options);
        let mut spaces = Spaces::lock();
        let ((backend, iommu), device) = match descriptors {
            Descriptors::Group { container, group } => {
                let container = Container::over(&target, container, group)?;
                ((container_maps(&target, container.clone())?, container as Arc<dyn Iommu>), None)
            }
            Descriptors::Node { iommufd, device } => {
                let (opened, device) = target.take_node(iommufd, device)?;
                (opened, Some(device))
            }
        };
        let space = DmaSpace::new(backend)?;
        let device = device::Vfio::start(&target, space.clone(), iommu.clone(), device)?;
        spaces.add(&space, &iommu);
        Ok(device)
    }
}

/// How memory is mapped, and what devices are attached to.
type Opened = (Box<dyn DmaBackend>, Arc<dyn Iommu>);

impl Target {
    /// An address space for it.
    fn create(&self, route: Route) -> Result<Opened> {
        let node = match route {
            Route::Node => true,
            // Linux takes VF tokens through groups, and only since 6.18 with a device's own node.
            Route::Auto => self.iommu.is_none() && self.vf_token.is_none() && self.has_node(),
            Route::Group | Route::NoIommu => false,
        };
        if node {
            return self.create_ioas();
        }
        let container = Container::create(self)?;
        Ok((container_maps(self, container.clone())?, container))
    }
}

fn container_maps(target: &Target, container: Arc<Container>) -> Result<Box<dyn DmaBackend>> {
    Ok(match container.iommu() {
        IommuType::Type1v2 | IommuType::Type1 => Box::new(type1::Type1::new(target, container)?),
        IommuType::TceV2 | IommuType::TceV1 => Box::new(spapr::Tce::new(target, container)?),
        IommuType::None => Box::new(noiommu::Physical::new(target, container)?),
    })
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
impl Target {
    fn has_node(&self) -> bool {
        iommufd::is_offered(self)
    }

    fn create_ioas(&self) -> Result<Opened> {
        let ioas = iommufd::Ioas::create(self, None)?;
        Ok((Box::new(iommufd::IoasMaps(ioas.clone())), ioas))
    }

    fn take_node(&self, iommufd: OwnedFd, device: OwnedFd) -> Result<(Opened, OwnedFd)> {
        let ioas = iommufd::Ioas::create(self, Some(iommufd))?;
        let device = ioas.take(self, device)?;
        Ok(((Box::new(iommufd::IoasMaps(ioas.clone())), ioas), device))
    }
}

/// Linux has no iommufd for the IOMMUs of other CPUs.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
impl Target {
    fn has_node(&self) -> bool {
        false
    }

    fn create_ioas(&self) -> Result<Opened> {
        Err(self.refused("there is no iommufd for this CPU's IOMMU", "open it through its group"))
    }

    fn take_node(&self, _: OwnedFd, device: OwnedFd) -> Result<(Opened, OwnedFd)> {
        self.create_ioas().map(|opened| (opened, device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_uuids() {
        let text = "2ab74924-c335-45f4-9b16-8569e5b08258";
        let token: VfToken = text.parse().unwrap();
        assert_eq!(token.to_string(), text);
        assert_eq!(token.bytes()[..3], [0x2a, 0xb7, 0x49]);
        for bad in [
            "",
            "2ab74924c33545f49b168569e5b08258",
            "2ab74924-c335-45f4-9b16-8569e5b0825x",
            "2ab74924-c33545f4-9b16-8569e5b0-8258",
        ] {
            assert!(bad.parse::<VfToken>().is_err(), "{bad}");
        }
    }
}

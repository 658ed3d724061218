//! The legacy way: groups in a container, `/dev/vfio/N` and `/dev/vfio/vfio`.
//!
//! A group is what the IOMMU can tell apart. It is put into a container, which has the address space; the first one decides which kind
//! of IOMMU that is. Groups stay in it as long as the container lives, which is as long as anyone has its [`DmaSpace`].
//!
//! [`DmaSpace`]: crate::mem::DmaSpace

use super::iommu::{self, Attachment, Iommu, Target};
use super::isolation::Attached;
use super::sysfs::is_vfio;
use super::{IommuType, ioctl};
use crate::{Error, Result};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};
use vfio_bindings::bindings::vfio::*;

/// A container and the groups in it.
pub(super) struct Container {
    /// Closed before the container.
    groups: Mutex<Vec<(u32, Arc<OwnedFd>)>>,
    fd: OwnedFd,
    iommu: IommuType,
    attachment: Attachment,
}

impl Container {
    /// A container with the target's group.
    pub(super) fn create(target: &Target) -> Result<Arc<Self>> {
        let fd = target.node("dev/vfio/vfio").map_err(|e| {
            let advice = match e.kind() {
                io::ErrorKind::NotFound => "load the driver: `modprobe vfio-pci`",
                io::ErrorKind::PermissionDenied => "run as root, or let this user read and write that node",
                _ => "is the vfio module loaded?",
            };
            target.failed("opening /dev/vfio/vfio", e, advice)
        })?;
        let group = open_group(target, target.iommu == Some(IommuType::None))?;
        Self::over(target, fd, group)
    }

    /// A container of descriptors that someone opened: the container, and the target's group.
    pub(super) fn over(target: &Target, fd: OwnedFd, group: OwnedFd) -> Result<Arc<Self>> {
        match ioctl::api_version(fd.as_fd()) {
            Ok(VFIO_API_VERSION) => {}
            Ok(other) => return Err(target.refused(format!("VFIO has version {other}"), "it was 0 since 2012")),
            Err(e) => return Err(target.failed("asking for VFIO's version", e, "that is no VFIO container")),
        }
        let wanted = match target.iommu {
            Some(iommu) => &[iommu][..],
            None => &IommuType::PREFERRED,
        };
        let iommu =
            wanted.iter().find(|i| ioctl::has_extension(fd.as_fd(), i.extension())).copied().ok_or_else(|| {
                let names: Vec<_> = wanted.iter().map(|i| i.to_string()).collect();
                target.refused(
                    format!("the kernel offers no IOMMU of type {}", names.join(", ")),
                    "load vfio_iommu_type1 (or, on POWER, vfio_iommu_spapr_tce)",
                )
            })?;
        let attachment = Attachment::new(match iommu {
            IommuType::Type1v2 | IommuType::Type1 => Attached::Type1,
            IommuType::TceV2 | IommuType::TceV1 => Attached::Tce,
            IommuType::None => Attached::Nothing,
        });
        let new = Self { groups: Mutex::default(), fd, iommu, attachment };
        new.add(target, group)?;
        Ok(Arc::new(new))
    }

    /// Puts a group in; the first one sets the kind of IOMMU.
    fn add(&self, target: &Target, group: OwnedFd) -> Result<Arc<OwnedFd>> {
        let number = target.group.unwrap_or(u32::MAX);
        let flags = ioctl::group_flags(group.as_fd())
            .map_err(|e| target.failed("asking for the group's status", e, "that is no VFIO group"))?;
        if flags & VFIO_GROUP_FLAGS_VIABLE == 0 {
            return Err(not_viable(target, number));
        }
        // One that someone opened for us may be in a container already: then it is in this one, with its IOMMU set.
        if flags & VFIO_GROUP_FLAGS_CONTAINER_SET == 0 {
            ioctl::set_container(group.as_fd(), self.fd.as_fd()).map_err(|e| {
                let advice =
                    "devices that share an address space must be behind IOMMUs of one kind: open it without sharing";
                target.failed(&format!("putting group {number} into the container"), e, advice)
            })?;
            if self.table().is_empty() {
                ioctl::set_iommu(self.fd.as_fd(), self.iommu.extension()).map_err(|e| self.no_iommu(target, e))?;
            }
        }
        let group = Arc::new(group);
        self.table().push((number, group.clone()));
        Ok(group)
    }

    /// Why the IOMMU could not be attached.
    fn no_iommu(&self, target: &Target, e: io::Error) -> Error {
        let what = format!("attaching the {} IOMMU", self.iommu);
        if e.raw_os_error() != Some(libc::EPERM) {
            return target.failed(&what, e, "the kernel log says more: `dmesg | grep -i -e vfio -e iommu`");
        }
        let advice = match self.iommu {
            IommuType::None => "no-IOMMU needs CAP_SYS_RAWIO, and vfio.enable_unsafe_noiommu_mode=1",
            _ => {
                "this platform does not remap interrupts, so that a device could raise any interrupt of the machine (\"No interrupt \
                 remapping support\" in the kernel log): switch remapping on (firmware: VT-d or AMD-Vi with interrupt remapping; kernel: \
                 without intremap=off), or, where you trust the device, \
                 `echo 1 > /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts`"
            }
        };
        target.failed(&what, e, advice)
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn iommu(&self) -> IommuType {
        self.iommu
    }

    fn table(&self) -> MutexGuard<'_, Vec<(u32, Arc<OwnedFd>)>> {
        self.groups.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Iommu for Container {
    fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    fn groups(&self) -> Vec<(u32, Option<Arc<OwnedFd>>)> {
        self.table().iter().map(|(number, fd)| (*number, Some(fd.clone()))).collect()
    }

    fn open(&self, target: &Target) -> Result<OwnedFd> {
        let known = self.table().iter().find(|(n, _)| Some(*n) == target.group).map(|(_, fd)| fd.clone());
        let group = match known {
            Some(group) => group,
            None => self.add(target, open_group(target, self.iommu == IommuType::None)?)?,
        };
        let mut name = target.address.to_string();
        if let Some(token) = target.vf_token {
            name += &format!(" vf_token={token}");
        }
        let name = CString::new(name).unwrap_or_default();
        ioctl::device_fd(group.as_fd(), &name).map_err(|e| {
            let advice = match e.raw_os_error() {
                // Of Linux's vfio_pci_validate_vf_token.
                Some(libc::EACCES) => iommu::VF_TOKEN,
                Some(libc::EINVAL) if target.vf_token.is_some() => {
                    "a VF token is for a virtual function whose physical one VFIO has too, and for that one: leave it out"
                }
                Some(libc::EBUSY) => "someone else has it open",
                Some(libc::ENODEV) => "it is not bound to vfio-pci: `wholebar bind` gives it to it",
                _ => "the kernel log says more: `dmesg | grep vfio`",
            };
            target.failed("opening the device through its group", e, advice)
        })
    }
}

/// Opens the target's group.
fn open_group(target: &Target, noiommu: bool) -> Result<OwnedFd> {
    let Some(group) = target.group else { return Err(no_group(target)) };
    let path = if noiommu { format!("dev/vfio/noiommu-{group}") } else { format!("dev/vfio/{group}") };
    target.node(&path).map_err(|e| {
        let what = format!("opening /{path}");
        match e.kind() {
            io::ErrorKind::NotFound => match driver_advice(target) {
                Some(advice) => target.failed(&what, e, advice),
                None if !noiommu && target.sysfs.path(format!("dev/vfio/noiommu-{group}")).exists() => target.failed(
                    &what,
                    e,
                    format!(
                        "there is no IOMMU for it, so that it could reach all memory; if you mean that, say {},via=no-iommu",
                        target.address
                    ),
                ),
                None => target.failed(&what, e, "is /dev of this container the host's?"),
            },
            io::ErrorKind::PermissionDenied => {
                target.failed(&what, e, format!("run as root, or give this user the group: `chown $USER /{path}`"))
            }
            io::ErrorKind::ResourceBusy => target.failed(&what, e, "another process has a device of this group open"),
            _ => target.failed(&what, e, "the kernel log says more: `dmesg | grep vfio`"),
        }
    })
}

/// What to do where the function is not bound to a driver for VFIO; `None` where it is.
fn driver_advice(target: &Target) -> Option<String> {
    let bind = format!("give it to VFIO: `wholebar bind {}`", target.address);
    match target.function()?.driver() {
        Some(driver) if is_vfio(&driver) => None,
        Some(driver) => Some(format!("the driver {driver} has it; {bind}")),
        None => Some(format!("no driver has it; {bind}")),
    }
}

/// Why the target is in no group.
pub(super) fn no_group(target: &Target) -> Error {
    let why = "it is in no IOMMU group";
    match target.function() {
        None => target.refused("there is no such PCI function", "`wholebar devices` lists them"),
        Some(_) if target.sysfs.path("sys/kernel/iommu_groups").join("0").exists() => {
            target.refused(why, "no IOMMU is responsible for it: enable it in the firmware and on the kernel's command line")
        }
        Some(_) => target.refused(
            why,
            "switch the IOMMU on: in the firmware (VT-d, AMD-Vi, SMMU), and on Intel with intel_iommu=on on the kernel's command line; `wholebar doctor` looks at which of them is missing",
        ),
    }
}

/// Why a group cannot be used, and who is in the way.
fn not_viable(target: &Target, group: u32) -> Error {
    let say = |(address, driver)| format!("{driver} has {address}: give it to VFIO too, `wholebar bind {address}`");
    let others: Vec<String> = target.sysfs.obstacles(group).into_iter().map(say).collect();
    let why = format!("IOMMU group {group} is not VFIO's alone");
    let advice = match &others[..] {
        [] => format!("another function of the group has a driver: `wholebar doctor {}`", target.address),
        others => others.join("; "),
    };
    target.refused(why, advice)
}

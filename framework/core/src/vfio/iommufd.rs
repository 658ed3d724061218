//! The newer way: a device by its own node, `/dev/vfio/devices/vfioN`, in an address space (IOAS) of an iommufd, `/dev/iommu`.
//!
//! Linux 6.6 has it, for x86-64 and arm64. `vfio-ioctls` opens the node, makes the IOAS and maps into it. What it doesn't have is
//! ours: VF tokens, the ranges that can be mapped, and everything about the device once it is open.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::iommu::{self, Attachment, Iommu, Target, dma_error};
use super::isolation::Attached;
use super::{caps, ioctl};
use crate::mem::{Arena, DmaBackend, Iova, IovaWindow};
use crate::{PageSize, Result};
use iommufd_ioctls::{IommuFd, IommufdError};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use vfio_ioctls::{VfioDevice, VfioError, VfioIommufd};

/// An address space of an iommufd.
pub(super) struct Ioas {
    vfio: VfioIommufd,
    groups: Mutex<Vec<u32>>,
    attachment: Attachment,
}

/// Whether the target has a node of its own here, and there is an iommufd: sysfs may speak of one that the kernel does not make.
pub(super) fn is_offered(target: &Target) -> bool {
    let node = target.function().and_then(|f| f.vfio_device());
    let node = node.map(|name| target.sysfs.path("dev/vfio/devices").join(name));
    node.is_some_and(|node| node.exists()) && target.sysfs.path("dev/iommu").exists()
}

impl Ioas {
    /// A new address space; of `iommufd`, where someone opened one.
    pub(super) fn create(target: &Target, iommufd: Option<OwnedFd>) -> Result<Arc<Self>> {
        let failed = |e: io::Error| {
            let advice = "load the module: `modprobe iommufd`; run as root, or let this user read and write /dev/iommu";
            target.failed("making an address space in /dev/iommu", e, advice)
        };
        let iommufd = match iommufd {
            Some(fd) => IommuFd::new_from_fd(fd.into()),
            None => IommuFd::new().map_err(|e| failed(of_iommufd(e)))?,
        };
        let vfio = VfioIommufd::new(Arc::new(iommufd), None, None).map_err(|e| failed(of_vfio(e)))?;
        let attachment = Attachment::new(Attached::Iommufd);
        Ok(Arc::new(Self { vfio, groups: Mutex::default(), attachment }))
    }

    /// Takes a device's node that someone opened (and may have bound to this iommufd) into the address space.
    pub(super) fn take(&self, target: &Target, device: OwnedFd) -> Result<OwnedFd> {
        // Before it is bound, a device answers nothing.
        if ioctl::device_info(device.as_fd()).is_err() {
            let token = target.vf_token.map(|t| t.bytes());
            ioctl::bind_iommufd(device.as_fd(), self.iommufd(), token.as_ref()).map_err(|e| {
                let advice = match e.raw_os_error() {
                    Some(libc::EPERM) => {
                        "this platform does not remap interrupts, so that a device could raise any interrupt of the machine: switch remapping \
                         on (firmware; kernel: without intremap=off), or, where you trust the device, \
                         `echo 1 > /sys/module/iommufd/parameters/allow_unsafe_interrupts`"
                    }
                    Some(libc::EACCES) => iommu::VF_TOKEN,
                    Some(libc::EBUSY) => "another process has another device of its group open",
                    Some(libc::EINVAL) if token.is_some() => "this kernel takes VF tokens through the group only, or another process has it open",
                    Some(libc::EINVAL) => "another process has it open: `fuser -v /dev/vfio/devices/*` names it",
                    _ => "the kernel log says more: `dmesg | grep -e vfio -e iommu`",
                };
                target.failed("binding it to the iommufd", e, advice)
            })?;
        }
        ioctl::attach_iommufd(device.as_fd(), self.vfio.ioas().id()).map_err(|e| {
            let advice = "devices of one group share one address space, and all in one address space must be behind IOMMUs of one kind";
            target.failed("attaching it to the address space", e, advice)
        })?;
        if let Some(group) = target.group {
            self.groups.lock().unwrap_or_else(|e| e.into_inner()).push(group);
        }
        Ok(device)
    }

    fn iommufd(&self) -> BorrowedFd<'_> {
        // SAFETY: the iommufd is open as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.vfio.iommufd().as_raw_fd()) }
    }
}

impl Iommu for Ioas {
    fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    fn groups(&self) -> Vec<(u32, Option<Arc<OwnedFd>>)> {
        self.groups.lock().unwrap_or_else(|e| e.into_inner()).iter().map(|group| (*group, None)).collect()
    }

    fn open(&self, target: &Target) -> Result<OwnedFd> {
        let path = target.sysfs.path("sys/bus/pci/devices").join(target.address.to_string());
        let device = VfioDevice::open_cdev(&path).map_err(|e| {
            let advice = "is it bound to vfio-pci, and may this user open its node under /dev/vfio/devices?";
            target.failed("opening its own node", of_vfio(e), advice)
        })?;
        self.take(target, device.into())
    }
}

/// Maps into an IOAS.
pub(super) struct IoasMaps(pub(super) Arc<Ioas>);

impl DmaBackend for IoasMaps {
    fn windows(&self) -> Vec<IovaWindow> {
        let ioas = &self.0;
        match ioctl::iova_ranges(ioas.iommufd(), ioas.vfio.ioas().id()) {
            Ok((ranges, align)) => {
                caps::windows(ranges, PageSize::new(align).unwrap_or(PageSize::K4).max(PageSize::host()))
            }
            Err(error) => {
                tracing::error!(%error, "the IOMMU does not say what it can map");
                Vec::new()
            }
        }
    }

    fn max_maps(&self) -> Option<usize> {
        None
    }

    fn map(&self, arena: Arc<Arena>, iova: Iova) -> Result<()> {
        let (base, len) = (arena.mapping().base(), arena.len());
        // SAFETY: an arena is memory that devices may read and write: this process reaches it by atomics alone, or where a device was not
        // told of it. The kernel pins its pages.
        let done = unsafe { self.0.vfio.vfio_dma_map(iova.0, len as usize, base.as_ptr()) };
        done.map_err(|e| dma_error("map", iova, len, of_vfio(e)))
    }

    fn unmap(&self, iova: Iova, len: u64) -> Result<()> {
        self.0.vfio.vfio_dma_unmap(iova.0, len as usize).map_err(|e| dma_error("unmap", iova, len, of_vfio(e)))
    }

    fn fixed(&self, _: &Arena) -> Result<Option<Iova>> {
        Ok(None)
    }
}

/// What the system said, out of an error of `vfio-ioctls`.
fn of_vfio(e: VfioError) -> io::Error {
    match e {
        VfioError::OpenDeviceCdev(e) => e,
        VfioError::NewVfioIommufd(e) | VfioError::IommufdIoctlError(e) => of_iommufd(e),
        other => io::Error::other(other),
    }
}

fn of_iommufd(e: IommufdError) -> io::Error {
    match e {
        IommufdError::OpenIommufd(e) => e,
        IommufdError::IommuIoasAlloc(e) | IommufdError::IommuIoasMap(e) | IommufdError::IommuIoasUnmap(e) => {
            io::Error::from_raw_os_error(e.errno())
        }
        other => io::Error::other(other),
    }
}

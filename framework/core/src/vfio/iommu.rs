//! What devices of one address space share: the kernel's object for it (a container, or an IOAS), behind one face, and who has which.
//!
//! A group can be opened once, and its devices live in one address space: so a process must find again what it opened. That is the only
//! state here that is a process's, rather than a device's.

use super::ioctl;
use super::isolation::{Attached, weigh};
use super::sysfs::{Function, Sysfs};
use super::{IommuType, Route, VfToken, VfioOptions};
use crate::mem::{DmaSpace, Iova, WeakSpace};
use crate::pci::{Address, Isolation};
use crate::{Error, Result};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

/// One address space of the kernel's.
pub(super) trait Iommu: Send + Sync {
    /// How it attaches devices.
    fn attachment(&self) -> &Attachment;

    /// The IOMMU groups in it, each with its descriptor where it has one (devices opened by their own node have none).
    fn groups(&self) -> Vec<(u32, Option<Arc<OwnedFd>>)>;

    /// Opens a device in it, which joins with its group.
    fn open(&self, target: &Target) -> Result<OwnedFd>;
}

/// How an address space attaches devices, and whether it ever may have done so without a look at their interrupts.
pub(super) struct Attachment {
    by: Attached,
    unlooked: AtomicBool,
}

impl Attachment {
    pub(super) fn new(by: Attached) -> Self {
        Self { by, unlooked: AtomicBool::new(false) }
    }

    /// Whether the interrupts of the target, which was just attached, are isolated.
    pub(super) fn isolation(&self, target: &Target) -> Isolation {
        let module = self.by.module();
        let before =
            module.and_then(|m| target.unsafe_before.iter().find(|(name, _)| *name == m)).and_then(|(_, flag)| *flag);
        let after = module.and_then(|module| target.sysfs.flag(module, UNSAFE));
        if before == Some(true) || after == Some(true) {
            self.unlooked.store(true, Ordering::Relaxed);
        }
        // Its group may have been attached long ago, when the parameter was another.
        let before = if self.unlooked.load(Ordering::Relaxed) { Some(true) } else { before };
        weigh(self.by, target.sysfs.kernel().as_deref(), before, after)
    }
}

/// The module parameter that makes the kernel attach devices whose interrupts are not isolated.
const UNSAFE: &str = "allow_unsafe_interrupts";

/// What to do where a VF token is missing or wrong.
pub(super) const VF_TOKEN: &str = "VFIO has its physical function or its virtual ones too, and these share a VF token: name it with that, \
                                   BDF,token=UUID (`wholebar vf list` shows the one that `wholebar vf create` made)";

/// The device that is to be opened, and how.
pub(super) struct Target {
    pub name: String,
    pub address: Address,
    pub sysfs: Sysfs,
    pub group: Option<u32>,
    pub vf_token: Option<VfToken>,
    pub iommu: Option<IommuType>,
    /// By module, whether it let devices be attached without a look at their interrupts, before this one was.
    pub unsafe_before: [(&'static str, Option<bool>); 2],
}

impl Target {
    pub(super) fn new(address: Address, sysfs: Sysfs, options: &VfioOptions) -> Self {
        let group = sysfs.function(address).and_then(|f| f.group());
        let (name, iommu) = match options.route {
            Route::NoIommu => (format!("{address},via=no-iommu"), Some(IommuType::None)),
            _ => (address.to_string(), options.iommu),
        };
        let unsafe_before = ["vfio_iommu_type1", "iommufd"].map(|module| (module, sysfs.flag(module, UNSAFE)));
        Self { name, address, sysfs, group, vf_token: options.vf_token, iommu, unsafe_before }
    }

    pub(super) fn function(&self) -> Option<Function> {
        self.sysfs.function(self.address)
    }

    /// That it cannot be opened: what was tried, what the system said, and what to do.
    pub(super) fn failed(&self, what: &str, source: io::Error, advice: impl Into<String>) -> Error {
        let (device, why) = (self.name.clone(), format!("{what}: {source}"));
        Error::Open { device, why, advice: advice.into(), cause: Some(source) }
    }

    /// That it cannot be opened, which the system need not be asked for.
    pub(super) fn refused(&self, why: impl Into<String>, advice: impl Into<String>) -> Error {
        Error::Open { device: self.name.clone(), why: why.into(), advice: advice.into(), cause: None }
    }

    /// Opens a node of the kernel's for reading and writing.
    pub(super) fn node(&self, path: &str) -> Result<OwnedFd, io::Error> {
        let file = std::fs::File::options().read(true).write(true).open(self.sysfs.path(path))?;
        Ok(file.into())
    }
}

/// Where each address space is that this process has opened.
static SPACES: Mutex<Vec<Space>> = Mutex::new(Vec::new());
type Space = (WeakSpace, Weak<dyn Iommu>);

/// The address spaces of this process; nobody else opens one meanwhile.
pub(super) struct Spaces(MutexGuard<'static, Vec<Space>>);

impl Spaces {
    pub(super) fn lock() -> Self {
        let mut spaces = SPACES.lock().unwrap_or_else(|e| e.into_inner());
        spaces.retain(|(space, iommu)| space.upgrade().is_some() && iommu.strong_count() > 0);
        Self(spaces)
    }

    /// The one that `group` is in, for one more device.
    pub(super) fn of_group(&self, group: u32) -> Option<(Arc<DmaSpace>, Arc<dyn Iommu>)> {
        self.all().find(|(_, iommu)| iommu.groups().iter().any(|(g, _)| *g == group))
    }

    /// The one that another device sees as `space`.
    pub(super) fn of_space(&self, space: &DmaSpace) -> Option<(Arc<DmaSpace>, Arc<dyn Iommu>)> {
        self.all().find(|(s, _)| s.is_shared_with(space))
    }

    pub(super) fn add(&mut self, space: &DmaSpace, iommu: &Arc<dyn Iommu>) {
        self.0.push((space.downgrade(), Arc::downgrade(iommu)));
    }

    /// Each with a new device's part in it.
    fn all(&self) -> impl Iterator<Item = (Arc<DmaSpace>, Arc<dyn Iommu>)> {
        self.0.iter().filter_map(|(space, iommu)| Some((space.upgrade()?, iommu.upgrade()?)))
    }
}

/// A function that a reset of the slot or bus would reset too, by what would have to be ours for it.
pub(super) fn hot_reset(device: BorrowedFd<'_>, iommu: &dyn Iommu) -> io::Result<()> {
    let groups = hot_reset_groups(device, iommu)?;
    let fds: Vec<BorrowedFd<'_>> = groups.iter().map(|fd| fd.as_fd()).collect();
    ioctl::hot_reset(device, &fds)
}

/// The groups that the kernel wants to see before it resets a slot or bus: of all that is on it. None where it knows by itself.
pub(super) fn hot_reset_groups(device: BorrowedFd<'_>, iommu: &dyn Iommu) -> io::Result<Vec<Arc<OwnedFd>>> {
    let (dependents, ours) = ioctl::hot_reset_info(device)?;
    let groups = iommu.groups();
    if groups.iter().all(|(_, fd)| fd.is_none()) {
        let whose = "it would reset functions that this process has not opened";
        return if ours { Ok(Vec::new()) } else { Err(io::Error::other(whose)) };
    }
    let mut fds: Vec<Arc<OwnedFd>> = Vec::new();
    for d in dependents {
        let (segment, device, function) = (d.segment.into(), d.devfn >> 3, d.devfn & 7);
        let address = Address { segment, bus: d.bus, device, function };
        match groups.iter().find(|(group, _)| *group == d.group) {
            Some((_, Some(fd))) if fds.iter().any(|known| Arc::ptr_eq(known, fd)) => {}
            Some((_, Some(fd))) => fds.push(fd.clone()),
            _ => {
                let group = d.group;
                return Err(io::Error::other(format!("it would reset {address} of group {group}, which is not ours")));
            }
        }
    }
    Ok(fds)
}

/// That the kernel refused a map or an unmap, and what helps.
pub(super) fn dma_error(op: &'static str, iova: Iova, len: u64, source: io::Error) -> Error {
    let advice = match source.raw_os_error() {
        Some(libc::ENOMEM) => match rustix::process::getrlimit(rustix::process::Resource::Memlock).current {
            Some(bytes) => format!(
                ": this process may lock {} KiB in memory (RLIMIT_MEMLOCK); raise that with `ulimit -l unlimited`, LimitMEMLOCK=infinity in \
                 a systemd unit, or --ulimit memlock=-1 of a container",
                bytes >> 10
            ),
            None => ": the system has no more memory that it could pin".to_owned(),
        },
        Some(libc::ENOSPC) => {
            ": no map is left; use fewer, larger arenas, or raise vfio_iommu_type1.dma_entry_limit".to_owned()
        }
        Some(libc::EEXIST) => ": something is mapped there already".to_owned(),
        _ => String::new(),
    };
    Error::Dma { op, iova: iova.0, len, cause: source, advice }
}

/// That the kernel unmapped something else than it was told to.
pub(super) fn unmapped(iova: Iova, len: u64, done: io::Result<u64>) -> Result<()> {
    match done {
        Ok(n) if n == len => Ok(()),
        Ok(n) => Err(dma_error("unmap", iova, len, io::Error::other(format!("it unmapped {n} bytes")))),
        Err(e) => Err(dma_error("unmap", iova, len, e)),
    }
}

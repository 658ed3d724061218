//! The front end as a [`PciDevice`]: regions, interrupts and memory of a modern virtio PCI function.
//!
//! Registers are accesses to the function's state, under a lock. Notifications take none: one system call each.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::config_space::{
    self, BAR0_SIZE, COMMON, DEVICE, ISR, MSIX_BAR, MSIX_SIZE, NOTIFY_BAR, NOTIFY_SIZE, NOTIFY_STRIDE,
};
use super::function::FrontEnd;
use super::link::{Link, meet};
use super::memory::max_maps;
use super::options::{DeviceType, Options};
use super::peer::Failed;
use crate::irq::EventFd;
use crate::mem::{Arena, DmaBackend, DmaSpace, Iova, IovaWindow};
use crate::model::Signaller;
use crate::patience::Patience;
use crate::pci::{
    BAR0, CONFIG, DeviceInfo, DeviceKind, Irq, IrqAction, IrqInfo, Isolation, PciDevice, Prot, RegionInfo,
    RegionMapping,
};
use crate::{Error, PageSize, Result};
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

/// A virtio device that another process serves as a vhost-user back end, as a modern virtio PCI function.
///
/// A driver for virtio PCI functions drives it: registers are in this process, and what is written to them becomes messages. A notification is an
/// eventfd's signal, so BAR2, where notifications are, cannot be mapped.
///
/// A back end that closes the connection leaves a device that needs a reset (VIRTIO 1.2, 2.1.2). When the driver begins anew, the back end is waited
/// for: [`Options::reconnect`]. A disk whose back end records what it has in flight (`INFLIGHT_SHMFD`) needs none: its queues wait as long, and go on with
/// whoever comes.
pub struct VhostUser {
    name: String,
    device_type: DeviceType,
    vectors: u32,
    front_end: Arc<Mutex<FrontEnd>>,
    kicks: Arc<[OnceLock<EventFd>]>,
    /// The queue that the front end serves.
    control_queue: Option<u16>,
    signaller: Arc<Signaller>,
    patience: Arc<Patience>,
    dma: Arc<DmaSpace>,
}

impl VhostUser {
    /// Connects to the back end that listens on `path`, or, as a [server](Options::server), listens there until one connects.
    ///
    /// # Errors
    /// [`Error::Connect`] where no back end listens or connects; [`Error::Peer`] where the peer is no vhost-user back end, is one of another type or of
    /// a legacy device, or does not answer in time; [`Error::Io`] where it refuses something, or this process has no descriptors left.
    pub fn connect(path: impl AsRef<Path>, options: Options) -> Result<Arc<Self>> {
        let name = format!("vhost-user:{}", path.as_ref().display());
        let link = Link::new(path.as_ref(), &name, &options)?;
        let stream = link.first(&name, &options)?;
        Self::begin(stream, &name, link, options)
    }

    /// Opens the device at the other end of a connection that exists already. `name` is its name in errors. There is no second connection.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn from_stream(stream: UnixStream, name: &str, options: Options) -> Result<Arc<Self>> {
        Self::begin(stream, name, Link::Once, options)
    }

    fn begin(stream: UnixStream, name: &str, link: Link, options: Options) -> Result<Arc<Self>> {
        let patience = Arc::new(Patience::new(options.timeout, options.open_timeout));
        patience.opening(true);
        let failed = |cause| Error::Io { what: format!("{name}: having the kernel signal eventfds"), cause };
        let signaller = Arc::new(Signaller::new().map_err(failed)?);
        let met = meet(stream, &patience, &options).map_err(|failed| match failed {
            Failed::Refused { request, what } => {
                Error::Io { what: format!("{name}: {request} was refused"), cause: io::Error::other(what) }
            }
            Failed::Lost(lost) => {
                let command = lost.request.map_or_else(|| "opening it".to_owned(), |request| request.to_string());
                Error::Peer { device: name.to_owned(), command, what: lost.what }
            }
        })?;
        let (device_type, slots) = (met.device_type, met.slots);
        let front_end = FrontEnd::new(name, options, link, patience.clone(), met, signaller.clone())?;
        let (kicks, vectors) = (front_end.kicks.clone(), front_end.vectors.len() as u32);
        let control_queue = front_end.control_queue();
        let front_end = Arc::new(Mutex::new(front_end));
        let dma = DmaSpace::new(Box::new(Dma { front_end: front_end.clone(), most: max_maps(slots) }))?;
        patience.opening(false);
        let name = name.to_owned();
        Ok(Arc::new(Self { name, device_type, vectors, front_end, kicks, control_queue, signaller, patience, dma }))
    }

    /// Returns the type of the device.
    pub fn device_type(&self) -> DeviceType {
        self.device_type
    }

    fn front_end(&self) -> MutexGuard<'_, FrontEnd> {
        lock(&self.front_end)
    }

    fn size(&self, region: u32) -> Result<u64> {
        match region {
            BAR0 => Ok(BAR0_SIZE),
            NOTIFY_BAR => Ok(NOTIFY_SIZE),
            MSIX_BAR => Ok(MSIX_SIZE),
            CONFIG => Ok(config_space::SIZE),
            1 | 3 | 5 | 6 | 8 => Ok(0),
            _ => Err(Error::NoSuchRegion { device: self.name.clone(), region }),
        }
    }

    fn check(&self, region: u32, offset: u64, len: usize) -> Result<()> {
        let size = self.size(region)?;
        match offset.checked_add(len as u64) {
            Some(end) if end <= size => Ok(()),
            _ => Err(Error::OutOfRange { what: "region", offset, len: len as u64, size }),
        }
    }

    fn access(&self, op: &'static str, region: u32, offset: u64, len: usize) -> Error {
        let cause = io::Error::new(io::ErrorKind::InvalidInput, "no register of that width is there");
        Error::Access { device: self.name.clone(), op, region, offset, len: len as u64, cause }
    }

    /// Notifies of a queue: without a lock, and without waiting for anybody; the control queue's commands are executed at once.
    fn notify(&self, offset: u64) -> Result<()> {
        let queue = offset / NOTIFY_STRIDE;
        if self.control_queue.is_some_and(|control| u64::from(control) == queue) {
            return self.front_end().run_control();
        }
        if let Some(kick) = usize::try_from(queue).ok().and_then(|queue| self.kicks.get(queue)?.get()) {
            self.signaller.signal(kick.as_fd());
        }
        Ok(())
    }
}

fn lock(front_end: &Mutex<FrontEnd>) -> MutexGuard<'_, FrontEnd> {
    front_end.lock().unwrap_or_else(|e| e.into_inner())
}

impl PciDevice for VhostUser {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::VhostUser
    }

    fn info(&self) -> DeviceInfo {
        DeviceInfo { regions: 9, irqs: 5, resettable: true }
    }

    fn page_size(&self) -> PageSize {
        PageSize::host()
    }

    fn isolation(&self) -> Isolation {
        Isolation::by_construction()
    }

    fn region(&self, index: u32) -> Result<RegionInfo> {
        let size = self.size(index)?;
        Ok(RegionInfo { size, readable: size > 0, writable: size > 0, ..RegionInfo::default() })
    }

    fn read(&self, region: u32, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.check(region, offset, buf.len())?;
        let mut front_end = self.front_end();
        front_end.alive()?;
        let (len, end) = (buf.len(), offset.saturating_add(buf.len() as u64));
        let done = match region {
            BAR0 if COMMON.contains(&offset) => front_end.read_common(offset, buf),
            BAR0 if DEVICE.contains(&offset) && end <= DEVICE.end => {
                front_end.read_config(offset.saturating_sub(DEVICE.start), buf);
                Some(())
            }
            BAR0 if offset == ISR && len == 1 => {
                buf[0] = front_end.take_isr();
                Some(())
            }
            MSIX_BAR => {
                front_end.read_msix(offset, buf);
                Some(())
            }
            CONFIG => front_end.config_space.read(offset, buf),
            _ => {
                buf.fill(0);
                Some(())
            }
        };
        // A back end that broke the protocol was found out by this very access.
        front_end.alive()?;
        done.ok_or_else(|| self.access("read", region, offset, len))
    }

    fn write(&self, region: u32, offset: u64, buf: &[u8]) -> Result<()> {
        self.check(region, offset, buf.len())?;
        if region == NOTIFY_BAR {
            return self.notify(offset);
        }
        let mut front_end = self.front_end();
        front_end.alive()?;
        let end = offset.saturating_add(buf.len() as u64);
        let done = match region {
            BAR0 if COMMON.contains(&offset) => front_end.write_common(offset, buf),
            BAR0 if DEVICE.contains(&offset) && end <= DEVICE.end => {
                Some(front_end.write_config(offset.saturating_sub(DEVICE.start), buf))
            }
            CONFIG => front_end.write_config_space(offset, buf),
            _ => Some(Ok(())),
        };
        done.ok_or_else(|| self.access("write", region, offset, buf.len()))?
    }

    fn map(&self, region: u32, range: Range<u64>, _: Prot) -> Result<RegionMapping> {
        self.size(region)?;
        let (offset, len) = (range.start, range.end.saturating_sub(range.start));
        let why = "its registers are no memory: what is written there becomes messages to the back end";
        Err(Error::NotMappable { device: self.name.clone(), region, offset, len, why })
    }

    fn irq_info(&self, kind: Irq) -> Result<IrqInfo> {
        Ok(match kind {
            Irq::Msix => IrqInfo { count: self.vectors, eventfd: true, maskable: false, resizable: true },
            _ => IrqInfo::default(),
        })
    }

    fn set_irqs(&self, kind: Irq, first: u32, action: IrqAction<'_>) -> Result<()> {
        let count = self.irq_info(kind)?.count;
        let wanted = match action {
            IrqAction::Fds(fds) => fds.len(),
            IrqAction::Disable => 0,
            IrqAction::Mask(n) | IrqAction::Unmask(n) | IrqAction::Trigger(n) => n as usize,
        };
        let missing = |vector| Error::NoSuchIrq { device: self.name.clone(), kind, vector, count };
        if (first as usize).checked_add(wanted).is_none_or(|end| end > count as usize) {
            return Err(missing(first.saturating_add(wanted as u32).saturating_sub(1)));
        }
        let mut front_end = self.front_end();
        front_end.alive()?;
        match action {
            IrqAction::Fds(fds) => {
                let owned = fds.iter().map(|fd| fd.map(|fd| fd.try_clone_to_owned()).transpose());
                let failed = |cause| Error::Io { what: format!("{}: duplicating an eventfd", self.name), cause };
                front_end.set_vectors(first, owned.collect::<io::Result<_>>().map_err(failed)?)
            }
            IrqAction::Disable => front_end.set_vectors(0, (0..count).map(|_| None).collect()),
            IrqAction::Trigger(n) => {
                (first..first.saturating_add(n)).for_each(|vector| front_end.signal(vector as u16));
                Ok(())
            }
            IrqAction::Mask(_) | IrqAction::Unmask(_) => {
                let cause = io::Error::new(io::ErrorKind::Unsupported, "its vectors cannot be masked");
                Err(Error::Io { what: format!("{}: configuring interrupts", self.name), cause })
            }
        }
    }

    fn dma(&self) -> Arc<DmaSpace> {
        self.dma.clone()
    }

    fn opening(&self, begins: bool) {
        self.patience.opening(begins);
    }

    fn reset(&self) -> Result<()> {
        let mut front_end = self.front_end();
        front_end.reset()?;
        front_end.config_space.reset();
        let none = front_end.vectors.iter().map(|_| None).collect();
        front_end.set_vectors(0, none)
    }
}

/// The address space behind a back end.
struct Dma {
    front_end: Arc<Mutex<FrontEnd>>,
    most: usize,
}

/// The lowest address: some back ends take an address of 0 for none.
const LOWEST: u64 = 2 << 20;

impl DmaBackend for Dma {
    fn windows(&self) -> Vec<IovaWindow> {
        // The protocol has no limit; this is what a process's own addresses have.
        vec![IovaWindow { range: LOWEST..=(1 << 47) - 1, page: PageSize::K4 }]
    }

    fn max_maps(&self) -> Option<usize> {
        Some(self.most)
    }

    fn map(&self, arena: Arc<Arena>, iova: Iova) -> Result<()> {
        lock(&self.front_end).map(iova, arena)
    }

    fn unmap(&self, iova: Iova, _: u64) -> Result<()> {
        lock(&self.front_end).unmap(iova)
    }

    fn fixed(&self, _: &Arena) -> Result<Option<Iova>> {
        Ok(None)
    }
}

//! The client: a [`PciDevice`] whose function is served by another process.
//!
//! How a command gets its reply is in `peer.rs`, regions and their mappings in `regions.rs`.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::options::Options;
use super::peer::{Expect, Failed, Peer};
use super::regions::{Region, read_region};
use super::wire::{self, Command};
use crate::listener::connect;
use crate::mem::{Arena, DmaBackend, DmaSpace, Iova, IovaWindow};
use crate::pci::{
    BAR0, DeviceInfo, DeviceKind, Irq, IrqAction, IrqInfo, Isolation, PciDevice, Prot, ROM, RegionInfo, RegionMapping,
};
use crate::socket::MAX_FDS;
use crate::{Error, PageSize, Result};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use vfio_bindings::bindings::vfio::*;
use zerocopy::IntoBytes;

/// A PCI function behind a vfio-user socket.
///
/// Every access is a message, unless its page is mapped.
pub struct VfioUser {
    peer: Arc<Peer>,
    info: DeviceInfo,
    regions: Vec<Region>,
    irqs: Vec<IrqInfo>,
    /// The eventfd of vector 0, and of which kind of interrupt that is.
    first: Mutex<Option<(Irq, OwnedFd)>>,
    dma: Arc<DmaSpace>,
}

impl VfioUser {
    /// Connects to the server that listens on `path`, and reads all properties of its device.
    ///
    /// # Errors
    /// [`Error::Connect`] where no server listens there; [`Error::Peer`] where the peer is no vfio-user server, or does not answer in time.
    pub fn connect(path: impl AsRef<Path>, options: Options) -> Result<Arc<Self>> {
        let name = format!("vfio-user:{}", path.as_ref().display());
        match connect(path.as_ref(), options.timeout.min(options.open_timeout)) {
            Ok(stream) => Self::from_stream(stream, &name, options),
            Err(source) => {
                let hint = match source.kind() {
                    io::ErrorKind::NotFound => "there is no such socket; is the server running?",
                    io::ErrorKind::ConnectionRefused => "nobody listens there; did the server end?",
                    io::ErrorKind::PermissionDenied => "the socket may not be used by this user",
                    io::ErrorKind::WouldBlock => "too many others are waiting for the server",
                    _ => "is it a socket?",
                };
                Err(Error::Connect { device: name, hint, cause: source })
            }
        }
    }

    /// Opens the device at the other end of a connection that exists already. `name` is its name in errors.
    ///
    /// # Errors
    /// [`Error::Peer`] where the peer is no vfio-user server, or does not answer in time.
    pub fn from_stream(stream: UnixStream, name: &str, options: Options) -> Result<Arc<Self>> {
        let peer = Arc::new(Peer::negotiate(stream, name, options)?);
        let info = peer.device_info()?;
        let regions = (0..info.regions).map(|index| read_region(&peer, index)).collect::<Result<_>>()?;
        let irqs = (0..info.irqs).map(|index| peer.irq_info(index)).collect::<Result<_>>()?;
        let dma = DmaSpace::new(Box::new(Dma(peer.clone())))?;
        peer.patience.opening(false);
        Ok(Arc::new(Self { peer, info, regions, irqs, first: Mutex::default(), dma }))
    }

    /// Returns the number of file descriptors that the server sent without being asked. They were closed.
    pub fn stray_fds(&self) -> u64 {
        self.peer.stray_fds()
    }

    fn known(&self, index: u32) -> Result<&Region> {
        let missing = || Error::NoSuchRegion { device: self.name().to_owned(), region: index };
        self.regions.get(index as usize).ok_or_else(missing)
    }

    /// Refuses what isn't inside of the region, and of a BAR what isn't a register access: no server has to be asked, and some
    /// die of the question.
    fn check(&self, op: &'static str, region: u32, offset: u64, len: usize) -> Result<()> {
        let size = self.known(region)?.info.size;
        if offset.checked_add(len as u64).is_none_or(|end| end > size) {
            return Err(Error::OutOfRange { what: "region", offset, len: len as u64, size });
        }
        if (BAR0..ROM).contains(&region) && !(matches!(len, 1 | 2 | 4 | 8) && offset.is_multiple_of(len as u64)) {
            let source = io::Error::new(io::ErrorKind::InvalidInput, NOT_A_REGISTER);
            return Err(self.access(op, region, offset, len, source));
        }
        Ok(())
    }

    fn access(&self, op: &'static str, region: u32, offset: u64, len: usize, source: io::Error) -> Error {
        Error::Access { device: self.name().to_owned(), op, region, offset, len: len as u64, cause: source }
    }

    /// One `REGION_READ` or `REGION_WRITE`; the reply's data.
    fn region_access(&self, command: Command, access: wire::RegionAccess, data: &[u8]) -> Result<Vec<u8>, Failed> {
        let peer = &self.peer;
        let back = if command == Command::REGION_READ { access.count as usize } else { 0 };
        let longest = size_of::<wire::RegionAccess>().saturating_add(back);
        let reply = peer.call(command, &[access.as_bytes(), data], Vec::new(), Expect { payload: longest, fds: 0 })?;
        let (echo, data) = wire::split::<wire::RegionAccess>(&reply.payload).ok_or_else(|| peer.short(command))?;
        let same = (echo.offset, echo.region) == (access.offset, access.region);
        if !same || echo.count > access.count || data.len() != back.min(echo.count as usize) {
            return Err(peer.broke(command, "the reply is about another access").into());
        }
        if echo.count < access.count {
            let source = io::Error::new(io::ErrorKind::UnexpectedEof, format!("{} bytes were transferred", echo.count));
            return Err(Failed::Refused(source));
        }
        Ok(data.to_vec())
    }

    /// How many bytes one message may carry; a register's at least.
    fn chunk(&self) -> usize {
        usize::try_from(self.peer.server.max_data_xfer_size).unwrap_or(usize::MAX).clamp(8, wire::MAX_DATA)
    }
}

const NOT_A_REGISTER: &str = "a register is 1, 2, 4 or 8 bytes wide, at a multiple of that";

impl PciDevice for VfioUser {
    fn name(&self) -> &str {
        &self.peer.name
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::VfioUser
    }

    fn info(&self) -> DeviceInfo {
        self.info
    }

    fn page_size(&self) -> PageSize {
        PageSize::host()
    }

    fn isolation(&self) -> Isolation {
        Isolation::by_construction()
    }

    fn region(&self, index: u32) -> Result<RegionInfo> {
        Ok(self.known(index)?.info.clone())
    }

    fn read(&self, region: u32, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.check("read", region, offset, buf.len())?;
        let mut at = offset;
        for part in buf.chunks_mut(self.chunk()) {
            let access = wire::RegionAccess { offset: at, region, count: part.len() as u32 };
            let data = self
                .region_access(Command::REGION_READ, access, &[])
                .map_err(|e| e.or(|source| self.access("read", region, at, part.len(), source)))?;
            part.copy_from_slice(&data);
            // It was checked to be inside.
            at = at.saturating_add(part.len() as u64);
        }
        Ok(())
    }

    fn write(&self, region: u32, offset: u64, buf: &[u8]) -> Result<()> {
        self.check("write", region, offset, buf.len())?;
        let mut at = offset;
        for part in buf.chunks(self.chunk()) {
            let access = wire::RegionAccess { offset: at, region, count: part.len() as u32 };
            self.region_access(Command::REGION_WRITE, access, part)
                .map_err(|e| e.or(|source| self.access("write", region, at, part.len(), source)))?;
            // It was checked to be inside.
            at = at.saturating_add(part.len() as u64);
        }
        Ok(())
    }

    fn map(&self, region: u32, range: Range<u64>, prot: Prot) -> Result<RegionMapping> {
        self.known(region)?.map(&self.peer, self, region, range, prot)
    }

    fn irq_info(&self, kind: Irq) -> Result<IrqInfo> {
        Ok(self.irqs.get(kind as usize).copied().unwrap_or_default())
    }

    fn set_irqs(&self, kind: Irq, first: u32, action: IrqAction<'_>) -> Result<()> {
        let (index, count) = (kind.index(), self.irq_info(kind)?.count);
        let wanted = match action {
            IrqAction::Fds(fds) => fds.len(),
            IrqAction::Disable => 0,
            IrqAction::Mask(n) | IrqAction::Unmask(n) | IrqAction::Trigger(n) => n as usize,
        };
        if (first as usize).checked_add(wanted).is_none_or(|end| end > count as usize) {
            let vector = first.saturating_add(wanted as u32).saturating_sub(1);
            return Err(Error::NoSuchIrq { device: self.name().to_owned(), kind, vector, count });
        }
        let set =
            |flags, start, count, fds| self.peer.set_irqs(wire::IrqSet { argsz: 0, flags, index, start, count }, fds);
        match action {
            IrqAction::Fds(fds) => self.arm(kind, first, fds),
            // "A count (and start) of 0 with DATA_NONE disables all interrupts of the index."
            IrqAction::Disable => {
                self.first().take_if(|(known, _)| *known == kind);
                set(VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER, 0, 0, Vec::new())
            }
            IrqAction::Mask(n) => set(VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_MASK, first, n, Vec::new()),
            IrqAction::Unmask(n) => set(VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK, first, n, Vec::new()),
            IrqAction::Trigger(n) => set(VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER, first, n, Vec::new()),
        }
    }

    fn dma(&self) -> Arc<DmaSpace> {
        self.dma.clone()
    }

    fn opening(&self, begins: bool) {
        self.peer.patience.opening(begins);
    }

    fn reset(&self) -> Result<()> {
        *self.first() = None;
        let reply = self.peer.call(Command::RESET, &[], Vec::new(), Expect::NOTHING);
        reply.map(|_| ()).map_err(|e| e.or(|source| self.peer.refused("resetting it", source)))
    }
}

impl VfioUser {
    /// Gives vectors their eventfds. libvfio-user kept those of ERR and REQ where it keeps that of vector 0, until late in 2025, and nothing that a
    /// server says tells whether it does: so vector 0 is told once more after them.
    fn arm(&self, kind: Irq, first: u32, fds: &[Option<BorrowedFd<'_>>]) -> Result<()> {
        self.set_fds(kind, first, fds)?;
        let mut known = self.first();
        match (fds.first(), &*known) {
            (Some(fd), _) if kind < Irq::Err && first == 0 => {
                let own = fd.map(|fd| fd.try_clone_to_owned()).transpose();
                let own = own.map_err(|e| self.peer.refused("duplicating an eventfd", e))?;
                *known = own.map(|fd| (kind, fd));
                Ok(())
            }
            (_, Some((known, fd))) if kind >= Irq::Err => self.set_fds(*known, 0, &[Some(fd.as_fd())]),
            _ => Ok(()),
        }
    }

    fn first(&self) -> MutexGuard<'_, Option<(Irq, OwnedFd)>> {
        self.first.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// A message has descriptors for all of its vectors or for none, and no more than the server takes at once.
    fn set_fds(&self, kind: Irq, first: u32, fds: &[Option<BorrowedFd<'_>>]) -> Result<()> {
        let most = usize::try_from(self.peer.server.max_msg_fds).unwrap_or(usize::MAX).min(MAX_FDS);
        let mut start = first;
        for run in fds.chunk_by(|a, b| a.is_some() == b.is_some()) {
            let most = if run[0].is_none() { run.len() } else { most };
            if most == 0 {
                let source = io::Error::new(io::ErrorKind::Unsupported, "the server takes no file descriptors");
                return Err(self.peer.refused("configuring interrupts", source));
            }
            for part in run.chunks(most) {
                let owned = part.iter().flatten().map(|fd| fd.try_clone_to_owned()).collect::<io::Result<_>>();
                let owned = owned.map_err(|e| self.peer.refused("duplicating an eventfd", e))?;
                let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
                let set = wire::IrqSet { argsz: 0, flags, index: kind.index(), start, count: part.len() as u32 };
                self.peer.set_irqs(set, owned)?;
                start = start.saturating_add(part.len() as u32);
            }
        }
        Ok(())
    }
}

/// The address space behind a server: arenas are sent as their memory files.
struct Dma(Arc<Peer>);

impl DmaBackend for Dma {
    fn windows(&self) -> Vec<IovaWindow> {
        let smallest = 1u64.checked_shl(self.0.server.pgsizes.trailing_zeros()).unwrap_or(0);
        let page = PageSize::new(smallest).unwrap_or(PageSize::K4);
        // The protocol has no limit; this is what a process's own addresses have.
        vec![IovaWindow { range: 0..=(1 << 47) - 1, page }]
    }

    fn max_maps(&self) -> Option<usize> {
        usize::try_from(self.0.server.max_dma_maps).ok()
    }

    fn map(&self, arena: Arc<Arena>, iova: Iova) -> Result<()> {
        let len = arena.len();
        let what = format!("mapping {len} bytes of memory at {iova:#x} for it", iova = iova.0);
        // SAFETY: it goes to the device that is let into the arena, which is the server; see the boundary in `mem`.
        let fd = unsafe { arena.fd() };
        let fd = fd.map(|fd| fd.try_clone_to_owned()).transpose().map_err(|e| self.0.refused(&what, e))?;
        let Some(fd) = fd else {
            let why = "this memory has no file, so no other process can map it: use hugepage or plain memory files";
            return Err(self.0.refused(&what, io::Error::new(io::ErrorKind::Unsupported, why)));
        };
        let map = wire::DmaMap {
            argsz: size_of::<wire::DmaMap>() as u32,
            flags: VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
            offset: 0,
            address: iova.0,
            size: len,
        };
        let reply = self.0.call(Command::DMA_MAP, &[map.as_bytes()], vec![fd], Expect::NOTHING);
        reply.map(|_| ()).map_err(|e| e.or(|source| self.0.refused(&what, source)))
    }

    fn unmap(&self, iova: Iova, len: u64) -> Result<()> {
        let argsz = size_of::<wire::DmaUnmap>() as u32;
        let unmap = wire::DmaUnmap { argsz, flags: 0, address: iova.0, size: len };
        let echo: wire::DmaUnmap = self.0.ask(Command::DMA_UNMAP, &unmap, "unmapping memory")?;
        if (echo.address, echo.size) != (unmap.address, unmap.size) {
            return Err(self.0.broke(Command::DMA_UNMAP, "the reply is about other memory"));
        }
        Ok(())
    }

    fn fixed(&self, _: &Arena) -> Result<Option<Iova>> {
        Ok(None)
    }
}

//! The client: a [`PciDevice`] whose function is served by another process.
//!
//! Strict: every reply's id, command, type, error and size are checked, every message has a deadline. What breaks the protocol
//! ends the connection, and every later call says that the device is gone, and why. The regions are in `regions.rs`.

use super::regions::{Region, read_region};
use super::socket::{Broken, Frame, Socket};
use super::wire::{self, Capabilities, Command, Header};
use crate::mem::{Arena, DmaBackend, DmaSpace, Iova, IovaWindow};
use crate::pci::{
    BAR0, DeviceInfo, DeviceKind, IrqAction, IrqInfo, Isolation, PciDevice, Prot, ROM, RegionInfo, RegionMapping,
};
use crate::{Error, PageSize, Result};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use vfio_bindings::bindings::vfio::*;
use zerocopy::IntoBytes;

/// A PCI function behind a vfio-user socket.
pub struct VfioUser {
    peer: Arc<Peer>,
    info: DeviceInfo,
    regions: Vec<Region>,
    irqs: Vec<IrqInfo>,
    dma: Arc<DmaSpace>,
}

/// How to talk to a server.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How long a server may take to answer a message.
    pub timeout: Duration,
}

impl Default for Options {
    /// 5 seconds, as QEMU waits.
    fn default() -> Self {
        Self { timeout: Duration::from_secs(5) }
    }
}

impl VfioUser {
    /// Connects to the server that listens on `path`, and asks it for everything it is.
    ///
    /// # Errors
    /// [`Error::Connect`] where nobody listens there; [`Error::Peer`] where what answers isn't a vfio-user server.
    pub fn connect(path: impl AsRef<Path>, options: Options) -> Result<Arc<Self>> {
        let name = format!("vfio-user:{}", path.as_ref().display());
        match connect(path.as_ref(), options.timeout) {
            Ok(stream) => Self::from_stream(stream, &name, options),
            Err(source) => {
                let hint = match source.kind() {
                    io::ErrorKind::NotFound => "there is no such socket; is the server running?",
                    io::ErrorKind::ConnectionRefused => "nobody listens there; did the server end?",
                    io::ErrorKind::PermissionDenied => "the socket may not be used by this user",
                    io::ErrorKind::WouldBlock => "too many others are waiting for the server",
                    _ => "is it a socket?",
                };
                Err(Error::Connect { device: name, hint, source })
            }
        }
    }

    /// The device at the other end of a connection that exists already.
    ///
    /// # Errors
    /// [`Error::Peer`] where what answers isn't a vfio-user server.
    pub fn from_stream(stream: UnixStream, name: &str, options: Options) -> Result<Arc<Self>> {
        let peer = Arc::new(Peer::negotiate(stream, name, options)?);
        let info = peer.device_info()?;
        let regions = (0..info.regions).map(|index| read_region(&peer, index)).collect::<Result<_>>()?;
        let irqs = (0..info.irqs).map(|index| peer.irq_info(index)).collect::<Result<_>>()?;
        let dma = DmaSpace::new(Box::new(Dma(peer.clone())))?;
        Ok(Arc::new(Self { peer, info, regions, irqs, dma }))
    }

    /// How many file descriptors the server sent that nobody asked for. They were closed.
    pub fn stray_fds(&self) -> u64 {
        self.peer.link().stray_fds
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
        Error::Access { device: self.name().to_owned(), op, region, offset, len: len as u64, source }
    }

    /// One `REGION_READ` or `REGION_WRITE`; the reply's data.
    fn region_access(&self, command: Command, access: wire::RegionAccess, data: &[u8]) -> Result<Vec<u8>, Failed> {
        let peer = &self.peer;
        let back = if command == Command::REGION_READ { access.count as usize } else { 0 };
        let longest = size_of::<wire::RegionAccess>() + back;
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

    /// How many bytes one message may carry.
    fn chunk(&self) -> usize {
        usize::try_from(self.peer.server.max_data_xfer_size).unwrap_or(usize::MAX).clamp(1, wire::MAX_DATA)
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
            at += part.len() as u64;
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
            at += part.len() as u64;
        }
        Ok(())
    }

    fn map(&self, region: u32, range: Range<u64>, prot: Prot) -> Result<RegionMapping> {
        self.known(region)?.map(self.name(), region, range, prot)
    }

    fn irq_info(&self, index: u32) -> Result<IrqInfo> {
        Ok(self.irqs.get(index as usize).copied().unwrap_or_default())
    }

    fn set_irqs(&self, index: u32, first: u32, action: IrqAction<'_>) -> Result<()> {
        let count = self.irq_info(index)?.count;
        let wanted = match action {
            IrqAction::Fds(fds) => fds.len(),
            IrqAction::Disable => 0,
            IrqAction::Mask(n) | IrqAction::Unmask(n) | IrqAction::Trigger(n) => n as usize,
        };
        if first as usize + wanted > count as usize {
            let vector = first.saturating_add(wanted as u32).saturating_sub(1);
            return Err(Error::NoSuchIrq { device: self.name().to_owned(), index, vector, count });
        }
        let set =
            |flags, start, count, fds| self.peer.set_irqs(wire::IrqSet { argsz: 0, flags, index, start, count }, fds);
        match action {
            IrqAction::Fds(fds) => self.set_fds(index, first, fds),
            // "A count (and start) of 0 with DATA_NONE disables all interrupts of the index."
            IrqAction::Disable => set(VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER, 0, 0, Vec::new()),
            IrqAction::Mask(n) => set(VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_MASK, first, n, Vec::new()),
            IrqAction::Unmask(n) => set(VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK, first, n, Vec::new()),
            IrqAction::Trigger(n) => set(VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER, first, n, Vec::new()),
        }
    }

    fn dma(&self) -> Arc<DmaSpace> {
        self.dma.clone()
    }

    fn reset(&self) -> Result<()> {
        let reply = self.peer.call(Command::RESET, &[], Vec::new(), Expect::NOTHING);
        reply.map(|_| ()).map_err(|e| e.or(|source| self.peer.refused("resetting it", source)))
    }
}

impl VfioUser {
    /// A message has descriptors for all of its vectors or for none, and no more than the server takes at once.
    fn set_fds(&self, index: u32, first: u32, fds: &[Option<BorrowedFd<'_>>]) -> Result<()> {
        let most = usize::try_from(self.peer.server.max_msg_fds).unwrap_or(usize::MAX).min(wire::MAX_FDS);
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
                let set = wire::IrqSet { argsz: 0, flags, index, start, count: part.len() as u32 };
                self.peer.set_irqs(set, owned)?;
                start += part.len() as u32;
            }
        }
        Ok(())
    }
}

/// The server, and what it said of itself.
pub(super) struct Peer {
    pub name: String,
    timeout: Duration,
    server: Capabilities,
    link: Mutex<Link>,
}

struct Link {
    socket: Socket,
    next_id: u16,
    /// Why there is nobody any more.
    gone: Option<String>,
    stray_fds: u64,
}

/// What a good reply has at most.
pub(super) struct Expect {
    /// Bytes.
    pub payload: usize,
    /// File descriptors that are meant to come.
    pub fds: usize,
}

impl Expect {
    pub const NOTHING: Self = Self { payload: 0, fds: 0 };
}

/// Why a command came to nothing.
pub(super) enum Failed {
    /// The server said no; it is still there.
    Refused(io::Error),
    /// It isn't.
    Lost(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Lost(error)
    }
}

impl Failed {
    /// As an error; what a refusal means is the caller's to say.
    pub fn or(self, refused: impl FnOnce(io::Error) -> Error) -> Error {
        match self {
            Self::Refused(source) => refused(source),
            Self::Lost(error) => error,
        }
    }
}

impl Peer {
    fn negotiate(stream: UnixStream, name: &str, options: Options) -> Result<Self> {
        let link = Link { socket: Socket::new(stream), next_id: 0, gone: None, stray_fds: 0 };
        let server = Capabilities::default();
        let mut new = Self { name: name.to_owned(), timeout: options.timeout, server, link: Mutex::new(link) };
        let (major, minor) = wire::VERSION;
        let version = wire::Version { major, minor };
        let payload = [version.as_bytes(), &Capabilities::OURS.encode()];
        let reply = new
            .call(Command::VERSION, &payload, Vec::new(), Expect { payload: 4096, fds: 0 })
            .map_err(|e| e.or(|source| new.refused("negotiating the version", source)))?;
        let (theirs, json) = wire::split::<wire::Version>(&reply.payload).ok_or_else(|| new.short(Command::VERSION))?;
        if theirs.major != major || theirs.minor > minor {
            let what = format!("it speaks version {}.{}, not {major}.{minor}", theirs.major, theirs.minor);
            return Err(new.broke(Command::VERSION, &what));
        }
        new.server = Capabilities::decode(json).map_err(|what| new.broke(Command::VERSION, &what))?;
        Ok(new)
    }

    fn device_info(&self) -> Result<DeviceInfo> {
        let ask = wire::DeviceInfo { argsz: size_of::<wire::DeviceInfo>() as u32, flags: 0, regions: 0, irqs: 0 };
        let info: wire::DeviceInfo = self.ask(Command::GET_INFO, &ask, "asking what it is")?;
        if info.flags & VFIO_DEVICE_FLAGS_PCI == 0 {
            return Err(self.broke(Command::GET_INFO, "it is no PCI device"));
        }
        // Nine and five for PCI; a server may add regions of its own.
        if info.regions > 256 || info.irqs > 256 {
            let what = format!("it says it has {} regions and {} kinds of interrupt", info.regions, info.irqs);
            return Err(self.broke(Command::GET_INFO, &what));
        }
        let resettable = info.flags & VFIO_DEVICE_FLAGS_RESET != 0;
        Ok(DeviceInfo { regions: info.regions, irqs: info.irqs, resettable })
    }

    fn irq_info(&self, index: u32) -> Result<IrqInfo> {
        let ask = wire::IrqInfo { argsz: size_of::<wire::IrqInfo>() as u32, flags: 0, index, count: 0 };
        let info: wire::IrqInfo = self.ask(Command::GET_IRQ_INFO, &ask, "asking for its interrupts")?;
        if info.index != index {
            return Err(self.broke(Command::GET_IRQ_INFO, "the reply is about another kind of interrupt"));
        }
        Ok(IrqInfo {
            count: info.count,
            eventfd: info.flags & VFIO_IRQ_INFO_EVENTFD != 0,
            maskable: info.flags & VFIO_IRQ_INFO_MASKABLE != 0,
            resizable: info.flags & VFIO_IRQ_INFO_NORESIZE == 0,
        })
    }

    fn set_irqs(&self, set: wire::IrqSet, fds: Vec<OwnedFd>) -> Result<()> {
        let set = wire::IrqSet { argsz: size_of::<wire::IrqSet>() as u32, ..set };
        let reply = self.call(Command::SET_IRQS, &[set.as_bytes()], fds, Expect::NOTHING);
        reply.map(|_| ()).map_err(|e| e.or(|source| self.refused("configuring interrupts", source)))
    }

    /// A command whose reply is one message of the same layout.
    fn ask<T: zerocopy::FromBytes + IntoBytes + zerocopy::Immutable>(
        &self,
        command: Command,
        ask: &T,
        what: &str,
    ) -> Result<T> {
        let expect = Expect { payload: size_of::<T>(), fds: 0 };
        let reply = self.call(command, &[ask.as_bytes()], Vec::new(), expect);
        let reply = reply.map_err(|e| e.or(|source| self.refused(what, source)))?;
        wire::split::<T>(&reply.payload).map(|(it, _)| it).ok_or_else(|| self.short(command))
    }

    /// Sends a command and waits for its reply.
    pub fn call(
        &self,
        command: Command,
        payload: &[&[u8]],
        fds: Vec<OwnedFd>,
        expect: Expect,
    ) -> Result<Frame, Failed> {
        let mut link = self.link();
        if let Some(why) = &link.gone {
            return Err(Error::Gone { device: self.name.clone(), why: why.clone() }.into());
        }
        match link.exchange(command, payload, fds, expect, self.timeout) {
            Ok(reply) => Ok(reply),
            Err(Wrong::Refused(source)) => Err(Failed::Refused(source)),
            Err(Wrong::Broken(what)) => Err(self.lose(link, command, what).into()),
        }
    }

    /// The server broke the protocol: it is not spoken to again.
    pub fn broke(&self, command: Command, what: &str) -> Error {
        self.lose(self.link(), command, what.to_owned())
    }

    /// As [`broke`](Self::broke), by a reply that is too short.
    pub fn short(&self, command: Command) -> Error {
        self.broke(command, "the reply is too short")
    }

    pub fn refused(&self, what: &str, source: io::Error) -> Error {
        Error::Io { what: format!("{}: {what}", self.name), source }
    }

    fn lose(&self, mut link: MutexGuard<'_, Link>, command: Command, what: String) -> Error {
        link.socket.shutdown();
        link.gone = Some(format!("{command}: {what}"));
        Error::Peer { device: self.name.clone(), command: command.to_string(), what }
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// What is wrong with a reply.
enum Wrong {
    /// It says no.
    Refused(io::Error),
    /// It, or the connection, is not as it must be.
    Broken(String),
}

impl From<String> for Wrong {
    fn from(what: String) -> Self {
        Self::Broken(what)
    }
}

impl Link {
    /// Sends a command and receives its reply.
    fn exchange(
        &mut self,
        command: Command,
        payload: &[&[u8]],
        fds: Vec<OwnedFd>,
        expect: Expect,
        timeout: Duration,
    ) -> Result<Frame, Wrong> {
        let deadline = Instant::now() + timeout.min(super::socket::A_YEAR);
        self.next_id = self.next_id.wrapping_add(1);
        let id = self.next_id;
        let header = Header { id, command, size: 0, flags: wire::COMMAND, error: 0 };
        self.send(header, payload, fds, deadline)?;
        loop {
            let frame = self.receive(deadline, timeout)?;
            let reply = frame.header;
            if reply.kind() == wire::COMMAND {
                self.decline(&frame, deadline)?;
                continue;
            }
            if reply.kind() != wire::REPLY {
                return Err(format!("what came is neither command nor reply: flags {:#x}", reply.flags).into());
            }
            if (reply.id, reply.command) != (id, command) {
                let (their_id, theirs) = (reply.id, reply.command);
                return Err(format!("the reply is to {theirs}, id {their_id}, not to {command}, id {id}").into());
            }
            return self.judge(frame, expect);
        }
    }

    fn judge(&mut self, reply: Frame, expect: Expect) -> Result<Frame, Wrong> {
        let count = reply.fds.len() + reply.excess_fds;
        if reply.excess_fds > 0 || (expect.fds > 0 && count > expect.fds) {
            let most = if expect.fds > 0 { expect.fds } else { wire::MAX_FDS };
            return Err(format!("{count} file descriptors came with the reply, where at most {most} may").into());
        }
        if count > expect.fds {
            self.stray_fds += count as u64;
            tracing::warn!(count, command = %reply.header.command, "file descriptors came that nobody asked for");
        }
        if reply.header.has(wire::ERROR) {
            if !reply.payload.is_empty() {
                return Err("an error reply has a payload".to_owned().into());
            }
            return Err(Wrong::Refused(match i32::try_from(reply.header.error) {
                Ok(errno @ 1..4096) => io::Error::from_raw_os_error(errno),
                _ => io::Error::other("the server says only that it failed"),
            }));
        }
        if reply.payload.len() > expect.payload {
            let (got, most) = (reply.payload.len(), expect.payload);
            return Err(format!("the reply has {got} bytes, where at most {most} may come").into());
        }
        Ok(reply)
    }

    /// Answers a command of the server's. The only ones there are ask for memory without a file, and we map none.
    fn decline(&mut self, frame: &Frame, deadline: Instant) -> Result<(), String> {
        if frame.header.has(wire::NO_REPLY) {
            return Ok(());
        }
        let error = libc::EOPNOTSUPP as u32;
        let header = Header { flags: wire::REPLY | wire::ERROR, error, ..frame.header };
        self.send(header, &[], Vec::new(), deadline)
    }

    fn send(&mut self, header: Header, payload: &[&[u8]], fds: Vec<OwnedFd>, deadline: Instant) -> Result<(), String> {
        self.socket.send(header, payload, fds).map_err(|e| e.to_string())?;
        while !self.socket.flush().map_err(|e| e.to_string())? {
            if !self.wait(deadline)? {
                return Err("the server does not take it".to_owned());
            }
        }
        Ok(())
    }

    fn receive(&mut self, deadline: Instant, timeout: Duration) -> Result<Frame, String> {
        loop {
            match self.socket.receive() {
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) if self.wait(deadline)? => {}
                Ok(None) => return Err(format!("no reply within {timeout:?} (does it serve someone else?)")),
                Err(e @ Broken::Size { .. }) => return Err(format!("{e}; is it a vfio-user server?")),
                Err(e) => return Err(e.to_string()),
            }
        }
    }

    fn wait(&self, deadline: Instant) -> Result<bool, String> {
        self.socket.wait(deadline.saturating_duration_since(Instant::now())).map_err(|e| Broken::Io(e).to_string())
    }
}

/// The address space behind a server: arenas are sent as their memory files.
struct Dma(Arc<Peer>);

impl DmaBackend for Dma {
    fn windows(&self) -> Vec<IovaWindow> {
        let smallest = 1 << self.0.server.pgsizes.trailing_zeros().min(30);
        let page = PageSize::new(smallest).unwrap_or(PageSize::K4);
        // The protocol has no limit; this is what a process's own addresses have.
        vec![IovaWindow { range: 0..=(1 << 47) - 1, page }]
    }

    fn max_maps(&self) -> Option<usize> {
        usize::try_from(self.0.server.max_dma_maps).ok()
    }

    fn map(&self, arena: &Arc<Arena>, iova: Iova) -> Result<()> {
        let len = arena.len();
        let what = format!("mapping {len} bytes of memory at {iova:#x} for it", iova = iova.0);
        let fd = arena.fd().map(|fd| fd.try_clone_to_owned()).transpose().map_err(|e| self.0.refused(&what, e))?;
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

/// Connects without ever waiting longer than `timeout`: a full backlog blocks otherwise.
fn connect(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let deadline = Instant::now() + timeout.min(super::socket::A_YEAR);
    loop {
        match rustix::net::connect(&fd, &address) {
            Ok(()) => return Ok(UnixStream::from(fd)),
            // The backlog is full. The kernel tells nobody when that ends.
            Err(rustix::io::Errno::AGAIN) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            Err(e) => return Err(e.into()),
        }
    }
}

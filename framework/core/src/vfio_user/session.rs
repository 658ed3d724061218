//! One client of a server: what it asks, checked and answered.
//!
//! A command that is wrong gets an error reply, and the client may go on. It is sent away only when the framing cannot be
//! trusted any more, or when it doesn't begin by agreeing on a version.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::peer::Frame;
use super::wire::{self, Capabilities, Command, Header};
use crate::PageSize;
use crate::files::Files;
use crate::mem::Iova;
use crate::model::{Model, ModelFunction, Refused, rest};
use crate::pci::{BAR0, ROM};
use crate::server;
use crate::socket::Socket;
use rustix::event::{PollFd, PollFlags};
use std::io;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use vfio_bindings::bindings::vfio::*;
use zerocopy::IntoBytes;

/// A connection, and what has been agreed on and shared over it.
pub struct Session {
    socket: Socket<Header>,
    /// What the client can do, once it said so.
    client: Option<Capabilities>,
    files: Files,
    /// It was said that memory came without a descriptor.
    told: bool,
    /// The client was given memory of the device's, which it may have mapped.
    mapped: bool,
}

/// What answers a command: bytes, and at times a file.
#[derive(Default)]
struct Reply {
    payload: Vec<u8>,
    file: Option<OwnedFd>,
}

impl Reply {
    fn of(layout: &(impl IntoBytes + zerocopy::Immutable)) -> Self {
        Self { payload: layout.as_bytes().to_vec(), file: None }
    }
}

/// A command was refused, with an `errno`.
type Answer = Result<Reply, Refused>;

const INVALID: Refused = Refused(libc::EINVAL);

impl<M: Model> server::Session<M> for Session {
    type Setup = ();
    const PEER: &'static str = "client";

    fn begin(stream: UnixStream, _: &mut ModelFunction<M>, (): ()) -> Result<Self, String> {
        Ok(Self::new(stream))
    }

    #[inline]
    fn is_robbed(&self) -> bool {
        self.files.have_shrunk()
    }

    fn wait(&self, timeout: Duration, wires: Vec<BorrowedFd<'_>>) -> io::Result<()> {
        let events = if self.socket.is_sending() { PollFlags::OUT } else { PollFlags::IN };
        Ok(rest::wait(vec![PollFd::new(&self.socket, events)], wires, timeout)?)
    }

    /// Not one that may have mapped memory of the device's.
    fn tells_all(&self) -> bool {
        !self.mapped
    }

    fn poll(&mut self, function: &mut ModelFunction<M>) -> Result<bool, String> {
        if !self.socket.flush().map_err(|e| e.to_string())? {
            return Ok(false);
        }
        match self.socket.receive().map_err(|e| e.to_string())? {
            Some(frame) => self.answer(function, frame).map(|()| true),
            None => Ok(false),
        }
    }
}

impl Session {
    pub fn new(stream: UnixStream) -> Self {
        Self { socket: Socket::new(stream), client: None, files: Files::default(), told: false, mapped: false }
    }

    fn answer<M: Model + ?Sized>(&mut self, function: &mut ModelFunction<M>, frame: Frame) -> Result<(), String> {
        let command = frame.header;
        if command.kind() != wire::COMMAND {
            return Err(format!("it sent what is no command: flags {:#x}", command.flags));
        }
        let first = self.client.is_none();
        let answer = match command.command {
            Command::VERSION if first => self.version(&frame),
            _ if first => Err(INVALID),
            _ => self.handle(function, frame),
        };
        if let Err(Refused(errno)) = answer {
            tracing::debug!(command = %command.command, errno, "refused");
        }
        if !command.has(wire::NO_REPLY) {
            let header = Header { flags: wire::REPLY, error: 0, ..command };
            let sent = match answer {
                Ok(Reply { payload, file }) => self.socket.send(header, &[&payload], file.into_iter().collect()),
                Err(Refused(errno)) => {
                    let header = Header { flags: wire::REPLY | wire::ERROR, error: errno.unsigned_abs(), ..header };
                    self.socket.send(header, &[], Vec::new())
                }
            };
            sent.map_err(|e| e.to_string())?;
        }
        match self.client {
            Some(_) => Ok(()),
            None => Err(format!("it began with {}, and no version was agreed on", command.command)),
        }
    }

    /// "The major version in the reply must be the same as proposed, the minor equal or less."
    fn version(&mut self, frame: &Frame) -> Answer {
        let (theirs, json) = wire::split::<wire::Version>(&frame.payload).ok_or(INVALID)?;
        let (major, minor) = wire::VERSION;
        if theirs.major != major || !frame.fds.is_empty() {
            return Err(INVALID);
        }
        let client = Capabilities::decode(json).map_err(|why| {
            tracing::info!(why, "a client's capabilities");
            INVALID
        })?;
        self.client = Some(client);
        let mut reply = Reply::of(&wire::Version { major, minor: theirs.minor.min(minor) });
        reply.payload.extend(Capabilities::OURS.encode());
        Ok(reply)
    }

    fn handle<M: Model + ?Sized>(&mut self, function: &mut ModelFunction<M>, frame: Frame) -> Answer {
        let Frame { header, payload, fds, excess_fds } = frame;
        // SPDK sends the map's file with its unmap, too: it is closed.
        let takes_fds = matches!(header.command, Command::DMA_MAP | Command::DMA_UNMAP | Command::SET_IRQS);
        if excess_fds > 0 || !(fds.is_empty() || takes_fds) {
            return Err(INVALID);
        }
        match header.command {
            Command::DMA_MAP => self.dma_map(function, &payload, fds),
            Command::DMA_UNMAP if fds.len() > 1 => Err(INVALID),
            Command::DMA_UNMAP => dma_unmap(function, &payload),
            Command::GET_INFO => get_info(function, &payload),
            Command::GET_REGION_INFO => self.region_info(function, &payload),
            Command::GET_IRQ_INFO => irq_info(function, &payload),
            Command::SET_IRQS => set_irqs(function, &payload, fds),
            Command::REGION_READ => region_read(function, &payload),
            Command::REGION_WRITE => region_write(function, &payload),
            Command::RESET => {
                function.reset();
                Ok(Reply::default())
            }
            Command::VERSION => Err(INVALID),
            _ => Err(Refused(libc::EOPNOTSUPP)),
        }
    }

    fn dma_map<M: Model + ?Sized>(
        &mut self,
        function: &mut ModelFunction<M>,
        payload: &[u8],
        fds: Vec<OwnedFd>,
    ) -> Answer {
        /// libvfio-user's: map the file, which is what we do with any.
        const BY_MAPPING: u32 = 1 << 2;
        let (map, _) = wire::split::<wire::DmaMap>(payload).ok_or(INVALID)?;
        let known = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE | BY_MAPPING;
        if (map.argsz as usize) < size_of::<wire::DmaMap>() || map.flags & !known != 0 || fds.len() > 1 {
            return Err(INVALID);
        }
        if function.dma_count() as u64 >= Capabilities::OURS.max_dma_maps {
            return Err(Refused(libc::ENOSPC));
        }
        let (iova, writable) = (Iova(map.address), map.flags & VFIO_DMA_MAP_FLAG_WRITE != 0);
        match fds.first() {
            // Memory that can only be had by message: its place is taken, and no model can reach it.
            None => {
                function.dma_map_unreachable(iova, map.size)?;
                if !std::mem::replace(&mut self.told, true) {
                    tracing::warn!(
                        %iova,
                        len = map.size,
                        "memory came without a descriptor: the device cannot reach it. If it is the guest's RAM, give QEMU \
                         -object memory-backend-memfd,id=ram,size=SIZE,share=on -machine memory-backend=ram"
                    );
                }
            }
            Some(fd) => {
                let (memory, at) = self.files.memory(fd, map.offset, map.size, writable).map_err(Refused)?;
                function.dma_map(iova, memory, at, map.size, writable)?;
            }
        }
        Ok(Reply::default())
    }

    fn region_info<M: Model + ?Sized>(&mut self, function: &ModelFunction<M>, payload: &[u8]) -> Answer {
        const FIXED: u32 = size_of::<wire::RegionInfo>() as u32;
        let (ask, _) = wire::split::<wire::RegionInfo>(payload).ok_or(INVALID)?;
        if ask.argsz < FIXED || ask.index >= function.shape().info().regions {
            return Err(INVALID);
        }
        let region = function.region(ask.index);
        let takes_files = self.client.is_some_and(|c| c.max_msg_fds > 0);
        let areas = if region.mappable && takes_files { offered(&region) } else { Vec::new() };
        let caps = capabilities(&areas, region.msix_mappable());
        let file = match areas.is_empty() {
            true => None,
            false => function.model_region(ask.index).and_then(|r| r.pages.as_ref()).and_then(|p| p.fd()),
        };
        let mut flags = 0;
        let mut flag = |bit, set: bool| flags |= if set { bit } else { 0 };
        flag(VFIO_REGION_INFO_FLAG_READ, region.readable);
        flag(VFIO_REGION_INFO_FLAG_WRITE, region.writable);
        flag(VFIO_REGION_INFO_FLAG_MMAP, file.is_some());
        let argsz = FIXED.saturating_add(if file.is_some() { caps.len() as u32 } else { 0 });
        // "The full payload is not included in the reply, but argsz indicates the needed size": then the file waits too.
        let full = file.is_some() && argsz <= ask.argsz;
        flag(VFIO_REGION_INFO_FLAG_CAPS, full);
        let cap_offset = if full { FIXED } else { 0 };
        let info = wire::RegionInfo { argsz, flags, index: ask.index, cap_offset, size: region.size, offset: 0 };
        let mut reply = Reply::of(&info);
        if full {
            reply.payload.extend(caps);
            let file = file.map(|fd| fd.try_clone_to_owned()).transpose();
            reply.file = file.map_err(|e| Refused(e.raw_os_error().unwrap_or(libc::EIO)))?;
            self.mapped = true;
        }
        Ok(reply)
    }
}

/// The areas of a region that can be mapped by this host's pages.
fn offered(region: &crate::pci::RegionInfo) -> Vec<Range<u64>> {
    let page = PageSize::host();
    let whole = 0..region.size;
    let areas = region.sparse().unwrap_or(std::slice::from_ref(&whole));
    let end = |end| if end == region.size { end } else { page.floor(end) };
    areas.iter().map(|a| page.ceil(a.start)..end(a.end)).filter(|a| !a.is_empty()).collect()
}

/// The capability chain that follows [`wire::RegionInfo`]. Areas are always there: some clients map nothing without.
fn capabilities(areas: &[Range<u64>], msix_mappable: bool) -> Vec<u8> {
    const HEAD: usize = size_of::<wire::RegionInfo>() + size_of::<wire::CapHeader>() + size_of::<wire::Sparse>();
    let next = HEAD.saturating_add(areas.len().saturating_mul(size_of::<wire::Area>()));
    let next = if msix_mappable { next as u32 } else { 0 };
    let mut bytes = Vec::new();
    let id = VFIO_REGION_INFO_CAP_SPARSE_MMAP as u16;
    bytes.extend(wire::CapHeader { id, version: 1, next }.as_bytes());
    bytes.extend(wire::Sparse { areas: areas.len() as u32, reserved: 0 }.as_bytes());
    for area in areas {
        bytes.extend(wire::Area { offset: area.start, size: area.end.saturating_sub(area.start) }.as_bytes());
    }
    if msix_mappable {
        let id = VFIO_REGION_INFO_CAP_MSIX_MAPPABLE as u16;
        bytes.extend(wire::CapHeader { id, version: 1, next: 0 }.as_bytes());
    }
    bytes
}

fn dma_unmap<M: Model + ?Sized>(function: &mut ModelFunction<M>, payload: &[u8]) -> Answer {
    let (unmap, _) = wire::split::<wire::DmaUnmap>(payload).ok_or(INVALID)?;
    if (unmap.argsz as usize) < size_of::<wire::DmaUnmap>() {
        return Err(INVALID);
    }
    match unmap.flags {
        // As the kernel does: what lies inside goes, and where nothing does, nothing is wrong. QEMU counts on it.
        0 => {
            function.dma_unmap_all_in(Iova(unmap.address), unmap.size)?;
        }
        VFIO_DMA_UNMAP_FLAG_ALL if (unmap.address, unmap.size) == (0, 0) => function.dma_clear(),
        _ => return Err(INVALID),
    }
    Ok(Reply::of(&unmap))
}

fn get_info<M: Model + ?Sized>(function: &ModelFunction<M>, payload: &[u8]) -> Answer {
    const SIZE: u32 = size_of::<wire::DeviceInfo>() as u32;
    let (ask, _) = wire::split::<wire::DeviceInfo>(payload).ok_or(INVALID)?;
    if ask.argsz < SIZE {
        return Err(INVALID);
    }
    let info = function.shape().info();
    let flags = VFIO_DEVICE_FLAGS_PCI | if info.resettable { VFIO_DEVICE_FLAGS_RESET } else { 0 };
    Ok(Reply::of(&wire::DeviceInfo { argsz: SIZE, flags, regions: info.regions, irqs: info.irqs }))
}

fn irq_info<M: Model + ?Sized>(function: &ModelFunction<M>, payload: &[u8]) -> Answer {
    const SIZE: u32 = size_of::<wire::IrqInfo>() as u32;
    let (ask, _) = wire::split::<wire::IrqInfo>(payload).ok_or(INVALID)?;
    if ask.argsz < SIZE || ask.index >= function.shape().info().irqs {
        return Err(INVALID);
    }
    let info = function.irq_info(ask.index);
    let flags = if info.eventfd { VFIO_IRQ_INFO_EVENTFD } else { 0 }
        | if info.maskable { VFIO_IRQ_INFO_MASKABLE } else { 0 }
        | if info.resizable { 0 } else { VFIO_IRQ_INFO_NORESIZE };
    Ok(Reply::of(&wire::IrqInfo { argsz: SIZE, flags, index: ask.index, count: info.count }))
}

fn set_irqs<M: Model + ?Sized>(function: &mut ModelFunction<M>, payload: &[u8], fds: Vec<OwnedFd>) -> Answer {
    let (set, bools) = wire::split::<wire::IrqSet>(payload).ok_or(INVALID)?;
    let wire::IrqSet { argsz, flags, index, start, count } = set;
    let available = function.irq_info(index).count;
    let fits = start.checked_add(count).is_some_and(|end| end <= available);
    let eventfds = flags & VFIO_IRQ_SET_DATA_TYPE_MASK == VFIO_IRQ_SET_DATA_EVENTFD;
    if (argsz as usize) < size_of::<wire::IrqSet>() || !fits || (!fds.is_empty() && !eventfds) {
        return Err(INVALID);
    }
    let (data, action) = (flags & VFIO_IRQ_SET_DATA_TYPE_MASK, flags & !VFIO_IRQ_SET_DATA_TYPE_MASK);
    match (data, action) {
        (VFIO_IRQ_SET_DATA_NONE, VFIO_IRQ_SET_ACTION_TRIGGER) if count == 0 && start == 0 => {
            function.disable_irqs(index)
        }
        _ if count == 0 => return Err(INVALID),
        (VFIO_IRQ_SET_DATA_NONE, action) => act(function, action, index, start, count)?,
        (VFIO_IRQ_SET_DATA_BOOL, action) => {
            let bools = bools.get(..count as usize).ok_or(INVALID)?;
            for (vector, _) in (start..).zip(bools).filter(|(_, on)| **on != 0) {
                act(function, action, index, vector, 1)?;
            }
        }
        // "If no file descriptors are provided, this de-assigns."
        (VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_ACTION_TRIGGER) if fds.is_empty() => {
            function.set_irqs(index, start, (0..count).map(|_| None).collect())?;
        }
        (VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_ACTION_TRIGGER) => {
            if fds.len() != count as usize || !fds.iter().all(|fd| function.may_signal(fd)) {
                return Err(INVALID);
            }
            function.set_irqs(index, start, fds.into_iter().map(Some).collect())?;
        }
        _ => return Err(INVALID),
    }
    Ok(Reply::default())
}

fn act<M: Model + ?Sized>(
    function: &mut ModelFunction<M>,
    action: u32,
    index: u32,
    first: u32,
    count: u32,
) -> Result<(), Refused> {
    match action {
        VFIO_IRQ_SET_ACTION_MASK => function.mask_irqs(index, first, count, true),
        VFIO_IRQ_SET_ACTION_UNMASK => function.mask_irqs(index, first, count, false),
        VFIO_IRQ_SET_ACTION_TRIGGER => function.trigger(index, first, count),
        _ => Err(INVALID),
    }
}

/// The access a message asks for, inside of its region, with a register's width where it is a BAR's.
fn check_access<'a, M: Model + ?Sized>(
    function: &ModelFunction<M>,
    payload: &'a [u8],
) -> Result<(wire::RegionAccess, &'a [u8]), Refused> {
    let (access, data) = wire::split::<wire::RegionAccess>(payload).ok_or(INVALID)?;
    let wire::RegionAccess { offset, region, count } = access;
    let size = function.model_region(region).map_or(0, |r| r.size);
    let inside = offset.checked_add(count.into()).is_some_and(|end| end <= size);
    let register = matches!(count, 1 | 2 | 4 | 8) && offset.is_multiple_of(count.into());
    if !inside || count as usize > wire::MAX_DATA || ((BAR0..ROM).contains(&region) && !register) {
        return Err(INVALID);
    }
    Ok((access, data))
}

fn region_read<M: Model + ?Sized>(function: &mut ModelFunction<M>, payload: &[u8]) -> Answer {
    let (access, _) = check_access(function, payload)?;
    let mut data = vec![0; access.count as usize];
    function.read(access.region, access.offset, &mut data)?;
    let mut reply = Reply::of(&access);
    reply.payload.append(&mut data);
    Ok(reply)
}

fn region_write<M: Model + ?Sized>(function: &mut ModelFunction<M>, payload: &[u8]) -> Answer {
    let (access, data) = check_access(function, payload)?;
    if data.len() != access.count as usize {
        return Err(INVALID);
    }
    function.write(access.region, access.offset, data)?;
    Ok(Reply::of(&access))
}

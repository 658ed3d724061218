//! A vhost-user front end by hand: messages as bytes, memory that is a file, rings of single descriptors in it, the back end stepped in between.
//!
//! It is an independent reading of the protocol, and checks nothing: a test sends what it likes.

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, sendmsg};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wholebar_core::vhost_user::Server;
use wholebar_sim::virtio::Virtio;
use wholebar_sim::virtio::blk::{self, BlkParams};
use wholebar_sim::virtio::net::{self, NetHandle, NetParams};

pub const GET_FEATURES: u32 = 1;
pub const SET_FEATURES: u32 = 2;
pub const SET_OWNER: u32 = 3;
pub const SET_MEM_TABLE: u32 = 5;
pub const SET_VRING_NUM: u32 = 8;
pub const SET_VRING_ADDR: u32 = 9;
pub const SET_VRING_BASE: u32 = 10;
pub const GET_VRING_BASE: u32 = 11;
pub const SET_VRING_KICK: u32 = 12;
pub const SET_VRING_CALL: u32 = 13;
pub const SET_VRING_ERR: u32 = 14;
pub const GET_PROTOCOL_FEATURES: u32 = 15;
pub const SET_PROTOCOL_FEATURES: u32 = 16;
pub const GET_QUEUE_NUM: u32 = 17;
pub const SET_VRING_ENABLE: u32 = 18;
pub const SET_BACKEND_REQ_FD: u32 = 21;
pub const GET_CONFIG: u32 = 24;
pub const SET_CONFIG: u32 = 25;
pub const GET_INFLIGHT_FD: u32 = 31;
pub const SET_INFLIGHT_FD: u32 = 32;
pub const RESET_DEVICE: u32 = 34;
pub const GET_MAX_MEM_SLOTS: u32 = 36;
pub const ADD_MEM_REG: u32 = 37;
pub const REM_MEM_REG: u32 = 38;
pub const SET_STATUS: u32 = 39;
pub const GET_STATUS: u32 = 40;

/// Header flags: the version, and that a reply is wanted.
pub const VERSION: u32 = 1;
pub const NEED_REPLY: u32 = 8;

pub const PROTOCOL_FEATURES: u64 = 1 << 30;
pub const VERSION_1: u64 = 1 << 32;
pub const INDIRECT: u64 = 1 << 28;
pub const PACKED: u64 = 1 << 34;
pub const NET_MQ: u64 = 1 << 22;

pub const P_MQ: u64 = 1 << 0;
pub const P_REPLY_ACK: u64 = 1 << 3;
pub const P_BACKEND_REQ: u64 = 1 << 5;
pub const P_CONFIG: u64 = 1 << 9;
pub const P_INFLIGHT: u64 = 1 << 12;
pub const P_STATUS: u64 = 1 << 16;

/// Where the memory is for the device, and for the front end.
pub const GUEST: u64 = 0x1_0000_0000;
pub const USER: u64 = 0x7f00_0000_0000;
pub const MEMORY: u64 = 4 << 20;

/// A message: request, flags, and a payload of the length that it says.
pub fn message(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes: Vec<u8> = [request, flags, payload.len() as u32].into_iter().flat_map(u32::to_ne_bytes).collect();
    bytes.extend_from_slice(payload);
    bytes
}

/// Sends bytes with descriptors; says whether there was anybody, and room.
pub fn send(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(32))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds)));
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(stream, &[IoSlice::new(bytes)], &mut control, flags).is_ok_and(|n| n == bytes.len())
}

/// A message that came: request, flags, payload.
pub fn receive(stream: &UnixStream) -> Option<(u32, u32, Vec<u8>)> {
    let mut header = [0; 12];
    let (got, _) = recv(stream, &mut header, RecvFlags::DONTWAIT).ok()?;
    assert!(got == 12 || got == 0, "a header in one piece");
    let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
    let mut payload = vec![0; word(8) as usize];
    if got == 0 || !payload.is_empty() && recv(stream, &mut payload[..], RecvFlags::DONTWAIT).ok()?.0 != payload.len() {
        return None;
    }
    Some((word(0), word(4), payload))
}

pub fn u64_of(payload: &[u8]) -> u64 {
    u64::from_ne_bytes(payload.try_into().unwrap())
}

/// The payload of `u32`s, and of `u64`s.
pub fn words<T: Into<u64> + Copy>(values: &[T], width: usize) -> Vec<u8> {
    values.iter().flat_map(|v| (*v).into().to_ne_bytes()[..width].to_vec()).collect()
}

pub fn state(index: u32, num: u32) -> Vec<u8> {
    words(&[index, num], 4)
}

/// A region: guest address, size, user address, offset in its file.
pub fn region(at: u64, size: u64, offset: u64) -> Vec<u8> {
    words(&[GUEST + at, size, USER + at, offset], 8)
}

/// A memory table of such regions.
pub fn table(regions: &[Vec<u8>]) -> Vec<u8> {
    [words(&[regions.len() as u32, 0], 4), regions.concat()].concat()
}

pub fn file(len: u64) -> OwnedFd {
    let file = memfd_create("front", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&file, len).unwrap();
    file
}

pub fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

/// How often an eventfd was signalled.
pub fn count(fd: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    rustix::io::read(fd, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
}

/// A front end, and the back end that it speaks to, where that is stepped here: else it has a thread of its own.
pub struct Front {
    pub stream: UnixStream,
    pub server: Option<Server<Virtio>>,
    pub memory: OwnedFd,
    pub features: u64,
    pub handle: Option<Arc<NetHandle>>,
}

impl Front {
    pub fn net(params: &str) -> Self {
        let (model, port) = net::model(NetParams::parse(params).unwrap()).unwrap();
        Self { handle: Some(port.handle), ..Self::of(model) }
    }

    pub fn blk(params: &str) -> Self {
        Self::of(blk::model(BlkParams::parse(params).unwrap()).unwrap())
    }

    pub fn of(model: Virtio) -> Self {
        let (stream, theirs) = UnixStream::pair().unwrap();
        let server = Server::from_stream(theirs, model).unwrap();
        Self { server: Some(server), ..Self::over(stream) }
    }

    /// One that speaks to whoever is at the other end.
    pub fn over(stream: UnixStream) -> Self {
        Self { stream, server: None, memory: file(MEMORY), features: 0, handle: None }
    }

    /// A poll of the back end.
    pub fn step(&mut self) {
        match &mut self.server {
            Some(server) => _ = server.poll(),
            None => std::thread::yield_now(),
        }
    }

    pub fn is_connected(&self) -> bool {
        match &self.server {
            Some(server) => server.is_connected(),
            None => {
                recv(&self.stream, &mut [0u8; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT).map_or(true, |(n, _)| n > 0)
            }
        }
    }

    /// Polls of the back end until `done`; whether that came about before the connection ended.
    pub fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        let start = Instant::now();
        loop {
            if done(self) {
                return true;
            }
            if !self.is_connected() {
                return false;
            }
            self.step();
            assert!(start.elapsed() < Duration::from_secs(120), "nothing comes of it");
        }
    }

    /// Sends a request that has no reply.
    pub fn tell(&mut self, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) {
        assert!(send(&self.stream, &message(request, VERSION, payload), fds));
    }

    /// Sends a request, and returns its reply; `None` where the connection ends.
    pub fn ask_with(&mut self, flags: u32, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Option<Vec<u8>> {
        assert!(send(&self.stream, &message(request, VERSION | flags, payload), fds));
        let mut reply = None;
        self.until(|front| {
            reply = receive(&front.stream);
            reply.is_some()
        });
        let (replied, flags, payload) = reply?;
        assert_eq!((replied, flags), (request, 5), "a reply of version 1 to what was asked");
        Some(payload)
    }

    pub fn ask(&mut self, request: u32, payload: &[u8]) -> Vec<u8> {
        self.ask_with(0, request, payload, &[]).expect("the connection ended")
    }

    /// Sends a request that has an acknowledgement, which says whether it was accepted.
    pub fn acknowledged(&mut self, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        u64_of(&self.ask_with(NEED_REPLY, request, payload, fds).expect("the connection ended")) == 0
    }

    /// Agrees on features, of the protocol and of the device, and shares the memory.
    pub fn begin(&mut self, features: u64, protocol: u64) {
        self.tell(SET_OWNER, &[], &[]);
        let offered = u64_of(&self.ask(GET_FEATURES, &[]));
        assert_eq!(features & !offered, 0, "not offered");
        let offered = u64_of(&self.ask(GET_PROTOCOL_FEATURES, &[]));
        assert_eq!(protocol & !offered, 0, "not offered");
        self.tell(SET_PROTOCOL_FEATURES, &(protocol | P_REPLY_ACK).to_ne_bytes(), &[]);
        self.agree(features);
        self.share();
    }

    /// Agrees on features of the device.
    pub fn agree(&mut self, features: u64) {
        let features = features | VERSION_1 | PROTOCOL_FEATURES;
        assert!(self.acknowledged(SET_FEATURES, &features.to_ne_bytes(), &[]));
        self.features = features;
    }

    pub fn share(&mut self) {
        let memory = self.memory.try_clone().unwrap();
        assert!(self.acknowledged(SET_MEM_TABLE, &table(&[region(0, MEMORY, 0)]), &[memory.as_fd()]));
    }

    /// Says of a ring all that there is, but that it is enabled.
    pub fn describe(&mut self, index: u32, ring: &Ring, base: u32) {
        assert!(self.acknowledged(SET_VRING_NUM, &state(index, ring.size.into()), &[]));
        assert!(self.acknowledged(SET_VRING_BASE, &state(index, base), &[]));
        assert!(self.acknowledged(SET_VRING_ADDR, &ring.addresses(index, 0), &[]));
        let call = ring.call.try_clone().unwrap();
        assert!(self.acknowledged(SET_VRING_CALL, &u64::from(index).to_ne_bytes(), &[call.as_fd()]));
        let kick = ring.kick.try_clone().unwrap();
        assert!(self.acknowledged(SET_VRING_KICK, &u64::from(index).to_ne_bytes(), &[kick.as_fd()]));
    }

    pub fn enable(&mut self, index: u32, on: bool) -> bool {
        self.acknowledged(SET_VRING_ENABLE, &state(index, on.into()), &[])
    }

    /// A ring that runs from its beginning.
    pub fn ring(&mut self, index: u32, at: u64, size: u16) -> Ring {
        let ring = Ring::new(self, at, size);
        let base = if ring.packed { 0x8000_8000 } else { 0 };
        self.describe(index, &ring, base);
        assert!(self.enable(index, true));
        assert!(count(&ring.call) > 0, "what was used before may have gone to nobody");
        ring
    }

    /// Stops a ring; says where it is.
    pub fn stop(&mut self, index: u32) -> u32 {
        let state = self.ask(GET_VRING_BASE, &state(index, 0));
        assert_eq!(state[..4], index.to_ne_bytes());
        u32::from_ne_bytes(state[4..].try_into().unwrap())
    }

    pub fn write(&self, at: u64, bytes: &[u8]) {
        assert_eq!(rustix::io::pwrite(&self.memory, bytes, at), Ok(bytes.len()));
    }

    pub fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        assert_eq!(rustix::io::pread(&self.memory, &mut bytes, at), Ok(N));
        bytes
    }
}

/// A ring of single descriptors in the front end's memory, of either layout.
pub struct Ring {
    pub size: u16,
    pub packed: bool,
    at: u64,
    /// Split: free-running indexes. Packed: places, with the lap in bit 15.
    pub avail: u16,
    pub used: u16,
    pub kick: OwnedFd,
    pub call: OwnedFd,
}

/// Where the driver and the device area of a ring are, from its start.
const DRIVER: u64 = 0x4000;
const DEVICE: u64 = 0x8000;

impl Ring {
    /// At `at` of the memory, of which it takes 64 KiB.
    pub fn new(front: &Front, at: u64, size: u16) -> Self {
        let packed = front.features & PACKED != 0;
        front.write(at, &[0; 1 << 16]);
        let start = if packed { 1 << 15 } else { 0 };
        Self { size, packed, at, avail: start, used: start, kick: event(), call: event() }
    }

    /// The payload of SET_VRING_ADDR.
    pub fn addresses(&self, index: u32, flags: u32) -> Vec<u8> {
        let at = USER + self.at;
        [words(&[index, flags], 4), words(&[at, at + DEVICE, at + DRIVER, 0], 8)].concat()
    }

    fn forward(&self, place: u16, n: u16) -> u16 {
        let (at, lap) = ((place & 0x7fff) + n, place & 1 << 15);
        if at >= self.size { (at - self.size) | (lap ^ 1 << 15) } else { at | lap }
    }

    /// Makes a chain available: a buffer each, at an offset of the memory, with its length and whether it is to be written.
    pub fn add(&mut self, front: &Front, buffers: &[(u64, u32, bool)]) {
        let first = self.avail;
        for (i, (at, len, writable)) in buffers.iter().enumerate() {
            let more = u16::from(i + 1 < buffers.len());
            let flags = more | u16::from(*writable) << 1;
            let slot = if self.packed { self.avail & 0x7fff } else { (first.wrapping_mul(4) + i as u16) % self.size };
            let (flags, last) = match self.packed {
                true => {
                    let lap = if self.avail >> 15 != 0 { 1 << 7 } else { 1 << 15 };
                    self.avail = self.forward(self.avail, 1);
                    (first & 0x7fff, flags | lap)
                }
                false => (flags, (slot + 1) % self.size),
            };
            let mut desc = words(&[GUEST + at], 8);
            desc.extend(len.to_le_bytes());
            desc.extend(flags.to_le_bytes());
            desc.extend(last.to_le_bytes());
            front.write(self.at + 16 * u64::from(slot), &desc);
        }
        if !self.packed {
            let head = first.wrapping_mul(4) % self.size;
            front.write(self.at + DRIVER + 4 + 2 * u64::from(first % self.size), &head.to_le_bytes());
            self.avail = first.wrapping_add(1);
            front.write(self.at + DRIVER + 2, &self.avail.to_le_bytes());
        }
        let _ = rustix::io::write(&self.kick, &1u64.to_ne_bytes());
    }

    /// Makes a chain available that is in an indirect table, which is `len` bytes at `at` of the memory.
    pub fn add_table(&mut self, front: &Front, at: u64, len: u32) {
        let first = self.avail;
        self.add(front, &[(at, len, false)]);
        let (slot, flags) = if self.packed { (first & 0x7fff, 14) } else { (first.wrapping_mul(4) % self.size, 12) };
        let at = self.at + 16 * u64::from(slot) + flags;
        front.write(at, &(u16::from_le_bytes(front.read(at)) | 4).to_le_bytes());
    }

    /// Takes what was used next, a chain of so many descriptors: its length.
    pub fn take(&mut self, front: &Front, entries: u16) -> Option<u32> {
        if self.packed {
            let (at, lap) = (self.at + 16 * u64::from(self.used & 0x7fff), self.used >> 15 != 0);
            let flags = u16::from_le_bytes(front.read(at + 14));
            if (flags >> 7 & 1 != 0) != lap || (flags >> 15 != 0) != lap {
                return None;
            }
            self.used = self.forward(self.used, entries);
            return Some(u32::from_le_bytes(front.read(at + 8)));
        }
        if u16::from_le_bytes(front.read(self.at + DEVICE + 2)) == self.used {
            return None;
        }
        let at = self.at + DEVICE + 4 + 8 * u64::from(self.used % self.size);
        self.used = self.used.wrapping_add(1);
        Some(u32::from_le_bytes(front.read(at + 4)))
    }
}

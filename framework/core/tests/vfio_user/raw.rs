//! The protocol by hand, from its specification and not from the framework's code: for peers that lie.

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

pub const VERSION: u16 = 1;
pub const DMA_MAP: u16 = 2;
pub const DMA_UNMAP: u16 = 3;
pub const GET_INFO: u16 = 4;
pub const GET_REGION_INFO: u16 = 5;
pub const GET_IRQ_INFO: u16 = 7;
pub const SET_IRQS: u16 = 8;
pub const REGION_READ: u16 = 9;
pub const REGION_WRITE: u16 = 10;
pub const DMA_READ: u16 = 11;
pub const RESET: u16 = 13;

pub const REPLY: u32 = 1;
pub const NO_REPLY: u32 = 1 << 4;
pub const ERROR: u32 = 1 << 5;

/// A message as it travels.
#[derive(Debug, Default)]
pub struct Message {
    pub id: u16,
    pub command: u16,
    pub flags: u32,
    pub error: u32,
    pub payload: Vec<u8>,
    pub fds: Vec<OwnedFd>,
    /// The size field, where it is a lie.
    pub size: Option<u32>,
}

impl Message {
    pub fn command(command: u16, payload: Vec<u8>) -> Self {
        Self { id: 7, command, payload, ..Self::default() }
    }

    pub fn with(mut self, fd: impl AsFd) -> Self {
        self.fds.push(fd.as_fd().try_clone_to_owned().unwrap());
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let size = self.size.unwrap_or(16 + self.payload.len() as u32);
        let mut bytes = [self.id.to_ne_bytes(), self.command.to_ne_bytes()].concat();
        [size, self.flags, self.error].iter().for_each(|word| bytes.extend(word.to_ne_bytes()));
        bytes.extend(&self.payload);
        bytes
    }
}

/// Integers one after the other.
pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_ne_bytes()).collect()
}

/// The same for longer ones.
pub fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|w| w.to_ne_bytes()).collect()
}

pub fn word(payload: &[u8], index: usize) -> u32 {
    u32::from_ne_bytes(payload[4 * index..][..4].try_into().unwrap())
}

/// Sends bytes with descriptors; false where nobody takes them.
pub fn send(stream: &UnixStream, bytes: &[u8], fds: &[OwnedFd]) -> bool {
    let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(&fds)));
    let sent =
        retry_on_intr(|| rustix::net::sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL));
    sent == Ok(bytes.len())
}

/// The next message; `None` where the peer is gone.
pub fn receive(stream: &UnixStream) -> Option<Message> {
    let mut header = [0; 16];
    let mut fds = Vec::new();
    fill(stream, &mut header, &mut fds)?;
    let half = |at: usize| u16::from_ne_bytes(header[at..at + 2].try_into().unwrap());
    let mut payload = vec![0; word(&header, 1) as usize - 16];
    fill(stream, &mut payload, &mut fds)?;
    let (flags, error) = (word(&header, 2), word(&header, 3));
    Some(Message { id: half(0), command: half(2), flags, error, payload, fds, size: None })
}

fn fill(stream: &UnixStream, mut to: &mut [u8], fds: &mut Vec<OwnedFd>) -> Option<()> {
    while !to.is_empty() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let got =
            retry_on_intr(|| rustix::net::recvmsg(stream, &mut [IoSliceMut::new(to)], &mut control, flags)).ok()?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        to = to.split_at_mut_checked(got.bytes).filter(|_| got.bytes > 0)?.1;
    }
    Some(())
}

/// A memory file of `len` bytes.
pub fn file(len: u64) -> OwnedFd {
    let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, len).unwrap();
    fd
}

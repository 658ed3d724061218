//! The protocol by hand, from its specification and not from the framework's code: a back end of a script.

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

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
pub const GET_INFLIGHT_FD: u32 = 31;
pub const SET_INFLIGHT_FD: u32 = 32;
pub const RESET_DEVICE: u32 = 34;
pub const GET_MAX_MEM_SLOTS: u32 = 36;
pub const ADD_MEM_REG: u32 = 37;
pub const REM_MEM_REG: u32 = 38;

pub const REPLY: u32 = 1 | 1 << 2;
pub const NEED_REPLY: u32 = 1 << 3;

/// A message as it travels.
#[derive(Debug, Default)]
pub struct Message {
    pub request: u32,
    pub flags: u32,
    pub payload: Vec<u8>,
    pub fds: Vec<OwnedFd>,
    /// The size field, where it is a lie.
    pub size: Option<u32>,
}

impl Message {
    pub fn reply(request: u32, payload: Vec<u8>) -> Self {
        Self { request, flags: REPLY, payload, ..Self::default() }
    }

    pub fn long(&self, index: usize) -> u64 {
        u64::from_ne_bytes(self.payload[8 * index..][..8].try_into().unwrap())
    }

    pub fn word(&self, index: usize) -> u32 {
        u32::from_ne_bytes(self.payload[4 * index..][..4].try_into().unwrap())
    }
}

/// Integers one after the other.
pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// The same for longer ones.
pub fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_ne_bytes()).collect()
}

/// Sends a message; false where nobody takes it.
pub fn send(stream: &UnixStream, message: &Message) -> bool {
    let size = message.size.unwrap_or(message.payload.len() as u32);
    let bytes = [words(&[message.request, message.flags, size]), message.payload.clone()].concat();
    let fds: Vec<_> = message.fds.iter().map(|fd| fd.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(&fds)));
    let sent =
        retry_on_intr(|| rustix::net::sendmsg(stream, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL));
    sent == Ok(bytes.len())
}

/// The next message; `None` where the peer is gone.
pub fn receive(stream: &UnixStream) -> Option<Message> {
    let mut header = [0; 12];
    let mut fds = Vec::new();
    fill(stream, &mut header, &mut fds)?;
    let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
    let mut payload = vec![0; word(8) as usize];
    fill(stream, &mut payload, &mut fds)?;
    Some(Message { request: word(0), flags: word(4), payload, fds, size: None })
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

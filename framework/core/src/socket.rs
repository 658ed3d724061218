//! Messages on a Unix stream socket: framing, file descriptors, partial reads and writes. It never blocks but in [`Socket::wait`].
//!
//! A read never goes beyond the message it began, so the descriptors that come with it are that message's. It does *not* know what
//! messages mean: vfio-user and vhost-user each have a [`Header`] of their own.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use crate::listener::A_YEAR;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// What every message of a protocol begins with.
pub trait Header: Copy + FromBytes + IntoBytes + Immutable {
    /// The longest payload of a message to us, in bytes.
    const MAX_PAYLOAD: usize;

    /// How many bytes the whole message is said to have, header included.
    fn size(&self) -> u64;

    /// Says how many bytes follow the header.
    fn set_payload(&mut self, bytes: usize);
}

/// How many file descriptors a message may carry, to us and from us. QEMU refuses a vfio-user peer that allows more; vhost-user needs 8.
pub const MAX_FDS: usize = 16;
/// The most bytes that a header has.
const MAX_HEADER: usize = 16;

/// One message.
pub struct Frame<H> {
    pub header: H,
    pub payload: Vec<u8>,
    /// What came with it, up to [`MAX_FDS`].
    pub fds: Vec<OwnedFd>,
    /// How many came beyond that; they are closed.
    pub excess_fds: usize,
}

/// Why no further message can come.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    #[error("the connection was closed")]
    Closed,
    #[error("the connection was closed after {got} of {of} bytes of a message")]
    HalfWay { got: usize, of: usize },
    #[error("a message of {size} bytes was announced: it must be {least} to {most} bytes")]
    Size { size: u64, least: usize, most: usize },
    #[error("the system has no room for the file descriptors that were sent")]
    NoFds,
    #[error("the socket failed: {0}")]
    Io(io::Error),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Errno> for Broken {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::CONNRESET | Errno::PIPE => Self::Closed,
            other => Self::Io(other.into()),
        }
    }
}

/// One end of a connection.
pub struct Socket<H> {
    stream: UnixStream,
    /// What is received of the message that is under way.
    have: usize,
    header: [u8; MAX_HEADER],
    payload: Vec<u8>,
    fds: Vec<OwnedFd>,
    excess_fds: usize,
    /// What is still to be sent, from `sent` on, and the descriptors that go with its first byte.
    unsent: Vec<u8>,
    sent: usize,
    unsent_fds: Vec<OwnedFd>,
    kind: PhantomData<H>,
}

/// The most descriptors the kernel lets one message carry (`SCM_MAX_FD`): with room for these, none are lost uncounted.
const SCM_MAX_FD: usize = 253;

impl<H: Header> Socket<H> {
    /// Bytes of a header.
    const HEADER: usize = {
        assert!(size_of::<H>() <= MAX_HEADER);
        size_of::<H>()
    };

    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            have: 0,
            header: [0; MAX_HEADER],
            payload: Vec::new(),
            fds: Vec::new(),
            excess_fds: 0,
            unsent: Vec::new(),
            sent: 0,
            unsent_fds: Vec::new(),
            kind: PhantomData,
        }
    }

    /// The next message, if all of it is there.
    pub fn receive(&mut self) -> Result<Option<Frame<H>>, Broken> {
        loop {
            let size = match self.have < Self::HEADER {
                true => Self::HEADER,
                false => Self::HEADER.saturating_add(self.payload.len()),
            };
            if self.have >= Self::HEADER && self.have == size {
                break;
            }
            match self.receive_some(size)? {
                0 => return Ok(None),
                n => self.have = self.have.saturating_add(n),
            }
            if self.have == Self::HEADER {
                let size = self.header().size();
                let payload = size.checked_sub(Self::HEADER as u64).filter(|n| *n <= H::MAX_PAYLOAD as u64);
                let (least, most) = (Self::HEADER, Self::HEADER.saturating_add(H::MAX_PAYLOAD));
                self.payload = vec![0; payload.ok_or(Broken::Size { size, least, most })? as usize];
            }
        }
        self.have = 0;
        Ok(Some(Frame {
            header: self.header(),
            payload: std::mem::take(&mut self.payload),
            fds: std::mem::take(&mut self.fds),
            excess_fds: std::mem::take(&mut self.excess_fds),
        }))
    }

    fn header(&self) -> H {
        let mut header = H::new_zeroed();
        header.as_mut_bytes().copy_from_slice(&self.header[..Self::HEADER]);
        header
    }

    /// Bytes of the message under way, up to `size`; 0 where none are there yet.
    fn receive_some(&mut self, size: usize) -> Result<usize, Broken> {
        let to = match self.have.checked_sub(Self::HEADER) {
            None => &mut self.header[self.have..Self::HEADER],
            Some(at) => &mut self.payload[at..],
        };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SCM_MAX_FD))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let got = match recvmsg(&self.stream, &mut [IoSliceMut::new(to)], &mut control, flags) {
            Ok(got) => got,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(0),
            Err(e) => return Err(e.into()),
        };
        for message in control.drain() {
            let RecvAncillaryMessage::ScmRights(fds) = message else { continue };
            for fd in fds {
                match self.fds.len() {
                    ..MAX_FDS => self.fds.push(fd),
                    _ => self.excess_fds = self.excess_fds.saturating_add(1),
                }
            }
        }
        if got.flags.contains(ReturnFlags::CTRUNC) {
            return Err(Broken::NoFds);
        }
        match got.bytes {
            0 if self.have == 0 => Err(Broken::Closed),
            0 => Err(Broken::HalfWay { got: self.have, of: size }),
            n => Ok(n),
        }
    }

    /// Puts a message in line and sends what can be sent now; [`flush`](Self::flush) sends the rest. Descriptors go with the first
    /// byte of what is in line, so a message that has some must be the first there.
    pub fn send(&mut self, mut header: H, payload: &[&[u8]], fds: Vec<OwnedFd>) -> Result<(), Broken> {
        debug_assert!(fds.is_empty() || !self.is_sending());
        header.set_payload(payload.iter().map(|p| p.len()).fold(0, usize::saturating_add));
        self.unsent.extend_from_slice(header.as_bytes());
        payload.iter().for_each(|p| self.unsent.extend_from_slice(p));
        self.unsent_fds.extend(fds);
        self.flush().map(|_| ())
    }

    /// Sends what is in line, as far as the peer takes it: whether that was all.
    pub fn flush(&mut self) -> Result<bool, Broken> {
        while self.sent < self.unsent.len() {
            let fds: Vec<_> = self.unsent_fds.iter().map(|fd| fd.as_fd()).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
                return Err(Broken::NoFds);
            }
            let bytes = &[IoSlice::new(&self.unsent[self.sent..])];
            match sendmsg(&self.stream, bytes, &mut control, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(n) => {
                    self.sent = self.sent.saturating_add(n);
                    self.unsent_fds.clear();
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(e) => return Err(e.into()),
            }
        }
        self.unsent.clear();
        self.sent = 0;
        Ok(true)
    }

    /// Whether something is in line that the peer has not taken yet.
    pub fn is_sending(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Waits until there is something to receive, or room for what is in line; false where the time is over.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let events = if self.is_sending() { PollFlags::OUT } else { PollFlags::IN };
        wait_for(&self.stream, events, timeout)
    }

    /// Ends the connection, for the peer too.
    pub fn shutdown(&self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

impl<H> AsFd for Socket<H> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Waits for `events` on `fd`; false where the time is over.
pub fn wait_for(fd: impl AsFd, events: PollFlags, timeout: Duration) -> io::Result<bool> {
    let now = Instant::now();
    let deadline = now.checked_add(timeout.min(A_YEAR)).unwrap_or(now);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
        match poll(&mut [PollFd::new(&fd, events)], Some(&left)) {
            Ok(n) => return Ok(n > 0),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

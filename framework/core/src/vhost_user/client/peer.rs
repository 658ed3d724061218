//! The back end at the other end of the connection: a message goes out, its reply comes back, and is judged.
//!
//! Strict: a reply's request, flags, size and descriptors are checked, and every message has a deadline. What breaks the protocol ends the connection.
//! What messages mean is `session.rs`'s.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use crate::model::Signaller;
use crate::patience::{Limit, Patience};
use crate::socket::{Broken, wait_for};
use crate::vhost_user::wire::{self, BackendRequest, Header, Request, protocol};
use crate::vhost_user::{Frame, Socket};
use rustix::event::PollFlags;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};
use zerocopy::{FromBytes, IntoBytes};

/// A connection to a back end.
pub struct Peer {
    socket: Socket,
    /// The connection on which the back end asks for something by itself.
    backend: Option<Socket>,
    patience: Arc<Patience>,
    /// The protocol features that were negotiated.
    pub protocol: u64,
}

/// Why a message came to nothing.
#[derive(Debug)]
pub enum Failed {
    /// The back end said no; it is still there.
    Refused { request: Request, what: String },
    /// The connection is over.
    Lost(Lost),
}

/// How a connection ended.
#[derive(Debug, Clone)]
pub struct Lost {
    pub request: Option<Request>,
    pub what: String,
    /// The back end closed it, rather than breaking the protocol: who connects again may find another.
    pub closed: bool,
}

impl From<Lost> for Failed {
    fn from(lost: Lost) -> Self {
        Self::Lost(lost)
    }
}

/// What a back end says without being asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// Its device's configuration changed.
    ConfigChange,
    /// Something that is not known here.
    Unknown,
}

/// How many messages of the back end's own are handled at one look. It may send more; they wait.
const NOTICES: usize = 16;

impl Peer {
    pub fn new(stream: UnixStream, patience: Arc<Patience>) -> Self {
        Self { socket: Socket::new(stream), backend: None, patience, protocol: 0 }
    }

    /// Whether these protocol features were negotiated.
    pub fn has(&self, feature: u64) -> bool {
        self.protocol & feature == feature
    }

    /// Sends what has no reply of its own. With [`protocol::REPLY_ACK`] it is acknowledged.
    pub fn set(&mut self, request: Request, payload: &[u8], fds: Vec<OwnedFd>) -> Result<(), Failed> {
        let acknowledged = self.has(protocol::REPLY_ACK);
        let flags = if acknowledged { wire::NEED_REPLY } else { 0 };
        let limit = self.patience.limit();
        self.send(Header::new(request, flags), payload, fds, limit)?;
        if !acknowledged {
            return Ok(());
        }
        match self.reply::<u64>(request, limit)? {
            0 => Ok(()),
            code => Err(Failed::Refused { request, what: format!("it answers {code:#x}, and 0 is success") }),
        }
    }

    /// As [`set`](Self::set), and the back end has handled it when this returns.
    pub fn set_now(&mut self, request: Request, payload: &[u8], fds: Vec<OwnedFd>) -> Result<(), Failed> {
        self.set(request, payload, fds)?;
        if !self.has(protocol::REPLY_ACK) {
            // Messages are handled one after another.
            self.get::<u64>(Request::GET_FEATURES, &[])?;
        }
        Ok(())
    }

    /// Asks for something of a fixed size.
    pub fn get<T: FromBytes>(&mut self, request: Request, payload: &[u8]) -> Result<T, Failed> {
        let limit = self.patience.limit();
        self.send(Header::new(request, 0), payload, Vec::new(), limit)?;
        Ok(self.reply(request, limit)?)
    }

    /// Asks for something whose size is the caller's to check, with up to `fds` descriptors.
    pub fn ask(&mut self, request: Request, payload: &[u8], fds: usize) -> Result<Frame, Lost> {
        let limit = self.patience.limit();
        self.send(Header::new(request, 0), payload, Vec::new(), limit)?;
        self.receive(request, fds, limit)
    }

    /// The connection on which the back end speaks by itself.
    pub fn set_backend(&mut self, stream: UnixStream) {
        self.backend = Some(Socket::new(stream));
    }

    /// Has `watch` signal `eventfd` once when there is something for [`poll`](Self::poll) to find.
    pub fn watch(&self, watch: &Signaller, eventfd: BorrowedFd<'_>) {
        watch.watch(self.socket.as_fd(), PollFlags::RDHUP, eventfd);
        if let Some(backend) = &self.backend {
            watch.watch(backend.as_fd(), PollFlags::IN, eventfd);
        }
    }

    /// Takes the back end's own messages without waiting: `ConfigChange` if one came, else `Unknown` if any did; an error where the connection ended or broke
    /// the protocol.
    pub fn poll(&mut self) -> Result<Option<Notice>, Lost> {
        // A message that nobody asked for, or the end.
        match self.socket.receive() {
            Ok(None) => {}
            Ok(Some(frame)) => {
                return Err(self.broke(None, format!("{} came, which nobody asked for", frame.header.request)));
            }
            Err(broken) => return Err(lost(None, broken)),
        }
        let mut notice = None;
        for _ in 0..NOTICES {
            let Some(backend) = &mut self.backend else { break };
            let frame = match backend.receive() {
                Ok(None) => break,
                Ok(Some(frame)) => frame,
                Err(broken) => {
                    self.backend = None;
                    // It can do without.
                    tracing::debug!(%broken, "the back end's own connection is over");
                    break;
                }
            };
            if !frame.header.is_known() || frame.header.has(wire::REPLY) {
                return Err(self.broke(None, format!("its own message has flags {:#x}", frame.header.flags)));
            }
            let known =
                BackendRequest(frame.header.request.0) == BackendRequest::CONFIG_CHANGE_MSG && frame.payload.is_empty();
            notice = if known { Some(Notice::ConfigChange) } else { notice.or(Some(Notice::Unknown)) };
            if frame.header.has(wire::NEED_REPLY) {
                let header = Header::new(frame.header.request, wire::REPLY);
                let answer = u64::from(!known);
                // Who does not take its replies has them wait; the line is as short as what was handled here.
                if backend.is_sending() || backend.send(header, &[answer.as_bytes()], Vec::new()).is_err() {
                    self.backend = None;
                }
            }
        }
        Ok(notice)
    }

    /// The back end broke the protocol: it is not spoken to again.
    pub fn broke(&self, request: Option<Request>, what: String) -> Lost {
        self.socket.shutdown();
        Lost { request, what, closed: false }
    }

    fn reply<T: FromBytes>(&mut self, request: Request, limit: Limit) -> Result<T, Lost> {
        let frame = self.receive(request, 0, limit)?;
        let wrong = || format!("the reply has {} bytes, and {} are expected", frame.payload.len(), size_of::<T>());
        wire::exactly(&frame.payload).ok_or_else(|| self.broke(Some(request), wrong()))
    }

    fn receive(&mut self, request: Request, fds: usize, limit: Limit) -> Result<Frame, Lost> {
        let began = Instant::now();
        let frame = loop {
            match self.socket.receive() {
                Ok(Some(frame)) => break frame,
                Ok(None) if self.wait(request, limit)? => {}
                Ok(None) => return Err(self.broke(Some(request), format!("no reply within {limit}"))),
                Err(broken) => return Err(lost(Some(request), broken)),
            }
        };
        self.patience.spent(began.elapsed());
        let reply = frame.header;
        if reply.request != request {
            return Err(self.broke(Some(request), format!("the reply is to {}", reply.request)));
        }
        if reply.flags != wire::VERSION | wire::REPLY {
            return Err(self.broke(
                Some(request),
                format!("the reply has flags {:#x}, and {:#x} are expected", reply.flags, wire::VERSION | wire::REPLY),
            ));
        }
        let came = frame.fds.len().saturating_add(frame.excess_fds);
        if came > fds {
            return Err(
                self.broke(Some(request), format!("{came} file descriptors came with the reply, and {fds} may"))
            );
        }
        Ok(frame)
    }

    fn send(&mut self, header: Header, payload: &[u8], fds: Vec<OwnedFd>, limit: Limit) -> Result<(), Lost> {
        let request = header.request;
        let began = Instant::now();
        self.socket.send(header, &[payload], fds).map_err(|broken| lost(Some(request), broken))?;
        while !self.socket.flush().map_err(|broken| lost(Some(request), broken))? {
            if !self.wait(request, limit)? {
                return Err(self.broke(Some(request), format!("the back end does not take it within {limit}")));
            }
        }
        self.patience.spent(began.elapsed());
        Ok(())
    }

    fn wait(&self, request: Request, limit: Limit) -> Result<bool, Lost> {
        let left = limit.at.saturating_duration_since(Instant::now());
        self.socket.wait(left).map_err(|e| lost(Some(request), Broken::Io(e)))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.socket.shutdown();
    }
}

fn lost(request: Option<Request>, broken: Broken) -> Lost {
    let closed = matches!(broken, Broken::Closed | Broken::HalfWay { .. });
    let hint = if matches!(broken, Broken::Size { .. }) { "; is it a vhost-user back end?" } else { "" };
    Lost { request, what: format!("{broken}{hint}"), closed }
}

/// Waits for a client of `listener`; false where the time is over.
pub fn wait_for_client(listener: &crate::listener::Listener, timeout: Duration) -> std::io::Result<bool> {
    wait_for(listener, PollFlags::IN, timeout)
}

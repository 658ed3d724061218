//! The other end of a client's connection: a command goes out, its reply comes back, and is judged.
//!
//! Strict: every reply's id, command, type, error and size are checked, every message has a deadline. What breaks the protocol
//! ends the connection, and every later call says that the device is gone, and why.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::options::Options;
use super::wire::{self, Capabilities, Command, Header};
use crate::patience::{Limit, Patience};
use crate::pci::{DeviceInfo, IrqInfo};
use crate::socket::{Broken, MAX_FDS, Socket};
use crate::{Error, Result, socket};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;
use vfio_bindings::bindings::vfio::*;
use zerocopy::IntoBytes;

/// A message of vfio-user.
pub type Frame = socket::Frame<Header>;

/// The server, and what it said of itself.
pub struct Peer {
    pub name: String,
    pub patience: Patience,
    pub server: Capabilities,
    /// Raised when a page of what it shared is taken away.
    pub shrunk: Arc<AtomicBool>,
    link: Mutex<Link>,
}

struct Link {
    socket: Socket<Header>,
    next_id: u16,
    /// Why there is nobody any more.
    gone: Option<String>,
    stray_fds: u64,
}

/// How many regions, and kinds of interrupt, a server may have.
const MOST: u32 = 64;

/// What a good reply has at most.
pub struct Expect {
    /// Bytes.
    pub payload: usize,
    /// File descriptors that are meant to come.
    pub fds: usize,
}

impl Expect {
    pub const NOTHING: Self = Self { payload: 0, fds: 0 };
}

/// Why a command came to nothing.
pub enum Failed {
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
    pub fn negotiate(stream: UnixStream, name: &str, options: Options) -> Result<Self> {
        let link = Link { socket: Socket::new(stream), next_id: 0, gone: None, stray_fds: 0 };
        let server = Capabilities::default();
        let (name, shrunk, link) = (name.to_owned(), Arc::default(), Mutex::new(link));
        let patience = Patience::new(options.timeout, options.open_timeout);
        let mut new = Self { name, patience, server, shrunk, link };
        new.patience.opening(true);
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
        // A page of 1 GiB is the largest there is. None at all is the specification's default.
        if new.server.pgsizes != 0 && new.server.pgsizes.trailing_zeros() > 30 {
            let what = format!(
                "it maps memory only in pages of {:#x} bytes and more",
                1u64 << new.server.pgsizes.trailing_zeros()
            );
            return Err(new.broke(Command::VERSION, &what));
        }
        Ok(new)
    }

    pub fn device_info(&self) -> Result<DeviceInfo> {
        let ask = wire::DeviceInfo { argsz: size_of::<wire::DeviceInfo>() as u32, flags: 0, regions: 0, irqs: 0 };
        let info: wire::DeviceInfo = self.ask(Command::GET_INFO, &ask, "asking what it is")?;
        if info.flags & VFIO_DEVICE_FLAGS_PCI == 0 {
            return Err(self.broke(Command::GET_INFO, "it is no PCI device"));
        }
        // Nine and five for PCI; a server may add some of its own.
        if info.regions > MOST || info.irqs > MOST {
            let what = format!("it says it has {} regions and {} kinds of interrupt", info.regions, info.irqs);
            return Err(self.broke(Command::GET_INFO, &what));
        }
        let resettable = info.flags & VFIO_DEVICE_FLAGS_RESET != 0;
        Ok(DeviceInfo { regions: info.regions, irqs: info.irqs, resettable })
    }

    pub fn irq_info(&self, index: u32) -> Result<IrqInfo> {
        let ask = wire::IrqInfo { argsz: size_of::<wire::IrqInfo>() as u32, flags: 0, index, count: 0 };
        let expect = Expect { payload: size_of::<wire::IrqInfo>(), fds: 0 };
        let reply = match self.call(Command::GET_IRQ_INFO, &[ask.as_bytes()], Vec::new(), expect) {
            Ok(reply) => reply,
            // A kind that it doesn't implement.
            Err(Failed::Refused(_)) => return Ok(IrqInfo::default()),
            Err(Failed::Lost(error)) => return Err(error),
        };
        let (info, _) =
            wire::split::<wire::IrqInfo>(&reply.payload).ok_or_else(|| self.short(Command::GET_IRQ_INFO))?;
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

    pub fn set_irqs(&self, set: wire::IrqSet, fds: Vec<OwnedFd>) -> Result<()> {
        let set = wire::IrqSet { argsz: size_of::<wire::IrqSet>() as u32, ..set };
        let reply = self.call(Command::SET_IRQS, &[set.as_bytes()], fds, Expect::NOTHING);
        reply.map(|_| ()).map_err(|e| e.or(|source| self.refused("configuring interrupts", source)))
    }

    /// A command whose reply is one message of the same layout.
    pub fn ask<T: zerocopy::FromBytes + IntoBytes + zerocopy::Immutable>(
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
        if link.gone.is_none() && self.shrunk.load(Ordering::Relaxed) {
            let what = "the server took memory away that it had shared";
            return Err(self.lose(link, command, what.to_owned()).into());
        }
        if let Some(why) = &link.gone {
            return Err(Error::Gone { device: self.name.clone(), why: why.clone() }.into());
        }
        let began = Instant::now();
        let done = link.exchange(command, payload, fds, expect, self.patience.limit());
        self.patience.spent(began.elapsed());
        match done {
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
        Error::Io { what: format!("{}: {what}", self.name), cause: source }
    }

    /// How many file descriptors came that nobody asked for.
    pub fn stray_fds(&self) -> u64 {
        self.link().stray_fds
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
        limit: Limit,
    ) -> Result<Frame, Wrong> {
        self.next_id = self.next_id.wrapping_add(1);
        let id = self.next_id;
        let header = Header { id, command, size: 0, flags: wire::COMMAND, error: 0 };
        self.send(header, payload, fds, limit)?;
        loop {
            let frame = self.receive(command, limit)?;
            let reply = frame.header;
            if reply.kind() == wire::COMMAND {
                self.decline(&frame, limit)?;
                // Commands may come without end.
                if Instant::now() >= limit.at {
                    return Err(format!("no reply within {limit}, but commands").into());
                }
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
        let count = reply.fds.len().saturating_add(reply.excess_fds);
        if reply.excess_fds > 0 || (expect.fds > 0 && count > expect.fds) {
            let most = if expect.fds > 0 { expect.fds } else { MAX_FDS };
            return Err(format!("{count} file descriptors came with the reply, where at most {most} may").into());
        }
        if count > expect.fds {
            self.stray_fds = self.stray_fds.saturating_add(count as u64);
            tracing::warn!(count, command = %reply.header.command, "file descriptors came that nobody asked for");
        }
        if reply.header.has(wire::ERROR) {
            // libvfio-user's has a payload, as long as that of a good one or not. It says nothing.
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
    fn decline(&mut self, frame: &Frame, limit: Limit) -> Result<(), String> {
        if frame.header.has(wire::NO_REPLY) {
            return Ok(());
        }
        let error = libc::EOPNOTSUPP as u32;
        let header = Header { flags: wire::REPLY | wire::ERROR, error, ..frame.header };
        self.send(header, &[], Vec::new(), limit)
    }

    fn send(&mut self, header: Header, payload: &[&[u8]], fds: Vec<OwnedFd>, limit: Limit) -> Result<(), String> {
        self.socket.send(header, payload, fds).map_err(|e| e.to_string())?;
        while !self.socket.flush().map_err(|e| e.to_string())? {
            if !self.wait(limit)? {
                return Err(format!("the server does not take it within {limit}"));
            }
        }
        Ok(())
    }

    fn receive(&mut self, command: Command, limit: Limit) -> Result<Frame, String> {
        loop {
            match self.socket.receive() {
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) if self.wait(limit)? => {}
                Ok(None) => {
                    let hint = if command == Command::VERSION { "; does it serve someone else?" } else { "" };
                    return Err(format!("no reply within {limit}{hint}"));
                }
                Err(e @ Broken::Size { .. }) => return Err(format!("{e}; is it a vfio-user server?")),
                Err(e) => return Err(e.to_string()),
            }
        }
    }

    fn wait(&self, limit: Limit) -> Result<bool, String> {
        self.socket.wait(limit.at.saturating_duration_since(Instant::now())).map_err(|e| Broken::Io(e).to_string())
    }
}

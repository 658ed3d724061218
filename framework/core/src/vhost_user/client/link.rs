//! How a connection to a back end begins: who connects to whom, and what is agreed on before any driver asks for something.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::kind::{Said, ring};
use super::options::{DeviceType, Options};
use super::peer::{Failed, Lost, Peer, wait_for_client};
use crate::listener::{Listener, connect};
use crate::patience::{Patience, later};
use crate::vhost_user::wire::{self, Request, feature, protocol};
use crate::{Error, Result};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

/// Where the back end is.
pub enum Link {
    /// It listens there.
    Connect(PathBuf),
    /// It connects.
    Listen(Listener),
    /// It was there once.
    Once,
}

/// What is negotiated where it is offered.
const PROTOCOL: u64 = protocol::MQ
    | protocol::REPLY_ACK
    | protocol::MTU
    | protocol::BACKEND_REQ
    | protocol::CONFIG
    | protocol::INFLIGHT_SHMFD
    | protocol::RESET_DEVICE
    | protocol::CONFIGURE_MEM_SLOTS
    | protocol::STATUS;
/// How often it is tried to connect to a back end that is not there.
const AGAIN: Duration = Duration::from_millis(20);

/// A back end that can be spoken to.
pub struct Met {
    pub peer: Peer,
    pub said: Said,
    pub device_type: DeviceType,
    /// How many regions of memory it has room for, where regions come one at a time.
    pub slots: Option<u64>,
}

impl Link {
    pub fn new(path: &Path, name: &str, options: &Options) -> Result<Self> {
        if !options.server {
            return Ok(Self::Connect(path.to_owned()));
        }
        let failed = |cause| Error::Connect { device: name.to_owned(), hint: "it cannot be listened there", cause };
        Listener::bind(path).map(Self::Listen).map_err(failed)
    }

    /// The first connection.
    pub fn first(&self, name: &str, options: &Options) -> Result<UnixStream> {
        let within = options.timeout.min(options.open_timeout);
        let failed = |cause: io::Error| {
            let hint = match cause.kind() {
                io::ErrorKind::NotFound => "there is no such socket; is the back end running?",
                io::ErrorKind::ConnectionRefused => "nobody listens there; did the back end end?",
                io::ErrorKind::PermissionDenied => "the socket may not be used by this user",
                io::ErrorKind::WouldBlock => "too many others are waiting for the back end",
                io::ErrorKind::TimedOut => "no back end connected to it in time; does one have this path, as a client?",
                _ => "is it a socket?",
            };
            Error::Connect { device: name.to_owned(), hint, cause }
        };
        match self {
            Self::Connect(path) => connect(path, within).map_err(failed),
            Self::Listen(listener) => {
                tracing::warn!(device = name, within = ?options.open_timeout, "waiting for a back end to connect");
                accept(listener, later(options.open_timeout)).map_err(failed)
            }
            Self::Once => Err(failed(io::ErrorKind::NotFound.into())),
        }
    }

    /// The connection to a back end that is back: `None` where the time is over first.
    pub fn again(&self, deadline: Instant) -> Option<UnixStream> {
        match self {
            Self::Listen(listener) => accept(listener, deadline).ok(),
            Self::Once => None,
            Self::Connect(path) => loop {
                let left = deadline.saturating_duration_since(Instant::now());
                match connect(path, left) {
                    Ok(stream) => return Some(stream),
                    Err(_) if left.is_zero() => return None,
                    // Nothing says when a socket appears.
                    Err(_) => std::thread::sleep(AGAIN.min(left)),
                }
            },
        }
    }
}

fn accept(listener: &Listener, deadline: Instant) -> io::Result<UnixStream> {
    loop {
        if let Some(stream) = listener.accept() {
            return Ok(stream);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // Where there are no descriptors left, the socket is readable all the time.
        if listener.is_stuck() {
            std::thread::sleep(AGAIN.min(left));
        }
        wait_for_client(listener, left)?;
    }
}

/// Agrees on the protocol, and asks what the back end is.
///
/// # Errors
/// [`Failed::Lost`] where it is no back end that can be used.
pub fn meet(stream: UnixStream, patience: &Arc<Patience>, options: &Options) -> Result<Met, Failed> {
    let mut peer = Peer::new(stream, patience.clone());
    peer.set(Request::SET_OWNER, &[], Vec::new())?;
    let features: u64 = peer.get(Request::GET_FEATURES, &[])?;
    let mut said = Said { features: features & !feature::PROTOCOL_FEATURES, queues: 1, ..Said::default() };
    if features & feature::PROTOCOL_FEATURES != 0 {
        let offered: u64 = peer.get(Request::GET_PROTOCOL_FEATURES, &[])?;
        (said.extended, said.protocol) = (true, offered & PROTOCOL);
        // A connection of its own serves configuration changes alone.
        if said.protocol & protocol::CONFIG == 0 {
            said.protocol &= !protocol::BACKEND_REQ;
        }
        // What is in flight of a network device is lost, as on any wire.
        if options.device_type.or(DeviceType::of(features, offered)) != Some(DeviceType::Blk) {
            said.protocol &= !protocol::INFLIGHT_SHMFD;
        }
        peer.set(Request::SET_PROTOCOL_FEATURES, said.protocol.as_bytes(), Vec::new())?;
        peer.protocol = said.protocol;
    }
    if features & ring::VERSION_1 == 0 {
        let what = format!(
            "it offers {features:#x}, and VIRTIO_F_VERSION_1 is not among them: there is no driver for legacy devices"
        );
        return Err(peer.broke(Some(Request::GET_FEATURES), what).into());
    }
    let device_type = device_type(&peer, &said, options)?;
    if peer.has(protocol::MQ) {
        said.queues = peer.get(Request::GET_QUEUE_NUM, &[])?;
    }
    let slots = match peer.has(protocol::CONFIGURE_MEM_SLOTS) {
        true => Some(peer.get(Request::GET_MAX_MEM_SLOTS, &[])?),
        false => None,
    };
    if peer.has(protocol::BACKEND_REQ) {
        let failed =
            |e: rustix::io::Errno| peer.broke(None, format!("no connection for its own messages can be made: {e}"));
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(failed)?;
        peer.set(Request::SET_BACKEND_REQ_FD, &[], vec![theirs])?;
        peer.set_backend(ours.into());
    }
    if peer.has(protocol::CONFIG) {
        said.config = match get_config(&mut peer, device_type) {
            Ok(config) => Some(config),
            // The front end makes one up.
            Err(Failed::Refused { .. }) if device_type == DeviceType::Net => None,
            Err(failed) => return Err(failed),
        };
    }
    Ok(Met { peer, said, device_type, slots })
}

fn device_type(peer: &Peer, said: &Said, options: &Options) -> Result<DeviceType, Lost> {
    let guessed = DeviceType::of(said.features, said.protocol);
    let (wrong, features) = (|what: String| peer.broke(Some(Request::GET_FEATURES), what), said.features);
    match (options.device_type, guessed) {
        (Some(DeviceType::Net), Some(DeviceType::Blk)) => {
            Err(wrong(format!("it offers {features:#x}: that is a disk, and a network device is wanted")))
        }
        (Some(DeviceType::Blk), Some(DeviceType::Net)) => {
            Err(wrong(format!("it offers {features:#x}: that is a network device, and a disk is wanted")))
        }
        (Some(wanted), _) => Ok(wanted),
        (None, Some(guessed)) => Ok(guessed),
        (None, None) => {
            let what = format!(
                "it offers {features:#x}, which does not tell what it is: say it by `,net` or `,blk` behind the socket's path"
            );
            Err(wrong(what))
        }
    }
}

/// Reads the device configuration. A network device's is nothing that it could not do without.
pub fn get_config(peer: &mut Peer, device_type: DeviceType) -> Result<Vec<u8>, Failed> {
    let request = Request::GET_CONFIG;
    let len = device_type.config_len();
    let frame = peer.ask(request, &wire::config(0, 0, &vec![0; len]), 0)?;
    if frame.payload.is_empty() {
        let what = format!("it does not give {len} bytes of its configuration");
        return Err(Failed::Refused { request, what });
    }
    let (header, bytes) = wire::config_of(&frame.payload).map_err(|what| peer.broke(Some(request), what))?;
    if (header.offset, bytes.len()) != (0, len) {
        let what = format!("the reply has {} bytes at {}, and {len} at 0 are expected", bytes.len(), header.offset);
        return Err(peer.broke(Some(request), what).into());
    }
    Ok(bytes.to_vec())
}

/// The features that are told to the back end, of those that the driver took: the others are the front end's own.
pub fn theirs(taken: u64, said: &Said) -> u64 {
    let features = taken & said.features;
    if said.extended { features | feature::PROTOCOL_FEATURES } else { features }
}

//! One front end: its messages, checked, answered, and passed on to the device.
//!
//! A request that is wrong is answered so where the front end asked for an answer (`REPLY_ACK`), and it may go on; else it is sent away with the
//! reason, since the protocol knows no other way to say no.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::device::Device;
use super::memory::SLOTS;
use super::registers::Registers;
use super::{Function, VirtioModel};
use crate::model::{ModelFunction, rest};
use crate::server;
use crate::vhost_user::wire::{self, BackendRequest, Header, Request, VringAddr, VringState, exactly, protocol};
use crate::vhost_user::{Frame, Socket};
use rustix::event::{PollFd, PollFlags};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use zerocopy::IntoBytes;

/// A connection, and what was agreed on and shared over it.
pub struct Session {
    socket: Socket,
    device: Device,
    owned: bool,
    protocol: u64,
    /// For messages of our own.
    channel: Option<Socket>,
    /// A change of configuration that the front end is not told of yet.
    untold: bool,
}

/// The payload of a reply and its descriptor, for a request that has one; or why it is refused.
type Answer = Result<Option<(Vec<u8>, Option<OwnedFd>)>, String>;

fn reply(value: &(impl IntoBytes + zerocopy::Immutable)) -> Answer {
    Ok(Some((value.as_bytes().to_vec(), None)))
}

/// A payload that is exactly one of `T`.
fn payload<T: zerocopy::FromBytes>(bytes: &[u8]) -> Result<T, String> {
    exactly(bytes).ok_or_else(|| format!("{} bytes came, where {} are due", bytes.len(), size_of::<T>()))
}

impl<M: VirtioModel + 'static> server::Session<M> for Session {
    type Setup = Registers;
    const PEER: &'static str = "front end";

    fn begin(stream: UnixStream, function: &mut ModelFunction<M>, registers: Registers) -> Result<Self, String> {
        let (socket, device) = (Socket::new(stream), Device::new(function, registers)?);
        Ok(Self { socket, device, owned: false, protocol: 0, channel: None, untold: false })
    }

    #[inline]
    fn is_robbed(&self) -> bool {
        self.device.memory.has_shrunk()
    }

    /// Kicks end it, too.
    fn wait(&self, timeout: Duration, wires: Vec<BorrowedFd<'_>>) -> io::Result<()> {
        let own = self.wakes().map(|(fd, events)| PollFd::from_borrowed_fd(fd, events));
        Ok(rest::wait(own.into(), wires, timeout)?)
    }

    /// A front end may have given a ring no kick, and have it looked at.
    fn tells_all(&self) -> bool {
        self.device.kicks_all()
    }

    /// A message, and what happened at the rings.
    fn poll(&mut self, function: &mut ModelFunction<M>) -> Result<bool, String> {
        let kicked = self.service(function)?;
        if !self.socket.flush().map_err(|e| e.to_string())? {
            return Ok(kicked);
        }
        match self.socket.receive().map_err(|e| e.to_string())? {
            Some(frame) => self.answer(function, frame).map(|()| true),
            None => Ok(kicked),
        }
    }
}

impl Session {
    /// What ends a wait: the socket, and kicks.
    pub fn wakes(&self) -> [(BorrowedFd<'_>, PollFlags); 2] {
        // What is to be sent is taken before anything is read.
        let events = if self.socket.is_sending() { PollFlags::OUT } else { PollFlags::IN };
        [(self.socket.as_fd(), events), (self.device.kicks.as_fd(), PollFlags::IN)]
    }

    /// Whether the front end is to be told something for which its channel had no room.
    pub fn has_untold(&self) -> bool {
        self.untold
    }

    /// Passes kicks to the model, and configuration changes and failed queues to the front end. Returns whether anything was kicked.
    fn service(&mut self, function: &mut Function) -> Result<bool, String> {
        let kicked = self.device.take_kicks(function)?;
        self.untold |= self.device.changed(function)?;
        if self.untold {
            self.tell();
        }
        Ok(kicked)
    }

    /// Tells the front end that device configuration changed, if it wants to know; at the next look, where it does not take that now.
    fn tell(&mut self) {
        let wanted = protocol::CONFIG | protocol::BACKEND_REQ;
        let Some(channel) = self.channel.as_mut().filter(|_| self.protocol & wanted == wanted) else {
            self.untold = false;
            return;
        };
        let request = Request(BackendRequest::CONFIG_CHANGE_MSG.0);
        let sent = match channel.flush() {
            Ok(false) => return,
            Ok(true) => channel.send(Header::new(request, 0), &[], Vec::new()),
            Err(e) => Err(e),
        };
        self.untold = false;
        if let Err(error) = sent {
            tracing::info!(%error, "the front end can't be told of changes any more");
            self.channel = None;
        }
    }

    fn answer(&mut self, function: &mut Function, frame: Frame) -> Result<(), String> {
        let Header { request, flags, .. } = frame.header;
        if !frame.header.is_known() || flags & !(wire::VERSION_MASK | wire::NEED_REPLY) != 0 {
            return Err(format!("it sent what is no request of version {}: flags {flags:#x}", wire::VERSION));
        }
        let asked = flags & wire::NEED_REPLY != 0;
        if asked && self.protocol & protocol::REPLY_ACK == 0 {
            return Err(format!("{request}: it asks for a reply without having agreed on REPLY_ACK"));
        }
        let handled = self.handle(function, frame);
        if let Err(why) = &handled {
            tracing::warn!(%request, why, "refused");
        }
        let (payload, fd) = match handled {
            Ok(Some(reply)) => reply,
            Ok(None) if asked => (0u64.as_bytes().to_vec(), None),
            Ok(None) => return Ok(()),
            // "If an error occurs, the payload of the reply is empty."
            Err(_) if request == Request::GET_CONFIG => (Vec::new(), None),
            Err(_) if asked && !HAS_REPLY.contains(&request) => (1u64.as_bytes().to_vec(), None),
            Err(why) => return Err(format!("{request}: {why}")),
        };
        let fds = fd.into_iter().collect();
        self.socket.send(Header::new(request, wire::REPLY), &[&payload], fds).map_err(|e| e.to_string())
    }

    fn handle(&mut self, function: &mut Function, frame: Frame) -> Answer {
        let Frame { header: Header { request, .. }, payload: bytes, mut fds, excess_fds } = frame;
        let most = match request {
            Request::SET_MEM_TABLE => wire::MAX_REGIONS,
            Request::SET_VRING_KICK | Request::SET_VRING_CALL | Request::SET_VRING_ERR => 1,
            // The descriptor of a region that goes is none that we need.
            Request::ADD_MEM_REG | Request::REM_MEM_REG | Request::SET_BACKEND_REQ_FD | Request::SET_INFLIGHT_FD => 1,
            _ => 0,
        };
        if excess_fds > 0 || fds.len() > most {
            let came = fds.len().saturating_add(excess_fds);
            return Err(format!("{came} file descriptors came, where at most {most} may"));
        }
        let bytes = &bytes[..];
        match request {
            Request::GET_FEATURES => payload::<[u8; 0]>(bytes).and_then(|_| reply(&self.device.offered)),
            Request::GET_PROTOCOL_FEATURES => payload::<[u8; 0]>(bytes).and_then(|_| reply(&self.device.protocol())),
            Request::GET_QUEUE_NUM => {
                payload::<[u8; 0]>(bytes)?;
                reply(&self.device.queue_num())
            }
            Request::GET_MAX_MEM_SLOTS => payload::<[u8; 0]>(bytes).and_then(|_| reply(&(SLOTS as u64))),
            Request::GET_STATUS => {
                payload::<[u8; 0]>(bytes)?;
                reply(&u64::from(self.device.status(function)?))
            }
            Request::GET_CONFIG => {
                let (at, _) = wire::config_of(bytes)?;
                let mut config = vec![0; at.size as usize];
                self.device.config(function, at.offset, &mut config)?;
                Ok(Some((wire::config(at.offset, at.flags, &config), None)))
            }
            Request::GET_INFLIGHT_FD if self.protocol & protocol::INFLIGHT_SHMFD != 0 => {
                let (fd, said) = self.device.new_inflight(payload(bytes)?)?;
                Ok(Some((said.as_bytes().to_vec(), Some(fd))))
            }
            Request::GET_VRING_BASE => {
                let VringState { index, .. } = payload(bytes)?;
                let num = self.device.stop_ring(function, index)?;
                reply(&VringState { index, num })
            }
            _ => self.set(function, request, bytes, &mut fds).map(|()| None),
        }
    }

    /// The requests that have no reply of their own.
    fn set(
        &mut self,
        function: &mut Function,
        request: Request,
        bytes: &[u8],
        fds: &mut Vec<OwnedFd>,
    ) -> Result<(), String> {
        match request {
            Request::SET_OWNER => {
                payload::<[u8; 0]>(bytes)?;
                if std::mem::replace(&mut self.owned, true) {
                    return Err("it owns the device already".to_owned());
                }
                Ok(())
            }
            Request::RESET_OWNER | Request::RESET_DEVICE => {
                payload::<[u8; 0]>(bytes)?;
                // A device that is reset stays its owner's.
                self.owned &= request == Request::RESET_DEVICE;
                self.device.reset(function)
            }
            Request::SET_FEATURES => self.device.set_features(payload(bytes)?),
            Request::SET_PROTOCOL_FEATURES => {
                let protocol: u64 = payload(bytes)?;
                let offered = self.device.protocol();
                if protocol & !offered != 0 {
                    return Err(format!("protocol features {:#x} were not offered", protocol & !offered));
                }
                self.protocol = protocol;
                self.device.has_status = protocol & protocol::STATUS != 0;
                Ok(())
            }
            Request::SET_STATUS => {
                let status: u64 = payload(bytes)?;
                let status = u8::try_from(status).map_err(|_| format!("{status:#x} is no device status"))?;
                self.device.set_status(function, status)
            }
            Request::SET_CONFIG => {
                let (at, config) = wire::config_of(bytes)?;
                self.device.set_config(function, at.offset, config)
            }
            Request::SET_MEM_TABLE => {
                self.device.memory.set(function, wire::regions(bytes)?, fds)?;
                self.device.move_rings(function)
            }
            Request::ADD_MEM_REG => {
                let added: wire::MemRegion = payload(bytes)?;
                self.device.memory.add(function, added.region, fds.first().ok_or("no file descriptor came")?)
            }
            Request::REM_MEM_REG => {
                let removed: wire::MemRegion = payload(bytes)?;
                self.device.memory.remove(function, removed.region)?;
                self.device.move_rings(function)
            }
            Request::SET_BACKEND_REQ_FD => {
                payload::<[u8; 0]>(bytes)?;
                let fd = fds.pop().ok_or("no file descriptor came")?;
                let stat = rustix::fs::fstat(&fd).map_err(|e| e.to_string())?;
                if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_socket() {
                    return Err("what came is no socket".to_owned());
                }
                self.channel = Some(Socket::new(fd.into()));
                Ok(())
            }
            Request::SET_INFLIGHT_FD if self.protocol & protocol::INFLIGHT_SHMFD != 0 => {
                let fd = fds.pop().ok_or("no file descriptor came")?;
                self.device.set_inflight(payload(bytes)?, &fd)
            }
            Request::SET_VRING_NUM => {
                let VringState { index, num } = payload(bytes)?;
                let ring = self.device.idle(index)?;
                ring.size =
                    u16::try_from(num).ok().filter(|n| *n > 0).ok_or_else(|| format!("no ring has {num} entries"))?;
                self.device.refresh(function, index)
            }
            Request::SET_VRING_BASE => {
                let VringState { index, num } = payload(bytes)?;
                self.device.idle(index)?.base = num;
                Ok(())
            }
            Request::SET_VRING_ADDR => {
                let addresses: VringAddr = payload(bytes)?;
                if addresses.flags != 0 {
                    return Err(format!("flags {:#x}: nothing is logged here", addresses.flags));
                }
                // Said again, it changes nothing.
                if self.device.ring(addresses.index)?.addresses != Some(addresses) {
                    self.device.idle(addresses.index)?.addresses = Some(addresses);
                }
                self.device.refresh(function, addresses.index)
            }
            Request::SET_VRING_ENABLE => {
                let VringState { index, num } = payload(bytes)?;
                if num > 1 {
                    return Err(format!("{num} is neither on nor off"));
                }
                self.device.ring(index)?.enabled = Some(num == 1);
                self.device.refresh(function, index)
            }
            Request::SET_VRING_KICK => {
                let (index, fd) = eventfd(function, payload(bytes)?, fds.pop())?;
                self.device.set_kick(function, index, fd)
            }
            Request::SET_VRING_CALL => {
                let (index, fd) = eventfd(function, payload(bytes)?, fds.pop())?;
                self.device.set_call(function, index, fd)
            }
            Request::SET_VRING_ERR => {
                let (index, fd) = eventfd(function, payload(bytes)?, fds.pop())?;
                self.device.ring(index)?.err = fd;
                Ok(())
            }
            Request::SET_LOG_BASE | Request::SET_LOG_FD => {
                Err("nothing is logged here: its guest can't be migrated live".to_owned())
            }
            _ => Err("that is not spoken here, nor was it agreed on".to_owned()),
        }
    }
}

/// The ring that a message is about, and its eventfd, if one comes.
fn eventfd(function: &Function, value: u64, fd: Option<OwnedFd>) -> Result<(u32, Option<OwnedFd>), String> {
    if value & !(wire::VRING_INDEX | wire::VRING_NO_FD) != 0 {
        return Err(format!("{value:#x} is no ring's number"));
    }
    if fd.is_some() == (value & wire::VRING_NO_FD != 0) {
        return Err("it is said that a file descriptor comes, or that none does, and it is not so".to_owned());
    }
    if fd.as_ref().is_some_and(|fd| !function.may_signal(fd)) {
        return Err("what came is no eventfd that can be signalled without waiting".to_owned());
    }
    Ok(((value & wire::VRING_INDEX) as u32, fd))
}

/// The requests with a reply of their own: an acknowledgement in its place would be taken for it.
const HAS_REPLY: [Request; 9] = [
    Request::GET_FEATURES,
    Request::GET_PROTOCOL_FEATURES,
    Request::GET_QUEUE_NUM,
    Request::GET_MAX_MEM_SLOTS,
    Request::GET_STATUS,
    Request::GET_CONFIG,
    Request::GET_VRING_BASE,
    Request::GET_INFLIGHT_FD,
    Request::GET_SHARED_OBJECT,
];

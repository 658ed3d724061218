//! One front end: what it says, checked, answered, and passed on to the model's registers.
//!
//! A request that is wrong is answered so where the front end asked for an answer (`REPLY_ACK`), and it may go on; else it is sent away with the
//! reason, since the protocol knows no other way to say no.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::kicks::Kicks;
use super::memory::{Memory, SLOTS};
use super::registers::{Registers, feature, status};
use super::rings::Ring;
use super::{Function, TAKEN};
use crate::model::Refused;
use crate::pci::Irq;
use crate::vhost_user::wire::{self, BackendRequest, Header, Request, VringAddr, VringState, exactly, protocol};
use crate::vhost_user::{Frame, Socket};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use zerocopy::IntoBytes;

/// What a back end can do here.
const PROTOCOL: u64 = protocol::MQ
    | protocol::REPLY_ACK
    | protocol::BACKEND_REQ
    | protocol::CONFIG
    | protocol::RESET_DEVICE
    | protocol::CONFIGURE_MEM_SLOTS
    | protocol::STATUS;

/// How far the model is on its way from a reset to DRIVER_OK (VIRTIO 1.2, 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Reset,
    FeaturesOk,
    DriverOk,
}

/// A connection, and what was agreed on and shared over it.
pub struct Session {
    socket: Socket,
    memory: Memory,
    rings: Vec<Ring>,
    kicks: Kicks,
    offered: u64,
    owned: bool,
    /// As `SET_FEATURES` had them.
    features: Option<u64>,
    protocol: u64,
    /// As `SET_STATUS` had it.
    status: u8,
    stage: Stage,
    /// The model broke off: that was told of.
    broken: bool,
    /// For messages of our own.
    channel: Option<Socket>,
    /// A change of configuration that the front end is not told of yet.
    untold: bool,
}

/// The payload of a reply, for a request that has one; or why it is refused.
type Answer = Result<Option<Vec<u8>>, String>;

fn reply(value: &(impl IntoBytes + zerocopy::Immutable)) -> Answer {
    Ok(Some(value.as_bytes().to_vec()))
}

/// A payload that is exactly one of `T`.
fn payload<T: zerocopy::FromBytes>(bytes: &[u8]) -> Result<T, String> {
    exactly(bytes).ok_or_else(|| format!("{} bytes came, where {} are due", bytes.len(), size_of::<T>()))
}

/// What came of an access to the model's registers, which are as its capabilities say.
fn model<T>(done: Result<T, Refused>) -> Result<T, String> {
    done.map_err(|Refused(errno)| {
        format!("the model refuses an access to its registers: {}", io::Error::from_raw_os_error(errno))
    })
}

impl Session {
    /// # Errors
    /// Where the system has no descriptor left, or the model can't be asked.
    pub fn new(stream: UnixStream, function: &mut Function, registers: &Registers) -> Result<Self, String> {
        let queues = usize::from(model(registers.queues(function))?);
        Ok(Self {
            socket: Socket::new(stream),
            memory: Memory::default(),
            rings: (0..queues).map(|_| Ring::default()).collect(),
            kicks: Kicks::new(queues).map_err(|e| format!("its kicks can't be watched: {e}"))?,
            offered: model(registers.offered(function))? | wire::feature::PROTOCOL_FEATURES,
            owned: false,
            features: None,
            protocol: 0,
            status: 0,
            stage: Stage::Reset,
            broken: false,
            channel: None,
            untold: false,
        })
    }

    /// Whether the front end took memory away that it had shared, and that was touched.
    #[inline]
    pub fn is_robbed(&self) -> bool {
        self.memory.has_shrunk()
    }

    /// Waits until the front end says something, takes what we said, or kicks.
    pub fn wait(&self, timeout: Duration) -> io::Result<()> {
        let events = if self.socket.is_sending() { PollFlags::OUT } else { PollFlags::IN };
        let timeout = Timespec::try_from(timeout).unwrap_or_default();
        let mut fds = [PollFd::new(&self.socket, events), PollFd::new(&self.kicks, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Handles the next message, if there is one, once the answer to the one before is sent; and what happened at the rings.
    ///
    /// # Errors
    /// Why there is no front end any more.
    pub fn poll(&mut self, function: &mut Function, registers: &Registers) -> Result<bool, String> {
        if self.is_robbed() {
            return Err(TAKEN.to_owned());
        }
        let kicked = self.attend(function, registers)?;
        if !self.socket.flush().map_err(|e| e.to_string())? {
            return Ok(kicked);
        }
        match self.socket.receive().map_err(|e| e.to_string())? {
            Some(frame) => self.answer(function, registers, frame).map(|()| true),
            None => Ok(kicked),
        }
    }

    /// What happened at the rings: kicks go to the model, and what the model has to say goes to the front end. Whether anything was kicked.
    fn attend(&mut self, function: &mut Function, registers: &Registers) -> Result<bool, String> {
        if self.stage != Stage::DriverOk {
            return Ok(false);
        }
        let (mut kicked, mut done, rings) = (false, Ok(()), &self.rings);
        self.kicks.take(|index| {
            kicked = true;
            if done.is_ok() && rings.get(usize::from(index)).is_some_and(|ring| ring.running.is_some()) {
                done = registers.notify(function, index);
            }
        });
        model(done)?;
        if model(registers.changed(function))? {
            self.untold = true;
            if !self.broken && model(registers.status(function))? & status::NEEDS_RESET != 0 {
                self.broken = true;
                tracing::warn!("the device needs a reset: its queues stand still until the front end starts them anew");
                self.signal_errors(function);
            }
        }
        if self.untold {
            self.tell();
        }
        Ok(kicked)
    }

    /// Signals the rings' error eventfds, once each.
    fn signal_errors(&mut self, function: &mut Function) {
        let err = Irq::Err.index();
        for fd in self.rings.iter_mut().filter_map(|ring| ring.err.take()) {
            if function.set_irqs(err, 0, vec![Some(fd)]).is_ok() {
                let _ = function.trigger(err, 0, 1);
            }
            function.disable_irqs(err);
        }
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

    fn answer(&mut self, function: &mut Function, registers: &Registers, frame: Frame) -> Result<(), String> {
        let Header { request, flags, .. } = frame.header;
        if !frame.header.is_known() || flags & !(wire::VERSION_MASK | wire::NEED_REPLY) != 0 {
            return Err(format!("it sent what is no request of version {}: flags {flags:#x}", wire::VERSION));
        }
        let asked = flags & wire::NEED_REPLY != 0;
        if asked && self.protocol & protocol::REPLY_ACK == 0 {
            return Err(format!("{request}: it asks for a reply without having agreed on REPLY_ACK"));
        }
        let handled = self.handle(function, registers, frame);
        if let Err(why) = &handled {
            tracing::warn!(%request, why, "refused");
        }
        let payload = match handled {
            Ok(Some(payload)) => payload,
            Ok(None) if asked => 0u64.as_bytes().to_vec(),
            Ok(None) => return Ok(()),
            // "If an error occurs, the payload of the reply is empty."
            Err(_) if request == Request::GET_CONFIG => Vec::new(),
            Err(_) if asked && !HAS_REPLY.contains(&request) => 1u64.as_bytes().to_vec(),
            Err(why) => return Err(format!("{request}: {why}")),
        };
        self.socket.send(Header::new(request, wire::REPLY), &[&payload], Vec::new()).map_err(|e| e.to_string())
    }

    fn handle(&mut self, function: &mut Function, registers: &Registers, frame: Frame) -> Answer {
        let Frame { header: Header { request, .. }, payload: bytes, mut fds, excess_fds } = frame;
        let most = match request {
            Request::SET_MEM_TABLE => wire::MAX_REGIONS,
            Request::SET_VRING_KICK | Request::SET_VRING_CALL | Request::SET_VRING_ERR => 1,
            // The descriptor of a region that goes is none that we need.
            Request::ADD_MEM_REG | Request::REM_MEM_REG | Request::SET_BACKEND_REQ_FD => 1,
            _ => 0,
        };
        if excess_fds > 0 || fds.len() > most {
            let came = fds.len().saturating_add(excess_fds);
            return Err(format!("{came} file descriptors came, where at most {most} may"));
        }
        let bytes = &bytes[..];
        match request {
            Request::GET_FEATURES => payload::<[u8; 0]>(bytes).and_then(|_| reply(&self.offered)),
            Request::GET_PROTOCOL_FEATURES => payload::<[u8; 0]>(bytes).and_then(|_| reply(&PROTOCOL)),
            Request::GET_QUEUE_NUM => {
                payload::<[u8; 0]>(bytes)?;
                reply(&u64::from(registers.counted(self.rings.len() as u16)))
            }
            Request::GET_MAX_MEM_SLOTS => payload::<[u8; 0]>(bytes).and_then(|_| reply(&(SLOTS as u64))),
            Request::GET_STATUS => {
                payload::<[u8; 0]>(bytes)?;
                let broken = if self.stage == Stage::Reset { 0 } else { model(registers.status(function))? };
                reply(&u64::from(self.status | broken & status::NEEDS_RESET))
            }
            Request::GET_CONFIG => {
                let (at, _) = wire::config_of(bytes)?;
                let mut config = vec![0; at.size as usize];
                model(registers.config(function, at.offset, &mut config))?;
                Ok(Some(wire::config(at.offset, at.flags, &config)))
            }
            Request::GET_VRING_BASE => self.vring_base(function, registers, payload(bytes)?),
            _ => self.set(function, registers, request, bytes, &mut fds).map(|()| None),
        }
    }

    /// The requests that have no reply of their own.
    fn set(
        &mut self,
        function: &mut Function,
        registers: &Registers,
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
                self.reset(function, registers)
            }
            Request::SET_FEATURES => self.set_features(payload(bytes)?),
            Request::SET_PROTOCOL_FEATURES => {
                let protocol: u64 = payload(bytes)?;
                if protocol & !PROTOCOL != 0 {
                    return Err(format!("protocol features {:#x} were not offered", protocol & !PROTOCOL));
                }
                self.protocol = protocol;
                Ok(())
            }
            Request::SET_STATUS => {
                let status: u64 = payload(bytes)?;
                let status = u8::try_from(status).map_err(|_| format!("{status:#x} is no device status"))?;
                self.set_status(function, registers, status)
            }
            Request::SET_CONFIG => {
                let (at, config) = wire::config_of(bytes)?;
                model(registers.set_config(function, at.offset, config)).map_err(|_| {
                    format!("{} bytes of configuration at {} are not there to be written", at.size, at.offset)
                })
            }
            Request::SET_MEM_TABLE => {
                self.memory.set(function, wire::regions(bytes)?, fds)?;
                self.move_rings(function, registers)
            }
            Request::ADD_MEM_REG => {
                let added: wire::MemRegion = payload(bytes)?;
                self.memory.add(function, added.region, fds.first().ok_or("no file descriptor came")?)
            }
            Request::REM_MEM_REG => {
                let removed: wire::MemRegion = payload(bytes)?;
                self.memory.remove(function, removed.region)?;
                self.move_rings(function, registers)
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
            Request::SET_VRING_NUM => {
                let VringState { index, num } = payload(bytes)?;
                let ring = self.idle(index)?;
                ring.size =
                    u16::try_from(num).ok().filter(|n| *n > 0).ok_or_else(|| format!("no ring has {num} entries"))?;
                self.refresh(function, registers)
            }
            Request::SET_VRING_BASE => {
                let VringState { index, num } = payload(bytes)?;
                self.idle(index)?.base = num;
                Ok(())
            }
            Request::SET_VRING_ADDR => {
                let addresses: VringAddr = payload(bytes)?;
                if addresses.flags != 0 {
                    return Err(format!("flags {:#x}: nothing is logged here", addresses.flags));
                }
                // Said again, it changes nothing.
                if self.ring(addresses.index)?.addresses != Some(addresses) {
                    self.idle(addresses.index)?.addresses = Some(addresses);
                }
                self.refresh(function, registers)
            }
            Request::SET_VRING_ENABLE => {
                let VringState { index, num } = payload(bytes)?;
                if num > 1 {
                    return Err(format!("{num} is neither on nor off"));
                }
                self.ring(index)?.enabled = Some(num == 1);
                self.refresh(function, registers)
            }
            Request::SET_VRING_KICK | Request::SET_VRING_CALL | Request::SET_VRING_ERR => {
                let (index, fd) = self.eventfd(function, payload(bytes)?, fds.pop())?;
                self.set_eventfd(function, registers, request, index, fd)
            }
            Request::SET_LOG_BASE | Request::SET_LOG_FD => {
                Err("nothing is logged here: its guest can't be migrated live".to_owned())
            }
            _ => Err("that is not spoken here, nor was it agreed on".to_owned()),
        }
    }

    fn ring(&mut self, index: u32) -> Result<&mut Ring, String> {
        let count = self.rings.len();
        self.rings.get_mut(index as usize).ok_or_else(|| format!("there is no ring {index}: there are {count}"))
    }

    /// A ring that the model does not have as a queue now.
    fn idle(&mut self, index: u32) -> Result<&mut Ring, String> {
        let ring = self.ring(index)?;
        if ring.running.is_some() { Err(format!("ring {index} is running")) } else { Ok(ring) }
    }

    fn set_features(&mut self, features: u64) -> Result<(), String> {
        if features & !self.offered != 0 {
            return Err(format!("features {:#x} were not offered", features & !self.offered));
        }
        if self.features != Some(features) && self.rings.iter().any(|ring| ring.running.is_some()) {
            return Err("features can't change while rings are running".to_owned());
        }
        if self.features != Some(features) {
            self.stage = Stage::Reset;
        }
        self.features = Some(features);
        Ok(())
    }

    fn packed(&self) -> bool {
        self.features.unwrap_or(0) & feature::RING_PACKED != 0
    }

    /// Brings the model to FEATURES_OK.
    fn agree(&mut self, function: &mut Function, registers: &Registers) -> Result<(), String> {
        if self.stage != Stage::Reset {
            return Ok(());
        }
        let features = self.features.unwrap_or(0) & !wire::feature::PROTOCOL_FEATURES;
        if !model(registers.agree(function, features))? {
            return Err(format!(
                "the device does not accept features {features:#x}{}",
                if features & 1 << 32 == 0 { ": VIRTIO_F_VERSION_1 is not among them" } else { "" }
            ));
        }
        (self.stage, self.broken) = (Stage::FeaturesOk, false);
        Ok(())
    }

    fn set_status(&mut self, function: &mut Function, registers: &Registers, new: u8) -> Result<(), String> {
        if new == 0 {
            self.status = 0;
            return self.refresh(function, registers);
        }
        let mut new = new & !status::NEEDS_RESET;
        if new & !self.status & status::FEATURES_OK != 0
            && let Err(why) = self.agree(function, registers)
        {
            tracing::warn!(why, "features are refused");
            new &= !status::FEATURES_OK;
        }
        if new & !self.status & status::FAILED != 0 {
            tracing::warn!("the driver gave up");
        }
        self.status = new;
        self.refresh(function, registers)
    }

    /// As at the beginning, but for the connection, its memory, and whom to call.
    fn reset(&mut self, function: &mut Function, registers: &Registers) -> Result<(), String> {
        for index in 0..self.rings.len() {
            self.kicks.set(index, None).map_err(|e| e.to_string())?;
            self.rings[index].started = false;
        }
        self.refresh(function, registers)?;
        for ring in &mut self.rings {
            *ring = Ring { err: ring.err.take(), ..Ring::default() };
        }
        (self.features, self.status, self.owned) = (None, 0, false);
        Ok(())
    }

    /// The queue a message is about, and its eventfd, if one comes.
    fn eventfd(&self, function: &Function, value: u64, fd: Option<OwnedFd>) -> Result<(u16, Option<OwnedFd>), String> {
        if value & !(wire::VRING_INDEX | wire::VRING_NO_FD) != 0 {
            return Err(format!("{value:#x} is no ring's number"));
        }
        if fd.is_some() == (value & wire::VRING_NO_FD != 0) {
            return Err("it is said that a file descriptor comes, or that none does, and it is not so".to_owned());
        }
        if let Some(fd) = &fd
            && !function.may_signal(fd)
        {
            return Err("what came is no eventfd that can be signalled without waiting".to_owned());
        }
        Ok(((value & wire::VRING_INDEX) as u16, fd))
    }

    fn set_eventfd(
        &mut self,
        function: &mut Function,
        registers: &Registers,
        request: Request,
        index: u16,
        fd: Option<OwnedFd>,
    ) -> Result<(), String> {
        let ring = self.ring(index.into())?;
        match request {
            Request::SET_VRING_KICK => {
                ring.started = true;
                self.kicks.set(index.into(), fd).map_err(|e| format!("ring {index} can't be watched: {e}"))?;
                self.refresh(function, registers)
            }
            Request::SET_VRING_CALL => {
                let running = ring.running.is_some();
                let set = function.set_irqs(Irq::Msix.index(), index.into(), vec![fd]);
                set.map_err(|_| format!("the device has no interrupt for ring {index}"))?;
                // What was used before may have gone to nobody.
                if running { self.call(function, index) } else { Ok(()) }
            }
            _ => {
                ring.err = fd;
                Ok(())
            }
        }
    }

    fn call(&self, function: &mut Function, index: u16) -> Result<(), String> {
        model(function.trigger(Irq::Msix.index(), index.into(), 1))
    }

    /// Stops a ring, and says where it goes on.
    fn vring_base(&mut self, function: &mut Function, registers: &Registers, state: VringState) -> Answer {
        let VringState { index, .. } = state;
        self.ring(index)?.started = false;
        self.kicks.set(index as usize, None).map_err(|e| e.to_string())?;
        self.refresh(function, registers)?;
        let base = self.ring(index)?.base;
        reply(&VringState { index, num: base })
    }

    /// Whether a ring is to run: all is said of it, it is started and enabled, and the driver is ready.
    fn wanted(&self, ring: &Ring) -> bool {
        let Some(features) = self.features else { return false };
        let ready = self.protocol & protocol::STATUS == 0 || self.status & status::DRIVER_OK != 0;
        let enabled = ring.enabled.unwrap_or(features & wire::feature::PROTOCOL_FEATURES == 0);
        ready && enabled && ring.started && ring.size > 0 && ring.addresses.is_some()
    }

    /// Starts the rings that are to run and don't, and stops those that run and are not to.
    fn refresh(&mut self, function: &mut Function, registers: &Registers) -> Result<(), String> {
        let mut done = Ok(());
        for index in 0..self.rings.len() {
            match (self.wanted(&self.rings[index]), self.rings[index].running.is_some()) {
                (true, false) => done = done.and(self.start(function, registers, index)),
                (false, true) => self.stop(function, registers, index)?,
                _ => {}
            }
        }
        match self.rings.iter().rposition(|ring| ring.running.is_some()) {
            Some(last) => {
                if let Some(pairs) = registers.pairs(last) {
                    function.model().set_queue_pairs(pairs);
                }
            }
            None if self.stage == Stage::DriverOk || done.is_err() => {
                model(registers.reset(function))?;
                self.stage = Stage::Reset;
            }
            None => {}
        }
        done
    }

    fn start(&mut self, function: &mut Function, registers: &Registers, at: usize) -> Result<(), String> {
        self.agree(function, registers)?;
        let (packed, index) = (self.packed(), at as u16);
        let ring = &self.rings[at];
        let addresses = ring.addresses.as_ref().ok_or("a ring has no addresses")?;
        let queue = ring.queue(addresses, packed, &self.memory)?;
        let largest = model(registers.largest(function, index))?;
        if queue.size > largest {
            return Err(format!(
                "ring {index} has {} entries, where the device has {largest} at the most: give the model entries=",
                queue.size
            ));
        }
        function.model().set_queue_base(index, ring.begins(packed)?);
        if !model(registers.enable(function, index, &queue))? {
            return Err(format!("the device does not take ring {index}: {queue:x?}"));
        }
        self.rings[at].running = Some(queue);
        if self.stage != Stage::DriverOk {
            model(registers.driver_ok(function))?;
            self.stage = Stage::DriverOk;
        }
        tracing::debug!(index, ?queue, "a ring runs");
        self.call(function, index)
    }

    fn stop(&mut self, function: &mut Function, registers: &Registers, at: usize) -> Result<(), String> {
        let (packed, index) = (self.packed(), at as u16);
        if let Some(base) = function.model().queue_base(index) {
            self.rings[at].stopped_at(base, packed);
        }
        self.rings[at].running = None;
        tracing::debug!(index, base = self.rings[at].base, "a ring stands still");
        model(registers.reset_queue(function, index))
    }

    /// After a change of memory: a ring that is elsewhere now begins there, where it is; one that is nowhere stands still.
    fn move_rings(&mut self, function: &mut Function, registers: &Registers) -> Result<(), String> {
        let (packed, memory) = (self.packed(), &self.memory);
        let moved = |ring: &Ring| {
            let now = ring.addresses.and_then(|at| ring.queue(&at, packed, memory).ok());
            ring.running.is_some_and(|queue| now != Some(queue))
        };
        let moved: Vec<_> = (0..self.rings.len()).filter(|at| moved(&self.rings[*at])).collect();
        for at in moved {
            self.stop(function, registers, at)?;
        }
        self.refresh(function, registers)
    }
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

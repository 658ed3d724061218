//! The function's state: what the driver writes to its registers, as messages to the back end.
//!
//! Under one lock. A back end that goes away leaves a device that needs a reset (VIRTIO 1.2, 2.1.2), and is waited for when the driver begins anew; one
//! that breaks the protocol ends the device.

use super::config_space::{self, ConfigSpace};
use super::control::Control;
use super::inflight::Inflight;
use super::kind::{Function, Said, net, ring};
use super::link::{Link, Met, get_config, meet, theirs};
use super::memory::{Memory, Unsent};
use super::options::{DeviceType, Options};
use super::peer::{Failed, Lost, Notice, Peer};
use super::registers::{Action, Registers, status};
use crate::irq::EventFd;
use crate::mem::{Arena, Iova};
use crate::model::Signaller;
use crate::patience::{Patience, later};
use crate::vhost_user::wire::{self, Request, protocol};
use crate::{Error, Result};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Instant;
use zerocopy::IntoBytes;

/// The largest queue: what libvhost-user has, and nobody less.
const LARGEST_QUEUE: u16 = 1024;

/// The function.
pub struct FrontEnd {
    pub name: String,
    pub options: Options,
    pub registers: Registers,
    pub config_space: ConfigSpace,
    pub vectors: Vec<Option<OwnedFd>>,
    /// The eventfds that queues are notified by, from when they are first used. They stay the same.
    pub kicks: Arc<[OnceLock<EventFd>]>,
    pub function: Function,
    pub(super) link: Link,
    pub(super) patience: Arc<Patience>,
    pub(super) peer: Option<Peer>,
    pub(super) said: Said,
    pub(super) memory: Memory,
    /// How many of a network device's pairs the driver uses, and the queue by which it says so.
    pub(super) pairs: u16,
    pub(super) control: Control,
    /// The queues that the back end knows.
    pub(super) started: Vec<bool>,
    /// What the back end signals when a queue of it fails.
    pub(super) failure: EventFd,
    /// What it signals instead of a vector that there isn't: libvhost-user gives up where it has nothing to signal.
    pub(super) spare: EventFd,
    pub(super) signaller: Arc<Signaller>,
    /// What signals the vector of configuration changes when the back end says something by itself, or goes.
    watch: Option<Signaller>,
    /// What a disk's back end has in flight, as it records it.
    pub(super) inflight: Option<Inflight>,
    /// Until when queues that run without a back end wait for another one.
    pub(super) resume_by: Option<Instant>,
    /// How the last back end went away.
    pub(super) away: Option<String>,
    /// Why there will be none any more.
    pub(super) gone: Option<String>,
    /// The last back end did not close the connection itself.
    pub(super) may_run: bool,
}

impl FrontEnd {
    /// The function that the back end at the other end of `met` gives.
    pub fn new(
        name: &str,
        options: Options,
        link: Link,
        patience: Arc<Patience>,
        met: Met,
        signaller: Arc<Signaller>,
    ) -> Result<Self> {
        let Met { peer, said, device_type, .. } = met;
        let mut options = Options { device_type: Some(device_type), ..options };
        if device_type == DeviceType::Net && said.features & net::MAC == 0 {
            options.mac = options.mac.or_else(|| Some(super::options::local_mac()));
        }
        let unfit = |what: String| Error::Peer { device: name.to_owned(), command: "opening it".to_owned(), what };
        let function = Function::of(&said, device_type, &options).map_err(unfit)?;
        let queues = function.all_queues();
        let kicks = (0..queues).map(|_| OnceLock::new()).collect();
        Ok(Self {
            name: name.to_owned(),
            registers: Registers::new(function.offered, queues, queues + 1, LARGEST_QUEUE),
            config_space: ConfigSpace::new(device_type.id(), device_type.class(), queues, queues + 1),
            vectors: (0..=queues).map(|_| None).collect(),
            kicks,
            started: vec![false; queues.into()],
            options,
            function,
            link,
            patience,
            peer: Some(peer),
            said,
            memory: Memory::default(),
            pairs: 1,
            control: Control::default(),
            failure: EventFd::new()?,
            spare: EventFd::new()?,
            signaller,
            watch: None,
            inflight: None,
            resume_by: None,
            away: None,
            gone: None,
            may_run: false,
        })
    }

    /// Whether there is, or may be again, a back end.
    pub fn alive(&self) -> Result<()> {
        match &self.gone {
            Some(why) => Err(Error::Gone { device: self.name.clone(), why: why.clone() }),
            None => Ok(()),
        }
    }

    /// Reads the common configuration; `None` for what is no register.
    pub fn read_common(&mut self, offset: u64, buf: &mut [u8]) -> Option<()> {
        // Whoever asks how the device is learns what has happened to it.
        if offset == 0x14 {
            self.poll();
        }
        self.registers.read(offset, buf)
    }

    /// Writes the common configuration; `None` for what is no register.
    pub fn write_common(&mut self, offset: u64, bytes: &[u8]) -> Option<Result<()>> {
        Some(match self.registers.write(offset, bytes)? {
            None => Ok(()),
            Some(Action::Status(0)) => self.reset(),
            Some(Action::Status(value)) => self.set_status(value),
            Some(Action::Vector(queue)) => self.call_changed(queue),
        })
    }

    /// Reads the device configuration, and zeroes behind it.
    pub fn read_config(&self, at: u64, buf: &mut [u8]) {
        for (at, byte) in (at as usize..).zip(buf) {
            *byte = self.function.config.get(at).copied().unwrap_or(0);
        }
    }

    /// Writes the device configuration: that of a back end that has one.
    pub fn write_config(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        if self.said.config.is_none() || at as usize + bytes.len() > self.function.config.len() {
            return Ok(());
        }
        self.tell(|peer| peer.set(Request::SET_CONFIG, &wire::config(at as u32, 0, bytes), Vec::new()))?;
        self.config_changed(false)
    }

    /// Reads the ISR, which clears it (4.1.4.5).
    pub fn take_isr(&mut self) -> u8 {
        std::mem::take(&mut self.registers.isr)
    }

    /// Writes configuration space; `None` outside.
    pub fn write_config_space(&mut self, offset: u64, buf: &[u8]) -> Option<Result<()>> {
        let before = self.config_space.bus_master();
        self.config_space.write(offset, buf)?;
        // A function that may not do DMA does none.
        Some(if before && !self.config_space.bus_master() { self.stop() } else { Ok(()) })
    }

    /// Resets the function: its queues are stopped, what the driver set up is gone, its memory stays.
    pub fn reset(&mut self) -> Result<()> {
        self.alive()?;
        self.stop()?;
        let (resets, tells) =
            (self.said.protocol & protocol::RESET_DEVICE != 0, self.said.protocol & protocol::STATUS != 0);
        if self.registers.status != 0 && self.peer.is_some() {
            if resets {
                self.tell(|peer| peer.set_now(Request::RESET_DEVICE, &[], Vec::new()))?;
            }
            if tells {
                self.tell(|peer| peer.set_now(Request::SET_STATUS, 0u64.as_bytes(), Vec::new()))?;
            }
        }
        self.failure.take();
        (self.inflight, self.resume_by) = (None, None);
        (self.pairs, self.control) = (1, Control::default());
        self.registers.reset();
        Ok(())
    }

    /// Writes device status (2.1, 3.1).
    fn set_status(&mut self, value: u8) -> Result<()> {
        self.alive()?;
        if self.peer.is_none() && self.registers.status == 0 {
            self.reconnect()?;
        }
        let before = self.registers.status;
        let mut new = value & !status::NEEDS_RESET | before & status::NEEDS_RESET;
        let begins = |bit| new & !before & bit != 0;
        let (agrees, starts) = (begins(status::FEATURES_OK), begins(status::DRIVER_OK));
        if agrees && !self.agree()? {
            new &= !status::FEATURES_OK;
        }
        if starts && new & status::FEATURES_OK == 0 {
            tracing::warn!(device = self.name, "DRIVER_OK comes before FEATURES_OK");
            new = new & !status::DRIVER_OK | status::NEEDS_RESET;
        }
        if self.peer.is_none() {
            // It is away: the driver finds out by the next look.
            new |= status::NEEDS_RESET;
        }
        self.registers.status = new;
        if starts && self.registers.is_running() {
            self.start()?;
        }
        if self.said.protocol & protocol::STATUS == 0 {
            return Ok(());
        }
        self.tell(|peer| peer.set(Request::SET_STATUS, u64::from(new).as_bytes(), Vec::new()))?;
        if agrees
            && let Some(theirs) = self.tell(|peer| peer.get::<u64>(Request::GET_STATUS, &[]))?
            && theirs & u64::from(status::FEATURES_OK) == 0
        {
            self.registers.status &= !status::FEATURES_OK;
        }
        Ok(())
    }

    /// Agrees on features; false where they are not accepted.
    pub(super) fn agree(&mut self) -> Result<bool> {
        let taken = self.registers.features;
        if taken & !self.function.offered != 0 || taken & ring::VERSION_1 == 0 {
            tracing::warn!(device = self.name, taken, offered = self.function.offered, "features are refused");
            return Ok(false);
        }
        let features = theirs(taken, &self.said);
        let told = match self.try_tell(|peer| peer.set(Request::SET_FEATURES, features.as_bytes(), Vec::new())) {
            Err(Failed::Refused { what, .. }) => {
                tracing::warn!(device = self.name, features, what, "the back end refuses features");
                return Ok(false);
            }
            told => self.settle(told)?,
        };
        if told.is_some()
            && taken & net::MTU != 0
            && self.function.device_type == DeviceType::Net
            && self.said.protocol & protocol::MTU != 0
        {
            let mtu = u64::from(u16::from_le_bytes([self.function.config[10], self.function.config[11]]));
            self.tell(|peer| peer.set(Request::NET_SET_MTU, mtu.as_bytes(), Vec::new()))?;
        }
        Ok(true)
    }

    /// Lets the back end into an arena: at once where its queues run, else when they do.
    pub fn map(&mut self, iova: Iova, arena: Arc<Arena>) -> Result<()> {
        self.alive()?;
        let entered = self.memory.insert(iova, arena);
        self.sent(entered)?;
        if !self.registers.is_running() {
            return Ok(());
        }
        let sent = self.send_memory();
        if sent.is_err() {
            let _ = self.memory.remove(iova, self.peer.as_mut());
        }
        sent
    }

    /// Takes an arena away.
    pub fn unmap(&mut self, iova: Iova) -> Result<()> {
        // A back end that broke the protocol may still run; one that closed the connection has let go of the memory.
        if self.may_run {
            self.alive()?;
        }
        let removed = self.memory.remove(iova, self.peer.as_mut());
        let removed = self.sent(removed)?;
        if removed.is_none() {
            self.memory.remove(iova, None).ok();
        }
        Ok(())
    }

    pub(super) fn send_memory(&mut self) -> Result<()> {
        let Some(peer) = &mut self.peer else { return Ok(()) };
        let sent = self.memory.sync(peer);
        self.sent(sent).map(|_| ())
    }

    fn sent(&mut self, sent: Result<(), Unsent>) -> Result<Option<()>> {
        match sent {
            Ok(()) => Ok(Some(())),
            Err(Unsent::Local(cause)) => Err(self.local("sending memory to it", cause)),
            Err(Unsent::Peer(failed)) => self.settle(Err(failed)),
        }
    }

    /// Takes a configuration change, a failed queue or the end of the connection, without waiting.
    pub fn poll(&mut self) {
        let Some(peer) = &mut self.peer else { return self.resume() };
        match peer.poll() {
            Ok(None) => {}
            Ok(Some(notice)) => {
                if notice == Notice::ConfigChange {
                    let _ = self.config_changed(true);
                }
                self.watch();
            }
            Err(lost) => _ = self.lose(lost),
        }
        if self.registers.is_running() && self.failure.take() > 0 {
            self.fail("the back end reports that a queue of it failed");
        }
    }

    /// Has the driver interrupted when there is something for [`poll`](Self::poll): it reads device status then. Where that can't be had, it finds out when
    /// it reads it next.
    pub(super) fn watch(&mut self) {
        self.watch = None;
        let vector = self.vectors.get(usize::from(self.registers.config_vector)).and_then(Option::as_ref);
        if let (Some(peer), Some(vector)) = (&self.peer, vector)
            && let Ok(watch) = Signaller::new()
        {
            peer.watch(&watch, vector.as_fd());
            self.watch = Some(watch);
        }
    }

    /// The device configuration is read anew.
    fn config_changed(&mut self, tell: bool) -> Result<()> {
        let device_type = self.function.device_type;
        let Some(config) = self.tell(|peer| get_config(peer, device_type))? else { return Ok(()) };
        let said = Said { config: Some(config), ..self.said.clone() };
        // What it offers does not change, nor how many queues it has.
        if let Ok(function) = Function::of(&said, device_type, &self.options)
            && function.config != self.function.config
        {
            self.function.config = function.config;
            self.said = said;
            self.registers.generation = self.registers.generation.wrapping_add(1);
            if tell {
                self.raise_config();
            }
        }
        Ok(())
    }

    /// Device configuration or status changed (4.1.5.4).
    fn raise_config(&mut self) {
        self.registers.isr |= 2;
        self.signal(self.registers.config_vector);
    }

    /// Nothing works until the next reset.
    pub(super) fn fail(&mut self, why: &str) {
        tracing::warn!(device = self.name, why, "the device needs a reset");
        self.registers.status |= status::NEEDS_RESET;
        self.raise_config();
    }

    /// The back end is lost. Where it only went away, the device needs a reset; else it is gone.
    fn lose(&mut self, lost: Lost) -> Error {
        let Lost { request, what, closed } = lost;
        (self.peer, self.may_run) = (None, !closed);
        self.started.fill(false);
        self.memory.forget_sent();
        let command = request.map_or_else(|| "looking after it".to_owned(), |request| request.to_string());
        let why = format!("{command}: {what}");
        if closed && !self.options.reconnect.is_zero() && !matches!(self.link, Link::Once) {
            self.away = Some(why.clone());
            if !self.waits_for_another() && self.registers.status != 0 {
                self.fail(&why);
            }
        } else {
            self.gone = Some(why);
        }
        Error::Peer { device: self.name.clone(), command, what }
    }

    /// Waits for a back end that went away, and begins anew with it.
    fn reconnect(&mut self) -> Result<()> {
        let deadline = later(self.options.reconnect);
        let met = loop {
            let Some(stream) = self.link.again(deadline) else {
                self.gone = Some(self.not_back());
                return self.alive();
            };
            match meet(stream, &self.patience, &self.options) {
                Ok(met) => break met,
                // One that is about to end, or not ready yet.
                Err(Failed::Lost(lost)) if lost.closed && Instant::now() < deadline => {}
                Err(failed) => return self.settle::<()>(Err(failed)).map(|_| ()),
            }
        };
        self.renew(met)
    }

    pub(super) fn not_back(&self) -> String {
        let (why, within) = (self.away.clone().unwrap_or_default(), self.options.reconnect);
        format!("the back end went away ({why}) and did not come back within {within:?}")
    }

    /// Another back end is there, which has to be as the one before was.
    pub(super) fn renew(&mut self, met: Met) -> Result<()> {
        let broke =
            |what: String, peer: &Peer| Failed::from(peer.broke(None, format!("another back end came, and {what}")));
        let function = match Function::of(&met.said, met.device_type, &self.options) {
            Ok(function)
                if function.all_queues() >= self.function.all_queues() && function.control == self.function.control =>
            {
                function
            }
            Ok(function) => {
                let what = format!("it has {} queues, not {}", function.queues, self.function.queues);
                return self.settle::<()>(Err(broke(what, &met.peer))).map(|_| ());
            }
            Err(what) => return self.settle::<()>(Err(broke(what, &met.peer))).map(|_| ()),
        };
        tracing::info!(device = self.name, "the back end is back");
        self.function = Function { queues: self.function.queues, ..function };
        self.registers.offered = self.function.offered;
        (self.said, self.peer, self.away) = (met.said, Some(met.peer), None);
        Ok(())
    }

    /// Says something to the back end: `None` where it is away, or goes away meanwhile, which is for the driver to find in the device's status.
    pub(super) fn tell<T>(&mut self, say: impl FnOnce(&mut Peer) -> Result<T, Failed>) -> Result<Option<T>> {
        match &mut self.peer {
            Some(peer) => {
                let said = say(peer);
                self.settle(said)
            }
            None => Ok(None),
        }
    }

    fn try_tell<T>(&mut self, say: impl FnOnce(&mut Peer) -> Result<T, Failed>) -> Result<T, Failed> {
        let away = || Lost { request: None, what: "it is away".to_owned(), closed: true };
        say(self.peer.as_mut().ok_or_else(away)?)
    }

    /// What came of a message, as the driver sees it.
    fn settle<T>(&mut self, said: Result<T, Failed>) -> Result<Option<T>> {
        match said {
            Ok(value) => Ok(Some(value)),
            Err(Failed::Refused { request, what }) => {
                let cause = io::Error::other(what);
                Err(Error::Io { what: format!("{}: {request} was refused", self.name), cause })
            }
            Err(Failed::Lost(lost)) => {
                let error = self.lose(lost);
                if self.gone.is_some() { Err(error) } else { Ok(None) }
            }
        }
    }

    pub(super) fn local(&self, what: &str, cause: io::Error) -> Error {
        Error::Io { what: format!("{}: {what}", self.name), cause }
    }

    /// The BAR's registers of the MSI-X table and the PBA, as a device shows them: which vectors are connected.
    pub fn read_msix(&self, offset: u64, buf: &mut [u8]) {
        for (at, byte) in (offset..).zip(buf) {
            let masked = at < config_space::PBA && at % 16 == 12;
            let vector = (at / 16) as usize;
            *byte = u8::from(masked && self.vectors.get(vector).is_some_and(Option::is_none));
        }
    }
}

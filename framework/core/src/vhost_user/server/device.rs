//! The model, as a front end set it up: its features, its status, and which rings it has as queues. All of that goes to its registers.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::Function;
use super::inflight::{self, Inflight};
use super::kicks::Kicks;
use super::memory::Memory;
use super::registers::{Registers, feature, status};
use super::rings::Ring;
use crate::mem::Iova;
use crate::model::Refused;
use crate::pci::Irq;
use crate::vhost_user::wire::{self, protocol};
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;

/// How far the model is on its way from a reset to DRIVER_OK (VIRTIO 1.2, 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Reset,
    FeaturesOk,
    DriverOk,
}

/// What a back end can do here; a disk also `INFLIGHT_SHMFD`.
const PROTOCOL: u64 = protocol::MQ
    | protocol::REPLY_ACK
    | protocol::BACKEND_REQ
    | protocol::CONFIG
    | protocol::RESET_DEVICE
    | protocol::CONFIGURE_MEM_SLOTS
    | protocol::STATUS;

/// A model, and what its front end said of it.
pub struct Device {
    registers: Registers,
    pub memory: Memory,
    rings: Vec<Ring>,
    pub kicks: Kicks,
    /// Where what is in flight is recorded, where the front end wants that.
    pub inflight: Option<Inflight>,
    /// What may be taken of the model's features, and of vhost's.
    pub offered: u64,
    /// As `SET_FEATURES` had them.
    features: Option<u64>,
    /// As `SET_STATUS` had it.
    status: u8,
    /// Whether a driver is not there before its status says so.
    pub has_status: bool,
    stage: Stage,
    /// The device configuration that the front end read last: from where on, and what.
    shown: (u32, Vec<u8>),
    /// Whether that still holds is to be asked: what changes before the driver is there is told to nobody.
    stale: bool,
    /// The model broke off, and that was seen.
    broken: bool,
}

/// What came of an access to the model's registers, which are as its capabilities say.
pub fn model<T>(done: Result<T, Refused>) -> Result<T, String> {
    done.map_err(|Refused(errno)| {
        format!("the model refuses an access to its registers: {}", io::Error::from_raw_os_error(errno))
    })
}

impl Device {
    /// # Errors
    /// Where the system has no descriptor left, or the model can't be asked.
    pub fn new(function: &mut Function, registers: Registers) -> Result<Self, String> {
        let queues = usize::from(model(registers.queues(function))?);
        Ok(Self {
            memory: Memory::default(),
            rings: (0..queues).map(|_| Ring::default()).collect(),
            kicks: Kicks::new(queues).map_err(|e| format!("its kicks can't be watched: {e}"))?,
            inflight: None,
            offered: model(registers.offered(function))? | wire::feature::PROTOCOL_FEATURES,
            registers,
            features: None,
            status: 0,
            has_status: false,
            stage: Stage::Reset,
            shown: (0, Vec::new()),
            stale: false,
            broken: false,
        })
    }

    /// The protocol features that it has.
    pub fn protocol(&self) -> u64 {
        if self.registers.is_disk() { PROTOCOL | protocol::INFLIGHT_SHMFD } else { PROTOCOL }
    }

    /// Makes a record of what is in flight, for the front end to keep: its memory, and how it is named.
    pub fn new_inflight(&self, asked: wire::Inflight) -> Result<(OwnedFd, wire::Inflight), String> {
        if usize::from(asked.num_queues) > self.rings.len() {
            return Err(format!("there are no {} rings: there are {}", asked.num_queues, self.rings.len()));
        }
        inflight::create(asked)
    }

    /// Takes the record of what is in flight, for the rings that are started from now on.
    pub fn set_inflight(&mut self, said: wire::Inflight, fd: &OwnedFd) -> Result<(), String> {
        self.inflight = Some(Inflight::new(&mut self.memory, said, fd)?);
        Ok(())
    }

    /// How many queues there are, as the protocol counts them.
    pub fn queue_num(&self) -> u64 {
        self.registers.counted(self.rings.len() as u16).into()
    }

    pub fn ring(&mut self, index: u32) -> Result<&mut Ring, String> {
        let count = self.rings.len();
        self.rings.get_mut(index as usize).ok_or_else(|| format!("there is no ring {index}: there are {count}"))
    }

    /// A ring that the model does not have as a queue now.
    pub fn idle(&mut self, index: u32) -> Result<&mut Ring, String> {
        let ring = self.ring(index)?;
        if ring.running.is_some() { Err(format!("ring {index} is running")) } else { Ok(ring) }
    }

    pub fn set_features(&mut self, features: u64) -> Result<(), String> {
        if features & !self.offered != 0 {
            return Err(format!("features {:#x} were not offered", features & !self.offered));
        }
        if self.features != Some(features) {
            if self.rings.iter().any(|ring| ring.running.is_some()) {
                return Err("features can't change while rings are running".to_owned());
            }
            self.stage = Stage::Reset;
        }
        self.features = Some(features);
        Ok(())
    }

    /// The device status as a driver would read it: what was set, and whether the model needs a reset.
    pub fn status(&self, function: &mut Function) -> Result<u8, String> {
        let now = if self.stage == Stage::Reset { 0 } else { model(self.registers.status(function))? };
        Ok(self.status | now & status::NEEDS_RESET)
    }

    pub fn set_status(&mut self, function: &mut Function, new: u8) -> Result<(), String> {
        let mut new = new & !status::NEEDS_RESET;
        if new & !self.status & status::FEATURES_OK != 0
            && let Err(why) = self.agree(function)
        {
            tracing::warn!(why, "features are refused");
            new &= !status::FEATURES_OK;
        }
        if new & !self.status & status::FAILED != 0 {
            tracing::warn!("the driver gave up");
        }
        self.status = new;
        self.refresh_all(function)
    }

    /// Reads device configuration for the front end.
    pub fn config(&mut self, function: &mut Function, offset: u32, out: &mut [u8]) -> Result<(), String> {
        model(self.registers.config(function, offset, out))?;
        self.shown = (offset, out.to_vec());
        Ok(())
    }

    /// Writes device configuration.
    pub fn set_config(&self, function: &mut Function, offset: u32, bytes: &[u8]) -> Result<(), String> {
        let done = self.registers.set_config(function, offset, bytes);
        done.map_err(|_| format!("{} bytes of configuration at {offset} are not there to be written", bytes.len()))
    }

    /// As at the beginning, but for memory, and whom to call.
    pub fn reset(&mut self, function: &mut Function) -> Result<(), String> {
        for (index, ring) in self.rings.iter_mut().enumerate() {
            self.kicks.set(index, None).map_err(|e| e.to_string())?;
            ring.started = false;
        }
        self.refresh_all(function)?;
        for ring in &mut self.rings {
            *ring = Ring { err: ring.err.take(), ..Ring::default() };
        }
        (self.features, self.status, self.inflight) = (None, 0, None);
        Ok(())
    }

    /// Starts a ring: whom it is kicked by, if it is.
    pub fn set_kick(&mut self, function: &mut Function, index: u32, fd: Option<OwnedFd>) -> Result<(), String> {
        self.ring(index)?.started = true;
        self.kicks.set(index as usize, fd).map_err(|e| format!("ring {index} can't be watched: {e}"))?;
        self.refresh(function, index)
    }

    /// Stops a ring; says where it goes on.
    pub fn stop_ring(&mut self, function: &mut Function, index: u32) -> Result<u32, String> {
        self.ring(index)?.started = false;
        self.kicks.set(index as usize, None).map_err(|e| e.to_string())?;
        self.refresh(function, index)?;
        Ok(self.ring(index)?.base)
    }

    /// Says whom to call for a ring, if anybody.
    pub fn set_call(&mut self, function: &mut Function, index: u32, fd: Option<OwnedFd>) -> Result<(), String> {
        let running = self.ring(index)?.running.is_some();
        let set = function.set_irqs(Irq::Msix.index(), index, vec![fd]);
        set.map_err(|_| format!("the device has no interrupt for ring {index}"))?;
        // What was used before may have gone to nobody.
        if running { call(function, index) } else { Ok(()) }
    }

    /// Whether each ring that runs has a kick.
    pub fn kicks_all(&self) -> bool {
        self.rings.iter().enumerate().all(|(index, ring)| ring.running.is_none() || self.kicks.has(index))
    }

    /// Passes kicks on to the model; says whether there were any.
    pub fn take_kicks(&mut self, function: &mut Function) -> Result<bool, String> {
        let (mut kicked, mut done, rings, registers) = (false, Ok(()), &self.rings, &self.registers);
        self.kicks.take(|index| {
            kicked = true;
            if done.is_ok() && rings.get(usize::from(index)).is_some_and(|ring| ring.running.is_some()) {
                done = registers.notify(function, index);
            }
        });
        model(done).map(|()| kicked)
    }

    /// Whether device configuration changed, or the model broke off, since this was asked last. Rings' error eventfds are signalled for that, once each.
    pub fn changed(&mut self, function: &mut Function) -> Result<bool, String> {
        if self.stage != Stage::DriverOk {
            return Ok(false);
        }
        if std::mem::take(&mut self.stale) {
            let (offset, shown) = &self.shown;
            let mut now = vec![0; shown.len()];
            model(self.registers.config(function, *offset, &mut now))?;
            if now != *shown {
                return Ok(true);
            }
        }
        if !model(self.registers.changed(function))? {
            return Ok(false);
        }
        if !self.broken && model(self.registers.status(function))? & status::NEEDS_RESET != 0 {
            self.broken = true;
            tracing::warn!("the device needs a reset: its queues stand still until the front end starts them anew");
            let err = Irq::Err.index();
            for fd in self.rings.iter_mut().filter_map(|ring| ring.err.take()) {
                if function.set_irqs(err, 0, vec![Some(fd)]).is_ok() {
                    let _ = function.trigger(err, 0, 1);
                }
                function.disable_irqs(err);
            }
        }
        Ok(true)
    }

    /// After a change of memory: a ring that is elsewhere now begins there, where it is; one that is nowhere stands still.
    pub fn move_rings(&mut self, function: &mut Function) -> Result<(), String> {
        let (packed, memory) = (self.packed(), &self.memory);
        let moved = |ring: &Ring| {
            let now = ring.addresses.and_then(|at| ring.queue(&at, packed, memory).ok());
            ring.running.is_some_and(|queue| now != Some(queue))
        };
        let moved: Vec<_> = (0..self.rings.len()).filter(|at| moved(&self.rings[*at])).collect();
        for at in moved {
            self.stop(function, at)?;
        }
        self.refresh_all(function)
    }

    fn packed(&self) -> bool {
        self.features.unwrap_or(0) & feature::RING_PACKED != 0
    }

    /// Brings the model to FEATURES_OK.
    fn agree(&mut self, function: &mut Function) -> Result<(), String> {
        if self.stage != Stage::Reset {
            return Ok(());
        }
        let features = self.features.unwrap_or(0) & !wire::feature::PROTOCOL_FEATURES;
        if !model(self.registers.agree(function, features))? {
            return Err(format!(
                "the device does not accept features {features:#x}{}",
                if features & 1 << 32 == 0 { ": VIRTIO_F_VERSION_1 is not among them" } else { "" }
            ));
        }
        (self.stage, self.broken) = (Stage::FeaturesOk, false);
        Ok(())
    }

    /// Whether a ring is to run: all is said of it, it is started and enabled, and the driver is there.
    fn wanted(&self, ring: &Ring) -> bool {
        let Some(features) = self.features else { return false };
        let ready = !self.has_status || self.status & status::DRIVER_OK != 0;
        let enabled = ring.enabled.unwrap_or(features & wire::feature::PROTOCOL_FEATURES == 0);
        ready && enabled && ring.started && ring.size > 0 && ring.addresses.is_some()
    }

    /// Starts a ring that is to run and doesn't, or stops it where it runs and is not to.
    pub fn refresh(&mut self, function: &mut Function, index: u32) -> Result<(), String> {
        let index = index as usize;
        self.refresh_some(function, index..index.saturating_add(1))
    }

    fn refresh_all(&mut self, function: &mut Function) -> Result<(), String> {
        self.refresh_some(function, 0..self.rings.len())
    }

    fn refresh_some(&mut self, function: &mut Function, some: Range<usize>) -> Result<(), String> {
        let mut done = Ok(());
        for index in some {
            match (self.wanted(&self.rings[index]), self.rings[index].running.is_some()) {
                (true, false) => done = done.and(self.start(function, index)),
                (false, true) => self.stop(function, index)?,
                _ => {}
            }
        }
        match self.rings.iter().rposition(|ring| ring.running.is_some()) {
            Some(last) => {
                if let Some(pairs) = self.registers.pairs(last) {
                    function.model().set_queue_pairs(pairs);
                }
            }
            None if self.stage == Stage::DriverOk || done.is_err() || self.has_status && self.status == 0 => {
                model(self.registers.reset(function))?;
                self.stage = Stage::Reset;
            }
            None => {}
        }
        done
    }

    fn start(&mut self, function: &mut Function, at: usize) -> Result<(), String> {
        self.agree(function)?;
        let (packed, index) = (self.packed(), at as u16);
        let ring = &self.rings[at];
        let addresses = ring.addresses.as_ref().ok_or("a ring has no addresses")?;
        let queue = ring.queue(addresses, packed, &self.memory)?;
        let largest = model(self.registers.largest(function, index))?;
        if queue.size > largest {
            return Err(format!(
                "ring {index} has {} entries, where the device has {largest} at the most: give the model entries=",
                queue.size
            ));
        }
        let (record, place) = match &self.inflight {
            Some(inflight) => {
                let (record, place) = inflight.begin(function, at, &queue, packed)?;
                (Some(record), place)
            }
            None => (None, None),
        };
        let base = match (packed, place) {
            (true, Some(place)) => place,
            (true, None) => ring.begins(None)?,
            (false, _) => ring.begins(Some(used_index(function, queue.device)?))?,
        };
        function.model().set_queue_base(index, base);
        if !model(self.registers.enable(function, index, &queue))? {
            return Err(format!("the device does not take ring {index}: {queue:x?}"));
        }
        if let Some(record) = record.filter(|_| packed) {
            record.start(base);
            function.model().set_queue_record(index, record);
        }
        self.rings[at].running = Some(queue);
        if self.stage != Stage::DriverOk {
            model(self.registers.driver_ok(function))?;
            (self.stage, self.stale) = (Stage::DriverOk, true);
        }
        tracing::debug!(index, "a ring runs: {queue:x?}");
        call(function, index.into())
    }

    fn stop(&mut self, function: &mut Function, at: usize) -> Result<(), String> {
        let (packed, index) = (self.packed(), at as u16);
        if let Some(base) = function.model().queue_base(index) {
            self.rings[at].stopped_at(base, packed);
        }
        self.rings[at].running = None;
        tracing::debug!(index, "a ring stands still at {:#x}", self.rings[at].base);
        model(self.registers.reset_queue(function, index))
    }
}

/// Signals whom a ring calls.
fn call(function: &mut Function, index: u32) -> Result<(), String> {
    model(function.trigger(Irq::Msix.index(), index, 1))
}

/// The used index of a split ring whose device area is at `iova` (2.7.8).
fn used_index(function: &Function, iova: u64) -> Result<u16, String> {
    let mut index = [0; 2];
    let read = function.dma(Iova(iova), 4).is_some_and(|used| used.read(2, &mut index));
    if read { Ok(u16::from_le_bytes(index)) } else { Err("a used ring can't be read".to_owned()) }
}

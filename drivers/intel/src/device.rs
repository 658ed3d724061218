//! The device, opened: what its handle and its queues share, and what a reset of it is. The handle that applications hold is elsewhere
//! ([`Nic`](crate::Nic)), and so are the queues' own work ([`Rx`](crate::Rx), [`Tx`](crate::Tx)).

use crate::Options;
use crate::clock::Clock;
use crate::control::{Control, Record, memory};
use crate::error::{Error, Result};
use crate::family::{Direction, Family, QueueId, Vector};
use crate::hardware::Hardware;
use crate::regs::queue;
use crate::rx_ring::RxRing;
use crate::tx_ring::TxRing;
use std::marker::PhantomData;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard};
use wholebar_core::bar::Doorbell;
use wholebar_core::control_plane::{ControlPlane, Driver, QueueContext, Recovery};
use wholebar_core::irq::{EventFd, Interrupts};
use wholebar_core::mem::{Arena, DmaMapping, DmaRing, Pool};
use wholebar_core::net::{Event, Offloads, PortConfig, PortError, RxCounters, TxCounters};
use wholebar_core::pci::PciDevice;
use wholebar_core::reset::{Domain, Gate};

/// Descriptors of a queue, where the configuration does not say.
const RX_DESCRIPTORS: u16 = 512;
const TX_DESCRIPTORS: u16 = 512;

/// What keeps a device open: held by the port's handle and by its queues.
pub(crate) type Handle<F> = ControlPlane<Inner<F>>;

pub(crate) struct Inner<F> {
    pub hw: Hardware,
    pub options: Options,
    pub config: PortConfig,
    pub granted: Offloads,
    pub max_packet: u32,
    pub domain: Domain,
    pub name: String,
    pub queue_context: Arc<QueueContext<Error>>,
    pub rx_counters: Vec<Arc<RxCounters>>,
    pub tx_counters: Vec<Arc<TxCounters>>,
    /// The clock by which packets are stamped, while it runs.
    pub clock: Mutex<Option<Clock>>,
    pub family: PhantomData<F>,
}

/// What a receive queue is made of.
pub(crate) struct RxParts {
    pub index: u16,
    pub gate: Gate,
    pub ring: RxRing,
    pub bell: Doorbell<u32>,
    pub wakeup: Option<Wakeup>,
    pub pool: Pool,
    pub buffers: Arc<DmaMapping>,
}

/// What a send queue is made of.
pub(crate) struct TxParts {
    pub index: u16,
    pub gate: Gate,
    pub ring: TxRing,
    pub bell: Doorbell<u32>,
}

/// A vector, and the registers that open and close it: a one in its bit.
pub(crate) struct Wakeup {
    pub fd: Arc<EventFd>,
    pub bit: u32,
    pub cause: Doorbell<u32>,
    pub unmask: Doorbell<u32>,
    pub mask: Doorbell<u32>,
}

/// How many receive queues, from the first on, have a vector.
pub(crate) fn rx_vectors(config: &PortConfig, interrupts: Option<&Interrupts>) -> u16 {
    let vectors = interrupts.map_or(0, |interrupts| interrupts.count().saturating_sub(1));
    if config.rx_interrupts { config.rx_queues.min(vectors as u16) } else { 0 }
}

impl<F: Family> Inner<F> {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn clock(&self) -> MutexGuard<'_, Option<Clock>> {
        self.clock.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Reads the clock, where it runs, so that it is not seen to come round, and goes on after a reset.
    fn look_at_clock(&self) -> Result<()> {
        if let Some(clock) = &mut *self.clock() {
            clock.now(F::cycles(&self.hw)?);
        }
        Ok(())
    }

    /// How much of a pool's buffers the device may write, in units of 1024 bytes, as devices have it (7.1.3.1).
    pub fn buffers(&self, pool: &Pool) -> Result<u32> {
        let headroom = self.config.headroom;
        let size = pool.size();
        let refuse = |why: String| Err(PortError::Buffers { device: self.hw.name(), size, headroom, why }.into());
        let units = (size.saturating_sub(headroom.into()) / 1024).min(F::BUFFER_KIB);
        if units == 0 {
            return refuse(format!("they must hold the headroom and 1024 bytes, so {}", u32::from(headroom) + 1024));
        }
        if units * 1024 < self.max_packet && !self.granted.scatter {
            let want = self.max_packet.next_multiple_of(1024) + u32::from(headroom);
            let why = format!("packets of {} bytes want {want}, or receive scattering asked for", self.max_packet);
            return refuse(why);
        }
        Ok(units)
    }

    /// What of its `units` a queue's buffers can be used for, where the device has one size for all: as those of the queues that there are.
    fn common_size(&self, control: &Control, pool: &Pool, units: u32) -> Result<u32> {
        let told = control.queues.values().find_map(|record| match record.direction {
            Direction::Rx { kib, .. } => Some(kib),
            Direction::Tx => None,
        });
        match told.filter(|_| F::ONE_BUFFER_SIZE) {
            Some(told) if units < told => {
                let (size, headroom) = (pool.size(), self.config.headroom);
                let want = told * 1024 + u32::from(headroom);
                let why = format!("all of this device's receive queues have buffers of one size, {want} bytes now");
                Err(PortError::Buffers { device: self.hw.name(), size, headroom, why }.into())
            }
            told => Ok(told.unwrap_or(units)),
        }
    }

    /// Whether a queue can be had now.
    fn vacant(&self, control: &Control, id: QueueId, index: u16, of: u16, direction: &'static str) -> Result<()> {
        let why = match control.queues.get(&id) {
            _ if index >= of => "the port was opened with fewer",
            Some(record) if record.orphan => "its last owner dropped it, and the device did not disable it",
            Some(_) => "it is in use",
            None => return Ok(()),
        };
        Err(PortError::NoQueue { device: self.hw.name(), direction, queue: index, why }.into())
    }

    /// Memory for a ring of `entries`, and what `make` makes of it.
    fn ring<R>(
        &self,
        control: &mut Control,
        entries: u16,
        make: impl Fn(Arc<Arena>) -> wholebar_core::Result<R>,
    ) -> Result<(R, Arc<DmaMapping>)> {
        if let Some(mapping) = control.memory.last() {
            match make(mapping.arena().clone()) {
                Err(wholebar_core::Error::ArenaFull { .. }) => {}
                made => return Ok((made?, mapping.clone())),
            }
        }
        let mapping = memory(&self.hw, u64::from(entries) * 16)?;
        control.memory.push(mapping.clone());
        Ok((make(mapping.arena().clone())?, mapping))
    }

    /// Makes a queue known to the device.
    fn record(
        &self,
        control: &mut Control,
        id: QueueId,
        ring: &DmaRing<[AtomicU64; 2]>,
        mapping: Arc<DmaMapping>,
        direction: Direction,
    ) -> Result<()> {
        let record = Record { ring: ring.clone(), mapping, direction, epoch: self.domain.epoch(), orphan: false };
        ring.set_quarantine(true);
        record.create::<F>(&self.hw, id)?;
        control.queues.insert(id, record);
        Ok(())
    }

    pub fn make_rx(
        &self,
        control: &mut Control,
        index: u16,
        pool: &Pool,
        units: u32,
        buffers: Arc<DmaMapping>,
    ) -> Result<RxParts> {
        let id = QueueId::rx(index);
        self.vacant(control, id, index, self.config.rx_queues, "receives")?;
        let units = self.common_size(control, pool, units)?;
        let entries = self.config.rx_descriptors.unwrap_or(RX_DESCRIPTORS);
        let (ring, mapping) = self.ring(control, entries, |arena| RxRing::new(arena, entries.into(), units * 1024))?;
        let bar = &self.hw.bar;
        let bell = bar.doorbell(F::place(id) + queue::TAIL)?;
        let vectors = rx_vectors(&self.config, self.queue_context.interrupts());
        let wakeup = match self.queue_context.interrupts() {
            Some(interrupts) if index < vectors => {
                let Vector { bit, cause, unmask, mask } = F::vector(index);
                let (cause, unmask, mask) = (bar.doorbell(cause)?, bar.doorbell(unmask)?, bar.doorbell(mask)?);
                Some(Wakeup { fd: interrupts.vector(u32::from(index) + 1)?, bit, cause, unmask, mask })
            }
            _ => None,
        };
        // With one queue packets may wait for descriptors; with more they may not, or one full queue holds up the others.
        let direction = Direction::Rx { kib: units, drop: self.config.rx_queues > 1 };
        self.record(control, id, ring.words(), mapping, direction)?;
        let gate = self.domain.join(id.0);
        Ok(RxParts { index, gate, ring, bell, wakeup, pool: pool.clone(), buffers })
    }

    pub fn make_tx(&self, control: &mut Control, index: u16) -> Result<TxParts> {
        let id = QueueId::tx(index);
        self.vacant(control, id, index, self.config.tx_queues, "sends")?;
        let entries = self.config.tx_descriptors.unwrap_or(TX_DESCRIPTORS);
        let (ring, mapping) = self.ring(control, entries, |arena| TxRing::new(arena, entries.into()))?;
        let bell = self.hw.bar.doorbell(F::place(id) + queue::TAIL)?;
        self.record(control, id, ring.words(), mapping, Direction::Tx)?;
        Ok(TxParts { index, gate: self.domain.join(id.0), ring, bell })
    }
}

impl<F: Family> Driver for Inner<F> {
    const NAME: &'static str = F::NAME;
    type State = Control;
    type Event = Event;
    type QueueFault = Error;
    type Error = Error;

    fn recovery(error: &Error, _: &dyn PciDevice) -> Recovery {
        match error {
            Error::Core(wholebar_core::Error::Gone { .. }) => Recovery::Gone,
            Error::Core(wholebar_core::Error::NotReady { .. }) | Error::PhysicalReset { .. } => Recovery::Reset,
            _ => Recovery::Nothing,
        }
    }

    fn stop(&self, control: &mut Control) -> Result<()> {
        // A reset clears its counters.
        if let Err(error) = control.count::<F>(&self.hw).and_then(|()| self.look_at_clock()) {
            tracing::debug!(%error, "before a reset");
        }
        F::reset(&self.hw)
    }

    fn restart(&self, control: &mut Control, _: &[u32]) -> Result<()> {
        self.hw.bus_master(true)?;
        let vectors = rx_vectors(&self.config, self.queue_context.interrupts());
        control.set_up::<F>(&self.hw, self.queue_context.interrupts(), vectors)?;
        if let Some(clock) = &mut *self.clock() {
            clock.resume(F::cycles(&self.hw)?);
        }
        control.recreate::<F>(&self.hw, &self.domain)
    }

    fn poll_events(&self, control: &mut Control, tell: &mut dyn FnMut(Event)) -> Result<()> {
        self.hw.healthy()?;
        let link = control.follow_link::<F>(&self.hw, self.queue_context.interrupts().is_some(), tell)?;
        F::serve(&self.hw, &mut control.settings, link)?;
        control.watchdogs.check(control.link.up, &self.tx_counters, tell);
        self.look_at_clock()?;
        control.count::<F>(&self.hw)
    }
}

/// Has the device forget a queue whose owner drops it; whether it certainly cannot reach its memory any more, and no reset went on without the queue.
pub(crate) fn delete_queue<F: Family>(handle: &Handle<F>, id: QueueId, gate: &mut Gate) -> bool {
    let (driver, lost) = (handle.driver(), gate.epoch().is_none());
    // Nobody waits for it from here on; the device may still.
    gate.leave();
    let deleted = handle.with(|control| {
        let Some(record) = control.queues.get_mut(&id) else { return Ok(()) };
        // In any other epoch the device was reset since, and the queue not made again.
        if record.epoch == driver.domain.epoch() {
            record.orphan = true;
            F::delete(&driver.hw, id)?;
        }
        control.queues.remove(&id);
        Ok(())
    });
    match deleted {
        Ok(()) => !lost,
        Err(error) => {
            tracing::warn!(id = id.0, %error, "a queue could not be disabled");
            !lost && driver.domain.ended().is_some_and(|end| end.harmless)
        }
    }
}

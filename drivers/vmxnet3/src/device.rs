//! The device, opened: what its handle and its queues share, what is under the lock, and what a reset of it is. The handle that applications hold is
//! elsewhere ([`Vmxnet3`](crate::Vmxnet3)), and so are the queues' own work ([`Rx`](crate::Rx), [`Tx`](crate::Tx)).
//!
//! All queues are made when the device is opened, since it has to know them before it starts. One that nobody has, or whose owner dropped it, is
//! *parked* here, with what it has in flight, and looked after.

use crate::Options;
use crate::error::{Error, Result};
use crate::hardware::Hardware;
use crate::member::{Member, QueueId};
use crate::regs::{self, cmd, pt};
use crate::rx::{Receiver, Wakeup};
use crate::rx_ring::{RxRing, Words};
use crate::settings::Settings;
use crate::shared::{QueueSetup, QueueWords, SharedMemory, Start};
use crate::tx::Sender;
use crate::tx_ring::TxRing;
use std::collections::BTreeMap;
use std::sync::Arc;
use wholebar_core::bar::Doorbell;
use wholebar_core::control_plane::{ControlPlane, Driver, QueueContext, Recovery};
use wholebar_core::mem::{Arena, ArenaOptions, DmaMapping};
use wholebar_core::net::{Event, Link, Offloads, PortConfig, RxCounters, TxCounters, TxWatchdogs};
use wholebar_core::pci::PciDevice;

/// Descriptors of a queue, where the configuration does not say.
const DESCRIPTORS: u16 = 512;

/// What keeps a device open: held by the port's handle and by its queues.
pub(crate) type Handle = ControlPlane<Inner>;

/// The driver's part of the control plane.
pub(crate) struct Inner(pub Arc<Shared>);

/// What queues have of their device.
pub(crate) struct Shared {
    pub hw: Hardware,
    pub options: Options,
    pub config: PortConfig,
    pub granted: Offloads,
    /// The largest packet that is sent without being cut, and the largest that is received, in bytes.
    pub max_packet: u32,
    pub max_received: u32,
    /// Buffers of a received packet at most.
    pub segments: u16,
    pub queue_context: Arc<QueueContext<Error>>,
    pub rx_counters: Vec<Arc<RxCounters>>,
    pub tx_counters: Vec<Arc<TxCounters>>,
}

/// What is under the lock.
pub(crate) struct Control {
    pub settings: Settings,
    pub memory: SharedMemory,
    records: Vec<Record>,
    parked: BTreeMap<QueueId, Queue>,
    /// How the link was when it was last looked at.
    pub link: Link,
    /// How often a change of it was told.
    pub link_changes: u64,
    pub watchdogs: TxWatchdogs,
    /// How often the device stopped a queue, or wrote nonsense into its rings.
    pub queue_errors: u64,
}

/// A queue that the device knows of.
struct Record {
    id: QueueId,
    /// Its rings: those of descriptors, that of completions.
    words: Vec<Words>,
    mapping: Arc<DmaMapping>,
    /// What the device counted before its last reset, and since.
    before: [u64; 10],
    since: [u64; 10],
}

/// A queue that can be parked.
pub(crate) trait Parked {
    /// Takes part in resets.
    fn follow_resets(&mut self);

    /// Whether a reset went on without it: it never runs again.
    fn is_lost(&self) -> bool;
}

/// A parked queue.
pub(crate) enum Queue {
    Rx(Box<Receiver>),
    Tx(Box<Sender>),
}

impl Queue {
    fn parked(&mut self) -> &mut dyn Parked {
        match self {
            Self::Rx(queue) => &mut **queue,
            Self::Tx(queue) => &mut **queue,
        }
    }
}

/// What a queue that receives is made of.
pub(crate) struct RxParts {
    pub member: Member,
    pub ring: RxRing,
    pub bells: [Doorbell<u32>; 2],
    pub words: QueueWords,
    pub counters: Arc<RxCounters>,
    pub wakeup: Option<Wakeup>,
}

/// What a queue that sends is made of.
pub(crate) struct TxParts {
    pub member: Member,
    pub ring: TxRing,
    pub bell: Doorbell<u32>,
    pub words: QueueWords,
    pub counters: Arc<TxCounters>,
}

impl Shared {
    /// How many receive queues, from the first on, have a vector. Vector 0 is the slow path's.
    fn rx_vectors(&self) -> u16 {
        let vectors = self.queue_context.interrupts().map_or(0, |interrupts| interrupts.count().saturating_sub(1));
        if self.config.rx_interrupts { self.config.rx_queues.min(vectors as u16) } else { 0 }
    }

    /// A queue's vector: that of receive queue `n` is `n + 1`. Those that interrupt nobody share one that stays masked.
    fn vector(&self, id: QueueId) -> u32 {
        let own = id.receives && id.index < self.rx_vectors();
        match self.queue_context.interrupts() {
            Some(_) => 1 + u32::from(if own { id.index } else { self.rx_vectors() }),
            None => 0,
        }
    }

    fn entries(&self, receives: bool) -> u32 {
        let asked = if receives { self.config.rx_descriptors } else { self.config.tx_descriptors };
        asked.unwrap_or(DESCRIPTORS).into()
    }

    /// Bytes of a queue's rings, at most.
    fn ring_bytes(&self, receives: bool) -> u64 {
        let entries = self.entries(receives);
        if receives { RxRing::bytes(entries) } else { TxRing::bytes(entries) }
    }

    /// Lets the device into an arena of `bytes`.
    fn memory(&self, bytes: u64) -> Result<Arc<DmaMapping>> {
        Ok(self.hw.device.dma().attach(Arena::new(bytes, ArenaOptions::default())?)?)
    }
}

impl Control {
    /// Makes shared memory and all queues, parked. The device does not know of them yet.
    pub fn new(shared: &Arc<Shared>, settings: Settings) -> Result<Self> {
        let (rx, tx) = (shared.config.rx_queues, shared.config.tx_queues);
        let rings = u64::from(rx) * shared.ring_bytes(true) + u64::from(tx) * shared.ring_bytes(false);
        let mapping = shared.memory(SharedMemory::BYTES + rings)?;
        let memory = SharedMemory::new(mapping.clone(), (rx, tx))?;
        let watchdogs = TxWatchdogs::new(tx, shared.options.stall_timeout);
        let (records, parked) = (Vec::new(), BTreeMap::new());
        let (link, link_changes, queue_errors) = (Link::default(), 0, 0);
        let mut new = Self { settings, memory, records, parked, link, link_changes, watchdogs, queue_errors };
        for id in (0..rx).map(QueueId::rx).chain((0..tx).map(QueueId::tx)) {
            let (words, queue) = new.make(shared, id, &mapping)?;
            let (before, since) = Default::default();
            new.records.push(Record { id, words, mapping: mapping.clone(), before, since });
            new.parked.insert(id, queue);
        }
        Ok(new)
    }

    /// Makes a queue, in memory that the device was let into.
    fn make(&self, shared: &Arc<Shared>, id: QueueId, mapping: &Arc<DmaMapping>) -> Result<(Vec<Words>, Queue)> {
        let (index, bar, arena) = (id.index, &shared.hw.pt, mapping.arena());
        let entries = shared.entries(id.receives);
        let (words, member) = (self.memory.queue_words(index, id.receives), Member::new(id, shared));
        if !id.receives {
            let counters = shared.tx_counters.get(usize::from(index)).cloned().unwrap_or_default();
            let (ring, bell) = (TxRing::new(arena, entries)?, bar.doorbell(pt::tx_prod(index))?);
            let rings = ring.words().to_vec();
            return Ok((rings, Queue::Tx(Box::new(Sender::new(TxParts { member, ring, bell, words, counters })))));
        }
        let wakeup = match shared.queue_context.interrupts() {
            Some(interrupts) if index < shared.rx_vectors() => {
                let vector = shared.vector(id);
                Some(Wakeup { fd: interrupts.vector(vector)?, mask: bar.doorbell(pt::imr(vector))? })
            }
            _ => None,
        };
        let counters = shared.rx_counters.get(usize::from(index)).cloned().unwrap_or_default();
        let ring = RxRing::new(arena, entries, shared.segments > 1, index, shared.config.rx_queues)?;
        let [first, second] = pt::rx_prod(index);
        let bells = [bar.doorbell(first)?, bar.doorbell(second)?];
        let rings = ring.words().to_vec();
        Ok((rings, Queue::Rx(Box::new(Receiver::new(RxParts { member, ring, bells, words, counters, wakeup })))))
    }

    /// Takes a queue that is parked.
    pub fn take(&mut self, id: QueueId) -> Option<Queue> {
        self.parked.remove(&id)
    }

    /// Parks a queue; one that was lost is dropped, since there is another in its place.
    pub fn park(&mut self, id: QueueId, mut queue: Queue) {
        if !queue.parked().is_lost() {
            self.parked.insert(id, queue);
        }
    }

    /// Tells the device everything, and starts it. It was reset, and queues have their hands off.
    pub fn bring_up(&mut self, shared: &Shared) -> Result<()> {
        let hw = &shared.hw;
        hw.bus_master(true)?;
        let interrupts = match shared.queue_context.interrupts() {
            // The slow path's, those of queues, and the one that nobody hears.
            Some(_) => Some((hw.masks_itself()?, 2 + u32::from(shared.rx_vectors()))),
            None => None,
        };
        let start = Start { revision: hw.revision, segments: shared.segments, interrupts };
        self.memory.start(&start, &self.settings);
        self.memory.set_quarantine(true);
        for record in &self.records {
            let of = |words: &Words| (record.mapping.iova().offset(words.chunk().offset()), words.len());
            let (Some(first), Some(done)) = (record.words.first(), record.words.last()) else { continue };
            let second = record.words.get(1).unwrap_or(first);
            for words in &record.words {
                words.zero();
                words.set_quarantine(true);
            }
            let setup = QueueSetup { rings: [of(first), of(second)], done: of(done), vector: shared.vector(record.id) };
            self.memory.put_queue(record.id.index, record.id.receives, &setup);
        }
        for vector in 0..interrupts.map_or(1, |(_, vectors)| vectors) {
            hw.mask(vector, true)?;
        }
        hw.activate(self.memory.base())?;
        // Starting it made its address its own again.
        hw.set_address(self.settings.mac)?;
        for command in [cmd::UPDATE_RX_MODE, cmd::UPDATE_MAC_FILTERS, cmd::UPDATE_VLAN_FILTERS] {
            hw.command(command)?;
        }
        if interrupts.is_some() {
            hw.mask(0, false)?;
        }
        Ok(())
    }

    /// Adds up what the device counted.
    pub fn count(&mut self, hw: &Hardware) -> Result<()> {
        hw.query(cmd::GET_STATS)?;
        for Record { id, since, .. } in &mut self.records {
            *since = self.memory.stats(id.index, id.receives);
        }
        Ok(())
    }

    /// What the device counted of each queue, since it was opened.
    pub fn counted(&self) -> impl Iterator<Item = (QueueId, &'static str, u64)> {
        self.records.iter().flat_map(|Record { id, before, since, .. }| {
            let names = if id.receives { regs::RX_STATS } else { regs::TX_STATS };
            names.into_iter().zip(before.iter().zip(since)).map(|(name, (a, b))| (*id, name, a.wrapping_add(*b)))
        })
    }

    /// Takes the device's events: queues that it stopped, and the link.
    fn follow_events(&mut self, shared: &Shared, tell: &mut dyn FnMut(Event)) -> Result<()> {
        let hw = &shared.hw;
        let events = self.memory.events();
        if events != 0 {
            hw.acknowledge(events)?;
            tracing::debug!(device = hw.name(), events, other = events & regs::event::DIC != 0, "events");
        }
        if shared.queue_context.interrupts().is_some() {
            // Its message may have masked it.
            hw.mask(0, false)?;
        }
        if events & (regs::event::RQERR | regs::event::TQERR) != 0 {
            self.find_stopped(hw)?;
        }
        let link = hw.link()?;
        if link != self.link {
            self.link = link;
            self.link_changes += 1;
            tell(Event::Link(link));
        } else if events & regs::event::LINK != 0 {
            tracing::debug!(device = hw.name(), %link, "the link changed and is as it was");
        }
        Ok(())
    }

    /// The queue that the device stopped, as an error.
    fn find_stopped(&mut self, hw: &Hardware) -> Result<()> {
        hw.query(cmd::GET_QUEUE_STATUS)?;
        for Record { id, .. } in &self.records {
            if let Some(error) = self.memory.stopped(id.index, id.receives) {
                self.queue_errors += 1;
                let (device, direction, why) = (hw.name(), id.direction(), regs::why_stopped(error));
                return Err(Error::Stopped { device, direction, queue: id.index, why, error });
            }
        }
        tracing::warn!(device = hw.name(), "it says that it stopped a queue, and stopped none");
        Ok(())
    }
}

impl Driver for Inner {
    const NAME: &'static str = "vmxnet3";
    type State = Control;
    type Event = Event;
    type QueueFault = Error;
    type Error = Error;

    fn recovery(error: &Error, _: &dyn PciDevice) -> Recovery {
        match error {
            Error::Core(wholebar_core::Error::Gone { .. }) => Recovery::Gone,
            Error::Core(wholebar_core::Error::NotReady { .. }) | Error::Stopped { .. } => Recovery::Reset,
            _ => Recovery::Nothing,
        }
    }

    fn stop(&self, control: &mut Control) -> Result<()> {
        // A reset clears its counters.
        if let Err(error) = control.count(&self.0.hw) {
            tracing::debug!(%error, "before a reset");
        }
        for Record { before, since, .. } in &mut control.records {
            for (before, since) in before.iter_mut().zip(std::mem::take(since)) {
                *before = before.wrapping_add(since);
            }
        }
        self.0.hw.reset()
    }

    fn restart(&self, control: &mut Control, lost: &[u32]) -> Result<()> {
        // A lost queue's rings are its owner's still: the device is not told of them again, but of others in their place, which are there to be had.
        for at in 0..control.records.len() {
            let id = control.records[at].id;
            if lost.contains(&id.number()) {
                let mapping = self.0.memory(self.0.ring_bytes(id.receives))?;
                let (words, queue) = control.make(&self.0, id, &mapping)?;
                control.parked.insert(id, queue);
                let record = &mut control.records[at];
                // It was reset, and knows them no more.
                record.words.iter().for_each(|words| words.set_quarantine(false));
                (record.words, record.mapping) = (words, mapping);
            }
        }
        control.bring_up(&self.0)
    }

    fn poll_parked(&self, control: &mut Control) {
        control.parked.values_mut().for_each(|queue| queue.parked().follow_resets());
    }

    fn handle_fault(&self, control: &mut Control, fault: Error) -> Result<Option<String>> {
        control.queue_errors += 1;
        Ok(Some(fault.to_string()))
    }

    fn poll_events(&self, control: &mut Control, tell: &mut dyn FnMut(Event)) -> Result<()> {
        self.0.hw.healthy()?;
        control.follow_events(&self.0, tell)?;
        control.watchdogs.check(control.link.up, &self.0.tx_counters, tell);
        control.count(&self.0.hw)
    }

    fn release(&self, control: &mut Control) {
        control.memory.set_quarantine(false);
        control.records.iter().flat_map(|record| &record.words).for_each(|words| words.set_quarantine(false));
    }
}

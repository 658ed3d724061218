//! A device, opened: the handle that applications hold. Its queues are values of their own ([`Rx`], [`Tx`]).

use crate::control::{Control, QueueId, Record, Totals, memory};
use crate::error::{Error, Result};
use crate::hardware::Hardware;
use crate::options::{Options, Service};
use crate::regs::{self, queue};
use crate::rx::{Rx, RxParts, Wakeup};
use crate::rx_ring::RxRing;
use crate::settings::{MAX_MTU, MIN_MTU, RSS_TABLE, Settings};
use crate::tx::{Tx, TxParts};
use crate::tx_ring::TxRing;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use wholebar_core::bar::Bar;
use wholebar_core::channel::Receiver;
use wholebar_core::control_plane::{ControlPlane, Driver, QueueContext, Recovery};
use wholebar_core::irq::{EventFd, Interrupts};
use wholebar_core::mem::{Arena, DmaMapping, DmaRing, Pool};
use wholebar_core::net::{Event, Limits, Link, Offloads, PortConfig, Rss, RxCounters, TxCounters, TxWatchdog};
use wholebar_core::pci::{Irq, Opening, PciDevice};
use wholebar_core::reset::Domain;

/// An 82576, one port of it. Its queues keep it open; it is reset when the last of them and this handle are dropped.
pub struct Igb(pub(crate) Arc<Handle>);

/// What keeps a device open: held by [`Igb`] and by its queues.
pub(crate) type Handle = ControlPlane<Inner>;

pub(crate) struct Inner {
    pub hw: Hardware,
    pub options: Options,
    pub config: PortConfig,
    pub limits: Limits,
    pub granted: Offloads,
    pub max_packet: u32,
    pub domain: Domain,
    name: String,
    queue_context: Arc<QueueContext<Error>>,
    pub rx_counters: Vec<Arc<RxCounters>>,
    pub tx_counters: Vec<Arc<TxCounters>>,
}

/// Descriptors of a queue.
const MIN_DESCRIPTORS: u16 = 8;
const MAX_DESCRIPTORS: u16 = 4096;
const RX_DESCRIPTORS: u16 = 512;
const TX_DESCRIPTORS: u16 = 512;
/// The Ethernet payload that every network has, in bytes.
const MTU: u16 = 1500;

/// What the device can be asked for.
const LIMITS: Limits = Limits {
    rx_queues: regs::QUEUES,
    tx_queues: regs::QUEUES,
    descriptors: MAX_DESCRIPTORS,
    mtu: MAX_MTU,
    offloads: Offloads {
        rx_checksum: true,
        tx_l4_checksum: true,
        tx_l3_checksum: true,
        vlan_strip: true,
        vlan_insert: true,
        vlan_filter: true,
        rss_hash: true,
        scatter: true,
        gather: true,
        ..Offloads::NONE
    },
    rss_table: RSS_TABLE,
};

impl Igb {
    /// Opens a device: resets it, reads its address, tells it what it is asked to be, and has it look for a link, which takes up to a
    /// few seconds: [`Event::Link`] tells.
    ///
    /// # Errors
    /// [`Error::Unfit`] where it isn't one for this driver; [`Error::Queues`], [`Error::Descriptors`], [`Error::Mtu`], [`Error::Rss`] where it
    /// is asked for what it hasn't; [`NotReady`](wholebar_core::Error::NotReady) where it does not come up; [`Gone`](wholebar_core::Error::Gone) where nobody answers; what lies below.
    pub fn open(device: Arc<dyn PciDevice>, config: PortConfig, options: Options) -> Result<Self> {
        let rss = check(device.name(), &config)?;
        let _opening = Opening::of(&device);
        let hw = Hardware::open(device, &options)?;
        // Whoever had it before may have left it running.
        hw.bus_master(false)?;
        hw.reset()?;
        let granted = config.offloads.and(LIMITS.offloads);
        let settings = Settings {
            mac: hw.address()?,
            promiscuous: config.promiscuous,
            all_multicast: false,
            filters: Vec::new(),
            // VLAN 0 is no VLAN, but a priority.
            vlans: std::array::from_fn(|i| u32::from(i == 0)),
            rss,
            mtu: config.mtu.unwrap_or(MTU),
            granted,
        };
        let max_packet = settings.max_packet();
        let queues = if config.rx_interrupts { u32::from(config.rx_queues) } else { 0 };
        let queue_context =
            QueueContext::new(&hw.device, Interrupts::first_of(hw.device.clone(), &[Irq::Msix], 1 + queues)?)?;
        let mut control = Control {
            settings,
            queues: BTreeMap::new(),
            memory: Vec::new(),
            link: Link::default(),
            link_changes: 0,
            watchdogs: (0..config.tx_queues).map(|_| TxWatchdog::new(options.stall_timeout)).collect(),
            stalls: 0,
            totals: Totals::default(),
        };
        let vectors = rx_vectors(&config, queue_context.interrupts());
        let started = hw.bus_master(true).and_then(|()| control.set_up(&hw, queue_context.interrupts(), vectors));
        if let Err(error) = started {
            let _ = hw.bus_master(false);
            return Err(error);
        }
        let (service, patience) = (options.service, options.stop_timeout);
        let inner = Inner {
            name: hw.name(),
            hw,
            options,
            limits: LIMITS,
            granted,
            max_packet,
            domain: queue_context.domain().clone(),
            queue_context: queue_context.clone(),
            rx_counters: (0..config.rx_queues).map(|_| Arc::default()).collect(),
            tx_counters: (0..config.tx_queues).map(|_| Arc::default()).collect(),
            config,
        };
        let mut control_plane = ControlPlane::new(inner, control, queue_context, patience)?;
        if service == Service::Thread {
            control_plane.spawn()?;
        }
        Ok(Self(Arc::new(control_plane)))
    }

    /// BAR0, as it was mapped.
    pub fn bar(&self) -> &Bar {
        &self.0.driver().hw.bar
    }

    /// The device below.
    pub fn device(&self) -> &Arc<dyn PciDevice> {
        &self.0.driver().hw.device
    }

    /// Its MSI-X vectors, where it has some: 0 is the link's, `n + 1` receive queue `n`'s.
    pub fn interrupts(&self) -> Option<&Interrupts> {
        self.0.queue_context().interrupts()
    }

    /// Lets the device into an arena, so that its queues can use buffers there. Once more changes nothing.
    ///
    /// # Errors
    /// What the address space says.
    pub fn attach(&self, arena: &Arc<Arena>) -> Result<()> {
        Ok(self.0.queue_context().attach(arena).map(drop)?)
    }

    /// Takes an arena away from the device: it can't reach it any more when this returns.
    ///
    /// # Errors
    /// [`wholebar_core::Error::StillAttached`] while a queue is there that was given buffers of it; nothing has changed then.
    pub fn detach(&self, arena: &Arc<Arena>) -> Result<()> {
        Ok(self.0.queue_context().detach(arena)?)
    }

    /// A queue that receives, into buffers of `pool`, whose arena is attached. Best are buffers that hold the headroom and a multiple of 1024
    /// bytes, the largest packet in one: 2048 bytes and the headroom for an MTU of 1500.
    ///
    /// # Errors
    /// [`Error::NoQueue`], [`Error::Buffers`]; what the device says.
    pub fn rx(&self, index: u16, pool: &Pool) -> Result<Rx> {
        let inner = &self.0;
        let split = inner.driver().buffers(pool)?;
        let mapping = inner.queue_context().attach(pool.arena())?;
        let parts = inner.with(|control| inner.driver().make_rx(control, index, pool, split, mapping))?;
        Ok(Rx::new(inner.clone(), parts))
    }

    /// A queue that sends.
    ///
    /// # Errors
    /// [`Error::NoQueue`]; what the device says.
    pub fn tx(&self, index: u16) -> Result<Tx> {
        let inner = &self.0;
        let parts = inner.with(|control| inner.driver().make_tx(control, index))?;
        Ok(Tx::new(inner.clone(), parts))
    }

    /// What happens to the device. While 256 events wait here, further ones are dropped.
    pub fn events(&self) -> &Receiver<Event> {
        self.0.events()
    }

    /// Resets the device, and waits until its queues can go on. Packets in flight may have been sent or not.
    ///
    /// Queues have to be polled meanwhile, on other threads; a thread that polls them itself calls [`request_reset`](Self::request_reset),
    /// and then [`service`](Self::service) between its polls.
    ///
    /// # Errors
    /// [`Unresponsive`](wholebar_core::Error::Unresponsive) where queues were not polled, [`Ended`](wholebar_core::Error::Ended) or [`Gone`](wholebar_core::Error::Gone) where the reset did not work.
    pub fn reset(&self) -> Result<()> {
        Ok(self.0.reset()?)
    }

    /// Begins to reset the device. [`service`](Self::service) goes on with it.
    pub fn request_reset(&self) {
        self.0.request_reset();
    }

    /// Does what there is to do on the slow path: the link, counters, resets. Returns whether it wants to be called again soon. For those who
    /// chose [`Service::Manual`]; it waits for the device, but not for queues.
    ///
    /// # Errors
    /// [`Gone`](wholebar_core::Error::Gone) or [`Ended`](wholebar_core::Error::Ended), from when that is so.
    pub fn service(&self) -> Result<bool> {
        Ok(self.0.service()?)
    }

    /// What is signalled when there is something for [`service`](Self::service) to do at once.
    pub fn wakeup(&self) -> &Arc<EventFd> {
        self.0.queue_context().wake()
    }

    /// Whether the device can be used.
    ///
    /// # Errors
    /// [`Gone`](wholebar_core::Error::Gone) or [`Ended`](wholebar_core::Error::Ended) where it can't.
    pub fn check(&self) -> Result<()> {
        Ok(self.0.check()?)
    }

    /// Buffers that were never given back, because the device may still write them.
    pub fn quarantined(&self) -> u64 {
        self.0.driver().domain.quarantined()
    }

    /// Resets the device for good. Queues end.
    ///
    /// # Errors
    /// [`NotReady`](wholebar_core::Error::NotReady) where the device does not stop in time, [`Gone`](wholebar_core::Error::Gone) or [`Ended`](wholebar_core::Error::Ended) where it can't be used.
    pub fn close(self) -> Result<()> {
        self.0.shut_down()
    }

    /// Changes settings, and tells the device.
    pub(crate) fn set(
        &self,
        change: impl FnOnce(&mut Settings),
        apply: impl FnOnce(&Settings, &Hardware) -> Result<()>,
    ) -> Result<()> {
        self.0.with(|control| {
            change(&mut control.settings);
            apply(&control.settings, &self.0.driver().hw)
        })
    }
}

/// Whether the device can be that; how packets are spread then.
fn check(device: &str, config: &PortConfig) -> Result<Option<Rss>> {
    let name = || device.to_owned();
    for (direction, asked, most) in
        [("receive", config.rx_queues, LIMITS.rx_queues), ("send", config.tx_queues, LIMITS.tx_queues)]
    {
        if !(1..=most).contains(&asked) {
            return Err(Error::Queues { device: name(), direction, asked, most });
        }
    }
    for asked in [config.rx_descriptors, config.tx_descriptors].into_iter().flatten() {
        let (least, most) = (MIN_DESCRIPTORS, MAX_DESCRIPTORS);
        if !asked.is_power_of_two() || !(least..=most).contains(&asked) {
            return Err(Error::Descriptors { device: name(), asked, least, most });
        }
    }
    if let Some(asked) = config.mtu.filter(|mtu| !(MIN_MTU..=MAX_MTU).contains(mtu)) {
        return Err(Error::Mtu { device: name(), asked, least: MIN_MTU, most: MAX_MTU });
    }
    // Without spreading there is no hash either.
    let wanted = config.rx_queues > 1 || config.offloads.rss_hash;
    let evenly = || wanted.then(|| Rss::evenly(config.rx_queues, RSS_TABLE));
    let rss = config.rss.clone().or_else(evenly);
    if let Some(rss) = &rss {
        Settings::check_rss(rss, config.rx_queues).map_err(|why| Error::Rss { device: name(), why })?;
    }
    Ok(rss)
}

/// How many receive queues, from the first on, have a vector.
fn rx_vectors(config: &PortConfig, interrupts: Option<&Interrupts>) -> u16 {
    let vectors = interrupts.map_or(0, |interrupts| interrupts.count().saturating_sub(1));
    if config.rx_interrupts { config.rx_queues.min(vectors as u16) } else { 0 }
}

impl Inner {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How much of a pool's buffers the device may write, as SRRCTL has it: in units of 1024 bytes (7.1.3.1).
    fn buffers(&self, pool: &Pool) -> Result<u32> {
        let headroom = self.config.headroom;
        let size = pool.size();
        let refuse = |why: String| Err(Error::Buffers { device: self.hw.name(), size, headroom, why });
        let units = (size.saturating_sub(headroom.into()) / 1024).min(16);
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

    /// Whether a queue can be had now.
    fn vacant(&self, control: &Control, id: QueueId, index: u16, of: u16, direction: &'static str) -> Result<()> {
        let why = match control.queues.get(&id) {
            _ if index >= of => "the port was opened with fewer",
            Some(record) if record.orphan => "its last owner dropped it, and the device did not disable it",
            Some(_) => "it is in use",
            None => return Ok(()),
        };
        Err(Error::NoQueue { device: self.hw.name(), direction, queue: index, why })
    }

    /// Memory for a ring of `entries`, and what `make` makes of it.
    fn ring<R>(
        &self,
        control: &mut Control,
        entries: u16,
        make: impl Fn(&Arc<Arena>) -> wholebar_core::Result<R>,
    ) -> Result<(R, Arc<DmaMapping>)> {
        if let Some(mapping) = control.memory.last() {
            match make(mapping.arena()) {
                Err(wholebar_core::Error::ArenaFull { .. }) => {}
                made => return Ok((made?, mapping.clone())),
            }
        }
        let mapping = memory(&self.hw, u64::from(entries) * 16)?;
        control.memory.push(mapping.clone());
        Ok((make(mapping.arena())?, mapping))
    }

    /// Makes a queue known to the device.
    fn record(
        &self,
        control: &mut Control,
        id: QueueId,
        ring: &DmaRing<[AtomicU64; 2]>,
        mapping: Arc<DmaMapping>,
        split: Option<u32>,
    ) -> Result<()> {
        let record = Record { ring: ring.clone(), mapping, split, epoch: self.domain.epoch(), orphan: false };
        ring.set_quarantine(true);
        control.create(&self.hw, id, &record)?;
        control.queues.insert(id, record);
        Ok(())
    }

    fn make_rx(
        &self,
        control: &mut Control,
        index: u16,
        pool: &Pool,
        units: u32,
        buffers: Arc<DmaMapping>,
    ) -> Result<RxParts> {
        let id = QueueId::rx(index);
        self.vacant(control, id, index, self.config.rx_queues, "receives")?;
        let entries = self.config.rx_descriptors.unwrap_or(RX_DESCRIPTORS);
        let (ring, mapping) = self.ring(control, entries, |arena| RxRing::new(arena, entries.into(), units * 1024))?;
        let bar = &self.hw.bar;
        let bell = bar.doorbell(regs::rx_queue(index) + queue::TAIL)?;
        let vectors = rx_vectors(&self.config, self.queue_context.interrupts());
        let wakeup = match self.queue_context.interrupts() {
            Some(interrupts) if index < vectors => {
                let vector = u32::from(index) + 1;
                let register = |register| bar.doorbell(register);
                let registers = (register(regs::EICR)?, register(regs::EIMS)?, register(regs::EIMC)?);
                Some(Wakeup::new(interrupts.vector(vector)?, vector, registers))
            }
            _ => None,
        };
        // With one queue packets may wait for descriptors; with more they may not, or one full queue holds up the others.
        let drop = if self.config.rx_queues > 1 { queue::SPLIT_DROP } else { 0 };
        self.record(control, id, ring.words(), mapping, Some(queue::SPLIT_ONE_BUFFER | drop | units))?;
        let gate = self.domain.join(id.0);
        Ok(RxParts { index, gate, ring, bell, wakeup, pool: pool.clone(), buffers })
    }

    fn make_tx(&self, control: &mut Control, index: u16) -> Result<TxParts> {
        let id = QueueId::tx(index);
        self.vacant(control, id, index, self.config.tx_queues, "sends")?;
        let entries = self.config.tx_descriptors.unwrap_or(TX_DESCRIPTORS);
        let (ring, mapping) = self.ring(control, entries, |arena| TxRing::new(arena, entries.into()))?;
        let bell = self.hw.bar.doorbell(regs::tx_queue(index) + queue::TAIL)?;
        self.record(control, id, ring.words(), mapping, None)?;
        Ok(TxParts { index, gate: self.domain.join(id.0), ring, bell })
    }
}

impl Driver for Inner {
    const NAME: &'static str = "igb";
    type State = Control;
    type Event = Event;
    type QueueFault = Error;
    type Error = Error;

    fn recovery(error: &Error, _: &dyn PciDevice) -> Recovery {
        match error {
            Error::Core(wholebar_core::Error::Gone { .. }) => Recovery::Gone,
            Error::Core(wholebar_core::Error::NotReady { .. }) => Recovery::Reset,
            _ => Recovery::Nothing,
        }
    }

    fn stop(&self, control: &mut Control) -> Result<()> {
        // A reset clears its counters.
        if let Err(error) = control.count(&self.hw) {
            tracing::debug!(%error, "before a reset");
        }
        self.hw.reset()
    }

    fn restart(&self, control: &mut Control, _: &[u32]) -> Result<()> {
        self.hw.bus_master(true)?;
        let vectors = rx_vectors(&self.config, self.queue_context.interrupts());
        control.set_up(&self.hw, self.queue_context.interrupts(), vectors)?;
        control.recreate(&self.hw, &self.domain)
    }

    fn poll_events(&self, control: &mut Control, tell: &mut dyn FnMut(Event)) -> Result<()> {
        self.hw.healthy()?;
        control.follow_link(&self.hw, self.queue_context.interrupts().is_some(), tell)?;
        control.check_stalls(&self.tx_counters, tell);
        control.count(&self.hw)
    }
}

/// Has the device forget a queue whose owner drops it; whether it certainly cannot reach its memory any more.
pub(crate) fn delete_queue(handle: &Handle, id: QueueId) -> bool {
    let driver = handle.driver();
    let deleted = handle.with(|control| {
        let Some(record) = control.queues.get_mut(&id) else { return Ok(()) };
        // In any other epoch the device was reset since, and the queue not made again.
        if record.epoch == driver.domain.epoch() {
            record.orphan = true;
            control.delete(&driver.hw, id)?;
        }
        control.queues.remove(&id);
        Ok(())
    });
    match deleted {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(id = id.0, %error, "a queue could not be disabled");
            driver.domain.ended().is_some_and(|end| end.harmless)
        }
    }
}

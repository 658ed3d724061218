//! The port: the handle that applications hold. Its queues are values of their own ([`Rx`], [`Tx`]).

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

/// One port of an 82576.
///
/// DPDK: the PMD `net_e1000_igb`.
///
/// Its queues keep it open; the device is reset when this handle and the last of them are dropped. Every method can be called from any thread while
/// queues are polled on others. Link, filters and statistics are in its implementation of [`Port`](wholebar_core::net::Port).
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
    /// Opens a port: resets the device, reads its address, configures it as `config` says, and brings the link up.
    ///
    /// The link takes up to a few seconds more: [`Event::Link`] reports it. An offload that the device does not have is left out.
    ///
    /// # Errors
    /// [`Error::Unfit`] where the device is none for this driver; [`Error::Queues`], [`Error::Descriptors`], [`Error::Mtu`] or [`Error::Rss`] where
    /// `config` asks for what the device does not have; [`NotReady`](wholebar_core::Error::NotReady) where it does not come up;
    /// [`Gone`](wholebar_core::Error::Gone) where nothing answers; [`Error::Core`] where BAR0, interrupts or memory cannot be had.
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

    /// Returns BAR0, as it was mapped.
    pub fn bar(&self) -> &Bar {
        &self.0.driver().hw.bar
    }

    /// Returns the PCI device.
    pub fn device(&self) -> &Arc<dyn PciDevice> {
        &self.0.driver().hw.device
    }

    /// Returns the MSI-X vectors, where the device has some: 0 is the link's, `n + 1` that of receive queue `n`.
    pub fn interrupts(&self) -> Option<&Interrupts> {
        self.0.queue_context().interrupts()
    }

    /// Maps an arena for the device, so that its queues can use buffers there. For an arena that is attached already it does nothing. (DPDK:
    /// `rte_dev_dma_map`.)
    ///
    /// # Errors
    /// [`Error::Core`], with what [`DmaSpace::attach`](wholebar_core::mem::DmaSpace::attach) returned.
    pub fn attach(&self, arena: &Arc<Arena>) -> Result<()> {
        Ok(self.0.queue_context().attach(arena).map(drop)?)
    }

    /// Unmaps an arena from the device: when this returns, the device cannot reach it any more. For an arena that is not attached it does nothing.
    ///
    /// # Errors
    /// [`StillAttached`](wholebar_core::Error::StillAttached) while a queue exists that was given buffers of it. Nothing has changed then.
    pub fn detach(&self, arena: &Arc<Arena>) -> Result<()> {
        Ok(self.0.queue_context().detach(arena)?)
    }

    /// Returns receive queue `index`, from 0, which takes its buffers from `pool`; the pool's arena is attached. A dropped queue can be had again.
    ///
    /// The device writes a multiple of 1024 bytes into each buffer, behind the headroom. Best are buffers that hold the largest packet so: 2048 bytes
    /// and the headroom for an MTU of 1500.
    ///
    /// # Errors
    /// [`Error::Buffers`] where the buffers are too small; [`Error::NoQueue`] where the port has no such queue, or it is in use;
    /// [`NotReady`](wholebar_core::Error::NotReady) where the device does not enable it; [`Error::Core`] where memory cannot be had;
    /// [`Gone`](wholebar_core::Error::Gone) or [`Ended`](wholebar_core::Error::Ended) where the device is that.
    pub fn rx(&self, index: u16, pool: &Pool) -> Result<Rx> {
        let inner = &self.0;
        let split = inner.driver().buffers(pool)?;
        let mapping = inner.queue_context().attach(pool.arena())?;
        let parts = inner.with(|control| inner.driver().make_rx(control, index, pool, split, mapping))?;
        Ok(Rx::new(inner.clone(), parts))
    }

    /// Returns send queue `index`, from 0. A dropped queue can be had again.
    ///
    /// # Errors
    /// [`Error::NoQueue`] where the port has no such queue, or it is in use; [`NotReady`](wholebar_core::Error::NotReady) where the device does not
    /// enable it; [`Error::Core`] where memory cannot be had; [`Gone`](wholebar_core::Error::Gone) or [`Ended`](wholebar_core::Error::Ended) where
    /// the device is that.
    pub fn tx(&self, index: u16) -> Result<Tx> {
        let inner = &self.0;
        let parts = inner.with(|control| inner.driver().make_tx(control, index))?;
        Ok(Tx::new(inner.clone(), parts))
    }

    /// Returns the receiver of the port's events. While 256 wait, further ones are dropped.
    pub fn events(&self) -> &Receiver<Event> {
        self.0.events()
    }

    /// Resets the device, and returns when its queues can go on. Packets in flight may have been sent or not.
    ///
    /// Queues must be polled on other threads meanwhile; one that is not, within [`Options::stop_timeout`], is lost. A thread that polls queues
    /// itself calls [`request_reset`](Self::request_reset) instead, and then [`service`](Self::service) between its polls.
    ///
    /// # Errors
    /// [`Unresponsive`](wholebar_core::Error::Unresponsive) where queues were not polled; [`Ended`](wholebar_core::Error::Ended) or
    /// [`Gone`](wholebar_core::Error::Gone) where the reset failed.
    pub fn reset(&self) -> Result<()> {
        Ok(self.0.reset()?)
    }

    /// Begins a reset of the device and returns at once. [`service`](Self::service), or the slow path's thread, continues it.
    pub fn request_reset(&self) {
        self.0.request_reset();
    }

    /// Does the slow path's work: link, counters, resets. Returns whether it wants to be called again soon.
    ///
    /// For programs that chose [`Service::Manual`]. It waits for the device, never for queues.
    ///
    /// # Errors
    /// [`Gone`](wholebar_core::Error::Gone) or [`Ended`](wholebar_core::Error::Ended), as soon as the device is that.
    pub fn service(&self) -> Result<bool> {
        Ok(self.0.service()?)
    }

    /// Returns the eventfd that is signalled when [`service`](Self::service) has something to do at once.
    pub fn wakeup(&self) -> &Arc<EventFd> {
        self.0.queue_context().wake()
    }

    /// Checks that the device can be used. It takes a lock, and reads no register.
    ///
    /// # Errors
    /// [`Gone`](wholebar_core::Error::Gone) or [`Ended`](wholebar_core::Error::Ended) where it cannot.
    pub fn check(&self) -> Result<()> {
        Ok(self.0.check()?)
    }

    /// Returns the number of buffers that were quarantined, because the device may still write them.
    pub fn quarantined(&self) -> u64 {
        self.0.driver().domain.quarantined()
    }

    /// Resets the device for good. Queues end.
    ///
    /// # Errors
    /// [`NotReady`](wholebar_core::Error::NotReady) where the device does not stop in time; [`Gone`](wholebar_core::Error::Gone) or
    /// [`Ended`](wholebar_core::Error::Ended) where it was that before.
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

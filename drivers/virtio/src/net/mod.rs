//! Network devices (VIRTIO 1.2, 5.1): the handle that applications hold. Its queues are values of their own.

mod coalescing;
mod config;
mod control;
mod header;
mod owned;
mod port;
mod rx;
mod tx;
mod watch;

use crate::device::{self, DeviceType, Handle, Parked, Parts, Record, Shared};
use crate::error::{Error, Result};
use crate::feature::net as bit;
use crate::hardware::Hardware;
use crate::life::Life;
use crate::options::Options;
use crate::ring::{Packed, Ring, Split};
use config::Facts;
use control::{Command, ControlQueue};
use rx::{AnyReceiver, Layout, Receiver};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tx::{Allowed, AnySender, Sender};
use watch::{Reminder, Watch};
use wholebar_core::bar::{Bar, Doorbell};
pub use wholebar_core::irq::Coalescing;
use wholebar_core::mem::{DmaMapping, Pool};
use wholebar_core::net::{Event, Limits, Link, Mac, Offloads, PortConfig, Rss, RxCounters, TxCounters};
use wholebar_core::pci::{self, PciDevice};

/// The type of network devices (5.1.1).
const TYPE: u16 = 1;
/// The PCI vendor and device ids of network devices, modern and transitional (4.1.2.1).
pub const NET_IDS: [(u16, u16); 2] = [(0x1af4, 0x1041), (0x1af4, 0x1000)];
/// Descriptors of a queue where nobody says, if the device has as many.
const DESCRIPTORS: u16 = 256;
/// Descriptors of the control queue.
const CONTROL_DESCRIPTORS: u16 = 4;
/// Bytes of an Ethernet header with a VLAN tag.
const LINK_HEADER: u32 = 18;
/// Bytes of a packet for which a buffer has room at least, whatever the MTU, where it cannot be in several: with the header, 1526 (5.1.6.3.1).
const LEAST_PACKET: u32 = 1514;

/// A virtio network device.
///
/// Its queues keep it open; it is shut down when this handle and the last of them are dropped. All that is not here is in its implementation of
/// [`Port`](wholebar_core::net::Port): configuration, queues, statistics, reset.
pub struct Net(Arc<Handle<Ethernet>>);

/// Makes a virtqueue as the device is told of it, given its memory, number, descriptors, doorbell.
type Make = dyn Fn(&Arc<Shared>, &Arc<DmaMapping>, u16, u16, Doorbell<u16>) -> Result<(Record, Queue)> + Send + Sync;

/// What a network device is, besides a virtio device.
pub(crate) struct Ethernet {
    make: Box<Make>,
    name: String,
    limits: Limits,
    granted: Offloads,
    facts: Facts,
    /// The address of a device that has none.
    chosen: Option<Mac>,
    pairs: u16,
    mtu: u16,
    layout: Layout,
    /// Descriptors of each queue that receives.
    rx_sizes: Vec<u16>,
    counters: Vec<(Arc<RxCounters>, Arc<TxCounters>)>,
    /// As it was when it was last looked at.
    link: Mutex<Link>,
    /// How often a change of it was told. Relaxed on both sides: a count, by which nothing else is read.
    link_changes: AtomicU64,
    /// How often a queue that sends was told to be stuck. Relaxed, too.
    stalls: AtomicU64,
}

/// What of it is under the lock.
pub(crate) struct State {
    control: Option<ControlQueue>,
    wanted: Wanted,
    /// One a pair of queues.
    watches: Vec<Watch>,
}

/// What the device is told, again after each reset.
#[derive(Default)]
struct Wanted {
    mac: Option<Mac>,
    promiscuous: bool,
    all_multicast: bool,
    filters: Vec<Mac>,
    vlans: BTreeSet<u16>,
    rss: Option<Rss>,
    coalescing: coalescing::Wanted,
}

/// A parked queue.
pub(crate) enum Queue {
    Rx(Box<dyn AnyReceiver>),
    Tx(Box<dyn AnySender>),
}

impl Parked for Queue {
    fn is_lost(&self) -> bool {
        match self {
            Self::Rx(queue) => queue.is_lost(),
            Self::Tx(queue) => queue.is_lost(),
        }
    }

    fn check_timeouts(&mut self) {
        match self {
            Self::Rx(queue) => queue.check_timeouts(),
            Self::Tx(queue) => queue.check_timeouts(),
        }
    }
}

impl Net {
    /// Opens a network device: resets it, negotiates features, creates its queues and starts it (3.1.1).
    ///
    /// The device has receive and send queues in pairs, so `config` asks for as many of one kind as of the other. An offload that the device does not
    /// offer is left out.
    ///
    /// # Errors
    /// [`Error::Unfit`] or [`Error::Legacy`] where the device is none for this driver; [`Error::Bypass`] where it does not go through the IOMMU;
    /// [`Error::Unavailable`] for what `config` asks for and the device does not have; [`Gone`](wholebar_core::Error::Gone) where nothing answers;
    /// [`Error::Core`] where BARs, interrupts or memory cannot be had.
    pub fn open(device: Arc<dyn PciDevice>, config: &PortConfig, options: Options) -> Result<Self> {
        let _opening = pci::Opening::of(device.clone());
        let hw = Hardware::open(device, TYPE, &options)?;
        let facts = Facts::of(&hw)?;
        let pairs = config.rx_queues;
        if pairs != config.tx_queues || pairs == 0 || pairs > facts.max_pairs {
            let (tx, most) = (config.tx_queues, facts.max_pairs);
            let what = format!(
                "{pairs} queues that receive and {tx} that send cannot be had: it has pairs of them, {most} at most"
            );
            return Err(hw.unavailable(what));
        }
        let mtu = facts.mtu(&hw, config)?;
        if config.rss.is_some() && hw.offered & bit::RSS == 0 {
            return Err(hw.unavailable("it does not spread packets by RSS".to_owned()));
        }
        if config.promiscuous && hw.offered & bit::CTRL_RX == 0 {
            return Err(hw.unavailable("it has no promiscuous mode".to_owned()));
        }
        let (features, granted) = config::features(&hw, &facts, mtu, config);
        let features = features | hw.common_features(&options);
        let open = Opening { config, facts, mtu, granted, pairs };
        match features & crate::feature::RING_PACKED {
            0 => open.with::<Split>(hw, options, features),
            _ => open.with::<Packed>(hw, options, features),
        }
    }

    /// Returns the PCI device.
    pub fn device(&self) -> &Arc<dyn PciDevice> {
        &self.0.driver().shared.hw.device
    }

    /// Returns the device's BARs, as they were mapped.
    pub fn bars(&self) -> &[Bar] {
        &self.0.driver().shared.hw.bars
    }

    /// Returns the negotiated features, by their bits (VIRTIO 1.2, 2.2).
    pub fn features(&self) -> u64 {
        self.0.driver().shared.features
    }

    /// Begins a reset of the device and returns at once. [`service`](Self::service), or the slow path's thread, continues it.
    pub fn request_reset(&self) {
        self.0.request_reset();
    }

    /// Does the slow path's work: configuration changes, resets. Returns whether it wants to be called again soon. For programs that chose
    /// [`Service::Manual`](crate::Service::Manual).
    ///
    /// # Errors
    /// [`Gone`](wholebar_core::Error::Gone) or [`Ended`](wholebar_core::Error::Ended), as soon as the device is that.
    pub fn service(&self) -> Result<bool> {
        Ok(self.0.service()?)
    }

    /// Checks that the device can be used. It takes a lock, and does not ask the device.
    ///
    /// # Errors
    /// [`Gone`](wholebar_core::Error::Gone) or [`Ended`](wholebar_core::Error::Ended) where it cannot.
    pub fn check(&self) -> Result<()> {
        Ok(self.0.check()?)
    }

    /// Returns the number of buffers that were quarantined, because the device may still write them.
    pub fn quarantined(&self) -> u64 {
        self.0.driver().shared.domain.quarantined()
    }

    /// Sets when a queue that receives interrupts: queue `queue`, or all of them. It lasts through resets. (Linux: `ethtool -C`, rx-usecs and rx-frames.)
    ///
    /// # Errors
    /// [`Error::Unavailable`] where the device was opened without [`PortConfig::rx_interrupts`], does not offer VIRTIO_NET_F_NOTF_COAL, or, for a single
    /// queue, VIRTIO_NET_F_VQ_NOTF_COAL; where there is no such queue; for a time of more than 2^32 - 1 microseconds. [`Error::Refused`] where the device
    /// refuses it: then all is as before.
    pub fn set_coalescing(&self, queue: Option<u16>, coalescing: Coalescing) -> Result<()> {
        let (shared, own) = (&self.0.driver().shared, &self.0.driver().device_type);
        let unavailable = |what: &str| shared.hw.unavailable(what.to_owned());
        if !shared.has(if queue.is_some() { bit::VQ_NOTF_COAL } else { bit::NOTF_COAL }) {
            return Err(unavailable("interrupts of its queues cannot be coalesced (or there are none: rx_interrupts)"));
        }
        if queue.is_some_and(|queue| queue >= own.pairs) {
            return Err(unavailable(&format!("it has {} queues that receive, from 0 on", own.pairs)));
        }
        let command = coalescing::command(queue, coalescing);
        let (command, data) = command.ok_or_else(|| unavailable("interrupts cannot be held back for so long"))?;
        self.0.with(|kept| {
            let State { control, wanted, .. } = &mut kept.state;
            if let Some(control) = control {
                control.execute(shared, command, &data)?;
                wanted.coalescing.told(queue, coalescing);
            }
            Ok(())
        })
    }

    /// Stops the device for good. Queues end.
    ///
    /// # Errors
    /// [`NotReady`](wholebar_core::Error::NotReady) where the device does not stop in time; [`Gone`](wholebar_core::Error::Gone) or
    /// [`Ended`](wholebar_core::Error::Ended) where it was that before.
    pub fn shutdown(self) -> Result<()> {
        self.0.shut_down()
    }

    /// Changes what is wanted of the device, and tells it.
    fn set<T>(&self, feature: u64, what: &str, change: impl FnOnce(&mut Wanted) -> T, tell: Tell<'_>) -> Result<T> {
        let shared = &self.0.driver().shared;
        if !shared.has(feature) {
            return Err(shared.hw.unavailable(format!("it has no {what}")));
        }
        self.0.with(|kept| {
            let State { control, wanted, .. } = &mut kept.state;
            let changed = change(wanted);
            if let Some(control) = control {
                tell(&self.0.driver().device_type, shared, control, wanted)?;
            }
            Ok(changed)
        })
    }
}

type Tell<'a> = &'a dyn Fn(&Ethernet, &Shared, &mut ControlQueue, &Wanted) -> Result<()>;

/// A device that is being opened.
struct Opening<'a> {
    config: &'a PortConfig,
    facts: Facts,
    mtu: u16,
    granted: Offloads,
    pairs: u16,
}

impl Opening<'_> {
    fn with<R: Ring>(self, hw: Hardware, options: Options, features: u64) -> Result<Net> {
        let Self { config, facts, mtu, granted, pairs } = self;
        let has = |feature: u64| features & feature != 0;
        // Queues are looked at once features are known (4.1.5.1.3), and made known after one more reset.
        hw.negotiate(features)?;
        let numbered = if has(bit::MQ | bit::RSS) { facts.max_pairs } else { 1 };
        let control_at = has(bit::CTRL_VQ).then_some(2 * numbered);
        let asked = [config.rx_descriptors, config.tx_descriptors];
        let (mut sizes, mut most) = (Vec::new(), u16::MAX);
        for (index, asked) in (0..2 * pairs).zip(asked.into_iter().cycle()) {
            sizes.push(hw.queue_size(index, asked, DESCRIPTORS)?);
            most = most.min(hw.queue_size(index, None, u16::MAX)?);
        }
        let limits = facts.limits(hw.offered, most);
        let control_size = match control_at {
            Some(index) => hw.queue_size(index, None, CONTROL_DESCRIPTORS)?,
            None => 0,
        };
        let header = if has(bit::HASH_REPORT) { header::LEN_WITH_HASH } else { header::LEN };
        let layout = Layout {
            before: config.headroom.max(header) - header,
            header,
            // Who does not even offer checksums may say something of them: `header::fill_in`.
            read: has(bit::GUEST_CSUM | bit::HASH_REPORT | bit::MRG_RXBUF) || hw.offered & bit::GUEST_CSUM == 0,
            merge: has(bit::MRG_RXBUF),
            checksums: has(bit::GUEST_CSUM),
        };
        let vectored = if config.rx_interrupts { pairs } else { 0 };
        let interrupts = device::vectors(&hw, vectored)?;
        hw.check_vectors(interrupts.as_ref(), vectored)?;
        // Rings, and headers for those that send.
        let each = sizes.iter().map(|size| queue_bytes(*size, features));
        let memory = device::memory(&hw, each.sum::<u64>() + 4 * ControlQueue::BUFFER + (64 << 10))?;
        let allowed = Allowed { header, len: u64::from(mtu) + u64::from(LINK_HEADER), offloads: granted };

        let mut bells = Vec::new();
        for index in (0..2 * pairs).chain(control_at) {
            bells.push(hw.bell(index)?);
        }
        hw.reset()?;
        let shared = Shared::new(hw, options, features, interrupts)?;
        let counters: Vec<(Arc<RxCounters>, Arc<TxCounters>)> = (0..pairs).map(|_| Default::default()).collect();
        let (own, interrupting) = (counters.clone(), config.rx_interrupts);
        let make = move |shared: &Arc<Shared>, memory: &Arc<DmaMapping>, index: u16, size: u16, bell: Doorbell<u16>| {
            let (pair, receives) = (index / 2, index.is_multiple_of(2));
            let (rx, tx) = own.get(usize::from(pair)).cloned().unwrap_or_default();
            let vector = match shared.queue_context.interrupts() {
                Some(interrupts) if receives && interrupting => Some(interrupts.vector(1 + u32::from(pair))?),
                _ => None,
            };
            // What is received goes into single buffers.
            let number = vector.is_some().then_some(1 + pair);
            let (ring, record) = device::ring::<R>(memory, (index, size), features, !receives, number)?;
            let life = Life::new(&record, shared);
            let queue = if receives {
                Queue::Rx(Box::new(Receiver::new(life, ring, layout, bell, rx, vector)))
            } else {
                let headers = Pool::new(memory.arena().clone(), headers_of(size), 64, 64)?.cache(HEADER_BATCH);
                shared.queue_context.attach(memory.arena().clone())?;
                Queue::Tx(Box::new(Sender::new(life, ring, allowed, bell, headers, tx)))
            };
            Ok((record, queue))
        };
        let (mut records, mut queues, mut watches) = (Vec::new(), BTreeMap::new(), Vec::new());
        let mut bells = bells.into_iter();
        for ((index, size), bell) in (0..).zip(&sizes).zip(bells.by_ref().take(sizes.len())) {
            let (record, queue) = make(&shared, &memory, index, *size, bell)?;
            records.push(record);
            queues.insert(index, queue);
        }
        for (pair, (rx, tx)) in (0..).zip(&counters) {
            let reminder = |index| Ok::<_, Error>(Reminder::new(index, shared.hw.bell(index)?));
            let (of_rx, of_tx) = (reminder(2 * pair)?, reminder(2 * pair + 1)?);
            watches.push(Watch::new((of_rx, rx.clone()), (of_tx, tx.clone()), shared.options.stall_timeout));
        }
        let control = match (control_at, bells.next()) {
            (Some(index), Some(bell)) => {
                let (ring, record) = device::ring::<R>(&memory, (index, control_size), features, false, None)?;
                records.push(record);
                let buffer = memory.arena().alloc(ControlQueue::BUFFER, 64)?;
                let iova = memory.iova().offset(buffer.offset()).0;
                Some(ControlQueue { index, ring: Box::new(ring), bell, buffer, iova })
            }
            _ => None,
        };
        let wanted = Wanted { promiscuous: config.promiscuous, rss: config.rss.clone(), ..Wanted::default() };
        let (link, _) = config::link(&shared.hw, features)?;
        let device_type = Ethernet {
            make: Box::new(make),
            name: shared.hw.name(),
            limits,
            granted,
            facts,
            chosen: facts.mac.is_none().then(config::local_mac),
            pairs,
            mtu,
            layout,
            rx_sizes: sizes.into_iter().step_by(2).collect(),
            counters,
            link: Mutex::new(link),
            link_changes: AtomicU64::new(0),
            stalls: AtomicU64::new(0),
        };
        let state = State { control, wanted, watches };
        let parts = Parts { shared, device_type, records, queues, state };
        Ok(Net(Arc::new(device::start(parts)?)))
    }
}

/// Buffers for headers that are taken from their pool at once.
const HEADER_BATCH: u32 = 32;

/// Bytes of a queue's memory, at most.
fn queue_bytes(size: u16, features: u64) -> u64 {
    device::ring_bytes(size, features, true) + 64 * u64::from(headers_of(size))
}

/// Buffers for headers of a queue of so many descriptors.
fn headers_of(size: u16) -> u32 {
    u32::from(size) + 2 * HEADER_BATCH
}

impl Ethernet {
    fn tell_mode(&self, shared: &Shared, control: &mut ControlQueue, wanted: &Wanted) -> Result<()> {
        control.execute(shared, Command::PROMISCUOUS, &[wanted.promiscuous.into()])?;
        control.execute(shared, Command::ALL_MULTICAST, &[wanted.all_multicast.into()])
    }

    /// Two tables, each its count and its addresses: of stations, of groups (5.1.6.5.2.1).
    fn tell_filters(&self, shared: &Shared, control: &mut ControlQueue, wanted: &Wanted) -> Result<()> {
        let mut data = Vec::new();
        // Where it cannot be told its address, it learns of it here.
        let chosen = self.chosen.filter(|_| !shared.has(bit::CTRL_MAC_ADDR));
        for groups in [false, true] {
            let all = chosen.iter().chain(&wanted.filters);
            let these: Vec<_> = all.filter(|mac| mac.is_multicast() == groups).collect();
            data.extend((these.len() as u32).to_le_bytes());
            data.extend(these.into_iter().flat_map(|mac| mac.0));
        }
        control.execute(shared, Command::MAC_TABLE, &data)
    }

    fn tell_mac(&self, shared: &Shared, control: &mut ControlQueue, wanted: &Wanted) -> Result<()> {
        match wanted.mac.or(self.chosen) {
            Some(mac) if shared.has(bit::CTRL_MAC_ADDR) => control.execute(shared, Command::MAC_ADDRESS, &mac.0),
            _ => Ok(()),
        }
    }

    /// How packets are spread (5.1.6.5.5 to 5.1.6.5.7).
    fn tell_spread(&self, shared: &Shared, control: &mut ControlQueue, wanted: &Wanted) -> Result<()> {
        let even = Rss::evenly(self.pairs, self.facts.max_table.min(128));
        let data = |rss, spread| config::rss_data(&shared.hw, &self.facts, rss, self.pairs, spread);
        match &wanted.rss {
            Some(rss) => control.execute(shared, Command::RSS, &data(rss, true)?)?,
            None if self.pairs > 1 => control.execute(shared, Command::PAIRS, &self.pairs.to_le_bytes())?,
            None => {}
        }
        if self.granted.rss_hash && wanted.rss.is_none() {
            control.execute(shared, Command::HASH, &data(&even, false)?)?;
        }
        Ok(())
    }
}

impl DeviceType for Ethernet {
    type Event = Event;
    type Queue = Queue;
    type State = State;

    fn started(&self, shared: &Shared, state: &mut State) -> Result<()> {
        let State { control: Some(control), wanted, .. } = state else { return Ok(()) };
        control.restart();
        self.tell_spread(shared, control, wanted)?;
        if shared.has(bit::CTRL_RX) {
            self.tell_mode(shared, control, wanted)?;
            if !wanted.filters.is_empty() || self.chosen.is_some() {
                self.tell_filters(shared, control, wanted)?;
            }
        }
        self.tell_mac(shared, control, wanted)?;
        for vlan in &wanted.vlans {
            control.execute(shared, Command::VLAN_ADD, &vlan.to_le_bytes())?;
        }
        for (command, data) in wanted.coalescing.iter().filter_map(|(queue, c)| coalescing::command(queue, c)) {
            control.execute(shared, command, &data)?;
        }
        Ok(())
    }

    fn replace(&self, shared: &Arc<Shared>, record: &Record) -> Result<(Record, Queue)> {
        let Record { index, size, .. } = *record;
        let memory = device::memory(&shared.hw, queue_bytes(size, shared.features) + (64 << 10))?;
        (self.make)(shared, &memory, index, size, shared.hw.bell(index)?)
    }

    fn changed(&self, shared: &Shared, state: &mut State, tell: &mut dyn FnMut(Event)) -> Result<()> {
        let (link, announce) = config::link(&shared.hw, shared.features)?;
        let before = std::mem::replace(&mut *self.link.lock().unwrap_or_else(|e| e.into_inner()), link);
        if before != link {
            self.link_changes.fetch_add(1, Ordering::Relaxed);
            tell(Event::Link(link));
        }
        for (queue, watch) in (0..).zip(&mut state.watches) {
            if let Some(waited) = watch.check_timeouts(link.up) {
                self.stalls.fetch_add(1, Ordering::Relaxed);
                tell(Event::Stalled { queue, waited });
            }
        }
        if announce && let Some(control) = &mut state.control {
            tell(Event::Announce);
            control.execute(shared, Command::ANNOUNCED, &[])?;
        }
        Ok(())
    }
}

//! A device that runs: how it is brought up and reset. The same for every type of device.
//!
//! All of a device's queues are made when it is opened, since a device has to know them before it starts (VIRTIO 1.2, 3.1.1). One that nobody
//! has, or whose owner dropped it, is *parked* here, with what it has in flight, and looked after.

use crate::error::{Error, Result};
use crate::feature;
use crate::hardware::{Hardware, NO_VECTOR, QueueSetup};
use crate::options::{Options, Service};
use crate::ring::{self, Areas, Ring, RingOptions};
use std::collections::BTreeMap;
use std::sync::Arc;
use wholebar_core::control_plane::{ControlPlane, DeviceEvent, Driver, QueueContext, Recovery};
use wholebar_core::irq::Interrupts;
use wholebar_core::mem::{Arena, ArenaOptions, DmaMapping};
use wholebar_core::pci::{Irq, PciDevice};
use wholebar_core::reset::Domain;

/// What a type of device adds.
pub(crate) trait DeviceType: Send + Sync + Sized + 'static {
    /// What its users are told.
    type Event: From<DeviceEvent> + Send;
    /// Its queues, as they are parked.
    type Queue: Parked;
    /// What else is under the lock.
    type State: Send;

    /// The device runs, for the first time or again: tells it what it has to know.
    fn started(&self, shared: &Shared, state: &mut Self::State) -> Result<()>;

    /// Makes a queue anew, as `record` has it, in memory of its own: who had the one before lost it.
    fn replace(&self, shared: &Arc<Shared>, record: &Record) -> Result<(Record, Self::Queue)>;

    /// Its configuration may have changed.
    fn changed(&self, shared: &Shared, state: &mut Self::State, tell: &mut dyn FnMut(Self::Event)) -> Result<()>;
}

/// A queue that nobody has.
pub(crate) trait Parked: Send {
    /// Takes part in resets.
    fn check_timeouts(&mut self);

    /// Whether a reset went on without it: it never runs again.
    fn is_lost(&self) -> bool;
}

/// What queues have of their device.
pub(crate) struct Shared {
    pub hw: Hardware,
    pub options: Options,
    /// What was negotiated.
    pub features: u64,
    pub domain: Domain,
    pub queue_context: Arc<QueueContext<Error>>,
}

/// A queue that the device knows of.
pub(crate) struct Record {
    pub index: u16,
    pub size: u16,
    pub vector: Option<u16>,
    pub mapping: Arc<DmaMapping>,
    pub areas: Areas,
}

impl Record {
    pub fn setup(&self) -> QueueSetup {
        let base = self.mapping.iova();
        let areas = self.areas.offsets().map(|at| base.offset(at).0);
        QueueSetup { index: self.index, size: self.size, areas, vector: self.vector.unwrap_or(NO_VECTOR) }
    }
}

/// A device that runs.
pub(crate) struct VirtioDevice<P> {
    pub shared: Arc<Shared>,
    pub device_type: P,
}

/// What is under the lock.
pub(crate) struct Control<P: DeviceType> {
    records: Vec<Record>,
    parked: BTreeMap<u16, P::Queue>,
    pub state: P::State,
}

/// What keeps a device open: held by its owner and by its queues.
pub(crate) type Handle<P> = ControlPlane<VirtioDevice<P>>;

/// What a device is made of: the function is reset, and its features are chosen.
pub(crate) struct Parts<P: DeviceType> {
    pub shared: Arc<Shared>,
    pub device_type: P,
    pub records: Vec<Record>,
    pub queues: BTreeMap<u16, P::Queue>,
    pub state: P::State,
}

/// The MSI-X vectors of a device with `queues` queues that interrupt, where it has any.
pub(crate) fn vectors(hw: &Hardware, queues: u16) -> Result<Option<Interrupts>> {
    Ok(Interrupts::first_of(hw.device.clone(), &[Irq::Msix], 1 + u32::from(queues))?)
}

/// Lets the device into an arena of `bytes`.
pub(crate) fn memory(hw: &Hardware, bytes: u64) -> Result<Arc<DmaMapping>> {
    let arena = Arena::new(bytes, ArenaOptions::default())?;
    Ok(hw.device.dma().attach(arena)?)
}

/// A ring in memory that the device was let into, and what the device is told of it. `tables`: it has indirect descriptors, where that was negotiated.
pub(crate) fn ring<R: Ring>(
    memory: &Arc<DmaMapping>,
    (index, size): (u16, u16),
    features: u64,
    tables: bool,
    vector: Option<u16>,
) -> Result<(R, Record)> {
    let tables = tables && features & feature::INDIRECT_DESC != 0;
    let options = RingOptions { indirect: tables.then(|| memory.iova()), ..RingOptions::of(features) };
    let ring = R::new(memory.arena().clone(), size, options)?;
    let areas = ring.areas();
    Ok((ring, Record { index, size, vector, mapping: memory.clone(), areas }))
}

/// Bytes of a ring, at most; with `tables`, where they are negotiated.
pub(crate) fn ring_bytes(size: u16, features: u64, tables: bool) -> u64 {
    let tables = if tables && features & feature::INDIRECT_DESC != 0 { ring::table_bytes(size) } else { 0 };
    48 * u64::from(size) + tables + 4096
}

impl Shared {
    pub fn new(hw: Hardware, options: Options, features: u64, interrupts: Option<Interrupts>) -> Result<Arc<Self>> {
        let queue_context = QueueContext::new(hw.device.clone(), interrupts)?;
        Ok(Arc::new(Self { hw, options, features, domain: queue_context.domain().clone(), queue_context }))
    }

    /// Whether a feature was negotiated.
    pub fn has(&self, feature: u64) -> bool {
        self.features & feature == feature
    }
}

/// Starts a device.
pub(crate) fn start<P: DeviceType>(parts: Parts<P>) -> Result<Handle<P>> {
    let Parts { shared, device_type, records, queues, state } = parts;
    let (service, patience, queue_context) =
        (shared.options.service, shared.options.stop_timeout, shared.queue_context.clone());
    let control = Control { records, parked: queues, state };
    // Dropped, it shuts the device down.
    let mut control_plane = ControlPlane::new(VirtioDevice { shared, device_type }, control, queue_context, patience)?;
    control_plane.peek(|control| control_plane.driver().bring_up(control))?;
    if service == Service::Thread {
        control_plane.spawn()?;
    }
    Ok(control_plane)
}

impl<P: DeviceType> VirtioDevice<P> {
    /// From reset to DRIVER_OK, and what the type of device does then (VIRTIO 1.2, 3.1.1).
    fn bring_up(&self, control: &mut Control<P>) -> Result<()> {
        let hw = &self.shared.hw;
        hw.bus_master(true)?;
        hw.negotiate(self.shared.features)?;
        if self.shared.queue_context.interrupts().is_some() {
            hw.set_config_vector(0)?;
        }
        for record in &control.records {
            record.areas.set_quarantine(true);
            hw.enable_queue(record.setup())?;
        }
        hw.start()?;
        self.device_type.started(&self.shared, &mut control.state)
    }
}

impl<P: DeviceType> Driver for VirtioDevice<P> {
    const NAME: &'static str = "virtio";
    type State = Control<P>;
    type Event = P::Event;
    type QueueFault = Error;
    type Error = Error;

    fn recovery(error: &Error, _: &dyn PciDevice) -> Recovery {
        match error {
            Error::Core(wholebar_core::Error::Gone { .. }) => Recovery::Gone,
            Error::NeedsReset { .. } | Error::Unanswered { .. } | Error::Broken { .. } => Recovery::Reset,
            _ => Recovery::Nothing,
        }
    }

    fn stop(&self, _: &mut Control<P>) -> Result<()> {
        self.shared.hw.reset()
    }

    fn restart(&self, control: &mut Control<P>, lost: &[u32]) -> Result<()> {
        // A lost queue's ring is its owner's still: the device is not told of it again, but of one in its place, which is there to be had.
        for record in control.records.iter_mut().filter(|record| lost.contains(&record.index.into())) {
            let (new, queue) = self.device_type.replace(&self.shared, record)?;
            control.parked.insert(record.index, queue);
            *record = new;
        }
        control.records.iter().for_each(|record| record.areas.zero());
        self.bring_up(control)
    }

    fn poll_parked(&self, control: &mut Control<P>) {
        control.parked.values_mut().for_each(Parked::check_timeouts);
    }

    fn poll_events(&self, control: &mut Control<P>, tell: &mut dyn FnMut(P::Event)) -> Result<()> {
        self.shared.hw.healthy()?;
        self.device_type.changed(&self.shared, &mut control.state, tell)
    }

    fn release(&self, control: &mut Control<P>) {
        control.records.iter().for_each(|record| record.areas.set_quarantine(false));
    }
}

impl<P: DeviceType> Control<P> {
    /// Takes a queue that is parked.
    pub fn take(&mut self, index: u16) -> Option<P::Queue> {
        self.parked.remove(&index)
    }

    /// Parks a queue; one that was lost is dropped, since there is another in its place.
    pub fn park(&mut self, index: u16, queue: P::Queue) {
        if !queue.is_lost() {
            self.parked.insert(index, queue);
        }
    }
}

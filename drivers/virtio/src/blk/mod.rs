//! Block devices (VIRTIO 1.2, 5.2): the handle that applications hold. Its queues are values of their own ([`Queue`]).
//!
//! ```no_run
//! # fn open() -> std::sync::Arc<dyn wholebar_core::pci::PciDevice> { unimplemented!() }
//! use wholebar_core::block::{Data, Op, Request};
//! use wholebar_core::mem::{Arena, ArenaOptions, Pool};
//! use wholebar_virtio::blk::BlkConfig;
//! use wholebar_virtio::{Blk, Options};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let blk = Blk::open(open(), &BlkConfig::default(), Options::default())?;
//! let arena = Arena::new(1 << 20, ArenaOptions::default())?;
//! blk.attach(arena.clone())?;
//! let pool = Pool::new(arena, 16, 4096, 4096)?;
//! let mut queue = blk.queue()?;
//! let data = Data::One(pool.get_len(4096).ok_or("no buffer left")?);
//! queue.submit(Request { tag: 0, nsid: 1, op: Op::Read { lba: 0 }, data, deadline: None })?;
//! queue.ring();
//! while queue.poll_each(1, |done| println!("{:?}: {:?}", done.status, done.data)) == 0 {}
//! # Ok(()) }
//! ```

mod config;
mod cut;
mod queue;

pub use config::{Geometry, Topology};

use crate::device::{self, DeviceType, Handle, Parked, Parts, Record, Shared};
use crate::error::{Error, Result};
use crate::feature;
use crate::hardware::Hardware;
use crate::life::Life;
use crate::options::Options;
use crate::ring::{Packed, Ring, Split};
use queue::{Channel, MAX_PIECES};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use wholebar_core::DriverError;
use wholebar_core::bar::{Bar, Doorbell, DoorbellCounts};
use wholebar_core::block::{self, BlockQueue, Completion, Disk, Namespace, QueueState, Rejected, Request};
use wholebar_core::channel::Receiver;
use wholebar_core::control_plane;
use wholebar_core::irq::EventFd;
use wholebar_core::mem::{Arena, DmaMapping};
use wholebar_core::pci::{Opening, PciDevice};
use wholebar_core::reactor::Armed;

/// The PCI vendor and device ids of block devices, modern and transitional (4.1.2.1).
pub const BLK_IDS: [(u16, u16); 2] = [(0x1af4, 0x1042), (0x1af4, 0x1001)];
/// The type of block devices (5.2.1).
const TYPE: u16 = 2;
/// Descriptors of a queue where nobody says, if the device has as many.
const DESCRIPTORS: u16 = 256;

/// The configuration with which a block device is opened, besides [`Options`].
#[derive(Debug, Clone, Copy)]
pub struct BlkConfig {
    /// Number of queues to ask for; the device may have fewer.
    pub queues: u16,
    /// Descriptors of each queue, a power of two; `None` for the driver's choice. A request takes two, and one for each piece of its data.
    pub descriptors: Option<u16>,
    /// Whether queues have interrupts, so that an idle core can sleep.
    pub interrupts: bool,
}

impl Default for BlkConfig {
    fn default() -> Self {
        Self { queues: 1, descriptors: None, interrupts: false }
    }
}

/// The event of a device that has another size.
///
/// Queues keep to the size that they know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resized {
    /// The new number of blocks.
    pub blocks: u64,
}

/// An event of a block device.
pub type BlkEvent = control_plane::Event<Resized>;

/// A virtio block device.
///
/// SPDK: `bdev_virtio`.
///
/// Its queues keep it open; it is stopped when this handle and the last of them are dropped. Every method can be called from any thread while queues
/// are polled on others. It is a [`Disk`] with one namespace, number 1.
pub struct Blk(Arc<Handle<Storage>>);

/// Makes a queue as the device is told of it, given its memory, number, descriptors, doorbell.
type Make = dyn Fn(&Arc<Shared>, &Arc<DmaMapping>, u16, u16, Doorbell<u16>) -> Result<(Record, Core)> + Send + Sync;

/// What a block device is, besides a virtio device.
pub(crate) struct Storage {
    make: Box<Make>,
    /// Bytes of the memory of one queue.
    memory: fn(u16, u64) -> u64,
    disk: Geometry,
    queues: u16,
    /// As it was when it was last looked at.
    blocks: Mutex<u64>,
}

/// A queue, on whichever ring.
pub(crate) enum Core {
    Split(Box<Channel<Split>>),
    Packed(Box<Channel<Packed>>),
}

macro_rules! on {
    ($core:expr, $queue:ident => $do:expr) => {
        match $core {
            Core::Split($queue) => $do,
            Core::Packed($queue) => $do,
        }
    };
}

impl Parked for Core {
    fn is_lost(&self) -> bool {
        on!(self, queue => queue.is_lost())
    }

    fn check_timeouts(&mut self) {
        on!(self, queue => queue.check_timeouts());
    }
}

impl Blk {
    /// Opens a block device: resets it, negotiates features, creates its queues and starts it (3.1.1).
    ///
    /// # Errors
    /// [`Error::Unfit`] or [`Error::Legacy`] where the device is none for this driver; [`Error::Bypass`] where it does not go through the IOMMU;
    /// [`Error::Unavailable`] for what `config` asks for and the device does not have; [`Gone`](wholebar_core::Error::Gone) where nothing answers;
    /// [`Error::Core`] where BARs, interrupts or memory cannot be had.
    pub fn open(device: Arc<dyn PciDevice>, config: &BlkConfig, options: Options) -> Result<Self> {
        let _opening = Opening::of(device.clone());
        let hw = Hardware::open(device, TYPE, &options)?;
        let disk = Geometry::of(&hw)?;
        let queues = config.queues.min(disk.queues);
        if queues == 0 {
            return Err(hw.unavailable("a block device without queues is of no use: ask for one".to_owned()));
        }
        let features =
            Geometry::features(&hw, queues) | hw.common_features(&options) | hw.offered & feature::RING_RESET;
        let config = BlkConfig { queues, ..*config };
        match features & feature::RING_PACKED {
            0 => Self::with(hw, disk, config, options, features, |q: Channel<Split>| Core::Split(Box::new(q))),
            _ => Self::with(hw, disk, config, options, features, |q: Channel<Packed>| Core::Packed(Box::new(q))),
        }
    }

    fn with<R: Ring>(
        hw: Hardware,
        disk: Geometry,
        config: BlkConfig,
        options: Options,
        features: u64,
        core: fn(Channel<R>) -> Core,
    ) -> Result<Self> {
        let BlkConfig { queues: count, descriptors, interrupts: vectored } = config;
        // Queues are looked at once features are known (4.1.5.1.3), and made known after one more reset.
        hw.negotiate(features)?;
        let sizes =
            (0..count).map(|index| hw.queue_size(index, descriptors, DESCRIPTORS)).collect::<Result<Vec<_>>>()?;
        let smallest = sizes.iter().copied().min().unwrap_or(0);
        if smallest < 4 {
            return Err(
                hw.unavailable(format!("queues of {smallest} descriptors are too small for requests: 4 are the least"))
            );
        }
        // Of a request's descriptors, two are for its header and its status.
        let disk =
            Geometry { max_segments: disk.max_segments.min(u32::from(smallest) - 2).min(MAX_PIECES as u32), ..disk };
        let interrupts = device::vectors(&hw, if vectored { count } else { 0 })?;
        hw.check_vectors(interrupts.as_ref(), if vectored { count } else { 0 })?;
        let bells = (0..count).map(|index| hw.bell(index)).collect::<Result<Vec<_>>>()?;
        hw.reset()?;
        let memory_of = |size, features| Channel::<R>::memory(size) + device::ring_bytes(size, features, true);
        let all = sizes.iter().map(|size| memory_of(*size, features)).sum::<u64>();
        let memory = device::memory(&hw, all + (64 << 10))?;
        let shared = Shared::new(hw, options, features, interrupts)?;
        let make = move |shared: &Arc<Shared>, memory: &Arc<DmaMapping>, index: u16, size: u16, bell: Doorbell<u16>| {
            let vector = match shared.queue_context.interrupts() {
                Some(interrupts) if vectored => Some(interrupts.vector(1 + u32::from(index))?),
                _ => None,
            };
            let number = vector.is_some().then_some(1 + index);
            let (ring, record) = device::ring::<R>(memory, (index, size), features, true, number)?;
            let slots = memory.arena().alloc(Channel::<R>::memory(size), 64)?;
            let at = memory.iova().offset(slots.offset()).0;
            let queue = Channel::new(Life::new(&record, shared), ring, disk, (&slots, at), bell, vector)?;
            Ok((record, core(queue)))
        };
        let (mut records, mut queues) = (Vec::new(), BTreeMap::new());
        for ((index, size), bell) in (0..count).zip(sizes).zip(bells) {
            let (record, queue) = make(&shared, &memory, index, size, bell)?;
            records.push(record);
            queues.insert(index, queue);
        }
        let blocks = Mutex::new(disk.blocks);
        let device_type = Storage { make: Box::new(make), memory: memory_of, disk, queues: count, blocks };
        let parts = Parts { shared, device_type, records, queues, state: () };
        Ok(Self(Arc::new(device::start(parts)?)))
    }

    /// Returns size, block size and limits of the device, as they were when it was opened.
    pub fn disk(&self) -> &Geometry {
        &self.0.driver().device_type.disk
    }

    /// Returns the number of queues that the device was opened with.
    pub fn queues(&self) -> u16 {
        self.0.driver().device_type.queues
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

    /// Maps an arena for the device, so that its queues can use buffers there. For an arena that is attached already it does nothing.
    ///
    /// # Errors
    /// [`Error::Core`], with what [`DmaSpace::attach`](wholebar_core::mem::DmaSpace::attach) returned.
    pub fn attach(&self, arena: Arc<Arena>) -> Result<()> {
        Ok(self.0.queue_context().attach(arena).map(drop)?)
    }

    /// Unmaps an arena from the device: when this returns, the device cannot reach it any more. For an arena that is not attached it does nothing.
    ///
    /// # Errors
    /// [`StillAttached`](wholebar_core::Error::StillAttached) where a queue was given buffers of it, even one that was dropped since: the device
    /// keeps all of its queues as long as it is open. Nothing has changed then.
    pub fn detach(&self, arena: &Arena) -> Result<()> {
        Ok(self.0.queue_context().detach(arena)?)
    }

    /// Returns a queue, to be owned by one core. A dropped queue can be had again, and another one in the place of a queue that was lost in a
    /// [reset](Self::reset). It takes a lock.
    ///
    /// # Errors
    /// [`Error::NoQueue`] where all are in use.
    pub fn queue(&self) -> Result<Queue> {
        let count = self.queues();
        let found = (0..count).find_map(|index| Some((index, self.0.peek(|control| control.take(index))?)));
        let (index, core) = found.ok_or_else(|| Error::NoQueue {
            device: self.0.driver().shared.hw.name(),
            what: "request",
            index: count,
            count,
        })?;
        Ok(Queue { core: Some(core), index, home: self.0.clone() })
    }

    /// Returns the receiver of the device's events. While 256 wait, further ones are dropped.
    pub fn events(&self) -> &Receiver<BlkEvent> {
        self.0.events()
    }

    /// Resets the device, and returns when its queues can go on. Requests in flight complete as aborted. Queues must be polled on other threads meanwhile.
    ///
    /// # Errors
    /// [`Unresponsive`](wholebar_core::Error::Unresponsive) where queues were not polled, which are lost; [`Ended`](wholebar_core::Error::Ended) or
    /// [`Gone`](wholebar_core::Error::Gone) where the reset failed.
    pub fn reset(&self) -> Result<()> {
        Ok(self.0.reset()?)
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

    /// Stops the device for good. Queues end.
    ///
    /// # Errors
    /// [`NotReady`](wholebar_core::Error::NotReady) where the device does not stop in time; [`Gone`](wholebar_core::Error::Gone) or
    /// [`Ended`](wholebar_core::Error::Ended) where it was that before.
    pub fn shutdown(self) -> Result<()> {
        self.0.shut_down()
    }
}

impl Disk for Blk {
    fn driver(&self) -> &'static str {
        "virtio"
    }

    fn name(&self) -> &str {
        self.device().name()
    }

    fn namespaces(&self) -> Vec<Namespace> {
        let disk = self.disk();
        // Requests are cut into those that the device takes, so that no limit of these is one of theirs.
        let any = |most: u32| if most > 0 { u32::MAX } else { 0 };
        let whole = |bytes: u64| (bytes / u64::from(disk.block_size)) as u32 * disk.block_size;
        // Each piece of a buffer takes a segment.
        let once = u64::from(disk.max_segments) * u64::from(disk.max_segment);
        vec![Namespace {
            nsid: 1,
            blocks: disk.blocks,
            block_size: disk.block_size,
            read_only: disk.read_only,
            max_transfer: whole(u32::MAX.into()),
            max_command: whole(once.min(cut::MAX_BYTES)),
            flush: disk.flush,
            compare: false,
            max_write_zeroes: any(disk.max_write_zeroes),
            max_deallocate: any(disk.max_deallocate),
            max_verify: 0,
        }]
    }

    fn queues(&self) -> u16 {
        Blk::queues(self)
    }

    fn attach(&self, arena: Arc<Arena>) -> Result<(), DriverError> {
        Ok(Blk::attach(self, arena)?)
    }

    fn detach(&self, arena: &Arena) -> Result<(), DriverError> {
        Ok(Blk::detach(self, arena)?)
    }

    fn queue(&self) -> Result<Box<dyn BlockQueue>, DriverError> {
        Ok(Box::new(Blk::queue(self)?))
    }

    fn event(&self) -> Option<block::Event> {
        self.events().try_recv().ok().map(|event| match event {
            BlkEvent::Driver(Resized { blocks }) => block::Event::Reported(format!(
                "it has {blocks} blocks now: its queues keep to those that it had when it was opened"
            )),
            BlkEvent::Device(event) => block::Event::Device(event),
        })
    }

    fn status_text(&self, code: u16) -> String {
        match code {
            1 => "VIRTIO_BLK_S_IOERR: an I/O error".to_owned(),
            2 => "VIRTIO_BLK_S_UNSUPP: the device does not have this request".to_owned(),
            code => format!("status {code}, which no standard has"),
        }
    }

    fn reset(&self) -> Result<(), DriverError> {
        Ok(Blk::reset(self)?)
    }
}

impl DeviceType for Storage {
    type Event = BlkEvent;
    type Queue = Core;
    type State = ();

    fn started(&self, _: &Shared, (): &mut ()) -> Result<()> {
        Ok(())
    }

    fn replace(&self, shared: &Arc<Shared>, record: &Record) -> Result<(Record, Core)> {
        let Record { index, size, .. } = *record;
        let memory = device::memory(&shared.hw, (self.memory)(size, shared.features) + (64 << 10))?;
        (self.make)(shared, &memory, index, size, shared.hw.bell(index)?)
    }

    fn changed(&self, shared: &Shared, (): &mut (), tell: &mut dyn FnMut(BlkEvent)) -> Result<()> {
        let blocks = Geometry::of(&shared.hw)?.blocks;
        if std::mem::replace(&mut *self.blocks.lock().unwrap_or_else(|e| e.into_inner()), blocks) != blocks {
            tell(BlkEvent::Driver(Resized { blocks }));
        }
        Ok(())
    }
}

/// A queue of a block device, owned by one core.
///
/// Dropping it returns it to its device; requests in flight end there.
pub struct Queue {
    core: Option<Core>,
    index: u16,
    home: Arc<Handle<Storage>>,
}

impl Queue {
    /// Posts a request; [`ring`](Self::ring) announces it to the device.
    ///
    /// # Errors
    /// [`Rejected`], with the request and the reason.
    #[inline]
    pub fn submit(&mut self, req: Request) -> Result<(), Rejected> {
        match &mut self.core {
            Some(core) => on!(core, queue => queue.submit(req)),
            None => Err(Rejected { req, why: wholebar_core::block::Reject::Gone }),
        }
    }

    /// Announces every request posted since the last call: one store, and a notification where the device wants one.
    #[inline]
    pub fn ring(&mut self) {
        if let Some(core) = &mut self.core {
            on!(core, queue => queue.announce());
        }
    }

    /// Takes at most `max` finished requests, passes each to `done`, and returns their number.
    #[inline]
    pub fn poll_each(&mut self, max: usize, done: impl FnMut(Completion)) -> usize {
        match &mut self.core {
            Some(core) => on!(core, queue => queue.poll_each(max, done)),
            None => 0,
        }
    }

    /// Checks the deadlines of requests in flight: where one is overdue, the device is reset. Polling does this once in a while; a program that
    /// sleeps instead calls it when it wakes.
    pub fn check_timeouts(&mut self) {
        if let Some(core) = &mut self.core {
            on!(core, queue => queue.check_timeouts_at(Instant::now()));
        }
    }

    /// Returns whether the queue can be used.
    pub fn state(&self) -> QueueState {
        self.core.as_ref().map_or(QueueState::Gone, |core| on!(core, queue => queue.state()))
    }

    /// Returns the number of requests in flight.
    pub fn in_flight(&self) -> usize {
        self.core.as_ref().map_or(0, |core| on!(core, queue => queue.in_flight()))
    }

    /// Returns the queue's number.
    pub fn id(&self) -> u16 {
        self.index
    }

    /// Returns how often the device was notified.
    pub fn doorbells(&self) -> DoorbellCounts {
        self.core.as_ref().map_or_else(DoorbellCounts::default, |core| on!(core, queue => queue.doorbells()))
    }

    /// Returns the eventfd that is signalled while the queue is armed; `None` without [`BlkConfig::interrupts`].
    pub fn wakeup(&self) -> Option<Arc<EventFd>> {
        self.core.as_ref().and_then(|core| on!(core, queue => queue.wakeup()))
    }

    /// Requests an interrupt for the next completion. Call [`poll_each`](Self::poll_each) once more after this, and sleep only where that returns 0.
    pub fn arm(&mut self) -> Armed {
        self.core.as_mut().map_or(Armed::No, |core| on!(core, queue => queue.arm()))
    }

    /// Turns the interrupt off again, before polling goes on.
    pub fn disarm(&mut self) {
        if let Some(core) = &mut self.core {
            on!(core, queue => queue.disarm());
        }
    }
}

impl BlockQueue for Queue {
    fn submit(&mut self, req: Request) -> Result<(), Rejected> {
        Queue::submit(self, req)
    }

    fn ring(&mut self) {
        Queue::ring(self);
    }

    fn poll(&mut self, max: usize, done: &mut dyn FnMut(Completion)) -> usize {
        self.poll_each(max, done)
    }

    fn state(&self) -> QueueState {
        Queue::state(self)
    }

    fn in_flight(&self) -> usize {
        Queue::in_flight(self)
    }

    fn doorbells(&self) -> Option<DoorbellCounts> {
        Some(Queue::doorbells(self))
    }

    fn wakeup(&self) -> Option<Arc<EventFd>> {
        Queue::wakeup(self)
    }

    fn arm(&mut self) -> Armed {
        Queue::arm(self)
    }

    fn disarm(&mut self) {
        Queue::disarm(self);
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if let Some(mut core) = self.core.take() {
            on!(&mut core, queue => queue.disown());
            self.home.peek(|control| control.park(self.index, core));
        }
    }
}

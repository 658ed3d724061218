//! The port: the handle that applications hold. Its queues are values of their own ([`Rx`], [`Tx`]).

use crate::descriptor::RX_ROOM;
use crate::device::{Control, Handle, Inner, Queue, Shared};
use crate::error::{Error, Result};
use crate::hardware::Hardware;
use crate::member::QueueId;
use crate::regs;
use crate::rx::Rx;
use crate::settings::{MAX_MTU, Settings};
use crate::shared::SharedMemory;
use crate::tx::Tx;
use crate::{Options, Service};
use std::sync::Arc;
use wholebar_core::bar::Bar;
use wholebar_core::channel::Receiver;
use wholebar_core::control_plane::{ControlPlane, QueueContext};
use wholebar_core::irq::{EventFd, Interrupts};
use wholebar_core::mem::{Arena, Pool};
use wholebar_core::net::{Event, Limits, Offloads, PortConfig, PortError, Vlans};
use wholebar_core::pci::{Irq, Opening, PciDevice};

/// One port of a vmxnet3.
///
/// DPDK: the PMD `net_vmxnet3`.
///
/// Its queues keep it open; the device is reset when this handle and the last of them are dropped. Every method can be called from any thread while
/// queues are polled on others. Link, filters and statistics are in its implementation of [`Port`](wholebar_core::net::Port).
pub struct Vmxnet3(pub(crate) Arc<Handle>);

/// Descriptors of a queue: their number is a multiple of 32.
const MIN_DESCRIPTORS: u16 = 32;
const MAX_DESCRIPTORS: u16 = 4096;
/// The Ethernet payload that every network has, in bytes.
const MTU: u16 = 1500;
/// Buffers of a received packet at most, where it may be in several: as many as Linux's driver takes.
const SEGMENTS: u16 = 18;
/// Bytes of a buffer that the device may write, at least (`VMXNET3_MIN_T0_BUF_SIZE`).
const LEAST_ROOM: u32 = 128;

/// What the device can be asked for.
pub(crate) const LIMITS: Limits = Limits {
    rx_queues: regs::RX_QUEUES,
    tx_queues: regs::TX_QUEUES,
    descriptors: MAX_DESCRIPTORS,
    mtu: MAX_MTU,
    offloads: Offloads { tx_l3_checksum: false, timestamps: false, ..Offloads::ALL },
    rss_table: regs::RSS_TABLE,
};

impl Vmxnet3 {
    /// Opens a port: resets the device, reads its address, makes its queues, and starts it as `config` says.
    ///
    /// [`Event::Link`] reports the link, soon after. An offload that the device does not have is left out. The device does not tell whether it spreads
    /// packets, and QEMU's does not: there all of them come to receive queue 0.
    ///
    /// # Errors
    /// [`Error::Unfit`] where the device is none for this driver; [`Error::Port`] where `config` asks for what the device does not have; [`Error::Refused`] where it does not start;
    /// [`NotReady`](wholebar_core::Error::NotReady) where it does not stop before; [`Gone`](wholebar_core::Error::Gone) where nothing answers;
    /// [`Error::Core`] where BARs, interrupts or memory cannot be had.
    pub fn open(device: Arc<dyn PciDevice>, config: PortConfig, options: Options) -> Result<Self> {
        config.check(device.name(), &LIMITS, MIN_DESCRIPTORS)?;
        let rss = config.spread(device.name(), &LIMITS, regs::RSS_KEY)?;
        let _opening = Opening::of(device.clone());
        let hw = Hardware::open(device, &options)?;
        // Whoever had it before may have left it running.
        hw.bus_master(false)?;
        hw.reset()?;
        let settings = Settings {
            mac: hw.address()?,
            promiscuous: config.promiscuous,
            all_multicast: false,
            groups: Vec::new(),
            vlans: Vlans::default(),
            rss,
            mtu: config.mtu.unwrap_or(MTU),
            granted: config.offloads.and(LIMITS.offloads),
        };
        let queues = if config.rx_interrupts { u32::from(config.rx_queues) } else { 0 };
        let interrupts = Interrupts::first_of(hw.device.clone(), &[Irq::Msix], 1 + queues)?;
        let queue_context = QueueContext::new(hw.device.clone(), interrupts)?;
        let (service, patience) = (options.service, options.stop_timeout);
        let granted = settings.granted;
        let shared = Arc::new(Shared {
            hw,
            options,
            granted,
            max_packet: settings.max_packet(),
            max_received: settings.max_received(),
            segments: if granted.scatter || granted.lro { SEGMENTS } else { 1 },
            queue_context: queue_context.clone(),
            rx_counters: (0..config.rx_queues).map(|_| Arc::default()).collect(),
            tx_counters: (0..config.tx_queues).map(|_| Arc::default()).collect(),
            config,
        });
        let control = Control::new(&shared, settings)?;
        // Dropped, it stops the device.
        let mut control_plane = ControlPlane::new(Inner(shared.clone()), control, queue_context, patience)?;
        control_plane.peek(|control| control.bring_up(&shared))?;
        if service == Service::Thread {
            control_plane.spawn()?;
        }
        Ok(Self(Arc::new(control_plane)))
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.0.driver().0
    }

    /// Returns BAR0, which has the doorbells, as it was mapped.
    pub fn bar(&self) -> &Bar {
        &self.shared().hw.pt
    }

    /// Returns the PCI device.
    pub fn device(&self) -> &Arc<dyn PciDevice> {
        &self.shared().hw.device
    }

    /// Returns the device's revision, from 1 on: the highest that it and the driver know.
    pub fn revision(&self) -> u32 {
        self.shared().hw.revision.trailing_zeros() + 1
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
    pub fn attach(&self, arena: Arc<Arena>) -> Result<()> {
        Ok(self.0.queue_context().attach(arena).map(drop)?)
    }

    /// Unmaps an arena from the device: when this returns, the device cannot reach it any more. For an arena that is not attached it does nothing.
    ///
    /// # Errors
    /// [`StillAttached`](wholebar_core::Error::StillAttached) where a queue was given buffers of it, since queues stay with the device. Nothing has
    /// changed then.
    pub fn detach(&self, arena: &Arena) -> Result<()> {
        Ok(self.0.queue_context().detach(arena)?)
    }

    /// Returns receive queue `index`, from 0, which takes its buffers from `pool`; the pool's arena is attached. A dropped queue can be had again, with
    /// another pool; it has the buffers still that it was given before.
    ///
    /// # Errors
    /// [`PortError::Buffers`] where the buffers are too small; [`PortError::NoQueue`] where the port has no such queue, or it is in use; [`Error::Core`] where
    /// the arena cannot be mapped; [`Gone`](wholebar_core::Error::Gone) or [`Ended`](wholebar_core::Error::Ended) where the device is that.
    pub fn rx(&self, index: u16, pool: &Pool) -> Result<Rx> {
        self.check_buffers(pool)?;
        self.attach(pool.arena().clone())?;
        let id = QueueId::rx(index);
        match self.take(id)? {
            Some(Queue::Rx(mut queue)) => {
                queue.set_pool(pool);
                Ok(Rx::new(queue, self.0.clone()))
            }
            _ => Err(self.none(id, self.shared().config.rx_queues)),
        }
    }

    /// Returns send queue `index`, from 0. A dropped queue can be had again.
    ///
    /// # Errors
    /// [`PortError::NoQueue`] where the port has no such queue, or it is in use; [`Gone`](wholebar_core::Error::Gone) or
    /// [`Ended`](wholebar_core::Error::Ended) where the device is that.
    pub fn tx(&self, index: u16) -> Result<Tx> {
        let id = QueueId::tx(index);
        match self.take(id)? {
            Some(Queue::Tx(queue)) => Ok(Tx::new(queue, self.0.clone())),
            _ => Err(self.none(id, self.shared().config.tx_queues)),
        }
    }

    /// Takes a parked queue.
    fn take(&self, id: QueueId) -> Result<Option<Queue>> {
        self.0.with(|control| Ok(control.take(id)))
    }

    fn none(&self, id: QueueId, of: u16) -> Error {
        let why = if id.index >= of { "the port was opened with fewer" } else { "it is in use" };
        PortError::NoQueue { device: self.shared().hw.name(), direction: id.direction(), queue: id.index, why }.into()
    }

    /// Whether packets fit into a pool's buffers.
    fn check_buffers(&self, pool: &Pool) -> Result<()> {
        let Shared { hw, config, max_packet, segments, .. } = self.shared();
        let (size, headroom) = (pool.size(), config.headroom);
        let room = size.saturating_sub(headroom.into()).min(RX_ROOM);
        let least = max_packet.div_ceil((*segments).into()).max(LEAST_ROOM);
        if room >= least {
            return Ok(());
        }
        let want = least + u32::from(headroom);
        let else_scatter = if *segments > 1 { "" } else { ", or receive scattering asked for" };
        let why = format!("packets of {max_packet} bytes want {want}{else_scatter}");
        Err(PortError::Buffers { device: hw.name(), size, headroom, why }.into())
    }

    /// Returns the receiver of the port's events. While 256 wait, further ones are dropped.
    pub fn events(&self) -> &Receiver<Event> {
        self.0.events()
    }

    /// Resets the device, and returns when its queues can go on. Packets in flight may have been sent or not.
    ///
    /// Queues must be polled on other threads meanwhile; one that is not, within [`Options::stop_timeout`], is lost, and another can be had in its place.
    /// A thread that polls queues itself calls [`request_reset`](Self::request_reset) instead, and then [`service`](Self::service) between its polls.
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
        self.0.domain().quarantined()
    }

    /// Resets the device for good. Queues end.
    ///
    /// # Errors
    /// [`NotReady`](wholebar_core::Error::NotReady) where the device does not stop in time; [`Gone`](wholebar_core::Error::Gone) or
    /// [`Ended`](wholebar_core::Error::Ended) where it was that before.
    pub fn close(self) -> Result<()> {
        self.0.shut_down()
    }

    /// Changes settings, writes them to shared memory, and has the device read them by these commands.
    pub(crate) fn set(
        &self,
        change: impl FnOnce(&mut Settings),
        write: impl FnOnce(&SharedMemory, &Settings),
        commands: &[u32],
    ) -> Result<()> {
        self.0.with(|control| {
            change(&mut control.settings);
            write(&control.memory, &control.settings);
            commands.iter().try_for_each(|command| self.shared().hw.command(*command))
        })
    }
}

//! The port: the handle that applications hold. Its queues are values of their own ([`Rx`], [`Tx`]).

use crate::control::{Control, Totals};
use crate::device::{Handle, Inner, rx_vectors};
use crate::error::Result;
use crate::family::Family;
use crate::hardware::Hardware;
use crate::rx::Rx;
use crate::settings::{RSS_KEY, Settings};
use crate::tx::Tx;
use crate::{Options, Service};
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use wholebar_core::bar::Bar;
use wholebar_core::channel::Receiver;
use wholebar_core::control_plane::{ControlPlane, QueueContext};
use wholebar_core::irq::{EventFd, Interrupts};
use wholebar_core::mem::{Arena, Pool};
use wholebar_core::net::{Event, Link, PortConfig, TxWatchdogs, Vlans};
use wholebar_core::pci::{Irq, Opening, PciDevice};

/// One port of a device of family `F`: an [`Igb`](crate::igb::Igb).
///
/// Its queues keep it open; the device is reset when this handle and the last of them are dropped. Every method can be called from any thread while
/// queues are polled on others. Link, filters and statistics are in its implementation of [`Port`](wholebar_core::net::Port).
pub struct Nic<F: Family>(pub(crate) Arc<Handle<F>>);

/// Descriptors of a queue.
const MIN_DESCRIPTORS: u16 = 8;
/// The Ethernet payload that every network has, in bytes.
const MTU: u16 = 1500;

impl<F: Family> Nic<F> {
    /// Opens a port: resets the device, reads its address, configures it as `config` says, and brings the link up.
    ///
    /// The link takes up to a few seconds more: [`Event::Link`] reports it. An offload that the device does not have is left out.
    ///
    /// # Errors
    /// [`Error::Unfit`](crate::Error::Unfit) where the device is none for this driver; [`Error::Port`](crate::Error::Port) where `config` asks for what the device
    /// does not have; [`NotReady`](wholebar_core::Error::NotReady) where it does not come up;
    /// [`Gone`](wholebar_core::Error::Gone) where nothing answers; [`Error::Core`](crate::Error::Core) where BAR0, interrupts or memory cannot be had.
    pub fn open(device: Arc<dyn PciDevice>, config: PortConfig, options: Options) -> Result<Self> {
        config.check(device.name(), &F::LIMITS, MIN_DESCRIPTORS)?;
        let rss = config.spread(device.name(), &F::LIMITS, RSS_KEY)?;
        let _opening = Opening::of(device.clone());
        let hw = Hardware::open::<F>(device, &options)?;
        // Whoever had it before may have left it running.
        hw.bus_master(false)?;
        F::reset(&hw)?;
        let granted = F::grant(&config);
        let settings = Settings {
            mac: F::address(&hw)?,
            promiscuous: config.promiscuous,
            all_multicast: false,
            filters: Vec::new(),
            vlans: Vlans::default(),
            rss,
            mtu: config.mtu.unwrap_or(MTU),
            throttle: Duration::ZERO,
            granted,
            timesync: None,
            functions: F::functions(),
        };
        let max_packet = settings.max_packet();
        let queues = if config.rx_interrupts { u32::from(config.rx_queues) } else { 0 };
        let queue_context =
            QueueContext::new(hw.device.clone(), Interrupts::first_of(hw.device.clone(), &[Irq::Msix], 1 + queues)?)?;
        let mut control = Control {
            settings,
            queues: BTreeMap::new(),
            memory: Vec::new(),
            link: Link::default(),
            link_changes: 0,
            watchdogs: TxWatchdogs::new(config.tx_queues, options.stall_timeout),
            totals: Totals::of::<F>(config.rx_queues),
        };
        let vectors = rx_vectors(&config, queue_context.interrupts());
        let started = hw.bus_master(true).and_then(|()| control.set_up::<F>(&hw, queue_context.interrupts(), vectors));
        if let Err(error) = started {
            let _ = hw.bus_master(false);
            return Err(error);
        }
        let (service, patience) = (options.service, options.stop_timeout);
        let inner = Inner {
            name: hw.name(),
            hw,
            options,
            granted,
            max_packet,
            domain: queue_context.domain().clone(),
            queue_context: queue_context.clone(),
            rx_counters: (0..config.rx_queues).map(|_| Arc::default()).collect(),
            tx_counters: (0..config.tx_queues).map(|_| Arc::default()).collect(),
            config,
            clock: Mutex::new(None),
            family: PhantomData,
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
    /// [`Error::Core`](crate::Error::Core), with what [`DmaSpace::attach`](wholebar_core::mem::DmaSpace::attach) returned.
    pub fn attach(&self, arena: Arc<Arena>) -> Result<()> {
        Ok(self.0.queue_context().attach(arena).map(drop)?)
    }

    /// Unmaps an arena from the device: when this returns, the device cannot reach it any more. For an arena that is not attached it does nothing.
    ///
    /// # Errors
    /// [`StillAttached`](wholebar_core::Error::StillAttached) while a queue exists that was given buffers of it. Nothing has changed then.
    pub fn detach(&self, arena: &Arena) -> Result<()> {
        Ok(self.0.queue_context().detach(arena)?)
    }

    /// Returns receive queue `index`, from 0, which takes its buffers from `pool`; the pool's arena is attached. A dropped queue can be had again.
    ///
    /// The device writes a multiple of 1024 bytes into each buffer, behind the headroom. Best are buffers that hold the largest packet so: 2048 bytes
    /// and the headroom for an MTU of 1500.
    ///
    /// # Errors
    /// [`PortError::Buffers`](wholebar_core::net::PortError::Buffers) where the buffers are too small; [`NoQueue`](wholebar_core::net::PortError::NoQueue) where the port has no such queue, or it is in use;
    /// [`NotReady`](wholebar_core::Error::NotReady) where the device does not enable it; [`Error::Core`](crate::Error::Core) where memory cannot be had;
    /// [`Gone`](wholebar_core::Error::Gone) or [`Ended`](wholebar_core::Error::Ended) where the device is that.
    pub fn rx(&self, index: u16, pool: &Pool) -> Result<Rx<F>> {
        let inner = &self.0;
        let split = inner.driver().buffers(pool)?;
        let mapping = inner.queue_context().attach(pool.arena().clone())?;
        let parts = inner.with(|control| inner.driver().make_rx(control, index, pool, split, mapping))?;
        Ok(Rx::new(inner.clone(), parts))
    }

    /// Returns send queue `index`, from 0. A dropped queue can be had again.
    ///
    /// # Errors
    /// [`NoQueue`](wholebar_core::net::PortError::NoQueue) where the port has no such queue, or it is in use; [`NotReady`](wholebar_core::Error::NotReady) where the device does not
    /// enable it; [`Error::Core`](crate::Error::Core) where memory cannot be had; [`Gone`](wholebar_core::Error::Gone) or [`Ended`](wholebar_core::Error::Ended) where
    /// the device is that.
    pub fn tx(&self, index: u16) -> Result<Tx<F>> {
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

    /// How many receive queues have a vector.
    pub(crate) fn rx_vectors(&self) -> u16 {
        rx_vectors(&self.0.driver().config, self.0.queue_context().interrupts())
    }

    /// Changes settings, and tells the device. What it does not take is not set.
    pub(crate) fn set(
        &self,
        change: impl FnOnce(&mut Settings),
        apply: impl FnOnce(&Settings, &Hardware) -> Result<()>,
    ) -> Result<()> {
        self.0.with(|control| {
            let before = control.settings.clone();
            change(&mut control.settings);
            let applied = apply(&control.settings, &self.0.driver().hw);
            if applied.is_err() {
                control.settings = before;
            }
            applied
        })
    }
}

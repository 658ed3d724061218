//! What queues hold of their device's control plane: device, reset domain, interrupts, attached arenas, and a way to report faults. It does *not* take the
//! control plane's lock.

use crate::irq::{EventFd, Interrupts};
use crate::mem::{Arena, DmaMapping};
use crate::pci::PciDevice;
use crate::reset::Domain;
use crate::{Error, Result};
use std::sync::{Arc, Mutex, MutexGuard};

/// The part of a control plane that queues hold: device, reset domain, interrupts, attached arenas.
///
/// It is separate since queues may themselves be under the control plane's lock.
pub struct QueueContext<T> {
    pub(super) device: Arc<dyn PciDevice>,
    pub(super) domain: Domain,
    pub(super) interrupts: Option<Interrupts>,
    pub(super) queue_faults: Mutex<Vec<(u64, T)>>,
    /// Arenas whose buffers queues can use.
    arenas: Mutex<Vec<Arc<DmaMapping>>>,
    /// Signalled by vector 0 of the device, and by queues that report faults.
    pub(super) wake: Arc<EventFd>,
}

impl<T> QueueContext<T> {
    /// Creates the queues' part for a device and its interrupts. Vector 0 wakes the slow path; without interrupts, the slow path polls the device
    /// five times a second.
    ///
    /// # Errors
    /// What [`Interrupts::vector`] returns; [`Error::Io`] where the process has no descriptor left.
    pub fn new(device: Arc<dyn PciDevice>, interrupts: Option<Interrupts>) -> Result<Arc<Self>> {
        let wake = match &interrupts {
            Some(interrupts) => interrupts.vector(0)?,
            None => Arc::new(EventFd::new()?),
        };
        let (domain, queue_faults, arenas) = (Domain::new(), Mutex::default(), Mutex::default());
        Ok(Arc::new(Self { device, domain, interrupts, queue_faults, arenas, wake }))
    }

    /// Returns the device that the control plane serves, which stays open as long as this is held.
    pub fn device(&self) -> &Arc<dyn PciDevice> {
        &self.device
    }

    /// Returns the reset domain of the device's queues.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// Returns the device's interrupts, where it has some. Vector 0 belongs to the slow path.
    pub fn interrupts(&self) -> Option<&Interrupts> {
        self.interrupts.as_ref()
    }

    /// Returns the eventfd that wakes the slow path: signalled by vector 0 and by queues that report faults.
    pub fn wake(&self) -> &Arc<EventFd> {
        &self.wake
    }

    /// Reports a fault of a queue, with the epoch that the queue is in, and wakes the slow path. A lock and a system call. Faults of earlier epochs
    /// are ignored.
    pub fn report_fault(&self, epoch: u64, fault: T) {
        self.queue_faults.lock().unwrap_or_else(|e| e.into_inner()).push((epoch, fault));
        self.wake.signal();
    }

    /// Maps an arena for the device, within the device's DMA mask, so that its queues can use the arena's buffers. For an arena that is attached
    /// already it returns the existing mapping.
    ///
    /// # Errors
    /// As [`DmaSpace::attach`](crate::mem::DmaSpace::attach).
    pub fn attach(&self, arena: Arc<Arena>) -> Result<Arc<DmaMapping>> {
        let mapping = self.device.dma().attach(arena)?;
        let mut arenas = self.arenas();
        if arenas.iter().all(|m| m.arena().id() != mapping.arena().id()) {
            arenas.push(mapping.clone());
        }
        Ok(mapping)
    }

    /// Unmaps an arena from the device. When this returns, no queue can use its buffers. For an arena that is not attached it does nothing.
    ///
    /// # Errors
    /// [`Error::StillAttached`] while a queue that was given its buffers exists, or a ring is in it. Nothing has changed then.
    pub fn detach(&self, arena: &Arena) -> Result<()> {
        let mut arenas = self.arenas();
        let Some(at) = arenas.iter().position(|m| m.arena().id() == arena.id()) else { return Ok(()) };
        let mapping = arenas.swap_remove(at);
        mapping.detach().map_err(|held| {
            arenas.push(held);
            Error::StillAttached { device: self.device.name().to_owned(), len: arena.len() }
        })
    }

    /// Returns the mapping of the arena with this id; `None` where it is not attached. It takes a lock.
    pub fn arena(&self, id: u32) -> Option<Arc<DmaMapping>> {
        self.arenas().iter().find(|m| m.arena().id() == id).cloned()
    }

    fn arenas(&self) -> MutexGuard<'_, Vec<Arc<DmaMapping>>> {
        self.arenas.lock().unwrap_or_else(|e| e.into_inner())
    }
}

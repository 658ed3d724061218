//! Interrupts as eventfds: [`EventFd`], and [`Interrupts`], which connects eventfds to a device's vectors.
//!
//! Interrupts are for the slow path and for waking an idle core. Those who wait for them are [`crate::control_plane`] and [`crate::reactor`].
//!
//! ```
//! # use wholebar_core as wholebar;
//! use std::sync::Arc;
//! use std::time::Duration;
//! use wholebar::Result;
//! use wholebar::irq::Interrupts;
//! use wholebar::pci::PciDevice;
//!
//! /// Waits for interrupt 0 of a device, whichever kind it has; returns whether it came.
//! fn wait(device: Arc<dyn PciDevice>) -> Result<bool> {
//!     let Some(interrupts) = Interrupts::best(device.clone(), 1)? else { return Ok(false) };
//!     let count = interrupts.vector(0)?.wait(Some(Duration::from_secs(1)))?;
//!     // Needed for INTx alone.
//!     interrupts.rearm()?;
//!     Ok(count.is_some())
//! }
//! ```

mod coalescing;

pub use coalescing::Coalescing;

use crate::pci::{Irq, IrqAction, IrqInfo, PciDevice};
use crate::{Error, Result};
use rustix::io::{Errno, ReadWriteFlags};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// An eventfd: a counter in the kernel that interrupts and threads add to, and that can be waited for.
///
/// (Linux: `eventfd(2)`.)
///
/// Signals coalesce: two signals before a [`take`](Self::take) are one event with a count of two.
///
/// ```
/// # use wholebar_core as wholebar;
/// use std::time::Duration;
/// use wholebar::irq::EventFd;
///
/// let fd = EventFd::new()?;
/// fd.signal();
/// fd.signal();
/// assert_eq!(fd.wait(None)?, Some(2));
/// assert_eq!(fd.wait(Some(Duration::ZERO))?, None);
/// # Ok::<_, wholebar::Error>(())
/// ```
#[derive(Debug)]
pub struct EventFd(
    OwnedFd,
    /// What the kernel's lock of the count orders, which loom does not see: what came before a signal is seen by who took it.
    #[cfg(loom)]
    crate::sync::atomic::AtomicUsize,
);

impl EventFd {
    /// Creates an eventfd with a count of 0; it is non-blocking and closed on `exec`.
    ///
    /// # Errors
    /// [`Error::Io`] where the process has no descriptor left.
    pub fn new() -> Result<Self> {
        use rustix::event::{EventfdFlags, eventfd};
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let fd = fd.map_err(|e| Error::Io { what: "creating an eventfd".to_owned(), cause: e.into() })?;
        Ok(Self(
            fd,
            #[cfg(loom)]
            Default::default(),
        ))
    }

    /// Adds one to the count and wakes those who wait. One system call; it never blocks.
    pub fn signal(&self) {
        #[cfg(loom)]
        self.1.fetch_add(1, crate::sync::atomic::Ordering::Release);
        // It fails where the count is at its end, and then the event is there already.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Returns the count and sets it to 0. One system call; it never blocks, even if a server that was given the descriptor changed its mode.
    pub fn take(&self) -> u64 {
        let mut count = [0; 8];
        let taken = match self.read_now(&mut count) {
            // Kernels before 5.8 have no such read of an eventfd; nor have Miri and emulators.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => rustix::io::read(&self.0, &mut count),
            taken => taken,
        };
        #[cfg(loom)]
        self.1.fetch_add(0, crate::sync::atomic::Ordering::Acquire);
        if taken == Ok(8) { u64::from_ne_bytes(count) } else { 0 }
    }

    /// A read that doesn't wait, of whatever kind the open file is: a server that has it too can change that.
    fn read_now(&self, count: &mut [u8]) -> rustix::io::Result<usize> {
        if cfg!(miri) {
            return Err(Errno::NOSYS);
        }
        let nowhere = u64::MAX;
        rustix::io::preadv2(&self.0, &mut [IoSliceMut::new(count)], nowhere, ReadWriteFlags::NOWAIT)
    }

    /// Waits until the count is not 0, takes it and returns it; returns `None` where `timeout` is over first. `None` as the timeout waits for ever.
    ///
    /// At least two system calls. Interruptions by signal handlers do not end the wait.
    ///
    /// # Errors
    /// [`Error::Io`] where the system cannot wait.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<Option<u64>> {
        use rustix::event::{PollFd, PollFlags, poll};
        // A time that no clock can tell is for ever.
        let end = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            let timeout = left.and_then(|left| left.try_into().ok());
            match poll(&mut [PollFd::new(self, PollFlags::IN)], timeout.as_ref()) {
                // A signal handler's interruption is not an end of the wait, nor is that another thread took the count.
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(failed("waiting for an eventfd", e)),
            }
            match self.take() {
                0 if end.is_some_and(|end| end <= Instant::now()) => return Ok(None),
                0 => {}
                count => return Ok(Some(count)),
            }
        }
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Whether a peer's descriptor is an eventfd: writing to anything else, or watching it, could wait, or raise SIGPIPE.
#[cfg(any(feature = "vfio-user", feature = "vhost-user"))]
pub(crate) fn is_eventfd(fd: &OwnedFd) -> bool {
    use std::os::fd::AsRawFd;
    match std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())) {
        Ok(target) => target.as_os_str() == "anon_inode:[eventfd]",
        // Without /proc nobody can tell.
        Err(_) => true,
    }
}

/// The vectors of one kind of interrupt of a device, each with its eventfd.
///
/// The kind is disabled on drop. (Linux: `VFIO_DEVICE_SET_IRQS`; DPDK: `rte_intr_enable`.)
///
/// Where vectors can be added one at a time, [`vector`](Self::vector) does that; elsewhere all are enabled when this is created. The methods that
/// return a `Result` cost a lock and perhaps a system call or a message: they are not for the hot path.
pub struct Interrupts {
    device: Arc<dyn PciDevice>,
    kind: Irq,
    info: IrqInfo,
    fds: Mutex<Vec<Option<Arc<EventFd>>>>,
}

impl Interrupts {
    /// Prepares the first `count` interrupts of a kind, or all where there are fewer.
    ///
    /// # Errors
    /// [`Error::NoSuchIrq`] where the device has none of that kind, or `count` is 0; [`Error::Io`] or [`Error::Access`] where the backend refuses.
    pub fn new(device: Arc<dyn PciDevice>, kind: Irq, count: u32) -> Result<Self> {
        let info = device.irq_info(kind)?;
        let count = count.min(info.count);
        if count == 0 {
            return Err(Error::NoSuchIrq { device: device.name().to_owned(), kind, vector: 0, count: 0 });
        }
        let mut fds = vec![None; count as usize];
        if !info.resizable {
            for fd in &mut fds {
                *fd = Some(Arc::new(EventFd::new()?));
            }
        }
        let new = Self { device, kind, info, fds: Mutex::new(fds) };
        new.restore()?;
        Ok(new)
    }

    /// Prepares interrupts of the best kind that the device has: MSI-X, else MSI, else INTx; returns `None` for a device without interrupts.
    ///
    /// Of MSI-X these are `count` vectors, or all where there are fewer. Of MSI it is one: several must be granted together, which platforms seldom
    /// do. INTx is one, and must be [rearmed](Self::rearm) after each interrupt. (Linux: `pci_alloc_irq_vectors`.)
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn best(device: Arc<dyn PciDevice>, count: u32) -> Result<Option<Self>> {
        Self::first_of(device, &[Irq::Msix, Irq::Msi, Irq::Intx], count)
    }

    /// Prepares interrupts of the first of `kinds` that the device has, as [`best`](Self::best) does: for a device or driver that cannot use the others.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn first_of(device: Arc<dyn PciDevice>, kinds: &[Irq], count: u32) -> Result<Option<Self>> {
        for &kind in kinds {
            match device.irq_info(kind) {
                Ok(IrqInfo { count: 0, .. }) | Err(Error::NoSuchIrq { .. }) => {}
                Ok(_) => return Self::new(device, kind, if kind == Irq::Msix { count } else { 1 }).map(Some),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Enables interrupt `vector` and returns its eventfd: the same one at each call.
    ///
    /// # Errors
    /// [`Error::NoSuchIrq`] where `vector` is not below [`count`](Self::count); [`Error::Io`] or [`Error::Access`] where the backend refuses.
    pub fn vector(&self, vector: u32) -> Result<Arc<EventFd>> {
        let mut fds = self.fds();
        let count = fds.len() as u32;
        let Some(slot) = fds.get_mut(vector as usize) else {
            return Err(Error::NoSuchIrq { device: self.device.name().to_owned(), kind: self.kind, vector, count });
        };
        if let Some(fd) = slot {
            return Ok(fd.clone());
        }
        let fd = Arc::new(EventFd::new()?);
        self.device.set_irqs(self.kind, vector, IrqAction::Fds(&[Some(fd.as_fd())]))?;
        Ok(slot.insert(fd).clone())
    }

    /// Disconnects vector `vector` from its eventfd, or connects it again: while it is disconnected its interrupts go nowhere, and cost the host nothing. An
    /// interrupt that a device raises meanwhile may be signalled when it is connected again. [`vector`](Self::vector) comes first.
    ///
    /// # Errors
    /// [`Error::NoSuchIrq`] for a vector that has no eventfd; [`Error::Io`] or [`Error::Access`] where the backend refuses.
    pub fn connect(&self, vector: u32, connected: bool) -> Result<()> {
        let fds = self.fds();
        let Some(Some(fd)) = fds.get(vector as usize) else {
            let count = fds.len() as u32;
            return Err(Error::NoSuchIrq { device: self.device.name().to_owned(), kind: self.kind, vector, count });
        };
        self.device.set_irqs(self.kind, vector, IrqAction::Fds(&[connected.then_some(fd.as_fd())]))
    }

    /// Connects the eventfds to the vectors again, after a reset of the function, which may have disconnected them.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Access`] where the backend refuses.
    pub fn restore(&self) -> Result<()> {
        let fds = self.fds();
        let borrowed: Vec<_> = fds.iter().map(|fd| fd.as_ref().map(|fd| fd.as_fd())).collect();
        // Runs of vectors that are in use, so that a vector nobody asked for stays unallocated.
        let mut first = 0;
        for run in borrowed.chunk_by(|a, b| a.is_some() == b.is_some()) {
            if run[0].is_some() {
                self.device.set_irqs(self.kind, first, IrqAction::Fds(run))?;
            }
            first += run.len() as u32;
        }
        Ok(())
    }

    /// Signals the eventfd of interrupt `vector` by software, as a test of the path from the kernel on. (Linux: `VFIO_IRQ_SET_ACTION_TRIGGER`.)
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Access`] where the backend refuses.
    pub fn trigger(&self, vector: u32) -> Result<()> {
        self.device.set_irqs(self.kind, vector, IrqAction::Trigger(1))
    }

    /// Unmasks INTx, which the kernel masks whenever it signals it, because the line stays up until the device has been served. For MSI and MSI-X it
    /// does nothing.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Access`] where the backend refuses.
    pub fn rearm(&self) -> Result<()> {
        if self.kind == Irq::Intx { self.device.set_irqs(self.kind, 0, IrqAction::Unmask(1)) } else { Ok(()) }
    }

    /// Returns the number of vectors that can be used.
    pub fn count(&self) -> u32 {
        self.fds().len() as u32
    }

    /// Returns the kind of interrupt, and what can be done with it.
    pub fn info(&self) -> (Irq, IrqInfo) {
        (self.kind, self.info)
    }

    /// Returns the device.
    pub fn device(&self) -> &Arc<dyn PciDevice> {
        &self.device
    }

    fn fds(&self) -> MutexGuard<'_, Vec<Option<Arc<EventFd>>>> {
        self.fds.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        if self.fds().iter().any(Option::is_some)
            && let Err(error) = self.device.set_irqs(self.kind, 0, IrqAction::Disable)
        {
            tracing::warn!(device = self.device.name(), kind = %self.kind, %error, "interrupts stay enabled");
        }
    }
}

/// Waits for several eventfds at once, each with a number.
pub(crate) struct Epoll(OwnedFd);

impl Epoll {
    pub(crate) fn new() -> Result<Self> {
        use rustix::event::epoll::{CreateFlags, create};
        Ok(Self(create(CreateFlags::CLOEXEC).map_err(|e| failed("creating an epoll set", e))?))
    }

    pub(crate) fn add(&self, fd: &EventFd, number: u64) -> Result<()> {
        use rustix::event::epoll::{EventData, EventFlags, add};
        // Edge-triggered: each signal is told once, whether or not the one before it was taken.
        let flags = EventFlags::IN | EventFlags::ET;
        add(&self.0, fd, EventData::new_u64(number), flags).map_err(|e| failed("adding to an epoll set", e))
    }

    /// The numbers of at most 32 eventfds that are signalled; none where the time is over, or a signal handler interrupts a wait that has a timeout.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> Result<impl Iterator<Item = u64> + use<>> {
        use rustix::event::epoll::{Event, EventData, EventFlags, wait};
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        // A time that no clock can tell is for ever.
        let mut timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        // Miri can't poll.
        if let Some(time) = timeout.filter(|_| !cfg!(miri)) {
            // epoll_wait(2) counts milliseconds, and deadlines are nearer than that. (Who is interrupted looks too early, and sleeps again.)
            let _ = poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&time));
            timeout = Some(Timespec::default());
        }
        let mut events = [Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; 32];
        let n = loop {
            match wait(&self.0, &mut events[..], timeout.as_ref()) {
                Ok(n) => break n,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(failed("waiting for events", e)),
            }
        };
        Ok(events.into_iter().take(n).map(|e| e.data.u64()))
    }
}

fn failed(what: &str, e: rustix::io::Errno) -> Error {
    Error::Io { what: what.to_owned(), cause: io::Error::from(e) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::mem::DmaSpace;
    use crate::pci::{DeviceInfo, DeviceKind, Irq, Isolation, Prot, RegionInfo, RegionMapping};
    use crate::{Error, PageSize};
    use std::os::fd::OwnedFd;

    /// A device that is nothing but interrupts, and remembers what it was told.
    pub(crate) struct Wires {
        pub irqs: [IrqInfo; 5],
        pub state: Mutex<WiresState>,
    }

    #[derive(Default)]
    pub(crate) struct WiresState {
        pub fds: std::collections::BTreeMap<(Irq, u32), OwnedFd>,
        pub calls: Vec<String>,
    }

    impl Wires {
        pub(crate) fn new(msix: u32, resizable: bool, notices: u32) -> Arc<Self> {
            let info = |count| IrqInfo { count, eventfd: true, resizable, ..IrqInfo::default() };
            let irqs = [info(1), info(0), info(msix), info(notices), info(notices)];
            Arc::new(Self { irqs, state: Mutex::default() })
        }

        pub(crate) fn raise(&self, kind: Irq, vector: u32) {
            let state = self.state.lock().unwrap();
            rustix::io::write(&state.fds[&(kind, vector)], &1u64.to_ne_bytes()).unwrap();
        }

        pub(crate) fn calls(&self) -> Vec<String> {
            std::mem::take(&mut self.state.lock().unwrap().calls)
        }
    }

    fn none<T>() -> Result<T> {
        Err(Error::NoSuchRegion { device: "wires".to_owned(), region: 0 })
    }

    impl PciDevice for Wires {
        fn name(&self) -> &str {
            "wires"
        }
        fn kind(&self) -> DeviceKind {
            DeviceKind::Model
        }
        fn info(&self) -> DeviceInfo {
            DeviceInfo { regions: 0, irqs: 5, resettable: false }
        }
        fn page_size(&self) -> PageSize {
            PageSize::K4
        }
        fn isolation(&self) -> Isolation {
            Isolation::by_construction()
        }
        fn region(&self, _: u32) -> Result<RegionInfo> {
            none()
        }
        fn read(&self, _: u32, _: u64, _: &mut [u8]) -> Result<()> {
            none()
        }
        fn write(&self, _: u32, _: u64, _: &[u8]) -> Result<()> {
            none()
        }
        fn map(&self, _: u32, _: std::ops::Range<u64>, _: Prot) -> Result<RegionMapping> {
            none()
        }
        fn irq_info(&self, kind: Irq) -> Result<IrqInfo> {
            Ok(self.irqs[kind as usize])
        }
        fn set_irqs(&self, kind: Irq, first: u32, action: IrqAction<'_>) -> Result<()> {
            let mut state = self.state.lock().unwrap();
            match action {
                IrqAction::Fds(fds) => {
                    state.calls.push(format!("{kind}: {first}+{}", fds.len()));
                    for (vector, fd) in (first..).zip(fds) {
                        state.fds.insert((kind, vector), fd.unwrap().try_clone_to_owned().unwrap());
                    }
                }
                IrqAction::Disable => {
                    state.calls.push(format!("{kind}: off"));
                    state.fds.retain(|(k, _), _| *k != kind);
                }
                IrqAction::Trigger(_) => {
                    rustix::io::write(&state.fds[&(kind, first)], &1u64.to_ne_bytes()).unwrap();
                }
                IrqAction::Unmask(_) => state.calls.push(format!("{kind}: unmasked")),
                IrqAction::Mask(_) => return none(),
            }
            Ok(())
        }
        fn dma(&self) -> Arc<DmaSpace> {
            unimplemented!("no DMA")
        }
        fn reset(&self) -> Result<()> {
            self.state.lock().unwrap().fds.clear();
            Ok(())
        }
    }

    #[test]
    fn eventfds_count_and_wait() {
        let fd = EventFd::new().unwrap();
        assert_eq!(fd.take(), 0);
        assert_eq!(fd.wait(Some(Duration::ZERO)).unwrap(), None);
        fd.signal();
        fd.signal();
        assert_eq!(fd.wait(None).unwrap(), Some(2));
        assert_eq!(fd.take(), 0);
    }

    #[test]
    #[cfg_attr(miri, ignore = "has no fcntl for it")]
    fn what_somebody_else_made_blocking_does_not_block() {
        let fd = EventFd::new().unwrap();
        rustix::fs::fcntl_setfl(&fd, rustix::fs::OFlags::empty()).unwrap();
        assert_eq!(fd.take(), 0);
        fd.signal();
        assert_eq!((fd.take(), fd.take()), (1, 0));
    }

    #[test]
    fn vectors_are_added_one_at_a_time_where_they_can_be() {
        let device = Wires::new(8, true, 0);
        let irqs = Interrupts::new(device.clone(), Irq::Msix, 100).unwrap();
        assert_eq!(irqs.count(), 8);
        assert!(device.calls().is_empty());
        for vector in [3, 0, 3, 1] {
            irqs.vector(vector).unwrap();
        }
        assert_eq!(device.calls(), ["MSI-X: 3+1", "MSI-X: 0+1", "MSI-X: 1+1"]);
        device.reset().unwrap();
        irqs.restore().unwrap();
        assert_eq!(device.calls(), ["MSI-X: 0+2", "MSI-X: 3+1"]);
        irqs.trigger(3).unwrap();
        assert_eq!((irqs.vector(3).unwrap().take(), irqs.vector(1).unwrap().take()), (1, 0));
        assert!(matches!(irqs.vector(8), Err(Error::NoSuchIrq { vector: 8, count: 8, .. })));
        drop(irqs);
        assert_eq!(device.calls(), ["MSI-X: off"]);
    }

    #[test]
    fn the_best_kind_is_taken() {
        let best = |irqs: [u32; 3], count| {
            let mut device = Wires::new(0, true, 1);
            let wires = Arc::get_mut(&mut device).unwrap();
            wires.irqs.iter_mut().zip(irqs).for_each(|(info, count)| info.count = count);
            Interrupts::best(device, count).unwrap().map(|irqs| (irqs.info().0, irqs.count()))
        };
        for (irqs, count, expected) in [
            ([1, 4, 8], 3, Some((Irq::Msix, 3))),
            ([1, 4, 8], 9, Some((Irq::Msix, 8))),
            ([1, 4, 0], 3, Some((Irq::Msi, 1))),
            ([1, 0, 0], 3, Some((Irq::Intx, 1))),
            ([0, 0, 0], 3, None),
        ] {
            assert_eq!(best(irqs, count), expected, "{irqs:?} {count}");
        }
        let device = Wires::new(8, true, 0);
        assert!(Interrupts::first_of(device, &[Irq::Msi], 1).unwrap().is_none());
    }

    #[test]
    fn elsewhere_all_are_enabled_at_once() {
        let device = Wires::new(8, false, 0);
        let irqs = Interrupts::new(device.clone(), Irq::Msix, 5).unwrap();
        irqs.vector(4).unwrap();
        assert!(irqs.vector(5).is_err());
        assert_eq!(device.calls(), ["MSI-X: 0+5"]);
        drop(irqs);
        assert_eq!(device.calls(), ["MSI-X: off"]);
        assert!(matches!(Interrupts::new(device, Irq::Msi, 1), Err(Error::NoSuchIrq { .. })));
    }
}

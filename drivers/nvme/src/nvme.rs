//! The controller: the handle that applications hold. Its queues are values of their own ([`Queue`]).

use crate::admin::AdminQueue;
use crate::bytes::u8_at;
use crate::cmb::MemoryBuffer;
use crate::command;
use crate::control::{Control, memory};
use crate::device::{Handle, Inner};
use crate::doorbell::Shadows;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::feature;
use crate::hardware::Hardware;
use crate::host_memory::HostMemory;
use crate::identify::{self, CommandLimits, Controller, Namespace, cns, csi};
use crate::log::{self, ErrorEntry, FirmwareSlots, Smart, lid};
use crate::namespaces::{self, Changed, Namespaces};
use crate::options::{Options, QueueOptions, Service, ShadowDoorbells};
use crate::queue::Queue;
use crate::quirks::{MIN_SHARED_ENTRIES, Quirk};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use wholebar_core::bar::Bar;
use wholebar_core::channel::Receiver;
use wholebar_core::control_plane::{ControlPlane, QueueContext};
use wholebar_core::irq::{Coalescing, Interrupts};
use wholebar_core::mem::Arena;
use wholebar_core::pci::{Irq, Opening, PciDevice};

/// The unit of the aggregation time (5.27.1.8).
const COALESCING_UNIT: Duration = Duration::from_micros(100);

/// An NVMe controller.
///
/// SPDK: `spdk_nvme_ctrlr`; libvfn: `struct nvme_ctrl`.
///
/// Its queues keep it open; it is shut down when this handle and the last of them are dropped. Every method can be called from any thread while
/// queues are polled on others. Those that return a `Result` take the lock of the control plane and wait for a reset that is under way, and most send
/// an admin command: they are not for the loop that does I/O.
pub struct Nvme(pub(crate) Arc<Handle>);

impl Nvme {
    /// Opens a controller: disables it, in case that it was left running, creates the admin queue, enables the controller and identifies it, its
    /// namespaces included.
    ///
    /// It takes as long as the controller needs to become ready (CAP.TO bounds that, and [`Options::ready_timeout`]), and a few admin commands. (SPDK: `spdk_nvme_connect`.)
    ///
    /// # Errors
    /// [`Error::Unfit`] where the controller is none for this driver; [`NotReady`](wholebar_core::Error::NotReady) where it does not become ready in
    /// time; [`Gone`](wholebar_core::Error::Gone) where nothing answers; [`Error::Refused`] or [`Error::Unanswered`] where an admin command fails;
    /// [`Error::Core`] where BAR0, interrupts or memory cannot be had.
    pub fn open(device: Arc<dyn PciDevice>, options: Options) -> Result<Self> {
        let _opening = Opening::of(device.clone());
        let mut hw = Hardware::open(device, &options)?;
        // Whoever had it before may have left it running.
        hw.disable()?;
        hw.find_memory_buffer(&options)?;
        // Vectors before CC.EN: some controllers look at them only then.
        let queue_context = QueueContext::new(hw.device.clone(), interrupts(&hw, &options)?)?;
        let memory = memory(&hw, 0)?;
        let admin = AdminQueue::new(&hw, &memory, options.admin_timeout)?;
        let mut control = Control {
            admin,
            queues: BTreeMap::new(),
            granted: 0,
            shadows: None,
            coalescing: None,
            host_memory: None,
            notifications: VecDeque::new(),
            memory: vec![memory],
        };
        let (controller, namespaces) = match bring_up(&hw, &options, &mut control) {
            Ok(identity) => identity,
            Err(error) => {
                let _ = hw.bus_master(false);
                if hw.disable().is_ok() {
                    control.release();
                }
                return Err(error);
            }
        };
        if options.quirks.is_none() {
            hw.quirks.extend(Quirk::of_model(controller.vendor, &controller.model).map(|(quirk, _)| quirk));
        }
        let (service, patience) = (options.service, options.stop_timeout);
        let namespaces = Namespaces::new(namespaces);
        let domain = queue_context.domain().clone();
        let inner = Inner { hw, options, controller, namespaces, domain, queue_context: queue_context.clone() };
        let mut control_plane = ControlPlane::new(inner, control, queue_context, patience)?;
        if service == Service::Thread {
            control_plane.spawn()?;
        }
        Ok(Self(Arc::new(control_plane)))
    }

    /// Returns the controller's identity, as it was read when it was opened (Identify Controller, 5.17.2.1).
    pub fn identify(&self) -> &Controller {
        &self.0.driver().controller
    }

    /// Returns the active namespaces in the order of their identifiers, those that this driver cannot use included.
    ///
    /// The slow path reads them again when the controller reports that they changed, before it passes that event on
    /// ([`AsyncEvent`](crate::AsyncEvent)), and after a reset. Queues use the new list from their next poll on. It takes a lock, and sends no
    /// command.
    ///
    /// While a namespace is being formatted with another block size, the caller must not use it: requests that were submitted before the controller
    /// reported the change are in blocks of the old size.
    pub fn namespaces(&self) -> Arc<[Namespace]> {
        self.0.driver().namespaces.list()
    }

    /// Reads the namespaces from the controller now, whether or not it reported a change. Several admin commands.
    ///
    /// # Errors
    /// [`Error::Refused`] with the controller's status, [`Error::Unanswered`] where it does not answer in time, [`Gone`](wholebar_core::Error::Gone) or
    /// [`Ended`](wholebar_core::Error::Ended) where it can't be used.
    pub fn read_namespaces(&self) -> Result<Arc<[Namespace]>> {
        let driver = self.0.driver();
        self.0.with(|c| driver.namespaces.read_again(&driver.hw, &mut c.admin, &driver.controller, &Changed::All))?;
        Ok(self.namespaces())
    }

    /// Returns the largest transfer of one command, in bytes: the smallest of [`Options::max_transfer`], MDTS, and what a page of PRP entries
    /// describes. Longer requests are split.
    pub fn max_transfer(&self) -> u32 {
        self.0.driver().max_transfer()
    }

    /// Returns the controller's page size in bytes (CC.MPS).
    pub fn page(&self) -> u64 {
        self.0.driver().hw.page
    }

    /// Returns the largest page size in bytes that the controller could be given (CAP.MPSMAX).
    pub fn max_page(&self) -> u64 {
        self.0.driver().hw.cap.max_page()
    }

    /// Returns what the controller is known, or [said](Options::quirks), to do otherwise than the standard says.
    pub fn quirks(&self) -> &[Quirk] {
        &self.0.driver().hw.quirks
    }

    /// Returns what the controller says of its memory buffer (CMB), and whether it is [used](Options::controller_memory); `None` where it has none that can be
    /// given an address.
    pub fn memory_buffer(&self) -> Option<MemoryBuffer> {
        self.0.driver().hw.memory
    }

    /// Returns how much of the host's memory the controller was [given](Options::host_memory_buffer), in bytes; 0 for none.
    pub fn host_memory_buffer(&self) -> u64 {
        self.0.peek(|control| control.host_memory.as_ref().map_or(0, HostMemory::given))
    }

    /// Returns the largest number of entries that a queue can have: a power of two (CAP.MQES).
    pub fn max_entries(&self) -> u32 {
        self.0.driver().max_entries()
    }

    /// Returns whether doorbells have shadows in memory (Doorbell Buffer Config): see [`Options::shadow_doorbells`].
    pub fn shadow_doorbells(&self) -> bool {
        self.0.peek(|control| control.shadows.is_some())
    }

    /// Returns the number of I/O queue pairs that the controller granted (Set Features, Number of Queues).
    pub fn io_queues(&self) -> u16 {
        self.0.peek(|control| control.granted)
    }

    /// Returns BAR0, as it was mapped.
    pub fn bar(&self) -> &Bar {
        &self.0.driver().hw.bar
    }

    /// Returns the PCI device.
    pub fn device(&self) -> &Arc<dyn PciDevice> {
        &self.0.driver().hw.device
    }

    /// Returns the controller's interrupts, where it has some. With MSI-X there are vectors for queues, too: [`QueueOptions::interrupt`].
    pub fn interrupts(&self) -> Option<&Interrupts> {
        self.0.queue_context().interrupts()
    }

    /// Maps an arena for the controller, so that its queues can use buffers there. For an arena that is attached already it does nothing. (SPDK:
    /// `spdk_mem_register`; libvfn: `iommu_map_vaddr`.)
    ///
    /// # Errors
    /// [`Error::Core`], with what [`DmaSpace::attach`](wholebar_core::mem::DmaSpace::attach) returned.
    pub fn attach(&self, arena: Arc<Arena>) -> Result<()> {
        Ok(self.0.queue_context().attach(arena).map(drop)?)
    }

    /// Unmaps an arena from the controller: when this returns, the controller cannot reach it any more. For an arena that is not attached it does nothing.
    ///
    /// # Errors
    /// [`StillAttached`](wholebar_core::Error::StillAttached) while a queue exists that was given buffers of it. Nothing has changed then.
    pub fn detach(&self, arena: &Arena) -> Result<()> {
        Ok(self.0.queue_context().detach(arena)?)
    }

    /// Creates a queue pair, to be owned by one core: two admin commands. Dropping it deletes it. (SPDK: `spdk_nvme_ctrlr_alloc_io_qpair`; libvfn:
    /// `nvme_create_ioqpair`.)
    ///
    /// # Errors
    /// [`Error::Entries`] for a number of entries that is no power of two, or more than [`max_entries`](Self::max_entries); [`Error::NoQueueLeft`]
    /// where all granted queues are in use; [`Error::Vector`] for an interrupt vector that queues cannot have; [`Error::Refused`] or
    /// [`Error::Unanswered`] where the controller does not create it; [`Gone`](wholebar_core::Error::Gone) or [`Ended`](wholebar_core::Error::Ended)
    /// where the controller is that.
    pub fn queue(&self, options: QueueOptions) -> Result<Queue> {
        let driver = self.0.driver();
        let entries = options.entries.unwrap_or(driver.options.entries.min(driver.max_entries()));
        // Some identifiers are the admin queue's.
        let entries = if driver.hw.has(Quirk::SharedTags) { entries.max(MIN_SHARED_ENTRIES) } else { entries };
        if !entries.is_power_of_two() || !(2..=driver.max_entries()).contains(&entries) {
            return Err(Error::Entries { device: driver.hw.name(), asked: entries, max: driver.max_entries() });
        }
        let parts = self.0.with(|control| driver.make_queue(control, entries, options.interrupt))?;
        Ok(Queue::new(self.0.clone(), parts))
    }

    /// Reads the SMART / Health Information log (5.16.1.3).
    ///
    /// # Errors
    /// [`Error::Refused`] with the controller's status, [`Error::Unanswered`] where it does not answer in time, [`Gone`](wholebar_core::Error::Gone) or
    /// [`Ended`](wholebar_core::Error::Ended) where it can't be used.
    pub fn smart(&self) -> Result<Smart> {
        Ok(Smart::parse(&self.log(lid::SMART, log::LEN)?))
    }

    /// Reads the Error Information log (5.16.1.2), newest entry first: as much of it as fits into a page.
    ///
    /// # Errors
    /// [`Error::Refused`] with the controller's status, [`Error::Unanswered`] where it does not answer in time, [`Gone`](wholebar_core::Error::Gone) or
    /// [`Ended`](wholebar_core::Error::Ended) where it can't be used.
    pub fn error_log(&self) -> Result<Vec<ErrorEntry>> {
        let bytes = usize::from(self.0.driver().controller.error_log_entries) * log::ERROR_ENTRY;
        Ok(ErrorEntry::parse(&self.log(lid::ERROR, bytes.min(self.0.driver().hw.page as usize))?))
    }

    /// Reads the Firmware Slot Information log (5.16.1.4).
    ///
    /// # Errors
    /// [`Error::Refused`] with the controller's status, [`Error::Unanswered`] where it does not answer in time, [`Gone`](wholebar_core::Error::Gone) or
    /// [`Ended`](wholebar_core::Error::Ended) where it can't be used.
    pub fn firmware_log(&self) -> Result<FirmwareSlots> {
        Ok(FirmwareSlots::parse(&self.log(lid::FIRMWARE, log::LEN)?))
    }

    /// Reads a feature's current value (Get Features): dword 0 of the completion. [`feature`](crate::feature) has the identifiers.
    ///
    /// # Errors
    /// [`Error::Refused`] with the controller's status, [`Error::Unanswered`] where it does not answer in time, [`Gone`](wholebar_core::Error::Gone) or
    /// [`Ended`](wholebar_core::Error::Ended) where it can't be used.
    pub fn feature(&self, id: u8) -> Result<u32> {
        self.0.with(|c| c.admin.execute(&self.0.driver().hw, command::get_features(id, 0)))
    }

    /// Sets a feature (Set Features), and returns dword 0 of the completion. `save` asks the controller to keep the value across resets.
    ///
    /// # Errors
    /// [`Error::Refused`] with the controller's status, [`Error::Unanswered`] where it does not answer in time, [`Gone`](wholebar_core::Error::Gone) or
    /// [`Ended`](wholebar_core::Error::Ended) where it can't be used.
    pub fn set_feature(&self, id: u8, value: u32, save: bool) -> Result<u32> {
        self.0.with(|c| c.admin.execute(&self.0.driver().hw, command::set_features(id, 0, value, save)))
    }

    /// Returns when the I/O queues interrupt (Get Features 08h, 5.27.1.8).
    ///
    /// # Errors
    /// Those of [`feature`](Self::feature).
    pub fn coalescing(&self) -> Result<Coalescing> {
        let value = self.feature(feature::INTERRUPT_COALESCING)?;
        Ok(Coalescing { events: (value & 0xff) + 1, time: COALESCING_UNIT * (value >> 8 & 0xff) })
    }

    /// Sets when the I/O queues interrupt (Set Features 08h, 5.27.1.8), and returns what the controller made of it. It lasts through resets. The time is rounded
    /// up to 100 microseconds; no more than 256 completions are waited for.
    ///
    /// # Errors
    /// [`CoalescingTime`](wholebar_core::Error::CoalescingTime) for a time above 25.5 milliseconds; those of [`set_feature`](Self::set_feature).
    pub fn set_coalescing(&self, coalescing: Coalescing) -> Result<Coalescing> {
        let units = coalescing.time.as_nanos().div_ceil(COALESCING_UNIT.as_nanos());
        let (device, most) = (self.device().name(), COALESCING_UNIT * 0xff);
        let too_long = || wholebar_core::Error::CoalescingTime { device: device.to_owned(), most };
        let time = u32::try_from(units).ok().filter(|units| *units <= 0xff).ok_or_else(too_long)?;
        // The threshold is 0's based.
        let value = if coalescing.is_off() { 0 } else { time << 8 | (coalescing.events.min(256) - 1) };
        self.0.with(|c| {
            let set = command::set_features(feature::INTERRUPT_COALESCING, 0, value, false);
            c.admin.execute(&self.0.driver().hw, set)?;
            c.coalescing = Some(value);
            Ok(())
        })?;
        self.coalescing()
    }

    /// Returns the receiver of the controller's events. While 256 wait, further ones are dropped.
    pub fn events(&self) -> &Receiver<Event> {
        self.0.events()
    }

    /// Resets the controller, and returns when its queues can go on. Commands in flight complete as aborted. (SPDK: `spdk_nvme_ctrlr_reset`.)
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

    /// Begins a reset of the controller and returns at once. [`service`](Self::service), or the slow path's thread, continues it.
    pub fn request_reset(&self) {
        self.0.request_reset();
    }

    /// Does the slow path's work: events, aborts, resets. Returns whether it wants to be called again soon.
    ///
    /// For programs that chose [`Service::Manual`]. It waits for the controller, never for queues.
    ///
    /// # Errors
    /// [`Gone`](wholebar_core::Error::Gone) or [`Ended`](wholebar_core::Error::Ended), as soon as the controller is that.
    pub fn service(&self) -> Result<bool> {
        Ok(self.0.service()?)
    }

    /// Checks that the controller can be used. It takes a lock, and sends no command.
    ///
    /// # Errors
    /// [`Gone`](wholebar_core::Error::Gone) or [`Ended`](wholebar_core::Error::Ended) where it cannot.
    pub fn check(&self) -> Result<()> {
        Ok(self.0.check()?)
    }

    /// Returns the number of buffers that were quarantined, because the controller may still write them.
    pub fn quarantined(&self) -> u64 {
        self.0.driver().domain.quarantined()
    }

    /// Shuts the controller down: when this returns, it has written back its caches (CC.SHN, 3.6.1). Queues end.
    ///
    /// # Errors
    /// [`NotReady`](wholebar_core::Error::NotReady) where the controller does not finish in time; [`Gone`](wholebar_core::Error::Gone) or
    /// [`Ended`](wholebar_core::Error::Ended) where it was that before.
    pub fn shutdown(self) -> Result<()> {
        self.0.shut_down()
    }

    /// Reads a log page that fits into a page of memory.
    pub(crate) fn log(&self, lid: u8, len: usize) -> Result<Vec<u8>> {
        self.0.with(|c| {
            let read = command::get_log_page(lid, len as u32, c.admin.data_iova());
            c.admin.fetch(&self.0.driver().hw, read, len)
        })
    }
}

/// The interrupts that were asked for, or else the best that there are. Queues have vectors of their own with MSI-X alone.
fn interrupts(hw: &Hardware, options: &Options) -> Result<Option<Interrupts>> {
    let queues = if hw.has(Quirk::OneVector) { 0 } else { options.io_queues.into() };
    let (device, count) = (hw.device.clone(), 1 + queues);
    Ok(match options.interrupts {
        None => Interrupts::best(device, count)?,
        Some(Irq::Msix) => Some(Interrupts::new(device, Irq::Msix, count)?),
        Some(kind) => Some(Interrupts::new(device, kind, 1)?),
    })
}

/// Enables the controller for the first time and asks it what it is.
fn bring_up(hw: &Hardware, options: &Options, control: &mut Control) -> Result<(Controller, Vec<Namespace>)> {
    hw.bus_master(true)?;
    control.admin.start(hw)?;
    let controller = identify_controller(hw, control)?;
    let shadows = match options.shadow_doorbells {
        ShadowDoorbells::Never => false,
        ShadowDoorbells::Always => true,
        ShadowDoorbells::Auto => !hw.direct_doorbells()?,
    };
    if shadows && hw.controller_memory.is_none() && !hw.has(Quirk::LongEntries) && controller.has_shadow_doorbells() {
        let mapping = memory(hw, 4 * hw.page)?;
        let shadows = Shadows::new(mapping.arena().clone(), hw.page, hw.cap.doorbell_stride())?;
        let (doorbells, events) = shadows.offsets();
        let base = mapping.iova();
        let iova = (hw.aligned(base.offset(doorbells).0)?, hw.aligned(base.offset(events).0)?);
        control.memory.push(mapping);
        control.shadows = Some((Arc::new(shadows), iova));
    }
    control.set_up(hw, &controller, options)?;
    let namespaces = namespaces::read(hw, &mut control.admin, &controller, &[], &Changed::All)?;
    Ok((controller, namespaces))
}

fn identify_controller(hw: &Hardware, control: &mut Control) -> Result<Controller> {
    let admin = &mut control.admin;
    let to = admin.data_iova();
    let bytes = admin.fetch(hw, command::identify(cns::CONTROLLER, 0, 0, to), identify::LEN)?;
    let mut controller = Controller::parse(&bytes, hw.cap.min_page(), hw.version);
    if hw.has(Quirk::NoWriteZeroes) {
        controller.io_commands &= !(1 << 3);
    }
    if !hw.has(Quirk::Stripe) {
        controller.stripe = None;
    }
    if hw.has(Quirk::NoSgls) {
        controller.sgls = 0;
    }
    if hw.has(Quirk::NoSecurity) {
        controller.admin_commands &= !1;
    }
    if hw.has(Quirk::NoSubsystemName) {
        controller.subsystem.clear();
    }
    if hw.has(Quirk::IdentifyOldOnly) {
        return Ok(controller);
    }
    if let kind @ 2.. = controller.kind {
        let why = format!("it is not an I/O controller (its controller type is {kind})");
        return Err(Error::Unfit { device: hw.name(), why });
    }
    // What it says for a command set (CNS 06h), where it says something.
    let mut of =
        |set: u8| match admin.fetch(hw, command::identify(cns::COMMAND_SET_CONTROLLER, 0, set, to), identify::LEN) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Error::Refused { .. }) => Ok(None),
            Err(error) => Err(error),
        };
    if hw.version >= (2, 0, 0)
        && let Some(bytes) = of(csi::NVM)?
    {
        controller.limits = CommandLimits::parse(&bytes, hw.cap.min_page());
    }
    if hw.all_command_sets()
        && let Some(bytes) = of(csi::ZONED)?
    {
        let limit = identify::pages(u8_at(&bytes, 0), hw.cap.min_page());
        controller.max_append = (limit > 0).then_some(limit);
    }
    Ok(controller)
}

impl Queue {
    /// Returns another handle to the controller.
    pub fn controller(&self) -> Nvme {
        Nvme(self.inner.clone())
    }
}

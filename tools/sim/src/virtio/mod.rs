//! Models of virtio devices behind PCI: VIRTIO 1.2, modern interface, split and packed queues.
//!
//! An independent reading of the specification, so that a driver's misreading fails a test. It has *not*: the legacy interface, INTx,
//! shared memory, notification data, live migration.
//!
//! | file | what it is |
//! |---|---|
//! | `bits` | feature bits, flags, ids |
//! | `layout` | BARs, configuration space, capabilities, and the parameters of all virtio models |
//! | `queue` | virtqueues as a device sees them |
//! | `mod` | the function: common configuration, status, interrupts |
//! | `blk` | the block device |
//! | `net` | the network device; what its packets pass is in [`wire`](crate::wire) |
//! | `vhost` | what a vhost-user back end asks beside registers |
//!
//! **Memory semantics**: the notification addresses can be mapped, so the model cannot see that they are written. It looks at the available
//! rings of all queues, each poll: where a driver notifies counts only while a ring is not there to be looked at. Everything else acts when it is
//! accessed, so it is trapped.
//!
//! **Strictness**: fields have the widths and alignments that 4.1.3.1 demands, and refuse others with `EINVAL`. What a driver breaks in a queue or in
//! common configuration sets DEVICE_NEEDS_RESET, and the device does nothing more until it is reset.

mod bits;
pub mod blk;
mod layout;
pub mod net;
mod queue;
mod vhost;

pub use layout::{Transport, VirtioMsix};

use crate::Result;
use crate::faults::{Fault, FaultCounts};
use bits::{NO_VECTOR, feature, status};
use layout::{BAR0_SIZE, COMMON, COMMON_LEN, DEVICE, ISR, Kind, Layout};
use queue::{Bell, Broken, FaultState, Queue, Rules, Setup};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use wholebar_core::Work;
use wholebar_core::model::{Host, Model, Refused, Shape};
use wholebar_core::pci::{BAR0, CONFIG, Irq, IrqInfo};
use wholebar_core::reactor::Armed;

/// Device configuration is no longer than this.
const CONFIG_MAX: usize = 64;

/// What makes a virtio function a network card or a disk.
trait Device: Send {
    /// What it offers, beside what the transport does.
    fn features(&self) -> u64;

    /// Whether what a driver took goes together: `None`, or why not.
    fn refuses(&self, features: u64) -> Option<&'static str>;

    /// Its device configuration.
    fn config(&self, out: &mut [u8; CONFIG_MAX]);

    /// The driver writes device configuration.
    fn configure(&mut self, offset: usize, bytes: &[u8]);

    /// Whether its configuration changed since this was asked last.
    fn changed(&mut self) -> bool;

    /// A driver is there (DRIVER_OK), with these features.
    fn start(&mut self, features: u64);

    /// So many queue pairs are in use, where that is not said by a control queue.
    fn set_pairs(&mut self, _pairs: u16) {}

    /// Back to how it was.
    fn reset(&mut self);

    /// A poll with a driver.
    fn poll_queues(
        &mut self,
        host: &mut Host<'_>,
        queues: &mut [Option<Queue>],
        fault_state: &mut FaultState,
    ) -> Result<Work, Broken>;

    /// A poll without one.
    fn rest(&mut self) -> Work;

    /// What it waits for, beside its driver's notifications, after a poll that found nothing: as [`Model::arm`] says it.
    fn arm(&mut self) -> Armed;

    /// As [`Model::wakeups`].
    fn wakeups(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }
}

/// A virtio device as a PCI function.
pub struct Virtio {
    name: String,
    transport: Transport,
    layout: Layout,
    config_len: u64,
    device: Box<dyn Device>,
    common: Common,
    setups: Vec<Setup>,
    queues: Vec<Option<Queue>>,
    fault_state: FaultState,
    /// A fault: a reset that does not end until the function is reset.
    hung: bool,
}

/// Common configuration (4.1.4.3), but for what each queue has.
#[derive(Debug, Default)]
struct Common {
    device_feature_select: u32,
    driver_feature_select: u32,
    features: u64,
    config_vector: u16,
    status: u8,
    generation: u8,
    /// Device configuration changed since the driver read any of it.
    stale: bool,
    queue_select: u16,
    isr: u8,
    /// A change of configuration that the driver is not told of yet.
    tell: bool,
}

impl Common {
    fn new() -> Self {
        Self { config_vector: NO_VECTOR, ..Self::default() }
    }
}

impl Virtio {
    fn new(name: &str, kind: &Kind, transport: Transport, device: Box<dyn Device>) -> Result<Self> {
        transport.check()?;
        let queues = usize::from(kind.queues);
        let mut virtio = Self {
            name: name.to_owned(),
            layout: Layout::new(kind, &transport)?,
            config_len: kind.config,
            device,
            common: Common::new(),
            setups: vec![Setup::default(); queues],
            queues: (0..queues).map(|_| None).collect(),
            fault_state: FaultState { faults: transport.faults.start(), end: None },
            hung: false,
            transport,
        };
        virtio.reset();
        Ok(virtio)
    }

    /// Sets what a person calls it.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// How often each fault struck; `None` where none are asked for.
    pub fn fault_counts(&self) -> Option<Arc<FaultCounts>> {
        self.fault_state.faults.as_ref().map(|f| f.fault_counts())
    }

    /// A fault: from here on the device is not there, and what is read of it is all ones.
    fn gone(&self) -> bool {
        self.fault_state.end == Some(Fault::Vanish)
    }

    fn features(&self) -> u64 {
        let t = &self.transport;
        let when = |offered, bit| if offered { bit } else { 0 };
        feature::VERSION_1
            | feature::ACCESS_PLATFORM
            | feature::ORDER_PLATFORM
            | feature::RING_RESET
            | when(t.packed, feature::PACKED)
            | when(t.indirect, feature::INDIRECT)
            | when(t.event_idx, feature::EVENT_IDX)
            | when(t.in_order, feature::IN_ORDER)
            | self.device.features()
    }

    /// Whether the device may work.
    #[inline]
    fn running(&self) -> bool {
        self.common.status & (status::DRIVER_OK | status::NEEDS_RESET) == status::DRIVER_OK
            && self.layout.config.bus_master()
    }

    /// The driver broke a rule: nothing works until the next reset (2.1.2).
    #[cold]
    fn broken(&mut self, why: impl std::fmt::Display) {
        tracing::warn!(device = self.name, %why, "the driver broke a rule: the device needs a reset");
        self.common.status |= status::NEEDS_RESET;
        self.common.tell = self.common.status & status::DRIVER_OK != 0;
    }

    /// A fault that was asked for ends it.
    #[cold]
    fn end(&mut self) {
        if self.gone() {
            self.restart();
        } else {
            self.fault_state.end = None;
            self.broken("a fault that was asked for");
        }
    }

    /// Device configuration changed, or the device needs a reset (4.1.5.4).
    #[cold]
    fn tell(&mut self, host: &mut Host<'_>) {
        self.common.tell = false;
        self.common.isr |= 2;
        if self.common.config_vector != NO_VECTOR {
            host.interrupt(self.common.config_vector.into());
        }
    }

    /// Writes to device status (2.1, 3.1).
    fn set_status(&mut self, value: u8) {
        if value == 0 {
            self.restart();
            self.hung |= self.fault_state.faults.as_mut().is_some_and(|f| f.hangs());
            return;
        }
        let before = self.common.status;
        let mut new = value & !status::NEEDS_RESET | before;
        if new & !before & status::FEATURES_OK != 0
            && let Some(why) = self.refusal()
        {
            tracing::warn!(device = self.name, why, features = self.common.features, "features are refused");
            new &= !status::FEATURES_OK;
        }
        let ready = status::FEATURES_OK | status::DRIVER_OK;
        if new & !before & status::DRIVER_OK != 0 && new & ready != ready {
            self.common.status = new & !status::DRIVER_OK;
            return self.broken("DRIVER_OK comes before FEATURES_OK");
        }
        self.common.status = new;
        if new & !before & status::DRIVER_OK != 0 {
            self.device.start(self.common.features);
        }
        if new & !before & status::FAILED != 0 {
            tracing::warn!(device = self.name, "the driver gave up");
        }
    }

    /// Why the features that the driver took are refused, if they are (2.2, 6.1).
    fn refusal(&self) -> Option<&'static str> {
        let taken = self.common.features;
        if taken & !self.features() != 0 {
            Some("some were not offered")
        } else if taken & feature::VERSION_1 == 0 {
            Some("VIRTIO_F_VERSION_1 is not among them, and there is no legacy interface")
        } else if !self.transport.split && taken & feature::PACKED == 0 {
            Some("VIRTIO_F_RING_PACKED is not among them, and split queues are not offered")
        } else {
            self.device.refuses(taken)
        }
    }

    /// Reset by device status (2.4): what the driver set up is gone; PCI configuration stays.
    fn restart(&mut self) {
        self.device.reset();
        let generation = self.common.generation;
        self.common = Common { generation, ..Common::new() };
        self.setups.fill(Setup { size: self.transport.entries, ..Setup::default() });
        self.queues.iter_mut().for_each(|q| *q = None);
    }

    /// Enables the selected queue (4.1.4.3, 4.1.5.1.3).
    fn enable(&mut self) {
        let at = usize::from(self.common.queue_select);
        let Some(setup) = self.setups.get(at) else { return };
        if self.common.status & status::FEATURES_OK == 0 {
            return self.broken("a queue is enabled before FEATURES_OK");
        }
        if setup.size > self.transport.entries {
            return self.broken("a queue is larger than the device said it could be");
        }
        let bell = Bell::new(self.layout.notify.clone(), self.transport.notify_offset(at), at as u16);
        let rules = Rules::new(self.common.features, self.transport.notify, self.transport.entries);
        match Queue::new(setup, rules, bell) {
            Ok(queue) => self.queues[at] = Some(queue),
            Err(why) => self.broken(why),
        }
    }

    /// A vector as the driver set it; one that there isn't reads back as none (4.1.5.1.2.1).
    fn vector(&self, value: u16) -> u16 {
        if u32::from(value) < self.layout.msix.vectors { value } else { NO_VECTOR }
    }

    fn common_read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Refused> {
        let c = &self.common;
        let at = usize::from(c.queue_select);
        let none = Setup::default();
        let (queue, enabled) = match self.setups.get(at) {
            Some(setup) => (setup, self.queues[at].is_some()),
            None => (&none, false),
        };
        let half = |features: u64, select: u32| match select {
            0 => features,
            1 => features >> 32,
            _ => 0,
        };
        let (value, width) = match offset {
            0x00 => (c.device_feature_select.into(), 4),
            0x04 => (half(self.features(), c.device_feature_select), 4),
            0x08 => (c.driver_feature_select.into(), 4),
            0x0c => (half(c.features, c.driver_feature_select), 4),
            0x10 => (c.config_vector.into(), 2),
            0x12 => (self.setups.len() as u64, 2),
            // A reset that hangs never reads as done.
            0x14 => (u64::from(c.status) | u64::from(self.hung), 1),
            0x15 => (c.generation.into(), 1),
            0x16 => (c.queue_select.into(), 2),
            0x18 => (queue.size.into(), 2),
            0x1a => (queue.vector.unwrap_or(NO_VECTOR).into(), 2),
            0x1c => (enabled.into(), 2),
            0x1e => (if at < self.setups.len() { at as u64 } else { 0 }, 2),
            0x20 => (queue.desc, 4),
            0x24 => (queue.desc >> 32, 4),
            0x28 => (queue.driver, 4),
            0x2c => (queue.driver >> 32, 4),
            0x30 => (queue.device, 4),
            0x34 => (queue.device >> 32, 4),
            // queue_notify_data is not offered; a reset of a queue is done at once, so queue_reset is 0 (4.1.4.3.1).
            0x38 | 0x3a => (0, 2),
            _ => return Err(Refused(libc::EINVAL)),
        };
        if buf.len() != width {
            return Err(Refused(libc::EINVAL));
        }
        buf.copy_from_slice(&value.to_le_bytes()[..width]);
        Ok(())
    }

    fn common_write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Refused> {
        let mut value = [0; 4];
        value.get_mut(..bytes.len()).ok_or(Refused(libc::EINVAL))?.copy_from_slice(bytes);
        let value = u32::from_le_bytes(value);
        let width = match offset {
            0x00 | 0x04 | 0x08 | 0x0c | 0x20 | 0x24 | 0x28 | 0x2c | 0x30 | 0x34 => 4,
            0x14 | 0x15 => 1,
            0x10 | 0x12 | 0x16 | 0x18 | 0x1a | 0x1c | 0x1e | 0x38 | 0x3a => 2,
            _ => return Err(Refused(libc::EINVAL)),
        };
        if bytes.len() != width {
            return Err(Refused(libc::EINVAL));
        }
        let half = value as u16;
        match offset {
            0x00 => self.common.device_feature_select = value,
            0x08 => self.common.driver_feature_select = value,
            // Features can't be changed once they are agreed on (3.1.1).
            0x0c if self.common.status & status::FEATURES_OK == 0 => match self.common.driver_feature_select {
                0 => self.common.features = self.common.features & !0xffff_ffff | u64::from(value),
                1 => self.common.features = self.common.features & 0xffff_ffff | u64::from(value) << 32,
                _ => {}
            },
            0x10 => self.common.config_vector = self.vector(half),
            0x14 => self.set_status(value as u8),
            0x16 => self.common.queue_select = half,
            0x1c if half == 1 => self.enable(),
            0x3a if half == 1 && self.common.features & feature::RING_RESET != 0 => self.reset_queue(),
            _ => self.queue_write(offset, value),
        }
        Ok(())
    }

    /// Writes to what the selected queue has.
    fn queue_write(&mut self, offset: u64, value: u32) {
        let at = usize::from(self.common.queue_select);
        let vector = Some(self.vector(value as u16)).filter(|v| *v != NO_VECTOR);
        let Some(setup) = self.setups.get_mut(at) else { return };
        if offset == 0x1a {
            setup.vector = vector;
            if let Some(queue) = &mut self.queues[at] {
                queue.vector = vector;
            }
        }
        // The rest is the driver's until the queue is enabled.
        if self.queues[at].is_some() {
            return;
        }
        let low = |field: &mut u64| *field = *field & !0xffff_ffff | u64::from(value);
        let high = |field: &mut u64| *field = *field & 0xffff_ffff | u64::from(value) << 32;
        match offset {
            0x18 => setup.size = value as u16,
            0x20 => low(&mut setup.desc),
            0x24 => high(&mut setup.desc),
            0x28 => low(&mut setup.driver),
            0x2c => high(&mut setup.driver),
            0x30 => low(&mut setup.device),
            0x34 => high(&mut setup.device),
            _ => {}
        }
    }

    /// Resets the selected queue alone (2.6.1): it is as it was before it was set up.
    fn reset_queue(&mut self) {
        let at = usize::from(self.common.queue_select);
        if let Some(setup) = self.setups.get_mut(at) {
            *setup = Setup { size: self.transport.entries, ..Setup::default() };
            self.queues[at] = None;
        }
    }

    /// Reads BAR0.
    fn structures_read(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), Refused> {
        match offset {
            COMMON..COMMON_LEN => self.common_read(offset - COMMON, buf),
            ISR => {
                if buf.len() != 1 {
                    return Err(Refused(libc::EINVAL));
                }
                // Reading clears it (4.1.4.5.1).
                buf[0] = std::mem::take(&mut self.common.isr);
                Ok(())
            }
            _ if (DEVICE..DEVICE + self.config_len).contains(&offset) => {
                let mut config = [0; CONFIG_MAX];
                self.device.config(&mut config);
                let at = self.device_config(offset, buf.len())?;
                buf.copy_from_slice(&config[at..at + buf.len()]);
                // 4.1.4.3.1: the generation changes when something changed since it was read.
                self.common.generation = self.common.generation.wrapping_add(u8::from(self.common.stale));
                self.common.stale = false;
                Ok(())
            }
            _ => {
                buf.fill(0);
                Ok(())
            }
        }
    }

    fn structures_write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Refused> {
        match offset {
            COMMON..COMMON_LEN => self.common_write(offset - COMMON, bytes),
            _ if (DEVICE..DEVICE + self.config_len).contains(&offset) => {
                let at = self.device_config(offset, bytes.len())?;
                self.device.configure(at, bytes);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Where in device configuration an aligned access of 1, 2 or 4 bytes goes.
    fn device_config(&self, offset: u64, len: usize) -> Result<usize, Refused> {
        let at = offset - DEVICE;
        let fits = matches!(len, 1 | 2 | 4) && at.is_multiple_of(len as u64) && at + len as u64 <= self.config_len;
        if fits { Ok(at as usize) } else { Err(Refused(libc::EINVAL)) }
    }
}

impl Model for Virtio {
    fn shape(&self) -> Shape {
        let mut irqs = vec![IrqInfo::default(); 5];
        irqs[2] = IrqInfo { count: self.layout.msix.vectors, eventfd: true, maskable: false, resizable: true };
        irqs[Irq::Err as usize] = IrqInfo { count: 1, eventfd: true, ..IrqInfo::default() };
        let (regions, msix) = (self.layout.regions(), Some(self.layout.msix));
        Shape { name: self.name.clone(), page: self.transport.page, regions, irqs, msix }
    }

    fn read(&mut self, region: u32, offset: u64, buf: &mut [u8]) -> Result<(), Refused> {
        match region {
            BAR0 | CONFIG if self.gone() => {
                buf.fill(0xff);
                Ok(())
            }
            BAR0 => self.structures_read(offset, buf),
            CONFIG => {
                if let Some(w) = self.layout.window(offset, buf.len())
                    && u32::from(w.bar) == BAR0
                    && w.offset + w.len as u64 <= BAR0_SIZE
                {
                    let mut data = [0; 4];
                    self.structures_read(w.offset, &mut data[..w.len])?;
                    self.layout.config.write(w.data, &data)?;
                }
                self.layout.config.read(offset, buf)
            }
            _ => Err(Refused(libc::EINVAL)),
        }
    }

    fn write(&mut self, region: u32, offset: u64, buf: &[u8]) -> Result<(), Refused> {
        match region {
            BAR0 | CONFIG if self.gone() => Ok(()),
            BAR0 => self.structures_write(offset, buf),
            CONFIG => {
                if self.layout.config.write(offset, buf)? {
                    self.reset();
                } else if let Some(w) = self.layout.window(offset, buf.len())
                    && u32::from(w.bar) == BAR0
                    && w.offset + w.len as u64 <= BAR0_SIZE
                {
                    let data: [u8; 4] = self.layout.config.bytes(w.data as usize);
                    self.structures_write(w.offset, &data[..w.len])?;
                }
                Ok(())
            }
            _ => Err(Refused(libc::EINVAL)),
        }
    }

    fn reset(&mut self) {
        if self.gone() {
            return;
        }
        (self.hung, self.fault_state.end) = (false, None);
        self.restart();
        self.layout.config.reset();
    }

    #[inline]
    fn poll(&mut self, host: &mut Host<'_>) -> Work {
        let work = if self.running() {
            let work = self.device.poll_queues(host, &mut self.queues, &mut self.fault_state).unwrap_or_else(|why| {
                self.broken(why);
                Work::Busy
            });
            if self.fault_state.end.is_some() {
                self.end();
            }
            work
        } else {
            self.device.rest()
        };
        if self.device.changed() {
            (self.common.stale, self.common.tell) = (true, self.common.status & status::DRIVER_OK != 0);
        }
        if self.common.tell && self.layout.config.bus_master() {
            self.tell(host);
        }
        work
    }

    fn arm(&mut self) -> Armed {
        // Who was asked not to notify does not.
        if self.transport.notify { self.device.arm() } else { Armed::No }
    }

    fn wakeups(&self) -> Vec<BorrowedFd<'_>> {
        self.device.wakeups()
    }
}

//! The device as registers (VIRTIO 1.2, 4.1.4): status, features, queues, its type's configuration. Every wait ends.

use crate::caps::{Place, Places};
use crate::error::{Error, Result};
use crate::feature;
use crate::options::Options;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use wholebar_core::Error as Core;
use wholebar_core::bar::{Bar, BarOptions, Doorbell, Width, Window};
use wholebar_core::irq::Interrupts;
use wholebar_core::pci::{Config, DeviceKind, PciDevice, Verdict, config, function};

/// The common configuration (4.1.4.3), in bytes from its start.
mod common {
    pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub const DEVICE_FEATURE: u64 = 0x04;
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub const DRIVER_FEATURE: u64 = 0x0c;
    pub const CONFIG_MSIX_VECTOR: u64 = 0x10;
    pub const NUM_QUEUES: u64 = 0x12;
    pub const DEVICE_STATUS: u64 = 0x14;
    pub const CONFIG_GENERATION: u64 = 0x15;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_SIZE: u64 = 0x18;
    pub const QUEUE_MSIX_VECTOR: u64 = 0x1a;
    pub const QUEUE_ENABLE: u64 = 0x1c;
    pub const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    /// Descriptors, driver area, device area: 64 bits each.
    pub const QUEUE_AREAS: u64 = 0x20;
    /// With VIRTIO_F_RING_RESET.
    pub const QUEUE_RESET: u64 = 0x3a;
}

/// The status register (2.1).
mod status {
    pub const ACKNOWLEDGE: u8 = 1;
    pub const DRIVER: u8 = 2;
    pub const DRIVER_OK: u8 = 4;
    pub const FEATURES_OK: u8 = 8;
    pub const DEVICE_NEEDS_RESET: u8 = 64;
    pub const FAILED: u8 = 128;
    /// What a device that is gone reads.
    pub const GONE: u8 = 0xff;
}

/// VIRTIO_MSI_NO_VECTOR (4.1.5.1.2).
pub(crate) const NO_VECTOR: u16 = 0xffff;
/// How long a device may take to reset a queue: whoever polls the queue waits.
const QUEUE_PATIENCE: Duration = Duration::from_secs(1);
/// How often the configuration is read before it is said to change all the time.
const TRIES: u32 = 1000;

/// A device's registers.
pub(crate) struct Hardware {
    pub device: Arc<dyn PciDevice>,
    pub bars: Vec<Bar>,
    common: Window,
    notify: Window,
    multiplier: u64,
    config: Option<Window>,
    /// What the device offers.
    pub offered: u64,
    /// How many queues it has.
    pub queues: u16,
    /// How long the device may take to reset itself.
    timeout: Duration,
    /// Whoever has it may select a queue, or reset the device.
    select: Mutex<()>,
}

/// A queue, as the device is told of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueueSetup {
    pub index: u16,
    pub size: u16,
    /// Where its descriptor, driver and device areas are as the device sees them.
    pub areas: [u64; 3],
    /// Its MSI-X vector, or [`NO_VECTOR`].
    pub vector: u16,
}

impl Hardware {
    /// Opens the BARs of a device of type `kind`, resets it, and reads what it offers.
    pub fn open(device: Arc<dyn PciDevice>, kind: u16, options: &Options) -> Result<Self> {
        config::enable_memory(device.as_ref(), true)?;
        let name = device.name().to_owned();
        let places = Places::of(&name, &Config::of(device.as_ref())?)?;
        if places.kind != kind {
            let why = format!("its type is {}, and type {kind} is wanted", places.kind);
            return Err(Error::Unfit { device: name, why });
        }
        let mut bars = Vec::new();
        let mut window = |place: &Place| -> Result<Window> {
            let all = [Some(&places.common), Some(&places.notify), places.device.as_ref()];
            let here = all.into_iter().flatten().filter(|p| p.bar == place.bar);
            let registers: Vec<_> = here.map(|p| p.range.clone()).collect();
            let open = |bar: &&Bar| bar.plan().layout.bar == place.bar;
            let bar = match bars.iter().find(open) {
                Some(bar) => bar,
                None => {
                    let options = BarOptions { policy: options.policy, page: options.page, registers: &registers };
                    bars.push(Bar::of(device.clone(), place.bar, options)?);
                    &bars[bars.len() - 1]
                }
            };
            Ok(bar.window(place.range.clone())?)
        };
        let (common, notify) = (window(&places.common)?, window(&places.notify)?);
        let config = places.device.as_ref().map(&mut window).transpose()?;
        let multiplier = places.multiplier.into();
        let (timeout, select) = (options.admin_timeout, Mutex::new(()));
        let mut hw = Self { device, bars, common, notify, multiplier, config, offered: 0, queues: 0, timeout, select };
        // Whoever had it before may have left it running.
        hw.reset()?;
        hw.offered = hw.features()?;
        hw.queues = hw.read(common::NUM_QUEUES)?;
        if places.common.range.end - places.common.range.start < common::QUEUE_RESET + 2 {
            // The register that resets a queue is not there.
            hw.offered &= !feature::RING_RESET;
        }
        if hw.offered & feature::VERSION_1 == 0 {
            return Err(Error::Legacy { device: hw.name() });
        }
        // 6.1: without it the device uses physical addresses. Where nothing translates, that is what it is given.
        let translated =
            hw.device.kind() == DeviceKind::Kernel && hw.device.isolation().verdict != Verdict::NotIsolated;
        if translated && hw.offered & feature::ACCESS_PLATFORM == 0 {
            return Err(Error::Bypass { device: hw.name() });
        }
        Ok(hw)
    }

    pub fn name(&self) -> String {
        self.device.name().to_owned()
    }

    pub fn gone(&self, why: &str) -> Error {
        Core::Gone { device: self.name(), why: why.to_owned() }.into()
    }

    pub fn nonsense(&self, what: String) -> Error {
        Error::Nonsense { device: self.name(), what }
    }

    pub fn unavailable(&self, what: String) -> Error {
        Error::Unavailable { device: self.name(), what }
    }

    fn read<T: Width>(&self, register: u64) -> Result<T> {
        Ok(self.common.read(register)?)
    }

    fn write<T: Width>(&self, register: u64, value: T) -> Result<()> {
        Ok(self.common.write(register, value)?)
    }

    fn status(&self) -> Result<u8> {
        self.known(self.read(common::DEVICE_STATUS)?)
    }

    fn known(&self, status: u8) -> Result<u8> {
        match status {
            status::GONE => Err(self.gone("its status reads as all ones")),
            status => Ok(status),
        }
    }

    /// Whether the device answers and has not failed. Configuration space is asked too: a mapped register still reads as it did when a
    /// vfio-user peer is dead.
    pub fn healthy(&self) -> Result<()> {
        function::check(self.device.as_ref())?;
        let status = self.status()?;
        for error in self.bars.iter().filter_map(Bar::failure) {
            tracing::debug!(%error, "a trapped doorbell failed");
            if matches!(error, Core::Gone { .. }) {
                return Err(self.gone("a trapped doorbell found nobody"));
            }
        }
        // 2.1.2: the driver resets it. So it does with a device that somebody else has reset.
        match status & (status::DEVICE_NEEDS_RESET | status::DRIVER_OK) {
            status::DRIVER_OK => Ok(()),
            _ => Err(Error::NeedsReset { device: self.name(), status }),
        }
    }

    fn selecting(&self) -> MutexGuard<'_, ()> {
        self.select.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Resets the device: it is done once the status reads 0 (4.1.4.3.2).
    pub fn reset(&self) -> Result<()> {
        let _selecting = self.selecting();
        self.write(common::DEVICE_STATUS, 0u8)?;
        let is = |status: u8| matches!(status, 0 | status::GONE);
        self.known(self.common.wait_for("reset itself", common::DEVICE_STATUS, self.timeout, is)?).map(drop)
    }

    fn features(&self) -> Result<u64> {
        let mut features = 0;
        for half in 0..2u32 {
            self.write(common::DEVICE_FEATURE_SELECT, half)?;
            features |= u64::from(self.read::<u32>(common::DEVICE_FEATURE)?) << (32 * half);
        }
        Ok(features)
    }

    /// The features of any device (chapter 6) that are to be negotiated.
    pub fn common_features(&self, options: &Options) -> u64 {
        let mut wanted = feature::VERSION_1 | feature::ACCESS_PLATFORM | feature::ORDER_PLATFORM;
        for (on, bit) in [
            (options.packed, feature::RING_PACKED),
            (options.event_idx, feature::EVENT_IDX),
            (options.in_order, feature::IN_ORDER),
            (options.indirect, feature::INDIRECT_DESC),
        ] {
            wanted |= if on { bit } else { 0 };
        }
        self.offered & wanted
    }

    /// From reset to FEATURES_OK (3.1.1, steps 2 to 6).
    pub fn negotiate(&self, features: u64) -> Result<()> {
        let mut status = status::ACKNOWLEDGE;
        self.write(common::DEVICE_STATUS, status)?;
        status |= status::DRIVER;
        self.write(common::DEVICE_STATUS, status)?;
        for half in 0..2u32 {
            self.write(common::DRIVER_FEATURE_SELECT, half)?;
            self.write(common::DRIVER_FEATURE, (features >> (32 * half)) as u32)?;
        }
        self.write(common::DEVICE_STATUS, status | status::FEATURES_OK)?;
        if self.status()? & status::FEATURES_OK == 0 {
            self.write(common::DEVICE_STATUS, status | status::FAILED)?;
            return Err(Error::Features { device: self.name(), features });
        }
        Ok(())
    }

    /// The device may use its queues from here on (3.1.1, step 8).
    pub fn start(&self) -> Result<()> {
        let status = self.status()?;
        self.write(common::DEVICE_STATUS, status | status::DRIVER_OK)
    }

    /// The vector of configuration changes (4.1.5.1.2).
    pub fn set_config_vector(&self, vector: u16) -> Result<()> {
        self.write(common::CONFIG_MSIX_VECTOR, vector)?;
        self.check_vector(self.read(common::CONFIG_MSIX_VECTOR)?, vector)
    }

    fn check_vector(&self, got: u16, wanted: u16) -> Result<()> {
        if got == wanted { Ok(()) } else { Err(self.unavailable(format!("it has no room for MSI-X vector {wanted}"))) }
    }

    /// Whether so many queues can interrupt, besides the device itself.
    pub fn check_vectors(&self, interrupts: Option<&Interrupts>, queues: u16) -> Result<()> {
        let count = interrupts.map_or(0, Interrupts::count);
        if queues > 0 && count <= queues.into() {
            let what =
                format!("{queues} queues cannot interrupt: it has {count} MSI-X vectors, one of them for itself");
            return Err(self.unavailable(what));
        }
        Ok(())
    }

    /// The descriptors of a queue: as `wanted`, or as usual if it can have as many. Each queue has a largest size of its own (4.1.5.1.3).
    pub fn queue_size(&self, index: u16, wanted: Option<u16>, usual: u16) -> Result<u16> {
        let _selecting = self.selecting();
        self.write(common::QUEUE_SELECT, index)?;
        let most: u16 = self.read(common::QUEUE_SIZE)?;
        if most == 0 {
            return Err(self.nonsense(format!("it has no queue {index}, which its features say it has")));
        }
        if most == 1 {
            return Err(self.unavailable(format!("its queue {index} has one descriptor, and 2 are the least")));
        }
        // The largest power of two, of 32,768 at most (2.7, 2.8.10.1).
        let most = 1 << most.min(1 << 15).ilog2();
        let size = wanted.unwrap_or(usual.min(most));
        if !size.is_power_of_two() || !(2..=most).contains(&size) {
            return Err(self.unavailable(format!(
                "{size} descriptors cannot be had for queue {index}: it must be a power of two from 2 to {most}"
            )));
        }
        Ok(size)
    }

    /// Makes a queue known and enables it (4.1.5.1.3).
    pub fn enable_queue(&self, setup: QueueSetup) -> Result<()> {
        let _selecting = self.selecting();
        self.enable_selected(setup)
    }

    /// Resets a queue alone, and enables it again (2.6.1, 4.1.4.3.2): between the two, when the device has forgotten all of its buffers, `empty` makes
    /// its ring as new. False, with nothing done, where `may` says no: the device is not reset between what that says and the end of this.
    pub fn reset_queue(&self, setup: QueueSetup, may: impl Fn() -> bool, empty: impl FnOnce()) -> Result<bool> {
        let _selecting = self.selecting();
        if !may() {
            return Ok(false);
        }
        self.write(common::QUEUE_SELECT, setup.index)?;
        self.write(common::QUEUE_RESET, 1u16)?;
        // As Linux has it: a device that is gone reads neither as 0.
        for register in [common::QUEUE_RESET, common::QUEUE_ENABLE] {
            self.common.wait_for("reset a queue", register, QUEUE_PATIENCE, |value: u16| value == 0)?;
        }
        empty();
        self.enable_selected(setup)?;
        Ok(true)
    }

    fn enable_selected(&self, QueueSetup { index, size, areas, vector }: QueueSetup) -> Result<()> {
        self.write(common::QUEUE_SELECT, index)?;
        self.write(common::QUEUE_SIZE, size)?;
        for (register, area) in (common::QUEUE_AREAS..).step_by(8).zip(areas) {
            // 4.1.3.1: 64-bit fields are written as two halves.
            self.write(register, area as u32)?;
            self.write(register + 4, (area >> 32) as u32)?;
        }
        self.write(common::QUEUE_MSIX_VECTOR, vector)?;
        self.check_vector(self.read(common::QUEUE_MSIX_VECTOR)?, vector)?;
        self.write(common::QUEUE_ENABLE, 1u16)
    }

    /// Where a queue is notified (4.1.4.4).
    pub fn bell(&self, index: u16) -> Result<Doorbell<u16>> {
        let _selecting = self.selecting();
        self.write(common::QUEUE_SELECT, index)?;
        let off = u64::from(self.read::<u16>(common::QUEUE_NOTIFY_OFF)?);
        Ok(self.notify.doorbell(off * self.multiplier)?)
    }

    /// Reads the configuration of the device's type, all of it at one moment (2.5.1, 4.1.4.3.1).
    pub fn config<T>(&self, read: impl Fn(&Window) -> wholebar_core::Result<T>) -> Result<T> {
        let window = self.config.as_ref().ok_or_else(|| self.nonsense("it has no configuration".to_owned()))?;
        for _ in 0..TRIES {
            let before: u8 = self.read(common::CONFIG_GENERATION)?;
            let value = read(window)?;
            if self.read::<u8>(common::CONFIG_GENERATION)? == before {
                return Ok(value);
            }
        }
        Err(self.nonsense(format!("its configuration changed {TRIES} times while it was read")))
    }

    /// Lets the function do DMA, or not.
    pub fn bus_master(&self, on: bool) -> Result<()> {
        Ok(config::enable_bus_master(self.device.as_ref(), on)?)
    }
}

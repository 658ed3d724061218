//! A model's registers, found and used as a driver does (VIRTIO 1.2, 4.1.4): capabilities, common configuration, notifications, device configuration.
//!
//! What a front end says goes to the model by these alone, but for what no register says: see [`VirtioModel`].

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::Function;
use crate::model::Refused;
use crate::pci::CONFIG;
use crate::pci::config::{CapabilityId, Config};
use crate::{Error, Result};

/// The vendor of virtio functions, and what their device ids begin at (4.1.2).
const VENDOR: u16 = 0x1af4;
const DEVICE: u16 = 0x1040;
/// Device types (5).
const NET: u16 = 1;
const BLOCK: u16 = 2;
/// The capability's number (PCI Express Base 6.0, 7.9.4).
const VENDOR_SPECIFIC: u8 = 9;
/// Command register: memory decode and bus mastering.
const COMMAND: u64 = 4;
const ENABLE: u16 = 6;

/// Device status (2.1).
pub mod status {
    pub const ACKNOWLEDGE: u8 = 1;
    pub const DRIVER: u8 = 2;
    pub const DRIVER_OK: u8 = 4;
    pub const FEATURES_OK: u8 = 8;
    pub const NEEDS_RESET: u8 = 64;
    pub const FAILED: u8 = 128;
}

/// Features (6, 5.1.3, 5.2.3), as masks.
pub mod feature {
    pub const ACCESS_PLATFORM: u64 = 1 << 33;
    pub const RING_PACKED: u64 = 1 << 34;
    pub const ORDER_PLATFORM: u64 = 1 << 36;
    pub const SR_IOV: u64 = 1 << 37;
    pub const NOTIFICATION_DATA: u64 = 1 << 38;
    pub const RING_RESET: u64 = 1 << 40;
    pub const ADMIN_VQ: u64 = 1 << 41;
    pub const NET_CTRL_VQ: u64 = 1 << 17;
    pub const NET_MQ: u64 = 1 << 22;
    pub const BLOCK_MQ: u64 = 1 << 12;
    /// Those that go by a network card's control queue, which is the front end's: `CTRL_VQ`, `CTRL_RX`, `CTRL_VLAN`, `CTRL_RX_EXTRA`,
    /// `GUEST_ANNOUNCE`, `CTRL_MAC_ADDR`, `CTRL_GUEST_OFFLOADS`, `VQ_NOTF_COAL`, `NOTF_COAL`, `HASH_REPORT` and `RSS`.
    pub const NET_CONTROL: u64 =
        NET_CTRL_VQ | 0b111 << 18 | 1 << 21 | 1 << 23 | 1 << 2 | 1 << 52 | 1 << 53 | 1 << 57 | 1 << 60;
}

/// A structure: its BAR, where it is there, and its length.
#[derive(Debug, Clone, Copy)]
struct Place {
    bar: u32,
    offset: u64,
    len: u64,
}

/// Where a model's structures are.
#[derive(Debug, Clone, Copy)]
pub struct Registers {
    kind: u16,
    common: Place,
    notify: Place,
    /// Bytes between notification addresses, in their numbers' unit (4.1.4.4).
    multiplier: u64,
    isr: Place,
    config: Place,
}

/// A queue to be enabled: its entries, and its three areas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queue {
    pub size: u16,
    pub descriptor: u64,
    pub driver: u64,
    pub device: u64,
}

/// The value of a register.
trait Value: Sized {
    fn read(function: &mut Function, at: (u32, u64)) -> Result<Self, Refused>;
    fn write(self, function: &mut Function, at: (u32, u64)) -> Result<(), Refused>;
}

macro_rules! value {
    ($($int:ty)*) => {$(
        impl Value for $int {
            fn read(function: &mut Function, (region, offset): (u32, u64)) -> Result<Self, Refused> {
                let mut bytes = [0; size_of::<$int>()];
                function.read(region, offset, &mut bytes)?;
                Ok(Self::from_le_bytes(bytes))
            }

            fn write(self, function: &mut Function, (region, offset): (u32, u64)) -> Result<(), Refused> {
                function.write(region, offset, &self.to_le_bytes())
            }
        }
    )*};
}
value!(u8 u16 u32);

impl Place {
    /// A register of it: `EINVAL` beyond its end.
    fn at(&self, offset: u64, len: u64) -> Result<(u32, u64), Refused> {
        offset
            .checked_add(len)
            .filter(|end| *end <= self.len)
            .and_then(|_| self.offset.checked_add(offset))
            .map(|at| (self.bar, at))
            .ok_or(Refused(libc::EINVAL))
    }

    fn get<T: Value>(&self, function: &mut Function, offset: u64) -> Result<T, Refused> {
        T::read(function, self.at(offset, size_of::<T>() as u64)?)
    }

    fn set<T: Value>(&self, function: &mut Function, offset: u64, value: T) -> Result<(), Refused> {
        value.write(function, self.at(offset, size_of::<T>() as u64)?)
    }
}

impl Registers {
    /// Finds them by the model's capabilities.
    ///
    /// # Errors
    /// [`Error::Config`] where the model is no virtio function of a type that is served, or lacks one of the structures.
    pub fn find(function: &mut Function) -> Result<Self> {
        let name = function.shape().name.clone();
        let nonsense = |why: &str| Error::Config { device: name.clone(), why: why.to_owned() };
        let mut bytes = vec![0; 256];
        function.read(CONFIG, 0, &mut bytes).map_err(|_| nonsense("its configuration space can't be read"))?;
        let config = Config::from_bytes(&name, bytes)?;
        let kind = config.device().wrapping_sub(DEVICE);
        if config.vendor() != VENDOR || !matches!(kind, NET | BLOCK) {
            return Err(nonsense("it is no virtio network card or disk, which are what vhost-user serves"));
        }
        let [mut common, mut notify, mut isr, mut device] = [None; 4];
        let mut multiplier = 0;
        for cap in config.capabilities().filter(|cap| cap.id == CapabilityId::Pci(VENDOR_SPECIFIC)) {
            let at = |offset: u16| cap.offset.saturating_add(offset);
            let byte = |offset| config.u8(at(offset)).unwrap_or(0);
            let word = |offset| u64::from(config.u32(at(offset)).unwrap_or(0));
            let place = Some(Place { bar: byte(4).into(), offset: word(8), len: word(12) });
            match byte(3) {
                1 => common = place,
                2 => (notify, multiplier) = (place, word(16)),
                3 => isr = place,
                4 => device = place,
                _ => {}
            }
        }
        let (Some(common), Some(notify), Some(isr), Some(config)) = (common, notify, isr, device) else {
            return Err(nonsense("it has not all of the capabilities of a modern virtio function"));
        };
        Ok(Self { kind, common, notify, multiplier, isr, config })
    }

    /// Whether it is a disk.
    pub fn is_disk(&self) -> bool {
        self.kind == BLOCK
    }

    /// What the model offers that goes by vhost-user.
    pub fn offered(&self, function: &mut Function) -> Result<u64, Refused> {
        const NEVER: u64 = feature::ACCESS_PLATFORM
            | feature::ORDER_PLATFORM
            | feature::SR_IOV
            | feature::NOTIFICATION_DATA
            | feature::ADMIN_VQ;
        let mut features = 0;
        for half in [0u32, 1] {
            self.common.set(function, 0x00, half)?;
            features |= u64::from(self.common.get::<u32>(function, 0x04)?) << if half == 0 { 0 } else { 32 };
        }
        Ok(features & !NEVER & if self.kind == NET { !feature::NET_CONTROL } else { !0 })
    }

    /// How many queues a front end can use: a network card's control queue is none of them.
    pub fn queues(&self, function: &mut Function) -> Result<u16, Refused> {
        let all: u16 = self.common.get(function, 0x12)?;
        let offered = self.offered(function)?;
        if self.kind == NET {
            let pairs = if offered & feature::NET_MQ != 0 { self.config.get(function, 8)? } else { 1u16 };
            Ok(all.min(pairs.saturating_mul(2)))
        } else {
            Ok(if offered & feature::BLOCK_MQ != 0 { all } else { all.min(1) })
        }
    }

    /// `queues` as the protocol counts them, which for a network card is by pairs: so do QEMU and DPDK.
    pub fn counted(&self, queues: u16) -> u16 {
        if self.kind == NET { queues / 2 } else { queues }
    }

    /// How many pairs of a network card are in use where queue `last` is the last that is; `None` where queues are no pairs.
    pub fn pairs(&self, last: usize) -> Option<u16> {
        (self.kind == NET).then_some((last as u16 / 2).saturating_add(1))
    }

    /// The largest size of queue `index`, while it is not set up.
    pub fn largest(&self, function: &mut Function, index: u16) -> Result<u16, Refused> {
        self.common.set(function, 0x16, index)?;
        self.common.get(function, 0x18)
    }

    pub fn status(&self, function: &mut Function) -> Result<u8, Refused> {
        self.common.get(function, 0x14)
    }

    /// Resets the device (2.4).
    pub fn reset(&self, function: &mut Function) -> Result<(), Refused> {
        self.common.set(function, 0x14, 0u8)
    }

    /// Resets the device and initialises it as far as FEATURES_OK (3.1.1); says whether the device accepts the features.
    ///
    /// Queues are stopped one by one, which takes RING_RESET; several pairs go with a control queue, which the front end has.
    pub fn agree(&self, function: &mut Function, features: u64) -> Result<bool, Refused> {
        let control = if self.kind == NET && features & feature::NET_MQ != 0 { feature::NET_CTRL_VQ } else { 0 };
        let features = features | feature::RING_RESET | control;
        ENABLE.write(function, (CONFIG, COMMAND))?;
        for value in [0, status::ACKNOWLEDGE, status::ACKNOWLEDGE | status::DRIVER] {
            self.common.set(function, 0x14, value)?;
        }
        for (half, bits) in [(0u32, features as u32), (1, (features >> 32) as u32)] {
            self.common.set(function, 0x08, half)?;
            self.common.set(function, 0x0c, bits)?;
        }
        // Changes of configuration are seen in the ISR, without an interrupt.
        self.common.set(function, 0x14, status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK)?;
        Ok(self.status(function)? & status::FEATURES_OK != 0)
    }

    /// Says that the driver is ready.
    pub fn driver_ok(&self, function: &mut Function) -> Result<(), Refused> {
        let all = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
        self.common.set(function, 0x14, all)
    }

    /// Enables queue `index`, whose interrupt is vector `index`; says whether the device took it.
    pub fn enable(&self, function: &mut Function, index: u16, queue: &Queue) -> Result<bool, Refused> {
        let common = &self.common;
        common.set(function, 0x16, index)?;
        common.set(function, 0x18, queue.size)?;
        common.set(function, 0x1a, index)?;
        for (at, area) in [(0x20, queue.descriptor), (0x28, queue.driver), (0x30, queue.device)] {
            common.set(function, at, area as u32)?;
            common.set(function, at.wrapping_add(4), (area >> 32) as u32)?;
        }
        common.set(function, 0x1c, 1u16)?;
        Ok(common.get::<u16>(function, 0x1c)? == 1)
    }

    /// Resets queue `index` alone (2.6.1).
    pub fn reset_queue(&self, function: &mut Function, index: u16) -> Result<(), Refused> {
        self.common.set(function, 0x16, index)?;
        self.common.set(function, 0x3a, 1u16)
    }

    /// Notifies the device of what is in queue `index` (4.1.5.2).
    pub fn notify(&self, function: &mut Function, index: u16) -> Result<(), Refused> {
        self.common.set(function, 0x16, index)?;
        let number: u16 = self.common.get(function, 0x1e)?;
        self.notify.set(function, u64::from(number).saturating_mul(self.multiplier), index)
    }

    /// Whether device configuration changed, or the device needs a reset, since this was asked last (4.1.4.5).
    pub fn changed(&self, function: &mut Function) -> Result<bool, Refused> {
        Ok(self.isr.get::<u8>(function, 0)? & 2 != 0)
    }

    /// Reads device configuration; what is behind its end is zeros.
    pub fn config(&self, function: &mut Function, offset: u32, out: &mut [u8]) -> Result<(), Refused> {
        for (at, byte) in (u64::from(offset)..self.config.len).zip(out) {
            *byte = self.config.get(function, at)?;
        }
        Ok(())
    }

    /// Writes device configuration.
    pub fn set_config(&self, function: &mut Function, offset: u32, bytes: &[u8]) -> Result<(), Refused> {
        (u64::from(offset)..).zip(bytes).try_for_each(|(at, byte)| self.config.set(function, at, *byte))
    }
}

//! What a family of devices does in its own way: the seam between the driver, which is the same for all of them, and igb, e1000e and others.
//!
//! A family is a type without values; [`Nic`](crate::Nic), [`Rx`](crate::Rx) and [`Tx`](crate::Tx) are generic over it, so that nothing is decided on the polled path.
//! (Linux: `struct e1000_info` and its operations.)

use crate::error::Result;
use crate::hardware::Hardware;
use crate::regs;
use crate::settings::{Settings, VirtualFunction};
use std::time::Duration;
use wholebar_core::mem::Offload;
use wholebar_core::net::{Limits, Link, Mac, Offloads, PortConfig};

/// A queue's number: by it the reset protocol knows it. Receive queues are even, transmit queues odd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct QueueId(pub u32);

impl QueueId {
    pub fn rx(index: u16) -> Self {
        Self(2 * u32::from(index))
    }

    pub fn tx(index: u16) -> Self {
        Self(2 * u32::from(index) + 1)
    }

    pub fn receives(self) -> bool {
        self.0.is_multiple_of(2)
    }

    pub fn index(self) -> u16 {
        (self.0 / 2) as u16
    }
}

/// What the device is told of a queue besides its ring.
#[derive(Debug, Clone, Copy)]
pub enum Direction {
    /// It receives into buffers of so many KiB; `drop` says that packets do not wait for descriptors, so that other queues go on.
    Rx { kib: u32, drop: bool },
    /// It sends.
    Tx,
}

impl Direction {
    /// The same, where packets do not wait for descriptors in any case: those of other functions would wait behind them.
    pub fn dropping(self) -> Self {
        match self {
            Self::Rx { kib, .. } => Self::Rx { kib, drop: true },
            Self::Tx => Self::Tx,
        }
    }
}

/// A part of the device that firmware, or another of its functions, uses too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shared {
    Eeprom,
    Phy,
}

/// The registers by which a receive queue is armed: a one in `bit`.
#[derive(Debug, Clone, Copy)]
pub struct Vector {
    pub bit: u32,
    /// Forgets what came before.
    pub cause: u64,
    pub unmask: u64,
    pub mask: u64,
}

/// Registers that count, each with its name.
pub type Counters = &'static [(u64, &'static str)];

pub trait Family: Sized + Send + Sync + 'static {
    /// The driver's name, as Linux has it.
    const NAME: &'static str;
    /// Which devices it is for, in a sentence: `an 82576`.
    const DEVICE: &'static str;
    /// Their PCI ids, vendor and device.
    const IDS: &'static [(u16, u16)];
    /// Bytes of BAR0 that hold registers.
    const REGISTERS: u64;
    /// What a port can be asked for.
    const LIMITS: Limits;
    /// Addresses that are compared exactly.
    const ADDRESSES: usize;
    /// The most of a buffer that the device can be told to write, in KiB.
    const BUFFER_KIB: u32;
    /// Buffers of all receive queues are told to be of one size.
    const ONE_BUFFER_SIZE: bool;

    /// Packets can be stamped with the time at which they are sent and received.
    const STAMPS: bool = false;

    /// Its PHY negotiates the link.
    const NEGOTIATES: bool = true;

    /// What is granted of the offloads that are asked for.
    fn grant(config: &PortConfig) -> Offloads {
        config.offloads.and(Self::LIMITS.offloads)
    }

    /// The longest time between interrupts of a vector that the device takes.
    const MAX_THROTTLE: Duration;

    /// What it begins with for each of the virtual functions that it serves.
    fn functions() -> Vec<VirtualFunction> {
        Vec::new()
    }

    /// The statistics that the device keeps, those of 32 bits and those of 64: where they are, and their names.
    fn counters() -> (Counters, Counters) {
        (regs::COUNTERS, regs::COUNTERS_64)
    }

    /// Whether this device of the family can be driven.
    fn check(hw: &Hardware) -> Result<()>;

    /// Resets the device by software. Its own requests on the bus end before; nothing interrupts, and no queue is enabled, after.
    fn reset(hw: &Hardware) -> Result<()>;

    /// Does something with a part that firmware uses too.
    fn with<T>(hw: &Hardware, part: Shared, f: impl FnOnce() -> Result<T>) -> Result<T>;

    /// The address that the device was made with.
    fn address(hw: &Hardware) -> Result<Mac> {
        let present = hw.read(regs::EEC)? & regs::EEC_PRESENT != 0;
        let words = if present { Some(Self::with(hw, Shared::Eeprom, || hw.eeprom())?) } else { None };
        hw.address(words, 0)
    }

    /// Has the PHY look for a link.
    fn start_link(hw: &Hardware) -> Result<()> {
        hw.change(regs::CTRL, regs::CTRL_SET_LINK_UP, regs::CTRL_FORCE)?;
        Self::with(hw, Shared::Phy, || hw.negotiate())
    }

    /// How the link is.
    fn link(hw: &Hardware) -> Result<Link> {
        hw.link()
    }

    /// Tells the device all settings, and enables what is not a queue's own.
    fn apply(hw: &Hardware, settings: &Settings) -> Result<()>;

    /// What is received.
    fn apply_receive(hw: &Hardware, settings: &Settings) -> Result<()>;

    /// Whom it receives for.
    fn apply_addresses(hw: &Hardware, settings: &Settings) -> Result<()> {
        settings.write_addresses(hw, Self::ADDRESSES, 0)
    }

    /// One word of the table of VLANs.
    fn apply_vlans(hw: &Hardware, settings: &Settings, word: usize) -> Result<()> {
        hw.write(regs::VFTA + 4 * word as u64, settings.vlans.words()[word])
    }

    /// How packets are spread.
    fn apply_rss(hw: &Hardware, settings: &Settings) -> Result<()>;

    /// Where a queue's registers are.
    fn place(id: QueueId) -> u64;

    /// Makes a queue known to the device: an empty, zeroed ring of `bytes` at `base`.
    fn create(hw: &Hardware, id: QueueId, base: u64, bytes: u32, direction: Direction) -> Result<()>;

    /// Has the device forget a queue: it touches neither ring nor buffers afterwards.
    fn delete(hw: &Hardware, id: QueueId) -> Result<()>;

    /// Packets that a receive queue dropped for want of descriptors, since this was last asked; `None` where the device does not count them.
    fn dropped(hw: &Hardware, index: u16) -> Result<Option<u32>>;

    /// Vector 0 for the link, vector `n + 1` for receive queue `n`, below `rx_vectors`. Those of queues stay masked until they are armed, and are
    /// masked by the message that they send.
    fn set_up_interrupts(hw: &Hardware, rx_vectors: u16) -> Result<()>;

    /// Has a vector interrupt no sooner than `interval`, at most [`MAX_THROTTLE`](Self::MAX_THROTTLE), after it did before.
    fn throttle(hw: &Hardware, vector: u32, interval: Duration) -> Result<()>;

    /// Whether a change of the link was told since this was last asked; the next one interrupts again.
    fn link_changed(hw: &Hardware, vectors: bool) -> Result<bool>;

    /// Does what other functions of the device ask for; `link`: what the link has become, where it has changed.
    fn serve(_hw: &Hardware, _settings: &mut Settings, _link: Option<Link>) -> Result<()> {
        Ok(())
    }

    /// The registers that arm receive queue `index`.
    fn vector(index: u16) -> Vector;

    /// The second word of a data descriptor, less report status; the first is the buffer's address. The packet has `payload` bytes, those of headers that
    /// are repeated before segments not counted; `work` is [`tx_work`](Self::tx_work)'s.
    fn tx_data(len: u32, payload: u32, ends: bool, work: u64) -> u64;

    /// What the data descriptors of a packet say of the work that there is.
    fn tx_work(offload: Option<Offload>, vlan: Option<u16>) -> u64;

    /// The descriptor that comes before, where the work wants one: what the device has to know of headers, and of the `payload` bytes behind them.
    fn tx_context(offload: Option<Offload>, vlan: Option<u16>, payload: u32) -> Option<[u64; 2]>;

    /// Whether descriptors have room for the lengths of these headers.
    fn can_describe(offload: &Offload) -> bool;

    /// What the clock says by which packets are stamped, in its own units.
    fn cycles(_hw: &Hardware) -> Result<u64> {
        Ok(0)
    }

    /// When the packet came that was stamped, by that clock; `None` where there is no stamp.
    fn rx_stamp(_hw: &Hardware) -> Result<Option<u64>> {
        Ok(None)
    }
}

//! Intel's 82576 Gigabit Ethernet controllers, by their datasheet. (Linux: the driver `igb`; DPDK: the PMD `net_e1000_igb`.)
//!
//! Up to 16 queues of each direction, with advanced descriptors. Registers are in BAR0, and the MSI-X table in BAR3. A port whose device has virtual functions
//! is an [`IgbPf`], which has one queue of each direction, and serves them.
//!
//! It has a clock that stamps packets of the precision time protocol: [`Igb::timesync_enable`] and those after it. [`errata`](crate::errata) has what is known to be
//! wrong with it.

mod descriptor;
pub(crate) mod hardware;
pub(crate) mod message;
mod physical;
pub(crate) mod regs;
mod timesync;

pub use physical::{I82576Pf, IgbPf, open};

use crate::error::{Error, Result};
use crate::family::{Direction, Family, QueueId, Shared, Vector};
use crate::hardware::Hardware;
use crate::regs as common;
use crate::settings::{AROUND, RSS_TABLE, Settings, hash_bits};
use std::time::Duration;
use wholebar_core::mem::Offload;
use wholebar_core::net::{Limits, Mac, Offloads};

/// One port of an 82576.
pub type Igb = crate::Nic<I82576>;
/// A receive queue of an [`Igb`].
pub type Rx = crate::Rx<I82576>;
/// A transmit queue of an [`Igb`].
pub type Tx = crate::Tx<I82576>;

/// The PCI ids, vendor and device, of what this driver is for: Intel's 82576 with copper PHYs (82576EB, NS, quad port ET and ET2).
pub const IDS: [(u16, u16); 4] = [(0x8086, 0x10c9), (0x8086, 0x150a), (0x8086, 0x10e8), (0x8086, 0x1526)];

/// Largest frame, in bytes, header and frame checksum included.
const MAX_FRAME: u16 = 9728;

/// The 82576, as a family of its own.
#[derive(Debug)]
pub enum I82576 {}

impl Family for I82576 {
    const NAME: &'static str = "igb";
    const DEVICE: &'static str = "an 82576";
    const IDS: &'static [(u16, u16)] = &IDS;
    const REGISTERS: u64 = regs::SIZE;
    const ADDRESSES: usize = regs::ADDRESSES;
    const MAX_THROTTLE: Duration = hardware::MAX_THROTTLE;
    const LIMITS: Limits = Limits {
        rx_queues: regs::QUEUES,
        tx_queues: regs::QUEUES,
        descriptors: 4096,
        mtu: MAX_FRAME - AROUND,
        offloads: Offloads {
            rx_checksum: true,
            tx_l4_checksum: true,
            tx_l3_checksum: true,
            tso: true,
            vlan_strip: true,
            vlan_insert: true,
            vlan_filter: true,
            rss_hash: true,
            scatter: true,
            gather: true,
            ..Offloads::NONE
        },
        rss_table: RSS_TABLE,
    };
    // SRRCTL.BSIZEPACKET has more; packets don't.
    const BUFFER_KIB: u32 = 16;
    const ONE_BUFFER_SIZE: bool = false;

    const STAMPS: bool = true;

    fn check(hw: &Hardware) -> Result<()> {
        match hw.read(common::CTRL_EXT)? & regs::CTRL_EXT_LINK_MODE {
            0 => Ok(()),
            mode => {
                let why = format!("its link is not the internal copper PHY's (LINK_MODE is {})", mode >> 22);
                Err(Error::Unfit { device: hw.name(), why })
            }
        }
    }

    fn reset(hw: &Hardware) -> Result<()> {
        hardware::quiet(hw)?;
        hw.reset()?;
        hardware::quiet(hw)?;
        for n in 0..regs::QUEUES {
            hardware::enable_queue(hw, regs::rx_queue(n), None)?;
            hardware::enable_queue(hw, regs::tx_queue(n), None)?;
        }
        Ok(())
    }

    fn with<T>(hw: &Hardware, part: Shared, f: impl FnOnce() -> Result<T>) -> Result<T> {
        hardware::with(hw, part, f)
    }

    fn address(hw: &Hardware) -> Result<Mac> {
        let present = hw.read(common::EEC)? & common::EEC_PRESENT != 0;
        let words = if present { Some(Self::with(hw, Shared::Eeprom, || hw.eeprom())?) } else { None };
        hw.address(words, (hardware::port(hw)? & 1) as u8)
    }

    fn apply(hw: &Hardware, settings: &Settings) -> Result<()> {
        settings.write_common(hw)?;
        Self::apply_addresses(hw, settings)?;
        for word in 0..settings.vlans.words().len() {
            Self::apply_vlans(hw, settings, word)?;
        }
        Self::apply_rss(hw, settings)?;
        hw.write(regs::RLPML, settings.max_frame())?;
        Self::apply_receive(hw, settings)?;
        if settings.timesync.is_some() {
            timesync::apply(hw, settings.timesync)?;
        }
        hw.write(common::TCTL, common::TCTL_ENABLE | common::TCTL_PAD | common::TCTL_COLLISIONS)
    }

    fn apply_receive(hw: &Hardware, settings: &Settings) -> Result<()> {
        // Long packets always: RLPML says how long they may be.
        hw.write(common::RCTL, common::RCTL_ENABLE | common::RCTL_LONG | settings.receive_bits())
    }

    fn apply_rss(hw: &Hardware, settings: &Settings) -> Result<()> {
        let Some(rss) = &settings.rss else { return hw.write(common::MRQC, 0) };
        // A byte an entry, the queue in bits 3:0.
        Settings::write_rss(hw, rss, 0)?;
        hw.write(common::MRQC, regs::MRQC_RSS | hash_bits(rss.fields))
    }

    fn place(id: QueueId) -> u64 {
        if id.receives() { regs::rx_queue(id.index()) } else { regs::tx_queue(id.index()) }
    }

    fn create(hw: &Hardware, id: QueueId, base: u64, bytes: u32, direction: Direction) -> Result<()> {
        hardware::create_queue(hw, Self::place(id), base, bytes, direction)
    }

    fn delete(hw: &Hardware, id: QueueId) -> Result<()> {
        hardware::enable_queue(hw, Self::place(id), None)
    }

    fn dropped(hw: &Hardware, index: u16) -> Result<Option<u32>> {
        Ok(Some(hw.read(regs::rx_queue(index) + regs::queue::DROPPED)? & regs::queue::DROPPED_MASK))
    }

    fn set_up_interrupts(hw: &Hardware, rx_vectors: u16) -> Result<()> {
        hardware::set_up_interrupts(hw, rx_vectors, 0)
    }

    fn throttle(hw: &Hardware, vector: u32, interval: Duration) -> Result<()> {
        hardware::throttle(hw, vector, interval)
    }

    fn link_changed(hw: &Hardware, vectors: bool) -> Result<bool> {
        hardware::link_changed(hw, vectors)
    }

    fn vector(index: u16) -> Vector {
        Vector { bit: 2 << index, cause: regs::EICR, unmask: regs::EIMS, mask: regs::EIMC }
    }

    #[inline(always)]
    fn tx_data(len: u32, payload: u32, ends: bool, work: u64) -> u64 {
        descriptor::tx_data(len, payload, ends, work)
    }

    fn tx_work(offload: Option<Offload>, vlan: Option<u16>) -> u64 {
        descriptor::tx_work(offload, vlan.is_some())
    }

    fn tx_context(offload: Option<Offload>, vlan: Option<u16>, _: u32) -> Option<[u64; 2]> {
        (Self::tx_work(offload, vlan) != 0).then(|| descriptor::tx_context(offload, vlan))
    }

    fn can_describe(offload: &Offload) -> bool {
        offload.l2_len < 128 && offload.l3_len < 512
    }

    fn cycles(hw: &Hardware) -> Result<u64> {
        timesync::cycles(hw)
    }

    fn rx_stamp(hw: &Hardware) -> Result<Option<u64>> {
        timesync::rx_stamp(hw)
    }
}

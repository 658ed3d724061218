//! Intel's 82574 Gigabit Ethernet controllers, by their datasheet. (Linux: the driver `e1000e`; DPDK: the PMD `net_e1000_em`.)
//!
//! Two queues of each direction, with extended descriptors. Registers are in BAR0, and the MSI-X table, of five vectors, in BAR3. It takes tags of VLANs
//! off where it puts them in: insertion is granted together with stripping only. It has one context for what is to be done to packets, so that with two
//! queues that send there are no checksums and no segmentation. [`errata`](crate::errata) has what is known to be wrong with it.

mod descriptor;
mod errata;
mod hardware;
mod regs;

use crate::error::Result;
use crate::family::{Direction, Family, QueueId, Shared, Vector};
use crate::hardware::Hardware;
use crate::regs as common;
use crate::settings::{AROUND, RSS_TABLE, Settings, hash_bits};
use std::time::Duration;
use wholebar_core::mem::Offload;
use wholebar_core::net::{Limits, Offloads, PortConfig};

/// One port of an 82574.
pub type E1000e = crate::Nic<I82574>;
/// A receive queue of an [`E1000e`].
pub type Rx = crate::Rx<I82574>;
/// A transmit queue of an [`E1000e`].
pub type Tx = crate::Tx<I82574>;

/// The PCI ids, vendor and device, of what this driver is for: Intel's 82574L and 82574LA.
pub const IDS: [(u16, u16); 2] = [(0x8086, 0x10d3), (0x8086, 0x10f6)];

/// Largest frame, in bytes, header and frame checksum included.
const MAX_FRAME: u16 = 9234;
/// The Ethernet payload up to which frames are not long, in bytes.
const MTU: u16 = 1500;

/// The 82574, as a family of its own.
#[derive(Debug)]
pub enum I82574 {}

impl Family for I82574 {
    const NAME: &'static str = "e1000e";
    const DEVICE: &'static str = "an 82574";
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
    // RCTL.FLXBUF has four bits, for all queues.
    const BUFFER_KIB: u32 = 15;
    const ONE_BUFFER_SIZE: bool = true;

    fn grant(config: &PortConfig) -> Offloads {
        let mut granted = config.offloads.and(Self::LIMITS.offloads);
        // CTRL.VME does both.
        granted.vlan_insert &= granted.vlan_strip;
        if config.tx_queues > 1 {
            (granted.tx_l3_checksum, granted.tx_l4_checksum, granted.tso) = (false, false, false);
        }
        granted
    }

    fn check(hw: &Hardware) -> Result<()> {
        errata::check_link_power(hw)
    }

    fn reset(hw: &Hardware) -> Result<()> {
        hardware::reset(hw)
    }

    fn with<T>(hw: &Hardware, _: Shared, f: impl FnOnce() -> Result<T>) -> Result<T> {
        hardware::with(hw, f)
    }

    fn apply(hw: &Hardware, settings: &Settings) -> Result<()> {
        errata::apply(hw)?;
        settings.write_common(hw)?;
        hw.write(regs::VET, regs::VET_8021Q)?;
        hw.change(regs::RFCTL, regs::RFCTL_EXTENDED, 0)?;
        Self::apply_addresses(hw, settings)?;
        for word in 0..settings.vlans.words().len() {
            Self::apply_vlans(hw, settings, word)?;
        }
        Self::apply_rss(hw, settings)?;
        Self::apply_receive(hw, settings)?;
        let control = common::TCTL_ENABLE | common::TCTL_PAD | common::TCTL_COLLISIONS | regs::TCTL_DISTANCE;
        hw.change(common::TCTL, control, regs::TCTL_FIELDS & !control)
    }

    fn apply_receive(hw: &Hardware, settings: &Settings) -> Result<()> {
        // Queues are what enables it, and what says how large buffers are.
        let kept = hw.read(common::RCTL)? & (common::RCTL_ENABLE | regs::RCTL_BUFFER);
        let long = if settings.mtu > MTU { common::RCTL_LONG } else { 0 };
        hw.write(common::RCTL, kept | long | settings.receive_bits())
    }

    fn apply_rss(hw: &Hardware, settings: &Settings) -> Result<()> {
        let Some(rss) = &settings.rss else { return hw.write(common::MRQC, 0) };
        Settings::write_rss(hw, rss, regs::RETA_SHIFT)?;
        hw.write(common::MRQC, regs::MRQC_RSS | hash_bits(rss.fields) & regs::MRQC_FIELDS)
    }

    fn place(id: QueueId) -> u64 {
        if id.receives() { regs::rx_queue(id.index()) } else { regs::tx_queue(id.index()) }
    }

    fn create(hw: &Hardware, id: QueueId, base: u64, bytes: u32, direction: Direction) -> Result<()> {
        let place = Self::place(id);
        hardware::pause(hw, id)?;
        hw.write_ring(place, base, bytes)?;
        match direction {
            Direction::Rx { kib, .. } => {
                hw.write(place + common::queue::CONTROL, regs::RX_CONTROL)?;
                hw.change(common::RCTL, kib << regs::RCTL_BUFFER_SHIFT, regs::RCTL_BUFFER)?;
            }
            // Both queues have the same: see the errata.
            Direction::Tx => (0..regs::QUEUES)
                .try_for_each(|n| hw.write(regs::tx_queue(n) + common::queue::CONTROL, regs::TX_CONTROL))?,
        }
        hardware::go_on(hw, id)
    }

    fn delete(hw: &Hardware, id: QueueId) -> Result<()> {
        hardware::pause(hw, id)?;
        hw.write_ring(Self::place(id), 0, 0)?;
        hardware::go_on(hw, id)
    }

    fn dropped(_: &Hardware, _: u16) -> Result<Option<u32>> {
        Ok(None)
    }

    fn set_up_interrupts(hw: &Hardware, rx_vectors: u16) -> Result<()> {
        hardware::set_up_interrupts(hw, rx_vectors)
    }

    fn throttle(hw: &Hardware, vector: u32, interval: Duration) -> Result<()> {
        hardware::throttle(hw, vector, interval)
    }

    fn link_changed(hw: &Hardware, vectors: bool) -> Result<bool> {
        hardware::link_changed(hw, vectors)
    }

    fn vector(index: u16) -> Vector {
        Vector { bit: regs::CAUSE_RX_QUEUE << index, cause: common::ICR, unmask: common::IMS, mask: common::IMC }
    }

    #[inline(always)]
    fn tx_data(len: u32, _: u32, ends: bool, work: u64) -> u64 {
        descriptor::tx_data(len, ends, work)
    }

    fn tx_work(offload: Option<Offload>, vlan: Option<u16>) -> u64 {
        descriptor::tx_work(offload, vlan)
    }

    fn tx_context(offload: Option<Offload>, _: Option<u16>, payload: u32) -> Option<[u64; 2]> {
        let offload = offload.filter(|o| o.l3 || o.l4.is_some() || o.segment > 0)?;
        Some(descriptor::tx_context(offload, payload))
    }

    fn can_describe(offload: &Offload) -> bool {
        // Places of checksums, and the length of what is repeated, have eight bits.
        let l4 = offload.l4_start();
        l4 + 16 <= 255 && (offload.segment == 0 || l4 + u32::from(offload.l4_len) <= 255)
    }
}

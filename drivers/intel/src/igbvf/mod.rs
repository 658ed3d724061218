//! The virtual functions of Intel's 82576, by its datasheet (7.8, 8.26). (Linux: the driver `igbvf`; DPDK: the PMD `net_e1000_igb_vf`.)
//!
//! Rings, descriptors and vectors are the physical function's, at places of their own in a BAR0 of 16 KiB. Addresses, groups and VLANs are asked for by its
//! mailbox, whose other side is the physical function's driver: ours ([`IgbPf`](crate::igb::IgbPf)) or Linux's igb. A reset of the physical function
//! takes queues and settings away: it is told as a [`Reset`](wholebar_core::control_plane::DeviceEvent::Reset), and what was asked for is asked for again.
//!
//! A received VLAN tag is taken off whether that is asked for or not: the physical function decides.

mod mailbox;
mod regs;

use crate::error::{Error, Result};
use crate::family::{Direction, Family, QueueId, Shared, Vector};
use crate::hardware::Hardware;
use crate::igb::message::{GROUPS, Request};
use crate::igb::{I82576, hardware as igb, regs as shared};
use crate::regs as common;
use crate::settings::{Settings, group_hash};
use mailbox::Mailbox;
use std::time::Duration;
use wholebar_core::mem::Offload;
use wholebar_core::net::{Limits, Link, Mac, Offloads};

/// One virtual function of an 82576.
pub type Igbvf = crate::Nic<I82576Vf>;
/// A receive queue of an [`Igbvf`].
pub type Rx = crate::Rx<I82576Vf>;
/// A transmit queue of an [`Igbvf`].
pub type Tx = crate::Tx<I82576Vf>;

/// The PCI ids, vendor and device, of what this driver is for.
pub const IDS: [(u16, u16); 1] = [(0x8086, 0x10ca)];

/// The virtual functions of the 82576, as a family of their own.
#[derive(Debug)]
pub enum I82576Vf {}

/// The vector of the mailbox, as a bit.
const MAILBOX_VECTOR: u32 = 1;

impl Family for I82576Vf {
    const NAME: &'static str = "igbvf";
    const DEVICE: &'static str = "a virtual function of an 82576";
    const IDS: &'static [(u16, u16)] = &IDS;
    const REGISTERS: u64 = regs::SIZE;
    const LIMITS: Limits = Limits {
        rx_queues: 1,
        tx_queues: 1,
        offloads: Offloads { rss_hash: false, ..I82576::LIMITS.offloads },
        ..I82576::LIMITS
    };
    /// Its own, and as many groups as one request has room for.
    const ADDRESSES: usize = 1 + GROUPS;
    const MAX_THROTTLE: Duration = igb::MAX_THROTTLE;
    const BUFFER_KIB: u32 = I82576::BUFFER_KIB;
    const ONE_BUFFER_SIZE: bool = I82576::ONE_BUFFER_SIZE;
    /// The link is the physical function's.
    const NEGOTIATES: bool = false;

    fn counters() -> (&'static [(u64, &'static str)], &'static [(u64, &'static str)]) {
        // The device's are the physical function's.
        (&[], &[])
    }

    fn check(_: &Hardware) -> Result<()> {
        Ok(())
    }

    fn reset(hw: &Hardware) -> Result<()> {
        hw.write(shared::EIMC, u32::MAX)?;
        // What the queues do ends here, and the physical function is told (8.26.2.2).
        hw.write(common::CTRL, common::CTRL_RESET)?;
        for id in [QueueId::rx(0), QueueId::tx(0)] {
            igb::enable_queue(hw, Self::place(id), None)?;
        }
        Ok(())
    }

    fn with<T>(_: &Hardware, _: Shared, f: impl FnOnce() -> Result<T>) -> Result<T> {
        f()
    }

    fn address(hw: &Hardware) -> Result<Mac> {
        Mailbox::of(hw).begin()
    }

    fn start_link(_: &Hardware) -> Result<()> {
        Ok(())
    }

    fn apply(hw: &Hardware, settings: &Settings) -> Result<()> {
        Self::apply_receive(hw, settings)?;
        let mut mailbox = Mailbox::of(hw);
        let given = mailbox.begin()?;
        if given != settings.mac {
            mailbox.ask(&Request::Address(settings.mac))?;
        }
        mailbox.ask(&Request::Longest(settings.max_frame()))?;
        mailbox.ask(&groups(hw, settings)?)?;
        if settings.granted.vlan_filter {
            for vlan in settings.vlans.iter() {
                mailbox.ask(&Request::Vlan { vlan, on: true })?;
            }
        }
        Ok(())
    }

    fn apply_receive(hw: &Hardware, settings: &Settings) -> Result<()> {
        match settings.promiscuous || settings.all_multicast {
            true => Err(Error::Denied { device: hw.name(), what: "everything that is on the wire, or all groups" }),
            false => Ok(()),
        }
    }

    fn apply_addresses(hw: &Hardware, settings: &Settings) -> Result<()> {
        let groups = groups(hw, settings)?;
        let mut mailbox = Mailbox::of(hw);
        mailbox.ask(&Request::Address(settings.mac))?;
        mailbox.ask(&groups)
    }

    fn apply_vlans(hw: &Hardware, settings: &Settings, word: usize) -> Result<()> {
        let mut mailbox = Mailbox::of(hw);
        for bit in 0..32 {
            let vlan = (word * 32 + bit) as u16;
            if (1..=4094).contains(&vlan) {
                mailbox.ask(&Request::Vlan { vlan, on: settings.vlans.has(vlan) })?;
            }
        }
        Ok(())
    }

    fn apply_rss(_: &Hardware, _: &Settings) -> Result<()> {
        Ok(())
    }

    fn place(id: QueueId) -> u64 {
        if id.receives() { regs::RX_QUEUE } else { regs::TX_QUEUE }
    }

    fn create(hw: &Hardware, id: QueueId, base: u64, bytes: u32, direction: Direction) -> Result<()> {
        igb::create_queue(hw, Self::place(id), base, bytes, direction.dropping())
    }

    fn delete(hw: &Hardware, id: QueueId) -> Result<()> {
        igb::enable_queue(hw, Self::place(id), None)
    }

    fn dropped(hw: &Hardware, _: u16) -> Result<Option<u32>> {
        Ok(Some(hw.read(regs::RX_QUEUE + shared::queue::DROPPED)? & shared::queue::DROPPED_MASK))
    }

    fn set_up_interrupts(hw: &Hardware, rx_vectors: u16) -> Result<()> {
        let vectors = 1 + u32::from(rx_vectors);
        hw.write(shared::eitr(0), 0)?;
        hw.write(shared::ivar(0), if rx_vectors > 0 { shared::IVAR_VALID | 1 } else { 0 })?;
        hw.write(shared::IVAR_MISC, shared::IVAR_VALID)?;
        let all = (1 << vectors) - 1;
        hw.write(shared::EIAC, all)?;
        hw.write(shared::EIAM, all & !MAILBOX_VECTOR)?;
        hw.write(shared::EIMS, MAILBOX_VECTOR)
    }

    fn throttle(hw: &Hardware, vector: u32, interval: Duration) -> Result<()> {
        igb::throttle(hw, vector, interval)
    }

    fn link_changed(hw: &Hardware, vectors: bool) -> Result<bool> {
        if vectors {
            hw.write(shared::EIMS, MAILBOX_VECTOR)?;
        }
        Ok(false)
    }

    fn serve(hw: &Hardware, _: &mut Settings, _: Option<Link>) -> Result<()> {
        Mailbox::of(hw).check_for_reset()
    }

    fn vector(index: u16) -> Vector {
        I82576::vector(index)
    }

    #[inline(always)]
    fn tx_data(len: u32, total: u32, ends: bool, work: u64) -> u64 {
        I82576::tx_data(len, total, ends, work)
    }

    fn tx_work(offload: Option<Offload>, vlan: Option<u16>) -> u64 {
        I82576::tx_work(offload, vlan)
    }

    fn can_describe(offload: &Offload) -> bool {
        I82576::can_describe(offload)
    }

    fn tx_context(offload: Option<Offload>, vlan: Option<u16>, payload: u32) -> Option<[u64; 2]> {
        I82576::tx_context(offload, vlan, payload)
    }
}

/// What it receives besides its own address: groups, as many as one request has room for.
fn groups(hw: &Hardware, settings: &Settings) -> Result<Request> {
    let denied = |what| Err(Error::Denied { device: hw.name(), what });
    match &settings.filters[..] {
        filters if filters.len() > GROUPS => denied("more than 30 groups"),
        filters if filters.iter().any(|mac| !mac.is_multicast()) => denied("addresses of others"),
        filters => Ok(Request::Groups(filters.iter().map(|mac| group_hash(*mac)).collect())),
    }
}

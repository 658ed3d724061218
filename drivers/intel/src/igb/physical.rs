//! The 82576 whose virtual functions are in use: its own queues are a pool among theirs, packets are switched between pools by address and VLAN, and it
//! does what they ask for (datasheet, 7.8 and 7.10.3). What is asked for comes by the mailbox; what a virtual function asks is checked as what a peer sends.

use super::message::{self, Request};
use super::regs::{self, pool};
use super::{I82576, IDS, Igb, MAX_FRAME, hardware};
use crate::Options;
use crate::error::{Error, Result};
use crate::family::{Direction, Family, QueueId, Shared, Vector};
use crate::hardware::Hardware;
use crate::regs as common;
use crate::settings::{Settings, VirtualFunction, address_words};
use std::sync::Arc;
use std::time::{Duration, Instant};
use wholebar_core::mem::Offload;
use wholebar_core::net::{Limits, Link, Mac, Offloads, Port, PortConfig};
use wholebar_core::pci::config::CapabilityId;
use wholebar_core::pci::{Config, PciDevice};

/// One port of an 82576 that serves its virtual functions: seven at most, those that there are when it is opened or come while it is open.
///
/// The device filters by 32 VLANs in all. Each virtual function is granted as many as is its share, the physical one's own counted: 10 where there are two. What it
/// asks for beyond that is refused.
pub type IgbPf = crate::Nic<I82576Pf>;

/// Opens a port as what it is: one whose device has virtual functions serves them ([`IgbPf`]), and any other is an [`Igb`].
///
/// # Errors
/// Those of [`Nic::open`](crate::Nic::open).
pub fn open(device: Arc<dyn PciDevice>, config: PortConfig, options: Options) -> Result<Box<dyn Port>> {
    Ok(match count_functions(&Config::of(device.as_ref())?) {
        0 => Box::new(Igb::open(device, config, options)?),
        _ => Box::new(IgbPf::open(device, config, options)?),
    })
}

/// The 82576 with virtual functions, as a family of its own.
#[derive(Debug)]
pub enum I82576Pf {}

/// Virtual functions, at most.
const FUNCTIONS: u16 = 7;
/// The pool of the physical function, and its first queue: behind those of all virtual functions.
const OWN: u16 = FUNCTIONS;
/// How long an answer stays in a mailbox for a virtual function to read before anything else is written there.
const UNREAD: Duration = Duration::from_secs(10);
/// Frames that a virtual function receives before it asks for longer ones, in bytes.
const USUAL_FRAME: u32 = 1522;

/// How many virtual functions a physical one has (SR-IOV capability, PCI Express Base 6.0, 9.3.3.3 and 9.3.3.7: VF Enable, NumVFs).
fn count_functions(config: &Config) -> u16 {
    let Some(at) = config.find(CapabilityId::Extended(0x10)).map(|capability| capability.offset) else { return 0 };
    match (config.u16(at + 0x08), config.u16(at + 0x10)) {
        (Some(control), Some(count)) if control != u16::MAX && control & 1 != 0 => count,
        _ => 0,
    }
}

impl Family for I82576Pf {
    const NAME: &'static str = "igb";
    const DEVICE: &'static str = "an 82576";
    const IDS: &'static [(u16, u16)] = &IDS;
    const REGISTERS: u64 = regs::SIZE;
    /// The last ones are those of virtual functions.
    const ADDRESSES: usize = regs::ADDRESSES - FUNCTIONS as usize;
    const MAX_THROTTLE: Duration = hardware::MAX_THROTTLE;
    const BUFFER_KIB: u32 = I82576::BUFFER_KIB;
    const ONE_BUFFER_SIZE: bool = I82576::ONE_BUFFER_SIZE;
    const LIMITS: Limits = Limits {
        rx_queues: 1,
        tx_queues: 1,
        offloads: Offloads { rss_hash: false, ..I82576::LIMITS.offloads },
        ..I82576::LIMITS
    };

    fn functions() -> Vec<VirtualFunction> {
        (0..FUNCTIONS).map(|_| VirtualFunction::by_chance()).collect()
    }

    fn check(hw: &Hardware) -> Result<()> {
        let count = count_functions(&Config::of(hw.device.as_ref())?);
        if count > FUNCTIONS {
            let why = format!("it has {count} virtual functions, and with more than {FUNCTIONS} no queue of its own");
            return Err(Error::Unfit { device: hw.name(), why });
        }
        I82576::check(hw)
    }

    fn reset(hw: &Hardware) -> Result<()> {
        I82576::reset(hw)
    }

    fn with<T>(hw: &Hardware, part: Shared, f: impl FnOnce() -> Result<T>) -> Result<T> {
        hardware::with(hw, part, f)
    }

    fn address(hw: &Hardware) -> Result<Mac> {
        I82576::address(hw)
    }

    fn start_link(hw: &Hardware) -> Result<()> {
        I82576::start_link(hw)?;
        // Virtual functions wait for this after a reset (PFRSTD, 8.2.3).
        hw.change(common::CTRL_EXT, regs::CTRL_EXT_RESET_DONE, 0)
    }

    fn apply(hw: &Hardware, settings: &Settings) -> Result<()> {
        settings.write_common(hw)?;
        Self::apply_rss(hw, settings)?;
        hw.write(regs::RLPML, MAX_FRAME.into())?;
        hw.write(regs::RPLOLR, pool::STRIP_CRC)?;
        for n in 0..FUNCTIONS {
            hw.write(regs::vmolr(n), usual(n))?;
        }
        // A virtual function sends with its own address only (7.8.3.8.1).
        hw.write(regs::DTXSWC, regs::DTXSWC_LOOPBACK | ((1 << FUNCTIONS) - 1))?;
        hw.write(regs::VFRE, 1 << OWN)?;
        hw.write(regs::VFTE, 1 << OWN)?;
        Self::apply_addresses(hw, settings)?;
        for word in 0..settings.vlans.words().len() {
            Self::apply_vlans(hw, settings, word)?;
        }
        Self::apply_receive(hw, settings)?;
        hw.write(common::TCTL, common::TCTL_ENABLE | common::TCTL_PAD | common::TCTL_COLLISIONS)
    }

    fn apply_receive(hw: &Hardware, settings: &Settings) -> Result<()> {
        let everything = settings.promiscuous;
        let groups = everything || settings.all_multicast;
        let bits =
            [(everything, pool::UNICAST), (groups, pool::MULTICAST), (settings.granted.vlan_strip, pool::STRIP_VLAN)];
        let always = pool::BROADCAST | pool::HASHED_GROUPS | pool::UNTAGGED | pool::STRIP_CRC | pool::LONG;
        let own = bits.iter().filter(|(on, _)| *on).fold(always | settings.max_frame(), |all, (_, bit)| all | bit);
        hw.write(regs::vmolr(OWN), own)?;
        // What is nobody's goes to the physical function where that takes everything, and to nobody else.
        let nobody = if everything { 0 } else { regs::VT_CTL_NO_DEFAULT };
        hw.write(regs::VT_CTL, u32::from(OWN) << regs::VT_CTL_DEFAULT | regs::VT_CTL_REPLICATE | nobody)?;
        hw.write(common::RCTL, common::RCTL_ENABLE | common::RCTL_LONG | settings.receive_bits())
    }

    fn apply_addresses(hw: &Hardware, settings: &Settings) -> Result<()> {
        settings.write_addresses(hw, Self::ADDRESSES, regs::rah_pool(OWN))?;
        // Those of functions that are known, after a reset of this one: none.
        let known = hw.read(regs::VFRE)?;
        for (n, function) in (0..).zip(&settings.functions) {
            write_address(hw, n, Some(function.mac).filter(|_| known & 1 << n != 0))?;
        }
        Ok(())
    }

    fn apply_vlans(hw: &Hardware, settings: &Settings, word: usize) -> Result<()> {
        let entries = vlan_entries(hw)?;
        for bit in 0..32 {
            let vlan = (word * 32 + bit) as u16;
            let is = entries.iter().any(|entry| entry.is_of(vlan) && entry.pools & 1 << OWN != 0);
            let wanted = settings.vlans.has(vlan);
            if is != wanted && !set_vlan(hw, OWN, vlan, wanted)? {
                tracing::warn!(
                    device = hw.name(),
                    vlan,
                    "it is not received: there are 32 VLANs of all functions at most"
                );
            }
        }
        Ok(())
    }

    fn apply_rss(hw: &Hardware, _: &Settings) -> Result<()> {
        hw.write(common::MRQC, regs::MRQC_POOLS)
    }

    fn place(id: QueueId) -> u64 {
        let index = OWN + id.index();
        if id.receives() { regs::rx_queue(index) } else { regs::tx_queue(index) }
    }

    fn create(hw: &Hardware, id: QueueId, base: u64, bytes: u32, direction: Direction) -> Result<()> {
        hardware::create_queue(hw, Self::place(id), base, bytes, direction.dropping())
    }

    fn delete(hw: &Hardware, id: QueueId) -> Result<()> {
        hardware::enable_queue(hw, Self::place(id), None)
    }

    fn dropped(hw: &Hardware, index: u16) -> Result<Option<u32>> {
        I82576::dropped(hw, OWN + index)
    }

    fn set_up_interrupts(hw: &Hardware, rx_vectors: u16) -> Result<()> {
        hardware::set_up_interrupts(hw, rx_vectors, OWN)?;
        hw.write(regs::MBVFIMR, (1 << FUNCTIONS) - 1)?;
        hw.write(common::IMS, regs::CAUSE_MAILBOX)
    }

    fn throttle(hw: &Hardware, vector: u32, interval: Duration) -> Result<()> {
        hardware::throttle(hw, vector, interval)
    }

    fn link_changed(hw: &Hardware, vectors: bool) -> Result<bool> {
        hardware::link_changed(hw, vectors)
    }

    fn serve(hw: &Hardware, settings: &mut Settings, link: Option<Link>) -> Result<()> {
        let (asked, reset) = (hw.read(regs::MBVFICR)?, hw.read(regs::VFLRE)?);
        for n in 0..FUNCTIONS {
            let (request, acknowledged) = (1 << n, 1 << (16 + n));
            if reset & request != 0 {
                hw.write(regs::VFLRE, request)?;
                forget(hw, settings, n)?;
            }
            if asked & acknowledged != 0 {
                hw.write(regs::MBVFICR, acknowledged)?;
                answered(settings, n, None);
            }
            if asked & request != 0
                && let Some(words) = receive(hw, n)?
            {
                let done = answer(hw, settings, n, &words).and_then(|answer| send(hw, n, &answer));
                if done.is_err() {
                    hw.write(regs::p2v_mailbox(n), 0)?;
                }
                done?;
                answered(settings, n, Some(Instant::now()));
            }
        }
        let known = hw.read(regs::VFRE)?;
        for (n, function) in (0..).zip(&mut settings.functions) {
            function.link_changed |= link.is_some();
            if known & 1 << n == 0 {
                function.link_changed = false;
            }
            // An answer that it has not read yet would be lost. Linux's igbvf never reads some.
            let read = function.answered.is_none_or(|then| then.elapsed() > UNREAD);
            if function.link_changed && read {
                function.link_changed = !ping(hw, n)?;
            }
        }
        Ok(())
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

/// What pool `n` of a virtual function receives before it asks for more.
fn usual(n: u16) -> u32 {
    debug_assert!(n < FUNCTIONS);
    pool::BROADCAST | pool::UNTAGGED | pool::STRIP_VLAN | pool::STRIP_CRC | pool::LONG | USUAL_FRAME
}

/// Where the address of virtual function `n` is among those that are compared.
fn write_address(hw: &Hardware, n: u16, mac: Option<Mac>) -> Result<()> {
    let (low, high) = common::receive_address(regs::ADDRESSES - 1 - usize::from(n));
    hw.write(high, 0)?;
    if let Some(mac) = mac {
        let (a, b) = address_words(mac);
        hw.write(low, a)?;
        hw.write(high, b | regs::rah_pool(n))?;
    }
    Ok(())
}

/// A virtual function is gone, or begins anew: it neither receives nor sends, and nothing is left of what it asked for.
fn forget(hw: &Hardware, settings: &mut Settings, n: u16) -> Result<()> {
    for register in [regs::VFRE, regs::VFTE] {
        hw.change(register, 0, 1 << n)?;
    }
    hw.write(regs::vmolr(n), usual(n))?;
    write_address(hw, n, None)?;
    for entry in vlan_entries(hw)?.iter().filter(|entry| entry.pools & 1 << n != 0) {
        set_vlan(hw, n, entry.vlan, false)?;
    }
    let Some(function) = settings.functions.get_mut(usize::from(n)) else { return Ok(()) };
    match function.groups.is_empty() {
        true => Ok(()),
        false => {
            function.groups.clear();
            I82576Pf::apply_addresses(hw, settings)
        }
    }
}

/// Takes note of when a virtual function was answered, or that it has read that.
fn answered(settings: &mut Settings, n: u16, then: Option<Instant>) {
    if let Some(function) = settings.functions.get_mut(usize::from(n)) {
        function.answered = then;
    }
}

/// Does what a virtual function asks for; the answer.
fn answer(
    hw: &Hardware,
    settings: &mut Settings,
    n: u16,
    words: &[u32; message::WORDS],
) -> Result<[u32; message::WORDS]> {
    let (name, first) = (hw.name(), words[0]);
    let request = Request::parse(words);
    if request == Some(Request::Reset) {
        forget(hw, settings, n)?;
        let mac = settings.functions.get(usize::from(n)).map(|function| function.mac);
        write_address(hw, n, mac)?;
        for register in [regs::VFRE, regs::VFTE] {
            hw.change(register, 1 << n, 0)?;
        }
        tracing::info!(device = name, function = n, "a virtual function begins anew");
        return Ok(message::answer(first, mac.is_some(), mac));
    }
    if hw.read(regs::VFRE)? & 1 << n == 0 {
        // It does not know yet that this one was reset: it has to begin anew.
        let mut words = message::answer(first, false, None);
        words[0] &= !message::CLEAR_TO_SEND;
        return Ok(words);
    }
    let done = match &request {
        Some(request) => grant(hw, settings, n, request)?,
        None => false,
    };
    if !done {
        tracing::warn!(device = name, function = n, ?request, first, "a virtual function's request is refused");
    }
    Ok(message::answer(first, done, None))
}

/// Does what a virtual function asks for that has begun; whether it may have it.
fn grant(hw: &Hardware, settings: &mut Settings, n: u16, request: &Request) -> Result<bool> {
    match request {
        Request::Reset => return Ok(false),
        Request::Address(mac) => {
            let others = settings.functions.iter().enumerate().filter(|(i, _)| *i != usize::from(n));
            let taken = *mac == settings.mac || others.clone().any(|(_, function)| function.mac == *mac);
            if !mac.is_unicast() || taken {
                return Ok(false);
            }
            let Some(function) = settings.functions.get_mut(usize::from(n)) else { return Ok(false) };
            function.mac = *mac;
            write_address(hw, n, Some(*mac))?;
        }
        Request::OneAddress => {}
        Request::Groups(hashes) => {
            let Some(function) = settings.functions.get_mut(usize::from(n)) else { return Ok(false) };
            function.groups = hashes.clone();
            // By its hash it gets the groups of all others, too.
            let bit = if hashes.is_empty() { 0 } else { pool::HASHED_GROUPS };
            hw.change(regs::vmolr(n), bit, pool::HASHED_GROUPS)?;
            I82576Pf::apply_addresses(hw, settings)?;
        }
        Request::Vlan { vlan, on: true } if !has_room(hw, n, *vlan)? => return Ok(false),
        Request::Vlan { vlan, on } => return set_vlan(hw, n, *vlan, *on),
        Request::Longest(bytes) => {
            if *bytes > MAX_FRAME.into() {
                return Ok(false);
            }
            hw.change(regs::vmolr(n), bytes & pool::LONGEST, pool::LONGEST)?;
        }
    }
    Ok(true)
}

/// An entry of the table of VLANs and their pools (VLVF, 8.10).
struct VlanEntry {
    vlan: u16,
    /// A bit a pool; none where it is free.
    pools: u32,
}

impl VlanEntry {
    fn is_of(&self, vlan: u16) -> bool {
        self.pools != 0 && self.vlan == vlan
    }
}

fn vlan_entries(hw: &Hardware) -> Result<Vec<VlanEntry>> {
    let entry = |n| {
        let value = hw.read(regs::vlvf(n))?;
        let pools = if value & regs::VLVF_ENABLE != 0 { value >> regs::VLVF_POOLS & 0xff } else { 0 };
        Ok(VlanEntry { vlan: (value & 0xfff) as u16, pools })
    };
    (0..regs::VLANS).map(entry).collect()
}

/// Whether a virtual function may be in one more VLAN: in as many as is its share of the table, or it could take the entries of all others and of this one.
/// (Linux's igb has no such limit.)
fn has_room(hw: &Hardware, n: u16, vlan: u16) -> Result<bool> {
    let functions = count_functions(&Config::of(hw.device.as_ref())?).clamp(1, FUNCTIONS);
    let share = usize::from(regs::VLANS / (functions + 1));
    let entries = vlan_entries(hw)?;
    let others = entries.iter().filter(|entry| entry.pools & 1 << n != 0 && !entry.is_of(vlan)).count();
    Ok(others < share)
}

/// Has a pool receive packets of a VLAN, or not; whether there is room for that.
fn set_vlan(hw: &Hardware, n: u16, vlan: u16, on: bool) -> Result<bool> {
    let entries = vlan_entries(hw)?;
    let found = entries.iter().position(|entry| entry.is_of(vlan));
    let Some(index) = found.or_else(|| entries.iter().position(|entry| entry.pools == 0).filter(|_| on)) else {
        return Ok(!on);
    };
    let before = if found.is_some() { entries[index].pools } else { 0 };
    let pools = if on { before | 1 << n } else { before & !(1 << n) };
    let value = if pools == 0 { 0 } else { regs::VLVF_ENABLE | pools << regs::VLVF_POOLS | u32::from(vlan) };
    hw.write(regs::vlvf(index as u16), value)?;
    let (register, bit) = (common::VFTA + 4 * u64::from(vlan >> 5), 1 << (vlan & 31));
    if pools == 0 {
        hw.change(register, 0, bit)?
    } else {
        hw.change(register, bit, 0)?
    }
    Ok(true)
}

/// Takes the mailbox for this side (8.14.3); whether that worked: the other one may be at it.
fn take(hw: &Hardware, n: u16) -> Result<bool> {
    for _ in 0..10 {
        hw.write(regs::p2v_mailbox(n), regs::P2V_TAKEN)?;
        if hw.read(regs::p2v_mailbox(n))? & regs::P2V_TAKEN != 0 {
            return Ok(true);
        }
    }
    tracing::debug!(device = hw.name(), function = n, "its mailbox is being written by the other side");
    Ok(false)
}

/// What a virtual function has written, which is told that it was read; `None` where it is still at it, and later is soon enough. This side keeps the mailbox: one
/// that waits for no answer (Linux's igbvf, of groups) would write its next request there, and this answer be written over it.
fn receive(hw: &Hardware, n: u16) -> Result<Option<[u32; message::WORDS]>> {
    if !take(hw, n)? {
        return Ok(None);
    }
    hw.write(regs::MBVFICR, 1 << n)?;
    let mut words = [0; message::WORDS];
    for (i, word) in words.iter_mut().enumerate() {
        *word = hw.read(regs::mailbox(n) + 4 * i as u64)?;
    }
    hw.write(regs::p2v_mailbox(n), regs::P2V_READ | regs::P2V_TAKEN)?;
    Ok(Some(words))
}

/// Writes to a virtual function, which has the mailbox again then.
fn send(hw: &Hardware, n: u16, words: &[u32; message::WORDS]) -> Result<()> {
    if take(hw, n)? {
        for (i, word) in words.iter().enumerate() {
            hw.write(regs::mailbox(n) + 4 * i as u64, *word)?;
        }
        hw.write(regs::p2v_mailbox(n), regs::P2V_WRITTEN)?;
    }
    Ok(())
}

/// Has a virtual function look at the link; not while it waits for an answer, whose request would be overwritten. Whether that was done.
fn ping(hw: &Hardware, n: u16) -> Result<bool> {
    if !take(hw, n)? {
        return Ok(false);
    }
    if hw.read(regs::MBVFICR)? & 1 << n != 0 {
        hw.write(regs::p2v_mailbox(n), 0)?;
        return Ok(false);
    }
    hw.write(regs::mailbox(n), message::CONTROL | message::CLEAR_TO_SEND)?;
    hw.write(regs::p2v_mailbox(n), regs::P2V_WRITTEN)?;
    Ok(true)
}

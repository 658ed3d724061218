//! What a port is asked to be besides its queues: addresses, VLANs, how packets are spread, sizes. It is told to the device when it is set up
//! (82576 datasheet, 4.5.9), again after each reset, and in part when it changes.

use crate::error::{Error, Result};
use crate::hardware::Hardware;
use crate::regs;
use std::time::Duration;
use wholebar_core::net::{HashFields, Mac, Offloads, Rss};

/// Largest frame, in bytes, header and frame checksum included.
const MAX_FRAME: u16 = 9728;
/// Ethernet's header, its checksum, and a VLAN tag, in bytes.
const AROUND: u16 = 14 + 4 + 4;
/// The largest MTU, in bytes.
pub(crate) const MAX_MTU: u16 = MAX_FRAME - AROUND;
/// The smallest MTU, in bytes: what IPv4 asks for.
pub(crate) const MIN_MTU: u16 = 68;
/// The longest time between interrupts that the device takes: 13 bits of microseconds (8.8.12).
pub(crate) const MAX_THROTTLE: Duration = Duration::from_micros((1 << 13) - 1);
/// Entries of the redirection table.
pub(crate) const RSS_TABLE: u16 = 128;
/// Bytes of the hash's key.
const RSS_KEY: usize = 40;

#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub mac: Mac,
    pub promiscuous: bool,
    pub all_multicast: bool,
    /// Addresses besides its own.
    pub filters: Vec<Mac>,
    /// A bit a VLAN.
    pub vlans: [u32; 128],
    pub rss: Option<Rss>,
    pub mtu: u16,
    /// The least time between two interrupts of a receive queue.
    pub throttle: Duration,
    pub granted: Offloads,
}

impl Settings {
    /// Tells the device everything, and enables both directions. Queues are enabled one by one, later.
    pub fn apply(&self, hw: &Hardware) -> Result<()> {
        hw.write(regs::CTRL_EXT, hw.read(regs::CTRL_EXT)? | regs::CTRL_EXT_DRIVER)?;
        let strip = if self.granted.vlan_strip { regs::CTRL_VLAN_STRIP } else { 0 };
        hw.write(regs::CTRL, hw.read(regs::CTRL)? & !regs::CTRL_VLAN_STRIP | strip)?;
        self.apply_addresses(hw)?;
        for (i, word) in (0..).zip(&self.vlans) {
            hw.write(regs::VFTA + 4 * i, *word)?;
        }
        self.apply_rss(hw)?;
        let check = if self.granted.rx_checksum { regs::RXCSUM_CHECK } else { 0 };
        hw.write(regs::RXCSUM, check | regs::RXCSUM_HASH)?;
        hw.write(regs::RLPML, self.max_frame())?;
        self.apply_receive(hw)?;
        hw.write(regs::TCTL, regs::TCTL_ENABLE | regs::TCTL_PAD | regs::TCTL_COLLISIONS)
    }

    /// How often vectors `1` to `rx_vectors`, those of receive queues, interrupt at most (8.8.12); the link's, 0, does at once.
    pub fn apply_throttle(&self, hw: &Hardware, rx_vectors: u16) -> Result<()> {
        // In 13 bits: see MAX_THROTTLE.
        let micros = self.throttle.min(MAX_THROTTLE).as_micros() as u32;
        hw.write(regs::eitr(0), 0)?;
        (1..=u32::from(rx_vectors))
            .try_for_each(|vector| hw.write(regs::eitr(vector), micros << regs::EITR_INTERVAL_SHIFT))
    }

    /// The largest frame that is received or sent, in bytes, header and frame checksum included.
    pub fn max_frame(&self) -> u32 {
        (self.mtu + AROUND).into()
    }

    /// The largest packet in memory, in bytes: no frame checksum.
    pub fn max_packet(&self) -> u32 {
        self.max_frame() - 4
    }

    /// What is received (8.10.1).
    pub fn apply_receive(&self, hw: &Hardware) -> Result<()> {
        let filter = self.granted.vlan_filter && !self.promiscuous;
        let bits = [
            (self.promiscuous, regs::RCTL_UNICAST),
            (self.promiscuous || self.all_multicast, regs::RCTL_MULTICAST),
            (filter, regs::RCTL_VLAN_FILTER),
        ];
        // Long packets always: RLPML says how long they may be.
        let always = regs::RCTL_ENABLE | regs::RCTL_BROADCAST | regs::RCTL_LONG | regs::RCTL_STRIP_CRC;
        hw.write(regs::RCTL, bits.iter().filter(|(on, _)| *on).fold(always, |rctl, (_, bit)| rctl | bit))
    }

    /// Whom it receives for: its own address, then others as far as they fit, groups that don't by their hash.
    pub fn apply_addresses(&self, hw: &Hardware) -> Result<()> {
        let (exact, hashed) = self.split_filters();
        let mut addresses = std::iter::once(&self.mac).chain(exact);
        for n in 0..regs::ADDRESSES {
            let (low, high) = regs::receive_address(n);
            let (a, b) = addresses.next().map_or((0, 0), |mac| address_words(*mac));
            // Not valid while it is half of one and half of another.
            hw.write(high, 0)?;
            hw.write(low, a)?;
            hw.write(high, b)?;
        }
        let mut table = [0u32; 128];
        for mac in hashed {
            let hash = group_hash(*mac);
            table[usize::from(hash >> 5)] |= 1 << (hash & 31);
        }
        for (i, word) in (0..).zip(table) {
            hw.write(regs::MTA + 4 * i, word)?;
        }
        Ok(())
    }

    /// Those that are compared exactly (single stations first), and groups beyond them.
    fn split_filters(&self) -> (Vec<&Mac>, Vec<&Mac>) {
        let (groups, mut exact): (Vec<_>, Vec<_>) = self.filters.iter().partition(|mac| mac.is_multicast());
        let room = (regs::ADDRESSES - 1).saturating_sub(exact.len()).min(groups.len());
        let (fit, hashed) = groups.split_at(room);
        exact.extend(fit);
        (exact, hashed.to_vec())
    }

    /// How packets are spread (7.1.1.7).
    pub fn apply_rss(&self, hw: &Hardware) -> Result<()> {
        let Some(rss) = &self.rss else { return hw.write(regs::MRQC, 0) };
        for (i, bytes) in (0..).zip(rss.key.as_chunks::<4>().0) {
            hw.write(regs::RSSRK + 4 * i, u32::from_le_bytes(*bytes))?;
        }
        let mut table = rss.table.iter().cycle();
        for i in 0..u64::from(RSS_TABLE) / 4 {
            // A byte an entry, the queue in bits 3:0. Shorter tables repeat, as the hash's lowest bits do.
            let mut word = 0;
            for shift in [0, 8, 16, 24] {
                word |= table.next().map_or(0, |queue| u32::from(*queue & 0xf)) << shift;
            }
            hw.write(regs::RETA + 4 * i, word)?;
        }
        hw.write(regs::MRQC, regs::MRQC_RSS | hash_bits(rss.fields))
    }

    /// Whether packets can be spread so over `queues`.
    pub fn check_rss(rss: &Rss, queues: u16) -> Result<(), String> {
        if rss.key.len() != RSS_KEY {
            return Err(format!("a key has {RSS_KEY} bytes, and this one {}", rss.key.len()));
        }
        let entries = rss.table.len();
        if !entries.is_power_of_two() || entries > RSS_TABLE.into() {
            return Err(format!("a table has a power of two of entries up to {RSS_TABLE}, and this one {entries}"));
        }
        match rss.table.iter().find(|queue| **queue >= queues) {
            Some(queue) => Err(format!("its table names queue {queue} of {queues}")),
            None => Ok(()),
        }
    }

    /// Whether these addresses can be filtered for.
    pub fn check_filters(device: &str, filters: &[Mac]) -> Result<()> {
        let refuse = |why| Err(Error::Address { device: device.to_owned(), why });
        if let Some(mac) = filters.iter().find(|mac| !mac.is_unicast() && !mac.is_multicast()) {
            return refuse(format!("{mac} is nobody's address"));
        }
        let single = filters.iter().filter(|mac| mac.is_unicast()).count();
        match single < regs::ADDRESSES {
            true => Ok(()),
            false => refuse(format!(
                "{single} addresses besides its own are more than the {} it has room for: be promiscuous",
                regs::ADDRESSES - 1
            )),
        }
    }
}

/// RAL and RAH.
fn address_words(mac: Mac) -> (u32, u32) {
    let [a, b, c, d, e, f] = mac.0;
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, 0, 0]) | regs::RAH_VALID)
}

/// Which bit of the multicast table a group has: bits 47:36 of the address (RCTL.MO is 0).
fn group_hash(mac: Mac) -> u16 {
    u16::from_le_bytes([mac.0[4], mac.0[5]]) >> 4
}

/// MRQC's fields.
fn hash_bits(fields: HashFields) -> u32 {
    let bits = [
        (fields.tcp4, 1 << 16),
        (fields.ipv4, 1 << 17),
        // With and without extension headers.
        (fields.tcp6, 1 << 18 | 1 << 21),
        (fields.ipv6, 1 << 19 | 1 << 20),
        (fields.udp4, 1 << 22),
        (fields.udp6, 1 << 23 | 1 << 24),
    ];
    bits.iter().filter(|(on, _)| *on).fold(0, |all, (_, bit)| all | bit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(filters: Vec<Mac>) -> Settings {
        Settings {
            mac: Mac([2, 0, 0, 0, 0, 1]),
            promiscuous: false,
            all_multicast: false,
            filters,
            vlans: [0; 128],
            rss: None,
            mtu: 1500,
            throttle: Duration::ZERO,
            granted: Offloads::NONE,
        }
    }

    #[test]
    fn addresses_are_laid_out_as_the_device_reads_them() {
        assert_eq!(address_words(Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56])), (0x1200_5452, 0x8000_5634));
        // The datasheet's way: the last twelve bits of the address.
        assert_eq!(group_hash(Mac([1, 0, 0x5e, 0, 0x34, 0x12])), 0x123);
    }

    #[test]
    fn groups_that_do_not_fit_are_hashed() {
        let single = |i| Mac([2, 0, 0, 0, 1, i]);
        let group = |i| Mac([1, 0, 0x5e, 0, 0, i]);
        let all: Vec<_> = (0..10).map(group).chain((0..20).map(single)).collect();
        let settings = settings(all);
        let (exact, hashed) = settings.split_filters();
        assert_eq!((exact.len(), hashed.len()), (23, 7));
        assert!(exact[..20].iter().all(|mac| mac.is_unicast()) && hashed.iter().all(|mac| mac.is_multicast()));
        assert!(Settings::check_filters("x", &(0..23).map(single).collect::<Vec<_>>()).is_ok());
        assert!(Settings::check_filters("x", &(0..24).map(single).collect::<Vec<_>>()).is_err());
        assert!(Settings::check_filters("x", &[Mac::default()]).is_err());
    }

    #[test]
    fn spreading_that_cannot_be_is_refused() {
        let good = Rss::evenly(4, 128);
        assert_eq!(Settings::check_rss(&good, 4), Ok(()));
        for bad in [
            Rss { key: vec![0; 39], ..good.clone() },
            Rss { table: vec![0; 3], ..good.clone() },
            Rss { table: vec![0; 256], ..good.clone() },
            Rss { table: vec![], ..good.clone() },
            Rss { table: vec![4], ..good.clone() },
        ] {
            assert!(Settings::check_rss(&bad, 4).is_err());
        }
        assert_eq!(hash_bits(HashFields::ALL), 0x1ff << 16);
        assert_eq!(hash_bits(HashFields { udp4: true, ..HashFields::NONE }), 1 << 22);
    }

    #[test]
    fn sizes_hold_a_tag() {
        let mut settings = settings(vec![]);
        assert_eq!((settings.max_frame(), settings.max_packet()), (1522, 1518));
        settings.mtu = MAX_MTU;
        assert_eq!(settings.max_frame(), 9728);
    }
}

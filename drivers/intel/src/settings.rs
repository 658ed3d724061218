//! What a port is asked to be besides its queues: addresses, VLANs, how packets are spread, sizes. Its family tells it to the device when it is set up
//! (82576 datasheet, 4.5.9), again after each reset, and in part when it changes; what is the same for all of them is here.

use crate::error::Result;
use crate::hardware::Hardware;
use crate::regs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, Instant};
use wholebar_core::net::{HashFields, Mac, Offloads, PortError, Rss, Vlans};

/// Ethernet's header, its checksum, and a VLAN tag, in bytes.
pub const AROUND: u16 = 14 + 4 + 4;
/// Entries of the redirection table.
pub const RSS_TABLE: u16 = 128;
/// Bytes of the hash's key.
pub const RSS_KEY: usize = 40;

#[derive(Debug, Clone)]
pub struct Settings {
    pub mac: Mac,
    pub promiscuous: bool,
    pub all_multicast: bool,
    /// Addresses besides its own.
    pub filters: Vec<Mac>,
    pub vlans: Vlans,
    pub rss: Option<Rss>,
    pub mtu: u16,
    /// The least time between two interrupts of a receive queue.
    pub throttle: Duration,
    pub granted: Offloads,
    /// What the clock by which packets are stamped adds each period; `None` where it does not run.
    pub timesync: Option<u32>,
    /// Those that it serves, by their numbers.
    pub functions: Vec<VirtualFunction>,
}

/// What a virtual function was given and has asked for, as far as the device doesn't keep it.
#[derive(Debug, Clone)]
pub struct VirtualFunction {
    /// Its address.
    pub mac: Mac,
    /// The hashes of the groups that it receives for.
    pub groups: Vec<u16>,
    /// When an answer was written to its mailbox that it has not acknowledged yet; `None` where it has, or there was none.
    pub answered: Option<Instant>,
    /// The link has changed since it was last sent a control message.
    pub link_changed: bool,
}

impl VirtualFunction {
    /// One with an address by chance: locally administered, of one station.
    pub fn by_chance() -> Self {
        // Each `RandomState` has keys of its own, from the system's source of randomness.
        let [a, b, c, d, e, f, ..] = RandomState::new().build_hasher().finish().to_le_bytes();
        let mac = Mac([a & !1 | 2, b, c, d, e, f]);
        Self { mac, groups: Vec::new(), answered: None, link_changed: false }
    }
}

impl Settings {
    /// That a driver is there, and what is done to packets that are received.
    pub fn write_common(&self, hw: &Hardware) -> Result<()> {
        hw.change(regs::CTRL_EXT, regs::CTRL_EXT_DRIVER, 0)?;
        let strip = if self.granted.vlan_strip { regs::CTRL_VLAN_STRIP } else { 0 };
        hw.change(regs::CTRL, strip, regs::CTRL_VLAN_STRIP)?;
        let check = if self.granted.rx_checksum { regs::RXCSUM_CHECK } else { 0 };
        hw.write(regs::RXCSUM, check | regs::RXCSUM_HASH)
    }

    /// The largest frame that is received or sent, in bytes, header and frame checksum included.
    pub fn max_frame(&self) -> u32 {
        (self.mtu + AROUND).into()
    }

    /// The largest packet in memory, in bytes: no frame checksum.
    pub fn max_packet(&self) -> u32 {
        self.max_frame() - 4
    }

    /// What is received, as bits of RCTL (8.10.1).
    pub fn receive_bits(&self) -> u32 {
        let filter = self.granted.vlan_filter && !self.promiscuous;
        let bits = [
            (self.promiscuous, regs::RCTL_UNICAST),
            (self.promiscuous || self.all_multicast, regs::RCTL_MULTICAST),
            (filter, regs::RCTL_VLAN_FILTER),
        ];
        let always = regs::RCTL_BROADCAST | regs::RCTL_STRIP_CRC;
        bits.iter().filter(|(on, _)| *on).fold(always, |rctl, (_, bit)| rctl | bit)
    }

    /// Whom it receives for: its own address, then others as far as `room` has place, groups that don't fit by their hash, and what virtual functions asked
    /// for. `bits` go with each of its addresses.
    pub fn write_addresses(&self, hw: &Hardware, room: usize, bits: u32) -> Result<()> {
        let (exact, hashed) = self.split_filters(room);
        let mut addresses = std::iter::once(&self.mac).chain(exact);
        for n in 0..room {
            let (low, high) = regs::receive_address(n);
            let (a, b) = addresses.next().map_or((0, 0), |mac| {
                let (a, b) = address_words(*mac);
                (a, b | bits)
            });
            // Not valid while it is half of one and half of another.
            hw.write(high, 0)?;
            hw.write(low, a)?;
            hw.write(high, b)?;
        }
        let mut table = [0u32; 128];
        let theirs = self.functions.iter().flat_map(|function| function.groups.iter().copied());
        for hash in hashed.into_iter().map(|mac| group_hash(*mac)).chain(theirs) {
            table[usize::from(hash >> 5)] |= 1 << (hash & 31);
        }
        for (i, word) in (0..).zip(table) {
            hw.write(regs::MTA + 4 * i, word)?;
        }
        Ok(())
    }

    /// Those that are compared exactly (single stations first), and groups beyond them.
    fn split_filters(&self, room: usize) -> (Vec<&Mac>, Vec<&Mac>) {
        let (groups, mut exact): (Vec<_>, Vec<_>) = self.filters.iter().partition(|mac| mac.is_multicast());
        let room = (room - 1).saturating_sub(exact.len()).min(groups.len());
        let (fit, hashed) = groups.split_at(room);
        exact.extend(fit);
        (exact, hashed.to_vec())
    }

    /// The hash's key, and the table of queues, a byte an entry: the queue's number begins at bit `shift` (7.1.1.7). Shorter tables repeat, as the
    /// hash's lowest bits do.
    pub fn write_rss(hw: &Hardware, rss: &Rss, shift: u32) -> Result<()> {
        for (i, bytes) in (0..).zip(rss.key.as_chunks::<4>().0) {
            hw.write(regs::RSSRK + 4 * i, u32::from_le_bytes(*bytes))?;
        }
        let mut table = rss.table.iter().cycle();
        for i in 0..u64::from(RSS_TABLE) / 4 {
            let mut word = 0;
            for entry in [0, 8, 16, 24] {
                word |= table.next().map_or(0, |queue| u32::from(*queue & 0xf)) << (entry + shift);
            }
            hw.write(regs::RETA + 4 * i, word)?;
        }
        Ok(())
    }

    /// Whether these addresses can be filtered for.
    pub fn check_filters(device: &str, filters: &[Mac], room: usize) -> Result<()> {
        let refuse = |why| Err(PortError::Address { device: device.to_owned(), why }.into());
        if let Some(mac) = filters.iter().find(|mac| !mac.is_unicast() && !mac.is_multicast()) {
            return refuse(format!("{mac} is nobody's address"));
        }
        let single = filters.iter().filter(|mac| mac.is_unicast()).count();
        match single < room {
            true => Ok(()),
            false => refuse(format!(
                "{single} addresses besides its own are more than the {} it has room for: be promiscuous",
                room - 1
            )),
        }
    }
}

/// RAL and RAH.
pub fn address_words(mac: Mac) -> (u32, u32) {
    let [a, b, c, d, e, f] = mac.0;
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, 0, 0]) | regs::RAH_VALID)
}

/// Which bit of the multicast table a group has: bits 47:36 of the address (RCTL.MO is 0).
pub fn group_hash(mac: Mac) -> u16 {
    u16::from_le_bytes([mac.0[4], mac.0[5]]) >> 4
}

/// MRQC's fields.
pub fn hash_bits(fields: HashFields) -> u32 {
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
            vlans: Vlans::default(),
            rss: None,
            mtu: 1500,
            throttle: Duration::ZERO,
            granted: Offloads::NONE,
            timesync: None,
            functions: Vec::new(),
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
        let (exact, hashed) = settings.split_filters(24);
        assert_eq!((exact.len(), hashed.len()), (23, 7));
        assert!(exact[..20].iter().all(|mac| mac.is_unicast()) && hashed.iter().all(|mac| mac.is_multicast()));
        assert!(Settings::check_filters("x", &(0..23).map(single).collect::<Vec<_>>(), 24).is_ok());
        assert!(Settings::check_filters("x", &(0..24).map(single).collect::<Vec<_>>(), 24).is_err());
        assert!(Settings::check_filters("x", &[Mac::default()], 24).is_err());
    }

    #[test]
    fn hashes_are_a_bit_each() {
        assert_eq!(hash_bits(HashFields::ALL), 0x1ff << 16);
        assert_eq!(hash_bits(HashFields { udp4: true, ..HashFields::NONE }), 1 << 22);
    }

    #[test]
    fn sizes_hold_a_tag() {
        let mut settings = settings(vec![]);
        assert_eq!((settings.max_frame(), settings.max_packet()), (1522, 1518));
        settings.mtu = 9706;
        assert_eq!(settings.max_frame(), 9728);
    }
}

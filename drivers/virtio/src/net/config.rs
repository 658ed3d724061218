//! What a network device says of itself (VIRTIO 1.2, 5.1.4), what can be asked of it, and what is.

use crate::error::{Error, Result};
use crate::feature::net as bit;
use crate::hardware::Hardware;
use std::hash::{BuildHasher, Hasher, RandomState};
use wholebar_core::net::{HashFields, Limits, Link, Mac, Offloads, PortConfig, Rss};

/// `struct virtio_net_config`, in bytes from its start.
mod at {
    pub const MAC: u64 = 0;
    pub const STATUS: u64 = 6;
    pub const MAX_PAIRS: u64 = 8;
    pub const MTU: u64 = 10;
    pub const SPEED: u64 = 12;
    pub const DUPLEX: u64 = 16;
    pub const RSS_MAX_KEY: u64 = 17;
    pub const RSS_MAX_TABLE: u64 = 18;
    pub const HASH_TYPES: u64 = 20;
}

/// VIRTIO_NET_S_LINK_UP and VIRTIO_NET_S_ANNOUNCE.
const LINK_UP: u16 = 1;
const ANNOUNCE: u16 = 2;
/// The largest MTU of a device that tells none.
const MAX_MTU: u16 = 65517;
/// The least: what every IPv4 host takes (RFC 791).
const MIN_MTU: u16 = 68;
/// What an MTU is where nobody says.
const ETHERNET_MTU: u16 = 1500;

/// What is read of it once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    /// Its address, where it has one that a station can have.
    pub mac: Option<Mac>,
    pub max_pairs: u16,
    mtu: Option<u16>,
    pub max_key: u8,
    pub max_table: u16,
    pub hash_types: u32,
}

impl Facts {
    pub fn of(hw: &Hardware) -> Result<Self> {
        let has = |feature: u64| hw.offered & feature == feature;
        let facts = hw.config(|config| {
            let mut mac = [0; 6];
            if has(bit::MAC) {
                for (offset, octet) in (at::MAC..).zip(&mut mac) {
                    *octet = config.read(offset)?;
                }
            }
            let pairs = has(bit::CTRL_VQ) && (has(bit::MQ) || has(bit::RSS));
            let hashes = has(bit::CTRL_VQ) && (has(bit::RSS) || has(bit::HASH_REPORT));
            Ok(Self {
                mac: has(bit::MAC).then_some(Mac(mac)).filter(|mac| mac.is_unicast()),
                max_pairs: if pairs { config.read(at::MAX_PAIRS)? } else { 1 },
                mtu: if has(bit::MTU) { Some(config.read(at::MTU)?) } else { None },
                max_key: if hashes { config.read(at::RSS_MAX_KEY)? } else { 0 },
                max_table: if hashes { config.read(at::RSS_MAX_TABLE)? } else { 0 },
                hash_types: if hashes { config.read(at::HASH_TYPES)? } else { 0 },
            })
        })?;
        // 5.1.4.1; of 8000h pairs, which it allows, the control queue would have no number (4.1.4.3: 16 bits).
        if facts.max_pairs == 0 || facts.max_pairs > 0x7fff {
            return Err(hw.nonsense(format!("it has {} pairs of queues", facts.max_pairs)));
        }
        if facts.mtu.is_some_and(|mtu| mtu < MIN_MTU) {
            return Err(hw.nonsense(format!("its MTU is {:?}, and {MIN_MTU} is the least", facts.mtu)));
        }
        Ok(facts)
    }

    /// What can be asked for.
    pub fn limits(&self, offered: u64, descriptors: u16) -> Limits {
        let has = |feature: u64| offered & feature == feature;
        let rss = has(bit::RSS | bit::CTRL_VQ);
        Limits {
            rx_queues: self.max_pairs,
            tx_queues: self.max_pairs,
            descriptors,
            mtu: self.mtu.unwrap_or(MAX_MTU),
            offloads: Offloads {
                rx_checksum: has(bit::GUEST_CSUM),
                tx_l4_checksum: has(bit::CSUM),
                tso: has(bit::CSUM | bit::HOST_TSO),
                lro: has(bit::GUEST_CSUM | bit::GUEST_TSO | bit::MRG_RXBUF),
                vlan_filter: has(bit::CTRL_VQ | bit::CTRL_VLAN),
                rss_hash: has(bit::HASH_REPORT | bit::CTRL_VQ),
                scatter: has(bit::MRG_RXBUF),
                gather: true,
                ..Offloads::NONE
            },
            rss_table: if rss { self.max_table } else { 0 },
        }
    }

    /// Whether packets of this MTU are the largest that the device has: who negotiates VIRTIO_NET_F_MTU has buffers for all of them (5.1.4.2).
    pub fn is_largest(&self, mtu: u16) -> bool {
        self.mtu == Some(mtu)
    }

    /// The MTU that is asked for.
    pub fn mtu(&self, hw: &Hardware, config: &PortConfig) -> Result<u16> {
        let most = self.mtu.unwrap_or(MAX_MTU);
        let mtu = config.mtu.unwrap_or(ETHERNET_MTU.min(most));
        if !(MIN_MTU..=most).contains(&mtu) {
            return Err(hw.unavailable(format!("an MTU of {mtu} cannot be had: it must be from {MIN_MTU} to {most}")));
        }
        Ok(mtu)
    }
}

/// An address for a device that has none (5.1.5): by chance, locally administered, of one station.
pub(super) fn local_mac() -> Mac {
    // Each `RandomState` has keys of its own, from the system's source of randomness.
    let [mut first, rest @ ..] = RandomState::new().build_hasher().finish().to_le_bytes();
    first = first & !1 | 2;
    Mac([first, rest[0], rest[1], rest[2], rest[3], rest[4]])
}

/// The features to negotiate (5.1.3), and the offloads that come of them.
pub(super) fn features(hw: &Hardware, facts: &Facts, mtu: u16, config: &PortConfig) -> (u64, Offloads) {
    let offered = facts.limits(hw.offered, 0).offloads;
    let mut granted = config.offloads.and(offered);
    // Packets in one buffer each are simply not in several.
    granted.gather = true;
    let mut wanted = bit::MAC | bit::STATUS | bit::SPEED_DUPLEX;
    wanted |= if facts.is_largest(mtu) { bit::MTU } else { 0 };
    if hw.offered & bit::CTRL_VQ != 0 {
        wanted |= bit::CTRL_VQ | bit::CTRL_RX | bit::CTRL_MAC_ADDR | bit::GUEST_ANNOUNCE;
        wanted |= if config.rx_queues > 1 { bit::MQ } else { 0 };
        wanted |= if config.rss.is_some() { bit::RSS } else { 0 };
        wanted |= if config.rx_interrupts { bit::NOTF_COAL | bit::VQ_NOTF_COAL } else { 0 };
    }
    for (on, bits) in [
        (granted.rx_checksum, bit::GUEST_CSUM),
        (granted.tx_l4_checksum, bit::CSUM),
        (granted.tso, bit::CSUM | bit::HOST_TSO),
        (granted.lro, bit::GUEST_CSUM | bit::GUEST_TSO | bit::MRG_RXBUF),
        (granted.vlan_filter, bit::CTRL_VLAN),
        (granted.rss_hash, bit::HASH_REPORT),
        (granted.scatter, bit::MRG_RXBUF),
    ] {
        wanted |= if on { bits } else { 0 };
    }
    (hw.offered & wanted, granted)
}

/// The link, and whether the device asks for an announcement.
pub(super) fn link(hw: &Hardware, features: u64) -> Result<(Link, bool)> {
    let has = |feature: u64| features & feature != 0;
    hw.config(|config| {
        // 5.1.4.2: without VIRTIO_NET_F_STATUS it is taken to be up.
        let status = if has(bit::STATUS) { config.read(at::STATUS)? } else { LINK_UP };
        let mut link = Link { up: status & LINK_UP != 0, ..Link::default() };
        if has(bit::SPEED_DUPLEX) {
            // Up to 2^31 - 1 is a speed; all ones is none that is known.
            link.speed = Some(config.read::<u32>(at::SPEED)?).filter(|speed| *speed <= i32::MAX as u32);
            link.full_duplex = match config.read::<u8>(at::DUPLEX)? {
                0 => Some(false),
                1 => Some(true),
                _ => None,
            };
        }
        Ok((link, has(bit::GUEST_ANNOUNCE) && status & ANNOUNCE != 0))
    })
}

/// `hash_types` (5.1.6.4.3): a bit for each.
fn hash_types(fields: HashFields) -> u32 {
    let HashFields { ipv4, tcp4, udp4, ipv6, tcp6, udp6 } = fields;
    let all = [ipv4, tcp4, udp4, ipv6, tcp6, udp6];
    all.into_iter().enumerate().fold(0, |bits, (i, on)| bits | u32::from(on) << i)
}

/// The data of VIRTIO_NET_CTRL_MQ_RSS_CONFIG (5.1.6.5.7.1), or, without a table, of _HASH_CONFIG (5.1.6.5.6.4).
pub(super) fn rss_data(hw: &Hardware, facts: &Facts, rss: &Rss, queues: u16, spread: bool) -> Result<Vec<u8>> {
    let refuse = |what: String| Err::<Vec<u8>, Error>(hw.unavailable(what));
    let (key, table) = (&rss.key, &rss.table);
    if key.len() > facts.max_key.into() {
        return refuse(format!("an RSS key of {} bytes is too long: {} is the most", key.len(), facts.max_key));
    }
    if !table.len().is_power_of_two() || table.len() > facts.max_table.into() {
        let (n, most) = (table.len(), facts.max_table);
        return refuse(format!("an RSS table of {n} entries cannot be had: it must be a power of two up to {most}"));
    }
    if let Some(queue) = table.iter().find(|queue| **queue >= queues) {
        return refuse(format!("the RSS table names queue {queue}, and there are {queues}"));
    }
    let mut data = Vec::new();
    data.extend((hash_types(rss.fields) & facts.hash_types).to_le_bytes());
    if spread {
        data.extend((table.len() as u16 - 1).to_le_bytes());
        // What has no hash goes to the first queue.
        data.extend(0u16.to_le_bytes());
        data.extend(table.iter().flat_map(|queue| queue.to_le_bytes()));
        data.extend(queues.to_le_bytes());
    } else {
        data.extend([0; 8]);
    }
    data.push(key.len() as u8);
    data.extend(key);
    Ok(data)
}

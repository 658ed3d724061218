//! The configuration of a port: queues, sizes, offloads, receive-side scaling.

use super::{Limits, PortError};
use std::fmt;
use std::str::FromStr;

/// An Ethernet address, in the order of its octets on the wire.
///
/// Parsed from and shown as `52:54:00:12:34:56`; dashes are read, too.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

/// The error of parsing a [`Mac`]; it holds the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an Ethernet address: it looks like 52:54:00:12:34:56")]
pub struct NotAMac(pub String);

impl Mac {
    /// The broadcast address, `ff:ff:ff:ff:ff:ff`.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Returns whether this is a group address: the lowest bit of the first octet is set (IEEE 802). The broadcast address is one. (Linux:
    /// `is_multicast_ether_addr`.)
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Returns whether one station can have this address: no group address, and not all zero. (Linux: `is_valid_ether_addr`.)
    pub fn is_unicast(self) -> bool {
        !self.is_multicast() && self != Self::default()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = NotAMac;

    fn from_str(text: &str) -> Result<Self, NotAMac> {
        let not = || NotAMac(text.to_owned());
        let mut octets = [0; 6];
        let mut parts = text.split([':', '-']);
        for octet in &mut octets {
            let part = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
            *octet = part.and_then(|p| u8::from_str_radix(p, 16).ok()).ok_or_else(not)?;
        }
        if parts.next().is_some() { Err(not()) } else { Ok(Self(octets)) }
    }
}

macro_rules! flags {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: bool,)*
        }

        impl $name {
            /// No flag set.
            pub const NONE: Self = Self { $($field: false,)* };
            /// Every flag set.
            pub const ALL: Self = Self { $($field: true,)* };

            /// Returns the flags that are set in both.
            #[must_use]
            pub fn and(self, other: Self) -> Self {
                Self { $($field: self.$field && other.$field,)* }
            }

            /// Returns the flags that are set here and not in `other`.
            #[must_use]
            pub fn without(self, other: Self) -> Self {
                Self { $($field: self.$field && !other.$field,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let names = [$((self.$field, $text),)*];
                let mut names = names.iter().filter(|(on, _)| *on).map(|(_, name)| *name);
                f.write_str(names.next().unwrap_or("none"))?;
                names.try_for_each(|name| write!(f, ", {name}"))
            }
        }
    };
}

flags! {
    /// Work that a device does for the program.
    ///
    /// It is what the device offers ([`Limits::offloads`](super::Limits::offloads)), what it is asked for ([`PortConfig::offloads`]), or what was
    /// granted ([`Port::granted`](super::Port::granted)). (DPDK: `RTE_ETH_RX_OFFLOAD_*`, `RTE_ETH_TX_OFFLOAD_*`.)
    Offloads {
        /// The device checks the checksums of received packets: [`Buf::checked`](crate::mem::Buf::checked) has the result.
        rx_checksum: "receive checksums",
        /// The device fills in checksums of TCP and UDP where [`Offload::l4`](crate::mem::Offload::l4) asks for it.
        tx_l4_checksum: "transmit TCP and UDP checksums",
        /// The device fills in checksums of IPv4 headers where [`Offload::l3`](crate::mem::Offload::l3) asks for it.
        tx_l3_checksum: "transmit IPv4 checksums",
        /// The device cuts TCP packets into segments: [`Offload::segment`](crate::mem::Offload::segment).
        tso: "TCP segmentation",
        /// The device merges consecutive TCP segments of a connection into one received packet.
        lro: "large receive",
        /// The device removes the VLAN tag of received packets; [`Buf::vlan`](crate::mem::Buf::vlan) has it.
        vlan_strip: "VLAN stripping",
        /// The device inserts the VLAN tag that [`Buf::set_vlan`](crate::mem::Buf::set_vlan) set.
        vlan_insert: "VLAN insertion",
        /// The device receives packets only of the VLANs that [`Port::set_vlan`](super::Port::set_vlan) enabled.
        vlan_filter: "VLAN filtering",
        /// Received packets carry the hash by which their queue was chosen: [`Buf::hash`](crate::mem::Buf::hash).
        rss_hash: "RSS hashes",
        /// A packet larger than one buffer is received in a chain of buffers.
        scatter: "receive scattering",
        /// Packets in chains of buffers can be sent.
        gather: "transmit gathering",
        /// Received packets carry the time of their arrival: [`Buf::timestamp`](crate::mem::Buf::timestamp).
        timestamps: "timestamps",
    }
}

flags! {
    /// The packet types of which a device computes an RSS hash, and from which fields.
    ///
    /// DPDK: `RTE_ETH_RSS_*`.
    HashFields {
        /// Source and destination address of IPv4.
        ipv4: "IPv4",
        /// Addresses and ports of TCP over IPv4.
        tcp4: "TCP/IPv4",
        /// Addresses and ports of UDP over IPv4.
        udp4: "UDP/IPv4",
        /// Addresses of IPv6.
        ipv6: "IPv6",
        /// Addresses and ports of TCP over IPv6.
        tcp6: "TCP/IPv6",
        /// Addresses and ports of UDP over IPv6.
        udp6: "UDP/IPv6",
    }
}

/// Receive-side scaling: the device computes a Toeplitz hash of some fields of each packet, and looks up the receive queue in a table by the hash's
/// lowest bits.
///
/// DPDK: `rte_eth_rss_conf` and the redirection table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rss {
    /// The key of the hash. Devices take 40 bytes; some take more.
    pub key: Vec<u8>,
    /// The packet types that are hashed.
    pub fields: HashFields,
    /// The redirection table: receive queues, by the hash's lowest bits. Its length is a power of two, at most
    /// [`Limits::rss_table`](super::Limits::rss_table).
    pub table: Vec<u16>,
}

impl Rss {
    /// The key by which Microsoft's specification of RSS verifies implementations. It is widely used.
    pub const KEY: [u8; 40] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca,
        0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b,
        0xbe, 0xac, 0x01, 0xfa,
    ];

    /// Returns a configuration that hashes all fields and spreads packets evenly over `queues` (at least one), by a table of `entries`, rounded up to
    /// a power of two.
    pub fn evenly(queues: u16, entries: u16) -> Self {
        let table = (0..u32::from(entries.max(1)).next_power_of_two()).map(|i| (i % u32::from(queues.max(1))) as u16);
        Self { key: Self::KEY.to_vec(), fields: HashFields::ALL, table: table.collect() }
    }

    /// Returns whether packets can be spread so over `queues`, by a device that takes a key of `key` bytes and a table of at most `table` entries; for drivers.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, queues: u16, key: usize, table: u16) -> Result<(), String> {
        if self.key.len() != key {
            return Err(format!("a key has {key} bytes, and this one {}", self.key.len()));
        }
        let entries = self.table.len();
        if !entries.is_power_of_two() || entries > table.into() {
            return Err(format!("a table has a power of two of entries up to {table}, and this one {entries}"));
        }
        match self.table.iter().find(|queue| **queue >= queues) {
            Some(queue) => Err(format!("its table names queue {queue} of {queues}")),
            None => Ok(()),
        }
    }

    /// Computes the Toeplitz hash of `input` under the key, as a device does: about eight steps a byte, so it is for tests and tools.
    pub fn hash(&self, input: &[u8]) -> u32 {
        let bit = |i: usize| self.key.get(i / 8).is_some_and(|byte| byte << (i % 8) & 0x80 != 0);
        let mut window = (0..32).fold(0u32, |w, i| w << 1 | u32::from(bit(i)));
        let mut hash = 0;
        for (i, byte) in input.iter().enumerate() {
            for b in 0..8 {
                if byte << b & 0x80 != 0 {
                    hash ^= window;
                }
                window = window << 1 | u32::from(bit(32 + 8 * i + b));
            }
        }
        hash
    }
}

/// The configuration with which a port is opened.
///
/// DPDK: `rte_eth_conf`.
///
/// ```
/// # use wholebar_core as wholebar;
/// use wholebar::net::{Offloads, PortConfig, Rss};
///
/// let config = PortConfig {
///     rx_queues: 4,
///     tx_queues: 4,
///     offloads: Offloads { rx_checksum: true, tx_l4_checksum: true, ..Offloads::NONE },
///     rss: Some(Rss::evenly(4, 128)),
///     ..PortConfig::default()
/// };
/// assert_eq!(config.headroom, 128);
/// ```
#[derive(Debug, Clone)]
pub struct PortConfig {
    /// Number of receive queues, at most [`Limits::rx_queues`](super::Limits::rx_queues).
    pub rx_queues: u16,
    /// Number of send queues, at most [`Limits::tx_queues`](super::Limits::tx_queues).
    pub tx_queues: u16,
    /// Descriptors of each receive queue, a power of two; `None` for the driver's choice.
    pub rx_descriptors: Option<u16>,
    /// Descriptors of each send queue, a power of two; `None` for the driver's choice.
    pub tx_descriptors: Option<u16>,
    /// The MTU: the largest packet, in bytes, without link-layer header and checksum. Above 1500 these are jumbo frames. `None` for 1500, or the device's
    /// own where that is less.
    pub mtu: Option<u16>,
    /// Offloads to ask for. Those that the device lacks are left out: [`Port::granted`](super::Port::granted) returns the ones that it does.
    pub offloads: Offloads,
    /// Receive-side scaling; `None` for the device's own way of choosing a queue.
    pub rss: Option<Rss>,
    /// Opens the port in promiscuous mode: it receives packets to any address.
    pub promiscuous: bool,
    /// Bytes left free in front of the data of each received packet, for headers that the program prepends. A device may need more.
    pub headroom: u16,
    /// Gives receive queues interrupts, so that an idle core can sleep ([`RxQueue::arm`](super::RxQueue::arm)).
    pub rx_interrupts: bool,
}

impl Default for PortConfig {
    fn default() -> Self {
        Self {
            rx_queues: 1,
            tx_queues: 1,
            rx_descriptors: None,
            tx_descriptors: None,
            mtu: None,
            offloads: Offloads::NONE,
            rss: None,
            promiscuous: false,
            headroom: 128,
            rx_interrupts: false,
        }
    }
}

/// The smallest MTU, in bytes: what every IPv4 host takes (RFC 791).
const MIN_MTU: u16 = 68;

impl PortConfig {
    /// Checks that a device of these limits can be configured so; its queues have `descriptors` at least. For drivers.
    ///
    /// # Errors
    /// [`PortError::Queues`], [`PortError::Descriptors`] or [`PortError::Mtu`].
    pub fn check(&self, device: &str, limits: &Limits, descriptors: u16) -> Result<(), PortError> {
        let device = || device.to_owned();
        for (direction, asked, most) in
            [("receive", self.rx_queues, limits.rx_queues), ("send", self.tx_queues, limits.tx_queues)]
        {
            if !(1..=most).contains(&asked) {
                return Err(PortError::Queues { device: device(), direction, asked, most });
            }
        }
        for asked in [self.rx_descriptors, self.tx_descriptors].into_iter().flatten() {
            let (least, most) = (descriptors, limits.descriptors);
            if !asked.is_power_of_two() || !(least..=most).contains(&asked) {
                return Err(PortError::Descriptors { device: device(), asked, least, most });
            }
        }
        let (least, most) = (MIN_MTU, limits.mtu);
        match self.mtu.filter(|mtu| !(least..=most).contains(mtu)) {
            Some(asked) => Err(PortError::Mtu { device: device(), asked, least, most }),
            None => Ok(()),
        }
    }

    /// Returns how packets are spread over the receive queues of a device with a table of `limits.rss_table` entries and a key of `key` bytes: as the
    /// configuration says, else evenly where there are several queues or hashes are asked for. For drivers.
    ///
    /// # Errors
    /// [`PortError::Rss`] where the device cannot spread them so.
    pub fn spread(&self, device: &str, limits: &Limits, key: usize) -> Result<Option<Rss>, PortError> {
        // Without spreading there is no hash either.
        let wanted = self.rx_queues > 1 || self.offloads.rss_hash;
        let evenly = || wanted.then(|| Rss::evenly(self.rx_queues, limits.rss_table));
        let rss = self.rss.clone().or_else(evenly);
        match rss.as_ref().map_or(Ok(()), |rss| rss.check(self.rx_queues, key, limits.rss_table)) {
            Ok(()) => Ok(rss),
            Err(why) => Err(PortError::Rss { device: device.to_owned(), why }),
        }
    }
}

/// The VLANs of which a port receives: a bit each, in words as devices have them. VLAN 0, which is no VLAN but a priority, is always among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vlans([u32; 128]);

impl Default for Vlans {
    fn default() -> Self {
        Self(std::array::from_fn(|word| u32::from(word == 0)))
    }
}

impl Vlans {
    /// Returns the words: VLAN `n` is bit `n % 32` of word `n / 32`.
    pub fn words(&self) -> &[u32; 128] {
        &self.0
    }

    /// Returns the numbers of those that are received, without 0.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        (1..=4094).filter(|vlan| self.has(*vlan))
    }

    /// Returns whether a VLAN is received.
    pub fn has(&self, vlan: u16) -> bool {
        self.0.get(usize::from(vlan >> 5)).is_some_and(|word| word & 1 << (vlan & 31) != 0)
    }

    /// Returns the word in which a VLAN is.
    ///
    /// # Errors
    /// [`PortError::Address`] for a number that is none: they are 1 to 4094.
    pub fn word_of(device: &str, vlan: u16) -> Result<usize, PortError> {
        if !(1..=4094).contains(&vlan) {
            let why = format!("{vlan} is not a VLAN: they are from 1 to 4094");
            return Err(PortError::Address { device: device.to_owned(), why });
        }
        Ok((vlan >> 5).into())
    }

    /// Sets whether a VLAN is received. A number that is none has no effect.
    pub fn set(&mut self, vlan: u16, on: bool) {
        if let Some(word) = self.0.get_mut(usize::from(vlan >> 5)).filter(|_| vlan != 0) {
            let bit = 1 << (vlan & 31);
            *word = if on { *word | bit } else { *word & !bit };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits =
        Limits { rx_queues: 4, tx_queues: 2, descriptors: 4096, mtu: 9000, offloads: Offloads::ALL, rss_table: 128 };

    #[test]
    fn what_a_device_cannot_be_is_refused() {
        let plain = PortConfig::default;
        assert!(plain().check("x", &LIMITS, 8).is_ok());
        for (config, why) in [
            (PortConfig { rx_queues: 5, ..plain() }, "5 queues that receive cannot be had: there are 1 to 4"),
            (PortConfig { tx_queues: 0, ..plain() }, "0 queues that send cannot be had: there are 1 to 2"),
            (PortConfig { rx_descriptors: Some(100), ..plain() }, "a power of two from 8 to 4096"),
            (PortConfig { tx_descriptors: Some(8192), ..plain() }, "8192 descriptors"),
            (PortConfig { tx_descriptors: Some(4), ..plain() }, "4 descriptors"),
            (PortConfig { mtu: Some(9001), ..plain() }, "from 68 to 9000 bytes"),
        ] {
            let error = config.check("x", &LIMITS, 8).unwrap_err().to_string();
            assert!(error.starts_with("x: ") && error.contains(why), "{error}");
        }
        let spread = |config: PortConfig| config.spread("x", &LIMITS, 40);
        assert_eq!(spread(plain()).unwrap(), None);
        assert_eq!(spread(PortConfig { rx_queues: 2, ..plain() }).unwrap(), Some(Rss::evenly(2, 128)));
        let good = Rss::evenly(4, 128);
        for bad in [
            Rss { key: vec![0; 39], ..good.clone() },
            Rss { table: vec![0; 3], ..good.clone() },
            Rss { table: vec![0; 256], ..good.clone() },
            Rss { table: vec![], ..good.clone() },
            Rss { table: vec![4], ..good.clone() },
        ] {
            let error = spread(PortConfig { rx_queues: 4, rss: Some(bad), ..plain() }).unwrap_err().to_string();
            assert!(error.starts_with("x: packets cannot be spread like that: "), "{error}");
        }
        let own = PortConfig { rx_queues: 4, rss: Some(good.clone()), ..plain() };
        assert_eq!(spread(own).unwrap(), Some(good));
    }

    #[test]
    fn vlans_are_a_bit_each() {
        let mut vlans = Vlans::default();
        assert_eq!((vlans.words()[0], vlans.iter().count()), (1, 0));
        vlans.set(100, true);
        vlans.set(4094, true);
        assert_eq!((vlans.words()[3], vlans.iter().collect::<Vec<_>>()), (1 << 4, vec![100, 4094]));
        vlans.set(100, false);
        vlans.set(0, false);
        assert!(vlans.has(0) && !vlans.has(100) && vlans.has(4094) && !vlans.has(u16::MAX));
        assert_eq!((Vlans::word_of("x", 100).unwrap(), Vlans::word_of("x", 4094).unwrap()), (3, 127));
        for none in [0, 4095, u16::MAX] {
            assert!(Vlans::word_of("x", none).is_err_and(|e| e.to_string().contains("is not a VLAN")));
        }
    }

    #[test]
    fn addresses_are_read_as_they_are_written() {
        let mac: Mac = "52:54:00:12:ab:CD".parse().unwrap();
        assert_eq!(mac, Mac([0x52, 0x54, 0, 0x12, 0xab, 0xcd]));
        assert_eq!((mac.to_string(), mac.is_unicast()), ("52:54:00:12:ab:cd".to_owned(), true));
        assert_eq!("01-00-5e-00-00-01".parse::<Mac>().map(Mac::is_multicast), Ok(true));
        for bad in ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "5:54:00:12:34:56", "+2:54:00:12:34:56", "hello"] {
            assert_eq!(bad.parse::<Mac>(), Err(NotAMac(bad.to_owned())));
        }
        assert!(!Mac::default().is_unicast() && Mac::BROADCAST.is_multicast());
    }

    /// The examples of Microsoft's "Verifying the RSS Hash Calculation".
    #[test]
    fn hashes_are_as_published() {
        let rss = Rss::evenly(3, 100);
        assert_eq!((rss.table.len(), rss.table[0], rss.table[127]), (128, 0, 1));
        // 66.9.149.187:2794 to 161.142.100.80:1766.
        let input = [66, 9, 149, 187, 161, 142, 100, 80, 0x0a, 0xea, 0x06, 0xe6];
        assert_eq!((rss.hash(&input), rss.hash(&input[..8])), (0x51cc_c178, 0x323e_8fc2));
    }

    #[test]
    fn offloads_have_names() {
        let some = Offloads { tso: true, lro: true, ..Offloads::NONE };
        assert_eq!(
            (some.to_string().as_str(), Offloads::NONE.to_string().as_str()),
            ("TCP segmentation, large receive", "none")
        );
        assert_eq!(some.without(Offloads { lro: true, ..Offloads::NONE }), Offloads { tso: true, ..Offloads::NONE });
        assert_eq!(some.and(Offloads::ALL), some);
    }
}

//! What a port is asked to be: queues, sizes, offloads, how packets are spread.

use std::fmt;
use std::str::FromStr;

/// An Ethernet address.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

/// Not an Ethernet address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an Ethernet address: it looks like 52:54:00:12:34:56")]
pub struct NotAMac(pub String);

impl Mac {
    /// Everybody.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether it is the address of a group (IEEE 802, the first octet's lowest bit).
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether one station can have it: no group, and not all zero.
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
            /// None of them.
            pub const NONE: Self = Self { $($field: false,)* };
            /// All of them.
            pub const ALL: Self = Self { $($field: true,)* };

            /// Those of both.
            #[must_use]
            pub fn and(self, other: Self) -> Self {
                Self { $($field: self.$field && other.$field,)* }
            }

            /// Those that are not in `other`.
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
    /// Work that a device does instead of the program: as it offers it, as it is asked for, as it is granted.
    Offloads {
        /// Received packets say whether their checksums are right.
        rx_checksum: "receive checksums",
        /// Checksums of TCP and UDP are filled in: [`Offload::l4`](crate::mem::Offload::l4).
        tx_l4_checksum: "transmit TCP and UDP checksums",
        /// Checksums of IPv4 headers are filled in: [`Offload::l3`](crate::mem::Offload::l3).
        tx_l3_checksum: "transmit IPv4 checksums",
        /// TCP is cut into segments: [`Offload::segment`](crate::mem::Offload::segment).
        tso: "TCP segmentation",
        /// TCP segments that came one after the other are received as one packet.
        lro: "large receive",
        /// VLAN tags are taken off packets that are received.
        vlan_strip: "VLAN stripping",
        /// VLAN tags are put into packets that are sent.
        vlan_insert: "VLAN insertion",
        /// Only packets of VLANs that were named are received.
        vlan_filter: "VLAN filtering",
        /// Received packets have the hash by which they were spread.
        rss_hash: "RSS hashes",
        /// Packets larger than a buffer are received in several.
        scatter: "receive scattering",
        /// Packets in several buffers are sent.
        gather: "transmit gathering",
        /// Received packets say when they came.
        timestamps: "timestamps",
    }
}

flags! {
    /// What of a packet its hash is made from.
    HashFields {
        /// Addresses of IPv4.
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

/// How received packets are spread over queues: by a Toeplitz hash of some of their fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rss {
    /// The hash's key.
    pub key: Vec<u8>,
    /// What the hash is made from.
    pub fields: HashFields,
    /// The queue of each value of the hash's lowest bits: a power of two of entries.
    pub table: Vec<u16>,
}

impl Rss {
    /// The key that Microsoft's specification of RSS verifies implementations with, which is widely used.
    pub const KEY: [u8; 40] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca,
        0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b,
        0xbe, 0xac, 0x01, 0xfa,
    ];

    /// All fields, evenly over `queues` (at least one) by a table of `entries`, rounded up to a power of two.
    pub fn evenly(queues: u16, entries: u16) -> Self {
        let table = (0..u32::from(entries.max(1)).next_power_of_two()).map(|i| (i % u32::from(queues.max(1))) as u16);
        Self { key: Self::KEY.to_vec(), fields: HashFields::ALL, table: table.collect() }
    }

    /// The Toeplitz hash of `input` under the key: what a device computes.
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

/// How a port is opened.
#[derive(Debug, Clone)]
pub struct PortConfig {
    /// Queues that receive.
    pub rx_queues: u16,
    /// Queues that send.
    pub tx_queues: u16,
    /// Descriptors of a queue that receives, a power of two; `None` for what suits the device.
    pub rx_descriptors: Option<u16>,
    /// Descriptors of a queue that sends, a power of two; `None` for what suits the device.
    pub tx_descriptors: Option<u16>,
    /// The largest packet, in bytes, without link-layer header; above 1500 they are jumbo frames. `None` for 1500,
    /// or what the device has if that is less.
    pub mtu: Option<u16>,
    /// What is asked for of the device. [`Port::granted`](super::Port::granted) tells what came of it.
    pub offloads: Offloads,
    /// How packets are spread; `None` for the device's own way.
    pub rss: Option<Rss>,
    /// Receives what is sent to anybody.
    pub promiscuous: bool,
    /// Bytes left in front of received packets, for headers; a device may need more.
    pub headroom: u16,
    /// Queues that receive have interrupts, so that an idle core can sleep.
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

#[cfg(test)]
mod tests {
    use super::*;

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

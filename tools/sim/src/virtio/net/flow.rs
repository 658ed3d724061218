//! Which queue a packet goes to: receive-side scaling by Toeplitz hash (5.1.6.4.3, 5.1.6.5.7), or the queue its flow was last sent on (5.1.6.5.6).

/// Hash types (5.1.6.4.3.1).
pub(super) const IPV4: u32 = 1 << 0;
pub(super) const TCPV4: u32 = 1 << 1;
pub(super) const UDPV4: u32 = 1 << 2;
pub(super) const IPV6: u32 = 1 << 3;
pub(super) const TCPV6: u32 = 1 << 4;
pub(super) const UDPV6: u32 = 1 << 5;
/// Those that are calculated: not those over IPv6 extension headers.
pub(super) const KNOWN: u32 = IPV4 | TCPV4 | UDPV4 | IPV6 | TCPV6 | UDPV6;
/// The longest key (5.1.4.1).
pub(super) const KEY: usize = 40;
/// The longest indirection table.
pub(super) const TABLE: usize = 128;

/// What a hash is calculated over: addresses, then ports.
const INPUT: usize = 36;

/// A packet's flow.
pub(super) struct Flow {
    bytes: [u8; INPUT],
    /// Bytes of both addresses.
    addresses: usize,
    /// The hash types that fit it: by ports, if it has some, and by addresses.
    ports: u32,
    plain: u32,
}

impl Flow {
    /// The flow of a packet; `None` for what is not IP.
    pub(super) fn of(packet: &[u8]) -> Option<Self> {
        let half = |at: usize| packet.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]));
        let mut ip = 14;
        while matches!(half(ip - 2)?, 0x8100 | 0x88a8) {
            ip += 4;
        }
        let mut bytes = [0; INPUT];
        let (addresses, protocol, transport, plain) = match half(ip - 2)? {
            0x0800 => {
                let header = packet.get(ip..ip + 20)?;
                bytes[..8].copy_from_slice(&header[12..20]);
                // A fragment's ports are in its first part alone: none of them is hashed by ports.
                let fragment = half(ip + 6)? & 0x3fff != 0;
                let protocol = if fragment { 0 } else { header[9] };
                (8, protocol, ip + 4 * usize::from(header[0] & 15), IPV4)
            }
            0x86dd => {
                let header = packet.get(ip..ip + 40)?;
                bytes[..32].copy_from_slice(&header[8..40]);
                (32, header[6], ip + 40, IPV6)
            }
            _ => return None,
        };
        let kind = match (protocol, plain) {
            (6, IPV4) => TCPV4,
            (17, IPV4) => UDPV4,
            (6, _) => TCPV6,
            (17, _) => UDPV6,
            _ => 0,
        };
        let ports = match packet.get(transport..transport + 4) {
            Some(both) if kind != 0 => {
                bytes[addresses..addresses + 4].copy_from_slice(both);
                kind
            }
            _ => 0,
        };
        Some(Self { bytes, addresses, ports, plain })
    }

    /// A number that is the same for both directions of the flow.
    fn either_way(&self) -> u32 {
        let len = self.addresses + if self.ports != 0 { 4 } else { 0 };
        let (addresses, ports) = self.bytes[..len].split_at(self.addresses);
        let (from, to) = addresses.split_at(self.addresses / 2);
        let sum =
            |bytes: &[u8]| bytes.iter().fold(0u32, |h, b| h.rotate_left(7) ^ u32::from(*b).wrapping_mul(0x9e37_79b1));
        let (from_port, to_port) = ports.split_at(ports.len() / 2);
        let one = sum(from).wrapping_add(sum(from_port).rotate_left(16));
        let other = sum(to).wrapping_add(sum(to_port).rotate_left(16));
        (one ^ other).wrapping_mul(0x85eb_ca6b)
    }
}

/// The Toeplitz hash: for each byte of the input, what its 256 values add.
pub(super) struct Toeplitz(Box<[[u32; 256]; INPUT]>);

impl Toeplitz {
    pub(super) fn new(key: &[u8; KEY]) -> Self {
        let mut tables = Box::new([[0; 256]; INPUT]);
        for (at, table) in tables.iter_mut().enumerate() {
            // The 32 bits of the key from each bit of this byte on.
            let window = key[at..].iter().take(5).fold(0u64, |w, b| w << 8 | u64::from(*b));
            for (value, sum) in table.iter_mut().enumerate() {
                let bits = (0..8).filter(|bit| value >> (7 - bit) & 1 != 0);
                *sum = bits.fold(0, |sum, bit| sum ^ (window >> (8 - bit)) as u32);
            }
        }
        Self(tables)
    }

    fn hash(&self, input: &[u8]) -> u32 {
        self.0.iter().zip(input).fold(0, |sum, (table, byte)| sum ^ table[usize::from(*byte)])
    }
}

/// How packets are hashed, as the driver configured it.
pub(super) struct Hash {
    types: u32,
    toeplitz: Toeplitz,
}

impl Hash {
    pub(super) fn new(types: u32, key: &[u8; KEY]) -> Self {
        Self { types, toeplitz: Toeplitz::new(key) }
    }

    /// A packet's hash, and its type's number in reports; `None` where none is calculated.
    pub(super) fn of(&self, flow: &Flow) -> Option<(u32, u16)> {
        let (kind, len) = if flow.ports & self.types != 0 {
            (flow.ports, flow.addresses + 4)
        } else if flow.plain & self.types != 0 {
            (flow.plain, flow.addresses)
        } else {
            return None;
        };
        // 5.1.6.4.4: a report's number is its type's bit, plus one.
        Some((self.toeplitz.hash(&flow.bytes[..len]), kind.trailing_zeros() as u16 + 1))
    }
}

/// How a receive queue is chosen.
pub(super) enum Steering {
    /// By the queue that the flow was last sent on, of so many.
    Auto { pairs: u16, seen: Box<[u16; 256]> },
    /// By hash and table.
    Rss { table: Vec<u16>, unclassified: u16 },
}

impl Steering {
    pub(super) fn auto(pairs: u16) -> Self {
        Self::Auto { pairs, seen: Box::new([u16::MAX; 256]) }
    }

    /// Whether there is a choice, or anything to learn.
    #[inline]
    pub(super) fn single(&self) -> bool {
        matches!(self, Self::Auto { pairs: 1, .. })
    }

    /// A packet is sent on transmit queue `queue`.
    pub(super) fn learn(&mut self, packet: &[u8], queue: u16) {
        if let Self::Auto { seen, .. } = self
            && let Some(flow) = Flow::of(packet)
        {
            seen[flow.either_way() as usize % 256] = queue;
        }
    }

    /// The receive queue of a packet with this flow and hash.
    pub(super) fn queue(&self, flow: Option<&Flow>, hash: Option<u32>) -> u16 {
        match self {
            Self::Auto { pairs, seen } => flow.map_or(0, |flow| {
                let slot = flow.either_way() as usize % 256;
                if seen[slot] < *pairs { seen[slot] } else { slot as u16 % pairs }
            }),
            Self::Rss { table, unclassified } => {
                hash.map_or(*unclassified, |hash| table[hash as usize & (table.len() - 1)])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key and the cases by which everyone checks a Toeplitz hash (Microsoft's "Verifying the RSS hash calculation").
    #[test]
    fn toeplitz_is_as_published() {
        let key = [
            0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca,
            0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b,
            0xbe, 0xac, 0x01, 0xfa,
        ];
        let cases = [
            ([66u8, 9, 149, 187], 2794u16, [161u8, 142, 100, 80], 1766u16, 0x51cc_c178, 0x323e_8fc2),
            ([199, 92, 111, 2], 14230, [65, 69, 140, 83], 4739, 0xc626_b0ea, 0xd718_262a),
            ([24, 19, 198, 95], 12898, [12, 22, 207, 184], 38024, 0x5c2b_394a, 0xd2d0_a5de),
        ];
        for (from, from_port, to, to_port, tcp, plain) in cases {
            let mut packet = vec![0; 12];
            packet.extend([0x08, 0x00, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0]);
            packet.extend(from.into_iter().chain(to));
            packet.extend(from_port.to_be_bytes().into_iter().chain(to_port.to_be_bytes()));
            packet.resize(60, 0);
            let flow = Flow::of(&packet).unwrap();
            assert_eq!(Hash::new(IPV4 | TCPV4, &key).of(&flow), Some((tcp, 2)));
            assert_eq!(Hash::new(IPV4 | UDPV4, &key).of(&flow), Some((plain, 1)));
            assert_eq!(Hash::new(UDPV4 | IPV6, &key).of(&flow), None);
            // Tagged, it is the same flow.
            packet.splice(12..12, [0x81, 0x00, 0x00, 0x07]);
            assert_eq!(Hash::new(TCPV4, &key).of(&Flow::of(&packet).unwrap()), Some((tcp, 2)));
        }
    }
}

//! The headers of packets that are made here: Ethernet, a VLAN tag where asked for, IPv4 or IPv6, UDP. They are built once a flow, by a library;
//! what differs from packet to packet (lengths, checksums, mark) is put in by [`Template::write`].
//!
//! ```
//! use wholebar::net::Mac;
//! use wholebar_measure::net::mark::{self, Mark};
//! use wholebar_measure::net::template::{Headers, Template};
//!
//! let headers = Headers { from: Mac([2, 0, 0, 0, 0, 1]), to: Mac([2, 0, 0, 0, 0, 2]), vlan: Some(7), v6: false };
//! let template = Template::new(&headers, 4, 1)?;
//! let mut packet = vec![0; headers.len() + mark::LEN + 100];
//! template.write(&mut packet, Mark { run: 1, flow: 3, number: 0, sent: 0 });
//! assert_eq!(packet[..6], [2, 0, 0, 0, 0, 2]);
//! # Ok::<(), wholebar_measure::Error>(())
//! ```

use super::mark::{self, Mark, Pattern};
use crate::{Error, Result};
use etherparse::{PacketBuilder, VlanId};
use wholebar_core::mem::{L4, Offload};
use wholebar_core::net::Mac;

/// Bytes of headers at most: Ethernet, a tag, IPv6, UDP.
const MOST: usize = 14 + 4 + 40 + 8;
const UDP: usize = 8;
/// The port of RFC 863: whoever gets such a packet throws it away.
const DISCARD: u16 = 9;
const HOPS: u8 = 64;

/// Whose packets these are.
#[derive(Debug, Clone, Copy)]
pub struct Headers {
    /// The sender's address.
    pub from: Mac,
    /// The receiver's.
    pub to: Mac,
    /// The VLAN, where they are tagged.
    pub vlan: Option<u16>,
    /// IPv6 rather than IPv4.
    pub v6: bool,
}

impl Headers {
    /// Bytes in front of the payload.
    #[allow(clippy::len_without_is_empty)] // Headers never are.
    pub fn len(&self) -> usize {
        self.ip() + if self.v6 { 40 } else { 20 } + UDP
    }

    /// Where the IP header begins.
    fn ip(&self) -> usize {
        14 + if self.vlan.is_some() { 4 } else { 0 }
    }
}

/// The headers of flows.
pub struct Template {
    heads: Vec<Head>,
    pattern: Pattern,
    len: usize,
    ip: usize,
    v6: bool,
    /// Checksums are left to the device.
    offload: Option<Offload>,
}

/// The headers of one flow, with lengths and checksums of 0.
#[derive(Clone)]
struct Head {
    bytes: [u8; MOST],
    /// The sum of the IPv4 header's words, without its length.
    ip_sum: u32,
    /// The sum of the words of UDP's pseudo header, without the length.
    pseudo_sum: u32,
    /// The sum of the ports.
    ports: u32,
}

impl Template {
    /// The headers of `flows` flows; the same `seed` gives the same flows. No two have the same source address, up to 65,536 of them,
    /// which is what marks tell apart.
    ///
    /// # Errors
    /// [`Error::Headers`]: a VLAN is above 4095.
    pub fn new(headers: &Headers, flows: u32, seed: u64) -> Result<Self> {
        let mut chance = fastrand::Rng::with_seed(seed);
        let first = chance.u16(..);
        let heads = (0..flows).map(|flow| Head::new(headers, first ^ flow as u16, chance.u16(1024..)));
        let (len, ip, v6) = (headers.len(), headers.ip(), headers.v6);
        Ok(Self { heads: heads.collect::<Result<_>>()?, pattern: Pattern::new(), len, ip, v6, offload: None })
    }

    /// Has the device fill in the checksums that it was granted.
    #[must_use]
    pub fn offloaded(mut self, l3: bool, l4: bool) -> Self {
        let l3 = l3 && !self.v6;
        if l3 || l4 {
            self.offload = Some(Offload {
                l2_len: self.ip as u8,
                l3_len: (self.len - UDP - self.ip) as u16,
                l4_len: UDP as u8,
                ipv6: self.v6,
                l3,
                l4: l4.then_some(L4::Udp),
                segment: 0,
            });
        }
        self
    }

    /// How many flows there are.
    pub fn flows(&self) -> usize {
        self.heads.len()
    }

    /// Bytes of the smallest packet: headers and mark.
    pub fn least(&self) -> usize {
        self.len + mark::LEN
    }

    /// What the device is to do: for the descriptors of all its packets.
    #[inline]
    pub fn offload(&self) -> Option<Offload> {
        self.offload
    }

    /// Writes the packet of this mark over `out`, all of it. It costs a copy, and a sum over the mark: that of the pattern is known.
    ///
    /// # Panics
    /// Where the mark's flow is not below the number of flows, or `out` is shorter than headers and mark.
    #[inline]
    pub fn write(&self, out: &mut [u8], mark: Mark) {
        let head = &self.heads[usize::from(mark.flow)];
        let (len, ip) = (self.len, self.ip);
        let payload = out.len() - len;
        let udp_len = (payload + UDP) as u16;
        out[..len].copy_from_slice(&head.bytes[..len]);
        let put = |out: &mut [u8], at: usize, half: u16| out[at..at + 2].copy_from_slice(&half.to_be_bytes());
        let (l3, l4) = self.offload.map_or((false, false), |o| (o.l3, o.l4.is_some()));
        if self.v6 {
            put(out, ip + 4, udp_len);
        } else {
            let total = udp_len + 20;
            put(out, ip + 2, total);
            if !l3 {
                put(out, ip + 10, !fold(head.ip_sum + u32::from(total)));
            }
        }
        put(out, len - UDP + 4, udp_len);
        let bytes = mark.bytes(payload);
        out[len..len + mark::LEN].copy_from_slice(&bytes);
        out[len + mark::LEN..].copy_from_slice(self.pattern.of(mark, payload - mark::LEN));
        let sum = if l4 {
            // What the device goes on from: the pseudo header's sum.
            fold(head.pseudo_sum + u32::from(udp_len))
        } else {
            // The length counts twice: in the header, and in the pseudo header.
            let words = bytes.as_chunks::<2>().0.iter().map(|w| u32::from(u16::from_be_bytes(*w))).sum::<u32>();
            let sum = u64::from(head.pseudo_sum + head.ports + 2 * u32::from(udp_len) + words)
                + u64::from(self.pattern.sum(mark, payload - mark::LEN));
            match !fold((sum & 0xffff) as u32 + (sum >> 16) as u32) {
                // A checksum of 0 would mean that there is none (RFC 768; RFC 8200, 8.1).
                0 => 0xffff,
                sum => sum,
            }
        };
        put(out, len - UDP + 6, sum);
    }
}

impl Head {
    fn new(headers: &Headers, host: u16, port: u16) -> Result<Self> {
        let Headers { from, to, vlan, v6 } = *headers;
        let refused = |cause| Error::Headers { cause };
        let [high, low] = host.to_be_bytes();
        let link = PacketBuilder::ethernet2(from.0, to.0);
        // The networks that are kept for benchmarks: RFC 2544, C.2.2; RFC 5180, 8.
        let (from4, to4) = ([198, 18, high, low], [198, 19, 0, 1]);
        let net6 = [0x20, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let address6 = |last: [u8; 3]| std::array::from_fn(|i| *net6.get(i).unwrap_or(&last[i.saturating_sub(13)]));
        let (from6, to6) = (address6([1, high, low]), address6([2, 0, 1]));
        let ip = match (vlan, v6) {
            (None, false) => link.ipv4(from4, to4, HOPS),
            (None, true) => link.ipv6(from6, to6, HOPS),
            (Some(id), v6) => {
                let tagged = link
                    .single_vlan(VlanId::try_new(id).map_err(|_| refused(format!("a VLAN is 0 to 4095, not {id}")))?);
                if v6 { tagged.ipv6(from6, to6, HOPS) } else { tagged.ipv4(from4, to4, HOPS) }
            }
        };
        let (len, mut packet) = (headers.len(), Vec::new());
        ip.udp(port, DISCARD).write(&mut packet, &[]).map_err(|error| refused(error.to_string()))?;
        let mut bytes = [0; MOST];
        bytes[..len].copy_from_slice(packet.get(..len).ok_or_else(|| refused("they have another length".to_owned()))?);
        let (ip, udp) = (headers.ip(), len - UDP);
        if v6 {
            bytes[ip + 4..ip + 6].fill(0);
        } else {
            bytes[ip + 2..ip + 4].fill(0);
            bytes[ip + 10..ip + 12].fill(0);
        }
        bytes[udp + 4..].fill(0);
        let addresses = if v6 { ip + 8..udp } else { ip + 12..udp };
        // 17 is UDP (RFC 768).
        let pseudo_sum = 17 + words(&bytes[addresses]);
        let (ip_sum, ports) = (if v6 { 0 } else { words(&bytes[ip..udp]) }, words(&bytes[udp..len]));
        Ok(Self { bytes, ip_sum, pseudo_sum, ports })
    }
}

fn words(bytes: &[u8]) -> u32 {
    bytes.as_chunks::<2>().0.iter().map(|w| u32::from(u16::from_be_bytes(*w))).sum()
}

/// A ones' complement sum of 16 bits (RFC 1071).
#[inline]
fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};
    use std::collections::BTreeSet;

    const HEADERS: Headers =
        Headers { from: Mac([2, 0, 0, 0, 0, 1]), to: Mac([2, 0, 0, 0, 0, 2]), vlan: None, v6: false };

    /// What a library makes of packets: it checks lengths; checksums are checked here.
    #[test]
    fn packets_are_what_a_library_says_they_should_be() {
        for (vlan, v6) in [(None, false), (None, true), (Some(7), false), (Some(4094), true)] {
            let headers = Headers { vlan, v6, ..HEADERS };
            let template = Template::new(&headers, 300, 7).unwrap();
            let mut sources = BTreeSet::new();
            for (flow, more) in (0..300).zip([0, 1, 2, 77, 1400, 9001].into_iter().cycle()) {
                let mark = Mark { run: 3, flow, number: u64::from(flow) * 977, sent: 1 << 39 };
                let mut packet = vec![0xee; headers.len() + mark::LEN + more];
                template.write(&mut packet, mark);
                let sliced = SlicedPacket::from_ethernet(&packet).unwrap();
                assert_eq!(sliced.vlan_ids().first().map(|id| id.value()), vlan);
                let Some(TransportSlice::Udp(udp)) = sliced.transport else { panic!("{sliced:?}") };
                let (udp, payload) = (udp.to_header(), udp.payload());
                assert_eq!((udp.destination_port, payload.len()), (9, mark::LEN + more));
                let sum = match sliced.net.unwrap() {
                    NetSlice::Ipv4(ip) => {
                        let header = ip.header().to_header();
                        assert_eq!(header.header_checksum, header.calc_header_checksum());
                        sources.insert(header.source.to_vec());
                        udp.calc_checksum_ipv4(&header, payload).unwrap()
                    }
                    NetSlice::Ipv6(ip) => {
                        let header = ip.header().to_header();
                        sources.insert(header.source.to_vec());
                        udp.calc_checksum_ipv6(&header, payload).unwrap()
                    }
                    other => panic!("{other:?}"),
                };
                assert_eq!(udp.checksum, sum, "flow {flow}");
                assert_eq!(Mark::find(payload, payload.len()), mark::Found::Mark(mark));
            }
            assert_eq!(sources.len(), 300, "each flow has its own source");
        }
    }

    /// What a device goes on from is the sum of the pseudo header, and nothing of the packet.
    #[test]
    fn checksums_are_left_to_devices_that_were_granted_them() {
        let template = Template::new(&HEADERS, 1, 1).unwrap().offloaded(true, true);
        let offload = template.offload().unwrap();
        assert_eq!((offload.l2_len, offload.l3_len, offload.l3, offload.l4), (14, 20, true, Some(L4::Udp)));
        let mut packet = [0; 100];
        template.write(&mut packet, Mark { run: 0, flow: 0, number: 5, sent: 9 });
        let pseudo = words(&packet[26..34]) + 17 + 66;
        assert_eq!(words(&packet[24..26]), 0);
        assert_eq!(packet[40..42], fold(pseudo).to_be_bytes());
        // Completed as a device does it, it is what the other way gives.
        let sum = !fold(words(&packet[34..]));
        let plain = Template::new(&HEADERS, 1, 1).unwrap();
        plain.write(&mut packet, Mark { run: 0, flow: 0, number: 5, sent: 9 });
        assert_eq!(packet[40..42], sum.to_be_bytes());
        assert!(Template::new(&HEADERS, 1, 1).unwrap().offloaded(false, false).offload().is_none());
    }

    #[test]
    fn a_seed_makes_its_flows() {
        let head = |seed| Template::new(&HEADERS, 9, seed).unwrap().heads[8].bytes;
        assert_eq!(head(1), head(1));
        assert_ne!(head(1), head(2));
    }
}

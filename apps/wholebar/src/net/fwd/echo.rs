//! Answers to ARP requests and ICMP echo requests over IPv4, made in the packets' own bytes.

use etherparse::{ArpOperation, LaxNetSlice, LaxSlicedPacket, LinkSlice, TransportSlice};
use std::net::Ipv4Addr;
use wholebar::net::Mac;

/// Who answers.
#[derive(Debug, Clone)]
pub struct Host {
    pub mac: Mac,
    /// For which addresses; for all, where there are none.
    pub addresses: Vec<Ipv4Addr>,
}

/// What is to be changed of a packet, and where in it.
enum Answer {
    Arp { at: usize, bytes: [u8; 28] },
    Echo { ip: usize, icmp: usize, checksum: u16 },
}

/// ICMP's echo request (RFC 792); the reply's type is 0. And the bytes of its header.
const ECHO_REQUEST: u8 = 8;
const ICMP_HEADER: usize = 8;

impl Host {
    /// Makes the answer of a packet that asks for one; says whether it did. A packet in several buffers is known by its first; `whole` is how long all of it
    /// is, in bytes.
    #[inline]
    pub fn answer(&self, packet: &mut [u8], whole: u64) -> bool {
        let Some((asker, answer)) = self.understand(packet, whole) else { return false };
        match answer {
            Answer::Arp { at, bytes } => packet[at..at + bytes.len()].copy_from_slice(&bytes),
            Answer::Echo { ip, icmp, checksum } => {
                // Source and destination change places: the header's sum stays.
                packet[ip + 12..ip + 20].rotate_left(4);
                packet[icmp] = 0;
                packet[icmp + 2..icmp + 4].copy_from_slice(&checksum.to_be_bytes());
            }
        }
        packet[..6].copy_from_slice(&asker);
        packet[6..12].copy_from_slice(&self.mac.0);
        true
    }

    /// Who asked, and what is to be answered.
    #[inline]
    fn understand(&self, packet: &[u8], whole: u64) -> Option<([u8; 6], Answer)> {
        let sliced = LaxSlicedPacket::from_ethernet(packet).ok()?;
        let Some(LinkSlice::Ethernet2(ethernet)) = &sliced.link else { return None };
        let asker = ethernet.source();
        // Of a part of the packet.
        let place = |part: &[u8]| part.as_ptr().addr() - packet.as_ptr().addr();
        match (&sliced.net, &sliced.transport) {
            (Some(LaxNetSlice::Arp(arp)), _) => {
                let mut answer = arp.to_packet().try_eth_ipv4().ok()?;
                let (asks, target) = (answer.sender_ipv4_addr(), answer.target_ipv4_addr());
                // Who asks for its own address, or has none, looks whether somebody else has it (RFC 5227, 1.1).
                let probe = asks == target || asks.is_unspecified();
                if answer.operation != ArpOperation::REQUEST || probe || !self.is(target) {
                    return None;
                }
                answer.operation = ArpOperation::REPLY;
                (answer.target_mac, answer.target_ipv4) = (answer.sender_mac, answer.sender_ipv4);
                (answer.sender_mac, answer.sender_ipv4) = (self.mac.0, target.octets());
                Some((asker, Answer::Arp { at: place(arp.slice()), bytes: answer.to_bytes() }))
            }
            (Some(LaxNetSlice::Ipv4(ip)), Some(TransportSlice::Icmpv4(icmp))) => {
                let header = ip.header();
                let asked = icmp.type_u8() == ECHO_REQUEST && icmp.code_u8() == 0 && !ip.is_payload_fragmented();
                if !asked || ethernet.destination() != self.mac.0 || !self.is(header.destination_addr()) {
                    return None;
                }
                // What is cut off, or is not what was sent, is no request (RFC 1122, 3.2.1.2), nor is one of nobody who could be answered (3.2.1.3).
                let length = usize::from(header.total_len());
                let fits =
                    length >= header.slice().len() + ICMP_HEADER && place(header.slice()) + length <= whole as usize;
                let intact = header.header_checksum() == header.to_header().calc_header_checksum();
                if !fits || !intact || !is_station(header.source_addr()) {
                    return None;
                }
                // RFC 1624, equation 3: the type's word was 0x0800, and is 0.
                let sum = u32::from(!icmp.checksum()) + u32::from(!(u16::from(ECHO_REQUEST) << 8));
                let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
                Some((asker, Answer::Echo { ip: place(header.slice()), icmp: place(icmp.slice()), checksum }))
            }
            _ => None,
        }
    }

    fn is(&self, address: Ipv4Addr) -> bool {
        is_station(address) && (self.addresses.is_empty() || self.addresses.contains(&address))
    }
}

/// Whether an address can be that of one station.
fn is_station(address: Ipv4Addr) -> bool {
    !address.is_multicast() && !address.is_broadcast() && !address.is_unspecified()
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{ArpEthIpv4Packet, PacketBuilder, SlicedPacket};

    const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const ASKER: [u8; 6] = [2, 0, 0, 0, 0, 9];

    impl Host {
        fn answers(&self, packet: &mut [u8]) -> bool {
            let whole = packet.len() as u64;
            self.answer(packet, whole)
        }
    }

    fn host(addresses: &[[u8; 4]]) -> Host {
        Host { mac: OWN, addresses: addresses.iter().map(|a| (*a).into()).collect() }
    }

    fn arp(sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
        let request = ArpEthIpv4Packet {
            operation: ArpOperation::REQUEST,
            sender_mac: ASKER,
            sender_ipv4: sender,
            target_mac: [0; 6],
            target_ipv4: target,
        };
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2(ASKER, [0xff; 6]).arp(request.to_arp_packet()).write(&mut bytes).unwrap();
        bytes
    }

    fn echo(to: [u8; 6], tagged: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        let ethernet = PacketBuilder::ethernet2(ASKER, to);
        let (ip, payload) = (([10, 0, 0, 9], [10, 0, 0, 1], 64), [7u8; 57]);
        match tagged {
            false => {
                let packet = ethernet.ipv4(ip.0, ip.1, ip.2).icmpv4_echo_request(3, 4);
                packet.write(&mut bytes, &payload).unwrap();
            }
            true => {
                let vlan = ethernet.single_vlan(5.try_into().unwrap());
                vlan.ipv4(ip.0, ip.1, ip.2).icmpv4_echo_request(3, 4).write(&mut bytes, &payload).unwrap();
            }
        }
        bytes
    }

    #[test]
    fn requests_for_addresses_are_answered_but_no_probes() {
        let mut packet = arp([10, 0, 0, 9], [10, 0, 0, 1]);
        assert!(host(&[]).answers(&mut packet));
        let answer = match SlicedPacket::from_ethernet(&packet).unwrap().net {
            Some(etherparse::NetSlice::Arp(arp)) => arp.to_packet().try_eth_ipv4().unwrap(),
            other => panic!("not ARP: {other:?}"),
        };
        assert_eq!((answer.operation, answer.sender_mac, answer.target_mac), (ArpOperation::REPLY, OWN.0, ASKER));
        assert_eq!((answer.sender_ipv4, answer.target_ipv4), ([10, 0, 0, 1], [10, 0, 0, 9]));
        assert_eq!((&packet[..6], &packet[6..12]), (&ASKER[..], &OWN.0[..]));
        // An answer is no request.
        assert!(!host(&[]).answers(&mut packet));
        for (sender, target) in [([10, 0, 0, 1], [10, 0, 0, 1]), ([0; 4], [10, 0, 0, 1])] {
            assert!(!host(&[]).answers(&mut arp(sender, target)));
        }
        assert!(!host(&[[10, 0, 0, 2]]).answers(&mut arp([10, 0, 0, 9], [10, 0, 0, 1])));
    }

    #[test]
    fn echoes_have_right_checksums() {
        for tagged in [false, true] {
            let mut packet = echo(OWN.0, tagged);
            assert!(host(&[[10, 0, 0, 1]]).answers(&mut packet));
            let sliced = SlicedPacket::from_ethernet(&packet).unwrap();
            let Some(etherparse::NetSlice::Ipv4(ip)) = &sliced.net else { panic!("not IPv4") };
            assert_eq!((ip.header().source(), ip.header().destination()), ([10, 0, 0, 1], [10, 0, 0, 9]));
            assert_eq!(ip.header().header_checksum(), ip.header().to_header().calc_header_checksum());
            let Some(TransportSlice::Icmpv4(icmp)) = &sliced.transport else { panic!("not ICMP") };
            assert_eq!((icmp.type_u8(), icmp.payload()), (0, &[7; 57][..]));
            let right = icmp.header().icmp_type.calc_checksum(icmp.payload());
            assert_eq!(icmp.checksum(), right, "tagged: {tagged}");
        }
    }

    #[test]
    fn what_is_not_for_it_is_not_answered() {
        assert!(!host(&[]).answers(&mut echo([2, 0, 0, 0, 0, 7], false)), "for another station");
        assert!(!host(&[[10, 0, 0, 2]]).answers(&mut echo(OWN.0, false)), "for another address");
        let whole = echo(OWN.0, true);
        for length in 0..whole.len() - 57 {
            assert!(!host(&[]).answers(&mut whole[..length].to_vec()), "cut off at {length}");
        }
        let mut fragment = echo(OWN.0, false);
        fragment[20] = 0x20;
        assert!(!host(&[]).answers(&mut fragment));
        assert!(!host(&[]).answers(&mut [0xff; 200]));
    }

    /// The IP header says how long it is: what is longer than its frame was cut off on the way.
    #[test]
    fn what_is_cut_off_or_damaged_is_not_answered() {
        let whole = echo(OWN.0, false);
        // A frame may be longer (the least that an Ethernet carries), and a packet may go on in further buffers.
        assert!(host(&[]).answers(&mut [&whole[..], &[0; 9]].concat()));
        assert!(host(&[]).answer(&mut whole[..60].to_vec(), whole.len() as u64));
        for length in 0..whole.len() {
            assert!(!host(&[]).answers(&mut whole[..length].to_vec()), "cut off at {length}");
            assert!(!host(&[]).answer(&mut whole[..length.min(60)].to_vec(), length as u64), "cut off at {length}");
        }
        // With another header, whose checksum is right (or not).
        let changed = |at: usize, to: &[u8], mend: bool| {
            let mut packet = whole.clone();
            packet[at..at + to.len()].copy_from_slice(to);
            if mend {
                let (mut header, _) = etherparse::Ipv4Header::from_slice(&packet[14..]).unwrap();
                header.header_checksum = header.calc_header_checksum();
                packet[14..34].copy_from_slice(&header.to_bytes());
            }
            host(&[]).answers(&mut packet)
        };
        assert!(changed(16, &[0, 85], true));
        for length in [0u16, 20, 27, 86, 0xffff] {
            assert!(!changed(16, &length.to_be_bytes(), true), "{length}");
        }
        assert!(!changed(22, &[9], false), "a wrong checksum");
        assert!(changed(22, &[9], true));
        for source in [[0; 4], [255; 4], [224, 0, 0, 1]] {
            assert!(!changed(26, &source, true), "{source:?}");
        }
    }
}

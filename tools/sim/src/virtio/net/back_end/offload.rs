//! What is left to be done to a packet: as a front end's header says it (VIRTIO 1.2, 5.1.6), and as the program is told, or says it.

use crate::virtio::bits::net;
use crate::wire::{
    GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, HEADER, LONGEST, NEEDS_CSUM, Offload as Header, check, cut,
};
use std::collections::VecDeque;
use wholebar_core::mem::{Buf, Checked, L4, Offload};
use wholebar_core::net::Offloads;
use wholebar_core::net::gso::{self, Headers};

/// Where the checksum is in its header.
const TCP_CHECKSUM: u16 = 16;
const UDP_CHECKSUM: u16 = 6;
/// The least that TCP's header has.
const TCP_HEADER: u8 = 20;

/// Says of a packet that came, whose data begins behind its header, what that leaves undone; `None` where it makes no sense, or was not negotiated.
#[cold]
pub(super) fn received(header: &[u8; HEADER], packet: &mut Buf, features: u64) -> Option<()> {
    let said = Header::of(header);
    let needed = match said.gso_type {
        GSO_NONE => 0,
        GSO_TCPV4 => net::HOST_TSO4,
        GSO_TCPV6 => net::HOST_TSO6,
        // Nothing else is offered.
        _ => return None,
    };
    let needed = needed | if said.flags & NEEDS_CSUM != 0 { net::CSUM } else { 0 };
    if features & needed != needed || packet.packet_len() > LONGEST as u64 {
        return None;
    }
    check(&said, packet.packet_len() as usize).ok()?;
    if said.flags & NEEDS_CSUM == 0 {
        return Some(());
    }
    let (start, offset) = (said.csum_start.into(), said.csum_offset.into());
    let l4 = match said.csum_offset {
        TCP_CHECKSUM => Some(L4::Tcp),
        UDP_CHECKSUM => Some(L4::Udp),
        _ => None,
    };
    let of = |v6| Headers::of(packet.bytes(), v6, l4?, Some(start));
    let headers = match said.gso_type {
        GSO_TCPV4 => Some(of(false).filter(|_| l4 == Some(L4::Tcp))?),
        GSO_TCPV6 => Some(of(true).filter(|_| l4 == Some(L4::Tcp))?),
        _ => of(false).or_else(|| of(true)),
    };
    let offload = headers.map(|headers| Offload { l4, ..headers.to_cut(said.gso_size) });
    match offload.filter(|offload| offload.l4_start() as usize == start) {
        Some(offload) => packet.set_offload(Some(offload)),
        // Of another protocol: nobody else could be asked to do it.
        None if said.gso_type == GSO_NONE => gso::complete_packet(packet, start, offset)?,
        None => return None,
    }
    // It has not been checked, and needn't be: it never was on a wire.
    packet.set_checked(Checked::Unknown, Checked::Good);
    Some(())
}

/// The header for a packet that is sent, whatever its receiver takes; `None` where that is not granted, or makes no sense.
pub(super) fn header_of(packet: &mut Buf, granted: Offloads) -> Option<Header> {
    let mut offload = packet.offload().unwrap_or_default();
    // No VLAN tags are put in, and no checksums of IPv4 headers.
    if packet.vlan().is_some() || offload.l3 {
        return None;
    }
    if offload.segment > 0 {
        if !granted.tso || offload.l4 == Some(L4::Udp) || offload.l4_len < TCP_HEADER {
            return None;
        }
        if offload.l4.is_none() {
            offload = gso::take_back(packet, offload)?;
        }
    }
    let Some(l4) = offload.l4 else { return Some(Header::default()) };
    if offload.segment == 0 && !granted.tx_l4_checksum {
        return None;
    }
    let (start, cut) = (offload.l4_start() as u16, offload.segment > 0);
    let header = Header {
        flags: NEEDS_CSUM,
        gso_type: match (cut, offload.ipv6) {
            (false, _) => GSO_NONE,
            (_, false) => GSO_TCPV4,
            (_, true) => GSO_TCPV6,
        },
        hdr_len: if cut { start + u16::from(offload.l4_len) } else { 0 },
        gso_size: offload.segment,
        csum_start: start,
        csum_offset: if l4 == L4::Tcp { TCP_CHECKSUM } else { UDP_CHECKSUM },
    };
    check(&header, packet.packet_len() as usize).ok()?;
    Some(header)
}

/// Does what a header leaves undone, for who takes nothing but whole packets: puts the packet, or its segments, behind `out`. `None` where a packet is not what
/// its header says.
#[cold]
pub(super) fn complete(packet: &Buf, header: &Header, out: &mut VecDeque<Vec<u8>>) -> Option<()> {
    let mut whole: Vec<u8> = packet.segments().flat_map(|segment| segment.bytes()).copied().collect();
    if header.gso_type & !GSO_ECN == GSO_NONE {
        gso::complete(&mut whole, header.csum_start.into(), header.csum_offset.into())?;
        out.push_back(whole);
        return Some(());
    }
    let cut = cut(&whole, header, |len, fill| {
        let mut segment = vec![0; len];
        fill(&mut segment);
        out.push_back(segment);
        Ok::<_, std::convert::Infallible>(())
    });
    cut.ok().map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use wholebar_core::mem::{Arena, ArenaOptions, Pool};

    const ALL: u64 = net::CSUM | net::HOST_TSO4 | net::HOST_TSO6;
    const BOTH: Offloads = Offloads { tx_l4_checksum: true, tso: true, ..Offloads::NONE };

    /// A packet of 300 bytes, in buffers of 128: its headers, and more.
    fn packet(ipv6: bool, l4: L4) -> (Buf, Offload) {
        let arena = Arena::new(1 << 16, ArenaOptions { hugepages: Some(false), numa_node: None }).unwrap();
        let pool = Pool::new(arena, 3, 128, 64).unwrap();
        let (l3_len, protocol) = (if ipv6 { 40 } else { 20 }, if l4 == L4::Tcp { 6 } else { 17 });
        let mut bytes: Vec<u8> = (0..300).map(|i| (i * 37 + 11) as u8).collect();
        let ip = if ipv6 { [0x86, 0xdd, 0x60] } else { [0x08, 0x00, 0x45] };
        bytes[12..15].copy_from_slice(&ip);
        bytes[14 + if ipv6 { 6 } else { 9 }] = protocol;
        bytes[14 + l3_len + 12] = 0x50;
        let mut bufs = bytes.chunks(128).map(|part| {
            let mut buf = pool.get().unwrap();
            buf.copy_from(part);
            buf
        });
        let mut packet = bufs.next().unwrap();
        bufs.for_each(|buf| packet.append(buf));
        let l4_len = if l4 == L4::Tcp { 20 } else { 8 };
        (packet, Offload { l2_len: 14, l3_len: l3_len as u16, l4_len, ipv6, l4: Some(l4), ..Offload::default() })
    }

    fn bytes(packet: &Buf) -> Vec<u8> {
        packet.segments().flat_map(Buf::bytes).copied().collect()
    }

    fn put(header: &Header) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        header.put(&mut bytes);
        bytes
    }

    #[test]
    fn what_is_sent_is_what_is_received() {
        for (ipv6, l4, segment, needed) in [
            (false, L4::Udp, 0, net::CSUM),
            (true, L4::Udp, 0, net::CSUM),
            (false, L4::Tcp, 0, net::CSUM),
            (false, L4::Tcp, 100, net::CSUM | net::HOST_TSO4),
            (true, L4::Tcp, 100, net::CSUM | net::HOST_TSO6),
        ] {
            let (mut sent, offload) = packet(ipv6, l4);
            let offload = Offload { segment, ..offload };
            sent.set_offload(Some(offload));
            let header = header_of(&mut sent, BOTH).unwrap();
            assert_eq!(header_of(&mut sent, Offloads::NONE), None);
            let (mut came, _) = packet(ipv6, l4);
            received(&put(&header), &mut came, needed).unwrap();
            assert_eq!((came.offload(), came.checked().1), (Some(offload), Checked::Good));
            assert_eq!(bytes(&came), bytes(&sent), "nothing was done to it");
            // Without one of what it takes, it is nonsense.
            for bit in [net::CSUM, net::HOST_TSO4, net::HOST_TSO6].into_iter().filter(|bit| needed & bit != 0) {
                assert_eq!(received(&put(&header), &mut packet(ipv6, l4).0, ALL & !bit), None);
            }
        }
    }

    /// What nobody else knows is done at once; what was merged of segments is sent as what is to be cut again.
    #[test]
    fn others_are_completed() {
        let (mut icmp, _) = packet(true, L4::Tcp);
        let before = bytes(&icmp);
        received(&[NEEDS_CSUM, 0, 0, 0, 0, 0, 54, 0, 2, 0, 1, 0], &mut icmp, ALL).unwrap();
        assert_eq!((icmp.offload(), icmp.checked().1), (None, Checked::Good));
        let mut whole = before;
        gso::complete(&mut whole, 54, 2).unwrap();
        assert_eq!(bytes(&icmp), whole);
        let (mut merged, offload) = packet(false, L4::Tcp);
        merged.set_offload(Some(Offload { l4: None, segment: 100, ..offload }));
        let header = header_of(&mut merged, BOTH).unwrap();
        assert_eq!(put(&header), [NEEDS_CSUM, GSO_TCPV4, 54, 0, 100, 0, 34, 0, 16, 0, 0, 0]);
    }

    #[test]
    fn what_is_made_is_whole() {
        for ipv6 in [false, true] {
            let (mut sent, offload) = packet(ipv6, L4::Tcp);
            sent.set_offload(Some(Offload { segment: 100, ..offload }));
            let (header, mut made) = (header_of(&mut sent, BOTH).unwrap(), VecDeque::new());
            complete(&sent, &header, &mut made).unwrap();
            let head = offload.l4_start() as usize + 20;
            assert_eq!(made.len(), (300 - head).div_ceil(100));
            let payload: Vec<u8> = made.iter().flat_map(|segment| &segment[head..]).copied().collect();
            assert_eq!(payload, bytes(&sent)[head..]);
        }
    }

    #[test]
    fn what_makes_no_sense_is_seen() {
        for bad in [
            // A segment's size of 0; kinds that are not offered; a checksum outside of the packet; UDP that is to be cut as TCP; headers that aren't there.
            [1, 1, 54, 0, 0, 0, 34, 0, 16, 0, 1, 0],
            [1, 5, 54, 0, 100, 0, 34, 0, 16, 0, 1, 0],
            [1, GSO_TCPV4 | GSO_ECN, 54, 0, 100, 0, 34, 0, 16, 0, 1, 0],
            [1, 0, 0, 0, 0, 0, 0xff, 0xff, 16, 0, 1, 0],
            [1, 0, 0, 0, 0, 0, 34, 0, 0xff, 0xff, 1, 0],
            [1, 1, 54, 0, 100, 0, 34, 0, 6, 0, 1, 0],
            [1, 1, 54, 0, 100, 0, 35, 0, 16, 0, 1, 0],
            [1, 4, 54, 0, 100, 0, 54, 0, 16, 0, 1, 0],
            [0, 1, 54, 0, 100, 0, 34, 0, 16, 0, 1, 0],
        ] {
            assert_eq!(received(&bad, &mut packet(false, L4::Tcp).0, ALL), None, "{bad:?}");
        }
        let (mut packet, offload) = packet(false, L4::Tcp);
        for bad in [
            Offload { l3: true, ..offload },
            Offload { l4: Some(L4::Udp), segment: 100, ..offload },
            Offload { l4_len: 0, segment: 100, ..offload },
            Offload { l3_len: 511, ..offload },
            Offload { l4: None, l3_len: 511, segment: 100, ..offload },
        ] {
            packet.set_offload(Some(bad));
            assert_eq!(header_of(&mut packet, BOTH), None, "{bad:?}");
        }
    }
}

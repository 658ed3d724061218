//! The header in front of every packet (VIRTIO 1.2, 5.1.6): what remains to be done with it, how many buffers it is in, its hash.

use wholebar_core::mem::{Buf, Checked, L4, Offload};
use wholebar_core::net::Offloads;
use wholebar_core::net::gso::{self, Headers};

/// Bytes of `struct virtio_net_hdr`, and with a hash (VIRTIO_NET_F_HASH_REPORT).
pub(super) const LEN: u16 = 12;
pub(super) const LEN_WITH_HASH: u16 = 20;

/// `flags`: the checksum remains to be filled in; checksums were found right.
const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
/// `gso_type`: TCP over IPv4, over IPv6; and a bit for explicit congestion notification.
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_ECN: u8 = 0x80;
/// Where the checksum is in its header (5.1.6.2).
const TCP_CHECKSUM: u16 = 16;
const UDP_CHECKSUM: u16 = 6;
/// Bytes of an Ethernet header, of a VLAN tag in it, and the tag's type (IEEE 802.1Q).
const ETHERNET: u16 = 14;
const TAG: u16 = 4;
const TAGGED: [u8; 2] = [0x81, 0x00];

fn word(header: &[u8], at: usize) -> u16 {
    header.get(at..at + 2).map_or(0, |w| u16::from_le_bytes([w[0], w[1]]))
}

/// How many buffers a packet is in, by the header at its start (VIRTIO_NET_F_MRG_RXBUF).
#[inline(always)]
pub(super) fn buffers(header: &[u8]) -> u16 {
    word(header, 10)
}

/// Whether the device says that the packet's checksums are right.
#[inline(always)]
pub(super) fn is_vouched_for(header: &[u8]) -> bool {
    header.first().is_some_and(|flags| flags & (NEEDS_CSUM | DATA_VALID) == DATA_VALID)
}

/// What the header says besides, said of the packet, whose data begins behind it; `None` where it makes no sense.
pub(super) fn received(header: &[u8], packet: &mut Buf) -> Option<()> {
    let (flags, gso) = (*header.first()?, *header.get(1)? & !GSO_ECN);
    if header.len() >= LEN_WITH_HASH.into() && word(header, 16) != 0 {
        packet.set_hash(u32::from(word(header, 12)) | u32::from(word(header, 14)) << 16);
    }
    if flags & DATA_VALID != 0 {
        packet.set_checked(Checked::Unknown, Checked::Good);
    }
    if flags & NEEDS_CSUM == 0 && gso == GSO_NONE {
        return Some(());
    }
    let [hdr_len, segment, start, offset] = [2, 4, 6, 8].map(|at| word(header, at));
    if !matches!(gso, GSO_NONE | GSO_TCPV4 | GSO_TCPV6) || (gso != GSO_NONE && segment == 0) {
        return None;
    }
    if flags & NEEDS_CSUM == 0 {
        // A card merged segments that it had checked. Linux takes that too, and so does a driver that does not look into packets.
        let headers = Headers::of(packet.bytes(), gso == GSO_TCPV6, L4::Tcp, None);
        packet.set_offload(headers.map(|headers| headers.to_cut(segment)));
        return Some(());
    }
    if start < ETHERNET || u64::from(start) + u64::from(offset) + 2 > packet.packet_len() {
        return None;
    }
    let l4 = match offset {
        TCP_CHECKSUM => Some(L4::Tcp),
        UDP_CHECKSUM => Some(L4::Udp),
        _ => None,
    };
    let l2 = link_len(packet.bytes());
    let l3 = start.checked_sub(l2).filter(|l3| *l3 <= 511);
    let offload = match (gso, l4, l3) {
        (GSO_NONE, Some(l4), Some(l3_len)) => Offload { l2_len: l2 as u8, l3_len, l4: Some(l4), ..Offload::default() },
        // Of another protocol, or far behind: nobody else could be asked to do it.
        (GSO_NONE, ..) => {
            gso::complete_packet(packet, start.into(), offset.into())?;
            packet.set_checked(Checked::Unknown, Checked::Good);
            return Some(());
        }
        (_, Some(L4::Tcp), Some(l3_len)) => {
            let l4_len = hdr_len.checked_sub(start).filter(|l| (20..=60).contains(l)).unwrap_or(20);
            let (l2_len, l4_len, ipv6) = (l2 as u8, l4_len as u8, gso == GSO_TCPV6);
            Offload { l2_len, l3_len, l4_len, ipv6, l4: Some(L4::Tcp), segment, ..Offload::default() }
        }
        _ => return None,
    };
    // It has not been checked, and needn't be: it never was on a wire.
    packet.set_checked(Checked::Unknown, Checked::Good);
    packet.set_offload(Some(offload));
    Some(())
}

/// Fills in the checksum of a packet that the device found good, without having been asked for that, and left out. A device to which
/// VIRTIO_NET_F_GUEST_CSUM was not negotiated must neither (5.1.6.4.1); passt (2025) does both, and Linux's driver believes it. Who receives the packet may
/// look at its checksum all the same, or send it to somebody who does.
#[cold]
pub(super) fn fill_in(packet: &mut Buf) {
    // What passt leaves there: UDP over IPv4 needs none.
    for (v6, l4, offset, left) in
        [(false, L4::Tcp, TCP_CHECKSUM, 0), (true, L4::Tcp, TCP_CHECKSUM, 0), (true, L4::Udp, UDP_CHECKSUM, 0xffff)]
    {
        let Some(headers) = Headers::of(packet.bytes(), v6, l4, None) else { continue };
        let offload = headers.to_cut(0);
        let (ip, start) = (usize::from(offload.l2_len), offload.l4_start() as usize);
        let half = |at: usize| packet.bytes().get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]));
        let len = if v6 { half(ip + 4).map(|len| usize::from(len) + 40) } else { half(ip + 2).map(usize::from) };
        let fragment = !v6 && half(ip + 6).is_some_and(|word| word & 0x3fff != 0);
        let whole = len.is_some_and(|len| (ip + len) as u64 == packet.packet_len()) && !fragment;
        if whole && half(start + usize::from(offset)) == Some(left) {
            let _ = gso::put_pseudo_header(packet, offload, l4)
                .and_then(|()| gso::complete_packet(packet, start, offset.into()));
        }
        return;
    }
}

/// Bytes of a packet's Ethernet header.
fn link_len(packet: &[u8]) -> u16 {
    ETHERNET + if packet.get(12..14) == Some(&TAGGED) { TAG } else { 0 }
}

/// The header of a packet to send, where all that it asks for was granted, and makes sense.
pub(super) fn to_send(packet: &mut Buf, granted: Offloads) -> Option<[u8; LEN as usize]> {
    let mut header = [0; LEN as usize];
    let mut put = |at: usize, value: u16| header[at..at + 2].copy_from_slice(&value.to_le_bytes());
    let mut offload = packet.offload().unwrap_or_default();
    if offload.l3 {
        // 5.1.3 has nothing that fills in checksums of IPv4 headers.
        return None;
    }
    let start = offload.l4_start() as u16;
    if offload.segment > 0 {
        if !granted.tso || !granted.tx_l4_checksum || offload.l4_len < 20 {
            return None;
        }
        offload = match offload.l4 {
            None => gso::take_back(packet, offload)?,
            Some(L4::Tcp) => offload,
            Some(L4::Udp) => return None,
        };
        put(2, start + u16::from(offload.l4_len));
        put(4, offload.segment);
    }
    if let Some(l4) = offload.l4 {
        if !granted.tx_l4_checksum {
            return None;
        }
        put(6, start);
        put(8, if l4 == L4::Tcp { TCP_CHECKSUM } else { UDP_CHECKSUM });
        header[0] = NEEDS_CSUM;
    }
    header[1] = match (offload.segment, offload.ipv6) {
        (0, _) => GSO_NONE,
        (_, false) => GSO_TCPV4,
        (_, true) => GSO_TCPV6,
    };
    Some(header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wholebar_core::mem::{Arena, ArenaOptions, Pool};

    fn pool(count: u32) -> Pool {
        let arena = Arena::new(1 << 16, ArenaOptions { hugepages: Some(false), numa_node: None }).unwrap();
        Pool::new(arena, count, 2048, 64).unwrap()
    }

    /// Adds 16-bit words, the last of which may be half of one (RFC 1071).
    fn sum(bytes: &[u8]) -> u64 {
        let words = bytes.chunks(2).map(|w| u64::from(u16::from_be_bytes([w[0], w.get(1).copied().unwrap_or(0)])));
        words.sum()
    }

    fn fold(mut sum: u64) -> u16 {
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    fn packet() -> Buf {
        let mut buf = pool(1).get_len(96).unwrap();
        buf.bytes_mut().fill(0);
        buf
    }

    fn asked(offload: Offload, granted: Offloads) -> Option<[u8; 12]> {
        let mut packet = packet();
        packet.set_offload(Some(offload));
        to_send(&mut packet, granted)
    }

    #[test]
    fn what_is_sent_is_what_is_received() {
        let granted = Offloads { tx_l4_checksum: true, tso: true, ..Offloads::NONE };
        let udp = Offload { l2_len: 14, l3_len: 20, l4: Some(L4::Udp), ..Offload::default() };
        let tcp = Offload { l4: Some(L4::Tcp), ..udp };
        let tso = Offload { l4_len: 32, segment: 1448, ..tcp };
        let tso6 = Offload { l3_len: 40, ipv6: true, ..tso };
        for offload in [udp, tcp, tso, tso6] {
            let mut packet = packet();
            let header = asked(offload, granted).unwrap();
            received(&header, &mut packet).unwrap();
            assert_eq!((packet.offload(), packet.checked().1), (Some(offload), Checked::Good));
            assert_eq!(asked(offload, Offloads::NONE), None);
        }
        // As in 5.1.6.2, by hand.
        assert_eq!(asked(tso, granted).unwrap(), [1, 1, 66, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0]);
        let checksum_only = Offloads { tx_l4_checksum: true, ..Offloads::NONE };
        for bad in [
            Offload { l3: true, ..udp },
            Offload { l4: Some(L4::Udp), ..tso },
            Offload { l4: None, l3_len: 70, ..tso },
            Offload { l4_len: 0, ..tso },
        ] {
            assert_eq!(asked(bad, granted), None, "{bad:?}");
        }
        assert_eq!(asked(tso, checksum_only), None);
        assert!(asked(Offload::default(), Offloads::NONE).is_some_and(|h| h == [0; 12]));
    }

    /// Whatever protocol it is of, in however many buffers: the checksum is right afterwards, as a receiver looks at it.
    #[test]
    fn checksums_that_nobody_else_knows_are_filled_in() {
        for (start, offset, parts) in [
            // As ICMPv6, IGMP, GRE and others have them.
            (54u16, 2u16, &[64][..]),
            (54, 2, &[55, 9]),
            (34, 2, &[20, 15, 20, 9]),
            (34, 4, &[37, 2, 25]),
            (34, 8, &[42, 1, 21]),
            // Where TCP begins so late that its place cannot be told.
            (600, 16, &[500, 117, 83]),
        ] {
            let (total, pool) = (parts.iter().sum::<usize>(), pool(8));
            let (start_at, field) = (usize::from(start), usize::from(start + offset));
            let mut bytes: Vec<u8> = (0..total).map(|i| (i * 37 + 11) as u8).collect();
            bytes[12..14].copy_from_slice(&[0x86, 0xdd]);
            let pseudo = fold(sum(&bytes[field..field + 2]));
            let mut rest = &bytes[..];
            let mut bufs = parts.iter().map(|part| {
                let (here, more) = rest.split_at(*part);
                rest = more;
                let mut buf = pool.get_len(*part as u32).unwrap();
                buf.bytes_mut().copy_from_slice(here);
                buf
            });
            let mut packet = bufs.next().unwrap();
            bufs.for_each(|buf| packet.append(buf));
            let mut header = [0; 12];
            header[0] = NEEDS_CSUM;
            header[6..8].copy_from_slice(&start.to_le_bytes());
            header[8..10].copy_from_slice(&offset.to_le_bytes());
            received(&header, &mut packet).unwrap();
            assert_eq!((packet.offload(), packet.checked()), (None, (Checked::Unknown, Checked::Good)));
            let after: Vec<u8> = packet.segments().flat_map(|buf| buf.bytes().to_vec()).collect();
            let changed: Vec<_> = (0..total).filter(|i| bytes[*i] != after[*i]).collect();
            assert!(changed.iter().all(|i| (field..field + 2).contains(i)), "{start}+{offset}: {changed:?}");
            // With the pseudo header's sum, all of it is ones.
            assert_eq!(fold(u64::from(pseudo) + sum(&after[start_at..])), 0xffff, "{start}+{offset} in {parts:?}");
        }
    }

    /// As passt sends them: good, it says, and without a checksum. What has one keeps it; so does what is padded, or of a fragment.
    #[test]
    fn what_is_good_and_left_out_is_filled_in() {
        let packet = |ipv6: bool, udp: bool, left: u16| {
            let (ip, protocol, offset) =
                (if ipv6 { 40 } else { 20 }, if udp { 17 } else { 6 }, if udp { 6 } else { 16 });
            let mut bytes: Vec<u8> = (0..151).map(|i| (i * 37 + 11) as u8).collect();
            let len: u16 = if ipv6 { 151 - 14 - 40 } else { 151 - 14 };
            let version: &[u8] = if ipv6 { &[0x86, 0xdd, 0x60] } else { &[0x08, 0x00, 0x45] };
            bytes[12..15].copy_from_slice(version);
            let at = 14 + if ipv6 { 4 } else { 2 };
            bytes[at..at + 2].copy_from_slice(&len.to_be_bytes());
            bytes[20..22].copy_from_slice(&if ipv6 { [protocol, 64] } else { [0x40, 0] });
            bytes[23] = if ipv6 { bytes[23] } else { protocol };
            bytes[14 + ip + 12] = 0x50;
            let field = 14 + ip + offset;
            bytes[field..field + 2].copy_from_slice(&left.to_be_bytes());
            let addresses = if ipv6 { 22..54 } else { 26..34 };
            let pseudo = u64::from(protocol) + (bytes.len() - 14 - ip) as u64 + sum(&bytes[addresses]);
            let pool = pool(2);
            let mut packet = pool.get_len(100).unwrap();
            packet.bytes_mut().copy_from_slice(&bytes[..100]);
            let mut rest = pool.get_len(51).unwrap();
            rest.bytes_mut().copy_from_slice(&bytes[100..]);
            packet.append(rest);
            (packet, bytes, 14 + ip, pseudo)
        };
        let all = |packet: &Buf| packet.segments().flat_map(|buf| buf.bytes().to_vec()).collect::<Vec<u8>>();
        for (ipv6, udp, left) in [(false, false, 0), (true, false, 0), (true, true, 0xffff)] {
            let (mut packet, before, start, pseudo) = packet(ipv6, udp, left);
            fill_in(&mut packet);
            let after = all(&packet);
            assert_ne!(after, before);
            assert_eq!(fold(pseudo + sum(&after[start..])), 0xffff, "IPv6 {ipv6}, UDP {udp}");
        }
        for (ipv6, udp, left) in [(false, false, 1), (true, false, 0xffff), (false, true, 0), (false, true, 0xffff)] {
            let (mut packet, before, ..) = packet(ipv6, udp, left);
            fill_in(&mut packet);
            assert_eq!(all(&packet), before, "IPv6 {ipv6}, UDP {udp}, {left:#x}");
        }
        for (at, value) in [(17, 136), (20, 0x20), (21, 1), (46, 0x40)] {
            let (mut packet, ..) = packet(false, false, 0);
            packet.bytes_mut()[at] = value;
            let before = all(&packet);
            fill_in(&mut packet);
            assert_eq!(all(&packet), before, "byte {at} is {value}");
        }
    }

    /// What a card merged of segments, with a checksum that is there: it comes with the size of the segments, and can be sent on.
    #[test]
    fn merged_packets_are_passed_on() {
        let granted = Offloads { tx_l4_checksum: true, tso: true, ..Offloads::NONE };
        // TCP over IPv4 with options, and over IPv6 with a tag.
        let mut v4 = vec![0x55; 300];
        v4[12..16].copy_from_slice(&[0x08, 0x00, 0x46, 0]);
        (v4[14 + 9], v4[14 + 24 + 12]) = (6, 0x80);
        let mut v6 = vec![0x66; 300];
        v6[12..18].copy_from_slice(&[0x81, 0, 0, 7, 0x86, 0xdd]);
        (v6[18 + 6], v6[18 + 40 + 12]) = (6, 0x50);
        for (bytes, gso, l2_len, l3_len, l4_len, addresses) in
            [(v4, GSO_TCPV4 | GSO_ECN, 14, 24, 32, 14 + 12..14 + 20), (v6, GSO_TCPV6, 18, 40, 20, 18 + 8..18 + 40)]
        {
            let ipv6 = gso == GSO_TCPV6;
            let mut packet = pool(1).get_len(300).unwrap();
            packet.bytes_mut().copy_from_slice(&bytes);
            received(&[DATA_VALID, gso, 0, 0, 100, 0, 0, 0, 0, 0, 1, 0], &mut packet).unwrap();
            let offload = Offload { l2_len, l3_len, l4_len, ipv6, segment: 100, ..Offload::default() };
            assert_eq!((packet.offload(), packet.checked().1), (Some(offload), Checked::Good));
            assert_eq!(packet.bytes(), bytes, "it comes as it is");
            let header = to_send(&mut packet, granted).unwrap();
            let start = u16::from(l2_len) + l3_len;
            let [start_low, start_high] = start.to_le_bytes();
            let all = (start + u16::from(l4_len)) as u8;
            assert_eq!(header, [1, gso & !GSO_ECN, all, 0, 100, 0, start_low, start_high, 16, 0, 0, 0]);
            // The pseudo header's sum: addresses, protocol, length.
            let pseudo = fold(sum(&bytes[addresses]) + 6 + 300 - u64::from(start));
            let at = usize::from(start) + 16;
            assert_eq!(packet.bytes()[at..at + 2], pseudo.to_be_bytes());
        }
        // Where the headers cannot be seen, it comes all the same.
        let mut odd = packet();
        received(&[0, GSO_TCPV4, 0, 0, 100, 0, 0, 0, 0, 0, 1, 0], &mut odd).unwrap();
        assert_eq!((odd.offload(), odd.checked().1), (None, Checked::Unknown));
    }

    #[test]
    fn what_makes_no_sense_is_seen() {
        for bad in [
            // A segment's size of 0, a kind that was not negotiated, a checksum outside of the packet or in its Ethernet header.
            [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0],
            [0, 5, 0, 0, 9, 0, 0, 0, 0, 0, 1, 0],
            [1, 0, 0, 0, 0, 0, 34, 0, 61, 0, 1, 0],
            [1, 0, 0, 0, 0, 0, 34, 0, 0xff, 0xff, 1, 0],
            [1, 1, 0, 0, 9, 9, 34, 0, 6, 0, 1, 0],
            [1, 0, 0, 0, 0, 0, 3, 0, 16, 0, 1, 0],
            [1, 0, 0, 0, 0, 0, 0xff, 0xff, 16, 0, 1, 0],
            [1, 3, 0, 0, 9, 9, 34, 0, 16, 0, 1, 0],
            [1, 1, 0, 0, 0, 0, 34, 0, 16, 0, 1, 0],
        ] {
            assert_eq!(received(&bad, &mut packet()), None, "{bad:?}");
        }
        assert_eq!(received(&[], &mut packet()), None);
    }

    #[test]
    fn hashes_and_checks_are_told() {
        let mut header = [0; 20];
        (header[0], header[10], header[12], header[15], header[16]) = (DATA_VALID, 3, 0x78, 0x12, 2);
        let mut packet = packet();
        received(&header, &mut packet).unwrap();
        assert_eq!((packet.hash(), packet.checked().1, buffers(&header)), (Some(0x1200_0078), Checked::Good, 3));
        assert_eq!(packet.offload(), None);
        header[16] = 0;
        packet.clear();
        received(&header, &mut packet).unwrap();
        assert_eq!(packet.hash(), None, "no hash was made");
    }
}

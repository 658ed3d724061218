//! The header in front of every packet (VIRTIO 1.2, 5.1.6): what remains to be done with it, how many buffers it is in, its hash.

use wholebar_core::mem::{Buf, Checked, L4, Offload};
use wholebar_core::net::Offloads;
use wholebar_core::net::gso::Headers;

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
/// TCP's number in IP headers.
const TCP: u8 = 6;

fn word(header: &[u8], at: usize) -> u16 {
    header.get(at..at + 2).map_or(0, |w| u16::from_le_bytes([w[0], w[1]]))
}

/// How many buffers a packet is in, by the header at its start (VIRTIO_NET_F_MRG_RXBUF).
#[inline(always)]
pub(super) fn buffers(header: &[u8]) -> u16 {
    word(header, 10)
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
            complete(packet, start, offset);
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

/// Bytes of a packet's Ethernet header.
fn link_len(packet: &[u8]) -> u16 {
    ETHERNET + if packet.get(12..14) == Some(&TAGGED) { TAG } else { 0 }
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

/// Fills in a checksum, which is in the packet, over all from `start` on: the field holds what is to be added (5.1.6.4.2).
#[cold]
fn complete(packet: &mut Buf, start: u16, offset: u16) {
    let (mut skip, mut odd, mut total) = (usize::from(start), false, 0);
    for segment in packet.segments() {
        let bytes = segment.bytes();
        let here = bytes.get(skip..).unwrap_or(&[]);
        skip = skip.saturating_sub(bytes.len());
        // Behind an odd number of bytes, words are the other way round (RFC 1071, 2).
        let part = fold(sum(here));
        total += u64::from(if odd { part.swap_bytes() } else { part });
        odd ^= here.len() % 2 == 1;
    }
    // A UDP checksum of zero would mean that there is none (RFC 768).
    let checksum = match !fold(total) {
        0 if offset == UDP_CHECKSUM => 0xffff,
        checksum => checksum,
    };
    put(packet, usize::from(start) + usize::from(offset), checksum);
}

/// Writes a word at a place of a packet, in whichever of its buffers that is.
fn put(packet: &mut Buf, at: usize, value: u16) {
    for (at, byte) in (at..).zip(value.to_be_bytes()) {
        let (mut buf, mut at) = (Some(&mut *packet), at);
        while let Some(here) = buf {
            let len = here.bytes().len();
            if let Some(place) = here.bytes_mut().get_mut(at) {
                *place = byte;
                break;
            }
            at -= len;
            buf = here.next_mut();
        }
    }
}

/// Takes back the checksum of a packet that is to be cut: devices want the sum of its pseudo header there (5.1.6.2.1). `None` where the headers are not all
/// in its first buffer.
fn take_back(packet: &mut Buf, offload: Offload) -> Option<Offload> {
    let start = offload.l4_start();
    let len = packet.packet_len().checked_sub(start.into())?;
    let addresses = if offload.ipv6 { 8..40 } else { 12..20 };
    let ip = packet.bytes().get(usize::from(offload.l2_len)..)?;
    let pseudo = fold(sum(ip.get(addresses)?) + len + u64::from(TCP));
    let at = start as usize + usize::from(TCP_CHECKSUM);
    packet.bytes_mut().get_mut(at..at + 2)?.copy_from_slice(&pseudo.to_be_bytes());
    Some(Offload { l4: Some(L4::Tcp), ..offload })
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
            None => take_back(packet, offload)?,
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

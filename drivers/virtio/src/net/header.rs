//! The header in front of every packet (VIRTIO 1.2, 5.1.6): what remains to be done with it, how many buffers it is in, its hash.

use wholebar::mem::{Buf, Checked, L4, Offload};
use wholebar::net::Offloads;

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

/// What the header says besides, said of the packet, whose data begins behind it; `None` where it makes no sense.
pub(super) fn received(header: &[u8], packet: &mut Buf) -> Option<()> {
    let (flags, gso) = (*header.first()?, *header.get(1)?);
    if header.len() >= LEN_WITH_HASH.into() && word(header, 16) != 0 {
        packet.set_hash(u32::from(word(header, 12)) | u32::from(word(header, 14)) << 16);
    }
    if flags & DATA_VALID != 0 {
        packet.set_checked(Checked::Unknown, Checked::Good);
    }
    if flags & NEEDS_CSUM == 0 {
        // Nothing can be cut whose checksum is filled in (5.1.6.4.2).
        return (gso == GSO_NONE).then_some(());
    }
    let (hdr_len, segment, start, offset) = (word(header, 2), word(header, 4), word(header, 6), word(header, 8));
    let l4 = match offset {
        TCP_CHECKSUM => L4::Tcp,
        UDP_CHECKSUM => L4::Udp,
        _ => return None,
    };
    let l2 = ETHERNET + if packet.bytes().get(12..14) == Some(&TAGGED) { TAG } else { 0 };
    let l3 = start.checked_sub(l2).filter(|l3| *l3 <= 511)?;
    let offload = Offload { l2_len: l2 as u8, l3_len: l3, l4: Some(l4), ..Offload::default() };
    let offload = match gso & !GSO_ECN {
        GSO_NONE => offload,
        GSO_TCPV4 | GSO_TCPV6 if l4 == L4::Tcp && segment > 0 => {
            let l4_len = hdr_len.checked_sub(start).filter(|l| (20..=60).contains(l)).unwrap_or(20);
            Offload { l4_len: l4_len as u8, ipv6: gso & !GSO_ECN == GSO_TCPV6, segment, ..offload }
        }
        _ => return None,
    };
    // It has not been checked, and needn't be: it never was on a wire.
    packet.set_checked(Checked::Unknown, Checked::Good);
    packet.set_offload(Some(offload));
    Some(())
}

/// The header of a packet to send, where all that it asks for was granted, and makes sense.
pub(super) fn to_send(offload: Offload, granted: Offloads) -> Option<[u8; LEN as usize]> {
    let mut header = [0; LEN as usize];
    let mut put = |at: usize, value: u16| header[at..at + 2].copy_from_slice(&value.to_le_bytes());
    if offload.l3 {
        // 5.1.3 has nothing that fills in checksums of IPv4 headers.
        return None;
    }
    let start = offload.l4_start() as u16;
    if offload.segment > 0 {
        if !granted.tso || offload.l4 != Some(L4::Tcp) || offload.l4_len < 20 {
            return None;
        }
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
    use wholebar::mem::{Arena, ArenaOptions, Pool};

    fn packet() -> Buf {
        let arena = Arena::new(1 << 16, ArenaOptions { hugepages: Some(false), numa_node: None }).unwrap();
        let mut buf = Pool::new(&arena, 1, 2048, 64).unwrap().get_len(64).unwrap();
        buf.bytes_mut().fill(0);
        buf
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
            let header = to_send(offload, granted).unwrap();
            received(&header, &mut packet).unwrap();
            assert_eq!((packet.offload(), packet.checked().1), (Some(offload), Checked::Good));
            assert_eq!(to_send(offload, Offloads::NONE), None);
        }
        // As in 5.1.6.2, by hand.
        assert_eq!(to_send(tso, granted).unwrap(), [1, 1, 66, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0]);
        let checksum_only = Offloads { tx_l4_checksum: true, ..Offloads::NONE };
        for bad in [
            Offload { l3: true, ..udp },
            Offload { l4: Some(L4::Udp), ..tso },
            Offload { l4: None, ..tso },
            Offload { l4_len: 0, ..tso },
        ] {
            assert_eq!(to_send(bad, granted), None, "{bad:?}");
        }
        assert_eq!(to_send(tso, checksum_only), None);
        assert!(to_send(Offload::default(), Offloads::NONE).is_some_and(|h| h == [0; 12]));
    }

    #[test]
    fn what_makes_no_sense_is_seen() {
        for bad in [
            [0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0],
            [1, 0, 0, 0, 0, 0, 34, 0, 7, 0, 1, 0],
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

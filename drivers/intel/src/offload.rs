//! What packets ask for: whether it can be done, and what their headers have to hold for it. It does *not* know descriptors.

use crate::family::Family;
use wholebar_core::mem::{Buf, L4, Offload};
use wholebar_core::net::{Offloads, gso};

/// The largest packet that is cut into segments, in bytes: what the length of an IPv4 packet can be.
pub(crate) const MAX_SEGMENTED: u32 = 65535;
/// Bytes of the shortest TCP and UDP headers.
const TCP: u32 = 20;
const UDP: u32 = 8;

/// Whether what is asked for makes sense for a packet of `total` bytes, and was granted; the wire takes packets of `most` bytes.
pub(crate) fn possible<F: Family>(packet: &Buf, offload: &Offload, total: u32, granted: Offloads, most: u32) -> bool {
    let l4_header = match offload.l4 {
        None => 0,
        Some(L4::Tcp) => TCP,
        Some(L4::Udp) => UDP,
    };
    let (start, segment) = (offload.l4_start(), u32::from(offload.segment));
    let headers = offload.l2_len >= 14
        && u32::from(offload.l3_len) >= if offload.ipv6 { 40 } else { 20 }
        && start + l4_header <= total
        && F::can_describe(offload);
    let asks = offload.l3 || offload.l4.is_some() || segment > 0;
    let all = start + u32::from(offload.l4_len);
    let cut = granted.tso
        && offload.l4 != Some(L4::Udp)
        && u32::from(offload.l4_len) >= TCP
        // What is repeated before each segment is changed here, and is in one buffer.
        && all < total
        && all <= packet.len()
        && all + segment <= most;
    !(offload.l3 && offload.ipv6)
        && (segment == 0 || cut)
        && (!offload.l3 || granted.tx_l3_checksum || segment > 0)
        && (offload.l4.is_none() || granted.tx_l4_checksum || segment > 0)
        && (!asks || headers)
}

/// Prepares the headers of a packet that is to be cut: as [`gso::prepare`] does, and lengths are 0; the device puts in what each segment needs. (Linux:
/// `e1000_tso`, `igb_tso`.)
pub(crate) fn prepare(packet: &mut Buf, offload: &Offload) -> Option<()> {
    let (bytes, ip) = (packet.bytes_mut(), usize::from(offload.l2_len));
    gso::prepare(bytes, offload)?;
    bytes.get_mut(if offload.ipv6 { ip + 4..ip + 6 } else { ip + 2..ip + 4 })?.fill(0);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::e1000e::I82574;
    use crate::igb::I82576;
    use wholebar_core::mem::{Arena, ArenaOptions, Pool};

    const ALL: Offloads = Offloads { tso: true, tx_l3_checksum: true, tx_l4_checksum: true, ..Offloads::NONE };

    fn pool() -> Pool {
        Pool::new(Arena::new(1 << 16, ArenaOptions::default()).unwrap(), 2, 2048, 64).unwrap()
    }

    #[test]
    fn work_that_makes_no_sense_is_refused() {
        let buf = pool().get_len(60).unwrap();
        let good = Offload { l2_len: 14, l3_len: 20, l3: true, l4: Some(L4::Tcp), ..Offload::default() };
        let with = |offload, len, granted| possible::<I82576>(&buf, &offload, len, granted, 1518);
        assert!(with(good, 54, ALL) && !with(good, 53, ALL));
        assert!(!with(good, 54, Offloads { tx_l3_checksum: false, ..ALL }));
        assert!(!with(good, 54, Offloads { tx_l4_checksum: false, ..ALL }));
        for bad in [
            Offload { l2_len: 13, ..good },
            Offload { l2_len: 200, ..good },
            Offload { l3_len: 19, ..good },
            Offload { l3_len: 600, ..good },
            Offload { ipv6: true, l3_len: 40, ..good },
        ] {
            assert!(!with(bad, 1500, ALL), "{bad:?}");
        }
        assert!(with(Offload { l4: None, l3: false, ..good }, 20, Offloads::NONE), "nothing is asked for");
        // Eight bits for the place of a checksum.
        let far = Offload { l3_len: 300, ipv6: true, l3: false, ..good };
        assert!(with(far, 1500, ALL) && !possible::<I82574>(&buf, &far, 1500, ALL, 1518));
    }

    #[test]
    fn segments_that_cannot_be_are_refused() {
        let buf = pool().get_len(1000).unwrap();
        let good =
            Offload { l2_len: 14, l3_len: 20, l4_len: 20, l4: Some(L4::Tcp), segment: 1460, ..Offload::default() };
        let with = |offload: Offload, total, granted| {
            let both = [
                possible::<I82576>(&buf, &offload, total, granted, 1518),
                possible::<I82574>(&buf, &offload, total, granted, 1518),
            ];
            assert_eq!(both[0], both[1]);
            both[0]
        };
        assert!(
            with(good, 30000, ALL)
                && with(Offload { l4: None, l3: true, ..good }, 30000, Offloads { tso: true, ..Offloads::NONE })
        );
        assert!(!with(good, 30000, Offloads { tso: false, ..ALL }), "not granted");
        assert!(!with(good, 54, ALL), "no payload");
        for bad in [
            Offload { l4: Some(L4::Udp), ..good },
            Offload { l4_len: 19, ..good },
            // Headers that are not in the first buffer; segments longer than the wire takes.
            Offload { l3_len: 500, l4_len: 250, l2_len: 127, segment: 1, ..good },
            Offload { segment: 1465, ..good },
            Offload { segment: u16::MAX, ..good },
        ] {
            assert!(!possible::<I82574>(&buf, &bad, 30000, ALL, 1518), "{bad:?}");
        }
        let short = pool().get_len(53).unwrap();
        assert!(!possible::<I82576>(&short, &good, 30000, ALL, 1518), "a header in two buffers");
    }

    #[test]
    fn headers_of_what_is_cut_have_no_lengths() {
        let mut buf = pool().get_len(100).unwrap();
        buf.bytes_mut().fill(0xff);
        buf.bytes_mut()[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        let offload = Offload { l2_len: 14, l3_len: 20, l4_len: 20, segment: 1, ..Offload::default() };
        prepare(&mut buf, &offload).unwrap();
        let bytes = buf.bytes();
        // 0a00 + 0001 + 0a00 + 0002 + 6.
        assert_eq!((&bytes[16..18], &bytes[24..26], &bytes[50..52]), (&[0, 0][..], &[0, 0][..], &[0x14, 9][..]));
        assert!(bytes[..16].iter().chain(&bytes[18..24]).chain(&bytes[34..50]).chain(&bytes[52..]).all(|b| *b == 0xff));
        let mut buf = pool().get_len(100).unwrap();
        buf.bytes_mut().fill(0xff);
        prepare(&mut buf, &Offload { ipv6: true, l3_len: 40, ..offload }).unwrap();
        // 16 times ffff, and 6: carries come back in.
        assert_eq!((&buf.bytes()[18..20], &buf.bytes()[70..72]), (&[0, 0][..], &[0, 6][..]));
    }
}

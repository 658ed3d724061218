//! Generic segmentation offload: what a card does to packets that were left to it, done in software. Checksums are completed, and TCP and UDP packets
//! larger than the MTU are cut into segments. (Linux: `net/core/gso.c`; VIRTIO 1.2: 5.1.6.2.)
//!
//! This file does *not* decide what is to be done to a packet: whoever has it knows that from the device's header.

use crate::mem::{Buf, L4, Offload};

/// Where the headers of a packet are that is to be cut into segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Headers {
    ip: usize,
    l4: usize,
    payload: usize,
    v6: bool,
    udp: bool,
}

/// Fields of TCP's header (RFC 9293, 3.1): the sequence number, the flags, the checksum.
const SEQUENCE: usize = 4;
const FLAGS: usize = 13;
const TCP_CHECKSUM: usize = 16;
/// Fields of UDP's header, which has 8 bytes (RFC 768): its length, the checksum.
const UDP_LENGTH: usize = 4;
const UDP_CHECKSUM: usize = 6;
const UDP_HEADER: usize = 8;

impl Headers {
    /// Finds the headers of a TCP or UDP packet over IPv4 or IPv6 (`v6`) by its first bytes, which hold all of them. The transport header begins at
    /// `l4_start`, in bytes from the packet's start; `None` where the IP header itself says so, and nothing lies between the two.
    ///
    /// Returns `None` where the packet is none of that.
    pub fn of(start: &[u8], v6: bool, l4: L4, l4_start: Option<usize>) -> Option<Self> {
        let half = |at: usize| start.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]));
        let mut ip = 14;
        // VLAN tags: 802.1Q and 802.1ad.
        while matches!(half(ip - 2)?, 0x8100 | 0x88a8) {
            ip += 4;
        }
        if half(ip - 2)? != if v6 { 0x86dd } else { 0x0800 } {
            return None;
        }
        let header = if v6 { 40 } else { 4 * usize::from(start.get(ip)? & 15) };
        let udp = l4 == L4::Udp;
        let next = *start.get(ip + if v6 { 6 } else { 9 })?;
        let l4 = match l4_start {
            Some(at) => at,
            None if next == if udp { 17 } else { 6 } => ip + header,
            None => return None,
        };
        let length = if udp { UDP_HEADER } else { 4 * usize::from(start.get(l4.checked_add(12)?)? >> 4) };
        let payload = l4.checked_add(length)?;
        // IPv4: the header's own length says where it ends.
        let ends = if v6 { l4 >= ip + header } else { header >= 20 && l4 == ip + header };
        let fits = ends && length >= if udp { UDP_HEADER } else { 20 } && payload <= start.len();
        fits.then_some(Self { ip, l4, payload, v6, udp })
    }

    /// Returns the length of all headers, in bytes: the payload begins there.
    #[allow(clippy::len_without_is_empty, reason = "headers are never empty")]
    pub fn len(&self) -> usize {
        self.payload
    }

    /// Returns how a packet with these headers is cut again into segments of `segment` bytes of payload: for one that a device merged of segments, whose
    /// checksums it had checked.
    pub fn to_cut(&self, segment: u16) -> Offload {
        // Clamped: there are no headers of that length.
        let [l2, l3, l4] = [self.ip, self.l4 - self.ip, self.payload - self.l4].map(|len| len.min(255) as u8);
        Offload { l2_len: l2, l3_len: l3.into(), l4_len: l4, ipv6: self.v6, segment, ..Offload::default() }
    }

    /// Completes segment `index`, from 0: its headers, which are still those of the whole packet, and both checksums. Its payload began `skipped` bytes
    /// into the packet's; `last` says that no segment follows. It does nothing to what is shorter than the headers.
    pub fn complete(&self, segment: &mut [u8], index: usize, skipped: usize, last: bool) {
        if segment.len() < self.payload {
            return;
        }
        let (out, ip, l4) = (segment, self.ip, self.l4);
        if self.v6 {
            let len = (out.len() - ip - 40) as u16;
            out[ip + 4..ip + 6].copy_from_slice(&len.to_be_bytes());
        } else {
            let len = (out.len() - ip) as u16;
            out[ip + 2..ip + 4].copy_from_slice(&len.to_be_bytes());
            let id = u16::from_be_bytes([out[ip + 4], out[ip + 5]]).wrapping_add(index as u16);
            out[ip + 4..ip + 6].copy_from_slice(&id.to_be_bytes());
            out[ip + 10..ip + 12].fill(0);
            let sum = finish(add(0, &out[ip..l4]));
            out[ip + 10..ip + 12].copy_from_slice(&sum.to_be_bytes());
        }
        if self.udp {
            let len = (out.len() - l4) as u16;
            out[l4 + UDP_LENGTH..l4 + UDP_LENGTH + 2].copy_from_slice(&len.to_be_bytes());
        } else {
            let sequence = &mut out[l4 + SEQUENCE..l4 + SEQUENCE + 4];
            let before = sequence.iter().fold(0u32, |n, byte| n << 8 | u32::from(*byte));
            sequence.copy_from_slice(&before.wrapping_add(skipped as u32).to_be_bytes());
            if !last {
                // FIN and PSH belong to the last segment.
                out[l4 + FLAGS] &= !0x09;
            }
            if index > 0 {
                // CWR belongs to the first (RFC 3168).
                out[l4 + FLAGS] &= !0x80;
            }
        }
        let (at, protocol) = if self.udp { (l4 + UDP_CHECKSUM, 17) } else { (l4 + TCP_CHECKSUM, 6) };
        let addresses = if self.v6 { ip + 8..ip + 40 } else { ip + 12..ip + 20 };
        // The pseudo header: addresses, protocol, length.
        let pseudo = add(protocol + (out.len() - l4) as u64, &out[addresses]);
        out[at..at + 2].copy_from_slice(&(!finish(pseudo)).to_be_bytes());
        complete(out, l4, at - l4);
    }
}

/// Completes the checksum of a packet, over all from `start` on: its field, `offset` bytes further, holds the pseudo header's sum. Returns `None` where the
/// packet has no such field.
pub fn complete(packet: &mut [u8], start: usize, offset: usize) -> Option<()> {
    let field = start.checked_add(offset)?;
    let field = field..field.checked_add(2)?;
    packet.get(field.clone())?;
    let sum = finish(add(0, packet.get(start..)?));
    // A UDP checksum of zero would mean that there is none (RFC 768).
    let sum = if sum == 0 && offset == UDP_CHECKSUM { 0xffff } else { sum };
    packet.get_mut(field)?.copy_from_slice(&sum.to_be_bytes());
    Some(())
}

/// Fills in the checksum at `offset` behind `start` of a packet that may lie in several buffers: over all of it from `start` on.
#[cold]
pub fn complete_packet(packet: &mut Buf, start: usize, offset: usize) -> Option<()> {
    let field = start.checked_add(offset)?;
    if field.checked_add(2)? as u64 > packet.packet_len() {
        return None;
    }
    let (mut skip, mut odd, mut total) = (start, false, 0);
    for segment in packet.segments() {
        let bytes = segment.bytes();
        let here = bytes.get(skip..).unwrap_or(&[]);
        skip = skip.saturating_sub(bytes.len());
        // Behind an odd number of bytes, words are the other way round (RFC 1071, 2).
        let part = !finish(add(0, here));
        total += u64::from(if odd { part.swap_bytes() } else { part });
        odd ^= here.len() % 2 == 1;
    }
    // As in `complete`.
    let sum = finish(total);
    let sum: u16 = if sum == 0 && offset == UDP_CHECKSUM { 0xffff } else { sum };
    for (at, byte) in (field..).zip(sum.to_be_bytes()) {
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
    Some(())
}

/// Takes back the checksum of a TCP packet that is to be cut: devices want the sum of its pseudo header there (VIRTIO 1.2, 5.1.6.2.1). Returns how the packet is
/// to be cut then; `None` where the headers are not all in its first buffer.
pub fn take_back(packet: &mut Buf, offload: Offload) -> Option<Offload> {
    put_pseudo_header(packet, offload, L4::Tcp)?;
    Some(Offload { l4: Some(L4::Tcp), ..offload })
}

/// Puts the sum of the pseudo header, which is addresses, protocol and length, where the checksum is to be; then it can be completed. Returns `None` where the headers
/// are not all in the packet's first buffer.
pub fn put_pseudo_header(packet: &mut Buf, offload: Offload, l4: L4) -> Option<()> {
    let start = offload.l4_start();
    let len = packet.packet_len().checked_sub(start.into())?;
    let addresses = if offload.ipv6 { 8..40 } else { 12..20 };
    let ip = packet.bytes().get(usize::from(offload.l2_len)..)?;
    let (protocol, offset) = if l4 == L4::Tcp { (6, TCP_CHECKSUM) } else { (17, UDP_CHECKSUM) };
    let pseudo = !finish(add(len.saturating_add(protocol), ip.get(addresses)?));
    let at = (start as usize).checked_add(offset)?;
    packet.bytes_mut().get_mut(at..at.checked_add(2)?)?.copy_from_slice(&pseudo.to_be_bytes());
    Some(())
}

/// Completes the checksum of a TCP or UDP packet over IP that was never on a wire, where that was left out: its field holds the pseudo header's sum then. For
/// paths that do not say so. One that is complete stays as it is.
pub fn complete_where_left_out(packet: &mut [u8]) {
    for (v6, l4) in [(false, L4::Tcp), (false, L4::Udp), (true, L4::Tcp), (true, L4::Udp)] {
        let Some(Headers { ip, l4: start, .. }) = Headers::of(packet, v6, l4, None) else { continue };
        let half = |at: usize| packet.get(at..at + 2).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]));
        // As long as IP says: a short frame is padded. Fragments have a checksum that is of all of them.
        let (end, fragment) = match v6 {
            true => (ip + 40 + usize::from(half(ip + 4)), false),
            false => (ip + usize::from(half(ip + 2)), half(ip + 6) & 0x3fff != 0),
        };
        let (offset, protocol) = if l4 == L4::Tcp { (TCP_CHECKSUM, 6) } else { (UDP_CHECKSUM, 17) };
        let addresses = if v6 { ip + 8..ip + 40 } else { ip + 12..ip + 20 };
        let (Some(len), Some(addresses)) = (end.checked_sub(start), packet.get(addresses)) else { return };
        if !fragment && half(start + offset) == !finish(add(protocol + len as u64, addresses)) {
            let _ = packet.get_mut(..end).and_then(|packet| complete(packet, start, offset));
        }
        return;
    }
}

/// Prepares the headers of a TCP packet that a card is to cut, as most of them want it: IPv4's checksum is 0, and TCP's is the sum of addresses and protocol
/// without a length. All headers are in `packet`, as `offload` says. Returns `None` where they are not. (Linux: `e1000_tso`, `igb_tso`, `vmxnet3_prepare_tso`.)
pub fn prepare(packet: &mut [u8], offload: &Offload) -> Option<()> {
    let (ip, l4) = (usize::from(offload.l2_len), offload.l4_start() as usize);
    let addresses = if offload.ipv6 { ip + 8..ip + 40 } else { ip + 12..ip + 20 };
    let sum = !finish(add(6, packet.get(addresses)?));
    packet.get_mut(l4 + TCP_CHECKSUM..l4 + TCP_CHECKSUM + 2)?.copy_from_slice(&sum.to_be_bytes());
    if !offload.ipv6 {
        packet.get_mut(ip + 10..ip + 12)?.fill(0);
    }
    Some(())
}

/// Adds 16-bit words to a ones' complement sum.
fn add(sum: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let sum = words.iter().fold(sum, |sum, w| sum + u64::from(u32::from_be_bytes(*w)));
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum + u64::from(u32::from_be_bytes(last))
}

/// Folds a sum into a checksum.
fn finish(mut sum: u64) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A packet with these headers, and `payload` bytes behind them that are all different from their neighbours.
    fn packet(v6: bool, l4: L4, tags: usize, payload: usize) -> Vec<u8> {
        let mut bytes = vec![2; 12];
        (0..tags).for_each(|_| bytes.extend([0x81, 0x00, 0, 7]));
        bytes.extend(if v6 { [0x86, 0xdd] } else { [0x08, 0x00] });
        let protocol = if l4 == L4::Tcp { 6 } else { 17 };
        if v6 {
            bytes.extend([0x60, 0, 0, 0, 0, 0, protocol, 64]);
            bytes.extend([0xfd; 32]);
        } else {
            bytes.extend([0x45, 0, 0, 0, 0xff, 0xff, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        }
        match l4 {
            // FIN, PSH, ACK and CWR; the sequence number is about to wrap.
            L4::Tcp => bytes.extend([0, 1, 0, 2, 0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 0, 0x50, 0x99, 1, 1, 0, 0, 0, 0]),
            L4::Udp => bytes.extend([0, 1, 0, 2, 0, 0, 0, 0]),
        }
        bytes.extend((0..payload).map(|i| (i % 251) as u8));
        bytes
    }

    /// The sum of a correct transport packet, its pseudo header included, is all ones.
    fn is_right(segment: &[u8], h: &Headers) -> bool {
        let addresses = if h.v6 { h.ip + 8..h.ip + 40 } else { h.ip + 12..h.ip + 20 };
        let protocol = if h.udp { 17 } else { 6 };
        let pseudo = add(protocol + (segment.len() - h.l4) as u64, &segment[addresses]);
        let ip = h.v6 || finish(add(0, &segment[h.ip..h.l4])) == 0;
        ip && finish(add(pseudo, &segment[h.l4..])) == 0
    }

    #[test]
    fn segments_are_packets_of_their_own() {
        const SIZE: usize = 100;
        for v6 in [false, true] {
            for l4 in [L4::Tcp, L4::Udp] {
                for (tags, payload) in [(0, 250), (1, 200), (2, 1), (0, 0)] {
                    let whole = packet(v6, l4, tags, payload);
                    let h = Headers::of(&whole, v6, l4, None).unwrap();
                    assert_eq!(Headers::of(&whole, v6, l4, Some(h.l4)), Some(h));
                    let (head, all) = whole.split_at(h.len());
                    assert_eq!(all.len(), payload);
                    let count = payload.div_ceil(SIZE).max(1);
                    let mut came = Vec::new();
                    for i in 0..count {
                        let part = &all[(i * SIZE).min(payload)..((i + 1) * SIZE).min(payload)];
                        let mut segment = [head, part].concat();
                        h.complete(&mut segment, i, i * SIZE, i + 1 == count);
                        assert!(is_right(&segment, &h), "{v6} {l4:?} {tags} {payload} {i}");
                        if l4 == L4::Tcp {
                            let sequence = 0xffff_fff0u32.wrapping_add((i * SIZE) as u32);
                            assert_eq!(segment[h.l4 + 4..h.l4 + 8], sequence.to_be_bytes());
                            let flags = 0x10 | if i == 0 { 0x80 } else { 0 } | if i + 1 == count { 9 } else { 0 };
                            assert_eq!(segment[h.l4 + 13], flags);
                        } else {
                            assert_eq!(segment[h.l4 + 4..h.l4 + 6], (8 + part.len() as u16).to_be_bytes());
                        }
                        if !v6 {
                            assert_eq!(segment[h.ip + 4..h.ip + 6], 0xffffu16.wrapping_add(i as u16).to_be_bytes());
                        }
                        came.extend_from_slice(&segment[h.len()..]);
                    }
                    assert_eq!(came, all);
                }
            }
        }
    }

    #[test]
    fn what_was_left_out_is_completed_and_nothing_else_is_touched() {
        for v6 in [false, true] {
            for l4 in [L4::Tcp, L4::Udp] {
                let mut right = packet(v6, l4, 1, 33);
                let h = Headers::of(&right, v6, l4, None).unwrap();
                h.complete(&mut right, 0, 0, true);
                let mut same = right.clone();
                complete_where_left_out(&mut same);
                assert_eq!(same, right);
                let (at, protocol) =
                    (h.l4 + if h.udp { UDP_CHECKSUM } else { TCP_CHECKSUM }, if h.udp { 17 } else { 6 });
                let addresses = if v6 { h.ip + 8..h.ip + 40 } else { h.ip + 12..h.ip + 20 };
                let pseudo = !finish(add(protocol + (right.len() - h.l4) as u64, &right[addresses]));
                let mut left_out = right.clone();
                left_out[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
                // Padding is none of IP's.
                left_out.extend([7; 5]);
                complete_where_left_out(&mut left_out);
                assert_eq!(left_out[..right.len()], right);
                // A wrong one is the receiver's to find.
                let mut wrong = right.clone();
                wrong[at] ^= 0x10;
                let before = wrong.clone();
                complete_where_left_out(&mut wrong);
                assert_eq!(wrong, before);
            }
        }
    }

    #[test]
    fn headers_that_a_card_cuts_have_the_sum_of_addresses_and_protocol() {
        let tcp = Offload { l2_len: 14, l3_len: 20, l4_len: 20, segment: 1, ..Offload::default() };
        let mut packet = [0xff; 100];
        packet[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        prepare(&mut packet, &tcp).unwrap();
        // 0a00 + 0001 + 0a00 + 0002 + 6.
        assert_eq!((&packet[24..26], &packet[50..52]), (&[0, 0][..], &[0x14, 9][..]));
        assert!(packet[..24].iter().chain(&packet[34..50]).chain(&packet[52..]).all(|b| *b == 0xff));
        let mut packet = [0xff; 100];
        prepare(&mut packet, &Offload { ipv6: true, l3_len: 40, ..tcp }).unwrap();
        // 16 times ffff, and 6: carries come back in.
        assert_eq!((&packet[70..72], &packet[24..26]), (&[0, 6][..], &[0xff; 2][..]));
        assert_eq!(prepare(&mut packet[..51], &tcp), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: if cfg!(miri) { 5 } else { 500 }, ..ProptestConfig::default() })]

        /// Whatever a packet holds and is said to be, nothing panics.
        #[test]
        fn what_makes_no_sense_is_left_alone(
            mut bytes in prop::collection::vec(any::<u8>(), 0..120), tag in any::<bool>(), v6: bool, udp: bool,
            start in prop::option::of(0usize..130), offset in prop_oneof![0usize..130, Just(usize::MAX)], skipped: usize, index: usize,
        ) {
            let ether_type: [u8; 2] = if v6 { [0x86, 0xdd] } else { [0x08, 0x00] };
            let at = if tag { 16 } else { 12 };
            if let Some(place) = bytes.get_mut(12..14) { place.copy_from_slice(&[0x81, 0]); }
            if let Some(place) = bytes.get_mut(at..at + 2) { place.copy_from_slice(&ether_type); }
            let _ = complete(&mut bytes.clone(), start.unwrap_or(usize::MAX), offset);
            complete_where_left_out(&mut bytes.clone());
            if let Some(h) = Headers::of(&bytes, v6, if udp { L4::Udp } else { L4::Tcp }, start) {
                for len in [0, h.len() - 1, h.len(), bytes.len()] {
                    h.complete(&mut bytes[..len], index, skipped, false);
                }
            }
        }
    }
}

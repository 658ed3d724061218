//! A received packet, checked: whether it has a mark, and is whole. Headers are read no further than that takes.
//!
//! ```
//! use wholebar::mem::{Arena, ArenaOptions, Pool};
//! use wholebar_measure::net::mark::Pattern;
//! use wholebar_measure::net::packet::{Verdict, check};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let pool = Pool::new(Arena::new(1 << 16, ArenaOptions::default())?, 8, 2048, 64)?;
//! let mut arp = pool.get().ok_or("no buffer is left")?;
//! arp.copy_from(&[0xff; 60]);
//! assert_eq!(check(&arp, &Pattern::new()), Verdict::Foreign);
//! # Ok(()) }
//! ```

use super::mark::{self, Found, Mark, Pattern};
use std::ops::Range;
use wholebar_core::mem::Buf;

/// Bytes that headers and mark take at most: Ethernet, two tags, IPv6 (IPv4 with all its options: 60), UDP, the mark.
const HEAD: usize = 14 + 8 + 60 + 8 + 18;
const UDP: u8 = 17;

/// What a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// One with a mark, whole: its headers' checksums and its payload are right.
    Good(Mark),
    /// One with a mark, damaged or cut off.
    Corrupt,
    /// Something else.
    Foreign,
}

/// Checks a packet, in one buffer or in several. It costs a comparison of all its bytes; nothing is allocated.
///
/// A checksum that the packet's [offload](Buf::offload) says is left to somebody else is not checked.
#[inline]
pub fn check(packet: &Buf, pattern: &Pattern) -> Verdict {
    if packet.next().is_none() {
        return check_head(packet, packet.bytes(), pattern);
    }
    // In several buffers: what has to be in one piece is copied.
    let (mut head, mut len) = ([0; HEAD], 0);
    for segment in packet.segments() {
        len += segment.copy_to(&mut head[len..]);
    }
    check_head(packet, &head[..len], pattern)
}

/// The same, of which `head` is the beginning, or all.
#[inline]
fn check_head(packet: &Buf, head: &[u8], pattern: &Pattern) -> Verdict {
    let total = packet.packet_len() as usize;
    let Some(udp) = Udp::find(head) else { return Verdict::Foreign };
    let at = udp.start + 8;
    let found = match Mark::find(head.get(at..).unwrap_or_default(), udp.len) {
        Found::Mark(mark) if at + udp.len <= total => mark,
        // It may be right, and the packet cut off.
        Found::Mark(_) | Found::Damaged => return Verdict::Corrupt,
        Found::Foreign => return Verdict::Foreign,
    };
    let rest = udp.len - mark::LEN;
    let left_undone = packet.offload().is_some_and(|offload| offload.l4.is_some());
    let whole = is_pattern(packet, at + mark::LEN, pattern.of(found, rest))
        && udp.ip_is_right(head)
        && (left_undone || udp.is_right(head, pattern.sum(found, rest)));
    if whole { Verdict::Good(found) } else { Verdict::Corrupt }
}

/// Whether the packet's bytes from `at` on are these.
#[inline]
fn is_pattern(packet: &Buf, at: usize, mut pattern: &[u8]) -> bool {
    let mut skip = at;
    for segment in packet.segments() {
        let bytes = segment.bytes();
        let here = bytes.get(skip..).unwrap_or_default();
        skip = skip.saturating_sub(bytes.len());
        let n = here.len().min(pattern.len());
        if here[..n] != pattern[..n] {
            return false;
        }
        pattern = &pattern[n..];
    }
    pattern.is_empty()
}

/// Where a packet's UDP header is.
struct Udp {
    /// The IP header's bytes.
    ip: Range<usize>,
    v6: bool,
    start: usize,
    /// Bytes of its payload.
    len: usize,
}

impl Udp {
    #[inline]
    fn find(head: &[u8]) -> Option<Self> {
        let mut ip = 14;
        // 802.1Q and 802.1ad tags.
        while ip <= 22 && matches!(half(head, ip - 2)?, 0x8100 | 0x88a8) {
            ip += 4;
        }
        let (start, protocol, v6) = match half(head, ip - 2)? {
            0x0800 => {
                let words = *head.get(ip)?;
                // No fragments: neither an offset, nor more of them to come.
                let whole = words >> 4 == 4 && words & 15 >= 5 && half(head, ip + 6)? & 0x3fff == 0;
                (ip + 4 * usize::from(words & 15), *head.get(ip + 9).filter(|_| whole)?, false)
            }
            0x86dd => (ip + 40, *head.get(ip + 6)?, true),
            _ => return None,
        };
        let len = usize::from(half(head, start + 4)?).checked_sub(8)?;
        (protocol == UDP).then_some(Self { ip: ip..start, v6, start, len })
    }

    /// Whether the IPv4 header's checksum is right; IPv6 has none.
    #[inline]
    fn ip_is_right(&self, head: &[u8]) -> bool {
        self.v6 || fold(words(&head[self.ip.clone()])) == 0xffff
    }

    /// Whether its checksum is right; `sum` is that of what is behind the mark.
    #[inline]
    fn is_right(&self, head: &[u8], sum: u32) -> bool {
        let addresses = if self.v6 { self.ip.start + 8..self.ip.end } else { self.ip.start + 12..self.ip.start + 20 };
        let pseudo = words(&head[addresses]) + u64::from(UDP) + self.len as u64 + 8;
        let own = words(&head[self.start..self.start + 8 + mark::LEN]);
        fold(pseudo + own + u64::from(sum)) == 0xffff
    }
}

#[inline]
fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2).map(|b| u16::from_be_bytes([b[0], b[1]]))
}

/// The sum of 16-bit words.
#[inline]
fn words(bytes: &[u8]) -> u64 {
    bytes.as_chunks::<2>().0.iter().map(|w| u64::from(u16::from_be_bytes(*w))).sum()
}

/// A ones' complement sum of 16 bits (RFC 1071).
#[inline]
fn fold(mut sum: u64) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::template::{Headers, Template};
    use wholebar_core::mem::{Arena, ArenaOptions, Pool};
    use wholebar_core::net::Mac;

    fn pool() -> Pool {
        Pool::new(Arena::new(2 << 20, ArenaOptions::default()).unwrap(), 512, 2048, 64).unwrap()
    }

    /// A packet in buffers of at most so many bytes.
    fn packet(pool: &Pool, bytes: &[u8], most: usize) -> Buf {
        let mut parts = bytes.chunks(most).map(|part| {
            let mut buf = pool.get().unwrap();
            assert_eq!(buf.copy_from(part), part.len());
            buf
        });
        let mut first = parts.next().unwrap();
        parts.for_each(|part| first.append(part));
        first
    }

    const MARK: Mark = Mark { run: 1, flow: 2, number: 3, sent: 4 };

    fn bytes(vlan: Option<u16>, v6: bool, rest: usize) -> Vec<u8> {
        let headers = Headers { from: Mac([2; 6]), to: Mac([4; 6]), vlan, v6 };
        let mut bytes = vec![0; headers.len() + mark::LEN + rest];
        Template::new(&headers, 3, 9).unwrap().write(&mut bytes, MARK);
        bytes
    }

    #[test]
    fn packets_are_known_whatever_buffers_they_are_in() {
        let (pool, pattern) = (pool(), Pattern::new());
        for (vlan, v6, rest) in [(None, false, 0), (None, true, 1), (Some(5), false, 1400), (Some(5), true, 333)] {
            let mut bytes = bytes(vlan, v6, rest);
            for padding in [0, 7] {
                bytes.resize(bytes.len() + padding, 0xaa);
                for most in [2048, 100, 33, 1] {
                    if bytes.len() / most < 512 {
                        assert_eq!(
                            check(&packet(&pool, &bytes, most), &pattern),
                            Verdict::Good(MARK),
                            "{vlan:?} {v6} {most}"
                        );
                    }
                }
            }
        }
    }

    /// Whichever bit is wrong: the packet is not taken for a good one, except where it is the Ethernet header, which has no checksum here.
    #[test]
    fn a_wrong_bit_is_seen() {
        let (pool, pattern) = (pool(), Pattern::new());
        for (vlan, v6) in [(None, false), (None, true), (Some(5), false)] {
            let good = bytes(vlan, v6, 90);
            let ip = if vlan.is_some() { 18 } else { 14 };
            for bit in 8 * ip..8 * good.len() {
                let mut bad = good.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                let seen = check(&packet(&pool, &bad, 2048), &pattern);
                // IPv6 has no checksum for its first bytes, and the hop limit.
                let unprotected = v6 && (bit / 8 < ip + 6 || bit / 8 == ip + 7);
                assert!(matches!(seen, Verdict::Corrupt | Verdict::Foreign) || unprotected, "{v6} {bit} {seen:?}");
                if bit / 8 >= good.len() - 106 {
                    assert_eq!(seen, Verdict::Corrupt, "payload, bit {bit}");
                }
            }
            for cut in 1..=90 {
                assert_eq!(check(&packet(&pool, &good[..good.len() - cut], 64), &pattern), Verdict::Corrupt);
            }
        }
    }

    /// Their checks are right, their lengths are not: whoever sends them knows how checks are made.
    #[test]
    fn marks_for_lengths_that_cannot_be_are_corrupt() {
        let (pool, pattern, at) = (pool(), Pattern::new(), 14 + 20 + 8);
        for (len, cut) in [(0, 0), (17, 0), (108, 1), (usize::MAX, 1)] {
            let mut bytes = bytes(None, false, 90);
            bytes[at..at + mark::LEN].copy_from_slice(&MARK.bytes(len));
            if cut == 0 {
                bytes[at - 4..at - 2].copy_from_slice(&(len as u16 + 8).to_be_bytes());
            }
            bytes.truncate(bytes.len() - cut);
            assert_eq!(check(&packet(&pool, &bytes, 2048), &pattern), Verdict::Corrupt, "{len}");
        }
    }

    #[test]
    fn other_packets_are_foreign() {
        let (pool, pattern) = (pool(), Pattern::new());
        let mut fragment = bytes(None, false, 90);
        fragment[20] |= 0x20;
        let mut tcp = bytes(None, false, 90);
        tcp[23] = 6;
        let mut tags = bytes(Some(5), false, 90);
        tags.splice(12..12, [0x81, 0, 0, 1, 0x88, 0xa8, 0, 1, 0x81, 0, 0, 2]);
        for other in [vec![0; 14], vec![0x81; 60], vec![0xff; 15], fragment, tcp, tags] {
            assert_eq!(check(&packet(&pool, &other, 2048), &pattern), Verdict::Foreign);
        }
    }
}

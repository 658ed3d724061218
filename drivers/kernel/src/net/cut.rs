//! Packets of the ring as they were on the wire, or would have been: with the VLAN tag that the kernel took off, and cut into segments where nobody has done that
//! yet.

use wholebar_core::kernel::{Frame, NetHeader, PacketRing};
use wholebar_core::mem::L4;
use wholebar_core::net::gso::{self, Headers};

/// Flags and kinds of a virtio header (VIRTIO 1.2, 5.1.6).
const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// Where a VLAN tag goes, and its bytes.
const TAG_AT: usize = 12;
const TAG: usize = 4;
/// Headers are not longer: Ethernet with two tags, IPv4 and TCP with all their options, or some of IPv6's extensions.
const HEAD: usize = 256;

/// A packet of the ring, tag included.
pub(super) struct Packet<'a> {
    ring: &'a PacketRing,
    frame: &'a Frame,
    tag: Option<[u8; TAG]>,
}

impl<'a> Packet<'a> {
    pub fn of(ring: &'a PacketRing, frame: &'a Frame) -> Self {
        let tag = frame.vlan.map(|(tci, tpid)| {
            let ([t0, t1], [p0, p1]) = (tci.to_be_bytes(), tpid.to_be_bytes());
            [p0, p1, t0, t1]
        });
        Self { ring, frame, tag }
    }

    /// Its length, in bytes.
    pub fn len(&self) -> u32 {
        self.frame.captured + self.tag() as u32
    }

    /// Bytes of the tag that was taken off.
    fn tag(&self) -> usize {
        self.tag.map_or(0, |tag| tag.len())
    }

    /// Copies its bytes from `from` on; `false` where there are not as many.
    pub fn copy(&self, from: u32, out: &mut [u8]) -> bool {
        let Some(tag) = self.tag else { return self.ring.copy(self.frame, from, out) };
        let (mut at, mut out) = (from as usize, out);
        while !out.is_empty() {
            let n = match at {
                0..TAG_AT => (TAG_AT - at).min(out.len()),
                _ if at < TAG_AT + TAG => (TAG_AT + TAG - at).min(out.len()),
                _ => out.len(),
            };
            let (now, later) = out.split_at_mut(n);
            let there = match at {
                0..TAG_AT => self.ring.copy(self.frame, at as u32, now),
                _ if at < TAG_AT + TAG => {
                    now.copy_from_slice(&tag[at - TAG_AT..at - TAG_AT + n]);
                    true
                }
                _ => self.ring.copy(self.frame, (at - TAG) as u32, now),
            };
            if !there {
                return false;
            }
            (at, out) = (at + n, later);
        }
        true
    }

    fn header(&self) -> NetHeader {
        self.frame.header
    }

    /// Whether it is to be cut.
    pub fn is_large(&self) -> bool {
        self.header().gso_type & !GSO_ECN != GSO_NONE
    }

    /// Whether its checksums are right: somebody checked them, or it was never on a wire.
    pub fn is_good(&self) -> bool {
        self.header().flags & (NEEDS_CSUM | DATA_VALID) != 0
    }

    /// Copies all of it, and completes the checksum that was left out; `None` where it makes no sense.
    pub fn whole(&self, out: &mut [u8]) -> Option<()> {
        self.copy(0, out).then_some(())?;
        let NetHeader { flags, csum_start, csum_offset, .. } = self.header();
        match flags & NEEDS_CSUM {
            0 => Some(()),
            _ => gso::complete(out, usize::from(csum_start) + self.tag(), csum_offset.into()),
        }
    }
}

/// A packet that is being cut into segments.
pub(super) struct Cut {
    headers: Headers,
    head: [u8; HEAD],
    /// The payload of all, and of a segment, in bytes.
    payload: usize,
    size: usize,
    /// The next segment.
    next: usize,
}

impl Cut {
    /// Begins with a packet; `None` where it makes no sense.
    pub fn of(packet: &Packet<'_>) -> Option<Self> {
        let header = packet.header();
        let (v6, l4) = match header.gso_type & !GSO_ECN {
            GSO_TCPV4 => (Some(false), L4::Tcp),
            GSO_TCPV6 => (Some(true), L4::Tcp),
            GSO_UDP_L4 => (None, L4::Udp),
            _ => return None,
        };
        let mut head = [0; HEAD];
        let there = HEAD.min(packet.len() as usize);
        packet.copy(0, &mut head[..there]).then_some(())?;
        let start = (header.flags & NEEDS_CSUM != 0).then(|| usize::from(header.csum_start) + packet.tag());
        let of = |v6| Headers::of(&head[..there], v6, l4, start);
        // Of UDP it does not say over which IP.
        let headers = match v6 {
            Some(v6) => of(v6)?,
            None => of(false).or_else(|| of(true))?,
        };
        let (payload, size) = (packet.len() as usize - headers.len(), usize::from(header.gso_size));
        (size > 0).then_some(Self { headers, head, payload, size, next: 0 })
    }

    /// Segments that are left.
    fn count(&self) -> usize {
        self.payload.div_ceil(self.size).max(1)
    }

    /// The largest segment, in bytes.
    pub fn largest(&self) -> usize {
        self.headers.len() + self.size.min(self.payload)
    }

    /// Bytes of the next segment.
    pub fn len(&self) -> usize {
        self.headers.len() + (self.payload - self.next * self.size).min(self.size)
    }

    /// Makes the next segment, in `out`, which has its length. Returns whether it was the last one.
    pub fn segment(&mut self, packet: &Packet<'_>, out: &mut [u8]) -> bool {
        let (from, index, head) = (self.next * self.size, self.next, self.headers.len());
        self.next += 1;
        let last = self.next == self.count();
        let (front, part) = out.split_at_mut(head);
        front.copy_from_slice(&self.head[..head]);
        // All of it is there: it was looked at how long the packet is.
        packet.copy((head + from) as u32, part);
        self.headers.complete(out, index, from, last);
        last
    }
}

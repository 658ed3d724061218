//! A packet on its way between models: its bytes, and the virtio header that says what was left undone to it.

use std::ops::{Deref, DerefMut};

/// Room before the packet: a virtio header, of 12 bytes or of 20.
pub(crate) const HEAD: usize = 20;
/// The usual header (VIRTIO 1.2, 5.1.6): what stands in the room's end.
pub(crate) const HEADER: usize = 12;
/// The longest packet: what one IP packet can be, its Ethernet header and two VLAN tags.
pub(crate) const LONGEST: usize = 65_535 + 14 + 8;
/// What a frame has room for at first.
const USUAL: usize = 2048 - HEAD;

/// Its checksum is to be completed (5.1.6.2).
pub(crate) const NEEDS_CSUM: u8 = 1;
/// Its checksum was checked.
pub(crate) const DATA_VALID: u8 = 2;
/// Kinds of segmentation.
pub(crate) const GSO_NONE: u8 = 0;
pub(crate) const GSO_TCPV4: u8 = 1;
pub(crate) const GSO_TCPV6: u8 = 4;
pub(crate) const GSO_ECN: u8 = 0x80;

/// A packet and its header: one pointer, which is cheap to move about.
pub(crate) struct Frame(Box<Inner>);

pub(crate) struct Inner {
    /// [`HEAD`] bytes, then the packet.
    bytes: Box<[u8]>,
    len: u32,
    /// Which end of a pair made it, and gets it back.
    pub(super) owner: u8,
    /// Which receive queue it goes to, once that is known.
    pub(crate) queue: u16,
    /// Its hash, and the type of that as reports have it; 0 for none.
    pub(crate) hash: (u32, u16),
}

impl Deref for Frame {
    type Target = Inner;

    #[inline(always)]
    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl DerefMut for Frame {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Inner {
        &mut self.0
    }
}

/// A virtio header's fields, but for the number of buffers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Offload {
    pub(crate) flags: u8,
    pub(crate) gso_type: u8,
    pub(crate) hdr_len: u16,
    pub(crate) gso_size: u16,
    pub(crate) csum_start: u16,
    pub(crate) csum_offset: u16,
}

impl Offload {
    /// What a header says.
    #[inline]
    pub(crate) fn of(h: &[u8; HEADER]) -> Self {
        let half = |at: usize| u16::from_le_bytes([h[at], h[at + 1]]);
        Self {
            flags: h[0],
            gso_type: h[1],
            hdr_len: half(2),
            gso_size: half(4),
            csum_start: half(6),
            csum_offset: half(8),
        }
    }

    /// Says it in a header.
    #[inline]
    pub(crate) fn put(&self, h: &mut [u8; HEADER]) {
        (h[0], h[1]) = (self.flags, self.gso_type);
        h[2..4].copy_from_slice(&self.hdr_len.to_le_bytes());
        h[4..6].copy_from_slice(&self.gso_size.to_le_bytes());
        h[6..8].copy_from_slice(&self.csum_start.to_le_bytes());
        h[8..10].copy_from_slice(&self.csum_offset.to_le_bytes());
    }
}

impl Frame {
    pub(super) fn new(owner: u8) -> Self {
        Self(Box::new(Inner { bytes: vec![0; HEAD + USUAL].into(), len: 0, owner, queue: 0, hash: (0, 0) }))
    }

    /// Makes it a packet of `len` bytes, whose contents are whatever they were.
    #[inline]
    pub(crate) fn resize(&mut self, len: usize) {
        if self.bytes.len() < HEAD + len {
            self.enlarge();
        }
        self.len = len as u32;
    }

    /// Room for the longest packet: kept from here on.
    #[cold]
    fn enlarge(&mut self) {
        let mut bytes = vec![0; HEAD + LONGEST];
        bytes[..self.bytes.len()].copy_from_slice(&self.bytes);
        self.bytes = bytes.into();
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len as usize
    }

    #[inline]
    pub(crate) fn packet(&self) -> &[u8] {
        &self.bytes[HEAD..HEAD + self.len as usize]
    }

    #[inline]
    pub(crate) fn packet_mut(&mut self) -> &mut [u8] {
        {
            let end = HEAD + self.len as usize;
            &mut self.0.bytes[HEAD..end]
        }
    }

    /// The packet behind a header of `header` bytes, which is at most [`HEAD`].
    #[inline]
    pub(crate) fn with_header(&mut self, header: usize) -> &mut [u8] {
        {
            let end = HEAD + self.len as usize;
            &mut self.0.bytes[HEAD - header..end]
        }
    }

    /// The usual header.
    #[inline]
    pub(crate) fn header(&mut self) -> &mut [u8; HEADER] {
        let head = self.bytes.get_mut(HEAD - HEADER..).and_then(|head| head.first_chunk_mut());
        // As long as HEAD at least.
        head.expect("room for a header")
    }

    /// Whether nothing was left undone to it: its header says so.
    #[inline]
    pub(crate) fn is_complete(&self) -> bool {
        // NEEDS_CSUM, and anything but GSO_NONE.
        self.bytes[HEAD - HEADER] & NEEDS_CSUM == 0 && self.bytes[HEAD - HEADER + 1] == GSO_NONE
    }

    #[inline]
    pub(crate) fn offload(&self) -> Offload {
        // As long as HEAD at least.
        Offload::of(self.bytes[HEAD - HEADER..].first_chunk().expect("room for a header"))
    }

    #[inline]
    pub(crate) fn set_offload(&mut self, o: &Offload) {
        o.put(self.header());
    }

    /// Makes a header of 20 bytes of the usual one: with the hash (5.1.6.4.4).
    pub(crate) fn report_hash(&mut self) {
        let (hash, report) = self.hash;
        self.bytes.copy_within(HEAD - HEADER..HEAD, 0);
        self.bytes[12..16].copy_from_slice(&hash.to_le_bytes());
        self.bytes[16..18].copy_from_slice(&report.to_le_bytes());
        self.bytes[18..20].fill(0);
    }

    /// Makes the usual header of one of 20 bytes.
    pub(crate) fn forget_hash(&mut self) {
        self.bytes.copy_within(0..HEADER, HEAD - HEADER);
    }

    /// One that any packet fits in.
    pub(super) fn longest() -> Self {
        let mut frame = Self::new(0);
        frame.enlarge();
        frame
    }

    /// Makes it a copy of another, unless it would have to grow for that.
    pub(super) fn copy(&mut self, other: &Self) -> bool {
        let end = HEAD + other.len();
        let fits = end <= self.bytes.len();
        if fits {
            self.bytes[..end].copy_from_slice(&other.bytes[..end]);
            self.len = other.len;
        }
        fits
    }
}

//! What a device found of a packet's checksums, and what it is asked to do before the packet goes on a wire.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

/// The result of a device's check of a checksum.
///
/// DPDK: `RTE_MBUF_F_RX_L4_CKSUM_*`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Checked {
    /// The device did not check it, or there is none.
    #[default]
    Unknown = 0,
    /// The checksum is right.
    Good = 1,
    /// The checksum is wrong.
    Bad = 2,
}

/// A transport protocol whose checksum a device can fill in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum L4 {
    /// TCP: the checksum is at byte 16 of its header.
    Tcp = 1,
    /// UDP: the checksum is at byte 6 of its header.
    Udp = 2,
}

/// The work that remains to be done with a packet before it goes on a wire.
///
/// A sender asks its device for it; a packet received from a neighbour in the same machine may have it left to the receiver. (DPDK: `tx_offload` and
/// `RTE_MBUF_F_TX_*`; VIRTIO 1.2: 5.1.6.)
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offload {
    /// Bytes of the link-layer header, at most 127.
    pub l2_len: u8,
    /// Bytes of the network-layer header, at most 511.
    pub l3_len: u16,
    /// Bytes of the transport-layer header, for segmentation.
    pub l4_len: u8,
    /// The network layer is IPv6, rather than IPv4.
    pub ipv6: bool,
    /// The IPv4 header's checksum is to be filled in.
    pub l3: bool,
    /// The transport protocol whose checksum is to be filled in. Its field holds the sum of the pseudo header.
    pub l4: Option<L4>,
    /// The packet is to be cut into segments of at most this many bytes of payload; 0 for no segmentation.
    pub segment: u16,
}

impl Offload {
    /// Returns where the transport-layer header begins, in bytes from the packet's start.
    #[inline]
    pub fn l4_start(self) -> u32 {
        u32::from(self.l2_len).saturating_add(self.l3_len.into())
    }

    /// All of it in a word.
    pub(super) fn pack(self) -> u64 {
        u64::from(self.l2_len)
            | u64::from(self.l3_len) << 8
            | u64::from(self.l4_len) << 24
            | u64::from(self.segment) << 32
            | self.l4.map_or(0, |l4| l4 as u64) << 48
            | u64::from(self.l3) << 50
            | u64::from(self.ipv6) << 51
    }

    /// What [`pack`](Self::pack) made a word of.
    pub(super) fn unpack(word: u64) -> Self {
        Self {
            l2_len: word as u8,
            l3_len: (word >> 8) as u16,
            l4_len: (word >> 24) as u8,
            segment: (word >> 32) as u16,
            l4: match word >> 48 & 3 {
                1 => Some(L4::Tcp),
                2 => Some(L4::Udp),
                _ => None,
            },
            l3: word >> 50 & 1 != 0,
            ipv6: word >> 51 & 1 != 0,
        }
    }
}

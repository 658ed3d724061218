//! Descriptors and completions as words: what the driver writes, and what the device writes back (`struct Vmxnet3_TxDesc`, `Vmxnet3_RxDesc`,
//! `Vmxnet3_TxCompDesc`, `Vmxnet3_RxCompDesc` of Linux's driver).
//!
//! Each is two 64-bit words, little-endian in memory. Whose turn an entry is, is told by its generation bit, which changes with each lap of the ring:
//! rings are zero at first, and the first lap's generation is 1. Pure functions: no memory is touched here.

use wholebar_core::mem::{Buf, Checked, L4, Offload};
use wholebar_core::net::Offloads;

/// The longest buffer that is received to, in bytes: 14 bits.
pub const RX_ROOM: u32 = (1 << 14) - 1;
/// The longest piece that is sent from, in bytes.
pub const TX_PIECE: u32 = 1 << 14;
/// Descriptors of a packet that is not cut, at most (`VMXNET3_MAX_TXD_PER_PKT`), and of one that is (`VMXNET3_MAX_TSO_TXD_PER_PKT`).
pub const TX_PIECES: usize = 16;
pub const TSO_PIECES: usize = 24;
/// `VMXNET3_CDTYPE_RXCOMP_LRO`: a completion that says how segments were merged.
const MERGED: u64 = 4;

/// The second word of a descriptor that receives: `room` bytes at the first word's address. `body` is what only continues packets.
#[inline(always)]
pub fn rx_descriptor(room: u32, body: bool, generation: bool) -> u64 {
    u64::from(room) | u64::from(body) << 14 | u64::from(generation) << 31
}

/// A received packet's part, as the device completed it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RxDone {
    /// Descriptor, ring, beginning, end, kind of hash; hash, or how segments were merged.
    pub low: u64,
    /// Length, error, VLAN tag; what was found out about checksums.
    pub high: u64,
}

/// `gen`, in the second word of either completion.
pub const DONE_GENERATION: u32 = 63;

impl RxDone {
    fn bit(self, n: u32) -> bool {
        self.high >> n & 1 != 0
    }

    /// `rxdIdx`: the descriptor.
    pub fn index(self) -> u32 {
        self.low as u32 & 0xfff
    }

    /// `rqID`: the ring.
    pub fn ring(self) -> u32 {
        (self.low >> 16) as u32 & 0x3ff
    }

    /// `sop`: the packet begins here.
    pub fn begins(self) -> bool {
        self.low >> 15 & 1 != 0
    }

    /// `eop`: the packet ends here.
    pub fn ends(self) -> bool {
        self.low >> 14 & 1 != 0
    }

    /// `len`: bytes written to the buffer.
    pub fn len(self) -> u32 {
        self.high as u32 & 0x3fff
    }

    /// `err`: the packet's data is not what was sent, or not all of it.
    pub fn is_bad(self) -> bool {
        self.bit(14)
    }

    /// `ts`, `tci`: the VLAN tag that was taken off.
    pub fn vlan(self) -> Option<u16> {
        self.bit(15).then_some((self.high >> 16) as u16)
    }

    /// `rssHash`, where the packet had what it is made from (`rssType`), and its words are no others'.
    pub fn hash(self) -> Option<u32> {
        (self.low >> 26 & 0xf != 0 && !self.is_merged()).then_some((self.low >> 32) as u32)
    }

    /// What was found out about checksums (`cnc`, `ipc`, `tuc`): of IPv4's header, of TCP or UDP.
    pub fn checked(self) -> (Checked, Checked) {
        let of = |checked: bool, right: bool| match (checked, right) {
            (false, _) => Checked::Unknown,
            (true, true) => Checked::Good,
            (true, false) => Checked::Bad,
        };
        let (checked, fragment) = (self.low >> 30 & 1 == 0, self.bit(54));
        let (l3, l4) = (self.bit(53), (self.bit(49) || self.bit(50)) && !fragment);
        (of(checked && l3, self.bit(51)), of(checked && l4, self.bit(48)))
    }

    /// `v6`: it is IPv6.
    pub fn is_ipv6(self) -> bool {
        self.bit(52)
    }

    /// `type`: it says how segments were merged.
    pub fn is_merged(self) -> bool {
        self.high >> 56 & 0x7f == MERGED
    }

    /// `mss`: bytes of the segments that it was merged of, where [it says so](Self::is_merged).
    pub fn segment(self) -> u16 {
        (self.high >> 32) as u16
    }
}

/// `txdIdx`, of the first word: the last descriptor of the packet that was sent.
#[inline(always)]
pub fn tx_done_index(low: u64) -> u32 {
    low as u32 & 0xfff
}

/// Where the generation is, in the second word of a descriptor that sends.
const TX_GENERATION: u32 = 14;

/// The second word of a descriptor that sends `len` bytes, 1 to [`TX_PIECE`]. `work` is [`tx_work`]'s; the first descriptor of a packet has it.
#[inline(always)]
pub fn tx_descriptor(len: u32, ends: bool, generation: bool, work: u64) -> u64 {
    // EOP and CQ: a completion for each packet. 16 KiB are 0.
    let last = u64::from(ends) << 44 | u64::from(ends) << 45;
    u64::from(len & 0x3fff) | u64::from(generation) << TX_GENERATION | last | work
}

/// What a packet's first descriptor says of the work that there is (`om`, `hlen`, `msscof`, `ti`, `tci`).
pub fn tx_work(offload: Option<Offload>, vlan: Option<u16>) -> u64 {
    const CSUM: u64 = 2;
    const TSO: u64 = 3;
    let (mode, header, at) = match offload {
        Some(Offload { segment, l4_len, .. }) if segment > 0 => {
            (TSO, offload.map_or(0, Offload::l4_start) + u32::from(l4_len), u32::from(segment))
        }
        Some(offload @ Offload { l4: Some(l4), .. }) => {
            let start = offload.l4_start();
            (CSUM, start, start + if l4 == L4::Tcp { 16 } else { 6 })
        }
        _ => (0, 0, 0),
    };
    let tag = vlan.map_or(0, |tag| 1 << 47 | u64::from(tag) << 48);
    u64::from(at & 0x3fff) << 18 | u64::from(header & 0x3ff) << 32 | mode << 42 | tag
}

/// Whether what is asked for makes sense for the packet of `total` bytes, and was granted. Headers are in its first buffer.
pub fn tx_possible(packet: &Buf, total: u32, granted: &Offloads) -> bool {
    if packet.vlan().is_some() && !granted.vlan_insert {
        return false;
    }
    let Some(offload) = packet.offload() else { return true };
    let l4_header = match (offload.segment, offload.l4) {
        (1.., _) => u32::from(offload.l4_len).max(20),
        (0, None) => return !offload.l3,
        (0, Some(L4::Tcp)) => 20,
        (0, Some(L4::Udp)) => 8,
    };
    let l3_header = if offload.ipv6 { 40 } else { 20 };
    let headers = offload.l4_start() + l4_header;
    let fits = offload.l2_len >= 14 && u32::from(offload.l3_len) >= l3_header && headers <= packet.len().min(1023);
    let granted = match offload.segment {
        // Who cuts a packet fills in all of its checksums.
        1.. => granted.tso && offload.l4 != Some(L4::Udp) && offload.l4_len >= 20 && offload.segment < 1 << 14,
        0 => granted.tx_l4_checksum && !offload.l3,
    };
    fits && headers <= total && granted
}

#[cfg(test)]
mod tests {
    use super::*;
    use wholebar_core::mem::{Arena, ArenaOptions, Pool};

    #[test]
    fn descriptors_that_receive_are_as_linux_has_them() {
        assert_eq!(rx_descriptor(2048, false, true), 0x8000_0800);
        assert_eq!(rx_descriptor(RX_ROOM, true, false), 0x7fff);
    }

    #[test]
    fn completions_are_read_field_by_field() {
        // Descriptor 5 of ring 2, a whole packet with TCP/IPv4's hash; 60 bytes, tag 0x2064; IPv4 and TCP, both right; generation 1.
        let done = RxDone { low: 0xdead_beef_0802_c005, high: 0x80ad_0000_2064_803c };
        assert_eq!((done.index(), done.ring(), done.begins(), done.ends(), done.is_bad()), (5, 2, true, true, false));
        assert_eq!((done.len(), done.vlan(), done.hash()), (60, Some(0x2064), Some(0xdead_beef)));
        assert_eq!((done.checked(), done.is_ipv6()), ((Checked::Good, Checked::Good), false));
        // The same, both wrong; a fragment; nobody looked.
        let wrong = RxDone { high: 0x8024_0000_0000_003c, ..done };
        assert_eq!((wrong.checked(), wrong.vlan()), ((Checked::Bad, Checked::Bad), None));
        assert_eq!(RxDone { high: 0x80e4_0000_0000_003c, ..done }.checked(), (Checked::Bad, Checked::Unknown));
        assert_eq!(RxDone { low: 1 << 30, ..done }.checked(), (Checked::Unknown, Checked::Unknown));
        // Merged of segments of 1448 bytes over IPv6: what was the hash is something else.
        let merged = RxDone { high: 0x8415_05a8_0000_003c, ..done };
        assert_eq!((merged.is_merged(), merged.segment(), merged.is_ipv6(), merged.hash()), (true, 1448, true, None));
        assert!(RxDone { low: 0, high: 1 << 14 }.is_bad());
    }

    #[test]
    fn descriptors_that_send_are_as_linux_has_them() {
        assert_eq!(tx_descriptor(60, true, true, 0), 0x3000_0000_403c);
        assert_eq!(tx_descriptor(TX_PIECE, false, false, 0), 0);
        let tcp = Offload { l2_len: 14, l3_len: 20, l4_len: 32, l4: Some(L4::Tcp), ..Offload::default() };
        assert_eq!(tx_work(Some(tcp), None), (34 + 16) << 18 | 34 << 32 | 2 << 42);
        assert_eq!(tx_work(Some(Offload { segment: 1448, ..tcp }), None), 1448 << 18 | 66 << 32 | 3 << 42);
        assert_eq!(tx_work(None, Some(0x6064)), 1 << 47 | 0x6064 << 48);
        assert_eq!(tx_work(Some(Offload::default()), None), 0);
    }

    #[test]
    fn work_that_makes_no_sense_is_refused() {
        let pool = Pool::new(Arena::new(1 << 16, ArenaOptions::default()).unwrap(), 2, 2048, 64).unwrap();
        let mut buf = pool.get_len(1500).unwrap();
        let all = Offloads::ALL;
        let good = Offload { l2_len: 14, l3_len: 20, l4_len: 20, l4: Some(L4::Tcp), ..Offload::default() };
        let mut with = |offload, len, granted: Offloads| {
            buf.set_len(len);
            buf.set_offload(Some(offload));
            tx_possible(&buf, len, &granted)
        };
        assert!(with(good, 54, all) && !with(good, 53, all));
        let without = |other| all.without(other);
        assert!(!with(good, 54, without(Offloads { tx_l4_checksum: true, ..Offloads::NONE })));
        let cut = Offload { segment: 1448, ..good };
        assert!(with(cut, 1500, all) && !with(cut, 1500, without(Offloads { tso: true, ..Offloads::NONE })));
        for bad in [
            Offload { l2_len: 13, ..good },
            Offload { l3_len: 19, ..good },
            Offload { l3_len: 511, l2_len: 127, l4_len: 255, segment: 1, ..good },
            Offload { ipv6: true, ..good },
            Offload { l3: true, ..good },
            Offload { l3: true, l4: None, ..good },
            Offload { l4: Some(L4::Udp), ..cut },
            Offload { l4_len: 12, ..cut },
            Offload { segment: 1 << 14, ..cut },
        ] {
            assert!(!with(bad, 500, all), "{bad:?}");
        }
        assert!(with(Offload { l4: None, ..good }, 20, Offloads::NONE), "nothing is asked for");
        buf.set_offload(None);
        buf.set_vlan(Some(1));
        assert!(tx_possible(&buf, 20, &all) && !tx_possible(&buf, 20, &Offloads::NONE));
    }
}

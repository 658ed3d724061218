//! What descriptors of all families have in common, as words: what the device writes back (82576 datasheet, 7.1.5 and 7.2.2), and which work can be asked
//! for. What is posted to send is each family's own.
//!
//! A descriptor is two 64-bit words, little-endian in memory. Pure functions: no memory is touched here.

use wholebar_core::mem::{Buf, Checked, L4};

/// A received packet's part, as the device wrote it back (7.1.5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteBack {
    /// Packet information and hash.
    pub low: u64,
    /// Status, errors, length, VLAN tag.
    pub high: u64,
}

/// DD, in the second word: the device is done with the descriptor.
pub const RX_DONE: u64 = 1;

impl WriteBack {
    /// EOP: the packet ends here.
    pub fn ends(self) -> bool {
        self.high >> 1 & 1 != 0
    }

    /// PKT_LEN: bytes written to the buffer.
    pub fn len(self) -> u32 {
        (self.high >> 32) as u16 as u32
    }

    /// RXE: the packet's data is not what was sent.
    pub fn is_bad(self) -> bool {
        self.high >> 31 & 1 != 0
    }

    /// The VLAN tag that was taken off (VP).
    pub fn vlan(self) -> Option<u16> {
        (self.high >> 3 & 1 != 0).then_some((self.high >> 48) as u16)
    }

    /// The hash, where the packet had what it is made from (RSS type).
    pub fn hash(self) -> Option<u32> {
        (self.low & 0xf != 0).then_some((self.low >> 32) as u32)
    }

    /// What was found out about checksums: of IPv4's header (IPCS, IPE), of TCP or UDP (L4CS or UDPCS, L4E).
    pub fn checked(self) -> (Checked, Checked) {
        let of = |looked: bool, wrong: bool| match (looked, wrong) {
            (false, _) => Checked::Unknown,
            (true, false) => Checked::Good,
            (true, true) => Checked::Bad,
        };
        let bit = |n: u32| self.high >> n & 1 != 0;
        (of(bit(6), bit(30)), of(bit(5) || bit(4), bit(29)))
    }
}

/// RS, in the second word of a data descriptor: the device is to tell when it is done with it.
pub const TX_REPORT: u64 = 1 << 27;
/// DD, there: it is.
pub const TX_DONE: u64 = 1 << 32;

/// Whether what is asked for makes sense for the packet, and was granted.
pub fn tx_possible(packet: &Buf, total: u32, l3_granted: bool, l4_granted: bool) -> bool {
    let Some(offload) = packet.offload() else { return true };
    let l4_header = match offload.l4 {
        None => 0,
        Some(L4::Tcp) => 20,
        Some(L4::Udp) => 8,
    };
    let l3_header = if offload.ipv6 { 40 } else { 20 };
    let asks = offload.l3 || offload.l4.is_some();
    let headers = offload.l2_len >= 14
        && offload.l2_len < 128
        && u32::from(offload.l3_len) >= l3_header
        && offload.l3_len < 512
        && offload.l4_start() + l4_header <= total;
    offload.segment == 0
        && !(offload.l3 && offload.ipv6)
        && (!offload.l3 || l3_granted)
        && (offload.l4.is_none() || l4_granted)
        && (!asks || headers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wholebar_core::mem::{Arena, ArenaOptions, Offload, Pool};

    #[test]
    fn write_backs_are_read_field_by_field() {
        // TCP over IPv4, hash of that; DD, EOP, VP, L4CS, IPCS; 60 bytes; tag 0x2064.
        let wb = WriteBack { low: 0xdead_beef_0000_0151, high: 0x2064_003c_0000_006b };
        assert!(wb.ends() && !wb.is_bad());
        assert_eq!((wb.len(), wb.vlan(), wb.hash()), (60, Some(0x2064), Some(0xdead_beef)));
        assert_eq!(wb.checked(), (Checked::Good, Checked::Good));
        let wrong = WriteBack { low: 0, high: 0x0000_ffff_6000_0061 };
        assert_eq!((wrong.checked(), wrong.vlan(), wrong.hash()), ((Checked::Bad, Checked::Bad), None, None));
        assert_eq!((wrong.len(), wrong.ends()), (65535, false));
        // UDP alone (UDPCS); errors say nothing where nobody looked.
        assert_eq!(WriteBack { low: 0, high: 0x6000_0011 }.checked(), (Checked::Unknown, Checked::Bad));
        assert!(WriteBack { low: 0, high: 1 << 31 }.is_bad());
    }

    #[test]
    fn work_that_makes_no_sense_is_refused() {
        let pool = Pool::new(Arena::new(1 << 16, ArenaOptions::default()).unwrap(), 1, 2048, 64).unwrap();
        let mut buf = pool.get_len(60).unwrap();
        assert!(tx_possible(&buf, 60, false, false));
        let good = Offload { l2_len: 14, l3_len: 20, l3: true, l4: Some(L4::Tcp), ..Offload::default() };
        let mut with = |offload, len, l3, l4| {
            buf.set_offload(Some(offload));
            tx_possible(&buf, len, l3, l4)
        };
        assert!(with(good, 54, true, true));
        assert!(!with(good, 53, true, true) && !with(good, 54, false, true) && !with(good, 54, true, false));
        for bad in [
            Offload { l2_len: 13, ..good },
            Offload { l2_len: 200, ..good },
            Offload { l3_len: 19, ..good },
            Offload { l3_len: 600, ..good },
            Offload { ipv6: true, l3_len: 40, ..good },
            Offload { ipv6: true, l3: false, ..good },
            Offload { segment: 1460, ..good },
        ] {
            assert!(!with(bad, 1500, true, true), "{bad:?}");
        }
        assert!(with(Offload { l4: None, l3: false, ..good }, 20, false, false), "nothing is asked for");
    }
}

//! What descriptors of all families have in common, as words: what the device writes back (82576 datasheet, 7.1.5 and 7.2.2; 82574
//! datasheet, 7.1.5 and 7.2). What is posted to send is each family's own.
//!
//! A descriptor is two 64-bit words, little-endian in memory. Pure functions: no memory is touched here.

use wholebar_core::mem::Checked;

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

/// The packet type's bit for SCTP, in the first word. The 82574 does not set it.
const SCTP: u64 = 1 << 10;

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

    /// TS: the device has the time of the packet's arrival, the 82576 alone.
    pub fn is_stamped(self) -> bool {
        self.high >> 16 & 1 != 0
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
        let of = |checked: bool, wrong: bool| match (checked, wrong) {
            (false, _) => Checked::Unknown,
            (true, false) => Checked::Good,
            (true, true) => Checked::Bad,
        };
        let bit = |n: u32| self.high >> n & 1 != 0;
        let l4 = match of(bit(5) || bit(4), bit(29)) {
            // The 82576 finds right ones of SCTP wrong: see its errata.
            Checked::Bad if self.low & SCTP != 0 && self.len() == 60 => Checked::Unknown,
            l4 => l4,
        };
        (of(bit(6), bit(30)), l4)
    }
}

/// The bit of the MAC field in the second word of a data descriptor that has the device keep the time (7.2.2.3).
pub const TX_TIMESYNC: u64 = 1 << 19;

/// RS, in the second word of a data descriptor: the device is to tell when it is done with it.
pub const TX_REPORT: u64 = 1 << 27;
/// DD, there: it is.
pub const TX_DONE: u64 = 1 << 32;

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(WriteBack { low: 0, high: 1 << 16 }.is_stamped() && !wb.is_stamped());
        // SCTP of 60 bytes, and of 64.
        assert_eq!(WriteBack { low: 0x400, high: 0x3c_2000_0021 }.checked().1, Checked::Unknown);
        assert_eq!(WriteBack { low: 0x400, high: 0x40_2000_0021 }.checked().1, Checked::Bad);
    }
}

//! Advanced descriptors as words: what the driver writes, and what the device writes back (82576 datasheet, 7.1.5 and 7.2.2).
//!
//! A descriptor is two 64-bit words, little-endian in memory. Pure functions: no memory is touched here.

use wholebar_core::mem::{Buf, Checked, L4, Offload};

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

/// The second word of a data descriptor (7.2.2.3) of a packet of `total` bytes, less report status; the first is the buffer's address.
/// `work` is [`tx_work`]'s.
#[inline(always)]
pub fn tx_data(len: u32, total: u32, ends: bool, work: u64) -> u64 {
    // DTYP 0011b (data), IFCS (the device appends the frame's checksum), DEXT (advanced); PAYLEN is the whole packet's.
    const DATA: u64 = 0b0011 << 20 | 1 << 25 | 1 << 29;
    u64::from(len) | DATA | u64::from(ends) << 24 | u64::from(total) << 46 | work
}

/// What the data descriptors of a packet say of the work that there is: VLE, IXSM, TXSM. A context descriptor comes before.
pub fn tx_work(offload: Option<Offload>, vlan: bool) -> u64 {
    let (l3, l4) = offload.map_or((false, false), |o| (o.l3, o.l4.is_some()));
    u64::from(vlan) << 30 | u64::from(l3) << 40 | u64::from(l4) << 41
}

/// A context descriptor (7.2.2.2): what the device has to know of headers, and the VLAN tag.
pub fn tx_context(offload: Option<Offload>, vlan: Option<u16>) -> [u64; 2] {
    let offload = offload.unwrap_or(Offload { l2_len: 14, ..Offload::default() });
    let low = u64::from(offload.l3_len) | u64::from(offload.l2_len) << 9 | u64::from(vlan.unwrap_or(0)) << 16;
    // DTYP 0010b (context), DEXT; IPV4; L4T.
    let l4 = u64::from(offload.l4 == Some(L4::Tcp)) << 11;
    [low, 0b0010 << 20 | 1 << 29 | u64::from(!offload.ipv6) << 10 | l4 | u64::from(offload.l4_len) << 40]
}

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
    use wholebar_core::mem::{Arena, ArenaOptions, Pool};

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
    fn data_descriptors_are_as_the_datasheet_has_them() {
        // DTALEN, DTYP, DCMD (IFCS, DEXT, EOP) below; PAYLEN in bits 31:14 of the upper half.
        assert_eq!(tx_data(60, 60, true, 0), 0x2330_003c | 60 << 46);
        assert_eq!(tx_data(2048, 9000, false, 0), 0x2230_0800 | 9000 << 46);
        let offload = Offload { l2_len: 14, l3_len: 20, l3: true, l4: Some(L4::Tcp), ..Offload::default() };
        assert_eq!(tx_work(Some(offload), true), 1 << 30 | 0x300 << 32);
        assert_eq!((tx_work(None, false), tx_work(None, true)), (0, 1 << 30));
    }

    #[test]
    fn context_descriptors_are_as_the_datasheet_has_them() {
        let tcp = Offload { l2_len: 14, l3_len: 20, l4_len: 32, l3: true, l4: Some(L4::Tcp), ..Offload::default() };
        let [low, high] = tx_context(Some(tcp), Some(0x6123));
        assert_eq!((low, high), (0x6123_1c14, 0x2020_0c00 | 32 << 40));
        let udp6 = Offload { l2_len: 18, l3_len: 40, ipv6: true, l4: Some(L4::Udp), ..Offload::default() };
        assert_eq!(tx_context(Some(udp6), None), [18 << 9 | 40, 0x2020_0000]);
        assert_eq!(tx_context(None, Some(5))[0], 5 << 16 | 14 << 9);
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

//! The 82576's advanced transmit descriptors as words (datasheet, 7.2.2). Pure functions: no memory is touched here.

use wholebar_core::mem::{L4, Offload};

/// The second word of a data descriptor (7.2.2.3) of a packet of `payload` bytes, less report status; the first is the buffer's address.
/// `work` is [`tx_work`]'s.
#[inline(always)]
pub fn tx_data(len: u32, payload: u32, ends: bool, work: u64) -> u64 {
    // DTYP 0011b (data), IFCS (the device appends the frame's checksum), DEXT (advanced); PAYLEN is the whole packet's, less headers
    // that are repeated before segments.
    const DATA: u64 = 0b0011 << 20 | 1 << 25 | 1 << 29;
    u64::from(len) | DATA | u64::from(ends) << 24 | u64::from(payload) << 46 | work
}

/// What the data descriptors of a packet say of the work that there is: VLE, TSE, IXSM, TXSM. A context descriptor comes before.
pub fn tx_work(offload: Option<Offload>, vlan: bool) -> u64 {
    let vlan = u64::from(vlan) << 30;
    let Some(offload) = offload else { return vlan };
    let segment = offload.segment > 0;
    let (l3, l4) = (offload.l3 || (segment && !offload.ipv6), offload.l4.is_some() || segment);
    vlan | u64::from(segment) << 31 | u64::from(l3) << 40 | u64::from(l4) << 41
}

/// A context descriptor (7.2.2.2): what the device has to know of headers, and the VLAN tag.
pub fn tx_context(offload: Option<Offload>, vlan: Option<u16>) -> [u64; 2] {
    let offload = offload.unwrap_or(Offload { l2_len: 14, ..Offload::default() });
    let low = u64::from(offload.l3_len) | u64::from(offload.l2_len) << 9 | u64::from(vlan.unwrap_or(0)) << 16;
    // DTYP 0010b (context), DEXT; IPV4; L4T; L4LEN, MSS.
    let l4 = u64::from(offload.l4 == Some(L4::Tcp) || offload.segment > 0) << 11;
    let cut = u64::from(offload.l4_len) << 40 | u64::from(offload.segment) << 48;
    [low, 0b0010 << 20 | 1 << 29 | u64::from(!offload.ipv6) << 10 | l4 | cut]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_descriptors_are_as_the_datasheet_has_them() {
        // DTALEN, DTYP, DCMD (IFCS, DEXT, EOP) below; PAYLEN in bits 31:14 of the upper half.
        assert_eq!(tx_data(60, 60, true, 0), 0x2330_003c | 60 << 46);
        assert_eq!(tx_data(2048, 9000, false, 0), 0x2230_0800 | 9000 << 46);
        let offload = Offload { l2_len: 14, l3_len: 20, l3: true, l4: Some(L4::Tcp), ..Offload::default() };
        assert_eq!(tx_work(Some(offload), true), 1 << 30 | 0x300 << 32);
        assert_eq!((tx_work(None, false), tx_work(None, true)), (0, 1 << 30));
        let tso = Offload { l3: false, l4_len: 20, segment: 1460, ..offload };
        assert_eq!(tx_work(Some(tso), false), 1 << 31 | 0x300 << 32, "each segment wants a checksum of IPv4's header");
        assert_eq!(tx_work(Some(Offload { ipv6: true, ..tso }), false), 1 << 31 | 0x200 << 32);
    }

    #[test]
    fn context_descriptors_are_as_the_datasheet_has_them() {
        let tcp = Offload { l2_len: 14, l3_len: 20, l4_len: 32, l3: true, l4: Some(L4::Tcp), ..Offload::default() };
        let [low, high] = tx_context(Some(tcp), Some(0x6123));
        assert_eq!((low, high), (0x6123_1c14, 0x2020_0c00 | 32 << 40));
        let udp6 = Offload { l2_len: 18, l3_len: 40, ipv6: true, l4: Some(L4::Udp), ..Offload::default() };
        assert_eq!(tx_context(Some(udp6), None), [18 << 9 | 40, 0x2020_0000]);
        assert_eq!(tx_context(None, Some(5))[0], 5 << 16 | 14 << 9);
        let tso = Offload { segment: 1448, l4: None, ..tcp };
        assert_eq!(tx_context(Some(tso), None)[1], 0x2020_0c00 | 32 << 40 | 1448 << 48);
    }
}

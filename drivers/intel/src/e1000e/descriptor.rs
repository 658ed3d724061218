//! The 82574's extended transmit descriptors as words (datasheet, 7.2.4 to 7.2.7). Pure functions: no memory is touched here.

use wholebar_core::mem::{L4, Offload};

/// DEXT, in the second word: not a legacy descriptor.
const EXTENDED: u64 = 1 << 29;
/// TSE, there: TCP segmentation.
const SEGMENT: u64 = 1 << 26;

/// The second word of a data descriptor, less report status; the first is the buffer's address. `work` is [`tx_work`]'s.
#[inline(always)]
pub fn tx_data(len: u32, ends: bool, work: u64) -> u64 {
    // DTYP 1 (data); EOP, and IFCS (the device appends the frame's checksum).
    let end = if ends { 1 << 24 | 1 << 25 } else { 0 };
    u64::from(len) | 1 << 20 | EXTENDED | end | work
}

/// What the data descriptors of a packet say of the work that there is: VLE with the tag, IXSM, TXSM, TSE.
pub fn tx_work(offload: Option<Offload>, vlan: Option<u16>) -> u64 {
    let tag = vlan.map_or(0, |tag| 1 << 30 | u64::from(tag) << 48);
    let Some(offload) = offload else { return tag };
    let segment = offload.segment > 0;
    let (l3, l4) = (offload.l3 || (segment && !offload.ipv6), offload.l4.is_some() || segment);
    tag | u64::from(l3) << 40 | u64::from(l4) << 41 | if segment { SEGMENT } else { 0 }
}

/// A context descriptor: where headers and checksums are, and how a packet of `payload` bytes behind them is cut.
pub fn tx_context(offload: Offload, payload: u32) -> [u64; 2] {
    let (ip, l4) = (u64::from(offload.l2_len), u64::from(offload.l4_start()));
    let tcp = offload.l4 == Some(L4::Tcp) || offload.segment > 0;
    let l4_checksum = l4 + if tcp { 16 } else { 6 };
    // IPCSS, IPCSO, IPCSE: the last byte of IPv4's header. TUCSS, TUCSO; TUCSE 0 is the packet's end.
    let (ip_checksum, ip_end) = if offload.ipv6 { (0, 0) } else { (ip + 10, l4.saturating_sub(1)) };
    let low = ip | ip_checksum << 8 | ip_end << 16 | l4 << 32 | l4_checksum << 40;
    // DTYP 0 (context); TUCMD: TCP, IPv4.
    let high = EXTENDED | u64::from(tcp) << 24 | u64::from(!offload.ipv6) << 25;
    match offload.segment {
        0 => [low, high],
        mss => {
            let headers = l4 + u64::from(offload.l4_len);
            [low, high | SEGMENT | u64::from(payload) | headers << 40 | u64::from(mss) << 48]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_descriptors_are_as_the_datasheet_has_them() {
        assert_eq!(tx_data(60, true, 0), 0x2310_003c);
        assert_eq!(tx_data(2048, false, tx_work(None, Some(0x6064))), 0x6064_0000_6010_0800);
        let udp = Offload { l2_len: 14, l3_len: 20, l3: true, l4: Some(L4::Udp), ..Offload::default() };
        assert_eq!(tx_work(Some(udp), None), 0x300 << 32);
        let tso =
            Offload { l2_len: 14, l3_len: 20, l4_len: 20, l4: Some(L4::Tcp), segment: 1460, ..Offload::default() };
        assert_eq!(tx_work(Some(tso), None), 0x300 << 32 | 1 << 26, "each segment wants a checksum of IPv4's header");
        assert_eq!(tx_work(Some(Offload { ipv6: true, ..tso }), None), 0x200 << 32 | 1 << 26);
    }

    #[test]
    fn context_descriptors_are_as_the_datasheet_has_them() {
        let udp = Offload { l2_len: 14, l3_len: 20, l3: true, l4: Some(L4::Udp), ..Offload::default() };
        assert_eq!(tx_context(udp, 100), [0x0000_2822_0021_180e, 0x2200_0000]);
        let tcp6 = Offload { l2_len: 18, l3_len: 40, ipv6: true, l4: Some(L4::Tcp), ..Offload::default() };
        assert_eq!(tx_context(tcp6, 100), [0x0000_4a3a_0000_0012, 0x2100_0000]);
        let tso =
            Offload { l2_len: 14, l3_len: 20, l4_len: 32, l4: Some(L4::Tcp), segment: 1448, ..Offload::default() };
        assert_eq!(tx_context(tso, 30000), [0x0000_3222_0021_180e, 0x05a8_4200_2700_7530]);
    }
}

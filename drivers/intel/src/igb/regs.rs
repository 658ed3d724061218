//! What is the 82576's own among the registers: offsets in BAR0 and bits, as chapter 8 of its datasheet has them. What it shares with its family is
//! in [`crate::regs`]. No access happens here.

/// Bytes of BAR0 that hold registers.
pub const SIZE: u64 = 0x2_0000;
/// Queues of each direction.
pub const QUEUES: u16 = 16;
/// Addresses that are compared exactly.
pub const ADDRESSES: usize = 24;

/// LINK_MODE: 00b is the internal copper PHY.
pub const CTRL_EXT_LINK_MODE: u32 = 3 << 22;

/// PFRSTD, virtual functions are told that a reset is over.
pub const CTRL_EXT_RESET_DONE: u32 = 1 << 14;

/// VMMB, a virtual function wrote into its mailbox, or was reset: a bit of ICR and IMS.
pub const CAUSE_MAILBOX: u32 = 1 << 8;

/// General Purpose Interrupt Enable (8.8.15).
pub const GPIE: u64 = 0x1514;
/// NSICR (reading ICR clears it), Multiple_MSIX, EIAME (an MSI-X message masks its vector as EIAM says), PBA_support.
pub const GPIE_MSIX: u32 = 1 | 1 << 4 | 1 << 30 | 1 << 31;
/// Extended Interrupt Mask Set (8.8.3): a bit a vector.
pub const EIMS: u64 = 0x1524;
/// Extended Interrupt Mask Clear (8.8.4).
pub const EIMC: u64 = 0x1528;
/// Extended Interrupt Auto Clear (8.8.5).
pub const EIAC: u64 = 0x152c;
/// Extended Interrupt Auto Mask (8.8.6).
pub const EIAM: u64 = 0x1530;
/// Extended Interrupt Cause (8.8.1): writing a one clears a bit.
pub const EICR: u64 = 0x1580;
/// Interrupt vector of "other" causes, bits 15:8 (8.8.14).
pub const IVAR_MISC: u64 = 0x1740;
/// An entry of IVAR or IVAR_MISC is valid.
pub const IVAR_VALID: u32 = 0x80;

/// The interval in EITR: microseconds, bits 14:2.
pub const EITR_INTERVAL_SHIFT: u32 = 2;

/// Interrupt Throttle of a vector (8.8.12).
pub fn eitr(vector: u32) -> u64 {
    0x1680 + 4 * u64::from(vector)
}

/// The vectors of queues `n` and `n + 8`, `n` below 8 (8.8.13): bytes for receive `n`, transmit `n`, receive `n + 8`, transmit `n + 8`.
pub fn ivar(n: u32) -> u64 {
    0x1700 + 4 * u64::from(n)
}

/// Receive Long Packet Maximum Length (8.10), in bytes, header and frame checksum included.
pub const RLPML: u64 = 0x5004;
/// MRQC: RSS over all queues.
pub const MRQC_RSS: u32 = 2;

/// MRQC: a queue for each pool (7.10.3.2).
pub const MRQC_POOLS: u32 = 3;
/// VT_CTL: how packets find their pools (8.10).
pub const VT_CTL: u64 = 0x581c;
/// DEF_PL, the pool of what is nobody's: its first bit.
pub const VT_CTL_DEFAULT: u32 = 7;
/// Dis_Def_Pool: what is nobody's is dropped.
pub const VT_CTL_NO_DEFAULT: u32 = 1 << 29;
/// Rpl_En: what is for several pools goes to all of them.
pub const VT_CTL_REPLICATE: u32 = 1 << 30;
/// DTXSWC: how packets that pools send are switched (8.12): bits 7:0 have pools send with their own addresses only.
pub const DTXSWC: u64 = 0x3500;
/// Loopback_En: from pool to pool.
pub const DTXSWC_LOOPBACK: u32 = 1 << 31;
/// RPLOLR: what is done to packets of several pools, as bits of [`pool`].
pub const RPLOLR: u64 = 0x5af0;
/// Pools that receive (8.10), a bit each.
pub const VFRE: u64 = 0x0c8c;
/// Pools that send (8.12), a bit each.
pub const VFTE: u64 = 0x0c90;
/// Virtual functions that were reset (8.14), a bit each: writing a one clears it.
pub const VFLRE: u64 = 0x0c88;
/// MBVFICR: who has written, in bits 7:0, and read, in bits 23:16 (8.14): writing a one clears it.
pub const MBVFICR: u64 = 0x0c80;
/// MBVFIMR: whose writing interrupts.
pub const MBVFIMR: u64 = 0x0c84;
/// Entries of the table of VLANs and their pools.
pub const VLANS: u16 = 32;
/// VLVF: the entry is valid.
pub const VLVF_ENABLE: u32 = 1 << 31;
/// VLVF: its pools, a bit each: the first one.
pub const VLVF_POOLS: u32 = 12;
/// P2VMAILBOX: STS, this side has written.
pub const P2V_WRITTEN: u32 = 1;
/// P2VMAILBOX: ACK, this side has read.
pub const P2V_READ: u32 = 1 << 1;
/// P2VMAILBOX: PFU, this side has the mailbox.
pub const P2V_TAKEN: u32 = 1 << 3;

/// VMOLR: what pool `n` receives, and what is done to it (8.10), as bits of [`pool`].
pub fn vmolr(n: u16) -> u64 {
    0x5ad0 + 4 * u64::from(n)
}

/// VLVF: entry `n` of the table of VLANs and their pools (8.10).
pub fn vlvf(n: u16) -> u64 {
    0x5d00 + 4 * u64::from(n)
}

/// P2VMAILBOX: whose turn virtual function `n`'s mailbox is (8.14).
pub fn p2v_mailbox(n: u16) -> u64 {
    0x0c00 + 4 * u64::from(n)
}

/// Virtual function `n`'s mailbox: 16 words (8.14).
pub fn mailbox(n: u16) -> u64 {
    0x0800 + 0x40 * u64::from(n)
}

/// RAH: the address is pool `n`'s.
pub fn rah_pool(n: u16) -> u32 {
    1 << (18 + n)
}

/// What a pool receives (VMOLR).
pub mod pool {
    /// RLPML: the longest frame, in bytes, if LONG says so.
    pub const LONGEST: u32 = 0x3fff;
    /// LPE.
    pub const LONG: u32 = 1 << 16;
    /// AUPE, packets of no VLAN.
    pub const UNTAGGED: u32 = 1 << 24;
    /// ROMPE, groups by their hash.
    pub const HASHED_GROUPS: u32 = 1 << 25;
    /// ROPE, single stations by their hash.
    pub const UNICAST: u32 = 1 << 26;
    /// BAM.
    pub const BROADCAST: u32 = 1 << 27;
    /// MPME, all groups.
    pub const MULTICAST: u32 = 1 << 28;
    /// STRVLAN, VLAN tags are taken off.
    pub const STRIP_VLAN: u32 = 1 << 30;
    /// STRCRC, the checksum of the frame is taken off.
    pub const STRIP_CRC: u32 = 1 << 31;
}

/// SYSTIML, the clock's lower half (8.16); its upper one, SYSTIMH, is the next register, as with those that follow.
pub const SYSTIM: u64 = 0xb600;
/// TIMINCA: the clock's period, and what is added in each.
pub const TIMINCA: u64 = 0xb608;
/// TSYNCTXCTL: whether packets that are sent are stamped.
pub const TSYNCTXCTL: u64 = 0xb614;
/// TXSTMPL: when the last one was sent. Reading its upper half makes room for the next.
pub const TXSTMP: u64 = 0xb618;
/// TSYNCRXCTL: whether packets that are received are stamped, and which.
pub const TSYNCRXCTL: u64 = 0xb620;
/// RXSTMPL: when the last one came.
pub const RXSTMP: u64 = 0xb624;
/// RXSATRL: its source and sequence.
pub const RXSATR: u64 = 0xb62c;
/// TSYNCRXCFG: the kind of message that is stamped, where TSYNCRXCTL does not say: 0 is Sync.
pub const TSYNCRXCFG: u64 = 0x5f50;
/// TSYNCTXCTL and TSYNCRXCTL: there is a stamp.
pub const TSYNC_VALID: u32 = 1;
/// The same: EN.
pub const TSYNC_ENABLE: u32 = 1 << 4;
/// TSYNCRXCTL: all event messages of version 2.
pub const TSYNCRXCTL_EVENTS: u32 = 5 << 1;
/// ETQF, the filter of Ethernet types that is for PTP (8.10): the fourth of eight, as with Linux.
pub const ETQF_PTP: u64 = 0x5cb0 + 4 * 3;
/// ETQF: the filter is on.
pub const ETQF_ENABLE: u32 = 1 << 26;
/// ETQF: what it finds is stamped.
pub const ETQF_1588: u32 = 1 << 30;

/// Software Semaphore.
pub const SWSM: u64 = 0x5b50;
/// SMBI: set by reading.
pub const SWSM_SMBI: u32 = 1;
/// SWESMBI: set by writing, unless firmware has it.
pub const SWSM_SWESMBI: u32 = 1 << 1;
/// Software-Firmware Synchronization: who uses the EEPROM and the PHYs.
pub const SW_FW_SYNC: u64 = 0x5b5c;

/// What a queue has besides [`crate::regs::queue`].
pub mod queue {
    /// SRRCTL, Split and Replication Receive Control (8.10.2): receive only.
    pub const SPLIT: u64 = 0x0c;
    /// RQDPC, packets dropped since the queue had no descriptors: receive only.
    pub const DROPPED: u64 = 0x30;

    /// CONTROL: the queue is enabled.
    pub const ENABLE: u32 = 1 << 25;
    /// CONTROL of receive: prefetch at 8, host at 8, write back each.
    pub const RX_THRESHOLDS: u32 = 8 | 8 << 8 | 1 << 16;
    /// CONTROL of transmit: prefetch at 8, host at 1, write back what asks for it at once.
    pub const TX_THRESHOLDS: u32 = 8 | 1 << 8;
    /// SPLIT: advanced descriptors with one buffer.
    pub const SPLIT_ONE_BUFFER: u32 = 1 << 25;
    /// SPLIT: packets are dropped where the queue has no descriptors, so that other queues go on.
    pub const SPLIT_DROP: u32 = 1 << 31;
    /// DROPPED: its bits.
    pub const DROPPED_MASK: u32 = 0xfff;
}

/// Where the registers of receive queue `n` are.
pub fn rx_queue(n: u16) -> u64 {
    0xc000 + 0x40 * u64::from(n)
}

/// Where the registers of transmit queue `n` are.
pub fn tx_queue(n: u16) -> u64 {
    0xe000 + 0x40 * u64::from(n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::regs::queue::TAIL;

    #[test]
    fn registers_of_queues_and_vectors_are_where_they_are() {
        assert_eq!((rx_queue(0), rx_queue(15), tx_queue(15) + TAIL), (0xc000, 0xc3c0, 0xe3d8));
        assert_eq!((ivar(7), eitr(9)), (0x171c, 0x16a4));
    }
}

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

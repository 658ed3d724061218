//! The 82576's registers: offsets in BAR0 and bits, as chapter 8 of its datasheet has them. Only those that the driver uses. No access
//! happens here.

/// What a register of a device that is gone reads as.
pub const GONE: u32 = u32::MAX;
/// Bytes of BAR0 that hold registers.
pub const SIZE: u64 = 0x2_0000;
/// Queues of each direction.
pub const QUEUES: u16 = 16;

/// Device Control (8.2.1).
pub const CTRL: u64 = 0x0000;
/// GIO Master Disable: no more requests on the bus.
pub const CTRL_MASTER_DISABLE: u32 = 1 << 2;
/// SLU, Set Link Up.
pub const CTRL_SET_LINK_UP: u32 = 1 << 6;
/// FRCSPD and FRCDPLX, speed and duplex by hand.
pub const CTRL_FORCE: u32 = 1 << 11 | 1 << 12;
/// RST, Device Reset; clears itself.
pub const CTRL_RESET: u32 = 1 << 26;
/// VME, VLAN tags are taken off.
pub const CTRL_VLAN_STRIP: u32 = 1 << 30;

/// Device Status (8.2.2).
pub const STATUS: u64 = 0x0008;
/// GIO Master Enable Status: requests may be under way on the bus.
pub const STATUS_MASTER: u32 = 1 << 19;

/// EEPROM Control (8.4).
pub const EEC: u64 = 0x0010;
/// EE_PRES, there is an EEPROM.
pub const EEC_PRESENT: u32 = 1 << 8;
/// Auto_RD, the EEPROM was read after a reset.
pub const EEC_AUTO_READ: u32 = 1 << 9;

/// EEPROM Read (8.4).
pub const EERD: u64 = 0x0014;
/// START.
pub const EERD_START: u32 = 1;
/// DONE.
pub const EERD_DONE: u32 = 1 << 1;

/// Extended Device Control (8.2.3).
pub const CTRL_EXT: u64 = 0x0018;
/// LINK_MODE: 00b is the internal copper PHY.
pub const CTRL_EXT_LINK_MODE: u32 = 3 << 22;
/// DRV_LOAD, a driver is there.
pub const CTRL_EXT_DRIVER: u32 = 1 << 28;

/// MDI Control (8.2.4): the PHY's registers.
pub const MDIC: u64 = 0x0020;
/// OP, write.
pub const MDIC_WRITE: u32 = 1 << 26;
/// OP, read.
pub const MDIC_READ: u32 = 2 << 26;
/// R, ready.
pub const MDIC_READY: u32 = 1 << 28;
/// E, error.
pub const MDIC_ERROR: u32 = 1 << 30;

/// Interrupt Cause Read (8.8.7).
pub const ICR: u64 = 0x00c0;
/// Interrupt Mask Set (8.8.9).
pub const IMS: u64 = 0x00d0;
/// Interrupt Mask Clear (8.8.10).
pub const IMC: u64 = 0x00d8;
/// LSC, Link Status Change: a bit of these.
pub const CAUSE_LINK: u32 = 1 << 2;

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

/// Receive Control (8.10.1).
pub const RCTL: u64 = 0x0100;
/// RXEN.
pub const RCTL_ENABLE: u32 = 1 << 1;
/// UPE, all unicast.
pub const RCTL_UNICAST: u32 = 1 << 3;
/// MPE, all multicast.
pub const RCTL_MULTICAST: u32 = 1 << 4;
/// LPE, packets of more than 1522 bytes.
pub const RCTL_LONG: u32 = 1 << 5;
/// BAM, broadcast.
pub const RCTL_BROADCAST: u32 = 1 << 15;
/// VFE, VLAN filter.
pub const RCTL_VLAN_FILTER: u32 = 1 << 18;
/// SECRC, the checksum of the frame is taken off.
pub const RCTL_STRIP_CRC: u32 = 1 << 26;

/// Transmit Control (8.12.1).
pub const TCTL: u64 = 0x0400;
/// EN.
pub const TCTL_ENABLE: u32 = 1 << 1;
/// PSP, short packets are padded.
pub const TCTL_PAD: u32 = 1 << 3;
/// CT, collision threshold: 15, as the standard has it.
pub const TCTL_COLLISIONS: u32 = 0xf << 4;

/// Receive Checksum Control (8.10).
pub const RXCSUM: u64 = 0x5000;
/// IPOFLD, TUOFLD: IPv4, TCP and UDP are checked.
pub const RXCSUM_CHECK: u32 = 1 << 8 | 1 << 9;
/// PCSD, the descriptor has the hash, and no checksum of the packet.
pub const RXCSUM_HASH: u32 = 1 << 13;
/// Receive Long Packet Maximum Length (8.10), in bytes, header and frame checksum included.
pub const RLPML: u64 = 0x5004;
/// Multicast Table Array, 128 registers (8.10).
pub const MTA: u64 = 0x5200;
/// VLAN Filter Table Array, 128 registers (8.10).
pub const VFTA: u64 = 0x5600;
/// Multiple Receive Queues Command (8.10).
pub const MRQC: u64 = 0x5818;
/// Redirection Table, 32 registers of four entries (8.10).
pub const RETA: u64 = 0x5c00;
/// RSS Random Key, 10 registers (8.10).
pub const RSSRK: u64 = 0x5c80;
/// MRQC: RSS over all queues.
pub const MRQC_RSS: u32 = 2;
/// RAH: the address is valid.
pub const RAH_VALID: u32 = 1 << 31;
/// Addresses that are compared exactly.
pub const ADDRESSES: usize = 24;

/// Software Semaphore.
pub const SWSM: u64 = 0x5b50;
/// SMBI: set by reading.
pub const SWSM_SMBI: u32 = 1;
/// SWESMBI: set by writing, unless firmware has it.
pub const SWSM_SWESMBI: u32 = 1 << 1;
/// Software-Firmware Synchronization: who uses the EEPROM and the PHYs.
pub const SW_FW_SYNC: u64 = 0x5b5c;

/// Receive Address Low and High of entry `n` (8.10).
pub fn receive_address(n: usize) -> (u64, u64) {
    let n = n as u64;
    let low = if n < 16 { 0x5400 + 8 * n } else { 0x54e0 + 8 * (n - 16) };
    (low, low + 4)
}

/// A queue's registers, at these offsets from its own place. Both directions have them there.
pub mod queue {
    /// Descriptor Base Address Low: 128-byte aligned.
    pub const BASE_LOW: u64 = 0x00;
    /// Descriptor Base Address High.
    pub const BASE_HIGH: u64 = 0x04;
    /// Descriptor ring length, in bytes: a multiple of 128.
    pub const LENGTH: u64 = 0x08;
    /// SRRCTL, Split and Replication Receive Control (8.10.2): receive only.
    pub const SPLIT: u64 = 0x0c;
    /// Descriptor Head.
    pub const HEAD: u64 = 0x10;
    /// Descriptor Tail: the doorbell.
    pub const TAIL: u64 = 0x18;
    /// RXDCTL (8.10.10), TXDCTL (8.12.13): thresholds, and whether the queue is enabled.
    pub const CONTROL: u64 = 0x28;
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

/// The statistics that the device keeps (8.19), each with its name. They are cleared by reading, and stay at their ends.
pub const COUNTERS: &[(u64, &str)] = &[
    (0x4000, "crc_errors"),
    (0x4004, "alignment_errors"),
    (0x400c, "rx_errors"),
    (0x4010, "rx_missed"),
    (0x4040, "rx_length_errors"),
    (0x4048, "pause_on_received"),
    (0x404c, "pause_on_sent"),
    (0x4050, "pause_off_received"),
    (0x4054, "pause_off_sent"),
    (0x4074, "rx_packets"),
    (0x4078, "rx_broadcast"),
    (0x407c, "rx_multicast"),
    (0x4080, "tx_packets"),
    (0x40a0, "rx_no_buffers"),
    (0x40a4, "rx_undersize"),
    (0x40a8, "rx_fragments"),
    (0x40ac, "rx_oversize"),
    (0x40b0, "rx_jabber"),
    (0x40d0, "rx_packets_all"),
    (0x40d4, "tx_packets_all"),
    (0x40f0, "tx_multicast"),
    (0x40f4, "tx_broadcast"),
];

/// Those of 64 bits: the low half, which is to be read first. Header and frame checksum count.
pub const COUNTERS_64: &[(u64, &str)] =
    &[(0x4088, "rx_bytes"), (0x4090, "tx_bytes"), (0x40c0, "rx_bytes_all"), (0x40c8, "tx_bytes_all")];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_of_queues_and_addresses_are_where_they_are() {
        assert_eq!((rx_queue(0), rx_queue(15), tx_queue(15) + queue::TAIL), (0xc000, 0xc3c0, 0xe3d8));
        assert_eq!(receive_address(1), (0x5408, 0x540c));
        assert_eq!((receive_address(16), receive_address(23)), ((0x54e0, 0x54e4), (0x5518, 0x551c)));
        assert_eq!((ivar(7), eitr(9)), (0x171c, 0x16a4));
    }
}

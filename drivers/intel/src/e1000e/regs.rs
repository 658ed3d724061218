//! What is the 82574's own among the registers: offsets in BAR0 and bits, by the names of chapter 10 of its datasheet. What it shares with its family is
//! in [`crate::regs`]. No access happens here.

/// Bytes of BAR0 that hold registers.
pub const SIZE: u64 = 0x2_0000;
/// Queues of each direction.
pub const QUEUES: u16 = 2;
/// Addresses that are compared exactly. There is one more, which management firmware may have.
pub const ADDRESSES: usize = 15;

/// CTRL: a reserved bit, which Linux clears.
pub const CTRL_RESERVED: u32 = 1 << 29;
/// CTRL_EXT: reserved bits, of which Linux sets the first and clears the second.
pub const CTRL_EXT_SET: u32 = 1 << 22;
pub const CTRL_EXT_CLEAR: u32 = 1 << 23;
/// CTRL_EXT.PBA_CLR: unmasking a cause clears the pending bit of its vector.
pub const CTRL_EXT_PBA_CLEAR: u32 = 1 << 31;

/// VLAN Ether Type.
pub const VET: u64 = 0x0038;
/// VET: 802.1Q.
pub const VET_8021Q: u32 = 0x8100;

/// Interrupt Cause Set.
pub const ICS: u64 = 0x00c8;
/// Extended Interrupt Auto Clear: causes that the message of their vector clears, and masks.
pub const EIAC: u64 = 0x00dc;
/// Interrupt Vector Allocation: four bits for each of the causes of queues, and for all others.
pub const IVAR: u64 = 0x00e4;
/// An entry of IVAR is valid; its lower bits are the vector.
pub const IVAR_VALID: u32 = 1 << 3;
/// RXQ0, receive queue 0 has a packet: a cause. That of queue 1 is the next bit.
pub const CAUSE_RX_QUEUE: u32 = 1 << 20;
/// OTHER: a cause that is no queue's.
pub const CAUSE_OTHER: u32 = 1 << 24;

/// Extended Interrupt Throttle of a vector, in units of 256 ns.
pub fn eitr(vector: u32) -> u64 {
    0x00e8 + 4 * u64::from(vector)
}

/// RCTL.FLXBUF: a buffer's size in KiB begins here, at most 15.
pub const RCTL_BUFFER_SHIFT: u32 = 27;
/// RCTL.FLXBUF.
pub const RCTL_BUFFER: u32 = 15 << RCTL_BUFFER_SHIFT;

/// TCTL.COLD, collision distance: that of full duplex.
pub const TCTL_DISTANCE: u32 = 0x3f << 12;
/// TCTL: all bits of CT and COLD.
pub const TCTL_FIELDS: u32 = 0x3f_fff0;

/// Transmit Arbitration Count of queue 0.
pub const TARC0: u64 = 0x3840;
/// TARC0: a reserved bit, which Linux sets, and four that it clears.
pub const TARC0_SET: u32 = 1 << 26;
pub const TARC0_CLEAR: u32 = 15 << 27;

/// Extended Configuration Control.
pub const EXTCNF_CTRL: u64 = 0x0f00;
/// MDIO_SW: the PHY and the NVM are software's.
pub const EXTCNF_SOFTWARE: u32 = 1 << 5;

/// Receive Filter Control.
pub const RFCTL: u64 = 0x5008;
/// EXSTEN: extended receive descriptors.
pub const RFCTL_EXTENDED: u32 = 1 << 15;
/// MRQC: RSS over both queues.
pub const MRQC_RSS: u32 = 1;
/// MRQC: what the hash can be made from: IPv4 and IPv6, with and without TCP. There is none of UDP.
pub const MRQC_FIELDS: u32 = 0x1f << 16;
/// An entry of the redirection table has the queue in this bit.
pub const RETA_SHIFT: u32 = 7;

/// PCIe Control.
pub const GCR: u64 = 0x5b00;
/// GCR: reserved bits that Linux sets (one is `L1_ACT_WITHOUT_L0S_RX`).
pub const GCR_SET: u32 = 1 << 22 | 1 << 27;
/// PCIe Control 2.
pub const GCR2: u64 = 0x5b64;
/// GCR2: a reserved bit that Linux sets.
pub const GCR2_SET: u32 = 1;

/// CONTROL of a queue that receives (RXDCTL): thresholds are descriptors; prefetch below 32, at 4 in memory, write back each.
pub const RX_CONTROL: u32 = 1 << 24 | 1 << 16 | 4 << 8 | 32;
/// CONTROL of a queue that sends (TXDCTL): likewise, with bit 22, which must be set.
pub const TX_CONTROL: u32 = 1 << 24 | 1 << 22 | 1 << 16 | 1 << 8 | 31;

/// Where the registers of receive queue `n` are.
pub const fn rx_queue(n: u16) -> u64 {
    0x2800 + 0x100 * n as u64
}

/// Where the registers of transmit queue `n` are.
pub const fn tx_queue(n: u16) -> u64 {
    0x3800 + 0x100 * n as u64
}

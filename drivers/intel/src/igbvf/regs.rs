//! Registers of a virtual function of the 82576 that are not where the physical function has them (8.26).

/// Bytes of BAR0 that hold registers.
pub const SIZE: u64 = 0x4000;
/// Where the registers of receive queue 0 are.
pub const RX_QUEUE: u64 = 0x2800;
/// Where the registers of transmit queue 0 are.
pub const TX_QUEUE: u64 = 0x3800;

/// V2PMAILBOX: whose turn the mailbox is (8.14.2).
pub const MAILBOX: u64 = 0x0c40;
/// REQ: a request is written.
pub const WRITTEN: u32 = 1;
/// ACK: what the other side has written was read.
pub const READ: u32 = 1 << 1;
/// VFU: this side has the mailbox.
pub const TAKEN: u32 = 1 << 2;
/// PFSTS: the other side has written. Reading clears it, and the next ones but RSTI.
pub const OTHER_WRITTEN: u32 = 1 << 4;
/// PFACK: the other side has read.
pub const OTHER_READ: u32 = 1 << 5;
/// RSTI: the physical function is being reset.
pub const RESETTING: u32 = 1 << 6;
/// RSTD: its reset is over.
pub const RESET_DONE: u32 = 1 << 7;
/// The mailbox's words (8.14.4).
pub const MEMORY: u64 = 0x0800;

//! Feature identifiers (NVM Express Base 2.0, 5.27.1; NVM Command Set 1.0, 4.1.3).

/// Arbitration.
pub const ARBITRATION: u8 = 0x01;
/// Power Management.
pub const POWER_MANAGEMENT: u8 = 0x02;
/// Temperature Threshold.
pub const TEMPERATURE_THRESHOLD: u8 = 0x04;
/// Error Recovery.
pub const ERROR_RECOVERY: u8 = 0x05;
/// Volatile Write Cache: bit 0 enables it.
pub const VOLATILE_WRITE_CACHE: u8 = 0x06;
/// Number of Queues; set when the controller is opened.
pub const NUMBER_OF_QUEUES: u8 = 0x07;
/// Interrupt Coalescing.
pub const INTERRUPT_COALESCING: u8 = 0x08;
/// Interrupt Vector Configuration.
pub const INTERRUPT_VECTOR_CONFIGURATION: u8 = 0x09;
/// Write Atomicity Normal.
pub const WRITE_ATOMICITY: u8 = 0x0a;
/// Asynchronous Event Configuration; set when the controller is opened.
pub const ASYNC_EVENT_CONFIGURATION: u8 = 0x0b;

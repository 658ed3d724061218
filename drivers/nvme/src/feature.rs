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
/// Autonomous Power State Transition: 256 bytes of data.
pub const AUTONOMOUS_POWER_STATES: u8 = 0x0c;
/// Host Memory Buffer: can be read; set by [`Options::host_memory_buffer`](crate::Options::host_memory_buffer) alone.
pub const HOST_MEMORY_BUFFER: u8 = 0x0d;
/// Timestamp: 8 bytes of data.
pub const TIMESTAMP: u8 = 0x0e;
/// Keep Alive Timer.
pub const KEEP_ALIVE: u8 = 0x0f;
/// Host Controlled Thermal Management.
pub const THERMAL_MANAGEMENT: u8 = 0x10;
/// Non-Operational Power State Config.
pub const NON_OPERATIONAL_POWER_STATE: u8 = 0x11;
/// Host Behavior Support: 512 bytes of data.
pub const HOST_BEHAVIOR: u8 = 0x16;
/// Sanitize Config.
pub const SANITIZE: u8 = 0x17;
/// Flexible Data Placement (of NVM Express Base 2.1, 5.1.25.1.20): by endurance group.
pub const FDP: u8 = 0x1d;
/// Flexible Data Placement Events (of NVM Express Base 2.1, 5.1.25.1.21): by placement handle.
pub const FDP_EVENTS: u8 = 0x1e;
/// Software Progress Marker.
pub const SOFTWARE_PROGRESS: u8 = 0x80;
/// Host Identifier: 8 or 16 bytes of data.
pub const HOST_IDENTIFIER: u8 = 0x81;
/// Reservation Notification Mask: of a namespace.
pub const RESERVATION_MASK: u8 = 0x82;
/// Reservation Persistence: of a namespace.
pub const RESERVATION_PERSISTENCE: u8 = 0x83;
/// Namespace Write Protection Config.
pub const WRITE_PROTECTION: u8 = 0x84;

/// Each feature's name, as nvme-cli takes it, and the bytes of its data structure; 0 for those whose value is dword 11.
pub const NAMES: &[(u8, &str, u32)] = &[
    (ARBITRATION, "arbitration", 0),
    (POWER_MANAGEMENT, "power-mgmt", 0),
    (TEMPERATURE_THRESHOLD, "temp-thresh", 0),
    (ERROR_RECOVERY, "error-recovery", 0),
    (VOLATILE_WRITE_CACHE, "vwc", 0),
    (NUMBER_OF_QUEUES, "num-queues", 0),
    (INTERRUPT_COALESCING, "irq-coalesce", 0),
    (INTERRUPT_VECTOR_CONFIGURATION, "irq-config", 0),
    (WRITE_ATOMICITY, "write-atomicity", 0),
    (ASYNC_EVENT_CONFIGURATION, "async-event", 0),
    (AUTONOMOUS_POWER_STATES, "auto-pst", 256),
    (HOST_MEMORY_BUFFER, "host-mem-buf", 4096),
    (TIMESTAMP, "timestamp", 8),
    (KEEP_ALIVE, "kato", 0),
    (THERMAL_MANAGEMENT, "hctm", 0),
    (NON_OPERATIONAL_POWER_STATE, "nopsc", 0),
    (HOST_BEHAVIOR, "host-behavior", 512),
    (SANITIZE, "sanitize", 0),
    (FDP, "fdp", 0),
    (FDP_EVENTS, "fdp-events", 510),
    (SOFTWARE_PROGRESS, "sw-progress", 0),
    (HOST_IDENTIFIER, "host-id", 8),
    (RESERVATION_MASK, "resv-mask", 0),
    (RESERVATION_PERSISTENCE, "resv-persist", 0),
    (WRITE_PROTECTION, "write-protect", 0),
];

/// Which value of a feature Get Features returns (5.15, SEL).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Select {
    /// The current one.
    #[default]
    Current,
    /// The one that it has as delivered.
    Default,
    /// The one that was saved.
    Saved,
    /// What can be done with it: bit 0 saved, bit 1 set a namespace, bit 2 changed.
    Supported,
}

//! The driver's errors: each a sentence with its facts.

use std::time::Duration;
use wholebar_core::net::PortError;

/// An error of this driver.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The framework's error: the device, its registers, memory or interrupts. It is also that of a device that is gone, or has ended.
    #[error(transparent)]
    Core(#[from] wholebar_core::Error),
    /// The device is none for this driver.
    #[error("{device} is not a device for this driver: {why}")]
    Unfit {
        /// The device.
        device: String,
        /// What it is, or lacks.
        why: String,
    },
    /// Neither the EEPROM nor the registers hold a station address.
    #[error(
        "{device} has no Ethernet address: its EEPROM's checksum is {checksum:#06x} instead of 0xbaba, and no address was loaded from it"
    )]
    NoAddress {
        /// The device.
        device: String,
        /// The EEPROM's checksum.
        checksum: u16,
    },
    /// A queue holds something that the device may not write there.
    #[error("{device}: receive queue {queue} {fault}; the device will be reset")]
    Broken {
        /// The device.
        device: String,
        /// The queue.
        queue: u16,
        /// What was found.
        fault: Fault,
    },
    /// What was asked for cannot be: a number of queues, a queue, sizes, buffers, addresses.
    #[error(transparent)]
    Port(#[from] PortError),
    /// What was asked of the device's clock cannot be.
    #[error("{device}: {why}")]
    Timesync {
        /// The device.
        device: String,
        /// What is wrong.
        why: String,
    },
    /// The physical function was reset, and with it this virtual one's queues and settings.
    #[error("{device}: its physical function was reset, or does not know it: it has to begin anew")]
    PhysicalReset {
        /// The virtual function.
        device: String,
    },
    /// The physical function's driver does not answer.
    #[error("{device} has waited {waited:?} for {what}")]
    Unserved {
        /// The virtual function.
        device: String,
        /// For what.
        what: &'static str,
        /// How long.
        waited: Duration,
    },
    /// A virtual function asked for what it may not have.
    #[error("{device}: its physical function has denied it {what}")]
    Denied {
        /// The virtual function.
        device: String,
        /// What it asked for.
        what: &'static str,
    },
}

impl From<Error> for wholebar_core::DriverError {
    fn from(error: Error) -> Self {
        Self::new(error)
    }
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A fault of the device's: something in a ring that it may not write there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// More bytes than the buffer was said to have.
    #[error("has {length} bytes in descriptor {index}, whose buffer has room for {room}")]
    Length {
        /// The descriptor.
        index: u32,
        /// What the device wrote, in bytes.
        length: u32,
        /// What it was told, in bytes.
        room: u32,
    },
}

//! The driver's errors: each a sentence with its facts.

use std::time::Duration;

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
    /// The port cannot have this number of queues.
    #[error("{device}: {asked} queues that {direction} cannot be had: there are 1 to {most}")]
    Queues {
        /// The device.
        device: String,
        /// `receive` or `send`.
        direction: &'static str,
        /// What was asked for.
        asked: u16,
        /// How many there are.
        most: u16,
    },
    /// The queue does not exist, or is in use.
    #[error("{device}: queue {queue} that {direction} cannot be had: {why}")]
    NoQueue {
        /// The device.
        device: String,
        /// `receives` or `sends`.
        direction: &'static str,
        /// The queue.
        queue: u16,
        /// Why.
        why: &'static str,
    },
    /// A queue cannot have this number of descriptors.
    #[error("{device}: a queue of {asked} descriptors cannot be had: it must be a power of two from {least} to {most}")]
    Descriptors {
        /// The device.
        device: String,
        /// What was asked for.
        asked: u16,
        /// The fewest.
        least: u16,
        /// The most.
        most: u16,
    },
    /// The port cannot have this MTU.
    #[error("{device}: an MTU of {asked} cannot be had: it is from {least} to {most} bytes")]
    Mtu {
        /// The device.
        device: String,
        /// What was asked for, in bytes.
        asked: u16,
        /// The smallest.
        least: u16,
        /// The largest.
        most: u16,
    },
    /// The buffers are too small for packets.
    #[error("{device}: buffers of {size} bytes with {headroom} of headroom cannot receive: {why}")]
    Buffers {
        /// The device.
        device: String,
        /// What a buffer of the pool holds, in bytes.
        size: u32,
        /// What is left in front, in bytes.
        headroom: u16,
        /// What would do.
        why: String,
    },
    /// A way of spreading packets that the device hasn't.
    #[error("{device}: packets cannot be spread like that: {why}")]
    Rss {
        /// The device.
        device: String,
        /// What is wrong with it.
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
    /// An address that cannot be set.
    #[error("{device}: {why}")]
    Address {
        /// The device.
        device: String,
        /// What is wrong with it.
        why: String,
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

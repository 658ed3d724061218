//! The driver's errors: each a sentence with its facts.

/// An error of this driver.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What the core says of any device, its registers, memory and interrupts; that it is gone, or ended, among it.
    #[error(transparent)]
    Core(#[from] wholebar_core::Error),
    /// It isn't what this driver is for.
    #[error("{device} is not a device for this driver: {why}")]
    Unfit {
        /// The device.
        device: String,
        /// What it is, or lacks.
        why: String,
    },
    /// Neither its EEPROM nor its registers hold an address.
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
    /// More queues than there are, or none.
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
    /// A queue that the port was not opened with, or that is in use.
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
    /// A number of descriptors that cannot be had.
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
    /// An MTU that cannot be had.
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
    /// Buffers too small for packets.
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

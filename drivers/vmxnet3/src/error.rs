//! The driver's errors: each a sentence with its facts.

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
    /// The device refused to start with what it was told.
    #[error("{device} was not activated: its answer is {status:#x}")]
    Refused {
        /// The device.
        device: String,
        /// What it answered.
        status: u32,
    },
    /// A queue holds something that the device may not write there.
    #[error("{device}: queue {queue} that {direction} {fault}; the device will be reset")]
    Broken {
        /// The device.
        device: String,
        /// `receives` or `sends`.
        direction: &'static str,
        /// The queue.
        queue: u16,
        /// What was found.
        fault: Fault,
    },
    /// The device stopped a queue.
    #[error("{device} stopped queue {queue} that {direction}, because {why} ({error:#x}); it will be reset")]
    Stopped {
        /// The device.
        device: String,
        /// `receives` or `sends`.
        direction: &'static str,
        /// The queue.
        queue: u16,
        /// What its error means.
        why: &'static str,
        /// The device's error.
        error: u32,
    },
    /// What was asked for cannot be: a number of queues, a queue, sizes, buffers, addresses.
    #[error(transparent)]
    Port(#[from] PortError),
}

impl From<Error> for wholebar_core::DriverError {
    fn from(error: Error) -> Self {
        Self::new(error)
    }
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A fault of the device's: something in a ring of completions that it may not write there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A completion that names a ring which is not the queue's.
    #[error("completes a buffer of ring {id}, which is not its own")]
    Ring {
        /// The ring, as the device numbers them.
        id: u32,
    },
    /// A completion of a descriptor that the device does not have, or that ends no packet.
    #[error("completes descriptor {index}, which is not in flight")]
    NotInFlight {
        /// The descriptor.
        index: u32,
    },
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
    /// A packet that begins within another, or goes on without having begun.
    #[error("has a part of a packet in descriptor {index} that does not follow from the one before")]
    Order {
        /// The descriptor.
        index: u32,
    },
}

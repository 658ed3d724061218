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
        /// What it lacks.
        why: String,
    },
    /// The device has only the legacy interface, from before VIRTIO 1.0.
    #[error(
        "{device} is a legacy virtio device (it has no VIRTIO 1.0 capabilities), which this driver does not know: make it a modern one (in QEMU, disable-legacy=on)"
    )]
    Legacy {
        /// The device.
        device: String,
    },
    /// The device would reach memory past the IOMMU.
    #[error(
        "{device} does not go through the IOMMU (VIRTIO_F_ACCESS_PLATFORM is not offered), so it would write to memory that is not ours: give it that feature (in QEMU, iommu_platform=on)"
    )]
    Bypass {
        /// The device.
        device: String,
    },
    /// The device does not accept a set of features that it offered.
    #[error("{device} refuses features {features:#x}, all of which it offers")]
    Features {
        /// The device.
        device: String,
        /// What was asked for.
        features: u64,
    },
    /// The device asks for a reset (DEVICE_NEEDS_RESET), or lost DRIVER_OK.
    #[error("{device} does not run any more (its status is {status:#x}): it has to be reset")]
    NeedsReset {
        /// The device.
        device: String,
        /// Its status register.
        status: u8,
    },
    /// A queue holds something that the device may not write there.
    #[error("{device}: queue {queue}: {fault}; it will be reset")]
    Broken {
        /// The device.
        device: String,
        /// The queue.
        queue: u16,
        /// What was found.
        fault: Fault,
    },
    /// The device refused a control command.
    #[error("{device} refused to {what}")]
    Refused {
        /// The device.
        device: String,
        /// What it was asked to do.
        what: &'static str,
    },
    /// The device did not complete a control command in time.
    #[error("{device} did not {what} within {waited:?}: it will be reset")]
    Unanswered {
        /// The device.
        device: String,
        /// What it was asked to do.
        what: &'static str,
        /// How long it was given.
        waited: Duration,
    },
    /// The device's configuration makes no sense.
    #[error("{device}: {what}")]
    Nonsense {
        /// The device.
        device: String,
        /// What.
        what: String,
    },
    /// The device does not have what was asked for.
    #[error("{device}: {what}")]
    Unavailable {
        /// The device.
        device: String,
        /// What, and what it has.
        what: String,
    },
    /// The queue does not exist, or is in use.
    #[error("{device} has no {what} queue {index} to give: it has {count}, and each is given once until it is dropped")]
    NoQueue {
        /// The device.
        device: String,
        /// What kind.
        what: &'static str,
        /// Which.
        index: u16,
        /// How many there are.
        count: u16,
    },
}

impl From<Error> for wholebar_core::DriverError {
    fn from(error: Error) -> Self {
        Self::new(error)
    }
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A fault of the device's: something in a virtqueue that it may not write there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The used index is beyond what can have been used.
    #[error("the device says that it used {by} buffers, and {flying} were in flight")]
    Ahead {
        /// How far it is ahead.
        by: u16,
        /// How far it can be.
        flying: u16,
    },
    /// The buffer is not in flight: it was never posted, was used already, or is not published.
    #[error("the device used buffer {id}, which is not in flight")]
    NotInFlight {
        /// The identifier.
        id: u32,
    },
    /// The device claims to have written more bytes than there was room for.
    #[error("the device says that it wrote {len} bytes to buffer {id}, which has room for {most}")]
    Length {
        /// The identifier.
        id: u32,
        /// What the device says.
        len: u32,
        /// What it could have written.
        most: u32,
    },
    /// A batch of buffers, used in order, has more of them than the index allows.
    #[error("the device used fewer buffers than the one it named follows in order")]
    Batch,
    /// A packet continues in buffers that did not come.
    #[error("the device says that a packet is in {buffers} buffers, and used {came}")]
    Incomplete {
        /// As its header has it.
        buffers: u16,
        /// How many there were.
        came: u16,
    },
}

//! Events that the control plane has for users of a device.

use std::fmt;

/// An event that can happen to any device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceEvent {
    /// The kernel reports an error of the function (AER). The device is reset.
    FunctionError,
    /// The kernel wants the device back: close it soon. (Linux: `VFIO_PCI_REQ_IRQ_INDEX`.)
    UnbindRequest,
    /// The device was reset; queues run again.
    Reset {
        /// The reason.
        why: String,
        /// The queues that were not polled in time: they are lost, and their buffers quarantined.
        lost: Vec<u32>,
    },
    /// The device cannot be used any more.
    Ended {
        /// The reason.
        why: String,
    },
}

impl fmt::Display for DeviceEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FunctionError => f.write_str("the kernel reports an error of the function"),
            Self::UnbindRequest => f.write_str("the kernel wants the device back"),
            Self::Reset { why, lost } if lost.is_empty() => write!(f, "it was reset: {why}"),
            Self::Reset { why, lost } => write!(f, "it was reset, and lost queues {lost:?}: {why}"),
            Self::Ended { why } => write!(f, "it ended: {why}"),
        }
    }
}

/// The events of a driver that needs no enum of its own: `T` is what the driver reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<T> {
    /// An event that the driver reports.
    Driver(T),
    /// An event that can happen to any device.
    Device(DeviceEvent),
}

impl<T> From<DeviceEvent> for Event<T> {
    fn from(event: DeviceEvent) -> Self {
        Self::Device(event)
    }
}

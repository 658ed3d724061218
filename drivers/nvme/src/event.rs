//! Events of a controller: asynchronous events (NVM Express Base 2.0, 5.2), and this driver's response to them.

use crate::log::lid;
use std::fmt;
use wholebar_core::control_plane;

/// An event of a controller. The log page of an [`AsyncEvent`] has been read, so that the controller will report the next.
pub type Event = control_plane::Event<AsyncEvent>;

/// An asynchronous event: dword 0 of the completion.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct AsyncEvent(pub u32);

impl AsyncEvent {
    /// Returns the type: bits 2:0.
    pub fn kind(self) -> u8 {
        (self.0 & 7) as u8
    }

    /// Returns the information: bits 15:8.
    pub fn info(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Returns the identifier of the log page that has the details: bits 23:16.
    pub fn log_page(self) -> u8 {
        (self.0 >> 16) as u8
    }

    /// Returns the standard's name of the event (figures 145 to 149); `None` for one that it does not name.
    pub fn name(self) -> Option<&'static str> {
        Some(match (self.kind(), self.info()) {
            (0, 0) => "Write to Invalid Doorbell Register",
            (0, 1) => "Invalid Doorbell Write Value",
            (0, 2) => "Diagnostic Failure",
            (0, 3) => "Persistent Internal Error",
            (0, 4) => "Transient Internal Error",
            (0, 5) => "Firmware Image Load Error",
            (1, 0) => "NVM subsystem Reliability",
            (1, 1) => "Temperature Threshold",
            (1, 2) => "Spare Below Threshold",
            (2, 0) => "Namespace Attribute Changed",
            (2, 1) => "Firmware Activation Starting",
            (2, 2) => "Telemetry Log Changed",
            (2, 3) => "Asymmetric Namespace Access Change",
            (2, 4) => "Predictable Latency Event Aggregate Log Change",
            (2, 5) => "LBA Status Information Alert",
            (2, 6) => "Endurance Group Event Aggregate Log Page Change",
            (2, 0xef) => "Zone Descriptor Changed",
            (6, 0) => "Reservation Log Page Available",
            (6, 1) => "Sanitize Operation Completed",
            _ => return None,
        })
    }

    /// Whether it says that something happened to reservations: [`Nvme::reservation_notifications`](crate::Nvme::reservation_notifications) has what.
    pub fn is_reservation(self) -> bool {
        (self.kind(), self.info()) == (6, 0)
    }

    /// Whether it says that namespaces changed.
    pub(crate) fn namespaces_changed(self) -> bool {
        (self.kind(), self.info()) == (2, 0)
    }

    /// How much of its log page there is to read, in bytes.
    pub(crate) fn log_bytes(self) -> u32 {
        match self.log_page() {
            lid::ERROR => 64,
            // Changed Namespace List (5.16.1.5): all of it, or it isn't cleared.
            lid::CHANGED_NAMESPACES => 4096,
            _ => 512,
        }
    }
}

impl fmt::Display for AsyncEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name().unwrap_or("event without a name");
        write!(f, "{name} (type {:x}h, information {:02x}h)", self.kind(), self.info())
    }
}

impl fmt::Debug for AsyncEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_names() {
        let event = AsyncEvent(0x0002_0101);
        assert_eq!(event.to_string(), "Temperature Threshold (type 1h, information 01h)");
        assert_eq!((event.log_page(), event.log_bytes()), (2, 512));
        assert_eq!(AsyncEvent(0x0304_7f07).to_string(), "event without a name (type 7h, information 7fh)");
    }
}

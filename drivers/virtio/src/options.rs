//! The options with which a device is opened.

use std::time::Duration;
use wholebar_core::PageSize;
use wholebar_core::bar::MapPolicy;
pub use wholebar_core::control_plane::Service;

/// The options with which a device is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// How much of the device's BARs is mapped.
    pub policy: MapPolicy,
    /// The page size to plan the BARs for; `None` for the device's own.
    pub page: Option<PageSize>,
    /// Whether packed rings are used where the device has them; split rings otherwise.
    pub packed: bool,
    /// Whether event indexes are used where the device has them: fewer notifications, and exact interrupts.
    pub event_idx: bool,
    /// Whether the device is asked to use buffers in order, where it can.
    pub in_order: bool,
    /// Whether buffers of several pieces take one descriptor of their ring, where the device has indirect descriptors: more of them are in flight.
    pub indirect: bool,
    /// How long a request of a block device may take before the device is reset.
    pub timeout: Duration,
    /// How long a command on the control queue may take, and a reset of the device.
    pub admin_timeout: Duration,
    /// How long a send queue may find no room, with the link up, before [`Event::Stalled`](wholebar_core::net::Event::Stalled) reports it.
    pub stall_timeout: Duration,
    /// How long a reset waits for the owner of a queue to poll it.
    pub stop_timeout: Duration,
    /// Which thread does the slow path's work.
    pub service: Service,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            policy: MapPolicy::Auto,
            page: None,
            packed: true,
            event_idx: true,
            in_order: true,
            indirect: true,
            timeout: Duration::from_secs(30),
            admin_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(5),
            stop_timeout: Duration::from_secs(5),
            service: Service::Thread,
        }
    }
}

//! How a device is opened.

use std::time::Duration;
use wholebar_core::PageSize;
use wholebar_core::bar::MapPolicy;

/// How a device is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// How much of its BARs is mapped.
    pub policy: MapPolicy,
    /// A page size to plan BARs for; `None` for the device's own.
    pub page: Option<PageSize>,
    /// Use packed rings where the device has them; else, and otherwise, split ones.
    pub packed: bool,
    /// Use event indexes where the device has them: fewer notifications, and exact interrupts.
    pub event_idx: bool,
    /// Have buffers used in order where the device can.
    pub in_order: bool,
    /// How long a request of a block device may take before the device is reset.
    pub timeout: Duration,
    /// How long a control command may take.
    pub admin_timeout: Duration,
    /// For how long a queue that sends packets may find no room, with the link up, before that is told ([`Event::Stalled`](wholebar_core::net::Event::Stalled)).
    pub stall_timeout: Duration,
    /// How long a queue's owner may take to poll it while the device is to be reset.
    pub stop_timeout: Duration,
    /// Who does the slow path's work.
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
            timeout: Duration::from_secs(30),
            admin_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(5),
            stop_timeout: Duration::from_secs(5),
            service: Service::Thread,
        }
    }
}

/// Who does the slow path's work: configuration changes, resets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Service {
    /// A thread that sleeps until an interrupt, or a queue, wakes it.
    #[default]
    Thread,
    /// Whoever calls `service`, regularly.
    Manual,
}

//! How a device is opened, besides what every port can be asked for.

use std::time::Duration;
use wholebar_core::PageSize;
use wholebar_core::bar::MapPolicy;

/// How a device is opened, besides its [`PortConfig`](wholebar_core::net::PortConfig).
#[derive(Debug, Clone)]
pub struct Options {
    /// How much of BAR0 is mapped.
    pub policy: MapPolicy,
    /// A page size to plan BAR0 for; `None` for the device's own.
    pub page: Option<PageSize>,
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
            stall_timeout: Duration::from_secs(5),
            stop_timeout: Duration::from_secs(5),
            service: Service::Thread,
        }
    }
}

/// Who does the slow path's work: link changes, statistics, health, resets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Service {
    /// A thread that sleeps until an interrupt, or a queue, wakes it.
    #[default]
    Thread,
    /// Whoever calls [`Igb::service`](crate::Igb::service), several times a second.
    Manual,
}

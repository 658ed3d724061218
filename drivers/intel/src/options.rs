//! The options with which a port is opened, besides what every port has.

use std::time::Duration;
use wholebar_core::PageSize;
use wholebar_core::bar::MapPolicy;

/// The options with which a port is opened, besides its [`PortConfig`](wholebar_core::net::PortConfig).
#[derive(Debug, Clone)]
pub struct Options {
    /// How much of BAR0 is mapped.
    pub policy: MapPolicy,
    /// The page size to plan BAR0 for; `None` for the device's own.
    pub page: Option<PageSize>,
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
            stall_timeout: Duration::from_secs(5),
            stop_timeout: Duration::from_secs(5),
            service: Service::Thread,
        }
    }
}

/// Which thread does the slow path's work: link changes, statistics, health checks, resets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Service {
    /// A thread of the driver's, which sleeps until an interrupt or a queue wakes it.
    #[default]
    Thread,
    /// The program's, which calls [`Nic::service`](crate::Nic::service) several times a second.
    Manual,
}

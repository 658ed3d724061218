//! The options with which the driver of a network card opens it, besides what every port has ([`PortConfig`](super::PortConfig)).

use crate::PageSize;
use crate::bar::MapPolicy;
use crate::control_plane::Service;
use std::time::Duration;

/// The options with which a network card is opened, besides its [`PortConfig`](super::PortConfig).
#[derive(Debug, Clone)]
pub struct NicOptions {
    /// How much of the BARs that hold registers is mapped.
    pub policy: MapPolicy,
    /// The page size to plan them for; `None` for the device's own.
    pub page: Option<PageSize>,
    /// How long a send queue may find no room, with the link up, before [`Event::Stalled`](super::Event::Stalled) reports it.
    pub stall_timeout: Duration,
    /// How long a reset waits for the owner of a queue to poll it.
    pub stop_timeout: Duration,
    /// Which thread does the slow path's work.
    pub service: Service,
}

impl Default for NicOptions {
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

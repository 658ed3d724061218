//! Which packets a port receives. Interfaces that have no filters hand over all that comes, so that it is looked at here, as a card would.

use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, Ordering};
use wholebar_core::kernel::Destination;
use wholebar_core::net::Mac;

/// What is received besides what is addressed to the interface, and to everybody.
#[derive(Debug, Default)]
pub(super) struct Filter {
    pub promiscuous: AtomicBool,
    pub all_multicast: AtomicBool,
    pub addresses: RwLock<Vec<Mac>>,
}

impl Filter {
    /// Whether a packet is received. `address` says where it went, which is asked for only where the kind does not tell.
    #[inline]
    pub fn takes(&self, destination: Destination, address: impl FnOnce() -> Mac) -> bool {
        // Relaxed: nothing else is read by these.
        match destination {
            Destination::Host | Destination::Broadcast => true,
            Destination::Outgoing => false,
            _ if self.promiscuous.load(Ordering::Relaxed) => true,
            Destination::Multicast if self.all_multicast.load(Ordering::Relaxed) => true,
            Destination::Multicast | Destination::Other => {
                // The loopback interface has no broadcast address, so that the kernel takes it for a group's there.
                let address = address();
                address == Mac::BROADCAST || self.addresses.read().unwrap_or_else(|e| e.into_inner()).contains(&address)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_received_is_what_was_asked_for() {
        let (group, other) = (Mac([1, 0, 0x5e, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 9]));
        let filter = Filter::default();
        let takes = |destination, address| filter.takes(destination, || address);
        assert!(takes(Destination::Host, Mac::default()) && takes(Destination::Broadcast, Mac::BROADCAST));
        assert!(!takes(Destination::Multicast, group) && !takes(Destination::Other, other));
        *filter.addresses.write().unwrap() = vec![group, other];
        assert!(takes(Destination::Multicast, group) && takes(Destination::Other, other));
        filter.addresses.write().unwrap().clear();
        filter.all_multicast.store(true, Ordering::Relaxed);
        assert!(takes(Destination::Multicast, group) && !takes(Destination::Other, other));
        filter.promiscuous.store(true, Ordering::Relaxed);
        assert!(takes(Destination::Other, other) && !takes(Destination::Outgoing, other));
    }
}

//! Counters of queues, which other threads can read while the queues run.
//!
//! One core writes a queue's counters, with plain stores, once a burst; any thread may read them.

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter that one thread at a time adds to and any thread reads.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds `n`; the counter wraps at 2⁶⁴. A load and a store, no atomic read-modify-write: additions by two threads at once can be lost.
    #[inline(always)]
    pub fn add(&self, n: u64) {
        // Relaxed: a counter orders nothing.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Returns the value.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $crate::net::Count,)*
        }

        impl $name {
            /// Returns each counter's name and value, in the order of their declaration.
            pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($field), self.$field.get()),)*].into_iter()
            }
        }
    };
}
#[cfg(feature = "faults")]
pub(super) use counters;

counters! {
    /// The counters of a receive queue.
    ///
    /// ```
    /// # use wholebar_core as wholebar;
    /// use wholebar::net::RxCounters;
    ///
    /// let counters = RxCounters::default();
    /// counters.packets.add(32);
    /// let shown: Vec<_> = counters.all().filter(|(_, value)| *value > 0).collect();
    /// assert_eq!(shown, [("packets", 32)]);
    /// ```
    RxCounters {
        /// Packets handed to the program.
        packets,
        /// Bytes of those packets.
        bytes,
        /// Calls that returned at least one packet.
        bursts,
        /// Calls at which the pool had fewer buffers than the queue wanted. The device may drop packets then.
        no_buffers,
        /// Doorbells rung to post buffers.
        doorbells,
        /// Packets dropped because the device's description of them made no sense.
        dropped_malformed,
        /// Packets dropped because their parts together exceed the largest packet.
        dropped_too_long,
        /// Interrupts requested.
        armed,
    }
}

counters! {
    /// The counters of a send queue.
    TxCounters {
        /// Packets given to the device.
        packets,
        /// Bytes of those packets.
        bytes,
        /// Calls that took at least one packet.
        bursts,
        /// Calls at which the queue had no room for all packets.
        full,
        /// Doorbells rung to post packets.
        doorbells,
        /// Packets dropped because they are empty, or longer than the device takes.
        dropped_length,
        /// Packets dropped because their chain has more buffers than the device takes.
        dropped_segments,
        /// Packets dropped because they asked for an offload that was not granted, or that makes no sense.
        dropped_offload,
        /// Packets dropped because their arena is not attached to the device.
        dropped_arena,
        /// Packets that were in flight when the device was reset. They may have been sent or not.
        dropped_reset,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_have_names() {
        let counters = TxCounters::default();
        counters.packets.add(3);
        counters.packets.add(4);
        counters.dropped_reset.add(1);
        let all: Vec<_> = counters.all().filter(|(_, n)| *n > 0).collect();
        assert_eq!(all, [("packets", 7), ("dropped_reset", 1)]);
    }
}

//! What queues count, so that anybody can look while they run.
//!
//! One core writes a queue's counters, with plain stores, once a burst; others read them.

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter that one thread at a time adds to.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds. No read-modify-write: there is one writer.
    #[inline(always)]
    pub fn add(&self, n: u64) {
        // Relaxed: a counter orders nothing.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// What it has come to.
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
            /// Each by its name.
            pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($field), self.$field.get()),)*].into_iter()
            }
        }
    };
}
#[cfg(feature = "faults")]
pub(super) use counters;

counters! {
    /// What a queue that receives counts.
    RxCounters {
        /// Packets handed to the program.
        packets,
        /// Their bytes.
        bytes,
        /// Bursts that had a packet in them.
        bursts,
        /// How often the pool had fewer buffers than the queue wanted: then the device may drop packets.
        no_buffers,
        /// How often the device was told of buffers: doorbells rung.
        doorbells,
        /// Packets dropped: what the device said of them made no sense.
        dropped_malformed,
        /// Packets dropped: they came in parts that are more than a packet may be.
        dropped_too_long,
        /// Interrupts asked for.
        armed,
    }
}

counters! {
    /// What a queue that sends counts.
    TxCounters {
        /// Packets given to the device.
        packets,
        /// Their bytes.
        bytes,
        /// Bursts that had a packet in them.
        bursts,
        /// How often there was no room for all of a burst.
        full,
        /// How often the device was told of packets: doorbells rung.
        doorbells,
        /// Packets dropped: empty, or longer than the device takes.
        dropped_length,
        /// Packets dropped: in more buffers than the device takes.
        dropped_segments,
        /// Packets dropped: they asked for an offload that was not granted, or that makes no sense.
        dropped_offload,
        /// Packets dropped: the device was not let into the arena they lie in.
        dropped_arena,
        /// Packets dropped: they were in flight when the device was reset, and may have been sent or not.
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

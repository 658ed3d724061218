//! What a network model counts, and its link, for whoever holds its handle: readable while it runs.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// What happened at a port since it was made.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct NetStats {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl NetStats {
            /// Each by its name.
            pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }

        /// What happened in a poll.
        pub(super) type Counts = NetStats;

        #[derive(Debug, Default)]
        struct Counters {
            $($name: AtomicU64,)*
        }

        impl Counters {
            /// Only the model's thread adds.
            #[inline]
            fn add(&self, counts: &NetStats) {
                $(if counts.$name > 0 {
                    let sum = self.$name.load(Ordering::Relaxed).wrapping_add(counts.$name);
                    self.$name.store(sum, Ordering::Relaxed);
                })*
            }

            fn read(&self) -> NetStats {
                NetStats { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Packets the driver sent that went on the wire.
    tx_packets,
    /// Their bytes, without headers of virtio.
    tx_bytes,
    /// Packets that were not what a driver may send: too short or long, or with a header that makes no sense.
    tx_malformed,
    /// Packets that were sent while there was no link.
    tx_no_carrier,
    /// Packets that the wire lost: since it was asked to, or since its interface or file took no more.
    wire_lost,
    /// Packets that others overtook on the wire.
    wire_reordered,
    /// Packets the driver received.
    rx_packets,
    /// Their bytes, without headers of virtio.
    rx_bytes,
    /// Packets for which the driver had no buffer.
    rx_no_buffer,
    /// Packets for which the driver's buffer was too short.
    rx_too_long,
    /// Packets that were for someone else.
    rx_filtered,
    /// Packets whose header made no sense.
    rx_malformed,
    /// Packets that came while no driver was there, or the link was down.
    rx_no_driver,
}

/// A handle to a network model.
#[derive(Debug)]
pub struct NetHandle {
    counters: Counters,
    link: AtomicBool,
}

impl NetHandle {
    pub(super) fn new() -> Self {
        Self { counters: Counters::default(), link: AtomicBool::new(true) }
    }

    /// What was counted so far.
    pub fn stats(&self) -> NetStats {
        self.counters.read()
    }

    /// Pulls the cable out, or puts it back.
    pub fn set_link(&self, up: bool) {
        self.link.store(up, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn link(&self) -> bool {
        self.link.load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn add(&self, counts: &NetStats) {
        self.counters.add(counts);
    }
}

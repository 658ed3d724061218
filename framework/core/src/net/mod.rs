//! Network devices: the traits of ports and of their queues, bursts of packets, the configuration of a port, and counters.
//!
//! A packet is a [`Buf`](crate::mem::Buf), or a chain of them. Queues receive and send bursts of owned packets; the program chooses which core polls
//! which queue. Configuration, statistics and resets belong to the [`Port`], off the hot path. This module does *not* parse packets.
//!
//! Queues can be wrapped in other queues: [`Traced`] logs bursts, and `Faulty` (feature `faults`) injects faults. `wholebar-capture` has a wrapper that
//! writes packets to a file, and `wholebar-statistics` shows the counters of all queues to other processes.
//!
//! ```
//! # use wholebar_core as wholebar;
//! use wholebar::net::{Burst, RxQueue, TxQueue};
//!
//! /// Forwards what one queue receives to another; returns how many packets the other one took.
//! fn forward(rx: &mut dyn RxQueue, tx: &mut dyn TxQueue, burst: &mut Burst) -> usize {
//!     rx.rx(burst);
//!     let sent = tx.tx(burst);
//!     // Packets for which there was no room stay in the burst. These are dropped: their buffers return to their pools.
//!     burst.give_back();
//!     sent
//! }
//! ```

mod assembly;
mod burst;
mod config;
mod counters;
mod error;
#[cfg(feature = "faults")]
mod faulty;
pub mod gso;
mod options;
mod port;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod traced;
mod watchdog;

pub use assembly::{Assembled, Assembly};
pub use burst::Burst;
pub use config::{HashFields, Mac, NotAMac, Offloads, PortConfig, Rss, Vlans};
pub use counters::{Count, RxCounters, TxCounters};
pub use error::PortError;
#[cfg(feature = "faults")]
pub use faulty::{FaultCounters, Faults, Faulty, NotFaults};
pub use options::NicOptions;
pub use port::{Event, Limits, Link, Port, Statistic};
pub use traced::Traced;
pub use watchdog::{TxWatchdog, TxWatchdogs};

use crate::irq::EventFd;
use crate::reactor::Armed;
pub use crate::reset::QueueState;
use std::sync::Arc;

/// A receive queue, owned by one core.
///
/// DPDK: a receive queue of `rte_ethdev`.
///
/// Every method but [`rx`](Self::rx), [`arm`](Self::arm) and [`disarm`](Self::disarm) only reads. None of them blocks; a queue that nobody polls
/// delays the resets of its device ([`Port::reset`]), so it is polled regularly, or dropped.
///
/// An implementer takes its buffers from one pool, posts new ones for those that it hands out, and hands out a buffer only once the device has
/// finished writing it. A queue around a queue passes on every call, as here:
///
/// ```
/// # use wholebar_core as wholebar;
/// use std::sync::Arc;
/// use wholebar::block::QueueState;
/// use wholebar::irq::EventFd;
/// use wholebar::net::{Burst, RxQueue};
/// use wholebar::reactor::Armed;
///
/// /// Counts the bytes that a queue receives.
/// struct Metered<Q> {
///     queue: Q,
///     bytes: u64,
/// }
///
/// impl<Q: RxQueue> RxQueue for Metered<Q> {
///     fn rx(&mut self, out: &mut Burst) -> usize {
///         let had = out.len();
///         let count = self.queue.rx(out);
///         self.bytes += out[had..].iter().map(|packet| packet.packet_len()).sum::<u64>();
///         count
///     }
///
///     fn state(&self) -> QueueState {
///         self.queue.state()
///     }
///
///     fn wakeup(&self) -> Option<Arc<EventFd>> {
///         self.queue.wakeup()
///     }
///
///     fn arm(&mut self) -> Armed {
///         self.queue.arm()
///     }
///
///     fn disarm(&mut self) {
///         self.queue.disarm();
///     }
/// }
/// ```
pub trait RxQueue: Send {
    /// Appends received packets to `out`, as many as it has room for, and returns their number. (DPDK: `rte_eth_rx_burst`.)
    ///
    /// The queue also posts new buffers to the device in place of those that it handed out. Where its pool is empty it counts that
    /// ([`RxCounters::no_buffers`]) and tries again at the next call. It takes no lock, except to look up an arena that is new to it or for a packet of the
    /// precision time protocol that the device stamped, and makes no system call, unless the device's doorbell is trapped. In every state but [`QueueState::Running`] it returns 0, and takes part in a reset that
    /// is under way.
    fn rx(&mut self, out: &mut Burst) -> usize;

    /// Returns whether the queue can be used.
    fn state(&self) -> QueueState;

    /// Returns the eventfd that is signalled while the queue is armed; `None` for a queue that was opened without interrupts
    /// ([`PortConfig::rx_interrupts`]), which can only be polled.
    fn wakeup(&self) -> Option<Arc<EventFd>>;

    /// Requests an interrupt for the next packet. Call [`rx`](Self::rx) once more after this, and sleep only where that returns 0: a packet that came
    /// before the queue was armed may raise no interrupt. (DPDK: `rte_eth_dev_rx_intr_enable`.)
    ///
    /// Returns [`Armed::No`] where no interrupt would come: the queue has none, or is not running. The caller must not sleep then. Drivers write a
    /// register or a word of the ring.
    fn arm(&mut self) -> Armed;

    /// Turns the interrupt off again, before polling goes on; as cheap as [`arm`](Self::arm). (DPDK: `rte_eth_dev_rx_intr_disable`.)
    fn disarm(&mut self);
}

/// A send queue, owned by one core.
///
/// DPDK: a transmit queue of `rte_ethdev`.
///
/// None of the methods blocks. A queue that nobody calls [`tx`](Self::tx) or [`reclaim`](Self::reclaim) of delays the resets of its device
/// ([`Port::reset`]), so one of the two is called regularly, or the queue dropped.
///
/// An implementer keeps each buffer until the device has finished reading it, and sends packets in the order in which it took them.
///
/// ```
/// # use wholebar_core as wholebar;
/// use wholebar::net::{Burst, QueueState, TxQueue};
///
/// /// Sends all of a burst, and waits until the device is done with it; returns whether the queue went on so long.
/// fn send_all(tx: &mut dyn TxQueue, packets: &mut Burst) -> bool {
///     while !packets.is_empty() || tx.in_flight() > 0 {
///         if tx.state() != QueueState::Running {
///             return false;
///         }
///         // What the queue has no room for stays in the burst; with an empty one, this is a `reclaim`.
///         tx.tx(packets);
///         tx.reclaim();
///     }
///     true
/// }
/// ```
pub trait TxQueue: Send {
    /// Takes packets from the front of `packets`, as many as the queue has room for, and returns their number; the rest stays, in its order. (DPDK:
    /// `rte_eth_tx_burst`.)
    ///
    /// A packet that can never be sent is taken, dropped and counted by cause ([`TxCounters`]); it is part of the returned number. The call rings at
    /// most one doorbell for all packets, takes no lock, except to look up an arena that is new to it, and makes no system call, unless the doorbell
    /// is trapped. In every state but [`QueueState::Running`] the queue takes no packet, and takes part in a reset that is under way.
    fn tx(&mut self, packets: &mut Burst) -> usize;

    /// Frees the buffers of packets that were sent. (DPDK: `rte_eth_tx_done_cleanup`.)
    ///
    /// [`tx`](Self::tx) does so when it needs room. A program that has nothing to send calls `reclaim` instead, so that buffers return to their pools
    /// and a reset can go on.
    fn reclaim(&mut self);

    /// Returns the number of packets that were taken and are not known to be sent, as of the last call of [`tx`](Self::tx) or [`reclaim`](Self::reclaim).
    fn in_flight(&self) -> usize;

    /// Returns whether the queue can be used.
    fn state(&self) -> QueueState;
}

impl<Q: RxQueue + ?Sized> RxQueue for Box<Q> {
    #[inline]
    fn rx(&mut self, out: &mut Burst) -> usize {
        (**self).rx(out)
    }

    fn state(&self) -> QueueState {
        (**self).state()
    }

    fn wakeup(&self) -> Option<Arc<EventFd>> {
        (**self).wakeup()
    }

    fn arm(&mut self) -> Armed {
        (**self).arm()
    }

    fn disarm(&mut self) {
        (**self).disarm();
    }
}

impl<Q: TxQueue + ?Sized> TxQueue for Box<Q> {
    #[inline]
    fn tx(&mut self, packets: &mut Burst) -> usize {
        (**self).tx(packets)
    }

    #[inline]
    fn reclaim(&mut self) {
        (**self).reclaim();
    }

    fn in_flight(&self) -> usize {
        (**self).in_flight()
    }

    fn state(&self) -> QueueState {
        (**self).state()
    }
}

//! Packets: bursts of them, the traits that queues and ports of network drivers have, their configuration, their counters.
//!
//! A packet is a [`Buf`](crate::mem::Buf), or a chain of them. Receiving and sending move bursts of owned packets; which core does it is
//! the program's choice, a queue at a time. What is configured, read or reset is the [`Port`]'s, off the hot path. This module does
//! *not* look into packets.
//!
//! Around any queue, and around each other, go [`Traced`] and `Faulty` (what wires and devices do wrong; with the feature `faults`);
//! `wholebar-capture` has another, a tap into a file, and `wholebar-statistics` shows to other processes what all of them count.

mod burst;
mod config;
mod counters;
#[cfg(feature = "faults")]
mod faulty;
mod port;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod traced;
mod watchdog;

pub use burst::Burst;
pub use config::{HashFields, Mac, NotAMac, Offloads, PortConfig, Rss};
pub use counters::{Count, RxCounters, TxCounters};
#[cfg(feature = "faults")]
pub use faulty::{FaultCounters, Faults, Faulty, NotFaults};
pub use port::{Event, Limits, Link, Port, Statistic};
pub use traced::Traced;
pub use watchdog::TxWatchdog;

pub use crate::block::QueueState;
use crate::irq::EventFd;
use crate::reactor::Armed;
use std::sync::Arc;

/// A queue that receives, owned by one core.
pub trait RxQueue: Send {
    /// Appends packets that have come, as many as `out` has room for; returns how many.
    ///
    /// The queue is given new buffers for those that left it. Where its pool has none, that is counted, and tried again at the next call.
    fn rx(&mut self, out: &mut Burst) -> usize;

    /// Whether it can be used.
    fn state(&self) -> QueueState;

    /// What is signalled for it while it is armed; `None` where it was made to be polled only.
    fn wakeup(&self) -> Option<Arc<EventFd>>;

    /// Asks for an interrupt when the next packet comes. One more [`rx`](Self::rx) has to follow.
    fn arm(&mut self) -> Armed;

    /// Takes that back.
    fn disarm(&mut self);
}

/// A queue that sends, owned by one core.
pub trait TxQueue: Send {
    /// Takes packets from the front, as many as there is room for; returns how many. The rest stays, in its order.
    ///
    /// A packet that can never be sent is taken, dropped and counted, by cause.
    fn tx(&mut self, packets: &mut Burst) -> usize;

    /// Gives back the buffers of packets that were sent. [`tx`](Self::tx) does so when it needs room; who has nothing to send calls this, so that
    /// buffers come home, and resets can go on.
    fn reclaim(&mut self);

    /// How many packets were taken and are not known to be sent.
    fn in_flight(&self) -> usize;

    /// Whether it can be used.
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

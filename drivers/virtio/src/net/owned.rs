//! Queues as their owners have them: they are parked with their device when they are dropped.

use super::rx::AnyReceiver;
use super::tx::AnySender;
use super::{Ethernet, Queue};
use crate::device::Handle;
use std::sync::Arc;
use wholebar_core::irq::EventFd;
use wholebar_core::net::{Burst, QueueState, RxQueue, TxQueue};
use wholebar_core::reactor::Armed;

/// A queue that receives, as its owner has it: parked when it is dropped.
pub(super) struct Rx {
    pub(super) queue: Option<Box<dyn AnyReceiver>>,
    pub(super) index: u16,
    pub(super) home: Arc<Handle<Ethernet>>,
}

/// A queue that sends, as its owner has it.
pub(super) struct Tx {
    pub(super) queue: Option<Box<dyn AnySender>>,
    pub(super) index: u16,
    pub(super) home: Arc<Handle<Ethernet>>,
}

impl RxQueue for Rx {
    #[inline]
    fn rx(&mut self, out: &mut Burst) -> usize {
        self.queue.as_mut().map_or(0, |queue| queue.rx(out))
    }

    fn state(&self) -> QueueState {
        self.queue.as_ref().map_or(QueueState::Gone, |queue| queue.state())
    }

    fn wakeup(&self) -> Option<Arc<EventFd>> {
        self.queue.as_ref().and_then(|queue| queue.wakeup())
    }

    fn arm(&mut self) -> Armed {
        self.queue.as_mut().map_or(Armed::No, |queue| queue.arm())
    }

    fn disarm(&mut self) {
        if let Some(queue) = &mut self.queue {
            queue.disarm();
        }
    }
}

impl Drop for Rx {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.take() {
            self.home.peek(|control| control.park(self.index, Queue::Rx(queue)));
        }
    }
}

impl TxQueue for Tx {
    #[inline]
    fn tx(&mut self, packets: &mut Burst) -> usize {
        self.queue.as_mut().map_or(0, |queue| queue.tx(packets))
    }

    fn reclaim(&mut self) {
        if let Some(queue) = &mut self.queue {
            queue.reclaim();
        }
    }

    fn in_flight(&self) -> usize {
        self.queue.as_ref().map_or(0, |queue| queue.in_flight())
    }

    fn state(&self) -> QueueState {
        self.queue.as_ref().map_or(QueueState::Gone, |queue| queue.state())
    }
}

impl Drop for Tx {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.take() {
            self.home.peek(|control| control.park(self.index, Queue::Tx(queue)));
        }
    }
}

//! A queue's interrupt, for who sleeps until something completes.
//!
//! An NVMe controller interrupts for each completion, whether or not anybody waits for it: a completion queue has no word that says so, and the mask
//! registers are not for MSI-X (NVM Express Base 2.0, 3.1.3.3). So the vector is connected to its eventfd while the queue is armed, and disconnected while it is
//! polled: the controller's interrupts then cost the host nothing. Each is a system call, or a message.

use super::Queue;
use crate::control::QueueFault;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wholebar_core::control_plane::QueueContext;
use wholebar_core::irq::EventFd;
use wholebar_core::reactor::Armed;

/// The longest sleep while commands are in flight, whose age has to be looked at.
const NAP: Duration = Duration::from_secs(1);

/// A vector, and its eventfd.
pub(super) struct Wakeup {
    vector: u32,
    fd: Arc<EventFd>,
}

impl Wakeup {
    /// Connects the vector for the first time, and disconnects it; `None` where it cannot be had, so that the queue is polled.
    pub(super) fn new(context: &QueueContext<QueueFault>, vector: u16) -> Option<Self> {
        let (interrupts, vector) = (context.interrupts()?, u32::from(vector));
        let connected = interrupts.vector(vector).and_then(|fd| interrupts.connect(vector, false).map(|()| fd));
        match connected {
            Ok(fd) => Some(Self { vector, fd }),
            Err(error) => {
                tracing::warn!(vector, %error, "a queue's interrupt cannot be had: it is polled");
                None
            }
        }
    }
}

impl Queue {
    /// Returns the eventfd that is signalled while the queue is armed; `None` where it was not created with [`ANY_VECTOR`](crate::ANY_VECTOR), or none was
    /// left.
    pub fn wakeup(&self) -> Option<Arc<EventFd>> {
        self.wakeup.as_ref().map(|wakeup| wakeup.fd.clone())
    }

    /// Requests an interrupt for the next completion. Call [`poll_each`](Self::poll_each) once more after this, and sleep only where that returns 0. One system
    /// call, or a message.
    pub fn arm(&mut self) -> Armed {
        let Some(wakeup) = self.wakeup.as_ref().filter(|_| self.gate.open()) else { return Armed::No };
        let connected = self.inner.queue_context().interrupts().map(|all| all.connect(wakeup.vector, true));
        // What the controller completed before, in memory of its own, the next poll has to find.
        self.pair.fetch_completions();
        match connected {
            Some(Ok(())) if self.in_flight() == 0 => Armed::Yes,
            Some(Ok(())) => Armed::Until(Instant::now() + self.inner.driver().options.timeout.min(NAP)),
            _ => Armed::No,
        }
    }

    /// Turns the interrupt off again, before polling goes on. One system call, or a message.
    pub fn disarm(&mut self) {
        if let Some(wakeup) = &self.wakeup
            && let Some(interrupts) = self.inner.queue_context().interrupts()
        {
            // Where it stays connected it costs something, and nothing is lost.
            let _ = interrupts.connect(wakeup.vector, false);
        }
        if self.gate.open() {
            self.check_timeouts();
        }
    }
}

//! A queue's part in the reset protocol ([`wholebar_core::reset`]): what to do when its gate isn't open, and how it ended.

use std::time::Duration;
use wholebar_core::net::QueueState;
use wholebar_core::reset::{Gate, Step};

/// A queue's gate.
pub(crate) struct Member(Gate);

/// What is to be done with buffers that the device had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Home {
    /// Nothing yet.
    Wait,
    /// They can go home, and the queue starts over.
    Restart,
    /// They can go home; the queue has ended.
    Ended,
    /// The device may still write them: they are never given back.
    Quarantine,
}

impl Member {
    pub fn new(gate: Gate) -> Self {
        Self(gate)
    }

    /// Whether the queue may go on.
    #[inline(always)]
    pub fn open(&self) -> bool {
        self.0.open()
    }

    /// Takes hands off where that is asked for; `completed` says whether the device did anything of the queue's since it entered.
    #[cold]
    pub fn step(&mut self, completed: bool) -> Home {
        if self.0.open() {
            return Home::Wait;
        }
        match self.0.step(completed) {
            Step::Stop | Step::Abort => Home::Wait,
            Step::Restart => Home::Restart,
            Step::Ended(end) if end.harmless => Home::Ended,
            Step::Ended(_) | Step::Expelled => Home::Quarantine,
        }
    }

    /// The queue has started over.
    pub fn enter(&mut self) {
        self.0.enter();
    }

    /// The queue found a fault, and waits for the next reset; the epoch that it is in step with.
    pub fn close(&mut self) -> Option<u64> {
        let epoch = self.0.epoch();
        self.0.close();
        epoch
    }

    /// The queue is being dropped; whether the device's memory is its own still.
    pub fn leave(&mut self) -> bool {
        let member = self.0.epoch().is_some();
        self.0.leave();
        member
    }

    /// Counts buffers that are never given back.
    pub fn quarantined(&self, buffers: u64) {
        self.0.quarantined(buffers);
    }

    /// Whether the queue can be used; `within` is what it was given to poll.
    pub fn state(&self, queue: &str, within: Duration) -> QueueState {
        self.0.state(queue, within)
    }
}

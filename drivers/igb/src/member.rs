//! A queue's part in the reset protocol ([`wholebar_core::reset`]): what to do when its gate isn't open, and how it ended.

use std::time::Duration;
use wholebar_core::net::QueueState;
use wholebar_core::reset::{End, Gate, Step};

/// A queue's gate, and why it will never open again.
pub(crate) struct Member {
    gate: Gate,
    ending: Option<Ending>,
}

enum Ending {
    Expelled,
    Device(End),
}

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
        Self { gate, ending: None }
    }

    /// Whether the queue may go on.
    #[inline(always)]
    pub fn open(&self) -> bool {
        self.gate.open()
    }

    /// Takes hands off where that is asked for; `completed` says whether the device did anything of the queue's since it entered.
    #[cold]
    pub fn step(&mut self, completed: bool) -> Home {
        match &self.ending {
            Some(Ending::Expelled) => return Home::Quarantine,
            Some(Ending::Device(end)) if end.harmless => return Home::Ended,
            Some(Ending::Device(_)) => return Home::Quarantine,
            None if self.gate.open() => return Home::Wait,
            None => {}
        }
        match self.gate.step(completed) {
            Step::Stop | Step::Abort => Home::Wait,
            Step::Restart => Home::Restart,
            Step::Expelled => {
                self.ending = Some(Ending::Expelled);
                Home::Quarantine
            }
            Step::Ended(end) => {
                let home = if end.harmless { Home::Ended } else { Home::Quarantine };
                self.ending = Some(Ending::Device(end));
                home
            }
        }
    }

    /// The queue has started over.
    pub fn enter(&mut self) {
        self.gate.enter();
    }

    /// The queue found a fault, and waits for the next reset; the epoch that it is in step with.
    pub fn close(&mut self) -> Option<u64> {
        let epoch = self.gate.epoch();
        self.gate.close();
        epoch
    }

    /// The queue is being dropped; whether the device's memory is its own still.
    pub fn leave(&mut self) -> bool {
        let member = self.gate.epoch().is_some();
        self.gate.leave();
        member
    }

    /// Counts buffers that are never given back.
    pub fn quarantined(&self, buffers: u64) {
        self.gate.quarantined(buffers);
    }

    /// Whether the queue can be used; `within` is what it was given to poll.
    pub fn state(&self, queue: &str, within: Duration) -> QueueState {
        match &self.ending {
            None if self.gate.open() => QueueState::Running,
            None => QueueState::Resetting,
            Some(Ending::Device(end)) if end.gone => QueueState::Gone,
            Some(Ending::Device(end)) => QueueState::Failed(end.why.clone()),
            Some(Ending::Expelled) => {
                QueueState::Failed(format!("{queue} was not polled within {within:?} when the device was reset"))
            }
        }
    }
}

//! What every queue does besides its work: it stops for resets, starts over after them, says when it is broken, and translates addresses.

use crate::device::Shared;
use crate::error::{Error, Fault};
use std::sync::Arc;
use wholebar_core::control_plane::Iovas;
use wholebar_core::mem::Buf;
use wholebar_core::net::QueueState;
use wholebar_core::reset::{Gate, InFlight};

/// A queue of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct QueueId {
    pub receives: bool,
    pub index: u16,
}

impl QueueId {
    pub fn rx(index: u16) -> Self {
        Self { receives: true, index }
    }

    pub fn tx(index: u16) -> Self {
        Self { receives: false, index }
    }

    /// The number by which the reset protocol knows it: even ones receive.
    pub fn number(self) -> u32 {
        2 * u32::from(self.index) + u32::from(!self.receives)
    }

    /// What it does.
    pub fn direction(self) -> &'static str {
        if self.receives { "receives" } else { "sends" }
    }

    /// Its name among statistics.
    pub fn name(self) -> String {
        format!("{}{}", if self.receives { "rx" } else { "tx" }, self.index)
    }
}

/// A queue's part in its device's life.
pub(crate) struct Member {
    pub id: QueueId,
    pub shared: Arc<Shared>,
    gate: Gate,
    iovas: Iovas,
}

impl Member {
    /// Joins the device's domain.
    pub fn new(id: QueueId, shared: &Arc<Shared>) -> Self {
        let gate = shared.queue_context.domain().join(id.number());
        Self { id, shared: shared.clone(), gate, iovas: Iovas::default() }
    }

    /// Whether the queue may go on.
    #[inline(always)]
    pub fn is_open(&self) -> bool {
        self.gate.open()
    }

    /// Where a buffer's data is, as the device sees it; `None` where it was not let in there.
    #[inline(always)]
    pub fn iova(&mut self, buf: &Buf) -> Option<u64> {
        self.iovas.of(buf, &self.shared.queue_context)
    }

    /// A ring holds what the device may not write there: hands off, until it was reset.
    #[cold]
    pub fn break_down(&mut self, fault: Fault) {
        let (device, QueueId { index, .. }) = (self.shared.hw.name(), self.id);
        let error = Error::Broken { device, direction: self.id.direction(), queue: index, fault };
        tracing::error!(%error, "a queue is broken");
        if let Some(epoch) = self.gate.epoch() {
            self.gate.close();
            self.shared.queue_context.report_fault(epoch, error);
        }
    }

    /// Takes hands off where that is asked for; `completed` says whether the device did anything of the queue's since it entered.
    #[cold]
    pub fn settle(&mut self, completed: bool) -> InFlight {
        self.gate.settle(completed)
    }

    /// The queue has started over.
    pub fn enter(&mut self) {
        self.gate.enter();
    }

    /// Whether a reset went on without the queue: it never runs again.
    pub fn is_lost(&self) -> bool {
        self.gate.epoch().is_none()
    }

    /// What is done with the buffers of a queue that is dropped: it ends with its device, or was lost.
    pub fn last(&self) -> InFlight {
        let ended = self.shared.queue_context.domain().ended();
        if !self.is_lost() && ended.is_some_and(|end| end.harmless) { InFlight::Free } else { InFlight::Quarantine }
    }

    /// Counts buffers that are never given back.
    pub fn quarantined(&self, buffers: u64) {
        self.gate.quarantined(buffers);
    }

    /// Whether the queue can be used.
    pub fn state(&self) -> QueueState {
        let name = format!("queue {} that {}", self.id.index, self.id.direction());
        self.gate.state(name, self.shared.options.stop_timeout)
    }
}

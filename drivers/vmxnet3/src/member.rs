//! What every queue does besides its work: it stops for resets, starts over after them, says when it is broken, and translates addresses.

use crate::device::Shared;
use crate::error::{Error, Fault};
use std::sync::Arc;
use wholebar_core::mem::{Buf, DmaMapping};
use wholebar_core::net::QueueState;
use wholebar_core::reset::{Gate, Step};

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
    /// The arena used last, and where it is as the device sees it.
    arena: u32,
    base: u64,
    /// The arenas used so far: mapped while this queue is there.
    arenas: Vec<Arc<DmaMapping>>,
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
    /// Joins the device's domain.
    pub fn new(id: QueueId, shared: &Arc<Shared>) -> Self {
        let gate = shared.queue_context.domain().join(id.number());
        Self { id, shared: shared.clone(), gate, arena: u32::MAX, base: 0, arenas: Vec::new() }
    }

    /// Whether the queue may go on.
    #[inline(always)]
    pub fn is_open(&self) -> bool {
        self.gate.open()
    }

    /// Where a buffer's data is, as the device sees it; `None` where it was not let in there.
    #[inline(always)]
    pub fn iova(&mut self, buf: &Buf) -> Option<u64> {
        if buf.arena_id() != self.arena {
            self.find_arena(buf.arena_id())?;
        }
        Some(self.base.wrapping_add(buf.arena_offset()))
    }

    #[cold]
    fn find_arena(&mut self, id: u32) -> Option<()> {
        if self.arenas.iter().all(|mapping| mapping.arena().id() != id) {
            self.arenas.push(self.shared.queue_context.arena(id)?);
        }
        let mapping = self.arenas.iter().find(|mapping| mapping.arena().id() == id)?;
        (self.arena, self.base) = (id, mapping.iova().0);
        Some(())
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
    pub fn step(&mut self, completed: bool) -> Home {
        if self.gate.open() {
            return Home::Wait;
        }
        match self.gate.step(completed) {
            Step::Stop | Step::Abort => Home::Wait,
            Step::Restart => Home::Restart,
            Step::Ended(end) if end.harmless => Home::Ended,
            Step::Ended(_) | Step::Expelled => Home::Quarantine,
        }
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
    pub fn last_step(&self) -> Home {
        let ended = self.shared.queue_context.domain().ended();
        if !self.is_lost() && ended.is_some_and(|end| end.harmless) { Home::Ended } else { Home::Quarantine }
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

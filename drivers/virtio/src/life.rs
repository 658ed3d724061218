//! What every queue does besides its work: it stops for resets, starts over after them, says when it is broken, and translates addresses.

use crate::device::{Record, Shared};
use crate::error::{Error, Fault, Result};
use crate::feature;
use crate::hardware::QueueSetup;
use crate::ring::{Areas, Ring};
use std::sync::Arc;
use std::time::Duration;
use wholebar_core::block::QueueState;
use wholebar_core::control_plane::Iovas;
use wholebar_core::mem::Buf;
use wholebar_core::reset::{Gate, Phase, Step};

/// A queue's part in its device's life.
pub(crate) struct Life {
    gate: Gate,
    iovas: Iovas,
    index: u16,
    /// As the device is told of it.
    setup: QueueSetup,
    areas: Areas,
    shared: Arc<Shared>,
}

impl Life {
    /// Of the virtqueue of `record`, which joins the device's domain.
    pub fn new(record: &Record, shared: &Arc<Shared>) -> Self {
        let index = record.index;
        Self {
            gate: shared.domain.join(index.into()),
            iovas: Iovas::default(),
            index,
            setup: record.setup(),
            areas: record.areas.clone(),
            shared: shared.clone(),
        }
    }

    /// Whether the queue may go on.
    #[inline(always)]
    pub fn is_open(&self) -> bool {
        self.gate.open()
    }

    /// Virtqueue's number.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// What a person calls the device.
    pub fn device(&self) -> String {
        self.shared.hw.name()
    }

    /// How long a request may take.
    pub fn timeout(&self) -> Duration {
        self.shared.options.timeout
    }

    /// Where a buffer's data is as the device sees it; `None` where it was not let in there.
    #[inline(always)]
    pub fn iova(&mut self, buf: &Buf) -> Option<u64> {
        self.iovas.of(buf, &self.shared.queue_context)
    }

    /// The ring holds what the device may not write there: hands off, until it was reset.
    #[cold]
    pub fn break_down(&mut self, fault: Fault) {
        let (device, queue) = (self.shared.hw.name(), self.index);
        tracing::error!(device, queue, %fault, "a queue is broken");
        self.report_fault(Error::Broken { device, queue, fault });
        self.gate.close();
    }

    /// Whether the queue can be reset alone.
    pub fn can_reset_alone(&self) -> bool {
        self.shared.has(feature::RING_RESET)
    }

    /// Resets the queue alone, with VIRTIO_F_RING_RESET: when this returns true, the device knows none of its buffers any more, the ring is as new, and
    /// the queue is closed until [`reopen`](Self::reopen). False where the device is being reset, which ends the queue's buffers, too.
    #[cold]
    pub fn reset_alone<R: Ring>(&mut self, ring: &mut R) -> Result<bool> {
        let Self { gate, areas, setup, shared, .. } = self;
        let empty = || {
            areas.zero();
            ring.restart();
        };
        let done = shared.hw.reset_queue(*setup, || gate.open(), empty);
        // Where it failed nobody knows what the device does with the ring.
        if !matches!(done, Ok(false)) {
            gate.close();
        }
        done
    }

    /// The queue runs again that was reset alone, unless the device is being reset.
    pub fn reopen(&mut self) {
        if self.shared.domain.phase() == Phase::Running {
            self.gate.enter();
        }
    }

    /// Whether a reset of the device went on without the queue.
    pub fn is_lost(&self) -> bool {
        self.gate.epoch().is_none()
    }

    /// A call for help: the device is reset.
    #[cold]
    pub fn report_fault(&self, error: Error) {
        if let Some(epoch) = self.gate.epoch() {
            self.shared.queue_context.report_fault(epoch, error);
        }
    }

    /// Takes hands off where that is asked for; `None` where the gate is open. `completed` says whether the device used any buffer since the queue entered.
    #[cold]
    pub fn step(&mut self, completed: bool) -> Option<Step> {
        (!self.gate.open()).then(|| self.gate.step(completed))
    }

    /// The queue has started over and runs again.
    pub fn enter(&mut self) {
        self.gate.enter();
    }

    /// Never gives buffers back, because the device may still write them.
    pub fn quarantine(&self, bufs: impl Iterator<Item = Buf>) {
        self.quarantined(bufs.map(Buf::quarantine).sum());
    }

    /// Counts buffers that are never given back.
    pub fn quarantined(&self, buffers: u64) {
        self.gate.quarantined(buffers);
    }

    /// Whether the device certainly cannot write this queue's buffers any more. Asked when the queue is dropped, which is when its device
    /// is closed.
    pub fn is_harmless(&self) -> bool {
        let expelled = self.gate.epoch().is_none();
        !expelled && self.shared.domain.ended().is_some_and(|end| end.harmless)
    }

    pub fn state(&self) -> QueueState {
        self.gate.state(format_args!("queue {}", self.index), self.shared.options.stop_timeout)
    }
}

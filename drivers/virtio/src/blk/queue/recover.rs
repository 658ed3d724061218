//! What happens to a queue of a block device besides I/O: requests that take too long, resets, the end.

use super::{Channel, State};
use crate::error::Error;
use crate::ring::Ring;
use std::time::{Duration, Instant};
use wholebar_core::block::{Completion, QueueState, Reject, Status};
use wholebar_core::reset::Step;

/// How often requests in flight are looked at for their age.
const CHECK_INTERVAL: Duration = Duration::from_millis(5);

impl<R: Ring> Channel<R> {
    /// Looks for requests that took too long. There is no abort in virtio: the queue is reset, where the device can do that (VIRTIO_F_RING_RESET), or the
    /// device is, as it also is where a reset of the queue did not help.
    #[cold]
    pub fn check_timeouts_at(&mut self, now: Instant) {
        // While a reset is under way it ends them: it is not asked for once more.
        if now < self.next_check || self.in_flight() == 0 || !self.life.is_open() {
            return;
        }
        self.next_check = now + CHECK_INTERVAL;
        let timeout = self.life.timeout();
        let in_flight = |slot: &&mut super::Slot| matches!(slot.state, State::Whole | State::Part);
        let late = self.slots.iter_mut().filter(in_flight).any(|slot| {
            let seen = *slot.seen.get_or_insert(now);
            now - seen >= timeout || slot.deadline.is_some_and(|deadline| now >= deadline)
        });
        if late && !self.end_alone() {
            let device = self.life.device();
            self.life.report_fault(Error::Unanswered { device, what: "complete a request", waited: timeout });
        }
    }

    /// Resets the queue alone, if that can be; what is in flight is given back by the next polls. False where the device has to be reset.
    fn end_alone(&mut self) -> bool {
        if !self.life.can_reset_alone() || (self.in_vain && !self.ring.has_taken()) {
            return false;
        }
        let (device, queue) = (self.life.device(), self.life.index());
        match self.life.reset_alone(&mut self.ring) {
            Ok(true) => {
                tracing::warn!(device, queue, "a request took too long: its queue was reset");
                (self.reset_alone, self.in_vain) = (true, true);
                true
            }
            // The device is being reset.
            Ok(false) => true,
            Err(error) => {
                tracing::warn!(device, queue, %error, "a queue could not be reset");
                false
            }
        }
    }

    /// Why a queue that does not run takes nothing.
    #[cold]
    pub(super) fn closed(&mut self) -> Reject {
        // With nothing in flight, nothing has to be given back before it starts over.
        let step = self.life.step(self.ring.has_taken());
        if self.in_flight() == 0 {
            match step {
                Some(Step::Restart) => self.restart(),
                Some(Step::Stop) if self.reset_alone => self.reopen(),
                _ => {}
            }
        }
        match self.life.state() {
            QueueState::Running | QueueState::Resetting => Reject::Resetting,
            QueueState::Failed(_) | QueueState::Gone => Reject::Gone,
        }
    }

    fn restart(&mut self) {
        self.free.clear();
        self.free.extend((0..self.slots.len() as u16).rev());
        self.ring.restart();
        (self.reset_alone, self.in_vain) = (false, false);
        self.life.enter();
    }

    /// All that was in flight when the queue was reset alone was given back.
    fn reopen(&mut self) {
        self.reset_alone = false;
        self.life.reopen();
    }

    /// A poll of a queue that does not run: what is in flight is given back once the device cannot write it any more.
    #[cold]
    pub(super) fn poll_closed(&mut self, max: usize, done: &mut dyn FnMut(Completion)) -> usize {
        match self.life.step(self.ring.has_taken()) {
            Some(Step::Stop) if self.reset_alone => {
                let count = self.drain(max, Status::Aborted, false, done);
                if self.in_flight() == 0 {
                    self.reopen();
                }
                count
            }
            None | Some(Step::Stop) => 0,
            Some(Step::Abort) => self.drain(max, Status::Aborted, false, done),
            Some(Step::Restart) => {
                let count = self.drain(max, Status::Aborted, false, done);
                if self.in_flight() == 0 {
                    self.restart();
                }
                count
            }
            Some(Step::Expelled) => self.drain(max, Status::Aborted, true, done),
            Some(Step::Ended(end)) => {
                let status = if end.gone { Status::Gone } else { Status::Aborted };
                self.drain(max, status, !end.harmless, done)
            }
        }
    }

    /// Gives back at most `max` requests that were in flight; or quarantines their buffers. `done` may panic: each request has left the queue when it
    /// is told, and the rest is given back by the next poll.
    fn drain(&mut self, max: usize, status: Status, quarantine: bool, done: &mut dyn FnMut(Completion)) -> usize {
        // The device does no part of any of them any more: what is left are requests.
        self.waiting.clear();
        let mut count = 0;
        for (at, slot) in (0..).zip(self.slots.iter_mut()) {
            if slot.state == State::Free || (count == max && slot.has_request(at)) {
                continue;
            }
            let is_request = slot.has_request(at);
            slot.state = State::Free;
            self.free.push(at);
            if !is_request {
                continue;
            }
            let mut completion = slot.finish(status);
            if quarantine {
                self.life.quarantined(std::mem::take(&mut completion.data).quarantine());
            }
            if !slot.orphan {
                count += 1;
                done(completion);
            }
        }
        count
    }
}

//! What happens to a queue besides I/O: requests in parts, commands that take too long, resets, the end.

use super::slot::State;
use super::{ABORT_REQUESTED, GIVEN_UP, Queue, status, status_of_parts};
use crate::control::QueueFault;
use crate::device::delete_queue;
use crate::error::Fault;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use wholebar_core::block::{Completion, Data, QueueState, Status};
use wholebar_core::reset::Step;

/// How often commands in flight are looked at for their age.
const CHECK_INTERVAL: Duration = Duration::from_millis(5);
/// How long an abort may take at most to have its effect.
const GRACE: Duration = Duration::from_secs(5);

impl Queue {
    /// A command that isn't a whole request completed: the request, if that was its last part.
    #[cold]
    pub(super) fn complete_any(&mut self, cid: u16, code: u16) -> Result<Option<Completion>, Fault> {
        let unknown = Fault::UnknownCommand { qid: self.qid, cid };
        let slot = self.slots.get(cid).ok_or(unknown)?;
        if !self.pair.fetched(slot.posted) && matches!(slot.state, State::Whole | State::Part) {
            return Err(Fault::TooEarly { qid: self.qid, cid, head: self.pair.sq_head() });
        }
        if slot.state != State::Part {
            return Err(unknown);
        }
        let (head, aborting) = (slot.link, slot.aborting);
        slot.state = State::Done;
        // This driver asked for it: to the caller the request was given up, as it is where a reset ends it.
        let code = if aborting && code & 0x7ff == ABORT_REQUESTED { GIVEN_UP } else { code };
        if cid != head {
            self.let_go(cid, aborting);
        }
        let slot = self.slots.get(head).ok_or(unknown)?;
        if status(slot.status) == Status::Ok {
            slot.status = code;
        }
        slot.left = slot.left.saturating_sub(1);
        if !self.unposted.is_empty() {
            self.post_more(head, aborting);
        }
        let slot = self.slots.get(head).ok_or(unknown)?;
        if slot.left > 0 {
            return Ok(None);
        }
        self.result.store(self.pair.result(), Ordering::Relaxed);
        let (mut completion, aborting) = (slot.finish(status_of_parts(slot.status)), slot.aborting);
        self.let_go(head, aborting);
        if !self.checks.is_empty() {
            self.check_protection(head, &mut completion);
        }
        Ok(Some(completion))
    }

    /// A slot is not in flight any more. Its identifier is not used again while an abort of it may be under way.
    fn let_go(&mut self, cid: u16, aborting: bool) {
        if !aborting {
            self.slots.give_back(cid);
        } else if let Some(slot) = self.slots.get(cid) {
            slot.state = State::Retired;
        }
    }

    /// Looks for commands that took too long.
    #[cold]
    pub(super) fn check_timeouts_at(&mut self, now: Instant) {
        if now < self.next_check || self.slots.in_use() == 0 {
            return;
        }
        self.next_check = now + CHECK_INTERVAL;
        let Some(epoch) = self.gate.epoch().filter(|_| self.gate.open()) else { return };
        // Acquire pairs with the Release of the control plane: the aborts lie before the identifiers' next use.
        let aborted = self.aborts_done.load(Ordering::Acquire) == self.aborts_asked;
        let timeout = self.inner.driver().options.timeout;
        let grace = timeout.min(GRACE);
        let millis = |d: Duration| u32::try_from(d.as_millis()).unwrap_or(u32::MAX);
        let time = millis(now - self.started).max(1);
        let mut free = Vec::new();
        for (cid, slot) in self.slots.iter_mut() {
            match slot.state {
                State::Whole | State::Part => {}
                State::Retired if aborted => {
                    free.push(cid);
                    continue;
                }
                State::Free | State::Done | State::Retired => continue,
            }
            if slot.seen == 0 {
                // The clock isn't read when commands are posted: its time begins when it is first seen.
                slot.seen = time;
            }
            let age = time.wrapping_sub(slot.seen);
            let over = slot.deadline.is_some_and(|d| now >= d);
            if !slot.aborting && (over || age >= millis(timeout)) {
                if slot.state == State::Whole {
                    (slot.state, slot.link, slot.left, slot.status) = (State::Part, cid, 1, 0);
                }
                (slot.aborting, slot.seen) = (true, time);
                self.aborts_asked += 1;
                self.inner.queue_context().report_fault(epoch, QueueFault::Overdue { qid: self.qid, cid });
            } else if slot.aborting && age >= millis(grace) {
                slot.seen = time;
                self.inner.queue_context().report_fault(epoch, QueueFault::Stuck { qid: self.qid, cid });
            }
        }
        for cid in free {
            self.slots.give_back(cid);
        }
    }

    /// A poll of a queue that does not run: what is in flight is given back once the device cannot write it any more.
    #[cold]
    pub(super) fn poll_closed(&mut self, max: usize, done: &mut dyn FnMut(Completion)) -> usize {
        match self.step() {
            None | Some(Step::Stop) => 0,
            Some(Step::Abort) => self.drain(max, Status::Aborted, false, done),
            Some(Step::Restart) => {
                let count = self.drain(max, Status::Aborted, false, done);
                if self.slots.in_use() == 0 {
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

    /// Takes hands off where that is asked for; `None` where the gate is open.
    fn step(&mut self) -> Option<Step> {
        // Each command that was posted is in flight, or was completed.
        (!self.gate.open()).then(|| self.gate.step(self.pair.tail() != self.slots.in_use()))
    }

    /// Takes hands off, for who does not poll. With nothing in flight, nothing has to be given back before it starts over.
    pub(super) fn acknowledge_stop(&mut self) {
        if self.step() == Some(Step::Restart) && self.slots.in_use() == 0 {
            self.restart();
        }
    }

    /// Gives back at most `max` requests that were in flight; or quarantines their buffers. `done` may panic: each request has left the queue when it
    /// is told, and the rest is given back by the next poll.
    fn drain(&mut self, max: usize, status: Status, quarantine: bool, done: &mut dyn FnMut(Completion)) -> usize {
        // The controller does none of its commands any more: what is left are requests.
        self.unposted.clear();
        self.checks.clear();
        self.slots.free_all_but_requests();
        let (mut count, mut next) = (0, 0);
        while count < max
            && let Some((cid, mut completion)) = self.slots.take_request(next, status)
        {
            next = cid + 1;
            if quarantine {
                self.gate.quarantined(std::mem::take(&mut completion.data).quarantine());
            }
            count += 1;
            done(completion);
        }
        count
    }

    /// The controller was reset and knows the queue again; its rings are zeroed.
    fn restart(&mut self) {
        self.slots.free_all();
        (self.unposted, self.announce) = (Vec::new(), false);
        self.checks.clear();
        self.pair.restart();
        self.aborts_asked = self.aborts_done.load(Ordering::Acquire);
        self.fault = None;
        self.gate.enter();
    }

    pub(super) fn state_now(&self) -> QueueState {
        self.gate.state(format_args!("queue {}", self.qid), self.inner.driver().options.stop_timeout)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // Nobody waits for it from here on; the controller may still.
        let expelled = self.gate.epoch().is_none();
        self.gate.leave();
        if delete_queue(&self.inner, self.qid) && !expelled {
            // What was in flight has ended: buffers go back to their pools, and rings to their arena.
            self.pair.set_quarantine(false);
            self.lists.set_quarantine(false);
            self.controller_lists.iter().for_each(|part| part.set_quarantine(false));
            if let Some(bounce) = &self.bounce {
                bounce.set_quarantine(false);
            }
        } else {
            for (_, slot) in self.slots.iter_mut() {
                self.gate.quarantined(std::mem::replace(&mut slot.data, Data::None).quarantine());
            }
        }
    }
}

//! Commands of the program's own making on an I/O queue: one at a time, waited for, with data in memory of the driver's.

use super::{Queue, QueueState};
use crate::bounce::Bounce;
use crate::command::{DataPointer, io_name};
use crate::error::{Error, Result};
use crate::raw::{RawCommand, RawCompletion, Transfer};
use crate::status::StatusCode;
use std::time::{Duration, Instant};
use wholebar_core::block::{Data, Op, Request, Status};

impl Queue {
    /// Executes an I/O command of the program's making, and waits for it: `timeout`, and [`Options::timeout`](crate::Options::timeout) at most, after which
    /// it is aborted. A status that is none of success is returned, and is no error. The queue has nothing else in flight. (nvme-cli: `io-passthru`; SPDK:
    /// `spdk_nvme_ctrlr_cmd_io_raw`.)
    ///
    /// Whatever is in its dwords, the controller reads and writes memory of the driver's alone. It copies, and may allocate: it is not for the loop that does
    /// I/O.
    ///
    /// # Errors
    /// [`Error::NotSent`] for commands that contradict their data, or whose namespace has its metadata in a buffer of its own;
    /// [`Error::TooMuchData`] above [`Nvme::max_transfer`](crate::Nvme::max_transfer); [`Error::QueueBusy`] with commands in flight;
    /// [`Error::Resetting`] while the controller is being reset; [`Error::GivenUp`] where it took too long or was ended by a reset;
    /// [`Gone`](wholebar_core::Error::Gone) or [`Ended`](wholebar_core::Error::Ended) where the controller can't be used.
    pub fn execute(
        &mut self,
        command: &RawCommand,
        mut data: Transfer<'_>,
        timeout: Option<Duration>,
    ) -> Result<RawCompletion> {
        let inner = self.inner.clone();
        let driver = inner.driver();
        let device = driver.hw.name();
        command.check_io(&device, &driver.controller, &driver.namespaces.list(), &data, driver.max_transfer())?;
        if !self.gate.open() {
            self.acknowledge_stop();
        }
        if self.state_now() != QueueState::Running {
            inner.check()?;
            return Err(Error::Resetting { device });
        }
        // What was aborted before may be done with by now.
        self.check_timeouts();
        let in_flight = self.in_flight();
        if in_flight > 0 {
            return Err(Error::QueueBusy { device, qid: self.qid, in_flight });
        }
        let mut entry = command.entry();
        if command.has_data() {
            let DataPointer { low, high, .. } = Bounce::of(&mut self.bounce, &driver.hw, data.len())?.fill(&data)?;
            (entry[3], entry[4]) = (low, high);
        }
        let posted = self.pair.tail();
        let Some((cid, slot)) = self.slots.claim() else {
            return Err(Error::QueueBusy { device, qid: self.qid, in_flight });
        };
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        slot.fill(Request { tag: 0, nsid: command.nsid, op: Op::Flush, data: Data::None, deadline }, posted);
        entry[0] |= u64::from(cid) << 16;
        self.pair.post_entry(entry);
        self.ring();
        let mut status = None;
        while self.poll_each(1, |done| status = Some(done.status)) == 0 {
            self.check_timeouts();
            std::thread::yield_now();
        }
        // Of the entry that was taken last, which is this command's.
        let result = self.pair.result() as u32;
        self.pair.clear(posted);
        let status = match status {
            Some(Status::Ok) => StatusCode::SUCCESS,
            Some(Status::Device(code)) => StatusCode(code),
            Some(Status::Gone) => {
                inner.check()?;
                return Err(driver.hw.gone("a command ended with it"));
            }
            Some(Status::Aborted) | None => {
                inner.check()?;
                return Err(Error::GivenUp { device, command: io_name(command.opcode) });
            }
        };
        if let Some(bounce) = &self.bounce {
            bounce.take(&mut data)?;
        }
        Ok(RawCompletion { status, result })
    }
}

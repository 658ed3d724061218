//! Writes that say where their data goes, and the reclaim units behind placements (NVM Express Base 2.1, 7.3 and 7.4: I/O Management Receive and Send).

use super::Queue;
use crate::command::{io, io_name};
use crate::error::{Error, Result};
use crate::fdp::{Placement, ReclaimUnit};
use crate::protection::Protection;
use crate::raw::{RawCommand, Transfer};
use wholebar_core::block::{Op, Reject, Rejected, Request};

/// Management operations of I/O Management Receive and Send: reclaim unit handle status, and update.
const STATUS: u32 = 1;
const UPDATE: u32 = 1;
/// How many reclaim units are asked for first.
const FIRST: usize = 64;

impl Queue {
    /// Posts a write whose data goes where `placement` says: every command of it has that. `protection` is that of
    /// [`submit_with_metadata`](Self::submit_with_metadata), where the namespace has metadata. (SPDK: `io_flags` and `cdw13` of
    /// `spdk_nvme_ns_cmd_write_ext`.)
    ///
    /// # Errors
    /// [`Rejected`], with the request and the reason: [`Reject::Invalid`] where the request is no write; the others of
    /// [`submit`](Self::submit) and [`submit_with_metadata`](Self::submit_with_metadata). A placement that isn't there is no error of the driver's: the
    /// controller writes wherever it likes then, or refuses the command.
    pub fn submit_placed(
        &mut self,
        req: Request,
        placement: Placement,
        protection: Option<Protection>,
    ) -> Result<(), Rejected> {
        match req.op {
            Op::Write { .. } => self.submit_tagged(req, protection, placement),
            _ => Err(Rejected { req, why: Reject::Invalid("a placement is a write's") }),
        }
    }

    /// Returns the placement identifiers of a namespace, with the reclaim unit that each refers to (I/O Management Receive), and waits for it. The queue has
    /// nothing else in flight. (nvme-cli: `fdp status`.)
    ///
    /// # Errors
    /// [`Error::NotOffered`] where the controller has no flexible data placement; [`Error::Refused`] with the controller's status, as `FDP Disabled`; the
    /// others of [`execute`](Self::execute).
    pub fn placements(&mut self, nsid: u32) -> Result<Vec<ReclaimUnit>> {
        self.has_fdp()?;
        let mut count = FIRST;
        loop {
            let mut bytes = vec![0; ReclaimUnit::bytes(count)];
            let command = RawCommand {
                opcode: io::MANAGEMENT_RECEIVE,
                nsid,
                cdw10: STATUS,
                // NUMD is 0's based.
                cdw11: (bytes.len() / 4 - 1) as u32,
                ..RawCommand::default()
            };
            self.manage(&command, Transfer::Read(&mut bytes))?;
            let (all, units) = ReclaimUnit::parse(&bytes);
            if all <= count {
                return Ok(units);
            }
            count = all;
        }
    }

    /// Has placement identifiers refer to other, empty reclaim units (I/O Management Send), and waits for it. The queue has nothing else in flight. (nvme-cli:
    /// `fdp update`.)
    ///
    /// # Errors
    /// [`Error::NotOffered`] for no identifiers, or more than 65,536; the others of [`placements`](Self::placements).
    pub fn update_placements(&mut self, nsid: u32, placements: &[u16]) -> Result<()> {
        self.has_fdp()?;
        if !(1..=65536).contains(&placements.len()) {
            let why = format!("{} placement identifiers cannot be: 1 to 65,536", placements.len());
            return Err(Error::NotOffered { device: self.inner.driver().hw.name(), why });
        }
        let bytes: Vec<u8> = placements.iter().flat_map(|id| id.to_le_bytes()).collect();
        // NPID is 0's based.
        let cdw10 = UPDATE | (placements.len() as u32 - 1) << 16;
        let command = RawCommand { opcode: io::MANAGEMENT_SEND, nsid, cdw10, ..RawCommand::default() };
        self.manage(&command, Transfer::Write(&bytes))
    }

    fn has_fdp(&self) -> Result<()> {
        let driver = self.inner.driver();
        match driver.controller.has_fdp() {
            true => Ok(()),
            false => {
                let why = "the controller has no flexible data placement".to_owned();
                Err(Error::NotOffered { device: driver.hw.name(), why })
            }
        }
    }

    /// Executes a command whose status has to be success.
    pub(super) fn manage(&mut self, command: &RawCommand, data: Transfer<'_>) -> Result<()> {
        let done = self.execute(command, data, None)?;
        match done.status.is_success() {
            true => Ok(()),
            false => {
                let device = self.inner.driver().hw.name();
                Err(Error::Refused { device, command: io_name(command.opcode), status: done.status })
            }
        }
    }
}

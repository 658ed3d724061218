//! Reservations of a namespace (NVM Express Base 2.0, 7.2 to 7.5): each is one command, waited for; the queue has nothing else in flight.

use super::Queue;
use crate::command::io;
use crate::error::{Error, Result};
use crate::raw::{RawCommand, Transfer};
use crate::reservation::{AcquireAction, Register, RegisterAction, ReleaseAction, ReservationType, Reservations};

/// How many registrants are asked for first.
const FIRST: usize = 16;

impl Queue {
    /// Registers this host for a namespace, ends that, or changes its key (7.3). (nvme-cli: `resv-register`; SPDK: `spdk_nvme_ns_cmd_reservation_register`.)
    ///
    /// # Errors
    /// [`Error::NotOffered`] where the controller has no reservations (ONCS bit 5); [`Error::Refused`] with the controller's status, as `Reservation
    /// Conflict` where the key is wrong; the others of [`execute`](Self::execute).
    pub fn reservation_register(&mut self, nsid: u32, register: Register) -> Result<()> {
        let (action, current, new) = match register.action {
            RegisterAction::Register { key } => (0, 0, key),
            RegisterAction::Unregister { key } => (1, key, 0),
            RegisterAction::Replace { current, new } => (2, current, new),
        };
        let persist = match register.persist {
            None => 0,
            Some(false) => 2,
            Some(true) => 3,
        };
        let cdw10 = action | u32::from(register.ignore_key) << 3 | persist << 30;
        self.reserve(io::RESERVATION_REGISTER, nsid, cdw10, &[current, new])
    }

    /// Reserves a namespace, or takes it from another host (7.2); `key` is the one that this host is registered with. (nvme-cli: `resv-acquire`; SPDK:
    /// `spdk_nvme_ns_cmd_reservation_acquire`.)
    ///
    /// # Errors
    /// Those of [`reservation_register`](Self::reservation_register).
    pub fn reservation_acquire(
        &mut self,
        nsid: u32,
        key: u64,
        action: AcquireAction,
        kind: ReservationType,
    ) -> Result<()> {
        let (action, other) = match action {
            AcquireAction::Acquire => (0, 0),
            AcquireAction::Preempt { key } => (1, key),
            AcquireAction::PreemptAndAbort { key } => (2, key),
        };
        self.reserve(io::RESERVATION_ACQUIRE, nsid, action | (kind as u32) << 8, &[key, other])
    }

    /// Ends a reservation, or all registrations (7.4); `key` is the one that this host is registered with. (nvme-cli: `resv-release`; SPDK:
    /// `spdk_nvme_ns_cmd_reservation_release`.)
    ///
    /// # Errors
    /// Those of [`reservation_register`](Self::reservation_register).
    pub fn reservation_release(&mut self, nsid: u32, key: u64, action: ReleaseAction) -> Result<()> {
        let cdw10 = match action {
            ReleaseAction::Release(kind) => (kind as u32) << 8,
            ReleaseAction::Clear => 1,
        };
        self.reserve(io::RESERVATION_RELEASE, nsid, cdw10, &[key])
    }

    /// Returns who is registered for a namespace, and who holds it (7.5). (nvme-cli: `resv-report`; SPDK: `spdk_nvme_ns_cmd_reservation_report`.)
    ///
    /// # Errors
    /// Those of [`reservation_register`](Self::reservation_register).
    pub fn reservations(&mut self, nsid: u32) -> Result<Reservations> {
        self.has_reservations()?;
        // As long as this host's own identifier.
        let driver = self.inner.driver();
        let extended = driver.controller.has_long_host_ids() && driver.options.host_id.is_some();
        let mut count = FIRST;
        loop {
            let mut bytes = vec![0; Reservations::bytes(count, extended)];
            let command = RawCommand {
                opcode: io::RESERVATION_REPORT,
                nsid,
                // NUMD is 0's based.
                cdw10: (bytes.len() / 4 - 1) as u32,
                cdw11: extended.into(),
                ..RawCommand::default()
            };
            self.manage(&command, Transfer::Read(&mut bytes))?;
            let (all, report) = Reservations::parse(&bytes, extended);
            if all <= count {
                return Ok(report);
            }
            count = all;
        }
    }

    fn reserve(&mut self, opcode: u8, nsid: u32, cdw10: u32, keys: &[u64]) -> Result<()> {
        self.has_reservations()?;
        let bytes: Vec<u8> = keys.iter().flat_map(|key| key.to_le_bytes()).collect();
        let command = RawCommand { opcode, nsid, cdw10, ..RawCommand::default() };
        self.manage(&command, Transfer::Write(&bytes))
    }

    fn has_reservations(&self) -> Result<()> {
        let driver = self.inner.driver();
        if driver.controller.has_reservations() {
            return Ok(());
        }
        let why = "the controller has no reservations".to_owned();
        Err(Error::NotOffered { device: driver.hw.name(), why })
    }
}

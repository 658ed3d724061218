//! Reservations (NVM Express Base 2.0, 8.19): which hosts may write, or read, a namespace that several share. The bytes are a device's: any of them parse.
//!
//! A host is known by its identifier ([`Options::host_id`](crate::Options::host_id)); it registers with a key, and then reserves.

use crate::bytes::{array, u8_at, u16_at, u32_at, u64_at};
use crate::command::get_log_page;
use crate::control::Control;
use crate::error::{Error, Result};
use crate::feature;
use crate::hardware::Hardware;
use crate::log::lid;
use crate::nvme::Nvme;
use std::fmt;

/// What a reservation keeps others from (8.19, RTYPE).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReservationType {
    /// Only its holder writes.
    WriteExclusive = 1,
    /// Only its holder reads and writes.
    ExclusiveAccess = 2,
    /// Only registrants write.
    WriteExclusiveRegistrantsOnly = 3,
    /// Only registrants read and write.
    ExclusiveAccessRegistrantsOnly = 4,
    /// Only registrants write, and all of them hold it.
    WriteExclusiveAllRegistrants = 5,
    /// Only registrants read and write, and all of them hold it.
    ExclusiveAccessAllRegistrants = 6,
}

impl ReservationType {
    /// The type of a number from 1 to 6.
    pub fn of(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::WriteExclusive,
            2 => Self::ExclusiveAccess,
            3 => Self::WriteExclusiveRegistrantsOnly,
            4 => Self::ExclusiveAccessRegistrantsOnly,
            5 => Self::WriteExclusiveAllRegistrants,
            6 => Self::ExclusiveAccessAllRegistrants,
            _ => return None,
        })
    }

    /// What the standard calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::WriteExclusive => "Write Exclusive",
            Self::ExclusiveAccess => "Exclusive Access",
            Self::WriteExclusiveRegistrantsOnly => "Write Exclusive - Registrants Only",
            Self::ExclusiveAccessRegistrantsOnly => "Exclusive Access - Registrants Only",
            Self::WriteExclusiveAllRegistrants => "Write Exclusive - All Registrants",
            Self::ExclusiveAccessAllRegistrants => "Exclusive Access - All Registrants",
        }
    }
}

/// What Reservation Register does (7.3, RREGA).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegisterAction {
    /// Registers this host with a key.
    Register {
        /// NRKEY.
        key: u64,
    },
    /// Ends the registration, and with it a reservation that this host holds.
    Unregister {
        /// CRKEY: the key it was registered with.
        key: u64,
    },
    /// Gives the registration another key.
    Replace {
        /// CRKEY: the key it was registered with.
        current: u64,
        /// NRKEY.
        new: u64,
    },
}

/// A Reservation Register (7.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register {
    /// What it does.
    pub action: RegisterAction,
    /// IEKEY: the key that the host was registered with need not be right.
    pub ignore_key: bool,
    /// CPTPL: whether registrations and reservations last when the power goes; `None` leaves it as it is.
    pub persist: Option<bool>,
}

/// What Reservation Acquire does (7.2, RACQA).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcquireAction {
    /// Reserves the namespace.
    Acquire,
    /// Takes registration and reservation away from who has this key, and reserves the namespace where it was the holder.
    Preempt {
        /// PRKEY.
        key: u64,
    },
    /// The same, and aborts that host's commands.
    PreemptAndAbort {
        /// PRKEY.
        key: u64,
    },
}

/// What Reservation Release does (7.4, RRELA).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReleaseAction {
    /// Ends the reservation, which this host holds and which is of this type.
    Release(ReservationType),
    /// Ends the reservation and all registrations, whoever has them.
    Clear,
}

/// Who is registered for a namespace, and who holds it (Reservation Report, 7.5).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reservations {
    /// GEN: how often registrations have changed.
    pub generation: u32,
    /// RTYPE: the reservation; `None` where there is none.
    pub kind: Option<ReservationType>,
    /// PTPLS: registrations and reservations last when the power goes.
    pub persist: bool,
    /// Who is registered.
    pub registrants: Vec<Registrant>,
}

/// A controller through which a host is registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Registrant {
    /// CNTLID; ffffh for one that is not known.
    pub controller: u16,
    /// RCSTS bit 0: it holds the reservation.
    pub holds: bool,
    /// HOSTID: 128 bits, or 64 and zeros behind them.
    pub host: [u8; 16],
    /// RKEY.
    pub key: u64,
}

/// What a host is told that another has done to a reservation (5.16.1.23).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReservationChange {
    /// This host is not registered any more: another took that away.
    RegistrationPreempted,
    /// The reservation has ended, and this host is still registered.
    ReservationReleased,
    /// The reservation and all registrations were cleared.
    ReservationPreempted,
    /// A type that the standard does not name.
    Unknown(u8),
}

impl ReservationChange {
    /// What the standard calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::RegistrationPreempted => "Registration Preempted",
            Self::ReservationReleased => "Reservation Released",
            Self::ReservationPreempted => "Reservation Preempted",
            Self::Unknown(_) => "a type without a name",
        }
    }
}

impl fmt::Display for ReservationChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(number) => write!(f, "type {number:02x}h, which has no name"),
            known => f.write_str(known.name()),
        }
    }
}

/// A page of the Reservation Notification log (5.16.1.23).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReservationNotification {
    /// LPC: the number of the page. Numbers that are missing are pages that the controller had no room for.
    pub number: u64,
    /// Which of the changes of log page 80h, byte 8, it was.
    pub change: ReservationChange,
    /// The identifier of the namespace whose reservation changed.
    pub nsid: u32,
}

/// What of it a host is not told (Reservation Notification Mask, 5.27.1.26).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReservationMask {
    /// Registration Preempted.
    pub registration_preempted: bool,
    /// Reservation Released.
    pub reservation_released: bool,
    /// Reservation Preempted.
    pub reservation_preempted: bool,
}

/// Bytes of a page of the log.
const NOTIFICATION: u32 = 64;
/// How many pages a controller has at most: it says by 8 bits how many there are beside one.
const PAGES: usize = 256;

impl ReservationNotification {
    /// Reads a page; `None` for an empty one.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let change = match u8_at(bytes, 8) {
            0 => return None,
            1 => ReservationChange::RegistrationPreempted,
            2 => ReservationChange::ReservationReleased,
            3 => ReservationChange::ReservationPreempted,
            other => ReservationChange::Unknown(other),
        };
        Some(Self { number: u64_at(bytes, 0), change, nsid: u32_at(bytes, 12) })
    }
}

impl Control {
    /// Reads the pages of the Reservation Notification log, of which each is there until it is read, and keeps them for who asks: the newest, if those are many.
    pub fn read_notifications(&mut self, hw: &Hardware) -> Result<()> {
        for _ in 0..PAGES {
            let read = get_log_page(lid::RESERVATION, NOTIFICATION, self.admin.data_iova());
            let bytes = self.admin.fetch(hw, read, NOTIFICATION as usize)?;
            let Some(page) = ReservationNotification::parse(&bytes) else { return Ok(()) };
            if self.notifications.len() == PAGES {
                self.notifications.pop_front();
            }
            self.notifications.push_back(page);
        }
        Ok(())
    }
}

impl Nvme {
    /// Takes what the controller has told of reservations since this was called last, oldest first: 256 at most. It is told only of namespaces for which this host
    /// is, or was, registered, and an [event](crate::AsyncEvent::is_reservation) says that there is something. (nvme-cli: `resv-notif-log`.)
    ///
    /// # Errors
    /// [`Error::NotOffered`] where the controller has no reservations; [`Error::Refused`] with the controller's status, [`Error::Unanswered`] where it does
    /// not answer in time, [`Gone`](wholebar_core::Error::Gone) or [`Ended`](wholebar_core::Error::Ended) where it can't be used.
    pub fn reservation_notifications(&self) -> Result<Vec<ReservationNotification>> {
        let hw = &self.0.driver().hw;
        if !self.identify().has_reservations() {
            let why = "it has no reservations (ONCS bit 5)".to_owned();
            return Err(Error::NotOffered { device: hw.name(), why });
        }
        self.0.with(|control| {
            control.read_notifications(hw)?;
            Ok(control.notifications.drain(..).collect())
        })
    }

    /// Sets what of a namespace's reservations this host is not told, until the next reset.
    ///
    /// # Errors
    /// Those of [`get_feature`](Self::get_feature).
    pub fn mask_reservation_notifications(&self, nsid: u32, mask: ReservationMask) -> Result<()> {
        let ReservationMask { registration_preempted, reservation_released, reservation_preempted } = mask;
        // REGPRE, RESREL and RESPRE: bits 1 to 3.
        let bits = [registration_preempted, reservation_released, reservation_preempted];
        let value = (1..).zip(bits).map(|(bit, on)| u32::from(on) << bit).sum();
        self.set_feature_with(feature::RESERVATION_MASK, nsid, value, false, &[]).map(drop)
    }
}

/// Bytes before the registrants of a report, and of a registrant: with 64-bit host identifiers, and with 128-bit ones.
const SHORT: usize = 24;
const EXTENDED: usize = 64;

impl Reservations {
    /// Bytes of a report with so many registrants.
    pub(crate) fn bytes(count: usize, extended: bool) -> usize {
        let size = if extended { EXTENDED } else { SHORT };
        size + count * size
    }

    /// How many registrants there are, and the report with as many of them as are whole.
    pub(crate) fn parse(bytes: &[u8], extended: bool) -> (usize, Self) {
        let (size, count) = (if extended { EXTENDED } else { SHORT }, usize::from(u16_at(bytes, 5)));
        let registrants = bytes.get(size..).unwrap_or(&[]).chunks_exact(size).take(count);
        let registrant = |b: &[u8]| {
            let (key, host) = match extended {
                true => (u64_at(b, 8), array(b, 16)),
                false => (u64_at(b, 16), (u128::from(u64_at(b, 8))).to_le_bytes()),
            };
            Registrant { controller: u16_at(b, 0), holds: u8_at(b, 2) & 1 != 0, host, key }
        };
        let report = Self {
            generation: u32_at(bytes, 0),
            kind: ReservationType::of(u8_at(bytes, 4)),
            persist: u8_at(bytes, 9) != 0,
            registrants: registrants.map(registrant).collect(),
        };
        (count, report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_read_in_both_formats() {
        for extended in [false, true] {
            let mut bytes = vec![0; Reservations::bytes(2, extended)];
            (bytes[0], bytes[4], bytes[5], bytes[9]) = (7, 3, 2, 1);
            let size = if extended { EXTENDED } else { SHORT };
            let second = &mut bytes[2 * size..];
            (second[0], second[2]) = (5, 1);
            let (key, host) = if extended { (8, 16) } else { (16, 8) };
            (second[key], second[host]) = (0x11, 0x22);
            let (count, report) = Reservations::parse(&bytes, extended);
            assert_eq!((count, report.generation, report.persist), (2, 7, true));
            assert_eq!(report.kind, Some(ReservationType::WriteExclusiveRegistrantsOnly));
            let mut id = [0; 16];
            id[0] = 0x22;
            let want = Registrant { controller: 5, holds: true, host: id, key: 0x11 };
            assert_eq!((report.registrants.len(), report.registrants[1]), (2, want));
            for cut in 0..bytes.len() {
                assert!(Reservations::parse(&bytes[..cut], extended).1.registrants.len() < 2);
            }
        }
    }

    #[test]
    fn notifications_are_read() {
        let mut bytes = [0; 64];
        assert_eq!(ReservationNotification::parse(&bytes), None);
        (bytes[0], bytes[8], bytes[9], bytes[12], bytes[13]) = (7, 2, 3, 5, 1);
        let change = ReservationChange::ReservationReleased;
        let want = ReservationNotification { number: 7, change, nsid: 0x105 };
        assert_eq!(ReservationNotification::parse(&bytes), Some(want));
        bytes[8] = 9;
        let unknown = ReservationNotification::parse(&bytes).map(|page| page.change.to_string());
        assert_eq!(unknown.as_deref(), Some("type 09h, which has no name"));
        assert_eq!(ReservationNotification::parse(&[]), None);
    }

    #[test]
    fn types_have_the_standards_numbers() {
        for number in 0..=255 {
            assert!(ReservationType::of(number).is_none_or(|kind| kind as u8 == number));
        }
        assert_eq!((1..=6).filter_map(ReservationType::of).count(), 6);
    }
}

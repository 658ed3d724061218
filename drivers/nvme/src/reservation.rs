//! Reservations (NVM Express Base 2.0, 8.19): which hosts may write, or read, a namespace that several share. The bytes are a device's: any of them parse.
//!
//! A host is known by its identifier ([`Options::host_id`](crate::Options::host_id)); it registers with a key, and then reserves.

use crate::bytes::{array, u8_at, u16_at, u32_at, u64_at};

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
    fn types_have_the_standards_numbers() {
        for number in 0..=255 {
            assert!(ReservationType::of(number).is_none_or(|kind| kind as u8 == number));
        }
        assert_eq!((1..=6).filter_map(ReservationType::of).count(), 6);
    }
}

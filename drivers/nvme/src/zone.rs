//! Zones (NVM Express Zoned Namespace Command Set 1.1): what a namespace says of its own, what a report says of each, what is done to them. The bytes are a
//! device's: any of them parse. The commands are a queue's ([`Queue`](crate::Queue)).

use crate::bytes::{u8_at, u16_at, u32_at, u64_at};

/// What a zoned namespace is beside any other (ZNS 1.1, 4.1.5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Zoned {
    /// ZSZE: the blocks from the start of a zone to the start of the next; not all of them can be written: [`Zone::capacity`].
    pub zone_size: u64,
    /// MAR: how many zones can be open or closed at once; `None` for no limit.
    pub max_active: Option<u32>,
    /// MOR: how many can be open at once; `None` for no limit.
    pub max_open: Option<u32>,
    /// ZDES, in bytes: the descriptor extension of a zone; 0 for none.
    pub extension: u32,
    /// OZCS bit 0: a read may go from a zone into the next.
    pub reads_across: bool,
}

impl Zoned {
    /// Bytes of Identify Namespace of this command set.
    const FORMATS: usize = 2816;

    /// Reads the structure (CNS 05h, CSI 02h), for the LBA format that the namespace has.
    pub(crate) fn parse(bytes: &[u8], format: u8) -> Self {
        // 0's based; all ones is no limit.
        let limit = |at| u32_at(bytes, at).checked_add(1);
        let at = Self::FORMATS + 16 * usize::from(format);
        Self {
            zone_size: u64_at(bytes, at),
            max_active: limit(4),
            max_open: limit(8),
            // In units of 64 bytes.
            extension: u32::from(u8_at(bytes, at + 8)) * 64,
            reads_across: u16_at(bytes, 2) & 1 != 0,
        }
    }
}

/// The state of a zone (ZNS 1.1, 2.1.1.3): ZS, as its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ZoneState {
    /// Nothing is written, and it uses no resources.
    Empty = 1,
    /// Open, since it was written.
    ImplicitlyOpened = 2,
    /// Open, since that was asked for.
    ExplicitlyOpened = 3,
    /// Written in part, and not open.
    Closed = 4,
    /// It can be read only, for good.
    ReadOnly = 13,
    /// Nothing more can be written until it is reset.
    Full = 14,
    /// It can be neither read nor written, for good.
    Offline = 15,
}

impl ZoneState {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Empty,
        Self::ImplicitlyOpened,
        Self::ExplicitlyOpened,
        Self::Closed,
        Self::ReadOnly,
        Self::Full,
        Self::Offline,
    ];

    /// The state with this value of ZS; `None` for reserved ones.
    pub fn of(value: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|state| *state as u8 == value)
    }

    /// Returns nvme-cli's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "EMPTY",
            Self::ImplicitlyOpened => "IMP_OPENED",
            Self::ExplicitlyOpened => "EXP_OPENED",
            Self::Closed => "CLOSED",
            Self::ReadOnly => "READONLY",
            Self::Full => "FULL",
            Self::Offline => "OFFLINE",
        }
    }

    /// Which zones a report lists (ZRASF): those in this state.
    fn filter(self) -> u32 {
        match self {
            Self::Empty => 1,
            Self::ImplicitlyOpened => 2,
            Self::ExplicitlyOpened => 3,
            Self::Closed => 4,
            Self::Full => 5,
            Self::ReadOnly => 6,
            Self::Offline => 7,
        }
    }
}

/// A zone, as a report says it is (ZNS 1.1, 3.4.2.2.3).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Zone {
    /// ZSLBA: its first block.
    pub start: u64,
    /// ZCAP: how many of its blocks can be written.
    pub capacity: u64,
    /// WP: where the next write has to be; `None` where no write can be: in a zone that is full, read only or offline.
    pub write_pointer: Option<u64>,
    /// ZS; `None` where it is a reserved value.
    pub state: Option<ZoneState>,
    /// ZT: 2 for zones that must be written in order, which is all there are.
    pub kind: u8,
    /// ZA: attributes.
    pub attributes: u8,
    /// Its descriptor extension, where the report has these.
    pub extension: Vec<u8>,
}

/// What is done to a zone (ZNS 1.1, 3.4.3: ZSA, as its value).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZoneAction {
    /// Closes an open zone.
    Close = 1,
    /// Makes it full.
    Finish = 2,
    /// Opens it explicitly.
    Open = 3,
    /// Makes it empty: **what is in it is lost**.
    Reset = 4,
    /// Takes a read only zone offline, for good.
    Offline = 5,
}

/// Which zones are reported (ZNS 1.1, 3.4.2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ZoneReport {
    /// A block of the first zone that is looked at.
    pub from: u64,
    /// Zones in this state alone; `None` for zones in any.
    pub state: Option<ZoneState>,
    /// With their descriptor extensions.
    pub extended: bool,
    /// As many zones at most; `None` for all.
    pub limit: Option<usize>,
}

/// Bytes of a report's head, and of a zone's descriptor.
pub(crate) const HEAD: usize = 64;
pub(crate) const DESCRIPTOR: usize = 64;

impl ZoneReport {
    /// Dword 13 of Zone Management Receive. With `partial`, the report says how many zones it has, and else how many match.
    pub(crate) fn dword13(self, partial: bool) -> u32 {
        u32::from(self.extended) | self.state.map_or(0, ZoneState::filter) << 8 | u32::from(partial) << 16
    }
}

impl Zone {
    /// The zones in a report; `extension` bytes follow each.
    pub(crate) fn parse(report: &[u8], extension: usize) -> Vec<Self> {
        let count = usize::try_from(u64_at(report, 0)).unwrap_or(usize::MAX);
        let zones = report.get(HEAD..).unwrap_or(&[]).chunks_exact(DESCRIPTOR + extension).take(count);
        zones.map(Self::one).collect()
    }

    fn one(bytes: &[u8]) -> Self {
        use ZoneState::{Full, Offline, ReadOnly};
        let state = ZoneState::of(u8_at(bytes, 1) >> 4);
        Self {
            start: u64_at(bytes, 16),
            capacity: u64_at(bytes, 8),
            write_pointer: Some(u64_at(bytes, 24)).filter(|_| !matches!(state, Some(Full | ReadOnly | Offline))),
            state,
            kind: u8_at(bytes, 0) & 0xf,
            attributes: u8_at(bytes, 2),
            extension: bytes.get(DESCRIPTOR..).unwrap_or(&[]).to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_read() {
        let mut report = vec![0; HEAD + 2 * (DESCRIPTOR + 64)];
        report[0] = 2;
        let zone = &mut report[HEAD..];
        (zone[0], zone[1], zone[8], zone[17], zone[24]) = (2, 2 << 4, 200, 1, 7);
        let zone = &mut zone[DESCRIPTOR + 64..];
        (zone[0], zone[1]) = (2, 14 << 4);
        let zones = Zone::parse(&report, 64);
        let first = (zones[0].start, zones[0].capacity, zones[0].write_pointer, zones[0].state);
        assert_eq!(first, (256, 200, Some(7), Some(ZoneState::ImplicitlyOpened)));
        assert_eq!((zones[1].state, zones[1].write_pointer), (Some(ZoneState::Full), None));
        assert_eq!((zones.len(), zones[0].extension.len()), (2, 64));
        // More than there are, and none.
        report[..8].fill(0xff);
        assert_eq!(Zone::parse(&report, 64).len(), 2);
        assert!(Zone::parse(&report[..HEAD], 0).is_empty() && Zone::parse(&[], 0).is_empty());
    }

    #[test]
    fn limits_are_zeros_based() {
        let mut bytes = vec![0; 4096];
        bytes[4..8].copy_from_slice(&13u32.to_le_bytes());
        bytes[8..12].fill(0xff);
        bytes[2832..2840].copy_from_slice(&4096u64.to_le_bytes());
        bytes[2840] = 2;
        let zoned = Zoned::parse(&bytes, 1);
        assert_eq!((zoned.max_active, zoned.max_open), (Some(14), None));
        assert_eq!((zoned.zone_size, zoned.extension), (4096, 128));
        assert_eq!(Zoned::parse(&bytes, 0).zone_size, 0);
    }

    #[test]
    fn states_have_values_of_their_own() {
        assert!(ZoneState::ALL.into_iter().all(|state| ZoneState::of(state as u8) == Some(state)));
        assert_eq!(ZoneState::of(5), None);
    }
}

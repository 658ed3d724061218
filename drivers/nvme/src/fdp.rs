//! Flexible data placement (NVM Express Base 2.1, 8.1.10; ratified as TP4146 over 2.0): what an endurance group's media is made of, who uses which part of it,
//! and what was written there. The bytes are a device's: any of them parse.
//!
//! A write that names its placement is [`Queue::submit_placed`](crate::Queue::submit_placed); the units behind a namespace's placements are
//! [`Queue::placements`](crate::Queue::placements).

use crate::bytes::{u8_at, u16_at, u32_at, u64_at, u128_at};
use crate::error::Result;
use crate::feature::{self, Select};
use crate::log::{LogRequest, lid};
use crate::nvme::Nvme;

/// Where a write's data goes, as far as the host has a say in it (DTYPE and DSPEC; NVM Express Base 2.0, 8.7).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Placement {
    /// Wherever the controller puts it.
    #[default]
    Any,
    /// With the other data of a stream, 1 to 65,535 (Streams directive, 8.7.3).
    Stream(u16),
    /// Into the reclaim unit of a placement identifier (Data Placement directive): a reclaim group in the upper bits, a placement handle in the others.
    Handle(u16),
}

impl Placement {
    /// DTYPE in bits 23:20 of dword 12, DSPEC in bits 31:16 of dword 13: as the seventh 64-bit word of an entry has them.
    pub(crate) fn word(self) -> u64 {
        match self {
            Self::Any => 0,
            Self::Stream(id) => 1 << 20 | u64::from(id) << 48,
            Self::Handle(id) => 2 << 20 | u64::from(id) << 48,
        }
    }
}

/// A configuration that an endurance group can have, or has (log page 20h).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FdpConfig {
    /// FDPA bit 7: the configuration can be used.
    pub valid: bool,
    /// FDPA bits 3:0, RGIF: how many of the upper bits of a placement identifier are the reclaim group.
    pub group_bits: u8,
    /// FDPA bit 4: its write cache is volatile.
    pub volatile_cache: bool,
    /// NRG: reclaim groups.
    pub groups: u32,
    /// NRUH: reclaim unit handles, one for each entry of [`handles`](Self::handles).
    pub handle_count: u16,
    /// MAXPIDS: the most placement identifiers of all namespaces.
    pub max_placements: u16,
    /// NNSS: the most namespaces.
    pub namespaces: u32,
    /// RUNS: bytes of a reclaim unit.
    pub unit_size: u64,
    /// ERUTL: seconds for which a reclaim unit may stay open; 0 for no limit.
    pub time_limit: u32,
    /// RUHT of each handle: 1 for one whose data is kept apart at first, 2 for one whose data is kept apart always.
    pub handles: Vec<u8>,
}

/// What was written to an endurance group (log page 22h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct FdpStatistics {
    /// HBMW: bytes that hosts wrote with their metadata.
    pub host_written: u128,
    /// MBMW: bytes that were written to the media, those that the controller moved included.
    pub media_written: u128,
    /// MBE: bytes of the media that were erased.
    pub media_erased: u128,
}

/// Something that happened to data's placement (log page 23h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct FdpEvent {
    /// The type; [`name`](Self::name) has the standard's name.
    pub kind: u8,
    /// PID: the placement identifier, where it is of one.
    pub placement: Option<u16>,
    /// Milliseconds, as the Timestamp feature counts them.
    pub timestamp: u64,
    /// The namespace, where it is of one.
    pub nsid: Option<u32>,
    /// The reclaim group and the reclaim unit handle, where it is of some.
    pub unit: Option<(u16, u8)>,
    /// What is the type's own.
    pub specific: [u8; 16],
}

/// The reclaim unit that a placement identifier of a namespace refers to (I/O Management Receive, reclaim unit handle status).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReclaimUnit {
    /// PID: the placement identifier.
    pub placement: u16,
    /// RUHID: the reclaim unit handle.
    pub handle: u16,
    /// EARUTR: seconds that are left until the unit is full by time; 0 where it doesn't say.
    pub time_left: u32,
    /// RUAMW: blocks that can be written until it is full.
    pub blocks_left: u64,
}

/// Whether an endurance group's data is placed (feature 1dh).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FdpMode {
    /// FDPE.
    pub enabled: bool,
    /// FDPCIDX: the configuration that it has.
    pub config: u8,
}

/// Which events of a placement handle are recorded (feature 1eh).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FdpEventConfig {
    /// The type.
    pub kind: u8,
    /// Whether events of this type are recorded.
    pub enabled: bool,
}

/// Bytes before the configurations, before handles' usage, before events, and before the status of reclaim units.
const CONFIGS_HEAD: usize = 16;
const USAGE_HEAD: usize = 8;
const EVENTS_HEAD: usize = 64;
const STATUS_HEAD: usize = 16;
/// Bytes of a configuration without its handles, of an event, and of a reclaim unit's status.
const CONFIG: usize = 64;
const EVENT: usize = 64;
const STATUS: usize = 32;
/// The most that is read of a log page, in bytes: there is no such controller.
const MOST: usize = 16 << 20;
/// Event types that a handle can have at most: NOET has 8 bits.
const MAX_EVENTS: usize = 255;

impl FdpConfig {
    /// Reads the FDP Configurations log page: as many configurations as are whole in it.
    pub fn parse(bytes: &[u8]) -> Vec<Self> {
        let count = usize::from(u16_at(bytes, 0)) + 1;
        let mut rest = bytes.get(CONFIGS_HEAD..).unwrap_or(&[]);
        let mut all = Vec::new();
        while all.len() < count
            && let Some((one, next)) = rest.split_at_checked(usize::from(u16_at(rest, 0)).max(CONFIG))
        {
            let (attributes, handle_count) = (u8_at(one, 2), u16_at(one, 8));
            let handles = one[CONFIG..].chunks_exact(4).take(handle_count.into()).map(|handle| handle[0]);
            all.push(Self {
                valid: attributes & 1 << 7 != 0,
                group_bits: attributes & 0xf,
                volatile_cache: attributes & 1 << 4 != 0,
                groups: u32_at(one, 4),
                handle_count,
                max_placements: u16_at(one, 10),
                namespaces: u32_at(one, 12),
                unit_size: u64_at(one, 16),
                time_limit: u32_at(one, 24),
                handles: handles.collect(),
            });
            rest = next;
        }
        all
    }
}

impl FdpEvent {
    /// Reads the FDP Events log page, in its order: as many events as are whole in it.
    pub fn parse(bytes: &[u8]) -> Vec<Self> {
        let count = u32_at(bytes, 0) as usize;
        let events = bytes.get(EVENTS_HEAD..).unwrap_or(&[]).chunks_exact(EVENT).take(count);
        events
            .map(|b| {
                let has = |bit: u32| u8_at(b, 1) >> bit & 1 != 0;
                let mut specific = [0; 16];
                specific.copy_from_slice(&b[16..32]);
                Self {
                    kind: u8_at(b, 0),
                    placement: has(0).then(|| u16_at(b, 2)),
                    timestamp: u64_at(b, 4) & 0xffff_ffff_ffff,
                    nsid: has(1).then(|| u32_at(b, 12)),
                    unit: has(2).then(|| (u16_at(b, 32), u8_at(b, 34))),
                    specific,
                }
            })
            .collect()
    }

    /// Returns the standard's name of the type; `None` for one that it does not name.
    pub fn name(&self) -> Option<&'static str> {
        fdp_event_name(self.kind)
    }
}

/// Returns the standard's name of a type of FDP events; `None` for one that it does not name. Those from 80h on are the controller's, the others come of what
/// hosts do.
pub fn fdp_event_name(kind: u8) -> Option<&'static str> {
    Some(match kind {
        0x00 => "Reclaim Unit Not Fully Written To Capacity",
        0x01 => "Reclaim Unit Time Limit Exceeded",
        0x02 => "Controller Level Reset Modified Reclaim Unit Handles",
        0x03 => "Invalid Placement Identifier",
        0x80 => "Media Reallocated",
        0x81 => "Implicitly Modified Reclaim Unit Handle",
        _ => return None,
    })
}

impl ReclaimUnit {
    /// Bytes of the status of so many.
    pub(crate) fn bytes(count: usize) -> usize {
        STATUS_HEAD + count * STATUS
    }

    /// How many there are, and as many of them as are whole.
    pub(crate) fn parse(bytes: &[u8]) -> (usize, Vec<Self>) {
        let count = usize::from(u16_at(bytes, 14));
        let units = bytes.get(STATUS_HEAD..).unwrap_or(&[]).chunks_exact(STATUS).take(count);
        let unit = |b: &[u8]| Self {
            placement: u16_at(b, 0),
            handle: u16_at(b, 2),
            time_left: u32_at(b, 4),
            blocks_left: u64_at(b, 8),
        };
        (count, units.map(unit).collect())
    }
}

impl Nvme {
    /// Reads the configurations that an endurance group can have (FDP Configurations, log page 20h). (nvme-cli: `fdp configs`.)
    ///
    /// # Errors
    /// [`NotOffered`](crate::Error::NotOffered) where the controller has no flexible data placement (CTRATT bit 19); those of
    /// [`log_page`](Self::log_page).
    pub fn fdp_configs(&self, group: u16) -> Result<Vec<FdpConfig>> {
        Ok(FdpConfig::parse(&self.fdp_log(lid::FDP_CONFIGS, group, 0, CONFIGS_HEAD, |head| u32_at(head, 4) as usize)?))
    }

    /// Reads who uses each reclaim unit handle of an endurance group (log page 21h): 0 nobody, 1 hosts, by name, 2 the controller. (nvme-cli: `fdp usage`.)
    ///
    /// # Errors
    /// Those of [`fdp_configs`](Self::fdp_configs); [`Refused`](crate::Error::Refused) with `FDP Disabled` where the endurance group is not placed.
    pub fn fdp_usage(&self, group: u16) -> Result<Vec<u8>> {
        let len = |head: &[u8]| USAGE_HEAD + usize::from(u16_at(head, 0)) * 8;
        let bytes = self.fdp_log(lid::FDP_USAGE, group, 0, USAGE_HEAD, len)?;
        Ok(bytes.get(USAGE_HEAD..).unwrap_or(&[]).chunks_exact(8).map(|handle| handle[0]).collect())
    }

    /// Reads what was written to an endurance group (log page 22h). (nvme-cli: `fdp stats`.)
    ///
    /// # Errors
    /// Those of [`fdp_usage`](Self::fdp_usage).
    pub fn fdp_statistics(&self, group: u16) -> Result<FdpStatistics> {
        let b = self.fdp_log(lid::FDP_STATISTICS, group, 0, 64, |_| 64)?;
        Ok(FdpStatistics {
            host_written: u128_at(&b, 0),
            media_written: u128_at(&b, 16),
            media_erased: u128_at(&b, 32),
        })
    }

    /// Reads what happened in an endurance group (log page 23h): the events that hosts caused, or the controller's own. (nvme-cli: `fdp events`.)
    ///
    /// # Errors
    /// Those of [`fdp_usage`](Self::fdp_usage).
    pub fn fdp_events(&self, group: u16, of_hosts: bool) -> Result<Vec<FdpEvent>> {
        let len = |head: &[u8]| (u32_at(head, 0) as usize).saturating_mul(EVENT).saturating_add(EVENTS_HEAD);
        Ok(FdpEvent::parse(&self.fdp_log(lid::FDP_EVENTS, group, of_hosts.into(), EVENTS_HEAD, len)?))
    }

    /// Returns whether an endurance group's data is placed, and by which configuration (feature 1dh). (nvme-cli: `fdp feature`.)
    ///
    /// # Errors
    /// Those of [`get_feature`](Self::get_feature).
    pub fn fdp_mode(&self, group: u16) -> Result<FdpMode> {
        let value = self.get_feature(feature::FDP, Select::Current, 0, group.into(), &mut [])?;
        Ok(FdpMode { enabled: value & 1 != 0, config: (value >> 8) as u8 })
    }

    /// Has an endurance group's data be placed by a configuration, or not (feature 1dh). A controller refuses that while the group has namespaces. (nvme-cli:
    /// `fdp feature --enable-conf-idx`.)
    ///
    /// # Errors
    /// Those of [`get_feature`](Self::get_feature).
    pub fn set_fdp_mode(&self, group: u16, mode: FdpMode) -> Result<()> {
        let cdw12 = u32::from(mode.enabled) | u32::from(mode.config) << 8;
        self.set_feature_dwords(feature::FDP, 0, [group.into(), cdw12], false, &[]).map(drop)
    }

    /// Returns which types of events a placement handle of a namespace can have, and which of them are recorded (feature 1eh).
    ///
    /// # Errors
    /// Those of [`get_feature`](Self::get_feature).
    pub fn fdp_event_config(&self, nsid: u32, handle: u16) -> Result<Vec<FdpEventConfig>> {
        let mut bytes = [0; 2 * MAX_EVENTS];
        let value = u32::from(handle) | (MAX_EVENTS as u32) << 16;
        let count = self.get_feature(feature::FDP_EVENTS, Select::Current, nsid, value, &mut bytes)? as usize;
        let pairs = bytes.chunks_exact(2).take(count.min(MAX_EVENTS));
        Ok(pairs.map(|pair| FdpEventConfig { kind: pair[0], enabled: pair[1] & 1 != 0 }).collect())
    }

    /// Has events of these types be recorded for a placement handle of a namespace, or not (feature 1eh). (nvme-cli: `fdp set-events`.)
    ///
    /// # Errors
    /// [`NotOffered`](crate::Error::NotOffered) for no types, or more than 255; those of [`get_feature`](Self::get_feature).
    pub fn set_fdp_events(&self, nsid: u32, handle: u16, kinds: &[u8], enable: bool) -> Result<()> {
        if kinds.is_empty() || kinds.len() > MAX_EVENTS {
            return Err(self.not_offered(format!("{} types of events cannot be: 1 to {MAX_EVENTS}", kinds.len())));
        }
        let cdw11 = u32::from(handle) | (kinds.len() as u32) << 16;
        self.set_feature_dwords(feature::FDP_EVENTS, nsid, [cdw11, enable.into()], false, kinds).map(drop)
    }

    /// Reads one of the log pages, whose head says by `len` how much there is of it.
    fn fdp_log(&self, lid: u8, group: u16, lsp: u8, head: usize, len: impl Fn(&[u8]) -> usize) -> Result<Vec<u8>> {
        self.needs(self.identify().has_fdp(), "flexible data placement")?;
        let request = LogRequest { lsp, lsi: group, ..LogRequest::new(lid) };
        let bytes = self.log_page(request, head)?;
        match len(&bytes) {
            all if all > head => self.log_page(request, all.min(MOST)),
            _ => Ok(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placements_are_where_the_standard_has_them() {
        assert_eq!(Placement::Any.word(), 0);
        assert_eq!(Placement::Stream(0x1234).word(), 0x1234_0000_0010_0000);
        assert_eq!(Placement::Handle(7).word(), 0x0007_0000_0020_0000);
    }

    #[test]
    fn configurations_have_handles() {
        let mut bytes = vec![0; CONFIGS_HEAD + 2 * 80];
        bytes[0] = 1;
        for (i, one) in bytes[CONFIGS_HEAD..].chunks_exact_mut(80).enumerate() {
            (one[0], one[2], one[4], one[8], one[10]) = (80, 0x92, 2, 4, 8);
            one[16..24].copy_from_slice(&(96u64 << 20).to_le_bytes());
            one[64..].chunks_mut(4).for_each(|handle| handle[0] = 1 + i as u8);
        }
        let all = FdpConfig::parse(&bytes);
        assert_eq!(all.len(), 2);
        let FdpConfig { valid, group_bits, volatile_cache, groups, max_placements, unit_size, .. } = all[0];
        assert_eq!((valid, group_bits, volatile_cache, groups, max_placements), (true, 2, true, 2, 8));
        assert_eq!((unit_size, &all[0].handles[..], &all[1].handles[..]), (96 << 20, &[1; 4][..], &[2; 4][..]));
        for cut in 0..bytes.len() {
            assert!(FdpConfig::parse(&bytes[..cut]).len() < 2);
        }
    }

    #[test]
    fn events_say_what_they_are_of() {
        let mut bytes = vec![0; EVENTS_HEAD + EVENT];
        (bytes[0], bytes[64], bytes[65], bytes[66], bytes[76], bytes[98]) = (9, 3, 0b011, 5, 2, 4);
        let all = FdpEvent::parse(&bytes);
        assert_eq!(all.len(), 1, "as many as there are bytes for");
        assert_eq!((all[0].name(), all[0].placement), (Some("Invalid Placement Identifier"), Some(5)));
        assert_eq!((all[0].nsid, all[0].unit), (Some(2), None));
        bytes[65] = 0b100;
        let event = FdpEvent::parse(&bytes)[0];
        assert_eq!((event.placement, event.nsid, event.unit), (None, None, Some((0, 4))));
    }

    #[test]
    fn any_bytes_parse() {
        for len in [0, 3, 16, 64, 100, 4096] {
            let bytes = vec![0xff; len];
            FdpConfig::parse(&bytes);
            FdpEvent::parse(&bytes);
            ReclaimUnit::parse(&bytes);
        }
    }
}

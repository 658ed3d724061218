//! Where a write's data goes: flexible data placement (NVM Express Base 2.1, "base21", 8.1.10), and streams (base 8.7.3). There is one endurance group, whose
//! identifier is 1, with one configuration. Every namespace has a placement handle for each reclaim unit handle, of the same number.
//!
//! Nothing is erased or moved: what the media is written is what hosts write, and the rest of a reclaim unit that is left before it is full.

use super::bits::Status;
use super::command::Command;
use super::data::{self, Rules};
use super::io::{Store, active};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use wholebar_core::model::Host;

/// The one endurance group.
pub(super) const GROUP: u16 = 1;
/// How many events are kept of hosts, and of the controller.
const EVENTS: usize = 63;
/// The types of events that hosts cause (base21 5.1.12.1.28), which this controller has: those of its own never happen.
const NOT_FULL: u8 = 0x00;
const INVALID_PLACEMENT: u8 = 0x03;
const TYPES: [u8; 2] = [NOT_FULL, INVALID_PLACEMENT];
/// RUHT: initially isolated.
const INITIALLY_ISOLATED: u8 = 1;
/// Directive types (base 8.7): Identify, Streams, Data Placement.
const IDENTIFY: u8 = 0;
const STREAMS: u8 = 1;
const DATA_PLACEMENT: u8 = 2;

/// What is kept of placements.
pub(super) struct Fdp {
    enabled: bool,
    /// Reclaim groups.
    groups: u16,
    /// How many bits of a placement identifier are the group.
    group_bits: u32,
    /// Bytes of a reclaim unit.
    unit: u64,
    handles: Vec<Handle>,
    host_written: u128,
    media_written: u128,
    events: VecDeque<[u8; 64]>,
}

/// A reclaim unit handle.
struct Handle {
    /// Bytes that are left in the unit of each group.
    left: Vec<u64>,
    /// Which types of events are recorded, a bit each, by their place in [`TYPES`].
    recorded: u8,
}

impl Fdp {
    pub(super) fn new(groups: u16, handles: u16, unit: u64) -> Self {
        let handle = || Handle { left: vec![unit; groups.into()], recorded: 0 };
        Self {
            enabled: true,
            groups,
            group_bits: u32::from(groups).next_power_of_two().trailing_zeros(),
            unit,
            handles: (0..handles).map(|_| handle()).collect(),
            host_written: 0,
            media_written: 0,
            events: VecDeque::new(),
        }
    }

    /// The identifier of a placement.
    fn identifier(&self, group: u16, handle: u16) -> u16 {
        if self.group_bits == 0 { handle } else { group << (16 - self.group_bits) | handle }
    }

    /// Group and handle, where there are such.
    fn parse(&self, identifier: u16) -> Option<(usize, usize)> {
        let (group, handle) = match self.group_bits {
            0 => (0, identifier),
            bits => (identifier >> (16 - bits), identifier & (u16::MAX >> bits)),
        };
        (group < self.groups && usize::from(handle) < self.handles.len()).then_some((group.into(), handle.into()))
    }

    /// `len` bytes are written; what names no placement, or none that is there, goes to the first.
    fn write(&mut self, nsid: u32, identifier: Option<u16>, len: u64) {
        let place = identifier.map_or(Some((0, 0)), |id| self.parse(id));
        if let (None, Some(id)) = (place, identifier) {
            self.record(INVALID_PLACEMENT, id, nsid, (0, 0));
        }
        let (group, handle) = place.unwrap_or((0, 0));
        self.host_written += u128::from(len);
        self.media_written += u128::from(len);
        let left = &mut self.handles[handle].left[group];
        // A unit that is full is followed by another one.
        let over = len.checked_sub(*left);
        *left = over.map_or_else(|| *left - len, |over| self.unit - over % self.unit);
    }

    /// A placement refers to an empty unit from now on.
    fn update(&mut self, nsid: u32, identifier: u16) -> Result<(), Status> {
        let place @ (group, handle) = self.parse(identifier).ok_or(Status::INVALID_FIELD)?;
        let left = std::mem::replace(&mut self.handles[handle].left[group], self.unit);
        if left < self.unit {
            self.media_written += u128::from(left);
            self.record(NOT_FULL, identifier, nsid, place);
        }
        Ok(())
    }

    /// Records an event, if that is wanted of the handle (base21 5.1.12.1.28, "FDP Event").
    fn record(&mut self, kind: u8, identifier: u16, nsid: u32, (group, handle): (usize, usize)) {
        let at = TYPES.iter().position(|known| *known == kind).unwrap_or(0);
        if self.handles[handle].recorded & 1 << at == 0 {
            return;
        }
        let mut event = [0; 64];
        // Placement identifier and namespace are valid, and where the placement is: not where there is none.
        event[..2].copy_from_slice(&[kind, 0b011 | u8::from(kind != INVALID_PLACEMENT) << 2]);
        event[2..4].copy_from_slice(&identifier.to_le_bytes());
        event[12..16].copy_from_slice(&nsid.to_le_bytes());
        event[32..34].copy_from_slice(&(group as u16).to_le_bytes());
        event[34] = handle as u8;
        if self.events.len() == EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// The log page of an endurance group (base21 5.1.12.1.25 to 28): configurations, usage, statistics, events of hosts (LSP bit 0) or the controller's.
    pub(super) fn log(&self, id: u8, group: u16, of_hosts: bool) -> Result<Vec<u8>, Status> {
        if group != GROUP {
            return Err(Status::INVALID_FIELD);
        }
        let handles = self.handles.len() as u16;
        if id == super::log::page::FDP_CONFIGS {
            let mut one = vec![0; 64];
            let mut put = |at: usize, bytes: &[u8]| one[at..at + bytes.len()].copy_from_slice(bytes);
            let size = (64 + 4 * self.handles.len()).next_multiple_of(8);
            put(0, &(size as u16).to_le_bytes());
            put(2, &[1 << 7 | self.group_bits as u8]);
            put(4, &u32::from(self.groups).to_le_bytes());
            put(8, &handles.to_le_bytes());
            put(10, &(handles * self.groups - 1).to_le_bytes());
            put(12, &super::params::MAX_NAMESPACES.to_le_bytes());
            put(16, &self.unit.to_le_bytes());
            one.extend((0..handles).flat_map(|_| [INITIALLY_ISOLATED, 0, 0, 0]));
            one.resize(size, 0);
            // One configuration, 0's based; the size of the log page.
            let mut page = vec![0; 16];
            page[4..8].copy_from_slice(&(16 + size as u32).to_le_bytes());
            page.extend(one);
            return Ok(page);
        }
        if !self.enabled {
            return Err(Status::FDP_DISABLED);
        }
        Ok(match id {
            super::log::page::FDP_USAGE => {
                let mut page = vec![0; 8];
                page[..2].copy_from_slice(&handles.to_le_bytes());
                // Hosts name them all.
                page.extend((0..handles).flat_map(|_| [1, 0, 0, 0, 0, 0, 0, 0]));
                page
            }
            super::log::page::FDP_STATISTICS => {
                let words = [self.host_written, self.media_written, 0, 0];
                words.into_iter().flat_map(u128::to_le_bytes).collect()
            }
            _ => {
                let events = self.events.iter().filter(|_| of_hosts);
                let mut page = vec![0; 64];
                page[..4].copy_from_slice(&(events.clone().count() as u32).to_le_bytes());
                page.extend(events.flatten());
                page
            }
        })
    }

    /// Feature 1dh (base21 5.1.25.1.20).
    pub(super) fn mode(&self, group: u32) -> Result<u32, Status> {
        if group == u32::from(GROUP) { Ok(self.enabled.into()) } else { Err(Status::INVALID_FIELD) }
    }

    /// Sets feature 1dh: `value` is dword 12. Not while there are namespaces.
    pub(super) fn set_mode(&mut self, group: u32, value: u32, namespaces: bool) -> Result<(), Status> {
        match (group == u32::from(GROUP), value >> 8 & 0xff) {
            (true, 0) if namespaces => Err(Status::COMMAND_SEQUENCE),
            (true, 0) => {
                self.enabled = value & 1 != 0;
                Ok(())
            }
            _ => Err(Status::INVALID_FIELD),
        }
    }

    /// The handle that feature 1eh is asked of: in bits 15:0 of dword 11; and how many types, in bits 23:16.
    fn events_of(&mut self, value: u32) -> Result<(&mut Handle, usize), Status> {
        if !self.enabled {
            return Err(Status::FDP_DISABLED);
        }
        let handle = self.handles.get_mut((value & 0xffff) as usize).ok_or(Status::INVALID_FIELD)?;
        match value >> 16 & 0xff {
            0 => Err(Status::INVALID_FIELD),
            count => Ok((handle, count as usize)),
        }
    }

    /// Feature 1eh (base21 5.1.25.1.21): each type, and whether it is recorded.
    pub(super) fn recorded(&mut self, value: u32) -> Result<Vec<u8>, Status> {
        let (handle, count) = self.events_of(value)?;
        let each = TYPES.iter().enumerate().take(count);
        Ok(each.flat_map(|(at, kind)| [*kind, handle.recorded >> at & 1]).collect())
    }

    /// How many types feature 1eh is to be set of, all of which are in the data.
    pub(super) fn types_in(&mut self, value: u32) -> Result<usize, Status> {
        self.events_of(value).map(|(_, count)| count)
    }

    /// Sets feature 1eh.
    pub(super) fn set_recorded(&mut self, value: u32, types: &[u8], on: bool) -> Result<(), Status> {
        let (handle, _) = self.events_of(value)?;
        for kind in types {
            let at = TYPES.iter().position(|known| known == kind).ok_or(Status::INVALID_FIELD)?;
            handle.recorded = handle.recorded & !(1 << at) | u8::from(on) << at;
        }
        Ok(())
    }
}

/// Streams.
pub(super) struct Streams {
    /// How many there can be.
    limit: u16,
    of: BTreeMap<u32, NamespaceStreams>,
}

/// Those of a namespace.
#[derive(Default)]
struct NamespaceStreams {
    enabled: bool,
    /// How many it has for its own.
    allocated: u16,
    open: BTreeSet<u16>,
}

impl Streams {
    pub(super) fn new(limit: u16) -> Self {
        Self { limit, of: BTreeMap::new() }
    }

    /// After a reset none is enabled, open or a namespace's own (base 8.7.2, 8.7.3).
    pub(super) fn reset(&mut self) {
        self.of.clear();
    }

    fn allocated(&self) -> u16 {
        self.of.values().map(|ns| ns.allocated).sum()
    }

    /// Those that are open and no namespace's own.
    fn open_of_all(&self) -> u16 {
        self.of.values().filter(|ns| ns.allocated == 0).map(|ns| ns.open.len() as u16).sum()
    }

    /// A write names a stream, which is open from then on; where there is no room for one more, the write is one of none.
    fn write(&mut self, nsid: u32, id: u16) {
        let shared = self.limit - self.allocated();
        let open_of_all = self.open_of_all();
        let Some(ns) = self.of.get_mut(&nsid) else { return };
        let room = match ns.allocated {
            0 => open_of_all < shared,
            own => (ns.open.len() as u16) < own,
        };
        if id != 0 && room {
            ns.open.insert(id);
        }
    }
}

/// DTYPE, in bits 23:20 of dword 12, and DSPEC, in bits 31:16 of dword 13.
#[inline]
fn directive(cmd: &Command) -> (u8, u16) {
    ((cmd.cdw12() >> 20 & 0xf) as u8, (cmd.cdw13() >> 16) as u16)
}

impl Store {
    pub(super) fn fdp(&mut self) -> Result<&mut Fdp, Status> {
        self.fdp.as_deref_mut().ok_or(Status::INVALID_FIELD)
    }

    /// Whether a write can name the directive that it names.
    #[inline]
    pub(super) fn may_place(&self, cmd: &Command) -> Result<(), Status> {
        let may = match directive(cmd) {
            (IDENTIFY, _) => true,
            (STREAMS, _) => {
                self.streams.as_ref().and_then(|streams| streams.of.get(&cmd.nsid())).is_some_and(|ns| ns.enabled)
            }
            (DATA_PLACEMENT, _) => self.fdp.as_ref().is_some_and(|fdp| fdp.enabled),
            _ => false,
        };
        if may { Ok(()) } else { Err(Status::INVALID_FIELD) }
    }

    /// A write of `len` bytes went somewhere.
    #[inline]
    pub(super) fn place(&mut self, cmd: &Command, len: u64) {
        let (kind, specific) = directive(cmd);
        if let Some(fdp) = self.fdp.as_mut().filter(|fdp| fdp.enabled) {
            fdp.write(cmd.nsid(), (kind == DATA_PLACEMENT).then_some(specific), len);
        }
        if let (STREAMS, Some(streams)) = (kind, &mut self.streams) {
            streams.write(cmd.nsid(), specific);
        }
    }

    /// I/O Management Receive (base21 7.3): nothing, or the status of reclaim unit handles.
    pub(super) fn management_receive(&mut self, host: &Host<'_>, cmd: &Command, rules: Rules) -> Result<(), Status> {
        let fdp = self.fdp.as_ref().ok_or(Status::INVALID_OPCODE)?;
        let shift = active(&mut self.namespaces, cmd.nsid())?.shift;
        let len = (u64::from(cmd.cdw11()) + 1) * 4;
        if len > self.max_transfer.min(data::LONGEST) {
            return Err(Status::INVALID_FIELD);
        }
        let mut bytes = match cmd.cdw10() & 0xff {
            0 => return Ok(()),
            1 if !fdp.enabled => return Err(Status::FDP_DISABLED),
            1 => {
                let mut bytes = vec![0; 16];
                bytes[14..].copy_from_slice(&(fdp.handles.len() as u16 * fdp.groups).to_le_bytes());
                for (id, handle) in (0..).zip(&fdp.handles) {
                    for (group, left) in (0..).zip(&handle.left) {
                        let mut one = [0; 32];
                        one[..2].copy_from_slice(&fdp.identifier(group, id).to_le_bytes());
                        one[2..4].copy_from_slice(&id.to_le_bytes());
                        one[8..16].copy_from_slice(&(left >> shift).to_le_bytes());
                        bytes.extend(one);
                    }
                }
                bytes
            }
            _ => return Err(Status::INVALID_FIELD),
        };
        bytes.resize(len as usize, 0);
        data::copy_out(host, cmd, &bytes, rules)
    }

    /// I/O Management Send (base21 7.4): nothing, or other reclaim units for placements. All of them are known to be there before one is changed.
    pub(super) fn management_send(&mut self, host: &Host<'_>, cmd: &Command, rules: Rules) -> Result<(), Status> {
        let fdp = self.fdp.as_mut().ok_or(Status::INVALID_OPCODE)?;
        active(&mut self.namespaces, cmd.nsid())?;
        match cmd.cdw10() & 0xff {
            0 => return Ok(()),
            1 if !fdp.enabled => return Err(Status::FDP_DISABLED),
            1 => {}
            _ => return Err(Status::INVALID_FIELD),
        }
        let count = (cmd.cdw10() >> 16) as usize + 1;
        if count > fdp.handles.len() * usize::from(fdp.groups) {
            return Err(Status::INVALID_FIELD);
        }
        let mut bytes = vec![0; 2 * count];
        data::copy_in(host, cmd, &mut bytes, rules)?;
        let (words, _) = bytes.as_chunks::<2>();
        let ids = || words.iter().map(|w| u16::from_le_bytes(*w));
        if ids().any(|id| fdp.parse(id).is_none()) {
            return Err(Status::INVALID_FIELD);
        }
        ids().try_for_each(|id| fdp.update(cmd.nsid(), id))
    }

    /// Directive Receive (base 5.10): its data, and dword 0.
    pub(super) fn directive_receive(&mut self, cmd: &Command) -> Result<(Vec<u8>, u32), Status> {
        let (operation, kind, all) = (cmd.cdw11() as u8, (cmd.cdw11() >> 8) as u8, cmd.nsid() == u32::MAX);
        if !all {
            active(&mut self.namespaces, cmd.nsid())?;
        }
        let placed = self.fdp.as_ref().is_some_and(|fdp| fdp.enabled);
        let mut bytes = vec![0; 32];
        let mut put = |at: usize, value: u16| bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
        match (kind, operation, &mut self.streams) {
            (IDENTIFY, 1, streams) => {
                let enabled = streams.as_ref().and_then(|s| s.of.get(&cmd.nsid())).is_some_and(|ns| ns.enabled);
                let bits = |streams: bool, placed: bool| {
                    1 << IDENTIFY | u8::from(streams) << STREAMS | u8::from(placed) << DATA_PLACEMENT
                };
                bytes[0] = bits(streams.is_some(), self.fdp.is_some());
                bytes.resize(4096, 0);
                (bytes[32], bytes[64]) = (bits(enabled, placed), bits(false, placed) & !1);
                Ok((bytes, 0))
            }
            (STREAMS, 1, Some(streams)) => {
                put(0, streams.limit);
                put(2, streams.limit - streams.allocated());
                put(4, streams.open_of_all());
                // SWS, in blocks, and SGS.
                put(16, 8);
                put(20, 16);
                if let Some(ns) = streams.of.get(&cmd.nsid()) {
                    put(22, ns.allocated);
                    put(24, if ns.allocated > 0 { ns.open.len() as u16 } else { 0 });
                }
                Ok((bytes, 0))
            }
            (STREAMS, 2, Some(streams)) => {
                let open: Vec<u16> = streams.of.get(&cmd.nsid()).into_iter().flat_map(|ns| &ns.open).copied().collect();
                let words = std::iter::once(open.len() as u16).chain(open);
                Ok((words.flat_map(u16::to_le_bytes).collect(), 0))
            }
            (STREAMS, 3, Some(streams)) if !all => {
                let free = streams.limit - streams.allocated() - streams.open_of_all();
                let ns = streams.of.entry(cmd.nsid()).or_default();
                let asked = cmd.cdw12() as u16;
                if asked == 0 || free == 0 || ns.allocated > 0 {
                    return Err(Status::STREAMS_NOT_ALLOCATED);
                }
                ns.allocated = asked.min(free);
                ns.open.clear();
                Ok((Vec::new(), ns.allocated.into()))
            }
            _ => Err(Status::INVALID_FIELD),
        }
    }

    /// Directive Send (base 5.11).
    pub(super) fn directive_send(&mut self, cmd: &Command) -> Result<(), Status> {
        let (operation, kind, specific) = (cmd.cdw11() as u8, (cmd.cdw11() >> 8) as u8, (cmd.cdw11() >> 16) as u16);
        active(&mut self.namespaces, cmd.nsid())?;
        let streams = self.streams.as_mut().ok_or(Status::INVALID_FIELD)?;
        let ns = streams.of.entry(cmd.nsid()).or_default();
        match (kind, operation) {
            // Enable Directive: which, and whether, are in dword 12. What is closed has no streams.
            (IDENTIFY, 1) if cmd.cdw12() >> 8 & 0xff == u32::from(STREAMS) => {
                *ns = NamespaceStreams { enabled: cmd.cdw12() & 1 != 0, ..NamespaceStreams::default() };
            }
            (STREAMS, 1) => drop(ns.open.remove(&specific)),
            (STREAMS, 2) => (ns.allocated, ns.open) = (0, BTreeSet::new()),
            _ => return Err(Status::INVALID_FIELD),
        }
        Ok(())
    }
}

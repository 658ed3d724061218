//! Zones: their states, and what commands make of them (NVM Express Zoned Namespace Command Set 1.1, "zns").

use super::bits::{Status, zone};
use super::command::Command;
use super::data::{self, Rules};
use super::io::{Namespace, Store, active};
use crate::faults::Fault;
use wholebar_core::model::Host;

/// The state of a zone (zns 2.1.1.3), as its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Empty = 1,
    ImplicitlyOpened = 2,
    ExplicitlyOpened = 3,
    Closed = 4,
    ReadOnly = 13,
    Full = 14,
    Offline = 15,
}

#[derive(Debug, Clone, Copy)]
struct Zone {
    state: State,
    /// The next block to write.
    pointer: u64,
}

/// The zones of a namespace.
pub(super) struct Zones {
    /// Blocks from one to the next, and how many of them can be written.
    pub(super) size: u64,
    pub(super) capacity: u64,
    /// How many can be open, and open or closed; 0 for no limit.
    pub(super) max_open: u32,
    pub(super) max_active: u32,
    zones: Vec<Zone>,
}

/// Bytes of a report's head, and of a zone's descriptor.
const DESCRIPTOR: usize = 64;

impl Zones {
    /// `count` empty zones.
    pub(super) fn new(count: u64, size: u64, capacity: u64, max_open: u32, max_active: u32) -> Self {
        let zones = (0..count).map(|i| Zone { state: State::Empty, pointer: i * size }).collect();
        Self { size, capacity, max_open, max_active, zones }
    }

    /// Empty ones, of blocks of another size: zones stay as they are in bytes.
    pub(super) fn of_blocks(&self, bytes: u64, was: u32, shift: u32) -> Self {
        let (size, capacity) = (self.size << was >> shift, self.capacity << was >> shift);
        Self::new((bytes >> shift) / size, size, capacity, self.max_open, self.max_active)
    }

    /// The zone of a block, which the namespace has.
    fn index(&self, lba: u64) -> usize {
        (lba / self.size) as usize
    }

    fn start(&self, index: usize) -> u64 {
        index as u64 * self.size
    }

    fn count(&self, states: &[State]) -> usize {
        self.zones.iter().filter(|zone| states.contains(&zone.state)).count()
    }

    /// Has a zone open: one that is opened implicitly gives way where there are too many (zns 2.1.1.4).
    fn open(&mut self, index: usize, state: State) -> Result<(), Status> {
        use State::{Closed, Empty, ExplicitlyOpened, ImplicitlyOpened};
        let was = self.zones[index].state;
        let reaches = |limit: u32, count: usize| limit > 0 && count >= limit as usize;
        if was == Empty && reaches(self.max_active, self.count(&[ImplicitlyOpened, ExplicitlyOpened, Closed])) {
            return Err(Status::TOO_MANY_ACTIVE);
        }
        if matches!(was, Empty | Closed) && reaches(self.max_open, self.count(&[ImplicitlyOpened, ExplicitlyOpened])) {
            let other = self.zones.iter_mut().find(|zone| zone.state == ImplicitlyOpened);
            other.ok_or(Status::TOO_MANY_OPEN)?.state = Closed;
        }
        self.zones[index].state = state;
        Ok(())
    }

    /// A write of `blocks` from `lba` on.
    fn write(&mut self, lba: u64, blocks: u64) -> Result<(), Status> {
        let index = self.index(lba);
        let (Zone { state, pointer }, end) = (self.zones[index], self.start(index) + self.capacity);
        match state {
            State::ReadOnly => return Err(Status::ZONE_READ_ONLY),
            State::Offline => return Err(Status::ZONE_OFFLINE),
            State::Full => return Err(Status::ZONE_FULL),
            _ if lba + blocks > end => return Err(Status::ZONE_BOUNDARY),
            _ if lba != pointer => return Err(Status::ZONE_INVALID_WRITE),
            State::Empty | State::Closed => self.open(index, State::ImplicitlyOpened)?,
            State::ImplicitlyOpened | State::ExplicitlyOpened => {}
        }
        let zone = &mut self.zones[index];
        zone.pointer += blocks;
        if zone.pointer == end {
            zone.state = State::Full;
        }
        Ok(())
    }

    /// A read; none goes from a zone into the next.
    fn read(&self, lba: u64, blocks: u64) -> Result<(), Status> {
        let index = self.index(lba);
        if self.zones[index].state == State::Offline {
            return Err(Status::ZONE_OFFLINE);
        }
        if self.index(lba + blocks - 1) != index { Err(Status::ZONE_BOUNDARY) } else { Ok(()) }
    }

    /// Does something to a zone (zns 3.4.3); returns whether what is in it is gone.
    fn act(&mut self, index: usize, action: u32) -> Result<bool, Status> {
        use State::{Closed, Empty, ExplicitlyOpened, Full, ImplicitlyOpened, Offline, ReadOnly};
        let (start, state) = (self.start(index), self.zones[index].state);
        let to = match (action, state) {
            (zone::CLOSE, ImplicitlyOpened | ExplicitlyOpened) => {
                if self.zones[index].pointer == start {
                    Empty
                } else {
                    Closed
                }
            }
            (zone::CLOSE, Closed) => Closed,
            (zone::FINISH, Empty | ImplicitlyOpened | ExplicitlyOpened | Closed | Full) => Full,
            (zone::OPEN, Empty | ImplicitlyOpened | ExplicitlyOpened | Closed) => {
                self.open(index, ExplicitlyOpened)?;
                ExplicitlyOpened
            }
            (zone::RESET, Empty | ImplicitlyOpened | ExplicitlyOpened | Closed | Full) => Empty,
            (zone::OFFLINE, ReadOnly | Offline) => Offline,
            (zone::CLOSE..=zone::OFFLINE, _) => return Err(Status::ZONE_TRANSITION),
            _ => return Err(Status::INVALID_FIELD),
        };
        self.zones[index].state = to;
        if to == Empty {
            self.zones[index].pointer = start;
        }
        Ok(action == zone::RESET && state != Empty)
    }

    /// The zones that an action on all of them is for.
    fn all_for(&self, action: u32) -> Vec<usize> {
        use State::{Closed, ExplicitlyOpened, Full, ImplicitlyOpened, ReadOnly};
        let states: &[State] = match action {
            zone::CLOSE => &[ImplicitlyOpened, ExplicitlyOpened],
            zone::FINISH => &[ImplicitlyOpened, ExplicitlyOpened, Closed],
            zone::OPEN => &[Closed],
            zone::RESET => &[ImplicitlyOpened, ExplicitlyOpened, Closed, Full],
            zone::OFFLINE => &[ReadOnly],
            _ => &[],
        };
        (0..self.zones.len()).filter(|index| states.contains(&self.zones[*index].state)).collect()
    }

    /// A report of zones from that of `lba` on, in `len` bytes (zns 3.4.2.2).
    fn report(&self, lba: u64, filter: u32, partial: bool, len: usize) -> Result<Vec<u8>, Status> {
        use State::{Closed, Empty, ExplicitlyOpened, Full, ImplicitlyOpened, Offline, ReadOnly};
        let wanted = match filter {
            0 => None,
            1 => Some(Empty),
            2 => Some(ImplicitlyOpened),
            3 => Some(ExplicitlyOpened),
            4 => Some(Closed),
            5 => Some(Full),
            6 => Some(ReadOnly),
            7 => Some(Offline),
            _ => return Err(Status::INVALID_FIELD),
        };
        let all = self.zones.iter().enumerate().skip(self.index(lba));
        let matching: Vec<_> = all.filter(|(_, zone)| wanted.is_none_or(|state| zone.state == state)).collect();
        let mut report = vec![0; len];
        let mut listed = 0u64;
        for ((index, zone), to) in
            matching.iter().zip(report.get_mut(DESCRIPTOR..).unwrap_or(&mut []).chunks_exact_mut(DESCRIPTOR))
        {
            // Zone type: sequential write required.
            (to[0], to[1]) = (2, (zone.state as u8) << 4);
            to[8..16].copy_from_slice(&self.capacity.to_le_bytes());
            to[16..24].copy_from_slice(&self.start(*index).to_le_bytes());
            let pointer = if matches!(zone.state, Full | ReadOnly | Offline) { u64::MAX } else { zone.pointer };
            to[24..32].copy_from_slice(&pointer.to_le_bytes());
            listed += 1;
        }
        let count = if partial { listed } else { matching.len() as u64 };
        report.iter_mut().zip(count.to_le_bytes()).for_each(|(to, byte)| *to = byte);
        Ok(report)
    }
}

impl Namespace {
    /// Whether blocks can be written, where that depends on their zone; it has them then.
    #[inline]
    pub(super) fn zone_write(&mut self, lba: u64, blocks: u64) -> Result<(), Status> {
        self.zones.as_mut().map_or(Ok(()), |zones| zones.write(lba, blocks))
    }

    /// Whether blocks can be read, where that depends on their zone.
    #[inline]
    pub(super) fn zone_read(&self, lba: u64, blocks: u64) -> Result<(), Status> {
        self.zones.as_ref().map_or(Ok(()), |zones| zones.read(lba, blocks))
    }

    /// The zones, of a command that is for zoned namespaces alone.
    fn zoned(&mut self) -> Result<&mut Zones, Status> {
        self.zones.as_deref_mut().ok_or(Status::INVALID_OPCODE)
    }
}

impl Store {
    /// Zone Append (zns 3.4.1): a write at the write pointer of the zone that begins at the LBA; which block that was is the result.
    pub(super) fn zone_append(&mut self, host: &Host<'_>, cmd: &Command, rules: Rules) -> Result<(), Status> {
        let limit = self.max_append;
        let ns = active(&mut self.namespaces, cmd.nsid())?;
        ns.zoned()?;
        let (at, len) = ns.extent(cmd)?;
        ns.may_write()?;
        let (lba, shift) = (at >> ns.shift, ns.shift);
        let zones = ns.zoned()?;
        if !lba.is_multiple_of(zones.size) || len > limit {
            return Err(Status::INVALID_FIELD);
        }
        let index = zones.index(lba);
        // That of a full zone is in the next.
        let to = zones.zones[index].pointer;
        zones.write(if zones.zones[index].state == State::Full { lba } else { to }, len >> shift)?;
        self.spent += len;
        ns.store(host, cmd, to << shift, len, rules)?;
        self.result = to;
        self.count_write(cmd, len)
    }

    /// Zone Management Send (zns 3.4.3): an action in bits 7:0 of dword 13, on all zones with bit 8.
    pub(super) fn zone_send(&mut self, cmd: &Command) -> Result<(), Status> {
        let ns = active(&mut self.namespaces, cmd.nsid())?;
        ns.zoned()?;
        ns.may_write()?;
        let (lba, action, all) = (cmd.cdw10_11(), cmd.cdw13() & 0xff, cmd.cdw13() & 1 << 8 != 0);
        let (blocks, shift) = (ns.blocks, ns.shift);
        let zones = ns.zoned()?;
        if !all && lba >= blocks {
            return Err(Status::LBA_OUT_OF_RANGE);
        }
        if !(zone::CLOSE..=zone::OFFLINE).contains(&action) || !all && !lba.is_multiple_of(zones.size) {
            return Err(Status::INVALID_FIELD);
        }
        let these = if all { zones.all_for(action) } else { vec![zones.index(lba)] };
        for index in these {
            let zones = ns.zoned()?;
            let (start, size) = (zones.start(index), zones.size);
            if zones.act(index, action)? {
                ns.media.zero(start << shift, size << shift)?;
            }
        }
        Ok(())
    }

    /// Zone Management Receive (zns 3.4.2): a report, without descriptor extensions, which there are none of.
    pub(super) fn zone_receive(&mut self, host: &Host<'_>, cmd: &Command, rules: Rules) -> Result<(), Status> {
        let limit = self.max_transfer.min(data::LONGEST);
        let ns = active(&mut self.namespaces, cmd.nsid())?;
        ns.zoned()?;
        let (lba, len, fields) = (cmd.cdw10_11(), (u64::from(cmd.cdw12()) + 1) * 4, cmd.cdw13());
        if lba >= ns.blocks {
            return Err(Status::LBA_OUT_OF_RANGE);
        }
        if len > limit || fields & 0xff != 0 {
            return Err(Status::INVALID_FIELD);
        }
        let report = ns.zoned()?.report(lba, fields >> 8 & 0xff, fields >> 16 & 1 != 0, len as usize)?;
        self.spent += len;
        data::copy_out(host, cmd, &report, rules)
    }

    /// A fault: the zone of a command's first block can be read only, or not even that, from now on.
    pub(super) fn spoil_zone(&mut self, cmd: &Command, fault: Fault) {
        let lba = cmd.cdw10_11();
        let Ok(ns) = active(&mut self.namespaces, cmd.nsid()) else { return };
        if let Some(zones) = ns.zones.as_deref_mut().filter(|_| lba < ns.blocks) {
            let index = zones.index(lba);
            zones.zones[index].state = if fault == Fault::ZoneOffline { State::Offline } else { State::ReadOnly };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states(zones: &Zones) -> Vec<State> {
        zones.zones.iter().map(|zone| zone.state).collect()
    }

    #[test]
    fn zones_are_written_in_order_and_within_their_limits() {
        use State::{Closed, Empty, ExplicitlyOpened, Full, ImplicitlyOpened};
        let mut zones = Zones::new(4, 16, 12, 2, 3);
        assert_eq!(zones.write(1, 1), Err(Status::ZONE_INVALID_WRITE));
        assert_eq!(zones.write(0, 13), Err(Status::ZONE_BOUNDARY));
        zones.write(0, 4).unwrap();
        zones.write(16, 1).unwrap();
        // The third of two: the first gives way, as it is not opened explicitly.
        zones.write(32, 1).unwrap();
        assert_eq!(states(&zones), [Closed, ImplicitlyOpened, ImplicitlyOpened, Empty]);
        assert_eq!(zones.write(48, 1), Err(Status::TOO_MANY_ACTIVE));
        zones.act(1, zone::OPEN).unwrap();
        zones.act(2, zone::OPEN).unwrap();
        assert_eq!(zones.write(4, 1), Err(Status::TOO_MANY_OPEN));
        zones.act(2, zone::FINISH).unwrap();
        zones.write(4, 8).unwrap();
        assert_eq!(states(&zones), [Full, ExplicitlyOpened, Full, Empty]);
        assert_eq!(zones.write(0, 1), Err(Status::ZONE_FULL));
        assert_eq!(zones.act(0, zone::CLOSE), Err(Status::ZONE_TRANSITION));
        assert_eq!(zones.act(0, zone::OFFLINE), Err(Status::ZONE_TRANSITION));
        assert_eq!(zones.act(0, zone::RESET), Ok(true));
        assert_eq!((states(&zones)[0], zones.zones[0].pointer), (Empty, 0));
        assert_eq!(zones.read(15, 2), Err(Status::ZONE_BOUNDARY));
    }

    #[test]
    fn reports_say_how_many_match_or_are_listed() {
        let mut zones = Zones::new(4, 16, 12, 0, 0);
        zones.write(16, 1).unwrap();
        let count = |report: Vec<u8>| report[0];
        assert_eq!(count(zones.report(0, 0, false, 128).unwrap()), 4);
        assert_eq!(count(zones.report(0, 0, true, 128).unwrap()), 1);
        assert_eq!(count(zones.report(17, 0, true, 4096).unwrap()), 3);
        let open = zones.report(0, 2, true, 4096).unwrap();
        assert_eq!((open[0], open[64 + 16], open[64 + 24]), (1, 16, 17));
        assert_eq!(count(zones.report(0, 0, true, 4).unwrap()), 0);
        assert_eq!(zones.report(0, 9, true, 64), Err(Status::INVALID_FIELD));
    }
}

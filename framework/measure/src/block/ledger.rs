//! Which part of the namespace a lane works on, and what it does there next; where data are verified, what was written where.
//!
//! A *unit* is a block-size piece of the span. Each lane has units of its own, so no two commands in flight ever meet.

use super::pattern::{self, Fault};
use super::{Direction, Order, Workload};
use crate::{Error, Result};
use fastrand::Rng;
use std::collections::TryReserveError;

/// A command to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pick {
    /// Unit within the lane's span.
    pub unit: u64,
    /// A write, else a read.
    pub write: bool,
}

/// Picks what is done next.
pub struct Ledger {
    rng: Rng,
    units: u64,
    workload: Workload,
    next: u64,
    mode: Mode,
    record: Option<Record>,
}

#[derive(PartialEq)]
enum Mode {
    Running,
    /// Reading what was written, once.
    ReadBack,
    Stopped,
}

/// What verification knows: the generation each unit has, and whether a command is on it now.
struct Record {
    run: u32,
    generation: u32,
    /// 0: not written by this run, or nobody knows.
    written: Vec<u32>,
    busy: Vec<bool>,
}

/// The most units of a lane that are remembered, in 5 bytes each: a terabyte in units of 4 KiB.
const REMEMBERED: u64 = 1 << 28;

impl Record {
    fn new(run: u32, units: u64) -> Result<Self> {
        fn of<T: Clone + Default>(units: usize) -> Result<Vec<T>, TryReserveError> {
            let mut all = Vec::new();
            all.try_reserve_exact(units)?;
            all.resize(units, T::default());
            Ok(all)
        }
        let refused = |cause| Error::Ledger { units, cause };
        if units > REMEMBERED {
            return Err(refused(format!("{REMEMBERED} a queue are the most")));
        }
        let memory = |error: TryReserveError| refused(error.to_string());
        Ok(Self {
            run,
            generation: 0,
            written: of(units as usize).map_err(memory)?,
            busy: of(units as usize).map_err(memory)?,
        })
    }
}

impl Ledger {
    /// For a lane with so many units. `verify` is the number of the run, where data are to be verified.
    ///
    /// # Errors
    /// Where there is no memory to remember what was written in so many units.
    pub fn new(workload: Workload, units: u64, seed: u64, verify: Option<u32>) -> Result<Self> {
        let record = verify.map(|run| Record::new(run, units)).transpose()?;
        Ok(Self { rng: Rng::with_seed(seed), units, workload, next: 0, mode: Mode::Running, record })
    }

    /// What to do next; `None` where there is nothing left.
    #[inline]
    pub fn pick(&mut self) -> Option<Pick> {
        if self.mode != Mode::Running || self.record.is_some() {
            return self.pick_carefully();
        }
        Some(Pick { unit: self.unit(), write: self.writes() })
    }

    #[inline]
    fn unit(&mut self) -> u64 {
        match self.workload.order {
            Order::Random => self.rng.u64(0..self.units),
            Order::Sequential => {
                let unit = self.next;
                self.next = if unit + 1 == self.units { 0 } else { unit + 1 };
                unit
            }
        }
    }

    #[inline]
    fn writes(&mut self) -> bool {
        match self.workload.direction {
            Direction::Read => false,
            Direction::Write => true,
            Direction::Mixed { read_percent } => self.rng.u8(0..100) >= read_percent,
        }
    }

    #[cold]
    fn pick_carefully(&mut self) -> Option<Pick> {
        match self.mode {
            Mode::Stopped => None,
            Mode::ReadBack => {
                let record = self.record.as_mut()?;
                let unit = (self.next..self.units).find(|u| record.written[*u as usize] > 0)?;
                self.next = unit + 1;
                record.busy[unit as usize] = true;
                Some(Pick { unit, write: false })
            }
            Mode::Running => {
                let (mut unit, mut write) = (self.unit(), self.writes());
                let record = self.record.as_mut()?;
                // More units than commands in flight: one is idle.
                while record.busy[unit as usize] {
                    unit = (unit + 1) % self.units;
                }
                // Only what was written can be read, unless nothing is going to be.
                write |= record.written[unit as usize] == 0 && self.workload.direction != Direction::Read;
                record.busy[unit as usize] = true;
                Some(Pick { unit, write })
            }
        }
    }

    /// Whether data are verified.
    #[inline]
    pub fn verifies(&self) -> bool {
        self.record.is_some()
    }

    /// Fills what is about to be written.
    pub fn fill(&mut self, pick: Pick, bytes: &mut [u8], block: usize, lba: u64) {
        let Some(record) = &mut self.record else { return };
        record.generation = record.generation.wrapping_add(1).max(1);
        record.written[pick.unit as usize] = record.generation;
        pattern::fill(bytes, block, lba, record.run, record.generation);
    }

    /// A command is over: `bytes` is what it read or wrote, `None` where it failed.
    pub fn done(&mut self, pick: Pick, bytes: Option<&[u8]>, block: usize, lba: u64) -> Result<(), Fault> {
        let Some(record) = &mut self.record else { return Ok(()) };
        let unit = pick.unit as usize;
        record.busy[unit] = false;
        match bytes {
            // A write that failed may have been done in part: nobody knows what is there.
            None if pick.write => record.written[unit] = 0,
            Some(bytes) if !pick.write => {
                let written = (record.written[unit] > 0).then_some((record.run, record.written[unit]));
                return pattern::check(bytes, block, lba, written);
            }
            _ => {}
        }
        Ok(())
    }

    /// Picks nothing more.
    pub fn stop(&mut self) {
        self.mode = Mode::Stopped;
    }

    /// From now on, what was written is read once. Returns how many units that is.
    pub fn read_back(&mut self) -> u64 {
        let written = self.record.as_ref().map_or(0, |r| r.written.iter().filter(|g| **g > 0).count() as u64);
        (self.mode, self.next) = (Mode::ReadBack, 0);
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Workload = Workload { order: Order::Random, direction: Direction::Read };

    #[test]
    fn random_units_are_everywhere_and_nowhere_else() {
        let mut ledger = Ledger::new(READ, 10, 1, None).unwrap();
        let mut seen = [0; 10];
        for _ in 0..10_000 {
            let pick = ledger.pick().unwrap();
            assert!(!pick.write);
            seen[pick.unit as usize] += 1;
        }
        assert!(seen.iter().all(|n| (800..1200).contains(n)), "{seen:?}");
        ledger.stop();
        assert_eq!(ledger.pick(), None);
    }

    #[test]
    fn a_mix_is_what_was_asked_for() {
        let direction = Direction::Mixed { read_percent: 70 };
        let mut ledger = Ledger::new(Workload { order: Order::Sequential, direction }, 3, 1, None).unwrap();
        let picks: Vec<_> = (0..10_000).map(|_| ledger.pick().unwrap()).collect();
        assert_eq!(picks.iter().take(5).map(|p| p.unit).collect::<Vec<_>>(), [0, 1, 2, 0, 1]);
        let writes = picks.iter().filter(|p| p.write).count();
        assert!((2800..3200).contains(&writes), "{writes}");
    }

    #[test]
    fn verified_units_are_never_busy_twice_and_written_before_they_are_read() {
        let direction = Direction::Mixed { read_percent: 90 };
        let mut ledger = Ledger::new(Workload { order: Order::Random, direction }, 8, 1, Some(5)).unwrap();
        let (mut stored, mut flying) = (vec![vec![0; 512]; 8], Vec::new());
        for _ in 0..1000 {
            if flying.len() == 7 {
                let pick: Pick = flying.remove(0);
                assert_eq!(ledger.done(pick, Some(&stored[pick.unit as usize]), 512, pick.unit), Ok(()));
            }
            let pick = ledger.pick().unwrap();
            assert!(flying.iter().all(|f: &Pick| f.unit != pick.unit));
            if pick.write {
                ledger.fill(pick, &mut stored[pick.unit as usize], 512, pick.unit);
            }
            flying.push(pick);
        }
        for pick in flying {
            assert_eq!(ledger.done(pick, Some(&stored[pick.unit as usize]), 512, pick.unit), Ok(()));
        }
        assert_eq!(ledger.read_back(), 8);
        stored[3].swap_with_slice(&mut [0; 512]);
        for (unit, stored) in stored.iter().enumerate() {
            let pick = ledger.pick().unwrap();
            let found = ledger.done(pick, Some(stored), 512, pick.unit);
            assert_eq!(found, if unit == 3 { Err(Fault::NoPattern) } else { Ok(()) });
        }
        assert_eq!(ledger.pick(), None);
    }

    #[test]
    fn after_a_write_that_failed_anything_may_be_there() {
        let direction = Direction::Write;
        let mut ledger = Ledger::new(Workload { order: Order::Sequential, direction }, 1, 1, Some(5)).unwrap();
        let pick = ledger.pick().unwrap();
        ledger.fill(pick, &mut [0; 512], 512, 0);
        assert_eq!(ledger.done(pick, None, 512, 0), Ok(()));
        assert_eq!(ledger.read_back(), 0);
    }
}

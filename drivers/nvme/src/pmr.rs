//! The persistent memory region (NVM Express Base 2.0, 8.14 and 3.1.3.20 to 3.1.3.26): memory of the controller's behind a BAR of its own, which keeps what is in it
//! when the power goes. It has nothing to do with namespaces: a program reads and writes it as it likes, by stores where the BAR is mapped, by a system call or a
//! message for each word where it is trapped.
//!
//! A reset of the controller leaves it alone; a reset of the function switches it off, and the driver on again. Whoever uses it then waits until it is ready; queues do
//! not.

use crate::device::Handle;
use crate::error::{Error, Result};
use crate::hardware::Hardware;
use crate::nvme::Nvme;
use crate::regs::{self, Pmrcap, Pmrsts};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use wholebar_core::Error as Core;
use wholebar_core::bar::{Bar, BarOptions, Window};
use wholebar_core::barrier;

/// Bytes of a word: the region is read and written in these.
const WORD: u64 = 8;

/// What a controller says of its persistent memory region (PMRCAP).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PersistentMemoryRegion {
    /// The BAR that it is behind, all of it.
    pub bar: u8,
    /// Its size in bytes: that of the BAR.
    pub size: u64,
    /// Commands can have data in it that the controller writes (WDS), or reads (RDS). This driver has none do.
    pub write_data: bool,
    /// See [`write_data`](Self::write_data).
    pub read_data: bool,
    capabilities: Pmrcap,
}

/// How a persistent memory region fares (PMRSTS.HSTS).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PersistentMemoryHealth {
    /// PMRSTS.HSTS 0: what is stored lasts through a loss of power.
    Normal,
    /// What was stored before the power went is lost, at least in parts.
    RestoreError,
    /// PMRSTS.HSTS 2: it can be read; what is written is dropped.
    ReadOnly,
    /// PMRSTS.HSTS 3: it can be read and written, and may not last through a loss of power.
    Unreliable,
    /// PMRSTS.HSTS 4 to 7, which the standard reserves.
    Unknown(u8),
}

impl PersistentMemoryHealth {
    fn of(status: Pmrsts) -> Self {
        match status.health() {
            0 => Self::Normal,
            1 => Self::RestoreError,
            2 => Self::ReadOnly,
            3 => Self::Unreliable,
            other => Self::Unknown(other),
        }
    }
}

impl fmt::Display for PersistentMemoryHealth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Normal => f.write_str("normal"),
            Self::RestoreError => f.write_str("restore error: what was stored is lost, at least in parts"),
            Self::ReadOnly => f.write_str("read only"),
            Self::Unreliable => f.write_str("unreliable: what is stored may not last"),
            Self::Unknown(number) => write!(f, "unknown ({number})"),
        }
    }
}

/// A persistent memory region that is enabled: [`Nvme::persistent_memory`]. Dropping it disables it; what is stored in it stays.
///
/// It keeps the controller open. Its methods wait for the controller where a word is trapped: they are not for the loop that does I/O.
pub struct PersistentMemory {
    handle: Arc<Handle>,
    region: PersistentMemoryRegion,
    window: Window,
}

impl PersistentMemoryRegion {
    /// What the controller says of it; `None` where it has none that could be used.
    pub(crate) fn find(hw: &Hardware) -> Result<Option<Self>> {
        if !hw.cap.has_persistent_memory() {
            return Ok(None);
        }
        let capabilities = Pmrcap(hw.bar.read(regs::PMRCAP)?);
        let bar = capabilities.bar();
        // BARs are 0 to 5; BAR0 has the registers.
        if !(1..6).contains(&bar) {
            tracing::warn!(device = hw.name(), bar, "its persistent memory region is behind no BAR that can have one");
            return Ok(None);
        }
        // One that is not there is no region.
        let size = hw.device.region(bar.into()).map_or(0, |region| region.size);
        let (write_data, read_data) = (capabilities.write_data(), capabilities.read_data());
        Ok(Some(Self { bar, size, write_data, read_data, capabilities }).filter(|region| region.size >= WORD))
    }

    /// Enables it, and waits until it is ready.
    fn enable(&self, hw: &Hardware) -> Result<()> {
        hw.bar.write(regs::PMRCTL, regs::PMRCTL_ENABLE)?;
        self.wait(hw, "make its persistent memory ready", true)
    }

    fn disable(&self, hw: &Hardware) -> Result<()> {
        hw.bar.write(regs::PMRCTL, 0u32)?;
        self.wait(hw, "switch its persistent memory off", false)
    }

    /// Waits until PMRSTS.NRDY has followed PMRCTL.EN.
    fn wait(&self, hw: &Hardware, what: &'static str, ready: bool) -> Result<()> {
        let is = |status: u32| Pmrsts(status).is_ready() == ready || status == regs::GONE;
        hw.bar.wait_for(what, regs::PMRSTS, self.capabilities.timeout(), is)?;
        Ok(())
    }
}

impl Nvme {
    /// Returns what the controller says of its persistent memory region (PMR); `None` where it has none that could be used.
    pub fn persistent_memory_region(&self) -> Option<PersistentMemoryRegion> {
        self.0.driver().hw.persistent
    }

    /// Enables the persistent memory region, and opens it. It takes as long as the controller needs to make it ready (PMRCAP.PMRTO bounds that).
    ///
    /// # Errors
    /// [`Error::NotOffered`] where the controller has none; [`Error::PersistentMemory`] where it is open already, or has failed;
    /// [`NotReady`](wholebar_core::Error::NotReady) where it does not become ready in time; [`Error::Core`] where its BAR cannot be had;
    /// [`Gone`](wholebar_core::Error::Gone) or [`Ended`](wholebar_core::Error::Ended) where the controller is that.
    pub fn persistent_memory(&self) -> Result<PersistentMemory> {
        let hw = &self.0.driver().hw;
        let Some(region) = hw.persistent else {
            let why = "it has no persistent memory region (CAP.PMRS)".to_owned();
            return Err(Error::NotOffered { device: hw.name(), why });
        };
        let options = &self.0.driver().options;
        let of_bar = BarOptions { policy: options.policy, page: options.page, registers: &[] };
        self.check()?;
        if hw.persistent_open.swap(true, Ordering::Relaxed) {
            return Err(failed(hw, "it is open already, and has one owner"));
        }
        let window = Bar::of(hw.device.clone(), region.bar, of_bar)
            .and_then(|bar| bar.window(0..bar.size() - bar.size() % WORD))
            .inspect_err(|_| hw.persistent_open.store(false, Ordering::Relaxed))?;
        // It is disabled again where it does not become ready, as it is dropped then. No lock is held: that may take minutes.
        let memory = PersistentMemory { handle: self.0.clone(), region, window };
        region.enable(hw)?;
        memory.check()?;
        Ok(memory)
    }
}

fn failed(hw: &Hardware, why: impl Into<String>) -> Error {
    Error::PersistentMemory { device: hw.name(), why: why.into() }
}

impl PersistentMemory {
    /// Returns how many bytes can be read and written, from offset 0 on.
    pub fn size(&self) -> u64 {
        self.window.len()
    }

    /// Returns how it fares.
    ///
    /// # Errors
    /// Those of [`read`](Self::read) but for the range.
    pub fn health(&self) -> Result<PersistentMemoryHealth> {
        self.ready().map(|(status, _)| PersistentMemoryHealth::of(status))
    }

    /// Fills `bytes` from the region, from byte `offset` on. After a reset of the function it waits until the region is ready again (PMRCAP.PMRTO bounds that).
    ///
    /// # Errors
    /// [`OutOfRange`](wholebar_core::Error::OutOfRange) where that is not inside of the region; [`Error::PersistentMemory`] where it has failed or was switched off,
    /// perhaps in between, and then `bytes` holds nothing; [`NotReady`](wholebar_core::Error::NotReady) where it does not become ready in time;
    /// [`Gone`](wholebar_core::Error::Gone) where nobody answers.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let range = self.range(offset, bytes.len())?;
        let (_, restored) = self.ready()?;
        for word in words(&range) {
            let (from, to) = part(word, &range);
            let value = self.window.read::<u64>(word)?.to_le_bytes();
            let at = (word + from as u64 - range.start) as usize;
            bytes[at..at + to - from].copy_from_slice(&value[from..to]);
        }
        self.was_on(restored)
    }

    /// Stores `bytes` in the region, from byte `offset` on. [`flush`](Self::flush) makes them last.
    ///
    /// # Errors
    /// Those of [`read`](Self::read), and [`Error::PersistentMemory`] where it can only be read. Some of the bytes may be stored then.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let range = self.range(offset, bytes.len())?;
        let (status, restored) = self.ready()?;
        if PersistentMemoryHealth::of(status) == PersistentMemoryHealth::ReadOnly {
            return Err(failed(&self.handle.driver().hw, "it can only be read"));
        }
        for word in words(&range) {
            let (from, to) = part(word, &range);
            let mut value = [0; WORD as usize];
            if to - from < value.len() {
                value = self.window.read::<u64>(word)?.to_le_bytes();
            }
            let at = (word + from as u64 - range.start) as usize;
            value[from..to].copy_from_slice(&bytes[at..at + to - from]);
            self.window.write(word, u64::from_le_bytes(value))?;
        }
        self.was_on(restored)
    }

    /// When this returns, all that was written lasts (PMRCAP.PMRWBM).
    ///
    /// # Errors
    /// Those of [`read`](Self::read) but for the range, and [`Error::PersistentMemory`] where the controller says that what is stored may not last.
    pub fn flush(&mut self) -> Result<()> {
        let hw = &self.handle.driver().hw;
        self.ready()?;
        if self.region.capabilities.flushed_by_reading_memory() {
            self.window.read::<u64>(0)?;
        }
        // A read of PMRSTS is the other way, and needed in any case.
        match PersistentMemoryHealth::of(self.check()?) {
            PersistentMemoryHealth::Unreliable => Err(failed(hw, "what is stored may not last: it is unreliable")),
            _ => Ok(()),
        }
    }

    /// Waits until it is ready, where it was enabled and is not: PMRSTS, and how often it was enabled again by now.
    fn ready(&self) -> Result<(Pmrsts, u64)> {
        let hw = &self.handle.driver().hw;
        // Acquire pairs with the Release by which that is counted, before it is enabled.
        let restored = hw.persistent_restored.load(Ordering::Acquire);
        let waits = |status: u32| status != regs::GONE && !Pmrsts(status).is_ready();
        if waits(hw.bar.read(regs::PMRSTS)?) && hw.bar.read::<u32>(regs::PMRCTL)? & regs::PMRCTL_ENABLE != 0 {
            self.region.wait(hw, "make its persistent memory ready again", true)?;
        }
        Ok((self.check()?, restored))
    }

    /// That it can be used, and was not off since it had been enabled again so often.
    fn was_on(&self, restored: u64) -> Result<()> {
        self.check()?;
        barrier::after_status();
        let hw = &self.handle.driver().hw;
        match hw.persistent_restored.load(Ordering::Acquire) == restored {
            true => Ok(()),
            false => Err(failed(hw, "a reset of the function switched it off for a while")),
        }
    }

    /// PMRSTS, of a region that can be used.
    fn check(&self) -> Result<Pmrsts> {
        let hw = &self.handle.driver().hw;
        let status = Pmrsts(hw.bar.read(regs::PMRSTS)?);
        if status.0 == regs::GONE {
            return Err(hw.gone("its persistent memory's status reads as all ones"));
        }
        match status.error() {
            _ if !status.is_ready() => Err(failed(hw, "it is switched off (PMRSTS.NRDY)")),
            0 => Ok(status),
            code => Err(failed(hw, format!("it has failed: it says error {code:02x}h (PMRSTS.ERR)"))),
        }
    }

    fn range(&self, offset: u64, len: usize) -> Result<Range<u64>> {
        let (len, size) = (len as u64, self.size());
        match offset.checked_add(len).filter(|end| *end <= size) {
            Some(end) => Ok(offset..end),
            None => Err(Core::OutOfRange { what: "persistent memory region", offset, len, size }.into()),
        }
    }
}

/// The words that a range of bytes lies in.
fn words(range: &Range<u64>) -> impl Iterator<Item = u64> + use<> {
    let first = range.start - range.start % WORD;
    (first..range.end).step_by(WORD as usize).take(if range.is_empty() { 0 } else { usize::MAX })
}

/// Which bytes of the word at `word` are in a range.
fn part(word: u64, range: &Range<u64>) -> (usize, usize) {
    let end = (range.end - word).min(WORD);
    (range.start.saturating_sub(word) as usize, end as usize)
}

impl Drop for PersistentMemory {
    fn drop(&mut self) {
        let hw = &self.handle.driver().hw;
        if let Err(error) = self.region.disable(hw) {
            tracing::debug!(%error, "persistent memory was not disabled");
        }
        hw.persistent_open.store(false, Ordering::Relaxed);
    }
}

impl fmt::Debug for PersistentMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PersistentMemory").field("region", &self.region).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_words_and_parts_of_them() {
        let all = |range: Range<u64>| words(&range).map(|word| (word, part(word, &range))).collect::<Vec<_>>();
        assert_eq!(all(0..0), []);
        assert_eq!(all(5..5), []);
        assert_eq!(all(0..8), [(0, (0, 8))]);
        assert_eq!(all(3..5), [(0, (3, 5))]);
        assert_eq!(all(7..17), [(0, (7, 8)), (8, (0, 8)), (16, (0, 1))]);
    }
}

//! The persistent memory region (base 8.14 and 3.1.3.20 to 3.1.3.22): pages behind BAR4, which hold what is stored while they are enabled, and read as all ones
//! while they are not. What is stored lasts through resets of any kind, and no longer than the model.

use super::bits::{cap, reg};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use wholebar_core::Result;
use wholebar_core::model::Pages;

/// Its BAR.
pub(super) const BAR: u32 = 4;

/// How a persistent memory region fares.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PmrState {
    /// It keeps what is stored.
    #[default]
    Normal,
    /// It says that what was stored is lost.
    RestoreError,
    /// It keeps what was stored before, and nothing new.
    ReadOnly,
    /// It says that what is stored may not last.
    Unreliable,
    /// It has failed: it says an error.
    Failed,
    /// It becomes ready once, and after a reset of the function not again.
    Once,
}

impl PmrState {
    pub(super) fn of(name: &str) -> Option<Self> {
        Some(match name {
            "normal" => Self::Normal,
            "restore" => Self::RestoreError,
            "readonly" => Self::ReadOnly,
            "unreliable" => Self::Unreliable,
            "failed" => Self::Failed,
            "once" => Self::Once,
            _ => return None,
        })
    }

    /// PMRSTS of a region that is enabled: HSTS in bits 11:9, ERR in bits 7:0.
    fn status(self) -> u32 {
        match self {
            Self::Normal | Self::Once => 0,
            Self::RestoreError => 1 << 9,
            Self::ReadOnly => 2 << 9,
            Self::Unreliable => 3 << 9,
            Self::Failed => 1,
        }
    }
}

pub(super) struct Pmr {
    pub(super) pages: Arc<Pages>,
    /// What is stored, while it is not enabled.
    kept: Vec<u64>,
    enabled: bool,
    /// It was enabled, some time.
    was_enabled: bool,
    state: PmrState,
}

/// PMRSTS.NRDY.
const NOT_READY: u32 = 1 << 8;
/// PMRCAP: BAR4 (bits 7:5); what was written lasts once a read of PMRSTS is complete (PMRWBM, bit 11); it is ready within 500 ms (PMRTO 1, PMRTU 0).
const CAPABILITIES: u32 = BAR << 5 | 1 << 11 | 1 << 16;

impl Pmr {
    pub(super) fn new(bytes: u64, state: PmrState) -> Result<Self> {
        let pages = Pages::new(bytes)?;
        let kept = vec![0; (pages.len() / 8) as usize];
        let pmr = Self { pages, kept, enabled: false, was_enabled: false, state };
        pmr.words().for_each(|(_, word)| word.store(u64::MAX, Ordering::Relaxed));
        Ok(pmr)
    }

    fn words(&self) -> impl Iterator<Item = (usize, &AtomicU64)> {
        (0..self.kept.len()).filter_map(|i| Some((i, self.pages.u64(8 * i as u64)?)))
    }

    /// Enables it, or not.
    fn switch(&mut self, on: bool) {
        if on == self.enabled || on && self.was_enabled && self.state == PmrState::Once {
            return;
        }
        if on {
            self.was_enabled = true;
            self.words().for_each(|(i, word)| word.store(self.kept[i], Ordering::Relaxed));
        } else {
            // Release: who sees them gone sees that it is not ready, which was told before.
            let now: Vec<_> = self.words().map(|(_, word)| word.swap(u64::MAX, Ordering::AcqRel)).collect();
            if self.state != PmrState::ReadOnly {
                self.kept = now;
            }
        }
        self.enabled = on;
    }

    pub(super) fn status(&self) -> u32 {
        if self.enabled { self.state.status() } else { NOT_READY }
    }
}

impl super::Nvme {
    /// CAP's bit for it.
    pub(super) fn pmr_capability(&self) -> u64 {
        if self.pmr.is_some() { cap::PMRS } else { 0 }
    }

    /// Its registers, but for the one that is the host's.
    pub(super) fn publish_pmr(&self) {
        if let Some(pmr) = &self.pmr {
            self.put32(reg::PMRCAP, CAPABILITIES);
            self.put32(reg::PMRSTS, pmr.status());
        }
    }

    /// Does what PMRCTL says.
    pub(super) fn configure_pmr(&mut self) {
        let on = self.get32(reg::PMRCTL) & 1 != 0;
        self.switch_pmr(on);
    }

    /// Enables it, or not: a reset of the function does not.
    pub(super) fn switch_pmr(&mut self, on: bool) {
        if self.pmr.as_ref().is_none_or(|pmr| pmr.enabled == on) {
            return;
        }
        if !on {
            self.put32(reg::PMRSTS, NOT_READY);
        }
        if let Some(pmr) = &mut self.pmr {
            pmr.switch(on);
            // Release: who sees that it is ready sees what it holds.
            self.publish_pmr();
        }
    }
}

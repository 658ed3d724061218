//! BAR0 as words in memory: each in the width that the other side has for it, too, or neither is atomic.

use super::Nvme;
use super::bits::reg;
use std::sync::atomic::Ordering;
use wholebar_core::mem::Iova;
use wholebar_core::model::Host;

impl Nvme {
    /// Sets all registers below the doorbells, each in its own width: two accesses of one place have one width, or none is atomic.
    pub(super) fn set_registers(&self, value: u32) {
        for at in (0..reg::DOORBELLS).step_by(4) {
            match at {
                reg::CAP | reg::ASQ | reg::ACQ | reg::CMBMSC => {
                    self.put64(at, u64::from(value) << 32 | u64::from(value))
                }
                // One that is off is at no moment ready.
                reg::PMRSTS if value == 0 && self.pmr.is_some() => {
                    self.put32(at, self.pmr.as_ref().map_or(0, |pmr| pmr.status()));
                }
                _ if [reg::CAP, reg::ASQ, reg::ACQ, reg::CMBMSC].contains(&(at - at % 8)) => {}
                _ => self.put32(at, value),
            }
        }
    }

    pub(super) fn clear_doorbells(&self) {
        // In words of their own width, as the other side writes them.
        (0..4096).step_by(4).for_each(|offset| self.put32(reg::DOORBELLS + offset, 0));
    }

    /// Clears a new queue's doorbell, and its shadow: what they held was another queue's.
    pub(super) fn clear_doorbell(&self, host: &Host<'_>, index: u64) {
        let offset = index << (2 + self.params.dstrd);
        self.put32(reg::DOORBELLS + offset, 0);
        let shadow = self.shadow.and_then(|s| host.dma(Iova(s.values).offset(offset), 4)).filter(|m| m.writable());
        if let Some(word) = shadow.and_then(|m| m.u32(0)) {
            word.store(0, Ordering::Relaxed);
        }
    }

    #[inline]
    pub(super) fn get32(&self, register: u64) -> u32 {
        self.bar.u32(register).map_or(0, |r| u32::from_le(r.load(Ordering::Acquire)))
    }

    pub(super) fn get64(&self, register: u64) -> u64 {
        self.bar.u64(register).map_or(0, |r| u64::from_le(r.load(Ordering::Acquire)))
    }

    pub(super) fn put32(&self, register: u64, value: u32) {
        if let Some(r) = self.bar.u32(register) {
            r.store(value.to_le(), Ordering::Release);
        }
    }

    pub(super) fn put64(&self, register: u64, value: u64) {
        if let Some(r) = self.bar.u64(register) {
            r.store(value.to_le(), Ordering::Release);
        }
    }
}

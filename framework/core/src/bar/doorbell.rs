//! Doorbells: hot registers, written by one store where their page is mapped, by a system call or a message where it is not. Both are counted.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::{Bar, Width};
use crate::barrier;
use std::marker::PhantomData;
use std::ptr::NonNull;

/// A register on the hot path, owned by one queue, and only written.
///
/// Made by [`Bar::doorbell`].
#[derive(Debug)]
pub struct Doorbell<T: Width> {
    /// `None` where it is trapped.
    at: Option<NonNull<u8>>,
    /// A device's register, rather than memory that a model or a server polls. Both stores are the same instruction on x86, and no branch.
    volatile: bool,
    rung: u64,
    offset: u64,
    /// Keeps the mapping.
    bar: Bar,
    width: PhantomData<T>,
}

// SAFETY: the register may be written from any one thread; the BAR it holds keeps it mapped.
unsafe impl<T: Width> Send for Doorbell<T> {}

/// How often a doorbell was rung, by the way it was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DoorbellCounts {
    /// By a store.
    pub direct: u64,
    /// By a system call or a message.
    pub trapped: u64,
}

impl std::ops::AddAssign for DoorbellCounts {
    fn add_assign(&mut self, other: Self) {
        self.direct = self.direct.saturating_add(other.direct);
        self.trapped = self.trapped.saturating_add(other.trapped);
    }
}

impl<T: Width> Doorbell<T> {
    /// `offset` was checked: inside the BAR, aligned, and outside of table and PBA.
    pub(super) fn new(bar: Bar, offset: u64) -> Self {
        let mapped = bar.shared.mapped(offset, T::BYTES, true);
        // Where its word has another width, it is trapped, and written by words of that width.
        let (at, volatile) =
            mapped.map_or((None, false), |(mapping, at)| (mapping.register::<T>(at), mapping.is_device()));
        Self { at, volatile, rung: 0, offset, bar, width: PhantomData }
    }

    /// Writes `value` to the register; every earlier store to DMA memory is visible to the device before it.
    ///
    /// Where the register is mapped this is a device barrier ([`before_doorbell`](crate::barrier::before_doorbell)), a predictable branch and one
    /// store. A trapped write that fails is kept: [`Bar::failed`] returns `true` from then on.
    #[inline(always)]
    pub fn ring(&mut self, value: T) {
        barrier::before_doorbell();
        self.rung = self.rung.wrapping_add(1);
        match self.at {
            // SAFETY: aligned, inside a writable mapping that `self.bar` keeps.
            Some(at) => unsafe { value.store(at.as_ptr(), self.volatile) },
            None => self.trap(value),
        }
    }

    #[cold]
    #[inline(never)]
    fn trap(&self, value: T) {
        let Err(error) = self.bar.write(self.offset, value) else { return };
        if !self.bar.failed() {
            tracing::error!(%error, "a trapped doorbell failed");
        }
        let _ = self.bar.shared.failure.set(error);
    }

    /// Returns whether ringing is one store, rather than a system call or a message.
    pub fn is_direct(&self) -> bool {
        self.at.is_some()
    }

    /// Returns how often the doorbell was rung.
    pub fn counts(&self) -> DoorbellCounts {
        if self.is_direct() {
            DoorbellCounts { direct: self.rung, trapped: 0 }
        } else {
            DoorbellCounts { direct: 0, trapped: self.rung }
        }
    }
}

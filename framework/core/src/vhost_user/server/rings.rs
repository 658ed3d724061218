//! A ring as the front end described it, from when it is told of to when the model has it as a queue, and back.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::memory::Memory;
use super::registers::Queue;
use crate::vhost_user::wire::VringAddr;
use std::os::fd::OwnedFd;

/// One ring.
#[derive(Default)]
pub struct Ring {
    /// Its entries; 0 until they are said.
    pub size: u16,
    /// Where it begins, or goes on, as `SET_VRING_BASE` has it.
    pub base: u32,
    pub addresses: Option<VringAddr>,
    /// It was started: `SET_VRING_KICK` came.
    pub started: bool,
    /// As `SET_VRING_ENABLE` said; until then, whether protocol features were agreed on says it.
    pub enabled: Option<bool>,
    /// What to signal when the queue breaks.
    pub err: Option<OwnedFd>,
    /// The queue that the model has of it, while it has one.
    pub running: Option<Queue>,
}

impl Ring {
    /// The queue that it is for the model.
    ///
    /// # Errors
    /// Which of its areas is in no region of memory.
    pub fn queue(&self, addresses: &VringAddr, packed: bool, memory: &Memory) -> Result<Queue, String> {
        let n = u64::from(self.size);
        // 2.7 and 2.8: the lengths of the three areas.
        let (driver, device) = match packed {
            true => (4, 4),
            false => (n.saturating_mul(2).saturating_add(6), n.saturating_mul(8).saturating_add(6)),
        };
        let area = |what: &str, user: u64, len: u64| {
            memory.guest(user, len).ok_or_else(|| {
                format!("ring {}'s {what}, {len:#x} bytes at {user:#x}, is in no region of memory", addresses.index)
            })
        };
        Ok(Queue {
            size: self.size,
            descriptor: area("descriptor area", addresses.descriptor, n.saturating_mul(16))?,
            driver: area("driver area", addresses.available, driver)?,
            device: area("device area", addresses.used, device)?,
        })
    }

    /// Where the queue begins: split, an index; packed, a place, with its wrap counter in bit 15.
    ///
    /// A split ring's own used index, where it is `used`, has the last word: it is how far the driver sees that the device came, and no buffer
    /// stays in flight in a model that stops. DPDK's and QEMU's front ends count on it when they had no chance to ask for the base.
    ///
    /// A packed ring's base has two halves, of what is available in the low one and of what is used in the high one. They are the same in a ring
    /// that nothing of is in flight; DPDK says only the first.
    ///
    /// # Errors
    /// That they differ.
    pub fn begins(&self, used: Option<u16>) -> Result<u16, String> {
        let (low, high) = (self.base as u16, (self.base >> 16) as u16);
        match (used, high) {
            (Some(used), _) => Ok(used),
            (None, 0) => Ok(low),
            (None, high) if high == low => Ok(low),
            _ => Err(format!(
                "a packed ring begins at {low:#x} with buffers in flight since {high:#x}, which are not known here"
            )),
        }
    }

    /// It goes on at `base` when it is started next.
    pub fn stopped_at(&mut self, base: u16, packed: bool) {
        let base = u32::from(base);
        self.base = if packed { base | base << 16 } else { base };
    }
}

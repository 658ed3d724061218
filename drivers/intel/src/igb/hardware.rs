//! The 82576 as registers: what it shares with firmware, queues on and off, interrupts. Every wait ends.

use super::regs::{self, queue};
use crate::error::{Error, Result};
use crate::family::{Direction, Shared};
use crate::hardware::{Hardware, PATIENCE};
use crate::regs as common;
use std::time::{Duration, Instant};
use wholebar_core::Error as Core;

/// The link's vector, as a bit.
const LINK_VECTOR: u32 = 1;

/// Masks all interrupts, and forgets those that are pending.
pub fn quiet(hw: &Hardware) -> Result<()> {
    hw.write(common::IMC, u32::MAX)?;
    hw.write(regs::EIMC, u32::MAX)?;
    hw.read(common::ICR)?;
    Ok(())
}

/// Enables the queue whose registers are at `place`, with these thresholds, or disables it; waits until that is so (8.10.10, 8.12.13).
pub fn enable_queue(hw: &Hardware, place: u64, thresholds: Option<u32>) -> Result<()> {
    let control = place + common::queue::CONTROL;
    let before = hw.read(control)?;
    match thresholds {
        Some(thresholds) => {
            hw.write(control, thresholds | queue::ENABLE)?;
            hw.wait("enable a queue", control, PATIENCE, |v| v & queue::ENABLE != 0)?;
        }
        None if before & queue::ENABLE != 0 => {
            hw.write(control, before & !queue::ENABLE)?;
            hw.wait("disable a queue", control, PATIENCE, |v| v & queue::ENABLE == 0)?;
        }
        None => {}
    }
    Ok(())
}

/// Makes known a queue whose registers are at `place` (4.5.9, 4.5.10): see [`Family::create`](crate::family::Family::create).
pub fn create_queue(hw: &Hardware, place: u64, base: u64, bytes: u32, direction: Direction) -> Result<()> {
    hw.write_ring(place, base, bytes)?;
    let thresholds = match direction {
        Direction::Rx { kib, drop } => {
            let drop = if drop { queue::SPLIT_DROP } else { 0 };
            hw.write(place + queue::SPLIT, queue::SPLIT_ONE_BUFFER | drop | kib)?;
            queue::RX_THRESHOLDS
        }
        Direction::Tx => queue::TX_THRESHOLDS,
    };
    enable_queue(hw, place, Some(thresholds))
}

/// Which port of the device this function is (STATUS.LAN_ID).
pub fn port(hw: &Hardware) -> Result<u32> {
    Ok(hw.read(common::STATUS)? >> 2 & 3)
}

/// Does something with a part that firmware uses too: bits of SW_FW_SYNC say who uses it, ours in the lower half, firmware's in the upper.
pub fn with<T>(hw: &Hardware, part: Shared, f: impl FnOnce() -> Result<T>) -> Result<T> {
    let ours = match part {
        Shared::Eeprom => 1,
        Shared::Phy => 1 << (1 + port(hw)?.min(1)),
    };
    let start = Instant::now();
    loop {
        let over = start.elapsed() >= PATIENCE;
        semaphore(hw)?;
        let users = hw.read(regs::SW_FW_SYNC)?;
        let free = users & (ours | ours << 16) == 0;
        if free {
            hw.write(regs::SW_FW_SYNC, users | ours)?;
        }
        hw.write(regs::SWSM, 0)?;
        if free {
            break;
        }
        if over {
            return Err(hw.not_ready("give up the EEPROM or the PHY to us", regs::SW_FW_SYNC, users));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let done = f();
    semaphore(hw)?;
    let users = hw.read(regs::SW_FW_SYNC)?;
    hw.write(regs::SW_FW_SYNC, users & !ours)?;
    hw.write(regs::SWSM, 0)?;
    done
}

/// Takes the semaphore that guards SW_FW_SYNC: against other software, then against firmware.
fn semaphore(hw: &Hardware) -> Result<()> {
    let free = |v: u32| v & regs::SWSM_SMBI == 0;
    if let Err(error) = hw.wait("give up its semaphore", regs::SWSM, PATIENCE, free) {
        let Error::Core(Core::NotReady { .. }) = error else { return Err(error) };
        // Whoever had the device before ended with it in hand: there is one owner of a function, and that is us.
        tracing::warn!(%error, "taking it");
        hw.write(regs::SWSM, 0)?;
        hw.wait("give up its semaphore", regs::SWSM, PATIENCE, free)?;
    }
    let start = Instant::now();
    loop {
        let over = start.elapsed() >= PATIENCE;
        hw.change(regs::SWSM, regs::SWSM_SWESMBI, 0)?;
        let value = hw.read(regs::SWSM)?;
        if value & regs::SWSM_SWESMBI != 0 {
            return Ok(());
        }
        if over {
            return Err(hw.not_ready("give up its firmware's semaphore", regs::SWSM, value));
        }
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// The longest interval of EITR: 13 bits of microseconds (8.8.12).
pub const MAX_THROTTLE: Duration = Duration::from_micros((1 << 13) - 1);

/// Has a vector interrupt no sooner than `interval`, at most [`MAX_THROTTLE`], after it did before.
pub fn throttle(hw: &Hardware, vector: u32, interval: Duration) -> Result<()> {
    let micros = interval.min(MAX_THROTTLE).as_micros() as u32;
    hw.write(regs::eitr(vector), micros << regs::EITR_INTERVAL_SHIFT)
}

/// Vectors as [`Family::set_up_interrupts`](crate::family::Family::set_up_interrupts) has them (7.3.1.2, 7.3.2.11), for the device's queues from `first` on.
pub fn set_up_interrupts(hw: &Hardware, rx_vectors: u16, first: u16) -> Result<()> {
    hw.write(regs::GPIE, regs::GPIE_MSIX)?;
    let vectors = 1 + u32::from(rx_vectors);
    hw.write(regs::eitr(0), 0)?;
    for n in 0..8u32 {
        let entry = |queue: u32| match queue.checked_sub(first.into()) {
            Some(index) if index < rx_vectors.into() => regs::IVAR_VALID | (index + 1),
            _ => 0,
        };
        hw.write(regs::ivar(n), entry(n) | entry(n + 8) << 16)?;
    }
    hw.write(regs::IVAR_MISC, regs::IVAR_VALID << 8)?;
    let all = (1 << vectors) - 1;
    hw.write(regs::EIAC, all)?;
    hw.write(regs::EIAM, all & !LINK_VECTOR)?;
    hw.write(regs::EIMS, LINK_VECTOR)?;
    hw.write(common::IMS, common::CAUSE_LINK)
}

/// Whether the link has changed. Reading ICR clears it, so that the next change raises an interrupt again.
pub fn link_changed(hw: &Hardware, vectors: bool) -> Result<bool> {
    let changed = hw.read(common::ICR)? & common::CAUSE_LINK != 0;
    if vectors {
        // Its message may have masked it: QEMU's EIAM holds the complement of what it is told.
        hw.write(regs::EIMS, LINK_VECTOR)?;
    }
    Ok(changed)
}

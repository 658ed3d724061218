//! The 82574 as registers: what it shares with firmware, directions on and off, interrupts. Every wait ends.

use super::regs;
use crate::error::{Error, Result};
use crate::family::QueueId;
use crate::hardware::{Hardware, PATIENCE};
use crate::regs as common;
use std::time::{Duration, Instant};
use wholebar_core::Error as Core;

/// How long a direction that was disabled may take to end what it is at: nothing says when it has.
const SETTLE: Duration = Duration::from_millis(10);
/// How long the PHY is configured after a reset, by what the NVM holds; it may not be reached before.
const CONFIGURE: Duration = Duration::from_millis(25);
/// At most 60 interrupts a second of what is no queue's: each overrun of a receive queue would be one.
const OTHER_THROTTLE: u32 = 0xffff;

/// Masks all interrupts, and forgets those that are pending.
fn quiet(hw: &Hardware) -> Result<()> {
    hw.write(common::IMC, u32::MAX)?;
    hw.read(common::ICR)?;
    Ok(())
}

/// Resets the device. Software owns the PHY meanwhile, and firmware does after it.
pub fn reset(hw: &Hardware) -> Result<()> {
    quiet(hw)?;
    match own(hw) {
        Ok(()) => {}
        Err(error @ Error::Core(Core::NotReady { .. })) => tracing::warn!(%error, "before a reset"),
        Err(error) => return Err(error),
    }
    hw.reset()?;
    hw.change(regs::EXTCNF_CTRL, 0, regs::EXTCNF_SOFTWARE)?;
    std::thread::sleep(CONFIGURE);
    quiet(hw)
}

/// Does something with the PHY or the NVM, which firmware uses too.
pub fn with<T>(hw: &Hardware, f: impl FnOnce() -> Result<T>) -> Result<T> {
    own(hw)?;
    let done = f();
    hw.change(regs::EXTCNF_CTRL, 0, regs::EXTCNF_SOFTWARE)?;
    done
}

/// Takes the PHY and the NVM from firmware: the bit stays where it gives them.
fn own(hw: &Hardware) -> Result<()> {
    let start = Instant::now();
    loop {
        let over = start.elapsed() >= PATIENCE;
        hw.change(regs::EXTCNF_CTRL, regs::EXTCNF_SOFTWARE, 0)?;
        let value = hw.read(regs::EXTCNF_CTRL)?;
        if value == common::GONE {
            return Err(hw.gone("a register reads as all ones"));
        }
        if value & regs::EXTCNF_SOFTWARE != 0 {
            return Ok(());
        }
        if over {
            return Err(hw.not_ready("give up its PHY to us", regs::EXTCNF_CTRL, value));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The register that enables a direction, all queues of it.
fn enables(id: QueueId) -> (u64, u32) {
    if id.receives() { (common::RCTL, common::RCTL_ENABLE) } else { (common::TCTL, common::TCTL_ENABLE) }
}

/// Stops a direction, that one queue of it may change: there is nothing that stops one alone.
pub fn pause(hw: &Hardware, id: QueueId) -> Result<()> {
    let (register, enable) = enables(id);
    if hw.read(register)? & enable != 0 {
        hw.change(register, 0, enable)?;
        // The read makes sure that it has arrived.
        hw.read(register)?;
        std::thread::sleep(SETTLE);
    }
    Ok(())
}

/// Has a direction go on.
pub fn go_on(hw: &Hardware, id: QueueId) -> Result<()> {
    let (register, enable) = enables(id);
    hw.change(register, enable, 0)
}

/// The longest interval of EITR: 16 bits of 256 ns.
pub const MAX_THROTTLE: Duration = Duration::from_nanos(256 * 0xffff);

/// Has a vector interrupt no sooner than `interval`, at most [`MAX_THROTTLE`], after it did before.
pub fn throttle(hw: &Hardware, vector: u32, interval: Duration) -> Result<()> {
    hw.write(regs::eitr(vector), interval.min(MAX_THROTTLE).as_nanos().div_ceil(256) as u32)
}

/// Vectors as [`Family::set_up_interrupts`](crate::family::Family::set_up_interrupts) has them.
pub fn set_up_interrupts(hw: &Hardware, rx_vectors: u16) -> Result<()> {
    hw.change(common::CTRL_EXT, regs::CTRL_EXT_PBA_CLEAR, 0)?;
    hw.write(regs::eitr(0), OTHER_THROTTLE)?;
    let (mut vectors, mut causes) = (regs::IVAR_VALID << 16, 0);
    for queue in 0..u32::from(rx_vectors) {
        vectors |= (regs::IVAR_VALID | (queue + 1)) << (4 * queue);
        causes |= regs::CAUSE_RX_QUEUE << queue;
    }
    hw.write(regs::IVAR, vectors)?;
    hw.write(regs::EIAC, causes)?;
    hw.write(common::IMS, regs::CAUSE_OTHER | common::CAUSE_LINK)
}

/// Whether the link has changed. Reading ICR clears it, so that the next change raises an interrupt again.
pub fn link_changed(hw: &Hardware, vectors: bool) -> Result<bool> {
    let causes = hw.read(common::ICR)?;
    if vectors {
        // Those of queues that are armed were not meant.
        hw.write(regs::ICS, causes & (regs::CAUSE_RX_QUEUE * 3))?;
        hw.write(common::IMS, regs::CAUSE_OTHER | common::CAUSE_LINK)?;
    }
    Ok(causes & common::CAUSE_LINK != 0)
}

//! The clock of an 82576, and packets that it stamps (IEEE 1588; datasheet, 7.9 and 8.16), by the names of DPDK's `rte_eth_timesync_*`.
//!
//! A packet that is received and is an event message of PTP version 2 right over Ethernet (type 88F7h) has the time of its arrival:
//! [`Buf::timestamp`](wholebar_core::mem::Buf::timestamp). One that is sent with [`Buf::set_timesync`](wholebar_core::mem::Buf::set_timesync) is asked
//! for afterwards. The device holds one stamp of each kind: a packet that comes before the last one's stamp was read has none. QEMU's device stamps Sync alone.

use super::{Igb, regs};
use crate::clock::{Clock, SHIFT};
use crate::error::{Error, Result};
use crate::hardware::Hardware;
use std::time::Duration;

/// The clock's period of 16 ns, and what is added in each, in its own units (TIMINCA, 8.16.13): it counts nanoseconds, shifted.
const PERIOD: u32 = 1 << 24;
pub(crate) const INCREMENT: u32 = 16 << SHIFT;
/// PTP over Ethernet.
const ETHER_TYPE: u32 = 0x88f7;

/// Has the clock run by `increment`, and packets be stamped; or not.
pub(super) fn apply(hw: &Hardware, increment: Option<u32>) -> Result<()> {
    let Some(increment) = increment else {
        for register in [regs::TSYNCRXCTL, regs::TSYNCTXCTL, regs::ETQF_PTP] {
            hw.write(register, 0)?;
        }
        return Ok(());
    };
    hw.write(regs::TIMINCA, PERIOD | increment)?;
    hw.write(regs::TSYNCRXCFG, 0)?;
    hw.write(regs::ETQF_PTP, ETHER_TYPE | regs::ETQF_ENABLE | regs::ETQF_1588)?;
    hw.write(regs::TSYNCTXCTL, regs::TSYNC_ENABLE)?;
    hw.write(regs::TSYNCRXCTL, regs::TSYNC_ENABLE | regs::TSYNCRXCTL_EVENTS)?;
    // What was stamped before is nobody's.
    tx_stamp(hw)?;
    rx_stamp(hw).map(drop)
}

/// What the clock says: the lower half first, which holds the upper one.
pub(super) fn cycles(hw: &Hardware) -> Result<u64> {
    read64(hw, regs::SYSTIM)
}

fn read64(hw: &Hardware, register: u64) -> Result<u64> {
    let low = u64::from(hw.read(register)?);
    Ok(low | u64::from(hw.read(register + 4)?) << 32)
}

/// When the packet came that was stamped, whose stamp makes room for the next.
pub(super) fn rx_stamp(hw: &Hardware) -> Result<Option<u64>> {
    if hw.read(regs::TSYNCRXCTL)? & regs::TSYNC_VALID == 0 {
        return Ok(None);
    }
    let stamp = read64(hw, regs::RXSTMP)?;
    // Its sequence and who sent it, which is in the packet too: QEMU makes room where this was read.
    read64(hw, regs::RXSATR)?;
    Ok(Some(stamp))
}

fn tx_stamp(hw: &Hardware) -> Result<Option<u64>> {
    if hw.read(regs::TSYNCTXCTL)? & regs::TSYNC_VALID == 0 {
        return Ok(None);
    }
    read64(hw, regs::TXSTMP).map(Some)
}

impl Igb {
    /// Starts the device's clock, at 0, and has it stamp packets. It outlives resets. (DPDK: `rte_eth_timesync_enable`.)
    ///
    /// # Errors
    /// [`Gone`](wholebar_core::Error::Gone) or [`Ended`](wholebar_core::Error::Ended) where the device is that.
    pub fn timesync_enable(&self) -> Result<()> {
        self.set(
            |settings| settings.timesync = Some(INCREMENT),
            |settings, hw| {
                apply(hw, settings.timesync)?;
                *self.0.driver().clock() = Some(Clock::new(cycles(hw)?));
                Ok(())
            },
        )
    }

    /// Stamps no more packets. (DPDK: `rte_eth_timesync_disable`.)
    ///
    /// # Errors
    /// As [`timesync_enable`](Self::timesync_enable).
    pub fn timesync_disable(&self) -> Result<()> {
        self.set(
            |settings| settings.timesync = None,
            |settings, hw| {
                *self.0.driver().clock() = None;
                apply(hw, settings.timesync)
            },
        )
    }

    /// Does something with the clock, and what the device says that it is.
    fn clocked<T>(&self, f: impl FnOnce(&mut Clock, u64, &Hardware) -> Result<T>) -> Result<T> {
        self.0.with(|_| {
            let driver = self.0.driver();
            match &mut *driver.clock() {
                Some(clock) => f(clock, cycles(&driver.hw)?, &driver.hw),
                None => Err(self.timesync_error("its clock does not run: call timesync_enable first".to_owned())),
            }
        })
    }

    fn timesync_error(&self, why: String) -> Error {
        Error::Timesync { device: self.0.driver().name().to_owned(), why }
    }

    /// Returns the time of the device's clock. (DPDK: `rte_eth_timesync_read_time`.)
    ///
    /// # Errors
    /// [`Error::Timesync`] where the clock does not run; else as [`timesync_enable`](Self::timesync_enable).
    pub fn timesync_read_time(&self) -> Result<Duration> {
        self.clocked(|clock, cycles, _| Ok(clock.now(cycles)))
    }

    /// Sets the time. (DPDK: `rte_eth_timesync_write_time`.)
    ///
    /// # Errors
    /// As [`timesync_read_time`](Self::timesync_read_time).
    pub fn timesync_write_time(&self, time: Duration) -> Result<()> {
        self.clocked(|clock, cycles, _| {
            clock.set(cycles, time);
            Ok(())
        })
    }

    /// Adds nanoseconds to the time. (DPDK: `rte_eth_timesync_adjust_time`.)
    ///
    /// # Errors
    /// As [`timesync_read_time`](Self::timesync_read_time).
    pub fn timesync_adjust_time(&self, nanoseconds: i64) -> Result<()> {
        self.clocked(|clock, cycles, _| {
            clock.adjust(cycles, nanoseconds);
            Ok(())
        })
    }

    /// Has the clock run faster than by itself by so many parts of 10^9, or slower, in steps of some 120; it lasts until the next call. (DPDK:
    /// `rte_eth_timesync_adjust_freq`.)
    ///
    /// # Errors
    /// [`Error::Timesync`] for 10^9 parts and more, or where the clock does not run; else as [`timesync_enable`](Self::timesync_enable).
    pub fn timesync_adjust_freq(&self, parts: i32) -> Result<()> {
        const WHOLE: i64 = 1_000_000_000;
        let parts = i64::from(parts);
        if parts.abs() >= WHOLE {
            return Err(self.timesync_error(format!("a clock cannot be {parts} of 10^9 parts faster than it is")));
        }
        let increment = (i64::from(INCREMENT) + i64::from(INCREMENT) * parts / WHOLE).clamp(1, (1 << 24) - 1) as u32;
        // What has passed until now counts as it did.
        self.clocked(|clock, cycles, _| Ok(clock.now(cycles)))?;
        self.set(
            |settings| settings.timesync = Some(increment),
            |_, hw| {
                hw.write(regs::TIMINCA, PERIOD | increment)?;
                if let Some(clock) = &mut *self.0.driver().clock() {
                    // QEMU's clock jumps where its increment changes: it goes on from what it says now.
                    clock.resume(cycles(hw)?);
                }
                Ok(())
            },
        )
    }

    /// Returns when the packet was sent that was to be stamped; `None` where there is no stamp that was not asked for yet. (DPDK:
    /// `rte_eth_timesync_read_tx_timestamp`.)
    ///
    /// # Errors
    /// As [`timesync_read_time`](Self::timesync_read_time).
    pub fn timesync_read_tx_timestamp(&self) -> Result<Option<Duration>> {
        self.clocked(|clock, _, hw| Ok(tx_stamp(hw)?.map(|stamp| clock.at(stamp))))
    }
}

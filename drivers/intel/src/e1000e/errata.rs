//! What this driver does about the 82574's [errata](crate::errata) after each reset, and when a device is opened.

use super::regs;
use crate::error::Result;
use crate::hardware::Hardware;
use crate::regs as common;
use crate::regs::queue::CONTROL;
use wholebar_core::pci::Config;
use wholebar_core::pci::config::CapabilityId;

/// Bits and registers that are to be so after each reset: register, set, cleared.
const BITS: [(u64, u32, u32); 7] = [
    (regs::tx_queue(0) + CONTROL, regs::TX_CONTROL, 0),
    (regs::tx_queue(1) + CONTROL, regs::TX_CONTROL, 0),
    (regs::TARC0, regs::TARC0_SET, regs::TARC0_CLEAR),
    (common::CTRL, 0, regs::CTRL_RESERVED),
    (common::CTRL_EXT, regs::CTRL_EXT_SET, regs::CTRL_EXT_CLEAR),
    (regs::GCR, regs::GCR_SET, 0),
    (regs::GCR2, regs::GCR2_SET, 0),
];

/// Does what is to be done after a reset.
pub(super) fn apply(hw: &Hardware) -> Result<()> {
    BITS.iter().try_for_each(|(register, set, clear)| hw.change(*register, *set, *clear))
}

/// Warns where the link may save power. (PCI Express 7.5.3.7: ASPM Control, in Link Control.)
pub(super) fn check_link_power(hw: &Hardware) -> Result<()> {
    let config = Config::of(hw.device.as_ref())?;
    let control = config.find(CapabilityId::EXPRESS).and_then(|express| config.u16(express.offset + 0x10));
    if control.is_some_and(|control| control & 3 != 0) {
        let device = hw.name();
        tracing::warn!(device, "its link saves power (ASPM), which an erratum forbids: boot with pcie_aspm=off");
    }
    Ok(())
}

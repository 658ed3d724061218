//! What is known to be wrong with the 82574, and what this driver does about it. Sources are Intel's "82574 Family Gigabit Ethernet Controller Specification
//! Update" and what Linux and DPDK do. None of it can be tried without the hardware: QEMU's device has no errata.
//!
//! | what | source | here |
//! |---|---|---|
//! | Link power states (ASPM L0s, L1) lose packets and stop the device | Linux: `FLAG2_DISABLE_ASPM_L0S`, `FLAG2_DISABLE_ASPM_L1` | opening warns; the kernel owns the link's registers |
//! | PCIe completions go wrong, and sending stops | Linux: `e1000_initialize_hw_bits_82571` (`GCR2` bit 0) | set after each reset |
//! | Reserved bits of CTRL, CTRL_EXT, GCR and TARC0 have other values than they need | the same (`CTRL` 29, `CTRL_EXT` 22 and 23, `GCR` 22, `TARC0` 26 to 30); `e1000_init_hw_82571` (`GCR` 27) | the same |
//! | TXDCTL of both queues has to be the same | Linux: `e1000_configure_tx` | written to both |
//! | An overrun interrupts as another cause, even masked | Linux: `e1000_msix_other` | that vector is throttled to 60 interrupts a second |
//! | Reading ICR takes causes of queues with it | Linux: `e1000_msix_other` | they are set again |
//! | Both queues that send share one context | DPDK: `eth_em_infos_get` | checksums and segmentation with one queue only |
//! | The PHY hangs, with both of its error counters at their ends | Linux: `e1000_check_phy_82574` | not looked for; a reset ends it |
//! | Receiving may not go on after it was disabled under traffic | Linux: `FLAG2_NO_DISABLE_RX` | a queue that is dropped stops receiving for 10 ms: nothing else takes its memory from the device but a reset |

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

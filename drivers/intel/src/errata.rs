//! What is known to be wrong with Intel's devices, where a driver has to do something about it or whoever has one has to know: one table, by PCI ids. Sources
//! are public: Linux and DPDK, which follow Intel's specification updates. None of it was seen on hardware, and QEMU's devices have none of it.
//!
//! What is done about the 82574's is in [`e1000e`]; the 82576's are two constants and a comparison.

use crate::{e1000e, igb, igbvf};

/// Something that is wrong with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Erratum {
    /// What the device does wrong, in a sentence without its full stop.
    pub what: &'static str,
    /// What the driver does so that it does no harm, or what its user has to know.
    pub here: &'static str,
    /// What whoever has the device has to do about it; `None` where the driver sees to it.
    pub advice: Option<&'static str>,
    /// Who says so: a file or function of public source.
    pub source: &'static str,
}

const fn heeded(what: &'static str, here: &'static str, source: &'static str) -> Erratum {
    Erratum { what, here, advice: None, source }
}

const I82576: &[Erratum] = &[
    heeded(
        "with MSI-X, a write-back threshold above 1 holds sent packets back",
        "each that asks for it is written back at once",
        "Linux, drivers/net/ethernet/intel/igb/igb.h: IGB_TX_WTHRESH",
    ),
    heeded(
        "the checksum of SCTP packets of 60 bytes is found wrong when it is right",
        "it counts as not looked at",
        "Linux, drivers/net/ethernet/intel/igb/igb_main.c: igb_rx_checksum",
    ),
];

const I82574: &[Erratum] = &[
    Erratum {
        what: "link power states (ASPM L0s, L1) lose packets and stop the device",
        here: "opening warns where they are on: the kernel owns the link's registers",
        advice: Some("boot with pcie_aspm=off"),
        source: "Linux, drivers/net/ethernet/intel/e1000e/82571.c: FLAG2_DISABLE_ASPM_L0S, FLAG2_DISABLE_ASPM_L1",
    },
    heeded(
        "PCIe completions go wrong, and sending stops",
        "GCR2 bit 0 is set after each reset",
        "Linux, drivers/net/ethernet/intel/e1000e/82571.c: e1000_initialize_hw_bits_82571",
    ),
    heeded(
        "reserved bits of CTRL, CTRL_EXT, GCR and TARC0 have other values than they need",
        "they are set and cleared after each reset",
        "Linux, drivers/net/ethernet/intel/e1000e/82571.c: e1000_initialize_hw_bits_82571, e1000_init_hw_82571",
    ),
    heeded(
        "TXDCTL of both queues has to be the same",
        "it is written to both",
        "Linux, drivers/net/ethernet/intel/e1000e/netdev.c: e1000_configure_tx",
    ),
    heeded(
        "an overrun interrupts as another cause, even masked",
        "that vector interrupts 60 times a second at most",
        "Linux, drivers/net/ethernet/intel/e1000e/netdev.c: e1000_msix_other",
    ),
    heeded(
        "reading ICR takes causes of queues with it",
        "they are set again",
        "Linux, drivers/net/ethernet/intel/e1000e/netdev.c: e1000_msix_other",
    ),
    heeded(
        "both queues that send share one context",
        "checksums and segmentation are granted with one such queue alone",
        "DPDK, drivers/net/e1000/em_ethdev.c: eth_em_infos_get",
    ),
    Erratum {
        what: "the PHY hangs, with both of its error counters at their ends",
        here: "not looked for",
        advice: Some("a reset of the port ends it"),
        source: "Linux, drivers/net/ethernet/intel/e1000e/82571.c: e1000_check_phy_82574",
    },
    Erratum {
        what: "receiving may not go on after it was disabled under traffic",
        here: "a queue that is dropped stops receiving for 10 ms all the same: nothing else but a reset takes its memory from the device",
        advice: Some("a reset of the port ends it"),
        source: "Linux, drivers/net/ethernet/intel/e1000e/82571.c: FLAG2_NO_DISABLE_RX",
    },
];

/// Returns what is known to be wrong with a PCI function, by its vendor and device ids.
pub fn of(vendor: u16, device: u16) -> &'static [Erratum] {
    let ids = (vendor, device);
    if igb::IDS.contains(&ids) || igbvf::IDS.contains(&ids) {
        I82576
    } else if e1000e::IDS.contains(&ids) {
        I82574
    } else {
        &[]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_source_and_is_heeded_or_advised() {
        for erratum in I82576.iter().chain(I82574) {
            assert!(erratum.source.starts_with("Linux, drivers/") || erratum.source.starts_with("DPDK, drivers/"));
            assert!(erratum.source.contains(": "), "a function or a name in that file: {}", erratum.source);
            assert!(!erratum.what.is_empty() && !erratum.here.is_empty());
            assert!(erratum.here != "not looked for" || erratum.advice.is_some());
        }
    }

    #[test]
    fn they_are_found_by_ids() {
        assert_eq!((of(0x8086, 0x10c9), of(0x8086, 0x10ca)), (I82576, I82576));
        assert_eq!((of(0x8086, 0x10d3), of(0x8086, 0x10f6)), (I82574, I82574));
        assert!(of(0x8086, 0x1521).is_empty() && of(0x15ad, 0x10d3).is_empty());
    }
}

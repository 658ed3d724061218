//! What real controllers do otherwise than the standard says, and what this driver does about it: one table, by PCI ids, or by model where ids tell too little. Each
//! row names its public source; nothing here was seen on hardware.
//!
//! It has what matters to a driver that polls and has no power management. Doorbell strides need no row: CAP.DSTRD tells them.

use std::fmt;

/// Something that a controller does otherwise than the standard says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Quirk {
    /// After CC.EN was cleared, CSTS.RDY means nothing for two seconds, and a controller that is enabled before does not come up: the driver waits that long.
    DelayBeforeReady,
    /// Identify knows CNS 0 and 1 alone: namespaces are asked for one by one.
    IdentifyOldOnly,
    /// Identify with CNS 3 (namespace identification descriptors) fails, or is not answered: it is not asked.
    NoDescriptors,
    /// Write Zeroes is offered, and is slow or wrong: it is not used.
    NoWriteZeroes,
    /// Commands that cross a stripe, whose size a vendor specific field has, are slow: requests are cut there.
    Stripe,
    /// Addresses of DMA have 48 bits.
    Dma48,
    /// There is one interrupt vector: queues have none of their own.
    OneVector,
    /// Queues have fewer entries than CAP.MQES says: so many at most.
    QueueEntries(u32),
    /// Identifiers of namespaces (EUI64, NGUID, UUID) are those of other drives, too: they are left out.
    SameIdentifiers,
    /// Entries of I/O submission queues have 128 bytes (CC.IOSQES 7).
    LongEntries,
    /// Commands of the admin queue and of the one I/O queue that there is must not have the same identifier, which are small numbers.
    SharedTags,
    /// SGLs are offered, and are not to be used.
    NoSgls,
    /// MDTS limits data alone, and not the metadata between blocks.
    DataOnlyLimit,
    /// The admin submission queue has to be whole pages of 4 KiB.
    WholeAdminPages,
    /// The end of a shutdown may not be told (CSTS.SHST): the controller is stopped all the same, once the time for it is over.
    ShutdownNotTold,
    /// Security Send and Receive are offered, and not there.
    NoSecurity,
    /// The name of the subsystem (SUBNQN) is missing, wrong, or that of other drives, too: it is left out.
    NoSubsystemName,
    /// PRP lists have to begin at a multiple of 512 bytes.
    AlignedLists,
}

/// What [`Quirk::AlignedLists`] has lists begin at multiples of, in bytes.
pub(crate) const LIST_ALIGN: u32 = 512;

/// How long a controller with [`Quirk::DelayBeforeReady`] is left alone.
pub(crate) const READY_DELAY: std::time::Duration = std::time::Duration::from_millis(2300);

/// How many identifiers, from 0 on, are the admin queue's with [`Quirk::SharedTags`].
pub(crate) const ADMIN_TAGS: u16 = 32;
/// The entries that an I/O queue has at least then: a power of two, some of which it can use.
pub(crate) const MIN_SHARED_ENTRIES: u32 = 64;

/// A row: vendor and device, what they do, and who says so.
type Row = (u16, u16, &'static [Quirk], &'static str);

const LINUX: &str = "Linux, drivers/nvme/host/pci.c: nvme_id_table";
const LINUX_DEPTH: &str = "Linux, drivers/nvme/host/pci.c: nvme_pci_enable, nvme_id_table";
const LINUX_AND_SPDK: &str = "Linux, drivers/nvme/host/pci.c: nvme_id_table; SPDK, lib/nvme/nvme_quirks.c: nvme_quirks";

/// In a row's place of a device: any of the vendor's.
const ANY: u16 = u16::MAX;

const SPDK: &str = "SPDK, lib/nvme/nvme_quirks.c: nvme_quirks";

/// By PCI ids.
const IDS: &[Row] = &[
    // Intel: 750, P3500, P3600, P3700; P3520; P4500, P4600; Dell Express Flash P4600; P5510.
    (0x8086, 0x0953, &[Quirk::Stripe], LINUX_AND_SPDK),
    (0x8086, 0x0a53, &[Quirk::Stripe], LINUX_AND_SPDK),
    (0x8086, 0x0a54, &[Quirk::Stripe, Quirk::NoSubsystemName, Quirk::SameIdentifiers], LINUX_AND_SPDK),
    (0x8086, 0x0a55, &[Quirk::Stripe], LINUX_AND_SPDK),
    (0x8086, 0x0b60, &[Quirk::Stripe], SPDK),
    // Optane 900P and P4800X; 600P, P3100; 760p; a controller whose MDTS has no room for metadata.
    (0x8086, 0x2700, &[Quirk::NoSecurity], SPDK),
    (0x8086, 0xf1a5, &[Quirk::NoWriteZeroes], LINUX),
    (0x8086, 0xf1a6, &[Quirk::NoSubsystemName], LINUX),
    (0x8086, 0x4140, &[Quirk::DataOnlyLimit], SPDK),
    // QEMU's controller before it had ids of its own. (Of the later one, 1b36:0010, Linux leaves the identifiers out, which are what its user says.)
    (0x8086, 0x5845, &[Quirk::IdentifyOldOnly, Quirk::NoWriteZeroes, Quirk::SameIdentifiers], LINUX_AND_SPDK),
    // CNEX Labs.
    (0x1d1d, 0x1f1f, &[Quirk::IdentifyOldOnly], SPDK),
    // O2 Micro, in the Steam Deck of 64 GB.
    (0x1217, 0x8760, &[Quirk::AlignedLists], LINUX),
    // Silicon Motion, in drives of many names.
    (0x126f, 0x1001, &[Quirk::NoSubsystemName], LINUX),
    (0x126f, 0x2262, &[Quirk::SameIdentifiers], LINUX),
    (0x126f, 0x2263, &[Quirk::NoDescriptors, Quirk::SameIdentifiers], LINUX),
    // Seagate Nytro Flash Storage.
    (0x1bb1, 0x0100, &[Quirk::DelayBeforeReady, Quirk::NoDescriptors], LINUX),
    // HGST SN100 and WDC SN200 adapters.
    (0x1c58, 0x0003, &[Quirk::DelayBeforeReady], LINUX),
    (0x1c58, 0x0023, &[Quirk::DelayBeforeReady], LINUX),
    // Memblaze Pblaze4.
    (0x1c5f, 0x0540, &[Quirk::DelayBeforeReady], LINUX_AND_SPDK),
    // Samsung: PM1725, PM1725a, a later one of the family; SM953; MZALQ256HBJD; PM9B1.
    (0x144d, 0xa821, &[Quirk::DelayBeforeReady], LINUX_AND_SPDK),
    (0x144d, 0xa822, &[Quirk::DelayBeforeReady, Quirk::NoWriteZeroes, Quirk::NoSubsystemName], LINUX_AND_SPDK),
    (0x144d, 0xa826, &[Quirk::DelayBeforeReady], SPDK),
    (0x144d, 0xa802, &[Quirk::SameIdentifiers], LINUX),
    (0x144d, 0xa809, &[Quirk::NoWriteZeroes], LINUX),
    (0x144d, 0xa80b, &[Quirk::NoWriteZeroes, Quirk::SameIdentifiers], LINUX),
    // Phison E12, E16, E19, E21.
    (0x1987, 0x5012, &[Quirk::SameIdentifiers], LINUX),
    (0x1987, 0x5016, &[Quirk::NoSubsystemName, Quirk::SameIdentifiers], LINUX),
    (0x1987, 0x5019, &[Quirk::NoWriteZeroes], LINUX),
    (0x1987, 0x5021, &[Quirk::NoWriteZeroes], LINUX),
    // Lexar 256 GB.
    (0x1b4b, 0x1092, &[Quirk::NoDescriptors, Quirk::NoSubsystemName], LINUX),
    // SPCC and Lexar NM610; Lexar NM620, NM760.
    (0x1d97, 0x2263, &[Quirk::NoWriteZeroes], LINUX),
    (0x1d97, 0x1d97, &[Quirk::SameIdentifiers], LINUX),
    (0x1d97, 0x2269, &[Quirk::SameIdentifiers, Quirk::NoSubsystemName], LINUX),
    // Realtek: ADATA SX6000LNP, SX6000PNP; Teamgroup MP33.
    (0x10ec, 0x5762, &[Quirk::NoSubsystemName, Quirk::SameIdentifiers], LINUX),
    (0x10ec, 0x5763, &[Quirk::SameIdentifiers], LINUX),
    (0x10ec, 0x5765, &[Quirk::SameIdentifiers], LINUX),
    // ADATA: IM2P33F8ABR1, SX8200PNP, XPG GAMMIX S50.
    (0x1cc1, 0x33f8, &[Quirk::SameIdentifiers], LINUX),
    (0x1cc1, 0x8201, &[Quirk::NoSubsystemName], LINUX),
    (0x1cc1, 0x5350, &[Quirk::SameIdentifiers], LINUX),
    // Micron, the second of them its Nitro; Crucial P2.
    (0x1344, 0x5407, &[Quirk::NoSubsystemName], LINUX),
    (0x1344, 0x6001, &[Quirk::SameIdentifiers], LINUX),
    (0xc0a9, 0x540a, &[Quirk::SameIdentifiers], LINUX),
    // SK Hynix PC400, P31, BC901; Sandisk Skyhawk.
    (0x1c5c, 0x1504, &[Quirk::NoWriteZeroes], LINUX),
    (0x1c5c, 0x174a, &[Quirk::SameIdentifiers], LINUX),
    (0x1c5c, 0x1d59, &[Quirk::NoWriteZeroes], LINUX),
    (0x15b7, 0x2001, &[Quirk::NoWriteZeroes], LINUX),
    // UMIS RPJTJ512MGE1QDY, RPJTJ256MGE1QDY.
    (0x1cc4, 0x6303, &[Quirk::NoWriteZeroes], LINUX),
    (0x1cc4, 0x6302, &[Quirk::NoWriteZeroes], LINUX),
    // Kingston: OM8SFP4, OM3PGP4, OM8PGP4 (two), OM3PGP4 (another), OM3SGP4.
    (0x2646, 0x5018, &[Quirk::NoWriteZeroes], LINUX),
    (0x2646, 0x5016, &[Quirk::NoWriteZeroes], LINUX),
    (0x2646, 0x501a, &[Quirk::NoWriteZeroes], LINUX),
    (0x2646, 0x501b, &[Quirk::NoWriteZeroes], LINUX),
    (0x2646, 0x501e, &[Quirk::NoWriteZeroes], LINUX),
    (0x2646, 0x502f, &[Quirk::NoWriteZeroes], LINUX),
    // Netac NV3000, NV7000; MAXIO MAP1001, MAP1002, MAP1202, MAP1602; Innogrit in Acer's FA100 and ADATA's XPG GAMMIX S70.
    (0x1f40, 0x1202, &[Quirk::SameIdentifiers], LINUX),
    (0x1f40, 0x5236, &[Quirk::SameIdentifiers], LINUX),
    (0x1e4b, 0x1001, &[Quirk::SameIdentifiers], LINUX),
    (0x1e4b, 0x1002, &[Quirk::SameIdentifiers], LINUX),
    (0x1e4b, 0x1202, &[Quirk::SameIdentifiers], LINUX),
    (0x1e4b, 0x1602, &[Quirk::SameIdentifiers], LINUX),
    (0x1dbe, 0x5216, &[Quirk::SameIdentifiers], LINUX),
    (0x1dbe, 0x5236, &[Quirk::SameIdentifiers], LINUX),
    // Huawei's.
    (0x19e5, ANY, &[Quirk::NoSgls], SPDK),
    // Microsoft's, in Azure; VMware's emulated one.
    (0x1414, 0xb111, &[Quirk::WholeAdminPages], SPDK),
    (0x15ad, 0x07f0, &[Quirk::ShutdownNotTold], SPDK),
    // Amazon's.
    (0x1d0f, 0x0061, &[Quirk::Dma48], LINUX),
    (0x1d0f, 0x0065, &[Quirk::Dma48], LINUX),
    (0x1d0f, 0x8061, &[Quirk::Dma48], LINUX),
    (0x1d0f, 0xcd00, &[Quirk::Dma48], LINUX),
    (0x1d0f, 0xcd01, &[Quirk::Dma48], LINUX),
    (0x1d0f, 0xcd02, &[Quirk::Dma48], LINUX),
    // Apple: MacBook8,1; those behind the T2.
    (0x106b, 0x2001, &[Quirk::OneVector, Quirk::QueueEntries(2)], LINUX_DEPTH),
    (
        0x106b,
        0x2005,
        &[Quirk::OneVector, Quirk::LongEntries, Quirk::SharedTags, Quirk::IdentifyOldOnly],
        "Linux, drivers/nvme/host/pci.c: nvme_id_table, nvme_setup_io_queues",
    ),
];

/// By vendor and the beginning of the model's name, where other models have the same ids.
const MODELS: &[(u16, &str, &[Quirk], &str)] = &[(
    0x144d,
    "Samsung Portable SSD X5",
    &[Quirk::DelayBeforeReady, Quirk::NoSubsystemName],
    "Linux, drivers/nvme/host/core.c: core_quirks",
)];

impl Quirk {
    /// Returns what is known of a PCI function by its vendor and device ids: each quirk, with who says so.
    pub fn of(vendor: u16, device: u16) -> impl Iterator<Item = (Self, &'static str)> {
        let rows = IDS.iter().filter(move |(v, d, ..)| *v == vendor && (*d == device || *d == ANY));
        rows.flat_map(|(.., quirks, source)| quirks.iter().map(move |quirk| (*quirk, *source)))
    }

    /// Returns what is known of a controller by its vendor and its model's name (VID and MN of Identify Controller).
    pub fn of_model(vendor: u16, model: &str) -> impl Iterator<Item = (Self, &'static str)> {
        let rows = MODELS.iter().filter(move |(v, name, ..)| *v == vendor && model.starts_with(name));
        rows.flat_map(|(.., quirks, source)| quirks.iter().map(move |quirk| (*quirk, *source)))
    }
}

impl fmt::Display for Quirk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DelayBeforeReady => "after a reset it is left alone for two seconds",
            Self::IdentifyOldOnly => "Identify knows CNS 0 and 1 alone",
            Self::NoDescriptors => "namespace descriptors are not asked for",
            Self::NoWriteZeroes => "Write Zeroes is not used",
            Self::Stripe => "requests are cut at its stripes",
            Self::Dma48 => "addresses of DMA have 48 bits",
            Self::OneVector => "it has one interrupt vector",
            Self::QueueEntries(entries) => return write!(f, "queues have {entries} entries at most"),
            Self::SameIdentifiers => "identifiers of namespaces are not unique",
            Self::LongEntries => "submission entries have 128 bytes",
            Self::NoSgls => "SGLs are not used",
            Self::DataOnlyLimit => "its largest transfer is one of data, without metadata",
            Self::WholeAdminPages => "its admin queue has whole pages",
            Self::ShutdownNotTold => "the end of a shutdown may not be told",
            Self::NoSecurity => "security protocols are not used",
            Self::NoSubsystemName => "its subsystem's name is left out",
            Self::AlignedLists => "lists are aligned to 512 bytes",
            Self::SharedTags => "one I/O queue, sharing identifiers with the admin queue",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_there_once_and_have_a_source() {
        for (i, (vendor, device, quirks, source)) in IDS.iter().enumerate() {
            assert!(IDS[..i].iter().all(|(v, d, ..)| (v, d) != (vendor, device)), "{vendor:04x}:{device:04x}");
            assert!(!quirks.is_empty() && source.contains("nvme"), "{vendor:04x}:{device:04x}");
        }
        let found: Vec<_> = Quirk::of(0x1bb1, 0x0100).map(|(quirk, _)| quirk).collect();
        assert_eq!(found, [Quirk::DelayBeforeReady, Quirk::NoDescriptors]);
        assert_eq!(Quirk::of(0x1b36, 0x0010).count(), 0);
        let huawei = |device| Quirk::of(0x19e5, device).map(|(quirk, _)| quirk).collect::<Vec<_>>();
        assert_eq!((huawei(0), huawei(0x3714)), (vec![Quirk::NoSgls], vec![Quirk::NoSgls]));
        assert_eq!(Quirk::of_model(0x144d, "Samsung Portable SSD X5").count(), 2);
        assert_eq!(Quirk::of_model(0x144d, "Samsung SSD 970 EVO Plus").count(), 0);
    }
}

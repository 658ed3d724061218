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
}

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
const LINUX_AND_SPDK: &str = "Linux, drivers/nvme/host/pci.c: nvme_id_table; SPDK, lib/nvme/nvme_quirks.c";

/// By PCI ids.
const IDS: &[Row] = &[
    // Intel: 750, P3500, P3600, P3700; P3520; P4500, P4600; Dell Express Flash P4600.
    (0x8086, 0x0953, &[Quirk::Stripe], LINUX_AND_SPDK),
    (0x8086, 0x0a53, &[Quirk::Stripe], LINUX_AND_SPDK),
    (0x8086, 0x0a54, &[Quirk::Stripe], LINUX_AND_SPDK),
    (0x8086, 0x0a55, &[Quirk::Stripe], LINUX_AND_SPDK),
    // Intel 600P, P3100.
    (0x8086, 0xf1a5, &[Quirk::NoWriteZeroes], LINUX),
    // QEMU's controller before it had ids of its own.
    (0x8086, 0x5845, &[Quirk::IdentifyOldOnly, Quirk::NoWriteZeroes], LINUX_AND_SPDK),
    // CNEX Labs.
    (0x1d1d, 0x1f1f, &[Quirk::IdentifyOldOnly], "SPDK, lib/nvme/nvme_quirks.c"),
    // Silicon Motion, in drives of many names.
    (0x126f, 0x2263, &[Quirk::NoDescriptors], LINUX),
    // Seagate Nytro Flash Storage.
    (0x1bb1, 0x0100, &[Quirk::DelayBeforeReady, Quirk::NoDescriptors], LINUX),
    // HGST SN100 and WDC SN200 adapters.
    (0x1c58, 0x0003, &[Quirk::DelayBeforeReady], LINUX),
    (0x1c58, 0x0023, &[Quirk::DelayBeforeReady], LINUX),
    // Memblaze Pblaze4.
    (0x1c5f, 0x0540, &[Quirk::DelayBeforeReady], LINUX_AND_SPDK),
    // Samsung PM1725 and PM1725a.
    (0x144d, 0xa821, &[Quirk::DelayBeforeReady], LINUX_AND_SPDK),
    (0x144d, 0xa822, &[Quirk::DelayBeforeReady, Quirk::NoWriteZeroes], LINUX_AND_SPDK),
    // Lexar 256 GB.
    (0x1b4b, 0x1092, &[Quirk::NoDescriptors], LINUX),
    // SK Hynix PC400, Sandisk Skyhawk, SPCC.
    (0x1c5c, 0x1504, &[Quirk::NoWriteZeroes], LINUX),
    (0x15b7, 0x2001, &[Quirk::NoWriteZeroes], LINUX),
    (0x1d97, 0x2263, &[Quirk::NoWriteZeroes], LINUX),
    // ADATA XPG GAMMIX S50, MAXIO MAP1202.
    (0x1cc1, 0x5350, &[Quirk::SameIdentifiers], LINUX),
    (0x1e4b, 0x1202, &[Quirk::SameIdentifiers], LINUX),
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
const MODELS: &[(u16, &str, &[Quirk], &str)] =
    &[(0x144d, "Samsung Portable SSD X5", &[Quirk::DelayBeforeReady], "Linux, drivers/nvme/host/core.c: core_quirks")];

impl Quirk {
    /// Returns what is known of a PCI function by its vendor and device ids: each quirk, with who says so.
    pub fn of(vendor: u16, device: u16) -> impl Iterator<Item = (Self, &'static str)> {
        let rows = IDS.iter().filter(move |(v, d, ..)| (*v, *d) == (vendor, device));
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
        assert_eq!(Quirk::of_model(0x144d, "Samsung Portable SSD X5").count(), 1);
        assert_eq!(Quirk::of_model(0x144d, "Samsung SSD 970 EVO Plus").count(), 0);
    }
}

//! Controllers that break rules, as they are known from Linux's and SPDK's tables: their PCI ids, and what they do.

use std::time::Duration;

/// What a model does otherwise than the standard says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quirk {
    /// Enabled within a second after it was disabled, it does not come up, though CSTS.RDY says that it is ready for that. (Memblaze Pblaze4.)
    Ready,
    /// Identify answers any CNS above 1 as if it were 1. (QEMU's old controller.)
    Cns,
    /// Identify with CNS 3 is not answered. (Silicon Motion.)
    Descriptors,
    /// Write Zeroes is offered, and fails. (SPCC.)
    WriteZeroes,
    /// Stripes of 128 KiB are told in a vendor specific field. (Intel P4500.)
    Stripe,
    /// A queue at an address of more than 48 bits is refused, the admin queue's too. (Amazon.)
    Dma48,
    /// One interrupt vector, whatever is configured; no queue of more than two entries, whatever CAP says. (Apple.)
    Entries,
    /// All namespaces have the same identifier. (MAXIO.)
    Identifiers,
    /// Entries of I/O submission queues have 128 bytes, and there is one such queue, none of whose commands may have an identifier below 32, nor one of the admin queue's
    /// one from there on; one interrupt vector; Identify as with `Cns`. (Apple, behind a T2.)
    LongEntries,
    /// SGLs are offered, and are refused. (Huawei.)
    Sgls,
    /// MDTS is a limit of data alone, and not of the metadata between blocks. (Intel.)
    DataLimit,
    /// An admin submission queue of no whole pages has it fail. (Microsoft.)
    AdminPages,
    /// The end of a shutdown is never told. (VMware.)
    Shutdown,
    /// Security protocols are offered, and refused. (Intel Optane.)
    Security,
    /// The subsystem's name is that of all of them. (Intel 760p.)
    SubsystemName,
    /// PRP lists that do not begin at a multiple of 512 bytes are refused. (O2 Micro.)
    Lists,
}

/// Names as parameters have them, and the ids.
pub(super) const NAMES: [(&str, Quirk, (u16, u16)); 16] = [
    ("ready", Quirk::Ready, (0x1c5f, 0x0540)),
    ("cns", Quirk::Cns, (0x8086, 0x5845)),
    ("descriptors", Quirk::Descriptors, (0x126f, 0x2263)),
    ("zeroes", Quirk::WriteZeroes, (0x1d97, 0x2263)),
    ("stripe", Quirk::Stripe, (0x8086, 0x0a54)),
    ("dma48", Quirk::Dma48, (0x1d0f, 0x8061)),
    ("entries", Quirk::Entries, (0x106b, 0x2001)),
    ("identifiers", Quirk::Identifiers, (0x1e4b, 0x1202)),
    ("entries128", Quirk::LongEntries, (0x106b, 0x2005)),
    ("sgls", Quirk::Sgls, (0x19e5, 0x3714)),
    ("limit", Quirk::DataLimit, (0x8086, 0x4140)),
    ("admin64", Quirk::AdminPages, (0x1414, 0xb111)),
    ("shutdown", Quirk::Shutdown, (0x15ad, 0x07f0)),
    ("security", Quirk::Security, (0x8086, 0x2700)),
    ("subnqn", Quirk::SubsystemName, (0x8086, 0xf1a6)),
    ("lists", Quirk::Lists, (0x1217, 0x8760)),
];

/// The identifiers of the admin queue's commands with `LongEntries` are below this.
pub(super) const ADMIN_TAGS: u16 = 32;

/// How long a controller that was disabled must be left alone.
pub(super) const READY: Duration = Duration::from_secs(1);

impl Quirk {
    /// Whether there is one interrupt vector.
    pub(super) fn has_one_vector(self) -> bool {
        matches!(self, Self::Entries | Self::LongEntries)
    }

    /// Whether Identify knows CNS 0 and 1 alone.
    pub(super) fn has_old_identify(self) -> bool {
        matches!(self, Self::Cns | Self::LongEntries)
    }

    pub(super) fn of(name: &str) -> Option<Self> {
        NAMES.iter().find(|(known, ..)| *known == name).map(|(_, quirk, _)| *quirk)
    }

    /// Vendor and device.
    pub(super) fn ids(self) -> (u16, u16) {
        NAMES.iter().find(|(_, known, _)| *known == self).map_or((0, 0), |(.., ids)| *ids)
    }
}

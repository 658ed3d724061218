//! What a controller and its namespaces say of themselves (NVM Express Base 2.0, 5.17.2; NVM Command Set 1.0, 4.1.5).
//!
//! The bytes are a device's: any of them parse, and what makes no sense is said so.

use crate::bytes::{array, text, u8_at, u16_at, u32_at, u64_at, u128_at};
use crate::protection::{Layout, ProtectionType};
use crate::zone::Zoned;

/// Bytes of an Identify data structure.
pub(crate) const LEN: usize = 4096;

/// CNS values (5.17.1, figure 273).
pub(crate) mod cns {
    pub const NAMESPACE: u8 = 0x00;
    pub const CONTROLLER: u8 = 0x01;
    pub const ACTIVE_NAMESPACES: u8 = 0x02;
    pub const DESCRIPTORS: u8 = 0x03;
    pub const COMMAND_SET_NAMESPACE: u8 = 0x05;
    pub const COMMAND_SET_CONTROLLER: u8 = 0x06;
    pub const ALLOCATED_NAMESPACES: u8 = 0x10;
    pub const ALLOCATED_NAMESPACE: u8 = 0x11;
    pub const ATTACHED_CONTROLLERS: u8 = 0x12;
    pub const CONTROLLERS: u8 = 0x13;
}

/// I/O command sets (CSI, 5.17.1).
pub(crate) mod csi {
    pub const NVM: u8 = 0;
    pub const ZONED: u8 = 2;
}

/// Identify Controller (5.17.2.1).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Controller {
    /// VID: the vendor's PCI identifier.
    pub vendor: u16,
    /// SN.
    pub serial: String,
    /// MN.
    pub model: String,
    /// FR.
    pub firmware: String,
    /// CNTLID.
    pub id: u16,
    /// CNTRLTYPE: 1 for an I/O controller, 0 where it doesn't say.
    pub kind: u8,
    /// VER, or the VS register of older controllers: major, minor, tertiary.
    pub version: (u16, u8, u8),
    /// MDTS, in bytes: the most that one command may transfer; `None` for no limit.
    pub max_transfer: Option<u64>,
    /// CTRATT: its attributes.
    pub attributes: u32,
    /// ZASL, in bytes: the most that one Zone Append may write, which is no more than [`max_transfer`](Self::max_transfer) (ZNS 1.1, 4.1.5.2); `None` where
    /// it doesn't say.
    pub max_append: Option<u64>,
    /// OACS: optional admin commands.
    pub admin_commands: u16,
    /// OAES: optional asynchronous events.
    pub events: u32,
    /// ACL: how many Abort commands it takes at a time.
    pub abort_limit: u16,
    /// AERL: how many Asynchronous Event Requests it takes at a time.
    pub event_limit: u16,
    /// ELPE: entries of its error log.
    pub error_log_entries: u16,
    /// WCTEMP, in kelvins; 0 where it doesn't say.
    pub warning_temperature: u16,
    /// CCTEMP, in kelvins; 0 where it doesn't say.
    pub critical_temperature: u16,
    /// TNVMCAP, in bytes; 0 where it doesn't say.
    pub capacity: u128,
    /// NN: the highest namespace identifier there can be.
    pub namespaces: u32,
    /// ONCS: optional NVM commands.
    pub io_commands: u16,
    /// VWC bit 0: it has a volatile write cache, so that writes need a Flush to be durable.
    pub volatile_cache: bool,
    /// SGLS: how SGLs are supported.
    pub sgls: u32,
    /// LPA: which attributes of log pages it has.
    pub log_attributes: u8,
    /// FRMW: its firmware slots, as [`firmware_slots`](Self::firmware_slots) has them.
    pub firmware_updates: u8,
    /// FWUG, in bytes: what pieces of a firmware image have to be multiples of; `None` where the field is 0 (not reported) or FFh (no restriction).
    pub firmware_granularity: Option<u32>,
    /// SANICAP: which ways to sanitize it has.
    pub sanitize: u32,
    /// FNA: attributes of Format NVM.
    pub format: u8,
    /// UNVMCAP, in bytes: what is not allocated to namespaces; 0 where namespace management is not supported.
    pub unallocated: u128,
    /// AVSCC bit 0: its vendor specific admin commands have the common format (NDT in dword 10, NDM in dword 11).
    pub admin_vendor_format: bool,
    /// ICSVSCC bit 0: its vendor specific I/O commands have that format.
    pub io_vendor_format: bool,
    /// OCFS: which formats of Copy descriptors it takes, a bit each.
    pub copy_formats: u16,
    /// SUBNQN.
    pub subsystem: String,
    /// The most blocks of one Verify, Write Zeroes and range of Dataset Management, as size limits of the NVM command set
    /// (NVM Command Set 1.0, 4.1.5.4).
    pub limits: CommandLimits,
}

/// Size limits of commands that transfer no data. 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CommandLimits {
    /// VSL, in bytes.
    pub verify: u64,
    /// WZSL, in bytes.
    pub write_zeroes: u64,
    /// DMRSL, in blocks.
    pub deallocate: u32,
    /// DMRL: ranges of one Dataset Management.
    pub deallocate_ranges: u8,
    /// DMSL, in blocks: of all ranges of one Dataset Management together.
    pub deallocate_total: u64,
}

/// What one Copy can be (NVM Command Set 1.0, 4.1.5.1). 0 is what no command can be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CopyLimits {
    /// MSRC, with 1 added: source ranges.
    pub ranges: u16,
    /// MSSRL: blocks of a source range.
    pub range_blocks: u16,
    /// MCL: blocks of all of them.
    pub blocks: u32,
}

/// Which data structure [`Nvme::identify_data`](crate::Nvme::identify_data) reads: fields of Identify (5.17).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IdentifyRequest {
    /// CNS: which.
    pub cns: u8,
    /// NSID.
    pub nsid: u32,
    /// CNTID: the controller, for those that are of one.
    pub cntid: u16,
    /// CSI: the I/O command set, for those that are of one.
    pub csi: u8,
}

/// 2 to the power of `exponent`, times the controller's smallest page; 0, which stands for "no limit", where `exponent` is 0 or senseless.
pub(crate) fn pages(exponent: u8, min_page: u64) -> u64 {
    match exponent {
        0 => 0,
        e => 1u64.checked_shl(e.into()).and_then(|n| n.checked_mul(min_page)).unwrap_or(0),
    }
}

impl Controller {
    /// Reads the structure. `min_page` is CAP.MPSMIN in bytes, `version` what the VS register says.
    pub fn parse(bytes: &[u8], min_page: u64, version: (u16, u8, u8)) -> Self {
        let ver = u32_at(bytes, 80);
        let limit = pages(u8_at(bytes, 77), min_page);
        Self {
            vendor: u16_at(bytes, 0),
            serial: text(bytes, 4, 20),
            model: text(bytes, 24, 40),
            firmware: text(bytes, 64, 8),
            id: u16_at(bytes, 78),
            kind: u8_at(bytes, 111),
            version: if ver == 0 { version } else { ((ver >> 16) as u16, (ver >> 8) as u8, ver as u8) },
            max_transfer: (limit > 0).then_some(limit),
            attributes: u32_at(bytes, 96),
            max_append: None,
            events: u32_at(bytes, 92),
            admin_commands: u16_at(bytes, 256),
            // The next three are 0's based.
            abort_limit: u16::from(u8_at(bytes, 258)) + 1,
            event_limit: u16::from(u8_at(bytes, 259)) + 1,
            error_log_entries: u16::from(u8_at(bytes, 262)) + 1,
            warning_temperature: u16_at(bytes, 266),
            critical_temperature: u16_at(bytes, 268),
            capacity: u128_at(bytes, 280),
            namespaces: u32_at(bytes, 516),
            io_commands: u16_at(bytes, 520),
            volatile_cache: u8_at(bytes, 525) & 1 != 0,
            sgls: u32_at(bytes, 536),
            log_attributes: u8_at(bytes, 261),
            firmware_updates: u8_at(bytes, 260),
            firmware_granularity: match u8_at(bytes, 319) {
                0 | 0xff => None,
                n => Some(u32::from(n) * 4096),
            },
            sanitize: u32_at(bytes, 328),
            format: u8_at(bytes, 524),
            unallocated: u128_at(bytes, 296),
            admin_vendor_format: u8_at(bytes, 264) & 1 != 0,
            io_vendor_format: u8_at(bytes, 530) & 1 != 0,
            copy_formats: u16_at(bytes, 534),
            subsystem: text(bytes, 768, 256),
            limits: CommandLimits::default(),
        }
    }

    /// Returns whether LBA formats say more of themselves than Identify Namespace has room for (CTRATT bit 15, ELBAS): guards of more than 16 bits.
    pub fn has_extended_formats(&self) -> bool {
        self.attributes & 1 << 15 != 0
    }

    /// Returns whether the controller has Compare (ONCS bit 0).
    pub fn has_compare(&self) -> bool {
        self.io_commands & 1 != 0
    }

    /// Returns whether the controller has Write Uncorrectable (ONCS bit 1).
    pub fn has_write_uncorrectable(&self) -> bool {
        self.io_commands & 1 << 1 != 0
    }

    /// Returns whether the controller has Copy, with descriptors of format 0 (ONCS bit 8, OCFS bit 0).
    pub fn has_copy(&self) -> bool {
        self.io_commands & 1 << 8 != 0 && self.copy_formats & 1 != 0
    }

    /// Returns whether the controller has Security Send and Receive (OACS bit 0).
    pub fn has_security(&self) -> bool {
        self.admin_commands & 1 != 0
    }

    /// Returns whether the controller has Format NVM (OACS bit 1).
    pub fn has_format(&self) -> bool {
        self.admin_commands & 1 << 1 != 0
    }

    /// Returns whether the controller has Firmware Commit and Firmware Image Download (OACS bit 2).
    pub fn has_firmware_update(&self) -> bool {
        self.admin_commands & 1 << 2 != 0
    }

    /// Returns whether the controller has Namespace Management and Attachment (OACS bit 3).
    pub fn has_namespace_management(&self) -> bool {
        self.admin_commands & 1 << 3 != 0
    }

    /// Returns whether the controller has Device Self-test (OACS bit 4).
    pub fn has_self_test(&self) -> bool {
        self.admin_commands & 1 << 4 != 0
    }

    /// Returns the number of firmware slots, and whether the first can only be read (FRMW bits 3:1 and 0).
    pub fn firmware_slots(&self) -> (u8, bool) {
        (self.firmware_updates >> 1 & 7, self.firmware_updates & 1 != 0)
    }

    /// Returns whether Get Log Page takes an offset and lengths above 64 KiB (LPA bit 2).
    pub fn has_log_offsets(&self) -> bool {
        self.log_attributes & 1 << 2 != 0
    }

    /// Returns whether the controller has Dataset Management (ONCS bit 2).
    pub fn has_dataset_management(&self) -> bool {
        self.io_commands & 1 << 2 != 0
    }

    /// Returns whether the controller has Write Zeroes (ONCS bit 3).
    pub fn has_write_zeroes(&self) -> bool {
        self.io_commands & 1 << 3 != 0
    }

    /// Returns whether the controller has Verify (ONCS bit 7).
    pub fn has_verify(&self) -> bool {
        self.io_commands & 1 << 7 != 0
    }

    /// Returns whether the controller has Doorbell Buffer Config (OACS bit 8).
    pub fn has_shadow_doorbells(&self) -> bool {
        self.admin_commands & 1 << 8 != 0
    }

    /// SGLS bits 1:0: what address and length of an SGL's data block have to be multiples of, in bytes; `None` without SGLs.
    pub fn sgl_alignment(&self) -> Option<u64> {
        match self.sgls & 3 {
            1 => Some(1),
            2 => Some(4),
            _ => None,
        }
    }
}

impl CommandLimits {
    /// Reads the I/O command set specific Identify Controller structure of the NVM command set.
    pub fn parse(bytes: &[u8], min_page: u64) -> Self {
        Self {
            verify: pages(u8_at(bytes, 0), min_page),
            write_zeroes: pages(u8_at(bytes, 1), min_page),
            deallocate: u32_at(bytes, 4),
            deallocate_ranges: u8_at(bytes, 3),
            deallocate_total: u64_at(bytes, 8),
        }
    }
}

/// The identifiers in a controller list (4.4.1): their number, and then that many.
pub(crate) fn controller_list(bytes: &[u8]) -> Vec<u16> {
    let count = usize::from(u16_at(bytes, 0)).min(LEN / 2 - 1);
    (0..count).map(|i| u16_at(bytes, 2 + 2 * i)).collect()
}

/// The identifiers in a namespace list (CNS 02h): ascending, and above `after`; the list ends at the first that isn't.
pub(crate) fn namespace_list(bytes: &[u8], after: u32) -> Vec<u32> {
    let ids = (0..LEN / 4).map(|i| u32_at(bytes, 4 * i));
    let mut last = after;
    ids.take_while(|id| *id > std::mem::replace(&mut last, *id)).take_while(|id| *id < u32::MAX - 1).collect()
}

/// Identify Namespace (NVM Command Set 1.0, 4.1.5.1), and its descriptors (NVM Express Base 2.0, 5.17.2.3).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Namespace {
    /// The identifier.
    pub nsid: u32,
    /// NSZE: how many logical blocks.
    pub blocks: u64,
    /// Bytes of a logical block; 0 where the format makes no sense.
    pub block_size: u32,
    /// MS: bytes of metadata a block.
    pub metadata_size: u16,
    /// FLBAS bit 4: metadata follows its block, and is not in a buffer of its own.
    pub metadata_extended: bool,
    /// DPS bits 2:0: the type of its protection information; `None` where it has none.
    pub protection: Option<ProtectionType>,
    /// DPS bit 3: protection information is first in the metadata, not last.
    pub protection_first: bool,
    /// What it is as a zoned namespace; `None` where it is none.
    pub zoned: Option<Zoned>,
    /// NUSE: how many blocks are allocated.
    pub blocks_used: u64,
    /// NSATTR bit 0: it is write protected, and its controllers refuse to write it.
    pub read_only: bool,
    /// NOIOB: commands should not cross multiples of so many blocks; 0 for no such boundary.
    pub io_boundary: u16,
    /// Every LBA format it can be formatted to: block size and metadata size in bytes.
    pub formats: Vec<(u32, u16)>,
    /// The number of the LBA format that it has: FLBAS bits 3:0, and 6:5 above them.
    pub format: u8,
    /// What one Copy can be.
    pub copy: CopyLimits,
    /// EUI64, where it has one.
    pub eui64: Option<[u8; 8]>,
    /// NGUID, where it has one.
    pub nguid: Option<[u8; 16]>,
    /// The UUID of its descriptors, where it has one.
    pub uuid: Option<[u8; 16]>,
    /// The I/O command set of the namespace, by CSI: 0 is the NVM command set.
    pub command_set: u8,
    /// Why this driver cannot use it; `None` where it can.
    pub unsupported: Option<String>,
}

impl Namespace {
    /// Reads the structure, and the list of descriptors (empty where there is none).
    pub fn parse(nsid: u32, bytes: &[u8], descriptors: &[u8]) -> Self {
        let flbas = u8_at(bytes, 26);
        // NLBAF is 0's based. Index: bits 3:0, and bits 6:5 above them where there are more than 16 formats.
        let count = usize::from(u8_at(bytes, 25)).min(63) + 1;
        let index = usize::from(flbas & 0xf) | if count > 16 { usize::from(flbas >> 5 & 3) << 4 } else { 0 };
        let format = |i: usize| {
            let lbaf = u32_at(bytes, 128 + 4 * i);
            let (metadata, shift) = (lbaf as u16, lbaf >> 16 & 0xff);
            (if (9..=20).contains(&shift) { 1 << shift } else { 0 }, metadata)
        };
        let (block_size, metadata_size) = if index < count { format(index) } else { (0, 0) };
        // DPS is of metadata.
        let dps = if metadata_size > 0 { u8_at(bytes, 29) } else { 0 };
        let mut namespace = Self {
            nsid,
            blocks: u64_at(bytes, 0),
            block_size,
            metadata_size,
            metadata_extended: flbas & 1 << 4 != 0,
            protection: match dps & 7 {
                1 => Some(ProtectionType::Type1),
                2 => Some(ProtectionType::Type2),
                3 => Some(ProtectionType::Type3),
                _ => None,
            },
            protection_first: dps & 1 << 3 != 0,
            zoned: None,
            blocks_used: u64_at(bytes, 16),
            read_only: u8_at(bytes, 99) & 1 != 0,
            io_boundary: u16_at(bytes, 46),
            formats: (0..count).map(format).filter(|f| f.0 > 0).collect(),
            format: index as u8,
            copy: CopyLimits {
                ranges: u16::from(u8_at(bytes, 80)) + 1,
                range_blocks: u16_at(bytes, 74),
                blocks: u32_at(bytes, 76),
            },
            nguid: some(array(bytes, 104)),
            eui64: some(array(bytes, 120)),
            uuid: None,
            command_set: 0,
            unsupported: None,
        };
        namespace.describe(descriptors);
        namespace.unsupported = match dps & 7 {
            kind @ 4.. => Some(format!("its protection information is of type {kind}, and 1 to 3 are known")),
            _ => namespace.reason(),
        };
        namespace
    }

    /// Reads what the namespace says of itself in its own command set (CNS 05h).
    pub(crate) fn parse_more(&mut self, bytes: &[u8]) {
        match self.command_set {
            csi::ZONED => {
                self.zoned = Some(Zoned::parse(bytes, self.format));
                self.unsupported = self.reason();
            }
            // Extended LBA format (NVM Command Set 1.0, 4.1.5.3): storage tag size in bits 6:0, protection information format in bits 8:7.
            _ if self.protection.is_some() && u32_at(bytes, 12 + 4 * usize::from(self.format)) & 0x1ff != 0 => {
                self.unsupported = Some("its guards have more than 16 bits, or it has storage tags".to_owned());
            }
            _ => {}
        }
    }

    /// How its blocks lie in memory.
    pub(crate) fn layout(&self) -> Layout {
        Layout {
            block: self.block_size,
            metadata: self.metadata_size,
            extended: self.metadata_extended,
            protection: self.protection,
            first: self.protection_first,
        }
    }

    /// Returns whether requests that say nothing of metadata work on it: it has none, or all of it is protection information, which the controller makes
    /// and takes away. Others need [`Queue::submit_with_metadata`](crate::Queue::submit_with_metadata).
    pub fn is_plain(&self) -> bool {
        !self.layout().transfers(true)
    }

    fn reason(&self) -> Option<String> {
        match self {
            Self { command_set: csi::ZONED, zoned: Some(Zoned { zone_size: 0, .. }), .. } => {
                Some("its zones have no blocks".to_owned())
            }
            Self { command_set: csi::ZONED, zoned: Some(_), .. } if self.metadata_size > 0 => {
                Some("it has zones, and metadata".to_owned())
            }
            Self { command_set: 1.., zoned: None, .. } => Some(format!(
                "its command set is {} (CSI {:02x}h)",
                command_set_name(self.command_set),
                self.command_set
            )),
            Self { blocks: 0, .. } => Some("it has no blocks".to_owned()),
            Self { block_size: 0, .. } => Some("its LBA format makes no sense".to_owned()),
            // Metadata pointers are multiples of 4 (NVM Express Base 2.0, 3.3.3.1).
            _ if !self.metadata_size.is_multiple_of(4) => {
                Some(format!("it has {} bytes of metadata a block, which is no multiple of 4", self.metadata_size))
            }
            Self { protection: Some(_), metadata_size: ..8, .. } => {
                Some(format!("its protection information has no room in {} bytes of metadata", self.metadata_size))
            }
            _ if self.blocks.checked_mul(self.block_size.into()).is_none() => {
                Some(format!("{} blocks of {} bytes cannot be", self.blocks, self.block_size))
            }
            _ => None,
        }
    }

    /// Reads descriptors: type, length, two bytes reserved, and the value.
    fn describe(&mut self, mut list: &[u8]) {
        while let [kind, len, _, _, rest @ ..] = list
            && let (true, Some((value, next))) = (*len > 0, rest.split_at_checked(usize::from(*len)))
        {
            match (kind, value.len()) {
                (1, 8) => self.eui64 = some(array(value, 0)),
                (2, 16) => self.nguid = some(array(value, 0)),
                (3, 16) => self.uuid = some(array(value, 0)),
                (4, 1) => self.command_set = u8_at(value, 0),
                _ => {}
            }
            list = next;
        }
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.blocks.saturating_mul(self.block_size.into())
    }
}

fn some<const N: usize>(bytes: [u8; N]) -> Option<[u8; N]> {
    (bytes != [0; N]).then_some(bytes)
}

fn command_set_name(csi: u8) -> &'static str {
    match csi {
        0 => "NVM",
        1 => "Key Value",
        2 => "Zoned Namespace",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(blocks: u64, lbaf: u32) -> Vec<u8> {
        let mut bytes = vec![0; LEN];
        bytes[0..8].copy_from_slice(&blocks.to_le_bytes());
        bytes[128..132].copy_from_slice(&lbaf.to_le_bytes());
        bytes
    }

    #[test]
    fn controllers_are_read() {
        let mut bytes = vec![0; LEN];
        bytes[4..24].copy_from_slice(b"S1\0                 ");
        bytes[24..64].copy_from_slice(b"A model                                 ");
        bytes[64..72].copy_from_slice(b"1.0\xff    ");
        bytes[77] = 5;
        bytes[520] = 0b1000_1101;
        bytes[257] = 1;
        bytes[536] = 2;
        let c = Controller::parse(&bytes, 4096, (1, 3, 0));
        assert_eq!((&c.serial[..], &c.model[..], &c.firmware[..]), ("S1", "A model", "1.0?"));
        assert_eq!((c.max_transfer, c.version, c.event_limit), (Some(128 << 10), (1, 3, 0), 1));
        assert!(c.has_compare() && c.has_dataset_management() && c.has_write_zeroes() && c.has_verify());
        assert!(c.has_shadow_doorbells());
        assert_eq!(c.sgl_alignment(), Some(4));
        for (mdts, want) in [(0, None), (1, Some(8192)), (51, Some(1 << 63)), (52, None), (255, None)] {
            bytes[77] = mdts;
            assert_eq!(Controller::parse(&bytes, 4096, (1, 3, 0)).max_transfer, want);
        }
    }

    #[test]
    fn formats_are_taken_or_refused_by_name() {
        for (blocks, lbaf, size, why) in [
            (8, 9 << 16, 512, None),
            (8, 12 << 16, 4096, None),
            (0, 9 << 16, 512, Some("it has no blocks")),
            (8, 9 << 16 | 8, 512, None),
            (8, 9 << 16 | 6, 512, Some("it has 6 bytes of metadata a block, which is no multiple of 4")),
            (8, 8 << 16, 0, Some("its LBA format makes no sense")),
            (8, 200 << 16, 0, Some("its LBA format makes no sense")),
            (u64::MAX, 12 << 16, 4096, Some("18446744073709551615 blocks of 4096 bytes cannot be")),
        ] {
            let n = Namespace::parse(1, &namespace(blocks, lbaf), &[]);
            assert_eq!((n.block_size, n.unsupported.as_deref()), (size, why));
        }
    }

    #[test]
    fn protection_is_read_or_refused() {
        for (dps, metadata, kind, plain, why) in [
            (1, 8, Some(ProtectionType::Type1), true, None),
            (2 | 8, 16, Some(ProtectionType::Type2), false, None),
            (3, 64, Some(ProtectionType::Type3), false, None),
            (0, 8, None, false, None),
            (4, 8, None, false, Some("its protection information is of type 4, and 1 to 3 are known")),
            (
                1,
                4,
                Some(ProtectionType::Type1),
                false,
                Some("its protection information has no room in 4 bytes of metadata"),
            ),
        ] {
            let mut bytes = namespace(8, 9 << 16 | metadata);
            bytes[29] = dps;
            let mut n = Namespace::parse(1, &bytes, &[]);
            assert_eq!((n.protection, n.is_plain(), n.unsupported.as_deref()), (kind, plain, why), "{dps} {metadata}");
            assert_eq!(n.protection_first, dps & 8 != 0);
            // 64-bit guards.
            let mut more = vec![0; LEN];
            more[13] = 1;
            n.parse_more(&more);
            assert_eq!(n.unsupported.is_some(), kind.is_some() || why.is_some());
        }
    }

    /// NVM Command Set 1.0, 4.1.5.1: bit 0 of NSATTR alone says it.
    #[test]
    fn write_protection_is_read() {
        let mut bytes = namespace(8, 9 << 16);
        for (nsattr, read_only) in [(0, false), (1, true), (0xfe, false), (0xff, true)] {
            bytes[99] = nsattr;
            assert_eq!(Namespace::parse(1, &bytes, &[]).read_only, read_only, "{nsattr:#x}");
        }
    }

    #[test]
    fn more_than_sixteen_formats_have_a_wider_index() {
        let mut bytes = namespace(8, 9 << 16);
        bytes[25] = 17;
        bytes[26] = 1 << 5 | 1;
        bytes[128 + 4 * 17..][..4].copy_from_slice(&(12u32 << 16).to_le_bytes());
        assert_eq!(Namespace::parse(1, &bytes, &[]).block_size, 4096);
        bytes[25] = 0;
        assert_eq!(Namespace::parse(1, &bytes, &[]).block_size, 0);
    }

    #[test]
    fn descriptors_end_anywhere() {
        let mut list = vec![4, 1, 0, 0, 2, 1, 8, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        let n = Namespace::parse(1, &namespace(8, 9 << 16), &list);
        assert_eq!(n.eui64, Some([1, 2, 3, 4, 5, 6, 7, 8]));
        assert_eq!(n.unsupported.as_deref(), Some("its command set is Zoned Namespace (CSI 02h)"));
        let (mut zones, mut more) = (n.clone(), vec![0; LEN]);
        zones.parse_more(&more);
        assert_eq!(zones.unsupported.as_deref(), Some("its zones have no blocks"));
        more[2816] = 4;
        zones.parse_more(&more);
        assert_eq!((zones.unsupported, zones.zoned.map(|z| z.zone_size)), (None, Some(4)));
        for cut in 0..list.len() {
            Namespace::parse(1, &namespace(8, 9 << 16), &list[..cut]);
        }
        list.fill(0xff);
        Namespace::parse(1, &namespace(8, 9 << 16), &list);
    }

    #[test]
    fn lists_end_where_they_stop_ascending() {
        let list = |ids: &[u32]| {
            let mut bytes = vec![0; LEN];
            ids.iter().enumerate().for_each(|(i, id)| bytes[4 * i..][..4].copy_from_slice(&id.to_le_bytes()));
            namespace_list(&bytes, 0)
        };
        assert_eq!(list(&[1, 2, 9]), [1, 2, 9]);
        assert!(list(&[]).is_empty());
        assert_eq!(list(&[3, 3, 4]), [3]);
        assert_eq!(list(&[1, u32::MAX]), [1]);
    }

    #[test]
    fn any_bytes_parse() {
        let mut seed = 1u64;
        for len in [0, 1, 77, 200, LEN] {
            for _ in 0..50 {
                let mut next = || {
                    seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    (seed >> 56) as u8
                };
                let bytes: Vec<_> = (0..len).map(|_| next()).collect();
                Controller::parse(&bytes, 1 << 27, (0, 0, 0));
                CommandLimits::parse(&bytes, 1 << 27);
                namespace_list(&bytes, 0);
                let mut n = Namespace::parse(1, &bytes, &bytes);
                n.parse_more(&bytes);
                assert!(n.unsupported.is_some() || n.size() > 0);
            }
        }
    }
}

//! What a namespace says of itself (NVM Command Set 1.0, 4.1.5; descriptors: NVM Express Base 2.0, 5.17.2.3), and whether this driver can use it. The bytes are a
//! device's: any of them parse.

use super::csi;
use crate::bytes::{array, u8_at, u16_at, u32_at, u64_at};
use crate::protection::{GuardFormat, Layout, ProtectionType};
use crate::zone::Zoned;

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
    /// PIF: the format of its protection information.
    pub guards: GuardFormat,
    /// STS: bits of the storage tag in its protection information; 0 for none.
    pub storage_tag_size: u8,
    /// LBSTM: which bits of a storage tag are compared.
    pub storage_tag_mask: u64,
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
    /// ENDGID: its endurance group; 0 where it doesn't say.
    pub endurance_group: u16,
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
            guards: GuardFormat::Bits16,
            storage_tag_size: 0,
            storage_tag_mask: 0,
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
            endurance_group: u16_at(bytes, 102),
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
            _ if self.protection.is_some() => {
                let format = u32_at(bytes, 12 + 4 * usize::from(self.format));
                let guards = match format >> 7 & 3 {
                    0 => Some(GuardFormat::Bits16),
                    1 => Some(GuardFormat::Bits32),
                    2 => Some(GuardFormat::Bits64),
                    _ => None,
                };
                let storage_tag = (format & 0x7f) as u8;
                let why = match guards {
                    None => Some("the format of its protection information is not known".to_owned()),
                    Some(guards) if !guards.can_have(storage_tag) => Some(format!(
                        "its protection information has storage tags of {storage_tag} bits, which its format ({guards:?}) has no room for"
                    )),
                    Some(guards) => {
                        (self.guards, self.storage_tag_size) = (guards, storage_tag);
                        // Bytes 7:0.
                        self.storage_tag_mask = u64_at(bytes, 0);
                        None
                    }
                };
                self.unsupported = self.unsupported.take().or(why).or_else(|| self.reason());
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
            guards: self.guards,
            storage_tag: self.storage_tag_size,
            storage_tag_mask: self.storage_tag_mask,
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
            Self { protection: Some(_), metadata_size, guards, .. } if usize::from(*metadata_size) < guards.bytes() => {
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
    use super::super::LEN;
    use super::*;

    fn namespace(blocks: u64, lbaf: u32) -> Vec<u8> {
        let mut bytes = vec![0; LEN];
        bytes[0..8].copy_from_slice(&blocks.to_le_bytes());
        bytes[128..132].copy_from_slice(&lbaf.to_le_bytes());
        bytes
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
            let n = Namespace::parse(1, &bytes, &[]);
            assert_eq!((n.protection, n.is_plain(), n.unsupported.as_deref()), (kind, plain, why), "{dps} {metadata}");
            assert_eq!(n.protection_first, dps & 8 != 0);
            // Guards of 32 and 64 bits need 16 bytes; those of 32 have a storage tag.
            let more = |format: u8, storage_tag: u8| {
                let mut more = vec![0; LEN];
                (more[12], more[13]) = (format << 7 | storage_tag, format >> 1);
                more
            };
            let fits = kind.is_none() || metadata >= 16;
            for (format, storage_tag, guards, right) in [
                (1, 16, GuardFormat::Bits32, true),
                (1, 64, GuardFormat::Bits32, true),
                (1, 0, GuardFormat::Bits16, false),
                (1, 65, GuardFormat::Bits16, false),
                (2, 0, GuardFormat::Bits64, true),
                (2, 49, GuardFormat::Bits16, false),
                (3, 0, GuardFormat::Bits16, false),
            ] {
                let mut wide = n.clone();
                wide.parse_more(&more(format, storage_tag));
                let right = right || kind.is_none();
                assert_eq!(wide.unsupported.is_none(), why.is_none() && fits && right, "{dps} {metadata} {format}");
                assert_eq!(wide.guards, if kind.is_some() { guards } else { GuardFormat::Bits16 });
            }
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
}

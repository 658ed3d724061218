//! Metadata of blocks, and the protection information in it (NVM Command Set 1.0, 5.2 and 5.3; T10 DIF): how blocks lie in buffers, what a command says of
//! them, and what the host makes and checks itself. Guards have 16, 32 or 64 bits (5.2.1.1, 5.2.1.2, 5.2.1.3); behind the application tag come a storage tag, where the namespace has
//! one, and the reference tag. Pure: bytes in, bytes out; it knows no queue.

use crate::status::StatusCode;
use crc::{CRC_16_T10_DIF, CRC_32_ISCSI, CRC_64_NVME, Crc, Table};
use std::fmt;

/// The type of a namespace's protection information: what its reference tags are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProtectionType {
    /// As many of the low bits of a block's number as they have.
    Type1,
    /// A number of the program's for the first block of a command, and 1 more for each further one.
    Type2,
    /// The program's own; nobody checks them.
    Type3,
}

/// The format of a namespace's protection information (NVM Command Set 1.0, 5.2.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum GuardFormat {
    /// 8 bytes: a guard of 16 bits (T10 DIF); storage and reference tag have 32 together.
    #[default]
    Bits16,
    /// 16 bytes: a guard of 32 bits (CRC-32C); storage and reference tag have 80 together, of which the storage tag has 16 at least.
    Bits32,
    /// 16 bytes: a guard of 64 bits (CRC-64/NVME); storage and reference tag have 48 together.
    Bits64,
}

impl GuardFormat {
    /// Bytes of protection information.
    pub fn bytes(self) -> usize {
        match self {
            Self::Bits16 => 8,
            Self::Bits32 | Self::Bits64 => 16,
        }
    }

    /// Bytes of the guard.
    fn guard_bytes(self) -> usize {
        match self {
            Self::Bits16 => 2,
            Self::Bits32 => 4,
            Self::Bits64 => 8,
        }
    }

    /// Bytes of storage and reference tag.
    fn space_bytes(self) -> usize {
        self.bytes() - self.guard_bytes() - 2
    }

    /// Whether storage tags can have so many bits (STS, 5.2.1.4): what they leave to the reference tag is 64 bits at most.
    pub(crate) fn can_have(self, storage_tag: u8) -> bool {
        match self {
            Self::Bits16 => storage_tag <= 32,
            Self::Bits32 => (16..=64).contains(&storage_tag),
            Self::Bits64 => storage_tag <= 48,
        }
    }
}

/// Which parts of protection information are checked (PRCHK).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checks {
    /// The guard: a CRC of the block. (SPDK: `SPDK_NVME_IO_FLAGS_PRCHK_GUARD`.)
    pub guard: bool,
    /// The application tag. (SPDK: `SPDK_NVME_IO_FLAGS_PRCHK_APPTAG`.)
    pub application_tag: bool,
    /// The reference tag, which those of type 3 do not have checked. (SPDK: `SPDK_NVME_IO_FLAGS_PRCHK_REFTAG`.)
    pub reference_tag: bool,
    /// The storage tag (STC), where the namespace has one.
    pub storage_tag: bool,
}

/// What a command does with the metadata of its blocks (NVM Command Set 1.0, 3.2: PRINFO, LBAT, LBATM, ILBRT).
///
/// On a namespace without protection information, all of it is ignored but for the fact that metadata is in the buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protection {
    /// PRACT: the controller makes the protection information of what is written; and where that is all of the metadata, it takes it away from what is
    /// read, so that buffers have data only. (SPDK: `SPDK_NVME_IO_FLAGS_PRACT`.)
    pub action: bool,
    /// PRCHK: what the controller checks.
    pub check: Checks,
    /// The driver puts the protection information into the buffers of a write or compare before it is sent. (SPDK: `spdk_dif_generate`.)
    pub host_generate: bool,
    /// What the driver checks in the buffers of a read once it is complete. (SPDK: `spdk_dif_verify`.)
    pub host_check: Checks,
    /// The application tag that is written, or expected.
    pub application_tag: u16,
    /// Which bits of it are compared.
    pub application_tag_mask: u16,
    /// The reference tag of the command's first block, of as many bits as the namespace's have; `None` for so many low bits of its number, which type 1 demands.
    pub reference_tag: Option<u64>,
    /// The storage tag that is written, or expected, where the namespace has one.
    pub storage_tag: u64,
}

impl Checks {
    /// None.
    pub const NONE: Self = Self { guard: false, application_tag: false, reference_tag: false, storage_tag: false };
    /// Guard and reference tag: what says that a block is whole, and at its place.
    pub const PLACE: Self = Self { guard: true, application_tag: false, reference_tag: true, storage_tag: false };
    /// All of them.
    pub const ALL: Self = Self { guard: true, application_tag: true, reference_tag: true, storage_tag: true };
}

impl Default for Protection {
    /// [`controller`](Self::controller).
    fn default() -> Self {
        Self::controller()
    }
}

impl Protection {
    /// Metadata passes as it is: nothing is made or checked.
    pub const fn none() -> Self {
        Self {
            action: false,
            check: Checks::NONE,
            host_generate: false,
            host_check: Checks::NONE,
            application_tag: 0,
            application_tag_mask: 0xffff,
            reference_tag: None,
            storage_tag: 0,
        }
    }

    /// The controller makes protection information, and checks guard and reference tag: what requests do that say nothing of it.
    pub const fn controller() -> Self {
        Self { action: true, check: Checks::PLACE, ..Self::none() }
    }

    /// The driver makes protection information, and checks guard and reference tag, and so does the controller: from end to end.
    pub const fn host() -> Self {
        Self { host_generate: true, host_check: Checks::PLACE, check: Checks::PLACE, ..Self::none() }
    }
}

/// What the driver's check of a read found wrong: the first block with something else than it has to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProtectionError {
    /// The block.
    pub lba: u64,
    /// What was checked, by the status that a controller has for it.
    pub status: StatusCode,
    /// The value that was computed, or asked for: a guard, or a tag.
    pub expected: u64,
    /// The value in the metadata.
    pub found: u64,
}

impl fmt::Display for ProtectionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lba, status, expected, found } = self;
        write!(f, "block {lba}: {}: {found:x}h, where {expected:x}h is right", status.name().unwrap_or("?"))
    }
}

/// How the blocks of a namespace lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Bytes of data.
    pub block: u32,
    /// Bytes of metadata.
    pub metadata: u16,
    /// Metadata follows its block, and is not in a buffer of its own.
    pub extended: bool,
    pub protection: Option<ProtectionType>,
    pub guards: GuardFormat,
    /// STS: bits of the storage tag.
    pub storage_tag: u8,
    /// LBSTM: which of them are compared.
    pub storage_tag_mask: u64,
    /// Protection information is first in the metadata, not last.
    pub first: bool,
}

const CRC: Crc<u16, Table<16>> = Crc::<u16, Table<16>>::new(&CRC_16_T10_DIF);
const CRC32: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);
const CRC64: Crc<u64, Table<16>> = Crc::<u64, Table<16>>::new(&CRC_64_NVME);

impl Layout {
    /// Whether metadata goes along with the data of a command that has this PRACT (NVM Command Set 1.0, 5.3.2).
    pub fn transfers(&self, action: bool) -> bool {
        self.metadata > 0 && !(action && self.protection.is_some() && usize::from(self.metadata) == self.guards.bytes())
    }

    /// The blocks of a transfer: data and metadata of each. Extended blocks are all in `data`.
    fn blocks<'a>(&self, data: &'a mut [u8], metadata: &'a mut [u8]) -> Vec<(&'a mut [u8], &'a mut [u8])> {
        let (block, size) = (self.block as usize, usize::from(self.metadata).max(1));
        match self.extended {
            true => data.chunks_exact_mut(block + size).map(|both| both.split_at_mut(block)).collect(),
            false => data.chunks_exact_mut(block).zip(metadata.chunks_exact_mut(size)).collect(),
        }
    }

    /// Where in the metadata the protection information is.
    fn tuple(&self) -> usize {
        if self.first { 0 } else { usize::from(self.metadata).saturating_sub(self.guards.bytes()) }
    }

    /// CRC of a block's data, and of the metadata before the protection information (5.2.2).
    fn guard(&self, data: &[u8], metadata: &[u8]) -> u64 {
        let parts = [data, metadata.get(..self.tuple()).unwrap_or(&[])];
        match self.guards {
            GuardFormat::Bits16 => {
                let mut digest = CRC.digest();
                parts.iter().for_each(|part| digest.update(part));
                digest.finalize().into()
            }
            GuardFormat::Bits32 => {
                let mut digest = CRC32.digest();
                parts.iter().for_each(|part| digest.update(part));
                digest.finalize().into()
            }
            GuardFormat::Bits64 => {
                let mut digest = CRC64.digest();
                parts.iter().for_each(|part| digest.update(part));
                digest.finalize()
            }
        }
    }

    /// Bits of the reference tag: what the storage tag leaves it.
    fn reference_bits(&self) -> u32 {
        (8 * self.guards.space_bytes() as u32).saturating_sub(self.storage_tag.into())
    }

    /// The bits of a number that a reference tag has.
    fn tag(&self, number: u64) -> u64 {
        number & low_bits(self.reference_bits())
    }

    /// Storage and reference tag of block `index` of a command that begins at `lba`: the storage tag is above.
    pub fn space(&self, protection: &Protection, lba: u64, index: u64) -> u128 {
        let storage = protection.storage_tag & low_bits(self.storage_tag.into());
        u128::from(storage) << self.reference_bits() | u128::from(self.reference(protection, lba, index))
    }

    /// The reference tag of block `index` of a command that begins at `lba`.
    pub fn reference(&self, protection: &Protection, lba: u64, index: u64) -> u64 {
        let first = protection.reference_tag.unwrap_or(lba);
        let index = if self.protection == Some(ProtectionType::Type3) { 0 } else { index };
        self.tag(first.wrapping_add(index))
    }

    /// Puts the protection information into the metadata of blocks from `lba` on.
    pub fn generate(&self, data: &mut [u8], metadata: &mut [u8], lba: u64, protection: &Protection) {
        let at = self.tuple();
        for (index, (data, metadata)) in (0..).zip(self.blocks(data, metadata)) {
            let guard = self.guard(data, metadata);
            let space = self.space(protection, lba, index);
            if let Some(to) = metadata.get_mut(at..at + self.guards.bytes()) {
                to.copy_from_slice(&self.tuple_bytes(guard, protection.application_tag, space));
            }
        }
    }

    /// Guard, application tag, and storage and reference tag as they lie in metadata: big-endian.
    fn tuple_bytes(&self, guard: u64, application: u16, space: u128) -> Vec<u8> {
        let (guard, space) = (guard.to_be_bytes(), space.to_be_bytes());
        let (guard, space) = (&guard[8 - self.guards.guard_bytes()..], &space[16 - self.guards.space_bytes()..]);
        [guard, &application.to_be_bytes(), space].concat()
    }

    /// Checks what the protection says of blocks from `lba` on. Blocks whose tags are all ones are not checked: nobody has written them, or wants that
    /// (5.3.3).
    pub fn verify(
        &self,
        data: &mut [u8],
        metadata: &mut [u8],
        lba: u64,
        protection: &Protection,
    ) -> Result<(), ProtectionError> {
        let checks = protection.host_check;
        for (index, (data, metadata)) in (0..).zip(self.blocks(data, metadata)) {
            let Some(tuple) = metadata.get(self.tuple()..).and_then(|m| m.get(..self.guards.bytes())) else {
                continue;
            };
            let number = |bytes: &[u8]| bytes.iter().fold(0, |number, byte| number << 8 | u128::from(*byte));
            let (guard, tags) = tuple.split_at(self.guards.guard_bytes());
            let (guard, application, space) = (number(guard) as u64, number(&tags[..2]) as u64, number(&tags[2..]));
            let (storage, reference) = ((space >> self.reference_bits()) as u64, self.tag(space as u64));
            let type3 = self.protection == Some(ProtectionType::Type3);
            if application == 0xffff && (!type3 || reference == self.tag(u64::MAX)) {
                continue;
            }
            let mask = u64::from(protection.application_tag_mask);
            let storage_mask = self.storage_tag_mask & low_bits(self.storage_tag.into());
            let all = [
                (checks.guard, 0x82, self.guard(data, metadata), guard),
                (checks.application_tag, 0x83, u64::from(protection.application_tag) & mask, application & mask),
                (checks.reference_tag && !type3, 0x84, self.reference(protection, lba, index), reference),
                (checks.storage_tag, 0x88, protection.storage_tag & storage_mask, storage & storage_mask),
            ];
            if let Some((_, code, expected, found)) = all.into_iter().find(|(on, _, want, is)| *on && want != is) {
                // Media and Data Integrity Errors have type 2; the same read may fail again.
                return Err(ProtectionError { lba: lba + index, status: StatusCode(0x200 | code), expected, found });
            }
        }
        Ok(())
    }
}

/// So many low bits, 64 at most.
fn low_bits(count: u32) -> u64 {
    1u64.checked_shl(count).unwrap_or(0).wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// T10 DIF: the check value of the CRC catalogue, and a block of zeros, whose guard is 0.
    #[test]
    fn guards_are_t10s() {
        let layout = Layout {
            block: 9,
            metadata: 8,
            extended: false,
            protection: None,
            guards: GuardFormat::Bits16,
            storage_tag: 0,
            storage_tag_mask: 0,
            first: false,
        };
        assert_eq!(layout.guard(b"123456789", &[0; 8]), 0xd0db);
        assert_eq!(layout.guard(&[0; 512], &[0xff; 8]), 0);
        // CRC-64/NVME: the check value of the catalogue, and the standard's own for 4 KiB of zeros and of ones (NVM Command Set 1.0, 5.2.1.3.5).
        let wide = Layout { guards: GuardFormat::Bits64, metadata: 16, ..layout };
        assert_eq!(wide.guard(b"123456789", &[0; 16]), 0xae8b_1486_0a79_9888);
        assert_eq!(wide.guard(&[0; 4096], &[0; 16]), 0x6482_d367_eb22_b64e);
        assert_eq!(wide.guard(&[0xff; 4096], &[0; 16]), 0xc0dd_ba73_02ec_a3ac);
        // CRC-32C: the check value of the catalogue, and those of iSCSI for 32 bytes (RFC 3720, B.4).
        let middle = Layout { guards: GuardFormat::Bits32, storage_tag: 16, metadata: 16, ..layout };
        assert_eq!(middle.guard(b"123456789", &[0; 16]), 0xe306_9283);
        assert_eq!(middle.guard(&[0; 32], &[0; 16]), 0x8a91_36aa);
        assert_eq!(middle.guard(&[0xff; 32], &[0; 16]), 0x62a8_ab43);
        // Metadata before the protection information is protected, too.
        let long = Layout { metadata: 16, ..layout };
        assert_eq!(long.guard(b"1", b"23456789........"), 0xd0db);
        assert_ne!(Layout { first: true, ..long }.guard(b"1", b"23456789........"), 0xd0db);
    }

    #[test]
    fn any_bit_that_flips_is_found_by_its_name() {
        let types = [ProtectionType::Type1, ProtectionType::Type2, ProtectionType::Type3];
        use GuardFormat::{Bits16, Bits32, Bits64};
        for (kind, metadata, extended, first, guards, storage_tag) in types.into_iter().flat_map(|kind| {
            let shapes = [
                (8, true, false, Bits16, 0),
                (8, false, true, Bits16, 0),
                (16, true, true, Bits16, 0),
                (64, false, false, Bits16, 24),
                (16, true, false, Bits32, 16),
                (16, false, false, Bits32, 17),
                (64, false, true, Bits32, 64),
                (16, true, false, Bits64, 0),
                (16, false, false, Bits64, 0),
                (64, false, true, Bits64, 40),
            ];
            shapes.map(move |(metadata, extended, first, guards, sts)| (kind, metadata, extended, first, guards, sts))
        }) {
            let layout = Layout {
                block: 512,
                metadata,
                extended,
                protection: Some(kind),
                guards,
                storage_tag,
                storage_tag_mask: u64::MAX,
                first,
            };
            let protection = Protection {
                host_check: Checks::ALL,
                application_tag: 0x1234,
                reference_tag: (kind != ProtectionType::Type1).then_some(0xffff_fffe),
                storage_tag: 0x5678_9abc_def0_1234,
                ..Protection::host()
            };
            let size = usize::from(metadata);
            let (mut data, mut apart) = match extended {
                true => (vec![7; 3 * (512 + size)], Vec::new()),
                false => (vec![7; 3 * 512], vec![9; 3 * size]),
            };
            layout.generate(&mut data, &mut apart, 5, &protection);
            assert_eq!(layout.verify(&mut data, &mut apart, 5, &protection), Ok(()));
            let tuple = layout.tuple();
            // In the second block: data, guard, application tag, reference tag.
            let last = guards.bytes() - 1;
            let tag = guards.guard_bytes() + 1;
            let all = [(None, 0x82), (Some(tuple), 0x82), (Some(tuple + tag), 0x83), (Some(tuple + last), 0x84)];
            // The first byte behind the application tag is the storage tag's.
            let storage = (storage_tag > 0).then_some((Some(tuple + tag + 1), 0x88));
            for (at, code) in all.into_iter().chain(storage) {
                let flip = |data: &mut [u8], apart: &mut [u8]| match (at, extended) {
                    (None, true) => data[512 + size + 100] ^= 1,
                    (None, false) => data[512 + 100] ^= 1,
                    (Some(at), true) => data[512 + size + 512 + at] ^= 1,
                    (Some(at), false) => apart[size + at] ^= 1,
                };
                flip(&mut data, &mut apart);
                let found = layout.verify(&mut data, &mut apart, 5, &protection).map_err(|e| (e.lba, e.status.code()));
                let want = if code == 0x84 && kind == ProtectionType::Type3 { Ok(()) } else { Err((6, code)) };
                assert_eq!(found, want, "{layout:?} {at:?}");
                flip(&mut data, &mut apart);
            }
            // Blocks that nobody wrote.
            data.fill(0xff);
            apart.fill(0xff);
            assert_eq!(layout.verify(&mut data, &mut apart, 5, &protection), Ok(()));
        }
    }

    #[test]
    fn storage_tags_leave_the_rest_to_reference_tags() {
        use GuardFormat::{Bits16, Bits32, Bits64};
        let tags =
            [(Bits16, 0, 32), (Bits16, 32, 0), (Bits32, 16, 64), (Bits32, 64, 16), (Bits64, 0, 48), (Bits64, 48, 0)];
        for (guards, storage_tag, reference) in tags {
            let layout = Layout {
                block: 512,
                metadata: 16,
                extended: false,
                protection: Some(ProtectionType::Type1),
                guards,
                storage_tag,
                storage_tag_mask: u64::MAX,
                first: false,
            };
            assert!(guards.can_have(storage_tag) && layout.reference_bits() == reference, "{guards:?} {storage_tag}");
            let protection = Protection { storage_tag: u64::MAX, ..Protection::host() };
            let space = layout.space(&protection, 0, 0);
            assert_eq!((space.count_ones(), space.trailing_zeros().min(reference)), (storage_tag.into(), reference));
            assert_eq!(layout.space(&Protection::host(), u64::MAX, 0).count_ones(), reference);
        }
        assert!(!Bits16.can_have(33) && !Bits32.can_have(15) && !Bits32.can_have(65) && !Bits64.can_have(49));
    }

    #[test]
    fn errors_are_sentences() {
        let error = ProtectionError { lba: 7, status: StatusCode(0x282), expected: 0x1234, found: 0x4321 };
        assert_eq!(error.to_string(), "block 7: End-to-end Guard Check Error: 4321h, where 1234h is right");
    }
}

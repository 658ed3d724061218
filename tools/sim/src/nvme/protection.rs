//! Metadata of blocks, and protection information in it (nvm 5.2, 5.3), as a controller keeps, makes and checks it. Guards have 16 bits, 32 or 64; there
//! may be storage tags.
//!
//! Metadata is kept beside the blocks, each byte inverted: what was never written, or was deallocated, reads as all ones, and is not checked.

use super::bits::{Status, io};
use super::command::Command;
use super::data::{self, Rules};
use super::io::{Namespace, Store, active};
use crate::faults::Fault;
use crc::{CRC_16_T10_DIF, CRC_32_ISCSI, CRC_64_NVME, Crc};
use wholebar_core::mem::Iova;
use wholebar_core::model::Host;

/// How a namespace's blocks have metadata.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Metadata {
    /// MS: bytes a block; 0 for none.
    pub size: u16,
    /// It follows its block, and is not in a buffer of its own.
    pub extended: bool,
    /// The type of protection information, 1 to 3; 0 for none.
    pub protection: u8,
    /// Protection information is first in the metadata, not last.
    pub first: bool,
    /// PIF: the format of protection information (nvm 5.2.1): 0, 1 and 2 for guards of 16, 32 and 64 bits.
    pub format: u8,
    /// STS: bits of the storage tag (nvm 5.2.1.4).
    pub storage: u8,
}

/// The longest data that is made for a command, in bytes.
const LONGEST: u64 = 16 << 20;
const GUARD: Crc<u16> = Crc::<u16>::new(&CRC_16_T10_DIF);
const MIDDLE_GUARD: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);
const WIDE_GUARD: Crc<u64> = Crc::<u64>::new(&CRC_64_NVME);

/// What a command says of protection information: PRINFO, STC, LBST and ILBRT as one number, LBAT, LBATM.
#[derive(Clone, Copy)]
struct Info {
    action: bool,
    guard: bool,
    application: bool,
    reference: bool,
    storage: bool,
    tag: u128,
    application_tag: u16,
    mask: u16,
}

impl Info {
    /// Of a command on blocks: PRINFO is in bits 29:26 of dword 12.
    fn of(cmd: &Command) -> Self {
        let info = Self::new(cmd.cdw12() >> 26, cmd.cdw14_15());
        // Of 80 bits, those above 31 are in dword 3, and those above 63 in dword 2.
        let upper = u128::from(cmd.cdw2() & 0xffff) << 64 | u128::from(cmd.cdw3()) << 32;
        Self { tag: info.tag | upper, storage: cmd.cdw12() >> 24 & 1 != 0, ..info }
    }

    /// Of PRINFO, and what dwords 14 and 15 say, or a source range of Copy.
    fn new(prinfo: u32, tags: u64) -> Self {
        let has = |bit: u32| prinfo >> bit & 1 != 0;
        Self {
            action: has(3),
            guard: has(2),
            application: has(1),
            reference: has(0),
            storage: false,
            tag: u128::from(tags & 0xffff_ffff),
            application_tag: (tags >> 32) as u16,
            mask: (tags >> 48) as u16,
        }
    }
}

impl Metadata {
    /// Whether it takes extended LBA formats to tell of it (nvm 4.1.5.3).
    pub(super) fn is_extended(self) -> bool {
        self.format > 0 || self.storage > 0
    }

    fn bytes(self) -> usize {
        self.size.into()
    }

    /// Whether a command can ask for this (nvm 5.3.3).
    fn allows(self, info: Info, lba: u64) -> Result<(), Status> {
        match self.protection {
            1 if info.reference && self.reference(info.tag) != self.number(lba) => Err(Status::INVALID_PROTECTION),
            3 if info.reference => Err(Status::INVALID_PROTECTION),
            _ => Ok(()),
        }
    }

    /// Where protection information is.
    fn at(self) -> usize {
        if self.first { 0 } else { self.bytes() - self.tuple() }
    }

    /// Bytes of protection information, and of its guard.
    pub(super) fn tuple(self) -> usize {
        if self.format > 0 { 16 } else { 8 }
    }

    fn guard_bytes(self) -> usize {
        [2, 4, 8][usize::from(self.format.min(2))]
    }

    /// Bits of a reference tag: what a storage tag leaves it behind the application tag.
    fn reference_bits(self) -> u32 {
        8 * (self.tuple() - self.guard_bytes() - 2) as u32 - u32::from(self.storage)
    }

    /// A number as a reference tag has it.
    fn number(self, number: u64) -> u64 {
        self.reference(number.into())
    }

    /// The reference tag of both tags.
    fn reference(self, tag: u128) -> u64 {
        (tag & ((1 << self.reference_bits()) - 1)) as u64
    }

    /// The storage tag of both tags.
    fn storage_tag(self, tag: u128) -> u128 {
        tag >> self.reference_bits() & ((1 << self.storage) - 1)
    }

    /// Big-endian.
    fn guard(self, block: &[u8], metadata: &[u8]) -> Vec<u8> {
        let parts = [block, &metadata[..self.at()]];
        match self.format {
            0 => {
                let mut digest = GUARD.digest();
                parts.iter().for_each(|part| digest.update(part));
                digest.finalize().to_be_bytes().into()
            }
            1 => {
                let mut digest = MIDDLE_GUARD.digest();
                parts.iter().for_each(|part| digest.update(part));
                digest.finalize().to_be_bytes().into()
            }
            _ => {
                let mut digest = WIDE_GUARD.digest();
                parts.iter().for_each(|part| digest.update(part));
                digest.finalize().to_be_bytes().into()
            }
        }
    }

    /// Both tags of a command's block `index`.
    fn tag(self, info: Info, index: u32) -> u128 {
        let first = self.reference(info.tag);
        let reference = if self.protection == 3 { first } else { self.number(first.wrapping_add(index.into())) };
        self.storage_tag(info.tag) << self.reference_bits() | u128::from(reference)
    }

    /// Makes it for blocks, where there is any.
    fn make(self, info: Info, block: usize, data: &[u8], metadata: &mut [u8]) {
        if self.protection == 0 {
            return;
        }
        for (index, (data, metadata)) in (0..).zip(data.chunks(block).zip(metadata.chunks_mut(self.bytes()))) {
            let guard = self.guard(data, metadata);
            let to = &mut metadata[self.at()..][..self.tuple()];
            let (of_guard, tags) = to.split_at_mut(self.guard_bytes());
            of_guard.copy_from_slice(&guard);
            tags[..2].copy_from_slice(&info.application_tag.to_be_bytes());
            let (tag, len) = (self.tag(info, index).to_be_bytes(), tags.len() - 2);
            tags[2..].copy_from_slice(&tag[16 - len..]);
        }
    }

    /// Checks it, as far as the command wants that; the error says which block it is, from the first on.
    fn check(self, info: Info, block: usize, data: &[u8], metadata: &[u8]) -> Result<(), (u64, Status)> {
        if self.protection == 0 {
            return Ok(());
        }
        for (index, (data, metadata)) in (0u32..).zip(data.chunks(block).zip(metadata.chunks(self.bytes()))) {
            let (guard, tags) = metadata[self.at()..][..self.tuple()].split_at(self.guard_bytes());
            let application = u16::from_be_bytes([tags[0], tags[1]]);
            let tag = tags[2..].iter().fold(0, |tag, byte| tag << 8 | u128::from(*byte));
            let (wanted, reference) = (self.tag(info, index), self.reference(tag));
            if application == u16::MAX && (self.protection < 3 || reference == self.number(u64::MAX)) {
                continue;
            }
            let status = if info.guard && guard != self.guard(data, metadata) {
                Status::GUARD_CHECK
            } else if info.application && (application ^ info.application_tag) & info.mask != 0 {
                Status::APPLICATION_TAG_CHECK
            } else if info.reference && reference != self.reference(wanted) {
                Status::REFERENCE_TAG_CHECK
            } else if info.storage && self.storage_tag(tag) != self.storage_tag(wanted) {
                Status::STORAGE_TAG_CHECK
            } else {
                continue;
            };
            return Err((index.into(), status));
        }
        Ok(())
    }
}

impl Namespace {
    fn load_metadata(&mut self, lba: u64, blocks: u64) -> Result<Vec<u8>, Status> {
        let size = u64::from(self.format.size);
        let mut bytes = vec![0; (blocks * size) as usize];
        self.metadata.load(lba * size, &mut bytes)?;
        bytes.iter_mut().for_each(|byte| *byte = !*byte);
        Ok(bytes)
    }

    fn store_metadata(&mut self, lba: u64, mut bytes: Vec<u8>) -> Result<(), Status> {
        bytes.iter_mut().for_each(|byte| *byte = !*byte);
        Ok(self.metadata.store(lba * u64::from(self.format.size), &bytes)?)
    }

    /// Blocks are deallocated: nothing is known of their metadata.
    pub(super) fn forget_metadata(&mut self, lba: u64, blocks: u64) -> Result<(), Status> {
        let size = u64::from(self.format.size);
        Ok(self.metadata.zero(lba * size, blocks * size)?)
    }

    /// Blocks were made zeros.
    pub(super) fn zero_metadata(&mut self, cmd: &Command, lba: u64, blocks: u64) -> Result<(), Status> {
        if self.format.size == 0 {
            return Ok(());
        }
        let (info, block) = (Info::of(cmd), 1usize << self.shift);
        self.format.allows(info, lba)?;
        for index in 0..blocks as u32 {
            let mut metadata = vec![0; self.format.bytes()];
            if info.action {
                let tag = self.format.tag(info, index);
                self.format.make(Info { tag, ..info }, block, &ZEROS[..block], &mut metadata);
            }
            self.store_metadata(lba + u64::from(index), metadata)?;
        }
        Ok(())
    }

    /// Copied blocks are written with protection information made anew (PRINFOW in bits 29:26), or as it was.
    pub(super) fn store_copied(
        &mut self,
        cmd: &Command,
        lba: u64,
        data: &[u8],
        mut metadata: Vec<u8>,
    ) -> Result<(), Status> {
        let info = Info::of(cmd);
        if info.action {
            self.format.make(info, 1 << self.shift, data, &mut metadata);
        }
        self.store_metadata(lba, metadata)
    }

    /// Reads blocks with their metadata, and checks it; an error says which block had it.
    fn checked(&mut self, info: Info, lba: u64, blocks: u64) -> Result<(Vec<u8>, Vec<u8>), (u64, Status)> {
        let (at, len) = (lba << self.shift, blocks << self.shift);
        let mut data = vec![0; len as usize];
        let loaded = self.readable(at, len).and_then(|()| Ok(self.media.load(at, &mut data)?));
        let metadata = loaded.and_then(|()| self.load_metadata(lba, blocks)).map_err(|status| (lba, status))?;
        let check = self.format.check(info, 1 << self.shift, &data, &metadata);
        check.map_err(|(index, status)| (lba + index, status))?;
        Ok((data, metadata))
    }
}

/// A block of zeros, as large as any.
const ZEROS: [u8; 4096] = [0; 4096];

impl Store {
    /// Read, Write or Compare on blocks with metadata.
    pub(super) fn transfer_with_metadata(
        &mut self,
        host: &Host<'_>,
        cmd: &Command,
        rules: Rules,
    ) -> Result<(), Status> {
        if cmd.opcode() == io::WRITE {
            self.may_place(cmd)?;
        }
        let ns = active(&mut self.namespaces, cmd.nsid())?;
        let (at, len) = ns.extent(cmd)?;
        let (format, info, lba, block) = (ns.format, Info::of(cmd), cmd.cdw10_11(), 1usize << ns.shift);
        let blocks = len >> ns.shift;
        format.allows(info, lba)?;
        let moves = !(info.action && format.protection > 0 && format.bytes() == format.tuple());
        let size = if moves { format.bytes() } else { 0 };
        let unit = block + if format.extended { size } else { 0 };
        let bytes = blocks * unit as u64;
        let limited = if self.data_limit { len } else { bytes };
        if limited > self.max_transfer || bytes > LONGEST {
            return Err(Status::INVALID_FIELD);
        }
        self.spent += bytes;
        let mut all = vec![0; bytes as usize];
        // Where the metadata is in memory, if it goes there alone.
        let apart = if moves && !format.extended { blocks * size as u64 } else { 0 };
        let write = cmd.opcode() != io::READ;
        let memory = host.dma(Iova(cmd.mptr()), apart).filter(|m| write || apart == 0 || m.writable());
        let denied = || data::denied(host, "metadata", cmd.mptr(), apart, !write);
        if apart > 0 && !cmd.mptr().is_multiple_of(4) {
            return Err(Status::INVALID_FIELD);
        }
        if write {
            data::copy_in(host, cmd, &mut all, rules)?;
            let mut data = Vec::with_capacity(len as usize);
            let mut metadata = vec![0; blocks as usize * format.bytes()];
            for (one, to) in all.chunks(unit).zip(metadata.chunks_mut(format.bytes())) {
                data.extend_from_slice(&one[..block]);
                to[..unit - block].copy_from_slice(&one[block..]);
            }
            if apart > 0 && !memory.as_ref().is_some_and(|m| m.read(0, &mut metadata)) {
                return Err(denied());
            }
            if cmd.opcode() == io::COMPARE {
                let (stored, kept) = ns.checked(info, lba, blocks).map_err(|(lba, status)| {
                    self.failed = Some(lba);
                    status
                })?;
                self.counters.reads += 1;
                self.counters.units_read += len >> 9;
                return match stored == data && (!moves || same(format, &kept, &metadata)) {
                    true => Ok(()),
                    false => Err(Status::COMPARE_FAILURE),
                };
            }
            ns.may_write()?;
            match info.action {
                true => format.make(info, block, &data, &mut metadata),
                false => format.check(info, block, &data, &metadata).map_err(|(index, status)| {
                    self.failed = Some(lba + index);
                    status
                })?,
            }
            ns.written(at, len);
            ns.media.store(at, &data)?;
            ns.store_metadata(lba, metadata)?;
            self.place(cmd, len);
            self.counters.writes += 1;
            self.counters.units_written += len >> 9;
            return self.settle(cmd);
        }
        let (data, metadata) = ns.checked(info, lba, blocks).map_err(|(lba, status)| {
            self.failed = Some(lba);
            status
        })?;
        for ((to, one), more) in all.chunks_mut(unit).zip(data.chunks(block)).zip(metadata.chunks(format.bytes())) {
            to[..block].copy_from_slice(one);
            to[block..].copy_from_slice(&more[..unit - block]);
        }
        data::copy_out(host, cmd, &all, rules)?;
        if apart > 0 && !memory.as_ref().is_some_and(|m| m.write(0, &metadata)) {
            return Err(denied());
        }
        self.counters.reads += 1;
        self.counters.units_read += len >> 9;
        Ok(())
    }

    /// Verify (nvm 3.2.5) of blocks with metadata.
    pub(super) fn verify_metadata(&mut self, cmd: &Command) -> Result<(), Status> {
        let ns = active(&mut self.namespaces, cmd.nsid())?;
        let (_, len) = ns.extent(cmd)?;
        let (info, lba) = (Info::of(cmd), cmd.cdw10_11());
        ns.format.allows(info, lba)?;
        let end = lba + (len >> ns.shift);
        for at in (lba..end).step_by(PART as usize) {
            let of_part = Info { tag: ns.format.tag(info, (at - lba) as u32), ..info };
            ns.checked(of_part, at, PART.min(end - at)).map_err(|(lba, status)| {
                self.failed = Some(lba);
                status
            })?;
        }
        self.spent += len;
        Ok(())
    }

    /// A range of a Copy (nvm 3.2.2), by PRINFOR in bits 15:12 and the range's tags: its data, and metadata.
    pub(super) fn copy_range(
        &mut self,
        cmd: &Command,
        tags: u64,
        lba: u64,
        blocks: u64,
    ) -> Result<(Vec<u8>, Vec<u8>), Status> {
        let ns = active(&mut self.namespaces, cmd.nsid())?;
        if (ns.format.format > 0 || ns.format.storage > 0) && ns.format.protection > 0 {
            // Descriptors of format 1 are for these, which there are none of.
            return Err(Status::INVALID_FIELD);
        }
        let info = Info::new(cmd.cdw12() >> 12, tags);
        ns.format.allows(info, lba)?;
        ns.checked(info, lba, blocks).map_err(|(lba, status)| {
            self.failed = Some(lba);
            status
        })
    }

    /// A fault: one bit of the first of a command's blocks flips, where it is kept.
    pub(super) fn flip(&mut self, cmd: &Command, fault: Fault, chance: u64) {
        let lba = cmd.cdw10_11();
        if let Some(memory) = &mut self.host_memory {
            memory.forget();
        }
        let Ok(ns) = active(&mut self.namespaces, cmd.nsid()) else { return };
        if lba >= ns.blocks {
            return;
        }
        let protected = ns.format.protection > 0;
        let tuple = if protected { ns.format.at() as u64 } else { 0 };
        let (guard, all) = (ns.format.guard_bytes() as u64, ns.format.tuple() as u64);
        let (media, place, len) = match fault {
            Fault::FlipData => (&mut ns.media, lba << ns.shift, 1 << ns.shift),
            Fault::FlipGuard if protected => (&mut ns.metadata, tuple, guard),
            Fault::FlipApplicationTag if protected => (&mut ns.metadata, tuple + guard, 2),
            // What is the reference tag's alone.
            Fault::FlipReferenceTag if protected => {
                let before = guard + 2 + u64::from(ns.format.storage).div_ceil(8);
                if before == all {
                    return;
                }
                (&mut ns.metadata, tuple + before, all - before)
            }
            _ => return,
        };
        let place = if fault == Fault::FlipData { place } else { place + lba * u64::from(ns.format.size) };
        let (bit, at) = (chance % 8, place + (chance >> 8) % len);
        let mut byte = [0];
        // A medium that can't be read is spoilt enough.
        if media.load(at, &mut byte).is_ok() {
            let _ = media.store(at, &[byte[0] ^ 1 << bit]);
        }
    }
}

/// How many blocks are looked at in one go, where no command's data bounds that.
const PART: u64 = 256;

/// Whether metadata is the same, but for protection information.
fn same(format: Metadata, one: &[u8], other: &[u8]) -> bool {
    let rest = |bytes: &[u8]| match format.protection {
        0 => bytes.to_vec(),
        _ => [&bytes[..format.at()], &bytes[format.at() + format.tuple()..]].concat(),
    };
    one.chunks(format.bytes()).zip(other.chunks(format.bytes())).all(|(one, other)| rest(one) == rest(other))
}

//! I/O commands (NVM Command Set Specification 1.0, "nvm"), each done at once.

use super::bits::{Status, io};
use super::command::Command;
use super::data::{self, Rules};
use super::host_memory::HostMemory;
use super::placement::{Fdp, Streams};
use super::protection::Metadata;
use super::reservation::Member;
use super::uncorrectable::Uncorrectable;
use super::zones::Zones;
use crate::media::Media;
use wholebar_core::model::Host;

/// A namespace.
pub(super) struct Namespace {
    /// Block size as a power of two: 9 or 12.
    pub(super) shift: u32,
    /// How many blocks.
    pub(super) blocks: u64,
    /// Bytes of it, whatever its blocks are.
    pub(super) bytes: u64,
    pub(super) read_only: bool,
    /// There is one of this identifier.
    pub(super) allocated: bool,
    /// It is active: attached to the controller.
    pub(super) attached: bool,
    pub(super) uncorrectable: Uncorrectable,
    pub(super) media: Media,
    /// How its blocks have metadata, and what that is kept in.
    pub(super) format: Metadata,
    pub(super) metadata: Media,
    /// Where it is zoned.
    pub(super) zones: Option<Box<Zones>>,
}

/// All namespaces, and what is common to I/O.
pub(super) struct Store {
    /// By namespace id, less one.
    pub(super) namespaces: Vec<Namespace>,
    /// The most that one command may transfer, in bytes.
    pub(super) max_transfer: u64,
    /// The most that one Zone Append may write, in bytes.
    pub(super) max_append: u64,
    /// Volatile write cache on: written data is durable after a flush only.
    pub(super) write_cache: bool,
    pub(super) counters: Counters,
    /// A sanitize operation runs: nothing else is done.
    pub(super) sanitizing: bool,
    /// What the commands of this poll cost so far, in bytes.
    pub(super) spent: u64,
    /// The block at which the last command failed, where that is known.
    pub(super) failed: Option<u64>,
    /// What the last command has to tell: dwords 0 and 1 of its completion.
    pub(super) result: u64,
    pub(super) fdp: Option<Box<Fdp>>,
    pub(super) streams: Option<Box<Streams>>,
    /// Memory of the host's, for copies of blocks.
    pub(super) host_memory: Option<Box<HostMemory>>,
    /// Its place in a subsystem, where it has one.
    pub(super) member: Option<Box<Member>>,
    /// What one command may transfer is so much data, and metadata beside it.
    pub(super) data_limit: bool,
    /// It has no Write Zeroes, though it says so.
    pub(super) no_write_zeroes: bool,
}

/// What the SMART log tells, in commands and 512-byte units.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counters {
    pub(super) reads: u64,
    pub(super) writes: u64,
    pub(super) units_read: u64,
    pub(super) units_written: u64,
    pub(super) media_errors: u64,
}

/// Dataset Management ranges that one command can name (nvm 3.2.3).
const RANGES: usize = 256;
/// What a Copy can be (nvm 4.1.5.1): its source ranges (MSRC, and 1), the blocks of one (MSSRL), and of all (MCL).
pub(super) const COPY_RANGES: u8 = 16;
pub(super) const COPY_RANGE_BLOCKS: u16 = 256;
pub(super) const COPY_BLOCKS: u32 = 1024;
/// What a list of SGL descriptors or of ranges costs beside the data that it describes, as if it were so many bytes: a list is about as long.
const LIST: u64 = 64 << 10;

impl Store {
    /// Does a command, and says how it ended.
    #[inline]
    pub(super) fn execute(&mut self, host: &Host<'_>, cmd: &Command, rules: Rules) -> Status {
        match self.dispatch(host, cmd, rules) {
            Ok(()) => Status::OK,
            Err(status) => {
                if status.0 >> 8 & 7 == 2 {
                    self.counters.media_errors += 1;
                }
                status
            }
        }
    }

    #[inline]
    fn dispatch(&mut self, host: &Host<'_>, cmd: &Command, rules: Rules) -> Result<(), Status> {
        if cmd.fuse() != 0 {
            return Err(Status::INVALID_FIELD);
        }
        if self.sanitizing {
            return Err(Status::SANITIZE_IN_PROGRESS);
        }
        self.may_access(cmd)?;
        if self.host_memory.is_some() {
            self.forget_copies(cmd);
        }
        match cmd.opcode() {
            io::READ | io::WRITE | io::COMPARE if self.has_metadata(cmd.nsid()) => {
                self.transfer_with_metadata(host, cmd, rules)
            }
            io::READ if self.host_memory.is_some() => self.read_with_host_memory(host, cmd, rules),
            io::READ => self.read(host, cmd, rules),
            io::WRITE => self.write(host, cmd, rules),
            io::FLUSH => self.flush(cmd),
            io::COMPARE => self.compare(host, cmd, rules),
            io::WRITE_ZEROES if self.no_write_zeroes => Err(Status::WRITE_FAULT),
            io::WRITE_ZEROES => self.write_zeroes(cmd),
            io::DATASET => self.dataset(host, cmd, rules),
            io::VERIFY => self.verify(cmd),
            io::WRITE_UNCORRECTABLE => self.write_uncorrectable(cmd),
            io::COPY => self.copy(host, cmd, rules),
            io::RESERVATION_REGISTER | io::RESERVATION_REPORT | io::RESERVATION_ACQUIRE | io::RESERVATION_RELEASE => {
                self.reserve(host, cmd, rules)
            }
            io::MANAGEMENT_RECEIVE => self.management_receive(host, cmd, rules),
            io::MANAGEMENT_SEND => self.management_send(host, cmd, rules),
            io::ZONE_APPEND => self.zone_append(host, cmd, rules),
            io::ZONE_SEND => self.zone_send(cmd),
            io::ZONE_RECEIVE => self.zone_receive(host, cmd, rules),
            _ => Err(Status::INVALID_OPCODE),
        }
    }

    #[inline]
    fn has_metadata(&self, nsid: u32) -> bool {
        self.namespaces.get((nsid as usize).wrapping_sub(1)).is_some_and(|ns| ns.format.size > 0)
    }

    /// A fault: detaches a namespace, or attaches all that were detached. Returns those that changed.
    pub(super) fn attach(&mut self, nsid: u32, attach: bool) -> Vec<u32> {
        let all = (1..).zip(&mut self.namespaces);
        let mut changed: Vec<_> =
            all.filter(|(id, ns)| ns.allocated && ns.attached != attach && (attach || *id == nsid)).collect();
        changed.iter_mut().for_each(|(_, ns)| ns.attached = attach);
        changed.into_iter().map(|(id, _)| id).collect()
    }

    /// A namespace that is there, attached or not.
    pub(super) fn allocated(&mut self, nsid: u32) -> Result<&mut Namespace, Status> {
        let ns = self.namespaces.get_mut((nsid as usize).wrapping_sub(1));
        ns.filter(|ns| ns.allocated).ok_or(Status::INVALID_NAMESPACE)
    }

    #[inline]
    fn namespace(&mut self, nsid: u32) -> Result<&mut Namespace, Status> {
        active(&mut self.namespaces, nsid)
    }

    /// The namespace of a command that moves data, where in it, and how much, in bytes.
    #[inline]
    pub(super) fn transfer(&mut self, cmd: &Command) -> Result<(&mut Namespace, u64, u64), Status> {
        let Self { max_transfer, namespaces, spent, .. } = self;
        let ns = active(namespaces, cmd.nsid())?;
        let (at, len) = ns.extent(cmd)?;
        if len > *max_transfer {
            return Err(Status::INVALID_FIELD);
        }
        *spent += len;
        if cmd.psdt() != 0 && cmd.sgl1()[1] >> 56 != 0 {
            *spent += LIST;
        }
        Ok((ns, at, len))
    }

    #[inline]
    fn read(&mut self, host: &Host<'_>, cmd: &Command, rules: Rules) -> Result<(), Status> {
        let (ns, mut at, len) = self.transfer(cmd)?;
        ns.readable(at, len)?;
        data::walk(host, cmd, len, rules, |dma| {
            ns.media.read(at, &dma)?;
            at += dma.len();
            Ok(())
        })?;
        self.counters.reads += 1;
        self.counters.units_read += len >> 9;
        Ok(())
    }

    #[inline]
    fn write(&mut self, host: &Host<'_>, cmd: &Command, rules: Rules) -> Result<(), Status> {
        self.may_place(cmd)?;
        let (ns, at, len) = self.transfer(cmd)?;
        ns.may_write()?;
        ns.zone_write(at >> ns.shift, len >> ns.shift)?;
        ns.store(host, cmd, at, len, rules)?;
        self.place(cmd, len);
        self.count_write(cmd, len)
    }

    /// A command wrote so many bytes.
    #[inline]
    pub(super) fn count_write(&mut self, cmd: &Command, len: u64) -> Result<(), Status> {
        self.counters.writes += 1;
        self.counters.units_written += len >> 9;
        self.settle(cmd)
    }

    fn compare(&mut self, host: &Host<'_>, cmd: &Command, rules: Rules) -> Result<(), Status> {
        let (ns, mut at, len) = self.transfer(cmd)?;
        ns.readable(at, len)?;
        data::walk(host, cmd, len, rules, |dma| {
            ns.media.compare(at, &dma)?;
            at += dma.len();
            Ok(())
        })?;
        self.counters.reads += 1;
        self.counters.units_read += len >> 9;
        Ok(())
    }

    fn write_zeroes(&mut self, cmd: &Command) -> Result<(), Status> {
        let ns = self.namespace(cmd.nsid())?;
        let (at, len) = ns.extent(cmd)?;
        ns.may_write()?;
        ns.zone_write(at >> ns.shift, len >> ns.shift)?;
        ns.written(at, len);
        ns.zero_metadata(cmd, at >> ns.shift, len >> ns.shift)?;
        ns.media.zero(at, len)?;
        self.spent += len;
        self.settle(cmd)
    }

    fn verify(&mut self, cmd: &Command) -> Result<(), Status> {
        if self.has_metadata(cmd.nsid()) {
            return self.verify_metadata(cmd);
        }
        let ns = self.namespace(cmd.nsid())?;
        let (at, len) = ns.extent(cmd)?;
        ns.readable(at, len)?;
        ns.media.verify(at, len)?;
        self.spent += len;
        Ok(())
    }

    /// Write Uncorrectable (nvm 3.2.7).
    fn write_uncorrectable(&mut self, cmd: &Command) -> Result<(), Status> {
        let ns = self.namespace(cmd.nsid())?;
        let (at, len) = ns.extent(cmd)?;
        ns.may_write()?;
        ns.zone_write(at >> ns.shift, len >> ns.shift)?;
        ns.uncorrectable.mark(at >> ns.shift..(at + len) >> ns.shift)
    }

    /// Copy (nvm 3.2.2), with descriptors of format 0.
    fn copy(&mut self, host: &Host<'_>, cmd: &Command, rules: Rules) -> Result<(), Status> {
        self.spent += LIST;
        let ns = active(&mut self.namespaces, cmd.nsid())?;
        let (to, count) = (cmd.cdw10_11(), (cmd.cdw12() & 0xff) + 1);
        if cmd.cdw12() >> 8 & 0xf != 0 {
            return Err(Status::INVALID_FIELD);
        }
        if count > COPY_RANGES.into() {
            return Err(Status::COPY_LIMIT);
        }
        let mut bytes = [0; COPY_RANGES as usize * 32];
        data::copy_in(host, cmd, &mut bytes[..count as usize * 32], rules)?;
        let (words, _) = bytes[..count as usize * 32].as_chunks::<8>();
        let (entries, _) = words.as_chunks::<4>();
        let entries = || entries.iter().map(|e| e.map(u64::from_le_bytes));
        let ranges = || entries().map(|[_, lba, n, tags]| (lba, (n & 0xffff) + 1, tags));
        let total: u64 = ranges().map(|(_, blocks, _)| blocks).sum();
        if ranges().any(|(_, blocks, _)| blocks > COPY_RANGE_BLOCKS.into()) || total > COPY_BLOCKS.into() {
            return Err(Status::COPY_LIMIT);
        }
        ns.may_write()?;
        ns.check(to, total)?;
        let (mut copied, mut metadata) = (Vec::new(), Vec::new());
        for (lba, blocks, tags) in ranges() {
            let ns = active(&mut self.namespaces, cmd.nsid())?;
            ns.check(lba, blocks)?;
            if ns.format.size > 0 {
                let (data, more) = self.copy_range(cmd, tags, lba, blocks)?;
                copied.extend(data);
                metadata.extend(more);
                continue;
            }
            let (at, len) = (lba << ns.shift, blocks << ns.shift);
            ns.readable(at, len)?;
            let done = copied.len();
            copied.resize(done + len as usize, 0);
            ns.media.load(at, &mut copied[done..])?;
        }
        let ns = active(&mut self.namespaces, cmd.nsid())?;
        ns.zone_write(to, total)?;
        ns.written(to << ns.shift, total << ns.shift);
        ns.media.store(to << ns.shift, &copied)?;
        ns.store_copied(cmd, to, &copied, metadata)?;
        self.spent += 2 * copied.len() as u64;
        self.settle(cmd)
    }

    fn flush(&mut self, cmd: &Command) -> Result<(), Status> {
        self.spent += self.namespaces.first().map_or(0, |ns| ns.media.cost());
        if cmd.nsid() == u32::MAX {
            return Ok(self.namespaces.iter_mut().try_for_each(|ns| ns.media.flush())?);
        }
        Ok(self.namespace(cmd.nsid())?.media.flush()?)
    }

    /// Dataset Management (nvm 3.2.3): of the attributes, deallocate is the one that is more than a hint.
    fn dataset(&mut self, host: &Host<'_>, cmd: &Command, rules: Rules) -> Result<(), Status> {
        self.spent += LIST + self.namespace(cmd.nsid())?.media.cost();
        let ns = self.namespace(cmd.nsid())?;
        let mut bytes = [0; RANGES * 16];
        let count = (cmd.cdw10() as usize & 0xff) + 1;
        data::copy_in(host, cmd, &mut bytes[..count * 16], rules)?;
        let deallocate = cmd.cdw11() & 4 != 0;
        if deallocate {
            ns.may_write()?;
        }
        let (words, _) = bytes[..count * 16].as_chunks::<8>();
        let (ranges, _) = words.as_chunks::<2>();
        let ranges = || ranges.iter().map(|r| r.map(u64::from_le_bytes)).map(|[low, lba]| (lba, low >> 32));
        for (lba, blocks) in ranges() {
            ns.check(lba, blocks)?;
        }
        // What is written in zones stays until they are reset.
        if deallocate && ns.zones.is_none() {
            for (lba, blocks) in ranges() {
                ns.forget_metadata(lba, blocks)?;
                ns.written(lba << ns.shift, blocks << ns.shift);
                ns.media.deallocate(lba << ns.shift, blocks << ns.shift)?;
            }
        }
        Ok(())
    }

    /// Makes a write durable where the cache is off, or the command forces unit access (bit 30 of dword 12).
    #[inline]
    pub(super) fn settle(&mut self, cmd: &Command) -> Result<(), Status> {
        if self.write_cache && cmd.cdw12() & 1 << 30 == 0 {
            Ok(())
        } else {
            Ok(self.namespace(cmd.nsid())?.media.flush()?)
        }
    }
}

#[inline]
pub(super) fn active(namespaces: &mut [Namespace], nsid: u32) -> Result<&mut Namespace, Status> {
    let ns = namespaces.get_mut((nsid as usize).wrapping_sub(1)).ok_or(Status::INVALID_NAMESPACE)?;
    // One that is there, but is not active: base 3.2.1.4.
    match (ns.attached, ns.allocated) {
        (true, _) => Ok(ns),
        (false, true) => Err(Status::INVALID_FIELD),
        (false, false) => Err(Status::INVALID_NAMESPACE),
    }
}

impl Namespace {
    /// Where a command's blocks are, in bytes: start and length. Dword 12 has their number less one in bits 15:0.
    #[inline]
    pub(super) fn extent(&self, cmd: &Command) -> Result<(u64, u64), Status> {
        let (lba, blocks) = (cmd.cdw10_11(), u64::from(cmd.cdw12() & 0xffff) + 1);
        self.check(lba, blocks)?;
        Ok((lba << self.shift, blocks << self.shift))
    }

    #[inline]
    fn check(&self, lba: u64, blocks: u64) -> Result<(), Status> {
        match lba.checked_add(blocks) {
            Some(end) if end <= self.blocks => Ok(()),
            _ => Err(Status::LBA_OUT_OF_RANGE),
        }
    }

    /// Whether bytes can be read: none of their blocks is marked as uncorrectable.
    #[inline]
    pub(super) fn readable(&self, at: u64, len: u64) -> Result<(), Status> {
        self.zone_read(at >> self.shift, len >> self.shift)?;
        self.uncorrectable.check(at >> self.shift..(at + len) >> self.shift)
    }

    /// They are written.
    #[inline]
    pub(super) fn written(&mut self, at: u64, len: u64) {
        self.uncorrectable.written(at >> self.shift..(at + len) >> self.shift);
    }

    /// Bytes of a command's memory are written there.
    #[inline]
    pub(super) fn store(
        &mut self,
        host: &Host<'_>,
        cmd: &Command,
        mut at: u64,
        len: u64,
        rules: Rules,
    ) -> Result<(), Status> {
        self.written(at, len);
        data::walk(host, cmd, len, rules, |dma| {
            self.media.write(at, &dma)?;
            at += dma.len();
            Ok(())
        })
    }

    #[inline]
    pub(super) fn may_write(&self) -> Result<(), Status> {
        if self.read_only { Err(Status::WRITE_PROTECTED) } else { Ok(()) }
    }
}

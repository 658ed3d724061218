//! I/O commands (NVM Command Set Specification 1.0, "nvm"), each done at once.

use super::bits::{Status, io};
use super::command::Command;
use super::data::{self, Rules};
use crate::media::Media;
use wholebar_core::model::Host;

/// A namespace.
pub(super) struct Namespace {
    /// Block size as a power of two: 9 or 12.
    pub(super) shift: u32,
    /// How many blocks.
    pub(super) blocks: u64,
    pub(super) read_only: bool,
    /// It is active: attached to the controller.
    pub(super) attached: bool,
    pub(super) media: Media,
}

/// All namespaces, and what is common to I/O.
pub(super) struct Store {
    /// By namespace id, less one.
    pub(super) namespaces: Vec<Namespace>,
    /// The most that one command may transfer, in bytes.
    pub(super) max_transfer: u64,
    /// Volatile write cache on: written data is durable after a flush only.
    pub(super) write_cache: bool,
    pub(super) counters: Counters,
    /// What the commands of this turn cost so far, in bytes.
    pub(super) spent: u64,
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
        match cmd.opcode() {
            io::READ => self.read(host, cmd, rules),
            io::WRITE => self.write(host, cmd, rules),
            io::FLUSH => self.flush(cmd),
            io::COMPARE => self.compare(host, cmd, rules),
            io::WRITE_ZEROES => self.write_zeroes(cmd),
            io::DATASET => self.dataset(host, cmd, rules),
            io::VERIFY => self.verify(cmd),
            _ => Err(Status::INVALID_OPCODE),
        }
    }

    /// A fault: detaches a namespace, or attaches all that were detached. Returns those that changed.
    pub(super) fn attach(&mut self, nsid: u32, attach: bool) -> Vec<u32> {
        let all = (1..).zip(&mut self.namespaces);
        let mut changed: Vec<_> = all.filter(|(id, ns)| ns.attached != attach && (attach || *id == nsid)).collect();
        changed.iter_mut().for_each(|(_, ns)| ns.attached = attach);
        changed.into_iter().map(|(id, _)| id).collect()
    }

    #[inline]
    fn namespace(&mut self, nsid: u32) -> Result<&mut Namespace, Status> {
        active(&mut self.namespaces, nsid)
    }

    /// The namespace of a command that moves data, where in it, and how much, in bytes.
    #[inline]
    fn transfer(&mut self, cmd: &Command) -> Result<(&mut Namespace, u64, u64), Status> {
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
        let (ns, mut at, len) = self.transfer(cmd)?;
        ns.may_write()?;
        data::walk(host, cmd, len, rules, |dma| {
            ns.media.write(at, &dma)?;
            at += dma.len();
            Ok(())
        })?;
        self.counters.writes += 1;
        self.counters.units_written += len >> 9;
        self.settle(cmd)
    }

    fn compare(&mut self, host: &Host<'_>, cmd: &Command, rules: Rules) -> Result<(), Status> {
        let (ns, mut at, len) = self.transfer(cmd)?;
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
        ns.media.zero(at, len)?;
        self.spent += len;
        self.settle(cmd)
    }

    fn verify(&mut self, cmd: &Command) -> Result<(), Status> {
        let ns = self.namespace(cmd.nsid())?;
        let (at, len) = ns.extent(cmd)?;
        ns.media.verify(at, len)?;
        self.spent += len;
        Ok(())
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
        if deallocate {
            for (lba, blocks) in ranges() {
                ns.media.deallocate(lba << ns.shift, blocks << ns.shift)?;
            }
        }
        Ok(())
    }

    /// Makes a write durable where the cache is off, or the command forces unit access (bit 30 of dword 12).
    #[inline]
    fn settle(&mut self, cmd: &Command) -> Result<(), Status> {
        if self.write_cache && cmd.cdw12() & 1 << 30 == 0 {
            Ok(())
        } else {
            Ok(self.namespace(cmd.nsid())?.media.flush()?)
        }
    }
}

#[inline]
fn active(namespaces: &mut [Namespace], nsid: u32) -> Result<&mut Namespace, Status> {
    let ns = namespaces.get_mut((nsid as usize).wrapping_sub(1)).ok_or(Status::INVALID_NAMESPACE)?;
    // One that is there, but is not active: base 3.2.1.4.
    if ns.attached { Ok(ns) } else { Err(Status::INVALID_FIELD) }
}

impl Namespace {
    /// Where a command's blocks are, in bytes: start and length. Dword 12 has their number less one in bits 15:0.
    #[inline]
    fn extent(&self, cmd: &Command) -> Result<(u64, u64), Status> {
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

    #[inline]
    fn may_write(&self) -> Result<(), Status> {
        if self.read_only { Err(Status::WRITE_PROTECTED) } else { Ok(()) }
    }
}

//! NVMe commands to a namespace's character device, `/dev/ng0n1`: past the block layer, through the kernel's driver. (Linux: `NVME_URING_CMD_IO`, `include/uapi/linux/nvme_ioctl.h`.)
//!
//! The kernel maps as much memory as a command says, and has the controller do what its other words say: nobody holds the one against the other. So commands are
//! made here, of what the controller itself says of the namespace's blocks, and no others can be. What that leaves is a namespace that somebody
//! formats with larger blocks while it is open, which the kernel lets only root do.

use super::{FILE, Operation, VECTORS, Vectors, rest};
use crate::block::Data;
use io_uring::opcode::{Fallocate, UringCmd80};
use io_uring::squeue::Entry128;
use rustix::ioctl::{Opcode, opcode};
use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use zerocopy::{Immutable, IntoBytes};

/// A namespace of an NVMe controller that the kernel drives, by its character device.
#[derive(Debug)]
pub struct NvmeNamespace {
    file: OwnedFd,
    nsid: u32,
    blocks: u64,
    /// Bytes of a block: a power of two.
    block: NonZeroU64,
    max_transfer: u32,
}

/// `struct nvme_passthru_cmd`, which begins as `struct nvme_uring_cmd` does.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, IntoBytes, Immutable)]
struct Passthru {
    opcode: u8,
    flags: u8,
    rsvd1: u16,
    nsid: u32,
    cdw2: u32,
    cdw3: u32,
    metadata: u64,
    addr: u64,
    metadata_len: u32,
    data_len: u32,
    cdw10: u32,
    cdw11: u32,
    cdw12: u32,
    cdw13: u32,
    cdw14: u32,
    cdw15: u32,
    timeout_ms: u32,
    result: u32,
}
const _: () = assert!(size_of::<Passthru>() == 72);

const ID: Opcode = opcode::none(b'N', 0x40);
const ADMIN: Opcode = opcode::read_write::<Passthru>(b'N', 0x41);
const IO: Opcode = opcode::read_write::<Passthru>(b'N', 0x80);
const IO_VEC: Opcode = opcode::read_write::<Passthru>(b'N', 0x81);
/// Bytes of Identify data (base 5.17).
const IDENTIFY: usize = 4096;
/// Blocks of a command, at most: their number is 0's based, in 16 bits.
const BLOCKS: u64 = 1 << 16;
/// The largest transfer where the controller has no limit: less than what the kernel's list of segments takes with the smallest pages.
const MAX_TRANSFER: u32 = 256 << 10;

impl NvmeNamespace {
    /// Asks the controller what the namespace's blocks are: Identify, by the kernel, which lets those do it who may read the device.
    ///
    /// # Errors
    /// `Unsupported` where its blocks have metadata, or no size that is one; what `ioctl(2)` says, `ENOTTY` of what is no NVMe namespace.
    pub fn new(file: OwnedFd) -> io::Result<Self> {
        // SAFETY: it takes no argument, and returns a number.
        let nsid = unsafe { libc::ioctl(file.as_raw_fd(), ID as _) };
        let nsid = u32::try_from(nsid).map_err(|_| io::Error::last_os_error())?;
        let namespace = identify(file.as_fd(), nsid, 0)?;
        let controller = identify(file.as_fd(), 0, 1)?;
        // NVM command set 1.0, 4.1.5.1: NSZE, FLBAS (bits 6:5 above 3:0), LBAF: metadata bytes, then the power of two of data bytes.
        let flbas = namespace[26];
        let format = usize::from(flbas & 0xf | (flbas >> 1 & 0x30));
        let format = namespace[128..384].as_chunks::<4>().0.get(format).copied().unwrap_or_default();
        let block = match format {
            [0, 0, shift @ 9..=16, _] => NonZeroU64::new(1 << shift),
            _ => None,
        };
        let block = block.ok_or(io::ErrorKind::Unsupported)?;
        let blocks = namespace[..8].try_into().map_or(0, u64::from_le_bytes);
        // Base 5.17.2.1: MDTS, a power of two of the smallest page, which has 4 KiB at least.
        let mdts = match controller[77] {
            0 => MAX_TRANSFER,
            mdts => 4096u32.checked_shl(mdts.into()).filter(|bytes| *bytes != 0).unwrap_or(MAX_TRANSFER),
        };
        let max_transfer = mdts.min(MAX_TRANSFER);
        Ok(Self { file, nsid, blocks, block, max_transfer })
    }

    /// Returns its capacity, in blocks.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Returns the size of a block in bytes: a power of two from 512 to 65,536.
    pub fn block_size(&self) -> u32 {
        // At most 65,536.
        self.block.get() as u32
    }

    /// Returns the largest read or write, in bytes.
    pub fn max_transfer(&self) -> u32 {
        self.max_transfer
    }

    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The entry of a request with these data, of which `piece` is registered. What makes no command completes with an error.
    pub(super) fn entry(&self, operation: Operation, data: &Data, piece: Option<u16>) -> (Entry128, Vectors) {
        let blocks_of = |bytes: u64| (bytes % self.block == 0).then_some(bytes / self.block);
        // The first block, and how many there are, as commands have them.
        let range = |offset, len| {
            let (first, blocks) = (blocks_of(offset)?, blocks_of(len)?);
            (1..=BLOCKS).contains(&blocks).then(|| (first, blocks.saturating_sub(1) as u32))
        };
        let command = |opcode, first: u64, blocks| Passthru {
            opcode,
            nsid: self.nsid,
            cdw10: first as u32,
            cdw11: (first >> 32) as u32,
            cdw12: blocks,
            ..Passthru::default()
        };
        let none = || Vectors(Box::new([]));
        let plain = |command| (entry(IO, command, None), none());
        match operation {
            Operation::Fsync => plain(command(0x00, 0, 0)),
            Operation::ZeroRange { offset, len } => match range(offset, len) {
                Some((first, blocks)) => plain(command(0x08, first, blocks)),
                None => (refused(), none()),
            },
            Operation::PunchHole { .. } => (refused(), none()),
            Operation::Read { offset, skip } | Operation::Write { offset, skip } => {
                // The length that the kernel maps is that of the vectors: all of them, or it is no command.
                let (mut skip, mut len) = (skip, 0u64);
                let vectors = data.bufs().iter().filter_map(|buf| {
                    let vector = rest(buf, skip);
                    skip = skip.saturating_sub(buf.len().into());
                    len = len.saturating_add(vector.iov_len as u64);
                    (vector.iov_len > 0).then_some(vector)
                });
                let vectors: Box<[_]> = vectors.collect();
                let opcode = if matches!(operation, Operation::Read { .. }) { 0x02 } else { 0x01 };
                let Some((first, blocks)) = range(offset, len).filter(|_| vectors.len() <= VECTORS) else {
                    return (refused(), none());
                };
                let command = command(opcode, first, blocks);
                match *vectors {
                    [one] => {
                        let command = Passthru { addr: one.iov_base as u64, data_len: len as u32, ..command };
                        (entry(IO, command, piece), none())
                    }
                    _ => {
                        let count = vectors.len() as u32;
                        let command = Passthru { addr: vectors.as_ptr() as u64, data_len: count, ..command };
                        (entry(IO_VEC, command, None), Vectors(vectors))
                    }
                }
            }
        }
    }
}

/// An entry that the kernel refuses: no such thing is to be had of the device.
fn refused() -> Entry128 {
    Fallocate::new(FILE, 0).mode(-1).build().into()
}

fn entry(number: Opcode, command: Passthru, piece: Option<u16>) -> Entry128 {
    let mut bytes = [0; 80];
    bytes[..size_of::<Passthru>()].copy_from_slice(command.as_bytes());
    UringCmd80::new(FILE, number as _).cmd(bytes).buf_index(piece).build()
}

/// Identify data: of a namespace, `cns` 0, or the controller, 1.
fn identify(file: BorrowedFd<'_>, nsid: u32, cns: u32) -> io::Result<Box<[u8; IDENTIFY]>> {
    let mut data = Box::new([0; IDENTIFY]);
    let mut command = Passthru {
        opcode: 0x06,
        nsid,
        addr: data.as_mut_ptr() as u64,
        data_len: IDENTIFY as u32,
        cdw10: cns,
        ..Passthru::default()
    };
    // SAFETY: the kernel reads and writes the structure, and writes `data_len` bytes at `addr`, which are those of `data`, before it returns: Identify returns as many.
    let status = unsafe { libc::ioctl(file.as_raw_fd(), ADMIN as _, &raw mut command) };
    match status {
        0 => Ok(data),
        ..0 => Err(io::Error::last_os_error()),
        status => Err(io::Error::other(format!("the controller refuses Identify with status {status:#x}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::{Arena, ArenaOptions, Pool};

    fn namespace() -> NvmeNamespace {
        let file = std::fs::File::open("/dev/null").unwrap();
        NvmeNamespace {
            file: file.into(),
            nsid: 7,
            blocks: 1 << 40,
            block: NonZeroU64::new(4096).unwrap(),
            max_transfer: MAX_TRANSFER,
        }
    }

    /// The command of an entry, as the kernel would read it: the second half of it begins 48 bytes into the entry.
    fn words(entry: &Entry128) -> String {
        format!("{entry:?}")
    }

    #[test]
    fn numbers_are_the_kernel_s() {
        assert_eq!((ADMIN, IO, IO_VEC), (0xc048_4e41, 0xc048_4e80, 0xc048_4e81));
    }

    /// How many blocks a command has is how much memory it has: whatever does not fit that is refused by the kernel, and never a command.
    #[test]
    fn a_command_has_as_many_blocks_as_memory() {
        let pool = Pool::new(Arena::new(1 << 20, ArenaOptions::default()).unwrap(), 16, 8192, 4096).unwrap();
        let (namespace, refused) = (namespace(), words(&refused()));
        let command = |operation, data: &Data| words(&namespace.entry(operation, data, None).0) != refused;
        let read = |offset, skip| Operation::Read { offset, skip };
        let one = Data::One(pool.get_len(8192).unwrap());
        assert!(command(read(8192, 0), &one) && command(read(8192, 4096), &one));
        assert!(!command(read(8192, 8192), &one), "nothing is left");
        assert!(!command(read(100, 0), &one) && !command(read(0, 100), &one), "no whole block");
        assert!(!command(read(0, 0), &Data::None));
        let many = Data::Many([(); 2].map(|()| pool.get_len(8192).unwrap()).into());
        let (_, vectors) = namespace.entry(read(0, 4096), &many, None);
        assert_eq!(vectors.0.iter().map(|vector| vector.iov_len).collect::<Vec<_>>(), [4096, 8192]);
        assert!(
            command(Operation::Fsync, &Data::None)
                && !command(Operation::PunchHole { offset: 0, len: 4096 }, &Data::None)
        );
        let zero = |len| Operation::ZeroRange { offset: 0, len };
        assert!(command(zero(BLOCKS * 4096), &Data::None) && !command(zero((BLOCKS + 1) * 4096), &Data::None));
    }

    #[test]
    fn what_is_no_namespace_says_so() {
        let error = NvmeNamespace::new(std::fs::File::open("/dev/null").unwrap().into()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
    }
}

//! Files and block devices, opened to be disks: what they are, how large, and by which rules requests are made to them.
//!
//! Nothing is read or written here.

use super::Target;
use crate::{Error, Result};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags, fstat, ioctl_blksszget, open, statx};
use rustix::io::Errno;
use std::fmt;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use wholebar_core::kernel::NvmeNamespace;

/// The least that a block has, in bytes.
const SECTOR: u32 = 512;
/// What is enough for `O_DIRECT` where the kernel does not say: the blocks of nearly every disk are as large at most.
const UNKNOWN: u32 = 4096;
/// The largest block.
const MAX_BLOCK: u32 = 1 << 16;

/// A file that is open, and its rules.
#[derive(Debug)]
pub(super) struct Opened {
    pub source: Source,
    pub geometry: Geometry,
}

/// What requests go to.
#[derive(Debug)]
pub(super) enum Source {
    /// A file, or a block device.
    File(File),
    /// An NVMe namespace, and its block device, which nobody else has for writing meanwhile.
    Nvme(Arc<NvmeNamespace>, #[expect(dead_code, reason = "it is held")] Option<OwnedFd>),
}

/// The size and the rules of a disk that is reached through the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    /// The capacity in blocks. What a file has behind its last whole block is not part of the disk.
    pub blocks: u64,
    /// The size of a block in bytes: what a block device says, or what the file system asks of `O_DIRECT`.
    pub block_size: u32,
    /// The alignment of buffers in memory, in bytes: 1 through the page cache.
    pub memory_align: u32,
    /// How it was opened.
    pub mode: IoMode,
    /// Why it cannot be written; `None` where it can.
    pub read_only: Option<String>,
    /// The largest transfer in bytes, where that is less than what the kernel cuts by itself.
    pub max_transfer: Option<u32>,
}

/// How data gets to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IoMode {
    /// Between the device and the program's memory (`O_DIRECT`).
    Direct,
    /// Through the page cache, for this reason.
    Cached(&'static str),
    /// By NVMe commands, past the block layer.
    Passthrough,
}

impl fmt::Display for IoMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => f.write_str("O_DIRECT"),
            Self::Cached(why) => write!(f, "the page cache, since {why}"),
            Self::Passthrough => f.write_str("NVMe commands"),
        }
    }
}

impl Opened {
    /// Opens what a target names, to be written where that can be.
    pub fn open(target: &Target) -> Result<Self> {
        let cannot = |errno| Error::Open { target: target.to_string(), cause: errno, hint: hint(errno) };
        // A pipe would be waited for when it is opened, and a tape wound.
        let status = rustix::fs::stat(&target.path).map_err(cannot)?;
        let block_device = match FileType::from_raw_mode(status.st_mode) {
            FileType::RegularFile => false,
            FileType::BlockDevice => true,
            FileType::CharacterDevice if is_namespace(&target.path) => return passthrough(target, cannot),
            other => return Err(Error::Kind { target: target.to_string(), kind: kind(other) }),
        };
        let (fd, read_only) = open_file(target, block_device, cannot)?;
        let (fd, mode) = match target.cached {
            true => (fd, IoMode::Cached("that was asked for")),
            false => direct(fd, cannot)?,
        };
        let opened = fstat(&fd).map_err(cannot)?;
        if (opened.st_dev, opened.st_ino) != (status.st_dev, status.st_ino) {
            return Err(Error::Replaced { target: target.to_string() });
        }
        let (mut block_size, mut memory_align) = (SECTOR, 1);
        if mode == IoMode::Direct {
            (memory_align, block_size) = alignment(&fd).unwrap_or((UNKNOWN, UNKNOWN));
        }
        if block_device {
            block_size = block_size.max(ioctl_blksszget(&fd).map_err(cannot)?);
        }
        let page = u32::try_from(wholebar_core::PageSize::host().bytes()).unwrap_or(MAX_BLOCK);
        block_size = block_size.max(SECTOR);
        if !block_size.is_power_of_two()
            || block_size > MAX_BLOCK
            || !memory_align.is_power_of_two()
            || memory_align > page
        {
            return Err(Error::Geometry { target: target.to_string(), block_size, memory_align });
        }
        let mut file = File::from(fd);
        // A block device has no length but where its end is.
        let bytes =
            file.seek(SeekFrom::End(0)).map_err(|error| cannot(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        let blocks = bytes / u64::from(block_size);
        if blocks == 0 {
            let hint = match block_device {
                true => "nothing stands behind it (losetup puts a file behind a loop device)".to_owned(),
                false => format!("make it longer (truncate -s 64M {})", target.path.display()),
            };
            return Err(Error::Short { target: target.to_string(), bytes, block_size, hint });
        }
        if target.iopoll {
            check_polling(&mode, if block_device { opened.st_rdev } else { opened.st_dev })
                .map_err(|why| Error::NoPolling { target: target.to_string(), why })?;
        }
        let rest = bytes % u64::from(block_size);
        if rest > 0 {
            tracing::warn!(
                "kernel:{target}: the last {rest} bytes are no whole block of {block_size}, and out of reach"
            );
        }
        let geometry = Geometry { blocks, block_size, memory_align, mode, read_only, max_transfer: None };
        Ok(Self { source: Source::File(file), geometry })
    }
}

/// Whether a path is that of an NVMe namespace's character device: `/dev/ng0n1`.
pub(super) fn is_namespace(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.and_then(|name| name.strip_prefix("ng")?.split_once('n')).is_some_and(|(controller, namespace)| {
        let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        number(controller) && number(namespace)
    })
}

/// Opens an NVMe namespace for commands. Its block device (`/dev/nvme0n1`) is opened too, so that what uses it is found, and nothing else does meanwhile.
fn passthrough(target: &Target, cannot: impl Fn(Errno) -> Error) -> Result<Opened> {
    let refused = |why: String| Error::Passthrough { target: target.to_string(), why };
    if target.cached || target.iopoll {
        return Err(refused(
            "it goes past the page cache, and by interrupts: leave ,cached and ,iopoll out".to_owned(),
        ));
    }
    let name = target.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let disk = target.path.with_file_name(name.replacen("ng", "nvme", 1));
    let (claim, mut read_only) = match rustix::fs::stat(&disk) {
        // With several paths to a namespace the block device has another name.
        Err(_) => (
            None,
            (!target.force).then(|| {
                "its block device is not to be found: with ,force behind its name it is written all the same".to_owned()
            }),
        ),
        Ok(_) => {
            let beside = Target { path: disk, ..target.clone() };
            let (fd, read_only) = open_file(&beside, true, &cannot)?;
            (Some(fd), read_only)
        }
    };
    let flags = OFlags::CLOEXEC | OFlags::NOCTTY;
    let access = if read_only.is_some() { OFlags::RDONLY } else { OFlags::RDWR };
    let fd = open(&target.path, flags | access, Mode::empty()).map_err(cannot)?;
    if target.read_only {
        read_only = Some("that was asked for (,ro)".to_owned());
    }
    let namespace = NvmeNamespace::new(fd).map_err(|error| match error.kind() {
        io::ErrorKind::Unsupported => {
            refused("its blocks have metadata, or no size from 512 to 65536 bytes".to_owned())
        }
        _ => refused(format!("it cannot be identified: {error}")),
    })?;
    let geometry = Geometry {
        blocks: namespace.blocks(),
        block_size: namespace.block_size(),
        memory_align: 4,
        mode: IoMode::Passthrough,
        read_only,
        max_transfer: Some(namespace.max_transfer() / namespace.block_size() * namespace.block_size()),
    };
    Ok(Opened { source: Source::Nvme(Arc::new(namespace), claim), geometry })
}

/// Opens it to be written, or else, with the reason, to be read.
fn open_file(
    target: &Target,
    block_device: bool,
    cannot: impl Fn(Errno) -> Error,
) -> Result<(OwnedFd, Option<String>)> {
    let open = |flags| open(&target.path, flags | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty());
    let to_read = |why: &str| Ok((open(OFlags::RDONLY).map_err(&cannot)?, Some(why.to_owned())));
    if target.read_only {
        return to_read("that was asked for (,ro)");
    }
    // Of a block device: for this process alone, which is refused where it is mounted, swap, or part of another.
    let alone = if block_device && !target.force { OFlags::EXCL } else { OFlags::empty() };
    match open(OFlags::RDWR | alone) {
        Ok(fd) => Ok((fd, None)),
        Err(Errno::BUSY) if block_device => {
            to_read("it is mounted, or in use otherwise: with ,force behind its name it is written all the same")
        }
        Err(Errno::TXTBSY) => to_read("it is a program that runs, or swap"),
        Err(Errno::ROFS) => to_read("its file system, or the device, is read-only"),
        Err(Errno::ACCESS | Errno::PERM) => to_read("this process may not write it, or the device is read-only"),
        Err(errno) => Err(cannot(errno)),
    }
}

/// Has an open file use `O_DIRECT`, where it takes that.
fn direct(fd: OwnedFd, cannot: impl Fn(Errno) -> Error) -> Result<(OwnedFd, IoMode)> {
    let flags = rustix::fs::fcntl_getfl(&fd).map_err(&cannot)?;
    match rustix::fs::fcntl_setfl(&fd, flags | OFlags::DIRECT) {
        Ok(()) if alignment(&fd).is_some_and(|(_, offset)| offset == 0) => {
            rustix::fs::fcntl_setfl(&fd, flags).map_err(cannot)?;
            Ok((fd, IoMode::Cached("its file system has no O_DIRECT for it")))
        }
        Ok(()) => Ok((fd, IoMode::Direct)),
        Err(Errno::INVAL) => Ok((fd, IoMode::Cached("its file system has no O_DIRECT"))),
        Err(errno) => Err(cannot(errno)),
    }
}

/// The alignment of memory and of offsets with `O_DIRECT`, where the kernel says (Linux 6.1: `statx(2)`); zeros where it cannot be used.
fn alignment(fd: &OwnedFd) -> Option<(u32, u32)> {
    let known = statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    let says = known.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
    says.then_some((known.stx_dio_mem_align, known.stx_dio_offset_align))
}

/// Whether completions can be looked for at a device, as far as that can be seen.
fn check_polling(mode: &IoMode, device: rustix::fs::Dev) -> Result<(), String> {
    if *mode != IoMode::Direct {
        return Err(format!("that needs O_DIRECT, and it is used through {mode}"));
    }
    let queue = format!("/sys/dev/block/{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    // A partition's are its disk's. Of file systems over several devices nothing can be seen.
    let says = ["queue/io_poll", "../queue/io_poll"].map(|file| std::fs::read_to_string(format!("{queue}/{file}")));
    match says.into_iter().find_map(std::result::Result::ok) {
        Some(text) if text.trim() == "0" => {
            Err("its device has no queues for that (the parameter nvme.poll_queues=N gives NVMe some)".to_owned())
        }
        _ => Ok(()),
    }
}

/// What a path names that is neither file nor block device.
fn kind(kind: FileType) -> &'static str {
    match kind {
        FileType::Directory => "a directory",
        FileType::CharacterDevice => {
            "a character device (an NVMe controller's namespace is /dev/nvme0n1, or for NVMe commands /dev/ng0n1)"
        }
        FileType::Fifo => "a pipe",
        FileType::Socket => "a socket (of a server: vfio-user:PATH or vhost-user:PATH)",
        _ => "neither a file nor a block device",
    }
}

/// What to do about an error of opening.
fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::NOENT | Errno::NOTDIR => {
            ": is the path right? A file is made with `truncate -s 64M FILE`; parameters are ,cached ,sqpoll ,iopoll ,ro and ,force"
        }
        Errno::ACCESS | Errno::PERM => ": run it as root, or as a user of the group that its `ls -l` shows",
        Errno::NXIO | Errno::NODEV | Errno::NOMEDIUM => ": no device stands behind it",
        _ => "",
    }
}

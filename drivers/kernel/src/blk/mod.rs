//! Block devices and files as [`Disk`]s, through io_uring.
//!
//! Each queue is a ring of its own: [`ring`](wholebar_core::block::BlockQueue::ring) is a system call (`io_uring_enter`), counted as a trapped doorbell, or with
//! `,sqpoll` a store; [`poll`](wholebar_core::block::BlockQueue::poll) looks at memory, and with `,iopoll` makes a system call. A file is opened with
//! `O_DIRECT` where it takes that. Arenas are registered with the ring where the limit of locked memory allows it. Of an NVMe namespace's character device,
//! `/dev/ng0n1`, reads and writes are NVMe commands (`IORING_OP_URING_CMD`), which go past the block layer.
//!
//! ```
//! use wholebar_core::block::{Disk, DiskConfig};
//! use wholebar_kernel::blk::{self, KernelDisk, Target};
//!
//! # if std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").is_ok_and(|text| text.trim() == "0") {
//! let disk = KernelDisk::open(&Target::parse("/proc/self/exe")?, &DiskConfig::default())?;
//! println!("{} blocks of {} bytes, by {}", disk.geometry().blocks, disk.geometry().block_size, disk.geometry().mode);
//! # }
//! # Ok::<(), wholebar_kernel::Error>(())
//! ```
//!
//! It does *not* reset anything: that is the kernel's. A request whose deadline passes is cancelled where the kernel can do that; what a device is at work on
//! ends when the kernel gives it up.

mod file;
mod queue;
mod target;
#[cfg(test)]
mod tests;

pub use file::{Geometry, IoMode};
pub use queue::Queue;
pub use target::Target;

use crate::{Error, Result};
use file::Source;
use queue::SHORT;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use wholebar_core::DriverError;
use wholebar_core::block::{BlockQueue, Disk, DiskConfig, Event, Namespace};
use wholebar_core::irq::EventFd;
use wholebar_core::kernel::{NVME_STATUS, Uring, UringOptions};
use wholebar_core::mem::Arena;

/// Entries of a queue where nobody says.
const ENTRIES: u16 = 256;
/// How long a thread of the kernel's looks for requests before it sleeps.
const SQPOLL_IDLE: Duration = Duration::from_secs(1);
/// The largest transfer, in bytes: 2 GiB, which the kernel does in two.
const MAX_TRANSFER: u64 = 1 << 31;
/// The largest transfer that the kernel does as one (`MAX_RW_COUNT`), in whole blocks of any size.
const MAX_COMMAND: u32 = (1 << 31) - (1 << 16);

/// Opens a block device or a file as a disk.
///
/// # Errors
/// As [`KernelDisk::open`].
pub fn open(target: &Target, config: &DiskConfig) -> Result<Box<dyn Disk>> {
    Ok(Box::new(KernelDisk::open(target, config)?))
}

/// A block device or a file, opened as a disk.
pub struct KernelDisk {
    shared: Arc<Shared>,
    source: Source,
    options: UringOptions,
    queues: u16,
    told: AtomicBool,
}

/// What a disk and its queues have in common.
struct Shared {
    name: String,
    geometry: Geometry,
    /// Queues look for completions at the device themselves.
    polls_device: bool,
    attached: Mutex<Vec<Attached>>,
    /// Queues that there are.
    open: Mutex<u16>,
}

struct Attached {
    arena: Arc<Arena>,
    /// Queues that were given buffers of it.
    users: usize,
}

impl KernelDisk {
    /// Opens a block device or a file. It is opened to be written where that can be; a block device in use is opened to be read alone, unless the target says
    /// `,force`. [`Geometry::read_only`] says why.
    ///
    /// # Errors
    /// [`Error::Open`], [`Error::Kind`], [`Error::Replaced`], [`Error::Geometry`] and [`Error::Short`] for what the path names; [`Error::NoPolling`]; [`Error::Ring`] where the system
    /// has no io_uring for this process, or none with these parameters.
    pub fn open(target: &Target, config: &DiskConfig) -> Result<Self> {
        let file::Opened { source, geometry } = file::Opened::open(target)?;
        let disk = Self {
            shared: Arc::new(Shared {
                name: format!("kernel:{target}"),
                geometry,
                polls_device: target.iopoll && !target.sqpoll,
                attached: Mutex::default(),
                open: Mutex::default(),
            }),
            source,
            options: UringOptions {
                entries: config.entries.unwrap_or(ENTRIES).max(1).into(),
                sqpoll: target.sqpoll.then_some(SQPOLL_IDLE),
                iopoll: target.iopoll,
            },
            queues: config.queues.max(1),
            told: AtomicBool::new(false),
        };
        // So that what the system does not allow is said here, and not once queues are wanted.
        disk.queue(false)?;
        Ok(disk)
    }

    /// Returns the disk's size, and the rules for requests.
    pub fn geometry(&self) -> &Geometry {
        &self.shared.geometry
    }

    /// Returns a queue, to be owned by one core. With `interrupt` the kernel signals its completions to an eventfd, so that it can be
    /// [armed](BlockQueue::arm), unless they are to be polled for. It makes system calls.
    ///
    /// # Errors
    /// [`Error::NoQueue`] where all are in use; [`Error::Ring`].
    pub fn queue(&self, interrupt: bool) -> Result<Queue> {
        let ring = |iopoll| {
            let options = UringOptions { iopoll, ..self.options };
            let ring = match &self.source {
                Source::File(file) => file.try_clone().and_then(|file| Uring::new(file.into(), options)),
                Source::Nvme(namespace, _) => Uring::nvme(namespace.clone(), options),
            };
            ring.map_err(|cause| Error::ring(&self.shared.name, self.options.sqpoll.is_some(), cause))
        };
        let (mut main, other) = (ring(self.options.iopoll)?, self.options.iopoll.then(|| ring(false)).transpose()?);
        let mut wakeup = None;
        if interrupt && !self.options.iopoll {
            let eventfd = Arc::new(EventFd::new()?);
            main.signal(&eventfd).map_err(|cause| Error::ring(&self.shared.name, false, cause))?;
            wakeup = Some(eventfd);
        }
        let mut open = lock(&self.shared.open);
        if *open == self.queues {
            return Err(Error::NoQueue { disk: self.shared.name.clone(), queues: self.queues });
        }
        *open += 1;
        Ok(Queue::new(self.shared.clone(), main, other, wakeup))
    }
}

impl Disk for KernelDisk {
    fn driver(&self) -> &'static str {
        match self.shared.geometry.mode {
            IoMode::Direct => "io_uring",
            IoMode::Cached(_) => "io_uring, cached",
            IoMode::Passthrough => "io_uring, NVMe commands",
        }
    }

    fn name(&self) -> &str {
        &self.shared.name
    }

    fn namespaces(&self) -> Vec<Namespace> {
        let Geometry { blocks, block_size, ref read_only, max_transfer, ref mode, .. } = self.shared.geometry;
        let read_only = read_only.is_some();
        // Which commands a controller has is not known: those that all have.
        let ranges = if read_only || *mode == IoMode::Passthrough { 0 } else { u32::MAX };
        vec![Namespace {
            nsid: 1,
            blocks,
            block_size,
            read_only,
            max_transfer: max_transfer.unwrap_or(MAX_TRANSFER as u32),
            max_command: max_transfer.unwrap_or(MAX_COMMAND),
            flush: true,
            compare: false,
            max_write_zeroes: ranges,
            max_deallocate: ranges,
            max_verify: 0,
        }]
    }

    fn queues(&self) -> u16 {
        self.queues
    }

    fn attach(&self, arena: Arc<Arena>) -> Result<(), DriverError> {
        let mut attached = lock(&self.shared.attached);
        if attached.iter().all(|attached| attached.arena.id() != arena.id()) {
            attached.push(Attached { arena, users: 0 });
        }
        Ok(())
    }

    fn detach(&self, arena: &Arena) -> Result<(), DriverError> {
        let mut attached = lock(&self.shared.attached);
        if attached.iter().any(|attached| attached.arena.id() == arena.id() && attached.users > 0) {
            let (device, len) = (self.shared.name.clone(), arena.len());
            return Err(wholebar_core::Error::StillAttached { device, len }.into());
        }
        attached.retain(|attached| attached.arena.id() != arena.id());
        Ok(())
    }

    fn queue(&self) -> Result<Box<dyn BlockQueue>, DriverError> {
        Ok(Box::new(KernelDisk::queue(self, false)?))
    }

    fn interrupt_queue(&self) -> Result<Box<dyn BlockQueue>, DriverError> {
        Ok(Box::new(KernelDisk::queue(self, true)?))
    }

    /// One, where the disk cannot be written: why.
    fn event(&self) -> Option<Event> {
        let why = self.shared.geometry.read_only.as_ref().filter(|_| !self.told.swap(true, Ordering::Relaxed))?;
        Some(Event::Reported(format!("read-only: {why}")))
    }

    fn status_text(&self, code: u16) -> String {
        if code == SHORT {
            return "the file has ended: it was cut since it was opened".to_owned();
        }
        if i32::from(code) > NVME_STATUS {
            // SCT and SC, as they stand in a completion without the phase (base 3.3.3.2.1).
            let status = i32::from(code) & !NVME_STATUS;
            return format!("NVMe status: type {:#x}, code {:#04x}", status >> 8 & 7, status & 0xff);
        }
        let text = io::Error::from_raw_os_error(code.into()).to_string();
        match rustix::io::Errno::from_raw_os_error(code.into()) {
            rustix::io::Errno::OPNOTSUPP if self.options.iopoll => {
                format!("{text}: the device has no queues for polled completions: leave ,iopoll out")
            }
            _ => text,
        }
    }

    /// There is nothing to reset: that is the kernel's.
    fn reset(&self) -> Result<(), DriverError> {
        Err(Error::NoReset { disk: self.shared.name.clone() }.into())
    }
}

impl Shared {
    /// The arena with this id, of which a queue is given buffers.
    fn join(&self, id: u32) -> Option<Arc<Arena>> {
        let mut attached = lock(&self.attached);
        let attached = attached.iter_mut().find(|attached| attached.arena.id() == id)?;
        attached.users += 1;
        Some(attached.arena.clone())
    }

    /// A queue is no more that was given buffers of these arenas.
    fn leave(&self, arenas: &[u32]) {
        for attached in lock(&self.attached).iter_mut().filter(|attached| arenas.contains(&attached.arena.id())) {
            attached.users -= 1;
        }
        *lock(&self.open) -= 1;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

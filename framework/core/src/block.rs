//! Storage: the traits of disks and of their queues. Post and ring are two verbs, the caller bounds the poll, and buffers are owned by the
//! command in flight.
//!
//! ```
//! use wholebar_core::block::{Data, Disk, Op, Request};
//! use wholebar_core::mem::{Arena, ArenaOptions, Pool};
//!
//! /// Reads the first block of a disk's first namespace.
//! fn first_block(disk: &dyn Disk) -> Result<Data, Box<dyn std::error::Error>> {
//!     let ns = disk.namespaces().into_iter().next().ok_or("no namespace can be used")?;
//!     let arena = Arena::new(1 << 20, ArenaOptions::default())?;
//!     disk.attach(&arena)?;
//!     let pool = Pool::new(&arena, 4, ns.block_size, ns.block_size.into())?;
//!     let mut queue = disk.queue()?;
//!     let data = Data::One(pool.get_len(ns.block_size).ok_or("no buffer is left")?);
//!     queue.submit(Request { tag: 0, nsid: ns.nsid, op: Op::Read { lba: 0 }, data, deadline: None })?;
//!     queue.ring();
//!     let mut read = Data::None;
//!     while queue.poll(1, &mut |done| read = done.data) == 0 {}
//!     Ok(read)
//! }
//! ```

use crate::DriverError;
use crate::bar::DoorbellCounts;
use crate::control_plane::DeviceEvent;
use crate::mem::{Arena, Buf};
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

/// A storage device, opened: an NVMe controller with its namespaces, or a device that is one disk. Its queues are values of their own
/// ([`BlockQueue`]), which keep the device open: a disk and its queues may be dropped in any order.
///
/// Every method can be called at any time, from any thread, while queues are polled on others. Those that return a `Result` take the lock of
/// the device's control plane and wait for a reset that is under way; they are not for the loop that does I/O. Their error is the driver's own:
/// [`DriverError::downcast_ref`] gives it.
pub trait Disk: Send + Sync {
    /// The driver's name: `nvme`, `virtio`.
    fn driver(&self) -> &'static str;

    /// The device's name: its PCI address, or the target that it was opened by.
    fn name(&self) -> &str;

    /// The namespaces that the driver can use, in the order of their numbers, as its queues go by them now. A device that is one disk has one, number 1.
    fn namespaces(&self) -> Vec<Namespace>;

    /// How many queues can be had at once.
    fn queues(&self) -> u16;

    /// Maps an arena for DMA by the device, so that queues can use buffers there. For an arena that is attached already it does nothing.
    ///
    /// # Errors
    /// The driver's, where the address space has no room for the arena, or the system refuses to map it.
    fn attach(&self, arena: &Arc<Arena>) -> Result<(), DriverError>;

    /// Takes an arena away from the device: it is unmapped when this returns. For an arena that is not attached it does nothing. (DPDK:
    /// `rte_dev_dma_unmap`.)
    ///
    /// # Errors
    /// [`Error::StillAttached`](crate::Error::StillAttached), as the driver has it, while there is a queue that was given buffers of the arena, or, of a
    /// virtio device, was: that has all of its queues as long as it is open. Nothing has changed then.
    fn detach(&self, arena: &Arc<Arena>) -> Result<(), DriverError>;

    /// A queue, to be owned by one core. Dropped, another can be had.
    ///
    /// # Errors
    /// The driver's, where all are in use, or the device is gone.
    fn queue(&self) -> Result<Box<dyn BlockQueue>, DriverError>;

    /// Takes the oldest event that waits; `None` where none does. While 256 wait, further ones are dropped.
    fn event(&self) -> Option<Event>;

    /// The device's own status code, which [`Status::Device`] has, as its standard names it. Any `code` may be asked for; no device is.
    fn status_text(&self, code: u16) -> String {
        format!("status {code:#x}")
    }

    /// Resets the device, and returns when its queues can go on: what was in flight completes as [`Status::Aborted`]. Each queue has to be
    /// polled on another thread meanwhile: one that is not, within five seconds, is lost, and its buffers quarantined.
    ///
    /// # Errors
    /// The driver's, where queues were not polled, or the device did not come up again.
    fn reset(&self) -> Result<(), DriverError>;
}

/// How a [`Disk`] is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskConfig {
    /// Queues to ask the device for; it may have fewer.
    pub queues: u16,
    /// Entries, or descriptors, of each: a power of two; `None` for what suits the device.
    pub entries: Option<u16>,
}

impl Default for DiskConfig {
    fn default() -> Self {
        Self { queues: 1, entries: None }
    }
}

/// What can be read and written of a [`Disk`], and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Namespace {
    /// Its number, as [`Request::nsid`] has it.
    pub nsid: u32,
    /// Its capacity, in blocks.
    pub blocks: u64,
    /// Bytes of a block: a power of two from 512.
    pub block_size: u32,
    /// It cannot be written.
    pub read_only: bool,
    /// Bytes of one read or write at most: a multiple of the block size.
    pub max_transfer: u32,
    /// It takes [`Op::Flush`]; where it does not, what was written is durable.
    pub flush: bool,
    /// It takes [`Op::Compare`].
    pub compare: bool,
    /// Blocks of one [`Op::WriteZeroes`] at most; 0 where it takes none.
    pub max_write_zeroes: u32,
    /// Blocks of one [`Op::Deallocate`] at most; 0 where it takes none.
    pub max_deallocate: u32,
    /// Blocks of one [`Op::Verify`] at most; 0 where it takes none.
    pub max_verify: u32,
}

/// Something that happened to a [`Disk`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The namespaces may have changed, in number or size: [`Disk::namespaces`] has them as they are now.
    Namespaces,
    /// The device reports something else: as its specification names it.
    Reported(String),
    /// What happens to any device.
    Device(DeviceEvent),
}

impl From<DeviceEvent> for Event {
    fn from(event: DeviceEvent) -> Self {
        Self::Device(event)
    }
}

/// One command.
#[derive(Debug)]
pub struct Request {
    /// The caller's; comes back with the completion.
    pub tag: u64,
    /// The namespace.
    pub nsid: u32,
    /// What to do.
    pub op: Op,
    /// The data, owned by the command while it is in flight.
    pub data: Data,
    /// When to give up; `None` for the driver's own limit.
    pub deadline: Option<Instant>,
}

/// What a [`Request`] does. Blocks are the namespace's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Reads blocks into the data, all of which is filled.
    Read {
        /// First block.
        lba: u64,
    },
    /// Writes the data.
    Write {
        /// First block.
        lba: u64,
    },
    /// Compares the data with what is stored.
    Compare {
        /// First block.
        lba: u64,
    },
    /// Makes what was written durable.
    Flush,
    /// Sets blocks to zero.
    WriteZeroes {
        /// First block.
        lba: u64,
        /// How many.
        blocks: u32,
    },
    /// Says that blocks are no longer used.
    Deallocate {
        /// First block.
        lba: u64,
        /// How many.
        blocks: u32,
    },
    /// Has the device check that blocks can be read.
    Verify {
        /// First block.
        lba: u64,
        /// How many.
        blocks: u32,
    },
}

/// A command's data: no buffer, one, or several in order.
#[derive(Debug, Default)]
pub enum Data {
    /// None.
    #[default]
    None,
    /// One buffer: [`Buf::len`] bytes of it.
    One(Buf),
    /// Several, one after the other.
    Many(Box<[Buf]>),
}

impl Data {
    /// Bytes in all.
    #[inline]
    pub fn len(&self) -> u64 {
        match self {
            Self::None => 0,
            Self::One(buf) => buf.len().into(),
            Self::Many(bufs) => bufs.iter().map(|b| u64::from(b.len())).sum(),
        }
    }

    /// Whether there are no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Never gives the buffers back, because a device may still write them; returns how many there are. Their pool counts them as out.
    pub fn quarantine(self) -> u64 {
        match self {
            Self::None => 0,
            Self::One(buf) => buf.quarantine(),
            Self::Many(bufs) => bufs.into_iter().map(Buf::quarantine).sum(),
        }
    }

    /// The buffers, in order.
    #[inline]
    pub fn bufs(&self) -> &[Buf] {
        match self {
            Self::None => &[],
            Self::One(buf) => std::slice::from_ref(buf),
            Self::Many(bufs) => bufs,
        }
    }
}

/// A finished command.
#[derive(Debug)]
pub struct Completion {
    /// The request's.
    pub tag: u64,
    /// How it ended.
    pub status: Status,
    /// The request's data; none where it is quarantined, because the device may still write it.
    pub data: Data,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Ok,
    /// The device refused it or failed: the driver's own status code, which its crate decodes to the standard's names.
    Device(u16),
    /// Given up: its deadline passed, or its queue was reset.
    Aborted,
    /// The device is gone.
    Gone,
}

/// A request that was not taken: here it is back.
#[derive(Debug)]
pub struct Rejected {
    /// What was asked.
    pub req: Request,
    /// Why it wasn't taken.
    pub why: Reject,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} was not taken: {}", self.req.op, self.why)
    }
}

impl std::error::Error for Rejected {}

impl std::error::Error for Reject {}

/// Why a request was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reject {
    /// The queue is full: poll, then try again.
    Full,
    /// It can never be done: why.
    Invalid(&'static str),
    /// The queue is being reset: poll, then try again.
    Resetting,
    /// The queue or its device is gone.
    Gone,
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("the queue is full"),
            Self::Invalid(why) => f.write_str(why),
            Self::Resetting => f.write_str("the queue is being reset"),
            Self::Gone => f.write_str("the device is gone"),
        }
    }
}

/// Whether a queue can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueueState {
    /// It can.
    Running,
    /// Its device is being reset; it will run again.
    Resetting,
    /// It cannot, for good: why.
    Failed(String),
    /// Its device is gone.
    Gone,
}

/// One submission and completion queue, owned by one core.
pub trait BlockQueue: Send {
    /// Queues a command; the device is not told before [`ring`](Self::ring).
    ///
    /// # Errors
    /// [`Rejected`], with the request and why.
    fn submit(&mut self, req: Request) -> Result<(), Rejected>;

    /// Tells the device of every command submitted since the last call: one doorbell.
    fn ring(&mut self);

    /// Takes at most `max` finished commands; returns how many there were.
    ///
    /// Where `done` panics, the command that it was told of has completed and is not in flight any more; the next call goes on with the others. So an
    /// implementer is done with a command, its buffers apart, before it calls `done`.
    fn poll(&mut self, max: usize, done: &mut dyn FnMut(Completion)) -> usize;

    /// Whether it can be used.
    fn state(&self) -> QueueState;

    /// How many commands are in flight.
    fn in_flight(&self) -> usize;

    /// How often its doorbells were rung, from the beginning; `None` where its driver does not count that. A few loads.
    fn doorbells(&self) -> Option<DoorbellCounts> {
        None
    }
}

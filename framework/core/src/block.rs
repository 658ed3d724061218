//! Storage: the traits of disks and of their queues. Post and ring are two verbs, the caller bounds the poll, and buffers are owned by the
//! command in flight.
//!
//! ```
//! # use wholebar_core as wholebar;
//! use wholebar::block::{Data, Disk, Op, Request};
//! use wholebar::mem::{Arena, ArenaOptions, Pool};
//!
//! /// Reads the first block of a disk's first namespace.
//! fn first_block(disk: &dyn Disk) -> Result<Data, Box<dyn std::error::Error>> {
//!     let ns = disk.namespaces().into_iter().next().ok_or("no namespace can be used")?;
//!     let arena = Arena::new(1 << 20, ArenaOptions::default())?;
//!     disk.attach(arena.clone())?;
//!     let pool = Pool::new(arena, 4, ns.block_size, ns.block_size)?;
//!     let mut queue = disk.queue()?;
//!     let data = Data::One(pool.get_len(ns.block_size).ok_or("no buffer is left")?);
//!     queue.submit(Request { tag: 0, nsid: ns.nsid, op: Op::Read { lba: 0 }, data, deadline: None })?;
//!     queue.ring();
//!     let mut read = Data::None;
//!     while queue.poll(1, &mut |done| read = done.data) == 0 {}
//!     Ok(read)
//! }
//! ```

pub use crate::reset::QueueState;

use crate::DriverError;
use crate::bar::DoorbellCounts;
use crate::control_plane::DeviceEvent;
use crate::irq::{Coalescing, EventFd};
use crate::mem::{Arena, Buf};
use crate::reactor::Armed;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

/// A storage device, opened: an NVMe controller with its namespaces, or a device that is one disk.
///
/// Its queues are values of their own ([`BlockQueue`]), which keep the device open: a disk and its queues may be dropped in any order.
///
/// Every method can be called at any time, from any thread, while queues are polled on others. Those that return a `Result` take the lock of
/// the device's control plane and wait for a reset that is under way; they are not for the loop that does I/O. Their error is the driver's own:
/// [`DriverError::downcast_ref`] returns it.
///
/// An implementer lists only namespaces that its queues can read, keeps queues usable through resets, and returns each buffer that it was given
/// ([`BlockQueue`]). [`ControlPlane`](crate::control_plane::ControlPlane) has the lock, the events and the steps of a reset, for every driver.
///
/// ```
/// # use wholebar_core as wholebar;
/// use wholebar::block::{Disk, Event};
///
/// /// Shows what a disk has, and what has happened to it.
/// fn show(disk: &dyn Disk) {
///     println!("{}, driver {}, {} queues", disk.name(), disk.driver(), disk.queues());
///     for ns in disk.namespaces() {
///         let size = ns.blocks * u64::from(ns.block_size);
///         println!("namespace {}: {size} bytes in blocks of {}", ns.nsid, ns.block_size);
///     }
///     while let Some(event) = disk.event() {
///         match event {
///             Event::Namespaces => println!("its namespaces may have changed"),
///             other => println!("{other:?}"),
///         }
///     }
/// }
/// ```
pub trait Disk: Send + Sync {
    /// Returns the driver's name: `nvme`, `virtio`.
    fn driver(&self) -> &'static str;

    /// Returns the device's name: its PCI address, or the target by which it was opened.
    fn name(&self) -> &str;

    /// Returns the namespaces that the driver can use, in the order of their numbers, as its queues use them now. A device that is one disk has one,
    /// number 1.
    fn namespaces(&self) -> Vec<Namespace>;

    /// Returns the number of queues that can be had at once.
    fn queues(&self) -> u16;

    /// Maps an arena for DMA by the device, so that queues can use buffers there. For an arena that is attached already it does nothing. (SPDK:
    /// `spdk_mem_register`.)
    ///
    /// # Errors
    /// The driver's, where the address space has no room for the arena, or the system refuses to map it.
    fn attach(&self, arena: Arc<Arena>) -> Result<(), DriverError>;

    /// Unmaps an arena from the device: when this returns, the device cannot reach it any more. For an arena that is not attached it does nothing. (DPDK:
    /// `rte_dev_dma_unmap`.)
    ///
    /// # Errors
    /// [`Error::StillAttached`](crate::Error::StillAttached), as the driver has it, while a queue exists that was given buffers of the arena. A
    /// virtio device keeps all of its queues as long as it is open, so there it is enough that a queue was given some. Nothing has changed then.
    fn detach(&self, arena: &Arena) -> Result<(), DriverError>;

    /// Returns a queue, to be owned by one core. Once it is dropped, another can be had. (SPDK: `spdk_bdev_get_io_channel`.)
    ///
    /// # Errors
    /// The driver's, where all are in use, or the device is gone.
    fn queue(&self) -> Result<Box<dyn BlockQueue>, DriverError>;

    /// Returns a queue as [`queue`](Self::queue) does, which can be armed ([`BlockQueue::arm`]) where the device has an interrupt for it, so that a core
    /// sleeps while nothing completes.
    ///
    /// # Errors
    /// As those of [`queue`](Self::queue).
    fn interrupt_queue(&self) -> Result<Box<dyn BlockQueue>, DriverError> {
        self.queue()
    }

    /// Returns when the queues interrupt; `None` where the device has no coalescing, or does not tell. By default there is none. It takes the control
    /// plane's lock, and asks the device.
    fn coalescing(&self) -> Option<Coalescing> {
        None
    }

    /// Sets when the queues interrupt, and returns what the device made of it. It lasts through resets. (NVMe: feature 08h.)
    ///
    /// # Errors
    /// The driver's, where the device has no coalescing, or not for so long, or is gone. By default
    /// [`Error::NoCoalescing`](crate::Error::NoCoalescing).
    fn set_coalescing(&self, _coalescing: Coalescing) -> Result<Coalescing, DriverError> {
        Err(crate::Error::NoCoalescing { device: self.name().to_owned() }.into())
    }

    /// Takes the oldest event; returns `None` where none waits. While 256 wait, further ones are dropped.
    fn event(&self) -> Option<Event>;

    /// Returns the text of a device's own status code, that of [`Status::Device`], as its standard names it. It asks no device, and takes any code.
    fn status_text(&self, code: u16) -> String {
        format!("status {code:#x}")
    }

    /// Resets the device, and returns when its queues can go on: commands in flight complete as [`Status::Aborted`]. (SPDK: `spdk_bdev_reset`.)
    ///
    /// Each queue must be polled on another thread meanwhile: one that is not, within five seconds, is lost, and its buffers quarantined.
    ///
    /// # Errors
    /// The driver's, where queues were not polled, or the device did not come up again.
    fn reset(&self) -> Result<(), DriverError>;
}

/// The configuration with which a [`Disk`] is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskConfig {
    /// Number of queues to ask the device for; it may have fewer.
    pub queues: u16,
    /// Entries, or descriptors, of each queue: a power of two; `None` for the driver's choice.
    pub entries: Option<u16>,
}

impl Default for DiskConfig {
    fn default() -> Self {
        Self { queues: 1, entries: None }
    }
}

/// A namespace of a [`Disk`]: its size and limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Namespace {
    /// The number of the namespace: [`Request::nsid`].
    pub nsid: u32,
    /// The capacity in blocks.
    pub blocks: u64,
    /// The size of a block in bytes: a power of two from 512.
    pub block_size: u32,
    /// The namespace cannot be written.
    pub read_only: bool,
    /// The largest read or write, in bytes: a multiple of the block size.
    pub max_transfer: u32,
    /// The largest read or write that the device does as one command, in bytes: a multiple of the block size. The driver cuts larger ones.
    pub max_command: u32,
    /// [`Op::Flush`] is supported. Where it is not, what was written is durable.
    pub flush: bool,
    /// [`Op::Compare`] is supported.
    pub compare: bool,
    /// The largest number of blocks of one [`Op::WriteZeroes`]; 0 where that is not supported.
    pub max_write_zeroes: u32,
    /// The largest number of blocks of one [`Op::Deallocate`]; 0 where that is not supported.
    pub max_deallocate: u32,
    /// The largest number of blocks of one [`Op::Verify`]; 0 where that is not supported.
    pub max_verify: u32,
}

/// An event of a [`Disk`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The namespaces may have changed, in number or size: [`Disk::namespaces`] returns them as they are now.
    Namespaces,
    /// An event of the device's own, as its specification names it.
    Reported(String),
    /// An event that can happen to any device.
    Device(DeviceEvent),
}

impl From<DeviceEvent> for Event {
    fn from(event: DeviceEvent) -> Self {
        Self::Device(event)
    }
}

/// A command, to be [submitted](BlockQueue::submit).
#[derive(Debug)]
pub struct Request {
    /// The caller's tag, which the completion returns.
    pub tag: u64,
    /// The number of the namespace.
    pub nsid: u32,
    /// The operation.
    pub op: Op,
    /// The data, owned by the command while it is in flight.
    pub data: Data,
    /// The time at which the command is given up; `None` for the driver's own limit.
    pub deadline: Option<Instant>,
}

/// The operation of a [`Request`].
///
/// Blocks are those of the namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Reads blocks into the data: as many as its length holds.
    Read {
        /// The first block.
        lba: u64,
    },
    /// Writes the data.
    Write {
        /// The first block.
        lba: u64,
    },
    /// Compares the data with what is stored.
    Compare {
        /// The first block.
        lba: u64,
    },
    /// Makes what was written durable.
    Flush,
    /// Sets blocks to zero.
    WriteZeroes {
        /// The first block.
        lba: u64,
        /// The number of blocks.
        blocks: u32,
    },
    /// Declares that blocks are no longer used: a discard, or trim.
    Deallocate {
        /// The first block.
        lba: u64,
        /// The number of blocks.
        blocks: u32,
    },
    /// Checks that blocks can be read, without transferring them.
    Verify {
        /// The first block.
        lba: u64,
        /// The number of blocks.
        blocks: u32,
    },
}

/// The data of a command: no buffer, one, or several in order.
#[derive(Debug, Default)]
pub enum Data {
    /// No buffer.
    #[default]
    None,
    /// One buffer, of which the first [`Buf::len`] bytes are used.
    One(Buf),
    /// Several buffers, one after the other.
    Many(Box<[Buf]>),
}

impl Data {
    /// Returns the length of the data in bytes.
    #[inline]
    pub fn len(&self) -> u64 {
        match self {
            Self::None => 0,
            Self::One(buf) => buf.len().into(),
            Self::Many(bufs) => bufs.iter().map(|b| u64::from(b.len())).sum(),
        }
    }

    /// Returns whether there is no data.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Gives the buffers up for good, because a device may still write them; returns their number. Their pools count them as out.
    pub fn quarantine(self) -> u64 {
        match self {
            Self::None => 0,
            Self::One(buf) => buf.quarantine(),
            Self::Many(bufs) => bufs.into_iter().map(Buf::quarantine).sum(),
        }
    }

    /// Returns the buffers, in order.
    #[inline]
    pub fn bufs(&self) -> &[Buf] {
        match self {
            Self::None => &[],
            Self::One(buf) => std::slice::from_ref(buf),
            Self::Many(bufs) => bufs,
        }
    }
}

/// The completion of a command.
#[derive(Debug)]
pub struct Completion {
    /// The request's tag.
    pub tag: u64,
    /// The status.
    pub status: Status,
    /// The request's data; none where it is quarantined, because the device may still write it.
    pub data: Data,
}

/// The status of a completed command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// The command succeeded.
    Ok,
    /// The device refused the command, or failed: the driver's own status code, which [`Disk::status_text`] names.
    Device(u16),
    /// The command was given up: its deadline passed, or its queue was reset.
    Aborted,
    /// The device is gone.
    Gone,
}

/// A request that was not taken, with the reason.
#[derive(Debug)]
pub struct Rejected {
    /// The request.
    pub req: Request,
    /// The reason.
    pub why: Reject,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} was not taken: {}", self.req.op, self.why)
    }
}

impl std::error::Error for Rejected {}

impl std::error::Error for Reject {}

/// The reason why a request was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reject {
    /// The queue is full: poll, then try again.
    Full,
    /// The request can never be done, for this reason.
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

/// A queue of a [`Disk`], owned by one core: a submission and a completion queue.
///
/// SPDK: an I/O channel; libvfn: `nvme_sq` and `nvme_cq`.
///
/// None of the methods blocks. A queue that nobody polls delays the resets of its device ([`Disk::reset`]), so it is polled
/// regularly, or dropped.
///
/// An implementer keeps a command's data until the device has completed the command, was reset, or is gone, and returns it in the completion, in
/// every case but that of quarantine.
///
/// ```
/// # use wholebar_core as wholebar;
/// use wholebar::block::{BlockQueue, Data, Op, Reject, Request, Status};
/// use wholebar::mem::Pool;
///
/// /// Reads `count` buffers, one behind the other from block 0 of namespace 1 on, with as many in flight as the queue and the pool allow. Returns how many were read.
/// fn read(queue: &mut dyn BlockQueue, pool: &Pool, blocks: u64, count: u64) -> Result<u64, Reject> {
///     let (mut posted, mut ended, mut read) = (0, 0, 0);
///     while ended < count {
///         while posted < count && let Some(buf) = pool.get_len(pool.size()) {
///             let op = Op::Read { lba: posted * blocks };
///             match queue.submit(Request { tag: posted, nsid: 1, op, data: Data::One(buf), deadline: None }) {
///                 Ok(()) => posted += 1,
///                 // Both pass, as the queue is polled.
///                 Err(refused) if matches!(refused.why, Reject::Full | Reject::Resetting) => break,
///                 Err(refused) => return Err(refused.why),
///             }
///         }
///         queue.ring();
///         // The buffers return to their pool as the completions are dropped.
///         ended += queue.poll(32, &mut |done| read += u64::from(done.status == Status::Ok)) as u64;
///     }
///     Ok(read)
/// }
/// ```
pub trait BlockQueue: Send {
    /// Posts a command. The device is not told before [`ring`](Self::ring).
    ///
    /// # Errors
    /// [`Rejected`], with the request and the reason: [`Reject::Full`] and [`Reject::Resetting`] pass, [`Reject::Invalid`] and [`Reject::Gone`] do not.
    fn submit(&mut self, req: Request) -> Result<(), Rejected>;

    /// Tells the device of every command posted since the last call, by one doorbell: one store, unless it is trapped.
    fn ring(&mut self);

    /// Takes at most `max` completed commands, passes each to `done`, and returns their number. (SPDK: `spdk_nvme_qpair_process_completions`.)
    ///
    /// Where `done` panics, the command that it was told of has completed and is not in flight any more; the next call goes on with the others. So an
    /// implementer is done with a command, its buffers apart, before it calls `done`.
    fn poll(&mut self, max: usize, done: &mut dyn FnMut(Completion)) -> usize;

    /// Returns whether the queue can be used. A queue that is [`Resetting`](QueueState::Resetting) goes on as it is polled; one that has
    /// [failed](QueueState::Failed) is to be dropped.
    fn state(&self) -> QueueState;

    /// Returns the number of commands in flight.
    fn in_flight(&self) -> usize;

    /// Returns how often its doorbells were rung, from the beginning; `None` where its driver does not count that. A few loads.
    fn doorbells(&self) -> Option<DoorbellCounts> {
        None
    }

    /// Returns the eventfd that is signalled while the queue is armed; `None` for a queue that can only be polled, as by default: see
    /// [`Disk::interrupt_queue`].
    fn wakeup(&self) -> Option<Arc<EventFd>> {
        None
    }

    /// Requests an interrupt for the next completion. Call [`poll`](Self::poll) once more after this, and sleep only where that returns 0: a command that
    /// completed before the queue was armed may raise no interrupt.
    ///
    /// Returns [`Armed::No`] where no interrupt would come: the queue has none, or is not running; [`Armed::Until`] while commands are in flight, whose
    /// deadlines are looked at by then. The caller must poll on, or wake up in time. By default this returns [`Armed::No`].
    fn arm(&mut self) -> Armed {
        Armed::No
    }

    /// Turns the interrupt off again, before polling goes on. By default it does nothing.
    fn disarm(&mut self) {}
}

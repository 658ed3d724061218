//! io_uring over one file: requests that own their buffers until the kernel has completed them. (Linux: `io_uring(7)`; the rings themselves are the crate
//! `io-uring`'s.)
//!
//! This file does *not* know what a disk is: it reads, writes and syncs bytes of a file, says how many, and repeats nothing. Where the file is an NVMe namespace's
//! character device, `nvme.rs` makes commands of the same requests.
//!
//! The kernel reads and writes the memory of a request at any time between the system call that submits it (or, with a polling thread of the kernel's, the
//! store that publishes it) and its completion. So a request's buffers, and the list of their addresses, lie in its slot all that time: nobody else has a
//! handle to them. Where this value is forgotten, its slots are too, and the buffers never come home. Where it is dropped, it waits for what is in flight, and
//! gives up for good what does not come back.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod nvme;

pub use nvme::NvmeNamespace;

use crate::bar::DoorbellCounts;
use crate::block::Data;
use crate::irq::EventFd;
use crate::mem::{Arena, Buf};
use io_uring::cqueue::Entry32;
use io_uring::squeue::{Entry, Entry128, EntryMarker};
use io_uring::types::{CancelBuilder, Fixed, FsyncFlags};
use io_uring::{IoUring, Parameters, SubmissionQueue, Submitter, opcode};
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How a [`Uring`] is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UringOptions {
    /// The largest number of requests in flight: a power of two, at most 32,768. Another number is rounded up.
    pub entries: u32,
    /// Have a thread of the kernel's look for requests (`IORING_SETUP_SQPOLL`), which sleeps after so long without any. `None` for none: a system call
    /// submits them.
    pub sqpoll: Option<Duration>,
    /// Look for completions at the device, instead of being told by interrupts (`IORING_SETUP_IOPOLL`): of reads and writes alone, of a file that was
    /// opened with `O_DIRECT`, on a device that has queues for that.
    pub iopoll: bool,
}

/// A request. Offsets and lengths are bytes of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Reads into the data, from a byte of it on: as much as its length holds from there (`IORING_OP_READV`).
    Read {
        /// Where in the file.
        offset: u64,
        /// Where in the data.
        skip: u64,
    },
    /// Writes the data, from a byte of it on (`IORING_OP_WRITEV`).
    Write {
        /// Where in the file.
        offset: u64,
        /// Where in the data.
        skip: u64,
    },
    /// Makes what was written durable (`IORING_OP_FSYNC`, as `fdatasync`).
    Fsync,
    /// Frees a range, which reads as zeros then (`IORING_OP_FALLOCATE`, `FALLOC_FL_PUNCH_HOLE`).
    PunchHole {
        /// Where in the file.
        offset: u64,
        /// How much.
        len: u64,
    },
    /// Sets a range to zeros (`IORING_OP_FALLOCATE`, `FALLOC_FL_ZERO_RANGE`).
    ZeroRange {
        /// Where in the file.
        offset: u64,
        /// How much.
        len: u64,
    },
}

/// A request that the kernel has completed.
#[derive(Debug)]
pub struct Completed<T> {
    /// The payload that was pushed with the request.
    pub payload: T,
    /// What it returned: bytes, of those that have data; or the error's number (`errno(3)`), or of an NVMe command [`NVME_STATUS`] and the status.
    pub result: Result<u32, i32>,
    /// Its buffers.
    pub data: Data,
}

/// A request that was not taken, since as many are in flight as there are entries.
#[derive(Debug)]
pub struct Full<T> {
    /// Its buffers.
    pub data: Data,
    /// The payload that was pushed with it.
    pub payload: T,
}

/// A submission and a completion ring over one file, for one thread at a time. `T` is what the caller wants back with a request.
///
/// ```
/// # use wholebar_core as wholebar;
/// use std::fs::File;
/// use wholebar::block::Data;
/// use wholebar::kernel::{Operation, Uring, UringOptions};
/// use wholebar::mem::{Arena, ArenaOptions, Pool};
///
/// # if std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").is_ok_and(|text| text.trim() == "0") {
/// let pool = Pool::new(Arena::new(4096, ArenaOptions::default())?, 1, 4096, 4096)?;
/// let options = UringOptions { entries: 4, sqpoll: None, iopoll: false };
/// let mut ring = Uring::new(File::open("/proc/self/exe")?.into(), options)?;
/// let data = Data::One(pool.get_len(4).ok_or("a buffer")?);
/// ring.push(Operation::Read { offset: 0, skip: 0 }, data, "the first").map_err(|_| "it is full")?;
/// ring.enter()?;
/// let done = loop {
///     if let Some(done) = ring.take() {
///         break done;
///     }
/// };
/// assert_eq!((done.payload, done.result, done.data.bufs()[0].bytes()), ("the first", Ok(4), &b"\x7fELF"[..]));
/// # }
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
pub struct Uring<T> {
    ring: Ring,
    /// A request's number is its slot's. Emptied by completions and by `drop` alone, which panics of payloads may not change.
    slots: ManuallyDrop<Vec<Option<Slot<T>>>>,
    free: Vec<u32>,
    registered: Vec<Registered>,
    doorbells: DoorbellCounts,
}

/// The rings, and the requests that the kernel has not been told of, in order.
enum Ring {
    /// Of a file.
    File(IoUring, Vec<Entry>),
    /// Of an NVMe namespace, whose commands take entries of twice the size.
    Nvme(IoUring<Entry128, Entry32>, Vec<Entry128>, Arc<NvmeNamespace>),
}

/// A request in flight, or staged.
struct Slot<T> {
    data: Data,
    /// Where the data's buffers are, for the kernel; empty where there is one.
    vectors: Vectors,
    payload: T,
    cancelled: bool,
}

/// The pieces of an arena that were registered: each of [`PIECE`] bytes but the last one.
struct Registered {
    arena: Arc<Arena>,
    /// The first one's number.
    first: u16,
}

struct Vectors(Box<[libc::iovec]>);
// SAFETY: addresses of buffers whose handles are in the same slot, for the kernel alone: nothing here follows them.
unsafe impl Send for Vectors {}

/// Added to the status of an NVMe command that failed, in [`Completed::result`]: no error's number is as large.
pub const NVME_STATUS: i32 = 0x8000;
/// The file's number in the ring, which is made for it alone.
const FILE: Fixed = Fixed(0);
/// What the kernel registers at once, at most.
const PIECE: u64 = 1 << 30;
/// The most pieces that are registered. Memory beyond them is used unregistered.
const PIECES: u16 = 64;
/// Buffers of one request, at most (`UIO_MAXIOV`): what lies behind them is not transferred.
const VECTORS: usize = 1024;
/// The number of requests that cancel others.
const CANCEL: u64 = u64::MAX;
/// How long a dropped value waits for what is in flight.
const PATIENCE: Duration = if cfg!(test) { Duration::from_millis(100) } else { Duration::from_secs(5) };

impl<T> Uring<T> {
    /// Makes the rings, over a file that is open.
    ///
    /// # Errors
    /// `PermissionDenied` where the system does not let this process have io_uring (`kernel.io_uring_disabled`, a filter of system calls); `Unsupported` where the
    /// kernel has none; `InvalidInput` for 0 entries, and too many; what `io_uring_setup(2)` and `io_uring_register(2)` say.
    pub fn new(file: OwnedFd, options: UringOptions) -> io::Result<Self> {
        let ring = build(IoUring::builder(), options)?;
        let staged = Vec::with_capacity(ring.params().sq_entries() as usize);
        Self::over(Ring::File(ring, staged), file.as_fd())
    }

    /// Makes the rings, over an NVMe namespace (`IORING_OP_URING_CMD`, Linux 5.19).
    ///
    /// # Errors
    /// Those of [`new`](Self::new); `InvalidInput` where the kernel has no such rings.
    pub fn nvme(namespace: Arc<NvmeNamespace>, options: UringOptions) -> io::Result<Self> {
        let ring = build(IoUring::builder(), options)?;
        let staged = Vec::with_capacity(ring.params().sq_entries() as usize);
        let file = namespace.clone();
        Self::over(Ring::Nvme(ring, staged, namespace), file.file())
    }

    fn over(ring: Ring, file: BorrowedFd<'_>) -> io::Result<Self> {
        // The ring keeps the file open itself.
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        // The completion ring has twice as many entries: whatever is in flight has room there.
        let entries = ring.params().sq_entries();
        let slots = std::iter::repeat_with(|| None).take(entries as usize).collect();
        Ok(Self {
            ring,
            slots: ManuallyDrop::new(slots),
            free: (0..entries).rev().collect(),
            registered: Vec::new(),
            doorbells: DoorbellCounts::default(),
        })
    }

    /// Registers an arena: the kernel pins its pages now, instead of for each request. Without it, its buffers can be used all the same. The arena is kept as long
    /// as this value.
    ///
    /// # Errors
    /// `OutOfMemory` where that is above the limit of locked memory (`RLIMIT_MEMLOCK`); `Unsupported` of more than 64 GiB in all; what
    /// `io_uring_register(2)` says.
    pub fn register(&mut self, arena: Arc<Arena>) -> io::Result<()> {
        let submitter = self.ring.submitter();
        let first = match self.registered.last() {
            None => {
                submitter.register_buffers_sparse(PIECES.into())?;
                0
            }
            Some(last) => last.first.saturating_add(pieces(last.arena.len())),
        };
        let (base, len) = (arena.mapping().base(), arena.len());
        let most = u64::from(PIECES.saturating_sub(first)).saturating_mul(PIECE);
        if len > most {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let vectors: Vec<_> = (0..len)
            .step_by(PIECE as usize)
            .map(|at| libc::iovec {
                // SAFETY: `at` is below the mapping's length.
                iov_base: unsafe { base.add(at as usize) }.as_ptr().cast(),
                iov_len: len.saturating_sub(at).min(PIECE) as usize,
            })
            .collect();
        // SAFETY: the ranges are the arena's mapping, which is kept until this value is dropped, and with it the ring; in which order does not matter: the kernel
        // holds the pages, and reads and writes them for requests alone.
        if let Err(error) = unsafe { submitter.register_buffers_update(first.into(), &vectors, None) } {
            // The next call begins as this one did.
            let empty = self.registered.is_empty().then(|| submitter.unregister_buffers());
            return empty.unwrap_or(Ok(())).and(Err(error));
        }
        self.registered.push(Registered { arena, first });
        Ok(())
    }

    /// Has the kernel signal an eventfd after each completion (`IORING_REGISTER_EVENTFD`): once, for as long as this value lives.
    ///
    /// # Errors
    /// Those of `io_uring_register(2)`: `EBUSY` where an eventfd is registered already.
    pub fn signal(&mut self, eventfd: &EventFd) -> io::Result<()> {
        self.ring.submitter().register_eventfd(eventfd.as_fd().as_raw_fd())
    }

    /// Stages a request: the kernel is told by [`enter`](Self::enter). Of more than 1024 buffers, the first 1024 are used.
    ///
    /// # Errors
    /// [`Full`], with data and payload.
    pub fn push(&mut self, operation: Operation, data: Data, payload: T) -> Result<(), Full<T>> {
        let Some(index) = self.free.pop() else { return Err(Full { data, payload }) };
        let piece = self.piece(&data);
        let vectors = match &mut self.ring {
            Ring::File(_, staged) => {
                let (entry, vectors) = entry(operation, &data, piece);
                staged.push(entry.user_data(index.into()));
                vectors
            }
            Ring::Nvme(_, staged, namespace) => {
                let (entry, vectors) = namespace.entry(operation, &data, piece);
                staged.push(entry.user_data(index.into()));
                vectors
            }
        };
        self.slots[index as usize] = Some(Slot { data, vectors, payload, cancelled: false });
        Ok(())
    }

    /// The number of the registered piece that the only buffer of some data lies in.
    fn piece(&self, data: &Data) -> Option<u16> {
        let [buf] = data.bufs() else { return None };
        let registered = self.registered.iter().find(|registered| registered.arena.id() == buf.arena_id())?;
        let (first, last) = (buf.arena_offset(), buf.arena_offset().saturating_add(buf.len().into()).saturating_sub(1));
        (first / PIECE == last / PIECE).then(|| registered.first.saturating_add((first / PIECE) as u16))
    }

    /// Tells the kernel of every request that was staged: by a system call, or, where a thread of the kernel's looks for them and is awake, a store. Where it
    /// leaves some [staged](Self::staged), because the kernel is behind, it is to be called again later.
    ///
    /// # Errors
    /// What `io_uring_enter(2)` says. Of `EAGAIN`, `EBUSY` and `EINTR` it is to be called again later; nothing is lost.
    pub fn enter(&mut self) -> io::Result<()> {
        let sqpoll = self.ring.params().is_setup_sqpoll();
        let published = match &mut self.ring {
            Ring::File(ring, staged) => publish(ring.submission(), staged),
            Ring::Nvme(ring, staged, _) => publish(ring.submission(), staged),
        };
        let Some(asleep) = published else { return Ok(()) };
        if sqpoll && !asleep {
            self.doorbells.direct = self.doorbells.direct.saturating_add(1);
            return Ok(());
        }
        self.doorbells.trapped = self.doorbells.trapped.saturating_add(1);
        while self.ring.submitter().submit()? > 0 && !sqpoll {
            // The kernel stops at a request that makes no sense, and completes it.
            if self.ring.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// Has the kernel poll the device for completions: for rings with [`UringOptions::iopoll`], where nobody else does. A system call.
    ///
    /// # Errors
    /// As [`enter`](Self::enter).
    pub fn poll_device(&mut self) -> io::Result<()> {
        self.ring.submitter().submit().map(drop)
    }

    /// Takes a completed request; `None` where there is none. It makes no system call.
    pub fn take(&mut self) -> Option<Completed<T>> {
        loop {
            let (number, result) = self.ring.next()?;
            let index = usize::try_from(number).ok().filter(|_| number != CANCEL);
            // The kernel has completed it, so it uses the slot's memory no more.
            if let Some(slot) = index.and_then(|index| self.slots.get_mut(index)?.take()) {
                self.free.push(number as u32);
                let result = match (&self.ring, result) {
                    // The status of a command, which transferred all of its data where it is 0.
                    (Ring::Nvme(..), 0) => Ok(slot.data.len().try_into().unwrap_or(u32::MAX)),
                    (Ring::Nvme(..), 1..) => Err(NVME_STATUS | result & 0x7fff),
                    _ => u32::try_from(result).map_err(|_| result.saturating_neg()),
                };
                return Some(Completed { payload: slot.payload, result, data: slot.data });
            }
        }
    }

    /// Asks the kernel to cancel the requests of which `which` is true, once each. Those that it can cancel complete with `ECANCELED`; what a device is at
    /// work on completes as it would have.
    pub fn cancel(&mut self, mut which: impl FnMut(&T) -> bool) {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if let Some(slot) = slot.as_mut().filter(|slot| !slot.cancelled && which(&slot.payload))
                // Where there is no room for as many, the next call tries again.
                && self.ring.staged() < self.ring.params().sq_entries() as usize
            {
                slot.cancelled = true;
                let cancel = opcode::AsyncCancel2::new(CancelBuilder::user_data(index as u64)).build();
                self.ring.stage(cancel.user_data(CANCEL));
            }
        }
    }

    /// Returns the number of requests that were staged or submitted, and not taken.
    pub fn in_flight(&self) -> usize {
        self.slots.len().saturating_sub(self.free.len())
    }

    /// Returns the number of requests, and of attempts to cancel some, that the kernel was not told of.
    pub fn staged(&self) -> usize {
        self.ring.staged()
    }

    /// Returns how often the kernel was told: by stores, and by system calls.
    pub fn doorbells(&self) -> DoorbellCounts {
        self.doorbells
    }
}

/// The entry of a request with these data. The addresses in it, and in the vectors, are those of buffers of `data`, inside of them; `piece` is that of its only buffer.
fn entry(operation: Operation, data: &Data, piece: Option<u16>) -> (Entry, Vectors) {
    let none = || Vectors(Box::new([]));
    let fallocate =
        |mode, offset, len| opcode::Fallocate::new(FILE, len).offset(offset).mode(mode | libc::FALLOC_FL_KEEP_SIZE);
    match operation {
        Operation::Fsync => (opcode::Fsync::new(FILE).flags(FsyncFlags::DATASYNC).build(), none()),
        Operation::PunchHole { offset, len } => (fallocate(libc::FALLOC_FL_PUNCH_HOLE, offset, len).build(), none()),
        Operation::ZeroRange { offset, len } => (fallocate(libc::FALLOC_FL_ZERO_RANGE, offset, len).build(), none()),
        Operation::Read { offset, skip } | Operation::Write { offset, skip } => {
            let reads = matches!(operation, Operation::Read { .. });
            if let [buf] = data.bufs() {
                let libc::iovec { iov_base, iov_len } = rest(buf, skip);
                let (at, len) = (iov_base.cast::<u8>(), iov_len as u32);
                let entry = match (piece, reads) {
                    (Some(piece), true) => opcode::ReadFixed::new(FILE, at, len, piece).offset(offset).build(),
                    (Some(piece), false) => opcode::WriteFixed::new(FILE, at, len, piece).offset(offset).build(),
                    (None, true) => opcode::Read::new(FILE, at, len).offset(offset).build(),
                    (None, false) => opcode::Write::new(FILE, at, len).offset(offset).build(),
                };
                return (entry, none());
            }
            let mut skip = skip;
            let vectors = data.bufs().iter().filter_map(|buf| {
                let vector = rest(buf, skip);
                skip = skip.saturating_sub(buf.len().into());
                (vector.iov_len > 0).then_some(vector)
            });
            let vectors = Vectors(vectors.take(VECTORS).collect());
            let (at, len) = (vectors.0.as_ptr(), vectors.0.len() as u32);
            let entry = match reads {
                true => opcode::Readv::new(FILE, at, len).offset(offset).build(),
                false => opcode::Writev::new(FILE, at, len).offset(offset).build(),
            };
            (entry, vectors)
        }
    }
}

/// What is left of a buffer behind `skip` bytes: an address inside of it, or its end.
fn rest(buf: &Buf, skip: u64) -> libc::iovec {
    let skip = skip.min(buf.len().into()) as u32;
    // SAFETY: at most the length of its data.
    let at = unsafe { buf.data().add(skip as usize) };
    libc::iovec { iov_base: at.as_ptr().cast(), iov_len: buf.len().saturating_sub(skip) as usize }
}

/// How many pieces so many bytes are.
fn pieces(bytes: u64) -> u16 {
    bytes.div_ceil(PIECE).try_into().unwrap_or(u16::MAX)
}

impl Ring {
    fn submitter(&self) -> Submitter<'_> {
        match self {
            Self::File(ring, _) => ring.submitter(),
            Self::Nvme(ring, ..) => ring.submitter(),
        }
    }

    fn params(&self) -> &Parameters {
        match self {
            Self::File(ring, _) => ring.params(),
            Self::Nvme(ring, ..) => ring.params(),
        }
    }

    /// Whether the kernel has taken every entry.
    fn is_empty(&mut self) -> bool {
        match self {
            Self::File(ring, _) => ring.submission().is_empty(),
            Self::Nvme(ring, ..) => ring.submission().is_empty(),
        }
    }

    /// The number of a request that was completed, and its result.
    fn next(&mut self) -> Option<(u64, i32)> {
        match self {
            Self::File(ring, _) => ring.completion().next().map(|entry| (entry.user_data(), entry.result())),
            Self::Nvme(ring, ..) => ring.completion().next().map(|entry| (entry.user_data(), entry.result())),
        }
    }

    fn staged(&self) -> usize {
        match self {
            Self::File(_, staged) => staged.len(),
            Self::Nvme(_, staged, _) => staged.len(),
        }
    }

    fn stage(&mut self, entry: Entry) {
        match self {
            Self::File(_, staged) => staged.push(entry),
            Self::Nvme(_, staged, _) => staged.push(entry.into()),
        }
    }

    /// Forgets what was staged, and tells its numbers.
    fn unstage(&mut self) -> Vec<u64> {
        match self {
            Self::File(_, staged) => staged.drain(..).map(|entry| entry.get_user_data()).collect(),
            Self::Nvme(_, staged, _) => staged.drain(..).map(|entry| entry.get_user_data()).collect(),
        }
    }
}

/// Makes rings with entries of some size.
fn build<S: EntryMarker, C: io_uring::cqueue::EntryMarker>(
    mut builder: io_uring::Builder<S, C>,
    options: UringOptions,
) -> io::Result<IoUring<S, C>> {
    // What a child process stores there would be taken for this one's.
    builder.dontfork();
    if options.iopoll {
        builder.setup_iopoll();
    }
    if let Some(idle) = options.sqpoll {
        builder.setup_sqpoll(u32::try_from(idle.as_millis()).unwrap_or(u32::MAX));
    }
    builder.build(options.entries)
}

/// Puts staged requests into the ring, as far as there is room. `None` where it has none then, as far as this side knows: what is published may be taken at once; else
/// whether the kernel's thread, where it has one, is to be woken.
fn publish<S: EntryMarker>(mut queue: SubmissionQueue<'_, S>, staged: &mut Vec<S>) -> Option<bool> {
    let room = queue.capacity().saturating_sub(queue.len());
    for entry in staged.drain(..staged.len().min(room)) {
        // SAFETY: its addresses are those of buffers in its slot, and of the slot's own list: they are valid until the slot is emptied, when the request has
        // completed. What was pushed cannot be taken back, and slots are neither emptied before, nor freed: see `drop`.
        let pushed = unsafe { queue.push(&entry) };
        debug_assert!(pushed.is_ok(), "there is room for it");
    }
    if queue.is_empty() {
        return None;
    }
    queue.sync();
    Some(queue.need_wakeup())
}

impl<T> Drop for Uring<T> {
    /// Waits for what is in flight, five seconds at most; then gives its buffers up.
    fn drop(&mut self) {
        // What the kernel was never told of.
        for number in self.ring.unstage() {
            let index = usize::try_from(number).ok().filter(|_| number != CANCEL);
            if index.and_then(|index| self.slots.get_mut(index)?.take()).is_some() {
                self.free.push(number as u32);
            }
        }
        let began = Instant::now();
        while self.in_flight() > 0 && began.elapsed() < PATIENCE {
            // An error is no reason to touch what may be in flight.
            let _ = self.ring.submitter().submit();
            if self.take().is_none() {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
        if self.in_flight() == 0 {
            // The kernel takes rings apart later: until then nobody else could have a block device for themselves that was opened so (`O_EXCL`).
            let _ = self.ring.submitter().unregister_files();
        }
        let lost: u64 = self.slots.iter_mut().filter_map(Option::take).map(give_up).sum();
        // SAFETY: not used again. All slots are empty: nothing that the kernel may use goes with them.
        unsafe { ManuallyDrop::drop(&mut self.slots) };
        if lost > 0 {
            tracing::warn!(lost, "buffers of requests that the kernel did not complete are given up");
        }
    }
}

/// Gives a request's memory up for good: the kernel may still use it. Returns how many buffers that are.
fn give_up<T>(slot: Slot<T>) -> u64 {
    std::mem::forget(slot.vectors);
    slot.data.quarantine()
}

#[cfg(test)]
mod tests;

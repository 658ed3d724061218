//! Disks for code that blocks: [`Disk`] reads and writes a namespace at any offset, and is `Read`, `Write` and `Seek`, so that a file system or
//! an archiver can use it as it uses a file.
//!
//! ```
//! # #[cfg(all(feature = "sim", feature = "nvme"))] {
//! use std::io::{Read, Seek, SeekFrom, Write};
//! use wholebar::block::{self, DiskConfig};
//! use wholebar::blocking::{Config, Disk};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = wholebar::open("sim:nvme,size=64M")?;
//! let config = Config { unaligned: true, ..Config::default() };
//! let mut disk = Disk::open(block::open(device, &DiskConfig::default())?, &config)?;
//! disk.write_all_at(b"hello", 1_000_001)?;
//! disk.seek(SeekFrom::Start(1_000_000))?;
//! let mut bytes = [0; 7];
//! disk.read_exact(&mut bytes)?;
//! assert_eq!(&bytes, b"\0hello\0");
//! disk.flush()?;
//! # Ok(()) }
//! # main().unwrap();
//! # }
//! ```
//!
//! **What a call does.** It is cut into requests of one buffer each, or of the namespace's `max_transfer` where that is less; as many are in flight as
//! there are buffers and room in the queue. Data is copied between the caller's memory and the buffers. It returns when the last request has
//! ended, and then with the error of the lowest block that failed: what lies behind that block may have been read or written all the same.
//!
//! **How it waits.** It polls, and lets other threads run now and then: a thread that waits uses its core. Nothing else polls the queue: between calls
//! nobody does. That is no harm to the data, since no request is in flight then, but a device that is reset meanwhile gives the queue up
//! after five seconds. The next call makes another, where the driver has one: NVMe's has, virtio's has not until the device is opened again.
//!
//! **Resets.** A request that a reset aborted is submitted again, until the call's [`Config::timeout`]: reading a block once more, or writing the same
//! bytes to it, does no harm. A device that is gone ends the call with [`Error::Gone`].
//!
//! It does *not* cache, read ahead or gather writes: [`std::io::BufReader`] and [`std::io::BufWriter`] do. It is no fast path: that is
//! [`BlockQueue`], which this is made of, and which pays nothing for it.

mod error;
#[cfg(test)]
mod tests;

pub use error::{Access, Error};

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wholebar_core::PageSize;
use wholebar_core::block::{self, BlockQueue, Data, Namespace, Op, QueueState, Reject, Rejected, Request, Status};
use wholebar_core::mem::{Arena, ArenaOptions, Pool};

/// How a [`Disk`] is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// The namespace's number; `None` for the first that can be used.
    pub nsid: Option<u32>,
    /// Take any offset and length. Without it they have to be multiples of the block size, as of a file opened with `O_DIRECT`. With it, a write that
    /// begins or ends within a block reads that block first and writes all of it. This is not atomic: what somebody else writes to that
    /// block in between is lost.
    pub unaligned: bool,
    /// How many buffers [`Disk::open`] makes, which is how many requests are in flight at most.
    pub buffers: u32,
    /// Bytes of each: at least a block.
    pub buffer_size: u32,
    /// How long a call waits while no request ends well. Then the driver is to give up what is in flight, which may take as long again.
    pub timeout: Duration,
}

impl Default for Config {
    /// Whole blocks of the first namespace, 32 buffers of 128 KiB, 30 seconds.
    fn default() -> Self {
        Self { nsid: None, unaligned: false, buffers: 32, buffer_size: 128 << 10, timeout: Duration::from_secs(30) }
    }
}

/// A namespace of a disk, to be read and written by one thread at a time as if it were a file.
///
/// Calls take `&mut self`, unlike those of [`std::os::unix::fs::FileExt`]: a queue has one owner. Several threads have a `Disk` each, of the same
/// [`block::Disk`] opened with as many queues. Dropped, it gives the queue and the memory back, and does not [flush](Self::flush).
pub struct Disk {
    /// Before the pool and the arena: what is in flight ends with it. None where the last one was lost, and none was had since.
    queue: Option<Box<dyn BlockQueue>>,
    pool: Pool,
    /// The arena, where it is of this value's making.
    own: Option<Arc<Arena>>,
    disk: Arc<dyn block::Disk>,
    namespace: Namespace,
    unaligned: bool,
    timeout: Duration,
    /// Bytes of a request at most: whole blocks.
    piece: u64,
    /// The next request's.
    tag: u64,
    /// Requests in flight. After a call, only where the driver did not give them back in time.
    in_flight: usize,
    position: u64,
}

/// What a call does. Positions are bytes of the namespace.
enum Io<'a> {
    /// Fills the slice, which begins at the position.
    Read(u64, &'a mut [u8]),
    /// Writes the slices, the later ones over the earlier ones.
    Write([(u64, &'a [u8]); 3]),
    Flush,
}

impl Disk {
    /// Opens a namespace of `disk`, with a queue and memory of its own: an arena of [`Config::buffers`] times [`Config::buffer_size`] bytes, which is
    /// attached here, and detached on drop where the driver allows that ([`block::Disk::detach`]).
    ///
    /// # Errors
    /// [`Error::NoNamespace`], [`Error::Unfit`] for buffers that are too small, [`Error::Memory`], and [`Error::Driver`] where the arena cannot be
    /// attached or there is no queue.
    pub fn open(disk: impl Into<Arc<dyn block::Disk>>, config: &Config) -> Result<Self, Error> {
        let page = PageSize::host().bytes();
        let size = u64::from(config.buffers).saturating_mul(u64::from(config.buffer_size).next_multiple_of(page));
        let arena = Arena::new(size, ArenaOptions::default())?;
        let pool = Pool::new(arena.clone(), config.buffers, config.buffer_size, page as u32)?;
        let mut this = Self::with_pool(disk, pool, config)?;
        this.own = Some(arena);
        Ok(this)
    }

    /// Opens a namespace with buffers of the caller's: whole pages are best. The pool's arena is attached, and stays so.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn with_pool(disk: impl Into<Arc<dyn block::Disk>>, pool: Pool, config: &Config) -> Result<Self, Error> {
        let disk = disk.into();
        let all = disk.namespaces();
        let namespace = all.iter().find(|ns| config.nsid.is_none_or(|nsid| ns.nsid == nsid));
        let namespace = *namespace.ok_or_else(|| Error::NoNamespace {
            disk: disk.name().to_owned(),
            nsid: config.nsid,
            known: all.iter().map(|ns| ns.nsid).collect(),
        })?;
        let Namespace { block_size, max_transfer, .. } = namespace;
        let piece = pool.size().min(max_transfer).checked_div(block_size).unwrap_or(0).saturating_mul(block_size);
        if piece == 0 {
            let (disk, nsid) = (disk.name().to_owned(), namespace.nsid);
            return Err(Error::Unfit { disk, nsid, block_size, max_transfer, buffer_size: pool.size() });
        }
        disk.attach(pool.arena().clone())?;
        let queue = Some(disk.queue()?);
        let Config { unaligned, timeout, .. } = *config;
        let piece = piece.into();
        Ok(Self {
            queue,
            pool,
            own: None,
            disk,
            namespace,
            unaligned,
            timeout,
            piece,
            tag: 0,
            in_flight: 0,
            position: 0,
        })
    }

    /// Returns the disk: for its events, its reset, more queues.
    pub fn disk(&self) -> &Arc<dyn block::Disk> {
        &self.disk
    }

    /// Returns the namespace, as it was when this was opened.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Returns the size of the namespace, in bytes.
    pub fn size(&self) -> u64 {
        let block = u64::from(self.namespace.block_size);
        self.namespace.blocks.min(u64::MAX / block) * block
    }

    /// Returns the size of a block, in bytes.
    pub fn block_size(&self) -> u32 {
        self.namespace.block_size
    }

    /// Reads from byte `offset` on as much as `buf` holds, and returns the number of bytes read: fewer where the namespace ends before, and 0 from its end
    /// on. It costs a copy of the data, a request for each buffer's worth, and a doorbell for as many as are in flight.
    ///
    /// # Errors
    /// An [`Error`] in an [`io::Error`]: [`Unaligned`](Error::Unaligned), [`Refused`](Error::Refused), [`Failed`](Error::Failed),
    /// [`TimedOut`](Error::TimedOut), [`Gone`](Error::Gone), [`Ended`](Error::Ended), [`NoBuffer`](Error::NoBuffer), [`Driver`](Error::Driver). The
    /// buffer's content is unspecified then.
    pub fn read_at(&mut self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let len = self.fits(offset, buf.len())?;
        if len > 0 {
            let blocks = self.blocks(offset, len);
            self.run(Io::Read(offset, &mut buf[..len]), blocks)?;
        }
        Ok(len)
    }

    /// Reads all of `buf` from `offset` on, in bytes.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at); [`io::ErrorKind::UnexpectedEof`] where the namespace ends before.
    pub fn read_exact_at(&mut self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if self.read_at(buf, offset)? < buf.len() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    /// Writes `buf` from byte `offset` on, and returns the number of bytes written: fewer where the namespace ends before, and 0 from its end on. They are
    /// durable after a [`flush`](Self::flush). It costs what [`read_at`](Self::read_at) does, and a read of each block that is written in part.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at), and [`Error::ReadOnly`]. Any part of it may have been written then; after [`Error::TimedOut`] it may still be
    /// written until the next call begins.
    pub fn write_at(&mut self, buf: &[u8], offset: u64) -> io::Result<usize> {
        if self.namespace.read_only {
            return Err(Error::ReadOnly { disk: self.disk.name().to_owned(), nsid: self.namespace.nsid }.into());
        }
        let len = self.fits(offset, buf.len())?;
        if len == 0 {
            return Ok(0);
        }
        let (Range { start, end }, block) = (self.blocks(offset, len), self.namespace.block_size as usize);
        // Of blocks that are written in part, all of the rest is written as it was. One block may be both the first and the last.
        let (mut first, mut last, last_at) = (Vec::new(), Vec::new(), end - block as u64);
        let partly_last = end > offset + len as u64;
        if start < offset || (partly_last && last_at == start) {
            first.resize(block, 0);
            self.run(Io::Read(start, &mut first), start..start + block as u64)?;
        }
        if partly_last && last_at > start {
            last.resize(block, 0);
            self.run(Io::Read(last_at, &mut last), last_at..end)?;
        }
        self.run(Io::Write([(start, &first), (last_at, &last), (offset, &buf[..len])]), start..end)?;
        Ok(len)
    }

    /// Writes all of `buf` from `offset` on, in bytes.
    ///
    /// # Errors
    /// As [`write_at`](Self::write_at); [`io::ErrorKind::WriteZero`] where the namespace ends before.
    pub fn write_all_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()> {
        if self.write_at(buf, offset)? < buf.len() { Err(io::ErrorKind::WriteZero.into()) } else { Ok(()) }
    }

    /// Makes what was written durable. Where the device has no cache, or cannot be written, there is nothing to do.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    pub fn flush(&mut self) -> io::Result<()> {
        if self.namespace.flush && !self.namespace.read_only {
            self.run(Io::Flush, 0..0)?;
        }
        Ok(())
    }

    /// How much of an access lies within the namespace, in bytes.
    fn fits(&self, offset: u64, len: usize) -> Result<usize, Error> {
        let block = u64::from(self.namespace.block_size);
        let whole = offset.is_multiple_of(block) && (len as u64).is_multiple_of(block);
        if !(whole || self.unaligned) {
            let (disk, nsid) = (self.disk.name().to_owned(), self.namespace.nsid);
            return Err(Error::Unaligned { disk, nsid, offset, len, block_size: self.namespace.block_size });
        }
        let room = self.size().saturating_sub(offset);
        Ok(len.min(usize::try_from(room).unwrap_or(usize::MAX)))
    }

    /// The whole blocks that bytes lie in, within the namespace: in bytes.
    fn blocks(&self, offset: u64, len: usize) -> Range<u64> {
        let block = u64::from(self.namespace.block_size);
        offset / block * block..(offset + len as u64).next_multiple_of(block)
    }

    /// Does it, to whole blocks, and waits until it is done.
    fn run(&mut self, mut io: Io<'_>, blocks: Range<u64>) -> Result<(), Error> {
        let mut call = Call::new(self.tag, blocks, self.piece);
        self.tag += call.pieces;
        // Of a call before that gave up. They are waited for: what they write must not come after what is written now.
        let mut earlier = self.in_flight;
        let (mut renewed, mut wait) = (false, Wait::new(self.timeout));
        loop {
            let mut posted = false;
            while !call.has_failed() && !wait.is_over(1) && earlier == 0 {
                let Some(req) = call.held.take().or_else(|| self.request(&mut call, &io)) else { break };
                let piece = req.tag - call.first;
                match self.queue()?.submit(req) {
                    Ok(()) => (self.in_flight, posted) = (self.in_flight + 1, true),
                    Err(Rejected { req, why: Reject::Full | Reject::Resetting }) => {
                        call.held = Some(req);
                        break;
                    }
                    // Lost in a reset while nobody polled it, perhaps. What is in flight in it ended with that reset, and comes back first.
                    Err(Rejected { req, why: Reject::Gone }) if self.is_lost() && !renewed => {
                        call.held = Some(req);
                        if self.in_flight > 0 {
                            break;
                        }
                        (self.queue, renewed) = (None, true);
                    }
                    Err(Rejected { why, .. }) => call.refused = Some((piece, why)),
                }
            }
            if self.in_flight == 0 && (call.has_failed() || wait.is_over(1) || call.held.is_none()) {
                return self.outcome(call, &wait, &io);
            }
            let (mut ended, mut well) = (0, false);
            let queue = self.queue()?;
            if posted {
                queue.ring();
            }
            queue.poll(64, &mut |done| {
                ended += 1;
                match done.tag.checked_sub(call.first) {
                    Some(piece) => well |= call.done(piece, done.status, &done.data, &mut io),
                    None => earlier = earlier.saturating_sub(1),
                }
            });
            self.in_flight = self.in_flight.saturating_sub(ended);
            if well {
                wait = Wait::new(self.timeout);
                continue;
            }
            wait.polled(ended == 0);
            if wait.is_over(2) {
                return self.outcome(call, &wait, &io);
            }
        }
    }

    /// The next request of a call; none where all are posted, or no buffer is left.
    fn request(&self, call: &mut Call, io: &Io<'_>) -> Option<Request> {
        let piece = call.aborted.last().copied().or_else(|| (call.next < call.pieces).then_some(call.next))?;
        let Range { start, end } = call.range(piece);
        let lba = start / u64::from(self.namespace.block_size);
        let buf = || self.pool.get_len((end - start) as u32);
        let (op, data) = match io {
            Io::Read(..) => (Op::Read { lba }, Data::One(buf()?)),
            Io::Write(slices) => {
                let mut buf = buf()?;
                slices.iter().for_each(|(at, bytes)| overlay(start, buf.bytes_mut(), *at, bytes));
                (Op::Write { lba }, Data::One(buf))
            }
            Io::Flush => (Op::Flush, Data::None),
        };
        if call.aborted.pop().is_none() {
            call.next += 1;
        }
        let deadline = Instant::now().checked_add(self.timeout);
        Some(Request { tag: call.first + piece, nsid: self.namespace.nsid, op, data, deadline })
    }

    /// What came of a call.
    fn outcome(&self, call: Call, wait: &Wait, io: &Io<'_>) -> Result<(), Error> {
        let access = |Range { start, end }: Range<u64>| Access {
            disk: self.disk.name().to_owned(),
            what: match io {
                Io::Read(..) => "read",
                Io::Write(_) => "write",
                Io::Flush => "flush",
            },
            nsid: self.namespace.nsid,
            lba: start / u64::from(self.namespace.block_size),
            blocks: (end - start) / u64::from(self.namespace.block_size),
        };
        let whole = call.blocks.clone();
        let refused = call.refused.as_ref().map_or(u64::MAX, |(piece, _)| *piece);
        if let Some((piece, status)) = call.failed.filter(|(piece, _)| *piece < refused) {
            let access = access(call.range(piece));
            return match status {
                Status::Device(code) => Err(Error::Failed { access, code, text: self.disk.status_text(code) }),
                _ => Err(Error::Gone { access }),
            };
        }
        let state = self.queue.as_ref().map(|queue| queue.state());
        match (call.refused.as_ref().map(|(piece, why)| (access(call.range(*piece)), why.clone())), state) {
            (Some((access, Reject::Gone)), Some(QueueState::Failed(why))) => Err(Error::Ended { access, why }),
            (Some((access, Reject::Gone)), _) => Err(Error::Gone { access }),
            (Some((access, why)), _) => Err(Error::Refused { access, why }),
            _ if self.in_flight == 0 && call.is_posted() => Ok(()),
            _ if wait.is_over(1) => {
                Err(Error::TimedOut { access: access(whole), timeout: self.timeout, in_flight: self.in_flight })
            }
            // Nothing is in flight, and no request could be made.
            _ => Err(Error::NoBuffer { access: access(whole), buffers: self.pool.capacity() }),
        }
    }

    /// The queue; another one where the last was lost.
    fn queue(&mut self) -> Result<&mut dyn BlockQueue, Error> {
        let queue = match self.queue.take() {
            Some(queue) => queue,
            None => self.disk.queue()?,
        };
        Ok(self.queue.insert(queue).as_mut())
    }

    /// Whether the queue will never run again, though its device may.
    fn is_lost(&self) -> bool {
        self.queue.as_ref().is_none_or(|queue| matches!(queue.state(), QueueState::Failed(_)))
    }
}

impl Read for Disk {
    /// [`read_at`](Disk::read_at) the position, which moves on.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.read_at(buf, self.position)?;
        self.position += len as u64;
        Ok(len)
    }
}

impl Write for Disk {
    /// [`write_at`](Disk::write_at) the position, which moves on.
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let len = self.write_at(buf, self.position)?;
        self.position += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Disk::flush(self)
    }
}

impl Seek for Disk {
    /// As of a file: a position behind the end is allowed, and one before the beginning is [`io::ErrorKind::InvalidInput`].
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.size().checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        let outside = || io::Error::new(io::ErrorKind::InvalidInput, format!("{to:?} is not within 64 bits"));
        self.position = position.ok_or_else(outside)?;
        Ok(self.position)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(arena) = &self.own {
            // Where the driver cannot do without it, it stays attached as long as the device is open.
            let _ = self.disk.detach(arena);
        }
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Disk({}, namespace {}, {} bytes)", self.disk.name(), self.namespace.nsid, self.size())
    }
}

/// A call's requests: pieces of the blocks that it covers, by number.
struct Call {
    /// The tag of piece 0.
    first: u64,
    /// In bytes of the namespace. Empty for a flush, which is one piece.
    blocks: Range<u64>,
    /// Bytes of a piece.
    step: u64,
    pieces: u64,
    /// The first that was not posted yet.
    next: u64,
    /// To be posted again.
    aborted: Vec<u64>,
    /// Not taken by the queue yet.
    held: Option<Request>,
    /// The one that it never will take.
    refused: Option<(u64, Reject)>,
    /// The lowest that failed.
    failed: Option<(u64, Status)>,
}

impl Call {
    fn new(first: u64, blocks: Range<u64>, step: u64) -> Self {
        let pieces = (blocks.end - blocks.start).div_ceil(step).max(1);
        Self { first, blocks, step, pieces, next: 0, aborted: Vec::new(), held: None, refused: None, failed: None }
    }

    fn range(&self, piece: u64) -> Range<u64> {
        let start = self.blocks.start + piece * self.step;
        start..self.blocks.end.min(start + self.step)
    }

    fn is_posted(&self) -> bool {
        self.next == self.pieces && self.aborted.is_empty() && self.held.is_none()
    }

    fn has_failed(&self) -> bool {
        self.refused.is_some() || self.failed.is_some()
    }

    /// A request ended. Returns whether the call has come further by that.
    fn done(&mut self, piece: u64, status: Status, data: &Data, io: &mut Io<'_>) -> bool {
        match status {
            Status::Ok => {
                if let Io::Read(at, into) = io {
                    let mut from = self.range(piece).start;
                    for buf in data.bufs() {
                        overlay(*at, into, from, buf.bytes());
                        from += u64::from(buf.len());
                    }
                }
            }
            Status::Aborted => self.aborted.push(piece),
            Status::Device(_) | Status::Gone => {
                if self.failed.is_none_or(|(other, _)| piece < other) {
                    self.failed = Some((piece, status));
                }
            }
        }
        status != Status::Aborted
    }
}

/// Copies what two slices have in common, by where each begins.
fn overlay(at: u64, into: &mut [u8], from: u64, bytes: &[u8]) {
    let (start, end) = (at.max(from), (at + into.len() as u64).min(from + bytes.len() as u64));
    if start < end {
        let within = |begin: u64| (start - begin) as usize..(end - begin) as usize;
        into[within(at)].copy_from_slice(&bytes[within(from)]);
    }
}

/// How long nothing has ended well.
struct Wait {
    since: Instant,
    waited: Duration,
    timeout: Duration,
    polls: u32,
}

impl Wait {
    /// The thread gives its core to others once in so many polls, and looks at the clock.
    const POLLS: u32 = 64;

    fn new(timeout: Duration) -> Self {
        Self { since: Instant::now(), waited: Duration::ZERO, timeout, polls: 0 }
    }

    /// A poll in which nothing ended well; `idle` if nothing ended.
    fn polled(&mut self, idle: bool) {
        self.polls = self.polls.wrapping_add(1);
        if !idle {
            self.waited = self.since.elapsed();
        } else if self.polls.is_multiple_of(Self::POLLS) {
            // The device may be a thread that wants this core.
            std::thread::yield_now();
            self.waited = self.since.elapsed();
        } else {
            std::hint::spin_loop();
        }
    }

    /// Whether that is so many times the timeout.
    fn is_over(&self, times: u32) -> bool {
        self.waited > self.timeout.saturating_mul(times)
    }
}

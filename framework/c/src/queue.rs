//! Queues of disks: submit, ring, poll.

use crate::error::{Failure, Result, caught, entry};
use crate::handle::{self, Out};
use crate::memory::{self, count, wb_buf};
use std::ffi::c_int;
use std::time::{Duration, Instant};
use wholebar::block::{BlockQueue, Completion, Data, Op, QueueState, Reject, Request, Status};

/// Reads blocks into the buffer: as many bytes as are in use there (wb_buf_set_len).
pub const WB_OP_READ: u32 = 0;
/// Writes the buffer's bytes.
pub const WB_OP_WRITE: u32 = 1;
/// Makes what was written durable. No buffer.
pub const WB_OP_FLUSH: u32 = 2;
/// Compares the buffer's bytes with what is stored.
pub const WB_OP_COMPARE: u32 = 3;
/// Sets `blocks` blocks to zero. No buffer.
pub const WB_OP_WRITE_ZEROES: u32 = 4;
/// Says that `blocks` blocks are no longer used. No buffer.
pub const WB_OP_DEALLOCATE: u32 = 5;
/// Has the device check that `blocks` blocks can be read. No buffer.
pub const WB_OP_VERIFY: u32 = 6;

/// The command was done.
pub const WB_STATUS_OK: u32 = 0;
/// The device refused it or failed: `code` says how.
pub const WB_STATUS_DEVICE: u32 = 1;
/// Given up: its time passed, or its queue was reset.
pub const WB_STATUS_ABORTED: u32 = 2;
/// The device is gone.
pub const WB_STATUS_GONE: u32 = 3;

/// The queue can be used.
pub const WB_STATE_RUNNING: c_int = 0;
/// Its device is being reset; it will run again.
pub const WB_STATE_RESETTING: c_int = 1;
/// It cannot be used, for good.
pub const WB_STATE_FAILED: c_int = 2;
/// Its device is gone.
pub const WB_STATE_GONE: c_int = 3;

/// One submission and completion queue of a disk, for one thread at a time. (SPDK: an I/O qpair.)
pub struct wb_block_queue {
    queue: Once<Box<dyn BlockQueue>>,
}

/// One command.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct wb_request {
    /// The caller's; comes back with the completion.
    pub tag: u64,
    /// The namespace.
    pub nsid: u32,
    /// What to do: one of WB_OP_.
    pub op: u32,
    /// The first block.
    pub lba: u64,
    /// The data, which is the command's while it is in flight; NULL where there is none. Its bytes in use are a multiple of the block size.
    pub buf: *mut wb_buf,
    /// How many blocks, where that isn't the data's length: of WB_OP_WRITE_ZEROES, WB_OP_DEALLOCATE, WB_OP_VERIFY.
    pub blocks: u32,
    /// Milliseconds until it is given up; 0 for the driver's own limit.
    pub timeout_ms: u32,
}

/// A finished command.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct wb_completion {
    /// The request's.
    pub tag: u64,
    /// Its buffer, which is the caller's again. NULL where there was none, or where the device may still write to it: then it is never used again.
    pub buf: *mut wb_buf,
    /// How it ended: WB_STATUS_OK, WB_STATUS_DEVICE, WB_STATUS_ABORTED, WB_STATUS_GONE.
    pub status: u32,
    /// Of WB_STATUS_DEVICE: what the device said. NVMe: status code type in bits 10 to 8, status code in bits 7 to 0. virtio: its status byte.
    pub code: u16,
}

/// A queue, and whether a call of it ever panicked: then it is not called again.
pub(crate) struct Once<Q> {
    queue: Q,
    panicked: bool,
}

impl<Q> Once<Q> {
    pub(crate) fn new(queue: Q) -> Self {
        Self { queue, panicked: false }
    }

    pub(crate) fn with<T>(&mut self, call: impl FnOnce(&mut Q) -> T) -> Result<T> {
        if std::mem::replace(&mut self.panicked, true) {
            return Err(Failure::of(libc::ENOTRECOVERABLE, c"a fault of this library ended the queue: free it"));
        }
        let result = caught(|| call(&mut self.queue));
        self.panicked = result.is_err();
        result
    }
}

impl wb_block_queue {
    pub(crate) fn new(queue: Box<dyn BlockQueue>) -> Self {
        Self { queue: Once::new(queue) }
    }
}

/// Queues a command; the device is not told before wb_queue_ring. 0: the buffer is the command's until its completion. Else it stays the caller's: -EAGAIN where the
/// queue is full or being reset, -EINVAL for a command that can never be done, -ENODEV where the device is gone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_queue_submit(queue: *mut wb_block_queue, request: *const wb_request) -> c_int {
    entry(|| {
        // SAFETY: rules 1 and 2: a handle of this type, not freed, and this thread's now.
        let queue = unsafe { handle::get_mut(queue) }?;
        // SAFETY: rule 3: a structure of integers and a pointer.
        let request = unsafe { handle::copy(request) }?.ok_or(Failure::of(libc::EINVAL, c"the request is NULL"))?;
        let op = op(&request)?;
        let data = match request.buf.is_null() {
            true => Data::None,
            // SAFETY: rule 4: a buffer of the caller's.
            false => Data::One(unsafe { memory::take(request.buf) }?),
        };
        let wait = |ms| Instant::now().checked_add(Duration::from_millis(u64::from(ms)));
        let deadline = Some(request.timeout_ms).filter(|ms| *ms > 0).and_then(wait);
        let request = Request { tag: request.tag, nsid: request.nsid, op, data, deadline };
        queue.queue.with(|queue| queue.submit(request))?.map_err(|rejected| {
            // The pointer is the one that the caller has.
            give(rejected.req.data);
            refused(rejected.why)
        })?;
        Ok(0)
    })
}

/// Tells the device of every command submitted since the last call: one doorbell.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_queue_ring(queue: *mut wb_block_queue) -> c_int {
    entry(|| {
        // SAFETY: rules 1 and 2: a handle of this type, not freed, and this thread's now.
        unsafe { handle::get_mut(queue) }?.queue.with(|queue| queue.ring())?;
        Ok(0)
    })
}

/// Takes finished commands, at most `max`; returns how many there were, without waiting. (SPDK: spdk_nvme_qpair_process_completions.)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_queue_poll(queue: *mut wb_block_queue, done: *mut wb_completion, max: usize) -> c_int {
    entry(|| {
        // SAFETY: rules 1 and 2: a handle of this type, not freed, and this thread's now.
        let queue = unsafe { handle::get_mut(queue) }?;
        // SAFETY: rule 3: `max` elements to fill in.
        let mut out = unsafe { Out::new(done, max.min(c_int::MAX as usize)) }?;
        let most = out.room();
        let polled = queue.queue.with(|queue| {
            queue.poll(most, &mut |completion| {
                // One too many would be the driver's fault; its buffer goes home.
                if out.room() > 0 {
                    out.push(finished(completion));
                }
            })
        });
        told(out.filled(), polled)
    })
}

/// How many commands are in flight.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_queue_in_flight(queue: *mut wb_block_queue) -> c_int {
    entry(|| {
        // SAFETY: rules 1 and 2: a handle of this type, not freed, and this thread's now.
        Ok(count(unsafe { handle::get_mut(queue) }?.queue.with(|queue| queue.in_flight())?))
    })
}

/// Whether it can be used: WB_STATE_RUNNING, WB_STATE_RESETTING, WB_STATE_FAILED (wb_error says why), WB_STATE_GONE.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_queue_state(queue: *mut wb_block_queue) -> c_int {
    entry(|| {
        // SAFETY: rules 1 and 2: a handle of this type, not freed, and this thread's now.
        Ok(state(unsafe { handle::get_mut(queue) }?.queue.with(|queue| queue.state())?))
    })
}

/// Ends a queue. Poll until nothing is in flight first: what still is is aborted, and its buffers go home, or are never used again where the device may write to them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_queue_free(queue: *mut wb_block_queue) {
    entry(|| {
        // SAFETY: rules 1 and 2: a handle of this type, not freed, and nobody else's now.
        unsafe { handle::free(queue) };
        Ok(())
    })
}

/// How many were filled in, which the caller has to know whatever else there is; the next call tells of an error again.
pub(crate) fn told<T>(filled: usize, result: Result<T>) -> Result<c_int> {
    match result {
        Err(failure) if filled == 0 => Err(failure),
        _ => Ok(count(filled)),
    }
}

pub(crate) fn state(state: QueueState) -> c_int {
    match state {
        QueueState::Running => WB_STATE_RUNNING,
        QueueState::Resetting => WB_STATE_RESETTING,
        QueueState::Failed(why) => {
            crate::error::remember(Failure::new(libc::EIO, &why));
            WB_STATE_FAILED
        }
        QueueState::Gone => WB_STATE_GONE,
    }
}

fn op(request: &wb_request) -> Result<Op> {
    let wb_request { lba, blocks, .. } = *request;
    Ok(match request.op {
        WB_OP_READ => Op::Read { lba },
        WB_OP_WRITE => Op::Write { lba },
        WB_OP_FLUSH => Op::Flush,
        WB_OP_COMPARE => Op::Compare { lba },
        WB_OP_WRITE_ZEROES => Op::WriteZeroes { lba, blocks },
        WB_OP_DEALLOCATE => Op::Deallocate { lba, blocks },
        WB_OP_VERIFY => Op::Verify { lba, blocks },
        _ => return Err(Failure::of(libc::EINVAL, c"the request's op is none of WB_OP_")),
    })
}

fn refused(why: Reject) -> Failure {
    match why {
        Reject::Full => Failure::of(libc::EAGAIN, c"the queue is full"),
        Reject::Resetting => Failure::of(libc::EAGAIN, c"the queue is being reset"),
        Reject::Gone => Failure::of(libc::ENODEV, c"the device is gone"),
        Reject::Invalid(why) => Failure::new(libc::EINVAL, why),
    }
}

fn finished(completion: Completion) -> wb_completion {
    let (status, code) = match completion.status {
        Status::Ok => (WB_STATUS_OK, 0),
        Status::Device(code) => (WB_STATUS_DEVICE, code),
        Status::Aborted => (WB_STATUS_ABORTED, 0),
        Status::Gone => (WB_STATUS_GONE, 0),
    };
    wb_completion { tag: completion.tag, buf: give(completion.data), status, code }
}

/// Makes data the caller's: commands from C have one buffer or none.
fn give(data: Data) -> *mut wb_buf {
    match data {
        Data::One(buf) => memory::give(buf),
        Data::None | Data::Many(_) => std::ptr::null_mut(),
    }
}

//! The queue trait of storage drivers: post and ring are two verbs, the caller bounds the poll, buffers are owned by the command in flight.

use crate::mem::Buf;
use std::fmt;
use std::time::Instant;

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
    fn poll(&mut self, max: usize, done: &mut dyn FnMut(Completion)) -> usize;

    /// Whether it can be used.
    fn state(&self) -> QueueState;

    /// How many commands are in flight.
    fn in_flight(&self) -> usize;
}

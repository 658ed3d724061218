//! What can go wrong with a blocking access: in the `io::Error` that calls return, [`io::Error::downcast`] and
//! [`get_ref`](io::Error::get_ref) have it.

use std::fmt;
use std::io::{self, ErrorKind};
use std::time::Duration;
use wholebar_core::DriverError;
use wholebar_core::block::Reject;

/// Blocks, and what was to be done with them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// The disk's name.
    pub disk: String,
    /// `read`, `write` or `flush`.
    pub what: &'static str,
    /// The namespace.
    pub nsid: u32,
    /// The first block.
    pub lba: u64,
    /// How many: those of one request, or of all the call where no single request is to blame; none of a flush.
    pub blocks: u64,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { disk, what, nsid, lba, blocks } = self;
        match blocks {
            0 => write!(f, "{disk}: {what} of namespace {nsid}"),
            1 => write!(f, "{disk}: {what} of block {lba} of namespace {nsid}"),
            _ => write!(f, "{disk}: {what} of {blocks} blocks from block {lba} on of namespace {nsid}"),
        }
    }
}

/// Why a [`Disk`](super::Disk) was not opened, or could not do what it was asked to. As an [`io::Error`] it has the kind that is named with it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The disk has no such namespace, or none that can be used: [`ErrorKind::NotFound`].
    #[error("{disk} has no {} that can be used; it has: {}", asked(*.nsid), list(.known))]
    NoNamespace {
        /// The disk's name.
        disk: String,
        /// The one that was asked for, where one was.
        nsid: Option<u32>,
        /// Those that can be used.
        known: Vec<u32>,
    },
    /// A buffer or a request would hold less than a block: [`ErrorKind::InvalidInput`].
    #[error(
        "{disk}: namespace {nsid} has blocks of {block_size} bytes and takes {max_transfer} bytes at once: buffers of {buffer_size} bytes hold none"
    )]
    Unfit {
        /// The disk's name.
        disk: String,
        /// The namespace.
        nsid: u32,
        /// Bytes of its blocks.
        block_size: u32,
        /// Bytes of a request at most.
        max_transfer: u32,
        /// Bytes of a buffer.
        buffer_size: u32,
    },
    /// The access does not begin or end with a block: [`ErrorKind::InvalidInput`].
    #[error(
        "{disk}: {len} bytes from byte {offset} on are not whole blocks of namespace {nsid}, which have {block_size} bytes: open it with `unaligned`"
    )]
    Unaligned {
        /// The disk's name.
        disk: String,
        /// The namespace.
        nsid: u32,
        /// Where the access begins, in bytes.
        offset: u64,
        /// Its bytes.
        len: usize,
        /// Bytes of a block.
        block_size: u32,
    },
    /// The namespace cannot be written: [`ErrorKind::ReadOnlyFilesystem`].
    #[error("{disk}: namespace {nsid} is read-only")]
    ReadOnly {
        /// The disk's name.
        disk: String,
        /// The namespace.
        nsid: u32,
    },
    /// The driver did not take a request, and never will: [`ErrorKind::InvalidInput`]. So it is where the namespace became smaller since.
    #[error("{access} was not taken: {why}")]
    Refused {
        /// Of which blocks.
        access: Access,
        /// Why.
        why: Reject,
    },
    /// The device refused or failed a request: [`ErrorKind::Other`].
    #[error("{access} failed: {text}")]
    Failed {
        /// Of which blocks: the lowest that failed.
        access: Access,
        /// The device's status ([`Status::Device`](wholebar_core::block::Status::Device)).
        code: u16,
        /// Its name.
        text: String,
    },
    /// Nothing ended well for as long as the call may wait: [`ErrorKind::TimedOut`]. Where requests are still in flight, the next call waits for
    /// them first.
    #[error("{access} did not end within {timeout:?}; {in_flight} requests are still in flight")]
    TimedOut {
        /// Of which blocks: all of the call's.
        access: Access,
        /// How long that was.
        timeout: Duration,
        /// Requests that the driver did not give back.
        in_flight: usize,
    },
    /// The device is gone: [`ErrorKind::NotConnected`].
    #[error("{access} was not possible: the device is gone")]
    Gone {
        /// Of which blocks.
        access: Access,
    },
    /// The queue ended for good, and the driver has no other: [`ErrorKind::Other`]. Open the device again.
    #[error("{access} was not possible: {why}")]
    Ended {
        /// Of which blocks.
        access: Access,
        /// Why the queue ended.
        why: String,
    },
    /// All buffers are quarantined, because a device that did not answer may still write them, or somebody else has them:
    /// [`ErrorKind::OutOfMemory`].
    #[error("{access} was not possible: none of the {buffers} buffers is left")]
    NoBuffer {
        /// Of which blocks: all of the call's.
        access: Access,
        /// How many there were.
        buffers: u32,
    },
    /// There is no memory for the buffers: [`ErrorKind::OutOfMemory`].
    #[error(transparent)]
    Memory(#[from] wholebar_core::Error),
    /// The driver has no queue, or could not attach the buffers: [`ErrorKind::Other`].
    #[error(transparent)]
    Driver(#[from] DriverError),
}

fn asked(nsid: Option<u32>) -> String {
    nsid.map_or("namespace".to_owned(), |nsid| format!("namespace {nsid}"))
}

fn list(known: &[u32]) -> String {
    let known: Vec<_> = known.iter().map(u32::to_string).collect();
    if known.is_empty() { "none".to_owned() } else { known.join(", ") }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::NoNamespace { .. } => ErrorKind::NotFound,
            Error::Unfit { .. } | Error::Unaligned { .. } | Error::Refused { .. } => ErrorKind::InvalidInput,
            Error::ReadOnly { .. } => ErrorKind::ReadOnlyFilesystem,
            Error::TimedOut { .. } => ErrorKind::TimedOut,
            Error::Gone { .. } => ErrorKind::NotConnected,
            Error::NoBuffer { .. } | Error::Memory(_) => ErrorKind::OutOfMemory,
            Error::Failed { .. } | Error::Ended { .. } | Error::Driver(_) => ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

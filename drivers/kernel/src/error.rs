//! The errors of the kernel's path: each a sentence with its facts.

use rustix::io::Errno;
use std::io;

/// An error of a disk or a port that is reached through the kernel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The framework's error.
    #[error(transparent)]
    Core(#[from] wholebar_core::Error),
    /// A network interface's.
    #[error(transparent)]
    Net(#[from] crate::net::Error),
    /// The text names nothing.
    #[error("\"kernel:{text}\" names nothing: use kernel:/dev/NAME, kernel:./FILE or kernel:INTERFACE")]
    Target {
        /// What stands behind `kernel:`.
        text: String,
    },
    /// A target has no such parameter.
    #[error("{target} has no parameter {key:?}; it has {known}")]
    Parameter {
        /// The kind of target.
        target: &'static str,
        /// What was given.
        key: String,
        /// Those there are.
        known: &'static str,
    },
    /// A parameter's value makes no sense.
    #[error("{key}={value}: expected {expected}")]
    Value {
        /// The parameter.
        key: &'static str,
        /// What was given.
        value: String,
        /// The values that it takes, in words.
        expected: &'static str,
    },
    /// A port is asked for, and a path is given.
    #[error("kernel:{target} is a disk: a port is a network interface, such as kernel:eth0")]
    NotAPort {
        /// What was given, behind `kernel:`.
        target: String,
    },
    /// A disk is asked for, and an interface is given.
    #[error("kernel:{target} is a network interface: a disk is a path with a slash in it, such as kernel:./{target}")]
    NotADisk {
        /// What was given, behind `kernel:`.
        target: String,
    },
    /// The path cannot be opened.
    #[error("kernel:{target} cannot be opened: {cause}{hint}")]
    Open {
        /// What was given, behind `kernel:`.
        target: String,
        /// The error of open(2), or of a question about the file.
        cause: Errno,
        /// What to do about it.
        hint: &'static str,
    },
    /// The path names something else.
    #[error("kernel:{target} is {kind}: a disk is a block device or a file")]
    Kind {
        /// What was given, behind `kernel:`.
        target: String,
        /// The kind of file: a directory, a pipe, a character device.
        kind: &'static str,
    },
    /// Something else was put in its place while it was opened.
    #[error("kernel:{target} was replaced while it was opened: try again")]
    Replaced {
        /// What was given, behind `kernel:`.
        target: String,
    },
    /// What the system says of blocks makes no sense here.
    #[error(
        "kernel:{target} wants blocks of {block_size} bytes in memory aligned to {memory_align}: powers of two are needed, the former from 512 to 65536, the latter of a page at most; with ,cached it may work"
    )]
    Geometry {
        /// What was given, behind `kernel:`.
        target: String,
        /// Bytes of a block.
        block_size: u32,
        /// Bytes of alignment.
        memory_align: u32,
    },
    /// It has no block.
    #[error("kernel:{target} has {bytes} bytes, and a block has {block_size}: {hint}")]
    Short {
        /// What was given, behind `kernel:`.
        target: String,
        /// Its length in bytes.
        bytes: u64,
        /// Bytes of a block.
        block_size: u32,
        /// What to do about it.
        hint: String,
    },
    /// Completions are to be looked for at the device, and cannot be.
    #[error("kernel:{target}: completions cannot be polled for: {why}; leave ,iopoll out")]
    NoPolling {
        /// What was given, behind `kernel:`.
        target: String,
        /// Why.
        why: String,
    },
    /// NVMe commands cannot be sent.
    #[error("kernel:{target} takes no NVMe commands: {why}")]
    Passthrough {
        /// What was given, behind `kernel:`.
        target: String,
        /// Why.
        why: String,
    },
    /// There is no ring.
    #[error("{disk} has no queue: io_uring cannot be set up: {cause}{hint}")]
    Ring {
        /// The disk.
        disk: String,
        /// The error of io_uring_setup(2).
        cause: io::Error,
        /// What to do about it.
        hint: &'static str,
    },
    /// All queues are in use.
    #[error("{disk} has no queue left: it was opened with {queues}, and all are in use")]
    NoQueue {
        /// The disk.
        disk: String,
        /// With how many it was opened.
        queues: u16,
    },
    /// A reset is asked for.
    #[error("{disk} cannot be reset: the kernel resets its devices itself")]
    NoReset {
        /// The disk.
        disk: String,
    },
    /// This version has no such disks or ports.
    #[error("kernel:{target} cannot be opened: {what} are not built into this version")]
    NotBuiltIn {
        /// What was given, behind `kernel:`.
        target: String,
        /// What is missing.
        what: &'static str,
    },
}

/// A result with an [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of making rings.
    pub(crate) fn ring(disk: &str, sqpoll: bool, cause: io::Error) -> Self {
        let hint = match cause.kind() {
            io::ErrorKind::PermissionDenied if sqpoll => {
                ": before Linux 5.11 ,sqpoll needs root; sysctl kernel.io_uring_disabled (0 allows it), or a container's filter of system calls, forbids io_uring as a whole"
            }
            io::ErrorKind::PermissionDenied => {
                ": sysctl kernel.io_uring_disabled (0 allows it), or a container's filter of system calls, forbids it"
            }
            io::ErrorKind::Unsupported => ": this kernel is built without it, or is older than Linux 5.6",
            io::ErrorKind::OutOfMemory => ": the limit of locked memory (ulimit -l) is too low",
            io::ErrorKind::InvalidInput => {
                ": are there too many entries (32768 is the most), or is the kernel too old for a parameter?"
            }
            _ => "",
        };
        Self::Ring { disk: disk.to_owned(), cause, hint }
    }

    /// Returns whether the target's name is wrong. Nothing was opened then, and a program exits with the code of wrong usage.
    pub fn is_name(&self) -> bool {
        matches!(
            self,
            Self::Target { .. }
                | Self::Parameter { .. }
                | Self::Value { .. }
                | Self::NotAPort { .. }
                | Self::NotADisk { .. }
        )
    }
}

impl From<Error> for wholebar_core::DriverError {
    fn from(error: Error) -> Self {
        Self::new(error)
    }
}

//! What can go wrong with statistics, at either end of a socket.

use std::io;

/// Why statistics are not served, or cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A socket cannot be served: somebody else listens there, something else is there, or the system has no socket or thread.
    #[error("statistics cannot be served on {socket}: {cause}")]
    Serve {
        /// The socket's path.
        socket: String,
        /// What the system said.
        cause: io::Error,
    },
    /// A program's statistics cannot be read.
    #[error("no statistics can be read from {socket}: {why}")]
    Read {
        /// The socket's path.
        socket: String,
        /// What came of it, and what a person can do.
        why: String,
    },
    /// The system has no eventfd or descriptor for the server.
    #[error(transparent)]
    Core(#[from] wholebar_core::Error),
}

/// Of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

//! How long a client waits for its server.

use std::time::Duration;

/// How long a client waits for its server.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How long the server may take to answer one message.
    pub timeout: Duration,
    /// How long all answers together may take while the device is opened, here and again by its driver ([`Opening`](crate::pci::Opening)): each
    /// answer alone may come just in time.
    pub open_timeout: Duration,
}

impl Default for Options {
    /// Returns 5 seconds a message, as QEMU waits, and 30 for opening.
    fn default() -> Self {
        Self::of(Duration::from_secs(5))
    }
}

impl Options {
    /// Returns `timeout` for a message, and for opening 30 seconds, or `timeout` where that is more.
    pub fn of(timeout: Duration) -> Self {
        Self { timeout, open_timeout: timeout.max(Duration::from_secs(30)) }
    }
}

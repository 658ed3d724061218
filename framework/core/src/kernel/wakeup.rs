//! Wakes who waits for a socket: the kernel signals an eventfd once the socket has something to be read.

use crate::irq::EventFd;
use crate::model::Signaller;
use crate::{Error, Result};
use rustix::event::PollFlags;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

/// An eventfd that the kernel signals when a socket can be read, each time that it is asked to.
pub struct Wakeup {
    signaller: Signaller,
    eventfd: Arc<EventFd>,
    /// It was asked, and has not answered yet, as far as that was looked at.
    asked: bool,
}

impl Wakeup {
    /// Creates an eventfd, and what signals it.
    ///
    /// # Errors
    /// [`Error::Io`] where the kernel has no asynchronous I/O, or no more of it (`fs.aio-max-nr`).
    pub fn new() -> Result<Self> {
        let failed = |cause| Error::Io { what: "setting up asynchronous I/O (io_setup)".to_owned(), cause };
        Ok(Self { signaller: Signaller::new().map_err(failed)?, eventfd: Arc::new(EventFd::new()?), asked: false })
    }

    /// Returns the eventfd.
    pub fn eventfd(&self) -> &Arc<EventFd> {
        &self.eventfd
    }

    /// Has the eventfd signalled once `socket`, always the same, can be read: at once where it can be already. Returns `false` where the kernel refuses that. Two
    /// system calls at most.
    ///
    /// What was asked for stays: the signal may come while nobody waits for it any more.
    pub fn arm(&mut self, socket: BorrowedFd<'_>) -> bool {
        if self.asked && self.signaller.take() == 0 {
            return true;
        }
        self.asked = self.signaller.watch(socket, PollFlags::IN, self.eventfd.as_fd());
        self.asked
    }
}

impl fmt::Debug for Wakeup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wakeup").field("asked", &self.asked).finish_non_exhaustive()
    }
}

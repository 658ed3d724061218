//! A server whose queues others poll, on cores of their own: what comes besides, by whoever waits for it.
//!
//! Who polls a queue has the server for the time of a burst alone ([`ModelFunction::with`](crate::model::ModelFunction::with)), and never looks at the
//! socket. Another thread waits for messages and kicks without having the server, and takes it when there are some.

use super::{Server, VirtioModel};
use crate::server::{Peers, RETRY, Session};
use crate::{Error, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// How many messages are handled at once, so that queues come to their turn whatever a front end sends.
const MESSAGES: usize = 64;
/// How long nothing is looked at where the system has no descriptor left, or a front end takes no message.
const AGAIN: Duration = Duration::from_millis(50);

/// What a server waits for, to be waited for without it: see [`Server::waits_for`].
pub struct Wait {
    fds: Vec<(OwnedFd, PollFlags)>,
    /// When to look again in any case.
    again: Option<Duration>,
}

impl Wait {
    /// Waits until something comes for the server, or `stop` can be read. It may return for nothing.
    ///
    /// # Errors
    /// [`Error::Io`] where the system cannot wait.
    pub fn wait(&self, stop: BorrowedFd<'_>) -> Result<()> {
        let mut fds: Vec<_> = self.fds.iter().map(|(fd, events)| PollFd::new(fd, *events)).collect();
        fds.push(PollFd::from_borrowed_fd(stop, PollFlags::IN));
        let time = self.again.map(|time| Timespec::try_from(time).unwrap_or_default());
        match poll(&mut fds, time.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(Error::Io { what: "waiting for a front end".to_owned(), cause: error.into() }),
        }
    }
}

impl<M: VirtioModel + 'static> Server<M> {
    /// Handles what has come from the front end, or takes the next front end, and polls the model. It never waits. Returns whether
    /// anything came: then there may be more.
    pub fn service(&mut self) -> bool {
        let mut came = false;
        for _ in 0..MESSAGES {
            self.function().poll();
            if !self.poll_socket() {
                break;
            }
            came = true;
        }
        came
    }

    /// Returns whether the front end kicks each of its rings: else nothing tells of what is in one, and its queue has to be polled.
    pub fn is_kicked(&self) -> bool {
        self.session.as_ref().is_none_or(Session::<M>::tells_all)
    }

    /// Returns what to wait for until the server is to [service](Self::service) again: descriptors of its own, which stay open whatever becomes of the
    /// front end.
    pub fn waits_for(&self) -> Wait {
        let (fds, again) = match (&self.session, &self.peers) {
            (Some(session), _) => (session.wakes().to_vec(), session.has_untold().then_some(AGAIN)),
            (None, Peers::Listener(listener)) if !listener.is_stuck() => {
                (vec![(listener.as_fd(), PollFlags::IN)], None)
            }
            (None, Peers::Listener(_)) => (Vec::new(), Some(AGAIN)),
            (None, Peers::Listens(..)) => (Vec::new(), Some(RETRY)),
            (None, Peers::None) => (Vec::new(), None),
        };
        let own = |(fd, events): (BorrowedFd<'_>, PollFlags)| Ok((fd.try_clone_to_owned()?, events));
        let fds: io::Result<Vec<_>> = fds.into_iter().map(own).collect();
        let again = if fds.is_err() { Some(AGAIN) } else { again };
        Wait { fds: fds.unwrap_or_default(), again }
    }
}

//! Kicks: eventfds of the front end's, which it signals when something is in a ring. Each signal is seen once, and nothing is read: a read could wait, and
//! whether it would is the front end's to change. The kernel's own vhost reads none of them either.

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The eventfds of rings, watched together.
pub struct Kicks {
    epoll: OwnedFd,
    fds: Vec<Option<OwnedFd>>,
}

impl Kicks {
    /// For so many rings, none of which has one yet.
    ///
    /// # Errors
    /// Where the system has no descriptor left.
    pub fn new(rings: usize) -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)?, fds: (0..rings).map(|_| None).collect() })
    }

    /// Watches `fd` for a ring, in the place of what was watched for it before. One that is signalled already counts as just signalled.
    ///
    /// # Errors
    /// Where the system has no memory left.
    pub fn set(&mut self, ring: usize, fd: Option<OwnedFd>) -> io::Result<()> {
        let Some(place) = self.fds.get_mut(ring) else { return Ok(()) };
        // The front end has the same file open: closing ours does not end the watch.
        if let Some(old) = place.take() {
            epoll::delete(&self.epoll, &old)?;
        }
        if let Some(fd) = fd {
            epoll::add(&self.epoll, &fd, EventData::new_u64(ring as u64), EventFlags::IN | EventFlags::ET)?;
            *place = Some(fd);
        }
        Ok(())
    }

    /// Whether a ring has one.
    pub fn has(&self, ring: usize) -> bool {
        self.fds.get(ring).is_some_and(Option::is_some)
    }

    /// The rings that were kicked since this was asked last.
    pub fn take(&self, mut each: impl FnMut(u16)) {
        let mut events = [const { std::mem::MaybeUninit::<Event>::uninit() }; 64];
        if let Ok((events, _)) = epoll::wait(&self.epoll, &mut events[..], Some(&Timespec::default())) {
            events.iter().for_each(|event| each(event.data.u64() as u16));
        }
    }
}

impl AsFd for Kicks {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    use crate::irq::EventFd;

    fn taken(kicks: &Kicks) -> Vec<u16> {
        let mut taken = Vec::new();
        kicks.take(|ring| taken.push(ring));
        taken
    }

    #[test]
    fn each_kick_is_seen_once_and_what_is_not_watched_any_more_is_not_seen() {
        let mut kicks = Kicks::new(2).unwrap();
        let (one, other) = (EventFd::new().unwrap(), EventFd::new().unwrap());
        let ours = |fd: &EventFd| Some(fd.as_fd().try_clone_to_owned().unwrap());
        one.signal();
        kicks.set(0, ours(&one)).unwrap();
        kicks.set(1, ours(&other)).unwrap();
        assert_eq!((taken(&kicks), taken(&kicks)), (vec![0], vec![]));
        other.signal();
        one.signal();
        one.signal();
        let mut both = taken(&kicks);
        both.sort_unstable();
        assert_eq!((both, taken(&kicks)), (vec![0, 1], vec![]));
        assert_eq!(one.wait(Some(std::time::Duration::ZERO)).unwrap(), Some(3), "nothing is read");
        // The other end has them still.
        kicks.set(0, None).unwrap();
        kicks.set(1, ours(&one)).unwrap();
        assert_eq!(taken(&kicks), [] as [u16; 0]);
        other.signal();
        one.signal();
        assert_eq!(taken(&kicks), [1]);
        kicks.set(7, ours(&one)).unwrap();
    }
}

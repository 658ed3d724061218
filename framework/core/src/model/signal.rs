//! Signals eventfds that somebody else has too, and never waits for them.
//!
//! A write to a full eventfd waits, unless its open file says otherwise; whether it is full, and what the file says, are for everybody to change
//! who has it, at any time: also between a look and the write. What never waits is the kernel's own signal, and the end of an asynchronous
//! read makes one (io_submit(2), `IOCB_FLAG_RESFD`). So an empty read of a file of ours is asked for: it ends at once. A poll of another descriptor ends
//! when that has something to say, which is how sockets are watched without a thread.

use rustix::event::PollFlags;
use rustix::fs::{MemfdFlags, memfd_create};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// A context of the kernel's for asynchronous I/O, and a file to read nothing from.
pub(crate) struct Signaller {
    context: libc::c_ulong,
    file: OwnedFd,
}

/// `struct iocb` of the kernel's `linux/aio_abi.h`. The key and the flags of a read change places with the byte order, and both are 0.
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key_and_flags: [u32; 2],
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    eventfd: u32,
}

/// `struct io_event`: four words, and none is of interest.
type IoEvent = [u64; 4];

const IOCB_CMD_PREAD: u16 = 0;
const IOCB_CMD_POLL: u16 = 5;
const IOCB_FLAG_RESFD: u32 = 1;

impl Signaller {
    /// # Errors
    /// Where the kernel has no asynchronous I/O, or no more of it (`fs.aio-max-nr`).
    pub(crate) fn new() -> io::Result<Self> {
        let file = memfd_create("wholebar-signal", MemfdFlags::CLOEXEC)?;
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes the context's number, and nothing else.
        match unsafe { libc::syscall(libc::SYS_io_setup, 1, &raw mut context) } {
            0 => Ok(Self { context, file }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Signals `eventfd`. One that is full has its event already.
    pub(crate) fn signal(&self, eventfd: BorrowedFd<'_>) {
        self.submit(IOCB_CMD_PREAD, self.file.as_fd(), 0, eventfd);
    }

    /// Has the kernel signal `eventfd` once, as soon as `fd` has one of `events`, or an error, or this is dropped. Returns whether it will: kernels before 4.19
    /// don't.
    pub(crate) fn watch(&self, fd: BorrowedFd<'_>, events: PollFlags, eventfd: BorrowedFd<'_>) -> bool {
        self.submit(IOCB_CMD_POLL, fd, events.bits() as u64, eventfd)
    }

    /// Returns how much of what was asked for has come to its end since this was last called.
    pub(crate) fn take(&self) -> usize {
        let mut done = [IoEvent::default(); 64];
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: there is room for as many as are asked for.
        let taken = unsafe {
            libc::syscall(libc::SYS_io_getevents, self.context, 0, done.len(), done.as_mut_ptr(), &raw const now)
        };
        usize::try_from(taken).unwrap_or(0)
    }

    /// Asks for `opcode` on `file`, at whose end `eventfd` is signalled, and returns whether that was taken. `buffer` is a poll's events; a read has none.
    fn submit(&self, opcode: u16, file: BorrowedFd<'_>, buffer: u64, eventfd: BorrowedFd<'_>) -> bool {
        let mut request = Iocb {
            opcode,
            buffer,
            file: file.as_raw_fd() as u32,
            flags: IOCB_FLAG_RESFD,
            eventfd: eventfd.as_raw_fd() as u32,
            ..Iocb::default()
        };
        // What is done is kept until it is taken, and only so much of it: then there is no room until it was.
        for _ in 0..2 {
            let mut list = [&raw mut request];
            // SAFETY: the context is ours, and the list has one entry, which the kernel has copied when this returns. A read is of no bytes, so that
            // none are written; a poll writes none.
            if unsafe { libc::syscall(libc::SYS_io_submit, self.context, 1, list.as_mut_ptr()) } == 1 {
                return true;
            }
            self.take();
        }
        false
    }
}

impl Drop for Signaller {
    fn drop(&mut self) {
        // SAFETY: ours, and nobody uses it any more.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn an_eventfd_that_would_block_is_not_waited_for() {
        let Ok(signaller) = Signaller::new() else { return eprintln!("this kernel has no asynchronous I/O") };
        let count = |fd: &OwnedFd| {
            let mut count = [0; 8];
            rustix::io::read(fd, &mut count).map(|_| u64::from_ne_bytes(count)).unwrap_or(0)
        };
        let open = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        // More than there is room for without being taken.
        (0..10_000).for_each(|_| signaller.signal(open.as_fd()));
        assert_eq!(count(&open), 10_000);
        let blocking = eventfd(0, EventfdFlags::empty()).unwrap();
        signaller.signal(blocking.as_fd());
        assert_eq!(count(&blocking), 1);
        rustix::io::write(&blocking, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        signaller.signal(blocking.as_fd());
        signaller.signal(blocking.as_fd());
        assert!(count(&blocking) >= u64::MAX - 1);
        // What is no eventfd gets nothing.
        signaller.signal(signaller.file.as_fd());
        signaller.signal(open.as_fd());
        assert_eq!(count(&open), 1);
    }

    #[test]
    fn what_a_socket_has_to_say_is_told_once() {
        let Ok(signaller) = Signaller::new() else { return eprintln!("this kernel has no asynchronous I/O") };
        let told = crate::irq::EventFd::new().unwrap();
        let wait = || told.wait(Some(std::time::Duration::from_secs(60))).unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        signaller.watch(ours.as_fd(), PollFlags::RDHUP, told.as_fd());
        signaller.watch(ours.as_fd(), PollFlags::IN, told.as_fd());
        theirs.write_all(b"x").unwrap();
        assert_eq!(wait(), Some(1));
        theirs.write_all(b"y").unwrap();
        drop(theirs);
        assert_eq!(wait(), Some(1), "the end is told, and not the second message");
        // It may be there already.
        signaller.watch(ours.as_fd(), PollFlags::IN, told.as_fd());
        assert_eq!(wait(), Some(1));
        let (ours, theirs) = UnixStream::pair().unwrap();
        signaller.watch(ours.as_fd(), PollFlags::IN, told.as_fd());
        drop(signaller);
        assert_eq!(told.take(), 1);
        drop(theirs);
        assert_eq!(told.take(), 0, "it is not watched any more");
    }
}

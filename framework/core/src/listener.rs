//! Unix sockets for servers: a [`Listener`], whose socket is created where no other server listens and removed in the end, and
//! [`connect`] with a time limit. This file does *not* know what is said over them.
//!
//! Nothing is removed by its name after a check: between the two, something else may have come there. The file of that name is
//! moved to a directory of our own first, checked there, and put back where it is not what it was taken for.
//! And nothing is there before it can be used: a socket gets its name once it listens, so that whoever sees its file can connect.

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, RenameFlags, flock, open, renameat_with};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A listening Unix socket, which never blocks.
///
/// Its file is removed when it is dropped, where that is still its own.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
    /// Which file it is. Another one isn't ours to remove; nor may this be, since the numbers of one that is gone are used again.
    file: (u64, u64),
    /// The last client could not be let in, and waits.
    stuck: AtomicBool,
}

/// As good as for ever, and still a point in time.
pub(crate) const A_YEAR: Duration = Duration::from_secs(366 * 24 * 3600);

impl Listener {
    /// Listens on `path`. A socket that a dead server left there is replaced; any other file there is not.
    ///
    /// Once the file is there, clients can connect. The system's lists of sockets (`ss -xl`) have the name that it was made under: the path and a
    /// suffix, or, of a path that leaves no room for one, another name in its directory.
    ///
    /// Where another process creates a socket in the same directory, this may take up to ten seconds.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] where another server listens, or something that is no socket is there; [`io::ErrorKind::InvalidInput`] where
    /// the path has more than 107 bytes; another [`io::Error`] of the system else.
    pub fn bind(path: &Path) -> io::Result<Self> {
        /// How often something else may come there meanwhile.
        const TRIES: usize = 16;
        SocketAddrUnix::new(path).map_err(|e| match e {
            Errno::NAMETOOLONG => io::Error::new(io::ErrorKind::InvalidInput, "a socket's path has 107 bytes at most"),
            e => e.into(),
        })?;
        let _alone = alone(path)?;
        let mut listener = Self::beside(path)?;
        for _ in 0..TRIES {
            match give_name(&listener.path, path) {
                Ok(()) => {
                    listener.path = path.to_owned();
                    return Ok(listener);
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
            must_be_dead(path)?;
            take_away(path, must_be_dead)?;
        }
        Err(taken("what is there changes all the time"))
    }

    /// Listens in the directory of `path`, under a name that nothing has there.
    fn beside(path: &Path) -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let Some(name) = path.file_name() else {
            identity(path)?;
            return Err(taken("something that is not a socket is there"));
        };
        let listener = socket()?;
        loop {
            let suffix = format!(".{:x}.{:x}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let mut there = path.with_file_name([name, suffix.as_ref()].join(OsStr::new("")));
            if SocketAddrUnix::new(&there).is_err() {
                there.set_file_name(suffix);
            }
            let (address, _dir) = address(&there)?;
            match rustix::net::bind(&listener, &address) {
                Ok(()) => {}
                Err(Errno::ADDRINUSE) => continue,
                Err(e) => return Err(e.into()),
            }
            let file = identity(&there)?;
            let listener = Self { listener: listener.into(), path: there, file, stuck: AtomicBool::new(false) };
            // As many may wait as the system lets any server have.
            rustix::net::listen(&listener, i32::MAX)?;
            return Ok(listener);
        }
    }

    /// Returns the next client, if one waits and can be accepted. It does not block; the stream does.
    pub fn accept(&self) -> Option<UnixStream> {
        match self.listener.accept() {
            Ok((stream, _)) => {
                self.stuck.store(false, Ordering::Relaxed);
                Some(stream)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                self.stuck.store(false, Ordering::Relaxed);
                None
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) => None,
            Err(error) => {
                // Once, however often it is tried.
                if !self.stuck.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "a client cannot be let in; it waits until that is over");
                }
                None
            }
        }
    }

    /// Returns whether a client waits that cannot be accepted, since the system has no descriptor or memory left. Waiting for the socket is of no use
    /// then: it is readable all the time.
    pub fn is_stuck(&self) -> bool {
        self.stuck.load(Ordering::Relaxed)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|file| file == self.file)
            && let Err(error) = take_away(&self.path, |there| leads_to(there, &self.listener))
        {
            tracing::debug!(%error, path = %self.path.display(), "the socket stays");
        }
    }
}

/// Says so unless who connects to `path` comes to `listener`, which is about to end: whoever waits there is let go.
fn leads_to(path: &Path, listener: &UnixListener) -> io::Result<()> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("wholebar.{:x}.{:x}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    while listener.accept().is_ok() {}
    let client = socket()?;
    rustix::net::bind(&client, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
    let (address, _dir) = address(path)?;
    rustix::net::connect(&client, &address)?;
    while let Ok((_, who)) = listener.accept() {
        if who.as_abstract_name() == Some(name.as_bytes()) {
            return Ok(());
        }
    }
    Err(taken("another server listens there"))
}

/// Connects to a server at `path`, which may be longer than an address, without ever waiting longer than `timeout`: where the server's backlog is
/// full, `connect(2)` blocks.
///
/// The stream does not block, unless it is told to.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] where nothing is there; [`io::ErrorKind::ConnectionRefused`] where nobody listens;
/// [`io::ErrorKind::InvalidInput`] where something else than a socket is there; [`io::ErrorKind::WouldBlock`] where the backlog was full all the time; another [`io::Error`] of the system else.
pub fn connect(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let ((address, _dir), fd) = (address(path)?, socket()?);
    let deadline = Instant::now() + timeout.min(A_YEAR);
    loop {
        match rustix::net::connect(&fd, &address) {
            Ok(()) => return Ok(UnixStream::from(fd)),
            // The backlog is full. The kernel tells nobody when that ends.
            Err(Errno::AGAIN) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            // What the kernel says of a file that is no socket, too.
            Err(Errno::CONNREFUSED) if fs::metadata(path).is_ok_and(|found| !found.file_type().is_socket()) => {
                let why = "something that is not a socket is there";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            }
            Err(e) => return Err(e.into()),
        }
    }
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

/// How a socket is connected to whose path may be longer than an address: by its directory, which is open as long as that is needed.
fn address(path: &Path) -> io::Result<(SocketAddrUnix, Option<OwnedFd>)> {
    match (SocketAddrUnix::new(path), path.parent(), path.file_name()) {
        (Err(Errno::NAMETOOLONG), Some(dir), Some(name)) => {
            let dir = open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            let short = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
            Ok((SocketAddrUnix::new(&short)?, Some(dir)))
        }
        (address, ..) => Ok((address?, None)),
    }
}

fn taken(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::AddrInUse, why)
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

/// Says what is at `path`, unless that is nothing, or a socket that nobody listens on.
fn must_be_dead(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(file) if file.file_type().is_socket() => {}
        Ok(_) => return Err(taken("something that is not a socket is there")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    }
    match connect(path, Duration::ZERO) {
        // Or so many wait for it that no further one can.
        Ok(_) => Err(taken("another server listens there")),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(taken("another server listens there")),
        Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => Ok(()),
        Err(e) => Err(e),
    }
}

/// Removes what is at `path`, if it is what `check` lets pass; anything else stays, or comes back, and the check's error says why.
fn take_away(path: &Path, check: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let dir = own_dir(path)?;
    // A short name: a socket's path may have 107 bytes.
    let there = dir.join("s");
    let done = match fs::rename(path, &there) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
        Ok(()) => match check(&there) {
            Ok(()) => fs::remove_file(&there),
            Err(why) => put_back(&there, path).and(Err(why)),
        },
    };
    let _ = fs::remove_dir(dir);
    done
}

/// Gives a file its name back; where something else has it by now, nothing is lost either.
fn put_back(there: &Path, path: &Path) -> io::Result<()> {
    let done = give_name(there, path);
    done.map_err(|e| taken(&format!("what was there is now {}, since it could not be put back: {e}", there.display())))
}

/// Moves a file to `path`, if nothing has that name.
fn give_name(there: &Path, path: &Path) -> io::Result<()> {
    match renameat_with(CWD, there, CWD, path, RenameFlags::NOREPLACE) {
        // Not every file system can.
        Err(Errno::INVAL | Errno::NOSYS) => fs::hard_link(there, path).and_then(|()| fs::remove_file(there)),
        done => Ok(done?),
    }
}

/// A directory beside `path` in which nobody else does anything.
fn own_dir(path: &Path) -> io::Result<PathBuf> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let name = format!(".{:x}.{:x}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = path.with_file_name(name);
        match fs::DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => return Ok(dir),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
}

/// Keeps other servers from coming to the same directory meanwhile: what one of them has taken away to look at is missing until it is put back. Where
/// directories can't be locked, that has to be good enough.
fn alone(path: &Path) -> io::Result<Option<OwnedFd>> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(dir) = open(dir, flags, Mode::empty()) else { return Ok(None) };
    let deadline = Instant::now() + PATIENCE;
    loop {
        match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(dir)),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            Err(Errno::WOULDBLOCK) => return Err(taken("somebody keeps the directory locked (flock)")),
            Err(_) => return Ok(None),
        }
    }
}

#[cfg(test)]
#[cfg(not(miri))]
mod tests {
    use super::*;

    fn precious(path: &Path) {
        fs::write(path, "precious").unwrap();
    }

    fn is_precious(path: &Path) -> bool {
        fs::read(path).is_ok_and(|text| text == b"precious")
    }

    #[test]
    fn who_connects_is_told_that_something_is_no_socket() {
        let dir = tempfile::tempdir().unwrap();
        precious(&dir.path().join("file"));
        drop(UnixListener::bind(dir.path().join("dead")).unwrap());
        for (name, kind) in [
            ("file", io::ErrorKind::InvalidInput),
            ("", io::ErrorKind::InvalidInput),
            ("dead", io::ErrorKind::ConnectionRefused),
            ("none", io::ErrorKind::NotFound),
        ] {
            let error = connect(&dir.path().join(name), Duration::ZERO).unwrap_err();
            assert_eq!(error.kind(), kind, "{name:?}: {error}");
        }
    }

    #[test]
    fn what_came_there_after_the_check_is_put_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        must_be_dead(&path).unwrap();
        // In between, a file of somebody's.
        precious(&dir.path().join("file"));
        fs::rename(dir.path().join("file"), &path).unwrap();
        let error = take_away(&path, must_be_dead).unwrap_err();
        assert!(error.to_string().contains("not a socket"), "{error}");
        assert!(is_precious(&path));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "and nothing is left over");
        // Or a server.
        fs::remove_file(&path).unwrap();
        let server = UnixListener::bind(&path).unwrap();
        assert!(take_away(&path, must_be_dead).unwrap_err().to_string().contains("another server"));
        assert!(UnixStream::connect(&path).is_ok());
        drop(server);
        take_away(&path, must_be_dead).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        take_away(&path, must_be_dead).expect("nothing is gone already");
    }

    #[test]
    fn where_the_name_is_taken_meanwhile_both_files_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        precious(&path);
        let error = take_away(&path, |_| {
            fs::write(&path, "as precious").unwrap();
            Err(taken("no"))
        });
        let error = error.unwrap_err().to_string();
        assert_eq!(fs::read(&path).unwrap(), b"as precious");
        let kept = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).find(|p| p.is_dir()).unwrap().join("s");
        assert!(is_precious(&kept) && error.contains(kept.to_str().unwrap()), "{error}");
    }

    #[test]
    fn nothing_is_lost_however_things_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let (path, file) = (dir.path().join("socket"), dir.path().join("file"));
        for _ in 0..500 {
            drop(UnixListener::bind(&path).unwrap());
            precious(&file);
            let listener = std::thread::scope(|both| {
                both.spawn(|| fs::rename(&file, &path).unwrap());
                Listener::bind(&path)
            });
            drop(listener);
            assert!(is_precious(&path));
            fs::remove_file(&path).unwrap();
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn who_sees_the_file_can_connect() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        // Without a listener there never is a file: the client ends all the same.
        let failed = AtomicBool::new(false);
        for round in 0..2000 {
            let (listener, client) = std::thread::scope(|both| {
                let client = both.spawn(|| {
                    loop {
                        match UnixStream::connect(&path) {
                            Err(e) if e.kind() == io::ErrorKind::NotFound && !failed.load(Ordering::Relaxed) => {}
                            done => return done,
                        }
                    }
                });
                let listener = Listener::bind(&path);
                failed.store(listener.is_err(), Ordering::Relaxed);
                (listener, client.join().unwrap())
            });
            client.unwrap_or_else(|e| panic!("round {round}: {e}"));
            drop(listener);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_socket_that_gets_no_name_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        precious(&path);
        for path in [&path, dir.path(), &path.join("below"), &dir.path().join("none/s"), Path::new(""), Path::new("/")]
        {
            let error = Listener::bind(path).unwrap_err();
            assert!(!error.to_string().is_empty(), "{error}");
        }
        assert!(is_precious(&path));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    /// Its numbers may be those of another one that is gone.
    #[test]
    fn what_was_taken_for_ours_is_put_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let mut listener = Listener::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        precious(&path);
        listener.file = identity(&path).unwrap();
        drop(listener);
        assert!(is_precious(&path));
        // Or another server's.
        fs::remove_file(&path).unwrap();
        let mut listener = Listener::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let other = Listener::bind(&path).unwrap();
        listener.file = other.file;
        drop(listener);
        assert!(UnixStream::connect(&path).is_ok());
        drop(other);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_name_may_be_as_long_as_an_address_can_be() {
        let dir = tempfile::tempdir().unwrap();
        let longest = dir.path().join("s".repeat(106 - dir.path().as_os_str().len()));
        assert_eq!(longest.as_os_str().len(), 107);
        let listener = Listener::bind(&longest).unwrap();
        assert!(UnixStream::connect(&longest).is_ok() && listener.accept().is_some());
        drop(listener);
        drop(UnixListener::bind(&longest).unwrap());
        Listener::bind(&longest).map(drop).expect("a dead one is replaced");
        let error = Listener::bind(&dir.path().join("s".repeat(107))).map(drop).unwrap_err();
        assert!(error.to_string().contains("107 bytes"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_server_whose_backlog_is_full_is_alive() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let address = SocketAddrUnix::new(&path).unwrap();
        let socket =
            || rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK, None).unwrap();
        let server = socket();
        rustix::net::bind(&server, &address).unwrap();
        rustix::net::listen(&server, 0).unwrap();
        let waiting: Vec<_> =
            (0..16).map(|_| socket()).take_while(|s| rustix::net::connect(s, &address).is_ok()).collect();
        assert!((1..16).contains(&waiting.len()));
        let error = Listener::bind(&path).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("another server listens there"), "{error}");
    }
}

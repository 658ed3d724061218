//! A Unix socket that clients come in by: made where nobody else listens, removed when it is done.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Where clients come in.
pub(crate) struct Door {
    listener: UnixListener,
    path: PathBuf,
    /// Which file `path` was when we made it: another one isn't ours to remove.
    file: (u64, u64),
}

impl Door {
    /// Listens on `path`. A socket that a dead server left there is replaced; what anybody else has there is not.
    pub fn open(path: &Path) -> io::Result<Self> {
        let listener = match UnixListener::bind(path) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                if !fs::symlink_metadata(path)?.file_type().is_socket() {
                    return Err(io::Error::new(e.kind(), "something that is not a socket is there"));
                }
                match UnixStream::connect(path) {
                    Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
                    Err(e) => return Err(e),
                    Ok(_) => return Err(io::Error::new(e.kind(), "another server listens there")),
                }
                UnixListener::bind(path)?
            }
            other => other?,
        };
        listener.set_nonblocking(true)?;
        let file = fs::symlink_metadata(path)?;
        Ok(Self { listener, path: path.to_owned(), file: (file.dev(), file.ino()) })
    }

    /// The next client, if one waits.
    pub fn accept(&self) -> Option<UnixStream> {
        match self.listener.accept() {
            Ok((stream, _)) => Some(stream),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => {
                tracing::warn!(%error, "a client could not be let in");
                None
            }
        }
    }
}

impl AsFd for Door {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|f| (f.dev(), f.ino()) == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

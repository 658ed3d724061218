//! What a disk's blocks are kept in: this process's memory, a file, or nothing at all. Knows bytes, not blocks or commands.

use crate::params::Given;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use wholebar_core::model::Dma;

/// After how many bytes a poll of a disk ends, with the request that it is at: others are waiting.
pub(crate) const BUDGET: u64 = 1 << 20;
/// What a chunk of sparse memory holds, in bytes.
const CHUNK: usize = 64 << 10;
/// Chunks that one directory of them covers.
const CHUNKS: u64 = 1024;

/// What a model's blocks are kept in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// Memory, taken as it is written.
    Ram,
    /// Nothing: no data moves.
    Null,
    /// A file or block device.
    File {
        /// Where.
        path: PathBuf,
        /// Open it for reading only; writes are refused as write protected.
        read_only: bool,
    },
}

/// The parameters that say what a backing is, as they were given.
#[derive(Default)]
pub(crate) struct BackingParams {
    file: Option<PathBuf>,
    read_only: Option<bool>,
    backing: Option<Backing>,
}

impl BackingParams {
    /// Takes `file`, `ro` or `backing`.
    pub(crate) fn set(&mut self, given: &Given<'_>) -> Result<()> {
        match (given.key, given.value) {
            ("backing", "ram") => self.backing = Some(Backing::Ram),
            ("backing", "null") => self.backing = Some(Backing::Null),
            ("file", path) if !path.is_empty() => self.file = Some(path.into()),
            ("ro", _) => self.read_only = Some(given.flag()?),
            _ => return Err(given.bad()),
        }
        Ok(())
    }

    /// What they come to.
    pub(crate) fn backing(self) -> Result<Backing> {
        match (self.file, self.backing, self.read_only) {
            (Some(path), None, read_only) => Ok(Backing::File { path, read_only: read_only.unwrap_or(false) }),
            (Some(_), Some(_), _) => Err(Error::Conflict("file= and backing= exclude each other".to_owned())),
            (None, _, Some(_)) => Err(Error::Conflict("ro= goes with file=".to_owned())),
            (None, backing, None) => Ok(backing.unwrap_or(Backing::Ram)),
        }
    }
}

/// Why data could not be read, written or compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failed {
    /// It could not be read from the backing.
    Read,
    /// It could not be written to the backing.
    Write,
    /// It is not the same.
    Differs,
    /// The host's memory could not be accessed as asked.
    Transfer,
}

/// What blocks are kept in.
pub(crate) enum Media {
    /// Nothing: writes go nowhere, reads leave the host's memory as it is.
    Null,
    /// Memory, from the first write to a chunk on; zeroes before that.
    Ram(Ram),
    /// A file or a block device.
    File(FileMedia),
}

/// Sparse memory: directories of chunks, by their number.
#[derive(Default)]
pub(crate) struct Ram(BTreeMap<u64, Box<[Chunk]>>);

/// What a chunk holds, if it holds anything.
type Chunk = Option<Box<[u8]>>;

/// A file, and the memory its data passes through: a model has no plain reference to the host's memory.
pub(crate) struct FileMedia {
    file: File,
    bounce: Box<[u8]>,
}

impl FileMedia {
    /// Opens `path`, which must have `size` bytes where that is said, or else a block of `least`; returns it with the size it is used for.
    pub(crate) fn open(path: &Path, read_only: bool, size: Option<u64>, least: u64) -> Result<(Self, u64)> {
        let failed = |source: std::io::Error| {
            let hint = match source.kind() {
                std::io::ErrorKind::NotFound => " (make it first: truncate -s 64M FILE)",
                std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem if !read_only => {
                    " (ro=1 opens it for reading only)"
                }
                _ => "",
            };
            Error::Backing { path: path.to_owned(), cause: source, hint }
        };
        let mut file = File::options().read(true).write(!read_only).open(path).map_err(failed)?;
        let actual = file.seek(SeekFrom::End(0)).map_err(failed)?;
        let size = size.unwrap_or(actual);
        if size > actual || actual < least {
            return Err(Error::Short { path: path.to_owned(), actual, asked: size.max(least) });
        }
        Ok((Self { file, bounce: vec![0; CHUNK].into() }, size))
    }
}

impl Media {
    /// Opens a backing for `size` bytes; where that isn't said, for a file's own size, or a gigabyte. A file has `least` bytes.
    /// Returns it with its size, and whether it may only be read.
    pub(crate) fn open(backing: &Backing, size: Option<u64>, least: u64) -> Result<(Self, u64, bool)> {
        let usual = size.unwrap_or(1 << 30);
        Ok(match backing {
            Backing::Ram => (Self::Ram(Ram::default()), usual, false),
            Backing::Null => (Self::Null, usual, false),
            Backing::File { path, read_only } => {
                let (file, size) = FileMedia::open(path, *read_only, size, least)?;
                (Self::File(file), size, *read_only)
            }
        })
    }

    /// Fills `to` from `at` on.
    #[inline]
    pub(crate) fn read(&mut self, at: u64, to: &Dma<'_>) -> Result<(), Failed> {
        match self {
            Self::Null => Ok(()),
            Self::Ram(ram) => pieces(at, to.len(), |piece| {
                delivered(match ram.chunk(piece.chunk) {
                    Some(chunk) => to.write(piece.done, &chunk[piece.start..piece.start + piece.len]),
                    None => to.fill(piece.done, piece.len as u64, 0),
                })
            }),
            Self::File(FileMedia { file, bounce }) => pieces(at, to.len(), |piece| {
                let bytes = &mut bounce[..piece.len];
                file.read_exact_at(bytes, at + piece.done).map_err(|_| Failed::Read)?;
                delivered(to.write(piece.done, bytes))
            }),
        }
    }

    /// Stores what `from` holds at `at`.
    #[inline]
    pub(crate) fn write(&mut self, at: u64, from: &Dma<'_>) -> Result<(), Failed> {
        match self {
            Self::Null => Ok(()),
            Self::Ram(ram) => pieces(at, from.len(), |piece| {
                let chunk = ram.chunk_mut(piece.chunk)?;
                delivered(from.read(piece.done, &mut chunk[piece.start..piece.start + piece.len]))
            }),
            Self::File(FileMedia { file, bounce }) => pieces(at, from.len(), |piece| {
                let bytes = &mut bounce[..piece.len];
                delivered(from.read(piece.done, bytes))?;
                file.write_all_at(bytes, at + piece.done).map_err(|_| Failed::Write)
            }),
        }
    }

    /// Compares what `with` holds with what is at `at`. Nothing equals everything.
    pub(crate) fn compare(&mut self, at: u64, with: &Dma<'_>) -> Result<(), Failed> {
        const STEP: usize = 512;
        let mut host = [0; STEP];
        let mut check = |piece: &Piece, stored: Option<&[u8]>| {
            for start in (0..piece.len).step_by(STEP) {
                let n = STEP.min(piece.len - start);
                delivered(with.read(piece.done + start as u64, &mut host[..n]))?;
                let same = match stored {
                    Some(stored) => stored[start..start + n] == host[..n],
                    None => host[..n].iter().all(|b| *b == 0),
                };
                if !same {
                    return Err(Failed::Differs);
                }
            }
            Ok(())
        };
        match self {
            Self::Null => Ok(()),
            Self::Ram(ram) => pieces(at, with.len(), |piece| {
                let stored = ram.chunk(piece.chunk).map(|c| &c[piece.start..piece.start + piece.len]);
                check(&piece, stored)
            }),
            Self::File(FileMedia { file, bounce }) => pieces(at, with.len(), |piece| {
                let bytes = &mut bounce[..piece.len];
                file.read_exact_at(bytes, at + piece.done).map_err(|_| Failed::Read)?;
                check(&piece, Some(bytes))
            }),
        }
    }

    /// Copies what is at `at` into `to`.
    pub(crate) fn load(&mut self, at: u64, to: &mut [u8]) -> Result<(), Failed> {
        let len = to.len() as u64;
        match self {
            Self::Null => Ok(()),
            Self::Ram(ram) => pieces(at, len, |piece| {
                let to = &mut to[piece.done as usize..][..piece.len];
                match ram.chunk(piece.chunk) {
                    Some(chunk) => to.copy_from_slice(&chunk[piece.start..piece.start + piece.len]),
                    None => to.fill(0),
                }
                Ok(())
            }),
            Self::File(FileMedia { file, .. }) => file.read_exact_at(to, at).map_err(|_| Failed::Read),
        }
    }

    /// Stores `from` at `at`.
    pub(crate) fn store(&mut self, at: u64, from: &[u8]) -> Result<(), Failed> {
        match self {
            Self::Null => Ok(()),
            Self::Ram(ram) => pieces(at, from.len() as u64, |piece| {
                let chunk = ram.chunk_mut(piece.chunk)?;
                chunk[piece.start..piece.start + piece.len].copy_from_slice(&from[piece.done as usize..][..piece.len]);
                Ok(())
            }),
            Self::File(FileMedia { file, .. }) => file.write_all_at(from, at).map_err(|_| Failed::Write),
        }
    }

    /// Makes `len` bytes at `at` zero, giving back what held them where that is easy.
    pub(crate) fn zero(&mut self, at: u64, len: u64) -> Result<(), Failed> {
        match self {
            Self::Null => Ok(()),
            Self::Ram(ram) => {
                ram.zero(at, len);
                Ok(())
            }
            Self::File(FileMedia { file, bounce }) => {
                use rustix::fs::{FallocateFlags, fallocate};
                if fallocate(&*file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, len).is_ok() {
                    return Ok(());
                }
                bounce.fill(0);
                pieces(at, len, |piece| {
                    file.write_all_at(&bounce[..piece.len], at + piece.done).map_err(|_| Failed::Write)
                })
            }
        }
    }

    /// Says that `len` bytes at `at` are no longer used. They are zero afterwards, where that costs nothing.
    pub(crate) fn deallocate(&mut self, at: u64, len: u64) -> Result<(), Failed> {
        match self {
            Self::Null => Ok(()),
            Self::Ram(ram) => {
                ram.zero(at, len);
                Ok(())
            }
            Self::File(FileMedia { file, .. }) => {
                use rustix::fs::{FallocateFlags, fallocate};
                let _ = fallocate(&*file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, len);
                Ok(())
            }
        }
    }

    /// Checks that `len` bytes at `at` can be read.
    pub(crate) fn verify(&mut self, at: u64, len: u64) -> Result<(), Failed> {
        let Self::File(FileMedia { file, bounce }) = self else { return Ok(()) };
        pieces(at, len, |piece| file.read_exact_at(&mut bounce[..piece.len], at + piece.done).map_err(|_| Failed::Read))
    }

    /// What it costs to make something durable, or to deallocate it, as if it were so many bytes: a file's system has work to do.
    pub(crate) fn cost(&self) -> u64 {
        if matches!(self, Self::File(_)) { BUDGET } else { 0 }
    }

    /// Makes what was written durable.
    pub(crate) fn flush(&mut self) -> Result<(), Failed> {
        match self {
            Self::Null | Self::Ram(_) => Ok(()),
            Self::File(FileMedia { file, .. }) => file.sync_data().map_err(|_| Failed::Write),
        }
    }

    /// Whether deallocated bytes read as zeroes, always.
    pub(crate) fn zeroes_deallocated(&self) -> bool {
        matches!(self, Self::Ram(_))
    }
}

impl Ram {
    #[inline]
    fn chunk(&self, index: u64) -> Option<&[u8]> {
        self.0.get(&(index / CHUNKS))?.get((index % CHUNKS) as usize)?.as_deref()
    }

    /// A write fails where this process has no memory for it: how much there is to hold, a client decides.
    #[inline]
    fn chunk_mut(&mut self, index: u64) -> Result<&mut [u8], Failed> {
        let directory = match self.0.entry(index / CHUNKS) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(free) => free.insert(filled(CHUNKS as usize, || None)?),
        };
        let chunk = &mut directory[(index % CHUNKS) as usize];
        if chunk.is_none() {
            *chunk = Some(filled(CHUNK, || 0)?);
        }
        chunk.as_deref_mut().ok_or(Failed::Write)
    }

    /// Drops whole chunks, zeroes parts of those there are. A huge range costs no more than what is there.
    fn zero(&mut self, at: u64, len: u64) {
        let (end, chunk) = (at + len, CHUNK as u64);
        let directories = at / chunk / CHUNKS..end.div_ceil(chunk * CHUNKS);
        for (number, directory) in self.0.range_mut(directories) {
            for (slot, start) in directory.iter_mut().zip((number * CHUNKS * chunk..).step_by(CHUNK)) {
                let (from, to) = (at.max(start), end.min(start + chunk));
                if to.saturating_sub(from) == chunk {
                    *slot = None;
                } else if let Some(bytes) = slot
                    && from < to
                {
                    bytes[(from - start) as usize..(to - start) as usize].fill(0);
                }
            }
        }
    }
}

fn filled<T>(len: usize, with: impl FnMut() -> T) -> Result<Box<[T]>, Failed> {
    let mut all = Vec::new();
    all.try_reserve_exact(len).map_err(|_| Failed::Write)?;
    all.resize_with(len, with);
    Ok(all.into())
}

/// A part of a transfer that lies in one chunk.
struct Piece {
    /// The chunk's index, and where in it the part starts.
    chunk: u64,
    start: usize,
    len: usize,
    /// How many bytes of the transfer came before.
    done: u64,
}

#[inline]
fn pieces(at: u64, len: u64, mut each: impl FnMut(Piece) -> Result<(), Failed>) -> Result<(), Failed> {
    let mut done = 0;
    while done < len {
        let (chunk, start) = ((at + done) / CHUNK as u64, ((at + done) % CHUNK as u64) as usize);
        let n = (len - done).min((CHUNK - start) as u64);
        each(Piece { chunk, start, len: n as usize, done })?;
        done += n;
    }
    Ok(())
}

fn delivered(done: bool) -> Result<(), Failed> {
    if done { Ok(()) } else { Err(Failed::Transfer) }
}

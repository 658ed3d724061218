//! Equal buffers in an arena, handed out as owned 8-byte handles.
//!
//! A buffer's metadata lies outside DMA memory, where no device can rewrite it. A [`Buf`] is the only handle to its bytes: whoever
//! holds it may read and write them, and a command in flight holds it, so that no safe program can free or reuse a buffer
//! under a device. A pool that is dropped with buffers out is leaked, counted, and never freed.
//!
//! The boundary: a device that writes to a buffer after it said that it was done breaks what hardware promises; the IOMMU
//! confines it to memory that was mapped for it, and no further.

use super::Arena;
use super::chunk::Chunk;
use super::mapping::{copy_in, copy_out};
use crate::{Error, Result};
use crossbeam::queue::ArrayQueue;
use std::cell::UnsafeCell;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

static LEAKED: AtomicU64 = AtomicU64::new(0);

/// How many buffers of this process were out when their pool was dropped.
pub fn leaked_buffers() -> u64 {
    LEAKED.load(Ordering::Relaxed)
}

/// A pool of equal buffers. Cloning it gives another handle to the same pool.
#[derive(Clone)]
pub struct Pool(Arc<Handle>);

/// The last handle's drop decides what becomes of the pool.
struct Handle(NonNull<Inner>);
// SAFETY: `Inner` is only shared: a lock-free queue, atomics, and metadata that one `Buf` at a time may touch.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

struct Inner {
    free: ArrayQueue<u32>,
    meta: Box<[Meta]>,
    chunk: Chunk,
    capacity: u32,
}

/// What is known of one buffer; one cache line.
#[repr(align(64))]
struct Meta {
    data: NonNull<u8>,
    /// Where in the arena the data starts.
    offset: u64,
    pool: NonNull<Inner>,
    arena: u32,
    index: u32,
    capacity: u32,
    /// Written only by the holder of the one `Buf`.
    len: UnsafeCell<u32>,
}

/// One buffer, owned. Eight bytes; dropping it gives it back to its pool.
pub struct Buf(NonNull<Meta>);
// SAFETY: a `Buf` is the only handle to its metadata and bytes.
unsafe impl Send for Buf {}
// SAFETY: a shared `Buf` only reads.
unsafe impl Sync for Buf {}
const _: () = assert!(size_of::<Option<Buf>>() == 8 && size_of::<Meta>() == 64);

impl Pool {
    /// `count` buffers of `size` bytes each in `arena`, each aligned to `align` bytes (a power of two).
    ///
    /// # Errors
    /// [`Error::ArenaFull`] where there is no room; [`Error::OutOfRange`] for no buffers, or empty ones.
    pub fn new(arena: &Arc<Arena>, count: u32, size: u32, align: u64) -> Result<Self> {
        let align = align.max(8);
        let stride = u64::from(size).next_multiple_of(align);
        if count == 0 || size == 0 {
            return Err(Error::OutOfRange { what: "pool", offset: 0, len: size.into(), size: count.into() });
        }
        let chunk = arena.alloc(stride.saturating_mul(count.into()), align)?;
        let (start, arena_id) = (chunk.offset(), arena.id());
        let inner = NonNull::from(Box::leak(Box::new(Inner {
            free: ArrayQueue::new(count as usize),
            meta: Box::default(),
            chunk,
            capacity: count,
        })));
        let meta = (0..count)
            .map(|index| {
                let offset = start + u64::from(index) * stride;
                // SAFETY: the chunk holds `count` strides from `start` on.
                let data = unsafe { arena.mapping().base().add(offset as usize) };
                Meta { data, offset, pool: inner, arena: arena_id, index, capacity: size, len: UnsafeCell::new(0) }
            })
            .collect();
        // SAFETY: nobody else knows of `inner` yet.
        unsafe { (*inner.as_ptr()).meta = meta };
        let pool = Self(Arc::new(Handle(inner)));
        for index in 0..count {
            let _ = pool.inner().free.push(index);
        }
        Ok(pool)
    }

    /// A buffer of length 0, or `None` where all are out.
    #[inline]
    pub fn get(&self) -> Option<Buf> {
        let inner = self.inner();
        let index = inner.free.pop()?;
        // The index came from the queue, so nobody else holds the buffer.
        let meta = inner.meta.get(index as usize)?;
        let mut buf = Buf(NonNull::from(meta));
        buf.set_len(0);
        Some(buf)
    }

    /// A buffer of length `len`, or `None` where all are out or `len` is above what one holds.
    #[inline]
    pub fn get_len(&self, len: u32) -> Option<Buf> {
        let mut buf = self.get()?;
        (len <= buf.capacity()).then(|| buf.set_len(len))?;
        Some(buf)
    }

    /// How many buffers there are.
    pub fn capacity(&self) -> u32 {
        self.inner().capacity
    }

    /// How many are here now.
    pub fn available(&self) -> u32 {
        self.inner().free.len() as u32
    }

    /// The arena they lie in.
    pub fn arena(&self) -> &Arc<Arena> {
        self.inner().chunk.arena()
    }

    fn inner(&self) -> &Inner {
        // SAFETY: freed only when the last handle is dropped.
        unsafe { self.0.0.as_ref() }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("capacity", &self.capacity()).field("available", &self.available()).finish()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the last handle; buffers that are out only ever touch `Inner` through shared references.
        let inner = unsafe { self.0.as_ref() };
        // Whoever holds a buffer could give it back between this look and the free, but not take one: no handle is left.
        let out = inner.capacity - inner.free.len() as u32;
        if out == 0 {
            // SAFETY: made by Box::leak in `new`; no handle and no buffer is left.
            drop(unsafe { Box::from_raw(self.0.as_ptr()) });
        } else {
            LEAKED.fetch_add(out.into(), Ordering::Relaxed);
            tracing::warn!(out, "a pool was dropped with buffers out; its memory is leaked");
        }
    }
}

impl Buf {
    #[inline(always)]
    fn meta(&self) -> &Meta {
        // SAFETY: metadata lives as long as any buffer of its pool is out.
        unsafe { self.0.as_ref() }
    }

    /// Bytes in use.
    #[inline]
    pub fn len(&self) -> u32 {
        // SAFETY: only the holder of this handle writes it, and it is borrowed here.
        unsafe { *self.meta().len.get() }
    }

    /// Whether none are in use.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes it can hold.
    #[inline]
    pub fn capacity(&self) -> u32 {
        self.meta().capacity
    }

    /// Says how many bytes are in use; more than it can hold becomes all that it can hold.
    #[inline]
    pub fn set_len(&mut self, len: u32) {
        let len = len.min(self.capacity());
        // SAFETY: this is the only handle to the metadata.
        unsafe { *self.meta().len.get() = len };
    }

    /// The id of the arena it lies in.
    #[inline(always)]
    pub fn arena_id(&self) -> u32 {
        self.meta().arena
    }

    /// Where in its arena the data starts, in bytes.
    #[inline(always)]
    pub fn arena_offset(&self) -> u64 {
        self.meta().offset
    }

    /// The bytes in use.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        let meta = self.meta();
        // SAFETY: inside the pool's chunk, initialised (arena memory starts zeroed), and borrowed with the only handle; a device was told
        // of it only while a command held the handle (the boundary: see the top of this file).
        unsafe { std::slice::from_raw_parts(meta.data.as_ptr(), self.len() as usize) }
    }

    /// The bytes in use, to write.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let (meta, len) = (self.meta(), self.len());
        // SAFETY: as in `bytes`, and the handle is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(meta.data.as_ptr(), len as usize) }
    }

    /// Sets the content, as far as it fits; returns how much that was.
    pub fn copy_from(&mut self, bytes: &[u8]) -> usize {
        let n = bytes.len().min(self.capacity() as usize);
        // SAFETY: inside the buffer, whose only handle is borrowed exclusively.
        unsafe { copy_in(self.meta().data, &bytes[..n]) };
        self.set_len(n as u32);
        n
    }

    /// Copies out as much as both have; returns how much that was.
    pub fn copy_to(&self, out: &mut [u8]) -> usize {
        let n = out.len().min(self.len() as usize);
        // SAFETY: inside the buffer.
        unsafe { copy_out(self.meta().data, &mut out[..n]) };
        n
    }
}

impl Drop for Buf {
    #[inline]
    fn drop(&mut self) {
        let (pool, index) = (self.meta().pool, self.meta().index);
        // SAFETY: a pool with buffers out is never freed.
        let _ = unsafe { pool.as_ref() }.free.push(index);
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buf({} of {} bytes)", self.len(), self.capacity())
    }
}

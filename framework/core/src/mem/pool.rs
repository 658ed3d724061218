//! Pools of buffers of equal size in an arena.
//!
//! A buffer's metadata lies outside of DMA memory, where no device can overwrite it. A [`Buf`] is the only handle to its bytes: its holder may
//! read and write them, and a command in flight owns it, so that no safe program can free or reuse a buffer under a device. A pool that is dropped with
//! buffers out is leaked and counted, never freed. Buffers themselves are in `buf.rs`.
//!
//! Free buffers are in a [`Ring`]; with a core's [`PoolCache`] in front of it, most allocations and frees touch memory of that core alone.
//!
//! A device that writes to a buffer after it reported that it was done breaks the rules of the [boundary](super#the-boundary); the IOMMU confines it to
//! memory that was mapped for it.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::Arena;
use super::buf::{Buf, Meta};
use super::chunk::Chunk;
use crate::ring::{Ring, Stash};
use crate::{Error, Result};
use std::fmt;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

/// Pools that were dropped with buffers out: where they are (so that a leak checker sees that they are meant), and how many were.
static LEAKED: Mutex<Vec<(Handle, u64)>> = Mutex::new(Vec::new());

/// Returns how many buffers of this process were out when their pools were dropped.
///
/// It takes a lock.
pub fn leaked_buffers() -> u64 {
    LEAKED.lock().unwrap_or_else(|e| e.into_inner()).iter().map(|(_, out)| out).sum()
}

/// A pool of buffers of equal size.
///
/// A clone is another handle to the same pool. (DPDK: `rte_pktmbuf_pool_create`.)
///
/// Any thread may allocate here. A core that allocates and frees many buffers does so through a [`PoolCache`] of its own. A pool that is dropped
/// while buffers are out is leaked, with its part of the arena; [`leaked_buffers`] counts those buffers.
#[derive(Clone)]
pub struct Pool(Arc<Handle>);

/// The last handle's drop decides what becomes of the pool.
struct Handle(NonNull<Inner>);
// SAFETY: `Inner` is only shared: a ring, and metadata that one `Buf` at a time may touch.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

struct Inner {
    /// The buffers that are home. Each of the pool's is here once, or out.
    free: Ring<Buf>,
    meta: Box<[Meta]>,
    chunk: Chunk,
}

impl Pool {
    /// Creates a pool of `count` buffers of `size` bytes each in `arena`, each aligned to `align` bytes: a power of two; below 8 it becomes 8.
    ///
    /// It takes `count` times `size`, rounded up to `align`, of the arena, and 64 bytes of metadata a buffer elsewhere. The size of a buffer for
    /// packets includes the headroom; which sizes suit a device, its driver's `rx_queue` says.
    ///
    /// # Errors
    /// [`Error::NotPowerOfTwo`] for the alignment; [`Error::OutOfRange`] where `count` or `size` is 0; [`Error::ArenaFull`] where the arena has no room.
    pub fn new(arena: Arc<Arena>, count: u32, size: u32, align: u32) -> Result<Self> {
        let align = u64::from(align);
        if !align.is_power_of_two() {
            return Err(Error::NotPowerOfTwo { what: "bytes of alignment", value: align });
        }
        let align = align.max(8);
        let stride = u64::from(size).next_multiple_of(align);
        if count == 0 || size == 0 {
            return Err(Error::OutOfRange { what: "pool", offset: 0, len: size.into(), size: count.into() });
        }
        let chunk = arena.alloc(stride.saturating_mul(count.into()), align)?;
        let (start, arena_id) = (chunk.offset(), arena.id());
        let free = Ring::new((count as usize).next_power_of_two())?;
        let inner = NonNull::from(Box::leak(Box::new(Inner { free, meta: Box::default(), chunk })));
        // SAFETY: `inner` is what was leaked, and no field of that is at address 0.
        let home = unsafe { NonNull::new_unchecked(&raw mut (*inner.as_ptr()).free) };
        let meta = (0..u64::from(count))
            .map(|index| {
                let offset = start.saturating_add(index.saturating_mul(stride));
                // SAFETY: the chunk holds `count` strides from `start` on.
                let data = unsafe { arena.mapping().base().add(offset as usize) };
                Meta::new(data, offset, home, arena_id, size)
            })
            .collect();
        // SAFETY: nobody else knows of `inner` yet.
        unsafe { (*inner.as_ptr()).meta = meta };
        let pool = Self(Arc::new(Handle(inner)));
        // The one place where buffers are made: one for each metadata.
        pool.inner().free.push_bulk(&mut pool.inner().meta.iter().map(Buf::of).collect());
        Ok(pool)
    }

    /// Allocates a buffer of length 0; `None` where all are out. One operation on the ring that all cores share. (DPDK: `rte_pktmbuf_alloc`.)
    #[inline]
    pub fn get(&self) -> Option<Buf> {
        self.inner().free.pop().map(Buf::emptied)
    }

    /// Allocates a buffer of length `len`, whose bytes are whatever they were; `None` where all are out, or `len` exceeds the size of a buffer.
    #[inline]
    pub fn get_len(&self, len: u32) -> Option<Buf> {
        self.get().and_then(|buf| buf.resized(len))
    }

    /// Creates a cache for one core, which exchanges `batch` buffers at a time with the pool and holds at most two batches.
    ///
    /// Buffers in a cache are out, as far as other cores are concerned: give a pool two batches a core more than are in use.
    pub fn cache(&self, batch: u32) -> PoolCache {
        PoolCache { stash: Stash::new(batch as usize), pool: self.clone() }
    }

    /// Returns the number of buffers, in the pool and out.
    pub fn capacity(&self) -> u32 {
        self.inner().meta.len() as u32
    }

    /// Returns the size of a buffer in bytes.
    pub fn size(&self) -> u32 {
        self.inner().meta[0].capacity()
    }

    /// Returns the number of buffers in the pool now. Buffers in caches are not counted.
    pub fn available(&self) -> u32 {
        self.inner().free.len() as u32
    }

    /// Returns the arena that the buffers are part of.
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
        let mut home = 0;
        while let Some(buf) = inner.free.pop() {
            // Its drop would give it back.
            std::mem::forget(buf);
            home = usize::saturating_add(home, 1);
        }
        let out = inner.meta.len().saturating_sub(home);
        if out == 0 {
            // SAFETY: made by Box::leak in `new`. No handle is left, and no buffer: each was taken from the ring just now. Who put it
            // there does not touch the pool any more, as `push_at` says, and what it did before is seen by us, who took it.
            drop(unsafe { Box::from_raw(self.0.as_ptr()) });
        } else {
            LEAKED.lock().unwrap_or_else(|e| e.into_inner()).push((Self(self.0), out as u64));
            tracing::warn!(out, "a pool was dropped with buffers out; its memory is leaked");
        }
    }
}

/// One core's cache of a pool's buffers: most allocations and frees are a few instructions without atomics.
///
/// Dropping it returns its buffers to the pool. (DPDK: `rte_mempool_cache`.)
///
/// ```
/// # use wholebar_core as wholebar;
/// use wholebar::mem::{Arena, ArenaOptions, Pool};
///
/// let pool = Pool::new(Arena::new(1 << 20, ArenaOptions::default())?, 256, 2048, 64)?;
/// let mut cache = pool.cache(32);
/// let buf = cache.get_len(60).expect("a buffer");
/// cache.put(buf);
/// assert!(cache.len() <= 64);
/// # Ok::<_, wholebar::Error>(())
/// ```
pub struct PoolCache {
    stash: Stash<Buf>,
    pool: Pool,
}

impl PoolCache {
    /// Allocates a buffer of length 0; `None` where the cache and the pool are empty.
    #[inline]
    pub fn get(&mut self) -> Option<Buf> {
        self.stash.pop(&self.pool.inner().free).map(Buf::emptied)
    }

    /// Allocates a buffer of length `len`, whose bytes are whatever they were; `None` where the cache and the pool are empty, or `len` exceeds the
    /// size of a buffer.
    #[inline]
    pub fn get_len(&mut self, len: u32) -> Option<Buf> {
        self.get().and_then(|buf| buf.resized(len))
    }

    /// Appends `n` buffers of length 0 to `out`, or none where there are fewer; returns whether it did. (DPDK: `rte_pktmbuf_alloc_bulk`.)
    #[inline]
    pub fn get_bulk(&mut self, out: &mut Vec<Buf>, n: usize) -> bool {
        let before = out.len();
        let done = self.stash.pop_bulk(out, n, &self.pool.inner().free);
        out[before..].iter_mut().for_each(Buf::as_new);
        done
    }

    /// Copies a packet into as many buffers as it takes, with its headroom and metadata; `None` where too few buffers are left. (DPDK:
    /// `rte_pktmbuf_copy`.)
    pub fn copy(&mut self, packet: &Buf) -> Option<Buf> {
        let mut first = self.get()?;
        first.know(packet);
        if let Ok(headroom) = packet.headroom().try_into() {
            first.reserve(headroom);
        }
        // The last buffer, where it isn't the first.
        let mut last: Option<Buf> = None;
        for segment in packet.segments() {
            let mut bytes = segment.bytes();
            loop {
                bytes = &bytes[last.as_mut().unwrap_or(&mut first).extend(bytes)..];
                if bytes.is_empty() {
                    break;
                }
                if let Some(full) = last.replace(self.get()?) {
                    first.append(full);
                }
            }
        }
        if let Some(last) = last {
            first.append(last);
        }
        Some(first)
    }

    /// Frees a buffer. A buffer of another pool, or one with buffers chained to it, returns to its own pool directly.
    #[inline]
    pub fn put(&mut self, buf: Buf) {
        if self.owns(&buf) {
            self.stash.push(buf, &self.pool.inner().free);
        }
    }

    /// Frees all buffers of `bufs`. Those of other pools, and chains, return to their own pools directly.
    #[inline]
    pub fn put_bulk(&mut self, bufs: &mut Vec<Buf>) {
        if !bufs.iter().all(|buf| self.owns(buf)) {
            bufs.retain(|buf| self.owns(buf));
        }
        self.stash.push_bulk(bufs, &self.pool.inner().free);
    }

    /// Returns the number of buffers in the cache.
    #[allow(clippy::len_without_is_empty, reason = "for reports")]
    pub fn len(&self) -> usize {
        self.stash.len()
    }

    /// Returns the pool.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    #[inline(always)]
    fn owns(&self, buf: &Buf) -> bool {
        buf.is_single_of(NonNull::from(&self.pool.inner().free))
    }
}

impl Drop for PoolCache {
    fn drop(&mut self) {
        // There is room for all of a pool's buffers in its ring.
        self.stash.give_back(&self.pool.inner().free);
    }
}

impl fmt::Debug for PoolCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PoolCache({} of {:?})", self.len(), self.pool)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::ArenaOptions;

    fn arena() -> Arc<Arena> {
        Arena::new(1 << 20, ArenaOptions::default()).unwrap()
    }

    /// An arena's pools that were leaked, each with how many buffers were out; of others, other tests leak some at any time.
    fn leaks(arena: &Arena) -> Vec<u64> {
        let leaked = LEAKED.lock().unwrap();
        // SAFETY: leaked, so it is there.
        let ours = leaked.iter().filter(|(h, _)| unsafe { h.0.as_ref() }.chunk.arena().id() == arena.id());
        ours.map(|(_, out)| *out).collect()
    }

    #[test]
    fn buffers_are_disjoint_and_come_home() {
        let arena = arena();
        let pool = Pool::new(arena.clone(), 10, 100, 64).unwrap();
        let mut bufs: Vec<_> = std::iter::from_fn(|| pool.get()).collect();
        assert_eq!((bufs.len(), pool.available(), pool.capacity()), (10, 0, 10));
        for (i, buf) in bufs.iter_mut().enumerate() {
            assert_eq!((buf.len(), buf.capacity(), buf.arena_id()), (0, 100, arena.id()));
            assert!(buf.arena_offset().is_multiple_of(64));
            assert_eq!(buf.copy_from(&[i as u8; 200]), 100);
        }
        for (i, buf) in bufs.iter_mut().enumerate() {
            assert!(buf.bytes().iter().all(|b| *b == i as u8));
            buf.bytes_mut().fill(0xee);
            buf.set_len(1000);
            let mut out = [0; 101];
            assert_eq!((buf.len(), buf.copy_to(&mut out), out[99], out[100]), (100, 100, 0xee, 0));
        }
        drop(bufs);
        assert_eq!(pool.available(), 10);
        assert!(pool.get_len(101).is_none());
        assert_eq!(pool.get_len(7).unwrap().len(), 7);
        assert_eq!(pool.available(), 10);
    }

    #[test]
    fn pools_that_make_no_sense_are_refused() {
        let arena = arena();
        assert!(matches!(Pool::new(arena.clone(), 0, 1, 1), Err(Error::OutOfRange { .. })));
        assert!(matches!(Pool::new(arena.clone(), 1, 0, 1), Err(Error::OutOfRange { .. })));
        assert!(matches!(Pool::new(arena.clone(), 1, u32::MAX, 1), Err(Error::ArenaFull { .. })));
        assert!(matches!(Pool::new(arena.clone(), u32::MAX, u32::MAX, 1 << 31), Err(Error::ArenaFull { .. })));
        assert!(matches!(Pool::new(arena, 1, 1, 3), Err(Error::NotPowerOfTwo { .. })));
    }

    #[test]
    fn a_cache_holds_two_batches_and_gives_them_back() {
        let arena = arena();
        let (pool, other) = (Pool::new(arena.clone(), 32, 64, 64).unwrap(), Pool::new(arena, 1, 64, 64).unwrap());
        let mut cache = pool.cache(4);
        let mut bufs = Vec::new();
        assert!(!cache.get_bulk(&mut bufs, 33));
        assert!(cache.get_bulk(&mut bufs, 32) && bufs.len() == 32);
        assert!(cache.get().is_none() && pool.get().is_none());
        bufs.push(other.get_len(64).unwrap());
        bufs[3].set_len(17);
        cache.put_bulk(&mut bufs);
        assert!(bufs.is_empty() && cache.len() <= 8);
        assert_eq!((pool.available() as usize + cache.len(), other.available()), (32, 1));
        for _ in 0..20 {
            let (a, b) = (cache.get().unwrap(), cache.get_len(64).unwrap());
            assert_eq!((a.len(), b.len()), (0, 64));
            cache.put(a);
            drop(b);
            cache.put(other.get().unwrap());
        }
        assert!(cache.get_len(65).is_none());
        drop(cache);
        assert_eq!((pool.available(), other.available()), (32, 1));
    }

    #[test]
    fn a_copy_is_in_buffers_of_its_own() {
        let arena = arena();
        let (pool, small) = (Pool::new(arena.clone(), 4, 256, 64).unwrap(), Pool::new(arena, 8, 64, 64).unwrap());
        let mut packet = pool.get().unwrap();
        assert!(packet.reserve(32));
        let content: Vec<_> = (0..200).collect::<Vec<u8>>();
        packet.copy_from(&content[..150]);
        let mut next = pool.get().unwrap();
        next.copy_from(&content[150..]);
        packet.append(next);
        packet.set_vlan(Some(7));
        packet.set_hash(9);
        let mut cache = small.cache(2);
        let copy = cache.copy(&packet).unwrap();
        assert_eq!((copy.headroom(), copy.vlan(), copy.hash(), copy.packet_len()), (32, Some(7), Some(9), 200));
        assert_eq!(copy.segments().map(Buf::len).collect::<Vec<_>>(), [32, 64, 64, 40]);
        assert_eq!(copy.segments().flat_map(|buf| buf.bytes().to_vec()).collect::<Vec<_>>(), content);
        let again = cache.copy(&packet).unwrap();
        assert!(cache.copy(&packet).is_none());
        drop((copy, again, cache));
        assert_eq!((small.available(), pool.available()), (8, 2));
    }

    #[test]
    fn a_pool_dropped_with_buffers_out_is_leaked_and_counted() {
        let before = leaked_buffers();
        let arena = arena();
        let pool = Pool::new(arena.clone(), 4, 64, 64).unwrap();
        let mut bufs = [pool.get_len(64).unwrap(), pool.get_len(64).unwrap()];
        let again = pool.clone();
        drop(pool);
        assert_eq!((leaks(&arena), again.available()), (vec![], 2));
        drop(again);
        assert_eq!(leaks(&arena), [2]);
        assert!(leaked_buffers() >= before + 2);
        // What is out can still be used, and dropped.
        bufs[0].bytes_mut().fill(1);
        drop(bufs);
        assert_eq!(leaks(&arena), [2]);
        assert!(Arc::strong_count(&arena) > 1, "its memory stays");
    }

    /// The last buffer comes home on one thread while the last handle goes on another: freed or leaked, never both.
    #[test]
    fn the_last_buffer_races_the_last_handle() {
        let arena = arena();
        let (rounds, mut freed) = (if cfg!(miri) { 30 } else { 500 }, 0);
        for _ in 0..rounds {
            let pool = Pool::new(arena.clone(), 3, 64, 64).unwrap();
            let mut cache = pool.cache(1);
            let (a, b, c) = (pool.get().unwrap(), pool.get().unwrap(), cache.get().unwrap());
            cache.put(c);
            let threads = [
                std::thread::spawn(move || drop(a)),
                std::thread::spawn(move || drop(cache)),
                std::thread::spawn(move || drop(b)),
            ];
            drop(pool);
            threads.into_iter().for_each(|t| t.join().unwrap());
            // A leaked pool keeps its chunk, and with it a handle to the arena.
            freed += u64::from(Arc::strong_count(&arena) == 1 + leaks(&arena).len());
        }
        assert_eq!(freed, rounds);
        assert!(leaks(&arena).iter().all(|out| (1..=2).contains(out)));
    }

    #[test]
    fn buffers_cross_threads() {
        let arena = arena();
        let pool = Pool::new(arena, 8, 64, 64).unwrap();
        let (mut put, mut take) = crate::ring::spsc::<Buf>(4).unwrap();
        let count = if cfg!(miri) { 100 } else { 20_000u64 };
        let mut cache = pool.cache(2);
        let consumer = std::thread::spawn({
            let mut cache = pool.cache(2);
            move || {
                let (mut expected, mut out) = (0, Vec::new());
                while expected < count {
                    if take.pop_burst(&mut out, 3) == 0 {
                        std::thread::yield_now();
                    }
                    for buf in &out {
                        assert_eq!(buf.bytes(), expected.to_le_bytes());
                        expected += 1;
                    }
                    cache.put_bulk(&mut out);
                }
            }
        });
        for i in 0..count {
            let mut buf = loop {
                match cache.get() {
                    Some(buf) => break buf,
                    None => std::thread::yield_now(),
                }
            };
            buf.copy_from(&i.to_le_bytes());
            while let Err(back) = put.push(buf) {
                buf = back;
                std::thread::yield_now();
            }
        }
        consumer.join().unwrap();
        drop(cache);
        assert_eq!(pool.available(), 8);
    }
}

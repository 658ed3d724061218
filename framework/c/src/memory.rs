//! Memory that devices reach: arenas, pools of equal buffers, and buffers.

use crate::error::{Failure, Result, entry};
use crate::handle::{self, Wrong};
use std::ffi::c_int;
use std::ptr::NonNull;
use std::sync::Arc;
use wholebar::mem::{Arena, ArenaOptions, Buf, Pool};

/// One piece of memory that devices can be let into. (DPDK: a memory zone.)
pub struct wb_arena {
    pub(crate) arena: Arc<Arena>,
}

/// Equal buffers in an arena. (DPDK: a mempool of mbufs.)
pub struct wb_pool {
    pub(crate) pool: Pool,
}

/// A buffer: bytes that a device can reach, with room in front of them. (DPDK: an mbuf of one segment.)
///
/// The pointer is the handle of the Rust side itself, and nothing is allocated for it.
pub struct wb_buf {
    _opaque: [u8; 0],
}

/// Memory of at least `bytes`, in hugepages where enough are free; NULL where the system has none.
#[unsafe(no_mangle)]
pub extern "C" fn wb_arena_new(bytes: u64) -> *mut wb_arena {
    entry(|| Ok(handle::give(wb_arena { arena: Arena::new(bytes, ArenaOptions::default())? })))
}

/// Frees an arena, once no pool of it, and no device that was let into it, is left.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_arena_free(arena: *mut wb_arena) {
    entry(|| {
        // SAFETY: rules 1 and 2: a handle of this type, not freed, and nobody else's now.
        unsafe { handle::free(arena) };
        Ok(())
    })
}

/// `count` buffers of `size` bytes each, aligned to `align` bytes (a power of two; a disk's block size, or 64 for packets); NULL where the arena
/// has no room for them. (DPDK: rte_pktmbuf_pool_create.)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_pool_new(arena: *const wb_arena, count: u32, size: u32, align: u32) -> *mut wb_pool {
    entry(|| {
        // SAFETY: rule 1: a handle of this type, not freed.
        let arena = &unsafe { handle::get(arena) }?.arena;
        Ok(handle::give(wb_pool { pool: Pool::new(arena.clone(), count, size, align)? }))
    })
}

/// Frees a pool. Buffers have to be home first, those in queues too: where one is out, the pool's memory is never freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_pool_free(pool: *mut wb_pool) {
    entry(|| {
        // SAFETY: rules 1 and 2: a handle of this type, not freed, and nobody else's now.
        unsafe { handle::free(pool) };
        Ok(())
    })
}

/// How many buffers are home. (DPDK: rte_mempool_avail_count.)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_pool_available(pool: *const wb_pool) -> c_int {
    // SAFETY: rule 1: a handle of this type, not freed.
    entry(|| Ok(count(unsafe { handle::get(pool) }?.pool.available() as usize)))
}

/// A buffer with `len` bytes in use and no headroom, for the caller to own; NULL where all are out (wb_errno is ENOMEM), or `len` is more than one holds
/// (EINVAL). What is in it is what was there before. (DPDK: rte_pktmbuf_alloc.)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_buf_get(pool: *const wb_pool, len: u32) -> *mut wb_buf {
    entry(|| {
        // SAFETY: rule 1: a handle of this type, not freed.
        let pool = &unsafe { handle::get(pool) }?.pool;
        if len > pool.size() {
            return Err(Failure::of(libc::EINVAL, c"the pool's buffers are smaller than that"));
        }
        let buf = pool.get_len(len).ok_or(Failure::of(libc::ENOMEM, c"all of the pool's buffers are out"))?;
        Ok(give(buf))
    })
}

/// Gives a buffer back to its pool. NULL is none. 0, or -EINVAL for a buffer that is not the caller's (any more). (DPDK: rte_pktmbuf_free.)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_buf_free(buf: *mut wb_buf) -> c_int {
    entry(|| {
        if !buf.is_null() {
            // SAFETY: rule 4: a buffer of the caller's.
            drop(unsafe { take(buf) }?);
        }
        Ok(0)
    })
}

/// Where its bytes are; NULL for a buffer that is not the caller's. They may be read and written as long as it is. (DPDK: rte_pktmbuf_mtod.)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_buf_data(buf: *mut wb_buf) -> *mut u8 {
    // SAFETY: rule 4: a buffer of the caller's.
    entry(|| unsafe { with(buf, |buf| buf.bytes_mut().as_mut_ptr()) })
}

/// How many bytes are in use, or -EINVAL. (DPDK: rte_pktmbuf_data_len.)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_buf_len(buf: *mut wb_buf) -> c_int {
    // SAFETY: rule 4: a buffer of the caller's.
    entry(|| unsafe { with(buf, |buf| count(buf.len() as usize)) })
}

/// How many bytes it can hold, headroom included, or -EINVAL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_buf_capacity(buf: *mut wb_buf) -> c_int {
    // SAFETY: rule 4: a buffer of the caller's.
    entry(|| unsafe { with(buf, |buf| count(buf.capacity() as usize)) })
}

/// How many bytes of room are in front of those in use, or -EINVAL. (DPDK: rte_pktmbuf_headroom.)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_buf_headroom(buf: *mut wb_buf) -> c_int {
    // SAFETY: rule 4: a buffer of the caller's.
    entry(|| unsafe { with(buf, |buf| count(buf.headroom() as usize)) })
}

/// Says how many bytes are in use. 0, or -EINVAL where it cannot hold as many.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_buf_set_len(buf: *mut wb_buf, len: u32) -> c_int {
    entry(|| {
        let set = |buf: &mut Buf| {
            let fits = len <= buf.capacity() - buf.headroom();
            if fits {
                buf.set_len(len);
            }
            fits
        };
        // SAFETY: rule 4: a buffer of the caller's.
        let fits = unsafe { with(buf, set) }?;
        if fits { Ok(0) } else { Err(Failure::of(libc::EINVAL, c"the buffer holds less than that")) }
    })
}

/// Leaves `bytes` of room in front of the data, which there is none of then. 0, or -EINVAL where the buffer is smaller. (DPDK: rte_pktmbuf_reset_headroom.)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_buf_reserve(buf: *mut wb_buf, bytes: u16) -> c_int {
    entry(|| {
        // SAFETY: rule 4: a buffer of the caller's.
        match unsafe { with(buf, |buf| buf.reserve(bytes)) }? {
            true => Ok(0),
            false => Err(Failure::of(libc::EINVAL, c"the buffer is smaller than the headroom asked for")),
        }
    })
}

/// Has the data begin `bytes` earlier, for a header; returns where it begins now, or NULL where there is less room in front. (DPDK: rte_pktmbuf_prepend.)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_buf_prepend(buf: *mut wb_buf, bytes: u16) -> *mut u8 {
    entry(|| {
        // SAFETY: rule 4: a buffer of the caller's.
        let header = unsafe { with(buf, |buf| buf.prepend(bytes).map(<[u8]>::as_mut_ptr)) }?;
        header.ok_or(Failure::of(libc::EINVAL, c"the buffer has less headroom"))
    })
}

/// Has the data begin `bytes` later: takes a header off; returns where it begins now, or NULL where there are fewer. (DPDK: rte_pktmbuf_adj.)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn wb_buf_adj(buf: *mut wb_buf, bytes: u16) -> *mut u8 {
    entry(|| {
        let advance = |buf: &mut Buf| buf.advance(bytes).then(|| buf.bytes_mut().as_mut_ptr());
        // SAFETY: rule 4: a buffer of the caller's.
        let data = unsafe { with(buf, advance) }?;
        data.ok_or(Failure::of(libc::EINVAL, c"the buffer has fewer bytes in use"))
    })
}

/// A count for C: no buffer or pool has more than fits.
pub(crate) fn count(n: usize) -> c_int {
    c_int::try_from(n).unwrap_or(c_int::MAX)
}

/// Makes a buffer the caller's.
pub(crate) fn give(buf: Buf) -> *mut wb_buf {
    buf.into_raw().cast().as_ptr()
}

/// Takes a buffer from the caller.
///
/// # Safety
/// Null, or a buffer that was made the caller's by [`give`] (rule 4), and nobody else's (rule 2).
pub(crate) unsafe fn take(buf: *mut wb_buf) -> std::result::Result<Buf, Wrong> {
    let raw = NonNull::new(buf).ok_or(Wrong(c"a buffer is NULL"))?.cast();
    // SAFETY: `give` made it of `into_raw`, and the rest is rule 4.
    unsafe { Buf::from_raw(raw) }.ok_or(Wrong(c"a buffer is not the caller's: it was freed, sent or submitted before"))
}

/// Looks at a buffer, or changes it, and leaves it the caller's. `look` does not panic.
///
/// # Safety
/// As [`take`].
unsafe fn with<T>(buf: *mut wb_buf, look: impl FnOnce(&mut Buf) -> T) -> Result<T> {
    // SAFETY: the caller's word.
    let mut buf = unsafe { take(buf) }?;
    let found = look(&mut buf);
    give(buf);
    Ok(found)
}

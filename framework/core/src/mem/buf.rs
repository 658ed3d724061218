//! Buffers: owned 8-byte handles to bytes in DMA memory, with 64 bytes of metadata outside of it.
//!
//! The metadata of a packet's first buffer holds what is known of the packet: hash, VLAN tag, checksum results, offloads. A packet larger than a buffer
//! continues in the [next](Buf::next) one, which the first owns. Pools of buffers are in `pool.rs`.
//!
//! Headroom plus length never exceeds the capacity, so sums and differences of the three do not wrap.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use super::mapping::{copy_in, copy_out};
use super::offload::{Checked, Offload};
use crate::prefetch;
use crate::ring::Ring;
use std::cell::UnsafeCell;
use std::fmt;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;

/// What is known of one buffer; one cache line.
#[repr(align(64))]
pub(super) struct Meta {
    data: NonNull<u8>,
    /// Where in the arena the buffer starts.
    offset: u64,
    /// The free buffers of its pool, where it goes home to. Two buffers with one such ring are of one pool.
    home: NonNull<Ring<Buf>>,
    arena: u32,
    capacity: u32,
    /// Touched only by the holder of the one `Buf`.
    state: UnsafeCell<State>,
}

/// What changes. Length, head and flags are one word: all of a buffer that is taken from its pool has to be written.
#[repr(C)]
struct State {
    /// What the packet goes on in. None while the buffer is home.
    next: Option<Buf>,
    /// The timestamp, or the offload, as `flags` say.
    word: u64,
    len: u32,
    /// Bytes in front of the data.
    head: u16,
    flags: u16,
    hash: u32,
    vlan: u16,
    /// The handle is a raw pointer now: see [`Buf::into_raw`].
    raw: bool,
}

mod flag {
    pub const HASH: u16 = 1 << 0;
    pub const VLAN: u16 = 1 << 1;
    pub const TIMESTAMP: u16 = 1 << 2;
    pub const OFFLOAD: u16 = 1 << 3;
    /// Two bits each of [`Checked`](super::Checked).
    pub const L3_SHIFT: u32 = 4;
    pub const L4_SHIFT: u32 = 6;
    pub const TIMESYNC: u16 = 1 << 8;
}

/// One buffer, owned: 8 bytes.
///
/// Dropping it returns it, and the buffers chained to it, to their pools: one operation on a ring for each. (DPDK: `rte_mbuf`; Linux: `sk_buff`.)
///
/// A buffer has headroom, data and tailroom. None of the methods takes a lock, allocates or makes a system call.
///
/// ```
/// # use wholebar_core as wholebar;
/// use wholebar::mem::{Arena, ArenaOptions, Pool};
///
/// let pool = Pool::new(Arena::new(1 << 20, ArenaOptions::default())?, 8, 2048, 64)?;
/// let mut packet = pool.get().expect("a buffer");
/// // Leaves room for a header, writes the payload, and puts the header in front.
/// assert!(packet.reserve(128));
/// packet.copy_from(&[0x5a; 46]);
/// packet.prepend(14).expect("headroom").fill(0xff);
/// assert_eq!((packet.len(), packet.headroom()), (60, 114));
/// // Removes the header again.
/// assert!(packet.advance(14));
/// assert_eq!(packet.bytes(), [0x5a; 46]);
/// # Ok::<_, wholebar::Error>(())
/// ```
pub struct Buf(NonNull<Meta>);
// SAFETY: a `Buf` is the only handle to its metadata and bytes.
unsafe impl Send for Buf {}
// SAFETY: a shared `Buf` only reads.
unsafe impl Sync for Buf {}
const _: () = assert!(size_of::<Option<Buf>>() == 8 && size_of::<Meta>() == 64);

/// Frees buffers, by one operation for each run of buffers of one pool.
///
/// Cheaper than dropping them one by one. (DPDK: `rte_pktmbuf_free_bulk`.)
#[inline]
pub fn give_back(bufs: &mut Vec<Buf>) {
    while let Some(first) = bufs.first() {
        let home = first.meta().home;
        let run = bufs.iter().take_while(|buf| buf.is_single_of(home)).count();
        if run == 0 {
            // The first is one that others follow.
            drop(bufs.swap_remove(0));
            continue;
        }
        // SAFETY: a pool with buffers out is never freed, and these are out until they can be taken from the ring. It has room for all
        // of its pool's buffers.
        unsafe { Ring::push_some_at(home.as_ptr(), bufs, run) };
    }
}

impl Meta {
    pub(super) fn new(data: NonNull<u8>, offset: u64, home: NonNull<Ring<Buf>>, arena: u32, capacity: u32) -> Self {
        let state = State { next: None, word: 0, len: 0, head: 0, flags: 0, hash: 0, vlan: 0, raw: false };
        Self { data, offset, home, arena, capacity, state: UnsafeCell::new(state) }
    }

    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }
}

impl Buf {
    /// The one handle to a buffer.
    pub(super) fn of(meta: &Meta) -> Self {
        Self(NonNull::from(meta))
    }

    /// Converts the handle into a pointer, for code in another language. That code owns the buffer until [`from_raw`](Self::from_raw).
    #[inline]
    pub fn into_raw(mut self) -> NonNull<()> {
        self.state_mut().raw = true;
        ManuallyDrop::new(self).0.cast()
    }

    /// Converts a pointer of [`into_raw`](Self::into_raw) back into the handle. Returns `None` where it was taken back before and its buffer has
    /// another holder now.
    ///
    /// # Safety
    /// `into_raw` gave the pointer, the buffer's pool was not freed since, and nobody else uses the pointer meanwhile. A pointer that was taken back
    /// before is refused as long as its buffer is not in use on another thread.
    #[inline]
    pub unsafe fn from_raw(raw: NonNull<()>) -> Option<Self> {
        let mut buf = ManuallyDrop::new(Self(raw.cast()));
        // A pointer that is out is the one handle, as the caller says; else this value, which is never dropped, was only looked at.
        std::mem::take(&mut buf.state_mut().raw).then(|| ManuallyDrop::into_inner(buf))
    }

    #[inline(always)]
    fn meta(&self) -> &Meta {
        // SAFETY: metadata lives as long as any buffer of its pool is out.
        unsafe { self.0.as_ref() }
    }

    #[inline(always)]
    fn state(&self) -> &State {
        // SAFETY: only the holder of this handle writes it, through `state_mut`, and it is borrowed here.
        unsafe { &*self.meta().state.get() }
    }

    #[inline(always)]
    fn state_mut(&mut self) -> &mut State {
        // SAFETY: this is the only handle to the metadata, and it is borrowed exclusively.
        unsafe { &mut *self.meta().state.get() }
    }

    /// Where the data starts in this process.
    #[inline(always)]
    pub(crate) fn data(&self) -> NonNull<u8> {
        // SAFETY: `head` is at most the capacity: inside the buffer, or at its end.
        unsafe { self.meta().data.add(self.state().head.into()) }
    }

    /// Prefetches the first 128 bytes of the buffer, headroom included, for writing. A hint without effect on memory.
    #[inline(always)]
    pub fn prefetch(&self) {
        // Of a shorter one, its neighbour's too, which does no harm.
        prefetch::write(self.meta().data.as_ptr(), 128);
    }

    /// Whether it is of the pool with these free buffers, and nothing follows it.
    #[inline(always)]
    pub(super) fn is_single_of(&self, home: NonNull<Ring<Buf>>) -> bool {
        self.meta().home == home && self.state().next.is_none()
    }

    /// Forgets what it was used for. Nothing follows it.
    #[inline(always)]
    pub(super) fn as_new(&mut self) {
        let state = self.state_mut();
        (state.len, state.head, state.flags) = (0, 0, 0);
    }

    /// Knows of its packet what `other` knows of its own.
    pub(super) fn know(&mut self, other: &Self) {
        let (state, other) = (self.state_mut(), other.state());
        (state.flags, state.word, state.hash, state.vlan) = (other.flags, other.word, other.hash, other.vlan);
    }

    /// Puts bytes behind those in use, as far as they fit; returns how many that were.
    pub(super) fn extend(&mut self, bytes: &[u8]) -> usize {
        let (len, n) = (self.len(), bytes.len().min(self.tailroom() as usize));
        self.set_len(len.wrapping_add(n as u32));
        self.bytes_mut()[len as usize..].copy_from_slice(&bytes[..n]);
        n
    }

    #[inline(always)]
    pub(super) fn emptied(mut self) -> Self {
        self.as_new();
        self
    }

    #[inline(always)]
    pub(super) fn resized(mut self, len: u32) -> Option<Self> {
        (len <= self.capacity()).then(|| self.set_len(len))?;
        Some(self)
    }

    /// Gives the buffer and those chained to it up for good, because a device may still write them; returns their number. Their pool counts them as
    /// out, and is leaked when it is dropped.
    pub fn quarantine(self) -> u64 {
        let buffers = self.segments().count() as u64;
        std::mem::forget(self);
        buffers
    }

    /// Returns the length of the data in this buffer alone, in bytes. [`packet_len`](Self::packet_len) is that of the whole chain.
    #[inline]
    pub fn len(&self) -> u32 {
        self.state().len
    }

    /// Returns whether this buffer has no data.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the size of the buffer in bytes, headroom included.
    #[inline]
    pub fn capacity(&self) -> u32 {
        self.meta().capacity
    }

    /// Sets the length of the data; a length beyond the end of the buffer becomes the largest that fits. Bytes that become part of the data keep
    /// their values.
    #[inline]
    pub fn set_len(&mut self, len: u32) {
        let most = self.capacity().wrapping_sub(self.state().head.into());
        self.state_mut().len = len.min(most);
    }

    /// Resets the buffer to how it came from its pool: no data, no headroom, no metadata. Buffers chained to it are freed.
    #[inline]
    pub fn clear(&mut self) {
        drop(self.take_next());
        self.as_new();
    }

    /// Returns the number of free bytes in front of the data. (DPDK: `rte_pktmbuf_headroom`.)
    #[inline]
    pub fn headroom(&self) -> u32 {
        self.state().head.into()
    }

    /// Returns the number of free bytes behind the data. (DPDK: `rte_pktmbuf_tailroom`.)
    #[inline]
    pub fn tailroom(&self) -> u32 {
        self.capacity().wrapping_sub(self.headroom()).wrapping_sub(self.len())
    }

    /// Empties the data and sets the headroom to `bytes`; returns whether the buffer is large enough for that. Where it is not, nothing changes.
    #[inline]
    pub fn reserve(&mut self, bytes: u16) -> bool {
        let fits = u32::from(bytes) <= self.capacity();
        if fits {
            let state = self.state_mut();
            (state.len, state.head) = (0, bytes);
        }
        fits
    }

    /// Extends the data by `bytes` at its front, and returns these to be written; `None` where there is less headroom. (DPDK: `rte_pktmbuf_prepend`.)
    #[inline]
    pub fn prepend(&mut self, bytes: u16) -> Option<&mut [u8]> {
        let state = self.state_mut();
        state.head = state.head.checked_sub(bytes)?;
        state.len = state.len.wrapping_add(bytes.into());
        Some(&mut self.bytes_mut()[..bytes.into()])
    }

    /// Removes `bytes` from the front of the data: a header; returns whether there were as many. (DPDK: `rte_pktmbuf_adj`.)
    #[inline]
    pub fn advance(&mut self, bytes: u16) -> bool {
        let state = self.state_mut();
        let (Some(len), Some(head)) = (state.len.checked_sub(bytes.into()), state.head.checked_add(bytes)) else {
            return false;
        };
        (state.len, state.head) = (len, head);
        true
    }

    /// Returns the id of the arena that the buffer is part of ([`Arena::id`](super::Arena::id)).
    #[inline(always)]
    pub fn arena_id(&self) -> u32 {
        self.meta().arena
    }

    /// Returns where the data starts, in bytes from the start of its arena. The arena's address ([`DmaMapping::iova`](super::DmaMapping::iova)) plus
    /// this is the address for the device.
    #[inline(always)]
    pub fn arena_offset(&self) -> u64 {
        self.meta().offset.wrapping_add(self.state().head.into())
    }

    /// Returns the data of this buffer.
    ///
    /// The bytes are plain memory: that no device writes them now rests on the rules that the module calls [the boundary](super#the-boundary). For a
    /// device that is not trusted, [`copy_to`](Self::copy_to) copies them out.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: inside the pool's chunk, initialised (arena memory starts zeroed), and borrowed with the only handle; a device was told
        // of it only while a command held the handle (the boundary: see the top of `pool.rs`).
        unsafe { std::slice::from_raw_parts(self.data().as_ptr(), self.len() as usize) }
    }

    /// Returns the data of this buffer, to be written. The rules are those of [`bytes`](Self::bytes).
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and the handle is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.data().as_ptr(), self.len() as usize) }
    }

    /// Replaces the data by `bytes`, as far as they fit behind the headroom; returns how many were copied.
    pub fn copy_from(&mut self, bytes: &[u8]) -> usize {
        let n = bytes.len().min(self.capacity().wrapping_sub(self.headroom()) as usize);
        // SAFETY: inside the buffer, whose only handle is borrowed exclusively.
        unsafe { copy_in(self.data(), &bytes[..n]) };
        self.set_len(n as u32);
        n
    }

    /// Copies the data out, as much as fits into `out`, and returns how many bytes that was. The copy is made of atomic words, so it is sound
    /// whatever a device writes meanwhile.
    pub fn copy_to(&self, out: &mut [u8]) -> usize {
        let n = out.len().min(self.len() as usize);
        // SAFETY: inside the buffer.
        unsafe { copy_out(self.data(), &mut out[..n]) };
        n
    }

    /// Returns the next buffer of the packet.
    #[inline]
    pub fn next(&self) -> Option<&Self> {
        self.state().next.as_ref()
    }

    /// Returns the next buffer of the packet, to be changed.
    #[inline]
    pub fn next_mut(&mut self) -> Option<&mut Self> {
        self.state_mut().next.as_mut()
    }

    /// Removes the rest of the chain and returns it.
    #[inline]
    pub fn take_next(&mut self) -> Option<Self> {
        self.state_mut().next.take()
    }

    /// Chains `buf`, and the buffers chained to it, to the end of this packet. It goes through the chain, one step a buffer. (DPDK: `rte_pktmbuf_chain`.)
    pub fn append(&mut self, buf: Self) {
        let mut last = self;
        while last.state().next.is_some() {
            // Looked at before it is borrowed for good.
            let Some(next) = last.next_mut() else { return };
            last = next;
        }
        last.state_mut().next = Some(buf);
    }

    /// Returns this buffer and those chained to it, in order.
    #[inline]
    pub fn segments(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |buf| buf.next())
    }

    /// Returns the length of the whole packet, in bytes: the sum over its buffers.
    #[inline]
    pub fn packet_len(&self) -> u64 {
        match self.next() {
            None => self.len().into(),
            Some(_) => self.segments().map(|buf| u64::from(buf.len())).sum(),
        }
    }

    /// Returns the hash by which the device chose the packet's receive queue. ([`Offloads::rss_hash`](crate::net::Offloads::rss_hash).)
    #[inline]
    pub fn hash(&self) -> Option<u32> {
        (self.state().flags & flag::HASH != 0).then_some(self.state().hash)
    }

    /// Sets the packet's hash.
    #[inline]
    pub fn set_hash(&mut self, hash: u32) {
        let state = self.state_mut();
        state.hash = hash;
        state.flags |= flag::HASH;
    }

    /// Returns the VLAN tag that was removed from the packet, or is to be inserted: the 16 bits of tag control information (IEEE 802.1Q).
    #[inline]
    pub fn vlan(&self) -> Option<u16> {
        (self.state().flags & flag::VLAN != 0).then_some(self.state().vlan)
    }

    /// Sets the VLAN tag that is to be inserted, or was removed; `None` for none.
    #[inline]
    pub fn set_vlan(&mut self, tag: Option<u16>) {
        let state = self.state_mut();
        state.flags &= !flag::VLAN;
        if let Some(tag) = tag {
            state.vlan = tag;
            state.flags |= flag::VLAN;
        }
    }

    /// Returns when the packet was received, in nanoseconds of the device's clock.
    #[inline]
    pub fn timestamp(&self) -> Option<u64> {
        (self.state().flags & flag::TIMESTAMP != 0).then_some(self.state().word)
    }

    /// Sets when the packet was received. It replaces the [offload](Self::offload): a packet has one of the two.
    #[inline]
    pub fn set_timestamp(&mut self, nanoseconds: u64) {
        let state = self.state_mut();
        state.word = nanoseconds;
        state.flags = state.flags & !flag::OFFLOAD | flag::TIMESTAMP;
    }

    /// Returns the work that remains to be done with the packet.
    #[inline]
    pub fn offload(&self) -> Option<Offload> {
        (self.state().flags & flag::OFFLOAD != 0).then(|| Offload::unpack(self.state().word))
    }

    /// Sets the work that remains to be done with the packet; `None` for none. An offload replaces the [timestamp](Self::timestamp): a packet has one
    /// of the two.
    #[inline]
    pub fn set_offload(&mut self, offload: Option<Offload>) {
        let state = self.state_mut();
        state.flags &= !flag::OFFLOAD;
        if let Some(offload) = offload {
            state.word = offload.pack();
            state.flags = state.flags & !flag::TIMESTAMP | flag::OFFLOAD;
        }
    }

    /// Returns whether the packet is to be sent as it is: without an offload, a VLAN tag to insert, or a wish for the time at which it is sent.
    #[inline]
    pub fn is_plain(&self) -> bool {
        self.state().flags & (flag::OFFLOAD | flag::VLAN | flag::TIMESYNC) == 0
    }

    /// Returns whether the device is to keep the time at which it sends the packet.
    #[inline]
    pub fn timesync(&self) -> bool {
        self.state().flags & flag::TIMESYNC != 0
    }

    /// Sets whether the device is to keep the time at which it sends the packet, for who asks for it afterwards. A device without such a clock sends the packet
    /// all the same. (DPDK: `RTE_MBUF_F_TX_IEEE1588_TMST`.)
    #[inline]
    pub fn set_timesync(&mut self, on: bool) {
        let state = self.state_mut();
        state.flags = state.flags & !flag::TIMESYNC | if on { flag::TIMESYNC } else { 0 };
    }

    /// Returns the results of the device's checks of the network-layer and the transport-layer checksum.
    #[inline]
    pub fn checked(&self) -> (Checked, Checked) {
        let of = |shift: u32| match self.state().flags >> shift & 3 {
            1 => Checked::Good,
            2 => Checked::Bad,
            _ => Checked::Unknown,
        };
        (of(flag::L3_SHIFT), of(flag::L4_SHIFT))
    }

    /// Sets the results of the checks of the network-layer and the transport-layer checksum.
    #[inline]
    pub fn set_checked(&mut self, l3: Checked, l4: Checked) {
        let state = self.state_mut();
        state.flags &= !(3 << flag::L3_SHIFT | 3 << flag::L4_SHIFT);
        state.flags |= (l3 as u16) << flag::L3_SHIFT | (l4 as u16) << flag::L4_SHIFT;
    }
}

impl Drop for Buf {
    #[inline]
    fn drop(&mut self) {
        // One after the other, however long the chain is.
        let mut next = self.take_next();
        while let Some(mut buf) = next {
            next = buf.take_next();
        }
        let home = self.meta().home.as_ptr();
        // SAFETY: a pool with buffers out is never freed, and this one is out until it can be taken from the ring. What is pushed takes
        // this handle's place, which nobody uses any more. The ring has room for all of the pool's buffers.
        let pushed = unsafe { Ring::push_at(home, Self(self.0)) };
        pushed.unwrap_or_else(std::mem::forget);
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buf({} of {} bytes", self.len(), self.capacity())?;
        let more = self.segments().count().saturating_sub(1);
        if more > 0 { write!(f, ", {more} more)") } else { f.write_str(")") }
    }
}

#[cfg(test)]
mod tests;

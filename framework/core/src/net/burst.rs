//! Bursts: lists of packets that are received or sent together.

use crate::mem::{Buf, PoolCache, give_back};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::vec::Drain;

/// A bounded list of owned packets, which [`RxQueue::rx`](super::RxQueue::rx) fills and [`TxQueue::tx`](super::TxQueue::tx) empties.
///
/// DPDK: the array of `rte_mbuf` pointers that `rte_eth_rx_burst` takes.
///
/// A burst dereferences to a slice of [`Buf`]. It allocates when it is created, and never again. Packets that are in it when it is dropped return to their
/// pools.
///
/// ```
/// # use wholebar_core as wholebar;
/// use wholebar::mem::{Arena, ArenaOptions, Pool};
/// use wholebar::net::Burst;
///
/// let pool = Pool::new(Arena::new(1 << 20, ArenaOptions::default())?, 64, 2048, 64)?;
/// let mut burst = Burst::new(32);
/// for len in [60, 1514] {
///     burst.push(pool.get_len(len).expect("a buffer")).expect("room");
/// }
/// // Drops the packets that are longer than 1000 bytes.
/// burst.retain(|packet| packet.packet_len() <= 1000);
/// assert_eq!((burst.len(), burst.room()), (1, 31));
/// # Ok::<_, wholebar::Error>(())
/// ```
pub struct Burst {
    /// Never grows beyond its capacity.
    bufs: Vec<Buf>,
    most: usize,
}

impl Burst {
    /// Creates an empty burst for at most `most` packets; 0 is taken as 1.
    pub fn new(most: usize) -> Self {
        let most = most.max(1);
        Self { bufs: Vec::with_capacity(most), most }
    }

    /// Returns the largest number of packets that the burst can hold.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.most
    }

    /// Returns how many packets can be added.
    #[inline]
    pub fn room(&self) -> usize {
        self.most - self.bufs.len()
    }

    /// Appends a packet.
    ///
    /// # Errors
    /// Returns the packet where there is no room.
    #[inline]
    pub fn push(&mut self, buf: Buf) -> Result<(), Buf> {
        if self.room() == 0 {
            return Err(buf);
        }
        self.bufs.push(buf);
        Ok(())
    }

    /// Removes the last packet and returns it.
    #[inline]
    pub fn pop(&mut self) -> Option<Buf> {
        self.bufs.pop()
    }

    /// Removes the first `n` packets, or all where there are fewer, and returns them in order. Packets that the iterator has not returned are freed
    /// when it is dropped.
    #[inline]
    pub fn take(&mut self, n: usize) -> Drain<'_, Buf> {
        let n = n.min(self.bufs.len());
        self.bufs.drain(..n)
    }

    /// Keeps the packets for which `keep` returns `true`, in their order, and frees the others.
    #[inline]
    pub fn retain(&mut self, keep: impl FnMut(&mut Buf) -> bool) {
        self.bufs.retain_mut(keep);
    }

    /// Appends `n` empty buffers from `cache`, or none where there is no room for `n` or the pool has fewer; returns whether it did. (DPDK:
    /// `rte_pktmbuf_alloc_bulk`.)
    ///
    /// The start of each buffer is prefetched for writing, because it was last in the cache of another core or of the device.
    #[inline]
    pub fn fill(&mut self, cache: &mut PoolCache, n: usize) -> bool {
        let before = self.bufs.len();
        let done = n <= self.room() && cache.get_bulk(&mut self.bufs, n);
        if let Some(new) = self.bufs.get(before..) {
            new.iter().for_each(Buf::prefetch);
        }
        done
    }

    /// Frees all packets through `cache`: the cheapest way for those of its pool. Buffers of other pools return to theirs.
    #[inline]
    pub fn give_back_to(&mut self, cache: &mut PoolCache) {
        cache.put_bulk(&mut self.bufs);
    }

    /// Frees all packets: their buffers return to their pools, by one operation for each run of buffers of one pool. (DPDK: `rte_pktmbuf_free_bulk`.)
    #[inline]
    pub fn give_back(&mut self) {
        give_back(&mut self.bufs);
    }
}

impl Deref for Burst {
    type Target = [Buf];

    #[inline]
    fn deref(&self) -> &[Buf] {
        &self.bufs
    }
}

impl DerefMut for Burst {
    #[inline]
    fn deref_mut(&mut self) -> &mut [Buf] {
        &mut self.bufs
    }
}

impl fmt::Debug for Burst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Burst({} of {})", self.bufs.len(), self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::{Arena, ArenaOptions, Pool};

    #[test]
    fn a_burst_is_bounded_and_in_order() {
        let pool = Pool::new(Arena::new(1 << 16, ArenaOptions::default()).unwrap(), 16, 64, 64).unwrap();
        let (mut burst, mut cache) = (Burst::new(8), pool.cache(4));
        assert!(!burst.fill(&mut cache, 9) && burst.fill(&mut cache, 5));
        for (i, buf) in burst.iter_mut().enumerate() {
            buf.set_len(i as u32);
        }
        for len in 5..8 {
            burst.push(pool.get_len(len).unwrap()).unwrap();
        }
        assert_eq!((burst.room(), burst.len()), (0, 8));
        assert!(burst.push(pool.get().unwrap()).is_err());
        assert_eq!(burst.take(3).map(|buf| buf.len()).collect::<Vec<_>>(), [0, 1, 2]);
        burst.retain(|buf| buf.len() % 2 == 1);
        assert_eq!(burst.iter().map(Buf::len).collect::<Vec<_>>(), [3, 5, 7]);
        assert_eq!((burst.pop().unwrap().len(), burst.take(99).count(), burst.capacity()), (7, 2, 8));
        assert!(burst.fill(&mut cache, 8));
        burst.give_back_to(&mut cache);
        assert!(burst.fill(&mut cache, 8));
        burst.give_back();
        drop(cache);
        assert_eq!((burst.len(), pool.available()), (0, 16));
    }
}

//! A few packets that move together.

use crate::mem::{Buf, PoolCache, give_back};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::vec::Drain;

/// A bounded list of owned packets. It allocates when it is made, and never again.
pub struct Burst {
    /// Never grows beyond its capacity.
    bufs: Vec<Buf>,
    most: usize,
}

impl Burst {
    /// An empty burst for at most `most` packets (at least one).
    pub fn new(most: usize) -> Self {
        let most = most.max(1);
        Self { bufs: Vec::with_capacity(most), most }
    }

    /// How many packets there can be.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.most
    }

    /// How many more there can be.
    #[inline]
    pub fn room(&self) -> usize {
        self.most - self.bufs.len()
    }

    /// Appends a packet.
    ///
    /// # Errors
    /// The packet, where there is no room.
    #[inline]
    pub fn push(&mut self, buf: Buf) -> Result<(), Buf> {
        if self.room() == 0 {
            return Err(buf);
        }
        self.bufs.push(buf);
        Ok(())
    }

    /// Takes the last packet.
    #[inline]
    pub fn pop(&mut self) -> Option<Buf> {
        self.bufs.pop()
    }

    /// Takes the first `n` packets, or all where there are fewer; those that the iterator did not give are dropped with it.
    #[inline]
    pub fn take(&mut self, n: usize) -> Drain<'_, Buf> {
        let n = n.min(self.bufs.len());
        self.bufs.drain(..n)
    }

    /// Keeps the packets of which `keep` says so, in their order; the others are dropped.
    #[inline]
    pub fn retain(&mut self, keep: impl FnMut(&mut Buf) -> bool) {
        self.bufs.retain_mut(keep);
    }

    /// Fills the burst with `n` empty buffers more, or with none; says which. None where there is no room for as many.
    ///
    /// They are about to be written, and were last in another core's cache, a device's or a receiver's: what they begin with is asked for.
    #[inline]
    pub fn fill(&mut self, cache: &mut PoolCache, n: usize) -> bool {
        let before = self.bufs.len();
        let done = n <= self.room() && cache.get_bulk(&mut self.bufs, n);
        if let Some(new) = self.bufs.get(before..) {
            new.iter().for_each(Buf::prefetch);
        }
        done
    }

    /// Gives all buffers back to the pool that `cache` is of; those of other pools go there.
    #[inline]
    pub fn give_back_to(&mut self, cache: &mut PoolCache) {
        cache.put_bulk(&mut self.bufs);
    }

    /// Gives all buffers back to their pools.
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
        let pool = Pool::new(&Arena::new(1 << 16, ArenaOptions::default()).unwrap(), 16, 64, 64).unwrap();
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

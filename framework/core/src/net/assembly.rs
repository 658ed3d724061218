//! Packets from the parts that a device wrote, one after the other; the last one says that it is. For drivers.
//!
//! It does *not* know where parts come from. It allocates when it is made, and never again.

use crate::mem::Buf;

/// A packet that is not complete yet.
pub struct Assembly {
    parts: Vec<Buf>,
    bytes: u32,
    /// Most bytes of a packet.
    most: u32,
    /// Its parts are dropped, up to the last one.
    too_long: bool,
}

/// What a part made of a packet.
#[derive(Debug)]
pub enum Assembled {
    /// Nothing yet.
    Part,
    /// A packet, of so many bytes.
    Packet(Buf, u32),
    /// A packet that is dropped: nothing was in it, or its data is wrong.
    Malformed,
    /// A packet that is dropped: longer than a packet may be.
    TooLong,
}

impl Assembly {
    /// Creates one for packets of at most `most` bytes, in at most `parts` buffers.
    pub fn new(most: u32, parts: usize) -> Self {
        Self { parts: Vec::with_capacity(parts), bytes: 0, most, too_long: false }
    }

    /// Returns whether a packet has begun that has not ended.
    #[inline]
    pub fn is_within(&self) -> bool {
        self.too_long || !self.parts.is_empty()
    }

    /// Adds the next part: `ends` where it is the packet's last, `bad` where the device says that the packet's data is wrong.
    #[inline(always)]
    pub fn push(&mut self, part: Buf, ends: bool, bad: bool) -> Assembled {
        if ends && !self.is_within() {
            // What is most frequent: a packet in one part.
            return match part.len() {
                _ if bad => Assembled::Malformed,
                0 => Assembled::Malformed,
                len if len > self.most => Assembled::TooLong,
                len => Assembled::Packet(part, len),
            };
        }
        self.push_part(part, ends, bad)
    }

    fn push_part(&mut self, part: Buf, ends: bool, bad: bool) -> Assembled {
        self.bytes = self.bytes.saturating_add(part.len());
        // Parts with nothing in them count among the parts: there is no end to those otherwise.
        self.too_long |= self.bytes > self.most || self.parts.len() == self.parts.capacity();
        if self.too_long {
            self.parts.clear();
        } else {
            self.parts.push(part);
        }
        if !ends {
            return Assembled::Part;
        }
        let (bytes, too_long) = (std::mem::take(&mut self.bytes), std::mem::take(&mut self.too_long));
        if too_long {
            return Assembled::TooLong;
        }
        // From the last to the first: each takes the one behind it.
        let mut packet = self.parts.pop();
        while let Some(mut before) = self.parts.pop() {
            if let Some(rest) = packet.take() {
                before.append(rest);
            }
            packet = Some(before);
        }
        match packet {
            Some(packet) if bytes > 0 && !bad => Assembled::Packet(packet, bytes),
            _ => Assembled::Malformed,
        }
    }

    /// Drops what is not complete.
    pub fn clear(&mut self) {
        self.parts.clear();
        (self.bytes, self.too_long) = (0, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::{Arena, ArenaOptions, Pool};
    use proptest::prelude::*;

    fn pool() -> Pool {
        Pool::new(Arena::new(1 << 18, ArenaOptions::default()).unwrap(), 64, 1024, 64).unwrap()
    }

    #[test]
    fn packets_are_put_together_in_order() {
        let (pool, mut assembly) = (pool(), Assembly::new(4096, 4));
        let part = |i: usize, len| {
            let mut buf = pool.get_len(len).unwrap();
            buf.bytes_mut().fill(i as u8);
            buf
        };
        for lens in [vec![60], vec![1024, 1], vec![1024, 1024, 1024, 1024], vec![1024, 1024, 7]] {
            let mut made = Assembled::Part;
            for (i, len) in lens.iter().enumerate() {
                assert!(matches!(made, Assembled::Part) && assembly.is_within() == (i > 0));
                made = assembly.push(part(i, *len), i + 1 == lens.len(), false);
            }
            let Assembled::Packet(packet, bytes) = made else { panic!("{made:?}") };
            assert_eq!((packet.packet_len(), bytes), (lens.iter().map(|l| u64::from(*l)).sum(), lens.iter().sum()));
            let order: Vec<_> = packet.segments().map(|s| usize::from(s.bytes()[0])).collect();
            assert_eq!(order, (0..lens.len()).collect::<Vec<_>>());
        }
        assert_eq!(pool.available(), 64);
    }

    #[test]
    fn packets_that_are_not_are_dropped_whole() {
        let (pool, mut assembly) = (pool(), Assembly::new(2500, 3));
        let mut push = |len, ends, bad| assembly.push(pool.get_len(len).unwrap(), ends, bad);
        assert!(matches!(push(0, true, false), Assembled::Malformed));
        assert!(matches!(push(60, true, true), Assembled::Malformed));
        for last in [1024, 453] {
            assert!(matches!(push(1024, false, false), Assembled::Part));
            assert!(matches!(push(1024, false, false), Assembled::Part));
            assert!(matches!(push(last, true, false), Assembled::TooLong));
        }
        for _ in 0..50 {
            assert!(matches!(push(0, false, false), Assembled::Part), "an endless one");
        }
        assert!(matches!(push(1, true, false), Assembled::TooLong));
        assert!(matches!(push(0, false, false), Assembled::Part));
        assert!(matches!(push(0, true, false), Assembled::Malformed));
        assert!(matches!(push(5, false, false), Assembled::Part));
        assert!(matches!(push(5, true, true), Assembled::Malformed));
        assert!(matches!(push(1024, true, false), Assembled::Packet(..)));
        push(5, false, false);
        assembly.clear();
        assert!(!assembly.is_within());
        assert_eq!(pool.available(), 64);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: if cfg!(miri) { 3 } else { 256 }, ..ProptestConfig::default() })]

        /// Whatever comes, no packet is longer than it may be, and no buffer is lost.
        #[test]
        fn bounded_whatever_comes(parts in prop::collection::vec((0..=1024u32, any::<bool>(), any::<bool>()), 0..300)) {
            let (pool, mut assembly) = (pool(), Assembly::new(9018, 9));
            for (len, ends, bad) in parts {
                if let Assembled::Packet(packet, bytes) = assembly.push(pool.get_len(len).unwrap(), ends, bad) {
                    prop_assert!(bytes > 0 && bytes <= 9018 && packet.packet_len() == u64::from(bytes));
                }
                prop_assert!(pool.available() >= 64 - 9);
            }
            assembly.clear();
            prop_assert_eq!(pool.available(), 64);
        }
    }
}

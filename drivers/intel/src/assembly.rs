//! Packets from the parts that the device wrote (82576 datasheet, 7.1.5.2): one after the other, the last one says that it is.
//!
//! It does *not* know where parts come from. It allocates when it is made, and never again.

use crate::descriptor::WriteBack;
use wholebar_core::mem::Buf;

/// A packet that is not complete yet.
pub(crate) struct Assembly {
    parts: Vec<Buf>,
    bytes: u32,
    /// Most bytes of a packet.
    most: u32,
    /// Its parts are dropped, up to the last one.
    too_long: bool,
}

/// What a part made of it.
#[derive(Debug)]
pub(crate) enum Made {
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
    /// For packets of at most `most` bytes, in parts of `room` bytes.
    pub fn new(most: u32, room: u32) -> Self {
        Self { parts: Vec::with_capacity(most.div_ceil(room.max(1)) as usize), bytes: 0, most, too_long: false }
    }

    /// The next part.
    #[inline]
    pub fn push(&mut self, part: Buf, wb: WriteBack) -> Made {
        if wb.ends() && self.parts.is_empty() && !self.too_long {
            // What is most frequent: a packet in one part.
            return match part.len() {
                _ if wb.is_bad() => Made::Malformed,
                0 => Made::Malformed,
                len if len > self.most => Made::TooLong,
                len => Made::Packet(part, len),
            };
        }
        self.push_part(part, wb)
    }

    fn push_part(&mut self, part: Buf, wb: WriteBack) -> Made {
        self.bytes = self.bytes.saturating_add(part.len());
        // A part with nothing in it counts for one byte here: there is no end to those otherwise.
        self.too_long |= self.bytes > self.most || self.parts.len() == self.parts.capacity();
        if self.too_long {
            self.parts.clear();
        } else {
            self.parts.push(part);
        }
        if !wb.ends() {
            return Made::Part;
        }
        let (bytes, too_long) = (std::mem::take(&mut self.bytes), std::mem::take(&mut self.too_long));
        if too_long {
            return Made::TooLong;
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
            Some(packet) if bytes > 0 && !wb.is_bad() => Made::Packet(packet, bytes),
            _ => Made::Malformed,
        }
    }

    /// Forgets what is not complete.
    pub fn clear(&mut self) {
        self.parts.clear();
        (self.bytes, self.too_long) = (0, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use wholebar_core::mem::{Arena, ArenaOptions, Pool};

    fn pool() -> Pool {
        Pool::new(Arena::new(1 << 18, ArenaOptions::default()).unwrap(), 64, 1024, 64).unwrap()
    }

    const MORE: WriteBack = WriteBack { low: 0, high: 1 };
    const LAST: WriteBack = WriteBack { low: 0, high: 3 };
    const BAD: WriteBack = WriteBack { low: 0, high: 1 << 31 | 3 };

    #[test]
    fn packets_are_put_together_in_order() {
        let (pool, mut assembly) = (pool(), Assembly::new(4096, 1024));
        let part = |i: u8, len| {
            let mut buf = pool.get_len(len).unwrap();
            buf.bytes_mut().fill(i);
            buf
        };
        for lens in [vec![60], vec![1024, 1], vec![1024, 1024, 1024, 1024], vec![1024, 1024, 7]] {
            let mut made = Made::Part;
            for (i, len) in lens.iter().enumerate() {
                assert!(matches!(made, Made::Part));
                made = assembly.push(part(i as u8, *len), if i + 1 == lens.len() { LAST } else { MORE });
            }
            let Made::Packet(packet, bytes) = made else { panic!("{made:?}") };
            assert_eq!((packet.packet_len(), bytes), (lens.iter().map(|l| u64::from(*l)).sum(), lens.iter().sum()));
            assert_eq!(
                packet.segments().map(|s| s.bytes()[0]).collect::<Vec<_>>(),
                (0..lens.len() as u8).collect::<Vec<_>>()
            );
        }
        assert_eq!(pool.available(), 64);
    }

    #[test]
    fn packets_that_are_not_are_dropped_whole() {
        let (pool, mut assembly) = (pool(), Assembly::new(2500, 1024));
        let part = |len| pool.get_len(len).unwrap();
        assert!(matches!(assembly.push(part(0), LAST), Made::Malformed));
        assert!(matches!(assembly.push(part(60), BAD), Made::Malformed));
        for (lens, last) in [([1024, 1024, 1024], LAST), ([1024, 1024, 453], LAST)] {
            assert!(matches!(assembly.push(part(lens[0]), MORE), Made::Part));
            assert!(matches!(assembly.push(part(lens[1]), MORE), Made::Part));
            assert!(matches!(assembly.push(part(lens[2]), last), Made::TooLong));
        }
        for _ in 0..50 {
            assert!(matches!(assembly.push(part(0), MORE), Made::Part), "an endless one");
        }
        assert!(matches!(assembly.push(part(1), LAST), Made::TooLong));
        assert!(matches!(assembly.push(part(0), MORE), Made::Part));
        assert!(matches!(assembly.push(part(0), LAST), Made::Malformed));
        assert!(matches!(assembly.push(part(5), MORE), Made::Part));
        assert!(matches!(assembly.push(part(5), BAD), Made::Malformed));
        assert!(matches!(assembly.push(part(2501 - 1477), LAST), Made::Packet(..)));
        assembly.push(part(5), MORE);
        assembly.clear();
        assert_eq!(pool.available(), 64);
    }

    proptest! {
        /// Whatever comes, no packet is longer than it may be, and no buffer is lost.
        #[test]
        fn bounded_whatever_comes(parts in prop::collection::vec((0..=1024u32, any::<u64>()), 0..300)) {
            let (pool, mut assembly) = (pool(), Assembly::new(9018, 1024));
            for (len, high) in parts {
                if let Made::Packet(packet, bytes) = assembly.push(pool.get_len(len).unwrap(), WriteBack { low: 0, high }) {
                    prop_assert!(bytes > 0 && bytes <= 9018 && packet.packet_len() == u64::from(bytes));
                }
                prop_assert!(pool.available() >= 64 - 9);
            }
            assembly.clear();
            prop_assert_eq!(pool.available(), 64);
        }
    }
}

//! Packets from the parts that the device completed: one after the other, the first and the last say that they are.
//!
//! It does *not* know where parts come from. It allocates when it is made, and never again.

use crate::descriptor::RxDone;
use crate::error::Fault;
use wholebar_core::mem::Buf;

/// A packet that is not complete yet.
pub(crate) struct Assembly {
    parts: Vec<Buf>,
    /// The first part's completion; none between packets.
    first: Option<RxDone>,
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
    /// A packet, of so many bytes, with its first part's completion.
    Packet(Buf, u32, RxDone),
    /// A packet that is dropped: nothing was in it, or its data is wrong.
    Malformed,
    /// A packet that is dropped: longer than a packet may be.
    TooLong,
}

impl Assembly {
    /// For packets of at most `most` bytes, in at most `parts` buffers.
    pub fn new(most: u32, parts: u16) -> Self {
        Self { parts: Vec::with_capacity(parts.into()), first: None, bytes: 0, most, too_long: false }
    }

    /// The next part.
    #[inline]
    pub fn push(&mut self, part: Buf, done: RxDone) -> Result<Made, Fault> {
        if done.begins() == self.first.is_some() {
            return Err(Fault::Order { index: done.index() });
        }
        if done.ends() && done.begins() {
            // What is most frequent: a packet in one part.
            return Ok(match part.len() {
                _ if done.is_bad() => Made::Malformed,
                0 => Made::Malformed,
                len if len > self.most => Made::TooLong,
                len => Made::Packet(part, len, done),
            });
        }
        Ok(self.push_part(part, done))
    }

    fn push_part(&mut self, part: Buf, done: RxDone) -> Made {
        let first = *self.first.get_or_insert(done);
        self.bytes = self.bytes.saturating_add(part.len());
        self.too_long |= self.bytes > self.most || self.parts.len() == self.parts.capacity();
        if self.too_long {
            self.parts.clear();
        } else {
            self.parts.push(part);
        }
        if !done.ends() {
            return Made::Part;
        }
        let (bytes, too_long) = (std::mem::take(&mut self.bytes), std::mem::take(&mut self.too_long));
        self.first = None;
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
            Some(packet) if bytes > 0 && !done.is_bad() => Made::Packet(packet, bytes, first),
            _ => Made::Malformed,
        }
    }

    /// Forgets what is not complete; returns its parts.
    pub fn clear(&mut self) -> std::vec::Drain<'_, Buf> {
        (self.first, self.bytes, self.too_long) = (None, 0, false);
        self.parts.drain(..)
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

    const WHOLE: RxDone = RxDone { low: 3 << 14, high: 0 };
    const FIRST: RxDone = RxDone { low: 1 << 15 | 7 << 32, high: 0 };
    const MORE: RxDone = RxDone { low: 0, high: 0 };
    const LAST: RxDone = RxDone { low: 1 << 14, high: 0 };
    const BAD: u64 = 1 << 14;

    #[test]
    fn packets_are_put_together_in_order() {
        let (pool, mut assembly) = (pool(), Assembly::new(4096, 4));
        let part = |i: usize, len| {
            let mut buf = pool.get_len(len).unwrap();
            buf.bytes_mut().fill(i as u8);
            buf
        };
        for lens in [vec![60], vec![1024, 1], vec![1024, 1024, 1024, 1024], vec![1024, 1024, 7]] {
            let mut made = Made::Part;
            for (i, len) in lens.iter().enumerate() {
                assert!(matches!(made, Made::Part));
                let done = match (i, lens.len() - i) {
                    (0, 1) => WHOLE,
                    (0, _) => FIRST,
                    (_, 1) => LAST,
                    _ => MORE,
                };
                made = assembly.push(part(i, *len), done).unwrap();
            }
            let Made::Packet(packet, bytes, first) = made else { panic!("{made:?}") };
            assert_eq!((packet.packet_len(), bytes), (lens.iter().map(|l| u64::from(*l)).sum(), lens.iter().sum()));
            assert_eq!(first, if lens.len() == 1 { WHOLE } else { FIRST });
            let order: Vec<_> = packet.segments().map(|s| usize::from(s.bytes()[0])).collect();
            assert_eq!(order, (0..lens.len()).collect::<Vec<_>>());
        }
        assert_eq!(pool.available(), 64);
    }

    #[test]
    fn packets_that_are_not_are_dropped_whole() {
        let (pool, mut assembly) = (pool(), Assembly::new(2500, 3));
        let part = |len| pool.get_len(len).unwrap();
        assert!(matches!(assembly.push(part(0), WHOLE), Ok(Made::Malformed)));
        assert!(matches!(assembly.push(part(60), RxDone { high: BAD, ..WHOLE }), Ok(Made::Malformed)));
        for len in [453, 1024] {
            assert!(matches!(assembly.push(part(1024), FIRST), Ok(Made::Part)));
            assert!(matches!(assembly.push(part(1024), MORE), Ok(Made::Part)));
            assert!(matches!(assembly.push(part(len), LAST), Ok(Made::TooLong)));
        }
        assert!(matches!(assembly.push(part(0), FIRST), Ok(Made::Part)));
        for _ in 0..50 {
            assert!(matches!(assembly.push(part(0), MORE), Ok(Made::Part)), "an endless one");
        }
        assert!(matches!(assembly.push(part(1), LAST), Ok(Made::TooLong)));
        assert!(matches!(assembly.push(part(5), FIRST), Ok(Made::Part)));
        assert!(matches!(assembly.push(part(5), RxDone { high: BAD, ..LAST }), Ok(Made::Malformed)));
        // One that goes on without having begun, and one that begins within another.
        for done in [MORE, LAST] {
            assert!(matches!(assembly.push(part(5), done), Err(Fault::Order { index: 0 })));
        }
        assembly.push(part(5), FIRST).unwrap();
        for done in [FIRST, WHOLE] {
            assert!(matches!(assembly.push(part(5), done), Err(Fault::Order { index: 0 })));
        }
        assert_eq!((assembly.clear().count(), pool.available()), (1, 64));
    }

    proptest! {
        /// Whatever comes, no packet is longer than it may be, and no buffer is lost.
        #[test]
        fn bounded_whatever_comes(parts in prop::collection::vec((0..=1024u32, any::<u64>(), any::<u64>()), 0..300)) {
            let (pool, mut assembly) = (pool(), Assembly::new(9018, 9));
            for (len, low, high) in parts {
                let made = assembly.push(pool.get_len(len).unwrap(), RxDone { low, high });
                if let Ok(Made::Packet(packet, bytes, _)) = made {
                    prop_assert!(bytes > 0 && bytes <= 9018 && packet.packet_len() == u64::from(bytes));
                }
                prop_assert!(pool.available() >= 64 - 9);
            }
            assembly.clear();
            prop_assert_eq!(pool.available(), 64);
        }
    }
}

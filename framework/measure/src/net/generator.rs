//! Packets of flows, made at a rate: what one queue that sends is given.
//!
//! ```
//! use std::sync::Arc;
//! use wholebar::mem::{Arena, ArenaOptions, Pool};
//! use wholebar::net::Mac;
//! use wholebar_measure::net::generator::Generator;
//! use wholebar_measure::net::rate::{Rate, RateLimiter};
//! use wholebar_measure::net::sizes::{FrameSizes, Sizes};
//! use wholebar_measure::net::template::{Headers, Template};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let headers = Headers { from: Mac([2, 0, 0, 0, 0, 1]), to: Mac([2, 0, 0, 0, 0, 2]), vlan: None, v6: false };
//! let template = Arc::new(Template::new(&headers, 1, 1)?);
//! let limiter = RateLimiter::new(Rate::Packets(1e6), 1);
//! let mut generator = Generator::new(template, FrameSizes::new(Sizes::One(64), 1), limiter, 7, 0..1)?;
//! let pool = Pool::new(Arena::new(1 << 16, ArenaOptions::default())?, 8, 2048, 64)?;
//! let mut cache = pool.cache(4);
//! // The time is a clock's, in nanoseconds: here it stands still, and one packet is due.
//! generator.start(0);
//! let mut packets = 0;
//! while generator.is_due(0) {
//!     let packet = generator.make(&mut cache, 0, 0).ok_or("no buffer is left")?;
//!     assert_eq!(packet.len(), 60);
//!     packets += 1;
//! }
//! assert_eq!(packets, 1);
//! # Ok(()) }
//! ```

use super::mark::Mark;
use super::rate::RateLimiter;
use super::sizes::{FCS, FrameSizes};
use super::template::Template;
use crate::{Error, Result};
use std::sync::Arc;
use wholebar_core::mem::{Buf, PoolCache};

/// Packets of flows, in turn. It allocates when it is made, and not any more.
pub struct Generator {
    template: Arc<Template>,
    sizes: FrameSizes,
    limiter: RateLimiter,
    run: u8,
    /// Its flows, each with its next number.
    flows: Vec<(u16, u64)>,
    /// The flow whose turn it is.
    next_flow: usize,
    /// Room for a packet that no buffer holds.
    scratch: Vec<u8>,
}

impl Generator {
    /// Makes packets of these flows, some or all of the template's, with the number of a run in their marks.
    ///
    /// # Errors
    /// [`Error::FrameSize`]: frames of the smallest size have no room for headers and mark. [`Error::NoSuchFlow`]: the template does not have a flow.
    pub fn new(
        template: Arc<Template>,
        sizes: FrameSizes,
        limiter: RateLimiter,
        run: u8,
        flows: impl IntoIterator<Item = u16>,
    ) -> Result<Self> {
        let (size, most) = sizes.sizes().ends();
        let least = template.least() + FCS;
        if size < least {
            return Err(Error::FrameSize { size, least });
        }
        let flows: Vec<_> = flows.into_iter().map(|flow| (flow, 0)).collect();
        if let Some((flow, _)) = flows.iter().find(|(flow, _)| usize::from(*flow) >= template.flows()) {
            return Err(Error::NoSuchFlow { flow: *flow, flows: template.flows() });
        }
        Ok(Self { template, sizes, limiter, run, flows, next_flow: 0, scratch: vec![0; most] })
    }

    /// The first packet is due now. Times are in nanoseconds.
    pub fn start(&mut self, now: u64) {
        self.limiter.start(now);
    }

    /// Goes on to the time `now`, and returns by how many nanoseconds the rate was missed for good, as [`RateLimiter::advance`] does.
    #[inline]
    pub fn advance(&mut self, now: u64) -> u64 {
        self.limiter.advance(now)
    }

    /// Whether a packet is due.
    #[inline]
    pub fn is_due(&self, now: u64) -> bool {
        self.limiter.is_due(now)
    }

    /// The next packet, sent `now`, with so many bytes free in front of it in its first buffer; `None` where there is no flow, or no buffer for it. What
    /// does not fit into one buffer is in several.
    #[inline]
    pub fn make(&mut self, cache: &mut PoolCache, headroom: u16, now: u64) -> Option<Buf> {
        let (flow, number) = *self.flows.get(self.next_flow)?;
        let mut buf = cache.get()?;
        let size = self.sizes.next_size();
        let len = size - FCS;
        let mark = Mark { run: self.run, flow, number, sent: now };
        buf.reserve(headroom);
        let mut buf = if len <= buf.tailroom() as usize {
            buf.set_len(len as u32);
            self.template.write(buf.bytes_mut(), mark);
            buf
        } else {
            self.template.write(&mut self.scratch[..len], mark);
            fill(buf, cache, &self.scratch[..len])?
        };
        buf.set_offload(self.template.offload());
        self.limiter.sent(size);
        self.flows[self.next_flow].1 += 1;
        self.next_flow = if self.next_flow + 1 < self.flows.len() { self.next_flow + 1 } else { 0 };
        Some(buf)
    }
}

/// Puts a packet into a buffer, and into as many more as it takes; `None` where there are not as many.
#[inline]
pub fn fill(mut first: Buf, cache: &mut PoolCache, bytes: &[u8]) -> Option<Buf> {
    let mut done = first.copy_from(bytes);
    while done < bytes.len() {
        let mut next = cache.get()?;
        done += next.copy_from(&bytes[done..]);
        first.append(next);
    }
    Some(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::accounting::Accounting;
    use crate::net::rate::Rate;
    use crate::net::sizes::Sizes;
    use crate::net::template::Headers;
    use wholebar_core::mem::{Arena, ArenaOptions, Pool};
    use wholebar_core::net::Mac;

    fn generator(sizes: Sizes, flows: impl IntoIterator<Item = u16>) -> Result<Generator> {
        let headers = Headers { from: Mac([2; 6]), to: Mac([4; 6]), vlan: None, v6: false };
        let template = Arc::new(Template::new(&headers, 3, 1).unwrap());
        Generator::new(template, FrameSizes::new(sizes, 1), RateLimiter::new(Rate::Max, 1), 9, flows)
    }

    /// Whether packets fit into one buffer or not: they are whole, and each flow has its numbers.
    #[test]
    fn packets_are_whole_whatever_buffers_there_are() {
        let pool = Pool::new(Arena::new(1 << 18, ArenaOptions::default()).unwrap(), 64, 512, 64).unwrap();
        let (mut generator, mut cache) = (generator(Sizes::Range(64, 4000), [0, 2]).unwrap(), pool.cache(8));
        let mut accounting = Accounting::new(Some(9));
        for now in 0..500 {
            accounting.record(&generator.make(&mut cache, 128, now).unwrap(), now + 7);
        }
        let found = accounting.findings();
        assert_eq!((found.arrivals.received, found.missing, found.corrupt, found.flows), (500, 0, 0, 2));
        assert_eq!((found.latency.len(), found.latency.min(), found.latency.max()), (500, 7, 7));
    }

    #[test]
    fn what_cannot_be_made_is_refused() {
        assert!(matches!(generator(Sizes::Range(63, 64), [0]), Err(Error::FrameSize { size: 63, least: 64 })));
        assert!(matches!(generator(Sizes::Imix, [2, 3]), Err(Error::NoSuchFlow { flow: 3, flows: 3 })));
        let pool = Pool::new(Arena::new(1 << 16, ArenaOptions::default()).unwrap(), 2, 64, 64).unwrap();
        let mut cache = pool.cache(1);
        assert!(generator(Sizes::Imix, []).unwrap().make(&mut cache, 0, 0).is_none(), "there is no flow");
        assert!(generator(Sizes::One(1518), [0]).unwrap().make(&mut cache, 0, 0).is_none(), "two buffers are too few");
        assert!(generator(Sizes::One(64), [0]).unwrap().make(&mut cache, 0, 0).is_some(), "buffers went home");
    }
}

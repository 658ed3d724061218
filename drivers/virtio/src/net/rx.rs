//! A queue that receives (VIRTIO 1.2, 5.1.6.3 and 5.1.6.4): buffers go in empty, and come back with a header and a packet.
//!
//! A buffer has its header right in front of where the packet is to begin, so that the headroom that was asked for is there once the
//! header is taken off. Nothing here locks, allocates or calls the kernel while the queue runs.

use super::header;
use crate::device::Parked;
use crate::error::Fault;
use crate::life::Life;
use crate::ring::{Ring, Segment, Used};
use std::sync::Arc;
use wholebar_core::Table;
use wholebar_core::bar::Doorbell;
use wholebar_core::irq::EventFd;
use wholebar_core::mem::{Buf, Pool, PoolCache};
use wholebar_core::net::{Burst, QueueState, RxCounters, RxQueue};
use wholebar_core::reactor::Armed;
use wholebar_core::reset::Step;

/// How many buffers are asked of the pool at once.
const BATCH: u16 = 32;

/// What a queue's buffers are like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    /// From a buffer's start to its header, in bytes.
    pub before: u16,
    /// The header's bytes.
    pub header: u16,
    /// The header says something: it isn't all zero.
    pub read: bool,
    /// A packet can be in several buffers.
    pub merge: bool,
    /// The device was asked about checksums, and may leave them out.
    pub checksums: bool,
}

pub(super) struct Receiver<R> {
    life: Life,
    ring: R,
    layout: Layout,
    /// By the ring's identifiers.
    bufs: Table<Option<Buf>>,
    cache: Option<PoolCache>,
    /// Room to take buffers from the pool, kept between calls.
    fresh: Vec<Buf>,
    bell: Doorbell<u16>,
    counters: Arc<RxCounters>,
    vector: Option<Arc<EventFd>>,
}

/// A queue that receives, whatever its ring is.
pub(crate) trait AnyReceiver: RxQueue + Parked {
    /// Has it take buffers of `pool` from now on, and starts it.
    fn set_pool(&mut self, pool: &Pool);
}

impl<R: Ring> Receiver<R> {
    pub fn new(
        life: Life,
        ring: R,
        layout: Layout,
        bell: Doorbell<u16>,
        counters: Arc<RxCounters>,
        vector: Option<Arc<EventFd>>,
    ) -> Self {
        let bufs = Table::new(ring.size(), |_| None);
        Self { life, ring, layout, bufs, cache: None, fresh: Vec::with_capacity(BATCH.into()), bell, counters, vector }
    }

    /// The buffer that the device used, with the bytes that it wrote.
    #[inline(always)]
    fn claim(&mut self, used: Used) -> Result<Buf, Fault> {
        let mut buf = self.bufs.at_mut(used.id).take().ok_or(Fault::NotInFlight { id: used.id.into() })?;
        buf.set_len(used.len);
        Ok(buf)
    }

    /// The packet that begins in this buffer; `None` where it is dropped.
    #[inline(always)]
    fn packet(&mut self, mut buf: Buf) -> Result<Option<Buf>, Fault> {
        if self.layout.read {
            return self.packet_by_header(buf);
        }
        Ok(buf.advance(self.layout.header).then_some(buf))
    }

    fn packet_by_header(&mut self, mut buf: Buf) -> Result<Option<Buf>, Fault> {
        let mut copy = [0; header::LEN_WITH_HASH as usize];
        let copy = &mut copy[..self.layout.header.into()];
        let whole = buf.copy_to(copy) == copy.len() && buf.advance(self.layout.header);
        let buffers = if self.layout.merge && whole { header::buffers(copy) } else { 1 };
        for came in 1..buffers {
            // 5.1.6.4.1: the device uses all buffers of a packet together.
            let used = self.ring.take()?.ok_or(Fault::Incomplete { buffers, came })?;
            let more = self.claim(used)?;
            buf.append(more);
        }
        let good = whole && buffers > 0 && header::received(copy, &mut buf).is_some();
        if good && !self.layout.checksums && header::is_vouched_for(copy) {
            header::fill_in(&mut buf);
        }
        Ok(good.then_some(buf))
    }

    /// Gives the device new buffers.
    #[inline(always)]
    fn refill(&mut self) {
        if self.ring.free() >= BATCH.min(self.ring.size() / 2) {
            self.post_fresh();
        }
    }

    fn post_fresh(&mut self) {
        let Some(cache) = &mut self.cache else { return };
        let Layout { before, .. } = self.layout;
        'full: while self.ring.free() > 0 {
            let wanted = self.ring.free().min(BATCH).into();
            let enough = cache.get_bulk(&mut self.fresh, wanted);
            if !enough {
                self.counters.no_buffers.add(1);
                self.fresh.extend(std::iter::from_fn(|| cache.get()).take(wanted));
            }
            while let Some(mut buf) = self.fresh.pop() {
                // `set_pool` saw that there is room, and the device let in.
                let Some(iova) = buf.reserve(before).then(|| self.life.iova(&buf)).flatten() else { break 'full };
                let id = self.ring.post_one(Segment { iova, len: buf.capacity() - u32::from(before) }, true);
                // Its last buffer was taken, so there is nothing to drop.
                std::mem::forget(self.bufs.at_mut(id).replace(buf));
            }
            if !enough {
                break;
            }
        }
        if self.ring.publish() {
            self.bell.ring(self.life.index());
            self.counters.doorbells.add(1);
        }
    }

    /// A poll of a queue that does not run: its buffers go home once the device cannot write them any more.
    #[cold]
    fn closed(&mut self) {
        match self.life.step(self.ring.has_taken()) {
            None | Some(Step::Stop) => {}
            Some(Step::Abort) => self.bufs.fill_with(|| None),
            Some(Step::Restart) => {
                self.bufs.fill_with(|| None);
                self.ring.restart();
                self.life.enter();
                self.post_fresh();
            }
            Some(Step::Ended(end)) if end.harmless => self.bufs.fill_with(|| None),
            Some(Step::Ended(_) | Step::Expelled) => self.quarantine(),
        }
    }

    fn quarantine(&mut self) {
        self.life.quarantine(self.bufs.iter_mut().filter_map(Option::take));
    }
}

impl<R: Ring> RxQueue for Receiver<R> {
    fn rx(&mut self, out: &mut Burst) -> usize {
        if !self.life.is_open() {
            self.closed();
            return 0;
        }
        let (mut packets, mut bytes, mut dropped) = (0, 0, 0);
        for _ in 0..out.room() {
            let next = match self.ring.take() {
                Ok(None) => break,
                Ok(Some(used)) => self.claim(used).and_then(|buf| self.packet(buf)),
                Err(fault) => Err(fault),
            };
            match next {
                Ok(Some(packet)) => {
                    // Who receives it will look at it.
                    packet.prefetch();
                    packets += 1;
                    bytes += packet.packet_len();
                    // There is room.
                    let _ = out.push(packet);
                }
                Ok(None) => dropped += 1,
                Err(fault) => {
                    self.life.break_down(fault);
                    break;
                }
            }
        }
        if packets > 0 {
            self.counters.packets.add(packets);
            self.counters.bytes.add(bytes);
            self.counters.bursts.add(1);
        }
        if dropped > 0 {
            self.counters.dropped_malformed.add(dropped);
        }
        if self.life.is_open() {
            self.refill();
        }
        packets as usize
    }

    fn state(&self) -> QueueState {
        self.life.state()
    }

    fn wakeup(&self) -> Option<Arc<EventFd>> {
        self.vector.clone()
    }

    fn arm(&mut self) -> Armed {
        if self.vector.is_none() || !self.life.is_open() {
            return Armed::No;
        }
        self.counters.armed.add(1);
        self.ring.set_interrupt(true);
        Armed::Yes
    }

    fn disarm(&mut self) {
        if self.life.is_open() {
            self.ring.set_interrupt(false);
        }
    }
}

impl<R: Ring> Parked for Receiver<R> {
    fn is_lost(&self) -> bool {
        self.life.is_lost()
    }

    fn check_timeouts(&mut self) {
        if !self.life.is_open() {
            self.closed();
        }
    }
}

impl<R: Ring> AnyReceiver for Receiver<R> {
    fn set_pool(&mut self, pool: &Pool) {
        self.cache = Some(pool.cache(BATCH.into()));
        self.check_timeouts();
        if self.life.is_open() {
            self.post_fresh();
        }
    }
}

impl<R> Drop for Receiver<R> {
    fn drop(&mut self) {
        if !self.life.is_harmless() {
            self.life.quarantine(self.bufs.iter_mut().filter_map(Option::take));
        }
    }
}

//! A queue that receives, owned by one core.
//!
//! The device fills buffers in the order in which it was given them. Nothing here locks, allocates or calls the kernel while the queue runs.

use crate::descriptor::WriteBack;
use crate::device::{Handle, RxParts, Wakeup, delete_queue};
use crate::error::{Error, Fault};
use crate::family::{Family, QueueId};
use crate::rx_ring::RxRing;
use std::sync::Arc;
use wholebar_core::bar::{Doorbell, DoorbellCounts};
use wholebar_core::irq::EventFd;
use wholebar_core::mem::{Buf, DmaMapping, PoolCache};
use wholebar_core::net::{Assembled, Assembly, Burst, QueueState, RxCounters, RxQueue};
use wholebar_core::reactor::Armed;
use wholebar_core::reset::{Gate, InFlight};

/// A receive queue of an [`Nic`](crate::Nic).
pub struct Rx<F: Family> {
    gate: Gate,
    ring: RxRing,
    assembly: Assembly,
    cache: PoolCache,
    bell: Doorbell<u32>,
    /// What the pool's arena begins with, as the device sees it.
    base: u64,
    headroom: u16,
    /// Once so many descriptors are free, the device is given buffers.
    refill_at: u32,
    hash: bool,
    checksums: bool,
    counters: Arc<RxCounters>,
    wakeup: Option<Wakeup>,
    index: u16,
    inner: Arc<Handle<F>>,
    /// The pool's arena is mapped while this queue is there.
    _buffers: Arc<DmaMapping>,
}

/// Buffers are given to the device by so many at least: one doorbell each time.
const REFILL: u32 = 32;

impl<F: Family> Rx<F> {
    pub(crate) fn new(inner: Arc<Handle<F>>, parts: RxParts) -> Self {
        let RxParts { index, gate, ring, bell, wakeup, pool, buffers } = parts;
        let (entries, max_packet) = (ring.words().len(), inner.driver().max_packet);
        let counters = inner.driver().rx_counters.get(usize::from(index)).cloned().unwrap_or_default();
        let mut new = Self {
            gate,
            assembly: Assembly::new(max_packet, max_packet.div_ceil(ring.room().max(1)) as usize),
            ring,
            cache: pool.cache(REFILL),
            bell,
            base: buffers.iova().0,
            headroom: inner.driver().config.headroom,
            refill_at: REFILL.min(entries / 4),
            hash: inner.driver().granted.rss_hash,
            checksums: inner.driver().granted.rx_checksum,
            counters,
            wakeup,
            index,
            inner,
            _buffers: buffers,
        };
        new.refill();
        new
    }

    /// Appends received packets to `out`, as many as it has room for, and returns their number: [`RxQueue::rx`].
    #[inline]
    pub fn rx(&mut self, out: &mut Burst) -> usize {
        if !self.gate.open() {
            self.closed();
            return 0;
        }
        let (mut packets, mut bytes) = (0, 0);
        while out.room() > 0 {
            let Some(taken) = self.ring.take() else { break };
            let (part, wb) = match taken {
                Ok(taken) => taken,
                Err(fault) => {
                    self.break_down(fault);
                    break;
                }
            };
            match self.assembly.push(part, wb.ends(), wb.is_bad()) {
                Assembled::Packet(mut packet, len) => {
                    self.describe(&mut packet, wb);
                    (packets, bytes) = (packets + 1, bytes + u64::from(len));
                    // There is room for it.
                    let _ = out.push(packet);
                }
                Assembled::Part => {}
                Assembled::Malformed => self.counters.dropped_malformed.add(1),
                Assembled::TooLong => self.counters.dropped_too_long.add(1),
            }
        }
        if packets > 0 {
            self.counters.packets.add(packets);
            self.counters.bytes.add(bytes);
            self.counters.bursts.add(1);
        }
        if self.ring.free() >= self.refill_at && self.gate.open() {
            self.refill();
        }
        packets as usize
    }

    /// What the device found out about a packet: the last part's descriptor has it.
    #[inline(always)]
    fn describe(&self, packet: &mut Buf, wb: WriteBack) {
        if self.hash
            && let Some(hash) = wb.hash()
        {
            packet.set_hash(hash);
        }
        if let Some(tag) = wb.vlan() {
            packet.set_vlan(Some(tag));
        }
        if self.checksums {
            let (l3, l4) = wb.checked();
            packet.set_checked(l3, l4);
        }
        if F::STAMPS && wb.is_stamped() {
            self.stamp(packet);
        }
    }

    /// Gives a packet the time of its arrival, by register reads and a lock. There is one such packet at a time.
    #[cold]
    fn stamp(&self, packet: &mut Buf) {
        let driver = self.inner.driver();
        if let Some(clock) = &*driver.clock()
            && let Ok(Some(stamp)) = F::rx_stamp(&driver.hw)
        {
            packet.set_timestamp(clock.at(stamp).as_nanos() as u64);
        }
    }

    /// Gives the device as many buffers as it takes, or as there are: one doorbell.
    fn refill(&mut self) {
        let before = self.ring.free();
        while self.ring.free() > 0 {
            let Some(mut buf) = self.cache.get() else {
                self.counters.no_buffers.add(1);
                break;
            };
            buf.reserve(self.headroom);
            let iova = self.base.wrapping_add(buf.arena_offset());
            self.ring.give(buf, iova);
        }
        if self.ring.free() != before {
            self.bell.ring(self.ring.tail());
            self.counters.doorbells.add(1);
        }
    }

    /// The ring holds what the device may not write there: hands off, until it was reset.
    #[cold]
    fn break_down(&mut self, fault: Fault) {
        tracing::error!(queue = self.index, %fault, "a queue is broken");
        let epoch = self.gate.epoch();
        self.gate.close();
        if let Some(epoch) = epoch {
            let (device, queue) = (self.inner.driver().hw.name(), self.index);
            self.inner.queue_context().report_fault(epoch, Error::Broken { device, queue, fault });
        }
    }

    /// A poll of a queue that does not run.
    #[cold]
    fn closed(&mut self) {
        match self.gate.settle(self.ring.has_completed()) {
            InFlight::Keep => {}
            InFlight::Restart => {
                self.let_go();
                self.gate.enter();
                self.refill();
            }
            InFlight::Free => self.let_go(),
            InFlight::Quarantine => self.quarantine(),
        }
    }

    /// Buffers go home.
    fn let_go(&mut self) {
        self.assembly.clear();
        self.ring.restart().for_each(drop);
    }

    /// Buffers that the device has never go home.
    fn quarantine(&mut self) {
        self.assembly.clear();
        let lost = self.ring.restart().map(Buf::quarantine).sum();
        self.gate.quarantined(lost);
    }

    /// Returns whether the queue can be used.
    pub fn state(&self) -> QueueState {
        self.gate.state(format_args!("receive queue {}", self.index), self.inner.driver().options.stop_timeout)
    }

    /// Returns the eventfd that is signalled while the queue is armed; `None` where it can only be polled.
    pub fn wakeup(&self) -> Option<Arc<EventFd>> {
        self.wakeup.as_ref().map(|wakeup| wakeup.fd.clone())
    }

    /// Requests an interrupt for the next packet, by two register writes. Call [`rx`](Self::rx) once more after this.
    pub fn arm(&mut self) -> Armed {
        if !self.gate.open() {
            return Armed::No;
        }
        let Some(wakeup) = &mut self.wakeup else { return Armed::No };
        // What came before is found by the call that follows; what comes from here on sets the cause again.
        wakeup.cause.ring(wakeup.bit);
        wakeup.unmask.ring(wakeup.bit);
        self.counters.armed.add(1);
        Armed::Yes
    }

    /// Turns the interrupt off again, by a register write.
    pub fn disarm(&mut self) {
        if self.gate.open()
            && let Some(wakeup) = &mut self.wakeup
        {
            wakeup.mask.ring(wakeup.bit);
        }
    }

    /// Returns the queue's number.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Returns how often the doorbell was rung.
    pub fn doorbells(&self) -> DoorbellCounts {
        self.bell.counts()
    }
}

impl<F: Family> RxQueue for Rx<F> {
    fn rx(&mut self, out: &mut Burst) -> usize {
        Rx::rx(self, out)
    }

    fn state(&self) -> QueueState {
        Rx::state(self)
    }

    fn wakeup(&self) -> Option<Arc<EventFd>> {
        Rx::wakeup(self)
    }

    fn arm(&mut self) -> Armed {
        Rx::arm(self)
    }

    fn disarm(&mut self) {
        Rx::disarm(self);
    }
}

impl<F: Family> Drop for Rx<F> {
    fn drop(&mut self) {
        self.disarm();
        if delete_queue(&self.inner, QueueId::rx(self.index), &mut self.gate) {
            self.ring.words().set_quarantine(false);
            self.let_go();
        } else {
            self.quarantine();
        }
    }
}

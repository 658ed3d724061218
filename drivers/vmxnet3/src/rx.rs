//! A queue that receives.
//!
//! Nothing here locks, allocates or calls the kernel while the queue runs. The device looks at generations, so it is told of new buffers only where it
//! asks for that.

use crate::descriptor::{RX_ROOM, RxDone};
use crate::device::{Handle, Parked, Queue, RxParts};
use crate::error::Fault;
use crate::member::Member;
use crate::rx_ring::RxRing;
use crate::shared::QueueWords;
use std::sync::Arc;
use wholebar_core::bar::{Doorbell, DoorbellCounts};
use wholebar_core::irq::EventFd;
use wholebar_core::mem::{Buf, L4, Pool, PoolCache};
use wholebar_core::net::gso::Headers;
use wholebar_core::net::{Assembled, Assembly, Burst, QueueState, RxCounters, RxQueue};
use wholebar_core::reactor::Armed;
use wholebar_core::reset::InFlight;

/// A receive queue of a [`Vmxnet3`](crate::Vmxnet3), owned by one core.
///
/// The device has to know its queues before it starts, so one that is dropped stays with the device, its buffers included, until it is
/// [had](crate::Vmxnet3::rx) again, or the device is closed.
pub struct Rx {
    queue: Option<Box<Receiver>>,
    home: Arc<Handle>,
}

/// A queue that receives, whoever has it.
pub(crate) struct Receiver {
    member: Member,
    ring: RxRing,
    assembly: Assembly,
    /// The completion of the part with which the last packet began.
    first: RxDone,
    /// None until somebody has had the queue.
    cache: Option<PoolCache>,
    /// Packets may be larger than a buffer of the pool.
    in_parts: bool,
    /// The device has not been told where the rings begin.
    untold: bool,
    bells: [Doorbell<u32>; 2],
    words: QueueWords,
    /// Once so many descriptors are free, the device is given buffers.
    refill_at: u32,
    counters: Arc<RxCounters>,
    wakeup: Option<Wakeup>,
}

/// A vector, and the register that masks it.
pub(crate) struct Wakeup {
    pub fd: Arc<EventFd>,
    pub mask: Doorbell<u32>,
}

/// Buffers are given to the device by so many at least.
const REFILL: u32 = 32;

impl Receiver {
    pub fn new(parts: RxParts) -> Self {
        let RxParts { member, ring, bells, words, counters, wakeup } = parts;
        let assembly = Assembly::new(member.shared.max_received, member.shared.segments.into());
        let refill_at = REFILL.min((ring.heads.free() + 1) / 4);
        let (cache, in_parts, untold) = (None, false, true);
        Self {
            member,
            ring,
            assembly,
            first: RxDone::default(),
            cache,
            in_parts,
            untold,
            bells,
            words,
            refill_at,
            counters,
            wakeup,
        }
    }

    /// Has it take buffers of `pool` from now on, and starts it.
    pub fn set_pool(&mut self, pool: &Pool) {
        let room = pool.size().saturating_sub(self.member.shared.config.headroom.into()).min(RX_ROOM);
        self.in_parts = self.member.shared.segments > 1 && self.member.shared.max_received > room;
        self.cache = Some(pool.cache(REFILL));
        self.follow_resets();
        if self.member.is_open() {
            self.refill();
        }
    }

    #[inline]
    fn rx(&mut self, out: &mut Burst) -> usize {
        if !self.member.is_open() {
            self.closed();
            return 0;
        }
        let (mut packets, mut bytes) = (0, 0);
        while out.room() > 0 {
            let Some(taken) = self.ring.take() else { break };
            match taken.and_then(|(part, done)| Ok((self.add(part, done)?, done))) {
                Ok((Assembled::Packet(mut packet, len), last)) => {
                    self.describe(&mut packet, len, self.first, last);
                    (packets, bytes) = (packets + 1, bytes + u64::from(len));
                    // There is room for it.
                    let _ = out.push(packet);
                }
                Ok((Assembled::Part, _)) => {}
                Ok((Assembled::Malformed, _)) => self.counters.dropped_malformed.add(1),
                Ok((Assembled::TooLong, _)) => self.counters.dropped_too_long.add(1),
                Err(fault) => {
                    self.member.break_down(fault);
                    break;
                }
            }
        }
        if packets > 0 {
            self.counters.packets.add(packets);
            self.counters.bytes.add(bytes);
            self.counters.bursts.add(1);
        }
        let wanted =
            self.ring.heads.free() >= self.refill_at || (self.in_parts && self.ring.bodies.free() >= self.refill_at);
        if wanted && self.member.is_open() {
            self.refill();
        }
        packets as usize
    }

    /// What the next part makes of a packet. Both the first and the last say that they are.
    #[inline(always)]
    fn add(&mut self, part: Buf, done: RxDone) -> Result<Assembled, Fault> {
        if done.begins() == self.assembly.is_within() {
            return Err(Fault::Order { index: done.index() });
        }
        if done.begins() {
            self.first = done;
        }
        Ok(self.assembly.push(part, done.ends(), done.is_bad()))
    }

    /// What the device found out about a packet: its last part's completion has it, but for how it was merged, which the first's has.
    #[inline(always)]
    fn describe(&self, packet: &mut Buf, len: u32, first: RxDone, last: RxDone) {
        let granted = &self.member.shared.granted;
        if granted.rss_hash
            && let Some(hash) = last.hash().or(first.hash())
        {
            packet.set_hash(hash);
        }
        if let Some(tag) = last.vlan() {
            packet.set_vlan(Some(tag));
        }
        if granted.rx_checksum {
            let (l3, l4) = last.checked();
            packet.set_checked(l3, l4);
        }
        if granted.lro && (first.is_merged() || len > self.member.shared.max_packet) {
            self.describe_merged(packet, first, last);
        }
    }

    /// Says how a packet was merged. A device of revision 1 does not tell how long its segments were: they are taken to be as long as the MTU allows.
    #[cold]
    fn describe_merged(&self, packet: &mut Buf, first: RxDone, last: RxDone) {
        let Some(headers) = Headers::of(packet.bytes(), last.is_ipv6(), L4::Tcp, None) else { return };
        let most = self.member.shared.max_packet.saturating_sub(headers.len() as u32) as u16;
        let segment = if first.is_merged() && first.segment() > 0 { first.segment() } else { most };
        packet.set_offload(Some(headers.to_cut(segment)));
    }

    /// Gives the device as many buffers as it takes, or as there are; of two rings, first the one that has fewer.
    fn refill(&mut self) {
        let Some(cache) = &mut self.cache else { return };
        let mut given = false;
        loop {
            let RxRing { heads, bodies, .. } = &mut self.ring;
            let buffers = if self.in_parts && bodies.free() > heads.free() { bodies } else { heads };
            if buffers.free() == 0 {
                break;
            }
            let Some(mut buf) = cache.get() else {
                self.counters.no_buffers.add(1);
                break;
            };
            // Whoever set the pool saw that there is room, and let the device in.
            buf.reserve(self.member.shared.config.headroom);
            let Some(iova) = self.member.iova(&buf) else { break };
            buffers.give(buf, iova);
            given = true;
        }
        if given && (self.untold || self.words.wants_buffers_told()) {
            self.untold = false;
            self.bells[0].ring(self.ring.heads.tail());
            self.counters.doorbells.add(1);
            if self.in_parts {
                self.bells[1].ring(self.ring.bodies.tail());
                self.counters.doorbells.add(1);
            }
        }
    }

    /// A poll of a queue that does not run.
    #[cold]
    fn closed(&mut self) {
        match self.member.settle(self.ring.has_completed()) {
            InFlight::Keep => {}
            InFlight::Restart => {
                self.let_go();
                self.untold = true;
                self.member.enter();
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
        self.member.quarantined(lost);
    }

    fn arm(&mut self) -> Armed {
        if !self.member.is_open() {
            return Armed::No;
        }
        let Some(wakeup) = &mut self.wakeup else { return Armed::No };
        // What came while it was masked is pending, and raises the interrupt at once.
        wakeup.mask.ring(0);
        self.counters.armed.add(1);
        Armed::Yes
    }

    fn disarm(&mut self) {
        if self.member.is_open()
            && let Some(wakeup) = &mut self.wakeup
        {
            wakeup.mask.ring(1);
        }
    }
}

impl Parked for Receiver {
    fn follow_resets(&mut self) {
        if !self.member.is_open() {
            self.closed();
        }
    }

    fn is_lost(&self) -> bool {
        self.member.is_lost()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        match self.member.last() {
            InFlight::Free => self.let_go(),
            _ => self.quarantine(),
        }
    }
}

impl Rx {
    pub(crate) fn new(queue: Box<Receiver>, home: Arc<Handle>) -> Self {
        Self { queue: Some(queue), home }
    }

    /// Appends received packets to `out`, as many as it has room for, and returns their number: [`RxQueue::rx`].
    #[inline]
    pub fn rx(&mut self, out: &mut Burst) -> usize {
        self.queue.as_mut().map_or(0, |queue| queue.rx(out))
    }

    /// Returns whether the queue can be used.
    pub fn state(&self) -> QueueState {
        self.queue.as_ref().map_or(QueueState::Gone, |queue| queue.member.state())
    }

    /// Returns the eventfd that is signalled while the queue is armed; `None` where it can only be polled.
    pub fn wakeup(&self) -> Option<Arc<EventFd>> {
        self.queue.as_ref()?.wakeup.as_ref().map(|wakeup| wakeup.fd.clone())
    }

    /// Requests an interrupt for the next packet, by a register write. Call [`rx`](Self::rx) once more after this. A packet that was polled may raise one,
    /// too.
    pub fn arm(&mut self) -> Armed {
        self.queue.as_mut().map_or(Armed::No, |queue| queue.arm())
    }

    /// Turns the interrupt off again, by a register write.
    pub fn disarm(&mut self) {
        if let Some(queue) = &mut self.queue {
            queue.disarm();
        }
    }

    /// Returns the queue's number.
    pub fn index(&self) -> u16 {
        self.queue.as_ref().map_or(0, |queue| queue.member.id.index)
    }

    /// Returns how often the doorbell of the ring in which packets begin was rung.
    pub fn doorbells(&self) -> DoorbellCounts {
        self.queue.as_ref().map(|queue| queue.bells[0].counts()).unwrap_or_default()
    }
}

impl RxQueue for Rx {
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

impl Drop for Rx {
    fn drop(&mut self) {
        self.disarm();
        if let Some(mut queue) = self.queue.take() {
            // It is given no more buffers of this pool.
            queue.cache = None;
            self.home.peek(|control| control.park(queue.member.id, Queue::Rx(queue)));
        }
    }
}

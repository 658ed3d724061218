//! A queue that sends, owned by one core.
//!
//! A packet stays with the queue until the device reported that it was sent. Nothing here locks, allocates or calls the kernel while the queue runs
//! and packets lie in arenas that it has seen before.

use crate::descriptor::TX_TIMESYNC;
use crate::device::{Handle, TxParts, delete_queue};
use crate::family::{Family, QueueId};
use crate::offload::{self, MAX_SEGMENTED};
use crate::tx_ring::TxRing;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wholebar_core::bar::{Doorbell, DoorbellCounts};
use wholebar_core::control_plane::Iovas;
use wholebar_core::mem::{Buf, give_back};
use wholebar_core::net::{Burst, QueueState, TxCounters, TxQueue};
use wholebar_core::reset::{Gate, InFlight};

/// A transmit queue of an [`Nic`](crate::Nic).
pub struct Tx<F: Family> {
    gate: Gate,
    ring: TxRing,
    bell: Doorbell<u32>,
    iovas: Iovas,
    /// The context that the device has, if any (7.2.2.2).
    context: Option<[u64; 2]>,
    counters: Arc<TxCounters>,
    /// Room for packets that were sent, kept between calls.
    done: Vec<Buf>,
    index: u16,
    inner: Arc<Handle<F>>,
}

/// The shortest packet, in bytes: shorter ones cannot be padded (TCTL.PSP).
const SHORTEST: u32 = 17;
/// The most buffers of a packet.
const SEGMENTS: usize = 32;
/// The most bytes of a descriptor: less than any device can take (Linux: 32 KiB on the 82576, 24 KiB on the 82574).
const LONGEST: u32 = 16 << 10;
/// How long a queue that is dropped waits for its packets to be sent.
const LAST_PACKETS: Duration = Duration::from_millis(50);

/// Why a packet is taken and dropped.
enum Unfit {
    Length,
    Segments,
    Offload,
    Arena,
}

/// How many descriptors a packet's data has, of the buffers that a packet may have.
fn descriptors(packet: &Buf) -> u32 {
    packet.segments().take(SEGMENTS).map(|part| part.len().div_ceil(LONGEST)).sum()
}

impl<F: Family> Tx<F> {
    pub(crate) fn new(inner: Arc<Handle<F>>, parts: TxParts) -> Self {
        let TxParts { index, gate, ring, bell } = parts;
        let counters = inner.driver().tx_counters.get(usize::from(index)).cloned().unwrap_or_default();
        let done = Vec::with_capacity(ring.capacity() as usize);
        Self { gate, ring, bell, iovas: Iovas::default(), context: None, counters, done, index, inner }
    }

    /// Takes packets from the front of `packets`, as many as the queue has room for, and returns their number:
    /// [`TxQueue::tx`](wholebar_core::net::TxQueue::tx).
    #[inline]
    pub fn tx(&mut self, packets: &mut Burst) -> usize {
        if !self.gate.open() {
            self.closed();
            return 0;
        }
        if self.ring.free() < self.ring.capacity() / 2 {
            self.give_back();
        }
        let (mut room, mut fit) = (self.ring.free(), 0);
        for packet in packets.iter() {
            // What is larger than the ring is dropped for that.
            let need = if packet.next().is_none() && packet.is_plain() { 1 } else { descriptors(packet) + 1 };
            if need > room && need <= self.ring.capacity() {
                self.counters.full.add(1);
                break;
            }
            room = room.saturating_sub(need);
            fit += 1;
        }
        let (mut sent, mut bytes) = (0, 0);
        for mut packet in packets.take(fit) {
            match self.post(&mut packet) {
                Ok(total) => {
                    self.ring.keep(packet);
                    (sent, bytes) = (sent + 1, bytes + u64::from(total));
                }
                Err(unfit) => match unfit {
                    Unfit::Length => self.counters.dropped_length.add(1),
                    Unfit::Segments => self.counters.dropped_segments.add(1),
                    Unfit::Offload => self.counters.dropped_offload.add(1),
                    Unfit::Arena => self.counters.dropped_arena.add(1),
                },
            }
        }
        if sent > 0 {
            self.ring.mark();
            self.bell.ring(self.ring.tail());
            self.counters.doorbells.add(1);
            self.counters.packets.add(sent);
            self.counters.bytes.add(bytes);
            self.counters.bursts.add(1);
        }
        fit
    }

    /// Posts a packet's descriptors, all of them or none; returns its length.
    #[inline(always)]
    fn post(&mut self, packet: &mut Buf) -> Result<u32, Unfit> {
        let most = self.inner.driver().max_packet;
        if packet.next().is_none() && packet.is_plain() {
            // What is most frequent.
            let total = packet.len();
            if total.wrapping_sub(SHORTEST) > most - SHORTEST {
                return Err(Unfit::Length);
            }
            let iova = self.iova(packet)?;
            self.ring.post([iova, F::tx_data(total, total, true, 0)]);
            return Ok(total);
        }
        self.post_any(packet)
    }

    fn post_any(&mut self, packet: &mut Buf) -> Result<u32, Unfit> {
        let (granted, most) = (self.inner.driver().granted, self.inner.driver().max_packet);
        let (offload, vlan) = (packet.offload(), packet.vlan());
        let cut = offload.filter(|offload| offload.segment > 0);
        let total = u32::try_from(packet.packet_len()).unwrap_or(u32::MAX);
        if !(SHORTEST..=if cut.is_some() { MAX_SEGMENTED } else { most }).contains(&total) {
            return Err(Unfit::Length);
        }
        let pieces = packet.segments().filter(|part| !part.is_empty()).count();
        if packet.segments().nth(SEGMENTS).is_some() || (pieces > 1 && !granted.gather) {
            return Err(Unfit::Segments);
        }
        let headers = cut.map_or(0, |cut| cut.l4_start() + u32::from(cut.l4_len));
        let payload = total.saturating_sub(headers);
        let stamp = if F::STAMPS && packet.timesync() { TX_TIMESYNC } else { 0 };
        let (work, context) = (F::tx_work(offload, vlan) | stamp, F::tx_context(offload, vlan, payload));
        let mut left = descriptors(packet);
        if left + u32::from(context.is_some()) > self.ring.capacity() {
            return Err(Unfit::Segments);
        }
        let possible = offload.is_none_or(|asked| offload::possible::<F>(packet, &asked, total, granted, most));
        if !possible || (vlan.is_some() && !granted.vlan_insert) {
            return Err(Unfit::Offload);
        }
        // All or none: places first.
        for part in packet.segments() {
            self.iova(part)?;
        }
        if let Some(cut) = &cut {
            offload::prepare(packet, cut).ok_or(Unfit::Offload)?;
        }
        if let Some(context) = context
            && self.context != Some(context)
        {
            self.ring.post(context);
            self.context = Some(context);
        }
        for part in packet.segments() {
            let (mut iova, mut rest) = (self.iova(part)?, part.len());
            while rest > 0 {
                let len = rest.min(LONGEST);
                left -= 1;
                self.ring.post([iova, F::tx_data(len, payload, left == 0, work)]);
                (iova, rest) = (iova.wrapping_add(len.into()), rest - len);
            }
        }
        Ok(total)
    }

    /// Where a buffer's data is, as the device sees it.
    #[inline(always)]
    fn iova(&mut self, buf: &Buf) -> Result<u64, Unfit> {
        self.iovas.of(buf, self.inner.queue_context()).ok_or(Unfit::Arena)
    }

    /// Frees the buffers of packets that were sent.
    pub fn reclaim(&mut self) {
        if self.gate.open() {
            self.give_back();
        } else {
            self.closed();
        }
    }

    #[inline]
    fn give_back(&mut self) {
        self.ring.reclaim(&mut self.done);
        give_back(&mut self.done);
    }

    /// A poll of a queue that does not run.
    #[cold]
    fn closed(&mut self) {
        match self.gate.settle(self.ring.has_completed()) {
            InFlight::Keep => {}
            InFlight::Restart => {
                self.let_go();
                self.context = None;
                self.gate.enter();
            }
            InFlight::Free => self.let_go(),
            InFlight::Quarantine => self.quarantine(),
        }
    }

    /// Packets that were in flight go home.
    fn let_go(&mut self) {
        let dropped = self.ring.restart().map(drop).count();
        self.counters.dropped_reset.add(dropped as u64);
    }

    /// Packets that the device has never go home: each of their buffers.
    fn quarantine(&mut self) {
        let lost = self.ring.restart().map(Buf::quarantine).sum();
        self.gate.quarantined(lost);
    }

    /// Returns the number of packets that were taken and are not known to be sent.
    pub fn in_flight(&self) -> usize {
        self.ring.in_flight() as usize
    }

    /// Returns whether the queue can be used.
    pub fn state(&self) -> QueueState {
        self.gate.state(format_args!("transmit queue {}", self.index), self.inner.driver().options.stop_timeout)
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

impl<F: Family> TxQueue for Tx<F> {
    fn tx(&mut self, packets: &mut Burst) -> usize {
        Tx::tx(self, packets)
    }

    fn reclaim(&mut self) {
        Tx::reclaim(self);
    }

    fn in_flight(&self) -> usize {
        Tx::in_flight(self)
    }

    fn state(&self) -> QueueState {
        Tx::state(self)
    }
}

impl<F: Family> Drop for Tx<F> {
    fn drop(&mut self) {
        let start = Instant::now();
        while self.gate.open() && self.in_flight() > 0 && start.elapsed() < LAST_PACKETS {
            self.give_back();
            std::thread::yield_now();
        }
        if delete_queue(&self.inner, QueueId::tx(self.index), &mut self.gate) {
            self.ring.words().set_quarantine(false);
            self.let_go();
        } else {
            self.quarantine();
        }
    }
}

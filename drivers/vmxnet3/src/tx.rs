//! A queue that sends.
//!
//! A packet stays with the queue until the device reported that it was sent. Nothing here locks, allocates or calls the kernel while the queue runs
//! and packets lie in arenas that it has seen before.

use crate::descriptor::{TSO_PIECES, TX_PIECE, TX_PIECES, tx_possible, tx_work};
use crate::device::{Handle, Parked, Queue, TxParts};
use crate::member::Member;
use crate::shared::QueueWords;
use crate::tx_ring::TxRing;
use std::sync::Arc;
use wholebar_core::bar::{Doorbell, DoorbellCounts};
use wholebar_core::mem::{Buf, give_back};
use wholebar_core::net::{Burst, QueueState, TxCounters, TxQueue, gso};
use wholebar_core::reset::InFlight;

/// A transmit queue of a [`Vmxnet3`](crate::Vmxnet3), owned by one core.
///
/// The device has to know its queues before it starts, so one that is dropped stays with the device, its packets in flight included, until it is
/// [had](crate::Vmxnet3::tx) again, or the device is closed.
pub struct Tx {
    queue: Option<Box<Sender>>,
    home: Arc<Handle>,
}

/// A queue that sends, whoever has it.
pub(crate) struct Sender {
    member: Member,
    ring: TxRing,
    bell: Doorbell<u32>,
    words: QueueWords,
    counters: Arc<TxCounters>,
    /// Room for packets that were sent, kept between calls.
    sent: Vec<Buf>,
}

/// The shortest packet, in bytes: an Ethernet header.
const SHORTEST: u32 = 14;
/// The largest packet that the device cuts, in bytes: IPv4's total length, and an Ethernet header with a tag.
const MOST: u32 = 65535 + 18;

/// Why a packet is taken and dropped.
enum Unfit {
    Length,
    Segments,
    Offload,
    Arena,
}

/// Descriptors of a packet, if it can be sent at all.
fn descriptors(packet: &Buf) -> u32 {
    let of = |part: &Buf| part.len().div_ceil(TX_PIECE);
    if packet.next().is_none() { of(packet) } else { packet.segments().take(TSO_PIECES).map(of).sum() }
}

impl Sender {
    pub fn new(parts: TxParts) -> Self {
        let TxParts { member, ring, bell, words, counters } = parts;
        let sent = Vec::with_capacity(ring.capacity() as usize);
        Self { member, ring, bell, words, counters, sent }
    }

    #[inline]
    fn tx(&mut self, packets: &mut Burst) -> usize {
        if !self.member.is_open() {
            self.closed();
            return 0;
        }
        if self.ring.free() < self.ring.capacity() / 2 {
            self.take_sent();
            if !self.member.is_open() {
                return 0;
            }
        }
        let (mut room, mut fit) = (self.ring.free(), 0);
        for packet in packets.iter() {
            let need = descriptors(packet);
            // What is larger than the ring is dropped for that.
            if need > room && need <= self.ring.capacity() {
                self.counters.full.add(1);
                break;
            }
            room = room.saturating_sub(need);
            fit += 1;
        }
        let (mut sent, mut bytes) = (0, 0);
        for packet in packets.take(fit) {
            match self.post(packet) {
                Ok(total) => (sent, bytes) = (sent + 1, bytes + u64::from(total)),
                Err(Unfit::Length) => self.counters.dropped_length.add(1),
                Err(Unfit::Segments) => self.counters.dropped_segments.add(1),
                Err(Unfit::Offload) => self.counters.dropped_offload.add(1),
                Err(Unfit::Arena) => self.counters.dropped_arena.add(1),
            }
        }
        if sent > 0 {
            if self.words.defer(sent) {
                self.bell.ring(self.ring.tail());
                self.counters.doorbells.add(1);
            }
            self.counters.packets.add(sent.into());
            self.counters.bytes.add(bytes);
            self.counters.bursts.add(1);
        }
        fit
    }

    /// Posts a packet; returns its length.
    #[inline(always)]
    fn post(&mut self, packet: Buf) -> Result<u32, Unfit> {
        if packet.next().is_none() && packet.is_plain() {
            // What is most frequent.
            let total = packet.len();
            if total.wrapping_sub(SHORTEST) > self.member.shared.max_packet - SHORTEST {
                return Err(Unfit::Length);
            }
            let iova = self.member.iova(&packet).ok_or(Unfit::Arena)?;
            self.ring.post(packet, iova, total);
            return Ok(total);
        }
        self.post_any(packet)
    }

    fn post_any(&mut self, mut packet: Buf) -> Result<u32, Unfit> {
        let granted = self.member.shared.granted;
        let to_cut = packet.offload().filter(|offload| offload.segment > 0);
        let (longest, most) =
            if to_cut.is_some() { (MOST, TSO_PIECES) } else { (self.member.shared.max_packet, TX_PIECES) };
        let total = u32::try_from(packet.packet_len()).unwrap_or(u32::MAX);
        if !(SHORTEST..=longest).contains(&total) {
            return Err(Unfit::Length);
        }
        if !tx_possible(&packet, total, &granted) {
            return Err(Unfit::Offload);
        }
        if packet.segments().nth(TSO_PIECES).is_some() || (packet.next().is_some() && !granted.gather) {
            return Err(Unfit::Segments);
        }
        let (mut pieces, mut count) = ([(0, 0); TSO_PIECES], 0);
        for part in packet.segments() {
            let iova = self.member.iova(part).ok_or(Unfit::Arena)?;
            for at in (0..part.len()).step_by(TX_PIECE as usize) {
                let piece = pieces.get_mut(count).ok_or(Unfit::Segments)?;
                *piece = (iova.wrapping_add(at.into()), TX_PIECE.min(part.len() - at));
                count += 1;
            }
        }
        if count > most || count > self.ring.capacity() as usize {
            return Err(Unfit::Segments);
        }
        if let Some(offload) = to_cut {
            gso::prepare(packet.bytes_mut(), &offload).ok_or(Unfit::Offload)?;
        }
        let work = tx_work(packet.offload(), packet.vlan());
        self.ring.post_pieces(packet, &pieces[..count], work);
        Ok(total)
    }

    /// Takes what was sent, and gives it back.
    #[inline]
    fn take_sent(&mut self) {
        let taken = self.ring.reclaim(&mut self.sent);
        give_back(&mut self.sent);
        if let Err(fault) = taken {
            self.member.break_down(fault);
        }
    }

    fn reclaim(&mut self) {
        if self.member.is_open() {
            self.take_sent();
        } else {
            self.closed();
        }
    }

    /// A poll of a queue that does not run.
    #[cold]
    fn closed(&mut self) {
        match self.member.settle(self.ring.has_completed()) {
            InFlight::Keep => {}
            InFlight::Restart => {
                self.let_go();
                self.member.enter();
            }
            InFlight::Free => self.let_go(),
            InFlight::Quarantine => self.quarantine(),
        }
    }

    /// Packets that were in flight go home.
    fn let_go(&mut self) {
        self.counters.dropped_reset.add(self.ring.in_flight().into());
        self.ring.restart().for_each(drop);
    }

    /// Packets that the device has never go home: each of their buffers.
    fn quarantine(&mut self) {
        self.counters.dropped_reset.add(self.ring.in_flight().into());
        let lost = self.ring.restart().map(Buf::quarantine).sum();
        self.member.quarantined(lost);
    }
}

impl Parked for Sender {
    fn follow_resets(&mut self) {
        self.reclaim();
    }

    fn is_lost(&self) -> bool {
        self.member.is_lost()
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        match self.member.last() {
            InFlight::Free => self.let_go(),
            _ => self.quarantine(),
        }
    }
}

impl Tx {
    pub(crate) fn new(queue: Box<Sender>, home: Arc<Handle>) -> Self {
        Self { queue: Some(queue), home }
    }

    /// Takes packets from the front of `packets`, as many as the queue has room for, and returns their number:
    /// [`TxQueue::tx`](wholebar_core::net::TxQueue::tx).
    #[inline]
    pub fn tx(&mut self, packets: &mut Burst) -> usize {
        self.queue.as_mut().map_or(0, |queue| queue.tx(packets))
    }

    /// Frees the buffers of packets that were sent.
    pub fn reclaim(&mut self) {
        if let Some(queue) = &mut self.queue {
            queue.reclaim();
        }
    }

    /// Returns the number of packets that were taken and are not known to be sent.
    pub fn in_flight(&self) -> usize {
        self.queue.as_ref().map_or(0, |queue| queue.ring.in_flight() as usize)
    }

    /// Returns whether the queue can be used.
    pub fn state(&self) -> QueueState {
        self.queue.as_ref().map_or(QueueState::Gone, |queue| queue.member.state())
    }

    /// Returns the queue's number.
    pub fn index(&self) -> u16 {
        self.queue.as_ref().map_or(0, |queue| queue.member.id.index)
    }

    /// Returns how often the doorbell was rung.
    pub fn doorbells(&self) -> DoorbellCounts {
        self.queue.as_ref().map(|queue| queue.bell.counts()).unwrap_or_default()
    }
}

impl TxQueue for Tx {
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

impl Drop for Tx {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.take() {
            self.home.peek(|control| control.park(queue.member.id, Queue::Tx(queue)));
        }
    }
}

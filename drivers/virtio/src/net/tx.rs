//! A queue that sends (VIRTIO 1.2, 5.1.6.2).
//!
//! The header goes into the packet's own headroom, so that most packets are one descriptor; where there is no headroom, into a buffer in front.
//! Nothing here locks, allocates or calls the kernel while the queue runs.

use super::header;
use crate::device::Parked;
use crate::life::Life;
use crate::ring::{Ring, Segment};
use std::sync::Arc;
use wholebar_core::Table;
use wholebar_core::bar::Doorbell;
use wholebar_core::mem::{Buf, PoolCache, give_back};
use wholebar_core::net::{Burst, Offloads, QueueState, TxCounters, TxQueue};
use wholebar_core::reset::Step;

/// After how many calls that found no room the device is told again that there is something to send; and then after twice as many, and so on.
const FRUITLESS: u32 = 64;

/// What may be sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowed {
    /// The header's bytes.
    pub header: u16,
    /// Bytes of a packet that isn't cut, at most.
    pub len: u64,
    pub offloads: Offloads,
}

/// Bytes of a packet at least: its Ethernet header.
const LEAST: u64 = 14;
/// Bytes of a packet that the device cuts, at most: IPv4's total length, and an Ethernet header with a tag.
const MOST: u64 = 65535 + 18;
/// Pieces of a packet at most: those of MOST bytes in buffers of 4096, and some.
pub(super) const MAX_PIECES: usize = 32;

pub(super) struct Sender<R> {
    life: Life,
    ring: R,
    allowed: Allowed,
    /// By the ring's identifiers: packets in flight.
    bufs: Table<Option<Buf>>,
    in_flight: usize,
    /// Calls since there was room.
    fruitless: u32,
    /// Buffers for headers.
    headers: PoolCache,
    /// Room to give buffers back, kept between calls.
    sent: Vec<Buf>,
    bell: Doorbell<u16>,
    counters: Arc<TxCounters>,
}

/// A queue that sends, whatever its ring is.
pub(crate) trait AnySender: TxQueue + Parked {}
impl<R: Ring> AnySender for Sender<R> {}

/// What becomes of a packet.
enum Verdict {
    Sent,
    Length,
    Segments,
    Offload,
    Arena,
}

impl<R: Ring> Sender<R> {
    pub fn new(
        life: Life,
        ring: R,
        allowed: Allowed,
        bell: Doorbell<u16>,
        headers: PoolCache,
        counters: Arc<TxCounters>,
    ) -> Self {
        let bufs = Table::new(ring.size(), |_| None);
        let sent = Vec::with_capacity(ring.size().into());
        Self { life, ring, allowed, bufs, in_flight: 0, fruitless: 0, headers, sent, bell, counters }
    }

    /// Pieces of a packet: its buffers, and its header where that needs a buffer of its own.
    #[inline(always)]
    fn pieces(&self, packet: &Buf) -> usize {
        let pieces = if packet.next().is_none() { 1 } else { packet.segments().count() };
        pieces + usize::from(packet.headroom() < self.allowed.header.into())
    }

    #[inline(always)]
    fn send(&mut self, mut packet: Buf) -> Verdict {
        let header = self.allowed.header;
        let len = packet.len();
        // What is most frequent: one buffer, with headroom, and nothing to be done with it.
        if packet.is_plain()
            && packet.next().is_none()
            && (LEAST..=self.allowed.len).contains(&len.into())
            && let Some(room) = packet.prepend(header)
        {
            clear(room);
            let Some(iova) = self.life.iova(&packet) else { return Verdict::Arena };
            let id = self.ring.post_one(Segment { iova, len: len + u32::from(header) }, false);
            self.keep(id, packet);
            return Verdict::Sent;
        }
        self.send_any(packet)
    }

    #[inline(never)]
    fn send_any(&mut self, mut packet: Buf) -> Verdict {
        let len = packet.packet_len();
        let offload = packet.offload().unwrap_or_default();
        let most = if offload.segment > 0 { MOST } else { self.allowed.len };
        if !(LEAST..=most).contains(&len) {
            return Verdict::Length;
        }
        // No virtio device puts VLAN tags in.
        if packet.vlan().is_some() {
            return Verdict::Offload;
        }
        let Some(short) = header::to_send(&mut packet, self.allowed.offloads) else { return Verdict::Offload };
        let mut packet = match packet.prepend(self.allowed.header) {
            Some(room) => {
                room.fill(0);
                packet
            }
            None => {
                // There are as many as descriptors, so there is one.
                let Some(mut first) = self.headers.get_len(self.allowed.header.into()) else {
                    return Verdict::Segments;
                };
                first.bytes_mut().fill(0);
                first.append(packet);
                first
            }
        };
        packet.bytes_mut()[..short.len()].copy_from_slice(&short);
        let mut pieces = [Segment { iova: 0, len: 0 }; MAX_PIECES];
        let mut count = 0;
        for buf in packet.segments().filter(|buf| !buf.is_empty()) {
            let Some(iova) = self.life.iova(buf) else { return Verdict::Arena };
            let Some(piece) = pieces.get_mut(count) else { return Verdict::Segments };
            *piece = Segment { iova, len: buf.len() };
            count += 1;
        }
        let id = self.ring.post(&pieces[..count], count);
        self.keep(id, packet);
        Verdict::Sent
    }

    #[inline(always)]
    fn keep(&mut self, id: u16, packet: Buf) {
        // Its last packet was taken, so there is nothing to drop.
        std::mem::forget(self.bufs.at_mut(id).replace(packet));
        self.in_flight += 1;
    }

    /// Takes what was sent, and gives it back.
    fn take_sent(&mut self) {
        loop {
            match self.ring.take() {
                Ok(None) => break,
                Ok(Some(used)) => {
                    self.in_flight -= 1;
                    if let Some(packet) = self.bufs.at_mut(used.id).take() {
                        self.sent.push(packet);
                    }
                }
                Err(fault) => {
                    self.life.break_down(fault);
                    break;
                }
            }
        }
        give_back(&mut self.sent);
    }

    /// The queue is full, and stays so. A device may have missed a notification, or not said that it wanted one: QEMU (10.0) does not say so where a
    /// packed ring with event indexes was held up by who receives, and then waits for ever. One too many does no harm.
    #[cold]
    fn insist(&mut self) {
        self.fruitless = self.fruitless.wrapping_add(1);
        if self.fruitless >= FRUITLESS && self.fruitless.is_power_of_two() {
            self.bell.ring(self.life.index());
            self.counters.doorbells.add(1);
        }
    }

    /// A poll of a queue that does not run: its packets go home once the device does not read them any more.
    #[cold]
    fn closed(&mut self) {
        match self.life.step(self.ring.has_taken()) {
            None | Some(Step::Stop) => {}
            Some(Step::Abort) => self.drop_all(),
            Some(Step::Restart) => {
                self.drop_all();
                self.ring.restart();
                self.life.enter();
            }
            Some(Step::Ended(end)) if end.harmless => self.drop_all(),
            Some(Step::Ended(_) | Step::Expelled) => self.quarantine(),
        }
    }

    fn drop_all(&mut self) {
        self.counters.dropped_reset.add(self.in_flight as u64);
        self.in_flight = 0;
        self.bufs.fill_with(|| None);
    }

    fn quarantine(&mut self) {
        self.counters.dropped_reset.add(self.in_flight as u64);
        self.in_flight = 0;
        self.life.quarantine(self.bufs.iter_mut().filter_map(Option::take));
    }
}

/// Zeroes a header; the usual one without a call.
#[inline(always)]
fn clear(header: &mut [u8]) {
    match header.split_first_chunk_mut::<{ header::LEN as usize }>() {
        Some((usual, more)) => {
            *usual = [0; _];
            if !more.is_empty() {
                more.fill(0);
            }
        }
        None => header.fill(0),
    }
}

impl<R: Ring> TxQueue for Sender<R> {
    fn tx(&mut self, packets: &mut Burst) -> usize {
        if !self.life.is_open() {
            self.closed();
            return 0;
        }
        if usize::from(self.ring.free()) < packets.len().max(usize::from(self.ring.size() / 2)) {
            self.take_sent();
            if !self.life.is_open() {
                return 0;
            }
        }
        let (most, mut free, mut fit) =
            (usize::from(self.ring.size()).min(MAX_PIECES), usize::from(self.ring.free()), 0);
        // Whether some packet takes more descriptors than there can be.
        let mut too_many = false;
        for packet in packets.iter() {
            let needed = if packet.next().is_none() && packet.headroom() >= self.allowed.header.into() {
                1
            } else {
                let pieces = self.pieces(packet);
                // One that can never be sent needs none.
                let never = pieces > most;
                too_many |= never;
                if never { 0 } else { self.ring.descriptors(pieces) }
            };
            if needed > free {
                break;
            }
            free -= needed;
            fit += 1;
        }
        let full = fit < packets.len();
        self.ring.publish_soon();
        let (mut sent, mut bytes) = (0, 0);
        for packet in packets.take(fit) {
            let len = packet.packet_len();
            let never = too_many && self.pieces(&packet) > most;
            let verdict = if never { Verdict::Segments } else { self.send(packet) };
            match verdict {
                Verdict::Sent => {
                    sent += 1;
                    bytes += len;
                }
                Verdict::Length => self.counters.dropped_length.add(1),
                Verdict::Segments => self.counters.dropped_segments.add(1),
                Verdict::Offload => self.counters.dropped_offload.add(1),
                Verdict::Arena => self.counters.dropped_arena.add(1),
            }
        }
        if sent > 0 {
            self.counters.packets.add(sent);
            self.counters.bytes.add(bytes);
            self.counters.bursts.add(1);
            if self.ring.publish() {
                self.bell.ring(self.life.index());
                self.counters.doorbells.add(1);
            }
        }
        if full {
            self.counters.full.add(1);
        }
        if fit > 0 {
            self.fruitless = 0;
        } else if full {
            self.insist();
        }
        fit
    }

    fn reclaim(&mut self) {
        if self.life.is_open() {
            self.take_sent();
        } else {
            self.closed();
        }
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn state(&self) -> QueueState {
        self.life.state()
    }
}

impl<R: Ring> Parked for Sender<R> {
    fn is_lost(&self) -> bool {
        self.life.is_lost()
    }

    fn check_timeouts(&mut self) {
        self.reclaim();
    }
}

impl<R> Drop for Sender<R> {
    fn drop(&mut self) {
        if !self.life.is_harmless() {
            self.life.quarantine(self.bufs.iter_mut().filter_map(Option::take));
        }
    }
}

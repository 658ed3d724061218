//! Packets into a front end's buffers: one copy, by who sends. What the front end does not take undone is made whole here first, which is another copy.

use super::offload::{complete, header_of};
use super::port::TxSlot;
use super::queues::interrupt;
use crate::virtio::bits::net;
use crate::virtio::net::buffers::{Merge, Put, put};
use crate::virtio::net::{ETHERNET, accepts};
use crate::virtio::queue::{Ahead, Broken, FaultState, Pass, Queue, poll};
use crate::wire::{Accepts, GSO_NONE, HEADER, LONGEST};
use std::collections::VecDeque;
use std::iter;
use std::sync::Arc;
use wholebar_core::mem::Buf;
use wholebar_core::model::Host;
use wholebar_core::net::Offloads;

/// The virtio header of a packet to which nothing was left undone, in one buffer (5.1.6.1).
const PLAIN: [u8; HEADER] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// What came of a burst.
#[derive(Default)]
pub(super) struct Sent {
    /// Packets that are not the caller's any more, and those of them that the front end has, or will have.
    pub(super) taken: usize,
    pub(super) packets: u64,
    pub(super) bytes: u64,
    /// There was no buffer for the next.
    pub(super) full: bool,
}

/// What puts packets into a front end's buffers, and counts those that can't be.
pub(super) struct Filling {
    merge: Merge,
    largest: usize,
    granted: Offloads,
    /// Whole packets that were made of one that the front end does not take as it is, and wait for buffers: they come before all others.
    pub(super) made: VecDeque<Vec<u8>>,
    pub(super) slot: Arc<TxSlot>,
}

/// How a packet goes.
enum Way {
    /// As it is, with this header.
    AsItIs([u8; HEADER]),
    /// As those that were made of it.
    Made,
}

impl Filling {
    pub(super) fn new(largest: usize, granted: Offloads, slot: Arc<TxSlot>) -> Self {
        Self { merge: Merge::default(), largest, granted, made: VecDeque::new(), slot }
    }

    /// How a packet goes; `None` for one that can never be sent, which is counted.
    #[inline]
    fn way(&mut self, packet: &mut Buf, len: usize, accepts: Accepts) -> Option<Way> {
        if packet.is_plain() && (ETHERNET..=self.largest).contains(&len) {
            return Some(Way::AsItIs(PLAIN));
        }
        self.other_way(packet, len, accepts)
    }

    #[inline(never)]
    fn other_way(&mut self, packet: &mut Buf, len: usize, accepts: Accepts) -> Option<Way> {
        let counters = &self.slot.counters;
        let cut = packet.offload().is_some_and(|offload| offload.segment > 0);
        if !(ETHERNET..=if cut { LONGEST } else { self.largest }).contains(&len) {
            counters.dropped_length.add(1);
            return None;
        }
        let Some(header) = header_of(packet, self.granted) else {
            counters.dropped_offload.add(1);
            return None;
        };
        if header.gso_type != GSO_NONE && usize::from(header.hdr_len) + usize::from(header.gso_size) > self.largest {
            counters.dropped_length.add(1);
            return None;
        }
        if accepts.takes(&header) {
            let mut bytes = PLAIN;
            header.put(&mut bytes);
            return Some(Way::AsItIs(bytes));
        }
        let made = complete(packet, &header, &mut self.made).map(|()| Way::Made);
        counters.dropped_offload.add(made.is_none().into());
        made
    }

    /// Puts packets into the ring's buffers, as many as these are for.
    #[inline]
    pub(super) fn put_all(
        &mut self,
        host: &mut Host<'_>,
        queue: &mut Queue,
        fault_state: &mut FaultState,
        packets: &mut [Buf],
        features: u64,
    ) -> Result<Option<Sent>, Broken> {
        let (mergeable, accepts) = (features & net::MRG_RXBUF != 0, accepts(features));
        let polled = poll!(queue, host, fault_state, |pass, ahead| {
            let mut sent = Sent::default();
            ahead.prefetch(&mut pass, host, packets.len());
            for packet in packets {
                if !self.made.is_empty() && !self.put_made(&mut pass, host, ahead, mergeable)? {
                    break;
                }
                let len = packet.packet_len() as usize;
                match self.way(packet, len, accepts) {
                    Some(Way::AsItIs(header)) => {
                        match put_packet(&mut pass, host, ahead, &mut self.merge, &header, packet, len, mergeable)? {
                            Put::Done => {
                                sent.packets += 1;
                                sent.bytes += len as u64;
                            }
                            Put::NoBuffer => {
                                sent.full = true;
                                break;
                            }
                            Put::TooLong => self.slot.counters.dropped_length.add(1),
                        }
                    }
                    Some(Way::Made) => {
                        sent.packets += 1;
                        sent.bytes += len as u64;
                    }
                    None => {}
                }
                sent.taken += 1;
            }
            if !self.made.is_empty() && !self.put_made(&mut pass, host, ahead, mergeable)? {
                sent.full = true;
            }
            ahead.put_back(&mut pass);
            sent
        });
        let Some((sent, wanted)) = polled else { return Ok(None) };
        interrupt(host, queue, wanted);
        Ok(Some(sent))
    }

    /// Puts what was made into the ring's buffers; whether there were enough.
    #[cold]
    fn put_made<T: Pass>(
        &mut self,
        pass: &mut T,
        host: &Host<'_>,
        ahead: &mut Ahead,
        mergeable: bool,
    ) -> Result<bool, Broken> {
        while let Some(packet) = self.made.front() {
            let (pieces, len) = ([&PLAIN[..], packet], HEADER + packet.len());
            match put(pass, host, ahead, &mut self.merge, pieces.into_iter(), len, HEADER, mergeable)? {
                Put::Done => {}
                Put::NoBuffer => return Ok(false),
                Put::TooLong => self.slot.counters.dropped_length.add(1),
            }
            self.made.pop_front();
        }
        Ok(true)
    }
}

/// Puts a packet of `len` bytes with its header into the next buffer, or into as many as it takes.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "a ring's pass, and a packet")]
fn put_packet<T: Pass>(
    pass: &mut T,
    host: &Host<'_>,
    ahead: &mut Ahead,
    merge: &mut Merge,
    header: &[u8; HEADER],
    packet: &Buf,
    len: usize,
    mergeable: bool,
) -> Result<Put, Broken> {
    // What is most frequent.
    if packet.next().is_none() {
        let pieces = [&header[..], packet.bytes()];
        return put(pass, host, ahead, merge, pieces.into_iter(), HEADER + len, HEADER, mergeable);
    }
    put_pieces(pass, host, ahead, merge, header, packet, len, mergeable)
}

#[inline(never)]
#[allow(clippy::too_many_arguments, reason = "those of `put_packet`")]
fn put_pieces<T: Pass>(
    pass: &mut T,
    host: &Host<'_>,
    ahead: &mut Ahead,
    merge: &mut Merge,
    header: &[u8; HEADER],
    packet: &Buf,
    len: usize,
    mergeable: bool,
) -> Result<Put, Broken> {
    let pieces = iter::once(&header[..]).chain(packet.segments().map(Buf::bytes));
    put(pass, host, ahead, merge, pieces, HEADER + len, HEADER, mergeable)
}

//! The port's queues: a front end's rings, seen from the other end. What it sends is copied from its buffers into the program's, what the program
//! sends into its buffers: one copy a packet, on the core that polls.
//!
//! A queue has the port's server for the time of a burst, if nobody else has it then: it never waits for that. Nothing is in flight when a call returns.

use super::port::{Open, RxSlot, TxSlot};
use crate::virtio::Virtio;
use crate::virtio::bits::net;
use crate::virtio::net::receive::Merge;
use crate::virtio::net::{ETHERNET, GSO_NONE, HEADER, NEEDS_CSUM};
use crate::virtio::queue::{Ahead, Broken, FaultState, Part, Pass, Queue, gather, poll, scatter};
use std::fmt;
use std::sync::Arc;
use wholebar_core::barrier;
use wholebar_core::irq::EventFd;
use wholebar_core::mem::{Buf, Pool, PoolCache, give_back};
use wholebar_core::model::Host;
use wholebar_core::net::{Burst, Count, QueueState, RxCounters, RxQueue, TxQueue};
use wholebar_core::reactor::Armed;

/// How many buffers are asked of the pool at once.
const BATCH: u32 = 32;
/// The virtio header of a packet to which nothing was left undone, in one buffer (5.1.6.1).
const PLAIN: [u8; HEADER] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// A queue that receives what the front end sends by the queue of the same number.
pub(super) struct Rx {
    index: u16,
    cache: PoolCache,
    /// Bytes in front of a packet's header.
    headroom: u16,
    /// Nobody waits for a kick any more.
    disarmed: bool,
    slot: Arc<RxSlot>,
    port: Arc<Open>,
}

/// A queue that sends to one of the front end's queues that receive: of the same number, where it uses as many.
pub(super) struct Tx {
    index: u16,
    filling: Filling,
    /// Scratch: packets that go home.
    done: Vec<Buf>,
    port: Arc<Open>,
}

impl Rx {
    pub(super) fn new(port: Arc<Open>, slot: Arc<RxSlot>, index: u16, pool: &Pool) -> Self {
        let headroom = port.headroom() - HEADER as u16;
        Self { index, cache: pool.cache(BATCH), headroom, disarmed: false, slot, port }
    }
}

impl Tx {
    pub(super) fn new(port: Arc<Open>, slot: Arc<TxSlot>, index: u16) -> Self {
        let filling = Filling { merge: Merge::default(), largest: port.largest(), slot };
        Self { index, filling, done: Vec::new(), port }
    }
}

impl Virtio {
    /// Does something with a queue of a device that may work, and with what that needs. What broke a rule ends the device.
    #[inline]
    fn at_queue<T>(
        &mut self,
        at: usize,
        act: impl FnOnce(&mut Queue, &mut FaultState) -> Result<Option<T>, Broken>,
    ) -> Option<T> {
        if !self.running() {
            return None;
        }
        let queue = self.queues.get_mut(at)?.as_mut()?;
        act(queue, &mut self.fault_state).unwrap_or_else(|why| {
            self.broken(why);
            None
        })
    }
}

/// Signals the queue's interrupt, where the driver wants that.
#[inline]
fn interrupt(host: &mut Host<'_>, queue: &Queue, wanted: bool) {
    if wanted && let Some(vector) = queue.vector {
        host.interrupt(vector.into());
    }
}

/// What packets are copied into, and what is counted of them.
struct Landing<'a> {
    cache: &'a mut PoolCache,
    headroom: u16,
    largest: usize,
    counters: &'a RxCounters,
}

impl Landing<'_> {
    /// Takes packets off a ring, as many as there is room for.
    #[inline]
    fn take(
        &mut self,
        host: &mut Host<'_>,
        queue: &mut Queue,
        fault_state: &mut FaultState,
        out: &mut Burst,
    ) -> Result<Option<()>, Broken> {
        if queue.is_idle(host) {
            return Ok(None);
        }
        let polled = poll!(queue, host, fault_state, |pass, ahead| {
            // What is not handed out counts, too: whatever a driver sends, this ends.
            let most = out.room();
            ahead.prefetch(&mut pass, host, most);
            for _ in 0..most {
                let place = ahead.place();
                let Some((chain, parts)) = ahead.next(&mut pass, host)? else { break };
                let Some(mut buf) = self.cache.get() else {
                    ahead.back(&mut pass, place, &[chain]);
                    self.counters.no_buffers.add(1);
                    break;
                };
                match self.copy(host, parts, &mut buf)? {
                    Ok(()) => {
                        // There is room.
                        let _ = out.push(buf);
                    }
                    Err(cause) => {
                        cause.add(1);
                        self.cache.put(buf);
                    }
                }
                pass.used_unwritten(chain);
            }
            ahead.put_back(&mut pass);
        });
        let Some(((), wanted)) = polled else { return Ok(None) };
        interrupt(host, queue, wanted);
        Ok(Some(()))
    }

    /// Copies a packet off its buffers; else says what it is counted as.
    #[inline(always)]
    fn copy(&self, host: &Host<'_>, parts: &[Part], buf: &mut Buf) -> Result<Result<(), &Count>, Broken> {
        let total: usize = parts.iter().map(|part| part.len as usize).sum();
        // Readable buffers come before writable ones.
        if parts.last().is_none_or(|part| part.writable) {
            return Err("a packet to send is in a buffer to be written".into());
        }
        let len = total.checked_sub(HEADER).ok_or("a packet to send is shorter than its header")?;
        if len < ETHERNET {
            return Ok(Err(&self.counters.dropped_malformed));
        }
        if len > self.largest {
            return Ok(Err(&self.counters.dropped_too_long));
        }
        // When the queue was made, it was looked at whether the largest fits.
        buf.reserve(self.headroom);
        buf.set_len(total as u32);
        let bytes = buf.bytes_mut();
        match parts {
            [part] => {
                if !part.memory(host)?.read(0, bytes) {
                    return Err("a packet to send can't be read".into());
                }
            }
            parts => gather(host, parts, 0, bytes)?,
        }
        let undone = bytes[0] & NEEDS_CSUM != 0 || bytes[1] != GSO_NONE;
        buf.advance(HEADER as u16);
        Ok(if undone { Err(&self.counters.dropped_malformed) } else { Ok(()) })
    }
}

impl RxQueue for Rx {
    fn rx(&mut self, out: &mut Burst) -> usize {
        if out.room() == 0 {
            return 0;
        }
        let Self { index, cache, headroom, disarmed, slot, port } = self;
        let Some(mut server) = port.try_server() else { return 0 };
        let (before, disarmed) = (out.len(), std::mem::take(disarmed));
        let mut landing = Landing { cache, headroom: *headroom, largest: port.largest(), counters: &slot.counters };
        server.function().with(|virtio, host| {
            virtio.at_queue(2 * usize::from(*index) + 1, |queue, fault_state| {
                if disarmed {
                    queue.set_notify(false);
                }
                landing.take(host, queue, fault_state, out)
            })
        });
        port.give_up(server);
        let packets = out.len() - before;
        if packets > 0 {
            let counters = &slot.counters;
            counters.packets.add(packets as u64);
            counters.bytes.add(out[before..].iter().map(|packet| u64::from(packet.len())).sum());
            counters.bursts.add(1);
        }
        packets
    }

    fn state(&self) -> QueueState {
        QueueState::Running
    }

    fn wakeup(&self) -> Option<Arc<EventFd>> {
        self.slot.wakeup.clone()
    }

    /// Asks the front end to kick, and looks once more while the server is this queue's: a poll that follows may find that somebody else has it, and
    /// would take no packet for none.
    fn arm(&mut self) -> Armed {
        let (Some(_), Some(mut server)) = (&self.slot.wakeup, self.port.try_server()) else { return Armed::No };
        if !server.is_kicked() {
            return Armed::No;
        }
        let there = server.function().with(|virtio, host| {
            virtio.at_queue(2 * usize::from(self.index) + 1, |queue, fault_state| {
                queue.set_notify(true);
                poll!(queue, host, fault_state, |pass, _ahead| _ = &mut pass);
                // Pairs with the driver's fence between its index and whether to kick: it kicks, or what it sent is seen here.
                barrier::store_then_load();
                Ok(Some(!queue.is_empty(host)))
            })
        });
        self.port.give_up(server);
        self.disarmed = there == Some(true);
        if self.disarmed {
            return Armed::No;
        }
        self.slot.counters.armed.add(1);
        Armed::Yes
    }

    fn disarm(&mut self) {
        self.disarmed = true;
    }
}

/// What came of a burst.
#[derive(Default)]
struct Sent {
    /// Packets that are not the caller's any more, and those of them that the front end has.
    taken: usize,
    packets: u64,
    bytes: u64,
    /// There was no buffer for the next.
    full: bool,
}

/// What puts packets into a front end's buffers, and counts those that can't be.
struct Filling {
    merge: Merge,
    largest: usize,
    slot: Arc<TxSlot>,
}

impl Filling {
    /// The length of a packet; else what it is counted as, where it can never be sent.
    #[inline]
    fn fits(&self, packet: &Buf) -> Result<usize, &Count> {
        let len = packet.packet_len();
        if !(ETHERNET as u64..=self.largest as u64).contains(&len) {
            return Err(&self.slot.counters.dropped_length);
        }
        if packet.is_plain() { Ok(len as usize) } else { Err(&self.slot.counters.dropped_offload) }
    }

    /// Puts packets into the ring's buffers, as many as these are for.
    #[inline]
    fn put_all(
        &mut self,
        host: &mut Host<'_>,
        queue: &mut Queue,
        fault_state: &mut FaultState,
        packets: &[Buf],
        mergeable: bool,
    ) -> Result<Option<Sent>, Broken> {
        let polled = poll!(queue, host, fault_state, |pass, ahead| {
            let mut sent = Sent::default();
            ahead.prefetch(&mut pass, host, packets.len());
            for packet in packets {
                match self.fits(packet) {
                    Ok(len) => match put(&mut pass, host, ahead, &mut self.merge, packet, len, mergeable)? {
                        Put::Done => {
                            sent.packets += 1;
                            sent.bytes += len as u64;
                        }
                        Put::NoBuffer => {
                            sent.full = true;
                            break;
                        }
                        Put::TooLong => self.slot.counters.dropped_length.add(1),
                    },
                    Err(cause) => cause.add(1),
                }
                sent.taken += 1;
            }
            ahead.put_back(&mut pass);
            sent
        });
        let Some((sent, wanted)) = polled else { return Ok(None) };
        interrupt(host, queue, wanted);
        Ok(Some(sent))
    }
}

/// What became of a packet.
enum Put {
    Done,
    NoBuffer,
    TooLong,
}

/// Puts one packet of `len` bytes with its header into the next buffer, or into as many as it takes.
#[inline(always)]
fn put<T: Pass>(
    pass: &mut T,
    host: &Host<'_>,
    ahead: &mut Ahead,
    merge: &mut Merge,
    packet: &Buf,
    len: usize,
    mergeable: bool,
) -> Result<Put, Broken> {
    let place = ahead.place();
    let Some((chain, parts)) = ahead.next(pass, host)? else { return Ok(Put::NoBuffer) };
    if let [part] = parts
        && part.writable
        && part.len as usize >= HEADER + len
    {
        let memory = part.memory(host)?;
        let (mut at, mut written) = (HEADER as u64, memory.write(0, &PLAIN));
        for segment in packet.segments() {
            written &= memory.write(at, segment.bytes());
            at += u64::from(segment.len());
        }
        if !written {
            return Err("a receive buffer can't be written".into());
        }
        pass.used(chain, (HEADER + len) as u32);
        return Ok(Put::Done);
    }
    merge.start(chain, parts, HEADER)?;
    put_merged(pass, host, ahead, place, merge, packet, len, mergeable)
}

/// The same for one that needs more than the buffer in `merge`, or one in several parts; `place` is where that was.
#[inline(never)]
#[allow(clippy::too_many_arguments, reason = "those of `put`, and where it began")]
fn put_merged<T: Pass>(
    pass: &mut T,
    host: &Host<'_>,
    ahead: &mut Ahead,
    place: usize,
    merge: &mut Merge,
    packet: &Buf,
    len: usize,
    mergeable: bool,
) -> Result<Put, Broken> {
    if !merge.fill(pass, host, ahead, place, HEADER + len, mergeable)? {
        return Ok(if mergeable { Put::NoBuffer } else { Put::TooLong });
    }
    let mut header = PLAIN;
    header[10..12].copy_from_slice(&merge.buffers().to_le_bytes());
    scatter(host, merge.parts(), 0, &header)?;
    let mut at = HEADER as u64;
    for segment in packet.segments() {
        scatter(host, merge.parts(), at, segment.bytes())?;
        at += u64::from(segment.len());
    }
    merge.use_up(pass, HEADER + len);
    Ok(Put::Done)
}

impl TxQueue for Tx {
    fn tx(&mut self, packets: &mut Burst) -> usize {
        if packets.is_empty() {
            return 0;
        }
        let Self { index, filling, done, port } = self;
        let Some(mut server) = port.try_server() else { return 0 };
        if !port.link().up {
            // Nobody is there who would receive them.
            let count = packets.len();
            filling.slot.no_carrier.add(count as u64);
            packets.give_back();
            return count;
        }
        let at = 2 * usize::from(*index % port.pairs());
        let sent = server.function().with(|virtio, host| {
            let mergeable = virtio.common.features & net::MRG_RXBUF != 0;
            virtio.at_queue(at, |queue, fault_state| filling.put_all(host, queue, fault_state, packets, mergeable))
        });
        port.give_up(server);
        let sent = sent.unwrap_or(Sent { full: true, ..Sent::default() });
        let counters = &filling.slot.counters;
        counters.full.add(sent.full.into());
        if sent.taken > 0 {
            counters.packets.add(sent.packets);
            counters.bytes.add(sent.bytes);
            counters.bursts.add(1);
            done.extend(packets.take(sent.taken));
            give_back(done);
        }
        sent.taken
    }

    fn reclaim(&mut self) {
        // Nothing is in flight.
    }

    fn in_flight(&self) -> usize {
        0
    }

    fn state(&self) -> QueueState {
        QueueState::Running
    }
}

impl Drop for Rx {
    fn drop(&mut self) {
        self.slot.put_back();
    }
}

impl Drop for Tx {
    fn drop(&mut self) {
        self.filling.slot.put_back();
    }
}

impl fmt::Debug for Rx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rx({} of {})", self.index, self.port.name())
    }
}

impl fmt::Debug for Tx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tx({} of {})", self.index, self.port.name())
    }
}

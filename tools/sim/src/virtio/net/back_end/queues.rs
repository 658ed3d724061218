//! The port's queues: a front end's rings, seen from the other end. What it sends is copied from its buffers into the program's, what the program
//! sends into its buffers: one copy a packet, on the core that polls.
//!
//! A queue has the port's server for the time of a burst, if nobody else has it then: it never waits for that. Nothing is in flight when a call returns.

use super::filling::{Filling, Sent};
use super::offload::received;
use super::port::{Open, RxSlot, TxSlot};
use crate::virtio::Virtio;
use crate::virtio::net::ETHERNET;
use crate::virtio::queue::{Broken, FaultState, Part, Pass, Queue, gather, poll};
use crate::wire::{GSO_NONE, HEADER, LONGEST, NEEDS_CSUM};
use std::fmt;
use std::sync::Arc;
use wholebar_core::barrier;
use wholebar_core::irq::EventFd;
use wholebar_core::mem::{Buf, Pool, PoolCache, give_back};
use wholebar_core::model::Host;
use wholebar_core::net::{Burst, Count, Offloads, QueueState, RxCounters, RxQueue, TxQueue};
use wholebar_core::reactor::Armed;

/// How many buffers are asked of the pool at once.
const BATCH: u32 = 32;

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
        let filling = Filling::new(port.largest(), port.granted(), slot);
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
pub(super) fn interrupt(host: &mut Host<'_>, queue: &Queue, wanted: bool) {
    if wanted && let Some(vector) = queue.vector {
        host.interrupt(vector.into());
    }
}

/// What packets are copied into, and what is counted of them.
struct Landing<'a> {
    cache: &'a mut PoolCache,
    headroom: u16,
    largest: usize,
    granted: Offloads,
    /// What the driver negotiated.
    features: u64,
    counters: &'a RxCounters,
}

/// What became of a packet that the front end sent.
enum Landed<'a> {
    Done,
    Dropped(&'a Count),
    /// The pool had not enough buffers for it.
    NoBuffers,
}

impl<'a> Landing<'a> {
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
                    Landed::Done => {
                        // There is room.
                        let _ = out.push(buf);
                    }
                    Landed::Dropped(cause) => {
                        cause.add(1);
                        self.cache.put(buf);
                    }
                    Landed::NoBuffers => {
                        ahead.back(&mut pass, place, &[chain]);
                        self.counters.no_buffers.add(1);
                        self.cache.put(buf);
                        break;
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

    /// Copies a packet off its buffers.
    #[inline(always)]
    fn copy(&mut self, host: &Host<'_>, parts: &[Part], buf: &mut Buf) -> Result<Landed<'a>, Broken> {
        let total: usize = match parts {
            [part] => part.len as usize,
            parts => parts.iter().map(|part| part.len as usize).sum(),
        };
        // Readable buffers come before writable ones.
        if parts.last().is_none_or(|part| part.writable) {
            return Err("a packet to send is in a buffer to be written".into());
        }
        let len = total.checked_sub(HEADER).ok_or("a packet to send is shorter than its header")?;
        if len < ETHERNET {
            return Ok(Landed::Dropped(&self.counters.dropped_malformed));
        }
        if len > if self.granted.lro { LONGEST } else { self.largest } {
            return Ok(Landed::Dropped(&self.counters.dropped_too_long));
        }
        // There is room for that.
        buf.reserve(self.headroom);
        buf.set_len(total as u32);
        if (buf.len() as usize) < total && !self.chain(host, parts, total, buf)? {
            return Ok(Landed::NoBuffers);
        }
        let bytes = buf.bytes_mut();
        match parts {
            [part] => part.read(host, bytes)?,
            parts => gather(host, parts, 0, bytes)?,
        }
        let header: &[u8; HEADER] = bytes.first_chunk().ok_or("a packet to send is shorter than its header")?;
        // By single bytes: words that are not those that were just stored are not forwarded.
        let [flags, gso_type, ..] = *header;
        if flags & NEEDS_CSUM == 0 && gso_type == GSO_NONE {
            buf.advance(HEADER as u16);
            return Ok(if len > self.largest {
                Landed::Dropped(&self.counters.dropped_too_long)
            } else {
                Landed::Done
            });
        }
        let header = *header;
        buf.advance(HEADER as u16);
        if gso_type == GSO_NONE && len > self.largest {
            return Ok(Landed::Dropped(&self.counters.dropped_too_long));
        }
        let done = received(&header, buf, self.features).is_some();
        Ok(if done { Landed::Done } else { Landed::Dropped(&self.counters.dropped_malformed) })
    }

    /// Copies what does not fit into a packet's first buffer into others behind it; `false` where there are not enough, and there are none then.
    #[inline(never)]
    fn chain(&mut self, host: &Host<'_>, parts: &[Part], total: usize, first: &mut Buf) -> Result<bool, Broken> {
        let mut at = first.len() as usize;
        while at < total {
            let Some(mut next) = self.cache.get() else {
                drop(first.take_next());
                return Ok(false);
            };
            next.set_len((total - at) as u32);
            gather(host, parts, at as u64, next.bytes_mut())?;
            at += next.len() as usize;
            first.append(next);
        }
        Ok(true)
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
        let (granted, counters) = (port.granted(), &slot.counters);
        let mut landing =
            Landing { cache, headroom: *headroom, largest: port.largest(), granted, features: 0, counters };
        server.function().with(|virtio, host| {
            landing.features = virtio.common.features;
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
            counters.bytes.add(out[before..].iter().map(Buf::packet_len).sum());
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

impl Tx {
    /// Sends what waits, and then packets; `None` while somebody else has the server, or no driver is there.
    #[inline]
    fn put(&mut self, packets: &mut [Buf]) -> Option<Sent> {
        let Self { index, filling, port, .. } = self;
        let mut server = port.try_server()?;
        let at = 2 * usize::from(*index % port.pairs());
        let sent = server.function().with(|virtio, host| {
            let features = virtio.common.features;
            virtio.at_queue(at, |queue, fault_state| filling.put_all(host, queue, fault_state, packets, features))
        });
        port.give_up(server);
        let sent = sent.unwrap_or(Sent { full: true, ..Sent::default() });
        let counters = &filling.slot.counters;
        counters.full.add(sent.full.into());
        if sent.taken > 0 {
            counters.packets.add(sent.packets);
            counters.bytes.add(sent.bytes);
            counters.bursts.add(1);
        }
        Some(sent)
    }

    /// Drops the segments that wait for buffers: nobody is there any more who would receive them.
    fn drop_made(&mut self) {
        let made = std::mem::take(&mut self.filling.made);
        self.filling.slot.no_carrier.add(made.len() as u64);
    }
}

impl TxQueue for Tx {
    fn tx(&mut self, packets: &mut Burst) -> usize {
        if packets.is_empty() {
            return 0;
        }
        if !self.port.link().up {
            // Nobody is there who would receive them.
            let count = packets.len();
            self.drop_made();
            self.filling.slot.no_carrier.add(count as u64);
            packets.give_back();
            return count;
        }
        let Some(sent) = self.put(packets) else { return 0 };
        if sent.taken == packets.len() {
            packets.give_back();
        } else if sent.taken > 0 {
            self.done.extend(packets.take(sent.taken));
            give_back(&mut self.done);
        }
        sent.taken
    }

    /// Nothing is in flight but segments that wait for buffers.
    fn reclaim(&mut self) {
        if self.filling.made.is_empty() {
            return;
        }
        if self.port.link().up {
            self.put(&mut []);
        } else {
            self.drop_made();
        }
    }

    fn in_flight(&self) -> usize {
        self.filling.made.len()
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

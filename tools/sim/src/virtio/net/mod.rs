//! A model of a virtio network device (5.1), at the end of a [wire](crate::wire).
//!
//! Packets to send are copied off their buffers, passed on, and copied into the receiver's. Offloads that sender and receiver agree on are
//! passed on undone; what the receiver can't do is done here, for it.
//!
//! | file | what it is |
//! |---|---|
//! | `params`, `stats` | what it can be told to be; what it counts |
//! | `control`, `filter`, `flow` | the control queue; what is received; on which queue |
//! | `receive` | received packets: filtered, sent to a queue |
//! | `buffers` | packets into the driver's buffers |
//! | `back_end` | a port at the other end of a front end's rings, in the place of a device |
//! | `mod` | the device, and packets to send |

pub mod back_end;
mod buffers;
mod control;
mod filter;
mod flow;
mod params;
mod receive;
mod stats;

pub use params::{NetParams, PARAMETERS};
pub use stats::{NetHandle, NetStats};

use super::bits::{NET, net};
use super::layout::Kind;
use super::queue::{Broken, FaultState, Part, Pass, Queue, gather, poll};
use super::{CONFIG_MAX, Device, Virtio};
use crate::Result;
use crate::coalesce::Coalesce;
use crate::wire::{Accepts, BURST, Frame, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, HEAD, HEADER, LONGEST, PairThread};
use crate::wire::{NEEDS_CSUM, Offload, Port, check};
use buffers::Merge;
use filter::Filter;
use flow::{Hash, KEY, KNOWN, Steering, TABLE};
use stats::Counts;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use wholebar_core::Work;
use wholebar_core::model::Host;
use wholebar_core::reactor::Armed;

/// An Ethernet header.
const ETHERNET: usize = 14;
/// While there are packets to pass on, every how many polls commands are looked for.
const COMMANDS_EVERY: u8 = 8;
/// What tags may add to a packet beside the MTU.
const TAGS: usize = 8;

/// A network device.
struct Net {
    params: NetParams,
    port: Port,
    handle: Arc<NetHandle>,
    /// The address it was made with, and the one it has.
    first_mac: [u8; 6],
    mac: [u8; 6],
    features: u64,
    /// Bytes of the header before each packet.
    header: usize,
    accepts: Accepts,
    filter: Filter,
    steering: Steering,
    hash: Option<Hash>,
    /// How many queue pairs are in use.
    pairs: u16,
    link: bool,
    changed: bool,
    polls: u8,
    /// By virtqueue.
    coalesce: Vec<Coalesce>,
    /// Frames off the wire; those that go to the driver; those that are done with.
    arrived: Vec<Frame>,
    ready: Vec<Frame>,
    done: Vec<Frame>,
    /// The driver has given no buffers, and what comes is left on the wire.
    starved: bool,
    merge: Merge,
    counts: Counts,
}

/// A virtio network device as `params` say, and a handle to what happens at it.
///
/// # Errors
/// Those of parameters that don't go together, and of the wire.
pub fn model(params: NetParams) -> Result<(Virtio, NetPort)> {
    params.check()?;
    let queues = 2 * params.pairs + u16::from(params.control);
    let kind = Kind { device: NET, class: 0x02_00_00, queues, config: 24 };
    let (net, port) = Net::new(params.clone())?;
    Ok((Virtio::new("sim:virtio-net", &kind, params.transport, Box::new(net))?, port))
}

/// What is known of a port from outside of its model.
pub struct NetPort {
    /// Its link and its counters.
    pub handle: Arc<NetHandle>,
    /// The model at the wire's other end, to run beside.
    pub(crate) pair_thread: PairThread,
}

/// What a driver's features, or its offloads command, let it take.
fn accepts(offloads: u64) -> Accepts {
    let has = |bit| offloads & bit != 0;
    Accepts {
        csum: has(net::GUEST_CSUM),
        tso4: has(net::GUEST_TSO4),
        tso6: has(net::GUEST_TSO6),
        ecn: has(net::GUEST_ECN),
    }
}

/// Why a driver may not have these offloads, where they need others (5.1.3.1).
fn dangling(features: u64) -> Option<&'static str> {
    let has = |bits| features & bits != 0;
    if has(net::GUEST_TSO4 | net::GUEST_TSO6) && !has(net::GUEST_CSUM) {
        Some("VIRTIO_NET_F_GUEST_TSO4 and 6 need VIRTIO_NET_F_GUEST_CSUM")
    } else if has(net::GUEST_ECN) && !has(net::GUEST_TSO4 | net::GUEST_TSO6) {
        Some("VIRTIO_NET_F_GUEST_ECN needs VIRTIO_NET_F_GUEST_TSO4 or 6")
    } else if has(net::HOST_TSO4 | net::HOST_TSO6) && !has(net::CSUM) {
        Some("VIRTIO_NET_F_HOST_TSO4 and 6 need VIRTIO_NET_F_CSUM")
    } else if has(net::HOST_ECN) && !has(net::HOST_TSO4 | net::HOST_TSO6) {
        Some("VIRTIO_NET_F_HOST_ECN needs VIRTIO_NET_F_HOST_TSO4 or 6")
    } else {
        None
    }
}

impl Net {
    fn new(params: NetParams) -> Result<(Self, NetPort)> {
        let port = Port::open(&params.wire, &params.impairments)?;
        let mac = params.mac.unwrap_or_else(|| port.mac(&params.wire));
        let handle = Arc::new(NetHandle::new());
        let outside = NetPort { handle: handle.clone(), pair_thread: port.pair_thread() };
        let frames = || Vec::with_capacity(2 * BURST);
        let mut net = Self {
            port,
            handle,
            first_mac: mac,
            mac,
            features: 0,
            header: HEADER,
            accepts: Accepts::default(),
            filter: Filter::new(mac, false, false),
            steering: Steering::auto(1),
            hash: None,
            pairs: 1,
            link: false,
            changed: false,
            polls: 0,
            coalesce: vec![Coalesce::default(); 2 * usize::from(params.pairs)],
            arrived: frames(),
            ready: frames(),
            done: frames(),
            starved: false,
            merge: Merge::default(),
            counts: Counts::default(),
            params,
        };
        net.reset();
        net.watch_link();
        Ok((net, outside))
    }

    #[inline]
    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// Looks whether the link is up.
    #[inline]
    fn watch_link(&mut self) {
        let link = self.handle.link() && self.port.carrier();
        if link != self.link {
            (self.link, self.changed) = (link, true);
        }
    }

    /// Takes packets to send off a queue; says how many.
    #[inline]
    fn transmit(
        &mut self,
        host: &mut Host<'_>,
        queue: &mut Queue,
        index: u16,
        fault_state: &mut FaultState,
    ) -> Result<usize, Broken> {
        let budget = self.port.room().min(BURST);
        if budget == 0 || queue.is_idle(host) {
            return Ok(0);
        }
        let flow_of = (!self.steering.single()).then_some(index);
        let sent = poll!(queue, host, fault_state, |pass, ahead| {
            ahead.prefetch(&mut pass, host, budget);
            let mut n = 0;
            while n < budget {
                let Some((chain, parts)) = ahead.next(&mut pass, host)? else { break };
                self.pick_up(host, parts, flow_of)?;
                pass.used_unwritten(chain);
                n += 1;
            }
            n
        });
        let Some((sent, wanted)) = sent else { return Ok(0) };
        self.interrupt(host, queue.vector, 2 * usize::from(index) + 1, sent, wanted);
        Ok(sent)
    }

    /// Packets of a virtqueue were used, and the driver wants an interrupt for that or not: now, or later.
    #[inline]
    fn interrupt(&mut self, host: &mut Host<'_>, vector: Option<u16>, index: usize, packets: usize, wanted: bool) {
        let now = match self.coalesce.get_mut(index).filter(|_| self.features & net::NOTF_COAL != 0) {
            Some(coalesce) => {
                coalesce.count(packets as u32, wanted);
                coalesce.is_due()
            }
            None => wanted,
        };
        if now && let Some(vector) = vector {
            host.interrupt(vector.into());
        }
    }

    /// Interrupts of queues that waited long enough; whether any still waits.
    fn interrupt_late(&mut self, host: &mut Host<'_>, queues: &[Option<Queue>]) -> bool {
        let mut waits = false;
        for (coalesce, queue) in self.coalesce.iter_mut().zip(queues) {
            if coalesce.is_due()
                && let Some(vector) = queue.as_ref().and_then(|queue| queue.vector)
            {
                host.interrupt(vector.into());
            }
            waits |= coalesce.waits();
        }
        waits
    }

    /// Copies one packet off its buffers; `flow_of` is the queue to which its flow belongs from now on, where there is a choice.
    #[inline(always)]
    fn pick_up(&mut self, host: &Host<'_>, parts: &[Part], flow_of: Option<u16>) -> Result<(), Broken> {
        let total: usize = match parts {
            [part] => part.len as usize,
            parts => parts.iter().map(|p| p.len as usize).sum(),
        };
        // Readable buffers come before writable ones.
        if parts.last().is_none_or(|p| p.writable) {
            return Err("a packet to send is in a buffer to be written".into());
        }
        let len = total.checked_sub(self.header).ok_or("a packet to send is shorter than its header")?;
        if !(ETHERNET..=LONGEST).contains(&len) {
            self.counts.tx_malformed += 1;
            return Ok(());
        }
        if !self.link {
            self.counts.tx_no_carrier += 1;
            return Ok(());
        }
        let mut frame = self.port.take().ok_or("the wire has no room that it had")?;
        frame.resize(len);
        let bytes = frame.with_header(self.header);
        match parts {
            [part] => part.read(host, bytes)?,
            parts => gather(host, parts, 0, bytes)?,
        }
        if self.header == HEAD {
            frame.forget_hash();
        }
        if frame.is_complete() && len <= usize::from(self.params.mtu) + ETHERNET + TAGS {
            *frame.header() = [0; HEADER];
        } else if !self.sendable(&mut frame) {
            self.counts.tx_malformed += 1;
            self.done.push(frame);
            return Ok(());
        }
        if let Some(index) = flow_of {
            self.steering.learn(frame.packet(), index);
        }
        self.counts.tx_packets += 1;
        self.counts.tx_bytes += len as u64;
        self.port.send(frame);
        Ok(())
    }

    /// Whether a packet is what the driver may send, with its header put in order: what it leaves undone is what was negotiated (5.1.6.2).
    #[inline(never)]
    fn sendable(&self, frame: &mut Frame) -> bool {
        let mut o = frame.offload();
        o.flags &= NEEDS_CSUM;
        let negotiated = match o.gso_type & !GSO_ECN {
            GSO_NONE => frame.len() <= usize::from(self.params.mtu) + ETHERNET + TAGS,
            GSO_TCPV4 => self.has(net::HOST_TSO4),
            GSO_TCPV6 => self.has(net::HOST_TSO6),
            _ => false,
        };
        let complete = o.flags == 0 && o.gso_type == GSO_NONE;
        let negotiated =
            negotiated && (complete || self.has(net::CSUM)) && (o.gso_type & GSO_ECN == 0 || self.has(net::HOST_ECN));
        frame.set_offload(&o);
        negotiated && (complete || check(&o, frame.len()).is_ok())
    }

    /// Puts on the wire what was sent.
    #[inline]
    fn flush(&mut self) {
        let counts = self.port.flush();
        self.counts.wire_lost += counts.lost;
        self.counts.wire_reordered += counts.reordered;
    }

    /// What was counted this poll, for all to see.
    #[inline]
    fn publish(&mut self) {
        self.handle.add(&std::mem::take(&mut self.counts));
    }

    /// Gives all frames back: nobody wants them.
    fn discard(&mut self) {
        self.counts.rx_no_driver += (self.arrived.len() + self.ready.len()) as u64;
        self.done.append(&mut self.arrived);
        self.done.append(&mut self.ready);
        self.port.give_back(&mut self.done);
    }
}

impl Device for Net {
    fn features(&self) -> u64 {
        let p = &self.params;
        let when = |offered, bits| if offered { bits } else { 0 };
        net::MAC
            | net::MTU
            | net::STATUS
            | net::SPEED_DUPLEX
            | when(p.mergeable, net::MRG_RXBUF)
            | when(
                p.offloads,
                net::CSUM
                    | net::GUEST_CSUM
                    | net::GUEST_TSO4
                    | net::GUEST_TSO6
                    | net::GUEST_ECN
                    | net::HOST_TSO4
                    | net::HOST_TSO6
                    | net::HOST_ECN,
            )
            | when(p.offloads && p.control, net::CTRL_GUEST_OFFLOADS)
            | when(
                p.control,
                net::CTRL_VQ
                    | net::CTRL_RX
                    | net::CTRL_RX_EXTRA
                    | net::CTRL_VLAN
                    | net::CTRL_MAC_ADDR
                    | net::HASH_REPORT
                    | net::RSS
                    | net::NOTF_COAL
                    | net::VQ_NOTF_COAL,
            )
            | when(p.pairs > 1, net::MQ)
    }

    fn refuses(&self, features: u64) -> Option<&'static str> {
        let has = |bits| features & bits != 0;
        // 5.1.3.1.
        let by_control = net::CTRL_RX
            | net::CTRL_VLAN
            | net::CTRL_MAC_ADDR
            | net::MQ
            | net::RSS
            | net::NOTF_COAL
            | net::VQ_NOTF_COAL;
        if has(by_control) && !has(net::CTRL_VQ) {
            return Some("some need VIRTIO_NET_F_CTRL_VQ");
        }
        dangling(features)
    }

    /// 5.1.4: address, status, pairs, MTU, speed, duplex, what hashing can do.
    fn config(&self, out: &mut [u8; CONFIG_MAX]) {
        out[..6].copy_from_slice(&self.mac);
        out[6..8].copy_from_slice(&u16::from(self.link).to_le_bytes());
        out[8..10].copy_from_slice(&self.params.pairs.to_le_bytes());
        out[10..12].copy_from_slice(&self.params.mtu.to_le_bytes());
        out[12..16].copy_from_slice(&self.params.speed.to_le_bytes());
        // Full duplex.
        out[16] = 1;
        out[17] = KEY as u8;
        out[18..20].copy_from_slice(&(TABLE as u16).to_le_bytes());
        out[20..24].copy_from_slice(&KNOWN.to_le_bytes());
    }

    fn configure(&mut self, _: usize, _: &[u8]) {
        // Nothing of it is the driver's to write.
    }

    #[inline]
    fn changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    fn start(&mut self, features: u64) {
        self.features = features;
        self.header = if self.has(net::HASH_REPORT) { HEAD } else { HEADER };
        self.accepts = accepts(features);
        self.filter = Filter::new(self.mac, self.has(net::CTRL_RX), self.has(net::CTRL_VLAN));
        self.port.run(true);
    }

    fn set_pairs(&mut self, pairs: u16) {
        if pairs != self.pairs && (1..=self.params.pairs).contains(&pairs) {
            (self.pairs, self.steering) = (pairs, Steering::auto(pairs));
        }
    }

    fn reset(&mut self) {
        self.port.run(false);
        self.discard();
        self.mac = self.first_mac;
        self.features = 0;
        self.filter = Filter::new(self.mac, false, false);
        self.steering = Steering::auto(1);
        self.hash = None;
        self.pairs = 1;
        self.coalesce.iter_mut().for_each(Coalesce::reset);
        self.publish();
    }

    #[inline]
    fn poll_queues(
        &mut self,
        host: &mut Host<'_>,
        queues: &mut [Option<Queue>],
        fault_state: &mut FaultState,
    ) -> Result<Work, Broken> {
        self.watch_link();
        let mut work = Work::Idle;
        for pair in 0..self.pairs {
            if let Some(Some(queue)) = queues.get_mut(2 * usize::from(pair) + 1)
                && self.transmit(host, queue, pair, fault_state)? > 0
            {
                work = Work::Busy;
            }
        }
        self.flush();
        if self.receive(host, queues, fault_state)? == Work::Busy {
            work = Work::Busy;
        }
        if self.has(net::NOTF_COAL) && self.interrupt_late(host, queues) {
            work = Work::Busy;
        }
        self.port.give_back(&mut self.done);
        self.polls = self.polls.wrapping_add(1);
        if self.has(net::CTRL_VQ) && (work == Work::Idle || self.polls.is_multiple_of(COMMANDS_EVERY)) {
            // 5.1.2: it is the last of those there are; without multiqueue there is one pair.
            let pairs = if self.has(net::MQ | net::RSS) { self.params.pairs } else { 1 };
            if let Some(Some(queue)) = queues.get_mut(2 * usize::from(pairs))
                && !queue.is_idle(host)
                && self.control(host, queue, &mut FaultState::default())? == Work::Busy
            {
                work = Work::Busy;
            }
        }
        if work == Work::Busy || self.counts.wire_lost + self.counts.wire_reordered > 0 {
            self.publish();
        }
        Ok(work)
    }

    fn rest(&mut self) -> Work {
        self.watch_link();
        self.flush();
        self.port.receive(&mut self.arrived, BURST);
        if self.arrived.is_empty() {
            return Work::Idle;
        }
        self.discard();
        self.publish();
        Work::Busy
    }

    fn arm(&mut self) -> Armed {
        // What waits for buffers, or for room on the wire: the driver may not notify of that.
        let waits = self.starved || !self.ready.is_empty() || !self.arrived.is_empty() || self.port.room() == 0;
        if waits { Armed::No } else { self.port.arm() }
    }

    fn wakeups(&self) -> Vec<BorrowedFd<'_>> {
        self.port.wakeups()
    }
}

/// What nothing was left undone to.
const COMPLETE: Offload = Offload { flags: 0, gso_type: 0, hdr_len: 0, gso_size: 0, csum_start: 0, csum_offset: 0 };

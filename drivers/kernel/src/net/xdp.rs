//! Queues of AF_XDP sockets: packets are copied between the socket's memory and buffers of the program's. Receiving makes no system call where the kernel
//! copies; sending makes one a burst.

use super::shared::{RX, Shared, TX, id};
use super::sockets::{RxRing, TxRing};
use std::fmt;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use wholebar_core::irq::EventFd;
use wholebar_core::kernel::xdp::{XDP_LARGEST, XdpFrame, XdpRx, XdpTx};
use wholebar_core::kernel::{Destination, Malformed, Wakeup};
use wholebar_core::mem::{Pool, PoolCache};
use wholebar_core::net::{Burst, Count, Mac, QueueState, RxCounters, RxQueue, TxCounters, TxQueue, gso};
use wholebar_core::reactor::Armed;
use wholebar_core::reset::{Gate, Step};

/// How many buffers are asked of the pool at once.
const BATCH: u32 = 32;
/// An Ethernet header, without which there is no packet.
const SHORTEST: u64 = 14;

pub(super) struct XdpReceiver {
    gate: Gate,
    index: u16,
    /// `None` only while it is dropped.
    ring: Option<XdpRx>,
    wakeup: Option<Wakeup>,
    cache: PoolCache,
    shared: Arc<Shared>,
    counters: Arc<RxCounters>,
}

pub(super) struct XdpSender {
    gate: Gate,
    index: u16,
    /// `None` only while it is dropped.
    ring: Option<XdpTx>,
    shared: Arc<Shared>,
    counters: Arc<TxCounters>,
    /// Packets that the kernel dropped after it had taken them.
    dropped: Arc<Count>,
}

impl XdpReceiver {
    pub fn new(shared: Arc<Shared>, index: u16, ring: XdpRx, pool: &Pool) -> Self {
        let gate = shared.state.domain.join(id(index, RX));
        let counters = shared.rx(index).map_or_else(Arc::default, |slot| slot.counters.clone());
        let wakeup = shared.wakeup();
        Self { gate, index, ring: Some(ring), wakeup, cache: pool.cache(BATCH), shared, counters }
    }
}

/// Whether the port receives a packet.
fn takes(shared: &Shared, ring: &XdpRx, frame: &XdpFrame) -> bool {
    if shared.filter.promiscuous.load(Ordering::Relaxed) {
        return true;
    }
    let mut address = [0; 6];
    ring.copy(frame, &mut address);
    let address = Mac(address);
    let destination = match address {
        Mac::BROADCAST => Destination::Broadcast,
        _ if address.is_multicast() => Destination::Multicast,
        _ if address == shared.mac => Destination::Host,
        _ => Destination::Other,
    };
    shared.filter.takes(destination, || address)
}

impl RxQueue for XdpReceiver {
    fn rx(&mut self, out: &mut Burst) -> usize {
        if !self.gate.open() {
            if self.gate.step(false) == Step::Restart {
                self.gate.enter();
            }
            return 0;
        }
        let Some(ring) = &mut self.ring else { return 0 };
        let (before, mut bytes, mut released) = (out.len(), 0, false);
        // What comes meanwhile is for the next call, where all of it is dropped.
        for _ in 0..u16::MAX {
            let Some(found) = ring.peek().filter(|_| out.room() > 0) else { break };
            match found {
                Err(Malformed) => self.counters.dropped_malformed.add(1),
                Ok(frame) if !takes(&self.shared, ring, &frame) => {
                    self.shared.filtered.fetch_add(1, Ordering::Relaxed);
                }
                Ok(frame) if frame.len > self.shared.max_packet => self.counters.dropped_too_long.add(1),
                Ok(frame) => {
                    let Some(mut buf) = self.cache.get() else {
                        self.counters.no_buffers.add(1);
                        break;
                    };
                    // It was looked at whether the largest fits.
                    buf.reserve(self.shared.config.headroom);
                    buf.set_len(frame.len);
                    ring.copy(&frame, buf.bytes_mut());
                    if self.shared.veth {
                        gso::complete_where_left_out(buf.bytes_mut());
                    }
                    bytes += u64::from(frame.len);
                    // There is room.
                    let _ = out.push(buf);
                }
            }
            ring.release();
            released = true;
        }
        if released && ring.publish() {
            self.counters.doorbells.add(1);
        }
        let packets = out.len() - before;
        if packets > 0 {
            self.counters.packets.add(packets as u64);
            self.counters.bytes.add(bytes);
            self.counters.bursts.add(1);
        }
        packets
    }

    fn state(&self) -> QueueState {
        self.gate.state(format_args!("receive queue {}", self.index), self.shared.patience)
    }

    fn wakeup(&self) -> Option<Arc<EventFd>> {
        self.wakeup.as_ref().map(|wakeup| wakeup.eventfd().clone())
    }

    fn arm(&mut self) -> Armed {
        let (Some(wakeup), Some(ring), true) = (&mut self.wakeup, &self.ring, self.gate.open()) else {
            return Armed::No;
        };
        self.counters.armed.add(1);
        if wakeup.arm(ring.as_fd()) { Armed::Yes } else { Armed::No }
    }

    fn disarm(&mut self) {}
}

impl Drop for XdpReceiver {
    fn drop(&mut self) {
        if let (Some(ring), Some(slot)) = (self.ring.take(), self.shared.rx(self.index)) {
            slot.put_back(RxRing::Xdp(ring));
        }
    }
}

impl XdpSender {
    pub fn new(shared: Arc<Shared>, index: u16, ring: XdpTx) -> Self {
        let gate = shared.state.domain.join(id(index, TX));
        let (counters, dropped) =
            shared.tx(index).map(|slot| (slot.counters.clone(), slot.lost.clone())).unwrap_or_default();
        Self { gate, index, ring: Some(ring), shared, counters, dropped }
    }

    /// Has the kernel go on with what it has, and takes back what was sent.
    fn poll_ring(&mut self) {
        let Some(ring) = &mut self.ring else { return };
        if ring.in_flight() > 0 {
            self.counters.doorbells.add(1);
            if ring.ring().is_err_and(|error| error.raw_os_error() == Some(BUSY)) {
                self.dropped.add(1);
            }
            ring.reclaim();
        }
    }
}

/// A packet was dropped on its way, and will be given back as if it was sent.
const BUSY: i32 = rustix::io::Errno::BUSY.raw_os_error();

impl TxQueue for XdpSender {
    fn tx(&mut self, packets: &mut Burst) -> usize {
        if !self.gate.open() {
            if self.gate.step(false) == Step::Restart {
                self.gate.enter();
            }
            return 0;
        }
        let Some(ring) = &mut self.ring else { return 0 };
        ring.reclaim();
        let most = u64::from(self.shared.max_packet.min(XDP_LARGEST));
        let (mut taken, mut sent, mut bytes) = (0, 0, 0);
        for packet in packets.iter() {
            let len = packet.packet_len();
            if !(SHORTEST..=most).contains(&len) {
                self.counters.dropped_length.add(1);
            } else if !packet.is_plain() {
                self.counters.dropped_offload.add(1);
            } else if ring.post(packet) {
                (sent, bytes) = (sent + 1, bytes + len);
            } else {
                self.counters.full.add(1);
                break;
            }
            taken += 1;
        }
        packets.take(taken);
        if sent > 0 {
            self.counters.packets.add(sent);
            self.counters.bytes.add(bytes);
            self.counters.bursts.add(1);
        }
        self.poll_ring();
        taken
    }

    fn reclaim(&mut self) {
        if self.gate.open() {
            self.poll_ring();
        } else if self.gate.step(false) == Step::Restart {
            self.gate.enter();
        }
    }

    fn in_flight(&self) -> usize {
        self.ring.as_ref().map_or(0, XdpTx::in_flight)
    }

    fn state(&self) -> QueueState {
        self.gate.state(format_args!("send queue {}", self.index), self.shared.patience)
    }
}

impl Drop for XdpSender {
    fn drop(&mut self) {
        if let (Some(ring), Some(slot)) = (self.ring.take(), self.shared.tx(self.index)) {
            slot.put_back(TxRing::Xdp(ring));
        }
    }
}

impl fmt::Debug for XdpReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "XdpReceiver({} of {})", self.index, self.shared.name)
    }
}

impl fmt::Debug for XdpSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "XdpSender({} of {})", self.index, self.shared.name)
    }
}

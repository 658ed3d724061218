//! A queue that receives: packets are copied out of the kernel's ring into buffers of the program's. No system call, no lock, no allocation.

use super::cut::{Cut, Packet};
use super::shared::{RX, Shared, id};
use super::sockets::RxRing;
use std::fmt;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use wholebar_core::irq::EventFd;
use wholebar_core::kernel::{Frame, Malformed, PacketRing, Wakeup};
use wholebar_core::mem::{Buf, Checked, Pool, PoolCache};
use wholebar_core::net::{Burst, Mac, QueueState, RxCounters, RxQueue};
use wholebar_core::reactor::Armed;
use wholebar_core::reset::{Gate, Step};

/// How many buffers are asked of the pool at once.
const BATCH: u32 = 32;

pub(super) struct Rx {
    gate: Gate,
    index: u16,
    /// `None` only while it is dropped.
    ring: Option<PacketRing>,
    wakeup: Option<Wakeup>,
    work: Work,
}

/// What is needed besides the ring.
struct Work {
    cache: PoolCache,
    /// The packet at the front of the ring, where that is being cut.
    cut: Option<Cut>,
    shared: Arc<Shared>,
    counters: Arc<RxCounters>,
}

/// What became of the packet at the front of the ring.
enum FrameState {
    /// The slot is free.
    Done,
    /// There is more of it: later.
    More,
}

impl Rx {
    pub fn new(shared: Arc<Shared>, index: u16, ring: PacketRing, pool: &Pool) -> Self {
        let gate = shared.state.domain.join(id(index, RX));
        let counters = shared.rx(index).map_or_else(Arc::default, |slot| slot.counters.clone());
        let work = Work { cache: pool.cache(BATCH), cut: None, shared, counters };
        let wakeup = work.shared.wakeup();
        Self { gate, index, ring: Some(ring), wakeup, work }
    }

    /// A poll of a queue that does not run: nothing of the kernel's is reset, and what is in the ring stays.
    #[cold]
    fn closed(&mut self) {
        if self.gate.step(false) == Step::Restart {
            self.gate.enter();
        }
    }
}

impl Work {
    /// Deals with the packet at the front of the ring; adds the bytes of what is handed out.
    #[inline]
    fn frame(&mut self, ring: &PacketRing, frame: &Frame, out: &mut Burst, bytes: &mut u64) -> FrameState {
        let packet = Packet::of(ring, frame);
        if self.cut.is_none() {
            let address = || {
                let mut address = [0; 6];
                packet.copy(0, &mut address);
                Mac(address)
            };
            if !self.shared.filter.takes(frame.destination, address) {
                self.shared.filtered.fetch_add(1, Ordering::Relaxed);
                return FrameState::Done;
            }
            let most = self.shared.max_packet;
            if frame.captured < frame.len {
                self.counters.dropped_too_long.add(1);
                return FrameState::Done;
            }
            if packet.is_large() {
                match Cut::of(&packet) {
                    Some(cut) if cut.largest() <= most as usize => self.cut = Some(cut),
                    Some(_) => self.counters.dropped_too_long.add(1),
                    None => self.counters.dropped_malformed.add(1),
                }
            } else if packet.len() > most {
                self.counters.dropped_too_long.add(1);
            } else {
                let Some(mut buf) = self.buffer(packet.len(), frame, &packet) else { return FrameState::More };
                match packet.whole(buf.bytes_mut()) {
                    Some(()) => deliver(buf, out, bytes),
                    None => self.counters.dropped_malformed.add(1),
                }
            }
        }
        while let Some(mut cut) = self.cut.take() {
            let buf = (out.room() > 0).then(|| self.buffer(cut.len() as u32, frame, &packet)).flatten();
            let Some(mut buf) = buf else {
                self.cut = Some(cut);
                return FrameState::More;
            };
            let last = cut.segment(&packet, buf.bytes_mut());
            deliver(buf, out, bytes);
            self.cut = (!last).then_some(cut);
        }
        FrameState::Done
    }

    /// A buffer for a packet of this length, and what is known of that; `None` where there is none, which is counted.
    fn buffer(&mut self, len: u32, frame: &Frame, packet: &Packet<'_>) -> Option<Buf> {
        let Some(mut buf) = self.cache.get() else {
            self.counters.no_buffers.add(1);
            return None;
        };
        // It was looked at whether the largest fits.
        buf.reserve(self.shared.config.headroom);
        buf.set_len(len);
        let granted = self.shared.granted;
        if granted.rx_checksum && packet.is_good() {
            buf.set_checked(Checked::Unknown, Checked::Good);
        }
        if granted.timestamps {
            buf.set_timestamp(frame.time);
        }
        Some(buf)
    }
}

#[inline]
fn deliver(buf: Buf, out: &mut Burst, bytes: &mut u64) {
    *bytes += u64::from(buf.len());
    // There is room.
    let _ = out.push(buf);
}

impl RxQueue for Rx {
    fn rx(&mut self, out: &mut Burst) -> usize {
        if !self.gate.open() {
            self.closed();
            return 0;
        }
        let Some(ring) = &mut self.ring else { return 0 };
        let (before, mut bytes) = (out.len(), 0);
        // What comes meanwhile is for the next call, where all of it is dropped.
        for _ in 0..ring.slots() {
            if out.room() == 0 {
                break;
            }
            match ring.peek() {
                None => break,
                Some(Err(Malformed)) => self.work.counters.dropped_malformed.add(1),
                Some(Ok(frame)) => {
                    if let FrameState::More = self.work.frame(ring, &frame, out, &mut bytes) {
                        break;
                    }
                }
            }
            ring.release();
        }
        let packets = out.len() - before;
        if packets > 0 {
            self.work.counters.packets.add(packets as u64);
            self.work.counters.bytes.add(bytes);
            self.work.counters.bursts.add(1);
        }
        packets
    }

    fn state(&self) -> QueueState {
        self.gate.state(format_args!("receive queue {}", self.index), self.work.shared.patience)
    }

    fn wakeup(&self) -> Option<Arc<EventFd>> {
        self.wakeup.as_ref().map(|wakeup| wakeup.eventfd().clone())
    }

    fn arm(&mut self) -> Armed {
        let (Some(wakeup), Some(ring), true) = (&mut self.wakeup, &self.ring, self.gate.open()) else {
            return Armed::No;
        };
        self.work.counters.armed.add(1);
        if wakeup.arm(ring.as_fd()) { Armed::Yes } else { Armed::No }
    }

    fn disarm(&mut self) {}
}

impl Drop for Rx {
    fn drop(&mut self) {
        if let Some(mut ring) = self.ring.take() {
            // Of what was being cut, a part was handed out.
            if self.work.cut.is_some() {
                ring.release();
            }
            if let Some(slot) = self.work.shared.rx(self.index) {
                slot.put_back(RxRing::Packet(ring));
            }
        }
    }
}

impl fmt::Debug for Rx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rx({} of {})", self.index, self.work.shared.name)
    }
}

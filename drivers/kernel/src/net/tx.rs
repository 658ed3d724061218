//! A queue that sends: a system call for each burst, by which the kernel takes copies. Nothing is in flight when that returns.

use super::shared::{Shared, TX, id};
use super::sockets::TxRing;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wholebar_core::kernel::{PacketSocket, SEND_SEGMENTS};
use wholebar_core::mem::Buf;
use wholebar_core::net::{Burst, Count, QueueState, TxCounters, TxQueue};
use wholebar_core::reset::{Gate, Step};

/// How long the kernel may refuse the same packet for want of room, while the link is up. Then it is no room that it wants: interfaces say the same of a packet that
/// the one at the other end does not take.
const PATIENCE: Duration = Duration::from_secs(1);
/// The shortest packet that can be sent: an Ethernet header.
const SHORTEST: u64 = 14;

pub(super) struct Tx {
    gate: Gate,
    index: u16,
    socket: Arc<PacketSocket>,
    counters: Arc<TxCounters>,
    refused: Arc<Count>,
    /// Since when the packet at the front is refused for want of room.
    waiting: Option<Instant>,
    shared: Arc<Shared>,
}

/// What is to be done about a packet that the kernel did not take.
enum Refusal {
    /// There is no room, or no link, now.
    Later,
    /// It will never be taken.
    TooLong,
    Never,
}

impl Tx {
    pub fn new(shared: Arc<Shared>, index: u16, socket: Arc<PacketSocket>) -> Self {
        let gate = shared.state.domain.join(id(index, TX));
        let (counters, refused) =
            shared.tx(index).map(|slot| (slot.counters.clone(), slot.refused.clone())).unwrap_or_default();
        Self { gate, index, socket, counters, refused, waiting: None, shared }
    }

    #[cold]
    fn closed(&mut self) {
        if self.gate.step(false) == Step::Restart {
            self.gate.enter();
        }
    }

    /// Counts a packet that can never be sent, and why.
    fn is_fit(&self, packet: &Buf) -> Result<(), &Count> {
        let len = packet.packet_len();
        if !(SHORTEST..=self.shared.max_packet.into()).contains(&len) {
            return Err(&self.counters.dropped_length);
        }
        if packet.next().is_some() && packet.segments().nth(SEND_SEGMENTS).is_some() {
            return Err(&self.counters.dropped_segments);
        }
        if !packet.is_plain() { Err(&self.counters.dropped_offload) } else { Ok(()) }
    }

    #[cold]
    fn refusal(&mut self, error: &io::Error) -> Refusal {
        match error.raw_os_error() {
            Some(errno::MSGSIZE) => Refusal::TooLong,
            Some(errno::NOBUFS | errno::AGAIN | errno::INTR | errno::NOMEM) => {
                if !self.shared.state.link().up {
                    self.waiting = None;
                    return Refusal::Later;
                }
                match *self.waiting.get_or_insert_with(Instant::now) {
                    since if since.elapsed() < PATIENCE => Refusal::Later,
                    _ => Refusal::Never,
                }
            }
            // Down, or gone, which is said elsewhere.
            Some(errno::NETDOWN | errno::NXIO | errno::NODEV) => Refusal::Later,
            _ => Refusal::Never,
        }
    }
}

/// The errors that sending returns (errno(3)), by their numbers.
mod errno {
    use rustix::io::Errno;

    pub const AGAIN: i32 = Errno::AGAIN.raw_os_error();
    pub const INTR: i32 = Errno::INTR.raw_os_error();
    pub const MSGSIZE: i32 = Errno::MSGSIZE.raw_os_error();
    pub const NETDOWN: i32 = Errno::NETDOWN.raw_os_error();
    pub const NOBUFS: i32 = Errno::NOBUFS.raw_os_error();
    pub const NODEV: i32 = Errno::NODEV.raw_os_error();
    pub const NOMEM: i32 = Errno::NOMEM.raw_os_error();
    pub const NXIO: i32 = Errno::NXIO.raw_os_error();
}

impl TxQueue for Tx {
    fn tx(&mut self, packets: &mut Burst) -> usize {
        if !self.gate.open() {
            self.closed();
            return 0;
        }
        let (mut taken, mut sent, mut bytes) = (0, 0, 0);
        while let Some(first) = packets.first() {
            if let Err(cause) = self.is_fit(first) {
                cause.add(1);
                taken += packets.take(1).count();
                continue;
            }
            let fit = packets.iter().take_while(|packet| self.is_fit(packet).is_ok()).count();
            self.counters.doorbells.add(1);
            match self.socket.send(&packets[..fit]) {
                Ok(0) => break,
                Ok(n) => {
                    self.waiting = None;
                    bytes += packets.take(n).map(|packet| packet.packet_len()).sum::<u64>();
                    (taken, sent) = (taken + n, sent + n as u64);
                }
                Err(error) => {
                    match self.refusal(&error) {
                        Refusal::Later => {
                            self.counters.full.add(1);
                            break;
                        }
                        Refusal::TooLong => self.counters.dropped_length.add(1),
                        Refusal::Never => self.refused.add(1),
                    }
                    self.waiting = None;
                    taken += packets.take(1).count();
                }
            }
        }
        if sent > 0 {
            self.counters.packets.add(sent);
            self.counters.bytes.add(bytes);
            self.counters.bursts.add(1);
        }
        taken
    }

    fn reclaim(&mut self) {
        if !self.gate.open() {
            self.closed();
        }
    }

    fn in_flight(&self) -> usize {
        0
    }

    fn state(&self) -> QueueState {
        self.gate.state(format_args!("send queue {}", self.index), self.shared.patience)
    }
}

impl Drop for Tx {
    fn drop(&mut self) {
        if let Some(slot) = self.shared.tx(self.index) {
            slot.put_back(TxRing::Packet(self.socket.clone()));
        }
    }
}

impl fmt::Debug for Tx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tx({} of {})", self.index, self.shared.name)
    }
}

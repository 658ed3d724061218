//! Helpers for tests of queues around queues: a loopback queue, a pool, packets.

use super::{Burst, QueueState, RxQueue, TxQueue};
use crate::irq::EventFd;
use crate::mem::{Arena, ArenaOptions, Buf, Pool};
use crate::reactor::Armed;
use std::collections::VecDeque;
use std::sync::Arc;

/// A loopback queue: it receives what was sent, in order.
///
/// Each `tx` takes at most 11 packets, as a device that is nearly full does.
#[derive(Default)]
pub struct Loop(VecDeque<Buf>);

impl TxQueue for Loop {
    fn tx(&mut self, packets: &mut Burst) -> usize {
        let before = self.0.len();
        self.0.extend(packets.take(11));
        self.0.len() - before
    }

    fn reclaim(&mut self) {}

    fn in_flight(&self) -> usize {
        0
    }

    fn state(&self) -> QueueState {
        QueueState::Running
    }
}

impl RxQueue for Loop {
    fn rx(&mut self, out: &mut Burst) -> usize {
        let had = out.len();
        while out.room() > 0
            && let Some(packet) = self.0.pop_front()
        {
            let _ = out.push(packet);
        }
        out.len() - had
    }

    fn state(&self) -> QueueState {
        QueueState::Running
    }

    fn wakeup(&self) -> Option<Arc<EventFd>> {
        None
    }

    fn arm(&mut self) -> Armed {
        Armed::Yes
    }

    fn disarm(&mut self) {}
}

/// Creates a pool of `count` buffers of 256 bytes.
pub fn pool(count: u32) -> Pool {
    let arena = Arena::new(u64::from(count) * 256 + 65536, ArenaOptions::default()).unwrap();
    Pool::new(arena, count, 256, 64).unwrap()
}

/// Returns `count` packets of 60 to 99 bytes, each of which begins with its number, in bursts of `size`.
pub fn packets(pool: &Pool, count: u64, size: u64) -> impl Iterator<Item = Burst> {
    (0..count).step_by(size as usize).map(move |first| {
        let mut burst = Burst::new(size as usize);
        for number in first..count.min(first + size) {
            let mut packet = pool.get_len(60 + (number % 40) as u32).expect("a buffer");
            packet.bytes_mut().fill(number as u8);
            packet.bytes_mut()[..8].copy_from_slice(&number.to_le_bytes());
            burst.push(packet).expect("room");
        }
        burst
    })
}

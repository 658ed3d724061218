//! The control queue (VIRTIO 1.2, 5.1.6.5): commands, one at a time, waited for. Under the device's lock.

use crate::device::Shared;
use crate::error::{Error, Fault, Result};
use crate::ring::{Ring, Segment, Used};
use std::time::{Duration, Instant};
use wholebar_core::bar::Doorbell;
use wholebar_core::mem::Chunk;

/// A command: class, command, what it does.
#[derive(Debug, Clone, Copy)]
pub(super) struct Command(u8, u8, &'static str);

impl Command {
    /// VIRTIO_NET_CTRL_RX (5.1.6.5.1).
    pub const PROMISCUOUS: Self = Self(0, 0, "change its promiscuous mode");
    pub const ALL_MULTICAST: Self = Self(0, 1, "change whether it receives all multicast");
    /// VIRTIO_NET_CTRL_MAC (5.1.6.5.2).
    pub const MAC_TABLE: Self = Self(1, 0, "filter these addresses");
    pub const MAC_ADDRESS: Self = Self(1, 1, "take this address");
    /// VIRTIO_NET_CTRL_VLAN (5.1.6.5.3).
    pub const VLAN_ADD: Self = Self(2, 0, "receive this VLAN");
    pub const VLAN_REMOVE: Self = Self(2, 1, "no longer receive this VLAN");
    /// VIRTIO_NET_CTRL_ANNOUNCE (5.1.6.5.4).
    pub const ANNOUNCED: Self = Self(3, 0, "take note of the announcement");
    /// VIRTIO_NET_CTRL_MQ (5.1.6.5.5 to 5.1.6.5.7).
    pub const PAIRS: Self = Self(4, 0, "use so many pairs of queues");
    pub const RSS: Self = Self(4, 1, "spread packets in this way");
    pub const HASH: Self = Self(4, 2, "report hashes");
    /// VIRTIO_NET_CTRL_NOTF_COAL (VIRTIO 1.3, 5.1.6.5.9).
    pub const COALESCE_RX: Self = Self(6, 1, "coalesce interrupts");
    pub const COALESCE_QUEUE: Self = Self(6, 2, "coalesce interrupts of this queue");
}

/// How often, while an answer is waited for, it is looked whether the device still runs.
const HEALTH_INTERVAL: Duration = Duration::from_millis(20);
/// VIRTIO_NET_OK.
const OK: u8 = 0;
/// What the answer is before there is one.
const NONE: u8 = 0xff;

/// Any ring, for the queue that isn't hot.
pub(super) trait Exchange: Send {
    /// Posts a command and publishes it; whether the device is to be notified.
    fn begin(&mut self, segments: &[Segment], readable: usize) -> bool;
    fn end(&mut self) -> Result<Option<Used>, Fault>;
    fn restart(&mut self);
}

impl<R: Ring> Exchange for R {
    fn begin(&mut self, segments: &[Segment], readable: usize) -> bool {
        self.post(segments, readable);
        self.publish()
    }

    fn end(&mut self) -> Result<Option<Used>, Fault> {
        self.take()
    }

    fn restart(&mut self) {
        Ring::restart(self);
    }
}

/// The control queue.
pub(super) struct ControlQueue {
    pub index: u16,
    pub ring: Box<dyn Exchange>,
    pub bell: Doorbell<u16>,
    /// The command, and at its end the answer.
    pub buffer: Chunk,
    /// Where that is as the device sees it.
    pub iova: u64,
}

impl ControlQueue {
    /// Bytes for the command, its data and the answer.
    pub const BUFFER: u64 = 4096;

    /// The device was reset, and knows the queue again.
    pub fn restart(&mut self) {
        self.ring.restart();
    }

    /// Executes a command, and waits for it.
    pub fn execute(&mut self, shared: &Shared, command: Command, data: &[u8]) -> Result<()> {
        let Command(class, number, what) = command;
        let answer_at = self.buffer.len() - 1;
        let len = 2 + data.len() as u64;
        if len > answer_at {
            let most = answer_at - 2;
            return Err(shared
                .hw
                .unavailable(format!("a command of {} bytes is too long: {most} is the most", data.len())));
        }
        self.buffer.write(0, &[class, number])?;
        self.buffer.write(2, data)?;
        self.buffer.write(answer_at, &[NONE])?;
        let segments = [Segment { iova: self.iova, len: len as u32 }, Segment { iova: self.iova + answer_at, len: 1 }];
        if self.ring.begin(&segments, 1) {
            self.bell.ring(self.index);
        }
        let (device, began, waited) = (shared.hw.name(), Instant::now(), shared.options.admin_timeout);
        let mut next_check = HEALTH_INTERVAL;
        loop {
            // The clock first: an answer that is there once the time is over is one.
            let over = began.elapsed() >= waited;
            match self.ring.end() {
                Ok(Some(_)) => break,
                Ok(None) if over => return Err(Error::Unanswered { device, what, waited }),
                // One that gave up (DEVICE_NEEDS_RESET) answers no more.
                Ok(None) if began.elapsed() >= next_check => {
                    shared.hw.healthy()?;
                    next_check = began.elapsed() + HEALTH_INTERVAL;
                }
                Ok(None) => std::thread::yield_now(),
                Err(fault) => return Err(Error::Broken { device, queue: self.index, fault }),
            }
        }
        let mut answer = [NONE];
        self.buffer.read(answer_at, &mut answer)?;
        if answer == [OK] { Ok(()) } else { Err(Error::Refused { device, what }) }
    }
}

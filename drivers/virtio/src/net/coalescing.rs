//! Coalescing of interrupts (VIRTIO 1.3, 5.1.6.5.9): how many packets, or how long, a queue that receives waits before it interrupts.

use super::control::Command;
use std::collections::BTreeMap;
use wholebar_core::irq::Coalescing;

/// What is wanted of a device: of all its queues that receive, then of single ones.
#[derive(Debug, Default)]
pub(super) struct Wanted(BTreeMap<Option<u16>, Coalescing>);

impl Wanted {
    /// The device was told this of all queues, or of one.
    pub fn told(&mut self, queue: Option<u16>, coalescing: Coalescing) {
        if queue.is_none() {
            self.0.clear();
        }
        self.0.insert(queue, coalescing);
    }

    /// What all queues that receive have, but for those that have something of their own. After a reset a device coalesces nothing (5.1.6.5.9.1).
    pub fn of_all(&self) -> Coalescing {
        self.0.get(&None).copied().unwrap_or_default()
    }

    /// What the device has to be told again after a reset, in this order.
    pub fn iter(&self) -> impl Iterator<Item = (Option<u16>, Coalescing)> {
        self.0.iter().map(|(queue, coalescing)| (*queue, *coalescing))
    }
}

/// The command for all queues that receive, or one of them, and its data; `None` for a time that the device cannot be told.
pub(super) fn command(queue: Option<u16>, coalescing: Coalescing) -> Option<(Command, Vec<u8>)> {
    let micros = u32::try_from(coalescing.time.as_micros()).ok()?;
    let (command, mut data) = match queue {
        None => (Command::COALESCE_RX, Vec::new()),
        // Its virtqueue, and 16 bits that are reserved.
        Some(queue) => (Command::COALESCE_QUEUE, u32::from(queue.checked_mul(2)?).to_le_bytes().to_vec()),
    };
    data.extend(coalescing.events.to_le_bytes());
    data.extend(micros.to_le_bytes());
    Some((command, data))
}

//! Coalescing of interrupts (VIRTIO 1.3, 5.1.6.5.9): a queue's wait for more packets, or for a while.

use std::time::{Duration, Instant};

/// What one queue does.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Coalesce {
    pub(super) max_packets: u32,
    pub(super) max_usecs: u32,
    /// Packets since the last interrupt, and when the first of them was.
    packets: u32,
    since: Option<Instant>,
    /// The driver wants one for them.
    wanted: bool,
}

impl Coalesce {
    /// Takes parameters; what was counted goes on.
    pub(super) fn set(&mut self, (max_packets, max_usecs): (u32, u32)) {
        (self.max_packets, self.max_usecs) = (max_packets, max_usecs);
    }

    /// As it is after a reset, which ends what was counted.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    /// Packets were used, and the driver wants an interrupt for that or not.
    #[inline]
    pub(super) fn count(&mut self, packets: u32, wanted: bool) {
        if packets > 0 {
            self.packets = self.packets.saturating_add(packets);
            self.since.get_or_insert_with(Instant::now);
        }
        self.wanted |= wanted;
    }

    /// Whether it waits.
    #[inline]
    pub(super) fn waits(&self) -> bool {
        self.since.is_some() || self.wanted
    }

    /// Whether an interrupt is due now. Where either limit is 0 it is, with each packet.
    #[inline]
    pub(super) fn is_due(&mut self) -> bool {
        if !self.waits() {
            return false;
        }
        let time = Duration::from_micros(self.max_usecs.into());
        let met = self.max_packets == 0
            || self.max_usecs == 0
            || self.packets >= self.max_packets
            || self.since.is_none_or(|since| since.elapsed() >= time);
        if !met {
            return false;
        }
        (self.packets, self.since) = (0, None);
        std::mem::take(&mut self.wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_is_due_after_packets_or_after_a_while() {
        let mut queue = Coalesce::default();
        assert!(!queue.is_due());
        queue.count(1, true);
        assert!(queue.is_due() && !queue.is_due(), "as long as nothing is set, at once");
        queue.count(1, false);
        assert!(!queue.is_due() && !queue.waits(), "the driver wants none");
        queue.set((4, u32::MAX));
        queue.count(3, true);
        assert!(!queue.is_due() && queue.waits());
        queue.count(1, false);
        assert!(queue.is_due() && !queue.waits());
        queue.set((u32::MAX, 1));
        queue.count(1, true);
        let began = Instant::now();
        while !queue.is_due() {
            assert!(began.elapsed() < Duration::from_secs(60));
        }
        queue.count(1, true);
        queue.reset();
        assert!(!queue.is_due());
    }
}

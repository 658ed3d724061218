//! Coalescing of interrupts (VIRTIO 1.3, 5.1.6.5.9; NVMe base 5.27.1.8): a queue's wait for more packets or completions, or for a while.

use std::time::{Duration, Instant};

/// What one queue does.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Coalesce {
    pub(crate) max_events: u32,
    pub(crate) max_usecs: u32,
    /// Packets or completions since the last interrupt, and when the first of them was.
    events: u32,
    since: Option<Instant>,
    /// The driver wants one for them.
    wanted: bool,
}

impl Coalesce {
    /// Takes parameters; what was counted goes on.
    pub(crate) fn set(&mut self, (max_events, max_usecs): (u32, u32)) {
        (self.max_events, self.max_usecs) = (max_events, max_usecs);
    }

    /// As it is after a reset, which ends what was counted.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }

    /// Some were done, and the driver wants an interrupt for that or not.
    #[inline]
    pub(crate) fn count(&mut self, events: u32, wanted: bool) {
        if events > 0 {
            self.events = self.events.saturating_add(events);
            self.since.get_or_insert_with(Instant::now);
        }
        self.wanted |= wanted;
    }

    /// Whether it waits.
    #[inline]
    pub(crate) fn waits(&self) -> bool {
        self.since.is_some() || self.wanted
    }

    /// Whether an interrupt is due now. Where either limit is 0 it is, with each packet.
    #[inline]
    pub(crate) fn is_due(&mut self) -> bool {
        if !self.waits() {
            return false;
        }
        let time = Duration::from_micros(self.max_usecs.into());
        let met = self.max_events == 0
            || self.max_usecs == 0
            || self.events >= self.max_events
            || self.since.is_none_or(|since| since.elapsed() >= time);
        if !met {
            return false;
        }
        (self.events, self.since) = (0, None);
        std::mem::take(&mut self.wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_is_due_after_events_or_after_a_while() {
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

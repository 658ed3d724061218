//! The control plane: what is under the one lock. Sets the device up, makes and removes queues, follows the link, counts, resets.

use crate::error::Result;
use crate::family::{Direction, Family, QueueId};
use crate::hardware::Hardware;
use crate::settings::Settings;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use wholebar_core::irq::Interrupts;
use wholebar_core::mem::{Arena, ArenaOptions, DmaMapping, DmaRing};
use wholebar_core::net::{Event, Link, TxWatchdogs};
use wholebar_core::reset::Domain;

/// A queue that the device knows of, or knew.
pub(crate) struct Record {
    pub ring: DmaRing<[AtomicU64; 2]>,
    pub mapping: Arc<DmaMapping>,
    pub direction: Direction,
    /// The epoch in which it was made, or made again.
    pub epoch: u64,
    /// Its owner dropped it, and the device would not disable it.
    pub orphan: bool,
}

impl Record {
    /// Makes the queue known to the device: an empty, zeroed ring.
    pub fn create<F: Family>(&self, hw: &Hardware, id: QueueId) -> Result<()> {
        let base = self.mapping.iova().offset(self.ring.chunk().offset()).0;
        F::create(hw, id, base, self.ring.len() * 16, self.direction)
    }
}

pub(crate) struct Control {
    pub settings: Settings,
    pub queues: BTreeMap<QueueId, Record>,
    /// Memory for rings, newest last.
    pub memory: Vec<Arc<DmaMapping>>,
    /// How the link was when it was last looked at.
    pub link: Link,
    /// How often a change of it was told.
    pub link_changes: u64,
    pub watchdogs: TxWatchdogs,
    pub totals: Totals,
}

/// What the device's own counters have come to.
pub(crate) struct Totals {
    /// As [`Family::counters`] has them, those of 32 bits first.
    pub counters: Vec<u64>,
    /// Packets dropped for want of descriptors, a receive queue each; `None` where the device does not count them.
    pub dropped: Vec<Option<u64>>,
}

impl Totals {
    /// Nothing yet, for so many receive queues.
    pub fn of<F: Family>(rx_queues: u16) -> Self {
        let (small, large) = F::counters();
        Self { counters: vec![0; small.len() + large.len()], dropped: vec![None; rx_queues.into()] }
    }
}

/// Bytes of an arena for rings, at least.
const ARENA: u64 = 1 << 20;

/// Lets the device into an arena of at least `bytes`.
pub(crate) fn memory(hw: &Hardware, bytes: u64) -> Result<Arc<DmaMapping>> {
    let arena = Arena::new(bytes.max(ARENA), ArenaOptions::default())?;
    Ok(hw.device.dma().attach(arena)?)
}

/// How often the vectors of receive queues, `1` to `rx_vectors`, interrupt at most; the link's, 0, does at once.
pub(crate) fn apply_throttle<F: Family>(hw: &Hardware, settings: &Settings, rx_vectors: u16) -> Result<()> {
    let interval = settings.throttle.min(F::MAX_THROTTLE);
    (1..=u32::from(rx_vectors)).try_for_each(|vector| F::throttle(hw, vector, interval))
}

impl Control {
    /// Everything that has to be done after a reset: first, and each time. Queues come later.
    pub fn set_up<F: Family>(&mut self, hw: &Hardware, interrupts: Option<&Interrupts>, rx_vectors: u16) -> Result<()> {
        F::apply(hw, &self.settings)?;
        if interrupts.is_some() {
            F::set_up_interrupts(hw, rx_vectors)?;
            apply_throttle::<F>(hw, &self.settings, rx_vectors)?;
        }
        self.link = Link::default();
        F::start_link(hw)
    }

    /// Adds up what the device counted.
    pub fn count<F: Family>(&mut self, hw: &Hardware) -> Result<()> {
        let (small, large) = F::counters();
        let small = small.iter().map(|(register, _)| hw.read(*register).map(u64::from));
        let large = large.iter().map(|(register, _)| {
            let low = u64::from(hw.read(*register)?);
            Ok(low | u64::from(hw.read(*register + 4)?) << 32)
        });
        for (total, value) in self.totals.counters.iter_mut().zip(small.chain(large)) {
            *total = total.wrapping_add(value?);
        }
        for (n, total) in (0..).zip(&mut self.totals.dropped) {
            if let Some(dropped) = F::dropped(hw, n)? {
                *total = Some(total.unwrap_or(0).wrapping_add(dropped.into()));
            }
        }
        Ok(())
    }

    /// Looks at the link, and tells of a change, and returns it; `vectors` says that changes raise interrupts.
    pub fn follow_link<F: Family>(
        &mut self,
        hw: &Hardware,
        vectors: bool,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Option<Link>> {
        // A link that went away and came back in between shows here.
        let changed = F::link_changed(hw, vectors)?;
        let link = F::link(hw)?;
        if link != self.link {
            self.link = link;
            self.link_changes += 1;
            tell(Event::Link(link));
            return Ok(Some(link));
        }
        if changed {
            tracing::debug!(device = hw.name(), %link, "the link changed and is as it was");
        }
        Ok(None)
    }

    /// Makes every queue that takes part known again, with zeroed rings.
    pub fn recreate<F: Family>(&mut self, hw: &Hardware, domain: &Domain) -> Result<()> {
        let mut queues = std::mem::take(&mut self.queues);
        queues.retain(|_, record| !record.orphan);
        let mut done = Ok(());
        for (id, record) in &mut queues {
            if done.is_ok() && domain.has(id.0) {
                record.ring.zero();
                done = record.create::<F>(hw, *id);
                record.epoch = domain.epoch();
            }
        }
        self.queues = queues;
        done
    }
}

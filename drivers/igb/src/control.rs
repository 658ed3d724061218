//! The control plane: what is under the one lock. Sets the device up, makes and removes queues, follows the link, counts, resets.

use crate::error::Result;
use crate::hardware::Hardware;
use crate::regs::{self, queue};
use crate::settings::Settings;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;
use wholebar_core::irq::Interrupts;
use wholebar_core::mem::{Arena, ArenaOptions, DmaMapping, DmaRing};
use wholebar_core::net::{Event, Link, TxCounters, TxWatchdog};
use wholebar_core::reset::Domain;

/// A queue's number: by it the reset protocol knows it. Receive queues are even, transmit queues odd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct QueueId(pub u32);

impl QueueId {
    pub fn rx(index: u16) -> Self {
        Self(2 * u32::from(index))
    }

    pub fn tx(index: u16) -> Self {
        Self(2 * u32::from(index) + 1)
    }

    /// Where its registers are.
    fn place(self) -> u64 {
        let index = (self.0 / 2) as u16;
        if self.0.is_multiple_of(2) { regs::rx_queue(index) } else { regs::tx_queue(index) }
    }

    fn thresholds(self) -> u32 {
        if self.0.is_multiple_of(2) { queue::RX_THRESHOLDS } else { queue::TX_THRESHOLDS }
    }
}

/// A queue that the device knows of, or knew.
pub(crate) struct Record {
    pub ring: DmaRing<[AtomicU64; 2]>,
    pub mapping: Arc<DmaMapping>,
    /// SRRCTL of a queue that receives.
    pub split: Option<u32>,
    /// The epoch in which it was made, or made again.
    pub epoch: u64,
    /// Its owner dropped it, and the device would not disable it.
    pub orphan: bool,
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
    /// By transmit queue.
    pub watchdogs: Vec<TxWatchdog>,
    /// How often one was stuck.
    pub stalls: u64,
    pub totals: Totals,
}

/// What the device's own counters have come to.
#[derive(Default)]
pub(crate) struct Totals {
    /// As [`regs::COUNTERS`] has them, and then [`regs::COUNTERS_64`].
    pub counters: [u64; regs::COUNTERS.len() + regs::COUNTERS_64.len()],
    /// Packets dropped for want of descriptors, a receive queue each.
    pub dropped: [u64; regs::QUEUES as usize],
}

/// The link's vector, as a bit.
const LINK_VECTOR: u32 = 1;
/// Bytes of an arena for rings, at least.
const ARENA: u64 = 1 << 20;

/// Lets the device into an arena of at least `bytes`.
pub(crate) fn memory(hw: &Hardware, bytes: u64) -> Result<Arc<DmaMapping>> {
    let arena = Arena::new(bytes.max(ARENA), ArenaOptions::default())?;
    Ok(hw.device.dma().attach(arena)?)
}

impl Control {
    /// Everything that has to be done after a reset: first, and each time. Queues come later.
    pub fn set_up(&mut self, hw: &Hardware, interrupts: Option<&Interrupts>, rx_vectors: u16) -> Result<()> {
        self.settings.apply(hw)?;
        if interrupts.is_some() {
            self.settings.apply_throttle(hw, rx_vectors)?;
            set_up_interrupts(hw, rx_vectors)?;
        }
        self.link = Link::default();
        hw.start_link()
    }

    /// Makes a queue known to the device: an empty, zeroed ring (4.5.9, 4.5.10).
    pub fn create(&self, hw: &Hardware, id: QueueId, record: &Record) -> Result<()> {
        let place = id.place();
        let base = record.mapping.iova().offset(record.ring.chunk().offset()).0;
        hw.write(place + queue::BASE_LOW, base as u32)?;
        hw.write(place + queue::BASE_HIGH, (base >> 32) as u32)?;
        hw.write(place + queue::LENGTH, record.ring.len() * 16)?;
        hw.write(place + queue::HEAD, 0)?;
        hw.write(place + queue::TAIL, 0)?;
        if let Some(split) = record.split {
            hw.write(place + queue::SPLIT, split)?;
        }
        hw.enable_queue(place, Some(id.thresholds()))
    }

    /// Has the device forget a queue: it touches neither ring nor buffers afterwards.
    pub fn delete(&self, hw: &Hardware, id: QueueId) -> Result<()> {
        hw.enable_queue(id.place(), None)
    }

    /// Adds up what the device counted.
    pub fn count(&mut self, hw: &Hardware) -> Result<()> {
        let small = regs::COUNTERS.iter().map(|(register, _)| hw.read(*register).map(u64::from));
        let large = regs::COUNTERS_64.iter().map(|(register, _)| {
            let low = u64::from(hw.read(*register)?);
            Ok(low | u64::from(hw.read(*register + 4)?) << 32)
        });
        for (total, value) in self.totals.counters.iter_mut().zip(small.chain(large)) {
            *total = total.wrapping_add(value?);
        }
        for (n, total) in (0..).zip(&mut self.totals.dropped) {
            let dropped = hw.read(regs::rx_queue(n) + queue::DROPPED)? & queue::DROPPED_MASK;
            *total = total.wrapping_add(dropped.into());
        }
        Ok(())
    }

    /// Tells of transmit queues that are stuck.
    pub fn check_stalls(&mut self, counters: &[Arc<TxCounters>], tell: &mut dyn FnMut(Event)) {
        let now = Instant::now();
        for (queue, (watchdog, counters)) in (0..).zip(self.watchdogs.iter_mut().zip(counters)) {
            if let Some(waited) = watchdog.check(self.link.up, counters, now) {
                self.stalls += 1;
                tell(Event::Stalled { queue, waited });
            }
        }
    }

    /// Looks at the link, and tells of a change; `vectors` says that changes raise interrupts.
    pub fn follow_link(&mut self, hw: &Hardware, vectors: bool, tell: &mut dyn FnMut(Event)) -> Result<()> {
        // Reading ICR clears it, so that the next change raises an interrupt again. A link that went away and came back in between shows here.
        let changed = hw.read(regs::ICR)? & regs::CAUSE_LINK != 0;
        if vectors {
            // Its message may have masked it: QEMU's EIAM holds the complement of what it is told.
            hw.write(regs::EIMS, LINK_VECTOR)?;
        }
        let link = hw.link()?;
        if link != self.link {
            self.link = link;
            self.link_changes += 1;
            tell(Event::Link(link));
        } else if changed {
            tracing::debug!(device = hw.name(), %link, "the link changed and is as it was");
        }
        Ok(())
    }

    /// Makes every queue that takes part known again, with zeroed rings.
    pub fn recreate(&mut self, hw: &Hardware, domain: &Domain) -> Result<()> {
        let mut queues = std::mem::take(&mut self.queues);
        queues.retain(|_, record| !record.orphan);
        let mut done = Ok(());
        for (id, record) in &mut queues {
            if done.is_ok() && domain.has(id.0) {
                record.ring.zero();
                done = self.create(hw, *id, record);
                record.epoch = domain.epoch();
            }
        }
        self.queues = queues;
        done
    }
}

/// Vector 0 for the link, vector `n + 1` for receive queue `n`, below `rx_vectors` (7.3.1.2, 7.3.2.11). Those of queues stay masked until
/// they are armed, and are masked by the message that they send.
fn set_up_interrupts(hw: &Hardware, rx_vectors: u16) -> Result<()> {
    hw.write(regs::GPIE, regs::GPIE_MSIX)?;
    let vectors = 1 + u32::from(rx_vectors);
    for n in 0..8u32 {
        let entry = |queue: u32| if queue < rx_vectors.into() { regs::IVAR_VALID | (queue + 1) } else { 0 };
        hw.write(regs::ivar(n), entry(n) | entry(n + 8) << 16)?;
    }
    hw.write(regs::IVAR_MISC, regs::IVAR_VALID << 8)?;
    let all = (1 << vectors) - 1;
    hw.write(regs::EIAC, all)?;
    hw.write(regs::EIAM, all & !LINK_VECTOR)?;
    hw.write(regs::EIMS, LINK_VECTOR)?;
    hw.write(regs::IMS, regs::CAUSE_LINK)
}

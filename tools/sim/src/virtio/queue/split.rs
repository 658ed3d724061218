//! Split virtqueues (2.7): a descriptor table, a ring of what is available, a ring of what was used.

use super::{Broken, Chain, Desc, Part, Pass, Rules, Setup, Table, add, wanted, words};
use crate::virtio::bits::desc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence};
use wholebar_core::mem::Iova;
use wholebar_core::model::{Entries, Host, ReadOnly};

/// Available ring (2.7.6): flags, idx, ring, used_event.
const AVAIL_FLAGS: usize = 0;
const AVAIL_IDX: usize = 1;
const AVAIL_RING: usize = 2;
/// Used ring (2.7.8): flags, idx, elements of two 32-bit words, avail_event.
const USED_FLAGS: usize = 0;
const USED_IDX: usize = 1;
/// Available: no interrupts, please (2.7.7). Used: no notifications, please (2.7.10).
const SUPPRESS: u16 = 1;

/// Used elements of a cache line.
const LINE: usize = 8;

/// How far behind an event index may be that is not to be passed: indexes are of 16 bits, and a queue has half of these entries at most.
const FAR: u16 = 1 << 14;

/// A split queue, as the device keeps it.
pub(in super::super) struct Split {
    setup: Setup,
    rules: Rules,
    /// The next entry of the available ring to take; runs freely.
    next: u16,
    /// The next entry of the used ring to write; runs freely.
    used: u16,
    /// What the driver was told of when to notify: the used ring's flags once, and the event index.
    told: Option<u16>,
}

/// One pass over it.
pub(in super::super) struct SplitPass<'q, 'h> {
    queue: &'q mut Split,
    table: Entries<'h, Desc>,
    avail: Entries<'h, ReadOnly<AtomicU16>>,
    used: UsedRing<'h>,
    /// How far the driver was when this pass began.
    end: u16,
    /// Where `queue.used` was then.
    start: u16,
    /// Chains of a batch that one entry will stand for: how many, and the last.
    batch: Option<(u16, Chain)>,
}

struct UsedRing<'h> {
    flags: &'h AtomicU16,
    index: &'h AtomicU16,
    /// Id and length, one behind the other: an element may lie on both sides of a page's end.
    elements: Entries<'h, AtomicU32>,
    avail_event: &'h AtomicU16,
}

/// Where a chain's descriptors are.
enum Descs<'t, 'h> {
    Queue(&'t Entries<'h, Desc>),
    Indirect(Table<'h>),
}

impl Descs<'_, '_> {
    fn get(&self, index: usize) -> Option<[u64; 2]> {
        match self {
            Self::Queue(entries) => entries.at(index).map(load),
            Self::Indirect(table) => table.get(index),
        }
    }
}

#[inline(always)]
fn load([address, rest]: &Desc) -> [u64; 2] {
    [address.load(), rest.load()]
}

impl Split {
    pub(super) fn new(setup: &Setup, rules: Rules) -> Self {
        let base = setup.base.unwrap_or(0);
        Self { setup: *setup, rules, next: base, used: base, told: None }
    }

    /// The index of what is to be used next.
    pub(super) fn base(&self) -> u16 {
        self.used
    }

    pub(super) fn set_notify(&mut self, notify: bool) {
        if self.rules.notify != notify {
            (self.rules.notify, self.told) = (notify, None);
        }
    }

    /// Whether nothing is available, and the driver knows when to notify.
    #[inline]
    pub(super) fn is_idle(&self, host: &Host<'_>) -> bool {
        self.told.is_some() && self.is_empty(host)
    }

    /// Whether nothing is available.
    #[inline]
    pub(super) fn is_empty(&self, host: &Host<'_>) -> bool {
        let avail = host.dma(Iova(self.setup.driver), 4).and_then(|m| m.entries::<ReadOnly<AtomicU16>>(0, 2));
        let index = avail.as_ref().and_then(|a| a.at(AVAIL_IDX));
        // Relaxed: a pass looks again.
        index.is_some_and(|index| u16::from_le(index.load()) == self.next)
    }

    /// Looks at what is available.
    #[inline]
    pub(in super::super) fn pass<'h>(&mut self, host: &Host<'h>) -> Result<SplitPass<'_, 'h>, Broken> {
        let Setup { size, desc, driver, device, .. } = self.setup;
        let n = usize::from(size);
        let (avail_len, used_len, table_len) = (6 + 2 * n as u64, 6 + 8 * n as u64, 16 * n as u64);
        let avail = host.dma(Iova(driver), avail_len).and_then(|m| m.entries::<ReadOnly<AtomicU16>>(0, 3 + n));
        let avail = avail.ok_or_else(|| Broken::memory(host, "the available ring", driver, avail_len, false))?;
        let used = host.dma(Iova(device), used_len).filter(|m| m.writable()).and_then(|m| {
            let word = |index: usize| m.u16(2 * index as u64);
            let (flags, index, avail_event) = (word(USED_FLAGS)?, word(USED_IDX)?, word(2 + 4 * n)?);
            Some(UsedRing { flags, index, elements: m.entries(4, 2 * n)?, avail_event })
        });
        let used = used.ok_or_else(|| Broken::memory(host, "the used ring", device, used_len, true))?;
        let table = host.dma(Iova(desc), table_len).and_then(|m| m.entries::<Desc>(0, n));
        let table = table.ok_or_else(|| Broken::memory(host, "the descriptor table", desc, table_len, false))?;
        if self.told.is_none() {
            let flags = if self.rules.notify { 0 } else { SUPPRESS };
            used.flags.store(flags.to_le(), Ordering::Relaxed);
        }
        let end = avail.at(AVAIL_IDX).map_or(self.next, |index| u16::from_le(index.acquire()));
        if end.wrapping_sub(self.next) > size {
            return Err("the available index is more than the queue ahead".into());
        }
        let start = self.used;
        Ok(SplitPass { queue: self, table, avail, used, end, start, batch: None })
    }

    /// Adds a chain's buffers to `parts`.
    fn chain(&self, host: &Host<'_>, descs: &Descs<'_, '_>, head: u16, parts: &mut Vec<Part>) -> Result<(), Broken> {
        let mut at = head;
        // A chain is no longer than that, so no loop goes unnoticed (2.7.5.2).
        let most = if matches!(descs, Descs::Queue(_)) { self.setup.size } else { self.rules.longest };
        for _ in 0..most {
            let desc = descs.get(usize::from(at)).ok_or("a descriptor's index is outside of the table")?;
            let (address, len, flags, next) = words(desc);
            if flags & desc::INDIRECT != 0 {
                if matches!(descs, Descs::Indirect(_)) || !self.rules.indirect || flags & desc::NEXT != 0 {
                    return Err("an indirect descriptor where none may be".into());
                }
                let inner = Table::new(host, address, len, &self.rules)?;
                return self.chain(host, &Descs::Indirect(inner), 0, parts);
            }
            add(parts, address, len, flags)?;
            if flags & desc::NEXT == 0 {
                return Ok(());
            }
            at = next;
        }
        Err("a chain is longer than the queue, or a loop".into())
    }
}

impl SplitPass<'_, '_> {
    #[inline(always)]
    fn write(&mut self, chain: Chain, len: u32) {
        let slot = usize::from(self.queue.used & (self.queue.setup.size - 1));
        if let (Some(id), Some(length)) = (self.used.elements.at(2 * slot), self.used.elements.at(2 * slot + 1)) {
            id.store(u32::from(chain.id).to_le(), Ordering::Relaxed);
            length.store(len.to_le(), Ordering::Relaxed);
        }
    }

    /// Writes the one entry of a batch, and skips the rest.
    #[inline(always)]
    fn close(&mut self) {
        if let Some((count, last)) = self.batch.take() {
            self.write(last, 0);
            self.queue.used = self.queue.used.wrapping_add(count);
        }
    }
}

impl Pass for SplitPass<'_, '_> {
    #[inline]
    fn next(&mut self, host: &Host<'_>, parts: &mut Vec<Part>) -> Result<Option<Chain>, Broken> {
        if self.queue.next == self.end {
            return Ok(None);
        }
        parts.clear();
        let slot = usize::from(self.queue.next & (self.queue.setup.size - 1));
        // After the index's Acquire load: what was stored before it is seen.
        let id = self.avail.at(AVAIL_RING + slot).map_or(u16::MAX, |id| u16::from_le(id.load()));
        let desc = self.table.at(usize::from(id)).ok_or("a descriptor's index is outside of the table")?;
        let (address, len, flags, _) = words(load(desc));
        if flags & (desc::NEXT | desc::INDIRECT) == 0 {
            add(parts, address, len, flags)?;
        } else {
            self.queue.chain(host, &Descs::Queue(&self.table), id, parts)?;
        }
        self.queue.next = self.queue.next.wrapping_add(1);
        Ok(Some(Chain { id, entries: 1 }))
    }

    #[inline]
    fn singles(&mut self, most: usize, out: &mut Vec<(Chain, Part)>) {
        let most = most.min(usize::from(self.end.wrapping_sub(self.queue.next)));
        let mask = usize::from(self.queue.setup.size - 1);
        // Nothing taken is unused, so the first of these will be used there.
        for used in (0..most).step_by(LINE) {
            self.used.elements.prefetch_write(2 * ((usize::from(self.queue.used) + used) & mask));
        }
        for _ in 0..most {
            // Orders as in `next`.
            let Some(id) = self.avail.at(AVAIL_RING + (usize::from(self.queue.next) & mask)) else { return };
            let id = u16::from_le(id.load());
            let Some((address, len, flags, _)) = self.table.at(usize::from(id)).map(|d| words(load(d))) else { return };
            if flags & (desc::NEXT | desc::INDIRECT) != 0 {
                return;
            }
            out.push((Chain { id, entries: 1 }, Part { address, len, writable: flags & desc::WRITE != 0 }));
            self.queue.next = self.queue.next.wrapping_add(1);
        }
    }

    fn put_back(&mut self, chains: impl DoubleEndedIterator<Item = Chain>) {
        self.queue.next = self.queue.next.wrapping_sub(chains.count() as u16);
    }

    #[inline(always)]
    fn used(&mut self, chain: Chain, len: u32) {
        self.close();
        self.write(chain, len);
        self.queue.used = self.queue.used.wrapping_add(1);
    }

    #[inline(always)]
    fn used_unwritten(&mut self, chain: Chain) {
        if self.queue.rules.in_order {
            self.batch = Some((self.batch.map_or(0, |(n, _)| n) + 1, chain));
        } else {
            self.used(chain, 0);
        }
    }

    #[inline]
    fn finish(mut self, asked: bool) -> bool {
        self.close();
        let Split { setup, rules, next, used, .. } = *self.queue;
        if rules.event_idx {
            // 2.7.10: the driver notifies as it passes this index. One that is not too far behind is never passed.
            let behind = self.queue.told.filter(|told| (1..=FAR).contains(&next.wrapping_sub(*told)));
            let event = if rules.notify { next } else { behind.unwrap_or(next.wrapping_sub(1)) };
            // Not when it is there already: the driver has it in its cache.
            if self.queue.told != Some(event) {
                self.used.avail_event.store(event.to_le(), Ordering::Relaxed);
            }
            self.queue.told = Some(event);
        }
        self.queue.told.get_or_insert(next);
        if used == self.start {
            return false;
        }
        self.used.index.store(used.to_le(), Ordering::Release);
        if !asked {
            return false;
        }
        // Pairs with the driver's fence between asking for an interrupt and looking at the index once more: one of the two sees the other.
        fence(Ordering::SeqCst);
        if rules.event_idx {
            let event = self.avail.at(AVAIL_RING + usize::from(setup.size));
            event.is_none_or(|event| wanted(u16::from_le(event.load()), used, self.start))
        } else {
            self.avail.at(AVAIL_FLAGS).is_none_or(|flags| u16::from_le(flags.load()) & SUPPRESS == 0)
        }
    }
}

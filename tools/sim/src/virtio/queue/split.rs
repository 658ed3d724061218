//! Split virtqueues (2.7): a descriptor table, a ring of what is available, a ring of what was used.

use super::{Broken, Chain, Desc, Part, Rules, Setup, Turn, add, table, wanted, words};
use crate::virtio::bits::desc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence};
use wholebar::mem::Iova;
use wholebar::model::Host;

/// Available ring (2.7.6): flags, idx, ring, used_event.
const AVAIL_FLAGS: usize = 0;
const AVAIL_IDX: usize = 1;
const AVAIL_RING: usize = 2;
/// Used ring (2.7.8): flags, idx, elements of two 32-bit words, avail_event.
const USED_FLAGS: usize = 0;
const USED_IDX: usize = 1;
/// Available: no interrupts, please (2.7.7). Used: no notifications, please (2.7.10).
const SUPPRESS: u16 = 1;

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

/// One look at it.
pub(in super::super) struct SplitTurn<'q, 'h> {
    queue: &'q mut Split,
    table: &'h [Desc],
    avail: &'h [AtomicU16],
    used: UsedRing<'h>,
    /// How far the driver was when this turn began.
    end: u16,
    /// Where `queue.used` was then.
    start: u16,
    /// Chains of a batch that one entry will stand for: how many, and the last.
    batch: Option<(u16, Chain)>,
}

struct UsedRing<'h> {
    head: &'h [AtomicU16],
    elements: &'h [[AtomicU32; 2]],
    avail_event: &'h AtomicU16,
}

impl Split {
    pub(super) fn new(setup: &Setup, rules: Rules) -> Self {
        Self { setup: *setup, rules, next: 0, used: 0, told: None }
    }

    /// Whether nothing is available, and the driver knows when to notify.
    #[inline]
    pub(super) fn is_idle(&self, host: &Host<'_>) -> bool {
        self.told.is_some() && self.is_empty(host)
    }

    /// Whether nothing is available.
    #[inline]
    pub(super) fn is_empty(&self, host: &Host<'_>) -> bool {
        let avail = host.dma(Iova(self.setup.driver), 4).and_then(|m| m.u16(2 * AVAIL_IDX as u64));
        // Relaxed: a turn looks again.
        avail.is_some_and(|index| u16::from_le(index.load(Ordering::Relaxed)) == self.next)
    }

    /// Looks at what is available.
    #[inline]
    pub(in super::super) fn turn<'h>(&mut self, host: &Host<'h>) -> Result<SplitTurn<'_, 'h>, Broken> {
        let Setup { size, desc, driver, device, .. } = self.setup;
        let n = usize::from(size);
        let avail = host.dma(Iova(driver), 6 + 2 * n as u64).and_then(|m| m.slice::<AtomicU16>(0, 3 + n));
        let avail = avail.ok_or("the available ring is not in memory the device may use")?;
        let memory = host.dma(Iova(device), 6 + 8 * n as u64).filter(|m| m.writable());
        let used = memory.and_then(|m| {
            let (head, elements) = (m.slice(0, 2)?, m.slice(4, n)?);
            Some(UsedRing { head, elements, avail_event: m.u16(4 + 8 * n as u64)? })
        });
        let used = used.ok_or("the used ring is not in memory the device may write")?;
        let table = host.dma(Iova(desc), 16 * n as u64).and_then(|m| m.slice::<Desc>(0, n));
        let table = table.ok_or("the descriptor table is not in memory the device may use")?;
        if self.told.is_none() {
            let flags = if self.rules.notify { 0 } else { SUPPRESS };
            used.head[USED_FLAGS].store(flags.to_le(), Ordering::Relaxed);
        }
        let end = u16::from_le(avail[AVAIL_IDX].load(Ordering::Acquire));
        if end.wrapping_sub(self.next) > size {
            return Err("the available index is more than the queue ahead");
        }
        let start = self.used;
        Ok(SplitTurn { queue: self, table, avail, used, end, start, batch: None })
    }

    /// Adds a chain's buffers to `parts`.
    fn chain(
        &self,
        host: &Host<'_>,
        descs: &[Desc],
        head: u16,
        parts: &mut Vec<Part>,
        indirect: bool,
    ) -> Result<(), Broken> {
        let mut at = head;
        // A chain is no longer than the queue, so no loop goes unnoticed (2.7.5.2).
        for _ in 0..self.setup.size {
            let desc = descs.get(usize::from(at)).ok_or("a descriptor's index is outside of the table")?;
            let (address, len, flags, next) = words(desc);
            if flags & desc::INDIRECT != 0 {
                if indirect || !self.rules.indirect || flags & desc::NEXT != 0 {
                    return Err("an indirect descriptor where none may be");
                }
                let inner = table(host, address, len, self.setup.size.into())?;
                return self.chain(host, inner, 0, parts, true);
            }
            add(parts, address, len, flags)?;
            if flags & desc::NEXT == 0 {
                return Ok(());
            }
            at = next;
        }
        Err("a chain is longer than the queue, or a loop")
    }
}

impl SplitTurn<'_, '_> {
    #[inline(always)]
    fn write(&mut self, chain: Chain, len: u32) {
        let [id, length] = &self.used.elements[usize::from(self.queue.used & (self.queue.setup.size - 1))];
        id.store(u32::from(chain.id).to_le(), Ordering::Relaxed);
        length.store(len.to_le(), Ordering::Relaxed);
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

impl Turn for SplitTurn<'_, '_> {
    #[inline]
    fn next(&mut self, host: &Host<'_>, parts: &mut Vec<Part>) -> Result<Option<Chain>, Broken> {
        if self.queue.next == self.end {
            return Ok(None);
        }
        parts.clear();
        let slot = usize::from(self.queue.next & (self.queue.setup.size - 1));
        // After the index's Acquire load: what was stored before it is seen.
        let id = u16::from_le(self.avail[AVAIL_RING + slot].load(Ordering::Relaxed));
        let (address, len, flags, _) = match self.table.get(usize::from(id)) {
            Some(desc) => words(desc),
            None => return Err("a descriptor's index is outside of the table"),
        };
        if flags & (desc::NEXT | desc::INDIRECT) == 0 {
            add(parts, address, len, flags)?;
        } else {
            self.queue.chain(host, self.table, id, parts, false)?;
        }
        self.queue.next = self.queue.next.wrapping_add(1);
        Ok(Some(Chain { id, entries: 1 }))
    }

    #[inline]
    fn singles(&mut self, most: usize, out: &mut Vec<(Chain, Part)>) {
        let most = most.min(usize::from(self.end.wrapping_sub(self.queue.next)));
        let (ring, mask) = (&self.avail[AVAIL_RING..], usize::from(self.queue.setup.size - 1));
        for _ in 0..most {
            // Orders as in `next`.
            let id = u16::from_le(ring[usize::from(self.queue.next) & mask].load(Ordering::Relaxed));
            let Some((address, len, flags, _)) = self.table.get(usize::from(id)).map(words) else { return };
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
            // 2.7.10: the driver notifies as it passes this index. One just behind is never passed.
            let event = if rules.notify { next } else { next.wrapping_sub(1) };
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
        self.used.head[USED_IDX].store(used.to_le(), Ordering::Release);
        if !asked {
            return false;
        }
        // Pairs with the driver's fence between asking for an interrupt and looking at the index once more: one of the two sees the other.
        fence(Ordering::SeqCst);
        if rules.event_idx {
            let event = u16::from_le(self.avail[AVAIL_RING + usize::from(setup.size)].load(Ordering::Relaxed));
            wanted(event, used, self.start)
        } else {
            u16::from_le(self.avail[AVAIL_FLAGS].load(Ordering::Relaxed)) & SUPPRESS == 0
        }
    }
}

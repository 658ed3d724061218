//! Packed virtqueues (2.8): one ring of descriptors, which the driver makes available and the device overwrites as used.

use super::{Broken, Chain, Part, Pass, Rules, Setup, Table, add, wanted, words};
use crate::virtio::bits::{desc, event};
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering, fence};
use wholebar_core::mem::Iova;
use wholebar_core::model::{Entries, Host, ReadOnly};
use wholebar_core::vhost_user::QueueRecord;

/// A descriptor: address; then length, id (at bit 32) and flags (at bit 48), which are one word (2.8.13).
type Desc = [AtomicU64; 2];
/// Descriptors of a cache line.
const LINE: u16 = 4;

/// A place in the ring, and which lap it is: the wrap counters (2.8.1) start as 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    at: u16,
    wrap: bool,
}

impl Place {
    #[inline(always)]
    fn forward(&mut self, entries: u16, size: u16) {
        // Both are at most 32768: their sum may need 17 bits.
        let at = u32::from(self.at) + u32::from(entries);
        let over = at >= u32::from(size);
        self.at = if over { at - u32::from(size) } else { at } as u16;
        self.wrap ^= over;
    }

    fn back(&mut self, entries: u16, size: u16) {
        let under = entries > self.at;
        self.at =
            if under { (u32::from(self.at) + u32::from(size) - u32::from(entries)) as u16 } else { self.at - entries };
        self.wrap ^= under;
    }

    /// Offset and wrap counter as an event structure has them (2.8.14).
    fn bits(self) -> u16 {
        self.at | u16::from(self.wrap) << 15
    }

    fn of_bits(bits: u16) -> Self {
        Self { at: bits & 0x7fff, wrap: bits >> 15 != 0 }
    }
}

/// A packed queue, as the device keeps it.
pub(in super::super) struct Packed {
    setup: Setup,
    rules: Rules,
    next: Place,
    used: Place,
    told: bool,
    /// Where the driver was told to notify.
    event: Option<Place>,
    /// What is used is recorded there, for another back end.
    record: Option<QueueRecord>,
    /// Scratch: what a pass used, where and as which word. It is written as the pass ends: a driver that polls has the line of the first, and would fetch it
    /// again for each of them. Not where each is recorded for itself.
    used_words: Vec<(u16, u64)>,
}

/// One pass over it.
pub(in super::super) struct PackedPass<'q, 'h> {
    queue: &'q mut Packed,
    ring: Entries<'h, Desc>,
    driver: Entries<'h, ReadOnly<AtomicU16>>,
    device: Entries<'h, AtomicU16>,
    start: Place,
    /// Chains of a batch that one descriptor will stand for: how many entries, and the last.
    batch: Option<(u16, Chain)>,
}

impl Packed {
    pub(super) fn new(setup: &Setup, rules: Rules) -> Self {
        let start = setup.base.map_or(Place { at: 0, wrap: true }, Place::of_bits);
        let used_words = Vec::new();
        Self { setup: *setup, rules, next: start, used: start, told: false, event: None, record: None, used_words }
    }

    pub(super) fn set_record(&mut self, record: QueueRecord) {
        self.record = Some(record);
    }

    pub(super) fn set_notify(&mut self, notify: bool) {
        if self.rules.notify != notify {
            self.rules.notify = notify;
            (self.told, self.event) = (false, None);
        }
    }

    /// The place of what is to be used next.
    pub(super) fn base(&self) -> u16 {
        self.used.bits()
    }

    /// Whether nothing is available, and the driver knows when to notify.
    #[inline]
    pub(super) fn is_idle(&self, host: &Host<'_>) -> bool {
        self.told && self.is_empty(host)
    }

    /// Whether nothing is available.
    #[inline]
    pub(super) fn is_empty(&self, host: &Host<'_>) -> bool {
        let word = host.dma(Iova(self.setup.desc + 16 * u64::from(self.next.at)), 16).and_then(|m| m.u64(8));
        // Relaxed: a pass looks again.
        word.is_some_and(|word| !PackedPass::available(flags(word.load(Ordering::Relaxed)), self.next))
    }

    /// Looks at what is available.
    #[inline]
    pub(in super::super) fn pass<'h>(&mut self, host: &Host<'h>) -> Result<PackedPass<'_, 'h>, Broken> {
        let Setup { size, desc, driver, device, .. } = self.setup;
        let n = usize::from(size);
        let ring = host.dma(Iova(desc), 16 * n as u64).and_then(|m| m.entries::<Desc>(0, n));
        let ring = ring.ok_or_else(|| Broken::memory(host, "the descriptor ring", desc, 16 * n as u64, true))?;
        let events = host.dma(Iova(driver), 4).and_then(|m| m.entries::<ReadOnly<AtomicU16>>(0, 2));
        let driver = events.ok_or_else(|| Broken::memory(host, "the driver's event area", driver, 4, false))?;
        let events = host.dma(Iova(device), 4).and_then(|m| m.entries::<AtomicU16>(0, 2));
        let device = events.ok_or_else(|| Broken::memory(host, "the device's event area", device, 4, true))?;
        if !self.told {
            self.told = true;
            let flags = match (self.rules.notify, self.rules.event_idx) {
                (false, _) => event::DISABLE,
                (true, false) => event::ENABLE,
                (true, true) => event::DESC,
            };
            let words = [(0, self.next.bits()), (1, flags)];
            words.iter().for_each(|(i, word)| tell(&device, *i, *word));
        }
        self.used_words.clear();
        let start = self.used;
        Ok(PackedPass { queue: self, ring, driver, device, start, batch: None })
    }
}

/// The flags in a descriptor's second word.
#[inline(always)]
fn flags(word: u64) -> u16 {
    (u64::from_le(word) >> 48) as u16
}

/// Stores a word of the device's event area.
#[inline(always)]
fn tell(device: &Entries<'_, AtomicU16>, index: usize, word: u16) {
    if let Some(to) = device.at(index) {
        to.store(word.to_le(), Ordering::Relaxed);
    }
}

impl PackedPass<'_, '_> {
    /// The descriptor at a place, which is inside of the ring.
    #[inline(always)]
    fn desc(&self, place: Place) -> (u64, u32, u16, u16) {
        let desc = self.ring.at(usize::from(place.at));
        words(desc.map_or([0; 2], |[address, rest]| [address.load(Ordering::Relaxed), rest.load(Ordering::Relaxed)]))
    }

    /// Its flags, with Acquire: what was stored before them is seen after. The rest of their word is to be loaded after it: a driver may store it in pieces.
    #[inline(always)]
    fn flags(&self, place: Place) -> Option<u16> {
        let [_, rest] = self.ring.at(usize::from(place.at))?;
        Some(flags(rest.load(Ordering::Acquire)))
    }

    /// Whether the descriptor at `place` is available (2.8.1): its bits are the lap's, and its inverse.
    #[inline]
    fn available(flags: u16, place: Place) -> bool {
        (flags & desc::AVAIL != 0) == place.wrap && (flags & desc::USED != 0) != place.wrap
    }

    fn chain(&self, host: &Host<'_>, parts: &mut Vec<Part>) -> Result<Chain, Broken> {
        let (size, mut place) = (self.queue.setup.size, self.queue.next);
        for entries in 1..=size {
            let (address, len, id, flags) = self.desc(place);
            if !Self::available(flags, place) {
                return Err("a chain runs into descriptors that are not available".into());
            }
            if flags & desc::INDIRECT != 0 {
                if entries > 1 || !self.queue.rules.indirect || flags & desc::NEXT != 0 {
                    return Err("an indirect descriptor where none may be".into());
                }
                let table = Table::new(host, address, len, &self.queue.rules)?;
                for inner in (0..).map_while(|i| table.get(i)) {
                    // Only the write flag counts in there (2.8.19).
                    let (address, len, _, flags) = words(inner);
                    if let [first] = &mut parts[..]
                        && flags & desc::WRITE == 0
                    {
                        // DPDK's driver (22.11) says that the header of a packet to send is to be written. A device should not read what is (2.8.15), and
                        // must not write what isn't: to read it does no harm, and what the driver wants is plain.
                        first.writable = false;
                    }
                    add(parts, address, len, flags)?;
                }
                return Ok(Chain { id, entries });
            }
            add(parts, address, len, flags)?;
            if flags & desc::NEXT == 0 {
                return Ok(Chain { id, entries });
            }
            place.forward(1, size);
        }
        Err("a chain is longer than the queue".into())
    }

    /// Uses a descriptor, which stands for `entries` of the ring.
    #[inline(always)]
    fn write(&mut self, id: u16, entries: u16, len: u32) {
        let place = self.queue.used;
        self.queue.used.forward(entries, self.queue.setup.size);
        let lap = if place.wrap { desc::AVAIL | desc::USED } else { 0 };
        // The write flag says that the length means something (2.8.3).
        let flags = lap | if len > 0 { desc::WRITE } else { 0 };
        let word = (u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48).to_le();
        if self.queue.record.is_none() {
            self.queue.used_words.push((place.at, word));
        } else {
            self.write_recorded(place, word);
        }
    }

    /// Writes it at once, and between the steps of its record.
    #[inline(never)]
    fn write_recorded(&self, place: Place, word: u64) {
        let (Some(record), Some([_, rest])) = (&self.queue.record, self.ring.at(usize::from(place.at))) else { return };
        let ((_, len, id, _), after) = (self.desc(place), self.queue.used.bits());
        record.begin_use(place.bits(), after, id, len);
        // Release: as in `finish`.
        rest.store(word, Ordering::Release);
        record.end_use(after);
    }

    /// Writes what was used backwards: the driver takes nothing before the first, so it sees all of them or none.
    #[inline(always)]
    fn write_used(&mut self) {
        let Some(((first, word), others)) = self.queue.used_words.split_first() else { return };
        for (at, word) in others.iter().rev() {
            if let Some([_, rest]) = self.ring.at(usize::from(*at)) {
                rest.store(*word, Ordering::Relaxed);
            }
        }
        if let Some([_, rest]) = self.ring.at(usize::from(*first)) {
            // Release: whoever sees this one sees the others, and what is in the buffers of all.
            rest.store(*word, Ordering::Release);
        }
    }

    #[inline(always)]
    fn close(&mut self) {
        if let Some((entries, last)) = self.batch.take() {
            self.write(last.id, entries, 0);
        }
    }
}

impl Pass for PackedPass<'_, '_> {
    #[inline]
    fn next(&mut self, host: &Host<'_>, parts: &mut Vec<Part>) -> Result<Option<Chain>, Broken> {
        let place = self.queue.next;
        let Some(flags) = self.flags(place).filter(|flags| Self::available(*flags, place)) else { return Ok(None) };
        parts.clear();
        let chain = if flags & (desc::NEXT | desc::INDIRECT) == 0 {
            let (address, len, id, flags) = self.desc(place);
            add(parts, address, len, flags)?;
            Chain { id, entries: 1 }
        } else {
            self.chain(host, parts)?
        };
        self.queue.next.forward(chain.entries, self.queue.setup.size);
        Ok(Some(chain))
    }

    #[inline]
    fn singles(&mut self, most: usize, out: &mut Vec<(Chain, Part)>) {
        for _ in 0..most {
            let place = self.queue.next;
            let Some(flags) = self.flags(place) else { return };
            if !Self::available(flags, place) || flags & (desc::NEXT | desc::INDIRECT) != 0 {
                return;
            }
            if place.at.is_multiple_of(LINE) {
                // It is going to be used.
                self.ring.prefetch_write(place.at.into());
            }
            let (address, len, id, _) = self.desc(place);
            out.push((Chain { id, entries: 1 }, Part { address, len, writable: flags & desc::WRITE != 0 }));
            self.queue.next.forward(1, self.queue.setup.size);
        }
    }

    fn put_back(&mut self, chains: impl DoubleEndedIterator<Item = Chain>) {
        for chain in chains.rev() {
            self.queue.next.back(chain.entries, self.queue.setup.size);
        }
    }

    #[inline(always)]
    fn used(&mut self, chain: Chain, len: u32) {
        self.close();
        self.write(chain.id, chain.entries, len);
    }

    #[inline(always)]
    fn used_unwritten(&mut self, chain: Chain) {
        if self.queue.rules.in_order {
            self.batch = Some((self.batch.map_or(0, |(n, _)| n) + chain.entries, chain));
        } else {
            self.used(chain, 0);
        }
    }

    #[inline]
    fn finish(mut self, asked: bool) -> bool {
        self.close();
        let Packed { setup, rules, next, used, .. } = *self.queue;
        if rules.event_idx && rules.notify && self.queue.event != Some(next) {
            tell(&self.device, 0, next.bits());
            self.queue.event = Some(next);
        }
        self.write_used();
        if !asked || used == self.start {
            return false;
        }
        // Pairs with the driver's fence between asking for an interrupt and looking at the ring once more: one of the two sees the other.
        fence(Ordering::SeqCst);
        let asked = |word| self.driver.at(word).map_or(0, |word| u16::from_le(word.load()));
        match asked(1) & 3 {
            event::DISABLE => false,
            event::DESC if rules.event_idx => {
                let event = asked(0);
                // On one scale: an index of the lap before is that much behind.
                let behind = |wrap: bool| if wrap == used.wrap { 0 } else { setup.size };
                let event_at = (event & 0x7fff).wrapping_sub(behind(event >> 15 != 0));
                wanted(event_at, used.at, self.start.at.wrapping_sub(behind(self.start.wrap)))
            }
            _ => true,
        }
    }
}

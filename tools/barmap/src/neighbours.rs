//! Who else is in a BAR's pages, told from the physical addresses of all that a source tells of.
//!
//! The kernel lets a BAR that is smaller than the host's page be mapped only where it begins on a page boundary and nothing else is in its page
//! (`vfio_pci_probe_mmaps`). Another host may place BARs elsewhere: what is said here is said of these addresses.

use crate::{Bar, Function, Machine, Place};
use std::collections::HashSet;
use std::ops::RangeInclusive;
use wholebar_core::PageSize;
use wholebar_core::pci::DeviceKind;

/// How a BAR lies in its pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// Nothing else is in its pages.
    Own,
    /// It is smaller than a page, and its address is not known.
    Unknown,
    /// It has no address: the source says so.
    Unassigned,
    /// Nothing that the source tells of is in its page, and it doesn't tell of the whole machine.
    Unseen,
    /// It doesn't begin on a page boundary.
    Unaligned,
    /// Others are in its page: what they are called, at most 16 of them.
    Shared(Vec<String>),
}

impl Placement {
    /// Whether nothing of the BAR can be mapped at this address.
    pub fn is_shut(&self) -> bool {
        matches!(self, Self::Unaligned | Self::Shared(_))
    }
}

/// Everything that takes physical addresses, in their order.
#[derive(Debug)]
pub(crate) struct Neighbours<'a> {
    functions: &'a [Function],
    ranges: Vec<Taken>,
    /// A tree over `ranges`, the root at 1: the largest end in each half, and so on.
    ends: Vec<u64>,
    /// All of a machine's functions are there.
    whole: bool,
    /// Of several machines.
    mixed: bool,
}

#[derive(Debug)]
struct Taken {
    range: RangeInclusive<u64>,
    function: u32,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Bar(u8),
    Rom,
    /// BAR `n` of all virtual functions together: theirs are inside of it.
    VirtualBars(u8),
}

/// The most neighbours that are named.
const MOST: usize = 16;

impl<'a> Neighbours<'a> {
    pub(crate) fn of(machine: &'a Machine) -> Self {
        let functions = machine.functions.as_slice();
        let mut ranges: Vec<Taken> =
            (0..).zip(functions).flat_map(|(index, function)| taken(index, function)).collect();
        ranges.sort_by_key(|taken| *taken.range.start());
        let leaves = (ranges.len() + 1).next_power_of_two();
        let mut ends = vec![0; 2 * leaves];
        for (i, taken) in ranges.iter().enumerate() {
            ends[leaves + i] = *taken.range.end();
        }
        for i in (1..leaves).rev() {
            ends[i] = ends[2 * i].max(ends[2 * i + 1]);
        }
        // A text of a whole machine has bridges, and more than one device.
        let bridge = functions.iter().any(|f| {
            f.ids.class.is_some_and(|class| class >> 8 == 6)
                || f.title.as_deref().is_some_and(|title| title.contains("ridge:"))
        });
        let devices: HashSet<_> =
            functions.iter().filter_map(|f| f.address).map(|at| (at.segment, at.bus, at.device)).take(2).collect();
        let whole = !machine.partial || (bridge && devices.len() > 1);
        Self { functions, ranges, ends, whole, mixed: machine.mixed }
    }

    /// How `bar` of the function of this index lies in pages of `page`; `least`: how large it is at least, where its size isn't known.
    pub(crate) fn placement(&self, index: usize, bar: &Bar, least: Option<u64>, page: PageSize) -> Placement {
        // Software serves each region from pages of its own.
        if self.functions[index].open.as_ref().is_some_and(|open| open.kind != DeviceKind::Kernel) {
            return Placement::Own;
        }
        if bar.unplaced.is_some() {
            return Placement::Unassigned;
        }
        // Without a size, too, what begins no page can't be mapped.
        if bar.place.address.is_some_and(|address| page.floor(address) != address) {
            return Placement::Unaligned;
        }
        let Some(size) = bar.place.size.or(least) else { return Placement::Unknown };
        let small = size < page.bytes();
        match bar.place.range() {
            None if small => Placement::Unknown,
            _ if !small => Placement::Own,
            Some(range) if !self.mixed => match self.others(index, bar, *range.start(), page) {
                others if !others.is_empty() => Placement::Shared(others),
                _ if self.whole => Placement::Own,
                _ => Placement::Unseen,
            },
            _ => Placement::Unseen,
        }
    }

    fn others(&self, index: usize, bar: &Bar, start: u64, page: PageSize) -> Vec<String> {
        let end = start.saturating_add(page.bytes() - 1);
        let mut names = Vec::new();
        let mut before = self.ranges.partition_point(|taken| *taken.range.start() <= end);
        while let Some(at) = self.last_that_reaches(start, before).filter(|_| names.len() < MOST) {
            let taken = &self.ranges[at];
            let other = match taken.what {
                What::Bar(number) => !(number == bar.index && taken.function as usize == index),
                What::Rom => true,
                // Those that hold it: it is one of them.
                What::VirtualBars(_) => !(bar.hidden && taken.range.contains(&start)),
            };
            if other {
                names.push(taken.name(self.functions));
            }
            before = at;
        }
        names.reverse();
        names
    }

    /// The last range before index `before` that reaches to `start` or past it.
    fn last_that_reaches(&self, start: u64, before: usize) -> Option<usize> {
        let leaves = self.ends.len() / 2;
        let mut node = leaves + before;
        // Up until a left neighbour has one, then down to the last one in it.
        while node > 1 && !(node % 2 == 1 && self.ends[node - 1] >= start) {
            node /= 2;
        }
        if node <= 1 {
            return None;
        }
        node -= 1;
        while node < leaves {
            node = 2 * node + usize::from(self.ends[2 * node + 1] >= start);
        }
        Some(node - leaves)
    }
}

impl Taken {
    fn name(&self, functions: &[Function]) -> String {
        let name = &functions[self.function as usize].name;
        match self.what {
            What::Bar(index) => format!("{name} BAR{index}"),
            What::Rom => format!("{name} ROM"),
            What::VirtualBars(index) => format!("{name} BAR{index} of its virtual functions"),
        }
    }
}

fn taken(index: u32, function: &Function) -> impl Iterator<Item = Taken> + '_ {
    // Whose size isn't told begins there at least.
    let range = |place: &Place, count: u16| {
        let size = place.size.map_or(Some(1), |size| size.checked_mul(u64::from(count.max(1))));
        Place { size, ..*place }.range()
    };
    let bars = function.bars.iter().filter(|bar| bar.is_memory());
    let bars = bars.map(move |bar| (What::Bar(bar.index), range(&bar.place, 1)));
    let rom = function.rom.iter().map(move |rom| (What::Rom, range(rom, 1)));
    let sriov = function.sriov.iter().flat_map(move |sriov| {
        sriov.bars.iter().map(move |bar| (What::VirtualBars(bar.index), range(&bar.place, sriov.total)))
    });
    let all = bars.chain(rom).chain(sriov);
    all.filter_map(move |(what, range)| Some(Taken { range: range?, function: index, what }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tree against a look at every range.
    #[test]
    fn the_last_that_reaches() {
        let mut random = 1u64;
        let mut next = move |below: u64| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 33) % below
        };
        for n in 0..40 {
            let mut ranges: Vec<Taken> = (0..n)
                .map(|i| {
                    let start = next(100);
                    Taken { range: start..=start + next(60), function: i, what: What::Rom }
                })
                .collect();
            ranges.sort_by_key(|taken| *taken.range.start());
            let leaves = (ranges.len() + 1).next_power_of_two();
            let mut ends = vec![0; 2 * leaves];
            ranges.iter().enumerate().for_each(|(i, taken)| ends[leaves + i] = *taken.range.end());
            (1..leaves).rev().for_each(|i| ends[i] = ends[2 * i].max(ends[2 * i + 1]));
            let neighbours = Neighbours { functions: &[], ranges, ends, whole: true, mixed: false };
            for start in 1..170 {
                for before in 0..=n as usize {
                    let slow = (0..before).rev().find(|i| *neighbours.ranges[*i].range.end() >= start);
                    assert_eq!(neighbours.last_that_reaches(start, before), slow, "{start} {before}");
                }
            }
        }
    }
}

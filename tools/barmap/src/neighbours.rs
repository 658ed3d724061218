//! BARs smaller than a page: whether they have their page to themselves, told from the physical addresses of all that a source tells of.
//!
//! The kernel lets a BAR that is smaller than the host's page be mapped only where it begins on a page boundary and nothing else is in its page
//! (`vfio_pci_probe_mmaps`). Another host may place BARs elsewhere: what is said here is said of these addresses, and decides only of the host that
//! has them.

use crate::{Bar, Function, Machine};
use std::ops::RangeInclusive;
use wholebar::PageSize;
use wholebar::pci::DeviceKind;

/// How a BAR lies in its pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// Nothing else is in its pages.
    Own,
    /// It is smaller than a page, and its address is not known.
    Unknown,
    /// It doesn't begin on a page boundary.
    Unaligned,
    /// Others are in its page: what they are called, at most 16 of them.
    Shared(Vec<String>),
}

/// Everything that takes physical addresses, in their order.
#[derive(Debug)]
pub(crate) struct Neighbours<'a> {
    ranges: Vec<Taken<'a>>,
    /// The largest end of this range and all before it.
    ends: Vec<u64>,
}

#[derive(Debug)]
struct Taken<'a> {
    range: RangeInclusive<u64>,
    function: &'a Function,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Bar(u8),
    Rom,
    /// BAR `n` of all virtual functions together: theirs are inside of it.
    VirtualBars(u8),
}

impl<'a> Neighbours<'a> {
    pub(crate) fn of(machine: &'a Machine) -> Self {
        let mut ranges: Vec<Taken<'a>> = machine.functions.iter().flat_map(taken).collect();
        ranges.sort_by_key(|taken| *taken.range.start());
        let mut last = 0;
        let ends = ranges.iter().map(|taken| (last = last.max(*taken.range.end()), last).1).collect();
        Self { ranges, ends }
    }

    /// How `bar` of `function` lies in pages of `page`.
    pub(crate) fn placement(&self, function: &Function, bar: &Bar, page: PageSize) -> Placement {
        // Software serves each region from pages of its own.
        if function.open.as_ref().is_some_and(|open| open.kind != DeviceKind::Kernel) {
            return Placement::Own;
        }
        let Some(size) = bar.place.size else { return Placement::Unknown };
        let small = size < page.bytes();
        match bar.place.range() {
            None if small => Placement::Unknown,
            None => Placement::Own,
            Some(range) if page.floor(*range.start()) != *range.start() => Placement::Unaligned,
            Some(_) if !small => Placement::Own,
            Some(range) => match self.others(function, bar, *range.start(), page) {
                others if others.is_empty() => Placement::Own,
                others => Placement::Shared(others),
            },
        }
    }

    fn others(&self, function: &Function, bar: &Bar, start: u64, page: PageSize) -> Vec<String> {
        let end = start.saturating_add(page.bytes() - 1);
        let after = self.ranges.partition_point(|taken| *taken.range.start() <= end);
        let reach = |i: &usize| self.ends[*i] >= start;
        let here = (0..after).rev().take_while(reach).map(|i| &self.ranges[i]).filter(|t| *t.range.end() >= start);
        let others = here.filter(|taken| match taken.what {
            What::Bar(index) => !(index == bar.index && taken.function == function),
            What::Rom => true,
            // Those that hold it: it is one of them.
            What::VirtualBars(_) => !(bar.hidden && taken.range.contains(&start)),
        });
        let mut names: Vec<String> = others.take(16).map(Taken::name).collect();
        names.reverse();
        names
    }
}

impl Taken<'_> {
    fn name(&self) -> String {
        match self.what {
            What::Bar(index) => format!("{} BAR{index}", self.function.name),
            What::Rom => format!("{} ROM", self.function.name),
            What::VirtualBars(index) => format!("{} BAR{index} of its virtual functions", self.function.name),
        }
    }
}

fn taken(function: &Function) -> impl Iterator<Item = Taken<'_>> {
    let bars = function.bars.iter().filter(|bar| bar.is_memory());
    let bars = bars.map(|bar| (What::Bar(bar.index), bar.place.range()));
    let rom = function.rom.iter().map(|rom| (What::Rom, rom.range()));
    let sriov = function.sriov.iter().flat_map(|sriov| {
        sriov.bars.iter().map(|bar| {
            let size = bar.place.size.and_then(|size| size.checked_mul(u64::from(sriov.total.max(1))));
            (What::VirtualBars(bar.index), crate::Place { size, ..bar.place }.range())
        })
    });
    let all = bars.chain(rom).chain(sriov);
    all.filter_map(move |(what, range)| Some(Taken { range: range?, function, what }))
}

//! The maps: of each BAR, for each page size, what every policy comes to, and one line that says what that means.

use crate::neighbours::Neighbours;
use crate::verdict::{self, Case, Verdict};
use crate::{Bar, Function, Hot, HotRegisters, Machine, MsixFact, Place, Placement};
use std::ops::Range;
use wholebar_core::PageSize;
use wholebar_core::bar::{Access, BarLayout, BarPlan, MapPolicy, plan};
use wholebar_core::pci::config::{BarKind, Msix};
use wholebar_core::pci::{Isolation, RegionCap, RegionInfo, Verdict as Isolated};

/// The page sizes there are hosts with.
pub const PAGES: [PageSize; 3] = [PageSize::K4, PageSize::K16, PageSize::K64];

/// Why `auto` maps whole on POWER.
pub(crate) const SPAPR: &str = "whole: POWER's host bridges isolate the interrupts of each partitionable endpoint";

/// A function's BARs, mapped.
#[derive(Debug, Clone)]
pub struct FunctionMap<'a> {
    /// The function.
    pub function: &'a Function,
    /// What is known of its hot registers.
    pub hot: HotRegisters,
    /// Its BARs, by number; those too that only its MSI-X capability or its hot registers tell of.
    pub bars: Vec<BarMap>,
    /// What makes no sense: a table in a BAR that isn't there, or past its end.
    pub problems: Vec<String>,
}

/// One BAR, mapped.
#[derive(Debug, Clone)]
pub struct BarMap {
    /// The BAR.
    pub bar: Bar,
    /// The source tells of it. Otherwise its MSI-X capability or its hot registers say that there is one.
    pub told: bool,
    /// What is planned; `None` where its size, or the place of the MSI-X table, is not known.
    pub layout: Option<BarLayout>,
    /// Its known hot registers, those that lie in it.
    pub hot: Vec<Hot>,
    /// What is done here if nothing is asked for; only of a function that is open.
    pub auto: Option<BarPlan>,
    /// For each page size.
    pub sheets: Vec<Sheet>,
}

/// What a BAR comes to on hosts with pages of one size.
#[derive(Debug, Clone)]
pub struct Sheet {
    /// The size.
    pub page: PageSize,
    /// How the BAR lies in such pages.
    pub placement: Placement,
    /// Its plan under each policy that was asked for; empty where nothing can be planned.
    pub plans: Vec<BarPlan>,
    /// What that means.
    pub verdict: Verdict,
}

impl Machine {
    /// The maps of all functions: for each of these page sizes, under each of these policies.
    pub fn maps(&self, pages: &[PageSize], policies: &[MapPolicy]) -> Vec<FunctionMap<'_>> {
        self.each_map(pages, policies).collect()
    }

    /// As [`maps`](Self::maps), one after the other, so that they need not all be there at once.
    pub fn each_map<'a, 'b>(
        &'a self,
        pages: &'b [PageSize],
        policies: &'b [MapPolicy],
    ) -> impl Iterator<Item = FunctionMap<'a>> + use<'a, 'b> {
        let neighbours = Neighbours::of(self);
        (0..self.functions.len()).map(move |index| self.map_of(index, &neighbours, pages, policies))
    }

    /// The maps of one of its functions, by its index.
    pub fn map(&self, index: usize, pages: &[PageSize], policies: &[MapPolicy]) -> Option<FunctionMap<'_>> {
        let neighbours = Neighbours::of(self);
        (index < self.functions.len()).then(|| self.map_of(index, &neighbours, pages, policies))
    }

    fn map_of(
        &self,
        index: usize,
        neighbours: &Neighbours<'_>,
        pages: &[PageSize],
        policies: &[MapPolicy],
    ) -> FunctionMap<'_> {
        let function = &self.functions[index];
        let known = HotRegisters::of(function);
        let map = |(bar, told): (Bar, bool)| {
            let layout = layout(function, &bar, &known);
            let least = if layout.is_none() { least(function, &bar, &known) } else { None };
            let planned = layout.as_ref().or(least.as_ref());
            let size = planned.map(|layout| layout.size);
            let hot: Vec<Hot> = known.in_bar(bar.index).into_iter().filter_map(|hot| clipped(hot, size?)).collect();
            let sheet = |page| {
                let placement = neighbours.placement(index, &bar, size, page);
                let case = Case { function, bar: &bar, told, partial: self.partial, page, placement: &placement };
                let Some(planned) = planned else {
                    let verdict = verdict::unplanned(&case);
                    return Sheet { page, placement, plans: Vec::new(), verdict };
                };
                // Another host places BARs as it likes. Where it isn't known which pages this one has, it may have these.
                let shut = placement.is_shut() && bar.region.is_none() && self.host_may_have(page);
                let plan = |policy, shut| Planner { function, bar: &bar, layout: planned }.plan(page, policy, shut);
                let (whole, carved) = (plan(MapPolicy::Whole, false), plan(MapPolicy::Carved, false));
                let of = |policy| match policy {
                    MapPolicy::Whole if !shut => whole.clone(),
                    MapPolicy::Carved if !shut => carved.clone(),
                    policy => plan(policy, shut),
                };
                let plans = if layout.is_some() { policies.iter().copied().map(of).collect() } else { Vec::new() };
                let verdict = verdict::of(&case, shut, layout.is_some(), &known, &hot, &whole, &carved);
                Sheet { page, placement, plans, verdict }
            };
            let sheets = pages.iter().copied().map(sheet).collect();
            let open = function.open.as_ref().zip(layout.as_ref());
            let auto = open
                .map(|(open, layout)| Planner { function, bar: &bar, layout }.plan(open.page, MapPolicy::Auto, false));
            BarMap { told, layout, hot, auto, sheets, bar }
        };
        let bars = self.bars_of(function, &known).into_iter().map(map).collect();
        FunctionMap { bars, problems: self.problems(function), hot: known, function }
    }

    /// Whether the machine the functions are in may have such pages.
    fn host_may_have(&self, page: PageSize) -> bool {
        self.page.is_none_or(|host| host == page)
    }

    /// Its BARs, each with whether the source tells of it.
    fn bars_of(&self, function: &Function, hot: &HotRegisters) -> Vec<(Bar, bool)> {
        let mut bars: Vec<_> = function.bars.iter().map(|bar| (bar.clone(), true)).collect();
        if let Some(msix) = function.msix.present().filter(|_| self.partial) {
            for index in [msix.table_bar, msix.pba_bar].into_iter().chain(hot.bars()) {
                if bars.iter().all(|(bar, _)| bar.index != index) && !upper_half(function, index) {
                    let kind = BarKind::Memory { wide: false, prefetchable: false };
                    let bar = Bar {
                        index,
                        kind,
                        place: Place::default(),
                        disabled: false,
                        hidden: false,
                        unplaced: None,
                        region: None,
                    };
                    bars.push((bar, false));
                }
            }
            bars.sort_by_key(|(bar, _)| bar.index);
        }
        bars
    }

    fn problems(&self, function: &Function) -> Vec<String> {
        let Some(msix) = function.msix.present() else { return Vec::new() };
        let mut problems = Vec::new();
        for (what, index, range) in parts(msix) {
            match function.bars.iter().find(|bar| bar.index == index) {
                None if upper_half(function, index) => {
                    let lower = index - 1;
                    problems.push(format!("its MSI-X {what} would be in BAR{index}, the upper half of BAR{lower}"));
                }
                // It is not in the text, and may be in the device.
                None if self.partial => {}
                None => problems.push(format!("its MSI-X {what} would be in BAR{index}, which it doesn't have")),
                Some(bar) if !bar.is_memory() => {
                    problems.push(format!("its MSI-X {what} would be in BAR{index}, which is I/O ports"));
                }
                Some(bar) => {
                    if let Some(size) = bar.place.size.filter(|size| range.end > *size) {
                        let at = format!("{:#x} to {:#x} of BAR{index}", range.start, range.end);
                        problems.push(format!("its MSI-X {what} would be at {at}, which has {size:#x} bytes"));
                    }
                }
            }
        }
        if msix.table_bar == msix.pba_bar && overlaps(&msix.table(), &msix.pba()) {
            problems.push(format!(
                "its MSI-X table and its PBA would overlap, at {:#x} of BAR{}",
                msix.pba_offset, msix.pba_bar
            ));
        }
        problems
    }
}

/// Whether BAR `index` is the upper half of the one before it.
fn upper_half(function: &Function, index: u8) -> bool {
    let wide = |bar: &Bar| matches!(bar.kind, BarKind::Memory { wide: true, .. });
    function.bars.iter().any(|bar| wide(bar) && bar.index.checked_add(1) == Some(index))
}

/// Plans one BAR.
struct Planner<'a> {
    function: &'a Function,
    bar: &'a Bar,
    layout: &'a BarLayout,
}

impl Planner<'_> {
    /// `shut`: the host lets nothing of it be mapped.
    fn plan(&self, page: PageSize, policy: MapPolicy, shut: bool) -> BarPlan {
        let (mut region, isolation) = match (&self.function.open, &self.bar.region) {
            (Some(open), Some(region)) => (region.clone(), open.isolation.clone()),
            _ => (expected(self.bar, self.layout), nobody_asked()),
        };
        region.mappable &= !shut;
        plan(self.layout, &region, page, &isolation, policy)
    }
}

/// What Linux since 4.16 says of a BAR that is memory.
fn expected(bar: &Bar, layout: &BarLayout) -> RegionInfo {
    let caps = if layout.table.is_some() { vec![RegionCap::MsixMappable] } else { Vec::new() };
    RegionInfo { size: layout.size, readable: true, writable: true, mappable: bar.is_memory(), caps }
}

fn nobody_asked() -> Isolation {
    let evidence = vec!["only the host that opens the function can tell".to_owned()];
    Isolation { verdict: Isolated::Unknown, evidence }
}

/// What is to be planned of a BAR; `None` where too little is known.
fn layout(function: &Function, bar: &Bar, hot: &HotRegisters) -> Option<BarLayout> {
    let size = bar.place.size.filter(|size| *size > 0)?;
    let (table, pba) = match &function.msix {
        MsixFact::Unknown(_) if bar.is_memory() => return None,
        // Whoever tells of a table that cannot be there may have told of the wrong BAR.
        MsixFact::Present(msix) if parts(msix).iter().any(|(_, at, range)| *at == bar.index && range.end > size) => {
            return None;
        }
        MsixFact::Present(msix) => {
            let in_it = |at: u8, range: Range<u64>| (at == bar.index).then_some(range);
            (in_it(msix.table_bar, msix.table()), in_it(msix.pba_bar, msix.pba()))
        }
        _ => (None, None),
    };
    let registers = hot.in_bar(bar.index).into_iter().filter_map(|hot| Some(clipped(hot, size)?.range)).collect();
    Some(BarLayout { bar: bar.index, size, table, pba, registers })
}

/// The least that a BAR can be whose size isn't known: it holds table, PBA and hot registers. `None` where it holds none of them, or too little
/// is known.
fn least(function: &Function, bar: &Bar, hot: &HotRegisters) -> Option<BarLayout> {
    let msix = function.msix.present().filter(|_| bar.place.size.is_none() && bar.is_memory())?;
    let in_it = |at: u8, range: Range<u64>| (at == bar.index).then_some(range);
    let (table, pba) = (in_it(msix.table_bar, msix.table()), in_it(msix.pba_bar, msix.pba()));
    let hot = hot.in_bar(bar.index);
    let ends = table.iter().chain(&pba).map(|range| range.end);
    let end = ends.chain(hot.iter().map(|hot| hot.range.start.saturating_add(1))).max()?;
    let size = end.checked_next_power_of_two()?;
    let registers = hot.into_iter().filter_map(|hot| Some(clipped(hot, size)?.range)).collect();
    Some(BarLayout { bar: bar.index, size, table, pba, registers })
}

/// Its part inside a BAR of `size` bytes.
fn clipped(hot: Hot, size: u64) -> Option<Hot> {
    let range = hot.range.start..hot.range.end.min(size);
    (!range.is_empty()).then_some(Hot { range, ..hot })
}

/// Table and PBA: what they are called, which BAR holds them, and where.
fn parts(msix: &Msix) -> [(&'static str, u8, Range<u64>); 2] {
    [("table", msix.table_bar, msix.table()), ("PBA", msix.pba_bar, msix.pba())]
}

pub(crate) fn overlaps(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// How many bytes of registers a plan traps: what it doesn't map, without what table and PBA have to themselves
/// ([`BarLayout::own_ranges`]).
pub fn trapped_registers(plan: &BarPlan) -> u64 {
    let [table, pba] = plan.layout.own_ranges().map(|own| own.unwrap_or(0..0));
    let overlap = |a: &Range<u64>, b: &Range<u64>| a.end.min(b.end).saturating_sub(a.start.max(b.start));
    let both = table.start.max(pba.start)..table.end.min(pba.end);
    let trapped = plan.spans.iter().filter(|span| span.access == Access::Trapped);
    trapped
        .map(|span| {
            let kept = overlap(&span.range, &table) + overlap(&span.range, &pba) - overlap(&span.range, &both);
            span.range.end - span.range.start - kept
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Ids, Open};
    use wholebar_core::pci::DeviceKind;

    /// SPDK's NVMe target: 8 KiB, of which it offers the doorbells' page.
    fn server(areas: Vec<Range<u64>>) -> Machine {
        let region = RegionInfo {
            size: 0x2000,
            readable: true,
            writable: true,
            mappable: !areas.is_empty(),
            caps: vec![RegionCap::SparseMmap(areas)],
        };
        let bar = Bar {
            index: 0,
            kind: BarKind::Memory { wide: true, prefetchable: false },
            place: Place { address: None, size: Some(0x2000) },
            disabled: false,
            hidden: false,
            unplaced: None,
            region: Some(region),
        };
        let isolation = Isolation::by_construction();
        let function = Function {
            ids: Ids { class: Some(0x0108), interface: Some(2), ..Ids::default() },
            bars: vec![bar],
            open: Some(Open { kind: DeviceKind::VfioUser, page: PageSize::K4, isolation }),
            ..Function::default()
        };
        Machine { functions: vec![function], ..Machine::default() }
    }

    #[test]
    fn what_a_backend_does_not_offer_is_not_said_to_be_mapped() {
        let machine = server(vec![0x1000..0x2000]);
        let map = machine.map(0, &PAGES, &[MapPolicy::Whole]).unwrap();
        let said: Vec<_> = map.bars[0].sheets.iter().map(|sheet| (sheet.verdict.kind, &*sheet.verdict.text)).collect();
        assert!(said[0].1.contains("4 KiB cannot be mapped") && !said[0].1.contains("doorbells"), "{said:?}");
        // In larger pages the area is not a whole page.
        assert!(said[1].1.starts_with("every access is trapped, doorbells at 0x1000 too"), "{said:?}");
        assert_eq!(said[2].0, crate::VerdictKind::Unmappable);
        assert!(said[1..].iter().all(|(_, text)| text.contains("no page of that size lies whole")), "{said:?}");
        assert!(map.bars[0].sheets.iter().all(|sheet| sheet.verdict.caution.is_none()));
        let auto = map.bars[0].auto.as_ref().unwrap();
        assert_eq!((auto.access(0), auto.access(0x1000)), (Some(Access::Trapped), Some(Access::Direct)));

        let nothing = server(Vec::new());
        let map = nothing.map(0, &[PageSize::K4], &[]).unwrap();
        assert!(map.bars[0].sheets[0].verdict.text.contains("the backend lets nothing of it be mapped"));
    }
}

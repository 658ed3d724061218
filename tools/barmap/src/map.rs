//! The maps: of each BAR, for each page size, what every policy comes to, and one line that says what that means.

use crate::neighbours::Neighbours;
use crate::verdict::{self, Verdict};
use crate::{Bar, Function, Hot, HotRegisters, Machine, MsixFact, Placement};
use std::ops::Range;
use wholebar::PageSize;
use wholebar::bar::{Access, BarLayout, BarPlan, MapPolicy, plan};
use wholebar::pci::config::Msix;
use wholebar::pci::{Isolation, RegionCap, RegionInfo, Verdict as Isolated};

/// The page sizes there are hosts with.
pub const PAGES: [PageSize; 3] = [PageSize::K4, PageSize::K16, PageSize::K64];

/// A function's BARs, mapped.
#[derive(Debug, Clone)]
pub struct FunctionMap<'a> {
    /// The function.
    pub function: &'a Function,
    /// What is known of its hot registers.
    pub hot: HotRegisters,
    /// Its BARs, by number.
    pub bars: Vec<BarMap>,
    /// What makes no sense: a table in a BAR that isn't there, or past its end.
    pub problems: Vec<String>,
}

/// One BAR, mapped.
#[derive(Debug, Clone)]
pub struct BarMap {
    /// The BAR.
    pub bar: Bar,
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
        let neighbours = Neighbours::of(self);
        self.functions.iter().map(|function| self.map_of(function, &neighbours, pages, policies)).collect()
    }

    /// The maps of one of its functions, by its index.
    pub fn map(&self, index: usize, pages: &[PageSize], policies: &[MapPolicy]) -> Option<FunctionMap<'_>> {
        let neighbours = Neighbours::of(self);
        self.functions.get(index).map(|function| self.map_of(function, &neighbours, pages, policies))
    }

    fn map_of<'a>(
        &self,
        function: &'a Function,
        neighbours: &Neighbours<'_>,
        pages: &[PageSize],
        policies: &[MapPolicy],
    ) -> FunctionMap<'a> {
        let hot = HotRegisters::of(function);
        let problems = problems(function);
        let bars = function.bars.iter().map(|bar| {
            let Some(layout) = layout(function, bar, &hot) else {
                let unplanned = |page| {
                    let placement = neighbours.placement(function, bar, page);
                    let verdict = verdict::unplanned(function, bar, &placement, page);
                    Sheet { page, placement, plans: Vec::new(), verdict }
                };
                let sheets = pages.iter().copied().map(unplanned).collect();
                return BarMap { bar: bar.clone(), layout: None, hot: hot.in_bar(bar.index), auto: None, sheets };
            };
            let known = &hot;
            let hot: Vec<Hot> =
                known.in_bar(bar.index).into_iter().filter_map(|hot| clipped(hot, layout.size)).collect();
            let planner = Planner { function, bar, layout: &layout, host: self.page };
            let sheet = |page| {
                let placement = neighbours.placement(function, bar, page);
                let plan = |policy| planner.plan(page, &placement, policy);
                let plans = policies.iter().copied().map(plan).collect();
                let (whole, carved) = (plan(MapPolicy::Whole), plan(MapPolicy::Carved));
                let verdict = verdict::of(function, bar, &placement, known, &hot, &whole, &carved);
                Sheet { page, placement, plans, verdict }
            };
            let sheets = pages.iter().copied().map(sheet).collect();
            let auto = function.open.as_ref().map(|open| planner.plan(open.page, &Placement::Own, MapPolicy::Auto));
            BarMap { bar: bar.clone(), auto, sheets, hot, layout: Some(layout.clone()) }
        });
        FunctionMap { bars: bars.collect(), function, hot, problems }
    }
}

/// Plans one BAR.
struct Planner<'a> {
    function: &'a Function,
    bar: &'a Bar,
    layout: &'a BarLayout,
    /// The page size of the machine it is in.
    host: Option<PageSize>,
}

impl Planner<'_> {
    fn plan(&self, page: PageSize, placement: &Placement, policy: MapPolicy) -> BarPlan {
        let (mut region, isolation) = match (&self.function.open, &self.bar.region) {
            (Some(open), Some(region)) => (region.clone(), open.isolation.clone()),
            _ => (expected(self.bar, self.layout), nobody_asked()),
        };
        // Another host places BARs as it likes. This one has placed them.
        let shut = matches!(placement, Placement::Unaligned | Placement::Shared(_));
        if shut && self.bar.region.is_none() && self.host == Some(page) {
            region.mappable = false;
        }
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

/// Its part inside a BAR of `size` bytes.
fn clipped(hot: Hot, size: u64) -> Option<Hot> {
    let range = hot.range.start..hot.range.end.min(size);
    (!range.is_empty()).then_some(Hot { range, ..hot })
}

/// Table and PBA: what they are called, which BAR holds them, and where.
fn parts(msix: &Msix) -> [(&'static str, u8, Range<u64>); 2] {
    [("table", msix.table_bar, msix.table()), ("PBA", msix.pba_bar, msix.pba())]
}

fn problems(function: &Function) -> Vec<String> {
    let Some(msix) = function.msix.present() else { return Vec::new() };
    let mut problems = Vec::new();
    for (what, index, range) in parts(msix) {
        match function.bars.iter().find(|bar| bar.index == index) {
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
    use crate::{Ids, Open, Place};
    use wholebar::pci::DeviceKind;
    use wholebar::pci::config::BarKind;

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
        assert!(map.bars[0].sheets.iter().all(|sheet| sheet.verdict.caution.is_none()));
        let auto = map.bars[0].auto.as_ref().unwrap();
        assert_eq!((auto.access(0), auto.access(0x1000)), (Some(Access::Trapped), Some(Access::Direct)));

        let nothing = server(Vec::new());
        let map = nothing.map(0, &[PageSize::K4], &[]).unwrap();
        assert!(map.bars[0].sheets[0].verdict.text.contains("the backend lets nothing of it be mapped"));
    }
}

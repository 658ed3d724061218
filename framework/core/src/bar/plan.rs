//! The plan of a BAR: which pages are mapped, which are trapped, and why. A pure function: no I/O, and any page size.

use super::BarLayout;
use crate::pci::{Isolation, PciDevice, RegionInfo, Verdict};
use crate::{Error, PageSize};
use std::ops::Range;

/// How much of a BAR is to be mapped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum MapPolicy {
    /// `Whole` where the backend lets the table be mapped and interrupts are isolated; else `Carved`.
    #[default]
    Auto,
    /// Maps all that the backend offers, whatever the isolation.
    Whole,
    /// Maps all but the pages that hold the MSI-X table.
    Carved,
    /// Maps nothing.
    Trapped,
}

/// How a part of a BAR is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Mapped for loads and stores.
    Direct,
    /// Mapped for loads; stores are trapped.
    ReadOnly,
    /// By a system call or a message.
    Trapped,
}

/// The reason why a span is mapped or trapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// These pages hold registers alone.
    Registers,
    /// Registers share these pages with the MSI-X table or the PBA, and are mapped with it.
    Shared,
    /// These pages hold the table or the PBA alone.
    TableOrPba,
    /// These pages hold the MSI-X table, and the policy leaves it out.
    Table,
    /// The backend does not let these pages be mapped.
    NotOffered,
    /// The policy maps nothing.
    Asked,
}

/// A part of a BAR that is reached in one way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Offsets in the BAR; the ends are multiples of the page size, or the BAR's end.
    pub range: Range<u64>,
    /// How the span is reached.
    pub access: Access,
    /// The reason.
    pub why: Why,
}

/// The result of [`plan()`]: spans that cover the BAR without gap or overlap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BarPlan {
    /// The layout of the BAR.
    pub layout: BarLayout,
    /// The page size of the plan.
    pub page: PageSize,
    /// The policy that was applied: never [`MapPolicy::Auto`].
    pub policy: MapPolicy,
    /// The reason for that policy, in one sentence.
    pub why: String,
    /// The spans in order, from 0 to the BAR's size.
    pub spans: Vec<Span>,
}

impl BarPlan {
    /// Returns how `offset` is reached; `None` outside of the BAR.
    pub fn access(&self, offset: u64) -> Option<Access> {
        self.spans.iter().find(|s| s.range.contains(&offset)).map(|s| s.access)
    }

    /// Returns whether the plan is for pages smaller than `own`, those of a device. Such a plan can be looked at, not opened.
    pub fn is_hypothetical(&self, own: PageSize) -> bool {
        self.page < own
    }

    pub(super) fn misfit(&self, device: &dyn PciDevice, why: String) -> Error {
        Error::Plan { device: device.name().to_owned(), bar: self.layout.bar, why }
    }

    /// Returns the number of bytes that are mapped, for loads or for loads and stores.
    pub fn mapped_bytes(&self) -> u64 {
        self.spans
            .iter()
            .filter(|s| s.access != Access::Trapped)
            .map(|s| s.range.end.saturating_sub(s.range.start))
            .sum()
    }
}

/// Decides which parts of a BAR are mapped, for pages of size `page`.
///
/// Any layout and any region info will do: parts outside of the BAR are ignored, and nothing is mapped that the backend does not offer. The time
/// it takes depends on the number of pieces, not on the number of pages.
///
/// ```
/// # use wholebar_core as wholebar;
/// use wholebar::PageSize;
/// use wholebar::bar::{Access, BarLayout, MapPolicy, plan};
/// use wholebar::pci::{Isolation, RegionInfo};
///
/// // A BAR of 64 KiB with the MSI-X table at 32 KiB; the backend does not say that the table's page can be mapped.
/// let layout = BarLayout { bar: 0, size: 64 << 10, table: Some(0x8000..0x8100), pba: None, registers: Vec::new() };
/// let region = RegionInfo { size: 64 << 10, readable: true, writable: true, mappable: true, caps: Vec::new() };
/// let plan = plan(&layout, &region, PageSize::K4, &Isolation::by_construction(), MapPolicy::Auto);
/// assert_eq!((plan.policy, plan.access(0x8000), plan.access(0x9000)), (MapPolicy::Carved, Some(Access::Trapped), Some(Access::Direct)));
/// assert_eq!(plan.mapped_bytes(), 60 << 10);
/// ```
pub fn plan(
    layout: &BarLayout,
    region: &RegionInfo,
    page: PageSize,
    isolation: &Isolation,
    policy: MapPolicy,
) -> BarPlan {
    let (policy, why) = decide(layout, region, isolation, policy);
    let pages = Pages { page, size: layout.size };
    let offered = pages.offered(region);
    let guard = Guard::new(layout, pages);

    // Between two neighbouring cuts all pages are alike, so that it's enough to look at the first of them.
    let mut cuts: Vec<u64> = guard.cuts(pages).chain(offered.iter().flat_map(|r| [r.start, r.end])).collect();
    cuts.extend([0, layout.size]);
    cuts.sort_unstable();
    cuts.dedup();

    let mut spans: Vec<Span> = Vec::new();
    let mut runs = offered.iter().peekable();
    for (start, end) in cuts.iter().copied().zip(cuts.iter().copied().skip(1)) {
        while runs.next_if(|run| run.end <= start).is_some() {}
        let run = runs.peek().filter(|run| run.start <= start);
        let first = start..start.saturating_add(page.bytes()).min(end);
        let (access, why) = match run {
            None => (Access::Trapped, Why::NotOffered),
            Some(_) => guard.access(region, policy, &first),
        };
        // A mapping never reaches from one offered run into the next: what is behind them may be two files.
        let joined = access == Access::Trapped || run.is_some_and(|run| run.start < start);
        match spans.last_mut() {
            Some(last) if joined && last.access == access && last.why == why => last.range.end = end,
            _ => spans.push(Span { range: start..end, access, why }),
        }
    }
    BarPlan { layout: layout.clone(), page, policy, why, spans }
}

fn decide(layout: &BarLayout, region: &RegionInfo, isolation: &Isolation, asked: MapPolicy) -> (MapPolicy, String) {
    match asked {
        MapPolicy::Auto => {}
        MapPolicy::Whole => return (MapPolicy::Whole, "asked for, whatever the isolation".to_owned()),
        asked => return (asked, "asked for".to_owned()),
    }
    if !region.mappable {
        return (MapPolicy::Trapped, "the backend lets nothing of this BAR be mapped".to_owned());
    }
    let Some(table) = clip(&layout.table, layout.size) else {
        return (MapPolicy::Whole, "no MSI-X table is in this BAR".to_owned());
    };
    let offered = match region.sparse() {
        Some(areas) => areas.iter().any(|a| a.start <= table.start && table.end <= a.end),
        None => region.msix_mappable(),
    };
    if !offered {
        return (MapPolicy::Carved, "the backend does not say that the MSI-X table can be mapped".to_owned());
    }
    let evidence = isolation.evidence.join("; ");
    match isolation.verdict {
        Verdict::Isolated => (MapPolicy::Whole, format!("interrupts are isolated: {evidence}")),
        Verdict::Unknown => (MapPolicy::Carved, format!("nothing says that interrupts are isolated: {evidence}")),
        Verdict::NotIsolated => (MapPolicy::Carved, format!("interrupts are not isolated: {evidence}")),
    }
}

/// The pages of a BAR; the last one may be cut off by its end.
#[derive(Clone, Copy)]
struct Pages {
    page: PageSize,
    size: u64,
}

impl Pages {
    /// The page boundary at or before `at`, or the BAR's end.
    fn down(self, at: u64) -> u64 {
        if at >= self.size { self.size } else { self.page.floor(at) }
    }

    /// The page boundary at or after `at`, or the BAR's end.
    fn up(self, at: u64) -> u64 {
        up(self.page, at).min(self.size)
    }

    /// What can be mapped: whole pages, in order and without overlap, each run inside one area of the backend's.
    fn offered(self, region: &RegionInfo) -> Vec<Range<u64>> {
        let whole = 0..region.size;
        let areas = match region.sparse() {
            _ if !region.mappable => &[],
            Some(areas) => areas,
            None => std::slice::from_ref(&whole),
        };
        let mut runs: Vec<_> = areas
            .iter()
            .map(|a| self.up(a.start)..self.down(a.end.min(region.size)))
            .filter(|r| !r.is_empty())
            .collect();
        runs.sort_unstable_by_key(|r| r.start);
        let mut end = 0;
        runs.retain_mut(|run| {
            run.start = run.start.max(end);
            end = end.max(run.end);
            !run.is_empty()
        });
        runs
    }
}

/// What has to be kept apart from registers.
struct Guard<'a> {
    table: Option<Range<u64>>,
    pba: Option<Range<u64>>,
    /// The 4 KiB ranges that they have to themselves: there, only registers that the driver names are expected.
    own: [Option<Range<u64>>; 2],
    /// Those registers that share a page with table or PBA.
    registers: Vec<&'a Range<u64>>,
}

impl<'a> Guard<'a> {
    fn new(layout: &'a BarLayout, pages: Pages) -> Self {
        let (table, pba) = (clip(&layout.table, layout.size), clip(&layout.pba, layout.size));
        let own = layout.own_ranges();
        let near = |r: &Range<u64>| {
            let around = pages.down(r.start)..pages.up(r.end);
            !r.is_empty() && (touches(&table, &around) || touches(&pba, &around))
        };
        let registers = layout.registers.iter().filter(|r| near(r)).collect();
        Self { table, pba, own, registers }
    }

    /// Where pages may begin to be of another kind.
    fn cuts(&self, pages: Pages) -> impl Iterator<Item = u64> + '_ {
        let ends = self.own.iter().flatten().chain(self.registers.iter().copied()).flat_map(|r| [r.start, r.end]);
        ends.flat_map(move |at| [pages.down(at), pages.up(at)])
    }

    /// How a page that is offered (or would be, but for the table) is reached.
    fn access(&self, region: &RegionInfo, policy: MapPolicy, page: &Range<u64>) -> (Access, Why) {
        let (table, pba) = (touches(&self.table, page), touches(&self.pba, page));
        if policy == MapPolicy::Trapped {
            return (Access::Trapped, Why::Asked);
        }
        // Without sparse areas it takes the capability: kernels before 4.16 have neither it nor the table's pages.
        if table && region.sparse().is_none() && !region.msix_mappable() {
            return (Access::Trapped, Why::NotOffered);
        }
        if table && policy == MapPolicy::Carved {
            return (Access::Trapped, Why::Table);
        }
        if !table && !pba {
            return (Access::Direct, Why::Registers);
        }
        if self.owns(page) && !self.registers.iter().any(|r| r.start < page.end && page.start < r.end) {
            return (Access::ReadOnly, Why::TableOrPba);
        }
        (Access::Direct, Why::Shared)
    }

    /// Whether table and PBA have all of `page` to themselves.
    fn owns(&self, page: &Range<u64>) -> bool {
        let mut at = page.start;
        while at < page.end {
            match self.own.iter().flatten().find(|r| r.contains(&at)) {
                Some(range) => at = range.end,
                None => return false,
            }
        }
        true
    }
}

fn touches(guarded: &Option<Range<u64>>, page: &Range<u64>) -> bool {
    guarded.as_ref().is_some_and(|r| r.start < page.end && page.start < r.end)
}

/// The part of a range that is inside of a BAR of `size` bytes.
fn clip(range: &Option<Range<u64>>, size: u64) -> Option<Range<u64>> {
    let range = range.as_ref().map(|r| r.start..r.end.min(size))?;
    (!range.is_empty()).then_some(range)
}

/// The boundary at or after `at`; at the end of all addresses, there.
pub(super) fn up(page: PageSize, at: u64) -> u64 {
    if page.floor(at) == at { at } else { page.floor(at).saturating_add(page.bytes()) }
}

// Pure and safe: nothing for Miri to find.
#[cfg(all(test, not(miri)))]
mod tests;

//! The plan of a BAR: which pages are mapped, which are trapped, and why. Pure: no I/O, any page size.

use super::BarLayout;
use crate::pci::{Isolation, PciDevice, RegionInfo, Verdict};
use crate::{Error, PageSize};
use std::ops::Range;

/// How much is to be mapped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum MapPolicy {
    /// Whole where the table may be mapped and interrupts are isolated; else carved.
    #[default]
    Auto,
    /// All that the backend offers, whatever the isolation.
    Whole,
    /// All but the pages that hold the MSI-X table.
    Carved,
    /// Nothing.
    Trapped,
}

/// How a part of a BAR is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Mapped, for loads and stores.
    Direct,
    /// Mapped, for loads.
    ReadOnly,
    /// By a system call or a message.
    Trapped,
}

/// Why a span is what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// Registers, and nothing else is in these pages.
    Registers,
    /// Registers share these pages with the MSI-X table or the PBA, and are mapped with it.
    Shared,
    /// Table or PBA have these pages for themselves.
    TableOrPba,
    /// The MSI-X table is in these pages, and the plan leaves it out.
    Table,
    /// The backend does not let these pages be mapped.
    NotOffered,
    /// Nothing is mapped, because that was asked for.
    Asked,
}

/// A part of a BAR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Offsets in the BAR; its ends are page multiples, or the BAR's end.
    pub range: Range<u64>,
    /// How it is reached.
    pub access: Access,
    /// Why.
    pub why: Why,
}

/// What [`plan()`] comes to: spans that cover the BAR without gap or overlap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BarPlan {
    /// What was planned.
    pub layout: BarLayout,
    /// The page size it was planned for.
    pub page: PageSize,
    /// What was done: never [`MapPolicy::Auto`].
    pub policy: MapPolicy,
    /// One sentence: why that policy.
    pub why: String,
    /// In order, from 0 to the BAR's size.
    pub spans: Vec<Span>,
}

impl BarPlan {
    /// How `offset` is reached; `None` outside.
    pub fn access(&self, offset: u64) -> Option<Access> {
        self.spans.iter().find(|s| s.range.contains(&offset)).map(|s| s.access)
    }

    /// Whether it is for pages smaller than a device's `own`: something to look at, which cannot be opened. Any other can.
    pub fn is_hypothetical(&self, own: PageSize) -> bool {
        self.page < own
    }

    pub(super) fn misfit(&self, device: &dyn PciDevice, why: String) -> Error {
        Error::Plan { device: device.name().to_owned(), bar: self.layout.bar, why }
    }

    /// Bytes that are mapped, for stores or not.
    pub fn mapped_bytes(&self) -> u64 {
        self.spans.iter().filter(|s| s.access != Access::Trapped).map(|s| s.range.end - s.range.start).sum()
    }
}

/// Decides what of a BAR is mapped, for pages of size `page`.
pub fn plan(
    layout: &BarLayout,
    region: &RegionInfo,
    page: PageSize,
    isolation: &Isolation,
    policy: MapPolicy,
) -> BarPlan {
    let (policy, why) = decide(layout, region, isolation, policy);
    let mut spans: Vec<Span> = Vec::new();
    let mut start = 0;
    while start < layout.size {
        let end = start.saturating_add(page.bytes()).min(layout.size);
        let (access, why) = page_access(layout, region, policy, start..end);
        match spans.last_mut() {
            Some(last) if last.access == access && last.why == why => last.range.end = end,
            _ => spans.push(Span { range: start..end, access, why }),
        }
        start = end;
    }
    BarPlan { layout: layout.clone(), page, policy, why, spans }
}

fn decide(layout: &BarLayout, region: &RegionInfo, isolation: &Isolation, asked: MapPolicy) -> (MapPolicy, String) {
    match asked {
        MapPolicy::Auto => {}
        MapPolicy::Whole => return (MapPolicy::Whole, "asked for, whatever the isolation".to_owned()),
        asked => return (asked, "asked for".to_owned()),
    }
    if layout.table.is_none() {
        return (MapPolicy::Whole, "the MSI-X table is not in this BAR".to_owned());
    }
    if !region.msix_mappable() && region.sparse().is_none() {
        return (MapPolicy::Carved, "the kernel does not say that the MSI-X table can be mapped".to_owned());
    }
    let evidence = isolation.evidence.join("; ");
    match isolation.verdict {
        Verdict::Isolated => (MapPolicy::Whole, format!("interrupts are isolated: {evidence}")),
        Verdict::Unknown => (MapPolicy::Carved, format!("nothing says that interrupts are isolated: {evidence}")),
        Verdict::NotIsolated => (MapPolicy::Carved, format!("interrupts are not isolated: {evidence}")),
    }
}

fn page_access(layout: &BarLayout, region: &RegionInfo, policy: MapPolicy, page: Range<u64>) -> (Access, Why) {
    let touches = |r: &Option<Range<u64>>| r.as_ref().is_some_and(|r| r.start < page.end && page.start < r.end);
    let (table, pba) = (touches(&layout.table), touches(&layout.pba));
    if policy == MapPolicy::Trapped {
        return (Access::Trapped, Why::Asked);
    }
    let offered = match region.sparse() {
        Some(areas) => areas.iter().any(|a| a.start <= page.start && page.end <= a.end),
        None => !table || region.msix_mappable(),
    };
    if !region.mappable || !offered {
        return (Access::Trapped, Why::NotOffered);
    }
    if table && policy == MapPolicy::Carved {
        return (Access::Trapped, Why::Table);
    }
    if !table && !pba {
        return (Access::Direct, Why::Registers);
    }
    // PCI wants table and PBA in 4 KiB ranges of their own: within those, only registers that the driver names are expected.
    let own = |r: &Option<Range<u64>>, at: u64| {
        r.as_ref().is_some_and(|r| PageSize::K4.floor(r.start) <= at && at < PageSize::K4.ceil(r.end))
    };
    let mut at = page.start;
    while at < page.end {
        if !own(&layout.table, at) && !own(&layout.pba, at) {
            return (Access::Direct, Why::Shared);
        }
        at = PageSize::K4.floor(at).saturating_add(PageSize::K4.bytes());
    }
    match layout.registers.iter().any(|r| r.start < page.end && page.start < r.end) {
        true => (Access::Direct, Why::Shared),
        false => (Access::ReadOnly, Why::TableOrPba),
    }
}

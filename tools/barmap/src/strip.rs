//! A BAR as a strip of its pages, for eyes: runs of like pages under a plan, and how wide each is drawn. No colours here: those belong to
//! whoever draws.
//!
//! ```
//! # use wholebar_barmap::{runs, Strip};
//! # fn draw(plan: &wholebar_core::bar::BarPlan, hot: &[wholebar_barmap::Hot]) {
//! for run in runs(plan, hot) {
//!     println!("{:#x} to {:#x}: {} ({})", run.range.start, run.range.end, run.kind.letter(), run.kind.meaning());
//! }
//! // Or in a terminal: pages to scale where they fit, else runs.
//! let line: String = Strip::of(plan.layout.size).cells(plan, hot).iter().map(|(kind, n)| kind.letter().repeat(*n)).collect();
//! # }
//! ```

use crate::Hot;
use std::ops::Range;
use wholebar_core::PageSize;
use wholebar_core::bar::{Access, BarPlan, Why};

/// What the pages of a run are, under a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Mapped; registers.
    Registers,
    /// Mapped; known hot registers are among them.
    Hot,
    /// Mapped; table or PBA are beside registers.
    Shared,
    /// Mapped; table or PBA are beside known hot registers.
    SharedHot,
    /// Mapped for loads; the MSI-X table has these pages to itself.
    Table,
    /// Mapped for loads; the PBA has these pages to itself.
    Pba,
    /// Trapped by the plan.
    Trapped,
    /// Trapped by the plan; known hot registers are there.
    TrappedHot,
    /// Cannot be mapped.
    Unmappable,
    /// Cannot be mapped; known hot registers are there.
    UnmappableHot,
    /// What there was no room to draw.
    More,
}

impl Kind {
    /// One character, so that a strip reads without colours.
    pub fn letter(self) -> &'static str {
        match self {
            Self::Registers => "R",
            Self::Hot => "H",
            Self::Shared => "S",
            Self::SharedHot => "B",
            Self::Table => "t",
            Self::Pba => "p",
            Self::Trapped => "x",
            Self::TrappedHot => "X",
            Self::Unmappable => "-",
            Self::UnmappableHot => "=",
            Self::More => "~",
        }
    }

    /// What the letter means.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Registers => "registers: loads and stores",
            Self::Hot => "hot registers: loads and stores",
            Self::Shared => "registers beside MSI-X table or PBA: loads and stores",
            Self::SharedHot => "hot registers beside MSI-X table or PBA: loads and stores",
            Self::Table => "MSI-X table, in pages of its own: mapped read-only",
            Self::Pba => "PBA, in pages of its own: mapped read-only",
            Self::Trapped => "trapped: a system call or a message an access",
            Self::TrappedHot => "trapped, hot registers too: a system call or a message each time",
            Self::Unmappable => "cannot be mapped: a system call or a message an access",
            Self::UnmappableHot => "cannot be mapped, hot registers are there",
            Self::More => "more, left out here",
        }
    }

    /// A word for programs and style sheets: `hot`, `trapped-hot`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Registers => "registers",
            Self::Hot => "hot",
            Self::Shared => "shared",
            Self::SharedHot => "shared-hot",
            Self::Table => "table",
            Self::Pba => "pba",
            Self::Trapped => "trapped",
            Self::TrappedHot => "trapped-hot",
            Self::Unmappable => "unmappable",
            Self::UnmappableHot => "unmappable-hot",
            Self::More => "more",
        }
    }
}

/// Like pages, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// What they are.
    pub kind: Kind,
    /// Offsets in the BAR; its ends are page multiples, or the BAR's end.
    pub range: Range<u64>,
}

/// The pages of a BAR under a plan, as runs that cover it without gap or overlap. As few as there can be: a huge BAR makes no more than a
/// small one.
pub fn runs(plan: &BarPlan, hot: &[Hot]) -> Vec<Run> {
    let size = plan.layout.size;
    let parts = plan.layout.table.iter().chain(&plan.layout.pba).chain(hot.iter().map(|hot| &hot.range));
    let mut cuts: Vec<u64> = plan.spans.iter().map(|span| span.range.start).collect();
    cuts.extend(parts.filter(|r| !r.is_empty()).flat_map(|r| [plan.page.floor(r.start), ceil(plan.page, r.end)]));
    cuts.retain(|cut| *cut < size);
    cuts.sort_unstable();
    cuts.dedup();
    let ends = cuts.iter().copied().skip(1).chain([size]);
    let mut runs: Vec<Run> = Vec::new();
    for (start, end) in cuts.iter().copied().zip(ends) {
        let kind = kind_at(plan, hot, start);
        match runs.last_mut() {
            Some(last) if last.kind == kind => last.range.end = end,
            _ => runs.push(Run { kind, range: start..end }),
        }
    }
    runs
}

/// What the page is that holds `offset`.
fn kind_at(plan: &BarPlan, hot: &[Hot], offset: u64) -> Kind {
    let start = plan.page.floor(offset);
    let page = start..start.saturating_add(plan.page.bytes());
    let holds = |r: &Range<u64>| r.start < page.end && page.start < r.end;
    let hot = hot.iter().any(|hot| holds(&hot.range));
    let pick = |with: Kind, without: Kind| if hot { with } else { without };
    let Some(span) = plan.spans.iter().find(|span| span.range.contains(&offset)) else { return Kind::Unmappable };
    match (span.access, span.why) {
        (Access::Direct, Why::Shared) => pick(Kind::SharedHot, Kind::Shared),
        (Access::Direct, _) => pick(Kind::Hot, Kind::Registers),
        (Access::ReadOnly, _) if plan.layout.table.as_ref().is_some_and(holds) => Kind::Table,
        (Access::ReadOnly, _) => Kind::Pba,
        (Access::Trapped, Why::NotOffered) => pick(Kind::UnmappableHot, Kind::Unmappable),
        (Access::Trapped, _) => pick(Kind::TrappedHot, Kind::Trapped),
    }
}

/// The boundary at or after `at`; at the end of all addresses, there.
pub(crate) fn ceil(page: PageSize, at: u64) -> u64 {
    if page.floor(at) == at { at } else { page.floor(at).saturating_add(page.bytes()) }
}

/// How a BAR is drawn in a line of text: a page at a time where there is room, else a run of like pages at a time.
#[derive(Debug, Clone, Copy)]
pub struct Strip {
    size: u64,
    /// Columns of 4 KiB; 0 where it is not to scale.
    unit: usize,
}

impl Strip {
    /// The most columns there are.
    pub const COLUMNS: usize = 36;
    /// The least that a run is drawn in, where not to scale.
    const LEAST: usize = 3;

    /// For a BAR of `size` bytes. Every plan of it is drawn as wide.
    pub fn of(size: u64) -> Self {
        let units = ceil(PageSize::K4, size) / PageSize::K4.bytes();
        let unit = if units <= Self::COLUMNS as u64 { Self::COLUMNS / units.max(1) as usize } else { 0 };
        Self { size, unit }
    }

    /// Whether pages are as wide as they are large.
    pub fn is_to_scale(&self) -> bool {
        self.unit > 0
    }

    /// In columns.
    pub fn width(&self) -> usize {
        match self.unit {
            0 => Self::COLUMNS,
            unit => (ceil(PageSize::K4, self.size) / PageSize::K4.bytes()) as usize * unit,
        }
    }

    /// What is drawn, from left to right, each with its columns.
    pub fn cells(&self, plan: &BarPlan, hot: &[Hot]) -> Vec<(Kind, usize)> {
        let mut runs = runs(plan, hot);
        if self.is_to_scale() {
            let columns =
                |r: &Range<u64>| (ceil(PageSize::K4, r.end - r.start) / PageSize::K4.bytes()) as usize * self.unit;
            return runs
                .iter()
                .flat_map(|run| pages(run, plan.page))
                .map(|(kind, page)| (kind, columns(&page)))
                .collect();
        }
        let most = Self::COLUMNS / Self::LEAST;
        if runs.len() > most {
            runs.truncate(most - 1);
            let start = runs.last().map_or(0, |run| run.range.end);
            runs.push(Run { kind: Kind::More, range: start..self.size });
        }
        let spare = (Self::COLUMNS - runs.len() * Self::LEAST) as u128;
        let width = |to: u64| (spare * u128::from(to) / u128::from(self.size.max(1))) as usize;
        runs.iter().map(|run| (run.kind, Self::LEAST + width(run.range.end) - width(run.range.start))).collect()
    }
}

/// The pages of a run, the last one perhaps cut off.
fn pages(run: &Run, page: PageSize) -> impl Iterator<Item = (Kind, Range<u64>)> {
    let (kind, end) = (run.kind, run.range.end);
    (run.range.start..end).step_by(page.bytes() as usize).map(move |at| (kind, at..(at + page.bytes()).min(end)))
}

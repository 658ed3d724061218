//! `wholebar barmap`: what of each BAR is mapped, page by page, for several page sizes and policies, and why.

use crate::args::{self, Policy, policy_name};
use crate::{output, target};
use anstyle::{AnsiColor, Style};
use anyhow::{Context, Result};
use serde::Serialize;
use std::fmt::Write;
use std::ops::Range;
use wholebar::PageSize;
use wholebar::bar::{Access, BarLayout, BarPlan, MapPolicy, Span, Why, layouts, plan};
use wholebar::pci::{PciDevice, RegionInfo, Verdict};

/// Show what of each BAR is mapped, page by page, and why
///
/// For each BAR that holds the MSI-X table: a strip of its pages for hosts with 4, 16 and 64 KiB pages, mapped whole and carved (without
/// the pages that hold the table). Nothing of the device is touched but its configuration space.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar barmap sim:nvme                     table beside the doorbells, as on many drives
  wholebar barmap sim:nvme,msix=own            table in a BAR of its own
  wholebar barmap sim:fpga --page-size 64k
  wholebar barmap vfio-user:/run/x.sock --json")]
pub struct Args {
    /// The PCI function
    target: String,
    /// Only for hosts with pages of this size
    #[arg(long, value_name = "SIZE", value_parser = args::page)]
    page_size: Option<PageSize>,
    /// Only under this policy
    #[arg(long)]
    policy: Option<Policy>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// The page sizes there are hosts with.
pub const PAGES: [PageSize; 3] = [PageSize::K4, PageSize::K16, PageSize::K64];

/// The maps of a device's BARs.
pub struct BarMaps<'a> {
    device: &'a dyn PciDevice,
    bars: Vec<BarMap>,
}

/// The maps of one BAR.
struct BarMap {
    layout: BarLayout,
    region: RegionInfo,
    /// What is done here if nothing is asked for.
    auto: BarPlan,
    plans: Vec<BarPlan>,
}

pub fn run(args: Args) -> Result<()> {
    let target = target::open(&args.target, &[], None)?;
    let device = target.device.as_ref();
    let pages = args.page_size.map_or(PAGES.to_vec(), |page| vec![page]);
    let policies = args.policy.map_or(vec![MapPolicy::Whole, MapPolicy::Carved], |policy| vec![policy.into()]);
    let maps = BarMaps::of(device, &pages, &policies)?;
    if args.json { output::print_json(&maps.json()) } else { output::print(maps.text()) }
}

impl<'a> BarMaps<'a> {
    /// Plans for all BARs of a device: for each of these page sizes, under each of these policies.
    pub fn of(device: &'a dyn PciDevice, pages: &[PageSize], policies: &[MapPolicy]) -> Result<Self> {
        let isolation = device.isolation();
        let bars = layouts(device)
            .context("cannot find the device's BARs")?
            .into_iter()
            .map(|layout| {
                let region = device.region(layout.bar.into())?;
                let plan = |page, policy| plan(&layout, &region, page, &isolation, policy);
                let auto = plan(device.page_size(), MapPolicy::Auto);
                let plans = pages.iter().flat_map(|page| policies.iter().map(|policy| plan(*page, *policy)));
                Ok(BarMap { plans: plans.collect(), auto, region, layout: layout.clone() })
            })
            .collect::<Result<_>>()?;
        Ok(Self { device, bars })
    }

    /// For people.
    pub fn text(&self) -> String {
        let isolation = self.device.isolation();
        let verdict = match isolation.verdict {
            Verdict::Isolated => "isolated",
            Verdict::NotIsolated => "not isolated",
            Verdict::Unknown => "perhaps isolated, perhaps not",
        };
        let mut text = format!("{} ({}), mapped in pages of ", self.device.name(), self.device.kind());
        text += &format!("{}\n", self.device.page_size());
        text += &format!("interrupts: {verdict}: {}\n", isolation.evidence.join("; "));
        let mut legend = Vec::new();
        for bar in &self.bars {
            text += &bar.text(self.device.page_size(), &mut legend);
        }
        if !legend.is_empty() {
            text.push('\n');
            for kind in legend {
                let _ = writeln!(text, "  {}  {}", kind.paint(3), kind.meaning());
            }
        }
        for bar in self.bars.iter().filter(|bar| bar.holds_msix()) {
            text.push('\n');
            text += &bar.verdict();
        }
        text
    }

    /// For programs.
    fn json(&self) -> MapsJson<'_> {
        let isolation = self.device.isolation();
        let own = self.device.page_size();
        MapsJson {
            schema: "wholebar.barmap/1",
            target: self.device.name(),
            page_size: own.bytes(),
            isolation: match isolation.verdict {
                Verdict::Isolated => "isolated",
                Verdict::Unknown => "unknown",
                Verdict::NotIsolated => "not isolated",
            },
            evidence: isolation.evidence,
            bars: self.bars.iter().map(|bar| BarJson::of(bar, own)).collect(),
        }
    }
}

/// What `--json` writes. Offsets and sizes are bytes.
#[derive(Serialize)]
struct MapsJson<'a> {
    schema: &'static str,
    target: &'a str,
    page_size: u64,
    isolation: &'static str,
    evidence: Vec<String>,
    bars: Vec<BarJson>,
}

#[derive(Serialize)]
struct BarJson {
    bar: u8,
    size: u64,
    mappable: bool,
    table: Option<Range<u64>>,
    pba: Option<Range<u64>>,
    /// The plan that is carried out, if nothing is asked for.
    auto: PlanJson,
    plans: Vec<PlanJson>,
}

#[derive(Serialize)]
struct PlanJson {
    page_size: u64,
    policy: &'static str,
    why: String,
    /// For pages smaller than the device is mapped in: it cannot be carried out here.
    hypothetical: bool,
    mapped_bytes: u64,
    trapped_register_bytes: u64,
    spans: Vec<SpanJson>,
}

#[derive(Serialize)]
struct SpanJson {
    start: u64,
    end: u64,
    access: &'static str,
    why: &'static str,
}

impl BarJson {
    fn of(bar: &BarMap, own: PageSize) -> Self {
        let BarLayout { bar: number, size, table, pba, .. } = bar.layout.clone();
        let plans = bar.plans.iter().map(|plan| PlanJson::of(plan, own)).collect();
        let auto = PlanJson::of(&bar.auto, own);
        Self { bar: number, size, mappable: bar.region.mappable, table, pba, auto, plans }
    }
}

impl PlanJson {
    fn of(plan: &BarPlan, own: PageSize) -> Self {
        let span = |span: &Span| SpanJson {
            start: span.range.start,
            end: span.range.end,
            access: match span.access {
                Access::Direct => "direct",
                Access::ReadOnly => "read-only",
                Access::Trapped => "trapped",
            },
            why: match span.why {
                Why::Registers => "registers",
                Why::Shared => "registers beside MSI-X table or PBA",
                Why::TableOrPba => "MSI-X table or PBA",
                Why::Table => "left out: the MSI-X table is there",
                Why::NotOffered => "cannot be mapped",
                Why::Asked => "asked for",
            },
        };
        Self {
            page_size: plan.page.bytes(),
            policy: policy_name(plan.policy),
            why: plan.why.clone(),
            hypothetical: plan.is_hypothetical(own),
            mapped_bytes: plan.mapped_bytes(),
            trapped_register_bytes: trapped_registers(plan),
            spans: plan.spans.iter().map(span).collect(),
        }
    }
}

impl BarMap {
    fn holds_msix(&self) -> bool {
        self.layout.table.is_some() || self.layout.pba.is_some()
    }

    fn text(&self, own: PageSize, legend: &mut Vec<Kind>) -> String {
        let BarLayout { bar, size, table, pba, .. } = &self.layout;
        let mut text = format!("\nBAR{bar}: {}", output::bytes(*size));
        for (what, range) in [("MSI-X table", table), ("PBA", pba)] {
            if let Some(r) = range {
                let _ = write!(text, ", {what} at {:#x} ({})", r.start, output::bytes(r.end - r.start));
            }
        }
        if !self.holds_msix() {
            let how =
                if self.region.mappable { "it can be mapped" } else { "it cannot be mapped, every access is trapped" };
            let _ = writeln!(text, ": neither MSI-X table nor PBA is in it, and {how}");
            return text;
        }
        let strip = Strip::of(*size);
        let _ = write!(
            text,
            "\n\n  pages    policy   0x0{:>width$}  registers",
            format!("{size:#x}"),
            width = strip.width() - 2
        );
        text += if strip.to_scale { "\n" } else { " (not to scale)\n" };
        let mut last = None;
        for plan in &self.plans {
            let page = if last == Some(plan.page) { String::new() } else { plan.page.to_string() };
            last = Some(plan.page);
            let painted = strip.paint(plan, legend);
            let trapped = match trapped_registers(plan) {
                0 => "all direct".to_owned(),
                n => format!("{} trapped", output::bytes(n)),
            };
            let note = if plan.is_hypothetical(own) { " (not here)" } else { "" };
            let _ = writeln!(text, "  {page:<8} {:<8} {painted}  {trapped}{note}", policy_name(plan.policy));
        }
        text
    }

    /// A few sentences.
    fn verdict(&self) -> String {
        let BarPlan { policy, why, page, .. } = &self.auto;
        let mut text =
            format!("BAR{} is mapped {} here ({page} pages): {why}. ", self.layout.bar, policy_name(*policy));
        text += &match trapped_registers(&self.auto) {
            0 => "Registers in ranges of their own are reached by loads and stores.".to_owned(),
            n => format!("{} of registers are trapped: a system call or a message an access.", output::bytes(n)),
        };
        let layout = &self.layout;
        let holds_msix = |r: &Range<u64>| {
            let in_it = |part: &Option<Range<u64>>| part.as_ref().is_some_and(|p| p.start < r.end && r.start < p.end);
            in_it(&layout.table) || in_it(&layout.pba)
        };
        if self.auto.spans.iter().any(|span| span.access == Access::Trapped && holds_msix(&span.range)) {
            text += " Those in one 4 KiB range with the MSI-X table or the PBA, should there be some, are trapped.";
        }
        let at = |page, policy| self.plans.iter().find(|p| p.page == page && p.policy == policy).map(trapped_registers);
        let worse = |plan: &&BarPlan| {
            let whole = at(plan.page, MapPolicy::Whole);
            plan.policy == MapPolicy::Carved && whole.is_some_and(|whole| whole < trapped_registers(plan))
        };
        if let Some(plan) = self.plans.iter().find(worse) {
            let trapped = output::bytes(trapped_registers(plan));
            text += &format!(" Carved, hosts with {} pages or more would trap {trapped} of registers.", plan.page);
        }
        output::paragraph(&text)
    }
}

/// How many bytes of registers a plan traps: what it doesn't map, without the 4 KiB ranges that PCI keeps for table and PBA.
fn trapped_registers(plan: &BarPlan) -> u64 {
    let BarLayout { size, table, pba, .. } = &plan.layout;
    let own = |r: &Option<Range<u64>>| {
        r.as_ref().map_or(0..0, |r| PageSize::K4.floor(r.start)..PageSize::K4.ceil(r.end).min(*size))
    };
    let overlap = |a: &Range<u64>, b: &Range<u64>| a.end.min(b.end).saturating_sub(a.start.max(b.start));
    let (table, pba) = (own(table), own(pba));
    let both = table.start.max(pba.start)..table.end.min(pba.end);
    let trapped = plan.spans.iter().filter(|span| span.access == Access::Trapped);
    trapped
        .map(|span| {
            let kept = overlap(&span.range, &table) + overlap(&span.range, &pba) - overlap(&span.range, &both);
            span.range.end - span.range.start - kept
        })
        .sum()
}

/// What a page is, in a strip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Registers,
    Shared,
    Table,
    Pba,
    Trapped,
}

impl Kind {
    fn letter(self) -> &'static str {
        match self {
            Self::Registers => "R",
            Self::Shared => "S",
            Self::Table => "t",
            Self::Pba => "p",
            Self::Trapped => "x",
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::Registers => "registers: loads and stores",
            Self::Shared => "registers beside table or PBA: loads and stores, those out of reach",
            Self::Table => "MSI-X table, in pages of its own: mapped read-only",
            Self::Pba => "PBA, in pages of its own: mapped read-only",
            Self::Trapped => "trapped: a system call or a message an access",
        }
    }

    fn style(self) -> Style {
        let color = match self {
            Self::Registers => AnsiColor::Green,
            Self::Shared => AnsiColor::Yellow,
            Self::Table => AnsiColor::Cyan,
            Self::Pba => AnsiColor::Blue,
            Self::Trapped => AnsiColor::Red,
        };
        AnsiColor::Black.on(color)
    }

    fn paint(self, columns: usize) -> String {
        let style = self.style();
        format!("{style}{}{style:#}", self.letter().repeat(columns))
    }
}

/// How a BAR is drawn: a page at a time where there is room, else a run of like pages at a time.
struct Strip {
    size: u64,
    /// Columns of 4 KiB.
    unit: usize,
    to_scale: bool,
}

impl Strip {
    const COLUMNS: usize = 36;

    fn of(size: u64) -> Self {
        let units = PageSize::K4.ceil(size) / PageSize::K4.bytes();
        let to_scale = units <= Self::COLUMNS as u64;
        Self { size, unit: if to_scale { Self::COLUMNS / units.max(1) as usize } else { 0 }, to_scale }
    }

    fn width(&self) -> usize {
        match self.to_scale {
            true => (PageSize::K4.ceil(self.size) / PageSize::K4.bytes()) as usize * self.unit,
            false => Self::COLUMNS,
        }
    }

    fn paint(&self, plan: &BarPlan, legend: &mut Vec<Kind>) -> String {
        let cells = if self.to_scale { self.pages(plan) } else { self.runs(plan) };
        let mut text = String::new();
        for (kind, columns) in cells {
            if !legend.contains(&kind) {
                legend.push(kind);
            }
            // A page begins with a bar, where it has room for more.
            if columns > 1 {
                text += &format!("|{}", kind.paint(columns - 1));
            } else {
                text += &kind.paint(columns);
            }
        }
        text + "|"
    }

    /// Each page, to scale.
    fn pages(&self, plan: &BarPlan) -> Vec<(Kind, usize)> {
        let mut cells = Vec::new();
        let mut start = 0;
        while start < self.size {
            let end = (start + plan.page.bytes()).min(self.size);
            let units = PageSize::K4.ceil(end - start) / PageSize::K4.bytes();
            cells.push((kind_at(plan, start), units as usize * self.unit));
            start = end;
        }
        cells
    }

    /// Runs of like pages, each as wide as it must be to be seen.
    fn runs(&self, plan: &BarPlan) -> Vec<(Kind, usize)> {
        const LEAST: usize = 3;
        let spans = &plan.spans;
        if spans.len() * LEAST > Self::COLUMNS {
            return spans.iter().take(Self::COLUMNS / LEAST).map(|s| (kind_at(plan, s.range.start), LEAST)).collect();
        }
        let spare = (Self::COLUMNS - spans.len() * LEAST) as u128;
        let width = |to: u64| (spare * u128::from(to) / u128::from(self.size.max(1))) as usize;
        let cell = |r: &Range<u64>| (kind_at(plan, r.start), LEAST + width(r.end) - width(r.start));
        spans.iter().map(|span| cell(&span.range)).collect()
    }
}

fn kind_at(plan: &BarPlan, offset: u64) -> Kind {
    let page = plan.page.floor(offset)..plan.page.floor(offset).saturating_add(plan.page.bytes());
    let has_table = plan.layout.table.as_ref().is_some_and(|t| t.start < page.end && page.start < t.end);
    match plan.spans.iter().find(|s| s.range.contains(&offset)).map(|s| (s.access, s.why)) {
        Some((Access::Direct, Why::Shared)) => Kind::Shared,
        Some((Access::Direct, _)) => Kind::Registers,
        Some((Access::ReadOnly, _)) if has_table => Kind::Table,
        Some((Access::ReadOnly, _)) => Kind::Pba,
        Some((Access::Trapped, _)) | None => Kind::Trapped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wholebar::pci::{Isolation, RegionCap};

    fn strip(size: u64, table: Range<u64>, page: PageSize, policy: MapPolicy) -> String {
        let layout = BarLayout { bar: 0, size, table: Some(table), pba: None, registers: Vec::new() };
        let region =
            RegionInfo { size, readable: true, writable: true, mappable: true, caps: vec![RegionCap::MsixMappable] };
        let plan = plan(&layout, &region, page, &Isolation::by_construction(), policy);
        let painted = Strip::of(size).paint(&plan, &mut Vec::new());
        anstream::adapter::strip_str(&painted).to_string()
    }

    #[test]
    fn strips_show_pages_to_scale_where_they_fit() {
        for (size, table, page, policy, shown) in [
            (0x1000, 0..64, PageSize::K4, MapPolicy::Whole, "|ttttttttttttttttttttttttttttttttttt|"),
            (0x4000, 0x2000..0x2100, PageSize::K4, MapPolicy::Whole, "|RRRRRRRR|RRRRRRRR|tttttttt|RRRRRRRR|"),
            (0x4000, 0x2000..0x2100, PageSize::K4, MapPolicy::Carved, "|RRRRRRRR|RRRRRRRR|xxxxxxxx|RRRRRRRR|"),
            (0x4000, 0x2000..0x2100, PageSize::K64, MapPolicy::Whole, "|SSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSSS|"),
            (0x24000, 0x0..0x40, PageSize::K64, MapPolicy::Whole, "|SSSSSSSSSSSSSSS|RRRRRRRRRRRRRRR|RRR|"),
            (0x24000, 0x0..0x40, PageSize::K4, MapPolicy::Whole, "tRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRRR|"),
        ] {
            assert_eq!(strip(size, table, page, policy), shown, "{size:#x} {page}");
        }
    }

    #[test]
    fn strips_of_large_bars_are_abbreviated() {
        let middle = 0x1_0000_0000..0x1_0000_8000;
        let shown = strip(8 << 30, middle.clone(), PageSize::K64, MapPolicy::Carved);
        assert_eq!(shown, "|RRRRRRRRRRRRRRR|xx|RRRRRRRRRRRRRRRR|");
        let widths = [4u64 << 20, 1 << 30, (1 << 30) + 4096]
            .map(|size| strip(size, 0..64, PageSize::K4, MapPolicy::Whole).len());
        assert_eq!(widths, [Strip::COLUMNS + 1; 3]);
    }

    #[test]
    fn registers_are_what_is_not_in_the_ranges_of_table_and_pba() {
        let layout = |size, table, pba| BarLayout { bar: 0, size, table, pba, registers: Vec::new() };
        for (layout, trapped) in [
            (layout(0x4000, Some(0x2000..0x2100), Some(0x3000..0x3008)), 0x2000),
            (layout(0x4000, Some(0x2000..0x2100), Some(0x2800..0x2808)), 0x3000),
            (layout(0x4000, Some(0x1ff8..0x2008), None), 0x2000),
            (layout(0x800, Some(0..0x40), None), 0),
        ] {
            let plan =
                plan(&layout, &RegionInfo::default(), PageSize::K4, &Isolation::by_construction(), MapPolicy::Trapped);
            assert_eq!(trapped_registers(&plan), trapped, "{layout:x?}");
        }
    }
}

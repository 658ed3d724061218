//! What `--json` writes: the facts, the plans and the verdicts, under a schema of their own. Offsets, sizes and addresses are bytes.

use crate::{BarMap, FunctionMap, HotRegisters, Machine, MsixFact, Placement, Sheet, runs, trapped_registers};
use serde::ser::{Serialize, SerializeStruct, Serializer};
use std::ops::Range;
use wholebar_core::PageSize;
use wholebar_core::bar::{Access, BarPlan, MapPolicy, Why};
use wholebar_core::pci::Verdict;
use wholebar_core::pci::config::BarKind;

/// The schema's name and version.
pub const SCHEMA: &str = "wholebar.barmap/3";

/// All of it, written function by function: as large as it may get, no more than one is in memory.
///
/// Version 3: `mapped_bytes` and `spans` are of the BAR's own address, where that alone decides (`verdict` is `unmappable`, `given_own_pages` tells
/// what it comes to elsewhere); `placement` can be `unassigned` and `unseen`; `bars` has those, too, of which only the MSI-X capability tells.
#[derive(Debug, Clone, Copy)]
pub struct Report<'a> {
    /// `lspci`, `sysfs`, `model`, `vfio-user`, `vhost-user`, `kernel VFIO`.
    pub source: &'a str,
    /// What the source tells.
    pub machine: &'a Machine,
    /// The index of the only function it is of, or all of them.
    pub only: Option<usize>,
    /// For these page sizes.
    pub pages: &'a [PageSize],
    /// Under these policies.
    pub policies: &'a [MapPolicy],
}

impl Serialize for Report<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut report = serializer.serialize_struct("Report", 5)?;
        report.serialize_field("schema", SCHEMA)?;
        report.serialize_field("source", self.source)?;
        report.serialize_field("notes", &self.machine.notes)?;
        report.serialize_field("auto", &self.machine.auto)?;
        report.serialize_field("functions", &Functions(*self))?;
        report.end()
    }
}

struct Functions<'a>(Report<'a>);

impl Serialize for Functions<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Report { machine, only, pages, policies, .. } = self.0;
        match only {
            Some(index) => serializer.collect_seq(machine.map(index, pages, policies).iter().map(Function::of)),
            None => serializer.collect_seq(machine.each_map(pages, policies).map(|map| Function::of(&map))),
        }
    }
}

/// One function.
#[derive(Debug, serde::Serialize)]
#[allow(missing_docs, reason = "the names are the documentation, and are those of the JSON")]
pub struct Function {
    pub name: String,
    pub address: Option<String>,
    pub title: Option<String>,
    pub vendor: Option<u16>,
    pub device: Option<u16>,
    pub class: Option<u16>,
    pub interface: Option<u8>,
    pub driver: Option<String>,
    /// Of a function that is open: what it is mapped in.
    pub page_size: Option<u64>,
    pub isolation: Option<&'static str>,
    pub evidence: Vec<String>,
    pub msix: Msix,
    /// `null` where nothing is known of the device's hot registers.
    pub hot: Option<Hot>,
    pub sriov: Option<Sriov>,
    pub notes: Vec<String>,
    pub problems: Vec<String>,
    pub bars: Vec<Bar>,
}

/// The MSI-X capability.
#[derive(Debug, serde::Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names are the documentation, and are those of the JSON")]
pub enum Msix {
    Absent,
    Unknown { why: String },
    Present { vectors: u16, enabled: bool, table_bar: u8, table_offset: u32, pba_bar: u8, pba_offset: u32 },
}

/// Known hot registers.
#[derive(Debug, serde::Serialize)]
#[allow(missing_docs, reason = "the names are the documentation, and are those of the JSON")]
pub struct Hot {
    pub family: &'static str,
    pub registers: Vec<HotRun>,
}

/// A run of them.
#[derive(Debug, serde::Serialize)]
#[allow(missing_docs, reason = "the names are the documentation, and are those of the JSON")]
pub struct HotRun {
    pub what: &'static str,
    pub bar: u8,
    pub start: u64,
    pub end: u64,
    pub source: &'static str,
    pub assumed: Option<String>,
}

/// The SR-IOV capability.
#[derive(Debug, serde::Serialize)]
#[allow(missing_docs, reason = "the names are the documentation, and are those of the JSON")]
pub struct Sriov {
    pub total: u16,
    pub enabled: u16,
    /// As the capability has it: bit n is 4 KiB << n.
    pub supported_page_sizes: Option<u32>,
    /// Of one virtual function.
    pub bars: Vec<VirtualBar>,
}

/// A BAR of virtual functions.
#[derive(Debug, serde::Serialize)]
#[allow(missing_docs, reason = "the names are the documentation, and are those of the JSON")]
pub struct VirtualBar {
    pub bar: u8,
    pub address: Option<u64>,
    pub size: Option<u64>,
}

/// One BAR.
#[derive(Debug, serde::Serialize)]
#[allow(missing_docs, reason = "the names are the documentation, and are those of the JSON")]
pub struct Bar {
    pub bar: u8,
    /// `memory` or `io`.
    pub kind: &'static str,
    pub address: Option<u64>,
    pub size: Option<u64>,
    pub disabled: bool,
    /// Whether the source tells of it, or only its MSI-X capability.
    pub told: bool,
    /// Its own register reads 0: its place is what the system says.
    pub register_reads_zero: bool,
    /// Why it has no address, where the source says: `<unassigned>`, `<ignored>`.
    pub unplaced: Option<&'static str>,
    pub table: Option<Range<u64>>,
    pub pba: Option<Range<u64>>,
    /// The plan that is carried out here, if nothing is asked for; of a function that is open.
    pub auto: Option<Plan>,
    pub pages: Vec<Page>,
}

/// A BAR on hosts with pages of one size.
#[derive(Debug, serde::Serialize)]
#[allow(missing_docs, reason = "the names are the documentation, and are those of the JSON")]
pub struct Page {
    pub page_size: u64,
    /// `own`, `unknown`, `unassigned`, `unseen`, `unaligned` or `shared`.
    pub placement: &'static str,
    pub neighbours: Vec<String>,
    pub verdict: &'static str,
    pub text: String,
    pub caution: Option<String>,
    /// Known hot registers that no policy can map.
    pub hot_out_of_reach: Option<String>,
    /// Where its address decides that nothing can be mapped: what it comes to where it has its pages to itself.
    pub given_own_pages: Option<Elsewhere>,
    pub plans: Vec<Plan>,
}

/// A verdict of another address.
#[derive(Debug, serde::Serialize)]
#[allow(missing_docs, reason = "the names are the documentation, and are those of the JSON")]
pub struct Elsewhere {
    pub verdict: &'static str,
    pub text: String,
}

/// A plan.
#[derive(Debug, serde::Serialize)]
#[allow(missing_docs, reason = "the names are the documentation, and are those of the JSON")]
pub struct Plan {
    pub page_size: u64,
    pub policy: &'static str,
    pub why: String,
    /// For pages smaller than the device is mapped in: it cannot be carried out here.
    pub hypothetical: bool,
    pub mapped_bytes: u64,
    pub trapped_register_bytes: u64,
    pub spans: Vec<Span>,
    /// Runs of like pages, as strips show them.
    pub strip: Vec<Strip>,
}

/// A span of a plan.
#[derive(Debug, serde::Serialize)]
#[allow(missing_docs, reason = "the names are the documentation, and are those of the JSON")]
pub struct Span {
    pub start: u64,
    pub end: u64,
    pub access: &'static str,
    pub why: &'static str,
}

/// A run of like pages.
#[derive(Debug, serde::Serialize)]
#[allow(missing_docs, reason = "the names are the documentation, and are those of the JSON")]
pub struct Strip {
    pub start: u64,
    pub end: u64,
    pub kind: &'static str,
}

impl Function {
    /// The report of one function.
    pub fn of(map: &FunctionMap<'_>) -> Self {
        let function = map.function;
        let open = function.open.as_ref();
        let isolation = open.map(|open| match open.isolation.verdict {
            Verdict::Isolated => "isolated",
            Verdict::Unknown => "unknown",
            Verdict::NotIsolated => "not isolated",
        });
        let msix = match &function.msix {
            MsixFact::Absent => Msix::Absent,
            MsixFact::Unknown(why) => Msix::Unknown { why: why.clone() },
            MsixFact::Present(msix) => Msix::Present {
                vectors: msix.vectors,
                enabled: msix.enabled,
                table_bar: msix.table_bar,
                table_offset: msix.table_offset,
                pba_bar: msix.pba_bar,
                pba_offset: msix.pba_offset,
            },
        };
        let sriov = function.sriov.as_ref().map(|sriov| Sriov {
            total: sriov.total,
            enabled: sriov.enabled,
            supported_page_sizes: sriov.supported_pages,
            bars: sriov
                .bars
                .iter()
                .map(|bar| VirtualBar { bar: bar.index, address: bar.place.address, size: bar.place.size })
                .collect(),
        });
        Self {
            name: function.name.clone(),
            address: function.address.map(|address| address.to_string()),
            title: function.title.clone(),
            vendor: function.ids.vendor,
            device: function.ids.device,
            class: function.ids.class,
            interface: function.ids.interface,
            driver: function.driver.clone(),
            page_size: open.map(|open| open.page.bytes()),
            isolation,
            evidence: open.map(|open| open.isolation.evidence.clone()).unwrap_or_default(),
            msix,
            hot: Hot::of(&map.hot),
            sriov,
            notes: function.notes.clone(),
            problems: map.problems.clone(),
            bars: map.bars.iter().map(|bar| Bar::of(map, bar)).collect(),
        }
    }
}

impl Hot {
    fn of(hot: &HotRegisters) -> Option<Self> {
        let HotRegisters::Known(family, hot) = hot else { return None };
        let run = |hot: &crate::Hot| HotRun {
            what: hot.what,
            bar: hot.bar,
            start: hot.range.start,
            end: hot.range.end,
            source: hot.source,
            assumed: hot.assumed.clone(),
        };
        Some(Self { family, registers: hot.iter().map(run).collect() })
    }
}

impl Bar {
    fn of(map: &FunctionMap<'_>, bar: &BarMap) -> Self {
        let layout = bar.layout.as_ref();
        let plan = |plan: &BarPlan| Plan::of(map, bar, plan);
        Self {
            bar: bar.bar.index,
            kind: if bar.bar.kind == BarKind::Io { "io" } else { "memory" },
            address: bar.bar.place.address,
            size: bar.bar.place.size,
            disabled: bar.bar.disabled,
            told: bar.told,
            register_reads_zero: bar.bar.hidden,
            unplaced: bar.bar.unplaced.map(crate::Unplaced::name),
            table: layout.and_then(|layout| layout.table.clone()),
            pba: layout.and_then(|layout| layout.pba.clone()),
            auto: bar.auto.as_ref().map(plan),
            pages: bar.sheets.iter().map(|sheet| Page::of(sheet, sheet.plans.iter().map(plan).collect())).collect(),
        }
    }
}

impl Page {
    fn of(sheet: &Sheet, plans: Vec<Plan>) -> Self {
        let (placement, neighbours) = match &sheet.placement {
            Placement::Own => ("own", Vec::new()),
            Placement::Unknown => ("unknown", Vec::new()),
            Placement::Unassigned => ("unassigned", Vec::new()),
            Placement::Unseen => ("unseen", Vec::new()),
            Placement::Unaligned => ("unaligned", Vec::new()),
            Placement::Shared(others) => ("shared", others.clone()),
        };
        Self {
            page_size: sheet.page.bytes(),
            placement,
            neighbours,
            verdict: sheet.verdict.kind.name(),
            text: sheet.verdict.text.clone(),
            caution: sheet.verdict.caution.clone(),
            hot_out_of_reach: sheet.verdict.hot_out_of_reach.clone(),
            given_own_pages: sheet
                .verdict
                .given_own_pages
                .as_ref()
                .map(|verdict| Elsewhere { verdict: verdict.kind.name(), text: verdict.text.clone() }),
            plans,
        }
    }
}

impl Plan {
    fn of(map: &FunctionMap<'_>, bar: &BarMap, plan: &BarPlan) -> Self {
        let span = |span: &wholebar_core::bar::Span| Span {
            start: span.range.start,
            end: span.range.end,
            access: match span.access {
                Access::Direct => "direct",
                Access::ReadOnly => "read-only",
                Access::Trapped => "trapped",
            },
            why: why_name(span.why),
        };
        let strip = runs(plan, &bar.hot);
        Self {
            page_size: plan.page.bytes(),
            policy: policy_name(plan.policy),
            why: plan.why.clone(),
            hypothetical: map.function.open.as_ref().is_some_and(|open| plan.is_hypothetical(open.page)),
            mapped_bytes: plan.mapped_bytes(),
            trapped_register_bytes: trapped_registers(plan),
            spans: plan.spans.iter().map(span).collect(),
            strip: strip
                .iter()
                .map(|run| Strip { start: run.range.start, end: run.range.end, kind: run.kind.name() })
                .collect(),
        }
    }
}

/// Why a span is what it is, in a few words.
fn why_name(why: Why) -> &'static str {
    match why {
        Why::Registers => "registers",
        Why::Shared => "registers beside MSI-X table or PBA",
        Why::TableOrPba => "MSI-X table or PBA",
        Why::Table => "left out: the MSI-X table is there",
        Why::NotOffered => "cannot be mapped",
        Why::Asked => "asked for",
    }
}

/// A policy as reports write it.
fn policy_name(policy: MapPolicy) -> &'static str {
    match policy {
        MapPolicy::Auto => "auto",
        MapPolicy::Whole => "whole",
        MapPolicy::Carved => "carved",
        MapPolicy::Trapped => "trapped",
    }
}

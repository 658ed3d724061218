//! What a map means for whoever runs the device: one line to act on, and a word for programs.

use crate::map::{overlaps, trapped_registers};
use crate::{Bar, Function, Hot, HotRegisters, MsixFact, Placement};
use std::ops::Range;
use wholebar::PageSize;
use wholebar::bar::{Access, BarPlan};

/// What a BAR comes to on hosts with pages of one size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// For programs.
    pub kind: VerdictKind,
    /// One line, for people.
    pub text: String,
    /// What else a host with such pages must see to, or it can map nothing of the BAR.
    pub caution: Option<String>,
}

/// What it comes to, as a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VerdictKind {
    /// I/O ports: never mapped.
    Ports,
    /// Too little is known to plan it.
    Unknown,
    /// Nothing of it can be mapped.
    Unmappable,
    /// Whole and carved reach the same registers by loads and stores.
    Alike,
    /// Carved traps registers, known hot ones among them.
    CarvedTrapsHot,
    /// Carved traps registers; the known hot ones are elsewhere.
    CarvedTrapsOthers,
    /// Carved traps registers; whether hot ones are among them isn't known.
    CarvedTraps,
}

impl VerdictKind {
    /// As `--json` writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ports => "ports",
            Self::Unknown => "unknown",
            Self::Unmappable => "unmappable",
            Self::Alike => "alike",
            Self::CarvedTrapsHot => "carved traps hot registers",
            Self::CarvedTrapsOthers => "carved traps other registers",
            Self::CarvedTraps => "carved traps registers",
        }
    }
}

/// Of a BAR that cannot be planned.
pub(crate) fn unplanned(function: &Function, bar: &Bar, placement: &Placement, page: PageSize) -> Verdict {
    if !bar.is_memory() {
        return ports();
    }
    let text = match (&function.msix, bar.place.size) {
        (_, None | Some(0)) => "its size isn't known, so nothing can be planned".to_owned(),
        (MsixFact::Unknown(why), _) => {
            format!("where the MSI-X table is isn't known ({why}), so nothing can be planned")
        }
        _ => "its MSI-X table or PBA would lie past its end, so nothing can be planned".to_owned(),
    };
    Verdict {
        kind: VerdictKind::Unknown,
        text,
        caution: bar.place.size.and_then(|_| caution(function, placement, page)),
    }
}

fn ports() -> Verdict {
    let text = "I/O ports are never mapped: every access is a system call, on any host".to_owned();
    Verdict { kind: VerdictKind::Ports, text, caution: None }
}

/// Of a BAR that was planned.
pub(crate) fn of(
    function: &Function,
    bar: &Bar,
    placement: &Placement,
    known: &HotRegisters,
    hot: &[Hot],
    whole: &BarPlan,
    carved: &BarPlan,
) -> Verdict {
    if !bar.is_memory() {
        return ports();
    }
    let page = whole.page;
    let caution = caution(function, placement, page);
    let verdict = |kind, text| Verdict { kind, text, caution: caution.clone() };
    if whole.spans.iter().all(|span| span.access == Access::Trapped) {
        let why = match placement {
            Placement::Shared(_) | Placement::Unaligned if bar.region.is_none() => "it hasn't its pages to itself",
            _ => "the backend lets nothing of it be mapped",
        };
        let text = format!("every access is trapped{}: {why}", named(hot, &trapped_spans(whole)));
        return verdict(VerdictKind::Unmappable, text);
    }
    let (by_whole, by_carved) = (trapped_spans(whole), trapped_spans(carved));
    let lost: Vec<&Hot> =
        hot.iter().filter(|hot| !touched(&hot.range, &by_whole) && touched(&hot.range, &by_carved)).collect();
    let registers = trapped_registers(carved).saturating_sub(trapped_registers(whole));
    let Some(table) = whole.layout.table.as_ref().filter(|_| !lost.is_empty() || registers > 0) else {
        let text = match (trapped_registers(carved), &whole.layout.table) {
            (0, None) => "mapped whole, by any policy: the MSI-X table isn't in it".to_owned(),
            (0, Some(_)) => {
                "whole and carved reach the same registers: the MSI-X table shares no page with any".to_owned()
            }
            (n, _) => format!(
                "whole and carved are alike: {} cannot be mapped and are trapped by both{}",
                bytes(n),
                named(hot, &by_whole)
            ),
        };
        return verdict(VerdictKind::Alike, text);
    };
    let at = format!("the MSI-X table at {:#x}", table.start);
    if !lost.is_empty() {
        let what: Vec<String> = lost.iter().map(|hot| format!("{} from {:#x} on", hot.what, hot.range.start)).collect();
        let every = if lost.iter().all(|hot| inside(&hot.range, &by_carved)) { "each of them" } else { "some of them" };
        let text = format!(
            "{} share a {page} page with {at}: carved traps {every}; whole maps them, where interrupts are isolated",
            list(&what)
        );
        return verdict(VerdictKind::CarvedTrapsHot, text);
    }
    let share = format!(
        "{} beside {at} are in its {page} pages: carved traps them, whole maps them where interrupts are isolated",
        bytes(registers)
    );
    match known {
        HotRegisters::Unknown(why) => verdict(VerdictKind::CarvedTraps, format!("{share}; {why}")),
        HotRegisters::Known(family, _) if hot.is_empty() => {
            let text = format!("{share}; the hot registers ({family}) are in another BAR");
            verdict(VerdictKind::CarvedTrapsOthers, text)
        }
        HotRegisters::Known(..) => {
            let what: Vec<String> =
                hot.iter().map(|hot| format!("{} from {:#x} on", hot.what, hot.range.start)).collect();
            verdict(VerdictKind::CarvedTrapsOthers, format!("{share}; {} are in other pages", list(&what)))
        }
    }
}

/// What has to be seen to before that holds: a page of its own.
fn caution(function: &Function, placement: &Placement, page: PageSize) -> Option<String> {
    let which = function.address.map_or("BDF".to_owned(), |address| address.to_string());
    let mend = format!(
        "pci=resource_alignment={}@{which} on the kernel's command line mends that",
        page.bytes().trailing_zeros()
    );
    match placement {
        Placement::Own => None,
        Placement::Unknown => {
            Some(format!("its address isn't known: it can be mapped only where it has a {page} page to itself"))
        }
        Placement::Unaligned => Some(format!(
            "at this address a host with {page} pages can't map it, since it doesn't begin a page: {mend}"
        )),
        Placement::Shared(others) => {
            let others = list(others);
            Some(format!(
                "at this address a host with {page} pages can't map it, since {others} would be in its page: {mend}"
            ))
        }
    }
}

fn trapped_spans(plan: &BarPlan) -> Vec<Range<u64>> {
    plan.spans.iter().filter(|span| span.access == Access::Trapped).map(|span| span.range.clone()).collect()
}

fn touched(range: &Range<u64>, spans: &[Range<u64>]) -> bool {
    spans.iter().any(|span| overlaps(range, span))
}

/// Whether all of `range` is in `spans`, which are in order.
fn inside(range: &Range<u64>, spans: &[Range<u64>]) -> bool {
    let mut at = range.start;
    for span in spans {
        if span.start <= at && at < span.end {
            at = span.end;
        }
    }
    at >= range.end
}

fn named(hot: &[Hot], trapped: &[Range<u64>]) -> String {
    let hot: Vec<String> = hot
        .iter()
        .filter(|hot| touched(&hot.range, trapped))
        .map(|hot| format!("{} at {:#x}", hot.what, hot.range.start))
        .collect();
    if hot.is_empty() { String::new() } else { format!(", {} too", list(&hot)) }
}

/// `a`, `a and b`, `a, b and c`; of many, the first few.
fn list(items: &[String]) -> String {
    const MOST: usize = 4;
    let mut shown: Vec<String> = items.iter().take(MOST).cloned().collect();
    if items.len() > MOST {
        shown.push(format!("{} more", items.len() - MOST));
    }
    match shown.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
        None => String::new(),
    }
}

/// `512 B`, `8 KiB`: whole units, or bytes.
pub(crate) fn bytes(n: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.into_iter().find(|(shift, _)| n >= 1 << shift && n.is_multiple_of(1 << shift)) {
        Some((shift, unit)) => format!("{} {unit}", n >> shift),
        None => format!("{n} B"),
    }
}

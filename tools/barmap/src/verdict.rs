//! What a map means for whoever runs the device: one line to act on, and a word for programs.

use crate::map::{overlaps, trapped_registers};
use crate::{Bar, Function, Hot, HotRegisters, MsixFact, Placement};
use std::ops::Range;
use wholebar_core::PageSize;
use wholebar_core::bar::{Access, BarPlan};

/// What a BAR comes to on hosts with pages of one size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// For programs.
    pub kind: VerdictKind,
    /// One line, for people.
    pub text: String,
    /// What else a host with such pages must see to, or it can map nothing of the BAR.
    pub caution: Option<String>,
    /// Known hot registers that lie in it, of which none can be mapped by any policy.
    pub hot_out_of_reach: Option<String>,
    /// Where its address alone decides that nothing can be mapped: what it comes to at one where it has its pages to itself.
    pub given_own_pages: Option<Box<Verdict>>,
}

impl Verdict {
    fn new(kind: VerdictKind, text: String, caution: Option<String>) -> Self {
        Self { kind, text, caution, hot_out_of_reach: None, given_own_pages: None }
    }
}

/// What a verdict is of.
pub(crate) struct Case<'a> {
    pub(crate) function: &'a Function,
    pub(crate) bar: &'a Bar,
    /// The source tells of the BAR.
    pub(crate) told: bool,
    /// The source may leave out what is there.
    pub(crate) partial: bool,
    pub(crate) page: PageSize,
    pub(crate) placement: &'a Placement,
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
pub(crate) fn unplanned(case: &Case<'_>) -> Verdict {
    let Case { function, bar, .. } = case;
    if !bar.is_memory() {
        return ports();
    }
    let text = match (&function.msix, bar.place.size) {
        (MsixFact::Unknown(why), _) => {
            format!("where the MSI-X table is isn't known ({why}), so nothing can be planned")
        }
        (_, None | Some(0)) => format!("{}, so nothing can be planned", unsized_(case)),
        _ => "its MSI-X table or PBA would lie past its end, so nothing can be planned".to_owned(),
    };
    Verdict::new(VerdictKind::Unknown, text, bar.place.size.and_then(|_| caution(case)))
}

/// That its size isn't known.
fn unsized_(case: &Case<'_>) -> &'static str {
    match (case.told, case.partial) {
        (false, _) => "the BAR is not in the text",
        (true, true) => "its size is not in the text",
        (true, false) => "its size isn't known",
    }
}

fn ports() -> Verdict {
    let text = "I/O ports are never mapped: every access is a system call, on any host".to_owned();
    Verdict::new(VerdictKind::Ports, text, None)
}

/// Of a BAR that was planned. `shut`: at its address nothing can be mapped; `sized`: its size is known, and isn't only the least it can be.
pub(crate) fn of(
    case: &Case<'_>,
    shut: bool,
    sized: bool,
    known: &HotRegisters,
    hot: &[Hot],
    whole: &BarPlan,
    carved: &BarPlan,
) -> Verdict {
    let bar = case.bar;
    if !bar.is_memory() {
        return ports();
    }
    if shut {
        let all = [0..whole.layout.size];
        let free = Case { placement: &Placement::Own, ..*case };
        let text = format!(
            "nothing of it can be mapped at {:#x}{}: {}",
            bar.place.address.unwrap_or(0),
            named(hot, &all),
            shut_by(case)
        );
        return Verdict {
            hot_out_of_reach: names(hot, &all),
            given_own_pages: Some(Box::new(of(&free, false, sized, known, hot, whole, carved))),
            ..Verdict::new(VerdictKind::Unmappable, text, None)
        };
    }
    let mut verdict = planned(case, known, hot, whole, carved);
    if !sized {
        verdict.text += &format!(" ({}; it holds {} at least)", unsized_(case), bytes(whole.layout.size));
    }
    verdict
}

fn planned(case: &Case<'_>, known: &HotRegisters, hot: &[Hot], whole: &BarPlan, carved: &BarPlan) -> Verdict {
    let page = case.page;
    let caution = caution(case);
    let verdict = |kind, text| Verdict::new(kind, text, caution.clone());
    if whole.spans.iter().all(|span| span.access == Access::Trapped) {
        let trapped = trapped_spans(whole);
        let why = match case.bar.region.as_ref().filter(|region| region.mappable).map(|region| region.sparse()) {
            Some(Some([_, ..])) => "no page of that size lies whole in what the backend lets be mapped",
            Some(None) => {
                "each page of that size holds the MSI-X table, and the backend does not say that it can be mapped"
            }
            Some(Some([])) | None => "the backend lets nothing of it be mapped",
        };
        let text = format!("every access is trapped{}: {why}", named(hot, &trapped));
        return Verdict { hot_out_of_reach: names(hot, &trapped), ..verdict(VerdictKind::Unmappable, text) };
    }
    let (by_whole, by_carved) = (trapped_spans(whole), trapped_spans(carved));
    let lost: Vec<&Hot> =
        hot.iter().filter(|hot| !touched(&hot.range, &by_whole) && touched(&hot.range, &by_carved)).collect();
    let registers = trapped_registers(carved).saturating_sub(trapped_registers(whole));
    let Some(table) = whole.layout.table.as_ref().filter(|_| !lost.is_empty() || registers > 0) else {
        let text = match (trapped_registers(carved), &whole.layout.table) {
            (0, None) => "mapped whole, by any policy: no MSI-X table is in it".to_owned(),
            (0, Some(_)) => {
                "whole and carved reach the same registers, if the MSI-X table's 4 KiB hold nothing else, as \
                             PCI recommends"
                    .to_owned()
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
    // What begins inside of 4 KiB was put behind something.
    let room = whole.layout.own_ranges()[0].as_ref().is_some_and(|own| own.start != PageSize::K4.floor(table.start));
    let share = format!(
        "{}{} beside {at} {} in its {page} pages: carved traps them, whole maps them where interrupts are isolated",
        if room { "its page may hold other registers: " } else { "" },
        bytes(registers),
        if room { "may be" } else { "are" },
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

/// Why nothing can be mapped at its address, and what to do.
fn shut_by(case: &Case<'_>) -> String {
    let page = case.page;
    let which = case.function.address.map_or("BDF".to_owned(), |address| address.to_string());
    let mend = format!(
        "pci=resource_alignment={}@{which} on the kernel's command line mends that",
        page.bytes().trailing_zeros()
    );
    match case.placement {
        Placement::Shared(others) => format!("{} would be in its {page} page; {mend}", list(others)),
        _ => format!("it doesn't begin a {page} page; {mend}"),
    }
}

/// What has to be seen to before that holds: a page of its own.
fn caution(case: &Case<'_>) -> Option<String> {
    let page = case.page;
    match case.placement {
        Placement::Own => None,
        Placement::Unknown => {
            Some(format!("its address isn't known: it can be mapped only where it has a {page} page to itself"))
        }
        Placement::Unassigned => {
            let why = case.bar.unplaced.map_or("", |unplaced| unplaced.name());
            Some(format!("it has no address ({why}): nothing of it can be mapped there before it is given one"))
        }
        Placement::Unseen => Some(format!(
            "whether it has its {page} page to itself isn't known: who its neighbours are isn't in the text, and with one it can't be mapped"
        )),
        Placement::Unaligned | Placement::Shared(_) => {
            Some(format!("at this address a host with {page} pages could map nothing of it: {}", shut_by(case)))
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
    names(hot, trapped).map_or(String::new(), |names| format!(", {names} too"))
}

/// The hot registers that are trapped.
fn names(hot: &[Hot], trapped: &[Range<u64>]) -> Option<String> {
    let hot = hot.iter().filter(|hot| touched(&hot.range, trapped));
    let hot: Vec<String> = hot.map(|hot| format!("{} at {:#x}", hot.what, hot.range.start)).collect();
    (!hot.is_empty()).then(|| list(&hot))
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

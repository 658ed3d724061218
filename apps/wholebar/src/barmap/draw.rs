//! Maps as a terminal shows them: strips of pages, coloured, and legible without colours.

use super::source::Source;
use crate::args::policy_name;
use crate::output;
use anstyle::{AnsiColor, Style};
use std::fmt::Write;
use wholebar::bar::{BarLayout, BarPlan};
use wholebar::pci::Verdict;
use wholebar::pci::config::BarKind;
use wholebar_barmap::{BarMap, FunctionMap, HotRegisters, Kind, MsixFact, Sheet, Sriov, Strip, trapped_registers};

/// Whether a function is shown if nothing is asked for: it has MSI-X, or may have.
pub fn is_of_interest(map: &FunctionMap<'_>) -> bool {
    match map.function.msix {
        MsixFact::Present(_) => true,
        // Most functions without root; those without memory have nothing to map.
        MsixFact::Unknown(_) => map.bars.iter().any(|bar| bar.bar.is_memory()),
        MsixFact::Absent => false,
    }
}

/// All of it; `left` functions are left out.
pub fn text(source: &Source, maps: &[FunctionMap<'_>], left: usize) -> String {
    let mut text = String::new();
    let mut legend = Vec::new();
    for map in maps {
        if !text.is_empty() {
            text.push('\n');
        }
        text += &function(map, &mut legend);
    }
    if !legend.is_empty() {
        text.push('\n');
        legend.sort();
        for kind in legend {
            let _ = writeln!(text, "  {}  {}", paint(kind, 3), kind.meaning());
        }
    }
    if source.name == "lspci" || source.name == "sysfs" {
        text += "\n";
        let assumed = "Mapped as Linux since 4.16 allows it; whether interrupts are isolated is known only on the host that opens a function.";
        text += &output::paragraph(assumed);
    }
    for note in &source.machine.notes {
        text += &output::paragraph(&format!("Note: {note}."));
    }
    match left {
        0 => {}
        1 => text += "One function without MSI-X is left out; --all shows it too.\n",
        n => text += &format!("{n} functions without MSI-X are left out; --all shows them too.\n"),
    }
    text
}

fn function(map: &FunctionMap<'_>, legend: &mut Vec<Kind>) -> String {
    let function = map.function;
    let mut text = function.name.clone();
    let ids = function.ids;
    match (&function.title, ids.vendor, ids.device) {
        (Some(title), ..) => text += &format!("  {title}"),
        (None, Some(vendor), Some(device)) => {
            text += &format!("  {vendor:04x}:{device:04x}");
            text += &ids.class.map(|class| format!(", class {class:04x}")).unwrap_or_default();
        }
        _ => {}
    }
    text += &function.driver.as_ref().map(|driver| format!("  ({driver})")).unwrap_or_default();
    text.push('\n');
    let mut say = |line: String| text += &indented(&line, 2);
    if let Some(open) = &function.open {
        let verdict = match open.isolation.verdict {
            Verdict::Isolated => "isolated",
            Verdict::NotIsolated => "not isolated",
            Verdict::Unknown => "perhaps isolated, perhaps not",
        };
        say(format!("{}, mapped in pages of {}", open.kind, open.page));
        say(format!("interrupts: {verdict}: {}", open.isolation.evidence.join("; ")));
    }
    match &function.msix {
        MsixFact::Absent => say("MSI-X: none".to_owned()),
        MsixFact::Unknown(why) => say(format!("MSI-X: unknown: {why}")),
        MsixFact::Present(msix) => {
            let place = |bar: u8, range: std::ops::Range<u64>| {
                format!("BAR{bar} at {:#x} ({})", range.start, output::bytes(range.end - range.start))
            };
            let (table, pba) = (place(msix.table_bar, msix.table()), place(msix.pba_bar, msix.pba()));
            let enabled = if msix.enabled { "enabled" } else { "not enabled" };
            say(format!("MSI-X: {} vectors, {enabled}; table in {table}, PBA in {pba}", msix.vectors));
        }
    }
    if is_of_interest(map) || matches!(map.hot, HotRegisters::Known(..)) {
        hot(&map.hot).into_iter().for_each(&mut say);
    }
    if let Some(sriov) = &function.sriov {
        for line in virtual_functions(sriov, map) {
            say(line);
        }
    }
    for problem in &map.problems {
        say(format!("NOT AS IT SHOULD BE: {problem}"));
    }
    for note in &function.notes {
        say(format!("note: {note}"));
    }
    for map in &map.bars {
        text += &bar(map, legend);
    }
    text
}

fn hot(hot: &HotRegisters) -> Vec<String> {
    match hot {
        HotRegisters::Unknown(why) => vec![format!("hot registers: {why}")],
        HotRegisters::Known(family, runs) => {
            let line = |hot: &wholebar_barmap::Hot| {
                let assumed = hot.assumed.as_ref().map(|text| format!("; assumed: {text}")).unwrap_or_default();
                let (start, end) = (hot.range.start, hot.range.end);
                format!(
                    "hot registers ({family}): {} in BAR{}, {start:#x} to {end:#x} [{}{assumed}]",
                    hot.what, hot.bar, hot.source
                )
            };
            runs.iter().map(line).collect()
        }
    }
}

/// What pages do to the BARs of virtual functions.
fn virtual_functions(sriov: &Sriov, map: &FunctionMap<'_>) -> Vec<String> {
    let mut lines = vec![format!("SR-IOV: {} virtual functions, {} there", sriov.total, sriov.enabled)];
    let pages =
        map.bars.first().map(|bar| bar.sheets.iter().map(|sheet| sheet.page).collect::<Vec<_>>()).unwrap_or_default();
    for bar in &sriov.bars {
        let Some(size) = bar.place.size else {
            lines.push(format!("  BAR{} of each: its size isn't known", bar.index));
            continue;
        };
        let small: Vec<String> = pages
            .iter()
            .filter(|page| size < page.bytes())
            .map(|page| match (sriov.page_on(*page), sriov.supported_pages) {
                (Some(each), _) => format!("{page} pages give each {}", output::bytes(each.max(size))),
                (None, Some(_)) => {
                    format!("Linux with {page} pages offers no virtual functions: the device has no such page size")
                }
                (None, None) => format!("smaller than {page} pages"),
            })
            .collect();
        let small = if small.is_empty() { String::new() } else { format!("; {}", small.join("; ")) };
        lines.push(format!("  BAR{} of each: {}{small}", bar.index, output::bytes(size)));
    }
    lines
}

fn bar(map: &BarMap, legend: &mut Vec<Kind>) -> String {
    let bar = &map.bar;
    let mut text = format!("\n  BAR{}  ", bar.index);
    text += &bar.place.size.map_or("size unknown".to_owned(), output::bytes);
    text += match bar.kind {
        BarKind::Io => " of I/O ports",
        BarKind::Memory { prefetchable: true, .. } => " of memory, prefetchable",
        BarKind::Memory { .. } => " of memory",
    };
    text += &bar.place.address.map(|address| format!(", at {address:#x}")).unwrap_or_default();
    for (is, what) in [(bar.disabled, "disabled"), (bar.hidden, "of a virtual function")] {
        if is {
            text += &format!(", {what}");
        }
    }
    text.push('\n');
    if let Some(layout) = map.layout.as_ref().filter(|_| draws(map)) {
        text += &strips(map, layout, legend);
    }
    for line in verdicts(&map.sheets) {
        text += &indented(&line, 4);
    }
    if let Some(auto) = map.auto.as_ref().filter(|auto| auto.layout.table.is_some()) {
        text += &indented(&format!("Here ({} pages): {}, since {}", auto.page, policy_name(auto.policy), auto.why), 4);
    }
    text
}

/// Whether a BAR's strips show more than one colour.
fn draws(map: &BarMap) -> bool {
    let holds = map.layout.as_ref().is_some_and(|layout| layout.table.is_some() || layout.pba.is_some());
    holds && map.bar.is_memory()
}

fn strips(map: &BarMap, layout: &BarLayout, legend: &mut Vec<Kind>) -> String {
    let strip = Strip::of(layout.size);
    let width = strip.width() - 2;
    let mut text = format!("    pages    policy   0x0{:>width$}  registers", format!("{:#x}", layout.size));
    text += if strip.is_to_scale() { "\n" } else { " (not to scale)\n" };
    for sheet in &map.sheets {
        for (i, plan) in sheet.plans.iter().enumerate() {
            let page = if i == 0 { sheet.page.to_string() } else { String::new() };
            let note = match &map.auto {
                Some(auto) if plan.is_hypothetical(auto.page) => " (not here)",
                _ => "",
            };
            let trapped = match trapped_registers(plan) {
                0 => "all direct".to_owned(),
                n => format!("{} trapped", output::bytes(n)),
            };
            let painted = painted(&strip, plan, map, legend);
            let _ = writeln!(text, "    {page:<8} {:<8} {painted}  {trapped}{note}", policy_name(plan.policy));
        }
    }
    text
}

fn painted(strip: &Strip, plan: &BarPlan, map: &BarMap, legend: &mut Vec<Kind>) -> String {
    let mut text = String::new();
    for (kind, columns) in strip.cells(plan, &map.hot) {
        if !legend.contains(&kind) {
            legend.push(kind);
        }
        // A page begins with a bar, where it has room for more.
        if columns > 1 {
            text += &format!("|{}", paint(kind, columns - 1));
        } else {
            text += &paint(kind, columns);
        }
    }
    text + "|"
}

/// A line for each verdict; page sizes with the same one share it.
fn verdicts(sheets: &[Sheet]) -> Vec<String> {
    let mut lines: Vec<(Vec<String>, String)> = Vec::new();
    for sheet in sheets {
        let mut said = vec![sheet.verdict.text.clone()];
        said.extend(sheet.verdict.caution.clone().map(|caution| format!("BUT {caution}")));
        let said = said.join(". ");
        match lines.last_mut() {
            Some((pages, last)) if *last == said => pages.push(sheet.page.to_string()),
            _ => lines.push((vec![sheet.page.to_string()], said)),
        }
    }
    let all = sheets.len();
    let line = |(pages, said): (Vec<String>, String)| match pages.len() {
        n if n == all && n > 1 => format!("any pages: {said}"),
        _ => format!("{}: {said}", pages.join(", ")),
    };
    lines.into_iter().map(line).collect()
}

fn paint(kind: Kind, columns: usize) -> String {
    let style: Style = match kind {
        Kind::Registers => AnsiColor::Black.on(AnsiColor::Green),
        Kind::Hot => AnsiColor::Black.on(AnsiColor::BrightGreen),
        Kind::Shared | Kind::SharedHot => AnsiColor::Black.on(AnsiColor::Yellow),
        Kind::Table => AnsiColor::Black.on(AnsiColor::Cyan),
        Kind::Pba => AnsiColor::White.on(AnsiColor::Blue),
        Kind::Trapped | Kind::TrappedHot => AnsiColor::White.on(AnsiColor::Red),
        Kind::Unmappable | Kind::UnmappableHot => AnsiColor::White.on(AnsiColor::BrightBlack),
        Kind::More => Style::new(),
    };
    format!("{style}{}{style:#}", kind.letter().repeat(columns))
}

/// A line, broken where it is too long; what follows is indented further.
fn indented(line: &str, by: usize) -> String {
    let room = 100 - by - 2;
    let own = line.len() - line.trim_start().len();
    let (mut text, mut width) = (" ".repeat(by + own), 0);
    for word in line.split_whitespace() {
        let length = word.chars().count();
        if width > 0 && width + 1 + length > room {
            text += &format!("\n{}", " ".repeat(by + own + 2));
            width = 0;
        } else if width > 0 {
            text.push(' ');
            width += 1;
        }
        text += word;
        width += length;
    }
    text + "\n"
}

//! Maps as a terminal of 80 columns shows them: a line a function, then strips of pages, coloured, and legible without colours.
//!
//! Functions are mapped one at a time, once to be counted and once to be shown: what is kept is a row for each kind of function.

use super::source::Source;
use crate::args::policy_name;
use crate::output::{self, WIDTH, wrapped};
use anstyle::{AnsiColor, Style};
use anyhow::Result;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Write;
use unicode_width::UnicodeWidthStr;
use wholebar::PageSize;
use wholebar::bar::{BarLayout, BarPlan, MapPolicy};
use wholebar::pci::Verdict as Isolated;
use wholebar::pci::config::BarKind;
use wholebar_barmap::{
    BarMap, Function, FunctionMap, HotRegisters, Kind, MsixFact, Sheet, Sriov, Strip, Verdict, VerdictKind,
    trapped_registers,
};

/// What is shown.
#[derive(Debug, Clone, Copy, Default)]
pub struct What {
    /// Also functions without MSI-X.
    pub all: bool,
    /// Also strips, where there are several functions.
    pub details: bool,
}

/// Functions that are left out.
#[derive(Default)]
struct Left {
    /// Without MSI-X.
    without: u64,
    /// Of which neither MSI-X nor memory is told.
    untold: u64,
}

/// Takes text, part by part.
type Out<'a> = &'a mut dyn FnMut(&str) -> Result<()>;

/// Functions that are alike but for names and addresses.
struct Group {
    /// The index of the first among all maps.
    first: usize,
    /// How many there are.
    count: u64,
    /// The first few names.
    names: Vec<String>,
    row: Row,
}

/// What the table says of a function.
struct Row {
    title: String,
    /// The BAR that there is most to say of.
    bar: Option<u8>,
    /// For each page size.
    words: Vec<&'static str>,
    /// A condition goes with it.
    star: Vec<bool>,
    /// Hot registers that no policy can map: a sentence.
    loud: Option<String>,
    /// Pages of 4 KiB would cure what larger ones do.
    cured: bool,
}

/// Shows all of it.
pub fn draw(source: &Source, pages: &[PageSize], policies: &[MapPolicy], what: What, out: Out<'_>) -> Result<()> {
    let machine = &source.machine;
    let all = what.all || source.only.is_some();
    let each = || -> Box<dyn Iterator<Item = FunctionMap<'_>> + '_> {
        match source.only {
            Some(index) => Box::new(machine.map(index, pages, policies).into_iter()),
            None => Box::new(machine.each_map(pages, policies)),
        }
    };
    let (mut groups, mut left) = (Vec::<Group>::new(), Left::default());
    let mut known: HashMap<String, usize> = HashMap::new();
    for (index, map) in each().enumerate() {
        if !all && !is_of_interest(&map) {
            match map.function.msix {
                MsixFact::Absent => left.without += 1,
                _ => left.untold += 1,
            }
            continue;
        }
        match known.entry(likeness(&map)) {
            Entry::Occupied(entry) => {
                let group = &mut groups[*entry.get()];
                group.count += 1;
                if group.names.len() < NAMES {
                    group.names.push(map.function.name.clone());
                }
            }
            Entry::Vacant(entry) => {
                entry.insert(groups.len());
                groups.push(Group {
                    first: index,
                    count: 1,
                    names: vec![map.function.name.clone()],
                    row: Row::of(&map),
                });
            }
        }
    }
    let alone = groups.len() == 1 && groups[0].count == 1;
    if !groups.is_empty() && !alone {
        out(&table(&groups, pages))?;
    }
    let mut legend = Vec::new();
    if what.details || groups.len() == 1 {
        let mut next = groups.iter().peekable();
        for (index, map) in each().enumerate() {
            let Some(group) = next.next_if(|group| group.first == index) else { continue };
            let mut text = if alone { String::new() } else { "\n".to_owned() };
            text += &function(&map, group, &mut legend);
            out(&text)?;
        }
        if !legend.is_empty() {
            legend.sort();
            let keys = legend.iter().map(|kind| format!("  {}  {}\n", paint(*kind, 3), kind.meaning()));
            out(&format!("\n{}", keys.collect::<String>()))?;
        }
    }
    out(&ending(source, left, what, groups.len()))
}

/// What holds of all of it.
fn ending(source: &Source, left: Left, what: What, groups: usize) -> String {
    let mut text = String::new();
    if source.name == "lspci" || source.name == "sysfs" {
        let auto = match source.machine.auto {
            Some(auto) => format!("The policy auto, the default, is {auto}."),
            None => "The policy auto, the default, is whole where the host isolates interrupts, and carved elsewhere: only the host that opens a \
                     function can tell."
                .to_owned(),
        };
        text += "\n";
        text += &wrapped(&format!("Mapped as Linux since 4.16 allows it. {auto}"), 0);
    }
    for note in &source.machine.notes {
        text += &wrapped(&format!("Note: {note}."), 0);
    }
    for (count, which) in [(left.without, "without MSI-X"), (left.untold, "of which the text tells too little")] {
        match count {
            0 => {}
            1 => text += &wrapped(&format!("One function {which} is left out; --all shows it too."), 0),
            n => {
                text +=
                    &wrapped(&format!("{} functions {which} are left out; --all shows them too.", output::count(n)), 0)
            }
        }
    }
    if !what.details && groups > 1 {
        text += "--details, or the name of one, shows its pages, addresses and sources.\n";
    }
    text
}

/// Whether a function is shown if nothing is asked for: it has MSI-X, or may have.
fn is_of_interest(map: &FunctionMap<'_>) -> bool {
    match map.function.msix {
        MsixFact::Present(_) => true,
        // Most functions without root; those without memory have nothing to map.
        MsixFact::Unknown(_) => map.bars.iter().any(|bar| bar.bar.is_memory()),
        MsixFact::Absent => false,
    }
}

/// The most names that stand for a group.
const NAMES: usize = 8;

/// The same for functions that differ in names and addresses alone.
fn likeness(map: &FunctionMap<'_>) -> String {
    let Function { title, ids, driver, msix, sriov, notify, doorbell_stride, open, notes, .. } = map.function;
    let mut text =
        format!("{title:?}{ids:?}{driver:?}{msix:?}{notify:?}{doorbell_stride:?}{open:?}{notes:?}{:?}", map.problems);
    if let Some(sriov) = sriov {
        let sizes: Vec<_> = sriov.bars.iter().map(|bar| (bar.index, bar.place.size)).collect();
        let _ = write!(text, "{} {} {:?} {sizes:?}", sriov.total, sriov.enabled, sriov.supported_pages);
    }
    for map in &map.bars {
        let bar = &map.bar;
        let _ = write!(
            text,
            "{} {:?} {:?} {} {} {:?}",
            bar.index, bar.kind, bar.place.size, bar.disabled, bar.hidden, bar.unplaced
        );
        for sheet in &map.sheets {
            let _ = write!(text, "{:?} {}", sheet.verdict.kind, sheet.verdict.caution.is_some());
        }
    }
    text
}

/// A verdict in a word.
fn word(verdict: &Verdict) -> &'static str {
    match (verdict.kind, &verdict.hot_out_of_reach) {
        (VerdictKind::Unmappable, Some(_)) => "NONE",
        (VerdictKind::Unmappable, None) => "none",
        (VerdictKind::CarvedTrapsHot, _) => "HOT",
        (VerdictKind::CarvedTraps, _) => "some",
        (VerdictKind::CarvedTrapsOthers, _) => "others",
        (VerdictKind::Unknown, _) => "?",
        (VerdictKind::Alike, _) => "alike",
        (VerdictKind::Ports, _) => "ports",
    }
}

/// The words, the worst first, and what they mean.
const WORDS: [(&str, &str); 8] = [
    ("NONE", "nothing of the BAR can be mapped at its address, and hot registers are in it"),
    ("HOT", "carved traps hot registers; whole maps them"),
    ("none", "nothing of the BAR can be mapped at its address"),
    ("some", "carved traps registers, and which are hot isn't known; whole maps them"),
    ("others", "carved traps registers that aren't hot; whole maps them"),
    ("?", "too little is known to plan it"),
    ("alike", "whole and carved reach the same registers"),
    ("ports", "I/O ports"),
];

impl Row {
    fn of(map: &FunctionMap<'_>) -> Self {
        let rank = |sheet: &Sheet| WORDS.iter().position(|(name, _)| *name == word(&sheet.verdict));
        let worst = |bar: &&BarMap| bar.sheets.iter().filter_map(rank).min();
        let table = |bar: &&BarMap| bar.layout.as_ref().is_none_or(|layout| layout.table.is_none());
        let bar = map.bars.iter().min_by_key(|bar| (worst(bar), table(bar)));
        let sheets = bar.map_or(&[][..], |bar| &bar.sheets);
        let loud = map.bars.iter().find_map(|bar| {
            let shut = bar.sheets.iter().filter(|sheet| sheet.verdict.hot_out_of_reach.is_some());
            let pages: Vec<String> = shut.clone().map(|sheet| sheet.page.to_string()).collect();
            let what = shut.clone().find_map(|sheet| sheet.verdict.hot_out_of_reach.clone())?;
            Some(format!("BAR{} on a host with {} pages: {what}", bar.bar.index, pages.join(" or ")))
        });
        let bad = |sheet: &Sheet| matches!(word(&sheet.verdict), "NONE" | "HOT");
        let small = sheets.iter().find(|sheet| sheet.page == PageSize::K4);
        let cured = small.is_some_and(|small| !matches!(word(&small.verdict), "NONE" | "HOT" | "none" | "?"))
            && sheets.iter().any(bad);
        Self {
            title: map.function.title.clone().unwrap_or_default(),
            bar: bar.map(|bar| bar.bar.index),
            words: sheets.iter().map(|sheet| word(&sheet.verdict)).collect(),
            star: sheets.iter().map(|sheet| sheet.verdict.caution.is_some()).collect(),
            loud,
            cured,
        }
    }
}

/// A line for each kind of function.
fn table(groups: &[Group], pages: &[PageSize]) -> String {
    const NAME: usize = 20;
    let heads: String = pages.iter().map(|page| format!("{:<8}", page.to_string())).collect();
    let mut text = format!("{:<NAME$}  BAR  {}\n", "function", heads.trim_end());
    for group in groups {
        let row = &group.row;
        let mut name = group.names[0].clone();
        if group.count > 1 {
            name += &format!(" +{}", group.count - 1);
        }
        if name.width() > NAME {
            text += &wrapped(&name, 0);
            name.clear();
        }
        let mut line = format!("{name:<NAME$}  {:<3}  ", row.bar.map_or("-".to_owned(), |bar| bar.to_string()));
        for (word, star) in row.words.iter().zip(&row.star) {
            line += &format!("{:<8}", if *star { format!("{word}*") } else { (*word).to_owned() });
        }
        line += &fitting(
            row.title.split_once(": ").map_or(row.title.as_str(), |(_, name)| name),
            WIDTH.saturating_sub(line.width()),
        );
        text += line.trim_end();
        text.push('\n');
    }
    text.push('\n');
    for (name, meaning) in WORDS {
        if groups.iter().any(|group| group.row.words.contains(&name)) {
            text += &wrapped(&format!("  {name:<7} {meaning}"), 10);
        }
    }
    if groups.iter().any(|group| group.row.star.contains(&true)) {
        text += &wrapped("  *       on a condition: that it has its pages to itself, or is given an address", 10);
    }
    if groups.iter().any(|group| group.count > 1) {
        text += &wrapped("  +n      n more that are alike but for their addresses", 10);
    }
    const LOUD: usize = 16;
    let loud: Vec<_> = groups.iter().filter_map(|group| Some((group, group.row.loud.as_ref()?))).collect();
    for (group, what) in loud.iter().take(LOUD) {
        text += &wrapped(&format!("HOT REGISTERS THAT CANNOT BE MAPPED: {} {what}.", group.names[0]), 0);
    }
    if loud.len() > LOUD {
        text += &format!("HOT REGISTERS THAT CANNOT BE MAPPED: {} more kinds of functions.\n", loud.len() - LOUD);
    }
    if groups.iter().any(|group| group.row.cured) {
        text += "A kernel with 4 KiB pages cures what is HOT or NONE with larger ones only.\n";
    }
    text
}

/// Its beginning, where it has no room.
fn fitting(text: &str, room: usize) -> String {
    if text.width() <= room {
        return text.to_owned();
    }
    let mut short = String::new();
    for c in text.chars() {
        if short.width() + 3 > room {
            break;
        }
        short.push(c);
    }
    if room == 0 { short } else { short + "…" }
}

fn function(map: &FunctionMap<'_>, group: &Group, legend: &mut Vec<Kind>) -> String {
    let function = map.function;
    let mut head = function.name.clone();
    let ids = function.ids;
    match (&function.title, ids.vendor, ids.device) {
        (Some(title), ..) => head += &format!("  {title}"),
        (None, Some(vendor), Some(device)) => {
            head += &format!("  {vendor:04x}:{device:04x}");
            head += &ids.class.map(|class| format!(", class {class:04x}")).unwrap_or_default();
        }
        _ => {}
    }
    head += &function.driver.as_ref().map(|driver| format!("  ({driver})")).unwrap_or_default();
    let mut text = wrapped(&head, 2);
    let mut say = |line: String| text += &wrapped(&format!("  {line}"), 4);
    if group.count > 1 {
        let others = group.names[1..].join(", ");
        let more = group.count - group.names.len() as u64;
        let more = if more > 0 { format!(" and {} more", output::count(more)) } else { String::new() };
        say(format!("alike but for their addresses: {others}{more}"));
    }
    if let Some(open) = &function.open {
        let verdict = match open.isolation.verdict {
            Isolated::Isolated => "isolated",
            Isolated::NotIsolated => "not isolated",
            Isolated::Unknown => "perhaps isolated, perhaps not",
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
    if let Some(loud) = &group.row.loud {
        say(format!("HOT REGISTERS THAT CANNOT BE MAPPED: {loud}"));
    }
    for note in &function.notes {
        say(format!("note: {note}"));
    }
    for map in &map.bars {
        text += &bar(map, legend);
    }
    if group.row.cured {
        text += &wrapped("  A kernel with 4 KiB pages cures what larger pages do to hot registers.", 4);
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
    let mut head = format!("  BAR{}  ", bar.index);
    if map.told {
        head += &bar.place.size.map_or("size unknown".to_owned(), output::bytes);
        head += match bar.kind {
            BarKind::Io => " of I/O ports",
            BarKind::Memory { prefetchable: true, .. } => " of memory, prefetchable",
            BarKind::Memory { .. } => " of memory",
        };
    } else {
        head += "not in the text";
    }
    head += &bar.place.address.map(|address| format!(", at {address:#x}")).unwrap_or_default();
    head += &bar.unplaced.map(|unplaced| format!(", {}: it has no address", unplaced.name())).unwrap_or_default();
    if bar.disabled {
        head += ", disabled: decoding is switched off";
    }
    if bar.hidden {
        head += "; its own register reads 0, the address is what the system says";
    }
    let mut text = format!("\n{}", wrapped(&head, 8));
    if let Some(layout) = map.layout.as_ref().filter(|_| draws(map)) {
        text += &strips(map, layout, legend);
    }
    for line in verdicts(&map.sheets) {
        text += &wrapped(&format!("    {line}"), 6);
    }
    if let Some(auto) = map.auto.as_ref().filter(|auto| auto.layout.table.is_some()) {
        let line = format!("    Here ({} pages): {}, since {}", auto.page, policy_name(auto.policy), auto.why);
        text += &wrapped(&line, 6);
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
    let mut text = format!("  pages   policy   0x0{:>width$}  registers\n", format!("{:#x}", layout.size));
    let mut elsewhere = Vec::new();
    for sheet in &map.sheets {
        for (i, plan) in sheet.plans.iter().enumerate() {
            let page = if i == 0 { sheet.page.to_string() } else { String::new() };
            if i == 0 && map.auto.as_ref().is_some_and(|auto| plan.is_hypothetical(auto.page)) {
                elsewhere.push(page.clone());
            }
            let trapped = match trapped_registers(plan) {
                0 if plan.mapped_bytes() == 0 => "nothing mapped".to_owned(),
                0 => "all direct".to_owned(),
                n => format!("{} trapped", output::bytes(n)),
            };
            let painted = painted(&strip, plan, map, legend);
            let _ = writeln!(text, "  {page:<7} {:<8} {painted}  {trapped}", policy_name(plan.policy));
        }
    }
    if !strip.is_to_scale() {
        text += "    (not to scale)\n";
    }
    if !elsewhere.is_empty() {
        text += &format!("    (not here: {} pages)\n", elsewhere.join(", "));
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
        said.extend(
            sheet.verdict.given_own_pages.as_ref().map(|own| format!("With its pages to itself: {}", own.text)),
        );
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_to_fit() {
        assert_eq!(
            (fitting("abcdef", 6), fitting("abcdefg", 6), fitting("abc", 0)),
            ("abcdef".into(), "abcd…".into(), "".into())
        );
    }
}

//! BARs as strips of their pages under each plan.

use crate::mapped::{Bar, Mapped};
use crate::output;
use maud::{Markup, html};
use wholebar_barmap::Kind;

const KINDS: [Kind; 10] = [
    Kind::Hot,
    Kind::Registers,
    Kind::SharedHot,
    Kind::Shared,
    Kind::Table,
    Kind::Pba,
    Kind::TrappedHot,
    Kind::Trapped,
    Kind::UnmappableHot,
    Kind::Unmappable,
];

/// What each plan maps of each BAR, and what the colours mean.
pub fn strips(bars: &[Bar]) -> Markup {
    let runs = || bars.iter().flat_map(|bar| &bar.plans).flat_map(|mapped| &mapped.runs);
    let used = KINDS.iter().filter(|kind| runs().any(|run| run.kind == kind.name()));
    html! {
        @for bar in bars {
            h3 { "BAR" (bar.bar) ", " (output::bytes(bar.size)) (part("MSI-X table", &bar.table)) (part("PBA", &bar.pba)) }
            div class="strips" { @for mapped in &bar.plans { (strip(mapped)) } }
        }
        ul class="legend" { @for kind in used { li { span class={"key " (kind.name())} { (kind.letter()) } (kind.meaning()) } } }
    }
}

fn part(what: &str, range: &Option<std::ops::Range<u64>>) -> String {
    range.as_ref().map_or(String::new(), |range| format!(", {what} from {:#x} to {:#x}", range.start, range.end))
}

fn strip(mapped: &Mapped) -> Markup {
    let letter = |name: &str| KINDS.iter().find(|kind| kind.name() == name).map_or("?", |kind| kind.letter());
    let spoken: Vec<_> =
        mapped.runs.iter().map(|run| format!("{:#x} to {:#x} {}", run.start, run.end, run.kind)).collect();
    html! {
        span class="plan" { (mapped.plan) }
        div class="strip" role="img" aria-label=(spoken.join(", ")) {
            @for run in &mapped.runs {
                span class=(run.kind) style=(format!("flex:{} 1 1.2rem", run.end.saturating_sub(run.start))) { (letter(&run.kind)) }
            }
        }
    }
}

//! What reports as HTML are made of: one file with all it needs, in light and dark, for wide and narrow windows. No script, nothing fetched.

pub mod plot;
mod strips;

pub use strips::strips;

use crate::host::Host;
use crate::origin::Origin;
use crate::output;
use crate::report::Run;
use anyhow::Result;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use plot::{Line, LineStyle, Lines};

const STYLE: &str = include_str!("style.css");

/// A whole page.
pub fn page(title: &str, body: &Markup) -> String {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                style { (PreEscaped(plot::palette())) (PreEscaped(STYLE)) }
            }
            body { main { (body) } }
        }
    }
    .into_string()
}

/// What the figures are of, in a box that can't be overlooked.
pub fn origin(origin: Origin, why: Option<&str>) -> Markup {
    let class = if matches!(origin, Origin::Hardware | Origin::Kernel) { "origin" } else { "origin software" };
    html! {
        p class=(class) {
            strong { (origin.name()) }
            @if let Some(caveat) = origin.caveat() { ": " (caveat) }
            @if let Some(why) = why { " (" (why) ")" }
            "."
        }
    }
}

/// Names and values.
pub fn facts(facts: &[(&str, String)]) -> Markup {
    html! {
        dl { @for (name, value) in facts { dt { (name) } dd { (value) } } }
    }
}

/// The facts of a machine.
pub fn host_facts(host: &Host) -> Vec<(&'static str, String)> {
    let hugepages = match host.hugepages.total {
        0 => "none".to_owned(),
        n => format!("{n} of {}, {} free", output::bytes(host.hugepages.size), host.hugepages.free),
    };
    vec![
        ("pages", output::bytes(host.page_size)),
        ("kernel", format!("{} {}", host.kernel, host.arch)),
        ("CPU", format!("{}, {} cores for us", host.cpu, host.cores)),
        ("hugepages", hugepages),
        ("load", host.load.map_or("unknown".to_owned(), |load| format!("{load:.2} tasks, over the minute before"))),
    ]
}

/// A table; columns whose title begins with `>` are numbers.
pub fn table(caption: &str, columns: &[impl AsRef<str>], rows: &[Vec<String>]) -> Markup {
    let class = |i: usize| if columns[i].as_ref().starts_with('>') { "number" } else { "" };
    html! {
        p class="caption" { (caption) }
        div class="wide" tabindex="0" {
            table {
                thead { tr { @for (i, title) in columns.iter().enumerate() {
                    th scope="col" class=(class(i)) { (title.as_ref().trim_start_matches('>')) }
                } } }
                tbody { @for row in rows { tr { @for (i, cell) in row.iter().enumerate() { td class=(class(i)) { (cell) } } } } }
            }
        }
    }
}

/// A plot, and what is said of it.
pub fn figure(svg: &str, caption: &str) -> Markup {
    html! { figure { (PreEscaped(svg)) figcaption { (caption) } } }
}

/// The look of a plan's lines: the same in all plots.
pub fn line_style(run: &Run) -> LineStyle {
    match (run.policy.as_ref(), run.page_size) {
        ("whole", _) => LineStyle(0),
        ("trapped", _) => LineStyle(4),
        (_, 4096) => LineStyle(1),
        (_, 16384) => LineStyle(2),
        _ => LineStyle(3),
    }
}

/// Lines of a value over the categories that runs fall into, one line a plan.
pub fn lines<'r, K: PartialEq>(
    runs: impl Iterator<Item = &'r Run>,
    categories: &[K],
    category: impl Fn(&Run) -> K,
    value: impl Fn(&Run) -> (f64, f64, f64),
) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for run in runs {
        let Some(at) = categories.iter().position(|c| *c == category(run)) else { continue };
        let (y, low, high) = value(run);
        // A ratio to a rate of nothing.
        if ![y, low, high].iter().all(|n| n.is_finite()) {
            continue;
        }
        let name = run.plan();
        let line = match lines.iter_mut().find(|line| line.name == name) {
            Some(line) => line,
            None => {
                lines.push(Line { name, line_style: line_style(run), points: Vec::new() });
                let last = lines.len() - 1;
                &mut lines[last]
            }
        };
        line.points.push((at, y, low, high));
    }
    lines
}

/// What rates are written in: how many of them are one, and what that is called.
pub fn rate_unit(runs: &[Run]) -> (f64, &'static str) {
    match runs.iter().map(|run| run.spread().1).fold(0.0, f64::max) {
        most if most >= 1e6 => (1e6, "million reads/s"),
        most if most >= 1e3 => (1e3, "thousand reads/s"),
        _ => (1.0, "reads/s"),
    }
}

/// A rate in such units, with its lowest and its highest.
pub fn rate(run: &Run, unit: f64) -> (f64, f64, f64) {
    let (low, high) = run.spread();
    (run.iops / unit, low / unit, high / unit)
}

/// Rates over queue depth, of the runs with one batch (each depth's own where `None`).
pub fn rates_by_depth(title: &str, runs: &[Run], batch: Option<usize>) -> Result<String> {
    let chosen = || runs.iter().filter(|run| batch.is_none_or(|batch| run.batch == batch));
    let depths = distinct(chosen().map(|run| run.queue_depth));
    let (unit, name) = rate_unit(runs);
    let lines = lines(chosen(), &depths, |run| run.queue_depth, |run| rate(run, unit));
    plot::lines(&[Lines {
        title: title.to_owned(),
        x: "queue depth, commands",
        categories: depths.iter().map(usize::to_string).collect(),
        y: name.to_owned(),
        top: plot::top(&lines),
        scale: plot::Scale::Linear,
        lines,
        level: None,
    }])
}

/// Each once, from the least up.
pub fn distinct(numbers: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut all: Vec<_> = numbers.collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// A table of runs, with the ratio to whole at the same depth and batch.
pub fn runs_table(caption: &str, runs: &[Run]) -> Markup {
    let whole =
        |of: &Run| runs.iter().find(|r| r.policy == "whole" && (r.queue_depth, r.batch) == (of.queue_depth, of.batch));
    let columns = [
        ">depth",
        ">batch",
        "BARs",
        ">IOPS",
        ">lowest",
        ">highest",
        ">ratio",
        ">p50",
        ">p99",
        ">direct",
        ">trapped",
        ">left out",
    ];
    let rows: Vec<_> = runs
        .iter()
        .map(|run| {
            let (low, high) = run.spread();
            vec![
                run.queue_depth.to_string(),
                run.batch.to_string(),
                run.plan(),
                output::rate(run.iops),
                output::rate(low),
                output::rate(high),
                whole(run).map_or("-".to_owned(), |whole| run.ratio(whole)),
                output::nanos(run.latency_ns.p50),
                output::nanos(run.latency_ns.p99),
                output::rate(run.doorbells.direct as f64),
                output::rate(run.doorbells.trapped as f64),
                run.dropped().to_string(),
            ]
        })
        .collect();
    table(caption, &columns, &rows)
}

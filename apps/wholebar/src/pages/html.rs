//! The pages of `wholebar pages`: of one host, and of several side by side.

use super::comparison::{Comparison, Named, POLICIES};
use super::memory::Memory;
use super::report::{MATTERS, Pages, crossover_note, workload};
use crate::html::plot::{self, LineStyle, Lines, Times};
use crate::html::{
    distinct, facts, figure, host_facts, line_style, lines, origin, page, rate, rate_unit, rates_by_depth, runs_table,
    strips, table,
};
use crate::output;
use crate::report::{self, Run};
use anyhow::Result;
use maud::{Markup, html};

/// A report as a page.
///
/// # Errors
/// A plot that cannot be drawn.
pub fn pages(report: &Pages) -> Result<String> {
    let device = &report.device;
    let title = format!("What pages cost: {} with {} pages", report.target, output::bytes(report.host_pages()));
    let mut host = host_facts(&report.host);
    if let Some(why) = &report.virtual_machine {
        host.push(("virtual machine", why.clone()));
    }
    let batches = distinct(report.runs.iter().map(|run| run.batch));
    let by_depth = batches
        .iter()
        .map(|batch| {
            rates_by_depth(&format!("{}, {}", workload(report), batch_name(*batch)), &report.runs, Some(*batch))
        })
        .collect::<Result<Vec<_>>>()?;
    let body = html! {
        h1 { (title) }
        (origin(device.origin, Some(&device.origin_why)))
        p class="lead" { (report.summary) }
        @if report.interrupted { p { strong { "It was interrupted: this is what was measured until then." } } }
        @if !report.runs.is_empty() {
            h2 { "Reads" }
            div class="plots" {
                @for plot in &by_depth { (figure(plot, RATE_CAPTION)) }
                @if report.is_trusted() { (figure(&ratio_plot(report, None)?, &ratio_caption())) }
                (figure(&latency_plot(report)?, LATENCY_CAPTION))
            }
            (crossover_table(report))
            p { (crossover_note()) }
            (runs_table("ratio: to whole at the same depth and batch; direct, trapped: doorbells rung; left out: rounds that lost a core", &report.runs))
        }
        h2 { "One access of a register" }
        div class="plots" { (figure(&access_plot(report)?, ACCESS_CAPTION)) }
        (access_table(report))
        @if let Some(memory) = &report.memory {
            h2 { "Memory" }
            (table("What is pinned, by the host's pages", &Memory::PINNED, &memory.pinned_rows()))
            (table("Measured on this host's pages", &Memory::MEASURED, &memory.measured_rows()))
            p { (memory.note(&report.host)) }
        }
        h2 { "Host and device" }
        (facts(&[host, device_facts(report)].concat()))
        (strips(&device.bars))
        h2 { "How it was measured" }
        (method(report))
        footer { "wholebar " (report.version) ", " (report.schema) ", " (format!("{:.0} s", report.seconds)) }
    };
    Ok(page(&title, &body))
}

/// Several reports as a page.
///
/// # Errors
/// A plot that cannot be drawn.
pub fn comparison(comparison: &Comparison) -> Result<String> {
    let names: Vec<_> = comparison.hosts.iter().map(|host| host.name.as_str()).collect();
    let title = format!("What pages cost: {}", names.join(" against "));
    let rates = rate_panels(comparison);
    let body = html! {
        h1 { (title) }
        @for (name, why) in comparison.origins() { p class="origin software" { strong { (name) } ": " (why) } }
        @if !comparison.differences.is_empty() {
            p { strong { "Not comparable, and compared anyway:" } }
            ul { @for difference in &comparison.differences { li { (difference) } } }
        }
        p class="lead" { (comparison.summary) }
        div class="hosts" {
            @for Named { name, report } in &comparison.hosts {
                section {
                    h2 { (name) }
                    p { (report.summary) }
                    (facts(&[host_facts(&report.host), device_facts(report)].concat()))
                    (strips(&report.device.bars))
                }
            }
        }
        h2 { "Reads at queue depths of 1 to 128, a doorbell each" }
        div class="plots" { @for panel in &rates { (figure(&plot::lines(std::slice::from_ref(panel))?, RATE_CAPTION)) } }
        h2 { "What batches make of it" }
        div class="plots" {
            @for Named { name, report } in comparison.hosts.iter().filter(|host| host.report.is_trusted()) { (figure(&ratio_plot(report, Some(name))?, &ratio_caption())) }
        }
        p { (crossover_note()) }
        @for Named { name, report } in &comparison.hosts { h3 { (name) } (crossover_table(report)) }
        (table("Random reads a second, and their ratio to whole at the same depth and batch", &Comparison::RATES, &comparison.rate_rows()))
        h2 { "One access of a register" }
        (table("medians", &Comparison::REGISTERS, &comparison.register_rows()))
        h2 { "How it was measured" }
        @for Named { name, report } in &comparison.hosts { h3 { (name) } (method(report)) }
        footer { "wholebar " (env!("CARGO_PKG_VERSION")) }
    };
    Ok(page(&title, &body))
}

/// The figure of a comparison, to stand alone.
///
/// # Errors
/// A plot that cannot be drawn.
pub fn comparison_figure(comparison: &Comparison) -> Result<String> {
    Ok(plot::standalone(&plot::lines(&rate_panels(comparison))?))
}

const RATE_CAPTION: &str = "The median of the rounds that count; error bars from the lowest to the highest of them. Lines lie side by side, so that equal ones are seen.";
const LATENCY_CAPTION: &str =
    "Bar: 50th to 90th percentile; line: from the least to the 99th; mark: the median. Queue depth 1.";
const ACCESS_CAPTION: &str = "Bar: 10th to 90th percentile; line: from the least to the 99th; mark: the median.";

fn batch_name(batch: usize) -> String {
    if batch == 1 { "a doorbell each".to_owned() } else { format!("batches of {batch}") }
}

fn ratio_caption() -> String {
    format!(
        "Error bars: the lowest and the highest round, against the median of whole. The line is at {:.0} %.",
        (1.0 - MATTERS) * 100.0
    )
}

fn device_facts(report: &Pages) -> Vec<(&'static str, String)> {
    let device = &report.device;
    vec![
        ("device", format!("{} ({}), firmware {}", device.model, device.ids, device.firmware)),
        ("subsystem", device.subsystem.clone().unwrap_or("none".to_owned())),
        ("its pages", output::bytes(report.host_pages())),
        ("BAR0 by default", format!("{}: {}", device.auto, device.auto_why)),
    ]
}

fn access_plot(report: &Pages) -> Result<String> {
    let line_style = |how: &str| if how == "direct" { LineStyle(0) } else { LineStyle(4) };
    let rows = report.registers.accesses.iter().map(|a| (format!("{} {}", a.what, a.how), line_style(&a.how), a.ns));
    plot::times(&Times { title: "Time of one access", x: "time (logarithmic)", rows: rows.collect() })
}

fn access_table(report: &Pages) -> Markup {
    let rows: Vec<_> = report
        .registers
        .accesses
        .iter()
        .map(|a| {
            let mut row = vec![format!("{} {}", a.what, a.register), a.how.clone()];
            row.extend([a.ns.min, a.ns.p10, a.ns.p50, a.ns.p90, a.ns.p99, a.ns.p99_9, a.ns.max].map(output::time));
            row.extend([output::count(a.samples), a.per_sample.to_string(), a.dropped.to_string()]);
            row
        })
        .collect();
    let columns = [
        "access",
        "how",
        ">least",
        ">p10",
        ">p50",
        ">p90",
        ">p99",
        ">p99.9",
        ">most",
        ">samples",
        ">accesses each",
        ">rounds left out",
    ];
    table("Time of one access of a disabled controller's registers", &columns, &rows)
}

fn latency_plot(report: &Pages) -> Result<String> {
    let shallow = report.runs.iter().filter(|run| (run.queue_depth, run.batch) == (1, 1));
    let rows = shallow.map(|run| {
        let p = run.latency_ns;
        let [min, p50, p90, p99, max, mean] = [p.min, p.p50, p.p90, p.p99, p.max, p.mean].map(|ns| ns as f64);
        (
            run.plan(),
            line_style(run),
            report::Quantiles { mean, min, p10: p50, p50, p90, p99, p99_9: p.p99_9 as f64, max },
        )
    });
    plot::times(&Times { title: "Latency of a read at queue depth 1", x: "time (logarithmic)", rows: rows.collect() })
}

/// Rates against whole's over the batch, at the largest depth.
fn ratio_plot(report: &Pages, name: Option<&str>) -> Result<String> {
    let depth = report.runs.iter().map(|run| run.queue_depth).max().unwrap_or(0);
    let deep = || report.runs.iter().filter(|run| run.queue_depth == depth && run.is_trusted());
    let batches = distinct(deep().map(|run| run.batch));
    let percent = |run: &Run| {
        let whole = report.run("whole", depth, run.batch).filter(|run| run.is_trusted());
        let whole = whole.map_or(f64::NAN, |whole| whole.iops / 100.0);
        let (low, high) = run.spread();
        (run.iops / whole, low / whole, high / whole)
    };
    let name = name.map_or(String::new(), |name| format!("{name}: "));
    let lines = lines(deep(), &batches, |run| run.batch, percent);
    let title = format!("{name}against whole, queue depth {depth}");
    plot::lines(&[Lines {
        title,
        x: "batch, commands a doorbell",
        categories: batches.iter().map(usize::to_string).collect(),
        y: "% of whole's rate".to_owned(),
        top: plot::top(&lines),
        scale: plot::Scale::Linear,
        lines,
        level: Some((1.0 - MATTERS) * 100.0),
    }])
}

fn crossover_table(report: &Pages) -> Markup {
    let rows: Vec<_> = report
        .crossovers
        .iter()
        .map(|c| vec![c.plan.clone(), c.depth.to_string(), output::time(c.trap_ns), c.text()])
        .collect();
    html! {
        @if rows.is_empty() { p { "No crossover: no plan traps doorbells, or none that does can be trusted." } }
        @else { (table("From which batch on trapping does not matter", &["BARs", ">depth", ">trapping a batch", ">batch"], &rows)) }
    }
}

/// A panel a host, with one scale: whole, carved on its pages, and trapped over the depth.
fn rate_panels(comparison: &Comparison) -> Vec<Lines> {
    let all: Vec<Run> = comparison.hosts.iter().flat_map(|host| host.report.runs.clone()).collect();
    let (unit, name) = rate_unit(&all);
    let mut panels: Vec<_> = comparison.hosts.iter().map(|host| rate_panel(host, unit, name)).collect();
    let top = panels.iter().map(|panel| panel.top).fold(0.0, f64::max);
    panels.iter_mut().for_each(|panel| panel.top = top);
    panels
}

fn rate_panel(host: &Named, unit: f64, unit_name: &str) -> Lines {
    let report = &host.report;
    let depths = distinct(report.runs.iter().map(|run| run.queue_depth));
    let runs = POLICIES.iter().flat_map(|policy| depths.iter().filter_map(|depth| report.run(policy, *depth, 1)));
    let lines = lines(runs, &depths, |run| run.queue_depth, |run| rate(run, unit));
    Lines {
        title: format!("{}, {}", host.name, report.device.origin.name()),
        x: "queue depth, commands",
        categories: depths.iter().map(usize::to_string).collect(),
        y: unit_name.to_owned(),
        top: plot::top(&lines),
        scale: plot::Scale::Linear,
        lines,
        level: None,
    }
}

fn method(report: &Pages) -> Markup {
    let rounds = report.runs.iter().map(|run| run.rounds.len()).max().unwrap_or(0);
    html! {
        p {
            "Register accesses: the controller was disabled. Written was AQA, which a disabled controller only keeps, and which got its old value back; \
             read was CSTS. A doorbell is not written: the value that it has already would be an error. A sample is the mean of so many accesses in a row that \
             they take 32 times as long as a look at the clock; that look, " (output::time(report.registers.clock_ns)) ", was taken off."
            @if let Some(why) = &report.registers.no_direct { " There are no stores and loads: " (why) "." }
        }
        p {
            "Reads: " (workload(report)) " of one queue by one polling thread, " (rounds) " rounds, in which all plans and loads take turns, every other round \
             backwards. Shown is the round with the median rate. A round in which the driver's or a model's thread had less than 90 % of its core does not count, \
             unless no round of that case is better."
        }
        p { (report.notes()) }
    }
}

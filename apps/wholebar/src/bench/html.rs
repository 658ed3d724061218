//! The page of `wholebar bench`.

use crate::html::plot::{self, Line, LineStyle, Lines};
use crate::html::{distinct, facts, figure, host_facts, origin, page, rates_by_depth, runs_table, strips, table};
use crate::mapped::Bar;
use crate::output;
use crate::report::{self, PacketRun, Packets, Report, Run};
use anyhow::Result;
use maud::{Markup, html};

/// A report of `wholebar bench` as a page, of a device with these BARs.
///
/// # Errors
/// A plot that cannot be drawn.
pub fn bench(report: &Report, bars: &[Bar], shared_cores: bool) -> Result<String> {
    let title = "What mapping whole BARs is worth";
    let lead = lead(&report.runs);
    let body = html! {
        h1 { (title) }
        (origin(report.device, None))
        @if !lead.is_empty() { p class="lead" { (lead) } }
        @if !report.runs.is_empty() { (reads(report, shared_cores)?) }
        @if let Some(packets) = &report.packets { (packets_of(packets, shared_cores)?) }
        h2 { "Device: " (report.target) }
        (strips(bars))
        h2 { "Host" }
        (facts(&host_facts(&report.host)))
        footer { "wholebar " (report.version) ", " (report.schema) }
    };
    Ok(page(title, &body))
}

/// What the reads come to, in a sentence a depth.
fn lead(runs: &[Run]) -> String {
    let depths = distinct(runs.iter().map(|run| run.queue_depth));
    let of = |depth: &usize| {
        let at = |policy| runs.iter().find(|run| run.queue_depth == *depth && run.policy == policy);
        let (whole, carved) = (at("whole")?, at("carved")?);
        let ratio = carved.against(whole)?;
        let (rate, plan) = (output::rate(whole.iops), carved.plan());
        let share =
            if ratio.is_same() { "as much, within noise".to_owned() } else { format!("{:.2} of that", ratio.median) };
        Some(format!(
            "At queue depth {depth} a BAR that is mapped whole gives {rate} reads a second, and {plan}, {share}. "
        ))
    };
    [depths.first(), depths.last()].into_iter().flatten().filter_map(of).collect()
}

fn reads(report: &Report, shared_cores: bool) -> Result<Markup> {
    let plot = rates_by_depth("4 KiB random reads, one queue", &report.runs, None)?;
    let batch = report.runs.iter().map(|run| run.batch).max().unwrap_or(0);
    Ok(html! {
        h2 { "Reads" }
        p { strong { (report::warning(report.runs.iter().map(Run::is_trusted), shared_cores)) } }
        div class="plots" {
            (figure(&plot, &format!(
                "The median of the rounds that count; error bars from the lowest to the highest of them. Batches of up to {batch}."
            )))
        }
        (runs_table("ratio: to whole at the same depth; direct, trapped: doorbells rung in the measured time", &report.runs))
        p { (report::states(report.runs.iter().flat_map(Run::samples))) (report::cores(report.runs.iter().flat_map(Run::cpus), shared_cores)) }
    })
}

fn packets_of(packets: &Packets, shared_cores: bool) -> Result<Markup> {
    let bursts = distinct(packets.runs.iter().map(|run| run.burst));
    let mut lines: Vec<Line> = Vec::new();
    for run in &packets.runs {
        let Some(at) = bursts.iter().position(|burst| *burst == run.burst) else { continue };
        let name = format!("{}, {}", run.ring, run.policy);
        let line_style = match (&*run.ring, &*run.policy) {
            ("split", "whole") => LineStyle(0),
            ("split", _) => LineStyle(4),
            (_, "whole") => LineStyle(1),
            _ => LineStyle(3),
        };
        let (low, high) = run.spread();
        let point = (at, run.pps / 1e6, low / 1e6, high / 1e6);
        match lines.iter_mut().find(|line| line.name == name) {
            Some(line) => line.points.push(point),
            None => lines.push(Line { name, line_style, points: vec![point] }),
        }
    }
    let plot = plot::lines(&[Lines {
        title: format!("{}-byte packets, one way, one queue", packets.size),
        x: "packets of a burst",
        categories: bursts.iter().map(usize::to_string).collect(),
        y: "million packets/s".to_owned(),
        top: plot::top(&lines),
        scale: plot::Scale::Linear,
        lines,
        level: None,
    }])?;
    let caption = "ratio: to whole with the same ring and burst; cycles: of the time stamp counter, for each packet, which one core sends and receives; \
         direct, trapped: doorbells rung at both ends in the measured time";
    Ok(html! {
        h2 { "Packets: " (packets.target) }
        p { strong { (report::warning(packets.runs.iter().map(PacketRun::is_trusted), shared_cores)) } }
        (origin(packets.device, None))
        div class="plots" {
            (figure(&plot, "The median of the rounds that count; error bars from the lowest to the highest of them."))
        }
        (table(caption, &report::PACKET_COLUMNS, &report::packet_rows(&packets.runs)))
        p { (report::states(packets.runs.iter().flat_map(PacketRun::samples))) (report::cores(packets.runs.iter().flat_map(PacketRun::cpus), shared_cores)) }
    })
}

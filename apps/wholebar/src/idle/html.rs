//! The page of `wholebar idle`.

use super::report::{Report, Run, categories, offered};
use crate::html::plot::{self, Line, LineStyle, Lines, Scale};
use crate::html::{facts, figure, host_facts, origin, page, table};
use anyhow::Result;
use maud::{Markup, html};

/// The policies' looks, and that of an eventfd.
const LINE_STYLES: [(&str, LineStyle); 3] = [("poll", LineStyle(0)), ("hybrid", LineStyle(3)), ("sleep", LineStyle(1))];
const EVENTFD: LineStyle = LineStyle(4);

/// Reports of devices, on one machine, as a page.
///
/// # Errors
/// A plot that cannot be drawn.
pub fn idle(reports: &[Report]) -> Result<String> {
    let title = match reports {
        [report] => format!("What polling costs and what sleeping costs: {}", report.target),
        _ => "What polling costs and what sleeping costs".to_owned(),
    };
    let devices = reports.iter().map(|report| device(report, reports.len() > 1)).collect::<Result<Vec<_>>>()?;
    let body = html! {
        h1 { (title) }
        @for device in &devices { (device) }
        @if let Some(report) = reports.first() {
            h2 { "Host" }
            (facts(&host_facts(&report.host)))
            footer { "wholebar " (report.version) ", " (report.schema) }
        }
    };
    Ok(page(&title, &body))
}

fn device(report: &Report, named: bool) -> Result<Markup> {
    let cpu = |run: &Run| run.cpu.driver.map(|share| (share * 100.0, share * 100.0));
    let cpu = lines(report, cpu);
    let latency = |run: &Run| (run.back > 0).then_some((run.latency_ns.p50 as f64, run.latency_ns.p99 as f64));
    let mut latency = lines(report, latency);
    let eventfds = report.eventfds.iter().filter_map(|eventfd| {
        let at = categories().iter().position(|load| *load == Some(eventfd.offered))?;
        let (p50, p99) = (eventfd.latency_ns.p50 as f64, eventfd.latency_ns.p99 as f64);
        Some((at, p50, p50, p99))
    });
    latency.push(Line { name: "eventfd".to_owned(), line_style: EVENTFD, points: eventfds.collect() });
    let plot = |title: &str, y: &str, top, scale, lines| {
        plot::lines(&[Lines {
            title: title.to_owned(),
            x: "offered a second",
            categories: categories().into_iter().map(offered).collect(),
            y: y.to_owned(),
            top,
            scale,
            lines,
            level: None,
        }])
    };
    let top = plot::top(&latency);
    Ok(html! {
        @if named { h2 { (report.target) } }
        (origin(report.device, None))
        @if report.shares_cores { p { strong { "Driver and model shared one core: these figures are of the scheduler." } } }
        p class="lead" { (report.lead()) }
        div class="plots" {
            (figure(&plot("CPU of the polling thread", "% of a core", 100.0, Scale::Linear, cpu)?, "Over the load that is offered; max is saturation."))
            (figure(&plot("Latency", "", top, Scale::Nanos, latency)?, "Medians; lines reach up to the 99th percentile. eventfd: how long one alone takes to wake a thread."))
        }
        (table(&format!("{}, at most {} under way", report.trip, report.depth), &Report::COLUMNS, &report.rows()))
        p { (report.legend()) }
        @for caveat in report.caveats() { p { (caveat) } }
    })
}

/// A line a policy: of each run the value, and how far up it reaches.
fn lines(report: &Report, value: impl Fn(&Run) -> Option<(f64, f64)>) -> Vec<Line> {
    let of = |policy: &str| {
        let points = categories().into_iter().enumerate().filter_map(|(at, load)| {
            let (y, high) = value(report.run(policy, load)?)?;
            Some((at, y, y, high))
        });
        points.collect()
    };
    LINE_STYLES.map(|(policy, line_style)| Line { name: policy.to_owned(), line_style, points: of(policy) }).into()
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;

    #[test]
    fn a_page_has_its_figure_first_and_the_machine_last() {
        for reports in [vec![report()], vec![report(), report()]] {
            let page = super::idle(&reports).unwrap();
            let at = |what: &str| page.find(what).unwrap_or_else(|| panic!("{what} in {page}"));
            assert!(at("At 100 a second") < at("CPU of the polling thread") && at("p99.9") < at(">Host<"), "{page}");
            assert_eq!(page.matches("<svg").count(), 2 * reports.len());
            assert!(page.contains("100 ms") && page.contains("10 us"), "decades of the latency: {page}");
        }
    }
}

//! The page of `wholebar bench`.

use super::{facts, figure, host_facts, origin, page, rates_by_depth, runs_table, strips};
use crate::mapped::Bar;
use crate::report::{self, Report};
use anyhow::Result;
use maud::html;

/// A report of `wholebar bench` as a page, of a device with these BARs.
///
/// # Errors
/// A plot that cannot be drawn.
pub fn bench(report: &Report, bars: &[Bar], shared_cores: bool) -> Result<String> {
    let title = format!("What mapping whole BARs is worth: {}", report.target);
    let plot = rates_by_depth("4 KiB random reads, one queue", &report.runs, None)?;
    let batch = report.runs.iter().map(|run| run.batch).max().unwrap_or(0);
    let body = html! {
        h1 { (title) }
        (origin(report.device, None))
        h2 { "Host" }
        (facts(&host_facts(&report.host)))
        h2 { "Device" }
        (strips(bars))
        h2 { "Reads" }
        div class="plots" {
            (figure(&plot, &format!(
                "The median of the rounds that count; error bars from the lowest to the highest of them. Batches of up to {batch}."
            )))
        }
        (runs_table("ratio: to whole at the same depth; direct, trapped: doorbells rung in the measured time", &report.runs))
        p { (report::cores(&report.runs, shared_cores)) }
        footer { "wholebar " (report.version) ", " (report.schema) }
    };
    Ok(page(&title, &body))
}

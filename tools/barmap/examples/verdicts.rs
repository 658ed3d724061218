//! What 64 KiB pages would cost the devices of a machine, from the text of `lspci -vv`:
//!
//!     lspci -vv | cargo run -p wholebar-barmap --example verdicts

use std::io::Write;
use wholebar_barmap::{Strip, lspci};
use wholebar_core::PageSize;
use wholebar_core::bar::MapPolicy;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut out = std::io::stdout();
    let machine = lspci::read(std::io::stdin().lock())?;
    for map in machine.maps(&[PageSize::K64], &[MapPolicy::Whole, MapPolicy::Carved]) {
        for bar in map.bars.iter().filter(|bar| bar.layout.as_ref().is_some_and(|layout| layout.table.is_some())) {
            for sheet in &bar.sheets {
                writeln!(out, "{} BAR{}: {}", map.function.name, bar.bar.index, sheet.verdict.text)?;
                for plan in &sheet.plans {
                    let cells = Strip::of(plan.layout.size).cells(plan, &bar.hot);
                    let strip: String = cells.iter().map(|(kind, columns)| kind.letter().repeat(*columns)).collect();
                    writeln!(out, "  {strip}  {:?}", plan.policy)?;
                }
            }
        }
    }
    Ok(())
}

//! What of an NVMe drive's BAR0 is mapped on hosts with pages of 4, 16 and 64 KiB: `cargo run -p wholebar-core --example plan`
//!
//! The layout is that of many drives: doorbells at 0x1000, the MSI-X table at 0x2000, the pending bits (PBA) at 0x3000. It follows the rule
//! that the table shares no 4 KiB with registers, and still shares a page with the doorbells where pages are larger.

use std::io::Write;
use wholebar_core::PageSize;
use wholebar_core::bar::{Access, BarLayout, MapPolicy, plan};
use wholebar_core::pci::{Isolation, RegionCap, RegionInfo};

const DOORBELL: u64 = 0x1000;

fn main() -> std::io::Result<()> {
    let mut out = std::io::stdout();
    let layout = BarLayout {
        bar: 0,
        size: 0x4000,
        table: Some(0x2000..0x2410),
        pba: Some(0x3000..0x3010),
        registers: vec![0..0x40, DOORBELL..DOORBELL + 0x400],
    };
    let region =
        RegionInfo { size: layout.size, mappable: true, caps: vec![RegionCap::MsixMappable], ..RegionInfo::default() };
    for policy in [MapPolicy::Auto, MapPolicy::Carved] {
        for page in [PageSize::K4, PageSize::K16, PageSize::K64] {
            let plan = plan(&layout, &region, page, &Isolation::by_construction(), policy);
            writeln!(out, "{policy:?} with pages of {page}: {:?}, {}", plan.policy, plan.why)?;
            for span in &plan.spans {
                writeln!(
                    out,
                    "  {:#06x} to {:#06x}  {:?}: {:?}",
                    span.range.start, span.range.end, span.access, span.why
                )?;
            }
            match plan.access(DOORBELL) {
                Some(Access::Direct) => writeln!(out, "  a doorbell is one store\n")?,
                _ => writeln!(out, "  a doorbell is a system call\n")?,
            }
        }
    }
    Ok(())
}

//! What plans map of a device's BARs, as a report keeps it, to be drawn later.

use crate::rounds::Plan;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use wholebar::Result;
use wholebar::bar::{BarOptions, layouts, plan_of};
use wholebar::pci::PciDevice;
use wholebar_barmap::{Function, HotRegisters, runs};

/// A BAR, and what is mapped of it. Offsets and sizes are bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bar {
    /// 0 to 5.
    pub bar: u8,
    /// Bytes.
    pub size: u64,
    /// The MSI-X table, if it is in this one.
    pub table: Option<Range<u64>>,
    /// The PBA, if it is in this one.
    pub pba: Option<Range<u64>>,
    /// What is mapped under each plan.
    pub plans: Vec<Mapped>,
}

/// What is mapped under one plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mapped {
    /// The plan.
    pub plan: String,
    /// Runs of like pages, in order.
    pub runs: Vec<Run>,
}

/// Like pages, one after the other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Where they begin.
    pub start: u64,
    /// Where they end.
    pub end: u64,
    /// What they are, as [`wholebar_barmap::Kind::name`] says it.
    pub kind: String,
}

impl Bar {
    /// The BARs of a device whose driver names `registers` of BAR0.
    ///
    /// # Errors
    /// Those of reading the device's configuration space, and of one that makes no sense.
    pub fn all(device: &dyn PciDevice, plans: &[Plan], registers: &[Range<u64>]) -> Result<Vec<Self>> {
        let hot = HotRegisters::of(&Function::of_device(device)?);
        let bar = |layout: wholebar::bar::BarLayout| {
            let hot = hot.in_bar(layout.bar);
            let registers = if layout.bar == 0 { registers } else { &[] };
            let mapped = |plan: &Plan| {
                let options = BarOptions { policy: plan.policy, page: plan.page, registers };
                let runs = runs(&plan_of(device, layout.bar, options)?, &hot);
                let run = |run: &wholebar_barmap::Run| {
                    let (Range { start, end }, kind) = (run.range.clone(), run.kind.name().to_owned());
                    Run { start, end, kind }
                };
                Ok(Mapped { plan: plan.to_string(), runs: runs.iter().map(run).collect() })
            };
            let plans = plans.iter().map(mapped).collect::<Result<_>>()?;
            Ok(Self { bar: layout.bar, size: layout.size, table: layout.table, pba: layout.pba, plans })
        };
        layouts(device)?.into_iter().map(bar).collect()
    }
}

//! No command that is lost or completes twice, over all kinds of faults and as many commands as one likes:
//!
//! ```sh
//! cargo run --release -p wholebar-tests --example nvme_faults -- 1000000
//! cargo run --release -p wholebar-tests --example nvme_faults -- 1000000 7
//! ```
//!
//! The arguments are how many commands, shared out evenly among the kinds, and the seed of what is asked and what goes wrong. An NVMe model in
//! this process; one that is gone for good is opened anew.

use anyhow::{Context, Result, ensure};
use std::io::Write;
use std::time::Instant;
use wholebar_tests::in_process;
use wholebar_tests::nvme_accounting::{KINDS, Total, impatient, total};

fn main() -> Result<()> {
    let mut out = std::io::stdout();
    let mut args = std::env::args().skip(1);
    let mut number = |what: &'static str, default: u64| args.next().map_or(Ok(default), |n| n.parse()).context(what);
    let count = number("the first argument is a number of commands", 1_000_000)?;
    let seed = number("the second argument is a seed", 1)?;
    let (mut all, began) = (Total::default(), Instant::now());
    let kinds = KINDS.len() as u64;
    for (i, (kind, faults)) in (0..).zip(KINDS) {
        // The first ones have what is left over.
        let share = count / kinds + u64::from(i < count % kinds);
        // Another one for each kind, or all of them would strike at the same places.
        let seed = seed.wrapping_add(i);
        let params = format!("size=8M,mdts=2,{faults},seed={seed}");
        let part = total(|| in_process(&params), &impatient(), share, seed).with_context(|| params.clone())?;
        writeln!(out, "{kind:>8}: {part}")?;
        all += &part;
    }
    writeln!(out, "{:>8}: {all}; seed {seed}, {:.0} s", "all", began.elapsed().as_secs_f64())?;
    ensure!(all.balances() && all.submitted == count, "that is not all of {count}");
    Ok(())
}

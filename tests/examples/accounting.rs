//! No loss that isn't counted, over as many packets as one likes:
//!
//! ```sh
//! cargo run --release -p wholebar-tests --example accounting -- 100000000
//! cargo run --release -p wholebar-tests --example accounting -- 100000000 drop=0.01,duplicate=0.01,reorder=0.05,seed=7
//! ```
//!
//! Two virtio network models in this process, wired to each other, on split rings and then on packed ones; the figures are theirs, not of hardware.

use anyhow::{Context, Result};
use std::io::Write;
use std::time::Instant;
use wholebar::virtio::Options;
use wholebar_tests::accounting::account;
use wholebar_tests::on_thread;

fn main() -> Result<()> {
    let mut out = std::io::stdout();
    let mut args = std::env::args().skip(1);
    let count =
        args.next().map_or(Ok(1_000_000), |n| n.parse()).context("the first argument is a number of packets")?;
    let faults = args.next().map(|faults| faults.parse()).transpose()?;
    for packed in [false, true] {
        let rig = || on_thread(&format!("sim:virtio-net,wire=pair:accounting-{packed}"));
        let (rigs, began) = ([rig()?, rig()?], Instant::now());
        let account = account(&rigs, &Options { packed, ..Options::default() }, faults, count, 0)?;
        let seconds = began.elapsed().as_secs_f64();
        writeln!(out, "{} rings, {seconds:.1} s, models: {account:?}", if packed { "packed" } else { "split" })?;
    }
    writeln!(out, "sent + duplicated = received + dropped, and every buffer is home")?;
    Ok(())
}

//! No loss that isn't counted, over as many packets as one likes:
//!
//! ```sh
//! cargo run --release -p wholebar-tests --example accounting -- 100000000
//! cargo run --release -p wholebar-tests --example accounting -- 100000000 drop=0.01,duplicate=0.01,reorder=0.05,seed=7
//! cargo run --release -p wholebar-tests --example accounting -- 100000000 drop=0.01,duplicate=0.01,reorder=0.05,seed=7 vhost-user
//! ```
//!
//! Two virtio network models in this process, wired to each other, on split rings and then on packed ones; the figures are theirs, not of hardware.
//! With `vhost-user`, our driver's front ends instead: at back ends with these models on a wire that loses packets, and at a switch of two ports, each way.

use anyhow::{Context, Result, bail};
use std::io::Write;
use std::time::Instant;
use wholebar::virtio::Options;
use wholebar_tests::accounting::account;
use wholebar_tests::switch::Switch;
use wholebar_tests::{Rig, net_over_vhost_user, on_thread};

/// What is between the two drivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Models in this process.
    Models,
    /// Models in back ends of this process, on a wire that loses packets.
    BackEnds,
    /// A switch of two ports.
    Switch,
}

impl Way {
    fn rigs(self, packed: bool) -> Result<[Rig; 2]> {
        let wire = format!("wire=pair:accounting-{packed}");
        match self {
            Self::Models => {
                Ok([on_thread(&format!("sim:virtio-net,{wire}"))?, on_thread(&format!("sim:virtio-net,{wire}"))?])
            }
            Self::BackEnds => {
                let params = format!("{wire},loss=1/1000,reorder=1/100");
                Ok([net_over_vhost_user(&params)?, net_over_vhost_user(&params)?])
            }
            Self::Switch => Switch::rigs(1),
        }
    }
}

fn main() -> Result<()> {
    let mut out = std::io::stdout();
    let mut args = std::env::args().skip(1);
    let count =
        args.next().map_or(Ok(1_000_000), |n| n.parse()).context("the first argument is a number of packets")?;
    let faults = args.next().map(|faults| faults.parse()).transpose()?;
    let ways: &[_] = match args.next().as_deref() {
        None => &[Way::Models],
        Some("vhost-user") => &[Way::BackEnds, Way::Switch],
        Some(other) => bail!("{other:?} is no way for packets to go: there is vhost-user"),
    };
    for (way, packed) in ways.iter().flat_map(|way| [(way, false), (way, true)]) {
        let directions: &[_] = if *way == Way::Models { &["there"] } else { &["there", "back"] };
        for direction in directions {
            let (mut rigs, began) = (way.rigs(packed)?, Instant::now());
            if *direction == "back" {
                rigs.reverse();
            }
            let account = account(&rigs, &Options { packed, ..Options::default() }, faults, count, 0)?;
            let (seconds, ring) = (began.elapsed().as_secs_f64(), if packed { "packed" } else { "split" });
            writeln!(out, "{way:?}, {ring} rings, {direction}, {seconds:.1} s: {account:?}")?;
        }
    }
    writeln!(out, "sent + duplicated = received + dropped, and every buffer is home")?;
    Ok(())
}

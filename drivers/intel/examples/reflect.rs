//! `reflect ADDRESS [SECONDS]`: sends every frame back to whoever sent it, and says at the end what was counted.
//!
//! ```sh
//! cargo run --release -p wholebar-intel --example reflect -- 0000:01:00.0 10
//! cargo xtask vm run x86_64 --nic igb --bind nic -- sh -c 'reflect $WHOLEBAR_NIC 3'
//! ```

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use wholebar_core::bar::{BarOptions, plan_of};
use wholebar_core::mem::{Arena, ArenaOptions, Pool};
use wholebar_core::net::{Burst, Port, PortConfig};
use wholebar_core::pci::PciDevice;
use wholebar_core::vfio::{Vfio, VfioOptions};
use wholebar_intel::Options;
use wholebar_intel::igb::Igb;

const NEEDS: &str = "usage: reflect ADDRESS [SECONDS]
It needs an Intel 82576 (8086:10c9) that vfio-pci has, by its address: `wholebar devices` lists what there is, `wholebar bind` gives it to vfio-pci.
Where there is none, a guest has one: cargo xtask vm run x86_64 --nic igb --bind nic -- sh -c 'reflect $WHOLEBAR_NIC 3'";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().and_then(|text| text.parse().ok());
    let (Some(address), Ok(seconds)) = (address, arguments.next().map_or(Ok(10), |text| text.parse())) else {
        eprintln!("{NEEDS}");
        return ExitCode::from(2);
    };
    let reflected = Vfio::open(address, &VfioOptions::default())
        .map_err(Into::into)
        .and_then(|device| reflect(device, Duration::from_secs(seconds)));
    match reflected {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("reflect: {error}");
            ExitCode::FAILURE
        }
    }
}

fn reflect(device: std::sync::Arc<dyn PciDevice>, time: Duration) -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout();
    for bar in [0, 3] {
        let plan = plan_of(device.as_ref(), bar, BarOptions::default())?;
        writeln!(out, "{}", plan.layout)?;
        for span in plan.spans {
            writeln!(out, "  {:#x?}: {:?}, {:?}", span.range, span.access, span.why)?;
        }
    }
    let igb = Igb::open(device, PortConfig::default(), Options::default())?;
    writeln!(out, "{}: {}, MTU {}", igb.name(), igb.mac(), igb.mtu())?;
    let arena = Arena::new(8 << 20, ArenaOptions::default())?;
    igb.attach(arena.clone())?;
    let pool = Pool::new(arena, 2048, 2048 + 128, 64)?;
    let (mut rx, mut tx, mut burst) = (igb.rx(0, &pool)?, igb.tx(0)?, Burst::new(32));
    let end = Instant::now() + time;
    while Instant::now() < end {
        rx.rx(&mut burst);
        for packet in burst.iter_mut() {
            if let Some(addresses) = packet.bytes_mut().first_chunk_mut::<12>() {
                addresses.rotate_left(6);
            }
        }
        // What there is no room for is dropped.
        tx.tx(&mut burst);
        burst.give_back();
        for event in igb.events().try_iter() {
            writeln!(out, "{event:?}")?;
        }
    }
    for counter in igb.statistics().iter().filter(|counter| counter.value > 0) {
        writeln!(out, "{:>4} {:<24} {:>12}", counter.queue, counter.name, counter.value)?;
    }
    Ok(())
}

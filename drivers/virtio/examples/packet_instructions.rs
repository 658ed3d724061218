//! How many instructions a packet costs, counted: nothing is timed, so it says the same on a busy machine. Packets of 64 bytes go from one
//! virtio-net device to another in bursts, and their buffers come home.
//!
//! ```sh
//! cargo build --release -p wholebar-virtio --example packet_instructions
//! valgrind --tool=callgrind --callgrind-out-file=/dev/null --collect-atstart=no --toggle-collect='*driver_side*' \
//!     target/release/examples/packet_instructions split 32
//! ```
//!
//! Divide what callgrind "Collected" by the packets that the program prints: with `*driver_side*` that is the driver, of which sending is
//! `*driver_side_tx*` and receiving `*driver_side_rx*`; with `*model_side*`, both models. `benches/instructions` does that. Making packets and
//! giving them back is outside of all of these.

use std::error::Error;
use std::io::Write;
use std::sync::Arc;
use wholebar_core::mem::{Arena, ArenaOptions, Pool};
use wholebar_core::model::InProcess;
use wholebar_core::net::{Burst, Port, PortConfig, RxQueue, TxQueue};
use wholebar_sim::virtio::net::{NetParams, model};
use wholebar_virtio::{Net, Options, Service};

const PACKETS: usize = 32 * 4000;

#[inline(never)]
fn driver_side_tx(tx: &mut dyn TxQueue, out: &mut Burst) {
    tx.tx(out);
}

#[inline(never)]
fn driver_side_rx(rx: &mut dyn RxQueue, got: &mut Burst) -> usize {
    rx.rx(got)
}

#[inline(never)]
fn model_side(devices: &[Arc<InProcess>; 2]) {
    for device in devices {
        device.step();
    }
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let (packed, size) = match &arguments[..] {
        [] => (false, 32),
        [ring, burst] if matches!(ring.as_str(), "split" | "packed") => (ring == "packed", burst.parse()?),
        _ => return Err("split or packed is wanted, and the packets of a burst; or nothing, for split and 32".into()),
    };
    let open = || -> Result<_, Box<dyn Error + Send + Sync>> {
        let (model, _) = model(NetParams::parse("wire=pair:instructions,full=wait")?)?;
        let device = InProcess::new(model)?;
        // The model runs by itself while it is opened, and by steps afterwards.
        device.spawn(|| {})?;
        let options = Options { packed, service: Service::Manual, ..Options::default() };
        Ok((Net::open(device.clone(), &PortConfig::default(), options)?, device))
    };
    let ((from, from_device), (to, to_device)) = (open()?, open()?);
    let arena = Arena::new(8 << 20, ArenaOptions::default())?;
    from.attach(arena.clone())?;
    to.attach(arena.clone())?;
    let pool = Pool::new(arena, 1024, 2048, 64)?;
    let (mut tx, mut rx) = (from.tx_queue(0)?, to.rx_queue(0, &pool)?);
    let devices = [from_device, to_device];
    devices.iter().for_each(|device| device.stop());
    let (mut out, mut got, mut cache) = (Burst::new(size), Burst::new(size), pool.cache(32));
    let mut came = 0;
    while came < PACKETS {
        if out.is_empty() && out.fill(&mut cache, size) {
            for packet in out.iter_mut() {
                packet.reserve(64);
                packet.set_len(64);
                packet.bytes_mut()[..6].copy_from_slice(&to.mac().0);
            }
        }
        driver_side_tx(tx.as_mut(), &mut out);
        model_side(&devices);
        came += driver_side_rx(rx.as_mut(), &mut got);
        got.give_back_to(&mut cache);
    }
    writeln!(std::io::stdout(), "{came} packets")?;
    // What is under way comes, or goes home, before the queues are given back.
    while tx.in_flight() > 0 {
        model_side(&devices);
        tx.reclaim();
        rx.rx(&mut got);
        got.give_back_to(&mut cache);
    }
    drop((out, got, tx, rx));
    devices.iter().try_for_each(|device| device.spawn(|| {}))?;
    from.shutdown()?;
    Ok(to.shutdown()?)
}

//! How many instructions a packet costs a port whose queues are a front end's rings, counted: nothing is timed, so it says the same on a busy machine.
//! Packets of 64 bytes go from our driver to the port and back, in bursts.
//!
//! ```sh
//! cargo build --release -p wholebar-virtio --example back_end_instructions
//! valgrind --tool=callgrind --callgrind-out-file=/dev/null --collect-atstart=no --toggle-collect='*port_side_tx*' \
//!     target/release/examples/back_end_instructions split 32
//! ```
//!
//! Divide what callgrind "Collected" by the packets that the program prints: with `*port_side_tx*` that is sending, into the driver's buffers, with
//! `*port_side_rx*` receiving, and with `*port_side*` both. `benches/instructions` does that. The driver and its program are outside of these.

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use wholebar_core::mem::{Arena, ArenaOptions, Pool};
use wholebar_core::net::{Burst, Port, PortConfig, RxQueue, TxQueue};
use wholebar_core::vhost_user::{Options as Socket, VhostUser};
use wholebar_sim::virtio::net::back_end::{self, BackEnd};
use wholebar_virtio::{Net, Options};

const PACKETS: usize = 32 * 4000;
/// How long the front end and its link are waited for: emulated CPUs take their time.
const PATIENCE: Duration = Duration::from_secs(120);

#[inline(never)]
fn port_side_tx(tx: &mut dyn TxQueue, packets: &mut Burst) {
    if tx.tx(packets) == 0 {
        tx.reclaim();
    }
}

#[inline(never)]
fn port_side_rx(rx: &mut dyn RxQueue, packets: &mut Burst) -> usize {
    rx.rx(packets)
}

/// A socket of this process's, which goes with it.
struct Path(PathBuf);

impl Drop for Path {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let (packed, size) = match &arguments[..] {
        [] => (false, 32),
        [ring, burst] if matches!(ring.as_str(), "split" | "packed") => (ring == "packed", burst.parse()?),
        _ => return Err("split or packed is wanted, and the packets of a burst; or nothing, for split and 32".into()),
    };
    let path = Path(std::env::temp_dir().join(format!("wholebar-instructions-{}", std::process::id())));
    let port = back_end::open(&BackEnd { path: path.0.clone(), server: true, mac: None }, &PortConfig::default())?;
    let device = VhostUser::connect(&path.0, Socket::default().with_timeout(PATIENCE))?;
    let far = Net::open(device, &PortConfig::default(), Options { packed, ..Options::default() })?;
    let arena = Arena::new(8 << 20, ArenaOptions::default())?;
    far.attach(arena.clone())?;
    let pool = Pool::new(arena.clone(), 1024, 2048, 64)?;
    let port_pool = Pool::new(arena, 1024, 2048, 64)?;
    let (mut far_tx, mut far_rx) = (far.tx_queue(0)?, far.rx_queue(0, &pool)?);
    let (mut tx, mut rx) = (port.tx_queue(0)?, port.rx_queue(0, &port_pool)?);
    let began = Instant::now();
    while !(port.link().up && far.link().up) {
        if began.elapsed() > PATIENCE {
            return Err("the link does not come up".into());
        }
        std::thread::yield_now();
    }
    let (mut out, mut between, mut back) = (Burst::new(size), Burst::new(size), Burst::new(size));
    let mut cache = pool.cache(32);
    let mut came = 0;
    while came < PACKETS {
        if out.is_empty() && out.fill(&mut cache, size) {
            for packet in out.iter_mut() {
                packet.reserve(64);
                packet.set_len(64);
                packet.bytes_mut()[..6].copy_from_slice(&port.mac().0);
            }
        }
        far_tx.tx(&mut out);
        if port_side_rx(rx.as_mut(), &mut between) > 0 || !between.is_empty() {
            port_side_tx(tx.as_mut(), &mut between);
        }
        came += far_rx.rx(&mut back);
        back.give_back_to(&mut cache);
    }
    writeln!(std::io::stdout(), "{came} packets")?;
    while far_tx.in_flight() > 0 {
        rx.rx(&mut between);
        between.give_back();
        far_tx.reclaim();
    }
    drop((out, between, back, far_tx, far_rx, tx, rx));
    Ok(far.shutdown()?)
}

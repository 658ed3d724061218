//! How many instructions a packet costs the driver, counted: nothing is timed, so it says the same on a busy machine. Packets of 64 bytes are sent to, and
//! received from, a card that is played by hand, in bursts of 32, and their buffers come home.
//!
//! ```sh
//! cargo build --release -p wholebar-intel --example intel_instructions
//! valgrind --tool=callgrind --callgrind-out-file=/dev/null --collect-atstart=no --toggle-collect='*driver_side*' \
//!     target/release/examples/intel_instructions igb
//! ```
//!
//! Or `e1000e`. Divide what callgrind "Collected" by the packets that the program prints: sending is `*driver_side_tx*`, receiving `*driver_side_rx*`.

#[path = "../tests/common/mod.rs"]
mod common;

use common::{rig, small};
use std::io::{Error, Write};
use wholebar_core::mem::{Arena, ArenaOptions, Pool};
use wholebar_core::net::{Burst, Offloads, PortConfig, RxQueue, TxQueue};
use wholebar_intel::Controller;
use wholebar_intel::e1000e::I82574;
use wholebar_intel::igb::I82576;

const BURST: usize = 32;
const BURSTS: usize = 200;
/// Descriptors of each ring.
const ENTRIES: u16 = 64;

#[inline(never)]
fn driver_side_tx(tx: &mut dyn TxQueue, out: &mut Burst) -> usize {
    tx.tx(out)
}

/// Not the same code as the other, which would be one function then.
#[inline(never)]
fn driver_side_rx(rx: &mut dyn RxQueue, got: &mut Burst) -> usize {
    std::hint::black_box(rx.rx(got))
}

fn packets<F: Controller>() -> Result<usize, Error> {
    // Packets fit into the buffers, of which there are enough for both queues.
    let config = PortConfig { mtu: Some(900), offloads: Offloads::NONE, ..small() };
    let rig = rig::<F>(PortConfig { rx_descriptors: Some(ENTRIES), tx_descriptors: Some(ENTRIES), ..config });
    let arena = Arena::new(1 << 18, ArenaOptions::default()).map_err(Error::other)?;
    rig.port.attach(arena.clone()).map_err(Error::other)?;
    let pool = Pool::new(arena, 2 * u32::from(ENTRIES), 1024, 64).map_err(Error::other)?;
    let (mut tx, mut rx) = match (rig.port.tx(0), rig.port.rx(0, &rig.pool)) {
        (Ok(tx), Ok(rx)) => (tx, rx),
        (tx, rx) => return Err(Error::other(format!("{:?}, {:?}", tx.err(), rx.err()))),
    };
    let (mut out, mut got, mut packets, mut sent, mut came) = (Burst::new(BURST), Burst::new(BURST), 0, 0, 0);
    for _ in 0..BURSTS {
        while out.room() > 0 {
            let Some(packet) = pool.get_len(64) else { break };
            let _ = out.push(packet);
        }
        let count = driver_side_tx(&mut tx, &mut out);
        for _ in 0..count {
            // Those that were to report do.
            let words = rig.nic.words(&rig.device, rig.nic.tx(), sent % u32::from(ENTRIES));
            if words[1] >> 27 & 1 != 0 {
                rig.nic.write_back(
                    &rig.device,
                    rig.nic.tx(),
                    sent % u32::from(ENTRIES),
                    [words[0], words[1] | 1 << 32],
                );
            }
            sent += 1;
        }
        for _ in 0..count {
            rig.nic.receive(&rig.device, came % u32::from(ENTRIES), &[7; 64], 3);
            came += 1;
        }
        packets += driver_side_rx(&mut rx, &mut got);
        got.give_back();
    }
    Ok(packets)
}

fn main() -> Result<(), Error> {
    let packets = match std::env::args().nth(1).as_deref() {
        Some("igb") => packets::<I82576>()?,
        Some("e1000e") => packets::<I82574>()?,
        _ => return Err(Error::other("which: igb or e1000e?")),
    };
    writeln!(std::io::stdout(), "{packets} packets")
}

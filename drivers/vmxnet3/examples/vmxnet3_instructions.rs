//! How many instructions a packet costs the driver, counted: nothing is timed, so it says the same on a busy machine. Packets of 64 bytes are sent to, and
//! received from, a card that is played by hand, in bursts of 32, and their buffers come home.
//!
//! ```sh
//! cargo build --release -p wholebar-vmxnet3 --example vmxnet3_instructions
//! valgrind --tool=callgrind --callgrind-out-file=/dev/null --collect-atstart=no --toggle-collect='*driver_side*' \
//!     target/release/examples/vmxnet3_instructions
//! ```
//!
//! Divide what callgrind "Collected" by the packets that the program prints: sending is `*driver_side_tx*`, receiving `*driver_side_rx*`.

#[path = "../tests/common/mod.rs"]
mod common;

use common::{rig, small};
use std::io::Write;
use wholebar_core::net::{Burst, Offloads, PortConfig, RxQueue, TxQueue};

const BURST: usize = 32;
const BURSTS: usize = 200;

#[inline(never)]
fn driver_side_tx(tx: &mut dyn TxQueue, out: &mut Burst) -> usize {
    tx.tx(out)
}

#[inline(never)]
fn driver_side_rx(rx: &mut dyn RxQueue, got: &mut Burst) -> usize {
    rx.rx(got)
}

fn main() -> std::io::Result<()> {
    // Packets fit into the buffers, of which there are enough for both queues.
    let config = PortConfig { mtu: Some(900), offloads: Offloads::NONE, ..small() };
    let rig = rig(PortConfig { rx_descriptors: Some(64), tx_descriptors: Some(64), ..config });
    let (mut tx, mut rx) = match (rig.vmxnet3.tx(0), rig.vmxnet3.rx(0, &rig.pool)) {
        (Ok(tx), Ok(rx)) => (tx, rx),
        (tx, rx) => return Err(std::io::Error::other(format!("{:?}, {:?}", tx.err(), rx.err()))),
    };
    let ([_, _, mut sent], [mut heads, _, mut came]) = (rig.rings(0), rig.rings(1));
    let (mut out, mut got, mut packets, mut next) = (Burst::new(BURST), Burst::new(BURST), 0, 0);
    for _ in 0..BURSTS {
        while out.room() > 0 {
            let Some(packet) = rig.pool.get_len(64) else { break };
            let _ = out.push(packet);
        }
        let count = driver_side_tx(&mut tx, &mut out);
        for _ in 0..count {
            rig.complete(&mut sent, [next % 64, 0]);
            next += 1;
            rig.receive(0, [&mut heads, &mut came], &[7; 64], [3 << 14, 0]);
        }
        packets += driver_side_rx(&mut rx, &mut got);
        got.give_back();
    }
    writeln!(std::io::stdout(), "{packets} packets")
}

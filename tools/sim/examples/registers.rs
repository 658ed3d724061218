//! Opens a model by its name (`sim:nvme` without an argument) and prints the registers every NVMe controller has.
//!
//! `cargo run -p wholebar-sim --example registers -- sim:nvme,page=64k,entries=256`

use std::io::Write;
use std::sync::Arc;
use wholebar_core::bar::{Bar, BarOptions};
use wholebar_core::pci::PciDevice;
use wholebar_sim::open;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut out = std::io::stdout();
    let name = std::env::args().nth(1).unwrap_or_else(|| "sim:nvme".to_owned());
    let device: Arc<dyn PciDevice> = open(&name)?.model;
    let bar = Bar::of(device, 0, BarOptions::default())?;
    writeln!(out, "{name}: BAR0 of {} bytes, {} of them mapped", bar.size(), bar.plan().mapped_bytes())?;
    writeln!(out, "CAP  {:#018x}", bar.read::<u64>(0x00)?)?;
    for (register, offset) in [("VS", 0x08), ("CC", 0x14), ("CSTS", 0x1c), ("AQA", 0x24)] {
        writeln!(out, "{register:4} {:#010x}", bar.read::<u32>(offset)?)?;
    }
    Ok(())
}

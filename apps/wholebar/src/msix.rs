//! `wholebar msix`: the MSI-X table and the pending bits as the device has them.

use crate::{output, target};
use anyhow::{Context, Result};
use serde::Serialize;
use std::sync::Arc;
use wholebar::bar::MsixTable;
use wholebar::irq::Interrupts;
use wholebar::pci::{IRQ_MSIX, PciDevice};

/// Show the MSI-X table and the pending bits as the device has them
///
/// They are read through a read-only mapping: what the kernel answers to reads of the table's registers is all ones. Vectors that were
/// never set up are left out, unless --all is given. Opening a PCI function resets it, and with it the table; --enable sets vectors up
/// again.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar msix sim:nvme --all
  wholebar msix vfio-user:/run/x.sock --json
  wholebar msix 0000:01:00.0 --enable 2")]
pub struct Args {
    /// The PCI function
    target: String,
    /// All vectors, also those that were never set up
    #[arg(long)]
    all: bool,
    /// Set the first N vectors up before, as a driver does, so that there is something to see
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=2048))]
    enable: Option<u32>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// What `--json` writes.
#[derive(Serialize)]
struct Table<'a> {
    schema: &'static str,
    target: &'a str,
    enabled: bool,
    table_bar: u8,
    table_offset: u32,
    pba_bar: u8,
    pba_offset: u32,
    vectors: Vec<Vector>,
}

#[derive(Serialize)]
struct Vector {
    vector: u32,
    address: u64,
    data: u32,
    masked: bool,
    pending: bool,
    /// Read through the mapping.
    mapped: bool,
}

impl Vector {
    fn is_set_up(&self) -> bool {
        self.address != 0 || self.data != 0 || !self.masked || self.pending
    }
}

/// Enables the first `count` vectors, or all that there are; disabled on drop.
fn enable(device: &Arc<dyn PciDevice>, count: u32) -> Result<Interrupts> {
    let interrupts = Interrupts::new(device.clone(), IRQ_MSIX, count)?;
    for vector in 0..interrupts.count() {
        interrupts.vector(vector).with_context(|| format!("cannot enable vector {vector}"))?;
    }
    Ok(interrupts)
}

pub fn run(args: Args) -> Result<()> {
    let target = target::open(&args.target, &[], None)?;
    let name = target.device.name();
    // Until the end.
    let _enabled = args.enable.map(|count| enable(&target.device, count)).transpose()?;
    let Some(table) = MsixTable::of(&target.device)? else {
        anyhow::bail!("{name} has no MSI-X capability");
    };
    let vectors = (0..table.len())
        .map(|vector| {
            let entry = table.entry(vector)?;
            Ok(Vector {
                vector,
                address: entry.address,
                data: entry.data,
                masked: entry.is_masked(),
                pending: table.is_pending(vector)?,
                mapped: entry.mapped,
            })
        })
        .collect::<Result<Vec<_>>>()
        .context("cannot read the MSI-X table")?;
    let place = table.capability();
    if args.json {
        return output::print_json(&Table {
            schema: "wholebar.msix/1",
            target: name,
            enabled: place.enabled,
            table_bar: place.table_bar,
            table_offset: place.table_offset,
            pba_bar: place.pba_bar,
            pba_offset: place.pba_offset,
            vectors,
        });
    }
    let mut text = format!(
        "{name}: {} MSI-X vectors, {}; table in BAR{} at {:#x}, PBA in BAR{} at {:#x}\n",
        vectors.len(),
        if place.enabled { "enabled" } else { "not enabled" },
        place.table_bar,
        place.table_offset,
        place.pba_bar,
        place.pba_offset,
    );
    if vectors.iter().any(|v| !v.mapped) {
        text += "The table cannot be mapped: this is what the backend answers, which need not be what is there.\n";
    }
    let shown: Vec<_> = vectors.iter().filter(|v| args.all || v.is_set_up()).collect();
    if !shown.is_empty() {
        let rows = shown.iter().map(|v| {
            let yes = |yes, text: &str| if yes { text.to_owned() } else { "-".to_owned() };
            vec![
                v.vector.to_string(),
                format!("{:#018x}", v.address),
                format!("{:#010x}", v.data),
                yes(v.masked, "masked"),
                yes(v.pending, "pending"),
            ]
        });
        text.push('\n');
        text += &output::table([">vector", "address", "data", "masked", "pending"], rows);
    }
    match vectors.len() - shown.len() {
        0 => {}
        n => text += &format!("\n{n} vectors were never set up; --all shows them too.\n"),
    }
    output::print(text)
}

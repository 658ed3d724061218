//! `wholebar msix`: the MSI-X table and the pending bits as the device has them.

use crate::{output, target};
use anyhow::{Context, Result};
use serde::Serialize;
use wholebar::bar::MsixTable;

/// Show the MSI-X table and the pending bits as the device has them
///
/// They are read through a read-only mapping: what the kernel answers to reads of the table's registers is all ones. Vectors that were
/// never set up are left out, unless --all is given.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar msix sim:nvme --all
  wholebar msix vfio-user:/run/x.sock --json")]
pub struct Args {
    /// The PCI function
    target: String,
    /// All vectors, also those that were never set up
    #[arg(long)]
    all: bool,
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

pub fn run(args: Args) -> Result<()> {
    let target = target::open(&args.target, &[], None)?;
    let name = target.device.name();
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

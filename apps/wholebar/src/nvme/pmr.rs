//! `wholebar nvme pmr`: the persistent memory region of a controller: what it is, and what is in it.

use super::admin::{self, Danger, Show, dump, hex};
use crate::args::Size;
use crate::output;
use anyhow::{Context, Result, bail};
use serde_json::json;
use wholebar::nvme::{PersistentMemory, PersistentMemoryHealth, PersistentMemoryRegion};

/// Show, read and write a controller's persistent memory region
#[derive(clap::Subcommand)]
pub enum Command {
    Status(StatusArgs),
    Read(ReadArgs),
    Write(WriteArgs),
}

/// Show what it is and how it fares
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme pmr status sim:nvme,pmr=1M
  wholebar nvme pmr status 0000:01:00.0 --json")]
pub struct StatusArgs {
    /// The NVMe controller
    target: String,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// Show what is in it, or copy it to a file
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme pmr read 0000:01:00.0 --offset 4k --len 64
  wholebar nvme pmr read 0000:01:00.0 --out region.bin")]
pub struct ReadArgs {
    /// The NVMe controller
    target: String,
    /// Where to begin, in bytes
    #[arg(long, value_name = "SIZE", default_value = "0")]
    offset: Size,
    /// How many bytes [default: all from there on]
    #[arg(short, long, value_name = "SIZE")]
    len: Option<Size>,
    /// Read it though the controller says that what was stored is lost
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    show: Show,
}

/// Store a file in it, and have it last. WHAT IS THERE IS LOST
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme pmr write 0000:01:00.0 --in region.bin
  wholebar nvme pmr write 0000:01:00.0 --in part.bin --offset 4k --force")]
pub struct WriteArgs {
    /// The NVMe controller
    target: String,
    /// The file; - is standard input
    #[arg(long = "in", value_name = "FILE")]
    input: String,
    /// Where to begin, in bytes
    #[arg(long, value_name = "SIZE", default_value = "0")]
    offset: Size,
    #[command(flatten)]
    danger: Danger,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// The largest file that is taken, in bytes.
const MOST: u64 = 16 << 30;

pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Status(args) => status(&args),
        Command::Read(args) => read(&args),
        Command::Write(args) => write(&args),
    }
}

fn status(args: &StatusArgs) -> Result<()> {
    let controller = admin::open(&args.target)?;
    let memory = controller.nvme.persistent_memory()?;
    let health = memory.health()?;
    let region = controller.nvme.persistent_memory_region().context("it has none")?;
    let PersistentMemoryRegion { bar, size, read_data, write_data, .. } = region;
    if args.json {
        let report = json!({"schema": "wholebar.pmr/1", "target": args.target, "bar": bar, "size": size,
            "health": name(health), "rds": read_data, "wds": write_data});
        return output::print_json(&report);
    }
    let rows = vec![
        ("size", output::bytes(size)),
        ("place", format!("BAR{bar}")),
        ("health", health.to_string()),
        ("commands' data", if read_data || write_data { "can lie in it" } else { "cannot lie in it" }.to_owned()),
    ];
    output::print(format!("{}\n{}", args.target, output::pairs(rows)))
}

/// What programs read.
fn name(health: PersistentMemoryHealth) -> &'static str {
    match health {
        PersistentMemoryHealth::Normal => "normal",
        PersistentMemoryHealth::RestoreError => "restore-error",
        PersistentMemoryHealth::ReadOnly => "read-only",
        PersistentMemoryHealth::Unreliable => "unreliable",
        PersistentMemoryHealth::Unknown(_) => "unknown",
    }
}

fn read(args: &ReadArgs) -> Result<()> {
    let controller = admin::open(&args.target)?;
    let memory = controller.nvme.persistent_memory()?;
    if memory.health()? == PersistentMemoryHealth::RestoreError && !args.force {
        bail!(
            "{}: what was stored is lost, at least in parts (restore error): --force reads what is there",
            args.target
        );
    }
    let bytes = fetch(&memory, args.offset.0, args.len.as_ref().map(|len| len.0))?;
    let offset = args.offset.0;
    let json = || {
        json!({"schema": "wholebar.pmr-data/1", "target": args.target, "offset": offset, "len": bytes.len(),
            "data": hex(&bytes)})
    };
    args.show.put(&bytes, json, || dump(&bytes))
}

/// So many bytes, or all there are from there on.
fn fetch(memory: &PersistentMemory, offset: u64, len: Option<u64>) -> Result<Vec<u8>> {
    let len = len.unwrap_or(memory.size().saturating_sub(offset));
    // What is larger than the region is not made room for.
    let room = if len <= memory.size() { len } else { 0 };
    let mut bytes = vec![0; usize::try_from(room)?];
    if room < len {
        bail!("{} from byte {offset} on are more than its {}", output::bytes(len), output::bytes(memory.size()));
    }
    memory.read(offset, &mut bytes)?;
    Ok(bytes)
}

fn write(args: &WriteArgs) -> Result<()> {
    let WriteArgs { target, input, offset: Size(offset), danger, json } = args;
    danger.check(target)?;
    let bytes = admin::read_file(input, MOST)?;
    let controller = admin::open(target)?;
    let mut memory = controller.nvme.persistent_memory()?;
    let (len, who) = (output::bytes(bytes.len() as u64), controller.described());
    danger.ask(&format!(
        "Store {len} in the persistent memory of {who}, from byte {offset} on? What is there is lost."
    ))?;
    memory.write(*offset, &bytes)?;
    memory.flush()?;
    match json {
        true => output::print_json(&json!({"schema": "wholebar.pmr-written/1", "target": target, "offset": offset,
            "len": bytes.len()})),
        false => output::print(format!("{target}: {len} stored from byte {offset} on\n")),
    }
}

//! `wholebar blk info`: the driver of a disk, and the size and limits of each namespace.

use crate::any_disk::AnyDisk;
use crate::{output, target};
use anyhow::Result;
use serde::Serialize;
use wholebar::block::{DiskConfig, Namespace};
use wholebar::drivers::Mapping;

/// Show what a disk is: its driver, its namespaces, what they take
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar blk info sim:virtio-blk
  wholebar blk info sim:nvme,ns=2,block=512+4096
  wholebar blk info vfio-user:/run/blk.sock --json
  wholebar blk info kernel:/dev/nvme0n1")]
pub struct Args {
    /// The disk
    target: String,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// What `--json` writes.
#[derive(Serialize)]
struct Info<'a> {
    schema: &'static str,
    target: &'a str,
    driver: &'a str,
    namespaces: Vec<Space>,
}

#[derive(Serialize)]
struct Space {
    nsid: u32,
    blocks: u64,
    block_size: u32,
    bytes: u64,
    read_only: bool,
    /// Bytes of one request at most.
    max_transfer: u32,
    /// Bytes of one command of the device at most: the driver cuts what is larger.
    max_command: u32,
    /// What is written is durable only after a flush.
    flush: bool,
    compare: bool,
    /// Blocks of one request at most; 0 where there is no such request.
    max_write_zeroes: u32,
    max_deallocate: u32,
    max_verify: u32,
}

pub fn run(args: Args) -> Result<()> {
    let target = target::open_any(&args.target, &[], None, None)?;
    let disk = AnyDisk::open(&target, &DiskConfig::default(), Mapping::default())?.disk;
    let info = Info {
        schema: "wholebar.blk-info/1",
        target: &args.target,
        driver: disk.driver(),
        namespaces: disk.namespaces().iter().map(Space::of).collect(),
    };
    if args.json { output::print_json(&info) } else { output::print(info.text()) }
}

impl Space {
    fn of(namespace: &Namespace) -> Self {
        Self {
            nsid: namespace.nsid,
            blocks: namespace.blocks,
            block_size: namespace.block_size,
            bytes: namespace.blocks.saturating_mul(namespace.block_size.into()),
            read_only: namespace.read_only,
            max_transfer: namespace.max_transfer,
            max_command: namespace.max_command,
            flush: namespace.flush,
            compare: namespace.compare,
            max_write_zeroes: namespace.max_write_zeroes,
            max_deallocate: namespace.max_deallocate,
            max_verify: namespace.max_verify,
        }
    }

    /// What it takes besides reads.
    fn takes(&self) -> String {
        let all = [
            (!self.read_only, "write"),
            (self.flush, "flush"),
            (self.compare, "compare"),
            (self.max_write_zeroes > 0, "write zeroes"),
            (self.max_deallocate > 0, "deallocate"),
            (self.max_verify > 0, "verify"),
        ];
        let takes: Vec<_> = all.into_iter().filter_map(|(has, name)| has.then_some(name)).collect();
        if takes.is_empty() { "reads only".to_owned() } else { takes.join(", ") }
    }
}

impl Info<'_> {
    fn text(&self) -> String {
        let mut text = format!("{}\n", self.target);
        text += &output::pairs([("driver", self.driver.to_owned())]);
        for space in &self.namespaces {
            text += &format!("\nNamespace {}\n", space.nsid);
            text += &output::pairs([
                ("size", output::bytes(space.bytes)),
                ("blocks", format!("{} of {} bytes", output::count(space.blocks), space.block_size)),
                ("largest command", format!("{} (larger transfers are cut)", output::bytes(space.max_command.into()))),
                ("takes", space.takes()),
            ]);
        }
        if self.namespaces.is_empty() {
            text += "\nIt has no namespace that can be used.\n";
        }
        text
    }
}

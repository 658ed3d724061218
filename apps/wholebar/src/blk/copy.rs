//! `wholebar blk read` and `write`: a range of a disk to a file, and back.

use crate::any_disk::AnyDisk;
use crate::copy::{self, Input, Output, Range};
use crate::target::AnyTarget;
use anyhow::Result;
use wholebar::block::DiskConfig;
use wholebar::drivers::Mapping;

/// Copy a range of a disk to a file
///
/// Without a range: all of the namespace.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar blk read vfio-user:/run/blk.sock --out disk.img
  wholebar blk read kernel:/dev/nvme0n1,ro --out disk.img
  wholebar blk read sim:virtio-blk,file=disk.img --lba 8 --blocks 8 --out - | xxd")]
pub struct ReadArgs {
    /// The disk
    target: String,
    #[command(flatten)]
    range: Range,
    #[command(flatten)]
    output: Output,
}

/// Copy a file to a range of a disk, and flush. WHAT WAS THERE IS LOST
///
/// Without a length: all of the file, which must be whole blocks, unless --pad is given.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar blk write vfio-user:/run/blk.sock --in disk.img
  echo hello | wholebar blk write sim:virtio-blk,file=disk.img --in - --pad --lba 7")]
pub struct WriteArgs {
    /// The disk
    target: String,
    #[command(flatten)]
    range: Range,
    #[command(flatten)]
    input: Input,
}

pub fn read(args: ReadArgs) -> Result<()> {
    copy::read(&args.target, &args.range, &args.output, open)
}

pub fn write(args: WriteArgs) -> Result<()> {
    copy::write(&args.target, &args.range, &args.input, open)
}

fn open(target: &AnyTarget) -> Result<AnyDisk> {
    AnyDisk::open(target, &DiskConfig::default(), Mapping::default())
}

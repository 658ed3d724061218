//! `wholebar nvme read` and `write`: a range of a namespace to a file, and back.

use super::Controller;
use super::admin::word;
use crate::copy::{self, Input, Output, Range};
use anyhow::Result;
use wholebar::nvme::{Options, Placement};

/// Copy a range of a namespace to a file
///
/// Without a range: all of the namespace.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme read vfio-user:/run/nvme.sock --out disk.img
  wholebar nvme read sim:nvme,file=disk.img --lba 2048 --blocks 8 --out - | xxd | head")]
pub struct ReadArgs {
    /// The NVMe controller
    target: String,
    #[command(flatten)]
    range: Range,
    #[command(flatten)]
    output: Output,
}

/// Copy a file to a range of a namespace, and flush. WHAT WAS THERE IS LOST
///
/// Without a length: all of the file, which must be whole blocks, unless --pad is given.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme write vfio-user:/run/nvme.sock --in disk.img
  head -c 512 /dev/urandom | wholebar nvme write sim:nvme,file=disk.img --in - --lba 7
  wholebar nvme write 0000:01:00.0 --in log.bin --lba 4096 --dir-type 2 --dir-spec 3")]
pub struct WriteArgs {
    /// The NVMe controller
    target: String,
    #[command(flatten)]
    range: Range,
    #[command(flatten)]
    input: Input,
    /// The directive that says where the data goes: 1 a stream, 2 a placement
    #[arg(long, value_name = "TYPE", value_parser = clap::value_parser!(u8).range(1..=2), requires = "dir_spec")]
    dir_type: Option<u8>,
    /// The stream, or the placement identifier
    #[arg(long, value_name = "N", value_parser = word, requires = "dir_type")]
    dir_spec: Option<u16>,
}

pub fn read(args: ReadArgs) -> Result<()> {
    copy::read(&args.target, &args.range, &args.output, |target| Controller::open(target.pci()?, options()))
}

pub fn write(args: WriteArgs) -> Result<()> {
    let placement = match (args.dir_type, args.dir_spec) {
        (Some(1), Some(stream)) => Placement::Stream(stream),
        (Some(_), Some(handle)) => Placement::Handle(handle),
        _ => Placement::Any,
    };
    copy::write(&args.target, &args.range, &args.input, |target| {
        Ok(Controller { placement, ..Controller::open(target.pci()?, options())? })
    })
}

fn options() -> Options {
    Options { io_queues: 1, ..Options::default() }
}

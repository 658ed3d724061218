//! `wholebar nvme read` and `write`: a range of a namespace to a file, and back.

use super::transfer::Transfer;
use super::{Controller, status_name};
use crate::args::{Size, Usage};
use crate::output::{self, Progress};
use crate::signal;
use crate::target;
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::time::Instant;
use wholebar::nvme::{Namespace, Options};

/// Copy a range of a namespace to a file
///
/// Without a range: all of the namespace.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme read vfio-user:/run/nvme.sock --out disk.img
  wholebar nvme read sim:nvme,file=disk.img --lba 2048 --blocks 8 --out - | xxd | head")]
pub struct ReadArgs {
    #[command(flatten)]
    range: Range,
    /// The file to write; - is standard output
    #[arg(long, value_name = "FILE")]
    out: String,
}

/// Copy a file to a range of a namespace, and flush. WHAT WAS THERE IS LOST
///
/// Without a length: all of the file, which must be whole blocks, unless --pad is given.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme write vfio-user:/run/nvme.sock --in disk.img
  head -c 512 /dev/urandom | wholebar nvme write sim:nvme,file=disk.img --in - --lba 7")]
pub struct WriteArgs {
    #[command(flatten)]
    range: Range,
    /// The file to read; - is standard input
    #[arg(long = "in", value_name = "FILE")]
    input: String,
    /// Fill the last block up with zeros
    #[arg(long)]
    pad: bool,
}

#[derive(clap::Args)]
struct Range {
    /// The NVMe controller
    target: String,
    /// The namespace
    #[arg(long, value_name = "ID", default_value = "1")]
    nsid: u32,
    /// The first block
    #[arg(long, value_name = "N", conflicts_with = "offset")]
    lba: Option<u64>,
    /// Where to begin, in bytes
    #[arg(long, value_name = "SIZE")]
    offset: Option<Size>,
    /// How many blocks
    #[arg(long, value_name = "N", conflicts_with = "bytes")]
    blocks: Option<u64>,
    /// How many bytes
    #[arg(long, value_name = "SIZE")]
    bytes: Option<Size>,
    /// Commands in flight [default: 32, or what the controller's queues hold]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65535))]
    qd: Option<u32>,
    /// Write what was done as JSON
    #[arg(long)]
    json: bool,
}

/// What a command reports.
#[derive(Serialize)]
struct Done<'a> {
    target: &'a str,
    nsid: u32,
    lba: u64,
    bytes: u64,
    seconds: f64,
}

/// Bytes of a buffer: what most drives take at once.
const CHUNK: u64 = 128 << 10;

pub fn read(args: ReadArgs) -> Result<()> {
    let range = &args.range;
    let to_stdout = args.out == "-";
    if to_stdout && range.json {
        bail!(Usage("--json and --out - would both write to standard output".to_owned()));
    }
    let target = target::open(&range.target, &[], None)?;
    let controller = Controller::open(&target, Options { io_queues: 1, ..Options::default() })?;
    let namespace = controller.namespace(range.nsid)?;
    let (lba, room) = range.place(&namespace)?;
    let bytes = range.length(&namespace)?.unwrap_or(room);
    range.fits(&namespace, lba, bytes, room)?;
    let mut out: Box<dyn Write> = match to_stdout {
        true => Box::new(io::stdout().lock()),
        false => Box::new(File::create(&args.out).with_context(|| format!("cannot write {}", args.out))?),
    };
    range.run(&controller, &namespace, lba, Some(bytes), |transfer| transfer.read(bytes, &mut *out).map(|()| bytes))
}

pub fn write(args: WriteArgs) -> Result<()> {
    let range = &args.range;
    let name = if args.input == "-" { "standard input" } else { &args.input };
    let cannot = || format!("cannot read {name}");
    let (mut input, has): (Box<dyn Read>, _) = if args.input == "-" {
        (Box::new(io::stdin().lock()), None)
    } else {
        let mut file = File::open(&args.input).with_context(cannot)?;
        if file.metadata().with_context(cannot)?.is_dir() {
            bail!("cannot read {name}: it is a directory");
        }
        // A block device has no length but where its end is; a pipe has none at all.
        let has = file.seek(SeekFrom::End(0)).and_then(|end| file.rewind().map(|()| end)).ok();
        (Box::new(file), has)
    };
    let target = target::open(&range.target, &[], None)?;
    let controller = Controller::open(&target, Options { io_queues: 1, ..Options::default() })?;
    let namespace = controller.namespace(range.nsid)?;
    let (lba, room) = range.place(&namespace)?;
    let asked = range.length(&namespace)?;
    if let (Some(asked), Some(has)) = (asked, has)
        && has < asked
        && !(args.pad && has.next_multiple_of(namespace.block_size.into()) == asked)
    {
        bail!("{name} has {has} bytes, {asked} are asked for");
    }
    let bytes = asked.or(has);
    if let Some(bytes) = bytes {
        let block = u64::from(namespace.block_size);
        if !bytes.is_multiple_of(block) && !args.pad {
            bail!(
                "{name} has {bytes} bytes, not a multiple of the namespace's {block}-byte blocks: --pad fills the last one up with zeros"
            );
        }
        range.fits(&namespace, lba, bytes.next_multiple_of(block), room)?;
    }
    let mut input = input.by_ref().take(asked.unwrap_or(u64::MAX));
    range.run(&controller, &namespace, lba, bytes, |transfer| {
        let written = transfer.write(&mut input, args.pad, room)?;
        if let Some(asked) = asked.filter(|asked| written < *asked) {
            bail!("{name} ended after {written} bytes, {asked} were asked for");
        }
        Ok(written)
    })
}

impl Range {
    /// The first block, and how many bytes there are from there on.
    fn place(&self, namespace: &Namespace) -> Result<(u64, u64)> {
        let block = u64::from(namespace.block_size);
        let lba = match (self.lba, self.offset) {
            (Some(lba), _) => lba,
            (None, Some(Size(offset))) => self.whole("--offset", offset, block)?,
            (None, None) => 0,
        };
        if lba >= namespace.blocks {
            bail!("block {lba} is past the end of namespace {}, which has {} blocks", self.nsid, namespace.blocks);
        }
        Ok((lba, (namespace.blocks - lba) * block))
    }

    /// How many bytes are asked for.
    fn length(&self, namespace: &Namespace) -> Result<Option<u64>> {
        let block = u64::from(namespace.block_size);
        match (self.blocks, self.bytes) {
            (Some(0), _) | (_, Some(Size(0))) => bail!(Usage("nothing is asked for: 0 blocks".to_owned())),
            (Some(blocks), _) => Ok(Some(blocks.saturating_mul(block))),
            (None, Some(Size(bytes))) => self.whole("--bytes", bytes, block).map(|_| Some(bytes)),
            (None, None) => Ok(None),
        }
    }

    fn whole(&self, what: &str, bytes: u64, block: u64) -> Result<u64> {
        if !bytes.is_multiple_of(block) {
            bail!("{what} {bytes} is not a multiple of the {block}-byte blocks of namespace {}", self.nsid);
        }
        Ok(bytes / block)
    }

    fn fits(&self, namespace: &Namespace, lba: u64, bytes: u64, room: u64) -> Result<()> {
        if bytes > room {
            bail!(
                "{bytes} bytes from block {lba} on do not fit: namespace {} has {} blocks of {} bytes, so {room} bytes are left there",
                self.nsid,
                namespace.blocks,
                namespace.block_size
            );
        }
        Ok(())
    }

    /// Runs a transfer, and says how fast it was.
    fn run(
        &self,
        controller: &Controller,
        namespace: &Namespace,
        lba: u64,
        total: Option<u64>,
        go: impl FnOnce(Transfer<'_>) -> Result<u64>,
    ) -> Result<()> {
        let (mut queue, pool) = controller.queue(namespace, controller.depth(self.qd)?, CHUNK as u32)?;
        let (began, interrupted) = (Instant::now(), signal::interrupted()?);
        let mut progress = Progress::bytes("copying", total);
        let speed = |bytes: u64| output::bytes((bytes as f64 / began.elapsed().as_secs_f64().max(1e-9)) as u64) + "/s";
        let bytes = go(Transfer {
            queue: &mut queue,
            pool,
            chunk: CHUNK,
            nsid: self.nsid,
            block: namespace.block_size.into(),
            lba,
            interrupted: &interrupted,
            progress: &mut |bytes| progress.at(bytes, || speed(bytes)),
            status_name,
        })
        .map_err(|error| controller.explain(error))?;
        progress.finish();
        let seconds = began.elapsed().as_secs_f64();
        if self.json {
            return output::print_json(&Done { target: &self.target, nsid: self.nsid, lba, bytes, seconds });
        }
        output::note(format!("{bytes} bytes ({}) in {seconds:.2} s, {}", output::bytes(bytes), speed(bytes)));
        Ok(())
    }
}

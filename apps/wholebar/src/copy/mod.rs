//! Copies of a range of a disk to a file, and back: what `wholebar nvme` and `wholebar blk` read and write by.

mod transfer;

use crate::args::{Size, Usage};
use crate::output::{self, Progress};
use crate::signal;
use crate::storage::{Space, Storage};
use crate::target::{self, AnyTarget};
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::time::Instant;
use transfer::Transfer;

/// Where to.
#[derive(clap::Args)]
pub struct Output {
    /// The file to write; - is standard output
    #[arg(long, value_name = "FILE")]
    out: String,
}

/// Where from.
#[derive(clap::Args)]
pub struct Input {
    /// The file to read; - is standard input
    #[arg(long = "in", value_name = "FILE")]
    input: String,
    /// Fill the last block up with zeros
    #[arg(long)]
    pad: bool,
}

/// Which blocks.
#[derive(clap::Args)]
pub struct Range {
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
    /// Commands in flight [default: 32, or what its queues hold]
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
const CHUNK: u32 = 128 << 10;

/// Copies a range of the disk that `open` makes of a target to a file.
pub fn read<S: Storage>(
    target: &str,
    range: &Range,
    output: &Output,
    open: impl FnOnce(&AnyTarget) -> Result<S>,
) -> Result<()> {
    let to_stdout = output.out == "-";
    if to_stdout && range.json {
        bail!(Usage("--json and --out - would both write to standard output".to_owned()));
    }
    let disk = open(&target::open_any(target, &[], None, None)?)?;
    let namespace = disk.space(range.nsid)?;
    let (lba, room) = range.place(&namespace)?;
    let bytes = range.length(&namespace)?.unwrap_or(room);
    range.fits(&namespace, lba, bytes, room)?;
    let mut out: Box<dyn Write> = match to_stdout {
        true => Box::new(io::stdout().lock()),
        false => {
            refuse_open_file(&output.out)?;
            Box::new(File::create(&output.out).with_context(|| format!("cannot write {}", output.out))?)
        }
    };
    let copied = |transfer: Transfer<'_>| transfer.read(bytes, &mut *out).map(|()| bytes);
    match range.run(target, &disk, &namespace, lba, Some(bytes), copied) {
        // Whoever read it has had enough (`| head`).
        Err(error) if to_stdout && output::is_closed_pipe(&error) => Ok(()),
        done => done,
    }
}

/// A file that this process has open may be what the disk keeps its blocks in: making it anew would lose them.
fn refuse_open_file(path: &str) -> Result<()> {
    let Ok(output) = fs::metadata(path) else { return Ok(()) };
    let is_output = |open: fs::DirEntry| {
        fs::metadata(open.path()).is_ok_and(|m| (m.dev(), m.ino()) == (output.dev(), output.ino()))
    };
    if output.is_file() && fs::read_dir("/proc/self/fd").into_iter().flatten().flatten().any(is_output) {
        bail!(Usage(format!("{path} is the file that is read: write to another one")));
    }
    Ok(())
}

/// Copies a file to a range of the disk that `open` makes of a target, and flushes.
pub fn write<S: Storage>(
    target: &str,
    range: &Range,
    args: &Input,
    open: impl FnOnce(&AnyTarget) -> Result<S>,
) -> Result<()> {
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
    let disk = open(&target::open_any(target, &[], None, None)?)?;
    let namespace = disk.space(range.nsid)?;
    namespace.check_writable(&disk)?;
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
    range.run(target, &disk, &namespace, lba, bytes, |transfer| {
        let written = transfer.write(&mut input, args.pad, room)?;
        if let Some(asked) = asked.filter(|asked| written < *asked) {
            bail!("{name} ended after {written} bytes, {asked} were asked for");
        }
        Ok(written)
    })
}

impl Range {
    /// The first block, and how many bytes there are from there on.
    fn place(&self, namespace: &Space) -> Result<(u64, u64)> {
        let block = u64::from(namespace.block_size);
        let lba = match (self.lba, self.offset) {
            (Some(lba), _) => lba,
            (None, Some(Size(offset))) => self.whole("--offset", offset, block)?,
            (None, None) => 0,
        };
        if lba >= namespace.blocks {
            bail!("block {lba} is past the end of namespace {}, which has {} blocks", self.nsid, namespace.blocks);
        }
        Ok((lba, (namespace.blocks - lba).saturating_mul(block)))
    }

    /// How many bytes are asked for.
    fn length(&self, namespace: &Space) -> Result<Option<u64>> {
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

    fn fits(&self, namespace: &Space, lba: u64, bytes: u64, room: u64) -> Result<()> {
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
        target: &str,
        disk: &impl Storage,
        namespace: &Space,
        lba: u64,
        total: Option<u64>,
        go: impl FnOnce(Transfer<'_>) -> Result<u64>,
    ) -> Result<()> {
        let block = namespace.block_size;
        let chunk = namespace.max_transfer.min(CHUNK).max(block) / block * block;
        let (queue, pool) = disk.queue_and_buffers(self.nsid, disk.depth(self.qd)?, chunk)?;
        // Dropped after the queue, with which what is in flight comes home.
        let (pool, mut queue) = (pool, queue);
        let (began, interrupted) = (Instant::now(), signal::interrupted()?);
        let mut progress = Progress::bytes("copying", total);
        let speed = |bytes: u64| output::bytes((bytes as f64 / began.elapsed().as_secs_f64().max(1e-9)) as u64) + "/s";
        let bytes = go(Transfer {
            queue: &mut queue,
            pool: pool.clone(),
            chunk: chunk.into(),
            nsid: self.nsid,
            block: block.into(),
            lba,
            interrupted: &interrupted,
            progress: &mut |bytes| progress.at(bytes, || speed(bytes)),
            status_name: &|status| disk.status_name(status),
        })
        .map_err(|error| disk.explain(error))?;
        progress.finish();
        let seconds = began.elapsed().as_secs_f64();
        if self.json {
            return output::print_json(&Done { target, nsid: self.nsid, lba, bytes, seconds });
        }
        output::note(format!("{bytes} bytes ({}) in {seconds:.2} s, {}", output::bytes(bytes), speed(bytes)));
        Ok(())
    }
}

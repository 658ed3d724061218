//! `hello-nvme [TARGET]`: the first program to copy. Says what an NVMe controller is, writes a block, reads it back, compares.
//!
//! Without a target it runs on a model in this process. Others: `sim:nvme,block=4096,size=64M`, `vfio-user:/run/nvme.sock`, `0000:01:00.0`.
//! What was in the block is put back at the end, but a device whose data matters is no place to try a first program.

use anyhow::{Context, Result, bail, ensure};
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;
use wholebar::block::{Data, Disk, Op, Request, Status};
use wholebar::mem::{Arena, ArenaOptions, Buf, Pool};
use wholebar::nvme::{Nvme, Options, Queue, QueueOptions, StatusCode};

const USAGE: &str = "usage: hello-nvme [TARGET]: 0000:01:00.0, vfio-user:/run/nvme.sock; without one, a model";

fn run(target: &str, out: &mut impl Write) -> Result<()> {
    // The controller: mapped, reset, enabled, identified. A thread of its own looks after events, time-outs and resets.
    let nvme = Nvme::open(wholebar::open(target)?, Options::default())?;
    let id = nvme.identify();
    writeln!(out, "{}: {}, serial {}, firmware {}", nvme.name(), id.model, id.serial, id.firmware)?;
    writeln!(out, "BAR0 is mapped {:?}: {}", nvme.bar().plan().policy, nvme.bar().plan().why)?;
    let ns = Disk::namespaces(&nvme).into_iter().next().context("there is no usable namespace")?;
    writeln!(out, "namespace {}: {} blocks of {} bytes", ns.nsid, ns.blocks, ns.block_size)?;

    // Memory: an arena that the controller is let into, and equal buffers in it. A `Buf` is an owned handle of eight bytes.
    let arena = Arena::new(1 << 20, ArenaOptions::default())?;
    nvme.attach(arena.clone())?;
    let pool = Pool::new(arena, 4, ns.block_size, ns.block_size)?;
    let buf = || pool.get_len(ns.block_size).context("no buffer is left");

    // A queue pair: a value for one thread. Nothing it does locks, allocates or calls the kernel.
    let mut queue = nvme.queue(QueueOptions::default())?;
    let lba = ns.blocks - 1;
    let before = execute(&mut queue, ns.nsid, Op::Read { lba }, buf()?)?;

    let mut data = buf()?;
    data.bytes_mut().iter_mut().zip(0u32..).for_each(|(byte, i)| *byte = (i * 7 + i / 256) as u8);
    let written = execute(&mut queue, ns.nsid, Op::Write { lba }, data)?;
    let read = execute(&mut queue, ns.nsid, Op::Read { lba }, buf()?)?;
    ensure!(read.bytes() == written.bytes(), "block {lba} is not what was written there");
    execute(&mut queue, ns.nsid, Op::Write { lba }, before)?;

    let rung = queue.doorbells();
    writeln!(out, "block {lba} was written, read back and found equal")?;
    writeln!(out, "{} doorbells were rung by a store, {} trapped", rung.direct, rung.trapped)?;
    Ok(())
}

/// One request from beginning to end. Programs in a hurry submit many, ring once, and poll for many.
fn execute(queue: &mut Queue, nsid: u32, op: Op, buf: Buf) -> Result<Buf> {
    // The buffer moves into the command: while it is in flight, nobody can touch or free it. A refused request comes back, with the reason.
    queue.submit(Request { tag: 0, nsid, op, data: Data::One(buf), deadline: None })?;
    // One doorbell tells the controller of all that was submitted.
    queue.ring();
    let mut completion = None;
    while queue.poll_each(1, |done| completion = Some(done)) == 0 {
        std::hint::spin_loop();
    }
    // The completion has the buffer again.
    match completion.map(|done| (done.status, done.data)) {
        Some((Status::Ok, Data::One(buf))) => Ok(buf),
        Some((Status::Device(code), _)) => bail!("{op:?} failed: {}", StatusCode(code)),
        other => bail!("{op:?} ended as {other:?}"),
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let target = match &args[..] {
        [] => "sim:nvme,size=64M",
        [target] if !target.starts_with('-') => target,
        [help] if help == "--help" => {
            let _ = writeln!(io::stdout(), "{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            let _ = writeln!(io::stderr(), "{USAGE}");
            return ExitCode::from(2);
        }
    };
    let Err(error) = run(target, &mut io::stdout()) else { return ExitCode::SUCCESS };
    match error.downcast_ref::<io::Error>() {
        // Nobody reads any more, as in `hello-nvme | head -1`.
        Some(e) if e.kind() == ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
        Some(e) => _ = writeln!(io::stderr(), "hello-nvme: cannot write to standard output: {e}"),
        None => _ = writeln!(io::stderr(), "hello-nvme: {error:#}"),
    }
    let usage = error.downcast_ref().is_some_and(wholebar::OpenError::is_name);
    ExitCode::from(if usage { 2 } else { 1 })
}

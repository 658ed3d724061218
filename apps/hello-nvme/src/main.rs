//! `hello-nvme [TARGET]`: the first program to copy. Says what an NVMe controller is, writes a block, reads it back, compares.
//!
//! Without a target it runs on a model in this process. Others: `sim:nvme,block=4096,size=64M`, `vfio-user:/run/nvme.sock`, `0000:01:00.0`.
//! What was in the block is put back at the end, but a device whose data matters is no place to try a first program.

use anyhow::{Context, Result, anyhow, bail, ensure};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use wholebar::block::{Data, Op, Request, Status};
use wholebar::mem::{Arena, ArenaOptions, Buf, Pool};
use wholebar::nvme::{Nvme, Options, Queue, QueueOptions, StatusCode};
use wholebar::sim::{OpenOptions, Target};

fn run(target: &Target) -> Result<()> {
    // A PCI function, whatever stands behind the name. It comes first, so that it is dropped last: a model stops then.
    let opened = wholebar::sim::open(target, OpenOptions::default())?;

    // The controller: mapped, reset, enabled, identified. A thread of its own looks after events, time-outs and resets.
    let nvme = Nvme::open(opened.device.clone(), Options::default())?;
    let controller = nvme.identify();
    println!(
        "{}: {}, serial {}, firmware {}",
        nvme.device().name(),
        controller.model,
        controller.serial,
        controller.firmware
    );
    println!("BAR0 is mapped {:?}: {}", nvme.bar().plan().policy, nvme.bar().plan().why);
    let namespaces = nvme.namespaces();
    for ns in namespaces.iter() {
        let note = ns.unsupported.as_deref().unwrap_or("usable");
        println!("namespace {}: {} blocks of {} bytes ({note})", ns.nsid, ns.blocks, ns.block_size);
    }
    let ns = namespaces.iter().find(|n| n.unsupported.is_none()).context("there is no usable namespace")?;

    // Memory: an arena that the controller is let into, and equal buffers in it. A `Buf` is an owned handle of eight bytes.
    let arena = Arena::new(1 << 20, ArenaOptions::default())?;
    nvme.attach(&arena)?;
    let pool = Pool::new(&arena, 4, ns.block_size, ns.block_size.into())?;
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
    println!(
        "block {lba} was written, read back and found equal ({} doorbells by a store, {} trapped)",
        rung.direct, rung.trapped
    );
    Ok(())
}

/// One request from beginning to end. Programs in a hurry submit many, ring once, and poll for many.
fn execute(queue: &mut Queue, nsid: u32, op: Op, buf: Buf) -> Result<Buf> {
    // The buffer moves into the command: while it is in flight, nobody can touch or free it. A refused request comes back, with the reason.
    let request =
        Request { tag: 0, nsid, op, data: Data::One(buf), deadline: Some(Instant::now() + Duration::from_secs(30)) };
    queue.submit(request).map_err(|rejected| anyhow!("{op:?} was not taken: {}", rejected.why))?;
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
        _ => {
            eprintln!("usage: hello-nvme [TARGET]");
            return ExitCode::from(2);
        }
    };
    match Target::parse(target).map_err(Into::into).and_then(|target| run(&target)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hello-nvme: {error}");
            ExitCode::FAILURE
        }
    }
}

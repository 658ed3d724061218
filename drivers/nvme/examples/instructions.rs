//! How many instructions an I/O costs in the driver, from submit to completion, at depth 128. Nothing is timed, so it says the same on a
//! busy machine:
//!
//! ```sh
//! cargo build --release -p wholebar-nvme --example instructions
//! valgrind --tool=callgrind --callgrind-out-file=/dev/null --collect-atstart=no --toggle-collect='*driver_side*' \
//!     target/release/examples/instructions
//! ```
//!
//! Divide what callgrind "Collected" by the I/Os that the program prints. That is the driver, and the caller's loop around it: taking a buffer,
//! making a request of it, and putting the buffer back. With `--toggle-collect='*caller_side*'` it is that loop alone, to be taken off;
//! `benches/instructions` does both. The model's work is outside of either.

use std::error::Error;
use std::hint::black_box;
use std::io::Write;
use wholebar_core::block::{Data, Op, Request};
use wholebar_core::mem::{Arena, ArenaOptions, Buf, Pool};
use wholebar_core::model::InProcess;
use wholebar_nvme::{Nvme, Options, Queue, QueueOptions, Service};
use wholebar_sim::nvme::{Nvme as Model, NvmeParams};

const DEPTH: usize = 128;
const ROUNDS: u64 = 1000;

#[inline(never)]
fn driver_side_submit(queue: &mut Queue, bufs: &mut Vec<Buf>, lba: u64) {
    while let Some(buf) = bufs.pop() {
        let req = Request { tag: lba, nsid: 1, op: Op::Read { lba }, data: Data::One(buf), deadline: None };
        if queue.submit(req).is_err() {
            break;
        }
    }
    queue.ring();
}

#[inline(never)]
fn driver_side_poll(queue: &mut Queue, bufs: &mut Vec<Buf>) -> usize {
    queue.poll_each(DEPTH, |done| {
        if let Data::One(buf) = done.data {
            bufs.push(buf);
        }
    })
}

/// What the two functions above do besides calling the driver.
#[inline(never)]
fn caller_side(bufs: &mut Vec<Buf>, done: &mut Vec<Buf>, lba: u64) {
    while let Some(buf) = bufs.pop() {
        let req = black_box(Request { tag: lba, nsid: 1, op: Op::Read { lba }, data: Data::One(buf), deadline: None });
        if let Data::One(buf) = req.data {
            done.push(buf);
        }
    }
    std::mem::swap(bufs, done);
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout();
    let device = InProcess::new(Model::new(NvmeParams::parse("size=64M,backing=null")?)?)?;
    // The model runs by itself while the controller is opened and closed, and by steps in between.
    device.spawn(|| {})?;
    let nvme = Nvme::open(device.clone(), Options { service: Service::Manual, ..Options::default() })?;
    let arena = Arena::new(2 << 20, ArenaOptions::default())?;
    nvme.attach(arena.clone())?;
    let pool = Pool::new(arena, DEPTH as u32, 4096, 4096)?;
    let mut bufs: Vec<_> = std::iter::from_fn(|| pool.get_len(4096)).collect();
    let mut queue = nvme.queue(QueueOptions { entries: Some(256), ..QueueOptions::default() })?;
    device.stop();
    for round in 0..ROUNDS {
        driver_side_submit(&mut queue, &mut bufs, black_box(8 * (round % 1000)));
        while queue.in_flight() > 0 {
            device.step();
            if driver_side_poll(&mut queue, &mut bufs) == 0 {
                continue;
            }
        }
    }
    let mut done = Vec::with_capacity(DEPTH);
    for round in 0..ROUNDS {
        caller_side(&mut bufs, &mut done, black_box(8 * (round % 1000)));
    }
    device.spawn(|| {})?;
    writeln!(out, "{} I/Os, {:?}", ROUNDS * DEPTH as u64, queue.doorbells())?;
    drop(queue);
    Ok(nvme.shutdown()?)
}

//! How many instructions an I/O costs in the driver, from submit to completion, at depth 128. Nothing is timed, so it says the same on a
//! busy machine:
//!
//! ```sh
//! cargo build --release -p wholebar-nvme --example instructions
//! valgrind --tool=callgrind --callgrind-out-file=/dev/null --collect-atstart=no --toggle-collect='*driver_side*' \
//!     target/release/examples/instructions
//! ```
//!
//! Divide what callgrind "Collected" by the I/Os that the program prints. It counts the requests' making, the driver, and the taking of what
//! completed; the model's work is done outside of it.

use std::error::Error;
use std::hint::black_box;
use wholebar::block::{Data, Op, Request};
use wholebar::mem::{Arena, ArenaOptions, Buf, Pool};
use wholebar::model::InProcess;
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

fn main() -> Result<(), Box<dyn Error>> {
    let device = InProcess::new(Model::new(NvmeParams::parse("size=64M,backing=null")?)?)?;
    // The model runs by itself while the controller is opened and closed, and by steps in between.
    let thread = device.spawn(|| {});
    let nvme = Nvme::open(device.clone(), Options { service: Service::Manual, ..Options::default() })?;
    let arena = Arena::new(2 << 20, ArenaOptions::default())?;
    nvme.attach(&arena)?;
    let pool = Pool::new(&arena, DEPTH as u32, 4096, 4096)?;
    let mut bufs: Vec<_> = std::iter::from_fn(|| pool.get_len(4096)).collect();
    let mut queue = nvme.queue(QueueOptions { entries: Some(256), ..QueueOptions::default() })?;
    drop(thread);
    for round in 0..ROUNDS {
        driver_side_submit(&mut queue, &mut bufs, black_box(8 * (round % 1000)));
        while queue.in_flight() > 0 {
            device.step();
            if driver_side_poll(&mut queue, &mut bufs) == 0 {
                continue;
            }
        }
    }
    let _thread = device.spawn(|| {});
    println!("{} I/Os, {:?}", ROUNDS * DEPTH as u64, queue.doorbells());
    drop(queue);
    Ok(nvme.shutdown()?)
}

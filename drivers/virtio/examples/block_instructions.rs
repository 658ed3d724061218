//! How many instructions a request of a block device costs, counted: nothing is timed, so it says the same on a busy machine. Reads of 4 KiB
//! go to a virtio-blk model without a medium, 16 a poll, and come back.
//!
//! ```sh
//! cargo build --release -p wholebar-virtio --example block_instructions
//! valgrind --tool=callgrind --callgrind-out-file=/dev/null --collect-atstart=no --toggle-collect='*driver_side*' \
//!     target/release/examples/block_instructions split
//! ```
//!
//! Divide what callgrind "Collected" by the requests that the program prints. Making requests is part of it, as it is of NVMe's.

use std::error::Error;
use std::io::Write;
use wholebar_core::block::{Completion, Data, Op, Request, Status};
use wholebar_core::mem::{Arena, ArenaOptions, Buf, Pool};
use wholebar_core::model::InProcess;
use wholebar_sim::virtio::blk::{BlkParams, model};
use wholebar_virtio::blk::{BlkConfig, Queue};
use wholebar_virtio::{Blk, Options, Service};

const REQUESTS: usize = 16 * 4000;
const BATCH: usize = 16;

#[inline(never)]
fn driver_side_submit(queue: &mut Queue, bufs: &mut Vec<Buf>) {
    while let Some(buf) = bufs.pop() {
        let req = Request { tag: 1, nsid: 1, op: Op::Read { lba: 8 }, data: Data::One(buf), deadline: None };
        if let Err(rejected) = queue.submit(req) {
            panic!("{rejected}");
        }
    }
    queue.ring();
}

#[inline(never)]
fn driver_side_poll(queue: &mut Queue, bufs: &mut Vec<Buf>) -> usize {
    queue.poll_each(BATCH, |done| match done {
        Completion { status: Status::Ok, data: Data::One(buf), .. } => bufs.push(buf),
        other => panic!("{other:?}"),
    })
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let packed = match &arguments[..] {
        [] => false,
        [ring] if matches!(ring.as_str(), "split" | "packed") => ring == "packed",
        _ => return Err("split or packed is wanted, or nothing, for split".into()),
    };
    let device = InProcess::new(model(BlkParams::parse("backing=null,size=64M")?)?)?;
    // The model runs by itself while it is opened, and by steps afterwards.
    device.spawn(|| {})?;
    let options = Options { packed, service: Service::Manual, ..Options::default() };
    let blk = Blk::open(device.clone(), &BlkConfig::default(), options)?;
    let arena = Arena::new(1 << 20, ArenaOptions::default())?;
    blk.attach(arena.clone())?;
    let pool = Pool::new(arena.clone(), BATCH as u32, 4096, 4096)?;
    let mut queue = blk.queue()?;
    device.stop();
    let mut bufs: Vec<_> = std::iter::from_fn(|| pool.get_len(4096)).take(BATCH).collect();
    let mut done = 0;
    while done < REQUESTS {
        driver_side_submit(&mut queue, &mut bufs);
        while queue.in_flight() > 0 {
            device.step();
            done += driver_side_poll(&mut queue, &mut bufs);
        }
    }
    writeln!(std::io::stdout(), "{done} requests")?;
    drop((queue, bufs));
    device.spawn(|| {})?;
    Ok(blk.shutdown()?)
}

//! How many instructions an I/O costs as a future, from its first poll to its last, at depth 128, the driver's included: the same work as the NVMe
//! driver's example `instructions` has without futures, measured in the same way. `benches/instructions` runs both.
//!
//! Futures are polled by hand and the waker does nothing: what an executor costs is another matter.

use std::error::Error;
use std::hint::black_box;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use wholebar::asynchronous::{Queue, Submit};
use wholebar::block::{Data, Op, Request};
use wholebar::mem::{Arena, ArenaOptions, Buf, Pool};
use wholebar::model::InProcess;
use wholebar::nvme::{Nvme, Options, QueueOptions, Service};
use wholebar::sim::nvme::{Nvme as Model, NvmeParams};

const DEPTH: usize = 128;
const ROUNDS: u64 = 1000;

/// Makes a future of each buffer, and polls each once.
#[inline(never)]
fn driver_side_submit<'a>(queue: &'a Queue, bufs: &mut Vec<Buf>, futures: &mut Vec<Submit<'a>>, lba: u64) {
    let mut context = Context::from_waker(Waker::noop());
    while let Some(buf) = bufs.pop() {
        let req = Request { tag: lba, nsid: 1, op: Op::Read { lba }, data: Data::One(buf), deadline: None };
        futures.push(queue.submit(req));
        if let Some(future) = futures.last_mut() {
            let _ = black_box(Pin::new(future).poll(&mut context).is_pending());
        }
    }
    queue.poll(0);
}

#[inline(never)]
fn driver_side_poll(queue: &Queue) -> usize {
    queue.poll(DEPTH)
}

/// Polls each once more: they are complete.
#[inline(never)]
fn driver_side_take(bufs: &mut Vec<Buf>, futures: &mut Vec<Submit<'_>>) {
    let mut context = Context::from_waker(Waker::noop());
    while let Some(mut future) = futures.pop() {
        if let Poll::Ready(Ok(done)) = Pin::new(&mut future).poll(&mut context)
            && let Data::One(buf) = done.data
        {
            bufs.push(buf);
        }
    }
}

/// What the functions above do besides: taking a buffer, making a request of it, and putting the buffer back.
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
    let device = InProcess::new(Model::new(NvmeParams::parse("size=64M,backing=null")?)?)?;
    // The model runs by itself while the controller is opened and closed, and by steps in between.
    device.spawn(|| {})?;
    let nvme = Nvme::open(device.clone(), Options { service: Service::Manual, ..Options::default() })?;
    let arena = Arena::new(2 << 20, ArenaOptions::default())?;
    nvme.attach(arena.clone())?;
    let pool = Pool::new(arena, DEPTH as u32, 4096, 4096)?;
    let mut bufs: Vec<_> = std::iter::from_fn(|| pool.get_len(4096)).collect();
    let queue = nvme.queue(QueueOptions { entries: Some(256), ..QueueOptions::default() })?;
    let queue = Queue::new(Box::new(queue));
    device.stop();
    let mut futures = Vec::with_capacity(DEPTH);
    let mut taken = 0;
    for round in 0..ROUNDS {
        driver_side_submit(&queue, &mut bufs, &mut futures, black_box(8 * (round % 1000)));
        while queue.in_flight() > 0 {
            device.step();
            driver_side_poll(&queue);
        }
        driver_side_take(&mut bufs, &mut futures);
        taken += bufs.len();
    }
    assert_eq!(taken as u64, ROUNDS * DEPTH as u64, "each future has given its buffer back");
    let mut done = Vec::with_capacity(DEPTH);
    for round in 0..ROUNDS {
        caller_side(&mut bufs, &mut done, black_box(8 * (round % 1000)));
    }
    device.spawn(|| {})?;
    println!("{} I/Os", ROUNDS * DEPTH as u64);
    drop(futures);
    drop(queue);
    Ok(nvme.shutdown()?)
}

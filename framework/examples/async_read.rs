//! Reads a disk's first blocks by 32 tasks at once, under an executor that is written out here: a list of tasks, of which those that were woken are
//! polled, and the queue after them.
//!
//! ```sh
//! cargo run -p wholebar --features async,sim --example async_read -- sim:nvme,size=64M
//! ```

use std::cell::Cell;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake};
use wholebar::asynchronous::Queue;
use wholebar::block::{self, Data, DiskConfig};
use wholebar::mem::{Arena, ArenaOptions, Pool};

type Error = Box<dyn std::error::Error>;
const TASKS: u64 = 32;
const BLOCKS: u64 = 4096;

/// Whether a task was woken since it was polled.
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn run(queue: &Queue, tasks: Vec<Pin<Box<dyn Future<Output = ()> + '_>>>) {
    let mut tasks: Vec<_> = tasks.into_iter().map(|task| (Arc::new(Woken(AtomicBool::new(true))), task)).collect();
    while !tasks.is_empty() {
        tasks.retain_mut(|(woken, task)| {
            let was_woken = woken.0.swap(false, Ordering::Relaxed);
            !was_woken || task.as_mut().poll(&mut Context::from_waker(&woken.clone().into())).is_pending()
        });
        queue.poll(TASKS as usize);
    }
}

fn main() -> Result<(), Error> {
    let target = std::env::args().nth(1).unwrap_or_else(|| "sim:nvme,size=64M".to_owned());
    let disk = block::open_target(&target, &DiskConfig::default())?;
    let ns = disk.namespaces().into_iter().next().ok_or("no namespace can be used")?;
    let arena = Arena::new(4 << 20, ArenaOptions::default())?;
    disk.attach(arena.clone())?;
    let pool = Pool::new(arena, TASKS as u32, ns.block_size, ns.block_size)?;
    let queue = Queue::new(disk.queue()?);
    let (blocks, bytes, failures) = (BLOCKS.min(ns.blocks), Cell::new(0), Cell::new(0u64));
    let task = async |first: u64| {
        let Some(buf) = pool.get_len(ns.block_size) else { return };
        let mut data = Data::One(buf);
        for lba in (first..blocks).step_by(TASKS as usize) {
            data = match queue.read(ns.nsid, lba, data).await {
                Ok(data) => data,
                Err(error) => {
                    eprintln!("{error}");
                    failures.set(failures.get() + 1);
                    return;
                }
            };
            bytes.set(bytes.get() + data.len());
        }
    };
    run(&queue, (0..TASKS).map(|first| Box::pin(task(first)) as _).collect());
    println!("{} bytes of {} by {TASKS} tasks", bytes.get(), disk.name());
    if failures.get() > 0 { Err(format!("{} tasks failed", failures.get()).into()) } else { Ok(()) }
}

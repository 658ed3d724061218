//! Futures over queues of disks: one program under tokio, under smol and under a loop of ten lines, on NVMe and virtio.

use anyhow::{Context as _, Result, ensure};
use std::cell::Cell;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use wholebar::asynchronous::{Cause, Error, Queue};
use wholebar::block::{Data, Disk, Namespace, Op, QueueState, Reject, Request};
use wholebar::mem::{Arena, ArenaOptions, Buf, Pool};
use wholebar::nvme::{self, Nvme};
use wholebar::sim::virtio::blk::{self, BlkParams};
use wholebar::virtio::blk::BlkConfig;
use wholebar::virtio::{self, Blk};
use wholebar_tests::storage::{PATIENCE, fill, holds};
use wholebar_tests::{Rig, behind_socket, on_thread, vfio_user};

type Task = Pin<Box<dyn Future<Output = Result<()>>>>;
/// Models behind sockets are as large as the others.
const SIZE: &str = "size=64M";
/// Tasks at once, and blocks that they write and read back, each of the disk's own size. There are as many blocks again for what is given up.
const TASKS: u64 = 32;
const BLOCKS: u64 = 512;
const BUFS: u32 = 2 * TASKS as u32;

struct Bench {
    queue: Queue,
    pool: Pool,
    ns: Namespace,
    disk: Box<dyn Disk>,
    _rig: Rig,
}

/// A disk of either driver, with queues of so many entries, on a model in this process or, `served:`, behind a vfio-user socket. Nothing is late on a machine
/// that is merely busy.
fn bench(target: &str, entries: Option<u16>) -> Result<Bench> {
    let rig = match target.strip_prefix("served:") {
        None => on_thread(target)?,
        Some("nvme") => vfio_user(SIZE)?,
        Some(_) => behind_socket(blk::model(BlkParams::parse(SIZE)?)?)?,
    };
    let disk: Box<dyn Disk> = if target.contains("nvme") {
        let options = nvme::Options { entries: entries.map_or(128, u32::from), ..wholebar_tests::nvme::patient() };
        Box::new(Nvme::open(rig.device.clone(), options)?)
    } else {
        let config = BlkConfig { descriptors: entries, ..BlkConfig::default() };
        let options = virtio::Options { stop_timeout: PATIENCE, ..wholebar_tests::virtio::patient() };
        Box::new(Blk::open(rig.device.clone(), &config, options)?)
    };
    let ns = disk.namespaces().into_iter().next().context("no namespace")?;
    let arena = Arena::new(4 << 20, ArenaOptions::default())?;
    disk.attach(arena.clone())?;
    let pool = Pool::new(arena, BUFS, ns.block_size, ns.block_size)?;
    Ok(Bench { queue: Queue::new(disk.queue()?), pool, ns, disk, _rig: rig })
}

impl Bench {
    fn buf(&self) -> Result<Data> {
        Ok(Data::One(self.pool.get_len(self.ns.block_size).context("the pool is empty")?))
    }
}

/// A buffer; where all are out, one of those that were given up, whose commands end in the polls of other tasks.
async fn next_buf(bench: &Bench) -> Result<Data> {
    loop {
        match bench.pool.get_len(bench.ns.block_size) {
            Some(buf) => return Ok(Data::One(buf)),
            None => bench.queue.flush(bench.ns.nsid).await?,
        }
    }
}

fn one(data: &mut Data) -> &mut Buf {
    match data {
        Data::One(buf) => buf,
        other => panic!("{other:?}"),
    }
}

/// Polls a future once, which does not complete, and drops it.
fn give_up<T>(future: impl Future<Output = T>) {
    assert!(pin!(future).poll(&mut Context::from_waker(Waker::noop())).is_pending(), "nobody polled the queue");
}

/// What one of the tasks does: writes blocks, reads them back, and gives up some of what it began.
async fn program(bench: Rc<Bench>, first: u64, verified: Rc<Cell<u64>>) -> Result<()> {
    let (queue, Namespace { nsid, block_size, .. }) = (&bench.queue, bench.ns);
    for lba in (first..BLOCKS).step_by(TASKS as usize) {
        let mut data = next_buf(&bench).await?;
        fill(one(&mut data), lba, block_size, 1);
        let mut data = queue.write(nsid, lba, data).await?;
        if lba.is_multiple_of(5) {
            // Given up: nobody knows whether that one is written, so it has its own place.
            fill(one(&mut data), lba, block_size, 2);
            give_up(queue.write(nsid, BLOCKS + lba, data));
            give_up(queue.flush(nsid));
            data = next_buf(&bench).await?;
        }
        one(&mut data).bytes_mut().fill(0xaa);
        let mut data = queue.read(nsid, lba, data).await?;
        ensure!(holds(one(&mut data), lba, block_size, 1), "block {lba} is not what was written");
        verified.set(verified.get() + 1);
    }
    queue.flush(nsid).await?;
    Ok(())
}

fn under_tokio(queue: &Queue, tasks: Vec<Task>) -> Result<()> {
    // tokio
    let queue = queue.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let polling = tokio::task::spawn_local(async move { queue.run().await });
        let tasks: Vec<_> = tasks.into_iter().map(tokio::task::spawn_local).collect();
        for task in tasks {
            task.await??;
        }
        polling.abort();
        Ok(())
    })
    // end
}

fn under_smol(queue: &Queue, tasks: Vec<Task>) -> Result<()> {
    // smol
    let executor = smol::LocalExecutor::new();
    let tasks: Vec<_> = tasks.into_iter().map(|task| executor.spawn(task)).collect();
    let polling = executor.spawn(async { queue.run().await });
    smol::block_on(executor.run(async {
        for task in tasks {
            task.await?;
        }
        polling.cancel().await;
        Ok(())
    }))
    // end
}

/// Whether a task was woken since it was polled.
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn by_hand(queue: &Queue, tasks: Vec<Task>) -> Result<()> {
    let mut ended = Ok(());
    let mut tasks: Vec<_> = tasks.into_iter().map(|task| (Arc::new(Woken(AtomicBool::new(true))), task)).collect();
    while !tasks.is_empty() && ended.is_ok() {
        tasks.retain_mut(|(woken, task)| {
            let was_woken = woken.0.swap(false, Ordering::Relaxed);
            !was_woken
                || match task.as_mut().poll(&mut Context::from_waker(&woken.clone().into())) {
                    Poll::Ready(Err(error)) => std::mem::replace(&mut ended, Err(error)).is_err(),
                    poll => poll.is_pending(),
                }
        });
        queue.poll(32);
    }
    ended
}

/// The program by all of its tasks; then nothing is in flight, and all buffers are home.
fn runs(under: fn(&Queue, Vec<Task>) -> Result<()>) -> Result<()> {
    for target in ["sim:nvme,size=64M", "sim:virtio-blk,size=64M", "served:nvme", "served:virtio-blk"] {
        // Few entries have most requests wait for room.
        for entries in [None, Some(8)] {
            let bench = Rc::new(bench(target, entries)?);
            let verified = Rc::new(Cell::new(0));
            let tasks = (0..TASKS).map(|first| Box::pin(program(bench.clone(), first, verified.clone())) as Task);
            under(&bench.queue, tasks.collect()).with_context(|| format!("{target}, {entries:?} entries"))?;
            while bench.queue.in_flight() > 0 {
                bench.queue.poll(32);
                std::thread::yield_now();
            }
            assert_eq!((verified.get(), bench.pool.available(), bench.queue.waiting()), (BLOCKS, BUFS, 0));
        }
    }
    Ok(())
}

#[test]
fn under_tokio_on_a_local_set() -> Result<()> {
    runs(under_tokio)
}

#[test]
fn under_smol_on_a_local_executor() -> Result<()> {
    runs(under_smol)
}

#[test]
fn under_a_loop_of_ten_lines() -> Result<()> {
    runs(by_hand)
}

type Read<'a> = Pin<Box<dyn Future<Output = Result<Data, Error>> + 'a>>;

/// Futures of reads, polled once: they are with the driver, which has announced nothing yet. Every third is dropped.
fn begun(bench: &Bench) -> Result<Vec<Read<'_>>> {
    let mut reads = Vec::<Read<'_>>::new();
    for lba in 0..12 {
        let mut read = Box::pin(bench.queue.read(bench.ns.nsid, lba, bench.buf()?));
        assert!(read.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        if lba % 3 != 2 {
            reads.push(read);
        }
    }
    // Of those that are dropped, what waits for room is withdrawn.
    let out = bench.queue.in_flight() + bench.queue.waiting();
    assert_eq!(bench.pool.available(), BUFS - out as u32);
    Ok(reads)
}

#[test]
fn a_reset_aborts_what_is_in_flight_and_the_rest_goes_on() -> Result<()> {
    for target in ["sim:nvme,size=64M", "sim:virtio-blk,size=64M"] {
        let bench = bench(target, None)?;
        let (ns, disk) = (bench.ns, &*bench.disk);
        let mut reads = begun(&bench)?;
        std::thread::scope(|scope| -> Result<()> {
            let reset = scope.spawn(move || disk.reset());
            while bench.queue.state() == QueueState::Running {
                std::thread::yield_now();
            }
            // One that comes now waits until the device is there again.
            let mut late = Box::pin(bench.queue.read(ns.nsid, 0, bench.buf()?));
            let mut context = Context::from_waker(Waker::noop());
            assert!(late.as_mut().poll(&mut context).is_pending());
            let read = loop {
                bench.queue.poll(32);
                if let Poll::Ready(read) = late.as_mut().poll(&mut context) {
                    break read;
                }
                std::thread::yield_now();
            };
            assert_eq!(read?.len(), u64::from(ns.block_size));
            for read in &mut reads {
                let Poll::Ready(Err(error)) = read.as_mut().poll(&mut context) else { panic!("{target}: not aborted") };
                assert_eq!((error.cause, error.data.len()), (Cause::Aborted, ns.block_size.into()));
            }
            assert_eq!(bench.pool.available(), BUFS, "those of dropped futures, too");
            Ok(reset.join().expect("a reset does not panic")?)
        })?;
    }
    Ok(())
}

#[test]
fn when_the_device_vanishes_every_future_ends_by_name() -> Result<()> {
    for target in ["sim:nvme,size=64M,faults=vanish:@1", "sim:virtio-blk,size=64M,faults=vanish:@1"] {
        // Some of them wait for room.
        let bench = bench(target, Some(8))?;
        let mut reads = begun(&bench)?;
        let mut context = Context::from_waker(Waker::noop());
        while bench.queue.state() != QueueState::Gone || bench.queue.in_flight() > 0 || bench.queue.waiting() > 0 {
            bench.queue.poll(1);
            std::thread::yield_now();
        }
        for read in &mut reads {
            let Poll::Ready(Err(error)) = read.as_mut().poll(&mut context) else { panic!("{target}: it hangs") };
            assert_eq!((error.cause, error.data.len()), (Cause::Gone, bench.ns.block_size.into()), "{target}");
        }
        drop(reads);
        let request = Request { tag: 5, nsid: 1, op: Op::Read { lba: 0 }, data: bench.buf()?, deadline: None };
        let Poll::Ready(Err(rejected)) = pin!(bench.queue.submit(request)).poll(&mut context) else {
            panic!("{target}")
        };
        assert_eq!((rejected.req.tag, rejected.why, bench.pool.available()), (5, Reject::Gone, BUFS - 1));
    }
    Ok(())
}

/// The guide's blocks that its own tests cannot run, for want of the executors, are of this file.
#[test]
fn what_the_guide_shows_of_executors_is_what_runs_here() {
    let (here, guide) = (include_str!("asynchronous.rs"), include_str!("../../../framework/src/guide/asynchronous.md"));
    for executor in ["tokio", "smol"] {
        let mark = format!("    // {executor}\n");
        let (_, body) = here.split_once(&mark).expect("a mark");
        let (body, _) = body.split_once("    // end\n").expect("an end");
        let shown: String =
            body.lines().map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line))).collect();
        assert!(guide.contains(&shown), "the guide does not show this for {executor}:\n{shown}");
    }
}

//! Bodies for any disk and its queues, whatever the device is: the test suite's and [`run`](crate::run)'s. Those that say so write to the device.

use anyhow::{Context, Result, anyhow, bail, ensure};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use wholebar::block::{BlockQueue, Completion, Data, Disk, Namespace, Op, Reject, Request, Status};
use wholebar::mem::{Buf, Pool};

/// How long a body waits for anything before it fails.
pub const PATIENCE: Duration = Duration::from_secs(200);

/// A request without a deadline of its own.
pub fn request(nsid: u32, op: Op, data: Data) -> Request {
    Request { tag: 0, nsid, op, data, deadline: None }
}

/// Fills a buffer: each block says where it belongs and which write it is from.
pub fn fill(buf: &mut Buf, lba: u64, block: u32, seed: u64) {
    for (i, bytes) in buf.bytes_mut().chunks_mut(block as usize).enumerate() {
        let mut word = (lba + i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed;
        for chunk in bytes.chunks_mut(8) {
            word = word.rotate_left(23).wrapping_mul(0xd6e8_feb8_6659_fd93);
            chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
        }
    }
}

/// Whether a buffer is as [`fill`] leaves it.
pub fn holds(buf: &Buf, lba: u64, block: u32, seed: u64) -> bool {
    buf.bytes().chunks(block as usize).enumerate().all(|(i, bytes)| {
        let mut word = (lba + i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed;
        bytes.chunks(8).all(|chunk| {
            word = word.rotate_left(23).wrapping_mul(0xd6e8_feb8_6659_fd93);
            *chunk == word.to_le_bytes()[..chunk.len()]
        })
    })
}

/// Submits one request, rings, and waits for it.
///
/// # Errors
/// Where it is refused, or does not complete.
pub fn run(queue: &mut dyn BlockQueue, req: Request) -> Result<Completion> {
    if let Err(rejected) = queue.submit(req) {
        bail!("refused: {}", rejected.why);
    }
    finish(queue)
}

/// Announces what was posted, and waits for the completion of one request.
///
/// # Errors
/// That none came in time.
pub fn finish(queue: &mut dyn BlockQueue) -> Result<Completion> {
    queue.ring();
    let (began, mut done) = (Instant::now(), None);
    while done.is_none() {
        queue.poll(1, &mut |c| done = Some(c));
        ensure!(began.elapsed() < PATIENCE, "no completion: the queue is {:?}", queue.state());
        std::thread::yield_now();
    }
    done.context("a completion")
}

/// The data of a request that ended well.
///
/// # Errors
/// Where it didn't.
pub fn ok(completion: Completion, what: &str) -> Result<Data> {
    ensure!(completion.status == Status::Ok, "{what}: {:?}", completion.status);
    Ok(completion.data)
}

/// Waits while something is so.
///
/// # Errors
/// Where it is so for a long time.
pub fn wait_while(mut waits: impl FnMut() -> bool) -> Result<()> {
    let began = Instant::now();
    while waits() {
        ensure!(began.elapsed() < PATIENCE, "nothing changed for {PATIENCE:?}");
        std::thread::yield_now();
    }
    Ok(())
}

/// Writes, reads back and compares, in sizes from one block to all that a buffer of the pool holds, which may be more than one command can
/// take. `place` is the namespace, and its block size; of its blocks it uses those in `lbas`. Returns the number of sizes.
///
/// # Errors
/// A request that was refused, did not complete or failed, with its status; a size that came back changed; that no size fits `lbas`.
pub fn round_trips(queue: &mut dyn BlockQueue, pool: &Pool, place: (u32, u32), lbas: Range<u64>) -> Result<usize> {
    let (nsid, block) = place;
    let mut sizes = vec![block, 2 * block, 4096, 8192, 12 << 10, 64 << 10, 128 << 10, (128 << 10) + 4096, 1 << 20];
    sizes.push(pool.size());
    let mut tried = 0;
    for (i, len) in sizes.into_iter().enumerate() {
        let (lba, seed) = (lbas.start + i as u64 * 7 + 1, i as u64);
        if !len.is_multiple_of(block) || len > pool.size() || lba + u64::from(len / block) > lbas.end {
            continue;
        }
        let mut buf = pool.get_len(len).context("no buffer left")?;
        fill(&mut buf, lba, block, seed);
        ok(run(queue, request(nsid, Op::Write { lba }, Data::One(buf)))?, "write")?;
        let buf = pool.get_len(len).context("no buffer left")?;
        let data = ok(run(queue, request(nsid, Op::Read { lba }, Data::One(buf)))?, "read")?;
        let same = data.bufs().iter().all(|b| holds(b, lba, block, seed));
        ensure!(same, "{len} bytes at block {lba} came back changed");
        tried += 1;
    }
    ensure!(tried > 0, "{lbas:?} has too few blocks");
    Ok(tried)
}

/// Two threads write and verify on queues of their own while the disk is reset again and again, in the first 128 KiB, or 32 blocks, from block `first` on;
/// `pool` has 64 buffers that hold a block, and 4 KiB.
///
/// A command that was aborted is done again: its write may have happened or not, but nothing else may have.
///
/// # Errors
/// A reset that failed, with its number; a command that failed or did not end; a block that does not hold what was written; a buffer that is missing.
pub fn data_survives_resets(disk: &dyn Disk, ns: &Namespace, pool: &Pool, first: u64, resets: u32) -> Result<()> {
    let stop = AtomicBool::new(false);
    let rounds: [AtomicU64; THREADS as usize] = Default::default();
    let queues = (0..THREADS).map(|_| disk.queue()).collect::<Result<Vec<_>, _>>()?;
    std::thread::scope(|scope| {
        let workers = queues.into_iter().zip(0..THREADS).map(|(queue, nth)| {
            let (stop, rounds) = (&stop, &rounds);
            let mut worker = Worker { queue, ns: *ns, pool, first, nth };
            std::thread::Builder::new().spawn_scoped(scope, move || -> Result<()> {
                let mut seed = 0;
                while !stop.load(Ordering::Relaxed) {
                    seed += 1;
                    for read in [false, true] {
                        let mut open: Vec<u64> = (0..DEPTH).collect();
                        while !open.is_empty() {
                            worker.batch(seed, read, &mut open)?;
                        }
                    }
                    rounds[nth as usize].store(seed, Ordering::Relaxed);
                }
                Ok(())
            })
        });
        let workers = workers.collect::<Result<Vec<_>, _>>().context("starting a thread")?;
        let reset = || -> Result<()> {
            for round in 1..=resets {
                // Each gets some work through between resets, however seldom it has a core: something is in flight then.
                let seen: Vec<_> = rounds.iter().map(|done| done.load(Ordering::Relaxed)).collect();
                let idle = || rounds.iter().zip(&seen).any(|(done, seen)| done.load(Ordering::Relaxed) < seen + 2);
                let ended = || workers.iter().any(|worker| worker.is_finished());
                wait_while(|| idle() && !ended()).with_context(|| format!("before reset {round}"))?;
                disk.reset().with_context(|| format!("reset {round}"))?;
            }
            Ok(())
        };
        let reset = reset();
        stop.store(true, Ordering::Relaxed);
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow!("a worker panicked"))?)?;
        reset
    })?;
    ensure!(pool.available() == pool.capacity(), "a buffer is missing");
    Ok(())
}

/// Threads of [`data_survives_resets`], each with so many commands in flight.
const THREADS: u64 = 2;
const DEPTH: u64 = 16;

/// A thread of [`data_survives_resets`].
struct Worker<'a> {
    queue: Box<dyn BlockQueue>,
    ns: Namespace,
    pool: &'a Pool,
    first: u64,
    nth: u64,
}

impl Worker<'_> {
    /// One try at a batch of writes, or of reads that are verified; leaves in `open` what has to be done again.
    fn batch(&mut self, seed: u64, read: bool, open: &mut Vec<u64>) -> Result<()> {
        let block = self.ns.block_size;
        let len = block.max(4096);
        let lba = |i: u64| self.first + (self.nth * DEPTH + i) * u64::from(len / block);
        let (began, mut next, mut again) = (Instant::now(), open.len(), Vec::new());
        let mut outstanding = 0;
        while next > 0 || outstanding > 0 {
            while next > 0 {
                let i = open[next - 1];
                let mut buf = self.pool.get_len(len).context("no buffer left")?;
                let op = if read {
                    Op::Read { lba: lba(i) }
                } else {
                    fill(&mut buf, lba(i), block, seed);
                    Op::Write { lba: lba(i) }
                };
                let req = Request { tag: i, ..request(self.ns.nsid, op, Data::One(buf)) };
                match self.queue.submit(req) {
                    Ok(()) => (next, outstanding) = (next - 1, outstanding + 1),
                    Err(rejected) if matches!(rejected.why, Reject::Full | Reject::Resetting) => break,
                    Err(rejected) => bail!("refused: {}", rejected.why),
                }
            }
            self.queue.ring();
            let mut bad = None;
            self.queue.poll(32, &mut |c| {
                outstanding -= 1;
                match c.status {
                    Status::Ok if read => {
                        if !c.data.bufs().iter().all(|b| holds(b, lba(c.tag), block, seed)) {
                            bad = Some(format!("block {} does not hold what was written", lba(c.tag)));
                        }
                    }
                    Status::Ok => {}
                    Status::Aborted => again.push(c.tag),
                    other => bad = Some(format!("{other:?}")),
                }
            });
            if let Some(bad) = bad {
                bail!("{bad}");
            }
            ensure!(began.elapsed() < PATIENCE, "no progress: the queue is {:?}", self.queue.state());
            std::thread::yield_now();
        }
        *open = again;
        Ok(())
    }
}

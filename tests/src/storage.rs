//! Bodies for any queue of a storage driver, whatever the device is.
//!
//! They write to the device.

use anyhow::{Context, Result, bail, ensure};
use std::time::{Duration, Instant};
use wholebar::block::{BlockQueue, Completion, Data, Op, Request, Status};
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

/// Writes, reads back and compares, in sizes from one block to all that a buffer of the pool holds, which may be more than one command can
/// take. `place` is the namespace, and its block size.
///
/// # Errors
/// What went wrong.
pub fn round_trips(queue: &mut dyn BlockQueue, pool: &Pool, place: (u32, u32)) -> Result<()> {
    let (nsid, block) = place;
    let mut sizes = vec![block, 2 * block, 4096, 8192, 12 << 10, 64 << 10, 128 << 10, (128 << 10) + 4096, 1 << 20];
    sizes.push(pool.size());
    sizes.retain(|s| s.is_multiple_of(block) && *s <= pool.size());
    for (i, len) in sizes.into_iter().enumerate() {
        let (lba, seed) = (i as u64 * 7 + 1, i as u64);
        let mut buf = pool.get_len(len).context("no buffer left")?;
        fill(&mut buf, lba, block, seed);
        ok(run(queue, request(nsid, Op::Write { lba }, Data::One(buf)))?, "write")?;
        let buf = pool.get_len(len).context("no buffer left")?;
        let data = ok(run(queue, request(nsid, Op::Read { lba }, Data::One(buf)))?, "read")?;
        let same = data.bufs().iter().all(|b| holds(b, lba, block, seed));
        ensure!(same, "{len} bytes at block {lba} came back changed");
    }
    Ok(())
}

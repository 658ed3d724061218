//! Wake-ups: whether a queue that is armed wakes who sleeps, each time.

use anyhow::{Result, ensure};
use std::time::{Duration, Instant};
use wholebar::irq::EventFd;
use wholebar::reactor::Armed;

/// How long something may take that is under way: then its wake-up was lost.
const LOST: Duration = Duration::from_secs(30);

/// A queue, as far as sleeping is concerned.
pub trait Sleeper {
    /// Takes what has come; whether that was anything.
    fn poll(&mut self) -> Result<bool>;
    /// Arms the queue.
    fn arm(&mut self) -> Armed;
    /// Disarms it.
    fn disarm(&mut self);
}

/// Sleeps until something comes to a queue, or finds it there. Returns whether it slept.
///
/// # Errors
/// That something came, and nobody was told; or that nothing came.
pub fn wait(queue: &mut dyn Sleeper, fd: &EventFd) -> Result<bool> {
    let began = Instant::now();
    loop {
        if queue.poll()? {
            return Ok(false);
        }
        let armed = queue.arm();
        // What came before it was armed may raise nothing.
        if queue.poll()? {
            queue.disarm();
            return Ok(false);
        }
        if armed == Armed::No {
            ensure!(began.elapsed() < LOST, "nothing came in {LOST:?}, and the queue cannot be armed");
            std::thread::yield_now();
            continue;
        }
        let told = fd.wait(Some(LOST))?.is_some();
        queue.disarm();
        if queue.poll()? {
            ensure!(told, "a wake-up was lost: something had come, and the armed queue told nobody for {LOST:?}");
            return Ok(true);
        }
        // An interrupt may be of something that was taken before.
        ensure!(told && began.elapsed() < LOST, "nothing came in {LOST:?}");
    }
}

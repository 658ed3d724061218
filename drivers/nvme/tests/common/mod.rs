//! A model, the driver on it, and a pool of buffers.
#![allow(dead_code, reason = "each test program uses its part of it")]

use std::sync::Arc;
use std::time::{Duration, Instant};
use wholebar_core::block::{Completion, Data, Op, QueueState, Request, Status};
use wholebar_core::mem::{Arena, ArenaOptions, Buf, Pool};
use wholebar_nvme::{Nvme, Options, Queue, QueueOptions};
use wholebar_sim::Opened;

/// How long anything is waited for that comes.
pub const LONG: Duration = Duration::from_secs(600);

pub struct Rig {
    pub nvme: Nvme,
    pub pool: Pool,
    pub arena: Arc<Arena>,
    pub opened: Opened,
}

pub fn open(target: &str) -> Opened {
    wholebar_sim::open(target).unwrap()
}

pub fn rig_with(target: &str, options: Options) -> Rig {
    let opened = open(target);
    let nvme = Nvme::open(opened.model.clone(), options).unwrap();
    let arena = Arena::new(8 << 20, ArenaOptions::default()).unwrap();
    nvme.attach(arena.clone()).unwrap();
    let pool = Pool::new(arena.clone(), 96, 64 << 10, 4096).unwrap();
    Rig { nvme, pool, arena, opened }
}

/// Options of who is in no hurry: nothing is late on a machine that is merely busy.
pub fn patient() -> Options {
    Options { timeout: LONG, admin_timeout: LONG, stop_timeout: LONG, ..Options::default() }
}

pub fn rig(target: &str) -> Rig {
    rig_with(target, patient())
}

impl Rig {
    pub fn queue(&self) -> Queue {
        self.nvme.queue(QueueOptions::default()).unwrap()
    }

    pub fn buf(&self, len: u32) -> Buf {
        self.pool.get_len(len).unwrap()
    }

    /// A buffer whose bytes tell `seed` and their place.
    pub fn pattern(&self, len: u32, seed: u64) -> Buf {
        let mut buf = self.buf(len);
        fill(buf.bytes_mut(), seed);
        buf
    }
}

pub fn fill(bytes: &mut [u8], seed: u64) {
    for (i, word) in bytes.chunks_mut(8).enumerate() {
        let value = (seed ^ (i as u64) << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        word.copy_from_slice(&value[..word.len()]);
    }
}

pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fill(&mut bytes, seed);
    bytes
}

pub fn request(tag: u64, op: Op, data: Data) -> Request {
    Request { tag, nsid: 1, op, data, deadline: None }
}

/// Polls until `count` requests have completed.
pub fn wait(queue: &mut Queue, count: usize) -> Vec<Completion> {
    let start = Instant::now();
    let mut done = Vec::new();
    while done.len() < count {
        if queue.poll_each(count - done.len(), |c| done.push(c)) == 0 {
            std::thread::yield_now();
        }
        assert!(start.elapsed() < LONG, "{} of {count} completed", done.len());
    }
    done
}

/// Executes one request.
pub fn run(queue: &mut Queue, op: Op, data: Data) -> Completion {
    run_on(queue, 1, op, data)
}

pub fn run_on(queue: &mut Queue, nsid: u32, op: Op, data: Data) -> Completion {
    queue.submit(Request { tag: 77, nsid, op, data, deadline: None }).unwrap();
    queue.ring();
    let completion = wait(queue, 1).pop().unwrap();
    assert_eq!(completion.tag, 77);
    completion
}

pub fn ok(queue: &mut Queue, op: Op, data: Data) -> Data {
    let completion = run(queue, op, data);
    assert_eq!(completion.status, Status::Ok, "{op:?}");
    completion.data
}

pub fn one(data: Data) -> Buf {
    match data {
        Data::One(buf) => buf,
        other => panic!("{other:?}"),
    }
}

/// Resets the controller while its one queue is polled here, and returns when that runs again.
pub fn reset_polling(nvme: &Nvme, queue: &mut Queue) {
    std::thread::scope(|scope| {
        let reset = scope.spawn(|| nvme.reset());
        while !reset.is_finished() {
            queue.poll_each(1, |_| {});
            std::thread::yield_now();
        }
        reset.join().unwrap().unwrap();
    });
    while queue.state() != QueueState::Running {
        queue.poll_each(1, |_| {});
    }
}

//! A queue over plain memory, which completes in an order of its own and can misbehave on purpose: for tests of what drives queues. No device is behind it.
//!
//! ```
//! use wholebar_measure::block::testing::{Mishap, Ram};
//! use wholebar::block::{BlockQueue, Data, Op, Request};
//!
//! let mut queue = Ram::new(8, 4, Mishap::None);
//! let flush = Request { tag: 7, nsid: 1, op: Op::Flush, data: Data::None, deadline: None };
//! assert!(queue.submit(flush).is_ok());
//! queue.ring();
//! assert_eq!(queue.poll(4, &mut |done| assert_eq!(done.tag, 7)), 1);
//! ```

use super::QueuePair;
use std::collections::VecDeque;
use wholebar_core::bar::DoorbellCounts;
use wholebar_core::block::{BlockQueue, Completion, Data, Op, QueueState, Reject, Rejected, Request, Status};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mishap {
    /// Nothing.
    None,
    /// From command number n on, a bit of what is read flips.
    Flip(u64),
    /// Command number n is done at the wrong place.
    Elsewhere(u64),
    /// Writes from number n on are forgotten.
    Forget(u64),
    /// Command number n fails with this status.
    Fail(u64, u16),
    /// From command number n on, nothing completes and the device is gone.
    Vanish(u64),
}

/// The status after which nothing gets better.
pub const FATAL: u16 = 0x0b;

/// A namespace in memory, and its only queue.
pub struct Ram {
    /// Its blocks.
    pub blocks: Vec<[u8; 512]>,
    /// What goes wrong, from now on.
    pub mishap: Mishap,
    /// Whether the last command without data was a flush.
    pub flushed: bool,
    depth: usize,
    posted: VecDeque<Request>,
    rung: usize,
    commands: u64,
    bells: u64,
    gone: bool,
}

impl Ram {
    /// A namespace of so many blocks, whose queue takes `depth` commands at a time.
    pub fn new(blocks: usize, depth: usize, mishap: Mishap) -> Self {
        Self {
            blocks: vec![[0; 512]; blocks],
            mishap,
            flushed: false,
            depth,
            posted: VecDeque::new(),
            rung: 0,
            commands: 0,
            bells: 0,
            gone: false,
        }
    }

    fn carry_out(&mut self, mut req: Request) -> Completion {
        let number = self.commands;
        self.commands += 1;
        let mut status = Status::Ok;
        let astray = u64::from(self.mishap == Mishap::Elsewhere(number));
        if let Mishap::Fail(at, code) = self.mishap
            && at == number
        {
            status = Status::Device(code);
        } else if let Data::One(buf) = &mut req.data {
            let (Op::Read { lba } | Op::Write { lba }) = req.op else { panic!("{:?} has no data", req.op) };
            for (i, bytes) in buf.bytes_mut().chunks_mut(512).enumerate() {
                let stored = &mut self.blocks[(lba ^ astray) as usize + i];
                match req.op {
                    Op::Write { .. } if matches!(self.mishap, Mishap::Forget(from) if number >= from) => {}
                    Op::Write { .. } => stored.copy_from_slice(bytes),
                    _ => bytes.copy_from_slice(stored),
                }
            }
            if matches!((self.mishap, req.op), (Mishap::Flip(from), Op::Read { .. }) if number >= from) {
                buf.bytes_mut()[77] ^= 0x10;
            }
        } else {
            self.flushed = req.op == Op::Flush;
        }
        Completion { tag: req.tag, status, data: req.data }
    }
}

impl BlockQueue for Ram {
    fn submit(&mut self, req: Request) -> Result<(), Rejected> {
        if self.posted.len() == self.depth {
            return Err(Rejected { req, why: Reject::Full });
        }
        self.posted.push_back(req);
        Ok(())
    }

    fn ring(&mut self) {
        if self.rung != self.posted.len() {
            self.rung = self.posted.len();
            self.bells += 1;
        }
    }

    fn poll(&mut self, max: usize, done: &mut dyn FnMut(Completion)) -> usize {
        self.poll_each(max, done)
    }

    fn state(&self) -> QueueState {
        if self.gone { QueueState::Gone } else { QueueState::Running }
    }

    fn in_flight(&self) -> usize {
        self.posted.len()
    }

    fn doorbells(&self) -> Option<DoorbellCounts> {
        Some(DoorbellCounts { direct: self.bells, trapped: 0 })
    }
}

impl QueuePair for Ram {
    fn poll_each(&mut self, max: usize, mut done: impl FnMut(Completion)) -> usize {
        self.gone |= matches!(self.mishap, Mishap::Vanish(at) if self.commands >= at);
        if self.gone {
            return 0;
        }
        let n = self.rung.min(max);
        for _ in 0..n {
            // The newest first, now and then: nothing may depend on the order.
            let at = if self.commands.is_multiple_of(3) { self.rung - 1 } else { 0 };
            self.rung -= 1;
            if let Some(req) = self.posted.remove(at) {
                done(self.carry_out(req));
            }
        }
        n
    }

    fn fatal(&self, status: Status, nsid: u32) -> Option<String> {
        (status == Status::Device(FATAL)).then(|| format!("namespace {nsid} is not there any more"))
    }
}

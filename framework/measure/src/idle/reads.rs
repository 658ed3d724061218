//! Reads of a disk as trips: a block each, at random.

use super::Trip;
use std::sync::Arc;
use wholebar_core::block::{BlockQueue, Data, Namespace, Op, Request, Status};
use wholebar_core::irq::EventFd;
use wholebar_core::mem::{Buf, Pool};
use wholebar_core::reactor::Armed;

/// Reads by a queue.
pub struct Reads {
    queue: Box<dyn BlockQueue>,
    namespace: Namespace,
    bufs: Vec<Buf>,
    rng: fastrand::Rng,
    /// Goes after its buffers.
    _pool: Pool,
}

impl Reads {
    /// Reads blocks of `namespace` into buffers of `pool`, all of which it takes: they have room for a block each.
    pub fn new(queue: Box<dyn BlockQueue>, namespace: Namespace, pool: Pool) -> Self {
        let bufs = std::iter::from_fn(|| pool.get_len(namespace.block_size)).collect();
        Self { queue, namespace, bufs, rng: fastrand::Rng::with_seed(1), _pool: pool }
    }
}

impl Trip for Reads {
    fn send(&mut self, stamp: u64) -> bool {
        let Some(buf) = self.bufs.pop() else { return false };
        let lba = self.rng.u64(0..self.namespace.blocks.max(1));
        let (nsid, op) = (self.namespace.nsid, Op::Read { lba });
        match self.queue.submit(Request { tag: stamp, nsid, op, data: Data::One(buf), deadline: None }) {
            Ok(()) => true,
            Err(rejected) => {
                if let Data::One(buf) = rejected.req.data {
                    self.bufs.push(buf);
                }
                false
            }
        }
    }

    fn ring(&mut self) {
        self.queue.ring();
    }

    fn poll(&mut self, back: &mut dyn FnMut(Option<u64>)) {
        let bufs = &mut self.bufs;
        self.queue.poll(64, &mut |done| {
            back((done.status == Status::Ok).then_some(done.tag));
            if let Data::One(buf) = done.data {
                bufs.push(buf);
            }
        });
    }

    fn wakeup(&self) -> Option<Arc<EventFd>> {
        self.queue.wakeup()
    }

    fn arm(&mut self) -> Armed {
        self.queue.arm()
    }

    fn disarm(&mut self) {
        self.queue.disarm();
    }
}

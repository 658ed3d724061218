//! The driver and a model on another thread, as Miri sees them: `cargo +nightly miri test -p wholebar-nvme`.
//!
//! What orders an entry's words, and the data, after its phase tag is the tag's Acquire load alone (`ring.rs`). Weakened to Relaxed, it lets
//! Miri give an older word beside a newer tag, and the driver refuses the entry (`Fault::Head`); with a relaxed doorbell (`cell.rs` in the
//! framework) Miri reports a race on the submission queue. Buffers are read without atomics, so that a race on data is one too.

use std::sync::Arc;
use std::time::Duration;
use wholebar_core::block::{Data, Op, Request, Status};
use wholebar_core::mem::{Arena, ArenaOptions, Pool};
use wholebar_core::model::InProcess;
use wholebar_nvme::{Nvme, Options, QueueOptions, Service, ShadowDoorbells};
use wholebar_sim::nvme::{Nvme as Model, NvmeParams};

/// More requests than the ring has entries, so that it laps; in batches, with two in flight at least.
const ROUNDS: u64 = if cfg!(miri) { 2 } else { 400 };

const LONG: Duration = Duration::from_secs(3600);

fn exchange(params: &str, options: Options) {
    let device = InProcess::new(Model::new(NvmeParams::parse(params).unwrap()).unwrap()).unwrap();
    device.spawn(|| {}).unwrap();
    // Nothing is late, however slow the machine: nobody helps a command that would be.
    let (timeout, admin_timeout) = (LONG, LONG);
    let options = Options { service: Service::Manual, timeout, admin_timeout, ..options };
    let nvme = Nvme::open(device.clone(), options).unwrap();
    let arena = Arena::new(64 << 10, ArenaOptions::default()).unwrap();
    nvme.attach(arena.clone()).unwrap();
    let pool = Pool::new(arena, 8, 1024, 1024).unwrap();
    let mut queue = nvme.queue(QueueOptions { entries: Some(4), interrupt: None }).unwrap();
    for round in 0..ROUNDS {
        for write in [true, false] {
            for tag in 0..3 {
                let mut buf = pool.get_len(1024).unwrap();
                if write {
                    buf.bytes_mut().fill((round * 3 + tag) as u8);
                }
                let lba = 2 * tag;
                let op = if write { Op::Write { lba } } else { Op::Read { lba } };
                queue.submit(Request { tag, nsid: 1, op, data: Data::One(buf), deadline: None }).unwrap();
            }
            queue.ring();
            let mut left = 3;
            while left > 0 {
                let found = queue.poll_each(2, |done| {
                    assert_eq!(done.status, Status::Ok);
                    let Data::One(buf) = &done.data else { panic!("the buffer is lost") };
                    if !write {
                        assert!(buf.bytes().iter().all(|b| *b == (round * 3 + done.tag) as u8));
                    }
                });
                left -= found;
                std::thread::yield_now();
            }
        }
    }
    drop(queue);
    assert_eq!((pool.available(), nvme.quarantined()), (8, 0));
    nvme.shutdown().unwrap();
    assert_eq!(Arc::strong_count(&device), 1);
}

#[test]
fn data_comes_before_its_completion() {
    exchange("size=64k,entries=4,queues=1,vectors=1,to=255", Options::default());
}

#[test]
fn shadow_doorbells_publish_what_was_posted() {
    exchange(
        "size=64k,entries=4,queues=1,vectors=1,to=255,shadow=1",
        Options { shadow_doorbells: ShadowDoorbells::Always, ..Options::default() },
    );
}

//! A callback that panics is the caller's affair: the queue goes on, and each buffer is accounted for, in a poll and in what follows a reset.

use super::*;

/// How requests end while callbacks panic.
struct Way {
    options: Options,
    /// Has them end, besides polling.
    provoke: fn(&Bench),
    status: Status,
    then: fn(&QueueState) -> bool,
    quarantined: u64,
}

/// The `at`th of six completions finds a callback that panics; the queue is right at once, and goes on or refuses.
fn panics_at(at: usize, way: &Way) {
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
    const EACH: usize = 6;
    let mut bench = bench_with(MOST, way.options.clone());
    for tag in 0..EACH as u64 {
        let data = Data::One(bench.buf(512));
        bench.queue.submit(Request { tag, nsid: 1, op: Op::Read { lba: 0 }, data, deadline: None }).unwrap();
    }
    bench.queue.ring();
    (way.provoke)(&bench);
    let (began, mut done, mut panics) = (Instant::now(), Vec::new(), 0);
    while bench.queue.in_flight() > 0 || !(way.then)(&bench.queue.state()) {
        let polled = catch_unwind(AssertUnwindSafe(|| {
            bench.queue.poll_each(usize::MAX, |completion| {
                done.push((completion.tag, completion.status));
                if done.len() == at {
                    resume_unwind(Box::new("a callback that panics"));
                }
            })
        }));
        if polled.is_err() {
            panics += 1;
            assert_eq!(bench.queue.in_flight(), EACH - at);
        }
        assert!(began.elapsed() < LONG, "{done:?}, {:?}", bench.queue.state());
        std::thread::yield_now();
    }
    done.sort_by_key(|(tag, _)| *tag);
    assert!(panics == 1 && done.into_iter().eq((0..EACH as u64).map(|tag| (tag, way.status))));
    let quarantined = bench.blk.quarantined();
    assert_eq!((quarantined, u64::from(bench.pool.available())), (way.quarantined, 16 - quarantined));
    if way.options.timeout < LONG {
        // On a busy machine the next one may be late, too.
        bench.close();
    } else if bench.queue.state() == QueueState::Running {
        let (_, again) = bench.go(Op::Read { lba: 1 }, Data::One(bench.buf(512)), 0);
        assert_eq!(again.status, Status::Ok);
        drop(again);
        bench.close();
    } else {
        let flush = Request { tag: 9, nsid: 1, op: Op::Flush, data: Data::None, deadline: None };
        assert_eq!(bench.queue.submit(flush).unwrap_err().why, Reject::Gone);
    }
}

#[test]
fn a_callback_that_panics_leaves_the_queue_whole() {
    let running = |state: &QueueState| *state == QueueState::Running;
    let ways = [
        Way {
            options: patient(),
            provoke: |bench| {
                bench.rig.run(|state, host| {
                    while let Some(found) = find(state, host) {
                        answer(state, host, &found, 0, 1);
                    }
                });
            },
            status: Status::Ok,
            then: running,
            quarantined: 0,
        },
        // It needs a reset.
        Way {
            options: patient(),
            provoke: |bench| bench.rig.run(|state, _| state.status |= 64),
            status: Status::Aborted,
            then: running,
            quarantined: 0,
        },
        // It is gone, as far as its registers tell; whether it can write is not known.
        Way {
            options: patient(),
            provoke: |bench| bench.rig.run(|state, _| state.status = 0xff),
            status: Status::Gone,
            then: |state| *state == QueueState::Gone,
            quarantined: 6,
        },
        // It is reset while nobody polls the queue.
        Way {
            options: Options { stop_timeout: Duration::from_millis(20), ..patient() },
            provoke: |bench| {
                assert!(matches!(bench.blk.reset(), Err(Error::Core(wholebar_core::Error::Unresponsive { .. }))))
            },
            status: Status::Aborted,
            then: |state| matches!(state, QueueState::Failed(why) if why.contains("not polled")),
            quarantined: 6,
        },
    ];
    for way in ways {
        for at in [1, 4, 6] {
            panics_at(at, &way);
        }
    }
}

/// There is no abort in virtio: a request that is late is ended by a reset.
#[test]
fn a_callback_that_panics_after_a_timeout_leaves_the_queue_whole() {
    let options = Options { timeout: Duration::from_millis(50), ..patient() };
    for at in [1, 4, 6] {
        let then = |state: &QueueState| *state == QueueState::Running;
        panics_at(
            at,
            &Way { options: options.clone(), provoke: |_| (), status: Status::Aborted, then, quarantined: 0 },
        );
    }
}

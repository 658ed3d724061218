//! Callbacks that panic, at the first, a middle and the last completion, however the requests end: what is in flight is told right at once, everything
//! completes once, buffers are accounted for, and the queue goes on, or refuses by name where it has ended.
#![cfg(not(miri))]

mod common;

use common::*;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};
use wholebar_core::block::{Data, Op, QueueState, Reject, Request, Status};
use wholebar_nvme::{Options, Queue, QueueOptions, Service};

/// Requests of one case. Two take two commands each, and the last more than there is room for, where commands are 8 KiB at most.
const LENGTHS: [u32; 5] = [4096, 16 << 10, 512, 16 << 10, 64 << 10];
const EACH: usize = LENGTHS.len();

/// How requests end while callbacks panic.
struct Way {
    target: &'static str,
    options: Options,
    /// When requests are to be given up.
    deadline: bool,
    /// The device is told of them.
    announced: bool,
    /// Has them end, besides polling.
    help: fn(&Rig, &mut Queue),
    ends: fn(Status) -> bool,
    /// After a panic as many are in flight as requests did not complete: the queue does not run, so commands do not count.
    exact: bool,
    quarantined: u64,
    then: Option<QueueState>,
}

impl Default for Way {
    fn default() -> Self {
        Self {
            target: "sim:nvme,size=4M,mdts=1",
            options: patient(),
            deadline: false,
            announced: true,
            help: |_, _| (),
            ends: |status| status == Status::Ok,
            exact: false,
            quarantined: 0,
            then: Some(QueueState::Running),
        }
    }
}

fn panics_at(at: usize, way: &Way) {
    let rig = rig_with(way.target, way.options.clone());
    let mut queue = rig.nvme.queue(QueueOptions { entries: Some(8), ..QueueOptions::default() }).unwrap();
    for (tag, len) in (0..).zip(LENGTHS) {
        let deadline = way.deadline.then(Instant::now);
        let data = Data::One(rig.buf(len));
        queue.submit(Request { tag, nsid: 1, op: Op::Read { lba: tag * 128 }, data, deadline }).unwrap();
    }
    assert_eq!(queue.in_flight(), queue.capacity(), "the last has commands that wait for room");
    if way.announced {
        queue.ring();
    }
    let (start, mut done, mut panics) = (Instant::now(), Vec::new(), 0);
    while queue.in_flight() > 0 || way.then.as_ref().is_some_and(|then| queue.state() != *then) {
        (way.help)(&rig, &mut queue);
        let polled = catch_unwind(AssertUnwindSafe(|| {
            queue.poll_each(usize::MAX, |completion| {
                done.push((completion.tag, completion.status));
                if done.len() == at {
                    resume_unwind(Box::new("a callback that panics"));
                }
            })
        }));
        if polled.is_err() {
            panics += 1;
            if way.exact {
                assert_eq!(queue.in_flight(), EACH - at);
            }
        }
        assert!(start.elapsed() < LONG, "{done:?}, {} in flight, {:?}", queue.in_flight(), queue.state());
        std::thread::yield_now();
    }
    assert!(panics == 1 && done.iter().all(|(_, status)| (way.ends)(*status)), "{done:?}");
    done.sort_by_key(|(tag, _)| *tag);
    assert!(done.iter().map(|(tag, _)| *tag).eq(0..EACH as u64), "{done:?}");
    assert_eq!((rig.nvme.quarantined(), u64::from(rig.pool.available())), (way.quarantined, 96 - way.quarantined));
    if way.then == Some(QueueState::Running) {
        // Where commands are given up early, one may be late on a busy machine.
        let mut again = || run(&mut queue, Op::Read { lba: 0 }, Data::One(rig.buf(64 << 10))).status;
        assert!(again() == Status::Ok || way.options.timeout < LONG);
    } else {
        assert_eq!(queue.submit(request(9, Op::Flush, Data::None)).unwrap_err().why, Reject::Gone);
    }
}

fn panics_anywhere(way: Way) {
    for at in [1, EACH / 2 + 1, EACH] {
        panics_at(at, &way);
    }
}

#[test]
fn in_a_poll() {
    panics_anywhere(Way::default());
}

#[test]
fn where_an_abort_ended_them() {
    // Delayed commands can be aborted: these are all for which there is room. The others of their requests are never posted.
    let target = "sim:nvme,size=4M,mdts=1,delay=60000,faults=\
        delay:@1+delay:@2+delay:@3+delay:@4+delay:@5+delay:@6+delay:@7";
    let help = |_: &Rig, queue: &mut Queue| queue.check_timeouts();
    let ends = |status| status == Status::Aborted;
    panics_anywhere(Way { target, deadline: true, help, ends, ..Way::default() });
}

#[test]
fn where_an_abort_was_in_vain() {
    let target = "sim:nvme,size=4M,mdts=1,faults=drop:1/1";
    let options = Options { timeout: Duration::from_millis(50), ..patient() };
    let ends = |status| !matches!(status, Status::Ok | Status::Gone);
    panics_anywhere(Way { target, options, ends, exact: true, ..Way::default() });
}

#[test]
fn when_the_controller_was_reset() {
    let options = Options { service: Service::Manual, ..patient() };
    let help = |rig: &Rig, queue: &mut Queue| {
        if queue.state() == QueueState::Running {
            rig.nvme.request_reset();
        }
        rig.nvme.service().unwrap();
    };
    let ends = |status| status == Status::Aborted;
    panics_anywhere(Way { options, announced: false, help, ends, exact: true, ..Way::default() });
}

#[test]
fn when_the_controller_is_gone() {
    let target = "sim:nvme,size=4M,mdts=1,faults=vanish:@1";
    let ends = |status| status == Status::Gone;
    panics_anywhere(Way { target, ends, exact: true, then: Some(QueueState::Gone), ..Way::default() });
}

#[test]
fn when_the_queue_was_lost() {
    let options = Options { stop_timeout: Duration::from_millis(20), ..patient() };
    // Nobody polls while the controller is reset.
    let help = |rig: &Rig, queue: &mut Queue| {
        if queue.state() == QueueState::Running {
            rig.nvme.reset().unwrap_err();
        }
    };
    let ends = |status| status == Status::Aborted;
    let (announced, quarantined) = (false, EACH as u64);
    panics_anywhere(Way { options, announced, help, ends, exact: true, quarantined, then: None, ..Way::default() });
}

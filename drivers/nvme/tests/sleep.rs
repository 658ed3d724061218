//! Queues that are armed, and sleep until something completes, on a controller that rests while nothing happens.
#![cfg(not(miri))]

mod common;

use common::*;
use std::time::{Duration, Instant};
use wholebar_core::bar::MapPolicy;
use wholebar_core::block::{BlockQueue, Data, Disk, Op, QueueState, Status};
use wholebar_core::irq::Coalescing;
use wholebar_core::reactor::Armed;
use wholebar_nvme::{ANY_VECTOR, Error, Options, Queue, QueueOptions};

fn armed(rig: &Rig) -> Queue {
    rig.nvme.queue(QueueOptions { interrupt: Some(ANY_VECTOR), ..QueueOptions::default() }).unwrap()
}

/// Each completion is found by the last look, or signalled: a lost wake-up is waited for without end.
#[test]
fn no_completion_is_slept_over() {
    // Mapped, the model naps; trapped, it sleeps until a doorbell.
    for (policy, target) in [(MapPolicy::Whole, "sim:nvme"), (MapPolicy::Trapped, "sim:nvme,shadow=1")] {
        let rig = rig_with(target, Options { policy, ..patient() });
        let mut queue = armed(&rig);
        let wakeup = queue.wakeup().unwrap();
        let mut buf = rig.buf(512);
        for tag in 0..3000 {
            // Now and then the controller certainly rests.
            while tag % 100 == 99 && !rig.opened.model.is_resting() {
                std::thread::yield_now();
            }
            queue.submit(request(tag, Op::Read { lba: tag % 64 }, Data::One(buf))).unwrap();
            queue.ring();
            let mut done = None;
            loop {
                assert!(queue.arm() != Armed::No);
                queue.poll_each(1, |completion| done = Some(completion));
                if done.is_none() {
                    wakeup.wait(Some(LONG)).unwrap().expect("a completion is signalled");
                }
                queue.disarm();
                wakeup.take();
                let Some(completion) = done.take() else { continue };
                assert_eq!((completion.tag, completion.status), (tag, Status::Ok));
                buf = one(completion.data);
                break;
            }
        }
        drop((buf, queue));
    }
}

/// A queue that is polled costs its host no signal.
#[test]
fn a_queue_that_is_not_armed_signals_nothing() {
    let rig = rig("sim:nvme");
    let mut queue = armed(&rig);
    let wakeup = queue.wakeup().unwrap();
    for _ in 0..100 {
        ok(&mut queue, Op::Flush, Data::None);
    }
    assert_eq!(wakeup.take(), 0);
    assert_eq!(queue.arm(), Armed::Yes, "nothing is in flight");
    ok(&mut queue, Op::Flush, Data::None);
    assert_eq!(wakeup.wait(Some(LONG)).unwrap(), Some(1));
    queue.disarm();
    // After a reset, too.
    let nvme = queue.controller();
    let resetting = std::thread::spawn(move || nvme.reset());
    while !resetting.is_finished() {
        queue.poll_each(1, drop);
    }
    resetting.join().unwrap().unwrap();
    while queue.state() != QueueState::Running {
        queue.poll_each(1, drop);
    }
    ok(&mut queue, Op::Flush, Data::None);
    assert!(queue.arm() != Armed::No);
    ok(&mut queue, Op::Flush, Data::None);
    assert!(wakeup.wait(Some(LONG)).unwrap().is_some());
}

/// Vectors are dealt, each to one queue; where none is left a queue is polled.
#[test]
fn queues_have_vectors_of_their_own() {
    let rig = rig("sim:nvme,queues=3,vectors=3");
    let queues: Vec<_> = (0..3).map(|_| rig.nvme.interrupt_queue().unwrap()).collect();
    let has: Vec<_> = queues.iter().map(|queue| queue.wakeup().is_some()).collect();
    assert_eq!(has, [true, true, false]);
    drop(queues);
    assert!(rig.nvme.interrupt_queue().unwrap().wakeup().is_some(), "those of dropped queues are free");
    let mut polled: Box<dyn BlockQueue> = rig.nvme.interrupt_queue().unwrap();
    assert!(polled.wakeup().is_some());
    let none = rig.nvme.queue(QueueOptions { interrupt: Some(17), ..QueueOptions::default() });
    assert!(matches!(none, Err(Error::Vector { vector: 17, .. })));
    polled = Disk::queue(&rig.nvme).unwrap();
    assert!(polled.wakeup().is_none() && polled.arm() == Armed::No);
}

/// Feature 08h: completions are told of after some of them, or after a while, and a reset keeps that.
#[test]
fn interrupts_are_coalesced() {
    let rig = rig_with("sim:nvme", patient());
    let micros = Duration::from_micros;
    assert!(rig.nvme.coalescing().unwrap().is_off());
    // Rounded up to 100 microseconds, and to as many completions as there can be.
    for (wanted, has) in [
        (Coalescing::after(micros(101)), Coalescing { events: 256, time: micros(200) }),
        (Coalescing { events: 3, time: micros(25_500) }, Coalescing { events: 3, time: micros(25_500) }),
        (Coalescing { events: 0, time: micros(1) }, Coalescing { events: 1, time: micros(0) }),
    ] {
        assert_eq!(Disk::set_coalescing(&rig.nvme, wanted).unwrap(), has);
    }
    let too_long = Coalescing::after(micros(25_501));
    assert!(matches!(
        rig.nvme.set_coalescing(too_long),
        Err(Error::Core(wholebar_core::Error::CoalescingTime { most, .. })) if most == micros(25_500)
    ));
    let mut queue = armed(&rig);
    let wakeup = queue.wakeup().unwrap();
    let wanted = Coalescing { events: 2, time: micros(25_500) };
    rig.nvme.set_coalescing(wanted).unwrap();
    assert!(queue.arm() != Armed::No);
    let began = Instant::now();
    ok(&mut queue, Op::Flush, Data::None);
    assert!(wakeup.wait(Some(LONG)).unwrap().is_some());
    assert!(began.elapsed() >= wanted.time, "one of two is told of after the time");
    queue.disarm();
    drop(queue);
    rig.nvme.reset().unwrap();
    assert_eq!(Disk::coalescing(&rig.nvme), Some(wanted));
}

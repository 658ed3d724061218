//! Queues and PRP lists in the controller's memory buffer, on the bundled model.
#![cfg(not(miri))]

mod common;

use common::*;
use std::time::Duration;
use wholebar_core::bar::MapPolicy;
use wholebar_core::block::{Data, Op, Status};
use wholebar_core::reactor::Armed;
use wholebar_nvme::{ANY_VECTOR, Options, Queue, QueueOptions};

/// Above every address of DMA memory.
const BASE: u64 = 1 << 52;

fn used(policy: MapPolicy) -> Options {
    Options { controller_memory: true, policy, ..patient() }
}

fn in_controller(queue: &Queue) -> bool {
    queue.rings().0.0 >= BASE
}

/// Requests of all kinds, some of which have lists, more than the queue has entries.
fn work(rig: &Rig, queue: &mut Queue) {
    for i in 0..40u64 {
        let len = [512, 4096, 8192, 12288, 65536][i as usize % 5];
        ok(queue, Op::Write { lba: i * 128 }, Data::One(rig.pattern(len, i)));
    }
    for i in 0..40u64 {
        let len = [512, 4096, 8192, 12288, 65536][i as usize % 5];
        let back = one(ok(queue, Op::Read { lba: i * 128 }, Data::One(rig.buf(len))));
        assert!(back.bytes() == pattern(len as usize, i), "{i}");
    }
    ok(queue, Op::Deallocate { lba: 0, blocks: 8 }, Data::None);
    ok(queue, Op::Flush, Data::None);
}

#[test]
fn queues_and_lists_lie_in_the_controller() {
    for policy in [MapPolicy::Auto, MapPolicy::Trapped] {
        let rig = rig_with("sim:nvme,size=16M,cmb=1M,mdts=4", used(policy));
        let memory = rig.nvme.memory_buffer().unwrap();
        assert_eq!((memory.bar, memory.offset, memory.size, memory.used), (2, 0, 1 << 20, true));
        assert!(memory.submission_queues && memory.lists);
        let mut queue = rig.nvme.queue(QueueOptions { entries: Some(16), ..QueueOptions::default() }).unwrap();
        assert!(in_controller(&queue));
        work(&rig, &mut queue);
    }
}

/// Completion queues, too, where that is asked for: several times around, through resets, and for who sleeps.
#[test]
fn completions_lie_in_the_controller() {
    for policy in [MapPolicy::Auto, MapPolicy::Trapped] {
        let options = Options { controller_completions: true, ..used(policy) };
        let rig = rig_with("sim:nvme,size=16M,cmb=1M,mdts=4", options);
        assert!(rig.nvme.memory_buffer().unwrap().completion_queues);
        let options = QueueOptions { entries: Some(16), interrupt: Some(ANY_VECTOR) };
        let mut queue = rig.nvme.queue(options).unwrap();
        let far = |queue: &Queue| in_controller(queue) && queue.rings().1.0 >= BASE;
        assert!(far(&queue));
        for _ in 0..2 {
            work(&rig, &mut queue);
            reset_polling(&rig.nvme, &mut queue);
            assert!(far(&queue));
        }
        // All at once: as many as there can be.
        for round in 0..8 {
            for lba in 0..15 {
                queue.submit(request(lba, Op::Write { lba }, Data::One(rig.pattern(512, round)))).unwrap();
            }
            queue.ring();
            assert!(wait(&mut queue, 15).iter().all(|done| done.status == Status::Ok));
        }
        let wakeup = queue.wakeup().unwrap();
        for lba in 0..100 {
            queue.submit(request(0, Op::Read { lba }, Data::One(rig.buf(512)))).unwrap();
            queue.ring();
            while queue.in_flight() > 0 {
                assert_ne!(queue.arm(), Armed::No);
                if queue.poll_each(1, |done| assert_eq!(done.status, Status::Ok)) == 0 {
                    assert!(wakeup.wait(Some(Duration::from_secs(200))).unwrap().is_some());
                }
                queue.disarm();
            }
        }
    }
    let rig = rig_with("sim:nvme,size=16M,cmb=1M", used(MapPolicy::Auto));
    assert!(rig.queue().rings().1.0 < BASE, "nobody asked for that");
}

/// Batches larger than the queue's rest to its end.
#[test]
fn batches_go_around_the_queue() {
    let rig = rig_with("sim:nvme,size=16M,cmb=64k", used(MapPolicy::Auto));
    let mut queue = rig.nvme.queue(QueueOptions { entries: Some(8), ..QueueOptions::default() }).unwrap();
    for round in 0..20u64 {
        for i in 0..5 {
            let data = Data::One(rig.pattern(512, round * 5 + i));
            queue.submit(request(i, Op::Write { lba: round * 5 + i }, data)).unwrap();
        }
        queue.ring();
        assert!(wait(&mut queue, 5).iter().all(|done| done.status == Status::Ok));
    }
    for lba in 0..100 {
        let back = one(ok(&mut queue, Op::Read { lba }, Data::One(rig.buf(512))));
        assert!(back.bytes() == pattern(512, lba), "{lba}");
    }
}

#[test]
fn a_queue_is_there_again_after_a_reset() {
    let rig = rig_with("sim:nvme,size=16M,cmb=1M", used(MapPolicy::Auto));
    let mut queue = rig.queue();
    for _ in 0..3 {
        work(&rig, &mut queue);
        reset_polling(&rig.nvme, &mut queue);
        assert!(in_controller(&queue));
    }
    work(&rig, &mut queue);
}

/// Queues for which there is no room lie in the host's memory; room that is given back is used again.
#[test]
fn room_is_used_and_given_back() {
    let rig = rig_with("sim:nvme,size=16M,cmb=16k", used(MapPolicy::Auto));
    let options = QueueOptions { entries: Some(64), ..QueueOptions::default() };
    let make = || rig.nvme.queue(options).unwrap();
    for _ in 0..3 {
        let mut queues: Vec<_> = (0..6).map(|_| make()).collect();
        let places: Vec<_> = queues.iter().map(in_controller).collect();
        assert!(places[0] && !places[5], "{places:?}");
        queues.iter_mut().for_each(|queue| work(&rig, queue));
    }
}

/// One that isn't asked for is not used; one that isn't there is no error.
#[test]
fn who_does_not_ask_has_none() {
    let rig1 = rig("sim:nvme,size=16M,cmb=1M");
    let memory = rig1.nvme.memory_buffer().unwrap();
    assert!(!memory.used && !in_controller(&rig1.queue()));
    let rig2 = rig_with("sim:nvme,size=16M", used(MapPolicy::Auto));
    assert_eq!(rig2.nvme.memory_buffer(), None);
    let mut queue = rig2.queue();
    assert!(!in_controller(&queue));
    work(&rig2, &mut queue);
}

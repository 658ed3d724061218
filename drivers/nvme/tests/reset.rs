//! The reset protocol on a device: queues on other cores, data verified across resets, owners that don't poll.
#![cfg(not(miri))]

mod common;

use common::*;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use wholebar_core::block::{Data, Op, QueueState, Reject, Status};
use wholebar_core::control_plane::DeviceEvent;
use wholebar_core::pci::PciDevice;
use wholebar_nvme::{Error, Event, Options, QueueOptions, Service, ShadowDoorbells};

/// What the workers are told.
#[derive(Default)]
struct Orders {
    stop: AtomicBool,
    /// Post, announce nothing, and say so here: the next reset certainly finds commands in flight.
    hold: AtomicBool,
    holding: AtomicU64,
}

/// Ends the workers however their test ends, which waits for them.
struct StopAtEnd<'a>(&'a Orders);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

/// One core's work: writes blocks of its own with a new pattern each time, reads them back, and remembers what was certainly written. A write that was
/// aborted may have happened or not; everything else must be there.
fn worker(rig: &Rig, core: u64, orders: &Orders, progress: &AtomicU64) -> (u64, u64) {
    const BLOCKS: u64 = 64;
    let mut queue = rig.nvme.queue(QueueOptions { entries: Some(64), ..QueueOptions::default() }).unwrap();
    // What each 4 KiB piece may hold: patterns by their seed.
    let mut may_hold: Vec<Vec<u64>> = (0..BLOCKS).map(|_| vec![0]).collect();
    let (mut verified, mut aborted, mut seed) = (0, 0, core << 32);
    let lba = |piece: u64| (core * BLOCKS + piece) * 8;
    let mut round = 0u64;
    while !orders.stop.load(Ordering::Relaxed) {
        round += 1;
        let writing = round % 2 == 1;
        let (mut posted, mut done) = (0, 0);
        let pieces: Vec<u64> = (0..16).map(|i| (round / 2 * 16 + i) % BLOCKS).collect();
        let mut seeds = vec![0; BLOCKS as usize];
        while done < pieces.len() {
            while posted < pieces.len() {
                let piece = pieces[posted];
                let req = if writing {
                    seed += 1;
                    seeds[piece as usize] = seed;
                    request(piece, Op::Write { lba: lba(piece) }, Data::One(rig.pattern(4096, seed)))
                } else {
                    request(piece, Op::Read { lba: lba(piece) }, Data::One(rig.buf(4096)))
                };
                match queue.submit(req) {
                    Ok(()) => {
                        if writing {
                            may_hold[piece as usize].push(seeds[piece as usize]);
                        }
                        posted += 1;
                    }
                    Err(rejected) => {
                        assert_eq!(rejected.why, Reject::Resetting);
                        break;
                    }
                }
            }
            if posted > done && orders.hold.load(Ordering::Relaxed) && queue.state() == QueueState::Running {
                orders.holding.fetch_add(1, Ordering::Relaxed);
                while queue.state() == QueueState::Running && !orders.stop.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
            }
            queue.ring();
            let found = queue.poll_each(16, |c| {
                done += 1;
                let held = &mut may_hold[c.tag as usize];
                match c.status {
                    Status::Ok if writing => *held = vec![seeds[c.tag as usize]],
                    Status::Ok => {
                        let read = one(c.data);
                        let what = held.iter().find(|s| match **s {
                            0 => read.bytes().iter().all(|b| *b == 0),
                            s => read.bytes() == pattern(4096, s),
                        });
                        *held =
                            vec![*what.unwrap_or_else(|| panic!("core {core}, piece {}: not what was written", c.tag))];
                        verified += 1;
                        progress.fetch_add(1, Ordering::Relaxed);
                    }
                    Status::Aborted => aborted += 1,
                    other => panic!("{other:?}"),
                }
            });
            if found == 0 {
                std::thread::yield_now();
            }
        }
    }
    assert_eq!(queue.in_flight(), 0);
    (verified, aborted)
}

#[test]
fn data_is_what_was_written_across_resets_with_two_cores_submitting() {
    for target in ["sim:nvme,size=4M", "sim:nvme,size=4M,shadow=1,sgl=1,mdts=0"] {
        let options = Options {
            stop_timeout: Duration::from_secs(30),
            shadow_doorbells: ShadowDoorbells::Always,
            ..Options::default()
        };
        let rig = rig_with(target, options);
        let (orders, progress) = (Orders::default(), [const { AtomicU64::new(0) }; 2]);
        std::thread::scope(|scope| {
            let at_end = StopAtEnd(&orders);
            let workers = [0, 1].map(|core| {
                scope.spawn({
                    let (rig, orders, progress) = (&rig, &orders, &progress[core]);
                    move || worker(rig, core as u64, orders, progress)
                })
            });
            let until = |what: &str, happened: &dyn Fn() -> bool| {
                let start = Instant::now();
                while !happened() {
                    assert!(start.elapsed() < Duration::from_secs(120), "{what} in vain");
                    std::thread::yield_now();
                }
            };
            for reset in 0..25 {
                // Every other one comes when both have commands in flight, the rest whenever it comes.
                if reset % 2 == 0 {
                    orders.hold.store(true, Ordering::Relaxed);
                    until("waited for both to hold", &|| orders.holding.load(Ordering::Relaxed) == 2);
                    orders.hold.store(false, Ordering::Relaxed);
                    orders.holding.store(0, Ordering::Relaxed);
                }
                rig.nvme.reset().unwrap();
                // Both get something done before the next one.
                let before = progress.each_ref().map(|p| p.load(Ordering::Relaxed));
                until("waited for both to read", &|| {
                    progress.iter().zip(before).all(|(p, before)| p.load(Ordering::Relaxed) >= before + 20)
                });
            }
            drop(at_end);
            let totals = workers.map(|w| w.join().unwrap());
            assert!(totals.iter().all(|(verified, aborted)| *verified >= 500 && *aborted > 0), "{totals:?}");
        });
        let events = rig
            .nvme
            .events()
            .try_iter()
            .filter(|e| matches!(e, Event::Device(DeviceEvent::Reset { lost, .. }) if lost.is_empty()));
        assert_eq!(events.count(), 25);
        assert_eq!((rig.nvme.quarantined(), rig.pool.available()), (0, 96));
    }
}

#[test]
fn an_owner_that_does_not_poll_loses_its_queue() {
    let options = Options { stop_timeout: Duration::from_millis(50), ..patient() };
    let rig = rig_with("sim:nvme,size=4M,faults=drop:1/1", options);
    let mut asleep = rig.queue();
    for tag in 0..3 {
        asleep.submit(request(tag, Op::Read { lba: 0 }, Data::One(rig.buf(4096)))).unwrap();
    }
    asleep.ring();
    let error = rig.nvme.reset().unwrap_err();
    assert!(
        matches!(&error, Error::Core(wholebar_core::Error::Unresponsive { queues, .. }) if *queues == [1]),
        "{error}"
    );
    // The controller works; that queue never will, and what it had in flight is not given back.
    let done = wait(&mut asleep, 3);
    assert!(done.iter().all(|c| c.status == Status::Aborted && matches!(c.data, Data::None)));
    assert!(matches!(asleep.state(), QueueState::Failed(why) if why.contains("not polled")));
    assert_eq!(asleep.submit(request(9, Op::Flush, Data::None)).unwrap_err().why, Reject::Gone);
    assert_eq!((rig.nvme.quarantined(), rig.pool.available()), (3, 93));
    let other = rig.queue();
    assert_eq!(other.id(), 2, "the lost queue's number isn't used while it is there");
    drop(asleep);
    assert_eq!(rig.queue().id(), 1);
}

#[test]
fn one_thread_can_poll_and_service() {
    let options = Options { service: Service::Manual, ..patient() };
    let rig = rig_with("sim:nvme,size=4M", options);
    let mut queue = rig.queue();
    ok(&mut queue, Op::Write { lba: 0 }, Data::One(rig.pattern(4096, 1)));
    // Posted, not announced: certainly in flight when the reset comes.
    queue.submit(request(1, Op::Read { lba: 0 }, Data::One(rig.buf(4096)))).unwrap();
    rig.nvme.request_reset();
    assert_eq!(queue.state(), QueueState::Resetting);
    let (start, mut done) = (Instant::now(), Vec::new());
    while queue.state() != QueueState::Running {
        queue.poll_each(8, |c| done.push(c.status));
        rig.nvme.service().unwrap();
        assert!(start.elapsed() < LONG);
    }
    assert_eq!(done, [Status::Aborted]);
    let read = one(ok(&mut queue, Op::Read { lba: 0 }, Data::One(rig.buf(4096))));
    assert!(read.bytes() == pattern(4096, 1));
    assert_eq!(rig.nvme.io_queues(), 16);
}

#[test]
fn a_queue_can_be_dropped_while_the_controller_waits_for_it() {
    let options = Options { service: Service::Manual, ..patient() };
    let rig = rig_with("sim:nvme,size=4M,faults=drop:1/1", options);
    let mut queue = rig.queue();
    queue.submit(request(1, Op::Read { lba: 0 }, Data::One(rig.buf(4096)))).unwrap();
    queue.ring();
    rig.nvme.request_reset();
    let start = Instant::now();
    drop(queue);
    assert!(start.elapsed() < LONG, "nobody waits for it");
    assert_eq!((rig.nvme.quarantined(), rig.pool.available()), (0, 96));
    rig.nvme.check().unwrap();
    assert_eq!(rig.queue().id(), 1);
}

#[test]
fn the_handle_may_go_before_its_queues() {
    let rig = rig("sim:nvme,size=4M");
    let mut queue = rig.queue();
    let Rig { nvme, pool, arena, opened } = rig;
    drop(nvme);
    let read = ok(&mut queue, Op::Read { lba: 0 }, Data::One(pool.get_len(4096).unwrap()));
    drop((read, queue));
    assert_eq!(pool.available(), 96);
    drop((pool, arena));
    assert_eq!(opened.model.dma().mapped(), 0, "everything is unmapped");
}

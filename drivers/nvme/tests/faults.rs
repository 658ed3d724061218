//! What a controller can do wrong: each fault ends in a named error or a recovery, and no request is lost or completed twice.
#![cfg(not(miri))]

mod common;

use common::*;
use std::collections::HashSet;
use std::time::{Duration, Instant};
use wholebar_core::block::{Data, Op, QueueState, Reject, Request, Status};
use wholebar_core::control_plane::DeviceEvent;
use wholebar_nvme::{Error, Event, Nvme, Options, Queue, QueueOptions};

/// For controllers that lose commands. One that merely got no core for a while loses some, too: then the command was late.
fn impatient() -> Options {
    Options { timeout: Duration::from_millis(250), ..patient() }
}

#[derive(Debug, Default)]
struct Tally {
    ok: u64,
    device: u64,
    aborted: u64,
    gone: u64,
    resets: u64,
    ended: bool,
}

/// Reads and writes until `commands` were submitted and all have completed, once each, or the device ended.
fn storm(rig: &Rig, commands: u64) -> Tally {
    let mut queue = rig.queue();
    let (mut tally, mut next, mut out) = (Tally::default(), 0, HashSet::new());
    let start = Instant::now();
    loop {
        let ended = rig.nvme.check().is_err();
        while next < commands && !ended {
            let Some(buf) = rig.pool.get_len(4096) else { break };
            let lba = next * 8 % 4096;
            let op = if next.is_multiple_of(3) { Op::Write { lba } } else { Op::Read { lba } };
            match queue.submit(request(next, op, Data::One(buf))) {
                Ok(()) => {
                    out.insert(next);
                    next += 1;
                }
                Err(rejected) => {
                    assert!(!matches!(rejected.why, Reject::Invalid(_)), "{:?}", rejected.why);
                    break;
                }
            }
        }
        queue.ring();
        let found = queue.poll_each(64, |done| {
            assert!(out.remove(&done.tag), "{} completed, and was not in flight", done.tag);
            match done.status {
                Status::Ok => tally.ok += 1,
                Status::Device(_) => tally.device += 1,
                Status::Aborted => tally.aborted += 1,
                Status::Gone => tally.gone += 1,
            }
            assert!(!matches!(done.data, Data::None) || rig.nvme.quarantined() > 0);
        });
        if out.is_empty() && (next == commands || ended) {
            break;
        }
        if found == 0 {
            std::thread::yield_now();
        }
        assert!(start.elapsed() < LONG, "stuck with {tally:?}, {} out, {:?}", out.len(), queue.state());
    }
    // What is told is told under the lock that this takes: what queues have seen has been told then.
    let _ = rig.nvme.smart();
    for event in rig.nvme.events().try_iter() {
        match event {
            Event::Device(DeviceEvent::Reset { lost, .. }) => {
                assert!(lost.is_empty());
                tally.resets += 1;
            }
            Event::Device(DeviceEvent::Ended { .. }) => tally.ended = true,
            other => panic!("{other:?}"),
        }
    }
    tally
}

/// A storm that the controller survives: afterwards it works.
fn survives(faults: &str, commands: u64) -> Tally {
    survives_with(impatient(), faults, commands)
}

fn survives_with(options: Options, faults: &str, commands: u64) -> Tally {
    let rig = rig_with(&format!("sim:nvme,size=4M,to=120,faults={faults},delay=5"), options);
    let tally = storm(&rig, commands);
    assert_eq!(tally.ok + tally.device + tally.aborted, commands, "{tally:?}");
    assert!(tally.ok > commands / 2, "{tally:?}");
    assert_eq!(rig.nvme.quarantined(), 0);
    assert_eq!(rig.pool.available(), 96);
    rig.nvme.check().unwrap();
    tally
}

#[test]
fn completions_that_never_come_are_aborted_or_reset() {
    let tally = survives("drop:1/800,seed=11", 20_000);
    assert!(tally.aborted + tally.device > 0);
}

#[test]
fn duplicates_are_found() {
    let tally = survives("dup:1/1000,seed=12", 25_000);
    assert!(tally.resets > 0);
}

#[test]
fn wrong_identifiers_are_found() {
    let tally = survives("id:1/1000,seed=13", 20_000);
    assert!(tally.resets > 0);
}

#[test]
fn a_wrong_phase_hides_completions_until_the_reset() {
    let tally = survives("phase:1/3000,seed=14", 20_000);
    assert!(tally.resets > 0 && tally.aborted > 0);
}

#[test]
fn heads_outside_of_the_queue_are_found() {
    let tally = survives("head:1/1000,seed=15", 20_000);
    assert!(tally.resets > 0);
}

#[test]
fn what_is_late_is_waited_for() {
    let tally = survives_with(patient(), "delay:1/300,seed=16", 5_000);
    assert_eq!(tally.resets, 0);
}

#[test]
fn wrong_statuses_and_addresses_are_the_commands_own() {
    let tally = survives_with(patient(), "corrupt:1/100+dma:1/100,seed=17", 10_000);
    assert!(tally.device > 0);
    assert_eq!(tally.resets, 0);
}

#[test]
fn a_fatal_error_is_mended_by_a_reset() {
    let tally = survives("fatal:@3000", 6_000);
    assert!(tally.resets > 0 && tally.aborted > 0);
}

#[test]
fn all_at_once() {
    let tally = survives(
        "drop:1/4000+dup:1/4000+id:1/4000+phase:1/4000+head:1/4000+corrupt:1/500+delay:1/2000,seed=18",
        20_000,
    );
    assert!(tally.resets > 0);
}

#[test]
fn one_that_vanishes_is_gone_and_every_call_says_so() {
    let rig = rig("sim:nvme,size=4M,faults=vanish:@2000");
    let tally = storm(&rig, 5_000);
    assert!(tally.gone > 0 && tally.ok >= 1900 && tally.ended, "{tally:?}");
    assert!(matches!(rig.nvme.smart(), Err(Error::Core(wholebar_core::Error::Gone { .. }))));
    assert!(matches!(rig.nvme.reset(), Err(Error::Core(wholebar_core::Error::Gone { .. }))));
    assert!(matches!(rig.nvme.check(), Err(Error::Core(wholebar_core::Error::Gone { .. }))));
    assert!(matches!(rig.nvme.queue(Default::default()), Err(Error::Core(wholebar_core::Error::Gone { .. }))));
    // Nobody on the bus writes nothing: the buffers are back.
    assert_eq!((rig.nvme.quarantined(), rig.pool.available()), (0, 96));
}

#[test]
fn a_queue_of_one_that_vanished_is_gone() {
    let rig = rig("sim:nvme,size=4M,faults=vanish:@1");
    let mut queue = rig.queue();
    queue.submit(request(1, Op::Read { lba: 0 }, Data::One(rig.buf(4096)))).unwrap();
    queue.ring();
    assert_eq!(wait(&mut queue, 1)[0].status, Status::Gone);
    assert_eq!(queue.state(), QueueState::Gone);
    assert_eq!(queue.submit(request(2, Op::Flush, Data::None)).unwrap_err().why, Reject::Gone);
}

#[test]
fn a_reset_that_hangs_takes_a_reset_of_the_function() {
    // The first reset is the one at opening. In ten seconds all others are over.
    let rig = rig("sim:nvme,size=4M,to=20,faults=hang:@2");
    rig.nvme.reset().unwrap();
    let mut queue = rig.queue();
    ok(&mut queue, Op::Read { lba: 0 }, Data::One(rig.buf(4096)));
    assert!(rig.nvme.smart().is_ok(), "the admin queue works, with its interrupts");
}

#[test]
fn one_that_hangs_when_it_is_opened_is_a_named_error() {
    let opened = open("sim:nvme,size=4M,to=1,faults=hang:1/1");
    let error = Nvme::open(opened.model.clone(), patient()).err().unwrap();
    assert!(matches!(error, Error::Core(wholebar_core::Error::NotReady { .. })), "{error}");
}

/// It says that it takes two minutes, and never gets ready.
#[test]
fn how_long_it_may_take_to_get_ready_is_not_its_own_to_say() {
    let opened = open("sim:nvme,size=4M,to=255,faults=hang:1/1");
    let bounded = Options { ready_timeout: Duration::from_millis(300), ..patient() };
    let error = Nvme::open(opened.model.clone(), bounded).err().unwrap();
    let Error::Core(wholebar_core::Error::NotReady { waited, .. }) = error else { panic!("{error}") };
    assert!((Duration::from_millis(300)..Duration::from_secs(60)).contains(&waited), "{waited:?}");
}

#[test]
fn what_is_no_nvme_controller_is_not_touched() {
    let opened = open("sim:fpga");
    let error = Nvme::open(opened.model.clone(), patient()).err().unwrap();
    assert_eq!(
        error.to_string(),
        "sim:fpga is not a controller for this driver: its PCI class is 120000, and theirs is 010802"
    );
}

#[test]
fn admin_commands_are_bounded_too() {
    let opened = open("sim:nvme,size=4M,faults=drop:@1,strike=admin");
    let impatient = Options { admin_timeout: Duration::from_millis(500), ..patient() };
    let error = Nvme::open(opened.model.clone(), impatient).err().unwrap();
    assert_eq!(
        error.to_string(),
        "sim:nvme,size=4M,faults=drop:@1,strike=admin did not complete Identify within 500ms: it will be reset"
    );
    let opened = open("sim:nvme,size=4M,faults=corrupt:@1,strike=admin");
    let error = Nvme::open(opened.model.clone(), patient()).err().unwrap();
    assert!(matches!(&error, Error::Refused { command: "Identify", .. }), "{error}");
}

#[test]
fn a_request_whose_part_fails_posts_no_more() {
    for entries in [2, 4] {
        let rig = rig("sim:nvme,size=4M,mdts=1,faults=corrupt:@3");
        let mut queue = rig.nvme.queue(QueueOptions { entries: Some(entries), ..QueueOptions::default() }).unwrap();
        // Eight commands.
        let failed = run(&mut queue, Op::Read { lba: 0 }, Data::One(rig.buf(65536)));
        assert!(matches!(failed.status, Status::Device(_)), "{:?}", failed.status);
        assert_eq!(failed.data.len(), 65536);
        // The corrupt answer was that of a command that was done; some were in flight beside it.
        let reads = rig.nvme.smart().unwrap().reads;
        assert!((3..=2 + u128::from(entries)).contains(&reads), "{reads} of 8");
        assert_eq!(queue.in_flight(), 0);
        ok(&mut queue, Op::Read { lba: 0 }, Data::One(rig.buf(65536)));
    }
}

#[test]
fn a_request_that_waits_ends_with_a_reset() {
    let rig = rig_with("sim:nvme,size=4M,mdts=1,to=120,faults=drop:@3", impatient());
    let mut queue = rig.nvme.queue(QueueOptions { entries: Some(2), ..QueueOptions::default() }).unwrap();
    let ended = run(&mut queue, Op::Read { lba: 0 }, Data::One(rig.buf(65536)));
    assert_eq!((ended.status, ended.data.len()), (Status::Aborted, 65536));
    // Nothing of it is left when the queue runs again.
    let again = || request(2, Op::Read { lba: 0 }, Data::One(rig.buf(65536)));
    while let Err(rejected) = queue.submit(again()) {
        assert_eq!(rejected.why, Reject::Resetting);
        queue.poll_each(1, |done| panic!("{done:?}"));
        std::thread::yield_now();
    }
    queue.ring();
    // On a machine that is busy enough it may be late, too.
    let status = wait(&mut queue, 1)[0].status;
    assert!(matches!(status, Status::Ok | Status::Aborted), "{status:?}");
    assert_eq!(queue.in_flight(), 0);
}

#[test]
fn a_head_that_never_moves_is_named() {
    let rig = rig("sim:nvme,size=4M,faults=sqhd:1/1");
    let mut queue = rig.queue();
    assert_eq!(run(&mut queue, Op::Read { lba: 0 }, Data::One(rig.buf(4096))).status, Status::Aborted);
    let event = rig.nvme.events().recv_timeout(LONG).unwrap();
    let Event::Device(DeviceEvent::Reset { why, .. }) = event else { panic!("{event:?}") };
    assert!(why.contains("says by SQHD 0 that the controller has not fetched") && why.contains("3.3.3.2"), "{why}");
}

#[test]
fn one_that_does_nothing_between_its_resets_has_ended() {
    let rig = rig("sim:nvme,size=4M,faults=id:1/1");
    let mut queue = rig.queue();
    let mut aborted = 0;
    while queue.state() != QueueState::Gone && !matches!(queue.state(), QueueState::Failed(_)) {
        match queue.submit(request(aborted, Op::Read { lba: 0 }, Data::One(rig.buf(4096)))) {
            Ok(()) => {
                queue.ring();
                assert_eq!(wait(&mut queue, 1)[0].status, Status::Aborted);
                aborted += 1;
            }
            Err(rejected) => {
                assert!(matches!(rejected.why, Reject::Resetting | Reject::Gone), "{:?}", rejected.why);
                queue.poll_each(1, |done| panic!("{done:?}"));
                std::thread::yield_now();
            }
        }
    }
    let error = rig.nvme.check().unwrap_err().to_string();
    assert!(
        error.contains("was reset 10 times in a row, and completed nothing in between (it was reset because"),
        "{error}"
    );
    let events: Vec<_> = rig.nvme.events().try_iter().collect();
    assert_eq!(
        (events.iter().filter(|event| matches!(event, Event::Device(DeviceEvent::Reset { .. }))).count(), aborted),
        (10, 11),
        "{events:?}"
    );
    assert!(matches!(events.last(), Some(Event::Device(DeviceEvent::Ended { .. }))));
    assert_eq!((rig.nvme.quarantined(), rig.pool.available()), (0, 96));
}

#[test]
fn namespaces_that_come_and_go_are_seen() {
    let rig = rig("sim:nvme,size=4M,ns=3,faults=detach:@2+attach:@4");
    let ids = || rig.nvme.namespaces().iter().map(|n| n.nsid).collect::<Vec<_>>();
    let changed = || {
        let event = rig.nvme.events().recv_timeout(LONG).unwrap();
        let Event::Driver(event) = event else { panic!("{event:?}") };
        assert_eq!(event.to_string(), "Namespace Attribute Changed (type 2h, information 00h)");
    };
    let mut queue = rig.queue();
    let read = |queue: &mut Queue, nsid| run_on(queue, nsid, Op::Read { lba: 0 }, Data::One(rig.buf(512))).status;
    assert_eq!(read(&mut queue, 2), Status::Ok);
    let gone = read(&mut queue, 2);
    assert!(matches!(gone, Status::Device(_)), "{gone:?}");
    changed();
    assert_eq!(ids(), [1, 3]);
    // A queue goes by that at once where it looks a namespace up.
    assert_eq!(read(&mut queue, 1), Status::Ok);
    let buf = rig.buf(512);
    let rejected = queue.submit(Request { nsid: 2, ..request(1, Op::Read { lba: 0 }, Data::One(buf)) }).unwrap_err();
    assert_eq!(rejected.why.to_string(), "the controller has no such namespace");
    // With the fourth command it is there again.
    assert_eq!(read(&mut queue, 3), Status::Ok);
    changed();
    assert_eq!(ids(), [1, 2, 3]);
    assert_eq!(read(&mut queue, 2), Status::Ok);
}

#[test]
fn a_deadline_aborts_its_command_alone() {
    let rig = rig("sim:nvme,size=4M,faults=drop:@1");
    let mut queue = rig.queue();
    let deadline = Some(Instant::now() + Duration::from_millis(20));
    let data = Data::One(rig.buf(4096));
    queue.submit(Request { tag: 1, nsid: 1, op: Op::Read { lba: 0 }, data, deadline }).unwrap();
    queue.submit(request(2, Op::Read { lba: 0 }, Data::One(rig.buf(4096)))).unwrap();
    queue.ring();
    let mut done = wait(&mut queue, 2);
    done.sort_by_key(|c| c.tag);
    assert_eq!(done[1].status, Status::Ok);
    // The model's command was done; it has no trace of it to abort, so the controller is reset after the grace.
    assert_eq!(done[0].status, Status::Aborted);
}

//! Zoned namespaces, on the bundled model: reports, appends, what is done to zones, and what is refused by name.
#![cfg(not(miri))]

mod common;

use common::*;
use std::collections::BTreeSet;
use std::time::Instant;
use wholebar_core::block::{Data, Disk, Op, Reject, Request, Status};
use wholebar_core::mem::{Arena, ArenaOptions, Pool};
use wholebar_nvme::{
    BlockRange, Error, Nvme, Options, Queue, QueueOptions, StatusCode, ZoneAction, ZoneReport, ZoneState,
};

const TARGET: &str = "sim:nvme,size=16M,zoned=1,zone_size=1M,zone_cap=512k,max_open=3,max_active=5";
/// Blocks of a zone, and how many of them can be written.
const ZONE: u64 = 2048;
const CAPACITY: u64 = 1024;

fn named(status: Status) -> Option<&'static str> {
    let Status::Device(code) = status else { return None };
    StatusCode(code).name()
}

fn act(queue: &mut Queue, action: ZoneAction, zone: Option<u64>) -> Status {
    queue.submit_zone_management(9, 1, action, zone, None).unwrap();
    queue.ring();
    let done = wait(queue, 1).pop().unwrap();
    assert_eq!(done.tag, 9);
    done.status
}

/// Executes one append: where its data is.
fn append(queue: &mut Queue, zone: u64, data: Data) -> (Status, u64) {
    queue.submit_append(request(5, Op::Write { lba: zone }, data)).unwrap();
    queue.ring();
    let mut done = None;
    let start = Instant::now();
    while done.is_none() {
        queue.poll_results(1, |completion, lba| done = Some((completion.status, lba)));
        assert!(start.elapsed() < LONG);
    }
    done.unwrap()
}

fn states(queue: &mut Queue) -> Vec<ZoneState> {
    queue.zones(1, ZoneReport::default()).unwrap().iter().map(|zone| zone.state.unwrap()).collect()
}

#[test]
fn a_namespace_says_what_its_zones_are() {
    let rig = rig(TARGET);
    let ns = rig.nvme.namespaces()[0].clone();
    assert_eq!(ns.unsupported, None);
    let zoned = ns.zoned.unwrap();
    assert_eq!((zoned.zone_size, zoned.max_open, zoned.max_active), (ZONE, Some(3), Some(5)));
    assert_eq!((zoned.extension, zoned.reads_across), (0, false));
    assert_eq!(Disk::namespaces(&rig.nvme)[0].blocks, 16 * ZONE);
    let mut queue = rig.queue();
    let zones = queue.zones(1, ZoneReport::default()).unwrap();
    let all: Vec<_> = zones.iter().map(|z| (z.start, z.capacity, z.write_pointer, z.state)).collect();
    let want = (0..16).map(|i| (i * ZONE, CAPACITY, Some(i * ZONE), Some(ZoneState::Empty)));
    assert_eq!(all, want.collect::<Vec<_>>());
    let from = ZoneReport { from: 3 * ZONE + 7, limit: Some(2), ..ZoneReport::default() };
    let some: Vec<_> = queue.zones(1, from).unwrap().iter().map(|z| z.start / ZONE).collect();
    assert_eq!(some, [3, 4]);
    for wrong in [
        ZoneReport { from: 16 * ZONE, ..ZoneReport::default() },
        ZoneReport { extended: true, ..ZoneReport::default() },
    ] {
        assert!(matches!(queue.zones(1, wrong), Err(Error::NotOffered { .. })));
    }
    assert!(matches!(queue.zones(2, ZoneReport::default()), Err(Error::NotOffered { .. })));
}

/// More zones than one report has room for.
#[test]
fn all_of_many_zones_are_reported() {
    let rig = rig("sim:nvme,size=64M,zoned=1,zone_size=16k,mdts=1");
    let mut queue = rig.queue();
    let zones = queue.zones(1, ZoneReport::default()).unwrap();
    assert!(zones.iter().map(|z| z.start).eq((0..4096).map(|i| i * 32)));
    for zone in [5u64, 4000] {
        ok(&mut queue, Op::Write { lba: zone * 32 }, Data::One(rig.buf(512)));
    }
    let open = ZoneReport { state: Some(ZoneState::ImplicitlyOpened), ..ZoneReport::default() };
    let open: Vec<_> = queue.zones(1, open).unwrap().iter().map(|z| z.write_pointer.unwrap()).collect();
    assert_eq!(open, [5 * 32 + 1, 4000 * 32 + 1]);
}

#[test]
fn zones_are_written_in_order() {
    let rig = rig(TARGET);
    let mut queue = rig.queue();
    let block = |seed| Data::One(rig.pattern(4096, seed));
    ok(&mut queue, Op::Write { lba: 0 }, block(1));
    ok(&mut queue, Op::Write { lba: 8 }, block(2));
    let read = one(ok(&mut queue, Op::Read { lba: 8 }, Data::One(rig.buf(4096))));
    assert!(read.bytes() == pattern(4096, 2));
    drop(read);
    let fails = |queue: &mut Queue, op, len| named(run(queue, op, Data::One(rig.buf(len))).status);
    assert_eq!(fails(&mut queue, Op::Write { lba: 0 }, 512), Some("Zone Invalid Write"));
    assert_eq!(fails(&mut queue, Op::Write { lba: ZONE + 1 }, 512), Some("Zone Invalid Write"));
    assert_eq!(fails(&mut queue, Op::Write { lba: CAPACITY }, 512), Some("Zone Boundary Error"));
    // A request that goes from a zone into the next becomes a command in each: the second one finds that zone's beginning.
    ok(&mut queue, Op::Read { lba: ZONE - 8 }, Data::One(rig.buf(8192)));
    assert_eq!(act(&mut queue, ZoneAction::Finish, Some(0)), Status::Ok);
    assert_eq!(fails(&mut queue, Op::Write { lba: 16 }, 512), Some("Zone Is Full"));
    let zones = queue.zones(1, ZoneReport::default()).unwrap();
    assert_eq!((zones[0].state, zones[0].write_pointer), (Some(ZoneState::Full), None));
    assert_eq!(act(&mut queue, ZoneAction::Reset, Some(0)), Status::Ok);
    let read = one(ok(&mut queue, Op::Read { lba: 0 }, Data::One(rig.buf(4096))));
    assert!(read.bytes().iter().all(|byte| *byte == 0), "what was there is gone");
    drop(read);
    ok(&mut queue, Op::WriteZeroes { lba: 0, blocks: 8 }, Data::None);
    ok(&mut queue, Op::Write { lba: 8 }, block(3));
}

#[test]
fn open_and_active_zones_have_limits() {
    use ZoneState::{Closed, Empty, ExplicitlyOpened, Full, ImplicitlyOpened};
    let rig = rig(TARGET);
    let mut queue = rig.queue();
    let write =
        |queue: &mut Queue, zone: u64| run(queue, Op::Write { lba: zone * ZONE }, Data::One(rig.buf(512))).status;
    for zone in 0..3 {
        assert_eq!(act(&mut queue, ZoneAction::Open, Some(zone * ZONE)), Status::Ok);
    }
    assert_eq!(named(act(&mut queue, ZoneAction::Open, Some(3 * ZONE))), Some("Too Many Open Zones"));
    assert_eq!(named(write(&mut queue, 3)), Some("Too Many Open Zones"));
    assert_eq!(write(&mut queue, 0), Status::Ok);
    assert_eq!(act(&mut queue, ZoneAction::Close, Some(0)), Status::Ok);
    assert_eq!(act(&mut queue, ZoneAction::Close, Some(ZONE)), Status::Ok);
    // One that was written is closed, one that wasn't is empty again.
    assert_eq!(states(&mut queue)[..3], [Closed, Empty, ExplicitlyOpened]);
    for zone in [3, 4, 5] {
        assert_eq!(write(&mut queue, zone), Status::Ok);
    }
    assert_eq!(states(&mut queue)[..6], [Closed, Empty, ExplicitlyOpened, Closed, ImplicitlyOpened, ImplicitlyOpened]);
    assert_eq!(named(write(&mut queue, 6)), Some("Too Many Active Zones"));
    assert_eq!(named(act(&mut queue, ZoneAction::Close, Some(6 * ZONE))), Some("Invalid Zone State Transition"));
    assert_eq!(named(act(&mut queue, ZoneAction::Offline, Some(0))), Some("Invalid Zone State Transition"));
    assert_eq!(act(&mut queue, ZoneAction::Finish, None), Status::Ok);
    let full = states(&mut queue).iter().filter(|state| **state == Full).count();
    assert_eq!(full, 5);
    assert_eq!(named(act(&mut queue, ZoneAction::Open, Some(0))), Some("Invalid Zone State Transition"));
    assert_eq!(act(&mut queue, ZoneAction::Reset, None), Status::Ok);
    assert!(states(&mut queue).iter().all(|state| *state == Empty));
}

#[test]
fn zones_that_wear_out_are_refused_by_name() {
    for (fault, write, read, after) in [
        ("zonero", "Zone Is Read Only", None, ZoneState::ReadOnly),
        ("zoneoff", "Zone Is Offline", Some("Zone Is Offline"), ZoneState::Offline),
    ] {
        let rig = rig(&format!("{TARGET},faults={fault}:@2"));
        let mut queue = rig.queue();
        ok(&mut queue, Op::Write { lba: ZONE }, Data::One(rig.buf(4096)));
        let status = run(&mut queue, Op::Write { lba: ZONE + 8 }, Data::One(rig.buf(4096))).status;
        assert_eq!(named(status), Some(write));
        assert_eq!(named(run(&mut queue, Op::Read { lba: ZONE }, Data::One(rig.buf(4096))).status), read);
        assert_eq!(states(&mut queue)[1], after);
        assert_eq!(named(append(&mut queue, ZONE, Data::One(rig.buf(512))).0), Some(write));
        assert_eq!(named(act(&mut queue, ZoneAction::Reset, Some(ZONE))), Some("Invalid Zone State Transition"));
        assert_eq!(act(&mut queue, ZoneAction::Offline, Some(ZONE)), Status::Ok);
        assert_eq!(states(&mut queue)[1], ZoneState::Offline);
    }
}

/// Blocks that were marked can be read once they are appended to: the zone was reset in between.
#[test]
fn an_append_mends_uncorrectable_blocks() {
    let rig = rig(TARGET);
    let mut queue = rig.queue();
    queue.submit_write_uncorrectable(9, 1, BlockRange { lba: ZONE, blocks: 8 }, None).unwrap();
    queue.ring();
    assert_eq!(wait(&mut queue, 1).pop().unwrap().status, Status::Ok);
    let status = run(&mut queue, Op::Read { lba: ZONE }, Data::One(rig.buf(4096))).status;
    assert_eq!(named(status), Some("Unrecovered Read Error"));
    assert_eq!(act(&mut queue, ZoneAction::Reset, Some(ZONE)), Status::Ok);
    assert_eq!(append(&mut queue, ZONE, Data::One(rig.pattern(4096, 3))), (Status::Ok, ZONE));
    assert!(one(ok(&mut queue, Op::Read { lba: ZONE }, Data::One(rig.buf(4096)))).bytes() == pattern(4096, 3));
}

#[test]
fn appends_say_where_their_data_is() {
    let rig = rig(&format!("{TARGET},zasl=2"));
    assert_eq!(rig.nvme.identify().max_append, Some(16 << 10));
    let mut queue = rig.queue();
    for i in 0..(CAPACITY / 8) {
        let (status, lba) = append(&mut queue, 2 * ZONE, Data::One(rig.pattern(4096, i)));
        assert_eq!((status, lba), (Status::Ok, 2 * ZONE + 8 * i));
    }
    for i in 0..(CAPACITY / 8) {
        let read = one(ok(&mut queue, Op::Read { lba: 2 * ZONE + 8 * i }, Data::One(rig.buf(4096))));
        assert!(read.bytes() == pattern(4096, i));
    }
    assert_eq!(named(append(&mut queue, 2 * ZONE, Data::One(rig.buf(512))).0), Some("Zone Is Full"));
    let mut refuse = |nsid, op, data, says: &str| {
        let req = Request { tag: 1, nsid, op, data, deadline: None };
        let rejected = queue.submit_append(req).unwrap_err();
        assert!(matches!(rejected.why, Reject::Invalid(why) if why.contains(says)), "{:?}", rejected.why);
    };
    refuse(1, Op::Write { lba: 1 }, Data::One(rig.buf(512)), "no zone begins");
    refuse(1, Op::Write { lba: 16 * ZONE }, Data::One(rig.buf(512)), "past the namespace's end");
    refuse(1, Op::Write { lba: 0 }, Data::One(rig.buf(32768)), "more data than one append");
    refuse(1, Op::Write { lba: 0 }, Data::One(rig.buf(500)), "block size");
    refuse(1, Op::Write { lba: 0 }, Data::None, "no data");
    refuse(1, Op::Write { lba: 0 }, Data::Many([512, 512].map(|len| rig.buf(len)).into()), "one command");
    refuse(1, Op::Read { lba: 0 }, Data::One(rig.buf(512)), "an append is a write");
    refuse(7, Op::Write { lba: 0 }, Data::One(rig.buf(512)), "no such namespace");
    drop(queue);
    assert_eq!(rig.pool.available(), 96);
}

#[test]
fn a_namespace_without_zones_has_none() {
    let rig = rig("sim:nvme,size=1M");
    let mut queue = rig.queue();
    let refused = queue.submit_append(request(1, Op::Write { lba: 0 }, Data::One(rig.buf(512)))).unwrap_err();
    assert!(matches!(refused.why, Reject::Invalid("the namespace has no zones")));
    let refused = queue.submit_zone_management(1, 1, ZoneAction::Open, Some(0), None);
    assert_eq!(refused, Err(Reject::Invalid("the namespace has no zones")));
    assert!(matches!(queue.zones(1, ZoneReport::default()), Err(Error::NotOffered { .. })));
}

/// Two threads, a queue each, append to one zone at the same time: every block is found where its completion said, and none twice.
#[test]
fn appends_from_two_threads_share_a_zone() {
    const EACH: u64 = 2000;
    let opened = open("sim:nvme,size=16M,zoned=1,zone_size=8M");
    let nvme = Nvme::open(opened.model.clone(), Options { io_queues: 2, ..patient() }).unwrap();
    let arena = Arena::new(4 << 20, ArenaOptions::default()).unwrap();
    nvme.attach(arena.clone()).unwrap();
    let thread = |seed: u64| {
        let pool = Pool::new(arena.clone(), 32, 512, 512).unwrap();
        let mut queue = nvme.queue(QueueOptions::default()).unwrap();
        let (mut next, mut found) = (0, Vec::new());
        let start = Instant::now();
        while found.len() < EACH as usize {
            while next < EACH
                && let Some(mut buf) = pool.get_len(512)
            {
                fill(buf.bytes_mut(), seed + next);
                queue.submit_append(request(seed + next, Op::Write { lba: 0 }, Data::One(buf))).unwrap();
                next += 1;
            }
            queue.ring();
            let done = queue.poll_results(32, |completion, lba| {
                assert_eq!(completion.status, Status::Ok);
                found.push((completion.tag, lba));
            });
            if done == 0 {
                std::thread::yield_now();
            }
            assert!(start.elapsed() < LONG);
        }
        found
    };
    let (one, two) = std::thread::scope(|scope| {
        let (one, two) = (scope.spawn(|| thread(0)), scope.spawn(|| thread(1 << 20)));
        (one.join().unwrap(), two.join().unwrap())
    });
    let all: Vec<_> = one.into_iter().chain(two).collect();
    let places: BTreeSet<u64> = all.iter().map(|(_, lba)| *lba).collect();
    assert!(places.into_iter().eq(0..2 * EACH), "each block once, and no gap");
    let pool = Pool::new(arena.clone(), 1, 512, 512).unwrap();
    let mut queue = nvme.queue(QueueOptions::default()).unwrap();
    for (tag, lba) in all {
        let read = common::one(ok(&mut queue, Op::Read { lba }, Data::One(pool.get_len(512).unwrap())));
        assert!(read.bytes() == pattern(512, tag), "append {tag} at {lba}");
    }
    let zones = queue.zones(1, ZoneReport { limit: Some(1), ..ZoneReport::default() }).unwrap();
    assert_eq!(zones[0].write_pointer, Some(2 * EACH));
}

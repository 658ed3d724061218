//! Where writes' data goes, on the bundled model: placements of flexible data placement, with their reclaim units, statistics and events; and streams.
#![cfg(not(miri))]

mod common;

use common::*;
use wholebar_core::block::{Data, Op, Reject, Request, Status};
use wholebar_nvme::{
    Error, FdpMode, NewNamespace, Placement, Protection, Queue, QueueOptions, StatusCode, StreamParameters,
};

/// Two reclaim groups, four handles, units of 1 MiB.
const TARGET: &str = "sim:nvme,size=64M,fdp=1,fdp_nrg=2,fdp_nruh=4,fdp_runs=1M";
/// Blocks of a unit.
const UNIT: u64 = 2048;
/// The one endurance group.
const GROUP: u16 = 1;

/// The identifier of a handle in a group: the group is in the uppermost bit.
fn id(group: u16, handle: u16) -> u16 {
    group << 15 | handle
}

fn write(rig: &Rig, queue: &mut Queue, lba: u64, len: u32, placement: Placement) -> Status {
    let data = Data::One(rig.pattern(len, lba));
    queue.submit_placed(request(3, Op::Write { lba }, data), placement, None).unwrap();
    queue.ring();
    wait(queue, 1).pop().unwrap().status
}

fn left(queue: &mut Queue, nsid: u32, placement: u16) -> u64 {
    let units = queue.placements(nsid).unwrap();
    units.iter().find(|unit| unit.placement == placement).unwrap().blocks_left
}

fn refused(error: Error) -> Option<&'static str> {
    let Error::Refused { status, .. } = error else { panic!("{error}") };
    status.name()
}

#[test]
fn an_endurance_group_says_how_it_is_made() {
    let rig = rig(TARGET);
    assert!(rig.nvme.identify().has_fdp() && rig.nvme.identify().has_directives());
    assert_eq!(rig.nvme.namespaces()[0].endurance_group, GROUP);
    let configs = rig.nvme.fdp_configs(GROUP).unwrap();
    assert_eq!(configs.len(), 1);
    let config = &configs[0];
    assert_eq!((config.valid, config.groups, config.handle_count, config.unit_size), (true, 2, 4, 1 << 20));
    assert_eq!((config.group_bits, &config.handles[..]), (1, &[1; 4][..]));
    assert_eq!(rig.nvme.fdp_usage(GROUP).unwrap(), [1; 4]);
    assert_eq!(rig.nvme.fdp_mode(GROUP).unwrap(), FdpMode { enabled: true, config: 0 });
    let directives = rig.nvme.directives(1).unwrap();
    assert!(directives.data_placement.enabled && directives.data_placement.persistent);
    assert!(!directives.streams.supported);
    let mut queue = rig.queue();
    let units = queue.placements(1).unwrap();
    let found: Vec<_> = units.iter().map(|unit| (unit.placement, unit.handle, unit.blocks_left)).collect();
    let want: Vec<_> = (0..4).flat_map(|h| [0, 1].map(|g| (id(g, h), h, UNIT))).collect();
    assert_eq!(found, want);
    assert_eq!(refused(rig.nvme.fdp_usage(2).unwrap_err()), Some("Invalid Field in Command"));
}

/// More placements than are asked for at first.
#[test]
fn all_of_many_placements_are_reported() {
    let rig = rig("sim:nvme,size=16M,fdp=1,fdp_nrg=3,fdp_nruh=100,mdts=5");
    let units = rig.queue().placements(1).unwrap();
    assert_eq!(units.len(), 300);
    assert_eq!(units.iter().filter(|unit| unit.placement >> 14 == 2).count(), 100);
}

/// Statistics agree with what was written, and units with where.
#[test]
fn writes_go_where_they_say() {
    let rig = rig(TARGET);
    let mut queue = rig.queue();
    let mut written = 0;
    for (i, placement) in [id(0, 1), id(1, 1), id(0, 3), id(0, 1)].into_iter().enumerate() {
        let len = 4096 << i;
        assert_eq!(write(&rig, &mut queue, i as u64 * 128, len, Placement::Handle(placement)), Status::Ok);
        written += u128::from(len);
    }
    let in_units = [id(0, 1), id(1, 1), id(0, 3), id(1, 3)].map(|id| UNIT - left(&mut queue, 1, id));
    assert_eq!(in_units, [8 + 64, 16, 32, 0]);
    // What names no placement goes to the first.
    ok(&mut queue, Op::Write { lba: 4000 }, Data::One(rig.pattern(512, 9)));
    written += 512;
    assert_eq!(left(&mut queue, 1, 0), UNIT - 1);
    let statistics = rig.nvme.fdp_statistics(GROUP).unwrap();
    assert_eq!((statistics.host_written, statistics.media_written), (written, written));
    let back = one(ok(&mut queue, Op::Read { lba: 384 }, Data::One(rig.buf(32 << 10))));
    assert!(back.bytes() == pattern(32 << 10, 384));
    drop(back);
    // A unit that is full is followed by another; a request in parts has all of its data there.
    let parts = (0..20).map(|_| rig.pattern(64 << 10, 1)).collect();
    let whole = request(4, Op::Write { lba: 8192 }, Data::Many(parts));
    queue.submit_placed(whole, Placement::Handle(id(1, 2)), None).unwrap();
    queue.ring();
    assert_eq!(wait(&mut queue, 1)[0].status, Status::Ok);
    assert_eq!(left(&mut queue, 1, id(1, 2)), 2 * UNIT - 20 * 128);
    // Only writes have placements.
    let read = request(5, Op::Read { lba: 0 }, Data::One(rig.buf(512)));
    let rejected = queue.submit_placed(read, Placement::Handle(0), None).unwrap_err();
    assert!(matches!(rejected.why, Reject::Invalid(_)));
}

#[test]
fn units_are_left_and_events_tell() {
    let rig = rig(TARGET);
    let mut queue = rig.queue();
    let handle = Placement::Handle(id(0, 2));
    let kinds: Vec<_> = rig.nvme.fdp_event_config(1, 2).unwrap().iter().map(|e| (e.kind, e.enabled)).collect();
    assert_eq!(kinds, [(0, false), (3, false)]);
    assert_eq!(write(&rig, &mut queue, 0, 4096, handle), Status::Ok);
    queue.update_placements(1, &[id(0, 2)]).unwrap();
    assert_eq!(rig.nvme.fdp_events(GROUP, true).unwrap(), [], "nobody wants them");
    rig.nvme.set_fdp_events(1, 2, &[0, 3], true).unwrap();
    rig.nvme.set_fdp_events(1, 0, &[3], true).unwrap();
    assert!(rig.nvme.fdp_event_config(1, 2).unwrap().iter().all(|event| event.enabled));
    assert_eq!(write(&rig, &mut queue, 0, 8192, handle), Status::Ok);
    queue.update_placements(1, &[id(0, 2), id(0, 1)]).unwrap();
    assert_eq!(left(&mut queue, 1, id(0, 2)), UNIT);
    // One that isn't there: the controller writes nevertheless.
    assert_eq!(write(&rig, &mut queue, 64, 512, Placement::Handle(7)), Status::Ok);
    let events = rig.nvme.fdp_events(GROUP, true).unwrap();
    let found: Vec<_> = events.iter().map(|e| (e.name().unwrap(), e.placement, e.nsid, e.unit)).collect();
    let want = [
        ("Reclaim Unit Not Fully Written To Capacity", Some(id(0, 2)), Some(1), Some((0, 2))),
        ("Invalid Placement Identifier", Some(7), Some(1), None),
    ];
    assert_eq!(found, want);
    assert_eq!(rig.nvme.fdp_events(GROUP, false).unwrap(), [], "the controller's own");
    // Both units that were left are lost to the media.
    let statistics = rig.nvme.fdp_statistics(GROUP).unwrap();
    assert_eq!((statistics.host_written, statistics.media_written), (4096 + 8192 + 512, 2 * (1 << 20) + 512));
    assert_eq!(refused(queue.update_placements(1, &[0, 9]).unwrap_err()), Some("Invalid Field in Command"));
    assert!(matches!(queue.update_placements(1, &[]), Err(Error::NotOffered { .. })));
    assert!(matches!(rig.nvme.set_fdp_events(1, 2, &[], true), Err(Error::NotOffered { .. })));
    let unknown = rig.nvme.set_fdp_events(1, 2, &[1], true).unwrap_err();
    assert_eq!(refused(unknown), Some("Invalid Field in Command"));
}

/// Data is placed, or isn't, as long as there are no namespaces.
#[test]
fn the_mode_is_changed_without_namespaces() {
    let rig = rig("sim:nvme,size=16M,spare=16M,fdp=1");
    let off = FdpMode { enabled: false, config: 0 };
    assert_eq!(refused(rig.nvme.set_fdp_mode(GROUP, off).unwrap_err()), Some("Command Sequence Error"));
    rig.nvme.delete_namespace(u32::MAX, LONG).unwrap();
    rig.nvme.set_fdp_mode(GROUP, off).unwrap();
    assert!(!rig.nvme.fdp_mode(GROUP).unwrap().enabled);
    let new = NewNamespace { blocks: 1024, capacity: 1024, endurance_group: GROUP, ..NewNamespace::default() };
    let nsid = rig.nvme.create_namespace(&new, LONG).unwrap();
    rig.nvme.attach_namespace(nsid, &[0]).unwrap();
    assert_eq!(refused(rig.nvme.fdp_statistics(GROUP).unwrap_err()), Some("FDP Disabled"));
    let mut queue = rig.queue();
    assert_eq!(refused(queue.placements(nsid).unwrap_err()), Some("FDP Disabled"));
    let status = write(&rig, &mut queue, 0, 512, Placement::Handle(0));
    assert!(matches!(status, Status::Device(code) if StatusCode(code).name() == Some("Invalid Field in Command")));
}

/// Tags and placements are different words of an entry.
#[test]
fn protected_blocks_have_placements() {
    let rig = rig("sim:nvme,size=16M,ms=8,pi=1,fdp=1,fdp_runs=1M");
    let mut queue = rig.queue();
    let req = request(3, Op::Write { lba: 5 }, Data::One(rig.pattern(4096, 5)));
    queue.submit_placed(req, Placement::Handle(2), Some(Protection::controller())).unwrap();
    queue.ring();
    assert_eq!(wait(&mut queue, 1)[0].status, Status::Ok);
    assert_eq!(left(&mut queue, 1, 2), UNIT - 8);
    let back = one(ok(&mut queue, Op::Read { lba: 5 }, Data::One(rig.buf(4096))));
    assert!(back.bytes() == pattern(4096, 5));
}

#[test]
fn streams_are_opened_by_writes() {
    let rig = rig("sim:nvme,size=16M,ns=2,streams=4");
    let mut queue = rig.queue();
    let on = |queue: &mut Queue, nsid, stream| {
        let req = Request { nsid, ..request(3, Op::Write { lba: 0 }, Data::One(rig.pattern(512, 0))) };
        queue.submit_placed(req, Placement::Stream(stream), None).unwrap();
        queue.ring();
        wait(queue, 1).pop().unwrap().status
    };
    let refused_status = |status| matches!(status, Status::Device(code) if StatusCode(code).code() == 2);
    assert!(refused_status(on(&mut queue, 1, 5)), "they are not enabled");
    rig.nvme.enable_streams(1, true).unwrap();
    let streams = rig.nvme.directives(1).unwrap().streams;
    assert_eq!((streams.supported, streams.enabled, streams.persistent), (true, true, false));
    assert!(!rig.nvme.directives(2).unwrap().streams.enabled);
    for stream in [5, 9, 5, 0] {
        assert_eq!(on(&mut queue, 1, stream), Status::Ok);
    }
    assert_eq!(rig.nvme.open_streams(1).unwrap(), [5, 9]);
    let parameters = rig.nvme.stream_parameters(1).unwrap();
    assert_eq!((parameters.limit, parameters.available, parameters.open), (4, 4, 2));
    rig.nvme.release_stream(1, 5).unwrap();
    assert_eq!(rig.nvme.open_streams(1).unwrap(), [9]);
    // Some that are another namespace's own.
    rig.nvme.enable_streams(2, true).unwrap();
    assert_eq!(rig.nvme.allocate_streams(2, 100).unwrap(), 3, "as many as there are");
    assert_eq!(refused(rig.nvme.allocate_streams(2, 1).unwrap_err()), Some("Stream Resource Allocation Failed"));
    assert_eq!(on(&mut queue, 2, 1), Status::Ok);
    let StreamParameters { allocated, allocated_open, .. } = rig.nvme.stream_parameters(2).unwrap();
    assert_eq!((allocated, allocated_open), (3, 1));
    rig.nvme.release_streams(2).unwrap();
    assert_eq!(rig.nvme.stream_parameters(2).unwrap().allocated, 0);
    rig.nvme.enable_streams(1, false).unwrap();
    assert!(refused_status(on(&mut queue, 1, 9)));
    assert!(matches!(queue.placements(1), Err(Error::NotOffered { .. })), "there are no placements");
}

/// An entry that had a placement is used for another command, which has none.
#[test]
fn a_placement_is_one_commands_alone() {
    let rig = rig(TARGET);
    let mut queue = rig.nvme.queue(QueueOptions { entries: Some(2), ..QueueOptions::default() }).unwrap();
    for lba in 0..4 {
        assert_eq!(write(&rig, &mut queue, lba, 512, Placement::Handle(id(1, 3))), Status::Ok);
    }
    for lba in 0..4 {
        ok(&mut queue, Op::Write { lba }, Data::One(rig.pattern(512, lba)));
    }
    assert_eq!([id(1, 3), 0].map(|id| UNIT - left(&mut queue, 1, id)), [4, 4]);
}

#[test]
fn a_controller_without_any_says_so() {
    let rig = rig("sim:nvme,size=16M");
    assert!(matches!(rig.nvme.fdp_statistics(GROUP), Err(Error::NotOffered { .. })));
    assert!(matches!(rig.nvme.directives(1), Err(Error::NotOffered { .. })));
    assert!(matches!(rig.queue().placements(1), Err(Error::NotOffered { .. })));
}

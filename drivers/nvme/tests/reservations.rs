//! Reservations, on the bundled model: two hosts, each with a controller of one subsystem. No emulator has them: the model alone judges.
#![cfg(not(miri))]

mod common;

use common::*;
use wholebar_core::block::{Data, Op, Status};
use wholebar_nvme::{
    AcquireAction, Error, Event, Options, Queue, Register, RegisterAction, ReleaseAction, ReservationChange,
    ReservationMask, ReservationType, StatusCode,
};

const KEYS: [u64; 2] = [0x1111, 0x2222];

/// Two hosts on controllers of a subsystem of this name.
fn hosts(name: &str) -> [Rig; 2] {
    [1, 2].map(|host| {
        let options = Options { host_id: Some([host; 16]), ..patient() };
        rig_with(&format!("sim:nvme,size=16M,subsys={name}"), options)
    })
}

fn register(queue: &mut Queue, key: u64) {
    let action = RegisterAction::Register { key };
    queue.reservation_register(1, Register { action, ignore_key: false, persist: None }).unwrap();
}

fn conflict<T: std::fmt::Debug>(done: Result<T, Error>) -> bool {
    matches!(done, Err(Error::Refused { status, .. }) if status.name() == Some("Reservation Conflict"))
}

/// Whether reads and writes are done.
fn allowed(rig: &Rig, queue: &mut Queue) -> (bool, bool) {
    let done = |status| match status {
        Status::Ok => true,
        Status::Device(code) => {
            assert_eq!(StatusCode(code).name(), Some("Reservation Conflict"));
            false
        }
        other => panic!("{other:?}"),
    };
    let read = done(run(queue, Op::Read { lba: 0 }, Data::One(rig.buf(512))).status);
    (read, done(run(queue, Op::Write { lba: 0 }, Data::One(rig.buf(512))).status))
}

#[test]
fn a_host_that_is_not_registered_reserves_nothing() {
    let [a, _b] = hosts("registered");
    assert!(a.nvme.identify().has_reservations() && a.nvme.identify().has_long_host_ids());
    let mut queue = a.queue();
    let acquire = |queue: &mut Queue, key| {
        queue.reservation_acquire(1, key, AcquireAction::Acquire, ReservationType::WriteExclusive)
    };
    assert!(conflict(acquire(&mut queue, KEYS[0])));
    register(&mut queue, KEYS[0]);
    assert!(conflict(acquire(&mut queue, KEYS[1])), "another key");
    acquire(&mut queue, KEYS[0]).unwrap();
    acquire(&mut queue, KEYS[0]).unwrap();
    let report = queue.reservations(1).unwrap();
    assert_eq!((report.generation, report.kind), (1, Some(ReservationType::WriteExclusive)));
    assert_eq!(report.registrants.len(), 1);
    let me = report.registrants[0];
    assert_eq!((me.holds, me.host, me.key, me.controller), (true, [1; 16], KEYS[0], a.nvme.identify().id));
    // The key changes, and the registration ends: with it, the reservation.
    let replace = RegisterAction::Replace { current: 7, new: KEYS[1] };
    let change = |action, ignore_key| Register { action, ignore_key, persist: Some(true) };
    assert!(conflict(queue.reservation_register(1, change(replace, false))));
    queue.reservation_register(1, change(replace, true)).unwrap();
    assert!(queue.reservations(1).unwrap().persist);
    let unregister = RegisterAction::Unregister { key: KEYS[1] };
    queue.reservation_register(1, change(unregister, false)).unwrap();
    let report = queue.reservations(1).unwrap();
    assert_eq!((report.generation, report.kind, report.registrants.len()), (3, None, 0));
}

/// What each type leaves to a host that is registered, and to one that isn't: reads, writes.
#[test]
fn each_type_keeps_others_from_what_it_says() {
    use ReservationType::*;
    let [a, b] = hosts("types");
    let (mut holder, mut other) = (a.queue(), b.queue());
    for (kind, stranger, registrant) in [
        (WriteExclusive, (true, false), (true, false)),
        (ExclusiveAccess, (false, false), (false, false)),
        (WriteExclusiveRegistrantsOnly, (true, false), (true, true)),
        (ExclusiveAccessRegistrantsOnly, (false, false), (true, true)),
        (WriteExclusiveAllRegistrants, (true, false), (true, true)),
        (ExclusiveAccessAllRegistrants, (false, false), (true, true)),
    ] {
        register(&mut holder, KEYS[0]);
        assert_eq!(allowed(&b, &mut other), (true, true), "{kind:?}: not reserved yet");
        holder.reservation_acquire(1, KEYS[0], AcquireAction::Acquire, kind).unwrap();
        assert_eq!(allowed(&a, &mut holder), (true, true), "{kind:?}: the holder");
        assert_eq!(allowed(&b, &mut other), stranger, "{kind:?}: a stranger");
        register(&mut other, KEYS[1]);
        assert_eq!(allowed(&b, &mut other), registrant, "{kind:?}: a registrant");
        let report = other.reservations(1).unwrap();
        let all = matches!(kind, WriteExclusiveAllRegistrants | ExclusiveAccessAllRegistrants);
        let holds: Vec<_> = report.registrants.iter().map(|r| (r.host[0], r.holds)).collect();
        assert_eq!((report.kind, holds), (Some(kind), vec![(1, true), (2, all)]));
        holder.reservation_release(1, KEYS[0], ReleaseAction::Clear).unwrap();
        assert_eq!(other.reservations(1).unwrap().registrants, []);
    }
}

#[test]
fn a_reservation_is_taken_away_by_key() {
    let [a, b] = hosts("preempt");
    let (mut first, mut second) = (a.queue(), b.queue());
    register(&mut first, KEYS[0]);
    register(&mut second, KEYS[1]);
    let kind = ReservationType::ExclusiveAccess;
    first.reservation_acquire(1, KEYS[0], AcquireAction::Acquire, kind).unwrap();
    assert!(conflict(second.reservation_acquire(1, KEYS[1], AcquireAction::Acquire, kind)));
    assert!(conflict(second.reservation_acquire(1, KEYS[1], AcquireAction::Preempt { key: 5 }, kind)));
    let preempt = AcquireAction::PreemptAndAbort { key: KEYS[0] };
    second.reservation_acquire(1, KEYS[1], preempt, kind).unwrap();
    assert_eq!(allowed(&a, &mut first), (false, false));
    assert_eq!(allowed(&b, &mut second), (true, true));
    let report = second.reservations(1).unwrap();
    let registered: Vec<_> = report.registrants.iter().map(|r| (r.key, r.holds)).collect();
    assert_eq!(registered, [(KEYS[1], true)]);
    // Who is not registered any more releases nothing; who is, of the type that it is.
    assert!(conflict(first.reservation_release(1, KEYS[0], ReleaseAction::Release(kind))));
    let wrong = second.reservation_release(1, KEYS[1], ReleaseAction::Release(ReservationType::WriteExclusive));
    assert!(matches!(wrong, Err(Error::Refused { status, .. }) if status.name() == Some("Invalid Field in Command")));
    second.reservation_release(1, KEYS[1], ReleaseAction::Release(kind)).unwrap();
    assert_eq!(allowed(&a, &mut first), (true, true));
}

/// A reset has a controller forget its host, which the driver tells it again; the registration is the host's, and stays.
#[test]
fn a_host_is_known_after_a_reset() {
    let [a, b] = hosts("reset");
    let (mut first, mut second) = (a.queue(), b.queue());
    register(&mut first, KEYS[0]);
    first.reservation_acquire(1, KEYS[0], AcquireAction::Acquire, ReservationType::ExclusiveAccess).unwrap();
    reset_polling(&a.nvme, &mut first);
    assert_eq!(allowed(&a, &mut first), (true, true));
    assert_eq!(allowed(&b, &mut second), (false, false));
}

/// Hosts without an identifier are different ones, and forgotten by a reset.
#[test]
fn hosts_without_an_identifier_are_strangers() {
    let [a, b] = [(); 2].map(|()| rig("sim:nvme,size=16M,subsys=nameless"));
    let (mut first, mut second) = (a.queue(), b.queue());
    register(&mut first, KEYS[0]);
    first.reservation_acquire(1, KEYS[0], AcquireAction::Acquire, ReservationType::WriteExclusive).unwrap();
    assert_eq!(allowed(&b, &mut second), (true, false));
    assert_eq!(second.reservations(1).unwrap().registrants.len(), 1);
    drop(first);
    a.nvme.reset().unwrap();
    assert_eq!(allowed(&b, &mut second), (true, true), "a reset has it forgotten");
    assert_eq!(second.reservations(1).unwrap().registrants, []);
}

/// What a host was told since it was asked last, once it has an event: changes, of namespace 1.
fn told(rig: &Rig) -> Vec<ReservationChange> {
    loop {
        match rig.nvme.events().recv_timeout(LONG).unwrap() {
            Event::Driver(event) if event.is_reservation() => break,
            _ => {}
        }
    }
    let pages = rig.nvme.reservation_notifications().unwrap();
    assert!(pages.windows(2).all(|two| two[1].number == two[0].number + 1) && pages.iter().all(|page| page.nsid == 1));
    pages.into_iter().map(|page| page.change).collect()
}

/// Hosts are told what others did, each by an event and a page of the log, and never what they did themselves.
#[test]
fn hosts_are_told_what_others_do() {
    use ReservationChange::{RegistrationPreempted, ReservationPreempted, ReservationReleased};
    let [a, b] = hosts("told");
    let (mut first, mut second) = (a.queue(), b.queue());
    for kind in [ReservationType::WriteExclusiveRegistrantsOnly, ReservationType::ExclusiveAccessRegistrantsOnly] {
        register(&mut first, KEYS[0]);
        register(&mut second, KEYS[1]);
        first.reservation_acquire(1, KEYS[0], AcquireAction::Acquire, kind).unwrap();
        first.reservation_release(1, KEYS[0], ReleaseAction::Release(kind)).unwrap();
        assert_eq!(told(&b), [ReservationReleased], "{kind:?}");
        first.reservation_acquire(1, KEYS[0], AcquireAction::Acquire, kind).unwrap();
        let leave = Register { action: RegisterAction::Unregister { key: KEYS[0] }, ignore_key: false, persist: None };
        first.reservation_register(1, leave).unwrap();
        assert_eq!(told(&b), [ReservationReleased], "the holder left");
        register(&mut first, KEYS[0]);
        first.reservation_acquire(1, KEYS[0], AcquireAction::Acquire, kind).unwrap();
        second.reservation_acquire(1, KEYS[1], AcquireAction::Preempt { key: KEYS[0] }, kind).unwrap();
        assert_eq!(told(&a), [RegistrationPreempted], "{kind:?}");
        register(&mut first, KEYS[0]);
        second.reservation_release(1, KEYS[1], ReleaseAction::Clear).unwrap();
        assert_eq!(told(&a), [ReservationPreempted], "{kind:?}");
        // What each did itself.
        assert_eq!([&a, &b].map(|rig| rig.nvme.reservation_notifications().unwrap().len()), [0, 0]);
    }
    // Of types that registrants have no part in, a release is no news for them.
    register(&mut first, KEYS[0]);
    register(&mut second, KEYS[1]);
    let kind = ReservationType::WriteExclusive;
    first.reservation_acquire(1, KEYS[0], AcquireAction::Acquire, kind).unwrap();
    first.reservation_release(1, KEYS[0], ReleaseAction::Release(kind)).unwrap();
    assert_eq!(b.nvme.reservation_notifications().unwrap(), []);
    // Several before anybody asks; what is masked is not among them.
    let mask = ReservationMask { reservation_released: true, ..ReservationMask::default() };
    b.nvme.mask_reservation_notifications(1, mask).unwrap();
    let kind = ReservationType::ExclusiveAccessRegistrantsOnly;
    first.reservation_acquire(1, KEYS[0], AcquireAction::Acquire, kind).unwrap();
    first.reservation_release(1, KEYS[0], ReleaseAction::Release(kind)).unwrap();
    first.reservation_release(1, KEYS[0], ReleaseAction::Clear).unwrap();
    assert_eq!(told(&b), [ReservationPreempted]);
    let none = rig("sim:nvme,size=16M").nvme.reservation_notifications();
    assert!(matches!(none, Err(Error::NotOffered { .. })));
}

#[test]
fn a_controller_without_any_says_so() {
    let rig = rig("sim:nvme,size=16M");
    let mut queue = rig.queue();
    assert!(matches!(queue.reservations(1), Err(Error::NotOffered { .. })));
    let options = Options { host_id: Some([1; 16]), ..patient() };
    let refused = wholebar_nvme::Nvme::open(open("sim:nvme,size=16M").model.clone(), options).err().unwrap();
    assert!(matches!(refused, Error::Refused { command: "Set Features", .. }), "{refused}");
}

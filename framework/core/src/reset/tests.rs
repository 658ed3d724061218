//! The protocol by hand, and with threads.

use super::*;
use std::sync::atomic::AtomicU32;

#[test]
fn a_reset_goes_through_its_phases() {
    let domain = Domain::new();
    let (mut a, mut b) = (domain.join(1), domain.join(2));
    assert!(a.open() && b.open() && domain.phase() == Phase::Running);
    domain.stop();
    assert!(!a.open() && !b.open());
    assert_eq!(domain.waiting(), [1, 2]);
    assert_eq!(a.step(false), Step::Stop);
    assert_eq!(domain.waiting(), [2]);
    assert_eq!(b.step(false), Step::Stop);
    assert!(domain.waiting().is_empty());
    domain.quiet();
    assert_eq!(a.step(false), Step::Abort);
    domain.resume();
    assert!(!a.open(), "it has to start over first");
    for gate in [&mut a, &mut b] {
        assert_eq!(gate.step(false), Step::Restart);
        gate.enter();
        assert!(gate.open());
    }
    assert_eq!((domain.epoch(), domain.phase()), (1, Phase::Running));
}

#[test]
fn who_does_not_poll_is_expelled() {
    let domain = Domain::new();
    let (mut a, mut b) = (domain.join(1), domain.join(2));
    domain.stop();
    assert_eq!(a.step(false), Step::Stop);
    assert_eq!(domain.expel(), [2]);
    assert!(domain.waiting().is_empty());
    assert!(domain.has(1) && !domain.has(2));
    domain.quiet();
    domain.resume();
    assert_eq!((a.step(false), b.step(false)), (Step::Restart, Step::Expelled));
    b.quarantined(3);
    assert_eq!((b.epoch(), domain.quarantined()), (None, 3));
    drop(b);
    domain.stop();
    assert_eq!(domain.waiting(), [1]);
}

#[test]
fn the_second_reset_may_come_before_the_first_was_seen_to_end() {
    let domain = Domain::new();
    let mut gate = domain.join(1);
    domain.stop();
    assert_eq!(gate.step(false), Step::Stop);
    domain.quiet();
    domain.resume();
    domain.stop();
    assert_eq!(domain.waiting(), [1]);
    assert_eq!(gate.step(false), Step::Stop);
    domain.quiet();
    domain.resume();
    assert_eq!(gate.step(false), Step::Restart);
    domain.stop();
    gate.enter();
    assert!(!gate.open());
}

#[test]
fn buffers_in_flight_go_home_once_the_device_cannot_write_them() {
    let domain = Domain::new();
    let (mut gate, mut late) = (domain.join(1), domain.join(2));
    assert_eq!(gate.settle(false), InFlight::Keep, "it is open");
    domain.stop();
    assert_eq!(gate.settle(true), InFlight::Keep);
    assert!(domain.take_completed());
    domain.expel();
    domain.quiet();
    assert_eq!((gate.settle(false), late.settle(false)), (InFlight::Keep, InFlight::Quarantine));
    domain.resume();
    assert_eq!(gate.settle(false), InFlight::Restart);
    gate.enter();
    for (harmless, fate) in [(true, InFlight::Free), (false, InFlight::Quarantine)] {
        let domain = Domain::new();
        let mut gate = domain.join(1);
        domain.end(End { gone: true, harmless, why: "all ones".to_owned() });
        assert_eq!(gate.settle(false), fate);
    }
}

#[test]
fn a_queue_that_closed_itself_waits_for_the_next_reset() {
    let domain = Domain::new();
    let mut gate = domain.join(1);
    gate.close();
    assert!(!gate.open());
    assert_eq!(gate.step(false), Step::Stop);
    domain.stop();
    assert_eq!(gate.step(false), Step::Stop);
    assert!(domain.waiting().is_empty());
    domain.quiet();
    domain.resume();
    assert_eq!(gate.step(false), Step::Restart);
    gate.enter();
    assert!(gate.open());
}

#[test]
fn the_first_end_stands() {
    let domain = Domain::new();
    let mut gate = domain.join(1);
    let end = End { gone: true, harmless: true, why: "all ones".to_owned() };
    domain.end(end.clone());
    domain.end(End { gone: false, ..end.clone() });
    domain.stop();
    domain.resume();
    assert_eq!(domain.phase(), Phase::Ended);
    assert!(!gate.open());
    let state = |gate: &Gate| gate.state("queue 1", Duration::from_secs(5));
    assert_eq!(state(&gate), QueueState::Resetting, "it has not been told yet");
    assert_eq!(gate.step(false), Step::Ended(end));
    assert_eq!(state(&gate), QueueState::Gone);
}

#[test]
fn an_expelled_queue_stays_expelled() {
    let domain = Domain::new();
    let mut gate = domain.join(2);
    let state = |gate: &Gate| gate.state("queue 2", Duration::from_secs(5));
    assert_eq!(state(&gate), QueueState::Running);
    domain.stop();
    domain.expel();
    assert_eq!(gate.step(false), Step::Expelled);
    domain.end(End { gone: true, harmless: true, why: "all ones".to_owned() });
    assert_eq!(gate.step(false), Step::Expelled, "its buffers were in flight while the device ran on");
    let why = "queue 2 was not polled within 5s when the device was reset".to_owned();
    assert_eq!(state(&gate), QueueState::Failed(why));
}

#[test]
fn a_queue_that_joins_during_a_reset_waits_for_its_end() {
    let domain = Domain::new();
    domain.stop();
    let mut gate = domain.join(1);
    assert!(!gate.open() && domain.waiting().is_empty());
    assert_eq!(gate.step(false), Step::Stop);
    domain.quiet();
    let mut late = domain.join(2);
    assert!(!late.open());
    assert_eq!((gate.step(false), late.step(false)), (Step::Abort, Step::Abort));
    domain.resume();
    for gate in [&mut gate, &mut late] {
        assert_eq!(gate.step(false), Step::Restart);
        gate.enter();
        assert!(gate.open());
    }
}

#[test]
fn nobody_waits_for_who_left() {
    let domain = Domain::new();
    let mut gate = domain.join(7);
    domain.stop();
    gate.leave();
    assert_eq!((domain.waiting(), domain.has(7)), (vec![], false));
}

/// Two queues write what only they may write while they run; the control plane writes it while they don't.
#[test]
fn hands_are_off_while_the_control_plane_has_its_on() {
    const RESETS: u32 = if cfg!(miri) { 8 } else { 500 };
    struct Ring(std::cell::UnsafeCell<u64>);
    // SAFETY: the test shows that accesses never overlap; Miri would tell.
    unsafe impl Sync for Ring {}
    let rings = Arc::new([Ring(0.into()), Ring(0.into())]);
    let domain = Arc::new(Domain::new());
    let done = Arc::new(AtomicU32::new(0));
    let queues: Vec<_> = (0..2)
        .map(|i| {
            let (rings, done, mut gate) = (rings.clone(), done.clone(), domain.join(i));
            std::thread::spawn(move || {
                let mut restarts = 0;
                while done.load(Ordering::Relaxed) == 0 {
                    if gate.open() {
                        // SAFETY: the gate is open, so the control plane waits for us before it touches the ring.
                        unsafe { *rings[i as usize].0.get() += 1 };
                    } else if gate.step(false) == Step::Restart {
                        restarts += 1;
                        gate.enter();
                    }
                    std::thread::yield_now();
                }
                restarts
            })
        })
        .collect();
    for _ in 0..RESETS {
        domain.stop();
        while !domain.waiting().is_empty() {
            std::thread::yield_now();
        }
        domain.quiet();
        for ring in rings.iter() {
            // SAFETY: both queues have acknowledged.
            unsafe { *ring.0.get() = 0 };
        }
        domain.resume();
    }
    done.store(1, Ordering::Relaxed);
    for queue in queues {
        assert!(queue.join().unwrap() <= RESETS);
    }
}

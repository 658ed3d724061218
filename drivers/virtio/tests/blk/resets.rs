//! What becomes of requests, and of queues, when something is reset: the device, a queue alone, or what a reset did not wait for.

use super::*;

#[test]
fn what_was_in_flight_is_aborted_by_a_reset() {
    let mut bench = bench(MOST);
    type Lie = fn(&mut State, &Host<'_>);
    let lies: [(&str, Lie); 4] = [
        ("index", |s, h| s.use_buffer(h, 0, 0, 1, 9)),
        ("identifier", |s, h| s.use_buffer(h, 0, 63, 1, 1)),
        ("length", |s, h| s.use_buffer(h, 0, 0, 514, 1)),
        ("needs a reset", |s, _| s.status |= 64),
    ];
    for (what, lie) in lies {
        let data = Data::One(bench.buf(512));
        bench.queue.submit(Request { tag: 5, nsid: 1, op: Op::Read { lba: 0 }, data, deadline: None }).unwrap();
        bench.queue.ring();
        bench.rig.run(move |state, host| lie(state, host));
        let done = bench.wait();
        assert_eq!((done.tag, done.status, done.data.len()), (5, Status::Aborted, 512), "{what}");
        let began = Instant::now();
        while bench.queue.state() != QueueState::Running {
            bench.queue.poll_each(1, |c| panic!("{c:?}"));
            assert!(began.elapsed() < LONG, "{what}");
        }
        assert!(matches!(bench.blk.events().recv_timeout(LONG), Ok(BlkEvent::Device(DeviceEvent::Reset { .. }))));
        let (_, done) = bench.go(Op::Read { lba: 1 }, Data::One(bench.buf(512)), 0);
        assert_eq!(done.status, Status::Ok, "{what}");
    }
    bench.close();
}

#[test]
fn a_request_that_is_not_answered_ends() {
    let timeout = Duration::from_millis(50);
    let mut bench = bench_with(MOST, Options { timeout, ..patient() });
    let data = Data::One(bench.buf(512));
    bench.queue.submit(Request { tag: 5, nsid: 1, op: Op::Write { lba: 0 }, data, deadline: None }).unwrap();
    bench.queue.ring();
    assert_eq!(bench.wait().status, Status::Aborted);
    let began = Instant::now();
    while bench.queue.state() != QueueState::Running {
        bench.queue.poll_each(1, |c| panic!("{c:?}"));
        assert!(began.elapsed() < LONG);
    }
    bench.close();
}

/// Two queues of one device, each with a request that the device has not answered; that of the first is late.
struct Pair {
    bench: Bench,
    other: Queue,
}

impl Pair {
    fn new() -> Self {
        let rig = rig(spec(MOST | MQ | RING_RESET));
        let config = BlkConfig { queues: 2, ..BlkConfig::default() };
        let blk = Blk::open(rig.device.clone(), &config, patient()).unwrap();
        let arena = Arena::new(1 << 20, ArenaOptions::default()).unwrap();
        blk.attach(arena.clone()).unwrap();
        let pool = Pool::new(arena.clone(), 16, 32 << 10, 512).unwrap();
        let (queue, other) = (blk.queue().unwrap(), blk.queue().unwrap());
        let mut pair = Self { bench: Bench { blk, pool, queue, rig }, other };
        let data = Data::One(pair.bench.buf(512));
        let req = Request { tag: 8, nsid: 1, op: Op::Read { lba: 0 }, data, deadline: None };
        pair.other.submit(req).unwrap();
        pair.other.ring();
        pair
    }

    /// A request that is late at once, and what becomes of it. The second queue is polled, too.
    fn late(&mut self) -> Status {
        let (data, deadline) = (Data::One(self.bench.buf(512)), Some(Instant::now()));
        self.bench.queue.submit(Request { tag: 7, nsid: 1, op: Op::Read { lba: 0 }, data, deadline }).unwrap();
        self.bench.queue.ring();
        let (began, mut done) = (Instant::now(), None);
        while done.is_none() || self.bench.queue.state() != QueueState::Running {
            self.bench.queue.check_timeouts();
            self.bench.queue.poll_each(1, |c| done = Some(c.status));
            self.other.poll_each(1, |c| assert_eq!((c.tag, c.status), (8, Status::Aborted)));
            assert!(began.elapsed() < LONG, "{done:?}");
        }
        done.unwrap()
    }
}

/// With VIRTIO_F_RING_RESET a late request is the end of those of its queue, and of no other.
#[test]
fn a_late_request_resets_its_queue_alone() {
    let mut pair = Pair::new();
    let started = pair.bench.rig.state().statuses.len();
    assert_eq!(pair.late(), Status::Aborted);
    let (_, done) = pair.bench.go(Op::Read { lba: 1 }, Data::One(pair.bench.buf(512)), 0);
    assert_eq!((done.status, pair.other.in_flight()), (Status::Ok, 1));
    drop(done);
    // It got something done since: it is reset alone once more.
    assert_eq!(pair.late(), Status::Aborted);
    {
        let state = pair.bench.rig.state();
        assert_eq!((&state.reset_alone[..], state.statuses.len()), (&[0, 0][..], started));
        assert!(state.queues[0].enabled && state.queues[0].areas.iter().all(|area| *area > 0));
    }
    // Now it did not: the device is reset, and with it the other queue.
    assert_eq!((pair.late(), pair.other.in_flight()), (Status::Aborted, 0));
    assert_eq!(pair.bench.rig.state().reset_alone.len(), 2);
    assert!(matches!(pair.bench.blk.events().recv_timeout(LONG), Ok(BlkEvent::Device(DeviceEvent::Reset { .. }))));
    let (_, done) = pair.bench.go(Op::Read { lba: 1 }, Data::One(pair.bench.buf(512)), 0);
    assert_eq!(done.status, Status::Ok);
    drop((done, pair.other));
    pair.bench.close();
}

/// A reset of a queue that does not end is followed by one of the device.
#[test]
fn a_queue_that_cannot_be_reset_takes_a_reset_of_the_device() {
    let mut pair = Pair::new();
    pair.bench.rig.state().stuck = true;
    assert_eq!((pair.late(), pair.other.in_flight()), (Status::Aborted, 0));
    assert_eq!(pair.bench.rig.state().reset_alone, [0]);
    let (_, done) = pair.bench.go(Op::Read { lba: 1 }, Data::One(pair.bench.buf(512)), 0);
    assert_eq!(done.status, Status::Ok);
    drop((done, pair.other));
    pair.bench.close();
}

/// A queue that a reset did not wait for is lost; there is another in its place at once, and the lost one is not handed out again.
#[test]
fn a_lost_queue_is_replaced() {
    let mut bench = bench_with(MOST, Options { stop_timeout: Duration::from_millis(20), ..patient() });
    let data = Data::One(bench.buf(512));
    bench.submit(5, Op::Read { lba: 0 }, data);
    assert!(matches!(bench.blk.reset(), Err(Error::Core(wholebar_core::Error::Unresponsive { .. }))));
    let lost = std::mem::replace(&mut bench.queue, bench.blk.queue().unwrap());
    assert!(matches!(bench.blk.queue(), Err(Error::NoQueue { count: 1, .. })));
    drop(lost);
    assert!(matches!(bench.blk.queue(), Err(Error::NoQueue { count: 1, .. })));
    for _ in 0..2 {
        let (_, done) = bench.go(Op::Read { lba: 1 }, Data::One(bench.buf(512)), 0);
        assert_eq!(done.status, Status::Ok);
        drop(done);
        // It is reset like any other, and given once it is dropped.
        bench.blk.request_reset();
        let began = Instant::now();
        while !matches!(bench.blk.events().try_recv(), Ok(BlkEvent::Device(DeviceEvent::Reset { lost, .. })) if lost.is_empty())
        {
            bench.queue.poll_each(1, |c| panic!("{c:?}"));
            assert!(began.elapsed() < LONG);
        }
        bench.queue.poll_each(1, |c| panic!("{c:?}"));
        assert_eq!(bench.queue.state(), QueueState::Running);
        let Bench { blk, pool, queue, rig } = bench;
        drop(queue);
        let queue = blk.queue().unwrap();
        bench = Bench { blk, pool, queue, rig };
    }
    assert_eq!((bench.blk.quarantined(), bench.pool.available()), (1, 15));
}

#[test]
fn a_request_whose_owner_is_gone_ends_too_and_is_told_to_nobody() {
    let mut bench = bench(MOST);
    let data = Data::One(bench.buf(512));
    bench.queue.submit(Request { tag: 6, nsid: 1, op: Op::Write { lba: 0 }, data, deadline: None }).unwrap();
    bench.queue.ring();
    let Bench { blk, pool, queue, rig } = bench;
    drop(queue);
    let mut queue = blk.queue().unwrap();
    assert!(blk.queue().is_err());
    rig.run(|state, host| {
        let found = find(state, host).unwrap();
        answer(state, host, &found, 0, 0);
    });
    while queue.in_flight() > 0 {
        assert_eq!(queue.poll(8, &mut |c| panic!("{c:?}")), 0);
    }
    Bench { blk, pool, queue, rig }.close();
}

//! Requests at the limits of the device and of its queues: cut in pieces, waiting for room, with indirect descriptors.

use super::*;

/// What a ring has no room for is no limit to cut requests by: with two descriptors for header and status, the smallest queue's say.
#[test]
fn requests_have_as_many_pieces_as_device_and_queues_take() {
    let open = |seg_max: u8, sizes: Vec<u16>, config: BlkConfig| {
        let mut spec = Spec { sizes, ..spec(SEG_MAX | MQ) };
        spec.config[12] = seg_max;
        let rig = rig(spec);
        Blk::open(rig.device.clone(), &config, patient()).map(|blk| (blk, rig))
    };
    let two = BlkConfig { queues: 2, ..BlkConfig::default() };
    for (seg_max, sizes, config, most) in [
        (254, vec![512], two, 254),
        (254, vec![64], two, 62),
        (254, vec![64, 16], two, 14),
        (254, vec![64, 16], BlkConfig::default(), 62),
        (254, vec![64], BlkConfig { descriptors: Some(4), ..two }, 2),
        (3, vec![64, 16], two, 3),
    ] {
        let (blk, rig) = open(seg_max, sizes.clone(), config).unwrap();
        assert_eq!(blk.disk().max_segments, most, "{seg_max} {sizes:?}");
        let sizes: Vec<_> = sizes.into_iter().map(|size| config.descriptors.unwrap_or(size.min(256))).collect();
        let enabled: Vec<_> = rig.state().queues.iter().filter(|q| q.enabled).map(|q| q.size).collect();
        assert!(enabled.iter().enumerate().all(|(i, size)| *size == sizes[i.min(sizes.len() - 1)]), "{enabled:?}");
        assert_eq!(enabled.len(), usize::from(config.queues));
    }
    let error = open(4, vec![64, 2], two).err().unwrap().to_string();
    assert!(error.contains("2 descriptors are too small"), "{error}");
    // As many pieces as it says do go at once, with all of the queue's descriptors.
    let (blk, rig) = open(254, vec![8], BlkConfig::default()).unwrap();
    let arena = Arena::new(1 << 20, ArenaOptions::default()).unwrap();
    blk.attach(arena.clone()).unwrap();
    let (pool, mut queue) = (Pool::new(arena, 16, 4096, 512).unwrap(), blk.queue().unwrap());
    let read = |pieces| {
        let data = Data::Many((0..pieces).map(|_| pool.get_len(512).unwrap()).collect());
        Request { tag: 0, nsid: 1, op: Op::Read { lba: 0 }, data, deadline: None }
    };
    queue.submit(read(6)).unwrap();
    queue.ring();
    rig.run(|state, host| assert_eq!(find(state, host).unwrap().pieces.len(), 8));
    assert_eq!(queue.submit(read(1)).unwrap_err().why, Reject::Full);
    drop((queue, blk, rig));
}

/// A request beyond the device's limits is several of the device's, and completes once.
#[test]
fn requests_are_cut_at_the_devices_limits() {
    let mut bench = bench(MOST | SIZE_MAX | BLK_SIZE);
    // Six blocks in four segments of 8192 bytes at most: one of them in each buffer but the last.
    let sizes = [4096u32, 12288, 4096, 4096];
    let data = Data::Many(sizes.iter().map(|len| bench.buf(*len)).collect());
    let wire: Vec<_> = data.bufs().iter().flat_map(|buf| buf.bytes().to_vec()).collect();
    bench.submit(1, Op::Write { lba: 100 }, data);
    let found = bench.find_all();
    let parts: Vec<_> = found.iter().map(|f| (f.kind, f.sector, f.data.len(), f.pieces.len())).collect();
    assert_eq!(parts, [(1, 800, 20480, 6), (1, 840, 4096, 3)]);
    assert_eq!(found.iter().flat_map(|f| f.data.clone()).collect::<Vec<_>>(), wire);
    // The last is done first, and what is done tells nothing while another isn't.
    let mut found = found.into_iter();
    let first = found.next().unwrap();
    found.for_each(|found| bench.answer(found, 0));
    while bench.queue.in_flight() > 1 {
        bench.queue.poll_each(9, |c| panic!("{c:?}"));
    }
    bench.answer(first, 0);
    let done = bench.wait();
    assert_eq!((done.tag, done.status, done.data.len(), bench.queue.in_flight()), (1, Status::Ok, 24576, 0));
    drop(done);

    // What is read is where it belongs.
    let data = Data::Many((0..5).map(|_| bench.buf(4096)).collect());
    bench.submit(2, Op::Read { lba: 2 }, data);
    bench.find_all().into_iter().for_each(|found| bench.answer(found, 0));
    let done = bench.wait();
    let firsts: Vec<_> = done.data.bufs().iter().map(|buf| buf.bytes()[0]).collect();
    assert_eq!((done.status, firsts), (Status::Ok, vec![16, 16, 16, 16, 48]));
    drop(done);

    // The first failure is the request's.
    let data = Data::Many((0..9).map(|_| bench.buf(4096)).collect());
    bench.submit(3, Op::Read { lba: 0 }, data);
    let statuses = [0, 2, 1];
    bench.find_all().into_iter().zip(statuses).for_each(|(found, status)| bench.answer(found, status));
    let done = bench.wait();
    assert_eq!((done.tag, done.status), (3, Status::Device(2)));
    drop(done);

    // Ranges: at most 8 and 16 blocks, the former ending where the device likes it.
    let range = |found: &Found| {
        let word = |at: usize| u32::from_le_bytes(found.data[at..at + 4].try_into().unwrap());
        (found.kind, found.sector, word(0), word(8), found.data.len())
    };
    bench.submit(4, Op::Deallocate { lba: 3, blocks: 20 }, Data::None);
    let found = bench.find_all();
    assert_eq!(
        found.iter().map(range).collect::<Vec<_>>(),
        [(11, 0, 24, 64, 16), (11, 0, 88, 64, 16), (11, 0, 152, 32, 16)]
    );
    found.into_iter().for_each(|found| bench.answer(found, 0));
    assert_eq!(bench.wait().status, Status::Ok);
    bench.submit(5, Op::WriteZeroes { lba: 0, blocks: 17 }, Data::None);
    let found = bench.find_all();
    assert_eq!(found.iter().map(range).collect::<Vec<_>>(), [(13, 0, 0, 128, 16), (13, 0, 128, 8, 16)]);
    found.into_iter().for_each(|found| bench.answer(found, 0));
    assert_eq!(bench.wait().status, Status::Ok);
    let limits = wholebar_core::block::Disk::namespaces(&bench.blk)[0];
    assert_eq!((limits.max_command, limits.max_transfer), (32 << 10, u32::MAX - 4095));
    assert_eq!((limits.max_deallocate, limits.max_write_zeroes), (u32::MAX, u32::MAX));
    bench.close();
}

/// A device of `descriptors` that takes two segments of 512 bytes at once: eight buffers of one block are four requests of four descriptors.
fn small(descriptors: u16) -> Bench {
    let mut spec = Spec { sizes: vec![descriptors], ..spec(SEG_MAX) };
    spec.config[12] = 2;
    let rig = rig(spec);
    let blk = Blk::open(rig.device.clone(), &BlkConfig::default(), patient()).unwrap();
    let arena = Arena::new(1 << 20, ArenaOptions::default()).unwrap();
    blk.attach(arena.clone()).unwrap();
    let pool = Pool::new(arena.clone(), 16, 32 << 10, 512).unwrap();
    let queue = blk.queue().unwrap();
    Bench { blk, pool, queue, rig }
}

/// Parts for which there is no room wait; requests that come later wait behind them.
#[test]
fn a_request_of_more_descriptors_than_the_queue_has_completes() {
    let mut bench = small(8);
    let blocks = |bench: &Bench| Data::Many((0..8).map(|_| bench.buf(512)).collect());
    let data = blocks(&bench);
    bench.submit(1, Op::Read { lba: 10 }, data);
    let mut sectors = Vec::new();
    let mut found = bench.find_all();
    assert_eq!(found.len(), 2, "there is room for two");
    let req = Request { tag: 2, nsid: 1, op: Op::Read { lba: 0 }, data: Data::One(bench.buf(512)), deadline: None };
    let rejected = bench.queue.submit(req).unwrap_err();
    assert_eq!(rejected.why, Reject::Full);
    let done = loop {
        for found in found {
            sectors.push(found.sector);
            bench.answer(found, 0);
        }
        let mut done = None;
        bench.queue.poll_each(9, |c| done = Some(c));
        match done {
            Some(done) => break done,
            None => found = bench.find_all(),
        }
    };
    assert_eq!((done.tag, done.status, sectors), (1, Status::Ok, vec![10, 12, 14, 16]));
    let firsts: Vec<_> = done.data.bufs().iter().map(|buf| buf.bytes()[0]).collect();
    assert_eq!(firsts, [10, 10, 12, 12, 14, 14, 16, 16]);
    drop(done);
    // A part that fails: what waits is not posted.
    let data = blocks(&bench);
    bench.submit(3, Op::Read { lba: 0 }, data);
    for (found, status) in bench.find_all().into_iter().zip([1, 0]) {
        bench.answer(found, status);
    }
    let done = bench.wait();
    assert_eq!((done.tag, done.status), (3, Status::Device(1)));
    assert!(bench.find_all().is_empty() && bench.queue.in_flight() == 0);
    drop(done);
    // A reset ends all of it, once.
    let data = blocks(&bench);
    bench.submit(4, Op::Read { lba: 0 }, data);
    bench.rig.run(|state, _| state.status |= 64);
    let done = bench.wait();
    assert_eq!((done.tag, done.status, done.data.len(), bench.queue.in_flight()), (4, Status::Aborted, 4096, 0));
    drop(done);
    while bench.queue.state() != QueueState::Running {
        bench.queue.poll_each(1, |c| panic!("{c:?}"));
    }
    bench.queue.submit(rejected.req).unwrap();
    bench.queue.ring();
    bench.find_all().into_iter().for_each(|found| bench.answer(found, 0));
    assert_eq!(bench.wait().tag, 2);
    // Of a queue that is dropped no more is posted, and its buffers come home.
    let data = blocks(&bench);
    bench.submit(5, Op::Read { lba: 0 }, data);
    let found = bench.find_all();
    let Bench { blk, pool, queue, rig } = bench;
    drop(queue);
    let queue = blk.queue().unwrap();
    let mut bench = Bench { blk, pool, queue, rig };
    found.into_iter().for_each(|found| bench.answer(found, 0));
    while bench.queue.in_flight() > 0 {
        bench.queue.poll_each(9, |c| panic!("{c:?}"));
    }
    assert!(bench.find_all().is_empty());
    bench.close();
}

/// With indirect descriptors a request takes one descriptor of the queue, so that as many requests are in flight as it has.
#[test]
fn indirect_descriptors_leave_room_for_more_requests() {
    let mut bench = bench(MOST | INDIRECT);
    let in_flight = |bench: &mut Bench| {
        while bench.queue.submit(Request { tag: 0, nsid: 1, op: Op::Flush, data: Data::None, deadline: None }).is_ok() {
        }
        bench.queue.ring();
        bench.queue.in_flight()
    };
    assert_eq!(in_flight(&mut bench), 64);
    bench.find_all().into_iter().for_each(|found| bench.answer(found, 0));
    while bench.queue.in_flight() > 0 {
        bench.queue.poll_each(9, |c| assert_eq!(c.status, Status::Ok));
    }
    let (found, done) = bench.go(Op::Read { lba: 7 }, Data::One(bench.buf(1024)), 0);
    assert_eq!((found.kind, found.sector, &found.room[..]), (0, 7, &[1024][..]));
    assert_eq!((done.status, done.data.bufs()[0].bytes()), (Status::Ok, &[0xd5; 1024][..]));
    drop(done);
    bench.close();
    let mut bench = bench_with(MOST | INDIRECT, Options { indirect: false, ..patient() });
    assert_eq!((in_flight(&mut bench), bench.blk.features() & INDIRECT), (32, 0));
    bench.find_all().into_iter().for_each(|found| bench.answer(found, 0));
    while bench.queue.in_flight() > 0 {
        bench.queue.poll_each(9, |_| ());
    }
    bench.close();
}

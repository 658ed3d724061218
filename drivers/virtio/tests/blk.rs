//! The block driver on a device that is told what to do: by the rules, and against them.

mod device;

use device::{LONG, Piece, Rig, Spec, State, VERSION_1, patient, read, rig};
use std::time::{Duration, Instant};
use wholebar_core::block::{BlockQueue, Completion, Data, Op, QueueState, Reject, Request, Status};
use wholebar_core::control_plane::DeviceEvent;
use wholebar_core::mem::{Arena, ArenaOptions, Buf, Iova, Pool};
use wholebar_core::model::Host;
use wholebar_virtio::blk::{BlkConfig, BlkEvent, Queue, Resized, Topology};
use wholebar_virtio::{Blk, Error, Options};

const INDIRECT: u64 = 1 << 28;
const RING_RESET: u64 = 1 << 40;
const SIZE_MAX: u64 = 1 << 1;
const SEG_MAX: u64 = 1 << 2;
const RO: u64 = 1 << 5;
const BLK_SIZE: u64 = 1 << 6;
const FLUSH: u64 = 1 << 9;
const TOPOLOGY: u64 = 1 << 10;
const MQ: u64 = 1 << 12;
const DISCARD: u64 = 1 << 13;
const WRITE_ZEROES: u64 = 1 << 14;
const MOST: u64 = SEG_MAX | FLUSH | DISCARD | WRITE_ZEROES;

/// A disk of 1,000 sectors, in pieces of 8192 bytes and at most 4 of them.
fn spec(features: u64) -> Spec {
    let mut config = vec![0; 60];
    let mut put = |at: usize, value: u32| config[at..at + 4].copy_from_slice(&value.to_le_bytes());
    for (at, value) in [(0, 1000), (8, 8192), (12, 4), (20, 4096), (24, 0x0010_0103), (28, 256), (34, 2)] {
        put(at, value);
    }
    for (at, value) in [(36, 64), (40, 1), (44, 8), (48, 128), (52, 1)] {
        put(at, value);
    }
    Spec { id: 0x1042, features: VERSION_1 | features, config, queues: 2, ..Spec::default() }
}

struct Bench {
    blk: Blk,
    pool: Pool,
    queue: Queue,
    rig: Rig,
}

fn bench_with(features: u64, options: Options) -> Bench {
    let rig = rig(spec(features));
    let blk = Blk::open(rig.device.clone(), &BlkConfig::default(), options).unwrap();
    let arena = Arena::new(1 << 20, ArenaOptions::default()).unwrap();
    blk.attach(arena.clone()).unwrap();
    let pool = Pool::new(arena, 16, 32 << 10, 512).unwrap();
    let queue = blk.queue().unwrap();
    Bench { blk, pool, queue, rig }
}

fn bench(features: u64) -> Bench {
    bench_with(features, patient())
}

/// What the device finds of a request.
#[derive(Debug, PartialEq)]
struct Found {
    id: u16,
    kind: u32,
    sector: u64,
    /// Whatever is read behind the header.
    data: Vec<u8>,
    /// Lengths of what can be written before the status.
    room: Vec<u32>,
    pieces: Vec<Piece>,
}

fn find(state: &mut State, host: &Host<'_>) -> Option<Found> {
    let (id, pieces) = state.find(host, 0)?;
    let bytes = read(host, &pieces);
    let (kind, sector) = bytes[..16].split_at(8);
    assert_eq!(kind[4..], [0; 4], "reserved");
    let room: Vec<_> = pieces.iter().filter(|p| p.2).map(|p| p.1).collect();
    assert_eq!(room.last(), Some(&1), "a status byte");
    Some(Found {
        id,
        kind: u32::from_le_bytes(kind[..4].try_into().unwrap()),
        sector: u64::from_le_bytes(sector.try_into().unwrap()),
        data: bytes[16..].to_vec(),
        room: room[..room.len() - 1].to_vec(),
        pieces,
    })
}

fn answer(state: &mut State, host: &Host<'_>, found: &Found, status: u8, fill: u8) {
    let mut len = 1;
    for (address, room, _) in found.pieces.iter().filter(|p| p.2) {
        let bytes = vec![if *room == 1 { status } else { fill }; *room as usize];
        assert!(host.dma(Iova(*address), (*room).into()).unwrap().write(0, &bytes));
        len += if *room == 1 { 0 } else { *room };
    }
    state.use_buffer(host, 0, found.id.into(), len, 1);
}

impl Bench {
    fn buf(&self, len: u32) -> Buf {
        let mut buf = self.pool.get_len(len).unwrap();
        buf.bytes_mut().iter_mut().enumerate().for_each(|(i, byte)| *byte = i as u8);
        buf
    }

    fn wait(&mut self) -> Completion {
        let (began, mut done) = (Instant::now(), None);
        while done.is_none() {
            self.queue.poll_each(1, |c| done = Some(c));
            assert!(began.elapsed() < LONG, "{:?}", self.queue.state());
            std::thread::yield_now();
        }
        done.unwrap()
    }

    /// Submits a request and has the device answer it.
    fn go(&mut self, op: Op, data: Data, status: u8) -> (Found, Completion) {
        self.queue.submit(Request { tag: 9, nsid: 1, op, data, deadline: None }).unwrap();
        self.queue.ring();
        let found = self.rig.run(move |state, host| {
            let found = find(state, host).expect("a request");
            answer(state, host, &found, status, 0xd5);
            found
        });
        let completion = self.wait();
        assert_eq!(completion.tag, 9);
        (found, completion)
    }

    fn refused(&mut self, op: Op, data: Data) -> &'static str {
        match self.queue.submit(Request { tag: 0, nsid: 1, op, data, deadline: None }).map_err(|r| r.why) {
            Err(Reject::Invalid(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    fn close(self) {
        let Bench { blk, pool, queue, rig } = self;
        drop(queue);
        blk.shutdown().unwrap();
        assert_eq!(pool.available(), 16, "a buffer is missing");
        assert_eq!(rig.state().status, 0);
    }
}

#[test]
fn requests_are_as_the_standard_has_them() {
    let mut bench = bench(MOST);
    let (found, done) = bench.go(Op::Read { lba: 7 }, Data::One(bench.buf(1024)), 0);
    assert_eq!((found.kind, found.sector, &found.data[..], &found.room[..]), (0, 7, &[][..], &[1024][..]));
    assert_eq!((done.status, done.data.bufs()[0].bytes()), (Status::Ok, &[0xd5; 1024][..]));
    drop(done);

    let data = Data::Many(Box::new([bench.buf(512), bench.buf(512), bench.buf(0), bench.buf(1024)]));
    let wire: Vec<_> = data.bufs().iter().flat_map(|buf| buf.bytes().to_vec()).collect();
    let (found, done) = bench.go(Op::Write { lba: 990 }, data, 0);
    assert_eq!((found.kind, found.sector, found.data, found.room.len()), (1, 990, wire, 0));
    assert_eq!((done.status, done.data.bufs().len()), (Status::Ok, 4));
    drop(done);

    let (found, _) = bench.go(Op::Flush, Data::None, 0);
    assert_eq!((found.kind, found.sector, found.data.len(), found.room.len()), (4, 0, 0, 0));
    let range = |kind, found: &Found| {
        let data = [&5u64.to_le_bytes()[..], &60u32.to_le_bytes(), &[0; 4]].concat();
        assert_eq!((found.kind, found.sector, &found.data), (kind, 0, &data));
    };
    range(11, &bench.go(Op::Deallocate { lba: 5, blocks: 60 }, Data::None, 0).0);
    range(13, &bench.go(Op::WriteZeroes { lba: 5, blocks: 60 }, Data::None, 0).0);
    for status in [1, 2, 77] {
        let (_, done) = bench.go(Op::Read { lba: 0 }, Data::One(bench.buf(512)), status);
        assert_eq!(done.status, Status::Device(status.into()));
    }
    bench.close();
}

#[test]
fn blocks_and_pieces_are_the_devices() {
    let mut bench = bench(MOST | SIZE_MAX | BLK_SIZE | TOPOLOGY | MQ);
    let disk = *bench.blk.disk();
    assert_eq!((disk.blocks, disk.block_size, disk.queues), (125, 4096, 2));
    assert_eq!((disk.max_segments, disk.max_segment, disk.max_deallocate, disk.max_write_zeroes), (4, 8192, 8, 16));
    let topology = Topology { physical_block: 4096 << 3, aligned_at: 1, min_io: 16, best_io: 256 };
    assert_eq!((disk.topology, disk.deallocate_alignment), (Some(topology), 1));
    let (found, _) = bench.go(Op::Read { lba: 7 }, Data::One(bench.buf(20 << 10)), 0);
    assert_eq!((found.sector, &found.room[..]), (56, &[8192, 8192, 4096][..]));
    let (found, _) = bench.go(Op::WriteZeroes { lba: 1, blocks: 16 }, Data::None, 0);
    assert_eq!(found.data, [&8u64.to_le_bytes()[..], &128u32.to_le_bytes(), &[0; 4]].concat());
    // A block in five pieces, of which the device takes four.
    let many = Data::Many((0..8).map(|_| bench.buf(512)).collect());
    for (op, data, why) in [
        (Op::Read { lba: 0 }, many, "in more pieces"),
        (Op::Read { lba: 0 }, Data::One(bench.buf(512)), "no multiple"),
        (Op::Read { lba: 125 }, Data::One(bench.buf(4096)), "past the device's end"),
        (Op::Read { lba: u64::MAX }, Data::One(bench.buf(4096)), "past the device's end"),
        (Op::Write { lba: 0 }, Data::None, "no data"),
        (Op::Flush, Data::One(bench.buf(4096)), "takes no data"),
        (Op::Deallocate { lba: 120, blocks: 6 }, Data::None, "past the device's end"),
        (Op::WriteZeroes { lba: 0, blocks: 0 }, Data::None, "no blocks"),
        (Op::Compare { lba: 0 }, Data::One(bench.buf(4096)), "no Compare"),
        (Op::Verify { lba: 0, blocks: 1 }, Data::None, "no Verify"),
    ] {
        assert!(bench.refused(op, data).contains(why), "{op:?}");
    }
    let elsewhere = Pool::new(Arena::new(8192, ArenaOptions::default()).unwrap(), 1, 4096, 512).unwrap();
    let foreign = Data::One(elsewhere.get_len(4096).unwrap());
    assert!(bench.refused(Op::Read { lba: 0 }, foreign).contains("attach"));
    let req = Request { tag: 0, nsid: 2, op: Op::Flush, data: Data::None, deadline: None };
    assert!(matches!(bench.queue.submit(req).unwrap_err().why, Reject::Invalid(_)));
    bench.close();
}

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

impl Bench {
    /// Has the device find all requests that are available.
    fn find_all(&self) -> Vec<Found> {
        self.rig.run(|state, host| std::iter::from_fn(|| find(state, host)).collect())
    }

    fn answer(&self, found: Found, status: u8) {
        self.rig.run(move |state, host| answer(state, host, &found, status, found.sector as u8));
    }

    fn submit(&mut self, tag: u64, op: Op, data: Data) {
        self.queue.submit(Request { tag, nsid: 1, op, data, deadline: None }).unwrap();
        self.queue.ring();
    }
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

#[test]
fn what_the_device_lacks_is_refused() {
    let mut bench = bench(RO | SEG_MAX);
    assert!(bench.blk.disk().read_only && !bench.blk.disk().flush);
    for (op, data, why) in [
        (Op::Write { lba: 0 }, Data::One(bench.buf(512)), "read-only"),
        (Op::WriteZeroes { lba: 0, blocks: 1 }, Data::None, "read-only"),
        (Op::Flush, Data::None, "durable"),
    ] {
        assert!(bench.refused(op, data).contains(why), "{op:?}");
    }
    bench.close();
    let open = |spec, config| Blk::open(rig(spec).device.clone(), &config, patient()).map(drop);
    assert!(matches!(open(Spec { id: 0x1041, ..spec(0) }, BlkConfig::default()), Err(Error::Unfit { .. })));
    let none = BlkConfig { queues: 0, ..BlkConfig::default() };
    assert!(matches!(open(spec(0), none), Err(Error::Unavailable { .. })));
    let mut odd = spec(BLK_SIZE);
    odd.config[20] = 3;
    assert!(matches!(open(odd, BlkConfig::default()), Err(Error::Nonsense { .. })));
}

#[test]
fn a_full_queue_gives_requests_back() {
    let mut bench = bench(MOST);
    // 64 descriptors, three a request.
    let mut taken = 0;
    let rejected = loop {
        let req = Request { tag: taken, nsid: 1, op: Op::Flush, data: Data::None, deadline: None };
        match bench.queue.submit(req) {
            Ok(()) => taken += 1,
            Err(rejected) => break rejected,
        }
    };
    assert_eq!((taken, rejected.why, rejected.req.tag, bench.queue.in_flight()), (32, Reject::Full, 32, 32));
    bench.rig.run(|state, host| assert!(find(state, host).is_none(), "nothing was announced"));
    let before = bench.queue.doorbells();
    bench.queue.ring();
    bench.queue.ring();
    assert_eq!(bench.queue.doorbells().trapped, before.trapped + 1);
    // Out of order, and polled by parts.
    bench.rig.run(|state, host| {
        let mut all: Vec<_> = std::iter::from_fn(|| find(state, host)).collect();
        all.reverse();
        all.iter().for_each(|found| answer(state, host, found, 0, 0));
    });
    let mut tags = Vec::new();
    while tags.len() < 32 {
        assert!(bench.queue.poll_each(5, |c| tags.push(c.tag)) <= 5);
    }
    assert!(tags.into_iter().rev().eq(0..32));
    bench.close();
}

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

#[test]
fn a_disk_that_grows_says_so() {
    let bench = bench(MOST);
    bench.rig.state().spec.config[0..2].copy_from_slice(&2000u16.to_le_bytes());
    let event = bench.blk.events().recv_timeout(LONG).unwrap();
    assert_eq!(event, BlkEvent::Driver(Resized { blocks: 2000 }));
    bench.close();
}

/// A callback that panics is the caller's affair: the queue goes on, and each buffer is accounted for, in a poll and in what follows a reset.
/// How requests end while callbacks panic.
struct Way {
    options: Options,
    /// Has them end, besides polling.
    provoke: fn(&Bench),
    status: Status,
    then: fn(&QueueState) -> bool,
    quarantined: u64,
}

/// The `at`th of six completions finds a callback that panics; the queue is right at once, and goes on or refuses.
fn panics_at(at: usize, way: &Way) {
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
    const EACH: usize = 6;
    let mut bench = bench_with(MOST, way.options.clone());
    for tag in 0..EACH as u64 {
        let data = Data::One(bench.buf(512));
        bench.queue.submit(Request { tag, nsid: 1, op: Op::Read { lba: 0 }, data, deadline: None }).unwrap();
    }
    bench.queue.ring();
    (way.provoke)(&bench);
    let (began, mut done, mut panics) = (Instant::now(), Vec::new(), 0);
    while bench.queue.in_flight() > 0 || !(way.then)(&bench.queue.state()) {
        let polled = catch_unwind(AssertUnwindSafe(|| {
            bench.queue.poll_each(usize::MAX, |completion| {
                done.push((completion.tag, completion.status));
                if done.len() == at {
                    resume_unwind(Box::new("a callback that panics"));
                }
            })
        }));
        if polled.is_err() {
            panics += 1;
            assert_eq!(bench.queue.in_flight(), EACH - at);
        }
        assert!(began.elapsed() < LONG, "{done:?}, {:?}", bench.queue.state());
        std::thread::yield_now();
    }
    done.sort_by_key(|(tag, _)| *tag);
    assert!(panics == 1 && done.into_iter().eq((0..EACH as u64).map(|tag| (tag, way.status))));
    let quarantined = bench.blk.quarantined();
    assert_eq!((quarantined, u64::from(bench.pool.available())), (way.quarantined, 16 - quarantined));
    if way.options.timeout < LONG {
        // On a busy machine the next one may be late, too.
        bench.close();
    } else if bench.queue.state() == QueueState::Running {
        let (_, again) = bench.go(Op::Read { lba: 1 }, Data::One(bench.buf(512)), 0);
        assert_eq!(again.status, Status::Ok);
        drop(again);
        bench.close();
    } else {
        let flush = Request { tag: 9, nsid: 1, op: Op::Flush, data: Data::None, deadline: None };
        assert_eq!(bench.queue.submit(flush).unwrap_err().why, Reject::Gone);
    }
}

#[test]
fn a_callback_that_panics_leaves_the_queue_whole() {
    let running = |state: &QueueState| *state == QueueState::Running;
    let ways = [
        Way {
            options: patient(),
            provoke: |bench| {
                bench.rig.run(|state, host| {
                    while let Some(found) = find(state, host) {
                        answer(state, host, &found, 0, 1);
                    }
                });
            },
            status: Status::Ok,
            then: running,
            quarantined: 0,
        },
        // It needs a reset.
        Way {
            options: patient(),
            provoke: |bench| bench.rig.run(|state, _| state.status |= 64),
            status: Status::Aborted,
            then: running,
            quarantined: 0,
        },
        // It is gone, as far as its registers tell; whether it can write is not known.
        Way {
            options: patient(),
            provoke: |bench| bench.rig.run(|state, _| state.status = 0xff),
            status: Status::Gone,
            then: |state| *state == QueueState::Gone,
            quarantined: 6,
        },
        // It is reset while nobody polls the queue.
        Way {
            options: Options { stop_timeout: Duration::from_millis(20), ..patient() },
            provoke: |bench| {
                assert!(matches!(bench.blk.reset(), Err(Error::Core(wholebar_core::Error::Unresponsive { .. }))))
            },
            status: Status::Aborted,
            then: |state| matches!(state, QueueState::Failed(why) if why.contains("not polled")),
            quarantined: 6,
        },
    ];
    for way in ways {
        for at in [1, 4, 6] {
            panics_at(at, &way);
        }
    }
}

/// There is no abort in virtio: a request that is late is ended by a reset.
#[test]
fn a_callback_that_panics_after_a_timeout_leaves_the_queue_whole() {
    let options = Options { timeout: Duration::from_millis(50), ..patient() };
    for at in [1, 4, 6] {
        let then = |state: &QueueState| *state == QueueState::Running;
        panics_at(
            at,
            &Way { options: options.clone(), provoke: |_| (), status: Status::Aborted, then, quarantined: 0 },
        );
    }
}

//! The block driver on a device that is told what to do: by the rules, and against them.

#[path = "../device/mod.rs"]
mod device;
mod limits;
mod panics;
mod resets;

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
fn a_disk_that_grows_says_so() {
    let bench = bench(MOST);
    bench.rig.state().spec.config[0..2].copy_from_slice(&2000u16.to_le_bytes());
    let event = bench.blk.events().recv_timeout(LONG).unwrap();
    assert_eq!(event, BlkEvent::Driver(Resized { blocks: 2000 }));
    bench.close();
}

//! A disk in memory that does what each test needs: it completes the last request first, aborts, fails, hangs, loses queues.

use super::*;
use std::sync::Mutex;
use wholebar_core::DriverError;
use wholebar_core::block::{Completion, Event};

const BLOCK: u32 = 512;
const BLOCKS: u64 = 64;

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    /// So many requests are aborted next, and submits refused for a reset.
    aborts: u32,
    resetting: u32,
    /// Requests that begin in these blocks fail.
    bad: Vec<u64>,
    /// Nothing completes.
    stuck: bool,
    gone: bool,
    /// Queues made before so many were made are lost.
    lost: u32,
    queues: u32,
    /// No further queue is to be had.
    last: bool,
    submitted: u32,
    flushes: u32,
    most: usize,
}

#[derive(Clone)]
struct Ram {
    state: Arc<Mutex<State>>,
    namespace: Namespace,
    depth: usize,
}

struct RamQueue {
    ram: Ram,
    number: u32,
    posted: Vec<Request>,
    rung: usize,
}

impl Ram {
    fn new() -> Self {
        let namespace = Namespace {
            nsid: 3,
            blocks: BLOCKS,
            block_size: BLOCK,
            read_only: false,
            max_transfer: 4 * BLOCK,
            max_command: 4 * BLOCK,
            flush: true,
            compare: false,
            max_write_zeroes: 0,
            max_deallocate: 0,
            max_verify: 0,
        };
        let state = State { bytes: (0..BLOCKS * 512).map(|i| (i / 7) as u8).collect(), ..State::default() };
        Self { state: Arc::new(Mutex::new(state)), namespace, depth: 8 }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn open(&self, config: &Config) -> Disk {
        Disk::open(Arc::new(self.clone()) as Arc<dyn block::Disk>, config).unwrap()
    }
}

/// Small buffers, and what is late is late at once.
fn config() -> Config {
    Config { unaligned: true, buffers: 3, buffer_size: 1024, timeout: Duration::from_millis(20), ..Config::default() }
}

/// The same for who is in no hurry.
fn patient() -> Config {
    Config { timeout: Duration::from_secs(600), ..config() }
}

fn kind_and_error(error: io::Error) -> (io::ErrorKind, Error) {
    (error.kind(), error.downcast().unwrap())
}

fn count_down(count: &mut u32) -> bool {
    let some = *count > 0;
    *count = count.saturating_sub(1);
    some
}

impl block::Disk for Ram {
    fn driver(&self) -> &'static str {
        "ram"
    }

    fn name(&self) -> &str {
        "ram0"
    }

    fn namespaces(&self) -> Vec<Namespace> {
        vec![self.namespace]
    }

    fn queues(&self) -> u16 {
        1
    }

    fn attach(&self, _: Arc<Arena>) -> Result<(), DriverError> {
        Ok(())
    }

    fn detach(&self, _: &Arena) -> Result<(), DriverError> {
        Ok(())
    }

    fn queue(&self) -> Result<Box<dyn BlockQueue>, DriverError> {
        let mut state = self.state();
        if state.last && state.queues > 0 {
            return Err(DriverError::new(io::Error::other("ram0 has no queue left")));
        }
        state.queues += 1;
        Ok(Box::new(RamQueue { ram: self.clone(), number: state.queues, posted: Vec::new(), rung: 0 }))
    }

    fn event(&self) -> Option<Event> {
        None
    }

    fn reset(&self) -> Result<(), DriverError> {
        Ok(())
    }
}

impl BlockQueue for RamQueue {
    fn submit(&mut self, req: Request) -> Result<(), Rejected> {
        let closed = self.state() != QueueState::Running;
        let mut state = self.ram.state();
        let why = if closed {
            Reject::Gone
        } else if req.nsid != self.ram.namespace.nsid {
            Reject::Invalid("no such namespace")
        } else if count_down(&mut state.resetting) {
            Reject::Resetting
        } else if self.posted.len() == self.ram.depth {
            Reject::Full
        } else {
            state.submitted += 1;
            self.posted.push(req);
            state.most = state.most.max(self.posted.len());
            return Ok(());
        };
        Err(Rejected { req, why })
    }

    fn ring(&mut self) {
        self.rung = self.posted.len();
    }

    fn poll(&mut self, max: usize, done: &mut dyn FnMut(Completion)) -> usize {
        if self.ram.state().stuck {
            return 0;
        }
        let count = self.rung.min(max);
        for _ in 0..count {
            // What was posted last is done first.
            let Request { tag, op, mut data, .. } = self.posted.remove(self.rung - 1);
            self.rung -= 1;
            let mut state = self.ram.state();
            let lba = match op {
                Op::Read { lba } | Op::Write { lba } => lba,
                _ => 0,
            };
            let status = if state.gone {
                Status::Gone
            } else if count_down(&mut state.aborts) {
                Status::Aborted
            } else if state.bad.contains(&lba) {
                Status::Device(lba as u16)
            } else {
                let at = lba as usize * BLOCK as usize;
                match (&mut data, op) {
                    (Data::One(buf), Op::Read { .. }) => drop(buf.copy_from(&state.bytes[at..at + buf.len() as usize])),
                    (Data::One(buf), _) => drop(buf.copy_to(&mut state.bytes[at..at + buf.len() as usize])),
                    _ => state.flushes += 1,
                }
                Status::Ok
            };
            drop(state);
            done(Completion { tag, status, data });
        }
        count
    }

    fn state(&self) -> QueueState {
        let state = self.ram.state();
        match state.gone {
            true => QueueState::Gone,
            false if self.number <= state.lost => QueueState::Failed("nobody polled it".to_owned()),
            false => QueueState::Running,
        }
    }

    fn in_flight(&self) -> usize {
        self.posted.len()
    }
}

/// Accesses at random places, in sizes from nothing to more than all buffers hold, are those of a file; whatever is aborted, refused and out of order.
#[test]
fn any_access_is_as_of_a_file() {
    for (depth, buffer_size, max_transfer) in [(8, 1024, u32::MAX), (2, 1024, 512), (1, 700, u32::MAX), (8, 4096, 2048)]
    {
        let mut ram = Ram::new();
        (ram.depth, ram.namespace.max_transfer) = (depth, max_transfer);
        let mut file = ram.state().bytes.clone();
        let mut disk = ram.open(&Config { buffer_size, ..patient() });
        let mut random = fastrand::Rng::with_seed(7);
        for round in 0..400 {
            if round % 5 == 0 {
                let mut state = ram.state();
                (state.aborts, state.resetting) = (random.u32(0..6), random.u32(0..3));
            }
            let (offset, len) = (random.usize(0..file.len() + 600), random.usize(0..6000));
            let there = file.len().saturating_sub(offset).min(len);
            let mut bytes = vec![0; len];
            if random.bool() {
                random.fill(&mut bytes);
                assert_eq!(disk.write_at(&bytes, offset as u64).unwrap(), there);
                if there > 0 {
                    file[offset..offset + there].copy_from_slice(&bytes[..there]);
                }
            } else {
                assert_eq!(disk.read_at(&mut bytes, offset as u64).unwrap(), there);
                assert!(there == 0 || bytes[..there] == file[offset..offset + there]);
                assert!(bytes[there..].iter().all(|byte| *byte == 0), "beyond what was read");
            }
            assert_eq!((disk.in_flight, disk.pool.available()), (0, 3));
        }
        assert!(ram.state().bytes == file);
        assert_eq!(ram.state().most, depth.min(3));
    }
}

#[test]
fn a_namespace_ends_as_a_file_does() {
    let ram = Ram::new();
    let mut disk = ram.open(&patient());
    let size = disk.size();
    assert_eq!((size, disk.block_size(), disk.namespace().nsid), (BLOCKS * 512, 512, 3));
    let mut bytes = [1; 100];
    for offset in [size, size + 1, u64::MAX - 99, u64::MAX] {
        assert_eq!(disk.read_at(&mut bytes, offset).unwrap(), 0);
        assert_eq!(disk.write_at(&bytes, offset).unwrap(), 0);
    }
    assert_eq!(disk.read_exact_at(&mut bytes, size - 99).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(disk.write_all_at(&bytes, size - 99).unwrap_err().kind(), io::ErrorKind::WriteZero);
    disk.read_exact_at(&mut bytes, size - 100).unwrap();
    disk.write_all_at(&bytes, size - 100).unwrap();
    let before = ram.state().submitted;
    assert_eq!((disk.read_at(&mut [], 5).unwrap(), disk.write_at(&[], 5).unwrap()), (0, 0));
    assert_eq!(ram.state().submitted, before, "nothing to do");

    assert_eq!(disk.seek(SeekFrom::End(-3)).unwrap(), size - 3);
    assert_eq!(disk.write(&bytes).unwrap(), 3);
    assert_eq!((disk.stream_position().unwrap(), disk.read(&mut bytes).unwrap()), (size, 0));
    assert_eq!(disk.write_all(&bytes).unwrap_err().kind(), io::ErrorKind::WriteZero);
    assert_eq!(disk.seek(SeekFrom::Current(-4)).unwrap(), size - 4);
    assert_eq!(disk.read(&mut bytes).unwrap(), 4);
    assert_eq!(disk.seek(SeekFrom::Start(u64::MAX)).unwrap(), u64::MAX);
    for wrong in [SeekFrom::Current(1), SeekFrom::End(-(size as i64) - 1)] {
        assert_eq!(disk.seek(wrong).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
    assert_eq!((disk.stream_position().unwrap(), disk.read(&mut bytes).unwrap()), (u64::MAX, 0));
}

#[test]
fn a_namespace_of_any_size_has_one() {
    let mut ram = Ram::new();
    ram.namespace.blocks = u64::MAX;
    let mut disk = ram.open(&patient());
    assert_eq!(disk.size(), u64::MAX - 511);
    assert_eq!(disk.seek(SeekFrom::End(0)).unwrap(), u64::MAX - 511);
    assert_eq!(disk.read(&mut [0; 512]).unwrap(), 0);
}

#[test]
fn whole_blocks_are_all_that_is_taken_unless_more_is_asked_for() {
    let ram = Ram::new();
    let mut disk = ram.open(&Config { unaligned: false, ..patient() });
    for (offset, len) in [(1, 512), (512, 100), (0, 1), (u64::MAX, 512)] {
        let (kind, error) = kind_and_error(disk.read_at(&mut vec![0; len], offset).unwrap_err());
        assert!(matches!(error, Error::Unaligned { block_size: 512, .. }), "{error}");
        assert_eq!(kind, io::ErrorKind::InvalidInput);
        assert!(disk.write_at(&vec![0; len], offset).is_err());
    }
    assert_eq!(ram.state().submitted, 0);
    disk.write_all_at(&[9; 5120], 512).unwrap();
    let mut bytes = [0; 6144];
    disk.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes[512..5632].iter().all(|byte| *byte == 9) && bytes[5632] == ram.state().bytes[5632]);
    // Ten blocks and twelve, in pieces of two.
    assert_eq!(ram.state().submitted, 5 + 6, "no block is read to be written");
}

#[test]
fn the_lowest_block_that_failed_is_told_once_all_has_ended() {
    let ram = Ram::new();
    let mut disk = ram.open(&patient());
    ram.state().bad = vec![2, 4];
    let (kind, error) = kind_and_error(disk.read_at(&mut [0; 8192], 0).unwrap_err());
    assert_eq!(error.to_string(), "ram0: read of 2 blocks from block 2 on of namespace 3 failed: status 0x2");
    assert!(matches!(error, Error::Failed { code: 2, access: Access { lba: 2, blocks: 2, .. }, .. }));
    assert_eq!((kind, disk.in_flight, disk.pool.available()), (io::ErrorKind::Other, 0, 3));
    // Of a write in part, the block is read first.
    let (_, error) = kind_and_error(disk.write_at(&[0; 10], 4 * 512 + 3).unwrap_err());
    assert_eq!(error.to_string(), "ram0: read of block 4 of namespace 3 failed: status 0x4");
    ram.state().bad.clear();
    disk.write_all_at(&[0; 10], 4 * 512 + 3).unwrap();
}

#[test]
fn what_is_aborted_again_and_again_is_an_error_at_last() {
    let ram = Ram::new();
    let mut disk = ram.open(&config());
    ram.state().aborts = u32::MAX;
    let (kind, error) = kind_and_error(disk.write_at(&[0; 4096], 0).unwrap_err());
    assert!(matches!(error, Error::TimedOut { in_flight: 0, .. }), "{error}");
    assert_eq!((kind, disk.pool.available()), (io::ErrorKind::TimedOut, 3));
    (ram.state().aborts, ram.state().resetting) = (0, u32::MAX);
    let (_, error) = kind_and_error(disk.flush().unwrap_err());
    assert_eq!(error.to_string(), "ram0: flush of namespace 3 did not end within 20ms; 0 requests are still in flight");
    ram.state().resetting = 0;
    disk.flush().unwrap();
}

#[test]
fn what_an_earlier_call_left_in_flight_ends_before_anything_else_begins() {
    let ram = Ram::new();
    let mut disk = ram.open(&config());
    ram.state().stuck = true;
    for call in 0..2 {
        let (_, error) = kind_and_error(disk.write_at(&[1; 4096], 0).unwrap_err());
        assert!(matches!(error, Error::TimedOut { in_flight: 3, .. }), "{error}");
        assert_eq!((disk.in_flight, ram.state().submitted), (3, 3), "call {call}");
    }
    ram.state().stuck = false;
    disk.timeout = patient().timeout;
    disk.write_all_at(&[2; 1024], 0).unwrap();
    assert_eq!((disk.in_flight, disk.pool.available(), ram.state().submitted), (0, 3, 4));
    let bytes = ram.state().bytes[..4096].to_vec();
    assert_eq!((bytes[0], bytes[1023], bytes[1024], bytes[3071]), (2, 2, 1, 1));
    assert!(bytes[3072] != 1, "of which nothing had begun");
}

#[test]
fn a_queue_that_was_lost_is_replaced_once_a_call() {
    let ram = Ram::new();
    let mut disk = ram.open(&patient());
    ram.state().lost = 1;
    disk.write_all_at(&[5; 1000], 100).unwrap();
    assert_eq!(ram.state().queues, 2);
    ram.state().lost = u32::MAX;
    let (kind, error) = kind_and_error(disk.flush().unwrap_err());
    assert_eq!(error.to_string(), "ram0: flush of namespace 3 was not possible: nobody polled it");
    assert_eq!((kind, ram.state().queues), (io::ErrorKind::Other, 3));
    ram.state().last = true;
    let (_, error) = kind_and_error(disk.flush().unwrap_err());
    assert_eq!(error.to_string(), "ram0 has no queue left");
    (ram.state().last, ram.state().lost) = (false, 0);
    disk.flush().unwrap();
}

#[test]
fn a_device_that_is_gone_is_an_error_of_its_own() {
    let ram = Ram::new();
    let mut disk = ram.open(&patient());
    ram.state().gone = true;
    let (kind, error) = kind_and_error(disk.read_at(&mut [0; 8192], 0).unwrap_err());
    assert!(matches!(error, Error::Gone { .. }), "{error}");
    assert_eq!((kind, ram.state().queues), (io::ErrorKind::NotConnected, 1));
}

#[test]
fn what_cannot_be_written_is_not() {
    let mut ram = Ram::new();
    ram.namespace.read_only = true;
    let mut disk = ram.open(&patient());
    let (kind, error) = kind_and_error(disk.write_at(&[0; 3], 0).unwrap_err());
    assert!(matches!(error, Error::ReadOnly { nsid: 3, .. }));
    disk.flush().unwrap();
    assert_eq!((kind, ram.state().submitted), (io::ErrorKind::ReadOnlyFilesystem, 0));
    disk.read_exact_at(&mut [0; 3], 7).unwrap();
}

#[test]
fn a_cache_is_flushed_where_there_is_one() {
    let mut ram = Ram::new();
    Write::flush(&mut ram.open(&patient())).unwrap();
    assert_eq!(ram.state().flushes, 1);
    ram.namespace.flush = false;
    ram.open(&patient()).flush().unwrap();
    assert_eq!(ram.state().flushes, 1);
}

#[test]
fn buffers_that_somebody_else_has_are_missed() {
    let ram = Ram::new();
    let pool = Pool::new(Arena::new(1 << 16, ArenaOptions::default()).unwrap(), 2, 512, 512).unwrap();
    let mut disk = Disk::with_pool(Box::new(ram) as Box<dyn block::Disk>, pool.clone(), &patient()).unwrap();
    let first = pool.get();
    disk.read_exact_at(&mut [0; 4096], 0).unwrap();
    let second = pool.get();
    let (kind, error) = kind_and_error(disk.read_at(&mut [0; 4096], 0).unwrap_err());
    assert!(matches!(error, Error::NoBuffer { buffers: 2, .. }), "{error}");
    assert_eq!(kind, io::ErrorKind::OutOfMemory);
    drop((first, second));
    disk.read_exact_at(&mut [0; 4096], 0).unwrap();
}

#[test]
fn what_makes_no_sense_is_not_opened() {
    let ram = Ram::new();
    let open =
        |ram: &Ram, config: Config| Disk::open(Box::new(ram.clone()) as Box<dyn block::Disk>, &config).unwrap_err();
    let none = open(&ram, Config { nsid: Some(4), ..patient() });
    assert_eq!(none.to_string(), "ram0 has no namespace 4 that can be used; it has: 3");
    assert!(matches!(open(&ram, Config { buffer_size: 511, ..patient() }), Error::Unfit { buffer_size: 511, .. }));
    for (buffers, buffer_size) in [(0, 512), (1, 0), (u32::MAX, u32::MAX)] {
        assert!(matches!(open(&ram, Config { buffers, buffer_size, ..patient() }), Error::Memory(_)));
    }
    let strange = Ram { namespace: Namespace { block_size: 0, ..ram.namespace }, ..ram.clone() };
    assert!(matches!(open(&strange, patient()), Error::Unfit { block_size: 0, .. }));
    assert_eq!(io::Error::from(none).kind(), io::ErrorKind::NotFound);
    ram.state().last = true;
    drop(ram.open(&patient()));
    assert!(matches!(open(&ram, patient()), Error::Driver(_)));
}

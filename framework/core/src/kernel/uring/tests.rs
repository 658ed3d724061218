//! Rings over temporary files, and over pipes, whose reads stay in flight as long as a test wants.

use super::*;
use crate::mem::{ArenaOptions, Pool};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

const OPTIONS: UringOptions = UringOptions { entries: 4, sqpoll: None, iopoll: false };
/// How long a test waits before it fails.
const LONG: Duration = Duration::from_secs(100);

/// Whether this process may have rings; says so where not.
fn allowed() -> bool {
    let refused = IoUring::new(1).err();
    if let Some(why) = &refused {
        eprintln!("skipped: there is no io_uring here: {why}");
    }
    refused.is_none()
}

fn pool(count: u32, size: u32) -> Pool {
    let options = ArenaOptions { hugepages: Some(false), ..ArenaOptions::default() };
    Pool::new(Arena::new(u64::from(count * size).max(4096), options).unwrap(), count, size, size).unwrap()
}

fn buf(pool: &Pool, content: &[u8]) -> Buf {
    let mut buf = pool.get().unwrap();
    assert_eq!(buf.copy_from(content), content.len());
    buf
}

/// Submits one request, and waits for it.
fn run(ring: &mut Uring<u32>, operation: Operation, data: Data) -> Completed<u32> {
    ring.push(operation, data, 7).unwrap();
    ring.enter().unwrap();
    wait(ring)
}

fn wait<T>(ring: &mut Uring<T>) -> Completed<T> {
    let began = Instant::now();
    loop {
        if let Some(done) = ring.take() {
            return done;
        }
        assert!(began.elapsed() < LONG, "{} in flight", ring.in_flight());
        std::thread::yield_now();
    }
}

/// A ring over the end of a pipe that is read, and the other end.
fn over_a_pipe(entries: u32) -> (Uring<u32>, File) {
    let (read, write) = io::pipe().unwrap();
    (Uring::new(read.into(), UringOptions { entries, ..OPTIONS }).unwrap(), OwnedFd::from(write).into())
}

const READ: Operation = Operation::Read { offset: 0, skip: 0 };

#[test]
fn what_is_written_is_read_in_one_buffer_and_in_many() {
    if !allowed() {
        return;
    }
    for sqpoll in [None, Some(Duration::from_millis(1))] {
        for registered in [false, true] {
            let file = tempfile::tempfile().unwrap();
            let pool = pool(8, 512);
            let mut ring = Uring::new(file.try_clone().unwrap().into(), UringOptions { sqpoll, ..OPTIONS }).unwrap();
            if registered {
                ring.register(pool.arena().clone()).unwrap();
                assert_eq!(ring.piece(&Data::One(pool.get_len(512).unwrap())), Some(0));
            }
            let text = b"0123456789";
            let done = run(&mut ring, Operation::Write { offset: 3, skip: 0 }, Data::One(buf(&pool, text)));
            assert_eq!((done.result, done.payload), (Ok(10), 7));
            // A part of it: from the data's fourth byte on.
            let done = run(&mut ring, Operation::Write { offset: 20, skip: 4 }, done.data);
            assert_eq!(done.result, Ok(6));
            let three = Box::new([buf(&pool, b"ab"), buf(&pool, b"cdef"), buf(&pool, b"gh")]);
            let done = run(&mut ring, Operation::Write { offset: 40, skip: 3 }, Data::Many(three));
            assert_eq!(done.result, Ok(5));
            let mut bytes = [0; 45];
            file.read_exact_at(&mut bytes, 0).unwrap();
            let wanted = [&[0; 3][..], b"0123456789", &[0; 7], b"456789", &[0; 14], b"defgh"].concat();
            assert_eq!(bytes[..], wanted);
            let two = Box::new([pool.get_len(2).unwrap(), pool.get_len(4).unwrap()]);
            let done = run(&mut ring, Operation::Read { offset: 3, skip: 0 }, Data::Many(two));
            assert_eq!((done.data.bufs()[0].bytes(), done.data.bufs()[1].bytes()), (&b"01"[..], &b"2345"[..]));
            // The end of the file.
            let short = run(&mut ring, Operation::Read { offset: 43, skip: 0 }, Data::One(pool.get_len(9).unwrap()));
            assert_eq!(short.result, Ok(2));
            assert_eq!(run(&mut ring, READ, Data::None).result, Ok(0));
            assert_eq!(ring.in_flight(), 0);
            assert!(ring.doorbells().direct == 0 || sqpoll.is_some());
        }
    }
}

#[test]
fn ranges_are_zeroed_and_files_keep_their_length() {
    if !allowed() {
        return;
    }
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[1; 8192]).unwrap();
    let mut ring = Uring::new(file.try_clone().unwrap().into(), OPTIONS).unwrap();
    let ops = [
        Operation::PunchHole { offset: 0, len: 4096 },
        Operation::ZeroRange { offset: 4096, len: 100 },
        Operation::PunchHole { offset: 8192, len: 4096 },
    ];
    for operation in ops {
        let result = run(&mut ring, operation, Data::None).result;
        if result == Err(libc::EOPNOTSUPP) {
            eprintln!("skipped: this file system has no {operation:?}");
            return;
        }
        assert_eq!(result, Ok(0), "{operation:?}");
    }
    let mut bytes = [0xff; 8192];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes[..4196].iter().all(|b| *b == 0) && bytes[4196..].iter().all(|b| *b == 1));
    assert_eq!(file.metadata().unwrap().len(), 8192);
    assert_eq!(run(&mut ring, Operation::Fsync, Data::None).result, Ok(0));
}

#[test]
fn each_operation_is_its_own_opcode() {
    if !allowed() {
        return;
    }
    let pool = pool(2, 512);
    let mut ring = Uring::<u32>::new(tempfile::tempfile().unwrap().into(), OPTIONS).unwrap();
    let one = Data::One(pool.get_len(512).unwrap());
    let opcode =
        |ring: &Uring<u32>, operation, data: &Data| entry(operation, data, ring.piece(data)).0.get_opcode() as u8;
    let write = Operation::Write { offset: 0, skip: 0 };
    assert_eq!(opcode(&ring, Operation::Fsync, &Data::None), opcode::Fsync::CODE);
    assert_eq!(opcode(&ring, Operation::PunchHole { offset: 0, len: 1 }, &Data::None), opcode::Fallocate::CODE);
    assert_eq!(opcode(&ring, READ, &one), opcode::Read::CODE);
    assert_eq!(opcode(&ring, write, &Data::Many(Box::new([]))), opcode::Writev::CODE);
    ring.register(pool.arena().clone()).unwrap();
    assert_eq!(opcode(&ring, READ, &one), opcode::ReadFixed::CODE);
    assert_eq!(opcode(&ring, write, &one), opcode::WriteFixed::CODE);
}

#[test]
fn a_full_ring_gives_back_what_it_does_not_take() {
    if !allowed() {
        return;
    }
    let pool = pool(8, 512);
    let (mut ring, mut other) = over_a_pipe(2);
    for n in 0..2 {
        ring.push(READ, Data::One(pool.get_len(3).unwrap()), n).unwrap();
    }
    let full = ring.push(READ, Data::One(pool.get_len(5).unwrap()), 9).unwrap_err();
    assert_eq!((full.payload, full.data.len(), ring.in_flight()), (9, 5, 2));
    ring.enter().unwrap();
    assert!(ring.take().is_none(), "the pipe is empty");
    other.write_all(b"abc").unwrap();
    assert_eq!(wait(&mut ring).result, Ok(3));
    ring.push(READ, full.data, 9).unwrap();
    ring.enter().unwrap();
    other.write_all(b"defghijk").unwrap();
    let mut read = [wait(&mut ring), wait(&mut ring)];
    read.sort_by_key(|done| done.payload);
    assert_eq!(read.iter().map(|done| done.result.unwrap()).sum::<u32>(), 8);
    drop(read);
    assert_eq!(pool.available(), 8);
}

#[test]
fn what_the_kernel_can_cancel_comes_back_cancelled() {
    if !allowed() {
        return;
    }
    let pool = pool(4, 512);
    let (mut ring, mut other) = over_a_pipe(2);
    for n in 0..2 {
        ring.push(READ, Data::One(pool.get_len(3).unwrap()), n).unwrap();
    }
    ring.enter().unwrap();
    ring.cancel(|payload| *payload == 1);
    // A second time it is not asked.
    ring.cancel(|payload| *payload == 1);
    assert_eq!(ring.staged(), 1);
    ring.enter().unwrap();
    let done = wait(&mut ring);
    assert_eq!((done.payload, done.result), (1, Err(libc::ECANCELED)));
    other.write_all(b"abc").unwrap();
    assert_eq!((wait(&mut ring).result, ring.in_flight()), (Ok(3), 0));
}

#[test]
fn what_is_in_flight_when_a_ring_is_dropped_or_forgotten_never_comes_home() {
    if !allowed() {
        return;
    }
    for forget in [false, true] {
        let pool = pool(4, 512);
        let (mut ring, mut other) = over_a_pipe(4);
        ring.push(READ, Data::One(pool.get_len(512).unwrap()), 0).unwrap();
        ring.push(READ, Data::Many(Box::new([pool.get_len(512).unwrap(), pool.get_len(512).unwrap()])), 1).unwrap();
        ring.enter().unwrap();
        // This one the kernel does not know.
        ring.push(READ, Data::One(pool.get_len(512).unwrap()), 2).unwrap();
        if forget {
            std::mem::forget(ring)
        } else {
            drop(ring)
        }
        assert_eq!(pool.available(), if forget { 0 } else { 1 });
        // Where the ring is still there, the kernel writes now: to memory of nobody else's.
        let _ = other.write_all(&[0xee; 600]);
        let leaked = crate::mem::leaked_buffers();
        drop(pool);
        assert!(crate::mem::leaked_buffers() > leaked);
    }
}

#[test]
fn what_completes_while_a_ring_is_dropped_comes_home() {
    if !allowed() {
        return;
    }
    let pool = pool(4, 512);
    let file = tempfile::tempfile().unwrap();
    let mut ring = Uring::new(file.try_clone().unwrap().into(), OPTIONS).unwrap();
    for n in 0..4 {
        let write = Operation::Write { offset: n * 512, skip: 0 };
        ring.push(write, Data::One(buf(&pool, &[n as u8 + 1; 512])), n).unwrap();
    }
    ring.enter().unwrap();
    drop(ring);
    assert_eq!((pool.available(), file.metadata().unwrap().len()), (4, 2048));
}

/// A lock of a file, as the exclusive use of a block device, is given up with the ring at once, and not when the kernel comes to it.
#[test]
fn a_dropped_ring_has_let_go_of_its_file() {
    if !allowed() {
        return;
    }
    let path = tempfile::NamedTempFile::new().unwrap();
    for _ in 0..20 {
        let file = File::open(path.path()).unwrap();
        file.try_lock().unwrap();
        let mut ring = Uring::new(file.into(), OPTIONS).unwrap();
        assert_eq!(run(&mut ring, Operation::Fsync, Data::None).result, Ok(0));
        drop(ring);
    }
}

/// A payload whose drop panics keeps nothing of what is in flight from being kept.
#[test]
fn a_payload_that_panics_frees_nothing_early() {
    if !allowed() {
        return;
    }
    #[derive(Debug)]
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("a payload's");
        }
    }
    let pool = pool(4, 512);
    let (read, _write) = io::pipe().unwrap();
    let mut ring = Uring::new(read.into(), OPTIONS).unwrap();
    ring.push(READ, Data::One(pool.get_len(512).unwrap()), Bomb).unwrap();
    ring.enter().unwrap();
    ring.push(READ, Data::One(pool.get_len(512).unwrap()), Bomb).unwrap();
    let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(ring)));
    assert!(dropped.is_err());
    // That of the one that was never submitted is home, or not; the other one's is not.
    assert!(pool.available() <= 3);
}

#[test]
fn what_makes_no_ring_is_an_error() {
    if !allowed() {
        return;
    }
    let new = |entries| Uring::<()>::new(tempfile::tempfile().unwrap().into(), UringOptions { entries, ..OPTIONS });
    for entries in [0, 1 << 20] {
        assert_eq!(new(entries).err().unwrap().kind(), io::ErrorKind::InvalidInput);
    }
    assert_eq!(new(3).unwrap().slots.len(), 4);
}

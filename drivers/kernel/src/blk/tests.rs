//! Disks over temporary files, and everything that is none.

use super::*;
use rustix::io::Errno;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::time::Instant;
use wholebar_core::block::{Completion, Data, Op, QueueState, Reject, Request, Status};
use wholebar_core::kernel::Completed;
use wholebar_core::mem::{ArenaOptions, Pool};
use wholebar_core::reactor::Armed;

/// How long a test waits before it fails.
const LONG: Duration = Duration::from_secs(100);

/// Whether this process may have rings; says so where not.
fn allowed() -> bool {
    let options = UringOptions { entries: 1, sqpoll: None, iopoll: false };
    let refused = Uring::<()>::new(tempfile::tempfile().unwrap().into(), options).err();
    if let Some(why) = &refused {
        eprintln!("skipped: there is no io_uring here: {why}");
    }
    refused.is_none()
}

/// A file of so many bytes, beside this program, where the file system is likely to have `O_DIRECT`. Sources may be where nothing can be written.
fn file(bytes: u64) -> tempfile::NamedTempFile {
    let program = std::env::current_exe().unwrap();
    let file = tempfile::NamedTempFile::new_in(program.parent().unwrap()).unwrap();
    file.as_file().set_len(bytes).unwrap();
    file
}

fn open(path: &Path, parameters: &str) -> Result<KernelDisk> {
    let target = Target::parse(&format!("{}{parameters}", path.display()))?;
    KernelDisk::open(&target, &DiskConfig { queues: 1, entries: Some(4) })
}

/// Buffers that a disk is let into.
fn pool(disk: &KernelDisk, count: u32, size: u32) -> Pool {
    let each = u64::from(size).next_multiple_of(4096);
    let arena =
        Arena::new(u64::from(count) * each, ArenaOptions { hugepages: Some(false), ..Default::default() }).unwrap();
    disk.attach(arena.clone()).unwrap();
    Pool::new(arena, count, size, 4096).unwrap()
}

fn request(op: Op, data: Data) -> Request {
    Request { tag: 5, nsid: 1, op, data, deadline: None }
}

fn run(queue: &mut Queue, op: Op, data: Data) -> Completion {
    queue.submit(request(op, data)).unwrap();
    queue.ring();
    wait(queue)
}

fn wait(queue: &mut Queue) -> Completion {
    let (began, mut done) = (Instant::now(), None);
    while done.is_none() {
        queue.poll(1, &mut |completion| done = Some(completion));
        assert!(began.elapsed() < LONG, "{} in flight", queue.in_flight());
        std::thread::yield_now();
    }
    done.unwrap()
}

fn why(queue: &mut Queue, req: Request) -> String {
    queue.submit(req).unwrap_err().why.to_string()
}

#[test]
fn every_request_does_what_it_says() {
    if !allowed() {
        return;
    }
    for parameters in ["", ",cached", ",sqpoll", ",cached,sqpoll"] {
        let file = file(1 << 20);
        let disk = open(file.path(), parameters).unwrap();
        let Geometry { block_size, blocks, .. } = *disk.geometry();
        assert_eq!((u64::from(block_size) * blocks, disk.geometry().read_only.clone()), (1 << 20, None));
        let pool = pool(&disk, 4, 2 * block_size);
        let mut queue = disk.queue(false).unwrap();
        let mut buf = pool.get_len(2 * block_size).unwrap();
        buf.bytes_mut().fill(7);
        let done = run(&mut queue, Op::Write { lba: 3 }, Data::One(buf));
        assert_eq!((done.status, done.tag), (Status::Ok, 5));
        assert_eq!(run(&mut queue, Op::Flush, Data::None).status, Status::Ok);
        let bytes = |lba: u64| {
            let mut bytes = vec![0; block_size as usize];
            file.as_file().read_exact_at(&mut bytes, lba * u64::from(block_size)).unwrap();
            bytes.iter().map(|b| u64::from(*b)).sum::<u64>() / u64::from(block_size)
        };
        assert_eq!([2, 3, 4, 5].map(bytes), [0, 7, 7, 0]);
        let two = Box::new([pool.get_len(block_size).unwrap(), pool.get_len(block_size).unwrap()]);
        let read = run(&mut queue, Op::Read { lba: 4 }, Data::Many(two));
        let each: Vec<_> = read.data.bufs().iter().map(|buf| buf.bytes()[1]).collect();
        assert_eq!((read.status, each), (Status::Ok, vec![7, 0]));
        for op in [Op::WriteZeroes { lba: 3, blocks: 1 }, Op::Deallocate { lba: 4, blocks: 1 }] {
            assert_eq!(run(&mut queue, op, Data::None).status, Status::Ok, "{op:?}");
        }
        assert_eq!([3, 4].map(bytes), [0, 0]);
        drop((done, read));
        assert_eq!((queue.in_flight(), pool.available()), (0, 4));
        let rung = queue.doorbells().unwrap();
        assert!(rung.direct + rung.trapped >= 5 && (rung.direct == 0 || disk.options.sqpoll.is_some()), "{rung:?}");
    }
}

#[test]
fn what_cannot_be_done_is_refused_with_a_reason() {
    if !allowed() {
        return;
    }
    let file = file(1 << 20);
    let disk = open(file.path(), "").unwrap();
    let Geometry { block_size, blocks, memory_align, .. } = *disk.geometry();
    let pool = pool(&disk, 4, 2 * block_size);
    let mut queue = disk.queue(false).unwrap();
    let block = || Data::One(pool.get_len(block_size).unwrap());
    let read = |lba| Op::Read { lba };
    for (op, data, text) in [
        (read(0), Data::One(pool.get_len(block_size - 1).unwrap()), "whole blocks"),
        (read(0), Data::None, "no blocks"),
        (read(blocks), block(), "behind the end"),
        (read(u64::MAX), block(), "behind the end"),
        (Op::Deallocate { lba: blocks - 1, blocks: 2 }, Data::None, "behind the end"),
        (Op::WriteZeroes { lba: 0, blocks: 0 }, Data::None, "no blocks"),
        (Op::Flush, block(), "no data"),
        (Op::Compare { lba: 0 }, Data::None, "no such request"),
    ] {
        assert!(why(&mut queue, request(op, data)).contains(text), "{op:?}: {text}");
    }
    assert!(why(&mut queue, Request { nsid: 2, ..request(Op::Flush, Data::None) }).contains("number 1"));
    if memory_align > 1 {
        let mut buf = pool.get().unwrap();
        assert!(buf.reserve(1));
        buf.set_len(block_size);
        assert!(why(&mut queue, request(read(0), Data::One(buf))).contains("aligned"));
    }
    // An arena that the disk was not let into; and one that a queue uses.
    let other = Arena::new(1 << 16, ArenaOptions::default()).unwrap();
    let stranger = Pool::new(other.clone(), 1, block_size, 4096).unwrap();
    let data = || Data::One(stranger.get_len(block_size).unwrap());
    assert!(why(&mut queue, request(read(0), data())).contains("not attached"));
    disk.detach(&other).unwrap();
    disk.attach(other.clone()).unwrap();
    assert_eq!(run(&mut queue, read(0), data()).status, Status::Ok);
    assert!(disk.detach(&other).unwrap_err().to_string().contains("stays attached"));
    assert!(disk.queue(false).err().unwrap().to_string().contains("no queue left"));
    drop(queue);
    disk.detach(&other).unwrap();
    assert!(disk.queue(false).is_ok());
    assert!(disk.reset().unwrap_err().to_string().contains("cannot be reset"));
}

#[test]
fn a_full_queue_says_so_and_goes_on() {
    if !allowed() {
        return;
    }
    let file = file(1 << 20);
    let disk = open(file.path(), "").unwrap();
    let pool = pool(&disk, 8, disk.geometry().block_size);
    let mut queue = disk.queue(false).unwrap();
    let read = || request(Op::Read { lba: 0 }, Data::One(pool.get_len(pool.size()).unwrap()));
    for round in 0..3 {
        for _ in 0..4 {
            queue.submit(read()).unwrap();
        }
        assert_eq!(queue.submit(read()).unwrap_err().why, Reject::Full);
        assert_eq!((queue.in_flight(), queue.poll(9, &mut |_| panic!("nobody rang"))), (4, 0), "round {round}");
        queue.ring();
        for _ in 0..4 {
            assert_eq!(wait(&mut queue).status, Status::Ok);
        }
    }
    assert_eq!((queue.state(), queue.in_flight(), pool.available()), (QueueState::Running, 0, 8));
    // What was posted and not rung for, and what the kernel has, goes with the queue.
    queue.submit(read()).unwrap();
    queue.ring();
    queue.submit(read()).unwrap();
    drop(queue);
    assert_eq!(pool.available(), 8);
}

#[test]
fn a_file_that_is_cut_meanwhile_is_an_error() {
    if !allowed() {
        return;
    }
    for parameters in ["", ",cached"] {
        let file = file(1 << 20);
        let disk = open(file.path(), parameters).unwrap();
        let block = disk.geometry().block_size;
        let pool = pool(&disk, 2, 4 * block);
        let mut queue = disk.queue(false).unwrap();
        // In the midst of a request, of a block, and before it begins.
        for len in [u64::from(2 * block), u64::from(2 * block) + 100, 0] {
            file.as_file().set_len(len).unwrap();
            let done = run(&mut queue, Op::Read { lba: 0 }, Data::One(pool.get_len(4 * block).unwrap()));
            assert_eq!(done.status, Status::Device(SHORT), "{parameters}: {len} bytes");
        }
        assert!(disk.status_text(SHORT).contains("was cut"));
        assert!(disk.status_text(5).contains("os error 5"));
        assert_eq!((queue.in_flight(), pool.available()), (0, 2));
    }
}

#[test]
fn what_is_no_disk_says_what_it_is() {
    let error = |path: &Path, parameters: &str| open(path, parameters).err().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    assert!(error(dir.path(), "").contains("is a directory"));
    let missing = error(&at("x"), ",qd=1");
    assert!(
        missing.contains("No such file") && missing.contains("truncate") && missing.contains("/x,qd=1"),
        "{missing}"
    );
    assert!(error(&at("x/y"), "").contains("No such file"));
    assert!(error(Path::new("/dev/null"), "").contains("a character device"));
    let _listens = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    assert!(error(&at("socket"), "").contains("vfio-user:PATH"));
    std::fs::write(at("short"), [0; 511]).unwrap();
    let short = error(&at("short"), "");
    assert!(short.contains("has 511 bytes") && short.contains("make it longer"), "{short}");
    let polled = error(&std::env::current_exe().unwrap(), ",cached,iopoll");
    assert!(polled.contains("needs O_DIRECT") && polled.contains("asked for"), "{polled}");
    std::os::unix::fs::symlink(at("loop"), at("loop")).unwrap();
    assert!(error(&at("loop"), "").contains("cannot be opened"));
}

#[test]
fn what_cannot_be_written_is_read() {
    if !allowed() {
        return;
    }
    let file = file(1 << 20);
    let program = std::env::current_exe().unwrap();
    file.as_file().set_permissions(std::fs::Permissions::from_mode(0o400)).unwrap();
    // Root may write the former all the same.
    for (path, parameters) in [(file.path(), ",ro"), (&program, "")] {
        let disk = open(path, parameters).unwrap();
        assert!(disk.geometry().read_only.is_some() && disk.namespaces()[0].read_only);
        assert!(matches!(disk.event(), Some(Event::Reported(why)) if why.contains("read-only")));
        assert_eq!(disk.event(), None);
        let pool = pool(&disk, 1, disk.geometry().block_size);
        let mut queue = disk.queue(false).unwrap();
        let data = || Data::One(pool.get_len(pool.size()).unwrap());
        assert!(why(&mut queue, request(Op::Write { lba: 0 }, data())).contains("read only"));
        assert!(why(&mut queue, request(Op::Deallocate { lba: 0, blocks: 1 }, Data::None)).contains("read only"));
        assert_eq!(run(&mut queue, Op::Read { lba: 0 }, data()).status, Status::Ok);
    }
}

/// A completion that comes after a queue was armed and polled once more wakes whoever sleeps.
#[test]
fn an_armed_queue_wakes_who_waits() {
    if !allowed() {
        return;
    }
    let file = file(1 << 20);
    for parameters in ["", ",cached", ",sqpoll"] {
        let disk = open(file.path(), parameters).unwrap();
        let pool = pool(&disk, 2, disk.geometry().block_size);
        let mut queue = disk.queue(true).unwrap();
        let wakeup = queue.wakeup().unwrap();
        for round in 0..500 {
            let data = Data::One(pool.get_len(pool.size()).unwrap());
            // Each other one has a deadline that does not pass.
            let deadline = (round % 2 == 0).then(|| Instant::now() + LONG);
            let op = if round % 3 == 0 { Op::Write { lba: 3 } } else { Op::Read { lba: 3 } };
            queue.submit(Request { deadline, ..request(op, data) }).unwrap();
            queue.ring();
            let mut done = 0;
            while done == 0 {
                let armed = queue.arm();
                assert_eq!(matches!(armed, Armed::Until(_)), deadline.is_some(), "{armed:?}");
                done = queue.poll(1, &mut |completion| assert_eq!(completion.status, Status::Ok));
                if done == 0 {
                    assert!(wakeup.wait(Some(LONG)).unwrap().is_some(), "{parameters}: round {round}: nobody woke it");
                }
            }
            queue.disarm();
        }
        assert_eq!((queue.arm(), queue.in_flight(), pool.available()), (Armed::Yes, 0, 2));
        drop(queue);
        assert_eq!(disk.queue(false).unwrap().arm(), Armed::No);
    }
}

/// Reads and writes are looked for at the device, and all else comes by itself, from a ring of its own. A device without queues for that refuses the former.
#[test]
fn what_cannot_be_polled_for_goes_another_way() {
    if !allowed() {
        return;
    }
    let file = file(1 << 20);
    let mut disk = open(file.path(), "").unwrap();
    if disk.geometry().mode != IoMode::Direct {
        eprintln!("skipped: the directory's file system has no O_DIRECT");
        return;
    }
    disk.options.iopoll = true;
    Arc::get_mut(&mut disk.shared).unwrap().polls_device = true;
    let pool = pool(&disk, 2, disk.geometry().block_size);
    let mut queue = disk.queue(false).unwrap();
    for op in [Op::Flush, Op::WriteZeroes { lba: 0, blocks: 1 }, Op::Flush] {
        assert_eq!(run(&mut queue, op, Data::None).status, Status::Ok, "{op:?}");
    }
    let unsupported = Status::Device(Errno::OPNOTSUPP.raw_os_error() as u16);
    for op in [Op::Read { lba: 8 }, Op::Write { lba: 0 }] {
        let status = run(&mut queue, op, Data::One(pool.get_len(pool.size()).unwrap())).status;
        assert!(status == Status::Ok || status == unsupported, "{op:?}: {status:?}");
    }
    assert!(disk.status_text(Errno::OPNOTSUPP.raw_os_error() as u16).contains("leave ,iopoll out"));
    assert_eq!((queue.in_flight(), pool.available()), (0, 2));
}

/// What a device is at work on is not cancelled: it ends, well or as aborted, and its buffer comes back.
/// A kernel that has no room for a request, time after time: it ends with its deadline, and goes on where it has none.
#[test]
fn what_is_given_back_again_and_again_ends_with_its_deadline() {
    if !allowed() {
        return;
    }
    let file = file(1 << 20);
    let disk = open(file.path(), ",cached").unwrap();
    let pool = pool(&disk, 1, 4096);
    let mut queue = disk.queue(false).unwrap();
    for deadline in [None, Some(Instant::now())] {
        let data = Data::One(pool.get_len(4096).unwrap());
        queue.submit(Request { deadline, ..request(Op::Read { lba: 0 }, data) }).unwrap();
        queue.ring();
        let began = Instant::now();
        let completed = loop {
            if let Some(completed) = queue.take() {
                break completed;
            }
            assert!(began.elapsed() < LONG);
            std::thread::yield_now();
        };
        let refused = Completed { result: Err(Errno::AGAIN.raw_os_error()), ..completed };
        let settled = queue.settle(refused);
        assert_eq!(settled.as_ref().map(|done| done.status), deadline.map(|_| Status::Aborted));
        let done = settled.unwrap_or_else(|| wait(&mut queue));
        assert_eq!((done.tag, done.status == Status::Ok, queue.in_flight()), (5, deadline.is_none(), 0));
    }
    assert_eq!(pool.available(), 1);
}

#[test]
fn a_deadline_that_has_passed_loses_nothing() {
    if !allowed() {
        return;
    }
    let file = file(1 << 20);
    let disk = open(file.path(), "").unwrap();
    let pool = pool(&disk, 4, disk.geometry().block_size);
    let mut queue = disk.queue(false).unwrap();
    for _ in 0..50 {
        for _ in 0..4 {
            let data = Data::One(pool.get_len(pool.size()).unwrap());
            queue.submit(Request { deadline: Some(Instant::now()), ..request(Op::Read { lba: 0 }, data) }).unwrap();
        }
        queue.ring();
        for _ in 0..4 {
            assert!(matches!(wait(&mut queue).status, Status::Ok | Status::Aborted));
        }
    }
    assert_eq!((queue.in_flight(), pool.available()), (0, 4));
}

#[test]
fn a_namespace_s_character_device_is_told_by_its_name() {
    for (path, is) in [
        ("/dev/ng0n1", true),
        ("./ng10n22", true),
        ("/dev/nvme0n1", false),
        ("/dev/ng0", false),
        ("/dev/ngxn1", false),
        ("/dev/ng0n", false),
        ("/dev/null", false),
    ] {
        assert_eq!(file::is_namespace(Path::new(path)), is, "{path}");
    }
}

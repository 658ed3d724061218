//! The kernel's own path to disks: the bodies of storage over files, by `O_DIRECT` and through the page cache, and over loop devices where root can make some.

use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::NamedTempFile;
use wholebar::block::{self, Data, Disk, DiskConfig, Op, Status};
use wholebar::blocking;
use wholebar::mem::{Arena, ArenaOptions, Pool};
use wholebar_tests::storage::{fill, holds, ok, request, round_trips, run};

/// Bytes of a disk.
const SIZE: u64 = 8 << 20;
/// What stands behind a path.
const WAYS: [&str; 3] = ["", ",cached", ",sqpoll"];

/// Whether this process may have rings; says so where not.
fn allowed() -> bool {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(SIZE).unwrap();
    let opened = block::open_target(&format!("kernel:{}", file.path().display()), &DiskConfig::default());
    let refused = opened.err().map(|error| error.to_string()).filter(|error| error.contains("cannot be set up"));
    if let Some(why) = &refused {
        eprintln!("skipped: {why}");
    }
    refused.is_none()
}

/// A file in the directory of build products, whose file system is likely to have `O_DIRECT`.
fn file() -> NamedTempFile {
    let file = NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    file.as_file().set_len(SIZE).unwrap();
    file
}

fn open(path: &Path, parameters: &str) -> Result<Box<dyn Disk>> {
    let target = format!("kernel:{}{parameters}", path.display());
    block::open_target(&target, &DiskConfig::default()).with_context(|| target)
}

/// Data come back, ranges are zeroed, and everything that is owned comes home.
fn body(disk: &dyn Disk) -> Result<()> {
    let namespace = disk.namespaces().into_iter().next().context("a namespace")?;
    let (nsid, block) = (namespace.nsid, namespace.block_size);
    let arena = Arena::new(8 << 20, ArenaOptions::default())?;
    disk.attach(arena.clone())?;
    let pool = Pool::new(arena, 4, (1 << 20) + (64 << 10), 64 << 10)?;
    let mut queue = disk.queue()?;
    round_trips(&mut *queue, &pool, (nsid, block), 0..namespace.blocks)?;
    // At the end of the disk, in several buffers.
    let lba = namespace.blocks - 4;
    let mut bufs = [pool.get_len(2 * block).context("a buffer")?, pool.get_len(2 * block).context("a buffer")?];
    fill(&mut bufs[0], lba, block, 1);
    fill(&mut bufs[1], lba + 2, block, 1);
    ok(run(&mut *queue, request(nsid, Op::Write { lba }, Data::Many(Box::new(bufs))))?, "write")?;
    ok(run(&mut *queue, request(nsid, Op::Flush, Data::None))?, "flush")?;
    let zeroed = Op::WriteZeroes { lba: lba + 1, blocks: 1 };
    ok(run(&mut *queue, request(nsid, zeroed, Data::None))?, "write zeroes")?;
    let unused = run(&mut *queue, request(nsid, Op::Deallocate { lba: lba + 3, blocks: 1 }, Data::None))?;
    ensure!(
        unused.status == Status::Ok || disk.status_text(95).contains("not supported"),
        "deallocate: {:?}",
        unused.status
    );
    for (at, is) in [(0, true), (1, false), (2, true)] {
        let buf = pool.get_len(block).context("a buffer")?;
        let read = ok(run(&mut *queue, request(nsid, Op::Read { lba: lba + at }, Data::One(buf)))?, "read")?;
        let buf = &read.bufs()[0];
        let zero = buf.bytes().iter().all(|b| *b == 0);
        ensure!(holds(buf, lba + at, block, 1) == is && zero != is, "block {at} from the end");
    }
    ensure!(queue.in_flight() == 0 && pool.available() == pool.capacity(), "a buffer is missing");
    let rung = queue.doorbells().context("they are counted")?;
    ensure!(rung.direct + rung.trapped > 0, "nobody rang");
    Ok(())
}

#[test]
fn data_comes_back_from_files() -> Result<()> {
    if !allowed() {
        return Ok(());
    }
    for way in WAYS {
        let file = file();
        body(&*open(file.path(), way)?).with_context(|| format!("a file{way}"))?;
        ensure!(file.as_file().metadata()?.len() == SIZE, "a file keeps its length");
    }
    // In memory, which may have no O_DIRECT, and no ranges of zeros but holes.
    if let Ok(file) = NamedTempFile::new_in("/dev/shm") {
        file.as_file().set_len(SIZE)?;
        body(&*open(file.path(), "")?).context("a file in memory")?;
    }
    Ok(())
}

/// A loop device, until it is dropped.
struct Loop(PathBuf);

impl Loop {
    /// Over a file; `None`, with the reason told, where this process may not, or the system has none.
    fn over(file: &Path, sector: u32) -> Option<Self> {
        let mut command = Command::new("losetup");
        command.args(["--find", "--show", "--sector-size", &sector.to_string()]).arg(file);
        let why = match command.output() {
            Ok(output) if output.status.success() => {
                return Some(Self(String::from_utf8(output.stdout).ok()?.trim().into()));
            }
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => error.to_string(),
        };
        eprintln!("skipped: no loop device can be made: losetup: {why}");
        None
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn data_comes_back_from_block_devices() -> Result<()> {
    if !allowed() {
        return Ok(());
    }
    for sector in [512, 4096] {
        let file = file();
        let Some(device) = Loop::over(file.path(), sector) else { return Ok(()) };
        for way in WAYS {
            let disk = open(&device.0, way)?;
            ensure!(disk.namespaces()[0].block_size == sector, "{:?}", disk.namespaces());
            body(&*disk).with_context(|| format!("a loop device{way}, sectors of {sector}"))?;
        }
        // No other process can have it for itself meanwhile.
        let disk = open(&device.0, "")?;
        ensure!(disk.event().is_none() && !disk.namespaces()[0].read_only, "nothing else uses it");
        let second = open(&device.0, "")?;
        let why = second.event().context("it is in use")?;
        ensure!(format!("{why:?}").contains("in use") && second.namespaces()[0].read_only, "{why:?}");
        ensure!(!open(&device.0, ",force")?.namespaces()[0].read_only, "it was to be forced");
    }
    Ok(())
}

/// What a container's filter, or a setting of the kernel's, does to a process.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[test]
fn where_the_system_has_no_rings_that_is_said() -> Result<()> {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
    for (errno, says) in [(libc::EPERM, "io_uring_disabled"), (libc::ENOSYS, "built without it")] {
        let file = file();
        let rules = std::iter::once((libc::SYS_io_uring_setup, Vec::new())).collect();
        let arch = std::env::consts::ARCH.try_into().context("no such filter on this CPU")?;
        let refuses = SeccompAction::Errno(errno as u32);
        let program: BpfProgram = SeccompFilter::new(rules, SeccompAction::Allow, refuses, arch)?.try_into()?;
        // Filters are a thread's.
        let opened = std::thread::spawn(move || {
            seccompiler::apply_filter(&program)?;
            anyhow::Ok(open(file.path(), "").err().map(|error| format!("{error:#}")))
        });
        let error = opened.join().ok().context("a panic")??.context("it was opened")?;
        ensure!(error.contains("io_uring cannot be set up") && error.contains(says), "{error}");
    }
    Ok(())
}

/// The face for code that blocks, which takes any offset.
#[test]
fn a_file_is_read_and_written_as_a_disk_that_blocks() -> Result<()> {
    if !allowed() {
        return Ok(());
    }
    let file = file();
    let config = blocking::Config { unaligned: true, ..blocking::Config::default() };
    let mut disk = blocking::Disk::open(open(file.path(), "")?, &config)?;
    let content: Vec<u8> = (0..3_000_000u32).map(|i| (i ^ i >> 8) as u8).collect();
    disk.write_all_at(&content, 1001)?;
    disk.flush()?;
    let mut on_disk = vec![0; content.len()];
    file.as_file().read_exact_at(&mut on_disk, 1001)?;
    ensure!(on_disk == content, "the file does not hold what was written");
    let mut all = Vec::new();
    disk.read_to_end(&mut all)?;
    ensure!(all.len() as u64 == SIZE && all[1001..][..content.len()] == content[..], "it is read otherwise");
    Ok(())
}

/// What is mounted is read, and written only by force.
#[test]
fn a_mounted_device_is_not_written() -> Result<()> {
    if !allowed() {
        return Ok(());
    }
    let file = file();
    let Some(device) = Loop::over(file.path(), 512) else { return Ok(()) };
    let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&device.0).status();
    if !made.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no mkfs.ext4");
        return Ok(());
    }
    let place = tempfile::tempdir()?;
    if !Command::new("mount")
        .args(["-o", "ro"])
        .arg(&device.0)
        .arg(place.path())
        .status()
        .is_ok_and(|status| status.success())
    {
        eprintln!("skipped: nothing can be mounted here");
        return Ok(());
    }
    let refused = || -> Result<()> {
        let disk = open(&device.0, "")?;
        let arena = Arena::new(1 << 16, ArenaOptions::default())?;
        disk.attach(arena.clone())?;
        let pool = Pool::new(arena, 1, 4096, 4096)?;
        let mut queue = disk.queue()?;
        let buf = || pool.get_len(4096).map(Data::One).context("a buffer");
        let data = ok(run(&mut *queue, request(1, Op::Read { lba: 0 }, buf()?))?, "read")?;
        drop(data);
        let refused = queue.submit(request(1, Op::Write { lba: 0 }, buf()?));
        ensure!(refused.is_err_and(|rejected| rejected.to_string().contains("read only")), "it was written");
        Ok(())
    };
    let refused = refused();
    let _ = Command::new("umount").arg(place.path()).status();
    refused?;
    ensure!(!open(&device.0, "")?.namespaces()[0].read_only, "nobody uses it any more");
    let _ = File::open(&device.0)?.read(&mut [0])?;
    Ok(())
}

//! What the hot path must not do: allocate, or call the kernel. Counted, on a whole plan.

use anyhow::{Context, Result, ensure};
use wholebar::bar::MapPolicy;
use wholebar::block::Request;
use wholebar::capture::{Capture, Direction};
use wholebar::mem::PoolCache;
use wholebar::net::{Burst, Faulty, PortConfig, RxQueue, TxQueue};
use wholebar::nvme::{Options, Queue, QueueOptions};
use wholebar_tests::nvme::{Bench, patient};
use wholebar_tests::virtio::End;
use wholebar_tests::{Rig, in_process, on_thread};

const DEPTH: usize = 32;
const COMMANDS: usize = 20_000;

/// Keeps `DEPTH` commands in flight until `COMMANDS` have ended, with buffers going round.
fn go_round(queue: &mut Queue, requests: &mut Vec<Request>, commands: usize) -> (usize, usize) {
    let (mut ended, mut failed) = (0, 0);
    let mut submitted = 0;
    while ended < commands {
        while submitted < commands
            && let Some(req) = requests.pop()
        {
            submitted += 1;
            if let Err(rejected) = queue.submit(req) {
                requests.push(rejected.req);
                failed += 1;
            }
        }
        queue.ring();
        ended += queue.poll_each(DEPTH, |c| {
            failed += usize::from(c.status != wholebar::block::Status::Ok);
            let req = wholebar_tests::nvme::request(1, wholebar::block::Op::Read { lba: 8 }, c.data);
            // There is room: as many as were taken out.
            requests.push(req);
        });
    }
    (ended, failed)
}

fn bench(policy: MapPolicy) -> Result<(Rig, Bench, Queue, Vec<Request>)> {
    let rig = in_process("size=16M,backing=null")?;
    let bench = Bench::open(&rig, Options { policy, ..patient() }, DEPTH as u32, 4096)?;
    let queue = bench.nvme.queue(QueueOptions::default())?;
    let requests = (0..DEPTH).map(|_| bench.read(8, 4096)).collect::<Result<_>>()?;
    Ok((rig, bench, queue, requests))
}

#[test]
fn no_allocation_per_command() -> Result<()> {
    let (_rig, _bench, mut queue, mut requests) = bench(MapPolicy::Whole)?;
    go_round(&mut queue, &mut requests, 1_000);
    let mut result = (0, 0);
    let count = allocation_counter::measure(|| result = go_round(&mut queue, &mut requests, COMMANDS));
    ensure!(result == (COMMANDS, 0), "{result:?}");
    ensure!(count.count_total == 0, "{} allocations in {COMMANDS} commands", count.count_total);
    // That the counter counts: one box is one allocation.
    ensure!(allocation_counter::measure(|| drop(std::hint::black_box(Box::new(1u64)))).count_total == 1);
    Ok(())
}

/// A burst at a time out of a cache, to a device that sends it back, and back into the cache.
struct Lane {
    rx: Box<dyn RxQueue>,
    tx: Box<dyn TxQueue>,
    cache: PoolCache,
    out: Burst,
    got: Burst,
}

/// Packets of a burst.
const BURST: usize = 8;
const BURSTS: usize = 20_000;

impl Lane {
    /// Sends so many bursts; says whether packets came back meanwhile.
    fn go_round(&mut self, bursts: usize) -> bool {
        let (mut sent, mut came) = (0, 0);
        while sent < bursts {
            if self.out.is_empty() && self.out.fill(&mut self.cache, BURST) {
                for packet in self.out.iter_mut() {
                    packet.reserve(64);
                    packet.set_len(60);
                    packet.bytes_mut()[..12].fill(0xff);
                }
            }
            // A burst is sent once all of it is, in however many parts.
            let taken = self.tx.tx(&mut self.out);
            sent += usize::from(taken > 0 && self.out.is_empty());
            came += self.rx.rx(&mut self.got);
            self.got.give_back_to(&mut self.cache);
        }
        came > bursts
    }
}

/// A virtio network device whose wire leads back to it; what is put around its queues stays with it.
fn lane(policy: MapPolicy, packed: bool, faults: Option<&str>, capture: Option<&Capture>) -> Result<(Rig, End, Lane)> {
    let rig = on_thread("sim:virtio-net,wire=loop,control=0,full=wait")?;
    let options = wholebar::virtio::Options { policy, packed, ..wholebar_tests::virtio::patient() };
    let mut end = End::open(&rig, &PortConfig::default(), options, 1024)?;
    let (mut rx, mut tx) = (end.rx.remove(0), end.tx.remove(0));
    if let Some(faults) = faults.map(str::parse).transpose()? {
        rx = Box::new(Faulty::new(rx, faults, end.pool.cache(8)));
        tx = Box::new(Faulty::new(tx, faults, end.pool.cache(8)));
    }
    if let Some(capture) = capture {
        rx = Box::new(capture.tap(rx, "rx", Direction::In)?);
        tx = Box::new(capture.tap(tx, "tx", Direction::Out)?);
    }
    let lane = Lane { rx, tx, cache: end.pool.cache(32), out: Burst::new(BURST), got: Burst::new(32) };
    Ok((rig, end, lane))
}

const FAULTS: &str = "drop=0.05,duplicate=0.05,corrupt=0.05,truncate=0.05,reorder=0.1";

#[test]
fn no_allocation_per_packet() -> Result<()> {
    let capture = Capture::create("/dev/null".as_ref(), 1024)?;
    for packed in [false, true] {
        for (faults, capture) in [(None, None), (Some(FAULTS), None), (None, Some(&capture))] {
            let (_rig, end, mut lane) = lane(MapPolicy::Whole, packed, faults, capture)?;
            lane.go_round(1_000);
            let mut came = false;
            let count = allocation_counter::measure(|| came = lane.go_round(BURSTS));
            let what = format!("packed: {packed}, faults: {}, capture: {}", faults.is_some(), capture.is_some());
            ensure!(came && count.count_total == 0, "{} allocations in {BURSTS} bursts, {what}", count.count_total);
            drop(lane);
            end.close().context(what)?;
        }
    }
    capture.finish()?;
    Ok(())
}

/// Commands on a thread that is killed, with its process, at the first system call it makes: on a whole plan it lives; on a trapped one, where
/// each doorbell is a system call, it dies, which shows that the trap works.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[test]
fn no_system_call_per_command() -> Result<()> {
    if let Some(way) = way() {
        let (_rig, _bench, mut queue, mut requests) = bench(policy(&way))?;
        return without_system_calls(move |warm| {
            let count = if warm { 1_000 } else { COMMANDS };
            go_round(&mut queue, &mut requests, count) == (count, 0)
        });
    }
    check("no_system_call_per_command", &["whole"], "trapped")
}

/// The same with packets.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[test]
fn no_system_call_per_packet() -> Result<()> {
    if let Some(way) = way() {
        let faults = way.contains("faults").then_some(FAULTS);
        let (_rig, _end, mut lane) = lane(policy(&way), way.contains("packed"), faults, None)?;
        return without_system_calls(move |warm| lane.go_round(if warm { 1_000 } else { BURSTS }));
    }
    check("no_system_call_per_packet", &["whole, split", "whole, packed", "whole, packed, faults"], "trapped")
}

/// Through the kernel, requests take a system call a doorbell, and completions none.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[test]
fn no_system_call_to_look_for_completions_of_the_kernel() -> Result<()> {
    use wholebar::block::{self, BlockQueue, Data, DiskConfig, Op};
    use wholebar::mem::{Arena, ArenaOptions, Pool};
    const READS: usize = 4;
    let file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR"))?;
    std::fs::write(file.path(), vec![1; 1 << 20])?;
    let disk = match block::open_target(&format!("kernel:{}", file.path().display()), &DiskConfig::default()) {
        Err(error) if error.to_string().contains("cannot be set up") => {
            eprintln!("skipped: {error}");
            return Ok(());
        }
        disk => disk?,
    };
    let Some(way) = way() else {
        return check("no_system_call_to_look_for_completions_of_the_kernel", &["polls"], "rings");
    };
    let arena = Arena::new(2 * READS as u64 * 4096, ArenaOptions::default())?;
    disk.attach(arena.clone())?;
    let pool = Pool::new(arena, 2 * READS as u32, 4096, 4096)?;
    let mut queue = disk.queue()?;
    let mut done = Vec::with_capacity(2 * READS);
    let submit = move |queue: &mut dyn BlockQueue| {
        let read = |buf| wholebar_tests::storage::request(1, Op::Read { lba: 8 }, Data::One(buf));
        pool.get_len(4096).is_some_and(|buf| queue.submit(read(buf)).is_ok())
    };
    without_system_calls(move |warm| {
        if warm {
            let posted = (0..READS).all(|_| submit(&mut *queue));
            queue.ring();
            return posted;
        }
        if way == "rings" {
            submit(&mut *queue);
            queue.ring();
        }
        while done.len() < READS {
            queue.poll(1, &mut |completion| done.push(completion));
        }
        done.iter().all(|completion| completion.status == block::Status::Ok)
    })
}

/// Set in the process of a test that runs itself again.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const CHILD: &str = "WHOLEBAR_TEST_HOT_PATH";

/// What this process is to do, where it is such a one.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn way() -> Option<String> {
    std::env::var(CHILD).ok()
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn policy(way: &str) -> MapPolicy {
    if way.starts_with("whole") { MapPolicy::Whole } else { MapPolicy::Trapped }
}

/// Runs a test again in processes of their own: those that `live`, and one that dies of a system call.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn check(test: &str, live: &[&str], dies: &str) -> Result<()> {
    use std::os::unix::process::ExitStatusExt;
    const SIGSYS: i32 = 31;
    let child = |way: &str| {
        let mut child = std::process::Command::new(std::env::current_exe()?);
        child.args(["--exact", test]).env(CHILD, way).output()
    };
    for way in live {
        let output = child(way)?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success() && said.contains("1 passed"), "{way}: {}, {said}", output.status);
    }
    let output = child(dies)?;
    ensure!(output.status.signal() == Some(SIGSYS), "{dies}: {}", output.status);
    Ok(())
}

/// `work` is done once to warm up, and once on the thread that must not call the kernel; it says whether all went well.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn without_system_calls(mut work: impl FnMut(bool) -> bool + Send + 'static) -> Result<()> {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU8, Ordering};
    const RUNNING: u8 = 0;
    const DONE: u8 = 1;
    const FAILED: u8 = 2;
    let arch = std::env::consts::ARCH.try_into().context("no such filter on this CPU")?;
    let filter = SeccompFilter::new(Default::default(), SeccompAction::Trap, SeccompAction::Allow, arch)?;
    let program: BpfProgram = filter.try_into()?;
    let state = Arc::new(AtomicU8::new(RUNNING));
    let result = state.clone();
    std::thread::spawn(move || {
        let done = work(true) && seccompiler::apply_filter(&program).is_ok() && work(false);
        result.store(if done { DONE } else { FAILED }, Ordering::Release);
        // Even to end a thread takes system calls: it goes down with the process.
        loop {
            std::hint::spin_loop();
        }
    });
    while state.load(Ordering::Acquire) == RUNNING {
        std::thread::yield_now();
    }
    ensure!(state.load(Ordering::Acquire) == DONE, "not all went well");
    Ok(())
}

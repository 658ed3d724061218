//! A controller that misbehaves: every command ends exactly once, in an answer or a named error, and every buffer comes home.

use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use wholebar::block::{BlockQueue, QueueState, Reject, Status};
use wholebar::mem::Buf;
use wholebar::nvme::{Nvme, Options, QueueOptions};
use wholebar::{Error as Core, virtio};
use wholebar_tests::nvme::{Bench, holds, patient};
use wholebar_tests::{in_process, on_thread, vfio_user};

const DEPTH: usize = 64;
const PATIENCE: Duration = Duration::from_secs(300);

/// For controllers that lose commands. One that merely got no core for a while loses some, too: then the command was late.
fn hasty() -> Options {
    Options { timeout: Duration::from_millis(20), ..patient() }
}

/// How many commands ended how.
#[derive(Debug, Default)]
struct Tally {
    ok: u64,
    failed: u64,
    aborted: u64,
}

/// Runs `commands` commands, each tag once; counts how they end, and that they do so once.
///
/// `honest`: a good completion is of the command that it names. A controller that completes a command in flight in another's place can't be told
/// from one that has done it; what its data is says nothing then.
fn run(bench: &Bench, commands: u64, honest: bool) -> Result<Tally> {
    let mut queue = bench.nvme.queue(QueueOptions { entries: Some(128), ..QueueOptions::default() })?;
    let (mut tally, mut began) = (Tally::default(), Instant::now());
    // By tag: the block of a command in flight. A second completion of a tag finds nothing here.
    let mut open: BTreeMap<u64, u64> = BTreeMap::new();
    let (mut next, mut ended) = (0, 0);
    while ended < commands {
        while open.len() < DEPTH && next < commands {
            let lba = next % 1024 * 8;
            let mut req = bench.read(lba, 4096)?;
            req.tag = next;
            match queue.submit(req) {
                Ok(()) => {
                    open.insert(next, lba);
                    next += 1;
                }
                Err(rejected) if matches!(rejected.why, Reject::Full | Reject::Resetting) => break,
                Err(rejected) => bail!("command {next} was refused: {} ({:?})", rejected.why, queue.state()),
            }
        }
        queue.ring();
        let mut wrong = None;
        let done = queue.poll(DEPTH, &mut |c| {
            let Some(lba) = open.remove(&c.tag) else {
                wrong = Some(format!("command {} ended twice", c.tag));
                return;
            };
            match c.status {
                Status::Ok => {
                    tally.ok += 1;
                    let same = |b: &Buf| b.len() == 4096 && holds(b, lba, bench.ns.block_size, 77);
                    if honest && !c.data.bufs().iter().all(same) {
                        wrong = Some(format!("block {lba} came back changed, and the status is good"));
                    }
                }
                Status::Device(_) => tally.failed += 1,
                Status::Aborted => tally.aborted += 1,
                Status::Gone => wrong = Some("gone".to_owned()),
            }
        });
        if let Some(wrong) = wrong {
            bail!("{wrong}, after {ended}");
        }
        ended += done as u64;
        if done > 0 {
            began = Instant::now();
        }
        ensure!(began.elapsed() < PATIENCE, "no end of {} commands ({:?})", open.len(), queue.state());
        std::thread::yield_now();
    }
    // An identifier stays taken while an abort of its command may be under way; nothing else ends any more.
    while queue.in_flight() > 0 {
        let more = queue.poll(DEPTH, &mut |_| ());
        ensure!(more == 0, "{more} commands ended twice");
        ensure!(began.elapsed() < PATIENCE, "{} identifiers never came free", queue.in_flight());
        std::thread::yield_now();
    }
    Ok(tally)
}

/// Fills the disk with what `run` expects, over a controller that works.
fn pattern(path: &std::path::Path) -> Result<String> {
    std::fs::write(path, [])?;
    std::fs::File::options().write(true).open(path)?.set_len(8 << 20)?;
    let file = format!("file={}", path.display());
    let rig = in_process(&file)?;
    let bench = Bench::open(&rig, patient(), 4, 4096)?;
    let mut queue = bench.nvme.queue(QueueOptions::default())?;
    for i in 0..1024 {
        let done = wholebar_tests::nvme::run(&mut queue, bench.write(i * 8, 4096, 77)?)?;
        ensure!(done.status == Status::Ok, "writing the pattern: {:?}", done.status);
    }
    Ok(file)
}

#[test]
fn each_of_thousands_of_commands_ends_once() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = pattern(&dir.path().join("disk"))?;
    // Those that need no reset may be frequent; the others cost a timeout or a reset each.
    let often = "corrupt:1/10+dma:1/10+delay:1/700";
    let seldom = "drop:1/700+phase:1/1400+head:1/700+fatal:1/1400";
    let lies = "dup:1/700+id:1/700+drop:1/700";
    let mut total = Tally::default();
    for (seed, faults) in [(1, often), (2, seldom), (3, lies)] {
        let rig = in_process(&format!("{file},faults={faults},seed={seed},delay=1"))?;
        let bench = Bench::open(&rig, hasty(), 2 * DEPTH as u32, 4096)?;
        let tally = run(&bench, 12_000, faults != lies).with_context(|| format!("faults={faults},seed={seed}"))?;
        println!("faults={faults},seed={seed}: {tally:?}");
        ensure!(
            bench.pool.available() == bench.pool.capacity() && bench.nvme.quarantined() == 0,
            "a buffer is missing"
        );
        total.ok += tally.ok;
        total.failed += tally.failed;
        total.aborted += tally.aborted;
    }
    ensure!(total.ok + total.failed + total.aborted == 36_000, "{total:?}");
    ensure!(total.failed > 1_000 && total.aborted > 10, "too few faults to tell anything: {total:?}");
    Ok(())
}

#[test]
fn each_kind_of_fault_alone_and_over_a_socket() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = pattern(&dir.path().join("disk"))?;
    for kind in ["drop", "dup", "id", "phase", "head", "delay", "corrupt", "dma", "fatal"] {
        let params = format!("{file},faults={kind}:1/500,seed=11,delay=1");
        for rig in [in_process(&params)?, vfio_user(&params)?] {
            let bench = Bench::open(&rig, hasty(), 2 * DEPTH as u32, 4096)?;
            let tally =
                run(&bench, 2_000, !["dup", "id"].contains(&kind)).with_context(|| format!("{} {kind}", rig.name))?;
            ensure!(tally.ok + tally.failed + tally.aborted == 2_000, "{kind}: {tally:?}");
            ensure!(bench.pool.available() == bench.pool.capacity(), "{kind}: a buffer is missing");
        }
    }
    Ok(())
}

/// From when it is gone, every call says so; commands in flight end as gone.
#[test]
fn a_controller_that_vanishes_is_gone() -> Result<()> {
    for rig in [in_process("size=16M,faults=vanish:@1000")?, vfio_user("size=16M,faults=vanish:@1000")?] {
        let bench = Bench::open(&rig, patient(), 2 * DEPTH as u32, 4096)?;
        let mut queue = bench.nvme.queue(QueueOptions { entries: Some(64), ..QueueOptions::default() })?;
        let (began, mut open, mut submitted, mut gone) = (Instant::now(), 0u64, 0u64, 0u64);
        let refused = loop {
            match queue.submit(bench.read(0, 4096)?) {
                Ok(()) => (open, submitted) = (open + 1, submitted + 1),
                Err(rejected) if matches!(rejected.why, Reject::Full | Reject::Resetting) => {}
                Err(rejected) => break rejected.why,
            }
            queue.ring();
            queue.poll(DEPTH, &mut |c| {
                open -= 1;
                gone += u64::from(c.status == Status::Gone);
            });
            ensure!(began.elapsed() < PATIENCE, "{}: nobody noticed after {submitted} commands", rig.name);
        };
        ensure!(refused == Reject::Gone, "{}: {refused}", rig.name);
        while queue.poll(DEPTH, &mut |c| {
            open -= 1;
            gone += u64::from(c.status == Status::Gone);
        }) > 0
        {}
        ensure!(open == 0 && gone > 0, "{}: {open} commands never ended, {gone} ended as gone", rig.name);
        ensure!(queue.state() == QueueState::Gone, "{}: {:?}", rig.name, queue.state());
        let said = [
            bench.nvme.smart().err().map(|e| e.to_string()),
            bench.nvme.reset().err().map(|e| e.to_string()),
            bench.nvme.check().err().map(|e| e.to_string()),
        ];
        for said in said {
            ensure!(said.as_ref().is_some_and(|s| s.contains("gone")), "{}: {said:?}", rig.name);
        }
    }
    Ok(())
}

/// A controller that does not come out of a reset is an error within CAP.TO; or, where a reset of the function helps, it works again.
#[test]
fn a_controller_that_hangs_in_reset_is_an_error() -> Result<()> {
    let rig = in_process("size=16M,to=1,faults=hang:@1")?;
    match Nvme::open(rig.device.clone(), patient()) {
        Err(error) => println!("{error}"),
        Ok(_) => bail!("a controller that hangs was opened"),
    }
    // In ten seconds those that don't hang are over.
    let rig = in_process("size=16M,to=20,faults=hang:@2")?;
    let (began, bench) = (Instant::now(), Bench::open(&rig, patient(), 2, 4096)?);
    let mut queue = bench.nvme.queue(QueueOptions::default())?;
    bench.nvme.request_reset();
    while bench.nvme.check().is_ok() && queue.state() != QueueState::Running {
        queue.poll(1, &mut |_| ());
        ensure!(began.elapsed() < PATIENCE, "neither an error nor a recovery");
        std::thread::yield_now();
    }
    bench.nvme.check()?;
    let done = wholebar_tests::nvme::run(&mut queue, bench.read(0, 4096)?)?;
    ensure!(done.status == Status::Ok, "after the recovery: {:?}", done.status);
    Ok(())
}

/// One that does not stop is waited for as long as was asked for, and no longer.
#[test]
fn a_device_that_does_not_stop_is_waited_for_as_long_as_was_asked() -> Result<()> {
    // Far below the time that is usual. A machine that is busy adds to it: then once more.
    const ASKED: Duration = Duration::from_millis(20);
    const MUCH_LESS_THAN_USUAL: Duration = Duration::from_secs(4);
    let nvme = || -> Result<Core> {
        let rig = in_process("size=16M,to=1,faults=hang:@2")?;
        let nvme = Nvme::open(rig.device.clone(), Options { admin_timeout: ASKED, ..patient() })?;
        match nvme.shutdown() {
            Err(wholebar::nvme::Error::Core(error)) => Ok(error),
            other => bail!("{other:?}"),
        }
    };
    let virtio = || -> Result<Core> {
        let rig = on_thread("sim:virtio-blk,size=16M,faults=hang:@3")?;
        let options = virtio::Options { admin_timeout: ASKED, ..virtio::Options::default() };
        let disk = virtio::Blk::open(rig.device.clone(), &virtio::blk::BlkConfig::default(), options)?;
        match disk.shutdown() {
            Err(virtio::Error::Core(error)) => Ok(error),
            other => bail!("{other:?}"),
        }
    };
    let devices: [(&str, &dyn Fn() -> Result<Core>); 2] = [("nvme", &nvme), ("virtio", &virtio)];
    for (name, device) in devices {
        let began = Instant::now();
        loop {
            match device() {
                Ok(Core::NotReady { waited, .. }) if waited < MUCH_LESS_THAN_USUAL => break,
                Ok(Core::NotReady { .. }) => {}
                Ok(error) => bail!("{name}: {error}"),
                // With so little time, what opens a device may be too late, too.
                Err(error) => println!("{name}: {error:#}"),
            }
            ensure!(began.elapsed() < PATIENCE, "{name} is waited for longer than was asked");
        }
    }
    Ok(())
}

//! Checks of a disk that only read it: shapes and batches of reads against the same blocks read one by one, plans of BARs, deadlines, wake-ups, resets under load.

use crate::device::Reset;
use crate::storage::{self, PATIENCE, finish, request, run};
use crate::wakeup::{self, Sleeper};
use crate::{Found, Options, Runner, nvme, scratch};
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use wholebar::bar::MapPolicy;
use wholebar::block::{self, BlockQueue, Data, Disk, DiskConfig, Event, Namespace, Op, Reject, Status};
use wholebar::control_plane::DeviceEvent;
use wholebar::drivers::Mapping;
use wholebar::mem::{Arena, ArenaOptions, Buf, Pool};
use wholebar::pci::PciDevice;
use wholebar::reactor::Armed;
use wholebar::{OpenError, PageSize};

/// Blocks that are read one by one, and compared with.
const REFERENCE: u64 = 512;
/// More commands than a queue has room for.
const MOST: u32 = 2048;
/// Queues that are tried at most.
const QUEUES: u16 = 8;
/// Reads of a queue, for each size of batch.
const READS: usize = 200;
/// How long the driver may take to tell why something went wrong.
const TOLD: Duration = Duration::from_secs(10);
/// Resets under load.
const RESETS: u32 = 3;

/// A disk, its first namespace, and buffers.
pub struct Bench {
    pub disk: Box<dyn Disk>,
    pub ns: Namespace,
    pub pool: Pool,
}

impl Bench {
    /// Opens the disk, with at most `queues` queues, and `buffers` buffers of `size` bytes.
    pub fn open(
        device: &Arc<dyn PciDevice>,
        mapping: Mapping,
        queues: u16,
        (buffers, size): (u32, u32),
    ) -> Result<Self> {
        let disk = block::drivers().open(device.clone(), &DiskConfig { queues, entries: None }, mapping)?;
        Self::over(disk, (buffers, size))
    }

    /// Makes a rig of a disk that is open, with so many buffers of so many bytes.
    pub fn over(disk: Box<dyn Disk>, (buffers, size): (u32, u32)) -> Result<Self> {
        let ns = disk.namespaces().into_iter().next().context("it has no namespace that can be used")?;
        let page = PageSize::host().bytes();
        let each = u64::from(size).next_multiple_of(page);
        let arena = Arena::new(u64::from(buffers) * each + (1 << 20), ArenaOptions::default())?;
        disk.attach(arena.clone())?;
        let pool = Pool::new(arena, buffers, size, page as u32)?;
        Ok(Self { disk, ns, pool })
    }

    fn buf(&self, len: u64) -> Result<Buf> {
        self.pool.get_len(u32::try_from(len)?).context("no buffer left")
    }

    fn read(&self, queue: &mut dyn BlockQueue, lba: u64, data: Data) -> Result<Data> {
        let done = run(queue, request(self.ns.nsid, Op::Read { lba }, data))?;
        self.good(done.status, "a read").map(|()| done.data)
    }

    /// What a status other than success is, in the device's own words where it has some.
    pub fn good(&self, status: Status, what: &str) -> Result<()> {
        match status {
            Status::Ok => Ok(()),
            Status::Device(code) => bail!("{what}: {}", self.disk.status_text(code)),
            Status::Aborted => bail!("{what} was given up: it took too long, or the device was reset"),
            Status::Gone => bail!("{what}: the device is gone"),
        }
    }

    /// Does something with the disk during which its driver must not have to reset it.
    pub fn with(self, body: impl FnOnce(&Self) -> Result<Found>) -> Result<Found> {
        let found = self.with_resets(body);
        found.and_then(|(found, told)| told.map_or(Ok(found), |why| bail!("the driver tells: {why}")))
    }

    /// Does something with the disk; returns why it was reset meanwhile, or has ended. An error has that, too.
    fn with_resets(self, body: impl FnOnce(&Self) -> Result<Found>) -> Result<(Found, Option<String>)> {
        let told = || {
            std::iter::from_fn(|| self.disk.event()).find_map(|event| match event {
                Event::Device(event) => reset_or_ended(event),
                _ => None,
            })
        };
        explained(body(&self), told)
    }
}

/// Why a device was reset, or has ended.
pub fn reset_or_ended(event: DeviceEvent) -> Option<String> {
    match event {
        DeviceEvent::Reset { why, .. } | DeviceEvent::Ended { why } => Some(why),
        _ => None,
    }
}

/// Adds to an error what the driver tells, and to what was found what it told meanwhile.
pub fn explained(found: Result<Found>, mut told: impl FnMut() -> Option<String>) -> Result<(Found, Option<String>)> {
    match found {
        Ok(found) => Ok((found, told())),
        Err(error) => {
            // A reset tells of itself when it has ended.
            let (began, mut why) = (Instant::now(), told());
            while why.is_none() && began.elapsed() < TOLD {
                std::thread::sleep(Duration::from_millis(10));
                why = told();
            }
            Err(match why {
                Some(why) => error.context(format!("the driver tells: {why}")),
                None => error,
            })
        }
    }
}

/// Tries a disk. Returns whether the device is one.
pub fn disk(runner: &mut Runner<'_>, device: &Arc<dyn PciDevice>, options: &Options) -> bool {
    let drivers = block::drivers();
    if let Err(OpenError::NoDriver { .. }) = drivers.open(device.clone(), &DiskConfig::default(), Mapping::default()) {
        return false;
    }
    let mut known = None;
    let open = |queues, buffers| Bench::open(device, Mapping::default(), queues, buffers);
    let first = |bench: &Bench| {
        let (ns, driver) = (bench.ns, bench.disk.driver());
        ensure!(ns.block_size <= bench.pool.size(), "blocks of {} bytes are larger than this knows", ns.block_size);
        let blocks = reference(bench)?;
        let first = &blocks[..ns.block_size as usize];
        // Which block is which shows only in blocks that differ.
        let same = blocks.chunks(ns.block_size as usize).all(|block| block == first);
        let apart = if same { "; those read are all the same, so that exchanged ones do not show" } else { "" };
        known = Some(blocks);
        Ok(Found::Good(format!("{driver}; {} blocks of {} bytes{apart}", ns.blocks, ns.block_size)))
    };
    let opens = runner.check("disk", "opens, and reads block by block", || open(1, (2, 1 << 16))?.with(first));
    let Some(known) = known.filter(|_| opens) else { return true };
    runner.check("disk", "reads of every shape", || open(1, (8, 4 << 20))?.with(|bench| shapes(bench, &known)));
    runner.check("disk", "what cannot be done is refused", || open(1, (4, 1 << 16))?.with(refused));
    runner.check("disk", "reads under each plan of its BARs", || plans(device, &known));
    runner.check("disk", "batches on every queue at once", || {
        open(QUEUES, (u32::from(QUEUES) * 64, 1 << 16))?.with(|bench| queues(bench, &known))
    });
    runner.check("disk", "a full queue says so", || full(device));
    runner.check("disk", "deadlines that have passed", || {
        open(1, (32, 1 << 16))?.with_resets(deadlines).map(|(found, _)| found)
    });
    runner.check("disk", "wake-ups", || open(1, (2, 1 << 16))?.with(wakes));
    for (name, reset) in [
        ("resets of the controller under load", Reset::Controller),
        ("resets of the function under load", Reset::Function),
        ("resets of the slot under load", Reset::Slot),
    ] {
        runner.check("disk", name, || {
            let resets = |bench: &Bench| resets(bench, &known, || reset.of(device));
            open(1, (64, 1 << 16))?.with_resets(resets).map(|(found, _)| found)
        });
    }
    nvme::nvme(runner, device);
    if let Some(blocks) = &options.scratch {
        scratch::scratch(runner, device, blocks);
    }
    true
}

/// The first blocks, each by a read of its own.
pub fn reference(bench: &Bench) -> Result<Vec<u8>> {
    let (mut queue, block) = (bench.disk.queue()?, u64::from(bench.ns.block_size));
    let mut bytes = Vec::new();
    for lba in 0..bench.ns.blocks.min(REFERENCE) {
        let data = bench.read(queue.as_mut(), lba, Data::One(bench.buf(block)?))?;
        bytes.extend(data.bufs().iter().flat_map(|buf| buf.bytes()));
    }
    ensure!(!bytes.is_empty(), "the namespace has no blocks");
    Ok(bytes)
}

/// Compares what was read from block `lba` on with what is known to be there.
fn compare(data: &Data, lba: u64, block: u32, known: &[u8]) -> Result<()> {
    let mut at = usize::try_from(lba * u64::from(block))?;
    for bytes in data.bufs().iter().map(Buf::bytes) {
        let there = known.get(at..at + bytes.len()).context("a read past what is known")?;
        ensure!(bytes == there, "a read from block {lba} on has something else than the same blocks read one by one");
        at += bytes.len();
    }
    Ok(())
}

pub fn shapes(bench: &Bench, known: &[u8]) -> Result<Found> {
    // Of devices: a host's may be larger.
    let page = 4096;
    let (block, mut queue) = (u64::from(bench.ns.block_size), bench.disk.queue()?);
    let all = known.len() as u64 / block;
    let limit = u64::from(bench.ns.max_command) / block;
    let (mut tried, mut refused) = (0, 0);
    let mut try_one = |lba: u64, data: Data| -> Result<()> {
        let (len, bufs) = (data.len(), data.bufs().len());
        match queue.submit(request(bench.ns.nsid, Op::Read { lba }, data)) {
            // A shape that the driver cannot describe to this device.
            Err(rejected) if matches!(rejected.why, Reject::Invalid(_)) && bufs > 1 => refused += 1,
            Err(rejected) => bail!("{len} bytes from block {lba} on: {}", rejected.why),
            Ok(()) => {
                let what = || format!("{len} bytes from block {lba} on, in {bufs} buffers");
                let done = finish(queue.as_mut())?;
                bench.good(done.status, "a read").with_context(what)?;
                compare(&done.data, lba, bench.ns.block_size, known).with_context(what)?;
                tried += 1;
            }
        }
        Ok(())
    };
    let lengths = [1, 2, 3, 7, 8, 9, 16, 31, 64, 65, 128, 257, limit, limit + 1, all];
    for blocks in lengths.into_iter().filter(|n| (1..=all).contains(n) && n * block <= u64::from(bench.pool.size())) {
        for lba in [0, 1, 5, all - blocks].into_iter().filter(|lba| lba + blocks <= all) {
            try_one(lba, Data::One(bench.buf(blocks * block)?))?;
            // Data that does not begin where its buffer does, nor at a page; and that ends short of one, at it, and behind it.
            for inside in [4, 64, 512, page - 512, page - 64, page - 4] {
                let mut buf = bench.pool.get().context("no buffer left")?;
                let fits = blocks * block + u64::from(inside) <= u64::from(bench.pool.size());
                if fits && buf.reserve(inside) {
                    buf.set_len(u32::try_from(blocks * block)?);
                    try_one(lba, Data::One(buf))?;
                }
            }
            if blocks >= 2 {
                let rest = (blocks - 1) * block;
                try_one(lba, Data::Many(Box::new([bench.buf(block)?, bench.buf(rest)?])))?;
                let pieces = [bench.buf(block / 2)?, bench.buf(rest)?, bench.buf(block / 2)?];
                try_one(lba, Data::Many(Box::new(pieces)))?;
            }
        }
    }
    let refused =
        if refused > 0 { format!("; {refused} of several buffers the driver refuses") } else { String::new() };
    Ok(Found::Good(format!("{tried} shapes{refused}")))
}

fn refused(bench: &Bench) -> Result<Found> {
    let (ns, block, mut queue) = (bench.ns, u64::from(bench.ns.block_size), bench.disk.queue()?);
    let read = |lba, data| request(ns.nsid, Op::Read { lba }, data);
    for (what, req) in [
        ("a block past the end", read(ns.blocks, Data::One(bench.buf(block)?))),
        ("a block far past the end", read(u64::MAX, Data::One(bench.buf(block)?))),
        ("half a block", read(0, Data::One(bench.buf(block / 2)?))),
        ("no data", read(0, Data::None)),
    ] {
        match queue.submit(req) {
            Err(rejected) => ensure!(matches!(rejected.why, Reject::Invalid(_)), "{what}: {}", rejected.why),
            Ok(()) => bail!("{what}: it was taken"),
        }
    }
    bench.read(queue.as_mut(), 0, Data::One(bench.buf(block)?))?;
    Ok(Found::Good("4 requests, each with its reason".to_owned()))
}

fn plans(device: &Arc<dyn PciDevice>, known: &[u8]) -> Result<Found> {
    let mut seen = Vec::new();
    let page = Some(PageSize::K64.max(device.page_size()));
    for (name, policy, page) in [
        ("by itself", MapPolicy::Auto, None),
        ("carved for 64 KiB", MapPolicy::Carved, page),
        ("trapped", MapPolicy::Trapped, None),
    ] {
        let bench = Bench::open(device, Mapping { policy, page }, 1, (64, 1 << 16)).context(name)?;
        let mut queue = bench.disk.queue()?;
        batches(&bench, queue.as_mut(), known, 8, 64).context(name)?;
        if let Some(rung) = queue.doorbells() {
            ensure!(policy != MapPolicy::Trapped || rung.direct == 0, "{name}: {} doorbells were stores", rung.direct);
            seen.push(format!("{name} {} stores and {} system calls", rung.direct, rung.trapped));
        }
    }
    Ok(Found::Good(seen.join("; ")))
}

/// `count` reads of a block each, in batches of `batch`, compared with what is known.
fn batches(bench: &Bench, queue: &mut dyn BlockQueue, known: &[u8], batch: usize, count: usize) -> Result<()> {
    let block = bench.ns.block_size;
    let all = known.len() as u64 / u64::from(block);
    let (mut next, mut back, mut last) = (0u64, 0, Instant::now());
    while back < count {
        let flying = queue.in_flight();
        if flying == 0 {
            for _ in 0..batch.min(count - back) {
                // A stride that meets every block, whatever their number.
                let lba = next * 7 % all;
                let mut req = request(bench.ns.nsid, Op::Read { lba }, Data::One(bench.buf(block.into())?));
                req.tag = lba;
                match queue.submit(req) {
                    Ok(()) => next += 1,
                    Err(rejected) if rejected.why == Reject::Full => break,
                    Err(rejected) => bail!("refused: {}", rejected.why),
                }
            }
            queue.ring();
        }
        let mut failed = None;
        let found = queue.poll(batch, &mut |done| {
            let right = bench.good(done.status, "a read");
            let right = right.and_then(|()| compare(&done.data, done.tag, block, known));
            failed = failed.take().or(right.err());
        });
        if let Some(failed) = failed {
            return Err(failed);
        }
        if found > 0 {
            (back, last) = (back + found, Instant::now());
        }
        ensure!(last.elapsed() < PATIENCE, "no completion: the queue is {:?}", queue.state());
        std::thread::yield_now();
    }
    ensure!(queue.in_flight() == 0, "{} commands are in flight, and none was submitted", queue.in_flight());
    Ok(())
}

fn queues(bench: &Bench, known: &[u8]) -> Result<Found> {
    let count = bench.disk.queues().min(QUEUES);
    let made = (0..count).map(|_| bench.disk.queue()).collect::<Result<Vec<_>, _>>()?;
    std::thread::scope(|scope| {
        let each = made.into_iter().map(|mut queue| {
            std::thread::Builder::new().spawn_scoped(scope, move || -> Result<()> {
                for batch in [1, 4, 32] {
                    batches(bench, queue.as_mut(), known, batch, READS)
                        .with_context(|| format!("batches of {batch}"))?;
                }
                Ok(())
            })
        });
        let each = each.collect::<Result<Vec<_>, _>>().context("starting a thread")?;
        each.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
    })?;
    ensure!(bench.pool.available() == bench.pool.capacity(), "a buffer is missing");
    Ok(Found::Good(format!("{count} queues, {} reads each, in batches of 1, 4 and 32", 3 * READS)))
}

fn full(device: &Arc<dyn PciDevice>) -> Result<Found> {
    let block = {
        let probe = Bench::open(device, Mapping::default(), 1, (2, 1 << 16))?;
        probe.ns.block_size
    };
    Bench::open(device, Mapping::default(), 1, (MOST, block))?.with(fill_up)
}

fn fill_up(bench: &Bench) -> Result<Found> {
    let block = bench.ns.block_size;
    let mut queue = bench.disk.queue()?;
    let mut taken = 0;
    loop {
        let Some(buf) = bench.pool.get_len(block) else { break };
        match queue.submit(request(bench.ns.nsid, Op::Read { lba: 0 }, Data::One(buf))) {
            Ok(()) => taken += 1,
            Err(rejected) => {
                ensure!(rejected.why == Reject::Full, "after {taken} commands: {}", rejected.why);
                break;
            }
        }
    }
    ensure!(taken > 0 && queue.in_flight() == taken, "{} of {taken} commands are in flight", queue.in_flight());
    queue.ring();
    let (mut failed, began) = (None, Instant::now());
    while queue.in_flight() > 0 {
        queue.poll(64, &mut |done| failed = failed.take().or(bench.good(done.status, "a read").err()));
        ensure!(began.elapsed() < PATIENCE, "no completion: the queue is {:?}", queue.state());
        std::thread::yield_now();
    }
    match failed {
        Some(failed) => Err(failed),
        None => Ok(Found::Good(format!("{taken} commands at once, each completed"))),
    }
}

/// Commands whose time is over when they are posted: each ends, one way or the other, and the queue goes on.
fn deadlines(bench: &Bench) -> Result<Found> {
    let (block, mut queue) = (u64::from(bench.ns.block_size), bench.disk.queue()?);
    for _ in 0..16 {
        let mut req = request(bench.ns.nsid, Op::Read { lba: 0 }, Data::One(bench.buf(block)?));
        req.deadline = Some(Instant::now());
        if let Err(rejected) = queue.submit(req) {
            bail!("refused: {}", rejected.why);
        }
    }
    queue.ring();
    let (mut done, mut given_up, mut other, began) = (0, 0, None, Instant::now());
    while done + given_up < 16 {
        queue.poll(16, &mut |completion| match completion.status {
            Status::Ok => done += 1,
            Status::Aborted => given_up += 1,
            status => {
                given_up += 1;
                other = Some(status);
            }
        });
        ensure!(began.elapsed() < PATIENCE, "no completion: the queue is {:?}", queue.state());
        std::thread::yield_now();
    }
    // How a device calls a command that it aborted is its own affair: that the queue goes on is what counts.
    let other = other.map_or_else(String::new, |status| format!(" ({status:?})"));
    storage::wait_while(|| {
        queue.poll(1, &mut |_| ());
        queue.state() != block::QueueState::Running
    })?;
    bench.read(queue.as_mut(), 0, Data::One(bench.buf(block)?)).context("after them")?;
    Ok(Found::Good(format!("{done} were done all the same, {given_up} given up{other}; the queue goes on")))
}

/// A queue, of which one read is under way.
struct Reader<'a>(&'a mut dyn BlockQueue, &'a Bench);

impl Sleeper for Reader<'_> {
    fn poll(&mut self) -> Result<bool> {
        let mut status = Status::Ok;
        let came = self.0.poll(1, &mut |done| status = done.status);
        self.1.good(status, "a read").map(|()| came > 0)
    }

    fn arm(&mut self) -> Armed {
        self.0.arm()
    }

    fn disarm(&mut self) {
        self.0.disarm();
    }
}

fn wakes(bench: &Bench) -> Result<Found> {
    const TIMES: u32 = 300;
    let mut queue = bench.disk.interrupt_queue()?;
    let Some(fd) = queue.wakeup() else { return Ok(Found::Nothing("no interrupt is there for a queue".to_owned())) };
    let mut slept = 0;
    for i in 0..TIMES {
        let lba = u64::from(i) % bench.ns.blocks;
        let buf = bench.buf(bench.ns.block_size.into())?;
        if let Err(rejected) = queue.submit(request(bench.ns.nsid, Op::Read { lba }, Data::One(buf))) {
            bail!("refused: {}", rejected.why);
        }
        queue.ring();
        let woken = wakeup::wait(&mut Reader(queue.as_mut(), bench), &fd).with_context(|| format!("read {i}"))?;
        slept += u32::from(woken);
    }
    Ok(Found::Good(format!("{TIMES} reads, {slept} of them waited for asleep")))
}

/// Reads on a thread while the controller is reset, each time after `before`, which tells why there is no way to do what it does.
fn resets(bench: &Bench, known: &[u8], before: impl Fn() -> Result<Option<String>>) -> Result<Found> {
    let mut queue = bench.disk.queue()?;
    let (stop, good, aborted) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let nothing = std::thread::scope(|scope| -> Result<Option<String>> {
        let reader = std::thread::Builder::new().spawn_scoped(scope, || -> Result<()> {
            let block = bench.ns.block_size;
            while !stop.load(Ordering::Relaxed) || queue.in_flight() > 0 {
                while queue.in_flight() < 16 && !stop.load(Ordering::Relaxed) {
                    let buf = bench.buf(block.into())?;
                    match queue.submit(request(bench.ns.nsid, Op::Read { lba: 0 }, Data::One(buf))) {
                        Ok(()) => {}
                        Err(rejected) if matches!(rejected.why, Reject::Full | Reject::Resetting) => break,
                        Err(rejected) => bail!("refused: {}", rejected.why),
                    }
                }
                queue.ring();
                let mut failed = None;
                queue.poll(16, &mut |done| match done.status {
                    Status::Aborted => drop(aborted.fetch_add(1, Ordering::Relaxed)),
                    status => {
                        good.fetch_add(1, Ordering::Relaxed);
                        let right = bench.good(status, "a read");
                        let right = right.and_then(|()| compare(&done.data, 0, block, known));
                        failed = failed.take().or(right.err());
                    }
                });
                if let Some(failed) = failed {
                    return Err(failed);
                }
                std::thread::yield_now();
            }
            Ok(())
        });
        let reader = reader.context("starting a thread")?;
        let reset = || -> Result<Option<String>> {
            for round in 0..RESETS {
                // Something is done before each, and after the last.
                let seen = good.load(Ordering::Relaxed);
                storage::wait_while(|| good.load(Ordering::Relaxed) == seen && !reader.is_finished())?;
                if let Some(nothing) = before()? {
                    return Ok(Some(nothing));
                }
                bench.disk.reset().with_context(|| format!("reset {}", round + 1))?;
            }
            let seen = good.load(Ordering::Relaxed);
            storage::wait_while(|| good.load(Ordering::Relaxed) == seen && !reader.is_finished())?;
            Ok(None)
        };
        let reset = reset();
        stop.store(true, Ordering::Relaxed);
        reader.join().map_err(|_| anyhow!("a thread panicked"))??;
        reset
    })?;
    drop(queue);
    ensure!(bench.pool.available() == bench.pool.capacity(), "a buffer is missing");
    if let Some(nothing) = nothing {
        return Ok(Found::Nothing(nothing));
    }
    let (good, aborted) = (good.into_inner(), aborted.into_inner());
    Ok(Found::Good(format!("{RESETS} resets; {good} reads were done, {aborted} aborted, none lost")))
}

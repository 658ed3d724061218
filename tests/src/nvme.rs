//! Bodies for NVMe controllers: what must hold on a model, over vfio-user, and on hardware.
//!
//! They write to the device.

use crate::Rig;
use crate::storage::{self, PATIENCE, finish, ok, round_trips};
pub use crate::storage::{fill, holds, request, run};
use anyhow::{Context, Result, bail, ensure};
use std::time::Instant;
use wholebar::block::{BlockQueue, Data, Disk, Op, Reject, Request, Status};
use wholebar::mem::{Arena, ArenaOptions, Pool};
use wholebar::nvme::{
    BlockRange, DatasetAttributes, Namespace, Nvme, Options, Queue, QueueOptions, RawCommand, ShadowDoorbells, Transfer,
};

/// Options of who is in no hurry: nothing is late on a machine that is merely busy.
pub fn patient() -> Options {
    Options { timeout: PATIENCE, admin_timeout: PATIENCE, stop_timeout: PATIENCE, ..Options::default() }
}

/// A controller, its first usable namespace, and buffers for it.
pub struct Bench {
    /// The controller.
    pub nvme: Nvme,
    /// The namespace.
    pub ns: Namespace,
    /// The buffers.
    pub pool: Pool,
}

impl Bench {
    /// Opens the controller of `rig`, with `buffers` buffers of `size` bytes.
    ///
    /// # Errors
    /// The driver's own, where the device does not come up or an operation fails.
    pub fn open(rig: &Rig, options: Options, buffers: u32, size: u32) -> Result<Self> {
        let nvme = Nvme::open(rig.device.clone(), options).with_context(|| format!("opening it {}", rig.name))?;
        let ns = nvme.namespaces().iter().find(|n| n.unsupported.is_none()).context("no usable namespace")?.clone();
        // A pool puts each buffer on a page of the controller's, which may be as large as the host's.
        let each = u64::from(size).next_multiple_of(nvme.page());
        let arena = Arena::new(u64::from(buffers) * each + (1 << 20), ArenaOptions::default())?;
        nvme.attach(arena.clone())?;
        let pool = Pool::new(arena, buffers, size, nvme.page() as u32)?;
        Ok(Self { nvme, ns, pool })
    }

    /// A request with a buffer of `len` bytes that holds block pattern `seed` from `lba` on.
    ///
    /// # Errors
    /// Where no buffer is left.
    pub fn write(&self, lba: u64, len: u32, seed: u64) -> Result<Request> {
        let mut buf = self.pool.get_len(len).context("no buffer left")?;
        fill(&mut buf, lba, self.ns.block_size, seed);
        Ok(request(self.ns.nsid, Op::Write { lba }, Data::One(buf)))
    }

    /// A request that reads `len` bytes from `lba` on.
    ///
    /// # Errors
    /// Where no buffer is left.
    pub fn read(&self, lba: u64, len: u32) -> Result<Request> {
        let buf = self.pool.get_len(len).context("no buffer left")?;
        Ok(request(self.ns.nsid, Op::Read { lba }, Data::One(buf)))
    }
}

/// Writes, reads back and compares, in sizes from one block to more than one command can take.
///
/// # Errors
/// What went wrong.
pub fn data_comes_back(rig: &Rig, options: Options) -> Result<()> {
    let size = 2 << 20;
    let bench = Bench::open(rig, options, 4, size)?;
    let mut queue = bench.nvme.queue(QueueOptions::default())?;
    let place = (bench.ns.nsid, bench.ns.block_size);
    round_trips(&mut queue, &bench.pool, place, 0..bench.ns.blocks).with_context(|| rig.name)?;
    ensure!(queue.in_flight() == 0 && bench.pool.available() == bench.pool.capacity(), "a buffer is missing");
    Ok(())
}

/// Every command that is not a plain read or write.
///
/// # Errors
/// What went wrong.
pub fn other_commands(rig: &Rig, options: Options) -> Result<()> {
    let bench = Bench::open(rig, options, 4, 64 << 10)?;
    let (ns, mut queue) = (&bench.ns, bench.nvme.queue(QueueOptions::default())?);
    let limits = bench.nvme.identify();
    let len = 8 * ns.block_size;
    ok(run(&mut queue, bench.write(64, 8 * ns.block_size, 5)?)?, "write")?;
    ok(run(&mut queue, request(ns.nsid, Op::Flush, Data::None))?, "flush")?;
    if limits.has_compare() {
        let compare = |seed| -> Result<Request> {
            let Request { data, .. } = bench.write(64, len, seed)?;
            Ok(request(ns.nsid, Op::Compare { lba: 64 }, data))
        };
        ok(run(&mut queue, compare(5)?)?, "compare with what is there")?;
        let differs = run(&mut queue, compare(6)?)?.status;
        let Status::Device(code) = differs else { bail!("compare with something else: {differs:?}") };
        let name = wholebar::nvme::StatusCode(code).name();
        ensure!(name == Some("Compare Failure"), "compare with something else: {name:?}");
    }
    if limits.has_verify() {
        ok(run(&mut queue, request(ns.nsid, Op::Verify { lba: 64, blocks: 8 }, Data::None))?, "verify")?;
    }
    if limits.has_dataset_management() {
        ok(run(&mut queue, request(ns.nsid, Op::Deallocate { lba: 68, blocks: 4 }, Data::None))?, "deallocate")?;
    }
    if limits.has_write_zeroes() {
        ok(run(&mut queue, request(ns.nsid, Op::WriteZeroes { lba: 64, blocks: 4 }, Data::None))?, "write zeroes")?;
        let data = ok(run(&mut queue, bench.read(64, 4 * ns.block_size)?)?, "read")?;
        ensure!(data.bufs().iter().all(|b| b.bytes().iter().all(|b| *b == 0)), "written zeroes are not zero");
    }
    ranges_and_raw_commands(&bench, &mut queue)?;
    if limits.has_namespace_management() {
        detached_and_attached(&bench, &mut queue)?;
    }
    // What cannot be done is refused before the device sees it, or by its status.
    for (what, req) in [
        ("a block past the end", bench.read(ns.blocks, ns.block_size)?),
        ("a namespace that is not there", Request { nsid: 4242, ..bench.read(0, ns.block_size)? }),
        ("half a block", bench.read(0, ns.block_size / 2)?),
        ("no data", request(ns.nsid, Op::Read { lba: 0 }, Data::None)),
    ] {
        match queue.submit(req) {
            Err(rejected) => ensure!(matches!(rejected.why, Reject::Invalid(_)), "{what}: {}", rejected.why),
            Ok(()) => bail!("{what}: it was taken"),
        }
    }
    Ok(())
}

/// A namespace that goes away and comes back under a queue: its commands end by name meanwhile.
fn detached_and_attached(bench: &Bench, queue: &mut Queue) -> Result<()> {
    let (ns, controller) = (&bench.ns, bench.nvme.identify().id);
    bench.nvme.detach_namespace(ns.nsid, &[controller])?;
    ensure!(bench.nvme.namespaces().iter().all(|n| n.nsid != ns.nsid), "a detached namespace is still listed");
    match queue.submit(bench.read(0, ns.block_size)?) {
        Err(rejected) => ensure!(matches!(rejected.why, Reject::Invalid(_)), "detached: {}", rejected.why),
        Ok(()) => {
            let Status::Device(code) = finish(queue)?.status else { bail!("a detached namespace was read") };
            let name = wholebar::nvme::StatusCode(code).name();
            // NVM Express Base 2.0, 3.2.1.4.
            ensure!(
                matches!(name, Some("Invalid Field in Command" | "Invalid Namespace or Format")),
                "detached: {name:?}"
            );
        }
    }
    bench.nvme.attach_namespace(ns.nsid, &[controller])?;
    ok(run(queue, bench.read(0, ns.block_size)?)?, "read of a namespace that was attached again")?;
    Ok(())
}

/// Commands of many ranges, and some that the program makes itself.
fn ranges_and_raw_commands(bench: &Bench, queue: &mut Queue) -> Result<()> {
    let (ns, limits) = (&bench.ns, bench.nvme.identify());
    let ranges = |ranges: &[(u64, u32)]| -> Vec<BlockRange> {
        ranges.iter().map(|(lba, blocks)| BlockRange { lba: *lba, blocks: *blocks }).collect()
    };
    // QEMU offers Copy, but no namespace of a controller's own can have any: its limits are 0 there.
    if limits.has_copy() && ns.copy.ranges >= 2 && ns.copy.range_blocks >= 2 && ns.copy.blocks >= 4 {
        ok(run(queue, bench.write(64, 8 * ns.block_size, 5)?)?, "write")?;
        let (first, last) = (bench.read(64, 2 * ns.block_size)?, bench.read(70, 2 * ns.block_size)?);
        let want = [first, last].map(|read| run(queue, read).and_then(|done| ok(done, "read")));
        if let Err(why) = queue.submit_copy(1, ns.nsid, 200, &ranges(&[(64, 2), (70, 2)]), None) {
            bail!("copy: {why}");
        }
        ok(finish(queue)?, "copy")?;
        for (lba, want) in [200, 202].into_iter().zip(want) {
            let copied = ok(run(queue, bench.read(lba, 2 * ns.block_size)?)?, "read")?;
            ensure!(copied.bufs()[0].bytes() == want?.bufs()[0].bytes(), "a copy is not what it is of");
        }
    }
    if limits.has_dataset_management() {
        let attributes = DatasetAttributes { deallocate: true, ..DatasetAttributes::default() };
        let holes = ranges(&[(64, 1), (66, 1), (68, 4)]);
        if let Err(why) = queue.submit_dataset_management(1, ns.nsid, attributes, &holes, None) {
            bail!("deallocate ranges: {why}");
        }
        ok(finish(queue)?, "deallocate ranges")?;
    }
    // A command of the program's own, longer than it says: a read of 8 blocks with data for one.
    let read = RawCommand { opcode: 0x02, nsid: ns.nsid, cdw10: 64, cdw12: 7, ..RawCommand::default() };
    let mut data = vec![0; ns.block_size as usize];
    let done = queue.execute(&read, Transfer::Read(&mut data), None)?;
    ensure!(done.status.is_success(), "a command of the program's own: {}", done.status);
    let same = ok(run(queue, bench.read(64, ns.block_size)?)?, "read")?;
    ensure!(same.bufs()[0].bytes() == data, "a command of the program's own read something else");
    let identify = RawCommand { opcode: 0x06, cdw10: 1, ..RawCommand::default() };
    let mut data = vec![0; 4096];
    let done = bench.nvme.admin_command(&identify, Transfer::Read(&mut data), None)?;
    ensure!(done.status.is_success() && data[4..24].starts_with(limits.serial.as_bytes()), "Identify: {}", done.status);
    Ok(())
}

/// A batch costs one doorbell for all its commands; and a full queue says so and gives the request back.
///
/// # Errors
/// What went wrong.
pub fn one_doorbell_a_batch(rig: &Rig, options: Options) -> Result<()> {
    const BATCH: u32 = 32;
    const ROUNDS: u64 = 50;
    // Registers are counted: no shadows take their place.
    let options = Options { shadow_doorbells: ShadowDoorbells::Never, ..options };
    let bench = Bench::open(rig, options, 64, 4096)?;
    let mut queue = bench.nvme.queue(QueueOptions { entries: Some(64), ..Default::default() })?;
    let before = queue.doorbells();
    // A batch of submissions costs a doorbell, and so does a poll that found completions.
    let mut found = 0;
    for _ in 0..ROUNDS {
        for i in 0..BATCH {
            let req = bench.read(u64::from(i) * 8, 4096)?;
            ensure!(queue.submit(req).is_ok(), "a queue of 64 has room for {BATCH}");
        }
        queue.ring();
        let (began, mut done) = (Instant::now(), 0);
        while done < BATCH as usize {
            let mut failed = None;
            let n = queue.poll(64, &mut |c| {
                if c.status != Status::Ok {
                    failed = Some(c.status);
                }
            });
            (done, found) = (done + n, found + u64::from(n > 0));
            ensure!(failed.is_none(), "a read failed: {failed:?}");
            ensure!(began.elapsed() < PATIENCE, "no completions");
            std::thread::yield_now();
        }
    }
    let after = queue.doorbells();
    let rung = (after.direct + after.trapped) - (before.direct + before.trapped);
    ensure!(rung == ROUNDS + found, "{rung} doorbells in {ROUNDS} batches, whose completions took {found} polls");
    let mut taken = 0;
    while queue.submit(bench.read(0, 4096)?).is_ok() {
        taken += 1;
        ensure!(taken < 64, "a queue of 64 entries takes 63 commands");
    }
    ensure!(taken == 63, "a queue of 64 entries takes 63 commands, not {taken}");
    queue.ring();
    let began = Instant::now();
    while queue.in_flight() > 0 {
        queue.poll(64, &mut |_| ());
        ensure!(began.elapsed() < PATIENCE, "no completions");
        std::thread::yield_now();
    }
    Ok(())
}

/// Several threads write and verify on queues of their own while the controller is reset again and again.
///
/// # Errors
/// What went wrong.
pub fn data_survives_resets(rig: &Rig, options: Options, resets: u32) -> Result<()> {
    let bench = Bench::open(rig, options, 64, 4096)?;
    let ns = Disk::namespaces(&bench.nvme).into_iter().next().context("no usable namespace")?;
    storage::data_survives_resets(&bench.nvme, &ns, &bench.pool, 0, resets)
}

/// An asynchronous event arrives on the slow path, twice: it was re-armed.
///
/// # Errors
/// What went wrong.
pub fn events_come(rig: &Rig, options: Options) -> Result<()> {
    use wholebar::nvme::{Event, feature};
    let bench = Bench::open(rig, options, 1, 4096)?;
    let hot = bench.nvme.smart()?.temperature;
    for round in 0..2 {
        bench.nvme.set_feature(feature::TEMPERATURE_THRESHOLD, u32::from(hot) - 10, false)?;
        let began = Instant::now();
        loop {
            match bench.nvme.events().recv_timeout(PATIENCE) {
                Ok(Event::Driver(_)) => break,
                Ok(_) => ensure!(began.elapsed() < PATIENCE, "round {round}: no event"),
                Err(_) => bail!("round {round}: no event"),
            }
        }
        // Reading the log clears the event; the threshold back up clears its cause.
        bench.nvme.set_feature(feature::TEMPERATURE_THRESHOLD, u32::from(hot) + 10, false)?;
        bench.nvme.smart()?;
    }
    Ok(())
}

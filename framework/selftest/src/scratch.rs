//! Checks of a disk that write, in blocks that were given for it, whose content is written back in the end.

use crate::disk::Bench;
use crate::storage::{self, fill, holds, ok, request, run};
use crate::{Found, Runner, Scratch};
use anyhow::{Context, Result, ensure};
use std::ops::Range;
use std::sync::Arc;
use wholebar::block::{BlockQueue, Data, Op, Status};
use wholebar::drivers::Mapping;
use wholebar::mem::Buf;
use wholebar::pci::PciDevice;

/// How much of the blocks is used at most, in bytes.
const MOST: u64 = 8 << 20;
/// How much is copied at a time.
const COPIED: u32 = 128 << 10;
/// Resets under load.
const RESETS: u32 = 3;

/// Tries a disk by writing to it.
pub fn scratch(runner: &mut Runner<'_>, device: &Arc<dyn PciDevice>, scratch: &Scratch) {
    let mut saved = None;
    let kept = runner.check("scratch", "what the blocks hold is kept", || {
        let (bench, lbas) = opened(device, scratch, 4, COPIED)?;
        let bytes = copy_out(&bench, &lbas)?;
        let seen = format!("{} blocks from block {} on", lbas.end - lbas.start, lbas.start);
        saved = Some(bytes);
        Ok(Found::Good(seen))
    });
    let Some(saved) = saved.filter(|_| kept) else { return };
    runner.check("scratch", "writes of every size come back", || {
        let (bench, lbas) = opened(device, scratch, 4, 2 << 20)?;
        let place = (bench.ns.nsid, bench.ns.block_size);
        let sizes = storage::round_trips(bench.disk.queue()?.as_mut(), &bench.pool, place, lbas)?;
        Ok(Found::Good(format!("{sizes} sizes")))
    });
    runner.check("scratch", "every other command", || commands(device, scratch));
    runner.check("scratch", "data survives resets of the controller", || {
        let (bench, lbas) = opened(device, scratch, 64, 1 << 16)?;
        let needed = u64::from(2 * 16 * (bench.ns.block_size.max(4096) / bench.ns.block_size));
        if lbas.end - lbas.start < needed || bench.disk.queues() < 2 {
            return Ok(Found::Nothing(format!("it takes {needed} blocks and two queues")));
        }
        storage::data_survives_resets(bench.disk.as_ref(), &bench.ns, &bench.pool, lbas.start, RESETS)?;
        Ok(Found::Good(format!("{RESETS} resets while two queues wrote and verified")))
    });
    // Whoever stopped the run wants his data back all the same.
    runner.always("scratch", "what the blocks held is written back", || {
        let (bench, lbas) = opened(device, scratch, 4, COPIED)?;
        let mut queue = bench.disk.queue()?;
        let chunk = chunk(&bench);
        let bytes = (u64::from(bench.ns.block_size) * chunk) as usize;
        for (lba, bytes) in lbas.clone().step_by(chunk as usize).zip(saved.chunks(bytes)) {
            let mut buf = buf(&bench, bytes.len() as u64)?;
            buf.copy_from(bytes);
            ok(run(queue.as_mut(), request(bench.ns.nsid, Op::Write { lba }, Data::One(buf)))?, "a write")?;
        }
        if bench.ns.flush {
            ok(run(queue.as_mut(), request(bench.ns.nsid, Op::Flush, Data::None))?, "a flush")?;
        }
        drop(queue);
        ensure!(copy_out(&bench, &lbas)? == saved, "it does not read as it did");
        Ok(Found::Good("and reads as it did".to_owned()))
    });
}

/// Opens the disk, on the namespace of the blocks; and those of them that are used.
fn opened(device: &Arc<dyn PciDevice>, scratch: &Scratch, buffers: u32, size: u32) -> Result<(Bench, Range<u64>)> {
    let mut bench = Bench::open(device, Mapping::default(), 2, (buffers, size))?;
    let all = bench.disk.namespaces();
    bench.ns = *all.iter().find(|ns| ns.nsid == scratch.nsid).context("there is no such namespace that can be used")?;
    let Range { start, end } = scratch.lbas;
    ensure!(start < end && end <= bench.ns.blocks, "blocks {start}..{end} of {}", bench.ns.blocks);
    ensure!(!bench.ns.read_only, "the namespace is read-only");
    ensure!(bench.ns.block_size <= size, "blocks of {} bytes are larger than this knows", bench.ns.block_size);
    let most = MOST / u64::from(bench.ns.block_size);
    Ok((bench, start..end.min(start.saturating_add(most))))
}

fn buf(bench: &Bench, len: u64) -> Result<Buf> {
    bench.pool.get_len(u32::try_from(len)?).context("no buffer left")
}

/// Blocks that are copied at a time.
fn chunk(bench: &Bench) -> u64 {
    u64::from(COPIED / bench.ns.block_size).max(1)
}

fn copy_out(bench: &Bench, lbas: &Range<u64>) -> Result<Vec<u8>> {
    let (mut queue, chunk, mut bytes) = (bench.disk.queue()?, chunk(bench), Vec::new());
    for lba in lbas.clone().step_by(chunk as usize) {
        let blocks = chunk.min(lbas.end - lba);
        let buf = buf(bench, blocks * u64::from(bench.ns.block_size))?;
        let data = ok(run(queue.as_mut(), request(bench.ns.nsid, Op::Read { lba }, Data::One(buf)))?, "a read")?;
        bytes.extend(data.bufs().iter().flat_map(|buf| buf.bytes()));
    }
    Ok(bytes)
}

/// What is neither read nor write, where the disk has it.
fn commands(device: &Arc<dyn PciDevice>, scratch: &Scratch) -> Result<Found> {
    const SEED: u64 = 5;
    let (bench, lbas) = opened(device, scratch, 4, 1 << 16)?;
    let (ns, lba) = (bench.ns, lbas.start);
    let blocks = (lbas.end - lbas.start).min(8).min(u64::from(bench.pool.size() / ns.block_size));
    let (len, count) = (blocks * u64::from(ns.block_size), blocks as u32);
    let mut queue = bench.disk.queue()?;
    let write = |queue: &mut dyn BlockQueue, op: fn(u64) -> Op, seed| -> Result<Status> {
        let mut buf = buf(&bench, len)?;
        fill(&mut buf, lba, ns.block_size, seed);
        Ok(run(queue, request(ns.nsid, op(lba), Data::One(buf)))?.status)
    };
    let good = |status: Status, what: &str| -> Result<()> {
        ensure!(status == Status::Ok, "{what}: {status:?}");
        Ok(())
    };
    let queue = queue.as_mut();
    good(write(queue, |lba| Op::Write { lba }, SEED)?, "a write")?;
    let mut tried = Vec::new();
    if ns.flush {
        good(run(queue, request(ns.nsid, Op::Flush, Data::None))?.status, "a flush")?;
        tried.push("flush");
    }
    if ns.compare {
        good(write(queue, |lba| Op::Compare { lba }, SEED)?, "a compare with what is there")?;
        let differs = write(queue, |lba| Op::Compare { lba }, SEED + 1)?;
        ensure!(matches!(differs, Status::Device(_)), "a compare with something else: {differs:?}");
        tried.push("compare");
    }
    if ns.max_verify >= count {
        good(run(queue, request(ns.nsid, Op::Verify { lba, blocks: count }, Data::None))?.status, "a verify")?;
        tried.push("verify");
    }
    let read = |queue: &mut dyn BlockQueue| -> Result<Data> {
        let data = Data::One(buf(&bench, len)?);
        ok(run(queue, request(ns.nsid, Op::Read { lba }, data))?, "a read")
    };
    let right = read(queue)?.bufs().iter().all(|buf| holds(buf, lba, ns.block_size, SEED));
    ensure!(right, "commands that write nothing have changed what is there");
    if ns.max_write_zeroes >= count {
        let zero = request(ns.nsid, Op::WriteZeroes { lba, blocks: count }, Data::None);
        good(run(queue, zero)?.status, "write zeroes")?;
        let zero = read(queue)?.bufs().iter().all(|buf| buf.bytes().iter().all(|byte| *byte == 0));
        ensure!(zero, "written zeroes are not zero");
        tried.push("write zeroes");
    }
    if ns.max_deallocate >= count {
        let deallocate = request(ns.nsid, Op::Deallocate { lba, blocks: count }, Data::None);
        good(run(queue, deallocate)?.status, "a deallocate")?;
        // What deallocated blocks read as is the disk's affair; that they can be written again is not.
        good(write(queue, |lba| Op::Write { lba }, SEED + 2)?, "a write of deallocated blocks")?;
        let right = read(queue)?.bufs().iter().all(|buf| holds(buf, lba, ns.block_size, SEED + 2));
        ensure!(right, "deallocated blocks that were written again came back changed");
        tried.push("deallocate");
    }
    Ok(match tried.as_slice() {
        [] => Found::Nothing("it has none, not even a flush".to_owned()),
        tried => Found::Good(tried.join(", ")),
    })
}

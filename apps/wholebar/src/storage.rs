//! Disks that commands copy from and to, and measure: NVMe controllers by their own driver ([`nvme`](crate::nvme)), or any disk by whichever driver
//! it needs ([`blk`](crate::blk)).

use crate::host;
use crate::output;
use anyhow::{Context, Result, bail};
use std::sync::Arc;
use wholebar::PageSize;
use wholebar::bar::MapPolicy;
use wholebar::block::Status;
use wholebar::measure::block::{Job, QueuePair, Supplies, Supply};
use wholebar::mem::{Arena, ArenaOptions, Pool};

/// Commands in flight where nobody says how many.
pub const DEPTH: u32 = 32;

/// A namespace, as far as these commands have to know it.
#[derive(Debug, Clone, Copy)]
pub struct Space {
    /// Its number.
    pub nsid: u32,
    /// Its blocks.
    pub blocks: u64,
    /// Bytes of a block.
    pub block_size: u32,
    /// It cannot be written.
    pub read_only: bool,
    /// Bytes of a request at most.
    pub max_transfer: u32,
}

impl Space {
    /// Refuses to go on where it cannot be written; `disk` is what people call its disk.
    pub fn check_writable(&self, disk: &str) -> Result<()> {
        if self.read_only {
            bail!("namespace {} of {disk} is read-only", self.nsid);
        }
        Ok(())
    }
}

/// A disk that was opened.
pub trait Storage {
    /// Its queues.
    type Queue: QueuePair;

    /// What people call it.
    fn name(&self) -> &str;

    /// A namespace that can be used.
    fn space(&self, nsid: u32) -> Result<Space>;

    /// How many commands a queue holds at most, where that is known beforehand.
    fn max_depth(&self) -> u32 {
        u32::MAX
    }

    /// Lets it into memory.
    fn attach(&self, arena: Arc<Arena>) -> Result<()>;

    /// A queue for `depth` requests of `bytes` on a namespace.
    fn queue(&self, nsid: u32, depth: u32, bytes: u32) -> Result<Self::Queue>;

    /// How its BARs are mapped, or were asked to be, and the pages that was planned for.
    fn mapped(&self) -> (MapPolicy, PageSize);

    /// Whether its doorbells have shadows in memory.
    fn shadow_doorbells(&self) -> bool {
        false
    }

    /// What a status is called.
    fn status_name(&self, status: Status) -> String;

    /// What became of it, where something did: said before `error`, which comes of it.
    fn explain(&self, error: anyhow::Error) -> anyhow::Error;

    /// How often it was reset until now, and why the first time; counted from the last call on.
    fn resets(&self) -> Option<(usize, String)>;

    /// How many commands are kept in flight in a queue: as many as are asked for, or else [`DEPTH`], or what its queues hold where that is less.
    fn depth(&self, asked: Option<u32>) -> Result<u32> {
        let most = self.max_depth();
        match asked {
            Some(depth) if depth > most => {
                bail!("a queue depth of {depth} is above what {} can do, which is {most}", self.name())
            }
            Some(depth) => Ok(depth),
            None => {
                if most < DEPTH {
                    output::note(format!("a queue of {} holds {most} commands: no more are in flight", self.name()));
                }
                Ok(DEPTH.min(most))
            }
        }
    }

    /// Memory for so many buffers, with the disk let into it.
    fn arena(&self, count: u32, bytes: u32) -> Result<Arc<Arena>> {
        let all = u64::from(count) * u64::from(bytes).next_multiple_of(PageSize::host().bytes());
        let free = host::free_memory();
        if all > free {
            bail!(
                "{count} buffers of {bytes} bytes do not fit into memory, of which {} are free: use smaller or fewer",
                output::bytes(free)
            );
        }
        let arena = Arena::new(all, ArenaOptions::default())?;
        self.attach(arena.clone())?;
        Ok(arena)
    }

    /// A queue for `depth` requests of `bytes` on a namespace, and as many buffers.
    fn queue_and_buffers(&self, nsid: u32, depth: u32, bytes: u32) -> Result<(Self::Queue, Pool)> {
        let arena = self.arena(depth, bytes)?;
        Ok((self.queue(nsid, depth, bytes)?, buffers(arena.clone(), depth, bytes)?))
    }

    /// What a job's lanes need: so many queues for each core, with their buffers, which share an arena: a device's maps may be few.
    fn supplies(&self, job: &Job, cores: &[usize], queues: u32) -> Result<Supplies<Self::Queue>> {
        let bytes = u64::from(job.block) * job.blocks;
        let bytes = u32::try_from(bytes).with_context(|| format!("a command of {bytes} bytes is too large"))?;
        let depth = self.depth(Some(job.depth as u32))?;
        let all = depth.checked_mul(queues).and_then(|n| n.checked_mul(cores.len() as u32));
        let arena = self.arena(all.context("so many commands in flight have no memory")?, bytes)?;
        let supply = |_| {
            let (queue, pool) = (self.queue(job.nsid, depth, bytes)?, buffers(arena.clone(), depth, bytes)?);
            let mut bufs: Vec<_> = std::iter::from_fn(|| pool.get_len(bytes)).collect();
            // What is written without --verify: different bytes everywhere, as real data are.
            let mut rng = fastrand::Rng::with_seed(job.seed);
            bufs.iter_mut().for_each(|buf| rng.fill(buf.bytes_mut()));
            Ok(Supply { queue, bufs, pool })
        };
        cores.iter().map(|core| Ok((*core, (0..queues).map(supply).collect::<Result<_>>()?))).collect()
    }
}

/// A pool of buffers.
fn buffers(arena: Arc<Arena>, count: u32, bytes: u32) -> Result<Pool> {
    Ok(Pool::new(arena, count, bytes, PageSize::host().bytes())?)
}

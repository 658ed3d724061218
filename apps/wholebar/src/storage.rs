//! Disks that commands copy from and to, and measure: NVMe controllers by their own driver ([`nvme`](crate::nvme)), or any disk by whichever driver
//! it needs ([`blk`](crate::blk)).

use crate::args::policy_name;
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
    /// Refuses to go on where it cannot be written.
    pub fn check_writable(&self, disk: &impl Storage) -> Result<()> {
        if self.read_only {
            let why = disk.why_read_only().unwrap_or_else(|| "read-only".to_owned());
            bail!("namespace {} of {} is {why}", self.nsid, disk.name());
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

    /// How commands get to it, for people.
    fn way(&self) -> String {
        way_of_bars(self.mapped())
    }

    /// `read-only`, and why, where it says so.
    fn why_read_only(&self) -> Option<String> {
        None
    }

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

    /// Memory for a job's buffers, which share an arena: a device's maps may be few.
    fn job_arena(&self, job: &Job, cores: usize, queues: u32) -> Result<Arc<Arena>> {
        let depth = self.depth(Some(job.depth as u32))?;
        let all = depth.checked_mul(queues).and_then(|n| n.checked_mul(cores as u32));
        self.arena(all.context("so many commands in flight have no memory")?, command_bytes(job)?)
    }

    /// What a job's lanes need: so many queues for each core, with their buffers.
    fn supplies(&self, job: &Job, cores: &[usize], queues: u32) -> Result<Supplies<Self::Queue>> {
        self.supplies_in(&self.job_arena(job, cores.len(), queues)?, job, cores, queues)
    }

    /// The same, with buffers in an arena that [`job_arena`](Self::job_arena) has made.
    fn supplies_in(
        &self,
        arena: &Arc<Arena>,
        job: &Job,
        cores: &[usize],
        queues: u32,
    ) -> Result<Supplies<Self::Queue>> {
        let (bytes, depth) = (command_bytes(job)?, job.depth as u32);
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

/// How commands get to a PCI device.
pub fn way_of_bars((policy, page): (MapPolicy, PageSize)) -> String {
    format!("BARs {} in pages of {page}", policy_name(policy))
}

/// Bytes of a job's command.
fn command_bytes(job: &Job) -> Result<u32> {
    let bytes = u64::from(job.block) * job.blocks;
    u32::try_from(bytes).with_context(|| format!("a command of {bytes} bytes is too large"))
}

/// A pool of buffers.
fn buffers(arena: Arc<Arena>, count: u32, bytes: u32) -> Result<Pool> {
    Ok(Pool::new(arena, count, bytes, PageSize::host().bytes() as u32)?)
}

//! `wholebar nvme`: what people do with an NVMe controller.

mod copy;
mod identify;
mod perf;
pub mod reads;
mod smart;
mod transfer;

use crate::host;
use crate::output;
use crate::target::Target;
use crate::work::{Job, Pair, Supply};
use anyhow::{Context, Result, bail};
use wholebar::PageSize;
use wholebar::bar::{DoorbellCounts, MapPolicy};
use wholebar::block::{Completion, Status};
use wholebar::mem::{Arena, ArenaOptions, Pool};
use wholebar_nvme::{Namespace, Nvme, Options, Queue, QueueOptions, StatusCode};

/// Identify, read, write and measure NVMe controllers
#[derive(clap::Subcommand)]
pub enum Command {
    Identify(identify::Args),
    Smart(smart::Args),
    Read(copy::ReadArgs),
    Write(copy::WriteArgs),
    Perf(perf::Args),
}

pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Identify(args) => identify::run(args),
        Command::Smart(args) => smart::run(args),
        Command::Read(args) => copy::read(args),
        Command::Write(args) => copy::write(args),
        Command::Perf(args) => perf::run(args),
    }
}

/// A controller that was opened, and what is asked of it here.
pub struct Controller {
    nvme: Nvme,
    name: String,
}

impl Controller {
    /// Opens the controller that stands behind a target. It must have as many queue pairs as the options say.
    pub fn open(target: &Target, options: Options) -> Result<Self> {
        let queues = options.io_queues;
        let nvme = Nvme::open(target.device.clone(), options)?;
        let (name, granted) = (target.device.name().to_owned(), nvme.io_queues());
        if granted < queues {
            bail!("{queues} queue pairs are asked for, and {name} has {granted}");
        }
        Ok(Self { nvme, name })
    }

    /// What the controller says of itself.
    pub fn identity(&self) -> &wholebar_nvme::Controller {
        self.nvme.identify()
    }

    /// The namespaces there are.
    pub fn namespaces(&self) -> &[Namespace] {
        self.nvme.namespaces()
    }

    /// A namespace that can be used.
    pub fn namespace(&self, nsid: u32) -> Result<Namespace> {
        let all = self.namespaces();
        let Some(namespace) = all.iter().find(|n| n.nsid == nsid) else {
            let ids: Vec<_> = all.iter().map(|n| n.nsid.to_string()).collect();
            let has = if ids.is_empty() { "none".to_owned() } else { ids.join(", ") };
            bail!("{} has no namespace {nsid}; it has: {has}", self.name);
        };
        match &namespace.unsupported {
            Some(why) => bail!("{}: namespace {nsid} cannot be used: {why}", self.name),
            None => Ok(namespace.clone()),
        }
    }

    /// How BAR0 is mapped: the policy that was carried out, and the pages it was planned for.
    pub fn mapped(&self) -> (MapPolicy, PageSize) {
        let plan = self.nvme.bar().plan();
        (plan.policy, plan.page)
    }

    /// Entries of the largest queue there can be.
    pub fn max_entries(&self) -> u32 {
        self.nvme.max_entries()
    }

    /// A queue that holds `depth` commands, and as many buffers of `bytes` each.
    pub fn queue(&self, depth: u32, bytes: u32) -> Result<(Queue, Pool)> {
        // One entry of a queue is always empty: a full one would look like that (NVM Express Base 2.0, 3.3.1.2).
        let most = self.max_entries() - 1;
        if depth > most {
            bail!("a queue depth of {depth} is above what {} can do, which is {most}", self.name);
        }
        let pool = buffers(depth, bytes)?;
        self.nvme.attach(pool.arena())?;
        // The driver cuts what is larger than the controller takes at once; what doesn't fit then waits.
        let commands = depth.saturating_mul(bytes.div_ceil(self.nvme.max_transfer().max(1)) + 1);
        let commands = if bytes > self.nvme.max_transfer() { commands } else { depth };
        let entries = Some(commands.saturating_add(1).next_power_of_two().min(self.max_entries()));
        let queue = self.nvme.queue(QueueOptions { entries, ..QueueOptions::default() })?;
        Ok((queue, pool))
    }

    /// What a job's lanes need: so many queues for each core, with their buffers.
    pub fn supplies(&self, job: &Job, cores: &[usize], queues: u32) -> Result<Vec<(usize, Vec<Supply<Queue>>)>> {
        let bytes = u64::from(job.block) * job.blocks;
        let bytes = u32::try_from(bytes).with_context(|| format!("a command of {bytes} bytes is too large"))?;
        let supply = |_| {
            let (queue, pool) = self.queue(job.depth as u32, bytes)?;
            let mut bufs: Vec<_> = std::iter::from_fn(|| pool.get_len(bytes)).collect();
            // What is written without --verify: different bytes everywhere, as real data are.
            let mut rng = fastrand::Rng::with_seed(job.seed);
            bufs.iter_mut().for_each(|buf| rng.fill(buf.bytes_mut()));
            Ok(Supply { queue, bufs, pool })
        };
        cores.iter().map(|core| Ok((*core, (0..queues).map(supply).collect::<Result<_>>()?))).collect()
    }
}

/// A pool of buffers in an arena of its own.
fn buffers(count: u32, bytes: u32) -> Result<Pool> {
    let align = PageSize::host().bytes();
    let all = u64::from(count) * u64::from(bytes).next_multiple_of(align);
    let free = host::free_memory();
    if all > free {
        bail!(
            "{count} buffers of {bytes} bytes do not fit into memory, of which {} are free: use smaller or fewer",
            output::bytes(free)
        );
    }
    let arena = Arena::new(all, ArenaOptions::default())?;
    Ok(Pool::new(&arena, count, bytes, align)?)
}

/// What a status is called.
pub fn status_name(status: Status) -> String {
    match status {
        Status::Ok => "success".to_owned(),
        Status::Device(code) => StatusCode(code).to_string(),
        Status::Aborted => "given up: it took too long, or the controller was reset".to_owned(),
        Status::Gone => "the device is gone".to_owned(),
    }
}

impl Pair for Queue {
    #[inline]
    fn poll_each(&mut self, max: usize, done: impl FnMut(Completion)) -> usize {
        Queue::poll_each(self, max, done)
    }

    fn doorbells(&self) -> DoorbellCounts {
        Queue::doorbells(self)
    }
}

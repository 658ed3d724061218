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
use std::sync::Arc;
use wholebar::PageSize;
use wholebar::bar::{DoorbellCounts, MapPolicy};
use wholebar::block::{Completion, Status};
use wholebar::control_plane::DeviceEvent;
use wholebar::mem::{Arena, ArenaOptions, Pool};
use wholebar::nvme::{Event, Namespace, Nvme, Options, Queue, QueueOptions, StatusCode};

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

/// Commands in flight where nobody says how many.
pub const DEPTH: u32 = 32;

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
    pub fn identity(&self) -> &wholebar::nvme::Controller {
        self.nvme.identify()
    }

    /// The namespaces there are.
    pub fn namespaces(&self) -> Arc<[Namespace]> {
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

    /// How many commands its largest queue holds. One entry is always empty: a full queue would look like that (NVM Express Base 2.0, 3.3.1.2).
    pub fn max_depth(&self) -> u32 {
        self.max_entries() - 1
    }

    /// How many commands are kept in flight in a queue: as many as are asked for, or else [`DEPTH`], or what its queues hold where that is less.
    pub fn depth(&self, asked: Option<u32>) -> Result<u32> {
        let most = self.max_depth();
        match asked {
            Some(depth) if depth > most => {
                bail!("a queue depth of {depth} is above what {} can do, which is {most}", self.name)
            }
            Some(depth) => Ok(depth),
            None => {
                if most < DEPTH {
                    output::note(format!("a queue of {} holds {most} commands: no more are in flight", self.name));
                }
                Ok(DEPTH.min(most))
            }
        }
    }

    /// A queue for `depth` requests of `bytes` on a namespace, and as many buffers.
    pub fn queue(&self, namespace: &Namespace, depth: u32, bytes: u32) -> Result<(Queue, Pool)> {
        let arena = self.arena(depth, bytes)?;
        Ok((self.bare_queue(namespace, depth, bytes)?, buffers(&arena, depth, bytes)?))
    }

    fn bare_queue(&self, namespace: &Namespace, depth: u32, bytes: u32) -> Result<Queue> {
        // The driver cuts what is larger than the controller takes at once, and at the namespace's boundaries; what doesn't fit then waits.
        let boundary = match u32::from(namespace.io_boundary) {
            0 => u32::MAX,
            blocks => blocks.saturating_mul(namespace.block_size),
        };
        let most = self.nvme.max_transfer().min(boundary).max(1);
        let commands = if bytes > most { depth.saturating_mul(bytes.div_ceil(most) + 1) } else { depth };
        let entries = Some(commands.saturating_add(1).next_power_of_two().min(self.max_entries()));
        Ok(self.nvme.queue(QueueOptions { entries, ..QueueOptions::default() })?)
    }

    /// Memory for so many buffers, with the controller let into it.
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
        self.nvme.attach(&arena)?;
        Ok(arena)
    }

    /// How often the controller was reset until now, and why the first time; counted from the last call on.
    pub fn resets(&self) -> Option<(usize, String)> {
        let why = |event| if let Event::Device(DeviceEvent::Reset { why, .. }) = event { Some(why) } else { None };
        let mut resets = self.nvme.events().try_iter().filter_map(why);
        resets.next().map(|first| (1 + resets.count(), first))
    }

    /// What became of the controller, where something did: said before `error`, which comes of it.
    pub fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        match self.nvme.check() {
            Ok(()) => error,
            Err(cause) => error.context(cause.to_string()),
        }
    }

    /// What a job's lanes need: so many queues for each core, with their buffers, which share an arena: a device's maps may be few.
    pub fn supplies(&self, job: &Job, cores: &[usize], queues: u32) -> Result<Vec<(usize, Vec<Supply<Queue>>)>> {
        let bytes = u64::from(job.block) * job.blocks;
        let bytes = u32::try_from(bytes).with_context(|| format!("a command of {bytes} bytes is too large"))?;
        let (depth, namespace) = (self.depth(Some(job.depth as u32))?, self.namespace(job.nsid)?);
        let all = depth.checked_mul(queues).and_then(|n| n.checked_mul(cores.len() as u32));
        let arena = self.arena(all.context("so many commands in flight have no memory")?, bytes)?;
        let supply = |_| {
            let (queue, pool) = (self.bare_queue(&namespace, depth, bytes)?, buffers(&arena, depth, bytes)?);
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
fn buffers(arena: &Arc<Arena>, count: u32, bytes: u32) -> Result<Pool> {
    Ok(Pool::new(arena, count, bytes, PageSize::host().bytes())?)
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

    fn hopeless(&self, status: Status, nsid: u32) -> Option<String> {
        let controller = self.controller();
        let code = match status {
            Status::Gone => return controller.check().err().map(|error| error.to_string()),
            Status::Device(code) => StatusCode(code),
            Status::Ok | Status::Aborted => return None,
        };
        let missing = match code.name() {
            Some("Invalid Namespace or Format") => true,
            // So a namespace that is there, but not active, is to be refused (NVM Express Base 2.0, 3.2.1.4). The controller's notice of that may
            // come later.
            Some("Invalid Field in Command") => {
                controller.read_namespaces().is_ok_and(|list| list.iter().all(|n| n.nsid != nsid))
            }
            _ => false,
        };
        missing.then(|| format!("namespace {nsid} is not there any more: {code}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::work::{Direction, Order, Workload};
    use std::time::Duration;

    /// A peer may allow 64 maps, or fewer.
    #[test]
    fn many_queues_take_few_maps() {
        let target = crate::target::open("sim:nvme,size=16M,queues=64", &[], None).unwrap();
        let controller = Controller::open(&target, Options { io_queues: 64, ..Options::default() }).unwrap();
        let job = Job {
            workload: Workload { order: Order::Random, direction: Direction::Read },
            nsid: 1,
            block: 512,
            blocks: 8,
            first: 0,
            units: 2048,
            depth: 32,
            batch: 32,
            warmup: Duration::ZERO,
            time: Duration::ZERO,
            verify: false,
            seed: 1,
            shared_cores: true,
        };
        let supplies = controller.supplies(&job, &[0], 64).unwrap();
        assert_eq!((supplies.len(), supplies[0].1.len(), supplies[0].1[63].bufs.len()), (1, 64, 32));
        assert!(target.device.dma().mapped() <= 8, "{} maps", target.device.dma().mapped());
    }
}

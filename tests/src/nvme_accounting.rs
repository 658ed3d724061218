//! Where every NVMe command went that was submitted: it succeeded, it failed, or it was given up; once each, whatever the controller did wrong.

use crate::Rig;
use crate::storage::PATIENCE;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::AddAssign;
use std::time::{Duration, Instant};
use wholebar::block::{Data, Op, Reject, Request, Status};
use wholebar::control_plane::DeviceEvent;
use wholebar::mem::{Arena, ArenaOptions, Pool};
use wholebar::nvme::{Event, Nvme, Options, QueueOptions};

/// Both sides of it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Total {
    /// Requests that a queue took.
    pub submitted: u64,
    /// Those that ended well.
    pub ok: u64,
    /// Those that the controller refused or failed.
    pub failed: u64,
    /// Those that were given up: by a reset, or because the device was gone.
    pub aborted: u64,
    /// Resets of the controller.
    pub resets: u64,
    /// Controllers that were gone for good, and opened anew.
    pub gone: u64,
}

impl Total {
    /// Whether each request is where it should be.
    pub fn balances(&self) -> bool {
        self.submitted == self.ok + self.failed + self.aborted
    }
}

impl AddAssign<&Self> for Total {
    fn add_assign(&mut self, other: &Self) {
        self.submitted += other.submitted;
        self.ok += other.ok;
        self.failed += other.failed;
        self.aborted += other.aborted;
        self.resets += other.resets;
        self.gone += other.gone;
    }
}

impl fmt::Display for Total {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { submitted, ok, failed, aborted, resets, gone } = self;
        write!(
            f,
            "{submitted} submitted = {ok} ok + {failed} failed + {aborted} aborted ({resets} resets, {gone} gone)"
        )
    }
}

/// Kinds of faults, each with how often it strikes: parameters of the model.
pub const KINDS: [(&str, &str); 14] = [
    ("drop", "faults=drop:1/2000,to=120"),
    ("dup", "faults=dup:1/2000,to=120"),
    ("id", "faults=id:1/2000,to=120"),
    ("phase", "faults=phase:1/4000,to=120"),
    ("head", "faults=head:1/2000,to=120"),
    ("sqhd", "faults=sqhd:1/2000,to=120"),
    ("delay", "faults=delay:1/500,delay=5,to=120"),
    ("corrupt", "faults=corrupt:1/100,to=120"),
    ("dma", "faults=dma:1/100,to=120"),
    // Namespaces that go, until there is none.
    ("detach", "faults=detach:1/1000,ns=8,to=120"),
    // Those that go, and come back.
    ("attach", "faults=attach:1/500+detach:1/1000,ns=8,to=120"),
    ("fatal", "faults=fatal:1/4000,to=120"),
    // The first reset, which a bad head is the reason for, hangs until its time is over.
    ("hang", "faults=hang:@2+head:1/2000,to=20"),
    ("vanish", "faults=vanish:@20000,to=120"),
];

/// Buffers, of the largest request each.
const BUFFERS: u32 = 96;
const LARGEST: u32 = 64 << 10;
/// Blocks of 512 bytes that are used.
const BLOCKS: u64 = 8192;

/// Submits `count` requests of all kinds, as `seed` has it, and tells where they went. A controller that is gone, or
/// has no namespace left, is opened anew by `open`.
///
/// # Errors
/// Where that doesn't balance, a request completes that is not in flight, a buffer is missing that isn't quarantined, or nothing goes on.
pub fn total(open: impl Fn() -> Result<Rig>, options: &Options, count: u64, seed: u64) -> Result<Total> {
    let mut total = Total::default();
    let mut chance = seed;
    while total.submitted < count {
        let rig = open()?;
        let part = one_controller(&rig, options, count - total.submitted, &mut chance).context(rig.name)?;
        ensure!(part.balances(), "{part}");
        ensure!(part.submitted > 0 || part.gone > 0, "nothing was submitted");
        total += &part;
    }
    Ok(total)
}

fn one_controller(rig: &Rig, options: &Options, count: u64, chance: &mut u64) -> Result<Total> {
    let nvme = Nvme::open(rig.device.clone(), options.clone())?;
    let arena = Arena::new(u64::from(BUFFERS * LARGEST), ArenaOptions::default())?;
    nvme.attach(arena.clone())?;
    let pool = Pool::new(arena, BUFFERS, LARGEST, 4096)?;
    // Smaller than the requests in flight can be: some are cut, and wait for room.
    let mut queue = nvme.queue(QueueOptions { entries: Some(64), ..QueueOptions::default() })?;
    let (mut total, mut flying, mut strange) = (Total::default(), BTreeMap::new(), None);
    let mut since = Instant::now();
    loop {
        let namespaces: Vec<u32> = nvme.namespaces().iter().map(|n| n.nsid).collect();
        // One without namespaces has nothing more to do.
        let ended = nvme.check().is_err() || namespaces.is_empty();
        while total.submitted < count && !ended {
            let Some(req) = request(&pool, &namespaces, total.submitted, chance) else { break };
            let (tag, nsid, bytes) = (req.tag, req.nsid, req.data.len());
            match queue.submit(req) {
                Ok(()) => {
                    flying.insert(tag, bytes);
                    total.submitted += 1;
                }
                Err(rejected) => match rejected.why {
                    Reject::Full | Reject::Resetting | Reject::Gone => break,
                    // It went meanwhile.
                    Reject::Invalid(_) if nvme.namespaces().iter().all(|n| n.nsid != nsid) => break,
                    Reject::Invalid(why) => bail!("request {tag} was refused: {why}"),
                },
            }
        }
        queue.ring();
        let found = queue.poll_each(64, |done| {
            match done.status {
                Status::Ok => total.ok += 1,
                Status::Device(_) => total.failed += 1,
                Status::Aborted | Status::Gone => total.aborted += 1,
            }
            let known =
                flying.remove(&done.tag).is_some_and(|bytes| done.data.len() == bytes || nvme.quarantined() > 0);
            if !known {
                strange = Some(done.tag);
            }
        });
        ensure!(strange.is_none(), "request {strange:?} was not in flight, or lost its data");
        if flying.is_empty() && (total.submitted == count || ended) {
            break;
        }
        if found > 0 {
            since = Instant::now();
        } else {
            std::thread::yield_now();
        }
        ensure!(since.elapsed() < PATIENCE, "nothing goes on, with {} in flight: {:?}", flying.len(), queue.state());
    }
    drop(queue);
    let out = u64::from(pool.capacity() - pool.available());
    ensure!(out == nvme.quarantined(), "{out} buffers are out, {} of them quarantined", nvme.quarantined());
    for event in nvme.events().try_iter() {
        match event {
            Event::Device(DeviceEvent::Reset { lost, .. }) => {
                ensure!(lost.is_empty(), "queues {lost:?} are lost");
                total.resets += 1;
            }
            Event::Device(DeviceEvent::Ended { .. }) => total.gone += 1,
            _ => {}
        }
    }
    Ok(total)
}

/// A request by chance, of one of these namespaces; `None` without a buffer.
fn request(pool: &Pool, namespaces: &[u32], tag: u64, chance: &mut u64) -> Option<Request> {
    let mut below = |n: u64| {
        *chance = chance.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (*chance >> 33) % n
    };
    let nsid = namespaces[below(namespaces.len() as u64) as usize];
    let kind = below(20);
    let len = match below(16) {
        0 => LARGEST,
        n => 512 * n as u32,
    };
    let blocks = len / 512;
    let lba = below(BLOCKS - u64::from(blocks));
    let (op, has_data) = match kind {
        0 => (Op::Flush, false),
        1 => (Op::WriteZeroes { lba, blocks }, false),
        2 => (Op::Verify { lba, blocks }, false),
        3 => (Op::Deallocate { lba, blocks }, false),
        4..10 => (Op::Write { lba }, true),
        _ => (Op::Read { lba }, true),
    };
    let data = if has_data { Data::One(pool.get_len(len)?) } else { Data::None };
    Some(Request { tag, nsid, op, data, deadline: None })
}

/// Options of who gives up soon: what a controller loses costs no half a minute.
pub fn impatient() -> Options {
    Options {
        timeout: Duration::from_millis(250),
        admin_timeout: PATIENCE,
        stop_timeout: PATIENCE,
        ..Options::default()
    }
}

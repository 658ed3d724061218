//! A benchmark of one's own: 4 KiB random reads of a disk, whichever driver it needs, from one core. `cargo run --example iops -- sim:nvme,size=64M`

use std::error::Error;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use wholebar::block::{self, DiskConfig};
use wholebar::mem::{Arena, ArenaOptions, Pool};
use wholebar_measure::block::{AnyQueue, BACK_OFF, Direction, Job, Order, Supply, Workload, run};
use wholebar_measure::latency::Percentiles;

const DEPTH: u32 = 32;

fn main() -> Result<(), Box<dyn Error>> {
    let target = std::env::args().nth(1).unwrap_or_else(|| "sim:nvme,size=64M".to_owned());
    let disk = block::open_target(&target, &DiskConfig::default())?;
    let ns = disk.namespaces().into_iter().next().ok_or("no namespace can be used")?;
    let bytes = ns.block_size.max(4096);
    let blocks = u64::from(bytes / ns.block_size);
    let arena = Arena::new(u64::from(DEPTH * bytes), ArenaOptions::default())?;
    disk.attach(arena.clone())?;
    let pool = Pool::new(arena, DEPTH, bytes, bytes)?;
    let bufs = std::iter::from_fn(|| pool.get_len(bytes)).collect();
    let supply = Supply { queue: AnyQueue(disk.queue()?), bufs, pool };
    let job = Job {
        workload: Workload { order: Order::Random, direction: Direction::Read },
        nsid: ns.nsid,
        block: ns.block_size,
        blocks,
        first: 0,
        units: ns.blocks / blocks,
        depth: DEPTH as usize,
        batch: DEPTH as usize,
        back_off: BACK_OFF,
        warmup: Duration::from_millis(100),
        time: Duration::from_secs(1),
        verify: false,
        seed: 1,
        // A model's thread may be on the same core.
        shared_cores: true,
        device: None,
    };
    let outcome = run(&job, vec![(wholebar::cores::allowed()[0], vec![supply])], &AtomicBool::new(false), |_| ())?;
    let p = Percentiles::of(&outcome.latency());
    println!("{target}: {:.0} IOPS, {} errors", outcome.iops, outcome.errors());
    println!("latency in ns: p50 {}, p99 {}, p99.9 {}, max {}", p.p50, p.p99, p.p99_9, p.max);
    if let Some(why) = outcome.cut_short { Err(why.to_string().into()) } else { Ok(()) }
}

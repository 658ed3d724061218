//! Packets of 64 bytes from one virtio-net model to another, wired to it: how fast drivers and models pass them on, by the size of a burst, with doorbells
//! that are stores and such as are system calls. One core has the driver, both ends of it; another has both models.

use crate::args::policy_name;
use crate::report::{Cpu, Doorbells, PacketRun};
use crate::rounds::{self, Plan};
use crate::target::{self, Target};
use anyhow::{Context, Result, bail};
use quanta::Clock;
use std::fmt::{self, Display};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use wholebar::PageSize;
use wholebar::bar::MapPolicy;
use wholebar::cores;
use wholebar::measure::cpu::{CpuShare, hand_over};
use wholebar::measure::rounds::{Case, Rounds};
use wholebar::mem::{Arena, ArenaOptions, Pool, PoolCache};
use wholebar::net::{Burst, Mac, Port, PortConfig, RxQueue, TxQueue};
use wholebar::virtio::{Net, Options};

/// What both ports are: the ends of a wire on which packets wait for buffers.
pub const TARGET: &str = "sim:virtio-net,wire=pair:bench,full=wait";
/// Bytes of a packet, without its frame checksum.
pub const SIZE: u32 = 64;

/// Buffers of 2 KiB and headroom, so that not all of them begin in the same few sets of a cache: those of two full queues, twice.
const BUFFERS: u32 = 1024;
const BUFFER: u32 = 2048 + HEADROOM as u32;
/// In front of a packet, for the device's header.
const HEADROOM: u16 = 64;
/// Bursts between two reads of the clock.
const BURSTS: usize = 64;
/// How long a link may take to come up, and packets to arrive: much longer than a machine that is busy with others makes them wait.
const PATIENCE: Duration = Duration::from_secs(60);

/// Rings, and a way to map BARs.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    /// Packed rings, or split ones.
    pub packed: bool,
    /// How much of the BARs.
    pub plan: Plan,
}

/// Packets that one call sends, or receives, at most.
#[derive(Debug, Clone, Copy)]
pub struct Size(pub usize);

impl Way {
    /// The ring's name.
    pub fn ring(self) -> &'static str {
        if self.packed { "packed" } else { "split" }
    }
}

impl Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} rings", self.plan, self.ring())
    }
}

impl Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bursts of {}", self.0)
    }
}

/// Measures them, with the driver's thread on one core and the models on another, if there is one.
///
/// # Errors
/// What the driver says; packets that don't come.
pub fn measure(
    rounds: &Rounds<'_, Way, Size>,
    (core, model_core): (usize, Option<usize>),
    interrupted: &AtomicBool,
) -> Result<Vec<Case<Way, Size, PacketRun>>> {
    rounds::measure(
        rounds,
        interrupted,
        |way| Session::open(way, core, model_core),
        |session, Size(burst), time| session.run(burst, time, interrupted),
    )
}

/// Two ports that are open. What goes back to what is below it is dropped first.
struct Session {
    ends: Mutex<Ends>,
    ports: [Net; 2],
    targets: [Target; 2],
    way: Way,
    core: usize,
    model_core: Option<usize>,
}

/// What the driver's thread has.
struct Ends {
    tx: Box<dyn TxQueue>,
    rx: Box<dyn RxQueue>,
    cache: PoolCache,
    to: Mac,
}

/// What came, in which time.
struct Passed {
    packets: u64,
    time: Duration,
    cycles: Option<u64>,
    cpu: (Option<f64>, Option<f64>),
    doorbells: u64,
}

impl Session {
    fn open(way: Way, core: usize, model_core: Option<usize>) -> Result<Self> {
        let open = || -> Result<_> {
            let target = target::open(TARGET, &[core], model_core)?;
            // As hardware does.
            target.set_spin(true);
            let options =
                Options { packed: way.packed, policy: way.plan.policy, page: way.plan.page, ..Options::default() };
            Ok((Net::open(target.device.clone(), &PortConfig::default(), options)?, target))
        };
        let ((from, from_target), (to, to_target)) = (open()?, open()?);
        let bytes = u64::from(BUFFERS) * u64::from(BUFFER);
        let arena = Arena::new(bytes.next_multiple_of(PageSize::host().bytes()), ArenaOptions::default())?;
        let began = Instant::now();
        for port in [&from, &to] {
            port.attach(arena.clone())?;
            while !port.link().up {
                if began.elapsed() > PATIENCE {
                    bail!("{}: the link does not come up", port.name());
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let pool = Pool::new(arena.clone(), BUFFERS, BUFFER, 64)?;
        let (tx, rx) = (from.tx_queue(0)?, to.rx_queue(0, &pool)?);
        let ends = Mutex::new(Ends { tx, rx, cache: pool.cache(32), to: to.mac() });
        Ok(Self { ends, ports: [from, to], targets: [from_target, to_target], way, core, model_core })
    }

    fn run(&self, burst: usize, time: Duration, interrupted: &AtomicBool) -> Result<PacketRun> {
        let mut ends = self.ends.lock().unwrap_or_else(|e| e.into_inner());
        let ends = &mut *ends;
        let hand_over_ns = self.model_core.and_then(|core| hand_over(self.core, core));
        let passed = std::thread::scope(|scope| {
            let work = || {
                cores::pin(self.core)?;
                self.pass(ends, burst, time, interrupted)
            };
            let thread = std::thread::Builder::new().spawn_scoped(scope, work).context("cannot start a thread")?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        // What was carried out, not what was asked for; the BAR with the notification addresses is among these.
        let plan =
            self.ports[0].bars().iter().map(|bar| bar.plan()).max_by_key(|plan| plan.policy == MapPolicy::Trapped);
        let (policy, page) = plan.map_or((self.way.plan.policy, PageSize::host()), |plan| (plan.policy, plan.page));
        let (direct, trapped) = match policy {
            MapPolicy::Trapped => (0, passed.doorbells),
            _ => (passed.doorbells, 0),
        };
        let seconds = passed.time.as_secs_f64();
        let each = |total: f64| total / passed.packets.max(1) as f64;
        let (driver, model) = passed.cpu;
        Ok(PacketRun {
            ring: self.way.ring().into(),
            policy: policy_name(policy).into(),
            page_size: page.bytes(),
            burst,
            core: self.core,
            seconds,
            packets: passed.packets,
            pps: passed.packets as f64 / seconds.max(1e-9),
            ns_per_packet: each(seconds * 1e9),
            cycles_per_packet: passed.cycles.map(|cycles| each(cycles as f64)),
            doorbells: Doorbells { direct, trapped },
            cpu: Cpu { driver: driver.into_iter().collect(), model },
            hand_over_ns,
            rounds: Vec::new(),
        })
    }

    /// Sends as fast as the device takes it, and receives what comes.
    fn pass(&self, ends: &mut Ends, burst: usize, time: Duration, interrupted: &AtomicBool) -> Result<Passed> {
        let Ends { tx, rx, cache, to } = ends;
        let (mut out, mut got) = (Burst::new(burst), Burst::new(burst));
        // Where models have no core of their own, they get this one now and then.
        let shared = self.targets.iter().any(Target::shares_cores);
        let mut pass_bursts = |packets: &mut u64| {
            for _ in 0..BURSTS {
                if out.is_empty() && out.fill(cache, burst) {
                    for packet in out.iter_mut() {
                        packet.reserve(HEADROOM);
                        packet.set_len(SIZE);
                        packet.bytes_mut()[..6].copy_from_slice(&to.0);
                    }
                }
                tx.tx(&mut out);
                *packets += rx.rx(&mut got) as u64;
                got.give_back_to(cache);
            }
            if shared {
                std::thread::yield_now();
            }
        };
        let warm_up = Instant::now();
        while warm_up.elapsed() < time / 6 && !interrupted.load(Ordering::Relaxed) {
            pass_bursts(&mut 0);
        }
        let (clock, before) = (Clock::new(), self.doorbells());
        let (driver, model) = (CpuShare::current(), self.targets[0].model_cpu());
        let (began, mut packets, first) = (Instant::now(), 0, clock.raw());
        // Where models got no CPU all that time, nothing was measured: it goes on until something came.
        while (began.elapsed() < time - time / 6 || packets == 0) && !interrupted.load(Ordering::Relaxed) {
            pass_bursts(&mut packets);
            if began.elapsed() > time + PATIENCE {
                bail!("no packets arrived within {PATIENCE:?}");
            }
        }
        let (last, time) = (clock.raw(), began.elapsed());
        let passed = Passed {
            packets,
            time,
            cycles: cycles(&clock, first, last),
            cpu: (driver.share(), model.share()),
            doorbells: self.doorbells() - before,
        };
        drop(out);
        // The next run begins with nothing under way.
        let began = Instant::now();
        while tx.in_flight() > 0 {
            tx.reclaim();
            rx.rx(&mut got);
            got.give_back_to(cache);
            if shared {
                std::thread::yield_now();
            }
            if began.elapsed() > PATIENCE {
                bail!("{} packets that were sent did not arrive within {PATIENCE:?}", tx.in_flight());
            }
        }
        Ok(passed)
    }

    /// How often both devices were told of something.
    fn doorbells(&self) -> u64 {
        let all = self.ports.iter().flat_map(Port::statistics);
        all.filter(|statistic| statistic.name == "doorbells").map(|statistic| statistic.value).sum()
    }
}

/// Cycles between two readings, where the clock reads a counter of the CPU: not where it is told nanoseconds by the system.
fn cycles(clock: &Clock, first: u64, last: u64) -> Option<u64> {
    let (ticks, nanos) = (last.wrapping_sub(first), clock.delta_as_nanos(first, last));
    (cfg!(target_arch = "x86_64") && ticks.abs_diff(nanos) > nanos / 10_000).then_some(ticks)
}

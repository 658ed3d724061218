//! The inner loops of packet work, in TSC cycles an element: the same work, in the same rows, as `peers/dpdk.c` does on DPDK.
//!
//! `peers/compare` runs both in turn and prints the ratios. No device is in it: the ports hand out buffers and take them back.
//! Bursts of one in one thread use the calls for one item, on both sides. A repetition is short, and dropped when one of its threads had less
//! than 97 % of its core. Given a text, it measures the rows that have it in their names.

use nix::time::ClockId;
use quanta::Clock;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{env, fmt, hint, io, process, thread};
use wholebar::cores;
use wholebar::mem::{Arena, ArenaOptions, Buf, Pool, PoolCache};
use wholebar::net::{Burst, Mac, QueueState, RxCounters, RxQueue, TxCounters, TxQueue};
use wholebar::reactor::Armed;
use wholebar::ring::{self, Ring, Stash};

const BURSTS: [usize; 3] = [1, 8, 32];
const RING: usize = 1024;
const BUFFERS: u32 = 8191;
const CACHE: u32 = 256;

fn main() {
    if let Err(error) = run() {
        eprintln!("inner_loops: {error}");
        process::exit(1);
    }
}

fn run() -> wholebar::Result<()> {
    let two = cores::allowed().len() > 1;
    cores::pin(cores::allowed().first().copied().unwrap_or(0))?;
    let bench = Bench {
        clock: Clock::new(),
        reps: 1000,
        limit: Duration::from_secs(2),
        only: env::args().nth(1).unwrap_or_default(),
    };
    for burst in BURSTS {
        ring_in_one_thread(&bench, burst)?;
    }
    for burst in BURSTS {
        shared_ring_in_one_thread(&bench, burst)?;
    }
    if two {
        for burst in BURSTS {
            ring_across_threads(&bench, burst)?;
        }
        for burst in BURSTS {
            shared_ring_across_threads(&bench, burst)?;
        }
        for burst in BURSTS {
            contended_ring(&bench, burst)?;
        }
    }
    pools(&bench)?;
    if two {
        pipe(&bench)?;
    }
    forwarding(&bench)
}

/// How each row is measured.
struct Bench {
    clock: Clock,
    reps: usize,
    limit: Duration,
    /// Rows with this in their names.
    only: String,
}

impl Bench {
    /// Measures `work`, which returns how many elements it moved, and prints the row. `helper` is the other thread's id.
    /// The work is a function of its own, as it is on DPDK's side: not a part of this one, with few registers left.
    fn row(&self, name: &str, helper: Option<u32>, work: &mut dyn FnMut() -> u64) {
        if !name.contains(&self.only) {
            return;
        }
        let own = this_thread();
        let mut cycles = Vec::with_capacity(self.reps);
        let (began, mut tried) = (Instant::now(), 0);
        while cycles.len() < self.reps
            && (began.elapsed() < self.limit || (cycles.len() < 20 && began.elapsed() < 4 * self.limit))
        {
            let (theirs, ours, wall) = (helper.map(cpu_time), cpu_time(own), Instant::now());
            let start = self.clock.raw();
            let elements = work();
            let spent = self.clock.raw().wrapping_sub(start);
            let enough = wall.elapsed().mul_f64(0.97);
            let had_core = |thread, since| cpu_time(thread).saturating_sub(since) >= enough;
            tried += 1;
            if had_core(own, ours) && helper.zip(theirs).is_none_or(|(thread, since)| had_core(thread, since)) {
                cycles.push(spent as f64 / elements.max(1) as f64);
            }
        }
        cycles.sort_by(f64::total_cmp);
        let Some(last) = cycles.len().checked_sub(1) else {
            return say(format_args!("{name:<44} no clean repetition: the machine is too busy"));
        };
        let at = |part: f64| cycles[(last as f64 * part) as usize];
        let (min, med, p90) = (at(0.0), at(0.5), at(0.9));
        say(format_args!(
            "{name:<44} cyc/elem min {min:7.2} med {med:7.2} p90 {p90:7.2} | clean {}/{tried}",
            cycles.len()
        ));
    }
}

/// Prints a line; ends quietly where nobody reads any more.
fn say(line: fmt::Arguments<'_>) {
    if writeln!(io::stdout(), "{line}").is_err() {
        process::exit(1);
    }
}

fn this_thread() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get() as u32
}

/// How long a thread has run.
fn cpu_time(thread: u32) -> Duration {
    // The number that Linux gives to that clock: the thread's complement, "of a thread" (4), "as the scheduler counts" (2).
    ClockId::from_raw((!(thread as i32) << 3) | 6).now().map_or(Duration::ZERO, Duration::from)
}

/// Whether the other thread shall end; alone in its cache line, as it is read in every poll.
#[derive(Default)]
#[repr(align(128))]
struct Stop(AtomicBool);

impl Stop {
    #[inline(always)]
    fn asked(&self) -> bool {
        // Carries nothing but itself, as the thread's id below.
        self.0.load(Ordering::Relaxed)
    }
}

/// Runs `side`, which goes on until it is asked to stop, on the second core while `main` measures, which is told the thread's id.
/// What `side` works on is its own, away from what the first core writes.
fn beside(side: impl FnOnce(&Stop) + Send, main: impl FnOnce(u32)) {
    let (stop, id) = (Stop::default(), AtomicU32::new(0));
    thread::scope(|scope| {
        let (stop, id) = (&stop, &id);
        scope.spawn(move || {
            if let Some(&core) = cores::allowed().get(1) {
                let _ = cores::pin(core);
            }
            id.store(this_thread(), Ordering::Relaxed);
            side(stop);
        });
        while id.load(Ordering::Relaxed) == 0 {
            hint::spin_loop();
        }
        main(id.load(Ordering::Relaxed));
        stop.0.store(true, Ordering::Relaxed);
    });
}

fn times(burst: usize) -> usize {
    20_000 / (burst * if burst < 8 { 4 } else { 2 }) + 50
}

/// What goes in next is what came out.
fn ring_in_one_thread(bench: &Bench, burst: usize) -> wholebar::Result<()> {
    // The loop has the ends as variables of its own, as DPDK's has its pointer.
    let mut ends = Some(ring::spsc::<usize>(RING)?);
    let mut items: Vec<usize> = (0..burst).collect();
    bench.row(&format!("ring 1T SP/SC enq+deq burst {burst}"), None, &mut || {
        let Some((mut producer, mut consumer)) = ends.take() else { return 0 };
        if let [item] = &mut items[..] {
            *item = (0..times(1)).fold(*item, |item, _| {
                let _ = producer.push(item);
                consumer.pop().unwrap_or(item)
            });
        } else {
            for _ in 0..times(burst) {
                producer.push_burst(&mut items);
                consumer.pop_burst(&mut items, burst);
            }
        }
        ends = Some((producer, consumer));
        (times(burst) * burst) as u64
    });
    Ok(())
}

fn shared_ring_in_one_thread(bench: &Bench, burst: usize) -> wholebar::Result<()> {
    let ring = Ring::<usize>::new(RING)?;
    let mut items: Vec<usize> = (0..burst).collect();
    bench.row(&format!("ring 1T MP/MC enq+deq burst {burst}"), None, &mut || {
        if let [item] = &mut items[..] {
            *item = (0..times(1)).fold(*item, |item, _| {
                let _ = ring.push(item);
                ring.pop().unwrap_or(item)
            });
        } else {
            for _ in 0..times(burst) {
                ring.push_burst(&mut items);
                ring.pop_burst(&mut items, burst);
            }
        }
        (times(burst) * burst) as u64
    });
    Ok(())
}

/// Elements that a producer puts in a repetition.
fn wanted(burst: usize) -> usize {
    if burst == 1 { 8192 } else { 32768 }
}

/// Writes items and puts them, with `put`, which takes from the front, until `wanted` are in.
fn produce(burst: usize, mut put: impl FnMut(&mut Vec<usize>) -> usize) -> u64 {
    let (mut items, mut done) = (Vec::with_capacity(burst), 0);
    while done < wanted(burst) {
        items.resize(burst, done);
        match put(&mut items) {
            0 => hint::spin_loop(),
            n => done += n,
        }
    }
    done as u64
}

/// Takes with `take`, which appends, until it is asked to stop.
fn consume(burst: usize, stop: &Stop, mut take: impl FnMut(&mut Vec<usize>) -> usize) {
    let mut out = Vec::with_capacity(burst);
    while !stop.asked() {
        out.clear();
        if take(&mut out) == 0 {
            hint::spin_loop();
        }
    }
}

fn ring_across_threads(bench: &Bench, burst: usize) -> wholebar::Result<()> {
    let (mut producer, mut consumer) = ring::spsc::<usize>(RING)?;
    beside(
        move |stop| consume(burst, stop, |out| consumer.pop_burst(out, burst)),
        |helper| {
            bench.row(&format!("ring 2T SP/SC prod->cons burst {burst}"), Some(helper), &mut || {
                produce(burst, |items| producer.push_burst(items))
            });
        },
    );
    Ok(())
}

fn shared_ring_across_threads(bench: &Bench, burst: usize) -> wholebar::Result<()> {
    let ring = &Ring::<usize>::new(RING)?;
    beside(
        move |stop| consume(burst, stop, |out| ring.pop_burst(out, burst)),
        |helper| {
            bench.row(&format!("ring 2T MP/MC prod->cons burst {burst}"), Some(helper), &mut || {
                produce(burst, |items| ring.push_burst(items))
            });
        },
    );
    Ok(())
}

fn contended_ring(bench: &Bench, burst: usize) -> wholebar::Result<()> {
    let ring = &Ring::<usize>::new(RING)?;
    let iteration = move |items: &mut Vec<usize>| {
        if ring.push_burst(items) > 0 {
            ring.pop_burst(items, burst);
        }
    };
    beside(
        move |stop| {
            let mut items = vec![0; burst];
            while !stop.asked() {
                iteration(&mut items);
            }
        },
        |helper| {
            let mut items = vec![0; burst];
            bench.row(&format!("ring 2T MP/MC contended, per thread, burst {burst}"), Some(helper), &mut || {
                (0..1000).for_each(|_| iteration(&mut items));
                1000 * burst as u64
            });
        },
    );
    Ok(())
}

fn packet_pool() -> wholebar::Result<Pool> {
    let arena = Arena::new(u64::from(BUFFERS) * 2176 + (1 << 21), ArenaOptions::default())?;
    Pool::new(arena, BUFFERS, 2048 + 128, 64)
}

fn pools(bench: &Bench) -> wholebar::Result<()> {
    let pool = packet_pool()?;
    let mut cache = pool.cache(CACHE);
    let mut bufs = Vec::with_capacity(32);
    bench.row("mbuf alloc_bulk+free_bulk 32 cache256 (MP/MC)", None, &mut || {
        for _ in 0..500 {
            cache.get_bulk(&mut bufs, 32);
            cache.put_bulk(&mut bufs);
        }
        500 * 32
    });
    bench.row("mbuf alloc_bulk+32x free cache256 (MP/MC)", None, &mut || {
        for _ in 0..500 {
            cache.get_bulk(&mut bufs, 32);
            bufs.drain(..).for_each(|buf| cache.put(buf));
        }
        500 * 32
    });
    let ring = Ring::<usize>::new(RING * 8)?;
    ring.push_burst(&mut (0..BUFFERS as usize).collect());
    let mut stash = Stash::new(CACHE as usize);
    for burst in [32, 8, 1] {
        let mut items = Vec::with_capacity(burst);
        bench.row(&format!("mempool get_bulk+put_bulk {burst} cache256"), None, &mut || {
            for _ in 0..1000 {
                if burst == 1 {
                    stash.pop(&ring).into_iter().for_each(|item| stash.push(item, &ring));
                } else {
                    stash.pop_bulk(&mut items, burst, &ring);
                    stash.push_bulk(&mut items, &ring);
                }
            }
            1000 * burst as u64
        });
    }
    Ok(())
}

/// Buffers are taken on one core, cross a ring, and are given back on the other.
fn pipe(bench: &Bench) -> wholebar::Result<()> {
    let pool = packet_pool()?;
    let (mut producer, mut consumer) = ring::spsc::<Buf>(RING)?;
    let (mut cache, mut theirs) = (pool.cache(CACHE), pool.cache(CACHE));
    let mut bufs = Vec::with_capacity(32);
    let side = move |stop: &Stop| {
        let mut out = Vec::with_capacity(32);
        while !stop.asked() {
            if consumer.pop_burst(&mut out, 32) == 0 {
                hint::spin_loop();
            }
            theirs.put_bulk(&mut out);
        }
    };
    beside(side, |helper| {
        bench.row("pipe 2T alloc->SP/SC ring->free, 32", Some(helper), &mut || {
            let mut done = 0;
            while done < 8192 {
                if !cache.get_bulk(&mut bufs, 32) {
                    hint::spin_loop();
                    continue;
                }
                bufs.iter_mut().for_each(|buf| buf.set_len(60));
                while !bufs.is_empty() {
                    if producer.push_burst(&mut bufs) == 0 {
                        hint::spin_loop();
                    }
                }
                done += 32;
            }
            done
        });
    });
    Ok(())
}

/// Hands out packets of 64 bytes that nobody wrote.
struct NullRx {
    cache: PoolCache,
    counters: RxCounters,
}

impl RxQueue for NullRx {
    fn rx(&mut self, out: &mut Burst) -> usize {
        let (before, n) = (out.len(), out.room());
        if !out.fill(&mut self.cache, n) {
            return 0;
        }
        out[before..].iter_mut().for_each(|buf| buf.set_len(64));
        self.counters.packets.add(n as u64);
        self.counters.bytes.add(64 * n as u64);
        n
    }

    fn state(&self) -> QueueState {
        QueueState::Running
    }

    fn wakeup(&self) -> Option<std::sync::Arc<wholebar::irq::EventFd>> {
        None
    }

    fn arm(&mut self) -> Armed {
        Armed::No
    }

    fn disarm(&mut self) {}
}

/// Takes packets back.
struct NullTx {
    cache: PoolCache,
    counters: TxCounters,
}

impl TxQueue for NullTx {
    fn tx(&mut self, packets: &mut Burst) -> usize {
        let n = packets.len();
        self.counters.packets.add(n as u64);
        self.counters.bytes.add(packets.iter().map(|buf| u64::from(buf.len())).sum());
        packets.give_back_to(&mut self.cache);
        n
    }

    fn reclaim(&mut self) {}

    fn in_flight(&self) -> usize {
        0
    }

    fn state(&self) -> QueueState {
        QueueState::Running
    }
}

/// What is done to a packet between ports.
type Rewrite = fn(&mut Burst, Mac, Mac);

fn forwarding(bench: &Bench) -> wholebar::Result<()> {
    let pool = packet_pool()?;
    let port = || -> (Box<dyn RxQueue>, Box<dyn TxQueue>) {
        let cache = || pool.cache(CACHE);
        (
            Box::new(NullRx { cache: cache(), counters: RxCounters::default() }),
            Box::new(NullTx { cache: cache(), counters: TxCounters::default() }),
        )
    };
    let (mut first, mut second) = (port(), port());
    let own = Mac([2, 0, 0, 0, 0, 1]);
    let next_hop = Mac([2, 0, 0, 0, 0, 2]);
    let rewrites: [(&str, usize, Rewrite); 4] = [
        ("io", 32, |_, _, _| ()),
        ("macswap", 32, mac_swap),
        ("l2fwd(mac update)", 32, l2fwd),
        ("io", 8, |_, _, _| ()),
    ];
    for (name, most, rewrite) in rewrites {
        let mut burst = Burst::new(most);
        let mut iteration = |rx: &mut dyn RxQueue, tx: &mut dyn TxQueue| {
            let n = rx.rx(&mut burst);
            rewrite(&mut burst, own, next_hop);
            tx.tx(&mut burst);
            n as u64
        };
        bench.row(&format!("fwd net_null {name} burst {most}"), None, &mut || {
            (0..200).map(|_| iteration(&mut *first.0, &mut *second.1) + iteration(&mut *second.0, &mut *first.1)).sum()
        });
    }
    Ok(())
}

fn mac_swap(burst: &mut Burst, _: Mac, _: Mac) {
    for buf in burst.iter_mut() {
        if let Some((macs, _)) = buf.bytes_mut().split_first_chunk_mut::<12>() {
            let (to, from) = macs.split_at_mut(6);
            to.swap_with_slice(from);
        }
    }
}

fn l2fwd(burst: &mut Burst, own: Mac, next_hop: Mac) {
    for buf in burst.iter_mut() {
        if let Some((macs, _)) = buf.bytes_mut().split_first_chunk_mut::<12>() {
            macs[..6].copy_from_slice(&next_hop.0);
            macs[6..].copy_from_slice(&own.0);
        }
    }
}

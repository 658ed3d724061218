//! Checks of a network port: settings, packets to itself, which are confirmed as sent, and come back where the wire or a peer returns them; wake-ups, resets
//! under traffic. What it sends is of a type for experiments, to its own address: nobody else is troubled.

use crate::device::Reset;
use crate::disk::{explained, reset_or_ended};
use crate::packets::{bytes, frame, number};
use crate::storage::{PATIENCE, wait_while};
use crate::wakeup::{self, Sleeper};
use crate::{Found, Runner};
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use wholebar::bar::MapPolicy;
use wholebar::block::QueueState;
use wholebar::drivers::Mapping;
use wholebar::mem::{Arena, ArenaOptions, Pool};
use wholebar::net::{self, Burst, Event, Mac, Port, PortConfig, RxQueue, TxQueue};
use wholebar::pci::PciDevice;
use wholebar::reactor::Armed;
use wholebar::{Error, OpenError, PageSize};

/// Pairs of queues that are tried at most.
const QUEUES: u16 = 4;
/// Buffers of a port, of 2048 bytes and the headroom.
const BUFFERS: u32 = 4096;
/// How long a link may take to come up.
const LINK: Duration = Duration::from_secs(10);
/// How long nothing may come until what has not come is lost.
const QUIET: Duration = Duration::from_secs(10);
/// Packets under way at most.
const WINDOW: u64 = 64;
/// How often the link is negotiated anew, and how long it may take until it goes.
const FLAPS: u32 = 2;
const GOES: Duration = Duration::from_secs(2);
/// Resets under load.
const RESETS: u32 = 3;

/// A port with all of its queues.
struct Bench {
    port: Box<dyn Port>,
    rx: Vec<Box<dyn RxQueue>>,
    tx: Vec<Box<dyn TxQueue>>,
    pool: Pool,
}

impl Bench {
    /// Opens the port with at most `pairs` queues each way, and waits for its link.
    fn open(device: &Arc<dyn PciDevice>, mapping: Mapping, pairs: u16) -> Result<Self> {
        let mut config = PortConfig { rx_interrupts: true, ..PortConfig::default() };
        let mut port = net::drivers().open(device.clone(), &config, mapping)?;
        let limits = *port.limits();
        (config.rx_queues, config.tx_queues) = (pairs.min(limits.rx_queues), pairs.min(limits.tx_queues));
        if port.queues() != (config.rx_queues, config.tx_queues) {
            drop(port);
            port = net::drivers().open(device.clone(), &config, mapping)?;
        }
        let size = 2048 + u32::from(config.headroom);
        let arena = Arena::new(u64::from(BUFFERS) * 4096 + (1 << 20), ArenaOptions::default())?;
        port.attach(arena.clone())?;
        let pool = Pool::new(arena, BUFFERS, size, 4096)?;
        let (rx, tx) = port.queues();
        let rx = (0..rx).map(|i| port.rx_queue(i, &pool)).collect::<Result<_, _>>()?;
        let tx = (0..tx).map(|i| port.tx_queue(i)).collect::<Result<_, _>>()?;
        let bench = Self { port, rx, tx, pool };
        let began = Instant::now();
        while !bench.port.link().up && began.elapsed() < LINK {
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(bench)
    }

    /// Sends packet `number` to itself by one of its queues. Returns whether there was room.
    fn send(&mut self, number: u64) -> Result<bool> {
        let len = 60 + (number * 131 % 1455) as usize;
        let mut packet = self.pool.get().context("no buffer left")?;
        ensure!(packet.reserve(64), "a buffer has room for its headroom");
        packet.copy_from(&frame(self.port.mac(), len, number));
        let queue = (number % self.tx.len() as u64) as usize;
        let mut burst = Burst::new(1);
        let _ = burst.push(packet);
        self.tx[queue].tx(&mut burst);
        Ok(burst.is_empty())
    }

    /// Takes what has come; returns the numbers of packets of its own, which are as they were sent.
    fn receive(&mut self) -> Result<Vec<u64>> {
        received(&mut self.rx, self.port.mac())
    }

    /// Sends `count` packets to itself, and waits until they are back, or nothing has come for `quiet`. Returns how many came back.
    fn exchange(&mut self, count: u64, quiet: Duration) -> Result<u64> {
        let (mut sent, mut came, mut seen) = (0, 0, vec![false; usize::try_from(count)?]);
        let mut last = Instant::now();
        while came < count {
            while sent < count && sent < came + WINDOW && self.send(sent)? {
                sent += 1;
            }
            for tx in &mut self.tx {
                tx.reclaim();
            }
            for number in self.receive()? {
                let seen = seen.get_mut(usize::try_from(number)?).context("a packet that nobody sent")?;
                ensure!(!std::mem::replace(seen, true), "packet {number} came twice");
                (came, last) = (came + 1, Instant::now());
            }
            let stopped = self.rx.iter().map(|rx| rx.state()).find(|state| *state != QueueState::Running);
            ensure!(stopped.is_none(), "a receive queue does not run any more: {stopped:?}");
            // Where nothing comes back, those that may be under way are sent nevertheless.
            let waits = sent == count || sent == came + WINDOW;
            if last.elapsed() > if waits { quiet } else { PATIENCE } {
                break;
            }
            std::thread::yield_now();
        }
        self.confirmed()?;
        Ok(came)
    }

    /// Waits until the device has sent all that it was given.
    fn confirmed(&mut self) -> Result<()> {
        let began = Instant::now();
        loop {
            self.receive()?;
            self.tx.iter_mut().for_each(|tx| tx.reclaim());
            let left: usize = self.tx.iter().map(|tx| tx.in_flight()).sum();
            if left == 0 {
                return Ok(());
            }
            ensure!(began.elapsed() < PATIENCE, "{left} packets were not confirmed as sent");
            std::thread::yield_now();
        }
    }

    /// Does something with the port during which its driver must not have to reset it, and no queue may get stuck.
    fn with(mut self, body: impl FnOnce(&mut Self) -> Result<Found>) -> Result<Found> {
        let found = body(&mut self);
        // Queues that nobody polls would delay the reset that tells of itself.
        let told = || {
            let _ = self.receive();
            self.tx.iter_mut().for_each(|tx| tx.reclaim());
            self.port.events().try_iter().find_map(|event| match event {
                Event::Device(event) => reset_or_ended(event),
                Event::Stalled { queue, waited } => Some(format!("send queue {queue} was stuck for {waited:.1?}")),
                _ => None,
            })
        };
        let found = explained(found, told);
        found.and_then(|(found, told)| told.map_or(Ok(found), |why| bail!("the driver tells: {why}")))
    }

    /// A counter, summed over queues.
    fn count(&self, name: &str) -> Option<u64> {
        let all = self.port.statistics();
        all.iter().filter(|s| s.name == name && s.queue.starts_with("tx")).map(|s| s.value).reduce(|a, b| a + b)
    }
}

/// Takes what has come to queues of the port with address `mac`; the numbers of packets of its own.
fn received(rx: &mut [Box<dyn RxQueue>], mac: Mac) -> Result<Vec<u64>> {
    let (mut burst, mut numbers) = (Burst::new(32), Vec::new());
    for queue in rx {
        queue.rx(&mut burst);
        for packet in burst.iter() {
            let got = bytes(packet);
            let Some(number) = number(&got) else { continue };
            ensure!(got == frame(mac, got.len(), number), "packet {number} came back changed");
            numbers.push(number);
        }
        burst.give_back();
    }
    Ok(numbers)
}

/// Tries a port. Returns whether the device is one.
pub fn port(runner: &mut Runner<'_>, device: &Arc<dyn PciDevice>) -> bool {
    let opened = net::drivers().open(device.clone(), &PortConfig::default(), Mapping::default());
    if let Err(OpenError::NoDriver { .. }) = opened {
        return false;
    }
    drop(opened);
    let mut up = false;
    let opens = runner.check("port", "opens", || {
        let bench = Bench::open(device, Mapping::default(), 1)?;
        let (link, limits) = (bench.port.link(), *bench.port.limits());
        up = link.up;
        let queues = format!("{} and {} queues", limits.rx_queues, limits.tx_queues);
        Ok(Found::Good(format!("{}; link {link}; {queues}; MTU up to {}", bench.port.driver(), limits.mtu)))
    });
    if !opens {
        return true;
    }
    runner.check("port", "settings", || settings(device));
    if !up {
        let why =
            || Ok(Found::Nothing("the link is down: plug in a cable, a loop, or a peer that reflects".to_owned()));
        runner.check("port", "packets", why);
        return true;
    }
    let mut returns = false;
    let counted = |bench: &mut Bench| {
        let pairs = bench.tx.len();
        let count = WINDOW;
        returns = bench.exchange(count, QUIET)? > 0;
        let counted = bench.count("packets");
        ensure!(counted.is_none_or(|n| n >= count), "{count} packets were sent, and {counted:?} are counted");
        Ok(Found::Good(format!("{count} packets by {pairs} queues, each confirmed")))
    };
    let open = |pairs| Bench::open(device, Mapping::default(), pairs);
    let sends = runner.check("port", "packets are sent, and counted", || open(QUEUES)?.with(counted));
    if !sends {
        return true;
    }
    let back = "packets come back as they were sent";
    if returns {
        runner.check("port", back, || came_back(device, Mapping::default(), 2000));
        runner.check("port", "packets under each plan of its BARs", || plans(device));
        runner.check("port", "wake-ups", || open(1)?.with(wakes));
    } else {
        let why = "what it sends does not come back: no loop, and no peer that reflects".to_owned();
        runner.check("port", back, || Ok(Found::Nothing(why)));
    }
    runner.check("port", "the link goes and comes back", || open(1)?.with(|bench| flaps(bench, returns)));
    for (name, reset) in [
        ("resets under traffic", Reset::Controller),
        ("resets of the function under traffic", Reset::Function),
        ("resets of the slot under traffic", Reset::Slot),
    ] {
        runner.check("port", name, || resets(device, returns, reset));
    }
    true
}

fn settings(device: &Arc<dyn PciDevice>) -> Result<Found> {
    let bench = Bench::open(device, Mapping::default(), 1)?;
    let port = &bench.port;
    let (mut set, mut refused) = (Vec::new(), Vec::new());
    let mut note = |what: &'static str, done: Result<(), wholebar::DriverError>| match done {
        Ok(()) => set.push(what),
        Err(error) => refused.push(format!("{what}: {error}")),
    };
    note("address", port.set_mac(port.mac()));
    note("promiscuous", port.set_promiscuous(true).and_then(|()| port.set_promiscuous(false)));
    note("all multicast", port.set_all_multicast(true).and_then(|()| port.set_all_multicast(false)));
    let group = Mac([0x01, 0x00, 0x5e, 0, 0, 1]);
    note("filters", port.set_filters(&[group]).and_then(|()| port.set_filters(&[])));
    Ok(match (set.join(", "), refused.join("; ")) {
        (set, refused) if set.is_empty() => Found::Nothing(refused),
        (set, refused) if refused.is_empty() => Found::Good(set),
        (set, refused) => Found::Good(format!("{set}; refused: {refused}")),
    })
}

fn came_back(device: &Arc<dyn PciDevice>, mapping: Mapping, count: u64) -> Result<Found> {
    Bench::open(device, mapping, QUEUES)?.with(|bench| {
        let came = bench.exchange(count, QUIET)?;
        ensure!(came == count, "{} of {count} packets did not come back", count - came);
        Ok(Found::Good(format!("{count} packets of 60 to 1514 bytes, each once, none changed")))
    })
}

fn plans(device: &Arc<dyn PciDevice>) -> Result<Found> {
    let page = Some(PageSize::K64.max(device.page_size()));
    for (name, policy, page) in [("carved for 64 KiB", MapPolicy::Carved, page), ("trapped", MapPolicy::Trapped, None)]
    {
        came_back(device, Mapping { policy, page }, 500).context(name)?;
    }
    Ok(Found::Good("carved for 64 KiB, and trapped: 500 packets each came back".to_owned()))
}

/// A port, of which one packet is under way.
struct Receiver<'a>(&'a mut Bench);

impl Sleeper for Receiver<'_> {
    fn poll(&mut self) -> Result<bool> {
        Ok(!self.0.receive()?.is_empty())
    }

    fn arm(&mut self) -> Armed {
        self.0.rx[0].arm()
    }

    fn disarm(&mut self) {
        self.0.rx[0].disarm();
    }
}

fn wakes(bench: &mut Bench) -> Result<Found> {
    const TIMES: u64 = 300;
    let Some(fd) = bench.rx[0].wakeup() else {
        return Ok(Found::Nothing("no interrupt is there for a queue".to_owned()));
    };
    let mut slept = 0;
    for number in 0..TIMES {
        ensure!(bench.send(number)?, "no room for one packet");
        slept += u64::from(wakeup::wait(&mut Receiver(bench), &fd).with_context(|| format!("packet {number}"))?);
        bench.tx[0].reclaim();
    }
    Ok(Found::Good(format!("{TIMES} packets, {slept} of them waited for asleep")))
}

/// Has the link be negotiated anew, and packets go by it afterwards.
fn flaps(bench: &mut Bench, returns: bool) -> Result<Found> {
    let mut seen = 0;
    for round in 1..=FLAPS {
        match bench.port.renegotiate() {
            Ok(()) => {}
            Err(error) => match error.downcast_ref::<Error>() {
                Some(Error::NoNegotiation { .. }) => {
                    return Ok(Found::Nothing(
                        "nobody negotiates this link: neither the device nor its driver".to_owned(),
                    ));
                }
                _ => return Err(error.into()),
            },
        }
        // One that is back before anybody has looked is well, too.
        let (began, mut gone) = (Instant::now(), false);
        while began.elapsed() < if gone { LINK } else { GOES } && (!gone || !bench.port.link().up) {
            gone |= !bench.port.link().up;
            bench.receive()?;
            std::thread::sleep(Duration::from_millis(1));
        }
        ensure!(bench.port.link().up, "the link went, and did not come back within {LINK:?} (round {round})");
        seen += u32::from(gone);
        let came = bench.exchange(WINDOW, if returns { QUIET } else { Duration::ZERO })?;
        ensure!(!returns || came == WINDOW, "after round {round} {came} of {WINDOW} packets came back");
    }
    Ok(Found::Good(format!("negotiated {FLAPS} times; it was seen to go {seen} times, and came back")))
}

/// Sends on a thread while the device is reset.
fn resets(device: &Arc<dyn PciDevice>, returns: bool, kind: Reset) -> Result<Found> {
    let Bench { port, mut rx, mut tx, pool } = Bench::open(device, Mapping::default(), 1)?;
    let (stop, sent, mac) = (AtomicBool::new(false), AtomicU64::new(0), port.mac());
    let nothing = std::thread::scope(|scope| -> Result<Option<String>> {
        let sender = std::thread::Builder::new().spawn_scoped(scope, || -> Result<()> {
            let mut burst = Burst::new(1);
            while !stop.load(Ordering::Relaxed) {
                if burst.is_empty()
                    && let Some(mut packet) = pool.get()
                    && packet.reserve(64)
                {
                    packet.copy_from(&frame(mac, 60, 0));
                    let _ = burst.push(packet);
                }
                sent.fetch_add(tx[0].tx(&mut burst) as u64, Ordering::Relaxed);
                tx[0].reclaim();
                received(&mut rx, mac)?;
                std::thread::yield_now();
            }
            Ok(())
        });
        let sender = sender.context("starting a thread")?;
        let reset = || -> Result<Option<String>> {
            for round in 1..=RESETS {
                let seen = sent.load(Ordering::Relaxed);
                wait_while(|| sent.load(Ordering::Relaxed) == seen && !sender.is_finished())?;
                if let Some(nothing) = kind.of(device)? {
                    return Ok(Some(nothing));
                }
                port.reset().with_context(|| format!("reset {round}"))?;
            }
            Ok(None)
        };
        let reset = reset();
        stop.store(true, Ordering::Relaxed);
        sender.join().map_err(|_| anyhow!("a thread panicked"))??;
        reset
    })?;
    drop((rx, tx, port));
    ensure!(pool.available() == pool.capacity(), "{} of {} buffers are home", pool.available(), pool.capacity());
    if let Some(nothing) = nothing {
        return Ok(Found::Nothing(nothing));
    }
    let sent = sent.into_inner();
    Bench::open(device, Mapping::default(), 1)?.with(|bench| {
        ensure!(bench.port.link().up, "the link did not come up again");
        let came = bench.exchange(WINDOW, if returns { QUIET } else { Duration::ZERO })?;
        ensure!(!returns || came == WINDOW, "afterwards {came} of {WINDOW} packets came back");
        Ok(Found::Good(format!("{RESETS} resets, {sent} packets sent meanwhile; every buffer came home")))
    })
}

//! `l2fwd [PORT PORT]`: the program to copy for packets. What one port receives, the other sends, from its own address to 02:00:00:00:00:NN,
//! NN being the port; on one core, until Ctrl-C.
//!
//! ```sh
//! cargo run --release -p l2fwd                                     # no device, no root
//! l2fwd 0000:01:00.0 0000:02:00.0                                  # two that `wholebar bind` gave to vfio-pci
//! l2fwd sim:virtio-net,wire=tap:t0 sim:virtio-net,wire=tap:t1      # two TAP interfaces, by two models of a card
//! ```
//!
//! Without ports it takes two models of a virtio network card, each with a plug that sends back what it is sent, and puts 32 packets between
//! them, which then go round for two seconds. A port is a virtio network device, an Intel 82576 or a vmxnet3, by the name of any target.
//!
//! Everything is here: devices, drivers, memory, queues, the loop. `wholebar net fwd` is the same with several queues and cores, rates, JSON.

use anyhow::{Context, Result, anyhow, bail, ensure};
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use wholebar::control_plane::DeviceEvent;
use wholebar::drivers::Mapping;
use wholebar::mem::{Arena, ArenaOptions, Pool};
use wholebar::net::{self, Burst, Event, Port, PortConfig, RxQueue, TxQueue};
use wholebar::{OpenError, OpenOptions, Target, cores};

/// Packets that are moved at once.
const BURST: usize = 32;
/// Buffers, for both ports: enough to fill all their queues. Each holds a packet and the room in front of it.
const BUFFERS: u32 = 4096;
const BUFFER: u32 = 2048 + 128;
/// How long packets go round without ports.
const DEMONSTRATION: Duration = Duration::from_secs(2);

const USAGE: &str = "usage: l2fwd [PORT PORT]: 0000:01:00.0 0000:02:00.0; without any, two models";

/// A port and its one pair of queues.
struct End {
    port: Box<dyn Port>,
    rx: Box<dyn RxQueue>,
    tx: Box<dyn TxQueue>,
}

fn run(names: [&str; 2], time: Option<Duration>, out: &mut impl Write) -> Result<()> {
    // The first Ctrl-C ends the loop, so that devices are given back in order.
    let stop = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGINT, stop.clone())
        .map_err(|e| anyhow!("taking Ctrl-C: {e}"))?;

    // This thread gets a core to itself, and models another.
    let (core, others) = cores::allowed().split_first().context("this process may use no core")?;
    cores::pin(*core)?;
    let options = OpenOptions { model_core: others.first().copied(), ..OpenOptions::default() };

    // Memory: one arena that both devices are let into, so that a buffer one received into, the other can send from. A `Buf` is an owned
    // handle of eight bytes, and goes home to its pool when it is dropped.
    let arena = Arena::new(u64::from(BUFFERS) * u64::from(BUFFER), ArenaOptions::default())?;
    let pool = Pool::new(arena, BUFFERS, BUFFER, 64)?;
    let mut ends = [end(0, names[0], &options, &pool, out)?, end(1, names[1], &options, &pool, out)?];
    let headers = [header(0, &ends[0]), header(1, &ends[1])];
    // What one end received, and the other has not sent yet.
    let mut bursts = [Burst::new(BURST), Burst::new(BURST)];
    if time.is_some() {
        ensure!(bursts[0].fill(&mut pool.cache(BURST as u32), BURST), "the pool is empty");
        for packet in bursts[0].iter_mut() {
            packet.reserve(128);
            packet.copy_from(&[&headers[1][..], &[0x08, 0x00], &[0; 50]].concat());
        }
    }

    // The loop: nothing in it locks, allocates or calls the kernel, but for a look at clock and events now and then.
    let (began, mut iterations) = (Instant::now(), 0u64);
    while !stop.load(Ordering::Relaxed) && time.is_none_or(|time| iterations % 1024 > 0 || began.elapsed() < time) {
        for (from, to) in [(0, 1), (1, 0)] {
            let burst = &mut bursts[from];
            let held = burst.len();
            ends[from].rx.rx(burst);
            for packet in &mut burst[held..] {
                if let Some(addresses) = packet.bytes_mut().first_chunk_mut() {
                    *addresses = headers[to];
                }
            }
            // What there is no room for stays in the burst, in front. A queue with nothing to send gives back the buffers of what it sent.
            match burst.is_empty() {
                true => ends[to].tx.reclaim(),
                false => _ = ends[to].tx.tx(burst),
            }
        }
        iterations += 1;
        if iterations.is_multiple_of(1024) {
            handle_events(&ends)?;
        }
    }

    let seconds = began.elapsed().as_secs_f64();
    for (number, End { port, .. }) in ends.iter().enumerate() {
        writeln!(out, "port {number}, in {seconds:.1} s:")?;
        for counter in port.statistics().iter().filter(|counter| counter.value > 0) {
            writeln!(out, "  {:4} {:24} {:>12}", counter.queue, counter.name, counter.value)?;
        }
    }
    // Every buffer is home once nobody holds any: bursts, queues, devices.
    drop((bursts, ends));
    ensure!(pool.available() == BUFFERS, "{} of {BUFFERS} buffers are home", pool.available());
    Ok(())
}

/// A port by its device's name, with whichever driver that needs; let into the pool's arena; and its queues.
fn end(number: usize, name: &str, options: &OpenOptions, pool: &Pool, out: &mut impl Write) -> Result<End> {
    // What a port is to receive is said here, not once it runs: until it is told, a device drops what is for other addresses than its own.
    let config = PortConfig { headroom: 128, promiscuous: true, ..PortConfig::default() };
    let port = net::drivers().open_target(&Target::parse(name)?, options, &config, Mapping::default())?;
    port.attach(pool.arena().clone())?;
    writeln!(out, "port {number}: {}, {}, MTU {}, link {}", port.name(), port.mac(), port.mtu(), port.link())?;
    Ok(End { rx: port.rx_queue(0, pool)?, tx: port.tx_queue(0)?, port })
}

/// The Ethernet addresses of what a port sends: destination, source.
fn header(number: u8, end: &End) -> [u8; 12] {
    let mut header = [0x02, 0, 0, 0, 0, number, 0, 0, 0, 0, 0, 0];
    header[6..].copy_from_slice(&end.port.mac().0);
    header
}

/// The slow path: what happened to the ports.
fn handle_events(ends: &[End]) -> Result<()> {
    for (number, End { port, .. }) in ends.iter().enumerate() {
        for event in port.events().try_iter() {
            match event {
                Event::Device(DeviceEvent::Ended { why }) => bail!("port {number} ended: {why}"),
                Event::Device(DeviceEvent::UnbindRequest) => bail!("port {number}: the kernel wants the device back"),
                event => _ = writeln!(io::stderr(), "port {number}: {event:?}"),
            }
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (names, time) = match &args[..] {
        [] => (["sim:virtio-net", "sim:virtio-net"], Some(DEMONSTRATION)),
        [one, other] => ([one.as_str(), other.as_str()], None),
        [help] if help == "--help" => {
            let _ = writeln!(io::stdout(), "{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            let _ = writeln!(io::stderr(), "{USAGE}");
            return ExitCode::from(2);
        }
    };
    let Err(error) = run(names, time, &mut io::stdout()) else { return ExitCode::SUCCESS };
    match error.downcast_ref::<io::Error>() {
        // Nobody reads any more, as in `l2fwd | head -1`.
        Some(e) if e.kind() == ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
        Some(e) => _ = writeln!(io::stderr(), "l2fwd: cannot write to standard output: {e}"),
        None => _ = writeln!(io::stderr(), "l2fwd: {error:#}"),
    }
    ExitCode::from(if error.downcast_ref().is_some_and(OpenError::is_name) { 2 } else { 1 })
}

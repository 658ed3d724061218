//! A benchmark of one's own: frames of a mix of sizes from one port to another, at a rate, whichever drivers they need; what was lost of them, and how long
//! the others took. `cargo run --example loss -- sim:virtio-net,wire=pair:a sim:virtio-net,wire=pair:a`, which is what it does where nothing is said.

use std::error::Error;
use std::sync::Arc;
use wholebar::mem::{Arena, ArenaOptions, Pool};
use wholebar::net::{self, Burst, PortConfig};
use wholebar_measure::latency::Percentiles;
use wholebar_measure::net::accounting::Accounting;
use wholebar_measure::net::generator::Generator;
use wholebar_measure::net::mark::Clock;
use wholebar_measure::net::rate::{Rate, RateLimiter};
use wholebar_measure::net::sizes::{FrameSizes, Sizes};
use wholebar_measure::net::template::{Headers, Template};

/// A model of a port; two of them are wired to each other. Whoever sends waits for room.
const WIRED: &str = "sim:virtio-net,wire=pair:loss,full=wait";
const COUNT: u64 = 10_000;
const HEADROOM: u16 = 128;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let (from, to) = match &args[..] {
        [] => (WIRED, WIRED),
        [from, to] => (from.as_str(), to.as_str()),
        _ => return Err("two targets are wanted, of ports that are wired to each other".into()),
    };
    let arena = Arena::new(16 << 20, ArenaOptions::default())?;
    let pool = Pool::new(arena.clone(), 4096, 2048 + u32::from(HEADROOM), 64)?;
    let open = |target: &str| -> Result<_, Box<dyn Error>> {
        let port = net::open_target(target, &PortConfig { headroom: HEADROOM, ..PortConfig::default() })?;
        port.attach(arena.clone())?;
        let (rx, tx) = (port.rx_queue(0, &pool)?, port.tx_queue(0)?);
        Ok((port, rx, tx))
    };
    let ((from, _from_rx, mut tx), (to, mut rx, _to_tx)) = (open(from)?, open(to)?);
    while !from.link().up || !to.link().up {}

    let template = Template::new(&Headers { from: from.mac(), to: to.mac(), vlan: None, v6: false }, 4, 1)?;
    let limiter = RateLimiter::new(Rate::Packets(20e3), 1);
    // The least frame has room for a mark: 46 bytes of headers and check sequence, and 18.
    let mut generator = Generator::new(Arc::new(template), FrameSizes::new(Sizes::Imix, 1), limiter, 1, 0..4)?;
    let (mut accounting, mut clock) = (Accounting::new(Some(1)), Clock::new(&wholebar_measure::quanta::Clock::new()));
    let (mut cache, mut out, mut came, mut made) = (pool.cache(32), Burst::new(32), Burst::new(32), 0);
    let mut last = clock.now();
    generator.start(last);
    // Until all came, or nothing for a minute: a model may be kept from its core for long.
    while accounting.received() < COUNT && clock.now() < last + 60_000_000_000 {
        let now = clock.now();
        generator.advance(now);
        while made < COUNT && out.room() > 0 && generator.is_due(now) {
            let Some(packet) = generator.make(&mut cache, HEADROOM, now) else { break };
            made += u64::from(out.push(packet).is_ok());
        }
        if tx.tx(&mut out) == 0 {
            tx.reclaim();
        }
        if rx.rx(&mut came) > 0 {
            last = clock.now();
            came.iter().for_each(|packet| accounting.record(packet, last));
            came.give_back_to(&mut cache);
        }
    }
    let found = accounting.findings();
    let (p, received) = (Percentiles::of(&found.latency), found.arrivals.received);
    println!(
        "{made} packets sent, {received} received, {} reordered, {} corrupt",
        found.arrivals.reordered, found.corrupt
    );
    println!("latency in ns: p50 {}, p99 {}, max {}", p.p50, p.p99, p.max);
    if received < COUNT { Err(format!("{} packets were lost", COUNT - received).into()) } else { Ok(()) }
}

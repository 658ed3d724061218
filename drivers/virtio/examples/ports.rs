//! `ports [MODEL MODEL]`: packets of 64 bytes from one network device to another that is wired to it, on split and on packed rings,
//! by the size of a burst. The devices are models, by default two on one wire: figures of emulation.
//!
//! ```sh
//! cargo run -p wholebar-virtio --release --example ports
//! ```

use std::error::Error;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wholebar_core::cores;
use wholebar_core::mem::{Arena, ArenaOptions, Pool};
use wholebar_core::net::{Burst, Port, PortConfig};
use wholebar_sim::Target;
use wholebar_virtio::{Net, Options};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const BURSTS: [usize; 3] = [1, 8, 32];
const TIME: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let mut out = std::io::stdout();
    let given: Vec<_> = std::env::args().skip(1).collect();
    let wired = "sim:virtio-net,wire=pair:ports,full=wait".to_owned();
    let [from, to] = <[String; 2]>::try_from(given).unwrap_or([wired.clone(), wired]);
    let cores = cores::allowed();
    cores::pin(cores.first().copied().unwrap_or(0))?;
    for packed in [false, true] {
        let devices = [&from, &to].map(|model| Target::parse(model)?.open(cores.get(1).copied()));
        let [from, to] = devices.map(|device| device.map_err(Box::<dyn Error + Send + Sync>::from));
        let (from, to) = (from?, to?);
        let open = |device: &wholebar_sim::Opened| {
            Net::open(device.model.clone(), &PortConfig::default(), Options { packed, ..Options::default() })
        };
        let (from_port, to_port) = (open(&from)?, open(&to)?);
        let arena = Arena::new(8 << 20, ArenaOptions::default())?;
        writeln!(out, "{} rings", if packed { "packed" } else { "split" })?;
        for port in [&from_port, &to_port] {
            port.attach(arena.clone())?;
            writeln!(out, "  {}: {}, MTU {}, offers {}", port.name(), port.mac(), port.mtu(), port.limits().offloads)?;
        }
        let began = Instant::now();
        while !(from_port.link().up && to_port.link().up) {
            if began.elapsed() > PATIENCE {
                return Err("the link does not come up: are the two wired to each other?".into());
            }
            std::thread::yield_now();
        }
        for burst in BURSTS {
            let rate = pass(&from_port, &to_port, arena.clone(), burst)?;
            writeln!(out, "  bursts of {burst:2}: {:6.2} Mpps, {:6.1} ns a packet", rate / 1e6, 1e9 / rate)?;
        }
    }
    Ok(())
}

/// Sends as fast as the device takes it; returns packets that came a second.
fn pass(from: &Net, to: &Net, arena: Arc<Arena>, size: usize) -> Result<f64> {
    let pool = Pool::new(arena, 1024, 2048, 64)?;
    let (mut tx, mut rx) = (from.tx_queue(0)?, to.rx_queue(0, &pool)?);
    let (mut out, mut got, mut cache) = (Burst::new(size), Burst::new(size), pool.cache(32));
    let destination = to.mac();
    let (mut came, began) = (0, Instant::now());
    // On a busy machine models may have no core in that time.
    while began.elapsed() < TIME || came == 0 && began.elapsed() < PATIENCE {
        for _ in 0..64 {
            if out.is_empty() && out.fill(&mut cache, size) {
                for packet in out.iter_mut() {
                    packet.reserve(64);
                    packet.set_len(64);
                    packet.bytes_mut()[..6].copy_from_slice(&destination.0);
                }
            }
            tx.tx(&mut out);
            came += rx.rx(&mut got) as u64;
            got.give_back_to(&mut cache);
        }
    }
    let rate = came as f64 / began.elapsed().as_secs_f64();
    // What is under way comes, or goes home, before the queues are given back.
    while tx.in_flight() > 0 && began.elapsed() < PATIENCE {
        tx.reclaim();
        rx.rx(&mut got);
        got.give_back_to(&mut cache);
    }
    if came == 0 { Err(format!("no packet came in {PATIENCE:?}").into()) } else { Ok(rate) }
}

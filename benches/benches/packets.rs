//! Packets in one thread: buffers from a pool's cache and back, bursts, descriptors of virtio rings with models on the other side, forwarding. The time of
//! one packet, by the size of a burst; `peers/compare` has the same kind of work in cycles, beside DPDK's.
#![allow(missing_docs, reason = "criterion's macros")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::sync::Arc;
use wholebar::mem::{Arena, ArenaOptions, Pool, PoolCache};
use wholebar::model::InProcess;
use wholebar::net::{Burst, Port, PortConfig};
use wholebar::sim::virtio::net::{NetParams, model};
use wholebar::virtio::{Net, Options, Service};

const BURSTS: [usize; 3] = [1, 8, 32];
const RINGS: [(&str, bool); 2] = [("split", false), ("packed", true)];
type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn pool() -> wholebar::Result<Pool> {
    Pool::new(Arena::new(4 << 20, ArenaOptions::default())?, 1024, 2048, 64)
}

/// Empty buffers into a burst, made packets, and given back.
fn bursts(c: &mut Criterion) {
    let Ok(pool) = pool() else { return };
    let mut group = c.benchmark_group("burst, filled and given back");
    for size in BURSTS {
        let (mut cache, mut burst) = (pool.cache(32), Burst::new(size));
        group.throughput(Throughput::Elements(size as u64));
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter(|| {
                burst.fill(&mut cache, size);
                for packet in burst.iter_mut() {
                    packet.reserve(64);
                    packet.set_len(64);
                }
                burst.give_back_to(&mut cache);
            });
        });
    }
    group.finish();
}

/// A port whose model is stepped by hand.
struct Stepped {
    port: Net,
    device: Arc<InProcess>,
}

impl Stepped {
    fn open(wire: &str, packed: bool, pool: &Pool) -> Result<Self> {
        let device = InProcess::new(model(NetParams::parse(&format!("wire={wire},full=wait"))?)?.0)?;
        // The model runs by itself while it is opened, and by steps afterwards.
        device.spawn(|| {})?;
        let options = Options { packed, service: Service::Manual, ..Options::default() };
        let port = Net::open(device.clone(), &PortConfig::default(), options)?;
        port.attach(pool.arena().clone())?;
        device.stop();
        Ok(Self { port, device })
    }

    /// Packets of 64 bytes to this port, and from it.
    fn fill(&self, burst: &mut Burst, cache: &mut PoolCache, size: usize) {
        burst.fill(cache, size);
        let own = self.port.mac().0;
        for packet in burst.iter_mut() {
            packet.reserve(64);
            packet.set_len(64);
            packet.bytes_mut()[..6].copy_from_slice(&own);
            packet.bytes_mut()[6..12].copy_from_slice(&own);
        }
    }
}

/// Through both rings of a driver, and the models between them: a packet is sent, passed on, and received by another port.
fn descriptors(c: &mut Criterion) {
    for (name, packed) in RINGS {
        let Ok(pool) = pool() else { return };
        let open = || Stepped::open("pair:packets", packed, &pool);
        let (Ok(from), Ok(to)) = (open(), open()) else { return };
        let (Ok(mut tx), Ok(mut rx)) = (from.port.tx_queue(0), to.port.rx_queue(0, &pool)) else { return };
        let mut group = c.benchmark_group(format!("virtio {name} rings, models included"));
        for size in BURSTS {
            let (mut out, mut got, mut cache) = (Burst::new(size), Burst::new(size), pool.cache(32));
            group.throughput(Throughput::Elements(size as u64));
            group.bench_function(BenchmarkId::from_parameter(size), |b| {
                b.iter(|| {
                    if out.is_empty() {
                        to.fill(&mut out, &mut cache, size);
                    }
                    tx.tx(&mut out);
                    from.device.step();
                    to.device.step();
                    rx.rx(&mut got);
                    got.give_back_to(&mut cache);
                });
            });
        }
        group.finish();
    }
}

/// A burst is received, its addresses are exchanged, it is sent: on a port whose wire brings it back.
fn forwarding(c: &mut Criterion) {
    for (name, packed) in RINGS {
        let Ok(pool) = pool() else { return };
        let Ok(stepped) = Stepped::open("loop", packed, &pool) else { return };
        let (Ok(mut tx), Ok(mut rx)) = (stepped.port.tx_queue(0), stepped.port.rx_queue(0, &pool)) else { return };
        let mut group = c.benchmark_group(format!("forwarding, virtio {name} rings, model included"));
        for size in BURSTS {
            let (mut burst, mut cache) = (Burst::new(size), pool.cache(32));
            stepped.fill(&mut burst, &mut cache, size);
            group.throughput(Throughput::Elements(size as u64));
            group.bench_function(BenchmarkId::from_parameter(size), |b| {
                b.iter(|| {
                    for packet in burst.iter_mut() {
                        if let Some((to, from)) = packet.bytes_mut()[..12].split_first_chunk_mut::<6>() {
                            to.swap_with_slice(from);
                        }
                    }
                    tx.tx(&mut burst);
                    stepped.device.step();
                    rx.rx(&mut burst);
                });
            });
            // None is under way for the next size.
            while tx.in_flight() > 0 {
                stepped.device.step();
                rx.rx(&mut burst);
                burst.give_back_to(&mut cache);
                tx.reclaim();
            }
        }
        group.finish();
    }
}

criterion_group!(benches, bursts, descriptors, forwarding);
criterion_main!(benches);

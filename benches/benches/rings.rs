//! Rings and pools in one thread: the cost of an element, by the size of a burst.
#![allow(missing_docs, reason = "criterion's macros")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use wholebar::mem::{Arena, ArenaOptions, Pool};
use wholebar::ring;

const BURSTS: [usize; 3] = [1, 8, 32];

fn rings(c: &mut Criterion) {
    let mut group = c.benchmark_group("spsc ring, in and out");
    for burst in BURSTS {
        let Ok((mut producer, mut consumer)) = ring::spsc::<u64>(1024) else { return };
        let (mut items, mut out) = (Vec::with_capacity(burst), Vec::with_capacity(burst));
        group.throughput(Throughput::Elements(burst as u64));
        group.bench_function(BenchmarkId::from_parameter(burst), |b| {
            b.iter(|| {
                items.extend(0..burst as u64);
                let _ = producer.push_bulk(&mut items);
                let _ = consumer.pop_bulk(&mut out, burst);
                out.clear();
            });
        });
    }
    group.finish();
    let mut group = c.benchmark_group("mpmc ring, in and out");
    for burst in BURSTS {
        let Ok(ring) = ring::Ring::<u64>::new(1024) else { return };
        let (mut items, mut out) = (Vec::with_capacity(burst), Vec::with_capacity(burst));
        group.throughput(Throughput::Elements(burst as u64));
        group.bench_function(BenchmarkId::from_parameter(burst), |b| {
            b.iter(|| {
                items.extend(0..burst as u64);
                let _ = ring.push_bulk(&mut items);
                let _ = ring.pop_bulk(&mut out, burst);
                out.clear();
            });
        });
    }
    group.finish();
}

fn pools(c: &mut Criterion) {
    let Ok(arena) = Arena::new(8 << 20, ArenaOptions::default()) else { return };
    let Ok(pool) = Pool::new(arena, 1024, 2048, 64) else { return };
    let mut group = c.benchmark_group("pool, get and put");
    group.throughput(Throughput::Elements(1));
    group.bench_function("shared", |b| b.iter(|| drop(pool.get())));
    for burst in BURSTS {
        let (mut cache, mut out) = (pool.cache(32), Vec::with_capacity(burst));
        group.throughput(Throughput::Elements(burst as u64));
        group.bench_function(BenchmarkId::new("cached", burst), |b| {
            b.iter(|| {
                let _ = cache.get_bulk(&mut out, burst);
                cache.put_bulk(&mut out);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, rings, pools);
criterion_main!(benches);

//! Registers of a model in this process: a doorbell as a store and as a system call (the floor of what trapping costs anywhere), a cold read,
//! and a BAR's plan.
#![allow(missing_docs, reason = "criterion's macros")]

use criterion::{Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use std::sync::Arc;
use wholebar::bar::{Bar, BarOptions, MapPolicy, plan_of};
use wholebar::pci::PciDevice;

/// A doorbell of a queue that the model doesn't have yet: it is memory, and nobody acts on it.
const DOORBELL: u64 = 0x1080;
/// CAP.
const REGISTER: u64 = 0;

fn registers(c: &mut Criterion) {
    let Ok(opened) = wholebar::sim::open("sim:nvme,backing=null") else { return };
    // Nobody polls: what is measured is this side alone.
    opened.model.stop();
    let device: Arc<dyn PciDevice> = opened.model;
    let mut group = c.benchmark_group("register");
    for (name, policy) in [("direct", MapPolicy::Whole), ("trapped", MapPolicy::Trapped)] {
        let Ok(bar) = Bar::of(device.clone(), 0, BarOptions { policy, ..Default::default() }) else { return };
        let Ok(mut doorbell) = bar.doorbell::<u32>(DOORBELL) else { return };
        let mut value = 0;
        group.bench_function(format!("doorbell, {name}"), |b| {
            b.iter(|| {
                value += 1;
                doorbell.ring(black_box(value & 0xff));
            });
        });
        group.bench_function(format!("cold read, {name}"), |b| b.iter(|| black_box(bar.read::<u64>(REGISTER))));
    }
    group.bench_function("plan", |b| {
        b.iter(|| black_box(plan_of(device.as_ref(), 0, BarOptions::default())));
    });
    group.finish();
}

criterion_group!(benches, registers);
criterion_main!(benches);

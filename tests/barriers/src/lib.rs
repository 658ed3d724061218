//! Each device barrier where drivers meet it, one function each: `tools/check-barriers` looks at their instructions.

use std::sync::atomic::{AtomicU32, Ordering};
use wholebar_core::bar::Doorbell;
use wholebar_core::barrier;
use wholebar_core::mem::DmaRing;

/// Earlier stores, the barrier, then the store to the device.
#[inline(never)]
pub fn probe_doorbell(bell: &mut Doorbell<u32>, value: u32) {
    bell.ring(value);
}

/// A status word, the barrier, then another word of the entry.
#[inline(never)]
pub fn probe_status(ring: &DmaRing<[AtomicU32; 4]>, at: u32) -> u32 {
    let entry = ring.at(at);
    let status = entry[3].load(Ordering::Relaxed);
    barrier::after_status();
    status ^ entry[0].load(Ordering::Relaxed)
}

/// A register, the barrier, then memory.
#[inline(never)]
pub fn probe_register(register: &AtomicU32, memory: &AtomicU32) -> u32 {
    let value = register.load(Ordering::Relaxed);
    barrier::after_register();
    value ^ memory.load(Ordering::Relaxed)
}

/// A store, the barrier, then a load.
#[inline(never)]
pub fn probe_arm(mine: &AtomicU32, other: &AtomicU32) -> u32 {
    mine.store(1, Ordering::Relaxed);
    barrier::store_then_load();
    other.load(Ordering::Relaxed)
}

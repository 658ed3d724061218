//! What one access of a register costs, by a load or a store and by trapping, as a distribution.
//!
//! The registers are an NVMe controller's that are safe to touch while it is disabled (CC.EN is 0), which is how it is left:
//! - read: CSTS, which has no side effect (NVM Express Base 2.0, 3.1.3.6);
//! - written: AQA, which a disabled controller only keeps (3.1.3.8; its queues are set up with it before CC.EN is set, 3.5.1). It gets its
//!   old value back. *Not* a doorbell: to write one with the value that it has is an error that a controller may report, and a disabled
//!   controller has no queues (5.2, "Invalid Doorbell Write Value").
//!
//! A sample is a batch of accesses between two looks at the clock: as few as make the batch 32 times as long as such a look takes, which is taken off.
//! So a sample of what takes long is one access or a few, and of a store it is the average of many.

use crate::output::Progress;
use crate::report::{Cpu, Quantiles};
use anyhow::{Context, Result, anyhow, bail};
use hdrhistogram::Histogram;
use quanta::Clock;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use wholebar::bar::{Bar, BarOptions, Doorbell, MapPolicy};
use wholebar::cores;
use wholebar::measure::cpu::Thread;
use wholebar::measure::latency::histogram;
use wholebar::pci::PciDevice;

/// Controller Configuration (3.1.3.5); bit 0 is EN.
const CC: u64 = 0x14;
/// Controller Status (3.1.3.6); bit 0 is RDY.
const CSTS: u64 = 0x1c;
/// Admin Queue Attributes (3.1.3.8): sizes of the admin queues, 0's based.
const AQA: u64 = 0x24;
/// Queues of 32 entries.
const AQA_VALUE: u32 = 31 | 31 << 16;

/// What was found.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Registers {
    /// What one look at the clock takes, in nanoseconds: it was taken off.
    pub clock_ns: f64,
    /// Why there is nothing about stores and loads, where they can't be had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_direct: Option<String>,
    /// Writes, then reads.
    pub accesses: Vec<Access>,
}

/// What one access costs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Access {
    /// `write` or `read`.
    pub what: String,
    /// Of which register.
    pub register: String,
    /// `direct` or `trapped`.
    pub how: String,
    /// Nanoseconds an access.
    pub ns: Quantiles,
    /// Batches.
    pub samples: u64,
    /// Accesses a batch.
    pub per_sample: u32,
    /// Rounds in which the thread lost its core: they don't count, unless all did.
    pub dropped: usize,
    /// Whether they count because all did.
    pub disturbed: bool,
}

/// One kind of access, and what was measured of it.
struct Kind {
    bar: Bar,
    /// For writes.
    bell: Option<Doorbell<u32>>,
    trapped: bool,
    per_sample: u32,
    rounds: Vec<(Histogram<u64>, Cpu)>,
}

/// Measures for about `time`, in so many rounds, on a thread of `core`.
///
/// # Errors
/// A controller that is enabled, and what the device says.
pub fn measure(
    device: Arc<dyn PciDevice>,
    core: usize,
    rounds: usize,
    time: Duration,
    interrupted: &AtomicBool,
) -> Result<Registers> {
    let open = |policy| {
        let registers = [0..0x1000];
        Bar::of(device.clone(), 0, BarOptions { policy, page: None, registers: &registers })
    };
    let (whole, trapped) = (open(MapPolicy::Whole)?, open(MapPolicy::Trapped)?);
    if trapped.read::<u32>(CC)? & 1 != 0 || trapped.read::<u32>(CSTS)? & 1 != 0 {
        bail!("{} is enabled: its registers are only touched while it isn't", device.name());
    }
    let mut kinds = Vec::new();
    let direct = whole.doorbell::<u32>(AQA)?.is_direct();
    for write in [true, false] {
        for (bar, trapped) in [(&whole, false), (&trapped, true)] {
            if direct || trapped {
                let bell = write.then(|| bar.doorbell(AQA)).transpose()?;
                kinds.push(Kind { bar: bar.clone(), bell, trapped, per_sample: 1, rounds: Vec::new() });
            }
        }
    }
    let before: u32 = trapped.read(AQA)?;
    let clock = Clock::new();
    let clock_ns = clock_cost(&clock);
    let slice = time / (rounds * kinds.len()).max(1) as u32;
    let stopped = || interrupted.load(Ordering::Relaxed);
    let done = std::thread::scope(|scope| {
        let kinds = &mut kinds;
        let thread = std::thread::Builder::new().spawn_scoped(scope, move || {
            cores::pin(core)?;
            for kind in kinds.iter_mut() {
                kind.calibrate(&clock, clock_ns)?;
            }
            let mut progress = Progress::time("measuring register accesses", time);
            let began = Instant::now();
            for _ in 0..rounds {
                for kind in kinds.iter_mut() {
                    if stopped() {
                        return Ok(());
                    }
                    progress.at(began.elapsed().as_millis() as u64, String::new);
                    kind.round(&clock, clock_ns, slice)?;
                }
            }
            progress.finish();
            anyhow::Ok(())
        });
        let thread = thread.context("cannot start a thread")?;
        thread.join().map_err(|_| anyhow!("the measuring thread panicked"))?
    });
    let restored = trapped.write(AQA, before).context("giving AQA its old value back");
    done.and(restored)?;
    let no_direct = (!direct).then(|| "the device's registers cannot be mapped".to_owned());
    Ok(Registers { clock_ns, no_direct, accesses: kinds.iter().filter_map(Kind::result).collect() })
}

/// What a read of the clock takes, in nanoseconds: the median, of batches of reads.
fn clock_cost(clock: &Clock) -> f64 {
    const READS: u32 = 100;
    let mut times: Vec<_> = (0..101)
        .map(|_| {
            let began = clock.raw();
            for _ in 1..READS {
                std::hint::black_box(clock.raw());
            }
            clock.delta_as_nanos(began, clock.raw())
        })
        .collect();
    times.sort_unstable();
    times[times.len() / 2] as f64 / f64::from(READS)
}

impl Kind {
    /// Finds how many accesses make a batch.
    fn calibrate(&mut self, clock: &Clock, clock_ns: f64) -> Result<()> {
        const TIMES: f64 = 32.0;
        const MOST: u32 = 1 << 14;
        // The first one may be a page fault.
        self.batch(clock)?;
        while self.per_sample < MOST {
            let mut batches = [0; 9];
            for nanos in &mut batches {
                *nanos = self.batch(clock)?;
            }
            batches.sort_unstable();
            if batches[4] as f64 >= TIMES * clock_ns {
                break;
            }
            self.per_sample *= 2;
        }
        Ok(())
    }

    /// One batch, in nanoseconds.
    #[inline]
    fn batch(&mut self, clock: &Clock) -> Result<u64> {
        let began = clock.raw();
        match &mut self.bell {
            Some(bell) => (0..self.per_sample).for_each(|_| bell.ring(AQA_VALUE)),
            None => {
                for _ in 0..self.per_sample {
                    std::hint::black_box(self.bar.read::<u32>(CSTS)?);
                }
            }
        }
        Ok(clock.delta_as_nanos(began, clock.raw()))
    }

    /// As many batches as the time holds.
    fn round(&mut self, clock: &Clock, clock_ns: f64, time: Duration) -> Result<()> {
        let mut picos = histogram();
        let (began, before) = (Instant::now(), Thread::current().cpu_time());
        while picos.is_empty() || began.elapsed() < time {
            let batch = (self.batch(clock)? as f64 - clock_ns).max(0.0) / f64::from(self.per_sample);
            picos.saturating_record((batch * 1e3).round() as u64);
        }
        let elapsed = began.elapsed().as_secs_f64();
        let after = Thread::current().cpu_time();
        let share = before.zip(after).map(|(before, after)| after.saturating_sub(before).as_secs_f64() / elapsed);
        if let Some(error) = self.bar.failure() {
            bail!("{error}");
        }
        self.rounds.push((picos, Cpu { driver: share.into_iter().collect(), model: None }));
        Ok(())
    }

    /// The rounds that count, as one.
    fn result(&self) -> Option<Access> {
        let any = self.rounds.iter().any(|(_, cpu)| cpu.undisturbed());
        let mut picos = histogram();
        let mut dropped = 0;
        for (round, cpu) in &self.rounds {
            if cpu.undisturbed() || !any {
                // All have the same bounds.
                let _ = picos.add(round);
            } else {
                dropped += 1;
            }
        }
        let (what, register) = if self.bell.is_some() { ("write", "AQA") } else { ("read", "CSTS") };
        let how = if self.trapped { "trapped" } else { "direct" };
        (!picos.is_empty()).then(|| Access {
            what: what.to_owned(),
            register: register.to_owned(),
            how: how.to_owned(),
            ns: Quantiles::of(&picos, 1e-3),
            samples: picos.len(),
            per_sample: self.per_sample,
            dropped,
            disturbed: !any,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target;

    #[test]
    fn a_disabled_controller_s_registers_are_measured_and_left_as_they_were() {
        let target = target::open("sim:nvme,size=1M,backing=null", &[], None).unwrap();
        let device = &target.device;
        let bar =
            Bar::of(device.clone(), 0, BarOptions { policy: MapPolicy::Trapped, ..BarOptions::default() }).unwrap();
        bar.write(AQA, 0x0007_0003u32).unwrap();
        let never = AtomicBool::new(false);
        let core = cores::allowed()[0];
        let found = measure(device.clone(), core, 2, Duration::from_millis(80), &never).unwrap();
        let names: Vec<_> = found.accesses.iter().map(|a| format!("{} {}", a.what, a.how)).collect();
        assert_eq!(names, ["write direct", "write trapped", "read direct", "read trapped"]);
        for pair in found.accesses.chunks(2) {
            assert!(pair[0].ns.p50 < pair[1].ns.p50, "a system call is more than a store or a load: {pair:?}");
            assert!(pair.iter().all(|a| a.samples > 0 && a.ns.min <= a.ns.p50 && a.ns.p50 <= a.ns.p99));
        }
        assert!(found.clock_ns > 0.0 && found.no_direct.is_none());
        assert_eq!(bar.read::<u32>(AQA).unwrap(), 0x0007_0003);
        // What is interrupted has nothing to tell, and gives the register back too.
        let found = measure(device.clone(), core, 2, Duration::from_millis(80), &AtomicBool::new(true)).unwrap();
        assert!(found.accesses.is_empty());
        assert_eq!(bar.read::<u32>(AQA).unwrap(), 0x0007_0003);
    }
}

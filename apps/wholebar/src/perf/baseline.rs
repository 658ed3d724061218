//! `--baseline`: the same job on two disks in turns, and which of them does more.
//!
//! Both are open all the time, each with memory of its own; each run has new queues. It does *not* know what the disks are.

use super::{Bench, PerfArgs, job_text};
use crate::host::Host;
use crate::output;
use crate::report::{self, Baseline, RatioReport, Run};
use crate::rounds::{self, Load};
use crate::storage::Storage;
use crate::verdict::{self, ROUNDS, Side, process_cpu};
use anyhow::{Context, Result};
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use wholebar::measure::block::{self, CutShort, Job, Outcome};
use wholebar::measure::ratio::Ratio;
use wholebar::measure::rounds::Rounds;
use wholebar::mem::Arena;

/// One of the two disks, while it is measured.
struct Measuring<'a, S> {
    bench: &'a Bench<S>,
    arena: Arc<Arena>,
    /// CPU time and time of its runs.
    cpu: RefCell<(Duration, Duration)>,
    /// Runs in which something failed, as they came out.
    failed: RefCell<Vec<Outcome>>,
    full: RefCell<bool>,
}

/// What came of a comparison: the report, the same for people, and the first run that went wrong.
pub struct Compared {
    pub report: report::Report,
    pub text: String,
    pub failed: Result<()>,
}

/// Measures both, and says which does more.
pub(super) fn compare<A: Storage, B: Storage>(
    args: &PerfArgs,
    mut this: Bench<A>,
    mut other: Bench<B>,
    cores: &[usize],
    host: Host,
    interrupted: &AtomicBool,
) -> Result<Compared> {
    // The same on both: as much of each, and as deep.
    let units = this.job.units.min(other.job.units);
    let depth = this.job.depth.min(other.job.depth);
    for job in [&mut this.job, &mut other.job] {
        (job.units, job.depth, job.batch) = (units, depth, job.batch.min(depth));
    }
    let (a, b) = (Measuring::new(&this, cores.len(), args.queues)?, Measuring::new(&other, cores.len(), args.queues)?);
    let plan = Rounds {
        plans: &Side::BOTH,
        loads: &[Load { depth, batch: this.job.batch }],
        rounds: ROUNDS,
        time: args.time * 2,
    };
    let cases = rounds::measure(&plan, interrupted, Ok, |side, _, time| match side {
        Side::This => a.run(cores, args.queues, time, interrupted),
        Side::Baseline => b.run(cores, args.queues, time, interrupted),
    })?;
    let result = |side| {
        let case = cases.iter().find(|case| case.plan == side).and_then(|case| case.result());
        case.context("it was interrupted before both were measured")
    };
    let (run, base) = (result(Side::This)?, result(Side::Baseline)?);
    let ratio = Ratio::paired(&run.rates(), &base.rates());
    let cpu = [a.cpu_share(), b.cpu_share()];
    let mut text = format!("{}{}", this.heading(), other.heading());
    text += &format!("{}; {} rounds\n\n", job_text(&this.job, args.queues, cores), run.rounds.len());
    text += &table([("target", &run, cpu[0]), ("baseline", &base, cpu[1])]);
    let undisturbed =
        [&run, &base].iter().flat_map(|run| &run.rounds).all(|round| !round.counts || round.cpu.undisturbed());
    text = text + "\n" + &verdict::sentence(&this.name, &other.name, "IOPS", ratio, undisturbed);
    let baseline = Baseline {
        target: other.name.clone(),
        device: other.target.origin(),
        run: base,
        process_cpu: cpu,
        ratio: ratio.map(RatioReport::from),
    };
    Ok(Compared { report: super::report(&this, host, run, Some(baseline)), text, failed: a.end().and(b.end()) })
}

impl<'a, S: Storage> Measuring<'a, S> {
    fn new(bench: &'a Bench<S>, cores: usize, queues: u32) -> Result<Self> {
        let arena = bench.disk.job_arena(&bench.job, cores, queues)?;
        Ok(Self { bench, arena, cpu: RefCell::default(), failed: RefCell::default(), full: RefCell::default() })
    }

    fn run(&self, cores: &[usize], queues: u32, time: Duration, interrupted: &AtomicBool) -> Result<Run> {
        let Bench { target, disk, job, .. } = self.bench;
        let warmup = job.warmup.min(time / 6);
        let job = Job { warmup, time: time - warmup, ..job.clone() };
        let supplies = disk.supplies_in(&self.arena, &job, cores, queues)?;
        let (began, used) = (Instant::now(), process_cpu());
        // Not while the other one is measured.
        target.set_spin(true);
        let outcome = block::run(&job, supplies, interrupted, |_| ());
        target.set_spin(false);
        let outcome = outcome?;
        let mut cpu = self.cpu.borrow_mut();
        *cpu = (cpu.0 + (process_cpu().saturating_sub(used)), cpu.1 + began.elapsed());
        let run = Run::of(&job, &outcome, disk.mapped(), cores, queues as usize);
        *self.full.borrow_mut() |= outcome.full;
        if let Some(CutShort::Failed(_)) = &outcome.cut_short {
            super::verdict(&outcome, &|status| disk.status_name(status)).with_context(|| self.bench.name.clone())?;
        }
        if outcome.errors() > 0 {
            self.failed.borrow_mut().push(outcome);
        }
        Ok(run)
    }

    /// CPUs that this process used while it ran.
    fn cpu_share(&self) -> f64 {
        let (used, time) = *self.cpu.borrow();
        used.as_secs_f64() / time.as_secs_f64().max(1e-9)
    }

    /// Notes, and the first run that went wrong.
    fn end(&self) -> Result<()> {
        for note in self.bench.notes(*self.full.borrow()) {
            output::note(format!("{}: {note}", self.bench.name));
        }
        let failed = self.failed.borrow();
        let Some(first) = failed.first() else { return Ok(()) };
        super::verdict(first, &|status| self.bench.disk.status_name(status)).with_context(|| self.bench.name.clone())
    }
}

fn table(rows: [(&str, &Run, f64); 2]) -> String {
    let columns = ["  ", ">IOPS", ">p50", ">p99", ">CPUs", ">direct", ">trapped", ">commands each"];
    let row = |(name, run, cpu): (&str, &Run, f64)| {
        vec![
            format!("  {name}"),
            output::rate(run.iops),
            output::nanos(run.latency_ns.p50),
            output::nanos(run.latency_ns.p99),
            format!("{cpu:.2}"),
            output::rate(run.doorbells.direct as f64),
            output::rate(run.doorbells.trapped as f64),
            format!("{:.1}", run.commands_a_doorbell()),
        ]
    };
    output::table(columns, rows.map(row))
}

//! What `wholebar pages` found: the report that is written as JSON and read again, and what follows from its figures.

use super::memory::Memory;
use super::registers::{Access, Registers};
use crate::host::Host;
use crate::mapped::Bar;
use crate::origin::Origin;
use crate::output;
use crate::report::{self, Run};
use serde::{Deserialize, Serialize};

/// What a report of this kind is called.
pub const SCHEMA: &str = "wholebar.pages/1";
/// Trapping matters where it costs more than this share of the rate.
pub const MATTERS: f64 = 0.05;

/// A report.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pages {
    /// [`SCHEMA`].
    pub schema: String,
    /// The program's version.
    pub version: String,
    /// The device's name.
    pub target: String,
    /// What it is.
    pub device: Device,
    /// The machine.
    pub host: Host,
    /// How this machine shows that it is a virtual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_machine: Option<String>,
    /// About how long it took, in seconds.
    pub seconds: f64,
    /// Driver and model had one core together.
    pub shared_cores: bool,
    /// Somebody ended it early.
    pub interrupted: bool,
    /// What one access of a register costs.
    pub registers: Registers,
    /// What else the size of pages changes; reports of earlier versions do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// Reads under each plan and load.
    pub runs: Vec<Run>,
    /// From which batch on trapping does not matter, for each plan that traps doorbells.
    pub crossovers: Vec<Crossover>,
    /// What it comes to.
    pub summary: String,
}

/// What a device is. Two reports are of the same device where all of it is equal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// What stands behind the figures.
    pub origin: Origin,
    /// How that was found out.
    pub origin_why: String,
    /// Vendor and device: `1b36:0010`.
    pub ids: String,
    /// Subsystem vendor and device, where it has some.
    pub subsystem: Option<String>,
    /// What it calls itself.
    pub model: String,
    /// Its firmware's revision.
    pub firmware: String,
    /// How BAR0 is mapped here if nothing is asked for: `whole`, `carved` or `trapped`.
    pub auto: String,
    /// Why.
    pub auto_why: String,
    /// Its BARs.
    pub bars: Vec<Bar>,
}

/// From which batch on a plan that traps doorbells is as good as whole, within [`MATTERS`], at the largest depth.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Crossover {
    /// The plan.
    pub plan: String,
    /// The queue depth it was looked for at.
    pub depth: usize,
    /// What trapping costs a batch, in nanoseconds: submission and completion doorbell.
    pub trap_ns: f64,
    /// Whether it costs more than noise does: in the smallest batch, the interval of the ratio to whole lies below 1.
    #[serde(default = "yes")]
    pub costs: bool,
    /// The least batch measured from which on it is so for sure (the whole interval of the ratio is near 1), if there is one.
    pub measured: Option<usize>,
    /// The batch computed from what trapping costs and what a read takes in large batches.
    pub computed: f64,
}

/// Reports of earlier versions were not asked.
fn yes() -> bool {
    true
}

/// The crossover of each plan that traps doorbells.
///
/// A batch costs two doorbells, so a read costs `trap / batch` more than under whole: `trap` is fitted to the batches measured (least
/// squares), and the crossover is where that is 5 % of what a read takes under whole in the largest batch.
pub fn crossovers(runs: &[Run]) -> Vec<Crossover> {
    let Some(depth) = runs.iter().map(|run| run.queue_depth).max() else { return Vec::new() };
    let deep: Vec<_> = runs.iter().filter(|run| run.queue_depth == depth && run.is_trusted()).collect();
    let whole = |batch| deep.iter().copied().find(|run| run.policy == "whole" && run.batch == batch);
    let mut plans: Vec<String> = Vec::new();
    for plan in deep.iter().filter(|run| run.doorbells.trapped > 0).map(|run| run.plan()) {
        if !plans.contains(&plan) {
            plans.push(plan);
        }
    }
    let mut found = Vec::new();
    for plan in plans {
        // By batch: under this plan, and under whole.
        let mut points: Vec<_> = deep
            .iter()
            .filter(|run| run.plan() == plan && run.policy != "whole")
            .filter_map(|run| Some((*run, whole(run.batch)?)))
            .collect();
        points.sort_by_key(|(run, _)| run.batch);
        let Some(fastest) = points.last().map(|(_, whole)| 1e9 / whole.iops) else { continue };
        let sum = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
            points.iter().map(|(run, whole)| f(1.0 / run.batch as f64, 1e9 / run.iops - 1e9 / whole.iops)).sum()
        };
        let trap_ns = (sum(&|x, y| x * y) / sum(&|x, _| x * x)).max(0.0);
        let costs = points.first().is_some_and(|(run, whole)| match run.against(whole) {
            Some(ratio) => ratio.high < 1.0,
            None => run.iops < whole.iops,
        });
        // Without rounds to judge by, the figures themselves have to do.
        let as_good = |(run, whole): &&(&Run, &Run)| {
            run.against(whole).map_or(run.iops / whole.iops, |ratio| ratio.low) >= 1.0 - MATTERS
        };
        let measured = points.iter().rev().take_while(as_good).last().map(|(run, _)| run.batch);
        let computed = (trap_ns / (MATTERS * fastest)).max(1.0);
        found.push(Crossover { plan, depth, trap_ns, costs, measured, computed });
    }
    found
}

impl Crossover {
    /// The batch, and how it is known.
    pub fn text(&self) -> String {
        match self.measured {
            _ if !self.costs => "any (the difference is noise)".to_owned(),
            Some(batch) => format!("{batch} (measured)"),
            None if self.computed < 1e6 => format!("about {:.0} (computed)", self.computed),
            None => "more than a million (computed)".to_owned(),
        }
    }
}

impl Pages {
    /// The run of a policy at a depth and a batch; of several page sizes, the smallest: the host's.
    pub fn run(&self, policy: &str, depth: usize, batch: usize) -> Option<&Run> {
        let fits = |run: &&Run| run.policy == policy && (run.queue_depth, run.batch) == (depth, batch);
        self.runs.iter().filter(fits).min_by_key(|run| run.page_size)
    }

    /// An access by its names.
    pub fn access(&self, what: &str, how: &str) -> Option<&Access> {
        self.registers.accesses.iter().find(|access| access.what == what && access.how == how)
    }

    /// Whether its numbers are such as a measurement gives, and can be drawn.
    pub fn makes_sense(&self) -> bool {
        let fine = |numbers: &[f64]| numbers.iter().all(|n| (0.0..1e15).contains(n));
        let run = |run: &Run| {
            fine(&[run.iops, run.seconds]) && run.rounds.iter().all(|round| fine(&[round.iops])) && run.batch > 0
        };
        let access =
            |Access { ns, .. }: &Access| fine(&[ns.mean, ns.min, ns.p10, ns.p50, ns.p90, ns.p99, ns.p99_9, ns.max]);
        let crossover = |c: &Crossover| fine(&[c.trap_ns, c.computed]);
        fine(&[self.seconds, self.registers.clock_ns])
            && self.runs.iter().all(run)
            && self.registers.accesses.iter().all(access)
            && self.crossovers.iter().all(crossover)
    }

    /// Whether the threads of one run at least had their cores to themselves.
    pub fn is_trusted(&self) -> bool {
        self.runs.iter().any(Run::is_trusted)
    }

    /// The sentences that sum it up.
    pub fn sum_up(&self) -> String {
        let Some(whole) = self.run("whole", 1, 1) else {
            return "Nothing was measured at queue depth 1.".to_owned();
        };
        if !self.is_trusted() {
            let why = report::untrusted_because(self.shared_cores);
            return format!("None of these figures can be trusted: {why}. Run it again on two quiet cores.");
        }
        let of = |run: &Run| match run.is_trusted() && whole.is_trusted() {
            true => match run.against(whole) {
                Some(ratio) if ratio.is_same() || run.is_control_of(whole) => {
                    format!("{} (the same, within noise)", rate(run))
                }
                Some(ratio) => format!("{} ({:.2} of whole)", rate(run), ratio.median),
                None => rate(run),
            },
            false => format!("{} (not to be compared: a core was lost to something else)", rate(run)),
        };
        let mut text = String::new();
        if whole.doorbells.trapped > 0 {
            text += &format!("Even whole, the doorbells cannot be mapped here: {} at queue depth 1. ", rate(whole));
        }
        if let Some(carved) = self.run("carved", 1, 1) {
            let own = output::bytes(self.host_pages());
            let (whole, carved_rate) = (rate(whole), of(carved));
            if carved.doorbells.trapped > 0 {
                text += &format!(
                    "With {own} pages the doorbells share theirs with the MSI-X table: at queue depth 1 mapping the BAR whole gives {whole}, \
                     carving the table's page out {carved_rate}. "
                );
            } else {
                text += &format!(
                    "With {own} pages the doorbells' page does not hold the MSI-X table, so carving leaves them mapped: at queue depth 1 \
                     whole gives {whole}, carved {carved_rate}. "
                );
                let traps = |run: &&Run| {
                    let larger = run.policy == "carved" && run.page_size > carved.page_size;
                    larger && run.doorbells.trapped > 0 && (run.queue_depth, run.batch) == (1, 1)
                };
                if let Some(run) = self.runs.iter().find(traps) {
                    let page = output::bytes(run.page_size);
                    text +=
                        &format!("Carved as a host with {page} pages must, every doorbell is trapped: {}. ", of(run));
                }
            }
        }
        if let Some(trapped) = self.access("write", "trapped") {
            let trapped = output::time(trapped.ns.p50);
            text += &match self.access("write", "direct") {
                Some(direct) => {
                    let direct = output::time(direct.ns.p50);
                    format!("A register is written in {direct} by a store, and in {trapped} trapped (medians). ")
                }
                None => format!("A trapped register is written in {trapped} (median). "),
            };
        }
        if let Some(worst) =
            self.crossovers.iter().filter(|crossover| crossover.costs).max_by(|a, b| a.computed.total_cmp(&b.computed))
        {
            let (percent, batch, depth) = (MATTERS * 100.0, worst.text(), worst.depth);
            text += &format!(
                "Trapping stops mattering (costs less than {percent:.0} %) in batches of {batch} at queue depth {depth}. "
            );
        }
        text.trim_end().to_owned()
    }

    /// The page size the device is mapped in: the host's, or what a model pretends.
    pub fn host_pages(&self) -> u64 {
        self.runs
            .iter()
            .filter(|run| run.policy == "carved")
            .map(|run| run.page_size)
            .min()
            .unwrap_or(self.host.page_size)
    }

    /// What plans that reach doorbells as whole does show of the noise; `None` where there are none.
    pub fn controls(&self) -> Option<String> {
        let (mut plans, mut low, mut high): (Vec<String>, f64, f64) = (Vec::new(), f64::MAX, 0.0);
        for run in &self.runs {
            let Some(whole) = self.run("whole", run.queue_depth, run.batch) else { continue };
            let Some(ratio) = run.against(whole).filter(|_| run.is_control_of(whole)) else { continue };
            (low, high) = (low.min(ratio.median), high.max(ratio.median));
            if !plans.contains(&run.plan()) {
                plans.push(run.plan());
            }
        }
        (!plans.is_empty()).then(|| {
            format!(
                "A/A: {} reaches the doorbells as whole does, by stores, and differs from it in nothing that is measured: what its ratios are off 1, from \
                 {low:.2} to {high:.2}, is this machine's noise.",
                plans.join("; ")
            )
        })
    }

    /// What has to be said beside the figures.
    pub fn notes(&self) -> String {
        let mut text = String::new();
        if let Some(caveat) = self.device.origin.caveat() {
            text += &output::paragraph(&format!(
                "The device is {caveat} ({}). A trapped access of it is a real system call or message.",
                self.device.origin_why
            ));
        }
        if let Some(why) = &self.virtual_machine {
            text += &output::paragraph(&format!("The host is a virtual machine ({why}): its times are a guest's."));
        }
        text += &report::states(self.runs.iter().flat_map(Run::samples));
        text += &report::cores(self.runs.iter().flat_map(Run::cpus), self.shared_cores);
        if self.interrupted {
            text += "It was interrupted: this is what was measured until then.\n";
        }
        text
    }
}

fn rate(run: &Run) -> String {
    format!("{} reads/s", output::rate(run.iops))
}

/// What was done.
pub fn workload(report: &Pages) -> String {
    let bytes = report.runs.first().map_or(4096, |run| run.block_size);
    format!("{} random reads", output::bytes(bytes))
}

/// How a crossover is read.
pub fn crossover_note() -> String {
    format!(
        "Trapping costs a batch two doorbells, so the larger the batch, the less a read pays. Less than {:.0} % is taken for nothing; a crossover \
         that lies beyond the batches measured is computed from a fit.",
        MATTERS * 100.0
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Doorbells;

    fn run(policy: &'static str, page_size: u64, depth: usize, batch: usize, iops: f64, trapped: u64) -> Run {
        let doorbells = Doorbells { direct: u64::from(trapped == 0), trapped };
        Run { policy: policy.into(), page_size, queue_depth: depth, batch, iops, doorbells, ..Run::example() }
    }

    /// Reads that take 100 ns, and 1,600 ns a batch more where doorbells are trapped.
    fn runs(batches: &[usize]) -> Vec<Run> {
        let mut runs = Vec::new();
        for &batch in batches {
            runs.push(run("whole", 4096, 128, batch, 1e9 / 100.0, 0));
            runs.push(run("carved", 4096, 128, batch, 1e9 / 100.0, 0));
            runs.push(run("carved", 65536, 128, batch, 1e9 / (100.0 + 1600.0 / batch as f64), 2));
        }
        runs
    }

    #[test]
    fn a_crossover_is_computed_where_none_was_measured() {
        let [found] = &crossovers(&runs(&[1, 8, 32]))[..] else { panic!("one plan traps") };
        assert_eq!((found.plan.as_str(), found.depth, found.measured), ("carved, 64 KiB", 128, None));
        // 1,600 ns are 5 % of 100 ns a read in batches of 320.
        assert!((found.trap_ns - 1600.0).abs() < 1e-6 && (found.computed - 320.0).abs() < 1e-6, "{found:?}");
        assert_eq!(found.text(), "about 320 (computed)");
    }

    #[test]
    fn a_crossover_that_was_measured_is_the_least_batch_of_a_good_end() {
        let [found] = &crossovers(&runs(&[1, 8, 32, 320, 1000]))[..] else { panic!("one plan traps") };
        assert_eq!((found.measured, found.text().as_str()), (Some(320), "320 (measured)"));
        // A lucky small batch is none.
        let mut lucky = runs(&[1, 8, 320]);
        lucky[2].iops = 1e9 / 100.0;
        assert_eq!(crossovers(&lucky)[0].measured, Some(320));
    }

    #[test]
    fn where_nothing_was_measured_there_is_no_crossover() {
        assert!(crossovers(&[]).is_empty());
        assert!(crossovers(&[run("carved", 65536, 1, 1, 0.0, 2)]).is_empty());
        // Trapped faster than whole, by noise: it costs nothing.
        let noise = [run("whole", 4096, 1, 1, 1e6, 0), run("trapped", 4096, 1, 1, 2e6, 2)];
        let found = &crossovers(&noise)[0];
        assert_eq!((found.trap_ns, found.measured, found.computed), (0.0, Some(1), 1.0));
        assert_eq!(found.text(), "any (the difference is noise)");
    }

    /// A run of twelve rounds around a rate, by what noise adds.
    fn noisy(policy: &'static str, batch: usize, iops: f64, trapped: u64, noise: [f64; 3]) -> Run {
        let rounds = (0..12).map(|n| crate::report::Round {
            iops: iops * (1.0 + noise[n % 3]),
            cpu: crate::report::Cpu { driver: vec![1.0], model: None },
            hand_over_ns: None,
            counts: true,
        });
        Run { rounds: rounds.collect(), ..run(policy, 65536, 128, batch, iops, trapped) }
    }

    #[test]
    fn runs_that_lost_a_core_have_no_crossover() {
        let lost = crate::report::Cpu { driver: vec![0.5], model: None };
        let lost: Vec<_> = runs(&[1, 8, 32]).into_iter().map(|run| Run { cpu: lost.clone(), ..run }).collect();
        assert!(crossovers(&lost).is_empty());
    }

    /// What looks near whole is a crossover only where the rounds say so; where they do not tell trapping from whole, it has none.
    #[test]
    fn noise_makes_no_crossover() {
        let (quiet, loud) = ([0.0, 0.001, -0.001], [0.1, -0.1, 0.0]);
        let pair = |batch, share, noise| {
            [noisy("whole", batch, 1e6, 0, quiet), noisy("trapped", batch, share * 1e6, 2, noise)]
        };
        let runs = [pair(1, 0.5, quiet), pair(8, 0.96, loud), pair(32, 0.97, quiet)].concat();
        let found = &crossovers(&runs)[0];
        assert_eq!((found.costs, found.measured), (true, Some(32)));
        let runs = [pair(1, 0.99, loud), pair(8, 0.99, loud)].concat();
        let found = &crossovers(&runs)[0];
        assert_eq!(
            (found.costs, found.measured, found.text().as_str()),
            (false, None, "any (the difference is noise)")
        );
        let runs = [noisy("whole", 1, 1e6, 0, quiet), noisy("carved", 1, 1e6, 0, loud)];
        assert!(runs[1].is_control_of(&runs[0]) && runs[1].ratio(&runs[0]) == "same" && crossovers(&runs).is_empty());
    }
}

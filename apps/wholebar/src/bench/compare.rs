//! `wholebar bench compare`: what has become faster or slower since a run that was stored, as far as noise lets that be said.

use crate::output;
use crate::report::{PacketRun, Report, Run, ratio_text};
use crate::stored;
use anyhow::{Result, bail};
use serde::Serialize;
use wholebar::measure::ratio::{Ratio, Sample};

/// Compare two stored runs: which differences are larger than the noise
///
/// A difference counts where the 99 % interval of the ratio, by the rounds of both runs (Mann-Whitney), does not hold 1. Where both runs have that, rounds
/// are compared during which cache lines went from core to core in a like time, within 15 %: a host that moves virtual CPUs about makes two machines of one.
/// What else has changed between both runs is not known: for a careful answer, measure old, new and old again. What is no comparison is refused:
/// another device, another machine.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar bench --json old.json
  wholebar bench --json new.json
  wholebar bench compare old.json new.json
  wholebar bench compare old.json new.json --fail-above 5     # exit code 1 where something is slower by more than 5 %

The JSON has schema (wholebar.bench-comparison/1), version, old and new (files), differences, slower (how many cases are), failed (how many are \
slower by more than --fail-above) and cases: case, old and new (the median rate a second, of all rounds), ratio (median, low, high and confidence, or null), rounds (how many of old and new it is of), hand_over_ns (between which times, or null) and verdict (same, faster, \
slower or untrusted).")]
pub struct Args {
    /// The earlier run, of `wholebar bench --json`
    old: String,
    /// The later run
    new: String,
    /// End with exit code 1 where a case is slower by more than this
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    fail_above: Option<f64>,
    /// Write the comparison as JSON to this file; - is standard output
    #[arg(long, value_name = "FILE")]
    json: Option<String>,
    /// Compare what is not comparable, and say so
    #[arg(long)]
    anyway: bool,
}

fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim().parse().ok().filter(|n| (0.0..100.0).contains(n));
    number.ok_or_else(|| format!("{text:?} is no percentage: write a number from 0 up, below 100, like 5"))
}

/// What `--json` writes.
#[derive(Serialize)]
struct Comparison {
    schema: &'static str,
    version: &'static str,
    old: String,
    new: String,
    /// What makes them incomparable, where they are compared anyway.
    differences: Vec<String>,
    slower: usize,
    failed: usize,
    cases: Vec<Case>,
}

/// What both runs have measured.
#[derive(Serialize)]
struct Case {
    case: String,
    /// What the case's name begins with, which others have, too.
    #[serde(skip)]
    group: String,
    old: f64,
    new: f64,
    ratio: Option<Interval>,
    /// The number of rounds that `ratio` is of: of the old run, and of the new one; 0 where there is no ratio.
    rounds: [usize; 2],
    /// The lowest and the highest hand-over of these rounds, in nanoseconds.
    hand_over_ns: Option<(f64, f64)>,
    verdict: Verdict,
    #[serde(skip)]
    found: Option<Ratio>,
}

#[derive(Serialize)]
struct Interval {
    median: f64,
    low: f64,
    high: f64,
    confidence: f64,
}

#[derive(Serialize, Clone, Copy, PartialEq, Debug)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Same,
    Faster,
    Slower,
    Untrusted,
}

pub fn run(args: Args) -> Result<()> {
    let [old, new] = [read(&args.old)?, read(&args.new)?];
    let differences = differences(&old, &new);
    if !differences.is_empty() && !args.anyway {
        bail!("these are not to be compared (--anyway does it all the same):\n  {}", differences.join("\n  "));
    }
    let cases = cases(&old, &new);
    if cases.is_empty() {
        bail!("{} and {} have measured nothing in common", args.old, args.new);
    }
    let slower = cases.iter().filter(|case| case.verdict == Verdict::Slower).count();
    let too_slow = |case: &&Case| {
        let share = args.fail_above.map_or(1.0, |percent| percent / 100.0);
        case.found.is_some_and(|ratio| ratio.median < 1.0 && ratio.differs_by(share))
    };
    let failed: Vec<_> = cases.iter().filter(too_slow).map(|case| case.case.clone()).collect();
    let (schema, version) = ("wholebar.bench-comparison/1", env!("CARGO_PKG_VERSION"));
    let (old, new) = (args.old, args.new);
    let comparison = Comparison { schema, version, old, new, differences, slower, failed: failed.len(), cases };
    if args.json.as_deref() != Some("-") {
        output::print(comparison.text())?;
    }
    if let Some(path) = &args.json {
        output::write_json(path, &comparison)?;
    }
    if comparison.cases.iter().all(|case| case.verdict == Verdict::Untrusted) {
        bail!(
            "no case can be trusted in both runs, or the machine was not the same in both: nothing is compared; measure again on two quiet cores"
        );
    }
    match args.fail_above.filter(|_| !failed.is_empty()) {
        Some(percent) => bail!("slower by more than {percent} %: {}", failed.join("; ")),
        None => Ok(()),
    }
}

/// Reads a report.
fn read(path: &str) -> Result<Report> {
    let report: Report = stored::read(path, super::SCHEMA, "wholebar bench --json")?;
    let reads = report.runs.iter().flat_map(|run| run.rounds.iter().map(|round| round.iops).chain([run.iops]));
    let packets = report.packets.iter().flat_map(|packets| &packets.runs);
    let packets = packets.flat_map(|run| run.rounds.iter().map(|round| round.pps).chain([run.pps]));
    if stored::make_sense(reads.chain(packets)) { Ok(report) } else { Err(stored::broken(path)) }
}

/// Why reports are not of the same thing.
fn differences(old: &Report, new: &Report) -> Vec<String> {
    let host = |report: &Report| {
        let host = &report.host;
        format!("{} with {} cores, {} pages", host.cpu, host.cores, output::bytes(host.page_size))
    };
    let facts = [
        ("the device", old.target.clone(), new.target.clone()),
        ("what stands behind the figures", old.device.name().to_owned(), new.device.name().to_owned()),
        ("the machine", host(old), host(new)),
        ("the kernel", old.host.kernel.clone(), new.host.kernel.clone()),
    ];
    facts.into_iter().filter(|(_, a, b)| a != b).map(|(what, a, b)| format!("{what}: first {a}, then {b}")).collect()
}

/// What both have, in the order of the first.
fn cases(old: &Report, new: &Report) -> Vec<Case> {
    let reads = |run: &Run| {
        let group = format!("{} of {}", run.workload, output::bytes(run.block_size));
        (group, format!("depth {}, {}", run.queue_depth, run.plan()))
    };
    let packets =
        |run: &PacketRun| (format!("packets, {} rings", run.ring), format!("bursts of {}, {}", run.burst, run.policy));
    let case = |(group, name), old, new, trusted: bool, samples: [Vec<Sample>; 2]| {
        let alike = if trusted { Ratio::alike(&samples[1], &samples[0]) } else { None };
        let found = alike.map(|alike| alike.ratio);
        let verdict = match found {
            None => Verdict::Untrusted,
            Some(ratio) if ratio.is_same() => Verdict::Same,
            Some(ratio) if ratio.median < 1.0 => Verdict::Slower,
            Some(_) => Verdict::Faster,
        };
        let ratio = found.map(|Ratio { median, low, high, confidence }| Interval { median, low, high, confidence });
        let rounds = alike.map_or([0; 2], |alike| [alike.those, alike.these]);
        let hand_over_ns = alike.and_then(|alike| alike.states);
        Case { case: format!("{group}, {name}"), group, old, new, ratio, rounds, hand_over_ns, verdict, found }
    };
    let mut all = Vec::new();
    for before in &old.runs {
        let key = |run: &Run| (reads(run), run.batch);
        if let Some(after) = new.runs.iter().find(|run| key(run) == key(before)) {
            let trusted = before.is_trusted() && after.is_trusted();
            all.push(case(
                reads(before),
                before.iops,
                after.iops,
                trusted,
                [before.samples().collect(), after.samples().collect()],
            ));
        }
    }
    let of = |report: &Report| report.packets.iter().flat_map(|packets| packets.runs.clone()).collect::<Vec<_>>();
    for before in of(old) {
        if let Some(after) = of(new).iter().find(|run| packets(run) == packets(&before)) {
            let trusted = before.is_trusted() && after.is_trusted();
            all.push(case(
                packets(&before),
                before.pps,
                after.pps,
                trusted,
                [before.samples().collect(), after.samples().collect()],
            ));
        }
    }
    all
}

impl Comparison {
    /// For people.
    fn text(&self) -> String {
        let mut text = String::new();
        if !self.differences.is_empty() {
            text += "NOT COMPARABLE, and compared anyway:\n";
            text.extend(self.differences.iter().map(|difference| output::wrapped(&format!("  {difference}"), 4)));
            text.push('\n');
        }
        let (mut rows, mut group) = (Vec::new(), "");
        for case in &self.cases {
            if group != case.group {
                group = &case.group;
                rows.push([group].into_iter().chain([""; 6]).map(str::to_owned).collect());
            }
            let name = case.case.trim_start_matches(group).trim_start_matches(", ");
            let interval = case.found.map_or("-".to_owned(), |ratio| format!("{:.2} to {:.2}", ratio.low, ratio.high));
            let verdict = match case.verdict {
                Verdict::Same => "",
                Verdict::Faster => "faster",
                Verdict::Slower => "SLOWER",
                Verdict::Untrusted => "untrusted",
            };
            let [old, new] = [case.old, case.new].map(output::rate);
            let rounds = format!("{}, {}", case.rounds[0], case.rounds[1]);
            rows.push(vec![
                format!("  {name}"),
                old,
                new,
                ratio_text(case.found),
                interval,
                rounds,
                verdict.to_owned(),
            ]);
        }
        text += &output::table(["case", ">old", ">new", ">ratio", ">interval", ">rounds", ""], rows);
        text.push('\n');
        let count = |verdict| self.cases.iter().filter(|case| case.verdict == verdict).count();
        text += &output::paragraph(&format!(
            "{} cases: {} faster, {} slower, {} the same within the noise of both runs, {} untrusted. old, new: a second, the median of all rounds. ratio: new to old, of so many rounds of either. ",
            self.cases.len(),
            count(Verdict::Faster),
            count(Verdict::Slower),
            count(Verdict::Same),
            count(Verdict::Untrusted),
        ));
        let states: Vec<_> = self.cases.iter().filter_map(|case| case.hand_over_ns).collect();
        if let Some((low, high)) = states.iter().copied().reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))) {
            text += &output::paragraph(&format!(
                "Those rounds are compared in which a cache line went from core to core and back in a like time: within 15 %, between {low:.0} and {high:.0} ns."
            ));
        }
        if self.cases.iter().any(|case| case.rounds == [0; 2]) {
            text += &output::paragraph(
                "untrusted: no five rounds of both had their cores to themselves, and as near one another as in the other run.",
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Cpu, Round};

    fn report(factor: f64, share: f64) -> Report {
        let cpu = Cpu { driver: vec![share], model: None };
        // A third of the rounds: on a machine whose cores were far from one another.
        let round = |n: u32| {
            let (speed, hand_over_ns) = if n.is_multiple_of(3) { (0.4, 330.0) } else { (1.0, 50.0) };
            let iops = (1000.0 + f64::from(n * 7 % 12)) * factor * speed;
            Round { iops, cpu: cpu.clone(), hand_over_ns: Some(hand_over_ns), counts: true }
        };
        let rounds: Vec<_> = (0..12).map(round).collect();
        let run = Run { iops: 1005.0 * factor, cpu: cpu.clone(), rounds, ..Run::example() };
        Report {
            schema: super::super::SCHEMA.into(),
            version: "1".into(),
            device: crate::origin::Origin::Model,
            target: "sim:nvme".to_owned(),
            host: crate::host::Host::now(),
            core_shares: Vec::new(),
            runs: vec![run],
            trusted_runs: 1,
            packets: None,
            baseline: None,
        }
    }

    #[test]
    fn a_slowdown_is_found_and_noise_is_none() {
        let verdict = |old: &Report, new: &Report| cases(old, new)[0].verdict;
        assert_eq!(verdict(&report(1.0, 1.0), &report(0.9, 1.0)), Verdict::Slower);
        assert_eq!(verdict(&report(1.0, 1.0), &report(1.1, 1.0)), Verdict::Faster);
        assert_eq!(verdict(&report(1.0, 1.0), &report(1.001, 1.0)), Verdict::Same);
        assert_eq!(verdict(&report(1.0, 1.0), &report(0.5, 0.5)), Verdict::Untrusted);
        let case = &cases(&report(1.0, 1.0), &report(0.9, 1.0))[0];
        assert_eq!((case.rounds, case.hand_over_ns.map(|(low, _)| low)), ([8, 8], Some(50.0)));
        // A machine that was another one all the time, as it says.
        let mut far = report(1.0, 1.0);
        far.runs[0].rounds.iter_mut().for_each(|round| round.hand_over_ns = Some(700.0));
        assert_eq!(verdict(&report(1.0, 1.0), &far), Verdict::Untrusted);
    }

    #[test]
    fn another_machine_is_named() {
        let (old, mut new) = (report(1.0, 1.0), report(1.0, 1.0));
        assert!(differences(&old, &new).is_empty());
        new.host.cpu = "another".to_owned();
        new.target = "sim:nvme,page=64k".to_owned();
        let all = differences(&old, &new).join("\n");
        assert!(
            all.contains("the device: first sim:nvme, then sim:nvme,page=64k") && all.contains("another with"),
            "{all}"
        );
    }

    #[test]
    fn percentages_are_checked() {
        assert_eq!((percent("5"), percent("2.5%")), (Ok(5.0), Ok(2.5)));
        assert!(["-1", "100", "NaN", "x", ""].iter().all(|text| percent(text).is_err()));
    }
}

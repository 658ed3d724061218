//! What `wholebar idle` found, as data and as a table.

use super::LOADS;
use crate::host::Host;
use crate::origin::Origin;
use crate::output;
use crate::report::{BUSY, RatioReport};
use serde::Serialize;
use wholebar::irq::Coalescing;
use wholebar::measure::idle::{Load, Outcome};
use wholebar::measure::latency::Percentiles;

/// A report, as `--json` writes it.
#[derive(Debug, Serialize)]
pub struct Report {
    pub schema: &'static str,
    pub version: &'static str,
    pub device: Origin,
    pub target: String,
    pub host: Host,
    pub trip: &'static str,
    pub depth: u16,
    pub coalescing: Option<Held>,
    pub eventfds: Vec<WakeUp>,
    /// The instruction by which a hybrid core pauses between two polls; `None` where the CPU has none.
    pub pause: Option<String>,
    pub runs: Vec<Run>,
    pub saturation: Vec<AtSaturation>,
    /// A model has no core to itself.
    #[serde(skip)]
    pub shares_cores: bool,
    /// A model rests where nothing happens.
    #[serde(skip)]
    pub rests: bool,
}

/// For how long interrupts are held back, as a device has it.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Held {
    pub microseconds: u64,
    /// Or for so many; `null` where the time alone counts.
    pub events: Option<u32>,
    #[serde(skip)]
    text: Coalescing,
}

impl From<Coalescing> for Held {
    fn from(text: Coalescing) -> Self {
        let microseconds = u64::try_from(text.time.as_micros()).unwrap_or(u64::MAX);
        Self { microseconds, events: (text.events < u32::MAX).then_some(text.events), text }
    }
}

/// How long an eventfd takes to wake a thread that is signalled so often.
#[derive(Debug, Serialize)]
pub struct WakeUp {
    pub offered: f64,
    pub latency_ns: Percentiles,
}

/// A policy under a load.
#[derive(Debug, Serialize)]
pub struct Run {
    pub policy: &'static str,
    pub offered: Option<f64>,
    pub seconds: f64,
    pub rate: f64,
    pub begun: u64,
    pub back: u64,
    pub failed: u64,
    pub lost: u64,
    pub cpu: Cpu,
    pub slept: u64,
    pub latency_ns: Percentiles,
    pub wake_up: Option<f64>,
}

/// The rate of a policy at saturation, measured in turns with polling.
#[derive(Debug, Serialize)]
pub struct AtSaturation {
    pub policy: &'static str,
    /// The ratio of its rate to polling's; `None` of fewer than five turns.
    pub to_poll: Option<RatioReport>,
}

/// Shares of a core.
#[derive(Debug, Serialize)]
pub struct Cpu {
    pub driver: Option<f64>,
    pub model: Option<f64>,
}

/// What a load offers a second; `None` where it is as much as the device takes.
pub fn per_second(load: Load) -> Option<f64> {
    match load {
        Load::Nothing => Some(0.0),
        Load::PerSecond(rate) => Some(rate),
        Load::Saturation => None,
    }
}

/// The same as people write it.
pub fn offered(per_second: Option<f64>) -> String {
    per_second.map_or("max".to_owned(), |rate| if rate == 0.0 { "0".to_owned() } else { output::rate(rate) })
}

impl Run {
    pub fn new(policy: &'static str, load: Load, outcome: &Outcome, model: Option<f64>) -> Self {
        let Outcome { time, begun, back, failed, lost, cpu, slept, latency } = *outcome;
        let (seconds, cpu) = (time.as_secs_f64(), Cpu { driver: cpu, model });
        let (offered, rate) = (per_second(load), back as f64 / seconds);
        let latency_ns = latency;
        Self { policy, offered, seconds, rate, begun, back, failed, lost, cpu, slept, latency_ns, wake_up: None }
    }
}

impl Report {
    /// The run of a policy at a load.
    pub fn run(&self, policy: &str, offered: Option<f64>) -> Option<&Run> {
        self.runs.iter().find(|run| run.policy == policy && run.offered == offered)
    }

    /// Holds wake-ups against an eventfd's at the same load: what a row's slowest hundredth takes above what the device takes when it is polled.
    pub fn compare(&mut self) {
        let wake_ups = self.runs.iter().map(|run| {
            let eventfd = self.eventfds.iter().find(|eventfd| Some(eventfd.offered) == run.offered)?;
            let polled = self.run("poll", run.offered).filter(|polled| polled.back > 0)?;
            let added = run.latency_ns.p99.saturating_sub(polled.latency_ns.p50);
            let slept = run.policy != "poll" && run.slept > 0 && run.back > 0 && eventfd.latency_ns.p99 > 0;
            slept.then(|| added as f64 / eventfd.latency_ns.p99 as f64)
        });
        let wake_ups: Vec<_> = wake_ups.collect();
        self.runs.iter_mut().zip(wake_ups).for_each(|(run, wake_up)| run.wake_up = wake_up);
    }

    /// The report in a sentence or two; empty where too little was measured.
    pub fn lead(&self) -> String {
        let polling = self.runs.iter().filter(|run| run.policy == "poll").filter_map(|run| run.cpu.driver);
        if let Some(least) = polling.reduce(f64::min).filter(|least| *least < BUSY) {
            let percent = least * 100.0;
            return format!(
                "TOO BUSY FOR FIGURES: a thread that polls had {percent:.0} % of its core. Stop what else runs."
            );
        }
        let low = Some(100.0);
        let (Some(poll), Some(hybrid)) = (self.run("poll", low), self.run("hybrid", low)) else { return String::new() };
        let (Some(poll_cpu), Some(cpu)) = (poll.cpu.driver, hybrid.cpu.driver) else { return String::new() };
        let mut text = format!(
            "At 100 a second the hybrid policy takes {:.1} % of a core where polling takes {:.0} %, for a p99 of {} in place of {}.",
            cpu * 100.0,
            poll_cpu * 100.0,
            output::nanos(hybrid.latency_ns.p99),
            output::nanos(poll.latency_ns.p99),
        );
        let hybrid = self.saturation.iter().find(|at| at.policy == "hybrid").and_then(|at| at.to_poll.as_ref());
        if let Some(RatioReport { median, low, high, .. }) = hybrid {
            text += &format!(" At saturation it does {median:.2} of the rate ({low:.2} to {high:.2}, in turns).");
        }
        text
    }

    /// The table's columns; those that begin with `>` are numbers.
    pub const COLUMNS: [&str; 10] =
        ["policy", ">load", ">rate", ">CPU %", ">model", ">p50", ">p99", ">p99.9", ">sleeps", ">wake"];

    pub fn rows(&self) -> Vec<Vec<String>> {
        let percent = |share: Option<f64>| share.map_or("-".to_owned(), |share| format!("{:.1}", share * 100.0));
        let eventfds = self.eventfds.iter().map(|eventfd| {
            let p = &eventfd.latency_ns;
            let times = [p.p50, p.p99, p.p99_9].map(output::nanos);
            let [p50, p99, p99_9] = times;
            let none = || "-".to_owned();
            let load = output::rate(eventfd.offered);
            vec!["eventfd".to_owned(), load, none(), none(), none(), p50, p99, p99_9, none(), none()]
        });
        let runs = self.runs.iter().map(|run| {
            let latency = |nanos| if run.back == 0 { "-".to_owned() } else { output::nanos(nanos) };
            let p = &run.latency_ns;
            vec![
                run.policy.to_owned(),
                offered(run.offered),
                output::rate(run.rate),
                percent(run.cpu.driver),
                percent(run.cpu.model),
                latency(p.p50),
                latency(p.p99),
                latency(p.p99_9),
                output::rate(run.slept as f64 / run.seconds),
                run.wake_up.map_or("-".to_owned(), |wake_up| format!("{wake_up:.1}")),
            ]
        });
        eventfds.chain(runs).collect()
    }

    /// What the columns are.
    pub fn legend(&self) -> String {
        let mut text = "load, rate, sleeps: a second; CPU %, model: shares of a core, of the polling thread and of the model's. p50, p99, p99.9: from just \
             before the device is told to the thread's first instruction that has the answer. The device's time is in it, under every policy: what sleeping \
             adds is the difference to poll. eventfd: how long one alone takes to wake a thread here that is signalled so often. wake: that row's p99 less \
             the p50 of poll, in p99s of the eventfd."
            .to_owned();
        text += &match self.coalescing {
            Some(held) => format!(" Interrupts of the device are held back (coalesced): {}.", held.text),
            None => " The device has no coalescing of interrupts that its driver knows.".to_owned(),
        };
        text += &match &self.pause {
            Some(instruction) => format!(
                " Between two polls of hybrid that find nothing the core pauses by {instruction}, after 512 of them."
            ),
            None => {
                " This CPU has no instruction by which a core pauses between two polls (TPAUSE, WFET, wait).".to_owned()
            }
        };
        text
    }

    /// What has to be known of these figures.
    pub fn caveats(&self) -> Vec<String> {
        let mut all = Vec::new();
        let lost: u64 = self.runs.iter().map(|run| run.lost).sum();
        if lost > 0 {
            all.push(format!(
                "{lost} did not come back. Packets have to: by a wire that loops, a loopback plug or a peer that reflects."
            ));
        }
        if matches!(self.device, Origin::Model) {
            all.push(match self.rests {
                true => {
                    "The device is a model in this process: figures of emulation, not of hardware. Its thread rests where nothing happens: a doorbell that \
                     comes after a pause may wait for a sixteenth of the pause, a millisecond at the most, which is in the latencies."
                        .to_owned()
                }
                false => {
                    "The device is a model in this process, which looks for doorbells all the time as hardware does: figures of emulation, not of hardware. \
                     With --model-rests it rests, as it does outside of benchmarks."
                        .to_owned()
                }
            });
        }
        all
    }

    /// The table, and what it says.
    pub fn shown(&self) -> String {
        let mut text = String::new();
        if self.shares_cores {
            text += "DRIVER AND MODEL SHARED ONE CORE: these figures are of the scheduler.\n\n";
        }
        text += &output::paragraph(&self.lead());
        text += &format!("\n{}: {}, at most {} under way\n\n", self.target, self.trip, self.depth);
        text += &output::table(Self::COLUMNS, self.rows());
        text.push('\n');
        text += &output::paragraph(&self.legend());
        text + &self.caveats().iter().map(|caveat| output::paragraph(caveat)).collect::<String>()
    }
}

/// Loads, as categories of a plot.
pub fn categories() -> Vec<Option<f64>> {
    LOADS.iter().map(|load| per_second(*load)).collect()
}

#[cfg(test)]
pub mod tests {
    use super::super::{EVENTFD_LOADS, POLICIES};
    use super::*;
    use std::time::Duration;

    /// The widest there is.
    pub fn report() -> Report {
        let latency = Percentiles { p50: 999_000, p99: 99_900_000, p99_9: 999_000_000, ..Percentiles::default() };
        let outcome = Outcome {
            time: Duration::from_secs(1),
            begun: 12_345_678,
            back: 12_345_678,
            failed: 0,
            lost: 3,
            cpu: Some(1.0),
            slept: 123_456,
            latency,
        };
        let rows = POLICIES.iter().flat_map(|(policy, _)| LOADS.iter().map(move |load| (*policy, *load)));
        let runs = rows.map(|(policy, load)| Run::new(policy, load, &outcome, Some(1.0))).collect();
        let eventfd = Percentiles { p50: 4_490, p99: 9_890_100, p99_9: 99_900_000, ..Percentiles::default() };
        let mut report = Report {
            schema: "wholebar.idle/2",
            version: "0",
            device: Origin::Model,
            target: "sim:nvme".to_owned(),
            host: Host::now(),
            trip: "random reads of a block",
            depth: 32,
            coalescing: Some(Coalescing { events: 8, time: Duration::from_micros(100) }.into()),
            eventfds: EVENTFD_LOADS.map(|offered| WakeUp { offered, latency_ns: eventfd }).into(),
            pause: Some("TPAUSE".to_owned()),
            runs,
            saturation: vec![AtSaturation {
                policy: "hybrid",
                to_poll: wholebar::measure::ratio::Ratio::paired(&[0.98; 8], &[1.0; 8]).map(RatioReport::from),
            }],
            shares_cores: true,
            rests: false,
        };
        report.compare();
        report
    }

    #[test]
    fn the_table_fits_a_terminal() {
        let mut report = report();
        for rests in [false, true] {
            report.rests = rests;
            let text = report.shown();
            assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
            let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
            for says in [
                "did not come back",
                "SHARED ONE CORE",
                "(coalesced): 100 us, or 8",
                "At 100 a second the hybrid policy",
                "At saturation it does 0.98 of the rate",
            ] {
                assert!(words.contains(says), "{says} in {text}");
            }
        }
    }

    #[test]
    fn wake_ups_are_held_against_an_eventfd_s() {
        let mut report = report();
        let wake_up = |report: &Report, policy, offered| report.run(policy, offered).unwrap().wake_up;
        assert_eq!(wake_up(&report, "hybrid", Some(100.0)), Some(10.0));
        // Not of who polls, nor where no eventfd was measured.
        assert_eq!([wake_up(&report, "poll", Some(100.0)), wake_up(&report, "sleep", None)], [None, None]);
        report.runs[0].cpu.driver = Some(0.5);
        assert!(report.lead().starts_with("TOO BUSY FOR FIGURES: a thread that polls had 50 %"), "{}", report.lead());
        report.runs.iter_mut().for_each(|run| run.slept = 0);
        report.compare();
        assert_eq!(wake_up(&report, "hybrid", Some(100.0)), None);
    }
}

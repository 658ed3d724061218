//! What became of packets, as `sink` and `gen --to` tell it.

use crate::output;
use serde::Serialize;
use std::collections::BTreeMap;
use wholebar::measure::latency::Percentiles;
use wholebar::measure::net::accounting::Findings;

/// What was received, and what wasn't.
#[derive(Debug, Serialize)]
pub struct Received {
    /// Packets that came whole: each once.
    pub packets: u64,
    /// Bytes of all that came, without frame checksums.
    pub bytes: u64,
    /// From the first packet to the last.
    pub seconds: f64,
    /// Flows of which something came.
    pub flows: usize,
    /// Packets that came neither whole nor corrupt.
    pub lost: u64,
    /// Where they were lost, as far as that was counted here.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub lost_by_cause: BTreeMap<String, u64>,
    /// Packets that were lost and that nobody here counted; where the sender is not this process, that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uncounted: Option<u64>,
    /// Packets that came after one of their flow that was sent later.
    pub reordered: u64,
    /// By how many numbers at most.
    pub reordered_by: u64,
    /// Packets that others overtook on a model's wire, by its own count, whatever their flows.
    #[serde(skip_serializing_if = "is_zero")]
    pub wire_reordered: u64,
    /// Packets that had come before.
    pub duplicate: u64,
    /// Packets so late that they may have come before; they count as lost.
    pub too_late: u64,
    /// Packets that came damaged, or cut off; of a replay, those that are not what was to come.
    pub corrupt: u64,
    /// Packets that `gen` did not send.
    pub foreign: u64,
    /// Packets of another run of `gen`.
    pub other_runs: u64,
    /// From when packets were made to when they were received, where the clock is the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ns: Option<Percentiles>,
    /// Packets that came before they were sent: the clocks are not the same.
    pub from_the_future: u64,
}

impl Received {
    /// Of what was found out. `sent` is how many packets there should be, where that is known, and `causes` where packets were dropped, where
    /// that was seen.
    pub fn new(found: &Findings, sent: Option<u64>, causes: Option<BTreeMap<String, u64>>) -> Self {
        let arrivals = found.arrivals;
        let absent = sent.map_or(found.missing, |sent| sent.saturating_sub(arrivals.received));
        let lost = absent.saturating_sub(found.corrupt);
        let counted = causes.as_ref().map(|causes| causes.values().sum());
        let dated = !found.latency.is_empty() && found.from_the_future == 0;
        Self {
            packets: arrivals.received,
            bytes: found.bytes,
            seconds: found.span as f64 * 1e-9,
            flows: found.flows,
            lost,
            lost_by_cause: causes.unwrap_or_default(),
            uncounted: counted.map(|counted: u64| lost.saturating_sub(counted)),
            reordered: arrivals.reordered,
            reordered_by: arrivals.furthest,
            wire_reordered: 0,
            duplicate: arrivals.duplicate,
            too_late: arrivals.too_late,
            corrupt: found.corrupt,
            foreign: found.foreign,
            other_runs: found.other_runs,
            latency_ns: dated.then(|| Percentiles::of(&found.latency)),
            from_the_future: found.from_the_future,
        }
    }

    /// The same for people: names and values, then latencies.
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        let n = output::count;
        let rate = if self.seconds > 0.0 { output::rate(self.packets as f64 / self.seconds) } else { "-".to_owned() };
        let flows = if self.flows > 1 { format!(" in {} flows", self.flows) } else { String::new() };
        let mut causes: Vec<_> =
            self.lost_by_cause.iter().map(|(cause, count)| format!("{cause} {}", n(*count))).collect();
        causes.extend(self.uncounted.filter(|count| *count > 0).map(|count| format!("counted by nobody {}", n(count))));
        let causes = if causes.is_empty() { String::new() } else { format!(" ({})", causes.join(", ")) };
        let by = if self.reordered > 0 { format!(", by {} at most", n(self.reordered_by)) } else { String::new() };
        let wire = match self.wire_reordered {
            0 => String::new(),
            count => format!(" (wire_reordered {})", n(count)),
        };
        let mut rows = vec![
            ("received", format!("{} packets{flows}, {rate} a second", n(self.packets))),
            ("lost", n(self.lost) + &causes),
            ("reordered", n(self.reordered) + &by + &wire),
            ("duplicate", n(self.duplicate)),
            ("corrupt", n(self.corrupt)),
        ];
        let rare = [("too late to say", self.too_late), ("of another run", self.other_runs), ("foreign", self.foreign)];
        rows.extend(rare.into_iter().filter(|(_, count)| *count > 0).map(|(name, count)| (name, n(count))));
        rows
    }

    /// Latencies for people; nothing where there are none.
    pub fn latencies(&self) -> String {
        if self.from_the_future > 0 {
            let line =
                "No latencies: packets came before they were sent, so sender and receiver have different clocks.";
            return String::from("\n") + &output::wrapped(line, 0);
        }
        let Some(p) = &self.latency_ns else { return String::new() };
        let times = [p.mean, p.min, p.p50, p.p90, p.p99, p.p99_9, p.p99_99, p.max];
        let row = std::iter::once(String::new()).chain(times.into_iter().map(output::nanos)).collect();
        let columns = ["latency", ">mean", ">min", ">p50", ">p90", ">p99", ">p99.9", ">p99.99", ">max"];
        String::from("\n") + &output::table(columns, [row])
    }

    /// What went wrong, where something did.
    pub fn failure(&self) -> Option<String> {
        let n = output::count;
        match (self.lost, self.corrupt) {
            (0, 0) => None,
            (lost, 0) => Some(format!("{} packets were lost", n(lost))),
            (0, corrupt) => Some(format!("{} packets came corrupt", n(corrupt))),
            (lost, corrupt) => Some(format!("{} packets were lost, and {} came corrupt", n(lost), n(corrupt))),
        }
    }
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

//! What a run of `net fwd` came to: counts of each port, and whether every packet and every buffer is accounted for.

use super::Mode;
use crate::host::Host;
use crate::net::port::{Buffers, Facts, Totals};
use crate::net::run::{Happened, Outcome};
use crate::output;
use serde::Serialize;

/// A run, as `--json` writes it.
#[derive(Serialize)]
pub struct Report {
    schema: &'static str,
    version: &'static str,
    host: Host,
    mode: &'static str,
    burst: u16,
    cores: Vec<usize>,
    seconds: f64,
    /// How often cores slept.
    slept: u64,
    ports: Vec<Port>,
    events: Vec<Happened>,
    accounting: Accounting,
    /// All that was given to devices was sent before they were closed.
    settled: bool,
    /// Why it ended early, where a port did.
    ended: Option<String>,
}

#[derive(Serialize)]
struct Port {
    #[serde(flatten)]
    facts: Facts,
    #[serde(flatten)]
    totals: Totals,
    buffers: Buffers,
}

/// Where packets came from, and where they went. Both sides of it are equal, or packets were lost without being counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Accounting {
    /// Taken off queues that receive.
    pub received: u64,
    /// Made here.
    pub made: u64,
    /// Given to devices to be sent.
    pub sent: u64,
    /// Not to be sent on: read, or not understood.
    pub kept: u64,
    /// Refused by queues that send, by cause counted there.
    pub refused: u64,
    /// In hand when the run was over, and not to be got rid of any more.
    pub left: u64,
}

impl Accounting {
    /// Whether no packet was lost without being counted.
    pub fn holds(&self) -> bool {
        self.received + self.made == self.sent + self.kept + self.refused + self.left
    }

    fn line(&self) -> String {
        let n = output::count;
        let made = if self.made > 0 { format!(" + made {}", n(self.made)) } else { String::new() };
        format!(
            "received {}{made} {} sent {} + kept {} + refused {} + left over {}\n",
            n(self.received),
            if self.holds() { "=" } else { "IS NOT" },
            n(self.sent),
            n(self.kept),
            n(self.refused),
            n(self.left)
        )
    }
}

/// What a run was asked to be.
pub struct Asked {
    pub host: Host,
    pub mode: Mode,
    pub burst: u16,
    pub cores: Vec<usize>,
}

impl Report {
    pub fn new(asked: Asked, outcome: Outcome, ports: Vec<(Facts, Totals, Buffers)>, accounting: Accounting) -> Self {
        Self {
            schema: "wholebar.fwd/1",
            version: env!("CARGO_PKG_VERSION"),
            host: asked.host,
            mode: asked.mode.name(),
            burst: asked.burst,
            cores: asked.cores,
            seconds: outcome.time.as_secs_f64(),
            slept: outcome.slept,
            ports: ports.into_iter().map(|(facts, totals, buffers)| Port { facts, totals, buffers }).collect(),
            events: outcome.events,
            accounting,
            settled: outcome.settled,
            ended: outcome.ended,
        }
    }

    /// The same for people.
    pub fn text(&self) -> String {
        let seconds = self.seconds.max(1e-9);
        let rows = self.ports.iter().map(|Port { facts, totals, buffers }| {
            let rate = |packets: u64| output::rate(packets as f64 / seconds);
            let gigabits = |bytes: u64| format!("{:.3}", bytes as f64 * 8e-9 / seconds);
            vec![
                facts.port.to_string(),
                output::count(totals.rx_packets),
                rate(totals.rx_packets),
                gigabits(totals.rx_bytes),
                output::count(totals.tx_packets),
                rate(totals.tx_packets),
                gigabits(totals.tx_bytes),
                output::count(totals.dropped()),
                format!("{} of {}", buffers.home, buffers.made),
                totals.causes(),
            ]
        });
        let columns = [
            ">port",
            ">received",
            ">pps",
            ">Gb/s",
            ">sent",
            ">pps",
            ">Gb/s",
            ">dropped",
            ">buffers home",
            "dropped by cause",
        ];
        let mut text = format!("\n{} for {:.2} s\n\n", self.mode, self.seconds);
        text += &output::table(columns, rows);
        text.push('\n');
        text += &self.accounting.line();
        if self.ports.iter().any(|port| port.facts.is_software()) {
            text += "A device in software is among the ports: figures of emulation, not of hardware.\n";
        }
        text
    }

    /// What went wrong, where something did.
    pub fn trouble(&self) -> Option<String> {
        if let Some(ended) = &self.ended {
            return Some(format!("it ended early: {ended}"));
        }
        if !self.accounting.holds() {
            return Some("packets are missing that nobody counted".to_owned());
        }
        let missing = |port: &&Port| port.buffers.home != port.buffers.made;
        let Port { facts, buffers, .. } = self.ports.iter().find(missing)?;
        Some(format!("port {} has {} of its {} buffers home", facts.port, buffers.home, buffers.made))
    }
}

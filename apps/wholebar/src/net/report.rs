//! What every command that moves packets tells in the end: its ports with what they counted, what happened to them, and how it ended.

use super::port::{self, Buffers, Facts, OpenPort, Totals};
use super::run::{DeviceEvent, Outcome};
use crate::host::Host;
use crate::output;
use anyhow::Result;
use serde::Serialize;

/// Where lines go that are shown while it runs: to standard output, unless JSON is to be there.
pub fn show(json: bool) -> impl Fn(&str) -> Result<()> {
    move |text| {
        if !json {
            return output::print(text);
        }
        output::note(text.trim_end());
        Ok(())
    }
}

/// A run that is over, as `--json` writes it.
#[derive(Serialize)]
pub struct Ran {
    version: &'static str,
    host: Host,
    /// Packets that were moved at once, at most.
    burst: u16,
    cores: Vec<usize>,
    pub seconds: f64,
    /// How often cores slept.
    slept: u64,
    pub ports: Vec<Port>,
    events: Vec<DeviceEvent>,
    /// All that was given to devices was sent before they were closed.
    settled: bool,
    /// Why it ended early, where a port did.
    ended: Option<String>,
}

/// A port that was closed.
#[derive(Serialize)]
pub struct Port {
    #[serde(flatten)]
    pub facts: Facts,
    #[serde(flatten)]
    pub totals: Totals,
    /// Packets that the device was given to send, and has not given back: nobody knows what became of them.
    unconfirmed: usize,
    pub buffers: Buffers,
}

impl Ran {
    /// Closes the ports of a run, and keeps what they counted.
    pub fn new(host: Host, burst: u16, cores: Vec<usize>, ports: Vec<OpenPort>, outcome: Outcome) -> Self {
        let told: Vec<_> = ports.iter().map(|port| (port.facts(), port.totals())).collect();
        // Only now is what the devices still had home, too.
        let buffers = port::close(ports);
        let ports = told.into_iter().zip(buffers).map(|((facts, totals), buffers)| {
            let unconfirmed = outcome.unconfirmed.get(facts.port).copied().unwrap_or(0);
            Port { facts, totals, unconfirmed, buffers }
        });
        Self {
            version: env!("CARGO_PKG_VERSION"),
            host,
            burst,
            cores,
            seconds: outcome.time.as_secs_f64(),
            slept: outcome.slept,
            ports: ports.collect(),
            events: outcome.events,
            settled: outcome.settled,
            ended: outcome.ended,
        }
    }

    /// Its ports, a line each; what they dropped, by cause; and whether their buffers are home.
    pub fn table(&self) -> String {
        let seconds = self.seconds.max(1e-9);
        let rows = self.ports.iter().map(|Port { facts, totals, .. }| {
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
            ]
        });
        let columns = [">port", ">received", ">pps", ">Gb/s", ">sent", ">pps", ">Gb/s", ">dropped"];
        let mut text = output::table(columns, rows);
        for Port { facts, totals, .. } in self.ports.iter().filter(|port| port.totals.dropped() > 0) {
            text += &output::wrapped(&format!("port {} dropped: {}", facts.port, totals.causes()), 2);
        }
        let buffers = self.ports.iter().map(|Port { buffers, .. }| format!("{} of {}", buffers.home, buffers.made));
        text + &output::wrapped(&format!("buffers home: {}", buffers.collect::<Vec<_>>().join(", ")), 2)
    }

    /// What has to be said beside the figures of software; nothing where it is hardware.
    pub fn caveat(&self) -> &'static str {
        if self.ports.iter().any(|port| port.facts.is_software()) {
            "A device in software is among the ports: figures of emulation, not of hardware.\n"
        } else {
            ""
        }
    }

    /// Ports that keep packets to themselves, a line each.
    pub fn unconfirmed(&self) -> String {
        self.ports.iter().filter_map(Port::keeps).map(|keeps| keeps + "\n").collect()
    }

    /// What went wrong, where something did.
    pub fn failure(&self) -> Option<String> {
        if let Some(ended) = &self.ended {
            return Some(format!("it ended early: {ended}"));
        }
        let keep: Vec<_> = self.ports.iter().filter_map(Port::keeps).collect();
        if !keep.is_empty() {
            return Some(keep.join("; "));
        }
        let missing = |port: &&Port| port.buffers.home != port.buffers.made;
        let Port { facts, buffers, .. } = self.ports.iter().find(missing)?;
        Some(format!("port {} has {} of its {} buffers home", facts.port, buffers.home, buffers.made))
    }
}

impl Port {
    /// What it keeps to itself, where it does.
    fn keeps(&self) -> Option<String> {
        let Self { facts, totals, unconfirmed, .. } = self;
        let (port, count, sent) = (facts.port, output::count(*unconfirmed as u64), output::count(totals.tx_packets));
        let keeps = || format!("port {port}: {count} of {sent} packets sent are not confirmed: the device keeps them");
        (*unconfirmed > 0).then(keeps)
    }
}

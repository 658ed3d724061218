//! A snapshot as OpenMetrics text (OpenMetrics 1.0.0). The format is a few lines and one escape; that they are right, a strict reader
//! says in the tests.

use super::Snapshot;
use std::collections::BTreeMap;
use std::fmt::{self, Write};

/// How it is called in HTTP.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A metric family: its samples by their labels, of which no two are equal.
#[derive(Default)]
struct Family {
    kind: &'static str,
    unit: &'static str,
    help: String,
    samples: BTreeMap<String, String>,
}

#[derive(Default)]
struct Families(BTreeMap<String, Family>);

impl Families {
    /// `name` ends with the unit, where there is one.
    fn add(
        &mut self,
        (kind, unit): (&'static str, &'static str),
        name: &str,
        help: impl Into<String>,
        labels: &[(&str, &str)],
        value: impl fmt::Display,
    ) {
        let family = self.0.entry(format!("wholebar_{name}")).or_default();
        (family.kind, family.unit, family.help) = (kind, unit, help.into());
        let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        family.samples.insert(labels.join(","), value.to_string());
    }

    fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        for (name, Family { kind, unit, help, samples }) in &self.0 {
            writeln!(text, "# TYPE {name} {kind}")?;
            if !unit.is_empty() {
                writeln!(text, "# UNIT {name} {unit}")?;
            }
            writeln!(text, "# HELP {name} {}", escaped(help))?;
            let suffix = match *kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            for (labels, value) in samples {
                writeln!(text, "{name}{suffix}{{{labels}}} {value}")?;
            }
        }
        text += "# EOF\n";
        Ok(text)
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

const GAUGE: &str = "gauge";

/// The text.
pub(super) fn text(snapshot: &Snapshot) -> String {
    let mut all = Families::default();
    let process = snapshot.process.to_string();
    let program = [("program", snapshot.program.as_str()), ("process", &process)];
    all.add(("info", ""), "program", "The program whose statistics these are.", &program, 1);
    let seconds = format!("{:.9}", snapshot.nanoseconds as f64 / 1e9);
    all.add((GAUGE, "seconds"), "uptime_seconds", "How long it has counted.", &[], seconds);
    for port in &snapshot.ports {
        let own = [("port", port.name.as_str())];
        all.add(("info", ""), "port", "The port's Ethernet address.", &[own[0], ("mac", &port.mac)], 1);
        all.add((GAUGE, ""), "port_up", "Whether the link is there.", &own, u8::from(port.link_up));
        all.add((GAUGE, "bytes"), "port_mtu_bytes", "The largest packet, without link-layer header.", &own, port.mtu);
        if let Some(speed) = port.link_mbps {
            let unit = (GAUGE, "bits_per_second");
            all.add(unit, "port_speed_bits_per_second", "The link's speed.", &own, u64::from(speed) * 1_000_000);
        }
        for queue in &port.queues {
            // `rx0` is the receiving queue 0; what is of no queue is the port's.
            let kind = queue.queue.trim_end_matches(|c: char| c.is_ascii_digit());
            let kind = if kind.is_empty() { "port".to_owned() } else { plain(kind) };
            let labels = [own[0], ("queue", queue.queue.as_str())];
            let labels = if queue.queue.is_empty() { &labels[..1] } else { &labels[..] };
            for (name, value) in &queue.counters {
                if let Some(cause) = name.strip_prefix("dropped_") {
                    let labels = [labels, &[("cause", cause)]].concat();
                    let name = format!("{kind}_dropped_packets");
                    all.add(("counter", "packets"), &name, "Packets dropped, by cause.", &labels, value);
                } else {
                    let name = plain(name.strip_suffix("_total").unwrap_or(name));
                    let unit = ["bytes", "packets"].into_iter().find(|unit| name.ends_with(unit)).unwrap_or("");
                    let help = format!("What is counted as {}.", name.replace('_', " "));
                    all.add(("counter", unit), &format!("{kind}_{name}"), help, labels, value);
                }
            }
        }
    }
    for pool in &snapshot.pools {
        let labels = [("pool", pool.name.as_str())];
        all.add((GAUGE, "buffers"), "pool_buffers", "Buffers that there are.", &labels, pool.capacity);
        all.add((GAUGE, "buffers"), "pool_available_buffers", "Buffers that are home.", &labels, pool.available);
    }
    // A string takes whatever is written to it.
    all.text().unwrap_or_default()
}

/// As names of metrics are written.
fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

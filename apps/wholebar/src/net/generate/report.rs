//! What a run of `gen` came to.

use super::lane::Made;
use crate::net::report::Ran;
use crate::net::sink::report::Received;
use crate::output;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use wholebar::measure::latency::Percentiles;
use wholebar::measure::net::rate::GAP;
use wholebar::measure::net::sizes::FCS;

/// A run, as `--json` writes it.
#[derive(Serialize)]
pub struct Report {
    schema: &'static str,
    /// What was asked for, in words.
    asked: String,
    sent: Sent,
    /// With --to: what became of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    received: Option<Received>,
    #[serde(flatten)]
    ran: Ran,
}

/// What was sent.
#[derive(Serialize)]
pub struct Sent {
    /// Packets that were made and taken by queues.
    pub packets: u64,
    /// Their bytes, without frame checksums.
    bytes: u64,
    /// A second.
    packets_per_second: f64,
    /// Bits a second of a wire: frames with their check sequence, preambles and gaps.
    bits_per_second: f64,
    /// How often there was no buffer for a packet.
    no_buffer: u64,
    /// How long the rate that was asked for was not reached.
    behind_seconds: f64,
    /// Packets that were made and that queues did not take any more.
    left: u64,
}

impl Sent {
    /// Of lanes that are over, after so long.
    pub fn new(made: &[Arc<Made>], time: Duration) -> Self {
        let sum = |each: fn(&Made) -> u64| made.iter().map(|made| each(made)).sum::<u64>();
        let (packets, bytes) = (sum(|made| made.packets.get()), sum(|made| made.bytes.get()));
        let seconds = time.as_secs_f64().max(1e-9);
        Self {
            packets,
            bytes,
            packets_per_second: packets as f64 / seconds,
            bits_per_second: 8.0 * (bytes + packets * (FCS as u64 + GAP)) as f64 / seconds,
            no_buffer: sum(|made| made.no_buffer.get()),
            behind_seconds: sum(|made| made.behind.get()) as f64 * 1e-9 / made.len().max(1) as f64,
            left: sum(|made| made.left.get()),
        }
    }
}

impl Report {
    pub fn new(asked: String, sent: Sent, received: Option<Received>, ran: Ran) -> Self {
        Self { schema: "wholebar.gen/1", asked, sent, received, ran }
    }

    /// The same for people.
    pub fn text(&self) -> String {
        let Self { asked, sent, received, ran, .. } = self;
        let (rate, bits) = (output::rate(sent.packets_per_second), output::three(sent.bits_per_second * 1e-9));
        let packets = output::count(sent.packets);
        let mut rows = vec![("sent", format!("{packets} packets, {rate} a second, {bits} Gb/s on a wire"))];
        rows.extend(received.iter().flat_map(Received::rows));
        let mut text = format!("\n{asked}, for {:.2} s\n\n{}", ran.seconds, output::pairs(rows));
        text += &received.as_ref().map_or(String::new(), Received::latencies);
        // More than the jitter of a start.
        if sent.behind_seconds > 0.01 * ran.seconds {
            let behind = sent.behind_seconds;
            let line =
                format!("The rate was not reached: in the end, packets were {behind:.2} s later than they should be.");
            text += &(String::from("\n") + &output::wrapped(&line, 0));
        }
        format!("{text}\n{}{}{}", ran.table(), ran.unconfirmed(), ran.caveat())
    }

    /// Packets a second that were received, or sent where nobody here receives, and how long they took.
    pub fn figures(&self) -> (f64, Option<Percentiles>) {
        let received =
            |received: &Received| (received.packets as f64 / self.ran.seconds.max(1e-9), received.latency_ns);
        self.received.as_ref().map_or((self.sent.packets_per_second, None), received)
    }

    /// What went wrong, where something did.
    pub fn failure(&self, tolerate: bool) -> Option<String> {
        let nothing = || (self.sent.packets == 0).then(|| "nothing was sent: is the link up?".to_owned());
        self.failure_of_round(tolerate).or_else(nothing)
    }

    /// The same of a time so short that nothing may have been sent.
    pub fn failure_of_round(&self, tolerate: bool) -> Option<String> {
        let lost = || self.received.as_ref().filter(|_| !tolerate).and_then(Received::failure);
        self.ran.failure().or_else(lost)
    }
}

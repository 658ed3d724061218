//! What a run of `net fwd` came to: counts of each port, and whether every packet and every buffer is accounted for.

use super::Mode;
use crate::net::report::Ran;
use crate::output;
use serde::Serialize;

/// A run, as `--json` writes it.
#[derive(Serialize)]
pub struct Report {
    schema: &'static str,
    mode: String,
    #[serde(flatten)]
    ran: Ran,
    accounting: Accounting,
}

/// Where packets came from, and where they went. Both sides of it are equal, or packets were lost without being counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Accounting {
    /// Taken off queues that receive.
    pub received: u64,
    /// Made here.
    pub made: u64,
    /// Copies of others, where --faults made some.
    pub duplicated: u64,
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
        self.received + self.made + self.duplicated == self.sent + self.kept + self.refused + self.left
    }

    fn line(&self) -> String {
        let n = output::count;
        let more = |what, count| if count > 0 { format!(" + {what} {}", n(count)) } else { String::new() };
        let line = format!(
            "received {}{}{} {} sent {} + kept {} + refused {} + left over {}",
            n(self.received),
            more("made", self.made),
            more("duplicated", self.duplicated),
            if self.holds() { "=" } else { "IS NOT" },
            n(self.sent),
            n(self.kept),
            n(self.refused),
            n(self.left)
        );
        output::wrapped(&line, 2)
    }
}

impl Report {
    pub fn new(mode: Mode, ran: Ran, accounting: Accounting) -> Self {
        Self { schema: "wholebar.fwd/1", mode: mode.name(), ran, accounting }
    }

    /// The same for people.
    pub fn text(&self) -> String {
        let Self { mode, ran, accounting, .. } = self;
        let (table, line) = (ran.table(), accounting.line());
        format!("\n{mode} for {:.2} s\n\n{table}\n{line}{}{}", ran.seconds, ran.unconfirmed(), ran.caveat())
    }

    /// Packets a second that were received or made.
    pub fn moved(&self) -> f64 {
        (self.accounting.received + self.accounting.made) as f64 / self.ran.seconds.max(1e-9)
    }

    /// What went wrong, where something did.
    pub fn failure(&self) -> Option<String> {
        let missing = || (!self.accounting.holds()).then(|| "packets are missing that nobody counted".to_owned());
        self.ran.failure().or_else(missing)
    }
}

//! What the doctor finds: one thing that was looked at, what it means, and what mends it.

use serde::Serialize;

/// One line of the doctor's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// What it means.
    pub verdict: Verdict,
    /// What was seen.
    pub evidence: String,
    /// What mends it, in the order to try: commands, or what to do where no command can.
    pub mend: Vec<String>,
}

/// What a finding means for opening the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Verdict {
    /// As it should be, or of no matter.
    #[serde(rename = "ok")]
    Ok,
    /// It can be opened, and something is worse than it could be.
    #[serde(rename = "warning")]
    Warning,
    /// It cannot be opened.
    #[serde(rename = "stops it")]
    Stop,
}

impl Finding {
    /// That something is as it should be.
    pub fn ok(check: &'static str, evidence: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, evidence: evidence.into(), mend: Vec::new() }
    }

    /// That something is worse than it could be.
    pub fn warn(check: &'static str, evidence: impl Into<String>, mend: impl Into<Vec<String>>) -> Self {
        Self { check, verdict: Verdict::Warning, evidence: evidence.into(), mend: mend.into() }
    }

    /// That something is in the way.
    pub fn stop(check: &'static str, evidence: impl Into<String>, mend: impl Into<Vec<String>>) -> Self {
        Self { check, verdict: Verdict::Stop, evidence: evidence.into(), mend: mend.into() }
    }
}

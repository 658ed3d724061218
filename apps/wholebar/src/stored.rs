//! Reports that a command has written as JSON, read again: whatever a file holds instead is said.

use crate::output;
use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fs::File;
use std::io::Read;

/// A report is not longer, in bytes.
const MOST: u64 = 64 << 20;

/// Reads a report of a schema, which `command` writes.
pub fn read<T: DeserializeOwned>(path: &str, schema: &str, command: &str) -> Result<T> {
    let mut bytes = Vec::new();
    let file = File::open(path).with_context(|| format!("cannot read {path}"))?;
    file.take(MOST + 1).read_to_end(&mut bytes).with_context(|| format!("cannot read {path}"))?;
    if bytes.is_empty() {
        bail!("{path} is empty: it should be a report of `{command}`");
    }
    if bytes.len() as u64 > MOST {
        bail!("{path} has more than {}: no report has", output::bytes(MOST));
    }
    let value: Value =
        serde_json::from_slice(&bytes).with_context(|| format!("{path} is not JSON, so no report of `{command}`"))?;
    match value.get("schema").and_then(Value::as_str) {
        Some(found) if found == schema => {}
        Some(other) => {
            let other: String = other.chars().take(80).collect();
            bail!("{path} is {other:?}, and only {schema:?} can be compared: make it with `{command}`")
        }
        None => bail!("{path} names no schema: it is no report of `{command}`"),
    }
    serde_json::from_value(value).with_context(|| format!("{path} is no whole report of schema {schema:?}"))
}

/// Whether numbers are such as a measurement gives, and can be drawn.
pub fn make_sense(numbers: impl IntoIterator<Item = f64>) -> bool {
    numbers.into_iter().all(|n| (0.0..1e15).contains(&n))
}

/// What is said of a report whose numbers make no sense.
pub fn broken(path: &str) -> anyhow::Error {
    anyhow::anyhow!("{path} holds numbers that no measurement gives: it was changed, or broken")
}

//! `key=value,key=value`: how models are told what to be. Knows the form, not the keys.

use crate::{Error, Result};
use wholebar_core::PageSize;

/// A model's parameter: its name, and what it can be, for people.
pub type Parameter = (&'static str, &'static str);

/// A parameter that was given.
pub(crate) struct Given<'a> {
    pub(crate) key: &'static str,
    pub(crate) value: &'a str,
    expected: &'static str,
}

/// Splits `text`, refusing keys that are not in `allowed` and keys given twice.
pub(crate) fn split<'a>(model: &'static str, text: &'a str, allowed: &[Parameter]) -> Result<Vec<Given<'a>>> {
    let mut given: Vec<Given<'a>> = Vec::new();
    for part in text.split(',').filter(|p| !p.is_empty()) {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        let Some(&(key, expected)) = allowed.iter().find(|(k, _)| *k == key) else {
            let list: Vec<_> = allowed.iter().map(|(k, v)| format!("\n  {k}={v}")).collect();
            let allowed = if list.is_empty() { "none".to_owned() } else { list.concat() };
            return Err(Error::Parameter { model, key: key.to_owned(), allowed });
        };
        if given.iter().any(|g| g.key == key) {
            return Err(Error::Conflict(format!("{key} is given twice")));
        }
        given.push(Given { key, value, expected });
    }
    Ok(given)
}

impl Given<'_> {
    /// The error for a value that makes no sense.
    pub(crate) fn bad(&self) -> Error {
        Error::Value { key: self.key.to_owned(), value: self.value.to_owned(), expected: self.expected.to_owned() }
    }

    /// A number in `range`.
    pub(crate) fn number<T: TryFrom<u64>>(&self, range: std::ops::RangeInclusive<u64>) -> Result<T> {
        let n = self.value.parse::<u64>().ok().filter(|n| range.contains(n));
        n.and_then(|n| T::try_from(n).ok()).ok_or_else(|| self.bad())
    }

    /// `0` or `1`.
    pub(crate) fn flag(&self) -> Result<bool> {
        match self.value {
            "0" => Ok(false),
            "1" => Ok(true),
            _ => Err(self.bad()),
        }
    }

    /// A page size.
    pub(crate) fn page(&self) -> Result<PageSize> {
        page(self.value, self)
    }

    /// A number of bytes: `4096`, `64k`, `512M`, `1G`, `2T`.
    pub(crate) fn bytes(&self) -> Result<u64> {
        bytes(self.value).ok_or_else(|| self.bad())
    }
}

/// A number of bytes with an optional unit.
pub(crate) fn bytes(text: &str) -> Option<u64> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let number: u64 = text[..text.len() - unit.len()].parse().ok()?;
    let shift = match unit {
        "" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

/// A page size: `4k`, `16k`, `64k`.
pub(crate) fn page(text: &str, given: &Given<'_>) -> Result<PageSize> {
    bytes(text).and_then(|n| PageSize::new(n).ok()).ok_or_else(|| given.bad())
}

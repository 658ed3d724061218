//! What arguments are made of: sizes, core lists, page sizes, map policies. Whatever a person can get wrong here is wrong usage.

use clap::ValueEnum;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;
use wholebar::PageSize;
use wholebar::bar::MapPolicy;

/// What was asked for makes no sense, whatever the device: exit code 2.
#[derive(Debug)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// A time in seconds: `10`, `0.5`, `2s`.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a time: write a number of seconds, like 10 or 0.5");
    let seconds: f64 = text.strip_suffix('s').unwrap_or(text).parse().map_err(|_| bad())?;
    if (0.0..=1e6).contains(&seconds) { Ok(Duration::from_secs_f64(seconds)) } else { Err(bad()) }
}

/// The same, above zero: how long to measure.
pub fn some_seconds(text: &str) -> Result<Duration, String> {
    match seconds(text)? {
        Duration::ZERO => Err("nothing can be measured in no time: write a number above 0".to_owned()),
        time => Ok(time),
    }
}

/// A size or an offset in bytes: `4096`, `4k`, `64KiB`, `1G`. Suffixes are powers of 1024.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad =
            || format!("{text:?} is not a size: write a number of bytes, or one with k, M, G or T (powers of 1024)");
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, suffix) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| bad())?;
        let suffix = suffix.to_ascii_lowercase();
        let shift = match suffix.strip_suffix("ib").unwrap_or(suffix.strip_suffix('b').unwrap_or(&suffix)) {
            "" => 0,
            "k" => 10,
            "m" => 20,
            "g" => 30,
            "t" => 40,
            _ => return Err(bad()),
        };
        number.checked_mul(1 << shift).map(Self).ok_or_else(|| format!("{text:?} is more than 64 bits hold"))
    }
}

/// Cores, each once: `0,1`, `0-3`, `0-2,6`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cores(pub Vec<usize>);

impl FromStr for Cores {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a list of cores: write it like 0,1 or 0-3");
        let mut cores = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (usize, usize) =
                (first.trim().parse().map_err(|_| bad())?, last.trim().parse().map_err(|_| bad())?);
            if first > last || last - first >= 4096 {
                return Err(bad());
            }
            for core in first..=last {
                if cores.contains(&core) {
                    return Err(format!("core {core} is named twice in {text:?}"));
                }
                cores.push(core);
            }
        }
        Ok(Self(cores))
    }
}

impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list: Vec<_> = self.0.iter().map(usize::to_string).collect();
        f.write_str(&list.join(","))
    }
}

/// A page size: `4k`, `16k`, `64k`.
pub fn page(text: &str) -> Result<PageSize, String> {
    PageSize::new(text.parse::<Size>()?.0).map_err(|e| e.to_string())
}

/// How much of the BARs is to be mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Policy {
    /// Whole where interrupts are isolated, else carved
    Auto,
    /// All that can be mapped, the MSI-X table included
    Whole,
    /// All but the pages that hold the MSI-X table
    Carved,
    /// Nothing: every access is a system call or a message
    Trapped,
}

impl From<Policy> for MapPolicy {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::Auto => Self::Auto,
            Policy::Whole => Self::Whole,
            Policy::Carved => Self::Carved,
            Policy::Trapped => Self::Trapped,
        }
    }
}

/// A policy as it is written on the command line and in reports.
pub fn policy_name(policy: MapPolicy) -> &'static str {
    match policy {
        MapPolicy::Auto => "auto",
        MapPolicy::Whole => "whole",
        MapPolicy::Carved => "carved",
        MapPolicy::Trapped => "trapped",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("512", Some(512)),
            ("4k", Some(4096)),
            ("4K", Some(4096)),
            ("4KB", Some(4096)),
            ("4KiB", Some(4096)),
            ("64m", Some(64 << 20)),
            ("1G", Some(1 << 30)),
            ("2T", Some(2 << 40)),
            ("16777215T", Some(16_777_215 << 40)),
            ("16777216T", None),
            ("", None),
            ("k", None),
            ("4x", None),
            ("-1", None),
            ("1.5G", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(text.parse().ok(), bytes.map(Size), "{text}");
        }
    }

    #[test]
    fn cores() {
        for (text, cores) in [
            ("0", Some(vec![0])),
            ("1,0", Some(vec![1, 0])),
            ("0-3", Some(vec![0, 1, 2, 3])),
            ("0-1,4", Some(vec![0, 1, 4])),
            ("", None),
            ("a", None),
            ("3-1", None),
            ("0,0", None),
            ("0-1,1", None),
            ("0-99999999", None),
        ] {
            assert_eq!(text.parse().ok(), cores.map(Cores), "{text}");
        }
    }
}

//! `wholebar pages compare`: stored reports are read and put side by side.

use super::comparison::{Comparison, Named};
use super::html;
use super::report::{Pages, SCHEMA};
use crate::output::{self, Files};
use crate::stored;
use anyhow::{Result, bail};
use std::path::Path;

/// Put reports of `wholebar pages --json` side by side: hosts with 4 and with 64 KiB pages, before and after a change
///
/// What is no comparison is refused: another device, another workload, a model or an emulator against hardware.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar pages compare 4k.json 64k.json
  wholebar pages compare before.json after.json --html comparison.html

Hosts are called as their files are. The JSON has schema (wholebar.pages-comparison/1), differences, summary and hosts (name, and the whole report).")]
pub struct Args {
    /// The reports
    #[arg(required = true, num_args = 2.., value_name = "REPORT.json")]
    reports: Vec<String>,
    #[command(flatten)]
    files: Files,
    /// Write the figure of all hosts as SVG to this file
    #[arg(long, value_name = "FILE")]
    svg: Option<String>,
    /// Compare what is not comparable, and say so
    #[arg(long)]
    anyway: bool,
}

pub fn run(args: Args) -> Result<()> {
    let hosts = read_all(&args.reports)?;
    let comparison = Comparison::of(hosts);
    if !comparison.differences.is_empty() && !args.anyway {
        let differences = comparison.differences.join("\n  ");
        bail!("these are not to be compared (--anyway does it all the same):\n  {differences}");
    }
    if !args.files.takes_stdout() {
        output::print(comparison.text())?;
    }
    args.files.write(&comparison, || html::comparison(&comparison))?;
    if let Some(path) = &args.svg {
        output::write(path, &html::comparison_figure(&comparison)?)?;
    }
    Ok(())
}

fn read_all(paths: &[String]) -> Result<Vec<Named>> {
    let stem = |path: &str| Path::new(path).file_stem().map_or(path.to_owned(), |stem| stem.to_string_lossy().into());
    let name = |path: &String| {
        let short = stem(path);
        if paths.iter().filter(|other| stem(other) == short).count() == 1 { short } else { path.clone() }
    };
    paths.iter().map(|path| Ok(Named { name: name(path), report: read(path)? })).collect()
}

/// Reads a report.
fn read(path: &str) -> Result<Pages> {
    let report: Pages = stored::read(path, SCHEMA, "wholebar pages --json")?;
    if report.makes_sense() { Ok(report) } else { Err(stored::broken(path)) }
}

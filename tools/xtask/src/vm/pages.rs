//! `vm pages`: `wholebar pages` in the guests that differ in nothing but their pages, side by side; and the figure of the README and the table of the guide.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::build::root;
use super::guest::Guest;

/// The CPU of guests that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Cpu {
    /// 4 and 64 KiB pages; writes the figure of the README and the table of the guide
    Powerpc64le,
    /// 4 and 16 KiB pages; shows the comparison
    Aarch64,
}

impl Cpu {
    fn guests(self) -> [Guest; 2] {
        match self {
            Self::Powerpc64le => [Guest::Ppc64le4k, Guest::Ppc64le64k],
            Self::Aarch64 => [Guest::Aarch644k, Guest::Aarch6416k],
        }
    }
}

/// Between these lines the guide has what `wholebar pages compare` says.
const BEGIN: &str = "<!-- written by `cargo xtask vm pages`: -->\n";
const END: &str = "<!-- end -->\n";
const GUIDE: &str = "framework/src/guide/pages.md";

/// Measures for so many seconds in each guest, and writes reports into `directory`; of powerpc64le, figure and table into the repository.
pub fn pages(cpu: Cpu, seconds: u64, directory: &Path) -> Result<u8> {
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    let reports = cpu.guests().iter().map(|guest| measure(*guest, seconds, directory)).collect::<Result<Vec<_>>>()?;
    if cpu != Cpu::Powerpc64le {
        print!("{}", compare(&reports, directory, None)?);
        return Ok(0);
    }
    let figure = root().join("tools/vm/pages.svg");
    let text = compare(&reports, directory, Some(&figure))?;
    let guide = root().join(GUIDE);
    let old = fs::read_to_string(&guide).context("reading the guide")?;
    fs::write(&guide, replaced(&old, &text)?).context("writing the guide")?;
    eprintln!(
        "vm: {GUIDE} and tools/vm/pages.svg are new, the reports and comparison.html are in {}",
        directory.display()
    );
    Ok(0)
}

/// One guest's report.
fn measure(guest: Guest, seconds: u64, directory: &Path) -> Result<PathBuf> {
    let report = directory.join(format!("{guest}.json"));
    let script = format!("wholebar pages $WHOLEBAR_NVME --runtime {seconds} --json /tmp/report >&2 && cat /tmp/report");
    let limit = (seconds * 4 + 180).to_string();
    let mut vm = Command::new(env::current_exe().context("finding this program")?);
    vm.args(["vm", "run", &guest.to_string(), "--limit", &limit, "--build", "--package wholebar-cli"]);
    vm.args(["--", "sh", "-c", &script]);
    vm.stdout(File::create(&report).with_context(|| format!("creating {}", report.display()))?);
    let status = vm.status().with_context(|| format!("running {vm:?}"))?;
    if !status.success() {
        bail!("measuring in {guest} failed ({status})");
    }
    Ok(report)
}

/// Compares the reports, and draws a figure; what is said of it.
fn compare(reports: &[PathBuf], directory: &Path, figure: Option<&Path>) -> Result<String> {
    let mut cargo = Command::new("cargo");
    cargo.args(["run", "--quiet", "--package", "wholebar-cli", "--bin", "wholebar", "--", "pages", "compare"]);
    cargo.args(reports).arg("--json").arg(directory.join("comparison.json"));
    cargo.arg("--html").arg(directory.join("comparison.html"));
    if let Some(figure) = figure {
        cargo.arg("--svg").arg(figure);
    }
    let output = cargo.current_dir(root()).output().with_context(|| format!("running {cargo:?}"))?;
    if !output.status.success() {
        bail!("comparing failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    String::from_utf8(output.stdout).context("reading the comparison")
}

/// The page of the guide with a new table.
fn replaced(page: &str, text: &str) -> Result<String> {
    let (before, rest) = page.split_once(BEGIN).with_context(|| format!("{GUIDE} has no line {BEGIN:?}"))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("{GUIDE} has no line {END:?} after it"))?;
    Ok(format!("{before}{BEGIN}```text\n{}\n```\n{END}{after}", text.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_replaced_and_nothing_else() {
        let old = format!("a\n{BEGIN}old\nlines\n{END}b\n");
        let new = format!("a\n{BEGIN}```text\nnew\n```\n{END}b\n");
        assert_eq!(replaced(&old, "new\n\n").unwrap(), new);
        assert_eq!(replaced(&new, "new").unwrap(), new);
        assert!(replaced("a\n", "new").is_err() && replaced(BEGIN, "new").is_err());
    }

    #[test]
    fn the_guide_has_a_place_for_it() {
        let guide = fs::read_to_string(root().join(GUIDE)).unwrap();
        assert!(replaced(&guide, "new").is_ok());
    }
}

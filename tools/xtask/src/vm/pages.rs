//! `vm pages`: `wholebar pages` in the guests that differ in nothing but their pages, side by side; and the README's figure and table of it.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::build::root;
use super::guest::Guest;

const GUESTS: [Guest; 2] = [Guest::Ppc64le4k, Guest::Ppc64le64k];
/// Between these lines the README has the figure, and what `wholebar pages compare` says.
const BEGIN: &str = "<!-- written by `cargo xtask vm pages`: -->\n";
const END: &str = "<!-- end -->\n";
const FIGURE: &str =
    "![Reads a second over queue depth, in a guest with 4 KiB pages and in one with 64 KiB pages](tools/vm/pages.svg)";

/// Measures for so many seconds in each guest, and writes reports into `directory`, figure and table into the repository.
pub fn pages(seconds: u64, directory: &Path) -> Result<u8> {
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    let reports = GUESTS.iter().map(|guest| measure(*guest, seconds, directory)).collect::<Result<Vec<_>>>()?;
    let text = compare(&reports, directory)?;
    let readme = root().join("README.md");
    let old = fs::read_to_string(&readme).context("reading README.md")?;
    fs::write(&readme, replaced(&old, &text)?).context("writing README.md")?;
    eprintln!(
        "vm: README.md and tools/vm/pages.svg are new, the reports and comparison.html are in {}",
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

/// Compares the reports; what is said of it.
fn compare(reports: &[PathBuf], directory: &Path) -> Result<String> {
    let mut cargo = Command::new("cargo");
    cargo.args(["run", "--quiet", "--package", "wholebar-cli", "--bin", "wholebar", "--", "pages", "compare"]);
    cargo.args(reports).arg("--json").arg(directory.join("comparison.json"));
    cargo.arg("--html").arg(directory.join("comparison.html")).arg("--svg").arg(root().join("tools/vm/pages.svg"));
    let output = cargo.current_dir(root()).output().with_context(|| format!("running {cargo:?}"))?;
    if !output.status.success() {
        bail!("comparing failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    String::from_utf8(output.stdout).context("reading the comparison")
}

/// The README with a new figure and table.
fn replaced(readme: &str, text: &str) -> Result<String> {
    let (before, rest) = readme.split_once(BEGIN).with_context(|| format!("README.md has no line {BEGIN:?}"))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("README.md has no line {END:?} after it"))?;
    Ok(format!("{before}{BEGIN}{FIGURE}\n\n```\n{}\n```\n{END}{after}", text.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_replaced_and_nothing_else() {
        let old = format!("a\n{BEGIN}old\nlines\n{END}b\n");
        let new = format!("a\n{BEGIN}{FIGURE}\n\n```\nnew\n```\n{END}b\n");
        assert_eq!(replaced(&old, "new\n\n").unwrap(), new);
        assert_eq!(replaced(&new, "new").unwrap(), new);
        assert!(replaced("a\n", "new").is_err() && replaced(BEGIN, "new").is_err());
    }

    #[test]
    fn the_readme_has_a_place_for_it() {
        let readme = fs::read_to_string(root().join("README.md")).unwrap();
        assert!(replaced(&readme, "new").is_ok());
    }
}

//! `vm test`: everything that wants real kernel VFIO, in one guest.
//!
//! Tests are the scripts in `tests/guest`, and the test binaries of the `tests` crate whose names begin with `kernel`. Lines at the head of a script may say
//! which guests it is for (`# guests: x86_64 ppc64le-64k`), and which machine it wants (`# machine: --no-intremap`); scripts that want the same
//! machine share a boot.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Parser;

use super::boot::Limits;
use super::build::root;
use super::initramfs::Payload;
use super::{NOT_RUN, Options, TIME_IS_UP, programs, run};

const RUNNER: &str = include_str!("../../../vm/test");

/// A script, and what its head asks for.
#[derive(Debug, PartialEq, Eq)]
struct Script {
    path: PathBuf,
    /// Empty for all.
    guests: Vec<String>,
    /// Options, on which scripts are grouped.
    machine: String,
}

/// Runs the tests whose names contain one of `names`, or all: 0 if they pass, 1 if one fails, 2 if something else was in the way.
pub fn test(options: &Options, names: &[String], limits: &Limits) -> Result<u8> {
    let wanted = |name: &str| names.is_empty() || names.iter().any(|part| name.contains(part.as_str()));
    let mut boots: BTreeMap<String, Payload> = BTreeMap::new();
    for script in scripts(&root().join("tests/guest"))? {
        let name = file_name(&script.path)?;
        let here = script.guests.is_empty() || script.guests.contains(&options.guest.to_string());
        if here && wanted(&name) {
            boots.entry(script.machine).or_default().push((format!("wholebar/tests/{name}"), script.path));
        }
    }
    let built = options.build(&["--package", "wholebar-tests", "--test", "kernel*"])?;
    for test in built.tests {
        let name = file_name(&test)?;
        let name = name.rsplit_once('-').map_or(name.as_str(), |(name, _hash)| name);
        if wanted(name) {
            boots.entry(String::new()).or_default().push((format!("wholebar/tests/{name}"), test));
        }
    }
    if boots.is_empty() {
        bail!("no test for {} has such a name", options.guest);
    }
    let programs = programs(built.programs)?;
    let mut worst = 0;
    for (machine, tests) in boots {
        eprintln!("vm: {} {machine}", options.guest);
        let own;
        let options = if machine.is_empty() {
            options
        } else {
            own = parse(&format!("{} {machine}", options.guest))?;
            &own
        };
        let payload = [&programs[..], &tests].concat();
        let code = run(options, &payload, &["sh".into(), "-c".into(), RUNNER.into()], limits)?;
        worst = worst.max(if matches!(code, TIME_IS_UP | NOT_RUN) { 2 } else { code });
    }
    Ok(worst)
}

/// Options as a script's head has them.
fn parse(line: &str) -> Result<Options> {
    #[derive(Parser)]
    #[command(no_binary_name = true)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }
    let line =
        Line::try_parse_from(line.split_whitespace()).with_context(|| format!("a script's machine, {line:?}"))?;
    Ok(line.options)
}

fn scripts(directory: &Path) -> Result<Vec<Script>> {
    let entries = fs::read_dir(directory).with_context(|| format!("listing {}", directory.display()))?;
    let mut scripts = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "sh") {
            let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            scripts.push(script(path, &text));
        }
    }
    scripts.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(scripts)
}

fn script(path: PathBuf, text: &str) -> Script {
    let head = |key: &str| {
        let mut lines = text.lines().take_while(|line| line.starts_with('#'));
        lines.find_map(|line| line.strip_prefix(key)).unwrap_or_default().trim().to_string()
    };
    let guests = head("# guests:").split_whitespace().map(String::from).collect();
    Script { path, guests, machine: head("# machine:") }
}

fn file_name(path: &Path) -> Result<String> {
    let name = path.file_name().and_then(|name| name.to_str());
    Ok(name.with_context(|| format!("{} has no plain name", path.display()))?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_s_head_says_where_it_runs() {
        let text = "# What it shows.\n# guests: x86_64 ppc64le-64k\n# machine: --nvme 64M --append a=b\n\nexit 0\n# guests: none\n";
        let expected = Script {
            path: "a.sh".into(),
            guests: vec!["x86_64".into(), "ppc64le-64k".into()],
            machine: "--nvme 64M --append a=b".into(),
        };
        assert_eq!(script("a.sh".into(), text), expected);
        assert_eq!(script("b.sh".into(), "exit 0\n# machine: --x\n").machine, "");
    }

    #[test]
    fn machines_of_all_scripts_are_understood() {
        let scripts = scripts(&root().join("tests/guest")).unwrap();
        assert!(!scripts.is_empty());
        for script in scripts {
            for guest in script.guests.iter().map(String::as_str).chain(["x86_64"]) {
                let options = parse(&format!("{guest} {}", script.machine)).unwrap();
                assert_eq!(options.guest.to_string(), guest);
            }
        }
        assert!(parse("x86_64 --no-such-option").is_err());
    }
}

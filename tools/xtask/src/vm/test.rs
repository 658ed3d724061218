//! `vm test`: everything that wants real kernel VFIO, in one guest.
//!
//! Tests are the scripts in `tests/guest`, and the test binaries of the `tests` crate whose names begin with `kernel`. Lines at the head of a script, or of a
//! binary's source (with `//`), may say which guests it is for (`# guests: x86_64 ppc64le-64k`), which machine it wants (`# machine: --no-intremap`), and
//! which of the test binaries it runs (`# runs: kernel`). Those that want the same machine share a boot.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;

use super::boot::Limits;
use super::build::root;
use super::debian::{self, Unavailable};
use super::initramfs::Payload;
use super::kernel;
use super::wires::Wires;
use super::{LEFT_OUT, NOT_RUN, Options, TIME_IS_UP, programs, run};

const RUNNER: &str = include_str!("../../../vm/test");

/// What the head of a test asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Head {
    /// Empty for all.
    guests: Vec<String>,
    /// Options, on which tests are grouped.
    machine: String,
    /// Test binaries that it wants in its PATH.
    runs: Vec<String>,
    /// Programs of Debian's that it can use.
    programs: Vec<String>,
    /// The guests in whose core set it is.
    core: Vec<String>,
}

/// Tests that share a boot.
#[derive(Default)]
struct Suite {
    files: Payload,
    /// Programs of Debian's, each with the tests that can use it.
    programs: BTreeMap<String, Vec<String>>,
}

impl Suite {
    fn add(&mut self, name: &str, path: PathBuf, head: &Head) {
        self.files.push((format!("wholebar/tests/{name}"), path));
        for program in &head.programs {
            self.programs.entry(program.clone()).or_default().push(name.to_owned());
        }
    }

    fn names(&self) -> String {
        let names: Vec<_> = self.files.iter().filter_map(|(place, _)| place.strip_prefix("wholebar/tests/")).collect();
        names.join(", ")
    }
}

/// Runs the tests whose names contain one of `names`, or all, of the core set if `core`: 0 if they pass, 1 if one fails, 2 if something else was in the
/// way.
pub fn test(options: &Options, names: &[String], core: bool, limits: &Limits) -> Result<u8> {
    // Tests say something when they begin and end, scripts at each step: none of these takes as long, or its own limits end it before.
    let silence = Some(Duration::from_secs(300));
    let limits = &Limits { limit: limits.limit.or(Some(3600)), silence, ..limits.clone() };
    let wanted = |name: &str| names.is_empty() || names.iter().any(|part| name.contains(part.as_str()));
    let guest = options.guest.to_string();
    let here = |name: &str, head: &Head| {
        wanted(name)
            && (head.guests.is_empty() || head.guests.contains(&guest))
            && (!core || head.core.contains(&guest))
    };
    // Before anything is built: a guest may not be had.
    let kernel = kernel::kernel(options.guest)?;
    eprintln!("vm: {}, Linux {}", options.guest, kernel.release());
    let (mut tests, mut scripts) = (Vec::new(), Vec::new());
    for path in files(&root().join("tests/tests"), "rs")? {
        let (name, head) = (file_name(&path)?.trim_end_matches(".rs").to_owned(), read_head(&path)?);
        if name.starts_with("kernel") && here(&name, &head) {
            tests.push((name, head));
        }
    }
    for path in files(&root().join("tests/guest"), "sh")? {
        let (name, head) = (file_name(&path)?, read_head(&path)?);
        if here(&name, &head) {
            scripts.push((name, path, head));
        }
    }
    // Of the test binaries those alone are built that run here, by themselves or by a script.
    let run_by_scripts = scripts.iter().flat_map(|(_, _, head)| &head.runs);
    let needed: BTreeSet<&String> = tests.iter().map(|(name, _)| name).chain(run_by_scripts).collect();
    let selection: Vec<&str> =
        needed.into_iter().flat_map(|name| ["--package", "wholebar-tests", "--test", name]).collect();
    let built = options.build(&selection)?;
    let mut binaries = BTreeMap::new();
    for path in built.tests {
        let name = file_name(&path)?;
        binaries.insert(name.rsplit_once('-').map_or(name.as_str(), |(name, _hash)| name).to_owned(), path);
    }
    let mut boots: BTreeMap<String, Suite> = BTreeMap::new();
    for (name, head) in &tests {
        let binary = binaries.get(name).with_context(|| format!("cargo built no {name}"))?;
        boots.entry(head.machine.clone()).or_default().add(name, binary.clone(), head);
    }
    for (name, path, head) in scripts {
        let suite = boots.entry(head.machine.clone()).or_default();
        for test in &head.runs {
            let binary = binaries.get(test).with_context(|| format!("cargo built no {test}, which {name} runs"))?;
            suite.files.push((format!("wholebar/bin/{test}"), binary.clone()));
        }
        suite.add(&name, path, &head);
    }
    if boots.is_empty() {
        bail!("no test for {} has such a name", options.guest);
    }
    let programs = programs(built.programs)?;
    let mut worst = 0;
    for (machine, suite) in boots {
        eprintln!("vm: {} {machine}", options.guest);
        let mut options =
            if machine.is_empty() { options.clone() } else { parse(&format!("{} {machine}", options.guest))? };
        if let Some(why) = Wires::of(&options.machine)?.missing()? {
            println!("{LEFT_OUT}: {guest}: {}, for no TAP interfaces are to be had here: {why}", suite.names());
            continue;
        }
        for (program, tests) in &suite.programs {
            match debian::program(program, options.guest.cpu().debian) {
                Ok(_) => options.inside.debian.push(program.clone()),
                Err(error) if error.is::<Unavailable>() => {
                    println!("{LEFT_OUT}: {guest}: what {} does with {program}: {error:#}", tests.join(", "));
                }
                Err(error) => return Err(error),
            }
        }
        // What scripts source.
        let commands = ("wholebar/commands".to_owned(), root().join("tests/guest/commands"));
        let payload = [&programs[..], &suite.files, &[commands]].concat();
        let code = run(&options, &payload, &["sh".into(), "-c".into(), RUNNER.into()], limits)?;
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

/// The files in a folder with this extension, by name.
fn files(directory: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| format!("listing {}", directory.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|found| found == extension));
    paths.sort();
    Ok(paths)
}

fn read_head(path: &Path) -> Result<Head> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(head(&text))
}

fn head(text: &str) -> Head {
    let comment = |line| str::strip_prefix(line, "//").or_else(|| line.strip_prefix('#'));
    let line = |key: &str| {
        let mut comments = text.lines().map_while(comment);
        comments.find_map(|line| line.trim_start().strip_prefix(key)).unwrap_or_default().trim().to_string()
    };
    let words = |key| line(key).split_whitespace().map(String::from).collect();
    Head {
        guests: words("guests:"),
        machine: line("machine:"),
        runs: words("runs:"),
        programs: words("programs:"),
        core: words("core:"),
    }
}

fn file_name(path: &Path) -> Result<String> {
    let name = path.file_name().and_then(|name| name.to_str());
    Ok(name.with_context(|| format!("{} has no plain name", path.display()))?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_says_where_a_test_runs() {
        let script = "# What it shows.\n# guests: x86_64 ppc64le-64k\n# machine: --nvme 64M --append a=b\n# runs: kernel\n# programs: iperf3\n# core: x86_64 ppc64le-64k\n\nexit 0\n# guests: none\n";
        let expected = Head {
            guests: vec!["x86_64".into(), "ppc64le-64k".into()],
            machine: "--nvme 64M --append a=b".into(),
            runs: vec!["kernel".into()],
            programs: vec!["iperf3".into()],
            core: vec!["x86_64".into(), "ppc64le-64k".into()],
        };
        assert_eq!(head(script), expected);
        let binary = "//! What it shows.\n// machine: --nvme 64M\n\nuse std::fs;\n// guests: none\n";
        assert_eq!(head(binary), Head { machine: "--nvme 64M".into(), ..Head::default() });
        assert_eq!(head("exit 0\n# machine: --x\n").machine, "");
    }

    #[test]
    fn machines_of_all_tests_are_understood() {
        let mut tests = files(&root().join("tests/guest"), "sh").unwrap();
        assert!(!tests.is_empty());
        for entry in fs::read_dir(root().join("tests/tests")).unwrap() {
            let path = entry.unwrap().path();
            if file_name(&path).unwrap().starts_with("kernel") {
                tests.push(path);
            }
        }
        for test in tests {
            let head = read_head(&test).unwrap();
            assert!(
                head.core.iter().all(|guest| head.guests.is_empty() || head.guests.contains(guest)),
                "{}",
                test.display()
            );
            for guest in head.guests.iter().chain(&head.core).map(String::as_str).chain(["x86_64"]) {
                let options = parse(&format!("{guest} {}", head.machine)).unwrap();
                assert_eq!(options.guest.to_string(), guest);
            }
        }
        assert!(parse("x86_64 --no-such-option").is_err());
    }
}

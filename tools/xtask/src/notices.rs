//! What an archive says of others' work in its program: each crate that is linked, its licence, and the texts that it comes with. Which crates
//! those are, cargo says; their texts lie where it unpacked them. What is no crate stands in third-party.txt, written by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::vm::build::root;

/// What is linked that is no crate.
const BESIDES: &str = include_str!("third-party.txt");

/// How files that hold licences begin, whatever their letters' case.
const NAMES: [&str; 6] = ["license", "licence", "copying", "copyright", "notice", "unlicense"];

/// A crate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Crate {
    name: String,
    version: String,
    /// An SPDX expression.
    licence: String,
    /// Where it is kept up.
    home: String,
}

/// The notices for the program of a CPU, whose crates' sources lie in `home`, cargo's: they do once it was built.
pub fn notices(cpu: &str, home: &Path) -> Result<String> {
    let mut tree = Command::new("cargo");
    tree.current_dir(root()).args(["tree", "--locked", "--package", "wholebar-cli", "--prefix", "none"]);
    tree.args(["--edges", "normal,no-proc-macro", "--format", "{p}\t{l}\t{r}", "--target"]);
    let output = tree.arg(format!("{cpu}-unknown-linux-gnu")).output().context("running cargo tree")?;
    ensure!(output.status.success(), "{tree:?}: {}", String::from_utf8_lossy(&output.stderr));
    let crates = crates(&String::from_utf8_lossy(&output.stdout))?;
    let with_texts = crates.into_iter().map(|this| {
        let texts = texts(&this.folder(home)?)?;
        Ok((this, texts))
    });
    text(&with_texts.collect::<Result<Vec<_>>>()?)
}

/// Reads lines of `cargo tree`, each of a package, its licence and its repository. Those of this workspace have a path.
fn crates(tree: &str) -> Result<BTreeSet<Crate>> {
    let others =
        tree.lines().map(|line| line.strip_suffix(" (*)").unwrap_or(line)).filter(|line| !line.contains(" (/"));
    let read = |line: &str| {
        let mut parts = line.split('\t');
        let (name, version) = parts.next()?.split_once(" v")?;
        let (licence, home) = (parts.next()?, parts.next()?);
        // Crates of old write "/" for "OR".
        let licence = licence.split('/').map(str::trim).collect::<Vec<_>>().join(" OR ");
        Some(Crate { name: name.to_owned(), version: version.to_owned(), licence, home: home.to_owned() })
    };
    let others = others.filter(|line| !line.is_empty());
    others.map(|line| read(line).with_context(|| format!("cargo tree writes {line:?}"))).collect()
}

impl Crate {
    /// Where cargo unpacked it.
    fn folder(&self, home: &Path) -> Result<PathBuf> {
        let (sources, name) = (home.join("registry/src"), format!("{}-{}", self.name, self.version));
        let registries = fs::read_dir(&sources).with_context(|| format!("reading {}", sources.display()))?;
        let mut folders = registries.filter_map(|registry| Some(registry.ok()?.path().join(&name)));
        folders.find(|folder| folder.is_dir()).with_context(|| format!("{name} is not in {}", sources.display()))
    }

    fn title(&self) -> String {
        format!("{} {}", self.name, self.version)
    }
}

/// The texts of a crate that hold licences: wherever they lie in it, since it may hold others' work itself.
fn texts(folder: &Path) -> Result<Vec<String>> {
    let mut entries = fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>, _>>())
        .with_context(|| format!("reading {}", folder.display()))?;
    entries.sort();
    let mut all = Vec::new();
    for path in entries {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        if path.is_dir() {
            all.extend(texts(&path)?);
        } else if NAMES.iter().any(|begin| name.starts_with(begin)) && !name.ends_with(".rs") {
            let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            all.push(String::from_utf8_lossy(&text).into_owned());
        }
    }
    Ok(all)
}

/// All of it. Texts that differ by nothing but white space are there once.
fn text(crates: &[(Crate, Vec<String>)]) -> Result<String> {
    let mut out =
        "wholebar contains work of others, under their own licences. These crates are linked into it:\n\n".to_owned();
    let longest = |of: fn(&Crate) -> usize| crates.iter().map(|(this, _)| of(this)).max().unwrap_or(0);
    let (titles, licences) = (longest(|c| c.title().len()), longest(|c| c.licence.len()));
    let (mut groups, mut order) = (BTreeMap::<String, (String, Vec<String>)>::new(), Vec::new());
    for (this, texts) in crates {
        writeln!(out, "{:titles$}  {:licences$}  {}", this.title(), this.licence, this.home)?;
        let texts = if texts.is_empty() { vec![standard(this)?] } else { texts.clone() };
        for text in texts {
            let plain = text.split_whitespace().collect::<Vec<_>>().join(" ");
            let group = groups.entry(plain.clone()).or_insert_with(|| {
                order.push(plain);
                (text, Vec::new())
            });
            if group.1.last() != Some(&this.title()) {
                group.1.push(this.title());
            }
        }
    }
    let line = "-".repeat(100);
    write!(out, "\n{line}\n{BESIDES}")?;
    for (text, titles) in order.iter().filter_map(|plain| groups.get(plain)) {
        write!(out, "\n{line}\nOf {}:\n\n{}\n", titles.join(", "), text.trim_matches('\n'))?;
    }
    Ok(out)
}

/// The licence of a crate that comes without its text.
fn standard(this: &Crate) -> Result<String> {
    let Crate { name, licence, .. } = this;
    let terms: Vec<_> = licence.split(" OR ").collect();
    if terms.contains(&"Apache-2.0") {
        return Ok("Used under Apache-2.0, whose text is LICENSE-APACHE beside this file.".to_owned());
    }
    if !terms.contains(&"MIT") {
        bail!("{} is under {licence}, and comes without its text", this.title());
    }
    let own = fs::read_to_string(root().join("LICENSE-MIT")).context("reading LICENSE-MIT")?;
    let (_, permission) = own.split_once("Permission is").context("LICENSE-MIT is another licence")?;
    Ok(format!("MIT License\n\nCopyright (c) the authors of {name}\n\nPermission is{permission}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a(name: &str, licence: &str) -> Crate {
        Crate {
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            licence: licence.to_owned(),
            home: "URL".to_owned(),
        }
    }

    #[test]
    fn crates_of_others_are_read_once() {
        let tree = "wholebar-cli v0.1.0 (/a b/c)\tMIT\t\nx v1.0.0\tMIT/Apache-2.0\tURL\nwholebar v0.1.0 (/a)\tMIT\t (*)\n\
                    b v1.0.0\tMIT\tURL\nx v1.0.0\tMIT/Apache-2.0\tURL (*)\n";
        let read: Vec<_> = crates(tree).unwrap().into_iter().collect();
        assert_eq!(read, [a("b", "MIT"), a("x", "MIT OR Apache-2.0")]);
        assert!(crates("x v1.0.0\n").is_err());
    }

    #[test]
    fn texts_are_there_once_and_standard_ones_where_there_are_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        file("LICENSE-MIT", "Some\n  terms.\n");
        file("src/vendored/COPYING", "Others' terms.");
        file("src/license.rs", "no terms");
        let found = texts(folder.path()).unwrap();
        assert_eq!(found, ["Some\n  terms.\n", "Others' terms."]);
        let all = [
            (a("b", "MIT"), found),
            (a("c", "MIT"), vec!["Some terms.".to_owned()]),
            (a("d", "MIT OR Apache-2.0"), vec![]),
            (a("e", "MIT"), vec![]),
        ];
        let text = text(&all).unwrap();
        assert!(text.contains("\nOf b 1.0.0, c 1.0.0:\n\nSome\n  terms.\n") && text.matches("terms.").count() == 2);
        assert!(text.contains("Of d 1.0.0:\n\nUsed under Apache-2.0") && text.contains("(c) the authors of e\n"));
        assert!(text.contains("\nd 1.0.0  MIT OR Apache-2.0  URL\n") && text.contains("pci.ids"));
        assert!(standard(&a("f", "GPL-3.0-only")).unwrap_err().to_string().contains("f 1.0.0 is under GPL-3.0-only"));
    }

    /// Of all that the workspace's crates are made of, with every feature, and of what builds them. Tests and benchmarks are left out: they are not given
    /// to anybody. Whether a crate has a known weakness is not asked here: that list is on the network (`cargo deny check advisories`).
    #[test]
    fn every_crates_licence_is_one_of_those_allowed() {
        /// None of them asks for more than to be named.
        const ALLOWED: [&str; 9] = [
            "0BSD",
            "Apache-2.0",
            "Apache-2.0 WITH LLVM-exception",
            "BSD-2-Clause",
            "BSD-3-Clause",
            "MIT",
            "Unicode-3.0",
            "Unlicense",
            "Zlib",
        ];
        let allowed = |licence: &str| {
            let terms = spdx::Expression::parse(licence).map_err(|error| error.to_string());
            terms.map(|terms| terms.evaluate(|term| ALLOWED.contains(&term.to_string().as_str())))
        };
        assert_eq!(allowed("GPL-2.0-only OR MIT"), Ok(true));
        assert_eq!(allowed("GPL-2.0-only AND MIT"), Ok(false));
        let mut tree = Command::new("cargo");
        tree.current_dir(root()).args(["tree", "--locked", "--workspace", "--all-features"]);
        tree.args(["--edges", "normal,build", "--prefix", "none", "--format", "{p}\t{l}\t{r}"]);
        let output = tree.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let crates = crates(&String::from_utf8_lossy(&output.stdout)).unwrap();
        assert!(crates.len() > 100, "{crates:?}");
        let refused: Vec<_> = crates.iter().filter(|this| allowed(&this.licence) != Ok(true)).collect();
        assert!(refused.is_empty(), "ALLOWED has none of their licences: {refused:#?}");
    }

    /// Of this very program, as it was built here. Nothing in it asks that its own source be given away.
    #[test]
    fn this_programs_crates_all_have_a_licence_that_it_can_have() {
        let text = notices("x86_64", &crate::dist::cargo_home().unwrap()).unwrap();
        let (list, rest) = text.split_once("\n---").unwrap();
        for name in ["clap ", "etherparse ", "libc ", "pcap-file ", "vfio-bindings "] {
            assert!(list.contains(&format!("\n{name}")), "no {name}in\n{list}");
        }
        assert!(!list.contains("wholebar-") && !list.contains("criterion ") && !list.contains("GPL"), "{list}");
        assert!(rest.contains("Permission is hereby granted") && rest.contains("Redistribution and use"));
    }
}

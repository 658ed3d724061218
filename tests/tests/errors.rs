//! One convention for the errors of all crates: what the system said is a part of the sentence, and so no `source()`: a chain says
//! nothing twice. Read from the code, so that no variant is forgotten.
#![cfg(not(miri))]

use std::fs;
use std::path::{Path, PathBuf};

/// The sources of the workspace's crates.
fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        match entry.is_dir() {
            true if entry.ends_with("target") || entry.ends_with("tests") => {}
            true => sources(&entry, found),
            false if entry.extension().is_some_and(|e| e == "rs") => found.push(entry),
            false => {}
        }
    }
}

#[test]
fn no_error_has_a_source_that_its_sentence_includes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut files = Vec::new();
    ["framework", "drivers", "tools", "apps"].iter().for_each(|dir| sources(&root.join(dir), &mut files));
    let (mut enums, mut transparent, mut wrong) = (0, 0, Vec::new());
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for part in text.split("thiserror::Error)]").skip(1) {
            enums += 1;
            // To the end of the enum: rustfmt has its brace at the start of a line.
            let (body, _) = part.split_once("\n}").unwrap();
            let lines: Vec<_> = body.lines().map(str::trim).filter(|line| !line.starts_with("///")).collect();
            for (i, line) in lines.iter().enumerate() {
                let passes_on = i > 0 && lines[i - 1] == "#[error(transparent)]";
                transparent += usize::from(passes_on);
                let source = line.contains("#[source]") || line.starts_with("source:") || line.contains("{ source:");
                if source || (line.contains("#[from]") && !passes_on) {
                    wrong.push(format!("{}: {line}", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(enums >= 10 && transparent >= 4, "{enums} {transparent}");
}

#[test]
fn a_chain_says_nothing_twice() {
    let missing = || std::io::Error::from(std::io::ErrorKind::NotFound);
    let io = || wholebar::Error::Io { what: "opening it".to_owned(), cause: missing() };
    let errors: Vec<anyhow::Error> = vec![
        io().into(),
        wholebar::sim::Error::Framework(io()).into(),
        wholebar::Error::Mmap { offset: 0, len: 1, cause: missing() }.into(),
        wholebar::Error::Memory { bytes: 1, step: "mmap", cause: missing() }.into(),
        wholebar::vfio_user::VfioUser::connect("/nowhere", wholebar::vfio_user::Options::default())
            .err()
            .unwrap()
            .into(),
        wholebar::sim::open("sim:nvme,file=/nowhere").err().unwrap().into(),
    ];
    for error in errors {
        let chain = format!("{:#}", error.context("trying"));
        let said = missing().to_string();
        let times = chain.matches(&said).count() + chain.matches("No such file or directory").count();
        assert_eq!(times, 1, "{chain}");
    }
}

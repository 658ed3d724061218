//! What safe code must not even compile to: a way past the guards of the MSI-X table, or around the ownership of a doorbell.
//!
//! In the files of `compile_fail/`, a comment `//~ CODE: MESSAGE` says for which reason its line fails; no other line may. They are compiled by
//! `rustc` alone, on the library that this test was built with: nothing else is built for it.

#![cfg(not(miri))]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

#[test]
fn each_line_fails_for_its_reason() {
    let (deps, library) = library();
    let scratch = tempfile::tempdir().unwrap();
    let mut files: Vec<PathBuf> =
        fs::read_dir("tests/compile_fail").unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let compiled = Command::new("rustc")
            .args(["--edition=2024", "--crate-type=lib", "--emit=metadata", "--error-format=short", "-Awarnings"])
            .arg(format!("--extern=wholebar_core={}", library.display()))
            .arg(format!("-Ldependency={}", deps.display()))
            .arg("--out-dir")
            .args([scratch.path(), &file])
            .output()
            .unwrap();
        let said = String::from_utf8(compiled.stderr).unwrap();
        let (found, wanted) = (errors(&said, &file), expected(&file));
        // The compiler has more to say than the reason.
        let same =
            |((at, reason), (line, mark)): (&(usize, String), &(usize, String))| at == line && reason.starts_with(mark);
        let all = !wanted.is_empty() && found.len() == wanted.len() && found.iter().zip(&wanted).all(same);
        assert!(all, "{}: {wanted:#?}, and not\n{said}", file.display());
    }
}

/// Where this test's dependencies are, and the library among them: the newest that is older than this test, for others may be built later.
fn library() -> (PathBuf, PathBuf) {
    let test = std::env::current_exe().unwrap();
    let deps = test.parent().unwrap().to_owned();
    let modified = |path: &PathBuf| fs::metadata(path).unwrap().modified().unwrap();
    let ours = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libwholebar_core-") && name.ends_with(".rlib") && modified(path) <= modified(&test)
    };
    let found = fs::read_dir(&deps).unwrap().map(|entry| entry.unwrap().path()).filter(ours);
    (deps, found.max_by_key(modified).expect("the library was built"))
}

/// The errors in a file, by line: `bar.rs:6:10: error[E0616]: field ...`.
fn errors(said: &str, file: &Path) -> Vec<(usize, String)> {
    let here = format!("{}:", file.display());
    let error = |line: &str| {
        let (place, reason) = line.strip_prefix(&here)?.split_once(": error")?;
        let reason = reason.strip_prefix('[').map_or(reason.to_owned(), |reason| reason.replacen(']', "", 1));
        Some((place.split(':').next()?.parse().ok()?, reason))
    };
    let mut found: Vec<_> = said.lines().filter_map(error).collect();
    // The compiler looks at some things later than at others.
    found.sort();
    found
}

fn expected(file: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(file).unwrap();
    let marks = (1..).zip(text.lines()).filter_map(|(n, line)| Some((n, line.split_once("//~ ")?.1.to_owned())));
    marks.collect()
}

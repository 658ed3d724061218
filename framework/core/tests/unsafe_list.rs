//! `UNSAFE.md` lists every file with unsafe code: how often the word stands there, what that relies on, and the tests that show it. This is the check
//! that the list is true: the numbers are those of the files, and the tests are there.

#![cfg(not(miri))]

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A row: the file, how often it says `unsafe`, and what else the row says.
type Rows = BTreeMap<String, (usize, String)>;

#[test]
fn the_list_is_that_of_the_files() {
    let listed: BTreeMap<String, usize> = rows().into_iter().map(|(file, (count, _))| (file, count)).collect();
    let found: BTreeMap<String, usize> = sources("src")
        .into_iter()
        .chain(sources("examples"))
        .filter(|path| !path.ends_with("tests.rs") && !path.ends_with("exhaustive.rs"))
        .map(|path| (path.display().to_string(), count(tokens(&path))))
        .filter(|(_, count)| *count > 0)
        .collect();
    assert_eq!(listed, found, "UNSAFE.md (left) is stale: say there what is new, what it relies on and what shows it");
}

#[test]
fn the_tests_of_the_list_are_there() {
    let mut tests = BTreeSet::new();
    for path in ["src", "tests", "../../drivers", "../../tests", "../../tools"].into_iter().flat_map(sources) {
        functions(tokens(&path), &mut tests);
    }
    for (file, (_, row)) in rows() {
        let shown = row.rsplit('|').next().unwrap_or_default();
        // In backquotes, the odd ones of the parts between them.
        let named: Vec<_> = shown.split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "{file}: no test is named");
        for name in named {
            let there = if name.contains('/') { Path::new("../..").join(name).exists() } else { tests.contains(name) };
            assert!(there, "{file}: there is no `{name}`");
        }
    }
}

/// Comments and strings are no tokens, so that only code counts.
#[test]
fn what_counts_is_code() {
    let text = r#"
        //! unsafe
        unsafe fn f() { /* unsafe */ let s = "unsafe"; unsafe { g!(unsafe { s }) } }
        macro_rules! m { () => { unsafe impl Send for X {} }; }
        #[cfg(test)] mod tests { unsafe fn no() {} }
        #[cfg(all(test, not(miri)))] #[allow(x)] mod more { unsafe fn no() {} }
        mod tests2 { unsafe trait Yes {} }
        #[cfg(test)] mod elsewhere; unsafe trait Yes {}
    "#;
    assert_eq!(count(text.parse().unwrap()), 6);
}

fn rows() -> Rows {
    let text = fs::read_to_string("UNSAFE.md").unwrap();
    let row = |line: &str| {
        let (file, rest) = line.strip_prefix("| `")?.split_once("` |")?;
        let (count, rest) = rest.trim_end_matches([' ', '|']).split_once('|')?;
        Some((file.to_owned(), (count.trim().parse().ok()?, rest.to_owned())))
    };
    let rows: Rows = text.lines().filter_map(row).collect();
    assert_eq!(
        rows.len(),
        text.lines().filter(|line| line.starts_with("| `")).count(),
        "a row that makes no sense, or two of a file"
    );
    rows
}

/// The files with Rust in them below a folder, but for what is built.
fn sources(folder: impl AsRef<Path>) -> Vec<PathBuf> {
    let mut found = Vec::new();
    // Not every crate that has such a list has examples.
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            found.extend(sources(path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

fn tokens(path: &Path) -> TokenStream {
    let text = fs::read_to_string(path).unwrap();
    text.parse().unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// How often the word stands in code that is not for tests alone.
fn count(tokens: TokenStream) -> usize {
    let (mut all, mut tests) = (0, false);
    for token in tokens {
        match token {
            TokenTree::Ident(word) => all += usize::from(word == "unsafe"),
            TokenTree::Group(group) if group.delimiter() == Delimiter::Bracket && of_tests(&group.stream()) => {
                tests = true
            }
            // The body of what is for tests; other attributes may lie between.
            TokenTree::Group(group) if tests && group.delimiter() == Delimiter::Brace => tests = false,
            TokenTree::Group(group) => all += count(group.stream()),
            TokenTree::Punct(end) if end.as_char() == ';' => tests = false,
            _ => {}
        }
    }
    all
}

/// Whether an attribute is `cfg(test)`, or `cfg(all(test, …))`.
fn of_tests(attribute: &TokenStream) -> bool {
    let text: String = attribute.to_string().split_whitespace().collect();
    text.starts_with("cfg(test") || text.starts_with("cfg(all(test")
}

/// The names of functions.
fn functions(tokens: TokenStream, names: &mut BTreeSet<String>) {
    let mut after_fn = false;
    for token in tokens {
        match token {
            TokenTree::Ident(word) if std::mem::replace(&mut after_fn, word == "fn") => {
                names.insert(word.to_string());
            }
            TokenTree::Group(group) => functions(group.stream(), names),
            _ => {}
        }
    }
}

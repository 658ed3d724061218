//! `include/wholebar.h` is that of the sources, and no panic passes a function that it declares. To write it anew:
//! `WRITE_HEADER=1 cargo test -p wholebar-c --test header`.

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use std::collections::BTreeSet;
use std::fs;

/// In the order of the header.
const SOURCES: [&str; 8] = [
    "src/error.rs",
    "src/device.rs",
    "src/memory.rs",
    "src/event.rs",
    "src/disk.rs",
    "src/queue.rs",
    "src/port.rs",
    "src/packets.rs",
];

#[test]
fn the_header_is_that_of_the_sources() {
    let config = cbindgen::Config::from_file("cbindgen.toml").unwrap();
    let builder = SOURCES.iter().fold(cbindgen::Builder::new(), |builder, path| builder.with_src(path));
    let mut made = Vec::new();
    builder.with_config(config).generate().unwrap().write(&mut made);
    let made = String::from_utf8(made).unwrap();
    if std::env::var_os("WRITE_HEADER").is_some() {
        fs::write("include/wholebar.h", &made).unwrap();
    }
    let there = fs::read_to_string("include/wholebar.h").unwrap();
    assert!(made == there, "include/wholebar.h is stale: WRITE_HEADER=1 cargo test -p wholebar-c --test header");
}

/// All that is exported is in the header, and begins with `entry(…)`, which catches panics; nothing is done outside of it.
#[test]
fn every_function_is_entered_by_the_one_way() {
    let header = fs::read_to_string("include/wholebar.h").unwrap();
    let mut names = BTreeSet::new();
    for file in fs::read_dir("src").unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        for (name, body) in exported(text.parse().unwrap()) {
            assert!(header.contains(&format!("{name}(")), "{name} is not in the header");
            let mut tokens = body.into_iter();
            assert!(tokens.next().is_some_and(|token| is(&token, "entry")), "{name} is not entered by entry()");
            assert!(matches!(tokens.next(), Some(TokenTree::Group(g)) if g.delimiter() == Delimiter::Parenthesis));
            assert!(tokens.next().is_none(), "{name} does something outside of entry()");
            names.insert(name);
        }
    }
    let declared = header.lines().filter(|line| !line.starts_with("//")).filter(|line| line.contains("wb_"));
    let declared = declared.filter(|line| line.contains('(')).count();
    assert_eq!(names.len(), declared, "{names:?}");
}

/// The functions `extern "C"`, and their bodies.
fn exported(tokens: TokenStream) -> Vec<(String, TokenStream)> {
    let mut found = Vec::new();
    let mut tokens = tokens.into_iter();
    while let Some(token) = tokens.next() {
        if !is(&token, "extern") {
            continue;
        }
        let name = tokens.by_ref().skip_while(|token| !is(token, "fn")).nth(1);
        let body = tokens.find_map(|token| match token {
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => Some(group.stream()),
            _ => None,
        });
        found.push((name.unwrap().to_string(), body.unwrap()));
    }
    found
}

fn is(token: &TokenTree, word: &str) -> bool {
    matches!(token, TokenTree::Ident(ident) if ident == word)
}

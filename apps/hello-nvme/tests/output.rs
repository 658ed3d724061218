//! Standard output that takes nothing, or that nobody reads: an error, and a quiet end; no panic, wherever the error goes.

use std::fs::File;
use std::process::{Command, Stdio};

fn run(out: impl Into<Stdio>) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_hello-nvme")).stdout(out).stderr(Stdio::piped()).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_full_disk_is_an_error() {
    let full = "hello-nvme: cannot write to standard output: No space left on device (os error 28)\n";
    assert_eq!(run(File::create("/dev/full").unwrap()), (Some(1), full.to_owned()));
}

#[test]
fn a_reader_that_went_away_is_none() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(run(writer), (Some(0), String::new()));
}

#[test]
fn nobody_has_to_read_errors() {
    let mut wrong = Command::new(env!("CARGO_BIN_EXE_hello-nvme"));
    let status = wrong.args(["a", "b", "c"]).stderr(File::create("/dev/full").unwrap()).status().unwrap();
    assert_eq!(status.code(), Some(2));
}

#[test]
fn help_is_no_error() {
    let output = Command::new(env!("CARGO_BIN_EXE_hello-nvme")).arg("--help").output().unwrap();
    assert!(output.status.success() && output.stdout.starts_with(b"usage: hello-nvme"), "{output:?}");
}

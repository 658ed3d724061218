//! Where standard output takes nothing: commands about this machine's devices fail with a sentence, and end quietly where their reader has gone.

use std::fs::OpenOptions;
use std::process::{Command, Stdio};

fn wholebar(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wholebar"));
    command.args(args).stdin(Stdio::null()).stderr(Stdio::piped());
    command
}

const COMMANDS: [&[&str]; 4] = [&["devices"], &["devices", "--json"], &["doctor"], &["doctor", "--json"]];

#[test]
fn a_full_disk_is_an_error() {
    for args in COMMANDS {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = wholebar(args).stdout(full).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {error}");
        assert!(
            error.contains("cannot write to standard output") && error.contains("os error 28"),
            "{args:?}: {error}"
        );
    }
}

#[test]
fn a_reader_that_has_gone_is_none() {
    for args in COMMANDS {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = wholebar(args).stdout(writer).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*error), (Some(0), ""), "{args:?}");
    }
}

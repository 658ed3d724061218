//! Builds static programs for a CPU and says where they are.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::guest::Guest;

/// The repository's root.
pub fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here)
}

/// What cargo built, by kind.
#[derive(Default)]
pub struct Built {
    pub programs: Vec<PathBuf>,
    /// Test binaries of the crate `tests`, whose names end in a hash. Other packages have some of the same names.
    pub tests: Vec<PathBuf>,
}

/// Runs `cargo build` with `selection` ("--workspace --bins") for the guest's CPU.
pub fn build(guest: Guest, selection: &[&str]) -> Result<Built> {
    let cpu = guest.cpu().name;
    eprintln!("vm: building for {cpu}: {}", selection.join(" "));
    let mut cargo = cargo(cpu, "build");
    cargo.args(["--profile", "guest"]).args(selection);
    run(cpu, cargo)
}

/// Cargo's `command` ("build", "run") for static programs of a CPU, in the repository's root.
pub fn cargo(cpu: &str, command: &str) -> Command {
    let mut cargo = if cpu == "x86_64" {
        let triple = "x86_64-unknown-linux-gnu";
        let mut cargo = Command::new("cargo");
        // crt-static on the command line of the target alone, so that build scripts and procedural macros are built as ever.
        cargo.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-C target-feature=+crt-static");
        cargo.args([command, "--target", triple]);
        cargo
    } else {
        let mut cross = Command::new(root().join("tools/cross"));
        cross.args([cpu, command]);
        cross
    };
    cargo.current_dir(root());
    cargo
}

/// Runs a `cargo build`.
pub fn run(cpu: &str, mut cargo: Command) -> Result<Built> {
    cargo.args(["--message-format", "json-render-diagnostics"]);
    let output = cargo.stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("running {cargo:?}"))?;
    if !output.status.success() {
        bail!("building for {cpu} failed ({}): {cargo:?}", output.status);
    }
    Ok(parse(&String::from_utf8_lossy(&output.stdout)))
}

/// Reads cargo's messages, one JSON value a line.
fn parse(messages: &str) -> Built {
    let mut built = Built::default();
    for message in messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let Some(executable) = message["executable"].as_str() else { continue };
        if message["profile"]["test"] != true {
            built.programs.push(executable.into());
        } else if message["manifest_path"].as_str().is_some_and(|path| path.ends_with("/tests/Cargo.toml")) {
            built.tests.push(executable.into());
        }
    }
    built
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_told_from_tests_and_libraries() {
        let built = parse(concat!(
            r#"{"reason":"compiler-artifact","profile":{"test":false},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","profile":{"test":false},"executable":"/t/wholebar"}"#,
            "\nnot JSON\n",
            r#"{"manifest_path":"/r/apps/wholebar/Cargo.toml","profile":{"test":true},"executable":"/t/deps/nvme-4567"}"#,
            "\n",
            r#"{"manifest_path":"/r/tests/Cargo.toml","profile":{"test":true},"executable":"/t/deps/nvme-0123"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
            "\n",
        ));
        assert_eq!(built.programs, [PathBuf::from("/t/wholebar")]);
        assert_eq!(built.tests, [PathBuf::from("/t/deps/nvme-0123")]);
    }

    #[test]
    fn the_root_holds_the_workspace() {
        assert!(root().join("Cargo.lock").exists());
    }
}

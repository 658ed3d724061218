//! `cargo xtask dist`: the `wholebar` command as one static program a CPU, in archives that are the same whoever makes them of a commit.

use std::env;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use flate2::{Compression, GzBuilder};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::notices::notices;
use crate::vm::build::{cargo, root, run};

/// Makes an archive for each CPU, and SHA256SUMS, in target/dist
///
/// Each holds a static `wholebar`, which is started as a check (under qemu-user where it is another CPU's), README and licences: its own, and
/// THIRD-PARTY, those of what is linked into it. Times are the commit's, or those of SOURCE_DATE_EPOCH.
#[derive(clap::Args)]
pub struct Args {
    /// The CPUs: x86_64, aarch64, powerpc64le
    #[arg(value_name = "CPU", default_values = CPUS, value_parser = CPUS)]
    cpus: Vec<String>,
}

const CPUS: [&str; 3] = ["x86_64", "aarch64", "powerpc64le"];

/// What lies beside the program.
const DOCUMENTS: [&str; 3] = ["LICENSE-APACHE", "LICENSE-MIT", "README.md"];

pub fn main(args: Args) -> ExitCode {
    match dist(&args.cpus) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dist: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dist(cpus: &[String]) -> Result<()> {
    let out = root().join("target/dist");
    fs::create_dir_all(&out).with_context(|| format!("making {}", out.display()))?;
    let time = source_time()?;
    let mut sums = Vec::new();
    for cpu in cpus {
        let program = program(cpu)?;
        let name = format!("wholebar-{}-{cpu}-linux", env!("CARGO_PKG_VERSION"));
        let notices = notices(cpu, &cargo_home()?)?;
        let mut files = vec![("wholebar", 0o755, program), ("THIRD-PARTY", 0o644, notices.into_bytes())];
        for document in DOCUMENTS {
            let path = root().join(document);
            files.push((document, 0o644, fs::read(&path).with_context(|| format!("reading {}", path.display()))?));
        }
        let archive = archive(&name, time, files)?;
        let file = format!("{name}.tar.gz");
        write(&out.join(&file), &archive)?;
        eprintln!("dist: {file}, {} KiB", archive.len() >> 10);
        sums.push(format!("{}  {file}\n", sum(&archive)));
    }
    sums.sort_by(|a, b| a[64..].cmp(&b[64..]));
    write(&out.join("SHA256SUMS"), sums.concat().as_bytes())?;
    print!("{}", sums.concat());
    Ok(())
}

/// Builds the program and starts it.
fn program(cpu: &str) -> Result<Vec<u8>> {
    let build = with_options(cpu, "build")?;
    let programs = run(cpu, build)?.programs;
    let [path] = &programs[..] else { bail!("cargo built {} programs instead of one", programs.len()) };
    let program = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    ensure!(!has_interpreter(&program), "{} is not static", path.display());
    for arguments in [&["--version"][..], &["bench", "--help"]] {
        let output = with_options(cpu, "run")?.arg("--quiet").arg("--").args(arguments).output();
        let output = output.with_context(|| format!("starting {}", path.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success() && text.contains("wholebar"),
            "{} {}: {}\n{said}",
            path.display(),
            arguments.join(" "),
            output.status
        );
    }
    Ok(program)
}

fn with_options(cpu: &str, command: &str) -> Result<Command> {
    let mut cargo = cargo(cpu, command);
    cargo.args(["--locked", "--profile", "static", "--package", "wholebar-cli", "--bin", "wholebar"]);
    // Where it was built is of no matter to those who run it.
    let home = cargo_home()?;
    let remap = |from: &Path, to: &str| format!("\"--remap-path-prefix={}={to}\"", from.display());
    let (home, here) = (remap(&home, "/cargo"), remap(root(), "/wholebar"));
    cargo.arg("--config").arg(format!("target.{cpu}-unknown-linux-gnu.rustflags=[{home}, {here}]"));
    Ok(cargo)
}

/// Where cargo has its registries.
pub fn cargo_home() -> Result<PathBuf> {
    Ok(match env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => PathBuf::from(env::var_os("HOME").context("HOME is not set")?).join(".cargo"),
    })
}

/// Seconds since 1970: of the commit, unless SOURCE_DATE_EPOCH says otherwise.
fn source_time() -> Result<u64> {
    let text = match env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text,
        Err(_) => {
            let git = Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(root()).output();
            let git = git.context("asking git for the commit's time (or set SOURCE_DATE_EPOCH)")?;
            ensure!(git.status.success(), "git knows no commit here: set SOURCE_DATE_EPOCH");
            String::from_utf8_lossy(&git.stdout).into_owned()
        }
    };
    text.trim().parse().with_context(|| format!("{text:?} is no time in seconds since 1970"))
}

/// A compressed archive of `files` (name, mode, content) in a folder `name`: the same bytes for the same input.
fn archive(name: &str, time: u64, mut files: Vec<(&str, u32, Vec<u8>)>) -> Result<Vec<u8>> {
    files.sort();
    // No name and no time of its own.
    let mut tar = Builder::new(GzBuilder::new().write(Vec::new(), Compression::best()));
    let mut add = |path: String, kind: EntryType, mode: u32, content: &[u8]| {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        header.set_mtime(time);
        // Owner and group are 0, without names.
        header.set_uid(0);
        header.set_gid(0);
        tar.append_data(&mut header, path, content)
    };
    add(format!("{name}/"), EntryType::Directory, 0o755, &[])?;
    for (file, mode, content) in &files {
        add(format!("{name}/{file}"), EntryType::Regular, *mode, content)?;
    }
    Ok(tar.into_inner()?.finish()?)
}

fn sum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    let written = fs::File::create(path).and_then(|mut file| file.write_all(content));
    written.with_context(|| format!("writing {}", path.display()))
}

/// Whether a program of 64-bit ELF, little-endian, asks for a dynamic linker. What is none asks for none.
fn has_interpreter(elf: &[u8]) -> bool {
    /// Type of a program header (PT_INTERP): the name of the linker.
    const INTERPRETER: u32 = 3;
    let number = |at: usize, len: usize| {
        let bytes = elf.get(at..at.checked_add(len)?)?;
        Some(bytes.iter().rev().fold(0u64, |n, byte| n << 8 | u64::from(*byte)))
    };
    // ELF-64 Object File Format 1.5, figure 2: e_phoff at 32, e_phentsize at 54, e_phnum at 56.
    let (Some(table), Some(size), Some(count)) = (number(32, 8), number(54, 2), number(56, 2)) else { return false };
    (0..count).any(|i| {
        let at = usize::try_from(table.saturating_add(i * size)).unwrap_or(usize::MAX);
        number(at, 4) == Some(INTERPRETER.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::GzDecoder;
    use std::io::Read;

    #[test]
    fn an_archive_is_the_same_whatever_the_order_of_its_files() {
        let files = || vec![("wholebar", 0o755, b"program".to_vec()), ("README.md", 0o644, b"text".to_vec())];
        let mut reversed = files();
        reversed.reverse();
        let made = archive("wholebar-1-cpu", 1_700_000_000, files()).unwrap();
        assert_eq!(made, archive("wholebar-1-cpu", 1_700_000_000, reversed).unwrap());
        let mut tar = tar::Archive::new(GzDecoder::new(&made[..]));
        let entries: Vec<_> = tar
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let header = entry.header().clone();
                assert_eq!(
                    (header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap()),
                    (0, 0, 1_700_000_000)
                );
                let mut content = String::new();
                entry.read_to_string(&mut content).unwrap();
                (entry.path().unwrap().display().to_string(), header.mode().unwrap(), content)
            })
            .collect();
        let entry = |path: &str, mode: u32, content: &str| (path.to_owned(), mode, content.to_owned());
        let expected = [
            entry("wholebar-1-cpu/", 0o755, ""),
            entry("wholebar-1-cpu/README.md", 0o644, "text"),
            entry("wholebar-1-cpu/wholebar", 0o755, "program"),
        ];
        assert_eq!(entries, expected);
    }

    #[test]
    fn sums_are_those_of_sha256sum() {
        assert_eq!(sum(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn programs_that_need_a_linker_are_told_from_static_ones() {
        let elf = |kinds: &[u32]| {
            let mut elf = vec![0; 64];
            elf[32] = 64;
            elf[54] = 56;
            elf[56] = kinds.len() as u8;
            for kind in kinds {
                elf.extend(kind.to_le_bytes());
                elf.extend([0; 52]);
            }
            elf
        };
        assert!(!has_interpreter(&elf(&[1, 1, 6])));
        assert!(has_interpreter(&elf(&[6, 3, 1])));
        assert!(!has_interpreter(b"#!/bin/sh\n"));
        // This very test has a linker, unless it was built without.
        let this = fs::read(env::current_exe().unwrap()).unwrap();
        assert_eq!(has_interpreter(&this), !cfg!(target_feature = "crt-static"));
    }
}

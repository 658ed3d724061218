//! `cargo xtask vm`: boots a guest with a stock kernel and devices behind an IOMMU, and runs a command, a shell or the tests in it.

mod boot;
mod build;
mod cpio;
mod debian;
mod guest;
mod initramfs;
mod modules;
mod stream;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

use boot::{Boot, Limits, Outcome, inherited_name, unnamed_file};
use guest::{Guest, Machine};
use initramfs::{Inside, Task};

#[derive(Subcommand)]
pub enum Command {
    /// Runs a command in a guest. Its output and exit code become ours; 124 if its time was up, 125 if it could not be run
    Run {
        #[command(flatten)]
        options: Options,
        /// Seconds until the guest is stopped, from its start
        #[arg(long, value_name = "SECONDS", default_value_t = 300)]
        limit: u64,
        /// Show the guest's console
        #[arg(long)]
        console: bool,
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Opens a shell in a guest. `exit` ends it, Ctrl-A X too
    Shell {
        #[command(flatten)]
        options: Options,
    },
}

#[derive(Args)]
pub struct Options {
    guest: Guest,
    #[command(flatten)]
    machine: Machine,
    #[command(flatten)]
    inside: Inside,
    /// What cargo builds for the guest's PATH; nothing if empty
    #[arg(long, value_name = "SELECTION", default_value = "--workspace --exclude xtask --bins --examples")]
    build: String,
}

/// As timeout(1) has them.
const TIME_IS_UP: u8 = 124;
const NOT_RUN: u8 = 125;

pub fn main(command: Command) -> ExitCode {
    let result = match command {
        Command::Run { options, limit, console, command } => {
            let limits = Limits { wall_clock: Duration::from_secs(limit), show_console: console };
            options.programs().and_then(|programs| run(&options, &programs, &command, &limits))
        }
        Command::Shell { options } => options.programs().and_then(|programs| shell(&options, &programs)),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("vm: {error:#}");
            ExitCode::from(NOT_RUN)
        }
    }
}

impl Options {
    fn programs(&self) -> Result<Vec<PathBuf>> {
        let selection: Vec<&str> = self.build.split_whitespace().collect();
        if selection.is_empty() { Ok(Vec::new()) } else { Ok(build::build(self.guest, &selection)?.programs) }
    }
}

/// Runs a command in a guest; its exit code.
fn run(options: &Options, programs: &[PathBuf], command: &[String], limits: &Limits) -> Result<u8> {
    // QEMU itself aborts now and then, and a guest may not come up on a machine too busy for its timers: both are tried once more.
    let mut tries_left = 1;
    loop {
        let token = stream::new_token();
        let parts = Parts::gather(options, programs, &Task::Command { words: command, token: &token })?;
        match parts.boot(options)?.run(&token, limits)? {
            Outcome::Exit(code) => return Ok(code),
            Outcome::Timeout { began, console } => {
                print_console(&console);
                let what = if began { "the command did not end" } else { "the guest did not come up" };
                eprintln!("vm: {what} within {} s (--limit)", limits.wall_clock.as_secs());
                return Ok(TIME_IS_UP);
            }
            Outcome::Died { began, status, console } => {
                print_console(&console);
                let what = if began { "before the command did" } else { "before the command began" };
                let crashed = status.signal().is_some();
                if tries_left == 0 || (began && !crashed) {
                    bail!("the guest ended {what} (QEMU: {status})");
                }
                tries_left -= 1;
                eprintln!("vm: the guest ended {what} (QEMU: {status}); trying once more");
            }
        }
    }
}

fn shell(options: &Options, programs: &[PathBuf]) -> Result<u8> {
    let parts = Parts::gather(options, programs, &Task::Shell)?;
    let status = parts.boot(options)?.interactive()?;
    Ok(if status.success() { 0 } else { NOT_RUN })
}

/// What a boot needs, as files.
struct Parts {
    kernel: PathBuf,
    initramfs: File,
    disks: Vec<File>,
}

impl Parts {
    fn gather(options: &Options, programs: &[PathBuf], task: &Task) -> Result<Parts> {
        let Options { guest, machine, inside, .. } = options;
        if machine.no_intremap && *guest != Guest::X86_64 {
            bail!("--no-intremap is for x86_64: the other guests have no such switch");
        }
        let cpu = guest.cpu();
        debian::program(cpu.qemu, &[cpu.qemu_package])?;
        debian::program("xz", &["xz-utils"])?;
        let package = debian::unpacked(&guest.kernel_package())?;
        let busybox = debian::unpacked(&format!("busybox-static:{}", cpu.debian))?.join("usr/bin/busybox");
        let kernel = only(&package.join("boot"), "vmlinu")?;
        let modules = only(&package.join("usr/lib/modules"), "")?;

        let devices = machine.nvme().len() + machine.nic.len();
        let archive = initramfs::archive(*guest, &modules, &busybox, programs, devices, inside, task)?;
        let mut initramfs = unnamed_file()?;
        initramfs.write_all(&archive).context("writing the initial file system")?;
        let mut disks = Vec::new();
        for nvme in machine.nvme() {
            let disk = unnamed_file()?;
            disk.set_len(nvme.size).with_context(|| format!("making a disk of {} bytes", nvme.size))?;
            disks.push(disk);
        }
        Ok(Parts { kernel, initramfs, disks })
    }

    fn boot(&self, options: &Options) -> Result<Boot<'_>> {
        let Options { guest, machine, .. } = options;
        let disks: Vec<String> = self.disks.iter().map(inherited_name).collect::<Result<_>>()?;
        Ok(Boot {
            qemu: guest.cpu().qemu,
            arguments: machine.arguments(*guest, &disks),
            kernel: self.kernel.display().to_string(),
            command_line: machine.kernel_command_line(*guest),
            initramfs: &self.initramfs,
        })
    }
}

/// The one entry of a folder whose name begins so.
fn only(directory: &Path, beginning: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(directory).with_context(|| format!("looking into {}", directory.display()))?;
    let mut paths = entries.filter_map(|entry| entry.ok()).map(|entry| entry.path());
    let found = paths.find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(beginning)));
    found.with_context(|| format!("{} holds no {beginning}*", directory.display()))
}

fn print_console(console: &str) {
    let lines: Vec<&str> = console.lines().collect();
    let tail = &lines[lines.len().saturating_sub(40)..];
    eprintln!("vm: the end of the guest's console:");
    for line in tail {
        eprintln!("  {line}");
    }
}

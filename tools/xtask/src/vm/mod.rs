//! `cargo xtask vm`: boots a guest with a stock kernel and devices behind an IOMMU, and runs a command, a shell, the tests or a measurement in it.

mod boot;
pub mod build;
mod cpio;
mod debian;
mod guest;
mod initramfs;
mod kernel;
mod modules;
mod pages;
mod stream;
mod test;
mod wires;

use std::fs::File;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

use boot::{Boot, Limits, Outcome, inherited_name, unnamed_file};
use build::Built;
use debian::Unavailable;
use guest::{Guest, Machine};
use initramfs::{Contents, Inside, Payload, Task};
use wires::Wires;

#[derive(Subcommand)]
pub enum Command {
    /// Runs a command in a guest. Its output and exit code become ours; 124 if its time was up, 125 if it could not be run
    Run {
        #[command(flatten)]
        options: Options,
        #[command(flatten)]
        limits: Limits,
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Runs the tests that want real kernel VFIO, or those with one of NAMES in theirs. 0 if they pass, 1 if one fails, 2 if they could not be run, 3 if
    /// Debian's mirror does not have what the guest is made of
    Test {
        /// Only the core set, which takes a few minutes
        #[arg(long)]
        core: bool,
        #[command(flatten)]
        options: Options,
        #[command(flatten)]
        limits: Limits,
        /// Parts of the names of tests, of their scripts' or binaries' [default: all]
        names: Vec<String>,
    },
    /// Measures what pages cost (`wholebar pages`) in guests that differ in nothing but their pages
    Pages {
        /// Their CPU
        #[arg(long, value_enum, default_value = "powerpc64le")]
        cpu: pages::Cpu,
        /// Seconds to measure in each guest
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        runtime: u64,
        /// The folder for reports and comparison
        #[arg(long, value_name = "FOLDER", default_value = "target/pages")]
        out: PathBuf,
    },
    /// Opens a shell in a guest. `exit` ends it, Ctrl-A X too
    Shell {
        #[command(flatten)]
        options: Options,
    },
}

#[derive(Clone, Args)]
pub struct Options {
    guest: Guest,
    #[command(flatten)]
    machine: Machine,
    #[command(flatten)]
    inside: Inside,
    /// What cargo builds for the guest's PATH; nothing if empty
    #[arg(
        long,
        value_name = "SELECTION",
        allow_hyphen_values = true,
        default_value = "--workspace --exclude xtask --bins --examples"
    )]
    build: String,
}

/// Begins the lines that say what was not tested, and why.
const LEFT_OUT: &str = "LEFT OUT";

/// The guest of a test cannot be had.
const UNAVAILABLE: u8 = 3;
/// As timeout(1) has them.
const TIME_IS_UP: u8 = 124;
const NOT_RUN: u8 = 125;

pub fn main(command: Command) -> ExitCode {
    let (result, not_run) = match command {
        Command::Run { options, limits, command } => {
            (options.programs().and_then(|programs| run(&options, &programs, &command, &limits)), NOT_RUN)
        }
        Command::Test { options, core, limits, names } => {
            let result = test::test(&options, &names, core, &limits);
            if let Err(error) = &result
                && error.is::<Unavailable>()
            {
                println!("{LEFT_OUT}: {} was not tested: {error:#}", options.guest);
                return ExitCode::from(UNAVAILABLE);
            }
            (result, 2)
        }
        Command::Pages { cpu, runtime, out } => (pages::pages(cpu, runtime, &build::root().join(out)), NOT_RUN),
        Command::Shell { options } => (options.programs().and_then(|programs| shell(&options, &programs)), NOT_RUN),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("vm: {error:#}");
            ExitCode::from(not_run)
        }
    }
}

impl Options {
    /// Builds what the guest has in its PATH.
    fn programs(&self) -> Result<Payload> {
        programs(self.build(&[])?.programs)
    }

    /// Builds what was asked for and `more`, in one run of cargo: a second run would build shared crates again for other features.
    fn build(&self, more: &[&str]) -> Result<Built> {
        let selection: Vec<&str> = self.build.split_whitespace().chain(more.iter().copied()).collect();
        if selection.is_empty() { Ok(Built::default()) } else { build::build(self.guest, &selection) }
    }
}

fn programs(built: Vec<PathBuf>) -> Result<Payload> {
    let place = |path: PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).context("cargo built a file without a name")?;
        Ok((format!("wholebar/bin/{name}"), path))
    };
    built.into_iter().map(place).collect()
}

/// Runs a command in a guest; its exit code.
fn run(options: &Options, payload: &[(String, PathBuf)], command: &[String], limits: &Limits) -> Result<u8> {
    // QEMU itself aborts now and then (10.0, TCG with two CPUs), or one of its CPUs sleeps through the interrupt that another waits for; and a guest may
    // panic where a busy machine starves its timers. All of these are tried again.
    let mut tries_left = 2;
    loop {
        let token = stream::new_token();
        let parts = Parts::gather(options, payload, &Task::Command { words: command, token: &token })?;
        match parts.boot(options)?.run(&token, limits)? {
            Outcome::Exit(code) => return Ok(code),
            Outcome::Timeout { began, console } => {
                print_console(&console);
                let what = if began { "the command did not end" } else { "the guest did not come up" };
                eprintln!("vm: {what} within {} s (--limit)", limits.time().as_secs());
                return Ok(TIME_IS_UP);
            }
            Outcome::Silent { began, console } => {
                print_console(&console);
                let what = if began { "the time of the longest test" } else { "a long time, not even that it is up" };
                eprintln!("vm: nothing came from the guest in {what}: it hangs");
                if tries_left == 0 {
                    return Ok(TIME_IS_UP);
                }
                tries_left -= 1;
                eprintln!("vm: trying again");
            }
            Outcome::Died { began, status, console } => {
                print_console(&console);
                let what = if began { "before the command did" } else { "before the command began" };
                // A guest that panics early makes QEMU end well. What a command does to a guest is for it to answer, and a refusal of QEMU's is final.
                let worth_a_try = status.signal().is_some() || (!began && status.success());
                if tries_left == 0 || !worth_a_try {
                    bail!("the guest ended {what} (QEMU: {status})");
                }
                tries_left -= 1;
                eprintln!("vm: the guest ended {what} (QEMU: {status}); trying again");
            }
        }
    }
}

fn shell(options: &Options, payload: &[(String, PathBuf)]) -> Result<u8> {
    let parts = Parts::gather(options, payload, &Task::Shell)?;
    let status = parts.boot(options)?.interactive()?;
    Ok(if status.success() { 0 } else { NOT_RUN })
}

/// What a boot needs, as files.
struct Parts {
    wires: Wires,
    kernel: PathBuf,
    initramfs: File,
    disks: Vec<File>,
}

impl Parts {
    fn gather(options: &Options, payload: &[(String, PathBuf)], task: &Task) -> Result<Parts> {
        let Options { guest, machine, inside, .. } = options;
        machine.check(*guest)?;
        let cpu = guest.cpu();
        debian::provide(&[(cpu.qemu, cpu.qemu_package)])?;
        let wires = Wires::of(machine)?;
        if let Some(why) = wires.missing()? {
            bail!("no TAP interfaces are to be had here, for --nic MODEL,wire=tap: {why}");
        }
        let kernel = kernel::kernel(*guest)?;
        let busybox = debian::unpacked(&format!("busybox-static:{}", cpu.debian))?.join("usr/bin/busybox");

        let archive = initramfs::archive(&Contents {
            guest: *guest,
            modules: &kernel.modules,
            busybox: &busybox,
            payload,
            inside,
            task,
        })?;
        let mut initramfs = unnamed_file()?;
        initramfs.write_all(&archive).context("writing the initial file system")?;
        let mut disks = Vec::new();
        for disk in machine.disks() {
            let file = unnamed_file()?;
            file.set_len(disk.size).with_context(|| format!("making a disk of {} bytes", disk.size))?;
            disks.push(file);
        }
        Ok(Parts { wires, kernel: kernel.image, initramfs, disks })
    }

    fn boot(&self, options: &Options) -> Result<Boot<'_>> {
        let Options { guest, machine, .. } = options;
        let disks: Vec<String> = self.disks.iter().map(inherited_name).collect::<Result<_>>()?;
        Ok(Boot {
            cpu: guest.cpu(),
            wires: self.wires.clone(),
            arguments: machine.arguments(*guest, &disks),
            kernel: self.kernel.display().to_string(),
            command_line: machine.kernel_command_line(*guest),
            initramfs: &self.initramfs,
        })
    }
}

fn print_console(console: &str) {
    let lines: Vec<&str> = console.lines().collect();
    let tail = &lines[lines.len().saturating_sub(40)..];
    if !tail.is_empty() {
        eprintln!("vm: the guest's console ended with\n  {}", tail.join("\n  "));
    }
}

//! Boots a machine under QEMU and stays with it until the command in it has ended, or its time is up.
//!
//! Nothing outlives us, however we end: QEMU gets a signal when its parent dies, and all files it is given are unnamed.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, kill_process};

use super::guest::Cpu;
use super::stream::{Decoder, Mark};
use super::wires::Wires;

/// How much of the console's text is held for error messages.
const CONSOLE_BYTES: usize = 64 << 10;

/// A machine ready to be booted.
pub struct Boot<'a> {
    pub cpu: &'static Cpu,
    pub wires: Wires,
    /// All but the channels to the outside.
    pub arguments: Vec<String>,
    pub kernel: String,
    pub command_line: String,
    pub initramfs: &'a File,
}

#[derive(Debug, Clone, Args)]
pub struct Limits {
    /// Seconds until a guest is stopped, from its start [default: 300; 3600 for tests]
    #[arg(long, value_name = "SECONDS")]
    pub limit: Option<u64>,
    /// Show the guest's console
    #[arg(long)]
    pub console: bool,
    /// How long a command that lives is silent at most, and a boot lasts, where that is known.
    #[arg(skip)]
    pub silence: Option<Duration>,
}

impl Limits {
    /// Until a guest is stopped.
    pub fn time(&self) -> Duration {
        Duration::from_secs(self.limit.unwrap_or(300))
    }
}

/// How a boot ended.
pub enum Outcome {
    /// The command ran and gave this exit code.
    Exit(u8),
    /// The wall-clock limit passed.
    Timeout { began: bool, console: String },
    /// Nothing came for longer than the command is ever silent, or a boot lasts.
    Silent { began: bool, console: String },
    /// QEMU ended before the command did.
    Died { began: bool, status: ExitStatus, console: String },
}

/// The name by which a child opens a descriptor of ours that it inherits.
pub fn inherited_name(fd: &impl AsFd) -> Result<String> {
    fcntl_setfd(fd, FdFlags::empty()).context("letting QEMU inherit a file")?;
    Ok(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

/// A file that has no name and goes when it is closed.
pub fn unnamed_file() -> Result<File> {
    tempfile::tempfile().context("creating a temporary file")
}

/// Where bytes of a guest come from.
#[derive(Clone, Copy)]
enum Source {
    Stdout,
    Stderr,
    /// The guest's console, and QEMU's own messages.
    Console,
}

type Piece = (Source, Vec<u8>);

impl Boot<'_> {
    /// Attaches a guest's console to our terminal, until it powers off. Ctrl-A X ends QEMU, Ctrl-A C shows its monitor.
    pub fn interactive(&self) -> Result<ExitStatus> {
        let mut command = self.command()?;
        command.args(["-serial", "mon:stdio"]);
        command.status().with_context(|| format!("running {command:?}"))
    }

    /// Runs the command in the guest; its output goes to ours.
    pub fn run(&self, token: &str, limits: &Limits) -> Result<Outcome> {
        let start = Instant::now();
        let deadline = start + limits.time();
        let (mut qemu, pieces) = self.spawn()?;
        let mut stdout = Decoder::new(token);
        let mut stderr = Decoder::new(token);
        let mut console = Console { tail: VecDeque::new(), show: limits.console };
        let mut began = false;
        let mut exits = Vec::new();
        let mut silent_at = limits.silence.map_or(deadline, |silence| start + silence);
        loop {
            let left = silent_at.min(deadline).saturating_duration_since(Instant::now());
            let (source, bytes) = match pieces.recv_timeout(left) {
                Ok(piece) if !left.is_zero() => piece,
                Err(RecvTimeoutError::Disconnected) => {
                    let status = qemu.0.wait().context("waiting for QEMU")?;
                    return Ok(Outcome::Died { began, status, console: console.text() });
                }
                _ if silent_at < deadline => return Ok(Outcome::Silent { began, console: console.text() }),
                _ => return Ok(Outcome::Timeout { began, console: console.text() }),
            };
            let marks = match source {
                Source::Stdout => stdout.feed(&bytes, &mut io::stdout()).context("passing on standard output")?,
                Source::Stderr => stderr.feed(&bytes, &mut io::stderr()).context("passing on standard error")?,
                Source::Console => {
                    console.take(&bytes);
                    continue;
                }
            };
            if let Some(silence) = limits.silence {
                silent_at = Instant::now() + silence;
            }
            for mark in marks {
                match mark {
                    Mark::Begin => began = true,
                    Mark::Exit(code) => exits.push(code),
                }
            }
            // One mark ends each of the two streams.
            if let [code, _] = exits[..] {
                qemu.terminate(&pieces)?;
                return Ok(Outcome::Exit(code));
            }
        }
    }

    fn command(&self) -> Result<Command> {
        // A session of its own: without one the scheduler's autogroups can starve QEMU on a busy machine, and the guest's timers fail. The signal at our
        // death reaches QEMU because each wrapper replaces itself by the next.
        let mut command = Command::new("setsid");
        self.wires.around(&mut command);
        command.args(["setpriv", "--pdeathsig", "KILL", self.cpu.qemu]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-vga", "none", "-no-reboot"]);
        command.args(&self.arguments);
        command.args(["-kernel", &self.kernel, "-append", &self.command_line]);
        command.args(["-initrd", &inherited_name(self.initramfs)?]);
        Ok(command)
    }

    /// Starts QEMU, with what it says on a channel that is disconnected when QEMU has ended.
    fn spawn(&self) -> Result<(Qemu, Receiver<Piece>)> {
        let mut command = self.command()?;
        let [stdout, stdout_end] = <[_; 2]>::from(UnixStream::pair()?);
        let [stderr, stderr_end] = <[_; 2]>::from(UnixStream::pair()?);
        let [console, console_end] = <[_; 2]>::from(UnixStream::pair()?);
        // QEMU talks to itself: its monitor is a serial port of the guest.
        let [monitor, monitor_end] = <[_; 2]>::from(UnixStream::pair()?);
        let ends = [
            ("stdout", &stdout_end),
            ("stderr", &stderr_end),
            ("console", &console_end),
            ("commands", &monitor),
            ("monitor", &monitor_end),
        ];
        for (name, end) in ends {
            fcntl_setfd(end, FdFlags::empty())?;
            command.args(["-chardev", &format!("socket,id={name},fd={}", end.as_raw_fd())]);
        }
        command.args(["-serial", "chardev:console", "-mon", "chardev=commands,mode=readline"]);
        command.args(["-device", &format!("virtio-serial-pci,id=serial,max_ports=4,bus={}", self.cpu.root_bus)]);
        for name in ["stdout", "stderr", "monitor"] {
            command.args(["-device", &format!("virtserialport,bus=serial.0,name={name},chardev={name}")]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut qemu = Qemu(command.spawn().with_context(|| format!("running {command:?}"))?);

        let (sender, pieces) = mpsc::channel();
        forward(Source::Stdout, stdout, &sender);
        forward(Source::Stderr, stderr, &sender);
        forward(Source::Console, console, &sender);
        if let Some(messages) = qemu.0.stderr.take() {
            forward(Source::Console, messages, &sender);
        }
        Ok((qemu, pieces))
    }
}

fn forward(source: Source, mut from: impl Read + Send + 'static, to: &Sender<Piece>) {
    let to = to.clone();
    thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        // An error is an end too: the other side has gone.
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            if to.send((source, buffer[..count].to_vec())).is_err() {
                return;
            }
        }
    });
}

/// A QEMU that does not outlive this value.
struct Qemu(Child);

impl Qemu {
    /// Asks QEMU to end, and sees to it.
    fn terminate(&mut self, pieces: &Receiver<Piece>) -> Result<()> {
        if let Some(id) = Pid::from_raw(self.0.id().cast_signed()) {
            kill_process(id, Signal::TERM).context("ending QEMU")?;
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while pieces.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok() {}
        Ok(())
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Fails only where it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The end of what the console said.
struct Console {
    tail: VecDeque<u8>,
    show: bool,
}

impl Console {
    fn take(&mut self, bytes: &[u8]) {
        if self.show {
            // The command's own output does not depend on it.
            let _ = io::stderr().write_all(bytes);
        }
        self.tail.extend(bytes);
        self.tail.drain(..self.tail.len().saturating_sub(CONSOLE_BYTES));
    }

    fn text(self) -> String {
        let bytes = Vec::from(self.tail);
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }
}

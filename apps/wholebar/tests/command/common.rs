//! What tests of the command share: how it is run and what it says; processes that run beside a test, and are interrupted once they are so far.

use assert_cmd::Command;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

pub const WHOLEBAR: &str = env!("CARGO_BIN_EXE_wholebar");
pub const WORK_FAILED: i32 = 1;
pub const WRONG_USAGE: i32 = 2;
/// How long anything is waited for: only to end what would never end.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// The command with these arguments.
pub fn command(line: &str) -> std::process::Command {
    let mut command = std::process::Command::new(WHOLEBAR);
    command.args(line.split_whitespace());
    command
}

/// The same, to be given input and waited for.
pub fn wholebar(line: &str) -> Command {
    let mut command = Command::from_std(command(line));
    command.timeout(PATIENCE);
    command
}

/// What a command returns, and says on standard output and on standard error.
pub fn run(line: &str) -> (Option<i32>, String, String) {
    run_in(Path::new("."), line)
}

/// The same in a directory.
pub fn run_in(dir: &Path, line: &str) -> (Option<i32>, String, String) {
    let output = wholebar(line).current_dir(dir).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// What a command reports that is expected to work.
pub fn stdout(line: &str) -> String {
    let (code, out, error) = run(line);
    assert_eq!(code, Some(0), "{line}\n{error}");
    out
}

/// The same as JSON.
pub fn json(line: &str) -> Value {
    serde_json::from_str(&stdout(line)).unwrap()
}

/// The report of a `perf` that did a hundred commands at least: on a machine that gives it no core it gets more time.
pub fn perf(line: &str) -> Value {
    for time in ["0.1", "1", "10", "60"] {
        let report = json(&format!("{line} --time {time} --json"));
        let of = |name: &str| report["runs"][0][name].as_u64().unwrap();
        if of("reads") + of("writes") >= 100 {
            return report;
        }
    }
    panic!("{line}: it does next to nothing");
}

/// Runs a command that fails with `code`, and says so on standard error alone.
pub fn fails(line: &str, code: i32, says: &[&str]) {
    let (was, out, error) = run(line);
    assert_eq!((was, out.as_str()), (Some(code), ""), "{line}\n{error}");
    for text in says {
        assert!(error.contains(text), "{line}\n{error}\ndoes not say {text:?}");
    }
}

/// A report as it would be on one line: where it is broken depends on how wide its numbers are.
pub fn on_one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// That a report fits a terminal of 80 columns.
pub fn assert_fits(text: &str) {
    let wide: Vec<_> = text.lines().filter(|line| line.chars().count() > 80).collect();
    assert!(wide.is_empty(), "{text}\nwider than 80 columns: {wide:#?}");
}

/// Bytes of which no two blocks are the same.
pub fn content(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i ^ i >> 8 ^ i >> 16) as u8).collect()
}

/// A command that runs beside the test, and is killed when this is dropped.
pub struct Running(pub Child);

impl Running {
    pub fn start(line: &str) -> Self {
        Self(command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// A model at a socket, where it listens when this returns.
    pub fn serve(model: &str, socket: &Path, more: &str) -> Self {
        let mut this = Self::start(&format!("sim serve {model} --socket {} {more}", socket.display()));
        let mut line = String::new();
        BufReader::new(this.0.stderr.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("listens on"), "{line}");
        this
    }

    /// Asks it to end.
    pub fn interrupt(&self) {
        interrupt(&self.0);
    }

    /// Asks it to end, and returns its exit code.
    pub fn end(mut self) -> Option<i32> {
        self.interrupt();
        self.0.wait().unwrap().code()
    }

    /// Its exit code and standard output, once it has ended.
    pub fn finish(mut self) -> (Option<i32>, String) {
        let began = Instant::now();
        while self.0.try_wait().unwrap().is_none() {
            assert!(began.elapsed() < PATIENCE, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        let text = std::io::read_to_string(self.0.stdout.take().unwrap()).unwrap();
        (self.0.wait().unwrap().code(), text)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for a socket: where its file is, somebody listens.
pub fn wait_for_socket(socket: &Path) {
    let began = Instant::now();
    while !socket.exists() {
        assert!(began.elapsed() < PATIENCE, "{} is not there", socket.display());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The target of a model that is served, by a process that is not the only one that wants the cores.
pub fn patient(socket: &Path) -> String {
    format!("vfio-user:{},timeout={}", socket.display(), PATIENCE.as_secs())
}

/// Presses Ctrl-C.
pub fn interrupt(child: &Child) {
    signal(child, Signal::INT);
}

/// Sends a child a signal.
pub fn signal(child: &Child, signal: Signal) {
    let _ = kill_process(Pid::from_child(child), signal);
}

/// Waits until a child says of its process that it is so far.
pub fn wait_until(child: &mut Child, what: &str, is_so: impl Fn(u32) -> bool) {
    let began = Instant::now();
    while !is_so(child.id()) {
        assert!(child.try_wait().unwrap().is_none(), "it ended before {what}");
        assert!(began.elapsed() < PATIENCE, "not {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process catches SIGINT: what it interrupts ends in order then.
pub fn catches_interrupts(process: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).map_or("0", str::trim);
    u64::from_str_radix(caught, 16).unwrap() & 1 << (Signal::INT.as_raw() - 1) != 0
}

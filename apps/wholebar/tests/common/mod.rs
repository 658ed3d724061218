//! Processes that tests start, and interrupt once they are so far.

use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::process::Child;
use std::time::{Duration, Instant};

/// How long anything is waited for: only to end what would never end.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Presses Ctrl-C.
pub fn interrupt(child: &Child) {
    signal(child, Signal::INT);
}

/// Sends a child a signal.
#[allow(dead_code, reason = "each test program uses its part of it")]
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

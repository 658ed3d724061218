//! Wires of a guest that QEMU has no model of: TAP interfaces on a bridge, in a network namespace that goes when QEMU does. Nothing else of this machine is in it.

use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::debian;
use super::guest::Machine;

/// Makes the interfaces of its first argument, and becomes the command that the others are.
const SCRIPT: &str = include_str!("../../../vm/wires");

/// The wires of a machine.
#[derive(Clone)]
pub struct Wires {
    /// By name.
    taps: Vec<String>,
}

impl Wires {
    /// Those that a machine's network devices want. What makes them is installed where it is missing.
    pub fn of(machine: &Machine) -> Result<Wires> {
        let taps = machine.taps();
        if !taps.is_empty() {
            debian::provide(&[("/sbin/ip", "iproute2")])?;
        }
        Ok(Wires { taps })
    }

    /// Why they cannot be had here, if so: without privileges, TAP interfaces, bridges or namespaces. They are made to find out.
    pub fn missing(&self) -> Result<Option<String>> {
        if self.taps.is_empty() {
            return Ok(None);
        }
        let mut command = Command::new("setsid");
        self.around(&mut command);
        let output =
            command.arg("true").stdin(Stdio::null()).output().with_context(|| format!("running {command:?}"))?;
        let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
        Ok((!output.status.success()).then(|| if said.is_empty() { output.status.to_string() } else { said }))
    }

    /// Has the program that follows in `command` run with them.
    pub fn around(&self, command: &mut Command) {
        if self.taps.is_empty() {
            return;
        }
        command.args(["unshare", "--net"]);
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        command.args(["sh", "-c", SCRIPT, "wires", &self.taps.join(" ")]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(taps: &[&str]) -> String {
        let mut command = Command::new("setsid");
        Wires { taps: taps.iter().map(ToString::to_string).collect() }.around(&mut command);
        format!("{:?}", command.arg("qemu"))
    }

    #[test]
    fn only_who_wants_wires_has_a_namespace() {
        assert_eq!(line(&[]), r#""setsid" "qemu""#);
        let line = line(&["tap0", "tap2"]);
        assert!(line.contains(r#""unshare" "--net""#) && line.ends_with(r#""wires" "tap0 tap2" "qemu""#), "{line}");
        assert!(Wires { taps: vec![] }.missing().unwrap().is_none());
    }

    #[test]
    fn what_is_missing_is_named() {
        // No interface can have such a name; and where there are none to be had, that is said.
        let wires = Wires { taps: vec!["a/b".to_owned()] };
        assert!(!wires.missing().unwrap().unwrap().is_empty());
    }
}

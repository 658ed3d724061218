//! `wholebar bind` and `wholebar unbind`: gives PCI functions to vfio-pci, and back to the drivers that had them.
//!
//! Everything is checked before anything is changed. A function that vfio-pci does not take goes back to its driver; the others of the same
//! command are not held up by it.

use crate::args::Usage;
use crate::openers::openers;
use crate::{doctor, in_use, output};
use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::Command;
use wholebar::pci::Address;
use wholebar::vfio::sysfs::{Function, Sysfs, is_vfio};

/// Give PCI functions to vfio-pci, taking them from the drivers that have them
///
/// Refuses a disk that is mounted, is swap, or has something built on it (LVM, MD, …), a network card that carries a route, has an address, is a
/// port of a bridge or bond, has something built on it (VLAN, macvlan, …) or an XDP program, and what a process has open, unless --force is
/// given. Nothing is changed if one of several functions is refused. The module is loaded if need be. Needs root.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar bind 0000:01:00.0
  wholebar bind 0000:01:00.0 0000:01:00.1 --json
  wholebar unbind 0000:01:00.0                 gives it back")]
pub struct BindArgs {
    #[command(flatten)]
    functions: Functions,
    /// Also if the system uses it: file systems and connections on it will fail
    #[arg(long)]
    force: bool,
}

/// Give PCI functions back to the drivers that had them before `wholebar bind`
///
/// Where that isn't remembered (another program bound it), the kernel chooses. Refuses a function that a process has open, unless --force is
/// given: the process is then asked to let go of it, and waited for. Needs root.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar unbind 0000:01:00.0
  wholebar unbind 0000:01:00.0 0000:01:00.1 --json")]
pub struct UnbindArgs {
    #[command(flatten)]
    functions: Functions,
    /// Also if a process has it open: waits until that lets go
    #[arg(long)]
    force: bool,
}

#[derive(clap::Args)]
struct Functions {
    /// The PCI functions
    #[arg(value_name = "BDF", required = true)]
    functions: Vec<String>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// What `--json` writes.
#[derive(Serialize)]
struct Report {
    schema: &'static str,
    functions: Vec<Outcome>,
}

/// What became of a function.
#[derive(Debug, Serialize)]
struct Outcome {
    function: String,
    /// The driver that had it; `null` for none.
    before: Option<String>,
    /// The driver that has it now.
    after: Option<String>,
    error: Option<String>,
}

/// How a function was before it was bound: kept where a restart of the machine, which undoes the binding, forgets it too.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Earlier {
    driver: Option<String>,
    driver_override: Option<String>,
}

pub const VFIO_PCI: &str = "vfio-pci";

pub fn bind(args: BindArgs) -> Result<()> {
    let (sysfs, say) = (Sysfs::default(), sayer(args.functions.json));
    let functions = args.functions.find(&sysfs)?;
    check_bind(&sysfs, &functions, args.force, &in_use::Network::read())?;
    if !functions.iter().all(has_vfio) {
        load_vfio_pci(&sysfs, &say)?;
    }
    let outcomes: Vec<Outcome> =
        functions.iter().map(|function| outcome(function, |function| give(&sysfs, function, &say))).collect();
    for (address, other, driver) in obstacles(&sysfs, &functions, &outcomes) {
        say(format!("{address}: its IOMMU group is not VFIO's alone yet: {driver} has {other}: wholebar bind {other}"));
    }
    args.functions.report("wholebar.bind/1", outcomes)
}

pub fn unbind(args: UnbindArgs) -> Result<()> {
    let (sysfs, say) = (Sysfs::default(), sayer(args.functions.json));
    let functions = args.functions.find(&sysfs)?;
    check_unbind(&sysfs, &functions, args.force)?;
    let outcomes =
        functions.iter().map(|function| outcome(function, |function| give_back(&sysfs, function, &say))).collect();
    args.functions.report("wholebar.unbind/1", outcomes)
}

/// Says what is done, line by line, where people read that.
pub fn sayer(json: bool) -> impl Fn(String) {
    move |line| {
        if !json {
            // A reader that went away does not leave a device halfway.
            let _ = std::io::Write::write_all(&mut std::io::stdout(), (line + "\n").as_bytes());
        }
    }
}

impl Functions {
    /// Those that were named, each once.
    fn find(&self, sysfs: &Sysfs) -> Result<Vec<Function>> {
        let mut addresses: Vec<Address> = Vec::new();
        for name in &self.functions {
            let address = name.parse().map_err(|e: wholebar::Error| Usage(e.to_string()))?;
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        addresses.into_iter().map(|address| doctor::find(sysfs, address)).collect()
    }

    fn report(&self, schema: &'static str, functions: Vec<Outcome>) -> Result<()> {
        let all = functions.len();
        let errors: Vec<String> =
            functions.iter().filter_map(|o| Some(format!("{}: {}", o.function, o.error.as_ref()?))).collect();
        if self.json {
            output::print_json(&Report { schema, functions })?;
        }
        match &errors[..] {
            [] => Ok(()),
            errors => bail!("{} of {all} functions failed\n  {}", errors.len(), errors.join("\n  ")),
        }
    }
}

fn outcome(function: &Function, change: impl FnOnce(&Function) -> Result<()>) -> Outcome {
    let before = function.driver();
    let error = change(function).err().map(|error| format!("{error:#}"));
    Outcome { function: function.address().to_string(), before, after: function.driver(), error }
}

/// Who keeps functions that were bound from being opened, of those that nobody has tried to bind yet: each with the function and the driver that has it.
fn obstacles(sysfs: &Sysfs, functions: &[Function], outcomes: &[Outcome]) -> Vec<(Address, Address, String)> {
    let bound = functions.iter().zip(outcomes).filter(|(_, outcome)| outcome.error.is_none());
    let of = |(function, _): (&Function, &Outcome)| {
        let (address, group) = (function.address(), function.group());
        let others = group.into_iter().flat_map(|group| sysfs.obstacles(group));
        others.map(|(other, driver)| (address, other, driver)).collect::<Vec<_>>()
    };
    let tried = |other: &Address| functions.iter().any(|function| function.address() == *other);
    bound.flat_map(of).filter(|(_, other, _)| !tried(other)).collect()
}

/// Refuses all of it where one function cannot, or should not, be taken.
fn check_bind(sysfs: &Sysfs, functions: &[Function], force: bool, network: &in_use::Network) -> Result<()> {
    let host = doctor::this_machine(sysfs);
    let mut refused = Vec::new();
    let mut in_use = false;
    for function in functions.iter().filter(|f| !has_vfio(f)) {
        let address = function.address();
        if function.is_bridge() {
            refused.push(format!("{address} is a bridge to another bus: vfio-pci takes none"));
        } else if function.group().is_none() && host.no_iommu != Some(true) {
            refused.push(format!(
                "{address} is in no IOMMU group, so that vfio-pci won't take it: wholebar doctor {address}"
            ));
        } else if !force {
            let uses = in_use::uses(sysfs, function, network);
            in_use |= !uses.is_empty();
            refused.extend(uses.into_iter().map(|used| format!("{address}: {used}")));
        }
    }
    let advice = if in_use { "; --force takes it all the same, and what is on it will fail" } else { "" };
    refuse(refused, advice)
}

fn check_unbind(sysfs: &Sysfs, functions: &[Function], force: bool) -> Result<()> {
    if force {
        return Ok(());
    }
    let openers = functions.iter().flat_map(|function| {
        openers(sysfs, function)
            .into_iter()
            .map(|opener| format!("{}: {opener} has it, or its IOMMU group, open", function.address()))
    });
    refuse(openers.collect(), "; --force asks for it, and waits until it is let go")
}

fn refuse(reasons: Vec<String>, advice: &str) -> Result<()> {
    match &reasons[..] {
        [] => Ok(()),
        reasons => bail!("refused, and nothing was changed{advice}\n  {}", reasons.join("\n  ")),
    }
}

/// Whether VFIO has it.
pub fn has_vfio(function: &Function) -> bool {
    function.driver().as_deref().is_some_and(is_vfio)
}

/// Loads vfio-pci, where it isn't there.
pub fn load_vfio_pci(sysfs: &Sysfs, say: &impl Fn(String)) -> Result<()> {
    let is_there = || sysfs.path("sys/bus/pci/drivers").join(VFIO_PCI).exists();
    if is_there() {
        return Ok(());
    }
    say(format!("modprobe {VFIO_PCI}"));
    let done = Command::new("modprobe").arg(VFIO_PCI).output();
    let done = done.with_context(|| format!("{VFIO_PCI} is not loaded, and modprobe cannot be run"))?;
    if !done.status.success() || !is_there() {
        let why = String::from_utf8_lossy(&done.stderr);
        bail!("{VFIO_PCI} is not loaded, and `modprobe {VFIO_PCI}` did not load it: {}", why.trim());
    }
    Ok(())
}

/// Gives a function to vfio-pci; back to where it was, where that doesn't work.
pub fn give(sysfs: &Sysfs, function: &Function, say: &impl Fn(String)) -> Result<()> {
    let (address, driver) = (function.address(), function.driver());
    if let Some(driver) = driver.as_deref().filter(|d| is_vfio(d)) {
        say(format!("{address}: {driver} has it already"));
        return Ok(());
    }
    let earlier = Earlier { driver, driver_override: function.driver_override() };
    earlier.remember(sysfs, address)?;
    say(match &earlier.driver {
        Some(driver) => format!("{address}: taking it from {driver}"),
        None => format!("{address}: no driver has it"),
    });
    if let Err(error) = function.bind(VFIO_PCI) {
        let restored = earlier.restore(function);
        Earlier::forget(sysfs, address);
        let now =
            function.driver().map_or("no driver has it now".to_owned(), |driver| format!("{driver} has it, as before"));
        let error = explained(error, address);
        return Err(match restored {
            Ok(()) => anyhow!("{error:#}; {now}"),
            Err(again) => anyhow!("{error:#}; giving it back failed too ({again:#}); {now}"),
        });
    }
    let back = earlier.driver.map_or(String::new(), |driver| format!(", to {driver}"));
    say(format!("{address}: {VFIO_PCI} has it (wholebar unbind {address} gives it back{back})"));
    Ok(())
}

/// Gives a function back to the driver that had it.
fn give_back(sysfs: &Sysfs, function: &Function, say: &impl Fn(String)) -> Result<()> {
    let address = function.address();
    let reserved = function.driver_override().as_deref().is_some_and(is_vfio);
    if !has_vfio(function) && !reserved {
        Earlier::forget(sysfs, address);
        let who = function.driver().map_or("no driver".to_owned(), |driver| driver);
        say(format!("{address}: {who} has it already"));
        return Ok(());
    }
    for opener in openers(sysfs, function) {
        say(format!("{address}: waiting for {opener} to let go"));
    }
    let earlier = Earlier::recall(sysfs, address);
    let restored = match &earlier {
        Some(earlier) => earlier.restore(function),
        None => {
            say(format!("{address}: what had it before is not remembered: the kernel chooses"));
            let freed = function.set_driver_override(None).and_then(|()| function.unbind());
            freed.and_then(|()| function.probe()).map(|_| ())
        }
    };
    restored.map_err(|error| explained(error, address))?;
    Earlier::forget(sysfs, address);
    match (function.driver(), earlier.map(|e| e.driver)) {
        (Some(now), _) if is_vfio(&now) => bail!("{now} took it again: it is told to (vfio-pci.ids=, driverctl)"),
        (Some(now), _) => say(format!("{address}: {now} has it")),
        (None, Some(Some(driver))) => bail!("{driver} did not take it back, and no driver has it: modprobe {driver}"),
        (None, Some(None)) => say(format!("{address}: no driver has it, as before")),
        (None, None) => say(format!("{address}: no driver has it: none that is loaded is for it")),
    }
    Ok(())
}

/// What an error of sysfs's means.
fn explained(error: std::io::Error, address: Address) -> anyhow::Error {
    match error.kind() {
        ErrorKind::PermissionDenied => anyhow!("run as root: {error}"),
        _ => anyhow!("{error} (dmesg | grep {address} may say more)"),
    }
}

impl Earlier {
    /// Makes a function as it was.
    fn restore(&self, function: &Function) -> std::io::Result<()> {
        function.set_driver_override(self.driver_override.as_deref())?;
        if has_vfio(function) {
            function.unbind()?;
        }
        match self.driver {
            Some(_) => function.probe().map(|_| ()),
            None => Ok(()),
        }
    }

    fn file(sysfs: &Sysfs, address: Address) -> PathBuf {
        sysfs.path("run/wholebar/bound").join(format!("{address}.json"))
    }

    fn remember(&self, sysfs: &Sysfs, address: Address) -> Result<()> {
        let file = Self::file(sysfs, address);
        let written = fs::create_dir_all(sysfs.path("run/wholebar/bound"))
            .and_then(|()| fs::write(&file, serde_json::to_string(self).unwrap_or_default()));
        written.map_err(|error| match error.kind() {
            ErrorKind::PermissionDenied => {
                anyhow!("run as root: binding needs it, and {} cannot be written", file.display())
            }
            _ => anyhow!("what had it cannot be remembered in {}: {error}", file.display()),
        })
    }

    fn recall(sysfs: &Sysfs, address: Address) -> Option<Self> {
        serde_json::from_str(&fs::read_to_string(Self::file(sysfs, address)).ok()?).ok()
    }

    fn forget(sysfs: &Sysfs, address: Address) {
        // What isn't there is forgotten; what is left is overwritten by the next binding, and of no use before.
        let _ = fs::remove_file(Self::file(sysfs, address));
    }
}

#[cfg(test)]
mod tests;

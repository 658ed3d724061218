//! `wholebar doctor`: whether a PCI function can be opened here, what is in the way, and what mends it.

mod facts;
mod finding;
mod known;
mod role;
mod rules;
#[cfg(test)]
pub mod tests;
mod virtual_function;

pub use facts::Host;
pub use finding::Finding;

use facts::Device;
use finding::Verdict;

use crate::args::Usage;
use crate::in_use::Network;
use crate::names::Names;
use crate::output;
use anstyle::{AnsiColor, Style};
use anyhow::{Result, bail};
use serde::Serialize;
use std::fmt::Write;
use wholebar::pci::Address;
use wholebar::vfio::sysfs::{Function, Sysfs};
use wholebar::vfio::{Route, VfioOptions};
use wholebar::{OpenOptions, PageSize, Target};

/// Say whether a PCI function can be opened, what is in the way, and what mends it
///
/// Each line is a verdict with what was seen: ok, warning (it works, and could do better), or stops it; under it what mends it. Where
/// nothing is in the way, the function is opened as a check, and given back. Without one, it looks at the machine alone.
/// The exit code is 1 where something stops it.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar doctor
  wholebar doctor 0000:01:00.0
  wholebar doctor 0000:01:00.0,via=no-iommu    or via=group, via=node
  wholebar doctor 0000:02:10.0,token=UUID      a virtual function, with its VF token
  wholebar doctor 0000:01:00.0 --json")]
pub struct Args {
    /// The PCI function
    #[arg(value_name = "BDF")]
    function: Option<String>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// What `--json` writes.
#[derive(Serialize)]
struct Report<'a> {
    schema: &'static str,
    function: Option<String>,
    /// Whether it can be opened; of a machine, whether a function could.
    can_open: bool,
    findings: &'a [Finding],
}

pub fn run(args: Args) -> Result<()> {
    let sysfs = Sysfs::default();
    let target = match args.function.as_deref().map(parse) {
        Some(target) => Some(target?),
        None => None,
    };
    let host = this_machine(&sysfs);
    let (what, findings) = match &target {
        None => ("this machine".to_owned(), machine(&host, Route::Auto)),
        Some(target) => {
            let found = find(&sysfs, target.address)?;
            let mut findings = machine(&host, target.options.route);
            findings.extend(function(&sysfs, &host, &found, &target.options, Some(&Network::read())));
            if stops(&findings).is_empty() {
                findings.push(try_it(&target.target));
            }
            (target.target.to_string(), findings)
        }
    };
    let stops = stops(&findings);
    if args.json {
        output::print_json(&Report {
            schema: "wholebar.doctor/1",
            function: target.as_ref().map(|target| target.address.to_string()),
            can_open: stops.is_empty(),
            findings: &findings,
        })?;
    } else {
        let name = target.as_ref().and_then(|t| sysfs.function(t.address)).map(|f| name(&f));
        output::print(text(&what, name, &findings))?;
    }
    match &stops[..] {
        [] => Ok(()),
        stops if target.is_some() => bail!("{what} cannot be opened: {} in the way", stops.join(", ")),
        stops => bail!("no PCI function of this machine can be opened: {} in the way", stops.join(", ")),
    }
}

/// The facts of this machine.
pub fn this_machine(sysfs: &Sysfs) -> Host {
    Host::read(sysfs, std::env::consts::ARCH, PageSize::host())
}

/// What is to be said of opening any function of a machine.
pub fn machine(host: &Host, route: Route) -> Vec<Finding> {
    rules::host(host, route)
}

/// What else is to be said of opening this one, short of doing it. With a `network`, what the system uses functions for that are to be bound
/// is looked for too, which takes a look at every process.
pub fn function(
    sysfs: &Sysfs,
    host: &Host,
    function: &Function,
    options: &VfioOptions,
    network: Option<&Network>,
) -> Vec<Finding> {
    let mut device = Device::read(sysfs, host, function);
    if let Some(network) = network {
        device.find_uses(sysfs, function, network);
    }
    rules::device(host, &device, options)
}

/// What of it stops it.
pub fn stops(findings: &[Finding]) -> Vec<&'static str> {
    findings.iter().filter(|f| f.verdict == Verdict::Stop).map(|f| f.check).collect()
}

/// A function as it was asked for.
struct Asked {
    /// As it is opened, and shown: without the token, which is a secret.
    target: Target,
    address: Address,
    options: VfioOptions,
}

fn parse(name: &str) -> Result<Asked> {
    match name.parse() {
        Ok(Target::Pci { address, options }) => {
            Ok(Asked { target: Target::Pci { address, options: options.clone() }, address, options })
        }
        Ok(_) => {
            bail!(Usage(format!(
                "{name} is no PCI function of this machine, and needs none of what is looked at here: open it (`wholebar blk info`, `net`, `nvme identify`), and what is wrong is told"
            )))
        }
        Err(error) => bail!(Usage(error.to_string())),
    }
}

/// A function of this machine.
pub fn find(sysfs: &Sysfs, address: Address) -> Result<Function> {
    match sysfs.function(address) {
        Some(function) => Ok(function),
        None if !facts::sees(sysfs) => bail!(
            "{address}: there is no such PCI function to be seen, for there is no /sys here: mount -t sysfs sysfs /sys; `wholebar devices` \
             lists them then"
        ),
        None => bail!("{address}: there is no such PCI function: `wholebar devices` lists them"),
    }
}

/// Opens it, and gives it back.
fn try_it(target: &Target) -> Finding {
    const CHECK: &str = "opened";
    match target.open(&OpenOptions::default()) {
        Ok(opened) => {
            let isolation = opened.device.isolation();
            Finding::ok(CHECK, format!("and given back; interrupts: {}", isolation.evidence.join("; ")))
        }
        Err(error) => Finding::stop(CHECK, error.to_string(), []),
    }
}

fn name(function: &Function) -> String {
    function.vendor().zip(function.device()).map_or(String::new(), |(v, d)| Names::load().device(v, d))
}

/// Columns.
const WIDTH: usize = 80;

/// Whether a line is for the shell, and not for people alone.
fn is_command(line: &str) -> bool {
    const COMMANDS: &[&str] =
        &["chmod", "chown", "dmesg", "echo", "grubby", "kill", "modprobe", "mount", "ulimit", "wholebar"];
    line.split_whitespace().next().is_some_and(|word| COMMANDS.contains(&word))
}

/// For people.
fn text(what: &str, name: Option<String>, findings: &[Finding]) -> String {
    let mut text = match name {
        Some(name) => format!("{what}  {name}\n\n"),
        None => format!("{what}\n\n"),
    };
    let width = findings.iter().map(|f| f.check.len()).max().unwrap_or(0);
    for finding in findings {
        let (verdict, color) = match finding.verdict {
            Verdict::Ok => ("ok", AnsiColor::Green),
            Verdict::Warning => ("warning", AnsiColor::Yellow),
            Verdict::Stop => ("stops it", AnsiColor::Red),
        };
        let style = Style::new().fg_color(Some(color.into()));
        let room = WIDTH.saturating_sub(2 + 8 + 2 + width + 2);
        let mut lines = output::lines(&finding.evidence, room).into_iter();
        let first = lines.next().unwrap_or_default();
        let _ = writeln!(text, "  {style}{verdict:<8}{style:#}  {:<width$}  {first}", finding.check);
        for line in lines {
            let _ = writeln!(text, "  {:8}  {:width$}  {line}", "", "");
        }
        for mend in &finding.mend {
            // A command is copied: it is not broken, and what is said of it goes below it where there is no room.
            let (command, remark) = match mend.split_once("    (") {
                Some((command, remark)) if 15 + mend.chars().count() > WIDTH => (command, Some(format!("({remark}"))),
                _ => (mend.as_str(), None),
            };
            let mut lines = match is_command(command) {
                true => vec![command.to_owned()],
                false => output::lines(command, WIDTH - 15),
            };
            lines.extend(remark.iter().flat_map(|remark| output::lines(remark, WIDTH - 15)));
            for (n, line) in lines.iter().enumerate() {
                let _ = writeln!(text, "            {} {line}", if n == 0 { "->" } else { "  " });
            }
        }
    }
    text
}

//! `wholebar vf destroy`.

use super::{create, named, physical};
use crate::bind;
use crate::in_use::{self, Network};
use crate::openers::openers;
use crate::token;
use anyhow::{Result, bail};
use serde::Serialize;
use wholebar::vfio::sysfs::{Function, Sysfs};

/// Take the virtual functions of an SR-IOV device away
///
/// Refuses where the system uses one, or a process has one open, unless --force is given: the process is then asked to let go of it, and waited for.
/// Needs root.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar vf destroy 0000:02:00.0
  wholebar vf destroy 0000:02:00.0 --json")]
pub struct Args {
    /// The physical function
    #[arg(value_name = "BDF")]
    function: String,
    /// Also if they are in use
    #[arg(long)]
    force: bool,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// What `--json` writes.
#[derive(Serialize)]
struct Report {
    schema: &'static str,
    function: String,
    /// The virtual functions that are gone.
    gone: Vec<String>,
}

pub fn run(args: Args) -> Result<()> {
    let sysfs = Sysfs::default();
    let function = named(&sysfs, &args.function)?;
    let say = bind::sayer(args.json);
    check(&sysfs, &function, args.force, &Network::read())?;
    let gone = take_away(&sysfs, &function, &say)?;
    if args.json {
        let function = function.address().to_string();
        crate::output::print_json(&Report { schema: "wholebar.vf.destroy/1", function, gone })?;
    }
    Ok(())
}

/// Refuses where one is in use.
pub(super) fn check(sysfs: &Sysfs, function: &Function, force: bool, network: &Network) -> Result<()> {
    physical(function)?;
    if force {
        return Ok(());
    }
    let used = |f: &Function| {
        let open = openers(sysfs, f).into_iter().map(|opener| format!("{opener} has it, or its IOMMU group, open"));
        let all = open.chain(in_use::uses(sysfs, f, network));
        all.map(|used| format!("{}: {used}", f.address())).collect::<Vec<_>>()
    };
    let used: Vec<String> = function.virtual_functions().iter().flat_map(used).collect();
    if !used.is_empty() {
        bail!("refused, and nothing was changed; --force takes them away all the same\n  {}", used.join("\n  "));
    }
    Ok(())
}

/// Takes them away; their addresses.
pub(super) fn take_away(sysfs: &Sysfs, function: &Function, say: &impl Fn(String)) -> Result<Vec<String>> {
    let (address, functions) = (function.address(), function.virtual_functions());
    if functions.is_empty() {
        say(format!("{address}: it has none"));
        return Ok(Vec::new());
    }
    for (function, opener) in functions.iter().flat_map(|f| openers(sysfs, f).into_iter().map(move |o| (f, o))) {
        say(format!("{}: waiting for {opener} to let go", function.address()));
    }
    function.set_virtual_functions(0).map_err(|error| create::explained(function, error))?;
    token::forget(sysfs, address);
    say(format!("{address}: {} virtual functions are gone", functions.len()));
    Ok(functions.iter().map(|f| f.address().to_string()).collect())
}

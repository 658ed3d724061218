//! `wholebar vf create`.

use super::{list, named, physical};
use crate::bind::{self, VFIO_PCI, has_vfio};
use crate::openers::openers;
use crate::token;
use anyhow::{Context, Result, anyhow, bail};
use std::io::{self, ErrorKind};
use wholebar::pci::Address;
use wholebar::vfio::sysfs::{Function, Sysfs};
use wholebar::vfio::{VfToken, Vfio, VfioOptions};

/// Make virtual functions of an SR-IOV device
///
/// The driver of the physical function makes and serves them: the kernel's own, or vfio-pci with a program over it. vfio-pci is told that it may
/// (enable_sriov), and gets a VF token, without which none of these functions is opened; the virtual functions are vfio-pci's too then. A token is made
/// where none is given, shown, and kept under /run for `wholebar vf list` and `wholebar doctor`. Needs root.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar vf create 0000:02:00.0 2               drivers take them as they come
  wholebar vf create 0000:02:00.0 2 --bind        vfio-pci takes them
  wholebar vf create 0000:02:00.0 7 --no-probe    none does
  wholebar vf create 0000:02:00.0 2 --token 2ab74924-c335-45f4-9b16-8569e5b08258")]
pub struct Args {
    /// The physical function
    #[arg(value_name = "BDF")]
    function: String,
    /// How many
    #[arg(value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    count: u16,
    /// Give them to vfio-pci
    #[arg(long, conflicts_with = "no_probe")]
    bind: bool,
    /// Give them to no driver
    #[arg(long)]
    no_probe: bool,
    /// The VF token, where vfio-pci has the physical function: the one that a running program opened it with, or one of your own
    #[arg(long, value_name = "UUID")]
    token: Option<VfToken>,
    /// Write JSON, as `vf list` does
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<()> {
    let sysfs = Sysfs::default();
    let function = named(&sysfs, &args.function)?;
    check(&sysfs, &function, args.count, args.token)?;
    let say = bind::sayer(args.json);
    let drivers = match (args.bind, args.no_probe) {
        (true, _) => Drivers::Vfio,
        (_, true) => Drivers::None,
        _ => Drivers::Any,
    };
    make(&sysfs, &function, args.count, args.token, drivers, set_token, &say)?;
    list::show(&sysfs, &[function], args.json)
}

/// Who is to have virtual functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Drivers {
    /// Whichever driver takes them.
    Any,
    /// vfio-pci.
    Vfio,
    /// No driver.
    None,
}

/// Refuses what would not work.
pub(super) fn check(sysfs: &Sysfs, function: &Function, count: u16, token: Option<VfToken>) -> Result<()> {
    let (address, sriov) = (function.address(), physical(function)?);
    if count > sriov.total {
        bail!("{address} can have {} virtual functions at most, not {count}", sriov.total);
    }
    if sriov.enabled > 0 {
        bail!(
            "{address} has {} virtual functions already, and their number changes by way of none: wholebar vf destroy {address}",
            sriov.enabled
        );
    }
    let Some(driver) = function.driver() else {
        bail!(
            "{address}: no driver has it, and virtual functions are its driver's to make: modprobe its own, or wholebar bind {address}"
        );
    };
    if !has_vfio(function) {
        return match token {
            Some(_) => bail!("a VF token is vfio-pci's, and {driver} has {address}: leave --token out"),
            None => Ok(()),
        };
    }
    match openers(sysfs, function).first() {
        Some(opener) if token.is_none() => bail!(
            "{opener} has {address}, or its IOMMU group, open: give the VF token that it named it with: --token UUID; where it named it without \
             one, it has to open it as {address},token=UUID"
        ),
        _ => Ok(()),
    }
}

/// Has a physical function that nobody has open know its token: it keeps that when it is closed.
fn set_token(physical: Address, token: VfToken) -> Result<()> {
    Vfio::open(physical, &VfioOptions { vf_token: Some(token), ..VfioOptions::default() })?;
    Ok(())
}

/// Makes them.
pub(super) fn make(
    sysfs: &Sysfs,
    function: &Function,
    count: u16,
    given: Option<VfToken>,
    drivers: Drivers,
    set_token: impl FnOnce(Address, VfToken) -> Result<()>,
    say: &impl Fn(String),
) -> Result<()> {
    let address = function.address();
    if has_vfio(function) {
        allow(sysfs, function, say)?;
        let token = given.map_or_else(|| token::make(sysfs), Ok)?;
        if openers(sysfs, function).is_empty() {
            set_token(address, token).with_context(|| format!("{address} cannot be given its VF token"))?;
        }
        token::remember(sysfs, address, token)?;
    }
    if drivers == Drivers::Vfio {
        bind::load_vfio_pci(sysfs, say)?;
    }
    let probed = function.sriov().is_some_and(|sriov| sriov.autoprobe);
    let probe = drivers == Drivers::Any;
    // Kernels before 4.12 don't have the choice.
    if probed && !probe {
        function.set_virtual_autoprobe(false).map_err(|error| explained(function, error))?;
    }
    let made = function.set_virtual_functions(count).map_err(|error| explained(function, error));
    if probed && !probe {
        function.set_virtual_autoprobe(true).map_err(|error| explained(function, error))?;
    }
    made?;
    let functions = function.virtual_functions();
    if functions.len() != usize::from(count) {
        bail!(
            "{address} has {} virtual functions now, and not {count}: dmesg | grep {address} may say why",
            functions.len()
        );
    }
    say(format!("{address}: virtual functions made: {count} (wholebar vf destroy {address} takes them away)"));
    if drivers == Drivers::Vfio || drivers == Drivers::Any && has_vfio(function) {
        let failed = |f: &Function| Some(format!("{}: {:#}", f.address(), bind::give(sysfs, f, say).err()?));
        let failed: Vec<String> = functions.iter().filter(|f| !has_vfio(f)).filter_map(failed).collect();
        if !failed.is_empty() {
            bail!(
                "{count} virtual functions were made, and {VFIO_PCI} did not take {}\n  {}",
                failed.len(),
                failed.join("\n  ")
            );
        }
    }
    Ok(())
}

/// Has vfio-pci make virtual functions: its parameter forbids it unless somebody asks.
fn allow(sysfs: &Sysfs, function: &Function, say: &impl Fn(String)) -> Result<()> {
    const FILE: &str = "sys/module/vfio_pci/parameters/enable_sriov";
    // Variants of vfio-pci decide by themselves.
    if function.driver().as_deref() != Some(VFIO_PCI) || sysfs.flag("vfio_pci", "enable_sriov") == Some(true) {
        return Ok(());
    }
    say(format!("echo Y > /{FILE}"));
    std::fs::write(sysfs.path(FILE), "Y").map_err(|error| match error.kind() {
        ErrorKind::PermissionDenied => {
            anyhow!("run as root: vfio-pci is to be told that it may make virtual functions: {error}")
        }
        _ => anyhow!("vfio-pci may make no virtual functions, and /{FILE} cannot be written: {error}"),
    })
}

/// What an error of the kernel's means, of a physical function's files.
pub(super) fn explained(function: &Function, error: io::Error) -> anyhow::Error {
    use rustix::io::Errno;
    let (address, driver) = (function.address(), function.driver().unwrap_or_else(|| "no driver".to_owned()));
    let why = match Errno::from_io_error(&error) {
        Some(Errno::ACCESS | Errno::PERM) => "run as root".to_owned(),
        Some(Errno::NOENT) => format!("{driver} makes no virtual functions: wholebar bind {address}, for vfio-pci does"),
        Some(Errno::BUSY) => format!("somebody was faster: wholebar vf list {address}"),
        Some(Errno::NOMEM | Errno::NOSPC) => {
            "there is no room for their BARs or bus numbers: the firmware's setup (SR-IOV, above 4G decoding), or pci=realloc or \
             pci=assign-busses on the kernel's command line"
                .to_owned()
        }
        _ => format!("dmesg | grep {address} may say why"),
    };
    anyhow!("{address}: {why}: {error}")
}

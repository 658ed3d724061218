//! `wholebar vf`: virtual functions of SR-IOV devices: made, listed and taken away, with the VF tokens that they are opened with.
//!
//! Everything is checked before anything is changed. Who serves the virtual functions is the driver of the physical one: the kernel's, or a
//! program's over vfio-pci.

mod create;
mod destroy;
mod list;
mod serve;
#[cfg(test)]
mod tests;

use crate::args::Usage;
use crate::doctor;
use anyhow::{Result, bail};
use clap::Subcommand;
use wholebar::pci::Address;
use wholebar::vfio::sysfs::{Function, Sriov, Sysfs};

/// Make, list and take away virtual functions of SR-IOV devices
#[derive(Subcommand)]
pub enum Command {
    Create(create::Args),
    List(list::Args),
    Serve(serve::Args),
    Destroy(destroy::Args),
}

pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Create(args) => create::run(args),
        Command::List(args) => list::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Destroy(args) => destroy::run(args),
    }
}

/// The function of that name.
fn named(sysfs: &Sysfs, name: &str) -> Result<Function> {
    let address: Address = name.parse().map_err(|e: wholebar::Error| Usage(e.to_string()))?;
    doctor::find(sysfs, address)
}

/// A physical function, and what it says of virtual ones.
fn physical(function: &Function) -> Result<Sriov> {
    let address = function.address();
    if let Some(physical) = function.physical_function() {
        bail!("{address} is itself a virtual function: {} has it", physical.address());
    }
    match function.sriov() {
        Some(sriov) if sriov.total > 0 => Ok(sriov),
        Some(_) => {
            bail!("{address}: its driver, or the firmware's setup, allows no virtual function (sriov_totalvfs is 0)")
        }
        None => bail!(
            "{address} can have no virtual functions: it is no SR-IOV device, the firmware's setup hides that (SR-IOV), or this kernel was built \
             without CONFIG_PCI_IOV; `wholebar vf list` shows those that can"
        ),
    }
}

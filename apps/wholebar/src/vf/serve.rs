//! `wholebar vf serve`: a physical function that vfio-pci has, opened by our driver for the time that its virtual functions are used.

use super::{named, physical};
use crate::bind::has_vfio;
use crate::{output, signal, token};
use anyhow::{Result, bail};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use wholebar::intel::igb::{self, IgbPf};
use wholebar::net::{Port, PortConfig};
use wholebar::nvme::{FlexibleResource, Nvme, Options, PrimaryCapabilities, SecondaryController};
use wholebar::pci::{Config, PciDevice};
use wholebar::vfio::sysfs::{Function, Sysfs};
use wholebar::vfio::{Vfio, VfioOptions};

/// Serve the virtual functions of a physical one that vfio-pci has, until Ctrl-C
///
/// An NVMe controller shares its flexible queues and interrupts out among the controllers of its virtual functions, and has them go online. An 82576 switches
/// packets, and does what its virtual functions ask for. Either is so only as long as somebody has the physical function open: make virtual functions with
/// `wholebar vf create`, leave this running, and use them from other programs. (Any program that opens an 82576 which has some serves them: `wholebar net fwd`.)
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar vf create 0000:01:00.0 2
  wholebar vf serve 0000:01:00.0")]
pub struct Args {
    /// The physical function
    #[arg(value_name = "BDF")]
    function: String,
}

pub fn run(args: Args) -> Result<()> {
    let sysfs = Sysfs::default();
    let function = named(&sysfs, &args.function)?;
    check(&function)?;
    let interrupted = signal::interrupted()?;
    let options = VfioOptions { vf_token: token::recall(&sysfs, function.address()), ..VfioOptions::default() };
    let device: Arc<dyn PciDevice> = Vfio::open(function.address(), &options)?;
    let config = Config::of(device.as_ref())?;
    let count = function.virtual_functions().len();
    match config.class() {
        wholebar::nvme::CLASS => nvme(device, count, &interrupted),
        _ if igb::IDS.contains(&(config.vendor(), config.device())) => igb(device, count, &interrupted),
        _ => bail!("{}: no driver here serves virtual functions of such a device", function.address()),
    }
}

const ENDS: &str = "Ctrl-C ends it, and the virtual functions with it.";

fn nvme(device: Arc<dyn PciDevice>, functions: usize, interrupted: &AtomicBool) -> Result<()> {
    let nvme = bring_online(device, functions)?;
    output::print(crate::nvme::secondary_table(&nvme.secondary_controllers(0)?))?;
    output::note(ENDS);
    while !interrupted.load(Ordering::Relaxed) {
        nvme.check()?;
        // Only how soon an end is seen.
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(nvme.shutdown()?)
}

fn igb(device: Arc<dyn PciDevice>, functions: usize, interrupted: &AtomicBool) -> Result<()> {
    let port = IgbPf::open(device, PortConfig::default(), wholebar::intel::Options::default())?;
    output::print(format!("{}: {functions} virtual functions are served\n", port.name()))?;
    output::note(ENDS);
    while !interrupted.load(Ordering::Relaxed) {
        port.check()?;
        if let Ok(event) = port.events().recv_deadline(Instant::now() + Duration::from_millis(100)) {
            output::note(format!("{event:?}"));
        }
    }
    Ok(port.close()?)
}

fn check(function: &Function) -> Result<()> {
    let (address, sriov) = (function.address(), physical(function)?);
    if !has_vfio(function) {
        let who = function.driver().unwrap_or_else(|| "no driver".to_owned());
        bail!(
            "{address}: {who} has it, and serves its virtual functions, or does not: wholebar bind {address}, to serve them here"
        );
    }
    if sriov.enabled == 0 {
        bail!("{address} has no virtual functions yet: wholebar vf create {address} N");
    }
    Ok(())
}

/// Opens the primary controller, and has the secondary ones of its virtual functions go online, each with an equal share of what there is.
fn bring_online(device: Arc<dyn PciDevice>, functions: usize) -> Result<Nvme> {
    let open = || Nvme::open(device.clone(), Options { io_queues: 1, ..Options::default() });
    let mut nvme = open()?;
    let found = nvme.primary_capabilities()?;
    if found.queues.flexible_primary > 0 || found.interrupts.flexible_primary > 0 {
        nvme.allocate_flexible(FlexibleResource::Queues, 0)?;
        nvme.allocate_flexible(FlexibleResource::Interrupts, 0)?;
        nvme.shutdown()?;
        device.reset()?;
        nvme = open()?;
    }
    let caps = nvme.primary_capabilities()?;
    let (queues, interrupts) = shares(&caps, functions)?;
    let of_function = |s: &SecondaryController| (1..=functions).contains(&usize::from(s.virtual_function));
    for secondary in nvme.secondary_controllers(0)?.iter().filter(|s| of_function(s)) {
        nvme.set_secondary_online(secondary.id, false)?;
        nvme.assign_flexible(secondary.id, FlexibleResource::Queues, queues)?;
        nvme.assign_flexible(secondary.id, FlexibleResource::Interrupts, interrupts)?;
        nvme.set_secondary_online(secondary.id, true)?;
    }
    Ok(nvme)
}

/// The queues and interrupts of each secondary controller of `functions` virtual functions.
fn shares(caps: &PrimaryCapabilities, functions: usize) -> Result<(u16, u16)> {
    let functions = u32::try_from(functions).unwrap_or(u32::MAX).max(1);
    let share = |total: u32, most: u16| u16::try_from(total / functions).unwrap_or(u16::MAX).min(most);
    let queues = share(caps.queues.flexible_total, caps.queues.most);
    let interrupts = share(caps.interrupts.flexible_total, caps.interrupts.most);
    // An admin queue pair and one for I/O (NVM Express Base 2.0, 8.26.3).
    if queues < 2 || interrupts < 1 {
        bail!(
            "{functions} virtual functions are too many: the controller has {} flexible pairs of queues, of which each needs 2, and {} interrupt \
             vectors, of which each needs 1",
            caps.queues.flexible_total,
            caps.interrupts.flexible_total
        );
    }
    Ok((queues, interrupts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use wholebar::nvme::ResourceCapabilities;

    #[test]
    fn resources_are_shared_out_evenly() {
        let some =
            |flexible_total, most| ResourceCapabilities { flexible_total, most, ..ResourceCapabilities::default() };
        let caps = PrimaryCapabilities { queues: some(9, 4), interrupts: some(4, 4), ..PrimaryCapabilities::default() };
        assert_eq!(shares(&caps, 1).unwrap(), (4, 4), "no more than one can have");
        assert_eq!(shares(&caps, 4).unwrap(), (2, 1));
        assert!(shares(&caps, 5).unwrap_err().to_string().contains("9 flexible pairs of queues"));
    }
}

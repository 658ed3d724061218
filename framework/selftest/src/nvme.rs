//! Checks that are an NVMe controller's alone: each kind of interrupt it has, as the controller raises it; transfers described in either way.

use crate::disk::{Bench, reference, shapes};
use crate::{Found, Runner};
use anyhow::{Context, Result};
use std::sync::Arc;
use std::time::Duration;
use wholebar::Error;
use wholebar::nvme::{CLASS, Nvme, Options, Service};
use wholebar::pci::{Config, Irq, PciDevice};

/// Admin commands until one has shown itself by an interrupt.
const TRIES: u32 = 20;
/// How long an interrupt may take.
const SIGNAL: Duration = Duration::from_secs(2);

/// Tries the controller, where the device is one.
pub fn nvme(runner: &mut Runner<'_>, device: &Arc<dyn PciDevice>) {
    if !Config::of(device.as_ref()).is_ok_and(|config| config.class() == CLASS) {
        return;
    }
    for (name, kind) in
        [("completions by MSI-X", Irq::Msix), ("completions by MSI", Irq::Msi), ("completions by INTx", Irq::Intx)]
    {
        runner.check("nvme", name, || completions(device, kind));
    }
    for (name, sgls) in [("reads of every shape by PRP lists", false), ("reads of every shape by SGLs", true)] {
        runner.check("nvme", name, || transfers(device, sgls));
    }
}

/// Reads of every shape, described by PRP lists alone or by SGLs where those are had (NVM Express Base 2.0, 4.1.1 and 4.1.2).
fn transfers(device: &Arc<dyn PciDevice>, sgls: bool) -> Result<Found> {
    let nvme = Nvme::open(device.clone(), Options { sgls, ..Options::default() })?;
    if sgls && nvme.identify().sgl_alignment().is_none() {
        return Ok(Found::Nothing("the controller has no SGLs".to_owned()));
    }
    Bench::over(Box::new(nvme), (8, 4 << 20))?.with(|bench| shapes(bench, &reference(bench)?))
}

/// Waits for the interrupts of admin commands.
fn completions(device: &Arc<dyn PciDevice>, kind: Irq) -> Result<Found> {
    match device.irq_info(kind) {
        Ok(info) if info.count > 0 => {}
        Ok(_) | Err(Error::NoSuchIrq { .. }) => return Ok(Found::Nothing("it has none".to_owned())),
        Err(error) => return Err(error.into()),
    }
    let options = Options { interrupts: Some(kind), service: Service::Manual, ..Options::default() };
    let nvme = Nvme::open(device.clone(), options)?;
    let vector = nvme.interrupts().context("the driver has taken no interrupt")?.vector(0)?;
    for tried in 1..=TRIES {
        vector.take();
        nvme.service()?;
        nvme.smart()?;
        if vector.wait(Some(SIGNAL))?.is_some() {
            return Ok(Found::Good(format!("came at the {tried}. admin command")));
        }
    }
    // A line is a level: one that is lowered before a CPU has looked who raised it tells nobody, and rightly so.
    match kind {
        Irq::Intx => Ok(Found::Nothing(format!("{TRIES} admin commands completed before their line was seen"))),
        kind => anyhow::bail!("{TRIES} admin commands completed, and no {kind} interrupt came"),
    }
}

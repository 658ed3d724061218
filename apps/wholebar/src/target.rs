//! Devices by name, opened for a command; where they are models, on a core of their own if there is one.

use crate::args::Usage;
use crate::origin::Origin;
use anyhow::Result;
use std::sync::Arc;
use std::time::Duration;
use wholebar::cores;
use wholebar::drivers::{Drivers, Mapping};
use wholebar::measure::cpu::{CpuShare, Thread};
use wholebar::pci::PciDevice;
use wholebar::{OpenError, OpenOptions, sim};

/// What a disk or a port is opened from, whichever kind of target names it.
pub enum AnyTarget {
    /// A PCI device, for which a driver is needed.
    Pci(Target),
    /// What is opened without one: the kernel's own path, or a vhost-user back end's port.
    Direct(wholebar::Target),
}

/// A PCI device that was opened.
pub struct Target {
    /// The device.
    pub device: Arc<dyn PciDevice>,
    sim: Option<sim::Opened>,
    shares_cores: bool,
}

/// Opens a PCI device. Where it is a model in this process, its thread gets `model_core`, or else a core that is none of `driver_cores`.
pub fn open(name: &str, driver_cores: &[usize], model_core: Option<usize>) -> Result<Target> {
    open_device(&parse(name)?, driver_cores, model_core, None)
}

/// The same of any target. A vfio-user server may take `timeout` to answer.
pub fn open_any(
    name: &str,
    driver_cores: &[usize],
    model_core: Option<usize>,
    timeout: Option<Duration>,
) -> Result<AnyTarget> {
    match parse(name)? {
        target if !target.is_pci() => Ok(AnyTarget::Direct(target)),
        target => Ok(AnyTarget::Pci(open_device(&target, driver_cores, model_core, timeout)?)),
    }
}

fn parse(name: &str) -> Result<wholebar::Target, Usage> {
    wholebar::Target::parse(name).map_err(|e: OpenError| Usage(e.to_string()))
}

fn open_device(
    target: &wholebar::Target,
    driver_cores: &[usize],
    model_core: Option<usize>,
    timeout: Option<Duration>,
) -> Result<Target> {
    let model_core = match model_core {
        Some(core) => Some(core),
        // Commands that don't measure leave it to the system.
        None if driver_cores.is_empty() => None,
        None => cores::allowed().iter().copied().find(|core| !driver_cores.contains(core)),
    };
    let opened = target.open(&OpenOptions { model_core, timeout }).map_err(named)?;
    let shares_cores = opened.sim.is_some() && model_core.is_none_or(|core| driver_cores.contains(&core));
    Ok(Target { device: opened.device, sim: opened.sim, shares_cores })
}

/// An error of opening: wrong usage, where it is the name that is wrong.
fn named(error: OpenError) -> anyhow::Error {
    match error {
        OpenError::NotPci { target } => Usage(format!(
            "{target} is no PCI device, and this needs one, by its PCI address: `wholebar devices` lists them. `wholebar blk` and `wholebar net` take it as it is"
        ))
        .into(),
        error if error.is_name() => Usage(error.to_string()).into(),
        error => error.into(),
    }
}

impl AnyTarget {
    /// Opens the disk or the port, by a driver of the table where one is needed.
    pub fn open<P: ?Sized, C>(&self, drivers: &Drivers<P, C>, config: &C, mapping: Mapping) -> Result<Box<P>> {
        let opened = match self {
            Self::Pci(target) => drivers.open(target.device.clone(), config, mapping),
            Self::Direct(target) if mapping != Mapping::default() => {
                return Err(Usage(format!("{target} has no BARs: leave out --policy and --page")).into());
            }
            Self::Direct(target) => drivers.open_target(target, &OpenOptions::default(), config, mapping),
        };
        opened.map_err(named)
    }

    /// The PCI device.
    ///
    /// # Errors
    /// [`Usage`] where it is none.
    pub fn pci(&self) -> Result<&Target> {
        match self {
            Self::Pci(target) => Ok(target),
            Self::Direct(target) => Err(named(OpenError::NotPci { target: target.to_string() })),
        }
    }

    /// What stands behind its figures.
    pub fn origin(&self) -> Origin {
        match self {
            Self::Pci(target) => Origin::of(target.device.as_ref()).0,
            Self::Direct(wholebar::Target::Kernel(_)) => Origin::Kernel,
            Self::Direct(_) => Origin::Emulated,
        }
    }

    /// As [`Target::set_spin`], where a model has a core to itself: on the driver's it would only take the driver's time.
    pub fn set_spin(&self, spin: bool) {
        if let Self::Pci(target) = self {
            target.set_spin(spin && !target.shares_cores());
        }
    }

    /// As [`Target::shares_cores`].
    pub fn shares_cores(&self) -> bool {
        if let Self::Pci(target) = self { target.shares_cores() } else { false }
    }

    /// As [`Target::model_cpu`].
    pub fn model_cpu(&self) -> CpuShare {
        CpuShare::of(self.model_thread())
    }

    /// As [`Target::model_thread`].
    pub fn model_thread(&self) -> Option<Thread> {
        if let Self::Pci(target) = self { target.model_thread() } else { None }
    }
}

impl Target {
    /// Whether a model in this process has no core to itself.
    pub fn shares_cores(&self) -> bool {
        self.shares_cores
    }

    /// Has a model in this process look for doorbells all the time, as hardware does, or rest where nothing happens.
    pub fn set_spin(&self, spin: bool) {
        if let Some(sim) = &self.sim {
            sim.model.set_spin(spin);
        }
    }

    /// The device, for whoever closes it.
    pub fn into_device(self) -> Arc<dyn PciDevice> {
        self.device
    }

    /// The CPU time of a model in this process, from now on.
    pub fn model_cpu(&self) -> CpuShare {
        CpuShare::of(self.model_thread())
    }

    /// The thread of a model in this process.
    pub fn model_thread(&self) -> Option<Thread> {
        self.sim.as_ref().and_then(|sim| sim.model.thread_id()).map(Thread)
    }
}

//! Devices by name, opened for a command; where they are models, on a core of their own if there is one.

use crate::args::Usage;
use anyhow::Result;
use std::sync::Arc;
use std::time::Duration;
use wholebar::cores;
use wholebar::measure::cpu::{CpuShare, Thread};
use wholebar::pci::PciDevice;
use wholebar::{OpenError, OpenOptions, sim};

/// A device that was opened.
pub struct Target {
    /// The device.
    pub device: Arc<dyn PciDevice>,
    sim: Option<sim::Opened>,
    shares_cores: bool,
}

/// Opens a device. Where it is a model in this process, its thread gets `model_core`, or else a core that is none of `driver_cores`.
pub fn open(name: &str, driver_cores: &[usize], model_core: Option<usize>) -> Result<Target> {
    open_within(name, driver_cores, model_core, None)
}

/// The same, where a vfio-user server may take so long to answer.
pub fn open_within(
    name: &str,
    driver_cores: &[usize],
    model_core: Option<usize>,
    timeout: Option<Duration>,
) -> Result<Target> {
    let target = wholebar::Target::parse(name).map_err(|e: OpenError| Usage(e.to_string()))?;
    let model_core = match model_core {
        Some(core) => Some(core),
        // Commands that don't measure leave it to the system.
        None if driver_cores.is_empty() => None,
        None => cores::allowed().iter().copied().find(|core| !driver_cores.contains(core)),
    };
    let opened = target.open(&OpenOptions { model_core, timeout })?;
    let shares_cores = opened.sim.is_some() && model_core.is_none_or(|core| driver_cores.contains(&core));
    Ok(Target { device: opened.device, sim: opened.sim, shares_cores })
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

    /// The CPU time of a model in this process, from now on.
    pub fn model_cpu(&self) -> CpuShare {
        CpuShare::of(self.sim.as_ref().and_then(|sim| sim.model.thread_id()).map(Thread))
    }
}

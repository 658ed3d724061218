//! Checks of a PCI function, whatever it is: configuration space, BARs under every plan, interrupts as far as the host makes them, reset. It does *not*
//! read registers that it does not know: a read may change a device.

use crate::{Found, Runner};
use anyhow::{Context, Result, bail, ensure};
use std::sync::Arc;
use std::time::Duration;
use wholebar::bar::{Access, Bar, BarOptions, MapPolicy, plan_of};
use wholebar::irq::Interrupts;
use wholebar::pci::{BAR0, Config, Irq, PciDevice, config, function};
use wholebar::{Error, PageSize, nvme};

/// How long a signal that the host itself makes may take.
const SIGNAL: Duration = Duration::from_secs(30);
/// Vectors that are tried of a kind.
const VECTORS: u32 = 4;

/// What is reset.
#[derive(Clone, Copy)]
pub enum Reset {
    /// What the driver does by itself, which is nothing here.
    Controller,
    Function,
    Slot,
}

impl Reset {
    /// Resets that, behind the back of a driver that there may be. Returns why there is no way to do it.
    pub fn of(self, device: &Arc<dyn PciDevice>) -> Result<Option<String>> {
        let done = match self {
            Self::Controller => Ok(()),
            Self::Function if !device.info().resettable => {
                return Ok(Some("the host has no way to reset this function".to_owned()));
            }
            Self::Function => function::reset(device.as_ref()),
            Self::Slot => function::reset_slot(device.as_ref()),
        };
        match done {
            Ok(()) => Ok(None),
            Err(Error::NoSlotReset { why, .. }) => Ok(Some(why)),
            Err(error) => Err(error.into()),
        }
    }
}

/// Tries the function. Returns its configuration space as it was before.
pub fn function(runner: &mut Runner<'_>, device: &Arc<dyn PciDevice>) -> Option<Config> {
    let mut before = None;
    runner.check("function", "configuration space", || {
        let config = Config::of(device.as_ref())?;
        let again = Config::of(device.as_ref())?;
        ensure!(config.bytes() == again.bytes(), "it reads differently the second time");
        let ids = format!("{:04x}:{:04x}, class {}", config.vendor(), config.device(), config.class());
        let seen = format!("{ids}, {} bytes", config.bytes().len());
        before = Some(config);
        Ok(Found::Good(seen))
    });
    for (name, reset) in [("reset of the function", Reset::Function), ("reset of the slot", Reset::Slot)] {
        runner.check("function", name, || {
            let ids = |config: Config| (config.vendor(), config.device(), config.class());
            let was = ids(Config::of(device.as_ref())?);
            if let Some(why) = reset.of(device)? {
                return Ok(Found::Nothing(why));
            }
            ensure!(ids(Config::of(device.as_ref())?) == was, "it came back as another function");
            Ok(Found::Good("it came back".to_owned()))
        });
    }
    runner.check("function", "plans of its BARs", || plans(device));
    runner.check("function", "registers by loads and by system calls", || registers(device));
    for (name, kind) in [("MSI-X", Irq::Msix), ("MSI", Irq::Msi), ("INTx", Irq::Intx)] {
        runner.check("function", name, || interrupts(device, kind));
    }
    before
}

/// Tries whether the function is as it was, now that all drivers have closed it.
pub fn given_back(runner: &mut Runner<'_>, device: &Arc<dyn PciDevice>, before: &Config) {
    runner.check("function", "given back as it was", || {
        let now = Config::of(device.as_ref())?;
        ensure!(!now.is_bus_master(), "it may still do DMA: bus mastering is on");
        // Revision, class and BARs (PCI Express Base 6.0, 7.5.1.1, 7.5.1.2).
        let differs = (0x08..0x0c).chain(0x10..0x34u16).find(|at| now.u8(*at) != before.u8(*at));
        if let Some(at) = differs {
            bail!("byte {at:#04x} of configuration space was {:02x?}, and is {:02x?}", before.u8(at), now.u8(at));
        }
        Ok(Found::Good("its BARs are the same, and bus mastering is off".to_owned()))
    });
}

/// Opens each BAR under every plan that this host can have.
fn plans(device: &Arc<dyn PciDevice>) -> Result<Found> {
    let (mut opened, mut mapped) = (0, Vec::new());
    for bar in 0..6u8 {
        if device.region(BAR0 + u32::from(bar))?.size == 0 {
            continue;
        }
        for policy in [MapPolicy::Auto, MapPolicy::Carved, MapPolicy::Trapped] {
            for page in [None, Some(PageSize::K64.max(device.page_size()))] {
                let plan = plan_of(device.as_ref(), bar, BarOptions { policy, page, ..BarOptions::default() })?;
                let what = || format!("BAR{bar}, {policy:?}, pages of {}", plan.page);
                let end = plan.spans.last().map_or(0, |span| span.range.end);
                ensure!(
                    end == plan.layout.size,
                    "{}: the plan covers {end:#x} of {:#x} bytes",
                    what(),
                    plan.layout.size
                );
                if (policy, page) == (MapPolicy::Auto, None) {
                    let direct = plan.spans.iter().any(|span| span.access == Access::Direct);
                    mapped.push(format!("BAR{bar} {}", if direct { "mapped" } else { "trapped" }));
                }
                Bar::open(device.clone(), plan.clone()).with_context(what)?;
                opened += 1;
            }
        }
    }
    Ok(match opened {
        0 => Found::Nothing("it has no BARs".to_owned()),
        _ => Found::Good(format!("{opened} plans opened; by itself {}", mapped.join(", "))),
    })
}

/// Registers of BAR0 that read the same at any time, by class.
fn constants(config: &Config) -> &'static [u64] {
    match config.class() {
        // CAP, and VS (NVM Express Base 2.0, 3.1.3).
        nvme::CLASS => &[0x0, 0x4, 0x8],
        _ => &[],
    }
}

fn registers(device: &Arc<dyn PciDevice>) -> Result<Found> {
    let registers = constants(&Config::of(device.as_ref())?);
    if registers.is_empty() {
        return Ok(Found::Nothing("no register of this device is known to read the same at any time".to_owned()));
    }
    config::enable_memory(device.as_ref(), true)?;
    let bar = Bar::of(device.clone(), 0, BarOptions::default())?;
    for &at in registers {
        let mut trapped = [0; 4];
        device.read(BAR0, at, &mut trapped)?;
        let (loaded, trapped) = (bar.read::<u32>(at)?, u32::from_le_bytes(trapped));
        ensure!(loaded == trapped, "register {at:#x}: {loaded:#x} by a load, {trapped:#x} by a system call");
    }
    Ok(Found::Good(format!("{} registers of BAR0 are the same", registers.len())))
}

/// Has the host raise interrupts of a kind, and waits for them.
fn interrupts(device: &Arc<dyn PciDevice>, kind: Irq) -> Result<Found> {
    let count = match device.irq_info(kind) {
        Ok(info) => info.count,
        Err(Error::NoSuchIrq { .. }) => 0,
        Err(error) => return Err(error.into()),
    };
    if count == 0 {
        return Ok(Found::Nothing("it has none".to_owned()));
    }
    // Several of MSI must be granted together, which platforms seldom do.
    let tried = if kind == Irq::Msix { VECTORS.min(count) } else { 1 };
    let interrupts = Interrupts::new(device.clone(), kind, tried)?;
    for vector in 0..interrupts.count() {
        let fd = interrupts.vector(vector)?;
        fd.take();
        interrupts.trigger(vector).with_context(|| format!("vector {vector}, raised by the host"))?;
        ensure!(fd.wait(Some(SIGNAL))?.is_some(), "vector {vector} was raised by the host, and nothing came");
        interrupts.rearm()?;
    }
    Ok(Found::Good(format!("{count} vectors; the host raised {tried}, and each came")))
}

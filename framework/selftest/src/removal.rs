//! The machine's owner wants a device back: whether its user is told, and the kernel gets it once it is closed. With real functions alone.

use crate::disk::Bench;
use crate::{Check, Found, checked};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use wholebar::block::{Disk, Event};
use wholebar::control_plane::DeviceEvent;
use wholebar::drivers::Mapping;
use wholebar::net::{self, Port, PortConfig};
use wholebar::pci::{DeviceKind, PciDevice};

/// How long the kernel's request may take to come, and the kernel to have the device back.
const SOON: Duration = Duration::from_secs(60);

/// Has the kernel take the device from vfio-pci and give it back, while a driver has it open. `device` is the last reference to it: nobody else may keep
/// one.
pub fn removal(device: Arc<dyn PciDevice>) -> Check {
    checked("function", "given back when asked for", || {
        if device.kind() != DeviceKind::Kernel {
            return Ok(Found::Nothing("only a function of this machine can be asked for".to_owned()));
        }
        asked_for(device)
    })
}

/// What receives the events of a device.
enum Opened {
    Disk(Box<dyn Disk>),
    Port(Box<dyn Port>),
}

impl Opened {
    fn is_asked_for(&self) -> bool {
        const ASKED: DeviceEvent = DeviceEvent::UnbindRequest;
        match self {
            Self::Disk(disk) => std::iter::from_fn(|| disk.event()).any(|event| event == Event::Device(ASKED)),
            Self::Port(port) => port.events().try_iter().any(|event| event == net::Event::Device(ASKED)),
        }
    }
}

fn asked_for(device: Arc<dyn PciDevice>) -> Result<Found> {
    let name = device.name().to_owned();
    let driver = PathBuf::from("/sys/bus/pci/drivers/vfio-pci");
    ensure!(driver.join(&name).exists(), "vfio-pci does not have {name}");
    let opened = match Bench::open(&device, Mapping::default(), 1, (1, 1 << 16)) {
        Ok(bench) => Opened::Disk(bench.disk),
        Err(_) => Opened::Port(net::open(device.clone(), &PortConfig::default())?),
    };
    // The write returns once the device is closed.
    let (done, ended) = channel();
    let (unbind, address) = (driver.join("unbind"), name.clone());
    let asking = move || done.send(fs::write(unbind, address));
    std::thread::Builder::new().spawn(asking).context("starting a thread")?;
    let began = Instant::now();
    while !opened.is_asked_for() {
        if let Ok(Err(error)) = ended.try_recv() {
            return Err(error).context("asking vfio-pci for it");
        }
        ensure!(began.elapsed() < SOON, "the device was asked for, and its driver was told nothing in {SOON:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
    let told = began.elapsed();
    drop((opened, device));
    match ended.recv_timeout(SOON) {
        Ok(taken) => taken.context("taking it from vfio-pci")?,
        Err(_) => bail!("the device was closed, and the kernel does not have it after {SOON:?}"),
    }
    fs::write(driver.join("bind"), &name).context("giving it to vfio-pci again")?;
    Ok(Found::Good(format!("its driver was told after {told:.1?}; vfio-pci has it again")))
}

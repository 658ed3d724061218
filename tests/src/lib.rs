//! The same test bodies over every backend.
//!
//! A [`Rig`] is a device with all that stands behind it; [`rigs`] gives one of each kind for the same model. Bodies take any rig and never ask
//! which it is. This crate does *not* test parts: those have tests of their own.

use anyhow::{Context, Result};
use std::any::Any;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use wholebar::pci::{Address, PciDevice};
use wholebar::vfio::{IommuType, Route, Vfio, VfioOptions};
use wholebar::vfio_user::{Server, VfioUser};
use wholebar_sim::nvme::{Nvme, NvmeParams};
use wholebar_sim::{OpenOptions, Target};

pub mod nvme;

/// A device, and all that keeps it working.
pub struct Rig {
    /// The device.
    pub device: Arc<dyn PciDevice>,
    /// What kind of rig it is, for messages.
    pub name: &'static str,
    _keep: Vec<Box<dyn Any>>,
}

impl Rig {
    /// A device of the kernel's.
    pub fn over(device: Arc<Vfio>) -> Self {
        Self { device, name: "kernel VFIO", _keep: vec![] }
    }
}

/// An NVMe model in this process, on a thread.
///
/// # Errors
/// What its parameters or the system say.
pub fn in_process(params: &str) -> Result<Rig> {
    let opened = wholebar_sim::open(&Target::parse(&format!("sim:nvme,{params}"))?, OpenOptions::default())?;
    Ok(Rig { device: opened.device, name: "in process", _keep: vec![Box::new(opened.thread)] })
}

/// The same model behind a vfio-user socket, served by a thread, reached by the client.
///
/// # Errors
/// As [`in_process`].
pub fn vfio_user(params: &str) -> Result<Rig> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("nvme.sock");
    let mut server = Server::bind(&path, Nvme::new(NvmeParams::parse(params)?)?)?;
    let stop = Arc::new(AtomicBool::new(false));
    let seen = stop.clone();
    let thread = std::thread::spawn(move || drop(server.run(&seen)));
    let served = Served { stop, thread: Some(thread) };
    let device = VfioUser::connect(&path, Default::default()).context("connecting to our own server")?;
    Ok(Rig { device, name: "vfio-user", _keep: vec![Box::new(served), Box::new(dir)] })
}

/// The NVMe devices of a guest.
///
/// # Errors
/// That this is no guest of `cargo xtask vm`.
pub fn functions() -> Result<Vec<Address>> {
    let devices =
        std::env::var("WHOLEBAR_NVME").context("no WHOLEBAR_NVME here: run this by `cargo xtask vm test GUEST`")?;
    devices.split(',').map(|address| Ok(address.parse()?)).collect()
}

/// The first NVMe device of a guest, opened in one of the ways that its kernel offers: see [`kernel_ways`].
///
/// # Errors
/// What the kernel says; as [`functions`].
pub fn kernel(way: &VfioOptions) -> Result<Rig> {
    Ok(Rig::over(Vfio::open(functions()?[0], way)?))
}

/// The ways to open a device that isolate it, of those that this kernel offers.
pub fn kernel_ways() -> Vec<VfioOptions> {
    let container = |iommu| VfioOptions { route: Route::Group, iommu: Some(iommu), ..VfioOptions::default() };
    if cfg!(target_arch = "powerpc64") {
        return vec![container(IommuType::TceV2), container(IommuType::TceV1)];
    }
    let mut ways = vec![container(IommuType::Type1v2)];
    if Path::new("/dev/vfio/devices").exists() {
        ways.push(VfioOptions { route: Route::Node, ..VfioOptions::default() });
    }
    ways
}

/// One rig of each kind, over the same model.
///
/// # Errors
/// As [`in_process`].
pub fn rigs(params: &str) -> Result<Vec<Rig>> {
    Ok(vec![in_process(params)?, vfio_user(params)?])
}

/// A server's thread; stopped and joined on drop.
struct Served {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

//! The same test bodies over every backend.
//!
//! A [`Rig`] is a device with all that stands behind it; [`rigs`] gives one of each kind for the same model. Bodies take any rig and never ask
//! which it is. This crate does *not* test parts: those have tests of their own.

use anyhow::{Context, Result};
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use wholebar::model::Model;
use wholebar::net::Port;
use wholebar::pci::PciDevice;
use wholebar::sim::nvme::{Nvme, NvmeParams};
use wholebar::sim::virtio::net::{self, NetHandle, NetParams};
use wholebar::vfio::Vfio;
use wholebar::vfio_user::{self, Server, VfioUser};
use wholebar::vhost_user::{self, VhostUser, VirtioModel};

pub mod accounting;
pub mod guest;
pub mod intel;
pub mod nvme;
pub mod nvme_accounting;
pub mod offloads;
pub mod switch;
pub mod virtio;
pub mod vmxnet3;
pub mod wire;

pub use wholebar_selftest::storage;

/// A device, and all that keeps it working.
pub struct Rig {
    /// The device.
    pub device: Arc<dyn PciDevice>,
    /// What kind of rig it is, for messages.
    pub name: &'static str,
    /// What its model counts, where it is a network model.
    pub net: Option<Arc<NetHandle>>,
    /// The port at the far end, where it is a front end of one.
    pub far: Option<Arc<dyn Port>>,
    keep: Vec<Box<dyn Any>>,
}

impl Rig {
    /// A device that needs nothing else.
    pub fn of(device: Arc<dyn PciDevice>, name: &'static str) -> Self {
        Self { device, name, net: None, far: None, keep: vec![] }
    }

    /// A device of the kernel's.
    pub fn over(device: Arc<Vfio>) -> Self {
        Self::of(device, "kernel VFIO")
    }
}

/// An NVMe model in this process, on a thread.
///
/// # Errors
/// What its parameters or the system say.
pub fn in_process(params: &str) -> Result<Rig> {
    on_thread(&format!("sim:nvme,{params}"))
}

/// The same model behind a vfio-user socket, served by a thread, reached by the client.
///
/// # Errors
/// As [`in_process`].
pub fn vfio_user(params: &str) -> Result<Rig> {
    behind_socket(Nvme::new(NvmeParams::parse(params)?)?)
}

/// A model by its target's name, in this process, on a thread.
///
/// # Errors
/// What its parameters or the system say.
pub fn on_thread(target: &str) -> Result<Rig> {
    let opened = wholebar::sim::open(target)?;
    Ok(Rig { net: opened.net, ..Rig::of(opened.model, "in process") })
}

/// A model behind a vfio-user socket, served by a thread, reached by the client.
///
/// # Errors
/// What the system says.
pub fn behind_socket(model: impl Model + 'static) -> Result<Rig> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("model.sock");
    let mut server = Server::bind(&path, model)?;
    let stop = Arc::new(AtomicBool::new(false));
    let seen = stop.clone();
    let thread = std::thread::spawn(move || drop(server.run(&seen)));
    let served = Served { stop, thread: Some(thread) };
    let patient = vfio_user::Options::of(storage::PATIENCE);
    let device = VfioUser::connect(&path, patient).context("connecting to our own server")?;
    Ok(Rig { keep: vec![Box::new(served), Box::new(dir)], ..Rig::of(device, "vfio-user") })
}

/// A network model behind a vfio-user socket.
///
/// # Errors
/// What its parameters or the system say.
pub fn net_behind_socket(params: &str) -> Result<Rig> {
    let (model, port) = net::model(NetParams::parse(params)?)?;
    Ok(Rig { net: Some(port.handle), ..behind_socket(model)? })
}

/// A virtio model behind a vhost-user socket, served by a thread, reached by the front end.
///
/// # Errors
/// What the system says.
pub fn over_vhost_user(model: impl VirtioModel + 'static) -> Result<Rig> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("model.sock");
    let mut server = vhost_user::Server::bind(&path, model)?;
    let stop = Arc::new(AtomicBool::new(false));
    let seen = stop.clone();
    let thread = std::thread::spawn(move || drop(server.run(&seen)));
    let served = Served { stop, thread: Some(thread) };
    let patient = vhost_user::Options::default().with_timeout(storage::PATIENCE);
    let device = VhostUser::connect(&path, patient).context("connecting to our own back end")?;
    Ok(Rig { keep: vec![Box::new(served), Box::new(dir)], ..Rig::of(device, "vhost-user") })
}

/// A virtio network model behind a vhost-user socket.
///
/// # Errors
/// What its parameters or the system say.
pub fn net_over_vhost_user(params: &str) -> Result<Rig> {
    let (model, port) = net::model(NetParams::parse(params)?)?;
    Ok(Rig { net: Some(port.handle), ..over_vhost_user(model)? })
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

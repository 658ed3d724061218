//! A model on a socket: for any vfio-user client, or for any vhost-user front end.

use crate::fpga::Fpga;
use crate::nvme::Nvme;
use crate::target::ModelParams;
use crate::virtio::{blk, net};
use crate::{Error, Result};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use wholebar_core::model::Model;
use wholebar_core::{vfio_user, vhost_user};

/// Serves a model on `socket`, to one client after another, until `stop` is set. `spin` keeps the core when nothing happens. `ready` is
/// called as soon as clients can connect.
///
/// # Errors
/// Where the model can't be made, the socket can't be listened on, or the system can't wait.
pub fn serve(params: &ModelParams, socket: &Path, spin: bool, stop: &AtomicBool, ready: impl FnOnce()) -> Result<()> {
    match params {
        ModelParams::Nvme(params) => run(Nvme::new(params.clone())?, socket, spin, stop, ready),
        ModelParams::Fpga => run(Fpga::new()?, socket, spin, stop, ready),
        ModelParams::VirtioBlk(params) => run(blk::model(params.clone())?, socket, spin, stop, ready),
        ModelParams::VirtioNet(params) => run(net::model(params.clone())?.0, socket, spin, stop, ready),
    }
}

fn run<M: Model>(model: M, socket: &Path, spin: bool, stop: &AtomicBool, ready: impl FnOnce()) -> Result<()> {
    let mut server = vfio_user::Server::bind(socket, model)?.spin(spin);
    ready();
    Ok(server.run(stop)?)
}

/// Serves a virtio model as a vhost-user back end: on `socket`, to one front end after another; or, where `connect` says so, to a front end that
/// listens there, and to the next one when it is gone. The rest is as of [`serve`].
///
/// # Errors
/// [`Error::Conflict`] for a model that is no virtio device; else as of [`serve`].
pub fn serve_vhost_user(
    params: &ModelParams,
    socket: &Path,
    connect: bool,
    spin: bool,
    stop: &AtomicBool,
    ready: impl FnOnce(),
) -> Result<()> {
    let model = match params {
        ModelParams::VirtioBlk(params) => blk::model(params.clone())?,
        ModelParams::VirtioNet(params) => net::model(params.clone())?.0,
        _ => return Err(Error::Conflict("vhost-user serves virtio-net and virtio-blk alone".to_owned())),
    };
    let server = match connect {
        true => vhost_user::Server::connect(socket, model)?,
        false => vhost_user::Server::bind(socket, model)?,
    };
    ready();
    Ok(server.spin(spin).run(stop)?)
}

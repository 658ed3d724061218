//! A model on a vfio-user socket, for any client.

use crate::Result;
use crate::fpga::Fpga;
use crate::nvme::Nvme;
use crate::target::ModelParams;
use crate::virtio::{blk, net};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use wholebar_core::model::Model;
use wholebar_core::vfio_user::Server;

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
    let mut server = Server::bind(socket, model)?.spin(spin);
    ready();
    Ok(server.run(stop)?)
}

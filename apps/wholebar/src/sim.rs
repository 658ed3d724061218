//! `wholebar sim serve`: a device model in a process of its own, for any vfio-user client, or any vhost-user front end.

use crate::args::{Size, Usage};
use crate::{output, signal};
use anyhow::{Context, Result, bail};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use wholebar::cores;
use wholebar::sim::nvme::Backing;
use wholebar::sim::virtio::{blk, net};
use wholebar::sim::{self, ModelParams, Target, nvme};

/// Serve device models over vfio-user or vhost-user
#[derive(clap::Subcommand)]
pub enum Command {
    Serve(Args),
}

/// Serve a device model on a socket, to one client after another, until SIGINT or SIGTERM
///
/// A file given as backing is the first namespace, as long as the file is, unless --size says less. A client that dies takes nothing with it: its memory
/// is let go, the model is reset, and the next one is welcome.
///
/// With --vhost-user it is a back end for virtual machines, DPDK's virtio_user and whatever else is a vhost-user front end.
#[derive(clap::Args)]
#[command(after_help = after_help())]
pub struct Args {
    /// The model: nvme, fpga, virtio-net or virtio-blk
    model: String,
    /// The socket to make; given twice, there are two such models: the ends of a pair, with wire=pair:NAME
    #[arg(long, value_name = "PATH", required = true)]
    socket: Vec<PathBuf>,
    /// nvme: a file or block device to keep blocks in, instead of memory
    #[arg(long, value_name = "FILE")]
    backing: Option<PathBuf>,
    /// nvme: the size of each namespace
    #[arg(long, value_name = "SIZE")]
    size: Option<Size>,
    /// The model's parameters
    #[arg(value_name = "PARAM=VALUE")]
    params: Vec<String>,
    /// virtio-net, virtio-blk: be a vhost-user back end
    #[arg(long)]
    vhost_user: bool,
    /// Connect to a front end that listens on the socket, again and again, rather than listening there
    #[arg(long, requires = "vhost_user")]
    connect: bool,
    /// The core to run on
    #[arg(long, value_name = "N")]
    core: Option<usize>,
    /// Poll all the time, also when nothing happens; else it sleeps a millisecond at a time then
    #[arg(long)]
    spin: bool,
}

const EXAMPLES: &str = "\
Examples:
  wholebar sim serve nvme --socket /run/nvme.sock --backing disk.img
  wholebar sim serve nvme --socket /run/nvme.sock --size 1G block=4096 page=64k
  wholebar nvme identify vfio-user:/run/nvme.sock         (in another terminal)
  wholebar sim serve virtio-net --socket /run/a.sock --socket /run/b.sock wire=pair:x
  wholebar sim serve virtio-blk --socket /run/blk.sock file=disk.img queues=4
  wholebar sim serve virtio-net --vhost-user --socket /run/net.sock wire=tap:tap0
  dpdk-testpmd --no-pci --vdev net_virtio_user0,path=/run/net.sock ...
  qemu-system-x86_64 ... -device '{\"driver\":\"vfio-user-pci\",\"socket\":{\"type\":\"unix\",\"path\":\"/run/x.sock\"}}'";

fn after_help() -> String {
    let mut text = EXAMPLES.to_owned();
    let models = [("nvme", nvme::PARAMETERS), ("virtio-net", &net::PARAMETERS), ("virtio-blk", &blk::PARAMETERS)];
    for (model, parameters) in models {
        text += &format!("\n\nParameters of {model}, which sim:{model} takes too (with the default):");
        for (name, values) in parameters {
            let values = output::lines(values, 80 - 13).join("\n             ");
            text += &format!("\n  {name:<10} {values}");
        }
    }
    text
}

pub fn run(command: Command) -> Result<()> {
    let Command::Serve(args) = command;
    let target = format!("sim:{}", [vec![args.model.clone()], args.params.clone()].concat().join(","));
    let Target { name, params } = Target::parse(&target).map_err(|e| Usage(e.to_string()))?;
    let params = args.with_backing(params)?;
    let stop = signal::interrupted()?;
    if let Some(core) = args.core {
        cores::pin(core)?;
    }
    if args.vhost_user && !matches!(params, ModelParams::VirtioNet(_) | ModelParams::VirtioBlk(_)) {
        bail!(Usage("--vhost-user goes with virtio-net and virtio-blk".to_owned()));
    }
    let one = |socket: &PathBuf| serve(&name, &params, socket, &args, &stop);
    // Each on a thread of its own; the first that fails ends them all.
    std::thread::scope(|scope| {
        let one = &one;
        let start = |socket| std::thread::Builder::new().spawn_scoped(scope, move || one(socket));
        let others = args.socket[1..].iter().map(start).collect::<io::Result<Vec<_>>>();
        let others = others.inspect_err(|_| stop.store(true, Ordering::Relaxed)).context("cannot start a thread")?;
        let first = one(&args.socket[0]);
        let joined = others.into_iter().map(|o| o.join().unwrap_or_else(|_| bail!("a model's thread panicked")));
        joined.fold(first, |done, other| done.and(other))
    })
}

/// Serves one model; where that fails, nobody goes on.
fn serve(name: &str, params: &ModelParams, socket: &Path, args: &Args, stop: &AtomicBool) -> Result<()> {
    let path = socket.display();
    let done = match (args.vhost_user, args.connect) {
        (false, _) => sim::serve(params, socket, args.spin, stop, || {
            output::note(format!("{name} listens on {path}: connect to vfio-user:{path}, stop with Ctrl-C"));
        }),
        (true, connect) => sim::serve_vhost_user(params, socket, connect, args.spin, stop, || {
            output::note(match connect {
                true => format!("{name} connects to vhost-user front ends on {path}: stop with Ctrl-C"),
                false => format!("{name} listens on {path} for vhost-user front ends: stop with Ctrl-C"),
            });
        }),
    };
    if let Err(error) = done {
        stop.store(true, Ordering::Relaxed);
        bail!(error);
    }
    output::note(format!(
        "{name} is stopped{}",
        if args.connect { String::new() } else { format!(", {path} is removed") }
    ));
    Ok(())
}

impl Args {
    fn with_backing(&self, params: ModelParams) -> Result<ModelParams> {
        let ModelParams::Nvme(mut params) = params else {
            if self.backing.is_some() || self.size.is_some() {
                bail!(Usage("--backing and --size go with nvme".to_owned()));
            }
            return Ok(params);
        };
        if let Some(path) = &self.backing {
            if params.backing != Backing::Ram {
                bail!(Usage("--backing and a file= or backing= parameter exclude each other".to_owned()));
            }
            params.backing = Backing::File { path: path.clone(), read_only: false };
        }
        if let Some(Size(size)) = self.size {
            params.size = Some(size);
        }
        params.check()?;
        Ok(ModelParams::Nvme(params))
    }
}

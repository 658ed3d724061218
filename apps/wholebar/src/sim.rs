//! `wholebar sim serve`: a device model in a process of its own, for any vfio-user client.

use crate::args::{Size, Usage};
use crate::{output, signal};
use anyhow::{Result, bail};
use std::path::PathBuf;
use wholebar::cores;
use wholebar_sim::nvme::{Backing, PARAMETERS};
use wholebar_sim::{ModelParams, Target};

/// Serve device models over vfio-user
#[derive(clap::Subcommand)]
pub enum Command {
    Serve(Args),
}

/// Serve a device model on a socket, to one client after another, until SIGINT or SIGTERM
///
/// A file given as backing is the first namespace, as long as the file is, unless --size says less. A client that dies takes nothing with it: its memory
/// is let go, the model is reset, and the next one is welcome.
#[derive(clap::Args)]
#[command(after_help = after_help())]
pub struct Args {
    /// The model: nvme or fpga
    model: String,
    /// The socket to make
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// nvme: a file or block device to keep blocks in, instead of memory
    #[arg(long, value_name = "FILE")]
    backing: Option<PathBuf>,
    /// nvme: the size of each namespace
    #[arg(long, value_name = "SIZE")]
    size: Option<Size>,
    /// The model's parameters
    #[arg(value_name = "PARAM=VALUE")]
    params: Vec<String>,
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
  qemu-system-x86_64 ... -device '{\"driver\":\"vfio-user-pci\",\"socket\":{\"type\":\"unix\",\"path\":\"/run/nvme.sock\"}}'";

fn after_help() -> String {
    let mut text = format!("{EXAMPLES}\n\nParameters of nvme, which sim:nvme takes too (with the default):");
    for (name, values) in PARAMETERS {
        text += &format!("\n  {name:<9} {values}");
    }
    text
}

pub fn run(command: Command) -> Result<()> {
    let Command::Serve(args) = command;
    let target = format!("sim:{}", [vec![args.model.clone()], args.params.clone()].concat().join(","));
    let parsed = target.parse().map_err(|e: wholebar_sim::Error| Usage(e.to_string()))?;
    let Target::Model { name, params } = parsed else { bail!(Usage(format!("there is no model {:?}", args.model))) };
    let params = args.with_backing(params)?;
    let stop = signal::interrupted()?;
    if let Some(core) = args.core {
        cores::pin(core)?;
    }
    let socket = args.socket.display();
    wholebar_sim::serve(&params, &args.socket, args.spin, &stop, || {
        output::note(format!("{name} listens on {socket}: connect to vfio-user:{socket}, stop with Ctrl-C"));
    })?;
    output::note(format!("{name} is stopped, {socket} is removed"));
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

//! What commands have in common that only receive, on one port.

use super::around::WatchArgs;
use super::port::{self, OpenPort, PortArgs};
use super::run::RunArgs;
use anyhow::Result;
use wholebar::net::RxQueue;

/// Their arguments. To be flattened behind a command's own, or these are shown under the last heading here.
#[derive(clap::Args, Debug, Clone)]
pub struct ReceiveArgs {
    /// The port that receives
    #[arg(index = 1)]
    pub target: String,
    /// Write JSON at the end; lines for people go to standard error
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    ports: PortArgs,
    #[command(flatten)]
    pub run: RunArgs,
    #[command(flatten)]
    pub watch: WatchArgs,
}

impl ReceiveArgs {
    /// Opens the port: one, as those who run it want it. A model gets a core that is none of `cores`, if there is one.
    ///
    /// # Errors
    /// As [`port::open`].
    pub fn open(&self, cores: &[usize]) -> Result<Vec<OpenPort>> {
        port::open(std::slice::from_ref(&self.target), &self.ports, self.run.idle, cores)
    }

    /// All queues of the port.
    ///
    /// # Errors
    /// What the driver says.
    pub fn queues(&self, port: &OpenPort) -> Result<Vec<Box<dyn RxQueue>>> {
        (0..self.ports.queues).map(|queue| self.watch.rx(port, queue)).collect()
    }
}

//! `wholebar blk`: what people do with any disk, whichever driver it needs.

mod copy;
mod info;
mod perf;

use anyhow::Result;

/// Show, read, write and measure disks, whichever driver they need
#[derive(clap::Subcommand)]
pub enum Command {
    Info(info::Args),
    Read(copy::ReadArgs),
    Write(copy::WriteArgs),
    Perf(perf::Args),
}

pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Info(args) => info::run(args),
        Command::Read(args) => copy::read(args),
        Command::Write(args) => copy::write(args),
        Command::Perf(args) => perf::run(args),
    }
}

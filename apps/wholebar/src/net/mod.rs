//! `wholebar net`: packets between ports. What all its commands share is in `port` (ports by their targets' names, and their counters), in
//! `run` (pinned threads that move packets for a while, and what is shown meanwhile), and in `report` (what is told of ports in the end).

mod fwd;
mod port;
mod report;
mod run;

use anyhow::Result;

/// Forward packets between network devices
#[derive(clap::Subcommand)]
pub enum Command {
    Fwd(fwd::Args),
}

pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Fwd(args) => fwd::run(args),
    }
}

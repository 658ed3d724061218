//! `wholebar net`: packets between ports. What all its commands share is in `port` (ports by their targets' names, and their counters), in
//! `run` (pinned threads that move packets for a while, and what is shown meanwhile), and in `report` (what is told of ports in the end).

mod capture;
mod fwd;
mod generate;
mod mark;
mod port;
mod report;
mod run;
mod sink;

use anyhow::Result;

/// Forward, generate and receive packets on network devices
#[derive(clap::Subcommand)]
pub enum Command {
    Fwd(fwd::Args),
    Gen(generate::Args),
    Sink(sink::Args),
}

pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Fwd(args) => fwd::run(args),
        Command::Gen(args) => generate::run(args),
        Command::Sink(args) => sink::run(args),
    }
}

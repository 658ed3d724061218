//! `wholebar net`: packets between ports. What all its commands share is in `port` (ports by their targets' names, and their counters), in
//! `run` (pinned threads that move packets for a while, and what is shown meanwhile), in `report` (what is told of ports in the end), and in
//! `around` (what goes around their queues, and who may read what they count).

mod around;
mod baseline;
mod capture;
mod dump;
mod fwd;
mod generate;
mod idle;
mod port;
mod receive;
mod report;
mod run;
mod sink;
mod stat;
mod tap;

use anyhow::Result;

/// Forward, generate, receive, capture and count packets on network devices
#[derive(clap::Subcommand)]
pub enum Command {
    Fwd(fwd::Args),
    Gen(generate::Args),
    Sink(sink::Args),
    Dump(dump::Args),
    Stat(stat::Args),
}

impl Command {
    /// Whether queues are to tell of each burst.
    pub fn is_traced(&self) -> bool {
        match self {
            Self::Fwd(args) => args.around.is_traced(),
            Self::Gen(args) => args.around.is_traced(),
            Self::Sink(args) => args.receive.watch.is_traced(),
            Self::Dump(args) => args.receive.watch.is_traced(),
            Self::Stat(_) => false,
        }
    }
}

pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Fwd(args) => fwd::run(args),
        Command::Gen(args) => generate::run(args),
        Command::Sink(args) => sink::run(args),
        Command::Dump(args) => dump::run(args),
        Command::Stat(args) => stat::run(args),
    }
}

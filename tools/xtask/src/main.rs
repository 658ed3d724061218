//! `cargo xtask`: chores of this repository that need a program, not a line of shell.

mod dist;
mod notices;
mod vm;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Chores of this repository")]
#[allow(clippy::large_enum_variant, reason = "there is one of it")]
enum Chore {
    /// Guests with real kernel VFIO, under QEMU
    #[command(subcommand)]
    Vm(vm::Command),
    Dist(dist::Args),
}

fn main() -> ExitCode {
    match Chore::parse() {
        Chore::Vm(command) => vm::main(command),
        Chore::Dist(args) => dist::main(args),
    }
}

//! The `wholebar` command: which devices there are, benchmarks, tools for disks and NVMe, BAR maps, device models.
//!
//! Each command is a module with its arguments and a `run`. What it reports goes to standard output, everything else to standard
//! error. The exit code is 0 where it was done, 1 where it failed, and 2 for wrong usage.

mod any_disk;
mod args;
mod barmap;
mod bench;
mod bind;
mod blk;
mod copy;
mod devices;
mod doctor;
mod help;
mod host;
mod html;
mod idle;
mod in_use;
mod mapped;
mod msix;
mod names;
mod net;
mod nvme;
mod openers;
mod origin;
mod output;
mod packets;
mod pages;
mod perf;
mod report;
mod rounds;
mod selftest;
mod signal;
mod sim;
mod storage;
mod stored;
mod target;
mod token;
mod verdict;
mod vf;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::process::ExitCode;
use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Userspace, polled-mode PCI drivers: benchmarks, tools for disks and NVMe, BAR maps, device models
///
/// No hardware, root or hugepages are needed to try it: a target can be a device model in this process.
#[derive(Parser)]
#[command(name = "wholebar", version, arg_required_else_help = true, max_term_width = 100, after_help = AFTER)]
struct Cli {
    /// Say more of what is going on, on standard error; twice: even more
    #[arg(short, long, global = true, display_order = 100, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

const AFTER: &str = "\
A TARGET is a PCI function:
  sim:nvme,size=1G        a device model in this process, with its parameters
  sim:fpga
  sim:virtio-net,wire=tap:t0
  sim:virtio-blk
  vfio-user:/run/x.sock   a vfio-user server: `wholebar sim serve` or another;
                          ,timeout=30 behind it: it may take up to 30 seconds to
                          answer
  vhost-user:/run/x.sock  a virtio device of a vhost-user back end: QEMU's
                          storage daemon, testpmd, passt; behind it ,server
                          listens there, ,net or ,blk says what it is
  0000:01:00.0            one of this machine that vfio-pci has
or, for `blk` and `net`, the kernel's own path to a disk or a network:
  kernel:/dev/nvme0n1     a block device or a file, by io_uring: whatever has a
                          slash in it; behind it ,cached ,sqpoll ,iopoll ,ro
                          ,force
  kernel:eth0             an interface, by a packet socket; behind it ,force;
                          ,mode=xdp for AF_XDP: of its queue 0, or ,queue=N, by
                          the card itself with ,zerocopy
or, for `net`, a virtual machine's card at the other end of its vhost-user:
  vhost-user:/run/x.sock,back-end
                          connects to a front end that listens there; with
                          ,server it is listened for front ends; ,mac= is theirs

Try first:
  wholebar bench
  wholebar devices
  wholebar doctor
  wholebar nvme identify sim:nvme
  wholebar blk info sim:virtio-blk
  wholebar barmap sim:nvme

Exit codes: 0 done, 1 the work failed, 2 wrong usage.
Colours are off where NO_COLOR is set. RUST_LOG (wholebar=debug) says in place
of -v what is logged.";

#[derive(Subcommand)]
enum Command {
    Devices(devices::Args),
    Doctor(doctor::Args),
    Bind(bind::BindArgs),
    Unbind(bind::UnbindArgs),
    #[command(subcommand)]
    Vf(vf::Command),
    Bench(bench::Args),
    Pages(pages::Args),
    Idle(idle::Args),
    #[command(subcommand)]
    Nvme(nvme::Command),
    #[command(subcommand)]
    Blk(blk::Command),
    #[command(subcommand)]
    Net(Box<net::Command>),
    #[command(subcommand)]
    Sim(sim::Command),
    Selftest(selftest::Args),
    Barmap(barmap::Args),
    Msix(msix::Args),
}

/// The target of what queues tell that are traced.
const TRACED: &str = "wholebar_core::net::traced";

/// Has standard error get what is logged: from a level on, or what `RUST_LOG` says (TARGET=LEVEL, separated by commas).
fn log(level: Level, traced: bool) {
    let mut what = Targets::new().with_default(level);
    if let Ok(text) = std::env::var("RUST_LOG") {
        match text.parse() {
            Ok(asked) => what = asked,
            Err(error) => output::note(format!("RUST_LOG={text:?} makes no sense: {error}")),
        }
    }
    if traced {
        what = what.with_target(TRACED, Level::TRACE);
    }
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    let lines = lines.without_time().with_target(false).log_internal_errors(false);
    tracing_subscriber::registry().with(lines.with_filter(what)).init();
}

fn main() -> ExitCode {
    let matches = help::fold_examples(Cli::command()).try_get_matches();
    let cli = match matches.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => return output::usage(&error),
    };
    let serves = matches!(cli.command, Command::Sim(_));
    // A server tells of its clients; others only of what goes wrong.
    let level =
        [Level::WARN, Level::INFO, Level::DEBUG, Level::TRACE][usize::from(cli.verbose.min(2)) + usize::from(serves)];
    let traced = matches!(&cli.command, Command::Net(command) if command.is_traced());
    log(level, traced);
    let done = signal::limits_are_errors().and_then(|()| match cli.command {
        Command::Devices(args) => devices::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Bind(args) => bind::bind(args),
        Command::Unbind(args) => bind::unbind(args),
        Command::Vf(command) => vf::run(command),
        Command::Bench(args) => bench::run(args),
        Command::Pages(args) => pages::run(args),
        Command::Idle(args) => idle::run(args),
        Command::Nvme(command) => nvme::run(command),
        Command::Blk(command) => blk::run(command),
        Command::Net(command) => net::run(*command),
        Command::Sim(command) => sim::run(command),
        Command::Selftest(args) => selftest::run(args),
        Command::Barmap(args) => barmap::run(args),
        Command::Msix(args) => msix::run(args),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::note(output::error_text(&error));
            ExitCode::from(if error.is::<args::Usage>() { 2 } else { 1 })
        }
    }
}

//! `wholebar nvme format`, `sanitize` and `self-test`, with nvme-cli's options.

use super::admin::{self, Danger, Destroys, dword, wait};
use super::{Controller, list, logs};
use crate::output;
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde_json::json;
use wholebar::nvme::{Format, IdentifyRequest, Sanitize, SanitizeAction, SelfTest};

/// Format a namespace. WHAT WAS ON IT IS LOST
///
/// It asks first, and refuses a controller that the system uses. Without --lbaf or --block-size, blocks stay as large as they are.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme format 0000:01:00.0 --namespace-id 1 --block-size 4096
  wholebar nvme format sim:nvme,ns=2 --namespace-id 2 --lbaf 1 --ses 1 --force")]
pub struct FormatArgs {
    /// The namespace; 0xffffffff for all of them
    #[arg(short, long, value_name = "ID", value_parser = dword)]
    namespace_id: u32,
    /// The number of the LBA format: see `wholebar nvme id-ns`
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=63), conflicts_with = "block_size")]
    lbaf: Option<u8>,
    /// Bytes of a block: the first LBA format that has them, without metadata
    #[arg(short, long, value_name = "BYTES")]
    block_size: Option<u64>,
    /// Secure erase: 0 none, 1 user data, 2 its key
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=2), default_value = "0")]
    ses: u8,
    /// Type of protection information, 0 for none
    #[arg(short = 'i', long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=3), default_value = "0")]
    pi: u8,
    /// Protection information is first in the metadata (1), or last (0)
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=1), default_value = "0")]
    pil: u8,
    /// Metadata follows its block (1), or is in a buffer of its own (0)
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=1), default_value = "0")]
    ms: u8,
    #[command(flatten)]
    common: Destroys,
}

/// Sanitize a controller. WHAT WAS ON ALL ITS NAMESPACES IS LOST, FOR GOOD
///
/// It asks first, and refuses a controller that the system uses. It goes on when this command has ended: see `wholebar nvme sanitize-log`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme sanitize 0000:01:00.0 --sanact start-block-erase --wait
  wholebar nvme sanitize sim:nvme --sanact start-overwrite --owpass 2 --ovrpat 0xdeadbeef --force")]
pub struct SanitizeArgs {
    /// The NVMe controller
    target: String,
    /// What to do
    #[arg(short = 'a', long, value_enum)]
    sanact: Sanact,
    /// Do not deallocate blocks afterwards
    #[arg(short = 'd', long)]
    no_dealloc: bool,
    /// How often to overwrite, 1 to 16
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16), default_value = "1")]
    owpass: u8,
    /// What to overwrite with
    #[arg(short = 'p', long, value_name = "N", value_parser = dword, default_value = "0")]
    ovrpat: u32,
    /// Invert the pattern from pass to pass
    #[arg(short = 'i', long)]
    oipbp: bool,
    /// Allow that a failure is left without another sanitize
    #[arg(short = 'u', long)]
    ause: bool,
    /// Wait until it is done
    #[arg(short, long)]
    wait: bool,
    #[command(flatten)]
    danger: Danger,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Sanact {
    /// Leave the state that a failed one has left
    ExitFailure,
    /// Erase blocks
    StartBlockErase,
    /// Overwrite blocks
    StartOverwrite,
    /// Delete the key of the data
    StartCryptoErase,
}

/// Have a controller test itself, and wait for the result
///
/// A short test ends when the controller is reset, as every program does that opens it. An extended one goes on, and may take hours: see --no-wait, and
/// `wholebar nvme self-test-log`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme self-test sim:nvme
  wholebar nvme self-test 0000:01:00.0 --self-test-code extended --no-wait
  wholebar nvme self-test 0000:01:00.0 --self-test-code abort")]
pub struct SelfTestArgs {
    /// The NVMe controller
    target: String,
    /// The namespace that is tested too: 0 for none, 0xffffffff for all
    #[arg(short, long, value_name = "ID", value_parser = dword, default_value = "0xffffffff")]
    namespace_id: u32,
    /// Which test
    #[arg(short, long, value_enum, default_value = "short")]
    self_test_code: Code,
    /// Do not wait for the result
    #[arg(long)]
    no_wait: bool,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Code {
    /// Of two minutes at most
    Short,
    /// As long as the controller says
    Extended,
    /// The vendor's
    Vendor,
    /// End the one that runs
    Abort,
}

/// The number of the LBA format that has blocks of `bytes`, and the least metadata.
pub fn format_of(controller: &Controller, nsid: u32, bytes: u64) -> Result<u8> {
    let request = IdentifyRequest { cns: 0, nsid, ..IdentifyRequest::default() };
    let formats = list::formats(&controller.nvme.identify_data(request)?);
    let has = |f: &&(usize, list::LbaFormat)| f.1.lbads < 63 && 1u64 << f.1.lbads == bytes;
    let all: Vec<_> = formats.into_iter().enumerate().collect();
    let found = all.iter().filter(has).min_by_key(|(_, f)| f.ms);
    let (number, _) = found.with_context(|| {
        let sizes: Vec<_> =
            all.iter().filter(|f| (9..63).contains(&f.1.lbads)).map(|f| (1u64 << f.1.lbads).to_string()).collect();
        format!("{} has no LBA format with blocks of {bytes} bytes; it has: {}", controller.name, sizes.join(", "))
    })?;
    Ok(*number as u8)
}

pub fn format(args: FormatArgs) -> Result<()> {
    let Destroys { target, danger, json, .. } = &args.common;
    let (controller, timeout) = args.common.open()?;
    let (nsid, all) = (args.namespace_id, args.namespace_id == u32::MAX);
    let before = controller.namespaces();
    let these: Vec<_> = before.iter().filter(|n| all || n.nsid == nsid).collect();
    let Some(first) = these.first() else { bail!("{target} has no active namespace {nsid}") };
    let lba_format = match (args.lbaf, args.block_size) {
        (Some(number), _) => number,
        (None, Some(bytes)) => format_of(&controller, first.nsid, bytes)?,
        (None, None) => first.format,
    };
    let bytes = these.iter().fold(0, |sum: u64, n| sum.saturating_add(n.size()));
    let what = if all { "all namespaces".to_owned() } else { format!("namespace {nsid}") };
    let who = controller.described();
    danger.ask(&format!("Format {what} of {who}, {}? What is on it is lost.", output::bytes(bytes)))?;
    let format = Format {
        lba_format,
        metadata_extended: args.ms != 0,
        protection: args.pi,
        protection_first: args.pil != 0,
        secure_erase: args.ses,
    };
    controller.nvme.format(nsid, format, timeout)?;
    let now = controller.namespaces();
    let now: Vec<_> = now.iter().filter(|n| all || n.nsid == nsid).collect();
    for n in now.iter().filter(|n| !n.is_plain()) {
        output::note(format!(
            "each block of namespace {} has {} bytes of metadata now, which a program sends along: read, write, perf and others that know of none refuse it",
            n.nsid, n.metadata_size
        ));
    }
    if *json {
        let list: Vec<_> = now
            .iter()
            .map(|n| {
                let (block_size, metadata_size) = (n.block_size, n.metadata_size);
                json!({"nsid": n.nsid, "blocks": n.blocks, "block_size": block_size, "metadata_size": metadata_size, "lbaf": n.format})
            })
            .collect();
        return output::print_json(&json!({"schema": "wholebar.format/1", "target": target, "namespaces": list}));
    }
    let lines = now
        .iter()
        .map(|n| format!("{target}: namespace {} has {} blocks of {} bytes\n", n.nsid, n.blocks, n.block_size));
    output::print(lines.collect::<String>())
}

pub fn sanitize(args: SanitizeArgs) -> Result<()> {
    let action = match args.sanact {
        Sanact::ExitFailure => SanitizeAction::ExitFailure,
        Sanact::StartBlockErase => SanitizeAction::BlockErase,
        Sanact::StartOverwrite => {
            SanitizeAction::Overwrite { passes: args.owpass, pattern: args.ovrpat, invert: args.oipbp }
        }
        Sanact::StartCryptoErase => SanitizeAction::CryptoErase,
    };
    args.danger.check(&args.target)?;
    let controller = admin::open(&args.target)?;
    args.danger.ask(&format!(
        "Sanitize {}? What is on all its namespaces, and those of its whole subsystem, is lost for good.",
        controller.described()
    ))?;
    let (allow_unrestricted_exit, no_deallocate) = (args.ause, args.no_dealloc);
    controller.nvme.sanitize(Sanitize { action, allow_unrestricted_exit, no_deallocate })?;
    let mut outcome = "begun";
    if args.wait && args.sanact != Sanact::ExitFailure {
        let status = wait("sanitizing", || {
            let status = controller.nvme.sanitize_status()?;
            let percent = (u32::from(status.progress) * 100 / 65536) as u8;
            Ok(if status.status == 2 { Err(percent) } else { Ok(status) })
        })?;
        outcome = status.outcome();
        if ![1, 4].contains(&status.status) {
            bail!("{}: sanitize: {outcome}", args.target);
        }
    }
    match args.json {
        true => {
            output::print_json(&json!({"schema": "wholebar.sanitize/1", "target": args.target, "outcome": outcome}))
        }
        false => output::print(format!("{}: sanitize: {outcome}\n", args.target)),
    }
}

pub fn self_test(args: SelfTestArgs) -> Result<()> {
    let controller = admin::open(&args.target)?;
    let test = match args.self_test_code {
        Code::Short => SelfTest::Short,
        Code::Extended => SelfTest::Extended,
        Code::Vendor => SelfTest::Vendor,
        Code::Abort => SelfTest::Abort,
    };
    controller.nvme.self_test(args.namespace_id, test)?;
    if args.no_wait {
        return match args.json {
            true => output::print_json(&json!({"schema": "wholebar.self-test/1", "target": args.target, "log": null})),
            false => output::print(format!("{}: begun\n", args.target)),
        };
    }
    let log = wait("self-test", || {
        let log = controller.nvme.self_test_log()?;
        Ok(if log.current == 0 { Ok(log) } else { Err(log.completion) })
    })?;
    let (text, value) = logs::self_test(&log);
    match args.json {
        true => output::print_json(&json!({"schema": "wholebar.self-test/1", "target": args.target, "log": value}))?,
        false => output::print(format!("{}\n{text}", args.target))?,
    }
    match log.results.first() {
        Some(result) if result.result != 0 && args.self_test_code != Code::Abort => {
            bail!("{}: the self-test: {}", args.target, result.outcome())
        }
        _ => Ok(()),
    }
}

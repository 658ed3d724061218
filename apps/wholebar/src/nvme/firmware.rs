//! `wholebar nvme fw-download`, `fw-commit`, `security-send` and `security-recv`, with nvme-cli's options.

use super::admin::{self, Danger, Destroys, Show, byte, dump, dword, hex, word};
use crate::args::{Size, Usage};
use crate::output::{self, Progress};
use anyhow::{Result, bail};
use clap::ValueEnum;
use serde_json::json;
use wholebar::nvme::{CommitAction, SecurityProtocol};

/// Send a firmware image to a controller, and store it in a slot
///
/// Both in one command: what was sent does not outlive a reset, and every program that opens a controller resets it.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme fw-log 0000:01:00.0                                   which slots there are
  wholebar nvme fw-download 0000:01:00.0 --fw image.bin --slot 2      stores it
  wholebar nvme fw-download 0000:01:00.0 --fw image.bin --slot 2 --action store-and-activate")]
pub struct DownloadArgs {
    /// The image; - is standard input
    #[arg(short, long, value_name = "FILE")]
    fw: String,
    /// Bytes of a piece [default: as much as one command transfers]
    #[arg(short, long, value_name = "SIZE")]
    xfer: Option<Size>,
    /// The slot, 1 to 7; 0 for the controller's choice
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=7), default_value = "0")]
    slot: u8,
    /// What to do with it
    #[arg(short, long, value_enum, default_value = "store")]
    action: Stored,
    #[command(flatten)]
    common: Destroys,
}

/// Have the firmware of a slot run
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme fw-commit 0000:01:00.0 --slot 2 --action activate
  wholebar nvme fw-commit sim:nvme --slot 1 --action activate-now --force")]
pub struct CommitArgs {
    /// The slot
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=7))]
    slot: u8,
    /// When
    #[arg(short, long, value_enum, default_value = "activate")]
    action: There,
    #[command(flatten)]
    common: Destroys,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Stored {
    /// Store it
    Store,
    /// Store it, and run it after the next reset
    StoreAndActivate,
    /// Store it, and run it now
    ActivateNow,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum There {
    /// After the next reset
    Activate,
    /// Now
    ActivateNow,
}

/// The largest image that is read.
const MOST: u64 = 1 << 30;

pub fn download(args: DownloadArgs) -> Result<()> {
    let Destroys { target, danger, json, .. } = &args.common;
    danger.check(target)?;
    let mut image = admin::read_file(&args.fw, MOST)?;
    if image.is_empty() {
        bail!("{} is empty: that is no firmware image", args.fw);
    }
    let (controller, timeout) = args.common.open()?;
    let unit = controller.identity().firmware_granularity.unwrap_or(4);
    let most = u64::from(controller.nvme.max_transfer());
    let piece = args.xfer.map_or(most / u64::from(unit) * u64::from(unit), |Size(bytes)| bytes);
    if piece == 0 || piece > most || !piece.is_multiple_of(unit.into()) {
        bail!(Usage(format!(
            "pieces of {piece} bytes cannot be sent: they are multiples of {unit}, and {most} at most"
        )));
    }
    danger.ask(&format!(
        "Replace firmware of {} by the {} bytes of {}? It may not work any more.",
        controller.described(),
        image.len(),
        args.fw
    ))?;
    let bytes = image.len();
    // The last piece is filled up, as FWUG demands.
    image.resize(bytes.next_multiple_of(unit as usize), 0);
    let mut progress = Progress::bytes("sending", Some(image.len() as u64));
    let mut sent = 0;
    for part in image.chunks(piece as usize) {
        controller.nvme.firmware_download(sent, part)?;
        sent += part.len() as u32;
        progress.at(sent.into(), String::new);
    }
    progress.finish();
    let action = match args.action {
        Stored::Store => CommitAction::Store,
        Stored::StoreAndActivate => CommitAction::StoreAndActivate,
        Stored::ActivateNow => CommitAction::ActivateNow,
    };
    let status = controller.nvme.firmware_commit(args.slot, action, timeout)?;
    done(target, *json, bytes, status)
}

pub fn commit(args: CommitArgs) -> Result<()> {
    let Destroys { target, danger, json, .. } = &args.common;
    let (controller, timeout) = args.common.open()?;
    let slots = controller.nvme.firmware_log()?;
    let revision = slots.revisions.get(usize::from(args.slot) - 1).filter(|r| !r.is_empty());
    let Some(revision) = revision else { bail!("{target} has no firmware in slot {}", args.slot) };
    danger.ask(&format!("Have {} run firmware {revision} of slot {}?", controller.described(), args.slot))?;
    let action = match args.action {
        There::Activate => CommitAction::Activate,
        There::ActivateNow => CommitAction::ActivateNow,
    };
    let status = controller.nvme.firmware_commit(args.slot, action, timeout)?;
    done(target, *json, 0, status)
}

fn done(target: &str, as_json: bool, bytes: usize, status: wholebar::nvme::StatusCode) -> Result<()> {
    let note = (!status.is_success()).then(|| status.to_string());
    if as_json {
        return output::print_json(
            &json!({"schema": "wholebar.fw-commit/1", "target": target, "bytes": bytes, "needs": note}),
        );
    }
    let note = note.map_or(String::new(), |note| format!("  {note}\n"));
    output::print(format!("{target}: done\n{note}"))
}

#[derive(clap::Args)]
struct Protocol {
    /// The security protocol; 0 tells which there are
    #[arg(short = 'p', long, value_name = "N", value_parser = byte, default_value = "0")]
    secp: u8,
    /// What is the protocol's own
    #[arg(short, long, value_name = "N", value_parser = word, default_value = "0")]
    spsp: u16,
    /// NVMe security specific field
    #[arg(short = 'N', long, value_name = "N", value_parser = byte, default_value = "0")]
    nssf: u8,
    /// The namespace, for protocols that want one
    #[arg(short, long, value_name = "ID", value_parser = dword, default_value = "0")]
    namespace_id: u32,
}

impl Protocol {
    fn of(&self) -> SecurityProtocol {
        let Self { secp, spsp, nssf, namespace_id } = *self;
        SecurityProtocol { protocol: secp, specific: spsp, nvme_specific: nssf, nsid: namespace_id }
    }
}

/// Send data of a security protocol. IT MAY LOCK OR ERASE THE DRIVE
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme security-send 0000:01:00.0 --secp 1 --spsp 0x1001 --file packet.bin")]
pub struct SendArgs {
    /// The NVMe controller
    target: String,
    #[command(flatten)]
    protocol: Protocol,
    /// The data; - is standard input
    #[arg(short, long, value_name = "FILE")]
    file: String,
    #[command(flatten)]
    danger: Danger,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// Receive data of a security protocol
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme security-recv sim:nvme                      which protocols there are
  wholebar nvme security-recv 0000:01:00.0 --secp 1 --spsp 1 --size 2048 --out discovery.bin")]
pub struct ReceiveArgs {
    /// The NVMe controller
    target: String,
    #[command(flatten)]
    protocol: Protocol,
    /// How many bytes
    #[arg(short = 'x', long, value_name = "SIZE", default_value = "512")]
    size: Size,
    #[command(flatten)]
    show: Show,
}

pub fn send(args: SendArgs) -> Result<()> {
    args.danger.check(&args.target)?;
    let bytes = admin::read_file(&args.file, MOST)?;
    let controller = admin::open(&args.target)?;
    let protocol = args.protocol.of();
    args.danger.ask(&format!(
        "Send {} bytes of security protocol {:02x}h to {}? They may lock or erase it.",
        bytes.len(),
        protocol.protocol,
        controller.described()
    ))?;
    controller.nvme.security_send(protocol, &bytes)?;
    match args.json {
        true => output::print_json(
            &json!({"schema": "wholebar.security-send/1", "target": args.target, "bytes": bytes.len()}),
        ),
        false => output::print(format!("{}: {} bytes sent\n", args.target, bytes.len())),
    }
}

pub fn receive(args: ReceiveArgs) -> Result<()> {
    let Size(size) = args.size;
    if !(1..=MOST).contains(&size) {
        bail!(Usage(format!("--size {size} is not from 1 to {MOST}")));
    }
    let controller = admin::open(&args.target)?;
    let most = u64::from(controller.nvme.max_transfer());
    if size > most {
        bail!("{size} bytes are more than one command of {} transfers, which is {most}", args.target);
    }
    let bytes = controller.nvme.security_receive(args.protocol.of(), size as usize)?;
    let json = || json!({"schema": "wholebar.security-recv/1", "target": args.target, "data": hex(&bytes)});
    args.show.put(&bytes, json, || dump(&bytes))
}

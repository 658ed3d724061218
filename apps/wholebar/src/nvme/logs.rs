//! `wholebar nvme get-log`, `error-log`, `fw-log`, `self-test-log`, `sanitize-log`: log pages, by name or number.

use super::Controller;
use super::admin::{self, Show, byte, dump, dword, hex, number, word};
use crate::args::{Size, Usage};
use crate::output;
use anyhow::{Result, bail};
use serde_json::{Value, json};
use wholebar::nvme::{CommandEffects, ErrorEntry, FirmwareSlots, LogRequest, SanitizeStatus, SelfTestLog};

/// Read a log page
///
/// Those with a name are decoded where this program knows how; the others are shown as bytes, and all with --hex.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme get-log sim:nvme --log-id effects
  wholebar nvme get-log sim:nvme --log-id 0x02 --log-len 512 --hex
  wholebar nvme get-log 0000:01:00.0 --log-id telemetry-host --lsp 1 --log-len 64k --out telemetry.bin

Names: supported error smart fw changed-ns effects self-test telemetry-host
telemetry-ctrl endurance predictable-lat pred-lat-agg ana persistent-event
lba-status endurance-agg media-unit capacity-config feature-effects mi-effects
lockdown boot-partition rotational-media fdp-configs fdp-usage fdp-stats
fdp-events reservation sanitize changed-zones")]
pub struct Args {
    /// The NVMe controller
    target: String,
    /// The log page: its name or number
    #[arg(short = 'i', long, value_name = "LOG", value_parser = log_id)]
    log_id: u8,
    /// Bytes to read [default: the log page's, or 512]
    #[arg(short = 'l', long, value_name = "SIZE")]
    log_len: Option<Size>,
    /// Where to begin, in bytes
    #[arg(short = 'L', long, value_name = "N", value_parser = number, default_value = "0")]
    lpo: u64,
    /// The namespace, 0xffffffff for the controller's log page
    #[arg(short, long, value_name = "ID", value_parser = dword, default_value = "0xffffffff")]
    namespace_id: u32,
    /// Log specific field
    #[arg(short = 's', long, value_name = "N", value_parser = byte, default_value = "0")]
    lsp: u8,
    /// Log specific identifier
    #[arg(short = 'S', long, value_name = "N", value_parser = word, default_value = "0")]
    lsi: u16,
    /// The I/O command set
    #[arg(short = 'y', long, value_name = "N", value_parser = byte, default_value = "0")]
    csi: u8,
    /// Leave the asynchronous event that it explains as it is
    #[arg(short, long)]
    rae: bool,
    #[command(flatten)]
    show: Show,
}

/// Show a controller's error log, newest first
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme error-log sim:nvme
  wholebar nvme error-log 0000:01:00.0 --log-entries 4 --json")]
pub struct ErrorArgs {
    /// The NVMe controller
    target: String,
    /// How many entries to show at most
    #[arg(short = 'e', long, value_name = "N", default_value = "64")]
    log_entries: usize,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// Show which firmware is in which slot
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme fw-log sim:nvme
  wholebar nvme fw-log sim:nvme --json")]
pub struct FirmwareArgs {
    #[command(flatten)]
    of: Of,
}

/// Show what self-tests found
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme self-test-log sim:nvme
  wholebar nvme self-test-log 0000:01:00.0 --json")]
pub struct SelfTestArgs {
    #[command(flatten)]
    of: Of,
}

/// Show how far a sanitize operation is
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme sanitize-log sim:nvme
  wholebar nvme sanitize-log 0000:01:00.0 --json")]
pub struct SanitizeArgs {
    #[command(flatten)]
    of: Of,
}

#[derive(clap::Args)]
struct Of {
    /// The NVMe controller
    target: String,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// A log page: its number (NVM Express Base 2.0, 5.16.1; 21h to 23h of 2.1 and FDP), name and usual length.
const LOGS: &[(u8, &str, u32)] = &[
    (0x00, "supported", 1024),
    (0x01, "error", 4096),
    (0x02, "smart", 512),
    (0x03, "fw", 512),
    (0x04, "changed-ns", 4096),
    (0x05, "effects", 4096),
    (0x06, "self-test", 564),
    (0x07, "telemetry-host", 512),
    (0x08, "telemetry-ctrl", 512),
    (0x09, "endurance", 512),
    (0x0a, "predictable-lat", 512),
    (0x0b, "pred-lat-agg", 512),
    (0x0c, "ana", 512),
    (0x0d, "persistent-event", 512),
    (0x0e, "lba-status", 512),
    (0x0f, "endurance-agg", 512),
    (0x10, "media-unit", 512),
    (0x11, "capacity-config", 512),
    (0x12, "feature-effects", 1024),
    (0x13, "mi-effects", 1024),
    (0x14, "lockdown", 512),
    (0x15, "boot-partition", 512),
    (0x16, "rotational-media", 512),
    (0x20, "fdp-configs", 512),
    (0x21, "fdp-usage", 512),
    (0x22, "fdp-stats", 64),
    (0x23, "fdp-events", 512),
    (0x80, "reservation", 64),
    (0x81, "sanitize", 512),
    (0xbf, "changed-zones", 4096),
];
/// What a log page can have for this program.
const MOST: u64 = 1 << 30;

fn log_id(text: &str) -> Result<u8, String> {
    if let Some((id, ..)) = LOGS.iter().find(|(_, name, _)| *name == text) {
        return Ok(*id);
    }
    byte(text).map_err(|_| format!("{text:?} is no log page: write a name (see --help) or a number from 0 to 0xff"))
}

fn log_name(id: u8) -> Option<&'static str> {
    LOGS.iter().find(|(number, ..)| *number == id).map(|(_, name, _)| *name)
}

pub fn get_log(args: Args) -> Result<()> {
    let usual = LOGS.iter().find(|(id, ..)| *id == args.log_id).map_or(512, |(.., len)| u64::from(*len));
    let len = args.log_len.map_or(usual, |Size(len)| len);
    if !(1..=MOST).contains(&len) {
        bail!(Usage(format!("--log-len {len} is not from 1 to {MOST}")));
    }
    if args.lsp > 0x7f {
        bail!(Usage("--lsp has 7 bits".to_owned()));
    }
    if !args.lpo.is_multiple_of(4) {
        bail!(Usage(format!("--lpo {} is no multiple of 4", args.lpo)));
    }
    let controller = admin::open(&args.target)?;
    let request = LogRequest {
        lid: args.log_id,
        nsid: args.namespace_id,
        lsp: args.lsp,
        lsi: args.lsi,
        csi: args.csi,
        retain: args.rae,
        offset: args.lpo,
    };
    let bytes = controller.nvme.log_page(request, len as usize)?;
    let whole = args.lpo == 0;
    let decoded = if whole { decode(args.log_id, &bytes) } else { None };
    let (text, value) = decoded.unwrap_or_else(|| (dump(&bytes), Value::Null));
    let json = || {
        json!({"schema": "wholebar.log/1", "target": args.target, "log_id": args.log_id, "name": log_name(args.log_id),
            "offset": args.lpo, "bytes": hex(&bytes), "decoded": value})
    };
    let title = log_name(args.log_id).map_or_else(|| format!("log page {:02x}h", args.log_id), str::to_owned);
    args.show.put(&bytes, json, || format!("{}: {title}\n{text}", args.target))
}

/// A log page for people and for programs, where this program knows it.
fn decode(id: u8, bytes: &[u8]) -> Option<(String, Value)> {
    let dwords = || bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    Some(match id {
        0x00 => {
            let there: Vec<_> = (0u32..256).zip(dwords()).filter(|(_, d)| d & 1 != 0).map(|(id, _)| id as u8).collect();
            let rows = there.iter().map(|id| vec![format!("{id:02x}h"), log_name(*id).unwrap_or("-").to_owned()]);
            (output::table([">  log page", "name"], rows), json!(there))
        }
        0x01 => errors(&ErrorEntry::parse(bytes)),
        0x03 => firmware(&FirmwareSlots::parse(bytes)),
        0x04 => {
            let ids: Vec<_> = dwords().take_while(|id| *id != 0).collect();
            let text = match ids[..] {
                [] => "  no namespace has changed\n".to_owned(),
                [u32::MAX, ..] => "  more than 1024 namespaces have changed\n".to_owned(),
                _ => ids.iter().map(|id| format!("  namespace {id}\n")).collect(),
            };
            (text, json!(ids))
        }
        0x05 => effects(&CommandEffects::parse(bytes)),
        0x06 => self_test(&SelfTestLog::parse(bytes)),
        0x12 => {
            let there: Vec<_> = (0u32..256).zip(dwords()).filter(|(_, d)| d & 1 != 0).map(|(id, _)| id as u8).collect();
            let rows =
                there.iter().map(|id| vec![format!("{id:02x}h"), super::features::name(*id).unwrap_or("-").to_owned()]);
            (output::table([">  feature", "name"], rows), json!(there))
        }
        0x81 => sanitize(&SanitizeStatus::parse(bytes)),
        _ => return None,
    })
}

pub fn error_log(args: ErrorArgs) -> Result<()> {
    let mut entries = admin::open(&args.target)?.nvme.error_log()?;
    entries.truncate(args.log_entries);
    report(&args.target, args.json, "wholebar.error-log/1", errors(&entries))
}

pub fn fw_log(args: FirmwareArgs) -> Result<()> {
    args.of.report("wholebar.fw-log/1", |controller| Ok(firmware(&controller.nvme.firmware_log()?)))
}

pub fn self_test_log(args: SelfTestArgs) -> Result<()> {
    args.of.report("wholebar.self-test-log/1", |controller| Ok(self_test(&controller.nvme.self_test_log()?)))
}

pub fn sanitize_log(args: SanitizeArgs) -> Result<()> {
    args.of.report("wholebar.sanitize-log/1", |controller| Ok(sanitize(&controller.nvme.sanitize_status()?)))
}

impl Of {
    fn report(&self, schema: &str, read: impl FnOnce(&Controller) -> Result<(String, Value)>) -> Result<()> {
        report(&self.target, self.json, schema, read(&admin::open(&self.target)?)?)
    }
}

fn report(target: &str, as_json: bool, schema: &str, (text, value): (String, Value)) -> Result<()> {
    match as_json {
        true => output::print_json(&json!({"schema": schema, "target": target, "log": value})),
        false => output::print(format!("{target}\n{text}")),
    }
}

fn errors(entries: &[ErrorEntry]) -> (String, Value) {
    let value = entries.iter().map(|e| {
        json!({"error_count": e.count, "sqid": e.sqid, "cmdid": e.cid, "status_field": e.status.0, "status": e.status.to_string(),
            "parm_error_location": e.parameter, "lba": e.lba, "nsid": e.nsid})
    });
    let value = value.collect();
    if entries.is_empty() {
        return ("  no errors\n".to_owned(), value);
    }
    let rows = entries.iter().map(|e| {
        let id = |id: u16| if id == u16::MAX { "-".to_owned() } else { id.to_string() };
        vec![
            e.count.to_string(),
            id(e.sqid),
            id(e.cid),
            e.nsid.to_string(),
            e.lba.to_string(),
            e.status.name().unwrap_or("vendor specific or reserved").to_owned(),
        ]
    });
    (output::table([">  number", ">queue", ">command", ">namespace", ">block", "status"], rows), value)
}

fn firmware(slots: &FirmwareSlots) -> (String, Value) {
    let value = json!({"active": slots.active, "next": slots.next, "slots": slots.revisions});
    let there = (1u8..).zip(&slots.revisions).filter(|(slot, revision)| !revision.is_empty() || *slot == slots.active);
    let rows = there.map(|(slot, revision)| {
        let runs = match slot {
            slot if slot == slots.active => "runs",
            slot if Some(slot) == slots.next => "runs after the next reset",
            _ => "",
        };
        vec![slot.to_string(), revision.clone(), runs.to_owned()]
    });
    (output::table([">  slot", "revision", ""], rows), value)
}

fn effects(list: &[CommandEffects]) -> (String, Value) {
    const BITS: [&str; 4] = ["blocks", "namespaces", "inventory", "controller"];
    let changes = |e: &CommandEffects| {
        let set = BITS.iter().enumerate().filter(|(bit, _)| e.effects >> (bit + 1) & 1 != 0);
        set.map(|(_, name)| *name).collect::<Vec<_>>()
    };
    let alone = |e: &CommandEffects| match e.effects >> 16 & 7 {
        1 => "on its namespace",
        2 => "everywhere",
        _ => "",
    };
    let value = list.iter().map(|e| {
        json!({"admin": e.admin, "opcode": e.opcode, "name": e.name(), "effects": e.effects, "changes": changes(e)})
    });
    let rows = list.iter().map(|e| {
        let kind = if e.admin { "admin" } else { "I/O" };
        vec![
            format!("  {kind}"),
            format!("{:02x}h", e.opcode),
            e.name().to_owned(),
            changes(e).join(" "),
            alone(e).to_owned(),
        ]
    });
    (output::table(["", "opcode", "command", "changes", "alone"], rows), value.collect())
}

fn test_name(kind: u8) -> String {
    match kind {
        1 => "short".to_owned(),
        2 => "extended".to_owned(),
        0xe => "vendor's".to_owned(),
        other => format!("{other:x}h"),
    }
}

/// A self-test log for people and for programs.
pub fn self_test(log: &SelfTestLog) -> (String, Value) {
    let results = log.results.iter().map(|r| {
        json!({"test": test_name(r.kind), "result": r.result, "outcome": r.outcome(), "segment": r.segment,
            "power_on_hours": r.power_on_hours, "nsid": r.nsid, "lba": r.lba, "status": r.status.map(|s| s.to_string())})
    });
    let running = (log.current != 0).then(|| test_name(log.current));
    let value = json!({"running": running, "completion": log.completion, "results": results.collect::<Vec<_>>()});
    let mut text = match running {
        Some(test) => format!("  a self-test runs ({test}): {} % done\n", log.completion),
        None => "  no self-test runs\n".to_owned(),
    };
    if !log.results.is_empty() {
        let rows = log.results.iter().map(|r| {
            let or_none = |n: Option<u64>| n.map_or("-".to_owned(), |n| n.to_string());
            let nsid = r.nsid.map(u64::from).filter(|id| *id != u64::from(u32::MAX));
            vec![
                format!("  {}", test_name(r.kind)),
                r.power_on_hours.to_string(),
                or_none(nsid),
                or_none(r.lba),
                r.outcome().to_owned(),
            ]
        });
        text += &output::table(["  test", ">hours", ">namespace", ">block", "result"], rows);
    }
    (text, value)
}

fn sanitize(status: &SanitizeStatus) -> (String, Value) {
    let percent = (status.status == 2).then(|| u32::from(status.progress) * 100 / 65536);
    let [overwrite, block, crypto] = status.estimates;
    let value = json!({"sprog": status.progress, "status": status.status, "outcome": status.outcome(), "percent": percent,
        "passes": status.passes, "global_data_erased": status.global_data_erased, "scdw10": status.cdw10,
        "estimate_overwrite": overwrite, "estimate_block_erase": block, "estimate_crypto_erase": crypto});
    let done = percent.map_or(String::new(), |percent| format!(": {percent} %"));
    let seconds = |estimate: Option<u32>| estimate.map_or("not reported".to_owned(), |s| format!("{s} s"));
    let text = output::pairs([
        ("last operation", format!("{}{done}", status.outcome())),
        ("nothing written since", if status.global_data_erased { "yes" } else { "no" }.to_owned()),
        ("overwrite takes", seconds(overwrite)),
        ("block erase takes", seconds(block)),
        ("crypto erase takes", seconds(crypto)),
    ]);
    (text, value)
}

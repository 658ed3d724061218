//! `wholebar nvme zns`: zones of a namespace, with nvme-cli's options.

use super::admin::{self, Destroys, dword, number};
use super::{Controller, status_name};
use crate::output;
use crate::storage::Storage;
use anyhow::{Result, bail};
use clap::ValueEnum;
use serde_json::json;
use std::time::Duration;
use wholebar::block::{Data, Op, Request, Status};
use wholebar::nvme::{Queue, QueueOptions, Zone, ZoneAction, ZoneReport, ZoneState};

/// Report, append to, open, close, finish and reset zones of a zoned namespace
#[derive(clap::Subcommand)]
pub enum Command {
    #[command(alias = "report-zones")]
    Report(ReportArgs),
    #[command(alias = "zone-append")]
    Append(AppendArgs),
    /// Open a zone, so that it stays open until it is closed or full
    #[command(alias = "open-zone", after_help = "Examples:\n  wholebar nvme zns open 0000:01:00.0 --start-lba 0x8000")]
    Open(ChangeArgs),
    /// Close an open zone, so that others can be opened
    #[command(alias = "close-zone", after_help = "Examples:\n  wholebar nvme zns close 0000:01:00.0 --select-all")]
    Close(ChangeArgs),
    /// Make a zone full: nothing more can be written to it until it is reset
    #[command(
        alias = "finish-zone",
        after_help = "Examples:\n  wholebar nvme zns finish 0000:01:00.0 --start-lba 0x8000 --json"
    )]
    Finish(ChangeArgs),
    /// Make a zone empty. WHAT WAS IN IT IS LOST
    #[command(
        alias = "reset-zone",
        after_help = "Examples:\n  wholebar nvme zns reset 0000:01:00.0 --start-lba 0x8000\n  wholebar nvme zns reset sim:nvme,zoned=1 --select-all --force"
    )]
    Reset(LossArgs),
    /// Take a read only zone offline, for good. WHAT WAS IN IT IS LOST
    #[command(
        alias = "offline-zone",
        after_help = "Examples:\n  wholebar nvme zns offline 0000:01:00.0 --start-lba 0x8000"
    )]
    Offline(LossArgs),
}

/// Show the zones of a namespace, how far they are written, and their states
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme zns report sim:nvme,size=256M,zoned=1
  wholebar nvme zns report 0000:01:00.0 --state imp-opened --json
  wholebar nvme zns report 0000:01:00.0 --start-lba 0x8000 --descs 4")]
pub struct ReportArgs {
    /// The NVMe controller
    target: String,
    /// The namespace
    #[arg(short, long, value_name = "ID", value_parser = dword, default_value = "1")]
    namespace_id: u32,
    /// A block of the first zone that is shown
    #[arg(short, long, value_name = "LBA", value_parser = number, default_value = "0")]
    start_lba: u64,
    /// As many zones at most [default: all]
    #[arg(short, long, value_name = "N")]
    descs: Option<usize>,
    /// Zones in this state alone
    #[arg(short = 'S', long, value_enum, default_value = "all")]
    state: State,
    /// With their descriptor extensions
    #[arg(short, long)]
    extended: bool,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// Append a file to a zone, and show at which blocks it is
///
/// In as many appends as it takes, one after the other.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme zns append 0000:01:00.0 --zslba 0x8000 --data log.bin
  head -c 4096 /dev/urandom | wholebar nvme zns append sim:nvme,zoned=1 --data - --json")]
pub struct AppendArgs {
    /// The NVMe controller
    target: String,
    /// The namespace
    #[arg(short, long, value_name = "ID", value_parser = dword, default_value = "1")]
    namespace_id: u32,
    /// The first block of the zone
    #[arg(short = 's', long, value_name = "LBA", value_parser = number, default_value = "0")]
    zslba: u64,
    /// The data: whole blocks; - is standard input
    #[arg(short, long, value_name = "FILE")]
    data: String,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// Which zones are changed.
#[derive(clap::Args)]
struct Chosen {
    /// The namespace
    #[arg(short, long, value_name = "ID", value_parser = dword, default_value = "1")]
    namespace_id: u32,
    /// The first block of the zone
    #[arg(short, long, value_name = "LBA", value_parser = number, conflicts_with = "select_all", required_unless_present = "select_all")]
    start_lba: Option<u64>,
    /// All zones whose state allows it
    #[arg(short = 'a', long)]
    select_all: bool,
}

#[derive(clap::Args)]
pub struct ChangeArgs {
    /// The NVMe controller
    target: String,
    #[command(flatten)]
    chosen: Chosen,
    /// How long it may take, in milliseconds
    #[arg(short, long, value_name = "MS", default_value = "600000")]
    timeout: u64,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub struct LossArgs {
    #[command(flatten)]
    chosen: Chosen,
    #[command(flatten)]
    common: Destroys,
}

/// By nvme-cli's numbers, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum State {
    #[value(alias = "0")]
    All,
    #[value(alias = "1")]
    Empty,
    #[value(alias = "2")]
    ImpOpened,
    #[value(alias = "3")]
    ExpOpened,
    #[value(alias = "4")]
    Closed,
    #[value(alias = "5")]
    Full,
    #[value(alias = "6")]
    Readonly,
    #[value(alias = "7")]
    Offline,
}

impl State {
    fn filter(self) -> Option<ZoneState> {
        Some(match self {
            Self::All => return None,
            Self::Empty => ZoneState::Empty,
            Self::ImpOpened => ZoneState::ImplicitlyOpened,
            Self::ExpOpened => ZoneState::ExplicitlyOpened,
            Self::Closed => ZoneState::Closed,
            Self::Full => ZoneState::Full,
            Self::Readonly => ZoneState::ReadOnly,
            Self::Offline => ZoneState::Offline,
        })
    }
}

pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Report(args) => report(args),
        Command::Append(args) => append(args),
        Command::Open(args) => args.run(ZoneAction::Open, "open"),
        Command::Close(args) => args.run(ZoneAction::Close, "closed"),
        Command::Finish(args) => args.run(ZoneAction::Finish, "full"),
        Command::Reset(args) => args.run(ZoneAction::Reset, "empty", "Reset"),
        Command::Offline(args) => args.run(ZoneAction::Offline, "offline", "Take offline"),
    }
}

fn report(args: ReportArgs) -> Result<()> {
    let controller = admin::open(&args.target)?;
    let mut queue = queue(&controller)?;
    let ReportArgs { start_lba: from, descs: limit, extended, .. } = args;
    let zones = queue.zones(args.namespace_id, ZoneReport { from, state: args.state.filter(), extended, limit })?;
    if args.json {
        let list: Vec<_> = zones.iter().map(value).collect();
        return output::print_json(&json!({"schema": "wholebar.zns-report/1", "target": args.target,
            "nsid": args.namespace_id, "nr_zones": zones.len(), "zone_list": list}));
    }
    let rows = zones.iter().map(|zone| {
        let mut row = vec![
            zone.start.to_string(),
            zone.capacity.to_string(),
            zone.write_pointer.map_or("-".to_owned(), |lba| lba.to_string()),
            state(zone),
            format!("{:#x}", zone.attributes),
        ];
        row.extend(args.extended.then(|| admin::hex(&zone.extension)));
        row
    });
    let columns = [">  slba", ">cap", ">wp", "state", "attrs"].into_iter().chain(args.extended.then_some("ext"));
    let table = output::table(columns, rows);
    output::print(format!("{}: namespace {}, {} zones\n{table}", args.target, args.namespace_id, zones.len()))
}

fn state(zone: &Zone) -> String {
    zone.state.map_or("?", ZoneState::name).to_owned()
}

/// By nvme-cli's names.
fn value(zone: &Zone) -> serde_json::Value {
    json!({
        "slba": zone.start,
        "wp": zone.write_pointer,
        "cap": zone.capacity,
        "state": state(zone),
        "type": zone.kind,
        "attrs": zone.attributes,
        "ext_data": (!zone.extension.is_empty()).then(|| admin::hex(&zone.extension)),
    })
}

/// The largest file that is appended.
const MOST: u64 = 1 << 30;

fn append(args: AppendArgs) -> Result<()> {
    let AppendArgs { namespace_id: nsid, zslba, .. } = args;
    let bytes = admin::read_file(&args.data, MOST)?;
    let controller = admin::open(&args.target)?;
    let namespace = controller.namespace(nsid)?;
    let block = namespace.block_size as usize;
    if bytes.is_empty() || !bytes.len().is_multiple_of(block) {
        bail!("{} has {} bytes: appends are whole blocks of {block}", args.data, bytes.len());
    }
    let limit = controller.identity().max_append.unwrap_or(u64::MAX).min(controller.nvme.max_transfer().into());
    let piece = (limit as usize / block * block).min(bytes.len());
    let (mut queue, pool) = controller.queue_and_buffers(nsid, 1, piece as u32)?;
    let mut found: Vec<(u64, usize)> = Vec::new();
    for part in bytes.chunks(piece) {
        let Some(mut buf) = pool.get_len(part.len() as u32) else { bail!("no buffer is left") };
        buf.copy_from(part);
        let request = Request { tag: 0, nsid, op: Op::Write { lba: zslba }, data: Data::One(buf), deadline: None };
        queue.0.submit_append(request).map_err(|rejected| anyhow::anyhow!("{}: {}", args.target, rejected.why))?;
        let (status, lba) = completed(&mut queue.0);
        if status != Status::Ok {
            let done: usize = found.iter().map(|(_, blocks)| blocks * block).sum();
            bail!("{}: after {done} bytes, an append to the zone at {zslba}: {}", args.target, status_name(status));
        }
        found.push((lba, part.len() / block));
    }
    if args.json {
        let list: Vec<_> = found.iter().map(|(lba, blocks)| json!({"lba": lba, "blocks": blocks})).collect();
        return output::print_json(&json!({"schema": "wholebar.zns-append/1", "target": args.target, "nsid": nsid,
            "zslba": zslba, "appends": list}));
    }
    let lines = found.iter().map(|(lba, blocks)| format!("{}: {blocks} blocks appended at {lba}\n", args.target));
    output::print(lines.collect::<String>())
}

impl Chosen {
    /// Changes the zones; `now` says what they are then.
    fn change(&self, controller: &Controller, action: ZoneAction, now: &str, as_json: bool) -> Result<()> {
        let (target, nsid) = (&controller.name, self.namespace_id);
        controller.namespace(nsid)?;
        let mut queue = queue(controller)?;
        let sent = queue.submit_zone_management(0, nsid, action, self.start_lba, None);
        sent.map_err(|why| anyhow::anyhow!("{target}: {why}"))?;
        let (status, _) = completed(&mut queue);
        if status != Status::Ok {
            bail!("{target}: {}: {}", self.what(), status_name(status));
        }
        match as_json {
            true => output::print_json(&json!({"schema": "wholebar.zns-change/1", "target": target, "nsid": nsid,
                "slba": self.start_lba, "state": now})),
            false => output::print(format!("{target}: {} of namespace {nsid}: {now}\n", self.what())),
        }
    }

    fn what(&self) -> String {
        self.start_lba.map_or("all zones whose state allows it".to_owned(), |lba| format!("the zone at {lba}"))
    }
}

impl ChangeArgs {
    fn run(&self, action: ZoneAction, now: &str) -> Result<()> {
        let controller = admin::open_for(&self.target, Some(Duration::from_millis(self.timeout)))?;
        self.chosen.change(&controller, action, now, self.json)
    }
}

impl LossArgs {
    fn run(&self, action: ZoneAction, now: &str, verb: &str) -> Result<()> {
        let Destroys { target, timeout, danger, json } = &self.common;
        danger.check(target)?;
        let controller = admin::open_for(target, Some(Duration::from_millis(*timeout)))?;
        let (what, nsid) = (self.chosen.what(), self.chosen.namespace_id);
        danger
            .ask(&format!("{verb} {what} of namespace {nsid} of {}? What is there is lost.", controller.described()))?;
        self.chosen.change(&controller, action, now, *json)
    }
}

/// A queue for one command at a time.
fn queue(controller: &Controller) -> Result<Queue> {
    Ok(controller.nvme.queue(QueueOptions { entries: Some(2), ..QueueOptions::default() })?)
}

/// Waits for the one command that was posted: its status, and what it has to tell. It ends in time, or is given up.
fn completed(queue: &mut Queue) -> (Status, u64) {
    queue.ring();
    let mut done = None;
    while done.is_none() {
        queue.poll_results(1, |completion, result| done = Some((completion.status, result)));
        queue.check_timeouts();
        std::thread::yield_now();
    }
    done.unwrap_or((Status::Aborted, 0))
}

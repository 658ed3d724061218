//! `wholebar nvme resv`: reservations of a namespace that several hosts share, with nvme-cli's options.

use super::admin::{self, dword, number};
use super::{Controller, admin::hex};
use crate::args::{self, Usage};
use crate::{output, signal};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use wholebar::nvme::{
    AcquireAction, Event, Options, Queue, QueueOptions, Register, RegisterAction, ReleaseAction, ReservationType,
};

/// Register for a namespace, reserve it, release it, and show who has it
#[derive(clap::Subcommand)]
pub enum Command {
    Register(RegisterArgs),
    Acquire(AcquireArgs),
    Release(ReleaseArgs),
    /// Show who is registered for a namespace, and who holds it
    #[command(after_help = "\
Examples:
  wholebar nvme resv report 0000:01:00.0 --namespace-id 1
  wholebar nvme resv report sim:nvme,subsys=a --json")]
    Report(Of),
    Notifications(NotificationArgs),
}

#[derive(clap::Args)]
pub struct Of {
    /// The NVMe controller
    target: String,
    /// The namespace
    #[arg(short, long, value_name = "ID", value_parser = dword, default_value = "1")]
    namespace_id: u32,
    /// This host's identifier, a UUID [default: what is in /etc/nvme/hostid, or none]
    #[arg(long, value_name = "UUID", value_parser = uuid)]
    hostid: Option<[u8; 16]>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// Register this host for a namespace, end that, or change its key
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme resv register 0000:01:00.0 --nrkey 0x1234
  wholebar nvme resv register 0000:01:00.0 --rrega 1 --crkey 0x1234
  wholebar nvme resv register 0000:01:00.0 --rrega 2 --crkey 0x1234 --nrkey 0x5678")]
pub struct RegisterArgs {
    #[command(flatten)]
    of: Of,
    /// What is done: 0 registers, 1 ends the registration, 2 changes the key
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=2), default_value = "0")]
    rrega: u8,
    /// The key that this host is registered with
    #[arg(short, long, value_name = "KEY", value_parser = number, default_value = "0")]
    crkey: u64,
    /// Its new key
    #[arg(short = 'k', long, value_name = "KEY", value_parser = number, default_value = "0")]
    nrkey: u64,
    /// Whether registrations last when the power goes: 0 as it is, 2 no, 3 yes
    #[arg(short = 'p', long, value_name = "N", value_parser = ["0", "2", "3"], default_value = "0")]
    cptpl: String,
    /// The key need not be right
    #[arg(short, long)]
    iekey: bool,
}

/// Reserve a namespace, or take it from another host
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme resv acquire 0000:01:00.0 --crkey 0x1234 --rtype 1
  wholebar nvme resv acquire 0000:01:00.0 --racqa 1 --crkey 0x1234 --prkey 0x5678 --rtype 1

Types: 1 write exclusive, 2 exclusive access, 3 and 4 the same for registrants
only, 5 and 6 for all registrants.")]
pub struct AcquireArgs {
    #[command(flatten)]
    of: Of,
    /// What is done: 0 reserves, 1 preempts who has --prkey, 2 and aborts its commands
    #[arg(short = 'a', long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=2), default_value = "0")]
    racqa: u8,
    /// The key that this host is registered with
    #[arg(short, long, value_name = "KEY", value_parser = number)]
    crkey: u64,
    /// The key of the host that is preempted
    #[arg(short, long, value_name = "KEY", value_parser = number, default_value = "0")]
    prkey: u64,
    /// The type of the reservation
    #[arg(short = 't', long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=6), default_value = "1")]
    rtype: u8,
}

/// End a reservation of this host's, or clear all reservations and registrations
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme resv release 0000:01:00.0 --crkey 0x1234 --rtype 1
  wholebar nvme resv release 0000:01:00.0 --crkey 0x1234 --rrela 1")]
pub struct ReleaseArgs {
    #[command(flatten)]
    of: Of,
    /// What is done: 0 ends this host's reservation, 1 clears all
    #[arg(short = 'a', long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=1), default_value = "0")]
    rrela: u8,
    /// The key that this host is registered with
    #[arg(short, long, value_name = "KEY", value_parser = number)]
    crkey: u64,
    /// The type of the reservation
    #[arg(short = 't', long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=6), default_value = "1")]
    rtype: u8,
}

/// Show what other hosts do to the reservation of a namespace, as the controller tells it
///
/// A host is told only while it, or whoever has its identifier, is registered.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme resv notifications 0000:01:00.0             until Ctrl-C
  wholebar nvme resv notifications 0000:01:00.0 --count 1 --time 60 --json")]
pub struct NotificationArgs {
    #[command(flatten)]
    of: Of,
    /// End after so many
    #[arg(long, value_name = "N")]
    count: Option<usize>,
    /// End after so long
    #[arg(long, value_name = "SECONDS", value_parser = args::seconds)]
    time: Option<Duration>,
}

/// Where nvme-cli and Linux have a host's identifier.
const HOST_ID: &str = "/etc/nvme/hostid";

fn uuid(text: &str) -> Result<[u8; 16], String> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let value = if digits.len() == 32 { u128::from_str_radix(&digits, 16).ok() } else { None };
    let value = value.filter(|value| *value != 0).map(u128::to_be_bytes);
    value.ok_or_else(|| format!("{text:?} is no UUID: write it like 5a1d3b2e-7c94-4a6f-8e10-d2f3c4b5a697"))
}

pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Register(args) => register(&args),
        Command::Acquire(args) => acquire(&args),
        Command::Release(args) => release(&args),
        Command::Report(args) => report(&args),
        Command::Notifications(args) => notifications(&args),
    }
}

impl Of {
    /// The controller, which knows this host, and a queue of it.
    fn open(&self) -> Result<(Controller, Queue)> {
        let known = || match std::fs::read_to_string(HOST_ID) {
            Ok(text) => uuid(text.trim()).map(Some).map_err(|why| anyhow::anyhow!("{HOST_ID}: {why}")),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context(format!("cannot read {HOST_ID}")),
        };
        let host_id = self.hostid.map_or_else(known, |id| Ok(Some(id)))?;
        let controller = admin::open_with(&self.target, Options { host_id, ..Options::default() })?;
        let queue = controller.nvme.queue(QueueOptions::default())?;
        Ok((controller, queue))
    }

    fn done(&self, what: &str, members: Value) -> Result<()> {
        let Self { target, namespace_id: nsid, json, .. } = self;
        match json {
            true => output::print_json(&json!({"schema": "wholebar.resv/1", "target": target, "nsid": nsid,
                "done": what, "fields": members})),
            false => output::print(format!("{target}: namespace {nsid}: {what}\n")),
        }
    }
}

fn register(args: &RegisterArgs) -> Result<()> {
    let RegisterArgs { rrega, crkey, nrkey, iekey, .. } = *args;
    let (action, what) = match rrega {
        0 => (RegisterAction::Register { key: nrkey }, "registered"),
        1 => (RegisterAction::Unregister { key: crkey }, "not registered any more"),
        _ => (RegisterAction::Replace { current: crkey, new: nrkey }, "registered with another key"),
    };
    if rrega != 1 && nrkey == 0 {
        bail!(Usage("a key is not 0: --nrkey says it".to_owned()));
    }
    let persist = match &args.cptpl[..] {
        "2" => Some(false),
        "3" => Some(true),
        _ => None,
    };
    let (_controller, mut queue) = args.of.open()?;
    queue.reservation_register(args.of.namespace_id, Register { action, ignore_key: iekey, persist })?;
    args.of.done(what, json!({"rrega": rrega, "crkey": crkey, "nrkey": nrkey}))
}

fn kind(rtype: u8) -> Result<ReservationType> {
    ReservationType::of(rtype).with_context(|| format!("{rtype} is no type of reservations"))
}

fn acquire(args: &AcquireArgs) -> Result<()> {
    let AcquireArgs { racqa, crkey, prkey, rtype, .. } = *args;
    let (action, what) = match racqa {
        0 => (AcquireAction::Acquire, "reserved"),
        1 => (AcquireAction::Preempt { key: prkey }, "preempted"),
        _ => (AcquireAction::PreemptAndAbort { key: prkey }, "preempted"),
    };
    let (_controller, mut queue) = args.of.open()?;
    queue.reservation_acquire(args.of.namespace_id, crkey, action, kind(rtype)?)?;
    args.of.done(what, json!({"racqa": racqa, "crkey": crkey, "prkey": prkey, "rtype": rtype}))
}

fn release(args: &ReleaseArgs) -> Result<()> {
    let ReleaseArgs { rrela, crkey, rtype, .. } = *args;
    let (action, what) = match rrela {
        0 => (ReleaseAction::Release(kind(rtype)?), "released"),
        _ => (ReleaseAction::Clear, "cleared"),
    };
    let (_controller, mut queue) = args.of.open()?;
    queue.reservation_release(args.of.namespace_id, crkey, action)?;
    args.of.done(what, json!({"rrela": rrela, "crkey": crkey, "rtype": rtype}))
}

fn report(args: &Of) -> Result<()> {
    let (_controller, mut queue) = args.open()?;
    let found = queue.reservations(args.namespace_id)?;
    let name = found.kind.map(ReservationType::name);
    if args.json {
        let list: Vec<_> = found
            .registrants
            .iter()
            .map(|r| json!({"cntlid": r.controller, "rcsts": u8::from(r.holds), "hostid": hex(&r.host), "rkey": r.key}))
            .collect();
        return output::print_json(&json!({"schema": "wholebar.resv-report/1", "target": args.target,
            "nsid": args.namespace_id, "gen": found.generation, "rtype": found.kind.map_or(0, |kind| kind as u8),
            "type": name, "ptpls": found.persist, "regctl": list.len(), "regctls": list}));
    }
    let rows = found.registrants.iter().map(|r| {
        let holds = if r.holds { "yes" } else { "no" };
        vec![r.controller.to_string(), holds.to_owned(), format!("{:#x}", r.key), hex(&r.host)]
    });
    let table = output::table([">controller", "holds", ">key", "host"], rows);
    let title = format!(
        "{}\nnamespace {}: {}, generation {}",
        args.target,
        args.namespace_id,
        name.unwrap_or("not reserved"),
        found.generation
    );
    output::print(format!("{title}\n{table}"))
}

fn notifications(args: &NotificationArgs) -> Result<()> {
    let NotificationArgs { of, count, time } = args;
    let interrupted = signal::interrupted()?;
    let (controller, _queue) = of.open()?;
    let nvme = &controller.nvme;
    // Of one without reservations, this is an error.
    let mut waiting = nvme.reservation_notifications()?;
    output::note(format!("{} tells what happens: Ctrl-C ends this", of.target));
    let (began, mut seen) = (Instant::now(), 0);
    loop {
        for page in waiting.drain(..).filter(|page| page.nsid == of.namespace_id) {
            let (number, change) = (page.number, page.change);
            match of.json {
                true => output::print_json(&json!({"schema": "wholebar.resv-notification/1", "target": of.target,
                    "nsid": page.nsid, "lpc": number, "change": change.name()}))?,
                false => output::print(format!("namespace {}: {change} (number {number})\n", page.nsid))?,
            }
            seen += 1;
            if count.is_some_and(|count| seen >= count) {
                return Ok(());
            }
        }
        if interrupted.load(Ordering::Relaxed) || time.is_some_and(|time| began.elapsed() >= time) {
            return Ok(());
        }
        nvme.check()?;
        // An event says that there is something; the rest of the time it sleeps, and looks whether it is to end.
        match nvme.events().recv_timeout(LOOK) {
            Ok(Event::Driver(event)) if event.is_reservation() => waiting = nvme.reservation_notifications()?,
            _ => {}
        }
    }
}

/// How often it is looked whether a wait is to end.
const LOOK: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_identifiers_are_uuids() {
        let id = uuid("5a1d3b2e-7c94-4a6f-8e10-d2f3c4b5a697").unwrap();
        assert_eq!((id[0], id[15]), (0x5a, 0x97));
        for bad in ["", "5a1d", "00000000-0000-0000-0000-000000000000", "5a1d3b2e-7c94-4a6f-8e10-d2f3c4b5a69g"] {
            assert!(uuid(bad).is_err(), "{bad}");
        }
    }
}

//! `wholebar nvme fdp`: flexible data placement, with nvme-cli's names and options.

use super::admin::{self, byte, dword, word};
use crate::args::Usage;
use crate::output;
use anyhow::{Result, bail};
use serde_json::{Value, json};
use wholebar::nvme::{FdpConfig, FdpEvent, FdpMode, QueueOptions, fdp_event_name};

/// Show how data is placed on a controller's media, and change it
///
/// `wholebar nvme write --dir-type 2 --dir-spec PID` writes to a placement.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Show the configurations that an endurance group can have
    #[command(after_help = "\
Examples:
  wholebar nvme fdp configs sim:nvme,fdp=1
  wholebar nvme fdp configs 0000:01:00.0 --endgrp-id 1 --json")]
    Configs(GroupArgs),
    /// Show who uses each reclaim unit handle of an endurance group
    #[command(after_help = "Examples:\n  wholebar nvme fdp usage 0000:01:00.0 --endgrp-id 1")]
    Usage(GroupArgs),
    /// Show what was written to an endurance group, by hosts and in all
    #[command(after_help = "\
Examples:
  wholebar nvme fdp stats sim:nvme,fdp=1
  wholebar nvme fdp stats 0000:01:00.0 --endgrp-id 1 --json")]
    Stats(GroupArgs),
    Events(EventsArgs),
    /// Show the placement identifiers of a namespace, and what room their reclaim units have
    #[command(after_help = "\
Examples:
  wholebar nvme fdp status sim:nvme,fdp=1,fdp_nruh=4
  wholebar nvme fdp status 0000:01:00.0 --namespace-id 2 --json")]
    Status(StatusArgs),
    Update(UpdateArgs),
    SetEvents(SetEventsArgs),
    Feature(FeatureArgs),
}

#[derive(clap::Args)]
pub struct GroupArgs {
    /// The NVMe controller
    target: String,
    /// The endurance group
    #[arg(short, long, value_name = "ID", value_parser = word, default_value = "1")]
    endgrp_id: u16,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// Show what happened to the placement of data, as far as that is recorded
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme fdp events 0000:01:00.0 --endgrp-id 1 --host-events
  wholebar nvme fdp events sim:nvme,fdp=1 --json")]
pub struct EventsArgs {
    #[command(flatten)]
    of: GroupArgs,
    /// What hosts caused, and not what the controller did of its own
    #[arg(short = 'E', long)]
    host_events: bool,
}

#[derive(clap::Args)]
pub struct StatusArgs {
    /// The NVMe controller
    target: String,
    /// The namespace
    #[arg(short, long, value_name = "ID", value_parser = dword, default_value = "1")]
    namespace_id: u32,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// Have placement identifiers refer to other, empty reclaim units
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme fdp update 0000:01:00.0 --namespace-id 2 --pids 0,3
  wholebar nvme fdp update sim:nvme,fdp=1 --pids 1 --json")]
pub struct UpdateArgs {
    #[command(flatten)]
    of: StatusArgs,
    /// The placement identifiers
    #[arg(short, long, value_name = "IDS", value_parser = word, value_delimiter = ',', required = true)]
    pids: Vec<u16>,
}

/// Have events of a placement handle be recorded, or not; without types, show which are
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme fdp set-events 0000:01:00.0 -n 2 --placement-handle 0
  wholebar nvme fdp set-events 0000:01:00.0 -n 2 --placement-handle 0 --event-types 0,3 --enable")]
pub struct SetEventsArgs {
    #[command(flatten)]
    of: StatusArgs,
    /// The placement handle
    #[arg(short, long, value_name = "N", value_parser = word, default_value = "0")]
    placement_handle: u16,
    /// The types of events
    #[arg(short = 't', long, value_name = "TYPES", value_parser = byte, value_delimiter = ',')]
    event_types: Vec<u8>,
    /// Record them; without this they are not
    #[arg(short, long, requires = "event_types")]
    enable: bool,
}

/// Show whether data is placed in an endurance group, or change it while it has no namespaces
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme fdp feature 0000:01:00.0 --endgrp-id 1
  wholebar nvme fdp feature 0000:01:00.0 --endgrp-id 1 --enable-conf-idx 0")]
pub struct FeatureArgs {
    #[command(flatten)]
    of: GroupArgs,
    /// Place it by this configuration
    #[arg(short = 'c', long, value_name = "N", value_parser = byte)]
    enable_conf_idx: Option<u8>,
    /// Do not place it
    #[arg(short, long, conflicts_with = "enable_conf_idx")]
    disable: bool,
}

pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Configs(args) => configs(&args),
        Command::Usage(args) => usage(&args),
        Command::Stats(args) => stats(&args),
        Command::Events(args) => events(&args),
        Command::Status(args) => status(&args),
        Command::Update(args) => update(&args),
        Command::SetEvents(args) => set_events(&args),
        Command::Feature(args) => feature(&args),
    }
}

impl GroupArgs {
    /// Shows JSON with these members, or a text below a title.
    fn show(&self, what: &str, members: Value, text: String) -> Result<()> {
        let Self { target, endgrp_id, json } = self;
        if !json {
            return output::print(format!("{target}: endurance group {endgrp_id}\n{text}"));
        }
        let mut all = json!({"schema": format!("wholebar.fdp-{what}/1"), "target": target, "endgrp_id": endgrp_id});
        merge(&mut all, members);
        output::print_json(&all)
    }
}

/// Puts the members of an object into another one.
fn merge(all: &mut Value, members: Value) {
    if let (Value::Object(all), Value::Object(members)) = (all, members) {
        all.extend(members);
    }
}

fn configs(args: &GroupArgs) -> Result<()> {
    let configs = admin::open(&args.target)?.nvme.fdp_configs(args.endgrp_id)?;
    let value = |c: &FdpConfig| {
        json!({"valid": c.valid, "rgif": c.group_bits, "fdp_vwc": c.volatile_cache, "nrg": c.groups, "nruh": c.handle_count,
            "maxpids": c.max_placements, "nnss": c.namespaces, "runs": c.unit_size, "erutl": c.time_limit,
            "ruhs": c.handles.iter().map(|kind| json!({"ruht": kind})).collect::<Vec<_>>()})
    };
    let rows = configs.iter().zip(0..).map(|(c, index)| {
        let kinds = |kind: u8| c.handles.iter().filter(|k| **k == kind).count();
        vec![
            index.to_string(),
            if c.valid { "yes" } else { "no" }.to_owned(),
            c.groups.to_string(),
            c.handle_count.to_string(),
            format!("{} initially, {} always", kinds(1), kinds(2)),
            output::bytes(c.unit_size),
            c.group_bits.to_string(),
        ]
    });
    let columns = [">no", "valid", ">groups", ">handles", "kept apart", ">unit", ">rgif"];
    let table = output::table(columns, rows);
    args.show("configs", json!({"configs": configs.iter().map(value).collect::<Vec<_>>()}), table)
}

fn usage(args: &GroupArgs) -> Result<()> {
    let usage = admin::open(&args.target)?.nvme.fdp_usage(args.endgrp_id)?;
    let name = |who: u8| match who {
        0 => "nobody",
        1 => "hosts",
        2 => "the controller",
        _ => "?",
    };
    let rows = usage.iter().zip(0..).map(|(who, handle)| vec![handle.to_string(), name(*who).to_owned()]);
    let table = output::table([">handle", "used by"], rows);
    let ruhus: Vec<_> = usage.iter().map(|who| json!({"ruha": who})).collect();
    args.show("usage", json!({"nruh": usage.len(), "ruhus": ruhus}), table)
}

fn stats(args: &GroupArgs) -> Result<()> {
    let s = admin::open(&args.target)?.nvme.fdp_statistics(args.endgrp_id)?;
    let all = [("hbmw", "hosts wrote", s.host_written), ("mbmw", "media written", s.media_written)];
    let all: Vec<_> = all.into_iter().chain([("mbe", "media erased", s.media_erased)]).collect();
    let text = all.iter().map(|(_, name, bytes)| format!("{name:<14}  {bytes} bytes\n")).collect();
    // Numbers of 128 bits are more than JSON's readers take.
    let members =
        all.iter().map(|(key, _, bytes)| ((*key).to_owned(), json!(u64::try_from(*bytes).unwrap_or(u64::MAX))));
    args.show("stats", Value::Object(members.collect()), text)
}

fn events(args: &EventsArgs) -> Result<()> {
    let events = admin::open(&args.of.target)?.nvme.fdp_events(args.of.endgrp_id, args.host_events)?;
    let value = |e: &FdpEvent| {
        json!({"type": e.kind, "name": e.name(), "pid": e.placement, "timestamp": e.timestamp, "nsid": e.nsid,
            "rgid": e.unit.map(|unit| unit.0), "ruhid": e.unit.map(|unit| unit.1), "type_specific": admin::hex(&e.specific)})
    };
    let or_dash = |number: Option<u64>| number.map_or("-".to_owned(), |number| number.to_string());
    let rows = events.iter().map(|e| {
        vec![
            e.timestamp.to_string(),
            e.name().map_or_else(|| format!("type {:02x}h", e.kind), str::to_owned),
            or_dash(e.placement.map(Into::into)),
            or_dash(e.nsid.map(Into::into)),
            or_dash(e.unit.map(|unit| unit.1.into())),
        ]
    });
    let text = match events.is_empty() {
        true => "no events\n".to_owned(),
        false => output::table([">time, ms", "event", ">pid", ">ns", ">handle"], rows),
    };
    args.of.show("events", json!({"events": events.iter().map(value).collect::<Vec<_>>()}), text)
}

fn status(args: &StatusArgs) -> Result<()> {
    let controller = admin::open(&args.target)?;
    let units = controller.nvme.queue(QueueOptions::default())?.placements(args.namespace_id)?;
    if args.json {
        let list: Vec<_> = units
            .iter()
            .map(|u| json!({"pid": u.placement, "ruhid": u.handle, "earutr": u.time_left, "ruamw": u.blocks_left}))
            .collect();
        return output::print_json(&json!({"schema": "wholebar.fdp-status/1", "target": args.target,
            "nsid": args.namespace_id, "nruhsd": units.len(), "ruhss": list}));
    }
    let rows = units.iter().map(|u| {
        let time = if u.time_left == 0 { "-".to_owned() } else { format!("{} s", u.time_left) };
        vec![u.placement.to_string(), u.handle.to_string(), u.blocks_left.to_string(), time]
    });
    let table = output::table([">pid", ">handle", ">blocks left", ">time left"], rows);
    output::print(format!("{}: namespace {}, {} placements\n{table}", args.target, args.namespace_id, units.len()))
}

fn update(args: &UpdateArgs) -> Result<()> {
    let StatusArgs { target, namespace_id: nsid, json } = &args.of;
    if args.pids.len() > 65536 {
        bail!(Usage("--pids has more than the 65,536 of one command".to_owned()));
    }
    let controller = admin::open(target)?;
    controller.nvme.queue(QueueOptions::default())?.update_placements(*nsid, &args.pids)?;
    match json {
        true => output::print_json(
            &json!({"schema": "wholebar.fdp-update/1", "target": target, "nsid": nsid, "pids": args.pids}),
        ),
        false => output::print(format!("{target}: {} placements of namespace {nsid} are updated\n", args.pids.len())),
    }
}

fn set_events(args: &SetEventsArgs) -> Result<()> {
    let StatusArgs { target, namespace_id: nsid, json } = &args.of;
    let (handle, kinds) = (args.placement_handle, &args.event_types);
    if kinds.len() > 255 {
        bail!(Usage("--event-types has more than the 255 of one command".to_owned()));
    }
    let controller = admin::open(target)?;
    if !kinds.is_empty() {
        controller.nvme.set_fdp_events(*nsid, handle, kinds, args.enable)?;
    }
    let now = controller.nvme.fdp_event_config(*nsid, handle)?;
    if *json {
        let list: Vec<_> =
            now.iter().map(|e| json!({"type": e.kind, "name": fdp_event_name(e.kind), "enabled": e.enabled})).collect();
        return output::print_json(&json!({"schema": "wholebar.fdp-set-events/1", "target": target, "nsid": nsid,
            "placement_handle": handle, "events": list}));
    }
    let rows = now.iter().map(|event| {
        let recorded = if event.enabled { "yes" } else { "no" };
        vec![event.kind.to_string(), recorded.to_owned(), fdp_event_name(event.kind).unwrap_or("?").to_owned()]
    });
    let table = output::table([">type", "recorded", "event"], rows);
    output::print(format!("{target}: namespace {nsid}, placement handle {handle}\n{table}"))
}

fn feature(args: &FeatureArgs) -> Result<()> {
    let GroupArgs { target, endgrp_id: group, .. } = &args.of;
    let controller = admin::open(target)?;
    match (args.enable_conf_idx, args.disable) {
        (Some(config), _) => controller.nvme.set_fdp_mode(*group, FdpMode { enabled: true, config })?,
        (None, true) => controller.nvme.set_fdp_mode(*group, FdpMode { enabled: false, config: 0 })?,
        (None, false) => {}
    }
    let FdpMode { enabled, config } = controller.nvme.fdp_mode(*group)?;
    let text = match enabled {
        true => format!("data is placed by configuration {config}\n"),
        false => "data is not placed\n".to_owned(),
    };
    args.of.show("feature", json!({"fdpe": enabled, "fdpcidx": config}), text)
}

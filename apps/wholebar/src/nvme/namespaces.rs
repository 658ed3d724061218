//! `wholebar nvme create-ns`, `delete-ns`, `attach-ns` and `detach-ns`, with nvme-cli's options.

use super::admin::{self, Danger, Destroys, byte, dword, number, word};
use super::erase::format_of;
use crate::output;
use anyhow::{Result, bail};
use serde_json::json;
use std::time::Duration;
use wholebar::nvme::NewNamespace;

/// Create a namespace
///
/// It is attached to no controller: `wholebar nvme attach-ns` does that, or --attach.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme create-ns 0000:01:00.0 --nsze 0x100000 --block-size 4096 --attach
  wholebar nvme create-ns sim:nvme,spare=1G --nsze 2048 --json")]
pub struct CreateArgs {
    /// The NVMe controller
    target: String,
    /// Its blocks
    #[arg(short = 's', long, value_name = "N", value_parser = number)]
    nsze: u64,
    /// How many can be allocated at once [default: all]
    #[arg(short = 'c', long, value_name = "N", value_parser = number)]
    ncap: Option<u64>,
    /// The number of the LBA format, and bit 4 where metadata follows its block: as FLBAS
    #[arg(short = 'f', long, value_name = "N", value_parser = byte, conflicts_with = "block_size")]
    flbas: Option<u8>,
    /// Bytes of a block: the first LBA format that has them, without metadata
    #[arg(short, long, value_name = "BYTES")]
    block_size: Option<u64>,
    /// Protection information: its type, and bit 3 where it is first in the metadata
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=15), default_value = "0")]
    dps: u8,
    /// It may be attached to several controllers (1), or not (0)
    #[arg(short = 'm', long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=1), default_value = "0")]
    nmic: u8,
    /// Its ANA group
    #[arg(short, long, value_name = "ID", value_parser = dword, default_value = "0")]
    anagrp_id: u32,
    /// Its NVM set
    #[arg(short = 'i', long, value_name = "ID", value_parser = word, default_value = "0")]
    nvmset_id: u16,
    /// Its endurance group
    #[arg(short, long, value_name = "ID", value_parser = word, default_value = "0")]
    endg_id: u16,
    /// Attach it to this controller
    #[arg(long)]
    attach: bool,
    /// How long it may take, in milliseconds
    #[arg(short, long, value_name = "MS", default_value = "120000")]
    timeout: u64,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// Delete a namespace. WHAT WAS ON IT IS LOST
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme delete-ns 0000:01:00.0 --namespace-id 2
  wholebar nvme delete-ns sim:nvme,spare=1G,ns=2 --namespace-id 0xffffffff --force")]
pub struct DeleteArgs {
    /// The namespace; 0xffffffff for all of them
    #[arg(short, long, value_name = "ID", value_parser = dword)]
    namespace_id: u32,
    #[command(flatten)]
    common: Destroys,
}

/// Attach a namespace to controllers
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme attach-ns 0000:01:00.0 --namespace-id 2
  wholebar nvme attach-ns 0000:01:00.0 --namespace-id 2 --controllers 0,1")]
pub struct AttachArgs {
    #[command(flatten)]
    of: Attachment,
}

/// Detach a namespace from controllers: they do not have it any more
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme detach-ns 0000:01:00.0 --namespace-id 2
  wholebar nvme detach-ns 0000:01:00.0 --namespace-id 2 --controllers 0,1 --force")]
pub struct DetachArgs {
    #[command(flatten)]
    of: Attachment,
    #[command(flatten)]
    danger: Danger,
}

#[derive(clap::Args)]
struct Attachment {
    /// The NVMe controller
    target: String,
    /// The namespace
    #[arg(short, long, value_name = "ID", value_parser = dword)]
    namespace_id: u32,
    /// The controllers' identifiers [default: this one's]
    #[arg(short, long, value_name = "IDS", value_parser = word, value_delimiter = ',')]
    controllers: Vec<u16>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

pub fn create(args: CreateArgs) -> Result<()> {
    let controller = admin::open(&args.target)?;
    let flbas = match (args.flbas, args.block_size) {
        (Some(flbas), _) => flbas,
        // Of all namespaces alike, by the broadcast identifier (NVM Express Base 2.0, 5.17.2.1), or else of one that is there.
        (None, Some(bytes)) => {
            let there = controller.namespaces().first().map(|n| n.nsid);
            let format = format_of(&controller, u32::MAX, bytes);
            let format =
                format.or_else(|error| there.map_or(Err(error), |nsid| format_of(&controller, nsid, bytes)))?;
            format & 0xf | format >> 4 << 5
        }
        (None, None) => 0,
    };
    let new = NewNamespace {
        blocks: args.nsze,
        capacity: args.ncap.unwrap_or(args.nsze),
        lba_format: flbas & 0xf | flbas >> 5 << 4,
        metadata_extended: flbas & 1 << 4 != 0,
        protection: args.dps,
        shared: args.nmic != 0,
        ana_group: args.anagrp_id,
        nvm_set: args.nvmset_id,
        endurance_group: args.endg_id,
    };
    let nsid = controller.nvme.create_namespace(&new, Duration::from_millis(args.timeout))?;
    if args.attach {
        controller.nvme.attach_namespace(nsid, &[controller.identity().id])?;
    }
    match args.json {
        true => output::print_json(
            &json!({"schema": "wholebar.create-ns/1", "target": args.target, "nsid": nsid, "attached": args.attach}),
        ),
        false => output::print(format!("{}: namespace {nsid} is created\n", args.target)),
    }
}

pub fn delete(args: DeleteArgs) -> Result<()> {
    let Destroys { target, danger, json, .. } = &args.common;
    let (controller, timeout) = args.common.open()?;
    let nsid = args.namespace_id;
    let what = if nsid == u32::MAX { "all namespaces".to_owned() } else { format!("namespace {nsid}") };
    danger.ask(&format!("Delete {what} of {}? What is on it is lost.", controller.described()))?;
    controller.nvme.delete_namespace(nsid, timeout)?;
    match json {
        true => output::print_json(&json!({"schema": "wholebar.delete-ns/1", "target": target, "nsid": nsid})),
        false => output::print(format!("{target}: {what} deleted\n")),
    }
}

pub fn attach(args: AttachArgs) -> Result<()> {
    args.of.run("attached", |nvme, nsid, controllers| Ok(nvme.attach_namespace(nsid, controllers)?))
}

pub fn detach(args: DetachArgs) -> Result<()> {
    args.danger.check(&args.of.target)?;
    let danger = &args.danger;
    args.of.run("detached", |nvme, nsid, controllers| {
        danger.ask(&format!("Detach namespace {nsid} from its controllers? Who uses it loses it."))?;
        Ok(nvme.detach_namespace(nsid, controllers)?)
    })
}

impl Attachment {
    fn run(&self, what: &str, go: impl FnOnce(&wholebar::nvme::Nvme, u32, &[u16]) -> Result<()>) -> Result<()> {
        if self.controllers.len() > 2047 {
            bail!("{} controllers are more than one command takes, which is 2047", self.controllers.len());
        }
        let controller = admin::open(&self.target)?;
        let own = [controller.identity().id];
        let controllers = if self.controllers.is_empty() { &own[..] } else { &self.controllers };
        go(&controller.nvme, self.namespace_id, controllers)?;
        match self.json {
            true => output::print_json(&json!({"schema": "wholebar.attach-ns/1", "target": self.target,
                "nsid": self.namespace_id, "controllers": controllers, "done": what})),
            false => output::print(format!("{}: namespace {} is {what}\n", self.target, self.namespace_id)),
        }
    }
}

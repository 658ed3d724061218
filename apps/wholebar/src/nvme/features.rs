//! `wholebar nvme get-feature` and `set-feature`, with nvme-cli's options.

use super::Controller;
use super::admin::{self, Show, byte, dump, dword, hex};
use crate::args::{Size, Usage};
use crate::output;
use anyhow::{Result, bail};
use clap::ValueEnum;
use serde_json::json;
use wholebar::nvme::Error;
use wholebar::nvme::feature::{self, Select};

/// Show a feature of a controller, or all that it has
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme get-feature sim:nvme                             all of them
  wholebar nvme get-feature sim:nvme --feature-id temp-thresh
  wholebar nvme get-feature 0000:01:00.0 -f 0x0e --json

Names: arbitration power-mgmt temp-thresh error-recovery vwc num-queues
irq-coalesce irq-config write-atomicity async-event auto-pst host-mem-buf
timestamp kato hctm nopsc host-behavior sanitize sw-progress host-id
write-protect")]
pub struct GetArgs {
    /// The NVMe controller
    target: String,
    /// The feature: its name or number [default: all]
    #[arg(short, long, value_name = "FEATURE", value_parser = feature_id)]
    feature_id: Option<u8>,
    /// The namespace
    #[arg(short, long, value_name = "ID", value_parser = dword, default_value = "0")]
    namespace_id: u32,
    /// Which value
    #[arg(short, long, value_enum, default_value = "current")]
    sel: Sel,
    /// Dword 11: which sensor, vector, ...
    #[arg(short = 'c', long, value_name = "N", value_parser = dword, default_value = "0")]
    cdw11: u32,
    /// Bytes of its data [default: the feature's]
    #[arg(short = 'l', long, value_name = "SIZE", requires = "feature_id")]
    data_len: Option<Size>,
    #[command(flatten)]
    show: Show,
}

/// Set a feature of a controller
///
/// The controller is reset when it is opened the next time, by any program: what is set lasts as long where the controller saves it (--save).
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme set-feature sim:nvme --feature-id temp-thresh --value 353
  wholebar nvme set-feature 0000:01:00.0 -f host-id --data id.bin --save")]
pub struct SetArgs {
    /// The NVMe controller
    target: String,
    /// The feature: its name or number
    #[arg(short, long, value_name = "FEATURE", value_parser = feature_id)]
    feature_id: u8,
    /// The namespace
    #[arg(short, long, value_name = "ID", value_parser = dword, default_value = "0")]
    namespace_id: u32,
    /// Its value: dword 11
    #[arg(short = 'V', long, value_name = "N", value_parser = dword, default_value = "0")]
    value: u32,
    /// Where its data is; - is standard input
    #[arg(short, long, value_name = "FILE")]
    data: Option<String>,
    /// Keep it across resets and power cycles
    #[arg(short, long)]
    save: bool,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Sel {
    /// As it is
    Current,
    /// As it was delivered
    Default,
    /// As it was saved
    Saved,
    /// What can be done with it
    Supported,
}

impl From<Sel> for Select {
    fn from(sel: Sel) -> Self {
        match sel {
            Sel::Current => Self::Current,
            Sel::Default => Self::Default,
            Sel::Saved => Self::Saved,
            Sel::Supported => Self::Supported,
        }
    }
}

fn feature_id(text: &str) -> Result<u8, String> {
    if let Some((id, ..)) = feature::NAMES.iter().find(|(_, name, _)| *name == text) {
        return Ok(*id);
    }
    byte(text).map_err(|_| format!("{text:?} is no feature: write a name (see --help) or a number from 0 to 0xff"))
}

/// What a feature is called.
pub fn name(id: u8) -> Option<&'static str> {
    feature::NAMES.iter().find(|(number, ..)| *number == id).map(|(_, name, _)| *name)
}

pub fn get(args: GetArgs) -> Result<()> {
    let Some(id) = args.feature_id else { return list(&args) };
    let usual = feature::NAMES.iter().find(|(number, ..)| *number == id).map_or(0, |(.., len)| u64::from(*len));
    // What can be done with it comes without data.
    let usual = if matches!(args.sel, Sel::Supported) { 0 } else { usual };
    let len = args.data_len.map_or(usual, |Size(len)| len);
    if len > 1 << 20 {
        bail!(Usage(format!("--data-len {len} is more than any feature has")));
    }
    let controller = admin::open(&args.target)?;
    let mut data = vec![0; len as usize];
    let value = controller.nvme.get_feature(id, args.sel.into(), args.namespace_id, args.cdw11, &mut data)?;
    let json = || {
        json!({"schema": "wholebar.feature/1", "target": args.target, "feature_id": id, "name": name(id), "value": value,
            "meaning": meaning(id, args.sel, value), "data": (len > 0).then(|| hex(&data))})
    };
    args.show.put(&data, json, || {
        let title = name(id).map_or_else(|| format!("feature {id:02x}h"), str::to_owned);
        let mean = meaning(id, args.sel, value).map_or(String::new(), |text| format!("  {text}"));
        format!("{}: {title}: {value:#010x}{mean}\n{}", args.target, dump(&data))
    })
}

/// All features that have a name, and that the controller has.
fn list(args: &GetArgs) -> Result<()> {
    if args.show.hex || args.show.out.is_some() {
        bail!(Usage("--hex and --out go with --feature-id".to_owned()));
    }
    let controller = admin::open(&args.target)?;
    let mut found = Vec::new();
    for (id, name, len) in feature::NAMES {
        found.extend(one(&controller, args, *id, *len)?.map(|value| (*id, *name, value)));
    }
    if args.show.json {
        let all = found.iter().map(|(id, name, value)| {
            json!({"feature_id": id, "name": name, "value": value, "meaning": meaning(*id, args.sel, *value)})
        });
        let all = all.collect::<Vec<_>>();
        return output::print_json(&json!({"schema": "wholebar.features/1", "target": args.target, "features": all}));
    }
    let rows = found.iter().map(|(id, name, value)| {
        vec![
            format!("{id:02x}h"),
            (*name).to_owned(),
            format!("{value:#010x}"),
            meaning(*id, args.sel, *value).unwrap_or_default(),
        ]
    });
    output::print(format!("{}\n{}", args.target, output::table([">  feature", "name", "value", ""], rows)))
}

fn one(controller: &Controller, args: &GetArgs, id: u8, len: u32) -> Result<Option<u32>> {
    let len = if matches!(args.sel, Sel::Supported) { 0 } else { len };
    match controller.nvme.get_feature(id, args.sel.into(), args.namespace_id, args.cdw11, &mut vec![0; len as usize]) {
        Ok(value) => Ok(Some(value)),
        Err(Error::Refused { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What a value says (NVM Express Base 2.0, 5.27.1, and 5.15 for what can be done with it).
fn meaning(id: u8, sel: Sel, value: u32) -> Option<String> {
    if matches!(sel, Sel::Supported) {
        let can = ["saved", "of each namespace", "changed"];
        let set: Vec<_> = can.iter().enumerate().filter(|(bit, _)| value >> bit & 1 != 0).map(|(_, t)| *t).collect();
        return Some(if set.is_empty() { "nothing".to_owned() } else { set.join(", ") });
    }
    let on = |bit: u32| if value & bit != 0 { "on" } else { "off" };
    Some(match id {
        feature::POWER_MANAGEMENT => format!("power state {}", value & 0x1f),
        feature::TEMPERATURE_THRESHOLD => format!("{} C", i64::from(value & 0xffff) - 273),
        feature::VOLATILE_WRITE_CACHE => format!("volatile write cache {}", on(1)),
        feature::NUMBER_OF_QUEUES => {
            format!("{} submission and {} completion queues", (value & 0xffff) + 1, (value >> 16) + 1)
        }
        feature::ERROR_RECOVERY => match value & 0xffff {
            0 => "no time limit for retries".to_owned(),
            n => format!("retries within {} ms", n * 100),
        },
        feature::INTERRUPT_COALESCING => {
            format!("{} entries, {} us", (value & 0xff) + 1, (value >> 8 & 0xff) * 100)
        }
        feature::KEEP_ALIVE if value == 0 => "off".to_owned(),
        feature::KEEP_ALIVE => format!("{value} ms"),
        _ => return None,
    })
}

pub fn set(args: SetArgs) -> Result<()> {
    let data = args.data.as_deref().map(|path| admin::read_file(path, 1 << 20)).transpose()?.unwrap_or_default();
    let controller = admin::open(&args.target)?;
    let (id, nsid) = (args.feature_id, args.namespace_id);
    let result = controller.nvme.set_feature_with(id, nsid, args.value, args.save, &data)?;
    if args.json {
        return output::print_json(
            &json!({"schema": "wholebar.set-feature/1", "target": args.target, "feature_id": id,
            "value": args.value, "result": result, "saved": args.save}),
        );
    }
    let title = name(id).map_or_else(|| format!("feature {id:02x}h"), str::to_owned);
    output::print(format!("{}: {title} is set: result {result:#010x}\n", args.target))
}

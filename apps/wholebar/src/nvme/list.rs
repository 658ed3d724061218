//! `wholebar nvme list-ns`, `list-ctrl`, `id-ctrl`, `id-ns`: which there are, and every field of what they say of themselves, by nvme-cli's names.

use super::admin::{self, Show, byte, dword, hex, word};
use crate::output;
use anyhow::Result;
use serde_json::{Map, Value, json};
use wholebar::nvme::IdentifyRequest;

/// Show the namespaces of a controller
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme list-ns sim:nvme,ns=3
  wholebar nvme list-ns sim:nvme,spare=1G --all --json     those that are attached to no controller, too")]
pub struct NamespacesArgs {
    /// The NVMe controller
    target: String,
    /// All that are allocated, attached to the controller or not
    #[arg(short, long)]
    all: bool,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// Show the controllers of a subsystem, or those that a namespace is attached to
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme list-ctrl 0000:01:00.0
  wholebar nvme list-ctrl 0000:01:00.0 --namespace-id 1 --json")]
pub struct ControllersArgs {
    /// The NVMe controller
    target: String,
    /// Those that this namespace is attached to
    #[arg(short, long, value_name = "ID", value_parser = dword)]
    namespace_id: Option<u32>,
    /// From this identifier on
    #[arg(short, long, value_name = "ID", value_parser = word, default_value = "0")]
    cntid: u16,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// Show the fields of Identify Controller
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme id-ctrl sim:nvme
  wholebar nvme id-ctrl sim:nvme --json | jq .oncs
  wholebar nvme id-ctrl 0000:01:00.0 --out identify.bin")]
pub struct ControllerArgs {
    /// The NVMe controller
    target: String,
    #[command(flatten)]
    show: Show,
}

/// Show the fields of Identify Namespace
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme id-ns sim:nvme
  wholebar nvme id-ns sim:nvme,ns=2 --namespace-id 2 --json")]
pub struct NamespaceArgs {
    /// The NVMe controller
    target: String,
    /// The namespace
    #[arg(short, long, value_name = "ID", value_parser = dword, default_value = "1")]
    namespace_id: u32,
    /// Also if it is not attached to the controller
    #[arg(short, long)]
    force: bool,
    /// Another data structure than that of CNS 0
    #[arg(long, value_name = "N", value_parser = byte, conflicts_with = "force")]
    cns: Option<u8>,
    #[command(flatten)]
    show: Show,
}

pub fn namespaces(args: NamespacesArgs) -> Result<()> {
    let controller = admin::open(&args.target)?;
    let active: Vec<u32> = controller.namespaces().iter().map(|n| n.nsid).collect();
    let ids = if args.all { controller.nvme.allocated_namespaces()? } else { active.clone() };
    if args.json {
        let list: Vec<_> = ids.iter().map(|id| json!({"nsid": id, "attached": active.contains(id)})).collect();
        return output::print_json(&json!({"schema": "wholebar.list-ns/1", "target": args.target, "nsid_list": list}));
    }
    let state = |id: &u32| if active.contains(id) { "attached" } else { "not attached to this controller" };
    let rows = ids.iter().map(|id| vec![id.to_string(), state(id).to_owned()]);
    output::print(format!("{}\n{}", args.target, output::table([">  namespace", ""], rows)))
}

pub fn controllers(args: ControllersArgs) -> Result<()> {
    let controller = admin::open(&args.target)?;
    let ids = controller.nvme.controllers(args.namespace_id, args.cntid)?;
    if args.json {
        return output::print_json(&json!({"schema": "wholebar.list-ctrl/1", "target": args.target, "ctrl_list": ids}));
    }
    let own = controller.identity().id;
    let rows = ids.iter().map(|id| vec![id.to_string(), if *id == own { "this one" } else { "" }.to_owned()]);
    output::print(format!("{}\n{}", args.target, output::table([">  controller", ""], rows)))
}

/// How a field is read.
#[derive(Clone, Copy)]
enum Kind {
    /// A number, shown in decimal.
    Number,
    /// Bits, shown in hexadecimal.
    Bits,
    /// Characters.
    Text,
    /// Bytes of an identifier.
    Bytes,
}
use Kind::{Bits, Bytes, Number, Text};

/// A field: its name in nvme-cli, where it is, and how long, in bytes.
type Field = (&'static str, usize, usize, Kind);

/// Identify Controller (NVM Express Base 2.0, 5.17.2.1).
const CONTROLLER: &[Field] = &[
    ("vid", 0, 2, Bits),
    ("ssvid", 2, 2, Bits),
    ("sn", 4, 20, Text),
    ("mn", 24, 40, Text),
    ("fr", 64, 8, Text),
    ("rab", 72, 1, Number),
    ("ieee", 73, 3, Bits),
    ("cmic", 76, 1, Bits),
    ("mdts", 77, 1, Number),
    ("cntlid", 78, 2, Number),
    ("ver", 80, 4, Bits),
    ("rtd3r", 84, 4, Number),
    ("rtd3e", 88, 4, Number),
    ("oaes", 92, 4, Bits),
    ("ctratt", 96, 4, Bits),
    ("rrls", 100, 2, Bits),
    ("cntrltype", 111, 1, Number),
    ("fguid", 112, 16, Bytes),
    ("crdt1", 128, 2, Number),
    ("crdt2", 130, 2, Number),
    ("crdt3", 132, 2, Number),
    ("nvmsr", 253, 1, Bits),
    ("vwci", 254, 1, Bits),
    ("mec", 255, 1, Bits),
    ("oacs", 256, 2, Bits),
    ("acl", 258, 1, Number),
    ("aerl", 259, 1, Number),
    ("frmw", 260, 1, Bits),
    ("lpa", 261, 1, Bits),
    ("elpe", 262, 1, Number),
    ("npss", 263, 1, Number),
    ("avscc", 264, 1, Bits),
    ("apsta", 265, 1, Bits),
    ("wctemp", 266, 2, Number),
    ("cctemp", 268, 2, Number),
    ("mtfa", 270, 2, Number),
    ("hmpre", 272, 4, Number),
    ("hmmin", 276, 4, Number),
    ("tnvmcap", 280, 16, Number),
    ("unvmcap", 296, 16, Number),
    ("rpmbs", 312, 4, Bits),
    ("edstt", 316, 2, Number),
    ("dsto", 318, 1, Bits),
    ("fwug", 319, 1, Number),
    ("kas", 320, 2, Number),
    ("hctma", 322, 2, Bits),
    ("mntmt", 324, 2, Number),
    ("mxtmt", 326, 2, Number),
    ("sanicap", 328, 4, Bits),
    ("hmminds", 332, 4, Number),
    ("hmmaxd", 336, 2, Number),
    ("nsetidmax", 338, 2, Number),
    ("endgidmax", 340, 2, Number),
    ("anatt", 342, 1, Number),
    ("anacap", 343, 1, Bits),
    ("anagrpmax", 344, 4, Number),
    ("nanagrpid", 348, 4, Number),
    ("pels", 352, 4, Number),
    ("domainid", 356, 2, Number),
    ("megcap", 368, 16, Number),
    ("sqes", 512, 1, Bits),
    ("cqes", 513, 1, Bits),
    ("maxcmd", 514, 2, Number),
    ("nn", 516, 4, Number),
    ("oncs", 520, 2, Bits),
    ("fuses", 522, 2, Bits),
    ("fna", 524, 1, Bits),
    ("vwc", 525, 1, Bits),
    ("awun", 526, 2, Number),
    ("awupf", 528, 2, Number),
    ("icsvscc", 530, 1, Bits),
    ("nwpc", 531, 1, Bits),
    ("acwu", 532, 2, Number),
    ("ocfs", 534, 2, Bits),
    ("sgls", 536, 4, Bits),
    ("mnan", 540, 4, Number),
    ("maxdna", 544, 16, Number),
    ("maxcna", 560, 4, Number),
    ("subnqn", 768, 256, Text),
];

/// Identify Namespace (NVM Command Set 1.0, 4.1.5.1).
const NAMESPACE: &[Field] = &[
    ("nsze", 0, 8, Number),
    ("ncap", 8, 8, Number),
    ("nuse", 16, 8, Number),
    ("nsfeat", 24, 1, Bits),
    ("nlbaf", 25, 1, Number),
    ("flbas", 26, 1, Bits),
    ("mc", 27, 1, Bits),
    ("dpc", 28, 1, Bits),
    ("dps", 29, 1, Bits),
    ("nmic", 30, 1, Bits),
    ("rescap", 31, 1, Bits),
    ("fpi", 32, 1, Bits),
    ("dlfeat", 33, 1, Bits),
    ("nawun", 34, 2, Number),
    ("nawupf", 36, 2, Number),
    ("nacwu", 38, 2, Number),
    ("nabsn", 40, 2, Number),
    ("nabo", 42, 2, Number),
    ("nabspf", 44, 2, Number),
    ("noiob", 46, 2, Number),
    ("nvmcap", 48, 16, Number),
    ("npwg", 64, 2, Number),
    ("npwa", 66, 2, Number),
    ("npdg", 68, 2, Number),
    ("npda", 70, 2, Number),
    ("nows", 72, 2, Number),
    ("mssrl", 74, 2, Number),
    ("mcl", 76, 4, Number),
    ("msrc", 80, 1, Number),
    ("anagrpid", 92, 4, Number),
    ("nsattr", 99, 1, Bits),
    ("nvmsetid", 100, 2, Number),
    ("endgid", 102, 2, Number),
    ("nguid", 104, 16, Bytes),
    ("eui64", 120, 8, Bytes),
];

/// A field for people and for programs.
fn field((_, at, len, kind): Field, bytes: &[u8]) -> (String, Value) {
    let bytes = &bytes[at..at + len];
    let number = || bytes.iter().rev().fold(0u128, |n, b| n << 8 | u128::from(*b));
    // JSON's numbers have 64 bits here; what has more is a string.
    let value = || u64::try_from(number()).map_or_else(|_| json!(number().to_string()), |n| json!(n));
    match kind {
        Number => (number().to_string(), value()),
        Bits => (format!("{:#x}", number()), value()),
        Text => {
            let end = bytes.iter().position(|b| *b == 0).unwrap_or(len);
            let text: String =
                bytes[..end].iter().map(|b| if matches!(b, b' '..=b'~') { char::from(*b) } else { '?' }).collect();
            (text.trim().to_owned(), json!(text.trim()))
        }
        Bytes => (hex(bytes), json!(hex(bytes))),
    }
}

fn fields(table: &[Field], bytes: &[u8]) -> (Vec<Vec<String>>, Map<String, Value>) {
    let (mut rows, mut values) = (Vec::new(), Map::new());
    for one in table {
        let (text, value) = field(*one, bytes);
        rows.push(vec![format!("  {}", one.0), text]);
        values.insert(one.0.to_owned(), value);
    }
    (rows, values)
}

/// What `--json` writes: the fields, and whose they are.
fn with_target(mut values: Map<String, Value>, schema: &str, target: &str) -> Value {
    values.insert("schema".to_owned(), json!(schema));
    values.insert("target".to_owned(), json!(target));
    Value::Object(values)
}

pub fn controller(args: ControllerArgs) -> Result<()> {
    let request = IdentifyRequest { cns: 1, ..IdentifyRequest::default() };
    let bytes = admin::open(&args.target)?.nvme.identify_data(request)?;
    let (rows, values) = fields(CONTROLLER, &bytes);
    let json = || with_target(values, "wholebar.id-ctrl/1", &args.target);
    args.show.put(&bytes, json, || format!("{}\n{}", args.target, output::table(["", ""], rows)))
}

pub fn namespace(args: NamespaceArgs) -> Result<()> {
    let controller = admin::open(&args.target)?;
    // CNS 11h: of one that is allocated, attached or not.
    let cns = args.cns.unwrap_or(if args.force { 0x11 } else { 0 });
    let nsid = args.namespace_id;
    let bytes = controller.nvme.identify_data(IdentifyRequest { cns, nsid, ..IdentifyRequest::default() })?;
    if args.cns.is_none() && bytes.iter().all(|byte| *byte == 0) {
        anyhow::bail!("{} has no active namespace {nsid}: see `wholebar nvme list-ns --all`", args.target);
    }
    let (mut rows, mut values) = fields(NAMESPACE, &bytes);
    let formats = formats(&bytes);
    let in_use = usize::from(bytes[26] & 0xf | if formats.len() > 16 { bytes[26] >> 5 << 4 } else { 0 });
    for (i, format) in formats.iter().enumerate() {
        let used = if i == in_use { " (in use)" } else { "" };
        rows.push(vec![
            format!("  lbaf {i}"),
            format!("ms:{} lbads:{} rp:{}{used}", format.ms, format.lbads, format.rp),
        ]);
    }
    let list: Vec<_> = formats.iter().map(|f| json!({"ms": f.ms, "ds": f.lbads, "rp": f.rp})).collect();
    values.insert("lbafs".to_owned(), json!(list));
    values.insert("nsid".to_owned(), json!(nsid));
    let json = || with_target(values, "wholebar.id-ns/1", &args.target);
    args.show.put(&bytes, json, || format!("{}: namespace {nsid}\n{}", args.target, output::table(["", ""], rows)))
}

/// An LBA format (NVM Command Set 1.0, 4.1.5.1).
pub struct LbaFormat {
    /// Bytes of metadata.
    pub ms: u16,
    /// Bytes of a block, as a power of two.
    pub lbads: u8,
    /// Relative performance, 0 the best.
    pub rp: u8,
}

/// The LBA formats of an Identify Namespace structure, by their numbers.
pub fn formats(bytes: &[u8]) -> Vec<LbaFormat> {
    let count = usize::from(bytes[25]).min(63) + 1;
    let all = bytes[128..].chunks_exact(4).take(count);
    all.map(|f| LbaFormat { ms: u16::from_le_bytes([f[0], f[1]]), lbads: f[2], rp: f[3] & 3 }).collect()
}

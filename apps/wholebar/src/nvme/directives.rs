//! `wholebar nvme dir-receive` and `dir-send`: directives, with nvme-cli's options.

use super::admin::{self, Show, byte, dump, dword, hex, word};
use crate::args::{Size, Usage};
use crate::output;
use anyhow::{Result, bail};
use serde_json::json;
use wholebar::nvme::{Directive, DirectiveState};

/// Receive data of a directive: which directives there are, and what streams
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme dir-receive sim:nvme,streams=8
  wholebar nvme dir-receive 0000:01:00.0 -n 1 --dir-type 1 --dir-oper 1
  wholebar nvme dir-receive 0000:01:00.0 -n 1 --dir-type 1 --dir-oper 3 --req-resource 4

Types: 0 identify, 1 streams, 2 data placement. Operations: 1 parameters; of
streams also 2 (those that are open) and 3 (allocate).")]
pub struct ReceiveArgs {
    #[command(flatten)]
    of: Of,
    /// What is done with it
    #[arg(short = 'O', long, value_name = "N", value_parser = byte, default_value = "1")]
    dir_oper: u8,
    /// Bytes to receive [default: as many as the operation has]
    #[arg(short = 'l', long, value_name = "SIZE")]
    data_len: Option<Size>,
    /// How many streams to allocate
    #[arg(short, long, value_name = "N", value_parser = word, default_value = "0")]
    req_resource: u16,
    #[command(flatten)]
    show: Show,
}

/// Send data of a directive: enable streams, close them, give them back
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme dir-send 0000:01:00.0 -n 1 --dir-type 0 --dir-oper 1 --target-dir 1 --endir 1
  wholebar nvme dir-send 0000:01:00.0 -n 1 --dir-type 1 --dir-oper 1 --dir-spec 5

Types: 0 identify, 1 streams, 2 data placement. Operations of identify: 1
(enable --target-dir); of streams: 1 (close --dir-spec), 2 (give all back).")]
pub struct SendArgs {
    #[command(flatten)]
    of: Of,
    /// What is done with it
    #[arg(short = 'O', long, value_name = "N", value_parser = byte, default_value = "1")]
    dir_oper: u8,
    /// The directive that is enabled or disabled
    #[arg(short = 'T', long, value_name = "TYPE", value_parser = byte, default_value = "0")]
    target_dir: u8,
    /// 1 enables it, 0 disables it
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=1), default_value = "0")]
    endir: u8,
    /// Its data: a file; - is standard input
    #[arg(short, long, value_name = "FILE")]
    input_file: Option<String>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct Of {
    /// The NVMe controller
    target: String,
    /// The namespace, 0xffffffff for the controller
    #[arg(short, long, value_name = "ID", value_parser = dword, default_value = "1")]
    namespace_id: u32,
    /// The directive
    #[arg(short = 'D', long, value_name = "TYPE", value_parser = byte, default_value = "0")]
    dir_type: u8,
    /// What is the operation's own, as a stream
    #[arg(short = 'S', long, value_name = "N", value_parser = word, default_value = "0")]
    dir_spec: u16,
}

/// What there is of a directive's data at most.
const MOST: u64 = 128 << 10;

impl Of {
    fn directive(&self, operation: u8, cdw12: u32) -> Directive {
        Directive { nsid: self.namespace_id, kind: self.dir_type, operation, specific: self.dir_spec, cdw12 }
    }
}

pub fn receive(args: ReceiveArgs) -> Result<()> {
    let Of { target, namespace_id: nsid, dir_type, .. } = &args.of;
    let usual = match (dir_type, args.dir_oper) {
        (0, 1) => 4096,
        (1, 1) => 32,
        (1, 3) => 0,
        _ => 4096,
    };
    let len = args.data_len.map_or(usual, |Size(len)| len);
    if len > MOST || !len.is_multiple_of(4) {
        bail!(Usage(format!("--data-len {len} is no multiple of 4 up to {MOST}")));
    }
    let controller = admin::open(target)?;
    let mut bytes = vec![0; len as usize];
    let directive = args.of.directive(args.dir_oper, args.req_resource.into());
    let result = controller.nvme.directive_receive(directive, &mut bytes)?;
    let (text, decoded) = match (dir_type, args.dir_oper) {
        (0, 1) => {
            let found = controller.nvme.directives(*nsid)?;
            let both = [("streams", found.streams), ("data placement", found.data_placement)];
            let value =
                |s: DirectiveState| json!({"supported": s.supported, "enabled": s.enabled, "persistent": s.persistent});
            let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
            let rows = both.map(|(name, s)| vec![name.to_owned(), yes(s.supported), yes(s.enabled), yes(s.persistent)]);
            let json = json!({"streams": value(found.streams), "data_placement": value(found.data_placement)});
            (output::table(["directive", "supported", "enabled", "across resets"], rows), json)
        }
        (1, 1) => {
            let p = controller.nvme.stream_parameters(*nsid)?;
            let all = [
                ("msl", "streams at most", u32::from(p.limit)),
                ("nssa", "available", p.available.into()),
                ("nsso", "open of these", p.open.into()),
                ("nsa", "of the namespace", p.allocated.into()),
                ("nso", "open of these", p.allocated_open.into()),
                ("sws", "write size, blocks", p.write_size),
                ("sgs", "granularity", p.granularity.into()),
            ];
            let text = all.iter().map(|(_, name, value)| format!("{name:<18}  {value}\n")).collect();
            (text, all.iter().map(|(key, _, value)| ((*key).to_owned(), json!(value))).collect())
        }
        (1, 2) => {
            let open = controller.nvme.open_streams(*nsid)?;
            let list: Vec<_> = open.iter().map(u16::to_string).collect();
            (format!("{} streams are open: {}\n", open.len(), list.join(" ")), json!({"open": open}))
        }
        (1, 3) => (format!("{} streams are allocated\n", result & 0xffff), json!({"allocated": result & 0xffff})),
        _ => (dump(&bytes), json!(null)),
    };
    let json = || {
        json!({"schema": "wholebar.dir-receive/1", "target": target, "nsid": nsid, "dir_type": dir_type,
            "dir_oper": args.dir_oper, "result": result, "bytes": hex(&bytes), "decoded": decoded})
    };
    args.show.put(&bytes, json, || format!("{target}: namespace {nsid:#x}\n{text}"))
}

pub fn send(args: SendArgs) -> Result<()> {
    let Of { target, namespace_id: nsid, dir_type, .. } = &args.of;
    let bytes = args.input_file.as_ref().map_or(Ok(Vec::new()), |path| admin::read_file(path, MOST))?;
    if !bytes.len().is_multiple_of(4) {
        bail!(Usage(format!("--input-file has {} bytes, which is no multiple of 4", bytes.len())));
    }
    let controller = admin::open(target)?;
    let cdw12 = u32::from(args.endir) | u32::from(args.target_dir) << 8;
    let result = controller.nvme.directive_send(args.of.directive(args.dir_oper, cdw12), &bytes)?;
    match args.json {
        true => output::print_json(&json!({"schema": "wholebar.dir-send/1", "target": target, "nsid": nsid,
            "dir_type": dir_type, "dir_oper": args.dir_oper, "result": result})),
        false => output::print(format!("{target}: directive {dir_type}, operation {}: done\n", args.dir_oper)),
    }
}

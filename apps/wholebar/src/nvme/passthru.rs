//! `wholebar nvme admin-passthru` and `io-passthru`: any command, with nvme-cli's options.

use super::Controller;
use super::admin::{self, Danger, Show, byte, dump, dword, hex};
use crate::args::{Size, Usage};
use anyhow::{Result, bail};
use serde::Serialize;
use std::time::Duration;
use wholebar::nvme::{QueueOptions, RawCommand, Transfer};

/// Send any admin command to a controller, and show what comes back
///
/// The data pointer is the driver's: whatever the dwords say, the controller reads and writes memory of this program's for the command alone. Commands that
/// create or delete queues, or have the controller keep an address, are refused. What may destroy data asks first.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme admin-passthru sim:nvme --opcode 6 --cdw10 1 --read --data-len 4096
  wholebar nvme admin-passthru sim:nvme -O 2 -n 0xffffffff --cdw10 0x7f0002 -r -l 512 --out smart
  wholebar nvme admin-passthru sim:nvme -O 0x0a --cdw10 0x04 --json")]
pub struct AdminArgs {
    #[command(flatten)]
    command: Raw,
}

/// Send any I/O command to a controller, and show what comes back
///
/// As admin-passthru. What is not known to leave blocks alone asks first.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme io-passthru sim:nvme -O 2 -n 1 --cdw10 0 --cdw12 7 --read --data-len 4096
  wholebar nvme io-passthru sim:nvme,file=disk -O 1 -n 1 --cdw10 8 -w -l 512 -i block --force")]
pub struct IoArgs {
    #[command(flatten)]
    command: Raw,
}

#[derive(clap::Args)]
struct Raw {
    /// The NVMe controller
    target: String,
    /// The opcode
    #[arg(short = 'O', long, value_name = "N", value_parser = byte)]
    opcode: u8,
    /// The namespace
    #[arg(short, long, value_name = "ID", value_parser = dword, default_value = "0")]
    namespace_id: u32,
    /// Dword 2
    #[arg(short = '2', long, value_name = "N", value_parser = dword, default_value = "0")]
    cdw2: u32,
    /// Dword 3
    #[arg(short = '3', long, value_name = "N", value_parser = dword, default_value = "0")]
    cdw3: u32,
    /// Dword 10
    #[arg(short = '4', long, value_name = "N", value_parser = dword, default_value = "0")]
    cdw10: u32,
    /// Dword 11
    #[arg(short = '5', long, value_name = "N", value_parser = dword, default_value = "0")]
    cdw11: u32,
    /// Dword 12
    #[arg(short = '6', long, value_name = "N", value_parser = dword, default_value = "0")]
    cdw12: u32,
    /// Dword 13
    #[arg(short = '7', long, value_name = "N", value_parser = dword, default_value = "0")]
    cdw13: u32,
    /// Dword 14
    #[arg(short = '8', long, value_name = "N", value_parser = dword, default_value = "0")]
    cdw14: u32,
    /// Dword 15
    #[arg(short = '9', long, value_name = "N", value_parser = dword, default_value = "0")]
    cdw15: u32,
    /// Bytes of data
    #[arg(short = 'l', long, value_name = "SIZE", default_value = "0")]
    data_len: Size,
    /// Data comes from the controller
    #[arg(short, long, conflicts_with = "write")]
    read: bool,
    /// Data goes to the controller: from --input-file, or zeros
    #[arg(short, long)]
    write: bool,
    /// Where the data is that goes to the controller; - is standard input
    #[arg(short, long, value_name = "FILE", requires = "write")]
    input_file: Option<String>,
    /// How long it may take, in milliseconds
    #[arg(short, long, value_name = "MS")]
    timeout: Option<u64>,
    #[command(flatten)]
    show: Show,
    #[command(flatten)]
    danger: Danger,
}

/// What `--json` writes.
#[derive(Serialize)]
struct Answer<'a> {
    schema: &'static str,
    target: &'a str,
    opcode: u8,
    nsid: u32,
    /// Dword 0 of the completion.
    result: u32,
    /// In hexadecimal; absent where none comes back.
    data: Option<String>,
}

/// The largest data that is read into memory: more than any command can have.
const MOST: u64 = 1 << 30;

pub fn admin(args: AdminArgs) -> Result<()> {
    let raw = args.command;
    // Namespace Management deletes by SEL 1; vendors' commands may do anything.
    let destroys = match raw.opcode {
        0x0d => raw.cdw10 & 0xf != 0,
        0x10 | 0x20 | 0x80 | 0x81 | 0x84 | 0xc0.. => true,
        _ => false,
    };
    raw.run(destroys, |controller, command, data, timeout| Ok(controller.nvme.admin_command(command, data, timeout)?))
}

pub fn io(args: IoArgs) -> Result<()> {
    let raw = args.command;
    // Flush, Read, Compare, Verify, Reservation Report, I/O Management Receive, Zone Management Receive.
    let destroys = ![0x00, 0x02, 0x05, 0x0c, 0x0e, 0x12, 0x7a].contains(&raw.opcode);
    raw.run(destroys, |controller, command, data, timeout| {
        let options = QueueOptions { entries: Some(2), ..QueueOptions::default() };
        Ok(controller.nvme.queue(options)?.execute(command, data, timeout)?)
    })
}

impl Raw {
    fn run(
        &self,
        destroys: bool,
        send: impl FnOnce(&Controller, &RawCommand, Transfer<'_>, Option<Duration>) -> Result<wholebar::nvme::RawCompletion>,
    ) -> Result<()> {
        let Size(len) = self.data_len;
        match (len, self.read || self.write) {
            (1.., false) => bail!(Usage("--data-len goes with --read or --write".to_owned())),
            (0, true) => bail!(Usage("--read and --write go with --data-len".to_owned())),
            (n, _) if n > MOST => bail!(Usage(format!("{n} bytes are more than any command has"))),
            _ => {}
        }
        if destroys {
            self.danger.check(&self.target)?;
        }
        let mut data = match &self.input_file {
            Some(path) => admin::read_file(path, MOST)?,
            None => Vec::new(),
        };
        if self.input_file.is_some() && (data.len() as u64) < len {
            bail!("the input has {} bytes, {len} are to go to the controller", data.len());
        }
        data.resize(len as usize, 0);
        let timeout = self.timeout.map(Duration::from_millis);
        let controller = admin::open_for(&self.target, timeout)?;
        if destroys {
            let what = format!("Send opcode {:02x}h to {}? It may destroy data.", self.opcode, controller.described());
            self.danger.ask(&what)?;
        }
        let command = RawCommand {
            opcode: self.opcode,
            nsid: self.namespace_id,
            cdw2: self.cdw2,
            cdw3: self.cdw3,
            cdw10: self.cdw10,
            cdw11: self.cdw11,
            cdw12: self.cdw12,
            cdw13: self.cdw13,
            cdw14: self.cdw14,
            cdw15: self.cdw15,
        };
        let transfer = match (self.read, self.write) {
            (true, _) => Transfer::Read(&mut data),
            (_, true) => Transfer::Write(&data),
            _ => Transfer::None,
        };
        let done = send(&controller, &command, transfer, timeout)?;
        if !done.status.is_success() {
            bail!("{} refused opcode {:02x}h: {}", self.target, self.opcode, done.status);
        }
        let back = if self.read { &data[..] } else { &[] };
        let json = || Answer {
            schema: "wholebar.passthru/1",
            target: &self.target,
            opcode: self.opcode,
            nsid: self.namespace_id,
            result: done.result,
            data: self.read.then(|| hex(back)),
        };
        self.show.put(back, json, || format!("result: {:#010x}\n{}", done.result, dump(back)))
    }
}

//! `wholebar msix`: the MSI-X table and the pending bits as the device has them, who is told of each vector, and what looks wrong.

use crate::{output, target};
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use wholebar::bar::MsixTable;
use wholebar::irq::Interrupts;
use wholebar::pci::{Address, DeviceKind, Irq, PciDevice};
use wholebar::vfio::sysfs::Sysfs;
use wholebar_barmap::{VectorState, X86_WINDOW, findings};

/// Show the MSI-X table and the pending bits as the device has them
///
/// They are read through a read-only mapping: what the kernel answers to reads of the table's registers is all ones. Vectors that were
/// never set up are left out, unless --all is given. What looks wrong is said: a vector in use without an address, two that send the same,
/// and on x86 an address where no message is taken. Opening a PCI function resets it, and with it the table; --enable sets vectors up again.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar msix sim:nvme --all
  wholebar msix vfio-user:/run/x.sock --json
  wholebar msix 0000:01:00.0 --enable 2")]
pub struct Args {
    /// The PCI function
    target: String,
    /// All vectors, also those that were never set up
    #[arg(long)]
    all: bool,
    /// Set the first N vectors up before, as a driver does, so that there is something to see
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=2048))]
    enable: Option<u32>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// What `--json` writes.
#[derive(Serialize)]
struct Table<'a> {
    schema: &'static str,
    target: &'a str,
    enabled: bool,
    table_bar: u8,
    table_offset: u32,
    pba_bar: u8,
    pba_offset: u32,
    /// Empty where the table can't be read.
    vectors: Vec<Vector>,
    findings: Vec<Finding>,
    /// Why the table can't be read, where it can't.
    refused: Option<String>,
}

/// Something that looks wrong.
#[derive(Serialize)]
struct Finding {
    vector: u32,
    what: String,
}

#[derive(Serialize)]
struct Vector {
    vector: u32,
    address: u64,
    data: u32,
    masked: bool,
    pending: bool,
    /// Read through the mapping.
    mapped: bool,
    /// The eventfd of this process that it signals, where this process has set it up.
    eventfd: Option<i32>,
    /// The number Linux has for it, where Linux says.
    irq: Option<u32>,
}

impl Vector {
    fn is_set_up(&self) -> bool {
        self.address != 0 || self.data != 0 || !self.masked || self.pending
    }

    /// Who is told of it, as far as that is known.
    fn served_by(&self) -> String {
        match (self.eventfd, self.irq) {
            (Some(fd), Some(irq)) => format!("eventfd {fd}, by Linux's interrupt {irq}"),
            (Some(fd), None) => format!("eventfd {fd}"),
            (None, Some(irq)) => format!("Linux's interrupt {irq}"),
            (None, None) => "-".to_owned(),
        }
    }
}

/// What looks wrong. What was not read through the mapping isn't judged: the backend answers what it likes.
fn wrong(device: &dyn PciDevice, enabled: bool, vectors: &[Vector]) -> Vec<Finding> {
    if vectors.iter().any(|vector| !vector.mapped) {
        return Vec::new();
    }
    let state = |v: &Vector| VectorState { address: v.address, data: v.data, masked: v.masked, pending: v.pending };
    let states: Vec<_> = vectors.iter().map(state).collect();
    // Models and servers send no messages: what they show is theirs. Of other platforms' windows nothing is known here.
    let x86 = cfg!(target_arch = "x86_64") && device.kind() == DeviceKind::Kernel;
    let found = findings(&states, enabled, x86.then_some(&X86_WINDOW));
    found.into_iter().map(|(vector, what)| Finding { vector, what }).collect()
}

/// Enables the first `count` vectors; disabled on drop. Also: the number of each one's eventfd.
fn enable(device: Arc<dyn PciDevice>, count: u32) -> Result<(Interrupts, Vec<i32>)> {
    let all = device.irq_info(Irq::Msix)?.count;
    if count > all {
        bail!("--enable {count} is above the {all} MSI-X vectors that {} has", device.name());
    }
    let interrupts = Interrupts::new(device.clone(), Irq::Msix, count)?;
    let fd = |vector| {
        let fd = interrupts.vector(vector).with_context(|| format!("cannot enable vector {vector}"))?;
        Ok(fd.as_fd().as_raw_fd())
    };
    let fds = (0..interrupts.count()).map(fd).collect::<Result<_>>()?;
    Ok((interrupts, fds))
}

/// The numbers that Linux has for the vectors of a function, by vector, as `/proc/interrupts` tells of them: `vfio-msix[2](0000:01:00.0)`.
fn linux_numbers(interrupts: &str, address: Address) -> HashMap<u32, u32> {
    let line = |line: &str| {
        let name = line.split_whitespace().last()?;
        let (vector, of) = name.strip_prefix("vfio-msix[")?.split_once(']')?;
        let number = line.split(':').next()?.trim().parse().ok()?;
        (of == format!("({address})")).then_some((vector.parse().ok()?, number))
    };
    interrupts.lines().filter_map(line).collect()
}

pub fn run(args: Args) -> Result<()> {
    let target = target::open(&args.target, &[], None)?;
    let name = target.device.name();
    // Until the end.
    let enabled = args.enable.map(|count| enable(target.device.clone(), count)).transpose()?;
    let fds = enabled.as_ref().map_or(&[][..], |(_, fds)| fds);
    let Some(table) = MsixTable::of(target.device.clone())? else {
        bail!("{name} has no MSI-X capability");
    };
    let numbers = match (name.parse::<Address>(), Sysfs::default().read("proc/interrupts")) {
        (Ok(address), Some(text)) => linux_numbers(&text, address),
        _ => HashMap::new(),
    };
    let vectors = (0..table.len())
        .map(|vector| {
            let entry = table.entry(vector)?;
            Ok(Vector {
                vector,
                address: entry.address,
                data: entry.data,
                masked: entry.is_masked(),
                pending: table.is_pending(vector)?,
                mapped: entry.mapped,
                eventfd: fds.get(vector as usize).copied(),
                irq: numbers.get(&vector).copied(),
            })
        })
        .collect::<wholebar::Result<Vec<_>>>();
    let (vectors, refused) = match vectors {
        Ok(vectors) => (vectors, None),
        // What the function says of itself is there all the same; some servers keep their table to themselves.
        Err(refused @ wholebar::Error::Access { .. }) => (Vec::new(), Some(refused.to_string())),
        Err(error) => return Err(error).context("cannot read the MSI-X table"),
    };
    let place = table.capability();
    let findings = wrong(target.device.as_ref(), place.enabled, &vectors);
    if args.json {
        return output::print_json(&Table {
            schema: "wholebar.msix/2",
            target: name,
            enabled: place.enabled,
            table_bar: place.table_bar,
            table_offset: place.table_offset,
            pba_bar: place.pba_bar,
            pba_offset: place.pba_offset,
            vectors,
            findings,
            refused,
        });
    }
    let what = format!(
        "{name}: {} MSI-X vectors, {}; table in BAR{} at {:#x}, PBA in BAR{} at {:#x}",
        table.len(),
        if place.enabled { "enabled" } else { "not enabled" },
        place.table_bar,
        place.table_offset,
        place.pba_bar,
        place.pba_offset,
    );
    let mut text = output::wrapped(&what, 2);
    if let Some(why) = &refused {
        text += &output::paragraph(&format!("What is in the table is not to be had: {why}."));
        return output::print(text);
    }
    if vectors.iter().any(|v| !v.mapped) {
        text += "The table cannot be mapped: this is what the backend answers, which need not be what is there.\n";
    }
    let shown: Vec<_> = vectors.iter().filter(|v| args.all || v.is_set_up()).collect();
    if !shown.is_empty() {
        let rows = shown.iter().map(|v| {
            let yes = |yes, text: &str| if yes { text.to_owned() } else { "-".to_owned() };
            vec![
                v.vector.to_string(),
                format!("{:#018x}", v.address),
                format!("{:#010x}", v.data),
                yes(v.masked, "masked"),
                yes(v.pending, "pending"),
                v.served_by(),
            ]
        });
        text.push('\n');
        text += &output::table([">vector", "address", "data", "masked", "pending", "tells"], rows);
    }
    if !findings.is_empty() {
        text.push('\n');
    }
    for Finding { vector, what } in &findings {
        text += &output::paragraph(&format!("NOT AS IT SHOULD BE: vector {vector} {what}."));
    }
    match vectors.len() - shown.len() {
        0 => {}
        n => text += &format!("\n{n} vectors were never set up; --all shows them too.\n"),
    }
    output::print(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_linux() {
        let text = "           CPU0       CPU1\n  24:  0  1  IR-PCI-MSIX-0000:01:00.0  0-edge  vfio-msix[0](0000:01:00.0)\n\
                     25:  0  0  IR-PCI-MSIX-0000:02:00.0  0-edge  vfio-msix[0](0000:02:00.0)\n\
                     26:  0  0  IR-PCI-MSIX-0000:01:00.0  2-edge  vfio-msix[2](0000:01:00.0)\n NMI: 0 0 Non-maskable interrupts\n\n";
        let numbers = linux_numbers(text, "0000:01:00.0".parse().unwrap());
        assert_eq!(numbers, HashMap::from([(0, 24), (2, 26)]));
    }
}

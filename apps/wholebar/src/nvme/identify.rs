//! `wholebar nvme identify`: what a controller says of itself.

use super::Controller;
use crate::args::Size;
use crate::{output, target};
use anyhow::Result;
use serde::Serialize;
use wholebar::nvme::{MemoryBuffer, Namespace, Options, ProtectionType};

/// Show what a controller and its namespaces are
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  wholebar nvme identify sim:nvme,ns=2,block=512+4096
  wholebar nvme identify sim:nvme,hmb=64M --host-memory-buffer 16M
  wholebar nvme identify vfio-user:/run/nvme.sock --json")]
pub struct Args {
    /// The NVMe controller
    target: String,
    /// Give the controller up to so much of this host's memory, where it prefers to have some, and show how much it took
    #[arg(long, value_name = "SIZE")]
    host_memory_buffer: Option<Size>,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// What `--json` writes.
#[derive(Serialize)]
struct Identity<'a> {
    schema: &'static str,
    target: &'a str,
    model: &'a str,
    serial: &'a str,
    firmware: &'a str,
    version: String,
    vendor: u16,
    subsystem: &'a str,
    /// Bytes; absent where there is no limit.
    max_transfer: Option<u64>,
    optional_commands: Vec<&'static str>,
    volatile_cache: bool,
    sgls: bool,
    queue_entries: u32,
    /// Absent where it has none that could be used.
    memory_buffer: Option<Memory>,
    /// Absent where it has none that could be used.
    persistent_memory: Option<Persistent>,
    /// Absent where it prefers to have none of the host's memory.
    host_memory_buffer: Option<HostMemory>,
    /// What it is known to do otherwise than the standard says.
    quirks: Vec<String>,
    namespaces: Vec<Space>,
}

#[derive(Serialize)]
struct Space {
    nsid: u32,
    blocks: u64,
    block_size: u32,
    bytes: u64,
    /// EUI64, NGUID or UUID, in hexadecimal.
    id: Option<String>,
    /// Bytes of metadata a block.
    metadata_size: u16,
    /// The type of protection information, 1 to 3; absent without.
    protection: Option<u8>,
    /// Absent where it has none.
    zones: Option<Zones>,
    /// Why it cannot be used by this driver.
    unsupported: Option<String>,
}

#[derive(Serialize)]
struct Zones {
    /// Blocks from one to the next.
    size: u64,
    /// How many can be open, and active; absent where there is no limit.
    max_open: Option<u32>,
    max_active: Option<u32>,
}

pub fn run(args: Args) -> Result<()> {
    let target = target::open(&args.target, &[], None)?;
    let host_memory_buffer = args.host_memory_buffer.map(|size| size.0);
    let controller = Controller::open(&target, Options { io_queues: 1, host_memory_buffer, ..Options::default() })?;
    let found = controller.nvme.identify();
    let namespaces = controller.namespaces().iter().map(Space::of).collect();
    let (major, minor, tertiary) = found.version;
    let identity = Identity {
        schema: "wholebar.identify/1",
        target: &args.target,
        model: &found.model,
        serial: &found.serial,
        firmware: &found.firmware,
        version: if tertiary == 0 { format!("{major}.{minor}") } else { format!("{major}.{minor}.{tertiary}") },
        vendor: found.vendor,
        subsystem: &found.subsystem,
        max_transfer: found.max_transfer,
        optional_commands: optional_commands(found),
        volatile_cache: found.volatile_cache,
        sgls: found.sgl_alignment().is_some(),
        queue_entries: controller.max_entries(),
        memory_buffer: controller.nvme.memory_buffer().map(Memory::of),
        persistent_memory: controller
            .nvme
            .persistent_memory_region()
            .map(|region| Persistent { bar: region.bar, size: region.size }),
        host_memory_buffer: (found.host_memory_preferred > 0).then(|| HostMemory {
            preferred: found.host_memory_preferred,
            minimum: found.host_memory_minimum,
            given: controller.nvme.host_memory_buffer(),
        }),
        quirks: controller.nvme.quirks().iter().map(ToString::to_string).collect(),
        namespaces,
    };
    if args.json { output::print_json(&identity) } else { output::print(identity.text()) }
}

fn optional_commands(found: &wholebar::nvme::Controller) -> Vec<&'static str> {
    [
        (found.has_compare(), "compare"),
        (found.has_dataset_management(), "dataset management"),
        (found.has_write_zeroes(), "write zeroes"),
        (found.has_verify(), "verify"),
        (found.has_shadow_doorbells(), "doorbell buffer config"),
    ]
    .into_iter()
    .filter_map(|(has, name)| has.then_some(name))
    .collect()
}

/// Its memory buffer (CMB).
#[derive(Serialize)]
struct Memory {
    bar: u8,
    offset: u64,
    size: u64,
    /// What can lie in it.
    holds: Vec<&'static str>,
}

/// Its persistent memory region (PMR).
#[derive(Serialize)]
struct Persistent {
    bar: u8,
    /// Bytes.
    size: u64,
}

/// Memory of the host's (HMB), in bytes.
#[derive(Serialize)]
struct HostMemory {
    preferred: u64,
    minimum: u64,
    given: u64,
}

impl Memory {
    fn of(memory: MemoryBuffer) -> Self {
        let MemoryBuffer { bar, offset, size, .. } = memory;
        let all = [
            (memory.submission_queues, "submission queues"),
            (memory.completion_queues, "completion queues"),
            (memory.lists, "lists"),
        ];
        Self { bar, offset, size, holds: all.into_iter().filter_map(|(can, what)| can.then_some(what)).collect() }
    }
}

impl Space {
    fn of(namespace: &Namespace) -> Self {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let id = namespace.uuid.as_ref().map(|b| hex(b));
        let id = id.or(namespace.nguid.as_ref().map(|b| hex(b))).or(namespace.eui64.as_ref().map(|b| hex(b)));
        Self {
            nsid: namespace.nsid,
            blocks: namespace.blocks,
            block_size: namespace.block_size,
            bytes: namespace.size(),
            id,
            metadata_size: namespace.metadata_size,
            protection: namespace.protection.map(|kind| match kind {
                ProtectionType::Type1 => 1,
                ProtectionType::Type2 => 2,
                ProtectionType::Type3 => 3,
            }),
            zones: namespace.zoned.map(|zoned| Zones {
                size: zoned.zone_size,
                max_open: zoned.max_open,
                max_active: zoned.max_active,
            }),
            unsupported: namespace.unsupported.clone(),
        }
    }
}

impl Identity<'_> {
    fn text(&self) -> String {
        let or_none = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
        let mut text = format!("{}\n", self.target);
        let mut rows = vec![
            ("model", or_none(self.model)),
            ("serial number", or_none(self.serial)),
            ("firmware", or_none(self.firmware)),
            ("NVMe version", self.version.clone()),
            ("PCI vendor", format!("{:#06x}", self.vendor)),
            ("NQN", or_none(self.subsystem)),
            ("largest transfer", self.max_transfer.map_or("no limit".to_owned(), output::bytes)),
            ("largest queue", format!("{} entries", output::count(self.queue_entries.into()))),
            ("optional commands", or_none(&self.optional_commands.join(", "))),
            ("write cache", if self.volatile_cache { "volatile: flush to be safe" } else { "none" }.to_owned()),
            ("SGLs", if self.sgls { "yes" } else { "no" }.to_owned()),
        ];
        rows.extend(self.memory_buffer.as_ref().map(|memory| {
            let Memory { bar, size, holds, .. } = memory;
            ("memory buffer", format!("{} in BAR{bar}: {}", output::bytes(*size), holds.join(", ")))
        }));
        rows.extend(
            self.persistent_memory
                .as_ref()
                .map(|memory| ("persistent memory", format!("{} in BAR{}", output::bytes(memory.size), memory.bar))),
        );
        rows.extend(self.host_memory_buffer.as_ref().map(|memory| {
            let [preferred, minimum, given] = [memory.preferred, memory.minimum, memory.given]
                .map(|n| if n > 0 { output::bytes(n) } else { "none".to_owned() });
            ("host memory", format!("{preferred} preferred, {minimum} at least; it has {given}"))
        }));
        rows.extend(self.quirks.iter().map(|quirk| ("quirk", quirk.clone())));
        text += &output::pairs(rows);
        if self.namespaces.is_empty() {
            return text + "\nIt has no active namespace.\n";
        }
        let rows = self.namespaces.iter().map(|n| {
            vec![
                n.nsid.to_string(),
                output::bytes(n.bytes),
                output::count(n.blocks),
                n.block_size.to_string(),
                n.id.clone().unwrap_or_else(|| "-".to_owned()),
            ]
        });
        text.push('\n');
        text += &output::table([">  namespace", ">size", ">blocks", ">bytes each", "identifier"], rows);
        for n in &self.namespaces {
            if n.metadata_size > 0 {
                let protection = match n.protection {
                    Some(kind) => format!(", with protection information of type {kind}"),
                    None => String::new(),
                };
                text +=
                    &format!("\nNamespace {}: {} bytes of metadata a block{protection}.\n", n.nsid, n.metadata_size);
            }
            if let Some(zones) = &n.zones {
                let limit = |limit: Option<u32>| limit.map_or("any number".to_owned(), |n| n.to_string());
                text += &format!(
                    "\nNamespace {}: zones of {} blocks; {} can be open, {} active.\n",
                    n.nsid,
                    output::count(zones.size),
                    limit(zones.max_open),
                    limit(zones.max_active)
                );
            }
            if let Some(why) = &n.unsupported {
                text += &format!("\nNamespace {} cannot be used: {why}.\n", n.nsid);
            }
        }
        text
    }
}

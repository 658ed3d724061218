//! What the NVMe model can be told to be.

use super::pmr::PmrState;
use super::protection::Metadata;
use super::quirk::Quirk;
use crate::faults::FaultPlan;
use crate::media::{Backing, BackingParams};
use crate::params::{self, Given, Parameter};
use crate::{Error, Result};
use wholebar_core::PageSize;

/// The parameters of `sim:nvme`, with what each can be.
pub const PARAMETERS: &[Parameter] = &[
    ("size", "BYTES of each namespace (1G)"),
    ("block", "512, 4096, or 512+4096 for namespaces of both sizes in turn (512)"),
    ("ms", "0, 8, 16 or 64: bytes of metadata a block (0)"),
    ("mset", "0 or 1: metadata follows its block, and has no buffer of its own (0)"),
    ("pi", "0 to 3: the type of protection information in the metadata (0: none)"),
    ("pif", "0, 1 or 2: the format of protection information, with guards of 16, 32 or 64 bits (0)"),
    (
        "sts",
        "0 to 64: bits of the storage tag, of 32 with pif=0, 16 to 64 with pif=1, of 48 with pif=2 (0; 16 with pif=1)",
    ),
    ("pil", "0 or 1: protection information is first in the metadata, not last (0)"),
    ("zoned", "0 or 1: zoned namespaces (0)"),
    ("zone_size", "BYTES of a zone (64M)"),
    ("zone_cap", "BYTES of a zone that can be written (all)"),
    ("max_open", "how many zones can be open (0: no limit)"),
    ("max_active", "how many zones can be open or closed (0: no limit)"),
    ("zasl", "0 (no limit) to 16: the most data of an append, 2^N smallest pages (0)"),
    (
        "quirk",
        "ready cns descriptors zeroes stripe dma48 entries identifiers entries128 sgls limit admin64 shutdown security subnqn lists: a drive that breaks this rule, with its ids (none)",
    ),
    ("cmb", "BYTES of a controller memory buffer: a power of two from 4k to 1G; 0: none (0)"),
    ("pmr", "BYTES of a persistent memory region: a power of two from 4k to 1G; 0: none (0)"),
    (
        "pmr_state",
        "normal, restore, readonly, unreliable, failed, or once (not ready after a reset): how that fares (normal)",
    ),
    ("hmb", "BYTES of the host's memory that it prefers to have, a multiple of 4k up to 1G; 0: none (0)"),
    ("hmb_min", "BYTES of the host's memory that it needs at least (4k with hmb=)"),
    ("subsys", "NAME: a subsystem, whose controllers in this process share reservations"),
    ("fdp", "0 or 1: flexible data placement (0)"),
    ("fdp_nrg", "1 to 64: its reclaim groups (1)"),
    ("fdp_nruh", "1 to 128: its reclaim unit handles (8)"),
    ("fdp_runs", "BYTES of a reclaim unit (96M)"),
    ("streams", "0 to 65535: how many streams writes can name (0)"),
    ("backing", "ram or null (ram)"),
    ("file", "PATH: a file or block device instead of memory"),
    ("ro", "0 or 1: open the file for reading only (0)"),
    ("ns", "how many namespaces, 1 to 10000 (1)"),
    ("nslist", "0 or 1: have the list of active namespaces, which some lack (1)"),
    ("spare", "BYTES for namespaces to be created; 0: no namespace management (0)"),
    ("queues", "I/O queue pairs, 1 to 511 (16)"),
    ("entries", "the largest queue, 2 to 65536 (1024)"),
    ("mdts", "0 (no limit) to 16: the most data of a command, 2^N smallest pages (5)"),
    ("dstrd", "0 to 8: doorbell stride, 4 << N bytes (0)"),
    ("msix", "bar0 (table beside the doorbells) or own (a BAR of its own) (bar0)"),
    ("vectors", "1 to 2048, at most 256 with msix=bar0 (queues + 1)"),
    ("page", "4k, 16k or 64k: the host page it pretends to see, not below the host's"),
    ("mps", "4k, 8k .. 128M, or a range such as 4k-64k: the memory pages it knows (4k-64k)"),
    ("to", "1 to 255: how long a reset may take, in units of 500 ms (10)"),
    ("sgl", "0 or 1: offer SGLs (0)"),
    ("shadow", "0 or 1: offer shadow doorbells (0)"),
    ("serial", "up to 20 printable characters (WHOLEBAR0001)"),
    ("noiob", "optimal I/O boundary in blocks, 0 to 65535 (0: none)"),
    ("temp", "composite temperature in degrees Celsius, 0 to 200 (40)"),
    (
        "faults",
        "KIND:N/M or KIND:@N, joined by +; drop dup id phase head sqhd delay corrupt dma detach attach fatal hang vanish data guard apptag reftag zonero zoneoff",
    ),
    ("seed", "a number: which commands have faults (1)"),
    ("delay", "how late a delayed command is, 0 to 60000 ms (20)"),
    ("strike", "io, admin or all: which commands have faults (io)"),
];

/// The most namespaces.
pub(super) const MAX_NAMESPACES: u32 = 10_000;
/// The most zones of all namespaces.
const MAX_ZONES: u64 = 1 << 20;
/// The largest namespace, in bytes.
const MAX_SIZE: u64 = 64 << 40;

/// What an NVMe model is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NvmeParams {
    /// Bytes of each namespace; `None`: the file's, or 1 GiB.
    pub size: Option<u64>,
    /// Block sizes in bytes, which namespaces take in turn.
    pub blocks: Vec<u32>,
    /// How blocks have metadata.
    pub metadata: Metadata,
    /// Whether namespaces are zoned.
    pub zoned: bool,
    /// Bytes of a zone.
    pub zone_size: u64,
    /// Bytes of a zone that can be written; `None` for all of them.
    pub zone_cap: Option<u64>,
    /// How many zones of a namespace can be open; 0 for no limit.
    pub max_open: u32,
    /// How many can be open or closed; 0 for no limit.
    pub max_active: u32,
    /// The most data of a Zone Append: 2^N of the smallest pages; 0 for no limit.
    pub zasl: u8,
    /// What it does otherwise than the standard says.
    pub quirk: Option<Quirk>,
    /// Bytes of its controller memory buffer; 0 for none.
    pub cmb: u64,
    /// Bytes of its persistent memory region; 0 for none.
    pub pmr: u64,
    /// The health that the persistent memory region reports (PMRSTS).
    pub pmr_state: PmrState,
    /// Bytes of the host's memory that it prefers to have; 0 for none.
    pub hmb: u64,
    /// Bytes of it that it needs at least.
    pub hmb_min: u64,
    /// The subsystem that it is a controller of, by a name; `None` for one of its own, without reservations.
    pub subsystem: Option<String>,
    /// Whether there is flexible data placement.
    pub fdp: bool,
    /// Its reclaim groups.
    pub fdp_groups: u16,
    /// Its reclaim unit handles.
    pub fdp_handles: u16,
    /// Bytes of a reclaim unit.
    pub fdp_unit: u64,
    /// How many streams there are.
    pub streams: u16,
    /// What blocks are kept in.
    pub backing: Backing,
    /// How many namespaces.
    pub namespaces: u32,
    /// Bytes that namespaces can be created of; 0 for a controller without namespace management.
    pub spare: u64,
    /// Whether it has the list of active namespaces (Identify, CNS 02h).
    pub namespace_list: bool,
    /// I/O queue pairs.
    pub queues: u16,
    /// The largest queue.
    pub entries: u32,
    /// The most data of a command: 2^N of the smallest pages; 0 for no limit.
    pub mdts: u8,
    /// Doorbell stride: 4 << N bytes.
    pub dstrd: u8,
    /// Where the MSI-X table is.
    pub msix: Msix,
    /// MSI-X vectors; `None`: one a queue pair.
    pub vectors: Option<u16>,
    /// The host's page size, as the model pretends to see it.
    pub page: PageSize,
    /// The smallest memory page that CC.MPS can name.
    pub mps_min: PageSize,
    /// The largest one.
    pub mps_max: PageSize,
    /// CAP.TO: how long a reset may take, in units of 500 ms.
    pub timeout: u8,
    /// Whether it offers SGLs.
    pub sgl: bool,
    /// Whether it offers shadow doorbells (Doorbell Buffer Config).
    pub shadow: bool,
    /// Its serial number: printable ASCII.
    pub serial: String,
    /// Optimal I/O boundary in blocks; 0 for none.
    pub noiob: u16,
    /// Composite temperature in degrees Celsius.
    pub temperature: u16,
    /// What is to go wrong.
    pub faults: FaultPlan,
}

/// Where a model's MSI-X table and PBA are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Msix {
    /// In BAR0, at 0x2000 and 0x3000, as on QEMU's and many real drives: within a 64 KiB page of the doorbells.
    Bar0,
    /// In BAR4.
    Own,
}

impl Default for NvmeParams {
    fn default() -> Self {
        Self {
            size: None,
            blocks: vec![512],
            metadata: Metadata::default(),
            zoned: false,
            zone_size: 64 << 20,
            zone_cap: None,
            max_open: 0,
            max_active: 0,
            zasl: 0,
            quirk: None,
            cmb: 0,
            pmr: 0,
            pmr_state: PmrState::Normal,
            hmb: 0,
            hmb_min: 4096,
            subsystem: None,
            fdp: false,
            fdp_groups: 1,
            fdp_handles: 8,
            fdp_unit: 96 << 20,
            streams: 0,
            backing: Backing::Ram,
            namespaces: 1,
            spare: 0,
            namespace_list: true,
            queues: 16,
            entries: 1024,
            mdts: 5,
            dstrd: 0,
            msix: Msix::Bar0,
            vectors: None,
            page: PageSize::host(),
            mps_min: PageSize::K4,
            mps_max: PageSize::K64,
            timeout: 10,
            sgl: false,
            shadow: false,
            serial: "WHOLEBAR0001".to_owned(),
            noiob: 0,
            temperature: 40,
            faults: FaultPlan::default(),
        }
    }
}

impl NvmeParams {
    /// Reads `key=value,...`; see [`PARAMETERS`].
    ///
    /// # Errors
    /// [`Error::Parameter`] for a key that there isn't, [`Error::Value`] for a value that makes no sense, [`Error::Conflict`] for some
    /// that don't go together.
    pub fn parse(text: &str) -> Result<Self> {
        let mut p = Self::default();
        let (mut backing, mut storage) = (BackingParams::default(), None);
        for given in params::split("sim:nvme", text, PARAMETERS)? {
            match given.key {
                "size" => p.size = Some(given.bytes().ok().filter(|n| *n > 0).ok_or_else(|| given.bad())?),
                "block" => p.blocks = given.value.split('+').map(|b| block(b, &given)).collect::<Result<_>>()?,
                "ms" => p.metadata.size = given.number(0..=64)?,
                "mset" => p.metadata.extended = given.flag()?,
                "pi" => p.metadata.protection = given.number(0..=3)?,
                "pif" => p.metadata.format = given.number(0..=2)?,
                "sts" => storage = Some(given.number(0..=64)?),
                "pil" => p.metadata.first = given.flag()?,
                "zoned" => p.zoned = given.flag()?,
                "zone_size" => p.zone_size = given.bytes()?,
                "zone_cap" => p.zone_cap = Some(given.bytes()?),
                "max_open" => p.max_open = given.number(0..=u32::MAX.into())?,
                "max_active" => p.max_active = given.number(0..=u32::MAX.into())?,
                "zasl" => p.zasl = given.number(0..=16)?,
                "quirk" => p.quirk = Some(Quirk::of(given.value).ok_or_else(|| given.bad())?),
                "cmb" => p.cmb = given.bytes()?,
                "pmr" => p.pmr = given.bytes()?,
                "pmr_state" => p.pmr_state = PmrState::of(given.value).ok_or_else(|| given.bad())?,
                "hmb" => p.hmb = given.bytes()?,
                "hmb_min" => p.hmb_min = given.bytes()?,
                "subsys" => p.subsystem = Some(given.value.to_owned()).filter(|name| !name.is_empty()),
                "fdp" => p.fdp = given.flag()?,
                "fdp_nrg" => p.fdp_groups = given.number(1..=64)?,
                "fdp_nruh" => p.fdp_handles = given.number(1..=128)?,
                "fdp_runs" => p.fdp_unit = given.bytes()?,
                "streams" => p.streams = given.number(0..=65535)?,
                "backing" | "file" | "ro" => backing.set(&given)?,
                "ns" => p.namespaces = given.number(1..=MAX_NAMESPACES.into())?,
                "spare" => p.spare = given.bytes()?,
                "nslist" => p.namespace_list = given.flag()?,
                "queues" => p.queues = given.number(1..=511)?,
                "entries" => p.entries = given.number(2..=65536)?,
                "mdts" => p.mdts = given.number(0..=16)?,
                "dstrd" => p.dstrd = given.number(0..=8)?,
                "msix" => {
                    p.msix = match given.value {
                        "bar0" => Msix::Bar0,
                        "own" => Msix::Own,
                        _ => return Err(given.bad()),
                    };
                }
                "vectors" => p.vectors = Some(given.number(1..=2048)?),
                "page" => p.page = given.page()?,
                "mps" => {
                    let (min, max) = given.value.split_once('-').unwrap_or((given.value, given.value));
                    (p.mps_min, p.mps_max) = (params::page(min, &given)?, params::page(max, &given)?);
                }
                "to" => p.timeout = given.number(1..=255)?,
                "sgl" => p.sgl = given.flag()?,
                "shadow" => p.shadow = given.flag()?,
                "serial" => p.serial = given.value.to_owned(),
                "noiob" => p.noiob = given.number(0..=65535)?,
                "temp" => p.temperature = given.number(0..=200)?,
                "faults" | "seed" | "delay" | "strike" => p.faults.set(&given)?,
                _ => return Err(given.bad()),
            }
        }
        p.backing = backing.backing()?;
        p.metadata.storage = storage.unwrap_or(if p.metadata.format == 1 { 16 } else { 0 });
        p.check()?;
        Ok(p)
    }

    /// Whether the parameters go together.
    ///
    /// # Errors
    /// [`Error::Conflict`], saying which don't.
    pub fn check(&self) -> Result<()> {
        let doorbells = (2 * (u64::from(self.queues) + 1)) << (2 + self.dstrd);
        let conflict = if doorbells > 4096 {
            format!(
                "{} queue pairs with dstrd={} need {doorbells} bytes of doorbells; there are 4096",
                self.queues, self.dstrd
            )
        } else if self.msix == Msix::Bar0 && self.vector_count() > 256 {
            format!("{} vectors don't fit beside the doorbells (256 do): use msix=own or fewer", self.vector_count())
        } else if self.page < PageSize::host() {
            format!("page={} is below this host's {}", self.page, PageSize::host())
        } else if self.mps_min > self.mps_max || self.mps_max.bytes() > 128 << 20 {
            format!("mps from {} to {} is no range of memory pages (4 KiB to 128 MiB)", self.mps_min, self.mps_max)
        } else if self.serial.len() > 20 || !self.serial.bytes().all(|b| (0x20..0x7f).contains(&b)) {
            format!("serial={:?} is not up to 20 printable characters", self.serial)
        } else if matches!(self.backing, Backing::File { .. }) && self.namespaces > 1 {
            "a file backs one namespace: use ns=1".to_owned()
        } else if self.blocks.is_empty() || self.blocks.iter().any(|b| ![512, 4096].contains(b)) {
            format!("blocks of {:?} bytes: 512 and 4096 are known", self.blocks)
        } else if self.size.is_some_and(|size| size > MAX_SIZE) {
            "size= is above 64T".to_owned()
        } else if self.spare > MAX_SIZE {
            "spare= is above 64T".to_owned()
        } else if matches!(self.backing, Backing::File { .. }) && self.spare > 0 {
            "a file backs one namespace: spare= does not go with it".to_owned()
        } else if self.fdp_unit == 0 || !self.fdp_unit.is_multiple_of(4096) {
            format!("fdp_runs={} is no multiple of 4096", self.fdp_unit)
        } else if let Some((name, bytes)) = [("cmb", self.cmb), ("pmr", self.pmr)]
            .into_iter()
            .find(|(_, bytes)| *bytes > 0 && !(bytes.is_power_of_two() && (4096..=1 << 30).contains(bytes)))
        {
            format!("{name}={bytes} is no power of two from 4 KiB to 1 GiB")
        } else if self.pmr > 0 && self.msix == Msix::Own {
            "pmr= does not go with msix=own: both are BAR4".to_owned()
        } else if self.hmb > 1 << 30 || [self.hmb, self.hmb_min].iter().any(|bytes| !bytes.is_multiple_of(4096)) {
            "hmb= and hmb_min= are multiples of 4096, up to 1G".to_owned()
        } else if self.hmb > 0 && self.hmb_min > self.hmb {
            format!("hmb_min={} is above hmb={}", self.hmb_min, self.hmb)
        } else if self.subsystem.is_some() && self.spare > 0 {
            "subsys= does not go with spare=: its controllers would have to share namespaces".to_owned()
        } else if self.fdp && self.zoned {
            "fdp= does not go with zoned=: zones say where their data is".to_owned()
        } else if let Some(why) = self.metadata_conflict().or_else(|| self.zone_conflict()) {
            why
        } else if let Some(size) = self.size.filter(|s| self.blocks.iter().any(|b| !s.is_multiple_of((*b).into()))) {
            format!("size={size} is not a multiple of the block size")
        } else {
            return Ok(());
        };
        Err(Error::Conflict(conflict))
    }

    fn metadata_conflict(&self) -> Option<String> {
        let Metadata { size, extended, protection, first, format, storage } = self.metadata;
        let what = if ![0, 8, 16, 64].contains(&size) {
            format!("ms={size}: 0, 8, 16 and 64 bytes are known")
        } else if size == 0 && (protection > 0 || extended) {
            "pi= and mset= go with ms=".to_owned()
        } else if (first || format > 0 || storage > 0) && protection == 0 {
            "pil=, pif= and sts= go with pi=".to_owned()
        } else if format > 0 && size < 16 {
            format!("pif={format} wants ms=16 or ms=64")
        } else if !match format {
            0 => storage <= 32,
            1 => storage >= 16,
            _ => storage <= 48,
        } {
            format!("pif={format} has no storage tags of sts={storage} bits")
        } else if size > 0 && self.backing != Backing::Ram {
            "metadata is kept in memory: ms= does not go with file= and backing=null".to_owned()
        } else {
            return None;
        };
        Some(what)
    }

    fn zone_conflict(&self) -> Option<String> {
        let (size, capacity) = (self.zone_size, self.zone_capacity());
        let what = if !self.zoned {
            return None;
        } else if size == 0 || !size.is_multiple_of(4096) || !capacity.is_multiple_of(4096) {
            "zone_size= and zone_cap= are multiples of 4096".to_owned()
        } else if capacity == 0 || capacity > size {
            format!("zone_cap={capacity} is not from 4096 to zone_size={size}")
        } else if self.size.unwrap_or(1 << 30) < size {
            format!("a namespace has no zone of zone_size={size}")
        } else if (self.size.unwrap_or(1 << 30) / size).saturating_mul(self.namespaces.into()) > MAX_ZONES {
            format!("more than {MAX_ZONES} zones in all: use a larger zone_size=")
        } else if matches!(self.backing, Backing::File { .. }) {
            "the states of zones are kept in memory: zoned= does not go with file=".to_owned()
        } else if self.metadata.size > 0 || self.spare > 0 {
            "zoned= goes neither with ms= nor with spare=".to_owned()
        } else {
            return None;
        };
        Some(what)
    }

    /// Whether writes can say where their data goes.
    pub(super) fn has_directives(&self) -> bool {
        self.fdp || self.streams > 0
    }

    /// Bytes of a zone that can be written.
    pub(super) fn zone_capacity(&self) -> u64 {
        self.zone_cap.unwrap_or(self.zone_size)
    }

    /// How many MSI-X vectors there are.
    pub(super) fn vector_count(&self) -> u16 {
        self.vectors.unwrap_or(self.queues + 1)
    }
}

fn block(text: &str, given: &Given<'_>) -> Result<u32> {
    match params::bytes(text) {
        Some(512) => Ok(512),
        Some(4096) => Ok(4096),
        _ => Err(given.bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_and_zones_that_make_no_sense_are_refused() {
        for (params, says) in [
            ("ms=9", "0, 8, 16 and 64"),
            ("pi=1", "go with ms="),
            ("mset=1", "go with ms="),
            ("ms=8,pil=1", "go with pi="),
            ("ms=8,pif=2,pi=1", "wants ms=16"),
            ("ms=8,pif=1,pi=1", "wants ms=16"),
            ("ms=16,pif=1,pi=1,sts=15", "sts=15"),
            ("ms=16,pif=2,pi=1,sts=49", "sts=49"),
            ("ms=8,pi=1,sts=33", "sts=33"),
            ("ms=8,sts=8", "go with pi="),
            ("ms=16,pif=3,pi=1", "pif"),
            ("ms=8,backing=null", "kept in memory"),
            ("ms=8,file=x", "kept in memory"),
            ("ms=8,pi=4", "pi"),
            ("zoned=1,zone_size=1000", "multiples of 4096"),
            ("zoned=1,zone_size=1M,zone_cap=2M", "zone_cap"),
            ("zoned=1,zone_size=1M,size=512k", "no zone"),
            ("zoned=1,zone_size=4k,size=1T", "zones in all"),
            ("zoned=1,zone_size=4k,size=1G,ns=10000", "zones in all"),
            ("zoned=1,file=x", "kept in memory"),
            ("zoned=1,ms=8", "neither with ms="),
        ] {
            let error = NvmeParams::parse(params).unwrap_err().to_string();
            assert!(error.contains(says), "{params}: {error}");
        }
        for params in ["ms=64,pi=3,pil=1,mset=1", "zoned=1", "zoned=1,zone_size=4k,size=1G,max_open=1", "ms=16"] {
            NvmeParams::parse(params).unwrap();
        }
    }
}

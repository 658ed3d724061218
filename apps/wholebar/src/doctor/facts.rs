//! Facts of a machine and of a PCI function, as far as opening one depends on them. They are read here, and weighed in `rules`.
//!
//! What cannot be read is not known, and said so by the rules: reading never fails.

use super::role::Role;
use crate::host::kib;
use crate::in_use::{self, Network};
use crate::openers::openers;
use rustix::fs::{Access, access};
use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;
use wholebar::PageSize;
use wholebar::pci::Address;
use wholebar::vfio::sysfs::{Function, Sysfs, is_vfio};

/// A machine, and what this process may do on it.
#[derive(Debug, Clone)]
pub struct Host {
    /// The granularity by which BARs are mapped.
    pub page: PageSize,
    /// The IOMMUs at work, by the kernel's names.
    pub iommus: Vec<String>,
    /// IOMMU groups that an IOMMU made.
    pub groups: usize,
    /// The ACPI tables by which firmware tells of an IOMMU: DMAR, IVRS, IORT.
    pub tables: Vec<&'static str>,
    /// What the kernel was started with.
    pub command_line: String,
    /// The chips that deliver message interrupts, as far as some are in use.
    pub chips: Vec<String>,
    /// `vfio-pci`, and what maps memory for it through a container.
    pub vfio_pci: Module,
    /// Its name, and whether it is there.
    pub iommu_driver: (&'static str, Module),
    /// By module, whether it attaches devices without a look at their interrupts; `None` where it doesn't say.
    pub unsafe_interrupts: [(&'static str, Option<bool>); 2],
    /// Whether VFIO takes devices without an IOMMU; `None` where it cannot, or isn't loaded.
    pub no_iommu: Option<bool>,
    /// `/dev/vfio/vfio`.
    pub container: Node,
    /// `/dev/iommu`.
    pub iommufd: Node,
    /// Whether there is a `/sys` to read all of this from.
    pub sees_sysfs: bool,
    /// By size and node; `None` where `/sys` doesn't show them.
    pub hugepages: Option<Vec<Hugepages>>,
    /// Those of the default size, as `/proc/meminfo` has them: bytes of one, total, free.
    pub default_hugepages: Option<(u64, u64, u64)>,
    /// The largest number of maps of a container (`dma_entry_limit` of `vfio_iommu_type1`), where that is loaded.
    pub dma_maps: Option<u64>,
    /// Whether this process may lock memory without limit (CAP_IPC_LOCK).
    pub locks_all: bool,
    /// Bytes that it may lock else: `u64::MAX` for any number.
    pub memlock: Option<u64>,
    /// Cores that the scheduler leaves alone, as the kernel writes them.
    pub isolated: String,
    /// How many NUMA nodes there are.
    pub nodes: usize,
    /// Every BAR in memory, with its function and number.
    bars: Vec<(Address, usize, RangeInclusive<u64>)>,
}

/// A kernel module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Module {
    /// Loaded, or part of the kernel.
    Here,
    /// `modprobe` would find it.
    Available,
    /// This kernel has none.
    Absent,
    /// Not loaded, and its files cannot be read here.
    Unknown,
}

/// A device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    /// This process may open it for reading and writing.
    Free,
    /// It may not.
    Denied,
    /// There is none.
    Missing,
}

/// Hugepages of one size on one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hugepages {
    /// Bytes of one.
    pub size: u64,
    /// The NUMA node.
    pub node: u32,
    /// How many are set aside.
    pub total: u64,
    /// How many of these nobody has.
    pub free: u64,
    /// The file that says how many are to be set aside.
    pub file: String,
    /// Bytes of its node that are free, or can be at once; `None` where the system doesn't tell.
    pub available: Option<u64>,
}

/// A PCI function.
#[derive(Debug, Clone)]
pub struct Device {
    /// Where it is.
    pub address: Address,
    /// Vendor and device.
    pub ids: Option<(u16, u16)>,
    /// Whether it is a bridge to another bus.
    pub bridge: bool,
    /// The driver that has it.
    pub driver: Option<String>,
    /// Its IOMMU group.
    pub group: Option<Group>,
    /// Its own node: its name, and whether it can be opened.
    pub own_node: Option<(String, Node)>,
    /// Processes that have it, or its group, open.
    pub openers: Vec<String>,
    /// What the system uses it for, and those that keep its group from being VFIO's, a sentence each, as far as that was
    /// [looked for](Self::find_uses): `wholebar bind` refuses these.
    pub uses: Vec<(Address, String)>,
    /// BARs smaller than a page.
    pub small_bars: Vec<SmallBar>,
    /// What SR-IOV makes of it.
    pub role: Option<Role>,
    /// Its NUMA node.
    pub numa_node: Option<u32>,
    /// The cores near it, as the kernel writes them.
    pub cores: Option<String>,
}

/// An IOMMU group.
#[derive(Debug, Clone)]
pub struct Group {
    /// Its number.
    pub number: u32,
    /// It is one that VFIO made where there is no IOMMU.
    pub no_iommu: bool,
    /// Its other functions, each with its driver.
    pub others: Vec<(Address, Option<String>)>,
    /// Those of them that keep it from being VFIO's, with the drivers that have them.
    pub obstacles: Vec<(Address, String)>,
    /// Memory that firmware wants its devices to keep reaching, by its addresses.
    pub direct: Vec<RangeInclusive<u64>>,
    /// Its node under `/dev/vfio`.
    pub node: Node,
}

/// A BAR in memory that is smaller than a page.
#[derive(Debug, Clone)]
pub struct SmallBar {
    /// Its number.
    pub bar: usize,
    /// Where it is.
    pub range: RangeInclusive<u64>,
    /// Other BARs in its page, each with its function and number.
    pub neighbours: Vec<(Address, usize)>,
}

impl Host {
    /// Reads those of a machine. `arch` (as Rust calls it) and `page` are not in files.
    pub fn read(sysfs: &Sysfs, arch: &'static str, page: PageSize) -> Self {
        let flag = |module| (module, sysfs.flag(module, "allow_unsafe_interrupts"));
        let iommu_driver = if arch == "powerpc64" { "vfio_iommu_spapr_tce" } else { "vfio_iommu_type1" };
        let bars = sysfs.functions().into_iter().flat_map(|f| {
            let bars = f.memory_bars().into_iter().enumerate();
            bars.filter_map(move |(n, range)| Some((f.address(), n, range?)))
        });
        let tables = ["DMAR", "IVRS", "IORT"];
        let has_table = |table: &&str| sysfs.path("sys/firmware/acpi/tables").join(table).exists();
        // Documentation/filesystems/proc.rst: the effective capabilities, in hex; bit 14 is CAP_IPC_LOCK.
        let status = sysfs.read("proc/self/status").unwrap_or_default();
        let capabilities = status.lines().find_map(|l| u64::from_str_radix(l.strip_prefix("CapEff:")?.trim(), 16).ok());
        Self {
            page,
            iommus: names(&sysfs.path("sys/class/iommu")),
            groups: real_groups(sysfs),
            tables: tables.into_iter().filter(has_table).collect(),
            command_line: sysfs.read("proc/cmdline").unwrap_or_default(),
            chips: chips(sysfs),
            // The variants of vfio-pci need its core alone.
            vfio_pci: if sysfs.has_module("vfio_pci_core") { Module::Here } else { module(sysfs, "vfio_pci") },
            iommu_driver: (iommu_driver, module(sysfs, iommu_driver)),
            unsafe_interrupts: [flag("vfio_iommu_type1"), flag("iommufd")],
            no_iommu: sysfs.flag("vfio", "enable_unsafe_noiommu_mode"),
            container: node(sysfs, "dev/vfio/vfio"),
            iommufd: node(sysfs, "dev/iommu"),
            sees_sysfs: sees(sysfs),
            hugepages: hugepages(sysfs),
            default_hugepages: default_hugepages(&sysfs.read("proc/meminfo").unwrap_or_default()),
            dma_maps: sysfs
                .read("sys/module/vfio_iommu_type1/parameters/dma_entry_limit")
                .and_then(|limit| limit.trim().parse().ok()),
            locks_all: capabilities.is_some_and(|bits| bits & 1 << 14 != 0),
            memlock: memlock(&sysfs.read("proc/self/limits").unwrap_or_default()),
            isolated: sysfs.read("sys/devices/system/cpu/isolated").unwrap_or_default(),
            nodes: numbered(sysfs, "node").len().max(1),
            bars: bars.collect(),
        }
    }

    /// Whether devices can be opened by their own nodes.
    pub fn has_own_nodes(&self) -> bool {
        self.iommufd != Node::Missing
    }
}

impl Device {
    /// Reads those of a function.
    pub fn read(sysfs: &Sysfs, host: &Host, function: &Function) -> Self {
        let address = function.address();
        let own_node = function.vfio_device().map(|name| {
            let node = node(sysfs, &format!("dev/vfio/devices/{name}"));
            (name, node)
        });
        let small_bars = host.bars.iter().filter(|(a, _, _)| *a == address);
        let small_bars = small_bars.filter_map(|(_, bar, range)| {
            let size = range.end() - range.start() + 1;
            let page = host.page.floor(*range.start())..=host.page.floor(*range.end()) | (host.page.bytes() - 1);
            let shares = |(a, n, r): &&(Address, usize, RangeInclusive<u64>)| {
                (*a, *n) != (address, *bar) && r.start() <= page.end() && page.start() <= r.end()
            };
            let neighbours = host.bars.iter().filter(shares).map(|(a, n, _)| (*a, *n)).collect();
            (size < host.page.bytes()).then(|| SmallBar { bar: *bar, range: range.clone(), neighbours })
        });
        Self {
            address,
            ids: function.vendor().zip(function.device()),
            bridge: function.is_bridge(),
            driver: function.driver(),
            group: function.group().map(|number| Group::read(sysfs, number, address)),
            own_node,
            openers: openers(sysfs, function),
            uses: Vec::new(),
            small_bars: small_bars.collect(),
            role: Role::read(sysfs, function),
            numa_node: function.numa_node(),
            cores: function.read("local_cpulist").filter(|list| !list.is_empty()),
        }
    }

    /// Looks for what the system uses it for, where it is to be bound, and those in its group that are.
    pub fn find_uses(&mut self, sysfs: &Sysfs, function: &Function, network: &Network) {
        let obstacles = self.group.iter().flat_map(|group| &group.obstacles);
        let others: Vec<Function> = obstacles.filter_map(|(address, _)| sysfs.function(*address)).collect();
        let to_bind = |f: &&Function| !f.driver().as_deref().is_some_and(is_vfio);
        for function in [function].into_iter().chain(&others).filter(to_bind) {
            let uses = in_use::uses(sysfs, function, network).into_iter();
            self.uses.extend(uses.map(|used| (function.address(), used)));
        }
    }
}

impl Group {
    fn read(sysfs: &Sysfs, number: u32, address: Address) -> Self {
        let others = sysfs.group(number).into_iter().filter(|f| f.address() != address && !f.is_bridge());
        let no_iommu = is_no_iommu(sysfs, &number.to_string());
        let prefix = if no_iommu { "noiommu-" } else { "" };
        let direct = sysfs.reserved_regions(number).into_iter().filter(|(_, kind)| kind == "direct");
        Self {
            number,
            no_iommu,
            others: others.map(|f| (f.address(), f.driver())).collect(),
            obstacles: sysfs.obstacles(number).into_iter().filter(|(a, _)| *a != address).collect(),
            direct: direct.map(|(range, _)| range).collect(),
            node: node(sysfs, &format!("dev/vfio/{prefix}{number}")),
        }
    }
}

/// Whether `/sys` is more than an empty directory.
pub fn sees(sysfs: &Sysfs) -> bool {
    fs::read_dir(sysfs.path("sys")).is_ok_and(|mut entries| entries.next().is_some())
}

fn real_groups(sysfs: &Sysfs) -> usize {
    names(&sysfs.path("sys/kernel/iommu_groups")).iter().filter(|group| !is_no_iommu(sysfs, group)).count()
}

fn is_no_iommu(sysfs: &Sysfs, group: &str) -> bool {
    sysfs.read(format!("sys/kernel/iommu_groups/{group}/name")).as_deref() == Some("vfio-noiommu")
}

/// The chips behind the interrupts in use: those for devices' messages.
fn chips(sysfs: &Sysfs) -> Vec<String> {
    let irqs = names(&sysfs.path("sys/kernel/irq"));
    let mut chips: Vec<String> = irqs
        .iter()
        .filter_map(|irq| sysfs.read(format!("sys/kernel/irq/{irq}/chip_name")))
        .filter(|name| name.contains("PCI-MSI"))
        .collect();
    chips.sort();
    chips
}

fn module(sysfs: &Sysfs, name: &str) -> Module {
    if sysfs.has_module(name) {
        return Module::Here;
    }
    let Some(release) = sysfs.kernel() else { return Module::Unknown };
    let file = |file: &str| sysfs.read(format!("lib/modules/{release}/{file}"));
    let lists = |text: &str| text.lines().any(|line| module_name(line) == name);
    match (file("modules.builtin"), file("modules.dep")) {
        (Some(builtin), _) if lists(&builtin) => Module::Here,
        (_, Some(dep)) if lists(&dep) => Module::Available,
        (_, Some(_)) => Module::Absent,
        (_, None) => Module::Unknown,
    }
}

/// `vfio_pci` for `kernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/…`.
fn module_name(line: &str) -> String {
    let path = line.split(':').next().unwrap_or_default();
    let file = path.rsplit('/').next().unwrap_or_default();
    file.split(".ko").next().unwrap_or_default().replace('-', "_")
}

fn node(sysfs: &Sysfs, path: &str) -> Node {
    let path = sysfs.path(path);
    match access(&path, Access::READ_OK | Access::WRITE_OK) {
        Ok(()) => Node::Free,
        Err(_) if path.exists() => Node::Denied,
        Err(_) => Node::Missing,
    }
}

fn hugepages(sysfs: &Sysfs) -> Option<Vec<Hugepages>> {
    let machine = kib(&sysfs.read("proc/meminfo").unwrap_or_default(), "MemAvailable");
    let nodes = numbered(sysfs, "node");
    let of_node = |node: &u32| {
        let directory = format!("sys/devices/system/node/node{node}");
        let here = node_available(&sysfs.read(format!("{directory}/meminfo")).unwrap_or_default(), *node);
        hugepages_in(sysfs, *node, &format!("{directory}/hugepages"), [here, machine].into_iter().flatten().min())
    };
    let mut all: Vec<Hugepages> = nodes.iter().flat_map(of_node).collect();
    if all.is_empty() {
        all = hugepages_in(sysfs, 0, "sys/kernel/mm/hugepages", machine);
    }
    all.sort_by_key(|h| (h.size, h.node));
    // A kernel without hugepages has the directory above them.
    (!all.is_empty() || sysfs.path("sys/kernel/mm").is_dir()).then_some(all)
}

fn hugepages_in(sysfs: &Sysfs, node: u32, directory: &str, available: Option<u64>) -> Vec<Hugepages> {
    let one = |name: String| {
        let number = |file| sysfs.read(format!("{directory}/{name}/{file}"))?.parse::<u64>().ok();
        let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let (size, file) = (kib.saturating_mul(1024), format!("/{directory}/{name}/nr_hugepages"));
        Some(Hugepages { size, node, total: number("nr_hugepages")?, free: number("free_hugepages")?, file, available })
    };
    names(&sysfs.path(directory)).into_iter().filter_map(one).collect()
}

/// Bytes of a node that are free, or hold files that can be read again: `Node 0 MemFree:  123 kB`.
fn node_available(meminfo: &str, node: u32) -> Option<u64> {
    let prefix = format!("Node {node} ");
    let lines: Vec<&str> = meminfo.lines().filter_map(|line| line.trim().strip_prefix(&prefix)).collect();
    let text = lines.join("\n");
    let files = ["Active(file)", "Inactive(file)"].iter().filter_map(|name| kib(&text, name));
    kib(&text, "MemFree").map(|free| files.fold(free, u64::saturating_add))
}

fn default_hugepages(meminfo: &str) -> Option<(u64, u64, u64)> {
    // Counts stand there without a unit.
    let count = |name| kib(meminfo, name).map(|n| n / 1024);
    Some((kib(meminfo, "Hugepagesize")?, count("HugePages_Total")?, count("HugePages_Free")?))
}

/// The numbers of what is called `prefix` and a number in `/sys/devices/system/node`.
fn numbered(sysfs: &Sysfs, prefix: &str) -> Vec<u32> {
    let names = names(&sysfs.path("sys/devices/system/node"));
    names.iter().filter_map(|name| name.strip_prefix(prefix)?.parse().ok()).collect()
}

/// The soft limit, in bytes: `Max locked memory         8388608              8388608              bytes`.
fn memlock(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        bytes => bytes.parse().ok(),
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

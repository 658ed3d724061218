//! The rules, on trees of files like a kernel's.

use super::facts::{Device, Host, Module, Node};
use super::finding::{Finding, Verdict};
use super::rules;
use crate::in_use::Network;
use std::fs;
use std::os::unix::fs::symlink;
use wholebar::PageSize;
use wholebar::vfio::sysfs::{Function, Sysfs};
use wholebar::vfio::{Route, VfioOptions};

/// A machine in a folder.
pub struct Tree {
    pub sysfs: Sysfs,
    _root: tempfile::TempDir,
}

impl Tree {
    pub fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        Self { sysfs: Sysfs::at(root.path()), _root: root }
    }

    /// One on which all is well: an IOMMU, remapped interrupts, vfio-pci, hugepages, limits.
    pub fn healthy() -> Self {
        Self::new()
            .directory("sys/class/iommu/dmar0")
            .directory("sys/module/vfio_pci")
            .put("sys/kernel/irq/30/chip_name", "IR-PCI-MSIX-0000:00:03.0")
            .put("sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "N")
            .put("sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "N")
            .put("dev/vfio/vfio", "")
            .hugepages(0, 512, 500)
            .put("proc/self/limits", "Max locked memory         unlimited            unlimited            bytes")
    }

    pub fn put(self, path: &str, text: &str) -> Self {
        let path = self.sysfs.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{text}\n")).unwrap();
        self
    }

    pub fn directory(self, path: &str) -> Self {
        fs::create_dir_all(self.sysfs.path(path)).unwrap();
        self
    }

    pub fn without(self, path: &str) -> Self {
        let path = self.sysfs.path(path);
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
        self
    }

    pub fn link(self, from: &str, to: &str) -> Self {
        let from = self.sysfs.path(from);
        fs::create_dir_all(from.parent().unwrap()).unwrap();
        symlink(to, from).unwrap();
        self
    }

    /// A function; an empty driver is none.
    pub fn function(self, address: &str, driver: &str, group: Option<u32>) -> Self {
        let device = format!("sys/bus/pci/devices/{address}");
        let mut tree =
            self.directory(&device).put_device(address, "vendor", "0x1b36").put_device(address, "device", "0x0010");
        if !driver.is_empty() {
            let path = format!("sys/bus/pci/drivers/{driver}");
            let to = tree.sysfs.path(&path);
            tree = tree.directory(&path).link(&format!("{device}/driver"), to.to_str().unwrap());
        }
        if let Some(group) = group {
            let path = format!("sys/kernel/iommu_groups/{group}");
            let (to, here) = (tree.sysfs.path(&path), tree.sysfs.path(&device));
            tree = tree
                .link(&format!("{path}/devices/{address}"), here.to_str().unwrap())
                .link(&format!("{device}/iommu_group"), to.to_str().unwrap())
                .put(&format!("dev/vfio/{group}"), "");
        }
        tree
    }

    pub fn put_device(self, address: &str, file: &str, text: &str) -> Self {
        self.put(&format!("sys/bus/pci/devices/{address}/{file}"), text)
    }

    fn bar(self, address: &str, start: u64, size: u64) -> Self {
        self.put_device(address, "resource", &format!("{start:#018x} {:#018x} 0x0000000000140204", start + size - 1))
    }

    /// Makes the functions at `virtual_ones` those of `physical`, of `total` that it may have.
    pub fn sriov(self, physical: &str, total: u16, virtual_ones: &[&str]) -> Self {
        let mut tree = self
            .put_device(physical, "sriov_totalvfs", &total.to_string())
            .put_device(physical, "sriov_numvfs", &virtual_ones.len().to_string())
            .put_device(physical, "sriov_drivers_autoprobe", "1");
        for (index, address) in virtual_ones.iter().enumerate() {
            let (up, down) = (format!("../{physical}"), format!("../{address}"));
            tree = tree
                .link(&format!("sys/bus/pci/devices/{physical}/virtfn{index}"), &down)
                .link(&format!("sys/bus/pci/devices/{address}/physfn"), &up);
        }
        tree
    }

    fn hugepages(self, node: u32, total: u64, free: u64) -> Self {
        self.hugepages_of(2048, node, total, free)
    }

    fn hugepages_of(self, kib: u64, node: u32, total: u64, free: u64) -> Self {
        let path = format!("sys/devices/system/node/node{node}/hugepages/hugepages-{kib}kB");
        self.put(&format!("{path}/nr_hugepages"), &total.to_string())
            .put(&format!("{path}/free_hugepages"), &free.to_string())
    }

    pub fn host(&self, page: PageSize) -> Host {
        Host::read(&self.sysfs, "x86_64", page)
    }
}

pub fn function(sysfs: &Sysfs, address: &str) -> Function {
    sysfs.function(address.parse().unwrap()).unwrap()
}

const DEVICE: &str = "0000:01:00.0";

/// All that is said of `DEVICE`.
fn all(tree: &Tree, page: PageSize, route: Route) -> Vec<Finding> {
    let (host, function) = (tree.host(page), function(&tree.sysfs, DEVICE));
    let options = VfioOptions { route, ..VfioOptions::default() };
    [super::machine(&host, route), super::function(&tree.sysfs, &host, &function, &options, Some(&Network::default()))]
        .concat()
}

/// What is not as it should be: check, verdict, evidence and mending in one.
fn failures(tree: &Tree, page: PageSize, route: Route) -> Vec<(&'static str, Verdict, String)> {
    let findings = all(tree, page, route).into_iter().filter(|f| f.verdict != Verdict::Ok);
    findings.map(|f| (f.check, f.verdict, format!("{} -> {}", f.evidence, f.mend.join(" -> ")))).collect()
}

/// Checks that exactly these are not as they should be, and say so.
fn expect(tree: &Tree, page: PageSize, route: Route, expected: &[(&str, Verdict, &[&str])]) {
    let found = failures(tree, page, route);
    assert_eq!(
        found.iter().map(|(check, verdict, _)| (*check, *verdict)).collect::<Vec<_>>(),
        expected.iter().map(|(check, verdict, _)| (*check, *verdict)).collect::<Vec<_>>(),
        "{found:#?}"
    );
    for ((_, _, text), (_, _, says)) in found.iter().zip(expected) {
        for part in *says {
            assert!(text.contains(part), "{text}\ndoes not say {part:?}");
        }
    }
}

use Verdict::{Stop, Warning};

#[test]
fn all_is_well() {
    let tree = Tree::healthy().function(DEVICE, "vfio-pci", Some(3)).bar(DEVICE, 0xfe60_0000, 0x4000);
    expect(&tree, PageSize::K4, Route::Auto, &[]);
    let checks: Vec<_> = all(&tree, PageSize::K4, Route::Auto).iter().map(|f| f.check).collect();
    let expected = [
        "IOMMU",
        "interrupts",
        "no-IOMMU",
        "vfio-pci",
        "IOMMU driver",
        "container",
        "hugepages",
        "pages",
        "memlock",
        "cores",
        "driver",
        "group",
    ];
    assert_eq!(checks, expected);
}

#[test]
fn what_pages_mean_here_is_told() {
    let tree = Tree::healthy().put("sys/module/vfio_iommu_type1/parameters/dma_entry_limit", "65535");
    let told = |page| {
        let findings = rules::host(&tree.host(page), Route::Auto);
        findings.into_iter().find(|finding| finding.check == "pages").unwrap().evidence
    };
    let small = told(PageSize::K4);
    assert!(small.starts_with("of 4 KiB: 1 GiB of plain memory is 262,144 of them"), "{small}");
    assert!(small.contains("pins 4 KiB; 65,535 maps") && !small.contains("MSI-X"), "{small}");
    let large = told(PageSize::K64);
    assert!(
        large.contains("16,384 of them") && large.contains("pins 64 KiB") && large.contains("MSI-X table"),
        "{large}"
    );
}

#[test]
fn whoever_has_the_device_is_named_with_the_command_that_takes_it() {
    let tree = Tree::healthy().function(DEVICE, "nvme", Some(3));
    expect(&tree, PageSize::K4, Route::Auto, &[("driver", Stop, &["nvme has it", "wholebar bind 0000:01:00.0"])]);
    let tree = Tree::healthy().function(DEVICE, "", Some(3));
    expect(&tree, PageSize::K4, Route::Auto, &[("driver", Stop, &["no driver", "wholebar bind 0000:01:00.0"])]);
    // A driver's variant for VFIO is one.
    expect(&Tree::healthy().function(DEVICE, "mlx5_vfio_pci", Some(3)), PageSize::K4, Route::Auto, &[]);
}

#[test]
fn a_group_is_all_of_vfio_or_none() {
    let other = |driver: &str| {
        let tree = Tree::healthy().function(DEVICE, "vfio-pci", Some(3)).function("0000:01:00.1", driver, Some(3));
        tree.function("0000:00:01.0", "pcieport", Some(3)).put_device("0000:00:01.0", "class", "0x060400")
    };
    for driver in ["", "vfio-pci", "pci-stub"] {
        expect(&other(driver), PageSize::K4, Route::Auto, &[]);
    }
    let says: &[&str] = &["3 is not VFIO's alone", "igb has 0000:01:00.1", "wholebar bind 0000:01:00.1"];
    expect(&other("igb"), PageSize::K4, Route::Auto, &[("group", Stop, says)]);
}

#[test]
fn without_an_iommu_it_says_what_the_firmware_has() {
    let bare = || Tree::healthy().without("sys/class/iommu/dmar0").function(DEVICE, "", None);
    let stop = |tree: Tree, says: &[&str]| {
        let driver = ("driver", Stop, &["no driver"][..]);
        expect(&tree, PageSize::K4, Route::Auto, &[("IOMMU", Stop, says), driver]);
    };
    stop(bare(), &["none: no device is in an IOMMU group", "firmware's setup", "enable_unsafe_noiommu_mode"]);
    let built_without = bare().without("sys/module/vfio");
    assert!(!failures(&built_without, PageSize::K4, Route::Auto)[0].2.contains("noiommu"), "it offers no such thing");
    stop(bare().put("sys/firmware/acpi/tables/DMAR", ""), &["VT-d", "intel_iommu=on"]);
    stop(bare().put("sys/firmware/acpi/tables/IVRS", ""), &["IVRS", "dmesg"]);
    stop(
        bare().put("sys/firmware/acpi/tables/IVRS", "").put("proc/cmdline", "quiet amd_iommu=off"),
        &["started with amd_iommu=off", "--remove-args='amd_iommu=off'"],
    );
    // A table is no obstacle, and neither is an argument that asks for it.
    let tree = bare().put("proc/cmdline", "intel_iommu=on iommu=pt").put("sys/firmware/acpi/tables/DMAR", "");
    stop(tree, &["makes no use of it"]);
}

#[test]
fn no_iommu_must_be_meant() {
    let parameter = "sys/module/vfio/parameters/enable_unsafe_noiommu_mode";
    let bare = |driver: &str| Tree::healthy().without("sys/class/iommu/dmar0").function(DEVICE, driver, None);
    let none = ("IOMMU", Warning, &["can reach all memory"][..]);
    expect(&bare("vfio-pci"), PageSize::K4, Route::NoIommu, &[none, ("no-IOMMU", Stop, &["echo 1 >"])]);
    // VFIO makes a group then.
    let bound = || {
        let tree =
            Tree::healthy().without("sys/class/iommu/dmar0").put(parameter, "Y").function(DEVICE, "vfio-pci", Some(0));
        tree.put("sys/kernel/iommu_groups/0/name", "vfio-noiommu").put("dev/vfio/noiommu-0", "").without("dev/vfio/0")
    };
    expect(&bound(), PageSize::K4, Route::NoIommu, &[none]);
    expect(
        &bound(),
        PageSize::K4,
        Route::Auto,
        &[
            ("IOMMU", Stop, &["none"]),
            ("no-IOMMU", Warning, &["overwrite all memory", "echo 0 >"]),
            ("group", Stop, &["no IOMMU's", "0000:01:00.0,via=no-iommu"]),
        ],
    );
    let poor = bound().hugepages(0, 0, 0);
    expect(&poor, PageSize::K4, Route::NoIommu, &[none, ("hugepages", Stop, &["they move", "nr_hugepages"])]);
    expect(
        &bare("vfio-pci").without(parameter),
        PageSize::K4,
        Route::NoIommu,
        &[none, ("no-IOMMU", Stop, &["modprobe vfio"])],
    );
}

#[test]
fn interrupts_that_are_not_remapped_stop_it_unless_somebody_said_so() {
    let parameter = "sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts";
    let chip = |name: &str| {
        let tree = Tree::healthy().function(DEVICE, "vfio-pci", Some(3));
        tree.put("sys/kernel/irq/30/chip_name", name).put("sys/kernel/irq/4/chip_name", "IO-APIC")
    };
    let plain = || chip("PCI-MSIX-0000:00:03.0");
    let says: &[&str] = &["not remapped (PCI-MSIX-0000:00:03.0)", "firmware", "echo Y > /sys/module/vfio_iommu_type1"];
    expect(&plain(), PageSize::K4, Route::Auto, &[("interrupts", Stop, says)]);
    let says: &[&str] = &["allow_unsafe_interrupts=Y", "left out of mappings"];
    expect(&plain().put(parameter, "Y"), PageSize::K4, Route::Auto, &[("interrupts", Warning, says)]);
    let says: &[&str] = &["remapped (IR-PCI-MSI", "echo N > /sys/module/vfio_iommu_type1"];
    expect(&chip("IR-PCI-MSI").put(parameter, "Y"), PageSize::K4, Route::Auto, &[("interrupts", Warning, says)]);
    expect(&chip("ITS-PCI-MSIX-0000:00:03.0"), PageSize::K4, Route::Auto, &[]);
    // Nothing says anything: nothing is said.
    expect(&chip("XIVE-MSI"), PageSize::K4, Route::Auto, &[]);
}

#[test]
fn small_bars_in_one_page_are_named_with_the_option_that_parts_them() {
    let tree = |second: u64| {
        let tree = Tree::healthy().function(DEVICE, "vfio-pci", Some(3)).function("0000:00:02.0", "", Some(4));
        tree.bar(DEVICE, 0x1_0000_0000, 0x4000).bar("0000:00:02.0", second, 0x4000)
    };
    expect(&tree(0x1_0000_4000), PageSize::K4, Route::Auto, &[]);
    let says: &[&str] = &[
        "BAR0 (16 KiB at 0x100000000)",
        "shares its 64 KiB page with BAR0 of 0000:00:02.0",
        "pci=resource_alignment=16@pci:1b36:0010",
    ];
    expect(&tree(0x1_0000_4000), PageSize::K64, Route::Auto, &[("BARs", Warning, says)]);
    expect(&tree(0x1_0001_0000), PageSize::K64, Route::Auto, &[]);
    let alone = all(&tree(0x1_0001_0000), PageSize::K64, Route::Auto);
    assert!(alone.iter().any(|f| f.check == "BARs" && f.evidence.contains("to itself")));
    let apart = tree(0x1_0001_0000).bar(DEVICE, 0x1_0000_8000, 0x4000);
    expect(&apart, PageSize::K64, Route::Auto, &[("BARs", Warning, &["does not begin a 64 KiB page"])]);
    expect(&apart, PageSize::K16, Route::Auto, &[]);
    // The order is that of the page.
    let small = tree(0x1_0001_0000).bar(DEVICE, 0x1_0000_1000, 0x1000);
    expect(&small, PageSize::K16, Route::Auto, &[("BARs", Warning, &["pci=resource_alignment=14@pci:1b36:0010"])]);
}

#[test]
fn modules_that_are_not_loaded() {
    let tree = |list: Option<&str>| {
        let tree = Tree::healthy()
            .function(DEVICE, "vfio-pci", Some(3))
            .without("sys/module/vfio_pci")
            .put("proc/sys/kernel/osrelease", "6.12.1");
        match list {
            Some(list) => tree.put("lib/modules/6.12.1/modules.dep", list),
            None => tree,
        }
    };
    let dep = "kernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/drivers/vfio/vfio.ko.xz";
    expect(&tree(Some(dep)), PageSize::K4, Route::Auto, &[("vfio-pci", Stop, &["not loaded", "modprobe vfio-pci"])]);
    expect(&tree(Some("vfio.ko:")), PageSize::K4, Route::Auto, &[("vfio-pci", Stop, &["has no vfio-pci"])]);
    expect(&tree(None), PageSize::K4, Route::Auto, &[("vfio-pci", Stop, &["not to be seen"])]);
    let builtin = tree(Some("")).put("lib/modules/6.12.1/modules.builtin", "kernel/drivers/vfio/pci/vfio-pci.ko");
    expect(&builtin, PageSize::K4, Route::Auto, &[]);
    let tree = tree(None).directory("sys/module/vfio_pci_core").without("sys/module/vfio_iommu_type1");
    expect(&tree, PageSize::K4, Route::Auto, &[("IOMMU driver", Stop, &["modprobe vfio_iommu_type1"])]);
    // A device's own node needs no container.
    let tree = tree.put("dev/iommu", "").put("dev/vfio/devices/vfio0", "").put_device(DEVICE, "vfio-dev/vfio0/dev", "");
    expect(&tree, PageSize::K4, Route::Auto, &[]);
    expect(&tree, PageSize::K4, Route::Group, &[("IOMMU driver", Stop, &[])]);
    assert_eq!(
        Host::read(&tree.sysfs, "powerpc64", PageSize::K64).iommu_driver,
        ("vfio_iommu_spapr_tce", Module::Unknown)
    );
}

#[test]
fn nodes_that_are_missing_or_not_ours() {
    let tree = || Tree::healthy().function(DEVICE, "vfio-pci", Some(3));
    expect(
        &tree().without("dev/vfio/3"),
        PageSize::K4,
        Route::Auto,
        &[("group", Stop, &["no /dev/vfio/3", "--device /dev/vfio"])],
    );
    expect(
        &tree().without("dev/vfio"),
        PageSize::K4,
        Route::Auto,
        &[("container", Stop, &["/dev/vfio/vfio"]), ("group", Stop, &[])],
    );
    // As root everything can be opened, so this is put into the facts.
    let (tree, mut host) = (tree(), tree().host(PageSize::K4));
    let mut device = Device::read(&tree.sysfs, &host, &function(&tree.sysfs, DEVICE));
    host.container = Node::Denied;
    if let Some(group) = &mut device.group {
        group.node = Node::Denied;
    }
    let findings = [rules::host(&host, Route::Auto), rules::device(&host, &device, &VfioOptions::default())].concat();
    let mends: Vec<_> = findings.iter().filter(|f| f.verdict == Stop).map(|f| (f.check, f.mend[0].as_str())).collect();
    let chmod = "chmod a+rw /dev/vfio/vfio    (it gives nobody a device)";
    assert_eq!(mends, [("container", chmod), ("group", "chown $USER /dev/vfio/3")]);
}

#[test]
fn what_bind_refuses_is_not_advised_before_its_use_has_ended() {
    const OTHER: &str = "0000:01:00.1";
    let disk = |address: &str, name: &str, tree: Tree| {
        let path = format!("sys/bus/pci/devices/{address}/nvme/nvme0/{name}");
        let to = tree.sysfs.path(&path);
        tree.put(&format!("{path}/dev"), "259:0").link(&format!("sys/class/block/{name}"), to.to_str().unwrap())
    };
    let swap = "Filename Type Size Used Priority\n/dev/nvme0n1 partition 1 0 -2";
    let tree = disk(DEVICE, "nvme0n1", Tree::healthy().function(DEVICE, "nvme", Some(3)).put("proc/swaps", swap));
    let used = "nvme has it, and the system uses it: nvme0n1 is swap";
    let first = "end that use, then: wholebar bind 0000:01:00.0 ";
    expect(&tree, PageSize::K4, Route::Auto, &[("driver", Stop, &[used, first, "--force"])]);
    // One of its group.
    let tree = Tree::healthy().function(DEVICE, "vfio-pci", Some(3)).function(OTHER, "nvme", Some(3));
    let tree = disk(OTHER, "nvme0n1", tree.put("proc/swaps", swap));
    let used = "nvme has 0000:01:00.1, and the system uses it: nvme0n1 is swap";
    let first = "end that use, then: wholebar bind 0000:01:00.1 ";
    expect(&tree, PageSize::K4, Route::Auto, &[("group", Stop, &[used, first])]);
}

#[test]
fn whoever_has_it_open_is_named() {
    let tree = Tree::healthy().function(DEVICE, "vfio-pci", Some(3)).link("proc/77/fd/9", "/dev/vfio/3");
    let tree = tree.put("proc/77/comm", "spdk_tgt").link("proc/78/fd/9", "/dev/vfio/33");
    expect(&tree, PageSize::K4, Route::Auto, &[("in use", Stop, &["process 77 (spdk_tgt) has it", "kill 77"])]);
}

#[test]
fn memory() {
    let tree = || Tree::healthy().function(DEVICE, "vfio-pci", Some(3));
    let says: &[&str] = &[
        "2 MiB: none",
        "plain pages",
        "echo 512 > /sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages    (1 GiB more)",
    ];
    expect(&tree().hugepages(0, 0, 0), PageSize::K4, Route::Auto, &[("hugepages", Warning, says)]);
    let limit =
        |limit: &str| tree().put("proc/self/limits", &format!("Max locked memory         {limit}  {limit}  bytes"));
    expect(&limit("8388608"), PageSize::K4, Route::Auto, &[("memlock", Warning, &["8 MiB", "ulimit -l unlimited"])]);
    expect(&limit("1073741824"), PageSize::K4, Route::Auto, &[]);
    expect(&limit("8388608").put("proc/self/status", "CapEff:\t0000000000004000"), PageSize::K4, Route::Auto, &[]);
    // Hugepages on the other node, and none on the device's.
    let far = tree().put_device(DEVICE, "numa_node", "1").hugepages(1, 0, 0);
    let says: &[&str] =
        &["node 1", "echo 512 > /sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages"];
    expect(&far, PageSize::K4, Route::Auto, &[("NUMA", Warning, says)]);
    expect(&far.hugepages(1, 4, 4), PageSize::K4, Route::Auto, &[]);
}

/// What the driver sees to, and what whoever has the card has to know.
#[test]
fn what_is_known_of_a_kind_is_told() {
    let healthy = || Tree::healthy().function(DEVICE, "vfio-pci", Some(3)).bar(DEVICE, 0xfe60_0000, 0x4000);
    let card = |id: &str| healthy().put_device(DEVICE, "vendor", "0x8086").put_device(DEVICE, "device", id);
    for (id, check, says) in [
        (
            "0x10d3",
            "errata",
            "to know: link power states (ASPM L0s, L1) lose packets and stop the device: boot with pcie_aspm=off; ",
        ),
        ("0x10d3", "errata", ". known, and heeded: PCIe completions go wrong, and sending stops; "),
        ("0x10c9", "errata", "known, and heeded: with MSI-X, a write-back threshold above 1 holds sent packets back; "),
        ("0x0953", "quirks", "known of its kind, and heeded: requests are cut at its stripes"),
    ] {
        let findings = all(&card(id), PageSize::K4, Route::Auto);
        let known: Vec<_> = findings.iter().filter(|finding| finding.check == check).collect();
        assert!(matches!(known[..], [one] if one.verdict == Verdict::Ok && one.evidence.contains(says)), "{known:#?}");
    }
    // One of which nothing is known.
    let findings = all(&card("0x1521"), PageSize::K4, Route::Auto);
    assert!(findings.iter().all(|finding| finding.check != "errata" && finding.check != "quirks"));
}

/// Checks what sets hugepages aside on a machine with these, in KiB, and so many KiB of memory available.
fn expect_aside(sizes: &[u64], available: u64, says: &[&str]) {
    let mut tree = Tree::new().put("proc/meminfo", &format!("MemAvailable:  {available} kB"));
    for kib in sizes {
        tree = tree.hugepages_of(*kib, 0, 0, 0);
    }
    let findings = super::machine(&tree.host(PageSize::K64), Route::Auto);
    let mend = &findings.iter().find(|f| f.check == "hugepages").unwrap().mend;
    assert_eq!(mend.len(), says.len(), "{sizes:?} {available}: {mend:#?}");
    for (mend, says) in mend.iter().zip(says) {
        assert!(mend.contains(says), "{sizes:?} {available}: {mend:?} does not say {says:?}");
    }
}

#[test]
fn hugepages_are_advised_by_bytes() {
    const GIB: u64 = 1 << 20;
    let file = |kib: u64| format!("> /sys/devices/system/node/node0/hugepages/hugepages-{kib}kB/nr_hugepages");
    // arm64 with 64 KiB pages, whose default is 512 MiB; without those made of several entries; on a small machine.
    let arm64 = format!("echo 512 {}    (1 GiB more)", file(2048));
    expect_aside(&[2048, 524_288, 16_777_216], 64 * GIB, &[&arm64]);
    let only_large = format!("echo 2 {}    (1 GiB more)", file(524_288));
    expect_aside(&[524_288], 64 * GIB, &[&only_large, "hugepagesz=512M hugepages=2"]);
    expect_aside(&[524_288], GIB + GIB / 2, &["echo 1 ", "hugepagesz=512M hugepages=1"]);
    expect_aside(
        &[524_288],
        GIB / 2,
        &["node 0 has 512 MiB of memory available: too little to set 512 MiB of it aside"],
    );
    // arm64 with 4 KiB pages: its smallest save nothing. ppc64 with hash and with radix tables, x86.
    expect_aside(&[64, 2048, 32_768, 1_048_576], 64 * GIB, &[&arm64]);
    expect_aside(&[64], 64 * GIB, &["echo 16384 "]);
    expect_aside(&[16_384, 16_777_216], 64 * GIB, &[&format!("echo 64 {}    (1 GiB more)", file(16_384))]);
    expect_aside(&[2048, 1_048_576], 300 << 10, &[&format!("echo 75 {}    (150 MiB more)", file(2048))]);
    // No memory for devices can be made of what is larger than 1 GiB, free or not.
    expect_aside(&[16_777_216], 640 * GIB, &["node 0 has none of up to 1 GiB"]);
    let free =
        Tree::healthy().function(DEVICE, "vfio-pci", Some(3)).hugepages(0, 0, 0).hugepages_of(16_777_216, 0, 2, 2);
    expect(&free, PageSize::K64, Route::Auto, &[("hugepages", Warning, &["16 GiB: 2 free of 2", "echo 512 >"])]);
}

#[test]
fn hugepages_are_advised_by_node() {
    let meminfo = |node: u32, free: u64| {
        format!("Node {node} MemTotal: 9999999 kB\nNode {node} MemFree: {free} kB\nNode {node} Inactive(file): 1000 kB")
    };
    let tree = Tree::healthy().function(DEVICE, "vfio-pci", Some(3)).hugepages(0, 600, 0).hugepages(1, 0, 0);
    let tree = tree.put("sys/devices/system/node/node0/meminfo", &meminfo(0, 8 << 20));
    let tree = tree.put("sys/devices/system/node/node1/meminfo", &meminfo(1, 7192));
    // Those that somebody has stay; a node that has little gives little.
    let says: &[&str] = &[
        "echo 1112 > /sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages    (1 GiB more)",
        "echo 2 > /sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages    (4 MiB more)",
    ];
    expect(&tree, PageSize::K4, Route::Auto, &[("hugepages", Warning, says)]);
    // A kernel that knows no nodes.
    let flat = Tree::new().put("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "0");
    let flat = flat.put("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "0").function(DEVICE, "", None);
    let text =
        failures(&flat, PageSize::K4, Route::Auto).into_iter().find(|(check, _, _)| *check == "hugepages").unwrap().2;
    assert!(text.contains("echo 512 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"), "{text}");
}

#[test]
fn what_is_not_to_be_seen_is_not_said_to_be_none() {
    let meminfo = "HugePages_Total:       8\nHugePages_Free:        3\nHugepagesize:       2048 kB";
    for tree in [Tree::new(), Tree::new().directory("sys")] {
        let findings = super::machine(&tree.put("proc/meminfo", meminfo).host(PageSize::K4), Route::Auto);
        let said: Vec<_> = findings.iter().map(|f| (f.check, f.verdict)).collect();
        assert_eq!(said, [("/sys", Stop), ("hugepages", Warning)], "nothing else is claimed");
        assert!(findings[0].mend[0].contains("mount -t sysfs"));
        assert!(findings[1].evidence.contains("of the default size, 2 MiB, /proc/meminfo counts 3 free of 8"));
    }
    // Only a part of /sys is there.
    let masked = Tree::healthy().function(DEVICE, "vfio-pci", Some(3)).without("sys/devices/system/node");
    expect(&masked, PageSize::K4, Route::Auto, &[("hugepages", Warning, &["not to be seen here"])]);
    let none = masked.directory("sys/kernel/mm");
    expect(&none, PageSize::K4, Route::Auto, &[("hugepages", Warning, &["this kernel has none"])]);
}

#[test]
fn a_terminal_has_room_for_all_but_commands() {
    let bare = || Tree::healthy().without("sys/class/iommu/dmar0").function(DEVICE, "nvme", None);
    let plain = Tree::healthy().function(DEVICE, "vfio-pci", Some(3)).put("sys/kernel/irq/30/chip_name", "PCI-MSI");
    for tree in [
        bare(),
        bare().put("sys/firmware/acpi/tables/DMAR", "").without("sys/module/vfio_pci").hugepages(0, 0, 0),
        plain.put("proc/self/limits", "Max locked memory 8388608 8388608 bytes"),
        Tree::healthy().function(DEVICE, "vfio-pci", Some(3)).bar(DEVICE, 0x1_0000_8000, 0x4000).without("dev/vfio"),
        Tree::new().function(DEVICE, "", None).hugepages_of(524_288, 0, 0, 0),
    ] {
        let text = super::text(DEVICE, None, &all(&tree, PageSize::K64, Route::Auto));
        let text = anstream::adapter::strip_str(&text).to_string();
        for line in text.lines().filter(|line| line.chars().count() > 80) {
            let mend =
                line.trim_start().strip_prefix("-> ").unwrap_or_else(|| panic!("{line}\nis too long in\n{text}"));
            assert!(super::is_command(mend), "{line}\nis too long in\n{text}");
        }
    }
    // A command stays whole, with what is said of it below.
    let tree = Tree::healthy().function(DEVICE, "vfio-pci", Some(3)).hugepages(0, 0, 0);
    let text = super::text(DEVICE, None, &all(&tree, PageSize::K4, Route::Auto));
    let whole = "-> echo 512 > /sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages\n               (1 GiB more)\n";
    assert!(text.contains(whole), "{text}");
}

#[test]
fn bridges_and_what_firmware_keeps() {
    let tree = Tree::healthy().function(DEVICE, "pcieport", Some(3)).put_device(DEVICE, "class", "0x060400");
    expect(&tree, PageSize::K4, Route::Auto, &[("bridge", Stop, &["nothing to drive"])]);
    let tree = Tree::healthy().function(DEVICE, "vfio-pci", Some(3));
    let regions = "0x00000000000e0000 0x00000000000fffff direct\n0x00000000fee00000 0x00000000feefffff msi";
    let tree = tree.put("sys/kernel/iommu_groups/3/reserved_regions", regions);
    expect(&tree, PageSize::K4, Route::Auto, &[("firmware", Warning, &["0xe0000 to 0xfffff"])]);
    // An IOMMU that is not responsible for this device.
    let tree = Tree::healthy().function(DEVICE, "vfio-pci", None).function("0000:02:00.0", "", Some(3));
    expect(&tree, PageSize::K4, Route::Auto, &[("group", Stop, &["no IOMMU is responsible"])]);
}

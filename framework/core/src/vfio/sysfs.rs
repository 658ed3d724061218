//! PCI functions as Linux shows them under `/sys`: drivers, IOMMU groups, BARs, virtual functions, the delivery of interrupts.
//!
//! A fact that cannot be read is `None`: in a container, much of `/sys` may be missing. Binding and unbinding return errors. The root of the tree is
//! a parameter, so that tests have one of their own.
//!
//! ```
//! # use wholebar_core as wholebar;
//! use wholebar::vfio::sysfs::Sysfs;
//!
//! for function in Sysfs::default().functions() {
//!     println!("{} is driven by {}", function.address(), function.driver().as_deref().unwrap_or("no driver"));
//! }
//! ```

mod sriov;

pub use sriov::Sriov;

use crate::pci::Address;
use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// The `/sys`, `/proc` and `/dev` of a system.
///
/// The default is this system's.
#[derive(Debug, Clone)]
pub struct Sysfs {
    root: PathBuf,
}

impl Default for Sysfs {
    /// This system's.
    fn default() -> Self {
        Self::at("/")
    }
}

/// A PCI function, as sysfs shows it.
///
/// Each method reads files.
#[derive(Debug, Clone)]
pub struct Function {
    sysfs: Sysfs,
    address: Address,
    path: PathBuf,
}

impl Sysfs {
    /// Returns the system whose `sys`, `proc` and `dev` are in `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Returns the path of a file of the system; `path` is relative to its root.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    /// Returns the text of a file of the system, without surrounding whitespace; `None` where it cannot be read.
    pub fn read(&self, path: impl AsRef<Path>) -> Option<String> {
        Some(fs::read_to_string(self.path(path)).ok()?.trim().to_owned())
    }

    /// Returns all PCI functions, ordered by address.
    pub fn functions(&self) -> Vec<Function> {
        let mut addresses: Vec<Address> =
            names(&self.path("sys/bus/pci/devices")).filter_map(|n| n.parse().ok()).collect();
        addresses.sort();
        addresses.into_iter().filter_map(|address| self.function(address)).collect()
    }

    /// Returns the function at `address`; `None` where there is none.
    pub fn function(&self, address: Address) -> Option<Function> {
        let path = self.path("sys/bus/pci/devices").join(address.to_string());
        path.is_dir().then(|| Function { sysfs: self.clone(), address, path })
    }

    /// Returns the functions of an IOMMU group, ordered by address.
    pub fn group(&self, group: u32) -> Vec<Function> {
        let mut addresses: Vec<Address> = names(&self.path(format!("sys/kernel/iommu_groups/{group}/devices")))
            .filter_map(|n| n.parse().ok())
            .collect();
        addresses.sort();
        addresses.into_iter().filter_map(|address| self.function(address)).collect()
    }

    /// Returns the functions of an IOMMU group that keep VFIO from taking it, each with its driver.
    pub fn obstacles(&self, group: u32) -> Vec<(Address, String)> {
        let in_the_way = |f: &Function| {
            let driver = f.driver()?;
            // Drivers of bridges, and pci-stub, leave DMA to others (`driver_managed_dma`).
            let harmless = is_vfio(&driver) || driver == "pci-stub" || f.is_bridge();
            (!harmless).then_some((f.address, driver))
        };
        self.group(group).iter().filter_map(in_the_way).collect()
    }

    /// Returns a boolean parameter of a kernel module; `None` where it cannot be read.
    pub fn flag(&self, module: &str, parameter: &str) -> Option<bool> {
        match self.read(format!("sys/module/{module}/parameters/{parameter}"))?.as_str() {
            "Y" | "1" => Some(true),
            "N" | "0" => Some(false),
            _ => None,
        }
    }

    /// Returns whether a kernel module is loaded, or built in.
    pub fn has_module(&self, module: &str) -> bool {
        self.path("sys/module").join(module).is_dir()
    }

    /// The devices of a class that lie in a directory of the tree, in order of their names.
    fn class_under(&self, class: &str, directory: &Path) -> Vec<String> {
        let class = self.path("sys/class").join(class);
        let Ok(directory) = directory.canonicalize() else { return Vec::new() };
        let inside = |name: &String| class.join(name).canonicalize().is_ok_and(|path| path.starts_with(&directory));
        let mut inside: Vec<String> = names(&class).filter(inside).collect();
        inside.sort();
        inside
    }

    /// Returns the kernel's version: `6.12.95+deb12-amd64`.
    pub fn kernel(&self) -> Option<String> {
        self.read("proc/sys/kernel/osrelease")
    }

    /// Returns the address ranges that devices of an IOMMU group cannot use, each with its type: `msi`, `reserved`, `direct`, and so on.
    pub fn reserved_regions(&self, group: u32) -> Vec<(RangeInclusive<u64>, String)> {
        let text = self.read(format!("sys/kernel/iommu_groups/{group}/reserved_regions")).unwrap_or_default();
        let line = |line: &str| {
            let mut words = line.split_whitespace();
            let (start, end) = (hex(words.next()?)?, hex(words.next()?)?);
            Some((start..=end, words.next()?.to_owned()))
        };
        text.lines().filter_map(line).collect()
    }
}

impl Function {
    /// Returns the function's address.
    pub fn address(&self) -> Address {
        self.address
    }

    /// Returns the function's directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the driver that is bound to the function.
    pub fn driver(&self) -> Option<String> {
        link(&self.path.join("driver"))
    }

    /// Returns the one driver that may be bound to the function, where an override is set.
    pub fn driver_override(&self) -> Option<String> {
        self.read("driver_override").filter(|name| name != "(null)")
    }

    /// Returns the function's IOMMU group; `None` where no IOMMU is in use.
    pub fn group(&self) -> Option<u32> {
        link(&self.path.join("iommu_group"))?.parse().ok()
    }

    /// Returns the name of the function's node under `/dev/vfio/devices`, where the kernel has one. The file may be missing even so.
    pub fn vfio_device(&self) -> Option<String> {
        let mut names: Vec<String> = names(&self.path.join("vfio-dev")).collect();
        names.sort();
        names.into_iter().next()
    }

    /// Returns the function's NUMA node.
    pub fn numa_node(&self) -> Option<u32> {
        self.read("numa_node")?.parse().ok()
    }

    /// Returns the vendor id.
    pub fn vendor(&self) -> Option<u16> {
        self.number("vendor")
    }

    /// Returns the device id.
    pub fn device(&self) -> Option<u16> {
        self.number("device")
    }

    /// Returns base class, sub-class and programming interface as one number: 0x010802 is NVMe.
    pub fn class(&self) -> Option<u32> {
        u32::try_from(hex(&self.read("class")?)?).ok()
    }

    /// Returns whether the function is a bridge to another bus (PCI, CardBus). VFIO does not take bridges, and they are no obstacle in an IOMMU group.
    pub fn is_bridge(&self) -> bool {
        self.class().is_some_and(|class| matches!(class >> 8, 0x0604 | 0x0607 | 0x0609))
    }

    /// Returns the physical addresses of BARs 0 to 5; `None` where there is no such BAR, or this process may not see it.
    pub fn bars(&self) -> [Option<RangeInclusive<u64>>; 6] {
        self.resources(0)
    }

    /// Returns the physical addresses of those of BARs 0 to 5 that decode memory, and are assigned.
    pub fn memory_bars(&self) -> [Option<RangeInclusive<u64>>; 6] {
        // IORESOURCE_MEM, of include/linux/ioport.h.
        self.resources(0x200).map(|bar| bar.filter(|range| *range.start() != 0))
    }

    /// BARs whose flags hold `flags`.
    fn resources(&self, flags: u64) -> [Option<RangeInclusive<u64>>; 6] {
        let text = self.read("resource").unwrap_or_default();
        let mut lines = text.lines();
        std::array::from_fn(|_| {
            let mut words = lines.next()?.split_whitespace();
            let (start, end) = (hex(words.next()?)?, hex(words.next()?)?);
            let has = words.next().and_then(hex).unwrap_or(0) & flags == flags;
            (start < end && has).then_some(start..=end)
        })
    }

    /// Returns the disks of the function, by their names under `/dev`, whichever bus they are on behind it.
    pub fn disks(&self) -> Vec<String> {
        let mut disks = self.under("block");
        // With native multipath, a namespace's disk belongs to the subsystem of its controllers.
        let controllers = self.under("nvme");
        for subsystem in names(&self.sysfs.path("sys/class/nvme-subsystem")) {
            let path = self.sysfs.path("sys/class/nvme-subsystem").join(&subsystem);
            if controllers.iter().any(|controller| path.join(controller).exists()) {
                disks.extend(self.sysfs.class_under("block", &path));
            }
        }
        let shown = |name: &String| {
            let is = |file: &str| self.sysfs.read(format!("sys/class/block/{name}/{file}"));
            is("partition").is_none() && is("hidden").as_deref() != Some("1")
        };
        disks.retain(shown);
        disks.sort();
        disks.dedup();
        disks
    }

    /// Returns the network interfaces of the function that this process's network namespace has.
    pub fn interfaces(&self) -> Vec<String> {
        self.under("net")
    }

    fn under(&self, class: &str) -> Vec<String> {
        self.sysfs.class_under(class, &self.path)
    }

    /// Returns the Linux numbers of the function's message interrupts, each with the name of the chip that delivers it.
    pub fn message_interrupts(&self) -> Vec<(u32, Option<String>)> {
        let mut irqs: Vec<u32> = names(&self.path.join("msi_irqs")).filter_map(|n| n.parse().ok()).collect();
        irqs.sort();
        irqs.into_iter().map(|irq| (irq, self.sysfs.read(format!("sys/kernel/irq/{irq}/chip_name")))).collect()
    }

    /// Returns the text of a file in the function's directory, without surrounding whitespace; `None` where it cannot be read.
    pub fn read(&self, file: &str) -> Option<String> {
        Some(fs::read_to_string(self.path.join(file)).ok()?.trim().to_owned())
    }

    /// Binds the function to `driver`, and unbinds it from another one first.
    ///
    /// # Errors
    /// Those of writing to files of /sys: `PermissionDenied` without root, `NotFound` where the function is gone. An error of kind `Other`, which names the
    /// driver, where the function is bound to another one, or to none, afterwards.
    pub fn bind(&self, driver: &str) -> io::Result<()> {
        self.set_driver_override(Some(driver))?;
        self.unbind()?;
        match self.probe()? {
            Some(bound) if bound == driver => Ok(()),
            Some(bound) => Err(io::Error::other(format!("it is bound to {bound}"))),
            None => Err(io::Error::other(format!("{driver} did not take it: is the module loaded?"))),
        }
    }

    /// Sets the one driver that may be bound to the function; `None` for any. It has no effect before the next [`probe`](Self::probe).
    ///
    /// # Errors
    /// Those of writing to its `driver_override`: `PermissionDenied` without root, `NotFound` where the function is gone.
    pub fn set_driver_override(&self, driver: Option<&str>) -> io::Result<()> {
        // An empty line takes the override away.
        self.write("driver_override", driver.unwrap_or("\n"))
    }

    /// Unbinds the function from its driver, if it has one. VFIO waits until every process has closed the device.
    ///
    /// # Errors
    /// Those of writing to its driver's `unbind`: `PermissionDenied` without root.
    pub fn unbind(&self) -> io::Result<()> {
        match self.driver() {
            Some(_) => self.write("driver/unbind", &self.address.to_string()),
            None => Ok(()),
        }
    }

    /// Lets the kernel choose a driver for a function that has none, and returns the driver that it has then.
    ///
    /// # Errors
    /// Those of writing to `drivers_probe`: `PermissionDenied` without root, `InvalidInput` where a driver refuses the function.
    pub fn probe(&self) -> io::Result<Option<String>> {
        fs::write(self.sysfs.path("sys/bus/pci/drivers_probe"), self.address.to_string())?;
        Ok(self.driver())
    }

    fn write(&self, file: &str, text: &str) -> io::Result<()> {
        fs::write(self.path.join(file), text)
    }

    fn number(&self, file: &str) -> Option<u16> {
        u16::try_from(hex(&self.read(file)?)?).ok()
    }
}

/// Returns whether a driver is one of VFIO's: `vfio-pci` and its variants (`mlx5_vfio_pci`, and so on).
pub fn is_vfio(driver: &str) -> bool {
    driver == "vfio-pci" || driver.ends_with("vfio_pci") || driver.ends_with("vfio-pci")
}

fn names(directory: &Path) -> impl Iterator<Item = String> {
    fs::read_dir(directory).into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}

fn link(path: &Path) -> Option<String> {
    fs::read_link(path).ok()?.file_name()?.to_str().map(str::to_owned)
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A tree with some functions, as (address, driver, group).
    pub(crate) fn tree(functions: &[(&str, Option<&str>, Option<u32>)]) -> (tempfile::TempDir, Sysfs) {
        let root = tempfile::tempdir().unwrap();
        for (address, driver, group) in functions {
            let path = root.path().join("sys/bus/pci/devices").join(address);
            fs::create_dir_all(&path).unwrap();
            if let Some(driver) = driver {
                let driver = root.path().join("sys/bus/pci/drivers").join(driver);
                fs::create_dir_all(&driver).unwrap();
                symlink(&driver, path.join("driver")).unwrap();
            }
            if let Some(group) = group {
                let group = root.path().join(format!("sys/kernel/iommu_groups/{group}"));
                fs::create_dir_all(group.join("devices")).unwrap();
                symlink(&path, group.join("devices").join(address)).unwrap();
                symlink(&group, path.join("iommu_group")).unwrap();
            }
        }
        let sysfs = Sysfs::at(root.path());
        (root, sysfs)
    }

    pub(crate) fn put(sysfs: &Sysfs, path: &str, text: &str) {
        let path = sysfs.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn functions_and_groups() {
        let (_root, sysfs) = tree(&[
            ("0000:02:00.0", Some("nvme"), Some(12)),
            ("0000:01:00.0", Some("vfio-pci"), Some(3)),
            ("0000:01:00.1", None, Some(3)),
            ("0000:00:1f.0", None, None),
        ]);
        fs::create_dir_all(sysfs.path("sys/bus/pci/devices/not an address")).unwrap();
        let all: Vec<String> = sysfs.functions().iter().map(|f| f.address().to_string()).collect();
        assert_eq!(all, ["0000:00:1f.0", "0000:01:00.0", "0000:01:00.1", "0000:02:00.0"]);
        let group: Vec<_> = sysfs.group(3).iter().map(|f| (f.address().function, f.driver())).collect();
        assert_eq!(group, [(0, Some("vfio-pci".to_owned())), (1, None)]);
        let function = sysfs.function("02:00.0".parse().unwrap()).unwrap();
        assert_eq!((function.group(), function.driver()), (Some(12), Some("nvme".to_owned())));
        assert_eq!(sysfs.functions()[0].group(), None);
        assert!(sysfs.function("ff:00.0".parse().unwrap()).is_none());
        assert!(sysfs.group(99).is_empty());
    }

    #[test]
    fn whoever_keeps_a_group_from_vfio_is_named() {
        let (_root, sysfs) = tree(&[
            ("0000:00:01.0", Some("pcieport"), Some(3)),
            ("0000:01:00.0", Some("vfio-pci"), Some(3)),
            ("0000:01:00.1", Some("nvme"), Some(3)),
            ("0000:01:00.2", None, Some(3)),
            ("0000:01:00.3", Some("pci-stub"), Some(3)),
            ("0000:01:00.4", Some("mlx5_vfio_pci"), Some(3)),
            ("0000:00:1f.0", Some("lpc_ich"), Some(3)),
        ]);
        put(&sysfs, "sys/bus/pci/devices/0000:00:01.0/class", "0x060400\n");
        put(&sysfs, "sys/bus/pci/devices/0000:00:1f.0/class", "0x060100\n");
        let others: Vec<_> = sysfs.obstacles(3).into_iter().map(|(a, driver)| format!("{driver} {a}")).collect();
        assert_eq!(others, ["lpc_ich 0000:00:1f.0", "nvme 0000:01:00.1"], "an ISA bridge's driver is one like others");
        assert_eq!(sysfs.obstacles(4), []);
    }

    #[test]
    fn disks_and_interfaces_of_a_function() {
        let (_root, sysfs) = tree(&[("0000:01:00.0", Some("nvme"), None), ("0000:02:00.0", Some("virtio-pci"), None)]);
        let of = |class: &str, name: &str, path: &str| {
            let path = sysfs.path(path);
            fs::create_dir_all(&path).unwrap();
            fs::create_dir_all(sysfs.path("sys/class").join(class)).unwrap();
            symlink(&path, sysfs.path("sys/class").join(class).join(name)).unwrap();
        };
        let (nvme, virtio) =
            ("sys/bus/pci/devices/0000:01:00.0/nvme/nvme0", "sys/bus/pci/devices/0000:02:00.0/virtio0");
        of("nvme", "nvme0", nvme);
        of("block", "nvme0n1", &format!("{nvme}/nvme0n1"));
        of("block", "nvme0n1p1", &format!("{nvme}/nvme0n1/nvme0n1p1"));
        put(&sysfs, &format!("{nvme}/nvme0n1/nvme0n1p1/partition"), "1\n");
        // The second namespace is a multipath one: a hidden path of the controller, and a disk of its subsystem.
        of("block", "nvme0c0n2", &format!("{nvme}/nvme0c0n2"));
        put(&sysfs, &format!("{nvme}/nvme0c0n2/hidden"), "1\n");
        let subsystem = "sys/devices/virtual/nvme-subsystem/nvme-subsys0";
        of("nvme-subsystem", "nvme-subsys0", subsystem);
        symlink(sysfs.path(nvme), sysfs.path(subsystem).join("nvme0")).unwrap();
        of("block", "nvme0n2", &format!("{subsystem}/nvme0n2"));
        of("block", "vda", &format!("{virtio}/block/vda"));
        of("net", "eth0", &format!("{virtio}/net/eth0"));
        of("net", "lo", "sys/devices/virtual/net/lo");
        let function = |address: &str| sysfs.function(address.parse().unwrap()).unwrap();
        assert_eq!(function("0000:01:00.0").disks(), ["nvme0n1", "nvme0n2"]);
        assert_eq!(function("0000:02:00.0").disks(), ["vda"]);
        assert_eq!(
            (function("0000:01:00.0").interfaces(), function("0000:02:00.0").interfaces()),
            (vec![], vec!["eth0".to_owned()])
        );
    }

    #[test]
    fn facts() {
        let (_root, sysfs) = tree(&[("0000:01:00.0", None, Some(3))]);
        let at = "sys/bus/pci/devices/0000:01:00.0";
        put(&sysfs, &format!("{at}/vendor"), "0x1b36\n");
        put(&sysfs, &format!("{at}/device"), "0x0010\n");
        put(&sysfs, &format!("{at}/class"), "0x010802\n");
        put(&sysfs, &format!("{at}/numa_node"), "-1\n");
        let none = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n";
        let bar = "0x00000000fe600000 0x00000000fe603fff 0x0000000000140204\n";
        let io = "0x000000000000c000 0x000000000000c03f 0x0000000000040101\n";
        let unplaced = "0x0000000000000000 0x0000000000000fff 0x0000000020040200\n";
        put(&sysfs, &format!("{at}/resource"), &format!("{bar}{none}{io}{unplaced}"));
        put(&sysfs, &format!("{at}/driver_override"), "(null)\n");
        put(&sysfs, &format!("{at}/msi_irqs/31"), "msix\n");
        put(&sysfs, &format!("{at}/msi_irqs/30"), "msix\n");
        put(&sysfs, "sys/kernel/irq/30/chip_name", "IR-PCI-MSIX-0000:01:00.0\n");
        let region = "0x00000000fee00000 0x00000000feefffff msi\nnonsense\n";
        put(&sysfs, "sys/kernel/iommu_groups/3/reserved_regions", region);
        put(&sysfs, "sys/module/iommufd/parameters/allow_unsafe_interrupts", "N\n");
        fs::create_dir_all(sysfs.path(format!("{at}/vfio-dev/vfio7"))).unwrap();

        let f = sysfs.function("0000:01:00.0".parse().unwrap()).unwrap();
        assert_eq!(
            (f.vendor(), f.device(), f.class(), f.numa_node()),
            (Some(0x1b36), Some(0x10), Some(0x010802), None)
        );
        let memory = Some(0xfe60_0000..=0xfe60_3fff);
        assert_eq!(f.bars(), [memory.clone(), None, Some(0xc000..=0xc03f), Some(0..=0xfff), None, None]);
        assert_eq!(f.memory_bars(), [memory, None, None, None, None, None]);
        assert_eq!(f.driver_override(), None);
        assert_eq!(f.message_interrupts(), [(30, Some("IR-PCI-MSIX-0000:01:00.0".to_owned())), (31, None)]);
        assert_eq!(f.vfio_device().as_deref(), Some("vfio7"));
        assert!(!f.is_bridge());
        assert_eq!(sysfs.reserved_regions(3), [(0xfee0_0000..=0xfeef_ffff, "msi".to_owned())]);
        assert_eq!(sysfs.flag("iommufd", "allow_unsafe_interrupts"), Some(false));
        assert_eq!(sysfs.flag("vfio", "enable_unsafe_noiommu_mode"), None);
        assert!(sysfs.has_module("iommufd") && !sysfs.has_module("vfio"));
        assert_eq!(sysfs.kernel(), None);
    }
}

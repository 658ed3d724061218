//! The guests: which kernel, and QEMU's command line for a machine with the devices asked for.

use std::fmt;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use super::kernel::Source;

/// A guest, named by its CPU and page size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Guest {
    /// Debian's kernel, an Intel IOMMU with interrupt remapping
    #[value(name = "x86_64")]
    X86_64,
    /// Debian's kernel with 4 KiB pages on a POWER10 with an sPAPR IOMMU, each device behind a host bridge of its own
    #[value(name = "ppc64le-4k")]
    Ppc64le4k,
    /// The same kernel with 64 KiB pages
    #[value(name = "ppc64le-64k")]
    Ppc64le64k,
    /// Debian's kernel with 4 KiB pages, SMMUv3 and GICv3 ITS
    #[value(name = "aarch64-4k")]
    Aarch644k,
    /// The same kernel with 16 KiB pages
    #[value(name = "aarch64-16k")]
    Aarch6416k,
    /// As x86_64, with a kernel built for it that has VFIO's character devices, iommufd and no-IOMMU
    #[value(name = "x86_64-iommufd")]
    X86_64Iommufd,
    /// As the other aarch64 guests, with a kernel built for it that has 64 KiB pages, iommufd and no-IOMMU
    #[value(name = "aarch64-64k")]
    Aarch6464k,
}

/// What differs from one CPU to another.
pub struct Cpu {
    /// As `tools/cross` and Rust's target triples say.
    pub name: &'static str,
    pub debian: &'static str,
    /// As the kernel's source says, and the file to boot that its build makes.
    pub kernel: &'static str,
    pub image: &'static str,
    pub qemu: &'static str,
    pub qemu_package: &'static str,
    /// The kernel's VFIO IOMMU module.
    pub iommu_module: &'static str,
    /// The bus for what isn't under test; left to itself QEMU takes the newest host bridge, and with it the device's group.
    pub root_bus: &'static str,
    console: &'static str,
    kernel_arguments: &'static str,
    machine: &'static [&'static str],
    bridge: fn(usize) -> Slot,
}

/// A place for a device in an IOMMU group of its own.
struct Slot {
    bridge: String,
    /// The properties that put a device there.
    place: String,
}

const X86_64: Cpu = Cpu {
    name: "x86_64",
    debian: "amd64",
    kernel: "x86",
    image: "vmlinux",
    qemu: "qemu-system-x86_64",
    qemu_package: "qemu-system-x86",
    iommu_module: "vfio_iommu_type1",
    root_bus: "pcie.0",
    console: "ttyS0",
    // A periodic tick: emulated CPUs lose a timer's interrupt now and then, and one that was armed for that tick alone sleeps for ever. On a busy machine
    // none comes while the kernel tries the timer for ten ticks, and it panics: it need not try.
    kernel_arguments: "intel_iommu=on nohz=off highres=off no_timer_check",
    machine: &["-machine", "q35,kernel-irqchip=split", "-cpu", "max"],
    bridge: root_port,
};

const PPC64LE: Cpu = Cpu {
    name: "powerpc64le",
    debian: "ppc64el",
    kernel: "powerpc",
    image: "vmlinux",
    qemu: "qemu-system-ppc64",
    qemu_package: "qemu-system-ppc",
    iommu_module: "vfio_iommu_spapr_tce",
    root_bus: "pci.0",
    console: "hvc0",
    kernel_arguments: "mitigations=off",
    // The broken mitigations are what TCG can do. x-vof: a firmware of a few instructions instead of seconds of Open Firmware.
    machine: &[
        "-machine",
        "pseries,x-vof=on,cap-cfpc=broken,cap-sbbc=broken,cap-ibs=broken,cap-ccf-assist=off",
        "-cpu",
        "power10",
    ],
    bridge: host_bridge,
};

const AARCH64: Cpu = Cpu {
    name: "aarch64",
    debian: "arm64",
    kernel: "arm64",
    image: "Image",
    qemu: "qemu-system-aarch64",
    qemu_package: "qemu-system-arm",
    iommu_module: "vfio_iommu_type1",
    root_bus: "pcie.0",
    console: "ttyAMA0",
    kernel_arguments: "mitigations=off nokaslr",
    machine: &["-machine", "virt,gic-version=3,its=on", "-cpu", "max,pauth-impdef=on"],
    bridge: root_port,
};

fn root_port(number: usize) -> Slot {
    Slot {
        bridge: format!("pcie-root-port,id=port{number},chassis={number},slot={number}"),
        place: format!("bus=port{number}"),
    }
}

fn host_bridge(number: usize) -> Slot {
    Slot {
        bridge: format!("spapr-pci-host-bridge,index={number},id=pci.{number}"),
        place: format!("bus=pci.{number}.0,addr=1"),
    }
}

impl fmt::Display for Guest {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.to_possible_value().as_ref().map_or("", |value| value.get_name()))
    }
}

impl Guest {
    pub fn cpu(self) -> &'static Cpu {
        match self {
            Guest::X86_64 | Guest::X86_64Iommufd => &X86_64,
            Guest::Ppc64le4k | Guest::Ppc64le64k => &PPC64LE,
            Guest::Aarch644k | Guest::Aarch6416k | Guest::Aarch6464k => &AARCH64,
        }
    }

    pub fn kernel(self) -> Source {
        match self {
            Guest::X86_64 => Source::Package("linux-image-amd64"),
            Guest::Ppc64le4k => Source::Package("linux-image-powerpc64le"),
            Guest::Ppc64le64k => Source::Package("linux-image-powerpc64le-64k"),
            Guest::Aarch644k => Source::Package("linux-image-arm64"),
            Guest::Aarch6416k => Source::Package("linux-image-arm64-16k"),
            Guest::X86_64Iommufd => Source::Configuration("x86_64-iommufd.config"),
            Guest::Aarch6464k => Source::Configuration("aarch64-64k.config"),
        }
    }
}

/// The machine around the guest.
#[derive(Debug, Clone, Args)]
pub struct Machine {
    /// An NVMe device with a disk of this size, and QEMU's properties for it: 1G, 64M,msix-exclusive-bar=on; pmr=64K gives it a persistent memory region of that
    /// size. Repeat for more. One of 256M if none is named
    #[arg(long, value_name = "SIZE[,PROPERTY=VALUE]", value_parser = disk)]
    pub nvme: Vec<Disk>,
    /// A further namespace of the first NVMe device, with a disk of this size, and QEMU's properties for it: 64M,ms=8,pi=1 or 64M,zoned=on. Repeat for more
    #[arg(long, value_name = "SIZE[,PROPERTY=VALUE]", value_parser = disk)]
    pub nvme_ns: Vec<Disk>,
    /// The NVMe devices are controllers of one subsystem, which shares their disks and has these properties of QEMU's: fdp=on,fdp.runs=1M,fdp.nrg=2,fdp.nruh=4
    #[arg(long, value_name = "PROPERTY=VALUE")]
    pub nvme_subsys: Option<String>,
    /// A network device: virtio-net, igb, e1000e, vmxnet3 or any other that QEMU has, and its properties: virtio-net,packed=on. Repeat for more. All are on
    /// one Ethernet hub, but for those with another's number (igb,hub=1), and those with a TAP interface each on a bridge of this machine
    /// (virtio-net,wire=tap), which can do what no hub can: two pairs of queues, RSS, checksums and TCP segments
    #[arg(long, value_name = "MODEL[,PROPERTY=VALUE]", value_parser = nic)]
    pub nic: Vec<Nic>,
    /// A virtio block device with a disk of this size, and QEMU's properties for it: 64M,packed=on
    #[arg(long, value_name = "SIZE[,PROPERTY=VALUE]", value_parser = disk)]
    pub blk: Vec<Disk>,
    /// Any other device that QEMU has, and its properties: edu. Repeat for more
    #[arg(long, value_name = "MODEL[,PROPERTY=VALUE]")]
    pub device: Vec<String>,
    /// Without interrupt remapping (x86_64 only): VFIO then refuses devices unless told not to
    #[arg(long)]
    pub no_intremap: bool,
    /// Without an IOMMU (x86_64 and aarch64): VFIO then has devices only where its kernel knows no-IOMMU and it is told to use it
    #[arg(long, conflicts_with = "no_intremap")]
    pub no_iommu: bool,
    /// Virtual CPUs
    #[arg(long, default_value_t = 2)]
    pub cpus: u32,
    /// Memory in MiB
    #[arg(long, value_name = "MIB", default_value_t = 2048)]
    pub memory: u32,
    /// One more argument for the guest kernel's command line
    #[arg(long, value_name = "ARGUMENT")]
    pub append: Vec<String>,
    /// One more argument for QEMU
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    pub qemu: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Bytes.
    pub size: u64,
    /// As QEMU has them, each with a comma in front.
    properties: String,
    /// Bytes of an NVMe device's persistent memory region.
    pmr: Option<u64>,
}

impl Default for Disk {
    fn default() -> Disk {
        Disk { size: 256 << 20, properties: String::new(), pmr: None }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// As QEMU has it, with its properties.
    model: String,
    wire: Wire,
}

/// What a network device is wired to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wire {
    /// A hub of QEMU's, by its number.
    Hub(u32),
    /// A TAP interface of the machine that QEMU runs on, on a bridge with the others.
    Tap,
}

/// Pairs of queues of a TAP interface; a device uses as many as it is told to (`mq=on`).
const TAP_QUEUES: u32 = 2;

/// Of a virtio device: behind the IOMMU, as hardware is, and without the port I/O of old.
const MODERN: &str = "disable-legacy=on,iommu_platform=on";

fn nic(text: &str) -> std::result::Result<Nic, String> {
    let mut wire = Wire::Hub(0);
    let mut words = Vec::new();
    for word in text.split(',') {
        match word.split_once('=') {
            Some(("hub", number)) => {
                wire = Wire::Hub(number.parse().map_err(|_| format!("{number:?} is no hub: they have numbers"))?);
            }
            Some(("wire", "tap")) => wire = Wire::Tap,
            Some(("wire", other)) => return Err(format!("{other:?} is no wire: there is tap, and hub=NUMBER")),
            _ => words.push(word),
        }
    }
    let modern = format!("virtio-net-pci,{MODERN}");
    if let [model @ "virtio-net", ..] = &mut words[..] {
        *model = &modern;
    }
    Ok(Nic { model: words.join(","), wire })
}

/// The name of the TAP interface of a network device.
fn tap(index: usize) -> String {
    format!("tap{index}")
}

fn disk(text: &str) -> std::result::Result<Disk, String> {
    let mut words = text.split(',');
    let size = bytes(words.next().unwrap_or(""))?;
    let mut disk = Disk { size, properties: String::new(), pmr: None };
    for word in words {
        match word.strip_prefix("pmr=") {
            Some(size) => disk.pmr = Some(bytes(size)?),
            None => disk.properties += &format!(",{word}"),
        }
    }
    Ok(disk)
}

/// A size as people write it.
fn bytes(size: &str) -> std::result::Result<u64, String> {
    let (number, shift) = match size.as_bytes().last() {
        Some(b'K') => (&size[..size.len() - 1], 10),
        Some(b'M') => (&size[..size.len() - 1], 20),
        Some(b'G') => (&size[..size.len() - 1], 30),
        _ => (size, 0),
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift)).filter(|&bytes| bytes > 0);
    bytes.ok_or_else(|| format!("{size:?} is no size: write bytes, or a number and K, M or G"))
}

impl Machine {
    /// Refuses what a guest cannot have.
    pub fn check(&self, guest: Guest) -> Result<()> {
        let cpu = guest.cpu().name;
        if self.no_intremap && cpu != "x86_64" {
            bail!("--no-intremap is for x86_64: {guest} cannot do without interrupt remapping");
        }
        if self.no_iommu && cpu == "powerpc64le" {
            bail!("--no-iommu is for x86_64 and aarch64: {guest} cannot do without its IOMMU");
        }
        Ok(())
    }

    /// The NVMe devices, at least one.
    pub fn nvme(&self) -> Vec<Disk> {
        if self.nvme.is_empty() { vec![Disk::default()] } else { self.nvme.clone() }
    }

    /// The disks of all devices: of the NVMe devices, of the virtio block devices, then of further namespaces.
    pub fn disks(&self) -> impl Iterator<Item = Disk> {
        self.nvme().into_iter().chain(self.blk.iter().cloned()).chain(self.nvme_ns.iter().cloned())
    }

    /// The TAP interfaces that its network devices are wired to, by name.
    pub fn taps(&self) -> Vec<String> {
        let wired = self.nic.iter().enumerate().filter(|(_, nic)| nic.wire == Wire::Tap);
        wired.map(|(index, _)| tap(index)).collect()
    }

    /// QEMU's arguments, less kernel, initial file system and the channels to the outside. `files` are the names of the [`disks`](Self::disks).
    pub fn arguments(&self, guest: Guest, files: &[String]) -> Vec<String> {
        let cpu = guest.cpu();
        let mut arguments = Vec::new();
        let mut add = |option: &str, value: String| arguments.extend([option.to_string(), value]);
        add("-accel", "tcg,thread=multi,tb-size=256".into());
        add("-smp", self.cpus.to_string());
        match cpu.name {
            // The kernel needs room for memory hotplug, or a second DMA window cannot be made after a native driver had the first.
            "powerpc64le" => add("-m", format!("{}M,slots=4,maxmem={}M", self.memory, self.memory * 2)),
            _ => add("-m", format!("{}M", self.memory)),
        }
        for pair in cpu.machine.chunks(2) {
            add(pair[0], pair[1].into());
        }
        match cpu.name {
            "x86_64" if !self.no_iommu => {
                let remapping = if self.no_intremap { "off" } else { "on" };
                add("-device", format!("intel-iommu,intremap={remapping},caching-mode=on"));
            }
            "aarch64" if !self.no_iommu => add("-machine", "iommu=smmuv3".into()),
            _ => {}
        }
        let mut number = 0;
        let mut slot = || {
            number += 1;
            (cpu.bridge)(number)
        };
        let subsystem = self.nvme_subsys.as_ref().map(|properties| format!("nvme-subsys,id=subsys,{properties}"));
        let within = subsystem.is_some();
        subsystem.into_iter().for_each(|device| add("-device", device));
        let nvmes = self.nvme().len();
        let devices = nvmes + self.blk.len();
        for (index, (disk, file)) in self.disks().zip(files).enumerate() {
            if index >= devices {
                add("-drive", format!("file={file},if=none,id=disk{index},format=raw,cache=unsafe"));
                add("-device", format!("nvme-ns,bus=nvme0,drive=disk{index}{}", disk.properties));
                continue;
            }
            let Slot { bridge, place } = slot();
            add("-device", bridge);
            let (model, discard) = match index.checked_sub(nvmes) {
                // Controllers of a subsystem have its serial number.
                None if within => (format!("nvme,id=nvme{index},serial=nvme0,subsys=subsys"), ""),
                None => (format!("nvme,id=nvme{index},serial=nvme{index}"), ""),
                Some(number) => (format!("virtio-blk-pci,{MODERN},id=blk{number}"), ",discard=unmap"),
            };
            add("-drive", format!("file={file},if=none,id=disk{index},format=raw,cache=unsafe{discard}"));
            let mut properties = disk.properties.clone();
            if let Some(size) = disk.pmr {
                // QEMU makes a file there, which has no name.
                let folder = std::env::temp_dir();
                let folder = folder.display();
                let shared = format!("memory-backend-file,id=pmr{index},share=on,mem-path={folder},size={size}");
                add("-object", shared);
                properties += &format!(",pmrdev=pmr{index}");
            }
            if within && index < nvmes {
                // QEMU refuses a disk of the controller's own there.
                add("-device", format!("{model},{place}{properties}"));
                add("-device", format!("nvme-ns,bus=nvme{index},drive=disk{index}"));
            } else {
                add("-device", format!("{model},drive=disk{index},{place}{properties}"));
            }
        }
        for (index, Nic { model, wire }) in self.nic.iter().enumerate() {
            let Slot { bridge, place } = slot();
            add("-device", bridge);
            let wire = match wire {
                Wire::Hub(number) => format!("hubport,id=net{index},hubid={number}"),
                // QEMU itself has the offloads, as a device has them; the kernel's vhost would be another device.
                Wire::Tap => {
                    let tap = tap(index);
                    format!("tap,id=net{index},ifname={tap},script=no,downscript=no,queues={TAP_QUEUES},vhost=off")
                }
            };
            add("-netdev", wire);
            add("-device", format!("{model},id=nic{index},netdev=net{index},romfile=,{place}"));
        }
        for (index, model) in self.device.iter().enumerate() {
            let Slot { bridge, place } = slot();
            add("-device", bridge);
            add("-device", format!("{model},id=other{index},{place}"));
        }
        arguments.extend(self.qemu.iter().cloned());
        arguments
    }

    pub fn kernel_command_line(&self, guest: Guest) -> String {
        let cpu = guest.cpu();
        let mut line = format!("console={} quiet loglevel=4 panic=-1 {}", cpu.console, cpu.kernel_arguments);
        for argument in &self.append {
            line = line + " " + argument;
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        guest: Guest,
        #[command(flatten)]
        machine: Machine,
    }

    fn arguments(line: &str) -> String {
        let line = Line::try_parse_from(line.split(' ')).unwrap();
        let disks: Vec<String> = (0..line.machine.disks().count()).map(|disk| format!("/disk{disk}")).collect();
        line.machine.arguments(line.guest, &disks).join(" ")
    }

    #[test]
    fn sizes() {
        let plain = |size| Disk { size, ..Disk::default() };
        assert_eq!(disk("64M"), Ok(plain(64 << 20)));
        assert_eq!(disk("512"), Ok(plain(512)));
        assert_eq!(
            disk("1G,mdts=5,cmb_size_mb=4"),
            Ok(Disk { size: 1 << 30, properties: ",mdts=5,cmb_size_mb=4".into(), pmr: None })
        );
        let with_memory = Disk { size: 64 << 20, properties: ",mdts=5".into(), pmr: Some(64 << 10) };
        assert_eq!(disk("64M,pmr=64K,mdts=5"), Ok(with_memory));
        assert!(disk("64M,pmr=").is_err());
        for wrong in ["", "M", "0", "-1M", "1T", "99999999999G", ",mdts=5"] {
            assert!(disk(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn every_device_has_a_bridge_of_its_own() {
        let line = arguments("vm ppc64le-64k --nvme 64M --nvme 1G,mdts=5 --nic igb");
        for part in [
            "spapr-pci-host-bridge,index=1,id=pci.1 ",
            "nvme,id=nvme0,serial=nvme0,drive=disk0,bus=pci.1.0,addr=1 ",
            "spapr-pci-host-bridge,index=2,id=pci.2 ",
            "nvme,id=nvme1,serial=nvme1,drive=disk1,bus=pci.2.0,addr=1,mdts=5 ",
            "igb,id=nic0,netdev=net0,romfile=,bus=pci.3.0,addr=1",
            "maxmem=4096M",
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
        let line = arguments("vm x86_64 --nvme 64M,pmr=64K,mdts=5");
        let object = "memory-backend-file,id=pmr0,share=on,mem-path=";
        assert!(
            line.contains(object) && line.contains(",size=65536") && line.contains(",mdts=5,pmrdev=pmr0"),
            "{line}"
        );
        let line = arguments("vm x86_64 --nvme 64M --blk 1M --nvme-ns 64M,ms=8,pi=1");
        assert!(line.contains("-device nvme-ns,bus=nvme0,drive=disk2,ms=8,pi=1"), "{line}");
        let line = arguments("vm x86_64 --nvme 64M --nvme-subsys fdp=on,fdp.nruh=4");
        let at = |text: &str| line.find(text).unwrap_or_else(|| panic!("{line}"));
        assert!(
            at("-device nvme-subsys,id=subsys,fdp=on,fdp.nruh=4")
                < at(
                    "-device nvme,id=nvme0,serial=nvme0,subsys=subsys,bus=port1 -device nvme-ns,bus=nvme0,drive=disk0"
                )
        );
        let line = arguments("vm aarch64-16k --nic virtio-net --nic virtio-net,hub=1,packed=on --blk 1M,num-queues=2");
        for part in [
            "pcie-root-port,id=port2,chassis=2,slot=2 ",
            "virtio-blk-pci,disable-legacy=on,iommu_platform=on,id=blk0,drive=disk1,bus=port2,num-queues=2 ",
            "hubport,id=net0,hubid=0 -device virtio-net-pci,disable-legacy=on,iommu_platform=on,id=nic0,",
            "hubport,id=net1,hubid=1 -device virtio-net-pci,disable-legacy=on,iommu_platform=on,packed=on,id=nic1,",
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
        assert!(nic("igb,hub=one").is_err());
    }

    #[test]
    fn a_device_can_have_a_wire_outside() {
        let line = "vm x86_64 --nic virtio-net,wire=tap,mq=on --nic igb --nic virtio-net,wire=tap";
        let Line { machine, .. } = Line::try_parse_from(line.split(' ')).unwrap();
        assert_eq!(machine.taps(), ["tap0", "tap2"]);
        let line = arguments(line);
        for part in [
            "tap,id=net0,ifname=tap0,script=no,downscript=no,queues=2,vhost=off -device virtio-net-pci,disable-legacy=on,iommu_platform=on,mq=on,id=nic0,",
            "hubport,id=net1,hubid=0 -device igb,",
            "tap,id=net2,ifname=tap2,",
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
        assert!(nic("igb,wire=string").is_err());
    }

    #[test]
    fn iommu_and_interrupt_remapping_go_where_they_can_be_done_without() {
        assert!(arguments("vm x86_64").contains("intremap=on"));
        assert!(arguments("vm x86_64-iommufd --no-intremap").contains("intremap=off"));
        assert!(!arguments("vm x86_64 --no-iommu").contains("iommu"));
        assert!(arguments("vm aarch64-64k").contains("iommu=smmuv3"));
        assert!(!arguments("vm aarch64-4k --no-iommu").contains("iommu"));
        for wrong in ["vm aarch64-4k --no-intremap", "vm ppc64le-4k --no-intremap", "vm ppc64le-64k --no-iommu"] {
            let Line { guest, machine } = Line::try_parse_from(wrong.split(' ')).unwrap();
            assert!(machine.check(guest).is_err(), "{wrong}");
        }
    }
}

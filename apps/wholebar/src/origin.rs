//! What stands behind a device's figures: a model, an emulator, or hardware; and how that was found out.

use serde::{Deserialize, Serialize};
use std::fs;
use wholebar::pci::{Config, DeviceKind, PciDevice};

/// What a device is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// A model in this process.
    Model,
    /// Other software.
    Emulated,
    /// A device, as far as can be seen.
    Hardware,
    /// Whatever the kernel has behind its own path.
    Kernel,
}

impl Origin {
    /// Of a device, and how that was found out.
    pub fn of(device: &dyn PciDevice) -> (Self, String) {
        match device.kind() {
            DeviceKind::Model => (Self::Model, "its name begins with sim:".to_owned()),
            DeviceKind::VfioUser => (Self::Emulated, "it is a vfio-user server".to_owned()),
            DeviceKind::VhostUser => (Self::Emulated, "it is a vhost-user back end".to_owned()),
            DeviceKind::Kernel => {
                let ids = Config::of(device).map(|config| ((config.vendor(), config.device()), config.subsystem()));
                of_ids(ids.ok(), virtual_machine().as_deref())
            }
        }
    }

    /// As reports write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Emulated => "emulated",
            Self::Hardware => "hardware",
            Self::Kernel => "kernel",
        }
    }

    /// What is said beside the figures of a device that is software; `None` where it may be hardware.
    pub fn caveat(self) -> Option<&'static str> {
        match self {
            Self::Model => Some("a model in this process: figures of emulation, not of hardware"),
            Self::Emulated => Some("figures of emulation, not of hardware"),
            Self::Hardware => None,
            Self::Kernel => Some("the kernel's own path: its drivers, its caches and its interrupts"),
        }
    }
}

/// Vendor ids of those who make no hardware.
const EMULATORS: [(u16, &str); 4] = [(0x1b36, "QEMU"), (0x1234, "QEMU"), (0x15ad, "VMware"), (0x80ee, "VirtualBox")];
/// The subsystem of what QEMU emulates under others' ids.
const QEMU_SUBSYSTEM: Ids = (0x1af4, 0x1100);
/// QEMU's e1000e, whose subsystem is Intel's number 0: no card has that.
const QEMU_82574: (Ids, Option<Ids>) = ((0x8086, 0x10d3), Some((0x8086, 0x0000)));

/// A vendor's number, and its number for the device.
type Ids = (u16, u16);

fn of_ids(ids: Option<(Ids, Option<Ids>)>, machine: Option<&str>) -> (Origin, String) {
    let Some(((vendor, device), subsystem)) = ids else {
        return (Origin::Hardware, "its configuration space cannot be read".to_owned());
    };
    if let Some((_, who)) = EMULATORS.iter().find(|(id, _)| *id == vendor) {
        return (Origin::Emulated, format!("its ids, {vendor:04x}:{device:04x}, are {who}'s"));
    }
    if subsystem == Some(QEMU_SUBSYSTEM) {
        return (Origin::Emulated, "its subsystem, 1af4:1100, is QEMU's".to_owned());
    }
    if ((vendor, device), subsystem) == QEMU_82574 {
        return (Origin::Emulated, "its ids, 8086:10d3 of subsystem 8086:0000, are QEMU's".to_owned());
    }
    let ids = format!("its ids, {vendor:04x}:{device:04x}, are no emulator's");
    match machine {
        Some(why) => (Origin::Hardware, format!("{ids}, but this is a virtual machine ({why}): passed through, if so")),
        None => (Origin::Hardware, ids),
    }
}

/// How it shows that this machine is a virtual one, where it does.
pub fn virtual_machine() -> Option<String> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let dmi = ["sys_vendor", "product_name"].map(|name| read(&format!("/sys/class/dmi/id/{name}")).trim().to_owned());
    machine_of(&cpuinfo, &dmi.join(" "), read("/sys/hypervisor/type").trim())
}

fn machine_of(cpuinfo: &str, dmi: &str, hypervisor: &str) -> Option<String> {
    const NAMES: [&str; 8] = ["QEMU", "KVM", "VMware", "VirtualBox", "Xen", "Bochs", "Amazon EC2", "Google Compute"];
    if cpuinfo.contains("emulated by qemu") {
        return Some("/proc/cpuinfo: emulated by qemu".to_owned());
    }
    if NAMES.iter().any(|name| dmi.contains(name)) || dmi.contains("Virtual Machine") {
        return Some(format!("DMI: {}", dmi.trim()));
    }
    if !hypervisor.is_empty() {
        return Some(format!("/sys/hypervisor: {hypervisor}"));
    }
    let flag =
        cpuinfo.lines().any(|line| line.starts_with("flags") && line.split(' ').any(|flag| flag == "hypervisor"));
    flag.then(|| "the CPU's hypervisor flag".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_tell_emulators() {
        for (ids, machine, origin, says) in [
            (Some(((0x1b36, 0x0010), Some((0x1af4, 0x1100)))), None, Origin::Emulated, "1b36:0010"),
            // QEMU's nvme with use-intel-id=on.
            (Some(((0x8086, 0x5845), Some((0x1af4, 0x1100)))), None, Origin::Emulated, "1af4:1100"),
            (Some(((0x15ad, 0x07f0), None)), None, Origin::Emulated, "VMware"),
            // QEMU's e1000e, and a card.
            (Some(((0x8086, 0x10d3), Some((0x8086, 0)))), None, Origin::Emulated, "8086:0000"),
            (Some(((0x8086, 0x10d3), Some((0x8086, 0xa01f)))), None, Origin::Hardware, "no emulator's"),
            (Some(((0x144d, 0xa808), Some((0x144d, 0xa801)))), None, Origin::Hardware, "no emulator's"),
            (Some(((0x144d, 0xa808), None)), Some("DMI: QEMU"), Origin::Hardware, "passed through"),
            (None, None, Origin::Hardware, "cannot be read"),
        ] {
            let (found, why) = of_ids(ids, machine);
            assert_eq!(found, origin, "{why}");
            assert!(why.contains(says), "{why}");
        }
    }

    #[test]
    fn virtual_machines_are_told() {
        for (cpuinfo, dmi, hypervisor, says) in [
            ("machine\t\t: CHRP IBM pSeries (emulated by qemu)", "", "", Some("emulated by qemu")),
            ("flags\t\t: fpu hypervisor lm", " ", "", Some("flag")),
            ("flags\t\t: fpu lm", "QEMU Standard PC", "", Some("DMI")),
            ("flags\t\t: fpu lm", "", "xen", Some("xen")),
            ("flags\t\t: fpu lm", "LENOVO 20XW", "", None),
            ("processor\t: 0\ncpu\t\t: POWER9\nmachine\t\t: PowerNV 9006-22P", "", "", None),
        ] {
            let found = machine_of(cpuinfo, dmi, hypervisor);
            assert_eq!(found.is_some(), says.is_some(), "{found:?}");
            assert!(says.is_none_or(|says| found.as_ref().is_some_and(|f| f.contains(says))), "{found:?}");
        }
    }
}

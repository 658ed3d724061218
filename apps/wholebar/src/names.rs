//! What PCI numbers are called: by the system's pci.ids where it has one, else by the copy of 2022 that is part of this program,
//! so that a bare guest has names too.

use pci_ids::FromId;
use pciid_parser::Database;

/// The names.
pub struct Names(Option<Database>);

impl Names {
    /// Reads the system's file, if it has one.
    pub fn load() -> Self {
        Self(Database::read().ok())
    }

    /// Maker and device, as far as they have names: `Red Hat, Inc. QEMU NVM Express Controller`, `Red Hat, Inc. [0077]`.
    pub fn device(&self, vendor: u16, device: u16) -> String {
        let (maker, name) = self.system_device(vendor, device);
        let maker = maker.or_else(|| Some(pci_ids::Vendor::from_id(vendor)?.name()));
        let name = name.or_else(|| Some(pci_ids::Device::from_vid_pid(vendor, device)?.name()));
        match (maker, name) {
            (Some(maker), Some(name)) => format!("{maker} {name}"),
            (Some(maker), None) => format!("{maker} [{device:04x}]"),
            (None, _) => format!("[{vendor:04x}:{device:04x}]"),
        }
    }

    fn system_device(&self, vendor: u16, device: u16) -> (Option<&str>, Option<&str>) {
        let vendor = self.0.as_ref().and_then(|db| db.vendors.get(&vendor));
        let device = vendor.and_then(|vendor| vendor.devices.get(&device));
        (vendor.map(|v| v.name.as_str()), device.map(|d| d.name.as_str()))
    }

    /// A class (0x010802) and its sub-class: `Mass storage controller`, `Non-Volatile memory controller`.
    pub fn class(&self, class: u32) -> (Option<&str>, Option<&str>) {
        let [_, base, sub, _] = class.to_be_bytes();
        let known = self.0.as_ref().and_then(|db| db.classes.get(&base));
        let known_sub = known.and_then(|class| class.subclasses.get(&sub));
        let base_name = known.map(|c| c.name.as_str()).or_else(|| Some(pci_ids::Class::from_id(base)?.name()));
        let sub_name =
            known_sub.map(|s| s.name.as_str()).or_else(|| Some(pci_ids::Subclass::from_cid_sid(base, sub)?.name()));
        (base_name, sub_name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_without_a_file_has_names_too() {
        let names = Names(None);
        for (vendor, device, name) in [
            (0x1b36, 0x0010, "Red Hat, Inc. QEMU NVM Express Controller"),
            (0x8086, 0x10c9, "Intel Corporation 82576 Gigabit Network Connection"),
            (0x1b36, 0xfff0, "Red Hat, Inc. [fff0]"),
            (0xfff0, 0x0001, "[fff0:0001]"),
        ] {
            assert_eq!(names.device(vendor, device), name);
        }
        assert_eq!(names.class(0x010802), (Some("Mass storage controller"), Some("Non-Volatile memory controller")));
        assert_eq!(names.class(0x01fe00), (Some("Mass storage controller"), None));
        assert_eq!(names.class(0xee0000), (None, None));
    }

    #[test]
    fn a_system_s_file_comes_first() {
        let text = "1b36  A Hat\n\t0010  A Controller\n\t0077  A New One\nC 01  Storage\n\t08  Flash\n\t\t02  NVMe\n";
        let names = Names(Database::parse_db(text.as_bytes()).ok());
        assert_eq!(names.device(0x1b36, 0x0077), "A Hat A New One");
        assert_eq!(names.device(0x8086, 0x10c9), "Intel Corporation 82576 Gigabit Network Connection");
        assert_eq!(names.class(0x010802), (Some("Storage"), Some("Flash")));
    }
}

//! Virtual functions (PCI Express Base 6.0, chapter 9) as Linux shows and makes them: a function's own files, and links between a physical
//! function and its virtual ones (Linux Documentation/PCI/pci-iov-howto.rst).

use super::{Function, link};
use std::io;

/// What a physical function says of its virtual ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sriov {
    /// How many there can be; 0 where its driver allows none.
    pub total: u16,
    /// How many there are.
    pub enabled: u16,
    /// Whether the kernel looks for drivers when some are made.
    pub autoprobe: bool,
}

impl Function {
    /// Returns what the function says of virtual functions; `None` where it is no physical function, or this kernel makes no virtual ones.
    pub fn sriov(&self) -> Option<Sriov> {
        let number = |file: &str| self.read(file)?.parse().ok();
        Some(Sriov {
            total: number("sriov_totalvfs")?,
            enabled: number("sriov_numvfs").unwrap_or(0),
            // Kernels before 4.12 always look.
            autoprobe: self.read("sriov_drivers_autoprobe").as_deref() != Some("0"),
        })
    }

    /// Returns the physical function of a virtual one; `None` where it isn't virtual.
    pub fn physical_function(&self) -> Option<Function> {
        self.sysfs.function(link(&self.path.join("physfn"))?.parse().ok()?)
    }

    /// Returns the virtual functions that the function has, in order.
    pub fn virtual_functions(&self) -> Vec<Function> {
        let numbered = |index: u16| link(&self.path.join(format!("virtfn{index}")))?.parse().ok();
        let count = self.sriov().map_or(0, |sriov| sriov.enabled);
        (0..count).filter_map(|index| self.sysfs.function(numbered(index)?)).collect()
    }

    /// Has the function's driver make `count` virtual functions, where there are none, or take all away (0). Those that go are waited for: VFIO's
    /// until every process has closed them.
    ///
    /// # Errors
    /// The system's: `ENOENT` where there is no driver, or it makes none (vfio-pci without `enable_sriov`); `EBUSY` where there are some already;
    /// `ERANGE` for more than there can be.
    pub fn set_virtual_functions(&self, count: u16) -> io::Result<()> {
        self.write("sriov_numvfs", &count.to_string())
    }

    /// Has the kernel look for drivers when virtual functions are made, or not.
    ///
    /// # Errors
    /// The system's.
    pub fn set_virtual_autoprobe(&self, on: bool) -> io::Result<()> {
        self.write("sriov_drivers_autoprobe", if on { "1" } else { "0" })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{put, tree};
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn physical_and_virtual_functions_know_each_other() {
        let (_root, sysfs) = tree(&[
            ("0000:02:00.0", Some("igb"), Some(1)),
            ("0000:02:10.0", None, Some(2)),
            ("0000:02:10.2", None, Some(3)),
        ]);
        let function = |address: &str| sysfs.function(address.parse().unwrap()).unwrap();
        let physical = function("0000:02:00.0");
        assert_eq!((physical.sriov(), physical.virtual_functions().len()), (None, 0), "it is no SR-IOV function");
        let files = "sys/bus/pci/devices/0000:02:00.0";
        put(&sysfs, &format!("{files}/sriov_totalvfs"), "7\n");
        put(&sysfs, &format!("{files}/sriov_numvfs"), "0\n");
        assert_eq!(physical.sriov(), Some(Sriov { total: 7, enabled: 0, autoprobe: true }));
        physical.set_virtual_functions(2).unwrap();
        physical.set_virtual_autoprobe(false).unwrap();
        for (index, address) in ["0000:02:10.0", "0000:02:10.2"].into_iter().enumerate() {
            symlink(format!("../{address}"), physical.path().join(format!("virtfn{index}"))).unwrap();
            symlink("../0000:02:00.0", function(address).path().join("physfn")).unwrap();
        }
        assert_eq!(physical.sriov(), Some(Sriov { total: 7, enabled: 2, autoprobe: false }));
        let addresses: Vec<String> = physical.virtual_functions().iter().map(|f| f.address().to_string()).collect();
        assert_eq!(addresses, ["0000:02:10.0", "0000:02:10.2"]);
        assert_eq!(function("0000:02:10.2").physical_function().unwrap().address(), physical.address());
        assert!(physical.physical_function().is_none());
        // A link that leads nowhere is no function.
        fs::remove_dir_all(function("0000:02:10.0").path()).unwrap();
        assert_eq!(physical.virtual_functions().len(), 1);
    }
}

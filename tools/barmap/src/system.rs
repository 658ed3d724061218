//! What `/sys` tells of a machine's functions, without binding or opening any. BARs are there for everyone to read; configuration space past its
//! first 64 bytes, where MSI-X is, for root alone.

use crate::config::of_config;
use crate::{Bar, Function, Ids, Machine, MsixFact, Place, Sriov};
use std::fs;
use wholebar_core::PageSize;
use wholebar_core::pci::Config;
use wholebar_core::pci::config::BarKind;
use wholebar_core::vfio::sysfs;

/// Flags of the `resource` file (Linux include/linux/ioport.h): I/O ports.
const IO: u64 = 0x100;
/// Memory.
const MEMORY: u64 = 0x200;
/// Prefetchable memory.
const PREFETCH: u64 = 0x2000;
/// 64-bit memory.
const WIDE: u64 = 0x10_0000;
/// It has no address: what stands there is its size alone.
const UNSET: u64 = 0x2000_0000;

/// The lines of the `resource` file: six BARs, the ROM, six BARs of all virtual functions together.
const ROM: usize = 6;
const VIRTUAL: usize = 7;

impl Machine {
    /// All functions of a system, and what it tells of them; `page`: the page size of the system, where that is known.
    pub fn of_system(sysfs: &sysfs::Sysfs, page: Option<PageSize>) -> Self {
        let functions: Vec<Function> = sysfs.functions().iter().map(Function::of_system).collect();
        let hidden = functions.iter().filter(|f| matches!(f.msix, MsixFact::Unknown(_))).count();
        let mut notes = Vec::new();
        if hidden > 0 {
            notes.push(format!(
                "the MSI-X capabilities of {hidden} of {} functions could not be read: that takes root",
                functions.len()
            ));
        }
        let auto = cfg!(target_arch = "powerpc64").then_some(crate::map::SPAPR);
        let mut machine = Self { functions, notes, page, auto: auto.filter(|_| page.is_some()), ..Self::default() };
        machine.complete();
        machine
    }
}

impl Function {
    /// What a system tells of one function.
    pub fn of_system(function: &sysfs::Function) -> Self {
        let name = function.address().to_string();
        let bytes = fs::read(function.path().join("config")).unwrap_or_default();
        let read = bytes.len();
        let mut told = match Config::from_bytes(&name, bytes) {
            Ok(config) => of_config(&name, &config),
            Err(_) => Self { name: name.clone(), msix: MsixFact::Unknown(String::new()), ..Self::default() },
        };
        if matches!(told.msix, MsixFact::Unknown(_)) && read < 256 {
            let why = format!("{read} bytes of its configuration space could be read; root can read more");
            told.msix = MsixFact::Unknown(why);
            told.notes.clear();
        }
        let class = function.class();
        told.ids = Ids {
            vendor: function.vendor().or(told.ids.vendor),
            device: function.device().or(told.ids.device),
            class: class.map(|class| (class >> 8) as u16).or(told.ids.class),
            interface: class.map(|class| class as u8).or(told.ids.interface),
        };
        let hidden = function.path().join("physfn").exists();
        let resources = resources(&function.read("resource").unwrap_or_default());
        told.bars = bars(&resources, 0, hidden);
        told.rom = resources.get(ROM).copied().flatten().map(|resource| resource.place);
        told.sriov = sriov(function, &resources, told.sriov.take());
        told.address = Some(function.address());
        told.driver = function.driver();
        told
    }
}

/// One line of the `resource` file.
#[derive(Debug, Clone, Copy)]
struct Resource {
    place: Place,
    kind: BarKind,
}

fn resources(text: &str) -> Vec<Option<Resource>> {
    let hex = |word: Option<&str>| u64::from_str_radix(word?.strip_prefix("0x")?, 16).ok();
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let (start, end, flags) = (hex(words.next())?, hex(words.next())?, hex(words.next())?);
        let kind = match (flags & IO != 0, flags & MEMORY != 0) {
            (true, _) => BarKind::Io,
            (_, true) => BarKind::Memory { wide: flags & WIDE != 0, prefetchable: flags & PREFETCH != 0 },
            _ => return None,
        };
        let size = end.checked_sub(start)?.checked_add(1);
        let address = Some(start).filter(|start| *start != 0 && flags & UNSET == 0);
        // From 0 to 0 is what is shown of one that has neither.
        Some(Resource { place: Place { address, size: size.filter(|_| end > 0) }, kind })
    };
    text.lines().map(line).collect()
}

/// Six BARs from `first` on.
fn bars(resources: &[Option<Resource>], first: usize, hidden: bool) -> Vec<Bar> {
    let found = (0..6u8).filter_map(|index| {
        let Resource { place, kind } = resources.get(first + usize::from(index)).copied().flatten()?;
        place.size?;
        Some(Bar { index, kind, place, disabled: false, hidden, unplaced: None, region: None })
    });
    found.collect()
}

fn sriov(function: &sysfs::Function, resources: &[Option<Resource>], told: Option<Sriov>) -> Option<Sriov> {
    let number = |file: &str| function.read(file)?.parse::<u16>().ok();
    let total = number("sriov_totalvfs")?;
    let mut bars = bars(resources, VIRTUAL, true);
    // The line is of all that the device can have (TotalVFs), of which its driver may allow fewer. Where that is not to be read, sizes are powers of two.
    let all = told.as_ref().map_or(total, |told| told.total.max(total));
    for bar in &mut bars {
        let share = bar.place.size.and_then(|size| size.checked_div(all.into())).and_then(u64::checked_ilog2);
        bar.place.size = share.map(|log| 1 << log);
    }
    Some(Sriov {
        total,
        enabled: number("sriov_numvfs").unwrap_or(0),
        offset: number("sriov_offset").unwrap_or(0),
        stride: number("sriov_stride").unwrap_or(0),
        supported_pages: told.and_then(|told| told.supported_pages),
        bars,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn put(root: &Path, file: &str, bytes: impl AsRef<[u8]>) {
        let path = root.join("sys/bus/pci/devices/0000:3b:00.0").join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// An X710-like function with 64 VFs of 64 KiB and 16 KiB BARs.
    fn tree(config: usize) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let none = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n";
        let line =
            |start: u64, size: u64, flags: u64| format!("{start:#018x} {:#018x} {flags:#018x}\n", start + size - 1);
        let resource = [
            line(0xc600_0000, 0x80_0000, 0x14220c),
            none.into(),
            none.into(),
            line(0xc700_8000, 0x8000, 0x14220c),
            none.into(),
            none.into(),
            line(0xc758_0000, 0x8_0000, 0x46200),
            line(0xc740_0000, 64 * 0x1_0000, 0x14220c),
            none.into(),
            none.into(),
            line(0xc730_0000, 64 * 0x4000, 0x14220c),
        ];
        put(root.path(), "resource", resource.concat());
        put(root.path(), "vendor", "0x8086\n");
        put(root.path(), "device", "0x1572\n");
        put(root.path(), "class", "0x020000\n");
        put(root.path(), "sriov_totalvfs", "64\n");
        let mut bytes = vec![0; 4096];
        bytes[..4].copy_from_slice(&[0x86, 0x80, 0x72, 0x15]);
        (bytes[6], bytes[0x34]) = (0x10, 0x70);
        // MSI-X: 129 vectors, table BAR3+0, PBA BAR3+0x1000.
        bytes[0x70..0x7c].copy_from_slice(&[0x11, 0, 0x80, 0x80, 3, 0, 0, 0, 3, 0x10, 0, 0]);
        put(root.path(), "config", &bytes[..config]);
        root
    }

    #[test]
    fn all_of_it_for_root() {
        let root = tree(4096);
        let machine = Machine::of_system(&sysfs::Sysfs::at(root.path()), Some(PageSize::K64));
        let function = &machine.functions[0];
        assert_eq!((function.ids.device, function.ids.class), (Some(0x1572), Some(0x0200)));
        let msix = function.msix.present().unwrap();
        assert_eq!((msix.vectors, msix.enabled, msix.table_bar, msix.pba_offset), (129, true, 3, 0x1000));
        let sizes: Vec<_> = function.bars.iter().map(|bar| (bar.index, bar.place.size)).collect();
        assert_eq!(sizes, [(0, Some(0x80_0000)), (3, Some(0x8000))]);
        let sriov = function.sriov.as_ref().unwrap();
        let sizes: Vec<_> = sriov.bars.iter().map(|bar| (bar.index, bar.place.size)).collect();
        assert_eq!(sizes, [(0, Some(0x1_0000)), (3, Some(0x4000))]);
        assert_eq!(function.rom.unwrap().size, Some(0x8_0000));
        assert!(machine.notes.is_empty());
    }

    #[test]
    fn a_driver_that_allows_fewer_virtual_functions_makes_none_larger() {
        let sizes = |root: &tempfile::TempDir| -> Vec<u64> {
            let machine = Machine::of_system(&sysfs::Sysfs::at(root.path()), None);
            let sriov = machine.functions[0].sriov.as_ref().unwrap();
            sriov.bars.iter().filter_map(|bar| bar.place.size).collect()
        };
        // Of 64: nearly all, by somebody who may not read how many the device has.
        let root = tree(64);
        put(root.path(), "sriov_totalvfs", "63\n");
        assert_eq!(sizes(&root), [0x1_0000, 0x4000]);
        // And few, by root.
        let mut bytes = std::fs::read(tree(4096).path().join("sys/bus/pci/devices/0000:3b:00.0/config")).unwrap();
        bytes[0x100..0x104].copy_from_slice(&[0x10, 0, 1, 0]);
        bytes[0x10e] = 64;
        put(root.path(), "config", &bytes);
        put(root.path(), "sriov_totalvfs", "7\n");
        assert_eq!(sizes(&root), [0x1_0000, 0x4000]);
    }

    #[test]
    fn what_others_may_not_read_is_said() {
        let root = tree(64);
        let machine = Machine::of_system(&sysfs::Sysfs::at(root.path()), None);
        assert!(matches!(&machine.functions[0].msix, MsixFact::Unknown(why) if why.contains("64 bytes")));
        assert_eq!(machine.functions[0].bars.len(), 2);
        assert!(machine.notes[0].contains("1 of 1"), "{:?}", machine.notes);
    }

    #[test]
    fn a_small_bar_of_this_host_is_where_it_is() {
        let root = tree(4096);
        let sysfs = sysfs::Sysfs::at(root.path());
        let verdict = |page| {
            let machine = Machine::of_system(&sysfs, page);
            let map = machine.map(0, &[PageSize::K64], &[]).unwrap();
            map.bars[1].sheets[0].verdict.clone()
        };
        // BAR3 begins in the middle of a 64 KiB page: that decides where the host has such pages, and is a caution elsewhere.
        assert_eq!(verdict(Some(PageSize::K64)).kind, crate::VerdictKind::Unmappable);
        let elsewhere = verdict(Some(PageSize::K4));
        assert_eq!(elsewhere.kind, crate::VerdictKind::CarvedTrapsOthers);
        assert!(elsewhere.caution.unwrap().contains("resource_alignment=16@0000:3b:00.0"));
    }

    #[test]
    fn nonsense_is_left_out() {
        for text in ["", "x", "0x1 0x2", "0x5 0x1 0x200", "0x0 0xffffffffffffffff 0x200", "0x0 0x0 0x200"] {
            assert!(bars(&resources(text), 0, false).is_empty(), "{text}");
        }
    }
}

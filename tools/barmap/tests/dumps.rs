//! Whole machines, as people published them (`dumps/SOURCES.md`): nothing that the text says of BARs and of MSI-X is lost. What is expected is
//! counted in the text by searching it, line by line, as `grep` does.

use std::fs;
use std::path::{Path, PathBuf};
use wholebar_barmap::{MsixFact, PAGES, lspci, runs};
use wholebar_core::bar::MapPolicy;

/// File, functions, MSI-X capabilities.
const DUMPS: [(&str, usize, usize); 12] = [
    ("acer", 25, 1),
    ("aws-m4", 7, 1),
    ("cmlgpu", 201, 9),
    ("h310", 14, 1),
    ("inspiron620", 15, 1),
    ("jetway", 29, 2),
    ("l490", 22, 2),
    ("mellanox", 310, 33),
    ("surface-book", 21, 1),
    ("talos2", 16, 4),
    ("x99-qd4", 87, 2),
    ("z510", 15, 1),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dumps")
}

/// Lines that begin so, tabs and all.
fn lines<'a>(text: &'a str, start: &'a str) -> impl Iterator<Item = &'a str> {
    text.lines().filter(move |line| line.starts_with(start))
}

#[test]
fn nothing_is_lost() {
    for (name, functions, capabilities) in DUMPS {
        let text = fs::read_to_string(folder().join(name).with_extension("txt")).unwrap();
        let machine = lspci::read(text.as_bytes()).unwrap();
        assert_eq!(machine.functions.len(), functions, "{name}");

        let counted = text.matches("] MSI-X: Enable").count();
        let found: Vec<_> = machine.functions.iter().filter_map(|f| f.msix.present()).collect();
        assert_eq!((counted, found.len()), (capabilities, capabilities), "{name}");
        let count =
            |text: &str| text.split_once("Count=").unwrap().1.split(' ').next().unwrap().parse::<u16>().unwrap();
        let counts: Vec<u16> = text.lines().filter(|line| line.contains("] MSI-X: Enable")).map(count).collect();
        assert_eq!(found.iter().map(|msix| msix.vectors).collect::<Vec<_>>(), counts, "{name}");
        for (start, place) in [("\t\tVector table: ", 0), ("\t\tPBA: ", 1)] {
            let told: Vec<String> = lines(&text, start).map(|line| line[start.len()..].to_owned()).collect();
            let found = found.iter().map(|msix| match place {
                0 => format!("BAR={} offset={:08x}", msix.table_bar, msix.table_offset),
                _ => format!("BAR={} offset={:08x}", msix.pba_bar, msix.pba_offset),
            });
            assert_eq!(found.collect::<Vec<_>>(), told, "{name}");
        }

        let bars: usize = machine.functions.iter().map(|f| f.bars.len()).sum();
        // Into one line another program wrote its errors.
        let unread =
            machine.functions.iter().flat_map(|f| &f.notes).filter(|note| note.contains("can't be read")).count();
        assert_eq!(unread, usize::from(name == "inspiron620"), "{name}");
        assert_eq!(lines(&text, "\tRegion ").count(), bars + unread, "{name}");
        let sized = machine.functions.iter().flat_map(|f| &f.bars).filter(|bar| bar.place.size.is_some()).count();
        assert_eq!(lines(&text, "\tRegion ").filter(|line| line.contains("[size=")).count(), sized, "{name}");
        let bars: usize = machine.functions.iter().filter_map(|f| f.sriov.as_ref()).map(|sriov| sriov.bars.len()).sum();
        assert_eq!(lines(&text, "\t\tRegion ").count(), bars, "{name}");
        let roms = machine.functions.iter().filter(|f| f.rom.is_some()).count();
        let told = lines(&text, "\tExpansion ROM at ").count() + lines(&text, "\t[virtual] Expansion ROM at ").count();
        assert_eq!(told, roms, "{name}");
        let drivers = machine.functions.iter().filter(|f| f.driver.is_some()).count();
        assert_eq!(lines(&text, "\tKernel driver in use: ").count(), drivers, "{name}");
        // A few that say that they have a list of capabilities, and have none: the text alone doesn't tell that it is empty.
        let blocks = text.split("\n\n");
        let silent =
            blocks.filter(|b| b.contains("Status: Cap+") && !b.contains("\tCapabilities:") && !b.contains("\n00: "));
        let unknown = machine.functions.iter().filter(|f| matches!(f.msix, MsixFact::Unknown(_)));
        assert_eq!(unknown.count(), silent.count(), "{name}");
    }
}

#[test]
fn every_bar_has_its_maps() {
    let policies = [MapPolicy::Whole, MapPolicy::Carved];
    for (name, ..) in DUMPS {
        let machine = lspci::read(&*fs::read(folder().join(name).with_extension("txt")).unwrap()).unwrap();
        for map in machine.maps(&PAGES, &policies) {
            for bar in &map.bars {
                assert_eq!(bar.sheets.len(), PAGES.len());
                for plan in bar.sheets.iter().flat_map(|sheet| &sheet.plans) {
                    let runs = runs(plan, &bar.hot);
                    assert_eq!((runs[0].range.start, runs[runs.len() - 1].range.end), (0, plan.layout.size));
                    assert!(runs.windows(2).all(|pair| pair[0].range.end == pair[1].range.start));
                    assert!(runs.len() <= 16, "{name} {}: {runs:?}", map.function.name);
                }
            }
        }
    }
}

/// The text alone, without the hex dump, says the same as both together.
#[test]
fn the_hex_dump_agrees_with_the_text() {
    for name in ["acer", "h310", "talos2", "x99-qd4"] {
        let text = fs::read_to_string(folder().join(name).with_extension("txt")).unwrap();
        let is_hex = |line: &&str| line.get(2..4) == Some(": ") && line.as_bytes()[0].is_ascii_hexdigit();
        let without: String = text.lines().filter(|line| !is_hex(line)).map(|line| line.to_owned() + "\n").collect();
        assert!(without.len() < text.len(), "{name}");
        let (both, alone) = (lspci::parse(&text), lspci::parse(&without));
        for (both, alone) in both.functions.iter().zip(&alone.functions) {
            // An empty list of capabilities: only the dump tells.
            if !matches!(alone.msix, MsixFact::Unknown(_)) || both.msix != MsixFact::Absent {
                assert_eq!(both.msix, alone.msix, "{name} {}", both.name);
            }
            assert_eq!(both.bars, alone.bars, "{name} {}", both.name);
            assert!(both.notes.is_empty(), "{name} {:?}", both.notes);
        }
        // With it, makers and devices have their numbers.
        assert!(both.functions.iter().all(|function| function.ids.vendor.is_some()), "{name}");
    }
}

#[test]
fn every_dump_has_its_source() {
    let sources = fs::read_to_string(folder().join("SOURCES.md")).unwrap();
    for entry in fs::read_dir(folder()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(name == "SOURCES.md" || sources.contains(&format!("`{name}`")), "{name}");
        assert!(name == "SOURCES.md" || DUMPS.iter().any(|(dump, ..)| format!("{dump}.txt") == name), "{name}");
    }
}

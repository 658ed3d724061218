//! Small texts as people paste them, each of which was once read wrongly (`tests/cases`): what each comes to, worked out by hand from the text, from
//! what pciutils means by it, and from the rules of PCI and of the plan. Then the same texts in other dress, which must not change what they say.

use std::fs;
use std::path::Path;
use wholebar_barmap::VerdictKind::{self, *};
use wholebar_barmap::{FunctionMap, Machine, MsixFact, PAGES, Placement, Unplaced, json, lspci};
use wholebar_core::PageSize;
use wholebar_core::bar::{Access, MapPolicy};

const POLICIES: [MapPolicy; 2] = [MapPolicy::Whole, MapPolicy::Carved];

fn text(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases").join(name).with_extension("txt"))
        .unwrap()
}

fn machine(name: &str) -> Machine {
    lspci::read(text(name).as_bytes()).unwrap()
}

fn names(machine: &Machine) -> Vec<&str> {
    machine.functions.iter().map(|function| function.name.as_str()).collect()
}

/// The verdicts of a BAR at 4, 16 and 64 KiB.
fn kinds(map: &FunctionMap<'_>, bar: u8) -> [VerdictKind; 3] {
    let bar = map.bars.iter().find(|map| map.bar.index == bar).unwrap();
    [0, 1, 2].map(|i| bar.sheets[i].verdict.kind)
}

/// What `whole` maps of a BAR, in bytes, at 4, 16 and 64 KiB.
fn mapped(map: &FunctionMap<'_>, bar: u8) -> [u64; 3] {
    let bar = map.bars.iter().find(|map| map.bar.index == bar).unwrap();
    [0, 1, 2].map(|i| bar.sheets[i].plans[0].mapped_bytes())
}

fn said(map: &FunctionMap<'_>, bar: u8, page: PageSize) -> String {
    let bar = map.bars.iter().find(|map| map.bar.index == bar).unwrap();
    let verdict = &bar.sheets.iter().find(|sheet| sheet.page == page).unwrap().verdict;
    format!("{} {}", verdict.text, verdict.caution.as_deref().unwrap_or(""))
}

/// 33 vectors: the table at 0x3000, the PBA at 0x2000 of BAR0, as in all of these NVMe controllers.
fn is_example(machine: &Machine, index: usize) {
    let function = &machine.functions[index];
    let msix = function.msix.present().unwrap();
    assert_eq!(
        (msix.vectors, msix.table_bar, msix.table_offset, msix.pba_bar, msix.pba_offset),
        (33, 0, 0x3000, 0, 0x2000)
    );
    assert_eq!((function.bars.len(), function.bars[0].place.size), (1, Some(0x4000)));
    assert_eq!(function.driver.as_deref(), Some("nvme"));
}

/// The bridge has neither BAR nor MSI-X; the drive behind it has its own. With `-P` nobody knows its bus.
#[test]
fn case_01_paths() {
    for (name, drive, address) in [("01-path-P", "0000:00:1c.0/00.0", false), ("01-path-PP", "0000:01:00.0", true)] {
        let machine = machine(name);
        assert_eq!(names(&machine), ["0000:00:1c.0", drive]);
        let [bridge, function] = &machine.functions[..] else { panic!() };
        assert_eq!(
            (&bridge.msix, bridge.bars.len(), bridge.driver.as_deref()),
            (&MsixFact::Absent, 0, Some("pcieport"))
        );
        is_example(&machine, 1);
        assert_eq!(function.address.is_some(), address);
        assert_eq!(function.notes.iter().any(|note| note.contains("on which bus it is isn't in the text")), !address);
        // Page 0x3000 is the table's own; in larger ones it has the doorbells at 0x1000 beside it. f7000000 begins any page.
        let map = machine.map(1, &PAGES, &POLICIES).unwrap();
        assert_eq!(kinds(&map, 0), [Alike, CarvedTrapsHot, CarvedTrapsHot]);
    }
}

/// 256 bytes, of which table and PBA take 0x80 to 0xa8: 216 are left, in the same page, on any host. d1924000 begins 4 and 16 KiB pages only.
#[test]
fn case_02_a_table_inside_of_4_kib() {
    let machine = machine("02-table-inside-4k");
    let map = machine.map(0, &PAGES, &POLICIES).unwrap();
    assert_eq!(kinds(&map, 0), [CarvedTraps, CarvedTraps, Unmappable]);
    for page in [PageSize::K4, PageSize::K16] {
        let said = said(&map, 0, page);
        assert!(
            said.contains("its page may hold other registers: 216 B") && !said.contains("shares no page"),
            "{said}"
        );
        assert!(said.contains("neighbours are isn't in the text"), "{said}");
    }
    assert_eq!(mapped(&map, 0), [0x100, 0x100, 0]);
    // What registers there are stays writable.
    assert_eq!(map.bars[0].sheets[0].plans[0].access(0), Some(Access::Direct));
    assert_eq!(map.bars[0].sheets[0].plans[1].access(0), Some(Access::Trapped));
}

/// One drive, listed before and after a driver let go of its interrupts.
#[test]
fn case_03_before_and_after() {
    let machine = machine("03-before-after");
    assert_eq!(names(&machine), ["0000:01:00.0"]);
    is_example(&machine, 0);
    assert!(machine.functions[0].notes[0].contains("MSI-X is not enabled"), "{:?}", machine.functions[0].notes);
    let map = machine.map(0, &PAGES, &POLICIES).unwrap();
    assert!(map.bars[0].sheets.iter().all(|sheet| !matches!(sheet.placement, Placement::Shared(_))));
    assert_eq!(kinds(&map, 0), [Alike, CarvedTrapsHot, CarvedTrapsHot]);
}

/// RP1 of a Raspberry Pi 5: BAR1 is at 0 on its bus, which is why its register reads 0. No virtual function.
#[test]
fn case_04_virtual_and_unassigned() {
    let machine = machine("04-virtual-unassigned");
    let function = &machine.functions[0];
    assert_eq!(function.bars.iter().map(|bar| bar.hidden).collect::<Vec<_>>(), [false, true, false]);
    assert_eq!(function.bars[1].place, wholebar_barmap::Place { address: Some(0x1f_0000_0000), size: Some(4 << 20) });
    let map = machine.map(0, &PAGES, &POLICIES).unwrap();
    assert_eq!(kinds(&map, 0), [Alike, CarvedTraps, CarvedTraps]);
    assert_eq!(kinds(&map, 1), [Alike; 3]);

    // The other words of pciutils.
    for (word, unplaced) in [("<unassigned>", Unplaced::Unassigned), ("<ignored>", Unplaced::Ignored)] {
        for size in [" [disabled] [size=16K]", ""] {
            let text = text("06-nvme-no-prog-if").replace("630040010000", word).replace(" [size=16K]", size);
            let machine = lspci::read(text.as_bytes()).unwrap();
            let bar = &machine.functions[0].bars[0];
            assert_eq!((bar.unplaced, bar.place.address, bar.disabled), (Some(unplaced), None, !size.is_empty()));
            let map = machine.map(0, &PAGES, &POLICIES).unwrap();
            assert!(map.problems.is_empty(), "{:?}", map.problems);
            assert_eq!(kinds(&map, 0), [Alike, CarvedTrapsHot, CarvedTrapsHot], "{text}");
            assert!(said(&map, 0, PageSize::K4).contains(&format!("it has no address ({word})")), "{text}");
        }
    }
}

#[test]
fn case_05_wrapped_by_a_mail() {
    let machine = machine("05-wrapped");
    is_example(&machine, 0);
    let function = &machine.functions[0];
    let title = "Non-Volatile memory controller: Samsung Electronics Co Ltd NVMe SSD Controller SM981/PM981/PM983";
    assert_eq!((function.title.as_deref(), function.ids.interface), (Some(title), Some(2)));
    assert!(function.notes.is_empty() && machine.notes.is_empty());
}

/// 136 vectors from 0x2000 to 0x2880, doorbells at 0x1000: 4 KiB pages keep them apart, and 630040010000 begins pages of 64 KiB.
#[test]
fn case_06_nvme_without_prog_if() {
    let machine = machine("06-nvme-no-prog-if");
    let map = machine.map(0, &PAGES, &POLICIES).unwrap();
    assert_eq!(kinds(&map, 0), [Alike, CarvedTrapsHot, CarvedTrapsHot]);
    let assumed = map.bars[0].hot[0].assumed.as_ref().unwrap();
    assert!(assumed.contains("its programming interface, which the source doesn't tell, is NVMe"), "{assumed}");
}

#[test]
fn case_07_a_short_list_first() {
    let machine = machine("07-short-list-first");
    assert_eq!(names(&machine), ["0000:01:00.0"]);
    is_example(&machine, 0);
    assert!(machine.functions[0].notes.is_empty(), "{:?}", machine.functions[0].notes);
}

/// f7000000 begins a 64 KiB page in which the second drive is, too; f7004000 begins none.
#[test]
fn cases_08_and_09_colours_and_a_byte_order_mark() {
    for name in ["08-ansi", "09-bom"] {
        let machine = machine(name);
        assert_eq!(names(&machine), ["0000:01:00.0", "0000:02:00.0"], "{name}");
        assert!(machine.notes.is_empty(), "{name} {:?}", machine.notes);
        for index in [0, 1] {
            is_example(&machine, index);
            let map = machine.map(index, &PAGES, &POLICIES).unwrap();
            assert_eq!((kinds(&map, 0), mapped(&map, 0)), ([Alike, CarvedTrapsHot, Unmappable], [0x4000, 0x4000, 0]));
            let verdict = &map.bars[0].sheets[2].verdict;
            assert_eq!(verdict.hot_out_of_reach.as_deref(), Some("doorbells at 0x1000"));
            assert_eq!(verdict.given_own_pages.as_ref().unwrap().kind, CarvedTrapsHot);
            // JSON says so too.
            let json = serde_json::to_value(json::Function::of(&map)).unwrap();
            let page = &json["bars"][0]["pages"][2];
            assert_eq!((&page["verdict"], &page["plans"][0]["mapped_bytes"]), (&"unmappable".into(), &0.into()));
            assert_eq!(page["given_own_pages"]["verdict"], "carved traps hot registers");
            assert_eq!(page["placement"], ["shared", "unaligned"][index]);
        }
    }
}

#[test]
fn case_10_the_first_line_is_lost() {
    let machine = machine("10-first-line-lost");
    assert_eq!(names(&machine), ["0000:02:00.0"]);
    is_example(&machine, 0);
    let note =
        "7 lines before the first function are no function's and are skipped, the first is line 1: `Control: I/O- Mem+";
    assert!(machine.notes[0].starts_with(note), "{:?}", machine.notes);
}

/// No BAR is told of. The table's page at 4 KiB, 0x3000, hasn't the doorbells; those at 16 and 64 KiB have.
#[test]
fn case_11_no_region() {
    let machine = machine("11-no-region");
    let map = machine.map(0, &PAGES, &POLICIES).unwrap();
    assert!(map.problems.is_empty(), "{:?}", map.problems);
    assert!(map.bars.len() == 1 && !map.bars[0].told && map.bars[0].layout.is_none());
    assert!(map.bars[0].sheets.iter().all(|sheet| sheet.plans.is_empty()));
    assert_eq!(kinds(&map, 0), [Alike, CarvedTrapsHot, CarvedTrapsHot]);
    assert!(PAGES.iter().all(|page| said(&map, 0, *page).contains("the BAR is not in the text")));

    // What `lspci -vvv | grep -A2 MSI-X` leaves: no function has a name, and still the table has its place.
    let lines: Vec<&str> = text("11-no-region")
        .leak()
        .lines()
        .filter(|l| ["MSI-X", "Vector", "PBA"].iter().any(|w| l.contains(w)))
        .collect();
    for between in ["\n--\n", "\n"] {
        let text = [lines.join("\n"), lines.join("\n")].join(between);
        let machine = lspci::read(format!("{text}\n").as_bytes()).unwrap();
        assert_eq!(names(&machine), ["function 1", "function 2"], "{text}");
        let map = machine.map(1, &PAGES, &POLICIES).unwrap();
        assert_eq!(kinds(&map, 0), [Alike, CarvedTraps, CarvedTraps]);
        assert!(said(&map, 0, PageSize::K64).contains("MSI-X table at 0x3000"));
    }
}

/// pciutils 3.2: 4 KiB of table and PBA at febd6000, which begins a 4 and an 8 KiB page; notifications in BAR2, from 0x3000 on.
#[test]
fn case_12_the_old_virtio_capability() {
    let machine = machine("12-old-virtio");
    let notify = machine.functions[0].notify.unwrap();
    assert_eq!((notify.bar, notify.offset, notify.size, notify.multiplier), (2, 0x3000, 0x40000, 0x1000));
    let map = machine.map(0, &PAGES, &POLICIES).unwrap();
    assert_eq!(kinds(&map, 0), [Ports; 3]);
    assert_eq!(kinds(&map, 1), [Alike, Unmappable, Unmappable]);
    assert_eq!(kinds(&map, 2), [Alike; 3]);
    assert_eq!(map.bars[2].hot[0].range, 0x3000..0x43000);
}

/// The texts in other dress say the same.
#[test]
fn the_same_in_other_dress() {
    let each = |text: &str, line: &dyn Fn(usize, &str) -> String| -> Vec<u8> {
        text.lines().enumerate().map(|(i, l)| line(i, l) + "\n").collect::<String>().into_bytes()
    };
    type Dress<'a> = (&'a str, Box<dyn Fn(&str) -> Vec<u8> + 'a>);
    let dresses: Vec<Dress<'_>> = vec![
        ("quoted", Box::new(|t| each(t, &|_, l| format!("> {l}")))),
        ("quoted deeply", Box::new(|t| each(t, &|_, l| format!(">> >\t{l}")))),
        ("in a table", Box::new(|t| each(t, &|_, l| format!("| {l} |")))),
        ("commented out", Box::new(|t| each(t, &|_, l| format!("# {l}")))),
        ("in a log", Box::new(|t| each(t, &|_, l| format!("Nov 28 23:00:01 host lspci[123]: {l}")))),
        ("in a journal", Box::new(|t| each(t, &|_, l| format!("2026-11-28T23:00:01+0000 host lspci[1]: {l}")))),
        ("in the kernel's log", Box::new(|t| each(t, &|_, l| format!("[   12.345678] {l}")))),
        ("numbered", Box::new(|t| each(t, &|i, l| format!("{:6}\t{l}", i + 1)))),
        ("by grep -n", Box::new(|t| each(t, &|i, l| format!("{}:{l}", i + 1)))),
        ("by grep -H", Box::new(|t| each(t, &|_, l| format!("host.txt-{l}")))),
        ("in a diff", Box::new(|t| each(t, &|_, l| format!("+{l}")))),
        ("by cat -A", Box::new(|t| each(t, &|_, l| l.replace('\t', "^I") + "$"))),
        ("spaces for tabs", Box::new(|t| t.replace('\t', "        ").into_bytes())),
        ("tabs for spaces", Box::new(|t| t.replace(' ', "\t").into_bytes())),
        ("no indentation", Box::new(|t| each(t, &|_, l| l.trim_start().to_owned()))),
        ("an empty line behind each", Box::new(|t| t.replace('\n', "\n\n").into_bytes())),
        ("of Windows", Box::new(|t| t.replace('\n', "\r\n").into_bytes())),
        ("of Windows, twice", Box::new(|t| t.replace('\n', "\r\r\n").into_bytes())),
        ("of an old Macintosh", Box::new(|t| t.replace('\n', "\r").into_bytes())),
        ("UTF-16", Box::new(|t| format!("\u{feff}{t}").encode_utf16().flat_map(u16::to_le_bytes).collect())),
        (
            "UTF-16, big-endian",
            Box::new(|t| format!("\u{feff}{t}").encode_utf16().flat_map(u16::to_be_bytes).collect()),
        ),
        ("UTF-16 without a mark", Box::new(|t| t.encode_utf16().flat_map(u16::to_le_bytes).collect())),
        ("HTML", Box::new(|t| t.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").into_bytes())),
        ("Markdown", Box::new(|t| t.replace('[', "\\[").replace(']', "\\]").into_bytes())),
        ("code", Box::new(|t| format!("```\n{t}```\n").into_bytes())),
        ("quoted-printable", Box::new(|t| t.replace('=', "=3D").into_bytes())),
        ("spaces that don't break", Box::new(|t| t.replace(' ', "\u{a0}").into_bytes())),
        (
            "with -nn",
            Box::new(|t| t.replace("controller: ", "controller [0000]: ").replace(" [0000]", "").into_bytes()),
        ),
        (
            "with words before and after",
            Box::new(|t| format!("Hello,\nthis is what it says:\n\n{t}\nThanks,\nme\n").into_bytes()),
        ),
    ];
    for name in [
        "01-path-PP",
        "02-table-inside-4k",
        "03-before-after",
        "04-virtual-unassigned",
        "06-nvme-no-prog-if",
        "08-ansi",
        "09-bom",
        "11-no-region",
        "12-old-virtio",
    ] {
        let text =
            text(name).trim_start_matches('\u{feff}').replace("\x1b[01;31m\x1b[K", "").replace("\x1b[m\x1b[K", "");
        let told = lspci::read(text.as_bytes()).unwrap();
        for (dress, put_on) in &dresses {
            let found = lspci::read(&put_on(&text)[..]).unwrap_or_else(|e| panic!("{name} {dress}: {e}"));
            assert_eq!(found.functions, told.functions, "{name} {dress}");
        }
    }
}

/// A whole machine's text as a mail wraps it, at several widths: nothing else is told than without.
#[test]
fn wrapped_at_any_width() {
    for name in ["h310", "l490", "z510", "aws-m4"] {
        let text = fs::read_to_string(
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dumps").join(name).with_extension("txt"),
        )
        .unwrap();
        let told = lspci::parse(&text);
        for width in [66, 72, 76, 78] {
            let mut wrapped = String::new();
            for line in text.lines() {
                let mut columns = 0;
                for (i, word) in line.split(' ').enumerate() {
                    let length = word.chars().map(|c| if c == '\t' { 8 } else { 1 }).sum::<usize>();
                    if i > 0 && columns + 1 + length > width {
                        wrapped.push('\n');
                        columns = 0;
                    } else if i > 0 {
                        wrapped.push(' ');
                        columns += 1;
                    }
                    wrapped += word;
                    columns += length;
                }
                wrapped.push('\n');
            }
            let found = lspci::parse(&wrapped);
            assert_eq!(names(&found), names(&told), "{name} {width}");
            for (found, told) in found.functions.iter().zip(&told.functions) {
                assert_eq!(
                    (&found.msix, &found.bars, &found.driver),
                    (&told.msix, &told.bars, &told.driver),
                    "{name} {width} {}",
                    told.name
                );
            }
        }
    }
}

use super::*;
use crate::MsixFact;
use wholebar_core::pci::config::BarKind;

/// One function, with a line after it that ends it.
fn one(text: &str) -> crate::Function {
    let mut machine = parse(&format!("{text}\n00:1f.0 ISA bridge: the next one\n"));
    assert_eq!(machine.functions.len(), 2, "{text}");
    machine.functions.remove(0)
}

const MSIX: &str = "01:00.0 Class: x\n\tStatus: Cap+\n\tCapabilities: [b0] MSI-X: Enable+ Count=33 Masked-\n\t\tVector table: BAR=0 offset=00003000\n\t\tPBA: BAR=4 offset=00002000\n";

#[test]
fn what_is_of_no_use_says_what_to_run() {
    for (bytes, says) in [
        (&b""[..], "empty"),
        (b" \n\t\r\n", "empty"),
        (b"\x7fELF\x02\x01\x01\0\0", "offset 7"),
        (b"hello\nworld\n", "no PCI function"),
        (b"00:00.0 Host bridge: Intel Corporation Device 1237\n00:01.0 ISA bridge: Intel Corporation\n", "lspci -vvxxxx"),
        (b"00:1f.6 Ethernet controller: Intel\n\tFlags: bus master\n\tMemory at f7d00000 (32-bit, non-prefetchable) [size=128K]\n", "`lspci -v`"),
        (b"Slot:\t00:00.0\nClass:\tHost bridge\n", "-m"),
        (b"Device:\t0000:00:00.0\nClass:\tHost bridge\n", "-m"),
        (b"00:00.0 \"Host bridge\" \"Intel Corporation\" \"Device 1237\" -r02 \"\" \"\"\n", "-m"),
        (b"-[0000:00]-+-00.0  Intel Corporation Device 1237\n           \\-02.0-[01]----00.0  Intel\n", "-t"),
    ] {
        let error = read(bytes).unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("lspci -vv"), "{error}");
    }
    // Not UTF-8, but text.
    assert_eq!(read(&b"00:00.0 Host bridge: \xff\xfe\n\tStatus: Cap-\n"[..]).unwrap().functions.len(), 1);
}

#[test]
fn first_lines_of_any_version() {
    for (line, name, vendor, class, interface) in [
        ("00:1f.6 Ethernet controller: Intel Corporation I219-LM (rev 21)", "0000:00:1f.6", None, Some(0x0200), None),
        (
            "0001:3b:00.1 Ethernet controller [0200]: Intel Corporation X [8086:1572] (rev 02)",
            "0001:3b:00.1",
            Some(0x8086),
            Some(0x0200),
            None,
        ),
        (
            "10000:e1:00.0 0108: 144d:a808 (prog-if 02 [NVM Express])",
            "10000:e1:00.0",
            Some(0x144d),
            Some(0x0108),
            Some(2),
        ),
        ("00:01.0 Class 0604: 8086:3408 (rev 13)", "0000:00:01.0", Some(0x8086), Some(0x0604), None),
        (
            "01:00.0 Non-Volatile memory controller: Samsung (prog-if 02 [NVM Express])",
            "0000:01:00.0",
            None,
            Some(0x0108),
            Some(2),
        ),
        (
            "00:1f.2 SATA controller [0106]: Intel [AHCI mode] [8086:a102] (rev 31) (prog-if 01 [AHCI 1.0])",
            "0000:00:1f.2",
            Some(0x8086),
            Some(0x0106),
            Some(1),
        ),
    ] {
        let function = one(&format!("{line}\n"));
        let ids = function.ids;
        assert_eq!((&*function.name, ids.vendor, ids.class, ids.interface), (name, vendor, class, interface), "{line}");
        assert!(!function.title.unwrap().contains("(rev"), "{line}");
    }
    for line in [
        "",
        "00:1f.6",
        "00:1f.6 ",
        "00:20.0 Class: x",
        "1:2.3 Class: x",
        "00: 86 80 00 00",
        "01:00.0 is where it is",
        "abcd",
    ] {
        assert!(line::slot(line).is_none(), "{line}");
    }
}

#[test]
fn regions_of_any_version() {
    let memory = |wide, prefetchable| BarKind::Memory { wide, prefetchable };
    for (line, kind, address, size, disabled, hidden) in [
        (
            "Region 0: Memory at f7d00000 (32-bit, non-prefetchable) [size=128K]",
            memory(false, false),
            Some(0xf7d0_0000),
            Some(0x2_0000),
            false,
            false,
        ),
        (
            "Region 1: Memory at 6000000000 (64-bit, prefetchable) [size=16G]",
            memory(true, true),
            Some(0x60_0000_0000),
            Some(16 << 30),
            false,
            false,
        ),
        ("Region 2: I/O ports at e000 [disabled] [size=32]", BarKind::Io, Some(0xe000), Some(32), true, false),
        (
            "Region 3: [virtual] Memory at df800000 (64-bit, prefetchable) [size=16K]",
            memory(true, true),
            Some(0xdf80_0000),
            Some(0x4000),
            false,
            true,
        ),
        (
            "Region 3: Memory at df800000 (64-bit, prefetchable) [virtual] [size=16K]",
            memory(true, true),
            Some(0xdf80_0000),
            Some(0x4000),
            false,
            true,
        ),
        (
            "Region 4: Memory at <unassigned> (32-bit, non-prefetchable) [disabled] [size=1M]",
            memory(false, false),
            None,
            Some(1 << 20),
            true,
            false,
        ),
        ("Region 5: Memory at <ignored> (64-bit, non-prefetchable)", memory(true, false), None, None, false, false),
        (
            "Region 5: Memory at <broken-64-bit-slot> (64-bit, non-prefetchable)",
            memory(true, false),
            None,
            None,
            false,
            false,
        ),
        (
            "Region 1: Memory at 000003f0 (type 3, non-prefetchable)",
            memory(false, false),
            Some(0x3f0),
            None,
            false,
            false,
        ),
        (
            "Region 0: Memory at 80000000 (low-1M, prefetchable) [enhanced] [size=1T]",
            memory(false, true),
            Some(0x8000_0000),
            Some(1 << 40),
            false,
            false,
        ),
        (
            "Region 0: Memory at 80000000 (32-bit, prefetchable) [size=36864]",
            memory(false, true),
            Some(0x8000_0000),
            Some(36864),
            false,
            false,
        ),
    ] {
        let region = line::region(line).unwrap();
        assert_eq!((region.kind, region.address, region.size), (kind, address, size), "{line}");
        assert_eq!((region.disabled, region.hidden), (disabled, hidden), "{line}");
    }
    for line in [
        "Region 6: Memory at 0 (32-bit)",
        "Region -1: Memory at 0 (32-bit)",
        "Region 0:",
        "Region 0: Memory at fe60",
        "Region",
        "Region 0: x",
    ] {
        assert!(line::region(line).is_none(), "{line}");
    }
    for (text, size) in [
        ("[size=16K", None),
        ("[size=]", None),
        ("[size=1Z]", None),
        ("[size=0]", None),
        ("[size=99999999T]", None),
        ("[size=+1K]", None),
    ] {
        assert_eq!(line::size(text), size, "{text}");
    }
}

#[test]
fn capabilities_of_any_version() {
    let function = one(MSIX);
    let msix = function.msix.present().unwrap();
    assert_eq!((msix.vectors, msix.enabled, msix.function_masked, msix.offset), (33, true, false, 0xb0));
    assert_eq!((msix.table_bar, msix.table_offset, msix.pba_bar, msix.pba_offset), (0, 0x3000, 4, 0x2000));

    let old = one(&MSIX.replace("Count=33 Masked-", "Mask+ TabSize=32"));
    assert_eq!(old.msix.present().map(|msix| (msix.vectors, msix.function_masked)), Some((32, true)));
    // As a mail encodes it, as HTML does, quoted, indented, with a carriage return.
    for pasted in [
        MSIX.replace('=', "=3D"),
        MSIX.lines().map(|line| format!("> > {line}\n")).collect(),
        MSIX.lines().map(|line| format!("    {}\n", line.replace('\t', "  "))).collect(),
        MSIX.replace('\n', "\r\n"),
        MSIX.replace('[', "\\[").replace(']', "\\]"),
    ] {
        assert_eq!(one(&pasted).msix.present(), Some(msix), "{pasted}");
    }
}

#[test]
fn what_is_not_there_is_not_claimed() {
    let unknown = |text: &str| matches!(parse(text).functions[0].msix, MsixFact::Unknown(_));
    for text in [
        "01:00.0 Class: x\n\tStatus: Cap+\n\tCapabilities: <access denied>\n\n",
        "01:00.0 Class: x\n\tStatus: Cap+\n\tCapabilities: &lt;access denied&gt;\n\n",
        "01:00.0 Class: x\n\tStatus: Cap+\n\tCapabilities: [40] Power Management version 3\n",
        "01:00.0 Class: x\n\tStatus: Cap+",
        "01:00.0 Class: x\n\tStatus: Cap+\n\tCapabilities: [40] Power Management version 3\n\t\t",
        "01:00.0 Class: x\n\n\tStatus: Cap+\n\n\tCapabilities: [40] Power Management version 3\n\n",
        "01:00.0 Class: x\n\tCapabilities: [b0] MSI-X: Enable+ Count=33 Masked-\n\n",
        "01:00.0 Class: x\n\tCapabilities: [b0] MSI-X: Enable+ Count=33 Masked-\n\t\tVector table: BAR=0 offset=00003000\n\n",
        "01:00.0 Class: x\n\tCapabilities: [b0] MSI-X: Enable+ Count=33 Masked-\n\t\tVector table: BAR=0 offset=00003000\n\t\tPBA: BAR=0 offset=0000",
        "01:00.0 Class: x\n\tCapabilities: [b0] MSI-X: Enable+ Count=2049 Masked-\n\t\tVector table: BAR=0 offset=00003000\n\t\tPBA: BAR=0 offset=00000000\n",
        "01:00.0 Class: x\n\tCapabilities: [b0] MSI-X: Enable+ Count=33 Masked-\n\t\tVector table: BAR=7 offset=00003000\n\t\tPBA: BAR=0 offset=00000000\n",
    ] {
        assert!(unknown(text), "{text}");
    }
    for text in [
        "01:00.0 Class: x\n\tStatus: Cap-\n",
        "01:00.0 Class: x\n\tStatus: Cap+\n\tCapabilities: [40] Power Management version 3\n\n",
        "01:00.0 Class: x\n\tStatus: Cap+\n\tCapabilities: [40] Power Management version 3\n\tKernel modules: y",
    ] {
        assert_eq!(parse(text).functions[0].msix, MsixFact::Absent, "{text}");
    }
}

/// A hex dump of a function with one MSI-X capability at 0x40: 8 vectors, table BAR0 + 0x1000, PBA BAR0 + 0x1800.
fn dump(lines: usize) -> String {
    let mut bytes = vec![0u8; 16 * lines];
    let head: &[(usize, &[u8])] = &[
        (0, &[0xf4, 0x1a, 0x41, 0x10, 6, 0, 0x10, 0, 0, 2, 8, 1]),
        (0x10, &[4, 0, 0, 0xf0]),
        (0x34, &[0x40]),
        (0x40, &[0x11, 0x50, 7, 0x80, 0, 0x10, 0, 0, 0, 0x18, 0, 0]),
        // Virtio's notifications: BAR0 + 0x800, 0x400 bytes, 4 apart.
        (0x50, &[0x09, 0, 0x14, 2, 0, 0, 0, 0, 0, 8, 0, 0, 0, 4, 0, 0, 4, 0, 0, 0]),
    ];
    for (at, part) in head.iter().filter(|(at, part)| at + part.len() <= 16 * lines) {
        bytes[*at..at + part.len()].copy_from_slice(part);
    }
    let line = |(i, bytes): (usize, &[u8])| {
        let bytes: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
        format!("{:02x}: {}\n", 16 * i, bytes.join(" "))
    };
    bytes.chunks(16).enumerate().map(line).collect()
}

#[test]
fn configuration_space_is_believed() {
    let text =
        "01:00.0 Class: x\n\tStatus: Cap+\n\tRegion 0: Memory at f0000000 (64-bit, non-prefetchable) [size=8K]\n";
    let function = one(&format!("{text}\tCapabilities: <access denied>\n{}", dump(16)));
    let msix = function.msix.present().unwrap();
    assert_eq!((msix.vectors, msix.enabled, msix.table_offset, msix.pba_offset), (8, true, 0x1000, 0x1800));
    assert_eq!((function.ids.vendor, function.ids.interface), (Some(0x1af4), Some(2)));
    let notify = function.notify.unwrap();
    assert_eq!((notify.bar, notify.offset, notify.size, notify.multiplier), (0, 0x800, 0x400, 4));
    assert_eq!(function.bars[0].place.size, Some(0x2000));

    // Text and dump that disagree.
    let told = MSIX.replace("01:00.0 Class: x\n\tStatus: Cap+\n", text);
    let function = one(&format!("{told}{}", dump(16)));
    assert_eq!(function.msix.present(), Some(msix));
    assert!(function.notes[0].contains("different"), "{:?}", function.notes);
    // A dump that is too short to tell, one that tells of nothing, one that is all ones.
    for short in [
        dump(4),
        dump(16).replace("11 50", "12 50"),
        dump(16).lines().map(|l| l[..4].to_owned() + &" ff".repeat(16)[1..] + "\n").collect(),
    ] {
        assert_eq!(one(&format!("{told}{short}")).msix.present().unwrap().vectors, 33, "{short}");
    }
    // A dump alone: where BARs are, and no sizes.
    let function = one(&format!("01:00.0 Class: x\n{}", dump(16)));
    assert_eq!(
        (function.bars.len(), function.bars[0].place),
        (1, crate::Place { address: Some(0xf000_0000), size: None })
    );
}

/// What a line that isn't understood does to the functions around it.
#[test]
fn a_function_has_its_own_lines_only() {
    let next = "02:00.0 Class: z\n\tStatus: Cap-\n";
    let region = "\tStatus: Cap+\n\tRegion 0: Memory at f0000000 (64-bit, non-prefetchable) [size=16K]\n";
    let body = MSIX.split_once("Cap+\n").unwrap().1;
    let control = "\tControl: I/O- Mem+\n";
    for (text, names, skipped) in [
        // Behind an empty line: words; an address that can't be read; nothing but another function's lines.
        (
            format!("01:00.0 Class: x\n{control}\nDevice two:\n{region}{body}\n{next}"),
            &["0000:01:00.0", "0000:02:00.0"][..],
            6,
        ),
        (
            format!("01:00.0 Class: x\n{control}\n1:0.0 Class: y\n{region}{body}\n{next}"),
            &["0000:01:00.0", "0000:02:00.0"],
            6,
        ),
        (format!("01:00.0 Class: x\n{control}\n{control}{region}{body}\n{next}"), &["0000:01:00.0", "0000:02:00.0"], 6),
        (format!("01:00.0 Class: x\n\n{control}{region}{body}\n{next}"), &["0000:01:00.0", "0000:02:00.0"], 6),
        (format!("01:00.0 Class: x\n\tSubsystem: x\n\n{region}{body}\n{next}"), &["0000:01:00.0", "0000:02:00.0"], 5),
        // Without empty lines: what comes in another order, or looks like an address.
        (
            format!("01:00.0 Class: x\n{control}\tKernel modules: y\n{control}{region}{body}{next}"),
            &["0000:01:00.0", "0000:02:00.0"],
            6,
        ),
        (
            format!("01:00.0 Class: x\n{control}00:1c.0/xx:00.0 Class: y\n{region}{body}{next}"),
            &["0000:01:00.0", "0000:02:00.0"],
            6,
        ),
        (format!("01:00.0 Class: x\n0000:02:0.0: y\n{region}{body}{next}"), &["0000:01:00.0", "0000:02:00.0"], 6),
    ] {
        let machine = parse(&text);
        let found: Vec<&str> = machine.functions.iter().map(|function| function.name.as_str()).collect();
        assert_eq!(found, names, "{text}");
        assert!(machine.functions.iter().all(|f| f.msix.present().is_none() && f.bars.is_empty()), "{text}");
        let note = format!("{skipped} lines between functions");
        assert!(machine.notes.iter().any(|said| said.contains(&note)), "{text}{:?}", machine.notes);
    }
    // An empty line behind each line, as some paste: all of it is its own.
    let spaced = format!("01:00.0 Class: x\n{control}{region}{body}\tLnkCap: words\n{next}").replace('\n', "\n\n");
    let machine = parse(&spaced);
    assert!(machine.functions[0].msix.present().is_some() && machine.functions[0].bars.len() == 1, "{machine:?}");
    assert!(machine.functions.len() == 2 && machine.notes.is_empty(), "{:?}", machine.notes);
}

#[test]
fn paths_through_bridges() {
    for (place, name, address) in [
        ("00:1c.0/01:00.0", "0000:01:00.0", Some("0000:01:00.0")),
        ("0001:00:1c.0/01:00.0/02:01.3", "0001:02:01.3", Some("0001:02:01.3")),
        ("00:1c.0/00.0", "0000:00:1c.0/00.0", None),
        ("0001:00:1c.0/00.0/01.3", "0001:00:1c.0/00.0/01.3", None),
    ] {
        let function = one(&format!("{place} Class: x\n"));
        assert_eq!((&*function.name, function.address.map(|a| a.to_string()).as_deref()), (name, address));
        assert_eq!(function.notes.len(), usize::from(address.is_none()), "{:?}", function.notes);
    }
    for place in
        ["00:1c.0/", "/00.0", "00:1c.0/20.0", "00:1c.0/00.8", "00:1c.0/01:00.0/00.0", "00:1c.0/0.0", "00:1c.0//00.0"]
    {
        let machine = parse(&format!("03:00.0 Class: x\n\n{place} Class: y\n{}", MSIX.split_once('\n').unwrap().1));
        assert_eq!((machine.functions.len(), machine.functions[0].msix.present()), (1, None), "{place}");
    }
}

#[test]
fn one_function_is_one_record() {
    let long = |address: &str, flags: &str| {
        format!(
            "01:00.0 Class: x\n\tStatus: Cap+\n\tRegion 0: Memory at {address} (64-bit, non-prefetchable) [size=16K]\n\tCapabilities: [b0] MSI-X: {flags} Count=33 Masked-\n\t\tVector table: BAR=0 offset=00003000\n\t\tPBA: BAR=0 offset=00002000\n\n"
        )
    };
    let short = "01:00.0 Class: x (prog-if 02)\n\tKernel driver in use: nvme\n\n";
    for text in [format!("{short}{}", long("f7000000", "Enable+")), format!("{}{short}", long("f7000000", "Enable+"))] {
        let machine = parse(&text);
        let [function] = &machine.functions[..] else { panic!("{machine:?}") };
        assert!(function.msix.present().is_some() && function.bars.len() == 1);
        assert_eq!(
            (function.driver.as_deref(), function.ids.interface, function.notes.len()),
            (Some("nvme"), Some(2), 0)
        );
        assert_eq!(machine.notes, ["one function is listed more than once: it is shown once"]);
    }
    let machine = parse(&(long("f7000000", "Enable+") + &long("f8000000", "Enable-") + &long("f8000000", "Enable-")));
    assert_eq!(machine.functions.len(), 1);
    let note = "it is listed 3 times, and not alike; shown is the fullest. Elsewhere: MSI-X is not enabled; BAR0 has 0xf8000000 and 16 KiB";
    assert_eq!(machine.functions[0].notes, [note]);
    // Names and numbers of one device; a name that was cut off.
    for (a, b, functions) in [
        ("Ethernet controller: Intel X710", "0200: 8086:1572 (rev 02)", 1),
        ("Ethernet controller [0200]: Intel X710 [8086:1572]", "0200: 8086:1572 (rev 02)", 1),
        ("Ethernet controller [0200]: Intel X710 [8086:1572]", "Ethernet controller: Intel X7", 1),
        // Two devices: two machines.
        ("Ethernet controller: Intel X710", "Ethernet controller: Intel E810", 2),
        ("Ethernet controller: Intel X710", "USB controller: Intel X710", 2),
        ("0200: 8086:1572", "0200: 8086:1592", 2),
    ] {
        let machine = parse(&format!("01:00.0 {a}\n\tStatus: Cap-\n\n01:00.0 {b}\n\tStatus: Cap-\n"));
        assert_eq!((machine.functions.len(), machine.mixed), (functions, functions == 2), "{a} {b}");
    }
}

#[test]
fn what_looks_like_more_than_it_says() {
    let bars = |line: &str| one(&format!("01:00.0 Class: x\n\tStatus: Cap-\n\t{line}\n"));
    for line in [
        "Region 0: Memory at f7000 (64-bit, non-prefetchable) [size=16K]",
        "Region 0: Memory at f7000000 000 (64-bit, non-prefetchable) [size=16K]",
        "Region 0: Memory at f7000000 (64-bit, non-pre [size=16K]",
        "Region 0: Memory at f7000000 (64-bit",
        "Region 9: Memory at f7000000 (64-bit, non-prefetchable) [size=16K]",
        "Region 0: Memory at xyz (64-bit, non-prefetchable) [size=16K]",
        "Region 0: I/O ports at e0 [size=32]",
        "Region 0",
    ] {
        let function = bars(line);
        assert!(function.bars.is_empty() && function.notes[0].contains("can't be read"), "{line} {function:?}");
    }
    // Without its size, or with a part of it.
    for line in [
        "Region 0: Memory at f7000000 (64-bit, non-prefetchable)",
        "Region 0: Memory at f7000000 (64-bit, non-prefetchable) [size=16",
        "Region 0: Memory at f7000000 (64-bit, non-prefetchable) [size=16K] x",
    ] {
        assert_eq!(bars(line).bars[0].place, crate::Place { address: Some(0xf700_0000), size: None }, "{line}");
    }
    for (from, to) in [
        ("Count=33", "Count=3"),
        ("Masked-", ""),
        ("Masked-", "Mas"),
        ("Count=33", "Count=3 3"),
        ("Enable+", "Enable"),
        ("offset=00003000", "offset=0000300"),
        ("BAR=0 off", "BAR= off"),
    ] {
        let function = one(&MSIX.replacen(from, to, 1));
        match to {
            // Nothing says that it isn't so.
            "Count=3" => assert_eq!(function.msix.present().unwrap().vectors, 3),
            _ => assert!(
                matches!(function.msix, MsixFact::Unknown(_)) && !function.notes.is_empty(),
                "{to} {function:?}"
            ),
        }
    }
    // Two capabilities, not alike: of two functions.
    let other = MSIX.split_once("\tCap").unwrap().1.replace("Count=33", "Count=9");
    assert!(matches!(one(&format!("{MSIX}\tCap{other}")).msix, MsixFact::Unknown(_)));
}

/// Several machines in one text, each again and again: a record for each device.
#[test]
fn machines_again_and_again() {
    let one = |title: &str| format!("01:00.0 Ethernet controller: {title}\n\tStatus: Cap-\n\n");
    let machine = parse(&(one("a") + &one("b") + &one("c")).repeat(50));
    assert_eq!((machine.functions.len(), machine.mixed), (3, true));
}

/// Whatever is repeated without end, what is kept of it has one.
#[test]
fn nothing_grows_with_the_text() {
    let line = format!("{} words\n", "word ".repeat(14));
    for repeated in [
        "!!! Unknown header type 7f\n",
        "\tCapabilities: <chain broken>\n",
        "\tRegion x\n",
        "00: 01 02 03\n",
        &line,
        "word\n",
        "\n",
    ] {
        let mut machine = parse(&format!("01:00.0 Class: x\n{}", repeated.repeat(5_000)));
        assert_eq!(machine.functions.len(), 1, "{repeated}");
        let function = machine.functions.remove(0);
        let kept = format!("{function:?}{:?}", machine.notes);
        assert!(kept.len() < 8192, "{repeated} {}", kept.len());
    }
}

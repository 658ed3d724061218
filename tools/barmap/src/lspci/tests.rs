use super::*;
use crate::MsixFact;
use wholebar::pci::config::BarKind;

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
    ] {
        let error = read(bytes).unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("lspci -vv"), "{error}");
    }
    // Not UTF-8, but text.
    assert_eq!(read(b"00:00.0 Host bridge: \xff\xfe\n\tStatus: Cap-\n").unwrap().functions.len(), 1);
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

#[test]
fn machines_that_are_two() {
    let machine = parse("01:00.0 Class: x\n\n02:00.0 Class: x\n\n01:00.0 Class: x\n");
    assert_eq!(machine.functions.len(), 3);
    assert!(machine.notes[0].contains("0000:01:00.0 is there 2 times"), "{:?}", machine.notes);
}

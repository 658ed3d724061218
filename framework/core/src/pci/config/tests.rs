//! Configuration spaces of devices that exist, and of none: any bytes at all.

use super::*;
use proptest::prelude::*;

fn config(bytes: Vec<u8>) -> Config {
    Config::from_bytes("test", bytes).unwrap()
}

/// `size` bytes, zero but for these.
fn with(size: usize, put: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; size];
    put.iter().for_each(|(at, new)| bytes[*at..at + new.len()].copy_from_slice(new));
    bytes
}

/// QEMU's nvme, as a guest's kernel set it up.
fn nvme() -> Config {
    config(with(
        4096,
        &[
            (0x00, &[0x36, 0x1b, 0x10, 0x00, 0x06, 0x04, 0x10, 0x00, 0x02, 0x02, 0x08, 0x01]),
            (0x10, &[0x04, 0x00, 0x10, 0xfe, 0x01]),
            (0x2c, &[0xf4, 0x1a, 0x00, 0x11]),
            (0x34, &[0x40]),
            (0x40, &[0x11, 0x80, 0x40, 0x80, 0x00, 0x20, 0x00, 0x00, 0x00, 0x30, 0x00, 0x00]),
            (0x60, &[0x01, 0x00, 0x03, 0x00]),
            (0x80, &[0x10, 0x60, 0x02, 0x00, 0x21, 0x80, 0x00, 0x10]),
            (0x8c, &[0x11, 0x08, 0x00, 0x00, 0x00, 0x00, 0x11, 0x00]),
            (0x100, &[0x01, 0x00, 0x02, 0x15]),
            (0x150, &[0x0e, 0x00, 0x01, 0x00]),
        ],
    ))
}

#[test]
fn an_nvme_device() {
    let c = nvme();
    assert_eq!((c.vendor(), c.device(), c.revision()), (0x1b36, 0x0010, 2));
    assert_eq!(c.class(), Class { base: 1, sub: 8, interface: 2 });
    assert_eq!(
        (c.header_type(), c.is_multi_function(), c.subsystem()),
        (HeaderType::Endpoint, false, Some((0x1af4, 0x1100)))
    );
    assert_eq!((c.command(), c.status(), c.is_bus_master(), c.memory_enabled()), (0x0406, 0x10, true, true));
    let listed: Vec<_> =
        c.capabilities().chain(c.extended_capabilities()).map(|c| (c.offset, c.version, c.id.to_string())).collect();
    let expect = [
        (0x40, 0, "MSI-X"),
        (0x80, 0, "Express"),
        (0x60, 0, "Power Management"),
        (0x100, 2, "Advanced Error Reporting"),
        (0x150, 1, "Alternative Routing-ID Interpretation (ARI)"),
    ];
    assert_eq!(listed, expect.map(|(at, version, name)| (at, version, name.to_owned())));
    let msix = c.msix().unwrap().unwrap();
    assert_eq!((msix.offset, msix.vectors, msix.enabled, msix.function_masked), (0x40, 65, true, false));
    assert_eq!((msix.table_bar, msix.table(), msix.pba_bar, msix.pba()), (0, 0x2000..0x2410, 0, 0x3000..0x3010));
    let express = c.express().unwrap();
    assert_eq!((express.version, express.port, express.function_level_reset), (2, PortType::Endpoint, true));
    assert_eq!(express.max_payload, 256);
    let link = express.link.unwrap();
    assert_eq!((link.max_generation, link.max_lanes, link.generation, link.lanes), (1, 1, 1, 1));
    assert_eq!(c.msi(), None);
    let bar0 = BarKind::Memory { wide: true, prefetchable: false };
    assert_eq!(c.bars()[0], BarRegister { index: 0, kind: bar0, address: 0x1_fe10_0000 });
    assert_eq!(c.bars().iter().map(|b| b.index).collect::<Vec<_>>(), [0, 2, 3, 4, 5]);
}

#[test]
fn base_address_registers() {
    let memory = |wide, prefetchable| BarKind::Memory { wide, prefetchable };
    let registers: [u32; 6] = [0xc001, 0xfeb0_0008, 0x0000_000c, 0x40, 0xf000_0000, 0xe000_0004];
    let bytes: Vec<u8> = registers.iter().flat_map(|r| r.to_le_bytes()).collect();
    let bars = |header: u8| -> Vec<_> {
        let c = config(with(64, &[(0x0e, &[header]), (0x10, &bytes)]));
        c.bars().iter().map(|b| (b.index, b.kind, b.address)).collect()
    };
    let expect = [
        (0, BarKind::Io, 0xc000),
        (1, memory(false, true), 0xfeb0_0000),
        (2, memory(true, true), 0x40_0000_0000),
        (4, memory(false, false), 0xf000_0000),
        // 64-bit in the last register: there is no upper half.
        (5, memory(false, false), 0xe000_0000),
    ];
    assert_eq!(bars(0), expect);
    assert_eq!(bars(0x80), expect);
    assert_eq!(bars(1), expect[..2]);
    assert_eq!(bars(2), []);
}

#[test]
fn msi_and_bridges() {
    let c = config(with(
        256,
        &[
            (0x06, &[0x10]),
            (0x0e, &[0x81]),
            (0x34, &[0x51]),
            (0x50, &[0x05, 0x62, 0x8b, 0x01]),
            (0x60, &[0x0d, 0x00, 0x00, 0x00, 0x86, 0x80, 0x34, 0x12]),
        ],
    ));
    assert_eq!((c.header_type(), c.is_multi_function()), (HeaderType::Bridge, true));
    // The lowest two bits of a pointer are reserved.
    let msi = c.msi().unwrap();
    assert_eq!(
        (msi.offset, msi.vectors, msi.granted, msi.enabled, msi.wide, msi.maskable),
        (0x50, 32, 1, true, true, true)
    );
    assert_eq!(c.subsystem(), Some((0x8086, 0x1234)));
    assert_eq!(c.express(), None);
    let reserved = config(with(256, &[(0x06, &[0x10]), (0x34, &[0x50]), (0x50, &[0x05, 0x00, 0xff, 0x00])]));
    assert_eq!(reserved.msi().map(|m| (m.vectors, m.granted)), Some((32, 32)));
}

#[test]
fn lists_that_loop_end() {
    let list = |put: &[(usize, &[u8])]| {
        let mut bytes = with(4096, put);
        bytes[0x06] = 0x10;
        bytes[0x34] = 0x40;
        let c = config(bytes);
        (c.capabilities().count(), c.extended_capabilities().count())
    };
    assert_eq!(list(&[(0x40, &[0x01, 0x40])]), (1, 0), "itself");
    assert_eq!(list(&[(0x40, &[0x01, 0x50]), (0x50, &[0x05, 0x43])]), (2, 0), "two, and reserved bits set");
    assert_eq!(list(&[(0x40, &[0x01, 0x3c])]), (1, 0), "into the header");
    assert_eq!(list(&[(0x40, &[0x01, 0xfc]), (0xfc, &[0x09, 0x00])]), (2, 0), "the last place");
    assert_eq!(list(&[(0x40, &[0xff, 0x50])]), (0, 0), "nothing answers");
    assert_eq!(list(&[(0x100, &[0x03, 0x00, 0x01, 0x10])]), (1, 1), "itself");
    assert_eq!(
        list(&[(0x100, &[0x03, 0x00, 0xc1, 0xff]), (0xffc, &[0x0b, 0, 0x01, 0x10])]),
        (1, 2),
        "back to the first"
    );
    assert_eq!(list(&[(0x100, &[0x03, 0x00, 0x01, 0x04])]), (1, 1), "into the compatible part");
    assert_eq!(list(&[(0x100, &[0xff; 4])]), (1, 0), "nothing answers");
    // A hidden first capability is a null one that leads on.
    assert_eq!(list(&[(0x100, &[0x00, 0x00, 0x00, 0x14]), (0x140, &[0x03, 0x00, 0x01, 0x00])]), (1, 2));
}

#[test]
fn an_msix_capability_that_makes_no_sense_is_an_error() {
    let msix = |at: u8, table: u8, pba: u8| {
        let mut bytes = with(256, &[(0x06, &[0x10]), (0x34, &[at])]);
        let capability = [0x11, 0, 0xff, 0x07, table, 0, 0, 0, pba, 0, 0, 0];
        for (to, from) in bytes[usize::from(at)..].iter_mut().zip(capability) {
            *to = from;
        }
        config(bytes).msix().map(|m| m.map(|m| (m.vectors, m.table_bar, m.pba_bar)))
    };
    assert_eq!(msix(0xf4, 0x00, 0x0d).unwrap(), Some((2048, 0, 5)));
    for (at, table, pba) in [(0xf8, 0, 0), (0xfc, 0, 0), (0x40, 6, 0), (0x40, 0, 7)] {
        let error = msix(at, table, pba).unwrap_err();
        assert!(matches!(error, Error::Config { .. }), "{error}");
    }
    assert!(config(with(256, &[])).msix().unwrap().is_none());
}

#[test]
fn less_than_a_header_is_an_error() {
    assert!(matches!(Config::from_bytes("test", vec![0; 63]), Err(Error::Config { .. })));
    assert_eq!(config(vec![0; 64]).capabilities().count(), 0);
    assert_eq!(config(vec![0; 5000]).bytes().len(), 4096);
}

#[test]
fn numbers_without_a_name_show_as_numbers() {
    assert_eq!(CapabilityId::Pci(0x42).to_string(), "Capability ID 0x42");
    assert_eq!(CapabilityId::Extended(0x1234).to_string(), "Extended Capability ID 0x1234");
    assert_eq!(CapabilityId::Extended(0x10).to_string(), "Single Root I/O Virtualization (SR-IOV)");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_are_decoded(
        size in prop_oneof![Just(64usize), Just(256), Just(4096), 64..4100usize],
        fill in prop_oneof![Just(0u8), any::<u8>()],
        pieces in prop::collection::vec((0..4096usize, prop::collection::vec(any::<u8>(), 1..16)), 0..100),
        listed in any::<bool>(),
    ) {
        let mut bytes = vec![fill; size];
        for (at, piece) in pieces {
            for (to, from) in bytes.iter_mut().skip(at % size).zip(piece) {
                *to = from;
            }
        }
        if listed {
            bytes[0x06] |= 0x10;
            bytes[0x0e] = 0;
        }
        let c = config(bytes);
        let offsets: Vec<_> = c.capabilities().map(|c| c.offset).collect();
        prop_assert!(offsets.len() <= 48 && offsets.iter().all(|o| (0x40..0x100).contains(o)));
        let extended: Vec<_> = c.extended_capabilities().map(|c| c.offset).collect();
        prop_assert!(extended.len() <= 960 && extended.iter().all(|o| (0x100..0x1000).contains(o)));
        if let Ok(Some(msix)) = c.msix() {
            prop_assert!((1..=2048).contains(&msix.vectors) && msix.table_bar < 6 && msix.pba_bar < 6);
            prop_assert!(msix.table().start % 8 == 0 && msix.pba().start % 8 == 0);
        }
        let _ = (c.bars(), c.msi(), c.express(), c.subsystem(), c.class());
    }
}

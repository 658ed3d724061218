//! Hot registers: those a driver writes once a batch, of devices that are known here, each with its source.
//!
//! It is a small table, and says so: of any other device it only says that nothing is known.

use crate::{Function, Notify};
use std::ops::Range;

/// A run of hot registers in a BAR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hot {
    /// In the device's own terms: `doorbells`, `transmit tails`.
    pub what: &'static str,
    /// The BAR that holds them.
    pub bar: u8,
    /// From the first register to the end of the last one there can be, in bytes.
    pub range: Range<u64>,
    /// Where that is written.
    pub source: &'static str,
    /// What had to be assumed.
    pub assumed: Option<String>,
}

/// What is known of a function's hot registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HotRegisters {
    /// This device, or one of its kind, is known: what it is, and its hot registers.
    Known(&'static str, Vec<Hot>),
    /// Nothing is known here; why.
    Unknown(&'static str),
}

impl HotRegisters {
    /// Returns what is known of a function's hot registers.
    pub fn of(function: &Function) -> Self {
        let ids = &function.ids;
        match (ids.class, ids.interface) {
            // Where the programming interface isn't told, that of nearly all of them: `nvme` says that this is assumed.
            (Some(0x0108), Some(2) | None) => return Self::Known("NVMe", vec![nvme(function)]),
            (Some(0x0106), Some(1)) => return Self::Known("AHCI", vec![ahci()]),
            _ => {}
        }
        if let Some(notify) = function.notify {
            return Self::Known("virtio", vec![virtio(notify)]);
        }
        let Some(family) = FAMILIES.iter().find(|family| family.is(function)) else {
            return Self::Unknown("which of its registers are hot isn't known here");
        };
        let memory = function.bars.iter().find(|bar| bar.is_memory()).map_or(0, |bar| bar.index);
        let hot = family.registers.iter().map(|run| Hot {
            what: run.what,
            bar: if family.first_memory { memory } else { 0 },
            range: run.first..run.first + run.stride * (run.count - 1) + run.width,
            source: family.source,
            assumed: None,
        });
        Self::Known(family.name, hot.collect())
    }

    /// The BARs that hold them.
    pub(crate) fn bars(&self) -> impl Iterator<Item = u8> + '_ {
        let runs = match self {
            Self::Known(_, hot) => hot.as_slice(),
            Self::Unknown(_) => &[],
        };
        runs.iter().map(|hot| hot.bar)
    }

    /// The runs in BAR `bar`.
    pub fn in_bar(&self, bar: u8) -> Vec<Hot> {
        match self {
            Self::Known(_, hot) => hot.iter().filter(|hot| hot.bar == bar).cloned().collect(),
            Self::Unknown(_) => Vec::new(),
        }
    }
}

fn nvme(function: &Function) -> Hot {
    let stride = function.doorbell_stride.unwrap_or(4);
    // Two a queue pair, that of the admin queue first. How many pairs there are only the controller knows; rarely more than vectors.
    let pairs = function.msix.present().map_or(1, |msix| u64::from(msix.vectors)).max(2);
    let mut assumed = Vec::new();
    if function.ids.interface.is_none() {
        assumed.push("its programming interface, which the source doesn't tell, is NVMe");
    }
    if function.doorbell_stride.is_none() {
        assumed.push("they are 4 bytes apart (CAP.DSTRD is 0, as on most controllers)");
    }
    let assumed = (!assumed.is_empty()).then(|| assumed.join("; "));
    let range = 0x1000..0x1000u64.saturating_add((2 * pairs - 1).saturating_mul(stride)).saturating_add(4);
    Hot { what: "doorbells", bar: 0, range, source: "NVM Express Base Specification 2.0, 3.1.3.2 and 3.1.3.1", assumed }
}

fn ahci() -> Hot {
    let range = 0x138..0x100 + 31 * 0x80 + 0x3c;
    Hot {
        what: "command issue registers",
        bar: 5,
        range,
        source: "Serial ATA AHCI 1.3.1, 3.3.14 (PxCI)",
        assumed: None,
    }
}

fn virtio(notify: Notify) -> Hot {
    Hot {
        what: "notifications",
        bar: notify.bar,
        range: notify.offset..notify.offset.saturating_add(notify.size),
        source: "Virtual I/O Device 1.2, 4.1.4.4, and the device's own capability",
        assumed: None,
    }
}

/// Devices whose hot registers are in the same places.
struct Family {
    name: &'static str,
    vendor: u16,
    /// A word that a vendor's name has in `lspci`.
    maker: &'static str,
    devices: &'static [u16],
    /// How a word of the device's name begins in `lspci`, for text without numbers.
    words: &'static [&'static str],
    /// Virtual functions of the family's devices, not the devices themselves.
    virtual_functions: bool,
    /// The registers are in the first BAR that is memory, and not always in BAR0.
    first_memory: bool,
    registers: &'static [Run],
    source: &'static str,
}

/// Registers at equal distances.
struct Run {
    what: &'static str,
    first: u64,
    stride: u64,
    count: u64,
    width: u64,
}

const fn run(what: &'static str, first: u64, stride: u64, count: u64) -> Run {
    Run { what, first, stride, count, width: 4 }
}

const RX: &str = "receive tails";
const TX: &str = "transmit tails";
const INTEL: (u16, &str) = (0x8086, "Intel");

/// Offsets are those of the data sheets; where a part has none in public, those of the driver that is named.
#[rustfmt::skip]
static FAMILIES: &[Family] = &[
    Family {
        name: "igb", vendor: INTEL.0, maker: INTEL.1,
        devices: &[
            0x10a7, 0x10a9, 0x10d6, 0x10c9, 0x10e6, 0x10e7, 0x10e8, 0x1526, 0x150a, 0x1518, 0x150d, 0x150e, 0x150f, 0x1510, 0x1511, 0x1516,
            0x1527, 0x1521, 0x1522, 0x1523, 0x1524, 0x1546, 0x1f40, 0x1f41, 0x1f45, 0x1533, 0x1534, 0x1535, 0x1536, 0x1537, 0x1538, 0x157b,
            0x157c, 0x15f6, 0x1539,
        ],
        words: &["82575", "82576", "82580", "I350", "I354", "I210", "I211"],
        virtual_functions: false, first_memory: false,
        // Queues 0 to 3 also by their older addresses, which drivers use.
        registers: &[run(RX, 0x2818, 0x100, 4), run(TX, 0x3818, 0x100, 4), run(RX, 0xc018, 0x40, 16), run(TX, 0xe018, 0x40, 16)],
        source: "Intel 82576 and I350 data sheets, register summary (RDT[n], TDT[n])",
    },
    Family {
        name: "e1000e, and virtual functions of igb", vendor: INTEL.0, maker: INTEL.1,
        devices: &[0x10d3, 0x10f6, 0x10ca, 0x152d, 0x1520, 0x152f],
        words: &["82574"],
        virtual_functions: false, first_memory: false,
        registers: &[run(RX, 0x2818, 0x100, 2), run(TX, 0x3818, 0x100, 2)],
        source: "Intel 82574 data sheet, 10.2 (RDT, TDT); 82576 data sheet, virtual function registers",
    },
    Family {
        name: "igc", vendor: INTEL.0, maker: INTEL.1,
        devices: &[0x15f2, 0x15f3, 0x15f7, 0x15f8, 0x3100, 0x3101, 0x0d9f, 0x125b, 0x125c, 0x125d, 0x125e, 0x125f, 0x5502, 0x5503],
        words: &["I225", "I226"],
        virtual_functions: false, first_memory: false,
        registers: &[run(RX, 0xc018, 0x40, 4), run(TX, 0xe018, 0x40, 4)],
        source: "Linux drivers/net/ethernet/intel/igc/igc_regs.h (IGC_RDT, IGC_TDT)",
    },
    Family {
        name: "ixgbe", vendor: INTEL.0, maker: INTEL.1,
        devices: &[
            0x10b6, 0x1508, 0x10c6, 0x10c7, 0x10c8, 0x150b, 0x10db, 0x10dd, 0x10ec, 0x10f1, 0x10e1, 0x10f4, 0x10f7, 0x1514, 0x1517, 0x10f8,
            0x154f, 0x10f9, 0x10fb, 0x152a, 0x1529, 0x1507, 0x154d, 0x154a, 0x1558, 0x1557, 0x10fc, 0x151c, 0x155d, 0x1528, 0x1560, 0x1563,
            0x15d1, 0x15aa, 0x15ab, 0x15ac, 0x15ad, 0x15ae, 0x15b0, 0x15c2, 0x15c3, 0x15c4, 0x15c6, 0x15c7, 0x15c8, 0x15ca, 0x15cc, 0x15ce,
            0x15e4, 0x15e5,
        ],
        words: &["82598", "82599", "X520", "X540", "X550", "X552", "X553"],
        virtual_functions: false, first_memory: false,
        registers: &[run(RX, 0x1018, 0x40, 64), run(TX, 0x6018, 0x40, 128), run(RX, 0xd018, 0x40, 64)],
        source: "Intel 82599 data sheet, 8.2.3.8.5 (RDT[n]) and 8.2.3.9.9 (TDT[n])",
    },
    Family {
        name: "ixgbe's virtual functions", vendor: INTEL.0, maker: INTEL.1,
        devices: &[0x10ed, 0x152e, 0x1515, 0x1530, 0x1564, 0x1565, 0x15c5, 0x15b4, 0x15a8, 0x15a9],
        words: &["82599", "X540", "X550", "X552", "X553"],
        virtual_functions: true, first_memory: false,
        registers: &[run(RX, 0x1018, 0x40, 8), run(TX, 0x2018, 0x40, 8)],
        source: "Intel 82599 data sheet, virtual function registers (VFRDT[n], VFTDT[n])",
    },
    Family {
        name: "i40e", vendor: INTEL.0, maker: INTEL.1,
        devices: &[
            0x1572, 0x1574, 0x1580, 0x1581, 0x1583, 0x1584, 0x1585, 0x1586, 0x1587, 0x1588, 0x1589, 0x158a, 0x158b, 0x15ff, 0x104f, 0x104e,
            0x101f, 0x0dd2, 0x37ce, 0x37cf, 0x37d0, 0x37d1, 0x37d2, 0x37d3, 0x0dda, 0x0cf8, 0x0d58,
        ],
        words: &["X710", "XL710", "XXV710", "X722"],
        virtual_functions: false, first_memory: false,
        registers: &[run(TX, 0x10_8000, 4, 1536), run(RX, 0x12_8000, 4, 1536)],
        source: "Intel X710/XXV710/XL710 data sheet, register summary (QTX_TAIL, QRX_TAIL)",
    },
    Family {
        name: "iavf", vendor: INTEL.0, maker: INTEL.1,
        devices: &[0x154c, 0x1571, 0x1889, 0x37cd, 0x374d],
        words: &["700", "X710", "XL710", "XXV710", "X722", "Adaptive"],
        virtual_functions: true, first_memory: false,
        registers: &[run(TX, 0x0000, 4, 16), run(RX, 0x2000, 4, 16)],
        source: "Intel Ethernet Adaptive Virtual Function Specification 1.0 (QTX_TAIL1, QRX_TAIL1)",
    },
    Family {
        name: "ice", vendor: INTEL.0, maker: INTEL.1,
        devices: &[
            0x1888, 0x124c, 0x124d, 0x124e, 0x124f, 0x151d, 0x1591, 0x1592, 0x1593, 0x1599, 0x159a, 0x159b, 0x188a, 0x188b, 0x188c, 0x188d,
            0x188e, 0x1890, 0x1891, 0x1892, 0x1893, 0x1894, 0x1897, 0x1898, 0x1899, 0x189a,
        ],
        words: &["E810", "E822", "E823"],
        virtual_functions: false, first_memory: false,
        registers: &[run(RX, 0x29_0000, 4, 2048), run(TX, 0x2c_0000, 4, 16384)],
        source: "Linux drivers/net/ethernet/intel/ice/ice_hw_autogen.h (QRX_TAIL, QTX_COMM_DBELL)",
    },
    Family {
        name: "vmxnet3", vendor: 0x15ad, maker: "VMware",
        devices: &[0x07b0],
        words: &["VMXNET3"],
        virtual_functions: false, first_memory: false,
        registers: &[run(TX, 0x600, 8, 8), run(RX, 0x800, 8, 16), run(RX, 0xa00, 8, 16)],
        source: "Linux drivers/net/vmxnet3/vmxnet3_defs.h (VMXNET3_REG_TXPROD, RXPROD, RXPROD2)",
    },
    Family {
        name: "r8169", vendor: 0x10ec, maker: "Realtek",
        devices: &[0x8136, 0x8161, 0x8168],
        words: &["RTL8101E", "RTL810xE", "RTL8111", "RTL8168"],
        virtual_functions: false, first_memory: true,
        registers: &[Run { what: "transmit poll", first: 0x38, stride: 1, count: 1, width: 1 }],
        source: "Linux drivers/net/ethernet/realtek/r8169_main.c (TxPoll)",
    },
    Family {
        name: "r8169, 2.5 Gb/s", vendor: 0x10ec, maker: "Realtek",
        devices: &[0x8125, 0x3000],
        words: &["RTL8125"],
        virtual_functions: false, first_memory: true,
        registers: &[Run { what: "transmit poll", first: 0x90, stride: 1, count: 1, width: 2 }],
        source: "Linux drivers/net/ethernet/realtek/r8169_main.c (TxPoll_8125)",
    },
];

impl Family {
    fn is(&self, function: &Function) -> bool {
        match (function.ids.vendor, function.ids.device) {
            (Some(vendor), Some(device)) => vendor == self.vendor && self.devices.contains(&device),
            _ => function.title.as_deref().is_some_and(|title| self.is_called(title)),
        }
    }

    fn is_called(&self, title: &str) -> bool {
        let mut words = title.split(|c: char| !c.is_alphanumeric());
        // The word after the maker's: a subsystem or a bridge may be named after a device that it belongs to.
        title.contains("Ethernet")
            && title.contains("Virtual Function") == self.virtual_functions
            && words.any(|word| word == self.maker)
            && words.any(|word| self.words.iter().any(|name| word.starts_with(name)))
    }
}

//! Layouts that exist, and some that nothing forbids: what each comes to on 4, 16 and 64 KiB pages. What is expected was worked out by hand from
//! the rules of PCI and of the plan (a page that holds the table is trapped by carving; pages that only table and PBA use are read-only), not by
//! the code. Each case tells its source; those from `tests/dumps` are told of in `SOURCES.md` there.

use wholebar_barmap::VerdictKind::{self, *};
use wholebar_barmap::{PAGES, Placement, lspci};
use wholebar_core::PageSize;
use wholebar_core::bar::{Access, BarPlan, MapPolicy};

/// A BAR, and what is expected of it.
struct Case {
    source: &'static str,
    /// The rest of the first line.
    title: &'static str,
    /// BAR (0 to 5) and size, as `lspci` writes sizes.
    bars: &'static [(u8, &'static str)],
    /// Vectors; BAR and offset of the table; of the PBA.
    msix: Option<(u16, u8, u32, u8, u32)>,
    /// More lines.
    more: &'static str,
    /// The BAR that is looked at.
    bar: u8,
    /// For each page size, whole and carved: `D`irect, read-`O`nly or `T`rapped up to an offset, the last one up to the end.
    spans: [(&'static str, &'static str); 3],
    kinds: [VerdictKind; 3],
}

const NIC: &str = "Ethernet controller: Unknown maker Device 0001";
const NVME: &str = "Non-Volatile memory controller: Unknown maker Device 0002 (prog-if 02 [NVM Express])";

/// One page size like the other.
const fn all(plan: (&'static str, &'static str)) -> [(&'static str, &'static str); 3] {
    [plan; 3]
}

#[rustfmt::skip]
const CASES: &[Case] = &[
    // NVMe: doorbells at 0x1000.
    Case { source: "dumps/talos2.txt: Samsung a808: PBA before the table", title: NVME, bars: &[(0, "16K")], msix: Some((33, 0, 0x3000, 0, 0x2000)), more: "", bar: 0,
        spans: [("D2000 O", "D2000 O3000 T"), ("D", "T"), ("D", "T")], kinds: [Alike, CarvedTrapsHot, CarvedTrapsHot] },
    Case { source: "dumps/l490.txt: Intel 760p: table and PBA in one 4 KiB range", title: NVME, bars: &[(0, "16K")], msix: Some((16, 0, 0x2000, 0, 0x2100)), more: "", bar: 0,
        spans: [("D2000 O3000 D", "D2000 T3000 D"), ("D", "T"), ("D", "T")], kinds: [Alike, CarvedTrapsHot, CarvedTrapsHot] },
    Case { source: "dumps/x99-qd4.txt: Realtek NVMe, its BAR0", title: NVME, bars: &[(0, "16K"), (5, "8K")], msix: Some((9, 0, 0x2000, 0, 0x3000)), more: "", bar: 0,
        spans: [("D2000 O", "D2000 T3000 O"), ("D", "T"), ("D", "T")], kinds: [Alike, CarvedTrapsHot, CarvedTrapsHot] },
    Case { source: "dumps/x99-qd4.txt: Realtek NVMe, its BAR5", title: NVME, bars: &[(0, "16K"), (5, "8K")], msix: Some((9, 0, 0x2000, 0, 0x3000)), more: "", bar: 5,
        spans: all(("D", "D")), kinds: [Alike, Alike, Alike] },
    Case { source: "dumps/cmlgpu.txt: Intel data centre SSD", title: NVME, bars: &[(0, "16K")], msix: Some((32, 0, 0x2000, 0, 0x3000)), more: "", bar: 0,
        spans: [("D2000 O", "D2000 T3000 O"), ("D", "T"), ("D", "T")], kinds: [Alike, CarvedTrapsHot, CarvedTrapsHot] },
    Case { source: "dumps/surface-book.txt: Toshiba NVMe", title: NVME, bars: &[(0, "16K")], msix: Some((8, 0, 0x2000, 0, 0x3000)), more: "", bar: 0,
        spans: [("D2000 O", "D2000 T3000 O"), ("D", "T"), ("D", "T")], kinds: [Alike, CarvedTrapsHot, CarvedTrapsHot] },
    Case { source: "a blog's lspci of an enterprise NVMe: 257 entries reach into a second 4 KiB range", title: NVME, bars: &[(0, "32K")], msix: Some((257, 0, 0x4000, 0, 0x6000)), more: "", bar: 0,
        spans: [("D4000 O7000 D", "D4000 T6000 O7000 D"), ("D", "D4000 T"), ("D", "T")], kinds: [Alike, CarvedTrapsOthers, CarvedTrapsHot] },
    Case { source: "a mail to qemu-devel: an SSD with its PBA in another BAR", title: NVME, bars: &[(0, "16K"), (4, "4K")], msix: Some((33, 0, 0x2000, 4, 0)), more: "", bar: 0,
        spans: [("D2000 O3000 D", "D2000 T3000 D"), ("D", "T"), ("D", "T")], kinds: [Alike, CarvedTrapsHot, CarvedTrapsHot] },
    Case { source: "the same: the PBA's BAR", title: NVME, bars: &[(0, "16K"), (4, "4K")], msix: Some((33, 0, 0x2000, 4, 0)), more: "", bar: 4,
        spans: all(("O", "O")), kinds: [Alike, Alike, Alike] },
    Case { source: "SPDK's vfio-user NVMe: a BAR for the table alone", title: NVME, bars: &[(0, "8K"), (4, "8K"), (5, "4K")], msix: Some((512, 4, 0, 5, 0)), more: "", bar: 4,
        spans: all(("O", "T")), kinds: [Alike, Alike, Alike] },
    // Network controllers.
    Case { source: "dumps/talos2.txt: Broadcom BCM5719", title: NIC, bars: &[(0, "64K"), (2, "64K"), (4, "64K")], msix: Some((17, 4, 0, 4, 0x1000)), more: "", bar: 4,
        spans: [("O2000 D", "T1000 O2000 D"), ("D", "T4000 D"), ("D", "T")], kinds: [Alike, CarvedTraps, CarvedTraps] },
    Case { source: "dumps/aws-m4.txt: virtual function of an 82599", title: "0200: 8086:10ed (rev 01)", bars: &[(0, "16K"), (3, "16K")], msix: Some((3, 3, 0, 3, 0x2000)), more: "", bar: 3,
        spans: [("O1000 D2000 O3000 D", "T1000 D2000 O3000 D"), ("D", "T"), ("D", "T")], kinds: [Alike, CarvedTrapsOthers, CarvedTrapsOthers] },
    Case { source: "dumps/h310.txt: Realtek RTL8111, table and PBA in one 4 KiB range", title: "Ethernet controller [0200]: Realtek Semiconductor Co., Ltd. RTL8111/8168/8411 PCI Express Gigabit Ethernet Controller [10ec:8168] (rev 15)",
        bars: &[(2, "4K"), (4, "16K")], msix: Some((4, 4, 0, 4, 0x800)), more: "", bar: 4,
        spans: [("O1000 D", "T1000 D"), ("D", "T"), ("D", "T")], kinds: [Alike, CarvedTrapsOthers, CarvedTrapsOthers] },
    Case { source: "dumps/h310.txt: Realtek RTL8111, its registers", title: "Ethernet controller: Realtek Semiconductor Co., Ltd. RTL8111/8168/8411 PCI Express Gigabit Ethernet Controller",
        bars: &[(2, "4K"), (4, "16K")], msix: Some((4, 4, 0, 4, 0x800)), more: "", bar: 2,
        spans: all(("D", "D")), kinds: [Alike, Alike, Alike] },
    Case { source: "dumps/acer.txt: Atheros AR928X, whose table and PBA overlap", title: "Network controller: Qualcomm Atheros AR928X Wireless Network Adapter", bars: &[(0, "64K")], msix: Some((1, 0, 0, 0, 0)), more: "", bar: 0,
        spans: [("O1000 D", "T1000 D"), ("D", "T4000 D"), ("D", "T")], kinds: [Alike, CarvedTraps, CarvedTraps] },
    Case { source: "dumps/cmlgpu.txt: Intel X520", title: "Ethernet controller: Intel Corporation Ethernet 10G 2P X520 Adapter (rev 01)", bars: &[(0, "1M"), (4, "16K")], msix: Some((64, 4, 0, 4, 0x2000)), more: "", bar: 4,
        spans: [("O1000 D2000 O3000 D", "T1000 D2000 O3000 D"), ("D", "T"), ("D", "T")], kinds: [Alike, CarvedTrapsOthers, CarvedTrapsOthers] },
    Case { source: "dumps/mellanox.txt: ConnectX-5", title: NIC, bars: &[(0, "32M")], msix: Some((64, 0, 0x2000, 0, 0x3000)), more: "", bar: 0,
        spans: [("D2000 O4000 D", "D2000 T3000 O4000 D"), ("D", "T4000 D"), ("D", "T10000 D")], kinds: [Alike, CarvedTraps, CarvedTraps] },
    Case { source: "dumps/mellanox.txt: virtual function of a ConnectX-5", title: NIC, bars: &[(0, "1M")], msix: Some((12, 0, 0x2000, 0, 0x3000)), more: "", bar: 0,
        spans: [("D2000 O4000 D", "D2000 T3000 O4000 D"), ("D", "T4000 D"), ("D", "T10000 D")], kinds: [Alike, CarvedTraps, CarvedTraps] },
    Case { source: "dumps/mellanox.txt: Intel XXV710, its table's BAR", title: "Ethernet controller: Intel Corporation Ethernet Controller XXV710 for 25GbE SFP28 (rev 02)", bars: &[(0, "16M"), (3, "32K")], msix: Some((129, 3, 0, 3, 0x1000)), more: "", bar: 3,
        spans: [("O2000 D", "T1000 O2000 D"), ("D", "T4000 D"), ("D", "T")], kinds: [Alike, CarvedTrapsOthers, CarvedTrapsOthers] },
    Case { source: "dumps/mellanox.txt: Intel XXV710, its registers", title: "Ethernet controller: Intel Corporation Ethernet Controller XXV710 for 25GbE SFP28 (rev 02)", bars: &[(0, "16M"), (3, "32K")], msix: Some((129, 3, 0, 3, 0x1000)), more: "", bar: 0,
        spans: all(("D", "D")), kinds: [Alike, Alike, Alike] },
    Case { source: "dumps/mellanox.txt: Broadcom BCM57414: the PBA right behind the table", title: NIC, bars: &[(0, "64K"), (2, "1M"), (4, "8K")], msix: Some((74, 4, 0, 4, 0x4a0)), more: "", bar: 4,
        spans: [("O1000 D", "T1000 D"), ("D", "T"), ("D", "T")], kinds: [Alike, CarvedTraps, CarvedTraps] },
    Case { source: "Intel 82576 data sheet; pciutils tests/cap-pcie-1", title: "Ethernet controller: Intel Corporation 82576 Gigabit Network Connection (rev 01)", bars: &[(0, "128K"), (1, "4M"), (3, "16K")], msix: Some((10, 3, 0, 3, 0x2000)), more: "", bar: 3,
        spans: [("O1000 D2000 O3000 D", "T1000 D2000 O3000 D"), ("D", "T"), ("D", "T")], kinds: [Alike, CarvedTrapsOthers, CarvedTrapsOthers] },
    Case { source: "Intel 82574 data sheet, 10.1", title: "Ethernet controller [0200]: Intel Corporation 82574L Gigabit Network Connection [8086:10d3]", bars: &[(0, "128K"), (3, "16K")], msix: Some((5, 3, 0, 3, 0x2000)), more: "", bar: 3,
        spans: [("O1000 D2000 O3000 D", "T1000 D2000 O3000 D"), ("D", "T"), ("D", "T")], kinds: [Alike, CarvedTrapsOthers, CarvedTrapsOthers] },
    Case { source: "a forum's lspci of an Intel E810: 1024 entries fill 16 KiB", title: "Ethernet controller: Intel Corporation Ethernet Controller E810-C for QSFP (rev 02)", bars: &[(0, "32M"), (3, "64K")], msix: Some((1024, 3, 0, 3, 0x8000)), more: "", bar: 3,
        spans: [("O4000 D8000 O9000 D", "T4000 D8000 O9000 D"), ("O4000 D", "T4000 D"), ("D", "T")], kinds: [Alike, Alike, CarvedTrapsOthers] },
    Case { source: "pciutils tests/cap-ea-1: Cavium ThunderX, PBA far from the table", title: NIC, bars: &[(0, "1G"), (4, "1M")], msix: Some((10, 4, 0, 4, 0xf_0000)), more: "", bar: 4,
        spans: [("O1000 Df0000 Of1000 D", "T1000 Df0000 Of1000 D"), ("D", "T4000 D"), ("D", "T10000 D")], kinds: [Alike, CarvedTraps, CarvedTraps] },
    Case { source: "pciutils tests/tree-fsl-p2020: ConnectX-3 Pro: a table of exactly 4 KiB in the middle", title: NIC, bars: &[(0, "1M"), (2, "32M")], msix: Some((256, 0, 0x7_c000, 0, 0x7_d000)), more: "", bar: 0,
        spans: [("D7c000 O7e000 D", "D7c000 T7d000 O7e000 D"), ("D", "D7c000 T80000 D"), ("D", "D70000 T80000 D")], kinds: [Alike, CarvedTraps, CarvedTraps] },
    Case { source: "a blog's lspci of vmxnet3, its table's BAR", title: "Ethernet controller: VMware VMXNET3 Ethernet Controller (rev 01)", bars: &[(0, "4K"), (1, "4K"), (2, "8K")], msix: Some((25, 2, 0, 2, 0x1000)), more: "", bar: 2,
        spans: [("O", "T1000 O"), ("O", "T"), ("O", "T")], kinds: [Alike, Alike, Alike] },
    Case { source: "the same: the BAR of its tails", title: "Ethernet controller: VMware VMXNET3 Ethernet Controller (rev 01)", bars: &[(0, "4K"), (1, "4K"), (2, "8K")], msix: Some((25, 2, 0, 2, 0x1000)), more: "", bar: 0,
        spans: all(("D", "D")), kinds: [Alike, Alike, Alike] },
    // Virtio.
    Case { source: "pciutils tests/cap-vendor-virtio: QEMU's virtio-net: a BAR for table and PBA alone", title: "Ethernet controller: Red Hat, Inc Virtio network device", bars: &[(1, "4K"), (4, "16K")], msix: Some((3, 1, 0, 1, 0x800)),
        more: "\tCapabilities: [70] Vendor Specific Information: VirtIO: Notify\n\t\tBAR=4 offset=00003000 size=00001000 multiplier=00000004\n", bar: 1,
        spans: all(("O", "T")), kinds: [Alike, Alike, Alike] },
    Case { source: "pciutils, a virtio-pmem of crosvm: notifications beside the table, in one 4 KiB range", title: "Class ffff: Device 1af4:105b (rev 01)", bars: &[(0, "4K"), (2, "16M")], msix: Some((2, 0, 0x58, 0, 0x78)),
        more: "\tCapabilities: [60] Vendor Specific Information: VirtIO: Notify\n\t\tBAR=0 offset=00000040 size=00000002 multiplier=00000002\n", bar: 0,
        spans: all(("D", "T")), kinds: [CarvedTrapsHot, CarvedTrapsHot, CarvedTrapsHot] },
    // Others.
    Case { source: "dumps/talos2.txt: TI TUSB73x0: nothing but table and PBA", title: "USB controller: Texas Instruments TUSB73x0", bars: &[(0, "64K"), (2, "8K")], msix: Some((8, 2, 0, 2, 0x1000)), more: "", bar: 2,
        spans: [("O", "T1000 O"), ("O", "T"), ("O", "T")], kinds: [Alike, Alike, Alike] },
    Case { source: "dumps/cmlgpu.txt: MegaRAID 3108: table and PBA at the end", title: "RAID bus controller: Broadcom / LSI MegaRAID SAS-3 3108", bars: &[(1, "64K"), (3, "1M")], msix: Some((97, 1, 0xe000, 1, 0xf000)), more: "", bar: 1,
        spans: [("De000 O", "De000 Tf000 O"), ("D", "Dc000 T"), ("D", "T")], kinds: [Alike, CarvedTraps, CarvedTraps] },
    Case { source: "dumps/mellanox.txt: Intel CBDMA", title: "System peripheral: Intel Corporation Sky Lake-E CBDMA Registers", bars: &[(0, "16K")], msix: Some((1, 0, 0x2000, 0, 0x3000)), more: "", bar: 0,
        spans: [("D2000 O", "D2000 T3000 O"), ("D", "T"), ("D", "T")], kinds: [Alike, CarvedTraps, CarvedTraps] },
    Case { source: "dumps/mellanox.txt: Adaptec Smart Storage", title: "Serial Attached SCSI controller: Adaptec Smart Storage PQI", bars: &[(0, "32K")], msix: Some((64, 0, 0x2000, 0, 0x3000)), more: "", bar: 0,
        spans: [("D2000 O4000 D", "D2000 T3000 O4000 D"), ("D", "T4000 D"), ("D", "T")], kinds: [Alike, CarvedTraps, CarvedTraps] },
    Case { source: "pciutils: Intel DSA (8086:0b25)", title: "Class 0880: Device 8086:0b25", bars: &[(0, "64K"), (2, "128K")], msix: Some((9, 0, 0x2000, 0, 0x3000)), more: "", bar: 0,
        spans: [("D2000 O4000 D", "D2000 T3000 O4000 D"), ("D", "T4000 D"), ("D", "T")], kinds: [Alike, CarvedTraps, CarvedTraps] },
    Case { source: "a kernel bug report's lspci of an ASMedia ASM1142: the PBA 128 bytes behind the table", title: "USB controller: ASMedia ASM1142 (prog-if 30 [XHCI])", bars: &[(0, "32K")], msix: Some((8, 0, 0x2000, 0, 0x2080)), more: "", bar: 0,
        spans: [("D2000 O3000 D", "D2000 T3000 D"), ("D", "T4000 D"), ("D", "T")], kinds: [Alike, CarvedTraps, CarvedTraps] },
    Case { source: "a mail to linux-usb: AMD xHCI: table and PBA in the last 8 KiB of 1 MiB", title: "USB controller: AMD (prog-if 30 [XHCI])", bars: &[(0, "1M")], msix: Some((8, 0, 0xf_e000, 0, 0xf_f000)), more: "", bar: 0,
        spans: [("Dfe000 O", "Dfe000 Tff000 O"), ("D", "Dfc000 T"), ("D", "Df0000 T")], kinds: [Alike, CarvedTraps, CarvedTraps] },
    Case { source: "forum posts' lspci of an NVIDIA A100", title: "3D controller: NVIDIA Corporation GA100", bars: &[(0, "16M"), (1, "64G"), (3, "32M")], msix: Some((6, 0, 0xb9_0000, 0, 0xba_0000)), more: "", bar: 0,
        spans: [("Db90000 Ob91000 Dba0000 Oba1000 D", "Db90000 Tb91000 Dba0000 Oba1000 D"), ("D", "Db90000 Tb94000 D"), ("D", "Db90000 Tba0000 D")], kinds: [Alike, CarvedTraps, CarvedTraps] },
    Case { source: "the same: its memory", title: "3D controller: NVIDIA Corporation GA100", bars: &[(0, "16M"), (1, "64G"), (3, "32M")], msix: Some((6, 0, 0xb9_0000, 0, 0xba_0000)), more: "", bar: 1,
        spans: all(("D", "D")), kinds: [Alike, Alike, Alike] },
    // Nothing forbids these.
    Case { source: "made up: a table that is 8-byte aligned and lies across a 4 KiB boundary", title: NIC, bars: &[(0, "16K")], msix: Some((2, 0, 0x1ff8, 0, 0x10)), more: "", bar: 0,
        spans: [("D2000 O3000 D", "D1000 T3000 D"), ("D", "T"), ("D", "T")], kinds: [CarvedTraps, CarvedTraps, CarvedTraps] },
    Case { source: "a public lspci: table and PBA from 0x1200 on, behind registers that its driver uses", title: NIC, bars: &[(0, "8K")], msix: Some((8, 0, 0x1200, 0, 0x1280)), more: "", bar: 0,
        spans: [("D", "D1000 T"), ("D", "T"), ("D", "T")], kinds: [CarvedTraps, CarvedTraps, CarvedTraps] },
    Case { source: "a public lspci: a table at 0x46800, its PBA in a BAR of its own", title: NIC, bars: &[(0, "512K"), (2, "4K")], msix: Some((16, 0, 0x4_6800, 2, 0)), more: "", bar: 0,
        spans: [("D", "D46000 T47000 D"), ("D", "D44000 T48000 D"), ("D", "D40000 T50000 D")], kinds: [CarvedTraps, CarvedTraps, CarvedTraps] },
    Case { source: "the same: a table at 0x5200 that fills the rest of its 4 KiB and one more", title: NIC, bars: &[(0, "32K")], msix: Some((480, 0, 0x5200, 0, 0x7000)), more: "", bar: 0,
        spans: [("D6000 O", "D5000 T7000 O"), ("D", "D4000 T"), ("D", "T")], kinds: [CarvedTraps, CarvedTraps, CarvedTraps] },
    Case { source: "made up: the largest table there can be", title: NIC, bars: &[(0, "64K")], msix: Some((2048, 0, 0, 0, 0x8000)), more: "", bar: 0,
        spans: [("O9000 D", "T8000 O9000 D"), ("O8000 D", "T8000 D"), ("D", "T")], kinds: [Alike, Alike, CarvedTraps] },
    Case { source: "made up: a BAR that is smaller than any page", title: NIC, bars: &[(0, "1M"), (2, "512")], msix: Some((2, 2, 0, 2, 0x100)), more: "", bar: 2,
        spans: all(("O", "T")), kinds: [Alike, Alike, Alike] },
    Case { source: "made up: NVMe whose table lies among its doorbells", title: NVME, bars: &[(0, "16K")], msix: Some((64, 0, 0x1800, 0, 0x3000)), more: "", bar: 0,
        spans: [("D3000 O", "D1000 T2000 D3000 O"), ("D", "T"), ("D", "T")], kinds: [CarvedTrapsHot, CarvedTrapsHot, CarvedTrapsHot] },
];

fn text(case: &Case) -> String {
    let mut text = format!("01:00.0 {}\n\tControl: I/O+ Mem+ BusMaster+\n\tStatus: Cap+ 66MHz-\n", case.title);
    for (i, (bar, size)) in case.bars.iter().enumerate() {
        text += &format!(
            "\tRegion {bar}: Memory at {:x} (64-bit, non-prefetchable) [size={size}]\n",
            0x1000_0000_0000u64 * (i as u64 + 1)
        );
    }
    if let Some((vectors, table_bar, table, pba_bar, pba)) = case.msix {
        text += &format!("\tCapabilities: [b0] MSI-X: Enable+ Count={vectors} Masked-\n");
        text +=
            &format!("\t\tVector table: BAR={table_bar} offset={table:08x}\n\t\tPBA: BAR={pba_bar} offset={pba:08x}\n");
    }
    text + case.more + "\n"
}

/// As the cases write spans.
fn written(plan: &BarPlan) -> String {
    let mut runs: Vec<(char, u64)> = Vec::new();
    for span in &plan.spans {
        let letter = match span.access {
            Access::Direct => 'D',
            Access::ReadOnly => 'O',
            Access::Trapped => 'T',
        };
        match runs.last_mut() {
            Some(last) if last.0 == letter => last.1 = span.range.end,
            _ => runs.push((letter, span.range.end)),
        }
    }
    let last = runs.len() - 1;
    let run = |(i, (letter, end)): (usize, &(char, u64))| {
        if i == last { letter.to_string() } else { format!("{letter}{end:x}") }
    };
    runs.iter().enumerate().map(run).collect::<Vec<_>>().join(" ")
}

#[test]
fn layouts_come_to_what_was_worked_out_by_hand() {
    let mut wrong = Vec::new();
    for case in CASES {
        let machine = lspci::parse(&text(case));
        let map = machine.map(0, &PAGES, &[MapPolicy::Whole, MapPolicy::Carved, MapPolicy::Trapped]).unwrap();
        assert_eq!(map.bars.len(), case.bars.len(), "{}", case.source);
        let bar = map.bars.iter().find(|bar| bar.bar.index == case.bar).unwrap();
        for ((sheet, expected), kind) in bar.sheets.iter().zip(case.spans).zip(case.kinds) {
            let [whole, carved, trapped] = [0, 1, 2].map(|i| written(&sheet.plans[i]));
            if (whole.as_str(), carved.as_str()) != expected || sheet.verdict.kind != kind || trapped != "T" {
                let page = sheet.page;
                wrong.push(format!(
                    "{}, {page}: {whole} | {carved}: {:?}, not {expected:?}: {kind:?}",
                    case.source, sheet.verdict
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(CASES.len() >= 30);
}

#[test]
fn what_cannot_be_is_told_and_not_planned() {
    for (msix, says) in [
        (
            "Count=33 Masked-\n\t\tVector table: BAR=0 offset=00000f00\n\t\tPBA: BAR=0 offset=00000000",
            "table would be at 0xf00 to 0x1110 of BAR0",
        ),
        (
            "Count=1 Masked-\n\t\tVector table: BAR=0 offset=00000000\n\t\tPBA: BAR=0 offset=00001000",
            "PBA would be at 0x1000",
        ),
        (
            "Count=1 Masked-\n\t\tVector table: BAR=1 offset=00000000\n\t\tPBA: BAR=0 offset=00000800",
            "table would be in BAR1, which is I/O ports",
        ),
        ("Count=1 Masked-\n\t\tVector table: BAR=0 offset=00000000\n\t\tPBA: BAR=0 offset=00000008", "would overlap"),
    ] {
        let bars = "\tRegion 0: Memory at f0000000 (32-bit, non-prefetchable) [size=4K]\n\tRegion 1: I/O ports at e000 [size=32]\n";
        let text = format!("01:00.0 {NIC}\n{bars}\tCapabilities: [70] MSI-X: Enable- {msix}\n\n");
        let machine = lspci::parse(&text);
        let map = machine.map(0, &PAGES, &[MapPolicy::Whole]).unwrap();
        assert!(map.problems.iter().any(|problem| problem.contains(says)), "{says}: {:?}", map.problems);
        let outside = says.contains("would be at");
        assert_eq!(map.bars[0].sheets[0].verdict.kind == Unknown, outside, "{says}");
        assert_eq!(map.bars[1].sheets[0].verdict.kind, Ports);
    }
    // A BAR that the text doesn't tell of may be there; one that /sys doesn't tell of is not.
    let text = "01:00.0 X: y\n\tRegion 0: Memory at f0000000 (32-bit, non-prefetchable) [size=4K]\n\tCapabilities: [70] MSI-X: Enable- Count=1 Masked-\n\t\tVector table: BAR=3 offset=00000000\n\t\tPBA: BAR=0 offset=00000800\n\n";
    let mut machine = lspci::parse(text);
    let map = machine.map(0, &PAGES, &[]).unwrap();
    assert!(map.problems.is_empty() && !map.bars[1].told && map.bars[1].bar.index == 3, "{map:?}");
    assert!(map.bars[1].sheets[0].verdict.text.contains("not in the text"), "{map:?}");
    let upper = lspci::parse(&text.replace("32-bit", "64-bit").replace("BAR=3", "BAR=1"));
    let map = upper.map(0, &PAGES, &[]).unwrap();
    assert!(
        map.problems[0].contains("table would be in BAR1, the upper half of BAR0") && map.bars.len() == 1,
        "{map:?}"
    );
    machine.partial = false;
    let map = machine.map(0, &PAGES, &[]).unwrap();
    assert!(map.problems[0].contains("table would be in BAR3, which it doesn't have"), "{map:?}");
}

/// Neighbours: the vmxnet3 of a blog's dump, whose BARs lie in one 64 KiB page; and BARs of virtual functions, 16 KiB each.
#[test]
fn pages_that_are_shared() {
    let text = "\
0b:00.0 Ethernet controller: VMware VMXNET3 Ethernet Controller (rev 01)
	Status: Cap-
	Region 0: Memory at fcffc000 (32-bit, non-prefetchable) [size=4K]
	Region 1: Memory at fcffd000 (32-bit, non-prefetchable) [size=4K]
	Region 2: Memory at fcffe000 (32-bit, non-prefetchable) [size=8K]
	Region 3: I/O ports at fcff [size=16]
	Expansion ROM at fcf00000 [virtual] [disabled] [size=64K]

0c:00.0 Ethernet controller: Intel Corporation 82599ES (rev 01)
	Region 0: Memory at d0000000 (64-bit, prefetchable) [size=512K]
	Capabilities: [160 v1] Single Root I/O Virtualization (SR-IOV)
		Initial VFs: 64, Total VFs: 64, Number of VFs: 2, Function Dependency Link: 00
		VF offset: 128, stride: 2, Device ID: 10ed
		Supported Page Size: 00000553, System Page Size: 00000001
		Region 0: Memory at 00000000d0080000 (64-bit, prefetchable)

0c:10.0 Ethernet controller: Intel Corporation 82599 Ethernet Controller Virtual Function (rev 01)
	Status: Cap-
	Region 0: [virtual] Memory at d0080000 (64-bit, prefetchable) [size=16K]

0c:10.2 Ethernet controller: Intel Corporation 82599 Ethernet Controller Virtual Function (rev 01)
	Status: Cap-
	Region 0: [virtual] Memory at d0084000 (64-bit, prefetchable) [size=16K]
	Kernel driver in use: ixgbevf

";
    let mut machine = lspci::parse(text);
    let pages = [PageSize::K4, PageSize::K16, PageSize::K64];
    let maps = machine.maps(&pages, &[MapPolicy::Whole]);
    let sheet = |function: usize, bar: usize, page: usize| maps[function].bars[bar].sheets[page].clone();
    let verdict = |function: usize, bar: usize, page: usize| sheet(function, bar, page).verdict;
    assert_eq!(verdict(0, 0, 0).kind, Alike);
    // 0xfcffc000 begins a 16 KiB page, which all three are in; it begins no 64 KiB page.
    let shared = verdict(0, 0, 1);
    assert!(shared.kind == Unmappable && shared.text.contains("0000:0b:00.0 BAR1 and 0000:0b:00.0 BAR2"), "{shared:?}");
    assert!(!shared.text.contains("ROM") && shared.given_own_pages.unwrap().kind == Alike);
    assert!(verdict(0, 1, 1).text.contains("doesn't begin a 16 KiB page"));
    let unaligned = verdict(0, 0, 2);
    assert!(unaligned.text.contains("resource_alignment=16@0000:0b:00.0"), "{unaligned:?}");
    let mapped = |function, bar, page| sheet(function, bar, page).plans[0].mapped_bytes();
    assert_eq!([mapped(0, 0, 0), mapped(0, 0, 1), mapped(0, 0, 2)], [0x1000, 0, 0]);
    // Virtual functions: 16 KiB each, four to a 64 KiB page. Their physical function's range holds them and is no neighbour.
    assert_eq!(verdict(2, 0, 1).kind, Alike);
    let shared = verdict(2, 0, 2);
    assert!(shared.text.contains("0000:0c:10.2 BAR0") && !shared.text.contains("0000:0c:00.0"), "{shared:?}");
    let sriov = machine.functions[1].sriov.as_ref().unwrap();
    assert_eq!((sriov.total, sriov.enabled, sriov.bars[0].place.size), (64, 2, Some(0x4000)));
    // 0x553: 4 KiB, 8 KiB, 64 KiB and more; not 16 KiB.
    assert_eq!([0, 1, 2].map(|i| sriov.page_on(pages[i])), [Some(0x1000), Some(0x1_0000), Some(0x1_0000)]);

    // Where the host has 4 KiB pages, addresses say nothing of hosts that have others.
    machine.page = Some(PageSize::K4);
    let map = machine.map(0, &pages, &[MapPolicy::Whole]).unwrap();
    let elsewhere = &map.bars[0].sheets[2];
    assert_eq!((elsewhere.verdict.kind, elsewhere.plans[0].mapped_bytes()), (Alike, 0x1000));
    assert!(elsewhere.verdict.caution.as_ref().unwrap().contains("doesn't begin a 64 KiB page"), "{elsewhere:?}");
}

/// Who is not in the text is nobody's neighbour, and may be in the machine.
#[test]
fn neighbours_that_are_not_in_the_text() {
    let one = "01:00.0 Ethernet controller: x\n\tStatus: Cap-\n\tRegion 0: Memory at f0000000 (32-bit, non-prefetchable) [size=4K]\n\n";
    let bridge = "00:01.0 PCI bridge: x\n\tStatus: Cap-\n\n";
    let placement =
        |text: &str, page| lspci::parse(text).map(0, &[page], &[]).unwrap().bars[0].sheets[0].placement.clone();
    assert_eq!(placement(one, PageSize::K4), Placement::Own);
    assert_eq!(placement(one, PageSize::K64), Placement::Unseen);
    assert_eq!(placement(&one.replace("4K", "64K"), PageSize::K64), Placement::Own);
    assert_eq!(placement(&format!("{one}{bridge}"), PageSize::K64), Placement::Own);
    let verdict = lspci::parse(one).map(0, &[PageSize::K64], &[]).unwrap().bars[0].sheets[0].verdict.clone();
    assert!(verdict.caution.unwrap().contains("isn't in the text"));
    // One whose size isn't told is where it begins.
    let other =
        "02:00.0 Ethernet controller: y\n\tStatus: Cap-\n\tRegion 2: Memory at f0008000 (32-bit, non-prefetchable)\n\n";
    assert_eq!(
        placement(&format!("{one}{bridge}{other}"), PageSize::K64),
        Placement::Shared(vec!["0000:02:00.0 BAR2".to_owned()])
    );
    // Two machines: nobody knows whose neighbour is whose.
    let two = format!("{one}{bridge}{}", one.replace("x", "y").replace("f0000000", "f0001000"));
    assert_eq!(placement(&two, PageSize::K64), Placement::Unseen);
}

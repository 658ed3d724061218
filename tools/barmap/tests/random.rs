//! Random layouts and random text: no panic, and no claim that isn't so.

use proptest::prelude::*;
use std::fs;
use std::ops::Range;
use std::path::Path;
use wholebar_barmap::{Kind, Machine, MsixFact, PAGES, VerdictKind, lspci, runs, trapped_registers};
use wholebar_core::bar::{Access, BarPlan, MapPolicy};

const POLICIES: [MapPolicy; 3] = [MapPolicy::Whole, MapPolicy::Carved, MapPolicy::Trapped];

/// A function as someone could build it: BARs, a table and a PBA anywhere.
#[derive(Debug, Clone)]
struct Layout {
    sizes: Vec<Option<u32>>,
    vectors: u16,
    table: (u8, u32),
    pba: (u8, u32),
    nvme: bool,
}

fn layout() -> impl Strategy<Value = Layout> {
    let place = || (0..6u8, prop_oneof![0..0x40u32, 0..0x1_0000u32, 0..0x20_0000u32].prop_map(|at| at & !7));
    let size = prop_oneof![2 => Just(None), 5 => (9..24u32).prop_map(Some)];
    (prop::collection::vec(size, 6), 1..2049u16, place(), place(), any::<bool>())
        .prop_map(|(sizes, vectors, table, pba, nvme)| Layout { sizes, vectors, table, pba, nvme })
}

fn text(layout: &Layout) -> String {
    let class = if layout.nvme { "0108: 144d:a808 (prog-if 02 [NVM Express])" } else { "0200: 1234:5678" };
    let mut text = format!("0000:01:00.0 {class}\n\tStatus: Cap+\n");
    for (bar, shift) in layout.sizes.iter().enumerate() {
        let Some(shift) = shift else { continue };
        let (size, address) = (1u64 << shift, 0x10_0000_0000u64 * (bar as u64 + 1));
        text += &format!("\tRegion {bar}: Memory at {address:x} (32-bit, non-prefetchable) [size={size}]\n");
    }
    let Layout { vectors, table, pba, .. } = layout;
    text += &format!("\tCapabilities: [b0] MSI-X: Enable- Count={vectors} Masked-\n");
    text += &format!(
        "\t\tVector table: BAR={} offset={:08x}\n\t\tPBA: BAR={} offset={:08x}\n\n",
        table.0, table.1, pba.0, pba.1
    );
    text
}

fn access(plan: &BarPlan, at: u64) -> Access {
    plan.access(at).unwrap()
}

fn touches(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// What all maps must keep to, whatever was read.
fn check(machine: &Machine) {
    for map in machine.maps(&PAGES, &POLICIES) {
        for bar in &map.bars {
            for sheet in &bar.sheets {
                assert!(!sheet.verdict.text.is_empty());
                assert!(sheet.plans.len() == 3 || (sheet.plans.is_empty() && bar.layout.is_none()));
                for plan in &sheet.plans {
                    let runs = runs(plan, &bar.hot);
                    assert_eq!((runs[0].range.start, runs[runs.len() - 1].range.end), (0, plan.layout.size));
                    assert!(runs.windows(2).all(|pair| pair[0].range.end == pair[1].range.start));
                    assert!(runs.iter().all(|run| !run.range.is_empty() && run.kind != Kind::More));
                    let mapped = plan.mapped_bytes() > 0;
                    assert!(!mapped || (bar.bar.is_memory() && plan.policy != MapPolicy::Trapped));
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() })]

    /// What was written is what is read, and what verdicts say is so, byte range by byte range.
    #[test]
    fn layouts(layout in layout()) {
        let machine = lspci::parse(&text(&layout));
        check(&machine);
        let function = &machine.functions[0];
        let msix = function.msix.present().unwrap();
        prop_assert_eq!((msix.vectors, (msix.table_bar, msix.table_offset), (msix.pba_bar, msix.pba_offset)), (layout.vectors, layout.table, layout.pba));
        let sizes: Vec<_> = function.bars.iter().map(|bar| (usize::from(bar.index), bar.place.size)).collect();
        let written: Vec<_> = layout.sizes.iter().enumerate().filter_map(|(i, shift)| Some((i, Some(1u64 << shift.as_ref()?)))).collect();
        prop_assert_eq!(sizes, written);

        let map = machine.map(0, &PAGES, &POLICIES).unwrap();
        for bar in &map.bars {
            let Some(planned) = &bar.layout else { prop_assert!(!bar.told || !map.problems.is_empty()); continue };
            for sheet in &bar.sheets {
                let (whole, carved) = (&sheet.plans[0], &sheet.plans[1]);
                // Page by page, from the definition of each.
                for at in (0..planned.size).step_by(sheet.page.bytes() as usize) {
                    let page = at..(at + sheet.page.bytes()).min(planned.size);
                    let table = planned.table.as_ref().is_some_and(|table| touches(table, &page));
                    let pba = planned.pba.as_ref().is_some_and(|pba| touches(pba, &page));
                    prop_assert_eq!(access(carved, at) == Access::Trapped, table);
                    prop_assert!(access(whole, at) != Access::Trapped);
                    prop_assert!(access(whole, at) == Access::Direct || table || pba);
                }
                let hot_lost = bar.hot.iter().any(|hot| hot.range.clone().step_by(4).any(|at| access(carved, at) == Access::Trapped));
                let lost = trapped_registers(carved) > 0;
                let right = match sheet.verdict.kind {
                    VerdictKind::Alike => !hot_lost && !lost,
                    VerdictKind::CarvedTrapsHot => hot_lost,
                    VerdictKind::CarvedTraps | VerdictKind::CarvedTrapsOthers => !hot_lost && lost,
                    _ => false,
                };
                prop_assert!(right, "{:?} {:?} {:?}", sheet.page, sheet.verdict, planned);
            }
        }
    }

    /// Any characters, and any that look like `lspci`'s.
    #[test]
    fn text_of_any_kind(text in "(?s).{0,400}", lines in prop::collection::vec("([0-9a-f:. ]{0,12}|\tRegion [0-9]: |\t\tVector table: BAR=|Capabilities: \\[[0-9a-f]{2}\\] |MSI-X: Enable[+-] Count=[0-9]{1,5} |\t\tPBA: BAR=[0-9] offset=[0-9a-f]{8}|Memory at [0-9a-f]{1,17} \\(64-bit, |\\[size=[0-9]{1,22}[KMGT]?\\]|\n){0,12}", 0..30)) {
        check(&lspci::parse(&text));
        let _ = lspci::read(text.as_bytes());
        check(&lspci::parse(&lines.join("\n")));
        check(&lspci::parse(&format!("01:00.0 Class: x\n{}", lines.join("\n"))));
    }
}

fn dump(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dumps").join(name)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// A real dump, cut off anywhere: what is still told is what the whole told; what isn't there any more is unknown, not absent.
    #[test]
    fn half_a_dump(name in prop::sample::select(vec!["aws-m4.txt", "z510.txt", "l490.txt", "jetway.txt", "inspiron620.txt", "h310.txt"]), part in 0.0..1.0f64) {
        let text = dump(name);
        let mut end = (text.len() as f64 * part) as usize;
        while !text.is_char_boundary(end) { end -= 1; }
        let (whole, half) = (lspci::parse(&text), lspci::parse(&text[..end]));
        check(&half);
        prop_assert!(half.functions.len() <= whole.functions.len());
        for (half, whole) in half.functions.iter().zip(&whole.functions) {
            prop_assert_eq!(&half.name, &whole.name);
            match (&half.msix, &whole.msix) {
                (MsixFact::Unknown(_), _) => {}
                (half, whole) => prop_assert_eq!(half, whole),
            }
            for bar in &half.bars {
                let told = whole.bars.iter().find(|other| other.index == bar.index);
                prop_assert_eq!(Some(bar), told);
            }
            prop_assert!(half.driver.is_none() || half.driver == whole.driver);
        }
    }

    /// A real dump with bytes changed, lines gone and lines doubled.
    #[test]
    fn a_damaged_dump(name in prop::sample::select(vec!["aws-m4.txt", "z510.txt", "jetway.txt"]), seeds in prop::collection::vec((any::<prop::sample::Index>(), 0..4u8, any::<u8>()), 1..20)) {
        let text = dump(name);
        let mut lines: Vec<Vec<u8>> = text.lines().map(|line| line.as_bytes().to_vec()).collect();
        for (index, how, byte) in seeds {
            let at = index.index(lines.len());
            match how {
                0 => drop(lines.remove(at)),
                1 => { let line = lines[at].clone(); lines.insert(index.index(lines.len()), line) }
                2 => { let line = &mut lines[at]; if let Some(b) = line.get_mut(usize::from(byte) % 40) { *b = byte } }
                _ => { let end = usize::from(byte) % 60; lines[at].truncate(end) }
            }
            if lines.is_empty() { break }
        }
        let text = String::from_utf8_lossy(&lines.join(&b'\n')).into_owned();
        check(&lspci::parse(&text));
    }
}

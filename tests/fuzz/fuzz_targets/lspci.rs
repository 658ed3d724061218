//! Text as `lspci` writes it, and any bytes instead: it is read to its end, whatever is planned covers the BAR, nothing is mapped of I/O ports, and
//! no more capabilities are told of than the text has lines for.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wholebar::bar::MapPolicy;
use wholebar_barmap::{PAGES, Strip, json::Function, lspci, runs};

fuzz_target!(|bytes: &[u8]| {
    let _ = lspci::read(bytes);
    let text = String::from_utf8_lossy(bytes);
    let machine = lspci::parse(&text);
    let told = machine.functions.iter().filter(|function| function.msix.present().is_some()).count();
    // Its name, the table's place and the PBA's, or a hex dump: each in lines of its own. What stands between the letters of a name is taken away.
    let lines = text.matches(['\n', '\r']).count() + 1;
    assert!(3 * told <= lines, "{told} capabilities of {lines} lines");
    let maps = machine.maps(&PAGES, &[MapPolicy::Whole, MapPolicy::Carved, MapPolicy::Trapped]);
    for map in &maps {
        if let Some(msix) = map.function.msix.present() {
            assert!((1..=2048).contains(&msix.vectors) && msix.table_bar < 6 && msix.pba_bar < 6);
        }
        for bar in &map.bars {
            for plan in bar.sheets.iter().flat_map(|sheet| &sheet.plans) {
                let runs = runs(plan, &bar.hot);
                assert!(runs[0].range.start == 0 && runs[runs.len() - 1].range.end == plan.layout.size);
                assert!(runs.windows(2).all(|pair| pair[0].range.end == pair[1].range.start));
                assert!(runs.len() <= 40, "{} runs", runs.len());
                assert!(plan.mapped_bytes() == 0 || (bar.bar.is_memory() && plan.policy != MapPolicy::Trapped));
                let columns: usize = Strip::of(plan.layout.size).cells(plan, &bar.hot).iter().map(|(_, n)| n).sum();
                assert!((1..=Strip::COLUMNS).contains(&columns), "{columns} columns");
            }
        }
    }
    maps.iter().for_each(|map| drop(Function::of(map)));
});

//! The plan against known devices worked out by hand, and against a slow plan that looks at every page, on any input.

use super::*;
use crate::pci::RegionCap;
use proptest::prelude::*;

fn isolated() -> Isolation {
    Isolation::by_construction()
}

fn layout(bar: u8, size: u64, table: Option<Range<u64>>, pba: Option<Range<u64>>) -> BarLayout {
    BarLayout { bar, size, table, pba, registers: Vec::new() }
}

fn region(size: u64, mappable: bool, caps: &[RegionCap]) -> RegionInfo {
    RegionInfo { size, readable: true, writable: true, mappable, caps: caps.to_vec() }
}

/// One line a plan: `0x0 direct registers, 0x2000 read-only table`; each span ends where the next begins.
fn show(plan: &BarPlan) -> String {
    let span = |s: &Span| {
        let access = match s.access {
            Access::Direct => "direct",
            Access::ReadOnly => "read-only",
            Access::Trapped => "trapped",
        };
        let why = match s.why {
            Why::Registers => "",
            Why::Shared => " shared",
            Why::TableOrPba => "",
            Why::Table => " table",
            Why::NotOffered => " not offered",
            Why::Asked => " asked",
        };
        format!("{:#x} {access}{why}", s.range.start)
    };
    plan.spans.iter().map(span).collect::<Vec<_>>().join(", ")
}

/// A BAR, and its whole and carved plans at 4, 16 and 64 KiB.
struct Known {
    name: &'static str,
    layout: BarLayout,
    region: RegionInfo,
    whole: [&'static str; 3],
    carved: [&'static str; 3],
}

fn known() -> Vec<Known> {
    let kernel = [RegionCap::MsixMappable];
    let spdk = [RegionCap::SparseMmap(vec![0x1000..0x2000])];
    let old_kernel = [RegionCap::SparseMmap(vec![0..0x2000, 0x3000..0x4000])];
    let nvme = layout(0, 0x4000, Some(0x2000..0x2410), Some(0x3000..0x3010));
    vec![
        Known {
            name: "nvme as QEMU and many drives have it: 65 vectors",
            layout: nvme.clone(),
            region: region(0x4000, true, &kernel),
            whole: ["0x0 direct, 0x2000 read-only", "0x0 direct shared", "0x0 direct shared"],
            carved: ["0x0 direct, 0x2000 trapped table, 0x3000 read-only", "0x0 trapped table", "0x0 trapped table"],
        },
        Known {
            name: "the same on a kernel before 4.16",
            layout: nvme.clone(),
            region: region(0x4000, true, &old_kernel),
            whole: [
                "0x0 direct, 0x2000 trapped not offered, 0x3000 read-only",
                "0x0 trapped not offered",
                "0x0 trapped not offered",
            ],
            carved: [
                "0x0 direct, 0x2000 trapped not offered, 0x3000 read-only",
                "0x0 trapped not offered",
                "0x0 trapped not offered",
            ],
        },
        Known {
            name: "the same on a kernel before 4.6",
            layout: nvme.clone(),
            region: region(0x4000, true, &[]),
            whole: [
                "0x0 direct, 0x2000 trapped not offered, 0x3000 read-only",
                "0x0 trapped not offered",
                "0x0 trapped not offered",
            ],
            carved: [
                "0x0 direct, 0x2000 trapped not offered, 0x3000 read-only",
                "0x0 trapped not offered",
                "0x0 trapped not offered",
            ],
        },
        Known {
            name: "the same, sharing a host page with another BAR",
            layout: nvme,
            region: region(0x4000, false, &[]),
            whole: ["0x0 trapped not offered"; 3],
            carved: ["0x0 trapped not offered"; 3],
        },
        Known {
            name: "82599: 64 vectors in a BAR of their own",
            layout: layout(3, 0x4000, Some(0..0x400), Some(0x2000..0x2008)),
            region: region(0x4000, true, &kernel),
            whole: [
                "0x0 read-only, 0x1000 direct, 0x2000 read-only, 0x3000 direct",
                "0x0 direct shared",
                "0x0 direct shared",
            ],
            carved: [
                "0x0 trapped table, 0x1000 direct, 0x2000 read-only, 0x3000 direct",
                "0x0 trapped table",
                "0x0 trapped table",
            ],
        },
        Known {
            name: "82599: its registers",
            layout: layout(0, 0x80000, None, None),
            region: region(0x80000, true, &[]),
            whole: ["0x0 direct"; 3],
            carved: ["0x0 direct"; 3],
        },
        Known {
            name: "virtio-net: table and PBA in a BAR smaller than a page",
            layout: layout(1, 0x1000, Some(0..0x40), Some(0x800..0x808)),
            region: region(0x1000, true, &kernel),
            whole: ["0x0 read-only"; 3],
            carved: ["0x0 trapped table"; 3],
        },
        Known {
            name: "SPDK's nvme: a doorbell page, and nothing else",
            layout: layout(0, 0x2000, None, None),
            region: region(0x2000, true, &spdk),
            whole: ["0x0 trapped not offered, 0x1000 direct", "0x0 trapped not offered", "0x0 trapped not offered"],
            carved: ["0x0 trapped not offered, 0x1000 direct", "0x0 trapped not offered", "0x0 trapped not offered"],
        },
        Known {
            name: "SPDK's nvme: 512 vectors that cannot be mapped",
            layout: layout(4, 0x2000, Some(0..0x2000), None),
            region: region(0x2000, false, &[]),
            whole: ["0x0 trapped not offered"; 3],
            carved: ["0x0 trapped not offered"; 3],
        },
        Known {
            name: "an FPGA card: registers behind the PBA, in the same page",
            layout: BarLayout {
                registers: vec![0x2010..0x2020],
                ..layout(0, 0x10000, Some(0..0x200), Some(0x2000..0x2008))
            },
            region: region(0x10000, true, &kernel),
            whole: [
                "0x0 read-only, 0x1000 direct, 0x2000 direct shared, 0x3000 direct",
                "0x0 direct shared, 0x4000 direct",
                "0x0 direct shared",
            ],
            carved: [
                "0x0 trapped table, 0x1000 direct, 0x2000 direct shared, 0x3000 direct",
                "0x0 trapped table, 0x4000 direct",
                "0x0 trapped table",
            ],
        },
        Known {
            name: "a USB controller: table and PBA behind registers, in their 4 KiB",
            layout: layout(0, 0x2000, Some(0x1200..0x1280), Some(0x1280..0x1288)),
            region: region(0x2000, true, &kernel),
            whole: ["0x0 direct, 0x1000 direct shared", "0x0 direct shared", "0x0 direct shared"],
            carved: ["0x0 direct, 0x1000 trapped table", "0x0 trapped table", "0x0 trapped table"],
        },
        Known {
            name: "256 B of registers with table and PBA among them",
            layout: layout(0, 0x100, Some(0x80..0xa0), Some(0xa0..0xa8)),
            region: region(0x100, true, &kernel),
            whole: ["0x0 direct shared"; 3],
            carved: ["0x0 trapped table"; 3],
        },
        Known {
            name: "a table that begins 4 KiB, and a PBA that doesn't",
            layout: layout(0, 0x8000, Some(0x2000..0x2200), Some(0x3800..0x3808)),
            region: region(0x8000, true, &kernel),
            whole: [
                "0x0 direct, 0x2000 read-only, 0x3000 direct shared, 0x4000 direct",
                "0x0 direct shared, 0x4000 direct",
                "0x0 direct shared",
            ],
            carved: [
                "0x0 direct, 0x2000 trapped table, 0x3000 direct shared, 0x4000 direct",
                "0x0 trapped table, 0x4000 direct",
                "0x0 trapped table",
            ],
        },
        Known {
            name: "2048 vectors from an odd offset on, straddling pages, PBA at the end",
            layout: layout(2, 0x20000, Some(0x3ff8..0xbff8), Some(0x1ff00..0x20000)),
            region: region(0x20000, true, &kernel),
            whole: [
                "0x0 direct, 0x3000 direct shared, 0x4000 read-only, 0xc000 direct, 0x1f000 direct shared",
                "0x0 direct shared, 0x4000 read-only, 0xc000 direct, 0x1c000 direct shared",
                "0x0 direct shared",
            ],
            carved: [
                "0x0 direct, 0x3000 trapped table, 0xc000 direct, 0x1f000 direct shared",
                "0x0 trapped table, 0xc000 direct, 0x1c000 direct shared",
                "0x0 trapped table, 0x10000 direct shared",
            ],
        },
    ]
}

const PAGES: [PageSize; 3] = [PageSize::K4, PageSize::K16, PageSize::K64];

#[test]
fn known_devices() {
    for known in known() {
        for (i, page) in PAGES.into_iter().enumerate() {
            for (policy, expected) in [(MapPolicy::Whole, known.whole[i]), (MapPolicy::Carved, known.carved[i])] {
                let plan = plan(&known.layout, &known.region, page, &isolated(), policy);
                assert_eq!(show(&plan), expected, "{}: {policy:?} at {page}", known.name);
                assert_eq!(plan.policy, policy);
            }
        }
    }
}

#[test]
fn auto_says_why() {
    let known = known();
    let auto = |known: &Known, verdict| {
        let isolation = Isolation { verdict, evidence: vec!["it was read".to_owned()] };
        let plan = plan(&known.layout, &known.region, PageSize::K4, &isolation, MapPolicy::Auto);
        (plan.policy, plan.why)
    };
    let expect = |i: usize, verdict, policy, why: &str| {
        assert_eq!(auto(&known[i], verdict), (policy, why.to_owned()), "{}", known[i].name);
    };
    expect(0, Verdict::Isolated, MapPolicy::Whole, "interrupts are isolated: it was read");
    expect(0, Verdict::Unknown, MapPolicy::Carved, "nothing says that interrupts are isolated: it was read");
    expect(0, Verdict::NotIsolated, MapPolicy::Carved, "interrupts are not isolated: it was read");
    let silent = "the backend does not say that the MSI-X table can be mapped";
    expect(1, Verdict::Isolated, MapPolicy::Carved, silent);
    expect(2, Verdict::Isolated, MapPolicy::Carved, silent);
    expect(3, Verdict::Isolated, MapPolicy::Trapped, "the backend lets nothing of this BAR be mapped");
    expect(5, Verdict::NotIsolated, MapPolicy::Whole, "no MSI-X table is in this BAR");
}

#[test]
fn only_pages_below_the_devices_own_are_hypothetical() {
    let plan =
        |page| plan(&layout(0, 0x4000, None, None), &region(0x4000, true, &[]), page, &isolated(), MapPolicy::Auto);
    assert!(plan(PageSize::K4).is_hypothetical(PageSize::K16));
    assert!(!plan(PageSize::K16).is_hypothetical(PageSize::K16));
    assert!(!plan(PageSize::K64).is_hypothetical(PageSize::K16));
}

#[test]
fn a_huge_bar_takes_no_longer() {
    for size in [1 << 40, 1 << 63, u64::MAX - 7, u64::MAX] {
        let middle = (size / 2).next_multiple_of(8);
        let layout = layout(0, size, Some(middle..middle + 0x8000), Some(size - 0x107..size));
        let region = region(size, true, &[RegionCap::MsixMappable]);
        let plan = plan(&layout, &region, PageSize::K4, &isolated(), MapPolicy::Whole);
        check(&plan, &region);
        assert!(plan.spans.len() <= 5, "{plan:x?}");
    }
}

/// Areas of any kind, from a peer that may lie: unsorted, overlapping, unaligned, empty, reversed, past the end.
fn areas(size: u64) -> impl Strategy<Value = Vec<Range<u64>>> {
    let edge = prop_oneof![
        (0..=size.saturating_mul(2) / 4096).prop_map(|page| page * 4096),
        0..=size.saturating_add(size / 2),
        any::<u64>(),
    ];
    let area = (edge.clone(), edge).prop_map(|(a, b)| a.min(b)..a.max(b));
    let odd = (any::<u64>(), any::<u64>()).prop_map(|(a, b)| a..b);
    prop::collection::vec(prop_oneof![9 => area, 1 => odd], 0..12)
}

fn pages() -> impl Strategy<Value = PageSize> {
    (12u32..22).prop_map(|shift| PageSize::new(1 << shift).unwrap())
}

/// A BAR of up to `largest` bytes with any legal MSI-X layout, and some illegal ones, and what a backend says of it.
fn bars(largest: u64) -> impl Strategy<Value = (BarLayout, RegionInfo)> {
    let powers = (4u32..64).prop_map(move |shift| 1 << shift.min(largest.ilog2()));
    let size = prop_oneof![3 => powers, 1 => 0..=largest];
    size.prop_flat_map(|size| {
        let offset = prop_oneof![9 => 0..=size / 8, 1 => 0..=u64::MAX / 16].prop_map(|n| n * 8);
        let table = prop::option::of((offset.clone(), 1u64..=2048));
        let pba = prop::option::of((offset.clone(), 1u64..=2048));
        let registers = prop::collection::vec((offset, 0u64..64), 0..4);
        let mappable = prop::bool::weighted(0.9);
        let told = prop_oneof![8 => Just(size), 1 => 0..=size, 1 => any::<u64>()];
        (table, pba, registers, mappable, any::<bool>(), prop::option::of(areas(size)), told).prop_map(
            move |(table, pba, registers, mappable, msix, sparse, told)| {
                let layout = BarLayout {
                    bar: 0,
                    size,
                    table: table.map(|(at, n)| at..at.saturating_add(16 * n)),
                    pba: pba.map(|(at, n)| at..at.saturating_add(n.div_ceil(64) * 8)),
                    registers: registers.into_iter().map(|(at, n)| at..at.saturating_add(n)).collect(),
                };
                let mut caps: Vec<_> = sparse.map(RegionCap::SparseMmap).into_iter().collect();
                caps.extend(msix.then_some(RegionCap::MsixMappable));
                (layout, region(told, mappable, &caps))
            },
        )
    })
}

fn policies() -> impl Strategy<Value = MapPolicy> {
    prop_oneof![Just(MapPolicy::Auto), Just(MapPolicy::Whole), Just(MapPolicy::Carved), Just(MapPolicy::Trapped)]
}

/// What holds of any plan.
fn check(plan: &BarPlan, region: &RegionInfo) {
    let size = plan.layout.size;
    let mut at = 0;
    for span in &plan.spans {
        assert_eq!(span.range.start, at, "a gap or an overlap");
        assert!(span.range.end > at, "an empty span");
        at = span.range.end;
        assert!(plan.page.floor(at) == at || at == size, "{at:#x} is no page boundary");
        if span.access == Access::Trapped {
            continue;
        }
        let inside = |area: &Range<u64>| area.start <= span.range.start && span.range.end <= area.end;
        assert!(region.mappable && inside(&(0..region.size)), "more is mapped than there is");
        assert!(region.sparse().is_none_or(|areas| areas.iter().any(inside)), "more is mapped than is offered");
        let table = clip(&plan.layout.table, size);
        if touches(&table, &span.range) {
            assert!(region.sparse().is_some() || region.msix_mappable(), "the table is mapped and not offered");
            assert_ne!(plan.policy, MapPolicy::Carved, "a carved plan maps the table");
        }
        assert_ne!(plan.policy, MapPolicy::Trapped);
        if span.access == Access::ReadOnly {
            assert!(
                !plan
                    .layout
                    .registers
                    .iter()
                    .any(|r| !r.is_empty() && r.start < span.range.end && span.range.start < r.end)
            );
        }
    }
    assert_eq!(at, size, "not all of it is covered");
    assert_ne!(plan.policy, MapPolicy::Auto);
}

/// The mapped parts, joined.
fn mapped(plan: &BarPlan) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for span in plan.spans.iter().filter(|s| s.access != Access::Trapped) {
        match joined.last_mut() {
            Some(last) if last.end == span.range.start => last.end = span.range.end,
            _ => joined.push(span.range.clone()),
        }
    }
    joined
}

fn maps_all_of(more: &BarPlan, less: &BarPlan) -> bool {
    let more = mapped(more);
    mapped(less).iter().all(|r| more.iter().any(|m| m.start <= r.start && r.end <= m.end))
}

/// How one page is reached, decided from the page alone.
fn slow(layout: &BarLayout, region: &RegionInfo, policy: MapPolicy, page: Range<u64>) -> (Access, Why) {
    let overlap = |r: &Range<u64>| r.start < r.end && r.start < page.end && page.start < r.end;
    let whole = vec![0..region.size];
    let areas = region.sparse().unwrap_or(&whole);
    let inside = |a: &Range<u64>| a.start <= page.start && page.end <= a.end.min(region.size);
    if !region.mappable || !areas.iter().any(inside) {
        return (Access::Trapped, Why::NotOffered);
    }
    if policy == MapPolicy::Trapped {
        return (Access::Trapped, Why::Asked);
    }
    let [table, pba] = [&layout.table, &layout.pba].map(|r| r.as_ref().filter(|r| overlap(r)));
    if table.is_some() && region.sparse().is_none() && !region.msix_mappable() {
        return (Access::Trapped, Why::NotOffered);
    }
    if table.is_some() && policy == MapPolicy::Carved {
        return (Access::Trapped, Why::Table);
    }
    if table.is_none() && pba.is_none() {
        return (Access::Direct, Why::Registers);
    }
    // Whatever begins each 4 KiB of it is table or PBA.
    let quiet =
        (page.start..page.end).step_by(4096).all(|at| [table, pba].into_iter().flatten().any(|r| r.contains(&at)));
    match quiet && !layout.registers.iter().any(overlap) {
        true => (Access::ReadOnly, Why::TableOrPba),
        false => (Access::Direct, Why::Shared),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bar_of_any_size((layout, region) in bars(u64::MAX), page in pages(), policy in policies()) {
        let plan = plan(&layout, &region, page, &isolated(), policy);
        check(&plan, &region);
        let pieces = 16 + 4 * layout.registers.len() + 2 * region.sparse().map_or(0, <[_]>::len);
        prop_assert!(plan.spans.len() <= pieces);
    }

    #[test]
    fn each_page_is_what_it_would_be_alone((layout, region) in bars(1 << 20), page in pages(), policy in policies()) {
        let plan = plan(&layout, &region, page, &isolated(), policy);
        check(&plan, &region);
        let mut start = 0;
        while start < layout.size {
            let end = (start + page.bytes()).min(layout.size);
            let span = plan.spans.iter().find(|s| s.range.contains(&start)).unwrap();
            prop_assert_eq!((span.access, span.why), slow(&layout, &region, plan.policy, start..end), "page {:#x}", start);
            prop_assert_eq!(plan.access(start), Some(span.access));
            start = end;
        }
        prop_assert_eq!(plan.access(layout.size), None);
        for pair in plan.spans.windows(2) {
            let same = (pair[0].access, pair[0].why) == (pair[1].access, pair[1].why);
            prop_assert!(!same || (region.sparse().is_some() && pair[0].access != Access::Trapped), "spans not joined");
        }
    }

    #[test]
    fn whole_maps_all_that_carved_maps((layout, region) in bars(u64::MAX), page in pages()) {
        let of = |policy| plan(&layout, &region, page, &isolated(), policy);
        let (whole, carved) = (of(MapPolicy::Whole), of(MapPolicy::Carved));
        prop_assert!(maps_all_of(&whole, &carved));
        prop_assert!(maps_all_of(&whole, &of(MapPolicy::Auto)));
        prop_assert!(maps_all_of(&of(MapPolicy::Auto), &carved));
        prop_assert!(whole.mapped_bytes() >= carved.mapped_bytes());
        prop_assert_eq!(of(MapPolicy::Trapped).mapped_bytes(), 0);
    }

    #[test]
    fn a_larger_page_never_maps_more((layout, region) in bars(u64::MAX), a in pages(), b in pages(), policy in policies()) {
        let of = |page| plan(&layout, &region, page, &isolated(), policy);
        let (small, large) = (of(a.min(b)), of(a.max(b)));
        prop_assert_eq!(small.policy, large.policy);
        prop_assert!(maps_all_of(&small, &large), "{:x?} {:x?}", small.spans, large.spans);
    }
}

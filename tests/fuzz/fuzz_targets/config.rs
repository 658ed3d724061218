//! A device that may say anything of itself: its configuration space is decoded, its BARs are planned and opened, nothing panics, nothing
//! takes long, and no plan maps more than was offered.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::ops::Range;
use std::sync::Arc;
use wholebar::bar::{self, Access, Bar, BarOptions, BarPlan, MapPolicy, MsixTable};
use wholebar::mem::DmaSpace;
use wholebar::pci::{
    CONFIG, Config, DeviceInfo, DeviceKind, Irq, IrqAction, IrqInfo, Isolation, PciDevice, Prot, RegionCap, RegionInfo,
    RegionMapping, Verdict,
};
use wholebar::{Error, PageSize, Result};

type Input = (Knobs, Option<Msix>, Vec<u8>);
/// Page, policy, flags, sizes, sparse areas, registers.
type Knobs = (u8, u8, u8, [u64; 6], Option<Vec<(u64, u64)>>, Vec<(u64, u8)>);
/// An MSI-X capability to put into the bytes, or it would take ages to find one: where, control, table, PBA.
type Msix = (u8, u16, u32, u32);

struct Liar {
    config: Vec<u8>,
    regions: Vec<RegionInfo>,
    page: PageSize,
    verdict: Verdict,
}

fn none<T>() -> Result<T> {
    Err(Error::NoSuchRegion { device: "liar".to_owned(), region: 0 })
}

impl PciDevice for Liar {
    fn name(&self) -> &str {
        "liar"
    }
    fn kind(&self) -> DeviceKind {
        DeviceKind::VfioUser
    }
    fn info(&self) -> DeviceInfo {
        DeviceInfo { regions: 9, irqs: 5, resettable: false }
    }
    fn page_size(&self) -> PageSize {
        self.page
    }
    fn isolation(&self) -> Isolation {
        Isolation { verdict: self.verdict, evidence: Vec::new() }
    }
    fn region(&self, index: u32) -> Result<RegionInfo> {
        let config = RegionInfo { size: self.config.len() as u64, ..RegionInfo::default() };
        Ok(if index == CONFIG { config } else { self.regions[index as usize].clone() })
    }
    fn read(&self, region: u32, offset: u64, buf: &mut [u8]) -> Result<()> {
        match region {
            CONFIG => buf.copy_from_slice(&self.config[offset as usize..][..buf.len()]),
            _ => assert!(offset + buf.len() as u64 <= self.regions[region as usize].size),
        }
        Ok(())
    }
    fn write(&self, _: u32, _: u64, _: &[u8]) -> Result<()> {
        none()
    }
    fn map(&self, _: u32, _: Range<u64>, _: Prot) -> Result<RegionMapping> {
        none()
    }
    fn irq_info(&self, _: Irq) -> Result<IrqInfo> {
        none()
    }
    fn set_irqs(&self, _: Irq, _: u32, _: IrqAction<'_>) -> Result<()> {
        none()
    }
    fn dma(&self) -> Arc<DmaSpace> {
        unreachable!("nothing here does DMA")
    }
    fn reset(&self) -> Result<()> {
        none()
    }
}

fuzz_target!(|input: Input| {
    let ((page, policy, flags, sizes, sparse, registers), msix, mut config) = input;
    if let Some(msix) = msix {
        put(msix, &mut config);
    }
    let mut caps: Vec<_> =
        sparse.map(|areas| RegionCap::SparseMmap(areas.into_iter().map(|(a, b)| a..b).collect())).into_iter().collect();
    if flags & 1 != 0 {
        caps.push(RegionCap::MsixMappable);
    }
    let region =
        |size: &u64| RegionInfo { size: *size, mappable: flags & 2 != 0, caps: caps.clone(), ..RegionInfo::default() };
    let verdict = [Verdict::Isolated, Verdict::Unknown, Verdict::NotIsolated][usize::from(flags >> 2) % 3];
    let shift = page % 19;
    let pages = |shift: u8| PageSize::new(1u64 << (12 + shift)).expect("4 KiB to 1 GiB");
    let (page, larger) = (pages(shift), pages((shift + (flags >> 4)).min(18)));
    let policy = [MapPolicy::Auto, MapPolicy::Whole, MapPolicy::Carved, MapPolicy::Trapped][usize::from(policy) % 4];
    let device: Arc<dyn PciDevice> =
        Arc::new(Liar { config, regions: sizes.iter().map(region).collect(), page, verdict });

    decode(device.as_ref());
    let registers: Vec<_> = registers.into_iter().map(|(at, len)| at..at.saturating_add(len.into())).collect();
    for index in 0..6 {
        let options = BarOptions { policy, page: None, registers: &registers };
        let Ok(plan) = bar::plan_of(device.as_ref(), index, options) else { continue };
        let region = device.region(index.into()).expect("there is one");
        check(&plan, &region);
        let other =
            bar::plan_of(device.as_ref(), index, BarOptions { page: Some(larger), ..options }).expect("as above");
        assert!(other.mapped_bytes() <= plan.mapped_bytes(), "a larger page maps more");
        let trapped = BarOptions { policy: MapPolicy::Trapped, ..options };
        let bar = Bar::of(device.clone(), index, trapped).expect("nothing is mapped");
        let guarded = [&plan.layout.table, &plan.layout.pba].map(|r| r.clone().unwrap_or(0..0));
        for at in guarded.iter().flat_map(|r| [r.start.wrapping_sub(8), r.start, r.end.wrapping_sub(8), r.end]) {
            let inside = guarded.iter().any(|r| r.start < at.saturating_add(8) && at < r.end);
            match bar.read::<u64>(at) {
                Ok(_) => assert!(!inside && at.checked_add(8).is_some_and(|end| end <= plan.layout.size)),
                Err(Error::Guarded { .. }) => assert!(inside),
                Err(_) => assert!(at.checked_add(8).is_none_or(|end| end > plan.layout.size)),
            }
        }
    }
    if let Ok(Some(table)) = MsixTable::of(device) {
        let last = table.len() - 1;
        assert!(table.entry(last).is_ok() && table.is_pending(last).is_ok() && table.entry(last + 1).is_err());
    }
});

fn put((at, control, table, pba): Msix, config: &mut Vec<u8>) {
    config.resize(config.len().max(256), 0);
    config[0x06] |= 0x10;
    config[0x0e] = 0;
    config[0x34] = at;
    let place = config.iter_mut().skip(usize::from(at & !3));
    let bytes = [&[0x11, 0][..], &control.to_le_bytes(), &table.to_le_bytes(), &pba.to_le_bytes()].concat();
    place.zip(bytes).for_each(|(to, from)| *to = from);
}

fn decode(device: &dyn PciDevice) {
    let Ok(config) = Config::of(device) else { return };
    assert!(config.capabilities().count() <= 48);
    assert!(config.extended_capabilities().count() <= 960);
    for capability in config.capabilities().chain(config.extended_capabilities()) {
        assert!(usize::from(capability.offset) < config.bytes().len() && !capability.id.to_string().is_empty());
    }
    assert!(config.bars().len() <= 6);
    let _ = (config.msix(), config.msi(), config.express(), config.subsystem(), config.class());
}

fn check(plan: &BarPlan, region: &RegionInfo) {
    let size = plan.layout.size;
    let mut at = 0;
    for span in &plan.spans {
        assert!(span.range.start == at && span.range.end > at, "a gap, an overlap, or nothing");
        at = span.range.end;
        assert!(plan.page.floor(at) == at || at == size);
        if span.access == Access::Trapped {
            continue;
        }
        let inside = |area: &Range<u64>| area.start <= span.range.start && span.range.end <= area.end;
        assert!(region.mappable && inside(&(0..region.size)) && plan.policy != MapPolicy::Trapped);
        assert!(region.sparse().is_none_or(|areas| areas.iter().any(inside)));
        let table = plan.layout.table.clone().unwrap_or(0..0);
        if table.start < span.range.end && span.range.start < table.end {
            assert!(plan.policy == MapPolicy::Whole && (region.sparse().is_some() || region.msix_mappable()));
        }
    }
    assert_eq!(at, size);
}

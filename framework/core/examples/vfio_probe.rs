//! What the kernel's VFIO makes of a PCI function: opens it, and prints its regions, BAR plans, isolation, interrupts and DMA windows; maps an arena,
//! enables interrupts and dumps the MSI-X table.
//!
//!     vfio_probe                              lists the PCI functions here
//!     vfio_probe 0000:01:00.0 [ROUTE|IOMMU]   ROUTE: group, node, no-iommu; IOMMU: type1, tce1, tce2

use std::error::Error;
use std::io::Write;
use std::sync::Arc;
use wholebar_core::bar::{BarOptions, MsixTable, layouts, plan_of};
use wholebar_core::irq::Interrupts;
use wholebar_core::mem::{Arena, ArenaOptions};
use wholebar_core::pci::{Config, Irq, PciDevice, config};
use wholebar_core::vfio::sysfs::Sysfs;
use wholebar_core::vfio::{IommuType, Route, Vfio, VfioOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout();
    let mut arguments = std::env::args().skip(1);
    let Some(address) = arguments.next() else {
        for f in Sysfs::default().functions() {
            let (driver, group) =
                (f.driver().unwrap_or("-".to_owned()), f.group().map_or("-".to_owned(), |g| g.to_string()));
            writeln!(out, "{} class {:06x} driver {driver} group {group}", f.address(), f.class().unwrap_or(0))?;
        }
        return Ok(());
    };
    let mut options = VfioOptions::default();
    for argument in arguments {
        match argument.as_str() {
            "group" => options.route = Route::Group,
            "node" => options.route = Route::Node,
            "no-iommu" => options.route = Route::NoIommu,
            "type1" => options.iommu = Some(IommuType::Type1),
            "tce1" => options.iommu = Some(IommuType::TceV1),
            "tce2" => options.iommu = Some(IommuType::TceV2),
            other => return Err(format!("{other}: group, node, no-iommu, type1, tce1 or tce2").into()),
        }
    }
    let device: Arc<dyn PciDevice> = Vfio::open(address.parse()?, &options)?;
    probe(device)
}

fn probe(device: Arc<dyn PciDevice>) -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout();
    let (info, header) = (device.info(), Config::of(device.as_ref())?);
    writeln!(
        out,
        "{}: {:04x}:{:04x}, pages of {}",
        device.name(),
        header.vendor(),
        header.device(),
        device.page_size()
    )?;
    writeln!(out, "  {} regions, {} interrupt kinds, resettable: {}", info.regions, info.irqs, info.resettable)?;
    for index in 0..info.regions {
        let region = device.region(index)?;
        if region.size > 0 {
            writeln!(
                out,
                "  region {index}: {:#x} bytes, mappable: {}, {:?}",
                region.size, region.mappable, region.caps
            )?;
        }
    }
    let isolation = device.isolation();
    writeln!(out, "  interrupts: {:?}: {}", isolation.verdict, isolation.evidence.join("; "))?;
    for layout in layouts(device.as_ref())? {
        let plan = plan_of(device.as_ref(), layout.bar, BarOptions::default())?;
        writeln!(out, "  BAR{}: {:?}: {}", layout.bar, plan.policy, plan.why)?;
        for span in &plan.spans {
            writeln!(out, "    {:#7x}..{:#7x} {:?} ({:?})", span.range.start, span.range.end, span.access, span.why)?;
        }
    }
    for kind in [Irq::Intx, Irq::Msi, Irq::Msix, Irq::Err, Irq::Req] {
        writeln!(out, "  {kind} interrupts: {:?}", device.irq_info(kind)?)?;
    }

    let space = device.dma();
    for window in space.windows() {
        writeln!(
            out,
            "  DMA window {:#x}..={:#x}, pages of {}",
            window.range.start(),
            window.range.end(),
            window.page
        )?;
    }
    match Arena::new(1 << 20, ArenaOptions::default()).and_then(|arena| space.attach(arena.clone())) {
        Ok(mapping) => {
            writeln!(out, "  an arena of {:#x} bytes is mapped at {}", mapping.arena().len(), mapping.iova())?
        }
        Err(error) => writeln!(out, "  no arena: {error}")?,
    }

    if device.irq_info(Irq::Msix)?.count > 0 {
        config::enable_bus_master(device.as_ref(), true)?;
        let irqs = Interrupts::new(device.clone(), Irq::Msix, 4)?;
        let vectors: Vec<_> = (0..irqs.count().min(2)).map(|v| irqs.vector(v)).collect::<Result<_, _>>()?;
        for (vector, fd) in vectors.iter().enumerate() {
            irqs.trigger(vector as u32)?;
            writeln!(out, "  vector {vector} is enabled; triggered, its eventfd counts {}", fd.take())?;
        }
        if let Some(table) = MsixTable::of(device.clone())? {
            for vector in 0..table.len().min(3) {
                writeln!(
                    out,
                    "  MSI-X table {vector}: {:x?}, pending: {}",
                    table.entry(vector)?,
                    table.is_pending(vector)?
                )?;
            }
        }
    }
    if info.resettable {
        device.reset()?;
        writeln!(out, "  reset, and the vendor still reads {:04x}", Config::of(device.as_ref())?.vendor())?;
    }
    Ok(())
}

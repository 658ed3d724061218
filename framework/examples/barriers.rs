//! A doorbell and a status word, each in a function of its own, for `tools/check-barriers` to look at the instructions of.
//! Run, it rings a doorbell of a model's page and reads it back.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use wholebar::Work;
use wholebar::bar::{Bar, BarOptions, Doorbell, MapPolicy};
use wholebar::barrier;
use wholebar::model::{Host, InProcess, Model, ModelRegion, Pages, Refused, Shape};
use wholebar::pci::PciDevice;

#[inline(never)]
fn ring_doorbell(entry: &AtomicU64, doorbell: &mut Doorbell<u32>, value: u32) {
    entry.store(7, Ordering::Relaxed);
    doorbell.ring(value);
}

#[inline(never)]
fn read_after_status(status: &AtomicU64, data: &AtomicU64) -> (u64, u64) {
    let status = status.load(Ordering::Relaxed);
    barrier::after_status();
    (status, data.load(Ordering::Relaxed))
}

/// A page of memory, and nothing that looks at it.
struct Page(Arc<Pages>);

impl Model for Page {
    fn shape(&self) -> Shape {
        let size = self.0.memory().len();
        let whole = std::iter::once(0..size).collect();
        let bar0 = ModelRegion { size, pages: Some(self.0.clone()), direct: whole };
        let config = ModelRegion { size: 256, ..ModelRegion::default() };
        let mut regions = vec![ModelRegion::default(); 8];
        (regions[0], regions[7]) = (bar0, config);
        let (name, page) = ("a page".to_owned(), wholebar::PageSize::host());
        Shape { name, page, regions, irqs: Vec::new(), msix: None }
    }

    fn read(&mut self, _: u32, _: u64, buf: &mut [u8]) -> Result<(), Refused> {
        buf.fill(0);
        Ok(())
    }

    fn write(&mut self, _: u32, _: u64, _: &[u8]) -> Result<(), Refused> {
        Ok(())
    }

    fn reset(&mut self) {}

    fn poll(&mut self, _: &mut Host<'_>) -> Work {
        Work::Idle
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let device: Arc<dyn PciDevice> = InProcess::new(Page(Pages::new(1)?))?;
    let bar = Bar::of(&device, 0, BarOptions { policy: MapPolicy::Whole, ..BarOptions::default() })?;
    let mut doorbell = bar.doorbell::<u32>(0)?;
    let entry = AtomicU64::new(0);
    ring_doorbell(&entry, &mut doorbell, 42);
    println!("the doorbell reads {}", bar.read::<u32>(0)?);
    println!("status and data: {:?}", read_after_status(&entry, &entry));
    Ok(())
}

//! A device of one's own on a vfio-user socket, and a driver that connects to it: here both are in this process, but neither
//! has to be. Any vfio-user client can drive the device (QEMU's, from 10.1 on), and any server's device can be driven so.
//!
//!     cargo run --example vfio_user

use std::error::Error;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use wholebar_core::bar::{Bar, BarOptions};
use wholebar_core::irq::Interrupts;
use wholebar_core::model::{Host, Model, ModelRegion, Pages, Refused, Shape};
use wholebar_core::pci::{CONFIG, Config, Irq, IrqInfo, PciDevice};
use wholebar_core::vfio_user::{Options, Server, VfioUser};
use wholebar_core::{PageSize, Work};

/// A number written here is squared: BAR0 is one page, which drivers may map.
const NUMBER: u64 = 0;
/// Where the square is, once the interrupt came.
const SQUARE: u64 = 8;

/// The device.
struct Squarer {
    page: Arc<Pages>,
    seen: u64,
}

impl Model for Squarer {
    fn shape(&self) -> Shape {
        let size = PageSize::host().bytes();
        let mut regions = vec![ModelRegion::default(); 8];
        // From end to end, values are enough: a store to the page needs no call.
        let whole = std::iter::once(0..size).collect();
        regions[0] = ModelRegion { size, pages: Some(self.page.clone()), direct: whole };
        regions[CONFIG as usize] = ModelRegion { size: 256, ..ModelRegion::default() };
        let msix = IrqInfo { count: 1, eventfd: true, maskable: false, resizable: true };
        let irqs = vec![IrqInfo::default(), IrqInfo::default(), msix];
        Shape { name: "squarer".to_owned(), page: PageSize::host(), regions, irqs, msix: None }
    }

    fn read(&mut self, _region: u32, offset: u64, buf: &mut [u8]) -> Result<(), Refused> {
        // Only configuration space comes here: a vendor and a device id, and no capabilities.
        let config = [0x34, 0x12, 0x78, 0x56];
        buf.iter_mut().zip(offset as usize..).for_each(|(b, at)| *b = config.get(at).copied().unwrap_or(0));
        Ok(())
    }

    fn write(&mut self, _region: u32, _offset: u64, _buf: &[u8]) -> Result<(), Refused> {
        Ok(())
    }

    fn reset(&mut self) {
        [NUMBER, SQUARE].iter().filter_map(|at| self.page.u64(*at)).for_each(|r| r.store(0, Ordering::Release));
        self.seen = 0;
    }

    fn poll(&mut self, host: &mut Host<'_>) -> Work {
        let (Some(number), Some(square)) = (self.page.u64(NUMBER), self.page.u64(SQUARE)) else { return Work::Idle };
        // Acquire pairs with the driver's doorbell.
        let asked = u64::from_le(number.load(Ordering::Acquire));
        if asked == self.seen {
            return Work::Idle;
        }
        self.seen = asked;
        // Release: who sees the square, or the interrupt after it, sees all that the device did before.
        square.store(asked.wrapping_mul(asked).to_le(), Ordering::Release);
        host.interrupt(0);
        Work::Busy
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let socket = std::env::temp_dir().join(format!("squarer-{}", std::process::id()));
    let model = Squarer { page: Pages::new(PageSize::host().bytes())?, seen: 0 };
    let mut server = Server::bind(&socket, model)?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|both| {
        let serving = both.spawn(|| server.run(&stop));
        let driven = drive(&socket);
        stop.store(true, Ordering::Relaxed);
        serving.join().map_err(|_| "the server's thread failed")??;
        driven
    })
}

/// The driver: it knows the registers, and nothing of what is behind them.
fn drive(socket: &std::path::Path) -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout();
    let device: Arc<dyn PciDevice> = VfioUser::connect(socket, Options::default())?;
    let config = Config::of(device.as_ref())?;
    writeln!(out, "{}: {:04x}:{:04x}", device.name(), config.vendor(), config.device())?;
    let interrupts = Interrupts::new(device.clone(), Irq::Msix, 1)?;
    let interrupt = interrupts.vector(0)?;
    let bar = Bar::of(device, 0, BarOptions::default())?;
    let mut doorbell = bar.doorbell::<u64>(NUMBER)?;
    for number in [7, 12, 1_000_003] {
        doorbell.ring(number);
        if interrupt.wait(Some(Duration::from_secs(60)))?.is_none() {
            return Err("no interrupt within a minute".into());
        }
        writeln!(out, "{number} squared is {}", bar.read::<u64>(SQUARE)?)?;
    }
    writeln!(out, "doorbells: {:?}", doorbell.counts())?;
    Ok(())
}

//! A card to test with: registers, a doorbell page, a ring of buffers in host memory that it adds one to, and MSI-X.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use wholebar_core::mem::Iova;
use wholebar_core::model::{Host, Model, ModelRegion, MsixPlace, Pages, Refused, Shape};
use wholebar_core::pci::{CONFIG, IrqInfo};
use wholebar_core::{PageSize, Work};

/// Registers in the first page of BAR0, by call.
pub const ID: u64 = 0;
pub const SCRATCH: u64 = 8;
pub const RING: u64 = 16;
pub const ID_VALUE: u32 = 0x5eed_cafe;
/// In the second page of BAR0, direct: how many entries of the ring are valid.
pub fn doorbell() -> u64 {
    PageSize::host().bytes()
}
/// Entries of the ring; each is a buffer's address and length. The count of those done is kept behind the last.
pub const ENTRIES: u64 = 64;
pub const VECTORS: u32 = 20;

/// What can be seen from outside while it is served.
#[derive(Default)]
pub struct Seen {
    pub resets: AtomicU64,
}

pub struct Adder {
    pages: Arc<Pages>,
    scratch: u64,
    ring: u64,
    head: u32,
    seen: Arc<Seen>,
}

impl Adder {
    pub fn new() -> (Self, Arc<Seen>) {
        let pages = Pages::new(3 * PageSize::host().bytes()).unwrap();
        let seen = Arc::new(Seen::default());
        (Self { pages, scratch: 0, ring: 0, head: 0, seen: seen.clone() }, seen)
    }

    fn tail(&self) -> u32 {
        // Acquire pairs with the Release of the driver's doorbell.
        self.pages.u32(doorbell()).unwrap().load(Ordering::Acquire)
    }

    fn step(&mut self, host: &mut Host<'_>) -> Option<()> {
        let ring = host.dma(Iova(self.ring), ENTRIES * 16 + 8)?;
        let at = u64::from(self.head) % ENTRIES * 16;
        let [address, len] = [ring.u64(at)?, ring.u64(at + 8)?].map(|word| word.load(Ordering::Relaxed));
        let buffer = host.dma(Iova(address), len).filter(|_| len <= 1 << 20)?;
        let mut bytes = vec![0; len as usize];
        buffer.read(0, &mut bytes);
        bytes.iter_mut().for_each(|b| *b = b.wrapping_add(1));
        buffer.write(0, &bytes);
        // Release pairs with the Acquire of whoever waits for the count.
        ring.u64(ENTRIES * 16)?.store(u64::from(self.head) + 1, Ordering::Release);
        host.interrupt(1);
        Some(())
    }
}

/// Configuration space: a header of type 0 and the MSI-X capability (PCI 3.0, 6.1 and 6.8.2).
pub fn config() -> [u8; 4096] {
    let page = PageSize::host().bytes() as u32;
    let mut bytes = [0; 4096];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0x00, &0x1d1d_u16.to_le_bytes());
    put(0x02, &0x00ad_u16.to_le_bytes());
    put(0x06, &0x10_u16.to_le_bytes());
    put(0x34, &[0x40]);
    put(0x40, &[0x11, 0]);
    put(0x42, &(VECTORS as u16 - 1).to_le_bytes());
    put(0x44, &(2 * page).to_le_bytes());
    put(0x48, &(2 * page + 0x800).to_le_bytes());
    bytes
}

impl Model for Adder {
    fn shape(&self) -> Shape {
        let page = PageSize::host().bytes();
        let mut regions = vec![ModelRegion::default(); 8];
        let direct = vec![page..2 * page];
        regions[0] = ModelRegion { size: 3 * page, pages: Some(self.pages.clone()), direct };
        let whole = Pages::new(page).unwrap();
        regions[2] = ModelRegion { size: page, pages: Some(whole), direct: vec![0..page] };
        regions[CONFIG as usize] = ModelRegion { size: 4096, ..ModelRegion::default() };
        let intx = IrqInfo { count: 1, eventfd: true, maskable: true, resizable: false };
        let msix = IrqInfo { count: VECTORS, eventfd: true, maskable: false, resizable: true };
        Shape {
            name: "sim:adder".to_owned(),
            page: PageSize::host(),
            regions,
            irqs: vec![intx, IrqInfo::default(), msix],
            msix: Some(MsixPlace {
                table_bar: 0,
                table_offset: 2 * page,
                pba_bar: 0,
                pba_offset: 2 * page + 0x800,
                vectors: VECTORS,
            }),
        }
    }

    fn read(&mut self, region: u32, offset: u64, buf: &mut [u8]) -> Result<(), Refused> {
        let register = match (region, offset) {
            (CONFIG, _) => {
                buf.copy_from_slice(&config()[offset as usize..][..buf.len()]);
                return Ok(());
            }
            (0, ID) => ID_VALUE.into(),
            (0, SCRATCH) => self.scratch,
            (0, RING) => self.ring,
            _ => return Err(Refused(libc::EIO)),
        };
        buf.copy_from_slice(&register.to_le_bytes()[..buf.len()]);
        Ok(())
    }

    fn write(&mut self, region: u32, offset: u64, buf: &[u8]) -> Result<(), Refused> {
        let mut bytes = [0; 8];
        match (region, offset) {
            (0, SCRATCH | RING) => bytes[..buf.len()].copy_from_slice(buf),
            (CONFIG, _) => return Ok(()),
            _ => return Err(Refused(libc::EIO)),
        }
        let value = u64::from_le_bytes(bytes);
        match offset {
            SCRATCH => self.scratch = value,
            _ => self.ring = value,
        }
        Ok(())
    }

    fn reset(&mut self) {
        (self.scratch, self.ring, self.head) = (0, 0, 0);
        self.pages.u32(doorbell()).unwrap().store(0, Ordering::Release);
        self.seen.resets.fetch_add(1, Ordering::Relaxed);
    }

    fn poll(&mut self, host: &mut Host<'_>) -> Work {
        if self.tail() == self.head {
            return Work::Idle;
        }
        // An entry that cannot be reached is passed over, as a card would.
        let _ = self.step(host);
        self.head += 1;
        Work::Busy
    }
}

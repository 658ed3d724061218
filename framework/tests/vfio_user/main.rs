//! vfio-user: our client with our server, and each with peers that lie.
#![cfg(not(miri))]
#![allow(clippy::single_range_in_vec_init, reason = "they are ranges")]

mod model;

use model::{Adder, ENTRIES, ID, ID_VALUE, RING, SCRATCH, Seen, VECTORS, doorbell};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use wholebar::bar::{Bar, BarOptions};
use wholebar::irq::EventFd;
use wholebar::mem::{Arena, ArenaOptions, DmaRing};
use wholebar::pci::{CONFIG, DeviceKind, IRQ_MSIX, IrqAction, PciDevice, RegionCap};
use wholebar::vfio_user::{Options, Server, VfioUser};
use wholebar::{Error, PageSize};

/// A server on a thread; stopped on drop.
pub(crate) struct Served {
    pub(crate) path: PathBuf,
    pub(crate) seen: Arc<Seen>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

impl Served {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("card");
        let (model, seen) = Adder::new();
        let mut server = Server::bind(&path, model).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = Some(std::thread::spawn(move || server.run(&stopped).unwrap()));
        Self { path, seen, stop, thread, _dir: dir }
    }

    pub(crate) fn connect(&self) -> Arc<VfioUser> {
        VfioUser::connect(&self.path, Options::default()).unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn read<const N: usize>(device: &VfioUser, region: u32, offset: u64) -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    device.read(region, offset, &mut bytes).map(|()| bytes)
}

#[test]
fn a_served_device_is_what_its_model_is() {
    let served = Served::new();
    let device = served.connect();
    let page = PageSize::host().bytes();
    assert_eq!(device.name(), format!("vfio-user:{}", served.path.display()));
    assert_eq!(device.kind(), DeviceKind::VfioUser);
    let info = device.info();
    assert_eq!((info.regions, info.irqs, info.resettable), (9, 5, true));

    let bar0 = device.region(0).unwrap();
    assert_eq!((bar0.size, bar0.mappable), (3 * page, true));
    assert_eq!(bar0.caps, [RegionCap::SparseMmap([page..2 * page].to_vec()), RegionCap::MsixMappable]);
    let bar2 = device.region(2).unwrap();
    assert_eq!((bar2.size, bar2.mappable, bar2.caps), (page, true, Vec::new()), "all of it, so no areas");
    assert_eq!(device.region(1).unwrap().size, 0);
    assert_eq!(device.region(CONFIG).unwrap().size, 4096);
    assert!(matches!(device.region(9), Err(Error::NoSuchRegion { .. })));
    assert_eq!(device.irq_info(IRQ_MSIX).unwrap().count, VECTORS);
    assert_eq!(device.irq_info(7).unwrap().count, 0);
}

#[test]
fn a_model_is_reset_when_its_client_goes() {
    let served = Served::new();
    let device = served.connect();
    device.write(0, SCRATCH, &7u64.to_le_bytes()).unwrap();
    drop(device);
    let device = served.connect();
    assert_eq!(read(&device, 0, SCRATCH).unwrap(), [0; 8]);
    assert_eq!(served.seen.resets.load(Ordering::Relaxed), 1);
}

#[test]
fn registers_are_read_and_written_in_their_width() {
    let served = Served::new();
    let device = served.connect();
    assert_eq!(read(&device, 0, ID).unwrap(), ID_VALUE.to_le_bytes());
    assert_eq!(read::<2>(&device, 0, ID).unwrap(), ID_VALUE.to_le_bytes()[..2]);
    device.write(0, SCRATCH, &0x0123_4567_89ab_cdef_u64.to_le_bytes()).unwrap();
    assert_eq!(read(&device, 0, SCRATCH).unwrap(), 0x0123_4567_89ab_cdef_u64.to_le_bytes());
    assert_eq!(read(&device, CONFIG, 0).unwrap(), model::config());
    device.reset().unwrap();
    assert_eq!(read(&device, 0, SCRATCH).unwrap(), [0; 8]);
}

/// One buffer through the card, the doorbell rung as told.
fn add_one(device: &VfioUser, ring_doorbell: impl FnOnce(u32)) {
    let arena = Arena::new(1 << 20, ArenaOptions::default()).unwrap();
    let mapping = device.dma().attach(&arena).unwrap();
    let ring: DmaRing<[AtomicU64; 2]> = DmaRing::new(&arena, 2 * ENTRIES as u32, 4096).unwrap();
    let buffer = arena.alloc(4096, 4096).unwrap();
    buffer.write(0, &[41; 4096]).unwrap();
    let event = EventFd::new().unwrap();
    device.set_irqs(IRQ_MSIX, 1, IrqAction::Fds(&[Some(event.as_fd())])).unwrap();
    let at = |offset| mapping.iova().offset(offset).0;
    ring.at(0)[0].store(at(buffer.offset()), Ordering::Relaxed);
    ring.at(0)[1].store(4096, Ordering::Relaxed);
    device.write(0, RING, &at(ring.chunk().offset()).to_le_bytes()).unwrap();
    ring_doorbell(1);
    assert!(event.wait(Some(Duration::from_secs(5))).unwrap() > 0, "no interrupt");
    // Acquire pairs with the card's Release.
    assert_eq!(ring.at(ENTRIES as u32)[0].load(Ordering::Acquire), 1);
    let mut bytes = [0; 4096];
    buffer.read(0, &mut bytes).unwrap();
    assert_eq!(bytes, [42; 4096]);
}

#[test]
fn dma_doorbell_and_interrupt_by_mapping() {
    let served = Served::new();
    let device = served.connect();
    let seam: Arc<dyn PciDevice> = device.clone();
    let bar = Bar::of(&seam, 0, BarOptions::default()).unwrap();
    let mut bell = bar.doorbell::<u32>(doorbell()).unwrap();
    assert!(bell.is_direct());
    add_one(&device, |tail| bell.ring(tail));
}

#[test]
fn dma_doorbell_and_interrupt_by_message() {
    let served = Served::new();
    let device = served.connect();
    add_one(&device, |tail| device.write(0, doorbell(), &tail.to_le_bytes()).unwrap());
}

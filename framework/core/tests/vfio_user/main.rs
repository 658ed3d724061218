//! vfio-user: our client with our server, and each with peers that lie.
#![cfg(not(miri))]
#![allow(clippy::single_range_in_vec_init, reason = "they are ranges")]

mod lying_clients;
mod lying_servers;
mod model;
mod raw;

use model::{Adder, ENTRIES, ID, ID_VALUE, RING, SCRATCH, Seen, VECTORS, doorbell};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use wholebar_core::bar::{Bar, BarOptions};
use wholebar_core::irq::EventFd;
use wholebar_core::mem::{Arena, ArenaOptions, DmaRing, Frame};
use wholebar_core::pci::{CONFIG, DeviceKind, Irq, IrqAction, PciDevice, RegionCap, function};
use wholebar_core::vfio_user::{Options, Server, VfioUser};
use wholebar_core::{Error, PageSize};

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
        VfioUser::connect(&self.path, patient()).unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// How long anything is waited for that comes: a machine may be busy.
pub(crate) const LONG: Duration = Duration::from_secs(120);

/// What a client gives its server that is alive.
pub(crate) fn patient() -> Options {
    Options::of(LONG)
}

pub(crate) fn read<const N: usize>(device: &VfioUser, region: u32, offset: u64) -> Result<[u8; N], Error> {
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
    assert_eq!(device.irq_info(Irq::Msix).unwrap().count, VECTORS);
    assert_eq!(device.irq_info(Irq::Msi).unwrap().count, 0);
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
fn a_dead_server_is_no_absent_function() {
    let served = Served::new();
    let device = served.connect();
    assert!(!function::is_absent(device.as_ref()).unwrap());
    function::reset(device.as_ref()).unwrap();
    drop(served);
    // It may have left others with the memory, and the bus was not asked.
    assert!(function::is_absent(device.as_ref()).is_err() && function::check(device.as_ref()).is_err());
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
    let mapping = device.dma().attach(arena.clone()).unwrap();
    let ring: DmaRing<[AtomicU64; 2]> = DmaRing::new(arena.clone(), 2 * ENTRIES as u32, 4096).unwrap();
    let buffer = arena.alloc(4096, 4096).unwrap();
    buffer.write(0, &[41; 4096]).unwrap();
    let event = EventFd::new().unwrap();
    device.set_irqs(Irq::Msix, 1, IrqAction::Fds(&[Some(event.as_fd())])).unwrap();
    let at = |offset| mapping.iova().offset(offset).0;
    ring.at(0)[0].store(at(buffer.offset()), Ordering::Relaxed);
    ring.at(0)[1].store(4096, Ordering::Relaxed);
    device.write(0, RING, &at(ring.chunk().offset()).to_le_bytes()).unwrap();
    ring_doorbell(1);
    assert!(event.wait(Some(LONG)).unwrap().is_some(), "no interrupt");
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
    let bar = Bar::of(seam, 0, BarOptions::default()).unwrap();
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

#[test]
fn accesses_that_no_server_has_to_be_asked_about() {
    let served = Served::new();
    let device = served.connect();
    let end = 3 * PageSize::host().bytes();
    assert!(matches!(read::<4>(&device, 0, end - 2), Err(Error::OutOfRange { .. })), "across the end");
    assert!(matches!(read::<4>(&device, 0, u64::MAX), Err(Error::OutOfRange { .. })));
    assert!(matches!(read::<4>(&device, 1, 0), Err(Error::OutOfRange { .. })), "an empty region");
    assert!(matches!(read::<4>(&device, 9, 0), Err(Error::NoSuchRegion { .. })));
    for error in [read::<16>(&device, 0, 0).unwrap_err(), device.write(0, SCRATCH + 1, &[0; 2]).unwrap_err()] {
        assert!(matches!(error, Error::Access { .. }), "{error}");
        assert!(error.to_string().ends_with("a register is 1, 2, 4 or 8 bytes wide, at a multiple of that"), "{error}");
    }
    assert!(matches!(read::<4>(&device, 0, 0x100), Err(Error::Access { .. })), "the model refuses it");
    let event = EventFd::new().unwrap();
    let fds = [Some(event.as_fd()); 2];
    assert!(matches!(
        device.set_irqs(Irq::Msix, VECTORS - 1, IrqAction::Fds(&fds)),
        Err(Error::NoSuchIrq { vector: VECTORS, .. })
    ));
    assert!(matches!(device.set_irqs(Irq::Msi, 0, IrqAction::Trigger(1)), Err(Error::NoSuchIrq { count: 0, .. })));
    assert!(matches!(device.set_irqs(Irq::Msix, 0, IrqAction::Mask(1)), Err(Error::Io { .. })), "MSI-X has no masks");
    assert_eq!(read::<4>(&device, 0, ID).unwrap(), ID_VALUE.to_le_bytes(), "and it goes on");
}

#[test]
fn memory_without_a_file_cannot_be_shared() {
    let served = Served::new();
    let device = served.connect();
    let arena = Arena::adopt(Frame::zeroed(1)).unwrap();
    let error = device.dma().attach(arena.clone()).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("this memory has no file, so no other process can map it"), "{error}");
    assert_eq!(device.dma().mapped(), 0);
    let arena = Arena::new(1, ArenaOptions::default()).unwrap();
    assert!(device.dma().attach(arena).is_ok(), "and it goes on");
}

#[test]
fn interrupts_are_set_taken_away_and_disabled() {
    let served = Served::new();
    let device = served.connect();
    let events: Vec<_> = (0..VECTORS).map(|_| EventFd::new().unwrap()).collect();
    let fds: Vec<_> = events.iter().map(|e| Some(e.as_fd())).collect();
    let trigger = || {
        device.set_irqs(Irq::Msix, 0, IrqAction::Trigger(VECTORS)).unwrap();
        events.iter().map(|e| e.take()).collect::<Vec<_>>()
    };
    // More than fit in one message.
    device.set_irqs(Irq::Msix, 0, IrqAction::Fds(&fds)).unwrap();
    assert_eq!(trigger(), [1; VECTORS as usize]);
    device.set_irqs(Irq::Msix, 1, IrqAction::Fds(&[None])).unwrap();
    assert_eq!(trigger()[..3], [1, 0, 1]);
    device.set_irqs(Irq::Msix, 0, IrqAction::Disable).unwrap();
    assert_eq!(trigger(), [0; VECTORS as usize]);
}

#[test]
fn sockets_that_lead_nowhere_have_an_error_each() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let options = Options::of(Duration::from_millis(200));
    let error = |path: PathBuf| VfioUser::connect(path, options).map(|_| ()).unwrap_err();

    let missing = error(path("missing"));
    assert!(matches!(&missing, Error::Connect { .. }) && missing.to_string().contains("is the server running?"));
    drop(UnixListener::bind(path("dead")).unwrap());
    assert!(error(path("dead")).to_string().contains("nobody listens there"));
    std::fs::write(path("file"), "text").unwrap();
    assert!(matches!(error(path("file")), Error::Connect { .. }));
    assert!(matches!(error(path(&"long".repeat(50))), Error::Connect { .. }));

    // Somebody listens, and never accepts; then even the backlog is full.
    let socket = || {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
        socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK, None).unwrap()
    };
    let address = rustix::net::SocketAddrUnix::new(path("silent")).unwrap();
    let silent = socket();
    rustix::net::bind(&silent, &address).unwrap();
    rustix::net::listen(&silent, 4).unwrap();
    assert!(error(path("silent")).to_string().contains("VERSION: no reply within 200ms"));
    let waiting: Vec<_> = (0..16).map(|_| socket()).filter(|s| rustix::net::connect(s, &address).is_ok()).collect();
    assert!(!waiting.is_empty());
    assert!(error(path("silent")).to_string().contains("too many others are waiting"));
}

#[test]
fn a_server_listens_where_nobody_else_does() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("card");
    let bind = || Server::bind(&path, Adder::new().0);
    let refusal = || bind().map(|_| ()).unwrap_err().to_string();

    std::fs::write(&path, "precious").unwrap();
    assert!(refusal().contains("not a socket is there"), "{}", refusal());
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    std::fs::remove_file(&path).unwrap();

    drop(UnixListener::bind(&path).unwrap());
    let server = bind().expect("a dead server's socket is replaced");
    assert!(refusal().contains("another server listens there"), "{}", refusal());
    drop(server);
    assert!(!path.exists(), "it takes its socket away");

    let server = bind().unwrap();
    std::fs::remove_file(&path).unwrap();
    let other = bind().unwrap();
    drop(server);
    assert!(path.exists(), "but nobody else's");
    drop(other);
}

#[test]
fn a_device_whose_server_ends_is_gone() {
    let served = Served::new();
    let device = served.connect();
    let arena = Arena::new(4096, ArenaOptions::default()).unwrap();
    let mapping = device.dma().attach(arena).unwrap();
    drop(served);
    assert!(matches!(read::<4>(&device, 0, ID), Err(Error::Peer { .. })));
    let error = read::<4>(&device, 0, ID).unwrap_err();
    assert!(matches!(error, Error::Gone { .. }));
    assert!(error.to_string().contains("is gone: REGION_READ: the connection was closed"), "{error}");
    assert!(matches!(device.reset(), Err(Error::Gone { .. })));
    drop(mapping);
}

#[test]
fn a_server_can_be_polled_by_its_owner() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut server = Server::from_stream(theirs, Adder::new().0);
    let client = std::thread::spawn(move || {
        let device = VfioUser::from_stream(ours, "vfio-user:pair", patient()).unwrap();
        read::<4>(&device, 0, ID).unwrap()
    });
    assert!(server.is_connected());
    while server.is_connected() {
        let _ = server.poll();
    }
    assert_eq!(client.join().unwrap(), ID_VALUE.to_le_bytes());
    server.run(&AtomicBool::new(false)).unwrap();
}

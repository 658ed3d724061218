//! vfio-user with somebody else's code at the other end: rust-vmm's `vfio_user`, as server and as client.

#[path = "../../framework/core/tests/vfio_user/model.rs"]
mod model;

use model::{Adder, ENTRIES, ID, ID_VALUE, RING, SCRATCH, VECTORS, doorbell};
use std::fs::File;
use std::io::{Error as IoError, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use vfio_bindings::bindings::vfio::*;
use vfio_user::{Client, DmaMapFlags, DmaUnmapFlags, IrqInfo, ServerBackend, ServerRegion, SparseArea};
use wholebar::bar::{Bar, BarOptions};
use wholebar::irq::EventFd;
use wholebar::mem::{Arena, ArenaOptions};
use wholebar::pci::{CONFIG, Irq, IrqAction, PciDevice, RegionCap};
use wholebar::vfio_user::{Options, Server, VfioUser};
use wholebar::{Error, PageSize};

/// How long anything is waited for that comes.
const LONG: Duration = Duration::from_secs(120);
/// Where the other server's card has registers, in BAR0: what is written to `ADD` is the address of 64 bytes to add one to.
const ADD: u64 = 0x10;
const REFUSED: u64 = 0x20;

/// A card as the other crate has them.
struct Backend {
    scratch: [u8; 8],
    memory: Vec<(u64, u64, u64, File)>,
    interrupt: Option<File>,
}

impl Backend {
    fn add(&mut self, address: u64) -> Result<(), IoError> {
        let missing = || IoError::from(std::io::ErrorKind::AddrNotAvailable);
        let (start, _, offset, file) =
            self.memory.iter().find(|(start, len, ..)| (*start..start + len).contains(&address)).ok_or_else(missing)?;
        let mut bytes = [0; 64];
        file.read_exact_at(&mut bytes, address - start + offset)?;
        bytes.iter_mut().for_each(|b| *b += 1);
        file.write_all_at(&bytes, address - start + offset)?;
        self.interrupt.as_mut().ok_or_else(missing)?.write_all(&1u64.to_ne_bytes())
    }
}

impl ServerBackend for Backend {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), IoError> {
        match (region, offset) {
            (CONFIG, _) => data.copy_from_slice(&model::config()[offset as usize..][..data.len()]),
            (0, 0x8) => data.copy_from_slice(&self.scratch[..data.len()]),
            _ => return Err(IoError::other("no such register")),
        }
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), IoError> {
        match (region, offset) {
            (0, 0x8) => self.scratch[..data.len()].copy_from_slice(data),
            (0, ADD) => self.add(u64::from_le_bytes(data.try_into().map_err(IoError::other)?))?,
            _ => return Err(IoError::other("no such register")),
        }
        Ok(())
    }

    fn dma_map(
        &mut self,
        flags: DmaMapFlags,
        offset: u64,
        at: u64,
        size: u64,
        fd: Option<File>,
    ) -> Result<(), IoError> {
        assert_eq!(flags, DmaMapFlags::READ_WRITE);
        self.memory.push((at, size, offset, fd.ok_or_else(|| IoError::other("no file"))?));
        Ok(())
    }

    fn dma_unmap(&mut self, _: DmaUnmapFlags, at: u64, size: u64) -> Result<(), IoError> {
        let before = self.memory.len();
        self.memory.retain(|(start, len, ..)| (*start, *len) != (at, size));
        if self.memory.len() < before { Ok(()) } else { Err(IoError::other("nothing is mapped so")) }
    }

    fn reset(&mut self) -> Result<(), IoError> {
        self.scratch = [0; 8];
        Ok(())
    }

    fn set_irqs(&mut self, index: u32, flags: u32, start: u32, count: u32, fds: Vec<File>) -> Result<(), IoError> {
        assert_eq!((index, start, count as usize), (Irq::Msix.index(), 3, fds.len().max(count as usize)));
        assert_eq!(flags, VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER);
        self.interrupt = fds.into_iter().next();
        Ok(())
    }
}

#[test]
fn our_client_with_their_server() {
    let page = PageSize::host().bytes();
    let bells: OwnedFd = rustix::fs::memfd_create("bells", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&bells, 2 * page).unwrap();
    let bells = File::from(bells);
    let flags = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
    let region = |index, size, flags| ServerRegion {
        region_info: vfio_region_info { argsz: 32, flags, index, size, ..Default::default() },
        sparse_areas: Vec::new(),
        mmap_fd: None,
    };
    let mut regions: Vec<_> = (0..9).map(|i| region(i, 0, 0)).collect();
    regions[CONFIG as usize] = region(CONFIG, 4096, flags);
    let area = vfio_region_sparse_mmap_area { offset: page, size: page };
    regions[0] = ServerRegion {
        sparse_areas: vec![SparseArea { area }],
        mmap_fd: Some(bells.as_raw_fd()),
        ..region(0, 3 * page, flags | VFIO_REGION_INFO_FLAG_MMAP)
    };
    let irqs =
        (0..5).map(|index| IrqInfo { index, flags: 1, count: if index == Irq::Msix.index() { VECTORS } else { 0 } });
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("theirs");
    let server = vfio_user::Server::new(&path, true, irqs.collect(), regions).unwrap();
    let mut backend = Backend { scratch: [0; 8], memory: Vec::new(), interrupt: None };
    let server = std::thread::spawn(move || {
        server.run(&mut backend).unwrap();
        assert!(backend.memory.is_empty(), "what was mapped is unmapped");
    });

    let device = VfioUser::connect(&path, Options::of(LONG)).unwrap();
    let info = device.info();
    assert_eq!((info.regions, info.irqs, info.resettable), (9, 5, true));
    let bar0 = device.region(0).unwrap();
    let sparse = std::iter::once(page..2 * page).collect();
    assert_eq!((bar0.size, bar0.mappable, bar0.caps), (3 * page, true, vec![RegionCap::SparseMmap(sparse)]));
    assert_eq!(device.irq_info(Irq::Msix).unwrap().count, VECTORS);

    let mut config = [0; 4096];
    device.read(CONFIG, 0, &mut config).unwrap();
    assert_eq!(config, model::config());
    device.write(0, 8, &7u64.to_le_bytes()).unwrap();
    let mut bytes = [0; 8];
    device.read(0, 8, &mut bytes).unwrap();
    assert_eq!(bytes, 7u64.to_le_bytes());
    device.reset().unwrap();
    device.read(0, 8, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 8]);

    // What it refuses is refused, and it goes on. Its refusals have no errno.
    for _ in 0..2 {
        let error = device.write(0, REFUSED, &[0; 4]).unwrap_err();
        assert!(matches!(error, Error::Access { .. }), "{error}");
    }

    let seam: Arc<dyn PciDevice> = device.clone();
    let bar = Bar::of(seam.clone(), 0, BarOptions::default()).unwrap();
    let mut bell = bar.doorbell::<u32>(page + 8).unwrap();
    assert!(bell.is_direct());
    bell.ring(0x1234_5678);
    let mut rung = [0; 4];
    bells.read_exact_at(&mut rung, page + 8).unwrap();
    assert_eq!(rung, 0x1234_5678_u32.to_le_bytes());

    let event = EventFd::new().unwrap();
    device.set_irqs(Irq::Msix, 3, IrqAction::Fds(&[Some(event.as_fd())])).unwrap();
    let arena = Arena::new(1 << 16, ArenaOptions::default()).unwrap();
    let mapping = device.dma().attach(arena.clone()).unwrap();
    let buffer = arena.alloc(64, 64).unwrap();
    buffer.write(0, &[5; 64]).unwrap();
    device.write(0, ADD, &mapping.iova().offset(buffer.offset()).0.to_le_bytes()).unwrap();
    assert_eq!(event.wait(Some(LONG)).unwrap(), Some(1));
    let mut bytes = [0; 64];
    buffer.read(0, &mut bytes).unwrap();
    assert_eq!(bytes, [6; 64]);
    device.set_irqs(Irq::Msix, 3, IrqAction::Fds(&[None])).unwrap();

    drop((mapping, bell, bar, seam, device));
    server.join().unwrap();
}

#[test]
fn their_client_with_our_server() {
    let page = PageSize::host().bytes();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ours");
    let mut server = Server::bind(&path, Adder::new().0).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|both| {
        both.spawn(|| server.run(&stop).unwrap());
        // One after another.
        for _ in 0..2 {
            talk(&mut Client::new(&path).unwrap(), page);
        }
        stop.store(true, Ordering::Relaxed);
    });
}

fn talk(client: &mut Client, page: u64) {
    let bar0 = client.region(0).unwrap();
    assert_eq!((bar0.size, bar0.flags), (3 * page, 0xf));
    assert_eq!(bar0.sparse_areas, [vfio_region_sparse_mmap_area { offset: page, size: page }]);
    let bells = bar0.file_offset.clone().unwrap();
    let bar2 = client.region(2).unwrap();
    assert_eq!(bar2.sparse_areas, [vfio_region_sparse_mmap_area { offset: 0, size: page }], "the whole is an area too");
    assert_eq!(client.region(1).unwrap().size, 0);

    let mut config = [0; 4096];
    client.region_read(CONFIG, 0, &mut config).unwrap();
    assert_eq!(config, model::config());
    let mut id = [0; 4];
    client.region_read(0, ID, &mut id).unwrap();
    assert_eq!(id, ID_VALUE.to_le_bytes());
    client.region_write(0, SCRATCH, &[1; 8]).unwrap();
    let mut scratch = [0; 8];
    client.region_read(0, SCRATCH, &mut scratch).unwrap();
    assert_eq!(scratch, [1; 8]);
    client.reset().unwrap();
    client.region_read(0, SCRATCH, &mut scratch).unwrap();
    assert_eq!(scratch, [0; 8]);
    let irq = client.get_irq_info(Irq::Msix.index()).unwrap();
    assert_eq!((irq.count, irq.flags & VFIO_IRQ_INFO_EVENTFD), (VECTORS, 1));

    // A ring at 0x10000 and a buffer behind it, in one file.
    let memory: OwnedFd = rustix::fs::memfd_create("memory", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&memory, 0x4000).unwrap();
    let memory = File::from(memory);
    client.dma_map(0x1000, 0x10000, 0x3000, memory.as_raw_fd()).unwrap();
    let event = EventFd::new().unwrap();
    let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
    client.set_irqs(Irq::Msix.index(), flags, 1, 1, &[event.as_fd().as_raw_fd()]).unwrap();
    let entry: Vec<u8> = [0x12000u64, 32].iter().flat_map(|w| w.to_ne_bytes()).collect();
    memory.write_all_at(&entry, 0x1000).unwrap();
    memory.write_all_at(&[9; 32], 0x3000).unwrap();
    client.region_write(0, RING, &0x10000u64.to_le_bytes()).unwrap();
    // The doorbell, by the page that it shares.
    bells.file().write_all_at(&1u32.to_le_bytes(), bells.start() + doorbell()).unwrap();
    assert!(event.wait(Some(LONG)).unwrap().is_some());
    let mut bytes = [0; 32];
    memory.read_exact_at(&mut bytes, 0x3000).unwrap();
    assert_eq!(bytes, [10; 32]);
    // And by message.
    memory.write_all_at(&entry, 0x1010).unwrap();
    client.region_write(0, doorbell(), &2u32.to_le_bytes()).unwrap();
    assert!(event.wait(Some(LONG)).unwrap().is_some());
    memory.read_exact_at(&mut bytes, 0x3000).unwrap();
    assert_eq!(bytes, [11; 32]);
    let mut done = [0; 8];
    memory.read_exact_at(&mut done, 0x1000 + ENTRIES * 16).unwrap();
    assert_eq!(done, 2u64.to_ne_bytes());
    client.dma_unmap(0x10000, 0x3000).unwrap();
    client.shutdown().unwrap();
}

//! Programs that do what nobody should, in safe code alone: they may fail, and break no memory. All of it runs under Miri, which says so.

#![forbid(unsafe_code)]

use std::any::Any;
use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use wholebar_core::bar::{Bar, BarOptions, BarPlan, Doorbell, MapPolicy, MsixTable, Width, Window, plan_of};
use wholebar_core::control_plane::QueueContext;
use wholebar_core::irq::{EventFd, Interrupts};
use wholebar_core::listener::Listener;
use wholebar_core::mem::{
    Arena, ArenaOptions, Buf, Chunk, DmaBackend, DmaMapping, DmaRing, DmaSpace, Field, Frame, Iova, IovaWindow,
    Mapping, Pool, PoolCache, Shared, Source,
};
use wholebar_core::model::{
    Host, InProcess, Model, ModelFunction, ModelRegion, MsixPlace, Pages, Refused, Registers, Shape,
};
use wholebar_core::pci::{
    DeviceInfo, DeviceKind, Irq, IrqAction, IrqInfo, Isolation, PciDevice, Prot, RegionCap, RegionInfo, RegionMapping,
};
use wholebar_core::reset::{Domain, Gate};
use wholebar_core::ring::{Consumer, Producer, Ring, Stash, spsc};
use wholebar_core::vfio::Vfio;
use wholebar_core::{Error, PageSize, Result, Table, Work};

const SIZE: u64 = 0x10000;

/// What a device does in a poll.
type OnPoll = Box<dyn FnMut(&mut Host<'_>) + Send>;

/// A device of one BAR that is all memory, and does in each poll what a test says.
struct Anything {
    shape: Shape,
    config: [u8; 64],
    on_poll: OnPoll,
}

impl Anything {
    fn new(pages: Arc<Pages>, on_poll: OnPoll) -> Self {
        let bar = ModelRegion { size: SIZE, pages: Some(pages.clone()), direct: vec![0..SIZE] };
        let mut regions = vec![ModelRegion::default(); 8];
        (regions[0], regions[7].size) = (bar, 64);
        let mut config = [0; 64];
        config[..4].copy_from_slice(&[0x34, 0x12, 0x78, 0x56]);
        let shape =
            Shape { name: "anything".to_owned(), page: PageSize::host(), regions, irqs: Vec::new(), msix: None };
        Self { shape, config, on_poll }
    }

    fn start(self) -> Arc<InProcess> {
        InProcess::new(self).unwrap()
    }

    fn idle() -> Arc<dyn PciDevice> {
        Self::new(Pages::new(SIZE).unwrap(), Box::new(|_| ())).start()
    }
}

impl Model for Anything {
    fn shape(&self) -> Shape {
        self.shape.clone()
    }
    fn read(&mut self, _: u32, offset: u64, buf: &mut [u8]) -> Result<(), Refused> {
        let bytes = self.config.get(offset as usize..).and_then(|rest| rest.get(..buf.len()));
        buf.copy_from_slice(bytes.ok_or(Refused(22))?);
        Ok(())
    }
    fn write(&mut self, _: u32, _: u64, _: &[u8]) -> Result<(), Refused> {
        Ok(())
    }
    fn reset(&mut self) {}
    fn poll(&mut self, host: &mut Host<'_>) -> Work {
        (self.on_poll)(host);
        Work::Busy
    }
}

fn arena() -> Arc<Arena> {
    Arena::new(1 << 16, ArenaOptions { hugepages: Some(false), numa_node: None }).unwrap()
}

/// What may go to another thread, and what several may have at once: everything that is shared memory, and nothing that one queue owns. What may
/// not is in `compile_fail/threads.rs`.
#[test]
fn types_cross_threads_as_they_should() {
    fn both<T: Send + Sync>() {}
    fn sent<T: Send>() {}
    both::<Arena>();
    both::<Source>();
    both::<Frame>();
    both::<Chunk>();
    both::<DmaRing<[AtomicU64; 8]>>();
    both::<Field<AtomicU32, 8, 16>>();
    both::<Pool>();
    both::<Buf>();
    both::<PoolCache>();
    both::<Mapping>();
    both::<DmaSpace>();
    both::<DmaMapping>();
    both::<RegionMapping>();
    both::<Bar>();
    both::<BarPlan>();
    both::<Window>();
    both::<MsixTable>();
    sent::<Doorbell<u32>>();
    both::<Pages>();
    both::<Registers<AtomicU32>>();
    both::<InProcess>();
    both::<Domain>();
    both::<Gate>();
    both::<Table<u32>>();
    both::<EventFd>();
    both::<Interrupts>();
    both::<QueueContext<String>>();
    both::<Vfio>();
    #[cfg(not(miri))]
    both::<wholebar_core::tap::Tap>();
    both::<Listener>();
    sent::<ModelFunction<Anything>>();
    #[cfg(feature = "vfio-user")]
    both::<wholebar_core::vfio_user::VfioUser>();
    #[cfg(feature = "vhost-user")]
    both::<wholebar_core::vhost_user::VhostUser>();
    #[cfg(feature = "kernel")]
    {
        use wholebar_core::kernel::{PacketRing, PacketSocket, Uring, Wakeup, XdpProgram, xdp};
        both::<PacketSocket>();
        sent::<PacketRing>();
        sent::<Uring<Vec<u8>>>();
        both::<Wakeup>();
        both::<XdpProgram>();
        sent::<xdp::XdpSocket>();
        sent::<xdp::XdpRx>();
        sent::<xdp::XdpTx>();
    }
    // Items that may be sent, and not be shared.
    both::<Ring<Cell<u8>>>();
    sent::<Producer<Cell<u8>>>();
    sent::<Consumer<Cell<u8>>>();
    sent::<Stash<Cell<u8>>>();
}

#[test]
fn a_doorbell_outlives_whoever_opened_its_device() {
    let pages = Pages::new(SIZE).unwrap();
    let model = Anything::new(pages.clone(), Box::new(|_| ())).start();
    let weak = Arc::downgrade(&model);
    let device: Arc<dyn PciDevice> = model;
    let mut bells: Vec<_> = [MapPolicy::Whole, MapPolicy::Carved, MapPolicy::Trapped]
        .into_iter()
        .map(|policy| Bar::of(device.clone(), 0, BarOptions { policy, ..BarOptions::default() }).unwrap())
        .flat_map(|bar| [bar.doorbell::<u32>(0x100).unwrap(), bar.window(0..0x200).unwrap().doorbell(0x100).unwrap()])
        .collect();
    drop(device);
    for (n, bell) in bells.iter_mut().enumerate() {
        bell.ring(n as u32);
        assert_eq!(pages.u32(0x100).unwrap().load(Ordering::Acquire), (n as u32).to_le());
    }
    assert!(weak.upgrade().is_some(), "it is open as long as a doorbell is");
    drop(bells);
    assert!(weak.upgrade().is_none());
}

/// Two BARs of one, by two plans, on two threads each, with all of what they have.
#[test]
fn two_bars_of_one_are_one() {
    let device = Anything::idle();
    let open = |policy| Bar::of(device.clone(), 0, BarOptions { policy, ..BarOptions::default() }).unwrap();
    let (whole, trapped) = (open(MapPolicy::Whole), open(MapPolicy::Trapped));
    std::thread::scope(|scope| {
        for bar in [&whole, &trapped, &whole, &trapped] {
            scope.spawn(move || {
                let mut bell = bar.doorbell::<u64>(0x40).unwrap();
                for n in 0..if cfg!(miri) { 10 } else { 300u64 } {
                    bell.ring(n);
                    bar.write(0x44, n as u32).unwrap();
                    bar.write(0x42, n as u8).unwrap();
                    bar.read::<u16>(0x46).unwrap();
                    bar.read::<u64>(0x40).unwrap();
                }
            });
        }
    });
    trapped.write(0x40, 0x1122_3344_5566_7788u64).unwrap();
    assert_eq!(whole.read::<u64>(0x40).unwrap(), 0x1122_3344_5566_7788);
}

/// As `std::mem::forget`, but that a leak checker sees that it is meant.
fn forget(item: impl Send + 'static) {
    static FORGOTTEN: Mutex<Vec<Box<dyn Any + Send>>> = Mutex::new(Vec::new());
    FORGOTTEN.lock().unwrap().push(Box::new(ManuallyDrop::new(item)));
}

/// A guard that is forgotten leaks what it guards, and that stays what it was.
#[test]
fn guards_that_are_forgotten_keep_what_they_guard() {
    let device = Anything::idle();
    let bar = Bar::of(device.clone(), 0, BarOptions::default()).unwrap();
    let arena = arena();
    let pool = Pool::new(arena.clone(), 8, 64, 64).unwrap();
    let mut cache = pool.cache(2);
    cache.put(pool.get().unwrap());
    let (kept, mapping) = (pool.get().unwrap(), device.dma().attach(arena.clone()).unwrap());
    let iova = mapping.iova();
    let chunk = arena.alloc(256, 64).unwrap();
    let ring = DmaRing::<AtomicU32>::within(&chunk, 0, 16).unwrap();
    let (producer, mut consumer) = spsc::<Buf>(4).unwrap();
    let domain = Domain::new();
    forget(bar.doorbell::<u32>(0).unwrap());
    forget(bar.clone());
    forget(bar);
    forget(mapping);
    forget(chunk);
    forget(ring);
    forget(cache);
    forget(producer);
    forget(domain.join(7));
    // Nobody else gets what they had.
    assert_eq!((device.dma().mapped(), device.dma().attach(arena.clone()).unwrap().iova()), (1, iova));
    let rest: Vec<_> = std::iter::from_fn(|| arena.alloc(4096, 64).ok()).collect();
    assert!(rest.len() as u64 <= (arena.len() - 256 - 8 * 64) / 4096);
    assert!(consumer.pop().is_none());
    domain.stop();
    assert_eq!((domain.waiting(), domain.expel(), domain.waiting()), (vec![7], vec![7], vec![]));
    // A pool with buffers out, forgotten or not, is never freed under them.
    forget(pool.get().unwrap());
    drop(pool);
    drop((rest, device));
    let mut kept = kept;
    kept.set_len(64);
    kept.bytes_mut().fill(7);
    assert_eq!(kept.bytes(), [7; 64]);
    forget(kept);
}

/// An item whose drop may panic, and that counts.
struct Fragile<'a>(&'a AtomicUsize, bool);

impl Drop for Fragile<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
        if self.1 && !std::thread::panicking() {
            std::panic::resume_unwind(Box::new("a drop that panics"));
        }
    }
}

/// Leaked at most: none is dropped twice.
#[test]
fn items_are_dropped_once_whatever_panics() {
    for bad in 0..6 {
        let dropped = AtomicUsize::new(0);
        let items = || (0..6).map(|i| Fragile(&dropped, i == bad)).collect::<Vec<_>>();
        let ring = Ring::new(8).unwrap();
        assert!(ring.push_bulk(&mut items()));
        assert!(catch_unwind(AssertUnwindSafe(|| drop(ring))).is_err());
        assert!((1..=6).contains(&dropped.swap(0, Ordering::Relaxed)));

        let (mut put, take) = spsc(8).unwrap();
        assert!(put.push_bulk(&mut items()));
        drop(take);
        assert!(catch_unwind(AssertUnwindSafe(|| drop(put))).is_err());
        assert!((1..=6).contains(&dropped.swap(0, Ordering::Relaxed)));

        // What is left after a panic in the middle of using them is what was not taken.
        let (ring, mut stash) = (Ring::new(8).unwrap(), Stash::new(2));
        stash.push_bulk(&mut items(), &ring);
        let caught = catch_unwind(AssertUnwindSafe(|| {
            while let Some(item) = stash.pop(&ring) {
                drop(item);
            }
        }));
        assert!(caught.is_err());
        drop((stash, ring));
        assert_eq!(dropped.load(Ordering::Relaxed), 6);
    }
}

/// A device that goes on writing a buffer that it was given once, and a driver that does not trust it.
#[test]
fn a_copy_is_sound_whatever_a_device_writes() {
    let (arena, stop) = (arena(), Arc::new(AtomicBool::new(false)));
    let at = Arc::new(AtomicU64::new(0));
    let on_poll = {
        let (at, mut n) = (at.clone(), 0u8);
        move |host: &mut Host<'_>| {
            n = n.wrapping_add(1);
            if let Some(memory) = host.dma(Iova(at.load(Ordering::Relaxed)), 100) {
                memory.write(0, &[n; 100]);
            }
        }
    };
    let model = Anything::new(Pages::new(SIZE).unwrap(), Box::new(on_poll)).start();
    let mapping = model.dma().attach(arena.clone()).unwrap();
    let pool = Pool::new(arena, 1, 100, 64).unwrap();
    let buf = pool.get_len(100).unwrap();
    at.store(mapping.iova().offset(buf.arena_offset()).0, Ordering::Relaxed);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                model.step();
            }
        });
        let mut out = [0; 100];
        while out[99] == 0 {
            assert_eq!(buf.copy_to(&mut out), 100);
            std::thread::yield_now();
        }
        for _ in 0..if cfg!(miri) { 5 } else { 1000 } {
            buf.copy_to(&mut out);
            // By words: some of them may be newer than others, but none is torn.
            assert!(out.chunks(4).all(|word| word.iter().all(|b| *b == word[0])));
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// A device whose every answer is a lie of the given kind, in front of one that is there.
struct Liar {
    device: Arc<dyn PciDevice>,
    size: u64,
    page: PageSize,
    map: fn(Range<u64>) -> Range<u64>,
}

impl PciDevice for Liar {
    fn name(&self) -> &str {
        "liar"
    }
    fn kind(&self) -> DeviceKind {
        DeviceKind::Kernel
    }
    fn info(&self) -> DeviceInfo {
        DeviceInfo { regions: u32::MAX, irqs: u32::MAX, resettable: true }
    }
    fn page_size(&self) -> PageSize {
        self.page
    }
    fn isolation(&self) -> Isolation {
        Isolation::by_construction()
    }
    fn region(&self, index: u32) -> Result<RegionInfo> {
        let mut info = self.device.region(index)?;
        if index == 0 {
            info.size = self.size;
            info.caps = vec![
                RegionCap::MsixMappable,
                RegionCap::SparseMmap(vec![0..u64::MAX, Range { start: 8, end: 4 }, 0..self.size]),
            ];
        }
        Ok(info)
    }
    fn read(&self, region: u32, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.device.read(region, offset, buf)
    }
    fn write(&self, region: u32, offset: u64, buf: &[u8]) -> Result<()> {
        self.device.write(region, offset, buf)
    }
    fn map(&self, region: u32, range: Range<u64>, prot: Prot) -> Result<RegionMapping> {
        self.device.map(region, (self.map)(range), prot)
    }
    fn irq_info(&self, kind: Irq) -> Result<IrqInfo> {
        self.device.irq_info(kind)
    }
    fn set_irqs(&self, kind: Irq, first: u32, action: IrqAction<'_>) -> Result<()> {
        self.device.set_irqs(kind, first, action)
    }
    fn dma(&self) -> Arc<DmaSpace> {
        self.device.dma()
    }
    fn reset(&self) -> Result<()> {
        self.device.reset()
    }
}

fn touch<T: Width>(bar: &Bar, at: u64) {
    let Ok(value) = bar.read::<T>(at) else { return };
    let _ = bar.write(at, value);
    if let Ok(mut bell) = bar.doorbell::<T>(at) {
        bell.ring(value);
    }
}

#[test]
fn a_device_that_lies_about_everything_gives_no_memory_that_is_not_its() {
    let maps: [fn(Range<u64>) -> Range<u64>; 4] = [
        |range| range,
        |range| range.start..range.start + 4096,
        |_| 0..0x2000,
        |range| range.start..range.end.min(SIZE),
    ];
    // Miri takes its time; it sees one of each.
    let some = |n: usize| if cfg!(miri) { 1 } else { n };
    for size in [2 * SIZE, SIZE, 0x3001, 1 << 63, u64::MAX].into_iter().take(2 * some(5)) {
        for page in [PageSize::host(), PageSize::K64].into_iter().take(some(2)) {
            for map in maps.into_iter().skip(4 - 2 * some(2)).take(2 * some(2)) {
                let device: Arc<dyn PciDevice> = Arc::new(Liar { device: Anything::idle(), size, page, map });
                for policy in [MapPolicy::Whole, MapPolicy::Carved, MapPolicy::Auto] {
                    let Ok(mut plan) = plan_of(device.as_ref(), 0, BarOptions { policy, ..BarOptions::default() })
                    else {
                        continue;
                    };
                    // Plans are anybody's to write, too.
                    for bend in [0, 8, 1, u64::MAX / 2].into_iter().take(2 * some(2)) {
                        if let Some(span) = plan.spans.last_mut() {
                            span.range.start = span.range.start.wrapping_add(bend);
                        }
                        let Ok(bar) = Bar::open(device.clone(), plan.clone()) else { continue };
                        let places = [0, 0x0ffc, 0x1ff8, SIZE - 8, SIZE, 8, 0x1000, 0x2000, size - 8, size & !7, !7];
                        for at in places.into_iter().take(5 * some(3)) {
                            touch::<u8>(&bar, at);
                            touch::<u16>(&bar, at);
                            touch::<u32>(&bar, at);
                            touch::<u64>(&bar, at);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_model_that_lies_about_its_memory_is_refused() {
    let pages = Pages::new(4096).unwrap();
    let mut model = Anything::new(pages.clone(), Box::new(|_| ()));
    let msix = |vectors| MsixPlace {
        table_bar: 0,
        table_offset: u64::MAX - 64,
        pba_bar: 0,
        pba_offset: u64::MAX - 8,
        vectors,
    };
    model.shape.msix = Some(msix(4));
    model.shape.irqs = vec![IrqInfo { count: 16, eventfd: true, maskable: true, ..IrqInfo::default() }; 3];
    // More than there is, the wrong way round, past the last address.
    model.shape.regions[0].size = u64::MAX;
    model.shape.regions[0].direct = vec![Range { start: 8192, end: 0 }, 0..u64::MAX, u64::MAX - 4096..u64::MAX];
    let device = model.start();
    let mut word = [0; 8];
    for at in [0, 4088, 4096, 1 << 40, u64::MAX - 8, u64::MAX] {
        assert_eq!(device.read(0, at, &mut word).is_ok(), at < 4096, "{at:#x}");
        // At the end there would be the MSI-X table, where writes are dropped.
        assert_eq!(device.write(0, at, &word).is_ok(), at < 4096 || at == u64::MAX - 8, "{at:#x}");
    }
    for range in [0..8192, 4096..8192, 0..u64::MAX, 1 << 40..(1 << 40) + 4096] {
        assert!(device.map(0, range, Prot::ReadWrite).is_err());
    }
    device.set_irqs(Irq::Msix, 0, IrqAction::Fds(&[None; 16])).unwrap();
    assert!(device.set_irqs(Irq::Msix, u32::MAX, IrqAction::Fds(&[None; 2])).is_err());
    assert!(device.set_irqs(Irq::Msix, 1, IrqAction::Trigger(u32::MAX)).is_err());
    assert!(device.set_irqs(Irq::Msi, u32::MAX, IrqAction::Mask(2)).is_err());
    device.set_irqs(Irq::Msix, 0, IrqAction::Disable).unwrap();
}

/// How maps are made, by one who says yes to everything, has them where he likes, and panics in the middle.
struct Yes {
    fixed: Option<Iova>,
    windows: Vec<IovaWindow>,
    panics: Arc<AtomicBool>,
}

impl Yes {
    fn or_panic(&self) -> Result<()> {
        match self.panics.load(Ordering::Relaxed) {
            true => std::panic::resume_unwind(Box::new("a backend that panics")),
            false => Ok(()),
        }
    }
}

impl DmaBackend for Yes {
    fn windows(&self) -> Vec<IovaWindow> {
        self.windows.clone()
    }
    fn max_maps(&self) -> Option<usize> {
        None
    }
    fn map(&self, _: Arc<Arena>, _: Iova) -> Result<()> {
        self.or_panic()
    }
    fn unmap(&self, _: Iova, _: u64) -> Result<()> {
        self.or_panic()
    }
    fn fixed(&self, _: &Arena) -> Result<Option<Iova>> {
        Ok(self.fixed)
    }
}

#[test]
fn addresses_that_cannot_be_are_refused() {
    let windows = |range| vec![IovaWindow { range, page: PageSize::K4 }];
    for fixed in [0, 1, u64::MAX, !0xffff, u64::MAX - 0xfff, 1 << 63] {
        let space =
            DmaSpace::new(Box::new(Yes { fixed: Some(Iova(fixed)), windows: vec![], panics: Arc::default() })).unwrap();
        if let Ok(mapping) = space.attach(arena()) {
            assert!(mapping.iova() == Iova(fixed) && fixed.checked_add(mapping.arena().len() - 1).is_some());
        }
    }
    for range in [u64::MAX..=u64::MAX, u64::MAX - 0x1ffff..=u64::MAX, 0..=u64::MAX, 0..=0] {
        let space =
            DmaSpace::new(Box::new(Yes { fixed: None, windows: windows(range), panics: Arc::default() })).unwrap();
        let held: Vec<_> = (0..4).map_while(|_| space.attach(arena()).ok()).collect();
        for (one, other) in held.iter().zip(held.iter().skip(1)) {
            assert!(one.iova().0 + one.arena().len() <= other.iova().0);
        }
    }
}

/// Where a backend panics nobody knows whether a device reaches the memory: it is kept, and so is its address.
#[test]
fn a_backend_that_panics_keeps_address_and_memory() {
    let panics: Arc<AtomicBool> = Arc::default();
    let windows = vec![IovaWindow { range: 0..=(1 << 20) - 1, page: PageSize::K4 }];
    let space = DmaSpace::new(Box::new(Yes { fixed: None, windows, panics: panics.clone() })).unwrap();
    let (one, other) = (arena(), arena());
    let mapping = space.attach(one.clone()).unwrap();
    let iova = mapping.iova();
    panics.store(true, Ordering::Relaxed);
    assert!(catch_unwind(AssertUnwindSafe(|| drop(mapping))).is_err());
    assert!(catch_unwind(AssertUnwindSafe(|| space.attach(other.clone()))).is_err());
    panics.store(false, Ordering::Relaxed);
    assert_eq!((space.mapped(), Arc::strong_count(&one), Arc::strong_count(&other)), (2, 2, 2));
    let again = [space.attach(one).unwrap(), space.attach(other).unwrap()];
    assert!(again.iter().all(|mapping| mapping.iova() > iova) && space.mapped() == 4);
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let arena = arena();
    let chunk = arena.alloc(4096, 64).unwrap();
    for (len, align) in [(u64::MAX, 1), (u64::MAX - 126, 128), (1 << 63, 1 << 63), (0, u64::MAX)] {
        assert!(arena.alloc(len, align).is_err());
    }
    for (count, size, align) in
        [(u32::MAX, u32::MAX, 1), (2, u32::MAX, 1 << 31), (1 << 31, 8, 1 << 31), (1, 1, 1 << 31)]
    {
        assert!(Pool::new(arena.clone(), count, size, align).is_err());
    }
    assert!(DmaRing::<[AtomicU64; 1 << 57]>::new(arena.clone(), 16, 8).is_err());
    assert!(DmaRing::<[[AtomicU16; 1 << 30]; 1 << 29]>::within(&chunk, 0, 8).is_err());
    assert!(DmaRing::<Field<AtomicU8, 5, { 1 << 40 }>>::within(&chunk, 0, 1 << 24).is_err());
    // No bytes at all are a ring of which nothing can be reached.
    let nothing = DmaRing::<[AtomicU64; 0]>::within(&chunk, 4096, 1 << 31).unwrap();
    assert_eq!((nothing.at(u32::MAX).len(), nothing.len()), (0, 1 << 31));
    for (offset, len) in [(4096, 1), (u64::MAX, 1), (u64::MAX - 3, 8), (1, 4096)] {
        assert!(matches!(chunk.write(offset, &vec![0; len]), Err(Error::OutOfRange { .. })));
        assert!(matches!(chunk.read(offset, &mut vec![0; len]), Err(Error::OutOfRange { .. })));
    }
    assert!(Ring::<u64>::new(1 << 62).is_err() && Ring::<[u64; 1 << 30]>::new(1 << 40).is_err());
    let units = Ring::<()>::new(1 << 63).unwrap();
    assert!(
        units.push_bulk(&mut vec![(); 1 << 20]) && units.pop_bulk(&mut Vec::new(), 1 << 20) && units.pop().is_none()
    );
    assert!(!units.pop_bulk(&mut Vec::new(), usize::MAX));
    fn is_shared<T: Shared>() {}
    is_shared::<Field<[AtomicU16; 2], 12, 16>>();
}

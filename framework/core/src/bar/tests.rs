//! BARs over a device in this process: what is reached, what is refused, under every plan. All of it runs under Miri.

use super::*;
use crate::mem::{Arena, ArenaOptions, DmaSpace, Iova};
use crate::model::{Host, InProcess, Model, ModelRegion, MsixPlace, Pages, Refused, Shape};
use crate::pci::config::{enable_bus_master, enable_memory};
use crate::pci::{
    CONFIG, Config, DeviceInfo, DeviceKind, Irq, IrqAction, IrqInfo, Isolation, RegionInfo, RegionMapping, Verdict,
};
use crate::{PageSize, Work};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

const SIZE: u64 = 0x10000;
/// Written with an IOVA, it has the device copy the 8 bytes there into [`COPY`], once, and then the IOVA into [`DONE`].
const BELL: u64 = 0x3000;
const DONE: u64 = 0x3004;
const COPY: u64 = 0x3008;
const TABLE: u64 = 0x1000;
const VECTORS: u32 = 70;
/// Right behind the PBA, in the same 4 KiB.
const CLEAR: u64 = 0x2010;

/// One BAR: registers, the table in a page of its own, the PBA with registers behind it, a doorbell.
struct Board {
    page: PageSize,
    direct: Vec<Range<u64>>,
    pages: Arc<Pages>,
    config: Vec<u8>,
    /// Configuration space is to be had by 4 bytes at most.
    narrow: bool,
    rung: u32,
}

impl Board {
    fn new() -> Self {
        let mut config = vec![0; 256];
        config[0x00..0x04].copy_from_slice(&[0x34, 0x12, 0x78, 0x56]);
        config[0x06] = 0x10;
        config[0x34] = 0x40;
        config[0x40..0x44].copy_from_slice(&[0x11, 0, (VECTORS - 1) as u8, 0]);
        config[0x44..0x48].copy_from_slice(&(TABLE as u32).to_le_bytes());
        config[0x48..0x4c].copy_from_slice(&0x2000u32.to_le_bytes());
        Self {
            page: PageSize::K4,
            direct: vec![0..SIZE],
            pages: Pages::new(SIZE).unwrap(),
            config,
            narrow: false,
            rung: 0,
        }
    }

    fn start(self) -> Arc<dyn PciDevice> {
        InProcess::new(self).unwrap()
    }
}

impl Model for Board {
    fn shape(&self) -> Shape {
        let region = ModelRegion { size: SIZE, pages: Some(self.pages.clone()), direct: self.direct.clone() };
        let config = ModelRegion { size: self.config.len() as u64, ..ModelRegion::default() };
        let none = ModelRegion::default;
        let msix = MsixPlace { table_bar: 0, table_offset: TABLE, pba_bar: 0, pba_offset: 0x2000, vectors: VECTORS };
        let irq = |count| IrqInfo { count, eventfd: true, ..IrqInfo::default() };
        Shape {
            name: "board".to_owned(),
            page: self.page,
            regions: vec![region, none(), none(), none(), none(), none(), none(), config],
            irqs: vec![irq(0), irq(0), irq(VECTORS)],
            msix: Some(msix),
        }
    }

    fn read(&mut self, region: u32, offset: u64, buf: &mut [u8]) -> Result<(), Refused> {
        match region {
            CONFIG if self.narrow && buf.len() > 4 => return Err(Refused(libc::EINVAL)),
            CONFIG => buf.copy_from_slice(&self.config[offset as usize..][..buf.len()]),
            _ => buf.fill(0xff),
        }
        Ok(())
    }

    fn write(&mut self, region: u32, offset: u64, buf: &[u8]) -> Result<(), Refused> {
        if region == CONFIG {
            self.config[offset as usize..][..buf.len()].copy_from_slice(buf);
        }
        Ok(())
    }

    fn reset(&mut self) {}

    fn poll(&mut self, host: &mut Host<'_>) -> Work {
        let memory = &self.pages;
        // Pairs with the doorbell: what the driver stored before it rang must be seen by the relaxed load below.
        let rung = memory.u32(BELL).unwrap().load(Ordering::Acquire);
        let iova = Iova(u32::from_le(rung).into());
        let word = host.dma(iova, 8).and_then(|dma| dma.u64(0)).filter(|_| rung != self.rung);
        let Some(word) = word else { return Work::Idle };
        self.rung = rung;
        memory.u64(COPY).unwrap().store(word.load(Ordering::Relaxed), Ordering::Relaxed);
        // Pairs with the driver's read of it: the copy is there before it says so.
        memory.u32(DONE).unwrap().store(rung, Ordering::Release);
        Work::Busy
    }
}

const POLICIES: [MapPolicy; 4] = [MapPolicy::Auto, MapPolicy::Whole, MapPolicy::Carved, MapPolicy::Trapped];

fn open(device: Arc<dyn PciDevice>, policy: MapPolicy, page: Option<PageSize>) -> Bar {
    Bar::of(device, 0, BarOptions { policy, page, registers: &[CLEAR..CLEAR + 8] }).unwrap()
}

/// Every plan that a 4 KiB device can be opened with.
fn every_plan(device: Arc<dyn PciDevice>) -> Vec<Bar> {
    let pages = [None, Some(PageSize::K16), Some(PageSize::K64)];
    POLICIES.into_iter().flat_map(|policy| pages.map(|page| open(device.clone(), policy, page))).collect()
}

#[test]
fn registers_are_the_same_under_every_plan() {
    let device = Board::new().start();
    let bars = every_plan(device.clone());
    for (n, writer) in bars.iter().enumerate() {
        let n = n as u32 + 1;
        writer.write(0x10, n).unwrap();
        writer.window(0x2010..0x2018).unwrap().write(0, u64::from(n) << 32).unwrap();
        writer.doorbell::<u16>(0x3ffe).unwrap().ring(n as u16);
        writer.write(SIZE - 1, n as u8).unwrap();
        for reader in &bars {
            assert_eq!(reader.read::<u32>(0x10).unwrap(), n, "{:?}", reader.plan());
            assert_eq!(reader.read::<u64>(CLEAR).unwrap(), u64::from(n) << 32);
            assert_eq!(reader.window(0x3000..0x4000).unwrap().read::<u16>(0xffe).unwrap(), n as u16);
            assert_eq!(reader.read::<u8>(SIZE - 1).unwrap(), n as u8);
        }
    }
}

#[test]
fn doorbells_are_counted_as_what_they_are() {
    let device = Board::new().start();
    // At 4 KiB; at 64 KiB, where the doorbell shares the table's page.
    for (policy, direct) in [
        (MapPolicy::Auto, [true, true]),
        (MapPolicy::Whole, [true, true]),
        (MapPolicy::Carved, [true, false]),
        (MapPolicy::Trapped, [false, false]),
    ] {
        for (page, direct) in [PageSize::K4, PageSize::K64].into_iter().zip(direct) {
            let mut bell = open(device.clone(), policy, Some(page)).doorbell::<u32>(0x3100).unwrap();
            (0..3).for_each(|n| bell.ring(n));
            let counts = bell.counts();
            assert_eq!(
                (bell.is_direct(), counts.direct, counts.trapped),
                match direct {
                    true => (true, 3, 0),
                    false => (false, 0, 3),
                }
            );
        }
    }
}

#[test]
fn table_and_pba_are_out_of_reach() {
    let device = Board::new().start();
    let guarded = [(TABLE..TABLE + 16 * u64::from(VECTORS), "table"), (0x2000..0x2010, "PBA")];
    for bar in every_plan(device.clone()) {
        for (range, name) in &guarded {
            let refused = |e: Option<Error>| matches!(e, Some(Error::Guarded { what, .. }) if what == *name);
            for at in (range.start..range.end).step_by(if cfg!(miri) { 248 } else { 8 }) {
                assert!(refused(bar.read::<u64>(at).err()) && refused(bar.write(at, 0u64).err()));
                assert!(refused(bar.read::<u8>(at + 7).err()) && refused(bar.write(at + 4, 0u16).err()));
                assert!(refused(bar.doorbell::<u32>(at + 4).err()) && refused(bar.window(at..at + 1).err()));
            }
            assert!(refused(bar.window(range.start - 8..range.start + 1).err()));
            assert!(refused(bar.window(range.end - 1..range.end + 8).err()));
            assert!(bar.window(range.start - 8..range.start).is_ok() && bar.window(range.end..range.end + 8).is_ok());
        }
        assert!(matches!(bar.window(0..SIZE).err(), Some(Error::Guarded { .. })));
    }
}

#[test]
fn what_is_outside_or_unaligned_is_refused() {
    let device = Board::new().start();
    for bar in every_plan(device.clone()) {
        assert!(matches!(bar.read::<u32>(2), Err(Error::Unaligned { .. })));
        assert!(matches!(bar.doorbell::<u16>(0x3001).err(), Some(Error::Unaligned { .. })));
        for at in [SIZE, SIZE - 4, !7] {
            let refused = bar.write(at, 0u64).err();
            assert!(matches!(refused, Some(Error::OutOfRange { .. } | Error::Unaligned { .. })), "{at:#x}");
        }
        for range in [SIZE - 4..SIZE + 4, 0x3000..0x3000, u64::MAX - 1..u64::MAX] {
            assert!(matches!(bar.window(range).err(), Some(Error::OutOfRange { .. })));
        }
        #[allow(clippy::reversed_empty_ranges)]
        let reversed = 0x3008..0x3000;
        assert!(bar.window(reversed).is_err());
        let window = bar.window(0x3000..0x3010).unwrap();
        assert_eq!(window.len(), 0x10);
        for at in [0x10, !7, (u64::MAX - 0x2fff) & !7] {
            assert!(matches!(window.read::<u64>(at), Err(Error::OutOfRange { .. })));
        }
    }
}

#[test]
fn a_plan_that_is_not_the_devices_cannot_be_opened() {
    let device = Board::new().start();
    let plan = plan_of(device.as_ref(), 0, BarOptions::default()).unwrap();
    let refused = |plan: BarPlan| matches!(Bar::open(device.clone(), plan).err(), Some(Error::Plan { .. }));
    assert!(!refused(plan.clone()));
    let forged = |change: &dyn Fn(&mut BarLayout)| {
        let mut layout = plan.layout.clone();
        change(&mut layout);
        let region = device.region(0).unwrap();
        super::plan(&layout, &region, PageSize::K4, &device.isolation(), MapPolicy::Whole)
    };
    assert!(refused(forged(&|l| l.table = None)));
    assert!(refused(forged(&|l| l.pba = None)));
    assert!(refused(forged(&|l| l.table = Some(TABLE..TABLE + 16))));
    assert!(refused(forged(&|l| l.size *= 2)));
    assert_eq!(
        Bar::open(device.clone(), forged(&|l| l.table = None)).unwrap_err().to_string(),
        "board: the plan is not one for BAR0: it is for BAR0 of 0x10000 bytes, no MSI-X table, PBA at 0x2000..0x2010, \
         and the device has BAR0 of 0x10000 bytes, MSI-X table at 0x1000..0x1460, PBA at 0x2000..0x2010"
    );
    assert!(matches!(Bar::open(device.clone(), forged(&|l| l.bar = 1)), Err(Error::NoSuchRegion { .. })));
    assert!(matches!(Bar::open(device.clone(), forged(&|l| l.bar = 7)), Err(Error::NoSuchRegion { .. })));
    let mut spans = plan.clone();
    spans.spans[0].range.end += 1 << 32;
    assert!(Bar::open(device.clone(), spans).is_err());

    let large = Board { page: PageSize::K64, ..Board::new() }.start();
    let options = |page| BarOptions { page: Some(page), ..BarOptions::default() };
    assert!(matches!(Bar::of(large.clone(), 0, options(PageSize::K4)).err(), Some(Error::Plan { .. })));
    assert!(Bar::of(large, 0, options(PageSize::K64)).is_ok());
}

#[test]
fn a_table_that_cannot_be_there_is_an_error() {
    let with = |at: usize, bytes: u32| {
        let mut board = Board::new();
        board.config[at..at + 4].copy_from_slice(&bytes.to_le_bytes());
        board.start()
    };
    let past = with(0x44, SIZE as u32 - 8);
    assert!(matches!(layouts(past.as_ref()), Err(Error::Config { .. })));
    assert!(matches!(Bar::of(past, 0, BarOptions::default()).err(), Some(Error::Config { .. })));
    assert!(matches!(layouts(with(0x48, SIZE as u32).as_ref()), Err(Error::Config { .. })));
    assert!(matches!(layouts(with(0x44, 0x1007).as_ref()), Err(Error::Config { .. })));
    assert!(matches!(layouts(with(0x44, 0x1003).as_ref()), Err(Error::Config { .. })));
    let last = with(0x48, SIZE as u32 - 16);
    assert_eq!(layout(last.as_ref(), 0).unwrap().pba, Some(SIZE - 16..SIZE));
}

#[test]
fn configuration_space_is_read_as_the_backend_lets_it() {
    let whole = Config::of(Board::new().start().as_ref()).unwrap();
    let narrow = Config::of(Board { narrow: true, ..Board::new() }.start().as_ref()).unwrap();
    assert_eq!(whole.bytes(), narrow.bytes());
    assert_eq!((whole.vendor(), whole.msix().unwrap().unwrap().vectors), (0x1234, VECTORS as u16));

    let of = |config| Config::of(Board { config, ..Board::new() }.start().as_ref());
    assert!(matches!(of(vec![0xff; 256]), Err(Error::Gone { .. })));
    assert!(matches!(of(vec![0xff; 32]), Err(Error::Config { .. })));
    assert!(matches!(of(Vec::new()), Err(Error::Config { .. })));
    assert_eq!(of(vec![0; 131]).unwrap().bytes().len(), 128);
}

#[test]
fn command_bits_are_set_one_by_one() {
    let device = Board::new().start();
    let device = device.as_ref();
    let bits = || Config::of(device).map(|c| (c.is_bus_master(), c.memory_enabled(), c.command(), c.status())).unwrap();
    assert_eq!(bits(), (false, false, 0, 0x10));
    device.write(CONFIG, 4, &[0x40, 0x04]).unwrap();
    enable_bus_master(device, true).unwrap();
    enable_memory(device, true).unwrap();
    assert_eq!(bits(), (true, true, 0x446, 0x10));
    enable_bus_master(device, true).unwrap();
    enable_memory(device, false).unwrap();
    assert_eq!(bits(), (true, false, 0x444, 0x10));
    enable_bus_master(device, false).unwrap();
    assert_eq!(bits(), (false, false, 0x440, 0x10));
}

#[test]
fn the_table_is_shown_as_the_device_has_it() {
    let eventfd = crate::irq::EventFd::new().unwrap();
    let mut sparse = Board::new();
    sparse.direct = vec![0..TABLE, 0x2000..SIZE];
    for (board, mapped) in [(Board::new(), true), (sparse, false)] {
        let pages = board.pages.clone();
        let device = board.start();
        let table = MsixTable::of(device.clone()).unwrap().unwrap();
        assert_eq!((table.len(), table.capability().table_offset), (VECTORS, TABLE as u32));
        device.set_irqs(Irq::Msix, 69, IrqAction::Fds(&[Some(eventfd.as_fd())])).unwrap();
        let entry = table.entry(69).unwrap();
        assert_eq!(entry.mapped, mapped);
        match mapped {
            true => assert_eq!((entry.address, entry.is_masked()), (0xfee0_0000, false)),
            // What kernels say, too.
            false => assert_eq!((entry.address, entry.data, entry.control), (u64::MAX, u32::MAX, u32::MAX)),
        }
        pages.u32(0x2008).unwrap().store((1u32 << 5).to_le(), Ordering::Release);
        let pending: Vec<_> = (0..VECTORS).filter(|v| table.is_pending(*v).unwrap()).collect();
        assert_eq!(pending, [69]);
        assert!(matches!(table.entry(VECTORS), Err(Error::OutOfRange { .. })));
        assert!(matches!(table.is_pending(u32::MAX), Err(Error::OutOfRange { .. })));
        for bar in [&table.table, &table.pba] {
            assert!(bar.shared.maps.iter().all(|(_, mapping)| mapping.prot() == Prot::Read));
        }
    }
    let mut without = Board::new();
    without.config[0x06] = 0;
    assert!(MsixTable::of(without.start()).unwrap().is_none());
}

#[test]
fn a_doorbell_publishes_what_was_stored_before() {
    let model = InProcess::new(Board::new()).unwrap();
    let device: Arc<dyn PciDevice> = model.clone();
    let arena = Arena::new(1 << 16, ArenaOptions::default()).unwrap();
    let at = device.dma().attach(arena.clone()).unwrap();
    for policy in POLICIES {
        let bar = open(device.clone(), policy, None);
        let mut bell = bar.doorbell::<u32>(BELL).unwrap();
        bell.ring(0);
        model.spawn(|| {}).unwrap();
        for round in 1..if cfg!(miri) { 8u64 } else { 200 } {
            let place = round * 8;
            arena.mapping().u64(place).unwrap().store((round + u64::from(bell.is_direct())).to_le(), Ordering::Relaxed);
            let iova = u32::try_from(at.iova().0 + place).unwrap();
            bell.ring(iova);
            while bar.read::<u32>(DONE).unwrap() != iova {
                std::thread::yield_now();
            }
            assert_eq!(bar.read::<u64>(COPY).unwrap(), round + u64::from(bell.is_direct()), "{policy:?}");
        }
    }
}

/// A device that is lost at the flick of a switch, and may map less than it was asked for.
struct Frail {
    device: Arc<dyn PciDevice>,
    lost: AtomicBool,
    short: bool,
}

impl PciDevice for Frail {
    fn name(&self) -> &str {
        self.device.name()
    }
    fn kind(&self) -> DeviceKind {
        self.device.kind()
    }
    fn info(&self) -> DeviceInfo {
        self.device.info()
    }
    fn page_size(&self) -> PageSize {
        self.device.page_size()
    }
    fn isolation(&self) -> Isolation {
        Isolation { verdict: Verdict::NotIsolated, evidence: Vec::new() }
    }
    fn region(&self, index: u32) -> Result<RegionInfo> {
        self.device.region(index)
    }
    fn read(&self, region: u32, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.device.read(region, offset, buf)
    }
    fn write(&self, region: u32, offset: u64, buf: &[u8]) -> Result<()> {
        match self.lost.load(Ordering::Relaxed) {
            true => Err(Error::Gone { device: self.name().to_owned(), why: format!("at {offset:#x}") }),
            false => self.device.write(region, offset, buf),
        }
    }
    fn map(&self, region: u32, range: Range<u64>, prot: Prot) -> Result<RegionMapping> {
        let end = if self.short { range.end - self.page_size().bytes() } else { range.end };
        self.device.map(region, range.start..end, prot)
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

#[test]
fn a_trapped_doorbell_that_failed_is_remembered() {
    let frail = Arc::new(Frail { device: Board::new().start(), lost: AtomicBool::new(false), short: false });
    let device: Arc<dyn PciDevice> = frail.clone();
    // Not isolated: carved by itself.
    let bar = Bar::of(device, 0, BarOptions { page: Some(PageSize::K16), ..BarOptions::default() }).unwrap();
    assert_eq!(bar.plan().policy, MapPolicy::Carved);
    let (mut trapped, mut direct) = (bar.doorbell::<u32>(BELL).unwrap(), bar.doorbell::<u32>(0x4000).unwrap());
    trapped.ring(0);
    assert!(!bar.failed());
    frail.lost.store(true, Ordering::Relaxed);
    direct.ring(1);
    assert!(matches!(bar.write(BELL, 0u32), Err(Error::Gone { .. })), "told to the caller");
    assert!(!bar.failed());
    trapped.ring(1);
    trapped.ring(2);
    assert!(bar.failed());
    assert!(bar.failure().is_some_and(|e| e.to_string().ends_with("at 0x3000")));
    assert_eq!((direct.counts().direct, trapped.counts().trapped), (1, 3));
}

#[test]
fn a_backend_that_maps_less_than_it_was_asked_for_is_caught() {
    let device: Arc<dyn PciDevice> =
        Arc::new(Frail { device: Board::new().start(), lost: AtomicBool::new(false), short: true });
    let whole = BarOptions { policy: MapPolicy::Whole, page: Some(PageSize::K64), registers: &[] };
    assert!(matches!(Bar::of(device, 0, whole).err(), Some(Error::Plan { .. })));
}

/// Stands in front of a device, and says of it what it likes: that it has no capabilities, and that its BARs are others.
struct Liar {
    device: Arc<dyn PciDevice>,
    /// BAR 0 is shown as BAR 2.
    moved: bool,
}

impl PciDevice for Liar {
    fn name(&self) -> &str {
        "liar"
    }
    fn kind(&self) -> DeviceKind {
        self.device.kind()
    }
    fn info(&self) -> DeviceInfo {
        self.device.info()
    }
    fn page_size(&self) -> PageSize {
        self.device.page_size()
    }
    fn isolation(&self) -> Isolation {
        Isolation::by_construction()
    }
    fn region(&self, index: u32) -> Result<RegionInfo> {
        self.device.region(if self.moved && index == 2 { 0 } else { index })
    }
    fn read(&self, region: u32, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.device.read(region, offset, buf)?;
        // STATUS bit 4: there are capabilities.
        if region == CONFIG && !self.moved && (offset..offset + buf.len() as u64).contains(&6) {
            buf[(6 - offset) as usize] = 0;
        }
        Ok(())
    }
    fn write(&self, region: u32, offset: u64, buf: &[u8]) -> Result<()> {
        self.device.write(if self.moved && region == 2 { 0 } else { region }, offset, buf)
    }
    fn map(&self, region: u32, range: Range<u64>, prot: Prot) -> Result<RegionMapping> {
        self.device.map(if self.moved && region == 2 { 0 } else { region }, range, prot)
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

/// The table is out of reach whoever stands between the BAR and the device, since the mapping itself knows where it is.
#[test]
fn a_device_that_hides_its_table_is_guarded_all_the_same() {
    for (moved, number) in [(false, 0), (true, 2)] {
        let board = Board::new();
        let pages = board.pages.clone();
        let device: Arc<dyn PciDevice> = Arc::new(Liar { device: board.start(), moved });
        for policy in POLICIES {
            let bar = Bar::of(device.clone(), number, BarOptions { policy, ..BarOptions::default() }).unwrap();
            assert_eq!((&bar.plan().layout.table, &bar.plan().layout.pba), (&None, &None), "it lies");
            for at in [TABLE, TABLE + 16 * u64::from(VECTORS) - 8, 0x2000, 0x2008] {
                if policy == MapPolicy::Trapped {
                    // No mapping: the device itself, as kernels do, takes no write there.
                    bar.write(at, u64::MAX).unwrap();
                } else {
                    let refused = |e: Option<Error>| matches!(e, Some(Error::Guarded { .. }));
                    assert!(refused(bar.write(at, u64::MAX).err()) && refused(bar.write(at + 4, 1u8).err()), "{at:#x}");
                    assert!(refused(bar.doorbell::<u32>(at).err()) && refused(bar.window(at - 8..at + 1).err()));
                }
                assert_eq!(pages.u32(at).unwrap().load(Ordering::Relaxed), 0);
            }
            bar.write(TABLE - 8, 5u64).unwrap();
            bar.write(CLEAR, 6u64).unwrap();
        }
    }
}

/// One register, in two widths, by two threads: Miri says that atomics of two widths there are a race.
#[test]
fn a_register_of_memory_has_one_width_whoever_looks() {
    const ROUNDS: u64 = if cfg!(miri) { 5 } else { 1000 };
    let device = Board::new().start();
    let bars = if cfg!(miri) {
        POLICIES.map(|policy| open(device.clone(), policy, None)).into()
    } else {
        every_plan(device.clone())
    };
    for (one, other) in bars.iter().zip(bars.iter().rev()) {
        // Its word has 8 bytes, or 4, as it happens: so has each at 0x18, and those at 0x20 are 2.
        let mut bell = one.doorbell::<u16>(0x22).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..ROUNDS {
                    one.write(0x18, n).unwrap();
                    bell.ring(n as u16);
                    one.read::<u8>(0x19).unwrap();
                }
            });
            for n in 0..ROUNDS as u32 {
                other.write(0x1c, n).unwrap();
                other.write(0x20, n).unwrap();
                other.read::<u64>(0x18).unwrap();
                other.read::<u64>(0x20).unwrap();
            }
        });
        other.write(0x18, 0x0807_0605_0403_0201u64).unwrap();
        other.write(0x1b, 0x44u8).unwrap();
        other.write(0x1e, 0x7788u16).unwrap();
        assert_eq!(one.read::<u64>(0x18).unwrap(), 0x7788_0605_4403_0201);
    }
}

//! The FPGA model, register by register: what its data sheet says.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use wholebar_core::Work;
use wholebar_core::mem::{Arena, ArenaOptions, Chunk, DmaMapping, DmaRing};
use wholebar_core::model::InProcess;
use wholebar_core::pci::{CONFIG, PciDevice};
use wholebar_sim::fpga::{self, Fpga};

struct Rig {
    device: Arc<InProcess>,
    dma: Arc<DmaMapping>,
    ring: DmaRing<[AtomicU64; 4]>,
    data: Chunk,
}

impl Rig {
    /// A device with bus mastering on, its engine running.
    fn new(entries: u32) -> Self {
        let device = InProcess::new(Fpga::new().unwrap()).unwrap();
        device.write(CONFIG, 4, &6u16.to_le_bytes()).unwrap();
        let arena = Arena::new(1 << 20, ArenaOptions::default()).unwrap();
        let dma = device.dma().attach(arena.clone()).unwrap();
        let rig = Self {
            ring: DmaRing::new(arena.clone(), entries, 64).unwrap(),
            data: arena.alloc(0x4000, 64).unwrap(),
            device,
            dma,
        };
        let base = rig.at(rig.ring.chunk());
        rig.device.write(0, fpga::RING_BASE, &base.to_le_bytes()).unwrap();
        rig.write(fpga::RING_ENTRIES, entries);
        rig.write(fpga::CONTROL, 1);
        rig.settle();
        rig
    }

    fn at(&self, chunk: &Chunk) -> u64 {
        self.dma.iova().offset(chunk.offset()).0
    }

    fn read(&self, register: u64) -> u32 {
        let mut bytes = [0; 4];
        self.device.read(0, register, &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }

    fn write(&self, register: u64, value: u32) {
        self.device.write(0, register, &value.to_le_bytes()).unwrap();
    }

    fn settle(&self) {
        while self.device.step() == Work::Busy {}
    }

    /// Posts descriptor `n`, rings, and returns its status.
    fn copy(&self, n: u32, from: u64, to: u64, what: u64) -> u64 {
        let words = self.ring.at(n);
        words.iter().zip([from, to, what, 0]).for_each(|(w, v)| w.store(v.to_le(), Ordering::Relaxed));
        self.write(fpga::TAIL, n.wrapping_add(1));
        self.settle();
        u64::from_le(words[3].load(Ordering::Acquire))
    }
}

#[test]
fn says_what_it_is() {
    let rig = Rig::new(4);
    assert_eq!((rig.read(fpga::ID), rig.read(fpga::VERSION), rig.read(fpga::STATUS)), (fpga::MAGIC, 1, 1));
    // What acts when it is accessed is not offered for mapping; the rest is.
    let region = rig.device.region(0).unwrap();
    assert_eq!(region.sparse(), Some(&[0..0x2000, 0x3000..0x4000][..]));
    assert!(rig.device.map(0, 0x2000..0x3000, wholebar_core::pci::Prot::ReadWrite).is_err());
}

#[test]
fn copies_around_the_ring() {
    let rig = Rig::new(4);
    let data = rig.at(&rig.data);
    for n in 0..10 {
        let bytes: Vec<u8> = (0..100u32).map(|i| (i + n) as u8).collect();
        rig.data.write(3, &bytes).unwrap();
        assert_eq!(rig.copy(n, data + 3, data + 0x2001, 100), fpga::DONE);
        let mut back = vec![0; 100];
        rig.data.read(0x2001, &mut back).unwrap();
        assert_eq!((back, rig.read(fpga::HEAD)), (bytes, n + 1));
    }
}

#[test]
fn a_bad_descriptor_is_refused_and_the_next_one_works() {
    let rig = Rig::new(8);
    let data = rig.at(&rig.data);
    let wild = 0xffff_0000_0000;
    assert_eq!(rig.copy(0, wild, data, 64), fpga::BAD_SOURCE);
    assert_eq!(rig.copy(1, data, wild, 64), fpga::BAD_DESTINATION);
    assert_eq!(rig.copy(2, data, data, 0), fpga::BAD_LENGTH);
    assert_eq!(rig.copy(3, data, data, (1 << 20) + 1), fpga::BAD_LENGTH);
    assert_eq!(rig.copy(4, data, u64::MAX, 64), fpga::BAD_DESTINATION);
    assert_eq!(rig.copy(5, data, data + 64, 64), fpga::DONE);
}

#[test]
fn the_engine_stops_where_it_cannot_go_on() {
    let rig = Rig::new(4);
    rig.write(fpga::TAIL, 5);
    rig.settle();
    assert_eq!(rig.read(fpga::STATUS), 2);
    assert_eq!(rig.read(fpga::IRQ_PENDING), 1 << fpga::EVENT_ERROR);
    // Clearing run brings it back.
    rig.write(fpga::CONTROL, 0);
    rig.settle();
    assert_eq!(rig.read(fpga::STATUS), 0);
    rig.write(fpga::TAIL, 0);
    rig.write(fpga::CONTROL, 1);
    rig.settle();
    assert_eq!(rig.read(fpga::STATUS), 1);
    for (base, entries) in [(0u64, 3), (0, 1), (0, 8192), (8, 4)] {
        rig.write(fpga::CONTROL, 0);
        rig.settle();
        rig.device.write(0, fpga::RING_BASE, &base.to_le_bytes()).unwrap();
        rig.write(fpga::RING_ENTRIES, entries);
        rig.write(fpga::CONTROL, 1);
        rig.settle();
        assert_eq!(rig.read(fpga::STATUS), 2, "base {base:#x}, {entries} entries");
    }
}

#[test]
fn a_ring_nobody_mapped_is_an_error() {
    let rig = Rig::new(4);
    rig.write(fpga::CONTROL, 0);
    rig.settle();
    rig.device.write(0, fpga::RING_BASE, &0x7000_0000u64.to_le_bytes()).unwrap();
    rig.write(fpga::CONTROL, 1);
    rig.settle();
    assert_eq!(rig.read(fpga::STATUS), 1);
    rig.write(fpga::TAIL, 1);
    rig.settle();
    assert_eq!(rig.read(fpga::STATUS), 2);
}

#[test]
fn without_bus_mastering_nothing_is_copied() {
    let rig = Rig::new(4);
    let data = rig.at(&rig.data);
    rig.device.write(CONFIG, 4, &2u16.to_le_bytes()).unwrap();
    assert_eq!(rig.copy(0, data, data + 64, 64), 0);
    rig.device.write(CONFIG, 4, &6u16.to_le_bytes()).unwrap();
    rig.settle();
    assert_eq!(rig.read(fpga::HEAD), 1);
}

#[test]
fn pending_events_are_cleared_by_ones() {
    let rig = Rig::new(4);
    rig.write(fpga::IRQ_TEST, 0b1110_0100);
    assert_eq!(rig.read(fpga::IRQ_PENDING), 0b1110_0100);
    // The PBA shows what waits for its enable bit.
    assert_eq!(rig.read(0x2000), 0b1110_0100);
    rig.write(fpga::IRQ_ENABLE, 0b0100_0100);
    assert_eq!(rig.read(0x2000), 0b1010_0000);
    rig.write(fpga::IRQ_CLEAR, 0b0100_0100);
    assert_eq!(rig.read(fpga::IRQ_PENDING), 0b1010_0000);
    assert_eq!((rig.read(fpga::IRQ_CLEAR), rig.read(fpga::IRQ_TEST)), (0, 0));
    // Vectors that there are not.
    rig.write(fpga::IRQ_TEST, 0x100);
    assert_eq!(rig.read(fpga::IRQ_PENDING), 0b1010_0000);
}

#[test]
fn odd_accesses_to_trapped_registers_are_refused() {
    let rig = Rig::new(4);
    assert!(rig.device.write(0, fpga::IRQ_ENABLE, &[1]).is_err());
    assert!(rig.device.write(0, 0x2ffc, &[0; 4]).is_err());
    assert!(rig.device.read(0, 0x2101, &mut [0; 4]).is_err());
    assert!(rig.device.read(0, 0x2ffe, &mut [0; 4]).is_err());
    assert!(rig.device.read(0, 0x3ffe, &mut [0; 4]).is_err());
    assert!(rig.device.write(0, 0x2004, &[0; 4]).is_ok(), "the PBA drops writes");
}

#[test]
#[cfg(not(miri))]
fn events_signal_their_vectors_once_until_cleared() {
    use wholebar_core::irq::Interrupts;
    let rig = Rig::new(4);
    let device: Arc<dyn PciDevice> = rig.device.clone();
    let interrupts = Interrupts::new(device, wholebar_core::pci::Irq::Msix, 8).unwrap();
    let (done, test) = (interrupts.vector(0).unwrap(), interrupts.vector(3).unwrap());
    rig.write(fpga::IRQ_TEST, 1 << 3);
    rig.settle();
    assert_eq!(test.take(), 0, "not enabled");
    rig.write(fpga::IRQ_ENABLE, 1 << 3 | 1);
    rig.settle();
    assert_eq!(test.take(), 1, "enabled while pending");
    rig.write(fpga::IRQ_TEST, 1 << 3);
    rig.settle();
    assert_eq!(test.take(), 0, "still pending");
    rig.write(fpga::IRQ_CLEAR, 1 << 3);
    rig.write(fpga::IRQ_TEST, 1 << 3);
    rig.settle();
    assert_eq!(test.take(), 1);
    let data = rig.at(&rig.data);
    assert_eq!(rig.copy(0, data, data + 64, 64), fpga::DONE);
    assert_eq!(done.take(), 0, "not asked for");
    assert_eq!(rig.copy(1, data, data + 64, 64 | fpga::FLAG_INTERRUPT), fpga::DONE);
    assert_eq!(done.take(), 1);
}

#[test]
fn reset_takes_all_back() {
    let rig = Rig::new(4);
    rig.write(fpga::IRQ_ENABLE, 0xff);
    rig.write(fpga::IRQ_TEST, 4);
    // By the function-level reset bit of the PCI Express capability's device control.
    rig.device.write(CONFIG, 0x68, &0x8000u16.to_le_bytes()).unwrap();
    assert_eq!((rig.read(fpga::IRQ_ENABLE), rig.read(fpga::IRQ_PENDING)), (0, 0));
    assert_eq!((rig.read(fpga::STATUS), rig.read(fpga::RING_ENTRIES), rig.read(fpga::ID)), (0, 0, fpga::MAGIC));
    rig.settle();
    assert_eq!(rig.read(fpga::STATUS), 0);
}

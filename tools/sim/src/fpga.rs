//! A model of what people build on FPGAs: a small DMA copy engine, and an interrupt block that shares its page with the MSI-X table's PBA.
//!
//! That neighbourhood is the point. The table is at offset 0 of BAR0, the PBA 8 KiB after it, and behind the PBA, in the same
//! page, lie the interrupt block's own registers: who may not map the page of the PBA can't map those.
//!
//! # Data sheet
//!
//! Vendor 0xfff0, device 0x0002, class 12h 00h (processing accelerator). One BAR of 16 KiB, 8 MSI-X vectors. All registers are little-endian.
//!
//! | offset | width | name | access | |
//! |---|---|---|---|---|
//! | 0x0000 | 8 × 16 B | MSI-X table | RO | direct |
//! | 0x2000 | 8 B | MSI-X PBA | RO | events that wait for their enable bit: PENDING & !ENABLE |
//! | 0x2100 | 32 | [`IRQ_ENABLE`] | RW | bit N: event N signals vector N |
//! | 0x2104 | 32 | [`IRQ_PENDING`] | RO | bit N: event N happened and was not cleared |
//! | 0x2108 | 32 | [`IRQ_CLEAR`] | W1C | clears these bits of PENDING; reads as 0 |
//! | 0x210c | 32 | [`IRQ_TEST`] | W | raises these events; reads as 0 |
//! | 0x3000 | 32 | [`ID`] | RO | 0x46504741, "FPGA" |
//! | 0x3004 | 32 | [`VERSION`] | RO | 1 |
//! | 0x3008 | 64 | [`RING_BASE`] | RW | device address of the descriptor ring, 64-byte aligned |
//! | 0x3010 | 32 | [`RING_ENTRIES`] | RW | a power of two, 2 to 4096 |
//! | 0x3014 | 32 | [`CONTROL`] | RW | bit 0: run. Base and entries are taken as it is set; HEAD starts at 0 |
//! | 0x3018 | 32 | [`STATUS`] | RO | bit 0: running; bit 1: stopped by an error, until run is cleared |
//! | 0x301c | 32 | [`HEAD`] | RO | how many descriptors were done since run was set; wraps |
//! | 0x3040 | 32 | [`TAIL`] | RW | doorbell: how many descriptors were posted since run was set; wraps. Set it to 0 before run |
//!
//! 0x2000 to 0x2fff act when they are accessed, so they are trapped: a call for each access, never mapped. The rest has memory semantics and can be
//! mapped: what counts there is the value. An event signals its vector when its bit of PENDING & ENABLE goes from 0 to 1.
//!
//! Events: 0, a descriptor with the interrupt flag is done ([`EVENT_DONE`]); 1, the engine stopped ([`EVENT_ERROR`]); 2 to 7, by test only.
//!
//! A descriptor is four 64-bit words: source address, destination address, length and flags, and status.
//! Length is in bits 31:0 of the third word, 1 byte to 1 MiB; bit 32 of it asks for an interrupt when done. The fourth is 0 as it is
//! posted; the engine stores one of [`DONE`], [`BAD_SOURCE`], [`BAD_DESTINATION`], [`BAD_LENGTH`] last, with Release, which pairs with the driver's
//! Acquire load of it: who sees the status sees the data. A bad descriptor does not stop the engine; a ring that can't be reached, or a
//! tail more than the ring ahead of HEAD, does.

use crate::Result;
use crate::config::{self, Config, Identity};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use wholebar_core::mem::Iova;
use wholebar_core::model::{Host, Model, ModelRegion, MsixPlace, Pages, Refused, Shape};
use wholebar_core::pci::{Irq, IrqInfo};
use wholebar_core::reactor::Armed;
use wholebar_core::{PageSize, Work};

/// Interrupt enable bits.
pub const IRQ_ENABLE: u64 = 0x2100;
/// Events that happened and were not cleared.
pub const IRQ_PENDING: u64 = 0x2104;
/// Write ones to clear pending events.
pub const IRQ_CLEAR: u64 = 0x2108;
/// Write ones to raise events.
pub const IRQ_TEST: u64 = 0x210c;
/// What the device is.
pub const ID: u64 = 0x3000;
/// Which version of it.
pub const VERSION: u64 = 0x3004;
/// Device address of the descriptor ring.
pub const RING_BASE: u64 = 0x3008;
/// How many descriptors the ring has.
pub const RING_ENTRIES: u64 = 0x3010;
/// Bit 0: run.
pub const CONTROL: u64 = 0x3014;
/// Bit 0: running; bit 1: stopped by an error.
pub const STATUS: u64 = 0x3018;
/// How many descriptors were done.
pub const HEAD: u64 = 0x301c;
/// How many descriptors were posted: the doorbell.
pub const TAIL: u64 = 0x3040;

/// What [`ID`] reads as.
pub const MAGIC: u32 = 0x4650_4741;
/// The event of a descriptor done.
pub const EVENT_DONE: u32 = 0;
/// The event of an engine that stopped.
pub const EVENT_ERROR: u32 = 1;
/// A descriptor's flag: raise [`EVENT_DONE`] when it is done.
pub const FLAG_INTERRUPT: u64 = 1 << 32;
/// A descriptor's status: copied.
pub const DONE: u64 = 1;
/// A descriptor's status: the source is not in memory that the device may read.
pub const BAD_SOURCE: u64 = 2;
/// A descriptor's status: the destination is not in memory that the device may write.
pub const BAD_DESTINATION: u64 = 3;
/// A descriptor's status: no bytes, or too many.
pub const BAD_LENGTH: u64 = 4;

const DEVICE: u16 = 0x0002;
const SIZE: u64 = 16 << 10;
const VECTORS: u32 = 8;
/// What acts when it is accessed.
const TRAPPED: std::ops::Range<u64> = 0x2000..0x3000;
const MSIX: MsixPlace = MsixPlace { table_bar: 0, table_offset: 0, pba_bar: 0, pba_offset: 0x2000, vectors: VECTORS };
const MAX_COPY: u64 = 1 << 20;
/// How many descriptors are done in one poll.
const BURST: u32 = 8;

/// The model.
pub struct Fpga {
    name: String,
    bar: Arc<Pages>,
    config: Config,
    enable: u32,
    pending: u32,
    /// Vectors to signal at the next poll.
    signal: u32,
    engine: Engine,
    bounce: Box<[u8]>,
}

/// The copy engine.
#[derive(Clone, Copy)]
enum Engine {
    Stopped,
    Running { base: u64, entries: u32, head: u32 },
    Failed,
}

impl Fpga {
    /// A device as it is after power-on.
    ///
    /// # Errors
    /// [`Error::Framework`](crate::Error::Framework) where there is no memory.
    pub fn new() -> Result<Self> {
        let (vendor, class, bars) = (config::VENDOR, 0x12_00_00, vec![(0, SIZE)]);
        let identity = Identity { vendor, device: DEVICE, class, bars, msix: Some(MSIX) };
        let mut fpga = Self {
            name: "sim:fpga".to_owned(),
            bar: Pages::new(SIZE)?,
            config: Config::new(&identity),
            enable: 0,
            pending: 0,
            signal: 0,
            engine: Engine::Stopped,
            bounce: vec![0; 4096].into(),
        };
        // Each register's width is known before anybody else looks.
        fpga.reset();
        Ok(fpga)
    }

    /// Sets what a person calls it.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    fn publish(&self) {
        self.put(ID, MAGIC);
        self.put(VERSION, 1);
    }

    /// Takes the ring, if it makes sense.
    fn start(&mut self) {
        let base = self.bar.u64(RING_BASE).map_or(0, |r| u64::from_le(r.load(Ordering::Acquire)));
        let entries = self.get(RING_ENTRIES);
        self.put(HEAD, 0);
        if entries.is_power_of_two() && (2..=4096).contains(&entries) && base.is_multiple_of(64) {
            self.engine = Engine::Running { base, entries, head: 0 };
            self.put(STATUS, 1);
        } else {
            self.fail("the ring's base or size makes no sense");
        }
    }

    fn fail(&mut self, why: &str) {
        tracing::warn!(device = self.name, why, "the copy engine stopped");
        self.engine = Engine::Failed;
        self.put(STATUS, 2);
        self.raise(1 << EVENT_ERROR);
    }

    /// Does what was posted, at most so much; false where the ring can't be reached.
    fn copy(&mut self, host: &Host<'_>, base: u64, entries: u32, head: &mut u32, tail: u32) -> bool {
        let len = u64::from(entries) * 32;
        let ring = host.dma(Iova(base), len).and_then(|m| m.entries::<[AtomicU64; 4]>(0, entries as usize));
        let Some(ring) = ring else {
            tracing::warn!(device = self.name, why = %host.denied(Iova(base), len, true), "the descriptor ring");
            return false;
        };
        for _ in 0..tail.wrapping_sub(*head).min(BURST) {
            // The doorbell's Acquire load came before: these loads see what was stored before it was rung.
            let Some([source, destination, what, status]) = ring.at((*head & (entries - 1)) as usize) else { break };
            let [from, to, what] = [source, destination, what].map(|w| u64::from_le(w.load(Ordering::Relaxed)));
            let outcome = self.transfer(host, Iova(from), Iova(to), what & 0xffff_ffff);
            status.store(outcome.to_le(), Ordering::Release);
            if what & FLAG_INTERRUPT != 0 {
                self.raise(1 << EVENT_DONE);
            }
            *head = head.wrapping_add(1);
        }
        self.put(HEAD, *head);
        true
    }

    /// Copies `len` bytes by way of the device's own memory; returns a descriptor's status.
    fn transfer(&mut self, host: &Host<'_>, from: Iova, to: Iova, len: u64) -> u64 {
        if len == 0 || len > MAX_COPY {
            return BAD_LENGTH;
        }
        let Some(from) = host.dma(from, len) else { return BAD_SOURCE };
        let Some(to) = host.dma(to, len) else { return BAD_DESTINATION };
        let mut at = 0;
        while at < len {
            let n = (len - at).min(self.bounce.len() as u64);
            let bytes = &mut self.bounce[..n as usize];
            if !from.read(at, bytes) {
                return BAD_SOURCE;
            }
            if !to.write(at, bytes) {
                return BAD_DESTINATION;
            }
            at += n;
        }
        DONE
    }

    /// Events happened.
    fn raise(&mut self, events: u32) {
        let before = self.pending & self.enable;
        self.pending |= events & ((1 << VECTORS) - 1);
        self.signal |= self.pending & self.enable & !before;
    }

    /// What a trapped register reads as.
    fn trapped_read(&self, offset: u64) -> Option<u32> {
        match offset {
            0x2000 => Some(self.pending & !self.enable),
            0x2004 => Some(0),
            IRQ_ENABLE => Some(self.enable),
            IRQ_PENDING => Some(self.pending),
            IRQ_CLEAR | IRQ_TEST => Some(0),
            _ => None,
        }
    }

    /// What a write to a trapped register does. False for those that can't be written.
    fn trapped_write(&mut self, offset: u64, value: u32) -> bool {
        match offset {
            IRQ_ENABLE => {
                let before = self.pending & self.enable;
                self.enable = value & ((1 << VECTORS) - 1);
                self.signal |= self.pending & self.enable & !before;
            }
            IRQ_CLEAR => self.pending &= !value,
            IRQ_TEST => self.raise(value),
            IRQ_PENDING => {}
            _ => return false,
        }
        true
    }

    fn get(&self, register: u64) -> u32 {
        self.bar.u32(register).map_or(0, |r| u32::from_le(r.load(Ordering::Acquire)))
    }

    fn put(&self, register: u64, value: u32) {
        if let Some(r) = self.bar.u32(register) {
            r.store(value.to_le(), Ordering::Release);
        }
    }
}

impl Model for Fpga {
    fn shape(&self) -> Shape {
        let mut regions = vec![ModelRegion::default(); 9];
        let direct = vec![0..TRAPPED.start, TRAPPED.end..SIZE];
        regions[0] = ModelRegion { size: SIZE, pages: Some(self.bar.clone()), direct };
        regions[7] = ModelRegion { size: config::SIZE, ..ModelRegion::default() };
        let mut irqs = vec![IrqInfo::default(); 5];
        irqs[2] = IrqInfo { count: VECTORS, eventfd: true, maskable: false, resizable: true };
        irqs[Irq::Err as usize] = IrqInfo { count: 1, eventfd: true, ..IrqInfo::default() };
        Shape { name: self.name.clone(), page: PageSize::host(), regions, irqs, msix: Some(MSIX) }
    }

    fn read(&mut self, region: u32, offset: u64, buf: &mut [u8]) -> Result<(), Refused> {
        match region {
            wholebar_core::pci::BAR0 => {
                let (words, rest) = buf.as_chunks_mut::<4>();
                if words.is_empty() || !rest.is_empty() || !TRAPPED.contains(&offset) {
                    return Err(Refused(libc::EINVAL));
                }
                for (word, at) in words.iter_mut().zip((offset..).step_by(4)) {
                    *word = self.trapped_read(at).ok_or(Refused(libc::EINVAL))?.to_le_bytes();
                }
                Ok(())
            }
            wholebar_core::pci::CONFIG => self.config.read(offset, buf),
            _ => Err(Refused(libc::EINVAL)),
        }
    }

    fn write(&mut self, region: u32, offset: u64, buf: &[u8]) -> Result<(), Refused> {
        match (region, <[u8; 4]>::try_from(buf)) {
            (wholebar_core::pci::BAR0, Ok(word)) if self.trapped_write(offset, u32::from_le_bytes(word)) => Ok(()),
            (wholebar_core::pci::CONFIG, _) => {
                if self.config.write(offset, buf)? {
                    self.reset();
                }
                Ok(())
            }
            _ => Err(Refused(libc::EINVAL)),
        }
    }

    fn reset(&mut self) {
        (self.enable, self.pending, self.signal) = (0, 0, 0);
        self.engine = Engine::Stopped;
        self.config.reset();
        [RING_ENTRIES, CONTROL, STATUS, HEAD, TAIL].into_iter().for_each(|r| self.put(r, 0));
        if let Some(base) = self.bar.u64(RING_BASE) {
            base.store(0, Ordering::Release);
        }
        self.publish();
    }

    fn poll(&mut self, host: &mut Host<'_>) -> Work {
        let run = self.get(CONTROL) & 1 != 0;
        let mut work = Work::Idle;
        match self.engine {
            // Without bus mastering nothing can be read or written; what was posted waits.
            Engine::Running { base, entries, mut head } if run && self.config.bus_master() => {
                let tail = self.get(TAIL);
                if tail.wrapping_sub(head) > entries {
                    self.fail("the tail is more than the ring ahead");
                    work = Work::Busy;
                } else if tail != head {
                    work = Work::Busy;
                    if self.copy(host, base, entries, &mut head, tail) {
                        self.engine = Engine::Running { base, entries, head };
                    } else {
                        self.fail("the ring is not in memory that the device may use");
                    }
                }
            }
            Engine::Stopped if run => {
                self.start();
                work = Work::Busy;
            }
            Engine::Running { .. } | Engine::Failed if !run => {
                self.engine = Engine::Stopped;
                self.put(STATUS, 0);
                work = Work::Busy;
            }
            _ => {}
        }
        if self.signal != 0 && self.config.bus_master() {
            let signal = std::mem::take(&mut self.signal);
            (0..VECTORS).filter(|v| signal & 1 << v != 0).for_each(|v| host.interrupt(v));
            work = Work::Busy;
        }
        work
    }

    fn arm(&mut self) -> Armed {
        Armed::Yes
    }
}

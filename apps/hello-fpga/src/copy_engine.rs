//! The driver: a DMA copy engine, its descriptor ring and its doorbell. The data sheet is at the top of tools/sim/src/fpga.rs.

use anyhow::{Result, ensure};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use wholebar::bar::{Bar, Doorbell, DoorbellCounts};
use wholebar::mem::{Buf, DmaMapping, DmaRing};
use wholebar::pci::PciDevice;
use wholebar::pci::config::{self, Config};

/// The PCI ids of the card: vendor and device.
const IDS: (u16, u16) = (0xfff0, 0x0002);
const ID: u64 = 0x3000;
const RING_BASE: u64 = 0x3008;
const RING_ENTRIES: u64 = 0x3010;
const CONTROL: u64 = 0x3014;
const STATUS: u64 = 0x3018;
const TAIL: u64 = 0x3040;

/// How many descriptors the ring has.
pub const ENTRIES: u32 = 64;
/// How long the device is waited for.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The copy engine. Buffers belong to it while it works on them.
pub struct CopyEngine {
    bar: Bar,
    ring: DmaRing<[AtomicU64; 4]>,
    dma: Arc<DmaMapping>,
    tail: u32,
    doorbell: Doorbell<u32>,
    in_flight: VecDeque<(Buf, Buf)>,
}

/// Whether this is the driver for `device`: by its PCI ids, before any register of it is touched.
pub fn check_ids(device: &dyn PciDevice) -> Result<()> {
    let config = Config::of(device)?;
    let (vendor, id) = (config.vendor(), config.device());
    let (ours, our_id) = IDS;
    ensure!(
        (vendor, id) == IDS,
        "{} is {vendor:04x}:{id:04x}, and this driver is for {ours:04x}:{our_id:04x}",
        device.name()
    );
    Ok(())
}

impl CopyEngine {
    /// Sets up the ring in the arena that `dma` maps, and has the engine run.
    pub fn start(bar: Bar, dma: Arc<DmaMapping>) -> Result<Self> {
        let id: u32 = bar.read(ID)?;
        ensure!(id == 0x4650_4741, "{}: ID reads {id:#x}, which is not this device", bar.device().name());
        let ring = DmaRing::new(dma.arena().clone(), ENTRIES, 64)?;
        config::enable_bus_master(bar.device().as_ref(), true)?;
        bar.write(RING_BASE, dma.iova().offset(ring.chunk().offset()).0)?;
        bar.write(RING_ENTRIES, ENTRIES)?;
        bar.write(TAIL, 0u32)?;
        bar.write(CONTROL, 1u32)?;
        let engine = Self { doorbell: bar.doorbell(TAIL)?, bar, ring, dma, tail: 0, in_flight: VecDeque::new() };
        engine.wait_for_status(1)?;
        Ok(engine)
    }

    /// Posts a copy; the device hears of it by [`ring`](Self::ring). A full ring gives the buffers back, as does one that is asked for
    /// memory the device does not know.
    pub fn post(&mut self, from: Buf, to: Buf, interrupt: bool) -> Result<(), (Buf, Buf)> {
        let arena = self.dma.arena().id();
        if self.in_flight.len() as u32 == ENTRIES || from.arena_id() != arena || to.arena_id() != arena {
            return Err((from, to));
        }
        let at = |buf: &Buf| self.dma.iova().offset(buf.arena_offset()).0;
        let length = u64::from(from.len().min(to.len())) | u64::from(interrupt) << 32;
        for (word, value) in self.ring.at(self.tail).iter().zip([at(&from), at(&to), length, 0]) {
            word.store(value.to_le(), Ordering::Relaxed);
        }
        self.tail = self.tail.wrapping_add(1);
        self.in_flight.push_back((from, to));
        Ok(())
    }

    /// One doorbell for all that was posted: one store, where its page is mapped.
    pub fn ring(&mut self) {
        self.doorbell.ring(self.tail);
    }

    /// The oldest copy, if it is done: its status and its buffers.
    pub fn poll(&mut self) -> Option<(u64, Buf, Buf)> {
        let oldest = self.tail.wrapping_sub(self.in_flight.len() as u32);
        // Acquire pairs with the device's Release store: with the status comes the data.
        let status = self.ring.at(oldest)[3].load(Ordering::Acquire);
        if self.in_flight.is_empty() || status == 0 {
            return None;
        }
        wholebar::barrier::after_status();
        self.in_flight.pop_front().map(|(from, to)| (u64::from_le(status), from, to))
    }

    /// How often the doorbell was rung, and how.
    pub fn doorbells(&self) -> DoorbellCounts {
        self.doorbell.counts()
    }

    fn wait_for_status(&self, status: u32) -> Result<()> {
        let start = Instant::now();
        while self.bar.read::<u32>(STATUS)? != status {
            ensure!(start.elapsed() < PATIENCE, "{}: STATUS never became {status}", self.bar.device().name());
            std::hint::spin_loop();
        }
        Ok(())
    }
}

impl Drop for CopyEngine {
    fn drop(&mut self) {
        // Memory is given back when the device says that it has stopped; otherwise never.
        if self.bar.write(CONTROL, 0u32).is_err() || self.wait_for_status(0).is_err() {
            self.ring.set_quarantine(true);
            for (from, to) in self.in_flight.drain(..) {
                from.quarantine();
                to.quarantine();
            }
        }
    }
}

//! How fast two network models pass packets to each other: 64 bytes, one way, in both layouts, driven by the least that a driver can do.
//!
//! `cargo run --release -p wholebar-sim --example pair -- [SECONDS]`. The ports are models on one thread, this is another: figures of emulation.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};
use wholebar_core::cores;
use wholebar_core::mem::{Arena, ArenaOptions, Chunk, DmaMapping, DmaRing};
use wholebar_core::pci::{CONFIG, PciDevice};
use wholebar_sim::Target;

const SIZE: u16 = 256;
const LEN: u32 = 64;
const HEADER: u32 = 12;
const ROOM: u64 = 128;
const VERSION_1: u64 = 1 << 32;
const PACKED: u64 = 1 << 34;

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let mut out = std::io::stdout();
    let seconds: f64 = std::env::args().nth(1).map_or(Ok(2.0), |s| s.parse())?;
    let cores = cores::allowed();
    cores::pin(cores[0])?;
    writeln!(out, "models on a thread of this process: figures of emulation, not of hardware")?;
    writeln!(out, "{:6} {:>5} {:>8} {:>8}", "ring", "burst", "Mpps", "ns each")?;
    for (name, features) in [("split", VERSION_1), ("packed", VERSION_1 | PACKED)] {
        for burst in [1, 8, 32] {
            let core = cores.get(1).copied();
            let ports = [Port::open(core, features)?, Port::open(core, features)?];
            let rate = run(ports, burst, Duration::from_secs_f64(seconds));
            writeln!(out, "{name:6} {burst:5} {:8.2} {:8.1}", rate / 1e6, 1e9 / rate)?;
        }
    }
    Ok(())
}

/// Sends from one port to the other as fast as they take it; returns packets a second.
fn run([mut a, mut b]: [Port; 2], burst: u16, time: Duration) -> f64 {
    b.rx.post(SIZE);
    let (start, mut received, mut out) = (Instant::now(), 0u64, 0);
    loop {
        for _ in 0..1024 {
            if out + burst <= SIZE {
                a.tx.post(burst);
                out += burst;
            }
            out -= a.tx.done(SIZE);
            let n = b.rx.done(32);
            b.rx.post(n);
            received += u64::from(n);
        }
        let elapsed = start.elapsed();
        if elapsed >= time {
            return received as f64 / elapsed.as_secs_f64();
        }
    }
}

/// One end of the pair.
struct Port {
    rx: Queue,
    tx: Queue,
    _device: Arc<dyn PciDevice>,
}

impl Port {
    fn open(core: Option<usize>, features: u64) -> Result<Self, Error> {
        let target = Target::parse("sim:virtio-net,wire=pair:example,full=wait,control=0")?;
        let device: Arc<dyn PciDevice> = target.open(core)?.model;
        let arena = Arena::new(2 << 20, ArenaOptions::default())?;
        let dma = device.dma().attach(arena.clone())?;
        device.write(CONFIG, 4, &6u16.to_le_bytes())?;
        // Acknowledge, driver, features, FEATURES_OK; both queues; DRIVER_OK.
        for status in [0u8, 1, 3] {
            device.write(0, 0x14, &[status])?;
        }
        for half in 0..2u32 {
            device.write(0, 0x08, &half.to_le_bytes())?;
            device.write(0, 0x0c, &((features >> (32 * half)) as u32).to_le_bytes())?;
        }
        device.write(0, 0x14, &[11])?;
        let packed = features & PACKED != 0;
        let rx = Queue::new(device.as_ref(), arena.clone(), dma.clone(), 0, packed)?;
        let tx = Queue::new(device.as_ref(), arena.clone(), dma.clone(), 1, packed)?;
        device.write(0, 0x14, &[15])?;
        Ok(Self { rx, tx, _device: device })
    }
}

/// A queue whose buffers never change: posting one again is all there is to do.
struct Queue {
    packed: bool,
    desc: DmaRing<[AtomicU16; 8]>,
    driver: DmaRing<AtomicU16>,
    device: DmaRing<AtomicU16>,
    posted: u16,
    done: u16,
    len: u32,
    flags: u16,
    _buffers: Chunk,
    _dma: Arc<DmaMapping>,
}

impl Queue {
    fn new(
        device: &dyn PciDevice,
        arena: Arc<Arena>,
        dma: Arc<DmaMapping>,
        index: u16,
        packed: bool,
    ) -> Result<Self, Error> {
        let buffers = arena.alloc(u64::from(SIZE) * ROOM, 64)?;
        buffers.zero();
        let desc: DmaRing<[AtomicU16; 8]> = DmaRing::new(arena.clone(), SIZE.into(), 4096)?;
        let driver: DmaRing<AtomicU16> = DmaRing::new(arena.clone(), 512, 4096)?;
        let used: DmaRing<AtomicU16> = DmaRing::new(arena, 2048, 4096)?;
        let at = |chunk: &Chunk| dma.iova().0 + chunk.offset();
        let receive = index.is_multiple_of(2);
        let (len, flags) = if receive { (ROOM as u32, 2) } else { (HEADER + LEN, 0) };
        for i in 0..SIZE {
            let data = u64::from(i) * ROOM;
            if !receive {
                buffers.write(data + u64::from(HEADER), &[0xff; 6])?;
            }
            let entry = desc.at(i.into());
            let address = at(&buffers) + data;
            let words = [0, 16, 32, 48].map(|shift| (address >> shift) as u16);
            entry.iter().zip(words).for_each(|(to, word)| to.store(word.to_le(), Ordering::Relaxed));
            if !packed {
                let rest = [len as u16, (len >> 16) as u16, flags, 0];
                entry[4..].iter().zip(rest).for_each(|(to, word)| to.store(word.to_le(), Ordering::Relaxed));
                driver.at(2 + u32::from(i)).store(i.to_le(), Ordering::Relaxed);
            }
        }
        device.write(0, 0x16, &index.to_le_bytes())?;
        device.write(0, 0x18, &SIZE.to_le_bytes())?;
        for (register, area) in [(0x20, desc.chunk()), (0x28, driver.chunk()), (0x30, used.chunk())] {
            device.write(0, register, &(at(area) as u32).to_le_bytes())?;
            device.write(0, register + 4, &((at(area) >> 32) as u32).to_le_bytes())?;
        }
        device.write(0, 0x1c, &1u16.to_le_bytes())?;
        let (_buffers, _dma) = (buffers, dma);
        Ok(Self { packed, desc, driver, device: used, posted: 0, done: 0, len, flags, _buffers, _dma })
    }

    /// Posts `n` buffers (again).
    fn post(&mut self, n: u16) {
        if !self.packed {
            self.posted = self.posted.wrapping_add(n);
            if n > 0 {
                self.driver.at(1).store(self.posted.to_le(), Ordering::Release);
            }
            return;
        }
        for _ in 0..n {
            let entry = self.desc.at(self.posted.into());
            entry[4].store((self.len as u16).to_le(), Ordering::Relaxed);
            entry[6].store((self.posted % SIZE).to_le(), Ordering::Relaxed);
            let lap = if (self.posted / SIZE).is_multiple_of(2) { 1 << 7 } else { 1 << 15 };
            entry[7].store((self.flags | lap).to_le(), Ordering::Release);
            self.posted = self.posted.wrapping_add(1);
        }
    }

    /// How many more buffers are done, at most `most`.
    fn done(&mut self, most: u16) -> u16 {
        if !self.packed {
            let used = u16::from_le(self.device.at(1).load(Ordering::Acquire));
            let n = used.wrapping_sub(self.done).min(most);
            self.done = self.done.wrapping_add(n);
            return n;
        }
        let mut n = 0;
        while n < most {
            let flags = u16::from_le(self.desc.at(self.done.into())[7].load(Ordering::Acquire));
            let lap = (self.done / SIZE).is_multiple_of(2);
            if (flags >> 7 & 1 != 0) != lap || (flags >> 15 != 0) != lap {
                break;
            }
            (self.done, n) = (self.done.wrapping_add(1), n + 1);
        }
        n
    }
}

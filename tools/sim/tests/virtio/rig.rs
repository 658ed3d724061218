//! A driver by hand: raw queues in an arena, registers by the seam, the model stepped poll by poll.
//!
//! It is *not* a driver: it checks nothing, waits for nothing, and lets a test write what it likes.

use std::sync::Arc;
use wholebar_core::Work;
use wholebar_core::mem::{Arena, ArenaOptions, Chunk, DmaMapping};
use wholebar_core::model::InProcess;
use wholebar_core::pci::{CONFIG, PciDevice};
use wholebar_sim::virtio::net::{self, NetHandle, NetParams};

pub const INDIRECT: u64 = 1 << 28;
pub const EVENT_IDX: u64 = 1 << 29;
pub const VERSION_1: u64 = 1 << 32;
pub const PACKED: u64 = 1 << 34;
pub const IN_ORDER: u64 = 1 << 35;
pub const RING_RESET: u64 = 1 << 40;

pub const STATUS: u64 = 0x14;
pub const NEEDS_RESET: u8 = 64;

/// Descriptor flags.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const TABLE: u16 = 4;

/// A device and its host.
pub struct Rig {
    pub device: Arc<InProcess>,
    pub handle: Option<Arc<NetHandle>>,
    pub arena: Arc<Arena>,
    pub dma: Arc<DmaMapping>,
    pub features: u64,
}

/// A buffer for a chain: address, length, whether it is to be written.
pub type Buffer = (u64, u32, bool);

impl Rig {
    /// A network card as `params` say, with `features` agreed on.
    pub fn net(params: &str, features: u64) -> Self {
        let mut rig = Self::off(params);
        assert_eq!(rig.agree(features), 11, "features are refused");
        rig
    }

    /// The same, as it is after power-on.
    pub fn off(params: &str) -> Self {
        let (model, port) = net::model(NetParams::parse(params).unwrap()).unwrap();
        Self::of(InProcess::new(model).unwrap(), Some(port.handle))
    }

    pub fn of(device: Arc<InProcess>, handle: Option<Arc<NetHandle>>) -> Self {
        Self::with_memory(device, handle, if cfg!(miri) { 1 << 19 } else { 8 << 20 })
    }

    pub fn with_memory(device: Arc<InProcess>, handle: Option<Arc<NetHandle>>, memory: u64) -> Self {
        let arena = Arena::new(memory, ArenaOptions::default()).unwrap();
        let dma = device.dma().attach(arena.clone()).unwrap();
        device.write(CONFIG, 4, &6u16.to_le_bytes()).unwrap();
        Self { device, handle, arena, dma, features: 0 }
    }

    /// Acknowledges, and takes `features`; returns the status then.
    pub fn agree(&mut self, features: u64) -> u8 {
        self.set8(STATUS, 0);
        self.set8(STATUS, 1);
        self.set8(STATUS, 3);
        for half in 0..2 {
            self.set32(0x08, half);
            self.set32(0x0c, (features >> (32 * half)) as u32);
        }
        self.set8(STATUS, 11);
        self.features = features;
        self.get8(STATUS)
    }

    pub fn ok(&self) {
        self.set8(STATUS, 15);
        assert_eq!(self.get8(STATUS), 15);
    }

    /// The features it offers.
    pub fn offered(&self) -> u64 {
        (0..2).fold(0, |sum, half| {
            self.set32(0x00, half);
            sum | u64::from(self.get32(0x04)) << (32 * half)
        })
    }

    /// Sets a queue up, and enables it.
    pub fn queue(&self, index: u16, size: u16) -> Queue {
        let queue = Queue::new(self, size, self.features);
        self.enable(index, &queue);
        queue
    }

    /// Tells the device of a queue.
    pub fn enable(&self, index: u16, queue: &Queue) {
        self.set16(0x16, index);
        self.set16(0x18, queue.size);
        for (at, area) in [(0x20, &queue.desc), (0x28, &queue.driver), (0x30, &queue.device)] {
            let address = self.at(area);
            self.set32(at, address as u32);
            self.set32(at + 4, (address >> 32) as u32);
        }
        self.set16(0x1c, 1);
    }

    pub fn step(&self) -> Work {
        self.device.step()
    }

    /// Polls until nothing is left to do.
    pub fn settle(&self) {
        for _ in 0..10_000 {
            if self.step() == Work::Idle {
                return;
            }
        }
        panic!("the model is never idle");
    }

    pub fn needs_reset(&self) -> bool {
        self.get8(STATUS) & NEEDS_RESET != 0
    }

    pub fn at(&self, chunk: &Chunk) -> u64 {
        self.dma.iova().0 + chunk.offset()
    }

    /// Zeroed memory.
    pub fn memory(&self, len: u64) -> Chunk {
        let chunk = self.arena.alloc(len, 64).unwrap();
        chunk.zero();
        chunk
    }

    /// Memory that holds `bytes`, and where.
    pub fn holding(&self, bytes: &[u8]) -> (Chunk, u64) {
        let chunk = self.memory(bytes.len() as u64);
        chunk.write(0, bytes).unwrap();
        let at = self.at(&chunk);
        (chunk, at)
    }

    fn get<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.device.read(0, offset, &mut bytes).unwrap();
        bytes
    }

    pub fn get8(&self, offset: u64) -> u8 {
        self.get::<1>(offset)[0]
    }

    pub fn get16(&self, offset: u64) -> u16 {
        u16::from_le_bytes(self.get(offset))
    }

    pub fn get32(&self, offset: u64) -> u32 {
        u32::from_le_bytes(self.get(offset))
    }

    pub fn set8(&self, offset: u64, value: u8) {
        self.device.write(0, offset, &[value]).unwrap();
    }

    pub fn set16(&self, offset: u64, value: u16) {
        self.device.write(0, offset, &value.to_le_bytes()).unwrap();
    }

    pub fn set32(&self, offset: u64, value: u32) {
        self.device.write(0, offset, &value.to_le_bytes()).unwrap();
    }
}

/// A queue by hand, of either layout.
pub struct Queue {
    pub size: u16,
    pub packed: bool,
    pub desc: Chunk,
    pub driver: Chunk,
    pub device: Chunk,
    /// Split: the next free descriptor, and the indexes of available and used ring. Packed: places, with the lap in bit 15.
    pub free: u16,
    pub avail: u16,
    pub used: u16,
    /// Packed: how many entries each id's chain has.
    entries: Vec<u16>,
}

impl Queue {
    pub fn new(rig: &Rig, size: u16, features: u64) -> Self {
        let packed = features & PACKED != 0;
        let n = u64::from(size);
        let (driver, device) = if packed { (4, 4) } else { (6 + 2 * n, 6 + 8 * n) };
        Self {
            size,
            packed,
            desc: rig.memory(16 * n),
            driver: rig.memory(driver),
            device: rig.memory(device),
            free: 0,
            avail: if packed { 1 << 15 } else { 0 },
            used: if packed { 1 << 15 } else { 0 },
            entries: vec![0; usize::from(size)],
        }
    }

    pub fn get16(chunk: &Chunk, at: u64) -> u16 {
        let mut bytes = [0; 2];
        chunk.read(at, &mut bytes).unwrap();
        u16::from_le_bytes(bytes)
    }

    pub fn set16(chunk: &Chunk, at: u64, value: u16) {
        chunk.write(at, &value.to_le_bytes()).unwrap();
    }

    /// Writes a descriptor: of the table (split: `last` is next), or of the ring (packed: `last` is the id).
    pub fn desc(&self, index: u16, address: u64, len: u32, flags: u16, last: u16) {
        let (flags, last) = if self.packed { (last, flags) } else { (flags, last) };
        let at = 16 * u64::from(index);
        self.desc.write(at, &address.to_le_bytes()).unwrap();
        self.desc.write(at + 8, &len.to_le_bytes()).unwrap();
        Self::set16(&self.desc, at + 12, flags);
        Self::set16(&self.desc, at + 14, last);
    }

    /// Makes one chain available; returns its id.
    pub fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let flags = |b: &Buffer, i: usize| (if b.2 { WRITE } else { 0 }) | if i + 1 < buffers.len() { NEXT } else { 0 };
        let n = buffers.len() as u16;
        if self.packed {
            let id = self.avail & 0x7fff;
            for (i, b) in buffers.iter().enumerate() {
                let place = self.avail;
                self.desc(place & 0x7fff, b.0, b.1, flags(b, i) | Self::available(place), id);
                self.avail = self.forward(place, 1);
            }
            self.entries[usize::from(id)] = n;
            return id;
        }
        let head = self.free;
        for (i, b) in buffers.iter().enumerate() {
            let at = self.free;
            self.free = (self.free + 1) % self.size;
            self.desc(at, b.0, b.1, flags(b, i), self.free);
        }
        self.offer(head);
        head
    }

    /// Makes a chain in an indirect table available.
    pub fn add_indirect(&mut self, rig: &Rig, buffers: &[Buffer]) -> (u16, Chunk) {
        let mut bytes = Vec::new();
        for (i, b) in buffers.iter().enumerate() {
            bytes.extend(b.0.to_le_bytes());
            bytes.extend(b.1.to_le_bytes());
            let next = if self.packed || i + 1 == buffers.len() { 0 } else { NEXT };
            let words = [next | if b.2 { WRITE } else { 0 }, i as u16 + 1];
            let words = if self.packed { [0, words[0]] } else { words };
            bytes.extend(words.into_iter().flat_map(u16::to_le_bytes));
        }
        let (table, at) = rig.holding(&bytes);
        (self.add_raw(at, bytes.len() as u32, TABLE), table)
    }

    /// Makes one descriptor available as it is.
    pub fn add_raw(&mut self, address: u64, len: u32, flags: u16) -> u16 {
        if self.packed {
            let (place, id) = (self.avail, self.avail & 0x7fff);
            self.desc(id, address, len, flags | Self::available(place), id);
            self.avail = self.forward(place, 1);
            self.entries[usize::from(id)] = 1;
            return id;
        }
        let at = self.free;
        self.free = (self.free + 1) % self.size;
        self.desc(at, address, len, flags, 0);
        self.offer(at);
        at
    }

    /// Split: puts a chain's head into the available ring.
    pub fn offer(&mut self, head: u16) {
        Self::set16(&self.driver, 4 + 2 * u64::from(self.avail % self.size), head);
        self.avail = self.avail.wrapping_add(1);
        Self::set16(&self.driver, 2, self.avail);
    }

    /// Takes what was used next: id and length.
    pub fn take(&mut self) -> Option<(u16, u32)> {
        if self.packed {
            let (at, lap) = (16 * u64::from(self.used & 0x7fff), self.used >> 15 != 0);
            let flags = Self::get16(&self.desc, at + 14);
            if (flags >> 7 & 1 != 0) != lap || (flags >> 15 != 0) != lap {
                return None;
            }
            let mut len = [0; 4];
            self.desc.read(at + 8, &mut len).unwrap();
            let id = Self::get16(&self.desc, at + 12);
            // An identifier that was never given is the caller's to judge.
            self.used = self.forward(self.used, self.entries.get(usize::from(id)).copied().unwrap_or(1));
            return Some((id, u32::from_le_bytes(len)));
        }
        if Self::get16(&self.device, 2) == self.used {
            return None;
        }
        let mut element = [0; 8];
        self.device.read(4 + 8 * u64::from(self.used % self.size), &mut element).unwrap();
        self.used = self.used.wrapping_add(1);
        let word = u64::from_le_bytes(element);
        Some((word as u16, (word >> 32) as u32))
    }

    /// Everything that was used.
    pub fn take_all(&mut self) -> Vec<(u16, u32)> {
        std::iter::from_fn(|| self.take()).collect()
    }

    /// Asks for an interrupt always (0), never (1), or at `index` by event index.
    pub fn interrupt_flags(&self, flags: u16) {
        Self::set16(&self.driver, if self.packed { 2 } else { 0 }, flags);
    }

    pub fn interrupt_at(&self, index: u16) {
        let at = if self.packed { 0 } else { 4 + 2 * u64::from(self.size) };
        Self::set16(&self.driver, at, index);
    }

    fn available(place: u16) -> u16 {
        if place >> 15 != 0 { 1 << 7 } else { 1 << 15 }
    }

    pub fn forward(&self, place: u16, entries: u16) -> u16 {
        let (at, lap) = ((place & 0x7fff) + entries, place & 1 << 15);
        if at >= self.size { (at - self.size) | (lap ^ 1 << 15) } else { at | lap }
    }
}

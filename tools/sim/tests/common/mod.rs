//! A host for an NVMe controller, by hand: raw rings in an arena, registers by the seam, the model stepped poll by poll.
//!
//! It is *not* a driver: it checks nothing, waits for nothing, and lets a test write what it likes.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use wholebar_core::Work;
use wholebar_core::mem::{Arena, ArenaOptions, Chunk, DmaMapping, DmaRing};
use wholebar_core::model::InProcess;
use wholebar_core::pci::{CONFIG, PciDevice};
use wholebar_sim::nvme::{Nvme, NvmeParams};

pub const CC: u64 = 0x14;
pub const CSTS: u64 = 0x1c;
pub const PAGE: u64 = 4096;
/// Do not retry, more in the error log.
pub const DNR: u16 = 1 << 14;
pub const MORE: u16 = 1 << 13;

/// A completion, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    pub dw0: u32,
    pub sq_head: u16,
    pub sq_id: u16,
    pub cid: u16,
    /// Status field without the phase.
    pub status: u16,
}

impl Done {
    /// Status code type and status code: `0x102` is type 1, code 2.
    pub fn code(&self) -> u16 {
        self.status & 0x7ff
    }
}

/// A submission and a completion queue, with equal sizes and ids.
pub struct Pair {
    pub id: u16,
    pub entries: u32,
    pub sq: DmaRing<[AtomicU64; 8]>,
    pub cq: DmaRing<[AtomicU32; 4]>,
    pub tail: u32,
    pub head: u32,
    pub phase: bool,
}

impl Pair {
    /// Writes an entry at the tail, without ringing.
    pub fn post(&mut self, words: [u64; 8]) {
        let entry = self.sq.at(self.tail);
        entry.iter().zip(words).for_each(|(to, w)| to.store(w.to_le(), Ordering::Relaxed));
        self.tail = (self.tail + 1) % self.entries;
    }

    /// Takes the next completion, if there is one, without telling the controller.
    pub fn take(&mut self) -> Option<Done> {
        let entry = self.cq.at(self.head);
        let word = |i: usize| u32::from_le(entry[i].load(Ordering::Acquire));
        let last = word(3);
        if (last >> 16 & 1 != 0) != self.phase {
            return None;
        }
        self.head = (self.head + 1) % self.entries;
        self.phase ^= self.head == 0;
        let (status, cid) = ((last >> 17) as u16, last as u16);
        Some(Done { dw0: word(0), sq_head: word(2) as u16, sq_id: (word(2) >> 16) as u16, cid, status })
    }
}

/// A controller and its host.
pub struct Rig {
    pub device: Arc<InProcess>,
    pub arena: Arc<Arena>,
    pub dma: Arc<DmaMapping>,
    pub admin: Pair,
    pub dstrd: u32,
    next_cid: u16,
}

impl Rig {
    /// A controller as `params` say, enabled.
    pub fn new(params: &str) -> Self {
        let mut rig = Self::off(params);
        rig.enable();
        rig
    }

    /// A controller as `params` say, as it is after power-on, with bus mastering on.
    pub fn off(params: &str) -> Self {
        let params = NvmeParams::parse(params).unwrap();
        let dstrd = params.dstrd.into();
        let device = InProcess::new(Nvme::new(params).unwrap()).unwrap();
        let arena = Arena::new(if cfg!(miri) { 1 << 19 } else { 4 << 20 }, ArenaOptions::default()).unwrap();
        let dma = device.dma().attach(arena.clone()).unwrap();
        device.write(CONFIG, 4, &6u16.to_le_bytes()).unwrap();
        let admin = pair(arena.clone(), 0, 8);
        Self { device, arena, dma, admin, dstrd, next_cid: 0 }
    }

    /// Sets up the admin queues and enables with memory pages of 4 KiB.
    pub fn enable(&mut self) {
        self.enable_as(0x0046_0001);
        assert_eq!(self.read32(CSTS), 1);
    }

    /// Sets up the admin queues, writes CC, and lets the controller look at it.
    pub fn enable_as(&mut self, cc: u32) {
        self.admin = pair(self.arena.clone(), 0, self.admin.entries);
        self.write32(0x24, (self.admin.entries - 1) << 16 | (self.admin.entries - 1));
        self.write64(0x28, self.at(self.admin.sq.chunk()));
        self.write64(0x30, self.at(self.admin.cq.chunk()));
        self.write32(CC, cc);
        self.step();
    }

    /// Clears CC.EN.
    pub fn disable(&mut self) {
        self.write32(CC, 0x0046_0000);
        self.step();
        assert_eq!(self.read32(CSTS), 0);
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

    /// The device address of a chunk.
    pub fn at(&self, chunk: &Chunk) -> u64 {
        self.dma.iova().0 + chunk.offset()
    }

    /// Zeroed memory, page-aligned.
    pub fn memory(&self, len: u64) -> Chunk {
        let chunk = self.arena.alloc(len, PAGE).unwrap();
        chunk.zero();
        chunk
    }

    pub fn read32(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.device.read(0, offset, &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }

    pub fn read64(&self, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        self.device.read(0, offset, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    pub fn write32(&self, offset: u64, value: u32) {
        self.device.write(0, offset, &value.to_le_bytes()).unwrap();
    }

    pub fn write64(&self, offset: u64, value: u64) {
        self.device.write(0, offset, &value.to_le_bytes()).unwrap();
    }

    /// Writes a doorbell: `side` 0 is the submission queue's tail, 1 the completion queue's head.
    pub fn ring(&self, id: u16, side: u64, value: u32) {
        self.write32(0x1000 + ((2 * u64::from(id) + side) << (2 + self.dstrd)), value);
    }

    /// Writes the tail and the head doorbell of a pair.
    pub fn ring_pair(&self, pair: &Pair) {
        self.ring(pair.id, 1, pair.head);
        self.ring(pair.id, 0, pair.tail);
    }

    /// A command id not used before.
    pub fn cid(&mut self) -> u16 {
        self.next_cid = self.next_cid.wrapping_add(1);
        self.next_cid
    }

    /// Does one admin command and returns its completion.
    pub fn admin(&mut self, cmd: Cmd) -> Done {
        self.try_admin(cmd).expect("a completion")
    }

    /// Does one admin command; `None` where no completion comes.
    pub fn try_admin(&mut self, cmd: Cmd) -> Option<Done> {
        let cid = self.cid();
        self.admin.post(cmd.words(cid));
        self.ring(0, 0, self.admin.tail);
        self.settle();
        let done = self.admin.take()?;
        self.ring(0, 1, self.admin.head);
        assert_eq!((done.cid, done.sq_id), (cid, 0));
        Some(done)
    }

    /// An admin command that writes `len` bytes to the host, and what it wrote.
    pub fn fetch(&mut self, cmd: Cmd, len: u64) -> Vec<u8> {
        let chunk = self.memory(len);
        let done = self.admin(cmd.prp(self.at(&chunk), 0));
        assert_eq!(done.status, 0);
        let mut bytes = vec![0; len as usize];
        chunk.read(0, &mut bytes).unwrap();
        bytes
    }

    /// Creates I/O queues of `entries`, id `id`, without interrupts.
    pub fn pair(&mut self, id: u16, entries: u32) -> Pair {
        let pair = pair(self.arena.clone(), id, entries);
        let size = (entries - 1) << 16 | u32::from(id);
        let (cq, sq) = (self.at(pair.cq.chunk()), self.at(pair.sq.chunk()));
        assert_eq!(self.admin(Cmd::new(0x05).prp(cq, 0).dw10(size).dw11(1)).status, 0);
        assert_eq!(self.admin(Cmd::new(0x01).prp(sq, 0).dw10(size).dw11(u32::from(id) << 16 | 1)).status, 0);
        pair
    }

    /// Does one command on an I/O queue.
    pub fn io(&mut self, pair: &mut Pair, cmd: Cmd) -> Done {
        self.try_io(pair, cmd).expect("a completion")
    }

    /// Does one command on an I/O queue; `None` where no completion comes.
    pub fn try_io(&mut self, pair: &mut Pair, cmd: Cmd) -> Option<Done> {
        let cid = self.cid();
        pair.post(cmd.words(cid));
        self.ring(pair.id, 0, pair.tail);
        self.settle();
        let done = pair.take()?;
        self.ring(pair.id, 1, pair.head);
        assert_eq!((done.cid, done.sq_id), (cid, pair.id));
        Some(done)
    }
}

/// Memory for a pair of queues.
pub fn pair(arena: Arc<Arena>, id: u16, entries: u32) -> Pair {
    let slots = entries.next_power_of_two();
    let (sq, cq) = (DmaRing::new(arena.clone(), slots, PAGE).unwrap(), DmaRing::new(arena, slots, PAGE).unwrap());
    Pair { id, entries, sq, cq, tail: 0, head: 0, phase: true }
}

/// A command being put together.
#[derive(Debug, Clone, Copy)]
pub struct Cmd([u64; 8]);

impl Cmd {
    pub fn new(opcode: u8) -> Self {
        Self([u64::from(opcode), 0, 0, 0, 0, 0, 0, 0])
    }

    /// Read, Write or Compare of `blocks` at `lba`.
    pub fn rw(opcode: u8, lba: u64, blocks: u32) -> Self {
        let mut cmd = Self::new(opcode).nsid(1);
        cmd.0[5] = lba;
        cmd.dw12(blocks - 1)
    }

    pub fn nsid(mut self, nsid: u32) -> Self {
        self.0[0] = self.0[0] & 0xffff_ffff | u64::from(nsid) << 32;
        self
    }

    pub fn prp(mut self, prp1: u64, prp2: u64) -> Self {
        (self.0[3], self.0[4]) = (prp1, prp2);
        self
    }

    /// An SGL descriptor in the command.
    pub fn sgl(mut self, descriptor: [u64; 2]) -> Self {
        self.0[0] |= 1 << 14;
        self.prp(descriptor[0], descriptor[1])
    }

    /// Sets bits of dword 0.
    pub fn dw0(mut self, bits: u32) -> Self {
        self.0[0] |= u64::from(bits);
        self
    }

    pub fn dw10(self, value: u32) -> Self {
        self.half(5, 0, value)
    }

    pub fn dw11(self, value: u32) -> Self {
        self.half(5, 32, value)
    }

    pub fn dw12(self, value: u32) -> Self {
        self.half(6, 0, value)
    }

    pub fn dw13(self, value: u32) -> Self {
        self.half(6, 32, value)
    }

    fn half(mut self, word: usize, shift: u32, value: u32) -> Self {
        self.0[word] = self.0[word] & !(0xffff_ffff << shift) | u64::from(value) << shift;
        self
    }

    pub fn words(mut self, cid: u16) -> [u64; 8] {
        self.0[0] |= u64::from(cid) << 16;
        self.0
    }
}

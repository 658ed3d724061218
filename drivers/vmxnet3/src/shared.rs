//! The memory in which driver and device tell each other what is to be done, besides rings (`struct Vmxnet3_DriverShared` and the descriptions of
//! queues): the driver writes it before it gives a command, the device writes events, counters and hints for doorbells.
//!
//! All of it is words of 32 bits. What the device wrote is read once, where it is used. This file does *not* give commands.

use crate::regs::{self, queue, shared};
use crate::settings::Settings;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use wholebar_core::Result;
use wholebar_core::mem::{DmaMapping, DmaRing, Iova};

/// Where descriptions of queues begin, those that send first; they are aligned to 128 bytes.
const QUEUES: u64 = 1024;
/// Where the configuration of RSS is, and the table of groups.
const RSS: u64 = QUEUES + queue::SIZE * (regs::TX_QUEUES + regs::RX_QUEUES) as u64;
const GROUPS: u64 = RSS + 256;
/// Bytes of all of it.
const BYTES: u64 = 16384;
/// Groups of the table, at most.
pub(crate) const MAX_GROUPS: usize = ((BYTES - GROUPS) / 6) as usize;

/// Shared memory.
pub(crate) struct SharedMemory {
    words: DmaRing<AtomicU32>,
    mapping: Arc<DmaMapping>,
    queues: (u16, u16),
}

/// Some words of a queue's description, for the queue itself.
pub(crate) struct QueueWords {
    words: DmaRing<AtomicU32>,
    at: u64,
}

/// A queue as the device is told of it: where its rings are and how large, and its vector.
pub(crate) struct QueueSetup {
    /// One that sends has one.
    pub rings: [(Iova, u32); 2],
    pub done: (Iova, u32),
    pub vector: u32,
}

/// What the device is told once, when it starts.
pub(crate) struct Start {
    pub revision: u32,
    /// Buffers of a packet at most.
    pub segments: u16,
    /// `autoMask` and how many vectors, where there are any. The first is the slow path's.
    pub interrupts: Option<(bool, u32)>,
}

impl SharedMemory {
    /// Makes it, in memory that the device was let into, for `queues` that receive and send.
    pub fn new(mapping: Arc<DmaMapping>, queues: (u16, u16)) -> Result<Self> {
        let words = DmaRing::new(mapping.arena().clone(), (BYTES / 4) as u32, 128)?;
        Ok(Self { words, mapping, queues })
    }

    /// Bytes that it takes of an arena, at most.
    pub const BYTES: u64 = BYTES + 128;

    fn at(&self, offset: u64) -> &AtomicU32 {
        self.words.at((offset / 4) as u32)
    }

    fn get(&self, offset: u64) -> u32 {
        // Relaxed: the device wrote it before it answered a command, and reading that answer orders what follows.
        u32::from_le(self.at(offset).load(Ordering::Relaxed))
    }

    fn put(&self, offset: u64, value: u32) {
        // Relaxed: the command that follows publishes it.
        self.at(offset).store(value.to_le(), Ordering::Relaxed);
    }

    fn put64(&self, offset: u64, value: u64) {
        self.put(offset, value as u32);
        self.put(offset + 4, (value >> 32) as u32);
    }

    fn put_bytes(&self, offset: u64, bytes: &[u8]) {
        for (at, word) in (offset..).step_by(4).zip(bytes.chunks(4)) {
            let mut all = [0; 4];
            all[..word.len()].copy_from_slice(word);
            self.put(at, u32::from_le_bytes(all));
        }
    }

    /// Where a part of it is, as the device sees it.
    fn iova(&self, offset: u64) -> Iova {
        self.mapping.iova().offset(self.words.chunk().offset() + offset)
    }

    /// Where it is, as the device sees it.
    pub fn base(&self) -> Iova {
        self.iova(0)
    }

    fn queue(&self, index: u16, receives: bool) -> u64 {
        QUEUES + queue::SIZE * u64::from(if receives { self.queues.1 + index } else { index })
    }

    /// Writes all but the queues. The device does not know of this memory.
    pub fn start(&self, start: &Start, settings: &Settings) {
        self.words.zero();
        self.put(shared::MAGIC, shared::MAGIC_VALUE);
        // A version of its own, which only tells drivers apart. The guest is a 64-bit Linux, which can do with a packet in several buffers. Revision and
        // pass-through version follow.
        for (at, value) in (shared::DRIVER..).step_by(4).zip([0x0100_0000, 2 | 1 << 2, start.revision, 1]) {
            self.put(at, value);
        }
        let (rx, tx) = self.queues;
        self.put64(shared::QUEUES_AT, self.iova(QUEUES).0);
        self.put(shared::QUEUES_LEN, u32::from(rx + tx) * queue::SIZE as u32);
        self.put(shared::MTU, settings.mtu.into());
        self.put(shared::COUNTS, u32::from(start.segments) | u32::from(tx) << 16 | u32::from(rx) << 24);
        match start.interrupts {
            Some((masks_itself, vectors)) => self.put(shared::INTERRUPTS, u32::from(masks_itself) | vectors << 8),
            None => {
                self.put(shared::INTERRUPTS, 1 << 8);
                self.put(shared::INTERRUPTS_OFF, 1);
            }
        }
        self.put_features(settings);
        self.put_filters(settings);
        self.put_rss(settings);
    }

    /// Writes what the device does with packets.
    pub fn put_features(&self, settings: &Settings) {
        self.put64(shared::FEATURES, settings.features());
    }

    /// Writes which packets are received: mode, groups, VLANs.
    pub fn put_filters(&self, settings: &Settings) {
        self.put(shared::RX_MODE, settings.rx_mode());
        let groups: Vec<u8> = settings.groups.iter().flat_map(|mac| mac.0).collect();
        self.put(shared::GROUPS_LEN, groups.len() as u32);
        self.put64(shared::GROUPS_AT, self.iova(GROUPS).0);
        self.put_bytes(GROUPS, &groups);
        for (at, word) in (shared::VLANS..).step_by(4).zip(settings.vlan_table()) {
            self.put(at, word);
        }
    }

    /// Writes how packets are spread.
    pub fn put_rss(&self, settings: &Settings) {
        let Some(bytes) = settings.rss_bytes() else { return };
        self.put(shared::RSS, 1);
        self.put(shared::RSS + 4, bytes.len() as u32);
        self.put64(shared::RSS + 8, self.iova(RSS).0);
        self.put_bytes(RSS, &bytes);
    }

    /// Writes a queue's description. The device does not know of this memory.
    pub fn put_queue(&self, index: u16, receives: bool, setup: &QueueSetup) {
        let at = self.queue(index, receives);
        let [first, second] = setup.rings;
        self.put64(at + queue::RING, first.0.0);
        self.put(at + queue::RING_SIZE, first.1);
        if receives {
            self.put64(at + queue::RING2, second.0.0);
            self.put(at + queue::RING2_SIZE, second.1);
        }
        self.put64(at + queue::DONE, setup.done.0.0);
        self.put(at + queue::DONE_SIZE, setup.done.1);
        self.put(at + queue::VECTOR, setup.vector);
    }

    /// The words of a queue's description that change while it runs.
    pub fn queue_words(&self, index: u16, receives: bool) -> QueueWords {
        QueueWords { words: self.words.clone(), at: self.queue(index, receives) }
    }

    /// What the device says has happened, since it was acknowledged.
    pub fn events(&self) -> u32 {
        self.get(shared::ECR)
    }

    /// What the device counted of a queue, after `GET_STATS`.
    pub fn stats(&self, index: u16, receives: bool) -> [u64; 10] {
        let at = self.queue(index, receives) + queue::STATS;
        std::array::from_fn(|i| {
            let at = at + 8 * i as u64;
            u64::from(self.get(at)) | u64::from(self.get(at + 4)) << 32
        })
    }

    /// The error for which the device stopped a queue, if it did, after `GET_QUEUE_STATUS`.
    pub fn stopped(&self, index: u16, receives: bool) -> Option<u32> {
        let at = self.queue(index, receives);
        (self.get(at + queue::STOPPED) & 0xff != 0).then(|| self.get(at + queue::ERROR))
    }

    /// Whether its memory is quarantined when it is dropped: on while the device knows of it.
    pub fn set_quarantine(&self, on: bool) {
        self.words.set_quarantine(on);
    }
}

impl QueueWords {
    /// A queue that receives: whether the device wants to be told of buffers.
    #[inline(always)]
    pub fn wants_buffers_told(&self) -> bool {
        // Relaxed: a hint.
        u32::from_le(self.words.at((self.at / 4) as u32).load(Ordering::Relaxed)) & 0xff != 0
    }

    /// A queue that sends: counts packets that were posted; whether the doorbell is to be rung for them.
    #[inline(always)]
    pub fn defer(&self, packets: u32) -> bool {
        // Relaxed on both: hints. Who rings is the only one that writes the first.
        let (count, threshold) =
            (self.words.at((self.at / 4) as u32), self.words.at(((self.at + queue::TX_THRESHOLD) / 4) as u32));
        let posted = u32::from_le(count.load(Ordering::Relaxed)).saturating_add(packets);
        let ring = posted >= u32::from_le(threshold.load(Ordering::Relaxed));
        count.store(if ring { 0 } else { posted }.to_le(), Ordering::Relaxed);
        ring
    }
}

const _: () = assert!(GROUPS < BYTES && queue::CONTROL == 0 && MAX_GROUPS * 6 <= u16::MAX as usize);

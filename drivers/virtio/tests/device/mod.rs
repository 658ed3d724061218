//! A device that does what a test tells it, word by word, by the rules or against them. Split rings only. It answers control commands by itself,
//! and writes them down.
#![allow(dead_code, reason = "each test program uses its part of it")]

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::time::Duration;
use wholebar_core::mem::Iova;
use wholebar_core::model::{Host, InProcess, Model, ModelRegion, Refused, Shape};
use wholebar_core::pci::IrqInfo;
use wholebar_core::{PageSize, Work};
use wholebar_virtio::Options;

/// How long anything is waited for that comes.
pub const LONG: Duration = Duration::from_secs(600);

/// Options of who is in no hurry: nothing is late on a machine that is merely busy.
pub fn patient() -> Options {
    Options { timeout: LONG, admin_timeout: LONG, stop_timeout: LONG, stall_timeout: LONG, ..Options::default() }
}

/// What the device is made of.
#[derive(Clone)]
pub struct Spec {
    pub vendor: u16,
    pub id: u16,
    pub features: u64,
    pub config: Vec<u8>,
    pub queues: usize,
    /// The largest size of each queue; the last one's is that of all behind it.
    pub sizes: Vec<u16>,
    pub control: Option<usize>,
    pub capabilities: bool,
}

pub const VERSION_1: u64 = 1 << 32;

impl Default for Spec {
    fn default() -> Self {
        let mut config = vec![0; 24];
        config[..6].copy_from_slice(&[0x52, 0x54, 0, 1, 2, 3]);
        (config[6], config[8], config[10], config[11]) = (1, 1, 0x28, 0x23);
        Self {
            vendor: 0x1af4,
            id: 0x1041,
            features: VERSION_1,
            config,
            queues: 3,
            sizes: vec![64],
            control: None,
            capabilities: true,
        }
    }
}

#[derive(Clone, Copy, Default)]
pub struct Queue {
    pub size: u16,
    pub vector: u16,
    pub enabled: bool,
    pub areas: [u64; 3],
    /// Indexes of the available and of the used ring.
    pub seen: u16,
    pub used: u16,
}

pub struct State {
    pub spec: Spec,
    pub status: u8,
    /// Every value that was written to the status register.
    pub statuses: Vec<u8>,
    pub features: u64,
    pub queues: Vec<Queue>,
    pub commands: Vec<Vec<u8>>,
    /// What commands are answered with.
    pub answer: u8,
    /// Whether the first receive queue had buffers when a command came, for each of `commands`.
    pub had_buffers: Vec<bool>,
    /// Instead of doing a command it says that it needs to be reset.
    pub gives_up: bool,
    /// What the used ring says of the next command, where that is not the truth: identifier, length, how far the index moves.
    pub lie: Option<(u32, u32, u16)>,
    pub notified: Vec<u16>,
    /// Queues that were reset alone, and whether such a reset does not end.
    pub reset_alone: Vec<u16>,
    pub stuck: bool,
    pub generation: u8,
    select: [u32; 2],
    queue: u16,
    config_vector: u16,
}

pub struct Scripted {
    pub state: Arc<Mutex<State>>,
    scripts: mpsc::Receiver<Script>,
}

type Script = Box<dyn FnOnce(&mut State, &mut Host<'_>) + Send>;

/// The device as the test has it.
pub struct Rig {
    pub device: Arc<InProcess>,
    state: Arc<Mutex<State>>,
    scripts: mpsc::Sender<Script>,
}

/// On a thread of its own.
pub fn rig(spec: Spec) -> Rig {
    let rig = by_hand(spec);
    rig.device.spawn(|| {}).unwrap();
    rig
}

/// Does something only in [`Rig::run`].
pub fn by_hand(spec: Spec) -> Rig {
    let (scripts, receive) = mpsc::channel();
    let state = Arc::new(Mutex::new(State {
        status: 0,
        statuses: vec![],
        features: 0,
        queues: vec![Queue::default(); spec.queues],
        commands: vec![],
        answer: 0,
        had_buffers: vec![],
        gives_up: false,
        lie: None,
        notified: vec![],
        reset_alone: vec![],
        stuck: false,
        generation: 0,
        select: [0; 2],
        queue: 0,
        config_vector: 0xffff,
        spec,
    }));
    let device = InProcess::new(Scripted { state: state.clone(), scripts: receive }).unwrap();
    Rig { device, state, scripts }
}

impl Rig {
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Has the device do something, and waits for it.
    pub fn run<T: Send + 'static>(&self, f: impl FnOnce(&mut State, &mut Host<'_>) -> T + Send + 'static) -> T {
        let (send, receive) = mpsc::channel();
        self.scripts.send(Box::new(move |state, host| send.send(f(state, host)).unwrap())).unwrap();
        if self.device.thread_id().is_none() {
            self.device.step();
        }
        receive.recv().unwrap()
    }

    /// Waits until something holds of the device.
    pub fn until(&self, what: &str, is: impl Fn(&State) -> bool) {
        let began = std::time::Instant::now();
        while !is(&self.state()) {
            assert!(began.elapsed() < LONG, "{what}");
            std::thread::yield_now();
        }
    }
}

/// A descriptor: address, length, whether the device writes.
pub type Piece = (u64, u32, bool);

impl State {
    /// The next buffer that is available in a queue: its head, and its pieces.
    pub fn find(&mut self, host: &Host<'_>, queue: usize) -> Option<(u16, Vec<Piece>)> {
        let q = &mut self.queues[queue];
        let size = u64::from(q.size);
        let driver = host.dma(Iova(q.areas[1]), 6 + 2 * size).unwrap();
        let index = u16::from_le(driver.slice::<AtomicU16>(2, 1).unwrap()[0].load(Ordering::Acquire));
        if q.seen == index {
            return None;
        }
        let ring = driver.slice::<AtomicU16>(4, q.size.into()).unwrap();
        let head = u16::from_le(ring[usize::from(q.seen % q.size)].load(Ordering::Relaxed));
        q.seen = q.seen.wrapping_add(1);
        let table = host.dma(Iova(q.areas[0]), 16 * size).unwrap();
        let table = table.slice::<[AtomicU64; 2]>(0, q.size.into()).unwrap();
        let (mut at, mut pieces) = (head, Vec::new());
        loop {
            let [address, rest] = [0, 1].map(|i| u64::from_le(table[usize::from(at)][i].load(Ordering::Relaxed)));
            if rest >> 32 & 4 != 0 {
                assert!(pieces.is_empty() && self.features & 1 << 28 != 0, "an indirect descriptor");
                let mut bytes = vec![0; rest as u32 as usize];
                assert!(host.dma(Iova(address), bytes.len() as u64).unwrap().read(0, &mut bytes));
                pieces.extend(bytes.chunks_exact(16).map(|entry| {
                    let rest = u64::from_le_bytes(entry[8..].try_into().unwrap());
                    (u64::from_le_bytes(entry[..8].try_into().unwrap()), rest as u32, rest >> 32 & 2 != 0)
                }));
                return Some((head, pieces));
            }
            pieces.push((address, rest as u32, rest >> 32 & 2 != 0));
            if rest >> 32 & 1 == 0 {
                return Some((head, pieces));
            }
            at = (rest >> 48) as u16;
        }
    }

    /// Puts an entry into the used ring, and the index on by so many.
    pub fn use_buffer(&mut self, host: &Host<'_>, queue: usize, id: u32, len: u32, by: u16) {
        let q = &mut self.queues[queue];
        let device = host.dma(Iova(q.areas[2]), 6 + 8 * u64::from(q.size)).unwrap();
        let entry = &device.slice::<[AtomicU32; 2]>(4, q.size.into()).unwrap()[usize::from(q.used % q.size)];
        entry[0].store(id.to_le(), Ordering::Relaxed);
        entry[1].store(len.to_le(), Ordering::Relaxed);
        q.used = q.used.wrapping_add(by);
        device.slice::<AtomicU16>(2, 1).unwrap()[0].store(q.used.to_le(), Ordering::Release);
    }

    /// Writes `bytes` into the next buffers of a queue, `parts` bytes each (the rest into the last), and uses them.
    pub fn receive(&mut self, host: &Host<'_>, queue: usize, bytes: &[u8], parts: &[usize]) -> bool {
        let (mut rest, mut used) = (bytes, Vec::new());
        for part in parts.iter().copied().chain(std::iter::repeat(usize::MAX)) {
            if rest.is_empty() {
                break;
            }
            let Some((head, pieces)) = self.find(host, queue) else { return false };
            let (address, room, write) = pieces[0];
            let n = part.min(rest.len()).min(room as usize);
            assert!(write && pieces.len() == 1 && host.dma(Iova(address), n as u64).unwrap().write(0, &rest[..n]));
            rest = &rest[n..];
            used.push((head, n));
        }
        for (head, n) in used {
            self.use_buffer(host, queue, head.into(), n as u32, 1);
        }
        true
    }

    /// The next buffer that the driver has the device read, whole; it is used.
    pub fn sent(&mut self, host: &Host<'_>, queue: usize) -> Option<Vec<u8>> {
        let (head, pieces) = self.find(host, queue)?;
        let bytes = read(host, &pieces);
        self.use_buffer(host, queue, head.into(), 0, 1);
        Some(bytes)
    }
}

/// What the device reads of a buffer.
pub fn read(host: &Host<'_>, pieces: &[Piece]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (address, len, _) in pieces.iter().filter(|p| !p.2) {
        let mut part = vec![0; *len as usize];
        assert!(host.dma(Iova(*address), u64::from(*len)).unwrap().read(0, &mut part));
        bytes.extend(part);
    }
    bytes
}

const COMMON: u64 = 0;
const NOTIFY: u64 = 0x1000;
const DEVICE: u64 = 0x2000;

impl Model for Scripted {
    fn shape(&self) -> Shape {
        let region = |size| ModelRegion { size, ..ModelRegion::default() };
        let mut regions = vec![ModelRegion::default(); 9];
        (regions[4], regions[7]) = (region(0x4000), region(256));
        let mut irqs = vec![IrqInfo::default(); 5];
        irqs[2] = IrqInfo { count: 4, eventfd: true, resizable: true, ..IrqInfo::default() };
        Shape { name: "scripted".to_owned(), page: PageSize::host(), regions, irqs, msix: None }
    }

    fn read(&mut self, region: u32, offset: u64, buf: &mut [u8]) -> Result<(), Refused> {
        let state = self.state.lock().unwrap();
        let bytes = if region == 7 { configuration_space(&state.spec) } else { state.registers() };
        buf.copy_from_slice(&bytes[offset as usize..][..buf.len()]);
        Ok(())
    }

    fn write(&mut self, region: u32, offset: u64, buf: &[u8]) -> Result<(), Refused> {
        if region != 7 {
            let value = buf.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b));
            self.state.lock().unwrap().write(offset, value);
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.state.lock().unwrap().restart();
    }

    fn poll(&mut self, host: &mut Host<'_>) -> Work {
        let mut state = self.state.lock().unwrap();
        if let Some(control) = state.spec.control
            && state.status & (4 | 64) == 4
            && let Some((head, pieces)) = state.find(host, control)
        {
            let command = read(host, &pieces);
            state.commands.push(command);
            let had_buffers = state.has_buffers(host);
            state.had_buffers.push(had_buffers);
            if state.gives_up {
                state.status |= 64;
                return Work::Busy;
            }
            let (address, _, _) = pieces[pieces.len() - 1];
            host.dma(Iova(address), 1).unwrap().write(0, &[state.answer]);
            let (id, len, by) = state.lie.take().unwrap_or((head.into(), 1, 1));
            state.use_buffer(host, control, id, len, by);
        }
        match self.scripts.try_recv() {
            Ok(script) => {
                script(&mut state, host);
                Work::Busy
            }
            Err(_) => Work::Idle,
        }
    }
}

fn configuration_space(spec: &Spec) -> Vec<u8> {
    let mut bytes = vec![0; 256];
    bytes[0..2].copy_from_slice(&spec.vendor.to_le_bytes());
    bytes[2..4].copy_from_slice(&spec.id.to_le_bytes());
    (bytes[6], bytes[0x2e]) = (0x10, 1);
    if spec.capabilities {
        bytes[0x34] = 0x40;
        for (i, (kind, at, len)) in [(1, COMMON, 0x3c), (2, NOTIFY, 0x100), (4, DEVICE, 64u32)].into_iter().enumerate()
        {
            let cap = 0x40 + 20 * i;
            bytes[cap..cap + 5].copy_from_slice(&[9, if i < 2 { cap as u8 + 20 } else { 0 }, 20, kind, 4]);
            bytes[cap + 8..cap + 12].copy_from_slice(&(at as u32).to_le_bytes());
            bytes[cap + 12..cap + 16].copy_from_slice(&len.to_le_bytes());
            bytes[cap + 16] = 4;
        }
    }
    bytes
}

impl State {
    fn restart(&mut self) {
        (self.status, self.features, self.config_vector) = (0, 0, 0xffff);
        for index in 0..self.queues.len() {
            self.queues[index] = Queue { size: self.largest(index), vector: 0xffff, ..Queue::default() };
        }
    }

    /// The largest size of a queue.
    fn largest(&self, index: usize) -> u16 {
        let sizes = &self.spec.sizes;
        sizes[index.min(sizes.len() - 1)]
    }

    /// Whether there is anything in the available ring of the first receive queue.
    fn has_buffers(&self, host: &Host<'_>) -> bool {
        let index = host.dma(Iova(self.queues[0].areas[1]), 4).unwrap();
        index.slice::<AtomicU16>(2, 1).unwrap()[0].load(Ordering::Acquire) != 0
    }

    fn registers(&self) -> Vec<u8> {
        let mut bytes = vec![0; 0x4000];
        let mut put = |at: usize, value: u64, n: usize| bytes[at..at + n].copy_from_slice(&value.to_le_bytes()[..n]);
        put(0x04, self.spec.features >> (32 * self.select[0]), 4);
        put(0x10, self.config_vector.into(), 2);
        put(0x12, self.queues.len() as u64, 2);
        put(0x14, self.status.into(), 1);
        put(0x15, self.generation.into(), 1);
        if let Some(queue) = self.queues.get(usize::from(self.queue)) {
            put(0x18, queue.size.into(), 2);
            put(0x1a, queue.vector.into(), 2);
            put(0x1c, queue.enabled.into(), 2);
            put(0x1e, self.queue.into(), 2);
            put(0x3a, self.stuck.into(), 2);
        }
        bytes[DEVICE as usize..][..self.spec.config.len()].copy_from_slice(&self.spec.config);
        bytes
    }

    fn write(&mut self, offset: u64, value: u64) {
        if (NOTIFY..NOTIFY + 0x100).contains(&offset) {
            assert_eq!(u64::from(value as u16), (offset - NOTIFY) / 4, "a notification at another queue's place");
            return self.notified.push(value as u16);
        }
        let largest = self.largest(self.queue.into());
        let queue = self.queues.get_mut(usize::from(self.queue));
        match (offset, queue) {
            (0x00, _) => self.select[0] = value as u32,
            (0x08, _) => self.select[1] = value as u32,
            (0x0c, _) => self.features |= value << (32 * self.select[1]),
            (0x10, _) => self.config_vector = value as u16,
            (0x14, _) => {
                self.statuses.push(value as u8);
                if value == 0 { self.restart() } else { self.status = value as u8 }
            }
            (0x16, _) => self.queue = value as u16,
            (0x18, Some(queue)) => {
                assert!(value as u16 <= largest, "{value} descriptors of a queue that can have {largest}");
                queue.size = value as u16;
            }
            (0x1a, Some(queue)) => queue.vector = value as u16,
            (0x1c, Some(queue)) => queue.enabled = value == 1,
            (0x20..0x38, Some(queue)) => {
                let area = &mut queue.areas[(offset as usize - 0x20) / 8];
                let shift = offset % 8 * 8;
                *area = *area & !(0xffff_ffff << shift) | value << shift;
            }
            (0x3a, Some(queue)) => {
                assert!(value == 1 && self.features & 1 << 40 != 0, "a queue is reset");
                *queue = Queue { size: largest, vector: 0xffff, ..Queue::default() };
                self.reset_alone.push(self.queue);
            }
            _ => panic!("a write of {value:#x} at {offset:#x}"),
        }
    }
}

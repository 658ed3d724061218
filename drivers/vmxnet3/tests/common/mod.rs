//! A vmxnet3 played by hand: registers that remember, and memory that is read and written for the test. It sends nothing and receives nothing.
#![allow(dead_code, reason = "each test program uses its part of it")]

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use wholebar_core::mem::{Arena, ArenaOptions, Iova, Pool};
use wholebar_core::model::{Host, InProcess, Model, ModelRegion, Refused, Shape};
use wholebar_core::net::{Offloads, Port, PortConfig};
use wholebar_core::pci::IrqInfo;
use wholebar_core::{PageSize, Work};
use wholebar_vmxnet3::{Options, Service, Vmxnet3};

const VRRS: u64 = 0x00;
const UVRS: u64 = 0x08;
const DSAL: u64 = 0x10;
const CMD: u64 = 0x20;
const ECR: u64 = 0x40;
/// Commands.
pub const ACTIVATE: u32 = 0xcafe_0000;
pub const QUIESCE: u32 = 0xcafe_0001;
pub const RESET: u32 = 0xcafe_0002;
pub const UPDATE_VLANS: u32 = 0xcafe_0005;
const GET_LINK: u32 = 0xf00d_0002;
const GET_MAC_LO: u32 = 0xf00d_0003;
const GET_MAC_HI: u32 = 0xf00d_0004;
/// BAR0: masks and doorbells.
pub const TXPROD: u64 = 0x600;
pub const RXPROD: u64 = 0x800;
pub const RXPROD2: u64 = 0xa00;
/// Places in shared memory.
pub const RX_MODE: u64 = 120;
pub const SHARED_ECR: u64 = 696;
/// Places in a queue's description.
pub const STOPPED: u64 = 80;
pub const STATS: u64 = 88;

/// The card's inside.
pub struct Inside {
    /// BAR0 and BAR1.
    pub registers: [Vec<u32>; 2],
    pub revisions: u32,
    pub versions: u32,
    pub vendor: [u8; 4],
    pub mac: [u8; 6],
    pub link: u32,
    /// Nobody is there any more. The ids stay: the kernel's VFIO answers for those itself.
    pub gone: bool,
    /// What these commands answer, where not 0.
    pub answers: Vec<(u32, u32)>,
    /// The commands that were given.
    pub commands: Vec<u32>,
    bus_master: bool,
    pokes: Vec<(Iova, Vec<u8>)>,
    peek: Option<(Iova, Vec<u8>)>,
    interrupt: Option<u32>,
}

/// A handle to it.
#[derive(Clone)]
pub struct FakeNic(Arc<Mutex<Inside>>);

struct NicModel(FakeNic);

impl FakeNic {
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Inside {
            registers: [vec![0; 1024], vec![0; 1024]],
            revisions: 1,
            versions: 1,
            vendor: [0xad, 0x15, 0xb0, 0x07],
            mac: [0x52, 0x54, 0, 0x12, 0x34, 0x56],
            link: 10_000 << 16 | 1,
            gone: false,
            answers: Vec::new(),
            commands: Vec::new(),
            bus_master: false,
            pokes: Vec::new(),
            peek: None,
            interrupt: None,
        })))
    }

    pub fn inside(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// A register of BAR0.
    pub fn register(&self, offset: u64) -> u32 {
        self.inside().registers[0][offset as usize / 4]
    }

    /// The commands that were given since somebody asked.
    pub fn commands(&self) -> Vec<u32> {
        std::mem::take(&mut self.inside().commands)
    }

    pub fn device(&self) -> Arc<InProcess> {
        InProcess::new(NicModel(self.clone())).unwrap()
    }

    /// The device's write to memory.
    pub fn poke(&self, device: &InProcess, at: Iova, bytes: &[u8]) {
        self.inside().pokes.push((at, bytes.to_vec()));
        device.step();
    }

    /// A read of the device's.
    pub fn peek(&self, device: &InProcess, at: Iova, len: usize) -> Vec<u8> {
        self.inside().peek = Some((at, vec![0; len]));
        device.step();
        self.inside().peek.take().unwrap().1
    }

    pub fn word(&self, device: &InProcess, at: Iova) -> u32 {
        u32::from_le_bytes(*self.peek(device, at, 4).first_chunk().unwrap())
    }

    pub fn long(&self, device: &InProcess, at: Iova) -> u64 {
        u64::from_le_bytes(*self.peek(device, at, 8).first_chunk().unwrap())
    }

    /// A place in shared memory.
    pub fn shared(&self, offset: u64) -> Iova {
        let [low, high] = [DSAL, DSAL + 8].map(|at| u64::from(self.inside().registers[1][at as usize / 4]));
        Iova(low | high << 32).offset(offset)
    }

    /// A place in the description of a queue: those that send come first.
    pub fn queue(&self, device: &InProcess, queue: u64, offset: u64) -> Iova {
        Iova(self.long(device, self.shared(40))).offset(256 * queue + offset)
    }

    pub fn interrupt(&self, device: &InProcess, vector: u32) {
        self.inside().interrupt = Some(vector);
        device.step();
    }
}

impl Model for NicModel {
    fn shape(&self) -> Shape {
        let region = |size| ModelRegion { size, ..ModelRegion::default() };
        let mut regions = vec![ModelRegion::default(); 9];
        (regions[0], regions[1], regions[7]) = (region(4096), region(4096), region(4096));
        let msix = IrqInfo { count: 25, eventfd: true, maskable: false, resizable: true };
        let irqs = vec![IrqInfo::default(), IrqInfo::default(), msix, IrqInfo::default(), IrqInfo::default()];
        Shape { name: "by hand".to_owned(), page: PageSize::host(), regions, irqs, msix: None }
    }

    fn read(&mut self, region: u32, offset: u64, buf: &mut [u8]) -> Result<(), Refused> {
        let inside = self.0.inside();
        if region == 7 {
            let mut config = [0; 64];
            config[..4].copy_from_slice(&inside.vendor);
            config[4] = 2 | u8::from(inside.bus_master) << 2;
            config[8..12].copy_from_slice(&[1, 0, 0, 2]);
            if inside.gone {
                config[4..].fill(0xff);
            }
            for (i, byte) in buf.iter_mut().enumerate() {
                *byte = config.get(offset as usize + i).copied().unwrap_or(0);
            }
            return Ok(());
        }
        let [a, b, c, d, e, f] = inside.mac;
        let value = match (region, offset) {
            _ if inside.gone => u32::MAX,
            (1, VRRS) => inside.revisions,
            (1, UVRS) => inside.versions,
            (1, CMD) => {
                let last = inside.registers[1][CMD as usize / 4];
                let other = inside.answers.iter().find(|(command, _)| *command == last).map(|(_, answer)| *answer);
                other.unwrap_or(match last {
                    GET_LINK => inside.link,
                    GET_MAC_LO => u32::from_le_bytes([a, b, c, d]),
                    GET_MAC_HI => u32::from_le_bytes([e, f, 0, 0]),
                    _ => 0,
                })
            }
            _ => inside.registers[region as usize][offset as usize / 4],
        };
        buf.copy_from_slice(value.to_le_bytes().get(..buf.len()).ok_or(Refused(22))?);
        Ok(())
    }

    fn write(&mut self, region: u32, offset: u64, buf: &[u8]) -> Result<(), Refused> {
        let mut inside = self.0.inside();
        if region == 7 {
            if offset == 4 {
                inside.bus_master = buf[0] & 4 != 0;
            }
            return Ok(());
        }
        let value = u32::from_le_bytes(buf.try_into().map_err(|_| Refused(22))?);
        inside.registers[region as usize][offset as usize / 4] = value;
        if (region, offset) == (1, CMD) {
            inside.commands.push(value);
        }
        Ok(())
    }

    fn reset(&mut self) {}

    fn poll(&mut self, host: &mut Host<'_>) -> Work {
        let mut inside = self.0.inside();
        for (at, bytes) in std::mem::take(&mut inside.pokes) {
            if let Some(memory) = host.dma(at, bytes.len() as u64) {
                match bytes.as_slice().try_into().ok() {
                    // A descriptor's word, with all that was written before.
                    Some(word) if at.0.is_multiple_of(8) => {
                        if let Some(to) = memory.u64(0) {
                            to.store(u64::from_ne_bytes(word), std::sync::atomic::Ordering::Release);
                        }
                    }
                    _ => _ = memory.write(0, &bytes),
                }
            }
        }
        if let Some((at, bytes)) = &mut inside.peek
            && let Some(memory) = host.dma(*at, bytes.len() as u64)
        {
            memory.read(0, bytes);
        }
        if let Some(vector) = inside.interrupt.take() {
            host.interrupt(vector);
        }
        // Events that were acknowledged go.
        let acknowledged = std::mem::take(&mut inside.registers[1][ECR as usize / 4]);
        drop(inside);
        if acknowledged != 0
            && let Some(memory) = host.dma(self.0.shared(SHARED_ECR), 4)
        {
            let mut events = [0; 4];
            memory.read(0, &mut events);
            memory.write(0, &(u32::from_le_bytes(events) & !acknowledged).to_le_bytes());
        }
        Work::Idle
    }
}

/// A ring of the device's, as it goes through it: where it is, how long, the next entry, its generation.
pub struct Ring {
    base: Iova,
    len: u32,
    pub next: u32,
}

impl Ring {
    pub fn at(&self) -> Iova {
        self.base.offset(16 * u64::from(self.next % self.len))
    }

    pub fn generation(&self) -> u64 {
        u64::from((self.next / self.len).is_multiple_of(2))
    }
}

/// A driver on it, and buffers of 1024 bytes with no headroom.
pub struct Rig {
    pub vmxnet3: Vmxnet3,
    pub pool: Pool,
    pub nic: FakeNic,
    pub device: Arc<InProcess>,
}

pub const BUFFERS: u32 = 128;

impl Rig {
    /// The rings of queue `queue` as the device was told of them: those that send come first. Of buffers or descriptors; of completions.
    pub fn rings(&self, queue: u64) -> [Ring; 3] {
        [(16, 56), (24, 60), (32, 64)].map(|(base, len)| Ring {
            base: Iova(self.nic.long(&self.device, self.nic.queue(&self.device, queue, base))),
            len: self.nic.word(&self.device, self.nic.queue(&self.device, queue, len)),
            next: 0,
        })
    }

    pub fn entry(&self, at: Iova) -> [u64; 2] {
        [self.nic.long(&self.device, at), self.nic.long(&self.device, at.offset(8))]
    }

    /// Writes a completion, but for its generation.
    pub fn complete(&self, done: &mut Ring, [low, high]: [u64; 2]) {
        let at = done.at();
        self.nic.poke(&self.device, at, &low.to_le_bytes());
        self.nic.poke(&self.device, at.offset(8), &(high & !(1 << 63) | done.generation() << 63).to_le_bytes());
        done.next += 1;
    }

    /// Receives: writes `bytes` where the next descriptor says, and then a completion: `low` and `high` besides what follows from that.
    pub fn receive(&self, id: u64, [from, done]: [&mut Ring; 2], bytes: &[u8], [low, high]: [u64; 2]) {
        let [at, word] = self.entry(from.at());
        assert_eq!(word >> 31 & 1, from.generation(), "the device has no buffer");
        self.nic.poke(&self.device, Iova(at), bytes);
        let index = u64::from(from.next % from.len);
        from.next += 1;
        self.complete(done, [low | index | id << 16, high | bytes.len() as u64]);
    }

    pub fn statistic(&self, queue: &str, name: &str) -> u64 {
        let all = self.vmxnet3.statistics();
        all.iter().find(|s| s.queue == queue && s.name == name).map_or(u64::MAX, |s| s.value)
    }
}

pub fn manual() -> Options {
    Options { service: Service::Manual, stop_timeout: Duration::from_secs(600), ..Options::default() }
}

pub fn small() -> PortConfig {
    let offloads = Offloads::ALL.without(Offloads { lro: true, ..Offloads::NONE });
    PortConfig { rx_descriptors: Some(32), tx_descriptors: Some(32), headroom: 0, offloads, ..PortConfig::default() }
}

pub fn rig(config: PortConfig) -> Rig {
    rig_with(FakeNic::new(), config, manual())
}

pub fn rig_with(nic: FakeNic, config: PortConfig, options: Options) -> Rig {
    let device = nic.device();
    let vmxnet3 = Vmxnet3::open(device.clone(), config, options).unwrap();
    let arena = Arena::new(1 << 18, ArenaOptions::default()).unwrap();
    vmxnet3.attach(arena.clone()).unwrap();
    let pool = Pool::new(arena, BUFFERS, 1024, 64).unwrap();
    Rig { vmxnet3, pool, nic, device }
}

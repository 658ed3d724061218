//! One of Intel's controllers played by hand: registers that remember, and memory that is read and written for the test. It sends nothing and receives
//! nothing.
#![allow(dead_code, reason = "each test program uses its part of it")]

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use wholebar_core::mem::{Arena, ArenaOptions, Iova, Pool};
use wholebar_core::model::{Host, InProcess, Model, ModelRegion, Refused, Shape};
use wholebar_core::net::PortConfig;
use wholebar_core::pci::IrqInfo;
use wholebar_core::{PageSize, Work};
use wholebar_intel::{Controller, Nic, Options, Service};

pub const CTRL: u64 = 0x0000;
pub const STATUS: u64 = 0x0008;
pub const EEC: u64 = 0x0010;
const EERD: u64 = 0x0014;
pub const CTRL_EXT: u64 = 0x0018;
const MDIC: u64 = 0x0020;
pub const ICR: u64 = 0x00c0;
const EXTCNF_CTRL: u64 = 0x0f00;
const SWSM: u64 = 0x5b50;
/// P2VMAILBOX of the first of eight virtual functions, and the first of their mailboxes' words, 16 each.
const P2VMAILBOX: u64 = 0x0c00;
pub const MAILBOX: u64 = 0x0800;
/// Bits that are cleared by writing a one: who has written, and whose function was reset.
pub const MBVFICR: u64 = 0x0c80;
pub const VFLRE: u64 = 0x0c88;
pub const RAL0: u64 = 0x5400;
pub const RAH0: u64 = 0x5404;
/// A queue's registers.
pub const BASE: u64 = 0x00;
pub const TAIL: u64 = 0x18;
pub const QUEUE_CONTROL: u64 = 0x28;

/// The card's inside.
pub struct Inside {
    pub registers: Vec<u32>,
    pub eeprom: [u16; 64],
    /// Where the first queues' registers are.
    pub rx: u64,
    pub tx: u64,
    pub vendor: [u8; 4],
    /// Nobody is there any more. The ids stay: the kernel's VFIO answers for those itself.
    pub gone: bool,
    /// CTRL.RST stays.
    pub stuck_reset: bool,
    /// Queues stay enabled.
    pub stuck_queues: bool,
    /// Firmware has the EEPROM and the PHYs.
    pub firmware: bool,
    pub resets: u32,
    /// Virtual functions that it has (SR-IOV).
    pub functions: u8,
    /// What was written to P2VMAILBOX, each with its function.
    pub mailboxes: Vec<(u64, u32)>,
    bus_master: bool,
    pokes: Vec<(Iova, Vec<u8>)>,
    peek: Option<(Iova, Vec<u8>)>,
    interrupt: Option<u32>,
}

/// A handle to it.
#[derive(Clone)]
pub struct FakeNic(Arc<Mutex<Inside>>);

struct NicModel(FakeNic);

impl Inside {
    fn reset(&mut self) {
        self.registers.fill(0);
        // An EEPROM that was read; link up, 1000 Mb/s, full duplex.
        self.registers[EEC as usize / 4] = 1 << 8 | 1 << 9;
        self.registers[STATUS as usize / 4] = 0x83;
        self.resets += 1;
    }
}

impl FakeNic {
    pub fn new<F: Controller>() -> Self {
        let mut eeprom = [0; 64];
        eeprom[..3].copy_from_slice(&[0x5452, 0x1200, 0x5634]);
        let sum = eeprom.iter().fold(0u16, |sum, word| sum.wrapping_add(*word));
        eeprom[63] = 0xbabau16.wrapping_sub(sum);
        let mut inside = Inside {
            registers: vec![0; 0x8000],
            eeprom,
            rx: if F::NAME == "igb" { 0xc000 } else { 0x2800 },
            tx: if F::NAME == "igb" { 0xe000 } else { 0x3800 },
            vendor: [0x86, 0x80, F::IDS[0].1 as u8, (F::IDS[0].1 >> 8) as u8],
            gone: false,
            stuck_reset: false,
            stuck_queues: false,
            firmware: false,
            resets: 0,
            functions: 0,
            mailboxes: Vec::new(),
            bus_master: false,
            pokes: Vec::new(),
            peek: None,
            interrupt: None,
        };
        inside.reset();
        Self(Arc::new(Mutex::new(inside)))
    }

    pub fn inside(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// The registers of the first queue that receives, and of the first that sends.
    pub fn rx(&self) -> u64 {
        self.inside().rx
    }

    pub fn tx(&self) -> u64 {
        self.inside().tx
    }

    pub fn register(&self, offset: u64) -> u32 {
        self.inside().registers[offset as usize / 4]
    }

    pub fn set(&self, offset: u64, value: u32) {
        self.inside().registers[offset as usize / 4] = value;
    }

    pub fn device(&self) -> Arc<InProcess> {
        InProcess::new(NicModel(self.clone())).unwrap()
    }

    /// Where a queue's descriptor is.
    pub fn descriptor(&self, queue: u64, index: u32) -> Iova {
        let base = u64::from(self.register(queue + BASE)) | u64::from(self.register(queue + BASE + 4)) << 32;
        Iova(base).offset(16 * u64::from(index))
    }

    /// The device's writes to memory: all of them before the next.
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

    /// Two words of a descriptor.
    pub fn words(&self, device: &InProcess, queue: u64, index: u32) -> [u64; 2] {
        let bytes = self.peek(device, self.descriptor(queue, index), 16);
        let word = |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().unwrap());
        [word(0), word(8)]
    }

    /// Writes a descriptor back.
    pub fn write_back(&self, device: &InProcess, queue: u64, index: u32, words: [u64; 2]) {
        let at = self.descriptor(queue, index);
        self.poke(device, at, &words[0].to_le_bytes());
        self.poke(device, at.offset(8), &words[1].to_le_bytes());
    }

    /// Receives: writes `bytes` where the descriptor says, and then the descriptor.
    pub fn receive(&self, device: &InProcess, index: u32, bytes: &[u8], status: u64) {
        let rx = self.rx();
        let [at, _] = self.words(device, rx, index);
        self.poke(device, Iova(at), bytes);
        self.write_back(device, rx, index, [0, status | (bytes.len() as u64) << 32]);
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
        (regions[0], regions[7]) = (region(0x2_0000), region(4096));
        let msix = IrqInfo { count: 10, eventfd: true, maskable: false, resizable: true };
        let irqs = vec![IrqInfo::default(), IrqInfo::default(), msix, IrqInfo::default(), IrqInfo::default()];
        Shape { name: "by hand".to_owned(), page: PageSize::host(), regions, irqs, msix: None }
    }

    fn read(&mut self, region: u32, offset: u64, buf: &mut [u8]) -> Result<(), Refused> {
        let mut inside = self.0.inside();
        if region == 7 {
            let mut config = [0; 0x140];
            if inside.functions > 0 {
                // SR-IOV's capability: VF Enable, NumVFs.
                (config[0x100], config[0x102], config[0x108], config[0x110]) = (0x10, 1, 1, inside.functions);
            }
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
        let index = offset as usize / 4;
        let value = inside.registers[index];
        match offset {
            _ if inside.gone => {
                buf.fill(0xff);
                return Ok(());
            }
            SWSM => inside.registers[index] |= 1,
            ICR | 0x4000..0x4100 => inside.registers[index] = 0,
            _ => {}
        }
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
        let value = match offset {
            CTRL if value >> 26 & 1 != 0 && !inside.stuck_reset => {
                inside.reset();
                return Ok(());
            }
            EERD => 2 | u32::from(inside.eeprom[(value >> 2) as usize % 64]) << 16,
            MDIC => value | 1 << 28,
            SWSM if inside.firmware => value & !2,
            EXTCNF_CTRL if inside.firmware => value & !(1 << 5),
            STATUS => return Ok(()),
            MBVFICR | VFLRE => inside.registers[offset as usize / 4] & !value,
            P2VMAILBOX..0x0c20 => {
                inside.mailboxes.push(((offset - P2VMAILBOX) / 4, value));
                value
            }
            _ if inside.stuck_queues && offset >= inside.rx && offset & 0x3f == QUEUE_CONTROL => value | 1 << 25,
            _ => value,
        };
        inside.registers[offset as usize / 4] = value;
        Ok(())
    }

    fn reset(&mut self) {
        self.0.inside().reset();
    }

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
        Work::Idle
    }
}

/// A driver on it, and buffers of 1024 bytes with no headroom.
pub struct Rig<F: Controller> {
    pub port: Nic<F>,
    pub pool: Pool,
    pub nic: FakeNic,
    pub device: Arc<InProcess>,
}

pub const BUFFERS: u32 = 64;

pub fn manual() -> Options {
    Options { service: Service::Manual, stop_timeout: Duration::from_secs(600), ..Options::default() }
}

pub fn small() -> PortConfig {
    let offloads = wholebar_core::net::Offloads::ALL;
    PortConfig { rx_descriptors: Some(16), tx_descriptors: Some(16), headroom: 0, offloads, ..PortConfig::default() }
}

pub fn rig<F: Controller>(config: PortConfig) -> Rig<F> {
    rig_with(config, manual())
}

pub fn rig_with<F: Controller>(config: PortConfig, options: Options) -> Rig<F> {
    let nic = FakeNic::new::<F>();
    let device = nic.device();
    let port = Nic::open(device.clone(), config, options).unwrap();
    let arena = Arena::new(1 << 18, ArenaOptions::default()).unwrap();
    port.attach(arena.clone()).unwrap();
    let pool = Pool::new(arena, BUFFERS, 1024, 64).unwrap();
    Rig { port, pool, nic, device }
}

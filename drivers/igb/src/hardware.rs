//! The device as registers: reset, EEPROM, PHY, link, queues on and off. Every wait ends.

use crate::error::{Error, Result};
use crate::regs::{self, queue};
use std::sync::Arc;
use std::time::{Duration, Instant};
use wholebar_core::Error as Core;
use wholebar_core::bar::{Bar, BarOptions};
use wholebar_core::net::{Link, Mac};
use wholebar_core::pci::{Config, PciDevice, config, function};

use crate::options::Options;

/// The PCI ids, vendor and device, of what this driver is for: Intel's 82576 with copper PHYs (82576EB, NS, quad port ET and ET2).
pub const IDS: [(u16, u16); 4] = [(0x8086, 0x10c9), (0x8086, 0x150a), (0x8086, 0x10e8), (0x8086, 0x1526)];
/// How long registers, EEPROM and PHY may take to do what they are asked to.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long the device is given to read its EEPROM after a reset. One without an EEPROM never says that it did.
const AUTO_READ: Duration = Duration::from_millis(20);
/// The sum of the EEPROM's first 64 words.
const CHECKSUM: u16 = 0xbaba;
/// The internal PHY's address.
const PHY: u32 = 1;
/// The PHY's control register (IEEE 802.3, 22.2.4.1): autonegotiation on, and begin it.
const PHY_CONTROL: u32 = 0;
const PHY_NEGOTIATE: u16 = 1 << 12 | 1 << 9;
/// Loopback, power down, isolate.
const PHY_AWAY: u16 = 1 << 14 | 1 << 11 | 1 << 10;

/// BAR0.
pub(crate) struct Hardware {
    pub device: Arc<dyn PciDevice>,
    pub bar: Bar,
}

/// Who uses a part of the device that firmware uses too: bits of SW_FW_SYNC, its own in the lower half, firmware's in the upper.
#[derive(Clone, Copy)]
struct Shared(u32);

impl Shared {
    const EEPROM: Self = Self(1);

    fn phy(port: u32) -> Self {
        Self(1 << (1 + port.min(1)))
    }
}

impl Hardware {
    /// Opens BAR0.
    pub fn open(device: Arc<dyn PciDevice>, options: &Options) -> Result<Self> {
        let found = Config::of(device.as_ref())?;
        let unfit = |why: String| Error::Unfit { device: device.name().to_owned(), why };
        if !IDS.contains(&(found.vendor(), found.device())) {
            return Err(unfit(format!("it is {:04x}:{:04x}, and not an 82576", found.vendor(), found.device())));
        }
        config::enable_memory(device.as_ref(), true)?;
        let all = [0..regs::SIZE];
        let bar =
            Bar::of(device.clone(), 0, BarOptions { policy: options.policy, page: options.page, registers: &all })?;
        if bar.size() < regs::SIZE {
            return Err(unfit(format!("its BAR0 has {:#x} bytes", bar.size())));
        }
        let hw = Self { device, bar };
        if hw.read(regs::STATUS)? == regs::GONE {
            return Err(hw.gone("its status reads as all ones"));
        }
        let mode = hw.read(regs::CTRL_EXT)? & regs::CTRL_EXT_LINK_MODE;
        if mode != 0 {
            let why = format!("its link is not the internal copper PHY's (LINK_MODE is {})", mode >> 22);
            return Err(Error::Unfit { device: hw.name(), why });
        }
        Ok(hw)
    }

    pub fn name(&self) -> String {
        self.device.name().to_owned()
    }

    pub fn gone(&self, why: &str) -> Error {
        Core::Gone { device: self.name(), why: why.to_owned() }.into()
    }

    /// Reads a register. A backend whose device is gone says so.
    pub fn read(&self, register: u64) -> Result<u32> {
        Ok(self.bar.read(register)?)
    }

    pub fn write(&self, register: u64, value: u32) -> Result<()> {
        Ok(self.bar.write(register, value)?)
    }

    /// Sets and clears bits of a register.
    fn change(&self, register: u64, set: u32, clear: u32) -> Result<()> {
        self.write(register, self.read(register)? & !clear | set)
    }

    /// Whether the device answers. Configuration space is asked too: a mapped register may still read as it did when nobody is there.
    pub fn healthy(&self) -> Result<()> {
        function::check(self.device.as_ref())?;
        if let Some(Core::Gone { why, .. }) = self.bar.failure() {
            return Err(self.gone(why));
        }
        match self.read(regs::STATUS)? {
            regs::GONE => Err(self.gone("its status reads as all ones")),
            _ => Ok(()),
        }
    }

    /// Waits until `is` holds of a register.
    fn wait(&self, what: &'static str, register: u64, waited: Duration, is: impl Fn(u32) -> bool) -> Result<u32> {
        let value = self.bar.wait_for(what, register, waited, |value| value == regs::GONE || is(value))?;
        if is(value) { Ok(value) } else { Err(self.gone("a register reads as all ones")) }
    }

    fn not_ready(&self, what: &'static str, register: u64, value: u32) -> Error {
        let (device, bar, value) = (self.name(), self.bar.plan().layout.bar, value.into());
        Core::NotReady { device, what, bar, offset: register, value, waited: PATIENCE }.into()
    }

    /// Resets the device by software (4.2.1.6.1): all but PCI configuration, EITR and packet buffer sizes is as after power-up, and no queue is
    /// enabled. Its own requests on the bus end before.
    pub fn reset(&self) -> Result<()> {
        self.quiet()?;
        self.write(regs::RCTL, 0)?;
        self.write(regs::TCTL, regs::TCTL_PAD)?;
        self.change(regs::CTRL, regs::CTRL_MASTER_DISABLE, 0)?;
        let drained = self.wait("end its requests", regs::STATUS, PATIENCE, |v| v & regs::STATUS_MASTER == 0);
        match drained {
            Ok(_) => {}
            // The reset ends them.
            Err(error @ Error::Core(Core::NotReady { .. })) => tracing::warn!(%error, "before a reset"),
            Err(error) => return Err(error),
        }
        self.change(regs::CTRL, regs::CTRL_RESET, 0)?;
        // Nothing may be looked at for a millisecond (4.2.1.6.1).
        std::thread::sleep(Duration::from_millis(1));
        self.wait("end its reset", regs::CTRL, PATIENCE, |v| v & regs::CTRL_RESET == 0)?;
        match self.wait("read its EEPROM", regs::EEC, AUTO_READ, |v| v & regs::EEC_AUTO_READ != 0) {
            Ok(_) | Err(Error::Core(Core::NotReady { .. })) => {}
            Err(error) => return Err(error),
        }
        self.quiet()?;
        for n in 0..regs::QUEUES {
            self.enable_queue(regs::rx_queue(n), None)?;
            self.enable_queue(regs::tx_queue(n), None)?;
        }
        Ok(())
    }

    /// Masks all interrupts, and forgets those that are pending.
    fn quiet(&self) -> Result<()> {
        self.write(regs::IMC, u32::MAX)?;
        self.write(regs::EIMC, u32::MAX)?;
        self.read(regs::ICR)?;
        Ok(())
    }

    /// Enables the queue whose registers are at `place`, with these thresholds, or disables it; waits until that is so (8.10.10, 8.12.13).
    pub fn enable_queue(&self, place: u64, thresholds: Option<u32>) -> Result<()> {
        let control = place + queue::CONTROL;
        let before = self.read(control)?;
        match thresholds {
            Some(thresholds) => {
                self.write(control, thresholds | queue::ENABLE)?;
                self.wait("enable a queue", control, PATIENCE, |v| v & queue::ENABLE != 0)?;
            }
            None if before & queue::ENABLE != 0 => {
                self.write(control, before & !queue::ENABLE)?;
                self.wait("disable a queue", control, PATIENCE, |v| v & queue::ENABLE == 0)?;
            }
            None => {}
        }
        Ok(())
    }

    /// Which port of the device this function is (STATUS.LAN_ID).
    fn port(&self) -> Result<u32> {
        Ok(self.read(regs::STATUS)? >> 2 & 3)
    }

    /// Does something with a part that firmware uses too.
    fn with<T>(&self, shared: Shared, f: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        loop {
            let over = start.elapsed() >= PATIENCE;
            self.semaphore()?;
            let users = self.read(regs::SW_FW_SYNC)?;
            let free = users & (shared.0 | shared.0 << 16) == 0;
            if free {
                self.write(regs::SW_FW_SYNC, users | shared.0)?;
            }
            self.write(regs::SWSM, 0)?;
            if free {
                break;
            }
            if over {
                return Err(self.not_ready("give up the EEPROM or the PHY to us", regs::SW_FW_SYNC, users));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let done = f();
        self.semaphore()?;
        let users = self.read(regs::SW_FW_SYNC)?;
        self.write(regs::SW_FW_SYNC, users & !shared.0)?;
        self.write(regs::SWSM, 0)?;
        done
    }

    /// Takes the semaphore that guards SW_FW_SYNC: against other software, then against firmware.
    fn semaphore(&self) -> Result<()> {
        let free = |v: u32| v & regs::SWSM_SMBI == 0;
        if let Err(error) = self.wait("give up its semaphore", regs::SWSM, PATIENCE, free) {
            let Error::Core(Core::NotReady { .. }) = error else { return Err(error) };
            // Whoever had the device before ended with it in hand: there is one owner of a function, and that is us.
            tracing::warn!(%error, "taking it");
            self.write(regs::SWSM, 0)?;
            self.wait("give up its semaphore", regs::SWSM, PATIENCE, free)?;
        }
        let start = Instant::now();
        loop {
            let over = start.elapsed() >= PATIENCE;
            self.change(regs::SWSM, regs::SWSM_SWESMBI, 0)?;
            let value = self.read(regs::SWSM)?;
            if value & regs::SWSM_SWESMBI != 0 {
                return Ok(());
            }
            if over {
                return Err(self.not_ready("give up its firmware's semaphore", regs::SWSM, value));
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// The address that the device was made with: the EEPROM's (words 0 to 2, 6.2), or what the reset loaded from it.
    pub fn address(&self) -> Result<Mac> {
        let mut sum = 0u16;
        if self.read(regs::EEC)? & regs::EEC_PRESENT != 0 {
            let words = self.eeprom()?;
            sum = words.iter().fold(0, |sum, word| sum.wrapping_add(*word));
            let mut mac = Mac::default();
            for (bytes, word) in mac.0.chunks_exact_mut(2).zip(words) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
            // The second port's is the first's with its last bit the other way.
            mac.0[5] ^= (self.port()? & 1) as u8;
            if sum == CHECKSUM && mac.is_unicast() {
                return Ok(mac);
            }
            tracing::warn!(device = self.name(), sum, %mac, "the EEPROM is not used: its checksum or address is wrong");
        }
        let (low, high) = regs::receive_address(0);
        let (low, high) = (self.read(low)?.to_le_bytes(), self.read(high)?);
        let mac = Mac([low[0], low[1], low[2], low[3], high as u8, (high >> 8) as u8]);
        match high & regs::RAH_VALID != 0 && mac.is_unicast() {
            true => Ok(mac),
            false => Err(Error::NoAddress { device: self.name(), checksum: sum }),
        }
    }

    /// The EEPROM's first 64 words, which its checksum is over.
    fn eeprom(&self) -> Result<[u16; 64]> {
        self.with(Shared::EEPROM, || {
            let mut words = [0; 64];
            for (address, word) in (0u32..).zip(&mut words) {
                self.write(regs::EERD, address << 2 | regs::EERD_START)?;
                let value = self.wait("read its EEPROM", regs::EERD, PATIENCE, |v| v & regs::EERD_DONE != 0)?;
                *word = (value >> 16) as u16;
            }
            Ok(words)
        })
    }

    /// Has the PHY look for a link (3.5, 8.2.4).
    pub fn start_link(&self) -> Result<()> {
        self.change(regs::CTRL, regs::CTRL_SET_LINK_UP, regs::CTRL_FORCE)?;
        let port = self.port()?;
        self.with(Shared::phy(port), || {
            let control = self.phy(regs::MDIC_READ | PHY_CONTROL << 16)?;
            let control = control & !PHY_AWAY | PHY_NEGOTIATE;
            self.phy(regs::MDIC_WRITE | PHY_CONTROL << 16 | u32::from(control))?;
            Ok(())
        })
    }

    /// One access to the PHY.
    fn phy(&self, access: u32) -> Result<u16> {
        self.write(regs::MDIC, access | PHY << 21)?;
        let value = self.wait("reach its PHY", regs::MDIC, PATIENCE, |v| v & regs::MDIC_READY != 0)?;
        if value & regs::MDIC_ERROR != 0 {
            return Err(self.not_ready("reach its PHY without an error", regs::MDIC, value));
        }
        Ok(value as u16)
    }

    /// How the link is (STATUS: FD, LU, SPEED).
    pub fn link(&self) -> Result<Link> {
        let status = self.read(regs::STATUS)?;
        if status == regs::GONE {
            return Err(self.gone("its status reads as all ones"));
        }
        if status >> 1 & 1 == 0 {
            return Ok(Link::default());
        }
        let speed = match status >> 6 & 3 {
            0 => 10,
            1 => 100,
            _ => 1000,
        };
        Ok(Link { up: true, speed: Some(speed), full_duplex: Some(status & 1 != 0) })
    }

    /// Lets the function do DMA, or not.
    pub fn bus_master(&self, on: bool) -> Result<()> {
        Ok(config::enable_bus_master(self.device.as_ref(), on)?)
    }
}

//! A device as registers, and what of it is the same in all families: reset, EEPROM, PHY, link. Every wait ends.

use crate::Options;
use crate::error::{Error, Result};
use crate::family::Family;
use crate::regs::{self, queue};
use std::sync::Arc;
use std::time::Duration;
use wholebar_core::Error as Core;
use wholebar_core::bar::{Bar, BarOptions};
use wholebar_core::net::{Link, Mac};
use wholebar_core::pci::{Config, PciDevice, config, function};

/// How long registers, EEPROM and PHY may take to do what they are asked to.
pub const PATIENCE: Duration = Duration::from_millis(500);
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
pub struct Hardware {
    pub device: Arc<dyn PciDevice>,
    pub bar: Bar,
}

impl Hardware {
    /// Opens BAR0 of a device of the family.
    pub fn open<F: Family>(device: Arc<dyn PciDevice>, options: &Options) -> Result<Self> {
        let found = Config::of(device.as_ref())?;
        let unfit = |why: String| Error::Unfit { device: device.name().to_owned(), why };
        if !F::IDS.contains(&(found.vendor(), found.device())) {
            return Err(unfit(format!("it is {:04x}:{:04x}, and not {}", found.vendor(), found.device(), F::DEVICE)));
        }
        config::enable_memory(device.as_ref(), true)?;
        let all = [0..F::REGISTERS];
        let bar =
            Bar::of(device.clone(), 0, BarOptions { policy: options.policy, page: options.page, registers: &all })?;
        if bar.size() < F::REGISTERS {
            return Err(unfit(format!("its BAR0 has {:#x} bytes", bar.size())));
        }
        let hw = Self { device, bar };
        if hw.read(regs::STATUS)? == regs::GONE {
            return Err(hw.gone("its status reads as all ones"));
        }
        F::check(&hw)?;
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
    pub fn change(&self, register: u64, set: u32, clear: u32) -> Result<()> {
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
    pub fn wait(&self, what: &'static str, register: u64, waited: Duration, is: impl Fn(u32) -> bool) -> Result<u32> {
        let value = self.bar.wait_for(what, register, waited, |value| value == regs::GONE || is(value))?;
        if is(value) { Ok(value) } else { Err(self.gone("a register reads as all ones")) }
    }

    pub fn not_ready(&self, what: &'static str, register: u64, value: u32) -> Error {
        let (device, bar, value) = (self.name(), self.bar.plan().layout.bar, value.into());
        Core::NotReady { device, what, bar, offset: register, value, waited: PATIENCE }.into()
    }

    /// Resets the device by software (4.2.1.6.1): all but PCI configuration, EITR and packet buffer sizes is as after power-up. Its own requests on the
    /// bus end before.
    pub fn reset(&self) -> Result<()> {
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
            Ok(_) | Err(Error::Core(Core::NotReady { .. })) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The address that the device was made with: the EEPROM's (words 0 to 2, 6.2), or what the reset loaded from it. The EEPROM has that of the first
    /// port, and those of others differ from it by `port` in their last bits.
    pub fn address(&self, eeprom: Option<[u16; 64]>, port: u8) -> Result<Mac> {
        let mut sum = 0u16;
        if let Some(words) = eeprom {
            sum = words.iter().fold(0, |sum, word| sum.wrapping_add(*word));
            let mut mac = Mac::default();
            for (bytes, word) in mac.0.chunks_exact_mut(2).zip(words) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
            mac.0[5] ^= port;
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

    /// The EEPROM's first 64 words, which its checksum is over. It is [shared](Family::with) with firmware.
    pub fn eeprom(&self) -> Result<[u16; 64]> {
        let mut words = [0; 64];
        for (address, word) in (0u32..).zip(&mut words) {
            self.write(regs::EERD, address << 2 | regs::EERD_START)?;
            let value = self.wait("read its EEPROM", regs::EERD, PATIENCE, |v| v & regs::EERD_DONE != 0)?;
            *word = (value >> 16) as u16;
        }
        Ok(words)
    }

    /// Has the PHY negotiate a link (3.5, 8.2.4). It is [shared](Family::with) with firmware.
    pub fn negotiate(&self) -> Result<()> {
        let control = self.phy(regs::MDIC_READ | PHY_CONTROL << 16)?;
        let control = control & !PHY_AWAY | PHY_NEGOTIATE;
        self.phy(regs::MDIC_WRITE | PHY_CONTROL << 16 | u32::from(control))?;
        Ok(())
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

    /// Tells the device where a queue's ring is, whose registers are at `place`: `bytes` at `base`, and empty.
    pub fn write_ring(&self, place: u64, base: u64, bytes: u32) -> Result<()> {
        self.write(place + queue::BASE_LOW, base as u32)?;
        self.write(place + queue::BASE_HIGH, (base >> 32) as u32)?;
        self.write(place + queue::LENGTH, bytes)?;
        self.write(place + queue::HEAD, 0)?;
        self.write(place + queue::TAIL, 0)
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

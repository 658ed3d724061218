//! PCI configuration space: a snapshot of its bytes, decoded.
//!
//! Section numbers are those of the PCI Express Base Specification 6.0. The bytes are a device's, so they are *input*: every walk of a list ends on any
//! bytes, and nothing is read past the end. Only [`enable_bus_master`] and [`enable_memory`] write; interrupts are configured through
//! [`PciDevice::set_irqs`] alone.
//!
//! ```
//! # use wholebar_core as wholebar;
//! use wholebar::pci::Config;
//!
//! // The header of an NVMe controller: QEMU's, which has no capabilities in these bytes.
//! let mut bytes = vec![0; 256];
//! bytes[..4].copy_from_slice(&[0x36, 0x1b, 0x10, 0x00]);
//! bytes[0x08..0x0c].copy_from_slice(&[0x02, 0x02, 0x08, 0x01]);
//! let config = Config::from_bytes("0000:01:00.0", bytes)?;
//! assert_eq!((config.vendor(), config.device()), (0x1b36, 0x0010));
//! assert_eq!(config.class().to_string(), "010802");
//! assert!(config.capabilities().next().is_none());
//! # Ok::<_, wholebar::Error>(())
//! ```

mod caps;
mod names;

pub use caps::{Express, Msi, Msix, PortType};

use super::{CONFIG, PciDevice};
use crate::{Error, Result};
use std::fmt;

/// The COMMAND register (7.5.1.1.3), in bytes.
const COMMAND: u64 = 0x04;
/// COMMAND bit 1: the function answers memory accesses.
const MEMORY_SPACE: u16 = 1 << 1;
/// COMMAND bit 2: the function may do DMA and send message interrupts.
const BUS_MASTER: u16 = 1 << 2;
/// STATUS bit 4 (7.5.1.1.4): there is a list of capabilities.
const CAPABILITIES_LIST: u16 = 1 << 4;
/// The header, in bytes; device-specific registers and capabilities follow.
const HEADER: usize = 0x40;
/// The part of configuration space that PCI had before PCI Express, in bytes; extended capabilities follow.
const COMPATIBLE: usize = 0x100;
/// All of it, in bytes.
const ALL: usize = 0x1000;

/// A snapshot of a function's configuration space.
///
/// Reading it takes one access of the device or more; everything else is computed from the snapshot.
#[derive(Clone)]
pub struct Config {
    device: String,
    /// 64 to 4096.
    bytes: Vec<u8>,
}

/// The layout of a function's header (7.5.1.1.9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HeaderType {
    /// Type 0: a device.
    Endpoint,
    /// Type 1: a bridge, switch port or root port.
    Bridge,
    /// Another layout, by its number.
    Other(u8),
}

/// The class code of a function (7.5.1.1.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Class {
    /// The base class: 1 is mass storage, 2 is network.
    pub base: u8,
    /// The sub-class.
    pub sub: u8,
    /// The programming interface.
    pub interface: u8,
}

/// As in the register: `010802`.
impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}{:02x}{:02x}", self.base, self.sub, self.interface)
    }
}

/// A base address register (7.5.1.2.1).
///
/// The BAR's size is that of its region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BarRegister {
    /// The BAR's number, 0 to 5. The upper half of a 64-bit BAR has no number of its own.
    pub index: u8,
    /// The space that the BAR decodes.
    pub kind: BarKind,
    /// The address in the register, as far as the backend shows it.
    pub address: u64,
}

/// The space that a BAR decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory.
    Memory {
        /// The BAR is 64-bit, and takes the next register as its upper half.
        wide: bool,
        /// Reads have no side effects.
        prefetchable: bool,
    },
}

/// A capability's place in configuration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Capability {
    /// The capability's number.
    pub id: CapabilityId,
    /// The version; 0 for those of the first 256 bytes, whose header has none.
    pub version: u8,
    /// The offset in bytes.
    pub offset: u16,
}

/// The number of a capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CapabilityId {
    /// A capability in the first 256 bytes.
    Pci(u8),
    /// An extended capability.
    Extended(u16),
}

impl CapabilityId {
    /// MSI (7.7.1).
    pub const MSI: Self = Self::Pci(0x05);
    /// PCI Express (7.5.3).
    pub const EXPRESS: Self = Self::Pci(0x10);
    /// MSI-X (7.7.2).
    pub const MSIX: Self = Self::Pci(0x11);
    /// Subsystem of a bridge (7.9.24).
    const SUBSYSTEM: Self = Self::Pci(0x0d);

    /// Returns the name by which `lspci` knows the capability; `None` for a number without a name.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Pci(id) => names::pci(id),
            Self::Extended(id) => names::extended(id),
        }
    }
}

impl fmt::Display for CapabilityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.name(), self) {
            (Some(name), _) => f.write_str(name),
            (None, Self::Pci(id)) => write!(f, "Capability ID {id:#04x}"),
            (None, Self::Extended(id)) => write!(f, "Extended Capability ID {id:#06x}"),
        }
    }
}

impl Config {
    /// Reads all of a device's configuration space, in one access where the backend takes that, else 4 bytes at a time.
    ///
    /// # Errors
    /// [`Error::Config`] where there is less than a header; [`Error::Gone`] where the header reads all ones; [`Error::Access`] where it cannot be read.
    pub fn of(device: &dyn PciDevice) -> Result<Self> {
        let size = device.region(CONFIG)?.size.min(ALL as u64) as usize;
        let mut bytes = vec![0; size & !3];
        if bytes.len() >= HEADER && device.read(CONFIG, 0, &mut bytes).is_err() {
            for (i, dword) in bytes.chunks_mut(4).enumerate() {
                device.read(CONFIG, 4 * i as u64, dword)?;
            }
        }
        if bytes.len() >= HEADER && bytes[..HEADER].iter().all(|b| *b == 0xff) {
            let why = "its configuration space reads all ones".to_owned();
            return Err(Error::Gone { device: device.name().to_owned(), why });
        }
        Self::from_bytes(device.name(), bytes)
    }

    /// Makes a snapshot of bytes that were read elsewhere: a header of at least 64 bytes; bytes past 4096 are dropped. `device` names it in errors.
    ///
    /// # Errors
    /// [`Error::Config`] where there is less than a header.
    pub fn from_bytes(device: &str, mut bytes: Vec<u8>) -> Result<Self> {
        bytes.truncate(ALL);
        let config = Self { device: device.to_owned(), bytes };
        match config.bytes.len() {
            HEADER.. => Ok(config),
            n => Err(config.broken(format!("it has {n} bytes, and a header alone has {HEADER}"))),
        }
    }

    /// Returns the bytes: 64 to 4096.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the byte at `offset`; `None` past the end.
    pub fn u8(&self, offset: u16) -> Option<u8> {
        self.bytes.get(usize::from(offset)).copied()
    }

    /// Returns the 16-bit word at `offset`; `None` past the end.
    pub fn u16(&self, offset: u16) -> Option<u16> {
        let bytes = self.bytes.get(usize::from(offset)..)?.first_chunk()?;
        Some(u16::from_le_bytes(*bytes))
    }

    /// Returns the 32-bit word at `offset`; `None` past the end.
    pub fn u32(&self, offset: u16) -> Option<u32> {
        let bytes = self.bytes.get(usize::from(offset)..)?.first_chunk()?;
        Some(u32::from_le_bytes(*bytes))
    }

    /// Returns the vendor id (7.5.1.1.1).
    pub fn vendor(&self) -> u16 {
        self.header(0x00)
    }

    /// Returns the device id (7.5.1.1.2).
    pub fn device(&self) -> u16 {
        self.header(0x02)
    }

    /// Returns the COMMAND register (7.5.1.1.3).
    pub fn command(&self) -> u16 {
        self.header(COMMAND as u16)
    }

    /// Returns whether the function may do DMA and send message interrupts (COMMAND bit 2).
    pub fn is_bus_master(&self) -> bool {
        self.command() & BUS_MASTER != 0
    }

    /// Returns whether the function's memory BARs answer (COMMAND bit 1).
    pub fn memory_enabled(&self) -> bool {
        self.command() & MEMORY_SPACE != 0
    }

    /// Returns the STATUS register (7.5.1.1.4).
    pub fn status(&self) -> u16 {
        self.header(0x06)
    }

    /// Returns the revision id (7.5.1.1.5).
    pub fn revision(&self) -> u8 {
        self.header(0x08) as u8
    }

    /// Returns the class code (7.5.1.1.6).
    pub fn class(&self) -> Class {
        let [interface, sub] = self.header(0x09).to_le_bytes();
        Class { base: self.header(0x0b) as u8, sub, interface }
    }

    /// Returns the layout of the header (7.5.1.1.9).
    pub fn header_type(&self) -> HeaderType {
        match self.header(0x0e) & 0x7f {
            0 => HeaderType::Endpoint,
            1 => HeaderType::Bridge,
            other => HeaderType::Other(other as u8),
        }
    }

    /// Returns whether the device has more functions than this one (7.5.1.1.9).
    pub fn is_multi_function(&self) -> bool {
        self.header(0x0e) & 0x80 != 0
    }

    /// Returns the subsystem's vendor id and id: from the header of an endpoint (7.5.1.2.3), from a capability of a bridge (7.9.24).
    pub fn subsystem(&self) -> Option<(u16, u16)> {
        match self.header_type() {
            HeaderType::Endpoint => Some((self.header(0x2c), self.header(0x2e))),
            HeaderType::Bridge => {
                let at = self.find(CapabilityId::SUBSYSTEM)?.offset;
                Some((self.u16(at + 4)?, self.u16(at + 6)?))
            }
            HeaderType::Other(_) => None,
        }
    }

    /// Returns the base address registers (7.5.1.2.1, 7.5.1.3.1): six of an endpoint, two of a bridge, fewer where some are 64-bit. A register that
    /// reads 0 may not be implemented.
    pub fn bars(&self) -> Vec<BarRegister> {
        let count = match self.header_type() {
            HeaderType::Endpoint => 6,
            HeaderType::Bridge => 2,
            HeaderType::Other(_) => 0,
        };
        let register = |i: u8| self.u32(0x10 + 4 * u16::from(i)).unwrap_or(0);
        let (mut bars, mut index) = (Vec::new(), 0);
        while index < count {
            let low = register(index);
            let (kind, address) = if low & 1 != 0 {
                (BarKind::Io, u64::from(low & !0x3))
            } else {
                // Bits 2:1 are 0b10 for 64-bit. In the last register there is no room for an upper half.
                let wide = low & 0b110 == 0b100 && index + 1 < count;
                let high = if wide { u64::from(register(index + 1)) << 32 } else { 0 };
                (BarKind::Memory { wide, prefetchable: low & 0b1000 != 0 }, high | u64::from(low & !0xf))
            };
            bars.push(BarRegister { index, kind, address });
            index += if matches!(kind, BarKind::Memory { wide: true, .. }) { 2 } else { 1 };
        }
        bars
    }

    /// Returns the capabilities of the first 256 bytes (7.5.1.1.11), in the order of their list. A list that loops ends where it comes back.
    pub fn capabilities(&self) -> impl Iterator<Item = Capability> + '_ {
        // Only these headers have the list's head at 0x34.
        let known = matches!(self.header_type(), HeaderType::Endpoint | HeaderType::Bridge);
        let listed = known && self.status() & CAPABILITIES_LIST != 0;
        let mut next = if listed { self.u8(0x34).unwrap_or(0) } else { 0 };
        let mut seen = [false; COMPATIBLE / 4];
        std::iter::from_fn(move || {
            let offset = u16::from(next & !3);
            if usize::from(offset) < HEADER || std::mem::replace(&mut seen[usize::from(offset / 4)], true) {
                return None;
            }
            let [id, following] = self.u16(offset)?.to_le_bytes();
            next = following;
            // All ones: nothing answers there.
            (id != 0xff).then_some(Capability { id: CapabilityId::Pci(id), version: 0, offset })
        })
    }

    /// Returns the extended capabilities (7.6.3), in the order of their list. A list that loops ends where it comes back.
    pub fn extended_capabilities(&self) -> impl Iterator<Item = Capability> + '_ {
        let mut next = COMPATIBLE as u16;
        let mut seen = [false; ALL / 4];
        std::iter::from_fn(move || {
            let offset = next & !3;
            if usize::from(offset) < COMPATIBLE || std::mem::replace(&mut seen[usize::from(offset / 4)], true) {
                return None;
            }
            // Zero: no capability at all. All ones: nothing answers there.
            let header = self.u32(offset).filter(|h| *h != 0 && *h != u32::MAX)?;
            next = (header >> 20) as u16;
            let id = CapabilityId::Extended(header as u16);
            Some(Capability { id, version: (header >> 16 & 0xf) as u8, offset })
        })
    }

    /// Returns the first capability with this number.
    pub fn find(&self, id: CapabilityId) -> Option<Capability> {
        match id {
            CapabilityId::Pci(_) => self.capabilities().find(|c| c.id == id),
            CapabilityId::Extended(_) => self.extended_capabilities().find(|c| c.id == id),
        }
    }

    /// Returns the MSI-X capability (7.7.2); `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Config`] where the capability is cut off, or names a BAR that no function has.
    pub fn msix(&self) -> Result<Option<Msix>> {
        let Some(found) = self.find(CapabilityId::MSIX) else { return Ok(None) };
        let Some(msix) = Msix::at(self, found.offset) else {
            return Err(self.broken(format!("the MSI-X capability at {:#x} is cut off", found.offset)));
        };
        match [msix.table_bar, msix.pba_bar].into_iter().find(|bar| *bar > 5) {
            Some(bar) => Err(self.broken(format!("its MSI-X table or PBA is in BAR{bar}, and there are BARs 0 to 5"))),
            None => Ok(Some(msix)),
        }
    }

    /// Returns the MSI capability (7.7.1); `None` where there is none.
    pub fn msi(&self) -> Option<Msi> {
        Msi::at(self, self.find(CapabilityId::MSI)?.offset)
    }

    /// Returns the PCI Express capability (7.5.3); `None` where there is none.
    pub fn express(&self) -> Option<Express> {
        Express::at(self, self.find(CapabilityId::EXPRESS)?.offset)
    }

    /// An error that says what is wrong with this device's configuration space.
    pub(crate) fn broken(&self, why: String) -> Error {
        Error::Config { device: self.device.clone(), why }
    }

    /// A word of the header, which is always there.
    fn header(&self, offset: u16) -> u16 {
        self.u16(offset).unwrap_or(0)
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = format_args!("{:04x}:{:04x}", self.vendor(), self.device());
        f.debug_struct("Config").field("device", &self.device).field("id", &id).finish_non_exhaustive()
    }
}

/// Sets whether a device may do DMA and send message interrupts (COMMAND bit 2, 7.5.1.1.3).
///
/// Linux: `pci_set_master`; DPDK: `rte_pci_set_bus_master`.
///
/// A read and, where the bit changes, a write of configuration space.
///
/// # Errors
/// [`Error::Access`] where the register cannot be reached.
pub fn enable_bus_master(device: &dyn PciDevice, on: bool) -> Result<()> {
    command(device, BUS_MASTER, on)
}

/// Sets whether a device's memory BARs answer (COMMAND bit 1, 7.5.1.1.3).
///
/// While they do not, an access to a mapped BAR finds the device gone.
///
/// # Errors
/// [`Error::Access`] where the register cannot be reached.
pub fn enable_memory(device: &dyn PciDevice, on: bool) -> Result<()> {
    command(device, MEMORY_SPACE, on)
}

fn command(device: &dyn PciDevice, bit: u16, on: bool) -> Result<()> {
    let mut bytes = [0; 2];
    device.read(CONFIG, COMMAND, &mut bytes)?;
    let old = u16::from_le_bytes(bytes);
    let new = if on { old | bit } else { old & !bit };
    if new == old { Ok(()) } else { device.write(CONFIG, COMMAND, &new.to_le_bytes()) }
}

// Pure and safe: nothing for Miri to find.
#[cfg(all(test, not(miri)))]
mod tests;

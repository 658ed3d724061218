//! A model's configuration space: the bytes, and which of their bits can be written. Models of one's own use it, too.
//!
//! A type 0 header (PCI Express Base 6.0, 7.5.1) with the capabilities that a driver of today looks at: power management, PCI Express (with
//! function-level reset) and MSI-X. What is written to the command register counts: without Bus Master Enable a model does
//! no DMA and signals no interrupt, as the specification has it.
//!
//! ```
//! use wholebar_sim::config::{Config, Identity};
//!
//! // A network controller (class 02h) of one BAR and no interrupts.
//! let identity = Identity { vendor: 0xfff0, device: 0x1234, class: 0x02_00_00, bars: vec![(0, 4096)], msix: None };
//! let mut config = Config::new(&identity);
//! let mut ids = [0; 4];
//! config.read(0, &mut ids)?;
//! assert_eq!(ids, [0xf0, 0xff, 0x34, 0x12]);
//! // The command register: memory space and bus mastering on.
//! assert!(!config.bus_master());
//! config.write(4, &[6, 0])?;
//! assert!(config.bus_master());
//! # Ok::<_, wholebar_core::model::Refused>(())
//! ```

use wholebar_core::model::{MsixPlace, Refused};

/// The size of a configuration space in bytes, extended space included.
pub const SIZE: u64 = 4096;

/// The vendor id of these models: one that nobody is listed under, chosen so that no driver takes a model for someone's product.
pub const VENDOR: u16 = 0xfff0;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const CAPABILITIES: usize = 0x34;
const PM: usize = 0x40;
const PCIE: usize = 0x60;
const MSIX: usize = 0xa0;

/// The identity of a function: what drivers find it by, and what of it they can map.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The vendor's id. [`VENDOR`] is nobody's.
    pub vendor: u16,
    /// The device's id, among those of its vendor.
    pub device: u16,
    /// Base class, subclass and programming interface: `0x01_08_02` for NVMe.
    pub class: u32,
    /// The BARs, each of 64-bit memory: its index (0, 2 or 4), and its size in bytes, a power of two from 16.
    pub bars: Vec<(u8, u64)>,
    /// Where the MSI-X table and the PBA are: what [`Shape::msix`](wholebar_core::model::Shape::msix) has; `None` without MSI-X.
    pub msix: Option<MsixPlace>,
}

/// A configuration space.
#[derive(Debug, Clone)]
pub struct Config {
    bytes: Box<[u8; SIZE as usize]>,
    writable: Box<[u8; SIZE as usize]>,
    initial: Box<[u8; SIZE as usize]>,
}

impl Config {
    /// Creates a function's configuration space, as it is after a reset.
    ///
    /// # Panics
    /// Where a BAR's index or size is none that a BAR can have.
    pub fn new(identity: &Identity) -> Self {
        let zeroes = || Box::new([0; SIZE as usize]);
        let mut c = Self { bytes: zeroes(), writable: zeroes(), initial: zeroes() };
        c.put(0x00, &identity.vendor.to_le_bytes());
        c.put(0x02, &identity.device.to_le_bytes());
        // Memory space on, as the kernel's VFIO leaves it; bus mastering is the driver's to switch on.
        c.put(COMMAND, &2u16.to_le_bytes());
        // Memory space, bus master, interrupt disable.
        c.mask(COMMAND, &0x0406u16.to_le_bytes());
        // There is a capability list.
        c.put(STATUS, &0x0010u16.to_le_bytes());
        c.put(0x08, &(identity.class << 8 | 1).to_le_bytes());
        c.put(0x2c, &VENDOR.to_le_bytes());
        c.put(0x2e, &identity.device.to_le_bytes());
        for &(index, size) in &identity.bars {
            assert!([0, 2, 4].contains(&index) && size.is_power_of_two() && size >= 16, "BAR{index} of {size} bytes");
            let at = BAR0 + 4 * usize::from(index);
            // 64-bit memory, not prefetchable (7.5.1.2.1).
            c.put(at, &4u32.to_le_bytes());
            c.mask(at, &(!(size - 1)).to_le_bytes());
        }
        c.put(CAPABILITIES, &[PM as u8]);
        // Power management (7.5.2), version 3, D0 and D3hot.
        c.put(PM, &[0x01, PCIE as u8, 0x03, 0x00]);
        c.mask(PM + 4, &[0x03]);
        // PCI Express (7.5.3), version 2, endpoint.
        c.put(PCIE, &[0x10, if identity.msix.is_some() { MSIX as u8 } else { 0 }, 0x02, 0x00]);
        // Device capabilities: 256-byte payload, role-based errors, function-level reset.
        c.put(PCIE + 4, &(1u32 | 1 << 15 | 1 << 28).to_le_bytes());
        c.mask(PCIE + 8, &0x70efu16.to_le_bytes());
        // Link capabilities and status: 8 GT/s, 4 lanes.
        c.put(PCIE + 0x0c, &0x0043u32.to_le_bytes());
        c.put(PCIE + 0x12, &0x0043u16.to_le_bytes());
        // Link capabilities 2 (7.5.3.18): all speeds up to it, a bit each; link control 2: it is the target.
        c.put(PCIE + 0x2c, &0x0eu32.to_le_bytes());
        c.put(PCIE + 0x30, &0x0003u16.to_le_bytes());
        // MSI-X (7.7.2): table size less one, then where table and PBA are.
        if let Some(m) = &identity.msix {
            c.put(MSIX, &[0x11, 0x00]);
            c.put(MSIX + 2, &(m.vectors as u16).wrapping_sub(1).to_le_bytes());
            // Function mask and enable.
            c.mask(MSIX + 2, &0xc000u16.to_le_bytes());
            c.put(MSIX + 4, &(m.table_offset as u32 | u32::from(m.table_bar)).to_le_bytes());
            c.put(MSIX + 8, &(m.pba_offset as u32 | u32::from(m.pba_bar)).to_le_bytes());
        }
        c.initial.copy_from_slice(&*c.bytes);
        c
    }

    /// Adds a vendor-specific capability (7.9.4) at `at`, where nothing is yet (from 0xac on), last of those there are: its id and its link go before `body`,
    /// which begins with the capability's length.
    ///
    /// # Panics
    /// Where it does not end within 256 bytes.
    pub fn add_vendor_capability(&mut self, at: u8, body: &[u8]) {
        assert!(usize::from(at) + 2 + body.len() <= 256, "a capability of {} bytes at {at:#x}", 2 + body.len());
        let mut last = CAPABILITIES;
        while self.bytes[last] != 0 {
            last = usize::from(self.bytes[last]) + 1;
        }
        self.put(last, &[at]);
        self.put(usize::from(at), &[0x09, 0x00]);
        self.put(usize::from(at) + 2, body);
        self.initial.copy_from_slice(&*self.bytes);
    }

    /// Lets a driver write `len` bytes at `at`: by default it can write what is common to all functions alone.
    ///
    /// # Panics
    /// Where they are not all within [`SIZE`].
    pub fn open(&mut self, at: usize, len: usize) {
        self.writable[at..at + len].fill(0xff);
    }

    /// Returns the bytes at `at`; all ones where they are not all within [`SIZE`].
    pub fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        self.bytes[at..].first_chunk().copied().unwrap_or([0xff; N])
    }

    /// Returns whether the function may do DMA and signal interrupts (command register, bit 2). A model asks before it does either.
    #[inline]
    pub fn bus_master(&self) -> bool {
        self.bytes[COMMAND] & 4 != 0
    }

    /// Reads: what [`Model::read`](wholebar_core::model::Model::read) does of the region [`CONFIG`](wholebar_core::pci::CONFIG).
    ///
    /// # Errors
    /// `EINVAL` for bytes that are not all within [`SIZE`].
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Refused> {
        let end = (offset as usize).saturating_add(buf.len());
        buf.copy_from_slice(self.bytes.get(offset as usize..end).ok_or(Refused(libc::EINVAL))?);
        Ok(())
    }

    /// Writes the bits that can be written. Returns whether a function-level reset was asked for, upon which a model does what its
    /// [`Model::reset`](wholebar_core::model::Model::reset) does.
    ///
    /// # Errors
    /// `EINVAL` for bytes that are not all within [`SIZE`].
    pub fn write(&mut self, offset: u64, buf: &[u8]) -> Result<bool, Refused> {
        let start = offset as usize;
        let range = start..start.saturating_add(buf.len());
        let bytes = self.bytes.get_mut(range.clone()).ok_or(Refused(libc::EINVAL))?;
        for ((byte, mask), new) in bytes.iter_mut().zip(&self.writable[range.clone()]).zip(buf) {
            *byte = *byte & !mask | new & mask;
        }
        // Device control, bit 15: initiate function-level reset; it reads as 0.
        let flr = range.contains(&(PCIE + 9)) && buf[PCIE + 9 - start] & 0x80 != 0;
        Ok(flr)
    }

    /// Resets it: all is as it was at first, but for where the BARs are, which VFIO keeps across a reset.
    pub fn reset(&mut self) {
        let bars = BAR0..BAR0 + 24;
        self.bytes[..bars.start].copy_from_slice(&self.initial[..bars.start]);
        self.bytes[bars.end..].copy_from_slice(&self.initial[bars.end..]);
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn mask(&mut self, at: usize, bytes: &[u8]) {
        self.writable[at..at + bytes.len()].copy_from_slice(bytes);
    }
}
